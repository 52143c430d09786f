//! What a run reports: one JSON object a line in `metrics.jsonl`, units in the names.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the lines.
pub const SCHEMA: u32 = 1;

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Metric {
    /// A training step.
    Train(TrainMetric),
    /// An evaluation of both splits.
    Evaluation(Evaluation),
    /// The end of a training whose numbers are no longer finite; a run that goes on from before it loses this line.
    Diverged(Divergence),
}

/// A number that became NaN or infinite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// Optimiser steps made.
    pub step: u64,
    /// What is not finite.
    pub what: String,
}

/// A training step, reported every few steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainMetric {
    /// Optimiser steps made.
    pub step: u64,
    /// Mean cross-entropy of the step's batch.
    pub loss_nats: f64,
    /// Loss plus weighted auxiliary losses.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub objective: Option<f64>,
    /// Global norm of the gradient before clipping, where gradients are clipped.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub grad_norm: Option<f64>,
    /// Learning rate of the step.
    pub lr: f64,
    /// Mean time of a step since the last line, without evaluations, checkpoints and the first step, for which kernels are
    /// compiled, unless that is the only one.
    pub step_ms: f64,
    /// Tokens trained on in a second.
    pub tokens_per_s: f64,
}

/// An evaluation: mean over random windows of both splits, with the balance panel of the validation split, or of the
/// training split where nothing is held out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Optimiser steps made.
    pub step: u64,
    /// Mean cross-entropy on the training split, without dropout.
    pub train_loss_nats: f64,
    /// Mean cross-entropy on the validation split; absent where nothing is held out.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub validation_loss_nats: Option<f64>,
    /// Trained numbers that a token made use of in the mean; absent where every token has the same number of experts.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub active_parameters: Option<f64>,
    /// One entry per mixture-of-experts layer, in the order of the model.
    pub layers: Vec<LayerBalance>,
}

/// The balance panel of a layer: how its router spread the tokens of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerBalance {
    /// Path of the layer.
    pub path: String,
    /// Rows that each expert computed, summed over the batches, `[E]`.
    pub load_rows: Vec<f64>,
    /// Rows of each expert that computes nothing, summed over the batches; absent where there are none. The numbers below are
    /// of the others, but for the entropy.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub zero_computation_rows: Vec<f64>,
    /// Experts that computed for a token in the mean; absent where every token has the same number.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub experts_per_token: Option<f64>,
    /// Rows of the busiest expert over the mean; 1 is perfect, E the worst.
    pub load_max_over_mean: f64,
    /// Experts that got no row in the whole evaluation.
    pub experts_without_tokens: usize,
    /// Mean entropy of a token's gate weights.
    pub entropy_nats: f64,
    /// Share of the slots that capacity dropped.
    pub dropped_share: f64,
    /// Mean over batches of `E * sum_e share_e^2`; 1 is perfect, E the worst.
    pub balance: f64,
    /// Mean of each auxiliary loss, without its weight.
    pub auxiliary: BTreeMap<String, f64>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    schema: u32,
    #[serde(flatten)]
    metric: Metric,
}

impl Metric {
    /// Optimiser steps made.
    pub fn step(&self) -> u64 {
        match self {
            Metric::Train(m) => m.step,
            Metric::Evaluation(m) => m.step,
            Metric::Diverged(m) => m.step,
        }
    }

    /// The line with its line break.
    ///
    /// # Errors
    /// Never for a metric of finite numbers.
    pub(crate) fn to_line(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string(&Line { schema: SCHEMA, metric: self.clone() })? + "\n")
    }

    /// Reads a line; `None` for one that is cut off or of another schema.
    pub fn from_line(line: &str) -> Option<Self> {
        let line: Line = serde_json::from_str(line).ok()?;
        (line.schema == SCHEMA).then_some(line.metric)
    }
}

/// Collects the outputs of one layer over the batches of an evaluation.
#[derive(Clone, Debug)]
pub(crate) struct LayerPanel {
    path: String,
    load: Vec<f64>,
    zero_computation: Vec<f64>,
    experts_per_token: Option<f64>,
    entropy: f64,
    dropped: f64,
    balance: f64,
    auxiliary: BTreeMap<String, f64>,
    batches: u32,
}

/// What one batch said about a layer.
pub(crate) struct LayerOutputs {
    pub(crate) load: Vec<f64>,
    /// Empty where all experts compute.
    pub(crate) zero_computation: Vec<f64>,
    /// Where it varies.
    pub(crate) experts_per_token: Option<f64>,
    pub(crate) entropy: f64,
    pub(crate) dropped: f64,
    pub(crate) balance: f64,
    pub(crate) auxiliary: Vec<(String, f64)>,
}

impl LayerPanel {
    pub(crate) fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            load: Vec::new(),
            zero_computation: Vec::new(),
            experts_per_token: None,
            entropy: 0.0,
            dropped: 0.0,
            balance: 0.0,
            auxiliary: BTreeMap::new(),
            batches: 0,
        }
    }

    pub(crate) fn add(&mut self, batch: LayerOutputs) {
        for (sums, rows) in [(&mut self.load, batch.load), (&mut self.zero_computation, batch.zero_computation)] {
            sums.resize(rows.len(), 0.0);
            sums.iter_mut().zip(rows).for_each(|(sum, rows)| *sum += rows);
        }
        if let Some(experts) = batch.experts_per_token {
            *self.experts_per_token.get_or_insert(0.0) += experts;
        }
        self.entropy += batch.entropy;
        self.dropped += batch.dropped;
        self.balance += batch.balance;
        for (name, value) in batch.auxiliary {
            *self.auxiliary.entry(name).or_insert(0.0) += value;
        }
        self.batches += 1;
    }

    pub(crate) fn finish(self) -> LayerBalance {
        let batches = f64::from(self.batches.max(1));
        let mean = self.load.iter().sum::<f64>() / self.load.len().max(1) as f64;
        let max = self.load.iter().copied().fold(0.0, f64::max);
        LayerBalance {
            path: self.path,
            // Without a single row there is no busiest expert, and nothing is out of balance.
            load_max_over_mean: if mean > 0.0 { max / mean } else { 1.0 },
            experts_without_tokens: self.load.iter().filter(|&&rows| rows == 0.0).count(),
            load_rows: self.load,
            zero_computation_rows: self.zero_computation,
            experts_per_token: self.experts_per_token.map(|sum| sum / batches),
            entropy_nats: self.entropy / batches,
            dropped_share: self.dropped / batches,
            balance: self.balance / batches,
            auxiliary: self.auxiliary.into_iter().map(|(name, sum)| (name, sum / batches)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_back() {
        let metric = Metric::Train(TrainMetric {
            step: 10,
            loss_nats: 4.25,
            objective: None,
            grad_norm: Some(0.5),
            lr: 1e-3,
            step_ms: 250.0,
            tokens_per_s: 2048.0,
        });
        let line = metric.to_line().unwrap();
        assert_eq!(
            line,
            "{\"schema\":1,\"kind\":\"train\",\"step\":10,\"loss_nats\":4.25,\"grad_norm\":0.5,\"lr\":0.001,\
             \"step_ms\":250.0,\"tokens_per_s\":2048.0}\n"
        );
        assert_eq!(Metric::from_line(&line), Some(metric));
        assert_eq!(Metric::from_line(&line[..30]), None);
        assert_eq!(Metric::from_line(&line.replace("schema\":1", "schema\":2")), None);
    }

    #[test]
    fn panel_means_over_batches() {
        let mut panel = LayerPanel::new("blocks.0.moe");
        let batch = |load: [f64; 3], entropy, importance| LayerOutputs {
            load: load.to_vec(),
            zero_computation: vec![1.0, load[1]],
            experts_per_token: Some(load[0]),
            entropy,
            dropped: 0.25,
            balance: 1.5,
            auxiliary: vec![("importance".to_string(), importance)],
        };
        panel.add(batch([6.0, 0.0, 0.0], 0.5, 1.0));
        panel.add(batch([3.0, 0.0, 3.0], 0.7, 2.0));
        let layer = panel.finish();
        assert_eq!(layer.load_rows, [9.0, 0.0, 3.0]);
        assert_eq!(layer.zero_computation_rows, [2.0, 0.0]);
        assert_eq!(layer.experts_per_token, Some(4.5));
        assert_eq!((layer.load_max_over_mean, layer.experts_without_tokens), (2.25, 1));
        assert_eq!((layer.entropy_nats, layer.dropped_share, layer.balance), (0.6, 0.25, 1.5));
        assert_eq!(layer.auxiliary["importance"], 1.5);
        let line = Metric::Evaluation(Evaluation {
            step: 3,
            train_loss_nats: 1.0,
            validation_loss_nats: Some(2.0),
            active_parameters: Some(1234.5),
            layers: vec![layer],
        });
        assert_eq!(Metric::from_line(&line.to_line().unwrap()), Some(line));
        assert_eq!(LayerPanel::new("x").finish().load_max_over_mean, 1.0);
    }
}

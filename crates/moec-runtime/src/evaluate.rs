//! Loss of a model on text: estimated from random windows while training, or over a whole split.

use crate::batches::{Windows, window_count};
use crate::data::{DataError, Dataset, Split};
use crate::executable::{Executable, ExecutableError, Settings};
use crate::metrics::{Evaluation, LayerBalance, LayerOutputs, LayerPanel};
use crate::sample::log_probability;
use crate::streams::Purpose;
use moec_ir::{Function, Output, path_order};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Why a model could not be evaluated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluateError {
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The program could not be run.
    #[error(transparent)]
    Executable(#[from] ExecutableError),
}

/// Mean cross-entropy over a split, and how the routers spread its tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct SplitLoss {
    /// Mean over all predicted characters, in nats.
    pub loss_nats: f64,
    /// Windows of T characters.
    pub windows: usize,
    /// Predicted characters: windows times T.
    pub characters: usize,
    /// Characters of the split that were not predicted although something precedes them: fewer than T, unless only
    /// some of the windows were asked for.
    pub left_over: usize,
    /// Trained numbers that a token made use of in the mean, over the full batches; `None` where every token has the same
    /// number of experts.
    pub active_parameters: Option<f64>,
    /// One entry per mixture-of-experts layer, over the full batches; empty if there was none.
    pub layers: Vec<LayerBalance>,
}

/// Mean cross-entropy over the consecutive windows of a split that do not overlap: window `w` predicts characters
/// `w*T + 1 ..= (w+1)*T` from those before them in the window. Fewer than T characters at the end are left out. With
/// `most`, only that many windows are taken, spread evenly over the split: the same ones for every model of that context.
///
/// Full batches run on the device as they are; the windows of a last incomplete batch run one by one, so every window
/// counts once and equally. (A model with a capacity drops tokens by batch: there the size of a batch matters a little.)
/// `progress` is told how many of all windows are done; `None` when it said to stop.
///
/// # Errors
/// When the split is shorter than a window with its targets or the device fails.
pub fn evaluate_split(
    executable: &mut Executable<'_>,
    data: &Dataset,
    split: Split,
    seed: u64,
    most: Option<usize>,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Option<SplitLoss>, EvaluateError> {
    let context = executable.context();
    let text = data.windows(split, context)?;
    let all = window_count(text, context);
    let windows = most.map_or(all, |most| most.clamp(1, all));
    let number = |i: usize| (i as u128 * all as u128 / windows as u128) as usize;
    let rows = executable.rows(Function::Evaluate)?;
    let noise = |window: usize| Purpose::EvaluationNoise.stream(seed, 0).bits64(window as u32);
    let mut panels = Panels::new(executable)?;
    let mut sum = 0.0;
    let mut done = 0;
    while windows - done >= rows {
        let batch = Windows::numbered(text, context, (done..done + rows).map(number));
        let rng = crate::executable::generator(seed, noise(done));
        executable.run(Function::Evaluate, &batch, Settings { rng, ..Settings::default() })?;
        sum += executable.scalar(Function::Evaluate, &Output::Loss)? * rows as f64;
        panels.add(executable)?;
        done += rows;
        if progress(done, windows).is_break() {
            return Ok(None);
        }
    }
    let (layers, active_parameters) = if done > 0 { panels.finish() } else { (Vec::new(), None) };
    while done < windows {
        let window = Windows::numbered(text, context, (done..done + 1).map(number));
        let rng = crate::executable::generator(seed, noise(done));
        let (logits, vocab) = executable.logits(&window.tokens, rng)?;
        let surprise: f64 =
            logits.chunks(vocab).zip(&window.targets).map(|(row, &target)| -log_probability(row, target)).sum();
        sum += surprise / context as f64;
        done += 1;
        if progress(done, windows).is_break() {
            return Ok(None);
        }
    }
    let characters = windows * context;
    let left_over = text.len() - 1 - characters;
    let loss_nats = sum / windows as f64;
    Ok(Some(SplitLoss { loss_nats, windows, characters, left_over, active_parameters, layers }))
}

/// Which windows an evaluation during training draws.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Estimate {
    pub(crate) seed: u64,
    /// Optimiser steps made: with the seed it determines the windows.
    pub(crate) step: u64,
    /// Batches per split.
    pub(crate) batches: usize,
}

/// Estimates the loss on both splits from random windows, as makeMoE does, and collects the balance panel on the
/// validation split. Where nothing is held out there is the training split alone. `progress` is told after every batch how many of all are done; `None` when it said to stop.
pub(crate) fn estimate(
    executable: &mut Executable<'_>,
    data: &Dataset,
    settings: Estimate,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Option<Evaluation>, EvaluateError> {
    let Estimate { seed, step, batches } = settings;
    let context = executable.context();
    let rows = executable.rows(Function::Evaluate)?;
    let mut panels = Panels::new(executable)?;
    let mut losses = Vec::with_capacity(2);
    let splits = [(Split::Train, Purpose::TrainingEstimate), (Split::Validation, Purpose::ValidationEstimate)];
    let splits = if data.is_held_out() { &splits[..] } else { &splits[..1] };
    for (s, &(split, purpose)) in splits.iter().enumerate() {
        let text = data.windows(split, context)?;
        let stream = purpose.stream(seed, step);
        let noise = Purpose::EvaluationNoise.stream(seed, step);
        let mut sum = 0.0;
        for batch in 0..batches {
            let windows = Windows::random(text, context, rows, stream, batch * rows);
            let rng = crate::executable::generator(seed, noise.bits64((s * batches + batch) as u32));
            executable.run(Function::Evaluate, &windows, Settings { rng, ..Settings::default() })?;
            sum += executable.scalar(Function::Evaluate, &Output::Loss)?;
            if s + 1 == splits.len() {
                panels.add(executable)?;
            }
            if !progress(s * batches + batch + 1, splits.len() * batches) {
                return Ok(None);
            }
        }
        losses.push(sum / batches as f64);
    }
    let (layers, active_parameters) = panels.finish();
    let (train_loss_nats, validation_loss_nats) = (losses[0], losses.get(1).copied());
    Ok(Some(Evaluation { step, train_loss_nats, validation_loss_nats, active_parameters, layers }))
}

/// The balance panels of all mixture-of-experts layers, filled batch by batch.
struct Panels {
    names: LayerNames,
    panels: Vec<LayerPanel>,
    /// Sum over the batches of what a token made use of; `None` where that is not measured.
    active_parameters: Option<f64>,
    batches: usize,
}

impl Panels {
    fn new(executable: &Executable<'_>) -> Result<Self, ExecutableError> {
        let outputs = executable.outputs(Function::Evaluate)?;
        let names = LayerNames::of_outputs(&outputs);
        let panels = names.0.keys().map(LayerPanel::new).collect();
        let active_parameters = outputs.contains(&Output::ActiveParameters).then_some(0.0);
        Ok(Self { names, panels, active_parameters, batches: 0 })
    }

    /// Adds what the last batch said.
    fn add(&mut self, executable: &mut Executable<'_>) -> Result<(), ExecutableError> {
        for (panel, (path, names)) in self.panels.iter_mut().zip(&self.names.0) {
            panel.add(read_layer(executable, path, names)?);
        }
        if let Some(sum) = &mut self.active_parameters {
            *sum += executable.scalar(Function::Evaluate, &Output::ActiveParameters)?;
        }
        self.batches += 1;
        Ok(())
    }

    /// The means: of the layers, in the order of the model, and of the trained numbers that a token made use of.
    fn finish(self) -> (Vec<LayerBalance>, Option<f64>) {
        let active_parameters = self.active_parameters.map(|sum| sum / self.batches.max(1) as f64);
        let mut layers: Vec<_> = self.panels.into_iter().map(LayerPanel::finish).collect();
        layers.sort_by(|a, b| path_order(&a.path).cmp(&path_order(&b.path)));
        (layers, active_parameters)
    }
}

/// What is said of a mixture-of-experts layer besides what is said of all.
#[derive(Default)]
struct Said {
    /// Names of its auxiliary losses.
    auxiliary: Vec<String>,
    /// Whether some of its experts compute nothing.
    zero_computation: bool,
    /// Whether its number of experts per token varies.
    experts_per_token: bool,
}

/// Paths of the mixture-of-experts layers.
struct LayerNames(BTreeMap<String, Said>);

impl LayerNames {
    /// Layers are known by their output [`Output::Load`]; [`Output::Aux`] belongs to the layer with exactly that path.
    fn of_outputs(outputs: &[Output]) -> Self {
        let mut layers: BTreeMap<String, Said> = BTreeMap::new();
        for output in outputs {
            if let Output::Load(path) = output {
                layers.insert(path.clone(), Said::default());
            }
        }
        for output in outputs {
            let (Output::Aux { path, .. } | Output::ZeroComputation(path) | Output::ExpertsPerToken(path)) = output
            else {
                continue;
            };
            let Some(said) = layers.get_mut(path) else { continue };
            match output {
                Output::Aux { loss, .. } => said.auxiliary.push(loss.clone()),
                Output::ZeroComputation(_) => said.zero_computation = true,
                _ => said.experts_per_token = true,
            }
        }
        Self(layers)
    }
}

fn read_layer(executable: &mut Executable<'_>, path: &str, said: &Said) -> Result<LayerOutputs, ExecutableError> {
    let mut scalar = |output: Output| executable.scalar(Function::Evaluate, &output);
    let mut losses = Vec::with_capacity(said.auxiliary.len());
    for loss in &said.auxiliary {
        losses.push((loss.clone(), scalar(Output::Aux { path: path.into(), loss: loss.clone() })?));
    }
    let (entropy, dropped) = (scalar(Output::Entropy(path.into()))?, scalar(Output::Dropped(path.into()))?);
    let balance = scalar(Output::Balance(path.into()))?;
    let experts_per_token = match said.experts_per_token {
        true => Some(scalar(Output::ExpertsPerToken(path.into()))?),
        false => None,
    };
    let load = executable.output(Function::Evaluate, &Output::Load(path.into()))?;
    let zero_computation = match said.zero_computation {
        true => executable.output(Function::Evaluate, &Output::ZeroComputation(path.into()))?,
        false => Vec::new(),
    };
    Ok(LayerOutputs { load, zero_computation, experts_per_token, entropy, dropped, balance, auxiliary: losses })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auxiliary_losses_belong_to_their_own_layer() {
        let outputs = [
            "loss",
            "load.blocks.0.moe",
            "load.blocks.0.moe.experts.moe",
            "aux.blocks.0.moe.importance",
            "aux.blocks.0.moe.load",
            "aux.blocks.0.moe.experts.moe.z",
            "aux.other.z",
            "zero.blocks.0.moe",
            "per_token.blocks.0.moe.experts.moe",
        ];
        let outputs: Vec<Output> = outputs.into_iter().filter_map(Output::of_name).collect();
        let layers = LayerNames::of_outputs(&outputs);
        let (outer, inner) = (&layers.0["blocks.0.moe"], &layers.0["blocks.0.moe.experts.moe"]);
        assert_eq!((&outer.auxiliary[..], outer.zero_computation), (&["importance".into(), "load".into()][..], true));
        assert_eq!((&inner.auxiliary[..], inner.zero_computation), (&["z".into()][..], false));
        assert!(inner.experts_per_token && !outer.experts_per_token);
        assert_eq!(layers.0.len(), 2);
    }
}

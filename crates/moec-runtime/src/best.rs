//! The best held-out loss of a run, and what follows from it: when training ends before its last step, and which checkpoint is
//! the best.

use crate::metrics::{Evaluation, Metric};
use crate::run_folder::{checkpoints, read_metrics};
use crate::train::TrainError;
use std::path::{Path, PathBuf};

/// A held-out loss, and when it was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Best {
    /// Optimiser steps made.
    pub step: u64,
    /// Mean cross-entropy on the validation split.
    pub loss_nats: f64,
}

/// What the evaluations of a run say of its held-out loss. It follows from the metrics of the run, so that one which goes on
/// remembers it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HeldOut {
    /// The best; of equal ones the first.
    pub best: Option<Best>,
    /// Evaluations since the best.
    pub without_better: u64,
}

impl HeldOut {
    /// What evaluations up to a step say.
    pub fn of(metrics: &[Metric], step: u64) -> Self {
        let mut held_out = Self::default();
        for metric in metrics {
            if let Metric::Evaluation(evaluation) = metric
                && evaluation.step <= step
            {
                held_out.add(evaluation);
            }
        }
        held_out
    }

    /// Adds an evaluation, and says whether it is better than all before.
    pub(crate) fn add(&mut self, evaluation: &Evaluation) -> bool {
        let Evaluation { step, validation_loss_nats: Some(loss_nats), .. } = *evaluation else { return false };
        let is_best = self.best.is_none_or(|best| loss_nats < best.loss_nats);
        if is_best {
            *self = Self { best: Some(Best { step, loss_nats }), without_better: 0 };
        } else {
            self.without_better += 1;
        }
        is_best
    }

    /// Whether as many evaluations as are waited for went by without a better one.
    pub fn is_exhausted(&self, patience: Option<u64>) -> bool {
        patience.is_some_and(|patience| self.without_better >= patience)
    }
}

/// The checkpoint with the best held-out loss among those that a run has of steps at which it was evaluated, of equal ones the
/// first; found without taking its lock. `None` if there is none.
///
/// # Errors
/// When the folder cannot be read.
pub fn best_checkpoint(root: &Path) -> Result<Option<PathBuf>, TrainError> {
    Ok(best_of(checkpoints(root)?, &read_metrics(root)?))
}

fn best_of(checkpoints: Vec<(u64, PathBuf)>, metrics: &[Metric]) -> Option<PathBuf> {
    let loss = |at: u64| {
        metrics.iter().find_map(|metric| match metric {
            Metric::Evaluation(evaluation) if evaluation.step == at => evaluation.validation_loss_nats,
            _ => None,
        })
    };
    let evaluated = checkpoints.into_iter().filter_map(|(step, path)| Some((loss(step)?, path)));
    evaluated.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluations(losses: &[(u64, Option<f64>)]) -> Vec<Metric> {
        let evaluation = |&(step, validation_loss_nats)| {
            let (layers, active_parameters) = (Vec::new(), None);
            let evaluation = Evaluation { step, train_loss_nats: 1.0, validation_loss_nats, active_parameters, layers };
            Metric::Evaluation(evaluation)
        };
        losses.iter().map(evaluation).collect()
    }

    #[test]
    fn patience_counts_evaluations_that_are_not_better() {
        let metrics =
            evaluations(&[(10, Some(3.0)), (20, Some(2.0)), (30, Some(2.0)), (40, Some(2.5)), (50, Some(1.9))]);
        let counts = |step| HeldOut::of(&metrics, step).without_better;
        assert_eq!([9, 10, 20, 30, 40, 50].map(counts), [0, 0, 0, 1, 2, 0]);
        let held_out = HeldOut::of(&metrics, 40);
        assert_eq!(held_out.best, Some(Best { step: 20, loss_nats: 2.0 }), "of equal ones the first");
        assert!(held_out.is_exhausted(Some(1)) && held_out.is_exhausted(Some(2)));
        assert!(!held_out.is_exhausted(Some(3)) && !held_out.is_exhausted(None));
        assert_eq!(HeldOut::of(&evaluations(&[(10, None), (20, None)]), 20), HeldOut::default());
    }

    #[test]
    fn the_best_checkpoint_is_one_that_is_there() {
        let metrics = evaluations(&[(10, Some(3.0)), (20, Some(1.0)), (30, Some(2.0)), (40, Some(2.0)), (50, None)]);
        let there = |steps: &[u64]| steps.iter().map(|&step| (step, PathBuf::from(step.to_string()))).collect();
        let best = |steps: &[u64]| best_of(there(steps), &metrics).map(|path| path.display().to_string());
        assert_eq!(best(&[10, 20, 30, 40]).as_deref(), Some("20"));
        assert_eq!(best(&[10, 25, 30, 40]).as_deref(), Some("30"));
        assert_eq!(best(&[15, 50]), None);
        assert_eq!(best(&[]), None);
    }
}

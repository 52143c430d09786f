//! The training loop.

use crate::batches::Windows;
use crate::best::{Best, HeldOut};
use crate::checkpoint::{self, CheckpointError, Identity, Parts, PassedOver};
use crate::data::{DataError, Dataset, Split};
use crate::evaluate::{Estimate, EvaluateError, estimate};
use crate::executable::{Executable, ExecutableError, Settings, generator};
use crate::metrics::{Divergence, Evaluation, Metric, TrainMetric};
use crate::run_folder::{RunError, RunFolder, read_metrics};
use crate::streams::Purpose;
use moec_ir::{Function, Output};
use moec_plan::{Optimizer, Schedule};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The recipe of a run. "Every" settings count optimiser steps; 0 means never.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainConfig {
    /// Optimiser steps in all, those before a resumption included.
    pub steps: u64,
    /// With the step it determines every random number of the run.
    pub seed: u64,
    /// The optimiser of the program: it says what each step is told.
    pub optimizer: Optimizer,
    /// How its learning rate changes.
    pub schedule: Schedule,
    /// Batches of a step, all but the last by [`Function::Accumulate`].
    pub batches: usize,
    /// Steps between two reports of the loss. Between them the loop does not wait for the device.
    pub log_every: u64,
    /// Steps between two evaluations; there is one at the end too, unless there are none.
    pub evaluate_every: u64,
    /// Batches per split of an evaluation.
    pub evaluate_batches: usize,
    /// Evaluations without a better held-out loss after which training ends; `None` for the last step alone.
    pub patience: Option<u64>,
    /// Steps between two checkpoints; there is one at the end too.
    pub checkpoint_every: u64,
    /// Newest checkpoints that are kept; `None` keeps all.
    pub keep: Option<usize>,
    /// Whether an evaluation with the best held-out loss so far has a checkpoint, which stays until there is a better one.
    pub keep_best: bool,
}

impl TrainConfig {
    /// Makes sure that every split that is used has a window of `context` tokens with its targets: nothing needs to be
    /// held out, and what is held out matters only if it is evaluated.
    ///
    /// # Errors
    /// When a split is shorter.
    pub fn check_data(&self, data: &Dataset, context: usize) -> Result<(), DataError> {
        data.windows(Split::Train, context)?;
        if self.evaluates() && data.is_held_out() {
            data.windows(Split::Validation, context)?;
        }
        Ok(())
    }

    /// Whether there is any evaluation.
    fn evaluates(&self) -> bool {
        self.evaluate_every > 0 && self.evaluate_batches > 0
    }

    /// Evaluations that a run has before it when `step` steps are made, and that of this step is done or not due.
    pub fn evaluations_after(&self, step: u64) -> u64 {
        if self.evaluates() { due_after(self.evaluate_every, step, self.steps) } else { 0 }
    }

    /// Checkpoints that a run has before it when `step` steps are made, and that of this step is saved or not due.
    pub fn checkpoints_after(&self, step: u64) -> u64 {
        due_after(self.checkpoint_every, step, self.steps)
    }

    /// The learning rate of the step after `step` steps.
    pub fn learning_rate(&self, step: u64) -> f64 {
        self.schedule.at(self.optimizer.lr(), step, self.steps)
    }
}

/// Why training stopped with an error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The program could not be run.
    #[error(transparent)]
    Executable(#[from] ExecutableError),
    /// A checkpoint could not be written or does not fit.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The run's folder cannot be used.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A loss or parameter became NaN or infinite. The last checkpoint is from before.
    #[error("training diverged: {what} is not finite after step {step}")]
    Diverged {
        /// Optimiser steps made.
        step: u64,
        /// What is not finite.
        what: String,
    },
}

impl From<EvaluateError> for TrainError {
    fn from(error: EvaluateError) -> Self {
        match error {
            EvaluateError::Data(error) => Self::Data(error),
            EvaluateError::Executable(error) => Self::Executable(error),
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are made, and the evaluation after the last.
    Finished,
    /// The last evaluations were no better than one before, as many as [`TrainConfig::patience`] says, so there were fewer steps.
    StoppedEarly,
    /// It was asked to stop, and saved; there are steps left, or the last evaluation.
    Interrupted,
}

/// What is left of a run besides its folder.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// How it ended.
    pub outcome: Outcome,
    /// Optimiser steps made.
    pub step: u64,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
    /// The last evaluation of this process.
    pub evaluation: Option<Evaluation>,
    /// What all evaluations of the run say of its held-out loss.
    pub held_out: HeldOut,
    /// Median over the reports of the mean time of a step, without evaluations and checkpoints; `None` without steps.
    pub step_ms: Option<f64>,
    /// Tokens trained on in a second, at that time.
    pub tokens_per_s: Option<f64>,
}

/// Is told what a run does; every method may do nothing.
pub trait Reporter {
    /// The run begins, or goes on, after `step` of `steps` steps.
    fn started(&mut self, step: u64, steps: u64);
    /// A step was handed to the device.
    fn stepped(&mut self, step: u64);
    /// The loss was read.
    fn logged(&mut self, metric: &TrainMetric);
    /// An evaluation has done some of its batches.
    fn evaluating(&mut self, done: usize, batches: usize);
    /// An evaluation is done.
    fn evaluated(&mut self, evaluation: &Evaluation);
    /// A checkpoint was written.
    fn saved(&mut self, step: u64, path: &Path);
    /// The run ended.
    fn finished(&mut self, summary: &Summary);
}

/// A reporter that says nothing.
pub struct Silent;

impl Reporter for Silent {
    fn started(&mut self, _: u64, _: u64) {}
    fn stepped(&mut self, _: u64) {}
    fn logged(&mut self, _: &TrainMetric) {}
    fn evaluating(&mut self, _: usize, _: usize) {}
    fn evaluated(&mut self, _: &Evaluation) {}
    fn saved(&mut self, _: u64, _: &Path) {}
    fn finished(&mut self, _: &Summary) {}
}

/// What identifies a run with this data and seed.
fn identity(executable: &Executable<'_>, data: &Dataset, run: &RunFolder, config: &TrainConfig) -> Identity {
    Identity {
        seed: config.seed,
        context: executable.context(),
        vocab: data.vocab().clone(),
        spec_sha256: run.spec_sha256().to_string(),
        data_sha256: data.sha256().to_string(),
    }
}

/// Where a run goes on.
#[derive(Debug, Default)]
pub struct Resumption {
    /// Optimiser steps made.
    pub step: u64,
    /// Newer checkpoints that are damaged, the newest first. They have lost their names, so that these steps can be saved
    /// again, and nothing else.
    pub passed_over: Vec<PassedOver>,
}

/// Restores the newest checkpoint of a run that is whole, and returns the step from which [`train`] goes on; `None` when
/// there is none yet and the run begins anew.
///
/// # Errors
/// When all checkpoints are damaged, one belongs to another model, spec, corpus or seed, or the device fails.
pub fn resume(
    executable: &mut Executable<'_>,
    data: &Dataset,
    run: &RunFolder,
    config: &TrainConfig,
) -> Result<Option<Resumption>, TrainError> {
    let identity = identity(executable, data, run, config);
    let found = run.take_up(|path| {
        let checkpoint = checkpoint::load(path, &executable.program().states, Parts::All)?;
        checkpoint.check_identity(&identity)?;
        Ok(checkpoint)
    })?;
    let Some((checkpoint, passed_over)) = found else { return Ok(None) };
    executable.write_states(&checkpoint.tensors)?;
    Ok(Some(Resumption { step: checkpoint.manifest.step, passed_over }))
}

/// Trains from optimiser step `start` (0, or what [`resume`] returned) to `config.steps`, or until `stop` is set: then
/// the step in progress is finished and a checkpoint saved.
///
/// The tensors on the device must be those of step `start`. The same program, data, configuration and device give the
/// same checkpoints, byte for byte, however often the run is stopped and resumed.
///
/// # Errors
/// When a split is shorter than a window, the device fails, the folder cannot be written, or training diverges. The
/// checkpoints written before are intact.
pub fn train(
    executable: &mut Executable<'_>,
    data: &Dataset,
    run: &RunFolder,
    config: &TrainConfig,
    start: u64,
    stop: &AtomicBool,
    reporter: &mut dyn Reporter,
) -> Result<Summary, TrainError> {
    let trained = train_from(executable, data, run, config, start, stop, reporter);
    if let Err(TrainError::Diverged { step, what }) = &trained {
        // Whoever looks at the run later must not take it for one that was stopped.
        run.append_metric(&Metric::Diverged(Divergence { step: *step, what: what.clone() }))?;
        run.sync_metrics()?;
    }
    trained
}

fn train_from(
    executable: &mut Executable<'_>,
    data: &Dataset,
    run: &RunFolder,
    config: &TrainConfig,
    start: u64,
    stop: &AtomicBool,
    reporter: &mut dyn Reporter,
) -> Result<Summary, TrainError> {
    let context = executable.context();
    let rows = executable.rows(Function::TrainStep)? * config.batches;
    config.check_data(data, context)?;
    let identity = identity(executable, data, run, config);
    let stopping = || stop.load(Ordering::Relaxed);

    let before = run.rewind_metrics(start)?;
    reporter.started(start, config.steps);
    let mut held_out = HeldOut::of(&before, start);
    let mut evaluation = None;
    // The checkpoint that is there for nothing but being the best; that of the start is there for going on.
    let alone = |step: &u64| config.keep_best && *step < start && !due(config.checkpoint_every, *step);
    let mut only_best = held_out.best.map(|best| best.step).filter(alone);
    // A run that was stopped in the middle of an evaluation makes up for it.
    let evaluated = is_evaluated(&before, start);
    if start > 0 && evaluation_due(config, start) && !evaluated {
        evaluation = evaluate(executable, data, run, config, start, stop, reporter)?;
        // Its checkpoint is the one that the run goes on from.
        if evaluation.as_ref().is_some_and(|made| held_out.add(made)) && config.keep_best {
            remove_former(run, &mut only_best)?;
        }
    }

    let mut watch = StepWatch::start();
    let mut saved = run.latest_checkpoint()?.filter(|(step, _)| *step == start);
    let mut step = start;
    while step < config.steps && !held_out.is_exhausted(config.patience) && !stopping() {
        train_step(executable, data, config, step)?;
        step += 1;
        watch.stepped();
        reporter.stepped(step);
        if step == start + 1 {
            // It is made when its loss is there.
            train_loss(executable)?;
            watch.first_is_made();
        }

        let last = step == config.steps;
        let (log, save) = (last || due(config.log_every, step), last || due(config.checkpoint_every, step));
        let evaluation_is_due = evaluation_due(config, step);
        if log || save || evaluation_is_due {
            let loss = finite(step, "the training loss", train_loss(executable)?)?;
            watch.pause();
            if log {
                let metric = train_metric(executable, config, step, loss, watch.report_ms(), rows * context)?;
                run.append_metric(&Metric::Train(metric.clone()))?;
                reporter.logged(&metric);
            }
            let mut is_best = false;
            if evaluation_is_due
                && !stopping()
                && let Some(made) = evaluate(executable, data, run, config, step, stop, reporter)?
            {
                is_best = held_out.add(&made) && config.keep_best;
                evaluation = Some(made);
            }
            if save || is_best {
                saved = Some((step, save_checkpoint(executable, run, &identity, step, reporter)?));
                // The former best goes first, so that it takes the place of none that is kept.
                if is_best {
                    remove_former(run, &mut only_best)?;
                    only_best = (!save).then_some(step);
                }
                prune(run, config, held_out.best)?;
            }
            watch.resume();
        }
    }
    let checkpoint = match saved {
        Some((saved, path)) if saved == step => path,
        _ => {
            let path = save_checkpoint(executable, run, &identity, step, reporter)?;
            prune(run, config, held_out.best)?;
            path
        }
    };

    let last_is_there = !evaluation_due(config, step)
        || evaluated && step == start
        || evaluation.as_ref().is_some_and(|e| e.step == step);
    let outcome = if step >= config.steps && last_is_there {
        Outcome::Finished
    } else if held_out.is_exhausted(config.patience) {
        Outcome::StoppedEarly
    } else {
        Outcome::Interrupted
    };
    let step_ms = watch.median_ms();
    let tokens_per_s = step_ms.map(|ms| (rows * context) as f64 / ms * 1e3);
    let summary = Summary { outcome, step, checkpoint, evaluation, held_out, step_ms, tokens_per_s };
    reporter.finished(&summary);
    Ok(summary)
}

/// Makes the optimiser step after `step` steps, with the batches, the noise and the learning rate that belong to it. It may
/// return before the device is done.
///
/// # Errors
/// When the text is shorter than a window or the device fails.
pub fn train_step(
    executable: &mut Executable<'_>,
    data: &Dataset,
    config: &TrainConfig,
    step: u64,
) -> Result<(), TrainError> {
    let (context, rows) = (executable.context(), executable.rows(Function::TrainStep)?);
    let text = data.windows(Split::Train, context)?;
    let positions = Purpose::TrainingWindows.stream(config.seed, step);
    for batch in 0..config.batches {
        // The windows of all are those that one large batch would have.
        let windows = Windows::random(text, context, rows, positions, batch * rows);
        let rng = match batch {
            0 => generator(config.seed, step),
            _ => generator(config.seed, Purpose::LaterBatches.stream(config.seed, step).bits64(batch as u32)),
        };
        if batch + 1 < config.batches {
            executable.run(Function::Accumulate, &windows, Settings { rng, ..Settings::default() })?;
        } else {
            let hyper = config.optimizer.hyper(config.learning_rate(step), step);
            executable.run(Function::TrainStep, &windows, Settings { rng, hyper })?;
        }
    }
    Ok(())
}

/// The loss of the last [`train_step`], waiting for it.
///
/// # Errors
/// When the device fails.
pub fn train_loss(executable: &mut Executable<'_>) -> Result<f64, TrainError> {
    Ok(executable.scalar(Function::TrainStep, &Output::Loss)?)
}

fn due(every: u64, step: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

/// How often something is due after `step` of `steps` steps that is due every so many, and after the last.
fn due_after(every: u64, step: u64, steps: u64) -> u64 {
    if step >= steps {
        return 0;
    }
    let counted = |step: u64| step.checked_div(every).unwrap_or(0);
    let last = u64::from(!due(every, steps));
    counted(steps) - counted(step) + last
}

fn is_evaluated(metrics: &[Metric], step: u64) -> bool {
    metrics.iter().any(|metric| matches!(metric, Metric::Evaluation(e) if e.step == step))
}

/// How a run with a checkpoint of that step has come out: [`Outcome::Interrupted`] if something is left to do, be it the
/// evaluation after the last step, which a stop may have cut short.
///
/// # Errors
/// When the metrics of the run cannot be read.
pub fn outcome(run: &RunFolder, config: &TrainConfig, step: u64) -> Result<Outcome, TrainError> {
    let metrics = read_metrics(run.root())?;
    let is_missing = step == config.steps && evaluation_due(config, step) && !is_evaluated(&metrics, step);
    Ok(if step >= config.steps && !is_missing {
        Outcome::Finished
    } else if HeldOut::of(&metrics, step).is_exhausted(config.patience) {
        Outcome::StoppedEarly
    } else {
        Outcome::Interrupted
    })
}

fn evaluation_due(config: &TrainConfig, step: u64) -> bool {
    config.evaluates() && (due(config.evaluate_every, step) || step == config.steps)
}

fn finite(step: u64, what: &str, value: f64) -> Result<f64, TrainError> {
    if value.is_finite() { Ok(value) } else { Err(TrainError::Diverged { step, what: what.to_string() }) }
}

/// Reads what the last train step left besides its loss.
fn train_metric(
    executable: &mut Executable<'_>,
    config: &TrainConfig,
    step: u64,
    loss: f64,
    step_ms: f64,
    tokens: usize,
) -> Result<TrainMetric, TrainError> {
    let outputs = executable.outputs(Function::TrainStep)?;
    let mut optional = |output: Output| -> Result<Option<f64>, TrainError> {
        if !outputs.contains(&output) {
            return Ok(None);
        }
        let value = executable.scalar(Function::TrainStep, &output)?;
        Ok(Some(finite(step, &output.to_string(), value)?))
    };
    let objective = optional(Output::Objective)?;
    let grad_norm = optional(Output::GradNorm)?;
    Ok(TrainMetric {
        step,
        loss_nats: loss,
        objective,
        grad_norm,
        lr: config.learning_rate(step - 1),
        step_ms,
        tokens_per_s: tokens as f64 / step_ms * 1e3,
    })
}

/// Evaluates both splits and writes the metric; `None` if the run was asked to stop meanwhile.
fn evaluate(
    executable: &mut Executable<'_>,
    data: &Dataset,
    run: &RunFolder,
    config: &TrainConfig,
    step: u64,
    stop: &AtomicBool,
    reporter: &mut dyn Reporter,
) -> Result<Option<Evaluation>, TrainError> {
    let settings = Estimate { seed: config.seed, step, batches: config.evaluate_batches };
    let evaluation = estimate(executable, data, settings, &mut |done, batches| {
        reporter.evaluating(done, batches);
        done == batches || !stop.load(Ordering::Relaxed)
    })?;
    if let Some(evaluation) = &evaluation {
        finite(step, "the loss on the training split", evaluation.train_loss_nats)?;
        if let Some(loss) = evaluation.validation_loss_nats {
            finite(step, "the loss on the validation split", loss)?;
        }
        run.append_metric(&Metric::Evaluation(evaluation.clone()))?;
        reporter.evaluated(evaluation);
    }
    Ok(evaluation)
}

/// Removes a checkpoint that is there for being the best only, since another one is the best now.
fn remove_former(run: &RunFolder, only_best: &mut Option<u64>) -> Result<(), CheckpointError> {
    only_best.take().map_or(Ok(()), |former| run.remove_checkpoint(former))
}

/// Removes what is too old, but never the checkpoint of the best evaluation where it is kept.
fn prune(run: &RunFolder, config: &TrainConfig, best: Option<Best>) -> Result<(), CheckpointError> {
    let best = best.filter(|_| config.keep_best).map(|best| best.step);
    config.keep.map_or(Ok(()), |keep| run.prune_checkpoints(keep, best))
}

/// Saves a step.
fn save_checkpoint(
    executable: &mut Executable<'_>,
    run: &RunFolder,
    identity: &Identity,
    step: u64,
    reporter: &mut dyn Reporter,
) -> Result<PathBuf, TrainError> {
    // Metrics first: a checkpoint never lacks the lines that led to it.
    run.sync_metrics()?;
    let (program, mut unread) = (executable.program(), None);
    let saved = run.save_checkpoint(step, identity, &program.states, &mut |state| {
        executable.read_state(&state.name).map(Some).map_err(|error| {
            let shown = error.to_string();
            unread = Some(error);
            shown
        })
    });
    let path = match (saved, unread) {
        (_, Some(error)) => return Err(error.into()),
        (Err(CheckpointError::NotFinite { name }), _) => {
            return Err(TrainError::Diverged { step, what: format!("`{name}`") });
        }
        (saved, None) => saved?,
    };
    reporter.saved(step, &path);
    Ok(path)
}

/// Times steps. The device may lag behind the loop, so the watch is stopped only after a result of the last step was
/// read.
struct StepWatch {
    /// Seconds that the first step took. Kernels are compiled for it, so it counts only where it is all that there is.
    first: f64,
    since: Instant,
    seconds: f64,
    steps: u32,
    reports_ms: Vec<f64>,
}

impl StepWatch {
    fn start() -> Self {
        Self { first: 0.0, since: Instant::now(), seconds: 0.0, steps: 0, reports_ms: Vec::new() }
    }

    fn stepped(&mut self) {
        self.steps += 1;
    }

    fn first_is_made(&mut self) {
        (self.first, self.steps) = (self.since.elapsed().as_secs_f64(), 0);
        self.resume();
    }

    fn pause(&mut self) {
        self.seconds += self.since.elapsed().as_secs_f64();
    }

    fn resume(&mut self) {
        self.since = Instant::now();
    }

    /// Milliseconds a step between the last report and the pause.
    fn report_ms(&mut self) -> f64 {
        if self.steps == 0 {
            (self.seconds, self.steps) = (self.first, 1);
        }
        // A clock that stands still must not make the speed infinite.
        let ms = (self.seconds * 1e3 / f64::from(self.steps)).max(1e-6);
        self.reports_ms.push(ms);
        (self.seconds, self.steps) = (0.0, 0);
        ms
    }

    /// The middle of the reports, of two the faster: the other one may be of the step that kernels were compiled for.
    fn median_ms(&self) -> Option<f64> {
        let mut sorted = self.reports_ms.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len().saturating_sub(1) / 2).copied()
    }
}

#[cfg(test)]
mod tests;

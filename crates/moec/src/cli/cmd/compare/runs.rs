//! The runs of a comparison: ordinary runs, each trained to its end once and then known by its result.

use super::statistics::median;
use super::variants::Variant;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::numbers::TrainingTime;
use crate::cli::progress::Progress;
use crate::cli::signals::Signals;
use crate::cli::units::milliseconds;
use crate::pipeline::Compiled;
use crate::{Device, Error, Request, Session, Spec, train_config};
use moec_model::Registry;
use moec_plan::Backend;
use moec_runtime::{
    Corpus, Dataset, Evaluation, LayerBalance, Metric, Outcome, RunFolder, Split, TrainConfig, TrainError,
};
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Version of [`RunResult`].
const RESULT_SCHEMA: &str = "moec.compare.run/1";

/// Batches of an evaluation on the way, at most: a point of a curve must not cost what the training does.
const EVALUATED: usize = 10;

/// Where a run keeps its [`RunResult`]: that of the whole held-out text apart from that of some batches, so that a quick look
/// does not cost the long one.
fn result_file(eval_batches: Option<u64>) -> String {
    eval_batches.map_or("result.json".to_string(), |n| format!("result-{n}.json"))
}

/// What a finished run reached; kept in its folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::cli::cmd) struct RunResult {
    schema: String,
    pub(in crate::cli::cmd) seed: u64,
    /// Optimiser steps made.
    pub(in crate::cli::cmd) step: u64,
    data_sha256: String,
    /// Batches of the evaluation that were asked for; `None` for the whole held-out text.
    eval_batches: Option<u64>,
    pub(in crate::cli::cmd) windows: usize,
    pub(in crate::cli::cmd) characters: usize,
    /// Validation loss; `None` if training diverged.
    pub(in crate::cli::cmd) loss_nats: Option<f64>,
    /// Median time of a step, without evaluation and checkpoints.
    pub(in crate::cli::cmd) step_ms: Option<f64>,
    /// Training time without evaluations and checkpoints; earlier versions did not keep it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(in crate::cli::cmd) seconds: Option<f64>,
    /// Trained numbers that a token made use of in the mean, where that varies.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(in crate::cli::cmd) active_parameters: Option<f64>,
    pub(in crate::cli::cmd) layers: Vec<LayerBalance>,
}

impl RunResult {
    /// The result of a run with an evaluation of so many batches; `None` for one that no comparison has finished.
    fn read(root: &Path, eval_batches: Option<u64>) -> Option<Self> {
        // Once they all had one name.
        let found = [result_file(eval_batches), result_file(None)]
            .into_iter()
            .find_map(|name| Self::read_file(&root.join(name)));
        found.filter(|result| result.eval_batches == eval_batches)
    }

    fn read_file(path: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        serde_json::from_str(&text).ok().filter(|result: &Self| result.schema == RESULT_SCHEMA)
    }

    /// The result of a run with the longest evaluation.
    fn best_known(root: &Path) -> Option<Self> {
        let names = std::fs::read_dir(root).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let results = names.filter(|name| name.starts_with("result") && name.ends_with(".json"));
        results.filter_map(|name| Self::read_file(&root.join(name))).max_by_key(|result| result.windows)
    }

    pub(in crate::cli::cmd) fn summary(&self) -> String {
        match (self.loss_nats, self.step_ms) {
            (Some(loss), Some(ms)) => format!("val {loss:.4}, {} ms per step", milliseconds(ms, 1)),
            (Some(loss), None) => format!("val {loss:.4}"),
            (None, _) => format!("diverged at step {}", self.step),
        }
    }
}

/// The evaluation at the end of a run of a comparison, which has none in its metrics. It is of the held-out text alone: the
/// loss on the other part is not a number.
pub(in crate::cli) fn evaluation(root: &Path) -> Option<Evaluation> {
    let RunResult { step, loss_nats, active_parameters, layers, .. } = RunResult::best_known(root)?;
    let (train_loss_nats, validation_loss_nats) = (f64::NAN, Some(loss_nats?));
    Some(Evaluation { step, train_loss_nats, validation_loss_nats, active_parameters, layers })
}

/// What all runs have in common.
pub(in crate::cli::cmd) struct Bench<'a> {
    /// The folder that the runs are in.
    pub(in crate::cli::cmd) out: &'a Path,
    pub(in crate::cli::cmd) device: Device,
    /// Batches of the evaluation at the end; `None` for the whole held-out text.
    pub(in crate::cli::cmd) eval_batches: Option<u64>,
    /// Evaluations on the way.
    pub(in crate::cli::cmd) points: u64,
    pub(in crate::cli::cmd) registry: &'a Registry,
    pub(in crate::cli::cmd) console: &'a Console,
    pub(in crate::cli::cmd) corpus: &'a Corpus,
    pub(in crate::cli::cmd) dataset: &'a Dataset,
}

impl Bench<'_> {
    /// The folder of the runs of a variant.
    pub(in crate::cli::cmd) fn folder(&self, variant: &Variant) -> PathBuf {
        self.out.join(&variant.folder)
    }

    pub(in crate::cli::cmd) fn root(&self, variant: &Variant, seed: u64) -> PathBuf {
        self.folder(variant).join(format!("seed-{seed}"))
    }

    fn request(&self, variant: &Variant, seed: u64) -> Request {
        let mut set = variant.set.clone();
        set.push(format!("train.steps={}", variant.spec.checked.recipe.steps));
        set.push(format!("train.seed={seed}"));
        Request { set, ..variant.spec.request(self.dataset) }
    }

    /// The result of a run that is finished; `None` if there is something left to do.
    ///
    /// # Errors
    /// When what is in its folder is the run of something else.
    pub(in crate::cli::cmd) fn finished(&self, variant: &Variant, seed: u64) -> Result<Option<RunResult>, Failure> {
        let root = self.root(variant, seed);
        if !root.join("spec.moe").exists() {
            return Ok(None);
        }
        let another = |what| another(&root, what);
        if moec_runtime::read_spec(&root)? != variant.spec.source.text() {
            return Err(another("another spec"));
        }
        if !self.request(variant, seed).asks_the_same(&Request::read(&root)?) {
            return Err(another("another budget, text or overrides"));
        }
        // A result that cannot be read is made again.
        let Some(result) = RunResult::read(&root, self.eval_batches) else { return Ok(None) };
        if result.data_sha256 != self.corpus.sha256() {
            return Err(another("another text of that name"));
        }
        Ok(Some(result))
    }

    /// Trains a run to its end, from its newest checkpoint if there is one, and evaluates it; `None` if a signal
    /// stopped it, and then it is saved.
    ///
    /// # Errors
    /// When the device or the folder fails.
    pub(in crate::cli::cmd) fn train(
        &self,
        variant: &Variant,
        compiled: &Compiled,
        seed: u64,
        backend: &dyn Backend,
        signals: &Signals,
        title: &str,
    ) -> Result<Option<RunResult>, Failure> {
        let root = self.root(variant, seed);
        let request = self.request(variant, seed);
        let spec = Spec::check(variant.spec.source.clone(), self.registry, request.model.as_deref(), &request.set)?;
        let recipe = &spec.checked.recipe;
        let part = |parts: u64| recipe.steps.div_ceil(parts);
        let config = TrainConfig {
            // Twenty reports are enough for a median; one checkpoint for going on.
            log_every: match recipe.log_every {
                0 => part(20),
                every => every.min(part(20)),
            },
            // Each point costs every variant the same, and none of them ends a training before its budget does.
            evaluate_every: if self.points == 0 { 0 } else { part(self.points) },
            evaluate_batches: train_config(recipe).evaluate_batches.clamp(1, EVALUATED),
            patience: None,
            keep: Some(1),
            keep_best: false,
            ..train_config(recipe)
        };
        let folder = if root.join("spec.moe").exists() {
            RunFolder::open(&root)?
        } else {
            spec.create_run(&root, self.dataset, compiled)?
        };
        let mut session = Session::on(backend, &spec, compiled)?;
        let moec_runtime::Resumption { step: start, passed_over } = session.begin(self.dataset, &folder, &config)?;
        self.console.passed_over(&passed_over, start);
        if start > config.steps {
            return Err(another(&root, "more steps"));
        }
        if start < config.steps {
            let mut progress = Progress::of_several(*self.console, title.to_string(), &config);
            let trained = session.continue_from(start, self.dataset, &folder, &config, &signals.stop, &mut progress);
            match trained {
                Ok(summary) if summary.outcome == Outcome::Interrupted => return Ok(None),
                Ok(_) => {}
                Err(Error::Train(TrainError::Diverged { step, .. })) => {
                    let result = self.result(&folder, seed, step, None)?;
                    return Ok(Some(result));
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.console.note(format!("{title}: evaluating"));
        let most = self.eval_batches.map(|n| usize::try_from(n).unwrap_or(usize::MAX).saturating_mul(recipe.batch));
        let loss = moec_runtime::evaluate_split(
            &mut session.executable()?,
            self.dataset,
            Split::Validation,
            config.seed,
            most,
            &mut |_, _| if signals.stopping() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) },
        )?;
        let Some(loss) = loss else { return Ok(None) };
        self.result(&folder, seed, config.steps, Some(loss)).map(Some)
    }

    /// Writes what a run reached into its folder.
    fn result(
        &self,
        folder: &RunFolder,
        seed: u64,
        step: u64,
        loss: Option<moec_runtime::SplitLoss>,
    ) -> Result<RunResult, Failure> {
        let metrics = moec_runtime::read_metrics(folder.root())?;
        let mut time = TrainingTime::default();
        let seconds = metrics.iter().map(|metric| time.at(metric)).last();
        let times = metrics.iter().filter_map(|m| match m {
            Metric::Train(m) => Some(m.step_ms),
            _ => None,
        });
        let result = RunResult {
            schema: RESULT_SCHEMA.to_string(),
            seed,
            step,
            data_sha256: self.corpus.sha256().to_string(),
            eval_batches: self.eval_batches,
            windows: loss.as_ref().map_or(0, |l| l.windows),
            characters: loss.as_ref().map_or(0, |l| l.characters),
            loss_nats: loss.as_ref().map(|l| l.loss_nats).filter(|l| l.is_finite()),
            step_ms: median(times.collect()),
            seconds,
            active_parameters: loss.as_ref().and_then(|l| l.active_parameters),
            layers: loss.map(|l| l.layers).unwrap_or_default(),
        };
        folder.write_report(&result_file(result.eval_batches), &json_text(&result)?)?;
        Ok(result)
    }
}

/// A run that this comparison cannot go on with.
fn another(root: &Path, what: &str) -> Failure {
    Failure::new(Exit::Usage, format!("{} was begun with {what}", root.display()))
        .help("compare into another folder with --out DIR, or remove that run")
}

/// A value as a JSON file.
pub(in crate::cli::cmd) fn json_text(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value);
    text.map(|t| t + "\n").map_err(|e| Failure::new(Exit::Failure, format!("cannot write the result: {e}")))
}

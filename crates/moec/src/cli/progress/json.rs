//! A training as JSON lines on standard output: docs/json.md says what they hold.

use crate::cli::console::Console;
use crate::cli::exit::Failure;
use crate::cli::progress::clock::{Left, Spent};
use moec_runtime::{Evaluation, Outcome, Summary, TrainMetric};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Version of the lines.
const SCHEMA: &str = "moec.train/1";

/// What is said once, before the first step.
#[derive(Debug, Serialize)]
pub(crate) struct Begun<'a> {
    pub(crate) run: String,
    pub(crate) model: &'a str,
    pub(crate) device: &'static str,
    pub(crate) precision: &'static str,
    pub(crate) parameters: usize,
    pub(crate) active_parameters: usize,
    pub(crate) planned_bytes: usize,
    pub(crate) data: &'a str,
    pub(crate) characters: usize,
    pub(crate) training_characters: usize,
    pub(crate) held_out_characters: usize,
    pub(crate) vocabulary: usize,
    pub(crate) steps: u64,
    pub(crate) batch: usize,
    pub(crate) context: usize,
    pub(crate) seed: u64,
    /// Steps that were made before.
    pub(crate) step: u64,
}

/// How a training ended, if it did not fail.
#[derive(Clone, Debug, Serialize)]
struct Ended {
    outcome: &'static str,
    step: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_s: Option<f64>,
    elapsed_s: f64,
    spent: Seconds,
    #[serde(skip_serializing_if = "Option::is_none")]
    resume: Option<String>,
}

/// Seconds by what they are spent on.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Seconds {
    #[serde(skip_serializing_if = "Option::is_none")]
    compiling_s: Option<f64>,
    steps_s: f64,
    evaluating_s: f64,
    saving_s: f64,
}

impl From<Spent> for Seconds {
    fn from(spent: Spent) -> Self {
        let Spent { compiling, steps, evaluating, saving } = spent;
        Self { compiling_s: Some(compiling), steps_s: steps, evaluating_s: evaluating, saving_s: saving }
    }
}

/// One line.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event<'a> {
    Begun(&'a Begun<'a>),
    Train {
        #[serde(flatten)]
        metric: &'a TrainMetric,
        elapsed_s: f64,
        spent: Seconds,
        #[serde(skip_serializing_if = "Option::is_none")]
        left: Option<Seconds>,
    },
    Evaluation {
        #[serde(flatten)]
        evaluation: &'a Evaluation,
        elapsed_s: f64,
    },
    Checkpoint {
        step: u64,
        path: String,
        elapsed_s: f64,
    },
    Diagnosis {
        text: &'a str,
    },
    Sample {
        text: &'a str,
    },
    Ended(&'a Ended),
    Failed {
        message: String,
        help: Vec<String>,
        exit: i32,
    },
}

#[derive(Serialize)]
struct Line<'a> {
    schema: &'static str,
    #[serde(flatten)]
    event: Event<'a>,
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Finished => "finished",
        Outcome::StoppedEarly => "stopped_early",
        Outcome::Interrupted => "interrupted",
    }
}

/// Writes the lines.
pub(crate) struct JsonLines {
    console: Console,
    /// Why nothing is written any more.
    broken: Option<Failure>,
    /// Set when nobody reads.
    stop: Option<Arc<AtomicBool>>,
    /// What the end will say.
    ended: Option<Ended>,
}

impl JsonLines {
    pub(crate) fn new(console: Console) -> Self {
        Self { console, broken: None, stop: None, ended: None }
    }

    /// Sets this when the lines cannot be written any more: nobody would know of a training that goes on.
    pub(crate) fn stops(&mut self, stop: Arc<AtomicBool>) {
        self.stop = Some(stop);
    }

    /// Why lines could not be written, once.
    pub(crate) fn broken(&mut self) -> Option<Failure> {
        self.broken.take()
    }

    fn write(&mut self, event: Event<'_>) {
        if self.broken.is_some() {
            return;
        }
        let line = serde_json::to_string(&Line { schema: SCHEMA, event });
        let line = line.map_err(|e| Failure::new(crate::cli::exit::Exit::Fault, format!("cannot write an event: {e}")));
        if let Err(failure) = line.and_then(|line| self.console.out(line)) {
            self.broken = Some(failure);
            if let Some(stop) = &self.stop {
                stop.store(true, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn begun(&mut self, begun: &Begun<'_>) {
        self.write(Event::Begun(begun));
    }

    pub(super) fn trained(&mut self, metric: &TrainMetric, elapsed: Duration, left: Option<Left>, spent: Spent) {
        let left = left.map(|left| Seconds {
            compiling_s: None,
            steps_s: left.steps,
            evaluating_s: left.evaluating,
            saving_s: left.saving,
        });
        self.write(Event::Train { metric, elapsed_s: elapsed.as_secs_f64(), spent: spent.into(), left });
    }

    pub(super) fn evaluated(&mut self, evaluation: &Evaluation, elapsed: Duration) {
        self.write(Event::Evaluation { evaluation, elapsed_s: elapsed.as_secs_f64() });
    }

    pub(super) fn saved(&mut self, step: u64, path: &Path, elapsed: Duration) {
        self.write(Event::Checkpoint { step, path: path.display().to_string(), elapsed_s: elapsed.as_secs_f64() });
    }

    /// Notes how it ended; the line is the last one.
    pub(super) fn finished(&mut self, summary: &Summary, elapsed: Duration, spent: Spent) {
        self.ended = Some(Ended {
            outcome: word(summary.outcome),
            step: summary.step,
            checkpoint: Some(summary.checkpoint.display().to_string()),
            step_ms: summary.step_ms,
            tokens_per_s: summary.tokens_per_s,
            elapsed_s: elapsed.as_secs_f64(),
            spent: spent.into(),
            resume: None,
        });
    }

    pub(crate) fn diagnosis(&mut self, text: &str) {
        self.write(Event::Diagnosis { text });
    }

    pub(crate) fn sample(&mut self, text: &str) {
        self.write(Event::Sample { text });
    }

    /// The last line of a training that did not fail, with the command that continues it if it was stopped.
    pub(crate) fn ended(&mut self, resume: Option<String>) {
        if let Some(ended) = self.ended.take() {
            self.write(Event::Ended(&Ended { resume, ..ended }));
        }
    }

    /// The last line of a training that had nothing to do.
    pub(crate) fn complete(&mut self, outcome: Outcome, step: u64) {
        self.write(Event::Ended(&Ended {
            outcome: word(outcome),
            step,
            checkpoint: None,
            step_ms: None,
            tokens_per_s: None,
            elapsed_s: 0.0,
            spent: Spent::default().into(),
            resume: None,
        }));
    }

    /// The last line of one that failed.
    pub(crate) fn failed(&mut self, failure: &Failure) {
        let help = match failure {
            Failure::Message { help, .. } => help.clone(),
            Failure::Source { .. } => Vec::new(),
        };
        self.write(Event::Failed { message: failure.to_string(), help, exit: failure.exit() as i32 });
    }
}

//! What the live view knows: the events of a training, one after the other, make it.

use crate::cli::live::keys::Key;
use crate::cli::progress::clock::Clock;
use moec_runtime::{Evaluation, Metric, TrainConfig, TrainMetric};
use std::time::Duration;

/// What happens while a model is trained.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// It begins, or goes on, after this step.
    Started { step: u64 },
    /// Steps up to this one were handed to the device.
    Stepped { step: u64 },
    /// The loss was read.
    Logged(TrainMetric),
    /// An evaluation has done some of its batches.
    Evaluating { done: usize, batches: usize },
    /// An evaluation is done.
    Evaluated(Evaluation),
    /// A checkpoint was written.
    Saved,
    /// It was asked to stop.
    Stopping,
    /// A key was pressed.
    Pressed(Key),
}

/// What is known of a training before it begins.
#[derive(Clone, Debug)]
pub(crate) struct About {
    /// Name of the model.
    pub(crate) model: String,
    /// Where it runs.
    pub(crate) device: &'static str,
    /// The run's folder.
    pub(crate) run: String,
    pub(crate) config: TrainConfig,
    /// Parts of the text that are evaluated.
    pub(crate) splits: u64,
    /// Tokens of a batch.
    pub(crate) tokens: usize,
    /// What the run has reported before.
    pub(crate) before: Vec<Metric>,
}

/// A number over steps, in at most [`Curve::MOST`] points: where there are more, neighbours become their mean.
#[derive(Clone, Debug, Default)]
pub(crate) struct Curve {
    points: Vec<(f64, f64)>,
    /// Values of each point.
    together: u32,
    /// Sums of the values of the point that is not full yet, and their number.
    open: (f64, f64, u32),
}

impl Curve {
    /// Twice as many as a wide terminal has dots.
    const MOST: usize = 1024;

    pub(crate) fn push(&mut self, step: u64, value: f64) {
        self.together = self.together.max(1);
        let (steps, values, count) = self.open;
        self.open = (steps + step as f64, values + value, count + 1);
        if self.open.2 < self.together {
            return;
        }
        let (steps, values, count) = std::mem::take(&mut self.open);
        self.points.push((steps / f64::from(count), values / f64::from(count)));
        if self.points.len() >= Self::MOST {
            let mean = |pair: &[(f64, f64)]| {
                let n = pair.len() as f64;
                (pair.iter().map(|p| p.0).sum::<f64>() / n, pair.iter().map(|p| p.1).sum::<f64>() / n)
            };
            self.points = self.points.chunks(2).map(mean).collect();
            self.together *= 2;
        }
    }

    /// Steps and values.
    pub(crate) fn points(&self) -> &[(f64, f64)] {
        &self.points
    }
}

/// How an evaluation found a layer, as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LayerLoad {
    pub(crate) path: String,
    /// Rows of every expert.
    pub(crate) load: Vec<f64>,
    /// Rows of those that compute nothing.
    pub(crate) zero_computation: Vec<f64>,
    /// Experts that worked on a token in the mean: those for which there was room.
    pub(crate) experts_per_token: f64,
    pub(crate) max_over_mean: f64,
    pub(crate) idle: usize,
    pub(crate) entropy_nats: f64,
    pub(crate) dropped_share: f64,
}

/// Everything that is shown.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) about: About,
    pub(crate) clock: Clock,
    /// The time of the last event, or now.
    pub(crate) elapsed: Duration,
    /// Loss of the steps that were read.
    pub(crate) loss: Curve,
    /// Of evaluations, on what is trained on and on what is held out.
    pub(crate) train: Curve,
    pub(crate) validation: Curve,
    pub(crate) last: Option<TrainMetric>,
    pub(crate) evaluation: Option<Evaluation>,
    pub(crate) layers: Vec<LayerLoad>,
    /// Batches done, and batches, of the evaluation in progress.
    pub(crate) evaluating: Option<(usize, usize)>,
    /// Whether a step was made since it began.
    pub(crate) is_compiled: bool,
    pub(crate) stopping: bool,
    /// The first layer that is shown.
    pub(crate) top: usize,
    /// What was said last.
    pub(crate) said: Vec<String>,
}

impl View {
    pub(crate) fn new(about: About) -> Self {
        let mut view = Self {
            clock: Clock::new(&about.config, about.splits),
            elapsed: Duration::ZERO,
            loss: Curve::default(),
            train: Curve::default(),
            validation: Curve::default(),
            last: None,
            evaluation: None,
            layers: Vec::new(),
            evaluating: None,
            is_compiled: false,
            stopping: false,
            top: 0,
            said: Vec::new(),
            about,
        };
        for metric in std::mem::take(&mut view.about.before) {
            match metric {
                Metric::Train(metric) => view.loss.push(metric.step, metric.loss_nats),
                Metric::Evaluation(evaluation) => view.evaluated(evaluation),
                _ => {}
            }
        }
        view
    }

    /// Follows an event, `at` so long after training began.
    pub(crate) fn apply(&mut self, event: Event, at: Duration) {
        self.elapsed = at;
        match event {
            Event::Started { step } => self.clock.started(step, at),
            Event::Stepped { step } => {
                self.is_compiled = true;
                self.clock.stepped(step, at);
            }
            Event::Logged(metric) => {
                self.clock.waited(at);
                self.loss.push(metric.step, metric.loss_nats);
                self.last = Some(metric);
            }
            Event::Evaluating { done, batches } => {
                self.clock.evaluating(done as u64, batches as u64, at);
                self.evaluating = Some((done, batches));
            }
            Event::Evaluated(evaluation) => {
                self.clock.evaluation_ended(at);
                self.evaluating = None;
                self.evaluated(evaluation);
            }
            Event::Saved => self.clock.saved(at),
            Event::Stopping => self.stopping = true,
            Event::Pressed(Key::Up) => self.top = self.top.saturating_sub(1),
            Event::Pressed(Key::Down) => self.top = (self.top + 1).min(self.layers.len().saturating_sub(1)),
            Event::Pressed(Key::Stop | Key::Interrupt) => {}
        }
    }

    fn evaluated(&mut self, evaluation: Evaluation) {
        self.train.push(evaluation.step, evaluation.train_loss_nats);
        if let Some(loss) = evaluation.validation_loss_nats {
            self.validation.push(evaluation.step, loss);
        }
        let tokens = (self.about.config.evaluate_batches as f64 * self.about.tokens as f64).max(1.0);
        let layers = evaluation.layers.iter().map(|layer| LayerLoad {
            path: layer.path.clone(),
            load: layer.load_rows.clone(),
            zero_computation: layer.zero_computation_rows.clone(),
            // Where it is not measured it is the same of every token.
            experts_per_token: layer.experts_per_token.unwrap_or(layer.load_rows.iter().sum::<f64>() / tokens),
            max_over_mean: layer.load_max_over_mean,
            idle: layer.experts_without_tokens,
            entropy_nats: layer.entropy_nats,
            dropped_share: layer.dropped_share,
        });
        self.layers = layers.collect();
        self.evaluation = Some(evaluation);
    }
}

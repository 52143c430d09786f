//! What is told of a training while it goes on: a live view, plain lines, JSON lines, or nothing.

pub(crate) mod clock;
pub(crate) mod json;
mod lines;

use crate::cli::args::ProgressMode;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::live::{About, Event, Live, screen};
use crate::cli::signals::Stop;
use clock::Clock;
use json::JsonLines;
use lines::Lines;
use moec_runtime::{Evaluation, Reporter, Summary, TrainMetric};
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

/// What is not news to the live view comes to it at most so often.
const NEWS: Duration = Duration::from_millis(50);

/// How a training is told, once that is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Telling {
    Live,
    Plain,
    Json,
    Nothing,
}

impl Telling {
    /// What is asked for, which `auto` leaves to where standard error goes.
    ///
    /// # Errors
    /// When a live view is asked for where there is no terminal for it.
    pub(crate) fn of(asked: ProgressMode) -> Result<Self, Failure> {
        let is_terminal = std::io::stderr().is_terminal();
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let is_dumb = variable("TERM").is_some_and(|term| term == "dumb");
        match asked {
            ProgressMode::Live if !is_terminal || is_dumb => {
                let message = "--progress live needs a terminal as standard error";
                Err(Failure::new(Exit::Usage, message).help("--progress plain prints lines; auto takes what there is"))
            }
            ProgressMode::Auto => {
                let lines = !is_terminal || is_dumb || variable("NO_COLOR").is_some() || variable("CI").is_some();
                Ok(if lines || !screen::is_in_foreground() { Self::Plain } else { Self::Live })
            }
            ProgressMode::Live => Ok(Self::Live),
            ProgressMode::Plain => Ok(Self::Plain),
            ProgressMode::Json => Ok(Self::Json),
            ProgressMode::None => Ok(Self::Nothing),
        }
    }
}

/// Tells the user what training does.
pub(crate) struct Progress<'a> {
    begun: Instant,
    clock: Clock,
    to: To<'a>,
}

/// Where it is told.
enum To<'a> {
    /// The live view, with the last step that it does not know yet and when it was told something; and lines for once it is
    /// closed.
    Live {
        live: Live,
        lines: Lines,
        step: Option<(u64, Duration)>,
        told: Duration,
    },
    Lines(Lines),
    Json(&'a mut JsonLines),
    Nothing,
}

impl<'a> Progress<'a> {
    /// Of a training, told in JSON lines if they are given.
    pub(crate) fn new(
        telling: Telling,
        about: About,
        json: Option<&'a mut JsonLines>,
        console: Console,
        stop: Stop,
    ) -> Self {
        let begun = Instant::now();
        let clock = Clock::new(&about.config, about.splits);
        let lines = Lines::new(console, about.config.steps);
        let to = match (telling, json) {
            (_, Some(json)) => To::Json(json),
            (Telling::Nothing, None) => To::Nothing,
            (Telling::Live, None) => match Live::open(about, begun, console.colours_remarks(), stop) {
                Ok(live) => To::Live { live, lines, step: None, told: Duration::ZERO },
                Err(error) => {
                    console.note(format!("there is no live view: {error}"));
                    To::Lines(lines)
                }
            },
            (Telling::Plain | Telling::Json, None) => To::Lines(lines),
        };
        Self { begun, clock, to }
    }

    /// Of one run among several: lines are named, with a bar on a terminal, and the end is left to the caller to tell.
    pub(crate) fn of_several(console: Console, title: String, config: &moec_runtime::TrainConfig) -> Self {
        let to = To::Lines(Lines::of_several(console, title, config.steps));
        Self { begun: Instant::now(), clock: Clock::new(config, 1), to }
    }

    /// Tells the live view, with the last step if it does not know it.
    fn tell(&mut self, event: Event, now: Duration) {
        let To::Live { live, step, told, .. } = &mut self.to else { return };
        if let Some((step, at)) = step.take() {
            live.tell(Event::Stepped { step }, at);
        }
        live.tell(event, now);
        *told = now;
    }

    /// The lines, where there are any.
    fn lines(&mut self) -> Option<&mut Lines> {
        match &mut self.to {
            To::Live { lines, .. } | To::Lines(lines) => Some(lines),
            To::Json(_) | To::Nothing => None,
        }
    }

    /// Whether the live view shows what lines would only repeat.
    fn is_shown(&self) -> bool {
        matches!(&self.to, To::Live { live, .. } if live.is_open())
    }
}

impl Reporter for Progress<'_> {
    fn started(&mut self, step: u64, _: u64) {
        let now = self.begun.elapsed();
        self.clock.started(step, now);
        self.tell(Event::Started { step }, now);
        if let Some(lines) = self.lines() {
            lines.started(step);
        }
    }

    fn stepped(&mut self, step: u64) {
        let now = self.begun.elapsed();
        let is_first = self.clock.stepped(step, now);
        match &mut self.to {
            To::Live { live, step: last, told, .. } => {
                *last = Some((step, now));
                if is_first || now.saturating_sub(*told) >= NEWS {
                    live.tell(Event::Stepped { step }, now);
                    (*last, *told) = (None, now);
                }
            }
            To::Lines(lines) => lines.stepped(step),
            To::Json(_) | To::Nothing => {}
        }
    }

    fn logged(&mut self, metric: &TrainMetric) {
        let now = self.begun.elapsed();
        self.clock.waited(now);
        self.tell(Event::Logged(metric.clone()), now);
        let left = self.clock.left();
        let is_shown = self.is_shown();
        match &mut self.to {
            To::Json(json) => json.trained(metric, now, left, self.clock.spent()),
            To::Live { lines, .. } if !is_shown => lines.logged(metric, left),
            To::Lines(lines) => lines.logged(metric, left),
            To::Live { .. } | To::Nothing => {}
        }
    }

    fn evaluating(&mut self, done: usize, batches: usize) {
        let now = self.begun.elapsed();
        self.clock.evaluating(done as u64, batches as u64, now);
        if let To::Live { told, .. } = &self.to
            && (done == 1 || done == batches || now.saturating_sub(*told) >= NEWS)
        {
            self.tell(Event::Evaluating { done, batches }, now);
        }
        let is_shown = self.is_shown();
        if let Some(lines) = self.lines().filter(|_| !is_shown) {
            lines.evaluating(done, batches);
        }
    }

    fn evaluated(&mut self, evaluation: &Evaluation) {
        let now = self.begun.elapsed();
        self.clock.evaluation_ended(now);
        self.tell(Event::Evaluated(evaluation.clone()), now);
        match &mut self.to {
            To::Json(json) => json.evaluated(evaluation, now),
            _ => {
                if let Some(lines) = self.lines() {
                    lines.evaluated(evaluation);
                }
            }
        }
    }

    fn saved(&mut self, step: u64, path: &Path) {
        let now = self.begun.elapsed();
        self.clock.saved(now);
        self.tell(Event::Saved, now);
        match &mut self.to {
            To::Json(json) => json.saved(step, path, now),
            _ => {
                if let Some(lines) = self.lines() {
                    lines.saved(path);
                }
            }
        }
    }

    fn finished(&mut self, summary: &Summary) {
        if let To::Live { live, .. } = &mut self.to {
            live.close();
        }
        let (elapsed, spent) = (self.begun.elapsed(), self.clock.spent());
        match &mut self.to {
            To::Json(json) => json.finished(summary, elapsed, spent),
            _ => {
                if let Some(lines) = self.lines() {
                    lines.finished(summary, elapsed, spent);
                }
            }
        }
    }
}

//! A training in plain lines, and with a bar where it is one of several on a terminal.

use crate::cli::balance;
use crate::cli::console::Console;
use crate::cli::progress::clock::{Left, Spent};
use crate::cli::units::{duration, grouped, milliseconds};
use indicatif::{ProgressBar, ProgressStyle};
use moec_runtime::{Evaluation, Summary, TrainMetric};
use std::path::Path;
use std::time::{Duration, Instant};

/// An evaluation that takes longer is announced.
const LONG: Duration = Duration::from_secs(2);

/// Writes lines to standard error.
pub(crate) struct Lines {
    console: Console,
    /// Which of several runs; its lines begin with it.
    title: Option<String>,
    bar: Option<ProgressBar>,
    steps: u64,
    /// When the evaluation in progress began, and whether that was said.
    evaluation: Option<(Instant, bool)>,
}

impl Lines {
    /// Of a run with so many steps.
    pub(crate) fn new(console: Console, steps: u64) -> Self {
        Self { console, title: None, bar: None, steps, evaluation: None }
    }

    /// Of one run among several.
    pub(crate) fn of_several(console: Console, title: String, steps: u64) -> Self {
        Self { title: Some(title), ..Self::new(console, steps) }
    }

    fn say(&self, line: String) {
        let line = match &self.title {
            Some(title) => format!("{title}: {line}"),
            None => line,
        };
        match &self.bar {
            Some(bar) => bar.suspend(|| self.console.note_fitted(line)),
            None => self.console.note_fitted(line),
        }
    }

    pub(crate) fn started(&mut self, step: u64) {
        if let Some(title) = &self.title
            && self.console.is_interactive()
        {
            let bar = ProgressBar::new(self.steps).with_position(step);
            // The template is a constant; a terminal without it still has the plain lines.
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}") {
                bar.set_style(style);
            }
            bar.set_message(title.clone());
            self.bar = Some(bar);
        }
        if step > 0 {
            self.say(format!("resumed at step {step}"));
        }
    }

    pub(crate) fn stepped(&mut self, step: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(step);
        }
    }

    pub(crate) fn logged(&mut self, metric: &TrainMetric, left: Option<Left>) {
        let left = match left {
            Some(left) if metric.step < self.steps => {
                let about = if left.is_timed { "" } else { "about " };
                format!("  {about}{} left", duration(left.seconds()))
            }
            _ => String::new(),
        };
        let (loss, ms) = (metric.loss_nats, milliseconds(metric.step_ms, 0));
        if let Some(bar) = &self.bar {
            return bar.set_message(format!("loss {loss:.4}  {ms} ms/step{left}"));
        }
        let width = self.steps.to_string().len();
        self.say(format!(
            "step {:>width$}/{}  loss {loss:.4}  {ms} ms/step  {} tokens/s{left}",
            metric.step,
            self.steps,
            grouped(metric.tokens_per_s as u64)
        ));
    }

    pub(crate) fn evaluating(&mut self, done: usize, batches: usize) {
        let (since, told) = *self.evaluation.get_or_insert((Instant::now(), false));
        match &self.bar {
            Some(bar) => bar.set_message(format!("evaluating {done}/{batches}")),
            // So that it does not look as if the step took so long.
            None if !told && since.elapsed() > LONG && done < batches => {
                self.evaluation = Some((since, true));
                self.say(format!("evaluating: {done} of {batches} batches; this is not part of ms/step"));
            }
            None => {}
        }
    }

    pub(crate) fn evaluated(&mut self, evaluation: &Evaluation) {
        self.evaluation = None;
        self.say(format!(
            "eval {:>width$}  train {:.4}{}{}{}",
            evaluation.step,
            evaluation.train_loss_nats,
            evaluation.validation_loss_nats.map(|loss| format!("  val {loss:.4}")).unwrap_or_default(),
            balance::summary(&evaluation.layers),
            evaluation.active_parameters.map(|n| format!("  active {}", grouped(n.round() as u64))).unwrap_or_default(),
            width = self.steps.to_string().len()
        ));
    }

    pub(crate) fn saved(&mut self, path: &Path) {
        if self.title.is_none() {
            // Not fitted: a path is copied.
            self.console.note(format!("saved {}", path.display()));
        }
    }

    pub(crate) fn finished(&mut self, summary: &Summary, elapsed: Duration, spent: Spent) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if self.title.is_some() {
            return;
        }
        let rate = match (summary.step_ms, summary.tokens_per_s) {
            (Some(ms), Some(tokens)) => {
                format!(" ({} ms per step, {} tokens/s)", milliseconds(ms, 0), grouped(tokens as u64))
            }
            _ => String::new(),
        };
        let parts = [("compiling", spent.compiling), ("evaluating", spent.evaluating)];
        let parts: Vec<String> = (parts.into_iter().filter(|(_, seconds)| *seconds >= 1.0))
            .map(|(what, seconds)| format!("{} {what}", duration(seconds)))
            .collect();
        let parts = if parts.is_empty() { String::new() } else { format!(", of it {}", parts.join(", ")) };
        self.say(format!("step {} after {}{parts}{rate}", summary.step, duration(elapsed.as_secs_f64())));
        if let Some(evaluation) = &summary.evaluation
            && !evaluation.layers.is_empty()
        {
            for line in balance::panel(&evaluation.layers, self.console.columns_of_remarks()) {
                self.console.note(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_evaluation_is_announced_once() {
        let mut lines = Lines::new(Console::new(crate::cli::args::Color::Never), 1000);
        let is_told = |lines: &Lines| lines.evaluation.is_some_and(|(_, told)| told);
        lines.evaluating(1, 100);
        assert!(!is_told(&lines), "it has only begun");
        let Some(earlier) = Instant::now().checked_sub(2 * LONG) else { return };
        lines.evaluation = Some((earlier, false));
        lines.evaluating(100, 100);
        assert!(!is_told(&lines), "it is done");
        lines.evaluating(50, 100);
        assert!(is_told(&lines));
    }
}

//! Progress of training: a bar on a terminal, plain lines otherwise; and the balance panel.

use crate::cli::console::Console;
use crate::cli::units::{duration, grouped, milliseconds};
use indicatif::{ProgressBar, ProgressStyle};
use moec_runtime::{Evaluation, LayerBalance, Reporter, Summary, TrainMetric};
use std::path::Path;
use std::time::{Duration, Instant};

/// An evaluation that takes longer is announced.
const LONG: Duration = Duration::from_secs(2);

/// Tells the user what training does.
pub(crate) struct Progress {
    console: Console,
    /// Which of several runs; its lines begin with it.
    title: Option<String>,
    bar: Option<ProgressBar>,
    steps: u64,
    begun: Instant,
    first: Option<u64>,
    /// When the evaluation in progress began, and whether that was said.
    evaluation: Option<(Instant, bool)>,
}

impl Progress {
    pub(crate) fn new(console: Console) -> Self {
        Self { console, title: None, bar: None, steps: 0, begun: Instant::now(), first: None, evaluation: None }
    }

    /// Of one run among several: lines are named, and the end is left to the caller to tell.
    pub(crate) fn of_several(console: Console, title: String) -> Self {
        Self { title: Some(title), ..Self::new(console) }
    }

    fn say(&self, line: String) {
        let line = match &self.title {
            Some(title) => format!("{title}: {line}"),
            None => line,
        };
        match &self.bar {
            Some(bar) => bar.suspend(|| self.console.note(line)),
            None => self.console.note(line),
        }
    }
}

impl Reporter for Progress {
    fn started(&mut self, step: u64, steps: u64) {
        self.steps = steps;
        self.begun = Instant::now();
        if self.console.is_interactive() {
            let bar = ProgressBar::new(steps).with_position(step);
            // The template is a constant; a terminal without it still has the plain lines.
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {eta} left") {
                bar.set_style(style);
            }
            if let Some(title) = &self.title {
                bar.set_message(title.clone());
            }
            self.bar = Some(bar);
        }
        if step > 0 {
            self.say(format!("resumed at step {step}"));
        }
    }

    fn stepped(&mut self, step: u64) {
        self.first.get_or_insert(step);
        if let Some(bar) = &self.bar {
            bar.set_position(step);
        }
    }

    fn logged(&mut self, metric: &TrainMetric) {
        let width = self.steps.to_string().len();
        let line = format!(
            "step {:>width$}/{}  loss {:.4}  {} ms/step  {} tokens/s",
            metric.step,
            self.steps,
            metric.loss_nats,
            milliseconds(metric.step_ms, 0),
            grouped(metric.tokens_per_s as u64)
        );
        match &self.bar {
            Some(bar) => {
                bar.set_message(format!("loss {:.4}  {} ms/step", metric.loss_nats, milliseconds(metric.step_ms, 0)))
            }
            None => self.say(line),
        }
    }

    fn evaluating(&mut self, done: usize, batches: usize) {
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

    fn evaluated(&mut self, evaluation: &Evaluation) {
        self.evaluation = None;
        self.say(format!(
            "eval {:>width$}  train {:.4}{}{}",
            evaluation.step,
            evaluation.train_loss_nats,
            evaluation.validation_loss_nats.map(|loss| format!("  val {loss:.4}")).unwrap_or_default(),
            balance_summary(&evaluation.layers),
            width = self.steps.to_string().len()
        ));
    }

    fn saved(&mut self, _: u64, path: &Path) {
        if self.title.is_none() {
            self.say(format!("saved {}", path.display()));
        }
    }

    fn finished(&mut self, summary: &Summary) {
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
        let elapsed = duration(self.begun.elapsed().as_secs_f64());
        self.console.note(format!("step {} after {elapsed}{rate}", summary.step));
        if let Some(evaluation) = &summary.evaluation
            && !evaluation.layers.is_empty()
        {
            for line in balance_panel(&evaluation.layers) {
                self.console.note(line);
            }
        }
    }
}

/// The balance of all layers on one line: the worst of each number.
fn balance_summary(layers: &[LayerBalance]) -> String {
    if layers.is_empty() {
        return String::new();
    }
    let worst = |f: fn(&LayerBalance) -> f64| layers.iter().map(f).fold(0.0, f64::max);
    let idle: usize = layers.iter().map(|l| l.experts_without_tokens).sum();
    let dropped = worst(|l| l.dropped_share);
    let dropped = if dropped > 0.0 { format!("  dropped {:.1} %", 100.0 * dropped) } else { String::new() };
    format!(
        "  load max/mean {:.2}  idle experts {idle}  balance {:.2}{dropped}",
        worst(|l| l.load_max_over_mean),
        worst(|l| l.balance)
    )
}

/// One row per mixture layer, with the share of every expert as a bar.
fn balance_panel(layers: &[LayerBalance]) -> Vec<String> {
    let width = layers.iter().map(|l| l.path.len()).max().unwrap_or(0).max(5);
    let experts = layers.iter().map(|l| l.load_rows.len()).max().unwrap_or(0).max(4);
    let mut lines = vec![format!(
        "{:<width$}  {:<experts$}  {:>8}  {:>4}  {:>7}  {:>7}  {:>7}",
        "layer", "load", "max/mean", "idle", "entropy", "dropped", "balance"
    )];
    for l in layers {
        let auxiliary: Vec<String> = l.auxiliary.iter().map(|(name, value)| format!("  {name} {value:.4}")).collect();
        lines.push(format!(
            "{:<width$}  {:<experts$}  {:>8.2}  {:>4}  {:>7.3}  {:>5.1} %  {:>7.3}{}",
            l.path,
            bars(&l.load_rows),
            l.load_max_over_mean,
            l.experts_without_tokens,
            l.entropy_nats,
            100.0 * l.dropped_share,
            l.balance,
            auxiliary.concat()
        ));
    }
    lines
}

/// One block character per expert, its height the load relative to twice the mean.
fn bars(load: &[f64]) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let mean = load.iter().sum::<f64>() / load.len().max(1) as f64;
    load.iter()
        .map(|&x| {
            if x <= 0.0 {
                return '·';
            }
            let height = if mean > 0.0 { x / mean * 4.0 } else { 0.0 };
            BLOCKS[(height as usize).min(BLOCKS.len() - 1)]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_evaluation_is_announced_once() {
        let mut progress = Progress::new(Console::new(crate::cli::args::Color::Never));
        let is_told = |progress: &Progress| progress.evaluation.is_some_and(|(_, told)| told);
        progress.evaluating(1, 100);
        assert!(!is_told(&progress), "it has only begun");
        let Some(earlier) = Instant::now().checked_sub(2 * LONG) else { return };
        progress.evaluation = Some((earlier, false));
        progress.evaluating(100, 100);
        assert!(!is_told(&progress), "it is done");
        progress.evaluating(50, 100);
        assert!(is_told(&progress));
    }

    #[test]
    fn bars_show_load_relative_to_the_mean() {
        assert_eq!(bars(&[1.0, 1.0, 1.0]), "▅▅▅");
        assert_eq!(bars(&[0.0, 4.0, 0.0, 0.0]), "·█··");
        assert_eq!(bars(&[]), "");
        assert_eq!(bars(&[0.0, 0.0]), "··");
    }
}

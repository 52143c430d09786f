//! What a comparison has found: for programs, as a table for a terminal, and as Markdown.

use super::Contender;
use super::budget::Budget;
use super::runs::{Bench, RunResult};
use super::statistics::{CONFIDENCE, Difference, deviation, differences, mean, median};
use super::variants::Infeasible;
use crate::cli::balance::experts_per_token;
use crate::cli::table::{Table, filled};
use crate::cli::units::{duration, grouped, milliseconds, scaled};
use moec_ir::Invariant;
use moec_runtime::LayerBalance;
use serde::Serialize;

/// What is written to compare.json.
#[derive(Debug, Serialize)]
pub(super) struct Comparison {
    schema: &'static str,
    device: &'static str,
    data: String,
    pub(super) data_sha256: String,
    budget: Budget,
    /// Of every run; `None` if variants differ.
    steps: Option<u64>,
    /// Sequences of a step; `None` if variants differ.
    batch: Option<usize>,
    context: usize,
    pub(super) seeds: u64,
    pub(super) eval_batches: Option<u64>,
    windows: usize,
    characters: usize,
    /// The variant that the others are held against.
    baseline: String,
    /// Within which variants are as good as equal, if that was given.
    margin_nats: Option<f64>,
    /// Of intervals and claims.
    confidence: f64,
    pub(super) specs: Vec<Row>,
    infeasible: Vec<Infeasible>,
}

/// One spec, over its seeds.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) label: String,
    spec: String,
    /// What it has of its own, as overrides.
    set: Vec<String>,
    /// Optimiser steps of a run.
    pub(super) steps: u64,
    batch: usize,
    /// Operations of the products of a step, as the compiler counts them.
    flop_per_step: f64,
    parameters: usize,
    active_parameters: usize,
    /// Mean validation loss of the runs that did not diverge.
    loss_nats: Option<f64>,
    /// Standard deviation of the sample of seeds.
    loss_nats_deviation: Option<f64>,
    /// To the baseline, which has none itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<Difference>,
    /// Median over the runs of the median time of a step.
    step_ms: Option<f64>,
    /// Training time of a run, mean over the seeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    /// Of the worst layer, mean over the seeds; this and what follows are absent without mixture layers.
    load_max_over_mean: Option<f64>,
    /// Summed over the layers, mean over the seeds.
    experts_without_tokens: Option<f64>,
    /// Mean over layers and seeds.
    entropy_nats: Option<f64>,
    /// Mean over layers and seeds.
    dropped_share: Option<f64>,
    /// Mean over the layers where it varies and the seeds; absent where it varies in none.
    #[serde(skip_serializing_if = "Option::is_none")]
    experts_per_token: Option<f64>,
    /// What a token made use of in the mean, over the seeds; absent where that does not vary.
    #[serde(skip_serializing_if = "Option::is_none")]
    measured_active_parameters: Option<f64>,
    pub(super) diverged: usize,
    runs: Vec<RunResult>,
}

impl Row {
    fn new(contender: &Contender, runs: Vec<RunResult>) -> Self {
        let Contender { variant, compiled, cost } = contender;
        let recipe = &variant.spec.checked.recipe;
        let losses: Vec<f64> = runs.iter().filter_map(|r| r.loss_nats).collect();
        let panel = |of: &dyn Fn(&[LayerBalance]) -> f64| {
            let values: Vec<f64> = runs.iter().filter(|r| !r.layers.is_empty()).map(|r| of(&r.layers)).collect();
            mean(&values)
        };
        let layer_mean = |layers: &[LayerBalance], of: fn(&LayerBalance) -> f64| {
            layers.iter().map(of).sum::<f64>() / layers.len() as f64
        };
        Self {
            label: variant.label.clone(),
            spec: variant.path.display().to_string(),
            set: variant.own.clone(),
            steps: recipe.steps,
            batch: recipe.sequences(),
            flop_per_step: cost.flops,
            parameters: compiled.lowered.parameter_count(),
            active_parameters: compiled.lowered.active_parameter_count(),
            loss_nats: mean(&losses),
            loss_nats_deviation: deviation(&losses),
            difference: None,
            step_ms: median(runs.iter().filter_map(|r| r.step_ms).collect()),
            seconds: mean(&runs.iter().filter_map(|r| r.seconds).collect::<Vec<_>>()),
            load_max_over_mean: panel(&|l| l.iter().map(|l| l.load_max_over_mean).fold(0.0, f64::max)),
            experts_without_tokens: panel(&|l| l.iter().map(|l| l.experts_without_tokens as f64).sum()),
            entropy_nats: panel(&|l| layer_mean(l, |l| l.entropy_nats)),
            dropped_share: panel(&|l| layer_mean(l, |l| l.dropped_share)),
            experts_per_token: mean(&runs.iter().filter_map(|r| experts_per_token(&r.layers)).collect::<Vec<_>>()),
            measured_active_parameters: mean(&runs.iter().filter_map(|r| r.active_parameters).collect::<Vec<_>>()),
            diverged: runs.iter().filter(|r| r.loss_nats.is_none()).count(),
            runs,
        }
    }
}

impl Comparison {
    /// What the runs of every contender, in the same order, have reached.
    pub(super) fn new(
        bench: &Bench<'_>,
        budget: Budget,
        (baseline, margin_nats): (usize, Option<f64>),
        seeds: u64,
        contenders: &[Contender],
        infeasible: Vec<Infeasible>,
        results: Vec<Vec<RunResult>>,
    ) -> Self {
        let any = results.iter().flatten().find(|r| r.loss_nats.is_some());
        let (windows, characters) = any.map_or((0, 0), |r| (r.windows, r.characters));
        let first = &contenders.first().invariant("a comparison has a model").variant.spec.checked;
        let mut specs: Vec<Row> = contenders.iter().zip(results).map(|(c, runs)| Row::new(c, runs)).collect();
        hold_against(baseline, margin_nats, &mut specs);
        Comparison {
            schema: "moec.compare/1",
            device: bench.device.name(),
            data: bench.corpus.name().to_string(),
            data_sha256: bench.corpus.sha256().to_string(),
            budget: match budget {
                Budget::Steps { .. } => Budget::Steps { steps: common(specs.iter().map(|row| row.steps)) },
                other => other,
            },
            steps: common(specs.iter().map(|row| row.steps)),
            batch: common(specs.iter().map(|row| row.batch)),
            context: first.model.context,
            seeds,
            eval_batches: bench.eval_batches,
            windows,
            characters,
            baseline: specs[baseline].label.clone(),
            margin_nats,
            confidence: CONFIDENCE,
            specs,
            infeasible,
        }
    }

    /// Whether any run has diverged.
    pub(super) fn has_diverged(&self) -> bool {
        self.specs.iter().any(|row| row.diverged > 0)
    }
}

/// Holds every row against that of the baseline.
fn hold_against(baseline: usize, margin: Option<f64>, rows: &mut [Row]) {
    let losses = |row: &Row| row.runs.iter().map(|run| run.loss_nats).collect::<Vec<_>>();
    let against = losses(&rows[baseline]);
    let others: Vec<usize> = (0..rows.len()).filter(|row| *row != baseline).collect();
    let variants: Vec<Vec<Option<f64>>> = others.iter().map(|row| losses(&rows[*row])).collect();
    for (row, difference) in others.into_iter().zip(differences(&against, &variants, margin)) {
        rows[row].difference = Some(difference);
    }
}

/// What all have in common.
fn common<T: PartialEq>(mut values: impl Iterator<Item = T>) -> Option<T> {
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}

/// A column of the table.
struct Column {
    head: &'static str,
    cell: fn(&Row) -> String,
}

/// The columns that a comparison has.
fn columns(comparison: &Comparison) -> Vec<Column> {
    fn number(value: Option<f64>, text: impl Fn(f64) -> String) -> String {
        value.map_or("-".to_string(), text)
    }
    let column = |head, cell| Column { head, cell };
    let mut columns = vec![
        column("spec", |row| row.label.clone()),
        column("validation loss", |row| {
            let spread = row.loss_nats_deviation.map(|d| format!(" ± {d:.4}")).unwrap_or_default();
            let diverged = match row.diverged {
                0 => String::new(),
                n => format!(" ({n} of {} diverged)", row.runs.len()),
            };
            number(row.loss_nats, |l| format!("{l:.4}{spread}")) + &diverged
        }),
    ];
    if comparison.specs.iter().any(|row| row.difference.as_ref().is_some_and(|d| d.low_nats.is_some())) {
        columns.push(column("difference", |row| match &row.difference {
            Some(Difference { mean_nats: Some(mean), low_nats: Some(low), high_nats: Some(high), .. }) => {
                format!("{mean:+.4} ± {:.4}", (high - low) / 2.0)
            }
            _ => "-".to_string(),
        }));
    }
    if comparison.budget.counts_cost() {
        columns.push(column("steps", |row| grouped(row.steps)));
        columns.push(column("training", |row| number(row.seconds, duration)));
        columns.push(column("FLOP", |row| scaled(row.flop_per_step * row.steps as f64)));
    }
    columns.extend([
        column("step", |row| number(row.step_ms, |ms| format!("{} ms", milliseconds(ms, 1)))),
        column("active parameters", |row| grouped(row.active_parameters as u64)),
        column("load max/mean", |row| number(row.load_max_over_mean, |x| format!("{x:.2}"))),
        column("idle experts", |row| {
            number(row.experts_without_tokens, |x| if x.fract() == 0.0 { format!("{x:.0}") } else { format!("{x:.1}") })
        }),
        column("entropy", |row| number(row.entropy_nats, |x| format!("{x:.3}"))),
        column("dropped", |row| number(row.dropped_share, |x| format!("{:.1} %", 100.0 * x))),
    ]);
    if varies(comparison) {
        columns.push(column("experts per token", |row| number(row.experts_per_token, |x| format!("{x:.2}"))));
        columns.push(column("active as measured", |row| {
            number(row.measured_active_parameters, |x| grouped(x.round() as u64))
        }));
    }
    columns
}

/// Whether the number of experts of a token varies anywhere.
fn varies(comparison: &Comparison) -> bool {
    comparison.specs.iter().any(|row| row.experts_per_token.is_some())
}

/// The table for a terminal of so many columns.
pub(super) fn on_terminal(comparison: &Comparison, width: usize) -> String {
    let columns = columns(comparison);
    let mut table = Table::new(&columns.iter().map(|column| column.head).collect::<Vec<_>>(), 1);
    for row in &comparison.specs {
        table.row(columns.iter().map(|column| (column.cell)(row)));
    }
    let below: Vec<String> = notes(comparison).iter().map(|note| filled(note, width)).collect();
    format!("{}\n{}\n", table.text(width), below.join("\n"))
}

/// The table as Markdown, aligned so that it reads well as text too.
pub(super) fn markdown(comparison: &Comparison) -> String {
    let columns = columns(comparison);
    let mut rows: Vec<Vec<String>> = vec![columns.iter().map(|column| column.head.to_string()).collect()];
    let cells = |row: &Row| columns.iter().map(|column| (column.cell)(row)).collect();
    rows.extend(comparison.specs.iter().map(cells));
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // The first column is words, the others are numbers.
            let cell = if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
            text.push_str(&format!("| {cell} "));
        }
        text.push_str("|\n");
        if i == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width + 1);
                text.push_str(&if column == 0 { format!("|{dashes}-") } else { format!("|{dashes}:") });
            }
            text.push_str("|\n");
        }
    }
    for note in notes(comparison) {
        text.push('\n');
        text.push_str(&note);
        text.push('\n');
    }
    text
}

/// What stands below the table, a paragraph each: what there is no row of, and what the numbers are.
fn notes(c: &Comparison) -> Vec<String> {
    let mut notes: Vec<String> = c.infeasible.iter().map(Infeasible::sentence).collect();
    notes.extend(conclusions(c));
    notes.push(caption(c));
    notes
}

/// What may be concluded, a line for each variant.
fn conclusions(c: &Comparison) -> Vec<String> {
    if c.specs.len() > 1 && c.seeds == 1 {
        return vec![
            "One seed: nothing can be said about differences, which may be those of seeds (--seeds K).".to_string(),
        ];
    }
    let of = |row: &Row| Some(format!("{}: {}", row.label, row.difference.as_ref()?.sentence));
    let mut lines: Vec<String> = c.specs.iter().filter_map(of).collect();
    if !lines.is_empty() {
        lines.insert(0, format!("Against {}, at {:.0} %:", c.baseline, 100.0 * c.confidence));
    }
    lines
}

fn caption(c: &Comparison) -> String {
    let seeds = match c.seeds {
        1 => "seed 1".to_string(),
        n => format!("seeds 1 to {n}, ± is the standard deviation over them"),
    };
    let measured = match varies(c) {
        true => {
            " Experts per token and active as measured: those that computed for a token in the evaluation, mean over the \
             layers where that varies, and the parameters that it met."
        }
        false => "",
    };
    let steps = match (c.budget.counts_cost(), c.steps) {
        (false, Some(steps)) => format!("{} steps", grouped(steps)),
        _ => format!("As many steps as {} give", c.budget.text()),
    };
    let batch = c.batch.map(|batch| format!("{batch} x ")).unwrap_or_default();
    let difference = match c.seeds {
        1 => "",
        _ => {
            " Difference: of the losses to the baseline, seed by seed, with the half width of its interval (Student's t). What is \
             said of several variants is corrected by Holm's method."
        }
    };
    let cost = match c.budget {
        Budget::Steps { .. } => "",
        _ => " Training: time of all steps. FLOP: of the products of all steps, as the compiler counts them.",
    };
    format!(
        "{steps} of {batch}{} characters of {}, {seeds}. Validation loss: mean cross-entropy in nats over {} held-out \
         characters.{difference}{cost} Step: median time on {}, without evaluation. Load max/mean: of the worst layer. Idle experts: \
         without tokens in the whole evaluation, over all layers. Entropy (of a token's gate weights, nats) and dropped \
         (share of choices over capacity): mean over layers.{measured}",
        c.context,
        c.data,
        grouped(c.characters as u64),
        c.device
    )
}

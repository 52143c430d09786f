//! Learning curves: validation losses on the way of every run, as JSON lines and as a picture.

use super::budget::Budget;
use crate::cli::exit::{Exit, Failure};
use crate::cli::numbers::TrainingTime;
use crate::report::picture::{Line, Picture};
use moec_runtime::Metric;
use serde::Serialize;
use std::collections::BTreeMap;

/// Version of [`Point`].
const SCHEMA: &str = "moec.compare.curve/1";

/// A validation loss on the way, as a line of curves.jsonl.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Point {
    schema: &'static str,
    /// The variant, as in the table.
    label: String,
    seed: u64,
    /// Optimiser steps made.
    step: u64,
    /// Characters trained on.
    characters: u64,
    /// Operations of the products so far.
    flop: f64,
    /// Training time so far, without evaluations and checkpoints.
    seconds: f64,
    /// Mean cross-entropy on some batches of the held-out text, the same for all variants.
    loss_nats: f64,
}

/// What a step of a variant is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) characters: u64,
    pub(super) flop: f64,
}

/// The points of a run.
pub(super) fn of_run(label: &str, seed: u64, step: Step, metrics: &[Metric]) -> Vec<Point> {
    let mut points = Vec::new();
    // Times are those of reports; an evaluation lies between two.
    let mut reports = vec![(0u64, 0.0)];
    let mut time = TrainingTime::default();
    reports.extend(metrics.iter().filter(|m| matches!(m, Metric::Train(_))).map(|m| (m.step(), time.at(m))));
    for metric in metrics {
        let Metric::Evaluation(evaluation) = metric else { continue };
        let Some(loss_nats) = evaluation.validation_loss_nats.filter(|loss| loss.is_finite()) else { continue };
        let made = evaluation.step;
        points.push(Point {
            schema: SCHEMA,
            label: label.to_string(),
            seed,
            step: made,
            characters: step.characters * made,
            flop: step.flop * made as f64,
            seconds: seconds_at(&reports, made),
            loss_nats,
        });
    }
    points
}

/// Training time at a step, on the line between the reports around it, or on that from the start.
fn seconds_at(reports: &[(u64, f64)], step: u64) -> f64 {
    let after = reports.iter().position(|(at, _)| *at >= step);
    let (from, to) = match after {
        Some(0) | None => match reports {
            [.., last] if last.0 > 0 && after.is_none() => return last.1 * step as f64 / last.0 as f64,
            _ => return 0.0,
        },
        Some(after) => (reports[after - 1], reports[after]),
    };
    from.1 + (to.1 - from.1) * (step - from.0) as f64 / (to.0 - from.0) as f64
}

/// The points as JSON lines.
///
/// # Errors
/// When a number has no text, which none has.
pub(super) fn lines(points: &[Point]) -> Result<String, Failure> {
    let line = |point: &Point| serde_json::to_string(point).map(|line| line + "\n");
    let lines: Result<String, _> = points.iter().map(line).collect();
    lines.map_err(|e| Failure::new(Exit::Fault, format!("cannot write the curves: {e}")))
}

/// The curves as SVG, a line for each label in this order; `None` without a point.
pub(super) fn picture(labels: &[&str], points: &[Point], budget: Budget, data: &str) -> Option<String> {
    let (axis, of): (&str, fn(&Point) -> f64) = match budget {
        Budget::Steps { .. } => ("training steps", |p| p.step as f64),
        Budget::Minutes { .. } => ("minutes of training", |p| p.seconds / 60.0),
        Budget::Flops { .. } => ("floating-point operations of training", |p| p.flop),
    };
    let mut seeds = 0;
    let lines = labels.iter().map(|label| {
        // Seeds of a variant are evaluated after the same steps, but after other times.
        let mut at: BTreeMap<u64, Vec<&Point>> = BTreeMap::new();
        points.iter().filter(|point| point.label == *label).for_each(|p| at.entry(p.step).or_default().push(p));
        let most = at.values().map(Vec::len).max().unwrap_or(0);
        seeds = seeds.max(most);
        // A seed that diverged has no say in the mean, which would jump where it ends.
        at.retain(|_, points| points.len() == most);
        let mean = |points: &[&Point], of: &dyn Fn(&Point) -> f64| {
            points.iter().map(|p| of(p)).sum::<f64>() / points.len() as f64
        };
        let bound =
            |points: &[&Point], of: fn(f64, f64) -> f64, from: f64| points.iter().map(|p| p.loss_nats).fold(from, of);
        let band = at.values().map(|p| (bound(p, f64::min, f64::INFINITY), bound(p, f64::max, f64::NEG_INFINITY)));
        Line {
            label: label.to_string(),
            band: if most > 1 { band.collect() } else { Vec::new() },
            points: at.values().map(|points| (mean(points, &of), mean(points, &|p| p.loss_nats))).collect(),
        }
    });
    let lines: Vec<Line> = lines.collect();
    let spread = match seeds {
        0 => return None,
        1 => "one seed".to_string(),
        n => format!("mean of {n} seeds, with a band from the least to the largest"),
    };
    let title = format!("Validation loss on {}", data.rsplit('/').next().unwrap_or(data));
    let subtitle = format!("nats per character, {spread}");
    Some(Picture { title, subtitle, axis: axis.to_string(), lines, dots: Vec::new() }.svg())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evaluations_lie_on_the_line_of_time() {
        let reports = [(0, 0.0), (10, 1.0), (20, 3.0)];
        assert_eq!([0, 5, 10, 15, 20, 40].map(|step| seconds_at(&reports, step)), [0.0, 0.5, 1.0, 2.0, 3.0, 6.0]);
        assert_eq!(seconds_at(&[(0, 0.0)], 7), 0.0);
    }

    #[test]
    fn a_run_has_a_point_for_each_evaluation() {
        let metric = |line: &str| Metric::from_line(line).unwrap();
        let metrics = [
            metric(r#"{"schema":1,"kind":"train","step":2,"loss_nats":3.5,"lr":0.001,"step_ms":500,"tokens_per_s":9}"#),
            metric(
                r#"{"schema":1,"kind":"evaluation","step":2,"train_loss_nats":3,"validation_loss_nats":3.25,"layers":[]}"#,
            ),
        ];
        let points = of_run("a k=1", 3, Step { characters: 24, flop: 1e6 }, &metrics);
        let text = lines(&points).unwrap();
        assert!(text.contains(r#""label":"a k=1","seed":3,"step":2,"characters":48,"flop":2000000.0,"seconds":1.0"#));
        assert_eq!((text.lines().count(), points[0].loss_nats), (1, 3.25));
        let budget = Budget::Steps { steps: Some(2) };
        let svg = picture(&["a k=1", "b"], &points, budget, "/x/text.txt").unwrap();
        assert!(svg.contains("Validation loss on text.txt") && svg.contains("a k=1"), "{svg}");
        assert_eq!(picture(&["a"], &[], budget, "t"), None);
    }
}

//! Losses of one or several runs over their steps.

use crate::report::html::html;
use crate::report::plot::{Curve, Plot, Stroke};
use crate::report::{Report, letter, palette};
use moec_runtime::{Evaluation, Metric};
use std::collections::BTreeMap;

/// Points of a curve, at most: more cannot be seen.
const POINTS: usize = 300;

/// Rows of the table, at most.
const ROWS: usize = 25;

/// Appends the curves, what they are, and their numbers.
pub(super) fn section(report: &Report, out: &mut String) {
    out.push_str("<section id=\"loss\">\n<h2>Loss</h2>\n");
    let groups = report.groups();
    let curves: Vec<Curve> = groups.iter().enumerate().flat_map(|(g, runs)| of_group(report, g, runs)).collect();
    if curves.iter().all(|c| c.points.is_empty()) {
        out.push_str("<p>No step has been reported yet.</p>\n</section>\n");
        return;
    }
    let description =
        format!("Loss over steps of {}.", report.runs.iter().map(|r| r.path.as_str()).collect::<Vec<_>>().join(", "));
    Plot { curves, description, unit: "nats per character" }.draw(out);
    out.push_str("<p class=\"readout\" hidden>&#160;</p>\n");
    legend(report, &groups, out);
    table(report, out);
    out.push_str("</section>\n");
}

/// The batches, the training and the held-out text of runs that differ only in their seeds.
fn of_group(report: &Report, group: usize, runs: &[usize]) -> [Curve; 3] {
    let is_one = report.groups().len() == 1;
    let metrics = || runs.iter().map(|r| &report.runs[*r].metrics);
    let of = |of: fn(&Evaluation) -> Option<f64>| spread(metrics().map(|m| evaluations(m, of)));
    let curve = |name: &str, stroke, (points, band): Spread| Curve {
        name: if is_one { name.to_string() } else { format!("{name} {}", letter(group)) },
        colour: palette::line(group),
        stroke,
        points,
        band,
        end: None,
    };
    let batches = thinned(metrics().flat_map(|m| steps(m)));
    let (training, _) = of(|e| Some(e.train_loss_nats));
    let mut curves = [
        curve("loss", Stroke::Faint, (batches, Vec::new())),
        curve("train", Stroke::Dashed, (training, Vec::new())),
        curve("val", Stroke::Solid, of(|e| e.validation_loss_nats)),
    ];
    // Its letter stands at the last curve that there is.
    if let Some(last) = curves.iter_mut().rev().find(|c| !c.points.is_empty())
        && !is_one
    {
        last.end = Some(letter(group));
    }
    curves
}

/// What the lines are.
fn legend(report: &Report, groups: &[Vec<usize>], out: &mut String) {
    out.push_str("<ul class=\"legend\">\n");
    let lines = [
        (Stroke::Solid, "val: held-out text"),
        (Stroke::Dashed, "train: training text, without dropout and noise"),
        (Stroke::Faint, "loss of the batches, means over some steps"),
    ];
    for (stroke, words) in lines {
        out.push_str("<li><svg viewBox=\"0 0 36 10\" aria-hidden=\"true\"><path d=\"M0 5H36\" fill=\"none\" stroke=\"currentColor\" ");
        out.push_str(stroke.attributes());
        html!(out, "/></svg> {}</li>\n", words);
    }
    if report.runs.len() > 1 {
        for (g, runs) in groups.iter().enumerate() {
            let names: Vec<&str> = runs.iter().map(|r| report.runs[*r].path.as_str()).collect();
            let band = match runs.len() {
                1 => String::new(),
                n => format!("; mean of {n} seeds, the band is from the least to the largest"),
            };
            html!(out, "<li><b class=\"g {}\">{}</b> {}{}</li>\n", palette::line(g), letter(g), names.join(", "), band);
        }
    }
    out.push_str("</ul>\n");
}

/// The evaluations as numbers.
fn table(report: &Report, out: &mut String) {
    let all: Vec<BTreeMap<u64, &Evaluation>> = report
        .runs
        .iter()
        .map(|run| run.metrics.iter().filter_map(as_evaluation).map(|e| (e.step, e)).collect())
        .collect();
    let mut steps: Vec<u64> = all.iter().flat_map(|run| run.keys().copied()).collect();
    steps.sort_unstable();
    steps.dedup();
    if steps.is_empty() {
        return;
    }
    out.push_str("<details><summary>The evaluations as a table</summary>\n<div class=\"wide\" tabindex=\"0\"><table>\n<thead><tr><th scope=\"col\">step</th>");
    for (r, run) in report.runs.iter().enumerate() {
        let name =
            if report.runs.len() > 1 { format!(" {} (seed {})", report.letter(r), run.seed) } else { String::new() };
        html!(out, "<th scope=\"col\">train{}</th><th scope=\"col\">val{}</th>", name, name);
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    let every = steps.len().div_ceil(ROWS);
    for (i, step) in steps.iter().enumerate() {
        if !(steps.len() - 1 - i).is_multiple_of(every) {
            continue;
        }
        html!(out, "<tr><th scope=\"row\">{}</th>", step);
        for run in &all {
            let found = run.get(step);
            let cell =
                |value: Option<f64>| value.filter(|v| v.is_finite()).map_or("–".to_string(), |v| format!("{v:.4}"));
            html!(
                out,
                "<td>{}</td><td>{}</td>",
                cell(found.map(|e| e.train_loss_nats)),
                cell(found.and_then(|e| e.validation_loss_nats))
            );
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div></details>\n");
}

pub(super) fn as_evaluation(metric: &Metric) -> Option<&Evaluation> {
    if let Metric::Evaluation(evaluation) = metric { Some(evaluation) } else { None }
}

fn steps(metrics: &[Metric]) -> impl Iterator<Item = (f64, f64)> {
    metrics.iter().filter_map(|m| match m {
        Metric::Train(step) => Some((step.step as f64, step.loss_nats)),
        _ => None,
    })
}

fn evaluations(metrics: &[Metric], of: fn(&Evaluation) -> Option<f64>) -> Vec<(u64, f64)> {
    let all: Vec<&Evaluation> = metrics.iter().filter_map(as_evaluation).collect();
    let every = all.len().div_ceil(POINTS).max(1);
    // The last one is always among them.
    let kept = all.iter().rev().step_by(every).rev();
    kept.filter_map(|e| Some((e.step, of(e)?))).filter(|(_, v)| v.is_finite()).collect()
}

/// Means over so many stretches of steps.
fn thinned(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let points: Vec<(f64, f64)> = points.filter(|p| p.1.is_finite()).collect();
    let last = points.iter().map(|p| p.0).fold(1.0, f64::max);
    let mut stretches: BTreeMap<usize, (f64, f64, f64)> = BTreeMap::new();
    for (step, loss) in points {
        let stretch = stretches.entry(((step / last * POINTS as f64) as usize).min(POINTS - 1)).or_default();
        *stretch = (stretch.0 + step, stretch.1 + loss, stretch.2 + 1.0);
    }
    stretches.into_values().map(|(steps, losses, n)| (steps / n, losses / n)).collect()
}

/// Points of a curve, and the least and the largest value at each.
type Spread = (Vec<(f64, f64)>, Vec<(f64, f64)>);

/// The mean of several curves at the steps that they all have; the band is empty for a single one.
fn spread(curves: impl Iterator<Item = Vec<(u64, f64)>>) -> Spread {
    let mut values: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    let mut count = 0;
    for curve in curves {
        count += usize::from(!curve.is_empty());
        for (step, value) in curve {
            values.entry(step).or_default().push(value);
        }
    }
    values.retain(|_, v| v.len() == count);
    let points = values.iter().map(|(step, v)| (*step as f64, v.iter().sum::<f64>() / v.len() as f64)).collect();
    let bound = |v: &[f64], of: fn(f64, f64) -> f64| v.iter().copied().fold(v[0], of);
    let band = values.values().map(|v| (bound(v, f64::min), bound(v, f64::max)));
    (points, if count > 1 { band.collect() } else { Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_thinned_to_what_can_be_seen() {
        let many = thinned((1..=5000).map(|i| (f64::from(i), f64::from(i % 2))));
        assert!(many.len() <= POINTS + 1, "{}", many.len());
        assert!(many[5..].iter().all(|p| (p.1 - 0.5).abs() < 0.1));
        assert_eq!(thinned([(10.0, 2.0), (20.0, f64::NAN)].into_iter()), [(10.0, 2.0)]);
    }

    #[test]
    fn seeds_have_a_mean_and_a_band() {
        let curves = [vec![(10, 3.0), (20, 2.0)], vec![(10, 4.0), (20, 3.0), (30, 2.0)]];
        let (points, band) = spread(curves.clone().into_iter());
        assert_eq!((points, band), (vec![(10.0, 3.5), (20.0, 2.5)], vec![(3.0, 4.0), (2.0, 3.0)]));
        assert_eq!(spread(curves.into_iter().take(1)).1, []);
        assert_eq!(spread(std::iter::empty()), (Vec::new(), Vec::new()));
    }
}

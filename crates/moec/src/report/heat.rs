//! How routers spread the tokens: a map of experts over evaluations for every layer, and the balance panel.

use crate::report::curves::as_evaluation;
use crate::report::html::{html, ticked};
use crate::report::palette::{LOADS, load_class};
use crate::report::{Report, RunReport};
use moec_runtime::{Evaluation, LayerBalance};
use std::fmt::Write as _;

/// Evaluations side by side, at least and at most, and cells of all maps, at most.
const COLUMNS: (usize, usize) = (5, 60);
const CELLS: usize = 32_000;

/// Height of an expert's row, in hundredths of the letters' size, and of all of them, at least and at most.
const ROW: usize = 110;
const HEIGHT: (usize, usize) = (330, 2600);

/// Appends the maps and panels of all runs.
pub(super) fn section(report: &Report, out: &mut String) {
    out.push_str("<section id=\"load\">\n<h2>Load of the experts</h2>\n");
    let with: Vec<usize> = (0..report.runs.len()).filter(|r| !evaluations(&report.runs[*r]).is_empty()).collect();
    if with.is_empty() {
        out.push_str("<p>No evaluation of a layer with experts has been made.</p>\n</section>\n");
        return;
    }
    out.push_str("<p>A row is an expert, from left to right are the evaluations of the training. Orange is more than an even share, which is 1, blue is less, and an expert that got nothing is crossed out. Behind each row stands the last value.</p>\n");
    legend(out);
    let layers = with.iter().filter_map(|r| evaluations(&report.runs[*r]).pop()).flat_map(|e| &e.layers);
    let rows: usize = layers.map(|layer| layer.load_rows.len()).sum();
    let columns = (CELLS / rows.max(1)).clamp(COLUMNS.0, COLUMNS.1);
    out.push_str("<p class=\"readout\" aria-live=\"off\" hidden>&#160;</p>\n<div class=\"sides\">\n");
    for r in &with {
        let run = &report.runs[*r];
        out.push_str("<div class=\"side\">\n");
        if report.runs.len() > 1 {
            html!(out, "<h3>{} {} <small>seed {}</small></h3>\n", report.letter(*r), run.path, run.seed);
        }
        maps(run, columns, out);
        out.push_str("</div>\n");
    }
    out.push_str("</div>\n<h3>Balance at the last evaluation</h3>\n");
    for r in &with {
        panel(report, *r, out);
    }
    meanings(report, out);
    out.push_str("</section>\n");
}

/// The evaluations that say something about layers.
fn evaluations(run: &RunReport) -> Vec<&Evaluation> {
    run.metrics.iter().filter_map(as_evaluation).filter(|e| !e.layers.is_empty()).collect()
}

fn legend(out: &mut String) {
    out.push_str("<ul class=\"legend loads\">\n<li><svg viewBox=\"0 0 10 10\" aria-hidden=\"true\"><path class=\"none\" d=\"M0 0L10 10M0 10L10 0\"/></svg> nothing</li>\n");
    for (class, (_, words)) in LOADS.iter().enumerate() {
        html!(
            out,
            "<li><svg viewBox=\"0 0 10 10\" aria-hidden=\"true\"><path class=\"l{}\" d=\"M0 0H10V10H0Z\"/></svg> {}</li>\n",
            class,
            words
        );
    }
    out.push_str("</ul>\n");
}

/// The maps of a run's layers.
fn maps(run: &RunReport, columns: usize, out: &mut String) {
    let all = evaluations(run);
    let every = all.len().div_ceil(columns).max(1);
    let mut kept: Vec<&Evaluation> = all.iter().rev().step_by(every).copied().collect();
    kept.reverse();
    let Some(last) = kept.last() else { return };
    out.push_str("<div class=\"maps\">\n");
    for layer in &last.layers {
        let columns: Vec<(u64, &LayerBalance)> =
            kept.iter().filter_map(|e| Some((e.step, e.layers.iter().find(|l| l.path == layer.path)?))).collect();
        map(&layer.path, &columns, out);
    }
    out.push_str("</div>\n");
}

/// The load of an expert, relative to an even share.
fn relative(layer: &LayerBalance, expert: usize) -> f64 {
    let mean = layer.load_rows.iter().sum::<f64>() / layer.load_rows.len().max(1) as f64;
    let rows = layer.load_rows.get(expert).copied().unwrap_or(0.0);
    if mean > 0.0 { rows / mean } else { 0.0 }
}

fn map(path: &str, columns: &[(u64, &LayerBalance)], out: &mut String) {
    let Some((_, last)) = columns.last() else { return };
    let experts = last.load_rows.len();
    let (least, most) = HEIGHT;
    let height = (experts * ROW).clamp(least, most);
    let cells = cells(columns, experts);
    let steps: Vec<String> = columns.iter().map(|(step, _)| step.to_string()).collect();
    let row =
        |y: usize| columns.iter().map(|(_, l)| format!("{:.0}", 100.0 * relative(l, y))).collect::<Vec<_>>().join(" ");
    html!(
        out,
        "<figure class=\"heat\"><figcaption><code>{}</code></figcaption>\n<div class=\"map\" style=\"height:{}em\">",
        path,
        height as f64 / 100.0
    );
    // Every row has a number where there is room for it.
    let every = (experts * 100).div_ceil(height).max(1);
    let names = |out: &mut String, class: &str, text: &dyn Fn(usize) -> String| {
        html!(out, "<ol class=\"{}\" aria-hidden=\"true\">", class);
        for y in (0..experts).step_by(every) {
            let height = every.min(experts - y);
            html!(out, "<li style=\"flex:{} 0 0\">{}</li>", height, text(y));
        }
        out.push_str("</ol>");
    };
    names(out, "names", &|y| y.to_string());
    html!(
        out,
        "\n<svg viewBox=\"0 0 {} {}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\" data-steps=\"{}\" data-rows=\"{}\">",
        columns.len(),
        experts,
        spoken(path, last),
        steps.join(" "),
        (0..experts).map(row).collect::<Vec<_>>().join(",")
    );
    for (class, path) in cells.iter().filter(|(_, path)| !path.is_empty()) {
        html!(out, "<path class=\"{}\" d=\"{}\"/>", class, path);
    }
    out.push_str("</svg>\n");
    names(out, "values", &|y| if every == 1 { format!("{:.2}", relative(last, y)) } else { String::new() });
    let (first, end) = (columns[0].0, columns[columns.len() - 1].0);
    let end = if end == first { String::new() } else { end.to_string() };
    html!(out, "</div><p class=\"axis\"><span>step {}</span><span>{}</span></p></figure>\n", first, end);
}

/// The cells of each class as one path, neighbours in a row together, with those of idle experts as crosses.
fn cells(columns: &[(u64, &LayerBalance)], experts: usize) -> Vec<(String, String)> {
    let mut paths: Vec<(String, String)> = (0..LOADS.len()).map(|class| (format!("l{class}"), String::new())).collect();
    let mut idle = String::new();
    for y in 0..experts {
        let classes: Vec<Option<usize>> = columns
            .iter()
            .map(|(_, layer)| Some(relative(layer, y)).filter(|load| *load > 0.0).map(load_class))
            .collect();
        let mut x = 0;
        for alike in classes.chunk_by(|a, b| a == b) {
            let width = alike.len();
            // Writing to a string cannot fail.
            let _ = match alike[0] {
                Some(class) => write!(paths[class].1, "M{x} {y}h{width}v1h-{width}z"),
                None => (x..x + width).try_for_each(|x| write!(idle, "M{x} {y}l1 1m-1 0l1-1")),
            };
            x += width;
        }
    }
    paths.push(("none".to_string(), idle));
    paths
}

/// The last column in words.
fn spoken(path: &str, last: &LayerBalance) -> String {
    let loads: Vec<String> =
        (0..last.load_rows.len().min(64)).map(|e| format!("expert {e} {:.2}", relative(last, e))).collect();
    format!("Load of {path} over training; at the end, relative to an even share: {}", loads.join(", "))
}

/// The panel as training prints it at its end.
fn panel(report: &Report, r: usize, out: &mut String) {
    let run = &report.runs[r];
    let Some(last) = evaluations(run).pop() else { return };
    let name = if report.runs.len() > 1 { format!("{} {}, ", report.letter(r), run.path) } else { String::new() };
    html!(
        out,
        "<div class=\"wide\" tabindex=\"0\"><table>\n<caption>{}step {}</caption>\n<thead><tr><th scope=\"col\">layer</th>",
        name,
        last.step
    );
    for column in ["max/mean", "idle", "entropy", "dropped", "balance"] {
        let summary = report.columns.iter().find(|c| c.name == column).map_or("", |c| c.summary);
        html!(out, "<th scope=\"col\"><abbr title=\"{}\">{}</abbr></th>", summary, column);
    }
    let mut losses: Vec<&String> = last.layers.iter().flat_map(|l| l.auxiliary.keys()).collect();
    losses.sort();
    losses.dedup();
    for loss in &losses {
        html!(out, "<th scope=\"col\"><abbr title=\"balance loss, without its weight\">{}</abbr></th>", loss);
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for layer in &last.layers {
        html!(
            out,
            "<tr><th scope=\"row\"><code>{}</code></th><td>{}</td><td>{}</td><td>{}</td><td>{} %</td><td>{}</td>",
            layer.path,
            format!("{:.2}", layer.load_max_over_mean),
            layer.experts_without_tokens,
            format!("{:.3}", layer.entropy_nats),
            format!("{:.1}", 100.0 * layer.dropped_share),
            format!("{:.3}", layer.balance)
        );
        for loss in &losses {
            html!(out, "<td>{}</td>", layer.auxiliary.get(*loss).map_or("–".to_string(), |v| format!("{v:.4}")));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
}

/// What the numbers mean, as `moec explain` has it.
fn meanings(report: &Report, out: &mut String) {
    out.push_str("<details><summary>What the numbers mean</summary>\n<dl>\n");
    for column in &report.columns {
        html!(out, "<dt>{}</dt><dd>{}.", column.name, column.summary);
        if !column.text.is_empty() {
            out.push(' ');
            ticked(column.text, out);
        }
        out.push_str("</dd>\n");
    }
    out.push_str("</dl></details>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn neighbours_of_a_class_are_one_cell_and_the_idle_are_crossed_out() {
        let layer = |load_rows: [f64; 3]| LayerBalance {
            path: "moe".into(),
            load_rows: load_rows.to_vec(),
            zero_computation_rows: Vec::new(),
            experts_per_token: None,
            load_max_over_mean: 1.0,
            experts_without_tokens: 0,
            entropy_nats: 0.0,
            dropped_share: 0.0,
            balance: 1.0,
            auxiliary: BTreeMap::new(),
        };
        let layers = [layer([1.0, 1.0, 1.0]), layer([1.0, 1.1, 0.9]), layer([0.0, 3.0, 0.0])];
        let columns: Vec<(u64, &LayerBalance)> = (1..).zip(&layers).collect();
        let cells = cells(&columns, 3);
        let path = |class: &str| cells.iter().find(|(name, _)| name == class).map(|(_, path)| path.as_str());
        assert_eq!(path("l3"), Some("M0 0h2v1h-2zM0 1h2v1h-2zM0 2h2v1h-2z"));
        assert_eq!(path("l5"), Some("M2 1h1v1h-1z"));
        assert_eq!(path("none"), Some("M2 0l1 1m-1 0l1-1M2 2l1 1m-1 0l1-1"));
    }
}

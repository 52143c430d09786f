//! A text coloured by the expert that each of its characters went to, layer by layer, and side by side for several runs.

use crate::report::html::html;
use crate::report::{Choice, Report, RoutedLayer, RoutedText, Routes, RunReport, characters, html};
use std::fmt::Write as _;

/// Characters of all layers and runs, at most, and of one layer, at least and at most: more text is counted in the tables
/// only.
const MOST: usize = 12_000;
const OF_A_LAYER: (usize, usize) = (96, 640);

/// Experts of all layers and runs, at most: of larger models some layers are shown.
const EXPERTS: usize = 2_048;

/// Choices that are named for a character; the others are counted.
const NAMED: usize = 4;

/// Appends the texts of all layers with their tables.
pub(super) fn section(report: &Report, out: &mut String) {
    out.push_str("<section id=\"text\">\n<h2>Which expert works on which character</h2>\n");
    let known: Vec<(usize, &RunReport, &RoutedText)> = (report.runs.iter().enumerate())
        .filter_map(|(r, run)| match &run.routes {
            Routes::Of(text) => Some((r, run, text)),
            Routes::Unknown(_) => None,
        })
        .collect();
    for (r, run) in report.runs.iter().enumerate() {
        if let Routes::Unknown(why) = &run.routes {
            let name =
                if report.runs.len() > 1 { format!("{} {}: ", report.letter(r), run.path) } else { String::new() };
            html!(out, "<p>{}{}.</p>\n", name, why);
        }
    }
    let Some((_, _, first)) = known.first() else {
        out.push_str("</section>\n");
        return;
    };
    let all = layers(&known);
    let layers = some(&all, EXPERTS / (known.len() * most_experts(report)).max(1));
    let shown = shown(layers.len() * known.len()).min(first.characters.len());
    html!(
        out,
        "<p>The text is {}. The number below a character and its colour are the expert with the largest weight; stronger colour is more weight. Hold the pointer over a character for all its experts with their weights.",
        first.source
    );
    if shown < first.characters.len() {
        html!(
            out,
            " Shown are the first {} of {} characters; the tables count all of them.",
            shown,
            first.characters.len()
        );
    }
    if layers.len() < all.len() {
        html!(out, " Of the {} layers these are {}, spread evenly.", all.len(), layers.len());
    }
    out.push_str("</p>\n<p class=\"readout\" aria-live=\"polite\" hidden>&#160;</p>\n<div class=\"layers\">\n");
    for path in &layers {
        html!(
            out,
            "<section class=\"layer\" aria-label=\"{}\">\n<h3><code>{}</code></h3>\n<div class=\"sides\">\n",
            path,
            path
        );
        for (r, run, text) in &known {
            let Some(layer) = text.layers.iter().find(|l| l.path == **path) else { continue };
            out.push_str("<div class=\"side\">\n");
            if report.runs.len() > 1 {
                html!(
                    out,
                    "<h4>{} {} <small>seed {}, step {}</small></h4>\n",
                    report.letter(*r),
                    run.path,
                    run.seed,
                    text.step
                );
            }
            html!(out, "<p class=\"key\"><code>{}</code>, experts ", layer.strategy);
            for expert in 0..layer.experts {
                html!(out, "<b class=\"e{}\" data-expert=\"{}\">{}</b> ", expert, expert, expert);
            }
            out.push_str("</p>\n");
            coloured(text, layer, shown, out);
            characters::tables(text, layer, layers.len() * known.len(), out);
            out.push_str("</div>\n");
        }
        out.push_str("</div>\n</section>\n");
    }
    out.push_str("</div>\n</section>\n");
}

/// Paths of the layers of all runs, in the order of the first that has them.
fn layers<'a>(known: &[(usize, &RunReport, &'a RoutedText)]) -> Vec<&'a str> {
    let mut paths: Vec<&str> = Vec::new();
    for layer in known.iter().flat_map(|(_, _, text)| &text.layers) {
        if !paths.contains(&layer.path.as_str()) {
            paths.push(&layer.path);
        }
    }
    paths
}

/// So many of the layers, spread evenly from the first to the last.
fn some<'a>(layers: &[&'a str], most: usize) -> Vec<&'a str> {
    match (layers.len(), most) {
        (all, most) if all <= most => layers.to_vec(),
        (_, 0 | 1) => layers[..1].to_vec(),
        (all, most) => (0..most).map(|i| layers[i * (all - 1) / (most - 1)]).collect(),
    }
}

/// Characters of each text that are shown.
fn shown(texts: usize) -> usize {
    let (least, most) = OF_A_LAYER;
    (MOST / texts.max(1)).clamp(least, most)
}

/// The beginning of a text.
fn coloured(text: &RoutedText, layer: &RoutedLayer, shown: usize, out: &mut String) {
    html!(out, "<p class=\"tx\" tabindex=\"0\" role=\"group\" aria-label=\"text by expert, {}\">", layer.path);
    for (i, (character, choices)) in text.characters.iter().zip(&layer.choices).take(shown).enumerate() {
        let seen = if *character == ' ' { " ".to_string() } else { html::visible(*character) };
        match choices.first() {
            Some(first) => html!(
                out,
                "<b class=\"e{} w{}\" title=\"{}\">{}</b>",
                first.expert,
                strength(first.weight),
                title(choices),
                seen
            ),
            None => html!(out, "<b class=\"no\" title=\"no expert\">{}</b>", seen),
        }
        // Empty lines would take as much room as those with text.
        if *character == '\n' && text.characters.get(i + 1) != Some(&'\n') {
            out.push('\n');
        }
    }
    out.push_str("</p>\n");
}

/// Three grades of a weight.
fn strength(weight: f32) -> usize {
    if weight < 0.4 {
        1
    } else if weight < 0.7 {
        2
    } else {
        3
    }
}

/// `3: 0.62, 1: 0.38 dropped`
fn title(choices: &[Choice]) -> String {
    let mut title = String::new();
    for (i, choice) in choices.iter().take(NAMED).enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        let dropped = if choice.dropped { " dropped" } else { "" };
        // Writing to a string cannot fail.
        let _ = write!(title, "{comma}{}: {:.2}{dropped}", choice.expert, choice.weight);
    }
    match choices.len().saturating_sub(NAMED) {
        0 => title,
        more => title + &format!(", {more} more"),
    }
}

/// The largest number of experts of a layer.
pub(super) fn most_experts(report: &Report) -> usize {
    let texts = report.runs.iter().filter_map(|run| match &run.routes {
        Routes::Of(text) => Some(text),
        Routes::Unknown(_) => None,
    });
    texts.flat_map(|t| &t.layers).map(|l| l.experts).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_named_with_their_weights() {
        let choice = |expert, weight, dropped| Choice { expert, weight, dropped };
        assert_eq!(title(&[choice(3, 0.625, false), choice(1, 0.375, true)]), "3: 0.62, 1: 0.38 dropped");
        let all: Vec<Choice> = (0..8).map(|e| choice(e, 0.125, false)).collect();
        assert_eq!(title(&all), "0: 0.12, 1: 0.12, 2: 0.12, 3: 0.12, 4 more");
        assert_eq!([0.1, 0.5, 0.9].map(strength), [1, 2, 3]);
    }

    #[test]
    fn of_many_layers_some_are_shown() {
        let all = ["a", "b", "c", "d", "e"];
        assert_eq!(some(&all, 9), all);
        assert_eq!(some(&all, 3), ["a", "c", "e"]);
        assert_eq!((some(&all, 1), some(&all, 0), some(&[], 0)), (vec!["a"], vec!["a"], vec![]));
    }

    #[test]
    fn as_much_text_is_shown_as_fits() {
        assert_eq!([shown(0), shown(2), shown(40), shown(1000)], [640, 640, 300, 96]);
    }
}

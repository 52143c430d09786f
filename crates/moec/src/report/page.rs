//! The page as a whole: head, overview, and the sections in the order in which one reads them.

use crate::report::html::{html, ticked};
use crate::report::{CommandText, Report, RunReport, SIGNATURE, curves, heat, palette, text};
use moec_runtime::Metric;
use std::collections::BTreeMap;

const STYLE: &str = concat!(include_str!("colours.css"), include_str!("style.css"));
const SCRIPT: &str = include_str!("script.js");

/// The page.
pub(super) fn page(report: &Report) -> String {
    let mut page = String::from(SIGNATURE);
    let out = &mut page;
    let models: Vec<&str> = report.runs.iter().map(|run| run.model.as_str()).collect();
    let title = match &models[..] {
        [one] => format!("{one}: a training"),
        _ => format!("{} trainings: {}", models.len(), distinct(&models).join(", ")),
    };
    out.push_str("<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    html!(out, "<meta name=\"generator\" content=\"moec {}\">\n", report.version);
    // Nothing is fetched, and no script runs but the one at the end.
    html!(
        out,
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'\">\n",
        hash(SCRIPT)
    );
    html!(out, "<title>{}</title>\n<style>\n", title);
    out.push_str(STYLE);
    out.push_str(&palette::expert_rules(text::most_experts(report)));
    html!(out, "\n</style>\n</head>\n<body>\n<header>\n<h1>{}</h1>\n", title);
    out.push_str("<nav aria-label=\"Sections\"><a href=\"#loss\">Loss</a> <a href=\"#findings\">Diagnoses</a> <a href=\"#load\">Load</a> <a href=\"#text\">Text by expert</a> <a href=\"#runs\">Specs and commands</a></nav>\n</header>\n<main>\n");
    overview(report, out);
    curves::section(report, out);
    findings(report, out);
    heat::section(report, out);
    text::section(report, out);
    runs(report, out);
    html!(
        out,
        "</main>\n<footer><p>Written by moec {}. This file needs nothing beside it: no network, and no script to be read.</p></footer>\n<script>",
        report.version
    );
    out.push_str(SCRIPT);
    out.push_str("</script>\n</body>\n</html>\n");
    page
}

fn distinct<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let mut seen: Vec<&str> = Vec::new();
    names.iter().for_each(|name| {
        if !seen.contains(name) {
            seen.push(name);
        }
    });
    seen
}

/// The runs in a line each.
fn overview(report: &Report, out: &mut String) {
    if let [run] = &report.runs[..] {
        html!(out, "<p class=\"lead\">{}</p>\n", run.summary);
    }
    out.push_str("<div class=\"wide\" tabindex=\"0\"><table>\n<thead><tr><th scope=\"col\">run</th><th scope=\"col\" class=\"words\">folder</th><th scope=\"col\" class=\"words\">model</th><th scope=\"col\">seed</th><th scope=\"col\">steps</th><th scope=\"col\">val at the end</th><th scope=\"col\">best val</th><th scope=\"col\">diagnoses</th></tr></thead>\n<tbody>\n");
    for (r, run) in report.runs.iter().enumerate() {
        let validation: Vec<(u64, f64)> = (run.metrics.iter().filter_map(curves::as_evaluation))
            .filter_map(|e| Some((e.step, e.validation_loss_nats?)))
            .collect();
        let best = validation.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
        let steps = run.metrics.iter().map(Metric::step).max().unwrap_or(0);
        html!(
            out,
            "<tr><th scope=\"row\" class=\"g {}\">{}</th><td class=\"words\"><code>{}</code></td><td class=\"words\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td><a href=\"#findings\">{}</a></td></tr>\n",
            palette::line(report.groups().iter().position(|g| g.contains(&r)).unwrap_or(0)),
            report.letter(r),
            run.path,
            run.model,
            run.seed,
            steps,
            validation.last().map_or("–".to_string(), |v| format!("{:.4}", v.1)),
            best.map_or("–".to_string(), |(step, loss)| format!("{loss:.4} at {step}")),
            run.diagnoses.len()
        );
    }
    out.push_str("</tbody></table></div>\n");
    if report.runs.len() > 1 && report.groups().len() < report.runs.len() {
        out.push_str("<p>Runs with one letter differ in nothing but the seed.</p>\n");
    }
}

/// What is wrong with the runs, and what to change.
fn findings(report: &Report, out: &mut String) {
    out.push_str("<section id=\"findings\">\n<h2>Diagnoses</h2>\n");
    for run in &report.runs {
        if let Some(missing) = &run.missing {
            html!(out, "<p>Of {} not everything can be said: ", run.path);
            ticked(missing, out);
            out.push_str(".</p>\n");
        }
    }
    // Runs of which the same can be said are named together.
    let mut sound: BTreeMap<&[&str], Vec<&str>> = BTreeMap::new();
    for run in report.runs.iter().filter(|run| run.diagnoses.is_empty() && run.missing.is_none()) {
        sound.entry(&run.looked_for).or_default().push(&run.path);
    }
    for (looked_for, runs) in sound {
        let whose = if runs.len() == report.runs.len() { String::new() } else { format!(" of {}", runs.join(", ")) };
        html!(out, "<p>The metrics{} show none of the known faults: {}.</p>\n", whose, looked_for.join(", "));
    }
    for (r, run) in report.runs.iter().enumerate().filter(|(_, run)| !run.diagnoses.is_empty()) {
        if report.runs.len() > 1 {
            html!(out, "<h3>{} {} <small>seed {}</small></h3>\n", report.letter(r), run.path, run.seed);
        }
        for finding in &run.diagnoses {
            let diagnosis = &finding.diagnosis;
            let level = level(report);
            html!(
                out,
                "<article class=\"finding\">\n<{}><span aria-hidden=\"true\">▲</span> {}</{}>\n<dl>\n<dt>seen</dt><dd>",
                level,
                diagnosis.fault.title(),
                level
            );
            ticked(&diagnosis.seen, out);
            if !diagnosis.layers.is_empty() {
                html!(out, " <small>({})</small>", diagnosis.layers.join(", "));
            }
            html!(out, "</dd>\n<dt>why it matters</dt><dd>{}</dd>\n<dt>cure</dt><dd>", diagnosis.fault.why());
            ticked(&diagnosis.cure, out);
            out.push_str("</dd>\n");
            if let Some(line) = &finding.line {
                html!(
                    out,
                    "<dt>line to change</dt><dd><code>{}:{}</code> <code>{}</code></dd>\n",
                    line.file,
                    line.number,
                    line.text
                );
            }
            out.push_str("</dl>\n</article>\n");
        }
    }
    out.push_str("</section>\n");
}

/// Specs, facts, samples, kernels and commands of the runs.
fn runs(report: &Report, out: &mut String) {
    out.push_str("<section id=\"runs\">\n<h2>Specs and commands</h2>\n<div class=\"sides\">\n");
    for (r, run) in report.runs.iter().enumerate() {
        out.push_str("<div class=\"side\">\n");
        // The summary of a single run stands at the top.
        if report.runs.len() > 1 {
            html!(out, "<h3>{} {}</h3>\n<p>{}</p>\n", report.letter(r), run.path, run.summary);
        }
        spec(report, run, out);
        facts(report, run, out);
        if let Some((name, sample)) = &run.sample {
            heading(report, "A sample", out);
            html!(out, "<p><code>{}</code></p>\n<pre class=\"sample\">\n{}</pre>\n", name, sample);
        }
        kernels(run, out);
        if !run.commands.is_empty() {
            heading(report, "Commands", out);
            out.push_str("<dl>\n");
            for CommandText { what, line } in &run.commands {
                html!(out, "<dt>{}</dt><dd><pre>{}</pre></dd>\n", what, line);
            }
            out.push_str("</dl>\n");
        }
        out.push_str("</div>\n");
    }
    out.push_str("</div>\n</section>\n");
}

/// A heading of a part of a run, which has one of its own where there are several.
fn heading(report: &Report, text: &str, out: &mut String) {
    let level = level(report);
    html!(out, "<{}>{}</{}>\n", level, text, level);
}

fn level(report: &Report) -> &'static str {
    if report.runs.len() > 1 { "h4" } else { "h3" }
}

/// The spec with what the checker says of it.
fn spec(report: &Report, run: &RunReport, out: &mut String) {
    let verdict = match run.warnings.len() {
        0 => "The checker has nothing to say: the model is sound.".to_string(),
        1 => "The model is sound, with a warning:".to_string(),
        n => format!("The model is sound, with {n} warnings:"),
    };
    heading(report, "Spec", out);
    html!(out, "<p>{}</p>\n", verdict);
    for warning in &run.warnings {
        html!(
            out,
            "<pre class=\"warning\">\n{}</pre>\n<details><summary>What this warning means</summary><pre tabindex=\"0\">\n{}</pre></details>\n",
            warning.rendered,
            warning.explanation
        );
    }
    if !run.set.is_empty() {
        out.push_str("<p>Changed from the command line: ");
        for (i, set) in run.set.iter().enumerate() {
            out.push_str(if i == 0 { "" } else { ", " });
            html!(out, "<code>{}</code>", set);
        }
        out.push_str(".</p>\n");
    }
    html!(
        out,
        "<details open><summary>spec.moe</summary><pre class=\"spec\" tabindex=\"0\">\n{}</pre></details>\n",
        run.spec
    );
    for (name, import) in &run.imports {
        html!(
            out,
            "<details><summary>{}</summary><pre class=\"spec\" tabindex=\"0\">\n{}</pre></details>\n",
            name,
            import
        );
    }
}

fn facts(report: &Report, run: &RunReport, out: &mut String) {
    if run.facts.is_empty() {
        return;
    }
    heading(report, "Facts", out);
    out.push_str("<div class=\"wide\" tabindex=\"0\"><table class=\"facts\">\n<tbody>\n");
    for (name, value) in &run.facts {
        html!(out, "<tr><th scope=\"row\">{}</th><td class=\"words\">{}</td></tr>\n", name, value);
    }
    out.push_str("</tbody></table></div>\n");
}

/// Where the time of a step went, if it was measured.
fn kernels(run: &RunReport, out: &mut String) {
    let total: f64 = run.kernels.iter().map(|k| k.ms).sum();
    if total <= 0.0 {
        return;
    }
    const SHOWN: usize = 20;
    html!(
        out,
        "<details><summary>Kernels of a training step: {} ms in all</summary>\n<div class=\"wide\" tabindex=\"0\"><table>\n<thead><tr><th scope=\"col\" class=\"words\">phase</th><th scope=\"col\" class=\"words\">kernel</th><th scope=\"col\">launches</th><th scope=\"col\">ms</th><th scope=\"col\">share</th></tr></thead>\n<tbody>\n",
        format!("{total:.2}")
    );
    for kernel in run.kernels.iter().take(SHOWN) {
        html!(
            out,
            "<tr><td class=\"words\">{}</td><th scope=\"row\" class=\"words\">{}</th><td>{}</td><td>{}</td><td>{} %</td></tr>\n",
            kernel.phase,
            kernel.kernel,
            kernel.launches,
            format!("{:.3}", kernel.ms),
            format!("{:.1}", 100.0 * kernel.ms / total)
        );
    }
    out.push_str("</tbody></table></div>");
    if let more @ 1.. = run.kernels.len().saturating_sub(SHOWN) {
        html!(out, "<p>{} more kinds take less.</p>", more);
    }
    out.push_str("</details>\n");
}

/// SHA-256 of a script as a policy names it.
fn hash(script: &str) -> String {
    let hex = moec_runtime::sha256_hex(script.as_bytes());
    let bytes: Vec<u8> =
        (0..hex.len() / 2).filter_map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).ok()).collect();
    base64(&bytes)
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for i in 0..4 {
            let letter = char::from(LETTERS[(bits >> (18 - 6 * i) & 63) as usize]);
            text.push(if i <= three.len() { letter } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_named_by_its_hash() {
        assert_eq!(
            ["", "f", "fo", "foo", "foob"].map(|t| base64(t.as_bytes())),
            ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]
        );
        assert_eq!(hash(""), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
        // Between its tags it must be what was hashed, and it must not end them.
        assert!(!SCRIPT.contains("</") && !SCRIPT.contains("<!--"));
    }
}

//! Pages of made-up runs: well formed, nothing fetched, nothing of a user read as HTML, small.

use super::*;
use crate::diagnosis::Fault;
use moec_runtime::{Evaluation, LayerBalance, TrainMetric};
use std::collections::BTreeMap;

/// What a user could name anything.
const HOSTILE: &str = "<script>alert(1)</script>\"'&<!--";

fn layer(path: &str, experts: usize, step: u64) -> LayerBalance {
    LayerBalance {
        path: path.to_string(),
        load_rows: (0..experts).map(|e| if e == 1 { 0.0 } else { (e as u64 * step % 97) as f64 }).collect(),
        zero_computation_rows: Vec::new(),
        experts_per_token: None,
        load_max_over_mean: 2.0,
        experts_without_tokens: 1,
        entropy_nats: 0.5,
        dropped_share: 0.01,
        balance: 1.2,
        auxiliary: BTreeMap::from([("switch".to_string(), 1.1)]),
    }
}

/// A training of so many steps that reports every tenth and evaluates every hundredth.
fn metrics(steps: u64, layers: usize, experts: usize) -> Vec<Metric> {
    let mut metrics = Vec::new();
    for step in (10..=steps).step_by(10) {
        let loss_nats = 4.0 - (step as f64).ln() / 4.0;
        let (objective, grad_norm) = (Some(loss_nats + 0.1), None);
        let train = TrainMetric { step, loss_nats, objective, grad_norm, lr: 1e-3, step_ms: 10.0, tokens_per_s: 1e4 };
        metrics.push(Metric::Train(train));
        if step % 100 == 0 {
            metrics.push(Metric::Evaluation(Evaluation {
                step,
                train_loss_nats: loss_nats,
                validation_loss_nats: Some(loss_nats + 0.1),
                active_parameters: None,
                layers: (0..layers).map(|l| layer(&format!("blocks.{l}.moe"), experts, step)).collect(),
            }));
        }
    }
    metrics
}

fn routes(text: &str, layers: usize, experts: usize) -> Routes {
    let characters: Vec<char> = text.chars().collect();
    let choice = |i: usize| {
        let choice = |e: usize, weight| Choice { expert: e % experts, weight, dropped: false };
        vec![choice(i, 0.75), choice(i + 1, 0.25)]
    };
    let layer = |l: usize| RoutedLayer {
        path: format!("blocks.{l}.moe"),
        strategy: "softmax_top_k".to_string(),
        experts,
        choices: (0..characters.len()).map(choice).collect(),
    };
    Routes::Of(RoutedText { source: "a text".into(), step: 10, layers: (0..layers).map(layer).collect(), characters })
}

fn run(path: &str, steps: u64, layers: usize, experts: usize, text: &str) -> RunReport {
    RunReport {
        path: path.to_string(),
        model: "m".to_string(),
        seed: 7,
        identity: "m".to_string(),
        summary: "m: 1,000 parameters".to_string(),
        spec: "model m { .. }\n".to_string(),
        metrics: metrics(steps, layers, experts),
        routes: routes(text, layers, experts),
        facts: vec![("data".to_string(), "synthetic".to_string())],
        kernels: vec![KernelTime { phase: "forward".into(), kernel: "matmul".into(), launches: 3, ms: 1.5 }],
        sample: Some(("step-00000010.txt".to_string(), "To be".to_string())),
        commands: vec![CommandText { what: "write text".into(), line: "moec sample run".into() }],
        ..RunReport::default()
    }
}

fn report(runs: Vec<RunReport>) -> Report {
    let columns = vec![ColumnText { name: "idle", summary: "experts without a token", text: "They learn nothing." }];
    Report { version: "0.0.0", runs, columns }
}

/// Every tag that is opened is closed, in order, attributes are in quotes and not twice; the text outside of scripts and
/// styles is returned.
fn well_formed(page: &str) -> String {
    const VOID: [&str; 3] = ["meta", "br", "input"];
    let body = page.strip_prefix(SIGNATURE).expect("it begins with its signature");
    let (mut open, mut text, mut rest): (Vec<String>, String, &str) = (Vec::new(), String::new(), body);
    while let Some(at) = rest.find('<') {
        text += &rest[..at];
        rest = &rest[at..];
        let end = rest.find('>').expect("a tag ends");
        let tag = rest[1..end].to_string();
        assert!(!tag.contains('<'), "<{tag}>");
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(
                open.pop().as_deref(),
                Some(name),
                "closed within {open:?}, before: {}",
                &rest[..60.min(rest.len())]
            );
            continue;
        }
        let (name, mut attributes) = tag.split_once(' ').unwrap_or((&tag, ""));
        let mut seen = Vec::new();
        attributes = attributes.trim_end_matches('/').trim();
        while !attributes.is_empty() {
            let length = attributes.find([' ', '=']).unwrap_or(attributes.len());
            assert!(!seen.contains(&&attributes[..length]), "<{tag}>");
            seen.push(&attributes[..length]);
            attributes = &attributes[length..];
            if let Some(value) = attributes.strip_prefix("=\"") {
                attributes = &value[value.find('"').expect("a value ends") + 1..];
            } else {
                assert!(!attributes.starts_with('='), "a value without quotes: <{tag}>");
            }
            assert!(attributes.is_empty() || attributes.starts_with(' '), "<{tag}>");
            attributes = attributes.trim_start();
        }
        if name == "script" || name == "style" {
            let end = rest.find(&format!("</{name}>")).expect("it ends");
            rest = &rest[end + name.len() + 3..];
        } else if !VOID.contains(&name) && !tag.ends_with('/') {
            open.push(name.to_string());
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
    text
}

#[track_caller]
fn assert_nothing_is_fetched(page: &str) {
    for word in [
        "http:",
        "https:",
        "src=",
        "url(",
        "@import",
        "<link",
        "<img",
        "<iframe",
        "fetch(",
        "XMLHttpRequest",
        "import(",
    ] {
        assert!(!page.contains(word), "the page has {word}");
    }
}

#[test]
fn a_page_is_well_formed_and_fetches_nothing() {
    let one = report(vec![run("runs/a", 300, 2, 4, "To be, or\nnot to be")]);
    let page = one.html();
    let text = well_formed(&page);
    assert_nothing_is_fetched(&page);
    for part in [
        "m: 1,000 parameters",
        "blocks.1.moe",
        "experts without a token",
        "moec sample run",
        "matmul",
        "model m { .. }",
    ] {
        assert!(text.contains(part), "{part}");
    }
    assert!(page.contains("<dt>write text</dt><dd><pre>moec sample run</pre></dd>"));
    assert!(page.contains("title=\"0: 0.75, 1: 0.25\">T</b>"), "hovering needs no script");
    assert!(
        page.contains("default-src 'none'")
            && page.contains("lang=\"en\"")
            && page.contains("prefers-color-scheme: dark")
    );
    assert_eq!(one.html(), page, "the same report gives the same bytes");
}

#[test]
fn empty_runs_have_a_page() {
    let page = report(vec![RunReport { model: "m".into(), ..RunReport::default() }]).html();
    let text = well_formed(&page);
    assert!(text.contains("No step has been reported yet.") && text.contains("the run has no router."), "{text}");
    // One step, one evaluation, one expert, one character.
    let page = report(vec![run("a", 100, 1, 1, "x")]).html();
    well_formed(&page);
    assert!(!page.contains("NaN") && !page.contains("inf "));
    let diverged = Evaluation {
        step: 1,
        train_loss_nats: f64::NAN,
        validation_loss_nats: Some(f64::INFINITY),
        active_parameters: None,
        layers: vec![LayerBalance { load_rows: Vec::new(), ..layer("moe", 2, 1) }],
    };
    let page = report(vec![RunReport { metrics: vec![Metric::Evaluation(diverged)], ..run("a", 0, 1, 2, "x") }]).html();
    well_formed(&page);
}

#[test]
fn nothing_of_a_user_is_read_as_html() {
    let hostile = || HOSTILE.to_string();
    let line = SpecLine { file: hostile(), number: 1, text: hostile() };
    let layers = vec![hostile()];
    let diagnosis = Diagnosis::of(Fault::Idle, layers, &hostile(), &format!("`{HOSTILE}` {HOSTILE}"));
    let mut run = run(HOSTILE, 200, 2, 4, HOSTILE);
    for metric in &mut run.metrics {
        if let Metric::Evaluation(evaluation) = metric {
            evaluation.layers[0].path = hostile();
            evaluation.layers[0].auxiliary = BTreeMap::from([(hostile(), 1.0)]);
        }
    }
    if let Routes::Of(text) = &mut run.routes {
        (text.source, text.layers[0].path, text.layers[0].strategy) = (hostile(), hostile(), hostile());
    }
    let run = RunReport {
        model: hostile(),
        identity: hostile(),
        summary: hostile(),
        spec: hostile(),
        imports: vec![(hostile(), hostile())],
        set: vec![hostile()],
        warnings: vec![WarningText { rendered: hostile(), explanation: hostile() }],
        diagnoses: vec![Finding { diagnosis, line: Some(line) }],
        missing: None,
        looked_for: vec!["no divergence", "no idle or crowded experts"],
        facts: vec![(hostile(), hostile())],
        kernels: vec![KernelTime { phase: hostile(), kernel: hostile(), launches: 1, ms: 1.0 }],
        sample: Some((hostile(), hostile())),
        commands: vec![CommandText { what: hostile(), line: hostile() }],
        ..run
    };
    let other = RunReport { routes: Routes::Unknown(hostile()), identity: "other".into(), ..run.clone() };
    let page = report(vec![run, other]).html();
    well_formed(&page);
    let scripts = page.matches("<script").count();
    assert_eq!((scripts, page.matches("<!--").count()), (1, 1), "only those of the page itself");
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;"));
}

#[test]
fn runs_that_differ_only_in_their_seed_share_a_curve() {
    let seeds: Vec<RunReport> =
        (1..=3).map(|seed| RunReport { seed, ..run(&format!("s{seed}"), 300, 1, 4, "ab") }).collect();
    let other = RunReport { identity: "another".into(), ..run("other", 300, 1, 4, "ab") };
    let report = report([seeds, vec![other]].concat());
    assert_eq!(report.groups(), [vec![0, 1, 2], vec![3]]);
    assert_eq!((report.letter(2), report.letter(3)), ("A".to_string(), "B".to_string()));
    assert_eq!([letter(25), letter(26), letter(53)], ["Z", "A1", "B2"]);
    let page = report.html();
    well_formed(&page);
    assert_eq!(page.matches("class=\"band ").count(), 1);
    assert!(page.contains("mean of 3 seeds"));
}

#[test]
fn a_long_training_of_a_large_model_has_a_small_page() {
    let text = "It was the best of times, it was the worst of times; ".repeat(40);
    for (layers, experts) in [(8, 8), (16, 64), (48, 128)] {
        let runs =
            ["a", "b"].map(|path| RunReport { identity: path.into(), ..run(path, 5000, layers, experts, &text) });
        let page = report(runs.to_vec()).html();
        well_formed(&page);
        assert!(page.len() < 3_000_000, "{layers} layers of {experts} experts: {} bytes", page.len());
    }
}

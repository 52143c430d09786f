//! Keys and values that are kept: which models can, why the others cannot, and that one token at a time gives what the
//! whole window gives.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::path::Path;

use moec_ir::{Data, Graph, Op, Precision, Stage, Tensor, evaluate, random, verify};
use moec_model::{
    Cache, CheckOptions, Form, InitScheme, LowerError, LowerOptions, Mode, Model, NoisePolicy, Registry, check,
    decoding, library, lower,
};
use moec_syntax::{SourceFile, parse};

const VOCAB: usize = 7;

fn model(name: &str, text: String, overrides: &[&str]) -> Model {
    let source = library::imported_into(SourceFile::new(name, text)).with_overrides(overrides);
    let checked = check(&source, &parse(&source).unwrap(), &Registry::with_builtins(), &CheckOptions::default());
    let messages: String = checked.diagnostics.iter().map(|d| d.render(&source, false)).collect();
    checked.model.unwrap_or_else(|| panic!("{messages}"))
}

/// Every spec, small.
fn specs() -> Vec<(String, Model)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../specs");
    let files = |folder: &Path| -> Vec<_> {
        let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
        entries.filter(|p| p.extension().is_some_and(|e| e == "moe")).collect()
    };
    let mut paths = [files(&folder), files(&folder.join("routers"))].concat();
    paths.sort();
    let read = |path: &Path| {
        let name = path.file_stem().unwrap().to_string_lossy().to_string();
        let text = std::fs::read_to_string(path).unwrap();
        let depth: &[&str] = if text.contains("let depth") { &["depth=2"] } else { &[] };
        let small = [&["width=8", "context=6"], depth].concat();
        // A width of 8 does not split into 16 heads.
        (name.clone(), model(&name, text, &small))
    };
    paths.iter().map(|path| read(path)).collect()
}

fn options(form: Form, batch: usize) -> LowerOptions {
    LowerOptions {
        mode: Mode::Evaluate,
        batch,
        vocab: VOCAB,
        loss: false,
        noise: NoisePolicy::Generated,
        init: InitScheme::KaimingNormal,
        precision: Precision::F32,
        routes: false,
        form,
    }
}

fn graph(model: &Model, form: Form, batch: usize) -> Graph {
    let graph = lower(model, &options(form, batch)).unwrap().graph;
    verify(&graph, Stage::Forward).unwrap();
    graph
}

/// Numbers for everything that persists, by name, and no keys or values.
fn persistent(graphs: &[&Graph]) -> BTreeMap<String, Tensor> {
    let mut values = BTreeMap::new();
    for graph in graphs {
        for id in graph.ids() {
            let (Op::Parameter { name, ty } | Op::State { name, ty, .. }) = &graph.node(id).op else { continue };
            let seed = name.bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
            let keys = random::keys(random::state(seed, 1), 5);
            let number = |i: usize| match ty.dtype {
                // Nothing is read from a cache that was not written: it starts as what would show.
                _ if name.starts_with("cache.") => f64::NAN,
                moec_ir::DType::F32 => 0.5 * random::normal_at(keys, i as u32),
                moec_ir::DType::I32 => f64::from(random::bits(keys, i as u32) % 3),
            };
            let numbers: Vec<f64> = (0..ty.elements()).map(number).collect();
            let data = match ty.dtype {
                moec_ir::DType::F32 => Data::F64(numbers),
                moec_ir::DType::I32 => Data::I32(numbers.iter().map(|&x| x as i32).collect()),
            };
            values.insert(name.clone(), Tensor::new(ty.shape.clone(), data).unwrap());
        }
    }
    values
}

/// The outputs and updates of a graph, which takes what it names.
fn run(graph: &Graph, values: &BTreeMap<String, Tensor>, given: &[(&str, Vec<i32>)]) -> moec_ir::Evaluation {
    let mut values = values.clone();
    values.extend(given.iter().map(|(name, v)| (name.to_string(), Tensor::ints(v.as_slice()))));
    let named = |id| match &graph.node(id).op {
        Op::Input { name, .. } | Op::Parameter { name, .. } | Op::State { name, .. } => Some(name.clone()),
        _ => None,
    };
    let names: Vec<String> = graph.ids().filter_map(named).collect();
    values.retain(|name, _| names.contains(name));
    evaluate(graph, &values).unwrap()
}

/// Two sequences of so many tokens.
fn sequences(length: usize) -> [Vec<i32>; 2] {
    [3, 5].map(|by| (0..length as i32).map(|i| (i * i * by + i + by) % VOCAB as i32).collect())
}

/// The scores after every token of both sequences, `[2][length][V]`, one token at a time.
fn decoded(graph: &Graph, values: &BTreeMap<String, Tensor>, sequences: &[Vec<i32>; 2]) -> [Vec<Vec<f64>>; 2] {
    let mut values = values.clone();
    let mut scores = [Vec::new(), Vec::new()];
    for at in 0..sequences[0].len() {
        let column = |place: usize| sequences.iter().map(|s| s[place]).collect::<Vec<_>>();
        let previous = if at == 0 { vec![-1; 2] } else { column(at - 1) };
        let given = [("tokens", column(at)), ("positions", vec![at as i32; 2]), ("previous", previous)];
        let result = run(graph, &values, &given);
        values.extend(result.updates);
        for (scores, row) in scores.iter_mut().zip(result.outputs["logits"].to_f64().chunks(VOCAB)) {
            scores.push(row.to_vec());
        }
    }
    scores
}

fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    let scale = expected.iter().fold(1.0f64, |n, x| n.max(x.abs()));
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() <= 1e-9 * scale, "{what}: {found:?} and {expected:?}");
    }
}

#[test]
fn kept_keys_and_values_give_the_scores_of_the_whole_window() {
    let mut compared = Vec::new();
    for (name, model) in specs() {
        if let Cache::Never(_) = decoding(&model).cache {
            continue;
        }
        let time = model.context;
        let (whole, newest) = (graph(&model, Form::Sequences, 2), graph(&model, Form::Decode, 2));
        let values = persistent(&[&whole, &newest]);
        let sequences = sequences(time);
        let expected = run(&whole, &values, &[("tokens", sequences.concat())]).outputs["logits"].to_f64();
        let found = decoded(&newest, &values, &sequences);
        assert_close(&name, &found.concat().concat(), &expected);
        compared.push(name);
    }
    assert!(compared.len() >= 14, "{compared:?}");
}

#[test]
fn one_row_of_a_window_is_that_row_of_all() {
    for (name, model) in specs() {
        let time = model.context;
        let (whole, next) = (graph(&model, Form::Sequences, 2), graph(&model, Form::Next, 2));
        let values = persistent(&[&whole, &next]);
        let tokens = sequences(time).concat();
        let rng = ("rng", vec![1, 2, 3, 4]);
        let all = run(&whole, &values, &[("tokens", tokens.clone()), rng.clone()]).outputs["logits"].to_f64();
        let rows = [time - 1, time + time / 2];
        let given = [("tokens", tokens), ("rows", rows.map(|r| r as i32).to_vec()), rng];
        let found = run(&next, &values, &given).outputs["logits"].to_f64();
        let expected: Vec<f64> = rows.iter().flat_map(|r| all[r * VOCAB..(r + 1) * VOCAB].to_vec()).collect();
        assert_close(&name, &found, &expected);
    }
}

#[test]
fn the_last_block_works_on_one_row_of_each_window() {
    let (_, model) = specs().into_iter().find(|(name, _)| name == "noisy_top2").unwrap();
    let rows = |form| {
        let graph = graph(&model, form, 2);
        let id = graph.ids().rev().find(|id| matches!(graph.node(*id).op, Op::GroupedMatMul { .. })).unwrap();
        graph.node(id).results[0].shape[0]
    };
    // Two experts for each of two windows of 6 tokens, or for one token of each.
    assert_eq!([Form::Sequences, Form::Next, Form::Decode].map(rows), [24, 4, 4]);
}

fn with_route(embed: &str, layers: &str) -> Model {
    let text = format!(
        "model m {{ context 4  vocab {VOCAB}  embed(width: 8, positions: {embed})
           repeat 2 {{ residual {{ layer_norm  attention(heads: 2) }} residual {{ layer_norm  {layers} }} }}
           unembed }}"
    );
    model("m.moe", text, &[])
}

const DENSE: &str = "mlp(hidden: 16)";

#[test]
fn what_can_be_kept_follows_from_what_a_model_looks_at() {
    let cache = |embed: &str, layers: &str| match decoding(&with_route(embed, layers)).cache {
        Cache::Sliding => "sliding".to_string(),
        Cache::UntilFull => "until full".to_string(),
        Cache::Never(obstacle) => obstacle.to_string(),
    };
    assert_eq!(cache("learned", DENSE), "until full");
    assert_eq!(cache("rotary", DENSE), "sliding");
    assert_eq!(cache("none", DENSE), "sliding");
    let moe = |arguments: &str| format!("moe(experts: 4 * mlp(hidden: 8), {arguments})");
    for (arguments, expected) in [
        ("route: softmax_top_k(k: 2)", "sliding"),
        ("route: noisy_top_k(k: 2)", "sliding"),
        ("route: hash(by: bigram)", "sliding"),
        ("route: base", "sliding"),
        ("route: hash(by: position)", "until full"),
        (
            "route: noisy_top_k(k: 2, noise_at_evaluation: true)",
            "the router `noisy_top_k` draws noise in evaluation too, anew for every token of the window",
        ),
        (
            "route: expert_choice(capacity_factor: 2.0), allow: lookahead",
            "the router `expert_choice` compares each token with the whole batch",
        ),
        ("route: soft_moe, allow: lookahead", "the router `soft_moe` compares each token with the whole sequence"),
        (
            "route: softmax_top_k(k: 2), capacity: capacity(factor: 1.0)",
            "experts have a capacity in evaluation, which counts the tokens of the window",
        ),
        ("route: softmax_top_k(k: 2), capacity: capacity(factor: 1.0, evaluation_factor: 0)", "sliding"),
    ] {
        assert_eq!(cache("rotary", &moe(arguments)), expected, "{arguments}");
    }
    // A router of the file that makes use of the number of tokens, which is not the same in a window and for one token.
    let text = format!(
        "router warm(k: int) {{
           let scores = linear(x, experts)
           let top, chosen = top_k(scores / log(tokens), k)
           return token_choice(experts: chosen, weights: softmax(top))
         }}
         model m {{ context 4  vocab {VOCAB}  embed(width: 8, positions: rotary)
           residual {{ layer_norm  moe(experts: 4 * mlp(hidden: 8), route: warm(k: 2)) }}
           unembed }}"
    );
    let counting = decoding(&model("m.moe", text, &[]));
    let Cache::Never(obstacle) = &counting.cache else { panic!("{counting:?}") };
    assert_eq!(obstacle.to_string(), "the router `warm` makes use of the number of tokens");
    assert!(!counting.together, "{counting:?}");
    let depths = |inner: &str| format!("mlp(hidden: 8) }} mixture_of_depths {{ residual {{ layer_norm {inner} }}");
    assert_eq!(cache("rotary", &depths(DENSE)), "sliding");
    assert_eq!(
        cache("rotary", &depths("attention(heads: 2)")),
        "attention inside `mixture_of_depths` sees only the tokens that go through"
    );
    let model = with_route("rotary", &moe("route: soft_moe, allow: lookahead"));
    let error = lower(&model, &options(Form::Decode, 1)).unwrap_err();
    assert!(matches!(error, LowerError::NotCached(_)), "{error}");
    assert_eq!(
        error.to_string(),
        "no keys and values can be kept: the router `soft_moe` compares each token with the whole sequence"
    );
}

#[test]
fn texts_are_written_together_where_they_share_nothing() {
    let moe = |arguments: &str| format!("moe(experts: 4 * mlp(hidden: 8), {arguments})");
    for (arguments, together) in [
        ("route: softmax_top_k(k: 2)", true),
        ("route: soft_moe, allow: lookahead", true),
        ("route: noisy_top_k(k: 2, noise_at_evaluation: true)", false),
        ("route: expert_choice(capacity_factor: 2.0), allow: lookahead", false),
        ("route: softmax_top_k(k: 2), capacity: capacity(factor: 1.0)", false),
    ] {
        assert_eq!(decoding(&with_route("learned", &moe(arguments))).together, together, "{arguments}");
    }
}

#[test]
fn rotary_decoding_is_right_for_the_first_window_and_slides_afterwards() {
    // One layer sees no further than its own keys, so there the last T keys are the window, wherever it begins.
    let text = format!(
        "model m {{ context 4  vocab {VOCAB}  embed(width: 8, positions: rotary)
           residual {{ attention(heads: 2) }} residual {{ {DENSE} }} unembed }}"
    );
    let model = model("m.moe", text, &[]);
    let (time, length) = (model.context, 11);
    let (next, newest) = (graph(&model, Form::Next, 2), graph(&model, Form::Decode, 2));
    let values = persistent(&[&next, &newest]);
    let sequences = sequences(length);
    let found = decoded(&newest, &values, &sequences);
    for at in 0..length {
        let start = (at + 1).saturating_sub(time);
        let window = |s: &Vec<i32>| {
            let mut window = s[start..=at].to_vec();
            window.resize(time, 0);
            window
        };
        let tokens: Vec<i32> = sequences.iter().flat_map(window).collect();
        let row = (at - start) as i32;
        let given = [("tokens", tokens), ("rows", vec![row, row + time as i32])];
        let expected = run(&next, &values, &given).outputs["logits"].to_f64();
        assert_close(&format!("token {at}"), &[found[0][at].clone(), found[1][at].clone()].concat(), &expected);
    }
}

//! Every spec in `specs/routers`, made small: whether later tokens reach earlier ones is as declared, and a training step
//! on the kernels is the one of the interpreter.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use moec::pipeline::{self, Checked, CompileOptions, Compiled, Function};
use moec_ir::{DType, Graph, Op, Tensor, evaluate, random};
use moec_kernels::{CubeBackend, Device};
use moec_model::{Causality, NoisePolicy, Registry, TrainingText, library};
use moec_plan::{Backend, Interpreter};
use moec_syntax::SourceFile;
use moec_tests::compare::assert_close;
use std::collections::BTreeMap;
use std::path::Path;

const VOCAB: usize = 11;

/// The specs with one narrow block, or two where the first is for everyone.
fn small_specs(dropout: f64) -> Vec<(String, Checked)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../specs/routers");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "moe"));
    paths.sort();
    assert!(paths.len() >= 19, "one for every strategy");
    let overrides = ["width=16", "depth=1", "context=8", "train.batch=3"];
    let read = |path: &Path| {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path).unwrap().replace("dropout: 0.1", &format!("dropout: {dropout:?}"));
        let text = match name.as_str() {
            "softmax_top_k" => text.replace("attention(heads: 8,", "attention(heads: 8, kv_heads: 2,"),
            _ => text,
        };
        // So tight that few tokens are enough to fill an expert.
        let text = text.replace("capacity(factor: 1.25", "capacity(minimum: 1, factor: 0.5");
        let text = text.replace("capacity: 0.125", "capacity: 0.5");
        let source = library::imported_into(SourceFile::new(&name, text)).with_overrides(&overrides);
        let checked = pipeline::check(&source, &Registry::with_builtins(), None)
            .unwrap_or_else(|d| panic!("{}", d.iter().map(|d| d.render(&source, false)).collect::<String>()));
        assert!(checked.warnings.is_empty(), "{name}");
        (name, checked)
    };
    paths.iter().map(|path| read(path)).collect()
}

/// First values of everything that persists.
fn initial(compiled: &Compiled) -> BTreeMap<String, Tensor> {
    let tokens: Vec<i32> = (0..500).map(|i| (i * i) % VOCAB as i32).collect();
    let embeddings = |_: &str| Err("there is no trained model".to_string());
    let text = TrainingText { tokens: &tokens, vocab: VOCAB, embeddings: &embeddings };
    let lowered = &compiled.lowered;
    let states: Vec<_> = lowered.states.iter().map(|(n, s)| (n.clone(), s.resolve(&text).unwrap())).collect();
    moec_runtime::initial_tensors(5, &compiled.program.states, &lowered.parameters, &states)
}

/// Logits of one sequence in float64, `[T, V]`.
fn logits(graph: &Graph, values: &BTreeMap<String, Tensor>, tokens: &[i32]) -> Vec<Vec<f64>> {
    let mut values = values.clone();
    values.insert("tokens".into(), Tensor::ints(tokens.to_vec()));
    values.insert("rng".into(), Tensor::ints(random::state(3, 7)));
    // A graph takes what it names.
    let named = |id| match &graph.node(id).op {
        Op::Input { name, .. } | Op::Parameter { name, .. } | Op::State { name, .. } => Some(name.clone()),
        _ => None,
    };
    let names: Vec<String> = graph.ids().filter_map(named).collect();
    values.retain(|name, _| names.contains(name));
    let outputs = evaluate(graph, &values).unwrap().outputs;
    outputs["logits"].to_f64().chunks(VOCAB).map(<[f64]>::to_vec).collect()
}

/// Whether a change of later tokens moves earlier scores.
fn looks_ahead(graph: &Graph, values: &BTreeMap<String, Tensor>) -> bool {
    let time = 8;
    for keep in [1, 3, 5] {
        for other in 0..6 {
            let tokens: Vec<i32> = (0..time).map(|t| (t * 5 + 2) % VOCAB as i32).collect();
            let later = |(t, &token): (usize, &i32)| if t < keep { token } else { (token + 1 + other) % VOCAB as i32 };
            let changed: Vec<i32> = tokens.iter().enumerate().map(later).collect();
            let (a, b) = (logits(graph, values, &tokens), logits(graph, values, &changed));
            if a[..keep] != b[..keep] {
                return true;
            }
        }
    }
    false
}

#[test]
fn later_tokens_reach_earlier_ones_as_declared() {
    let mut ahead = 0;
    // Without dropout: its mask in an expert goes by row, and a row's number depends on who else is there.
    for (name, checked) in small_specs(0.0) {
        let (model, recipe) = (&checked.model, &checked.recipe);
        let values = initial(&pipeline::compile(model, recipe, VOCAB, &CompileOptions::default()).unwrap());
        let sampling = pipeline::lower(model, recipe, VOCAB, Function::Logits, NoisePolicy::Generated).unwrap();
        assert_eq!(looks_ahead(&sampling.graph, &values), model.causality == Causality::LooksAhead, "{name}");
        // A training step of one sequence: noise is the same whatever the tokens are.
        let mut one = recipe.clone();
        one.batch = 1;
        let training = pipeline::lower(model, &one, VOCAB, Function::TrainStep, NoisePolicy::Generated).unwrap();
        let mut values = values;
        values.insert("targets".into(), Tensor::ints([1; 8]));
        let declared = model.causality >= Causality::SamplesDifferently;
        assert_eq!(looks_ahead(&training.graph, &values), declared, "{name} in training");
        ahead += usize::from(declared);
    }
    assert!(ahead >= 5, "only {ahead} of the specs look ahead in training");
}

#[test]
fn a_training_step_is_the_same_on_the_kernels() {
    let cpu = CubeBackend::open(Device::Cpu).unwrap();
    for (name, checked) in small_specs(0.1) {
        let compiled = pipeline::compile(&checked.model, &checked.recipe, VOCAB, &CompileOptions::default()).unwrap();
        let values = initial(&compiled);
        let tokens: Vec<i32> = (0..24).map(|t| (t * 7 + t / 8) % VOCAB as i32).collect();
        let inputs = BTreeMap::from([
            ("tokens", Tensor::ints(tokens.clone())),
            ("targets", Tensor::ints(tokens.iter().map(|t| (t + 3) % VOCAB as i32).collect::<Vec<_>>())),
            ("rng", Tensor::ints(random::state(1, 1))),
            ("hyper", Tensor::floats([1e-3, 0.1, 1e-3])),
        ]);
        let after = |backend: &dyn Backend| {
            let mut session = backend.prepare(&compiled.program).unwrap();
            for (name, tensor) in &values {
                session.write_state(name, tensor).unwrap();
            }
            let ports = &compiled.program.plan("train_step").unwrap().inputs;
            let given: Vec<_> = ports.iter().map(|p| (p.name.as_str(), &inputs[p.name.as_str()])).collect();
            session.run("train_step", &given).unwrap();
            let loss = session.output("train_step", "objective").unwrap();
            let states = compiled.program.states.iter();
            let states = states.map(|s| (s.name.clone(), session.read_state(&s.name).unwrap())).collect::<Vec<_>>();
            (loss, states)
        };
        let (expected, found) = (after(&Interpreter), after(&cpu));
        assert_close(&format!("{name}: objective"), &found.0, &expected.0, 1e-5);
        for ((state, found), (_, expected)) in found.1.iter().zip(&expected.1) {
            // AdamW's first step divides a gradient by its own size, so what is nearly 0 tells little: the moments do.
            let moment = state.starts_with("adamw.") || found.ty().dtype == DType::I32;
            if moment || !compiled.lowered.parameters.iter().any(|(n, _)| n == state) {
                assert_close(&format!("{name}: {state}"), found, expected, 2e-4);
            }
        }
    }
}

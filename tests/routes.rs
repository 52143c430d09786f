//! Frozen routes of whole models: recorded on a backend and given back, they give the same bits there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use moec::pipeline;
use moec_ir::{Graph, Output, Tensor, random};
use moec_kernels::{CubeBackend, Device};
use moec_model::{Form, LowerOptions, Mode, NoisePolicy, Registry};
use moec_plan::{Backend, Interpreter, freeze_routes, plan, record_routes};
use moec_syntax::SourceFile;
use moec_tests::run::run;
use std::collections::BTreeMap;

const VOCAB: usize = 9;
const TOKENS: usize = 3 * 7;

/// Noise, capacity, a shared expert and every balance loss.
const SPEC: &str = "model m {
  context 7  vocab 9
  embed(width: 8, positions: learned)
  repeat 2 {
    residual { layer_norm  attention(heads: 2, dropout: 0.1) }
    residual {
      layer_norm
      moe(experts: 5 * mlp(hidden: 6), shared: 1 * mlp(hidden: 3), route: noisy_top_k(k: 2),
          balance: [importance, load, switch, z], capacity: capacity(factor: 1.0))
    }
  }
  unembed
}
train { batch 3 }";

fn graph() -> (Graph, BTreeMap<String, Tensor>) {
    let source = SourceFile::new("m.moe", SPEC);
    let checked = pipeline::check(&source, &Registry::with_builtins(), None)
        .unwrap_or_else(|d| panic!("{}", d.iter().map(|d| d.render(&source, false)).collect::<String>()));
    let options = LowerOptions {
        mode: Mode::Train,
        batch: checked.recipe.batch,
        vocab: VOCAB,
        loss: true,
        noise: NoisePolicy::Generated,
        init: checked.recipe.init,
        precision: checked.recipe.precision,
        routes: true,
        form: Form::Sequences,
    };
    let lowered = moec_model::lower(&checked.model, &options).unwrap();
    let program = plan(&[("forward".to_string(), &lowered.graph)]).unwrap();
    let mut values = moec_runtime::initial_tensors(5, &program.states, &lowered.parameters, &[]);
    values.insert("rng".into(), Tensor::ints(random::state(5, 1)));
    values.extend(text(0));
    (lowered.graph, values)
}

fn text(first: i32) -> [(String, Tensor); 2] {
    let ids =
        |by: i32| Tensor::ints((0..TOKENS as i32).map(|i| (first + i * i + by) % VOCAB as i32).collect::<Vec<_>>());
    [("tokens".into(), ids(0)), ("targets".into(), ids(1))]
}

fn replay(backend: &dyn Backend) {
    let (graph, mut values) = graph();
    let recorded = run(backend, &record_routes(&graph), &values);
    let routes = recorded.iter().filter(|(name, _)| matches!(Output::of_name(name), Some(Output::Route(_))));
    values.extend(routes.map(|(n, t)| (n.clone(), t.clone())));
    let dropped = recorded["dropped.blocks.0.moe"].item().unwrap();
    assert!(dropped > 0.0, "the test wants dropped choices");
    let frozen = freeze_routes(&graph).unwrap();
    let again = run(backend, &frozen, &values);
    for (name, value) in &again {
        assert_eq!(value, &recorded[name], "{name} on {}", backend.name());
    }
    assert_eq!(again.len(), graph.outputs().len());

    // Another text under the same routes loads the experts alike, and gives another result.
    values.extend(text(4));
    let other = run(backend, &frozen, &values);
    for path in ["blocks.0.moe", "blocks.1.moe"] {
        assert_eq!(other[&format!("load.{path}")], again[&format!("load.{path}")]);
    }
    assert_ne!(other["loss"], again["loss"]);
}

#[test]
fn recorded_routes_replay_to_the_same_bits_on_the_interpreter() {
    replay(&Interpreter);
}

#[test]
fn recorded_routes_replay_to_the_same_bits_on_the_cpu() {
    replay(&CubeBackend::open(Device::Cpu).unwrap());
}

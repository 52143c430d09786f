//! A whole model with products of bfloat16 numbers: its training step on kernels against the evaluator.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use moec::pipeline;
use moec_ir::{DType, Data, Function, Graph, Op, Output, Precision, Tensor, evaluate, random};
use moec_kernels::{CubeBackend, Device};
use moec_model::{NoisePolicy, Registry};
use moec_plan::{Wrt, differentiate};
use moec_syntax::SourceFile;
use moec_tests::run::run;
use std::collections::BTreeMap;

/// Odd widths, so that the last pair of a sum is half of one; experts and attention.
const MODEL: &str = "
model m {
  context 9
  vocab characters
  embed(width: 21, positions: learned)
  residual { layer_norm  attention(heads: 3, dropout: 0) }
  residual { layer_norm  moe(experts: 4 * mlp(hidden: 35, activation: gelu), route: softmax_top_k(k: 2)) }
  layer_norm
  unembed
}
train { batch 5 }
";

/// The forward and backward pass of a training step.
fn step(precision: Precision) -> Graph {
    let source = SourceFile::new("m.moe", MODEL).with_overrides(&[format!("train.precision={}", precision.name())]);
    let checked = pipeline::check(&source, &Registry::with_builtins(), None).unwrap();
    let (model, recipe) = (&checked.model, &checked.recipe);
    let lowered = pipeline::lower(model, recipe, 13, Function::TrainStep, NoisePolicy::Generated).unwrap();
    differentiate(&lowered.graph, Output::Objective, &Wrt::Parameters).unwrap()
}

/// Tokens, and numbers of a usual size that are exact in float32.
fn values(graph: &Graph) -> BTreeMap<String, Tensor> {
    let mut values = BTreeMap::new();
    for id in graph.ids() {
        let (Op::Input { name, ty } | Op::Parameter { name, ty } | Op::State { name, ty, .. }) = &graph.node(id).op
        else {
            continue;
        };
        let keys = random::keys(random::state(3, 0), id.index() as u32);
        let places = 0..ty.elements() as u32;
        let data = match ty.dtype {
            DType::F32 => Data::F32(places.map(|i| (0.3 * random::normal_at(keys, i)) as f32).collect()),
            DType::I32 => Data::I32(places.map(|i| (random::bits(keys, i) % 13) as i32).collect()),
        };
        values.insert(name.clone(), Tensor::new(ty.shape.clone(), data).unwrap());
    }
    values
}

/// Length of the difference of two gradients, in parts of the length of the second.
fn distance(found: &BTreeMap<String, Tensor>, expected: &BTreeMap<String, Tensor>) -> f64 {
    let (mut off, mut length) = (0.0, 0.0);
    for (name, expected) in expected.iter().filter(|(name, _)| name.starts_with("grad.")) {
        for (x, y) in found[name].to_f64().into_iter().zip(expected.to_f64()) {
            off += (x - y) * (x - y);
            length += y * y;
        }
    }
    (off / length).sqrt()
}

/// Products of a graph that have this precision.
fn products(graph: &Graph, wanted: Precision) -> usize {
    let precision = |op: &Op| match op {
        Op::MatMul { precision, .. }
        | Op::GroupedMatMul { precision, .. }
        | Op::GroupedMatMulWeightGrad { precision } => Some(*precision),
        _ => None,
    };
    graph.ids().filter(|id| precision(&graph.node(*id).op) == Some(wanted)).count()
}

/// A number that lies between two bfloat16 numbers may be rounded to the one on a device and to the other in the evaluator,
/// which has more digits: it is then off by up to 2^-7 of itself. Few do, so that both are much nearer to each other than to
/// the gradient without rounding.
#[test]
fn a_training_step_of_bfloat16_products_agrees_with_the_evaluator() {
    let (rounded, exact) = (step(Precision::Bf16), step(Precision::F32));
    // The router's product and its two gradients.
    assert_eq!((products(&rounded, Precision::F32), products(&exact, Precision::Bf16)), (3, 0));
    let values = values(&rounded);
    let evaluated = |graph| evaluate(graph, &values).unwrap().outputs;
    let (expected, unrounded) = (evaluated(&rounded), evaluated(&exact));
    let rounding = distance(&unrounded, &expected);
    assert!((1e-3..5e-2).contains(&rounding), "rounding moves the gradient by {rounding}");
    let agrees = |found: &BTreeMap<String, Tensor>| {
        let off = distance(found, &expected);
        assert!(off < rounding / 4.0, "{off} off, where rounding makes {rounding}");
        let [found, expected] = [found, &expected].map(|outputs| outputs["loss"].item().unwrap());
        assert!((found - expected).abs() < 1e-3, "a loss of {found} and not {expected}");
    };
    let found = [1, 3].map(|threads| run(&CubeBackend::cpu_with_threads(threads).unwrap(), &rounded, &values));
    found.iter().for_each(agrees);
    assert!(found[0] == found[1], "the number of threads shows");
    if moec_kernels::wgpu_available() {
        agrees(&run(&CubeBackend::open(Device::Wgpu).unwrap(), &rounded, &values));
    }
}

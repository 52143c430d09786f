//! Every differentiable operation against central differences in float64.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use moec_ir::{Builder, Data, Gradient, Graph, Op, Tensor, TensorType, declarations, evaluate, random};
use moec_plan::{OptimizeOptions, Wrt, differentiate, optimize};
use moec_tests::cases::{self, Case};
use std::collections::{BTreeMap, BTreeSet};

/// PyTorch's gradcheck tolerances.
const EPSILON: f64 = 1e-6;
const ATOL: f64 = 1e-5;
const RTOL: f64 = 1e-3;
/// Elements checked of each tensor; a large one is sampled.
const SAMPLES: usize = 24;

/// Adds `objective = sum of every float output times a fixed random cotangent`.
fn with_objective(case: &Case) -> Graph {
    let outputs = case.graph.outputs().to_vec();
    let mut b = Builder::extend(case.graph.clone());
    let mut terms = Vec::new();
    for (i, (_, y)) in outputs.into_iter().enumerate() {
        let ty = b.ty(y).clone();
        // The log-sum-exp of attention is kept for the backward pass only and has no gradient of its own.
        let kept_only = matches!(b.graph().node(y.node).op, Op::Attention(_)) && y.slot == 1;
        if ty != TensorType::f32(ty.shape.clone()) || kept_only {
            continue;
        }
        let rng = b.input("cotangent.rng", TensorType::i32([4]));
        let cotangent = b.op(Op::RandomNormal { key: 1000 + i as u32, shape: ty.shape }, &[rng]);
        let product = b.mul(y, cotangent);
        terms.push(b.sum_all(product));
    }
    let first = terms[0];
    let objective = terms[1..].iter().fold(first, |sum, &t| b.add(sum, t));
    b.output("objective", objective);
    b.finish().unwrap()
}

fn objective(graph: &Graph, values: &BTreeMap<String, Tensor>) -> f64 {
    evaluate(graph, values).unwrap().outputs["objective"].item().unwrap()
}

fn nudged(values: &BTreeMap<String, Tensor>, name: &str, element: usize, by: f64) -> BTreeMap<String, Tensor> {
    let mut values = values.clone();
    let tensor = &values[name];
    let mut elements = tensor.to_f64();
    elements[element] += by;
    let tensor = Tensor::new(tensor.shape().to_vec(), Data::F64(elements)).unwrap();
    values.insert(name.into(), tensor);
    values
}

fn check(case: &Case) {
    let graph = with_objective(case);
    let mut values = case.values.clone();
    values.insert("cotangent.rng".into(), Tensor::ints(random::state(3, 1)));
    let derived = differentiate(&graph, "objective", &Wrt::Nodes(case.differentiable.clone()))
        .unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let found = evaluate(&derived, &values).unwrap_or_else(|e| panic!("{}: {e}", case.name)).outputs;
    for name in &case.differentiable {
        let gradient = found[&format!("grad.{name}")].to_f64();
        let count = gradient.len();
        for s in 0..count.min(SAMPLES) {
            let element = if count <= SAMPLES { s } else { (s * 7919 + 13) % count };
            let above = objective(&graph, &nudged(&values, name, element, EPSILON));
            let below = objective(&graph, &nudged(&values, name, element, -EPSILON));
            let expected = (above - below) / (2.0 * EPSILON);
            assert!(
                (gradient[element] - expected).abs() <= ATOL + RTOL * expected.abs(),
                "{}: d/d{name}[{element}] is {}, central differences give {expected}",
                case.name,
                gradient[element]
            );
        }
    }
}

/// Whether the gradient of an operation is what differences give: it has one, and that is not 0 by decree.
fn can_be_checked(op: &Op) -> bool {
    op.declaration().gradient != Gradient::None && *op != Op::StopGradient
}

#[test]
fn every_operation_agrees_with_central_differences() {
    let mut checked = BTreeSet::new();
    for case in cases::all() {
        let ops: Vec<&Op> = case.graph.ids().map(|id| &case.graph.node(id).op).collect();
        if !case.differentiable.is_empty() && ops.iter().all(|op| can_be_checked(op)) {
            check(&case);
            checked.extend(ops.iter().map(|op| op.mnemonic()));
        }
    }
    for declared in declarations().filter(|declared| declared.gradient == Gradient::Rule) {
        assert!(checked.contains(declared.mnemonic), "no case checks the gradient of `{}`", declared.mnemonic);
    }
}

#[test]
fn a_stopped_gradient_is_that_of_a_constant() {
    let mut b = Builder::new();
    let x = b.input("x", TensorType::f32([3]));
    let stopped = b.stop_gradient(x);
    let tanh = b.unary(moec_ir::Unary::Tanh, stopped);
    let product = b.mul(x, tanh);
    let sum = b.sum_all(product);
    b.output("objective", sum);
    let alone = b.sum_all(tanh);
    b.output("alone", alone);
    let graph = b.finish().unwrap();
    let values = BTreeMap::from([("x".to_string(), Tensor::floats(vec![0.5, -2.0, 3.0]))]);
    let gradient = |objective: &str| {
        let derived = differentiate(&graph, objective, &Wrt::Nodes(vec!["x".into()])).unwrap();
        let (optimized, _) = optimize(&derived, &OptimizeOptions::default()).unwrap();
        assert!(optimized.ids().all(|id| optimized.node(id).op != Op::StopGradient));
        let found = evaluate(&derived, &values).unwrap().outputs["grad.x"].to_f64();
        assert_eq!(evaluate(&optimized, &values).unwrap().outputs["grad.x"].to_f64(), found);
        found
    };
    assert_eq!(gradient("objective"), [0.5f64, -2.0, 3.0].map(f64::tanh));
    assert_eq!(gradient("alone"), [0.0; 3]);
}

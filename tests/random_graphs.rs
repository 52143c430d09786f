//! Random graphs, forward and backward, optimised, clustered and planned: the kernels of each kind of device agree with the evaluator.
//!
//! Kernels compute in 32 bits, and a comparison, a rank or a clipped value can come out otherwise where two numbers nearly
//! meet. So each graph is also evaluated with every number rounded to some 24 bits, to a different grid of numbers each time
//! (as in Parker's Monte Carlo arithmetic, 1997). What differs between the grids is not compared where it differs, and what
//! agrees must agree with the device. A grid keeps equal numbers equal, so that ties are compared as well.
//!
//! `MOEC_RANDOM_GRAPHS` is how many graphs a device gets, and `MOEC_RANDOM_GRAPHS_FROM` the seed of the first.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use moec_ir::testing::{Sample, samples};
use moec_ir::{Data, Graph, Op, Precision, Tensor, Value, evaluate_op, text};
use moec_kernels::{CubeBackend, Device};
use moec_plan::{Backend, Wrt, differentiate};
use moec_tests::run::run;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::collections::BTreeMap;

/// Nodes of a graph before it is differentiated, at least: every graph compiles kernels of its own, so that few large ones
/// show more than many small ones.
const NODES: usize = 60;

/// How far a device may be from the evaluator, in parts of a tensor's largest element.
const TOLERANCE: f64 = 2e-4;

/// The random graph of a seed, with its gradient by its float inputs.
fn sample(seed: u64) -> Sample {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    loop {
        let Sample { graph, bindings } = samples().new_tree(&mut runner).unwrap().current();
        if graph.len() >= NODES {
            let graph = differentiate(&graph, "objective", &Wrt::Nodes(vec!["x".into()])).unwrap();
            // What devices are given.
            let narrow = |t: Tensor| match t.as_i32() {
                Some(_) => t,
                None => Tensor::new(t.shape().to_vec(), Data::F32(t.to_f32())).unwrap(),
            };
            let bindings = bindings.into_iter().map(|(name, value)| (name, narrow(value))).collect();
            return Sample { graph, bindings };
        }
    }
}

/// Grids, and how operands that are rounded to bfloat16 are moved on each: every other one up or down.
const GRIDS: [(f64, [f64; 2]); 4] = [(1.0, [0.0, 0.0]), (1.1, [1.0, 1.0]), (1.3, [-1.0, 1.0]), (1.7, [1.0, -1.0])];

/// How far apart, in parts of it, a number that a product rounds to bfloat16 may be on a device and in the evaluator: the
/// grids move it by as much, so that they differ where another rounding would carry it to another bfloat16 number.
const MOVED: f64 = 1e-5;

/// The operands of an operation on a grid: those that it rounds to bfloat16 are moved, by turns up and down.
fn moved(op: &Op, position: usize, operand: &Tensor, by: [f64; 2]) -> Tensor {
    match op {
        Op::MatMul { precision: Precision::Bf16, .. }
        | Op::GroupedMatMul { precision: Precision::Bf16, .. }
        | Op::GroupedMatMulWeightGrad { precision: Precision::Bf16 }
            if position < 2 =>
        {
            let values = operand.to_f64().into_iter().enumerate().map(|(i, x)| x * (1.0 + MOVED * by[i % 2])).collect();
            Tensor::new(operand.shape().to_vec(), Data::F64(values)).unwrap()
        }
        _ => operand.clone(),
    }
}

/// Outputs and updates of a graph, evaluated with every float rounded to multiples of `1 / grid` of a number of 24 bits.
fn evaluate_on_grid(
    graph: &Graph,
    bindings: &BTreeMap<String, Tensor>,
    (grid, by): (f64, [f64; 2]),
) -> BTreeMap<String, Tensor> {
    let round = |t: Tensor| match t.as_i32() {
        Some(_) => t,
        None => {
            let values = t.to_f64().into_iter().map(|x| f64::from((x * grid) as f32) / grid).collect();
            Tensor::new(t.shape().to_vec(), Data::F64(values)).unwrap()
        }
    };
    let mut results: Vec<Vec<Tensor>> = Vec::new();
    for id in graph.ids() {
        let of_node = match &graph.node(id).op {
            Op::Input { name, .. } | Op::Parameter { name, .. } | Op::State { name, .. } => {
                vec![bindings[name].clone()]
            }
            op => {
                let operands = graph.operands(id);
                let operands = operands.iter().map(|v| &results[v.node.index()][usize::from(v.slot)]);
                let operands: Vec<Tensor> = operands.enumerate().map(|(i, x)| moved(op, i, x, by)).collect();
                evaluate_op(op, &operands.iter().collect::<Vec<_>>()).unwrap()
            }
        };
        results.push(of_node.into_iter().map(round).collect());
    }
    let value = |v: &Value| results[v.node.index()][usize::from(v.slot)].clone();
    graph.outputs().iter().chain(graph.updates()).map(|(name, v)| (name.clone(), value(v))).collect()
}

/// Number of elements that were compared, and of those that could not be.
fn compare(backend: &dyn Backend, seed: u64) -> (usize, usize) {
    let Sample { graph, bindings } = sample(seed);
    let grids: Vec<_> = GRIDS.map(|grid| evaluate_on_grid(&graph, &bindings, grid)).into();
    let found = run(backend, &graph, &bindings);
    let (mut compared, mut unstable) = (0, 0);
    for (name, found) in &found {
        let on_grids: Vec<Vec<f64>> = grids.iter().map(|values| values[name].to_f64()).collect();
        let exact = found.as_i32().is_some();
        let largest = on_grids[0].iter().fold(1e-6f64, |m, x| m.max(x.abs()));
        for (i, found) in found.to_f64().into_iter().enumerate() {
            let (low, high) = on_grids.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v[i]), h.max(v[i])));
            let tolerance = if exact { 0.0 } else { TOLERANCE * largest };
            if on_grids.iter().any(|v| !v[i].is_finite()) || high - low > tolerance / 4.0 {
                unstable += 1;
                continue;
            }
            compared += 1;
            assert!(
                found >= low - tolerance && found <= high + tolerance,
                "seed {seed} on {}: element {i} of `{name}` is {found} and not {low} .. {high}\n{}",
                backend.name(),
                text::print(&graph)
            );
        }
    }
    (compared, unstable)
}

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

fn agree(device: Device, graphs: u64) {
    let backend = CubeBackend::open(device).unwrap();
    let first = setting("MOEC_RANDOM_GRAPHS_FROM", 0);
    let (mut compared, mut unstable) = (0, 0);
    for seed in first..first + setting("MOEC_RANDOM_GRAPHS", graphs) {
        let (c, u) = compare(&backend, seed);
        compared += c;
        unstable += u;
    }
    println!("{compared} elements compared on {device}, {unstable} not stable enough");
    assert!(unstable <= compared, "most of what random graphs compute could not be compared");
}

#[test]
fn the_cpu_agrees_with_the_evaluator() {
    agree(Device::Cpu, 12);
}

#[test]
fn a_graphics_device_agrees_with_the_evaluator() {
    if !moec_kernels::wgpu_available() {
        let required = std::env::var_os("MOEC_REQUIRE_WGPU").is_some_and(|value| value == "1");
        assert!(!required, "MOEC_REQUIRE_WGPU is set, but there is no wgpu device");
        println!("skipped: no wgpu device");
        return;
    }
    agree(Device::Wgpu, 6);
}

//! Frozen routes on the interpreter: the same routes give the same bits, and other activations keep them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use moec_ir::{Builder, CapacityPriority, Data, Graph, Op, Stage, Tensor, TensorType, evaluate, random, verify};
use moec_plan::{Wrt, differentiate, freeze_routes, record_routes, routes};
use std::collections::BTreeMap;

const N: usize = 7;
const E: usize = 5;
const C: usize = 3;

/// Noisy top-2 of 5 experts with room for 2 tokens each, and the threshold of the load loss.
fn router() -> Graph {
    let mut b = Builder::new();
    let x = b.input("x", TensorType::f32([N, C]));
    let rng = b.input("rng", TensorType::i32([4]));
    let w = b.parameter("w", [E, C]);
    let clean = b.linear(x, w, None);
    let noise = b.op(Op::RandomNormal { key: 1, shape: vec![N, E] }, &[rng]);
    let scores = b.add(clean, noise);
    let (top, chosen) = b.top_k(scores, 2);
    let weights = b.softmax(top);
    let kept = b
        .op(Op::LimitCapacity { experts: E, capacity: 2, priority: CapacityPriority::Probability }, &[chosen, weights]);
    let offsets = b.op(Op::SortByExpert { experts: E, rows: 2 * N }, &[kept]);
    let (order, positions) = (offsets.result(1), offsets.result(2));
    let rows = b.op(Op::Dispatch { weighted: false }, &[x, order, positions]);
    let y = b.op(Op::Combine { weighted: true }, &[rows, order, positions, weights]);
    let gates = b.scatter_last(weights, kept, E);
    // A balanced assignment, and a choice that is computed.
    let balanced = b.op(Op::BalancedAssignment, &[scores]);
    let all = b.gather_last(scores, balanced);
    let half = b.add_scalar(all, 2.5);
    let half = b.to_index(half, E);
    let load = b.count(half, E);
    b.output("load", load);
    // Only the values of this selection are read.
    let (threshold, _) = b.top_k(scores, 3);
    let squares = b.mul(threshold, threshold);
    let (loss, more) = (b.sum_all(y), b.mean_all(squares));
    let objective = b.add(loss, more);
    b.output("y", y);
    b.output("gates", gates);
    b.output("objective", objective);
    b.finish().unwrap()
}

fn tensor(shape: &[usize], seed: u64) -> Tensor {
    let keys = random::keys(random::state(seed, 0), 9);
    let n: usize = shape.iter().product();
    Tensor::new(shape.to_vec(), Data::F64((0..n).map(|i| random::normal_at(keys, i as u32)).collect())).unwrap()
}

fn bindings(seed: u64) -> BTreeMap<String, Tensor> {
    BTreeMap::from([
        ("x".to_string(), tensor(&[N, C], seed)),
        ("w".to_string(), tensor(&[E, C], 100)),
        ("rng".to_string(), Tensor::ints(random::state(4, 2))),
    ])
}

#[test]
fn every_choice_is_recorded_under_its_node() {
    let names: Vec<String> = routes(&router()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["top_k", "limit_capacity", "balanced_assignment", "to_index", "top_k_2"]);
    let recorded = record_routes(&router());
    assert_eq!(verify(&recorded, Stage::Forward), Ok(()));
    assert_eq!(recorded.ty(recorded.output("route.top_k_2").unwrap()), &TensorType::i32([N, 3]));
    let plain = {
        let mut b = Builder::new();
        let x = b.input("x", TensorType::f32([2]));
        b.output("x", x);
        b.finish().unwrap()
    };
    assert_eq!(record_routes(&plain), plain);
    assert_eq!(freeze_routes(&plain).unwrap(), plain);
}

#[test]
fn recorded_routes_give_the_same_bits() {
    let mut values = bindings(1);
    let found = evaluate(&record_routes(&router()), &values).unwrap().outputs;
    let kept = found["route.limit_capacity"].as_i32().unwrap();
    assert!(kept.contains(&-1), "the test wants a dropped choice: {kept:?}");
    values.extend(found.iter().filter(|(name, _)| name.starts_with("route.")).map(|(n, t)| (n.clone(), t.clone())));
    let frozen = freeze_routes(&router()).unwrap();
    assert_eq!(verify(&frozen, Stage::Forward), Ok(()));
    assert!(routes(&frozen).is_empty());
    let again = evaluate(&frozen, &values).unwrap().outputs;
    for name in ["y", "gates", "load", "objective"] {
        assert_eq!(again[name], found[name], "{name}");
    }

    // Gradients too, whether the routes are frozen before the differentiation or after it.
    let gradient = |graph: Graph| evaluate(&graph, &values).unwrap().outputs["grad.w"].clone();
    let derive = |graph: &Graph| differentiate(graph, "objective", &Wrt::Parameters).unwrap();
    let expected = gradient(derive(&router()));
    assert_eq!(gradient(derive(&frozen)), expected);
    assert_eq!(gradient(freeze_routes(&derive(&router())).unwrap()), expected);
}

#[test]
fn other_activations_keep_the_routes() {
    let recorded = evaluate(&record_routes(&router()), &bindings(1)).unwrap().outputs;
    let mut other = bindings(2);
    let free = evaluate(&record_routes(&router()), &other).unwrap().outputs;
    assert_ne!(free["route.top_k"], recorded["route.top_k"], "the test wants other choices");
    other.extend(recorded.iter().filter(|(name, _)| name.starts_with("route.")).map(|(n, t)| (n.clone(), t.clone())));
    let frozen = evaluate(&freeze_routes(&router()).unwrap(), &other).unwrap().outputs;
    let sent = |gates: &Tensor| gates.to_f64().iter().map(|&g| g != 0.0).collect::<Vec<_>>();
    assert_eq!(sent(&frozen["gates"]), sent(&recorded["gates"]));
    assert_ne!(frozen["gates"], recorded["gates"]);
    assert_ne!(sent(&free["gates"]), sent(&recorded["gates"]));
}

//! From a forward graph to training steps on the interpreter: gradients, optimiser, plan, memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use moec_ir::{
    AttentionAttrs, Builder, CapacityPriority, DType, Data, Graph, Op, Phase, Precision, StateRole, Tensor, TensorType,
    Unary, Value, evaluate, random,
};
use moec_plan::{
    Arrangement, Backend, BackendError, BufferId, ClusterOptions, Clusters, Interpreter, MemoryKind, OptimizeOptions,
    Optimizer, PlanError, StateKind, Step, StepOptions, Storage, Wrt, add_optimizer, cluster, differentiate, listing,
    optimize, plan,
};
use std::collections::BTreeMap;

const B: usize = 2;
const T: usize = 7;
const C: usize = 6;
const E: usize = 3;
const K: usize = 2;
const F: usize = 5;
const V: usize = 11;

/// A block of attention and of noisy top-2 of three experts, with capacity, dropout, a balance loss, metrics, and a
/// router bias that a training step updates without a gradient.
fn mixture(train: bool) -> Graph {
    let mut b = Builder::new();
    let n = B * T;
    let tokens = b.input("tokens", TensorType::i32([n]));
    let targets = b.input("targets", TensorType::i32([n]));
    let rng = b.input("rng", TensorType::i32([4]));
    let table = b.parameter("embed.weight", [V, C]);
    let x = b.op(Op::Embed, &[tokens, table]);
    let positions = b.parameter("position.weight", [T, C]);
    let positions = b.reshape(positions, [1, T, C]);
    let positions = b.broadcast(positions, [B, T, C]);
    let positions = b.reshape(positions, [n, C]);
    let x = b.add(x, positions);

    let (gain, shift) = (b.parameter("norm.gain", [C]), b.parameter("norm.shift", [C]));
    let y = b.op(Op::LayerNorm { epsilon: 1e-5.into() }, &[x, gain, shift]);
    let weight = b.parameter("qkv.weight", [3 * C, C]);
    let qkv = b.linear(y, weight, None);
    let qkv = b.op(Op::Rotary { heads: 1, time: T, base: 1e4.into(), inverse: false, positions: false }, &[qkv]);
    let key = b.fresh_key();
    let attrs = AttentionAttrs { dropout: 0.25.into(), key, ..AttentionAttrs::causal(2, T, 0.5) };
    let y = b.attention(attrs, qkv, Some(rng), None);
    let (weight, bias) = (b.parameter("proj.weight", [C, C]), b.parameter("proj.bias", [C]));
    let y = b.linear(y, weight, Some(bias));
    let y = b.dropout(y, 0.1, rng);
    let x = b.add(x, y);

    let gain = b.parameter("norm2.gain", [C]);
    let y = b.op(Op::RmsNorm { epsilon: 1e-5.into() }, &[x, gain]);
    let weight = b.parameter("router.weight", [E, C]);
    let logits = b.linear(y, weight, None);
    let weight = b.parameter("noise.weight", [E, C]);
    let spread = b.linear(y, weight, None);
    let spread = b.unary(Unary::Softplus, spread);
    let key = b.fresh_key();
    let noise = b.op(Op::RandomNormal { key, shape: vec![n, E] }, &[rng]);
    let noise = b.mul(noise, spread);
    let noisy = b.add(logits, noise);
    let balance = b.state("router.bias", TensorType::f32([E]));
    let chosen = b.add(noisy, balance);
    let (_, experts) = b.top_k(chosen, K);
    let gathered = b.gather_last(noisy, experts);
    let weights = b.softmax(gathered);
    let experts = b.op(Op::LimitCapacity { experts: E, capacity: 8, priority: CapacityPriority::Token }, &[experts]);
    let offsets = b.op(Op::SortByExpert { experts: E, rows: n * K }, &[experts]);
    let (order, places) = (offsets.result(1), offsets.result(2));
    let rows = b.op(Op::Dispatch { weighted: false }, &[y, order, places]);
    let (up, up_bias) = (b.parameter("up.weight", [E, F, C]), b.parameter("up.bias", [E, F]));
    let h = b.op(
        Op::GroupedMatMul { transpose_b: true, bias: true, precision: Precision::F32 },
        &[rows, up, offsets, up_bias],
    );
    let h = b.unary(Unary::Sigmoid, h);
    let down = b.parameter("down.weight", [E, F, C]);
    let h = b.op(Op::GroupedMatMul { transpose_b: false, bias: false, precision: Precision::F32 }, &[h, down, offsets]);
    let z = b.op(Op::Combine { weighted: true }, &[h, order, places, weights]);
    let x = b.add(x, z);

    let unembed = b.parameter("unembed.weight", [V, C]);
    let logits = b.linear(x, unembed, None);
    b.output("logits", logits);
    let loss = b.op(Op::CrossEntropy, &[logits, targets]);
    b.output("loss", loss);
    // Importance (Shazeer et al. 2017): the squared coefficient of variation of the summed gates.
    let gates = b.scatter_last(weights, experts, E);
    let importance = b.sum(gates, &[0]);
    b.output("importance", importance);
    let mean = b.mean_all(importance);
    let centred = b.sub(importance, mean);
    let square = b.mul(centred, centred);
    let variance = b.mean_all(square);
    let aux = b.scale(variance, 0.1);
    let objective = b.add(loss, aux);
    b.output("objective", objective);
    let load = b.count(experts, E);
    b.output("load", load);
    // Loss-free balancing (Wang et al. 2024): bias += rate * sign(mean load - load).
    let mean = b.mean_all(load);
    let missing = b.sub(load, mean);
    let sign = b.unary(Unary::Sign, missing);
    let step = b.scale(sign, -0.01);
    let new = b.add(balance, step);
    if train {
        b.update("router.bias", new);
    }
    b.finish().unwrap()
}

fn bindings(graph: &Graph) -> BTreeMap<String, Tensor> {
    let keys = random::keys(random::state(5, 0), 0);
    let mut counter = 0;
    let mut next = || {
        counter += 1;
        counter
    };
    let mut values = BTreeMap::new();
    for id in graph.ids() {
        if let Op::Input { name, ty } | Op::Parameter { name, ty } | Op::State { name, ty, .. } = &graph.node(id).op {
            let n = ty.elements();
            let data = match (ty.dtype, name.as_str()) {
                (DType::I32, "rng") => Data::I32(random::state(3, 4).to_vec()),
                (DType::I32, _) => {
                    Data::I32((0..n).map(|_| (random::bits(keys, next()) as usize % V) as i32).collect())
                }
                (DType::F32, "hyper") => Data::F64(vec![1e-2, 0.1, 0.001]),
                (DType::F32, name) if name.starts_with("adamw.") => Data::F64(vec![0.0; n]),
                (DType::F32, _) => Data::F64((0..n).map(|_| 0.5 * random::normal_at(keys, next())).collect()),
            };
            values.insert(name.clone(), Tensor::new(ty.shape.clone(), data).unwrap());
        }
    }
    values
}

#[test]
fn gradients_of_a_whole_mixture_agree_with_central_differences() {
    let forward = mixture(true);
    let graph = differentiate(&forward, "objective", &Wrt::Parameters).unwrap();
    let mut values = bindings(&graph);
    let found = evaluate(&graph, &values).unwrap().outputs;
    let parameters: Vec<String> = found.keys().filter_map(|n| n.strip_prefix("grad.")).map(str::to_string).collect();
    assert_eq!(parameters.len(), 14);
    let epsilon = 1e-6;
    for name in parameters {
        let gradient = found[&format!("grad.{name}")].to_f64();
        let tensor = values[&name].clone();
        assert_eq!(found[&format!("grad.{name}")].shape(), tensor.shape());
        for element in (0..gradient.len()).step_by(1 + gradient.len() / 12) {
            let mut at = |offset: f64| {
                let mut elements = tensor.to_f64();
                elements[element] += offset;
                values.insert(name.clone(), Tensor::new(tensor.shape().to_vec(), Data::F64(elements)).unwrap());
                evaluate(&forward, &values).unwrap().outputs["objective"].item().unwrap()
            };
            let expected = (at(epsilon) - at(-epsilon)) / (2.0 * epsilon);
            let error = (gradient[element] - expected).abs();
            assert!(
                error <= 1e-6 + 1e-4 * expected.abs(),
                "{name}[{element}]: {} is not {expected}",
                gradient[element]
            );
        }
        values.insert(name, tensor);
    }
}

#[test]
fn three_optimised_steps_are_three_evaluated_steps() {
    for clip in [None, Some(0.3)] {
        let forward = mixture(true);
        let graph = differentiate(&forward, "objective", &Wrt::Parameters).unwrap();
        let graph = add_optimizer(&graph, &Optimizer::default(), &StepOptions::clipped(clip)).unwrap();
        assert!(graph.outputs().iter().all(|(n, _)| !n.starts_with("grad.")));
        assert_eq!(graph.output("grad_norm").is_some(), clip.is_some());
        let (optimized, _) = optimize(&graph, &OptimizeOptions::default()).unwrap();
        let (clusters, _) = cluster(&optimized, &ClusterOptions::default()).unwrap();
        let evaluation = mixture(false);
        let single = Clusters::single(&evaluation);
        let program = plan(&[("train_step".into(), &clusters), ("evaluate".into(), &single)]).unwrap();
        let mut session = Interpreter.prepare(&program).unwrap();
        let mut values = bindings(&graph);
        for s in &program.states {
            session.write_state(&s.name, &values[&s.name]).unwrap();
        }
        for step in 0..3 {
            values.insert("rng".into(), Tensor::ints(random::state(3, step)));
            let expected = evaluate(&graph, &values).unwrap();
            let inputs: Vec<_> = ["tokens", "targets", "rng", "hyper"].iter().map(|&n| (n, &values[n])).collect();
            session.run("train_step", &inputs).unwrap();
            for (name, value) in &expected.outputs {
                let found = session.output("train_step", name).unwrap();
                for (a, b) in found.to_f64().iter().zip(value.to_f64()) {
                    assert!((a - b).abs() <= 1e-9, "step {step}, {name}: {a} is not {b}");
                }
            }
            for (name, value) in expected.updates {
                let found = session.read_state(&name).unwrap();
                for (a, b) in found.to_f64().iter().zip(value.to_f64()) {
                    assert!((a - b).abs() <= 1e-9, "step {step}, {name}: {a} is not {b}");
                }
                values.insert(name, value);
            }
            let inputs: Vec<_> = ["tokens", "targets", "rng"].iter().map(|&n| (n, &values[n])).collect();
            session.run("evaluate", &inputs).unwrap();
            let expected = evaluate(&evaluation, &values).unwrap().outputs["loss"].item().unwrap();
            let found = session.output("evaluate", "loss").unwrap().item().unwrap();
            assert!((found - expected).abs() <= 1e-9);
            assert!(session.output("train_step", "loss").is_err(), "another function ran since");
        }
    }
}

/// Almost every pass has something to do in a training step, and all may stop anywhere.
#[test]
fn any_number_of_rewrites_keeps_a_training_step() {
    let differentiated = differentiate(&mixture(true), "objective", &Wrt::Parameters).unwrap();
    let graph = add_optimizer(&differentiated, &Optimizer::default(), &StepOptions::clipped(Some(0.5))).unwrap();
    let values = bindings(&graph);
    let expected = evaluate(&graph, &values).unwrap();
    let (optimized, report) = optimize(&graph, &OptimizeOptions::default()).unwrap();
    let (_, fused) = cluster(&optimized, &ClusterOptions::default()).unwrap();
    // What is trained is not packed.
    let idle = ["fold_const", "dce", "fuse_unpack"];
    for pass in report.passes.iter().chain(&fused.passes).filter(|p| !idle.contains(&p.name)) {
        assert!(pass.rewrites > 0, "{} had nothing to do", pass.name);
    }
    for budget in 0..=report.rewrites() {
        let options = OptimizeOptions { max_rewrites: Some(budget), verify: true, ..OptimizeOptions::default() };
        let (optimized, _) = optimize(&graph, &options).unwrap();
        let found = evaluate(&optimized, &values).unwrap();
        for (expected, found) in [(&expected.outputs, &found.outputs), (&expected.updates, &found.updates)] {
            for (name, expected) in expected {
                for (e, f) in expected.to_f64().iter().zip(found[name].to_f64()) {
                    assert!((e - f).abs() <= 1e-9 * (1.0 + e.abs()), "{name} after {budget} rewrites: {f} is not {e}");
                }
            }
        }
    }
}

#[test]
fn clipping_scales_the_whole_gradient_to_the_limit() {
    let mut b = Builder::new();
    let w = b.parameter("w", [2]);
    let x = b.input("x", TensorType::f32([2]));
    let product = b.mul(w, x);
    let loss = b.sum_all(product);
    b.output("loss", loss);
    let graph = differentiate(&b.finish().unwrap(), "loss", &Wrt::Parameters).unwrap();
    // With beta1 = 0 the first moment after a step is the clipped gradient itself.
    let adamw = Optimizer::default().with("beta1", 0.0);
    let graph = add_optimizer(&graph, &adamw, &StepOptions::clipped(Some(1.0))).unwrap();
    let zero = Tensor::floats([0.0, 0.0]);
    let mut values: BTreeMap<String, Tensor> = [
        ("w", zero.clone()),
        ("adamw.m.w", zero.clone()),
        ("adamw.v.w", zero),
        ("x", Tensor::floats([3.0, 4.0])),
        ("hyper", Tensor::floats([0.1, 1.0, 1.0])),
    ]
    .into_iter()
    .map(|(n, t)| (n.to_string(), t))
    .collect();
    let step = evaluate(&graph, &values).unwrap();
    assert_eq!(step.outputs["grad_norm"].item(), Some(5.0));
    let m = step.updates["adamw.m.w"].to_f64();
    assert!((m[0] - 0.6).abs() < 1e-6 && (m[1] - 0.8).abs() < 1e-6, "{m:?}");
    values.insert("x".into(), Tensor::floats([0.3, 0.4]));
    let m = evaluate(&graph, &values).unwrap().updates["adamw.m.w"].to_f64();
    assert!((m[0] - f64::from(0.3f32)).abs() < 1e-12, "a short gradient is not scaled: {m:?}");
}

#[test]
fn a_source_without_a_path_has_a_gradient_of_zeros() {
    let mut b = Builder::new();
    let x = b.input("x", TensorType::f32([3]));
    let w = b.parameter("w", [3]);
    let unused = b.parameter("unused", [7, 3]);
    let sign = b.unary(Unary::Sign, w);
    let y = b.mul(sign, x);
    let loss = b.sum_all(y);
    b.output("loss", loss);
    b.output("unused", unused);
    let graph = differentiate(&b.finish().unwrap(), "loss", &Wrt::Nodes(vec!["x".into(), "unused".into(), "w".into()]));
    let graph = graph.unwrap();
    assert_eq!(graph.outputs().len(), 5);
    let values: BTreeMap<String, Tensor> = [
        ("x".to_string(), Tensor::floats([1.0, 2.0, 3.0])),
        ("w".to_string(), Tensor::floats([-1.0, 0.0, 5.0])),
        ("unused".to_string(), Tensor::zeros(&TensorType::f32([7, 3]))),
    ]
    .into();
    let found = evaluate(&graph, &values).unwrap().outputs;
    assert_eq!(found["grad.x"].to_f64(), [-1.0, 0.0, 1.0]);
    assert_eq!(found["grad.w"].to_f64(), [0.0; 3]);
    assert_eq!(found["grad.unused"], Tensor::zeros(&TensorType::f32([7, 3])));
    assert!(graph.ids().all(|id| !graph.node(id).name.starts_with("grad.w.mul")), "w needs no gradient nodes");
}

#[test]
fn ties_and_kinks_follow_the_documentation() {
    let mut b = Builder::new();
    let (x, y) = (b.input("x", TensorType::f32([3])), b.input("y", TensorType::f32([3])));
    let max = b.binary(moec_ir::Binary::Max, x, y);
    let min = b.binary(moec_ir::Binary::Min, x, y);
    let abs = b.unary(Unary::Abs, y);
    let relu = b.unary(Unary::Relu, y);
    for (name, v) in [("max", max), ("min", min), ("abs", abs), ("relu", relu)] {
        let sum = b.sum_all(v);
        b.output(name, sum);
    }
    let graph = b.finish().unwrap();
    let values: BTreeMap<String, Tensor> =
        [("x".to_string(), Tensor::floats([0.0, 1.0, 2.0])), ("y".to_string(), Tensor::floats([0.0, 2.0, 1.0]))].into();
    let gradient = |objective: &str, of: &str| {
        let g = differentiate(&graph, objective, &Wrt::Nodes(vec!["x".into(), "y".into()])).unwrap();
        evaluate(&g, &values).unwrap().outputs[&format!("grad.{of}")].to_f64()
    };
    assert_eq!(gradient("max", "x"), [1.0, 0.0, 1.0]);
    assert_eq!(gradient("max", "y"), [0.0, 1.0, 0.0]);
    assert_eq!(gradient("min", "x"), [1.0, 1.0, 0.0]);
    assert_eq!(gradient("min", "y"), [0.0, 0.0, 1.0]);
    assert_eq!(gradient("abs", "y"), [0.0, 1.0, 1.0]);
    assert_eq!(gradient("relu", "y"), [0.0, 1.0, 1.0]);
}

#[test]
fn what_has_no_gradient_is_an_error_with_its_name() {
    let mut b = Builder::new();
    let x = b.input("x", TensorType::f32([2, 3]));
    let y = b.softmax(x);
    let twice = b.named("slope", Op::SoftmaxGrad, &[x, y]);
    let loss = b.sum_all(twice);
    b.output("loss", loss);
    b.output("matrix", y);
    let graph = b.finish().unwrap();
    let wrt = Wrt::Nodes(vec!["x".into()]);
    let error = differentiate(&graph, "loss", &wrt).unwrap_err();
    assert_eq!(error.to_string(), "%slope: softmax_grad is not differentiable");
    assert!(matches!(differentiate(&graph, "nothing", &wrt), Err(PlanError::NoObjective(_))));
    assert!(matches!(differentiate(&graph, "matrix", &wrt), Err(PlanError::NotScalar { .. })));
    let nowhere = Wrt::Nodes(vec!["z".into()]);
    assert!(matches!(differentiate(&graph, "loss", &nowhere), Err(PlanError::NoSource(_))));
    assert_eq!(add_optimizer(&graph, &Optimizer::default(), &StepOptions::clipped(None)), Err(PlanError::NoGradients));
}

/// A chain of square linear maps, so that gradients come one after another.
fn chain(depth: usize, width: usize) -> Graph {
    let mut b = Builder::new();
    let mut x = b.input("x", TensorType::f32([3, width]));
    for i in 0..depth {
        let w = b.parameter(&format!("w{i}"), [width, width]);
        x = b.linear(x, w, None);
        x = b.unary(Unary::Tanh, x);
    }
    let loss = b.sum_all(x);
    b.output("loss", loss);
    differentiate(&b.finish().unwrap(), "loss", &Wrt::Parameters).unwrap()
}

#[test]
fn parameters_are_updated_as_soon_as_their_gradient_is_there() {
    let (depth, width) = (9, 64);
    let bytes = |clip| {
        let graph = add_optimizer(&chain(depth, width), &Optimizer::default(), &StepOptions::clipped(clip)).unwrap();
        let program = plan(&[("f".into(), &graph)]).unwrap();
        for step in program.plans[0].steps.iter().filter(|s| matches!(s.kernel().op(), Some(Op::AdamW(_)))) {
            for &b in &step.results {
                assert!(matches!(program.plans[0].buffer(b).storage, Storage::State(_)));
            }
        }
        program.arena_bytes()
    };
    let gradient = width * width * 4;
    assert!(bytes(None) < 3 * gradient, "gradients die one by one: {}", bytes(None));
    assert!(bytes(Some(1.0)) >= depth * gradient, "clipping needs all of them: {}", bytes(Some(1.0)));
}

#[test]
fn persistent_tensors_are_unified_by_name_and_conflicts_are_errors() {
    let make = |op: &dyn Fn(&mut Builder) -> Value| {
        let mut b = Builder::new();
        let w = op(&mut b);
        let y = b.unary(Unary::Exp, w);
        b.output("y", y);
        b.finish().unwrap()
    };
    let parameter = make(&|b| b.parameter("w", [3]));
    let wider = make(&|b| b.parameter("w", [4]));
    let state = make(&|b| b.state("w", TensorType::f32([3])));
    let moment = make(&|b| b.state_for(StateRole::Optimizer, "adamw.m.w", TensorType::f32([3])));
    let program = plan(&[("a".into(), &parameter), ("b".into(), &moment), ("c".into(), &parameter)]).unwrap();
    let kinds: Vec<_> = program.states.iter().map(|s| (s.name.as_str(), s.kind)).collect();
    assert_eq!(kinds, [("w", StateKind::Parameter), ("adamw.m.w", StateKind::State(StateRole::Optimizer))]);
    for other in [&wider, &state] {
        let error = plan(&[("a".into(), &parameter), ("b".into(), other)]).unwrap_err();
        assert!(matches!(error, PlanError::StateConflict { .. }), "{error}");
    }
}

#[test]
fn updates_that_do_not_fit_are_errors() {
    for (name, shape, reason) in [("nothing", [3], "no such"), ("s", [4], "but the new value is")] {
        let mut g = Builder::new();
        let s = g.state("s", TensorType::f32([3]));
        let x = g.input("x", TensorType::f32(shape));
        let y = g.unary(Unary::Exp, x);
        g.output("s", s);
        g.update(name, y);
        let error = plan(&[("f".into(), &g.finish().unwrap())]).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn reshapes_are_not_steps_and_old_values_can_be_outputs() {
    let mut b = Builder::new();
    let s = b.state("s", TensorType::f32([2, 3]));
    let flat = b.reshape(s, [6]);
    let next = b.unary(Unary::Exp, flat);
    let next = b.reshape(next, [2, 3]);
    b.output("old", s);
    b.output("new", next);
    b.update("s", next);
    let program = plan(&[("f".into(), &b.finish().unwrap())]).unwrap();
    let names: Vec<_> = program.plans[0].steps.iter().map(|s| s.kernel().mnemonic()).collect();
    assert_eq!(names.iter().filter(|n| *n == "exp").count(), 1);
    assert!(names.len() <= 3, "{names:?}");
    let mut session = Interpreter.prepare(&program).unwrap();
    let ones = Tensor::new([2, 3], Data::F32(vec![1.0; 6])).unwrap();
    session.write_state("s", &ones).unwrap();
    session.run("f", &[]).unwrap();
    assert_eq!(session.output("f", "old").unwrap().to_f64(), [1.0; 6]);
    assert_eq!(session.output("f", "new").unwrap().to_f64(), [1f64.exp(); 6]);
    assert_eq!(session.read_state("s").unwrap().to_f64(), [1f64.exp(); 6]);
}

#[test]
fn absurd_sizes_are_reported_and_refused_without_allocating() {
    let mut b = Builder::new();
    let x = b.input("x", TensorType::f32([1, 1_000_000]));
    let w = b.parameter("w", [1_000_000, 1_000_000]);
    let y = b.linear(x, w, None);
    let loss = b.sum_all(y);
    b.output("loss", loss);
    let graph = differentiate(&b.finish().unwrap(), "loss", &Wrt::Parameters).unwrap();
    let graph = add_optimizer(&graph, &Optimizer::default(), &StepOptions::clipped(Some(1.0))).unwrap();
    let functions = [("train_step".to_string(), &graph)];
    let report = Arrangement::of(&functions).unwrap().memory();
    assert_eq!(report.parameter_bytes, 4_000_000_000_000);
    assert_eq!(report.optimizer_bytes, 8_000_000_000_000);
    assert!(report.total_bytes() > 16_000_000_000_000);
    assert!(report.largest.iter().any(|t| t.name == "w" && t.kind == MemoryKind::Parameter));
    assert!(report.largest.iter().any(|t| t.kind == MemoryKind::Gradient && t.bytes == 4_000_000_000_000));
    let program = plan(&functions).unwrap();
    assert!(matches!(Interpreter.prepare(&program), Err(BackendError::OutOfMemory { .. })));

    let mut b = Builder::new();
    for i in 0..4 {
        let w = b.parameter(&format!("w{i}"), [1 << 40, 1 << 40]);
        let y = b.unary(Unary::Exp, w);
        b.output(format!("y{i}"), y);
    }
    let graph = b.finish().unwrap();
    let functions = [("f".to_string(), &graph)];
    assert_eq!(Arrangement::of(&functions).unwrap().memory().total_bytes(), u64::MAX);
    let program = plan(&functions).unwrap();
    assert!(matches!(Interpreter.prepare(&program), Err(BackendError::OutOfMemory { .. })));
}

#[test]
fn the_report_adds_up() {
    let graph = differentiate(&mixture(true), "objective", &Wrt::Parameters).unwrap();
    let graph = add_optimizer(&graph, &Optimizer::default(), &StepOptions::clipped(None)).unwrap();
    let functions = [("train_step".to_string(), &graph)];
    let program = plan(&functions).unwrap();
    let report = Arrangement::of(&functions).unwrap().memory();
    let f = &report.functions[0];
    assert_eq!(f.arena_bytes, program.arena_bytes() as u64);
    assert_eq!(f.peak_bytes, f.input_output_bytes + f.activation_bytes + f.gradient_bytes + f.temporary_bytes);
    assert!(f.peak_bytes <= f.arena_bytes && f.activation_bytes > 0 && f.gradient_bytes > 0);
    assert_eq!(report.total_bytes(), (program.state_bytes() + program.arena_bytes()) as u64);
    assert_eq!(report.optimizer_bytes, 2 * report.parameter_bytes);
    assert_eq!(report.router_bytes, (E * 4) as u64);
}

/// An elementwise update reads an element of parameter and moment only for the same element of their new values, and writes
/// them where they are: no step copies.
#[test]
fn elementwise_updates_are_made_in_place() {
    let lists = ["sgd", "lion"].map(|name| {
        let optimizer = Optimizer::named(name).unwrap().with("weight_decay", 0.5);
        let optimizer = if name == "sgd" { optimizer.with("momentum", 0.9).with("nesterov", true) } else { optimizer };
        let graph = add_optimizer(&chain(2, 3), &optimizer, &StepOptions::clipped(Some(1.0))).unwrap();
        let (graph, _) = optimize(&graph, &OptimizeOptions::default()).unwrap();
        let (clusters, _) = cluster(&graph, &ClusterOptions::default()).unwrap();
        let program = plan(&[("f".into(), &clusters)]).unwrap();
        let list = listing(&program);
        let steps = program.plans[0].steps.iter().zip(&list.plans[0].steps);
        let place = |b: BufferId| match program.plans[0].buffer(b).storage {
            Storage::State(state) => program.states[state].name.as_str(),
            Storage::Arena(_) => "arena",
        };
        let updates = steps.filter(|(step, _)| step.phase == Phase::Optimizer);
        let line = |(step, text): (&Step, &String)| {
            let places: Vec<&str> = step.results.iter().map(|&b| place(b)).collect();
            format!("{text}  in {}\n", places.join(", "))
        };
        updates.map(line).collect::<String>()
    });
    insta::assert_snapshot!(lists.concat(), @r"
    %sgd.w0.sub: t6 = add(mul(b9, scalar(b13)), mul(b1, 0.5)); b15 = add(mul(b14, 0.9), t6); b16 = sub(b1, mul(scalar(b10), add(t6, mul(b15, 0.9))))  in sgd.velocity.w0, w0
    %sgd.w1.sub: t6 = add(mul(b7, scalar(b13)), mul(b3, 0.5)); b18 = add(mul(b17, 0.9), t6); b19 = sub(b3, mul(scalar(b10), add(t6, mul(b18, 0.9))))  in sgd.velocity.w1, w1
    %lion.w0.sub: t2 = mul(b9, scalar(b13)); b15 = add(mul(b14, 0.99), mul(t2, 0.010000000000000009)); b16 = sub(b1, mul(scalar(b10), add(sign(add(mul(b14, 0.9), mul(t2, 0.09999999999999998))), mul(b1, 0.5))))  in lion.m.w0, w0
    %lion.w1.sub: t2 = mul(b7, scalar(b13)); b18 = add(mul(b17, 0.99), mul(t2, 0.010000000000000009)); b19 = sub(b3, mul(scalar(b10), add(sign(add(mul(b17, 0.9), mul(t2, 0.09999999999999998))), mul(b3, 0.5))))  in lion.m.w1, w1
    ");
}

#[test]
fn the_listing_names_everything() {
    let graph = add_optimizer(&chain(1, 3), &Optimizer::default(), &StepOptions::clipped(None)).unwrap();
    let program = plan(&[("f".into(), &graph)]).unwrap();
    let list = listing(&program);
    assert_eq!(list.states[0].name, "w0");
    assert_eq!((list.states[0].ty.as_str(), list.states[0].kind), ("f32[3, 3]", "parameter"));
    let plan = &list.plans[0];
    assert_eq!(plan.steps.len(), program.plans[0].steps.len());
    let product = plan.steps.iter().find(|s| s.starts_with("%matmul: ")).unwrap();
    assert!(product.contains(" = matmul(") && product.ends_with(" {transpose_b}"), "{product}");
    assert!(plan.buffers.iter().any(|b| b.ends_with("%w0 : f32[3, 3] in state w0")), "{:?}", plan.buffers);
}

#[test]
fn a_graph_without_steps_has_a_plan() {
    let empty = Graph::new();
    let program = plan(&[("f".into(), &empty)]).unwrap();
    assert_eq!((program.arena_bytes(), program.plans[0].steps.len()), (0, 0));
    assert_eq!(Arrangement::of(&[("f".into(), &empty)]).unwrap().memory().total_bytes(), 0);
    Interpreter.prepare(&program).unwrap().run("f", &[]).unwrap();

    let mut b = Builder::new();
    let x = b.input("x", TensorType::f32([0, 3]));
    let y = b.sum(x, &[0]);
    b.output("x", x);
    b.output("y", y);
    let program = plan(&[("f".into(), &b.finish().unwrap())]).unwrap();
    let mut session = Interpreter.prepare(&program).unwrap();
    session.run("f", &[("x", &Tensor::zeros(&TensorType::f32([0, 3])))]).unwrap();
    assert_eq!(session.output("f", "y").unwrap().to_f64(), [0.0; 3]);
    assert_eq!(session.output("f", "x").unwrap().shape(), [0, 3]);
}

#[test]
fn the_interpreter_says_what_does_not_fit() {
    let program = plan(&[("f".into(), &chain(1, 3))]).unwrap();
    let mut session = Interpreter.prepare(&program).unwrap();
    let x = Tensor::zeros(&TensorType::f32([3, 3]));
    let message = |r: Result<(), BackendError>| r.unwrap_err().to_string();
    assert_eq!(message(session.run("g", &[])), "there is no function `g`");
    assert_eq!(message(session.run("f", &[])), "input `x` of `f` is not given");
    assert_eq!(message(session.run("f", &[("x", &x), ("y", &x)])), "`f` has no input `y`");
    let wrong = Tensor::floats([1.0]);
    assert_eq!(message(session.run("f", &[("x", &wrong)])), "input `x` is f32[3, 3], but the value given is f32[1]");
    assert_eq!(message(session.write_state("w0", &wrong)), "`w0` is f32[3, 3], but the value given is f32[1]");
    assert!(session.output("f", "loss").is_err());
    session.run("f", &[("x", &x)]).unwrap();
    assert_eq!(session.output("f", "loss").unwrap().item(), Some(0.0));
    assert_eq!(message(session.output("f", "nothing").map(drop)), "`f` has no output `nothing`");
}

/// The gradient of a product of bfloat16 numbers cannot be held against differences, since rounding is a staircase. It is
/// held against its formulas, such as dx = round(dy) round(w) and dw = round(dy)ᵀ round(x): those of the product without
/// rounding, of factors that were rounded by hand.
#[test]
fn gradients_of_bfloat16_products_are_products_of_rounded_factors() {
    let normal = |shape: &[usize], key| {
        let keys = random::keys(random::state(5, 0), key);
        let n = shape.iter().product::<usize>();
        Tensor::new(shape.to_vec(), Data::F64((0..n).map(|i| random::normal_at(keys, i as u32)).collect())).unwrap()
    };
    let rounded = |t: &Tensor| {
        let values = t.to_f64().into_iter().map(|x| Precision::Bf16.round(x)).collect();
        Tensor::new(t.shape().to_vec(), Data::F64(values)).unwrap()
    };
    let (m, n, k, experts) = (7, 3, 5, 2);
    let offsets = Tensor::ints(vec![0, 4, 6]);
    let gradients = |op: &Op, a: &Tensor, b: &Tensor, dy: &Tensor| {
        let mut builder = Builder::new();
        let mut operands = vec![builder.parameter("a", a.shape()), builder.parameter("b", b.shape())];
        let mut values: BTreeMap<String, Tensor> =
            [("a", a), ("b", b), ("dy", dy)].map(|(name, tensor)| (name.to_string(), tensor.clone())).into();
        if !matches!(op, Op::MatMul { .. }) {
            operands.push(builder.input("offsets", TensorType::i32([experts + 1])));
            values.insert("offsets".into(), offsets.clone());
        }
        let y = builder.op(op.clone(), &operands);
        let dy = builder.input("dy", TensorType::f32(dy.shape().to_vec()));
        let weighted = builder.mul(y, dy);
        let loss = builder.sum_all(weighted);
        builder.output("loss", loss);
        let graph = differentiate(&builder.finish().unwrap(), "loss", &Wrt::Parameters).unwrap();
        let outputs = evaluate(&graph, &values).unwrap().outputs;
        ["grad.a", "grad.b"].map(|name| outputs[name].to_f64())
    };
    let check = |op: &dyn Fn(Precision) -> Op, a: &[usize], b: &[usize], y: &[usize]| {
        let (a, b, dy) = (normal(a, 1), normal(b, 2), normal(y, 3));
        let (op, exact) = (op(Precision::Bf16), op(Precision::F32));
        let found = gradients(&op, &a, &b, &dy);
        assert_eq!(found, gradients(&exact, &rounded(&a), &rounded(&b), &rounded(&dy)), "{op:?}");
        assert_ne!(found, gradients(&exact, &a, &b, &dy));
    };
    for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
        let (a, b) = (if transpose_a { [k, m] } else { [m, k] }, if transpose_b { [n, k] } else { [k, n] });
        check(&|precision| Op::MatMul { transpose_a, transpose_b, bias: false, precision }, &a, &b, &[m, n]);
    }
    for transpose_b in [false, true] {
        let w = if transpose_b { [experts, n, k] } else { [experts, k, n] };
        check(&|precision| Op::GroupedMatMul { transpose_b, bias: false, precision }, &[m, k], &w, &[m, n]);
    }
    check(&|precision| Op::GroupedMatMulWeightGrad { precision }, &[m, n], &[m, k], &[experts, n, k]);
}

#[test]
fn products_of_different_precision_are_not_merged() {
    let mut b = Builder::new();
    let (x, w) = (b.input("x", TensorType::f32([3, 4])), b.parameter("w", [5, 4]));
    let [exact, rounded, again] =
        [Precision::F32, Precision::Bf16, Precision::Bf16].map(|precision| b.linear_in(precision, x, w, None));
    let sum = b.add(exact, rounded);
    let sum = b.add(sum, again);
    b.output("y", sum);
    let (graph, _) = optimize(&b.finish().unwrap(), &OptimizeOptions::default()).unwrap();
    let left = |wanted| {
        let is = |op: &Op| matches!(op, Op::MatMul { precision, .. } if *precision == wanted);
        graph.ids().filter(|id| is(&graph.node(*id).op)).count()
    };
    assert_eq!((left(Precision::F32), left(Precision::Bf16)), (1, 1));
}

//! Random graphs with states, updates, aliases and dead nodes: optimised, planned and run, they mean the same.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use moec_ir::{
    AdamWAttrs, Binary, Builder, DType, Data, Evaluation, Graph, Op, Tensor, TensorType, Unary, Value, evaluate, random,
};
use moec_plan::{
    ALIGNMENT, Backend, ClusterOptions, FUSIONS, Interpreter, OptimizeOptions, PASSES, Plan, Program, Storage, cluster,
    optimize, plan,
};
use std::collections::BTreeMap;

struct Draw {
    keys: (u32, u32),
    counter: u32,
}

impl Draw {
    fn new(seed: u64) -> Self {
        Self { keys: random::keys(random::state(seed, 0), 0), counter: 0 }
    }

    fn below(&mut self, n: usize) -> usize {
        self.counter += 1;
        random::bits(self.keys, self.counter) as usize % n
    }

    fn real(&mut self) -> f64 {
        self.counter += 1;
        random::normal_at(self.keys, self.counter)
    }
}

const SHAPES: [&[usize]; 8] = [&[], &[1], &[3], &[7], &[1, 3], &[7, 1], &[7, 3], &[2, 1, 3]];
const STATES: usize = 4;

fn attrs() -> AdamWAttrs {
    AdamWAttrs { beta1: 0.9.into(), beta2: 0.99.into(), epsilon: 1e-3.into(), weight_decay: 0.1.into() }
}

/// A graph of `size` operations over a handful of states of one shape, a few inputs, and random updates of the states.
fn random_graph(seed: u64, size: usize) -> Graph {
    let mut d = Draw::new(seed);
    let mut b = Builder::new();
    let mut pool: Vec<Value> = Vec::new();
    let state_shape = vec![7, 3];
    let states: Vec<Value> =
        (0..STATES).map(|i| b.state(&format!("s{i}"), TensorType::f32(state_shape.clone()))).collect();
    pool.extend(&states);
    for (i, shape) in SHAPES.iter().enumerate() {
        pool.push(b.input(format!("x{i}"), TensorType::f32(shape.to_vec())));
    }
    let hyper = b.input("hyper", TensorType::f32([3]));
    let rng = b.input("rng", TensorType::i32([4]));
    for _ in 0..size {
        let x = pool[d.below(pool.len())];
        let shape = b.shape(x);
        let like: Vec<Value> = pool.iter().copied().filter(|&v| b.shape(v) == shape).collect();
        let y = like[d.below(like.len())];
        let z = like[d.below(like.len())];
        let new = match d.below(16) {
            0 => {
                // Functions that keep numbers tame.
                let f =
                    [Unary::Tanh, Unary::Sigmoid, Unary::Neg, Unary::Abs, Unary::Relu, Unary::NormalCdf, Unary::Sign];
                b.unary(f[d.below(f.len())], x)
            }
            1 => b.unary(Unary::Tanh, x),
            2 => b.add(x, y),
            3 => b.sub(x, y),
            4 => {
                let half = b.unary(Unary::Tanh, y);
                b.mul(x, half)
            }
            5 => b.binary([Binary::Max, Binary::Min, Binary::Less, Binary::Equal][d.below(4)], x, y),
            6 => b.select(z, x, y),
            7 => {
                let c = [0.0, 1.0, -1.0, 0.5][d.below(4)];
                let fill = b.fill(c, shape);
                let (f, flip) = ([Binary::Add, Binary::Sub, Binary::Mul][d.below(3)], d.below(2) == 0);
                if flip { b.binary(f, fill, x) } else { b.binary(f, x, fill) }
            }
            8 => {
                let targets: Vec<Vec<usize>> = match shape.as_slice() {
                    [] | [1] => vec![vec![3], vec![7, 3], vec![2, 1, 3], vec![1, 3]],
                    [3] | [1, 3] => vec![vec![7, 3], vec![2, 1, 3], vec![1, 3], vec![2, 5, 3]],
                    [7] => vec![vec![2, 7]],
                    [7, 1] => vec![vec![7, 3], vec![7, 1]],
                    [2, 1, 3] => vec![vec![2, 5, 3]],
                    _ => vec![shape.clone()],
                };
                let to = targets[d.below(targets.len())].clone();
                b.broadcast(x, to)
            }
            9 if !shape.is_empty() => b.sum(x, &[d.below(shape.len())]),
            10 => {
                let to = match b.ty(x).elements() {
                    1 => vec![1],
                    3 => vec![1, 3],
                    7 => vec![7, 1],
                    21 => vec![7, 3],
                    6 => vec![2, 1, 3],
                    n => vec![n],
                };
                b.reshape(x, to)
            }
            11 => {
                // Equal draws may share a key; draws of different sizes may not.
                let key = (b.ty(x).elements() * 3 + d.below(3)) as u32;
                b.op(Op::Dropout { rate: 0.25.into(), key }, &[x, rng])
            }
            12 if !shape.is_empty() => b.softmax(x),
            13 => b.op(Op::SumOfSquares, &[x, y]),
            14 => {
                let table: Vec<Value> = pool.iter().copied().filter(|&v| b.shape(v) == state_shape).collect();
                let gradient = table[d.below(table.len())];
                let second = table[d.below(table.len())];
                let v = b.unary(Unary::Abs, second);
                let p = table[d.below(table.len())];
                let m = table[d.below(table.len())];
                let step = b.op(Op::AdamW(attrs()), &[p, gradient, m, v, hyper]);
                pool.push(step.result(1));
                step
            }
            _ => b.fill(0.25, shape),
        };
        pool.push(new);
    }
    let mut optimizer = None;
    if d.below(2) == 0 {
        // The shape of a real optimiser step: all three operands are states, updated in place.
        let fits: Vec<Value> = pool.iter().copied().filter(|&v| b.shape(v) == state_shape).collect();
        let gradient = fits[d.below(fits.len())];
        let v = states[2];
        let step = b.op(Op::AdamW(attrs()), &[states[0], gradient, states[1], v, hyper]);
        optimizer = Some(step);
        pool.push(step);
        let after = b.add(step, states[0]);
        pool.push(after);
    }
    if d.below(2) == 0 {
        // Several such steps that nothing reads. A gradient may be another tensor that is updated.
        let names = [0, 1, 2].map(|i| ["p", "m", "v"].map(|kind| format!("{kind}{i}")));
        let tensors = names.map(|names| names.map(|name| (b.state(&name, TensorType::f32(state_shape.clone())), name)));
        pool.extend(tensors.iter().map(|[(p, _), ..]| *p));
        for [(p, p_name), (m, m_name), (v, v_name)] in tensors {
            let fits: Vec<Value> = pool.iter().copied().filter(|&v| b.shape(v) == state_shape).collect();
            let step = b.op(Op::AdamW(attrs()), &[p, fits[d.below(fits.len())], m, v, hyper]);
            for (slot, name) in [p_name, m_name, v_name].into_iter().enumerate() {
                b.update(name, step.result(slot as u8));
            }
        }
    }
    for i in 0..STATES {
        let fits: Vec<Value> = pool.iter().copied().filter(|&v| b.shape(v) == state_shape).collect();
        let v = match (optimizer, i) {
            (Some(step), 0..3) => step.result(i as u8),
            _ if d.below(4) == 0 => continue,
            _ => fits[d.below(fits.len())],
        };
        b.update(format!("s{i}"), v);
    }
    for i in 0..4 {
        let v = pool[d.below(pool.len())];
        b.output(format!("y{i}"), v);
    }
    b.finish().unwrap()
}

fn bindings(seed: u64, graph: &Graph) -> BTreeMap<String, Tensor> {
    let mut d = Draw::new(seed ^ 0x5555);
    let mut values = BTreeMap::new();
    for id in graph.ids() {
        if let Op::Input { name, ty } | Op::State { name, ty, .. } = &graph.node(id).op {
            let n = ty.elements();
            let data = match ty.dtype {
                DType::F32 if name == "s2" || name.starts_with('v') => {
                    Data::F64((0..n).map(|_| d.real().abs()).collect())
                }
                DType::F32 if name == "hyper" => Data::F64(vec![0.01, 0.1, 0.01]),
                DType::F32 => Data::F64((0..n).map(|_| d.real()).collect()),
                DType::I32 => Data::I32(random::state(seed, 3).to_vec()),
            };
            values.insert(name.clone(), Tensor::new(ty.shape.clone(), data).unwrap());
        }
    }
    values
}

fn close(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    for (a, b) in found.to_f64().into_iter().zip(expected.to_f64()) {
        let same = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-9 * (1.0 + b.abs());
        assert!(same, "{what}: {a} is not {b}");
    }
}

fn same(what: &str, found: &Evaluation, expected: &Evaluation) {
    assert_eq!(found.outputs.len(), expected.outputs.len());
    assert_eq!(found.updates.len(), expected.updates.len());
    for (name, t) in &expected.outputs {
        close(&format!("{what}: output {name}"), &found.outputs[name], t);
    }
    for (name, t) in &expected.updates {
        close(&format!("{what}: update {name}"), &found.updates[name], t);
    }
}

/// Runs one plan of a program on the interpreter and reads everything back.
fn run(program: &Program, graph: &Graph, values: &BTreeMap<String, Tensor>) -> Evaluation {
    let mut session = Interpreter.prepare(program).unwrap();
    for s in &program.states {
        session.write_state(&s.name, &values[&s.name]).unwrap();
    }
    let plan = &program.plans[0];
    let inputs: Vec<(&str, &Tensor)> = plan.inputs.iter().map(|p| (p.name.as_str(), &values[&p.name])).collect();
    session.run(&plan.name, &inputs).unwrap();
    let outputs = graph.outputs().iter().map(|(n, _)| (n.clone(), session.output(&plan.name, n).unwrap())).collect();
    let updates = graph.updates().iter().map(|(n, _)| (n.clone(), session.read_state(n).unwrap())).collect();
    for s in &program.states {
        if !graph.updates().iter().any(|(n, _)| *n == s.name) {
            close(&s.name, &session.read_state(&s.name).unwrap(), &values[&s.name]);
        }
    }
    Evaluation { outputs, updates }
}

/// No step writes over bytes that a later step still reads: every read finds the bytes of the last write to its buffer.
fn no_overlap(plan: &Plan) {
    let blocks = plan.arena_bytes / ALIGNMENT;
    assert_eq!(plan.arena_bytes % ALIGNMENT, 0);
    let mut stamp: Vec<Option<usize>> = vec![None; blocks];
    let range = |b: moec_plan::BufferId| match plan.buffer(b).storage {
        Storage::Arena(offset) => {
            assert_eq!(offset % ALIGNMENT, 0);
            let end = offset + plan.buffer(b).ty.bytes();
            assert!(end <= plan.arena_bytes);
            offset / ALIGNMENT..end.div_ceil(ALIGNMENT)
        }
        Storage::State(_) => 0..0,
    };
    for (i, p) in plan.inputs.iter().enumerate() {
        for block in range(p.buffer) {
            assert_eq!(stamp[block], None, "inputs overlap");
            stamp[block] = Some(usize::MAX - i);
        }
    }
    for (step, s) in plan.steps.iter().enumerate() {
        for &b in &s.operands {
            let mut found = range(b).map(|block| stamp[block]);
            let first = found.next();
            assert!(first != Some(None), "%{} reads what nobody wrote", s.name);
            assert!(found.all(|f| Some(f) == first), "%{} reads bytes of two writers", s.name);
        }
        for (slot, &b) in s.results.iter().enumerate() {
            for block in range(b) {
                // An output or input of the function is never written over.
                for p in plan.inputs.iter() {
                    assert!(!range(p.buffer).contains(&block), "%{} writes over an input", s.name);
                }
                stamp[block] = Some(step * 256 + slot);
            }
        }
    }
    for p in &plan.outputs {
        let mut found = range(p.buffer).map(|block| stamp[block]);
        let first = found.next();
        assert!(first != Some(None) && found.all(|f| Some(f) == first), "output {} is broken", p.name);
    }
}

#[test]
fn plans_mean_what_their_graphs_mean() {
    for seed in 0..400 {
        let graph = random_graph(seed, 6 + (seed as usize % 50));
        let values = bindings(seed, &graph);
        let expected = evaluate(&graph, &values).unwrap();
        let program = plan(&[("f".to_string(), &graph)]).unwrap();
        no_overlap(&program.plans[0]);
        same(&format!("seed {seed}"), &run(&program, &graph, &values), &expected);
        assert_eq!(program, plan(&[("f".to_string(), &graph)]).unwrap(), "planning is not deterministic");
        for step in &program.plans[0].steps {
            if let Some(Op::AdamW(_)) = step.kernel().op() {
                for slot in 0..step.results.len() {
                    let position = step.kernel().in_place(slot).unwrap();
                    let storage = |b| &program.plans[0].buffer(b).storage;
                    assert_eq!(storage(step.operands[position]), storage(step.results[slot]), "AdamW not in place");
                }
            }
        }
    }
}

#[test]
fn every_pass_keeps_the_meaning() {
    for seed in 0..400 {
        let graph = random_graph(seed, 6 + (seed as usize % 50));
        let values = bindings(seed, &graph);
        let expected = evaluate(&graph, &values).unwrap();
        for pass in PASSES {
            let options = OptimizeOptions { after: Some(pass.name.to_string()), ..OptimizeOptions::default() };
            let (optimized, _) = optimize(&graph, &options).unwrap();
            let what = format!("seed {seed} after {}", pass.name);
            same(&what, &evaluate(&optimized, &values).unwrap(), &expected);
        }
        let (optimized, _) = optimize(&graph, &OptimizeOptions::default()).unwrap();
        for fusion in &FUSIONS {
            let options = ClusterOptions { after: Some(fusion.name.to_string()), ..ClusterOptions::default() };
            let (clusters, _) = cluster(&optimized, &options).unwrap();
            let program = plan(&[("f".to_string(), &clusters)]).unwrap();
            no_overlap(&program.plans[0]);
            same(&format!("seed {seed} after {}", fusion.name), &run(&program, &optimized, &values), &expected);
        }
    }
}

#[test]
fn any_number_of_rewrites_keeps_the_meaning() {
    for seed in 0..20 {
        let graph = random_graph(seed, 40);
        let values = bindings(seed, &graph);
        let expected = evaluate(&graph, &values).unwrap();
        let (optimized, report) = optimize(&graph, &OptimizeOptions::default()).unwrap();
        for budget in 0..=report.rewrites() {
            let options = OptimizeOptions { max_rewrites: Some(budget), ..OptimizeOptions::default() };
            let (optimized, report) = optimize(&graph, &options).unwrap();
            assert_eq!(report.rewrites(), budget);
            same(&format!("seed {seed}, {budget} rewrites"), &evaluate(&optimized, &values).unwrap(), &expected);
        }
        let (_, report) = cluster(&optimized, &ClusterOptions::default()).unwrap();
        for budget in 0..=report.rewrites() {
            let options = ClusterOptions { max_decisions: Some(budget), ..ClusterOptions::default() };
            let (clusters, report) = cluster(&optimized, &options).unwrap();
            assert_eq!(report.rewrites(), budget);
            let program = plan(&[("f".to_string(), &clusters)]).unwrap();
            same(&format!("seed {seed}, {budget} decisions"), &run(&program, &optimized, &values), &expected);
        }
    }
}

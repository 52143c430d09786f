//! Every operation as a program of one step, on awkward shapes, against the reference evaluator. The CPU's results must
//! not depend on the number of threads, to the bit.

use std::sync::OnceLock;
use std::time::Duration;

use moec_ir::{
    AdamWAttrs, AttentionAttrs, Binary, Builder, CapacityPriority, DType, Data, Graph, Op, Precision, Tensor,
    TensorType, Unary, UnpackAttrs, Value, WeightFormat, evaluate, evaluate_op, random,
};
use moec_plan::{Backend, BackendError, Buffer, BufferId, ClusterOptions, Program, Step, Storage, cluster, plan};

#[cfg(feature = "cpu")]
use crate::launch::Bf16Products;
use crate::{CubeBackend, Device, DeviceProfile, kernel_names};

/// Extents that are no multiple of a vector, and some that are.
const EXTENTS: [usize; 8] = [1, 3, 7, 16, 17, 33, 64, 128];

/// A graph whose inputs `x0`, `x1`, .. are some operands and whose outputs `y0`, `y1`, .. are what is built of them.
fn graph(operands: &[&Tensor], build: impl FnOnce(&mut Builder, &[Value]) -> Vec<Value>) -> Graph {
    let mut b = Builder::new();
    let inputs: Vec<Value> = operands.iter().enumerate().map(|(i, t)| b.input(format!("x{i}"), t.ty())).collect();
    for (i, value) in build(&mut b, &inputs).into_iter().enumerate() {
        b.output(format!("y{i}"), value);
    }
    b.finish().unwrap()
}

/// A graph of one operation.
fn graph_of(op: &Op, operands: &[&Tensor]) -> Graph {
    graph(operands, |b, x| {
        let y = b.op(op.clone(), x);
        (0..b.graph().node(y.node).results.len()).map(|slot| y.result(slot as u8)).collect()
    })
}

/// A program of one operation.
fn program(op: &Op, operands: &[&Tensor]) -> Program {
    plan(&[("f".to_string(), &graph_of(op, operands))]).unwrap()
}

/// A program of a graph in clusters, which launch as many steps as are said.
fn together(graph: &Graph, steps: usize) -> Program {
    let (clusters, _) = cluster(graph, &ClusterOptions::default()).unwrap();
    let program = plan(&[("f".to_string(), &clusters)]).unwrap();
    assert_eq!(program.plans[0].steps.len(), steps, "{clusters}");
    program
}

fn run(backend: &CubeBackend, op: &Op, operands: &[&Tensor]) -> Vec<Tensor> {
    run_program(backend, &program(op, operands), operands)
}

fn run_program(backend: &CubeBackend, program: &Program, operands: &[&Tensor]) -> Vec<Tensor> {
    let names: Vec<String> = (0..operands.len()).map(|i| format!("x{i}")).collect();
    let inputs: Vec<(&str, &Tensor)> = names.iter().map(String::as_str).zip(operands.iter().copied()).collect();
    let mut session = backend.prepare(program).unwrap();
    session.run("f", &inputs).unwrap();
    (0..program.plans[0].outputs.len()).map(|i| session.output("f", &format!("y{i}")).unwrap()).collect()
}

/// The CPU with one and with several threads, and wgpu where there is a device.
fn backends() -> &'static [(&'static str, CubeBackend)] {
    static BACKENDS: OnceLock<Vec<(&'static str, CubeBackend)>> = OnceLock::new();
    BACKENDS.get_or_init(|| {
        let mut all = Vec::new();
        if cfg!(feature = "cpu") {
            all.push(("one thread", CubeBackend::cpu_with_threads(1).unwrap()));
            all.push(("two threads", CubeBackend::cpu_with_threads(2).unwrap()));
        }
        match CubeBackend::open(Device::Wgpu) {
            Ok(backend) => all.push(("wgpu", backend)),
            Err(why) if std::env::var_os("MOEC_REQUIRE_WGPU").is_some_and(|v| v == "1") => panic!("{why}"),
            Err(_) => println!("skipped on wgpu: no device"),
        }
        all
    })
}

/// Compares every backend with the reference: integers exactly, floats within `tolerance` of the largest element.
fn check(op: &Op, operands: &[&Tensor], tolerance: f64) {
    let types: Vec<String> = operands.iter().map(|t| t.ty().to_string()).collect();
    let expected = evaluate_op(op, operands).unwrap();
    check_program(&format!("{op:?} of {types:?}"), &program(op, operands), operands, &expected, tolerance);
}

/// As [`check`], for the clusters of a graph.
fn check_together(graph: &Graph, steps: usize, operands: &[&Tensor], tolerance: f64) {
    let program = together(graph, steps);
    let values = operands.iter().enumerate().map(|(i, t)| (format!("x{i}"), (*t).clone())).collect();
    let evaluation = evaluate(graph, &values).unwrap();
    let expected: Vec<Tensor> =
        (0..evaluation.outputs.len()).map(|i| evaluation.outputs[&format!("y{i}")].clone()).collect();
    check_program(&moec_ir::print(graph), &program, operands, &expected, tolerance);
}

fn check_program(what: &str, program: &Program, operands: &[&Tensor], expected: &[Tensor], tolerance: f64) {
    check_program_on(backends(), what, program, operands, expected, tolerance);
}

/// As [`check`], for sizes that take a graphics device in software minutes.
fn check_on_cpu(op: &Op, operands: &[&Tensor], tolerance: f64) {
    let expected = evaluate_op(op, operands).unwrap();
    let what = format!("{op:?} of {}", operands[0].ty());
    check_program_on(on_cpu(), &what, &program(op, operands), operands, &expected, tolerance);
}

fn on_cpu() -> impl Iterator<Item = &'static (&'static str, CubeBackend)> {
    backends().iter().filter(|(name, _)| *name != "wgpu")
}

/// As [`check`], for sizes at which only kernels of graphics devices do something else. Runs twice and compares bits.
fn check_on_graphics_device(op: &Op, operands: &[&Tensor], tolerance: f64) {
    let expected = evaluate_op(op, operands).unwrap();
    let (what, program) = (format!("{op:?} of {}", operands[0].ty()), program(op, operands));
    for (name, backend) in backends().iter().filter(|(name, _)| *name == "wgpu") {
        let [found, again] = [(); 2].map(|()| run_program(backend, &program, operands));
        let what = format!("{what} on {name}");
        for (slot, (found, expected)) in found.iter().zip(&expected).enumerate() {
            close(&format!("{what}, result {slot}"), found, expected, tolerance);
        }
        assert_eq!(found, again, "{what}: it is not the same again");
    }
}

fn check_program_on(
    backends: impl IntoIterator<Item = &'static (&'static str, CubeBackend)>,
    what: &str,
    program: &Program,
    operands: &[&Tensor],
    expected: &[Tensor],
    tolerance: f64,
) {
    let mut one_thread: Option<Vec<Tensor>> = None;
    for (name, backend) in backends {
        let found = run_program(backend, program, operands);
        let what = format!("{what} on {name}");
        for (slot, (found, expected)) in found.iter().zip(expected).enumerate() {
            close(&format!("{what}, result {slot}"), found, expected, tolerance);
        }
        match *name {
            "one thread" => one_thread = Some(found),
            "two threads" => {
                let bits = |t: &Tensor| t.to_f32().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                for (a, b) in found.iter().zip(one_thread.iter().flatten()) {
                    assert_eq!(bits(a), bits(b), "{what}: the number of threads shows");
                }
            }
            _ => {}
        }
    }
}

fn close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.ty(), expected.ty(), "{what}");
    if let (Some(f), Some(e)) = (found.as_i32(), expected.as_i32()) {
        assert_eq!(f, e, "{what}");
        return;
    }
    let (found, expected) = (found.to_f64(), expected.to_f64());
    let largest = expected.iter().filter(|x| x.is_finite()).fold(1e-30f64, |m, x| m.max(x.abs()));
    for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
        let same = f == e || f.is_nan() && e.is_nan() || (f - e).abs() <= tolerance * largest;
        assert!(same, "{what}, element {i}: {f} and not {e}");
    }
}

/// Standard normal numbers that depend on the shape and `salt` only.
fn normal(shape: &[usize], salt: u32) -> Tensor {
    let keys = random::keys(random::state(99, u64::from(salt)), shape.len() as u32);
    let n: usize = shape.iter().product();
    let values = (0..n).map(|i| random::normal_at(keys, i as u32) as f32).collect();
    Tensor::new(shape.to_vec(), Data::F32(values)).unwrap()
}

fn map(t: &Tensor, f: impl Fn(f32) -> f32) -> Tensor {
    Tensor::new(t.shape().to_vec(), Data::F32(t.to_f32().into_iter().map(f).collect())).unwrap()
}

/// Integers in `low..high`.
fn indices(shape: &[usize], low: i32, high: i32, salt: u32) -> Tensor {
    let keys = random::keys(random::state(7, u64::from(salt)), 1);
    let n: usize = shape.iter().product();
    let span = (high - low) as u32;
    let values = (0..n).map(|i| low + (random::bits(keys, i as u32) % span) as i32).collect();
    Tensor::new(shape.to_vec(), Data::I32(values)).unwrap()
}

fn rng() -> Tensor {
    Tensor::ints(random::state(0x1234_5678_9abc_def0, 3 << 33 | 5).to_vec())
}

#[test]
fn unary_functions() {
    for f in Unary::ALL {
        for n in [1, 7, 33, 128] {
            let mut x = normal(&[n], 1);
            if matches!(f, Unary::Log | Unary::Sqrt | Unary::Recip) {
                x = map(&x, |v| v.abs() + 0.1);
            }
            check(&Op::Unary(f), &[&x], 2e-6);
        }
    }
    // Far from 0, and 0 itself: no overflow, no lost tail.
    let ends = Tensor::floats(vec![-90.0, -20.0, -5.0, -1e-3, -1e-6, 0.0, 1e-6, 1e-3, 0.19, 0.21, 5.0, 20.0, 80.0]);
    for f in [Unary::Sigmoid, Unary::Tanh, Unary::Softplus, Unary::Relu, Unary::Sign, Unary::Abs, Unary::NormalCdf] {
        check(&Op::Unary(f), &[&ends], 1e-6);
    }
    for (f, x) in [(Unary::NormalCdf, -5.0), (Unary::Tanh, 1e-3), (Unary::Softplus, -20.0), (Unary::Sigmoid, -20.0)] {
        check(&Op::Unary(f), &[&Tensor::floats(vec![x])], 3e-6);
    }
}

#[test]
fn binary_functions_and_selection() {
    for shape in [vec![1], vec![3, 7], vec![33], vec![8, 16]] {
        let (a, b) = (normal(&shape, 1), normal(&shape, 2));
        for f in Binary::ALL {
            check(&Op::Binary(f), &[&a, &b], 2e-6);
            // Ties.
            check(&Op::Binary(f), &[&a, &a], 2e-6);
        }
        let condition = map(&a, |v| if v > 0.3 { v } else { 0.0 });
        check(&Op::Select, &[&condition, &a, &b], 0.0);
    }
}

#[test]
fn fills_reshapes_and_broadcasts() {
    check(&Op::Fill { value: 2.5.into(), ty: TensorType::f32([3, 11]) }, &[], 0.0);
    check(&Op::Fill { value: (-1.0).into(), ty: TensorType::f32([]) }, &[], 0.0);
    check(&Op::Reshape { shape: vec![7, 3] }, &[&normal(&[3, 7], 1)], 0.0);
    check(&Op::Reshape { shape: vec![4, 8] }, &[&indices(&[32], -3, 9, 1)], 0.0);
    for (from, to) in [
        (vec![], vec![3, 5]),
        (vec![5], vec![3, 5]),
        (vec![16], vec![4, 16]),
        (vec![3, 1], vec![3, 5]),
        (vec![4, 1], vec![4, 32]),
        (vec![1, 5], vec![3, 5]),
        (vec![3, 1, 5], vec![3, 7, 5]),
        (vec![3, 1, 1], vec![3, 7, 5]),
        (vec![1, 7, 1], vec![3, 7, 5]),
        (vec![7, 1], vec![3, 7, 5]),
        (vec![3, 7], vec![3, 7]),
    ] {
        check(&Op::Broadcast { shape: to }, &[&normal(&from, 1)], 0.0);
    }
}

#[test]
fn fused_programs() {
    // silu(a * b + bias) * row, masked, and a second result.
    for (rows, cols) in [(3, 7), (5, 16), (8, 32), (1, 1), (33, 17)] {
        let (x, bias, row) = (normal(&[rows, cols], 1), normal(&[cols], 2), normal(&[rows, 1], 3));
        for scalar in [0.0, 1.0] {
            let scalar = Tensor::scalar(scalar);
            let operands = [&x, &bias, &row, &scalar, &rng()];
            let graph = graph(&operands, |b, v| {
                let [bias, row, scalar] = [1, 2, 3].map(|i| b.broadcast(v[i], [rows, cols]));
                let half = b.fill(0.5, [rows, cols]);
                let sum = b.add(v[0], bias);
                let sigmoid = b.unary(Unary::Sigmoid, sum);
                let silu = b.mul(sum, sigmoid);
                let product = b.mul(silu, row);
                let masked = b.op(Op::Dropout { rate: 0.25.into(), key: 7 }, &[product, v[4]]);
                let less = b.binary(Binary::Less, half, scalar);
                let chosen = b.select(less, masked, sum);
                vec![masked, chosen, b.op(Op::Dropout { rate: 0.5.into(), key: 8 }, &[sum, v[4]])]
            });
            check_together(&graph, 1, &operands, 2e-6);
        }
    }
}

#[test]
fn random_numbers_and_dropout() {
    for n in [1, 7, 33, 1024] {
        check(&Op::RandomUniform { key: 3, shape: vec![n] }, &[&rng()], 0.0);
        check(&Op::RandomNormal { key: 4, shape: vec![n] }, &[&rng()], 2e-6);
        check(&Op::Dropout { rate: 0.3.into(), key: 5 }, &[&normal(&[n], 1), &rng()], 1e-6);
    }
}

#[test]
fn sums() {
    for (shape, axes) in [
        (vec![7], vec![0]),
        (vec![1000], vec![0]),
        (vec![16, 1000], vec![0, 1]),
        (vec![3, 7], vec![0]),
        (vec![3, 7], vec![1]),
        (vec![33, 17], vec![0, 1]),
        (vec![300, 16], vec![0]),
        (vec![300, 8], vec![1]),
        (vec![3, 100, 5], vec![1]),
        (vec![3, 100, 16], vec![1]),
        (vec![3, 4, 5], vec![0, 2]),
        (vec![3, 4, 5, 6], vec![0, 2]),
        (vec![3, 4, 5], vec![1, 2]),
        (vec![1, 4, 1], vec![0, 2]),
        (vec![1, 4, 1], vec![0, 1]),
    ] {
        check(&Op::Sum { axes }, &[&normal(&shape, 1)], 1e-5);
    }
    let operands = [normal(&[3, 7], 1), normal(&[4096], 2), normal(&[1], 3), normal(&[33, 17], 4)];
    check(&Op::SumOfSquares, &operands.iter().collect::<Vec<_>>(), 1e-5);
    // More tensors than a launch sums, of several widths, one of them with nothing in it; and nothing at all.
    let mut many: Vec<Tensor> = (0..20).map(|i| normal(&[1 + i * i % 7, 1 << (i % 5)], i as u32)).collect();
    many.insert(5, normal(&[0, 3], 1));
    check(&Op::SumOfSquares, &many.iter().collect::<Vec<_>>(), 1e-5);
    check(&Op::SumOfSquares, &[&normal(&[0, 3], 1), &normal(&[0], 1)], 1e-5);
}

#[test]
fn softmax_family() {
    for rows in [1, 5, 33] {
        for m in EXTENTS {
            let x = map(&normal(&[rows, m], 1), |v| 5.0 * v + 80.0);
            check(&Op::Softmax, &[&x], 1e-5);
            check(&Op::LogSumExp, &[&x], 1e-6);
            let y = evaluate_op(&Op::Softmax, &[&x]).unwrap().remove(0);
            check(&Op::SoftmaxGrad, &[&normal(&[rows, m], 2), &y], 1e-5);
        }
    }
    // Masked entries.
    let masked =
        Tensor::new([2, 3], Data::F32(vec![0.0, f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, 2.0, 0.5])).unwrap();
    check(&Op::Softmax, &[&masked], 1e-6);
    check(&Op::LogSumExp, &[&masked], 1e-6);
}

#[test]
fn norms() {
    // The last has more rows than a graphics device takes in one round.
    for (rows, extents) in [(1, &EXTENTS[..]), (5, &EXTENTS), (100, &EXTENTS), (16_400, &EXTENTS[1..2])] {
        for &c in extents {
            let x = map(&normal(&[rows, c], 1), |v| 2.0 * v + 3.0);
            let (gain, shift, dy) = (normal(&[c], 2), normal(&[c], 3), normal(&[rows, c], 4));
            let layer = Op::LayerNorm { epsilon: 1e-5.into() };
            let rms = Op::RmsNorm { epsilon: 1e-6.into() };
            // One channel has no variance: what is left is rounding, divided by the root of epsilon.
            let tolerance = if c == 1 { 1e-3 } else { 2e-5 };
            check(&layer, &[&x, &gain, &shift], tolerance);
            check(&rms, &[&x, &gain], 1e-5);
            let y = evaluate_op(&layer, &[&x, &gain, &shift]).unwrap();
            if c > 1 {
                check(&Op::LayerNormGrad, &[&dy, &x, &gain, &y[1], &y[2]], 2e-5);
            }
            // With one channel the gradient of x is what is left when equal numbers cancel.
            let y = evaluate_op(&rms, &[&x, &gain]).unwrap();
            if c > 1 {
                check(&Op::RmsNormGrad, &[&dy, &x, &gain, &y[1]], 2e-5);
            }
        }
    }
}

/// A residual and a mask that go on with the rows of a norm, beside its statistics.
#[test]
fn norms_go_on_with_a_program() {
    for (rows, ch) in [(1, 1), (3, 7), (17, 33), (33, 16), (5, 48)] {
        let (x, gain, residual) = (normal(&[rows, ch], 1), normal(&[ch], 2), normal(&[rows, ch], 3));
        let epsilon = 1e-5.into();
        for (norm, vectors) in [(Op::LayerNorm { epsilon }, 2), (Op::RmsNorm { epsilon }, 1)] {
            let operands = [&x, &gain, &residual, &rng()];
            let graph = graph(&operands, |b, v| {
                let made = b.op(norm.clone(), &[&v[..1], &vec![v[1]; vectors]].concat());
                let kept = b.op(Op::Dropout { rate: 0.25.into(), key: 7 }, &[made, v[3]]);
                vec![b.add(v[2], kept), made, made.result(1)]
            });
            check_together(&graph, 1, &operands, 1e-5);
        }
    }
}

#[test]
fn embedding_and_loss() {
    for (tokens, rows, c) in [(1, 1, 1), (33, 7, 3), (40, 65, 16), (17, 3, 128)] {
        let (ids, table) = (indices(&[tokens], 0, rows as i32, 1), normal(&[rows, c], 1));
        check(&Op::Embed, &[&ids, &table], 0.0);
        check(&Op::EmbedGrad { rows }, &[&ids, &normal(&[tokens, c], 2)], 1e-5);
    }
    for (tokens, vocab) in [(1, 1), (5, 1), (3, 7), (33, 65), (100, 64), (300, 16)] {
        let logits = map(&normal(&[tokens, vocab], 1), |v| 3.0 * v);
        let targets = indices(&[tokens], 0, vocab as i32, 2);
        check(&Op::CrossEntropy, &[&logits, &targets], 1e-5);
        let lse = evaluate_op(&Op::CrossEntropy, &[&logits, &targets]).unwrap().remove(1);
        check(&Op::CrossEntropyGrad, &[&Tensor::scalar(1.5), &logits, &lse, &targets], 1e-5);
        let with_gradient = graph(&[&logits, &targets], |b, x| {
            let (loss, dloss) = (b.op(Op::CrossEntropy, x), b.fill(1.5, []));
            vec![loss, b.op(Op::CrossEntropyGrad, &[dloss, x[0], loss.result(1), x[1]])]
        });
        check_together(&with_gradient, 1, &[&logits, &targets], 1e-5);
        if cfg!(feature = "cpu") {
            // On the CPU, to the bit what loss and gradient are alone. The log-sum-exp is the kernel's own.
            let (_, backend) = backends().iter().find(|(name, _)| *name == "two threads").unwrap();
            let alone = run(backend, &Op::CrossEntropy, &[&logits, &targets]);
            let gradient = run(backend, &Op::CrossEntropyGrad, &[&Tensor::scalar(1.5), &logits, &alone[1], &targets]);
            let together = run_program(backend, &together(&with_gradient, 1), &[&logits, &targets]);
            assert!(together == [alone[0].clone(), gradient[0].clone()], "{tokens} tokens of {vocab}");
        }
    }
}

#[test]
fn selection() {
    // Few, many and all of short and of long rows: passes, heaps and ranks.
    for (rows, e, k) in
        [(1, 1, 1), (5, 8, 2), (33, 7, 7), (3, 64, 6), (2, 300, 17), (3, 257, 257), (5, 65, 9), (2, 300, 3)]
    {
        let x = normal(&[rows, e], 1);
        check(&Op::TopK { k, skip: 0 }, &[&x], 0.0);
        // Many ties, infinities.
        let tied = map(&x, |v| if v > 1.5 { f32::INFINITY } else { v.round() });
        check(&Op::TopK { k, skip: 0 }, &[&tied], 0.0);
        let masked = map(&x, |v| if v < 0.0 { f32::NEG_INFINITY } else { v });
        check(&Op::TopK { k, skip: 0 }, &[&masked], 0.0);
        let holes = map(&x, |v| if v > 0.5 { f32::NAN } else { v });
        check(&Op::TopK { k, skip: 0 }, &[&holes], 0.0);
        let both = map(&x, |v| {
            if v > 0.5 {
                f32::NAN
            } else if v < 0.0 {
                f32::NEG_INFINITY
            } else {
                -0.0 * v.round()
            }
        });
        check(&Op::TopK { k, skip: 0 }, &[&both], 0.0);
        for skip in [k / 2, k - 1] {
            for x in [&x, &tied, &both] {
                check(&Op::TopK { k, skip }, &[x], 0.0);
            }
        }
        // Some are out of range.
        let chosen = indices(&[rows, k], -3, e as i32 + 2, 3);
        check(&Op::GatherLast, &[&x, &chosen], 0.0);
        check(&Op::ScatterLast { size: e }, &[&normal(&[rows, k], 4), &chosen], 1e-6);
        check(&Op::Count { size: e }, &[&chosen], 0.0);
    }
}

#[test]
fn routing() {
    for (tokens, k, experts, c) in [(1, 1, 1, 1), (7, 2, 3, 5), (33, 2, 8, 16), (17, 3, 64, 7), (5, 4, 2, 32)] {
        let chosen = indices(&[tokens, k], -2, experts as i32 + 1, 1);
        let probabilities = map(&normal(&[tokens, k], 5), |v| if v > 1.0 { f32::NAN } else { v.round() });
        for capacity in [1, 3, tokens * k] {
            let limit = |priority| Op::LimitCapacity { experts, capacity, priority };
            check(&limit(CapacityPriority::Token), &[&chosen], 0.0);
            check(&limit(CapacityPriority::Choice), &[&chosen], 0.0);
            check(&limit(CapacityPriority::Probability), &[&chosen, &probabilities], 0.0);
        }
        for rows in [1, (tokens * k).div_ceil(2)] {
            check(&Op::SortByExpert { experts, rows }, &[&chosen], 0.0);
        }
        let sort = Op::SortByExpert { experts, rows: tokens * k };
        check(&sort, &[&chosen], 0.0);
        let sorted = evaluate_op(&sort, &[&chosen]).unwrap();
        let (order, positions) = (&sorted[1], &sorted[2]);
        let (x, y, weights) = (normal(&[tokens, c], 2), normal(&[tokens * k, c], 3), normal(&[tokens, k], 4));
        check(&Op::Dispatch { weighted: false }, &[&x, order, positions], 0.0);
        check(&Op::Dispatch { weighted: true }, &[&x, order, positions, &weights], 1e-6);
        check(&Op::Combine { weighted: false }, &[&y, order, positions], 1e-6);
        check(&Op::Combine { weighted: true }, &[&y, order, positions, &weights], 1e-6);
        check(&Op::CombineWeightGrad, &[&x, &y, positions], 1e-5);
        // Rows and slots that are not there.
        let (order, positions) = (indices(&[5.min(tokens * k)], -3, 200, 6), indices(&[tokens, k], -3, 200, 7));
        let y = normal(&[order.shape()[0], c], 3);
        check(&Op::Dispatch { weighted: true }, &[&x, &order, &positions, &weights], 1e-6);
        check(&Op::Combine { weighted: true }, &[&y, &order, &positions, &weights], 1e-6);
        check(&Op::CombineWeightGrad, &[&x, &y, &positions], 1e-5);
    }
    // Nothing is kept.
    let none = Tensor::new([4, 2], Data::I32(vec![-1; 8])).unwrap();
    check(&Op::SortByExpert { experts: 3, rows: 8 }, &[&none], 0.0);
    check(&Op::LimitCapacity { experts: 3, capacity: 1, priority: CapacityPriority::Token }, &[&none], 0.0);
}

#[test]
fn balanced_assignment() {
    // Small binary fractions: the auction is exact in 32 bits.
    for (tokens, experts) in [(1, 1), (7, 3), (3, 7), (33, 8), (65, 4), (9, 1)] {
        let scores = map(&normal(&[tokens, experts], 1), |v| (v * 8.0).round() / 8.0);
        check(&Op::BalancedAssignment, &[&scores], 0.0);
        check(&Op::BalancedAssignment, &[&map(&scores, |_| -2.5)], 0.0);
        let odd = map(&scores, |v| if v > 0.5 { f32::INFINITY } else { v * 1e30 });
        check(&Op::BalancedAssignment, &[&odd], 0.0);
        let holes = map(&scores, |v| if v > 1.5 { f32::NAN } else { v });
        check(&Op::BalancedAssignment, &[&holes], 0.0);
    }
    // More bidders than a cube has units; more experts, which take the loops of a graphics device in software too often.
    let eighths = |extents: &[usize]| map(&normal(extents, 3), |v| (v * 8.0).round() / 8.0);
    check(&Op::BalancedAssignment, &[&eighths(&[150, 3])], 0.0);
    for (tokens, experts) in [(70, 67), (65, 130), (512, 8)] {
        check_on_cpu(&Op::BalancedAssignment, &[&eighths(&[tokens, experts])], 0.0);
    }
    // Any other scores: balanced, and the same on every number of threads.
    let (tokens, experts) = (50, 7);
    let scores = normal(&[tokens, experts], 2);
    for (name, backend) in backends() {
        let chosen = run(backend, &Op::BalancedAssignment, &[&scores]).remove(0);
        let chosen = chosen.as_i32().unwrap();
        for expert in 0..experts as i32 {
            let load = chosen.iter().filter(|&&e| e == expert).count();
            assert!([7, 8].contains(&load), "{name}: {chosen:?}");
        }
    }
}

#[test]
fn operations_on_few_numbers() {
    for (rows, experts) in [(1, 1), (3, 7), (17, 8), (33, 64), (5, 256)] {
        let x = map(&normal(&[rows, experts], 1), f32::abs);
        // A squared coefficient of variation, with what its gradient needs.
        let deviation = graph(&[&x], |b, x| {
            let load = b.sum(x[0], &[0]);
            let mean = b.mean_all(load);
            let deviation = b.sub(load, mean);
            let squares = b.mul(deviation, deviation);
            let variance = b.mean_all(squares);
            let square = b.mul(mean, mean);
            let square = b.add_scalar(square, 1e-10);
            let scaled = b.mul(deviation, variance);
            let row = b.reshape(scaled, [1, experts]);
            let wide = b.broadcast(row, [300, experts]);
            vec![b.div(variance, square), b.softmax(wide), load]
        });
        // One launch more where the sum over the rows has too many numbers to be among them, and the softmax of the whole.
        let few = rows * experts <= 256;
        check_together(&deviation, if few { 3 } else { 4 }, &[&x], 2e-5);
    }
    // Sums over one and over two axes, rows that are stretched, a choice.
    let (x, row) = (normal(&[3, 7, 5], 2), normal(&[7], 3));
    let sums = graph(&[&x, &row], |b, x| {
        let [one, two] = [&[0][..], &[0, 1]].map(|axes| b.sum(x[0], axes));
        let column = b.reshape(x[1], [7, 1]);
        let stretched = b.broadcast(column, [7, 5]);
        let less = b.binary(Binary::Less, one, stretched);
        let chosen = b.select(less, one, stretched);
        vec![chosen, b.scale(two, 0.5)]
    });
    check_together(&sums, 2, &[&x, &row], 2e-6);
}

#[test]
fn integers() {
    for n in [1, 7, 33, 300] {
        check(&Op::Ramp { length: n, step: -7 }, &[], 0.0);
        let x = indices(&[n], -3, 20, 1);
        check(&Op::ToFloat, &[&x], 0.0);
        check(&Op::Lookup, &[&x, &indices(&[17], -1, 99, 2)], 0.0);
        check(&Op::Previous { time: n }, &[&x], 0.0);
        check(&Op::Previous { time: 1 }, &[&x], 0.0);
        let floats = map(&normal(&[n], 3), |v| if v > 1.5 { f32::NAN } else { v * 4.0 });
        check(&Op::ToIndex { size: 3 }, &[&floats], 0.0);
        check(&Op::Broadcast { shape: vec![3, n] }, &[&x], 0.0);
    }
    check(&Op::Broadcast { shape: vec![2, 5, 3] }, &[&indices(&[5, 1], 0, 9, 1)], 0.0);
    check(&Op::Previous { time: 3 }, &[&indices(&[12], 0, 9, 1)], 0.0);
    check(&Op::Permute { axes: vec![1, 3, 0, 2] }, &[&normal(&[2, 3, 5, 4], 1)], 0.0);
    // Nothing at all.
    let none = Tensor::new([0, 2], Data::I32(Vec::new())).unwrap();
    check(&Op::SortByExpert { experts: 3, rows: 0 }, &[&none], 0.0);
    check(&Op::Count { size: 3 }, &[&none], 0.0);
}

#[test]
fn offsets_out_of_range_are_cut_off() {
    // The reference refuses them; here nothing may be read or written outside of a buffer.
    let (x, w) = (normal(&[5, 3], 1), normal(&[2, 4, 3], 2));
    for offsets in [[0, 3, 1000], [-7, 2, 5], [4, 2, 9], [i32::MAX, i32::MIN, 3], [0, 0, i32::MAX]] {
        let offsets = Tensor::ints(offsets);
        for (_, backend) in backends() {
            let y = run(
                backend,
                &Op::GroupedMatMul { transpose_b: true, bias: false, precision: Precision::F32 },
                &[&x, &w, &offsets],
            );
            assert_eq!(y[0].shape(), [5, 4]);
            let dw = run(
                backend,
                &Op::GroupedMatMulWeightGrad { precision: Precision::F32 },
                &[&normal(&[5, 4], 3), &x, &offsets],
            );
            assert_eq!(dw[0].shape(), [2, 4, 3]);
            assert_eq!(run(backend, &Op::GroupedSum, &[&x, &offsets])[0].shape(), [2, 3]);
        }
    }
}

#[test]
fn adamw() {
    let attrs = AdamWAttrs { beta1: 0.9.into(), beta2: 0.999.into(), epsilon: 1e-8.into(), weight_decay: 0.1.into() };
    for n in [1, 33, 256] {
        let (p, g, m) = (normal(&[n], 1), normal(&[n], 2), normal(&[n], 3));
        let v = map(&normal(&[n], 4), f32::abs);
        let hyper = Tensor::floats(vec![1e-2, 0.271, 0.002_997]);
        check(&Op::AdamW(attrs), &[&p, &g, &m, &v, &hyper], 2e-6);
        check(&Op::AdamW(attrs), &[&p, &g, &m, &v, &hyper, &Tensor::scalar(0.125)], 2e-6);
    }
}

#[test]
fn adamw_of_several_tensors() {
    let op = Op::AdamW(AdamWAttrs {
        beta1: 0.9.into(),
        beta2: 0.999.into(),
        epsilon: 1e-8.into(),
        weight_decay: 0.1.into(),
    });
    let (hyper, scale) = (Tensor::floats(vec![1e-2, 0.271, 0.002_997]), Tensor::scalar(0.125));
    // More than a launch takes, of every width; the last two together have more vectors than the units of a cube.
    let sizes = [1, 3, 7, 17, 33, 64, 0, 5, 9, 13, 96, 1, 4096, 1000];
    let tensors: Vec<[Tensor; 4]> = sizes
        .iter()
        .enumerate()
        .map(|(i, &n)| [0, 1, 2, 3].map(|j| normal(&[n], (4 * i + j) as u32)))
        .map(|[p, g, m, v]| [p, g, m, map(&v, f32::abs)])
        .collect();
    let bits = |t: &Tensor| t.to_f32().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for shared in [vec![&hyper], vec![&hyper, &scale]] {
        let operands: Vec<&Tensor> = tensors.iter().flatten().chain(shared.iter().copied()).collect();
        let graph = graph(&operands, |b, x| {
            let (tensors, shared) = x.split_at(4 * sizes.len());
            let steps = tensors.chunks(4).map(|tensor| b.op(op.clone(), &[tensor, shared].concat()));
            steps.flat_map(|step| [0, 1, 2].map(|slot| step.result(slot))).collect()
        });
        // Of odd lengths nine, of which six go together; 64, 96, 4096 and 1000, of which the last has other vectors.
        let launches =
            |program: &Program| program.plans[0].steps.iter().filter(|s| s.kernel().mnemonic() == "adamw").count();
        let (clusters, _) = cluster(&graph, &ClusterOptions::default()).unwrap();
        let program = plan(&[("f".to_string(), &clusters)]).unwrap();
        assert_eq!(launches(&program), 5, "{clusters}");
        // What else is updated does not show.
        for (name, backend) in backends() {
            let together = run_program(backend, &program, &operands);
            for (i, own) in tensors.iter().enumerate().filter(|(i, _)| sizes[*i] > 0) {
                let alone = run(backend, &op, &own.iter().chain(shared.iter().copied()).collect::<Vec<_>>());
                for (slot, alone) in alone.iter().enumerate() {
                    let found = &together[3 * i + slot];
                    assert!(bits(found) == bits(alone), "{name}: result {slot} of tensor {i} of {sizes:?}");
                }
            }
        }
    }
}

/// Which operands of a product are stored transposed.
const TRANSPOSED: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

#[test]
fn matrix_products() {
    // The last two are longer than a packed block and wider than a panel, with and without a ragged edge.
    for (m, n, k) in [(1, 1, 1), (7, 3, 5), (33, 17, 16), (16, 32, 8), (40, 48, 33), (5, 70, 600), (13, 144, 530)] {
        for (transpose_a, transpose_b) in TRANSPOSED {
            let a = normal(&if transpose_a { [k, m] } else { [m, k] }, 1);
            let b = normal(&if transpose_b { [n, k] } else { [k, n] }, 2);
            let bias = normal(&[n], 3);
            for precision in Precision::ALL {
                let op = |bias| Op::MatMul { transpose_a, transpose_b, bias, precision };
                check(&op(false), &[&a, &b], 1e-5);
                check(&op(true), &[&a, &b, &bias], 1e-5);
            }
        }
    }
    // So many tiles that graphics devices make them larger.
    for (transpose_a, transpose_b, k) in [(false, false, 3), (true, true, 35)] {
        let a = normal(&if transpose_a { [k, 1027] } else { [1027, k] }, 1);
        let b = normal(&if transpose_b { [1030, k] } else { [k, 1030] }, 2);
        for precision in Precision::ALL {
            check(&Op::MatMul { transpose_a, transpose_b, bias: false, precision }, &[&a, &b], 1e-5);
        }
    }
}

/// The gradient of the weights of experts, and that of their biases.
fn grouped_with_sums(operands: &[&Tensor], precision: Precision) -> Graph {
    graph(operands, |b, x| {
        let product = b.op(Op::GroupedMatMulWeightGrad { precision }, x);
        vec![product, b.op(Op::GroupedSum, &[x[0], x[2]])]
    })
}

#[test]
fn products_per_expert() {
    // Empty experts, rows after the last expert, all rows with one of several experts, more rows than a packed block.
    for (offsets, rows, inner, outer) in [
        (vec![0, 1], 1, 1, 1),
        (vec![0, 5, 5, 16], 17, 7, 3),
        (vec![0, 0, 20, 33], 40, 16, 32),
        (vec![0, 0, 0], 3, 4, 5),
        (vec![0, 0, 33, 33], 33, 24, 80),
        (vec![0, 520, 523], 530, 7, 40),
    ] {
        let experts = offsets.len() - 1;
        let offsets = Tensor::ints(offsets);
        let (x, dy) = (normal(&[rows, inner], 1), normal(&[rows, outer], 2));
        for transpose_b in [false, true] {
            let w = normal(&if transpose_b { [experts, outer, inner] } else { [experts, inner, outer] }, 3);
            let bias = normal(&[experts, outer], 4);
            for precision in Precision::ALL {
                let op = |bias| Op::GroupedMatMul { transpose_b, bias, precision };
                check(&op(false), &[&x, &w, &offsets], 1e-5);
                check(&op(true), &[&x, &w, &offsets, &bias], 1e-5);
            }
        }
        for precision in Precision::ALL {
            let operands = [&dy, &x, &offsets];
            check(&Op::GroupedMatMulWeightGrad { precision }, &operands, 1e-5);
            check_together(&grouped_with_sums(&operands, precision), 1, &operands, 1e-5);
        }
        check(&Op::GroupedSum, &[&dy, &offsets], 1e-5);
    }
    // More tiles than a graphics device has cubes.
    let offsets = Tensor::ints((0..=600).map(|e| e * 2 / 3).collect::<Vec<i32>>());
    let operands = [&normal(&[401, 65], 1), &normal(&[401, 65], 2), &offsets];
    for precision in Precision::ALL {
        check(&Op::GroupedMatMulWeightGrad { precision }, &operands, 1e-5);
        check_together(&grouped_with_sums(&operands, precision), 1, &operands, 1e-5);
    }
    // Columns that no unit's tiles end with, and none that fill a vector.
    for (k, m, n) in [(7, 80, 33), (530, 48, 64), (3, 17, 5), (1, 1, 1), (33, 400, 16)] {
        for precision in Precision::ALL {
            let operands = [&normal(&[k, m], 1), &normal(&[k, n], 2)];
            let graph = graph(&operands, |b, x| {
                let op = Op::MatMul { transpose_a: true, transpose_b: false, bias: false, precision };
                vec![b.op(op, x), b.sum(x[0], &[0])]
            });
            check_together(&graph, 1, &operands, 1e-5);
        }
    }
}

/// Products with registers of 128, 256 and 512 bits, whatever those of this processor are: the bits are the same, however a
/// panel comes to the registers.
#[cfg(feature = "cpu")]
#[test]
fn products_for_every_width_of_registers() {
    products_for_every_width(Precision::F32, DeviceProfile::cpu(2));
}

/// The same of bfloat16 numbers, as this processor multiplies them, and as others do.
#[cfg(feature = "cpu")]
#[test]
fn products_of_bfloat16_numbers_for_every_width_of_registers() {
    let this = DeviceProfile::cpu(2);
    let mut all = vec![Bf16Products::Pairs, Bf16Products::Rounded];
    all.extend(this.multiplies_bf16().then_some(Bf16Products::Instruction));
    for products in all {
        products_for_every_width(Precision::Bf16, this.with_bf16(products));
    }
}

#[cfg(feature = "cpu")]
fn products_for_every_width(precision: Precision, profile: DeviceProfile) {
    let backends = [4, 8, 16].map(|lanes| CubeBackend::with_profile(Device::Cpu, profile.with_lanes(lanes)).unwrap());
    let same = |graph: &Graph, operands: &[&Tensor]| {
        let (clusters, _) = cluster(graph, &ClusterOptions::default()).unwrap();
        let program = plan(&[("f".to_string(), &clusters)]).unwrap();
        let values = operands.iter().enumerate().map(|(i, t)| (format!("x{i}"), (*t).clone())).collect();
        let expected = evaluate(graph, &values).unwrap();
        let found = backends.each_ref().map(|backend| run_program(backend, &program, operands));
        for (i, first) in found[0].iter().enumerate() {
            close(&format!("{clusters}"), first, &expected.outputs[&format!("y{i}")], 1e-5);
            let bits = |t: &Tensor| t.to_f32().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(found[1..].iter().all(|found| bits(&found[i]) == bits(first)), "lanes show in\n{clusters}");
        }
    };
    // Whole panels and ragged ones, few tiles and many, one block of summed elements and several.
    for (m, n, k) in [(1, 64, 1), (3, 17, 7), (7, 128, 16), (65, 64, 33), (90, 128, 48), (50, 33, 272), (70, 64, 544)] {
        for (transpose_a, transpose_b) in TRANSPOSED {
            let a = normal(&if transpose_a { [k, m] } else { [m, k] }, 1);
            let b = normal(&if transpose_b { [n, k] } else { [k, n] }, 2);
            let (bias, rest) = (normal(&[n], 3), normal(&[m, n], 4));
            let operands = [&a, &b, &bias, &rest];
            let op = Op::MatMul { transpose_a, transpose_b, bias: true, precision };
            same(&graph_of(&op, &operands[..3]), &operands[..3]);
            // With a program that goes on with the product.
            let go_on = graph(&operands, |b, x| {
                let product = b.op(op.clone(), &x[..3]);
                let cut = b.unary(Unary::Relu, product);
                vec![b.add(cut, x[3])]
            });
            same(&go_on, &operands);
        }
    }
    // Experts without rows and with many, and rows of none; in order and fetched.
    for (sizes, inner, outer) in [([0, 70, 1, 5], 48, 64), ([16, 16, 16, 16], 64, 128), ([3, 0, 0, 30], 17, 33)] {
        let owners: Vec<i32> = (0..4).flat_map(|e| std::iter::repeat_n(e as i32, sizes[e])).collect();
        let rows = owners.len();
        let ends = sizes.iter().scan(0, |end, &size| {
            *end += size as i32;
            Some(*end)
        });
        let offsets = Tensor::ints(std::iter::once(0).chain(ends).collect::<Vec<_>>());
        let owners = Tensor::ints(owners).with_shape([rows, 1]).unwrap();
        let (x, dy) = (normal(&[rows + 2, inner], 1), normal(&[rows + 2, outer], 2));
        for transpose_b in [false, true] {
            let w = normal(&if transpose_b { [4, outer, inner] } else { [4, inner, outer] }, 3);
            let bias = normal(&[4, outer], 4);
            let op = Op::GroupedMatMul { transpose_b, bias: true, precision };
            same(&graph_of(&op, &[&x, &w, &offsets, &bias]), &[&x, &w, &offsets, &bias]);
            let tokens = normal(&[rows, inner], 5);
            let operands = [&tokens, &w, &bias, &owners];
            let fetched = graph(&operands, |b, v| {
                let sort = b.op(Op::SortByExpert { experts: 4, rows }, &[v[3]]);
                let x = b.op(Op::Dispatch { weighted: false }, &[v[0], sort.result(1), sort.result(2)]);
                vec![b.op(op.clone(), &[x, v[1], sort, v[2]])]
            });
            same(&fetched, &operands);
        }
        let operands = [&dy, &x, &offsets];
        same(&grouped_with_sums(&operands, precision), &operands);
        let (dy, x) = (normal(&[rows, outer], 6), normal(&[rows, inner], 7));
        let operands = [&dy, &x, &owners];
        let fetched = graph(&operands, |b, v| {
            let sort = b.op(Op::SortByExpert { experts: 4, rows }, &[v[2]]);
            let x = b.op(Op::Dispatch { weighted: false }, &[v[1], sort.result(1), sort.result(2)]);
            vec![b.op(Op::GroupedMatMulWeightGrad { precision }, &[v[0], x, sort])]
        });
        same(&fetched, &operands);
    }
}

/// Weights that were packed in panels of so many columns, and their scales, as operands, with the operation that reads them.
fn packed(format: WeightFormat, weights: &Tensor, panel: usize) -> (Op, Vec<Tensor>) {
    let columns = weights.shape()[weights.shape().len() - 2];
    let op = Op::Unpack(UnpackAttrs { format, panel, columns });
    (op, [Some(format.pack(weights, panel).unwrap()), format.scales(weights)].into_iter().flatten().collect())
}

#[test]
fn packed_weights() {
    for (shape, panel) in [([1, 1, 1], 4), ([2, 3, 5], 16), ([3, 17, 7], 8), ([1, 130, 33], 64), ([2, 64, 3], 64)] {
        let weights = normal(&shape, 1);
        for format in WeightFormat::ALL {
            let (op, operands) = packed(format, &weights, panel);
            check(&op, &operands.iter().collect::<Vec<_>>(), 1e-7);
        }
    }
}

/// Products that read packed weights, for every width of registers; of float32 numbers with the bits of products that read
/// them as they are.
#[cfg(feature = "cpu")]
#[test]
fn products_of_packed_weights_for_every_width_of_registers() {
    for (lanes, format) in [4, 8, 16].into_iter().flat_map(|lanes| WeightFormat::ALL.map(|format| (lanes, format))) {
        let profile = DeviceProfile::cpu(2).with_lanes(lanes);
        let backend = CubeBackend::with_profile(Device::Cpu, profile).unwrap();
        let limits = profile.launch_limits();
        let one_step = |graph: &Graph, steps: usize| {
            let (clusters, _) = cluster(graph, &ClusterOptions { limits, ..ClusterOptions::default() }).unwrap();
            let program = plan(&[("f".to_string(), &clusters)]).unwrap();
            assert_eq!(program.plans[0].steps.len(), steps, "{clusters}");
            program
        };
        let panel = limits.panel.unwrap();
        // `build` makes what is to be computed of operands, of which the first is the matrix, and of the matrix.
        let same =
            |weights: &Tensor, others: &[&Tensor], steps, build: &dyn Fn(&mut Builder, Value, &[Value]) -> Value| {
                let (unpack, stored) = packed(format, weights, panel);
                let operands: Vec<&Tensor> = stored.iter().chain(others.iter().copied()).collect();
                let read = graph(&operands, |b, x| {
                    let (own, others) = x.split_at(stored.len());
                    let matrix = b.op(unpack.clone(), own);
                    vec![build(b, matrix, others)]
                });
                let values = operands.iter().enumerate().map(|(i, t)| (format!("x{i}"), (*t).clone())).collect();
                let expected = evaluate(&read, &values).unwrap();
                let found = run_program(&backend, &one_step(&read, steps), &operands).remove(0);
                close(
                    &format!("{format:?} of {lanes} lanes: {}", moec_ir::print(&read)),
                    &found,
                    &expected.outputs["y0"],
                    1e-5,
                );
                if format == WeightFormat::F32 {
                    let matrix = evaluate_op(&unpack, &stored.iter().collect::<Vec<_>>()).unwrap().remove(0);
                    let matrix = Tensor::new(matrix.shape(), Data::F32(matrix.to_f32())).unwrap();
                    let plain: Vec<&Tensor> = std::iter::once(&matrix).chain(others.iter().copied()).collect();
                    let graph = graph(&plain, |b, x| vec![build(b, x[0], &x[1..])]);
                    let expected = run_program(&backend, &one_step(&graph, steps), &plain).remove(0);
                    assert_eq!(found, expected, "bits of {lanes} lanes: {}", moec_ir::print(&read));
                }
            };
        let precision = Precision::F32;
        // Whole panels and ragged ones, few rows and many, short sums and longer ones than a block.
        for (m, n, k) in [
            (1, 64, 1),
            (1, 64, 4100),
            (1, 200, 300),
            (2, 17, 7),
            (3, 129, 33),
            (9, 64, 16),
            (50, 33, 272),
            (70, 128, 544),
        ] {
            let (x, w, bias, rest) = (normal(&[m, k], 1), normal(&[n, k], 2), normal(&[n], 3), normal(&[m, n], 4));
            let product = Op::MatMul { transpose_a: false, transpose_b: false, bias: true, precision };
            same(&w, &[&x, &bias], 1, &|b, w, x| b.op(product.clone(), &[x[0], w, x[1]]));
            same(&w, &[&x, &bias, &rest], 1, &|b, w, x| {
                let product = b.op(product.clone(), &[x[0], w, x[1]]);
                let cut = b.unary(Unary::Relu, product);
                b.add(cut, x[2])
            });
        }
        // Experts without rows and with many; in order and fetched.
        for (sizes, inner, outer) in [([0, 1, 1, 0], 33, 70), ([0, 70, 1, 5], 48, 64), ([3, 0, 0, 30], 130, 33)] {
            let owners: Vec<i32> = (0..4).flat_map(|e| std::iter::repeat_n(e as i32, sizes[e])).collect();
            let rows = owners.len();
            let owners = Tensor::ints(owners).with_shape([rows, 1]).unwrap();
            let (w, bias) = (normal(&[4, outer, inner], 3), normal(&[4, outer], 4));
            let op = Op::GroupedMatMul { transpose_b: false, bias: true, precision };
            // Two rows more than the experts have, which are of none.
            let mut ends = vec![0];
            ends.extend(sizes.iter().scan(0, |end, &size| {
                *end += size as i32;
                Some(*end)
            }));
            let (x, offsets) = (normal(&[rows + 2, inner], 1), Tensor::ints(ends));
            same(&w, &[&x, &offsets, &bias], 1, &|b, w, x| b.op(op.clone(), &[x[0], w, x[1], x[2]]));
            let tokens = normal(&[rows, inner], 5);
            // The sort is a launch of its own.
            let sort = graph_of(&Op::SortByExpert { experts: 4, rows }, &[&owners]);
            let steps = 1 + plan(&[("f".to_string(), &sort)]).unwrap().plans[0].steps.len();
            same(&w, &[&tokens, &bias, &owners], steps, &|b, w, x| {
                let sort = b.op(Op::SortByExpert { experts: 4, rows }, &[x[2]]);
                let rows = b.op(Op::Dispatch { weighted: false }, &[x[0], sort.result(1), sort.result(2)]);
                b.op(op.clone(), &[rows, w, sort, x[1]])
            });
        }
    }
}

/// What bfloat16 has no room for: ties, what becomes infinite, what is no number. Each row of `a` has one of them beside ones.
#[test]
fn products_round_to_bfloat16() {
    let bits = |bits: u32| f32::from_bits(bits);
    let special = [
        bits(0x3f80_8000),
        bits(0x3f81_8000),
        bits(0xbf80_8001),
        bits(0x3f80_7fff),
        f32::MAX,
        bits(0xff7f_7fff),
        f32::INFINITY,
        f32::NEG_INFINITY,
        bits(0x7f80_0001),
        bits(0xffff_ffff),
        0.0,
    ];
    // With a pair at the end, and with half of one.
    for k in [1, 2, 5] {
        for at in 0..k {
            let rows = special.iter().flat_map(|&x| (0..k).map(move |q| if q == at { x } else { 1.0 })).collect();
            let a = Tensor::new(vec![special.len(), k], Data::F32(rows)).unwrap();
            let b = Tensor::new(vec![k, 17], Data::F32(vec![1.0; 17 * k])).unwrap();
            let op = Op::MatMul { transpose_a: false, transpose_b: false, bias: false, precision: Precision::Bf16 };
            // WGSL leaves open what becomes of numbers that are none.
            for (name, backend) in backends().iter().filter(|(name, _)| *name != "wgpu") {
                let found = run(backend, &op, &[&a, &b]).remove(0).to_f32();
                for (found, &x) in found.chunks(17).zip(&special) {
                    let expected = Precision::Bf16.round(f64::from(x)) as f32 + (k - 1) as f32;
                    let same = |y: &f32| *y == expected || y.is_nan() && expected.is_nan();
                    assert!(found.iter().all(same), "{x:e} at {at} of {k} on {name}: {found:?}");
                }
            }
        }
    }
}

/// Checks attention, and its gradient from what attention saves.
fn attention_and_gradient(check: fn(&Op, &[&Tensor], f64), attrs: AttentionAttrs, qkv: &Tensor, dy: &Tensor) {
    let rng = rng();
    let random: &[&Tensor] = if attrs.dropout.get() > 0.0 { &[&rng] } else { &[] };
    let sinks = normal(&[attrs.heads], 3);
    let sinks: &[&Tensor] = if attrs.sink { &[&sinks] } else { &[] };
    let operands = [&[qkv], sinks, random].concat();
    check(&Op::Attention(attrs), &operands, 1e-5);
    let y = evaluate_op(&Op::Attention(attrs), &operands).unwrap();
    let operands = [&[dy, qkv, &y[0], &y[1]], random].concat();
    check(&Op::AttentionGrad(attrs), &operands, 2e-5);
}

/// Attention with and without dropout over all positions, and over windows and with sinks.
fn kinds_of_attention(heads: usize, time: usize, scale: f64) -> Vec<AttentionAttrs> {
    let plain = AttentionAttrs { key: 9, ..AttentionAttrs::causal(heads, time, scale) };
    let dropped = AttentionAttrs { dropout: 0.3.into(), ..plain };
    let windows = [1, 3, 17, 40].into_iter().filter(|window| *window < time);
    let windowed = windows.map(|window| AttentionAttrs { window, sink: true, ..plain });
    let both = (time > 3).then_some(AttentionAttrs { window: time / 2 + 1, ..dropped });
    [plain, dropped].into_iter().chain(windowed).chain(both).collect()
}

#[test]
fn attention() {
    for (batch, time, heads, d) in
        [(1, 1, 1, 2), (2, 7, 3, 4), (2, 33, 2, 16), (3, 5, 2, 6), (1, 70, 1, 24), (1, 9, 1, 72)]
    {
        let (n, c) = (batch * time, heads * d);
        let qkv = normal(&[n, 3 * c], 1);
        let dy = normal(&[n, c], 2);
        for attrs in kinds_of_attention(heads, time, 0.4) {
            attention_and_gradient(check, attrs, &qkv, &dy);
        }
        for inverse in [false, true] {
            let op = |positions| Op::Rotary { heads, time, base: 10_000.0.into(), inverse, positions };
            check(&op(false), &[&qkv], 1e-5);
            check(&op(true), &[&qkv, &indices(&[n], 0, 100, 3)], 1e-5);
        }
    }
}

/// Lengths about those of blocks, and heads that fill no vector, several, and so many that blocks are smaller; the widest has
/// rows too long for them.
#[test]
fn attention_in_blocks_of_awkward_sizes() {
    let narrow = [1, 3, 8, 17, 32].into_iter().flat_map(|d| [1, 3, 7, 17, 33, 65, 130].map(|time| (time, d)));
    for (time, d) in narrow.chain([(67, 320), (35, 520), (19, 1024), (3, 1040)]) {
        let (batch, heads) = if d > 32 { (1, 1) } else { (2, 3) };
        let (n, c) = (batch * time, heads * d);
        let (qkv, dy) = (normal(&[n, 3 * c], 1), normal(&[n, c], 2));
        for attrs in kinds_of_attention(heads, time, 1.0 / (d as f64).sqrt()) {
            attention_and_gradient(check_on_cpu, attrs, &qkv, &dy);
        }
    }
}

/// Lengths about those of tiles, heads about the width of a strip of channels, and more tiles than cubes of a launch. Same
/// operands, same bits.
#[test]
fn attention_in_cubes_of_awkward_sizes() {
    let wide = [1, 3, 8, 16, 64, 128, 192, 256].map(|d| (67, d));
    let short = [1, 3, 7, 17, 33].into_iter().flat_map(|time| [3, 64, 192].map(|d| (time, d)));
    for (time, d) in wide.into_iter().chain(short).chain([(1, 1040), (66, 65), (200, 2), (2, 0)]) {
        let (batch, heads, d) = if d == 0 { (1, 2100, 1) } else { (2, 1 + usize::from(d < 64), d) };
        let (n, c) = (batch * time, heads * d);
        let (qkv, dy) = (normal(&[n, 3 * c], 1), normal(&[n, c], 2));
        for attrs in kinds_of_attention(heads, time, 1.0 / (d as f64).sqrt()) {
            attention_and_gradient(check_on_graphics_device, attrs, &qkv, &dy);
        }
    }
}

/// Many blocks of queries and keys, in which the largest score so far is found late, and again and again.
#[test]
fn attention_over_a_long_context() {
    for (time, d) in [(2050, 3), (520, 16)] {
        let attrs = AttentionAttrs::causal(1, time, 1.5);
        let windowed = AttentionAttrs { window: 300, ..attrs };
        let qkv = normal(&[time, 3 * d], 1).to_f32();
        let grows = |(i, x): (usize, f32)| x * (1.0 + 2.0 * (i / (3 * d)) as f32 / time as f32);
        let qkv = Tensor::new([time, 3 * d], Data::F32(qkv.into_iter().enumerate().map(grows).collect())).unwrap();
        let dy = normal(&[time, d], 2);
        for attrs in [attrs, windowed] {
            check_on_cpu(&Op::Attention(attrs), &[&qkv], 1e-5);
            let y = evaluate_op(&Op::Attention(attrs), &[&qkv]).unwrap();
            check_on_cpu(&Op::AttentionGrad(attrs), &[&dy, &qkv, &y[0], &y[1]], 4e-5);
        }
    }
}

/// The second of two queries has the probability `1 / (1 + e^x)` for a key whose score is smaller by `x`.
#[test]
fn probabilities_are_exact_down_to_the_smallest() {
    let differences: Vec<f32> = (0..8000).map(|i| i as f32 * 0.01).collect();
    let qkv: Vec<f32> = differences.iter().flat_map(|&x| [0.0, -x, 1.0, 1.0, 0.0, 0.0]).collect();
    let qkv = Tensor::new([2 * differences.len(), 3], Data::F32(qkv)).unwrap();
    let attrs = AttentionAttrs::causal(1, 2, 1.0);
    for (name, backend) in on_cpu() {
        let y = run(backend, &Op::Attention(attrs), &[&qkv]).remove(0).to_f32();
        for (i, &x) in differences.iter().enumerate() {
            let (found, expected) = (f64::from(y[2 * i + 1]), 1.0 / (1.0 + f64::from(x).exp()));
            // The exponent has a rounding of its own, by which the error grows.
            let tolerance = 5e-7 + 1.2e-7 * f64::from(x);
            assert!((found / expected - 1.0).abs() < tolerance, "{name}: {found} and not {expected} for {x}");
        }
    }
}

#[test]
fn attention_is_the_same_on_any_number_of_threads() {
    if !cfg!(feature = "cpu") {
        return;
    }
    let (heads, time, d) = (3, 200, 16);
    let attrs = AttentionAttrs { dropout: 0.1.into(), key: 9, ..AttentionAttrs::causal(heads, time, 0.25) };
    let (qkv, dy, rng) = (normal(&[time, 3 * heads * d], 1), normal(&[time, heads * d], 2), rng());
    let found = [1, 2, 3, 5, 16].map(|threads| {
        let backend = CubeBackend::cpu_with_threads(threads).unwrap();
        let mut found = run(&backend, &Op::Attention(attrs), &[&qkv, &rng]);
        found.extend(run(&backend, &Op::AttentionGrad(attrs), &[&dy, &qkv, &found[0], &found[1], &rng]));
        found
    });
    for other in &found[1..] {
        assert_eq!(*other, found[0]);
    }
}

/// Neither buffers nor kernels have anything that is as long as the context for every query.
#[test]
fn memory_of_attention_is_linear_in_the_context() {
    let (heads, c) = (4, 64);
    let of = |time: usize| {
        let attrs = AttentionAttrs { dropout: 0.1.into(), key: 9, ..AttentionAttrs::causal(heads, time, 0.25) };
        let operands = [&normal(&[time, 3 * c], 1), &normal(&[time, c], 2), &rng()];
        let graph = graph(&operands, |b, x| {
            let y = b.attention(attrs, x[0], Some(x[2]), None);
            vec![b.op(Op::AttentionGrad(attrs), &[x[1], x[0], y, y.result(1), x[2]])]
        });
        let program = plan(&[("f".to_string(), &graph)]).unwrap();
        (program.plans[0].arena_bytes, kernel_names(&program, "f", &DeviceProfile::cpu(2)).unwrap())
    };
    let (bytes, kernels) = of(512);
    for factor in [2, 4, 16] {
        let (more, same) = of(512 * factor);
        assert!(more <= bytes * factor, "{more} bytes for {factor} times the context of {bytes} bytes");
        assert_eq!(same, kernels, "what a kernel keeps for itself depends on the context");
    }
}

#[test]
fn attention_does_not_see_what_comes_later() {
    // Infinite and missing numbers of one position show from there on only.
    for (time, d, odd) in [(7, 4, 3), (33, 16, 32), (40, 8, 17), (24, 24, 9), (70, 32, 40)] {
        let attrs = AttentionAttrs::causal(2, time, 0.4);
        let c = 2 * d;
        let (plain, dy) = (normal(&[time, 3 * c], 1), normal(&[time, c], 2));
        for (part, value) in [(2, f32::INFINITY), (2, f32::NAN), (1, f32::NAN), (0, f32::NAN)] {
            let mut elements = plain.to_f32();
            elements[odd * 3 * c + part * c..][..c].fill(value);
            let qkv = Tensor::new([time, 3 * c], Data::F32(elements)).unwrap();
            for (name, backend) in backends() {
                let what = format!("{name}: part {part} of position {odd} is {value}");
                let before = |y: &Tensor| y.to_f32()[..odd * c].to_vec();
                let clean = run(backend, &Op::Attention(attrs), &[&plain]);
                let found = run(backend, &Op::Attention(attrs), &[&qkv]);
                assert_eq!(before(&found[0]), before(&clean[0]), "{what}");
                // Backwards, a later position has the gradients of its keys and values from later queries only.
                if part == 0 {
                    let mut dy = dy.to_f32();
                    dy[odd * c..][..c].fill(value);
                    let dy = Tensor::new([time, c], Data::F32(dy)).unwrap();
                    let (clean, found) = [&plain, &qkv]
                        .map(|x| run(backend, &Op::AttentionGrad(attrs), &[&dy, x, &clean[0], &clean[1]]).remove(0))
                        .into();
                    let after = |y: &Tensor| {
                        let rows = y.to_f32()[(odd + 1) * 3 * c..].to_vec();
                        rows.chunks(3 * c).flat_map(|row| row[c..].to_vec()).collect::<Vec<_>>()
                    };
                    assert!(after(&found).iter().all(|x| x.is_finite()), "{what}");
                    assert_eq!(after(&found), after(&clean), "{what}");
                }
            }
        }
    }
}

/// What lies before the window shows neither in results nor in the gradients of what comes later.
#[test]
fn attention_does_not_see_what_lies_before_its_window() {
    for (time, d, odd, window) in [(7, 4, 1, 2), (33, 16, 3, 5), (40, 8, 17, 1), (24, 24, 0, 20), (140, 32, 40, 33)] {
        let attrs = AttentionAttrs { window, ..AttentionAttrs::causal(2, time, 0.4) };
        let c = 2 * d;
        let (plain, dy) = (normal(&[time, 3 * c], 1), normal(&[time, c], 2));
        for (part, value) in [(2, f32::INFINITY), (2, f32::NAN), (1, f32::NAN)] {
            let mut elements = plain.to_f32();
            elements[odd * 3 * c + part * c..][..c].fill(value);
            let qkv = Tensor::new([time, 3 * c], Data::F32(elements)).unwrap();
            for (name, backend) in backends() {
                let what = format!("{name}: part {part} of position {odd} is {value}, windows of {window}");
                let clean = run(backend, &Op::Attention(attrs), &[&plain]);
                let found = run(backend, &Op::Attention(attrs), &[&qkv]);
                let after = |y: &Tensor| y.to_f32()[(odd + window) * c..].to_vec();
                assert_eq!(after(&found[0]), after(&clean[0]), "{what}");
                let [clean, found] = [&plain, &qkv].map(|x| {
                    run(backend, &Op::AttentionGrad(attrs), &[&dy, x, &clean[0], &clean[1]]).remove(0).to_f32()
                });
                let queries = |dqkv: &[f32]| {
                    dqkv.chunks(3 * c).skip(odd + window).flat_map(|row| row[..c].to_vec()).collect::<Vec<_>>()
                };
                assert_eq!(queries(&found), queries(&clean), "{what}");
            }
        }
    }
}

#[test]
fn wrong_use_is_an_error() {
    let Some((_, backend)) = backends().first() else { return };
    let op = Op::Unary(Unary::Neg);
    let x = normal(&[3], 1);
    let program = program(&op, &[&x]);
    let mut session = backend.prepare(&program).unwrap();
    let interface = |r: Result<(), BackendError>| assert!(matches!(r, Err(BackendError::Interface(_))), "{r:?}");
    interface(session.run("g", &[("x0", &x)]));
    interface(session.run("f", &[]));
    interface(session.run("f", &[("x0", &x), ("x1", &x)]));
    interface(session.run("f", &[("x0", &normal(&[4], 1))]));
    interface(session.output("f", "y0").map(drop));
    session.run("f", &[("x0", &x)]).unwrap();
    interface(session.output("f", "y1").map(drop));
    interface(session.read_state("w").map(drop));
    let mut wrong = program.clone();
    wrong.plans[0].buffers[1].ty = TensorType::f32([4]);
    interface(backend.prepare(&wrong).map(drop));
    let mut wrong = program;
    wrong.plans[0].arena_bytes = 4;
    interface(backend.prepare(&wrong).map(drop));
}

#[test]
fn too_large_a_program_is_refused() {
    let Some((_, backend)) = backends().first() else { return };
    let (Some(available), x) = (backend.memory_limit(), normal(&[1], 1)) else { return };
    let mut program = program(&Op::Unary(Unary::Neg), &[&x]);
    program.plans[0].arena_bytes = available as usize * 2;
    let refused = backend.prepare(&program).map(drop);
    assert!(matches!(refused, Err(BackendError::OutOfMemory { .. })), "{refused:?}");
}

#[test]
fn states_persist_and_start_at_zero() {
    // w <- w + x, in place.
    let x = normal(&[5], 1);
    let mut program = program(&Op::Binary(Binary::Add), &[&x, &x]);
    let plan = &mut program.plans[0];
    program.states = vec![moec_plan::StateDecl {
        name: "w".into(),
        ty: TensorType { dtype: DType::F32, shape: vec![5] },
        kind: moec_plan::StateKind::Parameter,
    }];
    plan.inputs.truncate(1);
    plan.buffers[1].storage = Storage::State(0);
    plan.buffers[2].storage = Storage::State(0);
    // w <- w * x, in the same memory.
    let mut times = program.plans[0].clone();
    times.name = "g".into();
    times.steps[0].cluster.kernel = Op::Binary(Binary::Mul).into();
    program.plans.push(times);
    for (name, backend) in backends() {
        let mut session = backend.prepare(&program).unwrap();
        assert_eq!(session.read_state("w").unwrap().to_f32(), [0.0; 5], "{name}");
        for factor in [1.0, 2.0, 3.0] {
            session.run("f", &[("x0", &map(&x, |v| factor * v))]).unwrap();
        }
        close(name, &session.read_state("w").unwrap(), &map(&x, |v| 6.0 * v), 1e-6);
        for factor in [2.0, 0.5, 3.0] {
            session.run("g", &[("x0", &Tensor::floats(vec![factor; 5]))]).unwrap();
            session.run("f", &[("x0", &x)]).unwrap();
        }
        close(name, &session.read_state("w").unwrap(), &map(&x, |v| 23.5 * v), 1e-6);
        session.write_state("w", &x).unwrap();
        assert_eq!(session.read_state("w").unwrap(), x, "{name}");
        session.run("f", &[("x0", &x)]).unwrap();
        close(name, &session.read_state("w").unwrap(), &map(&x, |v| 2.0 * v), 1e-6);
    }
}

#[test]
fn kernels_are_listed_without_a_device() {
    let x = normal(&[100, 64], 1);
    let program = program(&Op::LayerNormGrad, &[&x, &x, &normal(&[64], 2), &normal(&[100], 3), &normal(&[100], 4)]);
    let names = kernel_names(&program, "f", &DeviceProfile::cpu(2)).unwrap();
    assert_eq!(names.len(), 1);
    assert_eq!(names[0], ["layer_norm_grad w16", "layer_norm_param_grad w16", "sum_middle w16", "sum_middle w16"]);
    assert!(kernel_names(&program, "g", &DeviceProfile::gpu()).is_err());
}

#[test]
fn attention_over_kept_keys_and_values() {
    for (sequences, time, heads, d) in [(1, 1, 1, 1), (3, 7, 1, 3), (5, 17, 2, 6), (4, 33, 3, 16)] {
        let c = heads * d;
        let (qkv, cache) = (normal(&[sequences, 3 * c], 1), normal(&[sequences, time, 2 * c], 2));
        // The first token, the last that fits, none, one that takes the place of the first, a late one.
        let positions = [0, time as i32 - 1, -1, time as i32, 5 * time as i32 + 2];
        let positions = Tensor::ints(positions[..sequences].to_vec());
        let op = |sink| Op::CachedAttention { heads, scale: 0.4.into(), sink };
        check(&op(false), &[&qkv, &cache, &positions], 1e-5);
        check(&op(true), &[&qkv, &cache, &positions, &normal(&[heads], 3)], 1e-5);
    }
}

/// Texts that are written together are what they would be alone, so a row must not show how many others there are.
#[test]
fn a_row_does_not_depend_on_the_other_rows() {
    const ROWS: usize = 9;
    for (name, backend) in backends() {
        for (inner, outer) in [(33, 7), (16, 40), (128, 8)] {
            let (x, bias) = (normal(&[ROWS, inner], 1), normal(&[outer], 3));
            let (w, gain) = (normal(&[outer, inner], 2), normal(&[inner], 4));
            let (experts, expert_bias) = (normal(&[3, outer, inner], 5), normal(&[3, outer], 6));
            let linear = Op::MatMul { transpose_a: false, transpose_b: true, bias: true, precision: Precision::F32 };
            let grouped = Op::GroupedMatMul { transpose_b: true, bias: true, precision: Precision::F32 };
            let offsets = Tensor::ints([0, 2, 2, ROWS as i32]);
            let owners: Vec<i32> = (0..ROWS).map(|row| if row < 2 { 0 } else { 2 }).collect();
            let run_together = |steps, operands: &[&Tensor], build: &dyn Fn(&mut Builder, &[Value]) -> Value| {
                let graph = graph(operands, |b, x| vec![build(b, x)]);
                run_program(backend, &together(&graph, steps), operands)
            };
            let results = |x: &Tensor, offsets: &Tensor, owners: &[i32]| {
                let rows = x.shape()[0];
                let order = Tensor::ints((0..rows as i32).collect::<Vec<_>>());
                let positions = order.clone().with_shape([rows, 1]).unwrap();
                let owners = Tensor::ints(owners).with_shape([rows, 1]).unwrap();
                [
                    // The same rows fetched by an index, embedded, or put together, with a residual.
                    run_together(2, &[x, &experts, &expert_bias, &owners], &|b, v| {
                        let sort = b.op(Op::SortByExpert { experts: 3, rows }, &[v[3]]);
                        let x = b.op(Op::Dispatch { weighted: false }, &[v[0], sort.result(1), sort.result(2)]);
                        b.op(grouped.clone(), &[x, v[1], sort, v[2]])
                    }),
                    run_together(1, &[&order, x], &|b, v| {
                        let made = b.op(Op::Embed, v);
                        b.add(made, v[1])
                    }),
                    run_together(1, &[x, &order, &positions], &|b, v| {
                        let made = b.op(Op::Combine { weighted: false }, v);
                        b.add(made, v[0])
                    }),
                    run(backend, &linear, &[x, &w, &bias]),
                    run(backend, &grouped, &[x, &experts, offsets, &expert_bias]),
                    run(backend, &Op::LayerNorm { epsilon: 1e-5.into() }, &[x, &gain, &gain]),
                    run(backend, &Op::RmsNorm { epsilon: 1e-5.into() }, &[x, &gain]),
                    run(backend, &Op::Softmax, &[x]),
                    run(backend, &Op::TopK { k: 2, skip: 0 }, &[x]),
                    run_together(1, &[x], &|b, v| {
                        let sigmoid = b.unary(Unary::Sigmoid, v[0]);
                        b.mul(sigmoid, v[0])
                    }),
                ]
                .map(|mut all| all.remove(0).to_f32())
            };
            let all = results(&x, &offsets, &owners);
            for row in [0, 1, 5, ROWS - 1] {
                let own = Tensor::new([1, inner], Data::F32(x.to_f32()[row * inner..][..inner].to_vec())).unwrap();
                let owner = usize::from(row >= 2) * 2;
                let offsets = Tensor::ints([0, 1, 2, 3].map(|e| i32::from(e > owner)));
                for (what, (found, all)) in results(&own, &offsets, &[owner as i32]).iter().zip(&all).enumerate() {
                    let columns = found.len();
                    assert_eq!(found, &all[row * columns..][..columns], "{name}: operation {what}, row {row}");
                }
            }
        }
    }
}

/// Sessions of one backend share its threads, which may be more than there are cores, and run from any thread.
#[test]
fn sessions_run_side_by_side() {
    let op = Op::MatMul { transpose_a: false, transpose_b: true, bias: false, precision: Precision::F32 };
    let operands = [normal(&[33, 17], 1), normal(&[65, 17], 2)];
    let operands = [&operands[0], &operands[1]];
    let five = cfg!(feature = "cpu").then(|| ("five threads", CubeBackend::cpu_with_threads(5).unwrap()));
    for (name, backend) in backends().iter().chain(&five) {
        let alone = run(backend, &op, &operands);
        std::thread::scope(|scope| {
            let sessions: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..20).map(|_| run(backend, &op, &operands)).collect::<Vec<_>>()))
                .collect();
            for found in sessions.into_iter().flat_map(|s| s.join().unwrap()) {
                assert_eq!(found, alone, "{name}");
            }
        });
    }
}

/// What `run_timed` waits for are the same launches, one time for each step.
#[test]
fn every_step_is_timed() {
    let (x, y) = (normal(&[7, 16], 1), normal(&[7, 16], 2));
    for (name, backend) in backends() {
        let mut program = program(&Op::Binary(Binary::Add), &[&x, &y]);
        let plan = &mut program.plans[0];
        // A tensor without elements is copied by no launch.
        plan.buffers.push(Buffer {
            name: "none".into(),
            ty: TensorType::f32([0, 3]),
            storage: Storage::Arena(plan.arena_bytes),
        });
        let none = BufferId(plan.buffers.len() as u32 - 1);
        let add = plan.steps[0].clone();
        let mut empty = Step { operands: vec![none], results: vec![none], ..add.clone() };
        empty.cluster.kernel = Op::StopGradient.into();
        plan.steps = vec![empty.clone(), add.clone(), empty, add];
        let mut session = backend.prepare(&program).unwrap();
        for _ in 0..2 {
            let times = session.run_timed("f", &[("x0", &x), ("x1", &y)]).unwrap();
            assert_eq!(times.len(), 4, "{name}");
            assert!(times[1] > Duration::ZERO && times[3] > Duration::ZERO, "{name}");
            let timed = session.output("f", "y0").unwrap();
            session.run("f", &[("x0", &x), ("x1", &y)]).unwrap();
            assert_eq!(session.output("f", "y0").unwrap(), timed, "{name}");
        }
    }
}

/// Blocks of the longest rows fit a stack of 1 MiB.
#[test]
fn attention_over_a_long_context_fits_any_stack() {
    for (time, d) in [(5000, 1), (70, 256), (20, 1024)] {
        fits_any_stack(time, d);
    }
}

fn fits_any_stack(time: usize, d: usize) {
    let attrs = AttentionAttrs::causal(1, time, 0.05);
    let qkv = normal(&[time, 3 * d], 1);
    let narrow = std::thread::Builder::new().stack_size(1 << 20).spawn(move || {
        let backend = CubeBackend::open(Device::Cpu).unwrap();
        let found = run(&backend, &Op::Attention(attrs), &[&qkv]);
        let dy = map(&found[0], |x| x);
        run(&backend, &Op::AttentionGrad(attrs), &[&dy, &qkv, &found[0], &found[1]])
    });
    let dqkv = narrow.unwrap().join().unwrap();
    assert!(dqkv[0].to_f32().iter().all(|x| x.is_finite()));
}

/// What a cache gives is an object that links, or it does not count.
#[cfg(feature = "cpu")]
#[test]
fn a_cache_that_gives_nonsense_is_corrected() {
    use crate::ObjectCache;
    use std::sync::{Arc, Mutex};

    /// Gives what is no object, and notes what was asked for and what it is to keep.
    #[derive(Default)]
    struct Nonsense {
        asked: Mutex<Vec<String>>,
        kept: Mutex<Vec<(String, Vec<u8>)>>,
    }

    impl ObjectCache for Nonsense {
        fn get(&self, key: &str) -> Option<Vec<u8>> {
            self.asked.lock().unwrap().push(key.into());
            Some(b"no object".into())
        }

        fn put(&self, key: &str, object: &[u8]) {
            self.kept.lock().unwrap().push((key.into(), object.into()));
        }
    }

    let op = Op::Unary(Unary::Exp);
    let x = normal(&[7, 33], 1);
    let expected = run(&CubeBackend::cpu_with_threads(1).unwrap(), &op, &[&x]);
    // No other test has kernels for so many threads.
    for (threads, kernels) in [(7, 1), (7, 0), (6, 1)] {
        let cache = Arc::new(Nonsense::default());
        let backend = CubeBackend::cpu_with_threads(threads).unwrap().with_cache(cache.clone());
        assert_eq!(run(&backend, &op, &[&x]), expected);
        let (mut asked, mut kept) = (cache.asked.lock().unwrap(), cache.kept.lock().unwrap());
        asked.sort();
        kept.sort();
        assert_eq!(asked.len(), kernels, "{asked:?}");
        assert!(asked.iter().eq(kept.iter().map(|(key, _)| key)), "{asked:?}");
        assert!(kept.iter().all(|(key, object)| key.contains("LLVM 23") && object.len() > 100));
    }
}

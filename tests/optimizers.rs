//! Optimisers against their references: PyTorch's own steps for SGD, the papers' algorithms in float64 for the others; on
//! the interpreter and on the kernels of the CPU, over several steps and awkward sizes.

use moec_ir::{Builder, Data, Function, Graph, Input, Op, Output, Precision, Tensor, TensorType, random};
use moec_kernels::{CubeBackend, Device};
use moec_plan::{
    Backend, Interpreter, OptimizeOptions, Optimizer, StepOptions, Wrt, add_optimizer, differentiate, optimize, plan,
};
use moec_tests::fixtures;
use std::collections::{BTreeMap, BTreeSet};

const SHAPES: [&[usize]; 4] = [&[1], &[7], &[3, 11], &[130]];

/// An optimised training step whose gradient of parameter `pI` is the input `gI`.
fn training_step(shapes: &[&[usize]], optimizer: &Optimizer, options: &StepOptions) -> Graph {
    let mut b = Builder::new();
    let mut loss = b.fill(0.0, []);
    for (i, &shape) in shapes.iter().enumerate() {
        let (p, g) = (b.parameter(&format!("p{i}"), shape), b.input(format!("g{i}"), TensorType::f32(shape)));
        let product = b.mul(p, g);
        let sum = b.sum_all(product);
        loss = b.add(loss, sum);
    }
    b.output(Output::Loss, loss);
    let graph = differentiate(&b.finish().unwrap(), Output::Loss, &Wrt::Parameters).unwrap();
    let graph = add_optimizer(&graph, optimizer, options).unwrap();
    optimize(&graph, &OptimizeOptions::default()).unwrap().0
}

/// The parameters after each step, from their first values and the gradients of each step.
fn steps(
    backend: &dyn Backend,
    shapes: &[&[usize]],
    optimizer: &Optimizer,
    options: &StepOptions,
    first: &[Tensor],
    gradients: &[Vec<Tensor>],
) -> Vec<Vec<Vec<f64>>> {
    let function = Function::TrainStep.name();
    let graph = training_step(shapes, optimizer, options);
    let program = plan(&[(function.to_string(), &graph)]).unwrap();
    let mut session = backend.prepare(&program).unwrap();
    for state in &program.states {
        let zeros = Tensor::zeros(&state.ty);
        let given = state.name.strip_prefix('p').and_then(|i| i.parse::<usize>().ok());
        session.write_state(&state.name, given.map_or(&zeros, |i| &first[i])).unwrap();
    }
    let step = |(step, gradients): (usize, &Vec<Tensor>)| {
        let hyper = Tensor::floats(optimizer.hyper(optimizer.lr(), step as u64));
        let mut inputs: BTreeMap<String, &Tensor> =
            gradients.iter().enumerate().map(|(i, g)| (format!("g{i}"), g)).collect();
        inputs.insert(Input::Hyper.into(), &hyper);
        let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), *t)).collect();
        session.run(function, &inputs).unwrap();
        (0..shapes.len()).map(|i| session.read_state(&format!("p{i}")).unwrap().to_f64()).collect()
    };
    gradients.iter().enumerate().map(step).collect()
}

#[track_caller]
fn assert_close(what: &str, found: &[Vec<Vec<f64>>], expected: &[Vec<Vec<f64>>]) {
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        for (f, e) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!((f - e).abs() <= 2e-6 * (1.0 + e.abs()), "{what}, step {step}: {f} is not {e}");
        }
    }
}

/// Runs on every backend.
fn check(
    what: &str,
    shapes: &[&[usize]],
    optimizer: &Optimizer,
    options: &StepOptions,
    first: &[Tensor],
    gradients: &[Vec<Tensor>],
    expected: &[Vec<Vec<f64>>],
) {
    let kernels = CubeBackend::open(Device::Cpu).unwrap();
    let backends: [(&str, &dyn Backend); 2] = [("interpreter", &Interpreter), ("kernels", &kernels)];
    for (name, backend) in backends {
        assert_close(
            &format!("{what} on {name}"),
            &steps(backend, shapes, optimizer, options, first, gradients),
            expected,
        );
    }
}

#[test]
fn sgd_makes_the_steps_of_pytorch() {
    for fixture in fixtures::load("optimizers") {
        let mut optimizer = Optimizer::named("sgd").unwrap();
        for (name, text) in fixture.meta.iter().filter(|(name, _)| *name != "torch") {
            optimizer = match text.parse::<f64>() {
                Ok(x) => optimizer.with(name, x),
                Err(_) => optimizer.with(name, text == "true"),
            };
        }
        let tensors = |prefix: String| -> Vec<Tensor> {
            (0..SHAPES.len()).map(|i| fixture.tensor(&format!("{prefix}{i}")).clone()).collect()
        };
        let gradients: Vec<Vec<Tensor>> = (0..4).map(|step| tensors(format!("step{step}.g"))).collect();
        let expected: Vec<Vec<Vec<f64>>> =
            (0..4).map(|step| tensors(format!("step{step}.p")).iter().map(Tensor::to_f64).collect()).collect();
        check(
            &fixture.name,
            &SHAPES,
            &optimizer,
            &StepOptions::default(),
            &tensors("init.p".into()),
            &gradients,
            &expected,
        );
    }
}

/// Numbers without structure, exact in 32 bits.
fn noise(shape: &[usize], seed: u32) -> Tensor {
    let keys = random::keys([23, 0, 0, 0], seed);
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n as u32).map(|i| random::normal_at(keys, i) as f32).collect();
    Tensor::new(shape, Data::F32(values)).unwrap()
}

/// Six steps from noise, against `update` of (element, gradient, moments of the element, step from 1), in which the last of the
/// parameters but one is a matrix, and `update` is told whether it is that.
fn against(what: &str, optimizer: &Optimizer, update: impl Fn(f64, f64, &mut [f64; 2], i32, bool) -> f64) {
    let matrix = 2;
    for clip in [None, Some(0.5)] {
        let options = StepOptions { matrices: [format!("p{matrix}")].into(), ..StepOptions::clipped(clip) };
        let first: Vec<Tensor> = SHAPES.iter().zip(0..).map(|(shape, i)| noise(shape, i)).collect();
        let gradients: Vec<Vec<Tensor>> = (0..6)
            .map(|step| SHAPES.iter().zip(0..).map(|(shape, i)| noise(shape, 100 * (step + 1) + i)).collect())
            .collect();
        let mut parameters: Vec<Vec<f64>> = first.iter().map(Tensor::to_f64).collect();
        let mut moments: Vec<Vec<[f64; 2]>> = parameters.iter().map(|p| vec![[0.0; 2]; p.len()]).collect();
        let mut expected = Vec::new();
        for (gradients, step) in gradients.iter().zip(1..) {
            let norm = gradients.iter().flat_map(Tensor::to_f64).map(|g| g * g).sum::<f64>().sqrt();
            let scale = clip.map_or(1.0, |clip: f64| (clip / (norm + 1e-6)).min(1.0));
            for (i, ((p, m), g)) in parameters.iter_mut().zip(&mut moments).zip(gradients).enumerate() {
                for ((p, m), g) in p.iter_mut().zip(m).zip(g.to_f64()) {
                    *p = update(*p, scale * g, m, step, i == matrix);
                }
            }
            expected.push(parameters.clone());
        }
        check(&format!("{what}, clip {clip:?}"), &SHAPES, optimizer, &options, &first, &gradients, &expected);
    }
}

/// Loshchilov & Hutter 2019, algorithm 2.
#[test]
fn adamw_makes_the_steps_of_its_paper() {
    let adamw = Optimizer::default().with("lr", 0.01).with("weight_decay", 0.1);
    against("adamw", &adamw, |p, g, [m, v], t, _| {
        (*m, *v) = (0.9 * *m + 0.1 * g, 0.999 * *v + 0.001 * g * g);
        let (mean, variance) = (*m / (1.0 - 0.9f64.powi(t)), *v / (1.0 - 0.999f64.powi(t)));
        p - 0.01 * (mean / (variance.sqrt() + 1e-8) + 0.1 * p)
    });
}

/// Chen et al. 2023, algorithm 2.
#[test]
fn lion_makes_the_steps_of_its_paper() {
    let lion = Optimizer::named("lion").unwrap().with("lr", 0.01).with("weight_decay", 0.1);
    against("lion", &lion, |p, g, [m, _], _, _| {
        let update = (0.9 * *m + 0.1 * g).signum();
        *m = 0.99 * *m + 0.01 * g;
        p - 0.01 * (update + 0.1 * p)
    });
}

/// With `decay: matrices` nothing else is decayed, whether the decay is a matter of the gradient or of the direction.
#[test]
fn only_matrices_decay_where_that_is_asked_for() {
    let only_matrices = |name: &str| {
        Optimizer::named(name).unwrap().with("lr", 0.01).with("weight_decay", 0.1).with("decay", "matrices")
    };
    against("adamw", &only_matrices("adamw"), |p, g, [m, v], t, is_matrix| {
        (*m, *v) = (0.9 * *m + 0.1 * g, 0.999 * *v + 0.001 * g * g);
        let (mean, variance) = (*m / (1.0 - 0.9f64.powi(t)), *v / (1.0 - 0.999f64.powi(t)));
        p - 0.01 * (mean / (variance.sqrt() + 1e-8) + if is_matrix { 0.1 * p } else { 0.0 })
    });
    against("lion", &only_matrices("lion"), |p, g, [m, _], _, is_matrix| {
        let update = (0.9 * *m + 0.1 * g).signum();
        *m = 0.99 * *m + 0.01 * g;
        p - 0.01 * (update + if is_matrix { 0.1 * p } else { 0.0 })
    });
    against("sgd", &only_matrices("sgd").with("momentum", 0.9), |p, g, [velocity, _], _, is_matrix| {
        *velocity = 0.9 * *velocity + g + if is_matrix { 0.1 * p } else { 0.0 };
        p - 0.01 * *velocity
    });
}

/// `x` `[rows, columns]` after five steps of the iteration of Jordan et al. 2024, in their orientation.
fn orthogonalised(x: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    let transposed = |x: &[f64], rows: usize, columns: usize| -> Vec<f64> {
        (0..columns * rows).map(|at| x[at % rows * columns + at / rows]).collect()
    };
    if rows > columns {
        return transposed(&orthogonalised(&transposed(x, rows, columns), columns, rows), columns, rows);
    }
    let product = |a: &[f64], b: &[f64], inner: usize, outer: usize| -> Vec<f64> {
        let element = |at: usize| (0..inner).map(|k| a[at / outer * inner + k] * b[k * outer + at % outer]).sum();
        (0..rows * outer).map(element).collect()
    };
    let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt() + 1e-7;
    let mut x: Vec<f64> = x.iter().map(|x| x / norm).collect();
    for _ in 0..5 {
        let a = product(&x, &transposed(&x, rows, columns), columns, rows);
        let square = product(&a, &a, rows, rows);
        let bent: Vec<f64> = a.iter().zip(&square).map(|(a, s)| -4.775 * a + 2.0315 * s).collect();
        let bent = product(&bent, &x, rows, columns);
        x = x.iter().zip(&bent).map(|(x, b)| 3.4445 * x + b).collect();
    }
    x
}

/// Wide and tall matrices, experts' matrices one by one, and AdamW at its own rate for what is no hidden matrix.
#[test]
fn muon_makes_the_steps_of_its_paper() {
    const OF: [&[usize]; 5] = [&[3, 11], &[11, 3], &[2, 7, 5], &[1, 1], &[4, 3]];
    const OTHER: usize = 4;
    let hidden: BTreeSet<String> = (0..OTHER).map(|i| format!("p{i}")).collect();
    for nesterov in [true, false] {
        let muon = Optimizer::named("muon").unwrap().with("lr", 0.05).with("weight_decay", 0.1);
        let muon = muon.with("nesterov", nesterov).with("adamw_lr", 0.01);
        let first: Vec<Tensor> = OF.iter().zip(0..).map(|(shape, i)| noise(shape, i)).collect();
        let gradients: Vec<Vec<Tensor>> = (0..4)
            .map(|step| OF.iter().zip(0..).map(|(shape, i)| noise(shape, 100 * (step + 1) + i)).collect())
            .collect();
        let mut parameters: Vec<Vec<f64>> = first.iter().map(Tensor::to_f64).collect();
        let mut moments: Vec<Vec<[f64; 2]>> = parameters.iter().map(|p| vec![[0.0; 2]; p.len()]).collect();
        let mut expected = Vec::new();
        for (gradients, t) in gradients.iter().zip(1..) {
            for (i, gradient) in gradients.iter().map(Tensor::to_f64).enumerate() {
                if i == OTHER {
                    for ((p, [m, v]), g) in parameters[i].iter_mut().zip(&mut moments[i]).zip(gradient) {
                        (*m, *v) = (0.9 * *m + 0.1 * g, 0.95 * *v + 0.05 * g * g);
                        let (mean, variance) = (*m / (1.0 - 0.9f64.powi(t)), *v / (1.0 - 0.95f64.powi(t)));
                        *p -= 0.01 * (mean / (variance.sqrt() + 1e-8) + 0.1 * *p);
                    }
                    continue;
                }
                let [.., rows, columns] = *OF[i] else { panic!("a matrix") };
                let update = moments[i].iter_mut().zip(&gradient).map(|([m, _], g)| {
                    *m = 0.95 * *m + g;
                    if nesterov { g + 0.95 * *m } else { *m }
                });
                let update: Vec<f64> = update.collect();
                let gain = (rows as f64 / columns as f64).max(1.0).sqrt();
                let steps = update.chunks(rows * columns).flat_map(|matrix| orthogonalised(matrix, rows, columns));
                for (p, step) in parameters[i].iter_mut().zip(steps) {
                    *p -= 0.05 * (gain * step + 0.1 * *p);
                }
            }
            expected.push(parameters.clone());
        }
        let options = StepOptions { matrices: hidden.clone(), hidden: hidden.clone(), ..StepOptions::default() };
        check(&format!("muon, nesterov: {nesterov}"), &OF, &muon, &options, &first, &gradients, &expected);
    }
}

/// Three experts, linear maps `[5] -> [7]` with biases, on nine rows.
const EXPERTS: [usize; 4] = [3, 7, 5, 9];
/// Where the rows of each begin, step by step. The last expert of the last step has rows whose gradient is 0.
const OFFSETS: [[i32; 4]; 5] = [[0, 4, 4, 9], [0, 0, 3, 9], [0, 9, 9, 9], [0, 2, 5, 9], [0, 3, 3, 9]];

/// A training step of the experts, whose gradient of the rows' results is the input `dy`.
fn step_of_experts(optimizer: &Optimizer) -> Graph {
    let [experts, outputs, inputs, rows] = EXPERTS;
    let mut b = Builder::new();
    let (weights, bias) = (b.parameter("w", [experts, outputs, inputs]), b.parameter("b", [experts, outputs]));
    // As the gain of a norm is: a vector for each expert, multiplied with ones.
    let gain = b.parameter("gain", [experts, outputs]);
    let x = b.input("x", TensorType::f32([rows, inputs]));
    let dy = b.input("dy", TensorType::f32([rows, outputs]));
    let offsets = b.input("offsets", TensorType::i32([experts + 1]));
    let product = |bias| Op::GroupedMatMul { transpose_b: true, bias, precision: Precision::F32 };
    let y = b.op(product(true), &[x, weights, offsets, bias]);
    let (ones, column) = (b.fill(1.0, [rows, 1]), b.reshape(gain, [experts, outputs, 1]));
    let gains = b.op(product(false), &[ones, column, offsets]);
    let y = b.add(y, gains);
    let product = b.mul(y, dy);
    let loss = b.sum_all(product);
    b.output(Output::Loss, loss);
    let graph = differentiate(&b.finish().unwrap(), Output::Loss, &Wrt::Parameters).unwrap();
    let graph = add_optimizer(&graph, optimizer, &StepOptions::clipped(Some(1e9))).unwrap();
    optimize(&graph, &OptimizeOptions::default()).unwrap().0
}

/// With `idle: skip` an expert without rows keeps its numbers and moments, as where experts are modules of their own and have no
/// gradient then; one with rows goes on, even with a gradient of 0.
#[test]
fn an_idle_expert_can_be_passed_over() {
    let [experts, outputs, inputs, rows] = EXPERTS;
    let shapes =
        [("w", vec![experts, outputs, inputs]), ("b", vec![experts, outputs]), ("gain", vec![experts, outputs])];
    let adamw = Optimizer::default().with("lr", 0.01).with("weight_decay", 0.1);
    let kernels = CubeBackend::open(Device::Cpu).unwrap();
    let backends: [(&str, &dyn Backend); 2] = [("interpreter", &Interpreter), ("kernels", &kernels)];
    for (skips, (name, backend)) in [false, true].into_iter().flat_map(|s| backends.map(|backend| (s, backend))) {
        let optimizer = adamw.clone().with("idle", if skips { "skip" } else { "decay" });
        let graph = step_of_experts(&optimizer);
        let program = plan(&[(Function::TrainStep.name().to_string(), &graph)]).unwrap();
        let mut session = backend.prepare(&program).unwrap();
        let first: Vec<Tensor> = shapes.iter().zip(0..).map(|((_, shape), i)| noise(shape, i)).collect();
        for state in &program.states {
            let zeros = Tensor::zeros(&state.ty);
            let given = shapes.iter().position(|(name, _)| *name == state.name);
            session.write_state(&state.name, given.map_or(&zeros, |i| &first[i])).unwrap();
        }
        let mut expected: Vec<Vec<f64>> = first.iter().map(Tensor::to_f64).collect();
        let mut moments: Vec<Vec<[f64; 2]>> = expected.iter().map(|p| vec![[0.0; 2]; p.len()]).collect();
        for (offsets, t) in OFFSETS.iter().zip(1..) {
            let (x, mut dy) = (noise(&[rows, inputs], 10 * t), noise(&[rows, outputs], 10 * t + 1).to_f32());
            if t == 5 {
                dy[3 * outputs..].fill(0.0);
            }
            let hyper = Tensor::floats(optimizer.hyper(0.01, u64::from(t) - 1));
            let tensors = [Tensor::ints(*offsets), Tensor::new([rows, outputs], Data::F32(dy.clone())).unwrap()];
            let inputs_given = [("x", &x), ("dy", &tensors[1]), ("offsets", &tensors[0])];
            let hyper_name = Input::Hyper.to_string();
            let given = inputs_given.into_iter().chain([(hyper_name.as_str(), &hyper)]);
            session.run(Function::TrainStep.name(), &given.collect::<Vec<_>>()).unwrap();

            let x = x.to_f64();
            for e in 0..experts {
                let of_expert = offsets[e] as usize..offsets[e + 1] as usize;
                if skips && of_expert.is_empty() {
                    continue;
                }
                // The gradient of the weight from input `i` to output `o`, or of the bias or gain `o`.
                let gradient = |o: usize, i: Option<usize>| -> f64 {
                    let rows = of_expert.clone();
                    rows.map(|r| f64::from(dy[r * outputs + o]) * i.map_or(1.0, |i| x[r * inputs + i])).sum()
                };
                for (tensor, width) in [inputs, 1, 1].into_iter().enumerate() {
                    for o in 0..outputs {
                        for i in 0..width {
                            let at = (e * outputs + o) * width + i;
                            let g = gradient(o, (tensor == 0).then_some(i));
                            let (p, [m, v]) = (&mut expected[tensor][at], &mut moments[tensor][at]);
                            (*m, *v) = (0.9 * *m + 0.1 * g, 0.999 * *v + 0.001 * g * g);
                            let t = t as i32;
                            let (mean, variance) = (*m / (1.0 - 0.9f64.powi(t)), *v / (1.0 - 0.999f64.powi(t)));
                            *p -= 0.01 * (mean / (variance.sqrt() + 1e-8) + 0.1 * *p);
                        }
                    }
                }
            }
            let found = shapes.iter().map(|(name, _)| session.read_state(name).unwrap().to_f64()).collect::<Vec<_>>();
            assert_close(
                &format!("idle experts are skipped: {skips}, on {name}, step {t}"),
                &[found],
                &[expected.clone()],
            );
        }
    }
}

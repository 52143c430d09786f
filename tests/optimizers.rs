//! Optimisers against their references: PyTorch's own steps for SGD, the papers' algorithms in float64 for the others; on
//! the interpreter and on the kernels of the CPU, over several steps and awkward sizes.

use moec_ir::{Builder, Data, Function, Graph, Input, Output, Tensor, TensorType, random};
use moec_kernels::{CubeBackend, Device};
use moec_plan::{Backend, Interpreter, OptimizeOptions, Optimizer, Wrt, add_optimizer, differentiate, optimize, plan};
use moec_tests::fixtures;
use std::collections::BTreeMap;

const SHAPES: [&[usize]; 4] = [&[1], &[7], &[3, 11], &[130]];

/// An optimised training step whose gradient of parameter `pI` is the input `gI`.
fn training_step(optimizer: &Optimizer, clip: Option<f64>) -> Graph {
    let mut b = Builder::new();
    let mut loss = b.fill(0.0, []);
    for (i, shape) in SHAPES.into_iter().enumerate() {
        let (p, g) = (b.parameter(&format!("p{i}"), shape), b.input(format!("g{i}"), TensorType::f32(shape)));
        let product = b.mul(p, g);
        let sum = b.sum_all(product);
        loss = b.add(loss, sum);
    }
    b.output(Output::Loss, loss);
    let graph = differentiate(&b.finish().unwrap(), Output::Loss, &Wrt::Parameters).unwrap();
    let graph = add_optimizer(&graph, optimizer, clip).unwrap();
    optimize(&graph, &OptimizeOptions::default()).unwrap().0
}

/// The parameters after each step, from their first values and the gradients of each step.
fn steps(
    backend: &dyn Backend,
    optimizer: &Optimizer,
    clip: Option<f64>,
    first: &[Tensor],
    gradients: &[Vec<Tensor>],
) -> Vec<Vec<Vec<f64>>> {
    let function = Function::TrainStep.name();
    let graph = training_step(optimizer, clip);
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
        (0..SHAPES.len()).map(|i| session.read_state(&format!("p{i}")).unwrap().to_f64()).collect()
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
    optimizer: &Optimizer,
    clip: Option<f64>,
    first: &[Tensor],
    gradients: &[Vec<Tensor>],
    expected: &[Vec<Vec<f64>>],
) {
    let kernels = CubeBackend::open(Device::Cpu).unwrap();
    let backends: [(&str, &dyn Backend); 2] = [("interpreter", &Interpreter), ("kernels", &kernels)];
    for (name, backend) in backends {
        assert_close(&format!("{what} on {name}"), &steps(backend, optimizer, clip, first, gradients), expected);
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
        check(&fixture.name, &optimizer, None, &tensors("init.p".into()), &gradients, &expected);
    }
}

/// Numbers without structure, exact in 32 bits.
fn noise(shape: &[usize], seed: u32) -> Tensor {
    let keys = random::keys([23, 0, 0, 0], seed);
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n as u32).map(|i| random::normal_at(keys, i) as f32).collect();
    Tensor::new(shape, Data::F32(values)).unwrap()
}

/// Six steps from noise, against `update` of (element, gradient, moments of the element, step from 1).
fn against(what: &str, optimizer: &Optimizer, update: impl Fn(f64, f64, &mut [f64; 2], i32) -> f64) {
    for clip in [None, Some(0.5)] {
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
            for ((p, m), g) in parameters.iter_mut().zip(&mut moments).zip(gradients) {
                for ((p, m), g) in p.iter_mut().zip(m).zip(g.to_f64()) {
                    *p = update(*p, scale * g, m, step);
                }
            }
            expected.push(parameters.clone());
        }
        check(&format!("{what}, clip {clip:?}"), optimizer, clip, &first, &gradients, &expected);
    }
}

/// Loshchilov & Hutter 2019, algorithm 2.
#[test]
fn adamw_makes_the_steps_of_its_paper() {
    let adamw = Optimizer::default().with("lr", 0.01).with("weight_decay", 0.1);
    against("adamw", &adamw, |p, g, [m, v], t| {
        (*m, *v) = (0.9 * *m + 0.1 * g, 0.999 * *v + 0.001 * g * g);
        let (mean, variance) = (*m / (1.0 - 0.9f64.powi(t)), *v / (1.0 - 0.999f64.powi(t)));
        p - 0.01 * (mean / (variance.sqrt() + 1e-8) + 0.1 * p)
    });
}

/// Chen et al. 2023, algorithm 2.
#[test]
fn lion_makes_the_steps_of_its_paper() {
    let lion = Optimizer::named("lion").unwrap().with("lr", 0.01).with("weight_decay", 0.1);
    against("lion", &lion, |p, g, [m, _], _| {
        let update = (0.9 * *m + 0.1 * g).signum();
        *m = 0.99 * *m + 0.01 * g;
        p - 0.01 * (update + 0.1 * p)
    });
}

//! Routing strategies and whole models against the numbers of an independent float64 implementation: outputs, losses,
//! every gradient, and the parameters after three AdamW steps, on the interpreter and on the kernels.
//!
//! `MOEC_FIXTURES` points the same tests at another folder of the same form; names and sizes are read from the files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod accumulation;
mod averages;
mod optimizers;

use moec::pipeline::{self, Checked, CompileOptions, Function};
use moec_ir::{Builder, Graph, Precision, Tensor, TensorType};
use moec_kernels::{CubeBackend, Device};
use moec_model::{Form, InitScheme, Layer, LowerOptions, Lowered, Mode, NoisePolicy, Registry, lower_layer};
use moec_plan::{
    Backend, ClusterOptions, Interpreter, OptimizeOptions, Program, Session, Wrt, cluster, differentiate, optimize,
    plan,
};
use moec_syntax::SourceFile;
use moec_tests::compare::{assert_close, relative_error};
use moec_tests::fixtures::{self, Fixture};
use std::collections::BTreeMap;

/// Agreement that is asked for, relative to the largest element of a tensor.
#[derive(Clone, Copy)]
struct Tolerance {
    tensors: f64,
    loss: f64,
}

const INTERPRETER: Tolerance = Tolerance { tensors: 1e-6, loss: 1e-6 };
const KERNELS: Tolerance = Tolerance { tensors: 2e-4, loss: 1e-5 };

fn checked(text: &str) -> Checked {
    let source = SourceFile::new("fixture.moe", text);
    pipeline::check(&source, &Registry::with_builtins(), None)
        .unwrap_or_else(|d| panic!("{text}\n{}", d.iter().map(|d| d.render(&source, false)).collect::<String>()))
}

// ---- routing ----

/// The layer that a fixture describes, and what it is lowered for.
fn described(fixture: &Fixture) -> (Layer, Mode) {
    let strategy = fixture.text("strategy");
    let width = fixture.tensor("x").shape()[1];
    let tokens = fixture.tensor("x").shape()[0];
    let experts = fixture.int("experts");
    let k = fixture.text("k");
    let route = match strategy {
        "softmax_top_k" => format!("softmax_top_k(k: {k}, normalize: {})", fixture.text("normalize")),
        "noisy_top_k" => format!("noisy_top_k(k: {k}, epsilon: 0)"),
        "sigmoid_top_k" => format!("sigmoid_top_k(k: {k}, bias_rate: 0, scale: {})", fixture.text("scale")),
        "dselect_k" => {
            format!("dselect_k(k: {k}, gating: {}, gamma: {})", fixture.text("gating"), fixture.text("gamma"))
        }
        "expert_choice" => {
            let factor = (fixture.int("capacity") * experts) as f64 / tokens as f64;
            format!("expert_choice(capacity_factor: {factor:?})")
        }
        "base" | "multi_hash" => strategy.to_string(),
        other => panic!("{}: no strategy {other}", fixture.name),
    };
    // The losses of the strategy itself need not be asked for.
    let own = ["entropy", "unassigned_mass"];
    let balance: Vec<&str> = fixture.with_prefix("aux.").map(|(name, _)| name).filter(|n| !own.contains(n)).collect();
    let balance = balance.join(", ");
    let capacity = match fixture.meta.get("capacity_factor") {
        Some(factor) => format!(", capacity: capacity(factor: {factor}, minimum: 1)"),
        None => String::new(),
    };
    let layer = if strategy == "multi_hash" {
        let up = fixture.tensor("param.up.weight").shape();
        format!("multi_hash(hidden: {}, buckets: {experts}, hashes: {})", up[0] * up[2], fixture.text("parts"))
    } else {
        let hidden = fixture.tensor("param.experts.up.bias").shape()[1];
        format!(
            "moe(experts: {experts} * mlp(hidden: {hidden}), route: {route}, balance: [{balance}]{capacity},
                 allow: lookahead)"
        )
    };
    let text = format!("model m {{ context 4  vocab 9  embed(width: {width}, positions: none)  {layer}  unembed }}");
    let layers = checked(&text).model.layers;
    let wanted = |l: &Layer| matches!(l.name(), "moe" | "multi_hash");
    let mode = if fixture.text("mode") == "eval" { Mode::Evaluate } else { Mode::Train };
    (layers.into_iter().find(wanted).unwrap(), mode)
}

/// Our name of a tensor of a routing fixture.
fn our_name(fixture: &Fixture, theirs: &str) -> String {
    let Some(rest) = theirs.strip_prefix("param.") else { return theirs.to_string() };
    match rest.strip_prefix("experts.") {
        _ if fixture.text("strategy") == "multi_hash" => format!("multi_hash.{rest}"),
        Some("embedding") => "moe.centroids".into(),
        Some(expert) => format!("moe.experts.mlp.{expert}"),
        None => format!("moe.{rest}"),
    }
}

/// The forward graph with the objective `sum(output * cotangent)`.
fn with_objective(lowered: &Lowered, output: &str, cotangent: Option<&Tensor>) -> Graph {
    let value = lowered.graph.output(output).unwrap();
    let mut b = Builder::extend(lowered.graph.clone());
    let value = match cotangent {
        Some(tensor) => {
            let c = b.input("cotangent", TensorType::f32(tensor.shape().to_vec()));
            let product = b.mul(value, c);
            b.sum_all(product)
        }
        None => value,
    };
    b.output("test.objective", value);
    b.finish().unwrap()
}

/// Inputs and persistent tensors, in the shapes of the program's where the elements are the same.
fn values(fixture: &Fixture, program: &Program) -> BTreeMap<String, Tensor> {
    let mut values: BTreeMap<String, Tensor> = fixture
        .tensors
        .iter()
        .filter(|(n, _)| n.starts_with("param.") || *n == "x")
        .map(|(n, t)| (our_name(fixture, n), t.clone()))
        .collect();
    for (theirs, ours) in [
        ("input.noise", "moe.noise"),
        ("input.balance_bias", "moe.balance_bias"),
        ("table", "multi_hash.table"),
        ("token_ids", "tokens"),
    ] {
        if let Some(tensor) = fixture.tensors.get(theirs) {
            values.insert(ours.into(), tensor.clone());
        }
    }
    values.entry("tokens".into()).or_insert_with(|| Tensor::ints(vec![0; fixture.tensor("x").shape()[0]]));
    // The blocks of all hashes are experts of one product for us: [M, E, ..] is [M * E, ..].
    for state in &program.states {
        if let Some(tensor) = values.get_mut(&state.name) {
            *tensor = tensor.clone().with_shape(state.ty.shape.clone()).unwrap();
        }
    }
    values
}

fn session(backend: &dyn Backend, program: &Program, values: &BTreeMap<String, Tensor>) -> Box<dyn Session> {
    let mut session = backend.prepare(program).unwrap();
    for state in &program.states {
        session.write_state(&state.name, &values[&state.name]).unwrap();
    }
    session
}

/// Sum of the scores that an assignment reaches, in float64.
fn assignment_score(fixture: &Fixture, experts: &Tensor) -> f64 {
    let (x, centroids) = (fixture.tensor("x"), fixture.tensor("param.experts.embedding"));
    let width = x.shape()[1];
    let (x, centroids) = (x.to_f64(), centroids.to_f64());
    let chosen = experts.as_i32().unwrap();
    let score = |(n, &e): (usize, &i32)| -> f64 {
        let (x, c) = (&x[n * width..(n + 1) * width], &centroids[e as usize * width..(e as usize + 1) * width]);
        x.iter().zip(c).map(|(a, b)| a * b).sum()
    };
    chosen.iter().enumerate().map(score).sum()
}

fn routing(backend: &dyn Backend, tolerance: Tolerance) {
    for fixture in fixtures::load("routing") {
        let (layer, mode) = described(&fixture);
        let path = layer.name();
        let time = fixture.tensor("x").shape()[0];
        let options = LowerOptions {
            mode,
            batch: 1,
            vocab: fixture.tensors.get("table").map_or(9, |table| table.shape()[1]),
            loss: true,
            noise: NoisePolicy::Injected,
            init: InitScheme::KaimingNormal,
            precision: Precision::F32,
            routes: true,
            form: Form::Sequences,
        };
        let lowered = lower_layer(&layer, &options, time).unwrap();
        let mut objectives: Vec<(String, String, Option<Tensor>)> =
            vec![("grad.y.".into(), "y".into(), Some(fixture.tensor("cotangent.y").clone()))];
        if let Some(cotangent) = fixture.tensors.get("cotangent.gates") {
            objectives.push(("grad.gates.".into(), format!("gates.{path}"), Some(cotangent.clone())));
        }
        for (name, _) in fixture.with_prefix("aux.") {
            objectives.push((format!("grad.aux.{name}."), format!("aux.{path}.{name}"), None));
        }
        for (prefix, output, cotangent) in &objectives {
            let graph = with_objective(&lowered, output, cotangent.as_ref());
            let wrt: Vec<String> = fixture.with_prefix(prefix).map(|(n, _)| our_name(&fixture, n)).collect();
            let derived = differentiate(&graph, "test.objective", &Wrt::Nodes(wrt)).unwrap();
            let (optimized, _) = optimize(&derived, &OptimizeOptions::default()).unwrap();
            let (clusters, _) = cluster(&optimized, &ClusterOptions::default()).unwrap();
            let program = plan(&[("test".to_string(), &clusters)]).unwrap();
            let mut values = values(&fixture, &program);
            if let Some(c) = cotangent {
                values.insert("cotangent".into(), c.clone());
            }
            let mut session = session(backend, &program, &values);
            let ports = &program.plans[0].inputs;
            let inputs: Vec<_> = ports.iter().map(|p| (p.name.as_str(), &values[&p.name])).collect();
            session.run("test", &inputs).unwrap();
            let what = |name: &str| format!("{} on {}: {name}", fixture.name, backend.name());
            // What the router decided is listed before capacity, and dense where experts choose or all may work.
            let listed = !fixture.tensors.contains_key("keep");
            if let Some(expected) = fixture.tensors.get("experts").filter(|_| listed) {
                let found = session.output("test", "experts.moe").unwrap();
                if let Some(score) = fixture.tensors.get("assignment_score") {
                    let (best, reached) = (score.item().unwrap(), assignment_score(&fixture, &found));
                    assert!((best - reached).abs() <= 1e-4 * best.abs().max(1.0), "{}: {reached}", what("score"));
                    if found.as_i32() != expected.as_i32() {
                        // Another assignment that is as good; its gates are others too.
                        continue;
                    }
                }
                assert_close(&what("experts"), &found, expected, tolerance.tensors);
                let found = session.output("test", "weights.moe").unwrap();
                assert_close(&what("weights"), &found, fixture.tensor("weights"), tolerance.tensors);
            }
            for (ours, theirs) in [(format!("gates.{path}"), "gates"), ("y".to_string(), "layer.y")] {
                if let Some(expected) = fixture.tensors.get(theirs) {
                    assert_close(&what(theirs), &session.output("test", &ours).unwrap(), expected, tolerance.tensors);
                }
            }
            for (name, expected) in fixture.with_prefix("aux.") {
                let found = session.output("test", &format!("aux.{path}.{name}")).unwrap();
                assert_close(&what(name), &found.with_shape([1]).unwrap(), expected, tolerance.tensors);
            }
            for (name, expected) in fixture.with_prefix(prefix) {
                let found = session.output("test", &format!("grad.{}", our_name(&fixture, name))).unwrap();
                let found = found.with_shape(expected.shape().to_vec()).unwrap();
                assert_close(&what(&format!("{prefix}{name}")), &found, expected, tolerance.tensors);
            }
        }
    }
}

#[test]
fn routing_agrees_on_the_interpreter() {
    routing(&Interpreter, INTERPRETER);
}

#[test]
fn routing_agrees_on_the_kernels() {
    routing(&CubeBackend::open(Device::Cpu).unwrap(), KERNELS);
}

// ---- whole models ----

/// The model that a fixture describes, as a user would write it.
fn model_text(fixture: &Fixture) -> String {
    let [width, heads, layers, experts, k] = ["width", "heads", "layers", "experts", "k"].map(|n| fixture.int(n));
    let route = match fixture.text("noisy") {
        "True" => format!("noisy_top_k(k: {k}, epsilon: 0)"),
        _ => format!("softmax_top_k(k: {k})"),
    };
    format!(
        "model fixture {{
           context {context}
           vocab {vocab}
           embed(width: {width}, positions: learned)
           repeat {layers} {{
             residual {{ layer_norm  attention(heads: {heads}, scale: {scale}) }}
             residual {{
               layer_norm
               moe(experts: {experts} * mlp(hidden: {hidden}, activation: relu), route: {route})
             }}
           }}
           layer_norm
           unembed
         }}
         train {{ batch {batch} }}",
        context = fixture.int("context"),
        vocab = fixture.int("vocab"),
        scale = fixture.text("scale"),
        hidden = 4 * width,
        batch = fixture.int("batch"),
    )
}

/// Our tensors from those with makeMoE's names under a prefix of the fixture.
fn ours(fixture: &Fixture, prefix: &str, program: &Program) -> BTreeMap<String, Tensor> {
    let theirs = fixture.with_prefix(prefix).map(|(n, t)| (n.to_string(), t.clone())).collect();
    let parameters: Vec<_> =
        program.states.iter().filter(|s| s.kind == moec_plan::StateKind::Parameter).cloned().collect();
    moec_runtime::import_makemoe(&theirs, &parameters, Some(fixture.int("heads"))).unwrap()
}

/// Inputs of a step of the fixture.
fn inputs(fixture: &Fixture, step: usize, lowered: &Lowered) -> BTreeMap<String, Tensor> {
    let n = fixture.int("batch") * fixture.int("context");
    let flat = |name: &str| fixture.tensor(&format!("step{step}.{name}")).clone().with_shape([n]).unwrap();
    let mut inputs = BTreeMap::from([("tokens".to_string(), flat("tokens")), ("targets".to_string(), flat("targets"))]);
    if let Some(noise) = fixture.tensors.get(&format!("step{step}.noise")) {
        let experts = fixture.int("experts");
        for (layer, values) in lowered.moe_layers.iter().zip(noise.to_f32().chunks(n * experts)) {
            let tensor = Tensor::floats(values.to_vec()).with_shape([n, experts]).unwrap();
            inputs.insert(format!("{}.noise", layer.path), tensor);
        }
    }
    let t = (step + 1) as i32;
    inputs
        .insert("hyper".into(), Tensor::floats([1e-3, 1.0 - 0.9f64.powi(t), 1.0 - 0.999f64.powi(t)].map(|x| x as f32)));
    inputs
}

fn run(session: &mut dyn Session, program: &Program, function: &str, values: &BTreeMap<String, Tensor>) {
    let ports = &program.plan(function).unwrap().inputs;
    let inputs: Vec<_> = ports.iter().map(|p| (p.name.as_str(), &values[&p.name])).collect();
    session.run(function, &inputs).unwrap();
}

fn models(backend: &dyn Backend, tolerance: Tolerance) {
    for fixture in fixtures::load("model") {
        let what = |name: &str| format!("{} on {}: {name}", fixture.name, backend.name());
        let checked = checked(&model_text(&fixture));
        let (model, recipe) = (&checked.model, &checked.recipe);
        let vocab = fixture.int("vocab");
        let lowered = pipeline::lower(model, recipe, vocab, Function::TrainStep, NoisePolicy::Injected).unwrap();

        // The gradients of the first step, as outputs.
        let derived = differentiate(&lowered.graph, "objective", &Wrt::Parameters).unwrap();
        let (optimized, _) = optimize(&derived, &OptimizeOptions::default()).unwrap();
        let (clusters, _) = cluster(&optimized, &ClusterOptions::default()).unwrap();
        let program = plan(&[("gradients".to_string(), &clusters)]).unwrap();
        let initial = ours(&fixture, "init.", &program);
        let mut first = session(backend, &program, &initial);
        run(&mut *first, &program, "gradients", &inputs(&fixture, 0, &lowered));
        for (name, expected) in ours(&fixture, "grad.", &program) {
            let found = first.output("gradients", &format!("grad.{name}")).unwrap();
            assert_close(&what(&format!("grad.{name}")), &found, &expected, tolerance.tensors);
        }

        // Three steps of training.
        let options = CompileOptions { noise: NoisePolicy::Injected, ..CompileOptions::default() };
        let compiled = pipeline::compile(model, recipe, vocab, &options).unwrap();
        let program = &compiled.program;
        let mut training = backend.prepare(program).unwrap();
        for (name, tensor) in &initial {
            training.write_state(name, tensor).unwrap();
        }
        for step in 0..fixture.int("steps") {
            run(&mut *training, program, "train_step", &inputs(&fixture, step, &lowered));
            let loss = training.output("train_step", "loss").unwrap().item().unwrap();
            let expected = fixture.tensor(&format!("step{step}.loss")).item().unwrap();
            let error = relative_error(&[loss], &[expected], 0.0);
            assert!(error <= tolerance.loss, "{}: {loss} and {expected}", what("loss"));
            let logits = training.output("train_step", "logits").unwrap();
            let expected = fixture.tensor(&format!("step{step}.logits")).clone();
            let expected = expected.with_shape(logits.shape().to_vec()).unwrap();
            assert_close(&what(&format!("step{step}.logits")), &logits, &expected, tolerance.tensors);
        }
        for (name, expected) in ours(&fixture, "final.", program) {
            let found = training.read_state(&name).unwrap();
            assert_close(&what(&format!("final.{name}")), &found, &expected, tolerance.tensors);
        }
    }
}

#[test]
fn models_agree_on_the_interpreter() {
    models(&Interpreter, INTERPRETER);
}

#[test]
fn models_agree_on_the_kernels() {
    models(&CubeBackend::open(Device::Cpu).unwrap(), KERNELS);
}

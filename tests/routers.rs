//! Routers written in the language, end to end: those of `examples/routers` that are also built in have the same graphs
//! and give the same bits, and the one that exists nowhere else trains, with the right gradients.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use moec::pipeline::{self, Checked, CompileOptions, Compiled, Function};
use moec_ir::{Data, Graph, Output, Tensor, evaluate, print, random};
use moec_kernels::{CubeBackend, Device};
use moec_model::{NoisePolicy, Registry, TrainingText, library};
use moec_plan::{
    Backend, Interpreter, OptimizeOptions, Wrt, differentiate, freeze_routes, optimize, plan, record_routes,
};
use moec_syntax::SourceFile;
use std::collections::BTreeMap;
use std::path::Path;

const VOCAB: usize = 11;

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/routers").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// Small enough for the interpreter.
fn checked(name: &str, text: &str) -> Checked {
    let overrides = ["width=8", "context=5", "train.batch=3", "train.optimizer.lr=0.01"];
    let source = library::imported_into(SourceFile::new(name, text)).with_overrides(&overrides);
    pipeline::check(&source, &Registry::with_builtins(), None)
        .unwrap_or_else(|d| panic!("{}", d.iter().map(|d| d.render(&source, false)).collect::<String>()))
}

/// The example, and its model with the built-in router in place of the example's own.
fn both(name: &str, own: &str, built_in: &str) -> [Checked; 2] {
    let text = example(name);
    let model = text[text.find("\nmodel ").unwrap()..].replace(own, built_in);
    assert!(!model.contains(own), "{name}");
    [checked(name, &text), checked(name, &model)]
}

const PAIRS: [(&str, &str, &str); 2] =
    [("noisy_gate.moe", "noisy_gate", "noisy_top_k"), ("unbiased_gate.moe", "unbiased_gate", "sigmoid_top_k")];

fn batch(step: i32) -> [(String, Tensor); 2] {
    let ids = |by: i32| Tensor::ints((0..15).map(|i| (step + i * i + by) % VOCAB as i32).collect::<Vec<_>>());
    [("tokens".into(), ids(0)), ("targets".into(), ids(1))]
}

fn compiled(checked: &Checked) -> Compiled {
    pipeline::compile(&checked.model, &checked.recipe, VOCAB, &CompileOptions::default()).unwrap()
}

fn starts(compiled: &Compiled) -> BTreeMap<String, Tensor> {
    let tokens: Vec<i32> = (0..100).map(|i| (i * i) % VOCAB as i32).collect();
    let embeddings = |_: &str| Err("there is no trained model".to_string());
    let text = TrainingText { tokens: &tokens, vocab: VOCAB, embeddings: &embeddings };
    let states = compiled.lowered.states.iter();
    let states: Vec<_> = states.map(|(name, init)| (name.clone(), init.resolve(&text).unwrap())).collect();
    moec_runtime::initial_tensors(7, &compiled.program.states, &compiled.lowered.parameters, &states)
}

/// What training steps give: the outputs of each, and at the end everything that is kept.
fn train(
    backend: &dyn Backend,
    compiled: &Compiled,
    steps: i32,
) -> (Vec<BTreeMap<String, Tensor>>, BTreeMap<String, Tensor>) {
    let mut session = backend.prepare(&compiled.program).unwrap();
    for (name, tensor) in starts(compiled) {
        session.write_state(&name, &tensor).unwrap();
    }
    let name = Function::TrainStep.name();
    let plan = compiled.program.plans.iter().find(|p| p.name == name).unwrap();
    let mut outputs = Vec::new();
    for step in 1..=steps {
        let mut values = BTreeMap::from(batch(step));
        values.insert("rng".into(), Tensor::ints(random::state(7, step as u64)));
        let corrections = [0.01, 1.0 - 0.9f32.powi(step), 1.0 - 0.999f32.powi(step)];
        values.insert("hyper".into(), Tensor::floats(corrections.to_vec()));
        let inputs: Vec<_> = plan.inputs.iter().map(|p| (p.name.as_str(), &values[&p.name])).collect();
        session.run(name, &inputs).unwrap();
        outputs.push(plan.outputs.iter().map(|p| (p.name.clone(), session.output(name, &p.name).unwrap())).collect());
    }
    let states = compiled.program.states.iter();
    (outputs, states.map(|s| (s.name.clone(), session.read_state(&s.name).unwrap())).collect())
}

#[test]
fn graphs_are_those_of_the_built_in_routers() {
    for (name, own, built_in) in PAIRS {
        let [ours, theirs] = both(name, own, built_in);
        for function in Function::ALL {
            let graph = |checked: &Checked| -> Graph {
                let (model, recipe) = (&checked.model, &checked.recipe);
                let lowered = pipeline::lower(model, recipe, VOCAB, function, NoisePolicy::Generated).unwrap();
                let complete = pipeline::complete(&lowered, recipe, function).unwrap();
                let options = OptimizeOptions { after: Some("canonicalise".into()), ..OptimizeOptions::default() };
                optimize(&complete, &options).unwrap().0
            };
            assert_eq!(print(&graph(&ours)), print(&graph(&theirs)), "{name} {}", function.name());
        }
    }
}

fn same_bits(backend: &dyn Backend) {
    for (name, own, built_in) in PAIRS {
        let [ours, theirs] = both(name, own, built_in).map(|checked| train(backend, &compiled(&checked), 2));
        assert_eq!(ours, theirs, "{name} on {}", backend.name());
        let (first, last) = (ours.0[0]["loss"].item().unwrap(), ours.0[1]["loss"].item().unwrap());
        assert!(first.is_finite() && first != last, "{name}: {first} {last}");
        if own == "unbiased_gate" {
            let bias = ours.1["blocks.0.moe.balance_bias"].to_f64();
            assert!(bias.iter().any(|b| *b != 0.0) && bias.iter().sum::<f64>().abs() < 1e-6, "{bias:?}");
        }
    }
}

#[test]
fn results_are_those_of_the_built_in_routers_to_the_bit_on_the_interpreter() {
    same_bits(&Interpreter);
}

#[test]
fn results_are_those_of_the_built_in_routers_to_the_bit_on_the_cpu() {
    same_bits(&CubeBackend::open(Device::Cpu).unwrap());
}

#[test]
fn a_router_that_exists_nowhere_else_trains() {
    let market = checked("market.moe", &example("market.moe"));
    let compiled = compiled(&market);
    let backend = CubeBackend::open(Device::Cpu).unwrap();
    let (outputs, states) = train(&backend, &compiled, 12);
    let objective = |at: usize| outputs[at]["objective"].item().unwrap();
    assert!(objective(11) < objective(0), "{} and {}", objective(0), objective(11));
    for block in ["blocks.0.moe", "blocks.1.moe"] {
        assert!(outputs[11][&format!("aux.{block}.uneven")].item().unwrap().is_finite());
        // Shares of a whole: the mean income stays that of the even share.
        let income = states[&format!("{block}.income")].to_f64();
        assert!((income.iter().sum::<f64>() / 4.0 - 1.0).abs() < 1e-5, "{income:?}");
        assert!(income.iter().any(|i| (i - 1.0).abs() > 1e-4), "{income:?}");
        assert_ne!(states[&format!("{block}.sharpness")].to_f64(), [1.0; 4]);
    }
}

/// Compares the gradient of parameters with central differences, at most eight elements of each, where choices are those
/// that were made. `past` are states of another past than that of the start.
fn gradients_agree(checked: &Checked, past: &[(&str, Tensor)], parameters: &[String]) {
    let lowered = pipeline::lower(&checked.model, &checked.recipe, VOCAB, Function::TrainStep, NoisePolicy::Generated);
    let graph = lowered.unwrap().graph;
    let mut values = starts(&compiled(checked));
    values.extend(batch(1));
    values.insert("rng".into(), Tensor::ints(random::state(7, 1)));
    values.extend(past.iter().map(|(name, tensor)| ((*name).to_string(), tensor.clone())));
    let recorded = evaluate(&record_routes(&graph), &values).unwrap().outputs;
    values.extend(recorded.into_iter().filter(|(name, _)| matches!(Output::of_name(name), Some(Output::Route(_)))));
    let frozen = freeze_routes(&graph).unwrap();
    let found = evaluate(&differentiate(&frozen, "objective", &Wrt::Parameters).unwrap(), &values).unwrap().outputs;
    let objective = |name: &str, element: usize, by: f64| {
        let mut values = values.clone();
        let mut elements = values[name].to_f64();
        elements[element] += by;
        let shape = values[name].shape().to_vec();
        values.insert(name.into(), Tensor::new(shape, Data::F64(elements)).unwrap());
        evaluate(&frozen, &values).unwrap().outputs["objective"].item().unwrap()
    };
    for name in parameters {
        let gradient = found[&format!("grad.{name}")].to_f64();
        assert!(gradient.iter().any(|g| g.abs() > 1e-5), "{name} gets no gradient");
        for element in (0..gradient.len()).step_by(gradient.len().div_ceil(8)) {
            let difference = (objective(name, element, 1e-6) - objective(name, element, -1e-6)) / 2e-6;
            let error = (gradient[element] - difference).abs();
            assert!(
                error <= 1e-7 + 1e-5 * difference.abs(),
                "{name}[{element}]: {} and {difference}",
                gradient[element]
            );
        }
    }
    // The plan of the frozen graph fits too.
    plan(&[("frozen".to_string(), &frozen)]).unwrap();
}

#[test]
fn its_gradients_agree_with_central_differences() {
    let market = checked("market.moe", &example("market.moe"));
    // An uneven past, so that prices differ.
    let income = Tensor::floats(vec![0.7, 1.6, 0.5, 1.2]);
    let past = ["blocks.0.moe.income", "blocks.1.moe.income"].map(|name| (name, income.clone()));
    let names = ["bids.weight", "bids.bias", "sharpness", "experts.mlp.up.weight"].map(|n| format!("blocks.1.moe.{n}"));
    gradients_agree(&market, &past, &names);
}

#[test]
fn gradients_of_the_library_agree_with_central_differences() {
    let even = || Tensor::floats(vec![0.02, -0.01, 0.03, -0.02]);
    for (file, route, trained, state) in [
        ("top_p", "top_p(p: 0.6, spread: 0.1)", vec!["scores.weight"], None),
        ("top_p", "controlled_top_p(k: 2, start: 0.6)", vec!["scores.weight"], None),
        ("relu_router", "relu_router(k: 2, start: 0.5)", vec!["scores.weight"], None),
        ("expert_threshold", "expert_threshold(k: 2)", vec!["scores.weight"], None),
        ("quantile_balancing", "quantile_top_k(k: 2)", vec!["scores.weight"], Some(("moe.price", even()))),
        ("sqrt_softplus", "sqrt_softplus_top_k(k: 2)", vec!["scores.weight"], Some(("moe.balance_bias", even()))),
        ("sqrt_softplus", "hash_softplus(k: 2)", vec!["scores.weight"], None),
        ("cosine", "cosine_top_k(k: 2, channels: 3, temperature: 0.5)", vec!["low.weight", "directions", "heat"], None),
        ("sinkhorn", "sinkhorn_top_k(k: 2, rounds: 3)", vec!["scores.weight"], None),
        ("sinkhorn", "sinkhorn_top_k(k: 1)", vec!["scores.weight"], None),
        ("sequence_choice", "sequence_choice(k: 2.0)", vec!["scores.weight", "guess.weight", "guess.bias"], None),
        ("similarity", "similar_top_k(k: 2)", vec!["scores.weight"], None),
        ("forced", "forced_balance(k: 2)", vec![], None),
    ] {
        let text = format!(
            "import \"std/{file}.moe\"\nmodel m {{ let width = 8  context 5  vocab characters  embed(width: width)\n  \
             residual {{ layer_norm  moe(experts: 4 * mlp(hidden: 6, activation: gelu), route: {route}) }}  layer_norm \
             unembed }}"
        );
        let mut names: Vec<String> = trained.iter().map(|name| format!("moe.{name}")).collect();
        names.push("moe.experts.mlp.up.weight".into());
        gradients_agree(&checked(route, &text), state.as_slice(), &names);
    }
}

/// The gradient goes through weights on the input of experts, too.
#[test]
fn gradients_of_weights_on_the_input_agree_with_central_differences() {
    let text = "model m { let width = 8  context 5  vocab characters  embed(width: width)
      residual { layer_norm  moe(experts: 4 * mlp(hidden: 6, activation: gelu), weigh: input, route: sigmoid_top_k(k: 1, 
        normalize: none), capacity: capacity(factor: 0.8, minimum: 1, order: gate, evaluation_factor: 0)) }
      layer_norm  unembed }";
    let names = ["router.weight", "experts.mlp.up.weight", "experts.mlp.down.weight"].map(|name| format!("moe.{name}"));
    gradients_agree(&checked("input.moe", text), &[], &names);
}

#[test]
fn gradients_of_merged_experts_and_running_means_agree_with_central_differences() {
    let means = Tensor::floats((0..32).map(|i| 0.1 * (i as f32).sin()).collect::<Vec<_>>());
    let means = means.with_shape([4, 8]).unwrap();
    for (moe, state) in [
        ("route: smear(segment: 2)", None),
        ("route: smear, allow: lookahead", None),
        ("route: softmax_top_k(k: 2), unchosen: running_mean", Some(("moe.running_mean", means.clone()))),
        ("route: sigmoid_top_k(k: 1), unchosen: running_mean(decay: 0)", Some(("moe.running_mean", means.clone()))),
    ] {
        let text = format!(
            "model m {{ let width = 8  context 5  vocab characters  embed(width: width)\n  residual {{ layer_norm  \
             moe(experts: 4 * mlp(hidden: 6, activation: gelu), {moe}) }}  layer_norm  unembed }}"
        );
        let names =
            ["router.weight", "experts.mlp.up.weight", "experts.mlp.down.bias"].map(|name| format!("moe.{name}"));
        gradients_agree(&checked(moe, &text), state.as_slice(), &names);
    }
}

/// The gradient of one parameter of a model without other ways to it than the weights of the experts.
fn gradient(text: &str, name: &str) -> (Vec<f64>, BTreeMap<String, Tensor>) {
    let checked = checked("straight.moe", text);
    let lowered = pipeline::lower(&checked.model, &checked.recipe, VOCAB, Function::TrainStep, NoisePolicy::Generated);
    let graph = differentiate(&lowered.unwrap().graph, "objective", &Wrt::Parameters).unwrap();
    let mut values = starts(&compiled(&checked));
    values.extend(batch(1));
    values.insert("rng".into(), Tensor::ints(random::state(7, 1)));
    let found = evaluate(&graph, &values).unwrap().outputs;
    (found[&format!("grad.{name}")].to_f64(), found)
}

/// An expert that is a matrix gives `v f(x)` for `v x`, so to the weight w of an output `w f(v x)` the gradient is `(v + w) f(x)`
/// where v has that of w: with two experts of which each has the weight one half, three halves of that without.
#[test]
fn straight_through_the_gradient_of_what_experts_are_given_reaches_the_weights() {
    let text = |more: &str| {
        format!(
            "router halves(k: int) {{\n  let scores = linear(x, experts)\n  return dense_gates(scores - stop_gradient(scores) + \
             0.5)\n}}\nmodel m {{ let width = 8  context 5  vocab characters  embed(width: width)\n  moe(experts: 2 * \
             linear(width: width, bias: false), route: halves(k: 2){more})  unembed }}"
        )
    };
    let (plain, outputs) = gradient(&text(""), "moe.scores.weight");
    let (through, others) = gradient(&text(", straight_through: true"), "moe.scores.weight");
    assert_eq!(outputs["loss"], others["loss"]);
    assert!(plain.iter().any(|g| g.abs() > 1e-4));
    for (plain, through) in plain.iter().zip(&through) {
        assert!((through - 1.5 * plain).abs() <= 1e-12 + 1e-9 * plain.abs(), "{plain} and {through}");
    }
}

/// What is new in the language, in one router, and every gradient in it.
#[test]
fn gradients_of_matrices_quantiles_and_rounds_agree_with_central_differences() {
    let text = "router r(k: int) {
      table often = frequency
      let scores = linear(x, experts)
      let low = linear(x, 3)
      let directions = parameter(experts, 3)
      let mixed = (normalize(low) @ directions) * (1.0 + lookup(often, token_ids))
      let f = ones(tokens)
      repeat 3 { f = 1.0 / (0.5 + mean(exp(mixed) * f, over: experts)) }
      let s = scores + mixed * f - mean(scores, over: sequence) + quantile(scores, 0.3, over: sequence)
      let high = quantile(mixed, 0.8, over: tokens) - quantile(mixed, 0.35, over: experts) + quantile(low, 0.5)
      let kept = max(keep_top_k(s, 2.0, over: sequence), -1.0) + max(s, over: sequence) * 0.1
      aux apart(weight: 0.1) = sum(abs(weight(scores) @ weight(scores) - identity(experts))) + sum(sum(directions, over: 
        experts) * sum(directions * directions, over: experts)) + mean(log_sum_exp(low, over: sequence))
      return dense_gates(sigmoid(s + high) * softmax(kept, over: sequence))
    }
    model m { let width = 8  context 5  vocab characters  embed(width: width)
      layer_norm  moe(experts: 4 * mlp(hidden: 6), route: r(k: 2), allow: lookahead)  layer_norm  unembed }";
    let names = ["scores.weight", "low.weight", "directions"].map(|name| format!("moe.{name}"));
    gradients_agree(&checked("new.moe", text), &[], &names);
}

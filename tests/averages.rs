//! Moving averages of parameters: how they follow them, and that everything but training reads them.

use moec::{CompileOptions, Device, Function, Registry, Session, Spec, train_config};
use moec_ir::Tensor;
use moec_runtime::{Corpus, Dataset, Split, train_step};
use moec_syntax::SourceFile;
use std::collections::BTreeMap;

const MODEL: &str = "model averaged {
  context 5
  vocab characters
  embed(width: 8)
  residual { layer_norm  moe(experts: 3 * mlp(hidden: 7), route: sigmoid_top_k(k: 2)) }
  layer_norm
  unembed
}
train { batch 3  seed 5  optimizer sgd(lr: 0.3, momentum: 0.9) }
";

fn checked(set: &[&str]) -> (Spec, Dataset) {
    let set: Vec<String> = set.iter().map(|wish| (*wish).to_string()).collect();
    let spec = Spec::check(SourceFile::new("averages.moe", MODEL), &Registry::with_builtins(), None, &set).unwrap();
    let text = "the quick brown fox jumps over the lazy dog. ".repeat(20);
    let data = spec.dataset(&Corpus::from_bytes("text", text.into_bytes()).unwrap()).unwrap();
    (spec, data)
}

fn close(found: &Tensor, expected: &[f64], tolerance: f64) -> bool {
    found.to_f64().iter().zip(expected).all(|(f, e)| (f - e).abs() <= tolerance * (1.0 + e.abs()))
}

#[test]
fn averages_follow_the_parameters_and_are_evaluated_in_their_place() {
    let decay = 0.75;
    for (device, tolerance) in [(Device::Interpreter, 1e-12), (Device::Cpu, 1e-6)] {
        for batches in ["train.accumulate=1", "train.accumulate=2"] {
            let functions = [Function::TrainStep, Function::Evaluate, Function::Logits];
            let ((spec, data), options) =
                (checked(&["train.average.decay=0.75", batches]), CompileOptions::only(functions));
            let compiled = spec.compile(data.vocab(), device, &options).unwrap();
            let config = train_config(&spec.checked.recipe);
            let mut session = Session::open(&spec, &compiled, device).unwrap();
            session.initialise(&data, config.seed).unwrap();
            let names: Vec<&String> = compiled.lowered.parameters.iter().map(|(name, _)| name).collect();
            let mut expected: BTreeMap<&String, Vec<f64>> = BTreeMap::new();
            {
                let mut executable = session.executable().unwrap();
                for step in 0..4 {
                    for &name in &names {
                        let parameter = executable.read_state(name).unwrap().to_f64();
                        let average = expected.entry(name).or_insert_with(|| parameter.clone());
                        for (average, parameter) in average.iter_mut().zip(parameter) {
                            *average = decay * *average + (1.0 - decay) * parameter;
                        }
                        let found = executable.read_state(&format!("ema.{name}")).unwrap();
                        assert!(close(&found, average, tolerance), "{name} after {step} steps on {device:?}");
                    }
                    train_step(&mut executable, &data, &config, step).unwrap();
                }
            }
            // A model that has the averages as parameters says the same of a text.
            let mut tensors = BTreeMap::new();
            let mut executable = session.executable().unwrap();
            for &name in &names {
                tensors.insert(name.clone(), executable.read_state(&format!("ema.{name}")).unwrap());
            }
            for (name, _) in &compiled.lowered.states {
                tensors.insert(name.clone(), executable.read_state(name).unwrap());
            }
            let loss = session.evaluate(&data, Split::Validation).unwrap();
            let (plain, _) = checked(&[]);
            let options = CompileOptions::only([Function::Evaluate, Function::Logits]);
            let compiled = plain.compile(data.vocab(), device, &options).unwrap();
            let mut session = Session::open(&plain, &compiled, device).unwrap();
            session.executable().unwrap().write_states(&tensors).unwrap();
            assert_eq!(session.evaluate(&data, Split::Validation).unwrap(), loss, "on {device:?}, {batches}");
        }
    }
}

/// What is frozen has no average, and is read as it is.
#[test]
fn frozen_parameters_have_no_averages() {
    let (spec, data) = checked(&["train.average.decay=0.9", "train.freeze.experts=true"]);
    let options = CompileOptions::only([Function::TrainStep, Function::Evaluate]);
    let compiled = spec.compile(data.vocab(), Device::Interpreter, &options).unwrap();
    let averages: Vec<&str> = compiled.states.iter().filter_map(|state| state.averaged()).collect();
    assert!(averages.contains(&"unembed.weight") && averages.iter().all(|name| !name.contains("experts")));
    let trained = spec.checked.recipe.freeze.clone();
    assert_eq!(averages.len(), compiled.lowered.trained(&trained).unwrap().len());
}

//! A step of several batches against one of a large batch, which has the same windows.

use moec::{CompileOptions, Device, Function, Registry, Session, Spec, train_config};
use moec_runtime::{Corpus, train_loss, train_step};
use moec_syntax::SourceFile;
use std::collections::BTreeMap;

const DENSE: &str = "model dense {
  context 7
  vocab characters
  embed(width: 12)
  residual { layer_norm  attention(heads: 3) }
  residual { layer_norm  mlp(hidden: 17) }
  layer_norm
  unembed
}
train { seed 3  clip 0.5 }
";

/// More experts than a batch has tokens, so that some are idle in a batch, and a router with a state.
const MIXTURE: &str = "model mixture {
  context 3
  vocab characters
  embed(width: 8)
  residual { layer_norm  moe(experts: 17 * mlp(hidden: 5), route: sigmoid_top_k(k: 2, bias_rate: 0.01)) }
  layer_norm
  unembed
}
train { seed 3  clip 0.5 }
";

/// The persistent tensors of checkpoints and the loss of each step after some steps.
fn trained(text: &str, set: &[&str], device: Device, steps: u64) -> (BTreeMap<String, Vec<f64>>, Vec<f64>) {
    let set: Vec<String> = set.iter().map(|wish| (*wish).to_string()).collect();
    let spec = Spec::check(SourceFile::new("accumulation.moe", text), &Registry::with_builtins(), None, &set).unwrap();
    let line = "the quick brown fox jumps over the lazy dog. ".repeat(20);
    let data = spec.dataset(&Corpus::from_bytes("text", line.into_bytes()).unwrap()).unwrap();
    let compiled = spec.compile(data.vocab(), device, &CompileOptions::only([Function::TrainStep])).unwrap();
    let config = train_config(&spec.checked.recipe);
    let mut session = Session::open(&spec, &compiled, device).unwrap();
    session.initialise(&data, config.seed).unwrap();
    let mut executable = session.executable().unwrap();
    let losses = (0..steps).map(|step| {
        train_step(&mut executable, &data, &config, step).unwrap();
        train_loss(&mut executable).unwrap()
    });
    let losses = losses.collect();
    let mut kept = BTreeMap::new();
    for state in &compiled.program.states {
        let tensor = executable.read_state(&state.name).unwrap().to_f64();
        if state.kind.in_checkpoints() {
            kept.insert(state.name.clone(), tensor);
        } else {
            assert!(tensor.iter().all(|&x| x == 0.0), "{} is not 0 between steps", state.name);
        }
    }
    (kept, losses)
}

/// What several batches make of a model is what a large one makes of it.
#[track_caller]
fn assert_same(text: &str, set: &[&str], (device, tolerance): (Device, f64), batches: [usize; 2]) {
    let [batch, times] = batches;
    let with = |batch: usize, times: usize| {
        let given = [format!("train.batch={batch}"), format!("train.accumulate={times}")];
        trained(text, &[&[given[0].as_str(), given[1].as_str()], set].concat(), device, 3)
    };
    let ((large, large_losses), (several, losses)) = (with(batch * times, 1), with(batch, times));
    let close = |a: f64, b: f64| (a - b).abs() <= tolerance * (1.0 + a.abs());
    assert_eq!(large.keys().collect::<Vec<_>>(), several.keys().collect::<Vec<_>>());
    for (name, expected) in &large {
        for (expected, found) in expected.iter().zip(&several[name]) {
            assert!(close(*expected, *found), "{name} of {batch} x {times}, {set:?}: {found} is not {expected}");
        }
    }
    assert!(large_losses.iter().zip(&losses).all(|(a, b)| close(*a, *b)), "{losses:?} is not {large_losses:?}");
}

const EXACT: (Device, f64) = (Device::Interpreter, 1e-9);

#[test]
fn several_batches_make_the_step_of_a_large_one() {
    for batches in [[8, 2], [1, 7], [3, 3]] {
        for optimizer in ["adamw(lr: 1e-2)", "sgd(lr: 0.5, momentum: 0.9)"] {
            let text = DENSE.replace("seed 3", &format!("seed 3  optimizer {optimizer}"));
            assert_same(&text, &[], EXACT, batches);
        }
    }
    // Signs of tiny gradients are a matter of rounding, so the kernels are compared without adaptive steps.
    let text = DENSE.replace("seed 3", "seed 3  optimizer sgd(lr: 0.5, momentum: 0.9)");
    assert_same(&text, &[], (Device::Cpu, 1e-5), [8, 2]);
}

/// Balance biases follow the counts of the whole step, and idle are the experts that the whole step leaves idle.
#[test]
fn routers_and_idle_experts_go_by_the_whole_step() {
    for set in [&[][..], &["train.optimizer.idle=skip"]] {
        assert_same(MIXTURE, set, EXACT, [1, 3]);
        assert_same(MIXTURE, set, EXACT, [2, 2]);
    }
    let (tensors, _) = trained(MIXTURE, &["train.batch=1", "train.accumulate=3"], Device::Interpreter, 1);
    let (name, bias) = tensors.iter().find(|(name, _)| name.ends_with("balance_bias")).unwrap();
    assert!(bias.iter().any(|&x| x != 0.0), "{name}");
}

/// Shares of choices are counted from batch to batch, begin anew with every step, and are those of the batch where it is alone.
#[test]
fn balance_within_a_step_begins_anew_with_each() {
    let text = |within: &str| {
        let loss = format!("sigmoid_top_k(k: 2), balance: [switch(weight: 2.0, within: {within})]");
        MIXTURE.replace("sigmoid_top_k(k: 2, bias_rate: 0.01)", &loss)
    };
    let [step, batch] = ["step", "batch"].map(text);
    let with = |text: &str, set: &[&str]| trained(text, set, Device::Interpreter, 3);
    let alone = ["train.batch=4", "train.accumulate=1"];
    assert_eq!(with(&step, &alone), with(&batch, &alone));
    let several = ["train.batch=2", "train.accumulate=2"];
    assert_ne!(with(&step, &several).1, with(&batch, &several).1);
    // On the device as on the reference.
    let (kernels, reference) =
        (trained(&step, &several, Device::Cpu, 2).1, trained(&step, &several, Device::Interpreter, 2).1);
    assert!(kernels.iter().zip(&reference).all(|(a, b)| (a - b).abs() < 1e-4), "{kernels:?} and {reference:?}");
}

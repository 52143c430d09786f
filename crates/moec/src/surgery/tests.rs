//! That a certificate finds what is wrong: each number of a mixture is put where it belongs, or a claim breaks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::certificate::{self, Alone};
use super::*;
use crate::{Device, Error, Registry, Spec, Vocab};
use moec_ir::{Data, Tensor};
use std::collections::BTreeMap;

const DENSE: &str = "\
model dense {
  context 5
  vocab   characters
  embed(width: 6)
  repeat 2 {
    residual { layer_norm  attention(heads: 2) }
    residual { layer_norm  mlp(hidden: 9, activation: silu) }
  }
  layer_norm
  unembed
}
";

/// The model with numbers of its own.
fn run(seed: u64) -> Subject {
    run_of(DENSE, seed)
}

fn run_of(text: &str, seed: u64) -> Subject {
    let spec = Spec::parse("dense.moe", text).unwrap();
    let vocab = Vocab::of_text("abcdefg");
    let mut subject = Subject::new(format!("runs/{seed}"), spec, vocab, BTreeMap::new()).unwrap();
    subject.tensors = beginning(&subject, seed).unwrap();
    subject
}

fn beginning(subject: &Subject, seed: u64) -> Result<BTreeMap<String, Tensor>, Error> {
    Ok(moec_runtime::initial_tensors(seed, &subject.model_states(), &subject.lowered.parameters, &[]))
}

fn recipe(text: &str) -> MergeRecipe {
    serde_yaml::from_str(text).unwrap()
}

/// On the reference alone, two windows and a part of one.
fn on_reference<T>(then: impl FnOnce(&Witnesses<'_>) -> T) -> T {
    let backend = Device::Interpreter.open().unwrap();
    let tokens = (0..12).map(|i| (i * i + 3) % 7).collect();
    then(&Witnesses { name: "a text".into(), tokens, devices: vec![(Device::Interpreter, &*backend)] })
}

fn merged(recipe: &MergeRecipe, runs: &[Subject]) -> Result<Merged, Error> {
    on_reference(|witnesses| {
        let donors = (0..recipe.experts.len()).map(|i| &runs[i.min(runs.len() - 1)]).collect();
        let sources = Sources { base: &runs[0], donors, shared: None, spec: None };
        merge(recipe, sources, &Registry::with_builtins(), |subject| beginning(subject, 7), witnesses)
    })
}

#[test]
fn a_wrong_number_breaks_a_claim() {
    let runs = [run(1), run(2), run(3)];
    let recipe = recipe("experts: [a, b, c]\nroute: 'softmax_top_k(k: 2)'\n");
    let mixture = merged(&recipe, &runs).unwrap();
    assert_eq!(mixture.layers, ["blocks.0.moe", "blocks.1.moe"]);
    assert_eq!(mixture.certificate.claims.len(), 3);
    // With the trunk of the base, in the names of the dense models.
    let dense: Vec<Subject> = runs
        .iter()
        .map(|run| {
            let own = |name: &str| if name.contains(".mlp.") { &run.tensors } else { &runs[0].tensors };
            let tensors = run.tensors.keys().map(|name| (name.clone(), own(name)[name].clone())).collect();
            Subject { tensors, ..run.clone() }
        })
        .collect();
    let breaks = |subject: &Subject| {
        on_reference(|witnesses| {
            let mut certificate = Certificate::new("merge", witnesses);
            let all: Vec<Alone<'_>> = dense
                .iter()
                .enumerate()
                .map(|(i, must_be)| Alone { says: format!("expert {i}"), experts: vec![i], must_be })
                .collect();
            certificate::alone(&mut certificate, subject, &mixture.layers, &all, witnesses).unwrap();
            certificate.upheld()
        })
    };
    assert_eq!(breaks(&mixture.subject), Ok(()));
    let names: Vec<&String> = mixture.subject.tensors.keys().filter(|name| !name.contains(".router.")).collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        let mut wrong = mixture.subject.clone();
        let tensor = &wrong.tensors[name];
        let mut values = tensor.to_f32();
        let shape = tensor.shape().to_vec();
        // Experts in another order, or one number that is another one; the key's bias would change nothing.
        if name.contains(".experts.") {
            let size = values.len() / 3;
            values.rotate_left(size);
        } else {
            values.iter_mut().for_each(|x| *x += 0.01);
            values[0] += 0.5;
        }
        wrong.tensors.insert(name.clone(), Tensor::new(shape, Data::F32(values)).unwrap());
        let broken = breaks(&wrong);
        assert!(matches!(broken, Err(SurgeryError::Broken { .. })), "{name}: {broken:?}");
    }
}

/// Experts that compute nothing, and experts on fewer channels, are no layers that could be taken out or put in.
#[test]
fn experts_that_are_no_layers_are_refused() {
    let with = |experts: &str| {
        let moe = format!("moe(experts: {experts}, route: softmax_top_k(k: 2))");
        run_of(&DENSE.replace("mlp(hidden: 9, activation: silu)", &moe), 1)
    };
    let registry = Registry::with_builtins();
    let copy = with("[3 * mlp(hidden: 9, activation: silu), copy]");
    let latent = with("3 * mlp(hidden: 9, activation: silu), latent: 4");
    for (run, message) in [(&copy, "experts that compute nothing"), (&latent, "work on fewer channels")] {
        let taken = on_reference(|witnesses| extract(run, 0, &registry, witnesses)).unwrap_err().to_string();
        assert!(taken.contains(message) && taken.contains("`blocks.0.moe` of runs/1"), "{taken}");
        let put = merged(&recipe("experts: [a, b]\n"), &[run.clone(), run.clone()]).unwrap_err().to_string();
        assert!(put.contains(message), "{put}");
        let dense = vec![self::run(2), run.clone()];
        let put = merged(&recipe("experts: [a, b]\n"), &dense).unwrap_err().to_string();
        assert!(put.contains(message), "{put}");
    }
    let kept = Kept::These(vec![0, 2]);
    let pruned = on_reference(|witnesses| prune(&copy, &kept, &BTreeMap::new(), &registry, witnesses));
    assert!(pruned.unwrap_err().to_string().contains("experts that compute nothing"));
}

#[test]
fn every_division_into_slices_is_the_whole() {
    let runs = [run(4)];
    for (copies, slices, k) in [(1, 3, 3), (2, 3, 3), (3, 3, 6), (2, 9, 9), (1, 1, 1), (4, 1, 3)] {
        let text = format!("experts: [a]\ncopies: {copies}\nslices: {slices}\nroute: 'softmax_top_k(k: {k})'\n");
        let mixture = merged(&recipe(&text), &runs).unwrap();
        let claims = &mixture.certificate.claims;
        assert_eq!(claims.len(), copies + 1, "{text}");
        assert!(claims.iter().all(|claim| claim.measured[0].largest_difference < 1e-6), "{text} {claims:#?}");
    }
    // A token would miss slices.
    let text = "experts: [a]\ncopies: 2\nslices: 3\nroute: 'softmax_top_k(k: 2)'\n";
    let refused = merged(&recipe(text), &runs).unwrap_err().to_string();
    assert!(refused.contains("no multiple of 3 slices"), "{refused}");
    // Slices that make up for other weights, or not exactly: nothing is claimed, and nothing is broken.
    for more in ["slice_factor: 2.5\n", "slice_scale: spread\n"] {
        let text = format!("experts: [a]\nslices: 3\nroute: 'softmax_top_k(k: 3)'\n{more}");
        let certificate = merged(&recipe(&text), &runs).unwrap().certificate;
        assert!(certificate.claims.is_empty() && certificate.remarks[0].contains("no equality"), "{certificate:#?}");
    }
}

#[test]
fn what_is_no_number_equals_nothing() {
    let mut runs = [run(1), run(2)];
    let name = "blocks.1.mlp.down.bias";
    let tensor = runs[1].tensors[name].clone();
    let mut values = tensor.to_f32();
    values[2] = f32::NAN;
    runs[1].tensors.insert(name.into(), Tensor::new(tensor.shape(), Data::F32(values)).unwrap());
    let refused = merged(&recipe("experts: [a, b]\n"), &runs).unwrap_err().to_string();
    assert!(refused.contains("no finite number"), "{refused}");
    on_reference(|witnesses| {
        let mut certificate = Certificate::new("merge", witnesses);
        let both = [(f64::INFINITY, f64::INFINITY), (0.0, f64::INFINITY), (f64::NAN, 1.0), (1e-6, 0.1)];
        for (largest_difference, largest_logit) in both {
            let measured = Measured { device: "interpreter", characters: 12, largest_difference, largest_logit };
            certificate.claim("a claim".into(), vec![measured]);
        }
        certificate.claim("a claim of nothing".into(), Vec::new());
        let holds: Vec<bool> = certificate.claims.iter().map(|claim| claim.holds).collect();
        assert_eq!(holds, [false, false, false, true, false]);
    });
}

#[test]
fn the_last_map_of_experts_is_scaled_and_noise_is_reproducible() {
    let runs = [run(1), run(2)];
    let mixture = merged(&recipe("experts: [a, b]\nresidual_scale: 0.5\n"), &runs).unwrap();
    assert_eq!(mixture.certificate.claims.len(), 2);
    let downs = mixture.subject.tensors["blocks.1.moe.experts.mlp.down.bias"].to_f32();
    let down = runs[1].tensors["blocks.1.mlp.down.bias"].to_f32();
    assert!(downs[6..].iter().zip(&down).all(|(a, b)| *a == b * 0.5));
    let noisy = |seed: u64| {
        let text = format!("experts: [a, b]\nnoise: 0.1\nseed: {seed}\n");
        merged(&recipe(&text), &runs).unwrap().subject.tensors
    };
    let (first, again, other) = (noisy(1), noisy(1), noisy(2));
    assert_eq!(first, again);
    let name = "blocks.0.moe.experts.mlp.up.weight";
    assert_ne!(first[name], other[name]);
    let plain = merged(&recipe("experts: [a, b]\n"), &runs).unwrap().subject.tensors;
    let added: Vec<f64> = first[name].to_f64().iter().zip(plain[name].to_f64()).map(|(a, b)| a - b).collect();
    let std = (added.iter().map(|x| x * x).sum::<f64>() / added.len() as f64).sqrt();
    assert!((0.07..0.13).contains(&std), "{std}");
}

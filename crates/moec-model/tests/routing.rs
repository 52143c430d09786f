//! Routing strategies, balance losses and capacity against the numbers of an independent reference, forward.
//!
//! The files are those of `tests/fixtures/routing`, or of the folder `routing` in `MOEC_FIXTURES`; names and sizes are
//! read from them. Gradients are compared where gradients are derived.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moec_ir::{Data, Evaluation, Tensor, evaluate};
use moec_model::{
    CheckOptions, InitScheme, Layer, LayerKind, LowerOptions, Lowered, Mode, NoisePolicy, Registry, check, lower_layer,
};
use moec_syntax::{SourceFile, parse};
use safetensors::{Dtype, SafeTensors};

struct Fixture {
    name: String,
    meta: BTreeMap<String, String>,
    tensors: BTreeMap<String, Tensor>,
}

impl Fixture {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.iter().map(|(name, view)| {
            let words = view.data().chunks_exact(4).map(|c| [c[0], c[1], c[2], c[3]]);
            let data = match view.dtype() {
                Dtype::F32 => Data::F32(words.map(f32::from_le_bytes).collect()),
                _ => Data::I32(words.map(i32::from_le_bytes).collect()),
            };
            (name.to_string(), Tensor::new(view.shape().to_vec(), data).unwrap())
        });
        Fixture {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            tensors: tensors.collect(),
            meta: header.metadata().clone().unwrap_or_default().into_iter().collect(),
        }
    }

    fn size(&self, tensor: &str, axis: usize) -> usize {
        self.tensors[tensor].shape()[axis]
    }
}

/// All files whose names start with `prefix`.
fn fixtures(prefix: &str) -> Vec<Fixture> {
    let folder = std::env::var_os("MOEC_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures"), PathBuf::from);
    let entries = std::fs::read_dir(folder.join("routing")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.file_name().unwrap().to_string_lossy().starts_with(prefix));
    paths.sort();
    assert!(!paths.is_empty(), "no fixtures {prefix}* in {}", folder.display());
    paths.iter().map(|path| Fixture::read(path)).collect()
}

/// The `moe` layer with the given arguments, checked as a user's would be.
fn moe(arguments: &str, width: usize) -> Layer {
    let text =
        format!("model m {{ context 4  vocab 9  embed(width: {width}, positions: none)  moe({arguments})  unembed }}");
    let source = SourceFile::new("moe", text);
    let file = parse(&source).unwrap();
    let checked = check(&source, &file, &Registry::with_builtins(), &CheckOptions::default());
    assert!(!checked.has_errors(), "{:?}", checked.diagnostics);
    let layers = checked.model.unwrap().layers;
    layers.into_iter().find(|layer| matches!(layer.kind, LayerKind::Moe(_))).unwrap()
}

fn options(mode: Mode) -> LowerOptions {
    LowerOptions { mode, batch: 1, vocab: 9, loss: true, noise: NoisePolicy::Injected, init: InitScheme::KaimingNormal }
}

fn run(lowered: &Lowered, fixture: &Fixture) -> Evaluation {
    let mut bindings = BTreeMap::new();
    let n = fixture.size("x", 0);
    bindings.insert("x".to_string(), fixture.tensors["x"].clone());
    bindings.insert("tokens".to_string(), Tensor::ints(vec![0; n]));
    if let Some(noise) = fixture.tensors.get("input.noise") {
        bindings.insert("moe.noise".to_string(), noise.clone());
    }
    for (name, _) in &lowered.parameters {
        let theirs = name.replace("moe.experts.mlp.", "param.experts.").replace("moe.", "param.");
        bindings.insert(name.clone(), fixture.tensors[&theirs].clone());
    }
    evaluate(&lowered.graph, &bindings).unwrap()
}

/// Compares an output with a tensor of the fixture, which is rounded to 32 bits.
fn agree(fixture: &Fixture, evaluation: &Evaluation, output: &str, tensor: &str) {
    let (ours, theirs) = (&evaluation.outputs[output], &fixture.tensors[tensor]);
    if let Some(theirs) = theirs.as_i32() {
        assert_eq!(ours.as_i32().unwrap(), theirs, "{} {tensor}", fixture.name);
        return;
    }
    let (ours, theirs) = (ours.to_f64(), theirs.to_f64());
    assert_eq!(ours.len(), theirs.len(), "{} {tensor}", fixture.name);
    for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        assert!((a - b).abs() <= 1e-6 * (1.0 + b.abs()), "{} {tensor}[{i}]: {a} and {b}", fixture.name);
    }
}

fn compare(fixture: &Fixture, arguments: &str) {
    let (n, width, hidden) = (fixture.size("x", 0), fixture.size("x", 1), fixture.size("param.experts.up.bias", 1));
    let experts = &fixture.meta["experts"];
    let layer = moe(&format!("experts: {experts} * mlp(hidden: {hidden}), {arguments}"), width);
    let lowered = lower_layer(&layer, &options(Mode::Train), n).unwrap();
    let evaluation = run(&lowered, fixture);
    agree(fixture, &evaluation, "gates.moe", "gates");
    agree(fixture, &evaluation, "experts.moe", "experts");
    agree(fixture, &evaluation, "weights.moe", "weights");
    agree(fixture, &evaluation, "y", "layer.y");
    for (name, _) in fixture.tensors.iter().filter(|(name, _)| name.starts_with("aux.")) {
        let loss = name.trim_start_matches("aux.");
        agree(fixture, &evaluation, &format!("aux.moe.{loss}"), name);
    }
}

#[test]
fn softmax_top_k_agrees_with_the_reference() {
    for fixture in fixtures("softmax_top_k") {
        let (k, normalize) = (&fixture.meta["k"], &fixture.meta["normalize"]);
        let route = format!("route: softmax_top_k(k: {k}, normalize: {normalize})");
        compare(&fixture, &format!("{route}, balance: [switch(), z(), importance()]"));
    }
}

#[test]
fn noisy_top_k_agrees_with_the_reference() {
    for fixture in fixtures("noisy_top_k") {
        let k = &fixture.meta["k"];
        compare(&fixture, &format!("route: noisy_top_k(k: {k}, epsilon: 0), balance: [importance, load]"));
    }
}

#[test]
fn capacity_agrees_with_the_reference() {
    for fixture in fixtures("capacity") {
        let (k, factor) = (&fixture.meta["k"], &fixture.meta["capacity_factor"]);
        let arguments = format!("route: softmax_top_k(k: {k}), balance: [z], capacity(factor: {factor})");
        compare(&fixture, &arguments);
        // The bound is the reference's, and what is dropped is counted.
        let (n, width) = (fixture.size("x", 0), fixture.size("x", 1));
        let hidden = fixture.size("param.experts.up.bias", 1);
        let layer = moe(&format!("experts: {} * mlp(hidden: {hidden}), {arguments}", fixture.meta["experts"]), width);
        let lowered = lower_layer(&layer, &options(Mode::Train), n).unwrap();
        assert_eq!(lowered.moe_layers[0].capacity, Some(fixture.meta["capacity"].parse().unwrap()));
        let evaluation = run(&lowered, &fixture);
        let keep = fixture.tensors.get("keep").map(Tensor::to_f64);
        let load: f64 = evaluation.outputs["load.moe"].to_f64().iter().sum();
        let slots = evaluation.outputs["experts.moe"].as_i32().unwrap().len() as f64;
        let dropped = evaluation.outputs["dropped.moe"].item().unwrap();
        assert!((dropped - (1.0 - load / slots)).abs() < 1e-12);
        if let Some(keep) = keep {
            assert_eq!(load, keep.iter().sum::<f64>());
        }
    }
}

#[test]
fn evaluation_draws_no_noise_unless_asked() {
    let noisy = |extra: &str, mode| {
        let layer = moe(&format!("experts: 4 * mlp(hidden: 3), route: noisy_top_k(k: 2{extra})"), 6);
        lower_layer(&layer, &options(mode), 7).unwrap().graph.find("moe.noise").is_some()
    };
    assert!(noisy("", Mode::Train));
    assert!(!noisy("", Mode::Evaluate));
    assert!(noisy(", noise_at_evaluation: true", Mode::Evaluate));
}

//! The models in `specs/`: they are sound, have the sizes that they promise, and lower in every mode.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::path::Path;

use moec_ir::{Graph, Precision, TensorType, flops};
use moec_model::{
    Causality, CheckOptions, Checked, Form, InitScheme, LowerOptions, Lowered, Mode, Model, NoisePolicy, Registry,
    check, library, lower,
};
use moec_syntax::{SourceFile, format, parse};

fn source(name: &str, overrides: &[&str]) -> SourceFile {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../specs").join(name);
    library::imported_into(SourceFile::new(name, std::fs::read_to_string(path).unwrap())).with_overrides(overrides)
}

fn checked(source: &SourceFile) -> Checked {
    let checked = check(source, &parse(source).unwrap(), &Registry::with_builtins(), &CheckOptions::default());
    assert!(checked.model.is_some(), "{:?}", checked.diagnostics);
    checked
}

fn spec(name: &str, overrides: &[&str]) -> Checked {
    let source = source(name, overrides);
    assert_eq!(format(&source).unwrap(), source.text(), "{name} is not in the canonical layout");
    let checked = checked(&source);
    assert_eq!(checked.diagnostics, [], "{name}");
    checked
}

fn lowered(model: &Model, mode: Mode) -> Lowered {
    let options = LowerOptions {
        mode,
        batch: 3,
        vocab: 65,
        loss: true,
        noise: NoisePolicy::Generated,
        init: InitScheme::KaimingNormal,
        precision: Precision::F32,
        routes: false,
        form: Form::Sequences,
    };
    lower(model, &options).unwrap()
}

fn elements(graph: &Graph, name: &str) -> usize {
    graph.node(graph.find(name).unwrap()).results[0].elements()
}

#[test]
fn noisy_top2_has_the_parameters_of_makemoe() {
    let model = spec("noisy_top2.moe", &[]).model.unwrap();
    let lowered = lowered(&model, Mode::Train);
    assert_eq!(lowered.parameter_count(), 8_996_545);
    let total: usize = lowered.parameters.iter().map(|(name, _)| elements(&lowered.graph, name)).sum();
    assert_eq!(total, 8_996_545);
    // Six of eight experts rest: 6 * (2 * 128 * 512 + 512 + 128) numbers in each of 8 blocks.
    assert_eq!(lowered.active_parameter_count(), 8_996_545 - 8 * 6 * (2 * 128 * 512 + 640));
    assert_eq!(model.causality, Causality::Causal);
}

#[test]
fn parameters_are_named_as_promised() {
    let model = spec("tiny.moe", &[]).model.unwrap();
    let lowered = lowered(&model, Mode::Train);
    let shape = |name: &str| lowered.graph.node(lowered.graph.find(name).unwrap()).results[0].shape.clone();
    for (name, expected) in [
        ("embed.token.weight", vec![65, 32]),
        ("embed.position.weight", vec![16, 32]),
        ("blocks.0.layer_norm.gain", vec![32]),
        ("blocks.0.attention.qkv.weight", vec![96, 32]),
        ("blocks.0.attention.proj.weight", vec![32, 32]),
        ("blocks.0.attention.proj.bias", vec![32]),
        ("blocks.0.layer_norm_2.shift", vec![32]),
        ("blocks.1.moe.router.weight", vec![4, 32]),
        ("blocks.1.moe.noise.bias", vec![4]),
        ("blocks.1.moe.experts.mlp.up.weight", vec![4, 128, 32]),
        ("blocks.1.moe.experts.mlp.down.bias", vec![4, 32]),
        ("layer_norm.gain", vec![32]),
        ("unembed.weight", vec![65, 32]),
        ("unembed.bias", vec![65]),
    ] {
        assert_eq!(shape(name), expected, "{name}");
    }
    assert_eq!(lowered.graph.find("blocks.0.attention.qkv.bias"), None);
    // The balance of the layers is for evaluation only.
    let evaluated = self::lowered(&model, Mode::Evaluate);
    let outputs: Vec<&str> = evaluated.graph.outputs().iter().map(|(name, _)| name.as_str()).collect();
    for name in ["logits", "loss", "objective", "aux.blocks.1.moe.load", "load.blocks.0.moe", "entropy.blocks.1.moe"] {
        assert!(outputs.contains(&name), "{name} in {outputs:?}");
    }
}

#[test]
fn every_spec_lowers_in_both_modes() {
    for name in ["noisy_top2.moe", "top2.moe", "tiny.moe", "dense.moe"] {
        let model = spec(name, &[]).model.unwrap();
        let random = |lowered: &Lowered| lowered.graph.find("rng").is_some();
        let (train, evaluate) = (lowered(&model, Mode::Train), lowered(&model, Mode::Evaluate));
        assert_eq!(random(&train), name != "tiny.moe" || !train.moe_layers.is_empty(), "{name}");
        assert!(!random(&evaluate), "{name} is random in evaluation");
    }
}

#[test]
fn overrides_change_model_and_recipe() {
    let checked = spec(
        "tiny.moe",
        &[
            "width=64",
            "context=8",
            "train.steps=7",
            "train.optimizer.lr=0.5",
            "train.schedule=cosine(warmup: 2)",
            "train.clip=1",
        ],
    );
    let model = checked.model.unwrap();
    assert_eq!((model.width, model.context), (64, 8));
    assert_eq!(checked.recipe.steps, 7);
    assert_eq!(checked.recipe.optimizer.lr(), 0.5);
    assert_eq!(checked.recipe.optimizer.settings.number("beta2"), 0.999);
    assert_eq!(checked.recipe.clip, Some(1.0));
    assert!(checked.recipe.span("batch").is_some() && checked.recipe.span("steps").is_none());
}

/// The models that were published, scaled down, are sound and lower in both modes.
#[test]
fn published_models_are_sound() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../specs/published");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = format!("published/{}", entry.unwrap().file_name().to_str().unwrap());
        let model = spec(&name, &["width=16", "depth=2"]).model.unwrap();
        assert_eq!(model.causality, Causality::Causal, "{name}");
        for mode in [Mode::Train, Mode::Evaluate] {
            assert!(!lowered(&model, mode).moe_layers.is_empty(), "{name}");
        }
        seen += 1;
    }
    assert_eq!(seen, 8);
}

/// What `moec compile` prints for a token and what plans are measured by are the same products. Biases of routers count as
/// products in the one and not in the other.
#[test]
fn products_of_layers_are_those_of_their_graph() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../specs");
    let files = ["", "routers", "published"].map(|sub| std::fs::read_dir(folder.join(sub)).unwrap());
    for path in files.into_iter().flatten().map(|entry| entry.unwrap().path()) {
        if path.extension().is_none_or(|extension| extension != "moe") {
            continue;
        }
        let name = path.strip_prefix(&folder).unwrap().to_str().unwrap();
        let model = checked(&source(name, &[])).model.unwrap();
        let lowered = lowered(&model, Mode::Evaluate);
        let graph = &lowered.graph;
        let of_node = |id| {
            let operands: Vec<&TensorType> = graph.operands(id).iter().map(|v| graph.ty(*v)).collect();
            flops(&graph.node(id).op, &operands, &graph.node(id).results.iter().collect::<Vec<_>>())
        };
        let of_graph = graph.ids().map(of_node).sum::<f64>() / (3 * model.context) as f64;
        let of_layers: f64 = lowered.layers.iter().map(|layer| layer.products).sum();
        // Graphs have a row for each slot: every expert of a gate that may close, every token that may pass a layer by.
        // The table says what a token meets on average, and does not count the mixing of tokens in `soft_moe`.
        // Nor does it count the products of weights with each other, of which a batch needs one, nor what merges experts.
        let on_average = ["dselect_k", "mixture_of_depths", "soft_moe", "zero_computation", "similarity", "smear"];
        if on_average.iter().any(|spec| name == format!("routers/{spec}.moe")) {
            assert!(of_layers < of_graph, "{name}: {of_layers} in the table, {of_graph} in the graph");
        } else {
            let biases = of_layers - of_graph;
            assert!(
                (0.0..1e-3 * of_graph).contains(&biases),
                "{name}: {of_layers} in the table, {of_graph} in the graph"
            );
        }
    }
}

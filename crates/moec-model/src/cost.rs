//! Sizes and costs of layers, for the table that compiling prints.

use crate::model::{Activation, Layer, LayerKind, Mlp, Moe};

/// One layer of a lowered model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// Its path, such as `blocks.0.moe`.
    pub path: String,
    /// Its name in the file.
    pub kind: &'static str,
    /// Trained numbers.
    pub parameters: usize,
    /// Trained numbers that one token makes use of: a token uses K of E experts.
    pub active: usize,
    /// Floating point operations of the forward pass per token, counting a multiply-add as two.
    pub flops: usize,
}

/// The row of a layer whose parameters have the given names and numbers of elements.
pub(crate) fn layer_info(
    layer: &Layer,
    path: String,
    parameters: &[(&str, usize)],
    time: usize,
    vocab: usize,
) -> LayerInfo {
    let total: usize = parameters.iter().map(|(_, n)| n).sum();
    let (mut active, mut flops) = (total, flops(layer, time, vocab));
    if let LayerKind::Moe(moe) = &layer.kind {
        let (experts, shared) = (format!("{path}.experts."), format!("{path}.shared."));
        let count = |prefix: &str| -> usize {
            parameters.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, n)| n).sum()
        };
        let (routed, shared) = (count(&experts), count(&shared));
        let router = total - routed - shared;
        active = router + shared + routed / moe.experts.max(1) * moe.route.experts_per_token();
        // A router multiplies a token with each of its weights once.
        flops += 2 * router;
    }
    LayerInfo { path, kind: layer.kind.name(), parameters: total, active, flops }
}

fn sequence(layers: &[Layer], time: usize, vocab: usize) -> usize {
    layers.iter().map(|layer| flops(layer, time, vocab)).sum()
}

/// Operations per token: products exactly, elementwise work by a few operations per element.
fn flops(layer: &Layer, time: usize, vocab: usize) -> usize {
    let (input, output) = (layer.input, layer.output);
    match &layer.kind {
        LayerKind::Embed { .. } => output,
        // Scores and weighted values over T/2 positions on average, and four square maps.
        LayerKind::Attention(_) => 8 * input * input + 2 * input * (time + 1),
        LayerKind::Mlp(mlp) => mlp_flops(mlp, input),
        LayerKind::Moe(moe) => moe_flops(moe, time, vocab),
        LayerKind::LayerNorm { .. } => 8 * input,
        LayerKind::RmsNorm { .. } => 4 * input,
        LayerKind::Dropout { .. } => 0,
        LayerKind::Linear { .. } => 2 * input * output,
        LayerKind::Activation(_) => input,
        LayerKind::Residual(layers) => input + sequence(layers, time, vocab),
        LayerKind::Block { layers, .. } => sequence(layers, time, vocab),
        LayerKind::Unembed { .. } => 2 * input * vocab,
    }
}

fn mlp_flops(mlp: &Mlp, width: usize) -> usize {
    let maps = if mlp.activation == Activation::Swiglu { 3 } else { 2 };
    2 * maps * width * mlp.hidden
}

/// The experts that a token meets; the router is counted by its parameters.
fn moe_flops(moe: &Moe, time: usize, vocab: usize) -> usize {
    let routed = moe.route.experts_per_token() * sequence(&moe.expert, time, vocab);
    routed + moe.shared * sequence(&moe.shared_expert, time, vocab)
}

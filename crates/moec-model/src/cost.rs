//! Sizes and costs of layers, for the table that compiling prints.

use crate::emit::Declared;
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

/// The row of a layer that declared `parameters`; routers multiply each token with `router` weights of it.
pub(crate) fn layer_info<'a>(
    layer: &Layer,
    path: String,
    parameters: impl Iterator<Item = &'a Declared>,
    router: f64,
    time: usize,
    vocab: usize,
) -> LayerInfo {
    let (mut total, mut active) = (0usize, 0.0);
    for declared in parameters {
        total = usize::saturating_add(total, declared.elements);
        active += declared.elements as f64 * declared.share;
    }
    let flops = flops(layer, time, vocab) + 2.0 * router;
    LayerInfo {
        path,
        kind: layer.kind.name(),
        parameters: total,
        active: active.round() as usize,
        flops: flops.round() as usize,
    }
}

fn sequence(layers: &[Layer], time: usize, vocab: usize) -> f64 {
    layers.iter().map(|layer| flops(layer, time, vocab)).sum()
}

/// Operations per token: products exactly, elementwise work by a few operations per element.
fn flops(layer: &Layer, time: usize, vocab: usize) -> f64 {
    let (input, output) = (layer.input, layer.output);
    let counted = match &layer.kind {
        LayerKind::Moe(moe) => return moe_flops(moe, time, vocab),
        LayerKind::MixtureOfDepths(depths) => {
            let kept = depths.tokens(time);
            return kept as f64 / time.max(1) as f64 * (sequence(&depths.layers, kept, vocab) + 3.0 * input as f64);
        }
        LayerKind::Residual(layers) => return input as f64 + sequence(layers, time, vocab),
        LayerKind::Block { layers, .. } => return sequence(layers, time, vocab),
        LayerKind::Embed { .. } => output,
        // Scores and weighted values over T/2 positions on average, and four square maps.
        LayerKind::Attention(_) => 8 * input * input + 2 * input * (time + 1),
        LayerKind::Mlp(mlp) => mlp_flops(mlp, input),
        // Each hash meets a block of either map.
        LayerKind::MultiHash(hash) => 4 * input * hash.hidden,
        LayerKind::LayerNorm { .. } => 8 * input,
        LayerKind::RmsNorm { .. } => 4 * input,
        LayerKind::Dropout { .. } => 0,
        LayerKind::Linear { .. } => 2 * input * output,
        LayerKind::Activation(_) => input,
        LayerKind::Unembed { .. } => 2 * input * vocab,
    };
    counted as f64
}

fn mlp_flops(mlp: &Mlp, width: usize) -> usize {
    let maps = if mlp.activation == Activation::Swiglu { 3 } else { 2 };
    2 * maps * width * mlp.hidden
}

/// The experts that a token meets; the router is counted by its parameters.
fn moe_flops(moe: &Moe, time: usize, vocab: usize) -> f64 {
    let routed = moe.route.experts_per_token(moe.experts, time) * sequence(&moe.expert, time, vocab);
    routed + moe.shared as f64 * sequence(&moe.shared_expert, time, vocab)
}

//! Sizes and costs of layers, for the table that compiling prints.

use crate::emit::Declared;

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

/// The row of a layer that declared `parameters` and takes `flops` operations a token, besides those of routers, which
/// multiply each token with all of their parameters.
pub(crate) fn layer_info<'a>(
    path: String,
    kind: &'static str,
    parameters: impl Iterator<Item = &'a Declared>,
    flops: f64,
) -> LayerInfo {
    let (mut total, mut active, mut router) = (0usize, 0.0, 0.0);
    for declared in parameters {
        let met = declared.elements as f64 * declared.share;
        total = total.saturating_add(declared.elements);
        active += met;
        router += if declared.router { met } else { 0.0 };
    }
    let flops = flops + 2.0 * router;
    LayerInfo { path, kind, parameters: total, active: active.round() as usize, flops: flops.round() as usize }
}

//! Sizes and costs of layers, for the table that compiling prints.
//!
//! What a layer says of its products is what a token has of those in the graph, which [`moec_ir::flops`] counts for whole
//! batches and plans go by; tests hold the one against the other. The table adds what plans leave out, since memory bounds
//! it: elementwise work.

use std::ops::{Add, Mul};

use moec_syntax::Span;

use crate::emit::Declared;
use crate::layer::Layer;

/// Floating point operations of a forward pass per token, counting a multiply-add as two.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Flops {
    /// Of products and attention, as [`moec_ir::flops`] counts them.
    pub(crate) products: f64,
    /// Of norms, sums and activations, a few for each element.
    pub(crate) elementwise: f64,
}

impl Flops {
    pub(crate) fn products(products: f64) -> Self {
        Flops { products, elementwise: 0.0 }
    }

    pub(crate) fn elementwise(elementwise: f64) -> Self {
        Flops { products: 0.0, elementwise }
    }

    fn all(self) -> f64 {
        self.products + self.elementwise
    }
}

impl Add for Flops {
    type Output = Flops;

    fn add(self, other: Flops) -> Flops {
        Flops { products: self.products + other.products, elementwise: self.elementwise + other.elementwise }
    }
}

/// Of as many tokens, or that part of one.
impl Mul<f64> for Flops {
    type Output = Flops;

    fn mul(self, times: f64) -> Flops {
        Flops { products: self.products * times, elementwise: self.elementwise * times }
    }
}

/// One layer of a lowered model.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerInfo {
    /// Its path, such as `blocks.0.moe`.
    pub path: String,
    /// Its name in the file.
    pub kind: &'static str,
    /// Where it was written.
    pub span: Span,
    /// Width of what it is given; `None` for `embed`, which is given tokens.
    pub input: Option<usize>,
    /// Width of what it returns; `None` for `unembed`, whose width is the vocabulary's.
    pub output: Option<usize>,
    /// Trained numbers.
    pub parameters: usize,
    /// Trained numbers that one token makes use of: a token uses K of E experts.
    pub active: usize,
    /// Floating point operations of the forward pass per token, counting a multiply-add as two.
    pub flops: usize,
    /// Those of products alone, before they are rounded.
    pub products: f64,
}

/// The row of a layer that declared `parameters` and takes `flops` operations a token, besides those of routers, which
/// multiply each token with all of their parameters.
pub(crate) fn layer_info<'a>(
    path: String,
    layer: &Layer,
    parameters: impl Iterator<Item = &'a Declared>,
    flops: Flops,
) -> LayerInfo {
    let (mut total, mut active, mut router) = (0usize, 0.0, 0.0);
    for declared in parameters {
        let met = declared.elements as f64 * declared.share;
        total = total.saturating_add(declared.elements);
        active += met;
        router += if declared.router { met } else { 0.0 };
    }
    let flops = flops + Flops::products(2.0 * router);
    let (active, all) = (active.round() as usize, flops.all().round() as usize);
    LayerInfo {
        path,
        kind: layer.name(),
        span: layer.span,
        input: layer.input,
        output: layer.output,
        parameters: total,
        active,
        flops: all,
        products: flops.products,
    }
}

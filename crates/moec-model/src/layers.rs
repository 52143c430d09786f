//! The layers of the language, a file each: what it takes, how it is checked and built, what it costs, and what it needs
//! of other tokens. A layer is its file and its row in [`LAYERS`].

mod activation;
mod attention;
mod block;
mod dropout;
mod embed;
mod layer_norm;
mod linear;
mod mixture_of_depths;
mod mlp;
mod moe;
mod multi_hash;
mod residual;
mod rms_norm;
mod spec;
mod unembed;

pub use activation::Activation;
pub use attention::{Attention, QueryNorm};
pub(crate) use block::Block;
pub use mixture_of_depths::MixtureOfDepths;
pub use mlp::Mlp;
pub(crate) use moe::Pooled;
pub use moe::{Capacity, CapacityOrder, Moe, Route, RunningMean, WeightedLoss, ZeroComputation, ZeroExperts};
pub use multi_hash::MultiHash;
pub use spec::LayerSpec;

/// Every layer, in the order of messages and of the reference.
pub const LAYERS: &[&LayerSpec] = &[
    &embed::LAYER,
    &attention::LAYER,
    &mlp::LAYER,
    &moe::LAYER,
    &multi_hash::LAYER,
    &mixture_of_depths::LAYER,
    &layer_norm::LAYER,
    &rms_norm::LAYER,
    &dropout::LAYER,
    &linear::LAYER,
    &activation::RELU,
    &activation::GELU,
    &activation::SILU,
    &residual::LAYER,
    &unembed::LAYER,
];

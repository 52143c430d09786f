//! The built-in routing strategies, one file each.

mod noisy_top_k;
mod softmax_top_k;

pub use noisy_top_k::NoisyTopK;
pub use softmax_top_k::SoftmaxTopK;

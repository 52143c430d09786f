//! The built-in routing strategies, one file each. They use the same trait as an outside crate.

mod base_layer;
mod dselect_k;
mod expert_choice;
mod groups;
mod gshard;
mod hash;
mod noisy_top_k;
mod sigmoid_top_k;
mod smear;
mod soft_moe;
mod softmax_top_k;
mod switch;

pub use base_layer::Base;
pub use dselect_k::DSelectK;
pub use expert_choice::ExpertChoice;
pub use gshard::GShard;
pub use hash::Hash;
pub(crate) use hash::{balanced, drawn_bucket, drawn_buckets};
pub use noisy_top_k::NoisyTopK;
pub use sigmoid_top_k::SigmoidTopK;
pub use smear::Smear;
pub use soft_moe::SoftMoe;
pub use softmax_top_k::SoftmaxTopK;
pub use switch::Switch;

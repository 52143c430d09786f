//! The kernels, one file per family. A file's head says what each kernel computes, how memory is laid out, and which
//! unit owns which output element: no kernel uses atomics, so results do not depend on the number of units.

#![allow(
    clippy::assign_op_pattern,
    clippy::collapsible_if,
    clippy::eq_op,
    clippy::excessive_precision,
    clippy::if_same_then_else,
    clippy::manual_div_ceil,
    clippy::manual_is_multiple_of,
    clippy::manual_memcpy,
    reason = "the kernel language has neither these methods nor these forms, and published coefficients stay as printed"
)]

pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod balance;
pub(crate) mod cached_attention;
pub(crate) mod copy;
pub(crate) mod cross_entropy;
pub(crate) mod cumsum;
pub(crate) mod embed;
mod exponential;
pub(crate) mod fill;
pub(crate) mod fused;
pub(crate) mod grouped_matmul;
pub(crate) mod indices;
mod lanes;
pub(crate) mod limits;
pub(crate) mod matmul;
mod native;
pub(crate) mod norm;
mod order;
pub(crate) mod random;
pub(crate) mod reduce;
pub(crate) mod rotary;
pub(crate) mod routing;
pub(crate) mod small;
pub(crate) mod softmax;
mod together;
pub(crate) mod top_k;
pub(crate) mod unpack;

//! What operations mean, by family: types of results, and their elements in plain 64-bit Rust.
//!
//! The table of operations ([`crate::Op`]) says which family an operation belongs to. Number and ranges of what an
//! operation takes have been checked against the table before a family is asked.

mod attention;
mod dispatch;
mod elementwise;
mod embedding;
mod indices;
pub(crate) mod linear;
mod norm;
mod optimizer;
pub(crate) mod random;
pub(crate) mod reduction;
mod selection;
mod softmax;
mod structure;

use crate::declaration::{Family, OutOfRange, Range};
use crate::infer::{Check, InferError};
use crate::internal_error;
use crate::op::Op;
use crate::operands::{EvalError, Operands};
use crate::tensor::Data;
use crate::types::TensorType;

/// Types of the results of `op`, in slot order.
///
/// # Errors
/// When the number or the types of the operands do not fit the operation, or one of the whole numbers among its
/// attributes is out of range.
pub fn infer(op: &Op, types: &[&TensorType]) -> Result<Vec<TensorType>, InferError> {
    let c = Check { op: op.mnemonic(), types };
    if let Some(times) = op.times() {
        c.times(&times)?;
    }
    // Shapes are computed from them; the others do not matter to types, and are the verifier's.
    if let Some(attribute) = op.out_of_range().into_iter().find(|attribute| attribute.range == Range::AtLeastOne) {
        let OutOfRange { attribute, value, range } = attribute;
        return c.fail(format!("{attribute} is {value}, not {}", range.in_words()));
    }
    let c = &c;
    match op.declaration().family {
        Family::Structure => structure::infer(op, c),
        Family::Elementwise => elementwise::infer(op, c),
        Family::Indices => indices::infer(op, c),
        Family::Reduction => reduction::infer(op, c),
        Family::Linear => linear::infer(op, c),
        Family::Norm => norm::infer(op, c),
        Family::Softmax => softmax::infer(op, c),
        Family::Attention => attention::infer(op, c),
        Family::Embedding => embedding::infer(op, c),
        Family::Random => random::infer(op, c),
        Family::Selection => selection::infer(op, c),
        Family::Dispatch => dispatch::infer(op, c),
        Family::Optimizer => optimizer::infer(op, c),
    }
}

/// Elements of the results, of the given types, of an operation.
pub(crate) fn evaluate(op: &Op, x: &Operands<'_>, types: &[TensorType]) -> Result<Vec<Data>, EvalError> {
    Ok(match op.declaration().family {
        Family::Structure => structure::evaluate(op, x, types)?,
        Family::Elementwise => elementwise::evaluate(op, x),
        Family::Indices => indices::evaluate(op, x),
        Family::Reduction => reduction::evaluate(op, x, types),
        Family::Linear => linear::evaluate(op, x)?,
        Family::Norm => norm::evaluate(op, x),
        Family::Softmax => softmax::evaluate(op, x, types),
        Family::Attention => attention::evaluate(op, x),
        Family::Embedding => embedding::evaluate(op, x, types)?,
        Family::Random => random::evaluate(op, x, types),
        Family::Selection => selection::evaluate(op, x, types),
        Family::Dispatch => dispatch::evaluate(op, x, types),
        Family::Optimizer => optimizer::evaluate(op, x),
    })
}

/// An operation was given to a family that it does not belong to, or that does not know what it means.
fn misplaced(op: &Op) -> ! {
    internal_error!("`{}` is not known to the family {:?}", op.mnemonic(), op.declaration().family)
}

//! Functions of one element of each operand; what they are is in `function.rs`.

use super::misplaced;
use crate::infer::{Check, InferError};
use crate::op::Op;
use crate::operands::{Operands, floats};
use crate::tensor::Data;
use crate::types::TensorType;

pub(super) fn infer(op: &Op, c: &Check<'_>) -> Result<Vec<TensorType>, InferError> {
    match op {
        Op::Unary(_) | Op::Binary(_) | Op::Select => {}
        other => misplaced(other),
    }
    let ty = TensorType::f32(c.float(0)?);
    for i in 1..c.types.len() {
        c.is(i, &ty)?;
    }
    Ok(vec![ty])
}

pub(super) fn evaluate(op: &Op, x: &Operands<'_>) -> Vec<Data> {
    match op {
        Op::Unary(f) => floats(x.f(0).iter().map(|&v| f.evaluate(v)).collect()),
        Op::Binary(f) => floats(x.f(0).iter().zip(x.f(1).iter()).map(|(&a, &b)| f.evaluate(a, b)).collect()),
        Op::Select => {
            let (condition, a, b) = (x.f(0), x.f(1), x.f(2));
            floats((0..a.len()).map(|i| if condition[i] != 0.0 { a[i] } else { b[i] }).collect())
        }
        other => misplaced(other),
    }
}

//! Where values come from, and their shapes.

use super::misplaced;
use crate::infer::{Check, InferError, f32s};
use crate::op::Op;
use crate::operands::{EvalError, Operands, floats};
use crate::tensor::Data;
use crate::types::{DType, TensorType};

/// Most axes of a permuted tensor.
const MOST_PERMUTED: usize = 4;

pub(super) fn infer(op: &Op, c: &Check<'_>) -> Result<Vec<TensorType>, InferError> {
    Ok(match op {
        Op::Input { ty, .. } | Op::Parameter { ty, .. } | Op::State { ty, .. } => vec![ty.clone()],
        Op::Fill { ty, .. } => {
            c.require(ty.dtype == DType::F32, || format!("a fill is f32, not {ty}"))?;
            vec![ty.clone()]
        }
        Op::Ramp { length, step } => {
            let last = i64::try_from(length.saturating_sub(1)).ok().and_then(|n| n.checked_mul(i64::from(*step)));
            let fits = i32::try_from(*length).is_ok() && last.is_some_and(|last| i32::try_from(last).is_ok());
            c.require(fits, || format!("{length} steps of {step} leave the range of i32"))?;
            vec![TensorType::i32([*length])]
        }
        Op::Reshape { shape } => {
            let to = TensorType { dtype: c.ty(0).dtype, shape: shape.clone() };
            c.require(to.elements() == c.ty(0).elements(), || format!("{} cannot become {to}", c.ty(0)))?;
            vec![to]
        }
        Op::Broadcast { shape } => {
            let (from, to) = (&c.ty(0).shape, TensorType { dtype: c.ty(0).dtype, shape: shape.clone() });
            let lead = shape.len().checked_sub(from.len());
            let fits = lead.is_some_and(|lead| from.iter().zip(&shape[lead..]).all(|(&a, &b)| a == b || a == 1));
            c.require(fits, || format!("{} does not broadcast to {to}", c.ty(0)))?;
            vec![to]
        }
        Op::Permute { axes } => {
            let shape = c.float(0)?;
            c.require(shape.len() <= MOST_PERMUTED, || format!("{} has more than {MOST_PERMUTED} axes", c.ty(0)))?;
            let once = axes.len() == shape.len() && (0..shape.len()).all(|axis| axes.contains(&axis));
            c.require(once, || format!("axes {axes:?} are not each axis of {} once", c.ty(0)))?;
            vec![f32s(&axes.iter().map(|&axis| shape[axis]).collect::<Vec<_>>())]
        }
        Op::StopGradient => vec![f32s(c.float(0)?)],
        other => misplaced(other),
    })
}

pub(super) fn evaluate(op: &Op, x: &Operands<'_>, types: &[TensorType]) -> Result<Vec<Data>, EvalError> {
    let len = types[0].elements();
    Ok(match op {
        Op::Input { name, .. } | Op::Parameter { name, .. } | Op::State { name, .. } => {
            return Err(EvalError::Unbound { kind: op.mnemonic(), name: name.clone() });
        }
        Op::Fill { value, .. } => floats(vec![value.get(); len]),
        Op::Ramp { step, .. } => vec![Data::I32((0..len).map(|i| (i as i32).wrapping_mul(*step)).collect())],
        Op::Reshape { .. } => match x.tensors[0].data() {
            Data::I32(v) => vec![Data::I32(v.clone())],
            Data::F32(_) | Data::F64(_) => floats(x.f(0).into_owned()),
        },
        Op::Broadcast { shape } => {
            let source = broadcast_strides(x.shape(0), shape);
            match x.tensors[0].data() {
                Data::I32(v) => vec![Data::I32(gather(v, shape, &source))],
                Data::F32(_) | Data::F64(_) => floats(gather(&x.f(0), shape, &source)),
            }
        }
        Op::Permute { axes } => {
            let strides = strides(x.shape(0));
            let source: Vec<usize> = axes.iter().map(|&axis| strides[axis]).collect();
            floats(gather(&x.f(0), &types[0].shape, &source))
        }
        Op::StopGradient => floats(x.f(0).into_owned()),
        other => misplaced(other),
    })
}

/// Strides of a row-major shape.
pub(super) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}

/// Walks over all elements of `shape` in order and gives the offset under other strides.
pub(super) fn walk(shape: &[usize], strides: &[usize], mut visit: impl FnMut(usize)) {
    let len: usize = shape.iter().product();
    let mut position = vec![0; shape.len()];
    let mut offset = 0;
    for _ in 0..len {
        visit(offset);
        for axis in (0..shape.len()).rev() {
            position[axis] += 1;
            offset += strides[axis];
            if position[axis] < shape[axis] {
                break;
            }
            offset -= strides[axis] * shape[axis];
            position[axis] = 0;
        }
    }
}

/// Strides of a tensor of shape `from` that is read as one of shape `to`: 0 where an axis is repeated.
fn broadcast_strides(from: &[usize], to: &[usize]) -> Vec<usize> {
    let lead = to.len() - from.len();
    let mut source = vec![0; to.len()];
    for (axis, stride) in strides(from).into_iter().enumerate() {
        source[lead + axis] = if from[axis] == 1 { 0 } else { stride };
    }
    source
}

/// The elements of a tensor of shape `to`, read from `x` under the given strides.
fn gather<T: Copy>(x: &[T], to: &[usize], strides: &[usize]) -> Vec<T> {
    let mut y = Vec::new();
    walk(to, strides, |offset| y.push(x[offset]));
    y
}

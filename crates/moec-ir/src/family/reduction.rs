//! Sums along axes.

use super::misplaced;
use super::structure::{strides, walk};
use crate::infer::{Check, InferError, f32s};
use crate::internal::Invariant;
use crate::op::Op;
use crate::operands::{Operands, floats};
use crate::tensor::Data;
use crate::types::TensorType;

pub(super) fn infer(op: &Op, c: &Check<'_>) -> Result<Vec<TensorType>, InferError> {
    Ok(match op {
        Op::Sum { axes } => {
            let shape = c.float(0)?;
            let sorted = axes.windows(2).all(|w| w[0] < w[1]) && axes.iter().all(|&a| a < shape.len());
            c.require(sorted && !axes.is_empty(), || format!("axes {axes:?} must be ascending axes of {}", c.ty(0)))?;
            let kept: Vec<usize> =
                shape.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, &d)| d).collect();
            vec![f32s(&kept)]
        }
        Op::CumulativeSum { axis, .. } => {
            let shape = c.float(0)?;
            c.require(*axis < shape.len(), || format!("{} has no axis {axis}", c.ty(0)))?;
            vec![c.ty(0).clone()]
        }
        Op::SumOfSquares => {
            for i in 0..c.types.len() {
                c.float(i)?;
            }
            vec![f32s(&[])]
        }
        other => misplaced(other),
    })
}

pub(super) fn evaluate(op: &Op, x: &Operands<'_>, types: &[TensorType]) -> Vec<Data> {
    let len = types[0].elements();
    match op {
        Op::Sum { axes } => floats(sum(&x.f(0), x.shape(0), axes, len)),
        Op::CumulativeSum { axis, exclusive, reverse } => {
            floats(cumulative_sum(&x.f(0), x.shape(0), *axis, *exclusive, *reverse))
        }
        Op::SumOfSquares => {
            floats(vec![(0..x.tensors.len()).map(|i| x.f(i).iter().map(|v| v * v).sum::<f64>()).sum::<f64>()])
        }
        other => misplaced(other),
    }
}

pub(crate) fn sum(x: &[f64], shape: &[usize], axes: &[usize], len: usize) -> Vec<f64> {
    let kept: Vec<usize> = (0..shape.len()).filter(|axis| !axes.contains(axis)).collect();
    let kept_shape: Vec<usize> = kept.iter().map(|&axis| shape[axis]).collect();
    let mut target = vec![0; shape.len()];
    for (&axis, stride) in kept.iter().zip(strides(&kept_shape)) {
        target[axis] = stride;
    }
    let mut y = vec![0.0; len];
    let mut elements = x.iter();
    walk(shape, &target, |offset| {
        y[offset] += elements.next().invariant("a walk visits as many elements as the shape has");
    });
    y
}

fn cumulative_sum(x: &[f64], shape: &[usize], axis: usize, exclusive: bool, reverse: bool) -> Vec<f64> {
    let (extent, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
    let outer: usize = shape[..axis].iter().product();
    let mut y = vec![0.0; x.len()];
    for (o, i) in (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))) {
        let mut sum = 0.0;
        for step in 0..extent {
            let place = if reverse { extent - 1 - step } else { step };
            let at = (o * extent + place) * inner + i;
            y[at] = if exclusive { sum } else { sum + x[at] };
            sum += x[at];
        }
    }
    y
}

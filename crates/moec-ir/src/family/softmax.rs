//! Exponentials over the last axis.

use super::linear::dot;
use super::misplaced;
use crate::infer::{Check, InferError, f32s};
use crate::op::Op;
use crate::operands::{Operands, floats};
use crate::tensor::Data;
use crate::types::TensorType;

pub(super) fn infer(op: &Op, c: &Check<'_>) -> Result<Vec<TensorType>, InferError> {
    Ok(match op {
        Op::Softmax => {
            c.rows(0)?;
            vec![c.ty(0).clone()]
        }
        Op::SoftmaxGrad => {
            c.rows(0)?;
            c.is(1, c.ty(0))?;
            vec![c.ty(0).clone()]
        }
        Op::LogSumExp => {
            c.rows(0)?;
            let shape = c.float(0)?;
            vec![f32s(&shape[..shape.len() - 1])]
        }
        other => misplaced(other),
    })
}

pub(super) fn evaluate(op: &Op, x: &Operands<'_>, types: &[TensorType]) -> Vec<Data> {
    let len = types[0].elements();
    match op {
        Op::Softmax => {
            let mut y = Vec::with_capacity(len);
            per_row(x, |row| {
                let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = row.iter().map(|v| (v - max).exp()).sum();
                y.extend(row.iter().map(|v| (v - max).exp() / total));
            });
            floats(y)
        }
        Op::SoftmaxGrad => {
            let (dy, y) = (x.f(0), x.f(1));
            let (rows, m) = x.rows(0);
            let mut dx = Vec::with_capacity(len);
            for r in 0..rows {
                let (dy, y) = (&dy[r * m..(r + 1) * m], &y[r * m..(r + 1) * m]);
                let inner = dot(dy, y);
                dx.extend(dy.iter().zip(y).map(|(dy, y)| y * (dy - inner)));
            }
            floats(dx)
        }
        Op::LogSumExp => {
            let mut y = Vec::with_capacity(len);
            per_row(x, |row| y.push(log_sum_exp(row)));
            floats(y)
        }
        other => misplaced(other),
    }
}

pub(super) fn per_row(x: &Operands<'_>, mut visit: impl FnMut(&[f64])) {
    let (v, (rows, m)) = (x.f(0), x.rows(0));
    for r in 0..rows {
        visit(&v[r * m..(r + 1) * m]);
    }
}

/// `ln sum e^x` without overflow. A row of -inf (or without elements) gives -inf, one with +inf gives +inf.
pub(super) fn log_sum_exp(row: &[f64]) -> f64 {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if row.iter().any(|v| v.is_nan()) {
        return f64::NAN;
    }
    if max.is_infinite() {
        return max;
    }
    max + row.iter().map(|v| (v - max).exp()).sum::<f64>().ln()
}

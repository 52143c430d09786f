//! The step of the optimiser.

use super::misplaced;
use crate::infer::{Check, InferError, f32s};
use crate::op::{AdamWAttrs, Op};
use crate::operands::Operands;
use crate::tensor::Data;
use crate::types::TensorType;

pub(super) fn infer(op: &Op, c: &Check<'_>) -> Result<Vec<TensorType>, InferError> {
    Ok(match op {
        Op::AdamW(_) => {
            let p = f32s(c.float(0)?);
            for i in 1..4 {
                c.is(i, &p)?;
            }
            c.is(4, &f32s(&[3]))?;
            if c.types.len() > 5 {
                c.is(5, &f32s(&[]))?;
            }
            vec![p.clone(), p.clone(), p]
        }
        other => misplaced(other),
    })
}

pub(super) fn evaluate(op: &Op, x: &Operands<'_>) -> Vec<Data> {
    match op {
        Op::AdamW(attrs) => adamw(attrs, x),
        other => misplaced(other),
    }
}

/// Loshchilov & Hutter 2019, algorithm 2, in the order in which PyTorch computes it: the decay acts on the old weight.
fn adamw(attrs: &AdamWAttrs, x: &Operands<'_>) -> Vec<Data> {
    let hyper = x.f(4);
    let scale = if x.tensors.len() > 5 { x.f(5)[0] } else { 1.0 };
    let (lr, correction1, correction2) = (hyper[0], hyper[1], hyper[2]);
    let (beta1, beta2) = (attrs.beta1.get(), attrs.beta2.get());
    let (mut p, g) = (x.f(0).into_owned(), x.f(1));
    let (mut m, mut v) = (x.f(2).into_owned(), x.f(3).into_owned());
    for i in 0..p.len() {
        let g = g[i] * scale;
        p[i] *= 1.0 - lr * attrs.weight_decay.get();
        m[i] = beta1 * m[i] + (1.0 - beta1) * g;
        v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
        p[i] -= lr / correction1 * m[i] / (v[i].sqrt() / correction2.sqrt() + attrs.epsilon.get());
    }
    [p, m, v].map(Data::F64).to_vec()
}

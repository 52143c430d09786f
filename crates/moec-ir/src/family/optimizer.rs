//! The step of the optimiser.

use super::misplaced;
use crate::infer::{Check, InferError, f32s};
use crate::op::{AdamWAttrs, Op};
use crate::operands::Operands;
use crate::tensor::Data;
use crate::types::TensorType;

/// Most tensors that one operation updates: a result is named by 8 bits, and every tensor has three.
const MOST_UPDATED: usize = 85;

pub(super) fn infer(op: &Op, c: &Check<'_>) -> Result<Vec<TensorType>, InferError> {
    Ok(match op {
        Op::AdamW(_) => {
            let (tensors, rest) = (c.types.len() / 4, c.types.len() % 4);
            c.require((1..=MOST_UPDATED).contains(&tensors) && (rest == 1 || rest == 2), || {
                let message = "takes 4 operands for each of 1 to";
                format!("{message} {MOST_UPDATED} tensors, then 1 or 2, not {} in all", c.types.len())
            })?;
            let mut results = Vec::with_capacity(3 * tensors);
            for first in (0..4 * tensors).step_by(4) {
                let p = f32s(c.float(first)?);
                for i in first + 1..first + 4 {
                    c.is(i, &p)?;
                }
                results.extend([p.clone(), p.clone(), p]);
            }
            c.is(4 * tensors, &f32s(&[3]))?;
            if rest == 2 {
                c.is(4 * tensors + 1, &f32s(&[]))?;
            }
            results
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
    // Four operands a tensor, then one or two.
    let shared = x.tensors.len() / 4 * 4;
    let hyper = x.f(shared);
    let scale = if x.tensors.len() > shared + 1 { x.f(shared + 1)[0] } else { 1.0 };
    let (lr, correction1, correction2) = (hyper[0], hyper[1], hyper[2]);
    let (beta1, beta2) = (attrs.beta1.get(), attrs.beta2.get());
    let mut results = Vec::with_capacity(shared / 4 * 3);
    for first in (0..shared).step_by(4) {
        let (mut p, g) = (x.f(first).into_owned(), x.f(first + 1));
        let (mut m, mut v) = (x.f(first + 2).into_owned(), x.f(first + 3).into_owned());
        for i in 0..p.len() {
            let g = g[i] * scale;
            p[i] *= 1.0 - lr * attrs.weight_decay.get();
            m[i] = beta1 * m[i] + (1.0 - beta1) * g;
            v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
            p[i] -= lr / correction1 * m[i] / (v[i].sqrt() / correction2.sqrt() + attrs.epsilon.get());
        }
        results.extend([p, m, v].map(Data::F64));
    }
    results
}

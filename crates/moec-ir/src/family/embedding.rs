//! Tokens on the way in and out.

use super::linear::add_to;
use super::misplaced;
use super::softmax::log_sum_exp;
use crate::infer::{Check, InferError, f32s};
use crate::op::Op;
use crate::operands::{EvalError, Operands, floats};
use crate::tensor::Data;
use crate::types::TensorType;

pub(super) fn infer(op: &Op, c: &Check<'_>) -> Result<Vec<TensorType>, InferError> {
    Ok(match op {
        Op::Embed => {
            let ids = c.int(0)?;
            c.require(ids.len() == 1, || format!("operand 0 must be i32[N], not {}", c.ty(0)))?;
            let (_, ch) = c.float_matrix(1)?;
            vec![f32s(&[ids[0], ch])]
        }
        Op::EmbedGrad { rows } => {
            let ids = c.int(0)?;
            let (n, ch) = c.float_matrix(1)?;
            c.require(ids == [n], || format!("operand 0 must be i32[{n}], not {}", c.ty(0)))?;
            vec![f32s(&[*rows, ch])]
        }
        Op::CrossEntropy => {
            let (n, _) = c.float_matrix(0)?;
            c.is(1, &TensorType::i32([n]))?;
            vec![f32s(&[]), f32s(&[n])]
        }
        Op::CrossEntropyGrad => {
            c.is(0, &f32s(&[]))?;
            let (n, _) = c.float_matrix(1)?;
            c.is(2, &f32s(&[n]))?;
            c.is(3, &TensorType::i32([n]))?;
            vec![c.ty(1).clone()]
        }
        other => misplaced(other),
    })
}

pub(super) fn evaluate(op: &Op, x: &Operands<'_>, types: &[TensorType]) -> Result<Vec<Data>, EvalError> {
    let len = types[0].elements();
    Ok(match op {
        Op::Embed => {
            let (table, (vocab, width)) = (x.f(1), x.matrix(1));
            let mut y = Vec::with_capacity(len);
            for (n, &id) in x.i(0).iter().enumerate() {
                let id = x.index("token id", n, id, vocab)?;
                y.extend_from_slice(&table[id * width..(id + 1) * width]);
            }
            floats(y)
        }
        Op::EmbedGrad { rows } => {
            let (dy, (_, width)) = (x.f(1), x.matrix(1));
            let mut dtable = vec![0.0; len];
            for (n, &id) in x.i(0).iter().enumerate() {
                let id = x.index("token id", n, id, *rows)?;
                add_to(&mut dtable[id * width..(id + 1) * width], &dy[n * width..(n + 1) * width], 1.0);
            }
            floats(dtable)
        }
        Op::CrossEntropy => {
            let (logits, (n, vocab)) = (x.f(0), x.matrix(0));
            let mut lse = Vec::with_capacity(n);
            let mut total = 0.0;
            for (row, &target) in x.i(1).iter().enumerate() {
                let target = x.index("target", row, target, vocab)?;
                let logits = &logits[row * vocab..(row + 1) * vocab];
                lse.push(log_sum_exp(logits));
                total += lse[row] - logits[target];
            }
            vec![Data::F64(vec![total / n as f64]), Data::F64(lse)]
        }
        Op::CrossEntropyGrad => {
            let (dloss, logits, lse, (n, vocab)) = (x.f(0), x.f(1), x.f(2), x.matrix(1));
            let factor = dloss[0] / n as f64;
            let mut dlogits = Vec::with_capacity(len);
            for (row, &target) in x.i(3).iter().enumerate() {
                let target = x.index("target", row, target, vocab)?;
                for v in 0..vocab {
                    let p = (logits[row * vocab + v] - lse[row]).exp();
                    dlogits.push(factor * (p - if v == target { 1.0 } else { 0.0 }));
                }
            }
            floats(dlogits)
        }
        other => misplaced(other),
    })
}

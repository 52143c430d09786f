//! Rows to the experts and back.

use super::linear::{add_to, dot};
use super::misplaced;
use crate::infer::{Check, InferError, f32s};
use crate::op::Op;
use crate::operands::{Operands, floats, within};
use crate::tensor::Data;
use crate::types::TensorType;

/// Checks `order`, `positions` and the optional weights of dispatch and combine; returns the number of rows R.
fn slots(c: &Check<'_>, order: usize, tokens: usize, weighted: bool) -> Result<usize, InferError> {
    let (n, k) = c.int_matrix(order + 1)?;
    c.require(n == tokens, || format!("{} is for {n} tokens, not {tokens}", c.ty(order + 1)))?;
    let slots = n.saturating_mul(k);
    let &[rows] = c.int(order)? else {
        return c.fail(format!("operand {order} must be i32[R], not {}", c.ty(order)));
    };
    c.require(rows <= slots, || format!("{} has more rows than there are slots ({slots})", c.ty(order)))?;
    if weighted {
        c.is(order + 2, &TensorType::f32([n, k]))?;
    }
    Ok(rows)
}

pub(super) fn infer(op: &Op, c: &Check<'_>) -> Result<Vec<TensorType>, InferError> {
    Ok(match op {
        Op::SortByExpert { experts, rows } => {
            let (n, k) = c.int_matrix(0)?;
            let slots = n.saturating_mul(k);
            c.require(*rows <= slots && (*rows > 0 || slots == 0), || {
                format!("the number of rows, {rows}, is not in 1..={slots}")
            })?;
            vec![TensorType::i32([experts.saturating_add(1)]), TensorType::i32([*rows]), TensorType::i32([n, k])]
        }
        Op::Dispatch { weighted } => {
            let (n, ch) = c.float_matrix(0)?;
            let rows = slots(c, 1, n, *weighted)?;
            vec![f32s(&[rows, ch])]
        }
        Op::Combine { weighted } => {
            let (rows, ch) = c.float_matrix(0)?;
            let (n, _) = c.int_matrix(2)?;
            let r = slots(c, 1, n, *weighted)?;
            c.require(r == rows, || format!("{} has not the {r} rows of operand 1", c.ty(0)))?;
            vec![f32s(&[n, ch])]
        }
        Op::CombineWeightGrad => {
            let (n, ch) = c.float_matrix(0)?;
            let (rows, ch2) = c.float_matrix(1)?;
            let (n2, k) = c.int_matrix(2)?;
            c.require(ch == ch2 && n == n2 && rows <= n.saturating_mul(k), || {
                format!("{}, {} and {} do not fit", c.ty(0), c.ty(1), c.ty(2))
            })?;
            vec![f32s(&[n, k])]
        }
        other => misplaced(other),
    })
}

pub(super) fn evaluate(op: &Op, x: &Operands<'_>, types: &[TensorType]) -> Vec<Data> {
    let len = types[0].elements();
    match op {
        Op::SortByExpert { experts, rows } => sort_by_expert(x, *experts, *rows),
        Op::Dispatch { weighted } => {
            let (tokens, (n, width)) = (x.f(0), x.matrix(0));
            let (_, k) = x.matrix(2);
            let weights = weighted.then(|| x.f(3));
            let mut y = vec![0.0; len];
            for (row, &slot) in x.i(1).iter().enumerate() {
                if let Some(slot) = within(slot, n * k) {
                    let token = slot / k;
                    let weight = weights.as_ref().map_or(1.0, |w| w[slot]);
                    let row = &mut y[row * width..(row + 1) * width];
                    add_to(row, &tokens[token * width..(token + 1) * width], weight);
                }
            }
            floats(y)
        }
        Op::Combine { weighted } => {
            let (rows, (r, width)) = (x.f(0), x.matrix(0));
            let (_, k) = x.matrix(2);
            let weights = weighted.then(|| x.f(3));
            let mut z = vec![0.0; len];
            for (slot, &row) in x.i(2).iter().enumerate() {
                if let Some(row) = within(row, r) {
                    let token = slot / k;
                    let weight = weights.as_ref().map_or(1.0, |w| w[slot]);
                    add_to(&mut z[token * width..(token + 1) * width], &rows[row * width..(row + 1) * width], weight);
                }
            }
            floats(z)
        }
        Op::CombineWeightGrad => {
            let (dz, rows, (r, width)) = (x.f(0), x.f(1), x.matrix(1));
            let (_, k) = x.matrix(2);
            let mut dweights = vec![0.0; len];
            for (slot, &row) in x.i(2).iter().enumerate() {
                if let Some(row) = within(row, r) {
                    let token = slot / k;
                    dweights[slot] =
                        dot(&dz[token * width..(token + 1) * width], &rows[row * width..(row + 1) * width]);
                }
            }
            floats(dweights)
        }
        other => misplaced(other),
    }
}

fn sort_by_expert(x: &Operands<'_>, experts: usize, rows: usize) -> Vec<Data> {
    let mut slots: Vec<Vec<usize>> = vec![Vec::new(); experts];
    for (slot, &expert) in x.i(0).iter().enumerate() {
        if let Some(e) = within(expert, experts) {
            slots[e].push(slot);
        }
    }
    let mut offsets = vec![0];
    let mut order = Vec::new();
    let mut positions = vec![-1; x.i(0).len()];
    for slots in slots {
        let room = rows - order.len();
        for slot in slots.into_iter().take(room) {
            positions[slot] = order.len() as i32;
            order.push(slot as i32);
        }
        offsets.push(order.len() as i32);
    }
    order.resize(rows, -1);
    vec![Data::I32(offsets), Data::I32(order), Data::I32(positions)]
}

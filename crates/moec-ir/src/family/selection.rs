//! Choices of experts.

use super::misplaced;
use super::softmax::per_row;
use crate::balance::balanced_assignment;
use crate::infer::{Check, InferError, f32s};
use crate::op::{CapacityPriority, Op};
use crate::operands::{Operands, floats, within};
use crate::tensor::Data;
use crate::types::TensorType;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Range;

pub(super) fn infer(op: &Op, c: &Check<'_>) -> Result<Vec<TensorType>, InferError> {
    Ok(match op {
        Op::TopK { k, skip } => {
            let (n, e) = c.float_matrix(0)?;
            c.require(*k >= 1 && *k <= e, || format!("k = {k} is not in 1..={e}"))?;
            c.require(skip < k, || format!("skip = {skip} leaves nothing of k = {k}"))?;
            vec![f32s(&[n, k - skip]), TensorType::i32([n, k - skip])]
        }
        Op::GatherLast => {
            let (n, _) = c.float_matrix(0)?;
            let (n2, k) = c.int_matrix(1)?;
            c.require(n == n2, || format!("row counts differ: {n} and {n2}"))?;
            vec![f32s(&[n, k])]
        }
        Op::ScatterLast { size } => {
            let (n, k) = c.float_matrix(0)?;
            c.is(1, &TensorType::i32([n, k]))?;
            vec![f32s(&[n, *size])]
        }
        Op::Count { size } => {
            c.int(0)?;
            vec![f32s(&[*size])]
        }
        Op::LimitCapacity { capacity, priority, .. } => {
            let weighted = *priority == CapacityPriority::Probability;
            let (n, k) = c.int_matrix(0)?;
            if weighted {
                c.is(1, &f32s(&[n, k]))?;
            }
            c.require(*capacity >= 1, || "capacity must be at least 1".into())?;
            vec![c.ty(0).clone()]
        }
        Op::BalancedAssignment => {
            let (n, e) = c.float_matrix(0)?;
            c.require(e >= 1, || "there must be at least one expert".into())?;
            vec![TensorType::i32([n, 1])]
        }
        other => misplaced(other),
    })
}

pub(super) fn evaluate(op: &Op, x: &Operands<'_>, types: &[TensorType]) -> Vec<Data> {
    let len = types[0].elements();
    match op {
        Op::TopK { k, skip } => top_k(x, *skip..*k),
        Op::GatherLast => {
            let (values, (n, size)) = (x.f(0), x.matrix(0));
            let (_, k) = x.matrix(1);
            let mut y = vec![0.0; n * k];
            for (slot, &index) in x.i(1).iter().enumerate() {
                if let Some(index) = within(index, size) {
                    y[slot] = values[slot / k * size + index];
                }
            }
            floats(y)
        }
        Op::ScatterLast { size } => {
            let (values, (_, k)) = (x.f(0), x.matrix(0));
            let mut y = vec![0.0; len];
            for (slot, &index) in x.i(1).iter().enumerate() {
                if let Some(index) = within(index, *size) {
                    y[slot / k * size + index] += values[slot];
                }
            }
            floats(y)
        }
        Op::Count { size } => {
            let mut counts = vec![0.0; *size];
            for index in x.i(0).iter().filter_map(|&index| within(index, *size)) {
                counts[index] += 1.0;
            }
            floats(counts)
        }
        Op::LimitCapacity { experts, capacity, priority } => limit_capacity(x, *experts, *capacity, *priority),
        Op::BalancedAssignment => vec![Data::I32(balanced_assignment(&x.f(0), x.matrix(0).1))],
        other => misplaced(other),
    }
}

/// The order of decreasing numbers, in which NaN comes after everything, -inf included.
fn decreasing(a: f64, b: f64) -> Ordering {
    b.partial_cmp(&a).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// Ties go to the lower index.
fn top_k(x: &Operands<'_>, ranks: Range<usize>) -> Vec<Data> {
    let (mut values, mut indices) = (Vec::new(), Vec::new());
    per_row(x, |row| {
        let mut order: Vec<usize> = (0..row.len()).collect();
        // A stable sort keeps the lower index first among equals.
        order.sort_by(|&i, &j| decreasing(row[i], row[j]));
        for &i in &order[ranks.clone()] {
            values.push(row[i]);
            indices.push(i as i32);
        }
    });
    vec![Data::F64(values), Data::I32(indices)]
}

fn limit_capacity(x: &Operands<'_>, experts: usize, capacity: usize, priority: CapacityPriority) -> Vec<Data> {
    let (chosen, (n, k)) = (x.i(0), x.matrix(0));
    let mut order: Vec<usize> = (0..n * k).collect();
    // Stable sorts of slots that stand by token, so the token decides what the key leaves open.
    match priority {
        CapacityPriority::Token => {}
        CapacityPriority::Choice => order.sort_by_key(|slot| slot % k),
        CapacityPriority::Probability => {
            let weights = x.f(1);
            let largest = |token: usize| {
                let row = &weights[token * k..(token + 1) * k];
                row.iter().copied().fold(f64::NAN, |a, b| if decreasing(a, b).is_gt() { b } else { a })
            };
            let largest: Vec<f64> = (0..n).map(largest).collect();
            order.sort_by(|a, b| (a % k).cmp(&(b % k)).then_with(|| decreasing(largest[a / k], largest[b / k])));
        }
    }
    let mut accepted: BTreeMap<usize, usize> = BTreeMap::new();
    let mut kept = vec![-1; n * k];
    for slot in order {
        if let Some(expert) = within(chosen[slot], experts) {
            let accepted = accepted.entry(expert).or_default();
            if *accepted < capacity {
                *accepted += 1;
                kept[slot] = chosen[slot];
            }
        }
    }
    vec![Data::I32(kept)]
}

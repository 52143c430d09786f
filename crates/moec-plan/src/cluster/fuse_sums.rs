//! Sums of rows that a product reads anyway: the gradient of a bias becomes part of the product that makes the gradient of
//! its weight.

use super::view::View;
use super::{Decisions, Rewrites};
use moec_ir::{NodeId, Op, Value};
use std::collections::BTreeMap;

pub(super) fn decide(view: &View<'_>, budget: &mut Rewrites, decisions: &mut Decisions) {
    // The first sum of each value, by the offsets of its segments.
    let mut sums: BTreeMap<(Value, Option<Value>), NodeId> = BTreeMap::new();
    for id in view.ids() {
        let operands = view.graph.operands(id);
        let of = match view.op(id) {
            Op::Sum { axes } if *axes == [0] && view.graph.ty(operands[0]).shape.len() == 2 => (operands[0], None),
            Op::GroupedSum => (operands[0], Some(operands[1])),
            _ => continue,
        };
        sums.entry(of).or_insert(id);
    }
    // A sum that comes first may be needed before the product can be.
    for id in view.ids().into_iter().filter(|&id| !view.reads_nothing(id)) {
        let operands = view.graph.operands(id);
        let of = match view.op(id) {
            Op::MatMul { transpose_a: true, bias: false, .. } => (operands[0], None),
            Op::GroupedMatMulWeightGrad { .. } => (operands[0], Some(operands[2])),
            _ => continue,
        };
        if sums.get(&of).is_some_and(|&sum| sum > id) && budget.take() {
            decisions.sums.extend(sums.remove(&of).map(|sum| (id, sum)));
        }
    }
}

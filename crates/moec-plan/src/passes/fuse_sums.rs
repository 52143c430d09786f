//! Sums of rows that a product reads anyway: the gradient of a bias becomes part of the product that makes the gradient of
//! its weight ([`Op::ProductWithSums`]).
//!
//! Runs after the elementwise fusion: a product that goes on with a program keeps it, and the sum stays on its own.

use super::Rewrites;
use super::rebuild::Rebuild;
use moec_ir::{Graph, GraphError, NodeId, Op, Value};
use std::collections::BTreeMap;

pub(crate) fn run(graph: &Graph, rewrites: &mut Rewrites) -> Result<Option<Graph>, GraphError> {
    // The first sum of each value, by the offsets of its segments.
    let mut sums: BTreeMap<(Value, Option<Value>), NodeId> = BTreeMap::new();
    for id in graph.ids() {
        let operands = graph.operands(id);
        let of = match &graph.node(id).op {
            Op::Sum { axes } if *axes == [0] && graph.ty(operands[0]).shape.len() == 2 => (operands[0], None),
            Op::GroupedSum => (operands[0], Some(operands[1])),
            _ => continue,
        };
        sums.entry(of).or_insert(id);
    }
    if sums.is_empty() {
        return Ok(None);
    }
    let mut r = Rebuild::new(graph);
    // Sums that a product has made.
    let mut made = vec![false; graph.len()];
    for id in graph.ids() {
        if made[id.index()] {
            continue;
        }
        let (op, operands) = (&graph.node(id).op, graph.operands(id));
        let of = match op {
            Op::MatMul { transpose_a: true, bias: false, .. } => (operands[0], None),
            Op::GroupedMatMulWeightGrad => (operands[0], Some(operands[2])),
            _ => {
                r.copy(id)?;
                continue;
            }
        };
        // A sum that comes first may be needed before the product can be.
        match sums.get(&of) {
            Some(&sum) if sum > id && !made[sum.index()] && rewrites.take() => {
                let product = r.add_as(id, Op::ProductWithSums(Box::new(op.clone())), &r.operands(id))?;
                r.set(graph.value(id), Value { node: product, slot: 0 });
                r.set(graph.value(sum), Value { node: product, slot: 1 });
                made[sum.index()] = true;
            }
            _ => {
                r.copy(id)?;
            }
        }
    }
    Ok(Some(r.finish()))
}

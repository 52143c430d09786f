//! Sums of rows that a product reads anyway: the gradient of a bias becomes part of the product that makes the gradient of
//! its weight ([`Op::ProductWithSums`]).
//!
//! Runs after the elementwise fusion: a product that goes on with a program keeps it, and the sum stays on its own.

use super::Rewrites;
use super::rebuild::{Rebuild, reads_nothing};
use moec_ir::{Graph, GraphError, NodeId, Op, Value};
use std::collections::{BTreeMap, BTreeSet};

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
    // Products with the sum that each makes. A sum that comes first may be needed before the product can be.
    let mut pairs: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    for id in graph.ids().filter(|&id| !reads_nothing(graph, id)) {
        let operands = graph.operands(id);
        let of = match &graph.node(id).op {
            Op::MatMul { transpose_a: true, bias: false, .. } => (operands[0], None),
            Op::GroupedMatMulWeightGrad => (operands[0], Some(operands[2])),
            _ => continue,
        };
        if sums.get(&of).is_some_and(|&sum| sum > id) && rewrites.take() {
            pairs.extend(sums.remove(&of).map(|sum| (id, sum)));
        }
    }
    if pairs.is_empty() {
        return Ok(None);
    }
    let gone: BTreeSet<NodeId> = pairs.values().copied().collect();
    let mut r = Rebuild::new(graph);
    for id in graph.ids().filter(|id| !gone.contains(id)) {
        if let Some(&sum) = pairs.get(&id) {
            let op = Op::ProductWithSums(Box::new(graph.node(id).op.clone()));
            let product = r.add_as(id, op, &r.operands(id))?;
            r.set(graph.value(id), Value { node: product, slot: 0 });
            r.set(graph.value(sum), Value { node: product, slot: 1 });
        } else {
            r.copy(id)?;
        }
    }
    Ok(Some(r.finish()))
}

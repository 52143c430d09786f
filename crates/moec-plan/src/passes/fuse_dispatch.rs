//! Rows that are sent to experts for products only: the products fetch them from where they are
//! ([`Op::DispatchedProduct`]), and the copy in the order of the experts is never made. The segments of the products must
//! be those of the sort that the copy follows: then every row in them is that of a slot.

use super::Rewrites;
use super::rebuild::Rebuild;
use moec_ir::{Graph, GraphError, Op, Value};
use std::collections::BTreeMap;

pub(crate) fn run(graph: &Graph, rewrites: &mut Rewrites) -> Result<Option<Graph>, GraphError> {
    let plain = |v: Value| graph.node(v.node).op == Op::Dispatch { weighted: false };
    let of_one_sort = |rows: Value, offsets: Value| {
        let dispatch = graph.operands(rows.node);
        matches!(graph.node(offsets.node).op, Op::SortByExpert { .. })
            && [offsets, dispatch[1], dispatch[2]] == [0, 1, 2].map(|slot| Value { node: offsets.node, slot })
    };
    // Values that something else reads than products that can fetch them.
    let mut needed = vec![false; graph.len()];
    for (_, v) in graph.outputs().iter().chain(graph.updates()) {
        needed[v.node.index()] = true;
    }
    for id in graph.ids() {
        let (operands, fetched) = (graph.operands(id), fetched_operand(&graph.node(id).op));
        for (i, &v) in operands.iter().enumerate() {
            // Both products have their offsets behind rows and weights.
            let fetches = fetched == Some(i) && plain(v) && of_one_sort(v, operands[2]);
            needed[v.node.index()] |= !fetches;
        }
    }
    // Products with the position of the operand that they are to fetch.
    let mut fetching = BTreeMap::new();
    for id in graph.ids() {
        let Some(at) = fetched_operand(&graph.node(id).op) else { continue };
        let rows = graph.operands(id)[at];
        if !needed[rows.node.index()] && rewrites.take() {
            fetching.insert(id, at);
        } else {
            needed[rows.node.index()] = true;
        }
    }
    if fetching.is_empty() {
        return Ok(None);
    }
    let mut r = Rebuild::new(graph);
    for id in graph.ids() {
        if let Some(&at) = fetching.get(&id) {
            let (op, mut operands) = (&graph.node(id).op, graph.operands(id).to_vec());
            let source = graph.operands(operands[at].node);
            operands[at] = source[0];
            let own = op.innermost().operands_of_producer().unwrap_or(operands.len());
            operands.splice(own..own, [source[1], source[2]]);
            let operands: Vec<Value> = operands.into_iter().map(|v| r.value(v)).collect();
            let new = r.add_as(id, dispatched(op), &operands)?;
            r.set_all(id, new);
        } else if needed[id.index()] || !plain(graph.value(id)) {
            r.copy(id)?;
        }
    }
    Ok(Some(r.finish()))
}

/// The operation with a product that fetches its rows.
fn dispatched(op: &Op) -> Op {
    match op {
        Op::FusedAfter { producer, program } => {
            Op::FusedAfter { producer: Box::new(dispatched(producer)), program: program.clone() }
        }
        Op::ProductWithSums(inner) => Op::ProductWithSums(Box::new(dispatched(inner))),
        op => Op::DispatchedProduct(Box::new(op.clone())),
    }
}

/// Position of the operand that the product in an operation can fetch, if it does not yet.
fn fetched_operand(op: &Op) -> Option<usize> {
    match op {
        Op::FusedAfter { producer: inner, .. } | Op::ProductWithSums(inner) => fetched_operand(inner),
        op => op.dispatched_operand(),
    }
}

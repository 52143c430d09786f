//! Rows that are sent to experts for products only: the products fetch them from where they are
//! ([`Op::DispatchedProduct`]), and the copy in the order of the experts is never made.

use super::Rewrites;
use super::rebuild::Rebuild;
use moec_ir::{Graph, GraphError, Op, Value};
use std::collections::BTreeMap;

pub(crate) fn run(graph: &Graph, rewrites: &mut Rewrites) -> Result<Option<Graph>, GraphError> {
    let plain = |v: Value| graph.node(v.node).op == Op::Dispatch { weighted: false };
    // Values that something else than a product of them reads.
    let mut needed = vec![false; graph.len()];
    for (_, v) in graph.outputs().iter().chain(graph.updates()) {
        needed[v.node.index()] = true;
    }
    for id in graph.ids() {
        let fetched = fetched_operand(&graph.node(id).op);
        for (i, v) in graph.operands(id).into_iter().enumerate() {
            needed[v.node.index()] |= fetched != Some(i);
        }
    }
    // Products with the position of the operand that they are to fetch.
    let mut fetching = BTreeMap::new();
    for id in graph.ids() {
        let Some(at) = fetched_operand(&graph.node(id).op) else { continue };
        let rows = graph.operands(id)[at];
        if !needed[rows.node.index()] && plain(rows) && rewrites.take() {
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
            let (op, mut operands) = (&graph.node(id).op, graph.operands(id));
            let source = graph.operands(operands[at].node);
            operands[at] = source[0];
            let own = product(op).and_then(Op::operands_of_producer).unwrap_or(operands.len());
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

/// The product in an operation, and the operation with the product that fetches its rows instead.
fn product(op: &Op) -> Option<&Op> {
    match op {
        Op::FusedAfter { producer: inner, .. } | Op::ProductWithSums(inner) => product(inner),
        op => op.dispatched_operand().map(|_| op),
    }
}

fn dispatched(op: &Op) -> Op {
    match op {
        Op::FusedAfter { producer, program } => {
            Op::FusedAfter { producer: Box::new(dispatched(producer)), program: program.clone() }
        }
        Op::ProductWithSums(inner) => Op::ProductWithSums(Box::new(dispatched(inner))),
        op => Op::DispatchedProduct(Box::new(op.clone())),
    }
}

fn fetched_operand(op: &Op) -> Option<usize> {
    product(op)?.dispatched_operand()
}

//! Rows that are sent to experts for products only: the products fetch them from where they are
//! ([`Op::DispatchedProduct`]), and the copy in the order of the experts is never made.

use super::rebuild::Rebuild;
use super::{Rewrites, dce};
use moec_ir::{Graph, GraphError, Op, Value};

pub(crate) fn run(graph: &Graph, rewrites: &mut Rewrites) -> Result<Graph, GraphError> {
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
    let mut r = Rebuild::new(graph);
    for id in graph.ids() {
        let (op, operands) = (&graph.node(id).op, graph.operands(id));
        let dispatch = fetched_operand(op)
            .map(|at| (at, operands[at]))
            .filter(|&(_, v)| graph.node(v.node).op == (Op::Dispatch { weighted: false }) && !needed[v.node.index()]);
        match dispatch {
            Some((at, rows)) if rewrites.take() => {
                let source = graph.operands(rows.node);
                let mut operands = operands;
                operands[at] = source[0];
                let own = product(op).and_then(Op::operands_of_producer).unwrap_or(operands.len());
                operands.splice(own..own, [source[1], source[2]]);
                let operands: Vec<Value> = operands.into_iter().map(|v| r.value(v)).collect();
                let new = r.add_as(id, dispatched(op), &operands)?;
                r.set_all(id, new);
            }
            _ => {
                r.copy(id)?;
            }
        }
    }
    dce::run(&r.finish(), &mut Rewrites::new(None))
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

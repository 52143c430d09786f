//! A cross-entropy and its gradient become one [`Op::FusedCrossEntropy`], which reads every row of logits while it is in
//! cache and keeps no log-sum-exp: where the gradient that arrives at the loss is a number that is known, and nothing else
//! reads the log-sum-exp. The loss of a function without gradients stays as it is.
//!
//! The gradient is then there with the loss, where the backward pass begins.

use super::Rewrites;
use super::rebuild::{Rebuild, uniform};
use moec_ir::{Graph, GraphError, NodeId, Op, infer};
use std::collections::BTreeMap;

pub(crate) fn run(graph: &Graph, rewrites: &mut Rewrites) -> Result<Option<Graph>, GraphError> {
    // Each loss with its gradient and the operation that makes both.
    let fused: BTreeMap<NodeId, (NodeId, Op)> = graph
        .ids()
        .filter_map(|id| fusion(graph, id).map(|(loss, op)| (loss, (id, op))))
        .filter(|_| rewrites.take())
        .collect();
    if fused.is_empty() {
        return Ok(None);
    }
    let gone: Vec<NodeId> = fused.values().map(|&(gradient, _)| gradient).collect();
    let mut r = Rebuild::new(graph);
    for id in graph.ids().filter(|id| !gone.contains(id)) {
        if let Some((gradient, op)) = fused.get(&id) {
            let new = r.add_as(id, op.clone(), &r.operands(id))?;
            r.set(graph.value(id), r.new.value(new));
            r.set(graph.value(*gradient), r.new.value(new).result(1));
        } else {
            r.copy(id)?;
        }
    }
    Ok(Some(r.finish()))
}

/// The cross-entropy whose gradient this node is, if one operation can make both, and that operation.
fn fusion(graph: &Graph, gradient: NodeId) -> Option<(NodeId, Op)> {
    let (Op::CrossEntropyGrad, &[dloss, logits, lse, targets]) = (&graph.node(gradient).op, graph.operands(gradient))
    else {
        return None;
    };
    let loss = lse.node;
    if graph.node(loss).op != Op::CrossEntropy || graph.operands(loss) != [logits, targets] || lse.slot != 1 {
        return None;
    }
    let named = graph.outputs().iter().chain(graph.updates()).any(|&(_, v)| v == lse);
    let op = Op::FusedCrossEntropy { dloss: uniform(graph, dloss)?.into() };
    // There may be too many tokens.
    let fits = infer(&op, &[graph.ty(logits), graph.ty(targets)]).is_ok();
    (graph.uses(lse).len() == 1 && !named && fits).then_some((loss, op))
}

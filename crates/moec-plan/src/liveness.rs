//! Which nodes of a graph something depends on.

use moec_ir::{Graph, NodeId, Op};

/// Whether an output or an update depends on each node, or on a node that is kept for another reason. `keep` is asked of
/// the others, users before what they read.
pub(crate) fn live(graph: &Graph, mut keep: impl FnMut(NodeId) -> bool) -> Vec<bool> {
    let mut live = vec![false; graph.len()];
    for (_, v) in graph.outputs().iter().chain(graph.updates()) {
        live[v.node.index()] = true;
    }
    for id in graph.ids().rev() {
        if !live[id.index()] && keep(id) {
            live[id.index()] = true;
        }
        if live[id.index()] {
            for v in graph.operands(id) {
                live[v.node.index()] = true;
            }
        }
    }
    live
}

/// Whether a node is an input: those are the interface of a function, used or not.
pub(crate) fn is_input(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.node(id).op, Op::Input { .. })
}

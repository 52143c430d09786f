//! Dead code: nodes that no output or update depends on are dropped. Inputs, parameters and states stay.

use super::Rewrites;
use super::rebuild::{Rebuild, is_interface};
use moec_ir::{Graph, GraphError};

pub(crate) fn run(graph: &Graph, rewrites: &mut Rewrites) -> Result<Option<Graph>, GraphError> {
    let mut live = vec![false; graph.len()];
    for (_, v) in graph.outputs().iter().chain(graph.updates()) {
        live[v.node.index()] = true;
    }
    for id in graph.ids().rev() {
        // Without budget for a change a dead node stays, and with it what it reads.
        if !live[id.index()] && (is_interface(&graph.node(id).op) || !rewrites.take()) {
            live[id.index()] = true;
        }
        if live[id.index()] {
            for v in graph.operands(id) {
                live[v.node.index()] = true;
            }
        }
    }
    if live.iter().all(|&l| l) {
        return Ok(None);
    }
    let mut r = Rebuild::new(graph);
    for id in graph.ids().filter(|id| live[id.index()]) {
        r.copy(id)?;
    }
    Ok(Some(r.finish()))
}

/// The graph without what nothing depends on.
pub(crate) fn cleaned(graph: Graph) -> Result<Graph, GraphError> {
    Ok(run(&graph, &mut Rewrites::new(None))?.unwrap_or(graph))
}

//! Dead code: nodes that no output or update depends on are dropped. Inputs, parameters and states stay.

use super::Rewrites;
use super::rebuild::{Rebuild, is_interface};
use crate::liveness::live;
use moec_ir::{Graph, GraphError};

pub(crate) fn run(graph: &Graph, rewrites: &mut Rewrites) -> Result<Option<Graph>, GraphError> {
    // Without budget for a change a dead node stays, and with it what it reads.
    let live = live(graph, |id| is_interface(&graph.node(id).op) || !rewrites.take());
    if live.iter().all(|&l| l) {
        return Ok(None);
    }
    let mut r = Rebuild::new(graph);
    for id in graph.ids().filter(|id| live[id.index()]) {
        r.copy(id)?;
    }
    Ok(Some(r.finish()))
}

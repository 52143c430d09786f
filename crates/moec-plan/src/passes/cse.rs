//! Common subexpressions: a node equal to an earlier one, operands included, is computed once.
//!
//! Random operations with the same key and generator state are equal too: they draw the same numbers.

use super::Rewrites;
use super::rebuild::Rebuild;
use moec_ir::{Binary, Graph, GraphError, NodeId, Op, Value};
use std::collections::HashMap;

pub(crate) fn run(graph: &Graph, rewrites: &mut Rewrites) -> Result<Option<Graph>, GraphError> {
    let mut r = Rebuild::new(graph);
    // Looked up only, never walked: its order does not matter.
    let mut known: HashMap<(&Op, Vec<Value>), NodeId> = HashMap::new();
    for id in graph.ids() {
        let op = &graph.node(id).op;
        let mut operands = r.operands(id);
        if matches!(op, Op::Binary(Binary::Add | Binary::Mul | Binary::Equal)) {
            operands.sort();
        }
        let key = (op, operands);
        match known.get(&key) {
            Some(&first) if rewrites.take() => r.set_all(id, first),
            _ => {
                let new = r.copy(id)?;
                known.entry(key).or_insert(new);
            }
        }
    }
    Ok(Some(r.finish()))
}

//! Updates of small tensors that come with the same learning rate become one [`Op::AdamW`]: a small tensor is updated in
//! less time than a launch takes to begin.
//!
//! The tensors of a node are neighbours in the order in which their gradients are made, because the node waits for the
//! last of them. A large tensor stays alone: its update takes long enough, and its gradient is to leave memory at once.
//! Tensors are joined only with those that kernels read by vectors of the same width. An update whose result another node
//! reads stays alone too, so that no node can come to wait for itself.

use super::Rewrites;
use super::rebuild::Rebuild;
use indexmap::IndexMap;
use moec_ir::{AdamWAttrs, Graph, GraphError, NodeId, Op, Value};

/// Most tensors of a joined update: with four buffers each, the learning rate, the scale of the gradients, and the two
/// buffers that CubeCL and wgpu add, a launch stays within the 31 that Metal can bind.
pub const MOST_GROUPED_UPDATES: usize = 6;

/// Most elements of a tensor that is joined with others: the gradients that wait for each other are at most 384 KiB.
const MOST_ELEMENTS: usize = 16384;

/// The widest vectors in which kernels read tensors, in elements.
pub const WIDEST_VECTORS: usize = 16;

/// What the updates of a node have in common: attributes, `hyper`, the scale, and the width of vectors.
type Shared = (AdamWAttrs, Vec<Value>, u32);

pub(crate) fn run(graph: &Graph, rewrites: &mut Rewrites) -> Result<Option<Graph>, GraphError> {
    // By its last member, each node that is to be, with its members in the order of their gradients.
    let mut groups: IndexMap<NodeId, Vec<NodeId>> = IndexMap::new();
    let mut joined = vec![false; graph.len()];
    for members in candidates(graph).values() {
        for members in members.chunks(MOST_GROUPED_UPDATES) {
            let more = members[1..].iter().take_while(|_| rewrites.take()).count();
            let members = &members[..=more];
            if let Some(&last) = members.iter().max().filter(|_| more > 0) {
                members.iter().for_each(|m| joined[m.index()] = true);
                groups.insert(last, members.to_vec());
            }
        }
    }
    if groups.is_empty() {
        return Ok(None);
    }
    let mut r = Rebuild::new(graph);
    for id in graph.ids() {
        match groups.get(&id) {
            Some(members) => emit(&mut r, id, members)?,
            // It comes with the last of its group, and nothing reads it until then.
            None if joined[id.index()] => {}
            None => {
                r.copy(id)?;
            }
        }
    }
    Ok(Some(r.finish()))
}

/// Updates of one small tensor that nothing reads, in the order of their gradients, by what they share.
fn candidates(graph: &Graph) -> IndexMap<Shared, Vec<NodeId>> {
    let mut read = vec![false; graph.len()];
    for v in graph.ids().flat_map(|id| graph.operands(id)) {
        read[v.node.index()] = true;
    }
    let mut updates: Vec<(Value, NodeId, Shared)> = Vec::new();
    for id in graph.ids().filter(|id| !read[id.index()]) {
        let (node, operands) = (graph.node(id), graph.operands(id));
        let elements = node.results[0].elements();
        if let (Op::AdamW(attrs), [_, gradient, _, _, shared @ ..]) = (&node.op, operands)
            && node.results.len() == 3
            && (1..=MOST_ELEMENTS).contains(&elements)
        {
            let width = (elements | WIDEST_VECTORS).trailing_zeros();
            updates.push((*gradient, id, (*attrs, shared.to_vec(), width)));
        }
    }
    updates.sort_by_key(|&(gradient, id, _)| (gradient, id));
    let mut candidates: IndexMap<Shared, Vec<NodeId>> = IndexMap::new();
    for (_, id, shared) in updates {
        candidates.entry(shared).or_default().push(id);
    }
    candidates
}

/// Appends the joined update, named after its last member.
fn emit(r: &mut Rebuild<'_>, last: NodeId, members: &[NodeId]) -> Result<(), GraphError> {
    let mut operands: Vec<Value> = members.iter().flat_map(|&m| r.operands(m).into_iter().take(4)).collect();
    operands.extend(r.operands(last).into_iter().skip(4));
    let update = r.add_as(last, r.old.node(last).op.clone(), &operands)?;
    for (tensor, &node) in members.iter().enumerate() {
        for slot in 0..3 {
            r.set(Value { node, slot }, Value { node: update, slot: 3 * tensor as u8 + slot });
        }
    }
    Ok(())
}

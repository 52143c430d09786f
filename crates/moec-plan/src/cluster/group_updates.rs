//! Updates of small tensors that come with the same learning rate are computed at once: a small tensor is updated in less
//! time than a launch takes to begin.
//!
//! The tensors of a launch are neighbours in the order in which their gradients are made, because it waits for the last of
//! them. A large tensor stays alone: its update takes long enough, and its gradient is to leave memory at once. Tensors
//! are joined only with those that kernels read by vectors of the same width. An update whose result another node reads
//! stays alone too, so that nothing can come to wait for itself.

use super::view::View;
use super::{Decisions, Rewrites};
use indexmap::IndexMap;
use moec_ir::{AdamWAttrs, NodeId, Op, Value};

/// Most elements of a tensor that is joined with others: the gradients that wait for each other are at most 384 KiB.
const MOST_ELEMENTS: usize = 16384;

/// What the updates of a launch have in common: attributes, `hyper`, the scale, and the width of vectors.
type Shared = (AdamWAttrs, Vec<Value>, u32);

pub(super) fn decide(view: &View<'_>, budget: &mut Rewrites, decisions: &mut Decisions) {
    for ((attrs, ..), members) in candidates(view) {
        for members in members.chunks(view.limits.grouped_updates()) {
            let more = members[1..].iter().take_while(|_| budget.take()).count();
            if more > 0 {
                decisions.updates.push((attrs, members[..=more].to_vec()));
            }
        }
    }
}

/// Updates of one small tensor that nothing reads, in the order of their gradients, by what they share.
fn candidates(view: &View<'_>) -> IndexMap<Shared, Vec<NodeId>> {
    let mut updates: Vec<(Value, NodeId, Shared)> = Vec::new();
    for id in view.ids().into_iter().filter(|&id| view.users(id).is_empty()) {
        let (elements, operands) = (view.elements(id), view.graph.operands(id));
        if let (Op::AdamW(attrs), [_, gradient, _, _, shared @ ..]) = (view.op(id), operands)
            && (1..=MOST_ELEMENTS).contains(&elements)
        {
            let width = (elements | view.limits.vector).trailing_zeros();
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

//! Rows that are sent to experts for products only: the products fetch them from where they are, and the copy in the order
//! of the experts is never made. The segments of the products must be those of the sort that the copy follows: then every
//! row in them is that of a slot.

use super::view::View;
use super::{Decisions, Rewrites};
use moec_ir::{NodeId, Op};

pub(super) fn decide(view: &View<'_>, budget: &mut Rewrites, decisions: &mut Decisions) {
    for rows in view.ids() {
        if *view.op(rows) != (Op::Dispatch { weighted: false }) || view.is_named(view.graph.value(rows)) {
            continue;
        }
        let uses = view.uses(view.graph.value(rows));
        if uses.iter().all(|&(product, at)| can_fetch(view, product, at)) {
            // Where only some may fetch, the copy is made after all, and the others read it.
            let fetching: Vec<_> = uses.into_iter().take_while(|_| budget.take()).collect();
            decisions.fetches.extend(fetching);
        }
    }
}

/// Whether a product can fetch the rows that its operand `at` is.
fn can_fetch(view: &View<'_>, product: NodeId, at: usize) -> bool {
    let operands = view.graph.operands(product);
    // Both products have their offsets behind rows and weights.
    if !matches!((view.op(product), at), (Op::GroupedMatMul { .. }, 0) | (Op::GroupedMatMulWeightGrad { .. }, 1)) {
        return false;
    }
    let dispatch = view.graph.operands(operands[at].node);
    let sort = view.graph.value(operands[2].node);
    matches!(view.op(sort.node), Op::SortByExpert { .. })
        && [operands[2], dispatch[1], dispatch[2]] == [0, 1, 2].map(|slot| sort.result(slot))
}

//! Weights that are unpacked for products only: the products read them as they are stored, and the unpacked matrix is never
//! made, if it is cut into the panels that the kernels of the device read.

use super::view::View;
use super::{Decisions, Rewrites};
use crate::kernel::can_unpack;
use moec_ir::Op;

pub(super) fn decide(view: &View<'_>, budget: &mut Rewrites, decisions: &mut Decisions) {
    for weights in view.ids() {
        let Op::Unpack(attrs) = view.op(weights) else { continue };
        if view.limits.panel != Some(attrs.panel) || view.is_named(view.graph.value(weights)) {
            continue;
        }
        let uses = view.uses(view.graph.value(weights));
        let may_unpack = |product| can_unpack(view.op(product)) && !view.reads_nothing(product);
        if uses.iter().all(|&(product, at)| at == 1 && may_unpack(product)) {
            // Where only some may, the matrix is made after all, and the others read it.
            let unpacking = uses.into_iter().take_while(|_| budget.take());
            decisions.unpacked.extend(unpacking.map(|(product, _)| (product, weights)));
        }
    }
}

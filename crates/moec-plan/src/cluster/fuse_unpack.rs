//! Weights that are unpacked for products only: the products read them as they are stored, and the unpacked matrix is never
//! made, if it is cut into the panels that the kernels of the device read.

use super::view::View;
use super::{Decisions, Rewrites};
use moec_ir::{NodeId, Op, Precision};

pub(super) fn decide(view: &View<'_>, budget: &mut Rewrites, decisions: &mut Decisions) {
    for weights in view.ids() {
        let Op::Unpack(attrs) = view.op(weights) else { continue };
        if view.limits.panel != Some(attrs.panel) || view.is_named(view.graph.value(weights)) {
            continue;
        }
        let uses = view.uses(view.graph.value(weights));
        if uses.iter().all(|&(product, at)| at == 1 && can_unpack(view, product)) {
            // Where only some may, the matrix is made after all, and the others read it.
            let unpacking = uses.into_iter().take_while(|_| budget.take());
            decisions.unpacked.extend(unpacking.map(|(product, _)| (product, weights)));
        }
    }
}

/// Whether a product can unpack its weights.
fn can_unpack(view: &View<'_>, product: NodeId) -> bool {
    let product_of_rows = matches!(
        view.op(product),
        Op::MatMul { transpose_a: false, transpose_b: false, precision: Precision::F32, .. }
            | Op::GroupedMatMul { transpose_b: false, precision: Precision::F32, .. }
    );
    product_of_rows && !view.reads_nothing(product)
}

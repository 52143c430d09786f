//! A cross-entropy and its gradient are computed together, which reads every row of logits while it is in cache and keeps no
//! log-sum-exp: where the gradient that arrives at the loss is a number that is known, and nothing else reads the
//! log-sum-exp. The loss of a function without gradients stays as it is.
//!
//! The gradient is then there with the loss, where the backward pass begins.

use super::view::View;
use super::{Decisions, Rewrites};
use crate::kernel::{Body, Kernel};
use crate::passes::rebuild::uniform;
use moec_ir::{NodeId, Op, Real};

pub(super) fn decide(view: &View<'_>, budget: &mut Rewrites, decisions: &mut Decisions) {
    for gradient in view.ids() {
        if let Some((loss, dloss)) = fusion(view, gradient)
            && budget.take()
        {
            decisions.gradients.insert(loss, (gradient, dloss));
        }
    }
}

/// The cross-entropy whose gradient this node is, if one kernel can make both, with the gradient that arrives at it.
fn fusion(view: &View<'_>, gradient: NodeId) -> Option<(NodeId, Real)> {
    let operands = view.graph.operands(gradient);
    let (Op::CrossEntropyGrad, &[dloss, logits, lse, targets]) = (view.op(gradient), operands) else {
        return None;
    };
    let loss = lse.node;
    if *view.op(loss) != Op::CrossEntropy || view.graph.operands(loss) != [logits, targets] || lse.slot != 1 {
        return None;
    }
    let dloss = uniform(view.graph, dloss)?.into();
    let kernel = Kernel::from(Body::CrossEntropyWithGradient { dloss });
    let fits = view.limits.check(&kernel, &[view.graph.ty(logits), view.graph.ty(targets)]).is_ok();
    (view.uses(lse).len() == 1 && !view.is_named(lse) && fits).then_some((loss, dloss))
}

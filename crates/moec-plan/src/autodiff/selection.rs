//! Choices: selected indices are constants.

use super::{Gradients, Rule, misplaced};
use crate::error::PlanError;
use moec_ir::{Builder, Op};

pub(super) fn gradients(rule: &Rule<'_>, b: &mut Builder) -> Result<Gradients, PlanError> {
    let x = rule.operands;
    let mut out = Gradients::new();
    match &rule.node.op {
        // dx is dy at the selected places, 0 elsewhere
        Op::TopK { .. } => {
            let size = b.shape(x[0])[1];
            out.push((0, b.scatter_last(rule.only(), rule.result(1), size)));
        }
        // dx[n, i] = sum of dy[n, k] over k with indices[n, k] = i
        Op::GatherLast => {
            let size = b.shape(x[0])[1];
            out.push((0, b.scatter_last(rule.only(), x[1], size)));
        }
        // dvalues[n, k] = dy[n, indices[n, k]]
        Op::ScatterLast { .. } => {
            let dy = rule.only();
            out.push((0, b.gather_last(dy, x[1])));
        }
        op => misplaced(op),
    }
    Ok(out)
}

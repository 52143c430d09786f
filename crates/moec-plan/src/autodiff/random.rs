//! Dropout.

use super::{Gradients, Rule, misplaced};
use crate::error::PlanError;
use moec_ir::{Builder, Op};

pub(super) fn gradients(rule: &Rule<'_>, b: &mut Builder) -> Result<Gradients, PlanError> {
    let x = rule.operands;
    let mut out = Gradients::new();
    match &rule.node.op {
        // The same mask and factor apply to dy
        Op::Dropout { rate, key } => {
            let dy = rule.only();
            out.push((0, b.op(Op::Dropout { rate: *rate, key: *key }, &[dy, x[1]])));
        }
        op => misplaced(op),
    }
    Ok(out)
}

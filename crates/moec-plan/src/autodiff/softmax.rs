//! Exponentials over the last axis.

use super::{Gradients, Rule, misplaced, spread_rows};
use crate::error::PlanError;
use moec_ir::{Builder, Op};

pub(super) fn gradients(rule: &Rule<'_>, b: &mut Builder) -> Result<Gradients, PlanError> {
    let (x, y) = (rule.operands, rule.result(0));
    let mut out = Gradients::new();
    match &rule.node.op {
        // dx = y (dy - sum dy y)
        Op::Softmax => {
            let dy = rule.only();
            out.push((0, b.op(Op::SoftmaxGrad, &[dy, y])));
        }
        // dx = dy softmax(x)
        Op::LogSumExp => {
            let dy = rule.only();
            let p = b.softmax(x[0]);
            out.push((0, spread_rows(b, dy, p)));
        }
        op => misplaced(op),
    }
    Ok(out)
}

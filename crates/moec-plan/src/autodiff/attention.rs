//! Attention and rotary positions.

use super::{Gradients, Rule, misplaced, replace_first};
use crate::error::PlanError;
use moec_ir::{Builder, Op};

pub(super) fn gradients(rule: &Rule<'_>, b: &mut Builder) -> Result<Gradients, PlanError> {
    let (x, y) = (rule.operands, rule.result(0));
    let mut out = Gradients::new();
    match &rule.node.op {
        // Probabilities are recomputed from the log-sum-exp; the dropout mask from its key
        Op::Attention(attrs) => {
            if rule.dy[1].is_some() {
                return Err(rule.has_none("the log-sum-exp of attention"));
            }
            let mut operands = vec![rule.only(), x[0], y, rule.result(1)];
            operands.extend(x.get(1));
            out.push((0, b.op(Op::AttentionGrad(*attrs), &operands)));
        }
        // The rotation is orthogonal: dx is dy rotated back
        Op::Rotary { heads, time, base, inverse, positions } => {
            let dy = rule.only();
            let (heads, time, base, positions) = (*heads, *time, *base, *positions);
            let op = Op::Rotary { heads, time, base, inverse: !inverse, positions };
            out.push((0, b.op(op, &replace_first(x, dy))));
        }
        op => misplaced(op),
    }
    Ok(out)
}

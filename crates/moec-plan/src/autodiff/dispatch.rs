//! Rows to the experts and back.

use super::{Gradients, Rule, misplaced, replace_first};
use crate::error::PlanError;
use moec_ir::{Builder, Op};

pub(super) fn gradients(rule: &Rule<'_>, b: &mut Builder) -> Result<Gradients, PlanError> {
    let x = rule.operands;
    let mut out = Gradients::new();
    match &rule.node.op {
        // y[r] = w[slot] x[token]: dx sums the rows of a token back, dw[slot] = <x[token], dy[r]>
        Op::Dispatch { weighted } => {
            let dy = rule.only();
            if rule.wants(0) {
                let operands = replace_first(x, dy);
                out.push((0, b.op(Op::Combine { weighted: *weighted }, &operands)));
            }
            if *weighted && rule.wants(3) {
                out.push((3, b.op(Op::CombineWeightGrad, &[x[0], dy, x[2]])));
            }
        }
        // z[token] = sum of w[slot] y[r]: dy sends dz out to the rows, dw[slot] = <dz[token], y[r]>
        Op::Combine { weighted } => {
            let dz = rule.only();
            if rule.wants(0) {
                let operands = replace_first(x, dz);
                out.push((0, b.op(Op::Dispatch { weighted: *weighted }, &operands)));
            }
            if *weighted && rule.wants(3) {
                out.push((3, b.op(Op::CombineWeightGrad, &[dz, x[0], x[2]])));
            }
        }
        op => misplaced(op),
    }
    Ok(out)
}

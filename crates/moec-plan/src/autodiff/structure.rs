//! Reshapes, broadcasts and permutations.

use super::{Gradients, Rule, misplaced};
use crate::error::PlanError;
use moec_ir::{Builder, Op};

pub(super) fn gradients(rule: &Rule<'_>, b: &mut Builder) -> Result<Gradients, PlanError> {
    let (x, y) = (rule.operands, rule.result(0));
    let mut out = Gradients::new();
    match &rule.node.op {
        // dx = dy in the old shape
        Op::Reshape { .. } => {
            let dy = rule.only();
            let shape = b.shape(x[0]);
            out.push((0, b.reshape(dy, shape)));
        }
        // dx = sum of dy over the axes that were repeated
        Op::Broadcast { .. } => {
            let dy = rule.only();
            let (from, to) = (b.shape(x[0]), b.shape(y));
            let lead = to.len() - from.len();
            let axes: Vec<usize> = (0..to.len()).filter(|&a| a < lead || (from[a - lead] == 1 && to[a] != 1)).collect();
            let sum = if axes.is_empty() { dy } else { b.sum(dy, &axes) };
            out.push((0, b.reshape(sum, from)));
        }
        // dx is dy with every axis back in its place
        Op::Permute { axes } => {
            let dy = rule.only();
            let mut back = vec![0; axes.len()];
            for (i, &axis) in axes.iter().enumerate() {
                back[axis] = i;
            }
            out.push((0, b.permute(dy, &back)));
        }
        op => misplaced(op),
    }
    Ok(out)
}

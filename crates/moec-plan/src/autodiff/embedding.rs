//! Embeddings and the loss.

use super::{Gradients, Rule, misplaced, spread_rows};
use crate::error::PlanError;
use moec_ir::{Builder, Op};

pub(super) fn gradients(rule: &Rule<'_>, b: &mut Builder) -> Result<Gradients, PlanError> {
    let x = rule.operands;
    let mut out = Gradients::new();
    match &rule.node.op {
        // dtable[v] = sum of dy[n] over tokens with ids[n] = v
        Op::Embed => {
            let rows = b.shape(x[1])[0];
            out.push((1, b.op(Op::EmbedGrad { rows }, &[x[0], rule.only()])));
        }
        // dlogits = (softmax - onehot) dloss / N, plus softmax dlse when the log-sum-exp is used by itself
        Op::CrossEntropy => {
            let dloss = rule.dy[0];
            let from_loss = dloss.map(|dloss| b.op(Op::CrossEntropyGrad, &[dloss, x[0], rule.result(1), x[1]]));
            let from_lse = rule.dy[1].map(|dlse| {
                let p = b.softmax(x[0]);
                spread_rows(b, dlse, p)
            });
            let sum = match (from_loss, from_lse) {
                (Some(one), Some(other)) => Some(b.add(one, other)),
                (one, other) => one.or(other),
            };
            out.extend(sum.map(|dx| (0, dx)));
        }
        op => misplaced(op),
    }
    Ok(out)
}

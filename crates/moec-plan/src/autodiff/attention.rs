//! Attention and rotary positions.

use super::{Gradients, Rule, misplaced, replace_first};
use crate::error::PlanError;
use moec_ir::{Builder, Op, Unary};

pub(super) fn gradients(rule: &Rule<'_>, b: &mut Builder) -> Result<Gradients, PlanError> {
    let (x, y) = (rule.operands, rule.result(0));
    let mut out = Gradients::new();
    match &rule.node.op {
        // Probabilities are recomputed from the log-sum-exp; the dropout mask from its key
        Op::Attention(attrs) => {
            if rule.dy[1].is_some() {
                return Err(rule.has_none("the log-sum-exp of attention"));
            }
            let (dy, lse) = (rule.only(), rule.result(1));
            let mut operands = vec![dy, x[0], y, lse];
            let sinks = x.get(1).copied().filter(|_| attrs.sink);
            operands.extend(x.last().filter(|_| attrs.dropout.get() > 0.0));
            if rule.wants(0) {
                out.push((0, b.op(Op::AttentionGrad(*attrs), &operands)));
            }
            if let Some(sinks) = sinks {
                // A sink is a key whose value is 0, so all it has of the softmax's gradient is less its probability times
                // <dy, y> (Dao et al. 2022, equation 4).
                let (tokens, width) = (b.extent(y, 0), b.columns(y));
                let product = b.mul(dy, y);
                let product = b.reshape(product, [tokens, attrs.heads, width / attrs.heads]);
                let product = b.sum(product, &[2]);
                let score = b.broadcast(sinks, [tokens, attrs.heads]);
                let score = b.sub(score, lse);
                let probability = b.unary(Unary::Exp, score);
                let product = b.mul(probability, product);
                let sum = b.sum(product, &[0]);
                out.push((1, b.scale(sum, -1.0)));
            }
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

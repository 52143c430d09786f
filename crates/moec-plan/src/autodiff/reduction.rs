//! Sums along axes.

use super::{Gradients, Rule, misplaced};
use crate::error::PlanError;
use moec_ir::{Builder, Op};

pub(super) fn gradients(rule: &Rule<'_>, b: &mut Builder) -> Result<Gradients, PlanError> {
    let x = rule.operands;
    let mut out = Gradients::new();
    match &rule.node.op {
        // dx[.., i, ..] = dy[..] for every i of a removed axis
        Op::Sum { axes } => {
            let dy = rule.only();
            let shape = b.shape(x[0]);
            let kept = shape.iter().enumerate().map(|(a, &d)| if axes.contains(&a) { 1 } else { d });
            let dy = b.reshape(dy, kept.collect::<Vec<_>>());
            out.push((0, b.broadcast(dy, shape)));
        }
        // x[i] is in every sum from its own on (or to the other end), so dx sums dy from the other end
        Op::CumulativeSum { axis, exclusive, reverse } => {
            let op = Op::CumulativeSum { axis: *axis, exclusive: *exclusive, reverse: !reverse };
            out.push((0, b.op(op, &[rule.only()])));
        }
        // dx = 2 dy x
        Op::SumOfSquares => {
            let dy = rule.only();
            let twice = b.scale(dy, 2.0);
            for (i, &operand) in x.iter().enumerate().filter(|&(i, _)| rule.wants(i)) {
                out.push((i, b.mul(operand, twice)));
            }
        }
        op => misplaced(op),
    }
    Ok(out)
}

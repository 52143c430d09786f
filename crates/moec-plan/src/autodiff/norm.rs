//! Normalised rows.

use super::{Gradients, Rule, last_extent, misplaced};
use crate::error::PlanError;
use moec_ir::{Builder, Op, Value};

pub(super) fn gradients(rule: &Rule<'_>, b: &mut Builder) -> Result<Gradients, PlanError> {
    let x = rule.operands;
    let mut out = Gradients::new();
    match &rule.node.op {
        // Ba et al. 2016; the statistics of the forward pass are reused
        Op::LayerNorm { .. } => {
            if let Some(dy) = rule.dy[0] {
                let dx = b.op(Op::LayerNormGrad, &[dy, x[0], x[1], rule.result(1), rule.result(2)]);
                out.extend([(0, dx), (1, dx.result(1)), (2, dx.result(2))]);
            }
            // dmean/dx = 1 / C
            if let Some(dmean) = rule.dy[1] {
                let width = last_extent(b, x[0]);
                let share = b.scale(dmean, 1.0 / width.max(1) as f64);
                let spread = b.broadcast_last(share, width);
                let shape = b.shape(x[0]);
                out.push((0, b.reshape(spread, shape)));
            }
            if let Some(drstd) = rule.dy[2] {
                out.push((0, rstd(b, x[0], drstd, Some(rule.result(1)), rule.result(2))));
            }
        }
        Op::RmsNorm { .. } => {
            if let Some(dy) = rule.dy[0] {
                let dx = b.op(Op::RmsNormGrad, &[dy, x[0], x[1], rule.result(1)]);
                out.extend([(0, dx), (1, dx.result(1))]);
            }
            if let Some(drstd) = rule.dy[1] {
                out.push((0, rstd(b, x[0], drstd, None, rule.result(1))));
            }
        }
        op => misplaced(op),
    }
    Ok(out)
}

/// Gradient through `rstd = (mean of (x - mean)^2 + epsilon)^(-1/2)`: drstd/dx = -rstd^3 (x - mean) / C.
fn rstd(b: &mut Builder, x: Value, drstd: Value, mean: Option<Value>, rstd: Value) -> Value {
    let (shape, width) = (b.shape(x), last_extent(b, x));
    let square = b.mul(rstd, rstd);
    let cube = b.mul(square, rstd);
    let slope = b.mul(drstd, cube);
    let slope = b.scale(slope, -1.0 / width.max(1) as f64);
    let slope = b.broadcast_last(slope, width);
    let slope = b.reshape(slope, shape.clone());
    let centred = match mean {
        Some(mean) => {
            let mean = b.broadcast_last(mean, width);
            let mean = b.reshape(mean, shape);
            b.sub(x, mean)
        }
        None => x,
    };
    b.mul(slope, centred)
}

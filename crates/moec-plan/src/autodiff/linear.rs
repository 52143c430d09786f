//! Products. The gradient of a product is made of products of the same precision: each rounds its operands, the gradient
//! among them, and takes the rounding itself for the identity.

use super::{Gradients, Rule, misplaced};
use crate::error::PlanError;
use moec_ir::{Builder, Op, Precision, Value};

pub(super) fn gradients(rule: &Rule<'_>, b: &mut Builder) -> Result<Gradients, PlanError> {
    let (x, y) = (rule.operands, rule.result(0));
    let mut out = Gradients::new();
    match &rule.node.op {
        Op::MatMul { transpose_a, transpose_b, bias, precision } => {
            let dy = rule.only();
            matmul(rule, b, (*transpose_a, *transpose_b, *bias), *precision, dy, &mut out);
        }
        &Op::GroupedMatMul { transpose_b, bias, precision } => {
            let dy = rule.only();
            let (input, weights, offsets) = (x[0], x[1], x[2]);
            // dx of a row = dy Wᵀ of the row's expert
            if rule.wants(0) {
                let op = Op::GroupedMatMul { transpose_b: !transpose_b, bias: false, precision };
                out.push((0, b.op(op, &[dy, weights, offsets])));
            }
            // dW[e] = dyᵀ x of the expert's rows when stored [O, I], xᵀ dy when stored [I, O]
            if rule.wants(1) {
                let (left, right) = if transpose_b { (dy, input) } else { (input, dy) };
                out.push((1, b.op(Op::GroupedMatMulWeightGrad { precision }, &[left, right, offsets])));
            }
            // dbias[e] = sum of the expert's rows of dy
            if bias && rule.wants(3) {
                out.push((3, b.op(Op::GroupedSum, &[dy, offsets])));
            }
        }
        // w[e] = aᵀ c of the expert's rows, so of a row: da = dw c and dc = dwᵀ a with the expert's dw
        &Op::GroupedMatMulWeightGrad { precision } => {
            let (dw, left, right, offsets) = (rule.only(), x[0], x[1], x[2]);
            let product = |transpose_b| Op::GroupedMatMul { transpose_b, bias: false, precision };
            if rule.wants(0) {
                out.push((0, b.op(product(true), &[right, dw, offsets])));
            }
            if rule.wants(1) {
                out.push((1, b.op(product(false), &[left, dw, offsets])));
            }
        }
        // dx[r] = dy[expert of row r], 0 for rows of no expert: the bias of a grouped product with zeros
        Op::GroupedSum => {
            let (rows, experts, width) = (b.shape(x[0])[0], b.shape(y)[0], b.shape(y)[1]);
            let (zero_rows, zero_weights) = (b.fill(0.0, [rows, 1]), b.fill(0.0, [experts, 1, width]));
            let op = Op::GroupedMatMul { transpose_b: false, bias: true, precision: Precision::F32 };
            out.push((0, b.op(op, &[zero_rows, zero_weights, x[1], rule.only()])));
        }
        op => misplaced(op),
    }
    Ok(out)
}

/// With A and B the factors as multiplied: dA = dy Bᵀ, dB = Aᵀ dy, each written so that it comes out as stored.
fn matmul(
    rule: &Rule<'_>,
    b: &mut Builder,
    (ta, tb, bias): (bool, bool, bool),
    precision: Precision,
    dy: Value,
    out: &mut Gradients,
) {
    let (left, right) = (rule.operands[0], rule.operands[1]);
    let product = |transpose_a, transpose_b| Op::MatMul { transpose_a, transpose_b, bias: false, precision };
    if rule.wants(0) {
        let da = if ta { b.op(product(tb, true), &[right, dy]) } else { b.op(product(false, !tb), &[dy, right]) };
        out.push((0, da));
    }
    if rule.wants(1) {
        let db = if tb { b.op(product(true, ta), &[dy, left]) } else { b.op(product(!ta, false), &[left, dy]) };
        out.push((1, db));
    }
    // dbias = sum of the rows of dy
    if bias && rule.wants(2) {
        out.push((2, b.sum(dy, &[0])));
    }
}

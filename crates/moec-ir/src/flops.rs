//! Arithmetic of operations, counted once for plans and for tables of layers.

use crate::op::Op;
use crate::types::TensorType;

/// Floating point operations of a product or of attention, counting a multiply-add as two; 0 for every operation that only
/// moves data or computes a few operations per element, which memory bounds. Experts are counted as if every slot had a
/// token.
pub fn flops(op: &Op, operands: &[&TensorType], results: &[&TensorType]) -> f64 {
    let (Some(first), Some(result)) = (operands.first(), results.first()) else { return 0.0 };
    let elements = result.elements() as f64;
    let last = |ty: &TensorType| ty.shape.last().map_or(1.0, |&n| n as f64);
    match (op, length_of_sums(op, first)) {
        // Every row meets one expert, so the experts' gradients together are one product.
        (Op::GroupedMatMulWeightGrad { .. }, Some(rows)) => {
            2.0 * operands.iter().take(2).map(|ty| last(ty)).product::<f64>() * rows as f64
        }
        (_, Some(length)) => 2.0 * elements * length as f64,
        // Scores and weighted values over the positions that a query sees; backward recomputes the scores and has two
        // products for each of the two.
        (Op::Attention(a), _) => 4.0 * elements * a.seen_on_average(),
        (Op::AttentionGrad(a), _) => 10.0 * first.elements() as f64 * a.seen_on_average(),
        _ => 0.0,
    }
}

/// How many products each element of a product's result is the sum of, by the type of its first operand; `None` for other
/// operations.
pub fn length_of_sums(op: &Op, first: &TensorType) -> Option<usize> {
    match op {
        Op::GroupedMatMulWeightGrad { .. } | Op::MatMul { transpose_a: true, .. } => first.shape.first().copied(),
        Op::MatMul { .. } | Op::GroupedMatMul { .. } => first.shape.last().copied(),
        _ => None,
    }
}

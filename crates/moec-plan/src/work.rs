//! What a step has to do: its arithmetic, and its operands and results as if each moved once.

use crate::plan::{Plan, Step};
use moec_ir::{Op, TensorType};

/// Arithmetic and memory traffic of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Floating point operations of products, counting a multiply-add as two; 0 for steps that only move data or
    /// compute a few operations per element, which memory bounds. Experts are counted as if every slot had a token.
    pub flops: f64,
    /// Bytes of all operands and results, each once.
    pub bytes: f64,
}

impl Work {
    /// Seconds that a machine with these limits (operations and bytes per second) needs at least.
    pub fn seconds(&self, flops: f64, bytes: f64) -> f64 {
        (self.flops / flops).max(self.bytes / bytes)
    }
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.flops += other.flops;
        self.bytes += other.bytes;
    }
}

/// The work of a step of this plan.
pub fn work(plan: &Plan, step: &Step) -> Work {
    let ty = |id: &crate::plan::BufferId| &plan.buffer(*id).ty;
    let bytes = step.operands.iter().chain(&step.results).map(|id| ty(id).bytes() as f64).sum();
    let (x, y): (Vec<&TensorType>, Vec<&TensorType>) =
        (step.operands.iter().map(ty).collect(), step.results.iter().map(ty).collect());
    Work { flops: flops(&step.op, &x, &y), bytes }
}

/// The kind of a step: its operation, for products with the extents of the result and of the sums.
pub fn kind(plan: &Plan, step: &Step) -> String {
    let mnemonic = step.op.mnemonic();
    let (Some(x), Some(y)) = (step.operands.first(), step.results.first()) else { return mnemonic.to_string() };
    let (x, y) = (&plan.buffer(*x).ty, &plan.buffer(*y).ty);
    match step.op.innermost() {
        op @ (Op::MatMul { .. } | Op::GroupedMatMul { .. } | Op::GroupedMatMulWeightGrad) => {
            let extents: Vec<String> = y.shape.iter().map(ToString::to_string).collect();
            format!("{mnemonic} {} over {}", extents.join("x"), summed(op, x))
        }
        _ => mnemonic.to_string(),
    }
}

/// Length of the sums of a product with that first operand.
fn summed(op: &Op, x: &TensorType) -> usize {
    let rows = || x.shape.first().copied().unwrap_or(1);
    match op {
        Op::GroupedMatMulWeightGrad => rows(),
        Op::MatMul { transpose_a: true, .. } => rows(),
        _ => x.shape.last().copied().unwrap_or(1),
    }
}

fn flops(op: &Op, x: &[&TensorType], y: &[&TensorType]) -> f64 {
    let (Some(first), Some(result)) = (x.first(), y.first()) else { return 0.0 };
    let elements = result.elements() as f64;
    match op.innermost() {
        op @ (Op::MatMul { .. } | Op::GroupedMatMul { .. }) => 2.0 * elements * summed(op, first) as f64,
        op @ Op::GroupedMatMulWeightGrad => {
            // Every row meets one expert, so the experts' gradients together are one product.
            let outer: f64 = x.iter().take(2).map(|t| t.shape.last().copied().unwrap_or(1) as f64).product();
            2.0 * outer * summed(op, first) as f64
        }
        // Scores and weighted values over (T + 1) / 2 positions on average; backward recomputes the scores and has two
        // products for each of the two.
        Op::Attention(a) => 2.0 * elements * (a.time + 1) as f64,
        Op::AttentionGrad(a) => 5.0 * first.elements() as f64 * (a.time + 1) as f64,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::plan;
    use crate::{Wrt, differentiate};
    use moec_ir::{Builder, Phase, TensorType};

    #[test]
    fn products_count_two_operations_per_multiply_add() {
        let mut b = Builder::new();
        let x = b.input("x", TensorType::f32([3, 7]));
        let w = b.parameter("w", [5, 7]);
        let y = b.op(Op::MatMul { transpose_a: false, transpose_b: true, bias: false }, &[x, w]);
        let loss = b.sum_all(y);
        b.output("loss", loss);
        let graph = differentiate(&b.finish().unwrap(), "loss", &Wrt::Parameters).unwrap();
        let program = plan(&[("f".to_string(), &graph)]).unwrap();
        let plan = &program.plans[0];
        let products: Vec<(String, Work, Phase)> = plan
            .steps
            .iter()
            .filter(|s| matches!(s.op, Op::MatMul { .. }))
            .map(|s| (kind(plan, s), work(plan, s), s.phase))
            .collect();
        let bytes = 4.0 * (3 * 7 + 5 * 7 + 3 * 5) as f64;
        let expected = Work { flops: 2.0 * (3 * 5 * 7) as f64, bytes };
        assert_eq!(
            products,
            [
                ("matmul 3x5 over 7".to_string(), expected, Phase::Forward),
                ("matmul 5x7 over 3".to_string(), expected, Phase::Backward)
            ]
        );
    }

    #[test]
    fn a_product_with_sums_counts_as_the_product() {
        let program = |op: Op, offsets: bool| {
            let mut b = Builder::new();
            let mut operands = vec![b.input("dy", TensorType::f32([7, 5])), b.input("x", TensorType::f32([7, 3]))];
            operands.extend(offsets.then(|| b.input("offsets", TensorType::i32([3]))));
            let y = b.op(op, &operands);
            b.output("y", y);
            plan(&[("f".to_string(), &b.finish().unwrap())]).unwrap()
        };
        let flops = |program: &crate::Program| {
            let plan = &program.plans[0];
            plan.steps.iter().map(|s| work(plan, s).flops).sum::<f64>()
        };
        let dense = Op::MatMul { transpose_a: true, transpose_b: false, bias: false };
        // Three tokens of which each has a row or more.
        let mut b = Builder::new();
        let (dy, x) = (b.input("dy", TensorType::f32([7, 5])), b.input("x", TensorType::f32([3, 3])));
        let (offsets, order) = (b.input("offsets", TensorType::i32([3])), b.input("order", TensorType::i32([7])));
        let positions = b.input("positions", TensorType::i32([3, 4]));
        let fetched = Op::DispatchedProduct(Box::new(Op::GroupedMatMulWeightGrad));
        let y = b.op(fetched, &[dy, x, offsets, order, positions]);
        b.output("y", y);
        let fetched = plan(&[("f".to_string(), &b.finish().unwrap())]).unwrap();
        assert_eq!(flops(&fetched), 2.0 * (7 * 5 * 3) as f64);
        for (product, offsets) in [(dense, false), (Op::GroupedMatMulWeightGrad, true)] {
            let with_sums = program(Op::ProductWithSums(Box::new(product.clone())), offsets);
            assert_eq!(flops(&with_sums), flops(&program(product, offsets)));
            assert_eq!(flops(&with_sums), 2.0 * (7 * 5 * 3) as f64);
        }
    }

    #[test]
    fn the_slower_limit_counts() {
        let work = Work { flops: 100.0, bytes: 10.0 };
        assert_eq!(work.seconds(10.0, 10.0), 10.0);
        assert_eq!(work.seconds(1000.0, 1.0), 10.0);
    }
}

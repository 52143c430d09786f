//! What a step has to do: its arithmetic, and its operands and results as if each moved once.

use crate::plan::{Plan, Step};
use moec_ir::{Invariant, TensorType, flops, length_of_sums};

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
    let kernel = step.kernel();
    let operands = kernel.operands(&x).invariant("a step has the operands of its kernel");
    let flops = kernel.op().map_or(0.0, |op| flops(op, operands.body, &y));
    Work { flops, bytes }
}

/// The kind of a step: what its kernel computes, for products with the extents of the result and of the sums.
pub fn kind(plan: &Plan, step: &Step) -> String {
    let mnemonic = step.kernel().mnemonic();
    let shape = |id: &crate::plan::BufferId| &plan.buffer(*id).ty;
    let (Some(op), Some(x), Some(y)) = (step.kernel().op(), step.operands.first(), step.results.first()) else {
        return mnemonic;
    };
    match length_of_sums(op, shape(x)) {
        Some(length) => {
            let extents: Vec<String> = shape(y).shape.iter().map(ToString::to_string).collect();
            format!("{mnemonic} {} over {length}", extents.join("x"))
        }
        None => mnemonic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::plan;
    use crate::{ClusterOptions, Wrt, cluster, differentiate};
    use moec_ir::{Builder, Op, Phase, Precision, TensorType};

    #[test]
    fn products_count_two_operations_per_multiply_add() {
        let mut b = Builder::new();
        let x = b.input("x", TensorType::f32([3, 7]));
        let w = b.parameter("w", [5, 7]);
        let y =
            b.op(Op::MatMul { transpose_a: false, transpose_b: true, bias: false, precision: Precision::F32 }, &[x, w]);
        let loss = b.sum_all(y);
        b.output("loss", loss);
        let graph = differentiate(&b.finish().unwrap(), "loss", &Wrt::Parameters).unwrap();
        let program = plan(&[("f".to_string(), &graph)]).unwrap();
        let plan = &program.plans[0];
        let products: Vec<(String, Work, Phase)> = plan
            .steps
            .iter()
            .filter(|s| matches!(s.kernel().op(), Some(Op::MatMul { .. })))
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
    fn a_product_that_does_more_counts_as_the_product() {
        // Three tokens of which each has a row or more.
        let mut b = Builder::new();
        let (dy, x) = (b.input("dy", TensorType::f32([7, 5])), b.input("x", TensorType::f32([3, 3])));
        let experts = b.input("experts", TensorType::i32([3, 3]));
        let sort = b.op(Op::SortByExpert { experts: 2, rows: 7 }, &[experts]);
        let rows = b.op(Op::Dispatch { weighted: false }, &[x, sort.result(1), sort.result(2)]);
        let dw = b.op(Op::GroupedMatMulWeightGrad { precision: Precision::F32 }, &[dy, rows, sort]);
        let db = b.op(Op::GroupedSum, &[dy, sort]);
        b.output("dw", dw);
        b.output("db", db);
        let graph = b.finish().unwrap();
        let (clusters, _) = cluster(&graph, &ClusterOptions::default()).unwrap();
        for program in [plan(&[("f".to_string(), &graph)]), plan(&[("f".to_string(), &clusters)])] {
            let plan = &program.unwrap().plans[0];
            let flops = plan.steps.iter().map(|s| work(plan, s).flops).sum::<f64>();
            assert_eq!(flops, 2.0 * (7 * 5 * 3) as f64);
        }
        assert!(clusters.iter().any(|c| c.kernel.sums && c.kernel.fetch.is_some()));
    }

    #[test]
    fn the_slower_limit_counts() {
        let work = Work { flops: 100.0, bytes: 10.0 };
        assert_eq!(work.seconds(10.0, 10.0), 10.0);
        assert_eq!(work.seconds(1000.0, 1.0), 10.0);
    }
}

//! Instructions of processors that CubeCL's kernel language lacks, for kernels of the CPU: [`interleave`], [`prefetch`]
//! and [`dot_bf16`]. They are operations of our own in CubeCL's intermediate representation. What makes LLVM of its operations
//! asks each for its interface `ToLLVMDialect`, and so finds these as well; no other compiler of CubeCL knows them.

use cubecl::prelude::*;
use cubecl_core::intrinsic;
use cubecl_core::ir::attributes::IndexAttr;
use cubecl_core::ir::prelude::*;

/// The operation of [`interleave`].
#[pliron_op(
    name = "moec.interleave",
    format,
    attributes = (moec_interleave_distance: IndexAttr, moec_interleave_half: IndexAttr),
    verifier = "succ"
)]
#[op_interfaces(NResultsInterface<1>, OneResultInterface, NOpdsInterface<2>)]
pub(crate) struct InterleaveOp;

impl InterleaveOp {
    fn new(ctx: &mut Context, a: Value, b: Value, distance: usize, half: usize) -> Self {
        let ty = a.get_type(ctx);
        let op = Operation::new(ctx, Self::get_concrete_op_info(), vec![ty], vec![a, b], vec![], 0);
        let op = Self { op };
        op.set_attr_moec_interleave_distance(ctx, IndexAttr(distance));
        op.set_attr_moec_interleave_half(ctx, IndexAttr(half));
        op
    }
}

/// The operation of [`prefetch`].
#[pliron_op(name = "moec.prefetch", format, verifier = "succ")]
#[op_interfaces(NResultsInterface<0>, NOpdsInterface<1>)]
pub(crate) struct PrefetchOp;

impl PrefetchOp {
    fn new(ctx: &mut Context, place: Value) -> Self {
        Self { op: Operation::new(ctx, Self::get_concrete_op_info(), vec![], vec![place], vec![], 0) }
    }
}

/// The operation of [`dot_bf16`].
#[pliron_op(name = "moec.dot_bf16", format, verifier = "succ")]
#[op_interfaces(NResultsInterface<1>, OneResultInterface, NOpdsInterface<3>)]
pub(crate) struct DotBf16Op;

impl DotBf16Op {
    fn new(ctx: &mut Context, sum: Value, a: Value, b: Value) -> Self {
        let ty = sum.get_type(ctx);
        Self { op: Operation::new(ctx, Self::get_concrete_op_info(), vec![ty], vec![sum, a, b], vec![], 0) }
    }
}

/// What LLVM makes of them.
#[cfg(feature = "cpu")]
mod lowering {
    use super::{DotBf16Op, InterleaveOp, PrefetchOp};
    use cubecl_core::ir::pliron::result::Result;
    use cubecl_core::ir::prelude::*;
    use cubecl_llvm::shared::intrinsic::{call_op, i32_const_op};
    use cubecl_llvm::shared::to_llvm::ToLLVMDialect;
    use moec_ir::Invariant;
    use pliron::builtin::types::BF16Type;
    use pliron_llvm::op_interfaces::CastOpInterface;
    use pliron_llvm::ops::{BitcastOp, ShuffleVectorOp};
    use pliron_llvm::types::{VectorType, VectorTypeKind, VoidType};

    /// Where lane `lane` of a result of [`interleave`] comes from: a lane of the first vector, or one of the second, which
    /// counts on after the first.
    fn source(lane: usize, distance: usize, half: usize, lanes: usize) -> usize {
        let of_first = if half == 0 { lane } else { lane + distance };
        if lane & distance == 0 { of_first } else { lanes + of_first - distance }
    }

    #[op_interface_impl]
    impl ToLLVMDialect for InterleaveOp {
        fn rewrite(&self, ctx: &mut Context, rewriter: &mut DialectConversionRewriter, _: &OperandsInfo) -> Result<()> {
            let distance = self.get_attr_moec_interleave_distance(ctx).invariant("set where it is made").0;
            let half = self.get_attr_moec_interleave_half(ctx).invariant("set where it is made").0;
            let op = self.get_operation();
            let (a, b) = (op.deref(ctx).get_operand(0), op.deref(ctx).get_operand(1));
            let lanes = {
                let ty = a.get_type(ctx).deref(ctx);
                ty.downcast_ref::<VectorType>().invariant("vectors of more than one lane").num_elements() as usize
            };
            let mask = (0..lanes).map(|lane| source(lane, distance, half, lanes) as i32).collect();
            let shuffle = ShuffleVectorOp::new(ctx, a, b, mask);
            rewriter.insert_op(ctx, &shuffle);
            rewriter.replace_operation_with_values(ctx, op, vec![shuffle.get_result(ctx)]);
            Ok(())
        }
    }

    #[op_interface_impl]
    impl ToLLVMDialect for DotBf16Op {
        fn rewrite(&self, ctx: &mut Context, rewriter: &mut DialectConversionRewriter, _: &OperandsInfo) -> Result<()> {
            let op = self.get_operation();
            let sum = op.deref(ctx).get_operand(0);
            let floats = sum.get_type(ctx);
            let lanes = {
                let ty = floats.deref(ctx);
                ty.downcast_ref::<VectorType>().invariant("vectors of more than one lane").num_elements()
            };
            let pairs = VectorType::get(ctx, BF16Type::get(ctx).into(), 2 * lanes, VectorTypeKind::Fixed).into();
            let mut arguments = vec![sum];
            for factor in 1..3 {
                let words = op.deref(ctx).get_operand(factor);
                let cast = BitcastOp::new(ctx, words, pairs);
                rewriter.insert_op(ctx, &cast);
                arguments.push(cast.get_result(ctx));
            }
            let call = call_op(ctx, &format!("llvm.x86.avx512bf16.dpbf16ps.{}", 32 * lanes), floats, arguments);
            rewriter.insert_op(ctx, &call);
            rewriter.replace_operation_with_values(ctx, op, vec![call.get_result(ctx)]);
            Ok(())
        }
    }

    #[op_interface_impl]
    impl ToLLVMDialect for PrefetchOp {
        fn rewrite(&self, ctx: &mut Context, rewriter: &mut DialectConversionRewriter, _: &OperandsInfo) -> Result<()> {
            let op = self.get_operation();
            let mut arguments = vec![op.deref(ctx).get_operand(0)];
            // To read, into all caches, data (LLVM's language reference, `llvm.prefetch`).
            for value in [0, 3, 1] {
                let constant = i32_const_op(ctx, value);
                rewriter.insert_op(ctx, &constant);
                arguments.push(constant.get_result(ctx));
            }
            let nothing = VoidType::get(ctx).into();
            let call = call_op(ctx, "llvm.prefetch", nothing, arguments);
            rewriter.insert_op(ctx, &call);
            rewriter.erase_operation(ctx, op);
            Ok(())
        }
    }
}

/// `sum` with both products of each lane added: a lane of `a` and of `b` is two bfloat16 numbers. Only for processors with
/// AVX512-BF16; elsewhere there is no such instruction, and LLVM ends the process.
#[cube]
pub(super) fn dot_bf16<W: Size>(sum: Vector<f32, W>, a: Vector<u32, W>, b: Vector<u32, W>) -> Vector<f32, W> {
    intrinsic!(|scope| {
        let (sum, a, b) = (sum.read_value(scope), a.read_value(scope), b.read_value(scope));
        let op = DotBf16Op::new(scope.ctx_mut(), sum, a, b);
        scope.register_with_result(&op).into()
    })
}

/// Blocks of `distance` lanes, by turns from the one vector and the other: their even blocks, or for half 1 their odd ones.
/// With lanes `a0 a1 a2 a3` and `b0 b1 b2 b3`, a distance of 1 gives `a0 b0 a2 b2` or `a1 b1 a3 b3`, and 2 gives
/// `a0 a1 b0 b1` or `a2 a3 b2 b3`.
#[cube]
pub(super) fn interleave<W: Size>(
    a: Vector<f32, W>,
    b: Vector<f32, W>,
    #[comptime] distance: usize,
    #[comptime] half: usize,
) -> Vector<f32, W> {
    intrinsic!(|scope| {
        let (a, b) = (a.read_value(scope), b.read_value(scope));
        let op = InterleaveOp::new(scope.ctx_mut(), a, b, distance, half);
        scope.register_with_result(&op).into()
    })
}

/// Asks for the cache line of a place that will be read soon.
#[cube]
pub(super) fn prefetch(place: &f32) {
    intrinsic!(|scope| {
        let place = place.value(scope);
        scope.register(&PrefetchOp::new(scope.ctx_mut(), place));
    })
}

/// Turns a square of vectors on its diagonal: lane `j` of vector `i` becomes lane `i` of vector `j`. Blocks off the diagonal
/// change places, first of half the square, in the end of single lanes: `log2(lanes)` stages of as many instructions as
/// there are vectors.
#[cube]
pub(super) fn transpose<W: Size>(rows: Sequence<Vector<f32, W>>) -> Sequence<Vector<f32, W>> {
    let w = W::value();
    let mut all = rows;
    #[unroll]
    for stage in 0..comptime!(w.trailing_zeros() as usize) {
        #[unroll]
        for i in 0..w {
            let distance = comptime!(w >> (stage + 1));
            let half = comptime!(usize::from(i & distance != 0));
            let first = comptime!(stage * w + i - half * distance);
            let turned = interleave::<W>(all[first], all[comptime!(first + distance)], distance, half);
            all.push(turned);
        }
    }
    let mut columns = Sequence::<Vector<f32, W>>::new();
    #[unroll]
    for i in 0..w {
        columns.push(all[comptime!(w.trailing_zeros() as usize * w + i)]);
    }
    columns
}

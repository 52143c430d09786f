//! What each operation launches, by family.

use moec_ir::{CapacityPriority, DType, Op, internal_error};
use moec_plan::{Access, Elementwise, Instr};

use super::{Call, More, misplaced};
use crate::kernels::matmul::{Layout, Product};
use crate::kernels::norm::Norm;
use crate::kernels::{
    attention, balance, cached_attention, copy, cross_entropy, cumsum, embed, fill, fused, grouped_matmul, indices,
    matmul, norm, random, reduce, rotary, routing, softmax, top_k, unpack,
};
use crate::launch::Arg;

/// Where values come from, and their shapes.
pub(super) fn structure(c: &Call<'_>) {
    match c.op {
        Op::Input { .. } | Op::Parameter { .. } | Op::State { .. } | Op::Reshape { .. } => {
            internal_error!("{} is no step: it only names memory", c.op.mnemonic())
        }
        Op::Fill { value, .. } => fill::launch(c.l, c.y(0), value.get() as f32),
        Op::Ramp { step, .. } => indices::ramp(c.l, c.y(0), *step),
        Op::StopGradient => copy::launch(c.l, c.x(0), c.y(0)),
        Op::Broadcast { shape } => match Access::of_broadcast(c.x[0].shape(), shape) {
            Some(access) if c.x[0].ty.dtype == DType::F32 => elements(c, vec![access], None, &[c.x(0)], None),
            _ => copy::broadcast(c.l, c.x(0), c.y(0), c.x[0].shape(), shape),
        },
        Op::Permute { axes } => copy::permute(c.l, c.x(0), c.y(0), c.x[0].shape(), axes),
        other => misplaced(other),
    }
}

/// Functions of one element of each operand.
pub(super) fn elementwise(c: &Call<'_>) {
    match c.op {
        Op::Unary(_) | Op::Binary(_) | Op::Select => {
            let registers: Vec<usize> = (0..c.x.len()).collect();
            let floats: Vec<Arg> = c.x.iter().map(|o| o.arg).collect();
            elements(c, vec![Access::Full; c.x.len()], Instr::of(c.op, &registers), &floats, None);
        }
        other => misplaced(other),
    }
}

/// Integers: experts, rows and tokens.
pub(super) fn indices(c: &Call<'_>) {
    match c.op {
        Op::ToFloat => indices::to_float(c.l, c.x(0), c.y(0)),
        Op::ToIndex { size } => indices::to_index(c.l, c.x(0), c.y(0), *size),
        Op::Lookup => indices::lookup(c.l, c.x(0), c.x(1), c.y(0)),
        Op::Previous { time } => indices::previous(c.l, c.x(0), c.y(0), *time),
        other => misplaced(other),
    }
}

/// Sums along axes.
pub(super) fn reduction(c: &Call<'_>) {
    match c.op {
        Op::Sum { axes } => reduce::sum(c.l, c.x(0), c.y(0), c.x[0].shape(), axes),
        Op::CumulativeSum { axis, exclusive, reverse } => {
            cumsum::launch(c.l, c.x(0), c.y(0), c.x[0].shape(), *axis, *exclusive, *reverse);
        }
        Op::SumOfSquares => {
            let operands: Vec<Arg> = c.x.iter().map(|o| o.arg).filter(|x| x.elements() > 0).collect();
            reduce::sum_of_squares(c.l, &operands, c.y(0));
        }
        other => misplaced(other),
    }
}

/// Products of matrices, of all rows or of the rows of each expert. Rows are sorted by expert, and an expert without
/// rows has no work; rows after the last expert's are 0.
pub(super) fn linear(c: &Call<'_>) {
    let Call { l, op, more: More { fetch, unpack, sums, after }, .. } = *c;
    let (panels, scale) = unpack.map_or((None, None), |(panels, scale)| (Some(panels), scale));
    let fetched = fetch.is_some();
    let (layout, extents, bias, grouped) = match op {
        Op::MatMul { transpose_a, transpose_b, bias, precision } => {
            let (p, q) = c.matrix(0);
            let (m, k) = if *transpose_a { (q, p) } else { (p, q) };
            let (transpose_a, transpose_b, precision) = (*transpose_a, *transpose_b, *precision);
            let layout = Layout { transpose_a, transpose_b, fetched: false, precision, panels };
            (layout, (m, c.y(0).elements() / m, k), bias.then(|| c.x(2)), false)
        }
        Op::GroupedMatMul { transpose_b, bias, precision } => {
            let (stored, k) = c.matrix(0);
            let m = fetch.map_or(stored, |f| f.order.elements());
            let (transpose_b, precision) = (*transpose_b, *precision);
            let layout = Layout { transpose_a: false, transpose_b, fetched, precision, panels };
            (layout, (m, c.y(0).elements() / m, k), bias.then(|| c.x(3)), true)
        }
        Op::GroupedMatMulWeightGrad { precision } => {
            let ((k, m), (_, n)) = (c.matrix(0), c.matrix(1));
            let precision = *precision;
            let layout = Layout { transpose_a: true, transpose_b: false, fetched, precision, panels };
            (layout, (m, n, k), None, true)
        }
        Op::GroupedSum => {
            let (rows, outer) = c.matrix(0);
            let experts = c.x(1).elements() - 1;
            return grouped_matmul::grouped_sum(l, c.x(0), c.x(1), c.y(0), rows, experts, outer);
        }
        Op::Unpack(attrs) => return unpack::launch(l, attrs, c.x(0), c.optional(1), c.y(0), c.x[0].shape()),
        other => misplaced(other),
    };
    let (a, b, y, (m, n, k)) = (c.x(0), c.x(1), c.y(0), extents);
    let offsets = grouped.then(|| c.x(2));
    let experts = offsets.map_or(1, |offsets| offsets.elements() - 1);
    matmul::launch(l, &Product { layout, a, b, scale, fetch, bias, offsets, y, sums, after, m, n, k, experts });
}

/// Normalised rows.
pub(super) fn norm(c: &Call<'_>) {
    match c.op {
        Op::LayerNorm { epsilon } => {
            let (_, channels) = c.matrix(0);
            let norm = Norm { x: c.x(0), gain: c.x(1), mean: Some(c.y(1)), rstd: c.y(2), channels };
            norm::layer_norm(c.l, norm, c.x(2), c.y(0), c.more.after, epsilon.get() as f32);
        }
        Op::RmsNorm { epsilon } => {
            let (_, channels) = c.matrix(0);
            let norm = Norm { x: c.x(0), gain: c.x(1), mean: None, rstd: c.y(1), channels };
            norm::rms_norm(c.l, norm, c.y(0), c.more.after, epsilon.get() as f32);
        }
        Op::LayerNormGrad => {
            let (_, channels) = c.matrix(0);
            let norm = Norm { x: c.x(1), gain: c.x(2), mean: Some(c.x(3)), rstd: c.x(4), channels };
            norm::grad(c.l, norm, c.x(0), c.y(0), c.y(1), Some(c.y(2)), c.more.after);
        }
        Op::RmsNormGrad => {
            let (_, channels) = c.matrix(0);
            let norm = Norm { x: c.x(1), gain: c.x(2), mean: None, rstd: c.x(3), channels };
            norm::grad(c.l, norm, c.x(0), c.y(0), c.y(1), None, c.more.after);
        }
        other => misplaced(other),
    }
}

/// Exponentials over the last axis.
pub(super) fn softmax(c: &Call<'_>) {
    match c.op {
        Op::Softmax => {
            let (rows, m) = c.matrix(0);
            softmax::softmax(c.l, c.x(0), c.y(0), rows, m);
        }
        Op::SoftmaxGrad => {
            let (rows, m) = c.matrix(0);
            softmax::softmax_grad(c.l, c.x(0), c.x(1), c.y(0), rows, m);
        }
        Op::LogSumExp => {
            let (rows, m) = c.matrix(0);
            softmax::log_sum_exp(c.l, c.x(0), c.y(0), rows, m);
        }
        other => misplaced(other),
    }
}

/// Tokens that look at earlier ones.
pub(super) fn attention(c: &Call<'_>) {
    match c.op {
        Op::Attention(attrs) => {
            let (_, channels) = c.y[0].matrix();
            let sinks = c.optional(1).filter(|_| attrs.sink);
            let extra = attention::Extra { rng: c.optional(1 + usize::from(attrs.sink)), sinks };
            attention::forward(c.l, c.x(0), &extra, c.y(0), c.y(1), attrs, channels);
        }
        Op::AttentionGrad(attrs) => {
            let ((_, channels), extra) = (c.matrix(0), attention::Extra { rng: c.optional(4), sinks: None });
            attention::backward(c.l, c.x(0), c.x(1), c.x(2), c.x(3), &extra, c.y(0), attrs, channels);
        }
        Op::CachedAttention { heads, scale, .. } => {
            let ((_, channels), sinks, scale) = (c.y[0].matrix(), c.optional(3), scale.get() as f32);
            cached_attention::launch(c.l, c.x(0), c.x(1), c.y(1), c.x(2), c.y(0), sinks, *heads, scale, channels);
        }
        Op::Rotary { heads, time, base, inverse, .. } => {
            let ((_, channels3), positions) = (c.matrix(0), c.optional(1));
            rotary::launch(c.l, c.x(0), positions, c.y(0), *heads, *time, base.get(), *inverse, channels3 / 3);
        }
        other => misplaced(other),
    }
}

/// Tokens on the way in and out.
pub(super) fn embedding(c: &Call<'_>) {
    match c.op {
        Op::Embed => {
            let ((rows, channels), tokens) = (c.matrix(1), c.x(0).elements());
            embed::embed(c.l, c.x(0), c.x(1), c.y(0), c.more.after, tokens, rows, channels);
        }
        Op::EmbedGrad { rows } => {
            let (tokens, channels) = c.matrix(1);
            embed::embed_grad(c.l, c.x(0), c.x(1), c.y(0), tokens, *rows, channels);
        }
        Op::CrossEntropy => {
            let (tokens, vocab) = c.matrix(0);
            cross_entropy::forward(c.l, c.x(0), c.x(1), c.y(0), c.y(1), tokens, vocab);
        }
        Op::CrossEntropyGrad => {
            let (tokens, vocab) = c.matrix(1);
            cross_entropy::backward(c.l, c.x(0), c.x(1), c.x(2), c.x(3), c.y(0), tokens, vocab);
        }
        other => misplaced(other),
    }
}

/// Random numbers.
pub(super) fn random(c: &Call<'_>) {
    match c.op {
        Op::Dropout { .. } => elements(c, vec![Access::Full], Instr::of(c.op, &[0]), &[c.x(0)], Some(c.x(1))),
        Op::RandomNormal { key, .. } => random::normal(c.l, c.x(0), c.y(0), *key),
        Op::RandomUniform { key, .. } => random::uniform(c.l, c.x(0), c.y(0), *key),
        other => misplaced(other),
    }
}

/// Choices of experts.
pub(super) fn selection(c: &Call<'_>) {
    match c.op {
        Op::TopK { k, skip } => {
            let (rows, extent) = c.matrix(0);
            top_k::top_k(c.l, c.x(0), c.y(0), c.y(1), rows, extent, *skip..*k);
        }
        Op::GatherLast => {
            let ((rows, extent), (_, k)) = (c.matrix(0), c.matrix(1));
            top_k::gather_last(c.l, c.x(0), c.x(1), c.y(0), rows, extent, k);
        }
        Op::ScatterLast { size } => {
            let (rows, k) = c.matrix(0);
            top_k::scatter_last(c.l, c.x(0), c.x(1), c.y(0), rows, k, *size);
        }
        Op::Count { size } => top_k::count(c.l, c.x(0), c.y(0), *size),
        Op::LimitCapacity { experts, capacity, priority } => {
            let ((tokens, k), (experts, capacity)) = (c.matrix(0), (*experts, *capacity));
            let (chosen, kept) = (c.x(0), c.y(0));
            match priority {
                CapacityPriority::Token => routing::limit_capacity(c.l, chosen, kept, tokens * k, 1, experts, capacity),
                CapacityPriority::Choice => routing::limit_capacity(c.l, chosen, kept, tokens, k, experts, capacity),
                CapacityPriority::Probability => {
                    routing::limit_capacity_by_weight(c.l, chosen, c.x(1), kept, k, experts, capacity);
                }
            }
        }
        Op::BalancedAssignment => {
            let (tokens, experts) = c.matrix(0);
            balance::launch(c.l, c.x(0), c.y(0), tokens, experts);
        }
        other => misplaced(other),
    }
}

/// Rows to the experts and back.
pub(super) fn dispatch(c: &Call<'_>) {
    match c.op {
        Op::SortByExpert { experts, .. } => routing::sort_by_expert(c.l, c.x(0), c.y(0), c.y(1), c.y(2), *experts),
        Op::Dispatch { .. } => {
            let ((tokens, channels), slots) = (c.matrix(0), c.x(2).elements());
            let weights = c.optional(3);
            routing::dispatch(c.l, c.x(0), c.x(1), weights, c.y(0), c.more.after, tokens, slots / tokens, channels);
        }
        Op::Combine { .. } => {
            let ((_, channels), weights) = (c.matrix(0), c.optional(3));
            routing::combine(c.l, c.x(0), c.x(2), weights, c.y(0), c.more.after, channels);
        }
        Op::CombineWeightGrad => {
            let ((tokens, channels), slots) = (c.matrix(0), c.x(2).elements());
            routing::combine_weight_grad(c.l, c.x(0), c.x(1), c.x(2), c.y(0), slots / tokens, channels);
        }
        other => misplaced(other),
    }
}

/// A program of one instruction, or one that only reads; its first operands are floats.
fn elements(c: &Call<'_>, accesses: Vec<Access>, last: Option<Instr>, floats: &[Arg], rng: Option<Arg>) {
    let program = Elementwise::one(c.y(0).elements(), accesses, last);
    fused::launch(c.l, &program, floats, rng, &[c.y(0)]);
}

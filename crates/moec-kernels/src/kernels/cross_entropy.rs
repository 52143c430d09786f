//! Mean cross-entropy and its gradient, alone or together. One unit owns a row of logits; the mean over tokens is added in
//! blocks of consecutive tokens, one unit per block, and then over the blocks. Targets are clamped to the vocabulary.
//!
//! Together, the unit that owns a row makes its term of the mean and its gradient, while the row is in cache, and the terms
//! are added by a second launch. Blocks and the order within them are those of the loss alone on the CPU, where one unit
//! adds all of them: that is less work than a launch.

#![allow(unsafe_code, reason = "kernel launches")]

use super::lanes::lane_numbers;
use super::{reduce, softmax};
use crate::launch::{Arg, Launcher, Split, end_item, first_item, item_step, run};
use cubecl::prelude::*;

/// Block `b` of the tokens: `sum (lse - logit of the target) * scale`.
#[cube(launch_unchecked)]
fn loss_kernel(
    logits: &[f32],
    targets: &[u32],
    lse: &[f32],
    loss: &mut [f32],
    tokens: usize,
    vocab: usize,
    blocks: usize,
    scale: f32,
    #[comptime] split: Split,
) {
    let chunk = (tokens + blocks - 1) / blocks;
    for block in range_stepped(first_item(blocks, split), end_item(blocks, split), item_step(split)) {
        let mut sum = 0.0f32.runtime();
        for n in min(block * chunk, tokens)..min((block + 1) * chunk, tokens) {
            let target = min(targets[n] as usize, vocab - 1);
            sum += lse[n] - logits[n * vocab + target];
        }
        loss[block] = sum * scale;
    }
}

/// `factor * (softmax - onehot)` of the row that starts at `base` and has that log-sum-exp.
#[cube]
fn row_grad<W: Size>(
    logits: &[Vector<f32, W>],
    dlogits: &mut [Vector<f32, W>],
    base: usize,
    cols: usize,
    lse: f32,
    target: u32,
    factor: Vector<f32, W>,
) {
    let (zero, one) = (Vector::<f32, W>::new(0.0f32), Vector::<f32, W>::new(1.0f32));
    let lanes = lane_numbers::<W>();
    let shift = Vector::<f32, W>::new(lse);
    let target = Vector::<u32, W>::new(target);
    for c in 0..cols {
        let column = Vector::<u32, W>::new(u32::cast_from(c * W::value())) + lanes;
        let p = Vector::exp(logits[base + c] - shift);
        dlogits[base + c] = factor * (p - select_many(column.equal(&target), one, zero));
    }
}

/// Extents of the logits.
#[derive(CubeType, CubeLaunch)]
struct Extents {
    tokens: usize,
    /// Vectors of a row.
    cols: usize,
    /// The last of the vocabulary.
    last: u32,
}

impl Extents {
    /// As an argument of a launch over vectors of width `w`.
    fn of(tokens: usize, vocab: usize, w: usize) -> ExtentsLaunch {
        ExtentsLaunch::new(tokens, vocab / w, (vocab - 1) as u32)
    }
}

#[cube(launch_unchecked)]
fn logits_grad_kernel<W: Size>(
    dloss: &[f32],
    logits: &[Vector<f32, W>],
    lse: &[f32],
    targets: &[u32],
    dlogits: &mut [Vector<f32, W>],
    e: &Extents,
    scale: f32,
    #[comptime] split: Split,
) {
    let factor = Vector::<f32, W>::new(dloss[0] * scale);
    for n in range_stepped(first_item(e.tokens, split), end_item(e.tokens, split), item_step(split)) {
        row_grad::<W>(logits, dlogits, n * e.cols, e.cols, lse[n], min(targets[n], e.last), factor);
    }
}

/// Of each row the term of the mean, times `scale`, and the gradient. `elements` are the logits again, one by one.
#[cube(launch_unchecked)]
fn fused_kernel<W: Size>(
    logits: &[Vector<f32, W>],
    elements: &[f32],
    targets: &[u32],
    terms: &mut [f32],
    dlogits: &mut [Vector<f32, W>],
    e: &Extents,
    scale: f32,
    factor: f32,
    #[comptime] split: Split,
) {
    let factor = Vector::<f32, W>::new(factor);
    for n in range_stepped(first_item(e.tokens, split), end_item(e.tokens, split), item_step(split)) {
        let base = n * e.cols;
        let target = min(targets[n], e.last);
        let lse = softmax::row_log_sum_exp::<W>(logits, base, e.cols);
        terms[n] = (lse - elements[base * W::value() + target as usize]) * scale;
        row_grad::<W>(logits, dlogits, base, e.cols, lse, target, factor);
    }
}

/// `scale` times the sum of the terms, added block by block.
#[cube(launch_unchecked)]
fn mean_kernel(
    terms: &mut [f32],
    loss: &mut [f32],
    tokens: usize,
    blocks: usize,
    scale: f32,
    #[comptime] split: Split,
) {
    for item in range_stepped(first_item(1, split), end_item(1, split), item_step(split)) {
        let chunk = (tokens + blocks - 1) / blocks;
        for block in 0..blocks {
            let mut sum = 0.0f32.runtime();
            for n in min(block * chunk, tokens)..min((block + 1) * chunk, tokens) {
                sum += terms[n];
            }
            // Over a term that is read already. In memory, so that the product is rounded before it is added.
            terms[block] = sum * scale;
        }
        let mut total = 0.0f32.runtime();
        for block in 0..blocks {
            total += terms[block];
        }
        loss[item] = total;
    }
}

/// Mean cross-entropy in nats, and the log-sum-exp of every row.
pub(crate) fn forward(l: &Launcher, logits: Arg, targets: Arg, loss: Arg, lse: Arg, tokens: usize, vocab: usize) {
    softmax::log_sum_exp(l, logits, lse, tokens, vocab);
    let blocks = reduce::blocks(l, 1, tokens);
    let partial = if blocks == 1 { loss } else { l.scratch().first(blocks) };
    let (scale, split) = ((1.0 / tokens as f64) as f32, l.split());
    l.launch(
        blocks,
        || "cross_entropy".to_string(),
        // SAFETY: logits hold tokens * vocab floats, targets are clamped, and there are `blocks` partial sums.
        |t| unsafe {
            run!(
                t,
                loss_kernel(
                    t.bind(logits, 1),
                    t.bind(targets, 1),
                    t.bind(lse, 1),
                    t.bind(partial, 1),
                    tokens,
                    vocab,
                    blocks,
                    scale,
                    split
                )
            );
        },
    );
    if blocks > 1 {
        reduce::add_blocks(l, partial, loss, blocks, 1);
    }
}

/// `dlogits = dloss / N * (softmax(logits) - onehot(target))`
pub(crate) fn backward(
    l: &Launcher,
    dloss: Arg,
    logits: Arg,
    lse: Arg,
    targets: Arg,
    dlogits: Arg,
    tokens: usize,
    vocab: usize,
) {
    let w = l.width(&[vocab]);
    let (scale, split) = ((1.0 / tokens as f64) as f32, l.split());
    l.launch(
        tokens,
        || format!("cross_entropy_grad w{w}"),
        // SAFETY: logits and dlogits hold tokens * cols vectors, lse and targets one element per token.
        |t| unsafe {
            run!(
                t,
                logits_grad_kernel(
                    w,
                    t.bind(dloss, 1),
                    t.bind(logits, w),
                    t.bind(lse, 1),
                    t.bind(targets, 1),
                    t.bind(dlogits, w),
                    Extents::of(tokens, vocab, w),
                    scale,
                    split
                )
            );
        },
    );
}

/// Mean cross-entropy in nats, and `dloss` times its gradient.
pub(crate) fn with_grad(
    l: &Launcher,
    logits: Arg,
    targets: Arg,
    dloss: f32,
    loss: Arg,
    dlogits: Arg,
    tokens: usize,
    vocab: usize,
) {
    let w = l.width(&[vocab]);
    let (scale, split) = ((1.0 / tokens as f64) as f32, l.split());
    // A device with many units adds partial sums in the first half of the scratch buffer.
    let terms = l.scratch().halves()[1].first(tokens);
    let term_scale = if l.is_cpu() { 1.0 } else { scale };
    l.launch(
        tokens,
        || format!("fused_cross_entropy w{w}"),
        // SAFETY: logits and dlogits hold tokens * cols vectors, targets one element per token and are clamped, and half
        // of the scratch buffer has room for a term of each of the tokens that inference allows.
        |t| unsafe {
            run!(
                t,
                fused_kernel(
                    w,
                    t.bind(logits, w),
                    t.bind(logits, 1),
                    t.bind(targets, 1),
                    t.bind(terms, 1),
                    t.bind(dlogits, w),
                    Extents::of(tokens, vocab, w),
                    term_scale,
                    dloss * scale,
                    split
                )
            );
        },
    );
    if !l.is_cpu() {
        return reduce::sum_all(l, terms, loss);
    }
    let blocks = reduce::blocks(l, 1, tokens);
    l.launch(
        1,
        || "cross_entropy_mean".to_string(),
        // SAFETY: there is a term of each token, and the loss is one float.
        |t| unsafe {
            let (terms, loss) = (t.bind(terms, 1), t.bind(loss, 1));
            run!(t, mean_kernel(terms, loss, tokens, blocks, scale, split));
        },
    );
}

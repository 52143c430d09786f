//! Mean cross-entropy and its gradient. One unit owns a row of logits; the mean over tokens is added in blocks of
//! consecutive tokens, one unit per block, and then over the blocks. Targets are clamped to the vocabulary.

#![allow(unsafe_code, reason = "kernel launches")]

use super::lanes::lane_numbers;
use super::{reduce, softmax};
use crate::launch::{Arg, Launcher, Split, end_item, first_item, item_step};
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

#[cube(launch_unchecked)]
fn logits_grad_kernel<W: Size>(
    dloss: &[f32],
    logits: &[Vector<f32, W>],
    lse: &[f32],
    targets: &[u32],
    dlogits: &mut [Vector<f32, W>],
    tokens: usize,
    cols: usize,
    last: u32,
    scale: f32,
    #[comptime] split: Split,
) {
    let factor = Vector::<f32, W>::new(dloss[0] * scale);
    let (zero, one) = (Vector::<f32, W>::new(0.0f32), Vector::<f32, W>::new(1.0f32));
    let lanes = lane_numbers::<W>();
    for n in range_stepped(first_item(tokens, split), end_item(tokens, split), item_step(split)) {
        let base = n * cols;
        let shift = Vector::<f32, W>::new(lse[n]);
        let target = Vector::<u32, W>::new(min(targets[n], last));
        for c in 0..cols {
            let column = Vector::<u32, W>::new(u32::cast_from(c * W::value())) + lanes;
            let p = Vector::exp(logits[base + c] - shift);
            dlogits[base + c] = factor * (p - select_many(column.equal(&target), one, zero));
        }
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
            loss_kernel::launch_unchecked(
                t.client,
                t.count(),
                t.dim(),
                t.bind(logits, 1),
                t.bind(targets, 1),
                t.bind(lse, 1),
                t.bind(partial, 1),
                tokens,
                vocab,
                blocks,
                scale,
                split,
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
    let (cols, split) = (vocab / w, l.split());
    let scale = (1.0 / tokens as f64) as f32;
    l.launch(
        tokens,
        || format!("cross_entropy_grad w{w}"),
        // SAFETY: logits and dlogits hold tokens * cols vectors, lse and targets one element per token.
        |t| unsafe {
            logits_grad_kernel::launch_unchecked(
                t.client,
                t.count(),
                t.dim(),
                w,
                t.bind(dloss, 1),
                t.bind(logits, w),
                t.bind(lse, 1),
                t.bind(targets, 1),
                t.bind(dlogits, w),
                tokens,
                cols,
                (vocab - 1) as u32,
                scale,
                split,
            );
        },
    );
}

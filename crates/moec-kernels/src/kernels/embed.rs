//! Embedding lookup and its gradient.
//!
//! Forward: one unit owns a vector of a token's row. Gradient: one unit owns a range of columns of the whole table and
//! adds the tokens in order, so that two tokens with the same id never meet. Ids are clamped to the table.

#![allow(unsafe_code, reason = "kernel launches")]

use super::fill;
use super::fused::{After, Program, dropout_keys, go_on, go_on_with};
use crate::launch::{Arg, Launcher, Split, end_item, first_item, item_step};
use cubecl::prelude::*;

#[cube(launch_unchecked)]
fn embed_kernel<W: Size>(
    ids: &[u32],
    table: &[Vector<f32, W>],
    vectors_after: &Sequence<Box<[Vector<f32, W>]>>,
    scalars_after: &Sequence<Box<[f32]>>,
    rng: &Sequence<Box<[u32]>>,
    keys: &Sequence<u32>,
    y: &mut [Vector<f32, W>],
    more: &mut Sequence<Box<[Vector<f32, W>]>>,
    tokens: usize,
    last: usize,
    #[comptime] cols: usize,
    #[comptime] after: Program,
    #[comptime] split: Split,
) {
    let mut keys_a = Sequence::<Vector<u32, W>>::new();
    let mut keys_b = Sequence::<Vector<u32, W>>::new();
    dropout_keys::<W>(rng, keys, &mut keys_a, &mut keys_b, comptime!(after.keys));
    let items = tokens * cols;
    for item in range_stepped(first_item(items, split), end_item(items, split), item_step(split)) {
        let id = min(ids[item / cols] as usize, last);
        let value = table[id * cols + item % cols];
        y[item] =
            go_on::<W>(item, value, vectors_after, scalars_after, &keys_a, &keys_b, more, comptime!(after.clone()));
    }
}

#[cube(launch_unchecked)]
fn embed_grad_kernel<W: Size>(
    ids: &[u32],
    dy: &[Vector<f32, W>],
    dtable: &mut [Vector<f32, W>],
    tokens: usize,
    last: usize,
    #[comptime] cols: usize,
    #[comptime] split: Split,
) {
    let first = first_item(cols, split);
    let end = end_item(cols, split);
    let step = item_step(split);
    for t in 0..tokens {
        let row = min(ids[t] as usize, last) * cols;
        for c in range_stepped(first, end, step) {
            dtable[row + c] = dtable[row + c] + dy[t * cols + c];
        }
    }
}

/// `y[n] = table[ids[n]]`
pub(crate) fn embed(
    l: &Launcher,
    ids: Arg,
    table: Arg,
    y: Arg,
    after: Option<After<'_>>,
    tokens: usize,
    rows: usize,
    channels: usize,
) {
    let w = l.width(&[channels]);
    let (cols, split) = (channels / w, l.split());
    go_on_with(l, y, after, Some(w), |then| {
        l.launch(
            tokens * cols,
            || format!("embed w{w} cols {cols}{then}"),
            // SAFETY: y holds tokens * cols vectors, table rows * cols, and ids are clamped to the table.
            |t| unsafe {
                embed_kernel::launch_unchecked(
                    t.client,
                    t.count(),
                    t.dim(),
                    w,
                    t.bind(ids, 1),
                    t.bind(table, w),
                    t.bind_all(&then.vectors, w),
                    t.bind_all(&then.scalars, 1),
                    t.bind_all(&then.rng, 1),
                    then.keys.iter().copied().collect(),
                    t.bind(y, w),
                    t.bind_all(then.more, w),
                    tokens,
                    rows - 1,
                    cols,
                    then.program.clone(),
                    split,
                );
            },
        )
    });
}

/// `dtable[ids[n]] += dy[n]` for all n in order, from 0.
pub(crate) fn embed_grad(l: &Launcher, ids: Arg, dy: Arg, dtable: Arg, tokens: usize, rows: usize, channels: usize) {
    fill::launch(l, dtable, 0.0);
    let w = l.width(&[channels]);
    let (cols, split) = (channels / w, l.split());
    l.launch(
        cols,
        || format!("embed_grad w{w} cols {cols}"),
        // SAFETY: as for `embed`.
        |t| unsafe {
            let (ids, dy, dtable) = (t.bind(ids, 1), t.bind(dy, w), t.bind(dtable, w));
            embed_grad_kernel::launch_unchecked(
                t.client,
                t.count(),
                t.dim(),
                w,
                ids,
                dy,
                dtable,
                tokens,
                rows - 1,
                cols,
                split,
            );
        },
    );
}

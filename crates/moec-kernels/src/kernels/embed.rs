//! Embedding lookup and its gradient.
//!
//! Forward: one unit owns a vector of a token's row. Gradient: one unit owns a range of columns of the whole table and
//! adds the tokens in order, so that two tokens with the same id never meet. Ids are clamped to the table.

#![allow(unsafe_code, reason = "kernel launches")]

use super::fill;
use super::fused::{After, Elementwise, dropout_keys, go_on, go_on_with};
use crate::launch::{Arg, Launcher, Split, end_item, first_item, item_step, run};
use cubecl::prelude::*;

#[cube(launch_unchecked)]
fn embed_kernel<W: Size>(
    ids: &[u32],
    table: &[Vector<f32, W>],
    y: &mut [Vector<f32, W>],
    after: &mut Elementwise<W>,
    tokens: usize,
    last: usize,
    #[comptime] cols: usize,
    #[comptime] split: Split,
) {
    let keys = dropout_keys::<W>(&*after);
    let items = tokens * cols;
    for item in range_stepped(first_item(items, split), end_item(items, split), item_step(split)) {
        let id = min(ids[item / cols] as usize, last);
        let value = table[id * cols + item % cols];
        y[item] = go_on::<W>(after, &keys, item, value);
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
                run!(
                    t,
                    embed_kernel(
                        w,
                        t.bind(ids, 1),
                        t.bind(table, w),
                        t.bind(y, w),
                        then.bind(t, w),
                        tokens,
                        rows - 1,
                        cols,
                        split
                    )
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
            run!(t, embed_grad_kernel(w, ids, dy, dtable, tokens, rows - 1, cols, split));
        },
    );
}

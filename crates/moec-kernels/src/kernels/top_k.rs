//! Selection along the last axis. Ties go to the lower index, NaN counts as -inf, an index of -1 is skipped.
//!
//! - `top_k` by passes: one unit owns a row; pass `j` finds the largest element that comes after the one of pass
//!   `j - 1`. `k` times the row; the choice for short rows (experts of a token).
//! - `top_k` by rank: one unit owns an element; its rank is the number of elements that come before it, and if it is
//!   below `k` it is the place in the result, which no other element has. For long rows (tokens of an expert).
//! - `gather_last`, `scatter_last`: one unit owns an element of the result, or a row of it.
//! - `count`: one unit owns a bin and reads all indices.

#![allow(unsafe_code, reason = "kernel launches")]

use crate::launch::{Arg, Launcher, Split, end_item, first_item, item_step};
use cubecl::prelude::*;

/// Rows longer than this are ranked.
const LONGEST_PASS: usize = 256;

/// A value as it is compared: NaN is the smallest. `lowest` is -inf, an argument of the kernels because WGSL has no
/// literal for it.
#[cube]
fn sort_key(x: f32, lowest: f32) -> f32 {
    select(x == x, x, lowest)
}

#[cube(launch_unchecked)]
fn top_k_passes(
    x: &[f32],
    values: &mut [f32],
    indices: &mut [i32],
    rows: usize,
    extent: usize,
    k: usize,
    lowest: f32,
    #[comptime] split: Split,
) {
    for r in range_stepped(first_item(rows, split), end_item(rows, split), item_step(split)) {
        let base = r * extent;
        let mut previous = 0.0f32.runtime();
        // One more than the index found last.
        let mut after = 0usize.runtime();
        for j in 0..k {
            let mut best = 0.0f32.runtime();
            let mut found = extent;
            for e in 0..extent {
                let v = sort_key(x[base + e], lowest);
                let candidate = j == 0 || v < previous || (v == previous && e >= after);
                let better = found == extent || v > best;
                if candidate && better {
                    best = v;
                    found = e;
                }
            }
            values[r * k + j] = x[base + found];
            indices[r * k + j] = i32::cast_from(found);
            previous = best;
            after = found + 1;
        }
    }
}

#[cube(launch_unchecked)]
fn top_k_ranks(
    x: &[f32],
    values: &mut [f32],
    indices: &mut [i32],
    rows: usize,
    extent: usize,
    k: usize,
    lowest: f32,
    #[comptime] split: Split,
) {
    let items = rows * extent;
    for item in range_stepped(first_item(items, split), end_item(items, split), item_step(split)) {
        let r = item / extent;
        let e = item % extent;
        let base = r * extent;
        let v = sort_key(x[item], lowest);
        let mut rank = 0u32.runtime();
        for other in 0..e {
            rank += select(sort_key(x[base + other], lowest) >= v, 1u32, 0u32);
        }
        for other in e + 1..extent {
            rank += select(sort_key(x[base + other], lowest) > v, 1u32, 0u32);
        }
        let rank = rank as usize;
        if rank < k {
            values[r * k + rank] = x[item];
            indices[r * k + rank] = i32::cast_from(e);
        }
    }
}

#[cube(launch_unchecked)]
fn gather_last_kernel(
    x: &[f32],
    indices: &[i32],
    y: &mut [f32],
    n: usize,
    extent: usize,
    k: usize,
    #[comptime] split: Split,
) {
    for slot in range_stepped(first_item(n, split), end_item(n, split), item_step(split)) {
        let index = indices[slot];
        let mut value = 0.0f32.runtime();
        if index >= 0 {
            value = x[slot / k * extent + min(index as usize, extent - 1)];
        }
        y[slot] = value;
    }
}

#[cube(launch_unchecked)]
fn scatter_last_kernel(
    values: &[f32],
    indices: &[i32],
    y: &mut [f32],
    rows: usize,
    k: usize,
    size: usize,
    #[comptime] split: Split,
) {
    for r in range_stepped(first_item(rows, split), end_item(rows, split), item_step(split)) {
        for j in 0..size {
            y[r * size + j] = 0.0f32.runtime();
        }
        for j in 0..k {
            let index = indices[r * k + j];
            if index >= 0 {
                let at = r * size + min(index as usize, size - 1);
                y[at] = y[at] + values[r * k + j];
            }
        }
    }
}

#[cube(launch_unchecked)]
fn count_kernel(indices: &[i32], counts: &mut [f32], n: usize, size: usize, #[comptime] split: Split) {
    for bin in range_stepped(first_item(size, split), end_item(size, split), item_step(split)) {
        let wanted = i32::cast_from(bin);
        let mut count = 0u32.runtime();
        for i in 0..n {
            count += select(indices[i] == wanted, 1u32, 0u32);
        }
        counts[bin] = f32::cast_from(count);
    }
}

/// The k largest of each row in decreasing order, with their indices.
pub(crate) fn top_k(l: &Launcher, x: Arg, values: Arg, indices: Arg, rows: usize, extent: usize, k: usize) {
    let split = l.split();
    if extent <= LONGEST_PASS {
        l.launch(
            rows,
            || "top_k passes".to_string(),
            // SAFETY: x holds rows * extent elements and the results rows * k; k <= extent, so every pass finds one.
            |t| unsafe {
                let (x, values, indices) = (t.bind(x, 1), t.bind(values, 1), t.bind(indices, 1));
                top_k_passes::launch_unchecked(
                    t.client,
                    t.count(),
                    t.dim(),
                    x,
                    values,
                    indices,
                    rows,
                    extent,
                    k,
                    f32::NEG_INFINITY,
                    split,
                );
            },
        );
    } else {
        l.launch(
            rows * extent,
            || "top_k ranks".to_string(),
            // SAFETY: as above; ranks below k index the results.
            |t| unsafe {
                let (x, values, indices) = (t.bind(x, 1), t.bind(values, 1), t.bind(indices, 1));
                top_k_ranks::launch_unchecked(
                    t.client,
                    t.count(),
                    t.dim(),
                    x,
                    values,
                    indices,
                    rows,
                    extent,
                    k,
                    f32::NEG_INFINITY,
                    split,
                );
            },
        );
    }
}

/// `y[n, k] = x[n, indices[n, k]]`
pub(crate) fn gather_last(l: &Launcher, x: Arg, indices: Arg, y: Arg, rows: usize, extent: usize, k: usize) {
    let (n, split) = (rows * k, l.split());
    l.launch(
        n,
        || "gather_last".to_string(),
        // SAFETY: indices and y hold n elements, x rows * extent, and indices are clamped.
        |t| unsafe {
            let (x, indices, y) = (t.bind(x, 1), t.bind(indices, 1), t.bind(y, 1));
            gather_last_kernel::launch_unchecked(t.client, t.count(), t.dim(), x, indices, y, n, extent, k, split);
        },
    );
}

/// `y[n, indices[n, k]] += values[n, k]` for all k in order, from 0.
pub(crate) fn scatter_last(l: &Launcher, values: Arg, indices: Arg, y: Arg, rows: usize, k: usize, size: usize) {
    let split = l.split();
    l.launch(
        rows,
        || "scatter_last".to_string(),
        // SAFETY: values and indices hold rows * k elements, y rows * size, and indices are clamped.
        |t| unsafe {
            let (values, indices, y) = (t.bind(values, 1), t.bind(indices, 1), t.bind(y, 1));
            scatter_last_kernel::launch_unchecked(
                t.client,
                t.count(),
                t.dim(),
                values,
                indices,
                y,
                rows,
                k,
                size,
                split,
            );
        },
    );
}

/// How often each index occurs.
pub(crate) fn count(l: &Launcher, indices: Arg, counts: Arg, size: usize) {
    let (n, split) = (indices.elements(), l.split());
    l.launch(
        size,
        || "count".to_string(),
        // SAFETY: indices hold n elements and counts `size`.
        |t| unsafe {
            let (indices, counts) = (t.bind(indices, 1), t.bind(counts, 1));
            count_kernel::launch_unchecked(t.client, t.count(), t.dim(), indices, counts, n, size, split);
        },
    );
}

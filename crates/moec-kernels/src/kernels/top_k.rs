//! Selection along the last axis. Ties go to the lower index, NaN comes after everything, and an index outside of its
//! range, such as -1, is skipped.
//!
//! - `top_k` by passes: one unit owns a row; pass `j` finds the largest element that comes after the one of pass
//!   `j - 1`. `k` times the row: for few of a row, and where the first are left out.
//! - `top_k` by heap: one unit owns a row and keeps the best `k` so far in its part of the result, the worst of them
//!   first, which it sorts at the end. At most `log k` times the row: for many of a row, on the CPU.
//! - `top_k` by rank: one unit owns an element; its rank is the number of elements that come before it, and if it is
//!   below `k` it is the place in the result, which no other element has. The square of the row, but one unit per
//!   element: for many of a row, on a graphics device.
//! - `gather_last`, `scatter_last`: one unit owns an element of the result, or a row of it.
//! - `count`: one unit owns a bin and reads all indices.

#![allow(unsafe_code, reason = "kernel launches")]

use super::order::order_key;
use crate::launch::{Arg, Launcher, Split, end_item, first_item, item_step, run};
use cubecl::prelude::*;
use std::ops::Range;

/// Most passes over a row.
const MOST_PASSES: usize = 8;

/// Rows up to this length take passes on a graphics device, however many.
const SHORT_ROW: usize = 64;

#[cube(launch_unchecked)]
fn top_k_passes(
    x: &[f32],
    values: &mut [f32],
    indices: &mut [i32],
    rows: usize,
    extent: usize,
    skip: usize,
    k: usize,
    #[comptime] split: Split,
) {
    for r in range_stepped(first_item(rows, split), end_item(rows, split), item_step(split)) {
        let base = r * extent;
        let mut previous = 0u32.runtime();
        // One more than the index found last.
        let mut after = 0usize.runtime();
        for j in 0..k {
            let mut best = 0u32.runtime();
            let mut found = extent;
            for e in 0..extent {
                let key = order_key(x[base + e]);
                let candidate = j == 0 || key < previous || (key == previous && e >= after);
                let better = found == extent || key > best;
                if candidate && better {
                    best = key;
                    found = e;
                }
            }
            if j >= skip {
                values[r * (k - skip) + j - skip] = x[base + found];
                indices[r * (k - skip) + j - skip] = i32::cast_from(found);
            }
            previous = best;
            after = found + 1;
        }
    }
}

/// Whether element `a` of the results comes after element `b`.
#[cube]
fn comes_after(values: &[f32], indices: &[i32], a: usize, b: usize) -> bool {
    let (key_a, key_b) = (order_key(values[a]), order_key(values[b]));
    key_a < key_b || (key_a == key_b && indices[a] > indices[b])
}

/// Exchanges two elements of the results.
#[cube]
fn exchange(values: &mut [f32], indices: &mut [i32], a: usize, b: usize) {
    let (value, index) = (values[a], indices[a]);
    values[a] = values[b];
    indices[a] = indices[b];
    values[b] = value;
    indices[b] = index;
}

/// Moves element `start` of the heap of `count` elements at `base` down to where nothing below it comes after it.
#[cube]
fn sift_down(values: &mut [f32], indices: &mut [i32], base: usize, start: usize, count: usize) {
    let mut at = start;
    let mut child = 2 * at + 1;
    while child < count {
        if child + 1 < count && comes_after(&*values, &*indices, base + child + 1, base + child) {
            child += 1;
        }
        if comes_after(&*values, &*indices, base + child, base + at) {
            exchange(values, indices, base + child, base + at);
            at = child;
            child = 2 * at + 1;
        } else {
            child = count;
        }
    }
}

#[cube(launch_unchecked)]
fn top_k_heap(
    x: &[f32],
    values: &mut [f32],
    indices: &mut [i32],
    rows: usize,
    extent: usize,
    k: usize,
    #[comptime] split: Split,
) {
    for r in range_stepped(first_item(rows, split), end_item(rows, split), item_step(split)) {
        let base = r * k;
        for e in 0..k {
            values[base + e] = x[r * extent + e];
            indices[base + e] = i32::cast_from(e);
        }
        for i in 0..k / 2 {
            sift_down(values, indices, base, k / 2 - 1 - i, k);
        }
        let mut worst = order_key(values[base]);
        for e in k..extent {
            let v = x[r * extent + e];
            // An equal element stands before this one.
            if order_key(v) > worst {
                values[base] = v;
                indices[base] = i32::cast_from(e);
                sift_down(values, indices, base, 0usize, k);
                worst = order_key(values[base]);
            }
        }
        for i in 1..k {
            exchange(values, indices, base, base + k - i);
            sift_down(values, indices, base, 0usize, k - i);
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
    skip: usize,
    k: usize,
    #[comptime] split: Split,
) {
    let items = rows * extent;
    for item in range_stepped(first_item(items, split), end_item(items, split), item_step(split)) {
        let r = item / extent;
        let e = item % extent;
        let base = r * extent;
        let key = order_key(x[item]);
        let mut rank = 0u32.runtime();
        for other in 0..e {
            rank += select(order_key(x[base + other]) >= key, 1u32, 0u32);
        }
        for other in e + 1..extent {
            rank += select(order_key(x[base + other]) > key, 1u32, 0u32);
        }
        let rank = rank as usize;
        if rank >= skip && rank < k {
            values[r * (k - skip) + rank - skip] = x[item];
            indices[r * (k - skip) + rank - skip] = i32::cast_from(e);
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
        if index >= 0 && (index as usize) < extent {
            value = x[slot / k * extent + index as usize];
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
            if index >= 0 && (index as usize) < size {
                let at = r * size + index as usize;
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

/// Those of each row in decreasing order that have these ranks, from 0, with their indices.
pub(crate) fn top_k(l: &Launcher, x: Arg, values: Arg, indices: Arg, rows: usize, extent: usize, ranks: Range<usize>) {
    let (split, skip, k) = (l.split(), ranks.start, ranks.end);
    // SAFETY, of all three: x holds rows * extent elements and the results rows * (k - skip); skip < k <= extent, so every
    // pass finds an element, heaps are filled, and ranks from skip to k index the results.
    if k <= MOST_PASSES || skip > 0 && l.is_cpu() || extent <= SHORT_ROW && !l.is_cpu() {
        l.launch(
            rows,
            || "top_k passes".to_string(),
            |t| unsafe {
                let (x, values, indices) = (t.bind(x, 1), t.bind(values, 1), t.bind(indices, 1));
                run!(t, top_k_passes(x, values, indices, rows, extent, skip, k, split));
            },
        );
    } else if l.is_cpu() {
        l.launch(
            rows,
            || "top_k heap".to_string(),
            |t| unsafe {
                let (x, values, indices) = (t.bind(x, 1), t.bind(values, 1), t.bind(indices, 1));
                run!(t, top_k_heap(x, values, indices, rows, extent, k, split));
            },
        );
    } else {
        l.launch(
            rows * extent,
            || "top_k ranks".to_string(),
            |t| unsafe {
                let (x, values, indices) = (t.bind(x, 1), t.bind(values, 1), t.bind(indices, 1));
                run!(t, top_k_ranks(x, values, indices, rows, extent, skip, k, split));
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
        // SAFETY: indices and y hold n elements, x rows * extent, and indices are compared with it.
        |t| unsafe {
            let (x, indices, y) = (t.bind(x, 1), t.bind(indices, 1), t.bind(y, 1));
            run!(t, gather_last_kernel(x, indices, y, n, extent, k, split));
        },
    );
}

/// `y[n, indices[n, k]] += values[n, k]` for all k in order, from 0.
pub(crate) fn scatter_last(l: &Launcher, values: Arg, indices: Arg, y: Arg, rows: usize, k: usize, size: usize) {
    let split = l.split();
    l.launch(
        rows,
        || "scatter_last".to_string(),
        // SAFETY: values and indices hold rows * k elements, y rows * size, and indices are compared with it.
        |t| unsafe {
            let (values, indices, y) = (t.bind(values, 1), t.bind(indices, 1), t.bind(y, 1));
            run!(t, scatter_last_kernel(values, indices, y, rows, k, size, split));
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
            run!(t, count_kernel(indices, counts, n, size, split));
        },
    );
}

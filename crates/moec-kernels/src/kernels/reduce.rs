//! Sums.
//!
//! - `sum_middle`: `[outer, middle, inner]` to `[outer, inner]`. One unit owns a vector of consecutive `inner` elements
//!   and adds over `middle` in order. Covers sums over leading axes and over a block of axes in the middle.
//! - `sum_rows`: `[rows, cols]` to `[rows]`. One unit owns a row.
//! - `sum_blocks`: everything (or all squares) to one number per block of consecutive elements, of several tensors in a
//!   launch.
//! - `sum_strided`: any set of axes, one unit per result element, index arithmetic throughout; for the patterns that
//!   the others do not cover.
//!
//! Where there are few results, the summed axis is cut into blocks whose partial sums are added by a second launch. The
//! number of blocks depends on the shape and the kind of device, never on the number of units.

#![allow(unsafe_code, reason = "kernel launches")]

use super::fill;
use super::lanes::lane_sum;
use crate::launch::{Arg, Launcher, SCRATCH_ELEMENTS, Split, end_item, first_item, item_step, run};
use cubecl::prelude::*;
use moec_ir::Invariant;

/// Most tensors whose blocks one launch sums: the kernel is written out for each of them.
const SUMMED_TOGETHER: usize = 8;

#[cube(launch_unchecked)]
fn sum_middle_kernel<W: Size>(
    x: &[Vector<f32, W>],
    y: &mut [Vector<f32, W>],
    outer: usize,
    middle: usize,
    inner: usize,
    blocks: usize,
    #[comptime] split: Split,
) {
    let chunk = (middle + blocks - 1) / blocks;
    let items = outer * blocks * inner;
    for item in range_stepped(first_item(items, split), end_item(items, split), item_step(split)) {
        let i = item % inner;
        let block = item / inner % blocks;
        let o = item / inner / blocks;
        let mut sum = Vector::<f32, W>::new(0.0f32);
        for m in min(block * chunk, middle)..min((block + 1) * chunk, middle) {
            sum += x[(o * middle + m) * inner + i];
        }
        y[item] = sum;
    }
}

#[cube(launch_unchecked)]
fn sum_rows_kernel<W: Size>(x: &[Vector<f32, W>], y: &mut [f32], rows: usize, cols: usize, #[comptime] split: Split) {
    for r in range_stepped(first_item(rows, split), end_item(rows, split), item_step(split)) {
        let mut sum = Vector::<f32, W>::new(0.0f32);
        for c in 0..cols {
            sum += x[r * cols + c];
        }
        y[r] = lane_sum::<W>(sum);
    }
}

/// Several tensors at once: block `b` of tensor `t` goes to `y[firsts[t] + b]`.
#[cube(launch_unchecked)]
fn sum_blocks_kernel<W: Size>(
    tensors: &Sequence<Box<[Vector<f32, W>]>>,
    y: &mut [f32],
    lengths: &Sequence<usize>,
    counts: &Sequence<usize>,
    firsts: &Sequence<usize>,
    #[comptime] number: usize,
    #[comptime] square: bool,
    #[comptime] split: Split,
) {
    #[unroll]
    for t in 0..number {
        let (n, blocks, first) = (*lengths.index(t), *counts.index(t), *firsts.index(t));
        let chunk = (n + blocks - 1) / blocks;
        for block in range_stepped(first_item(blocks, split), end_item(blocks, split), item_step(split)) {
            let mut sum = Vector::<f32, W>::new(0.0f32);
            for i in min(block * chunk, n)..min((block + 1) * chunk, n) {
                let v = tensors[t][i];
                if comptime!(square) {
                    sum = fma(v, v, sum);
                } else {
                    sum += v;
                }
            }
            y[first + block] = lane_sum::<W>(sum);
        }
    }
}

/// `kept` and `summed` hold the extent and stride of each axis, from the last to the first.
#[cube(launch_unchecked)]
fn sum_strided_kernel(
    x: &[f32],
    y: &mut [f32],
    n: usize,
    terms: usize,
    #[comptime] kept: Vec<(usize, usize)>,
    #[comptime] summed: Vec<(usize, usize)>,
    #[comptime] split: Split,
) {
    for i in range_stepped(first_item(n, split), end_item(n, split), item_step(split)) {
        let mut rest = i;
        let mut base = 0usize.runtime();
        #[unroll]
        for axis in 0..comptime!(kept.len()) {
            let (extent, stride) = comptime!(kept[axis]);
            base += rest % extent * stride;
            rest /= extent;
        }
        let mut sum = 0.0f32.runtime();
        for term in 0..terms {
            let mut rest = term;
            let mut from = base;
            #[unroll]
            for axis in 0..comptime!(summed.len()) {
                let (extent, stride) = comptime!(summed[axis]);
                from += rest % extent * stride;
                rest /= extent;
            }
            sum += x[from];
        }
        y[i] = sum;
    }
}

/// How many partial sums to make of `terms` terms when `items` results are wanted: enough items to occupy the device,
/// and at least 32 terms in each.
pub(crate) fn blocks(l: &Launcher, items: usize, terms: usize) -> usize {
    let wanted = if l.is_cpu() { 8 } else { 2048 };
    (wanted / items.max(1)).min(terms / 32).max(1)
}

/// Sum of `[outer, middle, inner]` over the middle axis.
pub(crate) fn sum_middle(l: &Launcher, x: Arg, y: Arg, outer: usize, middle: usize, inner: usize) {
    let w = l.width(&[inner]);
    let mut blocks = blocks(l, outer * inner / w, middle);
    if outer * inner * blocks > SCRATCH_ELEMENTS {
        blocks = 1;
    }
    if blocks == 1 {
        sum_middle_pass(l, x, y, outer, middle, inner, 1, w);
    } else {
        let partial = l.scratch().first(outer * blocks * inner);
        sum_middle_pass(l, x, partial, outer, middle, inner, blocks, w);
        sum_middle_pass(l, partial, y, outer, blocks, inner, 1, w);
    }
}

/// Adds `blocks` partial results of `inner` elements each, in one launch and without scratch.
pub(crate) fn add_blocks(l: &Launcher, partial: Arg, y: Arg, blocks: usize, inner: usize) {
    sum_middle_pass(l, partial, y, 1, blocks, inner, 1, l.width(&[inner]));
}

fn sum_middle_pass(l: &Launcher, x: Arg, y: Arg, outer: usize, middle: usize, inner: usize, blocks: usize, w: usize) {
    let (inner, split) = (inner / w, l.split());
    l.launch(
        outer * blocks * inner,
        || format!("sum_middle w{w}"),
        // SAFETY: x holds outer * middle * inner vectors and y outer * blocks * inner.
        |t| unsafe {
            run!(t, sum_middle_kernel(w, t.bind(x, w), t.bind(y, w), outer, middle, inner, blocks, split));
        },
    );
}

/// Sum of each row of `[rows, cols]`.
fn sum_rows(l: &Launcher, x: Arg, y: Arg, rows: usize, cols: usize) {
    let w = l.width(&[cols]);
    let (cols, split) = (cols / w, l.split());
    l.launch(
        rows,
        || format!("sum_rows w{w}"),
        // SAFETY: x holds rows * cols vectors and y rows floats.
        |t| unsafe {
            run!(t, sum_rows_kernel(w, t.bind(x, w), t.bind(y, 1), rows, cols, split));
        },
    );
}

/// A tensor whose blocks are summed to consecutive elements.
#[derive(Clone, Copy)]
struct Blocked {
    x: Arg,
    blocks: usize,
    /// Where the sum of the first block goes.
    first: usize,
}

/// Sums of the blocks of some tensors, or of their squares, to `y`. Tensors that are read in vectors of equal width share
/// launches.
fn sum_blocks(l: &Launcher, tensors: &[Blocked], y: Arg, square: bool) {
    let split = l.split();
    for (w, together) in l.by_width(tensors.iter().copied(), |t| t.x.elements(), SUMMED_TOGETHER) {
        let number = together.len();
        l.launch(
            together.iter().map(|t| t.blocks).max().invariant("a group has a tensor"),
            || format!("{} of {number} w{w}", if square { "sum_squares" } else { "sum_blocks" }),
            // SAFETY: a tensor holds elements / w vectors, and y its blocks from its first on.
            |t| unsafe {
                run!(
                    t,
                    sum_blocks_kernel(
                        w,
                        t.bind_all(together.iter().map(|t| &t.x), w),
                        t.bind(y, 1),
                        together.iter().map(|t| t.x.elements() / w).collect(),
                        together.iter().map(|t| t.blocks).collect(),
                        together.iter().map(|t| t.first).collect(),
                        number,
                        square,
                        split
                    )
                );
            },
        );
    }
}

/// Sum of all elements.
pub(crate) fn sum_all(l: &Launcher, x: Arg, y: Arg) {
    sum_all_over(l, x, y, l.scratch());
}

/// Sum of all elements, with room for partial sums.
fn sum_all_over(l: &Launcher, x: Arg, y: Arg, room: Arg) {
    let whole = |x: Arg| Blocked { x, blocks: 1, first: 0 };
    let blocks = blocks(l, 1, x.elements() / 16);
    if blocks == 1 {
        sum_blocks(l, &[whole(x)], y, false);
    } else {
        let partial = room.first(blocks);
        sum_blocks(l, &[Blocked { x, blocks, first: 0 }], partial, false);
        sum_blocks(l, &[whole(partial)], y, false);
    }
}

/// Sum over the given axes of a tensor of that shape.
pub(crate) fn sum(l: &Launcher, x: Arg, y: Arg, shape: &[usize], axes: &[usize]) {
    // Axes of extent 1 are summed as well as kept; the rest must be one contiguous block for the fast kernels.
    let summed = |axis: usize| axes.contains(&axis);
    let matters: Vec<usize> = (0..shape.len()).filter(|&i| shape[i] != 1).collect();
    let block: Vec<usize> = (0..matters.len()).filter(|&i| summed(matters[i])).collect();
    let (Some(&first), Some(&last)) = (block.first(), block.last()) else {
        return super::copy::launch(l, x, y);
    };
    let extent = |range: std::ops::Range<usize>| -> usize { matters[range].iter().map(|&i| shape[i]).product() };
    let (outer, middle, inner) = (extent(0..first), extent(first..last + 1), extent(last + 1..matters.len()));
    if block.len() != last + 1 - first {
        sum_strided(l, x, y, shape, axes);
    } else if outer == 1 && inner == 1 {
        sum_all(l, x, y);
    } else if inner == 1 {
        sum_rows(l, x, y, outer, middle);
    } else {
        sum_middle(l, x, y, outer, middle, inner);
    }
}

fn sum_strided(l: &Launcher, x: Arg, y: Arg, shape: &[usize], axes: &[usize]) {
    let (mut stride, mut kept, mut summed) = (1, Vec::new(), Vec::new());
    for (axis, &extent) in shape.iter().enumerate().rev() {
        if axes.contains(&axis) { &mut summed } else { &mut kept }.push((extent, stride));
        stride *= extent;
    }
    let (n, split) = (y.elements(), l.split());
    let terms = x.elements() / n.max(1);
    l.launch(
        n,
        || format!("sum_strided {shape:?} over {axes:?}"),
        // SAFETY: the strides of x lead from index (i, term) to an element of x, and i < n indexes y.
        |t| unsafe {
            run!(t, sum_strided_kernel(t.bind(x, 1), t.bind(y, 1), n, terms, kept.clone(), summed.clone(), split));
        },
    );
}

/// Sum of the squares of all elements of all operands, none of which is empty.
pub(crate) fn sum_of_squares(l: &Launcher, operands: &[Arg], y: Arg) {
    if operands.is_empty() {
        return fill::launch(l, y, 0.0);
    }
    let [room, rest] = l.scratch().halves();
    let most = room.elements() / operands.len();
    let mut total = 0;
    let mut tensors = Vec::with_capacity(operands.len());
    for &x in operands {
        let blocks = blocks(l, 1, x.elements() / 16).min(most);
        tensors.push(Blocked { x, blocks, first: total });
        total += blocks;
    }
    let partial = room.first(total);
    sum_blocks(l, &tensors, partial, true);
    sum_all_over(l, partial, y, rest);
}

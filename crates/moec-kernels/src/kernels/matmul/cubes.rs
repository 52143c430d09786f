//! Matrix products on graphics devices: a cube computes square tiles of the result from tiles of both operands that its
//! units load together into shared memory.
//!
//! A unit has every eighth row and column of a tile, so that neighbouring units load neighbouring words. An element is
//! summed by one unit in index order: its bits do not depend on the size of the tiles.

#![allow(unsafe_code, reason = "kernel launches")]

use super::super::fused::{Program, Then, dropout_keys, go_on};
use super::{Extras, Layout, Product, fetched_row, segment};
use crate::launch::{GPU_CUBE, Launcher};
use cubecl::prelude::*;

/// Units along an edge of a tile; a cube is a square of them.
const SIDE: usize = 8;

/// Units of a cube.
const UNITS: usize = SIDE * SIDE;

/// Words of an operand's tile that a unit moves at a time.
const MOVED: usize = 16;

/// Summed elements that are in shared memory at a time: both tiles take some 8 KiB, and every device has twice that.
fn depth(each: usize) -> usize {
    MOVED * SIDE / each
}

const _: () = assert!(UNITS == GPU_CUBE as usize);

/// Large tiles of a result from which on a unit computes 64 elements of one instead of 16 of a small one: with fewer, a
/// large device would have idle cores.
const MANY: usize = 256;

/// The place in a tile of the word that a unit moves in a step: position along the edge, and summed element. Neighbouring
/// units read neighbouring words, whichever of the two is innermost in memory.
#[cube]
fn moved(step: usize, #[comptime] sums_innermost: bool, #[comptime] each: usize) -> (usize, usize) {
    let edge = comptime!(SIDE * each);
    let word = UNIT_POS as usize + step * UNITS;
    let (mut along, mut q) = (word % edge, word / edge);
    if comptime!(sums_innermost) {
        along = word / comptime!(depth(each));
        q = word % comptime!(depth(each));
    }
    (along, q)
}

/// Loads a unit's words of a tile: rows (or columns) from `first` on of a matrix with `extent` of them, and summed
/// elements from `q0` on. Instead of those from row `end` and from `sum1` on, which nobody uses, it has the last before:
/// without a branch all words are on their way at once. Needs `first < end` and `q0 < sum1`. Where `fetched`, `order`,
/// `sharing` and `slots` say where a row, or the row of a summed element, is (see [`super::Fetch`]).
#[cube]
fn load(
    values: &[f32],
    out: &mut Array<f32>,
    start: usize,
    first: usize,
    end: usize,
    extent: usize,
    q0: usize,
    sum1: usize,
    k: usize,
    order: &[i32],
    sharing: usize,
    slots: usize,
    #[comptime] fetched: bool,
    #[comptime] sums_innermost: bool,
    #[comptime] each: usize,
) {
    #[unroll]
    for step in 0..MOVED {
        let (along, q) = moved(step, sums_innermost, each);
        let mut row = min(first + along, end - 1);
        let mut sum = min(q0 + q, sum1 - 1);
        if comptime!(fetched) {
            if comptime!(sums_innermost) {
                row = fetched_row(order, row, sharing, slots);
            } else {
                sum = fetched_row(order, sum, sharing, slots);
            }
        }
        out[step] =
            if comptime!(sums_innermost) { values[start + row * k + sum] } else { values[start + sum * extent + row] };
    }
}

/// Stores what [`load`] loaded in shared memory.
#[cube]
fn store(values: &Array<f32>, tile: &mut Shared<[f32]>, #[comptime] sums_innermost: bool, #[comptime] each: usize) {
    #[unroll]
    for step in 0..MOVED {
        let (along, q) = moved(step, sums_innermost, each);
        tile[q * comptime!(SIDE * each + 1) + along] = values[step];
    }
}

#[cube(launch_unchecked)]
fn tiles<W: Size>(
    a: &[f32],
    b: &[f32],
    bias: &[f32],
    offsets: &[i32],
    order: &[i32],
    vectors_after: &Sequence<Box<[Vector<f32, W>]>>,
    scalars_after: &Sequence<Box<[f32]>>,
    rng: &Sequence<Box<[u32]>>,
    keys: &Sequence<u32>,
    y: &mut [Vector<f32, W>],
    sums: &mut [f32],
    more: &mut Sequence<Box<[Vector<f32, W>]>>,
    m: usize,
    n: usize,
    k: usize,
    experts: usize,
    grouped: usize,
    has_bias: usize,
    has_sums: usize,
    sharing: usize,
    slots: usize,
    #[comptime] layout: Layout,
    #[comptime] each: usize,
    #[comptime] after: Program,
) {
    let edge = comptime!(SIDE * each);
    // One more than the edge: units that store a column of a tile use different banks.
    let stride = comptime!(edge + 1);
    let depth = comptime!(depth(each));
    let transpose_a = comptime!(layout.transpose_a);
    let (fetch_a, fetch_b) = comptime!((layout.fetched && !transpose_a, layout.fetched && transpose_a));
    let unit = UNIT_POS as usize;
    let (unit_row, unit_column) = (unit / SIDE, unit % SIDE);
    let mut keys_a = Sequence::<Vector<u32, W>>::new();
    let mut keys_b = Sequence::<Vector<u32, W>>::new();
    dropout_keys::<W>(rng, keys, &mut keys_a, &mut keys_b, comptime!(after.keys));
    let mut a_tile = Shared::<[f32]>::new_slice(comptime!(depth * stride));
    let mut b_tile = Shared::<[f32]>::new_slice(comptime!(depth * stride));
    let column_tiles = (n + edge - 1) / edge;
    let row_tiles = (m + edge - 1) / edge;
    // Rows after the last segment belong to no expert: one more segment, whose sums are empty.
    let segments = if comptime!(transpose_a) { experts } else { experts + grouped };
    // Every segment may end within a tile.
    let all = if comptime!(transpose_a) { row_tiles * experts } else { row_tiles + segments - 1 };
    for item in range_stepped(CUBE_POS, all * column_tiles, CUBE_COUNT) {
        let column0 = item % column_tiles * edge;
        let wanted = item / column_tiles;
        // The tile's first row and the row after the last of its segment; its range of summed elements.
        let mut row0 = m;
        let mut row1 = m;
        let mut sum0 = 0usize.runtime();
        let mut sum1 = 0usize.runtime();
        let mut e = 0usize.runtime();
        let mut y0 = 0usize.runtime();
        if comptime!(transpose_a) {
            e = wanted / row_tiles;
            row0 = wanted % row_tiles * edge;
            let (s0, s1) = segment(offsets, e, experts, k, grouped);
            sum0 = s0;
            sum1 = s1;
            y0 = e * m * n;
        } else {
            let mut before = 0usize.runtime();
            for s in 0..segments {
                let (s0, s1) = segment(offsets, s, experts, m, grouped);
                let tiles = (s1 - s0 + edge - 1) / edge;
                if wanted >= before && wanted < before + tiles {
                    e = s;
                    row0 = s0 + (wanted - before) * edge;
                    row1 = s1;
                    if s < experts {
                        sum1 = k;
                    }
                }
                before += tiles;
            }
        }
        let a0 = 0usize.runtime();
        let b0 = if comptime!(transpose_a) { 0usize.runtime() } else { e * n * k };
        let mut acc = Array::<f32>::new(comptime!(each * each));
        #[unroll]
        for j in 0..each {
            let column = column0 + unit_column + j * SIDE;
            let mut start = 0.0f32;
            if has_bias != 0 && e < experts && column < n {
                start = bias[e * n + column];
            }
            #[unroll]
            for i in 0..each {
                acc[i * each + j] = start;
            }
        }
        // What the units load is on its way while they compute with what they loaded before.
        let mut a_next = Array::<f32>::new(comptime!(MOVED));
        let mut b_next = Array::<f32>::new(comptime!(MOVED));
        if row0 < row1 && sum0 < sum1 {
            load(a, &mut a_next, a0, row0, row1, m, sum0, sum1, k, order, sharing, slots, fetch_a, !transpose_a, each);
            load(
                b,
                &mut b_next,
                b0,
                column0,
                n,
                n,
                sum0,
                sum1,
                k,
                order,
                sharing,
                slots,
                fetch_b,
                layout.transpose_b,
                each,
            );
        }
        // Units of the first tile of a row of tiles sum one row of `a` each.
        let sums_row = has_sums != 0 && column0 == 0 && unit < edge && row0 + unit < row1;
        let mut sum = 0.0f32.runtime();
        for q0 in range_stepped(sum0, sum1, depth) {
            // Nobody may still read what is overwritten.
            sync_cube();
            store(&a_next, &mut a_tile, !transpose_a, each);
            store(&b_next, &mut b_tile, layout.transpose_b, each);
            sync_cube();
            if row0 < row1 && q0 + depth < sum1 {
                load(
                    a,
                    &mut a_next,
                    a0,
                    row0,
                    row1,
                    m,
                    q0 + depth,
                    sum1,
                    k,
                    order,
                    sharing,
                    slots,
                    fetch_a,
                    !transpose_a,
                    each,
                );
                load(
                    b,
                    &mut b_next,
                    b0,
                    column0,
                    n,
                    n,
                    q0 + depth,
                    sum1,
                    k,
                    order,
                    sharing,
                    slots,
                    fetch_b,
                    layout.transpose_b,
                    each,
                );
            }
            if comptime!(transpose_a) {
                if sums_row {
                    for q in 0..min(depth, sum1 - q0) {
                        sum += a_tile[q * stride + unit];
                    }
                }
            }
            for q in 0..min(depth, sum1 - q0) {
                let mut columns = Sequence::<f32>::new();
                #[unroll]
                for j in 0..each {
                    columns.push(b_tile[q * stride + unit_column + j * SIDE]);
                }
                #[unroll]
                for i in 0..each {
                    let v = a_tile[q * stride + unit_row + i * SIDE];
                    #[unroll]
                    for j in 0..each {
                        acc[i * each + j] = fma(v, columns[j], acc[i * each + j]);
                    }
                }
            }
        }
        if comptime!(transpose_a) {
            if sums_row {
                sums[e * m + row0 + unit] = sum;
            }
        }
        // Read with a runtime index below, so that what goes on with an element is compiled once; `acc` never is, and
        // stays in registers.
        let mut results = Array::<f32>::new(comptime!(each * each));
        #[unroll]
        for i in 0..comptime!(each * each) {
            results[i] = acc[i];
        }
        for i in 0..comptime!(each * each) {
            let row = row0 + unit_row + i / each * SIDE;
            let column = column0 + unit_column + i % each * SIDE;
            if row < row1 && column < n {
                let at = y0 + row * n + column;
                let value = Vector::<f32, W>::new(results[i]);
                y[at] = go_on::<W>(
                    at,
                    value,
                    vectors_after,
                    scalars_after,
                    &keys_a,
                    &keys_b,
                    more,
                    comptime!(after.clone()),
                );
            }
        }
    }
}

/// Launches the kernel of a product, with the program that goes on with it, bound for single elements.
pub(super) fn launch(l: &Launcher, p: &Product<'_>, then: &Then<'_>) {
    let Product { layout, a, b, y, m, n, k, experts, .. } = *p;
    let Extras { bias, offsets, sums, has_bias, grouped, has_sums, fetch } = Extras::new(p);
    // Tiles that are full at best, and those that may be begun.
    let full = |edge: usize| m.div_ceil(edge) * n.div_ceil(edge) * if layout.transpose_a { experts } else { 1 };
    let begun = |edge: usize| {
        let more = if layout.transpose_a { 0 } else { experts + grouped - 1 };
        full(edge) + more * n.div_ceil(edge)
    };
    let enough_rows = layout.transpose_a || m / experts >= 8 * SIDE;
    let each = if enough_rows && full(8 * SIDE) >= MANY { 8 } else { 4 };
    l.launch(
        begun(each * SIDE) * UNITS,
        || format!("matmul in cubes {layout:?} {each}{then}"),
        // SAFETY: a unit writes the elements of `y` that it owns; segments are cut off at `m` (or `k`). Cubes have
        // `UNITS` units, and which tile a cube computes is the same for all of them, so that all reach every barrier.
        |t| unsafe {
            tiles::launch_unchecked(
                t.client,
                t.count(),
                t.dim(),
                1,
                t.bind(a, 1),
                t.bind(b, 1),
                t.bind(bias, 1),
                t.bind(offsets, 1),
                t.bind(fetch.order, 1),
                t.bind_all(&then.vectors, 1),
                t.bind_all(&then.scalars, 1),
                t.bind_all(&then.rng, 1),
                then.keys.iter().copied().collect(),
                t.bind(y, 1),
                t.bind(sums, 1),
                t.bind_all(then.more, 1),
                m,
                n,
                k,
                experts,
                grouped,
                has_bias,
                has_sums,
                fetch.sharing,
                fetch.slots,
                layout,
                each,
                then.program.clone(),
            );
        },
    );
}

//! Matrix products on graphics devices: a cube computes square tiles of the result from tiles of both operands that its
//! units load together into shared memory.
//!
//! A unit has every eighth row and column of a tile, so that neighbouring units load neighbouring words. An element is
//! summed by one unit in index order: its bits do not depend on the size of the tiles.
//!
//! Operands that a product rounds to bfloat16 are rounded as they come from shared memory, and multiplied in float32, since
//! WGSL has no such type: it means the same as elsewhere, and is no faster.

#![allow(unsafe_code, reason = "kernel launches")]

use super::super::fused::{DropoutKeys, Elementwise, Then, dropout_keys, go_on};
use super::pairs::rounded;
use super::{Factors, Fetched, Layout, Product, fetched_row, segment, segment_count};
use crate::launch::{GPU_CUBE, Launcher, Optional, run};
use cubecl::prelude::*;
use moec_ir::Precision;

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

/// How an operand is read, which the compiler must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Reading {
    /// Its rows are fetched.
    fetched: bool,
    /// Neighbouring words are of neighbouring summed elements, not of neighbouring rows (or columns).
    sums_innermost: bool,
    /// Rows (or columns) of a tile that a unit has.
    each: usize,
}

/// Rows (or columns) of an operand that a tile is loaded from.
#[derive(CubeType)]
struct Strip {
    /// Where the expert's matrix starts.
    start: usize,
    /// The first of them, and the one after the last that may be read.
    first: usize,
    end: usize,
    /// How many the matrix has.
    extent: usize,
}

/// A tile of the result, and what is summed for it.
#[derive(CubeType)]
struct Tile {
    /// The expert, or the number of experts for rows that belong to none.
    e: usize,
    /// Its first row, and the row after the last of its segment; the same if there is nothing to do.
    row0: usize,
    row1: usize,
    column0: usize,
    sum0: usize,
    sum1: usize,
    /// Where the matrix that it is a tile of starts.
    y0: usize,
}

/// Loads a unit's words of a tile from summed element `q0` on. Instead of those from the strip's end and from `sum1` on, which
/// nobody uses, it has the last before: without a branch all words are on their way at once. The strip has a row, and there
/// is a sum from `q0` on. Length of the sums is `k`.
#[cube]
fn load(
    values: &[f32],
    out: &mut Array<f32>,
    from: &Strip,
    q0: usize,
    sum1: usize,
    k: usize,
    fetch: &Fetched,
    #[comptime] reading: Reading,
) {
    let sums_innermost = comptime!(reading.sums_innermost);
    #[unroll]
    for step in 0..MOVED {
        let (along, q) = moved(step, sums_innermost, comptime!(reading.each));
        let mut row = min(from.first + along, from.end - 1);
        let mut sum = min(q0 + q, sum1 - 1);
        if comptime!(reading.fetched) {
            if comptime!(sums_innermost) {
                row = fetched_row(fetch, row);
            } else {
                sum = fetched_row(fetch, sum);
            }
        }
        out[step] = if comptime!(sums_innermost) {
            values[from.start + row * k + sum]
        } else {
            values[from.start + sum * from.extent + row]
        };
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

/// Tiles of a row of tiles, and of a column of them.
#[cube]
fn tiles_along(extent: usize, #[comptime] each: usize) -> usize {
    let edge = comptime!(SIDE * each);
    (extent + edge - 1) / edge
}

/// Tile number `item` of all experts'. Every segment may end within a tile.
#[cube]
fn find(x: &Factors, item: usize, #[comptime] layout: Layout, #[comptime] each: usize) -> Tile {
    let edge = comptime!(SIDE * each);
    let column_tiles = tiles_along(x.n, each);
    let row_tiles = tiles_along(x.m, each);
    let column0 = item % column_tiles * edge;
    let wanted = item / column_tiles;
    let mut row0 = x.m;
    let mut row1 = x.m;
    let mut sum0 = 0usize.runtime();
    let mut sum1 = 0usize.runtime();
    let mut e = 0usize.runtime();
    let mut y0 = 0usize.runtime();
    if comptime!(layout.transpose_a) {
        e = wanted / row_tiles;
        row0 = wanted % row_tiles * edge;
        let (s0, s1) = segment(x, e, layout);
        sum0 = s0;
        sum1 = s1;
        y0 = e * x.m * x.n;
    } else {
        let mut before = 0usize.runtime();
        for s in 0..segment_count(x, layout) {
            let (s0, s1) = segment(x, s, layout);
            let tiles = tiles_along(s1 - s0, each);
            if wanted >= before && wanted < before + tiles {
                e = s;
                row0 = s0 + (wanted - before) * edge;
                row1 = s1;
                if s < x.experts {
                    sum1 = x.k;
                }
            }
            before += tiles;
        }
    }
    Tile { e, row0, row1, column0, sum0, sum1, y0 }
}

/// What a unit's elements of a tile are summed from: the bias, or 0.
#[cube]
fn start(acc: &mut Array<f32>, bias: &Optional<f32>, x: &Factors, tile: &Tile, #[comptime] each: usize) {
    #[unroll]
    for j in 0..each {
        let column = tile.column0 + UNIT_POS as usize % SIDE + j * SIDE;
        let mut start = 0.0f32;
        if bias.given != 0 && tile.e < x.experts && column < x.n {
            start = bias.values[tile.e * x.n + column];
        }
        #[unroll]
        for i in 0..each {
            acc[i * each + j] = start;
        }
    }
}

/// An element as a product of that precision reads it. In shared memory it is as it was: sums of `a` alone are not rounded.
#[cube]
fn factor(x: f32, #[comptime] precision: Precision) -> f32 {
    match comptime!(precision) {
        Precision::F32 => x,
        Precision::Bf16 => {
            let upper = rounded::<Const<1>>(Vector::new(x)) & Vector::new(0xffff_0000u32);
            Vector::<f32, Const<1>>::reinterpret(upper).extract(0usize)
        }
    }
}

/// Adds the products of `length` summed elements of both tiles in shared memory.
#[cube]
fn multiply(
    a_tile: &Shared<[f32]>,
    b_tile: &Shared<[f32]>,
    acc: &mut Array<f32>,
    length: usize,
    #[comptime] precision: Precision,
    #[comptime] each: usize,
) {
    let stride = comptime!(SIDE * each + 1);
    let (unit_row, unit_column) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
    for q in 0..length {
        let mut columns = Sequence::<f32>::new();
        #[unroll]
        for j in 0..each {
            columns.push(factor(b_tile[q * stride + unit_column + j * SIDE], precision));
        }
        #[unroll]
        for i in 0..each {
            let v = factor(a_tile[q * stride + unit_row + i * SIDE], precision);
            #[unroll]
            for j in 0..each {
                acc[i * each + j] = fma(v, columns[j], acc[i * each + j]);
            }
        }
    }
}

/// Stores a unit's elements of a tile, with what goes on with them.
#[cube]
fn finish<W: Size>(
    acc: &Array<f32>,
    y: &mut [Vector<f32, W>],
    after: &mut Elementwise<W>,
    keys: &DropoutKeys<W>,
    tile: &Tile,
    n: usize,
    #[comptime] each: usize,
) {
    // Read with a runtime index below, so that what goes on with an element is compiled once; `acc` never is, and
    // stays in registers.
    let mut results = Array::<f32>::new(comptime!(each * each));
    #[unroll]
    for i in 0..comptime!(each * each) {
        results[i] = acc[i];
    }
    for i in 0..comptime!(each * each) {
        let row = tile.row0 + UNIT_POS as usize / SIDE + i / each * SIDE;
        let column = tile.column0 + UNIT_POS as usize % SIDE + i % each * SIDE;
        if row < tile.row1 && column < n {
            let at = tile.y0 + row * n + column;
            y[at] = go_on::<W>(after, keys, at, Vector::<f32, W>::new(results[i]));
        }
    }
}

#[cube(launch_unchecked)]
fn tiles<W: Size>(
    x: &Factors,
    bias: &Optional<f32>,
    y: &mut [Vector<f32, W>],
    sums: &mut Optional<f32>,
    after: &mut Elementwise<W>,
    #[comptime] layout: Layout,
    #[comptime] each: usize,
) {
    let edge = comptime!(SIDE * each);
    // One more than the edge: units that store a column of a tile use different banks.
    let stride = comptime!(edge + 1);
    let depth = comptime!(depth(each));
    let transpose_a = comptime!(layout.transpose_a);
    let read_a = comptime!(Reading { fetched: layout.fetched && !transpose_a, sums_innermost: !transpose_a, each });
    let read_b =
        comptime!(Reading { fetched: layout.fetched && transpose_a, sums_innermost: layout.transpose_b, each });
    let unit = UNIT_POS as usize;
    let keys = dropout_keys::<W>(&*after);
    let mut a_tile = Shared::<[f32]>::new_slice(comptime!(depth * stride));
    let mut b_tile = Shared::<[f32]>::new_slice(comptime!(depth * stride));
    let row_tiles = tiles_along(x.m, each);
    let all = if comptime!(transpose_a) { row_tiles * x.experts } else { row_tiles + segment_count(x, layout) - 1 };
    for item in range_stepped(CUBE_POS, all * tiles_along(x.n, each), CUBE_COUNT) {
        let tile = find(x, item, layout, each);
        let (sum0, sum1) = (tile.sum0, tile.sum1);
        let a_strip = Strip { start: 0usize.runtime(), first: tile.row0, end: tile.row1, extent: x.m };
        let b0 = if comptime!(transpose_a) { 0usize.runtime() } else { tile.e * x.n * x.k };
        let b_strip = Strip { start: b0, first: tile.column0, end: x.n, extent: x.n };
        let mut acc = Array::<f32>::new(comptime!(each * each));
        start(&mut acc, bias, x, &tile, each);
        // What the units load is on its way while they compute with what they loaded before.
        let mut a_next = Array::<f32>::new(comptime!(MOVED));
        let mut b_next = Array::<f32>::new(comptime!(MOVED));
        if tile.row0 < tile.row1 && sum0 < sum1 {
            load(&x.a, &mut a_next, &a_strip, sum0, sum1, x.k, &x.fetch, read_a);
            load(&x.b, &mut b_next, &b_strip, sum0, sum1, x.k, &x.fetch, read_b);
        }
        // Units of the first tile of a row of tiles sum one row of `a` each.
        let sums_row = sums.given != 0 && tile.column0 == 0 && unit < edge && tile.row0 + unit < tile.row1;
        let mut sum = 0.0f32.runtime();
        for q0 in range_stepped(sum0, sum1, depth) {
            // Nobody may still read what is overwritten.
            sync_cube();
            store(&a_next, &mut a_tile, comptime!(read_a.sums_innermost), each);
            store(&b_next, &mut b_tile, comptime!(read_b.sums_innermost), each);
            sync_cube();
            if tile.row0 < tile.row1 && q0 + depth < sum1 {
                load(&x.a, &mut a_next, &a_strip, q0 + depth, sum1, x.k, &x.fetch, read_a);
                load(&x.b, &mut b_next, &b_strip, q0 + depth, sum1, x.k, &x.fetch, read_b);
            }
            if comptime!(transpose_a) {
                if sums_row {
                    for q in 0..min(depth, sum1 - q0) {
                        sum += a_tile[q * stride + unit];
                    }
                }
            }
            multiply(&a_tile, &b_tile, &mut acc, min(depth, sum1 - q0), layout.precision, each);
        }
        if comptime!(transpose_a) {
            if sums_row {
                sums.values[tile.e * x.m + tile.row0 + unit] = sum;
            }
        }
        finish::<W>(&acc, y, after, &keys, &tile, x.n, each);
    }
}

/// Launches the kernel of a product, with the program that goes on with it.
pub(super) fn launch(l: &Launcher, p: &Product<'_>, then: &Then<'_>) {
    let Product { layout, b, bias, y, sums, m, n, experts, .. } = *p;
    // Tiles that are full at best, and those that may be begun.
    let full = |edge: usize| m.div_ceil(edge) * n.div_ceil(edge) * if layout.transpose_a { experts } else { 1 };
    let begun = |edge: usize| {
        let grouped = usize::from(p.offsets.is_some());
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
            let (bias, sums) = (Optional::bind(t, bias, b, 1), Optional::bind(t, sums, y, 1));
            let (factors, y, then) = (p.factors(t), t.bind(y, 1), then.bind(t, 1));
            run!(t, tiles(1, factors, bias, y, sums, then, layout, each));
        },
    );
}

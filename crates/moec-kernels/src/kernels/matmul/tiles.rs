//! Matrix products on the CPU, in tiles of registers.
//!
//! Every unit owns a range of column panels and of the tiles of all experts together, which is cut by the work of the
//! tiles. Mostly that is all panels of some rows: neighbouring operations then find what they read in the cache of the
//! same core, and each expert's matrix is packed by one unit. A panel of a few vectors of `b` is packed (and
//! transposed if need be) into a private array once per block of summed elements; a tile of the result, a few rows of a
//! panel, stays in registers while the block is summed. An element is summed by one unit in index order, through the
//! register it is stored from and reloaded into, so its bits depend neither on the number of units nor on the tiling.
//! Extents are runtime values: a training step compiles a handful of these, whatever its shapes.

#![allow(unsafe_code, reason = "kernel launches")]

use super::super::fused::{DropoutKeys, Elementwise, Then, dropout_keys, go_on};
use super::{Factors, Layout, Product, fetched_row, segment, segment_count};
use crate::launch::{Launcher, Optional, run};
use cubecl::prelude::*;
use moec_ir::Invariant;

/// How the CPU's kernel is blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tiling {
    /// Lanes of a vector register.
    lanes: usize,
    /// Rows of a register tile.
    rows: usize,
    /// Vectors of a register tile.
    vectors: usize,
    /// Summed elements of a packed panel. Private arrays beyond 1024 elements take the CPU's compiler seconds.
    block: usize,
}

impl Tiling {
    /// The tiling for `m` rows and `n` columns on a machine with vector registers of that many lanes. The 16 registers
    /// of AVX2 hold 6 by 2 accumulators, two vectors of `b` and a broadcast element of `a`; the 32 of AVX-512 twice
    /// that, where four vectors of `b` make the packed panel 32 KiB with a quarter of the block.
    fn new(lanes: usize, m: usize, n: usize) -> Self {
        let (mut rows, vectors, block) = match lanes {
            _ if n <= lanes => (12, 1, 512),
            16 => (6, 4, 128),
            _ => (6, 2, 512),
        };
        while rows > m {
            rows /= 2;
        }
        Self { lanes, rows, vectors, block }
    }
}

/// Operands once more, as vectors.
#[derive(CubeType, CubeLaunch)]
struct Vectors<L: Size, S: Size> {
    a: Box<[Vector<f32, S>]>,
    b: Box<[Vector<f32, L>]>,
    bias: Optional<Vector<f32, L>>,
}

/// What an expert has to do with a product.
#[derive(CubeType)]
struct Segment {
    /// Which of the experts; their number for rows that belong to none.
    e: usize,
    /// Its rows of the result.
    row0: usize,
    row1: usize,
    /// Its summed elements.
    sum0: usize,
    sum1: usize,
    /// Where its matrices start.
    b0: usize,
    y0: usize,
    /// Its tiles in a panel of columns.
    tiles: usize,
    /// Work of one of them, in units that are the same for all experts.
    each: usize,
}

/// A block of summed elements of a panel of columns.
#[derive(CubeType)]
struct Block {
    /// First vector of the panel.
    vector: usize,
    /// First summed element, and how many there are.
    q0: usize,
    length: usize,
    /// Whether it is the first, and the last, of the panel.
    first: bool,
    last: bool,
}

/// Copies vectors of a row that starts at element `start`, from vector `first` on, to `out` from vector `to` on. Columns
/// beyond the last repeat it.
#[cube]
fn load_row<W: Size, L: Size>(
    values: &[Vector<f32, L>],
    out: &mut Array<Vector<f32, W>>,
    start: usize,
    first: usize,
    to: usize,
    columns: usize,
    #[comptime] vectors: usize,
) {
    let (w, stored) = (W::value(), L::value());
    if comptime!(w == stored) {
        let last = columns / w - 1;
        for j in 0..vectors {
            out[to + j] = values.with_vector_size::<W>()[start / w + min(first + j, last)];
        }
    } else {
        let values = values.with_vector_size::<Const<1>>();
        let out = out.with_vector_size_mut::<Const<1>>();
        for lane in 0..comptime!(vectors * w) {
            out[to * w + lane] = values[start + min(first * w + lane, columns - 1)];
        }
    }
}

#[cube]
fn clear<W: Size>(values: &mut Array<Vector<f32, W>>, #[comptime] length: usize) {
    for j in 0..length {
        values[j] = Vector::new(0.0f32);
    }
}

/// `work * part / parts`, but for rounding that is the same for all units: the product may not fit 32 bits.
#[cube]
fn share(work: usize, part: usize, parts: usize) -> usize {
    work / parts * part + work % parts * part / parts
}

/// What expert `e` has to do. Loading and storing a tile is worth a few of its summed elements.
#[cube]
fn segment_of(x: &Factors, e: usize, #[comptime] layout: Layout, #[comptime] rows: usize) -> Segment {
    let (s0, s1) = segment(x, e, layout);
    if comptime!(layout.transpose_a) {
        Segment {
            e,
            row0: 0usize.runtime(),
            row1: x.m,
            sum0: s0,
            sum1: s1,
            b0: 0usize.runtime(),
            y0: e * x.m * x.n,
            tiles: (x.m + rows - 1) / rows,
            each: s1 - s0 + 16,
        }
    } else {
        Segment {
            e,
            row0: s0,
            row1: s1,
            sum0: 0usize.runtime(),
            sum1: select(e < x.experts, x.k, 0usize),
            b0: e * x.n * x.k,
            y0: 0usize.runtime(),
            tiles: (s1 - s0 + rows - 1) / rows,
            each: 1usize.runtime(),
        }
    }
}

/// Sums of columns `c0 .. c1` of rows `q0 .. q1` of a matrix with `columns` of them (all in vectors), in row order, to
/// `sums` from `to` on. Several neighbouring vectors at a time: rows are far apart in memory.
#[cube]
fn sum_columns<A: Size>(
    values: &[Vector<f32, A>],
    sums: &mut [Vector<f32, A>],
    to: usize,
    c0: usize,
    c1: usize,
    q0: usize,
    q1: usize,
    columns: usize,
) {
    let together = comptime!(4usize);
    for first in range_stepped(c0, c1, together) {
        let mut acc = Array::<Vector<f32, A>>::new(together);
        clear(&mut acc, together);
        for q in q0..q1 {
            #[unroll]
            for j in 0..together {
                // Beyond the last column, where nobody looks.
                acc[j] += values[q * columns + min(first + j, columns - 1)];
            }
        }
        for j in 0..min(together, c1 - first) {
            sums[to + first + j] = acc[j];
        }
    }
}

/// Sums of `a` for the tiles `t0 .. t1` of an expert, just before the unit reads these columns anyway. What lies between two
/// tiles is the former's.
#[cube]
fn sum_tiles<S: Size>(
    a: &[Vector<f32, S>],
    sums: &mut [Vector<f32, S>],
    s: &Segment,
    t0: usize,
    t1: usize,
    m: usize,
    #[comptime] rows: usize,
) {
    let (v, columns) = (S::value(), m / S::value());
    let (c0, c1) = ((t0 * rows + v - 1) / v, min((t1 * rows + v - 1) / v, columns));
    sum_columns::<S>(a, sums, s.e * columns, c0, c1, s.sum0, s.sum1, columns);
}

/// Copies a block of `b`, row after row, to where the unit has it to itself.
#[cube]
fn pack<W: Size, L: Size>(
    x: &Factors,
    b: &[Vector<f32, L>],
    panel: &mut Array<Vector<f32, W>>,
    s: &Segment,
    block: &Block,
    #[comptime] layout: Layout,
    #[comptime] vectors: usize,
) {
    let w = W::value();
    if comptime!(layout.transpose_b) {
        // One column vector at a time: its rows of `b` are as many cache lines as it has lanes.
        for j in 0..vectors {
            for q in 0..block.length {
                let mut v = Vector::<f32, W>::empty();
                #[unroll]
                for lane in 0..w {
                    let column = min((block.vector + j) * w + lane, x.n - 1);
                    v.insert(lane, x.b[s.b0 + column * x.k + block.q0 + q]);
                }
                panel[q * vectors + j] = v;
            }
        }
    } else {
        for q in 0..block.length {
            let mut row = block.q0 + q;
            if comptime!(layout.fetched && layout.transpose_a) {
                row = fetched_row(&x.fetch, row);
            }
            load_row::<W, L>(b, panel, s.b0 + row * x.n, block.vector, q * vectors, x.n, vectors);
        }
    }
}

/// What the sums of a panel start from: the expert's bias, or 0.
#[cube]
fn load_start<W: Size, L: Size>(
    bias: &[Vector<f32, L>],
    start: &mut Array<Vector<f32, W>>,
    x: &Factors,
    s: &Segment,
    block: &Block,
    #[comptime] vectors: usize,
) {
    if s.e < x.experts {
        load_row::<W, L>(bias, start, s.e * x.n, block.vector, 0usize, x.n, vectors);
    } else {
        clear(start, vectors);
    }
}

/// Loads what a tile has been summed to so far; `row0` is where its first row starts.
#[cube]
fn load_tile<W: Size, L: Size>(
    y: &[Vector<f32, L>],
    start: &Array<Vector<f32, W>>,
    tile: &mut Array<Vector<f32, W>>,
    row0: usize,
    n: usize,
    block: &Block,
    #[comptime] tiling: Tiling,
) {
    let nv = comptime!(tiling.vectors);
    for i in 0..comptime!(tiling.rows) {
        if block.first {
            for j in 0..nv {
                tile[i * nv + j] = start[j];
            }
        } else {
            load_row::<W, L>(y, tile, row0 + i * n, block.vector, i * nv, n, nv);
        }
    }
}

/// Adds the products of a block to a tile, which stays in registers meanwhile. `top` is its first row, and `place` where that
/// is in `a`.
#[cube]
fn multiply<W: Size>(
    x: &Factors,
    panel: &Array<Vector<f32, W>>,
    tile: &mut Array<Vector<f32, W>>,
    top: usize,
    place: usize,
    block: &Block,
    #[comptime] layout: Layout,
    #[comptime] tiling: Tiling,
) {
    let (mr, nv) = comptime!((tiling.rows, tiling.vectors));
    let mut acc = Array::<Vector<f32, W>>::new(comptime!(mr * nv));
    #[unroll]
    for i in 0..comptime!(mr * nv) {
        acc[i] = tile[i];
    }
    let mut starts = Sequence::<usize>::new();
    if comptime!(layout.fetched && !layout.transpose_a) {
        #[unroll]
        for i in 0..mr {
            starts.push(fetched_row(&x.fetch, top + i) * x.k);
        }
    }
    for q in 0..block.length {
        let mut row = Sequence::<Vector<f32, W>>::new();
        #[unroll]
        for j in 0..nv {
            row.push(panel[q * nv + j]);
        }
        #[unroll]
        for i in 0..mr {
            let v = if comptime!(layout.transpose_a) {
                x.a[place + (block.q0 + q) * x.m + i]
            } else if comptime!(layout.fetched) {
                x.a[starts[i] + block.q0 + q]
            } else {
                x.a[place + i * x.k + block.q0 + q]
            };
            let v = Vector::<f32, W>::new(v);
            #[unroll]
            for j in 0..nv {
                acc[i * nv + j] = fma(v, row[j], acc[i * nv + j]);
            }
        }
    }
    #[unroll]
    for i in 0..comptime!(mr * nv) {
        tile[i] = acc[i];
    }
}

/// Stores row `i` of a tile, which starts at element `row` of `y`; what goes on with it does after the last block.
#[cube]
fn store_row<W: Size, L: Size>(
    tile: &Array<Vector<f32, W>>,
    y: &mut [Vector<f32, L>],
    after: &mut Elementwise<W>,
    keys: &DropoutKeys<W>,
    i: usize,
    row: usize,
    n: usize,
    block: &Block,
    #[comptime] vectors: usize,
) {
    let w = W::value();
    let stored = L::value();
    if comptime!(w == stored) {
        for j in 0..min(vectors, (n + w - 1) / w - block.vector) {
            let at = row / w + block.vector + j;
            let mut value = tile[i * vectors + j];
            if block.last {
                value = go_on::<W>(after, keys, at, value);
            }
            y.with_vector_size_mut::<W>()[at] = value;
        }
    } else {
        let lanes = tile.with_vector_size::<Const<1>>();
        for lane in 0..min(comptime!(vectors * w), n - block.vector * w) {
            let column = row + block.vector * w + lane;
            y.with_vector_size_mut::<Const<1>>()[column] = lanes[i * vectors * w + lane];
        }
    }
}

/// Work of all experts.
#[cube]
fn whole_work(x: &Factors, #[comptime] layout: Layout, #[comptime] rows: usize) -> usize {
    let mut work = 0usize.runtime();
    for e in 0..segment_count(x, layout) {
        let s = segment_of(x, e, layout, rows);
        work += s.tiles * s.each;
    }
    work
}

#[cube(launch_unchecked)]
fn tiled<W: Size, L: Size, S: Size>(
    x: &Factors,
    in_vectors: &Vectors<L, S>,
    y: &mut [Vector<f32, L>],
    sums: &mut Optional<Vector<f32, S>>,
    after: &mut Elementwise<W>,
    column_groups: usize,
    #[comptime] layout: Layout,
    #[comptime] tiling: Tiling,
) {
    let w = W::value();
    let (mr, nv, kb) = comptime!((tiling.rows, tiling.vectors, tiling.block));
    let transpose_a = comptime!(layout.transpose_a);
    let panels = ((x.n + w - 1) / w + nv - 1) / nv;
    let unit = UNIT_POS as usize;
    let row_groups = CUBE_DIM as usize / column_groups;
    let (column_group, row_group) = (unit % column_groups, unit / column_groups);
    let p0 = panels * column_group / column_groups;
    let p1 = panels * (column_group + 1) / column_groups;
    let keys = dropout_keys::<W>(&*after);
    let mut panel = Array::<Vector<f32, W>>::new(comptime!(kb * nv));
    let mut start = Array::<Vector<f32, W>>::new(nv);
    clear(&mut start, nv);
    // A register tile on its way from and to memory.
    let mut tile = Array::<Vector<f32, W>>::new(comptime!(mr * nv));
    let work = whole_work(x, layout, mr);
    let (work0, work1) = (share(work, row_group, row_groups), share(work, row_group + 1, row_groups));
    let mut before = 0usize.runtime();
    for e in 0..segment_count(x, layout) {
        let s = segment_of(x, e, layout, mr);
        let t0 = min((max(work0, before) - before + s.each - 1) / s.each, s.tiles);
        let t1 = min((max(work1, before) - before + s.each - 1) / s.each, s.tiles);
        before += s.tiles * s.each;
        if t1 > t0 {
            if comptime!(transpose_a) {
                if sums.given != 0 && column_group == 0 {
                    sum_tiles::<S>(&in_vectors.a, &mut sums.values, &s, t0, t1, x.m, mr);
                }
            }
            // A sum over nothing still stores its start.
            let blocks = max((s.sum1 - s.sum0 + kb - 1) / kb, 1);
            for p in p0..p1 {
                for b in 0..blocks {
                    let q0 = s.sum0 + b * kb;
                    let block = Block {
                        vector: p * nv,
                        q0,
                        length: min(kb, s.sum1 - q0),
                        first: b == 0,
                        last: b + 1 == blocks,
                    };
                    pack::<W, L>(x, &in_vectors.b, &mut panel, &s, &block, layout, nv);
                    if in_vectors.bias.given != 0 {
                        load_start::<W, L>(&in_vectors.bias.values, &mut start, x, &s, &block, nv);
                    }
                    // A tile at the end of all rows starts earlier, to read only what is there. Its first row and that
                    // row's place in `a` are carried from tile to tile: computed anew, they end up in the inner loop.
                    let mut top = min(s.row0 + t0 * mr, x.m - mr);
                    let row_step = if comptime!(transpose_a) { 1usize.runtime() } else { x.k };
                    let mut place = top * row_step;
                    for t in t0..t1 {
                        let first = s.row0 + t * mr;
                        let end = min(first + mr, s.row1);
                        load_tile::<W, L>(&*y, &start, &mut tile, s.y0 + top * x.n, x.n, &block, tiling);
                        multiply::<W>(x, &panel, &mut tile, top, place, &block, layout, tiling);
                        for i in first - top..end - top {
                            let row = s.y0 + (top + i) * x.n;
                            store_row::<W, L>(&tile, y, after, &keys, i, row, x.n, &block, nv);
                        }
                        top = min(top + mr, x.m - mr);
                        place = min(place + mr * row_step, (x.m - mr) * row_step);
                    }
                }
            }
        }
    }
}

/// Divides `units` into groups that share the column panels; the units of a group share the tiles, of which there are
/// `tiles` in all experts together. Of all divisors the one whose busiest unit has least to do: packing a panel of an
/// expert costs about as much as computing four tiles with it, and a unit that owns some columns only reads the rows
/// that another one wrote, which costs about a fifth of a tile more.
fn column_groups(units: usize, panels: usize, tiles: usize, experts: usize) -> usize {
    let work = |groups: usize| {
        let sharing = units / groups;
        let packed = if sharing == 1 { experts } else { experts.div_ceil(sharing) + 1 };
        let reading = if groups == 1 { 10 } else { 12 };
        panels.div_ceil(groups) * (reading * tiles.div_ceil(sharing) + 40 * packed.min(experts))
    };
    (1..=units)
        .filter(|&groups| units % groups == 0)
        .min_by_key(|&groups| work(groups))
        .invariant("1 divides every number")
}

/// Launches the kernel of a product, with the program that goes on with it.
pub(super) fn launch(l: &Launcher, p: &Product<'_>, then: &Then<'_>) {
    let Product { layout, a, b, bias, y, sums, m, n, experts, .. } = *p;
    let w = l.profile().matrix_width();
    let tiling = Tiling::new(w, m, n);
    let aligned = |columns: usize| if columns % w == 0 { w } else { 1 };
    let (aligned, a_width) = (aligned(n), if layout.transpose_a { aligned(m) } else { 1 });
    l.launch(
        1,
        || format!("matmul {layout:?} {tiling:?} w{aligned} w{a_width}{then}"),
        // SAFETY: columns and rows beyond the extents are neither read nor written, segments are cut off at `m` (or `k`).
        |t| unsafe {
            let tiles = m.div_ceil(tiling.rows);
            let tiles = if layout.transpose_a { tiles * experts } else { tiles + experts - 1 };
            let groups = column_groups(t.units(), n.div_ceil(w * tiling.vectors), tiles, experts);
            let bias = Optional::bind(t, bias, b, aligned);
            run!(
                t,
                tiled(
                    w,
                    aligned,
                    a_width,
                    p.factors(t),
                    VectorsLaunch::new(t.bind(a, a_width), t.bind(b, aligned), bias),
                    t.bind(y, aligned),
                    Optional::bind(t, sums, y, a_width),
                    then.bind(t, w),
                    groups,
                    layout,
                    tiling
                )
            );
        },
    );
}

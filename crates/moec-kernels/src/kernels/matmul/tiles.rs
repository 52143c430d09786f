//! Matrix products on the CPU, in tiles of registers.
//!
//! Every unit owns a range of column panels and of the tiles of all experts together, which is cut by the work of the
//! tiles. Mostly that is all panels of some rows: neighbouring operations then find what they read in the cache of the
//! same core, and each expert's matrix is packed by one unit. A tile of the result, a few rows of a panel of a few
//! vectors, stays in registers while a block of elements is summed. An element is summed by one unit in index order,
//! through the register it is stored from and reloaded into, so its bits depend neither on the number of units nor on
//! the tiling. Extents are runtime values: a training step compiles a handful of these, whatever its shapes.
//!
//! # What is packed
//!
//! How the panel of `b` comes to the registers ([`Panel`]) decides how fast a product is. Figures are those of one core at
//! 220 GFLOP/s, for a matrix of 512 x 128, whose product with the 128 rows of an average expert takes 76 us at least.
//!
//! - `b` transposed (the weights of every layer in a forward pass): squares of as many vectors as they have lanes are
//!   transposed in registers: 6 us. Element by element, which remains for odd lengths, it takes 20 us, and from memory 70.
//! - `b` as stored: copied to where the panel's rows follow each other, 5 us. Where it is, its rows fall onto a few sets of
//!   the first cache, and far apart onto more pages than its table has: tiles take 5 to 35 % longer.
//! - `b` as stored, in whole panels for a few tiles each: read where it is, which saves the copy. With 16 rows an expert that
//!   is 8 % of the product.
//!
//! Weights are read once a step, so from memory. The next panel, of this expert or the next, is asked for line by line
//! while tiles of this one are summed: 5 to 12 % of a product. Asking in bursts gains half of that, and asking for the
//! result as well loses.

#![allow(unsafe_code, reason = "kernel launches")]

use super::super::fused::{DropoutKeys, Elementwise, Then, dropout_keys, go_on};
use super::super::lanes::clear;
use super::super::native::{prefetch, transpose};
use super::packed::unpacked_row;
use super::pairs::{Reading, Words, WordsLaunch, add_product, panel_to_words, rows_to_words, tiles_at_once};
use super::{Factors, Layout, Panels, Product, fetched_row, segment, segment_count};
use crate::launch::{DeviceProfile, Launcher, Optional, PANEL_VECTORS, part_of, run};
use cubecl::prelude::*;
use moec_ir::{Invariant, WeightFormat};

/// How a panel of `b` comes to the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Panel {
    /// It is read where it is.
    InPlace,
    /// Its rows are copied to where they follow each other.
    Copied,
    /// Its columns are rows of `b`, and are transposed in squares of registers.
    Transposed,
    /// Its columns are rows of `b`, and are gathered element by element.
    Gathered,
}

/// How the CPU's kernel is blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tiling {
    /// Lanes of a vector register.
    lanes: usize,
    /// Rows of a register tile.
    rows: usize,
    /// Vectors of a register tile.
    vectors: usize,
    /// Summed elements of a panel. Private arrays beyond 1024 elements take the CPU's compiler seconds.
    block: usize,
    /// Where the panel is.
    panel: Panel,
    /// Panels are whole: tiles go from registers to memory and back without a detour.
    whole: bool,
    /// The next panel is asked for while this one is used.
    ahead: bool,
    /// A program goes on with the result.
    goes_on: bool,
    /// How operands are read.
    reading: Reading,
}

/// Tiles of an expert from which on its panels are copied, if they could be read where they are.
const WORTH_COPYING: usize = 8;

/// Tiles of an expert up to which each unpacks the panels that it reads.
const WORTH_UNPACKING: usize = 2;

/// Summed elements of a block that need not stay in the first cache.
const LONG_BLOCK: usize = 4096;

/// Floats of a cache line.
const LINE: usize = 16;

/// Summed elements between two points at which lines are asked for.
const STRIDE: usize = 32;

/// Lines that are asked for at a time, at least.
const LINES_AT_ONCE: usize = 16;

impl Tiling {
    /// The tiling of a product on a machine where a unit has `room` words of scratch memory. The 16 registers of SSE and AVX2 hold
    /// 6 by 2 accumulators, two vectors of `b` and a broadcast element of `a`; the 32 of AVX-512 and of NEON twice that, where
    /// four vectors of `b` make the packed panel of AVX-512 32 KiB with a quarter of the block.
    fn new(profile: &DeviceProfile, room: usize, p: &Product<'_>, then: &Then<'_>) -> Self {
        let Product { layout, m, n, k, experts, .. } = *p;
        let (lanes, reading) = (profile.matrix_width(), Reading::new(layout.precision, profile.bf16_products()));
        let (mut rows, vectors, mut block) = match lanes {
            16 if layout.panels.is_some() => (rows_for(m.div_ceil(experts), 6), PANEL_VECTORS, 128),
            4 if layout.panels.is_some() && cfg!(target_arch = "aarch64") => {
                (rows_for(m.div_ceil(experts), 6), PANEL_VECTORS, 256)
            }
            _ if layout.panels.is_some() => (rows_for(m.div_ceil(experts), 2), PANEL_VECTORS, 256),
            _ if n <= lanes => (12, 1, 512),
            16 => (6, 4, 128),
            4 if cfg!(target_arch = "aarch64") => (6, 4, 256),
            _ => (6, 2, 512),
        };
        while rows > m {
            rows /= 2;
        }
        // The rows of a tile must fit, with any number of units.
        while reading.words() && block > 2 && rows * block / reading.each() > room {
            block /= 2;
        }
        let whole = n % (lanes * vectors) == 0;
        // Tiles of an expert: of its rows, or of its matrix.
        let tiles = if layout.transpose_a { m } else { m / experts }.div_ceil(rows);
        let panel = match layout {
            // Panels of float32 numbers are already as they would be copied.
            Layout { panels: Some(Panels { format, .. }), .. } => {
                if tiles <= WORTH_UNPACKING || format == WeightFormat::F32 { Panel::InPlace } else { Panel::Copied }
            }
            Layout { transpose_b: true, .. } if k % lanes == 0 => Panel::Transposed,
            Layout { transpose_b: true, .. } => Panel::Gathered,
            _ if whole && tiles < WORTH_COPYING && !(layout.transpose_a && layout.fetched) && !reading.words() => {
                Panel::InPlace
            }
            _ => Panel::Copied,
        };
        if layout.panels.is_some() && tiles <= WORTH_UNPACKING {
            block = LONG_BLOCK;
        }
        // With few rows, all is over before what was asked for has come. The summed rows of a weight gradient are not
        // weights, and were just written.
        let ahead = !layout.transpose_a && rows > 2;
        Self { lanes, rows, vectors, block, panel, whole, ahead, goes_on: !then.is_empty(), reading }
    }

    /// Vectors of a packed panel.
    fn packed(&self) -> usize {
        if self.panel == Panel::InPlace { 1 } else { self.block * self.vectors }
    }

    /// What getting a panel ready costs, in tenths of what computing a tile with it does.
    fn packing(&self) -> usize {
        match self.panel {
            Panel::InPlace => 0,
            Panel::Copied => 10,
            Panel::Transposed => 15,
            Panel::Gathered => 60,
        }
    }
}

/// Rows of a tile, at most so many, with which so many rows of an expert are computed soonest: those that fill up its last
/// tile cost as much as the others, and every tile has to go through the panel, which costs as much as a row and a half.
fn rows_for(rows: usize, most: usize) -> usize {
    let cost = |of_tile: &usize| rows.div_ceil(*of_tile) * (2 * of_tile + 3);
    (1..=most).rev().min_by_key(cost).invariant("a tile has a row")
}

/// Operands once more, as vectors.
#[derive(CubeType, CubeLaunch)]
struct Vectors<L: Size, S: Size> {
    a: Box<[Vector<f32, S>]>,
    b: Box<[Vector<f32, L>]>,
    bias: Optional<Vector<f32, L>>,
    /// One, of a `b` in panels with a scale.
    scale: Sequence<Box<[Vector<f32, L>]>>,
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
    /// Where the expert's matrix starts.
    b0: usize,
    /// What the unit comes to next.
    next: Ahead,
}

/// The panel of `b` that comes next, which can be asked for.
#[derive(CubeType)]
struct Ahead {
    /// Where its matrix starts, its first vector and its first summed element.
    b0: usize,
    vector: usize,
    q0: usize,
    /// Lines of it; none after the last panel.
    lines: usize,
    /// How many of them are asked for at a time.
    at_once: usize,
}

/// What a unit has to do with an expert: tiles `t0 .. t1` of panels `p0 .. p1`.
#[derive(CubeType)]
struct Share {
    p0: usize,
    p1: usize,
    t0: usize,
    t1: usize,
}

/// Where a tile is.
#[derive(CubeType)]
struct Place {
    /// Its first row, and where that is in `a`.
    top: usize,
    place: usize,
    /// How many tiles the unit has done with the block.
    tile: usize,
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

/// Elements of an expert's matrix as `b` is stored, with columns that fill up the last panel.
#[cube]
fn stored_matrix(x: &Factors, #[comptime] layout: Layout) -> usize {
    if comptime!(layout.panels.is_some()) {
        let columns = comptime!(layout.panels.map_or(1, |panels| panels.columns));
        (x.n + columns - 1) / columns * columns * x.k
    } else {
        x.n * x.k
    }
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
            b0: e * stored_matrix(x, layout),
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

/// Brings a block of `b` to where the unit has it to itself, row after row.
#[cube]
fn pack<W: Size, L: Size>(
    x: &Factors,
    b: &[Vector<f32, L>],
    panel: &mut Array<Vector<f32, W>>,
    scale: &Array<Vector<f32, W>>,
    s: &Segment,
    block: &Block,
    #[comptime] layout: Layout,
    #[comptime] tiling: Tiling,
) {
    let w = W::value();
    let vectors = comptime!(tiling.vectors);
    match comptime!(tiling.panel) {
        Panel::InPlace => {}
        Panel::Copied => {
            if comptime!(layout.panels.is_some()) {
                let first = panel_row(block, x.k, tiling);
                for q in 0..block.length {
                    let row = unpacked_row::<W>(b.with_vector_size::<W>(), first + q, scale, layout.panels);
                    #[unroll]
                    for j in 0..vectors {
                        panel[q * vectors + j] = row[j];
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
        Panel::Transposed => {
            for j in 0..vectors {
                for q in range_stepped(0, block.length, w) {
                    let mut rows = Sequence::<Vector<f32, W>>::new();
                    #[unroll]
                    for lane in 0..w {
                        let column = min((block.vector + j) * w + lane, x.n - 1);
                        rows.push(b.with_vector_size::<W>()[(s.b0 + column * x.k + block.q0 + q) / w]);
                    }
                    let columns = transpose::<W>(rows);
                    #[unroll]
                    for i in 0..w {
                        panel[(q + i) * vectors + j] = columns[i];
                    }
                }
            }
        }
        // One column vector at a time: its rows of `b` are as many cache lines as it has lanes.
        Panel::Gathered => {
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
        }
    }
    if comptime!(tiling.reading.words()) {
        panel_to_words::<W>(panel, block.length, vectors, tiling.reading.each());
    }
}

/// Where a block's rows of a panel start, counted in rows of panels.
#[cube]
fn panel_row(block: &Block, k: usize, #[comptime] tiling: Tiling) -> usize {
    let columns = comptime!(tiling.vectors * tiling.lanes);
    block.b0 / columns + block.vector / tiling.vectors * k + block.q0
}

/// Summed elements of a block; the last may have fewer.
#[cube]
fn block_length(x: &Factors, #[comptime] tiling: Tiling) -> usize {
    min(comptime!(tiling.block), x.k)
}

/// How often a tile asks for lines while a block is summed.
#[cube]
fn turns_of_a_tile(x: &Factors, #[comptime] tiling: Tiling) -> usize {
    (block_length(x, tiling) + STRIDE - 1) / STRIDE
}

/// A block of a panel of `b` as it is stored: how many rows it has, and how many cache lines a row.
#[cube]
fn stored_lines(x: &Factors, #[comptime] layout: Layout, #[comptime] tiling: Tiling) -> (usize, usize) {
    let columns = comptime!(tiling.vectors * tiling.lanes / layout.columns_of_word());
    let length = block_length(x, tiling);
    match comptime!(tiling.panel) {
        Panel::Transposed | Panel::Gathered => (columns.runtime(), (length + LINE - 1) / LINE),
        Panel::InPlace | Panel::Copied => (length, comptime!(columns.div_ceil(LINE)).runtime()),
    }
}

/// The panel and the block of it that a unit comes to in a step: panel after panel, unless a block's rows of `a` are made
/// ready for all panels.
#[cube]
fn step_of(step: usize, share: &Share, blocks: usize, #[comptime] tiling: Tiling) -> (usize, usize) {
    if comptime!(tiling.reading.words()) {
        let panels = share.p1 - share.p0;
        (share.p0 + step % panels, step / panels)
    } else {
        (share.p0 + step / blocks, step % blocks)
    }
}

/// The block that a unit works on in a step; a panel has `blocks` of them.
#[cube]
fn block_of(
    x: &Factors,
    s: &Segment,
    share: &Share,
    step: usize,
    blocks: usize,
    #[comptime] layout: Layout,
    #[comptime] tiling: Tiling,
) -> Block {
    let (kb, nv) = comptime!((tiling.block, tiling.vectors));
    let (p, i) = step_of(step, share, blocks, tiling);
    let q0 = s.sum0 + i * kb;
    let (rows, in_row) = stored_lines(x, layout, tiling);
    let (mut next_p, next_i) = step_of(step + 1, share, blocks, tiling);
    let (mut b0, mut next_q) = (s.b0, s.sum0 + next_i * kb);
    let mut lines = rows * in_row;
    if step + 1 == blocks * (share.p1 - share.p0) {
        next_p = share.p0;
        next_q = s.sum0;
        b0 = s.b0 + stored_matrix(x, layout);
        if s.e + 1 >= x.experts {
            lines = 0usize.runtime();
        }
    }
    let turns = max((share.t1 - share.t0) * turns_of_a_tile(x, tiling), 1);
    let at_once = max((rows * in_row + turns - 1) / turns, comptime!(LINES_AT_ONCE));
    let next = Ahead { b0, vector: next_p * nv, q0: next_q, lines, at_once };
    let length = min(kb, s.sum1 - q0);
    Block { vector: p * nv, q0, length, first: i == 0, last: i + 1 == blocks, b0: s.b0, next }
}

/// Asks for the lines of the next panel whose turn it is.
#[cube]
fn ask(x: &Factors, next: &Ahead, turn: usize, #[comptime] layout: Layout, #[comptime] tiling: Tiling) {
    let w = comptime!(tiling.lanes);
    let first = turn * next.at_once;
    let (_, in_row) = stored_lines(x, layout, tiling);
    // Length of a row as `b` is stored, and where the panel starts.
    let each = comptime!(layout.columns_of_word());
    let mut row = x.n;
    let mut start = next.q0 * x.n + next.vector * w;
    if comptime!(layout.panels.is_some()) {
        row = comptime!(tiling.vectors * tiling.lanes / each).runtime();
        start = next.vector * w * x.k / each + next.q0 * row;
    }
    if comptime!(layout.transpose_b) {
        row = x.k;
        start = next.vector * w * x.k + next.q0;
    }
    let mut place = next.b0 / each + start + first / in_row * row;
    let mut column = first % in_row;
    for _ in first..min(first + next.at_once, next.lines) {
        // The last panel has fewer columns, the last block fewer rows.
        prefetch(&x.b[min(place + column * LINE, x.experts * stored_matrix(x, layout) / each - 1)]);
        column += 1;
        if column == in_row {
            column = 0usize.runtime();
            place += row;
        }
    }
}

/// The numbers of an expert that the columns of a panel have, such as its bias; 0 for rows that belong to none.
#[cube]
fn load_columns<W: Size, L: Size>(
    values: &[Vector<f32, L>],
    out: &mut Array<Vector<f32, W>>,
    x: &Factors,
    s: &Segment,
    block: &Block,
    #[comptime] vectors: usize,
) {
    if s.e < x.experts {
        load_row::<W, L>(values, out, s.e * x.n, block.vector, 0usize, x.n, vectors);
    } else {
        clear(out, vectors);
    }
}

/// Loads what a tile has been summed to so far, or what it starts from; `row0` is where its first row starts. Tiles of whole
/// panels need no detour over `passage`.
#[cube]
fn load_tile<W: Size, L: Size>(
    y: &[Vector<f32, L>],
    start: &Array<Vector<f32, W>>,
    passage: &mut Array<Vector<f32, W>>,
    tile: &mut Array<Vector<f32, W>>,
    row0: usize,
    n: usize,
    block: &Block,
    #[comptime] tiling: Tiling,
) {
    let w = W::value();
    let (mr, nv) = comptime!((tiling.rows, tiling.vectors));
    if comptime!(tiling.whole) {
        if block.first {
            #[unroll]
            for i in 0..comptime!(mr * nv) {
                tile[i] = start[i % nv];
            }
        } else {
            #[unroll]
            for i in 0..comptime!(mr * nv) {
                tile[i] = y.with_vector_size::<W>()[(row0 + i / nv * n) / w + block.vector + i % nv];
            }
        }
    } else {
        for i in 0..mr {
            if block.first {
                for j in 0..nv {
                    passage[i * nv + j] = start[j];
                }
            } else {
                load_row::<W, L>(y, passage, row0 + i * n, block.vector, i * nv, n, nv);
            }
        }
        #[unroll]
        for i in 0..comptime!(mr * nv) {
            tile[i] = passage[i];
        }
    }
}

/// Adds the products of a block to a tile, which stays in registers meanwhile.
#[cube]
fn multiply<W: Size, L: Size>(
    x: &Factors,
    b: &[Vector<f32, L>],
    panel: &Array<Vector<f32, W>>,
    scale: &Array<Vector<f32, W>>,
    tile: &mut Array<Vector<f32, W>>,
    at: &Place,
    block: &Block,
    #[comptime] layout: Layout,
    #[comptime] tiling: Tiling,
) {
    let w = W::value();
    let (mr, nv) = comptime!((tiling.rows, tiling.vectors));
    let mut starts = Sequence::<usize>::new();
    if comptime!(layout.fetched && !layout.transpose_a) {
        #[unroll]
        for i in 0..mr {
            starts.push(fetched_row(&x.fetch, at.top + i) * x.k);
        }
    }
    let in_place = (block.b0 + block.q0 * x.n) / w + block.vector;
    let row_of_b = x.n / w;
    let in_panel = panel_row(block, x.k, tiling);
    let stride = comptime!(if tiling.ahead { STRIDE } else { tiling.block });
    for q0 in range_stepped(0, block.length, stride) {
        if comptime!(tiling.ahead) {
            let turn = at.tile * turns_of_a_tile(x, tiling) + q0 / STRIDE;
            ask(x, &block.next, turn, layout, tiling);
        }
        for q in q0..min(q0 + stride, block.length) {
            let row = if comptime!(tiling.panel == Panel::InPlace && layout.panels.is_some()) {
                unpacked_row::<W>(b.with_vector_size::<W>(), in_panel + q, scale, layout.panels)
            } else {
                let mut row = Sequence::<Vector<f32, W>>::new();
                #[unroll]
                for j in 0..nv {
                    if comptime!(tiling.panel == Panel::InPlace) {
                        row.push(b.with_vector_size::<W>()[in_place + q * row_of_b + j]);
                    } else {
                        row.push(panel[q * nv + j]);
                    }
                }
                row
            };
            #[unroll]
            for i in 0..mr {
                let v = if comptime!(layout.transpose_a) {
                    x.a[at.place + (block.q0 + q) * x.m + i]
                } else if comptime!(layout.fetched) {
                    x.a[starts[i] + block.q0 + q]
                } else {
                    x.a[at.place + i * x.k + block.q0 + q]
                };
                let v = Vector::<f32, W>::new(v);
                #[unroll]
                for j in 0..nv {
                    tile[i * nv + j] = fma(v, row[j], tile[i * nv + j]);
                }
            }
        }
    }
}

/// As [`multiply`], of words, of which those of the tile start at `at.place`.
#[cube]
fn multiply_words<W: Size>(
    x: &Factors,
    words: &[u32],
    panel: &Array<Vector<f32, W>>,
    tile: &mut Array<Vector<f32, W>>,
    at: &Place,
    rows: &Rows,
    block: &Block,
    #[comptime] layout: Layout,
    #[comptime] tiling: Tiling,
) {
    let (mr, nv, each) = comptime!((tiling.rows, tiling.vectors, tiling.reading.each()));
    let stride = comptime!((if tiling.ahead { STRIDE } else { tiling.block }) / each);
    let length = (block.length + each - 1) / each;
    for h0 in range_stepped(0, length, stride) {
        if comptime!(tiling.ahead) {
            let turn = at.tile * turns_of_a_tile(x, tiling) + h0 / stride;
            ask(x, &block.next, turn, layout, tiling);
        }
        for h in h0..min(h0 + stride, length) {
            let mut row = Sequence::<Vector<f32, W>>::new();
            #[unroll]
            for j in 0..nv {
                row.push(panel[h * nv + j]);
            }
            #[unroll]
            for i in 0..mr {
                let v = if comptime!(layout.transpose_a) {
                    words[at.place + h * rows.word_step + i]
                } else {
                    words[at.place + i * rows.row_step + h]
                };
                let v = Vector::<u32, W>::new(v);
                #[unroll]
                for j in 0..nv {
                    tile[i * nv + j] = add_product::<W>(tile[i * nv + j], v, row[j], tiling.reading);
                }
            }
        }
    }
}

/// Stores rows `from .. to` of a tile of whole panels, of which `row0` is where the first starts; what goes on with them does
/// after the last block.
#[cube]
fn store_tile<W: Size, L: Size>(
    tile: &Array<Vector<f32, W>>,
    y: &mut [Vector<f32, L>],
    after: &mut Elementwise<W>,
    keys: &DropoutKeys<W>,
    row0: usize,
    rows: (usize, usize),
    n: usize,
    block: &Block,
    #[comptime] tiling: Tiling,
) {
    let w = W::value();
    let (mr, nv) = comptime!((tiling.rows, tiling.vectors));
    let (from, to) = rows;
    #[unroll]
    for i in 0..mr {
        if i >= from && i < to {
            #[unroll]
            for j in 0..nv {
                y.with_vector_size_mut::<W>()[(row0 + i * n) / w + block.vector + j] = tile[i * nv + j];
            }
        }
    }
    if comptime!(tiling.goes_on) && block.last {
        // Unrolled for every vector of the tile, a program would take the compiler longer than it saves.
        for i in from..to {
            for j in 0..nv {
                let at = (row0 + i * n) / w + block.vector + j;
                let made = y.with_vector_size_mut::<W>()[at];
                let value = go_on::<W>(after, keys, at, made);
                y.with_vector_size_mut::<W>()[at] = value;
            }
        }
    }
}

/// Stores row `i` of a tile, which starts at element `row` of `y`; what goes on with it does after the last block.
#[cube]
fn store_row<W: Size, L: Size>(
    passage: &Array<Vector<f32, W>>,
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
            let mut value = passage[i * vectors + j];
            if block.last {
                value = go_on::<W>(after, keys, at, value);
            }
            y.with_vector_size_mut::<W>()[at] = value;
        }
    } else {
        let lanes = passage.with_vector_size::<Const<1>>();
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

/// Where the tiles of a share find their rows of `a`, as elements or as words.
#[derive(CubeType)]
struct Rows {
    /// The first tile's first row. A tile at the end of all rows starts earlier, to read only what is there.
    top: usize,
    /// Where it is, and where that of a tile at the end of all rows is.
    place: usize,
    last_place: usize,
    /// Distance of two rows, and of two words of a row.
    row_step: usize,
    word_step: usize,
}

/// Where the tiles of a share find their rows. Those that a product rounds are made ready with the block's first panel.
#[cube]
fn rows_of(
    x: &Factors,
    words: &mut Words,
    s: &Segment,
    share: &Share,
    block: &Block,
    #[comptime] layout: Layout,
    #[comptime] tiling: Tiling,
) -> Rows {
    let mr = comptime!(tiling.rows);
    let top = min(s.row0 + share.t0 * mr, x.m - mr);
    let last = x.m - mr;
    if comptime!(tiling.reading.words()) {
        let each = comptime!(tiling.reading.each());
        let place = UNIT_POS as usize * words.own;
        let end = min(s.row0 + (share.t1 - 1) * mr, last) + mr;
        if block.vector == share.p0 * comptime!(tiling.vectors) {
            let all = words.all.index_mut(0usize);
            rows_to_words(x, all, place, (top, end), block.q0, block.length, layout, each);
        }
        let (mut row_step, mut word_step) = ((block.length + each - 1) / each, 1usize.runtime());
        if comptime!(layout.transpose_a) {
            row_step = 1usize.runtime();
            word_step = end - top;
        }
        Rows { top, place, last_place: place + (last - top) * row_step, row_step, word_step }
    } else {
        let row_step = if comptime!(layout.transpose_a) { 1usize.runtime() } else { x.k };
        Rows { top, place: top * row_step, last_place: last * row_step, row_step, word_step: 0usize.runtime() }
    }
}

/// The tiles of an expert that are a unit's.
#[cube]
fn own_tiles(s: &Segment, before: usize, work0: usize, work1: usize) -> (usize, usize) {
    let t0 = min((max(work0, before) - before + s.each - 1) / s.each, s.tiles);
    let t1 = min((max(work1, before) - before + s.each - 1) / s.each, s.tiles);
    (t0, t1)
}

#[cube(launch_unchecked)]
fn tiled<W: Size, L: Size, S: Size>(
    x: &Factors,
    in_vectors: &Vectors<L, S>,
    words: &mut Words,
    y: &mut [Vector<f32, L>],
    sums: &mut Optional<Vector<f32, S>>,
    after: &mut Elementwise<W>,
    column_groups: usize,
    #[comptime] layout: Layout,
    #[comptime] tiling: Tiling,
) {
    let w = W::value();
    let (mr, nv, kb) = comptime!((tiling.rows, tiling.vectors, tiling.block));
    let panels = ((x.n + w - 1) / w + nv - 1) / nv;
    let unit = UNIT_POS as usize;
    let row_groups = CUBE_DIM as usize / column_groups;
    let (column_group, row_group) = (unit % column_groups, unit / column_groups);
    let p0 = panels * column_group / column_groups;
    let p1 = panels * (column_group + 1) / column_groups;
    let keys = dropout_keys::<W>(&*after);
    let mut panel = Array::<Vector<f32, W>>::new(comptime!(tiling.packed()));
    let mut start = Array::<Vector<f32, W>>::new(nv);
    clear(&mut start, nv);
    // What the columns of the panel are multiplied by.
    let mut scale = Array::<Vector<f32, W>>::new(nv);
    // A register tile on its way from and to memory.
    let mut passage = Array::<Vector<f32, W>>::new(comptime!(mr * nv));
    let work = whole_work(x, layout, mr);
    let (work0, work1) = (part_of(work, row_group, row_groups), part_of(work, row_group + 1, row_groups));
    let mut before = 0usize.runtime();
    for e in 0..segment_count(x, layout) {
        let s = segment_of(x, e, layout, mr);
        let (own0, own1) = own_tiles(&s, before, work0, work1);
        before += s.tiles * s.each;
        if comptime!(layout.transpose_a) {
            if own1 > own0 && sums.given != 0 && column_group == 0 {
                sum_tiles::<S>(&in_vectors.a, &mut sums.values, &s, own0, own1, x.m, mr);
            }
        }
        // A sum over nothing still stores its start.
        let blocks = max((s.sum1 - s.sum0 + kb - 1) / kb, 1);
        for t0 in range_stepped(own0, max(own1, own0), words.tiles) {
            let own = Share { p0, p1, t0, t1: min(t0 + words.tiles, own1) };
            for step in 0..blocks * (p1 - p0) {
                let block = block_of(x, &s, &own, step, blocks, layout, tiling);
                if comptime!(layout.is_scaled()) {
                    load_columns::<W, L>(in_vectors.scale.index(0usize), &mut scale, x, &s, &block, nv);
                }
                pack::<W, L>(x, &in_vectors.b, &mut panel, &scale, &s, &block, layout, tiling);
                if in_vectors.bias.given != 0 {
                    load_columns::<W, L>(&in_vectors.bias.values, &mut start, x, &s, &block, nv);
                }
                // The first row of a tile and that row's place are carried from tile to tile: computed anew, they end up
                // in the inner loop.
                let rows = rows_of(x, words, &s, &own, &block, layout, tiling);
                let (mut top, mut place) = (rows.top, rows.place);
                for t in own.t0..own.t1 {
                    let first = s.row0 + t * mr;
                    let end = min(first + mr, s.row1);
                    let row0 = s.y0 + top * x.n;
                    let mut tile = Array::<Vector<f32, W>>::new(comptime!(mr * nv));
                    load_tile::<W, L>(&*y, &start, &mut passage, &mut tile, row0, x.n, &block, tiling);
                    let at = Place { top, place, tile: t - own.t0 };
                    if comptime!(tiling.reading.words()) {
                        let words = words.all.index(0usize);
                        multiply_words::<W>(x, words, &panel, &mut tile, &at, &rows, &block, layout, tiling);
                    } else {
                        multiply::<W, L>(x, &in_vectors.b, &panel, &scale, &mut tile, &at, &block, layout, tiling);
                    }
                    let rows_of_tile = (first - top, end - top);
                    if comptime!(tiling.whole) {
                        store_tile::<W, L>(&tile, y, after, &keys, row0, rows_of_tile, x.n, &block, tiling);
                    } else {
                        #[unroll]
                        for i in 0..comptime!(mr * nv) {
                            passage[i] = tile[i];
                        }
                        for i in first - top..end - top {
                            store_row::<W, L>(&passage, y, after, &keys, i, row0 + i * x.n, x.n, &block, nv);
                        }
                    }
                    top = min(top + mr, x.m - mr);
                    place = min(place + mr * rows.row_step, rows.last_place);
                }
            }
        }
    }
}

/// Divides `units` into groups that share the column panels; the units of a group share the tiles, of which there are
/// `tiles` in all experts together. Of all divisors the one whose busiest unit has least to do: packing a panel of an
/// expert costs `packing` tenths of computing a tile with it, and a unit that owns some columns only reads the rows
/// that another one wrote, which costs about a fifth of a tile more.
fn column_groups(units: usize, panels: usize, tiles: usize, experts: usize, packing: usize) -> usize {
    let work = |groups: usize| {
        let sharing = units / groups;
        let packed = if sharing == 1 { experts } else { experts.div_ceil(sharing) + 1 };
        let reading = if groups == 1 { 10 } else { 12 };
        panels.div_ceil(groups) * (reading * tiles.div_ceil(sharing) + packing * packed.min(experts))
    };
    (1..=units)
        .filter(|&groups| units % groups == 0)
        .min_by_key(|&groups| work(groups))
        .invariant("1 divides every number")
}

/// Launches the kernel of a product, with the program that goes on with it.
pub(super) fn launch(l: &Launcher, p: &Product<'_>, then: &Then<'_>) {
    let Product { layout, a, b, scale, bias, y, sums, m, n, k, experts, .. } = *p;
    let (w, units) = (l.profile().matrix_width(), l.profile().launched_units(1));
    let room = l.scratch().elements() / units;
    let tiling = Tiling::new(l.profile(), room, p, then);
    let aligned = |columns: usize| if columns % w == 0 { w } else { 1 };
    let (aligned, a_width) = (aligned(n), if layout.transpose_a { aligned(m) } else { 1 });
    l.launch(
        1,
        || format!("matmul {layout:?} {tiling:?} w{aligned} w{a_width}{then}"),
        // SAFETY: columns and rows beyond the extents are neither read nor written, segments are cut off at `m` (or `k`). A
        // unit's words are its part of the scratch memory, which has room for the rows of as many tiles as it is told.
        |t| unsafe {
            let tiles = m.div_ceil(tiling.rows);
            // Every expert that has rows may have a tile that is not full.
            let tiles = if layout.transpose_a { tiles * experts } else { tiles + experts.min(m) - 1 };
            let groups = column_groups(t.units(), n.div_ceil(w * tiling.vectors), tiles, experts, tiling.packing());
            let bias = Optional::bind(t, bias, b, aligned);
            // Without rounding, all tiles are done at once.
            let (mut all, mut at_once) = (None, m);
            if tiling.reading.words() {
                let words = tiling.rows * tiling.block.min(k).div_ceil(tiling.reading.each());
                (all, at_once) = (Some(l.scratch()), tiles_at_once(room, words));
            }
            let words = WordsLaunch::new(t.bind_all(&all, 1), room, at_once);
            run!(
                t,
                tiled(
                    w,
                    aligned,
                    a_width,
                    p.factors(t),
                    VectorsLaunch::new(t.bind(a, a_width), t.bind(b, aligned), bias, t.bind_all(&scale, aligned)),
                    words,
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

//! Attention on the CPU, in tiles of queries and keys (Dao 2023, arXiv 2307.08691).
//!
//! A block of queries meets the keys it sees block by block. Scores are computed transposed, a vector holds those of one
//! key and as many queries as a register has lanes, so that maxima, sums and masks need no reduction over lanes; the
//! block's queries are transposed once. Forward, what was summed under a smaller maximum is scaled down when a block of
//! keys brings a larger one. Backward, probabilities follow from the log-sum-exp of a query. No array is as long as the
//! context.
//!
//! All products are register tiles of 16 accumulators (8 with AVX2), enough to hide the latency of multiply-adds:
//!
//! - scores and their gradients, `rows * columns`: 8 keys by 2 vectors of queries, summed over channels;
//! - results, and gradients of queries, keys and values, `scores * rows`: 16 queries or keys by one vector of channels, or 8
//!   by two, summed over keys or queries. Along the diagonal such a tile has two triangles, which are written out, and
//!   never touches what a query does not see: 0 times infinity is not 0. Where a query sees a window only, there are two such
//!   edges, which may meet in a tile, and along both of them each pair is asked whether it sees.
//!
//! Rows of a block are copied to private arrays, as rows of vectors with zeros behind the last channel, since rows in memory
//! are far apart, often at a distance for which the first cache has few places. A block has 32 keys and 64 queries (fewer
//! where a head is wide); with heads of 16 channels all its arrays fit the first cache, with wider ones the second. Of 16 to
//! 64 keys and 32 to 128 queries this was the fastest from heads of 16 to 64 channels; more queries save loads and stores
//! of the gradients of keys, and fewer loops end early. Powers of two, not of e: queries are multiplied by `log2 e`
//! beforehand. Lengths of sequences are runtime values: one kernel serves all.
//!
//! Forward, units share the blocks of queries of all pairs of a sequence and a head by their work. Backward, a pair
//! belongs to one unit: a block of queries adds to the gradients of all keys before it. Either way each sum runs in an order
//! that positions alone decide, whatever the number of units.
//!
//! Measured (benchmarks/README.md): half of the peak and more from heads of 32 channels on. With 16, a score is worth only 32
//! multiply-adds of a register forward and 80 backward, beside 14 other instructions, and 26 more where a mask is drawn.

use super::{Extra, Kind, Scoring, dropout_keys, first_seen, scoring};
use crate::kernels::exponential::exp2;
use crate::kernels::lanes::{clear, lane_numbers};
use crate::kernels::random::{golden_multiples, random_bits_of_multiples};
use crate::launch::{Arg, Launcher, Split, Target, end_item, first_item, part_of, run};
use cubecl::prelude::*;
use moec_ir::AttentionAttrs;
use std::f32::consts::{LN_2, LOG2_E};

/// Most vectors of a private array, and channels of a head: larger arrays take the CPU's compiler seconds.
const LONGEST_ARRAY: usize = 1024;

/// Most keys of a block.
const MOST_KEYS: usize = 32;

/// Most vectors of queries of a block.
const MOST_QUERIES: usize = 4;

/// How the kernels are blocked, and what else the compiler must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Blocking {
    /// Channels of a head, D.
    width: usize,
    /// Vectors of the channels of a head.
    vectors: usize,
    /// Vectors of the queries of a block.
    queries: usize,
    /// Keys of a block, a multiple of the lanes.
    keys: usize,
    kind: Kind,
}

impl Blocking {
    /// The blocking for an operation; none for heads whose rows do not fit.
    pub(super) fn new(l: &Launcher, attrs: &AttentionAttrs, kind: Kind, channels: usize) -> Option<Self> {
        let (lanes, width) = (l.profile().matrix_width(), channels / attrs.heads);
        let vectors = width.div_ceil(lanes);
        let queries = (LONGEST_ARRAY / (lanes * vectors)).min(MOST_QUERIES);
        let keys = (LONGEST_ARRAY / vectors).min(MOST_KEYS) / lanes * lanes;
        let fits = lanes * vectors <= LONGEST_ARRAY && keys > 0;
        fits.then_some(Self { width, vectors, queries, keys, kind })
    }

    /// Vectors of channels of a register tile, which divide those of a head.
    fn tile_vectors(&self) -> usize {
        if self.vectors % 2 == 0 { 2 } else { 1 }
    }
}

/// A register tile: rows of some vectors, summed over keys or over queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    rows: usize,
    over_keys: bool,
}

/// A matrix in which single elements and vectors are read.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Rows<L: Size> {
    elements: Box<[f32]>,
    vectors: Box<[Vector<f32, L>]>,
}

/// Rows of a matrix: element `start + step * position` is the first of a position's.
#[derive(CubeType)]
struct Place {
    start: usize,
    step: usize,
}

/// Where the rows of a (sequence, head) lie.
#[derive(CubeType)]
struct Places {
    query: Place,
    key: Place,
    value: Place,
    /// Results and their gradients.
    result: Place,
    /// Log-sum-exps: element `start + step * position`.
    lse: Place,
}

/// Where the rows of pair `pair` lie.
#[cube]
fn places(pair: usize, time: usize, heads: usize, width: usize) -> Places {
    let (token, head, channels) = (pair / heads * time, pair % heads, heads * width);
    let (start, step) = (token * 3 * channels + head * width, 3 * channels);
    Places {
        query: Place { start, step },
        key: Place { start: start + channels, step },
        value: Place { start: start + 2 * channels, step },
        result: Place { start: token * channels + head * width, step: channels },
        lse: Place { start: token * heads + head, step: heads },
    }
}

/// A block of queries of a (sequence, head).
#[derive(CubeType)]
struct Queries {
    /// The first query.
    first: usize,
    /// The query after the last.
    end: usize,
    /// The last position of the sequence.
    last: usize,
    /// Vectors of queries, and queries with those that fill the last vector.
    vectors: usize,
    rounded: usize,
}

/// The block of queries from position `first` on in a sequence of `time`.
#[cube]
fn queries_from<W: Size>(first: usize, time: usize, #[comptime] blocking: Blocking) -> Queries {
    let w = W::value();
    let end = min(first + comptime!(blocking.queries * w), time);
    let vectors = (end - first + w - 1) / w;
    Queries { first, end, last: time - 1, vectors, rounded: vectors * w }
}

/// A block of keys.
#[derive(CubeType)]
struct Keys {
    first: usize,
    length: usize,
}

/// The two keys of the stream that drops probabilities.
#[derive(CubeType)]
struct Mask<W: Size> {
    a: Vector<u32, W>,
    b: Vector<u32, W>,
}

/// What a softmax has found among the keys so far: a vector of queries each.
#[derive(CubeType)]
struct Running<W: Size> {
    /// The largest score, times `log2 e`.
    highest: Array<Vector<f32, W>>,
    /// The sum of all probabilities under that score.
    total: Array<Vector<f32, W>>,
    /// What was summed before the newest block of keys is multiplied by it.
    shrink: Array<Vector<f32, W>>,
}

/// A block of queries and of the gradients of their results, as the backward pass needs them.
#[derive(CubeType)]
struct Errors<W: Size> {
    query_columns: Array<Vector<f32, W>>,
    query_rows: Array<Vector<f32, W>>,
    error_columns: Array<Vector<f32, W>>,
    error_rows: Array<Vector<f32, W>>,
    /// What scores and gradients of probabilities start from: less the log-sum-exp, and less a row's product with its result.
    score_start: Array<Vector<f32, W>>,
    gradient_start: Array<Vector<f32, W>>,
}

/// What the backward pass reads.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Saved<L: Size> {
    dy: Rows<L>,
    qkv: Rows<L>,
    y: Rows<L>,
    lse: Box<[f32]>,
}

/// Lane `lane` of an array, in all lanes.
#[cube]
fn broadcast<W: Size>(values: &Array<Vector<f32, W>>, lane: usize) -> Vector<f32, W> {
    Vector::new(values.with_vector_size::<Const<1>>()[lane].extract(0usize))
}

/// Copies rows of a head from position `first` on, times `factor`, to rows of vectors. What lies behind the last channel stays.
#[cube]
fn pack<W: Size, L: Size>(
    values: &Rows<L>,
    out: &mut Array<Vector<f32, W>>,
    place: &Place,
    first: usize,
    count: usize,
    last: usize,
    factor: f32,
    #[comptime] blocking: Blocking,
) {
    let (w, stored, nv) = (W::value(), L::value(), blocking.vectors);
    for i in 0..count {
        let row = place.start + min(first + i, last) * place.step;
        if comptime!(w == stored) {
            #[unroll(nv <= 4)]
            for v in 0..nv {
                out[i * nv + v] = values.vectors.with_vector_size::<W>()[row / w + v] * Vector::new(factor);
            }
        } else {
            let out = out.with_vector_size_mut::<Const<1>>();
            for d in 0..blocking.width {
                out[i * nv * w + d] = Vector::new(values.elements[row + d] * factor);
            }
        }
    }
}

/// Copies the rows of a block of keys, and a few more, so that they are whole tiles.
#[cube]
fn pack_keys<W: Size, L: Size>(
    values: &Rows<L>,
    out: &mut Array<Vector<f32, W>>,
    place: &Place,
    queries: &Queries,
    keys: &Keys,
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    let tile = comptime!(w / 2);
    let count = (keys.length + tile - 1) / tile * tile;
    pack::<W, L>(values, out, place, keys.first, count, queries.last, 1.0f32, blocking);
}

/// Rows of a block of queries, times `factor`, transposed: a vector holds a channel of as many queries as it has lanes.
#[cube]
fn transpose<W: Size>(
    rows: &Array<Vector<f32, W>>,
    out: &mut Array<Vector<f32, W>>,
    queries: &Queries,
    factor: f32,
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    let (span, row) = comptime!((blocking.queries * w, blocking.vectors * w));
    let rows = rows.with_vector_size::<Const<1>>();
    let out = out.with_vector_size_mut::<Const<1>>();
    for q in 0..queries.rounded {
        for d in 0..blocking.width {
            out[d * span + q] = rows[q * row + d] * Vector::new(factor);
        }
    }
}

/// `start` plus the dot products of a tile of keys from row `top` of the block on with `count` vectors of queries from vector
/// `j0` on.
#[cube]
fn multiply_columns<W: Size>(
    rows: &Array<Vector<f32, W>>,
    columns: &Array<Vector<f32, W>>,
    start: &Array<Vector<f32, W>>,
    out: &mut Array<Vector<f32, W>>,
    top: usize,
    j0: usize,
    #[comptime] count: usize,
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    let tile = comptime!(w / 2);
    let nq = blocking.queries;
    let row = comptime!(blocking.vectors * w);
    let elements = rows.with_vector_size::<Const<1>>();
    let mut acc = Array::<Vector<f32, W>>::new(comptime!(tile * count));
    #[unroll]
    for i in 0..tile {
        #[unroll]
        for j in 0..count {
            acc[i * count + j] = start[j0 + j];
        }
    }
    for d in 0..blocking.width {
        let (element0, column0) = (top * row + d, d * nq + j0);
        let mut column = Sequence::<Vector<f32, W>>::new();
        #[unroll]
        for j in 0..count {
            column.push(columns[column0 + j]);
        }
        #[unroll]
        for i in 0..tile {
            let element = Vector::<f32, W>::new(elements[element0 + comptime!(i * row)].extract(0usize));
            #[unroll]
            for j in 0..count {
                acc[i * count + j] = fma(element, column[j], acc[i * count + j]);
            }
        }
    }
    let out0 = top * nq + j0;
    #[unroll]
    for i in 0..tile {
        #[unroll]
        for j in 0..count {
            out[out0 + comptime!(i * nq + j)] = acc[i * count + j];
        }
    }
}

/// `start` plus the dot products of a block of keys (or values) with the queries (or gradients) that see them.
#[cube]
fn products<W: Size>(
    rows: &Array<Vector<f32, W>>,
    columns: &Array<Vector<f32, W>>,
    start: &Array<Vector<f32, W>>,
    out: &mut Array<Vector<f32, W>>,
    queries: &Queries,
    keys: &Keys,
    scoring: &Scoring,
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    for top in range_stepped(0, keys.length, comptime!(w / 2)) {
        // The first vector of queries that sees a key of the tile, and the one after the last.
        let j0 = (max(keys.first + top, queries.first) - queries.first) / w;
        let mut j1 = queries.vectors;
        if comptime!(blocking.kind.windowed) {
            let end = keys.first + top + comptime!(w / 2 - 1) + scoring.window;
            j1 = max(j0, min(j1, (max(end, queries.first) - queries.first + w - 1) / w));
        }
        let odd = (j1 - j0) % 2;
        if comptime!(blocking.queries > 1) {
            for j in range_stepped(j0 + odd, j1, 2usize) {
                multiply_columns::<W>(rows, columns, start, out, top, j, 2usize, blocking);
            }
        }
        if odd == 1 {
            multiply_columns::<W>(rows, columns, start, out, top, j0, 1usize, blocking);
        }
    }
}

/// Where a tile's scores, in lanes, and rows, in vectors, start in their arrays.
#[derive(CubeType)]
struct Corner {
    score: usize,
    row: usize,
}

/// Adds `sum_x score[x] rows[x]` over `from <= x < to` to the rows of a tile, whose scores start with those of row `first`.
#[cube]
fn add_rectangle<W: Size>(
    scores: &Array<Vector<f32, W>>,
    rows: &Array<Vector<f32, W>>,
    acc: &mut Array<Vector<f32, W>>,
    corner: &Corner,
    first: usize,
    from: usize,
    to: usize,
    #[comptime] tile: Tile,
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    let nv = comptime!(blocking.tile_vectors());
    let (row, span) = comptime!((blocking.vectors, blocking.queries * w));
    let (row_step, sum_step) = comptime!(if tile.over_keys { (1, span) } else { (span, 1) });
    let lanes = scores.with_vector_size::<Const<1>>();
    for x in from..to {
        let (score0, vector0) = (corner.score + first * row_step + x * sum_step, corner.row + x * row);
        let mut vectors = Sequence::<Vector<f32, W>>::new();
        #[unroll]
        for j in 0..nv {
            vectors.push(rows[vector0 + j]);
        }
        #[unroll]
        for i in 0..tile.rows {
            let score = Vector::<f32, W>::new(lanes[score0 + comptime!(i * row_step)].extract(0usize));
            #[unroll]
            for j in 0..nv {
                acc[i * nv + j] = fma(score, vectors[j], acc[i * nv + j]);
            }
        }
    }
}

/// Adds the part of a tile that lies on the diagonal, a row of which is only as long as what it sees or what sees it: the
/// triangles of both halves are written out, which is as much as the compiler takes quickly.
#[cube]
fn add_diagonal<W: Size>(
    scores: &Array<Vector<f32, W>>,
    rows: &Array<Vector<f32, W>>,
    whole: &mut Array<Vector<f32, W>>,
    corner: &Corner,
    #[comptime] tile: Tile,
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    let nv = comptime!(blocking.tile_vectors());
    let (row, span) = comptime!((blocking.vectors, blocking.queries * w));
    let (row_step, sum_step) = comptime!(if tile.over_keys { (1, span) } else { (span, 1) });
    let half = comptime!(Tile { rows: tile.rows / 2, ..tile });
    let lanes = scores.with_vector_size::<Const<1>>();
    let mut acc = Array::<Vector<f32, W>>::new(comptime!(half.rows * nv));
    for first in range_stepped(0, tile.rows, half.rows) {
        #[unroll]
        for i in 0..comptime!(half.rows * nv) {
            acc[i] = whole[first * nv + i];
        }
        if comptime!(tile.over_keys) {
            add_rectangle::<W>(scores, rows, &mut acc, corner, first, 0usize, first, half, blocking);
        }
        let (score0, vector0) = (corner.score + first * (row_step + sum_step), corner.row + first * row);
        #[unroll]
        for t in 0..half.rows {
            let (i0, i1) = comptime!(if tile.over_keys { (t, half.rows) } else { (0, t + 1) });
            let mut vectors = Sequence::<Vector<f32, W>>::new();
            #[unroll]
            for j in 0..nv {
                vectors.push(rows[vector0 + comptime!(t * row + j)]);
            }
            #[unroll]
            for i in i0..i1 {
                let at = score0 + comptime!(i * row_step + t * sum_step);
                let score = Vector::<f32, W>::new(lanes[at].extract(0usize));
                #[unroll]
                for j in 0..nv {
                    acc[i * nv + j] = fma(score, vectors[j], acc[i * nv + j]);
                }
            }
        }
        if comptime!(!tile.over_keys) {
            add_rectangle::<W>(scores, rows, &mut acc, corner, first, first + half.rows, tile.rows, half, blocking);
        }
        #[unroll]
        for i in 0..comptime!(half.rows * nv) {
            whole[first * nv + i] = acc[i];
        }
    }
}

/// As [`add_rectangle`], to a tile that is on its way from and to memory.
#[cube]
fn add_whole<W: Size>(
    scores: &Array<Vector<f32, W>>,
    rows: &Array<Vector<f32, W>>,
    whole: &mut Array<Vector<f32, W>>,
    corner: &Corner,
    from: usize,
    to: usize,
    #[comptime] tile: Tile,
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    let mut acc = Array::<Vector<f32, W>>::new(w);
    #[unroll]
    for i in 0..w {
        acc[i] = whole[i];
    }
    add_rectangle::<W>(scores, rows, &mut acc, corner, 0usize, from, to, tile, blocking);
    #[unroll]
    for i in 0..w {
        whole[i] = acc[i];
    }
}

/// Positions of the first row of a tile, and of the first of what it is summed over.
#[derive(CubeType)]
struct Pairs {
    row: usize,
    sum: usize,
}

/// Adds to a tile whatever its rows see or are seen by, in order: what all of them do quickly, what lies along the edges of a window
/// pair by pair.
#[cube]
fn add_seen<W: Size>(
    scores: &Array<Vector<f32, W>>,
    rows: &Array<Vector<f32, W>>,
    tile: &mut Array<Vector<f32, W>>,
    corner: &Corner,
    at: &Pairs,
    seen: &Seen,
    scoring: &Scoring,
    #[comptime] shape: Tile,
    #[comptime] blocking: Blocking,
) {
    // Without a position that all see, the edges meet.
    let all = min(seen.all, seen.end_of_some);
    let end_of_all = max(all, seen.end_of_all);
    add_edge::<W>(scores, rows, tile, corner, at, seen.some, all, scoring, shape, blocking);
    if seen.end_of_all > all {
        add_whole::<W>(scores, rows, tile, corner, all, seen.end_of_all, shape, blocking);
    }
    add_edge::<W>(scores, rows, tile, corner, at, end_of_all, seen.end_of_some, scoring, shape, blocking);
}

/// Adds the pairs over `from <= x < to` that see each other.
#[cube]
fn add_edge<W: Size>(
    scores: &Array<Vector<f32, W>>,
    rows: &Array<Vector<f32, W>>,
    tile: &mut Array<Vector<f32, W>>,
    corner: &Corner,
    at: &Pairs,
    from: usize,
    to: usize,
    scoring: &Scoring,
    #[comptime] shape: Tile,
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    let nv = comptime!(blocking.tile_vectors());
    let (row, span) = comptime!((blocking.vectors, blocking.queries * w));
    let (row_step, sum_step) = comptime!(if shape.over_keys { (1, span) } else { (span, 1) });
    let lanes = scores.with_vector_size::<Const<1>>();
    for x in from..to {
        for i in 0..shape.rows {
            let mut query = at.row + i;
            let mut key = at.sum + x;
            if comptime!(!shape.over_keys) {
                query = at.sum + x;
                key = at.row + i;
            }
            if key <= query && key + scoring.window > query {
                let lane = lanes[corner.score + i * row_step + x * sum_step].extract(0usize);
                let score = Vector::<f32, W>::new(lane);
                #[unroll]
                for j in 0..nv {
                    tile[i * nv + j] = fma(score, rows[corner.row + x * row + j], tile[i * nv + j]);
                }
            }
        }
    }
}

/// Loads vectors `vector` and following of the head's row at element `row` to row `i` of a tile.
#[cube]
fn load_row<W: Size, L: Size>(
    values: &[Vector<f32, L>],
    tile: &mut Array<Vector<f32, W>>,
    i: usize,
    row: usize,
    vector: usize,
    #[comptime] vectors: usize,
    #[comptime] width: usize,
) {
    let (w, stored) = (W::value(), L::value());
    if comptime!(w == stored) {
        #[unroll]
        for j in 0..vectors {
            tile[i * vectors + j] = values.with_vector_size::<W>()[row / w + vector + j];
        }
    } else {
        let values = values.with_vector_size::<Const<1>>();
        let lanes = tile.with_vector_size_mut::<Const<1>>();
        for lane in 0..min(comptime!(vectors * w), width - vector * w) {
            lanes[i * vectors * w + lane] = values[row + vector * w + lane];
        }
    }
}

/// Stores row `i` of a tile of some vectors, times a factor, as vectors `panel` and following of the head's row at element `row`.
#[cube]
fn store_row<W: Size, L: Size>(
    tile: &Array<Vector<f32, W>>,
    out: &mut [Vector<f32, L>],
    i: usize,
    row: usize,
    vector: usize,
    factor: Vector<f32, W>,
    #[comptime] vectors: usize,
    #[comptime] width: usize,
) {
    let (w, stored) = (W::value(), L::value());
    if comptime!(w == stored) {
        #[unroll]
        for j in 0..vectors {
            out.with_vector_size_mut::<W>()[row / w + vector + j] = tile[i * vectors + j] * factor;
        }
    } else {
        let lanes = tile.with_vector_size::<Const<1>>();
        for lane in 0..min(comptime!(vectors * w), width - vector * w) {
            let value = lanes[i * vectors * w + lane] * Vector::new(factor.extract(0usize));
            out.with_vector_size_mut::<Const<1>>()[row + vector * w + lane] = value;
        }
    }
}

/// Positions of a block that see, or are seen by, some of several others, and by all of them: there are none where an end does not
/// lie behind its beginning.
#[derive(CubeType)]
struct Seen {
    some: usize,
    end_of_some: usize,
    all: usize,
    end_of_all: usize,
}

/// Where position `at` lies in a block that begins at `first`, if not before or behind it.
#[cube]
fn within(at: usize, first: usize, length: usize) -> usize {
    min(max(at, first) - first, length)
}

/// Keys of a block that `count` queries from position `top` on see.
#[cube]
fn seen_keys(top: usize, count: usize, keys: &Keys, scoring: &Scoring, #[comptime] blocking: Blocking) -> Seen {
    let (first, length) = (keys.first, keys.length);
    let mut some = 0usize.runtime();
    let mut all = 0usize.runtime();
    if comptime!(blocking.kind.windowed) {
        some = within(first_seen(top, scoring), first, length);
        all = within(first_seen(top + count - 1, scoring), first, length);
    }
    Seen { some, end_of_some: within(top + count, first, length), all, end_of_all: within(top + 1, first, length) }
}

/// Queries of a block that see `count` keys from position `top` on, where there is a window.
#[cube]
fn seeing_queries(top: usize, count: usize, queries: &Queries, scoring: &Scoring) -> Seen {
    let (first, length) = (queries.first, queries.end - queries.first);
    Seen {
        some: within(top, first, length),
        end_of_some: within(top + count - 1 + scoring.window, first, length),
        all: within(top + count - 1, first, length),
        end_of_all: within(top + scoring.window, first, length),
    }
}

/// The first key of the first block of keys that a query of a block sees.
#[cube]
fn first_key(queries: &Queries, scoring: &Scoring, #[comptime] blocking: Blocking) -> usize {
    let mut first = 0usize.runtime();
    if comptime!(blocking.kind.windowed) {
        first = first_seen(queries.first, scoring) / blocking.keys * blocking.keys;
    }
    first
}

/// Products of [`moec_ir::random::GOLDEN`] with the elements of the mask of vector `j` of the queries and a key.
#[cube]
fn mask_multiples<W: Size>(pair: usize, queries: &Queries, key: usize, j: usize) -> Vector<u32, W> {
    let time = queries.last + 1;
    let query = lane_numbers::<W>() + Vector::new(u32::cast_from(pair * time + queries.first + j * W::value()));
    golden_multiples::<W>(query * Vector::new(u32::cast_from(time)) + Vector::new(u32::cast_from(key)))
}

/// The larger of two numbers; the first if either is missing.
#[cube]
fn larger<W: Size>(a: Vector<f32, W>, b: Vector<f32, W>) -> Vector<f32, W> {
    select_many(b.greater_than(&a), b, a)
}

/// The largest score of each query of vector `j` among `before` and a block of keys; those that it does not see become -inf.
#[cube]
fn largest<W: Size>(
    scores: &mut Array<Vector<f32, W>>,
    before: Vector<f32, W>,
    queries: &Queries,
    keys: &Keys,
    j: usize,
    seen: &Seen,
    scoring: &Scoring,
    #[comptime] blocking: Blocking,
) -> Vector<f32, W> {
    let nq = blocking.queries;
    // Several at a time, so that one comparison need not wait for the one before.
    let chains = comptime!(4usize);
    let mut found = Array::<Vector<f32, W>>::new(chains);
    #[unroll]
    for c in 0..chains {
        found[c] = before;
    }
    for i in range_stepped(seen.all, seen.end_of_all, chains) {
        #[unroll]
        for c in 0..chains {
            found[c] = larger::<W>(found[c], scores[min(i + c, seen.end_of_all - 1) * nq + j]);
        }
    }
    let mut highest = larger::<W>(larger::<W>(found[0], found[1]), larger::<W>(found[2], found[3]));
    let query = lane_numbers::<W>() + Vector::new(u32::cast_from(queries.first + j * W::value()));
    if comptime!(blocking.kind.windowed) {
        let end = min(max(seen.all, seen.some), seen.end_of_some);
        for i in seen.some..end {
            let past = u32::cast_from(keys.first + i + scoring.window);
            let key = u32::cast_from(keys.first + i);
            let hidden = Vector::new(f32::NEG_INFINITY);
            let s = select_many(query.less_than(&Vector::new(past)), scores[i * nq + j], hidden);
            let s = select_many(query.greater_equal(&Vector::new(key)), s, hidden);
            scores[i * nq + j] = s;
            highest = larger::<W>(highest, s);
        }
    }
    let mut behind = seen.end_of_all;
    if comptime!(blocking.kind.windowed) {
        behind = max(behind, seen.all);
    }
    for i in behind..seen.end_of_some {
        let visible = query.greater_equal(&Vector::new(u32::cast_from(keys.first + i)));
        let s = select_many(visible, scores[i * nq + j], Vector::new(f32::NEG_INFINITY));
        scores[i * nq + j] = s;
        highest = larger::<W>(highest, s);
    }
    highest
}

/// Whether probabilities are dropped, from what their elements are multiplied to.
#[cube]
fn is_dropped<W: Size>(mask: &Mask<W>, multiples: Vector<u32, W>, scoring: &Scoring) -> Vector<bool, W> {
    random_bits_of_multiples::<W>(mask.a, mask.b, multiples).less_than(&Vector::new(scoring.threshold))
}

/// The scores of a block of keys become probabilities under the largest score so far.
#[cube]
fn softmax<W: Size>(
    scores: &mut Array<Vector<f32, W>>,
    running: &mut Running<W>,
    pair: usize,
    queries: &Queries,
    keys: &Keys,
    mask: &Mask<W>,
    scoring: &Scoring,
    #[comptime] blocking: Blocking,
) {
    let nq = blocking.queries;
    for j in 0..queries.vectors {
        let seen = seen_keys(queries.first + j * W::value(), W::value(), keys, scoring, blocking);
        if seen.end_of_some > seen.some {
            let before = running.highest[j];
            let now = largest::<W>(scores, before, queries, keys, j, &seen, scoring, blocking);
            let mut sum = Vector::<f32, W>::new(0.0f32);
            let mut multiples = Vector::<u32, W>::new(0u32);
            if comptime!(blocking.kind.dropout) {
                multiples = mask_multiples::<W>(pair, queries, keys.first + seen.some, j);
            }
            for i in seen.some..seen.end_of_some {
                let p = exp2::<W>(scores[i * nq + j] - now);
                sum += p;
                if comptime!(blocking.kind.dropout) {
                    let dropped = is_dropped::<W>(mask, multiples, scoring);
                    multiples += golden_multiples::<W>(Vector::new(1u32));
                    scores[i * nq + j] = select_many(dropped, Vector::new(0.0f32), p);
                } else {
                    scores[i * nq + j] = p;
                }
            }
            let shrink = exp2::<W>(before - now);
            running.shrink[j] = shrink;
            running.total[j] = fma(running.total[j], shrink, sum);
            running.highest[j] = now;
        }
    }
}

/// Nothing has been summed yet but the sink of head `head`.
#[cube]
fn begin<W: Size>(running: &mut Running<W>, head: usize, scoring: &Scoring, #[comptime] blocking: Blocking) {
    let mut highest = f32::NEG_INFINITY.runtime();
    let mut total = 0.0f32.runtime();
    if comptime!(blocking.kind.windowed) {
        // Queries of a block may see nothing of the first block of keys, and infinity less infinity is no number.
        highest = f32::min_value();
    }
    if comptime!(blocking.kind.sink) {
        highest = scoring.sinks[0][head] * comptime!(LOG2_E);
        total = 1.0f32;
    }
    #[unroll]
    for j in 0..blocking.queries {
        running.highest[j] = Vector::new(highest);
        running.total[j] = Vector::new(total);
    }
}

/// All keys are summed: `total` becomes the log-sum-exp, `shrink` the factor of the result.
#[cube]
fn finish<W: Size>(running: &mut Running<W>, keep: f32, #[comptime] blocking: Blocking) {
    #[unroll]
    for j in 0..blocking.queries {
        let total = running.total[j];
        running.shrink[j] = Vector::new(keep) / total;
        running.total[j] = fma(running.highest[j], Vector::new(comptime!(LN_2).runtime()), Vector::ln(total));
    }
}

/// For each query of a block, adds `sum_k scores[k] rows[k]` over the keys of a block that it sees to its row of `sums`, which is first
/// multiplied by the query's `shrink`.
#[cube]
fn add_to_queries<W: Size>(
    scores: &Array<Vector<f32, W>>,
    rows: &Array<Vector<f32, W>>,
    sums: &mut Array<Vector<f32, W>>,
    shrink: &Array<Vector<f32, W>>,
    queries: &Queries,
    keys: &Keys,
    scoring: &Scoring,
    #[comptime] shrinks: bool,
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    let nv = comptime!(blocking.tile_vectors());
    let (mr, row) = comptime!((w / nv, blocking.vectors));
    let over_keys = comptime!(Tile { rows: mr, over_keys: true });
    let mut tile = Array::<Vector<f32, W>>::new(w);
    for top in range_stepped(0, queries.end - queries.first, mr) {
        // No query of another tile sees these keys.
        let seen = seen_keys(queries.first + top, mr, keys, scoring, blocking);
        if seen.end_of_some > seen.some {
            for panel in 0..comptime!(row / nv) {
                #[unroll]
                for i in 0..mr {
                    #[unroll]
                    for j in 0..nv {
                        let mut sum = sums[(top + i) * row + panel * nv + j];
                        if comptime!(shrinks) {
                            sum *= broadcast::<W>(shrink, top + i);
                        }
                        tile[i * nv + j] = sum;
                    }
                }
                let corner = Corner { score: top, row: panel * nv };
                if comptime!(blocking.kind.windowed) {
                    let at = Pairs { row: queries.first + top, sum: keys.first };
                    add_seen::<W>(scores, rows, &mut tile, &corner, &at, &seen, scoring, over_keys, blocking);
                } else {
                    // Keys before those of the tile.
                    let all = min(max(queries.first + top, keys.first) - keys.first, keys.length);
                    add_whole::<W>(scores, rows, &mut tile, &corner, 0usize, all, over_keys, blocking);
                    if all < keys.length {
                        let corner =
                            Corner { score: top + all * comptime!(blocking.queries * w), row: all * row + panel * nv };
                        add_diagonal::<W>(scores, rows, &mut tile, &corner, over_keys, blocking);
                    }
                }
                #[unroll]
                for i in 0..mr {
                    #[unroll]
                    for j in 0..nv {
                        sums[(top + i) * row + panel * nv + j] = tile[i * nv + j];
                    }
                }
            }
        }
    }
}

/// For each key of a block, adds `sum_q scores[k][q] rows[q]` over the queries of a block that see it to its row in memory; the
/// block's own keys, which no earlier query has seen, are stored.
#[cube]
fn add_to_keys<W: Size, L: Size>(
    scores: &Array<Vector<f32, W>>,
    rows: &Array<Vector<f32, W>>,
    out: &mut [Vector<f32, L>],
    place: &Place,
    queries: &Queries,
    keys: &Keys,
    scoring: &Scoring,
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    let nv = comptime!(blocking.tile_vectors());
    let mr = comptime!(w / nv);
    let over_queries = comptime!(Tile { rows: mr, over_keys: false });
    let width = blocking.width;
    let mut tile = Array::<Vector<f32, W>>::new(w);
    clear(&mut tile, w);
    let one = Vector::<f32, W>::new(1.0f32);
    for top in range_stepped(0, keys.length, mr) {
        let row = place.start + (keys.first + top) * place.step;
        for panel in 0..comptime!(blocking.vectors / nv) {
            if keys.first + top >= queries.first {
                clear(&mut tile, w);
            } else {
                #[unroll]
                for i in 0..mr {
                    load_row::<W, L>(&*out, &mut tile, i, row + i * place.step, panel * nv, nv, width);
                }
            }
            let corner = Corner { score: top * comptime!(blocking.queries * w), row: panel * nv };
            if comptime!(blocking.kind.windowed) {
                let at = Pairs { row: keys.first + top, sum: queries.first };
                let seen = seeing_queries(at.row, mr, queries, scoring);
                add_seen::<W>(scores, rows, &mut tile, &corner, &at, &seen, scoring, over_queries, blocking);
            } else {
                // The first query that sees all keys of the tile.
                let mut all = 0usize.runtime();
                if keys.first + top >= queries.first {
                    let some = keys.first + top - queries.first;
                    let corner = Corner { score: corner.score + some, row: corner.row + some * blocking.vectors };
                    add_diagonal::<W>(scores, rows, &mut tile, &corner, over_queries, blocking);
                    all = some + mr;
                }
                let end = queries.end - queries.first;
                add_whole::<W>(scores, rows, &mut tile, &corner, all, end, over_queries, blocking);
            }
            for i in 0..min(mr, keys.length - top) {
                store_row::<W, L>(&tile, out, i, row + i * place.step, panel * nv, one, nv, width);
            }
        }
    }
}

/// From scores under the log-sum-exp, and gradients of probabilities less the row's product with its result: probabilities after
/// dropout, and gradients of scores. Those that a query does not see are never looked at.
#[cube]
fn slopes<W: Size>(
    scores: &mut Array<Vector<f32, W>>,
    gradients: &mut Array<Vector<f32, W>>,
    start: &Array<Vector<f32, W>>,
    pair: usize,
    queries: &Queries,
    keys: &Keys,
    mask: &Mask<W>,
    scoring: &Scoring,
    #[comptime] blocking: Blocking,
) {
    let nq = blocking.queries;
    for j in 0..queries.vectors {
        let seen = seen_keys(queries.first + j * W::value(), W::value(), keys, scoring, blocking);
        let dropped_gradient = start[j];
        let mut multiples = Vector::<u32, W>::new(0u32);
        if comptime!(blocking.kind.dropout) {
            multiples = mask_multiples::<W>(pair, queries, keys.first + seen.some, j);
        }
        for i in seen.some..seen.end_of_some {
            let p = exp2::<W>(scores[i * nq + j]);
            let mut gradient = gradients[i * nq + j];
            let mut kept = p;
            if comptime!(blocking.kind.dropout) {
                let dropped = is_dropped::<W>(mask, multiples, scoring);
                multiples += golden_multiples::<W>(Vector::new(1u32));
                kept = select_many(dropped, Vector::new(0.0f32), p);
                gradient = select_many(dropped, dropped_gradient, gradient);
            }
            scores[i * nq + j] = kept;
            gradients[i * nq + j] = p * gradient;
        }
    }
}

/// Forward: units share the blocks of queries of all pairs, in order; a block is as much work as it has predecessors.
#[cube(launch_unchecked)]
pub(super) fn forward<W: Size, L: Size>(
    qkv: &Rows<L>,
    y: &mut [Vector<f32, L>],
    lse: &mut [f32],
    time: usize,
    pairs: usize,
    scoring: &Scoring,
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    let (width, nv, nq) = (blocking.width, blocking.vectors, blocking.queries);
    let span = comptime!(nq * w);
    let mut columns = Array::<Vector<f32, W>>::new(comptime!(width * nq));
    let mut key_rows = Array::<Vector<f32, W>>::new(comptime!(blocking.keys * nv));
    let mut value_rows = Array::<Vector<f32, W>>::new(comptime!(blocking.keys * nv));
    let mut scores = Array::<Vector<f32, W>>::new(comptime!(blocking.keys * nq));
    let mut sums = Array::<Vector<f32, W>>::new(comptime!(span * nv));
    let mut zero = Array::<Vector<f32, W>>::new(nq);
    let mut running = Running::<W> {
        highest: Array::<Vector<f32, W>>::new(nq),
        total: Array::<Vector<f32, W>>::new(nq),
        shrink: Array::<Vector<f32, W>>::new(nq),
    };
    clear(&mut key_rows, comptime!(blocking.keys * nv));
    clear(&mut value_rows, comptime!(blocking.keys * nv));
    clear(&mut scores, comptime!(blocking.keys * nq));
    clear(&mut sums, comptime!(span * nv));
    clear(&mut zero, nq);
    let (a, b) = dropout_keys::<W>(scoring, blocking.kind.dropout);
    let mask = Mask::<W> { a, b };
    let blocks = (time + span - 1) / span;
    let work = blocks * (blocks + 1) / 2;
    let (unit, units) = (UNIT_POS as usize, CUBE_DIM as usize);
    // The pair in which this unit begins, and where in its work; and the next unit.
    let (pair0, pair1) = (part_of(pairs, unit, units), part_of(pairs, unit + 1, units));
    let work0 = part_of(work, pairs % units * unit % units, units);
    let work1 = part_of(work, pairs % units * (unit + 1) % units, units);
    for pair in pair0..min(pair1 + 1, pairs) {
        let from = select(pair == pair0, work0, 0usize);
        let to = select(pair == pair1, work1, work);
        let at = places(pair, time, scoring.heads, width);
        for block in 0..blocks {
            let before = block * (block + 1) / 2;
            if before >= from && before < to {
                let first = block * span;
                let queries = queries_from::<W>(first, time, blocking);
                let factor = scoring.scale * comptime!(LOG2_E);
                pack::<W, L>(qkv, &mut sums, &at.query, first, queries.rounded, queries.last, 1.0f32, blocking);
                transpose::<W>(&sums, &mut columns, &queries, factor, blocking);
                clear(&mut sums, queries.rounded * nv);
                begin::<W>(&mut running, pair % scoring.heads, scoring, blocking);
                for k0 in range_stepped(first_key(&queries, scoring, blocking), queries.end, blocking.keys) {
                    let keys = Keys { first: k0, length: min(blocking.keys, queries.end - k0) };
                    pack_keys::<W, L>(qkv, &mut key_rows, &at.key, &queries, &keys, blocking);
                    pack_keys::<W, L>(qkv, &mut value_rows, &at.value, &queries, &keys, blocking);
                    products::<W>(&key_rows, &columns, &zero, &mut scores, &queries, &keys, scoring, blocking);
                    softmax::<W>(&mut scores, &mut running, pair, &queries, &keys, &mask, scoring, blocking);
                    let shrink = &running.shrink;
                    add_to_queries::<W>(
                        &scores,
                        &value_rows,
                        &mut sums,
                        shrink,
                        &queries,
                        &keys,
                        scoring,
                        true,
                        blocking,
                    );
                }
                finish::<W>(&mut running, scoring.keep, blocking);
                for q in 0..queries.end - first {
                    let log_sum = running.total.with_vector_size::<Const<1>>()[q].extract(0usize);
                    lse[at.lse.start + (first + q) * at.lse.step] = log_sum;
                    let (row, factor) =
                        (at.result.start + (first + q) * at.result.step, broadcast::<W>(&running.shrink, q));
                    store_row::<W, L>(&sums, y, q, row, 0usize, factor, nv, width);
                }
            }
        }
    }
}

/// Loads a block of queries; `scratch` is overwritten.
#[cube]
fn load_errors<W: Size, L: Size>(
    errors: &mut Errors<W>,
    scratch: &mut Array<Vector<f32, W>>,
    saved: &Saved<L>,
    at: &Places,
    queries: &Queries,
    scoring: &Scoring,
    #[comptime] blocking: Blocking,
) {
    let (first, count, last) = (queries.first, queries.rounded, queries.last);
    let (scale, keep) = (scoring.scale, scoring.keep);
    pack::<W, L>(&saved.y, scratch, &at.result, first, count, last, 1.0f32 / keep, blocking);
    pack::<W, L>(&saved.dy, &mut errors.error_rows, &at.result, first, count, last, keep, blocking);
    pack::<W, L>(&saved.qkv, &mut errors.query_rows, &at.query, first, count, last, scale, blocking);
    transpose::<W>(&errors.error_rows, &mut errors.error_columns, queries, 1.0f32, blocking);
    // The softmax's gradient subtracts sum_k dp p = <dy, y> (Dao et al. 2022, equation 4).
    transpose::<W>(&*scratch, &mut errors.query_columns, queries, 1.0f32, blocking);
    for j in 0..queries.vectors {
        let mut delta = Vector::<f32, W>::new(0.0f32);
        for d in 0..blocking.width {
            let at = d * blocking.queries + j;
            delta = fma(errors.query_columns[at], errors.error_columns[at], delta);
        }
        errors.gradient_start[j] = -delta;
    }
    let factor = comptime!(LOG2_E).runtime();
    transpose::<W>(&errors.query_rows, &mut errors.query_columns, queries, factor, blocking);
    // The probabilities of a query beyond the last are 0.
    let start = errors.score_start.with_vector_size_mut::<Const<1>>();
    for q in 0..count {
        let log_sum = saved.lse[at.lse.start + min(first + q, last) * at.lse.step] * comptime!(-LOG2_E);
        start[q] = Vector::new(select(first + q < queries.end, log_sum, f32::NEG_INFINITY));
    }
}

/// Backward: a unit has whole pairs.
#[cube(launch_unchecked)]
pub(super) fn backward<W: Size, L: Size>(
    saved: &Saved<L>,
    dqkv: &mut [Vector<f32, L>],
    time: usize,
    pairs: usize,
    scoring: &Scoring,
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    let (width, nv, nq) = (blocking.width, blocking.vectors, blocking.queries);
    let span = comptime!(nq * w);
    let mut errors = Errors::<W> {
        query_columns: Array::<Vector<f32, W>>::new(comptime!(width * nq)),
        query_rows: Array::<Vector<f32, W>>::new(comptime!(span * nv)),
        error_columns: Array::<Vector<f32, W>>::new(comptime!(width * nq)),
        error_rows: Array::<Vector<f32, W>>::new(comptime!(span * nv)),
        score_start: Array::<Vector<f32, W>>::new(nq),
        gradient_start: Array::<Vector<f32, W>>::new(nq),
    };
    let mut key_rows = Array::<Vector<f32, W>>::new(comptime!(blocking.keys * nv));
    let mut value_rows = Array::<Vector<f32, W>>::new(comptime!(blocking.keys * nv));
    let mut scores = Array::<Vector<f32, W>>::new(comptime!(blocking.keys * nq));
    let mut gradients = Array::<Vector<f32, W>>::new(comptime!(blocking.keys * nq));
    let mut sums = Array::<Vector<f32, W>>::new(comptime!(span * nv));
    clear(&mut errors.query_rows, comptime!(span * nv));
    clear(&mut errors.error_rows, comptime!(span * nv));
    clear(&mut key_rows, comptime!(blocking.keys * nv));
    clear(&mut value_rows, comptime!(blocking.keys * nv));
    clear(&mut scores, comptime!(blocking.keys * nq));
    clear(&mut gradients, comptime!(blocking.keys * nq));
    clear(&mut sums, comptime!(span * nv));
    let (a, b) = dropout_keys::<W>(scoring, blocking.kind.dropout);
    let mask = Mask::<W> { a, b };
    for pair in first_item(pairs, Split::Ranges)..end_item(pairs, Split::Ranges) {
        let at = places(pair, time, scoring.heads, width);
        for first in range_stepped(0, time, span) {
            let queries = queries_from::<W>(first, time, blocking);
            load_errors::<W, L>(&mut errors, &mut sums, saved, &at, &queries, scoring, blocking);
            clear(&mut sums, queries.rounded * nv);
            for k0 in range_stepped(first_key(&queries, scoring, blocking), queries.end, blocking.keys) {
                let keys = Keys { first: k0, length: min(blocking.keys, queries.end - k0) };
                let (score_start, gradient_start) = (&errors.score_start, &errors.gradient_start);
                pack_keys::<W, L>(&saved.qkv, &mut key_rows, &at.key, &queries, &keys, blocking);
                pack_keys::<W, L>(&saved.qkv, &mut value_rows, &at.value, &queries, &keys, blocking);
                let (q, dy) = (&errors.query_columns, &errors.error_columns);
                products::<W>(&key_rows, q, score_start, &mut scores, &queries, &keys, scoring, blocking);
                products::<W>(&value_rows, dy, gradient_start, &mut gradients, &queries, &keys, scoring, blocking);
                slopes::<W>(
                    &mut scores,
                    &mut gradients,
                    gradient_start,
                    pair,
                    &queries,
                    &keys,
                    &mask,
                    scoring,
                    blocking,
                );
                add_to_queries::<W>(
                    &gradients,
                    &key_rows,
                    &mut sums,
                    gradient_start,
                    &queries,
                    &keys,
                    scoring,
                    false,
                    blocking,
                );
                add_to_keys::<W, L>(&gradients, &errors.query_rows, dqkv, &at.key, &queries, &keys, scoring, blocking);
                add_to_keys::<W, L>(&scores, &errors.error_rows, dqkv, &at.value, &queries, &keys, scoring, blocking);
            }
            let factor = Vector::<f32, W>::new(scoring.scale);
            for q in 0..queries.end - first {
                let row = at.query.start + (first + q) * at.query.step;
                store_row::<W, L>(&sums, dqkv, q, row, 0usize, factor, nv, width);
            }
        }
    }
}

/// Lanes of a register, and of the vectors in which rows of a head are read and written.
fn lanes(l: &Launcher, blocking: Blocking) -> (usize, usize) {
    let lanes = l.profile().matrix_width();
    (lanes, if blocking.width % lanes == 0 { lanes } else { 1 })
}

fn rows<L: Size>(t: &Target<'_>, x: Arg, lanes: usize) -> RowsLaunch<L> {
    RowsLaunch::new(t.bind(x, 1), t.bind(x, lanes))
}

/// The kernel of [`super::forward`].
pub(super) fn launch_forward(
    l: &Launcher,
    qkv: Arg,
    extra: &Extra,
    y: Arg,
    lse: Arg,
    attrs: &AttentionAttrs,
    blocking: Blocking,
) {
    let ((w, stored), time, pairs) = (lanes(l, blocking), attrs.time, lse.elements() / attrs.time);
    l.launch(
        pairs,
        || format!("attention w{w} {stored} {blocking:?}"),
        // SAFETY: a unit writes the rows of its blocks of queries; positions are cut off at the last of their sequence.
        |t| unsafe {
            let (qkv, y, lse, scoring) =
                (rows(t, qkv, stored), t.bind(y, stored), t.bind(lse, 1), scoring(t, attrs, extra));
            run!(t, forward(w, stored, qkv, y, lse, time, pairs, scoring, blocking));
        },
    );
}

/// The kernel of [`super::backward`].
pub(super) fn launch_backward(
    l: &Launcher,
    dy: Arg,
    qkv: Arg,
    y: Arg,
    lse: Arg,
    extra: &Extra,
    dqkv: Arg,
    attrs: &AttentionAttrs,
    blocking: Blocking,
) {
    let ((w, stored), time, pairs) = (lanes(l, blocking), attrs.time, lse.elements() / attrs.time);
    l.launch(
        pairs,
        || format!("attention_grad w{w} {stored} {blocking:?}"),
        // SAFETY: a unit reads and writes the rows of its pairs; positions are cut off at the last of their sequence.
        |t| unsafe {
            let (dy, qkv, y) = (rows(t, dy, stored), rows(t, qkv, stored), rows(t, y, stored));
            let (saved, dqkv) = (SavedLaunch::new(dy, qkv, y, t.bind(lse, 1)), t.bind(dqkv, stored));
            run!(t, backward(w, stored, saved, dqkv, time, pairs, scoring(t, attrs, extra), blocking));
        },
    );
}

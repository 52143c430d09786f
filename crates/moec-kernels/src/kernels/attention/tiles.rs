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
//!   by two, summed over keys or queries. Along the diagonal such a tile ends with a triangle that is written out, which
//!   never touches what a query does not see: 0 times infinity is not 0.
//!
//! Rows of the block of keys are copied to private arrays, as rows of vectors with zeros behind the last channel, since rows
//! in memory are far apart, often at a distance for which the first cache has few places. A block of 64 keys and 32
//! queries with two arrays of scores fits that cache up to heads of 64 channels. Powers of two, not of e: queries are
//! multiplied by `log2 e` beforehand.
//!
//! Forward, units share the blocks of queries of all pairs of a sequence and a head by their work. Backward, a pair
//! belongs to one unit: a block of queries adds to the gradients of all keys before it. Either way each sum runs in order
//! of channels, keys or queries, whatever the number of units.

use super::{Scoring, dropout_keys, scoring};
use crate::kernels::exponential::exp2;
use crate::kernels::lanes::lane_numbers;
use crate::kernels::random::{golden_multiples, random_bits_of_multiples};
use crate::launch::{Arg, Launcher, Split, Target, end_item, first_item, run};
use cubecl::prelude::*;
use moec_ir::AttentionAttrs;
use std::f32::consts::{LN_2, LOG2_E};

/// Most vectors of a private array, and channels of a head: larger arrays take the CPU's compiler seconds.
const LONGEST_ARRAY: usize = 1024;

/// Most keys of a block.
const MOST_KEYS: usize = 64;

/// How the kernels are blocked, and what else the compiler must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Blocking {
    /// Channels of a head, D.
    width: usize,
    /// Vectors of the channels of a head.
    vectors: usize,
    /// Vectors of the queries of a block: 1 or 2.
    queries: usize,
    /// Keys of a block, a multiple of the lanes.
    keys: usize,
    /// Whether probabilities are dropped.
    dropout: bool,
}

impl Blocking {
    /// The blocking for an operation; none on graphics devices, and for heads whose rows do not fit.
    pub(super) fn new(l: &Launcher, attrs: &AttentionAttrs, channels: usize) -> Option<Self> {
        let (lanes, width) = (l.profile().matrix_width(), channels / attrs.heads);
        let vectors = width.div_ceil(lanes);
        let queries = if 2 * lanes * vectors <= LONGEST_ARRAY { 2 } else { 1 };
        let keys = (LONGEST_ARRAY / vectors).min(MOST_KEYS) / lanes * lanes;
        let fits = l.is_cpu() && lanes * vectors <= LONGEST_ARRAY && keys > 0;
        fits.then_some(Self { width, vectors, queries, keys, dropout: attrs.dropout.get() > 0.0 })
    }

    /// Vectors of channels of a register tile, which divide those of a head.
    fn tile_vectors(&self) -> usize {
        if self.vectors % 2 == 0 { 2 } else { 1 }
    }
}

/// A matrix in which single elements and vectors are read.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Rows<L: Size> {
    elements: Box<[f32]>,
    vectors: Box<[Vector<f32, L>]>,
}

/// The rows of one head: element `start + step * position` is the first of a position's.
#[derive(CubeType)]
struct Place {
    start: usize,
    step: usize,
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

#[cube]
fn clear<W: Size>(values: &mut Array<Vector<f32, W>>, #[comptime] length: usize) {
    for i in 0..length {
        values[i] = Vector::new(0.0f32);
    }
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

/// The rows of a block of queries, times `factor`, transposed: a vector holds a channel of as many queries as it has lanes.
#[cube]
fn transpose<W: Size>(
    values: &[f32],
    out: &mut Array<Vector<f32, W>>,
    place: &Place,
    queries: &Queries,
    factor: f32,
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    let span = comptime!(blocking.queries * w);
    let out = out.with_vector_size_mut::<Const<1>>();
    for q in 0..span {
        let row = place.start + min(queries.first + q, queries.last) * place.step;
        for d in 0..blocking.width {
            out[d * span + q] = Vector::new(values[row + d] * factor);
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
        let mut column = Sequence::<Vector<f32, W>>::new();
        #[unroll]
        for j in 0..count {
            column.push(columns[d * nq + j0 + j]);
        }
        #[unroll]
        for i in 0..tile {
            let element = Vector::<f32, W>::new(elements[(top + i) * row + d].extract(0usize));
            #[unroll]
            for j in 0..count {
                acc[i * count + j] = fma(element, column[j], acc[i * count + j]);
            }
        }
    }
    #[unroll]
    for i in 0..tile {
        #[unroll]
        for j in 0..count {
            out[(top + i) * nq + j0 + j] = acc[i * count + j];
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
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    let nq = blocking.queries;
    let present = (queries.end - queries.first + w - 1) / w;
    for top in range_stepped(0, keys.length, comptime!(w / 2)) {
        // The first vector of queries that sees a key of the tile.
        let j0 = (max(keys.first + top, queries.first) - queries.first) / w;
        if comptime!(nq == 1) {
            multiply_columns::<W>(rows, columns, start, out, top, 0usize, 1usize, blocking);
        } else if j0 + 2 == present {
            multiply_columns::<W>(rows, columns, start, out, top, j0, 2usize, blocking);
        } else {
            multiply_columns::<W>(rows, columns, start, out, top, j0, 1usize, blocking);
        }
    }
}

/// Adds to a tile, which starts at query `top` of the block, the sum of `scores[k][q] rows[k]` over those keys of the block that
/// each of its queries sees.
#[cube]
fn add_over_keys<W: Size>(
    scores: &Array<Vector<f32, W>>,
    rows: &Array<Vector<f32, W>>,
    tile: &mut Array<Vector<f32, W>>,
    top: usize,
    panel: usize,
    queries: &Queries,
    keys: &Keys,
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    let nv = comptime!(blocking.tile_vectors());
    let (mr, row, span) = comptime!((w / nv, blocking.vectors, blocking.queries * w));
    let lanes = scores.with_vector_size::<Const<1>>();
    let mut acc = Array::<Vector<f32, W>>::new(w);
    #[unroll]
    for i in 0..w {
        acc[i] = tile[i];
    }
    // Keys that all queries of the tile see.
    let common = min(max(queries.first + top, keys.first) - keys.first, keys.length);
    for k in 0..common {
        let mut vectors = Sequence::<Vector<f32, W>>::new();
        #[unroll]
        for j in 0..nv {
            vectors.push(rows[k * row + panel * nv + j]);
        }
        #[unroll]
        for i in 0..mr {
            let score = Vector::<f32, W>::new(lanes[k * span + top + i].extract(0usize));
            #[unroll]
            for j in 0..nv {
                acc[i * nv + j] = fma(score, vectors[j], acc[i * nv + j]);
            }
        }
    }
    if common < keys.length {
        #[unroll]
        for t in 0..mr {
            let k = common + t;
            #[unroll]
            for j in 0..nv {
                let vector = rows[k * row + panel * nv + j];
                #[unroll]
                for i in t..mr {
                    let score = Vector::<f32, W>::new(lanes[k * span + top + i].extract(0usize));
                    acc[i * nv + j] = fma(score, vector, acc[i * nv + j]);
                }
            }
        }
    }
    #[unroll]
    for i in 0..w {
        tile[i] = acc[i];
    }
}

/// Adds to a tile, which starts at key `top` of the block, the sum of `scores[k][q] rows[q]` over those queries of the block that
/// see each of its keys.
#[cube]
fn add_over_queries<W: Size>(
    scores: &Array<Vector<f32, W>>,
    rows: &Array<Vector<f32, W>>,
    tile: &mut Array<Vector<f32, W>>,
    top: usize,
    panel: usize,
    queries: &Queries,
    keys: &Keys,
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    let nv = comptime!(blocking.tile_vectors());
    let (mr, row, span) = comptime!((w / nv, blocking.vectors, blocking.queries * w));
    let lanes = scores.with_vector_size::<Const<1>>();
    let mut acc = Array::<Vector<f32, W>>::new(w);
    #[unroll]
    for i in 0..w {
        acc[i] = tile[i];
    }
    let mut all = 0usize.runtime();
    if keys.first + top >= queries.first {
        // The first query that sees a key of the tile; after `mr` of them, all see all.
        let some = keys.first + top - queries.first;
        #[unroll]
        for t in 0..mr {
            let q = some + t;
            #[unroll]
            for j in 0..nv {
                let vector = rows[q * row + panel * nv + j];
                #[unroll]
                for i in 0..comptime!(t + 1) {
                    let score = Vector::<f32, W>::new(lanes[(top + i) * span + q].extract(0usize));
                    acc[i * nv + j] = fma(score, vector, acc[i * nv + j]);
                }
            }
        }
        all = some + mr;
    }
    for q in all..queries.end - queries.first {
        let mut vectors = Sequence::<Vector<f32, W>>::new();
        #[unroll]
        for j in 0..nv {
            vectors.push(rows[q * row + panel * nv + j]);
        }
        #[unroll]
        for i in 0..mr {
            let score = Vector::<f32, W>::new(lanes[(top + i) * span + q].extract(0usize));
            #[unroll]
            for j in 0..nv {
                acc[i * nv + j] = fma(score, vectors[j], acc[i * nv + j]);
            }
        }
    }
    #[unroll]
    for i in 0..w {
        tile[i] = acc[i];
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

/// Keys of a block that some of the queries of vector `j` see, and the first of them that not all see.
#[cube]
fn seen<W: Size>(queries: &Queries, keys: &Keys, j: usize) -> (usize, usize) {
    let top = queries.first + j * W::value();
    let some = min(max(top + W::value(), keys.first) - keys.first, keys.length);
    let all = min(max(top + 1, keys.first) - keys.first, keys.length);
    (some, all)
}

/// Products of [`moec_ir::random::GOLDEN`] with the elements of the mask of vector `j` of the queries and the first key.
#[cube]
fn mask_multiples<W: Size>(pair: usize, queries: &Queries, keys: &Keys, j: usize) -> Vector<u32, W> {
    let time = queries.last + 1;
    let query = lane_numbers::<W>() + Vector::new(u32::cast_from(pair * time + queries.first + j * W::value()));
    golden_multiples::<W>(query * Vector::new(u32::cast_from(time)) + Vector::new(u32::cast_from(keys.first)))
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
    #[comptime] blocking: Blocking,
) -> Vector<f32, W> {
    let nq = blocking.queries;
    let (some, all) = seen::<W>(queries, keys, j);
    // Several at a time, so that one comparison need not wait for the one before.
    let chains = comptime!(4usize);
    let mut found = Array::<Vector<f32, W>>::new(chains);
    #[unroll]
    for c in 0..chains {
        found[c] = before;
    }
    for i in range_stepped(0, all, chains) {
        #[unroll]
        for c in 0..chains {
            found[c] = larger::<W>(found[c], scores[min(i + c, all - 1) * nq + j]);
        }
    }
    let mut highest = larger::<W>(larger::<W>(found[0], found[1]), larger::<W>(found[2], found[3]));
    let query = lane_numbers::<W>() + Vector::new(u32::cast_from(queries.first + j * W::value()));
    for i in all..some {
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
    let w = W::value();
    let nq = blocking.queries;
    for j in 0..(queries.end - queries.first + w - 1) / w {
        let (some, all) = seen::<W>(queries, keys, j);
        if some > 0 {
            let before = running.highest[j];
            let now = largest::<W>(scores, before, queries, keys, j, blocking);
            let mut sum = Vector::<f32, W>::new(0.0f32);
            let mut multiples = Vector::<u32, W>::new(0u32);
            if comptime!(blocking.dropout) {
                multiples = mask_multiples::<W>(pair, queries, keys, j);
            }
            for i in 0..some {
                let p = exp2::<W>(scores[i * nq + j] - now);
                sum += p;
                if comptime!(blocking.dropout) {
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

/// `work * part / parts`, but for rounding that is the same for all units: the product may not fit 32 bits.
#[cube]
fn share(work: usize, part: usize, parts: usize) -> usize {
    work / parts * part + work % parts * part / parts
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
    #[comptime] shrinks: bool,
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    let nv = comptime!(blocking.tile_vectors());
    let (mr, row) = comptime!((w / nv, blocking.vectors));
    let mut tile = Array::<Vector<f32, W>>::new(w);
    for top in range_stepped(0, queries.end - queries.first, mr) {
        // No query of an earlier tile sees these keys.
        if queries.first + top + mr > keys.first {
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
                add_over_keys::<W>(scores, rows, &mut tile, top, panel, queries, keys, blocking);
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
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    let nv = comptime!(blocking.tile_vectors());
    let mr = comptime!(w / nv);
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
            add_over_queries::<W>(scores, rows, &mut tile, top, panel, queries, keys, blocking);
            for i in 0..min(mr, keys.length - top) {
                store_row::<W, L>(&tile, out, i, row + i * place.step, panel * nv, one, nv, width);
            }
        }
    }
}

/// The logarithm of sums of a block of queries, negative and to base 2. That of a query beyond the last is such that its
/// probabilities are 0.
#[cube]
fn load_lse<W: Size>(
    lse: &[f32],
    out: &mut Array<Vector<f32, W>>,
    start: usize,
    step: usize,
    queries: &Queries,
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    let out = out.with_vector_size_mut::<Const<1>>();
    for q in 0..comptime!(blocking.queries * w) {
        let query = queries.first + q;
        let log_sum = lse[start + min(query, queries.last) * step] * comptime!(-LOG2_E);
        out[q] = Vector::new(select(query < queries.end, log_sum, f32::NEG_INFINITY));
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
    let w = W::value();
    let nq = blocking.queries;
    for j in 0..(queries.end - queries.first + w - 1) / w {
        let (some, _all) = seen::<W>(queries, keys, j);
        let dropped_gradient = start[j];
        let mut multiples = Vector::<u32, W>::new(0u32);
        if comptime!(blocking.dropout) {
            multiples = mask_multiples::<W>(pair, queries, keys, j);
        }
        for i in 0..some {
            let p = exp2::<W>(scores[i * nq + j]);
            let mut gradient = gradients[i * nq + j];
            let mut kept = p;
            if comptime!(blocking.dropout) {
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
    let channels = scoring.heads * width;
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
    clear(&mut zero, nq);
    let (a, b) = dropout_keys::<W>(scoring, blocking.dropout);
    let mask = Mask::<W> { a, b };
    let blocks = (time + span - 1) / span;
    let work = blocks * (blocks + 1) / 2;
    let (unit, units) = (UNIT_POS as usize, CUBE_DIM as usize);
    // The pair in which this unit begins, and where in its work; and the next unit.
    let (pair0, pair1) = (share(pairs, unit, units), share(pairs, unit + 1, units));
    let work0 = share(work, pairs % units * unit % units, units);
    let work1 = share(work, pairs % units * (unit + 1) % units, units);
    for pair in pair0..min(pair1 + 1, pairs) {
        let from = select(pair == pair0, work0, 0usize);
        let to = select(pair == pair1, work1, work);
        let (token, head) = (pair / scoring.heads * time, pair % scoring.heads);
        let start = token * 3 * channels + head * width;
        let query_place = Place { start, step: 3 * channels };
        let key_place = Place { start: start + channels, step: 3 * channels };
        let value_place = Place { start: start + 2 * channels, step: 3 * channels };
        for block in 0..blocks {
            let at = block * (block + 1) / 2;
            if at >= from && at < to {
                let first = block * span;
                let queries = Queries { first, end: min(first + span, time), last: time - 1 };
                let factor = scoring.scale * comptime!(LOG2_E);
                transpose::<W>(&qkv.elements, &mut columns, &query_place, &queries, factor, blocking);
                clear(&mut sums, comptime!(span * nv));
                #[unroll]
                for j in 0..nq {
                    running.highest[j] = Vector::new(f32::NEG_INFINITY);
                    running.total[j] = Vector::new(0.0f32);
                }
                for k0 in range_stepped(0, queries.end, blocking.keys) {
                    let keys = Keys { first: k0, length: min(blocking.keys, queries.end - k0) };
                    pack_keys::<W, L>(qkv, &mut key_rows, &key_place, &queries, &keys, blocking);
                    pack_keys::<W, L>(qkv, &mut value_rows, &value_place, &queries, &keys, blocking);
                    products::<W>(&key_rows, &columns, &zero, &mut scores, &queries, &keys, blocking);
                    softmax::<W>(&mut scores, &mut running, pair, &queries, &keys, &mask, scoring, blocking);
                    add_to_queries::<W>(
                        &scores,
                        &value_rows,
                        &mut sums,
                        &running.shrink,
                        &queries,
                        &keys,
                        true,
                        blocking,
                    );
                }
                #[unroll]
                for j in 0..nq {
                    let total = running.total[j];
                    running.shrink[j] = Vector::new(scoring.keep) / total;
                    running.total[j] =
                        fma(running.highest[j], Vector::new(comptime!(LN_2).runtime()), Vector::ln(total));
                }
                for q in 0..queries.end - first {
                    let row = token + first + q;
                    lse[row * scoring.heads + head] = running.total.with_vector_size::<Const<1>>()[q].extract(0usize);
                    let factor = broadcast::<W>(&running.shrink, q);
                    store_row::<W, L>(&sums, y, q, row * channels + head * width, 0usize, factor, nv, width);
                }
            }
        }
    }
}

/// Backward: a unit has whole pairs.
#[cube(launch_unchecked)]
pub(super) fn backward<W: Size, L: Size>(
    dy: &Rows<L>,
    qkv: &Rows<L>,
    y: &[f32],
    lse: &[f32],
    dqkv: &mut [Vector<f32, L>],
    time: usize,
    pairs: usize,
    scoring: &Scoring,
    #[comptime] blocking: Blocking,
) {
    let w = W::value();
    let (width, nv, nq) = (blocking.width, blocking.vectors, blocking.queries);
    let span = comptime!(nq * w);
    let (heads, scale) = (scoring.heads, scoring.scale);
    let channels = heads * width;
    let mut query_columns = Array::<Vector<f32, W>>::new(comptime!(width * nq));
    let mut error_columns = Array::<Vector<f32, W>>::new(comptime!(width * nq));
    let mut query_rows = Array::<Vector<f32, W>>::new(comptime!(span * nv));
    let mut error_rows = Array::<Vector<f32, W>>::new(comptime!(span * nv));
    let mut key_rows = Array::<Vector<f32, W>>::new(comptime!(blocking.keys * nv));
    let mut value_rows = Array::<Vector<f32, W>>::new(comptime!(blocking.keys * nv));
    let mut scores = Array::<Vector<f32, W>>::new(comptime!(blocking.keys * nq));
    let mut gradients = Array::<Vector<f32, W>>::new(comptime!(blocking.keys * nq));
    let mut sums = Array::<Vector<f32, W>>::new(comptime!(span * nv));
    let mut score_start = Array::<Vector<f32, W>>::new(nq);
    let mut gradient_start = Array::<Vector<f32, W>>::new(nq);
    clear(&mut query_rows, comptime!(span * nv));
    clear(&mut error_rows, comptime!(span * nv));
    clear(&mut key_rows, comptime!(blocking.keys * nv));
    clear(&mut value_rows, comptime!(blocking.keys * nv));
    clear(&mut scores, comptime!(blocking.keys * nq));
    clear(&mut gradients, comptime!(blocking.keys * nq));
    let (a, b) = dropout_keys::<W>(scoring, blocking.dropout);
    let mask = Mask::<W> { a, b };
    for pair in first_item(pairs, Split::Ranges)..end_item(pairs, Split::Ranges) {
        let (token, head) = (pair / heads * time, pair % heads);
        let start = token * 3 * channels + head * width;
        let query_place = Place { start, step: 3 * channels };
        let key_place = Place { start: start + channels, step: 3 * channels };
        let value_place = Place { start: start + 2 * channels, step: 3 * channels };
        let result_place = Place { start: token * channels + head * width, step: channels };
        for first in range_stepped(0, time, span) {
            let queries = Queries { first, end: min(first + span, time), last: time - 1 };
            // The softmax's gradient subtracts sum_k dp p = <dy, y> (Dao et al. 2022, equation 4).
            let unkept = 1.0f32 / scoring.keep;
            transpose::<W>(y, &mut query_columns, &result_place, &queries, unkept, blocking);
            transpose::<W>(&dy.elements, &mut error_columns, &result_place, &queries, scoring.keep, blocking);
            #[unroll]
            for j in 0..nq {
                let mut delta = Vector::<f32, W>::new(0.0f32);
                for d in 0..width {
                    delta = fma(query_columns[d * nq + j], error_columns[d * nq + j], delta);
                }
                gradient_start[j] = -delta;
            }
            let factor = scale * comptime!(LOG2_E);
            transpose::<W>(&qkv.elements, &mut query_columns, &query_place, &queries, factor, blocking);
            pack::<W, L>(qkv, &mut query_rows, &query_place, first, span, queries.last, scale, blocking);
            pack::<W, L>(dy, &mut error_rows, &result_place, first, span, queries.last, scoring.keep, blocking);
            load_lse::<W>(lse, &mut score_start, token * heads + head, heads, &queries, blocking);
            clear(&mut sums, comptime!(span * nv));
            for k0 in range_stepped(0, queries.end, blocking.keys) {
                let keys = Keys { first: k0, length: min(blocking.keys, queries.end - k0) };
                pack_keys::<W, L>(qkv, &mut key_rows, &key_place, &queries, &keys, blocking);
                pack_keys::<W, L>(qkv, &mut value_rows, &value_place, &queries, &keys, blocking);
                products::<W>(&key_rows, &query_columns, &score_start, &mut scores, &queries, &keys, blocking);
                products::<W>(&value_rows, &error_columns, &gradient_start, &mut gradients, &queries, &keys, blocking);
                slopes::<W>(
                    &mut scores,
                    &mut gradients,
                    &gradient_start,
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
                    &gradient_start,
                    &queries,
                    &keys,
                    false,
                    blocking,
                );
                add_to_keys::<W, L>(&gradients, &query_rows, dqkv, &key_place, &queries, &keys, blocking);
                add_to_keys::<W, L>(&scores, &error_rows, dqkv, &value_place, &queries, &keys, blocking);
            }
            for q in 0..queries.end - first {
                let row = query_place.start + (first + q) * query_place.step;
                store_row::<W, L>(&sums, dqkv, q, row, 0usize, Vector::new(scale), nv, width);
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
    rng: Option<Arg>,
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
                (rows(t, qkv, stored), t.bind(y, stored), t.bind(lse, 1), scoring(t, attrs, rng));
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
    rng: Option<Arg>,
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
            let (dy, qkv, y, lse) = (rows(t, dy, stored), rows(t, qkv, stored), t.bind(y, 1), t.bind(lse, 1));
            let (dqkv, scoring) = (t.bind(dqkv, stored), scoring(t, attrs, rng));
            run!(t, backward(w, stored, dy, qkv, y, lse, dqkv, time, pairs, scoring, blocking));
        },
    );
}

//! Causal self-attention, forward and backward, without a `T x T` matrix in memory.
//!
//! `qkv` is `[N, 3C]`: query, key and value of head `h` start at `h*D`, `C + h*D` and `2C + h*D` of a token's row.
//! Dropout masks are computed again in the backward pass from random element `((b*H + h)*T + query)*T + key`, and so are
//! the probabilities, from the log-sum-exp of each query (as Dao et al. 2022, arXiv 2205.14135).
//!
//! CPU: a (sequence, head) pair belongs to one unit, with all its results. It takes a group of as many queries as a
//! vector has lanes at a time, transposed, so that scores are vectors over queries: maxima, sums and masks need no
//! reduction over lanes, and every sum runs in order of channels or positions whatever the vector width. The products
//! with rows of keys, values, queries and `dy` are register tiles over the head width. The width of a vector divides D,
//! so an odd D runs the same code on scalars.
//!
//! Graphics devices: one unit per (sequence, head, position). Backward, one owns the gradient of its position's query, and
//! another that of its key and value. Either way an element is summed by one unit in order of positions.

#![allow(unsafe_code, reason = "kernel launches")]

use super::lanes::lane_numbers;
use super::random::{key_a, key_b, random_bits};
use crate::launch::{Arg, Launcher, Split, Target, common_width, end_item, first_item, item_step, run};
use cubecl::prelude::*;
use moec_ir::AttentionAttrs;
use moec_ir::random::dropout_threshold;

/// Most queries or keys of a register tile.
const ROWS: usize = 4;

/// Most vectors of channels of a register tile.
const VECTORS: usize = 2;

/// What the compiler must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    /// Length of a sequence, T.
    time: usize,
    /// Head width, D.
    width: usize,
    /// Whether probabilities are dropped.
    dropout: bool,
    /// Whether loops over the head width are written out, so that graphics devices keep a row in registers.
    unroll: bool,
}

/// What all pairs of a sequence and a head have in common.
#[derive(CubeType, CubeLaunch)]
struct Scoring {
    heads: usize,
    scale: f32,
    /// State of the generator, if probabilities are dropped.
    rng: Sequence<Box<[u32]>>,
    /// The stream of random numbers.
    key: u32,
    /// Random words below it drop.
    threshold: u32,
    /// Factor of what is kept.
    keep: f32,
}

/// A matrix in which single elements and vectors are read.
#[derive(CubeType, CubeLaunch)]
struct Rows<W: Size> {
    elements: Box<[f32]>,
    vectors: Box<[Vector<f32, W>]>,
}

/// Where rows start, and how far they are apart.
#[derive(CubeType)]
struct Place {
    start: usize,
    step: usize,
}

/// Rows of a register tile, which divide the lanes of a vector.
fn tile_rows(lanes: usize) -> usize {
    common_width(ROWS, &[lanes])
}

/// Vectors of a register tile, which divide those of a head.
fn tile_vectors(width: usize, lanes: usize) -> usize {
    common_width(VECTORS, &[width / lanes])
}

/// Factor of each probability of a key for the queries of a group: 0 for a dropped one, else `keep`.
#[cube]
fn dropout_factors<W: Size>(
    a: Vector<u32, W>,
    b: Vector<u32, W>,
    counters: Vector<u32, W>,
    scoring: &Scoring,
) -> Vector<f32, W> {
    let bits = random_bits::<W>(a, b, counters);
    select_many(bits.less_than(&Vector::new(scoring.threshold)), Vector::new(0.0f32), Vector::new(scoring.keep))
}

/// The two keys of the stream that drops probabilities.
#[cube]
fn dropout_keys<W: Size>(scoring: &Scoring, #[comptime] shape: Shape) -> (Vector<u32, W>, Vector<u32, W>) {
    let mut a = Vector::<u32, W>::new(0u32);
    let mut b = Vector::<u32, W>::new(0u32);
    if comptime!(shape.dropout) {
        a = key_a::<W>(&scoring.rng[0], scoring.key);
        b = key_b::<W>(&scoring.rng[0], scoring.key, a);
    }
    (a, b)
}

/// A group of rows from position `first` on, transposed: element `d` holds channel `d` of each.
#[cube]
fn transpose<W: Size>(
    rows: &[f32],
    out: &mut Array<Vector<f32, W>>,
    start: usize,
    step: usize,
    first: usize,
    #[comptime] shape: Shape,
) {
    let out = out.with_vector_size_mut::<Const<1>>();
    for lane in 0..W::value() {
        let row = start + min(first + lane, shape.time - 1) * step;
        for d in 0..shape.width {
            out[d * W::value() + lane] = Vector::new(rows[row + d]);
        }
    }
}

/// Dot products of a tile of rows from position `first` on with every row of a transposed group.
#[cube]
fn dot_products<W: Size>(
    rows: &[f32],
    group: &Array<Vector<f32, W>>,
    out: &mut Array<Vector<f32, W>>,
    start: usize,
    step: usize,
    first: usize,
    #[comptime] shape: Shape,
) {
    let w = W::value();
    let tile = comptime!(tile_rows(w));
    let mut acc = Array::<Vector<f32, W>>::new(tile);
    for d in 0..shape.width {
        #[unroll]
        for i in 0..tile {
            let row = if comptime!(shape.time % w == 0) { first + i } else { min(first + i, shape.time - 1) };
            acc[i] = fma(Vector::new(rows[start + row * step + d]), group[d], acc[i]);
        }
    }
    #[unroll]
    for i in 0..tile {
        out[i] = acc[i];
    }
}

/// For each query of the group from `first` on, stores `factor * sum_k scores[k] rows[k]` over the positions that it sees
/// and that are before `end`. A position that it does not see is not read, since 0 times infinity is not 0.
#[cube]
fn times_rows<W: Size>(
    scores: &Array<Vector<f32, W>>,
    factors: &Array<Vector<f32, W>>,
    rows: &[Vector<f32, W>],
    out: &mut [Vector<f32, W>],
    from: &Place,
    to: &Place,
    first: usize,
    end: usize,
    #[comptime] shape: Shape,
) {
    let w = W::value();
    let tile = comptime!(tile_rows(w));
    let nv = comptime!(tile_vectors(shape.width, w));
    let lanes = scores.with_vector_size::<Const<1>>();
    for panel in 0..comptime!(shape.width / w / nv) {
        for lane in range_stepped(0, w, tile) {
            let mut acc = Array::<Vector<f32, W>>::new(comptime!(tile * nv));
            // What the first query of the tile sees, all of them see.
            let common = min(first + lane + 1, end);
            for k in 0..common {
                #[unroll]
                for j in 0..nv {
                    let row = rows[from.start + k * from.step + panel * nv + j];
                    #[unroll]
                    for i in 0..tile {
                        let score = Vector::<f32, W>::new(lanes[k * w + lane + i].extract(0usize));
                        acc[i * nv + j] = fma(score, row, acc[i * nv + j]);
                    }
                }
            }
            for k in common..min(first + lane + tile, end) {
                #[unroll]
                for j in 0..nv {
                    let row = rows[from.start + k * from.step + panel * nv + j];
                    #[unroll]
                    for i in 0..tile {
                        if k <= first + lane + i {
                            let score = Vector::<f32, W>::new(lanes[k * w + lane + i].extract(0usize));
                            acc[i * nv + j] = fma(score, row, acc[i * nv + j]);
                        }
                    }
                }
            }
            #[unroll]
            for i in 0..tile {
                if first + lane + i < shape.time {
                    let factor =
                        Vector::<f32, W>::new(factors.with_vector_size::<Const<1>>()[lane + i].extract(0usize));
                    #[unroll]
                    for j in 0..nv {
                        out[to.start + (first + lane + i) * to.step + panel * nv + j] = acc[i * nv + j] * factor;
                    }
                }
            }
        }
    }
}

/// For each position before `end`, adds `sum_q scores[k][q] rows[q]` over those of the group of queries from `first` on
/// that see it to `out[k]`; positions from `first` on, which no earlier group has seen, are stored.
#[cube]
fn transposed_times_rows<W: Size>(
    scores: &Array<Vector<f32, W>>,
    rows: &[Vector<f32, W>],
    out: &mut [Vector<f32, W>],
    from: &Place,
    to: &Place,
    first: usize,
    end: usize,
    #[comptime] shape: Shape,
) {
    let w = W::value();
    let tile = comptime!(tile_rows(w));
    let nv = comptime!(tile_vectors(shape.width, w));
    let lanes = scores.with_vector_size::<Const<1>>();
    for panel in 0..comptime!(shape.width / w / nv) {
        for k in range_stepped(0, end, tile) {
            let mut acc = Array::<Vector<f32, W>>::new(comptime!(tile * nv));
            if k < first {
                #[unroll]
                for i in 0..tile {
                    #[unroll]
                    for j in 0..nv {
                        acc[i * nv + j] = out[to.start + (k + i) * to.step + panel * nv + j];
                    }
                }
            }
            let queries = if comptime!(shape.time % w == 0) { w.runtime() } else { min(w, shape.time - first) };
            // The first query that sees the first position of the tile, and the first that sees all of them.
            let mut some = 0usize.runtime();
            let mut all = 0usize.runtime();
            if k >= first {
                some = k - first;
                all = min(some + tile - 1, queries);
            }
            for lane in some..all {
                #[unroll]
                for j in 0..nv {
                    let row = rows[from.start + (first + lane) * from.step + panel * nv + j];
                    #[unroll]
                    for i in 0..tile {
                        if k + i <= first + lane {
                            let score = Vector::<f32, W>::new(lanes[(k + i) * w + lane].extract(0usize));
                            acc[i * nv + j] = fma(score, row, acc[i * nv + j]);
                        }
                    }
                }
            }
            for lane in all..queries {
                #[unroll]
                for j in 0..nv {
                    let row = rows[from.start + (first + lane) * from.step + panel * nv + j];
                    #[unroll]
                    for i in 0..tile {
                        let score = Vector::<f32, W>::new(lanes[(k + i) * w + lane].extract(0usize));
                        acc[i * nv + j] = fma(score, row, acc[i * nv + j]);
                    }
                }
            }
            #[unroll]
            for i in 0..tile {
                if k + i < shape.time {
                    #[unroll]
                    for j in 0..nv {
                        out[to.start + (k + i) * to.step + panel * nv + j] = acc[i * nv + j];
                    }
                }
            }
        }
    }
}

/// CPU, forward: one unit per (sequence, head).
#[cube(launch_unchecked)]
fn forward_pairs<W: Size>(
    qkv: &Rows<W>,
    y: &mut [Vector<f32, W>],
    lse: &mut [f32],
    pairs: usize,
    scoring: &Scoring,
    #[comptime] shape: Shape,
    #[comptime] split: Split,
) {
    let w = W::value();
    let tile = comptime!(tile_rows(w));
    let groups = comptime!(shape.time.div_ceil(w));
    let (heads, scale) = (scoring.heads, scoring.scale);
    let channels = heads * shape.width;
    let row = 3 * channels;
    let lanes = lane_numbers::<W>();
    let mut scores = Array::<Vector<f32, W>>::new(comptime!(groups * w));
    let mut queries = Array::<Vector<f32, W>>::new(shape.width);
    let mut dots = Array::<Vector<f32, W>>::new(tile);
    // One number per query of a group.
    let mut statistic = Array::<Vector<f32, W>>::new(1usize);
    let (a, b) = dropout_keys::<W>(scoring, shape);
    for pair in range_stepped(first_item(pairs, split), end_item(pairs, split), item_step(split)) {
        let token = pair / heads * shape.time;
        let head = pair % heads;
        let start = token * row + head * shape.width;
        for g in 0..groups {
            let first = g * w;
            let end = min(first + w, shape.time);
            let query = lanes + Vector::new(u32::cast_from(first));
            transpose::<W>(&qkv.elements, &mut queries, start, row, first, shape);
            let mut highest = Vector::<f32, W>::new(f32::NEG_INFINITY);
            for k in range_stepped(0, first + w, tile) {
                dot_products::<W>(&qkv.elements, &queries, &mut dots, start + channels, row, k, shape);
                #[unroll]
                for i in 0..tile {
                    let visible = query.greater_equal(&Vector::new(u32::cast_from(k + i)));
                    let s = select_many(visible, dots[i] * Vector::new(scale), Vector::new(f32::NEG_INFINITY));
                    scores[k + i] = s;
                    highest = max(highest, s);
                }
            }
            let mut sum = Vector::<f32, W>::new(0.0);
            let counter = (query + Vector::new(u32::cast_from(pair * shape.time)))
                * Vector::new(comptime!(shape.time as u32).runtime());
            for k in 0..end {
                let visible = query.greater_equal(&Vector::new(u32::cast_from(k)));
                // Not the exponential of -inf: its computation passes through denormal numbers, which are slow.
                let exponent = select_many(visible, scores[k] - highest, Vector::new(0.0f32));
                let p = select_many(visible, Vector::exp(exponent), Vector::new(0.0f32));
                sum += p;
                if comptime!(shape.dropout) {
                    let counters = counter + Vector::new(u32::cast_from(k));
                    scores[k] = p * dropout_factors::<W>(a, b, counters, scoring);
                } else {
                    scores[k] = p;
                }
            }
            statistic[0] = highest + Vector::ln(sum);
            for lane in 0..end - first {
                let log_sum = statistic.with_vector_size::<Const<1>>()[lane].extract(0usize);
                lse[(token + first + lane) * heads + head] = log_sum;
            }
            statistic[0] = Vector::new(1.0f32) / sum;
            let values = Place { start: (start + 2 * channels) / w, step: row / w };
            let results = Place { start: (token * channels + head * shape.width) / w, step: channels / w };
            times_rows::<W>(&scores, &statistic, &qkv.vectors, y, &values, &results, first, end, shape);
        }
    }
}

/// CPU, backward: one unit per (sequence, head).
#[cube(launch_unchecked)]
fn backward_pairs<W: Size>(
    dy: &Rows<W>,
    qkv: &Rows<W>,
    y: &[f32],
    lse: &[f32],
    dqkv: &mut [Vector<f32, W>],
    pairs: usize,
    scoring: &Scoring,
    #[comptime] shape: Shape,
    #[comptime] split: Split,
) {
    let w = W::value();
    let tile = comptime!(tile_rows(w));
    let groups = comptime!(shape.time.div_ceil(w));
    let (heads, scale) = (scoring.heads, scoring.scale);
    let channels = heads * shape.width;
    let row = 3 * channels;
    let lanes = lane_numbers::<W>();
    // Probabilities after dropout, and gradients of the scores.
    let mut probabilities = Array::<Vector<f32, W>>::new(comptime!(groups * w));
    let mut slopes = Array::<Vector<f32, W>>::new(comptime!(groups * w));
    let mut queries = Array::<Vector<f32, W>>::new(shape.width);
    let mut errors = Array::<Vector<f32, W>>::new(shape.width);
    let mut dots = Array::<Vector<f32, W>>::new(tile);
    let mut error_dots = Array::<Vector<f32, W>>::new(tile);
    // One number per query of a group.
    let mut statistic = Array::<Vector<f32, W>>::new(1usize);
    let (a, b) = dropout_keys::<W>(scoring, shape);
    for pair in range_stepped(first_item(pairs, split), end_item(pairs, split), item_step(split)) {
        let token = pair / heads * shape.time;
        let head = pair % heads;
        let start = token * row + head * shape.width;
        let out = token * channels + head * shape.width;
        for g in 0..groups {
            let first = g * w;
            let end = min(first + w, shape.time);
            let query = lanes + Vector::new(u32::cast_from(first));
            // The softmax's gradient subtracts sum_k dp p = <dy, y> (Dao et al. 2022, equation 4).
            transpose::<W>(y, &mut queries, out, channels, first, shape);
            transpose::<W>(&dy.elements, &mut errors, out, channels, first, shape);
            let mut delta = Vector::<f32, W>::new(0.0);
            for d in 0..shape.width {
                delta = fma(queries[d], errors[d], delta);
            }
            transpose::<W>(&qkv.elements, &mut queries, start, row, first, shape);
            for lane in 0..w {
                let log_sum = lse[(token + min(first + lane, shape.time - 1)) * heads + head];
                statistic.with_vector_size_mut::<Const<1>>()[lane] = Vector::new(log_sum);
            }
            let log_sum = statistic[0];
            let counter = (query + Vector::new(u32::cast_from(pair * shape.time)))
                * Vector::new(comptime!(shape.time as u32).runtime());
            // Number of keys that each query sees; none for a lane beyond the last query.
            let inside = query.less_than(&Vector::new(comptime!(shape.time as u32).runtime()));
            let seen = select_many(inside, query + Vector::new(1u32), Vector::new(0u32));
            for k in range_stepped(0, first + w, tile) {
                dot_products::<W>(&qkv.elements, &queries, &mut dots, start + channels, row, k, shape);
                dot_products::<W>(&qkv.elements, &errors, &mut error_dots, start + 2 * channels, row, k, shape);
                #[unroll]
                for i in 0..tile {
                    let visible = seen.greater_than(&Vector::new(u32::cast_from(k + i)));
                    let p = Vector::exp(dots[i] * Vector::new(scale) - log_sum);
                    let p = select_many(visible, p, Vector::new(0.0f32));
                    let mut kept = p;
                    let mut dp = error_dots[i];
                    if comptime!(shape.dropout) {
                        let counters = counter + Vector::new(u32::cast_from(k + i));
                        let factors = dropout_factors::<W>(a, b, counters, scoring);
                        kept = p * factors;
                        dp *= factors;
                    }
                    probabilities[k + i] = kept;
                    slopes[k + i] = p * (dp - delta) * Vector::new(scale);
                }
            }
            statistic[0] = Vector::new(1.0);
            let query_rows = Place { start: start / w, step: row / w };
            let key_rows = Place { start: start / w + channels / w, step: row / w };
            let value_rows = Place { start: start / w + 2 * channels / w, step: row / w };
            let result_rows = Place { start: out / w, step: channels / w };
            let last = first + w;
            times_rows::<W>(&slopes, &statistic, &qkv.vectors, dqkv, &key_rows, &query_rows, first, end, shape);
            transposed_times_rows::<W>(&slopes, &qkv.vectors, dqkv, &query_rows, &key_rows, first, last, shape);
            transposed_times_rows::<W>(
                &probabilities,
                &dy.vectors,
                dqkv,
                &result_rows,
                &value_rows,
                first,
                last,
                shape,
            );
        }
    }
}

/// `sum_d a[a0 + d] b[b0 + d]`
#[cube]
fn dot_product(a: &[f32], b: &[f32], a0: usize, b0: usize, #[comptime] shape: Shape) -> f32 {
    let mut sum = 0.0f32;
    #[unroll(shape.unroll)]
    for d in 0..shape.width {
        sum = fma(a[a0 + d], b[b0 + d], sum);
    }
    sum
}

/// Graphics devices, forward: one unit per (sequence, head, query).
#[cube(launch_unchecked)]
fn forward_positions(
    qkv: &[f32],
    y: &mut [f32],
    lse: &mut [f32],
    positions: usize,
    scoring: &Scoring,
    #[comptime] shape: Shape,
    #[comptime] split: Split,
) {
    let width = shape.width;
    let (heads, scale) = (scoring.heads, scoring.scale);
    let channels = heads * width;
    let row = 3 * channels;
    let (a, b) = dropout_keys::<Const<1>>(scoring, shape);
    for item in range_stepped(first_item(positions, split), end_item(positions, split), item_step(split)) {
        let (pair, q) = (item / shape.time, item % shape.time);
        let token = pair / heads * shape.time;
        let head = pair % heads;
        let start = token * row + head * width;
        let query = start + q * row;
        let mut highest = f32::min_value();
        for k in 0..q + 1 {
            let s = dot_product(qkv, qkv, query, start + channels + k * row, shape) * scale;
            highest = max(highest, s);
        }
        let mut acc = Array::<f32>::new(width);
        #[unroll(shape.unroll)]
        for d in 0..width {
            acc[d] = 0.0;
        }
        let mut sum = 0.0f32;
        for k in 0..q + 1 {
            let s = dot_product(qkv, qkv, query, start + channels + k * row, shape) * scale;
            let p = f32::exp(s - highest);
            sum += p;
            let mut kept = p;
            if comptime!(shape.dropout) {
                let counters = Vector::new(u32::cast_from((pair * shape.time + q) * shape.time + k));
                kept *= dropout_factors::<Const<1>>(a, b, counters, scoring).extract(0usize);
            }
            #[unroll(shape.unroll)]
            for d in 0..width {
                acc[d] = fma(kept, qkv[start + 2 * channels + k * row + d], acc[d]);
            }
        }
        lse[(token + q) * heads + head] = highest + f32::ln(sum);
        #[unroll(shape.unroll)]
        for d in 0..width {
            y[(token + q) * channels + head * width + d] = acc[d] / sum;
        }
    }
}

/// Graphics devices, backward: one unit per (sequence, head, position) for what the position is as a query, and one for
/// what it is as a key and a value.
#[cube(launch_unchecked)]
fn backward_positions(
    dy: &[f32],
    qkv: &[f32],
    y: &[f32],
    lse: &[f32],
    dqkv: &mut [f32],
    positions: usize,
    scoring: &Scoring,
    #[comptime] shape: Shape,
    #[comptime] split: Split,
) {
    let width = shape.width;
    let (heads, scale) = (scoring.heads, scoring.scale);
    let channels = heads * width;
    let row = 3 * channels;
    let (a, b) = dropout_keys::<Const<1>>(scoring, shape);
    let items = 2 * positions;
    for item in range_stepped(first_item(items, split), end_item(items, split), item_step(split)) {
        let (pair, t) = (item % positions / shape.time, item % shape.time);
        let token = pair / heads * shape.time;
        let head = pair % heads;
        let start = token * row + head * width;
        let out = token * channels + head * width;
        let mut first = Array::<f32>::new(width);
        #[unroll(shape.unroll)]
        for d in 0..width {
            first[d] = 0.0;
        }
        if item < positions {
            // The position as a query.
            let delta = dot_product(dy, y, out + t * channels, out + t * channels, shape);
            let log_sum = lse[(token + t) * heads + head];
            for k in 0..t + 1 {
                let key_row = start + channels + k * row;
                let p = f32::exp(dot_product(qkv, qkv, start + t * row, key_row, shape) * scale - log_sum);
                let mut dp = dot_product(dy, qkv, out + t * channels, key_row + channels, shape);
                if comptime!(shape.dropout) {
                    let counters = Vector::new(u32::cast_from((pair * shape.time + t) * shape.time + k));
                    dp *= dropout_factors::<Const<1>>(a, b, counters, scoring).extract(0usize);
                }
                let slope = p * (dp - delta) * scale;
                #[unroll(shape.unroll)]
                for d in 0..width {
                    first[d] = fma(slope, qkv[key_row + d], first[d]);
                }
            }
            #[unroll(shape.unroll)]
            for d in 0..width {
                dqkv[start + t * row + d] = first[d];
            }
        } else {
            // The position as a key and a value.
            let mut second = Array::<f32>::new(width);
            #[unroll(shape.unroll)]
            for d in 0..width {
                second[d] = 0.0;
            }
            let key_row = start + channels + t * row;
            for q in t..shape.time {
                let delta = dot_product(dy, y, out + q * channels, out + q * channels, shape);
                let score = dot_product(qkv, qkv, start + q * row, key_row, shape) * scale;
                let p = f32::exp(score - lse[(token + q) * heads + head]);
                let mut dp = dot_product(dy, qkv, out + q * channels, key_row + channels, shape);
                let mut kept = p;
                if comptime!(shape.dropout) {
                    let counters = Vector::new(u32::cast_from((pair * shape.time + q) * shape.time + t));
                    let factor = dropout_factors::<Const<1>>(a, b, counters, scoring).extract(0usize);
                    kept *= factor;
                    dp *= factor;
                }
                let slope = p * (dp - delta) * scale;
                #[unroll(shape.unroll)]
                for d in 0..width {
                    first[d] = fma(slope, qkv[start + q * row + d], first[d]);
                    second[d] = fma(kept, dy[out + q * channels + d], second[d]);
                }
            }
            #[unroll(shape.unroll)]
            for d in 0..width {
                dqkv[key_row + d] = first[d];
                dqkv[key_row + channels + d] = second[d];
            }
        }
    }
}

/// The widest head whose loops are written out: beyond, a unit's rows do not fit its registers.
const UNROLLED: usize = 64;

/// Bytes of a unit's stack for rows of scores: threads have 2 MiB where nobody asked for more.
const SCORES_ON_STACK: usize = 1 << 19;

/// What forward and backward derive from the attributes.
struct Setting {
    /// A unit has whole pairs of a sequence and a head, with a row of scores for each lane on its stack; otherwise it has
    /// positions.
    by_pair: bool,
    lanes: usize,
    shape: Shape,
    pairs: usize,
}

impl Setting {
    fn new(l: &Launcher, attrs: &AttentionAttrs, tokens: usize, channels: usize) -> Self {
        let width = channels / attrs.heads;
        let lanes = if l.is_cpu() { l.matrix_width(&[width]) } else { 1 };
        // The backward pass has two: probabilities and slopes.
        let scores = attrs.time.next_multiple_of(lanes).saturating_mul(2 * 4 * lanes);
        let by_pair = l.is_cpu() && scores <= SCORES_ON_STACK;
        let dropout = attrs.dropout.get() > 0.0;
        Self {
            by_pair,
            lanes: if by_pair { lanes } else { 1 },
            shape: Shape { time: attrs.time, width, dropout, unroll: !l.is_cpu() && width <= UNROLLED },
            pairs: tokens / attrs.time * attrs.heads,
        }
    }
}

fn scoring(t: &Target<'_>, attrs: &AttentionAttrs, rng: Option<Arg>) -> ScoringLaunch {
    let rate = attrs.dropout.get();
    let (threshold, keep) = (dropout_threshold(rate), (1.0 / (1.0 - rate)) as f32);
    ScoringLaunch::new(attrs.heads, attrs.scale.get() as f32, t.bind_all(&rng, 1), attrs.key, threshold, keep)
}

fn rows<W: Size>(t: &Target<'_>, x: Arg, w: usize) -> RowsLaunch<W> {
    RowsLaunch::new(t.bind(x, 1), t.bind(x, w))
}

/// `y [N, C]` and the log-sum-exp of the scaled scores `lse [N, H]` from `qkv [N, 3C]`.
pub(crate) fn forward(
    l: &Launcher,
    qkv: Arg,
    rng: Option<Arg>,
    y: Arg,
    lse: Arg,
    attrs: &AttentionAttrs,
    channels: usize,
) {
    let Setting { by_pair, lanes: w, shape, pairs } = Setting::new(l, attrs, y.elements() / channels, channels);
    let (positions, split) = (pairs * shape.time, l.split());
    l.launch(
        if by_pair { pairs } else { positions },
        || format!("attention w{w} {shape:?}"),
        // SAFETY: a unit writes the rows of its (sequence, head) or position; keys beyond the last are not read.
        |t| unsafe {
            let (lse, scoring) = (t.bind(lse, 1), scoring(t, attrs, rng));
            if by_pair {
                let (qkv, y) = (rows(t, qkv, w), t.bind(y, w));
                run!(t, forward_pairs(w, qkv, y, lse, pairs, scoring, shape, split));
            } else {
                let (qkv, y) = (t.bind(qkv, 1), t.bind(y, 1));
                run!(t, forward_positions(qkv, y, lse, positions, scoring, shape, split));
            }
        },
    );
}

/// `dqkv [N, 3C]` from `dy [N, C]` and what the forward pass read and wrote.
pub(crate) fn backward(
    l: &Launcher,
    dy: Arg,
    qkv: Arg,
    y: Arg,
    lse: Arg,
    rng: Option<Arg>,
    dqkv: Arg,
    attrs: &AttentionAttrs,
    channels: usize,
) {
    let Setting { by_pair, lanes: w, shape, pairs } = Setting::new(l, attrs, y.elements() / channels, channels);
    let (positions, split) = (pairs * shape.time, l.split());
    l.launch(
        if by_pair { pairs } else { 2 * positions },
        || format!("attention_grad w{w} {shape:?}"),
        // SAFETY: as for `forward`.
        |t| unsafe {
            let (y, lse, scoring) = (t.bind(y, 1), t.bind(lse, 1), scoring(t, attrs, rng));
            if by_pair {
                let (dy, qkv, dqkv) = (rows(t, dy, w), rows(t, qkv, w), t.bind(dqkv, w));
                run!(t, backward_pairs(w, dy, qkv, y, lse, dqkv, pairs, scoring, shape, split));
            } else {
                let (dy, qkv, dqkv) = (t.bind(dy, 1), t.bind(qkv, 1), t.bind(dqkv, 1));
                run!(t, backward_positions(dy, qkv, y, lse, dqkv, positions, scoring, shape, split));
            }
        },
    );
}

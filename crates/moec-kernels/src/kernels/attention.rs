//! Causal self-attention, forward and backward, without a `T x T` matrix in memory.
//!
//! `qkv` is `[N, 3C]`: query, key and value of head `h` start at `h*D`, `C + h*D` and `2C + h*D` of a token's row.
//! Dropout masks are computed again in the backward pass from random element `((b*H + h)*T + query)*T + key`, and so are
//! the probabilities, from the log-sum-exp of each query (as Dao et al. 2022, arXiv 2205.14135).
//!
//! CPU: a (sequence, head) pair belongs to one unit, with all its results. A block of queries is taken at a time, so
//! that its scores fit in a private array; they are vectors of `W` keys, whose dot products read `W` transposed key
//! rows. What follows is three small matrix products in register tiles over the head width. `W` divides D, so an odd D
//! runs the same code on scalars.
//!
//! Graphics devices: one unit per (sequence, head, position). Backward, it owns the gradient of its position's query,
//! then that of its key and value. Either way an element is summed by one unit in order of positions.

#![allow(unsafe_code, reason = "kernel launches")]

use super::lanes::{lane_max, lane_numbers, lane_sum};
use super::random::{key_a, key_b, random_bits};
use crate::launch::{Arg, Launcher, Split, common_width, end_item, first_item, item_step};
use cubecl::prelude::*;
use moec_ir::AttentionAttrs;
use moec_ir::random::dropout_threshold;

/// Queries of a register tile.
const QUERIES: usize = 4;

/// Score vectors that a unit holds: private arrays beyond 1024 elements take the CPU's compiler seconds.
const SCORES: usize = 1024;

/// Most channels of a register tile, in vectors.
const CHANNELS: usize = 2;

/// What the compiler must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    /// Length of a sequence, T.
    time: usize,
    /// Head width, D.
    width: usize,
    /// Queries of a block.
    block: usize,
    /// Vectors of keys in a row of scores.
    groups: usize,
    /// Whether probabilities are dropped.
    dropout: bool,
}

impl Shape {
    fn new(time: usize, width: usize, lanes: usize, dropout: bool) -> Self {
        let groups = time.div_ceil(lanes);
        // Blocks start at multiples of 8 queries, which every vector and tile divides.
        let block = if time * groups <= SCORES { time } else { (SCORES / groups / 8 * 8).max(8) };
        Self { time, width, block, groups, dropout }
    }
}

/// Factor of each probability of `W` keys from `key` on: 0 for a dropped one, else `keep`.
#[cube]
fn dropout_factors<W: Size>(
    a: Vector<u32, W>,
    b: Vector<u32, W>,
    counter: usize,
    threshold: u32,
    keep: f32,
) -> Vector<f32, W> {
    let bits = random_bits::<W>(a, b, Vector::new(u32::cast_from(counter)) + lane_numbers::<W>());
    select_many(bits.less_than(&Vector::new(threshold)), Vector::new(0.0f32), Vector::new(keep))
}

/// Rows of `W` keys (or values) from position `key` on, transposed: element `d` holds channel `d` of each. Positions
/// beyond the last repeat it.
#[cube]
fn transpose_group<W: Size>(
    qkv: &[f32],
    out: &mut Array<Vector<f32, W>>,
    start: usize,
    key: usize,
    row: usize,
    #[comptime] shape: Shape,
) {
    for d in 0..shape.width {
        let mut v = Vector::<f32, W>::empty();
        #[unroll]
        for lane in 0..W::value() {
            v.insert(lane, qkv[start + min(key + lane, shape.time - 1) * row + d]);
        }
        out[d] = v;
    }
}

/// For a tile of queries of a block, the sum over keys of score times row: `sum_k scores[q, k] rows[k]`.
#[cube]
fn times_rows<W: Size>(
    scores: &Array<Vector<f32, W>>,
    rows: &[Vector<f32, W>],
    out: &mut [Vector<f32, W>],
    rows_start: usize,
    rows_step: usize,
    out_start: usize,
    out_step: usize,
    q0: usize,
    q1: usize,
    #[comptime] shape: Shape,
) {
    let w = W::value();
    let nv = comptime!(tile_channels(shape.width / w));
    for tile in 0..(q1 - q0 + QUERIES - 1) / QUERIES {
        let top = tile * QUERIES;
        let last = min(top + QUERIES, q1 - q0) - 1;
        let groups = (q0 + last) / w + 1;
        for panel in 0..comptime!(shape.width / w / nv) {
            let mut acc = Array::<Vector<f32, W>>::new(comptime!(QUERIES * nv));
            for g in 0..groups {
                #[unroll]
                for lane in 0..w {
                    let key = min(g * w + lane, shape.time - 1);
                    let from = rows_start + key * rows_step + panel * nv;
                    #[unroll]
                    for i in 0..QUERIES {
                        let s = Vector::<f32, W>::new(scores[min(top + i, last) * shape.groups + g].extract(lane));
                        #[unroll]
                        for j in 0..nv {
                            acc[i * nv + j] = fma(s, rows[from + j], acc[i * nv + j]);
                        }
                    }
                }
            }
            #[unroll]
            for i in 0..QUERIES {
                if top + i <= last {
                    #[unroll]
                    for j in 0..nv {
                        out[out_start + (q0 + top + i) * out_step + panel * nv + j] = acc[i * nv + j];
                    }
                }
            }
        }
    }
}

/// For every key up to the block's last query, adds `sum_q scores[q, k] rows[q]` over the block's queries to `out[k]`;
/// keys that no earlier block had are stored.
#[cube]
fn transposed_times_rows<W: Size>(
    scores: &Array<Vector<f32, W>>,
    rows: &[Vector<f32, W>],
    out: &mut [Vector<f32, W>],
    rows_start: usize,
    rows_step: usize,
    out_start: usize,
    out_step: usize,
    q0: usize,
    q1: usize,
    #[comptime] shape: Shape,
) {
    let w = W::value();
    let nv = comptime!(tile_channels(shape.width / w));
    let keys = comptime!(if w < QUERIES { w } else { QUERIES });
    for g in 0..(q1 - 1) / w + 1 {
        for panel in 0..comptime!(shape.width / w / nv) {
            #[unroll]
            for part in 0..comptime!(w / keys) {
                let mut acc = Array::<Vector<f32, W>>::new(comptime!(keys * nv));
                if g * w < q0 {
                    #[unroll]
                    for i in 0..keys {
                        #[unroll]
                        for j in 0..nv {
                            acc[i * nv + j] = out[out_start + (g * w + part * keys + i) * out_step + panel * nv + j];
                        }
                    }
                }
                for q in max(q0, g * w)..q1 {
                    let s = scores[(q - q0) * shape.groups + g];
                    #[unroll]
                    for i in 0..keys {
                        let factor = Vector::<f32, W>::new(s.extract(comptime!(part * keys + i)));
                        #[unroll]
                        for j in 0..nv {
                            let row = rows[rows_start + q * rows_step + panel * nv + j];
                            acc[i * nv + j] = fma(factor, row, acc[i * nv + j]);
                        }
                    }
                }
                #[unroll]
                for i in 0..keys {
                    let key = g * w + part * keys + i;
                    if key < shape.time {
                        #[unroll]
                        for j in 0..nv {
                            out[out_start + key * out_step + panel * nv + j] = acc[i * nv + j];
                        }
                    }
                }
            }
        }
    }
}

/// Vectors of a register tile over a head of `vectors` vectors.
fn tile_channels(vectors: usize) -> usize {
    common_width(CHANNELS, &[vectors])
}

/// CPU, forward: one unit per (sequence, head).
#[cube(launch_unchecked)]
fn forward_pairs<W: Size>(
    qkv: &[f32],
    qkv_vectors: &[Vector<f32, W>],
    rng: &[u32],
    y: &mut [Vector<f32, W>],
    lse: &mut [f32],
    pairs: usize,
    heads: usize,
    scale: f32,
    key: u32,
    threshold: u32,
    keep: f32,
    #[comptime] shape: Shape,
    #[comptime] split: Split,
) {
    let w = W::value();
    let channels = heads * shape.width;
    let row = 3 * channels;
    let lanes = lane_numbers::<W>();
    let mut scores = Array::<Vector<f32, W>>::new(comptime!(shape.block * shape.groups));
    let mut keys = Array::<Vector<f32, W>>::new(shape.width);
    let mut a = Vector::<u32, W>::new(0u32);
    let mut b = Vector::<u32, W>::new(0u32);
    if comptime!(shape.dropout) {
        a = key_a::<W>(rng, key);
        b = key_b::<W>(rng, key, a);
    }
    for pair in range_stepped(first_item(pairs, split), end_item(pairs, split), item_step(split)) {
        let token = pair / heads * shape.time;
        let head = pair % heads;
        let start = token * row + head * shape.width;
        for block in 0..comptime!(shape.time.div_ceil(shape.block)) {
            let q0 = block * shape.block;
            let q1 = min(q0 + shape.block, shape.time);
            for g in 0..(q1 - 1) / w + 1 {
                transpose_group::<W>(qkv, &mut keys, start + channels, g * w, row, shape);
                for q in max(q0, g * w)..q1 {
                    let mut s = Vector::<f32, W>::new(0.0);
                    for d in 0..shape.width {
                        s = fma(Vector::new(qkv[start + q * row + d]), keys[d], s);
                    }
                    let visible = lanes.less_equal(&Vector::new(u32::cast_from(q - g * w)));
                    let s = select_many(visible, s * Vector::new(scale), Vector::new(f32::NEG_INFINITY));
                    scores[(q - q0) * shape.groups + g] = s;
                }
            }
            for q in q0..q1 {
                let line = (q - q0) * shape.groups;
                let own = q / w + 1;
                let mut largest = Vector::<f32, W>::new(f32::NEG_INFINITY);
                for g in 0..own {
                    largest = max(largest, scores[line + g]);
                }
                let highest = lane_max::<W>(largest);
                let mut sums = Vector::<f32, W>::new(0.0);
                for g in 0..own {
                    let visible = lanes.less_equal(&Vector::new(u32::cast_from(q - g * w)));
                    let p = Vector::exp(scores[line + g] - Vector::new(highest));
                    let p = select_many(visible, p, Vector::new(0.0f32));
                    scores[line + g] = p;
                    sums += p;
                }
                let sum = lane_sum::<W>(sums);
                lse[(token + q) * heads + head] = highest + f32::ln(sum);
                let inverse = Vector::<f32, W>::new(1.0 / sum);
                for g in 0..own {
                    let mut p = scores[line + g] * inverse;
                    if comptime!(shape.dropout) {
                        let counter = (pair * shape.time + q) * shape.time + g * w;
                        p *= dropout_factors::<W>(a, b, counter, threshold, keep);
                    }
                    scores[line + g] = p;
                }
                // The tile that this query is in reads as far as its last query sees.
                let last = min(((q - q0) / QUERIES + 1) * QUERIES + q0, q1) - 1;
                for g in own..last / w + 1 {
                    scores[line + g] = Vector::new(0.0);
                }
            }
            times_rows::<W>(
                &scores,
                qkv_vectors,
                y,
                (start + 2 * channels) / w,
                row / w,
                (token * channels + head * shape.width) / w,
                channels / w,
                q0,
                q1,
                shape,
            );
        }
    }
}

/// CPU, backward: one unit per (sequence, head).
#[cube(launch_unchecked)]
fn backward_pairs<W: Size>(
    dy: &[f32],
    dy_vectors: &[Vector<f32, W>],
    qkv: &[f32],
    qkv_vectors: &[Vector<f32, W>],
    y: &[Vector<f32, W>],
    lse: &[f32],
    rng: &[u32],
    dqkv: &mut [Vector<f32, W>],
    pairs: usize,
    heads: usize,
    scale: f32,
    key: u32,
    threshold: u32,
    keep: f32,
    #[comptime] shape: Shape,
    #[comptime] split: Split,
) {
    let w = W::value();
    let channels = heads * shape.width;
    let row = 3 * channels;
    let lanes = lane_numbers::<W>();
    // Probabilities after dropout, and gradients of the scores.
    let mut probabilities = Array::<Vector<f32, W>>::new(comptime!(shape.block * shape.groups));
    let mut slopes = Array::<Vector<f32, W>>::new(comptime!(shape.block * shape.groups));
    let mut keys = Array::<Vector<f32, W>>::new(shape.width);
    let mut values = Array::<Vector<f32, W>>::new(shape.width);
    let mut delta = Array::<f32>::new(shape.block);
    let mut a = Vector::<u32, W>::new(0u32);
    let mut b = Vector::<u32, W>::new(0u32);
    if comptime!(shape.dropout) {
        a = key_a::<W>(rng, key);
        b = key_b::<W>(rng, key, a);
    }
    for pair in range_stepped(first_item(pairs, split), end_item(pairs, split), item_step(split)) {
        let token = pair / heads * shape.time;
        let head = pair % heads;
        let start = token * row + head * shape.width;
        let out = token * channels + head * shape.width;
        for block in 0..comptime!(shape.time.div_ceil(shape.block)) {
            let q0 = block * shape.block;
            let q1 = min(q0 + shape.block, shape.time);
            // The softmax's gradient subtracts sum_k dp p = <dy, y> (Dao et al. 2022, equation 4).
            for q in q0..q1 {
                let mut sums = Vector::<f32, W>::new(0.0);
                for d in 0..comptime!(shape.width / w) {
                    let at = (out + q * channels) / w + d;
                    sums = fma(dy_vectors[at], y[at], sums);
                }
                delta[q - q0] = lane_sum::<W>(sums);
            }
            for g in 0..(q1 - 1) / w + 1 {
                transpose_group::<W>(qkv, &mut keys, start + channels, g * w, row, shape);
                transpose_group::<W>(qkv, &mut values, start + 2 * channels, g * w, row, shape);
                let first = max(q0, g * w);
                for q in first..q1 {
                    let mut s = Vector::<f32, W>::new(0.0);
                    let mut dp = Vector::<f32, W>::new(0.0);
                    for d in 0..shape.width {
                        s = fma(Vector::new(qkv[start + q * row + d]), keys[d], s);
                        dp = fma(Vector::new(dy[out + q * channels + d]), values[d], dp);
                    }
                    let visible = lanes.less_equal(&Vector::new(u32::cast_from(q - g * w)));
                    let p = Vector::exp(s * Vector::new(scale) - Vector::new(lse[(token + q) * heads + head]));
                    let p = select_many(visible, p, Vector::new(0.0f32));
                    let at = (q - q0) * shape.groups + g;
                    let mut kept = p;
                    if comptime!(shape.dropout) {
                        let counter = (pair * shape.time + q) * shape.time + g * w;
                        let factors = dropout_factors::<W>(a, b, counter, threshold, keep);
                        kept = p * factors;
                        dp *= factors;
                    }
                    probabilities[at] = kept;
                    slopes[at] = p * (dp - Vector::new(delta[q - q0])) * Vector::new(scale);
                }
                // Earlier queries of the first query's tile do not see this group, and their tile reads it.
                for q in q0 + (first - q0) / QUERIES * QUERIES..first {
                    slopes[(q - q0) * shape.groups + g] = Vector::new(0.0);
                }
            }
            let (from, step) = (start / w, row / w);
            let (from_dy, step_dy) = (out / w, channels / w);
            let (k_at, v_at) = (from + channels / w, from + 2 * channels / w);
            times_rows::<W>(&slopes, qkv_vectors, dqkv, k_at, step, from, step, q0, q1, shape);
            transposed_times_rows::<W>(&slopes, qkv_vectors, dqkv, from, step, k_at, step, q0, q1, shape);
            transposed_times_rows::<W>(&probabilities, dy_vectors, dqkv, from_dy, step_dy, v_at, step, q0, q1, shape);
        }
    }
}

/// `sum_d a[a0 + d] b[b0 + d]`
#[cube]
fn dot_product(a: &[f32], b: &[f32], a0: usize, b0: usize, width: usize) -> f32 {
    let mut sum = 0.0f32;
    for d in 0..width {
        sum = fma(a[a0 + d], b[b0 + d], sum);
    }
    sum
}

/// Graphics devices, forward: one unit per (sequence, head, query).
#[cube(launch_unchecked)]
fn forward_positions(
    qkv: &[f32],
    rng: &[u32],
    y: &mut [f32],
    lse: &mut [f32],
    positions: usize,
    heads: usize,
    scale: f32,
    key: u32,
    threshold: u32,
    keep: f32,
    #[comptime] shape: Shape,
    #[comptime] split: Split,
) {
    let width = shape.width;
    let channels = heads * width;
    let row = 3 * channels;
    let mut a = Vector::<u32, Const<1>>::new(0u32);
    let mut b = Vector::<u32, Const<1>>::new(0u32);
    if comptime!(shape.dropout) {
        a = key_a::<Const<1>>(rng, key);
        b = key_b::<Const<1>>(rng, key, a);
    }
    for item in range_stepped(first_item(positions, split), end_item(positions, split), item_step(split)) {
        let (pair, q) = (item / shape.time, item % shape.time);
        let token = pair / heads * shape.time;
        let head = pair % heads;
        let start = token * row + head * width;
        let query = start + q * row;
        let mut highest = f32::min_value();
        for k in 0..q + 1 {
            let s = dot_product(qkv, qkv, query, start + channels + k * row, width) * scale;
            highest = max(highest, s);
        }
        let mut acc = Array::<f32>::new(width);
        for d in 0..width {
            acc[d] = 0.0;
        }
        let mut sum = 0.0f32;
        for k in 0..q + 1 {
            let s = dot_product(qkv, qkv, query, start + channels + k * row, width) * scale;
            let p = f32::exp(s - highest);
            sum += p;
            let mut kept = p;
            if comptime!(shape.dropout) {
                let counter = (pair * shape.time + q) * shape.time + k;
                kept *= dropout_factors::<Const<1>>(a, b, counter, threshold, keep).extract(0usize);
            }
            for d in 0..width {
                acc[d] = fma(kept, qkv[start + 2 * channels + k * row + d], acc[d]);
            }
        }
        lse[(token + q) * heads + head] = highest + f32::ln(sum);
        for d in 0..width {
            y[(token + q) * channels + head * width + d] = acc[d] / sum;
        }
    }
}

/// Graphics devices, backward: one unit per (sequence, head, position).
#[cube(launch_unchecked)]
fn backward_positions(
    dy: &[f32],
    qkv: &[f32],
    y: &[f32],
    lse: &[f32],
    rng: &[u32],
    dqkv: &mut [f32],
    positions: usize,
    heads: usize,
    scale: f32,
    key: u32,
    threshold: u32,
    keep: f32,
    #[comptime] shape: Shape,
    #[comptime] split: Split,
) {
    let width = shape.width;
    let channels = heads * width;
    let row = 3 * channels;
    let mut a = Vector::<u32, Const<1>>::new(0u32);
    let mut b = Vector::<u32, Const<1>>::new(0u32);
    if comptime!(shape.dropout) {
        a = key_a::<Const<1>>(rng, key);
        b = key_b::<Const<1>>(rng, key, a);
    }
    for item in range_stepped(first_item(positions, split), end_item(positions, split), item_step(split)) {
        let (pair, t) = (item / shape.time, item % shape.time);
        let token = pair / heads * shape.time;
        let head = pair % heads;
        let start = token * row + head * width;
        let out = token * channels + head * width;
        // The position as a query.
        let mut first = Array::<f32>::new(width);
        let mut second = Array::<f32>::new(width);
        for d in 0..width {
            first[d] = 0.0;
        }
        let delta = dot_product(dy, y, out + t * channels, out + t * channels, width);
        let log_sum = lse[(token + t) * heads + head];
        for k in 0..t + 1 {
            let key_row = start + channels + k * row;
            let p = f32::exp(dot_product(qkv, qkv, start + t * row, key_row, width) * scale - log_sum);
            let mut dp = dot_product(dy, qkv, out + t * channels, key_row + channels, width);
            if comptime!(shape.dropout) {
                let counter = (pair * shape.time + t) * shape.time + k;
                dp *= dropout_factors::<Const<1>>(a, b, counter, threshold, keep).extract(0usize);
            }
            let slope = p * (dp - delta) * scale;
            for d in 0..width {
                first[d] = fma(slope, qkv[key_row + d], first[d]);
            }
        }
        for d in 0..width {
            dqkv[start + t * row + d] = first[d];
            first[d] = 0.0;
            second[d] = 0.0;
        }
        // The position as a key and a value.
        let key_row = start + channels + t * row;
        for q in t..shape.time {
            let delta = dot_product(dy, y, out + q * channels, out + q * channels, width);
            let score = dot_product(qkv, qkv, start + q * row, key_row, width) * scale;
            let p = f32::exp(score - lse[(token + q) * heads + head]);
            let mut dp = dot_product(dy, qkv, out + q * channels, key_row + channels, width);
            let mut kept = p;
            if comptime!(shape.dropout) {
                let counter = (pair * shape.time + q) * shape.time + t;
                let factor = dropout_factors::<Const<1>>(a, b, counter, threshold, keep).extract(0usize);
                kept *= factor;
                dp *= factor;
            }
            let slope = p * (dp - delta) * scale;
            for d in 0..width {
                first[d] = fma(slope, qkv[start + q * row + d], first[d]);
                second[d] = fma(kept, dy[out + q * channels + d], second[d]);
            }
        }
        for d in 0..width {
            dqkv[key_row + d] = first[d];
            dqkv[key_row + channels + d] = second[d];
        }
    }
}

/// What forward and backward derive from the attributes.
struct Setting {
    lanes: usize,
    shape: Shape,
    pairs: usize,
    scale: f32,
    threshold: u32,
    keep: f32,
}

impl Setting {
    fn new(l: &Launcher, attrs: &AttentionAttrs, tokens: usize, channels: usize) -> Self {
        let width = channels / attrs.heads;
        let lanes = if l.is_cpu() { common_width(8, &[width]) } else { 1 };
        let rate = attrs.dropout.get();
        Self {
            lanes,
            shape: Shape::new(attrs.time, width, lanes, rate > 0.0),
            pairs: tokens / attrs.time * attrs.heads,
            scale: attrs.scale.get() as f32,
            threshold: dropout_threshold(rate),
            keep: (1.0 / (1.0 - rate)) as f32,
        }
    }
}

/// `y [N, C]` and the log-sum-exp of the scaled scores `lse [N, H]` from `qkv [N, 3C]`.
pub(crate) fn forward(
    l: &Launcher,
    qkv: Arg,
    rng: Option<Arg>,
    y: Arg,
    lse: Arg,
    attrs: &AttentionAttrs,
    tokens: usize,
    channels: usize,
) {
    let Setting { lanes: w, shape, pairs, scale, threshold, keep } = Setting::new(l, attrs, tokens, channels);
    let (heads, key, split) = (attrs.heads, attrs.key, l.split());
    // Without dropout the generator's state is never read.
    let rng = rng.unwrap_or(lse);
    let positions = pairs * shape.time;
    l.launch(
        if l.is_cpu() { pairs } else { positions },
        || format!("attention w{w} {shape:?}"),
        // SAFETY: a unit writes the rows of its (sequence, head) or position; keys beyond the last are not read.
        |t| unsafe {
            let (x, rng, lse) = (t.bind(qkv, 1), t.bind(rng, 1), t.bind(lse, 1));
            if l.is_cpu() {
                forward_pairs::launch_unchecked(
                    t.client,
                    t.count(),
                    t.dim(),
                    w,
                    x,
                    t.bind(qkv, w),
                    rng,
                    t.bind(y, w),
                    lse,
                    pairs,
                    heads,
                    scale,
                    key,
                    threshold,
                    keep,
                    shape,
                    split,
                );
            } else {
                let y = t.bind(y, 1);
                forward_positions::launch_unchecked(
                    t.client,
                    t.count(),
                    t.dim(),
                    x,
                    rng,
                    y,
                    lse,
                    positions,
                    heads,
                    scale,
                    key,
                    threshold,
                    keep,
                    shape,
                    split,
                );
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
    tokens: usize,
    channels: usize,
) {
    let Setting { lanes: w, shape, pairs, scale, threshold, keep } = Setting::new(l, attrs, tokens, channels);
    let (heads, key, split) = (attrs.heads, attrs.key, l.split());
    let rng = rng.unwrap_or(lse);
    let positions = pairs * shape.time;
    l.launch(
        if l.is_cpu() { pairs } else { positions },
        || format!("attention_grad w{w} {shape:?}"),
        // SAFETY: as for `forward`.
        |t| unsafe {
            let (d, x, lse, rng) = (t.bind(dy, 1), t.bind(qkv, 1), t.bind(lse, 1), t.bind(rng, 1));
            if l.is_cpu() {
                backward_pairs::launch_unchecked(
                    t.client,
                    t.count(),
                    t.dim(),
                    w,
                    d,
                    t.bind(dy, w),
                    x,
                    t.bind(qkv, w),
                    t.bind(y, w),
                    lse,
                    rng,
                    t.bind(dqkv, w),
                    pairs,
                    heads,
                    scale,
                    key,
                    threshold,
                    keep,
                    shape,
                    split,
                );
            } else {
                let (y, dqkv) = (t.bind(y, 1), t.bind(dqkv, 1));
                backward_positions::launch_unchecked(
                    t.client,
                    t.count(),
                    t.dim(),
                    d,
                    x,
                    y,
                    lse,
                    rng,
                    dqkv,
                    positions,
                    heads,
                    scale,
                    key,
                    threshold,
                    keep,
                    shape,
                    split,
                );
            }
        },
    );
}

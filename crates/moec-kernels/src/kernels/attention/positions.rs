//! Attention of heads too wide for tiles on CPUs: one item per (sequence, head, position).
//!
//! Backward, one owns the gradient of its position's query, and another that of its key and value. Either way an element is
//! summed by one unit in order of positions.

use super::{Extra, Kind, Scoring, dropout_keys, first_seen, scoring};
use crate::kernels::random::random_bits;
use crate::launch::{Arg, Launcher, Split, end_item, first_item, item_step, run};
use cubecl::prelude::*;
use moec_ir::AttentionAttrs;

/// What the compiler must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    /// Length of a sequence, T.
    time: usize,
    /// Head width, D.
    width: usize,
    kind: Kind,
}

/// Factor of a probability: 0 for a dropped one, else `keep`.
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

/// `sum_d a[a0 + d] b[b0 + d]`
#[cube]
fn dot_product(a: &[f32], b: &[f32], a0: usize, b0: usize, #[comptime] shape: Shape) -> f32 {
    let mut sum = 0.0f32;
    for d in 0..shape.width {
        sum = fma(a[a0 + d], b[b0 + d], sum);
    }
    sum
}

/// Forward: one item per (sequence, head, query).
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
    let (a, b) = dropout_keys::<Const<1>>(scoring, shape.kind.dropout);
    for item in range_stepped(first_item(positions, split), end_item(positions, split), item_step(split)) {
        let (pair, q) = (item / shape.time, item % shape.time);
        let token = pair / heads * shape.time;
        let head = pair % heads;
        let start = token * row + head * width;
        let query = start + q * row;
        let mut highest = f32::min_value();
        let mut sum = 0.0f32;
        if comptime!(shape.kind.sink) {
            highest = scoring.sinks[0][head];
        }
        let k0 = first_seen(q, scoring);
        for k in k0..q + 1 {
            let s = dot_product(qkv, qkv, query, start + channels + k * row, shape) * scale;
            highest = max(highest, s);
        }
        let mut acc = Array::<f32>::new(width);
        for d in 0..width {
            acc[d] = 0.0;
        }
        if comptime!(shape.kind.sink) {
            sum = f32::exp(scoring.sinks[0][head] - highest);
        }
        for k in k0..q + 1 {
            let s = dot_product(qkv, qkv, query, start + channels + k * row, shape) * scale;
            let p = f32::exp(s - highest);
            sum += p;
            let mut kept = p;
            if comptime!(shape.kind.dropout) {
                let counters = Vector::new(u32::cast_from((pair * shape.time + q) * shape.time + k));
                kept *= dropout_factors::<Const<1>>(a, b, counters, scoring).extract(0usize);
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

/// Backward: one item per (sequence, head, position) for what the position is as a query, and one for
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
    let (a, b) = dropout_keys::<Const<1>>(scoring, shape.kind.dropout);
    let items = 2 * positions;
    for item in range_stepped(first_item(items, split), end_item(items, split), item_step(split)) {
        let (pair, t) = (item % positions / shape.time, item % shape.time);
        let token = pair / heads * shape.time;
        let head = pair % heads;
        let start = token * row + head * width;
        let out = token * channels + head * width;
        let mut first = Array::<f32>::new(width);
        for d in 0..width {
            first[d] = 0.0;
        }
        if item < positions {
            // The position as a query.
            let delta = dot_product(dy, y, out + t * channels, out + t * channels, shape);
            let log_sum = lse[(token + t) * heads + head];
            for k in first_seen(t, scoring)..t + 1 {
                let key_row = start + channels + k * row;
                let p = f32::exp(dot_product(qkv, qkv, start + t * row, key_row, shape) * scale - log_sum);
                let mut dp = dot_product(dy, qkv, out + t * channels, key_row + channels, shape);
                if comptime!(shape.kind.dropout) {
                    let counters = Vector::new(u32::cast_from((pair * shape.time + t) * shape.time + k));
                    dp *= dropout_factors::<Const<1>>(a, b, counters, scoring).extract(0usize);
                }
                let slope = p * (dp - delta) * scale;
                for d in 0..width {
                    first[d] = fma(slope, qkv[key_row + d], first[d]);
                }
            }
            for d in 0..width {
                dqkv[start + t * row + d] = first[d];
            }
        } else {
            // The position as a key and a value.
            let mut second = Array::<f32>::new(width);
            for d in 0..width {
                second[d] = 0.0;
            }
            let key_row = start + channels + t * row;
            for q in t..min(shape.time, t + scoring.window) {
                let delta = dot_product(dy, y, out + q * channels, out + q * channels, shape);
                let score = dot_product(qkv, qkv, start + q * row, key_row, shape) * scale;
                let p = f32::exp(score - lse[(token + q) * heads + head]);
                let mut dp = dot_product(dy, qkv, out + q * channels, key_row + channels, shape);
                let mut kept = p;
                if comptime!(shape.kind.dropout) {
                    let counters = Vector::new(u32::cast_from((pair * shape.time + q) * shape.time + t));
                    let factor = dropout_factors::<Const<1>>(a, b, counters, scoring).extract(0usize);
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
}

impl Shape {
    fn new(attrs: &AttentionAttrs, kind: Kind, channels: usize) -> Self {
        Self { time: attrs.time, width: channels / attrs.heads, kind }
    }
}

/// The kernel of [`super::forward`].
pub(super) fn launch_forward(
    l: &Launcher,
    qkv: Arg,
    extra: &Extra,
    y: Arg,
    lse: Arg,
    attrs: &AttentionAttrs,
    channels: usize,
) {
    let (shape, positions, split) = (Shape::new(attrs, Kind::of(attrs), channels), lse.elements(), l.split());
    l.launch(
        positions,
        || format!("attention_positions {shape:?}"),
        // SAFETY: a unit writes the row of its position, and reads none of later ones.
        |t| unsafe {
            let (qkv, y, lse, scoring) = (t.bind(qkv, 1), t.bind(y, 1), t.bind(lse, 1), scoring(t, attrs, extra));
            run!(t, forward_positions(qkv, y, lse, positions, scoring, shape, split));
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
    channels: usize,
) {
    let (shape, positions, split) =
        (Shape::new(attrs, Kind::of(attrs).backward(), channels), lse.elements(), l.split());
    l.launch(
        2 * positions,
        || format!("attention_positions_grad {shape:?}"),
        // SAFETY: a unit writes the query, or the key and the value, of its position.
        |t| unsafe {
            let (y, lse, scoring) = (t.bind(y, 1), t.bind(lse, 1), scoring(t, attrs, extra));
            let (dy, qkv, dqkv) = (t.bind(dy, 1), t.bind(qkv, 1), t.bind(dqkv, 1));
            run!(t, backward_positions(dy, qkv, y, lse, dqkv, positions, scoring, shape, split));
        },
    );
}

//! Attention of the newest token of each sequence over the keys and values that are kept of those before it.
//!
//! A row of the cache holds the keys of all heads, then the values. One unit per (sequence, head) stores the token's own
//! key and value and then reads the rows in order, once: the largest score so far is carried along, and what was summed
//! under a smaller one is scaled down (Milakov & Gimelshein 2018, arXiv 1805.02867). A unit touches the channels of its
//! head only, so nobody waits for anybody, and a sequence is summed alike whatever else is in the batch.

#![allow(unsafe_code, reason = "kernel launches")]

use super::copy;
use super::exponential::exp2;
use super::lanes::{lane_max, lane_numbers, lane_sum};
use super::native::transpose;
use crate::launch::{Arg, Launcher, Split, end_item, first_item, item_step, run};
use cubecl::prelude::*;

/// Rows whose scores are made before they are used, so that their exponentials are made at once.
const ROWS: usize = 16;

/// What all sequences have in common.
#[derive(CubeType, CubeLaunch)]
struct Setting {
    heads: usize,
    /// Rows of a cache.
    time: usize,
    /// Factor of the scores, which are exponents of two.
    scale: f32,
    /// The score of each head's sink, if there are sinks.
    sinks: Sequence<Box<[f32]>>,
}

/// What the exponents of a row beyond the last are: nothing is left of it.
const NOTHING: f32 = -1e30;

/// `2^x`. Graphics devices may simplify what [`exp2`] does with rounding, and have an exponential of their own.
#[cube]
fn power_of_two<W: Size>(x: Vector<f32, W>, #[comptime] split: Split) -> Vector<f32, W> {
    match comptime!(split) {
        Split::Ranges => exp2::<W>(x),
        Split::Strided => Vector::exp(x * Vector::new(std::f32::consts::LN_2)),
    }
}

/// The sums of the lanes of as many vectors as they have lanes.
#[cube]
fn lane_sums<W: Size>(vectors: Sequence<Vector<f32, W>>, #[comptime] split: Split) -> Vector<f32, W> {
    let w = W::value();
    match comptime!(split) {
        // Lanes become vectors, which are added in the order of the lanes.
        Split::Ranges => {
            let columns = transpose::<W>(vectors);
            let mut sums = columns[0usize];
            #[unroll]
            for lane in 1..w {
                sums += columns[lane];
            }
            sums
        }
        Split::Strided => {
            let mut sums = Vector::<f32, W>::new(0.0f32);
            #[unroll]
            for lane in 0..w {
                sums.insert(lane, lane_sum::<W>(vectors[lane]));
            }
            sums
        }
    }
}

#[cube(launch_unchecked)]
fn newest<W: Size>(
    qkv: &[Vector<f32, W>],
    cache: &mut [Vector<f32, W>],
    positions: &[i32],
    y: &mut [Vector<f32, W>],
    pairs: usize,
    setting: &Setting,
    #[comptime] width: usize,
    #[comptime] sink: bool,
    #[comptime] split: Split,
) {
    let (heads, time) = (setting.heads, setting.time);
    let w = W::value();
    let vectors = comptime!(width / w);
    let channels = heads * vectors;
    let mut query = Array::<Vector<f32, W>>::new(vectors);
    let mut sums = Array::<Vector<f32, W>>::new(vectors);
    let mut weights = Array::<Vector<f32, W>>::new(comptime!(ROWS / w));
    for pair in range_stepped(first_item(pairs, split), end_item(pairs, split), item_step(split)) {
        let (sequence, head) = (pair / heads, pair % heads);
        let position = positions[sequence];
        let mut total = Vector::<f32, W>::new(0.0f32);
        #[unroll]
        for i in 0..vectors {
            sums[i] = Vector::new(0.0f32);
        }
        if position >= 0i32 {
            let position = position as usize;
            let token = sequence * 3 * channels + head * vectors;
            let rows = sequence * time * 2 * channels + head * vectors;
            let own = rows + position % time * 2 * channels;
            #[unroll]
            for i in 0..vectors {
                query[i] = qkv[token + i];
                cache[own + i] = qkv[token + channels + i];
                cache[own + channels + i] = qkv[token + 2 * channels + i];
            }
            let end = min(position + 1, time);
            let mut highest = NOTHING.runtime();
            if comptime!(sink) {
                highest = setting.sinks[0][head] * comptime!(std::f32::consts::LOG2_E);
                total.insert(0usize, 1.0f32);
            }
            for first in range_stepped(0, end, ROWS) {
                let mut block = highest;
                #[unroll]
                for j in 0..comptime!(ROWS / w) {
                    let mut products = Sequence::<Vector<f32, W>>::new();
                    #[unroll]
                    for lane in 0..w {
                        // Rows beyond the last repeat it, and count nothing.
                        let row = rows + min(first + j * w + lane, end - 1) * 2 * channels;
                        let mut product = Vector::<f32, W>::new(0.0f32);
                        #[unroll]
                        for i in 0..vectors {
                            product = fma(query[i], cache[row + i], product);
                        }
                        products.push(product);
                    }
                    let scores = lane_sums::<W>(products, split) * Vector::new(setting.scale);
                    let place = lane_numbers::<W>() + Vector::new(u32::cast_from(first + j * w));
                    let seen = place.less_than(&Vector::new(u32::cast_from(end)));
                    let scores = select_many(seen, scores, Vector::new(NOTHING.runtime()));
                    block = max(block, lane_max::<W>(scores));
                    weights[j] = scores;
                }
                // Before the first rows nothing has been summed.
                let shrink = power_of_two::<Const<1>>(Vector::new(highest - block), split).extract(0usize);
                highest = block;
                total *= Vector::new(shrink);
                #[unroll]
                for i in 0..vectors {
                    sums[i] *= Vector::new(shrink);
                }
                #[unroll]
                for j in 0..comptime!(ROWS / w) {
                    let weight = power_of_two::<W>(weights[j] - Vector::new(highest), split);
                    total += weight;
                    #[unroll]
                    for lane in 0..w {
                        let row = rows + min(first + j * w + lane, end - 1) * 2 * channels + channels;
                        let factor = Vector::new(weight.extract(lane));
                        #[unroll]
                        for i in 0..vectors {
                            sums[i] = fma(factor, cache[row + i], sums[i]);
                        }
                    }
                }
            }
        }
        let to = sequence * channels + head * vectors;
        // A sequence that is left alone has summed nothing.
        let mut factor = 0.0f32.runtime();
        if position >= 0i32 {
            factor = 1.0f32 / lane_sum::<W>(total);
        }
        #[unroll]
        for i in 0..vectors {
            y[to + i] = sums[i] * Vector::new(factor);
        }
    }
}

/// `y [S, C]` from `qkv [S, 3C]`, and the newest keys and values in a cache `[S, T, 2C]`, from `old` to `cache` (the same
/// buffer, or another).
pub(crate) fn launch(
    l: &Launcher,
    qkv: Arg,
    old: Arg,
    cache: Arg,
    positions: Arg,
    y: Arg,
    sinks: Option<Arg>,
    heads: usize,
    scale: f32,
    channels: usize,
) {
    copy::launch(l, old, cache);
    let width = channels / heads;
    let w = l.matrix_width(&[width]);
    let (sequences, split) = (positions.elements(), l.split());
    let (pairs, time) = (sequences * heads, cache.elements() / (sequences * 2 * channels));
    l.launch(
        pairs,
        || format!("cached_attention w{w} width{width}{}", if sinks.is_some() { " sinks" } else { "" }),
        // SAFETY: a unit reads and writes the channels of its head in the rows of its sequence, of which there are `time`.
        |t| unsafe {
            run!(
                t,
                newest(
                    w,
                    t.bind(qkv, w),
                    t.bind(cache, w),
                    t.bind(positions, 1),
                    t.bind(y, w),
                    pairs,
                    SettingLaunch::new(heads, time, scale * std::f32::consts::LOG2_E, t.bind_all(&sinks, 1)),
                    width,
                    sinks.is_some(),
                    split
                )
            );
        },
    );
}

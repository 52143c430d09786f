//! Attention of the newest token of each sequence over the keys and values that are kept of those before it.
//!
//! A row of the cache holds the keys of all heads, then the values. One unit per (sequence, head) stores the token's own
//! key and value and then reads the rows in order, once: the largest score so far is carried along, and what was summed
//! under a smaller one is scaled down (Milakov & Gimelshein 2018, arXiv 1805.02867). A unit touches the channels of its
//! head only, so nobody waits for anybody, and a sequence is summed alike whatever else is in the batch.

#![allow(unsafe_code, reason = "kernel launches")]

use super::copy;
use super::lanes::lane_sum;
use crate::launch::{Arg, Launcher, Split, end_item, first_item, item_step, run};
use cubecl::prelude::*;

/// What all sequences have in common.
#[derive(CubeType, CubeLaunch)]
struct Setting {
    heads: usize,
    /// Rows of a cache.
    time: usize,
    scale: f32,
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
    #[comptime] split: Split,
) {
    let (heads, time) = (setting.heads, setting.time);
    let w = W::value();
    let vectors = comptime!(width / w);
    let channels = heads * vectors;
    let mut query = Array::<Vector<f32, W>>::new(vectors);
    let mut sums = Array::<Vector<f32, W>>::new(vectors);
    for pair in range_stepped(first_item(pairs, split), end_item(pairs, split), item_step(split)) {
        let (sequence, head) = (pair / heads, pair % heads);
        let position = positions[sequence];
        let mut total = 0.0f32.runtime();
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
            let mut highest = 0.0f32.runtime();
            for place in 0..min(position + 1, time) {
                let row = rows + place * 2 * channels;
                let mut products = Vector::<f32, W>::new(0.0f32);
                #[unroll]
                for i in 0..vectors {
                    products = fma(query[i], cache[row + i], products);
                }
                let score = lane_sum::<W>(products) * setting.scale;
                let mut weight = 1.0f32.runtime();
                if place == 0 {
                    highest = score;
                } else if score > highest {
                    let shrink = f32::exp(highest - score);
                    highest = score;
                    total *= shrink;
                    #[unroll]
                    for i in 0..vectors {
                        sums[i] *= Vector::new(shrink);
                    }
                } else {
                    weight = f32::exp(score - highest);
                }
                total += weight;
                #[unroll]
                for i in 0..vectors {
                    sums[i] = fma(Vector::new(weight), cache[row + channels + i], sums[i]);
                }
            }
        }
        let to = sequence * channels + head * vectors;
        // A sequence that is left alone has summed nothing.
        let mut factor = 0.0f32.runtime();
        if position >= 0i32 {
            factor = 1.0f32 / total;
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
        || format!("cached_attention w{w} width{width}"),
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
                    SettingLaunch::new(heads, time, scale),
                    width,
                    split
                )
            );
        },
    );
}

//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) of the queries and keys in `qkv [N, 3C]`: channels `i`
//! and `i + D/2` of a head turn by `position * base^(-2i/D)`; values are copied.
//!
//! Angles depend on the position only, so a unit takes one position, computes its sines and cosines once, and turns
//! every head of the sequences that it owns at this position: all of them on the CPU, one on a graphics device, and one
//! wherever positions are given for each row.

#![allow(unsafe_code, reason = "kernel launches")]

use super::lanes::lane_numbers;
use crate::launch::{Arg, Launcher, Split, common_width, end_item, first_item, item_step, run};
use cubecl::prelude::*;

/// Two pi as the sum of two floats, for angles of many turns.
const TURN: (f32, f32) = (6.283_185_5, -1.748_455_5e-7);

/// Who turns how much.
#[derive(CubeType, CubeLaunch)]
struct Turns {
    heads: usize,
    time: usize,
    log_base: f32,
    /// 1, or -1 to turn back.
    sign: f32,
}

#[cube(launch_unchecked)]
fn rotate<W: Size>(
    qkv: &[Vector<f32, W>],
    positions: &Sequence<Box<[i32]>>,
    y: &mut [Vector<f32, W>],
    sequences: usize,
    owners: usize,
    turns: &Turns,
    #[comptime] width: usize,
    #[comptime] split: Split,
) {
    let (heads, time) = (turns.heads, turns.time);
    let w = W::value();
    let half = comptime!(width / 2 / w);
    let channels = heads * comptime!(width / w);
    let items = time * owners;
    let mut cosines = Array::<Vector<f32, W>>::new(half);
    let mut sines = Array::<Vector<f32, W>>::new(half);
    for item in range_stepped(first_item(items, split), end_item(items, split), item_step(split)) {
        let (position, owner) = (item / owners, item % owners);
        let mut turned = f32::cast_from(position);
        if comptime!(positions.len() == 1) {
            turned = f32::cast_from(positions[0][owner * time + position]);
        }
        for i in 0..half {
            let pair = Vector::<f32, W>::cast_from(lane_numbers::<W>() + Vector::new(u32::cast_from(i * w)));
            let exponent = pair * Vector::new(comptime!(-2.0 / width as f32).runtime() * turns.log_base);
            let angle = Vector::exp(exponent) * Vector::new(turned);
            let whole = Vector::round(angle * Vector::new(1.0f32 / TURN.0));
            let angle = fma(-whole, Vector::new(TURN.0), angle);
            let angle = fma(-whole, Vector::new(TURN.1), angle);
            cosines[i] = Vector::cos(angle);
            sines[i] = Vector::sin(angle) * Vector::new(turns.sign);
        }
        for sequence in range_stepped(owner, sequences, owners) {
            let row = (sequence * time + position) * 3 * channels;
            // Queries and keys.
            for head in 0..2 * heads {
                let start = row + head * 2 * half;
                for i in 0..half {
                    let (a, b) = (qkv[start + i], qkv[start + half + i]);
                    y[start + i] = a * cosines[i] - b * sines[i];
                    y[start + half + i] = a * sines[i] + b * cosines[i];
                }
            }
            for c in row + 2 * channels..row + 3 * channels {
                y[c] = qkv[c];
            }
        }
    }
}

/// `y [N, 3C]` from `qkv [N, 3C]` and perhaps the position of each row; `inverse` turns back, which is the gradient.
pub(crate) fn launch(
    l: &Launcher,
    qkv: Arg,
    positions: Option<Arg>,
    y: Arg,
    heads: usize,
    time: usize,
    base: f64,
    inverse: bool,
    channels: usize,
) {
    let width = channels / heads;
    let w = common_width(l.profile().matrix_width(), &[width / 2]);
    let sequences = qkv.elements() / (3 * channels) / time;
    let given = positions.is_some();
    let owners = if l.is_cpu() && !given { 1 } else { sequences };
    let split = l.split();
    l.launch(
        time * owners,
        || format!("rotary w{w} width{width}{}", if given { " positions" } else { "" }),
        // SAFETY: a unit writes the rows of its position in the sequences that it owns.
        |t| unsafe {
            let (qkv, positions, y) = (t.bind(qkv, w), t.bind_all(&positions, 1), t.bind(y, w));
            let turns = TurnsLaunch::new(heads, time, base.ln() as f32, if inverse { -1.0 } else { 1.0 });
            run!(t, rotate(w, qkv, positions, y, sequences, owners, turns, width, split));
        },
    );
}

//! Capacity, sorting slots by expert, and moving rows to experts and back. An index of -1 means "no expert" or "no row".
//!
//! - `limit_capacity`, `sort_by_expert`: one unit owns an expert and reads the expert of every slot in token order, so
//!   that first come is first served and the sort is stable, without communication between units. It writes what
//!   belongs to its expert's slots; expert 0's unit also writes what belongs to none. Work grows as E * slots, a
//!   counter per slot: microseconds for the sizes of a training step.
//! - `dispatch`, `combine`: one unit owns a vector of a row of the result. Combine gathers the rows of a token's slots
//!   in slot order, where a scatter would need atomics.
//! - `combine_weight_grad`: one unit owns a slot.

#![allow(unsafe_code, reason = "kernel launches")]

use super::lanes::lane_sum;
use crate::launch::{Arg, Launcher, Split, end_item, first_item, item_step};
use cubecl::prelude::*;

#[cube(launch_unchecked)]
fn limit_capacity_kernel(
    experts: &[i32],
    kept: &mut [i32],
    slots: usize,
    count: usize,
    capacity: u32,
    #[comptime] split: Split,
) {
    for expert in range_stepped(first_item(count, split), end_item(count, split), item_step(split)) {
        let mine = i32::cast_from(expert);
        let mut accepted = 0u32.runtime();
        for slot in 0..slots {
            let e = experts[slot];
            if e == mine {
                kept[slot] = select(accepted < capacity, e, -1i32);
                accepted += 1u32;
            } else if expert == 0 && (e < 0 || e >= i32::cast_from(count)) {
                kept[slot] = -1i32;
            }
        }
    }
}

#[cube(launch_unchecked)]
fn sort_by_expert_kernel(
    experts: &[i32],
    offsets: &mut [i32],
    order: &mut [i32],
    positions: &mut [i32],
    slots: usize,
    count: usize,
    #[comptime] split: Split,
) {
    for expert in range_stepped(first_item(count, split), end_item(count, split), item_step(split)) {
        let mine = i32::cast_from(expert);
        let mut before = 0u32.runtime();
        let mut total = 0u32.runtime();
        for slot in 0..slots {
            let e = experts[slot];
            before += select(e >= 0 && e < mine, 1u32, 0u32);
            total += select(e >= 0 && e < i32::cast_from(count), 1u32, 0u32);
        }
        offsets[expert] = i32::cast_from(before);
        let mut next = before as usize;
        for slot in 0..slots {
            if experts[slot] == mine {
                order[next] = i32::cast_from(slot);
                positions[slot] = i32::cast_from(next);
                next += 1;
            }
        }
        if expert == 0 {
            offsets[count] = i32::cast_from(total);
            for row in total as usize..slots {
                order[row] = -1i32;
            }
            for slot in 0..slots {
                let e = experts[slot];
                if e < 0 || e >= i32::cast_from(count) {
                    positions[slot] = -1i32;
                }
            }
        }
    }
}

#[cube(launch_unchecked)]
fn dispatch_kernel<W: Size>(
    x: &[Vector<f32, W>],
    order: &[i32],
    weights: &Sequence<Box<[f32]>>,
    y: &mut [Vector<f32, W>],
    slots: usize,
    k: usize,
    #[comptime] cols: usize,
    #[comptime] weighted: bool,
    #[comptime] split: Split,
) {
    let items = slots * cols;
    for item in range_stepped(first_item(items, split), end_item(items, split), item_step(split)) {
        let slot = order[item / cols];
        let mut value = Vector::<f32, W>::new(0.0f32);
        if slot >= 0 {
            let slot = min(slot as usize, slots - 1);
            value = x[slot / k * cols + item % cols];
            if comptime!(weighted) {
                value = value * Vector::new(weights[0][slot]);
            }
        }
        y[item] = value;
    }
}

#[cube(launch_unchecked)]
fn combine_kernel<W: Size>(
    y: &[Vector<f32, W>],
    positions: &[i32],
    weights: &Sequence<Box<[f32]>>,
    z: &mut [Vector<f32, W>],
    tokens: usize,
    k: usize,
    #[comptime] cols: usize,
    #[comptime] weighted: bool,
    #[comptime] split: Split,
) {
    let items = tokens * cols;
    for item in range_stepped(first_item(items, split), end_item(items, split), item_step(split)) {
        let token = item / cols;
        let mut sum = Vector::<f32, W>::new(0.0f32);
        for slot in token * k..(token + 1) * k {
            let row = positions[slot];
            if row >= 0 {
                let value = y[min(row as usize, tokens * k - 1) * cols + item % cols];
                if comptime!(weighted) {
                    sum = fma(value, Vector::new(weights[0][slot]), sum);
                } else {
                    sum += value;
                }
            }
        }
        z[item] = sum;
    }
}

#[cube(launch_unchecked)]
fn combine_weight_grad_kernel<W: Size>(
    dz: &[Vector<f32, W>],
    y: &[Vector<f32, W>],
    positions: &[i32],
    dweights: &mut [f32],
    slots: usize,
    k: usize,
    cols: usize,
    #[comptime] split: Split,
) {
    for slot in range_stepped(first_item(slots, split), end_item(slots, split), item_step(split)) {
        let row = positions[slot];
        let mut sum = Vector::<f32, W>::new(0.0f32);
        if row >= 0 {
            let from = min(row as usize, slots - 1) * cols;
            let token = slot / k * cols;
            for c in 0..cols {
                sum = fma(dz[token + c], y[from + c], sum);
            }
        }
        dweights[slot] = lane_sum::<W>(sum);
    }
}

/// Entries beyond `capacity` of their expert become -1, first come, first served.
pub(crate) fn limit_capacity(l: &Launcher, experts: Arg, kept: Arg, count: usize, capacity: usize) {
    let (slots, split) = (experts.elements(), l.split());
    let capacity = u32::try_from(capacity).unwrap_or(u32::MAX);
    l.launch(
        count,
        || "limit_capacity".to_string(),
        // SAFETY: both buffers hold `slots` elements.
        |t| unsafe {
            let (experts, kept) = (t.bind(experts, 1), t.bind(kept, 1));
            limit_capacity_kernel::launch_unchecked(
                t.client,
                t.count(),
                t.dim(),
                experts,
                kept,
                slots,
                count,
                capacity,
                split,
            );
        },
    );
}

/// A stable sort of slots by expert: where each expert's rows start, the slot of each row, and the row of each slot.
pub(crate) fn sort_by_expert(l: &Launcher, experts: Arg, offsets: Arg, order: Arg, positions: Arg, count: usize) {
    let (slots, split) = (experts.elements(), l.split());
    l.launch(
        count,
        || "sort_by_expert".to_string(),
        // SAFETY: experts, order and positions hold `slots` elements, offsets count + 1, and each slot is placed once.
        |t| unsafe {
            sort_by_expert_kernel::launch_unchecked(
                t.client,
                t.count(),
                t.dim(),
                t.bind(experts, 1),
                t.bind(offsets, 1),
                t.bind(order, 1),
                t.bind(positions, 1),
                slots,
                count,
                split,
            );
        },
    );
}

/// Row `r` of the result is the row of the token of slot `order[r]`, times the slot's weight if there are weights.
pub(crate) fn dispatch(
    l: &Launcher,
    x: Arg,
    order: Arg,
    weights: Option<Arg>,
    y: Arg,
    tokens: usize,
    k: usize,
    channels: usize,
) {
    let w = l.width(&[channels]);
    let (slots, cols, split) = (tokens * k, channels / w, l.split());
    l.launch(
        slots * cols,
        || format!("dispatch w{w} cols {cols}{}", if weights.is_some() { " weighted" } else { "" }),
        // SAFETY: x holds tokens * cols vectors, y slots * cols, order and weights one element per slot.
        |t| unsafe {
            dispatch_kernel::launch_unchecked(
                t.client,
                t.count(),
                t.dim(),
                w,
                t.bind(x, w),
                t.bind(order, 1),
                weights.iter().map(|&s| t.bind(s, 1)).collect(),
                t.bind(y, w),
                slots,
                k,
                cols,
                weights.is_some(),
                split,
            );
        },
    );
}

/// The sum over a token's slots of the slot's row, times the slot's weight if there are weights.
pub(crate) fn combine(
    l: &Launcher,
    y: Arg,
    positions: Arg,
    weights: Option<Arg>,
    z: Arg,
    tokens: usize,
    k: usize,
    channels: usize,
) {
    let w = l.width(&[channels]);
    let (cols, split) = (channels / w, l.split());
    l.launch(
        tokens * cols,
        || format!("combine w{w} cols {cols}{}", if weights.is_some() { " weighted" } else { "" }),
        // SAFETY: y holds tokens * k * cols vectors, z tokens * cols, positions and weights one element per slot.
        |t| unsafe {
            combine_kernel::launch_unchecked(
                t.client,
                t.count(),
                t.dim(),
                w,
                t.bind(y, w),
                t.bind(positions, 1),
                weights.iter().map(|&s| t.bind(s, 1)).collect(),
                t.bind(z, w),
                tokens,
                k,
                cols,
                weights.is_some(),
                split,
            );
        },
    );
}

/// The scalar product of a token's row of `dz` and the row of each of its slots.
pub(crate) fn combine_weight_grad(
    l: &Launcher,
    dz: Arg,
    y: Arg,
    positions: Arg,
    dweights: Arg,
    tokens: usize,
    k: usize,
    channels: usize,
) {
    let w = l.width(&[channels]);
    let (slots, cols, split) = (tokens * k, channels / w, l.split());
    l.launch(
        slots,
        || format!("combine_weight_grad w{w}"),
        // SAFETY: dz holds tokens * cols vectors, y slots * cols, positions and dweights one element per slot.
        |t| unsafe {
            let (dz, y) = (t.bind(dz, w), t.bind(y, w));
            let (positions, dweights) = (t.bind(positions, 1), t.bind(dweights, 1));
            combine_weight_grad_kernel::launch_unchecked(
                t.client,
                t.count(),
                t.dim(),
                w,
                dz,
                y,
                positions,
                dweights,
                slots,
                k,
                cols,
                split,
            );
        },
    );
}

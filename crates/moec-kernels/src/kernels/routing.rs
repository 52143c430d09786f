//! Capacity, sorting slots by expert, and moving rows to experts and back. An index of -1 means "no expert" or "no row",
//! as does every index outside of its range.
//!
//! - `limit_capacity`, `sort_by_expert` on the CPU: one unit owns an expert and reads the expert of every slot in order,
//!   so that first come is first served and the sort is stable, without communication between units. It writes what
//!   belongs to its expert's slots; expert 0's unit also writes what belongs to none. Work grows as E * slots, a counter
//!   per slot: microseconds for the sizes of a training step.
//! - The same on graphics devices, and `limit_capacity_by_weight`: one unit owns a slot and counts the slots that come
//!   before it. Work grows as the square of the number of slots, but a device has as many units.
//! - `dispatch`, `combine`: one unit owns a vector of a row of the result. Combine gathers the rows of a token's slots
//!   in slot order, where a scatter would need atomics.
//! - `combine_weight_grad`: one unit owns a slot.

#![allow(unsafe_code, reason = "kernel launches")]

use super::fused::{After, Elementwise, Then, dropout_keys, go_on, go_on_with};
use super::lanes::lane_sum;
use super::order::order_key;
use crate::launch::{Arg, Launcher, Split, Target, end_item, first_item, item_step, run};
use cubecl::prelude::*;

/// Whether an index names one of `count`.
#[cube]
fn names_one(index: i32, count: usize) -> bool {
    index >= 0 && index < i32::cast_from(count)
}

/// Slots stand in `rows` rows of `columns` and are served column by column.
#[cube(launch_unchecked)]
fn limit_capacity_kernel(
    experts: &[i32],
    kept: &mut [i32],
    rows: usize,
    columns: usize,
    count: usize,
    capacity: u32,
    #[comptime] split: Split,
) {
    for expert in range_stepped(first_item(count, split), end_item(count, split), item_step(split)) {
        let mine = i32::cast_from(expert);
        let mut accepted = 0u32.runtime();
        for column in 0..columns {
            for row in 0..rows {
                let slot = row * columns + column;
                let e = experts[slot];
                if e == mine {
                    kept[slot] = select(accepted < capacity, e, -1i32);
                    accepted += 1u32;
                } else if expert == 0 && !names_one(e, count) {
                    kept[slot] = -1i32;
                }
            }
        }
    }
}

/// The same for units that own a slot.
#[cube(launch_unchecked)]
fn limit_capacity_by_slot_kernel(
    experts: &[i32],
    kept: &mut [i32],
    rows: usize,
    columns: usize,
    count: usize,
    capacity: u32,
    #[comptime] split: Split,
) {
    let slots = rows * columns;
    for slot in range_stepped(first_item(slots, split), end_item(slots, split), item_step(split)) {
        let expert = experts[slot];
        let (row, column) = (slot / columns, slot % columns);
        let mut before = 0u32.runtime();
        for other in 0..slots {
            let (other_row, other_column) = (other / columns, other % columns);
            let earlier = other_column < column || (other_column == column && other_row < row);
            before += select(earlier && experts[other] == expert, 1u32, 0u32);
        }
        kept[slot] = select(names_one(expert, count) && before < capacity, expert, -1i32);
    }
}

/// Place of a token's largest weight in the order of floats.
#[cube]
fn largest_weight(weights: &[f32], token: usize, k: usize) -> u32 {
    let mut largest = 0u32.runtime();
    for slot in token * k..(token + 1) * k {
        largest = max(largest, order_key(weights[slot]));
    }
    largest
}

#[cube(launch_unchecked)]
fn limit_capacity_by_weight_kernel(
    experts: &[i32],
    weights: &[f32],
    kept: &mut [i32],
    slots: usize,
    k: usize,
    count: usize,
    capacity: u32,
    #[comptime] split: Split,
) {
    for slot in range_stepped(first_item(slots, split), end_item(slots, split), item_step(split)) {
        let expert = experts[slot];
        let mut result = (-1i32).runtime();
        if names_one(expert, count) {
            let (token, choice) = (slot / k, slot % k);
            let largest = largest_weight(weights, token, k);
            let mut before = 0u32.runtime();
            for other in 0..slots {
                if experts[other] == expert {
                    let (other_token, other_choice) = (other / k, other % k);
                    if other_choice < choice {
                        before += 1u32;
                    } else if other_choice == choice {
                        let weight = largest_weight(weights, other_token, k);
                        before += select(weight > largest || (weight == largest && other_token < token), 1u32, 0u32);
                    }
                }
            }
            result = select(before < capacity, expert, -1i32);
        }
        kept[slot] = result;
    }
}

#[cube(launch_unchecked)]
fn sort_by_expert_kernel(
    experts: &[i32],
    offsets: &mut [i32],
    order: &mut [i32],
    positions: &mut [i32],
    slots: usize,
    rows: usize,
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
            total += select(names_one(e, count), 1u32, 0u32);
        }
        let mut next = before as usize;
        offsets[expert] = i32::cast_from(min(next, rows));
        for slot in 0..slots {
            if experts[slot] == mine {
                let mut position = (-1i32).runtime();
                if next < rows {
                    order[next] = i32::cast_from(slot);
                    position = i32::cast_from(next);
                }
                positions[slot] = position;
                next += 1;
            }
        }
        if expert == 0 {
            let filled = min(total as usize, rows);
            offsets[count] = i32::cast_from(filled);
            for row in filled..rows {
                order[row] = -1i32;
            }
            for slot in 0..slots {
                if !names_one(experts[slot], count) {
                    positions[slot] = -1i32;
                }
            }
        }
    }
}

/// The same for units that own a slot, the start of an expert's rows or a row: each counts what comes before it.
#[cube(launch_unchecked)]
fn sort_by_slot_kernel(
    experts: &[i32],
    offsets: &mut [i32],
    order: &mut [i32],
    positions: &mut [i32],
    slots: usize,
    rows: usize,
    count: usize,
    #[comptime] split: Split,
) {
    let starts = slots + count + 1;
    let items = starts + rows;
    for item in range_stepped(first_item(items, split), end_item(items, split), item_step(split)) {
        // Slots of lower experts come before; those of none neither come before nor have a place.
        let mut mine = i32::cast_from(count);
        if item < slots {
            mine = experts[item];
        } else if item < starts {
            mine = i32::cast_from(item - slots);
        }
        let mut lower = 0u32.runtime();
        let mut ties = 0u32.runtime();
        for slot in 0..slots {
            let e = experts[slot];
            lower += select(e >= 0 && e < mine, 1u32, 0u32);
            ties += select(e == mine && slot < item, 1u32, 0u32);
        }
        let before = lower as usize;
        if item < slots {
            let place = before + ties as usize;
            let mut position = (-1i32).runtime();
            if names_one(mine, count) && place < rows {
                order[place] = i32::cast_from(item);
                position = i32::cast_from(place);
            }
            positions[item] = position;
        } else if item < starts {
            offsets[item - slots] = i32::cast_from(min(before, rows));
        } else if item - starts >= before {
            order[item - starts] = -1i32;
        }
    }
}

/// How many rows experts have together, and how many tokens with how many slots each.
#[derive(CubeType, CubeLaunch)]
struct Extents {
    rows: usize,
    tokens: usize,
    slots: usize,
    k: usize,
}

impl Extents {
    /// As an argument of a launch.
    fn of([rows, tokens, slots, k]: [usize; 4]) -> ExtentsLaunch {
        ExtentsLaunch::new(rows, tokens, slots, k)
    }
}

#[cube(launch_unchecked)]
fn dispatch_kernel<W: Size>(
    x: &[Vector<f32, W>],
    order: &[i32],
    weights: &Sequence<Box<[f32]>>,
    y: &mut [Vector<f32, W>],
    after: &mut Elementwise<W>,
    e: &Extents,
    #[comptime] cols: usize,
    #[comptime] split: Split,
) {
    let weighted = comptime!(weights.len() == 1);
    let keys = dropout_keys::<W>(&*after);
    let items = e.rows * cols;
    for item in range_stepped(first_item(items, split), end_item(items, split), item_step(split)) {
        let slot = order[item / cols];
        let mut value = Vector::<f32, W>::new(0.0f32);
        if names_one(slot, e.slots) {
            let slot = slot as usize;
            value = x[slot / e.k * cols + item % cols];
            if comptime!(weighted) {
                value = value * Vector::new(weights[0][slot]);
            }
        }
        y[item] = go_on::<W>(after, &keys, item, value);
    }
}

#[cube(launch_unchecked)]
fn combine_kernel<W: Size>(
    y: &[Vector<f32, W>],
    positions: &[i32],
    weights: &Sequence<Box<[f32]>>,
    z: &mut [Vector<f32, W>],
    after: &mut Elementwise<W>,
    e: &Extents,
    #[comptime] cols: usize,
    #[comptime] split: Split,
) {
    let weighted = comptime!(weights.len() == 1);
    let keys = dropout_keys::<W>(&*after);
    let items = e.tokens * cols;
    for item in range_stepped(first_item(items, split), end_item(items, split), item_step(split)) {
        let token = item / cols;
        let mut sum = Vector::<f32, W>::new(0.0f32);
        for slot in token * e.k..(token + 1) * e.k {
            let row = positions[slot];
            if names_one(row, e.rows) {
                let value = y[row as usize * cols + item % cols];
                if comptime!(weighted) {
                    sum = fma(value, Vector::new(weights[0][slot]), sum);
                } else {
                    sum += value;
                }
            }
        }
        z[item] = go_on::<W>(after, &keys, item, sum);
    }
}

#[cube(launch_unchecked)]
fn combine_weight_grad_kernel<W: Size>(
    dz: &[Vector<f32, W>],
    y: &[Vector<f32, W>],
    positions: &[i32],
    dweights: &mut [f32],
    rows: usize,
    slots: usize,
    k: usize,
    cols: usize,
    #[comptime] split: Split,
) {
    for slot in range_stepped(first_item(slots, split), end_item(slots, split), item_step(split)) {
        let row = positions[slot];
        let mut sum = Vector::<f32, W>::new(0.0f32);
        if names_one(row, rows) {
            let from = row as usize * cols;
            let token = slot / k * cols;
            for c in 0..cols {
                sum = fma(dz[token + c], y[from + c], sum);
            }
        }
        dweights[slot] = lane_sum::<W>(sum);
    }
}

/// A bound as 32 bits: whatever is counted there stays below the largest number.
fn saturated(bound: usize) -> u32 {
    bound.min(u32::MAX as usize) as u32
}

/// Entries beyond `capacity` of their expert become -1. Slots stand in `rows` rows of `columns` and are served column by
/// column.
pub(crate) fn limit_capacity(
    l: &Launcher,
    experts: Arg,
    kept: Arg,
    rows: usize,
    columns: usize,
    count: usize,
    capacity: usize,
) {
    let (cpu, split) = (l.is_cpu(), l.split());
    let capacity = saturated(capacity);
    l.launch(
        if cpu { count } else { rows * columns },
        || format!("limit_capacity{}", if cpu { "" } else { " by slot" }),
        // SAFETY: both buffers hold rows * columns elements.
        |t| unsafe {
            let (experts, kept) = (t.bind(experts, 1), t.bind(kept, 1));
            let launch = if cpu {
                limit_capacity_kernel::launch_unchecked
            } else {
                limit_capacity_by_slot_kernel::launch_unchecked
            };
            launch(t.client, t.count(), t.dim(), experts, kept, rows, columns, count, capacity, split);
        },
    );
}

/// Entries beyond `capacity` of their expert become -1, served by (slot of the token, largest weight of the token,
/// token).
pub(crate) fn limit_capacity_by_weight(
    l: &Launcher,
    experts: Arg,
    weights: Arg,
    kept: Arg,
    k: usize,
    count: usize,
    capacity: usize,
) {
    let (slots, split) = (experts.elements(), l.split());
    let capacity = saturated(capacity);
    l.launch(
        slots,
        || "limit_capacity_by_weight".to_string(),
        // SAFETY: the three buffers hold `slots` elements, whole rows of k.
        |t| unsafe {
            let (experts, weights, kept) = (t.bind(experts, 1), t.bind(weights, 1), t.bind(kept, 1));
            run!(t, limit_capacity_by_weight_kernel(experts, weights, kept, slots, k, count, capacity, split));
        },
    );
}

/// A stable sort of slots by expert: where each expert's rows start, the slot of each row, and the row of each slot. What
/// `order` has no room for is dropped.
pub(crate) fn sort_by_expert(l: &Launcher, experts: Arg, offsets: Arg, order: Arg, positions: Arg, count: usize) {
    let (slots, rows, cpu, split) = (experts.elements(), order.elements(), l.is_cpu(), l.split());
    l.launch(
        if cpu { count } else { slots + count + 1 + rows },
        || format!("sort_by_expert{}", if cpu { "" } else { " by slot" }),
        // SAFETY: experts and positions hold `slots` elements, order `rows`, offsets count + 1; a row beyond `rows` is not
        // written.
        |t| unsafe {
            let launch =
                if cpu { sort_by_expert_kernel::launch_unchecked } else { sort_by_slot_kernel::launch_unchecked };
            launch(
                t.client,
                t.count(),
                t.dim(),
                t.bind(experts, 1),
                t.bind(offsets, 1),
                t.bind(order, 1),
                t.bind(positions, 1),
                slots,
                rows,
                count,
                split,
            );
        },
    );
}

/// Launches a kernel that makes the rows of `to` in vectors, and the program that goes on with them. `launch` is given
/// the width of vectors too.
fn rows_made(
    l: &Launcher,
    name: &str,
    to: Arg,
    weights: Option<Arg>,
    after: Option<After<'_>>,
    channels: usize,
    launch: impl Fn(&Target<'_>, &Then<'_>, usize),
) {
    let w = l.width(&[channels]);
    let weighted = if weights.is_some() { " weighted" } else { "" };
    go_on_with(l, to, after, Some(w), |then| {
        let name = || format!("{name} w{w} cols {}{weighted}{then}", channels / w);
        l.launch(to.elements() / w, name, |t| launch(t, then, w));
    });
}

/// Row `r` of the result is the row of the token of slot `order[r]`, times the slot's weight if there are weights.
pub(crate) fn dispatch(
    l: &Launcher,
    x: Arg,
    order: Arg,
    weights: Option<Arg>,
    y: Arg,
    after: Option<After<'_>>,
    tokens: usize,
    k: usize,
    channels: usize,
) {
    let (extents, split) = ([order.elements(), tokens, tokens * k, k], l.split());
    // SAFETY: x holds tokens * cols vectors, y and order a row per row, weights one element per slot, and slots are
    // compared with their number.
    rows_made(l, "dispatch", y, weights, after, channels, |t, then, w| unsafe {
        let (x, order, weights) = (t.bind(x, w), t.bind(order, 1), t.bind_all(&weights, 1));
        let (y, then, e) = (t.bind(y, w), then.bind(t, w), Extents::of(extents));
        run!(t, dispatch_kernel(w, x, order, weights, y, then, e, channels / w, split));
    });
}

/// The sum over a token's slots of the slot's row, times the slot's weight if there are weights.
pub(crate) fn combine(
    l: &Launcher,
    y: Arg,
    positions: Arg,
    weights: Option<Arg>,
    z: Arg,
    after: Option<After<'_>>,
    channels: usize,
) {
    let (rows, tokens, slots) = (y.elements() / channels, z.elements() / channels, positions.elements());
    let (extents, split) = ([rows, tokens, slots, slots / tokens], l.split());
    // SAFETY: y holds rows * cols vectors, z tokens * cols, positions and weights one element per slot, and positions are
    // compared with the number of rows.
    rows_made(l, "combine", z, weights, after, channels, |t, then, w| unsafe {
        let (y, positions, weights) = (t.bind(y, w), t.bind(positions, 1), t.bind_all(&weights, 1));
        let (z, then, e) = (t.bind(z, w), then.bind(t, w), Extents::of(extents));
        run!(t, combine_kernel(w, y, positions, weights, z, then, e, channels / w, split));
    });
}

/// The scalar product of a token's row of `dz` and the row of each of its slots.
pub(crate) fn combine_weight_grad(
    l: &Launcher,
    dz: Arg,
    y: Arg,
    positions: Arg,
    dweights: Arg,
    k: usize,
    channels: usize,
) {
    let w = l.width(&[channels]);
    let (rows, slots) = (y.elements() / channels, positions.elements());
    let (cols, split) = (channels / w, l.split());
    l.launch(
        slots,
        || format!("combine_weight_grad w{w}"),
        // SAFETY: dz holds slots / k * cols vectors, y rows * cols, positions and dweights one element per slot, and
        // positions are compared with the number of rows.
        |t| unsafe {
            let (dz, y) = (t.bind(dz, w), t.bind(y, w));
            let (positions, dweights) = (t.bind(positions, 1), t.bind(dweights, 1));
            run!(t, combine_weight_grad_kernel(w, dz, y, positions, dweights, rows, slots, k, cols, split));
        },
    );
}

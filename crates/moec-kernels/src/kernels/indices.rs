//! Integers from nothing, from floats, from tables and from neighbours. Each element of the result belongs to the unit
//! that owns its index; an index outside of its range gives -1.

#![allow(unsafe_code, reason = "kernel launches")]

use super::order::order_key;
use crate::launch::{Arg, Launcher, Split, end_item, first_item, item_step, run};
use cubecl::prelude::*;

#[cube(launch_unchecked)]
fn ramp_kernel(y: &mut [i32], n: usize, step: i32, #[comptime] split: Split) {
    for i in range_stepped(first_item(n, split), end_item(n, split), item_step(split)) {
        y[i] = i32::cast_from(i) * step;
    }
}

#[cube(launch_unchecked)]
fn to_float_kernel(x: &[i32], y: &mut [f32], n: usize, #[comptime] split: Split) {
    for i in range_stepped(first_item(n, split), end_item(n, split), item_step(split)) {
        y[i] = f32::cast_from(x[i]);
    }
}

/// Compared by their order, because what lies outside must not be converted, NaN least of all.
#[cube(launch_unchecked)]
fn to_index_kernel(x: &[f32], y: &mut [i32], n: usize, size: f32, #[comptime] split: Split) {
    let zero = order_key(0.0f32.runtime());
    let end = order_key(size);
    for i in range_stepped(first_item(n, split), end_item(n, split), item_step(split)) {
        let key = order_key(x[i]);
        let mut index = (-1i32).runtime();
        if key >= zero && key < end {
            index = i32::cast_from(x[i]);
        }
        y[i] = index;
    }
}

#[cube(launch_unchecked)]
fn lookup_kernel(ids: &[i32], table: &[i32], y: &mut [i32], n: usize, size: usize, #[comptime] split: Split) {
    for i in range_stepped(first_item(n, split), end_item(n, split), item_step(split)) {
        let id = ids[i];
        let mut value = (-1i32).runtime();
        if id >= 0 && (id as usize) < size {
            value = table[id as usize];
        }
        y[i] = value;
    }
}

#[cube(launch_unchecked)]
fn previous_kernel(ids: &[i32], y: &mut [i32], n: usize, time: usize, #[comptime] split: Split) {
    for i in range_stepped(first_item(n, split), end_item(n, split), item_step(split)) {
        let mut value = (-1i32).runtime();
        if i % time != 0 {
            value = ids[i - 1];
        }
        y[i] = value;
    }
}

/// `y[i] = i * step`
pub(crate) fn ramp(l: &Launcher, y: Arg, step: i32) {
    let (n, split) = (y.elements(), l.split());
    l.launch(
        n,
        || "ramp".to_string(),
        // SAFETY: y holds n elements.
        |t| unsafe { run!(t, ramp_kernel(t.bind(y, 1), n, step, split)) },
    );
}

/// The same numbers as floats.
pub(crate) fn to_float(l: &Launcher, x: Arg, y: Arg) {
    let (n, split) = (y.elements(), l.split());
    l.launch(
        n,
        || "to_float".to_string(),
        // SAFETY: both buffers hold n elements.
        |t| unsafe {
            run!(t, to_float_kernel(t.bind(x, 1), t.bind(y, 1), n, split));
        },
    );
}

/// The whole part where it is below `size`, else -1.
pub(crate) fn to_index(l: &Launcher, x: Arg, y: Arg, size: usize) {
    let (n, split) = (y.elements(), l.split());
    l.launch(
        n,
        || "to_index".to_string(),
        // SAFETY: both buffers hold n elements.
        |t| unsafe {
            let (x, y, size) = (t.bind(x, 1), t.bind(y, 1), size as f32);
            run!(t, to_index_kernel(x, y, n, size, split));
        },
    );
}

/// `y[i] = table[ids[i]]`
pub(crate) fn lookup(l: &Launcher, ids: Arg, table: Arg, y: Arg) {
    let (n, size, split) = (y.elements(), table.elements(), l.split());
    l.launch(
        n,
        || "lookup".to_string(),
        // SAFETY: ids and y hold n elements, table `size`, and ids are compared with it.
        |t| unsafe {
            let (ids, table, y) = (t.bind(ids, 1), t.bind(table, 1), t.bind(y, 1));
            run!(t, lookup_kernel(ids, table, y, n, size, split));
        },
    );
}

/// The id of the token before, in sequences of length `time`.
pub(crate) fn previous(l: &Launcher, ids: Arg, y: Arg, time: usize) {
    let (n, split) = (y.elements(), l.split());
    l.launch(
        n,
        || "previous".to_string(),
        // SAFETY: both buffers hold n elements; element 0 has none before it.
        |t| unsafe {
            let (ids, y) = (t.bind(ids, 1), t.bind(y, 1));
            run!(t, previous_kernel(ids, y, n, time, split));
        },
    );
}

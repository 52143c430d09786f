//! `y[i] = value`. Each element is written by the unit that owns `i`.

#![allow(unsafe_code, reason = "kernel launches")]

use crate::launch::{Arg, Launcher, Split, end_item, first_item, item_step, run};
use cubecl::prelude::*;

#[cube(launch_unchecked)]
fn fill<W: Size>(y: &mut [Vector<f32, W>], value: f32, n: usize, #[comptime] split: Split) {
    let v = Vector::<f32, W>::new(value);
    for i in range_stepped(first_item(n, split), end_item(n, split), item_step(split)) {
        y[i] = v;
    }
}

/// Fills a buffer.
pub(crate) fn launch(l: &Launcher, y: Arg, value: f32) {
    let w = l.width(&[y.elements()]);
    let (n, split) = (y.elements() / w, l.split());
    l.launch(
        n,
        || format!("fill w{w}"),
        // SAFETY: units write elements 0..n of a buffer of n vectors.
        |t| unsafe { run!(t, fill(w, t.bind(y, w), value, n, split)) },
    );
}

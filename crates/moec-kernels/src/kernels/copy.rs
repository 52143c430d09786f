//! Copies of words of any type: `copy` moves them (a reshape is a copy unless the plan shares the storage); `gather` reads
//! them with other strides, to repeat axes in patterns that a fused program cannot read and to reorder axes (it indexes
//! every element anew and is slow). Each element of the result belongs to the unit that owns its index.

#![allow(unsafe_code, reason = "kernel launches")]

use crate::launch::{Arg, Launcher, Split, end_item, first_item, item_step, run};
use cubecl::prelude::*;

#[cube(launch_unchecked)]
fn copy_kernel<W: Size>(x: &[Vector<u32, W>], y: &mut [Vector<u32, W>], n: usize, #[comptime] split: Split) {
    for i in range_stepped(first_item(n, split), end_item(n, split), item_step(split)) {
        y[i] = x[i];
    }
}

/// `axes` holds, from the last axis to the first, the extent in the result and the stride in the operand (0 if repeated).
#[cube(launch_unchecked)]
fn gather_kernel(x: &[u32], y: &mut [u32], n: usize, #[comptime] axes: Vec<(usize, usize)>, #[comptime] split: Split) {
    for i in range_stepped(first_item(n, split), end_item(n, split), item_step(split)) {
        let mut rest = i;
        let mut from = 0usize.runtime();
        #[unroll]
        for axis in 0..comptime!(axes.len()) {
            let (extent, stride) = comptime!(axes[axis]);
            from += rest % extent * stride;
            rest /= extent;
        }
        y[i] = x[from];
    }
}

/// Copies a buffer of either type, unless it is copied onto itself.
pub(crate) fn launch(l: &Launcher, x: Arg, y: Arg) {
    if x == y {
        return;
    }
    let w = l.width(&[y.elements()]);
    let (n, split) = (y.elements() / w, l.split());
    l.launch(
        n,
        || format!("copy w{w}"),
        // SAFETY: both buffers hold n vectors.
        |t| unsafe {
            run!(t, copy_kernel(w, t.bind(x, w), t.bind(y, w), n, split));
        },
    );
}

/// Repeats axes of extent 1 and missing leading axes of a buffer of shape `from` to shape `to`.
pub(crate) fn broadcast(l: &Launcher, x: Arg, y: Arg, from: &[usize], to: &[usize]) {
    let lead = to.len() - from.len();
    let (mut stride, mut axes) = (1, Vec::new());
    for (i, &extent) in to.iter().enumerate().rev() {
        let repeated = i < lead || from[i - lead] == 1;
        axes.push((extent, if repeated { 0 } else { stride }));
        stride *= if repeated { 1 } else { extent };
    }
    gather(l, x, y, axes, || format!("broadcast {from:?} to {to:?}"));
}

/// Axis `i` of the result is axis `axes[i]` of a buffer of the given shape.
pub(crate) fn permute(l: &Launcher, x: Arg, y: Arg, shape: &[usize], axes: &[usize]) {
    let stride = |axis: usize| shape[axis + 1..].iter().product::<usize>();
    let read = axes.iter().rev().map(|&axis| (shape[axis], stride(axis))).collect();
    gather(l, x, y, read, || format!("permute {shape:?} by {axes:?}"));
}

/// `axes`: see [`gather_kernel`].
fn gather(l: &Launcher, x: Arg, y: Arg, axes: Vec<(usize, usize)>, name: impl FnOnce() -> String) {
    let (n, split) = (y.elements(), l.split());
    l.launch(
        n,
        name,
        // SAFETY: i < n indexes y, and the strides lead to elements of x.
        |t| unsafe {
            let (x, y) = (t.bind(x, 1), t.bind(y, 1));
            run!(t, gather_kernel(x, y, n, axes, split));
        },
    );
}

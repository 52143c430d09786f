//! What the device can do at most: kernels that only multiply and add, or only move memory.

#![allow(unsafe_code, reason = "kernel launches")]

use crate::launch::{Arg, DeviceProfile, Launcher, Split, end_item, first_item, item_step, run};
use cubecl::prelude::*;

/// Chains of multiply-adds that run side by side: more than any core needs to hide the latency of one.
const CHAINS: usize = 12;

#[cube(launch_unchecked)]
fn multiply_adds<W: Size>(values: &mut [Vector<f32, W>], rounds: usize, #[comptime] chains: usize) {
    let (factor, summand) = (values[0], values[1]);
    let mut acc = Array::<Vector<f32, W>>::new(chains);
    #[unroll]
    for i in 0..chains {
        acc[i] = values[2 + i];
    }
    for _ in 0..rounds {
        #[unroll]
        for i in 0..chains {
            acc[i] = fma(acc[i], factor, summand);
        }
    }
    let mut sum = acc[0];
    #[unroll]
    for i in 1..chains {
        sum += acc[i];
    }
    values[2 + chains + ABSOLUTE_POS] = sum;
}

/// [`multiply_adds_of`] that many. `values` has room for a vector per unit and [`CHAINS`] + 2 more.
pub(crate) fn launch_multiply_adds(l: &Launcher, values: Arg, items: usize, rounds: usize) {
    let w = l.profile().matrix_width();
    l.launch(
        items,
        || format!("multiply_adds w{w}"),
        // SAFETY: a unit writes the vector that it owns, and `values` holds one for each.
        |t| unsafe {
            run!(t, multiply_adds(w, t.bind(values, w), rounds, CHAINS));
        },
    );
}

/// Multiply-adds of [`launch_multiply_adds`].
pub(crate) fn multiply_adds_of(profile: &DeviceProfile, items: usize, rounds: usize) -> f64 {
    (profile.launched_units(items) * rounds * CHAINS * profile.matrix_width()) as f64
}

#[cube(launch_unchecked)]
fn triad<W: Size>(
    b: &[Vector<f32, W>],
    c: &[Vector<f32, W>],
    a: &mut [Vector<f32, W>],
    n: usize,
    #[comptime] split: Split,
) {
    let factor = Vector::<f32, W>::new(0.5);
    for i in range_stepped(first_item(n, split), end_item(n, split), item_step(split)) {
        a[i] = fma(c[i], factor, b[i]);
    }
}

/// `a = b + c / 2` over buffers of equal length (McCalpin's STREAM triad): 12 bytes an element.
pub(crate) fn launch_triad(l: &Launcher, b: Arg, c: Arg, a: Arg) {
    let (w, split) = (l.width(&[a.elements()]), l.split());
    l.launch(
        a.elements() / w,
        || format!("triad w{w}"),
        // SAFETY: a unit writes the vectors of `a` that it owns.
        |t| unsafe {
            let n = a.elements() / w;
            run!(t, triad(w, t.bind(b, w), t.bind(c, w), t.bind(a, w), n, split));
        },
    );
}

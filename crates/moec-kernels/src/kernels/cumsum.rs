//! Cumulative sums of `[outer, extent, inner]` along the middle axis.
//!
//! One unit owns a vector of consecutive `inner` elements and walks along the axis in order, so what is added to what
//! depends on nothing but the shape.

#![allow(unsafe_code, reason = "kernel launches")]

use crate::launch::{Arg, Launcher, Split, end_item, first_item, item_step, run};
use cubecl::prelude::*;

#[cube(launch_unchecked)]
fn cumsum_kernel<W: Size>(
    x: &[Vector<f32, W>],
    y: &mut [Vector<f32, W>],
    lines: usize,
    extent: usize,
    inner: usize,
    #[comptime] exclusive: bool,
    #[comptime] reverse: bool,
    #[comptime] split: Split,
) {
    for line in range_stepped(first_item(lines, split), end_item(lines, split), item_step(split)) {
        let start = line / inner * extent * inner + line % inner;
        let mut sum = Vector::<f32, W>::new(0.0f32);
        for step in 0..extent {
            let mut place = step;
            if comptime!(reverse) {
                place = extent - 1 - step;
            }
            let at = start + place * inner;
            let term = x[at];
            if comptime!(exclusive) {
                y[at] = sum;
                sum += term;
            } else {
                sum += term;
                y[at] = sum;
            }
        }
    }
}

/// Sums along an axis of a tensor of that shape, up to each element (without itself if `exclusive`), or from each on if
/// `reverse`.
pub(crate) fn launch(l: &Launcher, x: Arg, y: Arg, shape: &[usize], axis: usize, exclusive: bool, reverse: bool) {
    let (outer, extent): (usize, usize) = (shape[..axis].iter().product(), shape[axis]);
    let inner: usize = shape[axis + 1..].iter().product();
    let (w, split) = (l.width(&[inner]), l.split());
    let (lines, inner) = (outer * inner / w, inner / w);
    l.launch(
        lines,
        || format!("cumsum exclusive={exclusive} reverse={reverse} w{w}"),
        // SAFETY: x and y hold lines * extent vectors, and a line's are `inner` apart from its first one on.
        |t| unsafe {
            run!(t, cumsum_kernel(w, t.bind(x, w), t.bind(y, w), lines, extent, inner, exclusive, reverse, split));
        },
    );
}

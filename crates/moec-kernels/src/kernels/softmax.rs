//! Softmax, its gradient and log-sum-exp over the last axis. One unit owns a row; the largest element is subtracted
//! before the exponential. A row is read two or three times, while it is in cache.

#![allow(unsafe_code, reason = "kernel launches")]

use super::lanes::{lane_max, lane_sum};
use crate::launch::{Arg, Launcher, Split, end_item, first_item, item_step, run};
use cubecl::prelude::*;

/// The largest element of the row that starts at `base`, kept finite so that subtracting it from itself is 0: a row of
/// -inf then has the log-sum-exp -inf, and one with +inf has +inf.
#[cube]
pub(crate) fn row_shift<W: Size>(x: &[Vector<f32, W>], base: usize, cols: usize) -> f32 {
    let mut largest = x[base];
    for c in 1..cols {
        largest = max(largest, x[base + c]);
    }
    clamp(lane_max::<W>(largest), -3.0e38f32, 3.0e38f32)
}

/// `ln sum e^x` of the row that starts at `base`.
#[cube]
pub(crate) fn row_log_sum_exp<W: Size>(x: &[Vector<f32, W>], base: usize, cols: usize) -> f32 {
    let largest = row_shift::<W>(x, base, cols);
    let shift = Vector::<f32, W>::new(largest);
    let mut sum = Vector::<f32, W>::new(0.0f32);
    for c in 0..cols {
        sum += Vector::exp(x[base + c] - shift);
    }
    largest + f32::ln(lane_sum::<W>(sum))
}

#[cube(launch_unchecked)]
fn softmax_kernel<W: Size>(
    x: &[Vector<f32, W>],
    y: &mut [Vector<f32, W>],
    rows: usize,
    cols: usize,
    #[comptime] split: Split,
) {
    for r in range_stepped(first_item(rows, split), end_item(rows, split), item_step(split)) {
        let base = r * cols;
        let shift = Vector::<f32, W>::new(row_shift::<W>(x, base, cols));
        let mut sum = Vector::<f32, W>::new(0.0f32);
        for c in 0..cols {
            let e = Vector::exp(x[base + c] - shift);
            y[base + c] = e;
            sum += e;
        }
        let inverse = Vector::<f32, W>::new(1.0f32 / lane_sum::<W>(sum));
        for c in 0..cols {
            y[base + c] = y[base + c] * inverse;
        }
    }
}

#[cube(launch_unchecked)]
fn softmax_grad_kernel<W: Size>(
    dy: &[Vector<f32, W>],
    y: &[Vector<f32, W>],
    dx: &mut [Vector<f32, W>],
    rows: usize,
    cols: usize,
    #[comptime] split: Split,
) {
    for r in range_stepped(first_item(rows, split), end_item(rows, split), item_step(split)) {
        let base = r * cols;
        let mut sum = Vector::<f32, W>::new(0.0f32);
        for c in 0..cols {
            sum = fma(dy[base + c], y[base + c], sum);
        }
        let inner = Vector::<f32, W>::new(lane_sum::<W>(sum));
        for c in 0..cols {
            dx[base + c] = y[base + c] * (dy[base + c] - inner);
        }
    }
}

#[cube(launch_unchecked)]
fn log_sum_exp_kernel<W: Size>(
    x: &[Vector<f32, W>],
    y: &mut [f32],
    rows: usize,
    cols: usize,
    #[comptime] split: Split,
) {
    for r in range_stepped(first_item(rows, split), end_item(rows, split), item_step(split)) {
        y[r] = row_log_sum_exp::<W>(x, r * cols, cols);
    }
}

/// `y = softmax(x)` over rows of length m.
pub(crate) fn softmax(l: &Launcher, x: Arg, y: Arg, rows: usize, m: usize) {
    let w = l.width(&[m]);
    let (cols, split) = (m / w, l.split());
    l.launch(
        rows,
        || format!("softmax w{w}"),
        // SAFETY: both buffers hold rows * cols vectors.
        |t| unsafe {
            let (x, y) = (t.bind(x, w), t.bind(y, w));
            run!(t, softmax_kernel(w, x, y, rows, cols, split));
        },
    );
}

/// `dx = y * (dy - sum(dy * y))` over rows of length m.
pub(crate) fn softmax_grad(l: &Launcher, dy: Arg, y: Arg, dx: Arg, rows: usize, m: usize) {
    let w = l.width(&[m]);
    let (cols, split) = (m / w, l.split());
    l.launch(
        rows,
        || format!("softmax_grad w{w}"),
        // SAFETY: the three buffers hold rows * cols vectors.
        |t| unsafe {
            let (dy, y, dx) = (t.bind(dy, w), t.bind(y, w), t.bind(dx, w));
            run!(t, softmax_grad_kernel(w, dy, y, dx, rows, cols, split));
        },
    );
}

/// `y = ln sum e^x` over rows of length m.
pub(crate) fn log_sum_exp(l: &Launcher, x: Arg, y: Arg, rows: usize, m: usize) {
    let w = l.width(&[m]);
    let (cols, split) = (m / w, l.split());
    l.launch(
        rows,
        || format!("log_sum_exp w{w}"),
        // SAFETY: x holds rows * cols vectors and y rows floats.
        |t| unsafe {
            let (x, y) = (t.bind(x, w), t.bind(y, 1));
            run!(t, log_sum_exp_kernel(w, x, y, rows, cols, split));
        },
    );
}

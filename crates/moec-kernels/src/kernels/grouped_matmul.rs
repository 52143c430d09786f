//! Sums per expert over rows sorted by expert; the products are those of [`super::matmul`].
//!
//! The sum over rows gives a unit a range of the columns of every expert (on graphics devices some columns of some experts);
//! a column is summed in row order by the unit that owns it.

#![allow(unsafe_code, reason = "kernel launches")]

use super::matmul::segment_end;
use crate::launch::{Arg, Launcher, Split, end_item, first_item, item_step, run};
use cubecl::prelude::*;

/// Sum of a column over the rows of an expert.
#[cube]
fn segment_sum<W: Size>(
    x: &[Vector<f32, W>],
    offsets: &[i32],
    e: usize,
    c: usize,
    rows: usize,
    columns: usize,
) -> Vector<f32, W> {
    let mut sum = Vector::<f32, W>::new(0.0);
    for r in segment_end(offsets, e, rows)..segment_end(offsets, e + 1, rows) {
        sum += x[r * columns + c];
    }
    sum
}

#[cube(launch_unchecked)]
fn sum_rows<W: Size>(
    x: &[Vector<f32, W>],
    offsets: &[i32],
    y: &mut [Vector<f32, W>],
    rows: usize,
    experts: usize,
    columns: usize,
    #[comptime] split: Split,
) {
    match comptime!(split) {
        Split::Ranges => {
            for e in 0..experts {
                for c in first_item(columns, split)..end_item(columns, split) {
                    y[e * columns + c] = segment_sum(x, offsets, e, c, rows, columns);
                }
            }
        }
        Split::Strided => {
            let items = experts * columns;
            for item in range_stepped(first_item(items, split), items, item_step(split)) {
                y[item] = segment_sum(x, offsets, item / columns, item % columns, rows, columns);
            }
        }
    }
}

/// `y [experts, outer]`: per expert the sum of its rows of `x [rows, outer]`; 0 for an expert without rows.
pub(crate) fn grouped_sum(l: &Launcher, x: Arg, offsets: Arg, y: Arg, rows: usize, experts: usize, outer: usize) {
    // Graphics devices need units more than wide loads here.
    let w = if l.is_cpu() { l.width(&[outer]) } else { 1 };
    let (columns, split) = (outer / w, l.split());
    l.launch(
        experts * columns,
        || format!("grouped_sum w{w}"),
        // SAFETY: segments are cut off at the rows of `x`; a unit writes the columns that it owns.
        |t| unsafe {
            run!(t, sum_rows(w, t.bind(x, w), t.bind(offsets, 1), t.bind(y, w), rows, experts, columns, split));
        },
    );
}

//! Reductions over the lanes of one vector, in a fixed order.

use cubecl::prelude::*;

/// Sum of the lanes.
#[cube]
pub(crate) fn lane_sum<W: Size>(v: Vector<f32, W>) -> f32 {
    let mut sum = v.extract(0usize);
    #[unroll]
    for lane in 1..W::value() {
        sum += v.extract(lane);
    }
    sum
}

/// The largest lane.
#[cube]
pub(crate) fn lane_max<W: Size>(v: Vector<f32, W>) -> f32 {
    let mut largest = v.extract(0usize);
    #[unroll]
    for lane in 1..W::value() {
        largest = max(largest, v.extract(lane));
    }
    largest
}

/// `[0, 1, 2, ..]`
#[cube]
pub(crate) fn lane_numbers<W: Size>() -> Vector<u32, W> {
    let mut v = Vector::<u32, W>::new(0u32);
    #[unroll]
    for lane in 0..W::value() {
        v.insert(lane, comptime!(lane as u32).runtime());
    }
    v
}

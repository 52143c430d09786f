//! Vectors: reductions over the lanes of one, in a fixed order, and arrays of them.

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

/// Sets the first vectors of an array to 0.
#[cube]
pub(crate) fn clear<W: Size>(values: &mut Array<Vector<f32, W>>, length: usize) {
    for i in 0..length {
        values[i] = Vector::new(0.0f32);
    }
}

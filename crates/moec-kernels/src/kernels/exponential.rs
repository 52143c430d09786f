//! Powers of two on vectors, in fewer instructions than CubeCL's exponential takes.

use cubecl::prelude::*;

/// `2^f` for `f` from -1/2 to 1/2, from the constant term up: the polynomial of least relative error, 9.2e-8, among those
/// that are 1 at 0 (Remez exchange).
#[allow(clippy::approx_constant, reason = "the best polynomial's coefficient is not quite ln 2")]
const SERIES: [f32; 6] = [1.0, 0.693_147, 0.240_222_42, 0.055_507_336, 0.009_671_514, 0.001_326_472_8];

/// What pushes the fraction of a number out of its mantissa: 1.5 * 2^23.
const ROUNDING: f32 = 12_582_912.0;

/// `2^x`. Relative error below 2.5e-7 for `x` from -126 to 128; beyond -126 the error is below 2^-126, from -127 on the result
/// is 0, and from 128 on infinite, exactly. A missing number remains one. Additions and multiplications only, so the
/// same bits wherever a multiply-add is rounded once.
#[cube]
pub(crate) fn exp2<W: Size>(x: Vector<f32, W>) -> Vector<f32, W> {
    // One instruction each, and in this order of operands a missing number remains.
    let (lowest, highest) = (Vector::<f32, W>::new(-127.0f32), Vector::<f32, W>::new(128.0f32));
    let x = select_many(lowest.greater_than(&x), lowest, x);
    let x = select_many(highest.less_than(&x), highest, x);
    let shifted = x + Vector::new(comptime!(ROUNDING).runtime());
    let rest = x - (shifted - Vector::new(comptime!(ROUNDING).runtime()));
    let mut power = Vector::<f32, W>::new(comptime!(SERIES[5]).runtime());
    #[unroll]
    for i in 0..5usize {
        power = fma(power, rest, Vector::new(comptime!(SERIES[4 - i]).runtime()));
    }
    // The lowest bits of `shifted` are the whole part, which is added to the exponent.
    let exponent = Vector::<u32, W>::reinterpret(shifted) << Vector::new(23u32);
    Vector::<f32, W>::reinterpret(Vector::<u32, W>::reinterpret(power) + exponent)
}

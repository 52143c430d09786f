//! Counter-based random numbers: the integer arithmetic of [`moec_ir::random`], word for word, on vectors of lanes.
//!
//! Element `i` depends on (seed, step, key, `i`) only and belongs to the unit that owns `i`. The generator state is
//! `[seed low, seed high, step low, step high]`; the stream's key is a runtime argument, so all streams share one
//! kernel.

#![allow(unsafe_code, reason = "kernel launches")]

use super::lanes::lane_numbers;
use crate::launch::{Arg, Launcher, Split, end_item, first_item, item_step, run};
use cubecl::prelude::*;
use moec_ir::random::GOLDEN;

/// [`moec_ir::random::mix`].
#[cube]
fn mix<W: Size>(word: Vector<u32, W>) -> Vector<u32, W> {
    let a = word ^ (word >> Vector::new(16u32));
    let b = a * Vector::new(0x7feb_352du32);
    let c = b ^ (b >> Vector::new(15u32));
    let d = c * Vector::new(0x846c_a68bu32);
    d ^ (d >> Vector::new(16u32))
}

/// First key of a stream; see [`moec_ir::random::keys`].
#[cube]
pub(crate) fn key_a<W: Size>(rng: &[u32], key: u32) -> Vector<u32, W> {
    let k = Vector::<u32, W>::new(key);
    let seeded = mix::<W>(mix::<W>(k ^ Vector::new(GOLDEN)) + Vector::new(rng[0]));
    mix::<W>(seeded + Vector::new(rng[2]))
}

/// Second key of a stream, from the first.
#[cube]
pub(crate) fn key_b<W: Size>(rng: &[u32], key: u32, a: Vector<u32, W>) -> Vector<u32, W> {
    let k = Vector::<u32, W>::new(key);
    let seeded = mix::<W>(a ^ Vector::new(rng[1]));
    mix::<W>(mix::<W>(seeded + Vector::new(rng[3])) + k)
}

/// 32 random bits of each counter; see [`moec_ir::random::bits`].
#[cube]
pub(crate) fn random_bits<W: Size>(a: Vector<u32, W>, b: Vector<u32, W>, counter: Vector<u32, W>) -> Vector<u32, W> {
    random_bits_of_multiples::<W>(a, b, golden_multiples::<W>(counter))
}

/// What [`random_bits_of_multiples`] takes for a counter; that of a sum of counters is the sum of theirs.
#[cube]
pub(crate) fn golden_multiples<W: Size>(counter: Vector<u32, W>) -> Vector<u32, W> {
    counter * Vector::new(GOLDEN)
}

/// 32 random bits of each counter, from its multiple: who goes from counter to counter adds instead of multiplying.
#[cube]
pub(crate) fn random_bits_of_multiples<W: Size>(
    a: Vector<u32, W>,
    b: Vector<u32, W>,
    multiple: Vector<u32, W>,
) -> Vector<u32, W> {
    mix::<W>(mix::<W>(multiple ^ a) + b)
}

/// Uniform on [0, 1) from 32 bits.
#[cube]
fn unit_interval<W: Size>(bits: Vector<u32, W>) -> Vector<f32, W> {
    Vector::<f32, W>::cast_from(bits >> Vector::new(8u32)) * Vector::new(1.0f32 / 16_777_216.0)
}

#[cube(launch_unchecked)]
fn uniform_kernel<W: Size>(rng: &[u32], y: &mut [Vector<f32, W>], key: u32, n: usize, #[comptime] split: Split) {
    let a = key_a::<W>(rng, key);
    let b = key_b::<W>(rng, key, a);
    let lanes = lane_numbers::<W>();
    for i in range_stepped(first_item(n, split), end_item(n, split), item_step(split)) {
        let counter = Vector::<u32, W>::new(u32::cast_from(i * W::value())) + lanes;
        y[i] = unit_interval::<W>(random_bits::<W>(a, b, counter));
    }
}

#[cube(launch_unchecked)]
fn normal_kernel<W: Size>(rng: &[u32], y: &mut [Vector<f32, W>], key: u32, n: usize, #[comptime] split: Split) {
    let a = key_a::<W>(rng, key);
    let b = key_b::<W>(rng, key, a);
    let lanes = lane_numbers::<W>();
    for i in range_stepped(first_item(n, split), end_item(n, split), item_step(split)) {
        let counter = (Vector::<u32, W>::new(u32::cast_from(i * W::value())) + lanes) * Vector::new(2u32);
        let word = random_bits::<W>(a, b, counter) >> Vector::new(8u32);
        // In (0, 1], so that its logarithm is finite.
        let u = Vector::<f32, W>::cast_from(word + Vector::new(1u32)) * Vector::new(1.0f32 / 16_777_216.0);
        let v = unit_interval::<W>(random_bits::<W>(a, b, counter + Vector::new(1u32)));
        let radius = Vector::sqrt(Vector::new(-2.0f32) * Vector::ln(u));
        y[i] = radius * Vector::cos(Vector::new(6.283_185_5f32) * v);
    }
}

/// Fills `y` with uniform numbers on [0, 1).
pub(crate) fn uniform(l: &Launcher, rng: Arg, y: Arg, key: u32) {
    let w = l.width(&[y.elements()]);
    let (n, split) = (y.elements() / w, l.split());
    l.launch(
        n,
        || format!("random_uniform w{w}"),
        // SAFETY: units write vectors 0..n of y and read the four words of the generator state.
        |t| unsafe {
            let (rng, y) = (t.bind(rng, 1), t.bind(y, w));
            run!(t, uniform_kernel(w, rng, y, key, n, split));
        },
    );
}

/// Fills `y` with standard normal numbers.
pub(crate) fn normal(l: &Launcher, rng: Arg, y: Arg, key: u32) {
    let w = l.width(&[y.elements()]);
    let (n, split) = (y.elements() / w, l.split());
    l.launch(
        n,
        || format!("random_normal w{w}"),
        // SAFETY: as for `uniform`.
        |t| unsafe {
            let (rng, y) = (t.bind(rng, 1), t.bind(y, w));
            run!(t, normal_kernel(w, rng, y, key, n, split));
        },
    );
}

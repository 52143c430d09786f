//! The order of floats, by their bits, so that no device's treatment of NaN, infinities or denormals enters it.

use cubecl::prelude::*;

/// A whole number that grows with `x`: the same for 0 and -0, and 0 for NaN, which is below that of -inf.
#[cube]
pub(crate) fn order_key(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    let magnitude = bits & 0x7fff_ffffu32;
    let signed = select(bits > 0x7fff_ffffu32, 0x8000_0000u32 - magnitude, 0x8000_0000u32 + magnitude);
    select(magnitude > 0x7f80_0000u32, 0u32, signed)
}

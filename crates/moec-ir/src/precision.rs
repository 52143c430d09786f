//! In which format a product reads its operands.

/// The format that the operands of a product are rounded to before they are multiplied. Sums are float32 on devices
/// whatever it is, and so is what they start from.
///
/// A product of two bfloat16 numbers has 16 significant bits, so that it is exact in float32: what rounding costs it costs
/// before the sum (Kalamkar et al. 2019, arXiv 1905.12322).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// As they are, in float32.
    #[default]
    F32,
    /// Rounded to bfloat16, the upper half of a float32: 8 bits of exponent and 8 significant bits. To the nearest, ties to
    /// even; what is too large becomes infinite, and NaN stays NaN.
    Bf16,
}

impl Precision {
    /// Every precision, for tables and tests.
    pub const ALL: [Precision; 2] = [Precision::F32, Precision::Bf16];

    /// Name in the text form and in recipes.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }

    /// The precision of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|precision| precision.name() == name)
    }

    /// A number as a product reads it. The reference evaluator's numbers have more digits than a device's: they are
    /// rounded to float32 first, as they are on a device.
    pub fn round(self, x: f64) -> f64 {
        match self {
            Precision::F32 => x,
            Precision::Bf16 => f64::from(f32::from_bits(u32::from(bf16_bits(x as f32)) << 16)),
        }
    }
}

/// The bits of the bfloat16 that is nearest to a number.
pub fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        // The upper half of a NaN may be an infinity's.
        return (bits >> 16) as u16 | 0x40;
    }
    // One less than half of the last place, and the last place itself: a tie is carried to an even one.
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(bits: u32) -> u32 {
        u32::from(bf16_bits(f32::from_bits(bits))) << 16
    }

    #[test]
    fn rounds_to_the_nearest_and_ties_to_even() {
        assert_eq!(rounded(0x3f80_0000), 0x3f80_0000);
        assert_eq!(rounded(0x3f80_7fff), 0x3f80_0000);
        assert_eq!(rounded(0x3f80_8000), 0x3f80_0000);
        assert_eq!(rounded(0x3f80_8001), 0x3f81_0000);
        assert_eq!(rounded(0x3f81_8000), 0x3f82_0000);
        assert_eq!(rounded(0xbf81_8000), 0xbf82_0000);
        // The smallest numbers are numbers, too.
        assert_eq!(rounded(0x0000_8001), 0x0001_0000);
        assert_eq!(rounded(0x8000_0000), 0x8000_0000);
    }

    #[test]
    fn keeps_what_is_no_number() {
        let round = |x: f64| Precision::Bf16.round(x);
        assert!(f32::from_bits(rounded(0x7f80_0001)).is_nan() && f32::from_bits(rounded(0xffff_ffff)).is_nan());
        assert_eq!((round(f64::INFINITY), round(f64::NEG_INFINITY)), (f64::INFINITY, f64::NEG_INFINITY));
        // Beyond the largest bfloat16 by half of its last place and more.
        assert_eq!((round(f64::from(f32::MAX)), round(-1e300)), (f64::INFINITY, f64::NEG_INFINITY));
        assert_eq!(round(3.3895e38), f64::from(f32::from_bits(0x7f7f_0000)));
        assert_eq!(Precision::F32.round(0.1), 0.1);
    }

    #[test]
    fn names_are_read_back() {
        assert!(Precision::ALL.into_iter().all(|p| Precision::named(p.name()) == Some(p)));
        assert_eq!(Precision::named("fp16"), None);
    }
}

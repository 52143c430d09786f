//! Ranges of numbers: what arguments and settings may be.

use std::fmt;

/// A range of numbers, with the words for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    low: f64,
    high: f64,
    low_open: bool,
    high_open: bool,
}

impl Interval {
    /// Every finite number.
    pub const ANY: Interval =
        Interval { low: f64::NEG_INFINITY, high: f64::INFINITY, low_open: false, high_open: false };

    /// `low` and everything above it.
    pub const fn at_least(low: f64) -> Self {
        Interval { low, ..Self::ANY }
    }

    /// Everything above `low`, without `low`.
    pub const fn above(low: f64) -> Self {
        Interval { low, low_open: true, ..Self::ANY }
    }

    /// `low` to `high`, with both.
    pub const fn closed(low: f64, high: f64) -> Self {
        Interval { low, high, low_open: false, high_open: false }
    }

    /// `low` to `high`, with `low` and without `high`.
    pub const fn half_open(low: f64, high: f64) -> Self {
        Interval { low, high, low_open: false, high_open: true }
    }

    /// `low` to `high`, without `low` and with `high`.
    pub const fn above_up_to(low: f64, high: f64) -> Self {
        Interval { low, high, low_open: true, high_open: false }
    }

    /// `low` to `high`, with neither.
    pub const fn open(low: f64, high: f64) -> Self {
        Interval { low, high, low_open: true, high_open: true }
    }

    /// The low end; above one that is not part of the range, 1 more or the middle; without one, 0 or what is nearest.
    pub fn least(&self) -> f64 {
        match (self.low.is_finite(), self.low_open) {
            (true, false) => self.low,
            (true, true) if self.contains(self.low + 1.0) => self.low + 1.0,
            (true, true) => (self.low + self.high) / 2.0,
            (false, _) => self.high.min(0.0),
        }
    }

    /// Whether the number lies in the range.
    pub fn contains(&self, value: f64) -> bool {
        let low = if self.low_open { value > self.low } else { value >= self.low };
        let high = if self.high_open { value < self.high } else { value <= self.high };
        value.is_finite() && low && high
    }
}

impl fmt::Display for Interval {
    /// `at least 1`, `at least 0 and below 1`, `above 0`, `any`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let low = if self.low_open { "above" } else { "at least" };
        let high = if self.high_open { "below" } else { "at most" };
        match (self.low.is_finite(), self.high.is_finite()) {
            (true, true) => write!(f, "{low} {} and {high} {}", self.low, self.high),
            (true, false) => write!(f, "{low} {}", self.low),
            (false, true) => write!(f, "{high} {}", self.high),
            (false, false) => f.write_str("any"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_know_their_ends_and_their_words() {
        let rate = Interval::half_open(0.0, 1.0);
        assert!(rate.contains(0.0) && rate.contains(0.999) && !rate.contains(1.0) && !rate.contains(-0.1));
        assert_eq!(rate.to_string(), "at least 0 and below 1");
        assert_eq!(Interval::above(0.0).to_string(), "above 0");
        assert!(!Interval::above(0.0).contains(0.0));
        assert!(!Interval::ANY.contains(f64::NAN) && !Interval::ANY.contains(f64::INFINITY));
        assert_eq!(Interval::closed(1.0, 8.0).to_string(), "at least 1 and at most 8");
    }
}

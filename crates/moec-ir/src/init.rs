//! How a persistent tensor starts.

use crate::types::Real;

/// Initial value of a parameter or state. The numbers are drawn by the runtime from (seed, name, element).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Init {
    /// Every element has this value.
    Constant(Real),
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: Real,
    },
    /// Uniform on `[-bound, bound)`.
    Uniform {
        /// Half the width of the interval.
        bound: Real,
    },
    /// A matrix whose rows are orthogonal and of this length; its columns, if it has more rows than columns.
    Orthogonal {
        /// Length of the vectors.
        gain: Real,
    },
}

impl Init {
    /// The same values, multiplied by a factor.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        let times = |value: Real| Real::new(value.get() * factor);
        match self {
            Init::Constant(value) => Init::Constant(times(value)),
            Init::Normal { std } => Init::Normal { std: times(std) },
            Init::Uniform { bound } => Init::Uniform { bound: times(bound) },
            Init::Orthogonal { gain } => Init::Orthogonal { gain: times(gain) },
        }
    }
}

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

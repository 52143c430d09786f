//! How far a graph has come.

use std::fmt;

/// How far a graph has come. Later stages allow everything that earlier ones do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// As lowered from a model: values, losses and metrics.
    Forward,
    /// With gradients and the optimiser's step; what is optimised and run.
    Training,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Forward => "forward",
            Stage::Training => "training",
        })
    }
}

//! Library facade, the pipeline, and the command line of moec.
//!
//! A program with a router of its own is a few lines: build a [`Registry`], hand it to [`run`], and every command
//! knows the router.
//!
//! ```no_run
//! use moec::Registry;
//!
//! fn main() -> std::process::ExitCode {
//!     moec::run(Registry::with_builtins())
//! }
//! ```
//!
//! The way from text to a program is in [`pipeline`]; each crate below owns one stage of it.

mod cli;
mod devices;
pub mod pipeline;
mod prepared;
pub mod resolved;
mod sampling;
mod sources;
mod training;

/// All that a routing strategy of another crate needs: the trait with what it declares, and the graph it builds.
/// `examples/router-plugin` is a complete one.
pub mod router {
    pub use moec_ir::{Binary, Builder, DType, Data, Op, Tensor, TensorType, Unary, Value};
    pub use moec_model::{
        Arguments, Assignment, AuxiliaryLoss, BalanceLoss, Compares, DefaultValue, Interval, LossContext, Mode,
        NoisyScores, ParameterSpec, ParameterType, Quantity, Randomness, Reads, Role, Routing, RoutingContext,
        RoutingStrategy, StateSource, TrainingText, Traits, Verdict,
    };
}

pub use cli::exit;
pub use cli::run;
pub use moec_model::Registry;
pub use prepared::initial_states;

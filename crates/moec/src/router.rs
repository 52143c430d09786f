//! All that a routing strategy of another crate needs: the trait with what it declares, and the graph it builds.
//! `examples/router-plugin` is a complete one.

pub use moec_ir::{Binary, Builder, DType, Data, Op, Tensor, TensorType, Unary, Value};
pub use moec_model::{
    Arguments, Assignment, AuxiliaryLoss, BalanceLoss, Compares, DefaultValue, Interval, LossContext, Mode,
    NoisyScores, ParameterSpec, ParameterType, Quantity, Randomness, Reads, Role, Routing, RoutingContext,
    RoutingStrategy, StateSource, TrainingText, Traits, Verdict,
};

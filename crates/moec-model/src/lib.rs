//! Meaning: names, shapes and router arguments checked; the model lowered to a forward graph.

mod argument;
mod check;
mod cost;
mod emit;
mod layers;
mod losses;
mod lower;
mod model;
mod recipe;
mod registry;
mod resolved;
mod router;
mod routers;

pub use argument::{ArgumentValue, Arguments, DefaultValue, Interval, ParameterSpec, ParameterType};
pub use check::{CheckOptions, Checked, SettingForm, SettingSpec, check, train_settings};
pub use cost::LayerInfo;
pub use emit::{NoisePolicy, Role};
pub use layers::{LAYERS, LayerSpec};
pub use losses::{BalanceLoss, LossContext};
pub use lower::{LowerError, LowerOptions, Lowered, MoeLayerInfo, lower, lower_layer};
pub use model::{
    Activation, Attention, Capacity, Causality, Layer, LayerKind, Mlp, Model, Moe, Number, Positions, Route, Vocab,
    WeightedLoss,
};
pub use recipe::{AdamW, DataSource, Evaluate, InitScheme, Recipe, Schedule};
pub use registry::Registry;
pub use resolved::{ResolvedLayer, ResolvedModel, ResolvedRecipe, ResolvedValue};
pub use router::{
    Assignment, Compares, Mode, NoisyScores, Quantity, Randomness, Reads, Routing, RoutingContext, RoutingStrategy,
    Traits,
};
pub use routers::{NoisyTopK, SoftmaxTopK};

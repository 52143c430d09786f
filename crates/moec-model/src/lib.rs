//! Meaning: names, shapes and router arguments checked; the model lowered to a forward graph.
//!
//! [`check`] turns a syntax tree into a [`Model`] and a [`Recipe`], with every fault of the file reported in one run.
//! [`lower`] turns a model into a graph of `moec_ir`, for training or for evaluation. No file is read here, and nothing
//! is run.
//!
//! What a name in a file can mean is a value, the [`Registry`]. A routing strategy from another crate is one more entry,
//! and it can do whatever the built-in ones do:
//!
//! ```
//! use moec_model::*;
//!
//! /// One expert a token, with the sigmoid of its score as weight (as in Llama 4).
//! struct SigmoidTop1;
//!
//! impl RoutingStrategy for SigmoidTop1 {
//!     fn name(&self) -> &str {
//!         "sigmoid_top_1"
//!     }
//!     fn summary(&self) -> &str {
//!         "the expert with the largest score, weighted by the sigmoid of the score"
//!     }
//!     fn parameters(&self) -> &[ParameterSpec] {
//!         &[]
//!     }
//!     fn experts_per_token(&self, _: &Arguments, _experts: usize, _time: usize) -> f64 {
//!         1.0
//!     }
//!     fn traits(&self, _: &Arguments) -> Traits {
//!         Traits { provides: &[Quantity::Logits], ..Traits::default() }
//!     }
//!     fn lower(&self, context: &mut RoutingContext<'_>, _: &Arguments) -> Routing {
//!         let logits = context.linear("router", context.tokens(), context.experts(), false);
//!         let b = context.builder();
//!         let (top, chosen) = b.top_k(logits, 1);
//!         let weights = b.unary(moec_ir::Unary::Sigmoid, top);
//!         Routing { logits: Some(logits), ..Routing::token_choice(chosen, weights) }
//!     }
//! }
//!
//! let text = "model m {
//!   context 4  vocab 9
//!   embed(width: 8)
//!   residual { layer_norm  moe(experts: 4 * mlp(hidden: 16), route: sigmoid_top_1, balance: [z]) }
//!   unembed
//! }";
//! let source = moec_syntax::SourceFile::new("m.moe", text);
//! let file = moec_syntax::parse(&source).expect("the syntax is right");
//! let registry = Registry::with_builtins().router(SigmoidTop1);
//! let checked = check(&source, &file, &registry, &CheckOptions::default());
//! let model = checked.model.expect("the model is sound");
//! let options = LowerOptions {
//!     mode: Mode::Train,
//!     batch: 2,
//!     vocab: 9,
//!     loss: true,
//!     noise: NoisePolicy::Generated,
//!     init: checked.recipe.init,
//!     precision: checked.recipe.precision,
//!     routes: false,
//!     form: Form::Sequences,
//! };
//! let lowered = lower(&model, &options)?;
//! assert!(lowered.graph.output("aux.moe.z").is_some());
//! # Ok::<(), LowerError>(())
//! ```

mod argument;
mod arithmetic;
mod check;
mod cost;
mod data_sets;
mod decoding;
mod emit;
mod layer;
mod layers;
pub mod library;
mod losses;
mod lower;
mod model;
mod needs;
mod origin;
mod recipe;
pub mod reference;
mod registry;
mod resolved;
mod router;
mod router_language;
mod routers;
mod state;
mod tensors;
mod words;

pub use argument::{ArgumentValue, Arguments, DefaultValue, Interval, ParameterSpec, ParameterType};
pub use arithmetic::Number;
pub use check::{CheckOptions, Checked, NamedValue, check};
pub use cost::LayerInfo;
pub use data_sets::DataSet;
pub use decoding::{Cache, Decoding, decoding};
pub use emit::{Mode, NoisePolicy, Role};
pub use layer::Layer;
pub use layers::{
    Activation, Attention, Capacity, CapacityOrder, LAYERS, LayerSpec, MixtureOfDepths, Mlp, Moe, MultiHash, QueryNorm,
    Route, RunningMean, WeightedLoss, ZeroComputation, ZeroExperts,
};
pub use losses::{BalanceLoss, LossContext};
pub use lower::{Form, LowerError, LowerOptions, Lowered, MoeLayerInfo, RoutedLayer, lower, lower_layer};
pub use model::{Causality, Model, Positions, Vocab};
pub use moec_plan::{Optimizer, Schedule};
pub use needs::Obstacle;
pub use origin::span_of;
pub use recipe::{DataSource, Evaluate, InitScheme, Recipe, SettingForm, SettingSpec, train_settings};
pub use registry::Registry;
pub use resolved::{ResolvedLayer, ResolvedModel, ResolvedRecipe, ResolvedValue};
pub use router::{
    Assignment, AuxiliaryLoss, Compares, Comparison, GradientEnd, NoisyScores, Quantity, Randomness, Reads, Routing,
    RoutingContext, RoutingStrategy, Traits, Verdict,
};
pub use router_language::{ROUTER_FUNCTIONS, ROUTER_RESULTS, ROUTER_TABLES, RouterFunction};
pub use routers::{
    Base, DSelectK, ExpertChoice, GShard, Hash, NoisyTopK, SigmoidTopK, Smear, SoftMoe, SoftmaxTopK, Switch,
};
pub use state::{StateInit, StateSource, TrainingText};
pub use tensors::{Freeze, InitScale, TensorsError};

//! The checked model as a forward graph.
//!
//! Everything inside a model is a matrix of N = B*T rows. The layers of an expert run on the R = N*K rows sorted by
//! expert instead, with one set of parameters per expert: the same function lowers a layer in both settings, which
//! differ in how a linear map and a norm are built ([`Rows`](lowering::Rows)).

pub(crate) mod lowering;

use moec_ir::{Input, Op, Output, TensorType, Value};

use crate::cost::layer_info;
use crate::decoding::{Cache, decoding};
use crate::emit::{Declared, Emitter};
use crate::layer::{Layer, Naming};
use crate::model::Model;
use crate::origin::origin_of;
use lowering::{Lowering, Site};

pub use lowering::{Form, LowerError, LowerOptions, Lowered, MoeLayerInfo, RoutedLayer};

/// Lowers a model to a forward graph.
///
/// Inputs: `tokens` i32 `[N]`; with a loss `targets` i32 `[N]`; `rng` i32 `[4]` if anything is random; with injected
/// noise `PATH.noise` `[N, E]` per `moe` layer. Outputs: `logits` `[N, V]`; with a loss also `loss`, `objective` and
/// `aux.PATH.NAME`; in evaluation with a loss, or with routes, per `moe` layer `load.PATH` `[E]` (tokens kept by each expert), `dropped.PATH` (share of the
/// choices that were dropped), `entropy.PATH` (mean entropy of a token's gate weights in nats) and `balance.PATH`
/// (number of experts times the sum of squared load shares, 1 at perfect balance); where experts compute nothing
/// `zero.PATH` (tokens that chose each of those), and where the number of experts per token varies `per_token.PATH` (its
/// mean) and `active_parameters`.
///
/// For [`Form::Next`] there is another input, `rows` i32 `[B]`, and `logits` `[B, V]` has the scores after those of the
/// N tokens. For [`Form::Decode`] `tokens` is i32 `[B]`, and so are the inputs `positions`, counted from the first token
/// of each sequence, and, if a router asks for it, `previous`, the token before (-1 for none); `logits` is `[B, V]`, and
/// the attention layer of path `PATH` has the state `cache.PATH` `[B, T, 2C]`. A sequence with a negative position
/// leaves its part of the states alone.
///
/// # Errors
/// When a routing strategy misbehaves, a size in the options is 0 or absurd, or [`Form::Decode`] is asked of a model
/// that cannot do it (see [`crate::decoding()`]).
pub fn lower(model: &Model, options: &LowerOptions) -> Result<Lowered, LowerError> {
    let mut tokens = token_count(options, model.context)?;
    if options.form == Form::Decode {
        if let Cache::Never(obstacle) = decoding(model).cache {
            return Err(LowerError::NotCached(obstacle));
        }
        tokens = options.batch;
    }
    let mut lowering = Lowering::new(options, model.context, tokens);
    let logits = lowering.sequence(&model.layers, lowering.trunk(), lowering.token_ids);
    let built = logits.map(|logits| {
        let b = lowering.b();
        b.output(Output::Logits, logits);
        if options.loss {
            let targets = b.input(Input::Targets, TensorType::i32([tokens]));
            let loss = b.named("loss", Op::CrossEntropy, &[logits, targets]);
            b.output(Output::Loss, loss);
            lowering.pooled_losses();
            lowering.objective(loss);
            lowering.active_parameters();
        }
    });
    lowering.finish(built)
}

/// Lowers one layer on its own, for looking at and testing a layer or a routing strategy.
///
/// Inputs: `x` `[N, C]`, `tokens` i32 `[N]` with N = batch * `time`, and `rng` or noise as in [`lower`]. Output: `y`
/// `[N, C']`. For a `moe` layer, with a loss in the options, also the outputs of [`lower`] that name its path (`moe`).
///
/// # Errors
/// As [`lower`].
pub fn lower_layer(layer: &Layer, options: &LowerOptions, time: usize) -> Result<Lowered, LowerError> {
    let tokens = token_count(options, time)?;
    let mut lowering = Lowering::new(options, time, tokens);
    let Some(width) = layer.input else {
        return Err(LowerError::Alone(format!("`{}` is given tokens and not vectors", layer.name())));
    };
    let x = lowering.b().input("x", TensorType::f32([tokens, width]));
    let y = lowering.layer(layer, lowering.trunk(), x);
    let built = y.map(|y| lowering.b().output("y", y));
    lowering.finish(built)
}

/// N = B*T, if an index can count it.
fn token_count(options: &LowerOptions, time: usize) -> Result<usize, LowerError> {
    if options.batch == 0 || options.vocab == 0 || time == 0 {
        return Err(LowerError::Size("batch, vocabulary and context must be at least 1".into()));
    }
    options.batch.checked_mul(time).filter(|&n| n <= i32::MAX as usize).ok_or_else(|| {
        LowerError::Size(format!("{} sequences of {time} tokens are more than an index can count", options.batch))
    })
}

impl Lowering {
    /// Builds layers one after the other.
    pub(crate) fn sequence(&mut self, layers: &[Layer], site: Site<'_>, mut x: Value) -> Result<Value, LowerError> {
        // The last layer that needs more than the tokens that are asked for; what comes after it has only those.
        let last = layers.iter().rposition(|layer| !layer.is_tokenwise()).filter(|_| site.narrows);
        for (i, layer) in layers.iter().enumerate() {
            let narrows = last == Some(i) && matches!(layer.kind.naming(), Naming::Block(_));
            let time = if last.is_some_and(|last| i > last) { 1 } else { site.time };
            x = self.layer(layer, Site { time, narrows, ..site }, x)?;
            if last == Some(i) && !narrows {
                x = self.narrowed(x);
            }
        }
        Ok(x)
    }

    /// One row of each window: those that the input `rows` names.
    fn narrowed(&mut self, x: Value) -> Value {
        let batch = self.options.batch;
        let b = self.b();
        let rows = b.input(Input::Rows, TensorType::i32([batch]));
        b.op(Op::Embed, &[rows, x])
    }

    fn layer(&mut self, layer: &Layer, site: Site<'_>, x: Value) -> Result<Value, LowerError> {
        let origin = origin_of(layer.span);
        let former = self.b().set_origin(Some(origin));
        let result = match layer.kind.naming() {
            Naming::None => layer.kind.lower(self, site, x),
            Naming::Block(index) => self.opened(&format!("blocks.{index}"), |l| layer.kind.lower(l, site, x)),
            Naming::Own => {
                let before = self.emitter.parameters.len();
                let (path, result) = self.scoped(layer.name(), |l| (l.path(), layer.kind.lower(l, site, x)));
                let declared = self.emitter.parameters.values().skip(before);
                let flops = layer.kind.flops(site.time, self.options.vocab);
                let info = layer_info(path, layer, declared, flops);
                if site.inside {
                    self.inner_layers.push(info)
                } else {
                    self.layers.push(info)
                }
                result
            }
        };
        self.b().set_origin(former);
        result
    }

    /// The output `objective`: the task's loss plus the weighted losses of layers.
    fn objective(&mut self, loss: Value) {
        let mut total = loss;
        for (value, weight) in std::mem::take(&mut self.objective) {
            let b = self.b();
            let term = b.scale(value, weight);
            total = b.add(total, term);
        }
        self.b().output(Output::Objective, total);
    }

    /// The graph with what was declared in it, unless the layers could not be built.
    fn finish(self, built: Result<(), LowerError>) -> Result<Lowered, LowerError> {
        let Emitter { builder, parameters, states, .. } = self.emitter;
        // A graph that does not fit comes first: what a strategy returned after it is a consequence.
        let graph = builder.finish().map_err(LowerError::Graph)?;
        built?;
        let named = |which: fn(&Declared) -> bool| {
            parameters.iter().filter(|(_, declared)| which(declared)).map(|(name, _)| name.clone()).collect()
        };
        Ok(Lowered {
            graph,
            router_parameters: named(|declared| declared.router),
            matrices: named(|declared| declared.matrix),
            hidden_matrices: named(|declared| declared.hidden),
            parameters: parameters.into_iter().map(|(name, declared)| (name, declared.init)).collect(),
            states: states.into_iter().collect(),
            moe_layers: self.moe_layers,
            routed: self.routed,
            layers: self.layers,
            inner_layers: self.inner_layers,
        })
    }
}

//! The checked model as a forward graph.
//!
//! Everything inside a model is a matrix of N = B*T rows. The layers of an expert run on the R = N*K rows sorted by
//! expert instead, with one set of parameters per expert: the same function lowers a layer in both settings, which
//! differ in how a linear map and a norm are built ([`Rows`]).

mod mixture_of_depths;
mod moe;
mod multi_hash;

use std::collections::BTreeMap;
use std::fmt;
use std::mem;

use moec_ir::{
    AttentionAttrs, Binary, Builder, Graph, GraphError, Init, Input, Op, Output, StateRole, TOKEN_TABLE, TensorType,
    Unary, Value,
};
use moec_syntax::Span;

use crate::cost::{self, LayerInfo};
use crate::decoding::{Cache, Obstacle, decoding, is_tokenwise};
use crate::emit::{Emitter, NoisePolicy, Role};
use crate::model::{Activation, Attention, Layer, LayerKind, Mlp, Model, Positions};
use crate::origin::origin_of;
use crate::recipe::InitScheme;
use crate::router::{Gather, Mode, Source};
use crate::state::StateInit;

/// Which tokens a function is given, and which it scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Form {
    /// B sequences of T tokens, all of them scored.
    #[default]
    Sequences,
    /// B windows of T tokens, one of each scored: what is needed to write the next one.
    Next,
    /// One token of each of B sequences, from the keys and values of those before it, which are kept.
    Decode,
}

/// What a model is lowered for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LowerOptions {
    /// Training step, or evaluation and sampling.
    pub mode: Mode,
    /// Sequences, B.
    pub batch: usize,
    /// Size of the vocabulary, V.
    pub vocab: usize,
    /// Adds the inputs and outputs around the loss: `targets`, `loss`, `objective`, balance losses and balance metrics.
    pub loss: bool,
    /// Where router noise comes from.
    pub noise: NoisePolicy,
    /// How parameters start.
    pub init: InitScheme,
    /// Adds what every router decided as outputs, for looking at and replaying routes: `experts.PATH` i32 `[N, K]`
    /// (before capacity), `kept.PATH` i32 `[N, K]` (after it), `weights.PATH` `[N, K]`, and `gates.PATH` `[N, E]`, the
    /// weights as a matrix with 0 where nothing was sent. Where a layer is given rows and not all tokens in order, inside
    /// an expert for example, N is their number, and `rows.PATH` i32 `[N]` says which token each is (-1 for none). A
    /// mixture of depths is a layer with one expert, a multi-hash one with an expert per hash and bucket.
    pub routes: bool,
    /// Which tokens it is given; the others than [`Form::Sequences`] are for evaluation without a loss.
    pub form: Form,
}

/// A lowered model.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The forward graph.
    pub graph: Graph,
    /// Parameters with their initial values, in order of declaration.
    pub parameters: Vec<(String, Init)>,
    /// States of routers with their initial values.
    pub states: Vec<(String, StateInit)>,
    /// The `moe` layers in order.
    pub moe_layers: Vec<MoeLayerInfo>,
    /// The layers in order, with their sizes and costs.
    pub layers: Vec<LayerInfo>,
}

impl Lowered {
    /// Number of trained numbers.
    pub fn parameter_count(&self) -> usize {
        self.layers.iter().map(|layer| layer.parameters).sum()
    }

    /// Number of trained numbers that one token makes use of.
    pub fn active_parameter_count(&self) -> usize {
        self.layers.iter().map(|layer| layer.active).sum()
    }
}

/// One `moe` layer of a lowered model.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeLayerInfo {
    /// Its path, by which outputs are named: `load.PATH`, `dropped.PATH`, `entropy.PATH`, `balance.PATH`.
    pub path: String,
    /// Number of experts, E; in a `moe` inside an expert the product of both levels.
    pub experts: usize,
    /// Experts that work on a token of the layer, on average.
    pub experts_per_token: f64,
    /// Experts that every token goes to.
    pub shared: usize,
    /// Name of the routing strategy.
    pub strategy: String,
    /// Tokens that an expert accepts in this function, P.
    pub capacity: Option<usize>,
    /// Balance losses with their weights; the values are the outputs `aux.PATH.NAME`.
    pub losses: Vec<(String, f64)>,
    /// Where it was written.
    pub span: Span,
}

/// Why a checked model could not be lowered.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum LowerError {
    /// An operation does not fit its operands; only a routing strategy or a loss from outside can cause it.
    Graph(GraphError),
    /// A routing strategy returned something else than it should.
    Routing {
        /// Name of the strategy.
        strategy: String,
        /// What is wrong.
        message: String,
        /// Where the route was written.
        span: Span,
    },
    /// The keys and values of earlier tokens are not all that a token depends on.
    NotCached(Obstacle),
    /// A batch, vocabulary or context of 0, or so large that the number of tokens overflows.
    Size(String),
}

impl fmt::Display for LowerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LowerError::Graph(error) => write!(f, "{error}"),
            LowerError::Routing { strategy, message, .. } => write!(f, "the router `{strategy}` {message}"),
            LowerError::NotCached(obstacle) => write!(f, "no keys and values can be kept: {obstacle}"),
            LowerError::Size(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for LowerError {}

/// Lowers a model to a forward graph.
///
/// Inputs: `tokens` i32 `[N]`; with a loss `targets` i32 `[N]`; `rng` i32 `[4]` if anything is random; with injected
/// noise `PATH.noise` `[N, E]` per `moe` layer. Outputs: `logits` `[N, V]`; with a loss also `loss`, `objective` and
/// `aux.PATH.NAME`; in evaluation with a loss, or with routes, per `moe` layer `load.PATH` `[E]` (tokens kept by each expert), `dropped.PATH` (share of the
/// choices that were dropped), `entropy.PATH` (mean entropy of a token's gate weights in nats) and `balance.PATH`
/// (number of experts times the sum of squared load shares, 1 at perfect balance).
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
    let logits = lowering.sequence(&model.layers, lowering.token_ids, Rows::Tokens);
    let b = lowering.b();
    b.output(Output::Logits, logits);
    if options.loss {
        let targets = b.input(Input::Targets, TensorType::i32([tokens]));
        let loss = b.named("loss", Op::CrossEntropy, &[logits, targets]);
        b.output(Output::Loss, loss);
        lowering.objective(loss);
    }
    lowering.finish()
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
    let x = lowering.b().input("x", TensorType::f32([tokens, layer.input]));
    let y = lowering.layer(layer, x, Rows::Tokens);
    lowering.b().output("y", y);
    lowering.finish()
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

/// What the rows of a matrix are, and with it which parameters they meet.
#[derive(Clone, Copy)]
enum Rows {
    /// All N tokens in order.
    Tokens,
    /// The R rows sent to E experts, sorted by expert; `offsets` i32 `[E + 1]` says which are whose.
    Experts { experts: usize, offsets: Value },
}

struct Lowering {
    emitter: Emitter,
    options: LowerOptions,
    /// Length of the sequences of the batch.
    sequence_length: usize,
    /// Length of the sequences that attention sees: shorter where only some tokens go through a layer.
    time: usize,
    token_ids: Value,
    /// How often each layer name occurred, per open scope.
    taken: Vec<BTreeMap<&'static str, usize>>,
    moe_layers: Vec<MoeLayerInfo>,
    layers: Vec<LayerInfo>,
    /// Balance losses with their weights.
    objective: Vec<(Value, f64)>,
    error: Option<LowerError>,
    /// How many `moe` layers are open; the table of layers counts what is inside one as its.
    inside_moe: usize,
    /// What has been taken from the tokens of the batch: the rows of experts, the tokens that go through a layer.
    gathers: Vec<Gather>,
    /// Chosen experts and weights `[N, K]` of the `moe` layers that are open, outermost first.
    outer_choices: Vec<(Value, Value)>,
    /// 1 for the rows that the layers being built work on, else 0, `[N, 1]`; `None` if they work on all.
    valid_rows: Option<Value>,
    /// Weights that routers multiply with each token of the layer being built.
    router_weights: f64,
    /// Whether the layers to be built end with one token of each window.
    narrows: bool,
}

impl Lowering {
    fn new(options: &LowerOptions, time: usize, tokens: usize) -> Self {
        let mut emitter = Emitter::new(options.mode, options.noise, options.init);
        let token_ids = emitter.builder.input(Input::Tokens, TensorType::i32([tokens]));
        Lowering {
            emitter,
            options: *options,
            sequence_length: time,
            time: if options.form == Form::Decode { 1 } else { time },
            token_ids,
            taken: vec![BTreeMap::new()],
            moe_layers: Vec::new(),
            layers: Vec::new(),
            objective: Vec::new(),
            error: None,
            inside_moe: 0,
            gathers: Vec::new(),
            outer_choices: Vec::new(),
            valid_rows: None,
            router_weights: 0.0,
            narrows: options.form == Form::Next,
        }
    }

    fn b(&mut self) -> &mut Builder {
        &mut self.emitter.builder
    }

    fn training(&self) -> bool {
        self.options.mode == Mode::Train
    }

    /// Whether the tokens are the newest of each sequence, without those before them.
    fn newest(&self) -> bool {
        self.options.form == Form::Decode
    }

    /// The output `objective`: the task's loss plus the weighted balance losses.
    fn objective(&mut self, loss: Value) {
        let balance = mem::take(&mut self.objective);
        let b = self.b();
        let mut total = loss;
        for (value, weight) in balance {
            let term = b.scale(value, weight);
            total = b.add(total, term);
        }
        b.output(Output::Objective, total);
    }

    fn finish(self) -> Result<Lowered, LowerError> {
        let Emitter { builder, parameters, states, .. } = self.emitter;
        // A graph that does not fit comes first: what a strategy returned after it is a consequence.
        let graph = builder.finish().map_err(LowerError::Graph)?;
        if let Some(error) = self.error {
            return Err(error);
        }
        Ok(Lowered {
            graph,
            parameters: parameters.into_iter().map(|(name, declared)| (name, declared.init)).collect(),
            states: states.into_iter().collect(),
            moe_layers: self.moe_layers,
            layers: self.layers,
        })
    }

    /// Runs `f` in the scope of a layer: its name, numbered from the second one in the same scope on.
    fn scoped<T>(&mut self, name: &'static str, f: impl FnOnce(&mut Self) -> T) -> T {
        let mut count = 1;
        if let Some(taken) = self.taken.last_mut() {
            let entry = taken.entry(name).or_insert(0);
            *entry += 1;
            count = *entry;
        }
        let scope = if count == 1 { name.to_string() } else { format!("{name}_{count}") };
        self.opened(&scope, f)
    }

    /// Runs `f` in a scope of exactly this name.
    fn opened<T>(&mut self, scope: &str, f: impl FnOnce(&mut Self) -> T) -> T {
        self.taken.push(BTreeMap::new());
        let mut outer = mem::take(&mut self.emitter.builder);
        let result = outer.scoped(scope, |scoped| {
            mem::swap(scoped, &mut self.emitter.builder);
            let result = f(self);
            mem::swap(scoped, &mut self.emitter.builder);
            result
        });
        self.emitter.builder = outer;
        self.taken.pop();
        result
    }

    /// Runs `f` for layers inside another, which a share of the tokens meets: they are counted as part of it.
    fn inside<T>(&mut self, share: f64, f: impl FnOnce(&mut Self) -> T) -> T {
        let outer = self.emitter.share;
        self.emitter.share = outer * share;
        self.inside_moe += 1;
        let result = f(self);
        self.inside_moe -= 1;
        self.emitter.share = outer;
        result
    }

    fn sequence(&mut self, layers: &[Layer], x: Value, rows: Rows) -> Value {
        // The last layer that needs more than the tokens that are asked for; what comes after it has only those.
        let narrows = mem::take(&mut self.narrows);
        let last = layers.iter().rposition(|layer| !is_tokenwise(layer)).filter(|_| narrows);
        layers.iter().enumerate().fold(x, |x, (i, layer)| {
            self.narrows = last == Some(i) && matches!(layer.kind, LayerKind::Block { .. });
            let within = self.narrows;
            let x = self.layer(layer, x, rows);
            if last == Some(i) && !within { self.narrowed(x) } else { x }
        })
    }

    /// One row of each window: those that the input `rows` names.
    fn narrowed(&mut self, x: Value) -> Value {
        self.time = 1;
        let batch = self.options.batch;
        let b = self.b();
        let rows = b.input(Input::Rows, TensorType::i32([batch]));
        b.op(Op::Embed, &[rows, x])
    }

    fn layer(&mut self, layer: &Layer, x: Value, rows: Rows) -> Value {
        let origin = origin_of(layer.span);
        let former = self.b().set_origin(Some(origin));
        let result = match &layer.kind {
            LayerKind::Residual(layers) => {
                let branch = self.sequence(layers, x, rows);
                self.b().named("residual", Op::Binary(Binary::Add), &[x, branch])
            }
            LayerKind::Block { index, layers } => {
                self.opened(&format!("blocks.{index}"), |l| l.sequence(layers, x, rows))
            }
            _ => {
                let before = self.emitter.parameters.len();
                let (path, result) = self.scoped(layer.kind.name(), |l| {
                    let path = l.b().path("");
                    (path, l.leaf(layer, x, rows))
                });
                if self.inside_moe == 0 {
                    self.record(layer, path, before);
                }
                result
            }
        };
        self.b().set_origin(former);
        result
    }

    /// Adds a row to the table of layers. Parameters declared since `before` are the layer's.
    fn record(&mut self, layer: &Layer, path: String, before: usize) {
        let declared = self.emitter.parameters.values().skip(before);
        let router = mem::take(&mut self.router_weights);
        self.layers.push(cost::layer_info(layer, path, declared, router, self.time, self.options.vocab));
    }

    /// Lowers a layer that has no layers of its own, or opens scopes for them itself.
    fn leaf(&mut self, layer: &Layer, x: Value, rows: Rows) -> Value {
        let width = layer.input;
        match &layer.kind {
            LayerKind::Embed { positions } => self.embed(layer.output, *positions),
            LayerKind::Attention(attention) => self.attention(attention, width, x),
            LayerKind::Mlp(mlp) => self.mlp(mlp, width, x, rows),
            LayerKind::Moe(moe) => self.moe(moe, layer.span, x, rows),
            LayerKind::MixtureOfDepths(depths) => self.mixture_of_depths(depths, x),
            LayerKind::MultiHash(hash) => self.multi_hash(hash, width, x),
            LayerKind::LayerNorm { epsilon } => self.layer_norm(*epsilon, width, x, rows),
            LayerKind::RmsNorm { epsilon } => self.rms_norm(*epsilon, width, x, rows),
            LayerKind::Dropout { rate } => self.dropout(x, *rate),
            LayerKind::Linear { bias } => self.linear_here(x, rows, (width, layer.output), *bias),
            LayerKind::Activation(activation) => self.activation(*activation, x),
            LayerKind::Unembed { tied, bias } => self.unembed(*tied, *bias, width, x),
            LayerKind::Residual(_) | LayerKind::Block { .. } => x,
        }
    }

    fn embed(&mut self, width: usize, positions: Positions) -> Value {
        let (vocab, time, batch) = (self.options.vocab, self.sequence_length, self.options.batch);
        let newest = self.newest();
        let ids = self.token_ids;
        let table = self.emitter.parameter("token.weight", [vocab, width], Role::Embedding);
        let b = self.b();
        let tokens = b.op(Op::Embed, &[ids, table]);
        match positions {
            Positions::Learned => {
                let table = self.emitter.parameter("position.weight", [time, width], Role::Embedding);
                let b = self.b();
                let positions = if newest {
                    let places = b.input(Input::Positions, TensorType::i32([batch]));
                    b.op(Op::Embed, &[places, table])
                } else {
                    let positions = b.broadcast(table, [batch, time, width]);
                    b.reshape(positions, [batch * time, width])
                };
                b.add(tokens, positions)
            }
            Positions::Rotary | Positions::None => tokens,
        }
    }

    fn attention(&mut self, attention: &Attention, width: usize, x: Value) -> Value {
        let heads = attention.heads;
        let time = self.time;
        let mut qkv = self.emitter.linear("qkv", x, width, 3 * width, attention.bias);
        if attention.rotary {
            // The base of the paper.
            let base = 10_000.0.into();
            let mut operands = vec![qkv];
            // Rows that were taken from a sequence keep their positions in it.
            let positions = !self.gathers.is_empty() || self.newest();
            if positions {
                let newest = self.newest();
                let source = Source { ids: self.token_ids, time: self.sequence_length, gathers: &self.gathers, newest };
                operands.push(source.positions(&mut self.emitter.builder));
            }
            qkv = self.b().op(Op::Rotary { heads, time, base, inverse: false, positions }, &operands);
        }
        if self.newest() {
            let y = self.cached_attention(attention, width, qkv);
            return self.emitter.linear("proj", y, width, width, true);
        }
        let dropout = if self.training() { attention.dropout } else { 0.0 };
        let (key, rng) = if dropout > 0.0 { (self.b().fresh_key(), Some(self.emitter.rng())) } else { (0, None) };
        let attrs = AttentionAttrs { heads, time, scale: attention.scale.into(), dropout: dropout.into(), key };
        let heads = self.b().attention(attrs, qkv, rng);
        let y = self.emitter.linear("proj", heads, width, width, true);
        self.dropout(y, attention.dropout)
    }

    /// Attention of the newest tokens over the keys and values that are kept from those before them.
    fn cached_attention(&mut self, attention: &Attention, width: usize, qkv: Value) -> Value {
        let (batch, time) = (self.options.batch, self.sequence_length);
        let b = self.b();
        let name = format!("cache.{}", b.path(""));
        let cache = b.state_for(StateRole::Cache, &name, TensorType::f32([batch, time, 2 * width]));
        let positions = b.input(Input::Positions, TensorType::i32([batch]));
        let op = Op::CachedAttention { heads: attention.heads, scale: attention.scale.into() };
        let y = b.op(op, &[qkv, cache, positions]);
        b.update(name, y.result(1));
        y
    }

    fn mlp(&mut self, mlp: &Mlp, width: usize, x: Value, rows: Rows) -> Value {
        let hidden = match mlp.activation {
            Activation::Swiglu => {
                let gate = self.linear("gate", x, rows, (width, mlp.hidden), mlp.bias);
                let up = self.linear("up", x, rows, (width, mlp.hidden), mlp.bias);
                let gate = self.activation(Activation::Silu, gate);
                self.b().mul(gate, up)
            }
            activation => {
                let up = self.linear("up", x, rows, (width, mlp.hidden), mlp.bias);
                self.activation(activation, up)
            }
        };
        let y = self.linear("down", hidden, rows, (mlp.hidden, width), mlp.bias);
        self.dropout(y, mlp.dropout)
    }

    /// A linear map under `name`.
    fn linear(&mut self, name: &str, x: Value, rows: Rows, extents: (usize, usize), bias: bool) -> Value {
        self.opened(name, |l| l.linear_here(x, rows, extents, bias))
    }

    /// A linear map with its parameters in the current scope: one for all rows, or one per expert.
    fn linear_here(&mut self, x: Value, rows: Rows, (input, output): (usize, usize), bias: bool) -> Value {
        match rows {
            Rows::Tokens => self.emitter.linear_here(x, input, output, bias),
            Rows::Experts { experts, offsets } => {
                self.emitter.grouped_linear_here(x, (experts, offsets), input, output, bias)
            }
        }
    }

    fn activation(&mut self, activation: Activation, x: Value) -> Value {
        let b = self.b();
        let gated = |b: &mut Builder, gate: Unary| {
            let gate = b.unary(gate, x);
            b.mul(x, gate)
        };
        match activation {
            Activation::Relu => b.unary(Unary::Relu, x),
            Activation::Gelu => gated(b, Unary::NormalCdf),
            Activation::Silu | Activation::Swiglu => gated(b, Unary::Sigmoid),
        }
    }

    fn dropout(&mut self, x: Value, rate: f64) -> Value {
        if rate <= 0.0 || !self.training() {
            return x;
        }
        let rng = self.emitter.rng();
        self.b().dropout(x, rate, rng)
    }

    fn layer_norm(&mut self, epsilon: f64, width: usize, x: Value, rows: Rows) -> Value {
        let op = Op::LayerNorm { epsilon: epsilon.into() };
        match rows {
            Rows::Tokens => {
                let gain = self.emitter.parameter("gain", [width], Role::Constant(1.0));
                let shift = self.emitter.parameter("shift", [width], Role::Constant(0.0));
                self.b().op(op, &[x, gain, shift])
            }
            Rows::Experts { experts, offsets } => {
                let (one, zero) = (self.b().fill(1.0, [width]), self.b().fill(0.0, [width]));
                let y = self.b().op(op, &[x, one, zero]);
                let gain = self.per_row("gain", 1.0, y, experts, offsets, width);
                let shift = self.per_row("shift", 0.0, y, experts, offsets, width);
                let y = self.b().mul(y, gain);
                self.b().add(y, shift)
            }
        }
    }

    fn rms_norm(&mut self, epsilon: f64, width: usize, x: Value, rows: Rows) -> Value {
        let op = Op::RmsNorm { epsilon: epsilon.into() };
        match rows {
            Rows::Tokens => {
                let gain = self.emitter.parameter("gain", [width], Role::Constant(1.0));
                self.b().op(op, &[x, gain])
            }
            Rows::Experts { experts, offsets } => {
                let one = self.b().fill(1.0, [width]);
                let y = self.b().op(op, &[x, one]);
                let gain = self.per_row("gain", 1.0, y, experts, offsets, width);
                self.b().mul(y, gain)
            }
        }
    }

    /// A vector per expert, `[E, C]`, as the row `[R, C]` that each of its rows meets: a product with a column of ones,
    /// so that the gradient is a sum over the expert's rows.
    fn per_row(&mut self, name: &str, start: f64, x: Value, experts: usize, offsets: Value, width: usize) -> Value {
        let vectors = self.emitter.parameter(name, [experts, width], Role::Constant(start));
        let b = self.b();
        let rows = b.shape(x).first().copied().unwrap_or(0);
        let ones = b.fill(1.0, [rows, 1]);
        let vectors = b.reshape(vectors, [experts, width, 1]);
        b.op(Op::GroupedMatMul { transpose_b: true, bias: false }, &[ones, vectors, offsets])
    }

    fn unembed(&mut self, tied: bool, bias: bool, width: usize, x: Value) -> Value {
        let vocab = self.options.vocab;
        let role = Role::Weight { fan_in: width, fan_out: vocab };
        let weight =
            if tied { self.token_table() } else { Some(self.emitter.parameter("weight", [vocab, width], role)) };
        let bias = bias.then(|| self.emitter.parameter("bias", [vocab], Role::Bias { fan_in: width }));
        match weight {
            Some(weight) => self.b().linear(x, weight, bias),
            None => x,
        }
    }

    /// The table of token vectors, declared by `embed`, which is always the first layer.
    fn token_table(&mut self) -> Option<Value> {
        let graph = self.emitter.builder.graph();
        graph.find(TOKEN_TABLE).map(|id| graph.value(id))
    }
}

//! What a model is built with: the graph so far, where in the model a layer is built, and the parts that layers share.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use moec_ir::{Builder, Graph, GraphError, Init, Input, Op, Output, Precision, TensorType, Value};
use moec_syntax::Span;

use crate::cost::LayerInfo;
use crate::emit::{Emitter, Mode, NoisePolicy, Role};
use crate::layers::Pooled;
use crate::needs::Obstacle;
use crate::recipe::InitScheme;
use crate::router::{AuxiliaryLoss, Gather, Source, Traits};
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
    /// What the operands of the layers' products are rounded to. What routers compute stays float32, and so do attention
    /// between its projections, the mixtures of `soft_moe`, norms and losses.
    pub precision: Precision,
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
    /// Names of the parameters by which routers decide.
    pub router_parameters: BTreeSet<String>,
    /// Names of the parameters that are weights of linear maps: neither biases, norms nor tables of vectors.
    pub matrices: BTreeSet<String>,
    /// Names of those that lead from hidden vectors to hidden vectors, and not to the scores of tokens.
    pub hidden_matrices: BTreeSet<String>,
    /// States of routers with their initial values.
    pub states: Vec<(String, StateInit)>,
    /// The `moe` layers in order.
    pub moe_layers: Vec<MoeLayerInfo>,
    /// The layers that say what they decided, where [`LowerOptions::routes`] asks for it.
    pub routed: Vec<RoutedLayer>,
    /// The layers in order, with their sizes and costs.
    pub layers: Vec<LayerInfo>,
    /// The layers inside those, which count them: in experts, with the parameters of all copies and the operations of one
    /// row, and in `mixture_of_depths`. Which share of the tokens meets them is not in these numbers.
    pub inner_layers: Vec<LayerInfo>,
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

/// A layer that sends tokens to experts, of whatever kind, and says what it decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutedLayer {
    /// Its path, by which outputs are named: `experts.PATH`, `kept.PATH`, `weights.PATH`, `gates.PATH`.
    pub path: String,
    /// Name of the routing strategy; of the layer, where that decides by itself.
    pub strategy: String,
    /// Number of experts in those outputs.
    pub experts: usize,
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
    /// How many of the E experts compute nothing: the last ones.
    pub zero_computation: usize,
    /// Name of the routing strategy.
    pub strategy: String,
    /// What the strategy promises with the arguments that it has here: when it is random, which losses fit.
    pub traits: Traits,
    /// Tokens that an expert accepts in this function, P.
    pub capacity: Option<usize>,
    /// Balance losses with their weights; the values are the outputs `aux.PATH.NAME`.
    pub losses: Vec<(String, f64)>,
    /// Where it was written.
    pub span: Span,
}

/// A `moe` layer whose number of experts per token is measured, since it varies.
pub(crate) struct MeasuredLayer {
    pub(crate) path: String,
    /// The mean number of experts that compute for a token, `[]`.
    pub(crate) value: Value,
    /// The same as the table of layers reckons with it.
    pub(crate) declared: f64,
}

impl MeasuredLayer {
    /// Whether a parameter is one of an expert that computes. Those of constant experts are computed for every token.
    fn holds(&self, parameter: &str) -> bool {
        let inner = parameter.strip_prefix(self.path.as_str()).and_then(|rest| rest.strip_prefix(".experts."));
        inner.is_some_and(|inner| !inner.starts_with("constant."))
    }
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
    /// A layer that cannot be built without the others of its model.
    Alone(String),
}

impl fmt::Display for LowerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LowerError::Graph(error) => write!(f, "{error}"),
            LowerError::Routing { strategy, message, .. } => write!(f, "the router `{strategy}` {message}"),
            LowerError::NotCached(obstacle) => write!(f, "no keys and values can be kept: {obstacle}"),
            LowerError::Size(message) | LowerError::Alone(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for LowerError {}

/// What the rows of a matrix are, and with it which parameters they meet.
#[derive(Clone, Copy)]
pub(crate) enum Rows {
    /// All N tokens in order.
    Tokens,
    /// The R rows sent to E experts, sorted by expert; `offsets` i32 `[E + 1]` says which are whose.
    Experts { experts: usize, offsets: Value },
}

/// Where in a model a layer is built. It is handed down: a layer that takes rows from its tokens builds its own layers at
/// a site that says so.
#[derive(Clone, Copy)]
pub(crate) struct Site<'s> {
    /// What the rows are.
    pub(crate) rows: Rows,
    /// Length of the sequences that attention sees: shorter where only some tokens go through a layer.
    pub(crate) time: usize,
    /// What has been taken from the tokens of the batch: the rows of experts, the tokens that go through a layer.
    pub(crate) gathers: &'s [Gather],
    /// Chosen experts and weights `[N, K]` of the `moe` around, if there is one.
    pub(crate) outer_choice: Option<(Value, Value)>,
    /// 1 for the rows that are worked on, else 0, `[N, 1]`; `None` if all are.
    pub(crate) valid_rows: Option<Value>,
    /// Whether it is in a layer that the table of layers counts it as part of.
    pub(crate) inside: bool,
    /// Whether the layers here end with one token of each window.
    pub(crate) narrows: bool,
}

/// A model that is being built.
pub(crate) struct Lowering {
    pub(crate) emitter: Emitter,
    pub(crate) options: LowerOptions,
    /// Length of the sequences of the batch.
    pub(crate) sequence_length: usize,
    /// Numbers of the tokens of the batch, i32 `[N]`.
    pub(crate) token_ids: Value,
    /// How often each path of a layer occurred.
    taken: BTreeMap<String, usize>,
    pub(crate) moe_layers: Vec<MoeLayerInfo>,
    pub(crate) measured: Vec<MeasuredLayer>,
    pub(super) routed: Vec<RoutedLayer>,
    pub(super) layers: Vec<LayerInfo>,
    pub(super) inner_layers: Vec<LayerInfo>,
    /// Terms of the objective beside the task's loss, with their weights.
    pub(super) objective: Vec<(Value, f64)>,
    /// Parts of losses of several layers at once.
    pub(crate) pooled: Vec<Pooled>,
}

impl Lowering {
    pub(super) fn new(options: &LowerOptions, time: usize, tokens: usize) -> Self {
        let mut emitter = Emitter::new(options.mode, options.noise, options.init);
        let token_ids = emitter.builder.input(Input::Tokens, TensorType::i32([tokens]));
        Lowering {
            emitter,
            options: *options,
            sequence_length: time,
            token_ids,
            taken: BTreeMap::new(),
            moe_layers: Vec::new(),
            measured: Vec::new(),
            routed: Vec::new(),
            layers: Vec::new(),
            inner_layers: Vec::new(),
            objective: Vec::new(),
            pooled: Vec::new(),
        }
    }

    /// The site of the model's own layers.
    pub(super) fn trunk(&self) -> Site<'static> {
        Site {
            rows: Rows::Tokens,
            time: if self.newest() { 1 } else { self.sequence_length },
            gathers: &[],
            outer_choice: None,
            valid_rows: None,
            inside: false,
            narrows: self.options.form == Form::Next,
        }
    }

    pub(crate) fn b(&mut self) -> &mut Builder {
        &mut self.emitter.builder
    }

    pub(crate) fn training(&self) -> bool {
        self.options.mode == Mode::Train
    }

    /// Whether the tokens are the newest of each sequence, without those before them.
    pub(crate) fn newest(&self) -> bool {
        self.options.form == Form::Decode
    }

    /// Path of the layer that is being built.
    pub(crate) fn path(&self) -> String {
        self.emitter.builder.path("")
    }

    /// The extents of a matrix.
    pub(crate) fn extents(&self, x: Value) -> [usize; 2] {
        [0, 1].map(|axis| self.emitter.builder.extent(x, axis))
    }

    /// Where the tokens of a site come from.
    pub(crate) fn source<'s>(&self, site: Site<'s>) -> Source<'s> {
        Source { ids: self.token_ids, time: self.sequence_length, gathers: site.gathers, newest: self.newest() }
    }

    /// Runs `f` in the scope of a layer: its name, numbered from the second one in the same scope on.
    pub(super) fn scoped<T>(&mut self, name: &str, f: impl FnOnce(&mut Self) -> T) -> T {
        let count = self.taken.entry(self.emitter.builder.path(name)).or_insert(0);
        *count += 1;
        let scope = if *count == 1 { name.to_string() } else { format!("{name}_{count}") };
        self.opened(&scope, f)
    }

    /// Runs `f` in a scope of exactly this name.
    pub(crate) fn opened<T>(&mut self, scope: &str, f: impl FnOnce(&mut Self) -> T) -> T {
        self.b().enter(scope);
        let result = f(self);
        self.b().leave();
        result
    }

    /// Runs `f` for layers inside another, which a share of the tokens meets: their parameters count with that share.
    pub(crate) fn shared<T>(&mut self, share: f64, f: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.emitter.parameters.len();
        let result = f(self);
        self.emitter.parameters.values_mut().skip(before).for_each(|declared| declared.share *= share);
        result
    }

    /// Runs `f`, which declares parameters of a router: each token is multiplied with all of them.
    pub(crate) fn routing<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.emitter.parameters.len();
        let result = f(self);
        self.emitter.parameters.values_mut().skip(before).for_each(|declared| declared.router = true);
        result
    }

    /// Adds a loss of a layer itself: the output `aux.PATH.NAME`, and a term of the objective of a training step.
    pub(crate) fn own_loss(&mut self, path: &str, loss: AuxiliaryLoss) {
        self.b().output(Output::Aux { path: path.into(), loss: loss.name }, loss.value);
        if self.training() {
            self.objective.push((loss.value, loss.weight));
        }
    }

    /// Adds a term to the objective with its weight.
    pub(crate) fn add_to_objective(&mut self, value: Value, weight: f64) {
        self.objective.push((value, weight));
    }

    /// A linear map under `name`.
    pub(crate) fn linear(&mut self, name: &str, x: Value, rows: Rows, extents: (usize, usize), bias: bool) -> Value {
        self.opened(name, |l| l.linear_here(x, rows, extents, bias))
    }

    /// A linear map with its parameters in the current scope: one for all rows, or one per expert.
    pub(crate) fn linear_here(&mut self, x: Value, rows: Rows, (input, output): (usize, usize), bias: bool) -> Value {
        let precision = self.options.precision;
        match rows {
            Rows::Tokens => self.emitter.linear_here(precision, x, input, output, bias),
            Rows::Experts { experts, offsets } => {
                self.emitter.grouped_linear_here(precision, x, (experts, offsets), input, output, bias)
            }
        }
    }

    /// `x wᵀ (+ bias)` for weights `[out, in]` that are there already.
    pub(crate) fn product(&mut self, x: Value, weight: Value, bias: Option<Value>) -> Value {
        let precision = self.options.precision;
        self.b().linear_in(precision, x, weight, bias)
    }

    /// A vector per expert, `[E, C]`, as the row `[R, C]` that each of its rows meets: a product with a column of ones,
    /// so that the gradient is a sum over the expert's rows.
    pub(crate) fn per_row(&mut self, name: &str, start: f64, x: Value, experts: usize, offsets: Value) -> Value {
        let [rows, width] = self.extents(x);
        let vectors = self.emitter.parameter(name, [experts, width], Role::Constant(start));
        let b = self.b();
        let ones = b.fill(1.0, [rows, 1]);
        let vectors = b.reshape(vectors, [experts, width, 1]);
        b.op(Op::GroupedMatMul { transpose_b: true, bias: false, precision: Precision::F32 }, &[ones, vectors, offsets])
    }

    /// Dropout, which there is in training only.
    pub(crate) fn dropout(&mut self, x: Value, rate: f64) -> Value {
        if rate <= 0.0 || !self.training() {
            return x;
        }
        let rng = self.emitter.rng();
        self.b().dropout(x, rate, rng)
    }

    /// The output `active_parameters`, if the number of experts of a token is measured anywhere: what a token makes use of,
    /// with those experts instead of as many as were reckoned with.
    pub(super) fn active_parameters(&mut self) {
        let measured = std::mem::take(&mut self.measured);
        if measured.is_empty() {
            return;
        }
        // A parameter of an expert of a `moe` inside an expert depends on both.
        let mut parts: BTreeMap<Vec<usize>, f64> = BTreeMap::new();
        for (name, declared) in &self.emitter.parameters {
            let around: Vec<usize> = (0..measured.len()).filter(|&i| measured[i].holds(name)).collect();
            let reckoned: f64 = around.iter().map(|&i| measured[i].declared).product();
            *parts.entry(around).or_insert(0.0) += declared.elements as f64 * declared.share / reckoned;
        }
        let b = self.b();
        let mut total = b.fill(0.0, []);
        for (around, share) in parts {
            let mut part = b.fill(share, []);
            for i in around {
                part = b.mul(part, measured[i].value);
            }
            total = b.add(total, part);
        }
        b.output(Output::ActiveParameters, total);
    }

    /// Outputs of what the layer that is open decided, where they are asked for: see [`LowerOptions::routes`]. `choice`
    /// and `kept` are experts and weights before and after a capacity.
    pub(crate) fn expose(
        &mut self,
        strategy: &str,
        site: Site<'_>,
        experts: usize,
        choice: (Value, Value),
        kept: (Value, Value),
    ) {
        if !self.options.routes {
            return;
        }
        let path = self.path();
        self.routed.push(RoutedLayer { path: path.clone(), strategy: strategy.to_string(), experts });
        let source = self.source(site);
        let b = self.b();
        if !site.gathers.is_empty() {
            let rows = source.tokens(b);
            b.output(Output::Rows(path.clone()), rows);
        }
        let gates = b.scatter_last(kept.1, kept.0, experts);
        b.output(Output::Experts(path.clone()), choice.0);
        b.output(Output::Kept(path.clone()), kept.0);
        b.output(Output::Weights(path.clone()), choice.1);
        b.output(Output::Gates(path), gates);
    }
}

//! Routing strategies as plugins: the trait, what a strategy is given, and what it gives back.
//!
//! A strategy only builds graph. What it returns says which experts a token goes to and with what weight; capacity,
//! dispatch, the experts and the weighted sum are not its business. The built-in strategies use nothing that a
//! strategy from another crate cannot use.

use moec_ir::{Builder, Input, Op, Precision, Tensor, TensorType, Value};
use moec_syntax::Span;

use crate::argument::{Arguments, ParameterSpec};
use crate::emit::{Emitter, Mode, NoisePolicy, Role};
use crate::state::{StateInit, StateSource};

/// What a strategy looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Reads {
    /// The activations of the token.
    pub activations: bool,
    /// The number of the token in the vocabulary.
    pub token_ids: bool,
    /// The position of the token in its sequence.
    pub positions: bool,
}

/// Which tokens a strategy compares to decide about one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Compares {
    /// Each token is routed on its own.
    None,
    /// A token is routed with the number of the one before it: see [`RoutingContext::previous_ids`].
    PreviousToken,
    /// A token is compared with earlier ones of its sequence.
    EarlierTokens,
    /// A token is compared with all tokens of its sequence.
    Sequence,
    /// A token is compared with all tokens of the batch.
    Batch,
}

impl Compares {
    /// The tokens in words.
    pub fn text(self) -> &'static str {
        match self {
            Compares::None => "no tokens",
            Compares::PreviousToken => "the token before, by its number",
            Compares::EarlierTokens => "earlier tokens of the sequence",
            Compares::Sequence => "all tokens of the sequence",
            Compares::Batch => "all tokens of the batch",
        }
    }
}

/// When a strategy draws random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Randomness {
    /// Never.
    Never,
    /// During training; evaluation is deterministic.
    Training,
    /// Also during evaluation.
    Always,
}

impl Randomness {
    /// The time in words.
    pub fn text(self) -> &'static str {
        match self {
            Randomness::Never => "never",
            Randomness::Training => "in training",
            Randomness::Always => "always",
        }
    }
}

/// Something that balance losses are computed from. The assignment itself is always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Quantity {
    /// Scores of all experts without noise.
    Logits,
    /// Probabilities over all experts.
    Probabilities,
    /// Noisy scores with the standard deviation of the noise.
    NoisyScores,
}

impl Quantity {
    /// The quantity in words.
    pub fn text(self) -> &'static str {
        match self {
            Quantity::Logits => "logits",
            Quantity::Probabilities => "probabilities",
            Quantity::NoisyScores => "noisy scores",
        }
    }
}

/// What a strategy declares about itself for given arguments. The compiler derives from it the causality verdict, which
/// balance losses fit, and what to warn about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// What it looks at.
    pub reads: Reads,
    /// Which tokens it compares in a training step.
    pub compares: Compares,
    /// Which tokens it compares in evaluation and sampling.
    pub compares_when_sampling: Compares,
    /// Whether it makes use of how many tokens there are ([`RoutingContext::token_count`]) in evaluation. Texts are then
    /// computed one at a time and window by window, so that the number is that of a window.
    pub counts_tokens: bool,
    /// When it is random.
    pub random: Randomness,
    /// What it provides for balance losses.
    pub provides: &'static [Quantity],
    /// Whether the gradient of the task's loss has a way to its parameters; `true` for one that has none.
    pub learns_from_task: bool,
    /// Whether it sends tokens to experts. One that mixes tokens or experts instead has neither capacity nor balance losses.
    pub selects: bool,
    /// Whether it can stand in an expert, where it routes the rows of several outer experts: its parameters must then be
    /// linear maps, of which each outer expert has its own, and it changes no state.
    pub nests: bool,
}

impl Default for Traits {
    /// A strategy that reads the activations, looks at every token on its own, and is not random.
    fn default() -> Self {
        Traits {
            reads: Reads { activations: true, ..Reads::default() },
            compares: Compares::None,
            compares_when_sampling: Compares::None,
            counts_tokens: false,
            random: Randomness::Never,
            provides: &[],
            learns_from_task: true,
            selects: true,
            nests: true,
        }
    }
}

/// Where the definition of a strategy lets no gradient through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GradientEnd {
    /// The expression, in the text that defines it.
    pub span: Span,
    /// Why, as the label of the expression.
    pub why: &'static str,
    /// Whether it is because there is one expert to choose from, or one that is chosen.
    pub is_single: bool,
}

/// Where the definition of a strategy compares tokens with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The expression, in the text that defines it.
    pub span: Span,
    /// How it can be put right.
    pub help: &'static str,
}

/// What the declared comparisons mean for a language model, which predicts a token from those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// No token is influenced by later ones.
    Causal,
    /// Training looks at later tokens to decide, sampling follows another rule that does not.
    SamplesDifferently,
    /// Later tokens influence earlier ones.
    LooksAhead,
}

impl Verdict {
    /// The verdict in words.
    pub fn text(self) -> &'static str {
        match self {
            Verdict::Causal => "causal",
            Verdict::SamplesDifferently => "causal with another rule when sampling",
            Verdict::LooksAhead => "not causal",
        }
    }
}

impl Traits {
    /// What follows from the tokens that it compares.
    pub fn verdict(&self) -> Verdict {
        if self.compares_when_sampling > Compares::EarlierTokens {
            Verdict::LooksAhead
        } else if self.compares > Compares::EarlierTokens {
            Verdict::SamplesDifferently
        } else {
            Verdict::Causal
        }
    }
}

/// A way to send tokens to experts.
pub trait RoutingStrategy: Send + Sync {
    /// Name in the file, such as `noisy_top_k`.
    fn name(&self) -> &str;

    /// One line on what it does.
    fn summary(&self) -> &str;

    /// The arguments it takes. A strategy that chooses experts for tokens declares how many as `k`.
    fn parameters(&self) -> &[ParameterSpec];

    /// Papers and code it follows; none unless the strategy says some.
    fn references(&self) -> &[&str] {
        &[]
    }

    /// Its equations with shapes, and what it costs, in lines of plain text; none unless the strategy says some.
    fn equations(&self) -> &str {
        ""
    }

    /// Whether the arguments go together and suit the number of experts, E.
    ///
    /// # Errors
    /// What is wrong, as the end of a sentence that begins with the strategy's name.
    fn check(&self, _arguments: &Arguments, _experts: usize) -> Result<(), String> {
        Ok(())
    }

    /// What it declares about itself.
    fn traits(&self, arguments: &Arguments) -> Traits;

    /// The arguments that stand for the strategy in general: the defaults, and the least value where there is none.
    fn default_arguments(&self) -> Arguments {
        Arguments::least(self.name(), self.parameters())
    }

    /// What it declares about itself in general.
    fn default_traits(&self) -> Traits {
        self.traits(&self.default_arguments())
    }

    /// Where it is defined, if that is a text that a message can point to.
    fn definition(&self) -> Option<Span> {
        None
    }

    /// Where the strategy compares tokens in evaluation and sampling, if it is defined in a text that a message can point to.
    fn comparison(&self, _arguments: &Arguments) -> Option<Comparison> {
        None
    }

    /// Where the gradient ends on its way to what the strategy trains, if it does in a text that a message can point to.
    fn gradient_end(&self, _arguments: &Arguments) -> Option<GradientEnd> {
        None
    }

    /// How many of E experts work on a token, on average over sequences of T tokens: what tables of cost and active
    /// parameters count with. Unless the strategy says otherwise, the argument `k`, or all if there is none.
    fn experts_per_token(&self, arguments: &Arguments, experts: usize, _time: usize) -> f64 {
        arguments.k().unwrap_or(experts) as f64
    }

    /// Builds the graph that routes the tokens. The scope of the `moe` layer is open, so names are relative to it.
    fn lower(&self, context: &mut RoutingContext<'_>, arguments: &Arguments) -> Routing;
}

/// Which tokens go to which experts: the shapes that the rest of the compiler executes sparsely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Assignment {
    /// Every token chooses K experts.
    TokenChoice {
        /// The chosen experts, i32 `[N, K]`, in decreasing order of score; -1 for none.
        experts: Value,
        /// Their weights, `[N, K]`.
        weights: Value,
    },
    /// Every token goes to all experts whose gate is not exactly 0.
    DenseGates {
        /// The gates, `[N, E]`.
        gates: Value,
    },
    /// Every expert chooses P tokens.
    ExpertChoice {
        /// The chosen tokens, i32 `[E, P]`; -1 for none.
        tokens: Value,
        /// Their weights, `[E, P]`.
        weights: Value,
    },
    /// Every expert works on P mixtures of the tokens of a sequence (soft mixture of experts). Slot `e*P + p` is the
    /// p-th of expert e.
    Slots {
        /// Share of each token of a sequence in a slot, `[N, E*P]`.
        dispatch: Value,
        /// Share of each slot in the output of a token, `[N, E*P]`.
        combine: Value,
    },
    /// The tokens in R runs, and every run goes through one expert of its own, whose parameters are weighted sums of those of
    /// all experts (soft merging).
    Merged {
        /// Share of each expert in that of a run, `[R, E]`.
        weights: Value,
        /// Where each run begins, and N, i32 `[R + 1]`.
        offsets: Value,
    },
}

/// Scores with noise and what the noise was drawn with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoisyScores {
    /// Noisy scores of all experts, `[N, E]`, from which the experts were chosen.
    pub scores: Value,
    /// Standard deviation of the noise, `[N, E]`.
    pub std: Value,
}

/// A loss that a strategy adds to the training objective by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct AuxiliaryLoss {
    /// Its name, under which it is logged.
    pub name: String,
    /// The scalar, without its weight.
    pub value: Value,
    /// Its factor in the objective.
    pub weight: f64,
}

/// What a strategy returns: the assignment, and the quantities that balance losses are computed from.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// Which tokens go where.
    pub assignment: Assignment,
    /// Scores of all experts without noise, `[N, E]`.
    pub logits: Option<Value>,
    /// Probabilities over all experts, `[N, E]`; built from the logits when a loss needs them and they are not given.
    pub probabilities: Option<Value>,
    /// Present when noise was drawn in this function.
    pub noisy: Option<NoisyScores>,
    /// Losses of the strategy itself; they count in training only.
    pub auxiliary: Vec<AuxiliaryLoss>,
}

impl Routing {
    /// An assignment without further quantities.
    pub fn new(assignment: Assignment) -> Self {
        Routing { assignment, logits: None, probabilities: None, noisy: None, auxiliary: Vec::new() }
    }

    /// An assignment of K experts to every token, without further quantities.
    pub fn token_choice(experts: Value, weights: Value) -> Self {
        Self::new(Assignment::TokenChoice { experts, weights })
    }
}

/// How rows were taken from tokens: row r is token `order[r] / K`.
#[derive(Clone, Copy)]
pub(crate) struct Gather {
    /// i32 `[R]`, -1 for a row without a token.
    pub(crate) order: Value,
    /// i32 `[N, K]`
    pub(crate) positions: Value,
}

impl Gather {
    /// What the rows have of a quantity `v` i32 `[N]` that is at least -1; -1 for a row without a token.
    pub(crate) fn apply(self, b: &mut Builder, v: Value) -> Value {
        let tokens = b.ty(v).elements();
        let v = b.to_float(v);
        // Rows without a token become 0, which is then -1.
        let v = b.add_scalar(v, 1.0);
        let v = b.reshape(v, [tokens, 1]);
        let rows = b.op(Op::Dispatch { weighted: false }, &[v, self.order, self.positions]);
        let rows = b.add_scalar(rows, -1.0);
        let count = b.ty(rows).elements();
        let rows = b.reshape(rows, [count]);
        // Whole numbers are exact in f32 up to here.
        b.to_index(rows, 1 << 24)
    }
}

/// Where the tokens of a layer come from.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    /// Token numbers of the batch, i32 `[N]`.
    pub(crate) ids: Value,
    /// Number of positions, T.
    pub(crate) time: usize,
    /// What has been taken from the batch since, outermost first.
    pub(crate) gathers: &'a [Gather],
    /// Whether the batch is one token of each sequence, so that what a sequence would show is an input.
    pub(crate) newest: bool,
}

impl Source<'_> {
    fn rows(&self, b: &mut Builder, tokens: Value) -> Value {
        self.gathers.iter().fold(tokens, |v, gather| gather.apply(b, v))
    }

    /// Which token of the batch each row is, i32; -1 for none.
    pub(crate) fn tokens(&self, b: &mut Builder) -> Value {
        let count = b.ty(self.ids).elements();
        let tokens = b.ramp(count, 1);
        self.rows(b, tokens)
    }

    /// Numbers of the rows' tokens in the vocabulary.
    pub(crate) fn ids(&self, b: &mut Builder) -> Value {
        self.rows(b, self.ids)
    }

    /// Numbers of the tokens before those of the rows.
    pub(crate) fn previous(&self, b: &mut Builder) -> Value {
        let previous = match self.newest {
            true => b.input(Input::Previous, b.ty(self.ids).clone()),
            false => b.previous(self.ids, self.time),
        };
        self.rows(b, previous)
    }

    /// Positions of the rows in the sequences of the batch.
    pub(crate) fn positions(&self, b: &mut Builder) -> Value {
        let tokens = b.ty(self.ids).elements();
        let positions = match self.newest {
            true => b.input(Input::Positions, b.ty(self.ids).clone()),
            false => {
                let positions = b.ramp(self.time, 1);
                let positions = b.broadcast(positions, [tokens / self.time.max(1), self.time]);
                b.reshape(positions, [tokens])
            }
        };
        self.rows(b, positions)
    }
}

/// The rows of an outer expert that the tokens of a nested `moe` layer are.
#[derive(Clone, Copy)]
pub(crate) struct Nested {
    /// Number of outer experts.
    pub(crate) experts: usize,
    /// Offsets of the rows of each outer expert, i32 `[experts + 1]`.
    pub(crate) offsets: Value,
}

/// What a strategy builds with: the tokens, the number of experts, and the ways to declare parameters and state.
///
/// Shapes use the fixed letters: N tokens, C channels, E experts. In a `moe` inside an expert the tokens are the rows
/// that were sent to the outer experts, sorted by expert, and a linear map has weights of its own for each of those.
pub struct RoutingContext<'a> {
    pub(crate) emitter: &'a mut Emitter,
    pub(crate) tokens: Value,
    pub(crate) source: Source<'a>,
    pub(crate) experts: usize,
    pub(crate) time: usize,
    pub(crate) vocab: usize,
    pub(crate) nested: Option<Nested>,
    /// Whether losses count in this function.
    pub(crate) losses: bool,
    /// What the strategy asked for that cannot be had.
    pub(crate) refused: Option<String>,
}

impl RoutingContext<'_> {
    /// The graph builder. Everything else here is a shorthand over it, except parameters, state and noise, which must
    /// be declared through this context so that they are initialised, saved and replayed.
    pub fn builder(&mut self) -> &mut Builder {
        &mut self.emitter.builder
    }

    /// The activations that enter the `moe` layer, `[N, C]`.
    pub fn tokens(&self) -> Value {
        self.tokens
    }

    /// Numbers of the tokens in the vocabulary, i32 `[N]`.
    pub fn token_ids(&mut self) -> Value {
        self.source.ids(&mut self.emitter.builder)
    }

    /// Number of the token before each token, i32 `[N]`; -1 for the first of a sequence.
    pub fn previous_ids(&mut self) -> Value {
        self.source.previous(&mut self.emitter.builder)
    }

    /// Position of each token in its sequence, i32 `[N]`.
    pub fn positions(&mut self) -> Value {
        self.source.positions(&mut self.emitter.builder)
    }

    /// Number of experts, E.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Number of tokens of a sequence as the layer sees it: fewer than [`Self::context`] where only some tokens go
    /// through, and 1 where a token is computed from the keys and values of those before it.
    pub fn time(&self) -> usize {
        self.time
    }

    /// Number of positions, T, which [`Self::positions`] are below.
    pub fn context(&self) -> usize {
        self.source.time
    }

    /// Size of the vocabulary, V.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Number of tokens, N.
    pub fn token_count(&self) -> usize {
        self.emitter.builder.extent(self.tokens, 0)
    }

    /// Width of the activations, C.
    pub fn width(&self) -> usize {
        self.emitter.builder.extent(self.tokens, 1)
    }

    /// Whether this is a training step.
    pub fn mode(&self) -> Mode {
        self.emitter.mode
    }

    /// Whether losses of the strategy count, and what balance losses are computed from: where a model only samples, it would
    /// compute them in vain.
    pub fn has_losses(&self) -> bool {
        self.losses
    }

    /// `x [N, I] -> [N, output]` with the parameters `NAME.weight [output, I]` and, if asked, `NAME.bias [output]`. It is
    /// a product of float32 numbers, whatever the precision of the layers' products is: rounding would change choices.
    pub fn linear(&mut self, name: &str, x: Value, output: usize, bias: bool) -> Value {
        let input = self.emitter.builder.columns(x);
        match self.nested {
            None => self.emitter.linear(name, x, input, output, bias),
            Some(Nested { experts, offsets }) => self
                .emitter
                .scoped(name, |e| e.grouped_linear_here(Precision::F32, x, (experts, offsets), input, output, bias)),
        }
    }

    /// As [`Self::linear`], with initial values of its own for the weight and, if there is one, the bias.
    pub fn linear_with(&mut self, name: &str, x: Value, output: usize, weight: Role, bias: Option<Role>) -> Value {
        if self.nested.is_some() {
            self.refuse("has a linear map with initial values of its own, which an expert cannot hold");
        }
        let input = self.emitter.builder.columns(x);
        self.emitter.scoped(name, |e| e.linear_of(Precision::F32, x, (input, output), weight, bias))
    }

    /// A trained tensor.
    pub fn parameter(&mut self, name: &str, shape: impl Into<Vec<usize>>, role: Role) -> Value {
        if self.nested.is_some() {
            self.refuse("has a parameter that is not a linear map, which an expert cannot hold");
        }
        self.emitter.parameter(name, shape, role)
    }

    /// A tensor that is kept between steps and in checkpoints and is not trained by gradient.
    pub fn state(&mut self, name: &str, initial: Tensor) -> Value {
        self.emitter.state(name, initial.ty(), StateInit::Tensor(initial))
    }

    /// As [`Self::state`], with initial values that are computed from the training text.
    pub fn state_from_text(&mut self, name: &str, source: StateSource) -> Value {
        self.emitter.state(name, source.ty().clone(), StateInit::Text(source))
    }

    /// Declares the value that a state takes after a training step; evaluation never changes state.
    pub fn update_state(&mut self, name: &str, value: Value) {
        if self.nested.is_some() {
            self.refuse("changes a state, which an expert cannot hold");
        }
        if self.emitter.mode == Mode::Train {
            let path = self.emitter.builder.path(name);
            self.emitter.builder.update(path, value);
        }
    }

    /// Standard normal noise. Under [`NoisePolicy::Injected`] it is an input named `noise` within the scope of the
    /// layer (`noise_2` for the second call, and so on), so that a run can be replayed.
    pub fn normal(&mut self, shape: impl Into<Vec<usize>>) -> Value {
        let given = |path, number| Input::Noise { path, number };
        self.random(given, shape.into(), |key, shape| Op::RandomNormal { key, shape })
    }

    /// Numbers uniform on [0, 1); injected as `uniform`, as [`Self::normal`].
    pub fn uniform(&mut self, shape: impl Into<Vec<usize>>) -> Value {
        let given = |path, number| Input::Uniform { path, number };
        self.random(given, shape.into(), |key, shape| Op::RandomUniform { key, shape })
    }

    fn random(
        &mut self,
        given: impl Fn(String, usize) -> Input,
        shape: Vec<usize>,
        op: impl FnOnce(u32, Vec<usize>) -> Op,
    ) -> Value {
        match self.emitter.noise {
            NoisePolicy::Generated => {
                let rng = self.rng();
                let key = self.emitter.builder.fresh_key();
                self.emitter.builder.op(op(key, shape), &[rng])
            }
            NoisePolicy::Injected => {
                let input = self.emitter.fresh_input(given);
                self.emitter.builder.input(input, TensorType::f32(shape))
            }
        }
    }

    /// State of the random number generator, i32 `[4]`, for random operations other than [`Self::normal`] and
    /// [`Self::uniform`].
    pub fn rng(&mut self) -> Value {
        self.emitter.rng()
    }

    /// Gives up: the layer is not built, and the user reads "the router NAME" and the message.
    pub fn refuse(&mut self, message: impl Into<String>) {
        self.refused.get_or_insert(message.into());
    }
}

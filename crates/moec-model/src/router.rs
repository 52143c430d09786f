//! Routing strategies as plugins: the trait, what a strategy is given, and what it gives back.
//!
//! A strategy only builds graph. What it returns says which experts a token goes to and with what weight; capacity,
//! dispatch, the experts and the weighted sum are not its business. The built-in strategies use nothing that a
//! strategy from another crate cannot use.

use moec_ir::{Builder, Op, Tensor, TensorType, Value};

use crate::argument::{Arguments, ParameterSpec};
use crate::emit::{Emitter, NoisePolicy, Role};

/// What a function of the program is for. Dropout and training noise exist only in [`Mode::Train`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// A training step.
    Train,
    /// Evaluation and sampling.
    Evaluate,
}

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
pub enum Compares {
    /// Each token is routed on its own.
    None,
    /// A token is compared with earlier ones of its sequence.
    EarlierTokens,
    /// A token is compared with all tokens of its sequence.
    Sequence,
    /// A token is compared with all tokens of the batch.
    Batch,
}

/// When a strategy draws random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Randomness {
    /// Never.
    Never,
    /// During training; evaluation is deterministic.
    Training,
    /// Also during evaluation.
    Always,
}

/// Something that balance losses are computed from. The assignment itself is always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Quantity {
    /// Scores of all experts without noise.
    Logits,
    /// Probabilities over all experts.
    Probabilities,
    /// Noisy scores with the standard deviation of the noise.
    NoisyScores,
}

/// What a strategy declares about itself for given arguments. The compiler derives from it the causality verdict, which
/// balance losses fit, and what to warn about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// What it looks at.
    pub reads: Reads,
    /// Which tokens it compares.
    pub compares: Compares,
    /// When it is random.
    pub random: Randomness,
    /// What it provides for balance losses.
    pub provides: &'static [Quantity],
    /// Whether the gradient of the task's loss reaches its parameters.
    pub learns_from_task: bool,
}

/// A way to send tokens to experts.
pub trait RoutingStrategy: Send + Sync {
    /// Name in the file, such as `noisy_top_k`.
    fn name(&self) -> &'static str;

    /// One line on what it does.
    fn summary(&self) -> &'static str;

    /// The arguments it takes. A strategy that chooses experts for tokens declares how many as `k`.
    fn parameters(&self) -> &[ParameterSpec];

    /// Papers and code it follows.
    fn references(&self) -> &[&'static str];

    /// What it declares about itself.
    fn traits(&self, arguments: &Arguments) -> Traits;

    /// How many experts a token goes to, K; the argument `k` unless the strategy says otherwise.
    fn experts_per_token(&self, arguments: &Arguments) -> usize {
        arguments.size("k")
    }

    /// Builds the graph that routes the tokens. The scope of the `moe` layer is open, so names are relative to it.
    fn lower(&self, context: &mut RoutingContext<'_>, arguments: &Arguments) -> Routing;
}

/// Which tokens go to which experts. Dense gates (any number of experts a token) and expert choice (tokens an expert)
/// become further variants with the strategies that need them.
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
}

/// Scores with noise and what the noise was drawn with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoisyScores {
    /// Noisy scores of all experts, `[N, E]`, from which the experts were chosen.
    pub scores: Value,
    /// Standard deviation of the noise, `[N, E]`.
    pub std: Value,
}

/// What a strategy returns: the assignment, and the quantities that balance losses are computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// Which tokens go where.
    pub assignment: Assignment,
    /// Scores of all experts without noise, `[N, E]`.
    pub logits: Option<Value>,
    /// Probabilities over all experts, `[N, E]`; built from the logits when a loss needs them and they are not given.
    pub probabilities: Option<Value>,
    /// Present when noise was drawn in this function.
    pub noisy: Option<NoisyScores>,
}

impl Routing {
    /// An assignment of K experts to every token, without further quantities.
    pub fn token_choice(experts: Value, weights: Value) -> Self {
        Routing {
            assignment: Assignment::TokenChoice { experts, weights },
            logits: None,
            probabilities: None,
            noisy: None,
        }
    }
}

/// What a strategy builds with: the tokens, the number of experts, and the ways to declare parameters and state.
///
/// Shapes use the fixed letters: N tokens, C channels, E experts.
pub struct RoutingContext<'a> {
    pub(crate) emitter: &'a mut Emitter,
    pub(crate) tokens: Value,
    pub(crate) token_ids: Value,
    pub(crate) experts: usize,
    pub(crate) time: usize,
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
    pub fn token_ids(&self) -> Value {
        self.token_ids
    }

    /// Number of experts, E.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Number of tokens of a sequence, T; token `n` has position `n % T`.
    pub fn time(&self) -> usize {
        self.time
    }

    /// Number of tokens, N.
    pub fn token_count(&self) -> usize {
        self.emitter.builder.ty(self.tokens).shape.first().copied().unwrap_or(0)
    }

    /// Width of the activations, C.
    pub fn width(&self) -> usize {
        self.emitter.builder.ty(self.tokens).shape.get(1).copied().unwrap_or(0)
    }

    /// Whether this is a training step.
    pub fn mode(&self) -> Mode {
        self.emitter.mode
    }

    /// `x [N, I] -> [N, output]` with the parameters `NAME.weight [output, I]` and, if asked, `NAME.bias [output]`.
    pub fn linear(&mut self, name: &str, x: Value, output: usize, bias: bool) -> Value {
        let input = self.emitter.builder.ty(x).shape.last().copied().unwrap_or(0);
        self.emitter.linear(name, x, input, output, bias)
    }

    /// A trained tensor.
    pub fn parameter(&mut self, name: &str, shape: impl Into<Vec<usize>>, role: Role) -> Value {
        self.emitter.parameter(name, shape, role)
    }

    /// A tensor that is kept between steps and in checkpoints and is not trained by gradient.
    pub fn state(&mut self, name: &str, initial: Tensor) -> Value {
        self.emitter.state(name, initial)
    }

    /// Declares the value that a state takes after a training step; evaluation never changes state.
    pub fn update_state(&mut self, name: &str, value: Value) {
        if self.emitter.mode == Mode::Train {
            let path = self.emitter.builder.path(name);
            self.emitter.builder.update(path, value);
        }
    }

    /// Standard normal noise. Under [`NoisePolicy::Injected`] it is an input named `noise` within the scope of the
    /// layer (`noise_2` for the second call, and so on), so that a run can be replayed.
    pub fn normal(&mut self, shape: impl Into<Vec<usize>>) -> Value {
        let shape = shape.into();
        match self.emitter.noise {
            NoisePolicy::Generated => {
                let rng = self.rng();
                let key = self.emitter.builder.fresh_key();
                self.emitter.builder.op(Op::RandomNormal { key, shape }, &[rng])
            }
            NoisePolicy::Injected => {
                let name = self.emitter.fresh_input("noise");
                self.emitter.builder.input(&name, TensorType::f32(shape))
            }
        }
    }

    /// State of the random number generator, i32 `[4]`, for random operations other than [`Self::normal`].
    pub fn rng(&mut self) -> Value {
        self.emitter.rng()
    }
}

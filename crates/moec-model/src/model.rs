//! The checked model: every name resolved, every number known, every `repeat` unrolled.

use std::fmt;
use std::sync::Arc;

use moec_syntax::Span;

use crate::argument::Arguments;
use crate::losses::BalanceLoss;
use crate::router::{Mode, RoutingStrategy};

/// A checked model. Its layers start with `embed`, end with `unembed`, and fit each other.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its name.
    pub name: String,
    /// The whole definition.
    pub span: Span,
    /// Tokens that the model sees at once, T.
    pub context: usize,
    /// Where `context` was written; `None` if an override gave it.
    pub context_span: Option<Span>,
    /// How text becomes tokens.
    pub vocab: Vocab,
    /// Width of the embedding, C.
    pub width: usize,
    /// The layers in order.
    pub layers: Vec<Layer>,
    /// The `let` bindings of the model's own body with their values.
    pub bindings: Vec<(String, Number)>,
    /// Whether a token can be influenced by later ones.
    pub causality: Causality,
}

/// A compile-time value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// A whole number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Number::Int(value) => write!(f, "{value}"),
            Number::Float(value) => write!(f, "{value:?}"),
            Number::Bool(value) => write!(f, "{value}"),
        }
    }
}

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vocab {
    /// One token per distinct character of the training text.
    Characters,
    /// A fixed number of tokens, V.
    Size(usize),
}

/// What a change of later tokens can do to earlier outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Causality {
    /// Nothing: a token's output depends on it and earlier tokens of its sequence.
    Causal,
    /// Nothing within a sequence, but experts share their capacity among the sequences of a batch, so that a token
    /// can be dropped in training and not while sampling.
    BatchDependent,
    /// Training decides by looking at later tokens, evaluation and sampling follow another rule that does not.
    SamplesDifferently,
    /// Everything: a router compares a token with later ones, and the file allows it.
    LooksAhead,
}

impl fmt::Display for Causality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Causality::Causal => "causal",
            Causality::BatchDependent => {
                "causal; which tokens are over capacity depends on the other sequences of the batch, so sampling can \
                 differ from training"
            }
            Causality::SamplesDifferently => {
                "causal with another rule when sampling: training compares tokens with later ones to route them"
            }
            Causality::LooksAhead => "not causal: a router compares tokens with later ones",
        })
    }
}

/// A layer with the widths it takes and gives.
#[derive(Clone, Debug)]
pub struct Layer {
    /// What it is.
    pub kind: LayerKind,
    /// Where it was written.
    pub span: Span,
    /// Width of what it is given; 0 for `embed`.
    pub input: usize,
    /// Width of what it returns; 0 for `unembed`, whose width is the vocabulary's.
    pub output: usize,
}

/// What a layer is.
#[derive(Clone, Debug)]
pub enum LayerKind {
    /// Token vectors, plus position vectors if they are learned.
    Embed {
        /// How positions enter the model.
        positions: Positions,
    },
    /// Causal self-attention.
    Attention(Attention),
    /// Two linear maps with an activation between them.
    Mlp(Mlp),
    /// A mixture of experts.
    Moe(Box<Moe>),
    /// Layers that only some tokens of a sequence go through.
    MixtureOfDepths(Box<MixtureOfDepths>),
    /// A feed-forward layer whose weights are put together from blocks that several hashes of the token choose.
    MultiHash(MultiHash),
    /// Layer normalisation.
    LayerNorm {
        /// Added to the variance.
        epsilon: f64,
    },
    /// Root mean square normalisation.
    RmsNorm {
        /// Added to the mean square.
        epsilon: f64,
    },
    /// Dropout.
    Dropout {
        /// Probability of zero.
        rate: f64,
    },
    /// A linear map.
    Linear {
        /// Whether it has a bias.
        bias: bool,
    },
    /// An elementwise function.
    Activation(Activation),
    /// `x + f(x)`
    Residual(Vec<Layer>),
    /// One iteration of a `repeat` of the model's body, with its scope of names.
    Block {
        /// Number of the iteration, counted over all repeats of the model.
        index: usize,
        /// Its layers.
        layers: Vec<Layer>,
    },
    /// Scores of the vocabulary.
    Unembed {
        /// Uses the token vectors as weights.
        tied: bool,
        /// Whether it has a bias.
        bias: bool,
    },
}

impl LayerKind {
    /// Name of the layer in the file; empty for the iteration of a `repeat`.
    pub fn name(&self) -> &'static str {
        match self {
            LayerKind::Embed { .. } => "embed",
            LayerKind::Attention(_) => "attention",
            LayerKind::Mlp(_) => "mlp",
            LayerKind::Moe(_) => "moe",
            LayerKind::MixtureOfDepths(_) => "mixture_of_depths",
            LayerKind::MultiHash(_) => "multi_hash",
            LayerKind::LayerNorm { .. } => "layer_norm",
            LayerKind::RmsNorm { .. } => "rms_norm",
            LayerKind::Dropout { .. } => "dropout",
            LayerKind::Linear { .. } => "linear",
            LayerKind::Activation(activation) => activation.name(),
            LayerKind::Residual(_) => "residual",
            LayerKind::Block { .. } => "",
            LayerKind::Unembed { .. } => "unembed",
        }
    }
}

/// How positions enter a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// A trained vector per position is added to the token vectors.
    Learned,
    /// Queries and keys are rotated by their position.
    Rotary,
    /// Not at all.
    None,
}

/// Causal self-attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Number of heads, H.
    pub heads: usize,
    /// Factor of the scores.
    pub scale: f64,
    /// Dropout rate of the probabilities and of the output.
    pub dropout: f64,
    /// Whether queries, keys and values have a bias; the output projection always has one.
    pub bias: bool,
    /// Whether queries and keys are rotated by their position.
    pub rotary: bool,
}

/// A feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mlp {
    /// Width between the two maps, F.
    pub hidden: usize,
    /// Function between them.
    pub activation: Activation,
    /// Dropout rate of the output.
    pub dropout: f64,
    /// Whether the maps have biases.
    pub bias: bool,
}

/// Functions between linear maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)`
    Relu,
    /// `x * cdf(x)` with the cumulative distribution function of the standard normal.
    Gelu,
    /// `x * sigmoid(x)`
    Silu,
    /// `silu(gate) * x` with a gate from a second linear map (Shazeer 2020, arXiv 2002.05202); only in `mlp`.
    Swiglu,
}

impl Activation {
    /// Name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Relu => "relu",
            Activation::Gelu => "gelu",
            Activation::Silu => "silu",
            Activation::Swiglu => "swiglu",
        }
    }
}

/// A mixture of experts.
#[derive(Clone, Debug)]
pub struct Moe {
    /// Number of experts, E.
    pub experts: usize,
    /// The layers of each expert.
    pub expert: Vec<Layer>,
    /// Number of experts that every token goes to.
    pub shared: usize,
    /// The layers of each shared expert.
    pub shared_expert: Vec<Layer>,
    /// How tokens are sent to experts.
    pub route: Route,
    /// Balance losses.
    pub balance: Vec<WeightedLoss>,
    /// Bound on the tokens of an expert; every token is kept if `None`.
    pub capacity: Option<Capacity>,
    /// Where the route was written.
    pub route_span: Span,
}

/// A routing strategy with its arguments.
#[derive(Clone)]
pub struct Route {
    /// The strategy.
    pub strategy: Arc<dyn RoutingStrategy>,
    /// Its arguments.
    pub arguments: Arguments,
}

impl Route {
    /// Number of E experts that work on a token, on average.
    pub fn experts_per_token(&self, experts: usize, time: usize) -> f64 {
        self.strategy.experts_per_token(&self.arguments, experts, time)
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Route {
    /// `noisy_top_k(k: 2, epsilon: 0.01, ..)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.strategy.name(), self.arguments)
    }
}

/// A balance loss with its arguments.
#[derive(Clone, Debug)]
pub struct WeightedLoss {
    /// The loss.
    pub loss: BalanceLoss,
    /// Its arguments; `weight` is its factor in the objective.
    pub arguments: Arguments,
}

impl WeightedLoss {
    /// Its factor in the objective.
    pub fn weight(&self) -> f64 {
        self.arguments.float("weight")
    }
}

/// A bound on the tokens that an expert accepts; what is over it is dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capacity {
    /// Multiple of the even share N*K/E in a training step.
    pub factor: f64,
    /// The same in evaluation and sampling; 0 for no bound.
    pub evaluation_factor: f64,
    /// Least bound.
    pub minimum: usize,
    /// Who comes first.
    pub order: CapacityOrder,
    /// Whether the weights that are left to a token are scaled to the sum of all it had.
    pub renormalise: bool,
}

/// Which choices an expert with a bounded capacity accepts first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapacityOrder {
    /// In the order of the tokens (makeMoE).
    Token,
    /// All first choices before all second ones (Lepikhin et al. 2020, arXiv 2006.16668).
    Choice,
    /// As `Choice`, and tokens with larger weights first (Riquelme et al. 2021, arXiv 2106.05974).
    Probability,
}

impl CapacityOrder {
    /// The words of the language, in the order of the variants.
    pub const WORDS: &'static [&'static str] = &["token", "choice", "probability"];

    /// The word of the language.
    pub fn word(self) -> &'static str {
        match self {
            CapacityOrder::Token => "token",
            CapacityOrder::Choice => "choice",
            CapacityOrder::Probability => "probability",
        }
    }

    /// The order of that name.
    pub fn from_word(word: &str) -> Self {
        match word {
            "choice" => CapacityOrder::Choice,
            "probability" => CapacityOrder::Probability,
            _ => CapacityOrder::Token,
        }
    }
}

impl Capacity {
    /// Tokens that an expert accepts, P: `max(minimum, int(N*K/E * factor))` and never 0; `None` for no bound. makeMoE
    /// has no minimum, which switches the layer off for short inputs.
    pub fn tokens(&self, mode: Mode, tokens: usize, k: usize, experts: usize) -> Option<usize> {
        let factor = match mode {
            Mode::Train => self.factor,
            Mode::Evaluate => self.evaluation_factor,
        };
        let share = (tokens as f64 * k as f64) / experts.max(1) as f64;
        // Saturates, as a float cast does.
        (factor > 0.0).then(|| ((share * factor) as usize).max(self.minimum).max(1))
    }
}

/// Layers that only the tokens with the largest scores go through (Raposo et al. 2024, arXiv 2404.02258).
#[derive(Clone, Debug)]
pub struct MixtureOfDepths {
    /// Share of the tokens of a sequence that go through in training.
    pub capacity: f64,
    /// Factor of the predictor's loss in the objective.
    pub weight: f64,
    /// The layers.
    pub layers: Vec<Layer>,
}

impl MixtureOfDepths {
    /// Tokens of a sequence of `time` that go through in training, at least 1.
    pub fn tokens(&self, time: usize) -> usize {
        ((time as f64 * self.capacity).ceil() as usize).clamp(1, time.max(1))
    }
}

/// The feed-forward layer of MultiHash (Roller et al. 2021, arXiv 2106.04426).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MultiHash {
    /// Width between the two maps, F.
    pub hidden: usize,
    /// Weight blocks that each hash chooses from.
    pub buckets: usize,
    /// Number of hashes: the maps are split into as many blocks.
    pub hashes: usize,
    /// Function between the maps.
    pub activation: Activation,
    /// Dropout rate of the output.
    pub dropout: f64,
    /// Seed of the hash tables.
    pub seed: usize,
}

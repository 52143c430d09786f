//! The checked recipe: what the `train` block says, with its defaults, which are makeMoE's.

use indexmap::IndexMap;
use moec_syntax::Span;

/// A checked recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// What to train on.
    pub data: DataSource,
    /// Share of the text used for training; the rest is held out.
    pub split: f64,
    /// Sequences per step, B.
    pub batch: usize,
    /// Training steps.
    pub steps: u64,
    /// Seed of everything random.
    pub seed: u64,
    /// The optimizer.
    pub optimizer: AdamW,
    /// How the learning rate changes.
    pub schedule: Schedule,
    /// Bound on the global norm of the gradient.
    pub clip: Option<f64>,
    /// How parameters start.
    pub init: InitScheme,
    /// When and how long to evaluate.
    pub evaluate: Evaluate,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Steps between lines of progress.
    pub log_every: u64,
    pub(crate) spans: IndexMap<&'static str, Span>,
}

impl Default for Recipe {
    fn default() -> Self {
        Recipe {
            data: DataSource::Synthetic,
            split: 0.9,
            batch: 16,
            steps: 5000,
            seed: 1337,
            optimizer: AdamW::default(),
            schedule: Schedule::Constant,
            clip: None,
            init: InitScheme::KaimingNormal,
            evaluate: Evaluate { every: 100, batches: 400 },
            checkpoint_every: 1000,
            log_every: 10,
            spans: IndexMap::new(),
        }
    }
}

impl Recipe {
    /// Where a setting was written, by its name in the file; `None` for a default or an override.
    pub fn span(&self, setting: &str) -> Option<Span> {
        self.spans.get(setting).copied()
    }
}

/// What to train on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataSource {
    /// A generated text that needs nothing from outside.
    Synthetic,
    /// A known data set or the path of a text file.
    Named(String),
}

/// AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) with PyTorch's defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// How the learning rate changes over the steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Schedule {
    /// It does not.
    Constant,
    /// Linear warm-up, then half a cosine down to `min_lr` at the last step.
    Cosine {
        /// Steps of warm-up.
        warmup: u64,
        /// Learning rate at the end.
        min_lr: f64,
    },
}

/// How parameters start; see [`InitScheme::init`].
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum InitScheme {
    /// Normal with variance 2 / fan-in.
    #[default]
    KaimingNormal,
    /// Uniform with variance 2 / (fan-in + fan-out).
    Xavier,
    /// Normal with a given deviation.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// All weights 0.
    Zeros,
}

/// When and how long to evaluate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evaluate {
    /// Steps between evaluations.
    pub every: u64,
    /// Batches per evaluation and split.
    pub batches: u64,
}

//! The checked model: every name resolved, every number known, every `repeat` unrolled.

use std::fmt;

use moec_ir::Invariant;
use moec_syntax::Span;

use crate::arithmetic::Number;
use crate::layer::{self, Layer};
use crate::resolved::ResolvedModel;

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

impl Positions {
    const ALL: [Positions; 3] = [Positions::Learned, Positions::Rotary, Positions::None];

    /// The words of the language.
    pub(crate) const WORDS: [&'static str; 3] = [Self::ALL[0].word(), Self::ALL[1].word(), Self::ALL[2].word()];

    /// The word of the language.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Positions::Learned => "learned",
            Positions::Rotary => "rotary",
            Positions::None => "none",
        }
    }

    /// The positions of a word that has been checked.
    pub(crate) fn named(word: &str) -> Self {
        let found = Self::ALL.into_iter().find(|positions| positions.word() == word);
        found.invariant("the word of positions is one of those that are declared")
    }
}

impl Model {
    /// The model as plain data.
    pub fn to_resolved(&self) -> ResolvedModel {
        ResolvedModel {
            name: self.name.clone(),
            context: self.context,
            vocab: match self.vocab {
                Vocab::Characters => "characters".into(),
                Vocab::Size(size) => size.into(),
            },
            width: self.width,
            causality: match self.causality {
                Causality::Causal => "causal",
                Causality::BatchDependent => "batch_dependent",
                Causality::SamplesDifferently => "samples_differently",
                Causality::LooksAhead => "looks_ahead",
            },
            bindings: self.bindings.iter().map(|(name, value)| (name.clone(), (*value).into())).collect(),
            layers: layer::resolved(&self.layers),
        }
    }
}

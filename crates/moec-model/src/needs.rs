//! What the result of a layer for a token depends on besides the activations of the token.

use std::fmt;

use moec_syntax::Span;

/// Why a token depends on more than itself and the keys and values of earlier ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Obstacle {
    /// The reason, as a sentence without a full stop.
    pub reason: String,
    /// The layer or route at fault.
    pub span: Span,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// What the results of layers depend on besides the activations of the token, in evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Needs {
    /// The number of the token in the vocabulary, or of the one before it.
    pub(crate) ids: bool,
    /// The place of the token in the window.
    pub(crate) places: bool,
    /// Keys and values of earlier tokens.
    pub(crate) keys: bool,
    /// Something else of the window, and what.
    pub(crate) window: Option<Obstacle>,
    /// The other sequences of the batch.
    pub(crate) batch: bool,
}

impl Needs {
    /// What two layers need together.
    pub(crate) fn and(self, other: Needs) -> Needs {
        Needs {
            ids: self.ids || other.ids,
            places: self.places || other.places,
            keys: self.keys || other.keys,
            window: self.window.or(other.window),
            batch: self.batch || other.batch,
        }
    }
}

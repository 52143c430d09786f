//! What it takes to write one token after another: what the result of a token depends on besides its own activations.
//!
//! This is the one place that decides whether keys and values of earlier tokens can be kept (a cache), how long they
//! serve, and whether several texts can be written at once. It reads what layers are and what routers declare
//! ([`Traits`](crate::Traits)), never their names.

use std::fmt;

use moec_syntax::Span;

use crate::model::{Layer, LayerKind, Model, Moe, Positions};
use crate::router::{Compares, Randomness};

/// How the next token of a text can be computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoding {
    /// Whether from keys and values that are kept, rather than from the whole window anew.
    pub cache: Cache,
    /// Whether the texts of a batch have nothing to do with each other, so that several can be written at once.
    pub together: bool,
}

/// How far keys and values can be kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Cache {
    /// As long as a text may be: only distances between tokens count, and the keys of the last T tokens are kept.
    Sliding,
    /// For the first T tokens: what is kept depends on a token's place in the window, which moves from there on.
    UntilFull,
    /// Not at all.
    Never(Obstacle),
}

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

/// How the next token of a model's texts can be computed.
pub fn decoding(model: &Model) -> Decoding {
    let needs = needs(&model.layers);
    let cache = match needs.window {
        Some(obstacle) => Cache::Never(obstacle),
        None if needs.places => Cache::UntilFull,
        None => Cache::Sliding,
    };
    Decoding { cache, together: !needs.batch }
}

/// Whether the result for a token follows from its activations alone.
pub(crate) fn is_tokenwise(layer: &Layer) -> bool {
    needs_of(layer) == Needs::default()
}

/// What the results of layers depend on besides the activations of the token, in evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
struct Needs {
    /// The number of the token in the vocabulary, or of the one before it.
    ids: bool,
    /// The place of the token in the window.
    places: bool,
    /// Keys and values of earlier tokens.
    keys: bool,
    /// Something else of the window, and what.
    window: Option<Obstacle>,
    /// The other sequences of the batch.
    batch: bool,
}

impl Needs {
    fn and(self, other: Needs) -> Needs {
        Needs {
            ids: self.ids || other.ids,
            places: self.places || other.places,
            keys: self.keys || other.keys,
            window: self.window.or(other.window),
            batch: self.batch || other.batch,
        }
    }
}

fn needs(layers: &[Layer]) -> Needs {
    layers.iter().map(needs_of).fold(Needs::default(), Needs::and)
}

fn needs_of(layer: &Layer) -> Needs {
    match &layer.kind {
        LayerKind::Embed { positions } => {
            Needs { ids: true, places: *positions == Positions::Learned, ..Needs::default() }
        }
        LayerKind::Attention(_) => Needs { keys: true, ..Needs::default() },
        LayerKind::Moe(moe) => needs(&moe.expert).and(needs(&moe.shared_expert)).and(needs_of_route(moe)),
        LayerKind::MixtureOfDepths(depths) => {
            let inner = needs(&depths.layers);
            let window = inner.keys.then(|| Obstacle {
                reason: "attention inside `mixture_of_depths` sees only the tokens that go through".into(),
                span: layer.span,
            });
            // The layer reorders the tokens of a sequence, even where its inner layers take them one by one.
            Needs { window: inner.window.clone().or(window), keys: true, ..inner }
        }
        LayerKind::MultiHash(_) => Needs { ids: true, ..Needs::default() },
        LayerKind::Residual(layers) | LayerKind::Block { layers, .. } => needs(layers),
        LayerKind::Mlp(_)
        | LayerKind::LayerNorm { .. }
        | LayerKind::RmsNorm { .. }
        | LayerKind::Dropout { .. }
        | LayerKind::Linear { .. }
        | LayerKind::Activation(_)
        | LayerKind::Unembed { .. } => Needs::default(),
    }
}

fn needs_of_route(moe: &Moe) -> Needs {
    let traits = moe.route.strategy.traits(&moe.route.arguments);
    let name = moe.route.strategy.name();
    let compared = match traits.compares_when_sampling {
        Compares::None | Compares::PreviousToken => None,
        Compares::EarlierTokens => Some("earlier ones"),
        Compares::Sequence => Some("the whole sequence"),
        Compares::Batch => Some("the whole batch"),
    };
    let always_random = traits.random == Randomness::Always;
    let bounded = moe.capacity.is_some_and(|capacity| capacity.evaluation_factor > 0.0);
    let reason = if let Some(what) = compared {
        Some(format!("the router `{name}` compares each token with {what}"))
    } else if always_random {
        Some(format!("the router `{name}` draws noise in evaluation too, anew for every token of the window"))
    } else if traits.counts_tokens {
        Some(format!("the router `{name}` makes use of the number of tokens"))
    } else if bounded {
        Some("experts have a capacity in evaluation, which counts the tokens of the window".to_string())
    } else {
        None
    };
    Needs {
        ids: traits.reads.token_ids || traits.compares_when_sampling == Compares::PreviousToken,
        places: traits.reads.positions,
        keys: false,
        window: reason.map(|reason| Obstacle { reason, span: moe.route_span }),
        batch: traits.compares_when_sampling == Compares::Batch || always_random || traits.counts_tokens || bounded,
    }
}

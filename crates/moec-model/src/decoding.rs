//! What it takes to write one token after another.
//!
//! This is the one place that decides whether keys and values of earlier tokens can be kept (a cache), how long they
//! serve, and whether several texts can be written at once. It reads what each layer says that it needs
//! ([`Needs`](crate::needs::Needs)), and a `moe` what its router declares ([`Traits`](crate::Traits)); never their names.

use crate::layer::needs;
use crate::model::Model;
use crate::needs::Obstacle;

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

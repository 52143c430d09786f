//! How a model's texts are written: from keys and values that are kept, or from the whole window anew.

use crate::error::Error;
use crate::pipeline::Function;
use moec_model::{Cache, Model};
use moec_runtime::Kept;

/// Most texts that go through the device together: with more, a character takes no less time.
const MOST_TOGETHER: u64 = 64;

/// How a character is computed from those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decode {
    /// From the keys and values of the characters before it, where the model allows it: with learned positions until the
    /// context is full and from the whole window afterwards; with rotary positions or none throughout, with the keys and
    /// values of the last T characters (the context).
    Auto,
    /// As `Auto`, but fails where it would compute the whole window.
    Cached,
    /// From the last T characters alone, computed anew for every character.
    Windowed,
}

/// A way to write texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// What is kept of the tokens of a text.
    pub kept: Kept,
    /// Texts that are written at once.
    pub together: u64,
    /// The functions that it runs.
    pub functions: Vec<Function>,
}

impl Sampling {
    /// How `samples` texts of `length` characters after a prompt of `prompt` characters are written.
    ///
    /// # Errors
    /// When keys and values must be kept and cannot.
    pub fn new(model: &Model, mode: Decode, samples: u64, prompt: usize, length: usize) -> Result<Self, Error> {
        let decoding = moec_model::decoding(model);
        let kept = match &decoding.cache {
            _ if mode == Decode::Windowed => Kept::Nothing,
            Cache::Sliding => Kept::LastWindow,
            Cache::UntilFull => Kept::FirstWindow,
            Cache::Never(_) => Kept::Nothing,
        };
        let functions = moec_runtime::sample_functions(kept, model.context, prompt, length);
        if mode == Decode::Cached && functions.contains(&Function::Next) {
            return Err(not_cached(&decoding.cache, model.context, prompt.saturating_add(length)));
        }
        // Groups of about the same size: a group costs as much as its largest.
        let groups = if decoding.together { samples.div_ceil(MOST_TOGETHER).max(1) } else { samples.max(1) };
        let together = samples.div_ceil(groups).max(1);
        Ok(Self { kept, together, functions })
    }
}

/// Why a text of so many characters, its prompt included, cannot be written from keys and values alone.
fn not_cached(cache: &Cache, context: usize, characters: usize) -> Error {
    match cache {
        Cache::Never(obstacle) => Error::NeverCached { reason: obstacle.reason.clone() },
        Cache::Sliding | Cache::UntilFull => Error::CachedUntilFull { context, characters },
    }
}

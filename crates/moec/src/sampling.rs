//! How a model's texts are written: from keys and values that are kept, or from the whole window anew.

use crate::cli::args::DecodeMode;
use crate::cli::exit::{Exit, Failure};
use crate::pipeline::Function;
use moec_model::{Cache, Model};
use moec_runtime::Kept;

/// Most texts that go through the device together.
const MOST_TOGETHER: u64 = 16;

/// A way to write texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sampling {
    /// What is kept of the tokens of a text.
    pub(crate) kept: Kept,
    /// Texts that are written at once.
    pub(crate) together: u64,
    /// The functions that it runs.
    pub(crate) functions: Vec<Function>,
}

impl Sampling {
    /// How `samples` texts of `length` characters after a prompt of `prompt` characters are written.
    ///
    /// # Errors
    /// When keys and values must be kept and cannot.
    pub(crate) fn new(
        model: &Model,
        mode: DecodeMode,
        samples: u64,
        prompt: usize,
        length: usize,
    ) -> Result<Self, Failure> {
        let decoding = moec_model::decoding(model);
        let kept = match &decoding.cache {
            _ if mode == DecodeMode::Windowed => Kept::Nothing,
            Cache::Sliding => Kept::LastWindow,
            Cache::UntilFull => Kept::FirstWindow,
            Cache::Never(_) => Kept::Nothing,
        };
        let functions = moec_runtime::sample_functions(kept, model.context, prompt, length);
        if mode == DecodeMode::Cached && functions.contains(&moec_runtime::NEXT) {
            return Err(not_cached(&decoding.cache, model.context, prompt.saturating_add(length)));
        }
        let functions = functions.into_iter().filter_map(Function::from_name).collect();
        let together = if decoding.together { samples.clamp(1, MOST_TOGETHER) } else { 1 };
        Ok(Self { kept, together, functions })
    }
}

/// Why a text of so many characters, its prompt included, cannot be written from keys and values alone.
fn not_cached(cache: &Cache, context: usize, characters: usize) -> Failure {
    match cache {
        Cache::Never(obstacle) => {
            Failure::new(Exit::Usage, format!("keys and values cannot be kept: {}", obstacle.reason))
                .help("--decode windowed computes the whole window for every character")
        }
        Cache::Sliding | Cache::UntilFull => {
            let message = format!(
                "keys and values can be kept for the first {context} characters only: what they hold depends on the \
                 place in the window"
            );
            Failure::new(Exit::Usage, message)
                .help(format!("prompt and text are {characters} characters together"))
                .help("--decode auto goes on with the whole window from there")
        }
    }
}

//! How a model's texts are written: from keys and values that are kept, or from the whole window anew.

use crate::args::DecodeMode;
use crate::exit::{Exit, Failure};
use crate::pipeline::Function;
use moec_model::{Cache, Model};
use moec_runtime::Kept;

/// Most texts that go through the device together.
const MOST_TOGETHER: u64 = 16;

/// A way to write texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sampling {
    /// What is kept of the tokens of a text.
    pub(crate) kept: Kept,
    /// Texts that are written at once.
    pub(crate) together: u64,
    prompt: usize,
    length: usize,
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
        let cached = mode == DecodeMode::Cached;
        let kept = match decoding.cache {
            _ if mode == DecodeMode::Windowed => Kept::Nothing,
            Cache::Sliding => Kept::LastWindow,
            Cache::UntilFull => {
                let tokens = prompt.max(1).saturating_add(length).saturating_sub(1);
                let beyond = tokens > model.context || prompt >= model.context;
                if cached && length > 0 && beyond {
                    let message = format!(
                        "keys and values can be kept for the first {} characters only: what they hold depends on the \
                         place in the window",
                        model.context
                    );
                    let advice = format!("prompt and text are {} characters", prompt.saturating_add(length));
                    return Err(Failure::new(Exit::Usage, message)
                        .help(advice)
                        .help("--decode auto goes on with the whole window from there"));
                }
                Kept::FirstWindow
            }
            Cache::Never(obstacle) => {
                if cached {
                    let message = format!("keys and values cannot be kept: {obstacle}");
                    return Err(Failure::new(Exit::Usage, message).help("--decode windowed computes the whole window"));
                }
                Kept::Nothing
            }
        };
        let together = if decoding.together { samples.clamp(1, MOST_TOGETHER) } else { 1 };
        Ok(Self { kept, together, prompt, length })
    }

    /// The functions that it runs.
    pub(crate) fn functions(&self, context: usize) -> Vec<Function> {
        let names = moec_runtime::sample_functions(self.kept, context, self.prompt, self.length);
        names.into_iter().filter_map(Function::from_name).collect()
    }
}

//! The text that is routed: as it is given, from a file, or what a run was not trained on.

use crate::Run;
use crate::cli::args::{RouteArgs, SplitName};
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::units::grouped;
use crate::cli::{downloads, run_text};
use moec_model::Registry;
use moec_runtime::{Corpus, DataError, Dataset, MAX_BYTES, Split};
use std::io::Read;

/// A text to route.
pub(crate) struct Text {
    pub(crate) text: String,
    /// What it is, in words.
    pub(crate) what: String,
    /// Whether it is the beginning of a longer one.
    pub(crate) is_cut: bool,
}

impl Text {
    /// The text that is asked for. Of one that is neither in the command nor on standard input only the first characters are
    /// taken: `usual` many, if nothing else is said.
    ///
    /// # Errors
    /// When it cannot be found or read, or has characters that the model does not know.
    pub(crate) fn of(
        args: &RouteArgs,
        run: &Run,
        usual: usize,
        registry: &Registry,
        console: &Console,
    ) -> Result<Self, Failure> {
        let length = args.length.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        if let Some(text) = &args.text {
            let all = text.chars().count();
            return Ok(Self::beginning(text.chars(), all, length, "--text"));
        }
        let (corpus, default, length) = match args.data.as_deref() {
            Some("-") => (standard_input()?, SplitName::All, length),
            Some(data) => (downloads::corpus(data, registry, console)?, SplitName::All, length.or(Some(usual))),
            None => {
                let sha256 = &run.checkpoint.manifest.data_sha256;
                let corpus = run_text::find(&run.request, Some(sha256), &[&run.root], registry, console)?;
                let held_out = if run.spec.checked.recipe.split < 1.0 { SplitName::Val } else { SplitName::Train };
                (corpus, held_out, length.or(Some(usual)))
            }
        };
        let part = args.split.unwrap_or(default);
        let (split, fraction, of) = match part {
            SplitName::Train => (Split::Train, run.spec.checked.recipe.split, "the training part of "),
            SplitName::Val => (Split::Validation, run.spec.checked.recipe.split, "the held-out part of "),
            SplitName::All => (Split::Train, 1.0, ""),
        };
        let dataset = Dataset::new(&corpus, run.vocab.clone(), fraction)?;
        let tokens = dataset.tokens(split);
        if tokens.is_empty() && split == Split::Validation {
            return Err(DataError::NothingHeldOut { name: corpus.name().to_string() }.into());
        }
        let characters = tokens.iter().filter_map(|token| run.vocab.character(token));
        Ok(Self::beginning(characters, tokens.len(), length, &format!("{of}{}", corpus.name())))
    }

    fn beginning(characters: impl Iterator<Item = char>, all: usize, length: Option<usize>, name: &str) -> Self {
        let taken = length.unwrap_or(all).min(all);
        let number = match (taken < all, all) {
            (true, _) => format!("the first {} of {} characters", grouped(taken as u64), grouped(all as u64)),
            (_, 1) => "1 character".to_string(),
            _ => format!("{} characters", grouped(all as u64)),
        };
        Self { text: characters.take(taken).collect(), what: format!("{number} of {name}"), is_cut: taken < all }
    }
}

fn standard_input() -> Result<Corpus, Failure> {
    const NAME: &str = "standard input";
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|e| Failure::new(Exit::Data, format!("cannot read {NAME}: {e}")))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(DataError::TooLarge { name: NAME.into() }.into());
    }
    Ok(Corpus::from_bytes(NAME, bytes)?)
}

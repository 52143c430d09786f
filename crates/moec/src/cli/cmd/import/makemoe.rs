//! `moec import --from makemoe`: a run from a state dictionary of makeMoE.

use crate::Spec;
use crate::cli::args::{ImportArgs, MessageFormat};
use crate::cli::console::Console;
use crate::cli::downloads;
use crate::cli::exit::{Exit, Failure};
use crate::interchange::makemoe::{self, Direction};
use moec_model::Registry;

/// Makes the run.
///
/// # Errors
/// When the file, the spec, the data or the run folder is wrong, or makeMoE computes something else than the spec says.
pub(super) fn run(args: &ImportArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    let Some(path) = &args.spec else {
        let message = "a state dictionary of makeMoE does not say what its model is";
        return Err(Failure::new(Exit::Usage, message).help("--spec names the .moe file that describes it"));
    };
    let spec = Spec::read(path, registry, args.model.as_deref(), &args.set)?;
    console.diagnostics(&spec.source, &spec.checked.warnings, MessageFormat::Full);
    // Tensors do not show what is done with them.
    if !args.trust_spec {
        let fit = makemoe::fit(&spec.checked.model, Direction::Import)
            .map_err(|obstacles| Failure::source(spec.source.clone(), obstacles, Exit::Usage))?;
        fit.remarks.notes.iter().for_each(|note| console.note_fitted(note));
    }
    let corpus = downloads::corpus(&args.data, registry, console)?;
    let vocab = corpus.vocab()?;
    let theirs = moec_runtime::read_tensors(&args.file)?;
    // A state dictionary does not say which character a token is.
    let (tokens, whose) = (vocab.len(), corpus.name());
    console
        .note_fitted(format!("took the {tokens} characters of {whose}, in code-point order, for the model's tokens"));
    let made = super::Imported { spec: &spec, corpus: &corpus, vocab };
    made.save(args, console, theirs.len(), |program| {
        let heads = moec_runtime::attention_heads(program);
        moec_runtime::import_makemoe(&theirs, &program.states, heads)
    })
}

//! `moec import`: a run from a makeMoE state dictionary.

use crate::cli::args::{ImportArgs, MessageFormat};
use crate::cli::console::Console;
use crate::cli::downloads;
use crate::cli::exit::{Exit, Failure};
use crate::pipeline::{CompileOptions, Function};
use crate::{Device, Spec};
use moec_model::Registry;
use moec_runtime::Identity;

/// Runs the command: the run begins at step 0 with the imported parameters, ready to be sampled, evaluated or trained
/// further.
///
/// # Errors
/// When the file, the spec, the data or the run folder is wrong.
pub(crate) fn run(args: &ImportArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    let spec = Spec::read(&args.spec, registry, args.model.as_deref(), &args.set)?;
    console.diagnostics(&spec.source, &spec.checked.warnings, MessageFormat::Full);
    let corpus = downloads::corpus(&args.data, registry, console)?;
    let vocab = corpus.vocab()?;
    let compiled = spec.compile(&vocab, Device::Cpu, &CompileOptions::only([Function::TrainStep]))?;
    let theirs = moec_runtime::read_tensors(&args.file)?;
    let program = &compiled.program;
    let heads = moec_runtime::attention_heads(program);
    let mut tensors = moec_runtime::import_makemoe(&theirs, &program.states, heads)?;
    let seed = spec.checked.recipe.seed;
    let dataset = spec.dataset(&corpus)?;
    let states = crate::initial_states(&compiled.lowered.states, &dataset, spec.folder())?;
    for (name, tensor) in moec_runtime::initial_tensors(seed, &program.states, &[], &states) {
        tensors.entry(name).or_insert(tensor);
    }
    let folder = spec.create_run_with_plan(&args.out, &dataset, "")?;
    let identity = Identity {
        seed,
        context: spec.checked.model.context,
        vocab,
        spec_sha256: folder.spec_sha256().to_string(),
        data_sha256: corpus.sha256().to_string(),
    };
    let path =
        folder.save_checkpoint(0, &identity, &program.states, &mut |state| Ok(tensors.get(&state.name).cloned()))?;
    console.note(format!("imported {} tensors into {}", theirs.len(), path.display()));
    Ok(Exit::Success)
}

//! `moec export --to pytorch`: a run's model as a folder with source code for PyTorch, parameters and vocabulary.

use crate::Run;
use crate::cli::args::ExportArgs;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::interchange::vocabulary;
use crate::pipeline::{CompileOptions, Function};
use crate::{Device, pytorch};
use moec_model::Registry;

/// Writes the folder.
///
/// # Errors
/// When the run is wrong, its model cannot be written, or the folder is in use or cannot be written.
pub(super) fn run(args: &ExportArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    let folder = args.target();
    super::may_be_written(folder, args.force, "model.py, model.safetensors and vocabulary.json")?;
    let run = Run::open(&args.run, registry, Device::Cpu, |_, _| -> Result<_, Failure> {
        Ok(CompileOptions::only([Function::Logits]))
    })?;
    console.opened(&run);
    super::is_apart(folder, &run.root)?;
    let (model, recipe) = (&run.spec.checked.model, &run.spec.checked.recipe);
    let mut spec = run.spec.source.text().to_string();
    for value in &run.request.set {
        spec += &format!("\n# with -s {value}");
    }
    let text = pytorch::source(model, recipe, run.vocab.len(), &spec)
        .map_err(|e| Failure::new(Exit::Failure, format!("this model cannot be written for PyTorch: {e}")))?;
    let folder = super::Folder::new(folder, "model.py", &run.checkpoint.tensors)?;
    folder.write("vocabulary.json", &vocabulary::written(&run.vocab))?;
    // `model.py` comes last: where it is, the others are.
    folder.write("model.py", &text)?;
    let folder = folder.path;
    let step = run.checkpoint.manifest.step;
    let count = run.checkpoint.tensors.len();
    console.note(format!("wrote the model of step {step} with {count} tensors to {}", folder.display()));
    console.note(format!("python {} --prompt TEXT", folder.join("model.py").display()));
    Ok(Exit::Success)
}

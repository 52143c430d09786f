//! `moec export --to makemoe`: a run's model under makeMoE's parameter names.

use crate::cli::args::ExportArgs;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{self, Output};
use crate::interchange::makemoe::{self, Direction};
use crate::pipeline::{CompileOptions, Function};
use crate::{Device, Run};
use moec_model::Registry;

/// Writes the file.
///
/// # Errors
/// When the run is wrong, makeMoE computes its model in another way, or the file exists or cannot be written.
pub(super) fn run(args: &ExportArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    let path = args.target();
    if path.exists() && !args.force {
        let message = format!("{} exists already", path.display());
        return Err(Failure::new(Exit::Failure, message).help("--force replaces it"));
    }
    let run = Run::open(&args.run, registry, Device::Cpu, |_, _| -> Result<_, Failure> {
        Ok(CompileOptions::only([Function::Logits]))
    })?;
    console.opened(&run);
    let output = Output::new(path, &output::files_of_run(&run.root))?;
    let file = output.plain_file()?;
    let fit = makemoe::fit(&run.spec.checked.model, Direction::Export)
        .map_err(|obstacles| Failure::source(run.spec.source.clone(), obstacles, Exit::Usage))?;
    let heads = moec_runtime::attention_heads(&run.compiled.program);
    let mut tensors = moec_runtime::export_makemoe(&run.checkpoint.tensors, &run.compiled.states, heads)?;
    fit.apply(&mut tensors);
    moec_runtime::write_tensors(file, &tensors)?;
    console.note(format!("wrote {} tensors to {}", tensors.len(), path.display()));
    super::say(console, &fit.remarks, &run, "makeMoE");
    Ok(Exit::Success)
}

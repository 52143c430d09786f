//! `moec export`: a run's model under makeMoE's parameter names.

use crate::args::{DeviceName, ExportArgs};
use crate::console::Console;
use crate::exit::{Exit, Failure};
use crate::prepared::Run;
use moec_model::Registry;

/// Runs the command.
///
/// # Errors
/// When the run is wrong, its model has another structure than makeMoE's, or the file exists or cannot be written.
pub fn run(args: &ExportArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    if args.output.exists() && !args.force {
        let message = format!("{} exists already", args.output.display());
        return Err(Failure::new(Exit::Failure, message).help("--force replaces it"));
    }
    let run = Run::open(&args.run, registry, DeviceName::Cpu)?;
    let program = &run.compiled.program;
    let heads = moec_runtime::attention_heads(program);
    let tensors = moec_runtime::export_makemoe(&run.checkpoint.tensors, &program.states, heads)?;
    moec_runtime::write_tensors(&args.output, &tensors)?;
    console.note(format!("wrote {} tensors to {}", tensors.len(), args.output.display()));
    Ok(Exit::Success)
}

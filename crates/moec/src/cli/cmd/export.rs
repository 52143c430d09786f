//! `moec export`: a run's model for other programs, each format in a file of its own.

mod makemoe;
mod pytorch;

use crate::cli::args::{ExportArgs, ExportFormat};
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use moec_model::Registry;

/// Runs the command.
///
/// # Errors
/// When the run is wrong, its model cannot be written in the format, or what is to be written is there or cannot be written.
pub(crate) fn run(args: &ExportArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    match args.to {
        ExportFormat::Makemoe => makemoe::run(args, registry, console),
        ExportFormat::Pytorch => pytorch::run(args, registry, console),
    }
}

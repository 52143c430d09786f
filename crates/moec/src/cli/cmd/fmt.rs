//! `moec fmt`: files in the one canonical layout.

use crate::cli::args::FmtArgs;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::{output, sources};
use std::path::Path;

/// Runs the command. A file that cannot be parsed is left as it is.
///
/// # Errors
/// When a file cannot be read, parsed or written.
pub(crate) fn run(args: &FmtArgs, console: &Console) -> Result<Exit, Failure> {
    let mut exit = Exit::Success;
    for path in &args.files {
        let from_stdin = path == Path::new("-");
        let source = sources::read(path)?;
        let formatted = moec_syntax::format(&source).map_err(|d| Failure::source(source.clone(), d, Exit::Usage))?;
        let changed = formatted != source.text();
        if args.check {
            if changed {
                console.note(format!("{} is not in canonical layout", source.name()));
                exit = Exit::Failure;
            }
        } else if from_stdin {
            console.write(&formatted)?;
        } else if changed {
            output::replace(path, &formatted)?;
            console.note(format!("formatted {}", path.display()));
        }
    }
    Ok(exit)
}

//! `moec completions`: what completes moec's command line in a shell.

use crate::cli::args::{self, CompletionsArgs};
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};

/// Runs the command.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn run(args: &CompletionsArgs, console: &Console) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::command(None), "moec", &mut script);
    console.write(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Success)
}

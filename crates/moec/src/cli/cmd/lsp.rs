//! `moec lsp`: serves an editor.

use crate::cli::exit::{Exit, Failure};
use moec_language_server::End;
use moec_model::Registry;
use std::io::IsTerminal;

/// Runs the command.
///
/// # Errors
/// When somebody at a terminal started it, or standard input and output fail.
pub(crate) fn run(registry: &Registry) -> Result<Exit, Failure> {
    if std::io::stdin().is_terminal() {
        return Err(Failure::new(
            Exit::Usage,
            "`moec lsp` is started by an editor, which speaks to it; this is a terminal",
        )
        .help("editors/README.md says how an editor is told; `moec check FILE` says what is wrong with a file"));
    }
    match moec_language_server::serve(registry) {
        Ok(End::Orderly) => Ok(Exit::Success),
        Ok(End::Abrupt) => Ok(Exit::Failure),
        Err(error) => Err(Failure::new(Exit::Failure, format!("the editor cannot be served: {error}"))),
    }
}

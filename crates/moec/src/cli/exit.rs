//! Exit codes, and the one error type that every command returns.

use moec_plan::BackendError;
use moec_syntax::{Diagnostic, SourceFile};
use std::fmt;

/// What a process exit code means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It worked.
    Success = 0,
    /// Something failed while running: a file could not be written, for example.
    Failure = 1,
    /// The command line, the `.moe` file or an override is wrong.
    Usage = 2,
    /// The data or a checkpoint is wrong.
    Data = 3,
    /// The device is missing, failed, or has not enough memory.
    Device = 4,
    /// Training diverged: a loss was not finite.
    Diverged = 5,
    /// A fault in moec itself.
    Fault = 101,
    /// Interrupted by Ctrl-C; the work is saved.
    Interrupted = 130,
    /// Asked to stop by SIGTERM; the work is saved.
    Terminated = 143,
}

/// The exit codes as `--help` shows them.
pub const EXIT_CODES: &str = "Exit codes:
  0  success
  1  failed while running
  2  the command line, the .moe file or an override is wrong
  3  the data or a checkpoint is wrong
  4  device missing or out of memory
  5  training diverged
  101  a fault in moec itself
  130, 143  interrupted, and saved";

/// What the system says about a file, in our words where they are plainer.
pub(crate) fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_string(),
        std::io::ErrorKind::IsADirectory => "it is a folder".to_string(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_string(),
        std::io::ErrorKind::StorageFull => "the disk is full".to_string(),
        std::io::ErrorKind::AlreadyExists => "it exists already".to_string(),
        _ => error.to_string(),
    }
}

/// Why a command ended without doing what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// Messages that point into a source.
    Source {
        /// The source they point into.
        source: Box<SourceFile>,
        /// The messages.
        diagnostics: Vec<Diagnostic>,
        /// What kind of end it is.
        exit: Exit,
    },
    /// One sentence, with advice below it.
    Message {
        /// What went wrong, lower case, without a full stop.
        message: String,
        /// What to do about it.
        help: Vec<String>,
        /// What kind of end it is.
        exit: Exit,
    },
}

impl Failure {
    /// A failure with messages that point into a source.
    pub fn source(source: SourceFile, diagnostics: Vec<Diagnostic>, exit: Exit) -> Self {
        Failure::Source { source: Box::new(source), diagnostics, exit }
    }

    /// A failure with a sentence.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Failure::Message { message: message.into(), help: Vec::new(), exit }
    }

    /// Adds advice.
    #[must_use]
    pub fn help(mut self, advice: impl Into<String>) -> Self {
        if let Failure::Message { help, .. } = &mut self {
            help.push(advice.into());
        }
        self
    }

    /// A file that could not be read or written.
    pub fn file(what: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        let reason = reason(error);
        Failure::new(Exit::Failure, format!("cannot {what} {}: {reason}", path.display()))
    }

    /// What kind of end it is.
    pub fn exit(&self) -> Exit {
        match self {
            Failure::Source { exit, .. } | Failure::Message { exit, .. } => *exit,
        }
    }
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        let exit = match &error {
            BackendError::NoDevice { .. } | BackendError::OutOfMemory { .. } | BackendError::Device { .. } => {
                Exit::Device
            }
            BackendError::Interface(_) => Exit::Failure,
        };
        Failure::new(exit, error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Source { source, diagnostics, .. } => {
                let lines: Vec<String> =
                    diagnostics.iter().map(|d| format!("{}: {}", source.name(), d.message)).collect();
                f.write_str(&lines.join("\n"))
            }
            Failure::Message { message, .. } => f.write_str(message),
        }
    }
}

impl std::error::Error for Failure {}

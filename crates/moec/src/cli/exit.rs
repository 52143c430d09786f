//! Exit codes, and the one error type that every command returns.

use crate::cli::{near, run_name, shell};
use crate::error::{self, Error, Messages};
use crate::surgery::SurgeryError;
use moec_plan::BackendError;
use moec_runtime::{
    CheckpointError, DataError, EvaluateError, ExchangeError, ExecutableError, RunError, SampleError, Split,
    TensorFileError, TrainError,
};
use moec_syntax::{Diagnostic, SourceFile};
use std::fmt;
use std::io::ErrorKind;
use std::path::Path;

/// What a process exit code means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
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
    /// The terminal was closed (SIGHUP); the work is saved.
    HungUp = 129,
    /// Interrupted by Ctrl-C; the work is saved.
    Interrupted = 130,
    /// Asked to stop by SIGTERM; the work is saved.
    Terminated = 143,
}

/// The exit codes as `--help` shows them.
pub(crate) const EXIT_CODES: &str = "Exit codes:
  0  success
  1  failed while running
  2  the command line, the .moe file or an override is wrong
  3  the data or a checkpoint is wrong
  4  device missing or out of memory
  5  training diverged
  101  a fault in moec itself
  129, 130, 143  the terminal was closed, Ctrl-C, or asked to stop; saved";

/// Why a command ended without doing what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
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
    pub(crate) fn source(source: SourceFile, diagnostics: Vec<Diagnostic>, exit: Exit) -> Self {
        Failure::Source { source: Box::new(source), diagnostics, exit }
    }

    /// A failure with a sentence.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Failure::Message { message: message.into(), help: Vec::new(), exit }
    }

    /// Adds advice.
    #[must_use]
    pub(crate) fn help(mut self, advice: impl Into<String>) -> Self {
        if let Failure::Message { help, .. } = &mut self {
            help.push(advice.into());
        }
        self
    }

    /// A file that could not be read or written.
    pub(crate) fn file(what: &str, path: &Path, error: &std::io::Error) -> Self {
        let reason = error::reason(error);
        Failure::new(Exit::Failure, format!("cannot {what} {}: {reason}", path.display()))
    }

    /// Whether there is nothing to say about it.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self, Failure::Message { message, .. } if message.is_empty())
    }

    /// The failure for programs (docs/json.md).
    pub(crate) fn json(&self) -> serde_json::Value {
        let (message, help, diagnostics) = match self {
            Failure::Source { source, diagnostics, .. } => {
                let error = diagnostics.iter().find(|d| d.is_error()).or(diagnostics.first());
                let rendered = diagnostics.iter().map(|d| d.to_rendered(source)).collect();
                (error.map(|d| d.message.clone()).unwrap_or_default(), Vec::new(), rendered)
            }
            Failure::Message { message, help, .. } => (message.clone(), help.clone(), Vec::new()),
        };
        serde_json::json!({
            "schema": "moec.error/1",
            "exit": self.exit() as u8,
            "message": message,
            "help": help,
            "diagnostics": diagnostics,
        })
    }

    /// What kind of end it is.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Failure::Source { exit, .. } | Failure::Message { exit, .. } => *exit,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let of = |messages: Messages, exit| Failure::source(*messages.source, messages.diagnostics, exit);
        let say = |exit| Failure::new(exit, error.to_string());
        match error {
            Error::Spec(messages) | Error::Build(messages) => of(messages, Exit::Usage),
            Error::TooLarge(messages) => of(messages, Exit::Device),
            Error::File { ref path, .. } if path.is_dir() => say(Exit::Usage).help("give the path of a .moe file"),
            Error::File { ref path, ref source } if source.kind() == ErrorKind::NotFound => {
                say(Exit::Usage).help(match near::spec(path) {
                    Some(near) => format!("did you mean {}?", shell::path(&near)),
                    None => "`moec new NAME` writes a small one to begin with".to_string(),
                })
            }
            Error::File { .. } => say(Exit::Usage),
            Error::Vocabulary { .. } => say(Exit::Data).help("write `vocab characters` to take it from the text"),
            Error::Table { .. } | Error::Request { .. } | Error::DamagedVocabulary(_) => say(Exit::Data),
            Error::NeverCached { .. } => {
                say(Exit::Usage).help("--decode windowed computes the whole window for every character")
            }
            Error::CachedUntilFull { characters, .. } => say(Exit::Usage)
                .help(format!("prompt and text are {characters} characters together"))
                .help("--decode auto goes on with the whole window from there"),
            Error::Damaged { ref older, .. } => match older.first() {
                None => say(Exit::Data).help("the run has no checkpoint before it"),
                Some(_) => {
                    let older: Vec<String> = older.iter().map(|path| path.display().to_string()).collect();
                    say(Exit::Data).help(format!("the checkpoints before it are {}", older.join(", ")))
                }
            },
            Error::NoCheckpoint(_) => {
                say(Exit::Data).help("let the training reach its first checkpoint; Ctrl-C saves one")
            }
            Error::NoBest(_) => say(Exit::Data)
                .help("-s train.checkpoint.best=true saves where it is evaluated best; the run itself means its newest checkpoint"),
            Error::Surgery(ref e) => match e {
                SurgeryError::Recipe(_) => say(Exit::Usage),
                SurgeryError::Broken { .. } => say(Exit::Failure)
                    .help("nothing was written; please report it with the recipe: a wrong model must not be made"),
                SurgeryError::Vocabulary { .. } => say(Exit::Data)
                    .help("train the runs on texts with the same characters: one line with all of them is enough"),
                _ => say(Exit::Data).help("runs that are put together have the same layers, shapes and arguments"),
            },
            Error::Data(e) => e.into(),
            Error::Checkpoint(e) => e.into(),
            Error::Run(e) => e.into(),
            Error::TensorFile(e) => e.into(),
            Error::Executable(e) => e.into(),
            Error::Train(e) => e.into(),
            Error::Evaluate(e) => e.into(),
            Error::Sample(e) => e.into(),
            Error::Device(e) => e.into(),
        }
    }
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        let exit = match &error {
            BackendError::NoDevice { .. } | BackendError::OutOfMemory { .. } | BackendError::Device { .. } => {
                Exit::Device
            }
            _ => Exit::Failure,
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        let failure = Failure::new(Exit::Data, error.to_string());
        match error {
            DataError::NotFound { name } => {
                let near = near::file(Path::new(&name)).map(|near| format!("did you mean {}?", shell::path(&near)));
                near.into_iter()
                    .fold(failure, Failure::help)
                    .help("give a UTF-8 text file, `tinyshakespeare`, or `synthetic` for the generated corpus")
            }
            DataError::TooShort { split: Split::Validation, .. } => failure
                .help("give a longer text, or hold out more of it (-s train.split=0.8)")
                .help("-s train.split=1.0 trains on all of it, -s train.evaluate.every=0 without evaluations"),
            DataError::TooShort { .. } => failure.help("give a longer text, or make `context` smaller (-s context=N)"),
            DataError::NothingHeldOut { .. } => {
                failure.help("`split` says how much is for training: -s train.split=0.9")
            }
            DataError::NotText { .. } => failure.help("convert the file to UTF-8, with `iconv` for example"),
            _ => failure,
        }
    }
}

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        let exit = match error {
            CheckpointError::Write { .. } => Exit::Failure,
            _ => Exit::Data,
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let exit = match error {
            RunError::NoRun { .. } => Exit::Data,
            _ => Exit::Failure,
        };
        let failure = Failure::new(exit, error.to_string());
        match error {
            RunError::NoRun { path } => match run_name::meant(Path::new(&path)) {
                Some(run) => failure.help(format!("did you mean {}?", shell::path(&run))),
                None => failure.help("give the folder that `moec train` wrote, runs/NAME for example"),
            },
            RunError::Exists { path } => {
                let run = shell::path(Path::new(&path));
                failure.help(format!("moec train --resume {run} continues it; --out FOLDER starts another"))
            }
            _ => failure,
        }
    }
}

impl From<ExecutableError> for Failure {
    fn from(error: ExecutableError) -> Self {
        match error {
            ExecutableError::Backend(error) => error.into(),
            other => Failure::new(Exit::Failure, other.to_string()),
        }
    }
}

impl From<TrainError> for Failure {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Data(e) => e.into(),
            TrainError::Executable(e) => e.into(),
            TrainError::Checkpoint(e) => e.into(),
            TrainError::Run(e) => e.into(),
            TrainError::Diverged { .. } => Failure::new(Exit::Diverged, error.to_string())
                .help("lower the learning rate (-s train.optimizer.lr=3e-4) or clip the gradient (-s train.clip=1.0)")
                .help("the checkpoints written before are intact"),
            other => Failure::new(Exit::Failure, other.to_string()),
        }
    }
}

impl From<EvaluateError> for Failure {
    fn from(error: EvaluateError) -> Self {
        match error {
            EvaluateError::Data(e) => e.into(),
            EvaluateError::Executable(e) => e.into(),
            other => Failure::new(Exit::Failure, other.to_string()),
        }
    }
}

impl From<SampleError> for Failure {
    fn from(error: SampleError) -> Self {
        match error {
            SampleError::Executable(e) => e.into(),
            SampleError::Setting { .. } | SampleError::Prompt(_) => Failure::new(Exit::Usage, error.to_string()),
            _ => Failure::new(Exit::Data, error.to_string()),
        }
    }
}

impl From<TensorFileError> for Failure {
    fn from(error: TensorFileError) -> Self {
        Failure::new(Exit::Data, error.to_string())
    }
}

impl From<ExchangeError> for Failure {
    fn from(error: ExchangeError) -> Self {
        let failure = Failure::new(Exit::Data, error.to_string());
        match error {
            ExchangeError::Vocabulary { .. } => {
                failure.help("--data names the text whose characters are those that the model was trained on")
            }
            _ => failure.help("the tensors do not belong to the model that the spec describes"),
        }
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

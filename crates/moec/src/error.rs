//! What can go wrong, as one type.

use crate::surgery::SurgeryError;
use moec_plan::BackendError;
use moec_runtime::{
    CheckpointError, DataError, EvaluateError, ExecutableError, RunError, SampleError, TensorFileError, TrainError,
};
use moec_syntax::{Diagnostic, SourceFile};
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why something could not be done. What is wrong with a `.moe` text comes with the lines that it points at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A `.moe` file could not be read.
    #[error("cannot read {}: {}", path.display(), reason(source))]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The text or an override is wrong.
    #[error("{0}")]
    Spec(Messages),
    /// The text is right, but its model cannot be built: the fault of a router or loss from outside, or of moec.
    #[error("{0}")]
    Build(Messages),
    /// The device has not enough memory for the model.
    #[error("{0}")]
    TooLarge(Messages),
    /// The file says how many characters there are, and the text has another number of them.
    #[error("the model has a vocabulary of {model}, the text has {text} characters")]
    Vocabulary {
        /// Characters of the model.
        model: usize,
        /// Characters of the text.
        text: usize,
    },
    /// A table of a router cannot be computed from this text.
    #[error("`{name}` cannot be made: {reason}")]
    Table {
        /// The persistent tensor.
        name: String,
        /// Why.
        reason: String,
    },
    /// A text was to be written from keys and values that are kept, and the model allows that for no text.
    #[error("keys and values cannot be kept: {reason}")]
    NeverCached {
        /// What depends on the whole window.
        reason: String,
    },
    /// A text was to be written from keys and values that are kept, and is longer than the model allows that for.
    #[error(
        "keys and values can be kept for the first {context} characters only: what they hold depends on the place in \
         the window"
    )]
    CachedUntilFull {
        /// Length of the window, T.
        context: usize,
        /// Characters of prompt and text.
        characters: usize,
    },
    /// A run has saved nothing yet.
    #[error("{} holds no checkpoint yet", .0.display())]
    NoCheckpoint(PathBuf),
    /// A run has no checkpoint of a step at which held-out text was evaluated.
    #[error("{} holds no checkpoint with a held-out loss", .0.display())]
    NoBest(PathBuf),
    /// The checkpoint that was named is damaged.
    #[error("{error}")]
    Damaged {
        /// What is wrong with it.
        error: CheckpointError,
        /// The checkpoints of the run before it, the newest first.
        older: Vec<PathBuf>,
    },
    /// What a run was asked for cannot be read.
    #[error("{} cannot be read: {reason}", path.display())]
    Request {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The vocabulary of a checkpoint cannot be read.
    #[error("{}: the vocabulary is damaged", .0.display())]
    DamagedVocabulary(PathBuf),
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint cannot be read or written, or does not fit.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The folder of a run cannot be used.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A file of tensors cannot be read or written.
    #[error(transparent)]
    TensorFile(#[from] TensorFileError),
    /// The program could not be run.
    #[error(transparent)]
    Executable(#[from] ExecutableError),
    /// Training ended with an error.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// An evaluation ended with an error.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// No text could be written.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// Runs cannot be put together or taken apart.
    #[error(transparent)]
    Surgery(#[from] SurgeryError),
    /// The device is missing or failed.
    #[error(transparent)]
    Device(#[from] BackendError),
}

/// Messages about a text, with the text that they point into. Shown with those lines, also by `{:?}`, so that a `main`
/// which returns an [`Error`] prints what its author needs.
pub struct Messages {
    /// The text.
    pub source: Box<SourceFile>,
    /// The messages, in the order of the text.
    pub diagnostics: Vec<Diagnostic>,
}

impl Messages {
    pub(crate) fn new(source: &SourceFile, diagnostics: Vec<Diagnostic>) -> Self {
        Self { source: Box::new(source.clone()), diagnostics }
    }
}

impl fmt::Display for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rendered: Vec<String> = self.diagnostics.iter().map(|d| d.render(&self.source, false)).collect();
        f.write_str(&rendered.join("\n\n"))
    }
}

impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{self}")
    }
}

/// What the system says about a file, in our words where they are plainer.
pub(crate) fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_string(),
        io::ErrorKind::IsADirectory => "it is a folder".to_string(),
        io::ErrorKind::PermissionDenied => "permission denied".to_string(),
        io::ErrorKind::StorageFull => "the disk is full".to_string(),
        io::ErrorKind::AlreadyExists => "it exists already".to_string(),
        _ => error.to_string(),
    }
}

//! Trains and samples a prepared plan: data, loop, metrics, checkpoints.
//!
//! The runtime knows a model only as a [`moec_plan::Program`] and the [`moec_plan::Session`] that runs it, joined in an
//! [`Executable`]; it never sees a language, a router or a kernel. A run goes like this:
//!
//! 1. A [`Corpus`] (a file, or the embedded one of [`synthetic`]) and its [`Vocab`] make a [`Dataset`].
//! 2. [`RunFolder::create`] begins a run, [`initialise`] draws the parameters, [`train`] does the rest; or
//!    [`RunFolder::open`] and [`resume`] go on with one, to the same bits.
//! 3. [`load_checkpoint`] gives the tensors back for [`sample()`], [`evaluate_split`] or [`export_makemoe`].
//!
//! A program has some of the functions of [`moec_ir::Function`], with inputs of [`moec_ir::Input`] and outputs of
//! [`moec_ir::Output`]; which of them a command needs decides what it compiles.
//!
//! Every random number is keyed by (seed, purpose, index), so nothing but the step is needed to go on where a run
//! stopped.

mod batches;
mod best;
mod checkpoint;
mod data;
mod evaluate;
mod exchange;
mod executable;
mod files;
mod init;
mod latest;
mod makemoe;
mod metrics;
mod profile;
mod run_folder;
mod sample;
mod streams;
pub mod synthetic;
mod tensor_file;
mod tokens;
mod train;
mod vocab;

pub use best::{Best, HeldOut, best_checkpoint};
pub use checkpoint::{
    Checkpoint, CheckpointError, FORMAT_VERSION, FileEntry, Identity, Manifest, Parts, PassedOver, TensorSource,
    fingerprint, load as load_checkpoint, load_averages, read_manifest,
};
pub use data::{Corpus, DataError, Dataset, MAX_BYTES, Split, sha256_hex};
pub use evaluate::{EvaluateError, SplitLoss, evaluate_split};
pub use exchange::{ExchangeError, Piece, export_tensors, import_tensors};
pub use executable::{Executable, ExecutableError};
pub use init::{initial_tensors, initialise};
pub use latest::{Latest, follow_latest, point_latest};
pub use makemoe::{attention_heads, export_makemoe, import_makemoe};
pub use metrics::{Divergence, Evaluation, LayerBalance, Metric, SCHEMA, TrainMetric};
pub use profile::{KernelRow, Profiled, Timings};
pub use run_folder::{
    RunError, RunFolder, RunTexts, checkpoints, latest_checkpoint, newest_whole, read_metrics, read_resolved,
    read_spec, run_of_best, run_of_checkpoint,
};
pub use sample::{Kept, SampleConfig, SampleError, sample, sample_functions};
pub use tensor_file::{TensorFileError, read_tensors, write_tensors};
pub use tokens::Tokens;
pub use train::{
    Outcome, Reporter, Resumption, Silent, Summary, TrainConfig, TrainError, outcome, resume, train, train_loss,
    train_step,
};
pub use vocab::{UnknownCharacters, Vocab};

#[cfg(test)]
mod tiny;

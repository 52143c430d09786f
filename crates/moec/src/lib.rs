//! Mixture-of-experts language models from text to trained: the library, and the command line over it.
//!
//! A model is a short `.moe` text. The library checks it, derives the backward pass, plans every byte, runs it on the
//! processor, a graphics device or the slow float64 reference, and trains and samples it. All of that in one `use`:
//!
//! ```no_run
#![doc = include_str!("../examples/hello.rs")]
//! ```
//!
//! # The way
//!
//! | from | by | to |
//! |---|---|---|
//! | text | [`Spec::parse`], [`Spec::read`] | [`Spec`]: model and recipe, checked; or [`Error::Spec`] with every fault at its line |
//! | [`Spec`] | [`Spec::compile`] | [`Compiled`]: a graph and a plan for each [`Function`] |
//! | [`Compiled`] | [`Session::open`] | [`Session`]: tensors on a [`Device`] |
//! | [`Session`] | [`Session::train`] | a run folder, with checkpoints, metrics and everything that is needed to go on |
//! | a run folder | [`Run::open`], [`Run::session`] | a [`Session`] that samples and evaluates |
//!
//! Each stage can be looked at: [`pipeline`] has them as functions, and the crates that own them are [`syntax`], [`model`],
//! [`ir`], [`plan`], [`runtime`] and `kernels`. Where the loop of training reports to and how it is stopped is an argument
//! of [`Session::continue_from`].
//!
//! Kernels for the processor are compiled in every process, unless a device is opened with a place to keep them
//! (`Device::open_with_cache`, `KernelCache`), as the program `moec` does.
//!
//! # Routers of your own
//!
//! A routing strategy in Rust implements [`router::RoutingStrategy`] and is put into a [`Registry`], which [`Spec::read`]
//! takes, or [`run`], which gives it every command:
//!
//! ```no_run
//! fn main() -> std::process::ExitCode {
//!     moec::run(moec::Registry::with_builtins())
//! }
//! ```
//!
//! # Features
//!
//! | feature | brings |
//! |---|---|
//! | `cli` | the program `moec` and [`run`]; a library needs none of it |
//! | `cpu` | [`Device::Cpu`]: CubeCL's kernels, compiled with LLVM 23, which its build script downloads or is told the place of |
//! | `wgpu` | [`Device::Wgpu`]: the same kernels on what wgpu reaches |
//!
//! All three are on unless `default-features = false`. Without any of them there is [`Device::Interpreter`] alone, and nothing
//! of CubeCL is built.

#[cfg(feature = "cli")]
mod cli;
mod device;
pub mod diagnosis;
mod error;
#[cfg(feature = "cli")]
mod interchange;
#[cfg(feature = "kernels")]
mod kernel_cache;
mod locate;
pub mod pipeline;
pub mod pytorch;
#[cfg(feature = "cli")]
mod report;
mod request;
pub mod router;
mod run;
mod sampling;
mod session;
mod spec;
pub mod surgery;
mod training;
mod units;

#[cfg(feature = "cli")]
pub use cli::run;
pub use device::Device;
pub use error::{Error, Messages};
#[cfg(feature = "kernels")]
pub use kernel_cache::{KernelCache, KernelCacheUsage};
pub use moec_model::Registry;
pub use moec_runtime::{
    Corpus, Dataset, PassedOver, Reporter, Resumption, RunFolder, SampleConfig, Silent, Split, Summary, TrainConfig,
    Vocab,
};
pub use pipeline::{Checked, CompileOptions, Compiled, Function};
pub use request::Request;
pub use run::Run;
pub use sampling::{Decode, Sampling};
pub use session::Session;
pub use spec::{Spec, read_source, require_memory};
pub use training::{initial_states, train_config};

#[cfg(feature = "kernels")]
pub use moec_kernels as kernels;
pub use {moec_ir as ir, moec_model as model, moec_plan as plan, moec_runtime as runtime, moec_syntax as syntax};

//! Library facade, the pipeline, and the command line of moec.
//!
//! A program with a router of its own is a few lines: build a [`Registry`], hand it to [`run`], and every command
//! knows the router.
//!
//! ```no_run
//! use moec::Registry;
//!
//! fn main() -> std::process::ExitCode {
//!     moec::run(Registry::with_builtins())
//! }
//! ```
//!
//! The way from text to a program is in [`pipeline`]; each crate below owns one stage of it.

pub mod args;
pub mod cmd;
mod console;
mod devices;
pub mod exit;
pub mod pipeline;
mod prepared;
mod progress;
pub mod resolved;
mod sources;
mod units;

pub use moec_model::Registry;

use args::{Cli, Command, MessageFormat};
use clap::Parser;
use console::Console;
use std::process::ExitCode;

/// Parses the command line, runs the command and returns the exit code.
pub fn run(registry: Registry) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are results; a wrong command line is exit code 2.
            let code = if e.use_stderr() { exit::Exit::Usage } else { exit::Exit::Success };
            let _ = e.print();
            return ExitCode::from(code as u8);
        }
    };
    let console = Console::new(cli.color);
    let (format, result) = match &cli.command {
        Command::Check(args) => (args.spec.message_format, cmd::check::run(args, &registry, &console)),
        Command::Fmt(args) => (MessageFormat::Full, cmd::fmt::run(args, &console)),
        Command::Explain(args) => (MessageFormat::Full, cmd::explain::run(args, &console)),
        Command::Compile(args) => (args.spec.message_format, cmd::compile::run(args, &registry, &console)),
        Command::Train(args) => (args.spec.message_format, cmd::train::run(args, &registry, &console)),
        Command::Sample(args) => (MessageFormat::Full, cmd::sample::run(args, &registry, &console)),
        Command::Eval(args) => (MessageFormat::Full, cmd::eval::run(args, &registry, &console)),
        Command::Import(args) => (MessageFormat::Full, cmd::import::run(args, &registry, &console)),
        Command::Export(args) => (MessageFormat::Full, cmd::export::run(args, &registry, &console)),
    };
    let exit = result.unwrap_or_else(|failure| {
        console.failure(&failure, format);
        failure.exit()
    });
    ExitCode::from(exit as u8)
}

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
mod downloads;
pub mod exit;
mod kernel_table;
pub mod pipeline;
mod prepared;
mod progress;
mod reference;
pub mod resolved;
mod routing_record;
mod sampling;
mod sources;
mod training;
mod units;

/// All that a routing strategy of another crate needs: the trait with what it declares, and the graph it builds.
/// `examples/router-plugin` is a complete one.
pub mod router {
    pub use moec_ir::{Binary, Builder, DType, Data, Op, Tensor, TensorType, Unary, Value};
    pub use moec_model::{
        Arguments, Assignment, AuxiliaryLoss, BalanceLoss, Compares, DefaultValue, Interval, LossContext, Mode,
        NoisyScores, ParameterSpec, ParameterType, Quantity, Randomness, Reads, Role, Routing, RoutingContext,
        RoutingStrategy, StateSource, TrainingText, Traits, Verdict,
    };
}

pub use moec_model::Registry;
pub use prepared::initial_states;

use args::{Cli, Command, MessageFormat};
use clap::Parser;
use console::Console;
use std::io::Write;
use std::process::ExitCode;

/// Parses the command line, runs the command and returns the exit code.
///
/// A fault of moec itself or of a library below it ends with a short message and exit code 101.
pub fn run(registry: Registry) -> ExitCode {
    std::panic::set_hook(Box::new(|fault| {
        let text = fault.payload_as_str().unwrap_or("no reason given");
        let place = fault.location().map(|l| format!(" ({}:{})", l.file(), l.line())).unwrap_or_default();
        let first = text.lines().find(|l| !l.trim().is_empty()).unwrap_or_default();
        // There is nowhere left to complain to if standard error is gone.
        let _ = writeln!(
            std::io::stderr(),
            "error: a fault in moec{place}: {first}\n  help: please report it with the command and the .moe file; checkpoints are intact"
        );
    }));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| dispatch(&registry)));
    outcome.unwrap_or_else(|_| ExitCode::from(exit::Exit::Fault as u8))
}

fn dispatch(registry: &Registry) -> ExitCode {
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
        Command::Check(args) => (args.spec.message_format, cmd::check::run(args, registry, &console)),
        Command::Fmt(args) => (MessageFormat::Full, cmd::fmt::run(args, &console)),
        Command::Explain(args) => (MessageFormat::Full, cmd::explain::run(args, registry, &console)),
        Command::Routers(args) => (MessageFormat::Full, cmd::routers::run(args, registry, &console)),
        Command::Compile(args) => (args.spec.message_format, cmd::compile::run(args, registry, &console)),
        Command::Train(args) => (args.spec.message_format, cmd::train::run(args, registry, &console)),
        Command::Compare(args) => (args.message_format, cmd::compare::run(args, registry, &console)),
        Command::Bench(args) => (args.spec.message_format, cmd::bench::run(args, registry, &console)),
        Command::Sample(args) => (MessageFormat::Full, cmd::sample::run(args, registry, &console)),
        Command::Eval(args) => (MessageFormat::Full, cmd::eval::run(args, registry, &console)),
        Command::Route(args) => (MessageFormat::Full, cmd::route::run(args, registry, &console)),
        Command::Gradcheck(args) => (args.spec.message_format, cmd::gradcheck::run(args, registry, &console)),
        Command::Import(args) => (MessageFormat::Full, cmd::import::run(args, registry, &console)),
        Command::Export(args) => (MessageFormat::Full, cmd::export::run(args, registry, &console)),
    };
    let exit = result.unwrap_or_else(|failure| {
        console.failure(&failure, format);
        failure.exit()
    });
    ExitCode::from(exit as u8)
}

//! The command line: a client of the library. Every command is a file in `cmd/`, its arguments are in `args`.

pub(crate) mod args;
mod assembly;
mod balance;
pub(crate) mod cmd;
mod columns;
mod configuration;
pub(crate) mod console;
mod devices;
pub(crate) mod downloads;
mod event_file;
pub(crate) mod exit;
mod folders;
mod kernel_table;
mod live;
mod near;
mod numbers;
mod output;
mod progress;
mod quiet;
mod reference;
mod remarks;
mod routing;
mod run_name;
mod run_report;
mod run_text;
mod shell;
mod signals;
mod sources;
mod sweep;
mod table;
mod task;
mod tips;
mod tracking;
mod units;
mod wrapping;

use args::{Cli, Command, MessageFormat};
use clap::FromArgMatches;
use console::Console;
use devices::Devices;
use moec_model::Registry;
use std::io::Write;
use std::process::ExitCode;

/// Parses the command line, runs the command and returns the exit code.
///
/// A fault of moec itself or of a library below it ends with a short message and exit code 101.
pub fn run(registry: Registry) -> ExitCode {
    std::panic::set_hook(Box::new(|fault| {
        live::screen::give_back_in_panic();
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
    // Whatever happened, the shell gets its terminal as it was.
    live::screen::give_back();
    outcome.unwrap_or_else(|_| ExitCode::from(exit::Exit::Fault as u8))
}

/// The refusal to show or clear a cache that the same command says not to use.
fn without_cache() -> exit::Failure {
    exit::Failure::new(exit::Exit::Usage, "`moec cache` is about the cache that --no-cache does without")
        .help("leave out --no-cache; `moec cache --clear` removes what is kept")
}

fn dispatch(registry: &Registry) -> ExitCode {
    let command = args::command(Some(args::help_columns()));
    let parsed = command.clone().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are results; a wrong command line is exit code 2.
            let code = if e.use_stderr() { exit::Exit::Usage } else { exit::Exit::Success };
            let arguments: Vec<String> =
                std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
            let console = Console::new(args::Color::Auto);
            let told = tips::unknown(&e, &command, &arguments);
            match &told {
                Some(failure) => console.failure(failure, MessageFormat::Full),
                None => {
                    let _ = e.print();
                }
            }
            if e.use_stderr() && arguments.iter().any(|argument| argument == "--json") {
                // There is nowhere left to complain to if standard output is gone.
                let _ = console.json(&told.unwrap_or_else(|| tips::plain(&e)).json());
            }
            return ExitCode::from(code as u8);
        }
    };
    let console = Console::new(cli.color);
    let devices = Devices::new(!cli.no_cache, console);
    let (format, result) = match &cli.command {
        Command::New(args) => (MessageFormat::Full, cmd::new::run(args, &console)),
        Command::Check(args) => (args.reading.message_format, cmd::check::run(args, registry, &console)),
        Command::Fmt(args) => (MessageFormat::Full, cmd::fmt::run(args, &console)),
        Command::Explain(args) => (MessageFormat::Full, cmd::explain::run(args, registry, devices, &console)),
        Command::Layers(args) => (MessageFormat::Full, cmd::layers::run(args, &console)),
        Command::Routers(args) => (MessageFormat::Full, cmd::routers::run(args, registry, &console)),
        Command::Compile(args) => (args.spec.reading.message_format, cmd::compile::run(args, registry, &console)),
        Command::Config(args) => (args.spec.reading.message_format, cmd::config::run(args, registry, &console)),
        Command::Train(args) => (args.spec.reading.message_format, cmd::train::run(args, registry, devices, &console)),
        Command::Compare(args) => (args.message_format, cmd::compare::run(args, registry, devices, &console)),
        Command::Search(args) => (args.message_format, cmd::search::run(args, registry, devices, &console)),
        Command::Bench(args) => (args.spec.reading.message_format, cmd::bench::run(args, registry, devices, &console)),
        Command::Sample(args) => (MessageFormat::Full, cmd::sample::run(args, registry, devices, &console)),
        Command::Eval(args) => (MessageFormat::Full, cmd::eval::run(args, registry, devices, &console)),
        Command::Route(args) => (MessageFormat::Full, cmd::route::run(args, registry, devices, &console)),
        Command::Metrics(args) => (MessageFormat::Full, cmd::metrics::run(args, &console)),
        Command::Track(args) => (MessageFormat::Full, cmd::track::run(args, registry, &console)),
        Command::Report(args) => (MessageFormat::Full, cmd::report::run(args, registry, devices, &console)),
        Command::Gradcheck(args) => (args.spec.reading.message_format, cmd::gradcheck::run(args, registry, &console)),
        Command::Doctor(args) => (MessageFormat::Full, cmd::doctor::run(args, devices, &console)),
        Command::Lsp(_) => (MessageFormat::Full, cmd::lsp::run(registry)),
        Command::Completions(args) => (MessageFormat::Full, cmd::completions::run(args, &console)),
        Command::Man(args) => (MessageFormat::Full, cmd::man::run(args, &console)),
        Command::Cache(_) if cli.no_cache => (MessageFormat::Full, Err(without_cache())),
        Command::Cache(args) => (MessageFormat::Full, cmd::cache::run(args, &console)),
        Command::Merge(args) => (MessageFormat::Full, cmd::merge::run(args, registry, devices, &console)),
        Command::Extract(args) => (MessageFormat::Full, cmd::extract::run(args, registry, devices, &console)),
        Command::Prune(args) => (MessageFormat::Full, cmd::prune::run(args, registry, devices, &console)),
        Command::Import(args) => (MessageFormat::Full, cmd::import::run(args, registry, &console)),
        Command::Export(args) => (MessageFormat::Full, cmd::export::run(args, registry, &console)),
    };
    let exit = result.unwrap_or_else(|failure| {
        console.failure(&failure, format);
        if cli.command.prints_json() && !failure.is_silent() {
            // There is nowhere left to complain to if standard output is gone.
            let _ = console.json(&failure.json());
        }
        failure.exit()
    });
    ExitCode::from(exit as u8)
}

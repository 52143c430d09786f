//! The `moec` program: the command line over the built-in routers.

use std::process::ExitCode;

fn main() -> ExitCode {
    moec::run(moec::Registry::with_builtins())
}

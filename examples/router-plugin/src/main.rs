//! moec with one more routing strategy: every command of moec, and `cosine_top_k` in the language.

mod cosine_top_k;

use std::process::ExitCode;

use cosine_top_k::CosineTopK;
use moec::Registry;

fn main() -> ExitCode {
    moec::run(Registry::with_builtins().router(CosineTopK))
}

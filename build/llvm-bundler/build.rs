//! Finds or fetches LLVM while this crate is built, and tells the library where it is.
//!
//! Doing it here, not when the library is called, makes Cargo name this crate in the error of a failed search and
//! repeat the search when the folder disappears.

#[path = "src/download.rs"]
mod download;
#[path = "src/llvm_config.rs"]
mod llvm_config;
#[path = "src/locate.rs"]
mod locate;

use std::process::ExitCode;

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-env-changed=DOCS_RS");
    println!("cargo:rerun-if-env-changed={}", locate::PREFIX_VARIABLE);
    if std::env::var_os("DOCS_RS").is_some() {
        return ExitCode::SUCCESS; // nothing is linked there, and nothing can be fetched
    }
    let prefix = match locate::find_or_fetch() {
        Ok(prefix) => prefix,
        Err(failure) => {
            eprintln!("{failure}");
            return ExitCode::FAILURE;
        }
    };
    let Some(text) = prefix.to_str() else {
        eprintln!("the LLVM folder {} has a name that is not Unicode; move it", prefix.display());
        return ExitCode::FAILURE;
    };
    println!("cargo:rerun-if-changed={}", llvm_config::program(&prefix).display());
    println!("cargo:rustc-env=MOEC_LLVM_FOUND={text}");
    ExitCode::SUCCESS
}

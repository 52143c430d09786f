//! What the build script of the crate that links LLVM must emit.
//!
//! The `llvm-sys` crate would look for LLVM in its own build script, before anything could have fetched one. CubeCL
//! builds it without that step and calls [`link`] instead.

use std::path::{Path, PathBuf};

use crate::config::{ConfigError, ConfigResult, flags, llvm_path};
use crate::llvm_config::query;

/// Emits the search path, LLVM's libraries in link order, the system libraries and the C++ runtime, and compiles the
/// initialisers that `llvm-c/Target.h` has as inline functions only.
///
/// Must be called from a build script.
pub fn link() -> ConfigResult<()> {
    let prefix = llvm_path()?;
    compile_initialisers(&prefix)?; // first: a static library must come before those that it needs
    println!("cargo:rustc-link-search=native={}", query(&prefix, &["--libdir"])?);
    for file in query(&prefix, &["--link-static", "--libnames"])?.split_whitespace() {
        println!("cargo:rustc-link-lib=static={}", Library::from_token(file).name);
    }
    for token in query(&prefix, &["--link-static", "--system-libs"])?.split_whitespace() {
        let library = Library::from_token(token);
        if let Some(folder) = library.folder {
            println!("cargo:rustc-link-search=native={}", folder.display());
        }
        println!("cargo:rustc-link-lib={}", library.name);
    }
    if cfg!(target_os = "macos") {
        println!("cargo:rustc-link-lib=c++");
    } else if !cfg!(target_env = "msvc") {
        println!("cargo:rustc-link-lib=stdc++");
    }
    Ok(())
}

/// Rust can bind to functions with a symbol only, and these have none: one C function with a symbol for each, under the
/// name that the `llvm-sys` crate declares.
fn compile_initialisers(prefix: &Path) -> ConfigResult<()> {
    let folder =
        std::env::var_os("OUT_DIR").ok_or_else(|| ConfigError("`link` needs OUT_DIR: call it from build.rs".into()))?;
    let source = PathBuf::from(folder).join("llvm_initialisers.c");
    std::fs::write(&source, initialisers()).map_err(|error| format!("{}: {error}", source.display()))?;
    let mut build = cc::Build::new();
    // The flags hold the definition by which the wheel's headers leave out the targets it was not built with.
    build.file(&source).flags(flags(prefix, "--cflags")?).warnings(false);
    build.try_compile("moec_llvm_initialisers").map_err(|error| ConfigError(error.to_string()))
}

/// The C source of the initialisers.
fn initialisers() -> String {
    let mut source = String::from("#include <llvm-c/Target.h>\n");
    for what in ["AllTargetInfos", "AllTargets", "AllTargetMCs", "AllAsmPrinters", "AllAsmParsers", "AllDisassemblers"]
    {
        source += &format!("void LLVM_Initialize{what}(void) {{ LLVMInitialize{what}(); }}\n");
    }
    // These return a non-zero value where the host has no such part.
    for what in ["NativeTarget", "NativeAsmPrinter", "NativeAsmParser", "NativeDisassembler"] {
        source += &format!("LLVMBool LLVM_Initialize{what}(void) {{ return LLVMInitialize{what}(); }}\n");
    }
    source
}

/// A library as Cargo wants it named.
#[derive(Debug, PartialEq)]
struct Library {
    /// Without `lib`, `-l` and extension.
    name: String,
    /// The folder, where the answer was a path.
    folder: Option<PathBuf>,
}

impl Library {
    /// Reads `-lz`, `libLLVMCore.a`, `LLVMCore.lib`, `psapi.lib` or a path to one of these.
    fn from_token(token: &str) -> Library {
        let token = token.trim_matches('"');
        if let Some(name) = token.strip_prefix("-l") {
            return Library { name: name.into(), folder: None };
        }
        let split = token.rfind(['/', '\\']);
        let file = split.map_or(token, |at| &token[at + 1..]);
        let name = if let Some(name) = file.strip_suffix(".lib") {
            name
        } else {
            let stem = file.strip_prefix("lib").unwrap_or(file);
            [".a", ".so", ".dylib", ".tbd"].iter().find_map(|end| stem.strip_suffix(end)).unwrap_or(stem)
        };
        Library { name: name.into(), folder: split.map(|at| PathBuf::from(&token[..at])) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_named_as_cargo_wants_them() {
        for (token, name, folder) in [
            ("-lz", "z", None),
            ("libLLVMCore.a", "LLVMCore", None),
            ("LLVMCore.lib", "LLVMCore", None),
            ("libxml2.lib", "libxml2", None),
            ("/opt/homebrew/lib/libzstd.a", "zstd", Some("/opt/homebrew/lib")),
            (r#""C:\llvm\lib\zlibstatic.lib""#, "zlibstatic", Some(r"C:\llvm\lib")),
        ] {
            let library = Library { name: name.into(), folder: folder.map(PathBuf::from) };
            assert_eq!(Library::from_token(token), library, "{token}");
        }
    }

    #[test]
    fn every_initialiser_has_a_symbol() {
        let source = initialisers();
        assert_eq!(source.lines().count(), 11);
        assert!(source.contains("LLVMBool LLVM_InitializeNativeTarget(void) { return LLVMInitializeNativeTarget(); }"));
    }
}

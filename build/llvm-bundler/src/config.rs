//! Where LLVM is, and how to compile C++ against it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::llvm_config;

/// Why LLVM's own configuration could not be read.
#[derive(Debug)]
pub struct ConfigError(pub(crate) String);

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

impl From<String> for ConfigError {
    fn from(message: String) -> Self {
        ConfigError(message)
    }
}

/// What the functions of this crate return.
pub type ConfigResult<T> = Result<T, ConfigError>;

/// The folder that holds `bin/llvm-config`, `include/` and `lib/`, as found when this crate was built.
pub fn llvm_path() -> ConfigResult<PathBuf> {
    match option_env!("MOEC_LLVM_FOUND") {
        Some(prefix) => Ok(PathBuf::from(prefix)),
        None => Err(ConfigError("this crate was built without looking for LLVM (DOCS_RS is set)".into())),
    }
}

/// The arguments with which C++ must be compiled to include LLVM's headers, one per element.
///
/// `prefix` is the folder to ask; without it, the one of [`llvm_path`].
pub fn get_cxxflags_args(prefix: Option<&OsString>) -> ConfigResult<Vec<OsString>> {
    let prefix = match prefix {
        Some(prefix) => PathBuf::from(prefix),
        None => llvm_path()?,
    };
    flags(&prefix, "--cxxflags")
}

/// The arguments that `llvm-config` answers to `--cflags` or `--cxxflags`.
pub(crate) fn flags(prefix: &Path, question: &str) -> ConfigResult<Vec<OsString>> {
    let include = llvm_config::query(prefix, &["--includedir"])?;
    let flags = llvm_config::query(prefix, &["--link-static", question])?;
    Ok(split_flags(&flags, &include))
}

/// Splits an answer at white space. The include folder is the one flag that may hold white space itself, unquoted; it
/// is taken out first and becomes the first argument.
fn split_flags(flags: &str, include: &str) -> Vec<OsString> {
    let include = format!("-I{include}");
    let rest = flags.replace(&include, " ");
    std::iter::once(include.as_str()).chain(rest.split_whitespace()).map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_include_folder_with_a_space_stays_one_argument() {
        let include = "/Users/ada/Library/Application Support/llvm/include";
        let args = split_flags(&format!("-I{include} -std=c++17  -D_GNU_SOURCE\n"), include);
        assert_eq!(args, [&format!("-I{include}"), "-std=c++17", "-D_GNU_SOURCE"].map(OsString::from));
    }

    #[test]
    fn the_include_folder_is_added_when_the_answer_lacks_it() {
        assert_eq!(split_flags("-fno-rtti", "/opt/llvm/include"), ["-I/opt/llvm/include", "-fno-rtti"]);
    }
}

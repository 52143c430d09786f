//! The text that a run was trained on, wherever it lies now: its SHA-256 says which it is, its path only where it was.

use crate::Request;
use crate::cli::console::Console;
use crate::cli::downloads;
use crate::cli::exit::{Exit, Failure};
use moec_model::Registry;
use moec_runtime::Corpus;
use std::path::{Path, PathBuf};

/// SHA-256 of the text of a run; `None` for one of an earlier version that has saved nothing.
pub(crate) fn sha256(request: &Request, root: &Path) -> Option<String> {
    let saved = || moec_runtime::newest_whole(root, moec_runtime::read_manifest).ok().flatten();
    request.data_sha256.clone().or_else(|| saved().map(|(manifest, _)| manifest.data_sha256))
}

/// Finds the text of a run: where it was, or under any end of its path in a folder above one of `near` (the run, the spec).
///
/// # Errors
/// When it is nowhere there, or only other texts are.
pub(crate) fn find(
    request: &Request,
    expected: Option<&str>,
    near: &[&Path],
    registry: &Registry,
    console: &Console,
) -> Result<Corpus, Failure> {
    let is_it = |corpus: &Corpus| expected.is_none_or(|sha256| corpus.sha256() == sha256);
    let where_it_was = downloads::corpus(&request.data, registry, console);
    if let Ok(corpus) = &where_it_was
        && is_it(corpus)
    {
        return where_it_was;
    }
    if expected.is_some() {
        for path in candidates(Path::new(&request.data), near) {
            let Ok(corpus) = Corpus::from_path(&path) else { continue };
            if is_it(&corpus) {
                console.note(format!("the text {} is taken from {}", request.data, path.display()));
                return Ok(corpus);
            }
        }
    }
    let advice = "--data FILE says where the text lies; its SHA-256 tells whether it is the same";
    match where_it_was {
        Ok(_) => {
            let message = format!("{} is another text than the one that the run was trained on", request.data);
            Err(Failure::new(Exit::Data, message).help(advice))
        }
        Err(failure) => Err(failure.help(advice)),
    }
}

/// The files that may be meant.
fn candidates(data: &Path, near: &[&Path]) -> Vec<PathBuf> {
    let parts: Vec<_> = data.components().filter(|c| matches!(c, std::path::Component::Normal(_))).collect();
    let ends: Vec<PathBuf> = (0..parts.len()).map(|from| parts[from..].iter().collect()).collect();
    let mut found: Vec<PathBuf> = Vec::new();
    for folder in near {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let Ok(folder) = folder.canonicalize() else { continue };
        for above in folder.ancestors() {
            let here = ends.iter().map(|end| above.join(end)).filter(|path| path.is_file());
            found.extend(here);
        }
    }
    found.dedup();
    found
}

//! What a run is called if nobody names its folder: as its model, with what was overridden.

use crate::cli::exit::Failure;
use crate::cli::near;
use std::path::{Path, PathBuf};

/// The folder of the runs that are named by themselves, or by `--name`.
pub(crate) const RUNS: &str = "runs";

/// Characters of a name, at most: overrides that do not fit are left out, and a number tells such runs apart.
const LONGEST: usize = 64;

/// Overrides that say how long a run trains and how it is told. They make no other run of it: they can be changed when it goes
/// on.
const NO_OTHER_RUN: [&str; 5] = ["train.steps", "train.evaluate", "train.checkpoint", "train.log", "train.data"];

/// `tiny-width-64-lr-3e-4` for `-s width=64 -s train.optimizer.lr=3e-4`: letters that every shell and file system takes.
pub(crate) fn run_name(model: &str, set: &[String]) -> String {
    // The last one counts.
    let mut values: Vec<(&str, &str)> = Vec::new();
    for (path, value) in set.iter().filter_map(|given| given.split_once('=')) {
        let path = path.trim();
        values.retain(|(other, _)| *other != path);
        values.push((path, value.trim()));
    }
    let is_other = |path: &str| {
        let is_part =
            |whole: &str| path.strip_prefix(whole).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        !NO_OTHER_RUN.iter().any(|whole| is_part(whole))
    };
    let mut name = model.to_string();
    for (path, value) in values.into_iter().filter(|(path, _)| is_other(path)) {
        let word = path.rsplit_once('.').map_or(path, |(_, word)| word);
        let part = match (path.strip_prefix("train.freeze."), value) {
            (Some(part), "true") => format!("-frozen-{part}"),
            _ => format!("-{word}-{}", plain(value)),
        };
        if name.len() + part.len() <= LONGEST {
            name += &part;
        }
    }
    name
}

/// A value without what is special in a shell or a path: `lion(lr: 1e-4)` is `lion-lr-1e-4`.
fn plain(value: &str) -> String {
    let is_kept = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
    value.split(|c| !is_kept(c)).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
}

/// A name that `--name` gives.
pub(crate) fn given(name: &str) -> Result<PathBuf, String> {
    let is_plain = !name.contains(['/', '\\']) && !name.starts_with(['.', '-']) && !name.trim().is_empty();
    match name {
        "latest" => Err("`latest` is the link to the run that was trained last".into()),
        _ if !is_plain => Err("it is the name of a folder in `runs`; --out gives a path".into()),
        name => Ok(Path::new(RUNS).join(name)),
    }
}

/// Makes a run in `runs/NAME`, or `runs/NAME-2` and so on: the first that does not exist, also while others are started.
pub(crate) fn in_free_folder<T>(name: &str, create: impl FnOnce(&Path) -> Result<T, Failure>) -> Result<T, Failure> {
    let runs = Path::new(RUNS);
    std::fs::create_dir_all(runs).map_err(|e| Failure::file("make", runs, &e))?;
    let mut number = 1u64;
    let root = loop {
        let root = runs.join(if number == 1 { name.to_string() } else { format!("{name}-{number}") });
        // One of two processes makes it, and the other one is told that it is there.
        match std::fs::create_dir(&root) {
            Ok(()) => break root,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            Err(e) => return Err(Failure::file("make", &root, &e)),
        }
    };
    create(&root).inspect_err(|_| {
        // Only if nothing is in it; the error that matters is the first one.
        let _ = std::fs::remove_dir(&root);
    })
}

/// The run that was meant by a name that is no run: the one of that name in `runs`, also by the name of its spec, or else
/// one that is spelt alike, beside it or there.
pub(crate) fn meant(path: &Path) -> Option<PathBuf> {
    let is_spec = path.extension().is_some_and(|extension| extension == "moe");
    let run = Path::new(RUNS).join(if is_spec { path.file_stem()? } else { path.file_name()? });
    if run != path && run.join("spec.moe").is_file() {
        return Some(run);
    }
    near::run(path).or_else(|| near::run(&run))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_was_overridden() {
        let name = |set: &[&str]| run_name("tiny", &set.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(name(&[]), "tiny");
        assert_eq!(name(&["train.steps=20", "train.evaluate.batches=2", "train.log.every=1"]), "tiny");
        assert_eq!(name(&["width=64", "train.optimizer.lr=3e-4", "train.seed=2"]), "tiny-width-64-lr-3e-4-seed-2");
        assert_eq!(name(&["width=64", "train.batch=4", "width = 32"]), "tiny-batch-4-width-32");
        assert_eq!(name(&["train.optimizer=lion(lr: 1e-4)"]), "tiny-optimizer-lion-lr-1e-4");
        assert_eq!(name(&["train.freeze.experts=true", "train.freeze.trunk=true"]), "tiny-frozen-experts-frozen-trunk");
        assert_eq!(name(&["route=../../x $(y)"]), "tiny-route-..-..-x-y");
        let long = "1".repeat(LONGEST);
        assert_eq!(name(&[&format!("width={long}"), "heads=2"]), "tiny-heads-2");
    }

    #[test]
    fn a_name_is_no_path() {
        assert_eq!(given("high lr"), Ok(Path::new("runs").join("high lr")));
        for wrong in ["", " ", "a/b", "..", "../a", ".hidden", "-s", "latest", "a\\b"] {
            assert!(given(wrong).is_err(), "{wrong}");
        }
    }
}

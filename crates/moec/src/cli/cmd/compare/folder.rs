//! The folder of a comparison: its runs, its table, and tables that were there before.

use super::table::Comparison;
use crate::cli::console::Console;
use crate::cli::exit::Failure;
use moec_ir::Invariant;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// A comparison that is there already.
#[derive(Deserialize)]
struct Earlier {
    data_sha256: String,
    /// Of all specs; `None` if they have their own.
    steps: Option<u64>,
    seeds: u64,
    eval_batches: Option<u64>,
    specs: Vec<EarlierSpec>,
}

#[derive(Deserialize)]
struct EarlierSpec {
    label: String,
    /// Earlier versions had those of all.
    steps: Option<u64>,
}

impl Earlier {
    /// Whether all that it says is said by another one, too.
    fn is_part_of(&self, new: &Comparison) -> bool {
        let there = |spec: &EarlierSpec| {
            let steps = spec.steps.or(self.steps);
            new.specs.iter().any(|row| row.label == spec.label && Some(row.steps) == steps)
        };
        (&self.data_sha256, self.eval_batches) == (&new.data_sha256, new.eval_batches)
            && self.seeds <= new.seeds
            && self.specs.iter().all(there)
    }
}

/// Puts a table aside that says something which the new one does not. (Its curves can be made again: they are in the runs.)
///
/// # Errors
/// When it cannot be renamed.
pub(super) fn keep_earlier(folder: &Path, new: &Comparison, console: &Console) -> Result<(), Failure> {
    let names = |number: &str| [format!("compare{number}.json"), format!("compare{number}.md")];
    let path = |name: &String| folder.join(name);
    let now = names("");
    let earlier =
        std::fs::read_to_string(path(&now[0])).ok().and_then(|text| serde_json::from_str::<Earlier>(&text).ok());
    if earlier.is_some_and(|earlier| earlier.is_part_of(new)) || !now.iter().any(|name| path(name).exists()) {
        return Ok(());
    }
    let free = (1u64..).map(|n| names(&format!("-{n}"))).find(|names| !names.iter().any(|name| path(name).exists()));
    let aside = free.invariant("there is a number that no file has");
    for (from, to) in now.iter().zip(&aside).filter(|(from, _)| path(from).exists()) {
        std::fs::rename(path(from), path(to)).map_err(|e| Failure::file("rename", &path(from), &e))?;
    }
    console.note(format!("the earlier table, of other specs or budgets, is now {}", path(&aside[1]).display()));
    Ok(())
}

/// The runs in the folder of a comparison, spec by spec and seed by seed; none in any other folder.
pub(in crate::cli) fn runs_in(folder: &Path) -> Vec<PathBuf> {
    let folders_in = |folder: &Path| {
        let found = std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        let mut found: Vec<PathBuf> = found.filter(|path| path.is_dir()).collect();
        found.sort();
        found
    };
    if folder.join("spec.moe").exists() {
        return Vec::new();
    }
    let seed = |path: &PathBuf| -> Option<u64> { path.file_name()?.to_str()?.strip_prefix("seed-")?.parse().ok() };
    let runs_of = |spec: PathBuf| {
        let mut runs: Vec<PathBuf> =
            folders_in(&spec).into_iter().filter(|run| seed(run).is_some() && run.join("spec.moe").exists()).collect();
        runs.sort_by_key(seed);
        runs
    };
    folders_in(folder).into_iter().flat_map(runs_of).collect()
}

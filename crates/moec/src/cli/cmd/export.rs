//! `moec export`: a run's model for other programs, each format in a file of its own.

mod hugging_face;
mod makemoe;
mod pytorch;

use crate::Run;
use crate::cli::args::{ExportArgs, ExportFormat};
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output;
use crate::interchange::Remarks;
use moec_ir::{Precision, Tensor};
use moec_model::Registry;
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::path::{Path, PathBuf};

/// Runs the command.
///
/// # Errors
/// When the run is wrong, its model cannot be written in the format, or what is to be written is there or cannot be written.
pub(crate) fn run(args: &ExportArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    match args.to {
        ExportFormat::Makemoe => makemoe::run(args, registry, console),
        ExportFormat::Hf => hugging_face::run(args, registry, console),
        ExportFormat::Pytorch => pytorch::run(args, registry, console),
    }
}

/// Says what was put into the weights, and what else is to be known of a model in the hands of `whose`.
fn say(console: &Console, remarks: &Remarks, run: &Run, whose: &str) {
    remarks.folds.iter().chain(&remarks.notes).for_each(|remark| console.note_fitted(remark));
    if run.spec.checked.recipe.precision != Precision::F32 {
        console
            .note_fitted(format!("this run rounds products to bfloat16, which {whose} does not unless it is told to"));
    }
}

/// A folder that is not there, is empty, or may be written over; `files` names what is written.
///
/// # Errors
/// When it holds anything that must stay, or is no folder.
fn may_be_written(folder: &Path, force: bool, files: &str) -> Result<(), Failure> {
    match fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            Some(_) if !force => {
                let message = format!("{} is not empty", folder.display());
                Err(Failure::new(Exit::Failure, message).help(format!("--force writes {files} into it")))
            }
            _ => Ok(()),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            let message = format!("cannot write {}: it is no folder", folder.display());
            Err(Failure::new(Exit::Usage, message).help(format!("{files} are written into a folder")))
        }
        Err(e) => Err(Failure::file("read", folder, &e)),
    }
}

/// Refuses the folder of the run, and those that moec keeps within it.
///
/// # Errors
/// When it is one of them.
fn is_apart(folder: &Path, root: &Path) -> Result<(), Failure> {
    let Ok(root) = root.canonicalize() else { return Ok(()) };
    let at = resolved(folder);
    if at != root && !["checkpoints", "samples"].iter().any(|kept| at.starts_with(root.join(kept))) {
        return Ok(());
    }
    let message = format!("cannot write {}: it is a folder of the run", folder.display());
    Err(Failure::new(Exit::Usage, message).help("write to another folder"))
}

/// Where a path leads, also one of what is not there yet.
fn resolved(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    for above in path.ancestors() {
        let there = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        if let Ok(there) = there.canonicalize() {
            return missing.iter().rev().fold(there, |path, name| path.join(name));
        }
        missing.extend(above.file_name());
    }
    path.to_path_buf()
}

/// A folder with a model: its parameters, and files beside them that whoever may read these may read.
struct Folder<'p> {
    path: &'p Path,
    permissions: Permissions,
}

impl<'p> Folder<'p> {
    /// Makes the folder and writes the parameters. `last` is the file without which the others are no model: one of another
    /// model is removed first, so that it never stands beside what is not its own.
    ///
    /// # Errors
    /// When the system refuses.
    fn new(path: &'p Path, last: &str, tensors: &BTreeMap<String, Tensor>) -> Result<Self, Failure> {
        fs::create_dir_all(path).map_err(|e| Failure::file("make", path, &e))?;
        let before = path.join(last);
        match fs::remove_file(&before) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Failure::file("replace", &before, &e)),
            _ => {}
        }
        let file = path.join("model.safetensors");
        moec_runtime::write_tensors(&file, tensors)?;
        let permissions = fs::metadata(&file).map_err(|e| Failure::file("read", &file, &e))?.permissions();
        Ok(Self { path, permissions })
    }

    /// Writes a text beside the parameters, whole or not at all.
    ///
    /// # Errors
    /// When the system refuses.
    fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        let path = self.path.join(name);
        let written = output::write_whole(&path, text.as_bytes(), Some(self.permissions.clone()));
        written.map_err(|e| Failure::file("write", &path, &e))
    }
}

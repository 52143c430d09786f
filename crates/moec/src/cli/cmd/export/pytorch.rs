//! `moec export --to pytorch`: a run's model as a folder with source code for PyTorch, parameters and vocabulary.

use crate::Run;
use crate::cli::args::ExportArgs;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output;
use crate::pipeline::{CompileOptions, Function};
use crate::{Device, pytorch};
use moec_model::Registry;
use std::fs;
use std::path::Path;

/// Writes the folder.
///
/// # Errors
/// When the run is wrong, its model cannot be written, or the folder is in use or cannot be written.
pub(super) fn run(args: &ExportArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    let folder = args.target();
    may_be_written(folder, args.force)?;
    let run = Run::open(&args.run, registry, Device::Cpu, |_, _| -> Result<_, Failure> {
        Ok(CompileOptions::only([Function::Logits]))
    })?;
    console.passed_over(&run.passed_over, run.checkpoint.manifest.step);
    if is_of_run(folder, &run.root) {
        let message = format!("cannot write {}: it is a folder of the run", folder.display());
        return Err(Failure::new(Exit::Usage, message).help("write to another folder"));
    }
    let (model, recipe) = (&run.spec.checked.model, &run.spec.checked.recipe);
    let mut spec = run.spec.source.text().to_string();
    for value in &run.request.set {
        spec += &format!("\n# with -s {value}");
    }
    let text = pytorch::source(model, recipe, run.vocab.len(), &spec)
        .map_err(|e| Failure::new(Exit::Failure, format!("this model cannot be written for PyTorch: {e}")))?;
    let characters: Vec<char> = run.vocab.to_text().chars().collect();

    fs::create_dir_all(folder).map_err(|e| Failure::file("make", folder, &e))?;
    // `model.py` comes last: where it is, the others are.
    let tensors = folder.join("model.safetensors");
    moec_runtime::write_tensors(&tensors, &run.checkpoint.tensors)?;
    let permissions = fs::metadata(&tensors).map_err(|e| Failure::file("read", &tensors, &e))?.permissions();
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        let written = output::write_whole(&path, text.as_bytes(), Some(permissions.clone()));
        written.map_err(|e| Failure::file("write", &path, &e))
    };
    write("vocabulary.json", &format!("{}\n", serde_json::json!(characters)))?;
    write("model.py", &text)?;
    let step = run.checkpoint.manifest.step;
    let count = run.checkpoint.tensors.len();
    console.note(format!("wrote the model of step {step} with {count} tensors to {}", folder.display()));
    console.note(format!("python {} --prompt TEXT", folder.join("model.py").display()));
    Ok(Exit::Success)
}

/// A folder that is not there, is empty, or may be written over.
fn may_be_written(folder: &Path, force: bool) -> Result<(), Failure> {
    match fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            Some(_) if !force => {
                let message = format!("{} is not empty", folder.display());
                Err(Failure::new(Exit::Failure, message)
                    .help("--force writes model.py, model.safetensors and vocabulary.json into it"))
            }
            _ => Ok(()),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            let message = format!("cannot write {}: it is no folder", folder.display());
            Err(Failure::new(Exit::Usage, message).help("`--to pytorch` writes a folder with several files"))
        }
        Err(e) => Err(Failure::file("read", folder, &e)),
    }
}

/// Whether a folder is that of the run, or within those that moec keeps there.
fn is_of_run(folder: &Path, root: &Path) -> bool {
    let (Ok(folder), Ok(root)) = (folder.canonicalize(), root.canonicalize()) else { return false };
    folder == root || folder.starts_with(root.join("checkpoints"))
}

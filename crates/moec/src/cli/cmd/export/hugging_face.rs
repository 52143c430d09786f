//! `moec export --to hf`: a folder that Hugging Face's `transformers` reads.

use crate::cli::args::ExportArgs;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::interchange::hugging_face::of_model;
use crate::interchange::vocabulary;
use crate::pipeline::{CompileOptions, Function};
use crate::{Device, Run};
use moec_model::Registry;

/// Writes `config.json`, `model.safetensors` and `vocabulary.json`.
///
/// # Errors
/// When the run is wrong, no class computes its model, or the folder holds anything or cannot be written.
pub(super) fn run(args: &ExportArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    let folder = args.target();
    super::may_be_written(folder, args.force, "config.json, model.safetensors and vocabulary.json")?;
    let run = Run::open(&args.run, registry, Device::Cpu, |_, _| -> Result<_, Failure> {
        Ok(CompileOptions::only([Function::Logits]))
    })?;
    console.opened(&run);
    super::is_apart(folder, &run.root)?;
    let fit = of_model(&run.spec.checked.model, run.vocab.len())
        .map_err(|obstacles| Failure::source(run.spec.source.clone(), obstacles, Exit::Usage))?;
    let network = &fit.network;
    let mut tensors = moec_runtime::export_tensors(&run.checkpoint.tensors, &run.compiled.states, &|name, shape| {
        network.pieces(name, shape)
    })?;
    fit.apply(&mut tensors);
    let folder = super::Folder::new(folder, "config.json", &tensors)?;
    folder.write("vocabulary.json", &vocabulary::written(&run.vocab))?;
    // Last: a folder without it is none of transformers.
    folder.write("config.json", &format!("{:#}\n", network.config()))?;
    let folder = folder.path;
    console.note(format!(
        "wrote a {} of {} tensors to {}",
        network.architecture.class(),
        tensors.len(),
        folder.display()
    ));
    super::say(console, &fit.remarks, &run, "transformers");
    console.note_fitted("there is no tokenizer: token I is the I-th character of vocabulary.json, counted from 0");
    Ok(Exit::Success)
}

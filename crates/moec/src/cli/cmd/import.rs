//! `moec import`: a run from a model of another program, each format in a file of its own.

mod hugging_face;
mod makemoe;

use crate::cli::args::{ImportArgs, ImportFormat};
use crate::cli::assembly;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::pipeline::{CompileOptions, Function};
use crate::{Device, Spec};
use moec_ir::Tensor;
use moec_model::Registry;
use moec_plan::Program;
use moec_runtime::{Corpus, Dataset, ExchangeError, Vocab};
use std::collections::BTreeMap;

/// Runs the command: the run begins at step 0 with the imported parameters, ready to be sampled, evaluated or trained
/// further.
///
/// # Errors
/// When the model, the spec, the data or the run folder is wrong.
pub(crate) fn run(args: &ImportArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    // Without a spec it is a folder that is meant.
    if args.spec.is_none()
        && let Err(e) = std::fs::metadata(&args.file)
    {
        return Err(Failure::new(Exit::Data, Failure::file("read", &args.file, &e).to_string()));
    }
    assembly::require_free(Some(&args.out))?;
    let is_hugging_face = args.file.join("config.json").is_file();
    match args.from {
        Some(ImportFormat::Hf) => hugging_face::run(args, registry, console),
        None if is_hugging_face => hugging_face::run(args, registry, console),
        Some(ImportFormat::Makemoe) | None => makemoe::run(args, registry, console),
    }
}

/// A model with what it was trained on.
struct Imported<'a> {
    spec: &'a Spec,
    corpus: &'a Corpus,
    vocab: Vocab,
}

impl Imported<'_> {
    /// Saves a run with parameters that are told from the program; `count` is the number of tensors they came in.
    ///
    /// # Errors
    /// When the model cannot be compiled, the parameters do not fit, or the folder cannot be written.
    fn save(
        self,
        args: &ImportArgs,
        console: &Console,
        count: usize,
        parameters: impl FnOnce(&Program) -> Result<BTreeMap<String, Tensor>, ExchangeError>,
    ) -> Result<Exit, Failure> {
        let Self { spec, corpus, vocab } = self;
        let compiled = spec.compile(&vocab, Device::Cpu, &CompileOptions::only([Function::TrainStep]))?;
        let program = &compiled.program;
        let mut tensors = parameters(program)?;
        let seed = spec.checked.recipe.seed;
        let dataset = Dataset::new(corpus, vocab.clone(), spec.checked.recipe.split)?;
        let states = crate::initial_states(&compiled.lowered.states, &dataset, spec.folder())?;
        for (name, tensor) in moec_runtime::initial_tensors(seed, &program.states, &[], &states) {
            tensors.entry(name).or_insert(tensor);
        }
        assembly::made_whole(&args.out, |root| {
            let folder = spec.create_run_with_plan(root, &dataset, "")?;
            assembly::save_beginning(&folder, (spec, &vocab), &program.states, &tensors, &dataset)
        })?;
        console.note(format!("imported {count} tensors into {}", args.out.display()));
        Ok(Exit::Success)
    }
}

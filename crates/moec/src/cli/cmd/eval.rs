//! `moec eval`: mean cross-entropy of a trained model on a text.

use crate::Run;
use crate::cli::args::{EvalArgs, SplitName};
use crate::cli::console::Console;
use crate::cli::devices::Devices;
use crate::cli::exit::{Exit, Failure};
use crate::cli::units::grouped;
use crate::cli::{balance, downloads, run_text};
use crate::pipeline::{CompileOptions, Function};
use moec_model::Registry;
use moec_runtime::{Dataset, Split};
use serde_json::json;
use std::ops::ControlFlow;

/// Runs the command.
///
/// # Errors
/// When the run or the data is wrong, or the device fails.
pub(crate) fn run(args: &EvalArgs, registry: &Registry, devices: Devices, console: &Console) -> Result<Exit, Failure> {
    let run = Run::open(&args.run, registry, args.device, |_, _| -> Result<_, Failure> {
        Ok(CompileOptions::only([Function::Evaluate, Function::Logits]))
    })?;
    console.opened(&run);
    let corpus = match &args.data {
        Some(data) => downloads::corpus(data, registry, console)?,
        None => {
            let sha256 = &run.checkpoint.manifest.data_sha256;
            run_text::find(&run.request, Some(sha256), &[&run.root], registry, console)?
        }
    };
    let recipe = &run.spec.checked.recipe;
    // A run that held nothing out can be evaluated on what it was trained on.
    let default = if recipe.split < 1.0 { SplitName::Val } else { SplitName::Train };
    let (split, fraction, name) = match args.split.unwrap_or(default) {
        SplitName::Train => (Split::Train, recipe.split, "train"),
        SplitName::Val => (Split::Validation, recipe.split, "val"),
        SplitName::All => (Split::Train, 1.0, "all"),
    };
    let dataset = Dataset::new(&corpus, run.vocab.clone(), fraction)?;
    let mut told = 0;
    let mut progress = |done: usize, all: usize| {
        // A line for every tenth part of a long evaluation.
        if all >= 1000 && done * 10 / all > told {
            told = done * 10 / all;
            console.note(format!("{} of {} windows", grouped(done as u64), grouped(all as u64)));
        }
        ControlFlow::Continue(())
    };
    let mut session = run.session_on(&*devices.open(args.device)?)?;
    let most = args.batches.map(|n| usize::try_from(n).unwrap_or(usize::MAX).saturating_mul(recipe.batch));
    let loss =
        moec_runtime::evaluate_split(&mut session.executable()?, &dataset, split, recipe.seed, most, &mut progress)?;
    let loss = loss.ok_or_else(|| Failure::new(Exit::Failure, "the evaluation was stopped"))?;
    let bits = loss.loss_nats / std::f64::consts::LN_2;
    if args.json {
        console.json(&json!({
            "schema": "moec.eval/1",
            "run": run.root.display().to_string(),
            "step": run.checkpoint.manifest.step,
            "data": corpus.name(),
            "split": name,
            "loss_nats": loss.loss_nats,
            "bits_per_character": bits,
            "perplexity": loss.loss_nats.exp(),
            "windows": loss.windows,
            "characters": loss.characters,
            "left_over_characters": loss.left_over,
            "active_parameters": loss.active_parameters,
            "layers": loss.layers,
        }))?;
    } else {
        console.prose(&format!(
            "loss {:.4} nats ({bits:.4} bits per character, perplexity {:.3}) over {} characters of {} ({name}), step {}\n",
            loss.loss_nats,
            loss.loss_nats.exp(),
            grouped(loss.characters as u64),
            corpus.name(),
            run.checkpoint.manifest.step
        ))?;
        if let Some(active) = loss.active_parameters {
            let active = grouped(active.round() as u64);
            console.prose(&format!("{active} parameters active per token, as measured\n"))?;
            for line in balance::panel(&loss.layers, console.columns()) {
                console.out(line)?;
            }
        }
    }
    Ok(Exit::Success)
}

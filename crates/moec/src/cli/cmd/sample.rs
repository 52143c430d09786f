//! `moec sample`: texts from a trained model, streamed to standard output.

use crate::cli::args::SampleArgs;
use crate::cli::console::Console;
use crate::cli::devices::Devices;
use crate::cli::exit::{Exit, Failure};
use crate::cli::kernel_table::KernelTable;
use crate::pipeline::CompileOptions;
use crate::{Run, Sampling};
use moec_ir::{Function, Invariant, WeightFormat};
use moec_model::Registry;
use moec_runtime::{SampleConfig, Timings};
use std::ops::ControlFlow;

/// Runs the command. The prompt is part of the text that is written.
///
/// # Errors
/// When the run, the prompt or a setting is wrong, or the device fails.
pub(crate) fn run(
    args: &SampleArgs,
    registry: &Registry,
    devices: Devices,
    console: &Console,
) -> Result<Exit, Failure> {
    let config = SampleConfig {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: args.seed,
        length: args.length,
    };
    config.check()?;
    if args.weights != WeightFormat::F32 && args.device.launch_limits().panel.is_none() {
        let (weights, device) = (args.weights.name(), args.device.name());
        console.note(format!(
            "--weights {weights} will not be faster here than f32: on {device} all weights are unpacked for every character"
        ));
    }
    let mut sampling = None;
    let run = Run::open(&args.run, registry, args.device, |model, vocab| -> Result<_, Failure> {
        // What is wrong with the prompt or the mode is found before anything is compiled.
        let prompt = vocab.encode(&args.prompt);
        let prompt = prompt.map_err(|e| Failure::new(Exit::Usage, format!("the prompt cannot be read: {e}")))?;
        let chosen = Sampling::new(model, args.decode, args.samples, prompt.len(), args.length)?;
        let samples = usize::try_from(chosen.together).invariant("few texts are written together");
        let only = CompileOptions::only(chosen.functions.clone());
        let options = CompileOptions { samples, weights: Some(args.weights), ..only };
        sampling = Some(chosen);
        Ok(options)
    })?;
    console.opened(&run);
    let Some(Sampling { kept, together, functions }) = sampling else { return Ok(Exit::Success) };
    let Some(end) = args.number.checked_add(args.samples) else {
        return Err(Failure::new(Exit::Usage, "the numbers of the texts go beyond what a number can be"));
    };
    let mut session = run.session_on(&*devices.open(args.device)?)?;
    // Of two functions the second writes the characters beyond the context.
    let timed = args.profile.then(|| functions.last().copied()).flatten();
    if let Some(function) = timed {
        session.time_kernels(function);
    }
    let executable = &mut session.executable()?;
    let mut first = args.number;
    while first < end {
        let group = first..end.min(first.saturating_add(together));
        first = group.end;
        // One text is shown as it is written; several would be mixed up.
        let alone = group.end - group.start == 1;
        let head = |number: u64| match args.samples {
            1 => args.prompt.clone(),
            _ => format!("--- sample {number} ---\n{}", args.prompt),
        };
        if alone {
            console.write(&head(group.start))?;
        }
        let texts = console.stream(|emit| {
            let mut show = |_: u64, text: &str| if alone { emit(text) } else { ControlFlow::Continue(()) };
            let numbers = group.clone();
            Ok(moec_runtime::sample(executable, &run.vocab, &args.prompt, numbers, kept, &config, &mut show)?)
        })?;
        for (number, text) in group.zip(texts) {
            if !alone {
                console.write(&head(number))?;
                console.write(&text)?;
            }
            console.write("\n")?;
        }
    }
    match timed {
        Some(function) => show_profile(&run, function, session.timings(), console),
        None if args.profile => console.note("nothing was written, so there is no profile"),
        None => {}
    }
    Ok(Exit::Success)
}

/// Where the time of a character goes.
fn show_profile(run: &Run, function: Function, timings: &Timings, console: &Console) {
    let Some(plan) = run.compiled.program.plan(function.name()) else { return };
    if timings.runs() == 0 {
        console.note(format!("`{function}` did not run after the first time, so there is no profile"));
        return;
    }
    console.note(format!(
        "\nmedians of the last {} runs of `{function}`, {:.3} ms each:",
        timings.runs(),
        1e3 * timings.total().as_secs_f64()
    ));
    console.note(KernelTable::new(plan, timings, None).text(console.columns_of_remarks()));
}

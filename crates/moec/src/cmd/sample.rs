//! `moec sample`: text from a trained model, streamed to standard output.

use crate::args::SampleArgs;
use crate::console::Console;
use crate::exit::{Exit, Failure};
use crate::prepared::Run;
use moec_model::Registry;
use moec_runtime::SampleConfig;

/// Runs the command. The prompt is part of the text that is written.
///
/// # Errors
/// When the run, the prompt or a setting is wrong, or the device fails.
pub fn run(args: &SampleArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    let config = SampleConfig {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: args.seed,
        length: args.length,
    };
    config.check()?;
    let run = Run::open(&args.run, registry, args.device)?;
    // An unknown character is found before the device is opened.
    run.vocab.encode(&args.prompt).map_err(|e| Failure::new(Exit::Usage, format!("the prompt cannot be read: {e}")))?;
    run.on_device(args.device, |executable| {
        console.write(&args.prompt)?;
        console.stream(|emit| Ok(moec_runtime::sample(executable, &run.vocab, &args.prompt, 0, &config, emit)?))?;
        console.write("\n")
    })?;
    Ok(Exit::Success)
}

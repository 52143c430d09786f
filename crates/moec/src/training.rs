//! What every command that trains has in common: the recipe as the loop's configuration, the first or restored tensors,
//! and signals.

use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::pipeline::Compiled;
use crate::prepared;
use moec_model::{Recipe, Schedule as RecipeSchedule};
use moec_runtime::{Dataset, Decay, Executable, RunFolder, Schedule, TrainConfig};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The recipe as the loop takes it.
pub(crate) fn config(recipe: &Recipe) -> TrainConfig {
    let lr = recipe.optimizer.lr;
    let schedule = match recipe.schedule {
        RecipeSchedule::Constant => Schedule::constant(lr),
        RecipeSchedule::Cosine { warmup, min_lr } => Schedule { lr, warmup, decay: Decay::Cosine { min_lr } },
    };
    TrainConfig {
        steps: recipe.steps,
        seed: recipe.seed,
        schedule,
        beta1: recipe.optimizer.beta1,
        beta2: recipe.optimizer.beta2,
        log_every: recipe.log_every,
        evaluate_every: recipe.evaluate.every,
        evaluate_batches: usize::try_from(recipe.evaluate.batches).unwrap_or(usize::MAX),
        checkpoint_every: recipe.checkpoint_every,
        keep: None,
    }
}

/// Puts the tensors that a run goes on with on the device, its newest checkpoint's or the first ones, and returns their
/// step.
///
/// # Errors
/// When the checkpoint is damaged or of another model, spec, text or seed, or the device fails.
pub(crate) fn begin(
    executable: &mut Executable<'_>,
    compiled: &Compiled,
    dataset: &Dataset,
    folder: &RunFolder,
    config: &TrainConfig,
) -> Result<u64, Failure> {
    if let Some(step) = moec_runtime::resume(executable, dataset, folder, config)? {
        return Ok(step);
    }
    let lowered = &compiled.lowered;
    let states = prepared::initial_states(&lowered.states, dataset)?;
    moec_runtime::initialise(executable, config.seed, &lowered.parameters, &states)?;
    Ok(0)
}

/// The plan as a run keeps it.
pub(crate) fn plan_text(compiled: &Compiled) -> Result<String, Failure> {
    let listing = moec_plan::listing(&compiled.program);
    serde_yaml::to_string(&listing).map_err(|e| Failure::new(Exit::Failure, format!("cannot write the plan: {e}")))
}

/// A second signal leaves at once, if it comes this long after the first: programs that stop others often send the same
/// signal to a process and to its group, and that must not cost the checkpoint.
const SECOND_THOUGHT: Duration = Duration::from_millis(700);

/// SIGINT and SIGTERM: the first finishes the step and saves, a later one leaves at once with the last checkpoint intact.
pub(crate) struct Signals {
    /// Set by the first signal.
    pub(crate) stop: Arc<AtomicBool>,
    terminated: Arc<AtomicBool>,
}

impl Signals {
    /// Listens from here on.
    pub(crate) fn listen(console: Console) -> Result<Self, Failure> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        let (stop, terminated) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let failed = |e: std::io::Error| Failure::new(Exit::Failure, format!("cannot listen for signals: {e}"));
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
        let (stopping, terminating) = (stop.clone(), terminated.clone());
        let listen = move || {
            let mut first: Option<Instant> = None;
            for signal in signals.forever() {
                match first {
                    None => {
                        first = Some(Instant::now());
                        terminating.store(signal == SIGTERM, Ordering::Relaxed);
                        stopping.store(true, Ordering::Relaxed);
                        console.note("stopping after this step and saving; once more to leave without saving");
                    }
                    Some(first) if first.elapsed() >= SECOND_THOUGHT => {
                        console.note("left without saving; the last checkpoint is intact");
                        std::process::exit(Exit::Failure as i32);
                    }
                    Some(_) => {}
                }
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen).map_err(failed)?;
        Ok(Self { stop, terminated })
    }

    /// Whether a signal asked to stop.
    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The exit code of a command that was asked to stop.
    pub(crate) fn exit(&self) -> Exit {
        if self.terminated.load(Ordering::Relaxed) { Exit::Terminated } else { Exit::Interrupted }
    }
}

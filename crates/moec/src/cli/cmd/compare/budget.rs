//! What every variant may cost: equally many steps, minutes of training, or operations.
//!
//! Whatever the budget, a training is a number of steps that is known before it begins, so that its learning rate comes to
//! its end with it, and so that it can be stopped, resumed and made again. Operations of a step are counted by the compiler.
//! The time of a step is measured once for each variant before anything is trained, and kept beside its runs: another
//! measurement would be another number of steps.

use super::runs::json_text;
use crate::cli::args::BudgetArgs;
use crate::cli::exit::{Exit, Failure};
use crate::cli::kernel_table::flops_of_step;
use crate::cli::signals::Signals;
use crate::cli::units::scaled;
use crate::pipeline::Compiled;
use crate::{Session, Spec, train_config};
use moec_plan::Backend;
use moec_runtime::{Dataset, TrainConfig, train_loss, train_step};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;

/// Version of [`Pace`].
const PACE_SCHEMA: &str = "moec.compare.pace/1";

/// Steps before those that are timed: what the first ones leave behind is warmed up.
const WARM_UP: u64 = 3;

/// Steps that are timed at least, and seconds after which no further one is.
const TIMED: (u64, f64) = (10, 3.0);

/// Seconds after which a step is timed by what there is.
const LONGEST: f64 = 60.0;

/// What every variant may cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(in crate::cli::cmd) enum Budget {
    /// The steps of the recipe or of `--steps`.
    Steps { steps: Option<u64> },
    /// Training time, without evaluations and checkpoints.
    Minutes { minutes: f64 },
    /// Operations of the products of training steps.
    Flops { flops: f64 },
}

impl Budget {
    /// What is asked for; the recipes' steps if nothing is.
    pub(in crate::cli::cmd) fn of(args: &BudgetArgs) -> Self {
        match (args.minutes, args.flops) {
            (Some(minutes), _) => Budget::Minutes { minutes },
            (_, Some(flops)) => Budget::Flops { flops },
            _ => Budget::Steps { steps: args.steps },
        }
    }

    /// The number of steps, if every variant makes as many and that was said.
    pub(in crate::cli::cmd) fn steps(self) -> Option<u64> {
        if let Budget::Steps { steps } = self { steps } else { None }
    }

    /// Whether variants may make other numbers of steps, of batches of other sizes.
    pub(in crate::cli::cmd) fn counts_cost(self) -> bool {
        !matches!(self, Budget::Steps { .. })
    }

    /// `2 minutes of training`.
    pub(in crate::cli::cmd) fn text(self) -> String {
        match self {
            Budget::Steps { steps: Some(steps) } => format!("{steps} steps"),
            Budget::Steps { steps: None } => "the steps of the recipe".to_string(),
            Budget::Minutes { minutes: 1.0 } => "a minute of training".to_string(),
            Budget::Minutes { minutes } => format!("{minutes} minutes of training"),
            Budget::Flops { flops } => format!("{}FLOP of training", spaced(flops)),
        }
    }

    /// Steps that a variant can make of it, if they cost so much; `None` where that is known without.
    ///
    /// # Errors
    /// When it is not enough for one step.
    pub(in crate::cli::cmd) fn steps_of(self, label: &str, cost: &Cost) -> Result<Option<u64>, Failure> {
        let (have, each) = match (self, cost.step_ms) {
            (Budget::Minutes { minutes }, Some(step_ms)) => (60e3 * minutes, step_ms),
            (Budget::Flops { flops }, _) => (flops, cost.flops),
            _ => return Ok(None),
        };
        let steps = (have / each).floor();
        if steps < 1.0 {
            let each = match self {
                Budget::Flops { .. } => format!("{}FLOP", spaced(each)),
                _ => format!("{each:.0} ms"),
            };
            let message = format!("{} are not enough for a step of {label}, which takes {each}", self.text());
            return Err(Failure::new(Exit::Usage, message).help("give a larger budget"));
        }
        Ok(Some(steps as u64))
    }
}

/// `1.50 T`, with a blank behind a number without a prefix, too.
fn spaced(n: f64) -> String {
    let text = scaled(n);
    if text.contains(' ') { text } else { text + " " }
}

/// What a step of a variant costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cli::cmd) struct Cost {
    /// Operations of its products.
    pub(in crate::cli::cmd) flops: f64,
    /// Time, where that was measured beforehand.
    pub(in crate::cli::cmd) step_ms: Option<f64>,
}

impl Cost {
    /// What the compiler counts.
    pub(in crate::cli::cmd) fn counted(spec: &Spec, compiled: &Compiled) -> Self {
        Self { flops: flops_of_step(&compiled.program, spec.checked.recipe.accumulate), step_ms: None }
    }
}

/// The time of a step, as it was measured once.
#[derive(Debug, Serialize, Deserialize)]
struct Pace {
    schema: String,
    device: String,
    /// SHA-256 of what was measured: the text and what is overridden.
    model_sha256: String,
    step_ms: f64,
}

/// The median time of a step, from the folder of a variant or else measured and written there; `None` if a signal came.
///
/// # Errors
/// When the device fails, training diverges at once, or the folder cannot be written.
pub(in crate::cli::cmd) fn pace(
    folder: &Path,
    device: &str,
    (spec, set): (&Spec, &[String]),
    compiled: &Compiled,
    dataset: &Dataset,
    backend: &dyn Backend,
    signals: &Signals,
) -> Result<Option<f64>, Failure> {
    let path = folder.join("pace.json");
    let model_sha256 = moec_runtime::sha256_hex(format!("{}\n{}", spec.source.text(), set.join("\n")).as_bytes());
    let kept = std::fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str::<Pace>(&text).ok());
    let is_same = |pace: &Pace| {
        pace.schema == PACE_SCHEMA && pace.device == device && pace.model_sha256 == model_sha256 && pace.step_ms > 0.0
    };
    if let Some(pace) = kept.filter(is_same) {
        return Ok(Some(pace.step_ms));
    }
    let Some(step_ms) = measured(spec, compiled, dataset, backend, signals)? else { return Ok(None) };
    std::fs::create_dir_all(folder).map_err(|e| Failure::file("make", folder, &e))?;
    let pace = Pace { schema: PACE_SCHEMA.to_string(), device: device.to_string(), model_sha256, step_ms };
    std::fs::write(&path, json_text(&pace)?).map_err(|e| Failure::file("write", &path, &e))?;
    Ok(Some(step_ms))
}

/// Makes some steps that nobody keeps, and takes the median of their times.
fn measured(
    spec: &Spec,
    compiled: &Compiled,
    dataset: &Dataset,
    backend: &dyn Backend,
    signals: &Signals,
) -> Result<Option<f64>, Failure> {
    let config = TrainConfig { steps: u64::MAX, ..train_config(&spec.checked.recipe) };
    let mut session = Session::on(backend, spec, compiled)?;
    session.initialise(dataset, config.seed)?;
    let mut executable = session.executable()?;
    let (begun, mut times) = (Instant::now(), Vec::new());
    for step in 0.. {
        if signals.stopping() {
            return Ok(None);
        }
        let since = Instant::now();
        train_step(&mut executable, dataset, &config, step)?;
        train_loss(&mut executable)?;
        // A clock that stands still must not make the speed infinite.
        times.push((1e3 * since.elapsed().as_secs_f64()).max(1e-3));
        let (made, spent) = (step + 1, begun.elapsed().as_secs_f64());
        if (made >= WARM_UP + TIMED.0 && spent >= TIMED.1) || spent >= LONGEST {
            break;
        }
    }
    let warm = times.split_off(times.len().min(WARM_UP as usize));
    Ok(super::statistics::median(if warm.is_empty() { times } else { warm }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_number_of_steps() {
        let cost = Cost { flops: 2e9, step_ms: Some(50.0) };
        let of = |budget: Budget| budget.steps_of("a", &cost);
        assert_eq!(of(Budget::Minutes { minutes: 2.0 }).unwrap(), Some(2400));
        assert_eq!(of(Budget::Flops { flops: 1e12 }).unwrap(), Some(500));
        assert_eq!(of(Budget::Steps { steps: Some(7) }).unwrap(), None);
        let little = of(Budget::Flops { flops: 1e9 }).unwrap_err().to_string();
        assert_eq!(little, "1.00 GFLOP of training are not enough for a step of a, which takes 2.00 GFLOP");
        assert!(of(Budget::Minutes { minutes: 1e-4 }).unwrap_err().to_string().contains("takes 50 ms"));
    }
}

//! `moec extract`: one expert of a mixture as a dense run.

use crate::cli::args::ExtractArgs;
use crate::cli::assembly::{self, Assembled};
use crate::cli::console::Console;
use crate::cli::devices::Devices;
use crate::cli::exit::{Exit, Failure};
use crate::cli::units::grouped;
use crate::surgery::{self, Subject};
use moec_model::Registry;

/// Runs the command.
///
/// # Errors
/// When the run or the text is wrong, or there is no such expert.
pub(crate) fn run(
    args: &ExtractArgs,
    registry: &Registry,
    devices: Devices,
    console: &Console,
) -> Result<Exit, Failure> {
    assembly::require_free(args.check.out.as_deref())?;
    let run = assembly::open(&args.run, registry, console)?;
    let name = format!("{}-expert-{}", assembly::name_of(&run.root), args.expert);
    let (corpus, text) = assembly::texts(args.check.data.as_deref(), &args.run, registry, console)?;
    let run = Subject::from(run);
    let dataset = assembly::dataset(&run, &corpus)?;
    let open = assembly::devices(args.check.device, devices)?;
    let witnesses = assembly::witnesses(&run, &text, &open)?;
    let taken = surgery::extract(&run, args.expert, registry, &witnesses)?;
    let count = grouped(taken.subject.lowered.parameter_count() as u64);
    let what = format!("expert {} of {}: {count} parameters", args.expert, run.name);
    let assembled = Assembled { subject: &taken.subject, certificate: &taken.certificate, what, name, recipe: None };
    assembled.write(args.check.out.as_deref(), &dataset, args.check.json, console)?;
    Ok(Exit::Success)
}

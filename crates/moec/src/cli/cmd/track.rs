//! `moec track`: tells a tracking server what it does not know of runs.

use crate::cli::args::{MessageFormat, TrackArgs};
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::shell;
use crate::cli::tracking::mlflow::{Kept, MlflowRun, Server};
use crate::cli::tracking::{About, Ending, Tracker, named, parameters, variable};
use crate::cli::units::grouped;
use crate::locate::Located;
use crate::pipeline::{self, CompileOptions, Function};
use crate::run::kept_source;
use crate::{Request, Spec, train_config};
use moec_model::{Lowered, Registry};
use moec_runtime::{Metric, Outcome, RunError, RunFolder, Vocab};
use std::path::Path;
use std::sync::Arc;

/// Runs the command.
///
/// Whatever is wrong with one run, the others are told; the exit code is that of the first failure.
///
/// # Errors
/// When nothing says where a server is.
pub(crate) fn run(args: &TrackArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    let to = args.to.as_ref().map(|text| named("--to", text)).transpose()?;
    let server = match to.as_deref() {
        None => None,
        Some([Tracker::Mlflow(Some(server))]) => Some(server.clone()),
        Some([Tracker::Mlflow(None)]) => Some(Server::of_environment(&variable)?),
        Some(_) => {
            return Err(Failure::new(Exit::Usage, "--to names a server: mlflow, or mlflow=URL")
                .help("moec metrics RUN --tensorboard FOLDER writes event files of a run"));
        }
    };
    let mut exit = Exit::Success;
    for path in &args.runs {
        if let Err(failure) = tell(path, server.as_ref(), args.checkpoint, registry, console) {
            console.failure(&failure, MessageFormat::Full);
            if exit == Exit::Success {
                exit = failure.exit();
            }
        }
    }
    Ok(exit)
}

fn tell(
    path: &Path,
    server: Option<&Server>,
    with_checkpoint: bool,
    registry: &Registry,
    console: &Console,
) -> Result<(), Failure> {
    let located = Located::at(path)?;
    let root = located.root.clone();
    // A training tells the server itself, and two must not at once.
    let folder = RunFolder::open(&root).map_err(|error| {
        let is_locked = matches!(error, RunError::Locked { .. });
        let failure = Failure::from(error);
        if is_locked { failure.help("a training tells its trackers itself; wait until it has ended") } else { failure }
    })?;
    let request = Request::read(&root)?;
    let spec = Spec::check(kept_source(&root, &request)?, registry, request.model.as_deref(), &request.set)?;
    let damaged = |reason: String| Failure::new(Exit::Data, reason);
    let server = match (server, Kept::read(&root).map_err(damaged)?) {
        (Some(server), _) => server.clone(),
        (None, Some(kept)) => kept.server(),
        (None, None) => {
            let command = format!("moec track {} --to mlflow=http://127.0.0.1:5000", shell::path(path));
            let message = format!("{} was not tracked on a server", path.display());
            return Err(Failure::new(Exit::Usage, message).help(format!("say where it goes: {command}")));
        }
    };
    // Without a checkpoint that is whole no characters are known.
    let vocab = located.read(moec_runtime::read_manifest).ok().and_then(|(manifest, _)| manifest.vocab());
    let lowered = vocab.as_ref().map(|vocab| lowered(&spec, vocab)).transpose()?;
    let parameters = parameters(&spec, &request, lowered.as_ref().zip(vocab.as_ref()));
    let about = About { root: &root, parameters };
    let failed = |reason: String| Failure::new(Exit::Failure, format!("{}: {reason}", path.display()));
    let (_, checkpoint) = folder.latest_checkpoint()?.filter(|_| with_checkpoint).unzip();
    let run = MlflowRun::open(&about, &server, Arc::default()).map_err(failed)?;
    let (sent, place) =
        run.with_checkpoint(checkpoint).tell(ending(&folder, &spec)?).map_err(|e| failed(e.reason().to_string()))?;
    let sent = match sent {
        0 => "no number was missing".to_string(),
        sent => format!("told {} numbers that were missing", grouped(sent)),
    };
    console.note(format!("{}: {sent}; {place}", path.display()));
    Ok(())
}

/// The model as it is trained, for no device.
fn lowered(spec: &Spec, vocab: &Vocab) -> Result<Lowered, Failure> {
    let options = CompileOptions::only([Function::TrainStep]);
    let compiled = pipeline::compile(&spec.checked.model, &spec.checked.recipe, vocab.len(), &options);
    Ok(compiled.map_err(|error| error.at(&spec.source))?.lowered)
}

/// How far a run has come, which its folder says, however it ended.
fn ending(folder: &RunFolder, spec: &Spec) -> Result<Ending, Failure> {
    let metrics = moec_runtime::read_metrics(folder.root())?;
    if let Some(Metric::Diverged(_)) = metrics.last() {
        return Ok(Ending::Failed);
    }
    let step = folder.latest_checkpoint()?.map_or(0, |(step, _)| step);
    Ok(match moec_runtime::outcome(folder, &train_config(&spec.checked.recipe), step)? {
        Outcome::Interrupted => Ending::Stopped,
        Outcome::Finished | Outcome::StoppedEarly => Ending::Finished,
    })
}

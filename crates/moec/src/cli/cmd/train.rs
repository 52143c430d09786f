//! `moec train`: trains a model into a run folder, and shows a sample at the end.

use crate::cli::args::{SAMPLE, TrainArgs};
use crate::cli::console::Console;
use crate::cli::devices::{Devices, why_no_faster};
use crate::cli::exit::{Exit, Failure};
use crate::cli::kernel_table::KernelTable;
use crate::cli::live;
use crate::cli::progress::json::{Begun, JsonLines};
use crate::cli::progress::{Progress, Telling};
use crate::cli::run_name::in_free_folder;
use crate::cli::shell;
use crate::cli::signals::Signals;
use crate::cli::task::Task;
use crate::cli::tracking::{self, About, Ending, Trackers, Tracking};
use crate::cli::units::{bytes, grouped};
use crate::diagnosis::{Evidence, diagnose};
use crate::pipeline::{Checked, CompileOptions, Compiled, Function};
use crate::{Decode, Device, Error, Request, Sampling, Session, Spec, train_config};
use moec_model::{Recipe, Registry};
use moec_runtime::{
    Best, Corpus, Dataset, Executable, HeldOut, Kept, Latest, Metric, Outcome, PassedOver, Resumption, RunFolder,
    SampleConfig, Split, Summary, Timings, TrainError,
};
use std::ops::ControlFlow;
use std::path::Path;

/// Runs the command.
///
/// # Errors
/// When the spec, the data, the run folder, the device or the training itself fails.
pub(crate) fn run(args: &TrainArgs, registry: &Registry, devices: Devices, console: &Console) -> Result<Exit, Failure> {
    let telling = Telling::of(args.progress.mode())?;
    let console = &console.quiet(matches!(telling, Telling::Json | Telling::Nothing));
    let mut json = (telling == Telling::Json).then(|| JsonLines::new(*console));
    let ended = train(args, registry, devices, console, telling, &mut json);
    let Some(mut json) = json else { return ended };
    if let Err(failure) = &ended {
        json.failed(failure);
    }
    match json.broken() {
        // Nobody reads on: the training was stopped, as by a signal.
        Some(broken) if broken.is_silent() => ended,
        Some(broken) => ended.and(Err(broken)),
        None => ended,
    }
}

fn train(
    args: &TrainArgs,
    registry: &Registry,
    devices: Devices,
    console: &Console,
    telling: Telling,
    json: &mut Option<JsonLines>,
) -> Result<Exit, Failure> {
    let task = Task::new(args, registry, console)?;
    let Task { spec, corpus, device, .. } = &task;
    let device = *device;
    let trackers = Trackers::of(&args.track, task.root.as_deref().filter(|_| task.is_resumed))?;
    let (model, recipe) = (&spec.checked.model, &spec.checked.recipe);
    let config = train_config(recipe);
    let dataset = spec.dataset(corpus)?;
    config.check_data(&dataset, model.context)?;
    let sampling = Sampling::new(model, Decode::Auto, 1, 0, args.sample)?;
    let mut functions = vec![Function::TrainStep, Function::Evaluate];
    functions.extend(&sampling.functions);
    let compiled = spec.compile(dataset.vocab(), device, &CompileOptions::only(functions))?;
    introduce(spec, &compiled, corpus, &dataset, device, console);
    task.require_tensors(&compiled, console)?;

    let mut session = Session::on(&*devices.telling(*console).open(device)?, spec, &compiled)?;
    if args.profile {
        session.time_kernels(Function::TrainStep);
    }
    let folder = match &task.root {
        Some(root) if task.is_resumed => RunFolder::open(root)?,
        Some(root) => task.create(root, &dataset, &compiled)?,
        None => in_free_folder(&task.name, |root| task.create(root, &dataset, &compiled))?,
    };
    let root = folder.root();
    console.note_fitted(format!(
        "{} steps of {} x {} tokens, seed {}, into {}",
        recipe.steps,
        recipe.sequences_text(),
        model.context,
        recipe.seed,
        root.display()
    ));
    let Resumption { step: start, passed_over } = session.begin(&dataset, &folder, &config)?;
    for PassedOver { path, error } in &passed_over {
        console
            .warn(format!("{error}\n  going on from step {start}; the damaged checkpoint is now {}", path.display()));
    }
    if let Some(json) = json {
        json.begun(&begun(&task, &compiled, &dataset, root, start));
    }
    let outcome = moec_runtime::outcome(&folder, &config, start)?;
    if outcome != Outcome::Interrupted {
        let root = root.display();
        console.note(match outcome {
            Outcome::StoppedEarly => {
                let held_out = HeldOut::of(&before(&folder, start), start);
                let why = without_better(&held_out);
                format!("{root} ended at step {start}: {why}; -s train.evaluate.patience=N waits longer")
            }
            _ if start > config.steps => {
                format!("{root} has made {start} steps, more than {}; --steps N continues further", config.steps)
            }
            _ => format!("{root} has made its {start} steps; --steps N continues further"),
        });
        if let Some(json) = json {
            json.complete(outcome, start);
        }
        return Ok(Exit::Success);
    }
    if task.is_resumed && start == 0 {
        console.note("there is no checkpoint yet, so the training begins anew");
    }
    task.record(&folder, console)?;
    point_latest(root, console);

    let signals = Signals::listen(*console)?;
    if let Some(json) = json {
        json.stops(signals.stop.clone());
    }
    let about = live::About {
        model: model.name.clone(),
        device: device.name(),
        run: root.display().to_string(),
        config: config.clone(),
        splits: if dataset.is_held_out() { 2 } else { 1 },
        tokens: recipe.sequences() * model.context,
        before: before(&folder, start),
    };
    let tracking = Tracking::begin(&trackers, &told_to_trackers(&task, &compiled, &dataset, root), *console);
    let progress = Progress::new(telling, about, json.as_mut(), *console, signals.stop());
    let mut reporter = tracking.reporter(progress);
    let trained = session.continue_from(start, &dataset, &folder, &config, &signals.stop, &mut reporter);
    drop(reporter);
    let ending = match &trained {
        Ok(Summary { outcome: Outcome::Interrupted, .. }) => Ending::Stopped,
        Ok(_) => Ending::Finished,
        Err(_) => Ending::Failed,
    };
    let conclusion = Conclusion {
        args,
        task: &task,
        compiled: &compiled,
        dataset: &dataset,
        folder: &folder,
        kept: sampling.kept,
        signals: &signals,
    };
    let ended = match trained {
        Ok(summary) => conclusion.draw(&summary, &mut session, json, console),
        Err(error) => Err(failed(error, args, device, &folder, recipe)),
    };
    tracking.end(ending, signals.end_a_wait());
    ended
}

/// What is done once training is over.
struct Conclusion<'a> {
    args: &'a TrainArgs,
    task: &'a Task,
    compiled: &'a Compiled,
    dataset: &'a Dataset,
    folder: &'a RunFolder,
    kept: Kept,
    signals: &'a Signals,
}

impl Conclusion<'_> {
    /// Says how a training ended, what is wrong with it and how it goes on, and shows a sample of a finished one.
    fn draw(
        &self,
        summary: &Summary,
        session: &mut Session<'_>,
        json: &mut Option<JsonLines>,
        console: &Console,
    ) -> Result<Exit, Failure> {
        let Self { args, task, compiled, dataset, folder, signals, .. } = *self;
        let (spec, root) = (&task.spec, folder.root());
        if summary.outcome == Outcome::Interrupted {
            if args.profile {
                write_profile(compiled, session.timings(), root, console)?;
            }
            let resume = resume_command(args, task.device, folder);
            console.warn(format!("interrupted and saved; continue with: {resume}"));
            if let Some(json) = json {
                json.ended(Some(resume));
            }
            return Ok(signals.exit());
        }
        if summary.outcome == Outcome::StoppedEarly {
            console.note(format!("training ends at step {}: {}", summary.step, without_better(&summary.held_out)));
        }
        signals.all_is_saved();
        // What cannot be read again has been printed.
        let metrics = moec_runtime::read_metrics(root).unwrap_or_default();
        let layers = &compiled.lowered.moe_layers;
        let (vocab, recipe) = (Some(dataset.vocab().len()), Some(&spec.checked.recipe));
        for diagnosis in diagnose(&Evidence { layers, metrics: &metrics, vocab, recipe, ..Evidence::default() }) {
            let text = diagnosis.text(&spec.source);
            match json {
                Some(json) => json.diagnosis(&text),
                None => console.note_fitted(text),
            }
        }
        let mut exit = Exit::Success;
        if args.sample > 0 {
            let sample = LastSample { length: args.sample, kept: self.kept, dataset, signals };
            if !sample.write(folder, summary, &mut session.executable()?, json.as_mut(), console)? {
                exit = signals.exit();
            }
        }
        if let Some(json) = json {
            json.ended(None);
        }
        if exit != Exit::Success {
            return Ok(exit);
        }
        if args.profile {
            write_profile(compiled, session.timings(), root, console)?;
        }
        console.note(format!("sample more with: moec sample {}", shell::path(root)));
        if let Some(Best { step, loss_nats }) = summary.held_out.best
            && spec.checked.recipe.best_kept
            && step < summary.step
            && moec_runtime::best_checkpoint(root)
                .ok()
                .flatten()
                .is_some_and(|best| best.ends_with(format!("step-{step:08}")))
        {
            let path = shell::path(&root.join("checkpoints/best"));
            console.note(format!("val was best, {loss_nats:.4}, at step {step}: moec sample {path}"));
        }
        console.note(format!("all about it on a page: moec report {}", shell::path(root)));
        Ok(Exit::Success)
    }
}

/// Why a training ends before its last step.
fn without_better(held_out: &HeldOut) -> String {
    let than =
        held_out.best.map_or_else(String::new, |best| format!(" than {:.4} at step {}", best.loss_nats, best.step));
    let evaluations = match held_out.without_better {
        1 => "an evaluation".to_string(),
        n => format!("{n} evaluations"),
    };
    format!("{evaluations} without a better val{than}")
}

/// What trackers are told of a training.
fn told_to_trackers<'a>(task: &Task, compiled: &Compiled, dataset: &Dataset, root: &'a Path) -> About<'a> {
    let request = Request { device: Some(task.device.name().to_string()), ..task.spec.request(dataset) };
    About { root, parameters: tracking::parameters(&task.spec, &request, Some((&compiled.lowered, dataset.vocab()))) }
}

/// What a run has reported before it goes on. (What cannot be read is only missing in the curves.)
fn before(folder: &RunFolder, start: u64) -> Vec<Metric> {
    let mut metrics = moec_runtime::read_metrics(folder.root()).unwrap_or_default();
    metrics.retain(|metric| metric.step() <= start);
    metrics
}

/// What is trained, on what.
fn begun<'a>(task: &'a Task, compiled: &Compiled, dataset: &Dataset, root: &Path, step: u64) -> Begun<'a> {
    let Checked { model, recipe, .. } = &task.spec.checked;
    let held_out = if dataset.is_held_out() { dataset.tokens(Split::Validation).len() } else { 0 };
    Begun {
        run: root.display().to_string(),
        model: &model.name,
        device: task.device.name(),
        precision: recipe.precision.name(),
        parameters: compiled.lowered.parameter_count(),
        active_parameters: compiled.lowered.active_parameter_count(),
        planned_bytes: compiled.program.state_bytes() + compiled.program.arena_bytes(),
        data: task.corpus.name(),
        characters: task.corpus.text().chars().count(),
        training_characters: dataset.tokens(Split::Train).len(),
        held_out_characters: held_out,
        vocabulary: dataset.vocab().len(),
        steps: recipe.steps,
        batch: recipe.sequences(),
        context: model.context,
        seed: recipe.seed,
        step,
    }
}

/// Why training failed, with a command that leads on where it diverged.
fn failed(error: Error, args: &TrainArgs, device: Device, folder: &RunFolder, recipe: &Recipe) -> Failure {
    if !matches!(error, Error::Train(TrainError::Diverged { .. })) {
        return error.into();
    }
    let from = match folder.latest_checkpoint() {
        Ok(Some((step, _))) => format!("from the checkpoint of step {step}"),
        _ => "from the beginning".to_string(),
    };
    let command = resume_command(args, device, folder);
    // A rate far above the usual one is not cured by a third of it.
    let slower = format!("{:.0e}", (recipe.optimizer.lr() / 3.0).min(recipe.optimizer.default_lr()));
    let failure = Failure::new(Exit::Diverged, error.to_string())
        .help(format!("go on {from} with a lower learning rate: {command} -s train.optimizer.lr={slower}"));
    match recipe.clip {
        None => failure.help(format!("or with a bound on the gradient: {command} -s train.clip=1.0")),
        Some(_) => failure,
    }
}

/// The table of kernels, and the last steps as a trace in the run folder.
fn write_profile(compiled: &Compiled, timings: &Timings, root: &Path, console: &Console) -> Result<(), Failure> {
    let Some(plan) = compiled.program.plan(Function::TrainStep.name()) else { return Ok(()) };
    if timings.runs() == 0 {
        console.note("no step after the first was made, so there is no profile");
        return Ok(());
    }
    console.note_fitted(format!(
        "\nmedians of the last {} steps; the first one took {:.1} s with the compilation of its kernels:",
        timings.runs(),
        timings.first().as_secs_f64()
    ));
    if compiled.program.plan(Function::Accumulate.name()).is_some() {
        console.note(
            "of the last batch of a step and of the optimizer; the batches before it cost what its gradients cost",
        );
    }
    console.note(KernelTable::new(plan, timings, None).text(console.columns_of_remarks()));
    let path = root.join("profile.json");
    let trace = timings.chrome_trace(plan).to_string();
    std::fs::write(&path, trace).map_err(|e| Failure::file("write", &path, &e))?;
    console.note(format!("trace of the first and the last steps: {}", path.display()));
    Ok(())
}

/// What is going to happen, before it happens.
fn introduce(spec: &Spec, compiled: &Compiled, corpus: &Corpus, dataset: &Dataset, device: Device, console: &Console) {
    let model = &spec.checked.model;
    let lowered = &compiled.lowered;
    // `moec compile` has no text, and so others.
    let counted = match model.vocab {
        moec_model::Vocab::Characters => format!(" with the {} characters of this text", dataset.vocab().len()),
        moec_model::Vocab::Size(_) => String::new(),
    };
    console.note_fitted(format!(
        "{}: {} parameters{counted}, {} active per token; {} planned on {}",
        model.name,
        grouped(lowered.parameter_count() as u64),
        grouped(lowered.active_parameter_count() as u64),
        bytes((compiled.program.state_bytes() + compiled.program.arena_bytes()) as u64),
        device.name()
    ));
    if let Ok(trained) = lowered.trained(&spec.checked.recipe.freeze)
        && trained.len() < lowered.parameters.len()
    {
        let count = |name: &String| compiled.states.iter().find(|s| s.name == *name).map_or(0, |s| s.ty.elements());
        let trained: usize = trained.iter().map(count).sum();
        console.note_fitted(format!("{} of them are trained, the others are frozen", grouped(trained as u64)));
    }
    if let Some(decay) = spec.checked.recipe.average {
        console
            .note_fitted(format!("evaluations and samples are of moving averages of the parameters, of decay {decay}"));
    }
    let parts = match dataset.is_held_out() {
        true => format!(
            "{} for training, {} held out",
            grouped(dataset.tokens(Split::Train).len() as u64),
            grouped(dataset.tokens(Split::Validation).len() as u64)
        ),
        false => "all for training; nothing is held out, so evaluations are of what is trained on".to_string(),
    };
    console.note_fitted(format!(
        "data {}: {} characters, {} distinct; {parts}",
        corpus.name(),
        grouped(corpus.text().chars().count() as u64),
        dataset.vocab().len(),
    ));
    if corpus.name() == "synthetic" {
        let entropy = moec_runtime::synthetic::entropy_per_character();
        console
            .note_fitted(format!("the generator's entropy is {entropy:.4} nats per character: no loss can be lower"));
    }
    if let Some(note) = why_no_faster(spec.checked.recipe.precision, device) {
        console.note(note);
    }
}

/// Lets `runs/latest` point to a run. It is a convenience: that it cannot be is said, and no reason to stop.
fn point_latest(root: &Path, console: &Console) {
    match moec_runtime::point_latest(root) {
        Ok(Latest::Points(_) | Latest::Elsewhere) => {}
        Ok(Latest::Occupied(link)) => {
            console.note(format!("{} is no link of moec, so it stays as it is", link.display()));
        }
        Err(e) => console.note(format!("there is no link to the latest run: {e}")),
    }
}

/// The command that continues a run as this one was made, to be pasted into a shell.
fn resume_command(args: &TrainArgs, device: Device, folder: &RunFolder) -> String {
    let root = folder.root();
    let mut command = format!("moec train --resume {}", shell::path(root));
    // Until something is saved, what the spec names is looked for from its folder. (A pipe cannot be read again, but the
    // run has a copy.)
    if let Some(spec) = args.spec.spec.as_deref().filter(|spec| spec.is_file())
        && !matches!(folder.latest_checkpoint(), Ok(Some(_)))
    {
        command = format!("moec train {} --resume {}", shell::path(spec), shell::path(root));
    }
    if device != Device::Cpu {
        command += &format!(" --device {}", device.name());
    }
    if args.profile {
        command += " --profile";
    }
    if args.sample != SAMPLE {
        command += &format!(" --sample {}", args.sample);
    }
    if args.track == ["none"] {
        command += " --track none";
    }
    command
}

/// A sample of the finished model.
struct LastSample<'a> {
    length: usize,
    kept: Kept,
    dataset: &'a Dataset,
    signals: &'a Signals,
}

impl LastSample<'_> {
    /// Writes it to standard output as it comes, or as an event, and to the run's folder once it is whole; `false` if a
    /// signal came first.
    fn write(
        &self,
        folder: &RunFolder,
        summary: &Summary,
        executable: &mut Executable<'_>,
        json: Option<&mut JsonLines>,
        console: &Console,
    ) -> Result<bool, Failure> {
        let config = SampleConfig { length: self.length, ..SampleConfig::default() };
        console.note("a sample:");
        let is_shown = json.is_none();
        let texts = console.stream(|emit| {
            let mut show = |_: u64, text: &str| match self.signals.stopping() {
                true => ControlFlow::Break(()),
                false if is_shown => emit(text),
                false => ControlFlow::Continue(()),
            };
            let vocab = self.dataset.vocab();
            Ok(moec_runtime::sample(executable, vocab, "", 0..1, self.kept, &config, &mut show)?)
        })?;
        if is_shown {
            console.write("\n")?;
        }
        if self.signals.stopping() {
            return Ok(false);
        }
        let text = texts.concat();
        folder.write_sample(&format!("step-{:08}", summary.step), &text)?;
        if let Some(json) = json {
            json.sample(&text);
        }
        Ok(true)
    }
}

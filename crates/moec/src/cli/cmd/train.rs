//! `moec train`: trains a model into a run folder, and shows a sample at the end.

use crate::cli::args::TrainArgs;
use crate::cli::console::Console;
use crate::cli::devices::{Devices, why_no_faster};
use crate::cli::downloads;
use crate::cli::exit::{Exit, Failure};
use crate::cli::kernel_table::KernelTable;
use crate::cli::progress::Progress;
use crate::cli::signals::Signals;
use crate::cli::units::{bytes, grouped};
use crate::pipeline::{CompileOptions, Compiled, Function};
use crate::{Decode, Device, Request, Sampling, Session, Spec, read_source, train_config};
use moec_ir::Invariant;
use moec_model::Registry;
use moec_runtime::{Corpus, Dataset, Executable, Kept, Outcome, RunFolder, SampleConfig, Split, Summary, Timings};
use moec_syntax::SourceFile;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Runs the command.
///
/// # Errors
/// When the spec, the data, the run folder, the device or the training itself fails.
pub(crate) fn run(args: &TrainArgs, registry: &Registry, devices: Devices, console: &Console) -> Result<Exit, Failure> {
    let (source, request, root) = if args.resume { resumed(args)? } else { begun(args)? };
    let spec = Spec::check(source, registry, request.model.as_deref(), &request.set)?;
    if args.seed.is_some_and(|seed| seed != spec.checked.recipe.seed) {
        return Err(kept_by_the_run("seed"));
    }
    if args.precision.given().is_some_and(|precision| precision != spec.checked.recipe.precision.name()) {
        return Err(kept_by_the_run("precision"));
    }
    console.diagnostics(&spec.source, &spec.checked.warnings, args.spec.message_format);
    let data = if request.data.is_empty() { spec.data(&args.spec.spec, registry) } else { request.data };

    let (model, recipe) = (&spec.checked.model, &spec.checked.recipe);
    let corpus = downloads::corpus(&data, registry, console)?;
    let dataset = spec.dataset(&corpus)?;
    for split in [Split::Train, Split::Validation] {
        dataset.windows(split, model.context)?;
    }
    let sampling = Sampling::new(model, Decode::Auto, 1, 0, args.sample)?;
    let mut functions = vec![Function::TrainStep, Function::Evaluate];
    functions.extend(&sampling.functions);
    let compiled = spec.compile(dataset.vocab(), args.device, &CompileOptions::only(functions))?;
    let root = root.unwrap_or_else(|| free_folder(&model.name));
    introduce(&spec, &compiled, &corpus, &dataset, args.device, &root, console);

    let mut session = Session::on(&*devices.open(args.device)?, &spec, &compiled)?;
    session.time_kernels(args.profile);
    let config = train_config(recipe);
    let folder = if args.resume { RunFolder::open(&root)? } else { spec.create_run(&root, &data, &compiled)? };
    let start = session.begin(&dataset, &folder, &config)?;
    if start >= config.steps {
        console.note(format!("{} has made its {} steps; --steps N continues further", root.display(), start));
        return Ok(Exit::Success);
    }

    let signals = Signals::listen(*console)?;
    if args.device != Device::Interpreter {
        console.note("the first step takes some seconds where kernels must be compiled");
    }
    let mut progress = Progress::new(*console);
    let summary = session.continue_from(start, &dataset, &folder, &config, &signals.stop, &mut progress)?;
    if summary.outcome == Outcome::Interrupted {
        if args.profile {
            write_profile(&compiled, session.timings(), &root, console)?;
        }
        console.note(format!("interrupted and saved; continue with: {}", resume_command(args, &root)));
        return Ok(signals.exit());
    }
    signals.all_is_saved();
    if args.sample > 0 {
        let sample = LastSample { length: args.sample, kept: sampling.kept, dataset: &dataset, signals: &signals };
        if !sample.write(&folder, &summary, &mut session.executable()?, console)? {
            return Ok(signals.exit());
        }
    }
    if args.profile {
        write_profile(&compiled, session.timings(), &root, console)?;
    }
    console.note(format!("sample more with: moec sample {}", root.display()));
    Ok(Exit::Success)
}

/// The refusal to continue a run with something else.
fn kept_by_the_run(what: &str) -> Failure {
    Failure::new(Exit::Usage, format!("a run keeps the {what} that it was begun with"))
        .help("only --steps can change; start another run with --out FOLDER")
}

/// The table of kernels, and the last steps as a trace in the run folder.
fn write_profile(compiled: &Compiled, timings: &Timings, root: &Path, console: &Console) -> Result<(), Failure> {
    let Some(plan) = compiled.program.plan(Function::TrainStep.name()) else { return Ok(()) };
    if timings.runs() == 0 {
        console.note("no step after the first was made, so there is no profile");
        return Ok(());
    }
    console.note(format!(
        "\nmedians of the last {} steps; the first one took {:.1} s with the compilation of its kernels:",
        timings.runs(),
        timings.first().as_secs_f64()
    ));
    console.note(KernelTable::new(plan, timings, None).text());
    let path = root.join("profile.json");
    let trace = timings.chrome_trace(plan).to_string();
    std::fs::write(&path, trace).map_err(|e| Failure::file("write", &path, &e))?;
    console.note(format!("trace of the first and the last steps: {}", path.display()));
    Ok(())
}

/// The spec and the request of a new run.
fn begun(args: &TrainArgs) -> Result<(SourceFile, Request, Option<PathBuf>), Failure> {
    let mut set = args.spec.set.clone();
    set.extend(args.steps.map(|n| format!("train.steps={n}")));
    set.extend(args.seed.map(|n| format!("train.seed={n}")));
    set.extend(args.precision.set());
    let source = read_source(&args.spec.spec)?;
    let (model, data) = (args.spec.model.clone(), args.data.clone().unwrap_or_default());
    Ok((source, Request { model, set, data, ..Request::default() }, args.out.clone()))
}

/// The spec and the request of the run that is continued. Only the number of steps may change.
fn resumed(args: &TrainArgs) -> Result<(SourceFile, Request, Option<PathBuf>), Failure> {
    let root = args.out.clone().invariant("clap asks for --out beside --resume");
    // Read first: it says whether there is a run at all.
    let text = moec_runtime::read_spec(&root)?;
    let mut request = Request::read(&root)?;
    let given = read_source(&args.spec.spec)?;
    if given.text() != text {
        let message = format!("{} is not the spec that {} was begun with", given.name(), root.display());
        let kept = root.join("spec.moe").display().to_string();
        return Err(Failure::new(Exit::Usage, message).help(format!("continue with {kept}, or start another run")));
    }
    // Files that are gone do not matter: the run has its copies.
    if let Some((path, file)) =
        given.imported().find(|(path, file)| request.imports.get(*path).is_some_and(|kept| kept != file.text()))
    {
        let message = format!("{} has changed since {} was begun", file.name(), root.display());
        let advice = format!("the run keeps its own copy of {path}; continue with {}", root.join("spec.moe").display());
        return Err(Failure::new(Exit::Usage, message).help(advice));
    }
    if args.spec.set.iter().any(|s| !request.set.contains(s)) {
        return Err(kept_by_the_run("overrides"));
    }
    if args.data.as_ref().is_some_and(|d| *d != request.data) {
        return Err(kept_by_the_run("data"));
    }
    if args.spec.model.is_some() && args.spec.model != request.model {
        return Err(kept_by_the_run("model"));
    }
    if let Some(steps) = args.steps {
        request.set.retain(|s| !s.starts_with("train.steps="));
        request.set.push(format!("train.steps={steps}"));
    }
    let source = SourceFile::new(given.name(), text).with_kept_imports(&request.imports);
    Ok((source, request, Some(root)))
}

/// `runs/NAME`, or `runs/NAME-2` and so on: the first that does not exist.
fn free_folder(name: &str) -> PathBuf {
    let runs = Path::new("runs");
    let first = runs.join(name);
    if !first.exists() {
        return first;
    }
    (2u64..).map(|n| runs.join(format!("{name}-{n}"))).find(|p| !p.exists()).unwrap_or(first)
}

/// What is going to happen, before it happens.
fn introduce(
    spec: &Spec,
    compiled: &Compiled,
    corpus: &Corpus,
    dataset: &Dataset,
    device: Device,
    root: &Path,
    console: &Console,
) {
    let (model, recipe) = (&spec.checked.model, &spec.checked.recipe);
    let lowered = &compiled.lowered;
    console.note(format!(
        "{}: {} parameters, {} active per token; {} planned on {}",
        model.name,
        grouped(lowered.parameter_count() as u64),
        grouped(lowered.active_parameter_count() as u64),
        bytes((compiled.program.state_bytes() + compiled.program.arena_bytes()) as u64),
        device.name()
    ));
    console.note(format!(
        "data {}: {} characters, {} distinct; {} for training, {} held out",
        corpus.name(),
        grouped(corpus.text().chars().count() as u64),
        dataset.vocab().len(),
        grouped(dataset.tokens(Split::Train).len() as u64),
        grouped(dataset.tokens(Split::Validation).len() as u64)
    ));
    if corpus.name() == "synthetic" {
        let entropy = moec_runtime::synthetic::entropy_per_character();
        console.note(format!("the generator's entropy is {entropy:.4} nats per character: no loss can be lower"));
    }
    console.note(format!(
        "{} steps of {} x {} tokens, seed {}, into {}",
        recipe.steps,
        recipe.batch,
        model.context,
        recipe.seed,
        root.display()
    ));
    if let Some(note) = why_no_faster(recipe.precision, device) {
        console.note(note);
    }
}

fn resume_command(args: &TrainArgs, root: &Path) -> String {
    let profile = if args.profile { " --profile" } else { "" };
    format!("moec train {} --out {} --resume{profile}", args.spec.spec.display(), root.display())
}

/// A sample of the finished model.
struct LastSample<'a> {
    length: usize,
    kept: Kept,
    dataset: &'a Dataset,
    signals: &'a Signals,
}

impl LastSample<'_> {
    /// Writes it to standard output as it comes, and to the run's folder once it is whole; `false` if a signal came
    /// first.
    fn write(
        &self,
        folder: &RunFolder,
        summary: &Summary,
        executable: &mut Executable<'_>,
        console: &Console,
    ) -> Result<bool, Failure> {
        let config = SampleConfig { length: self.length, ..SampleConfig::default() };
        console.note("a sample:");
        let texts = console.stream(|emit| {
            let mut show =
                |_: u64, text: &str| if self.signals.stopping() { ControlFlow::Break(()) } else { emit(text) };
            let vocab = self.dataset.vocab();
            Ok(moec_runtime::sample(executable, vocab, "", 0..1, self.kept, &config, &mut show)?)
        })?;
        console.write("\n")?;
        if self.signals.stopping() {
            return Ok(false);
        }
        folder.write_sample(&format!("step-{:08}", summary.step), &texts.concat())?;
        Ok(true)
    }
}

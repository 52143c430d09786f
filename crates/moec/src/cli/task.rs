//! What a training is asked for: by the command line alone, or by the run that it continues.

use crate::cli::args::TrainArgs;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::run_name::run_name;
use crate::cli::{assembly, configuration, downloads, remarks, run_text, shell};
use crate::pipeline::Compiled;
use crate::request;
use crate::run::kept_source;
use crate::surgery::Subject;
use crate::{Device, Request, Spec, read_source};
use moec_ir::{Invariant, Tensor};
use moec_model::Registry;
use moec_plan::StateDecl;
use moec_runtime::{Corpus, Dataset, RunFolder};
use moec_syntax::SourceFile;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a training is asked for.
pub(crate) struct Task {
    pub(crate) spec: Spec,
    pub(crate) corpus: Corpus,
    /// The folder that was named.
    pub(crate) root: Option<PathBuf>,
    /// What the run is called if none was.
    pub(crate) name: String,
    /// Whether the run in it goes on.
    pub(crate) is_resumed: bool,
    pub(crate) device: Device,
    /// The run whose numbers it begins with.
    from: Option<Beginning>,
    /// Overrides that a continued run did not have before.
    changes: Vec<String>,
    /// What a continued run is asked for from here on, if that is not what it was asked for.
    request: Option<Request>,
}

/// The numbers that a run begins with.
struct Beginning {
    run: Subject,
    /// Whether what does not fit may begin anew.
    is_partial: bool,
}

impl Beginning {
    /// Why a tensor of the model is not that of the run; nothing if it is.
    fn unfit(&self, state: &StateDecl) -> Option<String> {
        let found = self.run.tensors.get(&state.name).map(Tensor::ty);
        if found.as_ref() == Some(&state.ty) {
            return None;
        }
        let found = found.map_or_else(|| "not there".to_string(), |ty| ty.to_string());
        Some(format!("`{}` is {found} in {}, and {} in the model", state.name, self.run.name, state.ty))
    }
}

impl Task {
    /// What the command line asks for.
    ///
    /// # Errors
    /// When the spec or the data is wrong, there is no run to continue, or not as it is asked for.
    pub(crate) fn new(args: &TrainArgs, registry: &Registry, console: &Console) -> Result<Self, Failure> {
        match Continued::of(args)? {
            Some(continued) => Self::resumed(&continued, args, registry, console),
            None => Self::begun(args, registry, console),
        }
    }

    fn begun(args: &TrainArgs, registry: &Registry, console: &Console) -> Result<Self, Failure> {
        if let Some(from) = &args.from {
            return Self::begun_from(from, args, registry, console);
        }
        let path = args.spec.spec.as_deref().invariant("clap asks for a spec where no run is continued");
        let (reading, source) = (&args.spec.reading, read_source(path)?);
        let mut set = configuration::given(reading, &source, registry)?;
        set.extend(wishes(args));
        let spec = Spec::check(source, registry, reading.model.as_deref(), &set)?;
        console.diagnostics(&spec.source, &spec.checked.warnings, args.spec.reading.message_format);
        let data = args.data.clone().unwrap_or_else(|| spec.data(path, registry));
        let corpus = downloads::corpus(&data, registry, console)?;
        if let Some(remark) = remarks::unseen(&corpus) {
            console.note(remark);
        }
        let device = args.device.unwrap_or(Device::Cpu);
        let root = args.out.clone().or(args.name.clone());
        let name = run_name(&spec.checked.model.name, &set);
        Ok(Self { spec, corpus, root, name, is_resumed: false, device, from: None, changes: Vec::new(), request: None })
    }

    /// A new run that begins with the numbers of another one: its spec with its overrides, unless another spec is given, and
    /// its text, unless another text is.
    fn begun_from(from: &Path, args: &TrainArgs, registry: &Registry, console: &Console) -> Result<Self, Failure> {
        let run = assembly::open(from, registry, console)?;
        let reading = &args.spec.reading;
        let values = configuration::Values::read(reading.config.as_deref(), &reading.set)?.overrides();
        let given = values.into_iter().chain(wishes(args));
        let (spec, set) = match &args.spec.spec {
            Some(path) => {
                let (source, set) = (read_source(path)?, given.collect::<Vec<_>>());
                (Spec::check(source, registry, reading.model.as_deref(), &set)?, set)
            }
            None => {
                if reading.model.is_some() && reading.model != run.request.model {
                    return Err(kept_by_the_run("model").help("give the spec of another model before --from"));
                }
                // What that run was told to freeze is not what this one is.
                let kept = run.request.set.iter().filter(|set| !request::freezes(set)).cloned().collect();
                let set = given.fold(kept, |set: Vec<String>, wish| with(&set, &wish));
                let source = kept_source(&run.root, &run.request)?;
                (Spec::check(source, registry, run.request.model.as_deref(), &set)?, set)
            }
        };
        console.diagnostics(&spec.source, &spec.checked.warnings, reading.message_format);
        let corpus = match &args.data {
            Some(data) => downloads::corpus(data, registry, console)?,
            None => assembly::corpus(from, registry, console)?,
        };
        if corpus.vocab()?.to_text() != run.vocab.to_text() {
            let message = format!("{} has other characters than {}", corpus.name(), run.root.display());
            return Err(
                Failure::new(Exit::Data, message).help("a text for a trained model has the characters of its own")
            );
        }
        let device = args.device.unwrap_or(Device::Cpu);
        let root = args.out.clone().or(args.name.clone());
        // What the other run was called says more than what was overridden in it.
        let changes: Vec<String> = set.into_iter().filter(|wish| !run.request.set.contains(wish)).collect();
        let name = run_name(&format!("{}-on", assembly::name_of(&run.root)), &changes);
        let from = Some(Beginning { run: Subject::from(run), is_partial: args.partial });
        Ok(Self { spec, corpus, root, name, is_resumed: false, device, from, changes: Vec::new(), request: None })
    }

    /// That the run whose numbers this one begins with, if there is one, has the tensors of the model. Where only a part has to
    /// fit, it is said what does not.
    ///
    /// # Errors
    /// With the first tensor that is another one, or when nothing fits.
    pub(crate) fn require_tensors(&self, compiled: &Compiled, console: &Console) -> Result<(), Failure> {
        let Some(from) = &self.from else { return Ok(()) };
        let of_model: Vec<_> = compiled.states.iter().filter(|state| state.kind.of_model()).collect();
        let unfit: Vec<_> =
            of_model.iter().filter_map(|state| Some((state.name.as_str(), from.unfit(state)?))).collect();
        let is_known = |name: &str| of_model.iter().any(|state| state.name == name);
        let declared = from.run.model_states();
        let left: Vec<&str> = declared.iter().map(|s| s.name.as_str()).filter(|name| !is_known(name)).collect();
        if !from.is_partial {
            let over = left.first().map(|name| format!("`{name}` is in {}, and not in the model", from.run.name));
            let Some(message) = unfit.into_iter().next().map(|(_, why)| why).or(over) else { return Ok(()) };
            return Err(Failure::new(Exit::Data, message)
                .help("--from takes a run whose model has the same tensors; -s may change the recipe")
                .help("--partial takes what fits and lets the rest begin anew"));
        }
        if unfit.len() == of_model.len() {
            let message = format!("no tensor of {} fits the model", from.run.name);
            return Err(Failure::new(Exit::Data, message).help("leave out --from to begin anew"));
        }
        let anew: Vec<&str> = unfit.iter().map(|(name, _)| *name).collect();
        for (names, what) in [(anew, "of the tensors begin anew"), (left, "of the other run have no place here")] {
            match names.as_slice() {
                [] => {}
                names => console.note_fitted(format!("{} {what}: {}", names.len(), listed_in_part(names))),
            }
        }
        Ok(())
    }

    fn resumed(
        continued: &Continued,
        args: &TrainArgs,
        registry: &Registry,
        console: &Console,
    ) -> Result<Self, Failure> {
        let root = continued.root.clone();
        // Read first: it says whether there is a run at all.
        let source = source_of(continued)?;
        let before = Request::read(&root)?;
        require_imports(&source, &before, &root)?;
        if args.spec.reading.model.is_some() && args.spec.reading.model != before.model {
            return Err(kept_by_the_run("model"));
        }
        let source = source.with_kept_imports(&before.imports);
        let check = |set: &[String]| Spec::check(source.clone(), registry, before.model.as_deref(), set);
        let was = check(&before.set)?;
        let mut set = before.set.clone();
        let mut changes = Vec::new();
        let reading = &args.spec.reading;
        for wish in configuration::Values::read(reading.config.as_deref(), &reading.set)?
            .overrides()
            .into_iter()
            .chain(wishes(args))
        {
            if set.contains(&wish) {
                continue;
            }
            set = with(&set, &wish);
            changes.push(wish);
        }
        let spec = check(&set)?;
        if let Some(what) = what_is_kept(&was, &spec) {
            let culprit = |wish: &&String| {
                let alone = check(&with(&before.set, wish));
                alone.is_ok_and(|alone| what_is_kept(&was, &alone).is_some())
            };
            let failure = kept_by_the_run(what);
            let told = |wish: &String| Failure::new(failure.exit(), format!("{failure}: {wish} cannot be changed"));
            return Err(with_help(changes.iter().find(culprit).map_or(kept_by_the_run(what), told)));
        }
        if same_recipe(&was, &spec) {
            (set, changes) = (before.set.clone(), Vec::new());
        }
        console.diagnostics(&spec.source, &spec.checked.warnings, args.spec.reading.message_format);
        let corpus = text_of(args, &before, continued, registry, console)?;
        let was_on = device_of(&before, &root)?;
        let device = args.device.unwrap_or(was_on);
        if device != was_on {
            changes.push(format!("--device {}", device.name()));
        }
        let data = corpus.name().to_string();
        let data_sha256 = Some(corpus.sha256().to_string());
        let noted = (device != was_on).then(|| device.name().to_string());
        let after = Request { set, data, data_sha256, device: noted.or(before.device.clone()), ..before.clone() };
        let request = (after != before).then_some(after);
        let name = spec.checked.model.name.clone();
        Ok(Self { spec, corpus, root: Some(root), name, is_resumed: true, device, from: None, changes, request })
    }

    /// The folder of a new run on this task's text, with the numbers that it begins with if they are those of another; it notes a
    /// device that was chosen.
    ///
    /// # Errors
    /// When the folder holds anything, or cannot be written.
    pub(crate) fn create(&self, root: &Path, dataset: &Dataset, compiled: &Compiled) -> Result<RunFolder, Failure> {
        if let Some(from) = &self.from {
            assembly::made_whole(root, |path| {
                let folder = self.spec.create_run(path, dataset, compiled)?;
                self.note_device(&folder, dataset)?;
                let tensors = self.beginning(from, dataset, compiled)?;
                let of = (&self.spec, &from.run.vocab);
                assembly::save_beginning(&folder, of, &compiled.states, &tensors, dataset)
            })?;
            return Ok(RunFolder::open(root)?);
        }
        let folder = self.spec.create_run(root, dataset, compiled)?;
        self.note_device(&folder, dataset)?;
        Ok(folder)
    }

    /// The tensors that the run begins with: those of another, and what does not fit as it would begin by itself.
    ///
    /// # Errors
    /// When a router's table cannot be computed from this text.
    fn beginning(
        &self,
        from: &Beginning,
        dataset: &Dataset,
        compiled: &Compiled,
    ) -> Result<BTreeMap<String, Tensor>, Failure> {
        let of_model = compiled.states.iter().filter(|state| state.kind.of_model());
        let (anew, taken): (Vec<_>, Vec<_>) = of_model.cloned().partition(|state| from.unfit(state).is_some());
        let taken =
            taken.iter().filter_map(|state| Some((state.name.clone(), from.run.tensors.get(&state.name)?.clone())));
        let mut tensors: BTreeMap<String, Tensor> = taken.collect();
        if !anew.is_empty() {
            let (lowered, seed) = (&compiled.lowered, self.spec.checked.recipe.seed);
            let states = crate::initial_states(&lowered.states, dataset, self.spec.folder())?;
            tensors.extend(moec_runtime::initial_tensors(seed, &anew, &lowered.parameters, &states));
        }
        Ok(tensors)
    }

    /// Notes in a new folder which device was chosen, if that is not the usual one.
    fn note_device(&self, folder: &RunFolder, dataset: &Dataset) -> Result<(), Failure> {
        if self.device != Device::Cpu {
            let request = Request { device: Some(self.device.name().to_string()), ..self.spec.request(dataset) };
            let checked = &self.spec.checked;
            folder.write_resolved(&request.with_resolved(&checked.model, &checked.recipe))?;
        }
        Ok(())
    }

    /// Notes in the folder of a continued run what has changed, and says so.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(crate) fn record(&self, folder: &RunFolder, console: &Console) -> Result<(), Failure> {
        let Some(request) = &self.request else { return Ok(()) };
        let checked = &self.spec.checked;
        folder.write_resolved(&request.with_resolved(&checked.model, &checked.recipe))?;
        if !self.changes.is_empty() {
            let noted = folder.root().join("resolved.yaml");
            console.note(format!("from here on {}, noted in {}", self.changes.join(", "), noted.display()));
        }
        Ok(())
    }
}

/// A run that goes on.
struct Continued {
    root: PathBuf,
    /// The spec that was given beside it: it must be that of the run.
    spec: Option<PathBuf>,
}

impl Continued {
    /// The run that `--resume` means: its own value, that of `--out`, or the folder in the place of the spec.
    fn of(args: &TrainArgs) -> Result<Option<Self>, Failure> {
        let Some(named) = &args.resume else { return Ok(None) };
        let refused = |message: String| Err(Failure::new(Exit::Usage, message));
        let (root, spec) = match (named, &args.spec.spec, &args.out) {
            // Before `--resume` took a value, the spec could stand behind it.
            (Some(spec), None, Some(out)) if !spec.is_dir() => (out, Some(spec)),
            (Some(run), spec, Some(out)) if run == out => (run, spec.as_ref()),
            (Some(run), _, Some(_)) => {
                return refused(format!("{} goes on in its own folder: leave out --out", run.display()));
            }
            (Some(run), spec, None) => (run, spec.as_ref()),
            (None, spec, Some(out)) => (out, spec.as_ref()),
            (None, Some(run), None) if run.is_dir() => (run, None),
            (None, _, None) => {
                let failure = Failure::new(Exit::Usage, "--resume does not say which run goes on");
                return Err(failure.help("moec train --resume RUN, runs/latest for example"));
            }
        };
        Ok(Some(Self { root: moec_runtime::follow_latest(root), spec: spec.cloned() }))
    }

    /// The spec that was given, or the one that the run keeps.
    fn spec(&self) -> PathBuf {
        self.spec.clone().unwrap_or_else(|| self.root.join("spec.moe"))
    }
}

/// Most names of tensors that are listed.
const NAMED: usize = 6;

/// Names with commas between them, of many the first.
fn listed_in_part(names: &[&str]) -> String {
    let more = names.len().saturating_sub(NAMED);
    let named = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{named} and {more} more") } else { named }
}

/// Where a run was trained so far.
fn device_of(request: &Request, root: &Path) -> Result<Device, Failure> {
    let Some(name) = &request.device else { return Ok(Device::Cpu) };
    let known = Device::ALL.into_iter().find(|device| device.name() == name);
    known.ok_or_else(|| {
        let message = format!("{} was trained on {name}, which this moec does not know", root.display());
        Failure::new(Exit::Data, message).help("say with --device where it goes on")
    })
}

/// Overrides that have an option of their own.
fn wishes(args: &TrainArgs) -> impl Iterator<Item = String> {
    let steps = args.steps.map(|n| format!("train.steps={n}"));
    let seed = args.seed.map(|n| format!("train.seed={n}"));
    steps.into_iter().chain(seed).chain(args.precision.set())
}

/// Overrides with one more, in the place of one of the same value.
fn with(set: &[String], wish: &str) -> Vec<String> {
    let path = |text: &str| text.split('=').next().unwrap_or_default().trim().to_string();
    let mut set: Vec<String> = set.iter().filter(|given| path(given) != path(wish)).cloned().collect();
    set.push(wish.to_string());
    set
}

/// The spec that a run keeps, if the one that was given says the same.
fn source_of(continued: &Continued) -> Result<SourceFile, Failure> {
    let root = &continued.root;
    let text = moec_runtime::read_spec(root)?;
    let given = read_source(&continued.spec())?;
    if given.text() != text {
        let message = format!("{} is not the spec that {} was begun with", given.name(), root.display());
        let kept = shell::path(&root.join("spec.moe"));
        return Err(Failure::new(Exit::Usage, message).help(format!("continue with {kept}, or start another run")));
    }
    Ok(given)
}

/// Imported files must say what they said. Files that are gone do not matter: the run has its copies.
fn require_imports(source: &SourceFile, request: &Request, root: &Path) -> Result<(), Failure> {
    let mut imported = source.imported();
    let changed = imported.find(|(path, file)| request.imports.get(*path).is_some_and(|kept| kept != file.text()));
    let Some((path, file)) = changed else { return Ok(()) };
    let message = format!("{} has changed since {} was begun", file.name(), root.display());
    let kept = shell::path(&root.join("spec.moe"));
    let advice = format!("the run keeps its own copy of {path}; continue with {kept}");
    Err(Failure::new(Exit::Usage, message).help(advice))
}

/// The text of a continued run: the one that is named if it is the same, or else where it is found.
fn text_of(
    args: &TrainArgs,
    request: &Request,
    continued: &Continued,
    registry: &Registry,
    console: &Console,
) -> Result<Corpus, Failure> {
    let (root, spec) = (continued.root.as_path(), continued.spec());
    let expected = run_text::sha256(request, root);
    let Some(given) = &args.data else {
        let near = [root, spec.parent().unwrap_or(Path::new(""))];
        return run_text::find(request, expected.as_deref(), &near, registry, console);
    };
    let corpus = downloads::corpus(given, registry, console)?;
    let is_same = expected.map_or(*given == request.data, |sha256| sha256 == corpus.sha256());
    if is_same { Ok(corpus) } else { Err(with_help(kept_by_the_run("data"))) }
}

/// The first thing in which two specs differ of those that a run keeps: what its checkpoints, its batches and its random
/// numbers depend on.
fn what_is_kept(was: &Spec, is: &Spec) -> Option<&'static str> {
    let (was, is) = (&was.checked, &is.checked);
    if was.model.to_resolved() != is.model.to_resolved() {
        return Some("model");
    }
    if was.recipe.optimizer.spec.name != is.recipe.optimizer.spec.name {
        return Some("optimizer");
    }
    let (was, is) = (was.recipe.to_resolved(), is.recipe.to_resolved());
    ["data", "split", "batch", "accumulate", "average", "seed", "init", "init_scale", "precision", "freeze"]
        .into_iter()
        .find(|name| was.get(*name) != is.get(*name))
}

fn same_recipe(was: &Spec, is: &Spec) -> bool {
    was.checked.recipe.to_resolved() == is.checked.recipe.to_resolved()
}

/// The refusal to continue a run with something else.
fn kept_by_the_run(what: &str) -> Failure {
    Failure::new(Exit::Usage, format!("a run keeps the {what} that it was begun with"))
}

fn with_help(failure: Failure) -> Failure {
    failure
        .help("what may change is --steps, and with -s: the settings of the optimizer, schedule, clip, evaluate, checkpoint, log")
        .help("start another run with --out FOLDER")
}

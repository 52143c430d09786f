//! What a training is asked for: by the command line alone, or by the run that it continues.

use crate::cli::args::TrainArgs;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::{downloads, remarks, run_text, shell};
use crate::{Request, Spec, read_source};
use moec_ir::Invariant;
use moec_model::Registry;
use moec_runtime::{Corpus, RunFolder};
use moec_syntax::SourceFile;
use std::path::{Path, PathBuf};

/// What a training is asked for.
pub(crate) struct Task {
    pub(crate) spec: Spec,
    pub(crate) corpus: Corpus,
    /// The folder that was named.
    pub(crate) root: Option<PathBuf>,
    /// Overrides that a continued run did not have before.
    changes: Vec<String>,
    /// What a continued run is asked for from here on, if that is not what it was asked for.
    request: Option<Request>,
}

impl Task {
    /// Of a new run.
    ///
    /// # Errors
    /// When the spec or the data is wrong.
    pub(crate) fn begun(args: &TrainArgs, registry: &Registry, console: &Console) -> Result<Self, Failure> {
        let mut set = args.spec.set.clone();
        set.extend(wishes(args));
        let spec = Spec::read(&args.spec.spec, registry, args.spec.model.as_deref(), &set)?;
        console.diagnostics(&spec.source, &spec.checked.warnings, args.spec.message_format);
        let data = args.data.clone().unwrap_or_else(|| spec.data(&args.spec.spec, registry));
        let corpus = downloads::corpus(&data, registry, console)?;
        if let Some(remark) = remarks::unseen(&corpus) {
            console.note(remark);
        }
        Ok(Self { spec, corpus, root: args.out.clone(), changes: Vec::new(), request: None })
    }

    /// Of the run in `--out`.
    ///
    /// # Errors
    /// When there is no run, it was begun with another spec, text or model, or something is to change that cannot.
    pub(crate) fn resumed(args: &TrainArgs, registry: &Registry, console: &Console) -> Result<Self, Failure> {
        let root = args.out.clone().invariant("clap asks for --out beside --resume");
        // Read first: it says whether there is a run at all.
        let source = source_of(args, &root)?;
        let before = Request::read(&root)?;
        require_imports(&source, &before, &root)?;
        if args.spec.model.is_some() && args.spec.model != before.model {
            return Err(kept_by_the_run("model"));
        }
        let source = source.with_kept_imports(&before.imports);
        let check = |set: &[String]| Spec::check(source.clone(), registry, before.model.as_deref(), set);
        let was = check(&before.set)?;
        let mut set = before.set.clone();
        let mut changes = Vec::new();
        for wish in args.spec.set.iter().cloned().chain(wishes(args)) {
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
        console.diagnostics(&spec.source, &spec.checked.warnings, args.spec.message_format);
        let corpus = text_of(args, &before, &root, registry, console)?;
        let data = corpus.name().to_string();
        let data_sha256 = Some(corpus.sha256().to_string());
        let after = Request { set, data, data_sha256, ..before.clone() };
        let request = (after != before).then_some(after);
        Ok(Self { spec, corpus, root: Some(root), changes, request })
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
fn source_of(args: &TrainArgs, root: &Path) -> Result<SourceFile, Failure> {
    let text = moec_runtime::read_spec(root)?;
    let given = read_source(&args.spec.spec)?;
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
    root: &Path,
    registry: &Registry,
    console: &Console,
) -> Result<Corpus, Failure> {
    let expected = run_text::sha256(request, root);
    let Some(given) = &args.data else {
        let near = [root, args.spec.spec.parent().unwrap_or(Path::new(""))];
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
    ["data", "split", "batch", "seed", "init", "precision"].into_iter().find(|name| was.get(*name) != is.get(*name))
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

//! `moec search`: which values of a space reach the lowest held-out loss, tried one after the other by an optimiser.

mod space;
mod text;
mod trials;

use crate::cli::args::SearchArgs;
use crate::cli::cmd::compare::budget::Budget;
use crate::cli::cmd::compare::runs::{Bench, json_text};
use crate::cli::cmd::compare::variants::{self, Variant};
use crate::cli::cmd::compare::{Contender, Prepared, prepared};
use crate::cli::configuration::Values;
use crate::cli::console::Console;
use crate::cli::devices::Devices;
use crate::cli::exit::{Exit, Failure};
use crate::cli::signals::Signals;
use crate::cli::units::{duration, grouped};
use crate::cli::{downloads, shell};
use crate::report::picture::{Dot, Line, Picture};
use crate::request::resolved;
use crate::{Error, Spec, read_source};
use moec_model::Registry;
use moec_plan::Backend;
use moec_runtime::Dataset;
use moec_syntax::SourceFile;
use serde_json::json;
use space::{Space, Tried};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;
use trials::{Identity, State, Trial, Trials};

/// Points that are no model, for each trial that is asked for, at most.
const IMPOSSIBLE: u64 = 20;

/// Runs the command.
///
/// # Errors
/// When the spec, the space, the data, the folder or the device is wrong, or no point of the space can be trained.
pub(crate) fn run(
    args: &SearchArgs,
    registry: &Registry,
    devices: Devices,
    console: &Console,
) -> Result<Exit, Failure> {
    let subject = Subject::read(args, registry, console)?;
    let data = args.data.clone().unwrap_or_else(|| subject.base.data(&subject.path, registry));
    let corpus = downloads::corpus(&data, registry, console)?;
    let dataset = Dataset::new(&corpus, corpus.vocab()?, subject.base.checked.recipe.split)?;
    let bench = Bench {
        out: &args.out,
        device: args.device,
        eval_batches: args.eval_batches,
        points: 0,
        registry,
        console,
        corpus: &corpus,
        dataset: &dataset,
    };
    let budget = Budget::of(&args.budget);
    let identity = Identity::new(&subject.base, &subject.set, &args.sweep, budget, corpus.sha256(), args);
    let backend = devices.open(args.device)?;
    let signals = Signals::listen(*console)?;
    let mut trials = Trials::open(&args.out, identity)?;
    let search = Search { args, subject: &subject, bench: &bench, budget, backend: &*backend, signals: &signals };
    if !search.run(&mut trials)? {
        let done = trials.all.iter().filter(|trial| trial.is_trained()).count();
        console.note(format!(
            "interrupted and saved; the same command goes on ({done} of {} trials are done)",
            args.trials
        ));
        return Ok(signals.exit());
    }
    search.deliver(&trials.all, &data)
}

/// What is varied.
struct Subject {
    path: PathBuf,
    model: Option<String>,
    /// What its trials are called before what they differ in.
    name: String,
    source: SourceFile,
    /// The spec as it is without a point of the space.
    base: Spec,
    /// What every trial is given.
    set: Vec<String>,
    space: Space,
}

impl Subject {
    fn read(args: &SearchArgs, registry: &Registry, console: &Console) -> Result<Self, Failure> {
        let (path, model) = variants::file_and_model(&args.spec);
        for (i, sweep) in args.sweep.iter().enumerate() {
            if args.sweep[..i].iter().any(|other| other.path == sweep.path) {
                return Err(Failure::new(Exit::Usage, format!("-S {} is given twice", sweep.path)));
            }
        }
        let source = read_source(&path)?;
        let values = Values::read(args.config.as_deref(), &args.set)?;
        values.check(&source, registry, model.as_deref())?;
        let set = values.overrides();
        let mut with_steps = set.clone();
        with_steps.extend(args.budget.steps.map(|n| format!("train.steps={n}")));
        let base = Spec::check(source.clone(), registry, model.as_deref(), &with_steps)?;
        console.diagnostics(&base.source, &base.checked.warnings, args.message_format);
        let what_losses_depend_on =
            ["context", "vocab", "train.split", "train.data", "train.batch", "train.accumulate"];
        let is_cost = |path: &str| path == "train.batch" || path == "train.accumulate";
        let costs = Budget::of(&args.budget).counts_cost();
        let wrong = args
            .sweep
            .iter()
            .map(|s| s.path.as_str())
            .find(|path| what_losses_depend_on.contains(path) && !(is_cost(path) && costs));
        if let Some(path) = wrong {
            let failure = Failure::new(Exit::Usage, format!("-S {path}: losses of other values cannot be compared"));
            return Err(match is_cost(path) {
                true => {
                    failure.help("give all as many operations (--flops F) or minutes (--minutes M) instead of steps")
                }
                false => failure.help("a search for each value says what is best with it"),
            });
        }
        let name = base.checked.model.name.clone();
        Ok(Self { path, model, name, source, base, set, space: Space { sweeps: args.sweep.clone() } })
    }

    /// `small k=2 lr=1e-3`
    fn label(&self, given: &[(String, String)]) -> String {
        let paths = || given.iter().map(|(path, _)| path.as_str());
        let parts = given.iter().map(|(path, value)| format!(" {}={value}", variants::short(path, paths())));
        self.name.clone() + &parts.collect::<String>()
    }
}

struct Search<'a> {
    args: &'a SearchArgs,
    subject: &'a Subject,
    bench: &'a Bench<'a>,
    budget: Budget,
    backend: &'a dyn Backend,
    signals: &'a Signals,
}

impl Search<'_> {
    /// Tries points until there are as many as asked for, or none is left; false if a signal came.
    fn run(&self, trials: &mut Trials) -> Result<bool, Failure> {
        let (args, console, space) = (self.args, self.bench.console, &self.subject.space);
        let mut tried: Vec<Tried> = Vec::new();
        let (mut trained, mut now, begun) = (0u64, 0u64, Instant::now());
        let mut least = f64::INFINITY;
        while trained < args.trials {
            let number = tried.len() as u64;
            let Some(point) = space.propose(args.seed, number, &tried) else {
                console.note(format!("all {number} points of the space are tried"));
                break;
            };
            if number - trained >= IMPOSSIBLE * args.trials {
                console.warn(format!("{} points were no models; the search ends here", number - trained));
                break;
            }
            let given = space.overrides(&point);
            let trial = match trials.known(number, &given)? {
                Some(trial) => trial,
                None => {
                    let Some(trial) = self.trial(number, trained, &given)? else { return Ok(false) };
                    now += u64::from(trial.is_trained());
                    trials.add(trial.clone())?;
                    trial
                }
            };
            let loss = trial.loss_nats.unwrap_or(f64::INFINITY);
            let is_best = loss < least;
            least = least.min(loss);
            trained += u64::from(trial.is_trained());
            tried.push(Tried { point, loss, is_model: trial.is_trained() });
            let said = match trial.state {
                State::Finished if is_best => format!("val {loss:.4}, the lowest so far"),
                State::Finished => format!("val {loss:.4}"),
                State::Diverged => "diverged".to_string(),
                State::Infeasible => format!("no model: {}", trial.message.as_deref().unwrap_or("no reason given")),
            };
            let left = begun.elapsed().as_secs_f64() / now.max(1) as f64 * args.trials.saturating_sub(trained) as f64;
            let left = match now > 0 && trained < args.trials {
                true => format!(", about {} left", duration(left)),
                false => String::new(),
            };
            console.note(format!("{}: {said}; {trained} of {} trials{left}", trial.label, args.trials));
        }
        Ok(true)
    }

    /// Trains and evaluates a point; `None` if a signal came.
    fn trial(&self, number: u64, trained: u64, given: &[(String, String)]) -> Result<Option<Trial>, Failure> {
        let (subject, bench) = (self.subject, self.bench);
        let own: Vec<String> = given.iter().map(|(path, value)| format!("{path}={value}")).collect();
        let (label, folder) = (subject.label(given), format!("trial-{number:03}"));
        let mut trial = Trial::new(number, label.clone(), own.clone());
        let set: Vec<String> = subject.set.iter().chain(&own).cloned().collect();
        let mut with_steps = set.clone();
        with_steps.extend(self.args.budget.steps.map(|n| format!("train.steps={n}")));
        let infeasible = |mut trial: Trial, error: Error| -> Result<Option<Trial>, Failure> {
            // A path that there is not is a slip, and no corner of the space.
            if variants::reason(&error).0.as_deref() == Some("E0608") {
                return Err(error.into());
            }
            trial.state = State::Infeasible;
            (trial.code, trial.message) = {
                let (code, message) = variants::reason(&error);
                (code, Some(message))
            };
            Ok(Some(trial))
        };
        let spec = match Spec::check(subject.source.clone(), bench.registry, subject.model.as_deref(), &with_steps) {
            Ok(spec) => spec,
            Err(error) => return infeasible(trial, error),
        };
        let path = subject.path.clone();
        let variant = Variant { label: label.clone(), folder, path, spec, set, own, is_point: true };
        let contender = match prepared(bench, variant, self.budget, self.backend, self.signals)? {
            Prepared::Ready(contender) => *contender,
            Prepared::Impossible(_, error) => return infeasible(trial, error),
            Prepared::Stopped => return Ok(None),
        };
        let Contender { variant, compiled, .. } = &contender;
        let (mut losses, mut seconds) = (Vec::new(), 0.0);
        for seed in 1..=self.args.seeds {
            let title = format!("{label} seed {seed} ({} of {})", trained + 1, self.args.trials);
            let result = match bench.finished(variant, seed)? {
                Some(result) => Some(result),
                None if self.signals.stopping() => None,
                None => bench.train(variant, compiled, seed, self.backend, self.signals, &title)?,
            };
            let Some(result) = result else { return Ok(None) };
            seconds += result.seconds.unwrap_or(0.0);
            losses.push(result.loss_nats);
        }
        let finished: Vec<f64> = losses.iter().flatten().copied().collect();
        trial.state = if finished.len() == losses.len() { State::Finished } else { State::Diverged };
        trial.loss_nats = super::compare::statistics::mean(&finished).filter(|_| trial.state == State::Finished);
        trial.steps = Some(variant.spec.checked.recipe.steps);
        trial.seconds = Some(seconds);
        trial.parameters = Some(compiled.lowered.parameter_count());
        trial.active_parameters = Some(compiled.lowered.active_parameter_count());
        trial.run = Some(bench.folder(variant).display().to_string());
        Ok(Some(trial))
    }

    /// Writes the picture and the best spec, and says what is best.
    fn deliver(&self, trials: &[Trial], data: &str) -> Result<Exit, Failure> {
        let (args, console) = (self.args, self.bench.console);
        let finished = trials.iter().filter(|trial| trial.loss_nats.is_some());
        let by_loss =
            |a: &&Trial, b: &&Trial| a.loss_nats.partial_cmp(&b.loss_nats).unwrap_or(std::cmp::Ordering::Equal);
        let Some(best) = finished.min_by(by_loss) else {
            let why = trials.iter().find_map(|trial| Some(format!("{}: {}", trial.label, trial.message.as_ref()?)));
            let exit = if trials.iter().any(|t| t.state == State::Diverged) { Exit::Diverged } else { Exit::Usage };
            let failure = Failure::new(exit, "no point of the space was trained to its end");
            return Err(why.into_iter().fold(failure, Failure::help));
        };
        let write = |name: &str, text: &str| {
            let path = args.out.join(name);
            std::fs::write(&path, text).map_err(|e| Failure::file("write", &path, &e))?;
            console.note(format!("wrote {}", path.display()));
            Ok::<PathBuf, Failure>(path)
        };
        write("search.svg", &picture(trials, best, self.bench.corpus.name()))?;
        let best_spec = match self.best_text(best, data)? {
            Some(text) => Some(write("best.moe", &text)?),
            None => {
                console.warn("the best values have no place of their own in the text, so there is no best.moe");
                None
            }
        };
        let count = |state: State| trials.iter().filter(|trial| trial.state == state).count();
        let found = json!({
            "schema": "moec.search/1",
            "spec": self.subject.path.display().to_string(),
            "model": self.subject.name,
            "device": args.device.name(),
            "data": self.bench.corpus.name(),
            "data_sha256": self.bench.corpus.sha256(),
            "budget": self.budget,
            "seed": args.seed,
            "seeds": args.seeds,
            "eval_batches": args.eval_batches,
            "paths": args.sweep.iter().map(|sweep| &sweep.path).collect::<Vec<_>>(),
            "finished": count(State::Finished),
            "diverged": count(State::Diverged),
            "infeasible": count(State::Infeasible),
            "best": best,
            "best_spec": best_spec.as_ref().map(|path| path.display().to_string()),
            "trials": trials,
        });
        write("search.json", &json_text(&found)?)?;
        match args.json {
            true => console.json(&found)?,
            false => console.write(&said(trials, best, best_spec.as_deref(), self))?,
        }
        Ok(Exit::Success)
    }

    /// The text of the spec with the values of a trial in it, if it means the same.
    fn best_text(&self, best: &Trial, data: &str) -> Result<Option<String>, Failure> {
        let subject = self.subject;
        let steps = best.steps.map(|steps| format!("train.steps={steps}"));
        let set: Vec<String> = subject.set.iter().chain(&best.set).cloned().chain(steps).collect();
        let model = subject.model.as_deref();
        let meant = Spec::check(subject.source.clone(), self.bench.registry, model, &set)?;
        let values: Vec<(String, String)> = set
            .iter()
            .filter_map(|given| given.split_once('='))
            .map(|(p, v)| (p.trim().into(), v.trim().into()))
            .collect();
        let written = text::with_values(&subject.source, &subject.name, &values)?;
        let imports = subject.source.imported().map(|(path, file)| (path.to_string(), file.text().to_string()));
        let imports: BTreeMap<String, String> = imports.collect();
        let source = SourceFile::new(subject.source.name(), written.clone()).with_kept_imports(&imports);
        let says = Spec::check(source, self.bench.registry, model, &[])?;
        let of = |spec: &Spec| resolved(&spec.checked.model, &spec.checked.recipe);
        if of(&says) != of(&meant) {
            return Ok(None);
        }
        // It lies in another folder than the spec: what is named from there has another way.
        let data = match std::fs::canonicalize(data) {
            Ok(path) => path.display().to_string(),
            Err(_) => data.to_string(),
        };
        let value = if data == "synthetic" { data } else { format!("{data:?}") };
        let values = [("train.data".to_string(), value)];
        let source = SourceFile::new(subject.source.name(), written).with_kept_imports(&imports);
        let written = text::with_values(&source, &subject.name, &values)?;
        // What it imports comes along, if it lies where the best spec does.
        for (path, text) in imports.iter().filter(|(path, _)| !path.starts_with("std/")) {
            let parts = Path::new(path).components();
            if parts.clone().any(|part| !matches!(part, std::path::Component::Normal(_))) {
                return Ok(None);
            }
            let copy = self.args.out.join(path);
            let folder = copy.parent().unwrap_or(&self.args.out);
            std::fs::create_dir_all(folder).map_err(|e| Failure::file("make", folder, &e))?;
            std::fs::write(&copy, text).map_err(|e| Failure::file("write", &copy, &e))?;
        }
        Ok(Some(written))
    }
}

/// What is said at the end: the best points, and what to do with the first.
fn said(trials: &[Trial], best: &Trial, best_spec: Option<&Path>, search: &Search<'_>) -> String {
    let mut finished: Vec<(&Trial, f64)> = trials.iter().filter_map(|t| Some((t, t.loss_nats?))).collect();
    finished.sort_by(|a, b| a.1.total_cmp(&b.1));
    let count = |state: State| trials.iter().filter(|trial| trial.state == state).count();
    let mut text = String::from(
        "| validation loss | parameters | active | steps | trial | point |\n|---:|---:|---:|---:|---:|---|\n",
    );
    for (trial, loss) in finished.iter().take(10) {
        let number = |n: Option<usize>| n.map_or("-".to_string(), |n| grouped(n as u64));
        text += &format!(
            "| {loss:.4} | {} | {} | {} | {} | {} |\n",
            number(trial.parameters),
            number(trial.active_parameters),
            trial.steps.map_or("-".to_string(), grouped),
            trial.trial,
            trial.label
        );
    }
    text += &format!(
        "\nThe best of {} trained points ({} diverged, {} are no models); of the best of many, some of its lead is luck: compare it with \
         more seeds.\n\n",
        count(State::Finished),
        count(State::Diverged),
        count(State::Infeasible)
    );
    let set: String = best.set.iter().map(|given| format!(" -s {}", shell::word(given))).collect();
    let model = search.subject.model.as_ref().map(|model| format!(" --model {model}")).unwrap_or_default();
    text += &match best_spec {
        Some(path) => format!("moec train {}{model}\n", shell::path(path)),
        None => format!("moec train {}{model}{set}\n", shell::path(&search.subject.path)),
    };
    text
}

/// Losses over trials, with the lowest so far.
fn picture(trials: &[Trial], best: &Trial, data: &str) -> String {
    let mut least = f64::INFINITY;
    let (mut dots, mut lowest) = (Vec::new(), Vec::new());
    for (number, trial) in (1..).zip(trials.iter().filter(|trial| trial.is_trained())) {
        let x = f64::from(number);
        if let Some(loss) = trial.loss_nats {
            if loss < least && least.is_finite() {
                // It falls at once, and not over a trial.
                lowest.push((x, least));
            }
            least = least.min(loss);
            dots.push(Dot { x, y: loss, label: format!("{}: {loss:.4}", trial.label) });
        }
        if least.is_finite() {
            lowest.push((x, least));
        }
    }
    let infeasible = trials.iter().filter(|trial| trial.state == State::Infeasible).count();
    let diverged = trials.iter().filter(|trial| trial.state == State::Diverged).count();
    let parts = [(infeasible, "more points are no models"), (diverged, "of them diverged")];
    let more: String = parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("; {n} {what}")).collect();
    Picture {
        title: format!("Search on {}", data.rsplit('/').next().unwrap_or(data)),
        subtitle: format!(
            "validation loss in nats per character; a dot for each of {} trained points{more}",
            dots.len()
        ),
        axis: "trials".to_string(),
        lines: vec![Line { label: best.label.clone(), points: lowest, band: Vec::new() }],
        dots,
    }
    .svg()
}

//! `moec compare`: several models on equal budgets, and a table of what they reach.

use crate::cli::args::CompareArgs;
use crate::cli::balance::experts_per_token;
use crate::cli::configuration::Values;
use crate::cli::console::Console;
use crate::cli::devices::Devices;
use crate::cli::downloads;
use crate::cli::exit::{Exit, Failure};
use crate::cli::progress::Progress;
use crate::cli::signals::Signals;
use crate::cli::table::{Table, filled};
use crate::cli::units::{duration, grouped, milliseconds};
use crate::pipeline::{CompileOptions, Compiled, Function};
use crate::{Error, Request, Session, Spec, read_source, train_config};
use moec_ir::Invariant;
use moec_model::Registry;
use moec_plan::Backend;
use moec_runtime::{
    Corpus, Dataset, Evaluation, LayerBalance, Metric, Outcome, RunFolder, Split, TrainConfig, TrainError,
};
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Version of [`RunResult`].
const RESULT_SCHEMA: &str = "moec.compare.run/1";

/// Where a run keeps its [`RunResult`]: that of the whole held-out text apart from that of some batches, so that a quick look
/// does not cost the long one.
fn result_file(eval_batches: Option<u64>) -> String {
    eval_batches.map_or("result.json".to_string(), |n| format!("result-{n}.json"))
}

/// Runs the command: all seeds of the first number, then of the second, so that a drift of the machine's speed meets
/// every spec alike.
///
/// # Errors
/// When a spec, the data, a run folder or the device is wrong, or the budgets of the specs differ.
pub(crate) fn run(
    args: &CompareArgs,
    registry: &Registry,
    devices: Devices,
    console: &Console,
) -> Result<Exit, Failure> {
    let entries = entries(args, registry, console)?;
    let data = data(args, &entries, registry)?;
    let corpus = downloads::corpus(&data, registry, console)?;
    require_equal_budgets(&entries)?;
    let split = entries.first().invariant("clap asks for specs").spec.checked.recipe.split;
    let dataset = Dataset::new(&corpus, corpus.vocab()?, split)?;
    let options = CompileOptions::only([Function::TrainStep, Function::Evaluate, Function::Logits]);
    let mut compiled = Vec::new();
    for entry in &entries {
        for split in [Split::Train, Split::Validation] {
            dataset.windows(split, entry.spec.checked.model.context)?;
        }
        compiled.push(entry.spec.compile(dataset.vocab(), args.device, &options)?);
    }
    let bench = Bench { args, registry, console, corpus: &corpus, dataset: &dataset };
    let backend = devices.open(args.device)?;
    let signals = Signals::listen(*console)?;

    let all = entries.len() * args.seeds as usize;
    let (mut done, mut trained, begun) = (0, 0, Instant::now());
    let mut results: Vec<Vec<RunResult>> = vec![Vec::new(); entries.len()];
    for seed in 1..=args.seeds {
        for (i, entry) in entries.iter().enumerate() {
            let title = format!("{} seed {seed}", entry.label);
            let ended = match bench.finished(entry, seed)? {
                Some(result) => {
                    console.note(format!("{title}: finished before"));
                    Some(result)
                }
                None if signals.stopping() => None,
                None => {
                    trained += 1;
                    bench.train(entry, &compiled[i], seed, &*backend, &signals, &title)?
                }
            };
            let Some(result) = ended else {
                console
                    .note(format!("interrupted and saved; the same command goes on ({done} of {all} runs are done)"));
                return Ok(signals.exit());
            };
            done += 1;
            let left = begun.elapsed().as_secs_f64() / f64::from(trained.max(1)) * (all - done) as f64;
            let left =
                if trained > 0 && done < all { format!(", about {} left", duration(left)) } else { String::new() };
            console.note(format!("{title}: {}; {done} of {all} runs{left}", result.summary()));
            results[i].push(result);
        }
    }
    let comparison = comparison(&bench, &entries, &compiled, results);
    deliver(args, console, &comparison)
}

/// One of the models that are compared.
struct Entry {
    /// How it is called in the table and which folder its runs are in.
    label: String,
    /// As given.
    path: PathBuf,
    spec: Spec,
    /// What it is given beside its file, but for steps and seed.
    set: Vec<String>,
}

/// Reads and checks every spec, so that a fault in the last one is known before the first is trained.
fn entries(args: &CompareArgs, registry: &Registry, console: &Console) -> Result<Vec<Entry>, Failure> {
    let mut named = Vec::new();
    for given in &args.specs {
        let (path, model) = file_and_model(given);
        let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let suffix = model.as_ref().map(|m| format!("-{m}")).unwrap_or_default();
        named.push((stem + &suffix, path, model));
    }
    let values = Values::read(args.config.as_deref(), &args.set)?;
    let mut entries: Vec<Entry> = Vec::new();
    for (short, path, model) in &named {
        let is_unique = named.iter().filter(|(other, ..)| other == short).count() == 1;
        let label = if is_unique { short.clone() } else { long_label(path, model.as_deref()) };
        if entries.iter().any(|e| e.label == label) {
            let message = format!("{} is given twice", path.display());
            return Err(Failure::new(Exit::Usage, message).help("--seeds K trains every spec several times"));
        }
        let source = read_source(path)?;
        values.check(&source, registry, model.as_deref())?;
        let set = values.overrides();
        let mut with_steps = set.clone();
        with_steps.extend(args.steps.map(|n| format!("train.steps={n}")));
        let spec = Spec::check(source, registry, model.as_deref(), &with_steps)?;
        console.diagnostics(&spec.source, &spec.checked.warnings, args.message_format);
        entries.push(Entry { label, path: path.clone(), spec, set });
    }
    Ok(entries)
}

/// `FILE#MODEL`, unless a file has that very name.
fn file_and_model(given: &Path) -> (PathBuf, Option<String>) {
    match given.to_str().and_then(|text| text.rsplit_once('#')) {
        Some((file, model)) if !given.exists() => (PathBuf::from(file), Some(model.to_string())),
        _ => (given.to_path_buf(), None),
    }
}

/// A label of the whole path, for specs whose files have the same name.
fn long_label(path: &Path, model: Option<&str>) -> String {
    let plain = |c: char| if c.is_alphanumeric() || c == '_' { c } else { '-' };
    let text = path.with_extension("").display().to_string();
    let label: String = text.trim_start_matches(['.', '/']).chars().map(plain).collect();
    model.map_or(label.clone(), |m| format!("{label}-{m}"))
}

/// The text that all are trained on.
fn data(args: &CompareArgs, entries: &[Entry], registry: &Registry) -> Result<String, Failure> {
    if let Some(data) = &args.data {
        return Ok(data.clone());
    }
    let mut all: Vec<String> = entries.iter().map(|e| e.spec.data(&e.path, registry)).collect();
    all.dedup();
    match &all[..] {
        [data] => Ok(data.clone()),
        _ => Err(Failure::new(Exit::Usage, "the specs are trained on different texts")
            .help("give one text for all with --data FILE")),
    }
}

/// Losses can be compared after equally many steps of equally many tokens in windows of one length only.
fn require_equal_budgets(entries: &[Entry]) -> Result<(), Failure> {
    let budget = |e: &Entry| {
        let (model, recipe) = (&e.spec.checked.model, &e.spec.checked.recipe);
        [
            ("context", model.context.to_string()),
            ("train.batch", recipe.sequences_text()),
            ("train.steps", recipe.steps.to_string()),
            ("train.split", recipe.split.to_string()),
        ]
    };
    let Some((first, rest)) = entries.split_first() else { return Ok(()) };
    for other in rest {
        for ((what, a), (_, b)) in budget(first).into_iter().zip(budget(other)) {
            if a != b {
                let message = format!("{} has {what} {a}, but {} has {b}", first.label, other.label);
                return Err(Failure::new(Exit::Usage, message).help(format!("give all the same: -s {what}={a}")));
            }
        }
    }
    Ok(())
}

/// What a finished run reached; kept in its folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct RunResult {
    schema: String,
    seed: u64,
    /// Optimiser steps made.
    step: u64,
    data_sha256: String,
    /// Batches of the evaluation that were asked for; `None` for the whole held-out text.
    eval_batches: Option<u64>,
    windows: usize,
    characters: usize,
    /// Validation loss; `None` if training diverged.
    loss_nats: Option<f64>,
    /// Median time of a step, without evaluation and checkpoints.
    step_ms: Option<f64>,
    /// Trained numbers that a token made use of in the mean, where that varies.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    active_parameters: Option<f64>,
    layers: Vec<LayerBalance>,
}

impl RunResult {
    /// The result of a run with an evaluation of so many batches; `None` for one that no comparison has finished.
    fn read(root: &Path, eval_batches: Option<u64>) -> Option<Self> {
        // Once they all had one name.
        let found = [result_file(eval_batches), result_file(None)]
            .into_iter()
            .find_map(|name| Self::read_file(&root.join(name)));
        found.filter(|result| result.eval_batches == eval_batches)
    }

    fn read_file(path: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        serde_json::from_str(&text).ok().filter(|result: &Self| result.schema == RESULT_SCHEMA)
    }

    /// The result of a run with the longest evaluation.
    fn best_known(root: &Path) -> Option<Self> {
        let names = std::fs::read_dir(root).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let results = names.filter(|name| name.starts_with("result") && name.ends_with(".json"));
        results.filter_map(|name| Self::read_file(&root.join(name))).max_by_key(|result| result.windows)
    }

    fn summary(&self) -> String {
        match (self.loss_nats, self.step_ms) {
            (Some(loss), Some(ms)) => format!("val {loss:.4}, {} ms per step", milliseconds(ms, 1)),
            (Some(loss), None) => format!("val {loss:.4}"),
            (None, _) => format!("diverged at step {}", self.step),
        }
    }
}

/// The evaluation at the end of a run of a comparison, which has none in its metrics. It is of the held-out text alone: the
/// loss on the other part is not a number.
pub(crate) fn evaluation(root: &Path) -> Option<Evaluation> {
    let RunResult { step, loss_nats, active_parameters, layers, .. } = RunResult::best_known(root)?;
    let (train_loss_nats, validation_loss_nats) = (f64::NAN, Some(loss_nats?));
    Some(Evaluation { step, train_loss_nats, validation_loss_nats, active_parameters, layers })
}

/// What all runs have in common.
struct Bench<'a> {
    args: &'a CompareArgs,
    registry: &'a Registry,
    console: &'a Console,
    corpus: &'a Corpus,
    dataset: &'a Dataset,
}

impl Bench<'_> {
    fn root(&self, entry: &Entry, seed: u64) -> PathBuf {
        self.args.out.join(&entry.label).join(format!("seed-{seed}"))
    }

    fn request(&self, entry: &Entry, seed: u64) -> Request {
        let mut set = entry.set.clone();
        set.push(format!("train.steps={}", entry.spec.checked.recipe.steps));
        set.push(format!("train.seed={seed}"));
        Request { set, ..entry.spec.request(self.dataset) }
    }

    /// The result of a run that is finished; `None` if there is something left to do.
    fn finished(&self, entry: &Entry, seed: u64) -> Result<Option<RunResult>, Failure> {
        let root = self.root(entry, seed);
        if !root.join("spec.moe").exists() {
            return Ok(None);
        }
        let another = |what| another(&root, what);
        if moec_runtime::read_spec(&root)? != entry.spec.source.text() {
            return Err(another("another spec"));
        }
        if !self.request(entry, seed).asks_the_same(&Request::read(&root)?) {
            return Err(another("another budget, text or overrides"));
        }
        // A result that cannot be read is made again.
        let Some(result) = RunResult::read(&root, self.args.eval_batches) else { return Ok(None) };
        if result.data_sha256 != self.corpus.sha256() {
            return Err(another("another text of that name"));
        }
        Ok(Some(result))
    }

    /// Trains a run to its end, from its newest checkpoint if there is one, and evaluates it; `None` if a signal
    /// stopped it, and then it is saved.
    fn train(
        &self,
        entry: &Entry,
        compiled: &Compiled,
        seed: u64,
        backend: &dyn Backend,
        signals: &Signals,
        title: &str,
    ) -> Result<Option<RunResult>, Failure> {
        let root = self.root(entry, seed);
        let request = self.request(entry, seed);
        let spec = Spec::check(entry.spec.source.clone(), self.registry, request.model.as_deref(), &request.set)?;
        let recipe = &spec.checked.recipe;
        let config = TrainConfig {
            // Twenty reports are enough for a median; one checkpoint for going on.
            log_every: match recipe.log_every {
                0 => recipe.steps.div_ceil(20),
                every => every.min(recipe.steps.div_ceil(20)),
            },
            evaluate_every: 0,
            keep: Some(1),
            ..train_config(recipe)
        };
        let folder = if root.join("spec.moe").exists() {
            RunFolder::open(&root)?
        } else {
            spec.create_run(&root, self.dataset, compiled)?
        };
        let mut session = Session::on(backend, &spec, compiled)?;
        let moec_runtime::Resumption { step: start, passed_over } = session.begin(self.dataset, &folder, &config)?;
        self.console.passed_over(&passed_over, start);
        if start > config.steps {
            return Err(another(&root, "more steps"));
        }
        if start < config.steps {
            let mut progress = Progress::of_several(*self.console, title.to_string(), &config);
            let trained = session.continue_from(start, self.dataset, &folder, &config, &signals.stop, &mut progress);
            match trained {
                Ok(summary) if summary.outcome == Outcome::Interrupted => return Ok(None),
                Ok(_) => {}
                Err(Error::Train(TrainError::Diverged { step, .. })) => {
                    let result = self.result(&folder, seed, step, None)?;
                    return Ok(Some(result));
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.console.note(format!("{title}: evaluating"));
        let most =
            self.args.eval_batches.map(|n| usize::try_from(n).unwrap_or(usize::MAX).saturating_mul(recipe.batch));
        let loss = moec_runtime::evaluate_split(
            &mut session.executable()?,
            self.dataset,
            Split::Validation,
            config.seed,
            most,
            &mut |_, _| if signals.stopping() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) },
        )?;
        let Some(loss) = loss else { return Ok(None) };
        self.result(&folder, seed, config.steps, Some(loss)).map(Some)
    }

    /// Writes what a run reached into its folder.
    fn result(
        &self,
        folder: &RunFolder,
        seed: u64,
        step: u64,
        loss: Option<moec_runtime::SplitLoss>,
    ) -> Result<RunResult, Failure> {
        let metrics = moec_runtime::read_metrics(folder.root())?;
        let times = metrics.iter().filter_map(|m| match m {
            Metric::Train(m) => Some(m.step_ms),
            _ => None,
        });
        let result = RunResult {
            schema: RESULT_SCHEMA.to_string(),
            seed,
            step,
            data_sha256: self.corpus.sha256().to_string(),
            eval_batches: self.args.eval_batches,
            windows: loss.as_ref().map_or(0, |l| l.windows),
            characters: loss.as_ref().map_or(0, |l| l.characters),
            loss_nats: loss.as_ref().map(|l| l.loss_nats).filter(|l| l.is_finite()),
            step_ms: median(times.collect()),
            active_parameters: loss.as_ref().and_then(|l| l.active_parameters),
            layers: loss.map(|l| l.layers).unwrap_or_default(),
        };
        folder.write_report(&result_file(result.eval_batches), &json_text(&result)?)?;
        Ok(result)
    }
}

/// A run that this comparison cannot go on with.
fn another(root: &Path, what: &str) -> Failure {
    Failure::new(Exit::Usage, format!("{} was begun with {what}", root.display()))
        .help("compare into another folder with --out DIR, or remove that run")
}

fn json_text(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value);
    text.map(|t| t + "\n").map_err(|e| Failure::new(Exit::Failure, format!("cannot write the result: {e}")))
}

/// The middle value, or the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len().is_multiple_of(2) { (values[middle - 1] + upper) / 2.0 } else { upper })
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Standard deviation of a sample; there is none of a single value.
fn deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values)?;
    let n = values.len();
    (n > 1).then(|| (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt())
}

/// What is written to compare.json.
#[derive(Debug, Serialize)]
struct Comparison {
    schema: &'static str,
    device: &'static str,
    data: String,
    data_sha256: String,
    steps: u64,
    batch: usize,
    context: usize,
    seeds: u64,
    eval_batches: Option<u64>,
    windows: usize,
    characters: usize,
    specs: Vec<Row>,
}

/// One spec, over its seeds.
#[derive(Debug, Serialize)]
struct Row {
    label: String,
    spec: String,
    parameters: usize,
    active_parameters: usize,
    /// Mean validation loss of the runs that did not diverge.
    loss_nats: Option<f64>,
    /// Standard deviation of the sample of seeds.
    loss_nats_deviation: Option<f64>,
    /// Median over the runs of the median time of a step.
    step_ms: Option<f64>,
    /// Of the worst layer, mean over the seeds; this and what follows are absent without mixture layers.
    load_max_over_mean: Option<f64>,
    /// Summed over the layers, mean over the seeds.
    experts_without_tokens: Option<f64>,
    /// Mean over layers and seeds.
    entropy_nats: Option<f64>,
    /// Mean over layers and seeds.
    dropped_share: Option<f64>,
    /// Mean over the layers where it varies and the seeds; absent where it varies in none.
    #[serde(skip_serializing_if = "Option::is_none")]
    experts_per_token: Option<f64>,
    /// What a token made use of in the mean, over the seeds; absent where that does not vary.
    #[serde(skip_serializing_if = "Option::is_none")]
    measured_active_parameters: Option<f64>,
    diverged: usize,
    runs: Vec<RunResult>,
}

impl Row {
    fn new(entry: &Entry, compiled: &Compiled, runs: Vec<RunResult>) -> Self {
        let losses: Vec<f64> = runs.iter().filter_map(|r| r.loss_nats).collect();
        let panel = |of: &dyn Fn(&[LayerBalance]) -> f64| {
            let values: Vec<f64> = runs.iter().filter(|r| !r.layers.is_empty()).map(|r| of(&r.layers)).collect();
            mean(&values)
        };
        let layer_mean = |layers: &[LayerBalance], of: fn(&LayerBalance) -> f64| {
            layers.iter().map(of).sum::<f64>() / layers.len() as f64
        };
        Self {
            label: entry.label.clone(),
            spec: entry.path.display().to_string(),
            parameters: compiled.lowered.parameter_count(),
            active_parameters: compiled.lowered.active_parameter_count(),
            loss_nats: mean(&losses),
            loss_nats_deviation: deviation(&losses),
            step_ms: median(runs.iter().filter_map(|r| r.step_ms).collect()),
            load_max_over_mean: panel(&|l| l.iter().map(|l| l.load_max_over_mean).fold(0.0, f64::max)),
            experts_without_tokens: panel(&|l| l.iter().map(|l| l.experts_without_tokens as f64).sum()),
            entropy_nats: panel(&|l| layer_mean(l, |l| l.entropy_nats)),
            dropped_share: panel(&|l| layer_mean(l, |l| l.dropped_share)),
            experts_per_token: mean(&runs.iter().filter_map(|r| experts_per_token(&r.layers)).collect::<Vec<_>>()),
            measured_active_parameters: mean(&runs.iter().filter_map(|r| r.active_parameters).collect::<Vec<_>>()),
            diverged: runs.iter().filter(|r| r.loss_nats.is_none()).count(),
            runs,
        }
    }
}

fn comparison(bench: &Bench<'_>, entries: &[Entry], compiled: &[Compiled], results: Vec<Vec<RunResult>>) -> Comparison {
    let any = results.iter().flatten().find(|r| r.loss_nats.is_some());
    let (windows, characters) = any.map_or((0, 0), |r| (r.windows, r.characters));
    let first = &entries.first().invariant("clap asks for specs").spec.checked;
    Comparison {
        schema: "moec.compare/1",
        device: bench.args.device.name(),
        data: bench.corpus.name().to_string(),
        data_sha256: bench.corpus.sha256().to_string(),
        steps: first.recipe.steps,
        batch: first.recipe.sequences(),
        context: first.model.context,
        seeds: bench.args.seeds,
        eval_batches: bench.args.eval_batches,
        windows,
        characters,
        specs: entries.iter().zip(compiled).zip(results).map(|((e, c), runs)| Row::new(e, c, runs)).collect(),
    }
}

/// Heads of the table. The last ones are there where the number of experts of a token varies.
const HEADS: [&str; 10] = [
    "spec",
    "validation loss",
    "step",
    "active parameters",
    "load max/mean",
    "idle experts",
    "entropy",
    "dropped",
    "experts per token",
    "active as measured",
];

/// The heads that a comparison has.
fn heads(comparison: &Comparison) -> &'static [&'static str] {
    let varies = comparison.specs.iter().any(|row| row.experts_per_token.is_some());
    if varies { &HEADS } else { &HEADS[..HEADS.len() - 2] }
}

/// The cells of the table, a row for each spec.
fn cells(comparison: &Comparison) -> Vec<Vec<String>> {
    let columns = heads(comparison).len();
    let number = |value: Option<f64>, text: &dyn Fn(f64) -> String| value.map_or("-".to_string(), text);
    let mut rows = Vec::new();
    for row in &comparison.specs {
        let spread = row.loss_nats_deviation.map(|d| format!(" ± {d:.4}")).unwrap_or_default();
        let diverged = match row.diverged {
            0 => String::new(),
            n => format!(" ({n} of {} diverged)", row.runs.len()),
        };
        let mut cells = vec![
            row.label.clone(),
            number(row.loss_nats, &|l| format!("{l:.4}{spread}")) + &diverged,
            number(row.step_ms, &|ms| format!("{} ms", milliseconds(ms, 1))),
            grouped(row.active_parameters as u64),
            number(row.load_max_over_mean, &|x| format!("{x:.2}")),
            number(row.experts_without_tokens, &|x| {
                if x.fract() == 0.0 { format!("{x:.0}") } else { format!("{x:.1}") }
            }),
            number(row.entropy_nats, &|x| format!("{x:.3}")),
            number(row.dropped_share, &|x| format!("{:.1} %", 100.0 * x)),
            number(row.experts_per_token, &|x| format!("{x:.2}")),
            number(row.measured_active_parameters, &|x| grouped(x.round() as u64)),
        ];
        cells.truncate(columns);
        rows.push(cells);
    }
    rows
}

/// The table for a terminal of so many columns.
fn on_terminal(comparison: &Comparison, columns: usize) -> String {
    let mut table = Table::new(heads(comparison), 1);
    for row in cells(comparison) {
        table.row(row);
    }
    format!("{}\n{}\n", table.text(columns), filled(caption(comparison).trim_end(), columns))
}

/// The table as Markdown, aligned so that it reads well as text too.
fn markdown(comparison: &Comparison) -> String {
    let heads = heads(comparison);
    let mut rows = vec![heads.iter().map(ToString::to_string).collect()];
    rows.extend(cells(comparison));
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // The first column is words, the others are numbers.
            let cell = if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
            text.push_str(&format!("| {cell} "));
        }
        text.push_str("|\n");
        if i == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width + 1);
                text.push_str(&if column == 0 { format!("|{dashes}-") } else { format!("|{dashes}:") });
            }
            text.push_str("|\n");
        }
    }
    text + "\n" + &caption(comparison)
}

fn caption(c: &Comparison) -> String {
    let seeds = match c.seeds {
        1 => "seed 1".to_string(),
        n => format!("seeds 1 to {n}, ± is the standard deviation over them"),
    };
    let measured = match heads(c).len() == HEADS.len() {
        true => {
            " Experts per token and active as measured: those that computed for a token in the evaluation, mean over the \
                 layers where that varies, and the parameters that it met."
        }
        false => "",
    };
    format!(
        "{} steps of {} x {} characters of {}, {seeds}. Validation loss: mean cross-entropy in nats over {} held-out \
         characters. Step: median time on {}, without evaluation. Load max/mean: of the worst layer. Idle experts: \
         without tokens in the whole evaluation, over all layers. Entropy (of a token's gate weights, nats) and dropped \
         (share of choices over capacity): mean over layers.{measured}\n",
        grouped(c.steps),
        c.batch,
        c.context,
        c.data,
        grouped(c.characters as u64),
        c.device
    )
}

/// A comparison that is there already.
#[derive(Deserialize)]
struct Earlier {
    data_sha256: String,
    steps: u64,
    seeds: u64,
    eval_batches: Option<u64>,
    specs: Vec<EarlierSpec>,
}

#[derive(Deserialize)]
struct EarlierSpec {
    label: String,
}

impl Earlier {
    /// Whether all that it says is said by another one, too.
    fn is_part_of(&self, new: &Comparison) -> bool {
        let there = |spec: &EarlierSpec| new.specs.iter().any(|row| row.label == spec.label);
        (&self.data_sha256, self.steps, self.eval_batches) == (&new.data_sha256, new.steps, new.eval_batches)
            && self.seeds <= new.seeds
            && self.specs.iter().all(there)
    }
}

/// Puts a table aside that says something which the new one does not.
fn keep_earlier(folder: &Path, new: &Comparison, console: &Console) -> Result<(), Failure> {
    let names = |number: &str| [format!("compare{number}.json"), format!("compare{number}.md")];
    let path = |name: &String| folder.join(name);
    let now = names("");
    let earlier =
        std::fs::read_to_string(path(&now[0])).ok().and_then(|text| serde_json::from_str::<Earlier>(&text).ok());
    if earlier.is_some_and(|earlier| earlier.is_part_of(new)) || !now.iter().any(|name| path(name).exists()) {
        return Ok(());
    }
    let free = (1u64..).map(|n| names(&format!("-{n}"))).find(|names| !names.iter().any(|name| path(name).exists()));
    let aside = free.invariant("there is a number that no file has");
    for (from, to) in now.iter().zip(&aside).filter(|(from, _)| path(from).exists()) {
        std::fs::rename(path(from), path(to)).map_err(|e| Failure::file("rename", &path(from), &e))?;
    }
    console.note(format!("the earlier table, of other specs or budgets, is now {}", path(&aside[1]).display()));
    Ok(())
}

/// The runs in the folder of a comparison, spec by spec and seed by seed; none in any other folder.
pub(crate) fn runs_in(folder: &Path) -> Vec<PathBuf> {
    let folders_in = |folder: &Path| {
        let found = std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        let mut found: Vec<PathBuf> = found.filter(|path| path.is_dir()).collect();
        found.sort();
        found
    };
    if folder.join("spec.moe").exists() {
        return Vec::new();
    }
    let seed = |path: &PathBuf| -> Option<u64> { path.file_name()?.to_str()?.strip_prefix("seed-")?.parse().ok() };
    let runs_of = |spec: PathBuf| {
        let mut runs: Vec<PathBuf> =
            folders_in(&spec).into_iter().filter(|run| seed(run).is_some() && run.join("spec.moe").exists()).collect();
        runs.sort_by_key(seed);
        runs
    };
    folders_in(folder).into_iter().flat_map(runs_of).collect()
}

/// Writes the table beside the runs and prints it.
fn deliver(args: &CompareArgs, console: &Console, comparison: &Comparison) -> Result<Exit, Failure> {
    let (json, table) = (json_text(comparison)?, markdown(comparison));
    keep_earlier(&args.out, comparison, console)?;
    for (name, text) in [("compare.json", &json), ("compare.md", &table)] {
        let path = args.out.join(name);
        std::fs::write(&path, text).map_err(|e| Failure::file("write", &path, &e))?;
        console.note(format!("wrote {}", path.display()));
    }
    match (args.json, console.shows_results()) {
        (true, _) => console.write(&json)?,
        (false, true) => console.write(&on_terminal(comparison, console.columns()))?,
        (false, false) => console.write(&table)?,
    }
    let diverged = comparison.specs.iter().any(|row| row.diverged > 0);
    Ok(if diverged { Exit::Diverged } else { Exit::Success })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_and_medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!((mean(&[]), deviation(&[])), (None, None));
        assert_eq!((mean(&[1.5]), deviation(&[1.5])), (Some(1.5), None));
        assert_eq!((mean(&[1.0, 2.0, 3.0]), deviation(&[1.0, 2.0, 3.0])), (Some(2.0), Some(1.0)));
    }

    #[test]
    fn models_are_named_behind_their_file() {
        assert_eq!(file_and_model(Path::new("a.moe")), ("a.moe".into(), None));
        assert_eq!(file_and_model(Path::new("a.moe#b")), ("a.moe".into(), Some("b".into())));
        assert_eq!(long_label(Path::new("../x/top2.moe"), None), "x-top2");
        assert_eq!(long_label(Path::new("x y/t.moe"), Some("m")), "x-y-t-m");
    }
}

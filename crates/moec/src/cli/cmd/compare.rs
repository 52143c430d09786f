//! `moec compare`: several models on equal budgets, and a table of what they reach.

pub(super) mod budget;
mod curves;
mod folder;
pub(super) mod runs;
pub(super) mod statistics;
mod table;
pub(super) mod variants;

pub(in crate::cli) use folder::runs_in;
pub(in crate::cli) use runs::evaluation;

use crate::cli::args::CompareArgs;
use crate::cli::console::Console;
use crate::cli::devices::Devices;
use crate::cli::downloads;
use crate::cli::exit::{Exit, Failure};
use crate::cli::signals::Signals;
use crate::cli::units::{duration, grouped};
use crate::pipeline::{CompileOptions, Compiled, Function};
use crate::{Error, Spec};
use budget::{Budget, Cost};
use moec_ir::Invariant;
use moec_model::Registry;
use moec_plan::Backend;
use moec_runtime::{Dataset, Split};
use runs::{Bench, RunResult, json_text};
use std::time::Instant;
use table::Comparison;
use variants::{Plan, Variant};

/// A variant that is ready to be trained.
pub(super) struct Contender {
    pub(super) variant: Variant,
    pub(super) compiled: Compiled,
    pub(super) cost: Cost,
}

/// What has become of a variant that was to be trained.
pub(super) enum Prepared {
    Ready(Box<Contender>),
    /// It does not compile, or its schedule does not fit the budget.
    Impossible(Box<Variant>, Error),
    /// A signal came.
    Stopped,
}

/// Runs the command: all variants with the first seed, then with the second, so that a drift of the machine's speed meets
/// every one alike.
///
/// # Errors
/// When a spec, the data, a run folder or the device is wrong, or the budgets of the specs differ.
pub(crate) fn run(
    args: &CompareArgs,
    registry: &Registry,
    devices: Devices,
    console: &Console,
) -> Result<Exit, Failure> {
    let budget = Budget::of(&args.budget);
    let mut plan = Plan::read(args, budget.steps(), registry, console)?;
    let names: Vec<&str> = plan.variants.iter().map(|variant| variant.label.as_str()).collect();
    let baseline = names[variants::baseline(args.baseline.as_deref(), &names)?].to_string();
    let data = data(args, &plan.variants, registry)?;
    let corpus = downloads::corpus(&data, registry, console)?;
    require_comparable(&plan.variants, budget)?;
    let split = plan.variants.first().invariant("one of the variants is a model").spec.checked.recipe.split;
    let dataset = Dataset::new(&corpus, corpus.vocab()?, split)?;
    let bench = Bench {
        out: &args.out,
        device: args.device,
        eval_batches: args.eval_batches,
        points: args.points,
        registry,
        console,
        corpus: &corpus,
        dataset: &dataset,
    };
    let backend = devices.open(args.device)?;
    let signals = Signals::listen(*console)?;
    let Some(contenders) = contenders(&bench, &mut plan, budget, &*backend, &signals)? else {
        console.note("interrupted before the first run; the same command begins anew");
        return Ok(signals.exit());
    };
    // It may be one of the points that did not compile.
    let baseline = match args.baseline {
        Some(_) => variants::baseline(Some(&baseline), &labels(&contenders))?,
        None => 0,
    };
    let Some(results) = trained(&bench, args.seeds, &contenders, &*backend, &signals)? else {
        return Ok(signals.exit());
    };
    let curves = curves(&bench, args.seeds, &contenders)?;
    let picture = curves::picture(&labels(&contenders), &curves, budget, corpus.name());
    let comparison =
        Comparison::new(&bench, budget, (baseline, args.margin), args.seeds, &contenders, plan.infeasible, results);
    deliver(args, console, &comparison, &curves::lines(&curves)?, picture)
}

/// The text that all are trained on.
fn data(args: &CompareArgs, variants: &[Variant], registry: &Registry) -> Result<String, Failure> {
    if let Some(data) = &args.data {
        return Ok(data.clone());
    }
    let mut all: Vec<String> = variants.iter().map(|v| v.spec.data(&v.path, registry)).collect();
    all.dedup();
    match &all[..] {
        [data] => Ok(data.clone()),
        _ => Err(Failure::new(Exit::Usage, "the specs are trained on different texts")
            .help("give one text for all with --data FILE")),
    }
}

/// Losses can be compared on windows of one length of one text; and after equally many steps only if these are of equally many
/// characters.
fn require_comparable(variants: &[Variant], budget: Budget) -> Result<(), Failure> {
    let alike = |v: &Variant| {
        let (model, recipe) = (&v.spec.checked.model, &v.spec.checked.recipe);
        let all = [("context", model.context.to_string()), ("train.split", recipe.split.to_string())];
        let of_steps = [("train.batch", recipe.sequences_text()), ("train.steps", recipe.steps.to_string())];
        all.into_iter().chain(of_steps.into_iter().filter(|_| !budget.counts_cost())).collect::<Vec<_>>()
    };
    let Some((first, rest)) = variants.split_first() else { return Ok(()) };
    for other in rest {
        for ((what, a), (_, b)) in alike(first).into_iter().zip(alike(other)) {
            if a != b {
                let message = format!("{} has {what} {a}, but {} has {b}", first.label, other.label);
                let failure = Failure::new(Exit::Usage, message).help(format!("give all the same: -s {what}={a}"));
                return Err(match what {
                    "train.batch" => {
                        failure.help("or give all as many operations (--flops F) or minutes (--minutes M)")
                    }
                    _ => failure,
                });
            }
        }
    }
    Ok(())
}

/// Every variant compiled, with the number of steps that its budget gives it; `None` if a signal came meanwhile. Points of a
/// grid that do not compile are left out.
fn contenders(
    bench: &Bench<'_>,
    plan: &mut Plan,
    budget: Budget,
    backend: &dyn Backend,
    signals: &Signals,
) -> Result<Option<Vec<Contender>>, Failure> {
    let mut contenders: Vec<Contender> = Vec::new();
    for variant in std::mem::take(&mut plan.variants) {
        match prepared(bench, variant, budget, backend, signals)? {
            Prepared::Ready(contender) => {
                if budget.counts_cost() {
                    let steps = grouped(contender.variant.spec.checked.recipe.steps);
                    bench.console.note(format!("{}: {steps} steps are {}", contender.variant.label, budget.text()));
                }
                contenders.push(*contender);
            }
            Prepared::Impossible(variant, error) => plan.leave_out(*variant, error, bench.console)?,
            Prepared::Stopped => return Ok(None),
        }
    }
    match (contenders.is_empty(), plan.infeasible.first()) {
        (true, Some(first)) => Err(Failure::new(Exit::Usage, first.sentence())),
        _ => Ok(Some(contenders)),
    }
}

/// A variant compiled, with the number of steps that its budget gives it.
///
/// # Errors
/// When the text is too short, the budget is not enough for a step, or the device fails.
pub(super) fn prepared(
    bench: &Bench<'_>,
    mut variant: Variant,
    budget: Budget,
    backend: &dyn Backend,
    signals: &Signals,
) -> Result<Prepared, Failure> {
    for split in [Split::Train, Split::Validation] {
        bench.dataset.windows(split, variant.spec.checked.model.context)?;
    }
    let mut compiled = match compile(bench, &variant.spec) {
        Ok(compiled) => compiled,
        Err(error @ (Error::Build(_) | Error::TooLarge(_))) => {
            return Ok(Prepared::Impossible(Box::new(variant), error));
        }
        Err(error) => return Err(error.into()),
    };
    let mut cost = Cost::counted(&variant.spec, &compiled);
    if let Budget::Minutes { .. } = budget {
        let (folder, measured) = (bench.folder(&variant), (&variant.spec, &variant.set[..]));
        let device = bench.device.name();
        cost.step_ms = budget::pace(&folder, device, measured, &compiled, bench.dataset, backend, signals)?;
        if cost.step_ms.is_none() {
            return Ok(Prepared::Stopped);
        }
    }
    if let Some(steps) = budget.steps_of(&variant.label, &cost)? {
        let mut set = variant.set.clone();
        set.push(format!("train.steps={steps}"));
        let (source, model) = (variant.spec.source.clone(), variant.spec.request(bench.dataset).model);
        // A schedule may be longer than this budget.
        match Spec::check(source, bench.registry, model.as_deref(), &set) {
            Ok(spec) => variant.spec = spec,
            Err(error) => return Ok(Prepared::Impossible(Box::new(variant), error)),
        }
        compiled = compile(bench, &variant.spec)?;
    }
    Ok(Prepared::Ready(Box::new(Contender { variant, compiled, cost })))
}

fn compile(bench: &Bench<'_>, spec: &Spec) -> Result<Compiled, Error> {
    let options = CompileOptions::only([Function::TrainStep, Function::Evaluate, Function::Logits]);
    spec.compile(bench.dataset.vocab(), bench.device, &options)
}

fn labels(contenders: &[Contender]) -> Vec<&str> {
    contenders.iter().map(|contender| contender.variant.label.as_str()).collect()
}

/// The results of every contender, seed by seed; `None` if a signal came, and then what was in progress is saved.
fn trained(
    bench: &Bench<'_>,
    seeds: u64,
    contenders: &[Contender],
    backend: &dyn Backend,
    signals: &Signals,
) -> Result<Option<Vec<Vec<RunResult>>>, Failure> {
    let console = bench.console;
    let all = contenders.len() * seeds as usize;
    let (mut done, mut trained, begun) = (0, 0, Instant::now());
    let mut results: Vec<Vec<RunResult>> = vec![Vec::new(); contenders.len()];
    for seed in 1..=seeds {
        for (contender, results) in contenders.iter().zip(&mut results) {
            let Contender { variant, compiled, .. } = contender;
            let title = format!("{} seed {seed}", variant.label);
            let ended = match bench.finished(variant, seed)? {
                Some(result) => {
                    console.note(format!("{title}: finished before"));
                    Some(result)
                }
                None if signals.stopping() => None,
                None => {
                    trained += 1;
                    bench.train(variant, compiled, seed, backend, signals, &title)?
                }
            };
            let Some(result) = ended else {
                console
                    .note(format!("interrupted and saved; the same command goes on ({done} of {all} runs are done)"));
                return Ok(None);
            };
            done += 1;
            let left = begun.elapsed().as_secs_f64() / f64::from(trained.max(1)) * (all - done) as f64;
            let left =
                if trained > 0 && done < all { format!(", about {} left", duration(left)) } else { String::new() };
            console.note(format!("{title}: {}; {done} of {all} runs{left}", result.summary()));
            results.push(result);
        }
    }
    Ok(Some(results))
}

/// The learning curves of every run, contender by contender and seed by seed.
fn curves(bench: &Bench<'_>, seeds: u64, contenders: &[Contender]) -> Result<Vec<curves::Point>, Failure> {
    let mut points = Vec::new();
    for Contender { variant, cost, .. } in contenders {
        let (model, recipe) = (&variant.spec.checked.model, &variant.spec.checked.recipe);
        let step = curves::Step { characters: (recipe.sequences() * model.context) as u64, flop: cost.flops };
        for seed in 1..=seeds {
            let metrics = moec_runtime::read_metrics(&bench.root(variant, seed))?;
            points.extend(curves::of_run(&variant.label, seed, step, &metrics));
        }
    }
    Ok(points)
}

/// Writes table and curves beside the runs, and prints the table.
fn deliver(
    args: &CompareArgs,
    console: &Console,
    comparison: &Comparison,
    curves: &str,
    picture: Option<String>,
) -> Result<Exit, Failure> {
    let (json, markdown) = (json_text(comparison)?, table::markdown(comparison));
    folder::keep_earlier(&args.out, comparison, console)?;
    let mut files = vec![("compare.json", &json), ("compare.md", &markdown)];
    let curves = curves.to_string();
    if let Some(picture) = &picture {
        files.extend([("curves.jsonl", &curves), ("curves.svg", picture)]);
    }
    for (name, text) in files {
        let path = args.out.join(name);
        std::fs::write(&path, text).map_err(|e| Failure::file("write", &path, &e))?;
        console.note(format!("wrote {}", path.display()));
    }
    match (args.json, console.shows_results()) {
        (true, _) => console.write(&json)?,
        (false, true) => console.write(&table::on_terminal(comparison, console.columns()))?,
        (false, false) => console.write(&markdown)?,
    }
    Ok(if comparison.has_diverged() { Exit::Diverged } else { Exit::Success })
}

//! `moec gradcheck`: the gradient of every parameter against central differences.
//!
//! The graph is the forward pass of a training step with its choices given as inputs ([`moec_plan::freeze_routes`]): with
//! them free, a step across the border between two experts would make the objective jump. Everything is computed by the
//! reference evaluator in 64 bits.

use crate::cli::args::GradcheckArgs;
use crate::cli::configuration;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::units::grouped;
use crate::pipeline::{self, CompileError, Function};
use crate::{Spec, cli::downloads, initial_states, read_source};
use indicatif::ProgressBar;
use moec_ir::{Data, EvalError, Graph, Input, Output, Precision, Tensor, evaluate, random};
use moec_model::{Lowered, NoisePolicy, Registry, Vocab};
use moec_plan::{Probe, Wrt, on_threads};
use moec_runtime::{Corpus, Dataset, Split, Tokens};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Parameters start as in training and are moved by noise of this deviation, so that nothing sits exactly on a kink, as
/// a zero bias before a relu does.
const JITTER: f64 = 0.02;

/// Streams of random numbers outside the graph; the graph's own count from 1.
const JITTER_KEY: u32 = 0xffff_0001;
const CHOICE_KEY: u32 = 0xffff_0002;
const TOKEN_KEY: u32 = 0xffff_0003;

/// Runs the command.
///
/// # Errors
/// When the file or the data is wrong, or the model is too large to be evaluated.
pub(crate) fn run(args: &GradcheckArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    for (what, value) in [("--eps", args.eps), ("--atol", args.atol), ("--rtol", args.rtol)] {
        if !(value.is_finite() && value >= 0.0) || (what == "--eps" && value == 0.0) {
            return Err(Failure::new(Exit::Usage, format!("{what} must be a positive number")));
        }
    }
    let (reading, source) = (&args.spec.reading, read_source(&args.spec.spec)?);
    let set = configuration::given(reading, &source, registry)?;
    let mut spec = Spec::check(source, registry, reading.model.as_deref(), &set)?;
    console.diagnostics(&spec.source, &spec.checked.warnings, args.spec.reading.message_format);
    let shortened = shorten(&mut spec, args);
    let problem = Problem::of(&spec, args, registry, console)?;
    let report = problem.check(&spec, args, shortened, console)?;
    if args.json {
        let json = serde_json::to_value(&report);
        console.json(&json.map_err(|e| Failure::new(Exit::Failure, format!("cannot write the report: {e}")))?)?;
    } else {
        console.write(&report.table())?;
    }
    Ok(if report.ok { Exit::Success } else { Exit::Failure })
}

/// Takes a smaller batch of shorter sequences, and says what was changed. Products are checked as they are without rounding:
/// rounded, they are stairs, whose central differences are steps or nothing.
fn shorten(spec: &mut Spec, args: &GradcheckArgs) -> Vec<String> {
    let mut changed = Vec::new();
    let mut at_most = |what: &str, value: &mut usize, most: u64| {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        if *value > most {
            changed.push(format!("{what} {most} instead of {value}"));
            *value = most;
        }
    };
    at_most("context", &mut spec.checked.model.context, args.context);
    at_most("batch", &mut spec.checked.recipe.batch, args.batch);
    let precision = std::mem::take(&mut spec.checked.recipe.precision);
    if precision != Precision::default() {
        changed.push(format!("precision {} instead of {}", Precision::default().name(), precision.name()));
    }
    changed
}

/// The objective with its gradient at a point.
struct Problem {
    /// The forward graph with frozen routes.
    forward: Graph,
    bindings: BTreeMap<String, Tensor>,
    parameters: Vec<Gradient>,
}

/// The gradient of a parameter as the compiler derives it.
struct Gradient {
    name: String,
    shape: Vec<usize>,
    elements: Vec<f64>,
}

impl Problem {
    fn of(spec: &Spec, args: &GradcheckArgs, registry: &Registry, console: &Console) -> Result<Self, Failure> {
        let (model, recipe) = (&spec.checked.model, &spec.checked.recipe);
        let failed = |e: CompileError| Failure::from(e.at(&spec.source));
        let dataset = text(args, model.vocab, registry, console)?;
        let vocab = dataset.vocab().len();
        let (tokens, targets) = batch(dataset.windows(Split::Train, model.context)?, recipe.batch, model.context);
        let lowered = pipeline::lower(model, recipe, vocab, Function::TrainStep, NoisePolicy::Generated);
        let lowered = lowered.map_err(|e| failed(e.into()))?;
        let mut bindings = point(spec, &lowered, &dataset, args.seed)?;
        bindings.insert(Input::Tokens.into(), Tensor::ints(tokens));
        bindings.insert(Input::Targets.into(), Tensor::ints(targets));
        bindings.insert(Input::Rng.into(), Tensor::ints(random::state(args.seed, 0)));

        let recorded = evaluate(&moec_plan::record_routes(&lowered.graph), &bindings).map_err(not_evaluated)?;
        for (name, tensor) in recorded.outputs {
            if let Some(Output::Route(node)) = Output::of_name(&name) {
                bindings.insert(Input::Route(node).into(), tensor);
            }
        }
        let forward = moec_plan::freeze_routes(&lowered.graph).map_err(|e| failed(e.into()))?;
        let derived =
            moec_plan::differentiate(&forward, Output::Objective, &Wrt::Parameters).map_err(|e| failed(e.into()))?;
        let mut gradients = evaluate(&derived, &bindings).map_err(not_evaluated)?.outputs;
        let parameters = lowered.parameters.iter().filter_map(|(name, _)| {
            let gradient = gradients.remove(&Output::Gradient(name.clone()).to_string())?;
            Some(Gradient { name: name.clone(), shape: gradient.shape().to_vec(), elements: gradient.to_f64() })
        });
        let parameters = parameters.collect();
        Ok(Self { forward, bindings, parameters })
    }

    fn check(
        &self,
        spec: &Spec,
        args: &GradcheckArgs,
        shortened: Vec<String>,
        console: &Console,
    ) -> Result<Report, Failure> {
        let probe = Probe::new(&self.forward, Output::Objective, &self.bindings).map_err(not_evaluated)?;
        let chosen: Vec<Vec<usize>> =
            self.parameters.iter().enumerate().map(|(i, g)| choose(g, i as u64, args)).collect();
        let jobs: Vec<(usize, usize)> =
            chosen.iter().enumerate().flat_map(|(p, elements)| elements.iter().map(move |&e| (p, e))).collect();
        let tolerance = Tolerance { eps: args.eps, atol: args.atol, rtol: args.rtol };
        let errors = in_parallel(&jobs, console, |&(p, element)| {
            let gradient = &self.parameters[p];
            tolerance.check(&probe, &gradient.name, element, gradient.elements[element])
        })
        .map_err(not_evaluated)?;

        let mut rows: Vec<Row> = self.parameters.iter().map(Row::new).collect();
        for (&(p, _), checked) in jobs.iter().zip(errors) {
            rows[p].add(checked);
        }
        let (model, recipe) = (&spec.checked.model, &spec.checked.recipe);
        Ok(Report {
            schema: "moec.gradcheck/1",
            model: model.name.clone(),
            batch: recipe.batch,
            context: model.context,
            shortened,
            objective: probe.objective(),
            seed: args.seed,
            eps: args.eps,
            atol: args.atol,
            rtol: args.rtol,
            ok: rows.iter().all(|r| r.result != Outcome::Wrong),
            parameters: rows,
        })
    }
}

fn not_evaluated(error: EvalError) -> Failure {
    let failure = Failure::new(Exit::Failure, format!("the objective cannot be evaluated: {error}"));
    match error {
        EvalError::TooLarge { .. } => failure.help("make the model smaller (-s width=16) or the batch (--batch 1)"),
        _ => failure,
    }
}

/// The text that the batch is taken from, and that tables of routers are computed from.
fn text(args: &GradcheckArgs, vocab: Vocab, registry: &Registry, console: &Console) -> Result<Dataset, Failure> {
    let corpus = downloads::corpus(&args.data, registry, console)?;
    let characters = corpus.vocab()?;
    let (corpus, characters) = match vocab {
        // Any characters serve where the text has another number of them.
        Vocab::Size(size) if size != characters.len() => {
            let keys = random::keys(random::state(args.seed, 0), TOKEN_KEY);
            let length = (4 * size).max(10_000) as u32;
            let ids = (0..size).chain((0..length).map(|i| below(random::bits(keys, i), size)));
            // The planes behind the first hold a million characters without a gap.
            let text: String = ids.filter_map(|id| char::from_u32(0x1_0000 + id as u32)).collect();
            let corpus = Corpus::from_bytes("random characters", text.into_bytes())?;
            let vocab = corpus.vocab()?;
            (corpus, vocab)
        }
        _ => (corpus, characters),
    };
    Ok(Dataset::new(&corpus, characters, 1.0)?)
}

/// A batch spread over the text, with its targets.
fn batch(text: Tokens<'_>, rows: usize, time: usize) -> (Vec<i32>, Vec<i32>) {
    let last = text.len().saturating_sub(time + 1);
    let (mut tokens, mut targets) = (Vec::new(), Vec::new());
    for row in 0..rows {
        let start = if rows > 1 { (row as u128 * last as u128 / (rows - 1) as u128) as usize } else { 0 };
        tokens.extend(text.range(start..start + time).iter());
        targets.extend(text.range(start + 1..start + time + 1).iter());
    }
    (tokens, targets)
}

/// Parameters and states as a training begins, the parameters moved a little.
fn point(spec: &Spec, lowered: &Lowered, dataset: &Dataset, seed: u64) -> Result<BTreeMap<String, Tensor>, Failure> {
    let program = moec_plan::plan(&[("forward".to_string(), &lowered.graph)]);
    let declared = program.map_err(|e| Failure::new(Exit::Failure, e.to_string()))?.states;
    let states = initial_states(&lowered.states, dataset, spec.folder())?;
    let mut tensors = moec_runtime::initial_tensors(seed, &declared, &lowered.parameters, &states);
    for (i, (name, _)) in lowered.parameters.iter().enumerate() {
        let Some(tensor) = tensors.get_mut(name) else { continue };
        let keys = random::keys(random::state(seed, i as u64), JITTER_KEY);
        let moved = tensor.to_f64().into_iter().zip(0u32..).map(|(x, n)| x + JITTER * random::normal_at(keys, n));
        if let Some(moved) = Tensor::new(tensor.shape().to_vec(), Data::F64(moved.collect())) {
            *tensor = moved;
        }
    }
    Ok(tensors)
}

/// Random bits as a number on `0..n`.
fn below(bits: u32, n: usize) -> usize {
    ((u64::from(bits) * n as u64) >> 32) as usize
}

/// The elements of a parameter to check: that with the largest gradient, then by turns any, and one whose gradient is
/// not zero, since most rows of an embedding and the weights of an idle expert have none in a small batch.
fn choose(gradient: &Gradient, index: u64, args: &GradcheckArgs) -> Vec<usize> {
    let count = gradient.elements.len();
    let samples = usize::try_from(args.samples).unwrap_or(usize::MAX);
    if args.all || count <= samples {
        return (0..count).collect();
    }
    let keys = random::keys(random::state(args.seed, index), CHOICE_KEY);
    let draw_below = |draw: usize, n: usize| below(random::bits(keys, draw as u32), n);
    let nonzero: Vec<usize> = (0..count).filter(|&e| gradient.elements[e] != 0.0).collect();
    let largest = (0..count).max_by(|&a, &b| gradient.elements[a].abs().total_cmp(&gradient.elements[b].abs()));
    let mut chosen: BTreeSet<usize> = largest.into_iter().collect();
    for draw in 0.. {
        if chosen.len() >= samples || draw > 8 * samples {
            break;
        }
        let from_nonzero = draw % 2 == 0 && !nonzero.is_empty();
        chosen.insert(if from_nonzero { nonzero[draw_below(draw, nonzero.len())] } else { draw_below(draw, count) });
    }
    chosen.into_iter().collect()
}

struct Tolerance {
    eps: f64,
    atol: f64,
    rtol: f64,
}

/// What the check of one element found.
#[derive(Clone, Copy, Debug)]
struct Checked {
    error: f64,
    ok: bool,
}

impl Tolerance {
    /// Compares a derivative with the central difference. One that does not agree is tried again with steps ten times
    /// smaller and larger: a kink within the step then goes away, a wrong gradient does not.
    fn check(&self, probe: &Probe<'_>, name: &str, element: usize, derivative: f64) -> Result<Checked, EvalError> {
        let mut best = Checked { error: f64::INFINITY, ok: false };
        for h in [self.eps, self.eps / 10.0, self.eps * 10.0] {
            let difference = probe.central_difference(name, element, h)?;
            let error = (derivative - difference).abs();
            // Not a number is never within the tolerance.
            let ok = error <= self.atol + self.rtol * difference.abs();
            if ok || error < best.error {
                best = Checked { error, ok };
            }
            if ok {
                break;
            }
        }
        Ok(best)
    }
}

/// Maps jobs on all cores and shows how far they are; the results are in the order of the jobs.
fn in_parallel<J: Sync, T: Send>(
    jobs: &[J],
    console: &Console,
    work: impl Fn(&J) -> Result<T, EvalError> + Sync,
) -> Result<Vec<T>, EvalError> {
    let (done, tenths) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let bar = console.is_interactive().then(|| ProgressBar::new(jobs.len() as u64));
    let found = on_threads(jobs, |job| {
        let result = work(job);
        let n = done.fetch_add(1, Ordering::Relaxed) + 1;
        match &bar {
            Some(bar) => bar.set_position(n as u64),
            // A line for every tenth part of a long check.
            None if jobs.len() >= 500
                && n * 10 / jobs.len() > tenths.fetch_max(n * 10 / jobs.len(), Ordering::Relaxed) =>
            {
                console.note(format!("{} of {} elements", grouped(n as u64), grouped(jobs.len() as u64)));
            }
            None => {}
        }
        result
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    found.into_iter().collect()
}

/// What was found about a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    /// The gradient agrees.
    Ok,
    /// It agrees and is zero everywhere: nothing that the objective reads is reached from this parameter.
    NotReached,
    /// It does not agree.
    Wrong,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    shape: Vec<usize>,
    elements: usize,
    checked: usize,
    /// Largest difference between the gradient and the central differences; `None` if it is not a number.
    largest_error: Option<f64>,
    largest_gradient: f64,
    result: Outcome,
}

impl Row {
    fn new(gradient: &Gradient) -> Self {
        let largest = gradient.elements.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let is_zero = gradient.elements.iter().all(|&x| x == 0.0);
        Row {
            name: gradient.name.clone(),
            shape: gradient.shape.clone(),
            elements: gradient.elements.len(),
            checked: 0,
            largest_error: Some(0.0),
            largest_gradient: largest,
            result: if is_zero { Outcome::NotReached } else { Outcome::Ok },
        }
    }

    fn add(&mut self, checked: Checked) {
        self.checked += 1;
        self.largest_error = self.largest_error.filter(|_| checked.error.is_finite()).map(|e| e.max(checked.error));
        if !checked.ok {
            self.result = Outcome::Wrong;
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    model: String,
    batch: usize,
    context: usize,
    shortened: Vec<String>,
    objective: f64,
    seed: u64,
    eps: f64,
    atol: f64,
    rtol: f64,
    ok: bool,
    parameters: Vec<Row>,
}

impl Report {
    fn table(&self) -> String {
        let shortened =
            if self.shortened.is_empty() { String::new() } else { format!(" ({})", self.shortened.join(", ")) };
        let mut text = format!(
            "gradients of {} against central differences: {} x {} tokens{shortened}, routes frozen, step {:e}, allowed \
             {:e} + {:e} |d|\n\n",
            self.model, self.batch, self.context, self.eps, self.atol, self.rtol
        );
        let width = self.parameters.iter().map(|r| r.name.len()).max().unwrap_or(0).max("parameter".len());
        text.push_str(&format!(
            "{:<width$}  {:>10}  {:>8}  {:>10}  {:>10}\n",
            "parameter", "elements", "checked", "gradient", "error"
        ));
        for row in &self.parameters {
            let error = row.largest_error.map_or("not finite".to_string(), |e| format!("{e:.1e}"));
            let result = match row.result {
                Outcome::Ok => "ok",
                Outcome::NotReached => "not reached by the gradient",
                Outcome::Wrong => "WRONG",
            };
            text.push_str(&format!(
                "{:<width$}  {:>10}  {:>8}  {:>10}  {error:>10}  {result}\n",
                row.name,
                grouped(row.elements as u64),
                grouped(row.checked as u64),
                format!("{:.1e}", row.largest_gradient)
            ));
        }
        let count = |outcome| self.parameters.iter().filter(|r| r.result == outcome).count();
        let wrong = count(Outcome::Wrong);
        let not_reached = match count(Outcome::NotReached) {
            0 => String::new(),
            n => format!(", {n} of them not reached by the gradient"),
        };
        text.push_str(&match wrong {
            0 => format!("\nall {} parameters agree{not_reached}\n", self.parameters.len()),
            n => format!("\n{n} of {} parameters are WRONG{not_reached}\n", self.parameters.len()),
        });
        text
    }
}

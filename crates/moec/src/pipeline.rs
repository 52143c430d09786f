//! The way through the house, as one function per half: text to checked model, checked model to program.
//!
//! ```text
//! bytes ─parse─▶ File ─check─▶ Model ─lower─▶ Graph ─differentiate─▶ Graph ─optimize─▶ Graph ─cluster─▶ Clusters ─plan─▶ Program
//! ```

use crate::error::{Error, Messages};
use crate::request;
pub use moec_ir::Function;
use moec_ir::{Graph, GraphError, Output, Precision, Stage, WeightFormat, verify};
use moec_model::{
    Cache, CheckOptions, Form, Freeze, LowerError, LowerOptions, Lowered, Mode, Model, NamedValue, NoisePolicy, Recipe,
    Registry, TensorsError, span_of,
};
use moec_plan::{
    Arrangement, ClusterOptions, Clusters, FUSIONS, LaunchLimits, MemoryReport, OptimizeOptions, PassReport, PlanError,
    Program, StateDecl, StepOptions, WeightStorage, Wrt, on_threads,
};
use moec_syntax::{Code, Diagnostic, Severity, SourceFile, Span};
use std::time::{Duration, Instant};

/// The functions that a model has with a recipe: keys and values cannot be kept of all, and few steps are made of several batches.
pub fn functions_of(model: &Model, recipe: &Recipe) -> Vec<Function> {
    let cached = !matches!(moec_model::decoding(model).cache, Cache::Never(_));
    let is_there = |function: &Function| match function {
        Function::Decode => cached,
        Function::Accumulate => recipe.accumulate > 1,
        Function::TrainStep | Function::Evaluate | Function::Logits | Function::Next => true,
    };
    Function::ALL.into_iter().filter(is_there).collect()
}

/// A model that passed every check, with its recipe.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The model.
    pub model: Model,
    /// Its values that have a name: `let`s, `context` and `vocab`.
    pub named: Vec<NamedValue>,
    /// How it is trained.
    pub recipe: Recipe,
    /// What the file can name, with the routers that it defines.
    pub registry: Registry,
    /// Warnings.
    pub warnings: Vec<Diagnostic>,
}

impl Checked {
    /// The model and the recipe with every default filled in, as YAML: what `moec compile --emit model` prints and what a
    /// run keeps as `resolved.yaml`.
    pub fn to_yaml(&self) -> String {
        request::resolved(&self.model, &self.recipe)
    }
}

/// Text to checked model, with the overrides that the source was given ([`SourceFile::with_overrides`]).
///
/// # Errors
/// Every message about the file and the overrides, warnings included, if one of them is an error.
pub fn check(source: &SourceFile, registry: &Registry, model: Option<&str>) -> Result<Checked, Vec<Diagnostic>> {
    let file = moec_syntax::parse(source)?;
    let options = CheckOptions { model: model.map(str::to_string) };
    let checked = moec_model::check(source, &file, registry, &options);
    let failed = checked.diagnostics.iter().any(|d| d.severity == Severity::Error);
    match checked.model {
        Some(model) if !failed => {
            let (named, recipe, registry) = (checked.named, checked.recipe, checked.registry);
            Ok(Checked { model, named, recipe, registry, warnings: checked.diagnostics })
        }
        _ => Err(checked.diagnostics),
    }
}

/// What [`compile`] is asked for beyond the model.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// The functions of the program; all that the model has if `None`. [`Function::Accumulate`] comes with
    /// [`Function::TrainStep`] where steps are made of several batches.
    pub functions: Option<Vec<Function>>,
    /// Texts that are written at once: sequences of [`Function::Next`] and [`Function::Decode`].
    pub samples: usize,
    /// Stop the compilation of every function after this pass or fusion.
    pub after: Option<String>,
    /// Stop the passes and fusions of every function after this many rewrites.
    pub max_rewrites: Option<usize>,
    /// What the kernels of the device can do at most; what every device can by default.
    pub limits: LaunchLimits,
    /// Whether noise of routers is drawn or given.
    pub noise: NoisePolicy,
    /// Parameters are written with `Executable::write_states`, so that the weights of products may be stored in the order in
    /// which they are read: for functions that write texts as these numbers, for the others as they are. Not where a function
    /// trains them.
    pub weights: Option<WeightFormat>,
}

impl Default for CompileOptions {
    fn default() -> Self {
        Self {
            functions: None,
            samples: 1,
            after: None,
            max_rewrites: None,
            limits: LaunchLimits::default(),
            noise: NoisePolicy::Generated,
            weights: None,
        }
    }
}

impl CompileOptions {
    /// Only these functions.
    pub fn only(functions: impl Into<Vec<Function>>) -> Self {
        Self { functions: Some(functions.into()), ..Self::default() }
    }
}

/// A compiled model.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The training step as it was lowered, whichever functions were asked for: parameters, states, layers.
    pub lowered: Lowered,
    /// The optimised graph of every function, in clusters that are computed together.
    pub clusters: Vec<(Function, Clusters)>,
    /// What passes and fusions did to every function.
    pub reports: Vec<(Function, PassReport)>,
    /// The plans of all functions over shared persistent tensors.
    pub program: Program,
    /// The persistent tensors of the model and of the program: what a checkpoint holds does not depend on the functions.
    pub states: Vec<StateDecl>,
    /// Where the memory of the program goes.
    pub memory: MemoryReport,
    /// Time of every stage.
    pub times: Vec<(&'static str, Duration)>,
}

/// Why a checked model did not compile. All but memory mean a fault in a router or loss from outside, or in moec.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// Lowering failed.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// A graph did not fit together.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Differentiation, optimisation or planning failed.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The recipe names tensors that are not there, or freezes everything.
    #[error("{error}")]
    Tensors {
        /// What is wrong.
        error: TensorsError,
        /// Where it was written.
        span: Option<Span>,
    },
    /// A graph broke the rules of its stage.
    #[error("the graph after {stage} is not valid: {message}")]
    Invalid {
        /// The stage.
        stage: &'static str,
        /// The first broken rules.
        message: String,
    },
}

impl CompileError {
    /// The error as a message that points into the file where possible.
    pub fn diagnostic(&self) -> Diagnostic {
        if let CompileError::Tensors { error, span } = self {
            return named_wrongly(error, *span);
        }
        let span = match self {
            CompileError::Lower(LowerError::Routing { span, .. }) => Some(*span),
            CompileError::Lower(LowerError::NotCached(obstacle)) => Some(obstacle.span),
            CompileError::Lower(LowerError::Graph(e)) | CompileError::Graph(e) => e.origin.map(span_of),
            CompileError::Plan(PlanError::TooLarge { origin, .. }) => origin.map(span_of),
            CompileError::Tensors { span, .. } => *span,
            CompileError::Lower(_) | CompileError::Plan(_) | CompileError::Invalid { .. } => None,
        };
        let diagnostic = Diagnostic::new(Code::CannotBuild, self.to_string());
        match span {
            Some(span) => diagnostic.primary(span, "built here"),
            None => diagnostic,
        }
    }

    /// The error beside the text of the model.
    pub(crate) fn at(&self, source: &SourceFile) -> Error {
        Error::Build(Messages::new(source, vec![self.diagnostic()]))
    }
}

/// The forward graph of a function; of one text where that is for sampling.
pub fn lower(
    model: &Model,
    recipe: &Recipe,
    vocab: usize,
    function: Function,
    noise: NoisePolicy,
) -> Result<Lowered, LowerError> {
    moec_model::lower(model, &lower_options(recipe, vocab, function, noise, 1))
}

/// The forward graph of one sequence with what every router decides as outputs, in evaluation or as in training; see
/// [`LowerOptions::routes`].
pub fn lower_routes(model: &Model, recipe: &Recipe, vocab: usize, mode: Mode) -> Result<Lowered, LowerError> {
    let options = lower_options(recipe, vocab, Function::Logits, NoisePolicy::Generated, 1);
    moec_model::lower(model, &LowerOptions { routes: true, mode, ..options })
}

fn lower_options(
    recipe: &Recipe,
    vocab: usize,
    function: Function,
    noise: NoisePolicy,
    samples: usize,
) -> LowerOptions {
    let (mode, batch, form) = match function {
        Function::TrainStep | Function::Accumulate => (Mode::Train, recipe.batch, Form::Sequences),
        Function::Evaluate => (Mode::Evaluate, recipe.batch, Form::Sequences),
        Function::Logits => (Mode::Evaluate, 1, Form::Sequences),
        Function::Next => (Mode::Evaluate, samples, Form::Next),
        Function::Decode => (Mode::Evaluate, samples, Form::Decode),
    };
    let loss = matches!(function, Function::TrainStep | Function::Accumulate | Function::Evaluate);
    // Written texts are those of the weights as they are, and a row does not pay for rounding a matrix.
    let precision = if loss { recipe.precision } else { Precision::F32 };
    LowerOptions { mode, batch, vocab, loss, noise, init: recipe.init, precision, routes: false, form }
}

/// The lowered graph with everything that the function needs beside it: for a training step, the gradients of what is
/// trained and the optimiser.
pub fn complete(lowered: &Lowered, recipe: &Recipe, function: Function) -> Result<Graph, CompileError> {
    check_stage("lowering", &lowered.graph, Stage::Forward)?;
    if !matches!(function, Function::TrainStep | Function::Accumulate) {
        return Ok(lowered.graph.clone());
    }
    let frozen = &recipe.freeze;
    let differentiated = if *frozen == Freeze::default() {
        moec_plan::differentiate(&lowered.graph, Output::Objective, &Wrt::Parameters)?
    } else {
        let trained = trained(lowered, recipe)?;
        let mut graph = lowered.graph.clone();
        if frozen.router {
            // In a forward graph, only routers update anything.
            graph.retain_updates(|_| false);
        }
        moec_plan::differentiate(&graph, Output::Objective, &Wrt::Nodes(trained))?
    };
    let step = StepOptions {
        batches: recipe.accumulate,
        clip: recipe.clip,
        average: recipe.average,
        matrices: lowered.matrices.clone(),
        hidden: lowered.hidden_matrices.clone(),
    };
    let trained = match function {
        Function::Accumulate => moec_plan::accumulate(&differentiated, &recipe.optimizer)?,
        _ => moec_plan::add_optimizer(&differentiated, &recipe.optimizer, &step)?,
    };
    check_stage("differentiation", &trained, Stage::Training)?;
    Ok(trained)
}

/// The names of the parameters that are trained.
fn trained(lowered: &Lowered, recipe: &Recipe) -> Result<Vec<String>, CompileError> {
    lowered.trained(&recipe.freeze).map_err(|error| CompileError::Tensors { error, span: frozen_by(recipe) })
}

/// Checked model to program, for a vocabulary of `vocab` characters.
///
/// # Errors
/// See [`CompileError`].
pub fn compile(
    model: &Model,
    recipe: &Recipe,
    vocab: usize,
    options: &CompileOptions,
) -> Result<Compiled, CompileError> {
    let mut clock = Clock::start();
    let mut functions = options.functions.clone().unwrap_or_else(|| functions_of(model, recipe));
    let step = functions.iter().position(|function| *function == Function::TrainStep);
    if let Some(at) = step.filter(|_| recipe.accumulate > 1 && !functions.contains(&Function::Accumulate)) {
        functions.insert(at + 1, Function::Accumulate);
    }
    let mut lowered = lower(model, recipe, vocab, Function::TrainStep, options.noise)?;
    if let Some(scale) = &recipe.init_scale {
        let span = recipe.origin("train.init_scale.tensors").or_else(|| recipe.origin("train.init_scale"));
        lowered.scale_init(scale).map_err(|error| CompileError::Tensors { error, span })?;
    }
    let mut forward = Vec::new();
    for &function in &functions {
        forward.push(match function {
            Function::TrainStep | Function::Accumulate => lowered.clone(),
            _ => moec_model::lower(model, &lower_options(recipe, vocab, function, options.noise, options.samples))?,
        });
    }
    clock.stage("lower");
    let mut completed = Vec::new();
    // Beside a training step there are averages, which the others read; alone they are given them as parameters.
    let averaged = match recipe.average.filter(|_| functions.contains(&Function::TrainStep)) {
        Some(_) => trained(&lowered, recipe)?,
        None => Vec::new(),
    };
    for (function, lowered) in functions.iter().zip(&forward) {
        let graph = complete(lowered, recipe, *function)?;
        let trains = matches!(function, Function::TrainStep | Function::Accumulate);
        let graph = if trains || averaged.is_empty() { graph } else { moec_plan::read_averages(&graph, &averaged)? };
        completed.push((*function, graph));
    }
    clock.stage("differentiate");
    let format = options.weights.filter(|_| !functions.contains(&Function::TrainStep));
    let optimized = on_threads(&completed, |(function, graph)| match format {
        Some(format) => {
            // Panels are for a few rows. A batch has more of them, and brings its weights into an order of its own.
            let (format, panel) = match function {
                Function::Next | Function::Decode => (format, options.limits.panel),
                Function::TrainStep | Function::Accumulate | Function::Evaluate | Function::Logits => {
                    (WeightFormat::F32, None)
                }
            };
            let storage = WeightStorage { format, panel, of_routers: &lowered.router_parameters };
            optimize(&moec_plan::store_weights(graph, &storage)?, options)
        }
        None => optimize(graph, options),
    });
    let optimized = optimized.into_iter().collect::<Result<Vec<_>, _>>()?;
    clock.stage("optimize");
    let clustered = on_threads(&optimized, |(graph, report)| cluster(graph, report, options));
    let (mut clusters, mut reports) = (Vec::new(), Vec::new());
    for (&function, clustered) in functions.iter().zip(clustered) {
        let (of_function, report) = clustered?;
        clusters.push((function, of_function));
        reports.push((function, report));
    }
    clock.stage("cluster");
    let functions: Vec<(String, &Clusters)> = clusters.iter().map(|(f, c)| (f.name().to_string(), c)).collect();
    let arrangement = Arrangement::of(&functions)?;
    let memory = arrangement.memory();
    let program = arrangement.into_program();
    let mut declaring: Vec<(String, &Graph)> = completed.iter().map(|(f, g)| (f.name().to_string(), g)).collect();
    declaring.push(("model".to_string(), &lowered.graph));
    let states = moec_plan::declare_states(&declaring)?;
    clock.stage("plan");
    Ok(Compiled { lowered, clusters, reports, program, states, memory, times: clock.times })
}

/// The names of passes and fusions, in the order in which they run.
pub fn passes() -> Vec<&'static str> {
    moec_plan::PASSES.iter().map(|p| p.name).chain(FUSIONS.iter().map(|f| f.name)).collect()
}

/// The passes over a graph, up to the one to stop after.
fn optimize(graph: &Graph, options: &CompileOptions) -> Result<(Graph, PassReport), PlanError> {
    let after = options.after.clone().filter(|name| !FUSIONS.iter().any(|f| f.name == name));
    moec_plan::optimize(graph, &OptimizeOptions { after, max_rewrites: options.max_rewrites, ..Default::default() })
}

/// The fusions over a graph that passes left so, up to the one to stop after; adds what they did to the report.
fn cluster(graph: &Graph, report: &PassReport, options: &CompileOptions) -> Result<(Clusters, PassReport), PlanError> {
    let mut report = report.clone();
    let after = options.after.clone();
    if after.as_ref().is_some_and(|name| report.passes.iter().any(|p| p.name == name)) {
        return Ok((Clusters::single(graph), report));
    }
    let max_decisions = options.max_rewrites.map(|most| most.saturating_sub(report.rewrites()));
    let (clusters, fused) =
        moec_plan::cluster(graph, &ClusterOptions { limits: options.limits, after, max_decisions })?;
    report.passes.extend(fused.passes);
    Ok((clusters, report))
}

/// Where the recipe says what is frozen.
fn frozen_by(recipe: &Recipe) -> Option<Span> {
    recipe.origin("train.freeze.tensors").or_else(|| recipe.origin("train.freeze"))
}

/// What is wrong with the tensors that the recipe names.
fn named_wrongly(error: &TensorsError, span: Option<Span>) -> Diagnostic {
    let diagnostic = Diagnostic::new(Code::NamedTensors, error.to_string());
    let (label, help) = match error {
        TensorsError::Nothing { near: Some(near), .. } => ("no tensor is called so", format!("did you mean `{near}`?")),
        TensorsError::Nothing { near: None, .. } => (
            "no tensor is called so",
            "a checkpoint's `model.safetensors` has the names, such as `embed.token.weight`".into(),
        ),
        _ => ("everything that the model has", "leave out what is to be trained".into()),
    };
    match span {
        Some(span) => diagnostic.primary(span, label),
        None => diagnostic,
    }
    .help(help)
}

fn check_stage(name: &'static str, graph: &Graph, stage: Stage) -> Result<(), CompileError> {
    // Lowering and differentiation are our own; a release build trusts them.
    if !cfg!(debug_assertions) {
        return Ok(());
    }
    verify(graph, stage).map_err(|errors| {
        let lines: Vec<String> = errors.iter().take(5).map(ToString::to_string).collect();
        CompileError::Invalid { stage: name, message: lines.join("; ") }
    })
}

struct Clock {
    last: Instant,
    times: Vec<(&'static str, Duration)>,
}

impl Clock {
    fn start() -> Self {
        Self { last: Instant::now(), times: Vec::new() }
    }

    fn stage(&mut self, name: &'static str) {
        let now = Instant::now();
        self.times.push((name, now - self.last));
        self.last = now;
    }
}

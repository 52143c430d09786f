//! `moec route`: which character goes to which experts, in which layer and with which weight; and records of it compared
//! and replayed.

use crate::cli::args::RouteArgs;
use crate::cli::console::Console;
use crate::cli::devices::Devices;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output;
use crate::cli::routing_record::{self, Array, Header, Layer, Record, Route, SCHEMA, Window};
use crate::pipeline::{self, CompileError, CompileOptions};
use crate::{Device, Run};
use moec_ir::{Builder, Graph, Input, Invariant, Op, Output, Tensor, path_order, random};
use moec_model::{Lowered, Mode, Registry, RoutedLayer};
use moec_plan::{ClusterOptions, OptimizeOptions, Session};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest difference of replayed logits, relative to the largest logit: what kernels and the reference may differ by.
const TOLERANCE: f64 = 1e-3;

/// Runs the command.
///
/// # Errors
/// When the run, the text or a record is wrong, or the device fails.
pub(crate) fn run(args: &RouteArgs, registry: &Registry, devices: Devices, console: &Console) -> Result<Exit, Failure> {
    match (&args.diff, &args.replay) {
        (Some(files), _) => diff(files, args.json, console),
        (_, Some(file)) => replay(args, file, registry, devices, console),
        _ => record(args, registry, devices, console),
    }
}

// ---- recording ----

fn record(args: &RouteArgs, registry: &Registry, devices: Devices, console: &Console) -> Result<Exit, Failure> {
    let run = args.run.clone().invariant("clap asks for a run to record");
    let text = args.text.clone().invariant("clap asks for a text to record");
    let run = match args.checkpoint {
        Some(step) => {
            let folder = run.join("checkpoints").join(format!("step-{step:08}"));
            if !folder.exists() {
                let message = format!("{} has no checkpoint of step {step}", run.display());
                return Err(Failure::new(Exit::Data, message).help("without --checkpoint the newest is taken"));
            }
            folder
        }
        None => run,
    };
    let run = Run::open(&run, registry, args.device, |_, _| -> Result<_, Failure> { Ok(CompileOptions::only([])) })?;
    console.passed_over(&run.passed_over, run.checkpoint.manifest.step);
    let output =
        args.output.as_deref().map(|path| output::Output::new(path, &output::files_of_run(&run.root))).transpose()?;
    let record = routed(&run, &text, args.seed, Mode::Evaluate, args.device, devices)?;
    let lines = record.to_lines().map_err(|e| Failure::new(Exit::Failure, format!("cannot write the record: {e}")))?;
    match (&args.output, &output) {
        (Some(path), Some(output)) => {
            output.write(&lines)?;
            console.note(format!(
                "wrote {} routes of {} layers to {}",
                record.routes.len(),
                record.header.layers.len(),
                path.display()
            ));
        }
        _ => console.write(&lines)?,
    }
    Ok(Exit::Success)
}

/// Routes a text with a run's model, as in evaluation or with the noise of training, and records it.
pub(crate) fn routed(
    run: &Run,
    text: &str,
    seed: u64,
    mode: Mode,
    device: Device,
    devices: Devices,
) -> Result<Record, Failure> {
    let windows = Windows::of(run, text)?;
    let lowered = lowered(run, mode)?;
    let recorded = record_noise(moec_plan::record_routes(&lowered.graph)).map_err(|e| failed(run, e))?;
    let layers = layers(&lowered);
    let header = header(run, text, seed, device, &layers);
    let mut record = Record { header, windows: Vec::new(), routes: Vec::new() };
    let mut found = Vec::new();
    execute(
        run,
        &recorded,
        device,
        devices,
        windows.len(),
        |window| windows.inputs(window, seed),
        |window, outputs| {
            record.windows.push(windows.recorded(window, seed, outputs));
            found.push(windows.routes(window, &layers, outputs));
            Ok(())
        },
    )?;
    // By layer, then by position.
    for layer in &layers {
        let of_layer = found.iter().flatten().filter(|r| r.layer == layer.path);
        record.routes.extend(of_layer.cloned());
    }
    Ok(record)
}

fn header(run: &Run, text: &str, seed: u64, device: Device, layers: &[Layer]) -> Header {
    Header {
        schema: SCHEMA.to_string(),
        run: run.root.display().to_string(),
        checkpoint: run.checkpoint.manifest.step,
        model_sha256: parameters_sha256(run),
        model: run.spec.checked.model.name.clone(),
        device: device.name().to_string(),
        seed,
        context: run.spec.checked.model.context,
        text: text.to_string(),
        layers: layers.to_vec(),
    }
}

fn parameters_sha256(run: &Run) -> String {
    let files = &run.checkpoint.manifest.files;
    let model = files.iter().find(|f| f.name == "model.safetensors");
    model.invariant("the parameters of a checkpoint were read from this file").sha256.clone()
}

fn failed(run: &Run, error: CompileError) -> Failure {
    error.at(&run.spec.source).into()
}

fn lowered(run: &Run, mode: Mode) -> Result<Lowered, Failure> {
    let (model, recipe) = (&run.spec.checked.model, &run.spec.checked.recipe);
    pipeline::lower_routes(model, recipe, run.vocab.len(), mode).map_err(|e| failed(run, e.into()))
}

/// The graph with an output [`Output::Random`] for every random number that routers draw.
fn record_noise(graph: Graph) -> Result<Graph, CompileError> {
    let is_noise = |op: &Op| matches!(op, Op::RandomNormal { .. } | Op::RandomUniform { .. });
    let drawn: Vec<_> = graph.ids().filter(|&id| is_noise(&graph.node(id).op)).collect();
    let mut b = Builder::extend(graph);
    for id in drawn {
        let (node, value) = (b.graph().node(id).name.clone(), b.graph().value(id));
        b.output(Output::Random(node), value);
    }
    Ok(b.finish()?)
}

/// The layers that decide something, in the order of their names.
fn layers(lowered: &Lowered) -> Vec<Layer> {
    let layer = |l: &RoutedLayer| Layer { path: l.path.clone(), strategy: l.strategy.clone(), experts: l.experts };
    let mut layers: Vec<Layer> = lowered.routed.iter().map(layer).collect();
    layers.sort_by(|a, b| path_order(&a.path).cmp(&path_order(&b.path)));
    layers
}

/// A text in windows of the context.
struct Windows<'a> {
    run: &'a Run,
    characters: Vec<char>,
    tokens: Vec<i32>,
    context: usize,
}

impl<'a> Windows<'a> {
    fn of(run: &'a Run, text: &str) -> Result<Self, Failure> {
        let tokens = run.vocab.encode(text);
        let tokens = tokens.map_err(|e| Failure::new(Exit::Usage, format!("the text cannot be read: {e}")))?;
        if tokens.is_empty() {
            return Err(Failure::new(Exit::Usage, "there is no text to route").help("give some with --text TEXT"));
        }
        let context = run.spec.checked.model.context.max(1);
        Ok(Self { run, characters: text.chars().collect(), tokens, context })
    }

    fn len(&self) -> usize {
        self.tokens.len().div_ceil(self.context)
    }

    /// The characters of a window, by number.
    fn range(&self, window: usize) -> std::ops::Range<usize> {
        let start = window * self.context;
        start..self.tokens.len().min(start + self.context)
    }

    fn rng(&self, window: usize, seed: u64) -> [i32; 4] {
        random::state(seed, window as u64)
    }

    fn inputs(&self, window: usize, seed: u64) -> BTreeMap<Input, Tensor> {
        let mut tokens = self.tokens[self.range(window)].to_vec();
        tokens.resize(self.context, 0);
        let rng = Tensor::ints(self.rng(window, seed));
        BTreeMap::from([(Input::Tokens, Tensor::ints(tokens)), (Input::Rng, rng)])
    }

    /// The logits of the window's own characters.
    fn logits(&self, window: usize, outputs: &BTreeMap<Output, Tensor>) -> Vec<f32> {
        let mut logits = outputs.get(&Output::Logits).invariant("every function that scores gives logits").to_f32();
        logits.truncate(self.range(window).len() * self.run.vocab.len());
        logits
    }

    fn recorded(&self, window: usize, seed: u64, outputs: &BTreeMap<Output, Tensor>) -> Window {
        let (mut routes, mut noise) = (BTreeMap::new(), BTreeMap::new());
        for (output, tensor) in outputs {
            match output {
                Output::Route(node) => drop(routes.insert(node.clone(), Array::<i32>::of(tensor))),
                Output::Random(node) => drop(noise.insert(node.clone(), Array::<f32>::of(tensor))),
                _ => {}
            }
        }
        Window { window, rng: self.rng(window, seed), routes, noise, logits: self.logits(window, outputs) }
    }

    /// Where the window's characters went in every layer.
    fn routes(&self, window: usize, layers: &[Layer], outputs: &BTreeMap<Output, Tensor>) -> Vec<Route> {
        let mut routes = Vec::new();
        for layer in layers {
            let given = |of: fn(String) -> Output| outputs.get(&of(layer.path.clone()));
            let output = |of| given(of).invariant("a layer with gates says what was chosen");
            let ints = |of| output(of).as_i32().invariant("choices are whole numbers");
            let (experts, kept) = (ints(Output::Experts), ints(Output::Kept));
            let (weights, gates) = (output(Output::Weights).to_f32(), output(Output::Gates).to_f32());
            let k = *output(Output::Experts).shape().last().invariant("the choices of each token are a row");
            // All tokens in order, unless a layer is given rows that say which tokens they are.
            let count = (experts.len() / k) as i32;
            let every: Vec<i32> = (0..count).collect();
            let rows = if given(Output::Rows).is_some() { ints(Output::Rows) } else { &every };
            let range = self.range(window);
            let first = routes.len();
            routes.extend(range.clone().map(|position| Route {
                layer: layer.path.clone(),
                position,
                character: self.characters[position],
                experts: Vec::new(),
                weights: Vec::new(),
                dropped: Vec::new(),
            }));
            for (row, &token) in rows.iter().enumerate() {
                let Some(token) = usize::try_from(token).ok().filter(|t| *t < range.len()) else { continue };
                let route: &mut Route = &mut routes[first + token];
                for slot in row * k..(row + 1) * k {
                    // Negative where a token has fewer choices than others.
                    let Ok(expert) = usize::try_from(experts[slot]) else { continue };
                    let dropped = kept[slot] == -1;
                    // What a dropped choice would have weighed; what a kept one weighs after renormalisation.
                    let weight = if dropped { weights[slot] } else { gates[row * layer.experts + expert] };
                    route.experts.push(expert);
                    route.weights.push(weight);
                    route.dropped.push(dropped);
                }
            }
        }
        routes
    }
}

/// Runs a graph window by window with the run's parameters and hands the outputs of each to `then`.
fn execute(
    run: &Run,
    graph: &Graph,
    device: Device,
    devices: Devices,
    windows: usize,
    inputs: impl Fn(usize) -> BTreeMap<Input, Tensor>,
    mut then: impl FnMut(usize, &BTreeMap<Output, Tensor>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    const NAME: &str = "route";
    let (graph, _) = moec_plan::optimize(graph, &OptimizeOptions::default()).map_err(|e| failed(run, e.into()))?;
    let options = ClusterOptions { limits: device.launch_limits(), ..ClusterOptions::default() };
    let (clusters, _) = moec_plan::cluster(&graph, &options).map_err(|e| failed(run, e.into()))?;
    let program = moec_plan::plan(&[(NAME.to_string(), &clusters)]).map_err(|e| failed(run, e.into()))?;
    let backend = devices.open(device)?;
    let mut session: Box<dyn Session> = backend.prepare(&program)?;
    for state in &program.states {
        if let Some(tensor) = run.checkpoint.tensors.get(&state.name) {
            session.write_state(&state.name, tensor)?;
        }
    }
    let Some(plan) = program.plans.first() else { return Ok(()) };
    for window in 0..windows {
        let given = inputs(window);
        let inputs: Vec<(&str, &Tensor)> = plan
            .inputs
            .iter()
            .filter_map(|port| Some((port.name.as_str(), given.get(&Input::of_name(&port.name)?)?)))
            .collect();
        session.run(NAME, &inputs)?;
        let mut outputs = BTreeMap::new();
        for port in &plan.outputs {
            let output = Output::of_name(&port.name).invariant("a lowered model has outputs that moec knows");
            outputs.insert(output, session.output(NAME, &port.name)?);
        }
        then(window, &outputs)?;
    }
    Ok(())
}

// ---- replaying ----

fn replay(
    args: &RouteArgs,
    file: &Path,
    registry: &Registry,
    devices: Devices,
    console: &Console,
) -> Result<Exit, Failure> {
    let record = Record::read(file)?;
    let header = &record.header;
    let default = || PathBuf::from(&header.run).join("checkpoints").join(format!("step-{:08}", header.checkpoint));
    let run =
        Run::open(&args.run.clone().unwrap_or_else(default), registry, args.device, |_, _| -> Result<_, Failure> {
            Ok(CompileOptions::only([]))
        })?;
    if parameters_sha256(&run) != header.model_sha256 {
        let message = format!("{} is of other parameters than {}", file.display(), run.root.display());
        let help = format!("give the checkpoint of step {} of the run that was recorded", header.checkpoint);
        return Err(Failure::new(Exit::Data, message).help(help));
    }
    let windows = Windows::of(&run, &header.text)?;
    let foreign = || Failure::new(Exit::Data, format!("{} does not hold the routes of this model", file.display()));
    let frozen = moec_plan::freeze_routes(&lowered(&run, Mode::Evaluate)?.graph).map_err(|e| failed(&run, e.into()))?;
    for id in frozen.ids() {
        let Op::Input { name, ty } = &frozen.node(id).op else { continue };
        let Some(Input::Route(node)) = Input::of_name(name) else { continue };
        let fits = |w: &Window| w.routes.get(&node).and_then(Array::tensor).is_some_and(|t| t.ty() == *ty);
        if record.windows.len() != windows.len() || !record.windows.iter().all(fits) {
            return Err(foreign());
        }
    }
    let inputs = |window: usize| {
        let mut inputs = windows.inputs(window, header.seed);
        for (name, array) in &record.windows[window].routes {
            if let Some(tensor) = array.tensor() {
                inputs.insert(Input::Route(name.clone()), tensor);
            }
        }
        inputs
    };
    let (mut largest, mut difference, mut compared) = (0.0f64, 0.0f64, 0);
    execute(&run, &frozen, args.device, devices, windows.len(), inputs, |window, outputs| {
        let (found, expected) = (windows.logits(window, outputs), &record.windows[window].logits);
        if found.len() != expected.len() {
            return Err(foreign());
        }
        for (&a, &b) in found.iter().zip(expected) {
            largest = largest.max(f64::from(b).abs());
            let d = (f64::from(a) - f64::from(b)).abs();
            // Not a number must not pass for agreement.
            difference = if d.is_nan() { f64::INFINITY } else { difference.max(d) };
        }
        compared += found.len();
        Ok(())
    })?;
    let agree = difference <= TOLERANCE * largest.max(1.0);
    if args.json {
        console.json(&json!({
            "schema": "moec.route.replay/1",
            "agree": agree,
            "logits": compared,
            "largest_difference": if difference.is_finite() { json!(difference) } else { json!(null) },
            "largest_logit": largest,
            "recorded_on": header.device,
            "replayed_on": args.device.name(),
        }))?;
    } else {
        let verdict = match (agree, difference) {
            (true, 0.0) => "agree to the bit".to_string(),
            (true, d) => format!("agree: the largest difference is {d:.1e}"),
            (false, d) => format!("DIFFER: the largest difference is {d:.1e}"),
        };
        console.out(format!(
            "{compared} logits of {} characters, recorded on {}, replayed on {}, {verdict}",
            windows.tokens.len(),
            header.device,
            args.device.name()
        ))?;
    }
    Ok(if agree { Exit::Success } else { Exit::Failure })
}

// ---- comparing ----

fn diff(files: &[PathBuf], as_json: bool, console: &Console) -> Result<Exit, Failure> {
    let [a, b] = files else { return Err(Failure::new(Exit::Usage, "--diff compares two records")) };
    let (first, second) = (Record::read(a)?, Record::read(b)?);
    let rows = routing_record::difference(&first, &second)?;
    if as_json {
        let layers = serde_json::to_value(&rows);
        let layers = layers.map_err(|e| Failure::new(Exit::Failure, format!("cannot write the difference: {e}")))?;
        console.json(&json!({
            "schema": "moec.route.diff/1",
            "a": a.display().to_string(),
            "b": b.display().to_string(),
            "layers": layers,
        }))?;
        return Ok(Exit::Success);
    }
    let width = rows.iter().map(|r| r.layer.chars().count()).max().unwrap_or(0).max("all layers".len());
    console.out(format!(
        "{:<width$}  {:>10}  {:>12}  {:>12}  {:>17}",
        "layer", "characters", "same first", "same experts", "weight difference"
    ))?;
    let line = |name: &str, characters: usize, first: f64, sets: f64, weight: f64| {
        console.out(format!(
            "{name:<width$}  {characters:>10}  {:>10.1} %  {:>10.1} %  {weight:>17.2e}",
            100.0 * first,
            100.0 * sets
        ))
    };
    for r in &rows {
        line(&r.layer, r.characters, r.equal_first, r.equal_sets, r.largest_weight_difference)?;
    }
    let characters: usize = rows.iter().map(|r| r.characters).sum();
    let mean = |of: fn(&routing_record::LayerDifference) -> f64| {
        rows.iter().map(|r| of(r) * r.characters as f64).sum::<f64>() / characters.max(1) as f64
    };
    let largest = rows.iter().map(|r| r.largest_weight_difference).fold(0.0, f64::max);
    line("all layers", characters, mean(|r| r.equal_first), mean(|r| r.equal_sets), largest)?;
    Ok(Exit::Success)
}

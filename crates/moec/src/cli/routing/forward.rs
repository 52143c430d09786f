//! A run's model on a text, window by window, with what its routers decide.

use crate::cli::devices::Devices;
use crate::cli::exit::{Exit, Failure};
use crate::cli::routing::record::{Array, Header, Layer, Record, Route, SCHEMA, Window};
use crate::pipeline::{self, CompileError};
use crate::surgery::each_window;
use crate::{Device, Run};
use moec_ir::{Builder, Graph, Input, Invariant, Op, Output, Tensor, path_order, random};
use moec_model::{Lowered, Mode, RoutedLayer};
use std::collections::BTreeMap;

/// Routes a text with a run's model, as in evaluation or with the noise of training, and records it.
///
/// # Errors
/// When the text has characters that the model does not know, or the device fails.
pub(crate) fn recorded(
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
    record.routes = by_layer(&layers, &found);
    Ok(record)
}

/// Where the characters of a text go, in the layers that `wanted` picks.
///
/// # Errors
/// As [`recorded`].
pub(crate) fn routes(
    run: &Run,
    text: &str,
    seed: u64,
    device: Device,
    devices: Devices,
    wanted: &[Layer],
) -> Result<Vec<Route>, Failure> {
    let windows = Windows::of(run, text)?;
    let graph = lowered(run, Mode::Evaluate)?.graph;
    let mut found = Vec::new();
    execute(
        run,
        &graph,
        device,
        devices,
        windows.len(),
        |window| windows.inputs(window, seed),
        |window, outputs| {
            found.push(windows.routes(window, wanted, outputs));
            Ok(())
        },
    )?;
    Ok(by_layer(wanted, &found))
}

/// The routes of all windows by layer, then by position.
fn by_layer(layers: &[Layer], windows: &[Vec<Route>]) -> Vec<Route> {
    let of = |layer: &Layer| windows.iter().flatten().filter(|r| r.layer == layer.path).cloned().collect::<Vec<_>>();
    layers.iter().flat_map(of).collect()
}

/// The layers of a run's model that decide something, in the order of their names.
///
/// # Errors
/// When the model cannot be lowered.
pub(crate) fn routed_layers(run: &Run) -> Result<Vec<Layer>, Failure> {
    Ok(layers(&lowered(run, Mode::Evaluate)?))
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

/// SHA-256 of the parameters of the checkpoint.
pub(crate) fn parameters_sha256(run: &Run) -> String {
    let files = &run.checkpoint.manifest.files;
    let model = files.iter().find(|f| f.name == "model.safetensors");
    model.invariant("the parameters of a checkpoint were read from this file").sha256.clone()
}

/// An error of the compiler, at the lines of the run's spec.
pub(crate) fn failed(run: &Run, error: CompileError) -> Failure {
    error.at(&run.spec.source).into()
}

/// The graph of one sequence with what every router decides.
///
/// # Errors
/// When the model cannot be lowered.
pub(crate) fn lowered(run: &Run, mode: Mode) -> Result<Lowered, Failure> {
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
pub(crate) struct Windows<'a> {
    run: &'a Run,
    characters: Vec<char>,
    tokens: Vec<i32>,
    context: usize,
}

impl<'a> Windows<'a> {
    /// Cuts a text into windows.
    ///
    /// # Errors
    /// When it is empty or has characters that the model does not know.
    pub(crate) fn of(run: &'a Run, text: &str) -> Result<Self, Failure> {
        let tokens = run.vocab.encode(text);
        let tokens = tokens.map_err(|e| Failure::new(Exit::Usage, format!("the text cannot be read: {e}")))?;
        if tokens.is_empty() {
            return Err(Failure::new(Exit::Usage, "there is no text to route").help("give some with --text TEXT"));
        }
        let context = run.spec.checked.model.context.max(1);
        Ok(Self { run, characters: text.chars().collect(), tokens, context })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len().div_ceil(self.context)
    }

    /// How many characters the text has.
    pub(crate) fn characters(&self) -> usize {
        self.tokens.len()
    }

    /// The characters of a window, by number.
    fn range(&self, window: usize) -> std::ops::Range<usize> {
        let start = window * self.context;
        start..self.tokens.len().min(start + self.context)
    }

    fn rng(&self, window: usize, seed: u64) -> [i32; 4] {
        random::state(seed, window as u64)
    }

    /// What the graph of one sequence is given for a window.
    pub(crate) fn inputs(&self, window: usize, seed: u64) -> BTreeMap<Input, Tensor> {
        let mut tokens = self.tokens[self.range(window)].to_vec();
        tokens.resize(self.context, 0);
        let rng = Tensor::ints(self.rng(window, seed));
        BTreeMap::from([(Input::Tokens, Tensor::ints(tokens)), (Input::Rng, rng)])
    }

    /// The logits of the window's own characters.
    pub(crate) fn logits(&self, window: usize, outputs: &BTreeMap<Output, Tensor>) -> Vec<f32> {
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
///
/// # Errors
/// When the graph cannot be planned, the device fails, or what `then` fails with.
pub(crate) fn execute(
    run: &Run,
    graph: &Graph,
    device: Device,
    devices: Devices,
    windows: usize,
    inputs: impl Fn(usize) -> BTreeMap<Input, Tensor>,
    mut then: impl FnMut(usize, &BTreeMap<Output, Tensor>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    each_window(
        (graph, &run.spec.source),
        &run.checkpoint.tensors,
        (device, &*devices.open(device)?),
        (0..windows).map(inputs),
        |window, outputs| then(window, outputs),
    )
}

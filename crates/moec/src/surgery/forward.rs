//! A model on a text, window by window.

use crate::device::Device;
use crate::error::Error;
use crate::pipeline::CompileError;
use moec_ir::{Graph, Input, Invariant, Output, Tensor, random};
use moec_plan::{Backend, ClusterOptions, OptimizeOptions, Program, Session};
use moec_syntax::SourceFile;
use std::collections::BTreeMap;

/// The name of the only function of these programs.
const NAME: &str = "forward";

/// What the graph of one sequence is given for each window of a text: `context` tokens, padded with token 0 at the end of
/// the text.
pub fn windows_of(tokens: &[i32], context: usize, seed: u64) -> Vec<BTreeMap<Input, Tensor>> {
    let window = |(number, tokens): (usize, &[i32])| {
        let mut tokens = tokens.to_vec();
        tokens.resize(context, 0);
        let rng = Tensor::ints(random::state(seed, number as u64));
        BTreeMap::from([(Input::Tokens, Tensor::ints(tokens)), (Input::Rng, rng)])
    };
    tokens.chunks(context.max(1)).enumerate().map(window).collect()
}

/// A graph on a device with the tensors of a model.
pub(crate) struct Prepared {
    program: Program,
    session: Box<dyn Session>,
}

impl Prepared {
    /// Compiles the graph for the device. All tensors are zero.
    ///
    /// # Errors
    /// When the graph cannot be planned, or the device cannot hold it.
    pub(crate) fn new(
        graph: &Graph,
        source: &SourceFile,
        device: Device,
        backend: &dyn Backend,
    ) -> Result<Self, Error> {
        let failed = |e: CompileError| e.at(source);
        let (graph, _) = moec_plan::optimize(graph, &OptimizeOptions::default()).map_err(|e| failed(e.into()))?;
        let options = ClusterOptions { limits: device.launch_limits(), ..ClusterOptions::default() };
        let (clusters, _) = moec_plan::cluster(&graph, &options).map_err(|e| failed(e.into()))?;
        let program = moec_plan::plan(&[(NAME.to_string(), &clusters)]).map_err(|e| failed(e.into()))?;
        let session = backend.prepare(&program)?;
        Ok(Self { program, session })
    }

    /// Gives the model its numbers; tensors that the graph does not read are passed over.
    ///
    /// # Errors
    /// When a type differs, or the device fails.
    pub(crate) fn write<'a>(&mut self, tensors: impl Fn(&str) -> Option<&'a Tensor>) -> Result<(), Error> {
        for state in &self.program.states {
            if let Some(tensor) = tensors(&state.name) {
                self.session.write_state(&state.name, tensor)?;
            }
        }
        Ok(())
    }

    /// Runs it on what is given, of which it takes what it knows.
    ///
    /// # Errors
    /// When something is missing, or the device fails.
    pub(crate) fn run(&mut self, given: &BTreeMap<Input, Tensor>) -> Result<BTreeMap<Output, Tensor>, Error> {
        let plan = self.program.plans.first().invariant("there is a plan for the only function");
        let inputs: Vec<(&str, &Tensor)> = plan
            .inputs
            .iter()
            .filter_map(|port| Some((port.name.as_str(), given.get(&Input::of_name(&port.name)?)?)))
            .collect();
        self.session.run(NAME, &inputs)?;
        let mut outputs = BTreeMap::new();
        for port in &plan.outputs {
            let output = Output::of_name(&port.name).invariant("a lowered model has outputs that moec knows");
            outputs.insert(output, self.session.output(NAME, &port.name)?);
        }
        Ok(outputs)
    }
}

/// Runs a graph on each window with the tensors of a model and hands the outputs to `then`.
///
/// # Errors
/// When the graph cannot be planned, the device fails, or what `then` fails with.
pub(crate) fn each_window<E: From<Error>>(
    (graph, source): (&Graph, &SourceFile),
    tensors: &BTreeMap<String, Tensor>,
    (device, backend): (Device, &dyn Backend),
    windows: impl Iterator<Item = BTreeMap<Input, Tensor>>,
    mut then: impl FnMut(usize, &BTreeMap<Output, Tensor>) -> Result<(), E>,
) -> Result<(), E> {
    let mut prepared = Prepared::new(graph, source, device, backend)?;
    prepared.write(|name| tensors.get(name))?;
    for (number, window) in windows.enumerate() {
        then(number, &prepared.run(&window)?)?;
    }
    Ok(())
}

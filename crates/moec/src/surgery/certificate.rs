//! What surgery kept: measured on a text, on the reference and on a device, before anything is written.
//!
//! Two things are held against each other. Every expert by itself: with all tokens sent to it, the mixture must be the
//! dense model with that expert in the place of the mixture. This holds whatever the router learned, so it is the check of
//! how tensors were put together. And the model as it routes, where that must equal something: where all experts are the
//! same and the weights of each token add up to 1, nothing can differ. Whether the conditions hold is read off the gates of
//! the same run. Where no equality is promised, that is said, with the distance from each model that it was made of.

use super::forward::{Prepared, windows_of};
use super::{Subject, SurgeryError};
use crate::device::Device;
use crate::error::Error;
use crate::pipeline::{self, CompileError};
use moec_ir::{Graph, Input, Invariant, Op, Output, Tensor};
use moec_model::Mode;
use moec_plan::Backend;
use serde::Serialize;
use std::collections::BTreeMap;

/// Logits that must be equal may differ by this, or by this part of the largest.
pub const TOLERANCE: f64 = 1e-5;
/// A weight may differ from what it must be by this.
const WEIGHT: f64 = 1e-5;
/// Windows of the text that the reference is given: it is slow.
const WINDOWS_OF_REFERENCE: usize = 2;
/// Windows that a device is given.
const WINDOWS: usize = 32;

/// The text that models are compared on, and where they run.
pub struct Witnesses<'a> {
    /// What the text is called.
    pub name: String,
    /// Its tokens.
    pub tokens: Vec<i32>,
    /// The devices. Losses and distances are those of the last one.
    pub devices: Vec<(Device, &'a dyn Backend)>,
}

impl Witnesses<'_> {
    fn windows(&self, device: Device, context: usize) -> Vec<BTreeMap<Input, Tensor>> {
        let count = if device == Device::Interpreter { WINDOWS_OF_REFERENCE } else { WINDOWS };
        let mut windows = windows_of(&self.tokens, context, 0);
        windows.truncate(count);
        windows
    }

    /// A remark where there is too little text to say much.
    fn remark(&self, context: usize) -> Option<String> {
        let characters = self.tokens.len();
        (characters < context)
            .then(|| format!("the text has {characters} characters, less than a window: what was compared says little"))
    }

    /// Characters of the first `windows` windows.
    fn characters(&self, windows: usize, context: usize) -> usize {
        self.tokens.len().min(windows * context)
    }
}

/// What surgery kept.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Certificate {
    /// Version of this form.
    pub schema: &'static str,
    /// What was done: `merge`, `extract`, `prune`.
    pub operation: &'static str,
    /// The text that was compared on.
    pub text: String,
    /// Equalities that must hold.
    pub claims: Vec<Claim>,
    /// Why something is not among them.
    pub remarks: Vec<String>,
    /// Characters that losses and distances are of.
    pub characters: usize,
    /// Mean cross-entropy of the new model on them in nats; absent if the text is too short.
    pub loss: Option<f64>,
    /// How far the new model is from those that it was made of.
    pub distances: Vec<Distance>,
}

/// An equality that must hold.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Claim {
    /// What is equal to what.
    pub says: String,
    /// Largest difference of two logits that is none, as a part of the largest logit where that is above 1.
    pub tolerance: f64,
    /// What was found.
    pub measured: Vec<Measured>,
    /// Whether all of it is within the tolerance.
    pub holds: bool,
}

/// A comparison on a device.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Measured {
    /// The device.
    pub device: &'static str,
    /// Characters that were compared on.
    pub characters: usize,
    /// Largest difference of two logits.
    pub largest_difference: f64,
    /// Largest logit.
    pub largest_logit: f64,
}

/// How far the new model is from another one.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Distance {
    /// The other one.
    pub from: String,
    /// Its mean cross-entropy on the text in nats; absent if the text is too short.
    pub loss: Option<f64>,
    /// Largest difference of two logits.
    pub largest_difference: f64,
    /// Mean over characters of the sum over the next ones of `p log(p / q)`, where p is what the other model predicts and q what
    /// the new one does, in nats.
    pub divergence: f64,
}

impl Certificate {
    pub(super) fn new(operation: &'static str, witnesses: &Witnesses<'_>) -> Self {
        Self {
            schema: "moec.certificate/1",
            operation,
            text: witnesses.name.clone(),
            claims: Vec::new(),
            remarks: Vec::new(),
            characters: 0,
            loss: None,
            distances: Vec::new(),
        }
    }

    /// The certificate, if everything that must hold does.
    ///
    /// # Errors
    /// [`SurgeryError::Broken`] with the first claim that does not.
    pub fn upheld(&self) -> Result<(), SurgeryError> {
        let Some(broken) = self.claims.iter().find(|claim| !claim.holds) else { return Ok(()) };
        let largest = broken.measured.iter().map(|m| m.largest_difference).fold(0.0, worst);
        Err(SurgeryError::Broken { claim: broken.says.clone(), difference: largest })
    }

    pub(super) fn claim(&mut self, says: String, measured: Vec<Measured>) {
        let tolerance = TOLERANCE;
        // Of models whose logits are no numbers, nothing is known.
        let within =
            |m: &Measured| m.largest_logit.is_finite() && m.largest_difference <= tolerance * m.largest_logit.max(1.0);
        // Without a measurement nothing is known to hold.
        let holds = !measured.is_empty() && measured.iter().all(within);
        self.claims.push(Claim { says, tolerance, measured, holds });
    }
}

/// The larger of two differences, where one that is no number is the largest.
fn worst(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::INFINITY } else { a.max(b) }
}

/// A dense model that a mixture must be, with all tokens sent to some experts in equal parts.
pub(super) struct Alone<'a> {
    /// What is sent where, in words: `every token sent to expert 0`.
    pub(super) says: String,
    /// The experts; with slices, all of a copy.
    pub(super) experts: Vec<usize>,
    /// What the mixture must be then.
    pub(super) must_be: &'a Subject,
}

/// A mixture on a device, with its outermost choices given.
struct Forced {
    prepared: Prepared,
    /// The choices by name of their input: the type, and whether each column is an expert of its own.
    choices: Vec<(String, Vec<usize>, bool)>,
    /// The mixtures.
    layers: Vec<String>,
}

impl Forced {
    fn new(mixture: &Subject, layers: &[String], device: Device, backend: &dyn Backend) -> Result<Self, Error> {
        let graph = routed(mixture)?;
        let is_outer = |node: &str| {
            let inner = layers.iter().find_map(|path| node.strip_prefix(path.as_str())?.strip_prefix('.'));
            inner.is_some_and(|inner| !inner.starts_with("experts."))
        };
        let frozen = moec_plan::freeze_some_routes(&graph, is_outer);
        let frozen = frozen.map_err(|e| CompileError::from(e).at(&mixture.spec.source))?;
        let op_of = |name: &str| graph.ids().find(|&id| graph.node(id).name == name).map(|id| &graph.node(id).op);
        let choices = frozen.ids().filter_map(|id| match &frozen.node(id).op {
            Op::Input { name, ty } => match Input::of_name(name)? {
                Input::Route(node) => {
                    Some((node.clone(), ty.shape.clone(), matches!(op_of(&node), Some(Op::ToIndex { .. }))))
                }
                _ => None,
            },
            _ => None,
        });
        let choices = choices.collect();
        let mut prepared = Prepared::new(&frozen, &mixture.spec.source, device, backend)?;
        prepared.write(|name| mixture.tensors.get(name))?;
        Ok(Self { prepared, choices, layers: layers.to_vec() })
    }

    /// The logits with all tokens sent to these experts, or why that cannot be: a weight that is not what it must be.
    fn run(&mut self, window: &BTreeMap<Input, Tensor>, experts: &[usize]) -> Result<Result<Vec<f64>, String>, Error> {
        let mut given = window.clone();
        for (node, shape, by_column) in &self.choices {
            let columns = shape.last().copied().unwrap_or(1).max(1);
            let rows: usize = shape.iter().product::<usize>() / columns;
            let slot = |column: usize| match *by_column && columns > 1 {
                true if experts.contains(&column) => column as i32,
                true => -1,
                false => experts[column % experts.len()] as i32,
            };
            let row: Vec<i32> = (0..columns).map(slot).collect();
            let tensor = Tensor::ints(row.repeat(rows)).with_shape(shape.clone());
            given.insert(Input::Route(node.clone()), tensor.invariant("rows of columns fill the shape"));
        }
        let outputs = self.prepared.run(&given)?;
        let share = 1.0 / experts.len() as f64;
        for path in &self.layers {
            let gates = output(&outputs, Output::Gates(path.clone()));
            let count = gates.shape().last().copied().unwrap_or(1);
            for row in gates.to_f64().chunks(count) {
                for (expert, &weight) in row.iter().enumerate() {
                    let expected = if experts.contains(&expert) { share } else { 0.0 };
                    if (weight - expected).abs() > WEIGHT {
                        return Ok(Err(format!(
                            "in `{path}` expert {expert} then has a weight of {weight:.3} instead of {expected}"
                        )));
                    }
                }
            }
        }
        Ok(Ok(output(&outputs, Output::Logits).to_f64()))
    }
}

fn output(outputs: &BTreeMap<Output, Tensor>, name: Output) -> &Tensor {
    outputs.get(&name).invariant("a lowered model has logits, and gates for each layer that routes")
}

/// The graph of one sequence in evaluation, with what every router decides.
pub(super) fn routed(subject: &Subject) -> Result<Graph, Error> {
    let checked = &subject.spec.checked;
    let lowered = pipeline::lower_routes(&checked.model, &checked.recipe, subject.vocab.len(), Mode::Evaluate);
    Ok(lowered.map_err(|e| CompileError::from(e).at(&subject.spec.source))?.graph)
}

/// Claims that a mixture is what it must be with all tokens sent to some experts. Where the weights are then not what the
/// claim is about, that is a remark instead.
pub(super) fn alone(
    certificate: &mut Certificate,
    mixture: &Subject,
    layers: &[String],
    all: &[Alone<'_>],
    witnesses: &Witnesses<'_>,
) -> Result<(), Error> {
    let mut measured: Vec<Vec<Measured>> = vec![Vec::new(); all.len()];
    let mut refused: Vec<Option<String>> = vec![None; all.len()];
    let context = mixture.spec.checked.model.context;
    for &(device, backend) in &witnesses.devices {
        let mut forced = Forced::new(mixture, layers, device, backend)?;
        let windows = witnesses.windows(device, context);
        for (i, alone) in all.iter().enumerate() {
            let expected = logits(alone.must_be, device, backend, &windows)?;
            let mut comparison = Comparison::default();
            for (window, expected) in windows.iter().zip(&expected) {
                match forced.run(window, &alone.experts)? {
                    Ok(found) => comparison.add(&found, expected),
                    Err(why) => {
                        refused[i].get_or_insert(why);
                    }
                }
            }
            measured[i].push(comparison.measured(device, witnesses.characters(windows.len(), context)));
        }
    }
    for ((alone, measured), refused) in all.iter().zip(measured).zip(refused) {
        let says = format!("with {}, the model is {}", alone.says, alone.must_be.name);
        match refused {
            None => certificate.claim(says, measured),
            Some(why) => certificate.remarks.push(format!("nothing is claimed of {}: {why}", alone.says)),
        }
    }
    Ok(())
}

#[derive(Default)]
struct Comparison {
    difference: f64,
    logit: f64,
}

impl Comparison {
    fn add(&mut self, found: &[f64], expected: &[f64]) {
        let both = found.len() == expected.len();
        let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, worst);
        self.difference = worst(self.difference, if both { difference } else { f64::INFINITY });
        self.logit = expected.iter().map(|x| x.abs()).fold(self.logit, worst);
    }

    fn measured(&self, device: Device, characters: usize) -> Measured {
        let (largest_difference, largest_logit) = (self.difference, self.logit);
        Measured { device: device.name(), characters, largest_difference, largest_logit }
    }
}

/// The logits of a model, window by window.
fn logits(
    subject: &Subject,
    device: Device,
    backend: &dyn Backend,
    windows: &[BTreeMap<Input, Tensor>],
) -> Result<Vec<Vec<f64>>, Error> {
    Ok(outputs(subject, device, backend, windows)?.iter().map(|out| output(out, Output::Logits).to_f64()).collect())
}

/// The outputs of a model as it routes, window by window.
pub(super) fn outputs(
    subject: &Subject,
    device: Device,
    backend: &dyn Backend,
    windows: &[BTreeMap<Input, Tensor>],
) -> Result<Vec<BTreeMap<Output, Tensor>>, Error> {
    let mut all = Vec::new();
    let graph = routed(subject)?;
    super::each_window(
        (&graph, &subject.spec.source),
        &subject.tensors,
        (device, backend),
        windows.iter().cloned(),
        |_, outputs| {
            all.push(outputs.clone());
            Ok::<(), Error>(())
        },
    )?;
    Ok(all)
}

/// Claims that two models are the same as they route, if `promised` of the outputs of both finds no reason against it.
pub(super) fn as_it_routes(
    certificate: &mut Certificate,
    new: &Subject,
    old: &Subject,
    promised: impl Fn(&BTreeMap<Output, Tensor>, &BTreeMap<Output, Tensor>) -> Result<(), String>,
    witnesses: &Witnesses<'_>,
) -> Result<(), Error> {
    let context = new.spec.checked.model.context;
    let mut measured = Vec::new();
    for &(device, backend) in &witnesses.devices {
        let windows = witnesses.windows(device, context);
        let (found, expected) = (outputs(new, device, backend, &windows)?, outputs(old, device, backend, &windows)?);
        let mut comparison = Comparison::default();
        for (found, expected) in found.iter().zip(&expected) {
            if let Err(why) = promised(found, expected) {
                certificate.remarks.push(format!("no equality is promised for the model as it routes: {why}"));
                return Ok(());
            }
            comparison.add(&output(found, Output::Logits).to_f64(), &output(expected, Output::Logits).to_f64());
        }
        measured.push(comparison.measured(device, witnesses.characters(windows.len(), context)));
    }
    certificate.claim(format!("as it routes, the model is {}", old.name), measured);
    Ok(())
}

/// That the weights of each token are the same for all parts of what is computed: with G slices, 1 / G for each.
pub(super) fn sums_to_one(outputs: &BTreeMap<Output, Tensor>, layers: &[String], slices: usize) -> Result<(), String> {
    for path in layers {
        let gates = output(outputs, Output::Gates(path.clone()));
        let count = gates.shape().last().copied().unwrap_or(1);
        for row in gates.to_f64().chunks(count) {
            for slice in 0..slices {
                let sum: f64 = row.iter().skip(slice).step_by(slices).sum();
                let expected = 1.0 / slices as f64;
                if (sum - expected).abs() > WEIGHT {
                    let of = if slices > 1 { format!("slice {slice}") } else { "a token".to_string() };
                    return Err(format!("in `{path}` the weights of {of} add up to {sum:.3}, not to {expected}"));
                }
            }
        }
    }
    Ok(())
}

/// Measures losses, and how far the new model is from others.
pub(super) fn distances(
    certificate: &mut Certificate,
    new: &Subject,
    others: &[&Subject],
    witnesses: &Witnesses<'_>,
) -> Result<(), Error> {
    let Some(&(device, backend)) = witnesses.devices.last() else { return Ok(()) };
    let context = new.spec.checked.model.context;
    let windows = witnesses.windows(device, context);
    let vocab = new.vocab.len();
    certificate.remarks.extend(witnesses.remark(context));
    certificate.characters = witnesses.characters(windows.len(), context);
    let ours = logits(new, device, backend, &windows)?;
    let scored = |logits: &[Vec<f64>]| loss(logits, &witnesses.tokens, context, vocab);
    certificate.loss = scored(&ours);
    for other in others {
        let theirs = logits(other, device, backend, &windows)?;
        let mut comparison = Comparison::default();
        let (mut divergence, mut rows) = (0.0, 0usize);
        for (window, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            // Not what the padding behind the text is answered with.
            let own = witnesses.tokens.len().saturating_sub(window * context).min(context) * vocab;
            comparison.add(&ours[..own], &theirs[..own]);
            for (ours, theirs) in ours[..own].chunks(vocab).zip(theirs[..own].chunks(vocab)) {
                let (p, q) = (log_softmax(theirs), log_softmax(ours));
                divergence += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
                rows += 1;
            }
        }
        certificate.distances.push(Distance {
            from: other.name.clone(),
            loss: scored(&theirs),
            largest_difference: comparison.difference,
            divergence: divergence / rows.max(1) as f64,
        });
    }
    Ok(())
}

/// Mean cross-entropy in nats of the characters that follow within the windows.
fn loss(logits: &[Vec<f64>], tokens: &[i32], context: usize, vocab: usize) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0usize);
    for (window, rows) in logits.iter().enumerate() {
        for (i, row) in rows.chunks(vocab).enumerate() {
            let next = tokens.get(window * context + i + 1).and_then(|&token| usize::try_from(token).ok());
            if let Some(next) = next {
                sum -= log_softmax(row)[next];
                count += 1;
            }
        }
    }
    (count > 0).then(|| sum / count as f64)
}

fn log_softmax(row: &[f64]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum = row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln() + largest;
    row.iter().map(|x| x - sum).collect()
}

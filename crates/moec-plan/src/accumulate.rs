//! Steps of several micro-batches: each but the last adds its gradients to sums, and the last goes on with the mean over all.
//!
//! A sum is a state `sum.NAME`, which is 0 between two steps, so that no checkpoint holds one. Besides gradients there are sums of
//! the loss, and of what routers count to update their states: where an update depends on the batch through counts alone, such as
//! that of a balance bias, it is made of the mean counts of the step. Any other update is that of the last micro-batch.

use crate::error::PlanError;
use moec_ir::{Builder, Graph, NodeId, Op, Output, Phase, StateRole, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Something of a micro-batch that is added up.
struct Summed {
    /// The state that holds the sum.
    state: String,
    /// What is added.
    value: Value,
}

/// What is added up of a graph with gradients.
struct Sums {
    /// Outputs by their names: gradients of parameters, losses, and those that `also` names.
    outputs: Vec<(String, Summed)>,
    /// Counts, with the states of routers whose updates read them.
    counts: Vec<(String, Vec<Summed>)>,
}

impl Sums {
    fn of(graph: &Graph, also: impl Fn(&str) -> bool) -> Self {
        let is_summed = |name: &str| match Output::of_name(name) {
            Some(Output::Gradient(_) | Output::Loss | Output::Objective) => true,
            _ => also(name),
        };
        let summed = |name: &str, value| Summed { state: format!("sum.{name}"), value };
        let outputs = graph.outputs().iter().filter(|(name, _)| is_summed(name));
        let updates = graph.updates().iter().filter(|(state, _)| !is_sum(graph, state));
        let counts = updates.filter_map(|(state, value)| {
            let counts = counts_of(graph, *value)?;
            let name = |i: usize| format!("{state}.{i}");
            Some((state.clone(), counts.into_iter().enumerate().map(|(i, count)| summed(&name(i), count)).collect()))
        });
        Self {
            outputs: outputs.map(|(name, value)| (name.clone(), summed(name, *value))).collect(),
            counts: counts.collect(),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Summed> {
        self.outputs.iter().map(|(_, summed)| summed).chain(self.counts.iter().flat_map(|(_, counts)| counts))
    }
}

/// Whether a state is a sum over the batches of a step that the graph itself keeps.
fn is_sum(graph: &Graph, name: &str) -> bool {
    let is_its = |op: &Op| matches!(op, Op::State { name: state, role: StateRole::Sum, .. } if state == name);
    graph.ids().any(|id| is_its(&graph.node(id).op))
}

/// The graph of the last batch of a step: sums that the graph itself keeps are 0 again after it.
///
/// # Errors
/// None that a verified graph can cause.
pub(crate) fn ending_sums(graph: &Graph) -> Result<Graph, PlanError> {
    let sums: Vec<(String, Value)> = graph.updates().iter().filter(|(name, _)| is_sum(graph, name)).cloned().collect();
    if sums.is_empty() {
        return Ok(graph.clone());
    }
    let mut rest = graph.clone();
    rest.retain_updates(|name| !sums.iter().any(|(sum, _)| sum == name));
    let mut b = Builder::extend(rest);
    let phase = b.set_phase(Phase::Optimizer);
    for (name, value) in sums {
        let zero = b.fill(0.0, graph.ty(value).shape.clone());
        b.update(name, zero);
    }
    b.set_phase(phase);
    Ok(b.finish()?)
}

/// The counts through which alone an update depends on a batch; `None` if it does so in other ways too.
fn counts_of(graph: &Graph, update: Value) -> Option<Vec<Value>> {
    let (mut counts, mut seen, mut open) = (BTreeSet::new(), BTreeSet::new(), vec![update]);
    while let Some(value) = open.pop() {
        match graph.node(value.node).op {
            Op::Count { .. } => {
                counts.insert(value);
            }
            Op::Input { .. } => return None,
            _ if seen.insert(value.node) => open.extend(graph.operands(value.node)),
            _ => {}
        }
    }
    Some(counts.into_iter().collect())
}

/// The graph of a micro-batch before the last, from one with gradients: it adds to the sums and does nothing else. Outputs that
/// `also` names are added up as gradients and losses are.
///
/// # Errors
/// When the sums of a graph have the names of other tensors.
pub(crate) fn adding(graph: &Graph, also: impl Fn(&str) -> bool) -> Result<Graph, PlanError> {
    let sums = Sums::of(graph, also);
    let mut rest = graph.clone();
    rest.retain_outputs(|_| false);
    rest.retain_updates(|state| is_sum(graph, state));
    let mut b = Builder::extend(rest);
    b.set_phase(Phase::Optimizer);
    for Summed { state, value } in sums.all() {
        let ty = b.ty(*value).clone();
        let before = b.state_for(StateRole::Sum, state, ty);
        let sum = b.add(before, *value);
        b.update(state.clone(), sum);
    }
    Ok(b.finish()?)
}

/// The graph of the last micro-batch of a step of so many, from one with gradients: its gradients, losses and what `also` names are
/// the means over the step, router states are updated with mean counts, and the sums are 0 again.
///
/// # Errors
/// As [`adding`].
pub(crate) fn averaged(graph: &Graph, batches: usize, also: impl Fn(&str) -> bool) -> Result<Graph, PlanError> {
    let sums = Sums::of(graph, also);
    let mut rest = graph.clone();
    rest.retain_outputs(|name| !sums.outputs.iter().any(|(summed, _)| summed == name));
    rest.retain_updates(|name| !sums.counts.iter().any(|(state, _)| state == name));
    let mut b = Builder::extend(ending_sums(&rest)?);
    let phase = b.set_phase(Phase::Backward);
    let mut means = BTreeMap::new();
    for Summed { state, value } in sums.all() {
        let ty = b.ty(*value).clone();
        let before = b.state_for(StateRole::Sum, state, ty.clone());
        let sum = b.add(before, *value);
        means.insert(state.clone(), b.scale(sum, 1.0 / batches as f64));
        let zero = b.fill(0.0, ty.shape);
        b.update(state.clone(), zero);
    }
    for (name, summed) in &sums.outputs {
        b.output(name.clone(), means[&summed.state]);
    }
    b.set_phase(Phase::Optimizer);
    for (state, counts) in &sums.counts {
        let Some((_, update)) = graph.updates().iter().find(|(name, _)| name == state) else { continue };
        let replaced = counts.iter().map(|summed| (summed.value, means[&summed.state])).collect();
        let update = with_means(&mut b, graph, *update, replaced);
        b.update(state.clone(), update);
    }
    b.set_phase(phase);
    Ok(b.finish()?)
}

/// A value of a graph, computed anew from other values in the place of some.
fn with_means(b: &mut Builder, graph: &Graph, value: Value, mut replaced: BTreeMap<Value, Value>) -> Value {
    // What the value depends on, short of what is replaced.
    let (mut cone, mut open): (BTreeSet<NodeId>, Vec<Value>) = (BTreeSet::new(), vec![value]);
    while let Some(value) = open.pop() {
        if !replaced.contains_key(&value) && cone.insert(value.node) {
            open.extend(graph.operands(value.node));
        }
    }
    for id in cone {
        let operands = graph.operands(id);
        if !operands.iter().any(|operand| replaced.contains_key(operand)) {
            continue;
        }
        let operands: Vec<Value> = operands.iter().map(|v| replaced.get(v).copied().unwrap_or(*v)).collect();
        let node = graph.node(id);
        let new = b.scoped("mean", |b| b.named(&node.name, node.op.clone(), &operands));
        for slot in 0..node.results.len() {
            let slot = slot as u8;
            replaced.insert(Value { node: id, slot }, Value { node: new.node, slot });
        }
    }
    replaced.get(&value).copied().unwrap_or(value)
}

//! Experts that a step leaves idle: their part of a stacked tensor, and of its moments, can stay as it is.
//!
//! The experts of a layer are one tensor `[E, ..]` here, in which an expert without rows has a gradient of 0, with which an
//! optimiser still decays it and moves it along its moments. Where experts are modules of their own, as in makeMoE, those that
//! got no row have no gradient at all, and PyTorch's optimisers pass over them.

use super::{Operands, Optimizer, SKIP, Updated};
use crate::error::PlanError;
use moec_ir::{Builder, Graph, Op, Phase, Value};
use std::collections::BTreeMap;

/// How the names of the outputs begin that say how many rows each expert of a tensor had, `[E]`: between parts of this crate only.
const COUNT: &str = "rows_of.";

/// The name of the output with the rows of each expert of a tensor.
pub(super) fn count_of(parameter: &str) -> String {
    format!("{COUNT}{parameter}")
}

/// Whether an output is such a one.
pub(super) fn is_count(output: &str) -> bool {
    output.starts_with(COUNT)
}

/// The graph with an output for each stacked tensor of experts, if the optimiser passes over idle ones.
pub(super) fn counted(graph: &Graph, optimizer: &Optimizer) -> Result<Graph, PlanError> {
    let mut b = Builder::extend(graph.clone());
    b.set_phase(Phase::Optimizer);
    let experts = if optimizer.settings.word("idle") == SKIP { experts(graph) } else { BTreeMap::new() };
    for (name, segments) in experts {
        let counts = segments.iter().map(|&(offsets, rows)| {
            let ones = b.fill(1.0, [rows, 1]);
            b.op(Op::GroupedSum, &[ones, offsets])
        });
        let counts: Vec<Value> = counts.collect();
        let count = counts[1..].iter().fold(counts[0], |sum, &count| b.add(sum, count));
        b.output(count_of(&name), count);
    }
    Ok(b.finish()?)
}

/// Where the rows of the experts of a tensor begin, i32 `[E + 1]`, and how many rows there are, for each product that uses it.
type Segments = Vec<(Value, usize)>;

/// The stacked tensors of experts by name: what a grouped product of the forward pass takes as weights or bias.
fn experts(graph: &Graph) -> BTreeMap<String, Segments> {
    let mut found: BTreeMap<String, Segments> = BTreeMap::new();
    for id in graph.ids().filter(|&id| graph.node(id).phase == Phase::Forward) {
        if let (Op::GroupedMatMul { .. }, [rows, weights, offsets, bias @ ..]) =
            (&graph.node(id).op, graph.operands(id))
        {
            for stacked in [weights].into_iter().chain(bias) {
                if let Some(name) = parameter(graph, *stacked) {
                    found.entry(name.to_string()).or_default().push((*offsets, graph.ty(*rows).shape[0]));
                }
            }
        }
    }
    found
}

/// The parameter that a value is, under whatever shape that begins with its first axis.
fn parameter(graph: &Graph, value: Value) -> Option<&str> {
    match &graph.node(value.node).op {
        Op::Parameter { name, .. } => Some(name),
        Op::Reshape { .. } => {
            let from = graph.operands(value.node)[0];
            (graph.ty(from).shape.first() == graph.ty(value).shape.first()).then(|| parameter(graph, from))?
        }
        _ => None,
    }
}

/// What was updated where the expert had rows (`[E, 1]` says how many), else what was there before.
pub(super) fn skipped(b: &mut Builder, rows: Value, operands: &Operands, updated: &Updated) -> Updated {
    let shape = b.shape(operands.parameter);
    let mut each = vec![1; shape.len()];
    each[0] = shape[0];
    let rows = b.reshape(rows, each);
    let rows = b.broadcast(rows, shape);
    let mut kept = |new: Value, old: Value| b.select(rows, new, old);
    Updated {
        parameter: kept(updated.parameter, operands.parameter),
        moments: updated.moments.iter().zip(&operands.moments).map(|(&new, &old)| kept(new, old)).collect(),
    }
}

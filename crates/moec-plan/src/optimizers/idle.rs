//! Experts that a step leaves idle: their part of a stacked tensor, and of its moments, can stay as it is.
//!
//! The experts of a layer are one tensor `[E, ..]` here, in which an expert without rows has a gradient of 0, with which an
//! optimiser still decays it and moves it along its moments. Where experts are modules of their own, as in makeMoE, those that
//! got no row have no gradient at all, and PyTorch's optimisers pass over them.

use super::{Operands, Updated};
use moec_ir::{Builder, Graph, Op, Phase, Value};
use std::collections::BTreeMap;

/// Where the rows of the experts of a tensor begin, i32 `[E + 1]`, and how many rows there are, for each product that uses it.
pub(super) type Segments = Vec<(Value, usize)>;

/// The stacked tensors of experts by name: what a grouped product of the forward pass takes as weights or bias.
pub(super) fn experts(graph: &Graph) -> BTreeMap<String, Segments> {
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

/// What was updated where the expert had rows, else what was there before.
pub(super) fn skipped(b: &mut Builder, segments: &Segments, operands: &Operands, updated: &Updated) -> Updated {
    let shape = b.shape(operands.parameter);
    let counts = segments.iter().map(|&(offsets, rows)| {
        let ones = b.fill(1.0, [rows, 1]);
        b.op(Op::GroupedSum, &[ones, offsets])
    });
    let counts: Vec<Value> = counts.collect();
    let count = counts[1..].iter().fold(counts[0], |sum, &count| b.add(sum, count));
    let mut each = vec![1; shape.len()];
    each[0] = shape[0];
    let count = b.reshape(count, each);
    let count = b.broadcast(count, shape);
    let mut kept = |new: Value, old: Value| b.select(count, new, old);
    Updated {
        parameter: kept(updated.parameter, operands.parameter),
        moments: updated.moments.iter().zip(&operands.moments).map(|(&new, &old)| kept(new, old)).collect(),
    }
}

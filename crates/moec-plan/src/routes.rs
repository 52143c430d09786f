//! Frozen routes: the choices that a graph makes, recorded as outputs and given back as inputs.
//!
//! A choice is a result of whole numbers that a selection computes from floats: which experts are the k largest, which
//! entries find room. The rest of a graph is smooth between choices, so with routes frozen it can be differentiated
//! numerically, and two runs or two devices can be compared without one rounding error sending a token elsewhere.
//! Random draws are left as they are: they depend on the `rng` input only, which replays them.

use crate::error::PlanError;
use crate::passes::rebuild::Rebuild;
use moec_ir::{Graph, Input, Op, Output, Value};

/// The result of an operation that is a choice.
fn choice(op: &Op) -> Option<u8> {
    match op {
        Op::TopK { .. } => Some(1),
        Op::ToIndex { .. } | Op::LimitCapacity { .. } | Op::BalancedAssignment => Some(0),
        _ => None,
    }
}

/// The choices of a graph in topological order: the name of the node and the value, always of type i32.
pub fn routes(graph: &Graph) -> Vec<(String, Value)> {
    let of = |id| {
        let node = graph.node(id);
        choice(&node.op).map(|slot| (node.name.clone(), Value { node: id, slot }))
    };
    graph.ids().filter_map(of).collect()
}

/// The graph with an output [`Output::Route`] for every choice.
pub fn record_routes(graph: &Graph) -> Graph {
    let mut recorded = graph.clone();
    for (node, value) in routes(graph) {
        recorded.set_output(Output::Route(node), value);
    }
    recorded
}

/// The graph with an input [`Input::Route`] in place of every choice, of the same type. The values of a `TopK` become those
/// at the given indices, which are the same values under the same routes.
///
/// # Errors
/// When the graph does not fit together.
pub fn freeze_routes(graph: &Graph) -> Result<Graph, PlanError> {
    freeze_some_routes(graph, |_| true)
}

/// As [`freeze_routes`], for the choices of which `is_given` holds, by the name of their node.
///
/// # Errors
/// When the graph does not fit together.
pub fn freeze_some_routes(graph: &Graph, is_given: impl Fn(&str) -> bool) -> Result<Graph, PlanError> {
    let mut r = Rebuild::new(graph);
    for id in graph.ids() {
        let node = graph.node(id);
        let Some(slot) = choice(&node.op).filter(|_| is_given(&node.name)) else {
            r.copy(id)?;
            continue;
        };
        let name = String::from(Input::Route(node.name.clone()));
        let ty = node.results[usize::from(slot)].clone();
        let input = r.add_for(id, Op::Input { name: name.clone(), ty }, &[], &name)?;
        let route = r.new.value(input);
        r.set(Value { node: id, slot }, route);
        if let (Op::TopK { .. }, Some(&x)) = (&node.op, r.operands(id).first()) {
            let values = r.add_as(id, Op::GatherLast, &[x, route])?;
            let values = r.new.value(values);
            r.set(Value { node: id, slot: 0 }, values);
        }
    }
    Ok(r.finish())
}

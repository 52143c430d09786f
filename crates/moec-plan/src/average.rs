//! Moving averages of parameters: states `ema.NAME` that a training step lets follow them, and that other functions read in their
//! place.

use crate::error::PlanError;
use crate::passes::rebuild::Rebuild;
use moec_ir::{Graph, Op, StateRole, TensorType};

const PREFIX: &str = "ema.";

/// The name of the average of a parameter.
pub fn average_of(parameter: &str) -> String {
    format!("{PREFIX}{parameter}")
}

/// The parameter of which a state of the optimiser is the average, if it is one.
pub(crate) fn averaged(state: &str) -> Option<&str> {
    state.strip_prefix(PREFIX)
}

/// The graph with averages in place of the parameters of these names.
///
/// # Errors
/// When the graph does not fit together.
pub fn read_averages(graph: &Graph, parameters: &[String]) -> Result<Graph, PlanError> {
    let mut r = Rebuild::new(graph);
    for id in graph.ids() {
        match &graph.node(id).op {
            Op::Parameter { name, ty } if parameters.contains(name) => {
                let average = average_of(name);
                let node = r.add_for(id, state(&average, ty), &[], &average)?;
                r.set_all(id, node);
            }
            _ => {
                r.copy(id)?;
            }
        }
    }
    Ok(r.finish())
}

fn state(name: &str, ty: &TensorType) -> Op {
    Op::State { name: name.to_string(), role: StateRole::Optimizer, ty: ty.clone() }
}

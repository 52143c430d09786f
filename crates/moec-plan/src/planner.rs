//! Graphs to a program: persistent tensors unified, steps ordered, every byte placed.

use crate::error::PlanError;
use crate::memory::{lives, place};
use crate::plan::{Buffer, Plan, Port, Program, StateDecl, StateKind, Step, Storage};
use crate::schedule::{RegionKind, Tasks};
use indexmap::IndexMap;
use moec_ir::{Graph, Op, TensorType};

/// Prefix of the names of the optimiser's states.
pub(crate) const OPTIMIZER_PREFIX: &str = "adamw.";

/// Plans the functions of a program, which share persistent tensors by name.
///
/// Sizes saturate: a graph of absurd shapes has a plan (of absurd size), so that the caller can say what is too large
/// before anything is allocated.
///
/// # Errors
/// When functions disagree about a persistent tensor or an update does not fit one.
pub fn plan(functions: &[(String, &Graph)]) -> Result<Program, PlanError> {
    let states = states(functions)?;
    let types: IndexMap<String, TensorType> = states.iter().map(|s| (s.name.clone(), s.ty.clone())).collect();
    let plans = functions.iter().map(|(name, graph)| plan_function(name, graph, &types)).collect::<Result<_, _>>()?;
    Ok(Program { states, plans })
}

/// The persistent tensors of all functions.
fn states(functions: &[(String, &Graph)]) -> Result<Vec<StateDecl>, PlanError> {
    let mut states: IndexMap<String, StateDecl> = IndexMap::new();
    for (_, graph) in functions {
        for id in graph.ids() {
            let (name, ty, kind) = match &graph.node(id).op {
                Op::Parameter { name, ty } => (name, ty, StateKind::Parameter),
                Op::State { name, ty } if name.starts_with(OPTIMIZER_PREFIX) => (name, ty, StateKind::Optimizer),
                Op::State { name, ty } => (name, ty, StateKind::Router),
                _ => continue,
            };
            let new = StateDecl { name: name.clone(), ty: ty.clone(), kind };
            let known = states.entry(name.clone()).or_insert_with(|| new.clone());
            if *known != new {
                let describe = |s: &StateDecl| {
                    let kind = if s.kind == StateKind::Parameter { "a parameter" } else { "a state" };
                    format!("{kind} {}", s.ty)
                };
                return Err(PlanError::StateConflict {
                    name: name.clone(),
                    first: describe(known),
                    second: describe(&new),
                });
            }
        }
    }
    Ok(states.into_values().collect())
}

fn plan_function(name: &str, graph: &Graph, states: &IndexMap<String, TensorType>) -> Result<Plan, PlanError> {
    let tasks = Tasks::collect(name, graph, states)?;
    // The early order nearly always needs less memory; where it does not, the graph's own is taken.
    let candidates = [tasks.eager_order(), tasks.graph_order()].map(|order| {
        let (offsets, arena) = place(&tasks, &lives(&tasks, &order));
        (order, offsets, arena)
    });
    let [eager, plain] = candidates;
    let (order, offsets, arena_bytes) = if plain.2 < eager.2 { plain } else { eager };

    let buffers = tasks
        .drafts
        .iter()
        .map(|d| Buffer {
            name: d.name.clone(),
            ty: d.ty.clone(),
            storage: match tasks.regions[d.region].kind {
                RegionKind::State(s) => Storage::State(s),
                _ => Storage::Arena(offsets[d.region]),
            },
        })
        .collect();
    let steps = order
        .iter()
        .map(|&i| {
            let t = &tasks.tasks[i];
            Step {
                name: t.name.clone(),
                op: t.op.clone(),
                operands: t.operands.clone(),
                results: t.results.clone(),
                origin: t.origin,
            }
        })
        .collect();
    let ports = |ports: &[(String, crate::plan::BufferId)]| {
        ports.iter().map(|(name, buffer)| Port { name: name.clone(), buffer: *buffer }).collect()
    };
    Ok(Plan {
        name: name.to_string(),
        buffers,
        steps,
        inputs: ports(&tasks.inputs),
        outputs: ports(&tasks.outputs),
        arena_bytes,
    })
}

//! A plan as plain data, for reading and for YAML.

use crate::plan::{BufferId, Plan, Port, Program, Storage};
use serde::Serialize;

/// A program as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProgramListing {
    /// Persistent tensors.
    pub states: Vec<StateListing>,
    /// The functions.
    pub plans: Vec<PlanListing>,
}

/// A persistent tensor as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StateListing {
    /// Name in checkpoints.
    pub name: String,
    /// `f32[8, 128]`
    pub ty: String,
    /// `parameter`, `optimizer` or `router`.
    pub kind: &'static str,
}

/// A plan as plain data. Buffers are named `b0`, `b1`, .. by their position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlanListing {
    /// Name of the function.
    pub function: String,
    /// Size of the arena.
    pub arena_bytes: usize,
    /// What a run is given.
    pub inputs: Vec<PortListing>,
    /// What a run gives.
    pub outputs: Vec<PortListing>,
    /// One line for each buffer: `b7 %name : f32[512, 128] at 4096`, or `.. in state name`.
    pub buffers: Vec<String>,
    /// One line for each step, in launch order: `%name: b9 = matmul(b3, b4) {transpose_b}`.
    pub steps: Vec<String>,
}

/// An input or output as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortListing {
    /// Its name.
    pub name: String,
    /// Its buffer.
    pub buffer: String,
}

/// Lists a program.
pub fn listing(program: &Program) -> ProgramListing {
    let states =
        program.states.iter().map(|s| StateListing { name: s.name.clone(), ty: s.ty.to_string(), kind: s.kind.name() });
    ProgramListing { states: states.collect(), plans: program.plans.iter().map(|p| plan_listing(p, program)).collect() }
}

fn plan_listing(plan: &Plan, program: &Program) -> PlanListing {
    let short = |b: &BufferId| format!("b{}", b.0);
    let buffers = plan.buffers.iter().enumerate().map(|(i, buffer)| {
        let place = match buffer.storage {
            Storage::State(s) => format!("in state {}", program.states.get(s).map_or("?", |s| s.name.as_str())),
            Storage::Arena(offset) => format!("at {offset}"),
        };
        format!("b{i} %{} : {} {place}", buffer.name, buffer.ty)
    });
    let steps = plan.steps.iter().map(|s| {
        let names = |buffers: &[BufferId]| buffers.iter().map(short).collect::<Vec<_>>();
        format!("%{}: {}", s.name, s.kernel().line(&names(&s.operands), &names(&s.results)))
    });
    let ports =
        |ports: &[Port]| ports.iter().map(|p| PortListing { name: p.name.clone(), buffer: short(&p.buffer) }).collect();
    PlanListing {
        function: plan.name.clone(),
        arena_bytes: plan.arena_bytes,
        inputs: ports(&plan.inputs),
        outputs: ports(&plan.outputs),
        buffers: buffers.collect(),
        steps: steps.collect(),
    }
}

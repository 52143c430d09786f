//! Where the memory goes: what a program needs on a device, by kind and by tensor, before anything is allocated.

use crate::plan::StateKind;
use crate::planner::{Arranged, Arrangement};
use crate::schedule::RegionKind;
use moec_ir::{Op, Origin, Phase, StateRole, TensorType, internal_error};
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::HashMap;

/// How many tensors [`MemoryReport::largest`] names.
const LARGEST: usize = 12;

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryKind {
    /// Trained by gradient.
    Parameter,
    /// A moment of the optimiser.
    Optimizer,
    /// Persistent state of a router.
    Router,
    /// Keys and values of a sequence that is being written.
    Cache,
    /// Written by the caller or read by it.
    InputOutput,
    /// A value of the forward pass that the backward pass reads.
    Activation,
    /// A value of the backward pass.
    Gradient,
    /// A value of the forward pass that only the forward pass reads.
    Temporary,
}

/// A tensor that takes much memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LargeTensor {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: TensorType,
    /// Its size, saturating.
    pub bytes: u64,
    /// What it is for.
    pub kind: MemoryKind,
    /// Where in the `.moe` file it came from.
    pub origin: Option<Origin>,
}

/// The arena of one function, by what is alive when most is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FunctionMemory {
    /// Name of the function.
    pub name: String,
    /// Size of its arena.
    pub arena_bytes: u64,
    /// The step at which most bytes are alive.
    pub peak_step: Option<String>,
    /// Bytes alive then; the arena is larger by what alignment and gaps cost.
    pub peak_bytes: u64,
    /// Inputs and outputs among them.
    pub input_output_bytes: u64,
    /// Forward values kept for the backward pass among them.
    pub activation_bytes: u64,
    /// Backward values among them.
    pub gradient_bytes: u64,
    /// Other forward values among them.
    pub temporary_bytes: u64,
}

/// What a program needs on a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// Bytes of trained tensors.
    pub parameter_bytes: u64,
    /// Bytes of the optimiser's moments.
    pub optimizer_bytes: u64,
    /// Bytes of routers' states.
    pub router_bytes: u64,
    /// Bytes of the keys and values that sampling keeps.
    pub cache_bytes: u64,
    /// The arenas. Functions run one at a time, so the largest counts.
    pub functions: Vec<FunctionMemory>,
    /// The largest tensors of all functions, largest first.
    pub largest: Vec<LargeTensor>,
}

impl MemoryReport {
    /// Bytes of the persistent tensors and the largest arena, saturating.
    pub fn total_bytes(&self) -> u64 {
        let arena = self.functions.iter().map(|f| f.arena_bytes).max().unwrap_or(0);
        let rest = [self.optimizer_bytes, self.router_bytes, self.cache_bytes, arena];
        rest.iter().fold(self.parameter_bytes, |n, &b| n.saturating_add(b))
    }
}

impl Arrangement {
    /// Reports the memory of the functions.
    ///
    /// All sums saturate, and nothing as large as the tensors is allocated, so a model of 10^12 parameters has a report.
    pub fn memory(&self) -> MemoryReport {
        let mut origins = HashMap::new();
        for node in self.functions.iter().flat_map(|(_, f)| f.graph().ids().map(|id| f.graph().node(id))) {
            if let (Op::Parameter { name, .. } | Op::State { name, .. }, Some(origin)) = (&node.op, node.origin) {
                origins.entry(name.as_str()).or_insert(origin);
            }
        }
        let mut report = MemoryReport::default();
        let mut tensors: Vec<LargeTensor> = Vec::new();
        for s in &self.states {
            let bytes = s.ty.bytes() as u64;
            let (sum, kind) = match s.kind {
                StateKind::Parameter
                | StateKind::State(StateRole::Transposed | StateRole::Packed(_) | StateRole::Scale) => {
                    (&mut report.parameter_bytes, MemoryKind::Parameter)
                }
                StateKind::State(StateRole::Optimizer | StateRole::Sum) => {
                    (&mut report.optimizer_bytes, MemoryKind::Optimizer)
                }
                StateKind::State(StateRole::Router) => (&mut report.router_bytes, MemoryKind::Router),
                StateKind::State(StateRole::Cache) => (&mut report.cache_bytes, MemoryKind::Cache),
            };
            *sum = sum.saturating_add(bytes);
            let origin = origins.get(s.name.as_str()).copied();
            tensors.push(LargeTensor { name: s.held().to_string(), ty: s.ty.clone(), bytes, kind, origin });
        }
        for ((name, _), arranged) in self.functions.iter().zip(&self.arranged) {
            report.functions.push(function_memory(name, arranged, &mut tensors));
        }
        tensors.sort_by(|a, b| (Reverse(a.bytes), &a.name).cmp(&(Reverse(b.bytes), &b.name)));
        tensors.dedup();
        tensors.truncate(LARGEST);
        report.largest = tensors;
        report
    }
}

fn function_memory(name: &str, arranged: &Arranged, tensors: &mut Vec<LargeTensor>) -> FunctionMemory {
    let tasks = &arranged.tasks;
    let count = tasks.regions.len();
    // The first buffer of a region is the value itself, later ones are reshapes of it.
    let mut first_draft = vec![None; count];
    for (i, d) in tasks.drafts.iter().enumerate() {
        first_draft[d.region].get_or_insert(i);
    }
    let (mut writer, mut read_backward) = (vec![None; count], vec![false; count]);
    for &i in &arranged.order {
        let task = &tasks.tasks[i];
        for b in &task.results {
            writer[tasks.drafts[b.index()].region].get_or_insert(i);
        }
        for b in &task.operands {
            read_backward[tasks.drafts[b.index()].region] |= task.phase > Phase::Forward;
        }
    }
    let kind = |region: usize| match (tasks.regions[region].kind, writer[region]) {
        (RegionKind::Input | RegionKind::Output, _) => MemoryKind::InputOutput,
        (_, Some(_)) if first_draft[region].is_some_and(|i| tasks.drafts[i].phase > Phase::Forward) => {
            MemoryKind::Gradient
        }
        _ if read_backward[region] => MemoryKind::Activation,
        _ => MemoryKind::Temporary,
    };

    let steps = arranged.order.len();
    let mut changes: Vec<(Vec<usize>, Vec<usize>)> = vec![Default::default(); steps + 2];
    for (region, life) in arranged.lives.iter().enumerate() {
        let Some(life) = life else { continue };
        changes[life.first].0.push(region);
        changes[life.last + 1].1.push(region);
        if let Some(draft) = first_draft[region].map(|i| &tasks.drafts[i]) {
            let origin = writer[region].and_then(|w: usize| tasks.tasks[w].origin);
            let bytes = draft.ty.bytes() as u64;
            tensors.push(LargeTensor {
                name: draft.name.clone(),
                ty: draft.ty.clone(),
                bytes,
                kind: kind(region),
                origin,
            });
        }
    }
    // 128 bits, so that sums of saturated sizes can be taken back again.
    let mut alive = [0u128; 4];
    let mut peak = (0u128, None, alive);
    for (step, (begin, end)) in changes.iter().enumerate() {
        let place = |region: usize| match kind(region) {
            MemoryKind::Activation => 1,
            MemoryKind::Gradient => 2,
            MemoryKind::Temporary => 3,
            MemoryKind::InputOutput => 0,
            kind => internal_error!("a tensor that persists ({kind:?}) lies outside of the arena"),
        };
        for &r in end {
            alive[place(r)] -= tasks.regions[r].bytes as u128;
        }
        for &r in begin {
            alive[place(r)] += tasks.regions[r].bytes as u128;
        }
        let sum = alive.iter().sum();
        if sum > peak.0 {
            peak = (sum, Some(step), alive);
        }
    }
    let saturate = |bytes: u128| u64::try_from(bytes).unwrap_or(u64::MAX);
    let [input_output_bytes, activation_bytes, gradient_bytes, temporary_bytes] = peak.2.map(saturate);
    FunctionMemory {
        name: name.to_string(),
        arena_bytes: arranged.arena_bytes as u64,
        peak_step: peak.1.and_then(|s| arranged.order.get(s)).map(|&i| tasks.tasks[i].name.clone()),
        peak_bytes: saturate(peak.0),
        input_output_bytes,
        activation_bytes,
        gradient_bytes,
        temporary_bytes,
    }
}

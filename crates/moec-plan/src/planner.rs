//! Graphs to a program: persistent tensors unified, steps ordered, every byte placed.

use crate::cluster::Clusters;
use crate::error::PlanError;
use crate::memory::{Life, lives, place};
use crate::plan::{Buffer, BufferId, Plan, Port, Program, StateDecl, StateKind, Step, Storage};
use crate::schedule::{RegionKind, Tasks};
use crate::threads::on_threads;
use indexmap::IndexMap;
use moec_ir::{Graph, Op, TensorType};

/// Plans the functions of a program, which share persistent tensors by name: clusters, or graphs, of which each node is then
/// computed on its own.
///
/// # Errors
/// As [`Arrangement::of`].
pub fn plan(functions: &[(String, impl Copy + Into<Clusters>)]) -> Result<Program, PlanError> {
    Ok(Arrangement::of(functions)?.into_program())
}

/// The functions of a program, which share persistent tensors by name, with every step ordered and every byte placed.
pub struct Arrangement {
    pub(crate) functions: Vec<(String, Clusters)>,
    pub(crate) states: Vec<StateDecl>,
    /// One per function.
    pub(crate) arranged: Vec<Arranged>,
}

impl Arrangement {
    /// Orders and places the steps of all functions.
    ///
    /// Sizes saturate: a graph of absurd shapes has a plan (of absurd size), so that the caller can say what is too large
    /// before anything is allocated.
    ///
    /// # Errors
    /// When functions disagree about a persistent tensor or an update does not fit one.
    pub fn of(functions: &[(String, impl Copy + Into<Clusters>)]) -> Result<Self, PlanError> {
        let functions: Vec<(String, Clusters)> =
            functions.iter().map(|(name, f)| (name.clone(), (*f).into())).collect();
        let graphs: Vec<(String, &Graph)> = functions.iter().map(|(name, f)| (name.clone(), f.graph())).collect();
        let states = declare_states(&graphs)?;
        let types = states.iter().map(|s| (s.name.clone(), s.ty.clone())).collect();
        let arranged = on_threads(&functions, |(name, clusters)| arrange(name, clusters, &types));
        Ok(Self { functions, states, arranged: arranged.into_iter().collect::<Result<_, _>>()? })
    }

    /// The program that runs them.
    pub fn into_program(self) -> Program {
        let plans = self.functions.iter().zip(self.arranged).map(|((name, f), a)| plan_of(name, f, a));
        Program { plans: plans.collect(), states: self.states }
    }
}

/// The persistent tensors of all functions, in the order in which they are first named.
///
/// # Errors
/// When functions disagree about one.
pub fn declare_states(functions: &[(String, &Graph)]) -> Result<Vec<StateDecl>, PlanError> {
    let mut states: IndexMap<String, StateDecl> = IndexMap::new();
    for (_, graph) in functions {
        for id in graph.ids() {
            let (name, ty, kind) = match &graph.node(id).op {
                Op::Parameter { name, ty } => (name, ty, StateKind::Parameter),
                Op::State { name, role, ty } => (name, ty, StateKind::State(*role)),
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

/// The tasks of a function with their order and places.
pub(crate) struct Arranged {
    pub(crate) tasks: Tasks,
    pub(crate) order: Vec<usize>,
    /// When each region is alive; persistent tensors always are.
    pub(crate) lives: Vec<Option<Life>>,
    /// Offset of each region in the arena.
    pub(crate) offsets: Vec<usize>,
    pub(crate) arena_bytes: usize,
}

/// Orders and places the tasks of one function.
fn arrange(name: &str, clusters: &Clusters, states: &IndexMap<String, TensorType>) -> Result<Arranged, PlanError> {
    let tasks = Tasks::collect(name, clusters, states)?;
    // The early order nearly always needs less memory; where it does not, the graph's own is taken.
    let [eager, plain] = [tasks.eager_order(), tasks.graph_order()].map(|order| {
        let lives = lives(&tasks, &order);
        let (offsets, arena_bytes) = place(&tasks, &lives);
        (order, lives, offsets, arena_bytes)
    });
    let (order, lives, offsets, arena_bytes) = if plain.3 < eager.3 { plain } else { eager };
    Ok(Arranged { tasks, order, lives, offsets, arena_bytes })
}

fn plan_of(name: &str, clusters: &Clusters, arranged: Arranged) -> Plan {
    let Arranged { tasks, order, offsets, arena_bytes, .. } = arranged;
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
                cluster: t.cluster.clone(),
                operands: t.operands.clone(),
                results: t.results.clone(),
                origin: t.origin,
                phase: t.phase,
            }
        })
        .collect();
    let ports = |ports: &[(String, BufferId)]| {
        ports.iter().map(|(name, buffer)| Port { name: name.clone(), buffer: *buffer }).collect()
    };
    Plan {
        name: name.to_string(),
        graph: clusters.shared_graph(),
        buffers,
        steps,
        inputs: ports(&tasks.inputs),
        outputs: ports(&tasks.outputs),
        arena_bytes,
    }
}

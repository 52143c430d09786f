//! Which steps to run, in which order, over which regions of memory.
//!
//! A *region* is a piece of memory with one owner at a time: a persistent tensor, an input, or a result. Reshapes are
//! not steps but further buffers on the region of their operand, persistent tensors included.
//!
//! # Updates
//! A persistent tensor has its old value until its update. AdamW and attention over a cache run in place
//! ([`Kernel::in_place`](crate::Kernel::in_place)): such a result is the storage of the tensor that it updates, and every other reader of the old
//! value is ordered before it. Another operation that ends in an update writes the tensor directly if all other readers
//! can run before, and it does not read it itself, or element by element
//! ([`Kernel::may_replace`](crate::Kernel::may_replace)). Everything else goes through a copy at the end. Where such an operation cannot run in place on a persistent tensor, its operand is
//! copied to the result first, so that it always finds operand and result in the same place.
//!
//! # Copies
//! Some steps only copy their operand to their result; a reshape is no step.
//! An output that is a persistent tensor or an input is a copy too, so outputs stay valid when those change.
//!
//! # Order
//! Nodes run in the order of the graph, which follows the model, with two exceptions that keep memory low: a step that
//! frees at least what it allocates runs as soon as it can (AdamW right after the last gradient that it reads, unless
//! clipping needs all gradients first), and a step that reads no intermediate result waits for its first reader.

use crate::cluster::{Cluster, Clusters};
use crate::error::PlanError;
use crate::plan::BufferId;
use indexmap::IndexMap;
use moec_ir::{Graph, Invariant, Node, Op, Origin, Phase, TensorType, Value};
use std::collections::{BTreeMap, BTreeSet};

/// What a region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RegionKind {
    /// A persistent tensor of the program.
    State(usize),
    /// Written by the caller.
    Input,
    /// Read by the caller.
    Output,
    /// Lives from its first write to its last read.
    Temporary,
}

/// A piece of memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) kind: RegionKind,
    pub(crate) bytes: usize,
}

/// A buffer before its region has a place.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) name: String,
    pub(crate) ty: TensorType,
    pub(crate) region: usize,
    /// Phase in which it is made.
    pub(crate) phase: Phase,
}

/// A step before it has a place in the order.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) name: String,
    pub(crate) cluster: Cluster,
    pub(crate) operands: Vec<BufferId>,
    pub(crate) results: Vec<BufferId>,
    pub(crate) origin: Option<Origin>,
    pub(crate) phase: Phase,
    /// Tasks that must run before.
    after: BTreeSet<usize>,
}

/// The tasks of one function and the memory they work on.
#[derive(Debug)]
pub(crate) struct Tasks {
    pub(crate) regions: Vec<Region>,
    pub(crate) drafts: Vec<Draft>,
    pub(crate) tasks: Vec<Task>,
    pub(crate) inputs: Vec<(String, BufferId)>,
    pub(crate) outputs: Vec<(String, BufferId)>,
}

/// Where a value comes from once reshapes are looked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    State(usize),
    Input,
    Task {
        task: usize,
        slot: usize,
    },
    /// A copy of the old value of a persistent tensor.
    Aside {
        task: usize,
    },
}

/// Buffers and sources of the values of a graph while its tasks are collected.
struct Collector<'a> {
    function: &'a str,
    graph: &'a Graph,
    out: Tasks,
    /// Values that are stored.
    values: BTreeMap<Value, (BufferId, Source)>,
    /// Region of each persistent tensor that this function uses.
    state_regions: IndexMap<usize, usize>,
    /// Tasks that read the old value of a persistent tensor.
    readers: IndexMap<usize, BTreeSet<usize>>,
}

impl Tasks {
    /// Collects the tasks of the clusters of a graph. `states` maps the name of a persistent tensor to its number.
    pub(crate) fn collect(
        function: &str,
        clusters: &Clusters,
        states: &IndexMap<String, TensorType>,
    ) -> Result<Tasks, PlanError> {
        let out = Tasks { regions: vec![], drafts: vec![], tasks: vec![], inputs: vec![], outputs: vec![] };
        let mut c = Collector {
            function,
            graph: clusters.graph(),
            out,
            values: BTreeMap::new(),
            state_regions: IndexMap::new(),
            readers: IndexMap::new(),
        };
        for cluster in clusters.iter() {
            c.cluster(cluster, states)?;
        }
        let rest = c.copy_sources_to_outputs();
        c.updates(states)?;
        c.in_place();
        c.outputs(&rest);
        Ok(c.out)
    }

    /// Tasks in the order of the graph.
    pub(crate) fn graph_order(&self) -> Vec<usize> {
        self.order(false)
    }

    /// Tasks in the order of the graph, except that what frees memory runs early and what only takes it runs late.
    pub(crate) fn eager_order(&self) -> Vec<usize> {
        self.order(true)
    }

    fn order(&self, eager: bool) -> Vec<usize> {
        let n = self.tasks.len();
        let mut users = vec![Vec::new(); n];
        let mut missing = vec![0usize; n];
        for (i, t) in self.tasks.iter().enumerate() {
            missing[i] = t.after.len();
            for &p in &t.after {
                users[p].push(i);
            }
        }
        let key = self.keys(&users);
        let reads: Vec<Vec<usize>> = self.tasks.iter().map(|t| self.temporaries(&t.operands)).collect();
        let writes: Vec<Vec<usize>> = self.tasks.iter().map(|t| self.temporaries(&t.results)).collect();
        let mut unread = vec![0usize; self.regions.len()];
        for &region in reads.iter().flatten() {
            unread[region] += 1;
        }
        let mut written = vec![false; self.regions.len()];
        let mut ready: BTreeSet<(usize, usize)> = (0..n).filter(|&i| missing[i] == 0).map(|i| (key[i], i)).collect();
        let mut order = Vec::with_capacity(n);
        while let Some(&first) = ready.first() {
            let bytes = |regions: &[usize], counts: &dyn Fn(usize) -> bool| -> i128 {
                regions.iter().filter(|&&r| counts(r)).map(|&r| self.regions[r].bytes as i128).sum()
            };
            let growth = |i: usize| bytes(&writes[i], &|r| !written[r]) - bytes(&reads[i], &|r| unread[r] == 1);
            let shrinking = ready
                .iter()
                .filter(|&&(_, i)| eager && !reads[i].is_empty())
                .map(|&(k, i)| (growth(i), k, i))
                .filter(|&(g, ..)| g <= 0)
                .min();
            let next = shrinking.map_or(first, |(_, k, i)| (k, i));
            ready.remove(&next);
            let i = next.1;
            order.push(i);
            for &region in &writes[i] {
                written[region] = true;
            }
            for &region in &reads[i] {
                unread[region] -= 1;
            }
            for &u in &users[i] {
                missing[u] -= 1;
                if missing[u] == 0 {
                    ready.insert((key[u], u));
                }
            }
        }
        order
    }

    /// Position of a task in the wanted order: its own, or that of its first user if it waits for nothing.
    fn keys(&self, users: &[Vec<usize>]) -> Vec<usize> {
        let mut key: Vec<usize> = (0..self.tasks.len()).collect();
        for i in (0..self.tasks.len()).rev().filter(|&i| self.tasks[i].after.is_empty()) {
            key[i] = users[i].iter().map(|&u| key[u]).min().map_or(i, |first| first.max(i));
        }
        key
    }

    /// The temporary regions among some buffers, each once.
    fn temporaries(&self, buffers: &[BufferId]) -> Vec<usize> {
        let regions: BTreeSet<usize> = buffers.iter().map(|b| self.drafts[b.index()].region).collect();
        regions.into_iter().filter(|&r| self.regions[r].kind == RegionKind::Temporary).collect()
    }
}

impl Collector<'_> {
    fn value(&self, v: Value) -> (BufferId, Source) {
        *self.values.get(&v).invariant("a value is stored before it is read")
    }

    fn region(&mut self, kind: RegionKind, bytes: usize) -> usize {
        self.out.regions.push(Region { kind, bytes });
        self.out.regions.len() - 1
    }

    fn buffer(&mut self, name: impl Into<String>, ty: TensorType, region: usize, phase: Phase) -> BufferId {
        self.out.drafts.push(Draft { name: name.into(), ty, region, phase });
        BufferId((self.out.drafts.len() - 1) as u32)
    }

    fn region_of(&self, b: BufferId) -> usize {
        self.out.drafts[b.index()].region
    }

    fn state_region(&mut self, state: usize, bytes: usize) -> usize {
        if let Some(&r) = self.state_regions.get(&state) {
            return r;
        }
        let r = self.region(RegionKind::State(state), bytes);
        self.state_regions.insert(state, r);
        r
    }

    /// Adds a task that reads values with these sources.
    fn task(&mut self, task: Task, sources: &[Source]) -> usize {
        let index = self.out.tasks.len();
        self.out.tasks.push(task);
        for &source in sources {
            self.reads(index, source);
        }
        index
    }

    /// Notes that `task` reads from `source`.
    fn reads(&mut self, task: usize, source: Source) {
        match source {
            Source::State(s) => {
                self.readers.entry(s).or_default().insert(task);
            }
            Source::Input => {}
            Source::Task { task: producer, .. } | Source::Aside { task: producer } => {
                self.out.tasks[task].after.insert(producer);
            }
        }
    }

    /// Adds a task that copies a value from one buffer to another.
    fn copy(&mut self, name: String, v: Value, from: (BufferId, Source), to: BufferId) -> usize {
        let (cluster, node, operands) = (Cluster::copy(v), self.graph.node(v.node), vec![from.0]);
        let (origin, phase, after) = (node.origin, node.phase, BTreeSet::new());
        let task = Task { name, cluster, operands, results: vec![to], origin, phase, after };
        self.task(task, &[from.1])
    }

    /// Gives what a cluster makes its buffers and, unless it only names memory, its task.
    fn cluster(&mut self, cluster: &Cluster, states: &IndexMap<String, TensorType>) -> Result<(), PlanError> {
        let node = self.graph.node(cluster.node);
        let value = self.graph.value(cluster.node);
        match cluster.kernel.op() {
            Some(Op::Parameter { name, ty } | Op::State { name, ty, .. }) => {
                let state = states.get_index_of(name).invariant("the sources of a graph are declared");
                let region = self.state_region(state, ty.bytes());
                let buffer = self.buffer(name, ty.clone(), region, node.phase);
                self.values.insert(value, (buffer, Source::State(state)));
            }
            Some(Op::Input { name, ty }) => {
                let known = self.out.inputs.iter().find(|(n, _)| n == name).map(|&(_, b)| b);
                let buffer = match known {
                    Some(b) if &self.out.drafts[b.index()].ty == ty => b,
                    Some(b) => {
                        return Err(PlanError::StateConflict {
                            name: name.clone(),
                            first: format!("an input {}", self.out.drafts[b.index()].ty),
                            second: format!("an input {ty}"),
                        });
                    }
                    None => {
                        let region = self.region(RegionKind::Input, ty.bytes());
                        let b = self.buffer(name, ty.clone(), region, node.phase);
                        self.out.inputs.push((name.clone(), b));
                        b
                    }
                };
                self.values.insert(value, (buffer, Source::Input));
            }
            Some(Op::Reshape { .. }) => {
                let (from, source) = self.value(cluster.operands[0]);
                let region = self.region_of(from);
                let buffer = self.buffer(&node.name, node.results[0].clone(), region, node.phase);
                self.values.insert(value, (buffer, source));
            }
            _ => {
                let (operands, sources): (Vec<_>, Vec<_>) = cluster.operands.iter().map(|&v| self.value(v)).unzip();
                let mut results = Vec::with_capacity(cluster.results.len());
                for &v in &cluster.results {
                    let ty = self.graph.ty(v);
                    let region = self.region(RegionKind::Temporary, ty.bytes());
                    let Node { name, phase, .. } = self.graph.node(v.node);
                    let name = if v.slot == 0 { name.clone() } else { format!("{name}.{}", v.slot) };
                    results.push(self.buffer(name, ty.clone(), region, *phase));
                }
                let task = Task {
                    name: node.name.clone(),
                    cluster: cluster.clone(),
                    operands,
                    results: results.clone(),
                    origin: node.origin,
                    phase: node.phase,
                    after: BTreeSet::new(),
                };
                let task = self.task(task, &sources);
                for (slot, (&v, buffer)) in cluster.results.iter().zip(results).enumerate() {
                    self.values.insert(v, (buffer, Source::Task { task, slot }));
                }
            }
        }
        Ok(())
    }

    /// Copies outputs that are persistent tensors or inputs, before updates change them; returns the other outputs.
    fn copy_sources_to_outputs(&mut self) -> Vec<(usize, Value)> {
        let mut rest = Vec::new();
        for (i, (name, v)) in self.graph.outputs().iter().enumerate() {
            let from = self.value(*v);
            let buffer = match from.1 {
                Source::Task { .. } => {
                    rest.push((i, *v));
                    from.0
                }
                Source::State(_) | Source::Input | Source::Aside { .. } => {
                    let to = self.output_buffer(name, *v);
                    self.copy(format!("output.{name}"), *v, from, to);
                    to
                }
            };
            self.out.outputs.push((name.clone(), buffer));
        }
        rest
    }

    fn output_buffer(&mut self, name: &str, v: Value) -> BufferId {
        let ty = self.graph.ty(v).clone();
        let region = self.region(RegionKind::Output, ty.bytes());
        self.buffer(format!("output.{name}"), ty, region, self.graph.node(v.node).phase)
    }

    /// Lets results be outputs where they are, or copies them if they are where a persistent tensor is.
    fn outputs(&mut self, outputs: &[(usize, Value)]) {
        for &(i, v) in outputs {
            let from = self.value(v);
            let region = self.region_of(from.0);
            if let RegionKind::State(_) = self.out.regions[region].kind {
                let name = self.graph.outputs()[i].0.clone();
                let to = self.output_buffer(&name, v);
                self.copy(format!("output.{name}"), v, from, to);
                self.out.outputs[i].1 = to;
            } else {
                self.out.regions[region].kind = RegionKind::Output;
            }
        }
    }

    fn updates(&mut self, states: &IndexMap<String, TensorType>) -> Result<(), PlanError> {
        let mut copies = Vec::new();
        let mut seen = BTreeSet::new();
        let mut wanted = Vec::new();
        for (name, v) in self.graph.updates() {
            let fail = |reason: String| {
                Err(PlanError::Update { function: self.function.to_string(), name: name.clone(), reason })
            };
            let Some((state, _, ty)) = states.get_full(name) else {
                return fail("there is no such parameter or state".into());
            };
            if ty != self.graph.ty(*v) {
                return fail(format!("it is {ty}, but the new value is {}", self.graph.ty(*v)));
            }
            if !seen.insert(state) {
                return fail("it is updated twice".into());
            }
            wanted.push((name, state, ty, *v));
        }
        // Another tensor may get its new value before its old one is copied, so the old one is set aside; that makes a
        // reader, and readers must be known before anything is written in place.
        let mut sources = Vec::new();
        for (name, state, ty, v) in &wanted {
            let mut from = self.value(*v);
            if matches!(from.1, Source::State(s) if s != *state) {
                let region = self.region(RegionKind::Temporary, ty.bytes());
                let aside = self.buffer(format!("old.{name}"), (*ty).clone(), region, self.graph.node(v.node).phase);
                let task = self.copy(format!("old.{name}"), *v, from, aside);
                from = (aside, Source::Aside { task });
            }
            sources.push(from);
        }
        for ((name, state, ty, v), from) in wanted.into_iter().zip(sources) {
            match from.1 {
                Source::State(_) => {}
                Source::Task { task, slot } if self.claim(state, ty, task, slot) => {}
                _ => copies.push((name.clone(), state, from, v)),
            }
        }
        for (name, state, from, v) in copies {
            let ty = states[state].clone();
            let region = self.state_region(state, ty.bytes());
            let to = self.buffer(&name, ty, region, self.graph.node(v.node).phase);
            let before = self.readers.get(&state).cloned().unwrap_or_default();
            let task = self.copy(format!("update.{name}"), v, from, to);
            self.out.tasks[task].after.extend(before);
        }
        Ok(())
    }

    /// Tries to let result `slot` of a task be the storage of persistent tensor `state`.
    fn claim(&mut self, state: usize, ty: &TensorType, task: usize, slot: usize) -> bool {
        let result = self.out.tasks[task].results[slot];
        let region = self.region_of(result);
        if self.out.regions[region].kind != RegionKind::Temporary {
            return false;
        }
        let target = self.state_region(state, ty.bytes());
        let reads: Vec<usize> = self.out.tasks[task]
            .operands
            .iter()
            .enumerate()
            .filter(|(_, b)| self.region_of(**b) == target)
            .map(|(position, _)| position)
            .collect();
        let fits = match self.out.tasks[task].cluster.kernel.in_place(slot) {
            Some(operand) => reads == [operand],
            None => reads.iter().all(|&operand| self.out.tasks[task].cluster.kernel.may_replace(operand)),
        };
        let mut before = self.readers.get(&state).cloned().unwrap_or_default();
        before.remove(&task);
        if !fits || self.reaches(task, &before) {
            return false;
        }
        self.out.tasks[task].after.extend(before);
        // Reshapes of the result are on the region too.
        for draft in self.out.drafts.iter_mut().filter(|d| d.region == region) {
            draft.region = target;
        }
        true
    }

    /// Whether one of `targets` must run after `task`.
    fn reaches(&self, task: usize, targets: &BTreeSet<usize>) -> bool {
        let mut seen = vec![false; self.out.tasks.len()];
        let mut open: Vec<usize> = targets.iter().copied().collect();
        while let Some(t) = open.pop() {
            if t == task {
                return true;
            }
            if !std::mem::replace(&mut seen[t], true) {
                open.extend(&self.out.tasks[t].after);
            }
        }
        false
    }

    /// Copies operands that are changed in place to their results where they are not already in the same place.
    fn in_place(&mut self) {
        for task in 0..self.out.tasks.len() {
            for slot in 0..self.out.tasks[task].results.len() {
                let Some(position) = self.out.tasks[task].cluster.kernel.in_place(slot) else { continue };
                let (operand, result) = (self.out.tasks[task].operands[position], self.out.tasks[task].results[slot]);
                if self.region_of(operand) == self.region_of(result) {
                    continue;
                }
                let name = format!("{}.operand", self.out.drafts[result.index()].name);
                let value = self.out.tasks[task].cluster.operands[position];
                let (origin, phase) = (self.out.tasks[task].origin, self.out.tasks[task].phase);
                // The copy waits for whatever the operation waited for: its readers of the old value included.
                let copy = self.copy(name, value, (operand, Source::Input), result);
                (self.out.tasks[copy].origin, self.out.tasks[copy].phase) = (origin, phase);
                self.out.tasks[copy].after = self.out.tasks[task].after.clone();
                self.out.tasks[copy].after.remove(&copy);
                self.out.tasks[task].after.insert(copy);
                self.out.tasks[task].operands[position] = result;
            }
        }
    }
}

//! Elementwise fusion: chains of elementwise operations become one [`Op::Fused`], which reads every operand once and
//! keeps what is between in registers.
//!
//! Members of a program are functions of one, two or three operands and dropout, all over the same number of elements;
//! a reshape between them changes nothing. Fills become constants of the program, and a broadcast that reads its operand
//! by one of the [`Access`] patterns becomes that access, for every program that reads it, so that the broadcast tensor
//! is not written at all. Any other broadcast stays.
//!
//! Consumers take in their producers, later ones first. A producer with other readers is a further result of the
//! program, so nothing is computed twice; it stays alone if joining would make the program wait for itself (a path from
//! one member to another through a node outside), and across the border between forward and backward pass, where
//! joining would run the backward part early and keep its result for long.
//!
//! A product whose result a program reads element by element is taken in too ([`Op::FusedAfter`]): the program then
//! runs on what is still in registers, and what it makes superfluous (a layer before its activation, a row before its
//! dropout) never reaches memory. The same goes for the other operations that make their first result element by
//! element: rows on their way to experts and back, the gradient of a norm. A program takes in one such producer, none of
//! whose operands it computes.

use super::rebuild::{Rebuild, reads_nothing, uniform};
use super::{Rewrites, dce};
use indexmap::IndexMap;
use moec_ir::{Access, FusedProgram, Graph, GraphError, Instr, NodeId, Op, Phase, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Operands of a program; with its results, and the operands of a producer before it, a launch stays below the 31 buffers
/// that CubeCL can bind.
const MAX_OPERANDS: usize = 8;
/// Results of a program, beside further ones of its producer.
const MAX_RESULTS: usize = 4;
/// Instructions of a program: longer ones run out of registers and compile slowly.
const MAX_INSTRUCTIONS: usize = 64;

pub(crate) fn run(graph: &Graph, rewrites: &mut Rewrites) -> Result<Option<Graph>, GraphError> {
    let mut fusion = Fusion::new(graph);
    for id in graph.ids().rev().filter(|&id| is_member(&graph.node(id).op)) {
        fusion.take_in_producers(id, rewrites);
    }
    let fused = fusion.emit(rewrites)?;
    // Broadcasts and fills that became part of programs.
    dce::cleaned(fused).map(Some)
}

/// Whether a node can be part of a program.
fn is_member(op: &Op) -> bool {
    matches!(op, Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Dropout { .. })
}

/// Whether a program can go on with what a node makes while it is in registers.
fn is_producer(op: &Op) -> bool {
    op.operands_of_producer().is_some()
}

/// How a member reads an operand.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Read {
    Constant(f64),
    Value(Value, Access),
}

/// Which nodes are joined to which.
struct Fusion<'a> {
    graph: &'a Graph,
    /// Group of each node: the number of its last member. Other nodes are alone.
    group: Vec<usize>,
    members: BTreeMap<usize, BTreeSet<NodeId>>,
    /// Nodes that read a node, looking through what programs absorb.
    users: Vec<BTreeSet<NodeId>>,
    /// Values that are outputs or updates.
    named: BTreeSet<Value>,
}

/// A program with what it reads and gives.
struct Built {
    /// The operation whose first result is its operand 0, and not among its operands.
    producer: Option<NodeId>,
    program: FusedProgram,
    operands: Vec<Value>,
    random: Option<Value>,
    results: Vec<Value>,
}

impl<'a> Fusion<'a> {
    fn new(graph: &'a Graph) -> Self {
        let named = graph.outputs().iter().chain(graph.updates()).map(|&(_, v)| v).collect();
        let group = (0..graph.len()).collect();
        let members = graph.ids().map(|id| (id.index(), BTreeSet::from([id]))).collect();
        let users = vec![BTreeSet::new(); graph.len()];
        let mut fusion = Self { graph, group, members, users, named };
        for id in graph.ids() {
            for v in fusion.sources(id) {
                fusion.users[v.node.index()].insert(id);
            }
        }
        fusion
    }

    /// What a member reads, looking through reshapes, fills and broadcasts with an access pattern.
    fn read(&self, operand: Value) -> Read {
        if let Some(c) = uniform(self.graph, operand) {
            return Read::Constant(c);
        }
        let mut v = operand;
        loop {
            let node = self.graph.node(v.node);
            let Some(&x) = self.graph.operands(v.node).first() else { break };
            match &node.op {
                Op::Reshape { .. } => v = x,
                Op::Broadcast { shape } => match access(&self.graph.ty(x).shape, shape) {
                    Some(Access::Full) => v = x,
                    // What is read through a pattern may be a reshape itself, but not another broadcast.
                    Some(access) => return Read::Value(self.behind_reshapes(x), access),
                    None => break,
                },
                _ => break,
            }
        }
        Read::Value(v, Access::Full)
    }

    fn behind_reshapes(&self, mut v: Value) -> Value {
        while let (Op::Reshape { .. }, Some(&x)) = (&self.graph.node(v.node).op, self.graph.operands(v.node).first()) {
            v = x;
        }
        v
    }

    /// Values that a node needs before it can run.
    fn sources(&self, id: NodeId) -> Vec<Value> {
        let operands = self.graph.operands(id);
        match &self.graph.node(id).op {
            // The generator state is read as it is.
            Op::Dropout { .. } => match self.read(operands[0]) {
                Read::Value(v, _) => vec![v, operands[1]],
                Read::Constant(_) => vec![operands[1]],
            },
            op if is_member(op) => operands
                .iter()
                .filter_map(|&v| match self.read(v) {
                    Read::Value(v, _) => Some(v),
                    Read::Constant(_) => None,
                })
                .collect(),
            _ => operands.to_vec(),
        }
    }

    fn elements(&self, id: NodeId) -> usize {
        self.graph.node(id).results[0].elements()
    }

    /// Joins the group of a node with the groups of what it reads, where that is possible.
    fn take_in_producers(&mut self, id: NodeId, rewrites: &mut Rewrites) {
        for source in self.sources(id).into_iter().rev() {
            let producer = source.node;
            let op = &self.graph.node(producer).op;
            if (is_member(op) || is_producer(op) && !reads_nothing(self.graph, producer))
                && self.elements(producer) == self.elements(id)
                && self.elements(id) > 0
                && self.may_join(producer, id)
                && rewrites.take()
            {
                self.join(producer, id);
            }
        }
    }

    fn may_join(&self, producer: NodeId, consumer: NodeId) -> bool {
        let (from, into) = (self.group[producer.index()], self.group[consumer.index()]);
        if from == into {
            return false;
        }
        let (a, b) = (&self.members[&from], &self.members[&into]);
        let joined: BTreeSet<NodeId> = a.union(b).copied().collect();
        let leaving: Vec<NodeId> =
            a.iter().flat_map(|m| &self.users[m.index()]).copied().filter(|u| !joined.contains(u)).collect();
        let shared = !leaving.is_empty() || a.iter().any(|&m| self.named.contains(&self.graph.value(m)));
        let backward = |id: &NodeId| self.graph.node(*id).phase > Phase::Forward;
        if shared && a.iter().any(|m| !backward(m)) && b.iter().any(backward) {
            return false;
        }
        let mut producers = joined.iter().filter(|&&m| is_producer(&self.graph.node(m).op));
        if let Some(&first) = producers.next()
            && (producers.next().is_some() || self.graph.operands(first).iter().any(|v| joined.contains(&v.node)))
        {
            return false;
        }
        if let Some(&first) = joined.iter().find(|&&m| is_producer(&self.graph.node(m).op))
            && joined.iter().any(|&m| self.sources(m).iter().any(|v| v.node == first && v.slot > 0))
        {
            return false;
        }
        !self.leads_to(leaving, b) && self.build(&joined).is_some_and(|p| within_bounds(&p))
    }

    /// Whether somebody other than `members` needs the first result of a node.
    fn read_outside(&self, id: NodeId, members: &BTreeSet<NodeId>) -> bool {
        let value = self.graph.value(id);
        let alone = self.graph.node(id).results.len() == 1;
        let reads = |u: &NodeId| !members.contains(u) && (alone || self.sources(*u).contains(&value));
        self.named.contains(&value) || self.users[id.index()].iter().any(reads)
    }

    /// Whether some of these nodes are needed by a member of `targets`, whose program would then wait for itself.
    fn leads_to(&self, mut open: Vec<NodeId>, targets: &BTreeSet<NodeId>) -> bool {
        // Groups run as a whole, so reaching one member means reaching all of them.
        let mut seen = vec![false; self.graph.len()];
        while let Some(id) = open.pop() {
            if targets.contains(&id) {
                return true;
            }
            let group = self.group[id.index()];
            if !std::mem::replace(&mut seen[group], true) {
                open.extend(self.members[&group].iter().flat_map(|m| &self.users[m.index()]));
            }
        }
        false
    }

    fn join(&mut self, producer: NodeId, consumer: NodeId) {
        let (from, into) = (self.group[producer.index()], self.group[consumer.index()]);
        let last = from.max(into);
        let mut all = self.members.remove(&from).unwrap_or_default();
        all.extend(self.members.remove(&into).unwrap_or_default());
        for m in &all {
            self.group[m.index()] = last;
        }
        self.members.insert(last, all);
    }

    /// Writes the program of some members; `None` if their dropouts draw from different generators.
    fn build(&self, members: &BTreeSet<NodeId>) -> Option<Built> {
        let mut instructions: Vec<Instr> = Vec::new();
        let mut registers: IndexMap<Value, usize> = IndexMap::new();
        let mut constants: IndexMap<u64, usize> = IndexMap::new();
        let mut loads: IndexMap<(Value, Access), usize> = IndexMap::new();
        let mut random = None;
        let producer = members.iter().copied().find(|&m| is_producer(&self.graph.node(m).op));
        if let Some(producer) = producer {
            let value = self.graph.value(producer);
            loads.insert((value, Access::Full), 0);
            registers.insert(value, 0);
            instructions.push(Instr::Load(0));
        }
        for &id in members.iter().filter(|&&m| Some(m) != producer) {
            let operands = self.graph.operands(id);
            let op = &self.graph.node(id).op;
            let floats = if let Op::Dropout { .. } = op { &operands[..1] } else { &operands[..] };
            let mut r = Vec::with_capacity(floats.len());
            for &operand in floats {
                r.push(match self.read(operand) {
                    Read::Constant(c) => *constants.entry(c.to_bits()).or_insert_with(|| {
                        instructions.push(Instr::Const(c.into()));
                        instructions.len() - 1
                    }),
                    Read::Value(v, Access::Full) if registers.contains_key(&v) => registers[&v],
                    Read::Value(v, access) => {
                        let position = loads.len();
                        *loads.entry((v, access)).or_insert_with(|| {
                            instructions.push(Instr::Load(position));
                            instructions.len() - 1
                        })
                    }
                });
            }
            instructions.push(match op {
                Op::Unary(f) => Instr::Unary(*f, r[0]),
                Op::Binary(f) => Instr::Binary(*f, r[0], r[1]),
                Op::Select => Instr::Select(r[0], r[1], r[2]),
                Op::Dropout { rate, key } => {
                    if *random.get_or_insert(operands[1]) != operands[1] {
                        return None;
                    }
                    Instr::Dropout { value: r[0], rate: *rate, key: *key }
                }
                _ => return None,
            });
            registers.insert(self.graph.value(id), instructions.len() - 1);
        }
        let mut results: Vec<Value> =
            members.iter().filter(|&&m| self.read_outside(m, members)).map(|&m| self.graph.value(m)).collect();
        let last = *members.last()?;
        if results.is_empty() {
            // Nobody reads it, but a program has at least one result.
            results.push(self.graph.value(last));
        }
        let shape = self.graph.node(last).results[0].shape.clone();
        let program = FusedProgram {
            shape,
            accesses: loads.keys().map(|&(_, access)| access).collect(),
            instructions,
            results: results.iter().map(|v| registers[v]).collect(),
        };
        let operands = loads.keys().skip(usize::from(producer.is_some())).map(|&(v, _)| v).collect();
        Some(Built { producer, program, operands, random, results })
    }

    /// Groups that become programs: those of several members, and those of one that reads what need not be written.
    fn programs(&self, rewrites: &mut Rewrites) -> BTreeMap<usize, Built> {
        let mut programs = BTreeMap::new();
        for (&group, members) in &self.members {
            let alone = members.len() == 1;
            if alone && !members.iter().all(|&m| is_member(&self.graph.node(m).op) && self.elements(m) > 0) {
                continue;
            }
            let Some(built) = self.build(members) else { continue };
            let plain = |p: &FusedProgram| {
                p.accesses.iter().all(|&a| a == Access::Full)
                    && !p.instructions.iter().any(|i| matches!(i, Instr::Const(_)))
            };
            // A program of constants is left to constant folding.
            if !alone || (!plain(&built.program) && !built.operands.is_empty() && rewrites.take()) {
                programs.insert(group, built);
            }
        }
        programs
    }

    /// Writes the new graph, groups in an order in which each finds what it reads.
    fn emit(&self, rewrites: &mut Rewrites) -> Result<Graph, GraphError> {
        let programs = self.programs(rewrites);
        let mut missing: BTreeMap<usize, usize> = BTreeMap::new();
        let mut waiting: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (&group, members) in &self.members {
            let needs = |&m: &NodeId| {
                if programs.contains_key(&group) { self.sources(m) } else { self.graph.operands(m).to_vec() }
            };
            let needed: BTreeSet<usize> =
                members.iter().flat_map(needs).map(|v| self.group[v.node.index()]).filter(|&g| g != group).collect();
            missing.insert(group, needed.len());
            for source in needed {
                waiting.entry(source).or_default().push(group);
            }
        }
        let mut r = Rebuild::new(self.graph);
        let mut ready: BTreeSet<usize> = missing.iter().filter(|&(_, &n)| n == 0).map(|(&g, _)| g).collect();
        while let Some(group) = ready.pop_first() {
            match programs.get(&group) {
                Some(built) => self.emit_program(&mut r, &self.members[&group], built)?,
                None => {
                    for &m in &self.members[&group] {
                        r.copy(m)?;
                    }
                }
            }
            for &user in waiting.get(&group).into_iter().flatten() {
                if let Some(n) = missing.get_mut(&user) {
                    *n -= 1;
                    if *n == 0 {
                        ready.insert(user);
                    }
                }
            }
        }
        Ok(r.finish())
    }

    /// Appends a program, named after its last member.
    fn emit_program(&self, r: &mut Rebuild<'_>, members: &BTreeSet<NodeId>, built: &Built) -> Result<(), GraphError> {
        let Some(&last) = members.last() else { return Ok(()) };
        let mut operands = built.producer.map(|p| self.graph.operands(p).to_vec()).unwrap_or_default();
        operands.extend(built.operands.iter().chain(&built.random));
        let operands: Vec<Value> = operands.into_iter().map(|v| r.value(v)).collect();
        let program = built.program.clone();
        let op = match built.producer {
            Some(p) => Op::FusedAfter { producer: Box::new(self.graph.node(p).op.clone()), program },
            None => Op::Fused(program),
        };
        let fused = r.add_as(last, op, &operands)?;
        if let Some(node) = built.producer {
            let further = 1..self.graph.node(node).results.len() as u8;
            for (slot, new) in further.zip(built.results.len() as u8..) {
                r.set(Value { node, slot }, Value { node: fused, slot: new });
            }
        }
        for (slot, &old) in built.results.iter().enumerate() {
            let mut new = Value { node: fused, slot: slot as u8 };
            let node = self.graph.node(old.node);
            let shape = &node.results[0].shape;
            if *shape != built.program.shape {
                let reshape = Op::Reshape { shape: shape.clone() };
                let reshaped = r.add_as(old.node, reshape, &[new])?;
                new = r.new.value(reshaped);
            }
            r.set(old, new);
        }
        Ok(())
    }
}

fn within_bounds(built: &Built) -> bool {
    built.operands.len() <= MAX_OPERANDS
        && built.results.len() <= MAX_RESULTS
        && built.program.instructions.len() <= MAX_INSTRUCTIONS
}

/// How a tensor of shape `from` is read when it is broadcast to `to`; `None` if no access pattern does it.
fn access(from: &[usize], to: &[usize]) -> Option<Access> {
    let (n, total): (usize, usize) = (from.iter().product(), to.iter().product());
    if n == total {
        return Some(Access::Full);
    }
    if n == 1 {
        return Some(Access::Scalar);
    }
    let lead = to.len().checked_sub(from.len())?;
    let from: Vec<usize> = std::iter::repeat_n(1, lead).chain(from.iter().copied()).collect();
    let ones = |extents: &[usize]| extents.iter().all(|&d| d == 1);
    (0..=to.len()).find_map(|s| {
        if ones(&from[..s]) && from[s..] == to[s..] {
            Some(Access::Repeat)
        } else if from[..s] == to[..s] && ones(&from[s..]) {
            Some(Access::Stretch { inner: to[s..].iter().product() })
        } else {
            None
        }
    })
}

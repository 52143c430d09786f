//! Elementwise fusion: chains of elementwise operations become one program, which reads every operand once and keeps what
//! is between in registers.
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
//! A product whose result a program reads element by element is taken in too: the program then goes on with what is still
//! in registers, and what it makes superfluous (a layer before its activation, a row before its dropout) never reaches
//! memory. The same goes for the other operations that make their first result element by element: rows on their way to
//! experts and back, the gradient of a norm. A program takes in one such producer, none of whose operands it computes.

use super::groups::Groups;
use super::view::{Read, View, is_member, member_operands};
use super::{Decisions, Rewrites};
use crate::elementwise::{Access, Elementwise, Instr};
use crate::kernel::can_go_on;
use indexmap::IndexMap;
use moec_ir::{NodeId, Op, Phase, Value};
use std::collections::BTreeSet;

/// Operands of a program, beside those of a producer before it.
const MAX_OPERANDS: usize = 8;
/// Results of a program, beside further ones of its producer.
const MAX_RESULTS: usize = 4;
/// Instructions of a program: longer ones run out of registers and compile slowly.
const MAX_INSTRUCTIONS: usize = 64;

pub(super) fn decide(view: &View<'_>, budget: &mut Rewrites, decisions: &mut Decisions) {
    let mut groups = Groups::new(view);
    for id in view.ids().into_iter().rev().filter(|&id| is_member(view.op(id))) {
        take_in_producers(view, &mut groups, id, budget);
    }
    for (_, members) in groups.iter() {
        if members.len() > 1 || alone(view, members) && budget.take() {
            decisions.programs.push(members.clone());
        }
    }
}

/// Whether a node that is joined with no other reads what need not be written.
fn alone(view: &View<'_>, members: &BTreeSet<NodeId>) -> bool {
    if !members.iter().all(|&m| is_member(view.op(m)) && view.elements(m) > 0) {
        return false;
    }
    let plain = |p: &Elementwise| {
        p.accesses.iter().all(|&a| a == Access::Full) && !p.instructions.iter().any(|i| matches!(i, Instr::Const(_)))
    };
    // A program of constants is left to constant folding.
    Built::new(view, members).is_some_and(|built| !plain(&built.program) && !built.operands.is_empty())
}

/// Joins those of some members that are on their own again: all of them as before where nothing comes to wait for itself, else
/// as far as that is possible. Returns the programs.
pub(super) fn regroup(view: &View<'_>, groups: &mut Groups<'_>, members: &BTreeSet<NodeId>) -> Vec<BTreeSet<NodeId>> {
    let left: BTreeSet<NodeId> = members.iter().copied().filter(|&m| groups.members(m).len() == 1).collect();
    let as_before = left == *members && !groups.would_wait(&left);
    for &id in left.iter().rev() {
        for source in view.sources(id).into_iter().rev().filter(|v| left.contains(&v.node)) {
            if as_before || may_join(view, groups, source.node, id) {
                groups.join(source.node, id);
            }
        }
    }
    let joined: BTreeSet<&BTreeSet<NodeId>> = left.iter().map(|&m| groups.members(m)).collect();
    joined.into_iter().filter(|joined| joined.len() > 1 || alone(view, joined)).cloned().collect()
}

/// Joins the group of a node with the groups of what it reads, where that is possible.
fn take_in_producers(view: &View<'_>, groups: &mut Groups<'_>, id: NodeId, budget: &mut Rewrites) {
    for source in view.sources(id).into_iter().rev() {
        let producer = source.node;
        let op = view.op(producer);
        if (is_member(op) || can_go_on(op) && !view.reads_nothing(producer))
            && view.elements(producer) == view.elements(id)
            && view.elements(id) > 0
            && may_join(view, groups, producer, id)
            && budget.take()
        {
            groups.join(producer, id);
        }
    }
}

fn may_join(view: &View<'_>, groups: &Groups<'_>, producer: NodeId, consumer: NodeId) -> bool {
    if groups.of(producer) == groups.of(consumer) {
        return false;
    }
    let (a, b) = (groups.members(producer), groups.members(consumer));
    let joined: BTreeSet<NodeId> = a.union(b).copied().collect();
    let leaving: Vec<NodeId> = a.iter().flat_map(|&m| view.users(m)).copied().filter(|u| !joined.contains(u)).collect();
    let shared = !leaving.is_empty() || a.iter().any(|&m| view.is_named(view.graph.value(m)));
    let backward = |id: &NodeId| view.graph.node(*id).phase > Phase::Forward;
    if shared && a.iter().any(|m| !backward(m)) && b.iter().any(backward) {
        return false;
    }
    let mut producers = joined.iter().copied().filter(|&m| can_go_on(view.op(m)));
    if let Some(first) = producers.next() {
        let further = |v: &Value| v.node == first && v.slot > 0;
        if producers.next().is_some()
            || view.graph.operands(first).iter().any(|v| joined.contains(&v.node))
            || joined.iter().any(|&m| view.sources(m).iter().any(further))
        {
            return false;
        }
    }
    !groups.leads_to(leaving, b) && Built::new(view, &joined).is_some_and(|built| built.is_within_bounds(view))
}

/// A program with what it reads and gives.
pub(super) struct Built {
    /// The last member.
    pub(super) last: NodeId,
    /// The node whose first result is the program's operand 0, and not among its operands.
    pub(super) producer: Option<NodeId>,
    pub(super) program: Elementwise,
    pub(super) operands: Vec<Value>,
    pub(super) random: Option<Value>,
    pub(super) results: Vec<Value>,
    /// Members and the nodes that they read through.
    pub(super) nodes: BTreeSet<NodeId>,
}

impl Built {
    /// Writes the program of some members; `None` if their dropouts draw from different generators.
    pub(super) fn new(view: &View<'_>, members: &BTreeSet<NodeId>) -> Option<Self> {
        let mut instructions: Vec<Instr> = Vec::new();
        let mut registers: IndexMap<Value, usize> = IndexMap::new();
        let mut constants: IndexMap<u64, usize> = IndexMap::new();
        let mut loads: IndexMap<(Value, Access), usize> = IndexMap::new();
        let mut random = None;
        let mut nodes = members.clone();
        let producer = members.iter().copied().find(|&m| can_go_on(view.op(m)));
        if let Some(producer) = producer {
            let value = view.graph.value(producer);
            loads.insert((value, Access::Full), 0);
            registers.insert(value, 0);
            instructions.push(Instr::Load(0));
        }
        for &id in members.iter().filter(|&&m| Some(m) != producer) {
            let operands = view.graph.operands(id);
            let (floats, state) = member_operands(view.op(id), operands);
            if let Some(state) = state
                && *random.get_or_insert(state) != state
            {
                return None;
            }
            let mut r = Vec::with_capacity(floats.len());
            for &operand in floats {
                r.push(match view.read_through(operand, &mut nodes) {
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
            instructions.push(Instr::of(view.op(id), &r)?);
            registers.insert(view.graph.value(id), instructions.len() - 1);
        }
        let mut results: Vec<Value> =
            members.iter().filter(|&&m| read_outside(view, m, members)).map(|&m| view.graph.value(m)).collect();
        let last = *members.last()?;
        if results.is_empty() {
            // Nobody reads it, but a program has at least one result.
            results.push(view.graph.value(last));
        }
        let program = Elementwise {
            elements: view.elements(last),
            accesses: loads.keys().map(|&(_, access)| access).collect(),
            instructions,
            results: results.iter().map(|v| registers[v]).collect(),
        };
        let operands = loads.keys().skip(usize::from(producer.is_some())).map(|&(v, _)| v).collect();
        Some(Built { last, producer, program, operands, random, results, nodes })
    }

    fn is_within_bounds(&self, view: &View<'_>) -> bool {
        // A producer may come to fetch its rows, which takes two more.
        let producer = self.producer.map_or(0, |p| {
            view.graph.operands(p).len() + view.graph.node(p).results.len() + usize::from(is_grouped(view.op(p))) * 2
        });
        let buffers = self.operands.len() + usize::from(self.random.is_some()) + self.results.len() + producer;
        self.operands.len() <= MAX_OPERANDS
            && self.results.len() <= MAX_RESULTS
            && self.program.instructions.len() <= MAX_INSTRUCTIONS
            && buffers <= view.limits.buffers()
    }
}

fn is_grouped(op: &Op) -> bool {
    matches!(op, Op::GroupedMatMul { .. })
}

/// Whether somebody other than `members` needs the first result of a node.
pub(super) fn read_outside(view: &View<'_>, id: NodeId, members: &BTreeSet<NodeId>) -> bool {
    let value = view.graph.value(id);
    let single = view.graph.node(id).results.len() == 1;
    let reads = |u: &NodeId| !members.contains(u) && (single || view.sources(*u).contains(&value));
    view.is_named(value) || view.users(id).iter().any(reads)
}

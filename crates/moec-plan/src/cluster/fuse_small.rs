//! Operations on a few numbers are computed one after the other in one launch: what comes between the sum over the tokens
//! and a balance loss, and the way back, are a dozen operations on a number for each expert, each of which takes less time
//! than a launch.
//!
//! Members are elementwise operations without randomness, sums over leading axes, and reshapes, whose operands and results
//! have few elements. A sum over other axes is one of each row, which must not show whether there are few rows or many: here
//! it is added up in another order than by the kernel of sums. Consumers take in their producers, later ones first, as in
//! [`super::fuse_elementwise`]; here the border between forward and backward pass does not matter, since so little is kept.
//! Updates of tensors are no members: they are made in place.

use super::fuse_elementwise::{Built, read_outside};
use super::groups::Groups;
use super::view::{Read, View, is_member};
use super::{Decisions, Rewrites};
use crate::elementwise::Access;
use crate::small::{Small, Statement};
use indexmap::IndexMap;
use moec_ir::{Invariant, NodeId, Op, Phase, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Most elements of a tensor: a number for each of many experts.
const MOST_ELEMENTS: usize = 256;
/// Operands of a launch.
const MOST_OPERANDS: usize = 8;
/// Results of a launch.
const MOST_RESULTS: usize = 8;
/// Statements of a launch.
const MOST_STATEMENTS: usize = 16;
/// Instructions of all its programs: longer ones compile slowly.
const MOST_INSTRUCTIONS: usize = 96;

pub(super) fn decide(view: &View<'_>, budget: &mut Rewrites, decisions: &mut Decisions) {
    let mut groups = Groups::new(view);
    for id in view.ids().into_iter().rev().filter(|&id| is_small(view, id)) {
        for source in view.sources(id).into_iter().rev() {
            if is_small(view, source.node) && may_join(view, &groups, source.node, id) && budget.take() {
                groups.join(source.node, id);
            }
        }
    }
    decisions.small.extend(groups.iter().filter(|(_, members)| members.len() > 1).map(|(_, members)| members.clone()));
}

/// Whether a node can be one of several that a launch computes one after the other.
pub(super) fn is_small(view: &View<'_>, id: NodeId) -> bool {
    let op = view.op(id);
    let fits = match op {
        Op::Sum { axes } => sum_extents(&view.graph.ty(view.graph.operands(id)[0]).shape, axes).is_some(),
        // One that all of its readers look through is no tensor of its own.
        Op::Reshape { .. } => !view.users(id).is_empty() || view.is_named(view.graph.value(id)),
        Op::Dropout { .. } => false,
        _ => is_member(op),
    };
    let updates = view.graph.node(id).phase > Phase::Backward;
    let few = |v: &Value| view.graph.ty(*v).elements() <= MOST_ELEMENTS;
    fits && !updates && view.elements(id) > 0 && few(&view.graph.value(id)) && view.sources(id).iter().all(few)
}

/// Elements of the axes that are summed and of the others; `None` if these are not the leading ones.
fn sum_extents(shape: &[usize], axes: &[usize]) -> Option<(usize, usize)> {
    let (summed, others) = shape.split_at_checked(axes.len())?;
    let are_leading = !axes.is_empty() && axes.iter().all(|&axis| axis < summed.len());
    are_leading.then(|| (summed.iter().product(), others.iter().product()))
}

fn may_join(view: &View<'_>, groups: &Groups<'_>, producer: NodeId, consumer: NodeId) -> bool {
    if groups.of(producer) == groups.of(consumer) {
        return false;
    }
    let (a, b) = (groups.members(producer), groups.members(consumer));
    let joined: BTreeSet<NodeId> = a.union(b).copied().collect();
    let leaving = a.iter().flat_map(|&m| view.users(m)).copied().filter(|u| !joined.contains(u)).collect();
    Sequence::new(view, &joined).is_some_and(|s| s.is_within_bounds(view)) && !groups.leads_to(leaving, b)
}

/// Statements with what they read and give.
pub(super) struct Sequence {
    /// The last member.
    pub(super) last: NodeId,
    pub(super) small: Small,
    pub(super) operands: Vec<Value>,
    pub(super) results: Vec<Value>,
    /// Members and the nodes that they read through.
    pub(super) nodes: BTreeSet<NodeId>,
    pub(super) members: BTreeSet<NodeId>,
}

/// Nodes without the reshapes of what none of them makes, which belong to whoever makes it.
fn members_of(view: &View<'_>, nodes: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let mut members = BTreeSet::new();
    for &id in nodes {
        let is_reshape = matches!(view.op(id), Op::Reshape { .. });
        if !is_reshape || view.graph.operands(id).iter().all(|v| members.contains(&v.node)) {
            members.insert(id);
        }
    }
    members
}

/// Members in the order in which they are computed.
enum Stage {
    /// Elementwise operations over as many elements.
    Program(usize, BTreeSet<NodeId>),
    Sum(NodeId),
}

/// A stage as it is executed.
enum Written {
    Program(Built),
    Sum { sum: NodeId, of: Value, terms: usize, elements: usize },
}

impl Stage {
    fn written(self, view: &View<'_>) -> Written {
        match self {
            Stage::Program(_, members) => {
                let built = Built::new(view, &members);
                Written::Program(built.invariant("operations that draw no random numbers make a program"))
            }
            Stage::Sum(sum) => {
                let of = view.graph.operands(sum)[0];
                let extents = match view.op(sum) {
                    Op::Sum { axes } => sum_extents(&view.graph.ty(of).shape, axes),
                    _ => None,
                };
                let (terms, elements) = extents.invariant("a small sum is over leading axes");
                Written::Sum { sum, of, terms, elements }
            }
        }
    }
}

impl Sequence {
    /// Writes the statements of some nodes; `None` if there are none.
    pub(super) fn new(view: &View<'_>, nodes: &BTreeSet<NodeId>) -> Option<Self> {
        let members = members_of(view, nodes);
        let (tensors, statements) = (IndexMap::new(), Vec::new());
        let mut parts = Parts { view, members: &members, nodes: members.clone(), tensors, statements };
        let stages: Vec<Written> = stages(view, &members).into_iter().map(|stage| stage.written(view)).collect();
        for stage in &stages {
            parts.find_operands(stage);
        }
        let operands = parts.tensors.len();
        for stage in stages {
            parts.execute(stage);
        }
        let last = *members.last()?;
        let read: Vec<Value> =
            members.iter().filter(|&&m| read_outside(view, m, &members)).map(|&m| view.graph.value(m)).collect();
        // Nobody may read it, but a kernel has at least one result.
        let given = if read.is_empty() { vec![view.graph.value(last)] } else { read };
        let small =
            Small { operands, results: given.iter().map(|&v| parts.tensor(v)).collect(), statements: parts.statements };
        let operands = parts.tensors.keys().take(operands).copied().collect();
        let nodes = parts.nodes;
        Some(Sequence { last, small, operands, results: given, nodes, members })
    }

    pub(super) fn is_within_bounds(&self, view: &View<'_>) -> bool {
        let instructions = |s: &Statement| match s {
            Statement::Program { program, .. } => program.instructions.len(),
            Statement::Sum { .. } => 1,
        };
        self.operands.len() <= MOST_OPERANDS
            && self.results.len() <= MOST_RESULTS
            && self.operands.len() + self.results.len() < view.limits.buffers()
            && self.small.statements.len() <= MOST_STATEMENTS
            && self.small.statements.iter().map(instructions).sum::<usize>() <= MOST_INSTRUCTIONS
    }
}

/// The order in which members are computed: each elementwise operation joins the first program over as many elements that
/// comes after what it reads.
fn stages(view: &View<'_>, members: &BTreeSet<NodeId>) -> Vec<Stage> {
    let mut stages: Vec<Stage> = Vec::new();
    let mut stage_of: BTreeMap<NodeId, usize> = BTreeMap::new();
    for &id in members {
        match view.op(id) {
            // A reshape is there with what it reads.
            Op::Reshape { .. } => {
                let read = view.graph.operands(id)[0].node;
                stage_of.extend(stage_of.get(&read).copied().map(|stage| (id, stage)));
            }
            Op::Sum { .. } => {
                stage_of.insert(id, stages.len());
                stages.push(Stage::Sum(id));
            }
            _ => {
                let elements = view.elements(id);
                let earliest = view.graph.operands(id).iter().filter_map(|&v| earliest(view, v, &stages, &stage_of));
                let earliest = earliest.max().unwrap_or(0);
                let open = |(_, stage): &(usize, &Stage)| matches!(stage, Stage::Program(n, _) if *n == elements);
                let at = stages.iter().enumerate().skip(earliest).find(open).map_or(stages.len(), |(at, _)| at);
                stage_of.insert(id, at);
                match stages.get_mut(at) {
                    Some(Stage::Program(_, program)) => {
                        program.insert(id);
                    }
                    _ => stages.push(Stage::Program(elements, BTreeSet::from([id]))),
                }
            }
        }
    }
    stages
}

/// The first stage in which an elementwise operation can read an operand; `None` for one that the stages do not make.
fn earliest(view: &View<'_>, operand: Value, stages: &[Stage], stage_of: &BTreeMap<NodeId, usize>) -> Option<usize> {
    let Read::Value(value, access) = view.read(operand) else { return None };
    let stage = *stage_of.get(&value.node)?;
    // A program reads its own registers, if element by element.
    let same = matches!(stages[stage], Stage::Program(..)) && access == Access::Full;
    Some(if same { stage } else { stage + 1 })
}

/// A sequence in the making.
struct Parts<'a> {
    view: &'a View<'a>,
    members: &'a BTreeSet<NodeId>,
    nodes: BTreeSet<NodeId>,
    /// The tensors by what they are.
    tensors: IndexMap<Value, usize>,
    statements: Vec<Statement>,
}

impl Parts<'_> {
    /// What a value is without the reshapes around it that are members.
    fn plain(&self, value: Value) -> Value {
        match (self.view.op(value.node), self.view.graph.operands(value.node)) {
            (Op::Reshape { .. }, &[x]) if self.members.contains(&value.node) => self.plain(x),
            _ => value,
        }
    }

    fn tensor(&self, value: Value) -> usize {
        let known = "members read operands and what members before them make";
        *self.tensors.get(&self.plain(value)).invariant(known)
    }

    fn add(&mut self, value: Value) {
        let number = self.tensors.len();
        self.tensors.entry(value).or_insert(number);
    }

    /// Notes what a stage reads that no member makes.
    fn find_operands(&mut self, stage: &Written) {
        let read = match stage {
            Written::Program(built) => built.operands.as_slice(),
            Written::Sum { of, .. } => std::slice::from_ref(of),
        };
        for &value in read {
            let plain = self.plain(value);
            if !self.members.contains(&plain.node) {
                self.add(plain);
            }
        }
    }

    fn execute(&mut self, stage: Written) {
        match stage {
            Written::Program(built) => {
                let operands = built.operands.iter().map(|&v| self.tensor(v)).collect();
                self.nodes.extend(built.nodes);
                self.statements.push(Statement::Program { program: built.program, operands });
                built.results.into_iter().for_each(|v| self.add(v));
            }
            Written::Sum { sum, of, terms, elements } => {
                let operand = self.tensor(of);
                self.statements.push(Statement::Sum { operand, terms, elements });
                self.add(self.view.graph.value(sum));
            }
        }
    }
}

//! What a fusion sees of a graph: the nodes that something depends on, who reads them, and what is read where an
//! elementwise operation reads through cheap nodes.

use crate::elementwise::Access;
use crate::limits::LaunchLimits;
use crate::liveness::{is_input, live};
use crate::passes::rebuild::uniform;
use moec_ir::{Graph, NodeId, Op, Value};
use std::collections::BTreeSet;

/// How a member of a program reads an operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Read {
    Constant(f64),
    Value(Value, Access),
}

/// A graph as fusions see it.
pub(super) struct View<'a> {
    pub(super) graph: &'a Graph,
    pub(super) limits: LaunchLimits,
    live: Vec<bool>,
    /// Nodes that read each node, looking through what programs absorb.
    users: Vec<BTreeSet<NodeId>>,
    /// Values that are outputs or updates.
    named: BTreeSet<Value>,
}

/// Whether a node can be part of a program.
pub(super) fn is_member(op: &Op) -> bool {
    matches!(op, Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Dropout { .. })
}

/// The operands of a member that a program reads, and its generator state.
pub(super) fn member_operands<'v>(op: &Op, operands: &'v [Value]) -> (&'v [Value], Option<Value>) {
    match op {
        Op::Dropout { .. } => (&operands[..1], operands.get(1).copied()),
        _ => (operands, None),
    }
}

impl<'a> View<'a> {
    pub(super) fn new(graph: &'a Graph, limits: LaunchLimits) -> Self {
        let named: BTreeSet<Value> = graph.outputs().iter().chain(graph.updates()).map(|&(_, v)| v).collect();
        let live = live(graph, |id| is_input(graph, id));
        let mut open: Vec<NodeId> = named.iter().map(|v| v.node).collect();
        let mut view = Self { graph, limits, live, users: vec![BTreeSet::new(); graph.len()], named };
        // What all of its readers read through reads nothing itself.
        let mut seen = vec![false; graph.len()];
        while let Some(id) = open.pop() {
            if !std::mem::replace(&mut seen[id.index()], true) {
                for v in view.sources(id) {
                    view.users[v.node.index()].insert(id);
                    open.push(v.node);
                }
            }
        }
        view
    }

    /// Nodes that something depends on, and inputs.
    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.graph.ids().filter(|id| self.live[id.index()]).collect()
    }

    pub(super) fn op(&self, id: NodeId) -> &'a Op {
        &self.graph.node(id).op
    }

    /// Whether a value is an output or an update.
    pub(super) fn is_named(&self, value: Value) -> bool {
        self.named.contains(&value)
    }

    /// Nodes that read a node, looking through what programs absorb.
    pub(super) fn users(&self, id: NodeId) -> &BTreeSet<NodeId> {
        &self.users[id.index()]
    }

    /// Nodes that have a value as an operand, with the position, in order; those that nothing depends on are left out.
    pub(super) fn uses(&self, value: Value) -> Vec<(NodeId, usize)> {
        let mut uses = self.graph.uses(value);
        uses.retain(|(id, _)| self.live[id.index()]);
        uses
    }

    /// Whether an operand of a node has no elements. Backends have a rule of their own for that, which is not made part of
    /// anything.
    pub(super) fn reads_nothing(&self, id: NodeId) -> bool {
        self.graph.operands(id).iter().any(|&v| self.graph.ty(v).elements() == 0)
    }

    pub(super) fn elements(&self, id: NodeId) -> usize {
        self.graph.node(id).results[0].elements()
    }

    /// What a member reads, looking through reshapes, fills and broadcasts with an access pattern.
    pub(super) fn read(&self, operand: Value) -> Read {
        self.read_through(operand, &mut BTreeSet::new())
    }

    /// As [`View::read`]; adds the nodes that are looked through.
    pub(super) fn read_through(&self, operand: Value, through: &mut BTreeSet<NodeId>) -> Read {
        if let Some(c) = uniform(self.graph, operand) {
            self.constant(operand, through);
            return Read::Constant(c);
        }
        let mut v = operand;
        while let Some(&x) = self.graph.operands(v.node).first() {
            match self.op(v.node) {
                Op::Reshape { .. } => {
                    through.insert(v.node);
                    v = x;
                }
                Op::Broadcast { shape } => match Access::of_broadcast(&self.graph.ty(x).shape, shape) {
                    Some(access) => {
                        through.insert(v.node);
                        v = x;
                        if access != Access::Full {
                            // What is read through a pattern may be a reshape itself, but not another broadcast.
                            while let (Op::Reshape { .. }, Some(&x)) =
                                (self.op(v.node), self.graph.operands(v.node).first())
                            {
                                through.insert(v.node);
                                v = x;
                            }
                            return Read::Value(v, access);
                        }
                    }
                    None => break,
                },
                _ => break,
            }
        }
        Read::Value(v, Access::Full)
    }

    /// Adds the nodes of which a value is the same number everywhere.
    pub(super) fn constant(&self, value: Value, nodes: &mut BTreeSet<NodeId>) {
        nodes.insert(value.node);
        for &v in self.graph.operands(value.node) {
            self.constant(v, nodes);
        }
    }

    /// Values that a node needs before it can run.
    pub(super) fn sources(&self, id: NodeId) -> Vec<Value> {
        let operands = self.graph.operands(id);
        if !is_member(self.op(id)) {
            return operands.to_vec();
        }
        let (floats, random) = member_operands(self.op(id), operands);
        let read = floats.iter().filter_map(|&v| match self.read(v) {
            Read::Value(v, _) => Some(v),
            Read::Constant(_) => None,
        });
        read.chain(random).collect()
    }
}

//! The graph: operations in SSA form on petgraph, which is a private matter of this file.

use crate::ids::{NodeId, Origin, Value};
use crate::infer::{self, InferError};
use crate::op::Op;
use crate::purpose::Phase;
use crate::types::TensorType;
use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use std::collections::HashSet;

/// An operation with the types of its results.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// Types of its results, in slot order.
    pub results: Vec<TensorType>,
    /// Unique readable name, such as `blocks.3.moe.logits`.
    pub name: String,
    /// Where in the `.moe` file it came from.
    pub origin: Option<Origin>,
    /// Which part of a training step it belongs to.
    pub phase: Phase,
}

/// One use of a value: which result of the producer, and which operand of the user.
#[derive(Clone, Copy, Debug)]
struct Use {
    slot: u8,
    position: u32,
}

/// A directed acyclic graph of operations.
///
/// Nodes are only ever appended, after their operands, so ids are a topological order. A pass does not edit a graph: it
/// builds a new one. The graph has named outputs and named updates (the value that a state or parameter takes after a
/// run).
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: DiGraph<Node, Use>,
    outputs: Vec<(String, Value)>,
    updates: Vec<(String, Value)>,
    /// Of the nodes that are added.
    phase: Phase,
    /// Asked only, never walked.
    names: HashSet<String>,
}

/// Why a node could not be added: the operation does not fit its operands.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("%{name}: {error}")]
pub struct GraphError {
    /// Name of the node.
    pub name: String,
    /// Where it came from.
    pub origin: Option<Origin>,
    /// What is wrong.
    pub error: InferError,
}

/// Graphs are equal when their nodes, operands, outputs and updates are equal in order; names, origins and phases
/// count.
impl PartialEq for Graph {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self.ids().all(|id| self.node(id) == other.node(id) && self.operands(id) == other.operands(id))
            && self.outputs == other.outputs
            && self.updates == other.updates
    }
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the phase of the nodes added from here on and returns the former one.
    pub fn set_phase(&mut self, phase: Phase) -> Phase {
        std::mem::replace(&mut self.phase, phase)
    }

    /// Appends a node of the current phase and infers the types of its results.
    ///
    /// An empty `name` becomes the operation's mnemonic; a name already taken gets a numbered suffix.
    ///
    /// # Errors
    /// When the operands do not exist or do not fit the operation.
    pub fn add(
        &mut self,
        op: Op,
        operands: &[Value],
        name: &str,
        origin: Option<Origin>,
    ) -> Result<NodeId, GraphError> {
        let fail = |error| GraphError { name: name.to_string(), origin, error };
        let types = operands
            .iter()
            .map(|&v| self.try_ty(v).ok_or(InferError::UnknownOperand))
            .collect::<Result<Vec<_>, _>>()
            .map_err(fail)?;
        let results = infer::infer(&op, &types).map_err(fail)?;
        let name = self.unique(if name.is_empty() { op.mnemonic() } else { name });
        let index = self.nodes.add_node(Node { op, results, name, origin, phase: self.phase });
        for (position, v) in operands.iter().enumerate() {
            self.nodes.add_edge(NodeIndex::new(v.node.index()), index, Use { slot: v.slot, position: position as u32 });
        }
        Ok(NodeId(index.index() as u32))
    }

    fn unique(&mut self, name: &str) -> String {
        let mut candidate = name.to_string();
        let mut n = 1;
        while !self.names.insert(candidate.clone()) {
            n += 1;
            candidate = format!("{name}_{n}");
        }
        candidate
    }

    /// Declares a named output.
    pub fn set_output(&mut self, name: impl Into<String>, value: Value) {
        self.outputs.push((name.into(), value));
    }

    /// Keeps only the outputs of some names.
    pub fn retain_outputs(&mut self, keep: impl Fn(&str) -> bool) {
        self.outputs.retain(|(name, _)| keep(name));
    }

    /// Declares the value that the state or parameter `name` takes after a run.
    pub fn set_update(&mut self, name: impl Into<String>, value: Value) {
        self.updates.push((name.into(), value));
    }

    /// Named outputs, in declaration order.
    pub fn outputs(&self) -> &[(String, Value)] {
        &self.outputs
    }

    /// The output of that name.
    pub fn output(&self, name: &str) -> Option<Value> {
        self.outputs.iter().find(|(n, _)| n == name).map(|&(_, v)| v)
    }

    /// Named updates, in declaration order.
    pub fn updates(&self) -> &[(String, Value)] {
        &self.updates
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.node_count()
    }

    /// Whether there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All nodes in topological order.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (0..self.len() as u32).map(NodeId)
    }

    /// The node with the given id, which must come from this graph.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[NodeIndex::new(id.index())]
    }

    /// Operands of a node, by position.
    pub fn operands(&self, id: NodeId) -> Vec<Value> {
        let mut uses: Vec<(u32, Value)> = self
            .nodes
            .edges_directed(NodeIndex::new(id.index()), Direction::Incoming)
            .map(|e| {
                let u = *e.weight();
                (u.position, Value { node: NodeId(e.source().index() as u32), slot: u.slot })
            })
            .collect();
        uses.sort_by_key(|&(p, _)| p);
        uses.into_iter().map(|(_, v)| v).collect()
    }

    /// Operand positions of a node as they are stored, ascending: 0, 1, 2, .. unless the graph is corrupt.
    pub(crate) fn operand_positions(&self, id: NodeId) -> Vec<usize> {
        let edges = self.nodes.edges_directed(NodeIndex::new(id.index()), Direction::Incoming);
        let mut positions: Vec<usize> = edges.map(|e| e.weight().position as usize).collect();
        positions.sort_unstable();
        positions
    }

    /// Appends a node as it is, for tests of the verifier.
    #[cfg(test)]
    pub(crate) fn push_unchecked(&mut self, node: Node, operands: &[(usize, Value)]) -> NodeId {
        let index = self.nodes.add_node(node);
        for &(position, v) in operands {
            self.nodes.add_edge(NodeIndex::new(v.node.index()), index, Use { slot: v.slot, position: position as u32 });
        }
        NodeId(index.index() as u32)
    }

    /// Uses of a value: the using node and the operand position, ordered by both.
    pub fn uses(&self, value: Value) -> Vec<(NodeId, usize)> {
        let mut uses: Vec<_> = self
            .nodes
            .edges_directed(NodeIndex::new(value.node.index()), Direction::Outgoing)
            .filter(|e| e.weight().slot == value.slot)
            .map(|e| (NodeId(e.target().index() as u32), e.weight().position as usize))
            .collect();
        uses.sort();
        uses
    }

    /// Type of a value of this graph.
    pub fn ty(&self, value: Value) -> &TensorType {
        &self.node(value.node).results[value.slot as usize]
    }

    /// Type of a value, if it exists.
    pub fn try_ty(&self, value: Value) -> Option<&TensorType> {
        self.nodes.node_weight(NodeIndex::new(value.node.index()))?.results.get(value.slot as usize)
    }

    /// The node with the given unique name.
    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.names.contains(name).then(|| self.ids().find(|&id| self.node(id).name == name))?
    }

    /// First result of a node.
    pub fn value(&self, id: NodeId) -> Value {
        Value { node: id, slot: 0 }
    }
}

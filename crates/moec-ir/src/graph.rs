//! The graph: operations in SSA form on petgraph, which is a private matter of this file.

use crate::family::infer;
use crate::ids::{Brand, NodeId, Origin, Value};
use crate::infer::InferError;
use crate::internal::Invariant;
use crate::op::Op;
use crate::purpose::Phase;
use crate::types::TensorType;
use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use std::collections::HashSet;

/// An operation with its operands and the types of its results.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// What it does it with, in order.
    pub operands: Vec<Value>,
    /// Types of its results, in slot order.
    pub results: Vec<TensorType>,
    /// Unique readable name, such as `blocks.3.moe.logits`.
    pub name: String,
    /// Where in the `.moe` file it came from.
    pub origin: Option<Origin>,
    /// Which part of a training step it belongs to.
    pub phase: Phase,
}

/// A directed acyclic graph of operations.
///
/// Nodes are only ever appended, after their operands, so ids are a topological order. A pass does not edit a graph: it
/// builds a new one. The graph has named outputs and named updates (the value that a state or parameter takes after a
/// run).
///
/// A value belongs to the graph that it came from, and to the clones that were made of that graph afterwards; no other
/// graph takes it.
#[derive(Debug)]
pub struct Graph {
    /// An edge from the node of an operand to its user holds the position of the operand.
    nodes: DiGraph<Node, usize>,
    outputs: Vec<(String, Value)>,
    updates: Vec<(String, Value)>,
    /// Of the nodes that are added.
    phase: Phase,
    /// Asked only, never walked.
    names: HashSet<String>,
    brand: Brand,
    /// The graphs that this one was cloned from, each with the number of nodes that it had then.
    ancestors: Vec<(Brand, usize)>,
}

impl Default for Graph {
    fn default() -> Self {
        Self {
            nodes: DiGraph::default(),
            outputs: Vec::new(),
            updates: Vec::new(),
            phase: Phase::default(),
            names: HashSet::new(),
            brand: Brand::fresh(),
            ancestors: Vec::new(),
        }
    }
}

/// The clone takes the values of the graph. What either of them appends from then on is a value of that one only.
impl Clone for Graph {
    fn clone(&self) -> Self {
        Self {
            nodes: self.nodes.clone(),
            outputs: self.outputs.clone(),
            updates: self.updates.clone(),
            phase: self.phase,
            names: self.names.clone(),
            brand: Brand::fresh(),
            ancestors: self.ancestors.iter().copied().chain([(self.brand, self.len())]).collect(),
        }
    }
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
            && self.nodes.node_weights().eq(other.nodes.node_weights())
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
        let results = infer(&op, &types).map_err(fail)?;
        let name = self.unique(if name.is_empty() { op.mnemonic() } else { name });
        Ok(self.push(Node { op, operands: operands.to_vec(), results, name, origin, phase: self.phase }))
    }

    /// Appends a node as it is.
    pub(crate) fn push(&mut self, node: Node) -> NodeId {
        let operands = node.operands.clone();
        let index = self.nodes.add_node(node);
        for (position, v) in operands.into_iter().enumerate() {
            self.nodes.add_edge(NodeIndex::new(v.node.index()), index, position);
        }
        self.id(index)
    }

    fn id(&self, index: NodeIndex) -> NodeId {
        NodeId::new(index.index(), self.brand)
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

    /// Keeps the outputs of which `keep` holds.
    pub fn retain_outputs(&mut self, keep: impl Fn(&str) -> bool) {
        self.outputs.retain(|(name, _)| keep(name));
    }

    /// Keeps the updates of which `keep` holds.
    pub fn retain_updates(&mut self, keep: impl Fn(&str) -> bool) {
        self.updates.retain(|(name, _)| keep(name));
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
        let brand = self.brand;
        (0..self.len()).map(move |index| NodeId::new(index, brand))
    }

    /// Whether the id was given out by this graph, or by one that it was cloned from before that was cloned.
    fn owns(&self, id: NodeId) -> bool {
        id.index() < self.len()
            && (id.brand() == self.brand
                || self.ancestors.iter().any(|&(brand, len)| brand == id.brand() && id.index() < len))
    }

    fn try_node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.node_weight(NodeIndex::new(id.index())).filter(|_| self.owns(id))
    }

    /// The node with the given id, which must come from this graph.
    pub fn node(&self, id: NodeId) -> &Node {
        self.try_node(id).invariant("a node is looked up in the graph that it belongs to")
    }

    /// Operands of a node, in order.
    pub fn operands(&self, id: NodeId) -> &[Value] {
        &self.node(id).operands
    }

    /// Uses of a value: the using node and the operand position, ordered by both.
    pub fn uses(&self, value: Value) -> Vec<(NodeId, usize)> {
        let edges = self.nodes.edges_directed(NodeIndex::new(value.node.index()), Direction::Outgoing);
        let mut uses: Vec<_> = edges
            .map(|e| (self.id(e.target()), *e.weight()))
            .filter(|&(user, position)| self.operands(user)[position].slot == value.slot)
            .collect();
        uses.sort_unstable();
        uses
    }

    /// A value whether or not the graph has it, for tests.
    #[cfg(test)]
    pub(crate) fn unchecked(&self, index: usize, slot: u8) -> Value {
        Value { node: NodeId::new(index, self.brand), slot }
    }

    /// Type of a value of this graph.
    pub fn ty(&self, value: Value) -> &TensorType {
        self.try_ty(value).invariant("a value is looked up in the graph that it belongs to")
    }

    /// Type of a value, if it is one of this graph.
    pub fn try_ty(&self, value: Value) -> Option<&TensorType> {
        self.try_node(value.node)?.results.get(usize::from(value.slot))
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

#[cfg(test)]
mod tests;

//! A new graph in the making, with the value in it that stands for each value of the old one.

use moec_ir::{Graph, GraphError, NodeId, Op, Value};

/// Copies an old graph node by node, with changes.
pub(crate) struct Rebuild<'a> {
    pub(crate) old: &'a Graph,
    pub(crate) new: Graph,
    /// By node and slot of the old graph.
    values: Vec<Vec<Option<Value>>>,
}

impl<'a> Rebuild<'a> {
    pub(crate) fn new(old: &'a Graph) -> Self {
        let values = old.ids().map(|id| vec![None; old.node(id).results.len()]).collect();
        Self { old, new: Graph::new(), values }
    }

    /// What stands for an old value. Old values must be asked for after they were set or copied; one that was dropped
    /// stands for itself, which the new graph refuses as an operand if there is no such value.
    pub(crate) fn value(&self, old: Value) -> Value {
        self.values[old.node.index()][usize::from(old.slot)].unwrap_or(old)
    }

    /// What stands for the operands of an old node.
    pub(crate) fn operands(&self, id: NodeId) -> Vec<Value> {
        self.old.operands(id).iter().map(|&v| self.value(v)).collect()
    }

    /// Lets a new value stand for an old one.
    pub(crate) fn set(&mut self, old: Value, new: Value) {
        self.values[old.node.index()][usize::from(old.slot)] = Some(new);
    }

    /// Lets every result of a new node stand for the result of the old one in the same slot.
    pub(crate) fn set_all(&mut self, old: NodeId, new: NodeId) {
        for slot in 0..self.values[old.index()].len() as u8 {
            self.set(Value { node: old, slot }, Value { node: new, slot });
        }
    }

    /// Appends an operation with the name, origin and phase of an old node.
    pub(crate) fn add_as(&mut self, old: NodeId, op: Op, operands: &[Value]) -> Result<NodeId, GraphError> {
        self.add_for(old, op, operands, &self.old.node(old).name)
    }

    /// Appends an operation with the origin and phase of an old node.
    pub(crate) fn add_for(
        &mut self,
        old: NodeId,
        op: Op,
        operands: &[Value],
        name: &str,
    ) -> Result<NodeId, GraphError> {
        let node = self.old.node(old);
        self.new.set_phase(node.phase);
        self.new.add(op, operands, name, node.origin)
    }

    /// Copies an old node.
    pub(crate) fn copy(&mut self, id: NodeId) -> Result<NodeId, GraphError> {
        let new = self.add_as(id, self.old.node(id).op.clone(), &self.operands(id))?;
        self.set_all(id, new);
        Ok(new)
    }

    /// Ends with the outputs and updates of the old graph.
    pub(crate) fn finish(mut self) -> Graph {
        for (name, v) in self.old.outputs() {
            let v = self.value(*v);
            self.new.set_output(name.clone(), v);
        }
        for (name, v) in self.old.updates() {
            let v = self.value(*v);
            self.new.set_update(name.clone(), v);
        }
        self.new
    }
}

/// The number that every element of a value has, if that is plain to see.
pub(crate) fn uniform(graph: &Graph, value: Value) -> Option<f64> {
    match &graph.node(value.node).op {
        Op::Fill { value, .. } => Some(value.get()),
        Op::Broadcast { .. } | Op::Reshape { .. } => uniform(graph, *graph.operands(value.node).first()?),
        _ => None,
    }
}

/// Whether a node belongs to the interface of a function and stays even if nothing reads it.
pub(crate) fn is_interface(op: &Op) -> bool {
    matches!(op, Op::Input { .. } | Op::Parameter { .. } | Op::State { .. })
}

//! Typed identifiers of nodes and values.

/// A node of a graph. Ids are dense and topologically ordered: operands have smaller ids than their users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) u32);

impl NodeId {
    /// Position of the node in topological order, for dense side tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One result of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    /// The node that produces it.
    pub node: NodeId,
    /// Which of the node's results, from 0.
    pub slot: u8,
}

impl Value {
    /// Result `slot` of the same node.
    pub fn result(self, slot: u8) -> Value {
        Value { node: self.node, slot }
    }
}

/// Byte range of the `.moe` file that a node came from. This crate only carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

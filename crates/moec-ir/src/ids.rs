//! Typed identifiers of nodes and values.

use std::fmt;

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

/// Byte range of the text that a node came from. This crate only carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Number of the text: 0 is the `.moe` file itself.
    pub file: u32,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl fmt::Display for Origin {
    /// `12..40`, with the number of the text in front where it is not 0: `1:12..40`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.file > 0 {
            write!(f, "{}:", self.file)?;
        }
        write!(f, "{}..{}", self.start, self.end)
    }
}

//! Typed identifiers of nodes and values.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU32, Ordering as Memory};

/// Which graph an identifier belongs to. A graph refuses identifiers of other graphs; nothing else depends on brands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Brand(u32);

impl Brand {
    /// A brand that no graph has.
    pub(crate) fn fresh() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self(NEXT.fetch_add(1, Memory::Relaxed))
    }
}

/// A node of a graph. Ids are dense and topologically ordered: operands have smaller ids than their users.
///
/// An id remembers which graph gave it out, and is an internal error (or, as an operand, a [`GraphError`]) in every
/// other graph but the clones that have the node. Two ids are equal if they have the same position, whatever their
/// graphs, so that graphs can be compared.
///
/// [`GraphError`]: crate::GraphError
#[derive(Clone, Copy)]
pub struct NodeId {
    index: u32,
    brand: Brand,
}

impl NodeId {
    pub(crate) fn new(index: usize, brand: Brand) -> Self {
        Self { index: index as u32, brand }
    }

    pub(crate) fn brand(self) -> Brand {
        self.brand
    }

    /// Position of the node in topological order, for dense side tables.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

impl PartialEq for NodeId {
    fn eq(&self, other: &Self) -> bool {
        self.index == other.index
    }
}

impl Eq for NodeId {}

impl PartialOrd for NodeId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for NodeId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.index.cmp(&other.index)
    }
}

impl Hash for NodeId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.index.hash(state);
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", self.index)
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

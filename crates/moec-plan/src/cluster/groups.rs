//! Nodes in groups that run as a whole.

use super::view::View;
use moec_ir::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// A partition of the nodes of a graph.
pub(super) struct Groups<'a> {
    view: &'a View<'a>,
    /// Group of each node: the number of its last member.
    of: Vec<usize>,
    members: BTreeMap<usize, BTreeSet<NodeId>>,
}

impl<'a> Groups<'a> {
    /// Each node on its own.
    pub(super) fn new(view: &'a View<'a>) -> Self {
        let of = (0..view.graph.len()).collect();
        Self { view, of, members: view.ids().into_iter().map(|id| (id.index(), BTreeSet::from([id]))).collect() }
    }

    /// Number of a node's group.
    pub(super) fn of(&self, id: NodeId) -> usize {
        self.of[id.index()]
    }

    /// The nodes of a node's group.
    pub(super) fn members(&self, id: NodeId) -> &BTreeSet<NodeId> {
        &self.members[&self.of(id)]
    }

    /// All groups by number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &BTreeSet<NodeId>)> {
        self.members.iter().map(|(&number, members)| (number, members))
    }

    /// Joins the groups of two nodes.
    pub(super) fn join(&mut self, a: NodeId, b: NodeId) {
        let (a, b) = (self.of(a), self.of(b));
        if a == b {
            return;
        }
        let last = a.max(b);
        let joined: BTreeSet<NodeId> = [a, b].iter().filter_map(|group| self.members.remove(group)).flatten().collect();
        for m in &joined {
            self.of[m.index()] = last;
        }
        self.members.insert(last, joined);
    }

    /// Whether nodes that run as a whole would wait for themselves: by way of a node that is none of them.
    pub(super) fn would_wait(&self, members: &BTreeSet<NodeId>) -> bool {
        let readers = members.iter().flat_map(|&m| self.view.users(m)).copied();
        self.leads_to(readers.filter(|reader| !members.contains(reader)).collect(), members)
    }

    /// Whether a member of `targets` needs some of these nodes, directly or not.
    pub(super) fn leads_to(&self, mut open: Vec<NodeId>, targets: &BTreeSet<NodeId>) -> bool {
        // Groups run as a whole, so reaching one member means reaching all of them.
        let mut seen = vec![false; self.of.len()];
        while let Some(id) = open.pop() {
            if targets.contains(&id) {
                return true;
            }
            if !std::mem::replace(&mut seen[self.of(id)], true) {
                open.extend(self.members(id).iter().flat_map(|&m| self.view.users(m)));
            }
        }
        false
    }
}

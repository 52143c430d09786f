//! How nodes are computed together: the second level, over a graph that stays as it is.
//!
//! A [`Cluster`] names nodes that one launch (or a short sequence of launches) computes, with what its [`Kernel`] must
//! know. A fusion ([`FUSIONS`]) is a decision about a graph, not an operation: each reads the graph alone and notes what it
//! wants in [`Decisions`], so the order in which they run does not matter; `resolve` settles what happens where two of
//! them meet, and puts the clusters in order.
//!
//! Cheap nodes (fills, broadcasts, reshapes, rows on their way to experts) may be part of several clusters, each of which
//! computes them anew, or reads through them.

mod fuse_cross_entropy;
mod fuse_dispatch;
mod fuse_elementwise;
mod fuse_small;
mod fuse_sums;
mod fuse_unpack;
mod group_updates;
mod groups;
mod resolve;
#[cfg(test)]
mod tests;
mod view;

use crate::error::PlanError;
use crate::kernel::{Body, Kernel};
use crate::limits::LaunchLimits;
use crate::passes::{PassReport, PassRun, Rewrites};
use moec_ir::{AdamWAttrs, Graph, NodeId, Op, Real, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;
use view::View;

/// Nodes that are computed together.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// The node whose name, origin and place in the order the cluster has.
    pub node: NodeId,
    /// What it computes, in topological order; nothing if it is a copy.
    pub nodes: Vec<NodeId>,
    /// What is read, in the order in which the kernel takes it.
    pub operands: Vec<Value>,
    /// What is stored, in the order in which the kernel gives it.
    pub results: Vec<Value>,
    /// What the kernel must know.
    pub kernel: Kernel,
}

impl Cluster {
    /// A value in another place.
    pub(crate) fn copy(value: Value) -> Self {
        let values = vec![value];
        Self { node: value.node, nodes: vec![], operands: values.clone(), results: values, kernel: Body::Copy.into() }
    }
}

/// A graph with the clusters that compute it, in an order in which each finds what it reads. Sources and reshapes are
/// clusters of their own, for which nothing is launched. Nodes that nothing depends on are in none.
#[derive(Clone, Debug, PartialEq)]
pub struct Clusters {
    graph: Arc<Graph>,
    clusters: Vec<Cluster>,
}

/// What the fusions want, each in a place of its own.
#[derive(Debug, Default)]
struct Decisions {
    /// By a cross-entropy, the gradient that is computed with it, and the gradient that arrives at the loss.
    gradients: BTreeMap<NodeId, (NodeId, Real)>,
    /// Elementwise nodes that become one program, with the node that it goes on with if there is one among them.
    programs: Vec<BTreeSet<NodeId>>,
    /// Nodes over a few numbers that are computed one after the other.
    small: Vec<BTreeSet<NodeId>>,
    /// By a product, the sum over the rows of its first operand.
    sums: BTreeMap<NodeId, NodeId>,
    /// Products that fetch their rows, with the position of that operand.
    fetches: BTreeMap<NodeId, usize>,
    /// By a product, what unpacks its weights.
    unpacked: BTreeMap<NodeId, NodeId>,
    /// Updates that become one, in the order of their tensors.
    updates: Vec<(AdamWAttrs, Vec<NodeId>)>,
}

/// A kind of decision about which nodes are computed together.
#[derive(Clone, Copy, Debug)]
pub struct Fusion {
    /// Name, as in `--after NAME`.
    pub name: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    decide: fn(&View<'_>, &mut Rewrites, &mut Decisions),
}

/// All fusions.
pub static FUSIONS: [Fusion; 7] = [
    Fusion {
        name: "fuse_cross_entropy",
        summary: "computes a cross-entropy together with its gradient",
        decide: fuse_cross_entropy::decide,
    },
    Fusion {
        name: "fuse_elementwise",
        summary: "joins elementwise operations and the broadcasts they read into single programs",
        decide: fuse_elementwise::decide,
    },
    Fusion {
        name: "fuse_small",
        summary: "computes operations on a few numbers, such as those of balance losses, one after the other in one launch",
        decide: fuse_small::decide,
    },
    Fusion {
        name: "fuse_sums",
        summary: "lets the products of weight gradients make the gradients of biases, too",
        decide: fuse_sums::decide,
    },
    Fusion {
        name: "fuse_dispatch",
        summary: "lets the products of experts fetch their rows from where they are",
        decide: fuse_dispatch::decide,
    },
    Fusion {
        name: "fuse_unpack",
        summary: "lets products read weights as they are stored, in panels and in fewer bits",
        decide: fuse_unpack::decide,
    },
    Fusion { name: "group_updates", summary: "updates several small tensors at once", decide: group_updates::decide },
];

/// How [`cluster`] decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterOptions {
    /// What the kernels of the device can do at most.
    pub limits: LaunchLimits,
    /// Stop after the fusion of this name.
    pub after: Option<String>,
    /// Stop after this many decisions.
    pub max_decisions: Option<usize>,
}

/// Decides which nodes of a graph are computed together.
///
/// # Errors
/// When there is no fusion to stop after of that name, or a node is too large for the kernels of the device.
pub fn cluster(graph: &Graph, options: &ClusterOptions) -> Result<(Clusters, PassReport), PlanError> {
    let fusions = fusions_up_to(options.after.as_deref())?;
    let graph = Arc::new(graph.clone());
    let view = View::new(&graph, options.limits);
    let mut report = PassReport { nodes: graph.len(), passes: Vec::new() };
    let mut budget = Rewrites::new(options.max_decisions);
    let mut decisions = Decisions::default();
    for fusion in fusions {
        let (start, before) = (Instant::now(), budget.done());
        (fusion.decide)(&view, &mut budget, &mut decisions);
        let (time, rewrites) = (start.elapsed(), budget.done() - before);
        report.passes.push(PassRun { name: fusion.name, rewrites, nodes: graph.len(), time });
    }
    let clusters = Clusters { clusters: resolve::resolve(&view, &decisions), graph: Arc::clone(&graph) };
    if let Some(last) = report.passes.last_mut() {
        last.nodes = clusters.clusters.len();
    }
    clusters.check(&options.limits)?;
    Ok((clusters, report))
}

/// The fusions to run if that of a name is the last; all without a name.
fn fusions_up_to(name: Option<&str>) -> Result<&'static [Fusion], PlanError> {
    let Some(name) = name else { return Ok(&FUSIONS) };
    match FUSIONS.iter().position(|f| f.name == name) {
        Some(last) => Ok(&FUSIONS[..=last]),
        None => Err(PlanError::NoPass { name: name.to_string(), known: FUSIONS.map(|f| f.name).join(", ") }),
    }
}

impl Clusters {
    /// Each node of a graph on its own.
    pub fn single(graph: &Graph) -> Self {
        let graph = Arc::new(graph.clone());
        let view = View::new(&graph, LaunchLimits::default());
        Self { clusters: resolve::resolve(&view, &Decisions::default()), graph: Arc::clone(&graph) }
    }

    /// The graph that they compute.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The graph, to be kept.
    pub(crate) fn shared_graph(&self) -> Arc<Graph> {
        Arc::clone(&self.graph)
    }

    /// The clusters, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Cluster> {
        self.clusters.iter()
    }

    /// Number of clusters.
    pub fn len(&self) -> usize {
        self.clusters.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.clusters.is_empty()
    }

    fn check(&self, limits: &LaunchLimits) -> Result<(), PlanError> {
        for cluster in &self.clusters {
            let types: Vec<_> = cluster.operands.iter().map(|&v| self.graph.ty(v)).collect();
            limits.check(&cluster.kernel, &types).map_err(|reason| {
                let node = self.graph.node(cluster.node);
                let reason = format!("{}: {reason}", cluster.kernel.mnemonic());
                PlanError::TooLarge { node: node.name.clone(), origin: node.origin, reason }
            })?;
        }
        Ok(())
    }
}

impl From<&Graph> for Clusters {
    fn from(graph: &Graph) -> Self {
        Self::single(graph)
    }
}

impl From<&Clusters> for Clusters {
    fn from(clusters: &Clusters) -> Self {
        clusters.clone()
    }
}

/// One line for each cluster that launches something, over the names of values.
impl fmt::Display for Clusters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for cluster in &self.clusters {
            if cluster.kernel.op().is_some_and(names_memory) {
                continue;
            }
            let names = |values: &[Value]| values.iter().map(|&v| name(&self.graph, v)).collect::<Vec<_>>();
            writeln!(f, "{}", cluster.kernel.line(&names(&cluster.operands), &names(&cluster.results)))?;
        }
        Ok(())
    }
}

/// `%node` or `%node#slot`.
fn name(graph: &Graph, value: Value) -> String {
    let name = &graph.node(value.node).name;
    if value.slot == 0 { format!("%{name}") } else { format!("%{name}#{}", value.slot) }
}

/// Whether nothing is launched for an operation: it says where memory is.
pub(crate) fn names_memory(op: &Op) -> bool {
    matches!(op, Op::Input { .. } | Op::Parameter { .. } | Op::State { .. } | Op::Reshape { .. })
}

//! From decisions to clusters: what happens where two of them meet, what each cluster reads and gives, and their order.
//!
//! Where decisions meet:
//! - a product that a program goes on with keeps it, and the sum of its first operand stays on its own; so does a sum that
//!   would make the product wait for itself;
//! - operations on a few numbers are taken out of programs, of which what is left is put together anew; a program that goes
//!   on with another operation, draws random numbers or has more elements keeps its members; where something would come to
//!   wait for itself, operations stay as they are;
//! - rows that one product fetches and another does not are made for the other;
//! - a loss with its gradient, and updates at once, never meet anything: nothing but the gradient reads what is between,
//!   and nothing reads updates.

use super::fuse_elementwise::{self, Built};
use super::fuse_small::{self, Sequence};
use super::groups::Groups;
use super::view::View;
use super::{Cluster, Decisions};
use crate::kernel::{Body, Kernel};
use crate::liveness::is_input;
use moec_ir::{Invariant, NodeId, Op, Value, internal_error};
use std::collections::{BTreeMap, BTreeSet};

/// The clusters of a graph, in an order in which each finds what it reads: each has the place of its node unless it waits
/// for another.
pub(super) fn resolve(view: &View<'_>, decisions: &Decisions) -> Vec<Cluster> {
    let mut groups = Groups::new(view);
    let is_small = |members: &&BTreeSet<NodeId>| members.iter().all(|&m| fuse_small::is_small(view, m));
    let (small, mut programs): (Vec<_>, Vec<_>) = decisions.programs.iter().partition(is_small);
    for members in &programs {
        join_all(&mut groups, *members);
    }
    let sequences = sequences(view, decisions, &mut groups);
    let small: Vec<_> =
        small.iter().flat_map(|&members| fuse_elementwise::regroup(view, &mut groups, members)).collect();
    programs.extend(&small);
    let joined = |groups: &Groups<'_>, id: NodeId| groups.members(id).len() > 1;
    let mut sums = BTreeMap::new();
    for (&product, &sum) in &decisions.sums {
        let waits = groups.leads_to(view.users(sum).iter().copied().collect(), groups.members(product));
        if !joined(&groups, product) && !joined(&groups, sum) && !waits {
            groups.join(product, sum);
            sums.insert(product, sum);
        }
    }
    for (&loss, &(gradient, _)) in &decisions.gradients {
        groups.join(loss, gradient);
    }
    for (_, members) in &decisions.updates {
        join_all(&mut groups, members);
    }

    let mut clusters: BTreeMap<usize, Cluster> = BTreeMap::new();
    let number = |id: &NodeId| groups.of(*id);
    for sequence in sequences {
        let Sequence { last: node, small, operands, results, nodes, .. } = sequence;
        let nodes = nodes.into_iter().collect();
        clusters.insert(number(&node), Cluster { node, nodes, operands, results, kernel: Body::Small(small).into() });
    }
    for members in programs {
        let built = Built::new(view, members).invariant("the members of a program make one");
        clusters.extend(members.first().map(|m| (number(m), of_program(view, decisions, built))));
    }
    for (loss, &(gradient, dloss)) in &decisions.gradients {
        let operands = view.graph.operands(*loss).to_vec();
        let mut nodes = BTreeSet::from([*loss, gradient]);
        view.constant(view.graph.operands(gradient)[0], &mut nodes);
        let results = [*loss, gradient].map(|id| view.graph.value(id)).to_vec();
        let kernel = Body::CrossEntropyWithGradient { dloss }.into();
        let nodes = nodes.into_iter().collect();
        clusters.insert(number(loss), Cluster { node: *loss, nodes, operands, results, kernel });
    }
    for (attrs, members) in &decisions.updates {
        let node = members.iter().copied().max().invariant("updates are of tensors");
        let mut operands: Vec<Value> = members.iter().flat_map(|&m| view.graph.operands(m)[..4].to_vec()).collect();
        operands.extend_from_slice(&view.graph.operands(node)[4..]);
        let results = members.iter().flat_map(|&m| values(view, m)).collect();
        let mut nodes = members.clone();
        nodes.sort();
        clusters
            .insert(number(&node), Cluster { node, nodes, operands, results, kernel: Body::Updates(*attrs).into() });
    }
    for (number, members) in groups.iter() {
        let first = *members.first().invariant("a group has members");
        clusters.entry(number).or_insert_with(|| {
            let mut cluster = of_node(view, decisions, first);
            if let Some(&sum) = sums.get(&first) {
                cluster.kernel.sums = true;
                cluster.nodes.push(sum);
                cluster.results.push(view.graph.value(sum));
            }
            cluster
        });
    }
    ordered(view, &groups, clusters)
}

/// The sequences of operations on a few numbers, which become groups.
fn sequences(view: &View<'_>, decisions: &Decisions, groups: &mut Groups<'_>) -> Vec<Sequence> {
    let mut sequences = Vec::new();
    for wanted in &decisions.small {
        let members: BTreeSet<NodeId> = wanted.iter().copied().filter(|&m| groups.members(m).len() == 1).collect();
        // What is one statement is a program, or a sum.
        if !groups.would_wait(&members)
            && let Some(sequence) = Sequence::new(view, &members)
            && sequence.small.statements.len() > 1
            && sequence.is_within_bounds(view)
        {
            join_all(groups, &sequence.members);
            sequences.push(sequence);
        }
    }
    sequences
}

fn join_all<'m>(groups: &mut Groups<'_>, members: impl IntoIterator<Item = &'m NodeId>) {
    let mut members = members.into_iter();
    if let Some(&first) = members.next() {
        members.for_each(|&m| groups.join(first, m));
    }
}

/// All results of a node.
fn values(view: &View<'_>, id: NodeId) -> Vec<Value> {
    (0..view.graph.node(id).results.len()).map(|slot| view.graph.value(id).result(slot as u8)).collect()
}

/// A node on its own, which may be a product that fetches its rows.
fn of_node(view: &View<'_>, decisions: &Decisions, id: NodeId) -> Cluster {
    let mut operands = view.graph.operands(id).to_vec();
    let mut kernel = Kernel::from(view.op(id).clone());
    let mut nodes = vec![id];
    if let Some(&at) = decisions.fetches.get(&id) {
        let dispatch = operands[at].node;
        let [x, order, positions] = view.graph.operands(dispatch)[..3].try_into().invariant("a dispatch has operands");
        operands[at] = x;
        operands.extend([order, positions]);
        nodes.push(dispatch);
        kernel.fetch = Some(at);
    }
    if let Some(&unpack) = decisions.unpacked.get(&id)
        && let (Op::Unpack(attrs), [packed, scale @ ..]) = (view.op(unpack), view.graph.operands(unpack))
    {
        operands[1] = *packed;
        operands.extend(scale);
        nodes.push(unpack);
        kernel.unpack = Some(*attrs);
    }
    nodes.sort();
    Cluster { node: id, nodes, operands, results: values(view, id), kernel }
}

fn of_program(view: &View<'_>, decisions: &Decisions, built: Built) -> Cluster {
    let Built { last: node, producer, program, operands, random, results, mut nodes } = built;
    match producer {
        None => {
            let operands = operands.into_iter().chain(random).collect();
            let nodes = nodes.into_iter().collect();
            Cluster { node, nodes, operands, results, kernel: Body::Elementwise(program).into() }
        }
        Some(producer) => {
            let mut cluster = of_node(view, decisions, producer);
            nodes.extend(cluster.nodes);
            cluster.operands.extend(operands.into_iter().chain(random));
            let further = cluster.results.split_off(1);
            cluster.results = results.into_iter().chain(further).collect();
            cluster.kernel.after = Some(program);
            Cluster { node, nodes: nodes.into_iter().collect(), ..cluster }
        }
    }
}

/// The clusters that something depends on, inputs among them, in order.
fn ordered(view: &View<'_>, groups: &Groups<'_>, mut clusters: BTreeMap<usize, Cluster>) -> Vec<Cluster> {
    let mut needed: BTreeSet<usize> = BTreeSet::new();
    let named = view.graph.outputs().iter().chain(view.graph.updates()).map(|&(_, v)| groups.of(v.node));
    let inputs = view.ids().into_iter().filter(|&id| is_input(view.graph, id)).map(|id| groups.of(id));
    let mut open: Vec<usize> = named.chain(inputs).collect();
    // By cluster, the clusters that it reads and those that read it.
    let mut reads: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    let mut readers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    while let Some(number) = open.pop() {
        if needed.insert(number) {
            let sources: BTreeSet<usize> = clusters[&number].operands.iter().map(|v| groups.of(v.node)).collect();
            for &source in &sources {
                readers.entry(source).or_default().push(number);
            }
            open.extend(&sources);
            reads.insert(number, sources);
        }
    }
    let place = |clusters: &BTreeMap<usize, Cluster>, number: usize| (clusters[&number].node, number);
    let mut missing: BTreeMap<usize, usize> = reads.iter().map(|(&number, sources)| (number, sources.len())).collect();
    let mut ready: BTreeSet<(NodeId, usize)> =
        missing.iter().filter(|&(_, &n)| n == 0).map(|(&number, _)| place(&clusters, number)).collect();
    let mut order = Vec::with_capacity(needed.len());
    while let Some((_, number)) = ready.pop_first() {
        for &reader in readers.get(&number).into_iter().flatten() {
            let left = missing.get_mut(&reader).invariant("a reader is needed");
            *left -= 1;
            if *left == 0 {
                ready.insert(place(&clusters, reader));
            }
        }
        order.extend(clusters.remove(&number));
    }
    if order.len() != needed.len() {
        internal_error!("{} of {} clusters wait for each other", needed.len() - order.len(), needed.len());
    }
    order
}

//! One of the two graphs of a model: that of a training step or that of evaluation, with what is asked of it.

use super::Unwritable;
use super::body::{Key, usual_name};
use super::sizes::{Formula, Sizes};
use moec_ir::{Binary, Graph, Input, Node, Op, Output, Value};
use std::collections::{BTreeMap, BTreeSet};

/// A term of the objective beside the task's loss.
#[derive(Clone, Debug)]
pub(super) struct Loss {
    /// Its name.
    pub(super) name: String,
    /// What it is before its weight.
    pub(super) value: Key,
    /// Its weight.
    pub(super) weight: f64,
}

/// A graph of a model.
pub(super) struct Side<'g> {
    sizes: &'g Sizes,
    nodes: Vec<&'g Node>,
    /// Whether the logits depend on a node.
    of_results: Vec<bool>,
    /// Whether a loss of a layer depends on a node.
    of_losses: Vec<bool>,
    /// Losses of layers.
    pub(super) losses: Vec<Loss>,
    /// The scores of the tokens.
    pub(super) logits: Key,
    /// Names of the values that losses are made of, in this graph or in the other.
    pub(super) used_by_losses: BTreeSet<String>,
}

impl<'g> Side<'g> {
    /// Looks through a graph; `None` if it has no logits.
    pub(super) fn new(sizes: &'g Sizes) -> Option<Self> {
        let graph = sizes.graph();
        let nodes: Vec<&Node> = graph.ids().map(|id| graph.node(id)).collect();
        let logits = graph.output(&Output::Logits.to_string())?;
        let losses = losses(graph);
        let needed = |roots: Vec<usize>| {
            let mut needed = vec![false; nodes.len()];
            let mut left = roots;
            while let Some(node) = left.pop() {
                if !std::mem::replace(&mut needed[node], true) {
                    left.extend(nodes[node].operands.iter().map(|value| value.node.index()));
                }
            }
            needed
        };
        let of_results = needed(vec![logits.node.index()]);
        let of_losses = needed(losses.iter().map(|loss| loss.value.0).collect());
        let logits = (logits.node.index(), logits.slot);
        let mut side = Self { sizes, nodes, of_results, of_losses, losses, logits, used_by_losses: BTreeSet::new() };
        let used = (0..side.nodes.len()).filter(|&node| side.is_of_losses_only(node));
        let used = used.flat_map(|node| side.operands(node)).chain(side.losses.iter().map(|loss| loss.value));
        side.used_by_losses = used.map(|key| side.identity(key)).collect();
        Some(side)
    }

    pub(super) fn node(&self, node: usize) -> &'g Node {
        self.nodes[node]
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn is_of_results(&self, node: usize) -> bool {
        self.of_results[node]
    }

    pub(super) fn is_of_losses_only(&self, node: usize) -> bool {
        self.of_losses[node] && !self.of_results[node]
    }

    pub(super) fn is_live(&self, node: usize) -> bool {
        self.of_results[node] || self.of_losses[node]
    }

    /// Whether a node is computed: not given, stored, or a constant that is written where it is used.
    pub(super) fn is_computed(&self, node: usize) -> bool {
        let is_source = matches!(
            self.nodes[node].op,
            Op::Input { .. } | Op::Parameter { .. } | Op::State { .. } | Op::Fill { .. } | Op::Ramp { .. }
        );
        self.is_live(node) && !is_source
    }

    /// The scope of a node: its name without the last part.
    pub(super) fn scope(&self, node: usize) -> &'g str {
        self.nodes[node].name.rsplit_once('.').map_or("", |(scope, _)| scope)
    }

    pub(super) fn key(&self, value: Value) -> Key {
        (value.node.index(), value.slot)
    }

    /// The values that a node is made of, without the state of the random generator.
    pub(super) fn operands(&self, node: usize) -> Vec<Key> {
        let operands = self.nodes[node].operands.iter().map(|&value| self.key(value));
        operands.filter(|key| !self.is_generator(key.0)).collect()
    }

    fn is_generator(&self, node: usize) -> bool {
        matches!(&self.nodes[node].op, Op::Input { name, .. } if Input::of_name(name) == Some(Input::Rng))
    }

    pub(super) fn operand_shape(&self, node: usize, i: usize) -> Vec<usize> {
        let (node, slot) = self.key(self.nodes[node].operands[i]);
        self.result_shape(node, slot)
    }

    pub(super) fn result_shape(&self, node: usize, slot: u8) -> Vec<usize> {
        self.nodes[node].results[usize::from(slot)].shape.clone()
    }

    /// Whether an operand is columns that all exist: those of the largest of a row, or of a balanced assignment.
    pub(super) fn is_chosen(&self, node: usize, i: usize) -> bool {
        let value = self.nodes[node].operands[i];
        match self.nodes[value.node.index()].op {
            Op::TopK { .. } => value.slot == 1,
            Op::BalancedAssignment => true,
            _ => false,
        }
    }

    /// A whole number of a node, as a formula of the batch.
    pub(super) fn formula(&self, node: usize, number: &dyn Fn(&Node) -> usize) -> Result<Formula, Unwritable> {
        let unknown = || Unwritable::Size { node: self.nodes[node].name.clone() };
        self.sizes.formula(node, number).ok_or_else(unknown)
    }

    /// A number of a node, as a formula of the batch.
    pub(super) fn real(&self, node: usize, number: &dyn Fn(&Node) -> f64) -> Result<Formula, Unwritable> {
        let unknown = || Unwritable::Size { node: self.nodes[node].name.clone() };
        self.sizes.real(node, number).ok_or_else(unknown)
    }

    /// An extent of a result.
    pub(super) fn extent(&self, node: usize, slot: u8, axis: usize) -> Result<Formula, Unwritable> {
        self.formula(node, &|node| node.results[usize::from(slot)].shape[axis])
    }

    /// Whether losses are made of a value.
    pub(super) fn is_used_by_losses(&self, key: Key) -> bool {
        self.used_by_losses.contains(&self.identity(key))
    }

    /// The name of a value that it has in both graphs: what dropout does is not there in evaluation.
    pub(super) fn identity(&self, key: Key) -> String {
        let node = self.nodes[key.0];
        match &node.op {
            Op::Dropout { .. } => self.identity(self.key(node.operands[0])),
            _ => format!("{}#{}", node.name, key.1),
        }
    }

    /// What a value is called in Python.
    pub(super) fn name_of(&self, key: Key) -> String {
        let node = self.nodes[key.0];
        if matches!(node.op, Op::Dropout { .. }) {
            return self.name_of(self.key(node.operands[0]));
        }
        let (scope, last) = node.name.rsplit_once('.').unwrap_or(("", &node.name));
        let without_number =
            last.rsplit_once('_').filter(|(_, n)| n.parse::<usize>().is_ok()).map_or(last, |(name, _)| name);
        if without_number == "residual" {
            return "x".into();
        }
        if without_number != node.op.mnemonic() {
            return without_number.to_string();
        }
        // A product is named for its map, whose scope it is alone in.
        if let Op::MatMul { .. } | Op::GroupedMatMul { .. } = node.op {
            let map = scope.rsplit('.').next().unwrap_or(scope);
            return match map {
                "router" => "logits".into(),
                "" => usual_name(&node.op, key.1).into(),
                "moe" | "experts" => usual_name(&node.op, key.1).into(),
                map => map.to_string(),
            };
        }
        usual_name(&node.op, key.1).into()
    }
}

/// The terms of the objective that are no loss of the task.
fn losses(graph: &Graph) -> Vec<Loss> {
    let outputs: BTreeMap<(usize, u8), String> = graph
        .outputs()
        .iter()
        .filter_map(|(name, value)| match Output::of_name(name) {
            Some(Output::Aux { loss, .. }) => Some(((value.node.index(), value.slot), loss)),
            _ => None,
        })
        .collect();
    let mut losses = Vec::new();
    let Some(mut total) = graph.output(&Output::Objective.to_string()) else { return losses };
    let key = |value: Value| (value.node.index(), value.slot);
    // The objective is `((task + term) + term) + ..`, a term a loss or a loss times its weight.
    loop {
        let node = graph.node(total.node);
        let (Op::Binary(Binary::Add), &[before, term]) = (&node.op, node.operands.as_slice()) else { break };
        let product = graph.node(term.node);
        let weighted = match (&product.op, product.operands.as_slice()) {
            (Op::Binary(Binary::Mul), &[value, factor]) => match graph.node(factor.node).op {
                Op::Fill { value: weight, .. } => Some((value, weight.get())),
                _ => None,
            },
            _ => None,
        };
        let (value, weight) = match weighted {
            Some((value, weight)) if !outputs.contains_key(&key(term)) => (value, weight),
            _ => (term, 1.0),
        };
        let name = outputs.get(&key(value)).cloned().unwrap_or_else(|| "loss".to_string());
        losses.push(Loss { name, value: key(value), weight });
        total = before;
    }
    losses.reverse();
    losses
}

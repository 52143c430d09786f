//! The verifier, and in this text the contract of the IR.
//!
//! [`Graph::add`] already refuses operands that do not fit, so a graph that was only appended to satisfies most of
//! what follows. The verifier checks all of it again, from the stored graph, because passes, parsers and plugins make
//! graphs too; it runs after every pass in tests and debug builds. It never stops at the first violation.
//!
//! # Structure
//! - An operand is a result of an earlier node, so node ids are a topological order and the graph has no cycle.
//! - Outputs and updates are values of the graph.
//!
//! # Types
//! - The stored result types of a node are those that [`infer`](crate::infer()) gives for its operands.
//! - The bytes of a tensor can be counted in `usize`.
//! - Parameters are f32.
//! - An update has the type of the state or parameter that it replaces.
//! - There are as many operands as the table of operations says, and attributes are in the ranges that it gives.
//!
//! # Names
//! - Every node has a name, and no two nodes have the same.
//! - Inputs, parameters and states share one set of names, and each name belongs to one node.
//! - Every output has a name, and no two outputs have the same.
//! - An update names a state or parameter of the graph, each at most once.
//!
//! # Randomness
//! - A key of a generator state belongs to one stream. In the forward stage exactly one node draws from it. In later
//!   stages further nodes may repeat the identical draw (same kind, rate and number of elements): dropout is its own
//!   gradient, the gradient of attention recomputes the mask, and a pass may compute a mask twice.
//! - A draw has at most 2^32 counters, since counters are 32 bits wide.
//!
//! # Stages
//! A stage allows what the stages before it allow, and more. The table says in which stage an operation is first legal.
//!
//! | Stage | Made by | New in it |
//! |---|---|---|
//! | [`Stage::Forward`] | lowering | updates of states |
//! | [`Stage::Training`] | differentiation, optimiser | gradients of operations, steps of the optimiser; updates of parameters |
//!
//! # Not checked
//! What depends on values: token ids and targets within the vocabulary, offsets that ascend, `order` and `positions` of a
//! dispatch, combine or dispatched product from one and the same sort, numbers that are finite. The reference evaluator reports the first two.
//! Indices of experts, slots and rows may be anything: those out of range are skipped.

use crate::declaration::OutOfRange;
use crate::family::infer;
use crate::graph::Graph;
use crate::ids::{NodeId, Origin, Value};
use crate::infer::InferError;
use crate::internal_error;
use crate::op::{AttentionAttrs, Op};
use crate::stage::Stage;
use crate::text::{self, Line};
use crate::types::{DType, Real, TensorType};
use std::collections::{BTreeMap, BTreeSet};

/// A broken invariant and where it is broken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name}: {violation}")]
pub struct VerifyError {
    /// The line of the listing.
    pub line: Line,
    /// What stands on it: `%node`, `output loss`, `update bias`.
    pub name: String,
    /// Where in the `.moe` file the node came from.
    pub origin: Option<Origin>,
    /// What is wrong.
    pub violation: Violation,
}

/// An invariant that does not hold. The module's documentation lists them all.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// An operand, output or update is not a value of the graph.
    #[error("result {slot} of node {node} is not a value of this graph")]
    Dangling {
        /// Number of the node.
        node: usize,
        /// Number of the result.
        slot: u8,
    },
    /// An operand is defined at or after its use.
    #[error("operand %{0} is not defined before its use")]
    Order(String),
    /// The operation does not fit its operands.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// Stored and inferred result types differ.
    #[error("stored result types are {stored}, but the operation gives {inferred}")]
    ResultTypes {
        /// Types in the graph.
        stored: String,
        /// Types of the operation.
        inferred: String,
    },
    /// The bytes of a result cannot be counted.
    #[error("a tensor of type {0} is too large")]
    TooLarge(TensorType),
    /// A parameter that has no gradient.
    #[error("a parameter is f32, not {0}")]
    ParameterType(TensorType),
    /// An attribute out of range.
    #[error("{attribute} is {value}, not {expected}")]
    Attribute {
        /// Its name.
        attribute: &'static str,
        /// Its value as text.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A node or an output has the empty name.
    #[error("has no name")]
    NoName,
    /// Two nodes, two outputs, or two updates have the same name.
    #[error("the name is taken already")]
    NameTaken,
    /// Two inputs, parameters or states have the same name.
    #[error("`{name}` is declared already by %{by}")]
    DeclaredTwice {
        /// The name.
        name: String,
        /// The first node that declares it.
        by: String,
    },
    /// An update of what is not there.
    #[error("there is no state or parameter of that name")]
    UpdateOfNothing,
    /// An update with another type.
    #[error("the new value is {found}, but the tensor is {expected}")]
    UpdateType {
        /// Type of the state or parameter.
        expected: TensorType,
        /// Type of its update.
        found: TensorType,
    },
    /// Only training changes parameters.
    #[error("a parameter is not updated in the forward stage")]
    UpdateOfParameter,
    /// An operation of a later stage.
    #[error("`{op}` is not legal in the {stage} stage")]
    Stage {
        /// Mnemonic of the operation.
        op: &'static str,
        /// Stage of the graph.
        stage: Stage,
    },
    /// Two nodes draw from one stream of random numbers.
    #[error("draws from key {key}, which belongs to %{by}")]
    SharedKey {
        /// The key.
        key: u32,
        /// The first node that draws from it.
        by: String,
    },
    /// A draw has more elements than there are counters.
    #[error("draws {0} random words, more than 2^32")]
    Counters(u64),
}

/// Checks every invariant of the IR.
///
/// # Errors
/// Everything that is wrong, in the order of the listing.
pub fn verify(graph: &Graph, stage: Stage) -> Result<(), Vec<VerifyError>> {
    let mut verifier = Verifier { graph, stage, errors: Vec::new(), streams: BTreeMap::new() };
    let mut names = BTreeSet::new();
    let mut declared: BTreeMap<&str, NodeId> = BTreeMap::new();
    for id in graph.ids() {
        let node = graph.node(id);
        if node.name.is_empty() {
            verifier.report(Line::Node(id), Violation::NoName);
        }
        if !names.insert(node.name.as_str()) {
            verifier.report(Line::Node(id), Violation::NameTaken);
        }
        if let Op::Input { name, .. } | Op::Parameter { name, .. } | Op::State { name, .. } = &node.op {
            match declared.get(name.as_str()) {
                Some(&by) => {
                    let by = graph.node(by).name.clone();
                    verifier.report(Line::Node(id), Violation::DeclaredTwice { name: name.clone(), by });
                }
                None => {
                    declared.insert(name, id);
                }
            }
        }
        verifier.node(id);
    }

    let mut outputs = BTreeSet::new();
    for (i, (name, value)) in graph.outputs().iter().enumerate() {
        let line = Line::Output(i);
        if name.is_empty() {
            verifier.report(line, Violation::NoName);
        }
        if !outputs.insert(name) {
            verifier.report(line, Violation::NameTaken);
        }
        verifier.exists(line, *value);
    }

    let mut updates = BTreeSet::new();
    for (i, (name, value)) in graph.updates().iter().enumerate() {
        let line = Line::Update(i);
        if !updates.insert(name) {
            verifier.report(line, Violation::NameTaken);
        }
        let target = declared.get(name.as_str()).map(|&id| &graph.node(id).op);
        match (target, verifier.exists(line, *value)) {
            (Some(Op::State { ty, .. } | Op::Parameter { ty, .. }), Some(found)) if ty != found => {
                verifier.report(line, Violation::UpdateType { expected: ty.clone(), found: found.clone() });
            }
            (Some(Op::State { .. } | Op::Parameter { .. }), _) => {}
            (_, _) => verifier.report(line, Violation::UpdateOfNothing),
        }
        if let (Some(Op::Parameter { .. }), Stage::Forward) = (target, stage) {
            verifier.report(line, Violation::UpdateOfParameter);
        }
    }
    if verifier.errors.is_empty() { Ok(()) } else { Err(verifier.errors) }
}

/// The listing of a graph with each error below the line that it is about.
pub fn annotate(graph: &Graph, errors: &[VerifyError]) -> String {
    let mut remarks: BTreeMap<Line, Vec<String>> = BTreeMap::new();
    for e in errors {
        remarks.entry(e.line).or_default().push(e.violation.to_string());
    }
    text::listing(graph, false, |line| remarks.get(&line).into_iter().flatten().cloned().collect())
}

/// What is drawn from a stream: two draws that are equal give the same numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Draw {
    Normal { elements: u64 },
    Uniform { elements: u64 },
    Dropout { rate: Real, elements: u64 },
    Attention { rate: Real, heads: usize, time: usize, tokens: u64 },
}

impl Draw {
    /// Number of counters of the stream that are used.
    fn words(self) -> u64 {
        match self {
            Draw::Normal { elements } => elements.saturating_mul(2),
            Draw::Uniform { elements } | Draw::Dropout { elements, .. } => elements,
            Draw::Attention { heads, time, tokens, .. } => {
                tokens.saturating_mul(heads as u64).saturating_mul(time as u64)
            }
        }
    }
}

struct Verifier<'g> {
    graph: &'g Graph,
    stage: Stage,
    errors: Vec<VerifyError>,
    /// By generator state and key: the first node that draws, and what it draws.
    streams: BTreeMap<(Value, u32), (NodeId, Draw)>,
}

impl<'g> Verifier<'g> {
    fn report(&mut self, line: Line, violation: Violation) {
        let (name, origin) = match line {
            Line::Node(id) => (format!("%{}", self.graph.node(id).name), self.graph.node(id).origin),
            Line::Output(i) => (format!("output {}", self.graph.outputs()[i].0), None),
            Line::Update(i) => (format!("update {}", self.graph.updates()[i].0), None),
        };
        self.errors.push(VerifyError { line, name, origin, violation });
    }

    /// The type of a value that must exist.
    fn exists(&mut self, line: Line, value: Value) -> Option<&'g TensorType> {
        let ty = self.graph.try_ty(value);
        if ty.is_none() {
            self.report(line, Violation::Dangling { node: value.node.index(), slot: value.slot });
        }
        ty
    }

    fn node(&mut self, id: NodeId) {
        let (graph, line) = (self.graph, Line::Node(id));
        let node = graph.node(id);
        let operands = graph.operands(id);
        let mut types = Vec::with_capacity(operands.len());
        for &operand in operands {
            if operand.node >= id && graph.try_ty(operand).is_some() {
                self.report(line, Violation::Order(graph.node(operand.node).name.clone()));
            }
            types.extend(self.exists(line, operand));
        }
        if node.op.first_stage() > self.stage {
            self.report(line, Violation::Stage { op: node.op.mnemonic(), stage: self.stage });
        }
        if let Op::Parameter { ty, .. } = &node.op
            && ty.dtype != DType::F32
        {
            self.report(line, Violation::ParameterType(ty.clone()));
        }
        for OutOfRange { attribute, value, range } in node.op.out_of_range() {
            self.report(line, Violation::Attribute { attribute, value, expected: range.in_words() });
        }
        if let Some(ty) = node.results.iter().find(|ty| ty.bytes() == usize::MAX) {
            self.report(line, Violation::TooLarge(ty.clone()));
        }
        if types.len() < operands.len() {
            return;
        }
        match infer(&node.op, &types) {
            Err(e) => self.report(line, Violation::Infer(e)),
            Ok(inferred) if inferred != node.results => {
                let list = |types: &[TensorType]| types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let violation = Violation::ResultTypes { stored: list(&node.results), inferred: list(&inferred) };
                self.report(line, violation);
            }
            // Only now are the operands known to be there.
            Ok(_) => self.randomness(id, operands, &types),
        }
    }

    fn randomness(&mut self, id: NodeId, operands: &[Value], types: &[&TensorType]) {
        // The generator state is always the last operand.
        let Some(&rng) = operands.last() else { return };
        for (key, draw) in draws(&self.graph.node(id).op, types) {
            if draw.words() > 1 << 32 {
                self.report(Line::Node(id), Violation::Counters(draw.words()));
            }
            let &mut (by, first) = self.streams.entry((rng, key)).or_insert((id, draw));
            let repeated = self.stage > Stage::Forward && first == draw;
            if by != id && !repeated {
                let by = self.graph.node(by).name.clone();
                self.report(Line::Node(id), Violation::SharedKey { key, by });
            }
        }
    }
}

/// The keys that an operation draws from, and what it draws.
fn draws(op: &Op, types: &[&TensorType]) -> Vec<(u32, Draw)> {
    let elements = |ty: &TensorType| ty.elements() as u64;
    let attention = |a: &AttentionAttrs, qkv: usize| {
        let draw =
            Draw::Attention { rate: a.dropout, heads: a.heads, time: a.time, tokens: types[qkv].shape[0] as u64 };
        if a.dropout.get() > 0.0 { vec![(a.key, draw)] } else { Vec::new() }
    };
    match op {
        op if !op.declaration().random => Vec::new(),
        Op::RandomNormal { key, shape } => {
            vec![(*key, Draw::Normal { elements: elements(&TensorType::f32(shape.clone())) })]
        }
        Op::RandomUniform { key, shape } => {
            vec![(*key, Draw::Uniform { elements: elements(&TensorType::f32(shape.clone())) })]
        }
        Op::Dropout { rate, key } => vec![(*key, Draw::Dropout { rate: *rate, elements: elements(types[0]) })],
        Op::Attention(a) => attention(a, 0),
        Op::AttentionGrad(a) => attention(a, 1),
        op => internal_error!("`{}` is declared to be random, but nobody knows what it draws", op.mnemonic()),
    }
}

#[cfg(test)]
mod tests;

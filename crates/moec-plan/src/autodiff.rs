//! Reverse-mode differentiation, graph to graph: the backward pass is ordinary nodes that are printed, optimised and
//! planned like the forward pass.
//!
//! Every rule is written with its formula, in the file of its family; `dy` is the gradient of the objective with respect
//! to the result, and `dx` that of an operand. Selected indices are constants.

mod attention;
mod dispatch;
mod elementwise;
mod embedding;
mod linear;
mod norm;
mod random;
mod reduction;
mod selection;
mod softmax;
mod structure;

use crate::error::PlanError;
use moec_ir::{
    Binary, Builder, DType, Family, Gradient, Graph, Invariant, Node, NodeId, Op, Output, Phase, TensorType, Value,
    internal_error,
};
use std::fmt::Display;

/// What to differentiate with respect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrt {
    /// Every parameter.
    Parameters,
    /// The float parameters, states or inputs of these names.
    Nodes(Vec<String>),
}

/// Appends the gradient of the scalar output `objective` to a copy of the graph.
///
/// For every source that `wrt` names there is a new output [`Output::Gradient`] of the source's type, zeros if the objective does
/// not depend on it. Everything else is kept. Gradient nodes are of [`Phase::Backward`], are called `grad.FORWARD_NAME.*` and carry
/// the origin of the forward node; only gradients of values between the sources and the objective are built.
///
/// # Errors
/// When there is no such scalar output or no such source, or when a path leads through an operation without a gradient:
/// those that are themselves part of a backward pass, an optimiser step or an optimised graph.
pub fn differentiate(graph: &Graph, objective: impl Display, wrt: &Wrt) -> Result<Graph, PlanError> {
    let objective = &objective.to_string();
    let target = graph.output(objective).ok_or_else(|| PlanError::NoObjective(objective.to_string()))?;
    if graph.ty(target) != &TensorType::f32([]) {
        return Err(PlanError::NotScalar { name: objective.to_string(), ty: graph.ty(target).clone() });
    }
    let sources = sources(graph, wrt)?;
    let active = active(graph, &sources);

    let mut b = Builder::extend(graph.clone());
    let phase = b.set_phase(Phase::Backward);
    let mut adjoints: Vec<Vec<Option<Value>>> =
        graph.ids().map(|id| vec![None; graph.node(id).results.len()]).collect();
    if active[target.node.index()] {
        let one =
            b.scoped("grad", |b| b.named(objective, Op::Fill { value: 1.0.into(), ty: TensorType::f32([]) }, &[]));
        adjoints[target.node.index()][usize::from(target.slot)] = Some(one);
    }

    for id in graph.ids().rev() {
        let i = id.index();
        if !active[i] || adjoints[i].iter().all(Option::is_none) {
            continue;
        }
        let node = graph.node(id);
        let operands = graph.operands(id);
        let wanted: Vec<bool> =
            operands.iter().map(|v| active[v.node.index()] && graph.ty(*v).dtype == DType::F32).collect();
        let former = b.set_origin(node.origin);
        let rule = Rule { node, id, operands, dy: &adjoints[i], wanted: &wanted };
        let gradients = b.scoped(format!("grad.{}", node.name), |b| rule.apply(b))?;
        for (position, gradient) in gradients {
            let operand = operands[position];
            if !wanted[position] {
                continue;
            }
            let slot = &mut adjoints[operand.node.index()][usize::from(operand.slot)];
            *slot = Some(match *slot {
                None => gradient,
                Some(sum) => {
                    let name = &graph.node(operand.node).name;
                    b.scoped(format!("grad.{name}"), |b| b.named("sum", Op::Binary(Binary::Add), &[sum, gradient]))
                }
            });
        }
        b.set_origin(former);
    }

    for (name, id) in sources {
        let ty = graph.node(id).results[0].clone();
        let gradient = adjoints[id.index()][0].unwrap_or_else(|| {
            b.scoped("grad", |b| b.named(&format!("{name}.zero"), Op::Fill { value: 0.0.into(), ty }, &[]))
        });
        b.output(Output::Gradient(name), gradient);
    }
    b.set_phase(phase);
    Ok(b.finish()?)
}

/// The nodes to differentiate with respect to, with their names.
fn sources(graph: &Graph, wrt: &Wrt) -> Result<Vec<(String, NodeId)>, PlanError> {
    let named = |wanted: &str| {
        graph.ids().find(|&id| match &graph.node(id).op {
            Op::Input { name, ty } | Op::Parameter { name, ty } | Op::State { name, ty, .. } => {
                name == wanted && ty.dtype == DType::F32
            }
            _ => false,
        })
    };
    match wrt {
        Wrt::Parameters => Ok(graph
            .ids()
            .filter_map(|id| match &graph.node(id).op {
                Op::Parameter { name, ty } if ty.dtype == DType::F32 => Some((name.clone(), id)),
                _ => None,
            })
            .collect()),
        Wrt::Nodes(names) => names
            .iter()
            .map(|n| named(n).map(|id| (n.clone(), id)).ok_or_else(|| PlanError::NoSource(n.clone())))
            .collect(),
    }
}

/// Which nodes depend on a source by a path of float values with a derivative that is not identically zero.
fn active(graph: &Graph, sources: &[(String, NodeId)]) -> Vec<bool> {
    let mut active = vec![false; graph.len()];
    for (_, id) in sources {
        active[id.index()] = true;
    }
    for id in graph.ids() {
        let flat = graph.node(id).op.declaration().gradient == Gradient::Zero;
        // The condition of a select is piecewise constant like a comparison.
        let skip = usize::from(graph.node(id).op == Op::Select);
        active[id.index()] |= !flat
            && graph.operands(id).iter().skip(skip).any(|v| active[v.node.index()] && graph.ty(*v).dtype == DType::F32);
    }
    active
}

/// What the gradient rule of one node is given.
struct Rule<'a> {
    node: &'a Node,
    id: NodeId,
    operands: &'a [Value],
    /// Gradient with respect to each result, if the objective depends on it.
    dy: &'a [Option<Value>],
    /// Operands whose gradient somebody needs.
    wanted: &'a [bool],
}

/// Gradients by operand position.
type Gradients = Vec<(usize, Value)>;

impl Rule<'_> {
    fn wants(&self, position: usize) -> bool {
        self.wanted[position]
    }

    fn result(&self, slot: u8) -> Value {
        Value { node: self.id, slot }
    }

    /// Gradient with respect to the first result of an operation whose other results have none: a rule is asked for only
    /// where the objective depends on one.
    fn only(&self) -> Value {
        self.dy[0].invariant("the objective depends on a result whose gradient is asked for")
    }

    fn has_none(&self, what: &str) -> PlanError {
        let (node, origin) = (self.node.name.clone(), self.node.origin);
        PlanError::NotDifferentiable { node, what: what.to_string(), origin }
    }

    /// Builds the gradients of the wanted operands.
    fn apply(&self, b: &mut Builder) -> Result<Gradients, PlanError> {
        let declared = self.node.op.declaration();
        match declared.gradient {
            Gradient::Zero => return Ok(Gradients::new()),
            Gradient::None => return Err(self.has_none(declared.mnemonic)),
            Gradient::Rule => {}
        }
        match declared.family {
            Family::Structure => structure::gradients(self, b),
            Family::Elementwise => elementwise::gradients(self, b),
            Family::Reduction => reduction::gradients(self, b),
            Family::Linear => linear::gradients(self, b),
            Family::Norm => norm::gradients(self, b),
            Family::Softmax => softmax::gradients(self, b),
            Family::Attention => attention::gradients(self, b),
            Family::Embedding => embedding::gradients(self, b),
            Family::Random => random::gradients(self, b),
            Family::Selection => selection::gradients(self, b),
            Family::Dispatch => dispatch::gradients(self, b),
            Family::Indices | Family::Optimizer => misplaced(&self.node.op),
        }
    }
}

/// An operation that is declared to have a gradient, but has no rule.
fn misplaced(op: &Op) -> ! {
    internal_error!("there is no gradient rule for `{}`", op.mnemonic())
}

fn zeros_like(b: &mut Builder, x: Value) -> Value {
    let shape = b.shape(x);
    b.fill(0.0, shape)
}

fn one_minus(b: &mut Builder, x: Value) -> Value {
    let shape = b.shape(x);
    let one = b.fill(1.0, shape);
    b.sub(one, x)
}

/// `rows [..] * x [.., M]`, the row's factor for each of its elements.
fn spread_rows(b: &mut Builder, rows: Value, x: Value) -> Value {
    let size = last_extent(b, x);
    let spread = b.broadcast_last(rows, size);
    b.mul(x, spread)
}

fn last_extent(b: &Builder, x: Value) -> usize {
    *b.ty(x).shape.last().invariant("what works on rows has a last axis")
}

fn replace_first(operands: &[Value], first: Value) -> Vec<Value> {
    std::iter::once(first).chain(operands.iter().skip(1).copied()).collect()
}

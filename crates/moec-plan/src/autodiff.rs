//! Reverse-mode differentiation, graph to graph: the backward pass is ordinary nodes that are printed, optimised and
//! planned like the forward pass.
//!
//! Every rule is written with its formula; `dy` is the gradient of the objective with respect to the result, and `dx`
//! that of an operand. Selected indices are constants.

use crate::error::PlanError;
use moec_ir::{Binary, Builder, DType, Graph, Node, NodeId, Op, Output, Phase, TensorType, Unary, Value};
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
            let Some(&operand) = operands.get(position).filter(|_| wanted[position]) else { continue };
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
        let flat = matches!(
            graph.node(id).op,
            Op::Unary(Unary::Sign) | Op::Binary(Binary::Less | Binary::LessEqual | Binary::Equal) | Op::StopGradient
        );
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
        self.wanted.get(position).copied().unwrap_or(false)
    }

    fn result(&self, slot: u8) -> Value {
        Value { node: self.id, slot }
    }

    fn none(&self, what: &str) -> Result<Gradients, PlanError> {
        Err(PlanError::NotDifferentiable {
            node: self.node.name.clone(),
            what: what.to_string(),
            origin: self.node.origin,
        })
    }

    /// Builds the gradients of the wanted operands.
    fn apply(&self, b: &mut Builder) -> Result<Gradients, PlanError> {
        let x = self.operands;
        let y = self.result(0);
        // Operations with one result only: its gradient is there, or the rule would not have been called.
        let only = self.dy.first().copied().flatten();
        let mut out = Gradients::new();
        match &self.node.op {
            // Sources have no operands; random numbers and indices are constants.
            Op::Input { .. }
            | Op::Parameter { .. }
            | Op::State { .. }
            | Op::Fill { .. }
            | Op::Ramp { .. }
            | Op::StopGradient
            | Op::ToFloat
            | Op::ToIndex { .. }
            | Op::Lookup
            | Op::Previous { .. }
            | Op::RandomNormal { .. }
            | Op::RandomUniform { .. }
            | Op::Count { .. }
            | Op::LimitCapacity { .. }
            | Op::BalancedAssignment
            | Op::SortByExpert { .. } => {}

            // dx = dy in the old shape
            Op::Reshape { .. } => {
                if let Some(dy) = only {
                    let shape = b.shape(x[0]);
                    out.push((0, b.reshape(dy, shape)));
                }
            }
            // dx = sum of dy over the axes that were repeated
            Op::Broadcast { .. } => {
                if let Some(dy) = only {
                    let (from, to) = (b.shape(x[0]), b.shape(y));
                    let lead = to.len() - from.len();
                    let axes: Vec<usize> =
                        (0..to.len()).filter(|&a| a < lead || (from[a - lead] == 1 && to[a] != 1)).collect();
                    let sum = if axes.is_empty() { dy } else { b.sum(dy, &axes) };
                    out.push((0, b.reshape(sum, from)));
                }
            }
            // dx is dy with every axis back in its place
            Op::Permute { axes } => {
                if let Some(dy) = only {
                    let mut back = vec![0; axes.len()];
                    for (i, &axis) in axes.iter().enumerate() {
                        back[axis] = i;
                    }
                    out.push((0, b.permute(dy, &back)));
                }
            }
            Op::Unary(f) => {
                if let Some(dy) = only {
                    out.extend(unary(b, *f, x[0], y, dy).map(|dx| (0, dx)));
                }
            }
            Op::Binary(f) => {
                if let Some(dy) = only {
                    self.binary(b, *f, dy, &mut out);
                }
            }
            // da = c ? dy : 0, db = c ? 0 : dy; the condition is a constant
            Op::Select => {
                if let Some(dy) = only {
                    let zero = zeros_like(b, dy);
                    if self.wants(1) {
                        out.push((1, b.select(x[0], dy, zero)));
                    }
                    if self.wants(2) {
                        out.push((2, b.select(x[0], zero, dy)));
                    }
                }
            }
            // dx[.., i, ..] = dy[..] for every i of a removed axis
            Op::Sum { axes } => {
                if let Some(dy) = only {
                    let shape = b.shape(x[0]);
                    let kept = shape.iter().enumerate().map(|(a, &d)| if axes.contains(&a) { 1 } else { d });
                    let dy = b.reshape(dy, kept.collect::<Vec<_>>());
                    out.push((0, b.broadcast(dy, shape)));
                }
            }
            // dx = 2 dy x
            Op::SumOfSquares => {
                if let Some(dy) = only {
                    let twice = b.scale(dy, 2.0);
                    for (i, &operand) in x.iter().enumerate().filter(|&(i, _)| self.wants(i)) {
                        out.push((i, b.mul(operand, twice)));
                    }
                }
            }
            Op::MatMul { transpose_a, transpose_b, bias } => {
                if let Some(dy) = only {
                    self.matmul(b, (*transpose_a, *transpose_b, *bias), dy, &mut out);
                }
            }
            Op::GroupedMatMul { transpose_b, bias } => {
                if let Some(dy) = only {
                    let (input, weights, offsets) = (x[0], x[1], x[2]);
                    // dx of a row = dy Wᵀ of the row's expert
                    if self.wants(0) {
                        let op = Op::GroupedMatMul { transpose_b: !transpose_b, bias: false };
                        out.push((0, b.op(op, &[dy, weights, offsets])));
                    }
                    // dW[e] = dyᵀ x of the expert's rows when stored [O, I], xᵀ dy when stored [I, O]
                    if self.wants(1) {
                        let (left, right) = if *transpose_b { (dy, input) } else { (input, dy) };
                        out.push((1, b.op(Op::GroupedMatMulWeightGrad, &[left, right, offsets])));
                    }
                    // dbias[e] = sum of the expert's rows of dy
                    if *bias && self.wants(3) {
                        out.push((3, b.op(Op::GroupedSum, &[dy, offsets])));
                    }
                }
            }
            // w[e] = aᵀ c of the expert's rows, so of a row: da = dw c and dc = dwᵀ a with the expert's dw
            Op::GroupedMatMulWeightGrad => {
                if let (Some(dw), &[left, right, offsets]) = (only, x) {
                    let product = |transpose_b| Op::GroupedMatMul { transpose_b, bias: false };
                    if self.wants(0) {
                        out.push((0, b.op(product(true), &[right, dw, offsets])));
                    }
                    if self.wants(1) {
                        out.push((1, b.op(product(false), &[left, dw, offsets])));
                    }
                }
            }
            // dx[r] = dy[expert of row r], 0 for rows of no expert: the bias of a grouped product with zeros
            Op::GroupedSum => {
                if let (Some(dy), &[rows, width], &[experts, _]) = (only, &b.shape(x[0])[..], &b.shape(y)[..]) {
                    let (zero_rows, zero_weights) = (b.fill(0.0, [rows, 1]), b.fill(0.0, [experts, 1, width]));
                    let op = Op::GroupedMatMul { transpose_b: false, bias: true };
                    out.push((0, b.op(op, &[zero_rows, zero_weights, x[1], dy])));
                }
            }
            // Ba et al. 2016; the statistics of the forward pass are reused
            Op::LayerNorm { .. } => {
                if let Some(dy) = only {
                    let dx = b.op(Op::LayerNormGrad, &[dy, x[0], x[1], self.result(1), self.result(2)]);
                    out.extend([(0, dx), (1, dx.result(1)), (2, dx.result(2))]);
                }
                // dmean/dx = 1 / C
                if let Some(dmean) = self.dy[1] {
                    let width = last_extent(b, x[0]);
                    let share = b.scale(dmean, 1.0 / width.max(1) as f64);
                    let spread = b.broadcast_last(share, width);
                    let shape = b.shape(x[0]);
                    out.push((0, b.reshape(spread, shape)));
                }
                if let Some(drstd) = self.dy[2] {
                    out.push((0, self.rstd(b, drstd, Some(self.result(1)), self.result(2))));
                }
            }
            Op::RmsNorm { .. } => {
                if let Some(dy) = only {
                    let dx = b.op(Op::RmsNormGrad, &[dy, x[0], x[1], self.result(1)]);
                    out.extend([(0, dx), (1, dx.result(1))]);
                }
                if let Some(drstd) = self.dy[1] {
                    out.push((0, self.rstd(b, drstd, None, self.result(1))));
                }
            }
            // dx = y (dy - sum dy y)
            Op::Softmax => {
                if let Some(dy) = only {
                    out.push((0, b.op(Op::SoftmaxGrad, &[dy, y])));
                }
            }
            // dx = dy softmax(x)
            Op::LogSumExp => {
                if let Some(dy) = only {
                    let p = b.softmax(x[0]);
                    out.push((0, spread_rows(b, dy, p)));
                }
            }
            // Probabilities are recomputed from the log-sum-exp; the dropout mask from its key
            Op::Attention(attrs) => {
                if self.dy[1].is_some() {
                    return self.none("the log-sum-exp of attention");
                }
                if let Some(dy) = only {
                    let mut operands = vec![dy, x[0], y, self.result(1)];
                    operands.extend(x.get(1));
                    out.push((0, b.op(Op::AttentionGrad(*attrs), &operands)));
                }
            }
            // The rotation is orthogonal: dx is dy rotated back
            Op::Rotary { heads, time, base, inverse, positions } => {
                if let Some(dy) = only {
                    let (heads, time, base, positions) = (*heads, *time, *base, *positions);
                    let op = Op::Rotary { heads, time, base, inverse: !inverse, positions };
                    out.push((0, b.op(op, &replace_first(x, dy))));
                }
            }
            // dtable[v] = sum of dy[n] over tokens with ids[n] = v
            Op::Embed => {
                if let (Some(dy), Some(&rows)) = (only, b.shape(x[1]).first()) {
                    out.push((1, b.op(Op::EmbedGrad { rows }, &[x[0], dy])));
                }
            }
            // dlogits = (softmax - onehot) dloss / N, plus softmax dlse when the log-sum-exp is used by itself
            Op::CrossEntropy => {
                let mut sum = None;
                if let Some(dloss) = only {
                    sum = Some(b.op(Op::CrossEntropyGrad, &[dloss, x[0], self.result(1), x[1]]));
                }
                if let Some(dlse) = self.dy[1] {
                    let p = b.softmax(x[0]);
                    let part = spread_rows(b, dlse, p);
                    sum = Some(sum.map_or(part, |s| b.add(s, part)));
                }
                out.extend(sum.map(|dx| (0, dx)));
            }
            // The same mask and factor apply to dy
            Op::Dropout { rate, key } => {
                if let Some(dy) = only {
                    out.push((0, b.op(Op::Dropout { rate: *rate, key: *key }, &[dy, x[1]])));
                }
            }
            // dx is dy at the selected places, 0 elsewhere
            Op::TopK { .. } => {
                if let (Some(dy), &[_, size]) = (only, &b.shape(x[0])[..]) {
                    out.push((0, b.scatter_last(dy, self.result(1), size)));
                }
            }
            // dx[n, i] = sum of dy[n, k] over k with indices[n, k] = i
            Op::GatherLast => {
                if let (Some(dy), &[_, size]) = (only, &b.shape(x[0])[..]) {
                    out.push((0, b.scatter_last(dy, x[1], size)));
                }
            }
            // dvalues[n, k] = dy[n, indices[n, k]]
            Op::ScatterLast { .. } => {
                if let Some(dy) = only {
                    out.push((0, b.gather_last(dy, x[1])));
                }
            }
            // y[r] = w[slot] x[token]: dx sums the rows of a token back, dw[slot] = <x[token], dy[r]>
            Op::Dispatch { weighted } => {
                if let Some(dy) = only {
                    if self.wants(0) {
                        let operands = replace_first(x, dy);
                        out.push((0, b.op(Op::Combine { weighted: *weighted }, &operands)));
                    }
                    if *weighted && self.wants(3) {
                        out.push((3, b.op(Op::CombineWeightGrad, &[x[0], dy, x[2]])));
                    }
                }
            }
            // z[token] = sum of w[slot] y[r]: dy sends dz out to the rows, dw[slot] = <dz[token], y[r]>
            Op::Combine { weighted } => {
                if let Some(dz) = only {
                    if self.wants(0) {
                        let operands = replace_first(x, dz);
                        out.push((0, b.op(Op::Dispatch { weighted: *weighted }, &operands)));
                    }
                    if *weighted && self.wants(3) {
                        out.push((3, b.op(Op::CombineWeightGrad, &[dz, x[0], x[2]])));
                    }
                }
            }

            // Parts of a backward pass, of an optimised graph, of the optimiser or of sampling
            Op::Fused(_)
            | Op::CachedAttention { .. }
            | Op::FusedAfter { .. }
            | Op::ProductWithSums(_)
            | Op::DispatchedProduct(_)
            | Op::LayerNormGrad
            | Op::RmsNormGrad
            | Op::SoftmaxGrad
            | Op::AttentionGrad(_)
            | Op::EmbedGrad { .. }
            | Op::CrossEntropyGrad
            | Op::FusedCrossEntropy { .. }
            | Op::CombineWeightGrad
            | Op::AdamW(_) => return self.none(self.node.op.mnemonic()),
        }
        Ok(out)
    }

    /// Gradient through `rstd = (mean of (x - mean)^2 + epsilon)^(-1/2)`: drstd/dx = -rstd^3 (x - mean) / C.
    fn rstd(&self, b: &mut Builder, drstd: Value, mean: Option<Value>, rstd: Value) -> Value {
        let x = self.operands[0];
        let (shape, width) = (b.shape(x), last_extent(b, x));
        let square = b.mul(rstd, rstd);
        let cube = b.mul(square, rstd);
        let slope = b.mul(drstd, cube);
        let slope = b.scale(slope, -1.0 / width.max(1) as f64);
        let slope = b.broadcast_last(slope, width);
        let slope = b.reshape(slope, shape.clone());
        let centred = match mean {
            Some(mean) => {
                let mean = b.broadcast_last(mean, width);
                let mean = b.reshape(mean, shape);
                b.sub(x, mean)
            }
            None => x,
        };
        b.mul(slope, centred)
    }

    fn binary(&self, b: &mut Builder, f: Binary, dy: Value, out: &mut Gradients) {
        let (a, c) = (self.operands[0], self.operands[1]);
        match f {
            // da = dy, dc = dy
            Binary::Add => out.extend([(0, dy), (1, dy)]),
            // da = dy, dc = -dy
            Binary::Sub => {
                out.push((0, dy));
                if self.wants(1) {
                    out.push((1, b.unary(Unary::Neg, dy)));
                }
            }
            // da = dy c, dc = dy a
            Binary::Mul => {
                if self.wants(0) {
                    out.push((0, b.mul(dy, c)));
                }
                if self.wants(1) {
                    out.push((1, b.mul(dy, a)));
                }
            }
            // da = dy / c, dc = -(dy / c) y
            Binary::Div => {
                let da = b.div(dy, c);
                out.push((0, da));
                if self.wants(1) {
                    let negative = b.mul(da, self.result(0));
                    out.push((1, b.unary(Unary::Neg, negative)));
                }
            }
            // da = dy where a >= c (max) or a <= c (min), dc = dy elsewhere: a tie goes to a
            Binary::Max | Binary::Min => {
                let first = if f == Binary::Max {
                    b.binary(Binary::LessEqual, c, a)
                } else {
                    b.binary(Binary::LessEqual, a, c)
                };
                let zero = zeros_like(b, dy);
                if self.wants(0) {
                    out.push((0, b.select(first, dy, zero)));
                }
                if self.wants(1) {
                    out.push((1, b.select(first, zero, dy)));
                }
            }
            // Comparisons are piecewise constant
            Binary::Less | Binary::LessEqual | Binary::Equal => {}
        }
    }

    /// With A and B the factors as multiplied: dA = dy Bᵀ, dB = Aᵀ dy, each written so that it comes out as stored.
    fn matmul(&self, b: &mut Builder, (ta, tb, bias): (bool, bool, bool), dy: Value, out: &mut Gradients) {
        let (left, right) = (self.operands[0], self.operands[1]);
        let product = |transpose_a, transpose_b| Op::MatMul { transpose_a, transpose_b, bias: false };
        if self.wants(0) {
            let da = if ta { b.op(product(tb, true), &[right, dy]) } else { b.op(product(false, !tb), &[dy, right]) };
            out.push((0, da));
        }
        if self.wants(1) {
            let db = if tb { b.op(product(true, ta), &[dy, left]) } else { b.op(product(!ta, false), &[left, dy]) };
            out.push((1, db));
        }
        // dbias = sum of the rows of dy
        if bias && self.wants(2) {
            out.push((2, b.sum(dy, &[0])));
        }
    }
}

/// Gradient of an elementwise function; `None` where it is zero everywhere.
fn unary(b: &mut Builder, f: Unary, x: Value, y: Value, dy: Value) -> Option<Value> {
    Some(match f {
        // -dy
        Unary::Neg => b.unary(Unary::Neg, dy),
        // dy y
        Unary::Exp => b.mul(dy, y),
        // dy / x
        Unary::Log => b.div(dy, x),
        // dy / (2 y)
        Unary::Sqrt => {
            let half = b.scale(dy, 0.5);
            b.div(half, y)
        }
        // -dy y^2
        Unary::Recip => {
            let square = b.mul(y, y);
            let product = b.mul(dy, square);
            b.unary(Unary::Neg, product)
        }
        // dy sign(x), 0 at 0
        Unary::Abs => {
            let sign = b.unary(Unary::Sign, x);
            b.mul(dy, sign)
        }
        // 0
        Unary::Sign => return None,
        // dy (1 - y^2)
        Unary::Tanh => {
            let square = b.mul(y, y);
            let rest = one_minus(b, square);
            b.mul(dy, rest)
        }
        // dy y (1 - y)
        Unary::Sigmoid => {
            let rest = one_minus(b, y);
            let slope = b.mul(y, rest);
            b.mul(dy, slope)
        }
        // dy where x > 0, which is where y is not 0: the input need not be kept
        Unary::Relu => {
            let zero = zeros_like(b, dy);
            b.select(y, dy, zero)
        }
        // dy sigmoid(x)
        Unary::Softplus => {
            let slope = b.unary(Unary::Sigmoid, x);
            b.mul(dy, slope)
        }
        // dy e^(-x^2 / 2) / sqrt(2 pi)
        Unary::NormalCdf => {
            let square = b.mul(x, x);
            let exponent = b.scale(square, -0.5);
            let bell = b.unary(Unary::Exp, exponent);
            let density = b.scale(bell, 1.0 / (2.0 * std::f64::consts::PI).sqrt());
            b.mul(dy, density)
        }
    })
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
    b.ty(x).shape.last().copied().unwrap_or(1)
}

fn replace_first(operands: &[Value], first: Value) -> Vec<Value> {
    std::iter::once(first).chain(operands.iter().skip(1).copied()).collect()
}

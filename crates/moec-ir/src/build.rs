//! Building a graph by hand: what lowering, gradient rules and routing strategies write.

use crate::function::{Binary, Unary};
use crate::graph::{Graph, GraphError};
use crate::ids::{Origin, Value};
use crate::infer::InferError;
use crate::internal::Invariant;
use crate::internal_error;
use crate::op::{AttentionAttrs, CapacityPriority, Op};
use crate::precision::Precision;
use crate::purpose::{Phase, StateRole};
use crate::types::{DType, TensorType};
use std::fmt::Display;

/// Appends operations to a graph.
///
/// Every method returns a [`Value`], also when its operands do not fit: the first error is kept and given by
/// [`Builder::finish`], so that code that builds graphs reads like the mathematics. Names are prefixed by the scopes
/// that are open (`blocks.3.moe`), and the current [`Origin`] is attached to every node.
#[derive(Debug, Default)]
pub struct Builder {
    graph: Graph,
    scope: Vec<String>,
    origin: Option<Origin>,
    error: Option<GraphError>,
    keys: u32,
}

impl Builder {
    /// A builder of an empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Continues a graph, for passes that append to it.
    pub fn extend(graph: Graph) -> Self {
        Self { graph, ..Self::default() }
    }

    /// Ends building.
    ///
    /// # Errors
    /// The first operation that did not fit its operands.
    pub fn finish(self) -> Result<Graph, GraphError> {
        match self.error {
            Some(e) => Err(e),
            None => Ok(self.graph),
        }
    }

    /// The graph as built so far.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The first error so far.
    pub fn error(&self) -> Option<&GraphError> {
        self.error.as_ref()
    }

    /// Runs `f` with `name` appended to the scope of names.
    pub fn scoped<T>(&mut self, name: impl Into<String>, f: impl FnOnce(&mut Self) -> T) -> T {
        self.enter(name);
        let result = f(self);
        self.leave();
        result
    }

    /// Appends `name` to the scope of names, until [`Self::leave`]: for whoever has the builder as a part.
    pub fn enter(&mut self, name: impl Into<String>) {
        self.scope.push(name.into());
    }

    /// Ends the scope entered last.
    pub fn leave(&mut self) {
        self.scope.pop().invariant("a scope is left once for each time that one is entered");
    }

    /// The current scope with `name` appended: `blocks.3.moe.name`.
    pub fn path(&self, name: &str) -> String {
        let mut path = self.scope.join(".");
        if !path.is_empty() && !name.is_empty() {
            path.push('.');
        }
        path + name
    }

    /// Sets the origin of the nodes added from here on and returns the former one.
    pub fn set_origin(&mut self, origin: Option<Origin>) -> Option<Origin> {
        std::mem::replace(&mut self.origin, origin)
    }

    /// Sets the phase of the nodes added from here on and returns the former one.
    pub fn set_phase(&mut self, phase: Phase) -> Phase {
        self.graph.set_phase(phase)
    }

    /// A fresh key for a random node: streams of different nodes never coincide.
    pub fn fresh_key(&mut self) -> u32 {
        self.keys += 1;
        self.keys
    }

    /// Type of a value.
    pub fn ty(&self, value: Value) -> &TensorType {
        // After an error a value may stand for a result that does not exist.
        static SCALAR: TensorType = TensorType { dtype: DType::F32, shape: Vec::new() };
        match (self.graph.try_ty(value), &self.error) {
            (Some(ty), _) => ty,
            (None, Some(_)) => &SCALAR,
            (None, None) => internal_error!("a builder is asked for a value that its graph does not have"),
        }
    }

    /// Shape of a value.
    pub fn shape(&self, value: Value) -> Vec<usize> {
        self.ty(value).shape.clone()
    }

    /// Extent of an axis of a value; 1 after an error, when a value may stand for a result that does not exist.
    pub fn extent(&self, value: Value, axis: usize) -> usize {
        match self.ty(value).shape.get(axis) {
            Some(&extent) => extent,
            None if self.error.is_some() => 1,
            None => internal_error!("a value of type {} has no axis {axis}", self.ty(value)),
        }
    }

    /// Extent of the last axis of a value; 1 after an error, as for [`Self::extent`].
    pub fn columns(&self, value: Value) -> usize {
        match self.ty(value).shape.len() {
            0 => self.extent(value, 0),
            axes => self.extent(value, axes - 1),
        }
    }

    /// Appends an operation under a name within the current scope; result 0 is returned, further results are
    /// `value.result(1)` and so on.
    pub fn named(&mut self, name: &str, op: Op, operands: &[Value]) -> Value {
        let path = self.path(if name.is_empty() { op.mnemonic() } else { name });
        match self.graph.add(op, operands, &path, self.origin) {
            Ok(id) => self.graph.value(id),
            Err(e) => self.failed(e),
        }
    }

    /// Appends an operation named after itself.
    pub fn op(&mut self, op: Op, operands: &[Value]) -> Value {
        self.named("", op, operands)
    }

    /// A method of the builder was given what does not fit.
    fn refused(&mut self, op: &'static str, message: &str) -> Value {
        let error = InferError::Mismatch { op, message: message.into() };
        self.failed(GraphError { name: self.path(op), origin: self.origin, error })
    }

    /// Keeps the error, and stands for the result of what did not fit; it is never seen because `finish` fails.
    fn failed(&mut self, error: GraphError) -> Value {
        self.error.get_or_insert(error);
        let ty = TensorType::f32([]);
        let poison = self.graph.add(Op::Fill { value: f64::NAN.into(), ty }, &[], "poison", None);
        self.graph.value(poison.invariant("a constant fits everywhere"))
    }

    /// Declares a named output of the graph.
    pub fn output(&mut self, name: impl Into<String>, value: Value) {
        self.graph.set_output(name, value);
    }

    /// Declares the value that a state or parameter takes after a run.
    pub fn update(&mut self, name: impl Into<String>, value: Value) {
        self.graph.set_update(name, value);
    }

    /// An input of a run. The name is taken as it is, without the scope.
    pub fn input(&mut self, name: impl Display, ty: TensorType) -> Value {
        let name = name.to_string();
        self.source(&name, Op::Input { name: name.clone(), ty })
    }

    /// A trained tensor named by the scope and `name`.
    pub fn parameter(&mut self, name: &str, shape: impl Into<Vec<usize>>) -> Value {
        let path = self.path(name);
        let op = Op::Parameter { name: path.clone(), ty: TensorType::f32(shape) };
        self.source(&path, op)
    }

    /// A tensor that a router keeps and that is not trained, named by the scope and `name`.
    pub fn state(&mut self, name: &str, ty: TensorType) -> Value {
        let path = self.path(name);
        let op = Op::State { name: path.clone(), role: StateRole::Router, ty };
        self.source(&path, op)
    }

    /// A tensor that persists and is not trained, for whatever purpose. The name is taken as it is, without the scope.
    pub fn state_for(&mut self, role: StateRole, name: &str, ty: TensorType) -> Value {
        self.source(name, Op::State { name: name.into(), role, ty })
    }

    /// One node per input, parameter or state name.
    fn source(&mut self, path: &str, op: Op) -> Value {
        if let Some(id) = self.graph.find(path)
            && self.graph.node(id).op == op
        {
            return self.graph.value(id);
        }
        match self.graph.add(op, &[], path, self.origin) {
            Ok(id) => self.graph.value(id),
            Err(e) => self.failed(e),
        }
    }

    // ---- elementwise ----

    /// A tensor filled with one value.
    pub fn fill(&mut self, value: f64, shape: impl Into<Vec<usize>>) -> Value {
        self.op(Op::Fill { value: value.into(), ty: TensorType::f32(shape) }, &[])
    }

    /// The same elements under another shape.
    pub fn reshape(&mut self, x: Value, shape: impl Into<Vec<usize>>) -> Value {
        let shape = shape.into();
        if self.ty(x).shape == shape {
            return x;
        }
        self.op(Op::Reshape { shape }, &[x])
    }

    /// Repeats axes of extent 1 and missing leading axes.
    pub fn broadcast(&mut self, x: Value, shape: impl Into<Vec<usize>>) -> Value {
        let shape = shape.into();
        if self.ty(x).shape == shape {
            return x;
        }
        self.op(Op::Broadcast { shape }, &[x])
    }

    /// Repeats the elements of `x [s]` along a new last axis: `[s, size]`.
    pub fn broadcast_last(&mut self, x: Value, size: usize) -> Value {
        let shape = self.shape(x);
        let x = self.reshape(x, [&shape[..], &[1]].concat());
        self.broadcast(x, [&shape[..], &[size]].concat())
    }

    /// The elements with their axes in another order: axis `i` of the result is axis `axes[i]` of `x`.
    pub fn permute(&mut self, x: Value, axes: &[usize]) -> Value {
        self.op(Op::Permute { axes: axes.to_vec() }, &[x])
    }

    /// The transposed matrix.
    pub fn transpose(&mut self, x: Value) -> Value {
        self.permute(x, &[1, 0])
    }

    /// The same values, as constants to the gradient.
    pub fn stop_gradient(&mut self, x: Value) -> Value {
        self.op(Op::StopGradient, &[x])
    }

    /// A function of one operand.
    pub fn unary(&mut self, f: Unary, x: Value) -> Value {
        self.op(Op::Unary(f), &[x])
    }

    /// A function of two operands; the one with fewer elements is broadcast to the shape of the other.
    pub fn binary(&mut self, f: Binary, a: Value, b: Value) -> Value {
        let (sa, sb) = (self.ty(a).clone(), self.ty(b).clone());
        let (a, b) = if sa.shape == sb.shape {
            (a, b)
        } else if (sa.elements(), sa.rank()) < (sb.elements(), sb.rank()) {
            (self.broadcast(a, sb.shape), b)
        } else {
            (a, self.broadcast(b, sa.shape))
        };
        self.op(Op::Binary(f), &[a, b])
    }

    /// `a + b`
    pub fn add(&mut self, a: Value, b: Value) -> Value {
        self.binary(Binary::Add, a, b)
    }

    /// `a - b`
    pub fn sub(&mut self, a: Value, b: Value) -> Value {
        self.binary(Binary::Sub, a, b)
    }

    /// `a * b`
    pub fn mul(&mut self, a: Value, b: Value) -> Value {
        self.binary(Binary::Mul, a, b)
    }

    /// `a / b`
    pub fn div(&mut self, a: Value, b: Value) -> Value {
        self.binary(Binary::Div, a, b)
    }

    /// `x * factor`
    pub fn scale(&mut self, x: Value, factor: f64) -> Value {
        if factor == 1.0 {
            return x;
        }
        let factor = self.fill(factor, []);
        self.mul(x, factor)
    }

    /// `x + term`
    pub fn add_scalar(&mut self, x: Value, term: f64) -> Value {
        let term = self.fill(term, []);
        self.add(x, term)
    }

    /// `a` where `condition` is not 0, else `b`.
    pub fn select(&mut self, condition: Value, a: Value, b: Value) -> Value {
        self.op(Op::Select, &[condition, a, b])
    }

    // ---- indices ----

    /// `[0, step, 2 step, ..]`, integers.
    pub fn ramp(&mut self, length: usize, step: i32) -> Value {
        self.op(Op::Ramp { length, step }, &[])
    }

    /// Integers as floats, exact below 2^24.
    pub fn to_float(&mut self, x: Value) -> Value {
        self.op(Op::ToFloat, &[x])
    }

    /// The whole part where it is one of `0..size`, else -1.
    pub fn to_index(&mut self, x: Value, size: usize) -> Value {
        self.op(Op::ToIndex { size }, &[x])
    }

    /// The columns of `x [N, E]` that are not 0: column `e` itself where `x[n, e] != 0` (or NaN), else -1.
    pub fn nonzero(&mut self, x: Value) -> Value {
        let shape = self.shape(x);
        let Some(&size) = shape.last() else {
            return self.refused("nonzero", "operand 0 must have at least one axis");
        };
        let (zero, none) = (self.fill(0.0, shape.clone()), self.fill(-1.0, shape.clone()));
        let is_zero = self.binary(Binary::Equal, x, zero);
        let columns = self.ramp(size, 1);
        let columns = self.to_float(columns);
        let columns = self.broadcast(columns, shape);
        let chosen = self.select(is_zero, none, columns);
        self.to_index(chosen, size)
    }

    /// `table[id]` for every id, -1 where the id is not in the table.
    pub fn lookup(&mut self, ids: Value, table: Value) -> Value {
        self.op(Op::Lookup, &[ids, table])
    }

    /// The id of the token before in the same sequence of length `time`, -1 for the first.
    pub fn previous(&mut self, ids: Value, time: usize) -> Value {
        self.op(Op::Previous { time }, &[ids])
    }

    // ---- reduction ----

    /// Sum over the given axes, which are removed.
    pub fn sum(&mut self, x: Value, axes: &[usize]) -> Value {
        self.op(Op::Sum { axes: axes.to_vec() }, &[x])
    }

    /// Sum of all elements; a scalar stays.
    pub fn sum_all(&mut self, x: Value) -> Value {
        let axes: Vec<usize> = (0..self.ty(x).rank()).collect();
        if axes.is_empty() { x } else { self.sum(x, &axes) }
    }

    /// The sum of the elements along an axis up to each, itself included.
    pub fn cumsum(&mut self, x: Value, axis: usize) -> Value {
        self.op(Op::CumulativeSum { axis, exclusive: false, reverse: false }, &[x])
    }

    /// Mean of all elements.
    pub fn mean_all(&mut self, x: Value) -> Value {
        let n = self.ty(x).elements().max(1);
        let sum = self.sum_all(x);
        self.scale(sum, 1.0 / n as f64)
    }

    /// Mean over the given axes.
    pub fn mean(&mut self, x: Value, axes: &[usize]) -> Value {
        let shape = self.shape(x);
        let n: usize = axes.iter().filter_map(|&a| shape.get(a)).product();
        let sum = self.sum(x, axes);
        self.scale(sum, 1.0 / n.max(1) as f64)
    }

    // ---- linear ----

    /// `a b`
    pub fn matmul(&mut self, a: Value, b: Value) -> Value {
        self.op(Op::MatMul { transpose_a: false, transpose_b: false, bias: false, precision: Precision::F32 }, &[a, b])
    }

    /// `x wᵀ (+ bias)` for weights stored `[out, in]`.
    pub fn linear(&mut self, x: Value, weight: Value, bias: Option<Value>) -> Value {
        self.linear_in(Precision::F32, x, weight, bias)
    }

    /// As [`Self::linear`], of operands that are rounded to a precision.
    pub fn linear_in(&mut self, precision: Precision, x: Value, weight: Value, bias: Option<Value>) -> Value {
        let mut operands = vec![x, weight];
        operands.extend(bias);
        self.op(Op::MatMul { transpose_a: false, transpose_b: true, bias: bias.is_some(), precision }, &operands)
    }

    // ---- softmax family ----

    /// Softmax over the last axis.
    pub fn softmax(&mut self, x: Value) -> Value {
        self.op(Op::Softmax, &[x])
    }

    /// `ln sum e^x` over the last axis.
    pub fn log_sum_exp(&mut self, x: Value) -> Value {
        self.op(Op::LogSumExp, &[x])
    }

    /// Causal self-attention of `qkv [N, 3C]`, with `sinks [H]` if the attributes say so; see [`AttentionAttrs`].
    pub fn attention(&mut self, attrs: AttentionAttrs, qkv: Value, rng: Option<Value>, sinks: Option<Value>) -> Value {
        let mut operands = vec![qkv];
        operands.extend(sinks);
        operands.extend(rng.filter(|_| attrs.dropout.get() > 0.0));
        self.op(Op::Attention(attrs), &operands)
    }

    // ---- selection ----

    /// The k largest of each row, decreasing, ties to the lower index: `(values, indices)`.
    pub fn top_k(&mut self, x: Value, k: usize) -> (Value, Value) {
        let values = self.op(Op::TopK { k, skip: 0 }, &[x]);
        (values, values.result(1))
    }

    /// The k-th largest of each row of `x [N, E]`, `[N, 1]`.
    pub fn kth_largest(&mut self, x: Value, k: usize) -> Value {
        self.op(Op::TopK { k, skip: k.saturating_sub(1) }, &[x])
    }

    /// `x [N, E]` at `indices [N, K]`.
    pub fn gather_last(&mut self, x: Value, indices: Value) -> Value {
        self.op(Op::GatherLast, &[x, indices])
    }

    /// Dense `[N, size]` from `values [N, K]` at `indices [N, K]`.
    pub fn scatter_last(&mut self, values: Value, indices: Value, size: usize) -> Value {
        self.op(Op::ScatterLast { size }, &[values, indices])
    }

    /// How often each of `size` indices occurs.
    pub fn count(&mut self, indices: Value, size: usize) -> Value {
        self.op(Op::Count { size }, &[indices])
    }

    /// One expert per token, `i32[N, 1]`, with balanced loads and a large sum of `scores [N, E]`; see
    /// [`Op::BalancedAssignment`].
    pub fn balanced_assignment(&mut self, scores: Value) -> Value {
        self.op(Op::BalancedAssignment, &[scores])
    }

    /// Drops what an expert has beyond its capacity; `weights [N, K]` decide only with
    /// [`CapacityPriority::Probability`].
    pub fn limit_capacity(
        &mut self,
        chosen: Value,
        weights: Value,
        experts: usize,
        capacity: usize,
        priority: CapacityPriority,
    ) -> Value {
        let operands = match priority {
            CapacityPriority::Token | CapacityPriority::Choice => vec![chosen],
            CapacityPriority::Probability => vec![chosen, weights],
        };
        self.op(Op::LimitCapacity { experts, capacity, priority }, &operands)
    }

    /// Dropout; a rate of 0 is the identity.
    pub fn dropout(&mut self, x: Value, rate: f64, rng: Value) -> Value {
        if rate <= 0.0 {
            return x;
        }
        let key = self.fresh_key();
        self.op(Op::Dropout { rate: rate.into(), key }, &[x, rng])
    }
}

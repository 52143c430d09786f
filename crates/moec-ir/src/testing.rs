//! Random graphs for property tests, under the feature `testing`.
//!
//! [`samples`] is a proptest strategy of whole forward graphs with values for their inputs, made for properties such as
//! "the optimised graph evaluates like the graph":
//!
//! ```
//! # use moec_ir::{testing, verify, Stage};
//! # use proptest::prelude::*;
//! proptest!(|(sample in testing::samples())| {
//!     prop_assert!(verify(&sample.graph, Stage::Forward).is_ok());
//! });
//! ```
//!
//! A graph is built from a list of steps, each of four bytes that choose an operation and its operands among the values
//! so far; proptest shrinks a failure to few steps. What the graphs are rich in on purpose: identities (`x * 1`,
//! `- - x`, reshapes back), repeated operations, foldable constants, values that nobody reads, broadcasts in every
//! direction, ties, and mixtures of experts with dropped slots and empty experts. What they avoid: infinities, NaN and
//! magnitudes above [`LARGEST`], so that results can be compared with a tolerance.

use crate::build::Builder;
use crate::function::{Binary, Unary};
use crate::graph::Graph;
use crate::ids::Value;
use crate::internal::Invariant;
use crate::op::{AttentionAttrs, CapacityPriority, Op};
use crate::precision::Precision;
use crate::random;
use crate::tensor::{Data, Tensor};
use crate::text;
use crate::types::{DType, TensorType};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fmt;

/// Values of sample graphs stay below this by construction.
pub const LARGEST: f64 = 1e4;

/// A random graph with values for its inputs, parameters and states.
#[derive(Clone)]
pub struct Sample {
    /// A forward graph with outputs `o0`, `o1`, .., the scalar `objective` (a weighted sum of everything that the
    /// outputs depend on smoothly or not), and perhaps an update of the state `s`.
    pub graph: Graph,
    /// A value for every name, see [`bindings`].
    pub bindings: BTreeMap<String, Tensor>,
}

impl fmt::Debug for Sample {
    /// The listing: what a failed property should show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::print(&self.graph))
    }
}

/// Random forward graphs of up to 24 steps on small awkward shapes.
pub fn samples() -> impl Strategy<Value = Sample> {
    let sizes = (0usize..6, 0usize..5, any::<u32>());
    (sizes, prop::collection::vec(any::<[u8; 4]>(), 1..24)).prop_map(|((tokens, width, seed), steps)| {
        let tokens = [1, 2, 3, 5, 7, 17][tokens];
        let width = [1, 2, 3, 4, 7][width];
        let mut growth = Growth::new(tokens, width);
        for step in steps {
            growth.step(step);
        }
        let graph = growth.finish(seed);
        let bindings = bindings(&graph, seed);
        Sample { graph, bindings }
    })
}

/// Values for all inputs, parameters and states of a graph, the same for the same seed: floats are standard normal,
/// `rng` is a generator state, `hyper` a plausible learning rate with corrections, and other integers are valid for the
/// embeddings and losses that read them.
pub fn bindings(graph: &Graph, seed: u32) -> BTreeMap<String, Tensor> {
    let mut values = BTreeMap::new();
    for id in graph.ids() {
        let (Op::Input { name, ty } | Op::Parameter { name, ty } | Op::State { name, ty, .. }) = &graph.node(id).op
        else {
            continue;
        };
        let keys = random::keys(random::state(u64::from(seed), 0), id.index() as u32);
        let n = ty.elements();
        let data = match ty.dtype {
            DType::F32 if name == "hyper" => Data::F64(vec![1e-3, 0.1, 1e-3]),
            DType::F32 => Data::F64((0..n).map(|i| random::normal_at(keys, i as u32)).collect()),
            DType::I32 if name == "rng" => Data::I32(random::state(u64::from(seed), 3).to_vec()),
            DType::I32 => {
                let bound = index_bound(graph, graph.value(id));
                Data::I32((0..n).map(|i| (random::bits(keys, i as u32) as usize % bound) as i32).collect())
            }
        };
        values.extend(Tensor::new(ty.shape.clone(), data).map(|t| (name.clone(), t)));
    }
    values
}

/// One past the largest index that every direct reader of an integer value accepts.
fn index_bound(graph: &Graph, value: Value) -> usize {
    let extent = |user, operand: usize, axis: usize| {
        graph.operands(user).get(operand).and_then(|&v| graph.ty(v).shape.get(axis)).copied()
    };
    let bounds = graph.uses(value).into_iter().filter_map(|(user, position)| match graph.node(user).op {
        Op::Embed => extent(user, 1, 0),
        Op::EmbedGrad { rows } => Some(rows),
        Op::CrossEntropy => extent(user, 0, 1),
        Op::CrossEntropyGrad => extent(user, 1, 1),
        Op::GatherLast if position == 1 => extent(user, 0, 1),
        Op::ScatterLast { size } | Op::Count { size } => Some(size),
        Op::LimitCapacity { experts, .. } | Op::SortByExpert { experts, .. } => Some(experts),
        _ => None,
    });
    bounds.min().unwrap_or(2).max(1)
}

/// A graph that grows step by step.
struct Growth {
    b: Builder,
    tokens: usize,
    width: usize,
    /// Float values so far and a bound of their magnitude.
    pool: Vec<(Value, f64)>,
    counted: usize,
}

/// One product in four is of bfloat16 numbers.
fn drawn(r: u8) -> Precision {
    if r & 3 == 3 { Precision::Bf16 } else { Precision::F32 }
}

/// Normal values of 53 bits do not get this large.
const NORMAL: f64 = 9.0;

impl Growth {
    fn new(tokens: usize, width: usize) -> Self {
        let mut growth = Self { b: Builder::new(), tokens, width, pool: Vec::new(), counted: 0 };
        for (name, shape) in [("x", vec![tokens, width]), ("row", vec![tokens]), ("column", vec![width])] {
            let value = growth.b.input(name, TensorType::f32(shape));
            growth.push(value, NORMAL);
        }
        growth
    }

    /// Keeps a value, squashed if it could become too large.
    fn push(&mut self, value: Value, bound: f64) -> Value {
        let (value, bound) = if bound <= LARGEST { (value, bound) } else { (self.b.unary(Unary::Tanh, value), 1.0) };
        self.pool.push((value, bound));
        value
    }

    fn pick(&self, byte: u8) -> (Value, f64) {
        self.pool[usize::from(byte) % self.pool.len()]
    }

    /// A matrix `[M, I]` made of a value: higher axes are merged, vectors become one column.
    fn matrix(&mut self, (value, bound): (Value, f64)) -> (Value, f64, usize, usize) {
        let shape = self.b.shape(value);
        let inner = if shape.len() < 2 { 1 } else { shape[shape.len() - 1] };
        let rows = self.b.ty(value).elements() / inner.max(1);
        (self.b.reshape(value, [rows, inner]), bound, rows, inner)
    }

    fn parameter(&mut self, shape: &[usize]) -> Value {
        self.counted += 1;
        let name = format!("w{}", self.counted);
        self.b.parameter(&name, shape)
    }

    fn rng(&mut self) -> Value {
        self.b.input("rng", TensorType::i32([4]))
    }

    /// Appends one operation, or a small group of them, chosen by the first byte.
    fn step(&mut self, [what, p, q, r]: [u8; 4]) {
        match what % 23 {
            0 | 1 => self.unary(p, q),
            2 | 3 => self.binary(p, q, r),
            4 => self.select(p, q, r),
            5 => self.sum(p, q),
            6 => self.broadcast(p, q),
            7 => self.reshape(p),
            8 => self.identity(p, q),
            9 => self.repeat(p),
            10 => self.constant(p, q),
            11 | 12 => self.linear(p, q, r),
            13 => self.softmax(p, q),
            14 => self.norm(p, q),
            15 => self.selection(p, q, r),
            16 => self.mixture(p, q, r),
            17 => self.noise(p, q),
            18 => self.tokens(p, q),
            19 => self.attention(p, q, r),
            20 => self.axes(p, q),
            21 => self.segments(p, q, r),
            _ => self.integers(p, q, r),
        }
    }

    fn unary(&mut self, p: u8, q: u8) {
        let (x, bound) = self.pick(p);
        let f = Unary::ALL[usize::from(q) % Unary::ALL.len()];
        // Kept away from where the function is infinite or has no value.
        let (x, least, most) = if f.needs_positive() {
            let magnitude = self.b.unary(Unary::Abs, x);
            (self.b.add_scalar(magnitude, 0.5), 0.5, bound + 0.5)
        } else if f.evaluate(bound) > LARGEST {
            (self.b.unary(Unary::Tanh, x), -1.0, 1.0)
        } else {
            (x, -bound, bound)
        };
        // Each function is monotone on either side of 0, or bounded by 1.
        let y = self.b.unary(f, x);
        self.push(y, [f.evaluate(least).abs(), f.evaluate(most).abs(), 1.0].into_iter().fold(0.0, f64::max));
    }

    fn binary(&mut self, p: u8, q: u8, r: u8) {
        let f = Binary::ALL[usize::from(p) % Binary::ALL.len()];
        let (a, bound_a) = self.pick(q);
        let (b, bound_b) = self.pick(r);
        let (a, b) = self.matching(a, b);
        let (b, bound) = match f {
            Binary::Add | Binary::Sub => (b, bound_a + bound_b),
            Binary::Mul => (b, bound_a * bound_b),
            Binary::Div => {
                let magnitude = self.b.unary(Unary::Abs, b);
                (self.b.add_scalar(magnitude, 0.5), 2.0 * bound_a)
            }
            Binary::Max | Binary::Min => (b, bound_a.max(bound_b)),
            Binary::Less | Binary::LessEqual | Binary::Equal => (b, 1.0),
        };
        let y = self.b.binary(f, a, b);
        self.push(y, bound);
    }

    /// Two values of which one broadcasts to the other: if their shapes do not, the second becomes its mean.
    fn matching(&mut self, a: Value, b: Value) -> (Value, Value) {
        let (from, to) = (self.b.shape(b), self.b.shape(a));
        let fits = |from: &[usize], to: &[usize]| {
            from.len() <= to.len() && from.iter().rev().zip(to.iter().rev()).all(|(&f, &t)| f == t || f == 1)
        };
        if fits(&from, &to) {
            return (a, self.b.broadcast(b, to));
        }
        if fits(&to, &from) {
            return (self.b.broadcast(a, from), b);
        }
        let mean = self.b.mean_all(b);
        (a, self.b.broadcast(mean, to))
    }

    fn select(&mut self, p: u8, q: u8, r: u8) {
        let (a, bound_a) = self.pick(p);
        let (b, bound_b) = self.pick(q);
        let (a, b) = self.matching(a, b);
        let limit = self.b.fill(f64::from(r) / 128.0 - 1.0, []);
        let condition = self.b.binary(Binary::Less, a, limit);
        let y = self.b.select(condition, a, b);
        self.push(y, bound_a.max(bound_b));
    }

    fn sum(&mut self, p: u8, q: u8) {
        let (x, bound) = self.pick(p);
        let shape = self.b.shape(x);
        if let (true, Some(axis)) = (q & 128 == 128, (usize::from(q) % 4).checked_rem(shape.len())) {
            let op = Op::CumulativeSum { axis, exclusive: q & 64 == 64, reverse: q & 32 == 32 };
            let y = self.b.op(op, &[x]);
            self.push(y, bound * shape[axis] as f64);
            return;
        }
        let axes: Vec<usize> = (0..shape.len()).filter(|axis| q >> axis & 1 == 1).collect();
        if axes.is_empty() {
            let y = self.b.sum_all(x);
            let n = self.b.ty(x).elements();
            self.push(y, bound * n as f64);
        } else {
            let n: usize = axes.iter().map(|&axis| shape[axis]).product();
            let y = self.b.sum(x, &axes);
            self.push(y, bound * n as f64);
        }
    }

    fn broadcast(&mut self, p: u8, q: u8) {
        let (x, bound) = self.pick(p);
        let size = 1 + usize::from(q) % 3;
        if self.b.ty(x).elements() > 500 {
            return;
        }
        let y = if q & 1 == 0 {
            self.b.broadcast_last(x, size)
        } else {
            let shape = [vec![size], self.b.shape(x)].concat();
            self.b.broadcast(x, shape)
        };
        self.push(y, bound);
    }

    /// To one axis and back again.
    fn reshape(&mut self, p: u8) {
        let (x, bound) = self.pick(p);
        let shape = self.b.shape(x);
        let n = self.b.ty(x).elements();
        let flat = self.b.reshape(x, [n]);
        self.push(flat, bound);
        let back = self.b.reshape(flat, shape);
        self.push(back, bound);
    }

    /// Axes in another order, or a value that the gradient does not see.
    fn axes(&mut self, p: u8, q: u8) {
        let (x, bound) = self.pick(p);
        let rank = self.b.ty(x).rank();
        let y = if !(2..=4).contains(&rank) || q & 3 == 0 {
            self.b.stop_gradient(x)
        } else {
            let mut axes: Vec<usize> = (0..rank).collect();
            axes.rotate_left(usize::from(q >> 2) % rank);
            axes.swap(0, usize::from(q >> 5) % rank);
            self.b.permute(x, &axes)
        };
        self.push(y, bound);
    }

    /// Something that equals its operand (or 0).
    fn identity(&mut self, p: u8, q: u8) {
        let (x, bound) = self.pick(p);
        let shape = self.b.shape(x);
        let constant = |b: &mut Builder, value| {
            let scalar = b.fill(value, []);
            b.broadcast(scalar, shape.clone())
        };
        let (zero, one) = (constant(&mut self.b, 0.0), constant(&mut self.b, 1.0));
        let y = match q % 8 {
            0 => self.b.add(x, zero),
            1 => self.b.sub(x, zero),
            2 => self.b.mul(one, x),
            3 => self.b.div(x, one),
            4 => {
                let negative = self.b.unary(Unary::Neg, x);
                self.b.unary(Unary::Neg, negative)
            }
            5 => self.b.select(one, x, zero),
            6 => self.b.binary(Binary::Max, x, x),
            _ => self.b.mul(x, zero),
        };
        self.push(y, bound);
    }

    /// An operation that is in the graph already.
    fn repeat(&mut self, p: u8) {
        let (x, bound) = self.pick(p);
        let op = self.b.graph().node(x.node).op.clone();
        let operands = self.b.graph().operands(x.node).to_vec();
        let drawn = operands.iter().any(|&v| self.b.ty(v).dtype == DType::I32);
        // A source has one node per name, and a key one node that draws from it.
        if operands.is_empty() || drawn {
            return;
        }
        let y = self.b.op(op, &operands).result(x.slot);
        self.push(y, bound);
    }

    /// Something that can be computed beforehand.
    fn constant(&mut self, p: u8, q: u8) {
        let a = self.b.fill(f64::from(p) / 64.0 - 2.0, [self.width]);
        let b = self.b.fill(f64::from(q) / 64.0 - 2.0, [self.width]);
        let f = [Binary::Add, Binary::Mul, Binary::Max, Binary::Less][usize::from(p) % 4];
        let y = self.b.binary(f, a, b);
        self.push(y, 8.0);
    }

    fn linear(&mut self, p: u8, q: u8, r: u8) {
        let picked = self.pick(p);
        let (x, bound, rows, inner) = self.matrix(picked);
        let outer = 1 + usize::from(q) % 5;
        let (transpose_a, transpose_b, bias) = (r & 1 == 1, r & 2 == 2, r & 4 == 4);
        let (m, i) = if transpose_a { (inner, rows) } else { (rows, inner) };
        // Sometimes a product with itself, whose inner extents always fit one way round.
        let (weight, transpose_b, n, bound_w) = if r & 24 == 24 {
            (x, !transpose_a, m, bound)
        } else {
            let shape = if transpose_b { [outer, i] } else { [i, outer] };
            (self.parameter(&shape), transpose_b, outer, NORMAL)
        };
        let mut operands = vec![x, weight];
        if bias {
            operands.push(self.parameter(&[n]));
        }
        if m * n > 2000 {
            return;
        }
        let y = self.b.op(Op::MatMul { transpose_a, transpose_b, bias, precision: drawn(r >> 5) }, &operands);
        self.push(y, bound * bound_w * i as f64 + NORMAL);
    }

    fn softmax(&mut self, p: u8, q: u8) {
        let (x, bound) = self.pick(p);
        if self.b.ty(x).rank() == 0 {
            return;
        }
        if q & 1 == 0 {
            let y = self.b.softmax(x);
            self.push(y, 1.0);
        } else {
            let n = self.b.ty(x).elements();
            let y = self.b.log_sum_exp(x);
            self.push(y, bound + (n as f64).ln());
        }
    }

    fn norm(&mut self, p: u8, q: u8) {
        let (x, bound) = self.pick(p);
        let Some(&c) = self.b.shape(x).last() else { return };
        // The gain is at most NORMAL and a normalised element at most sqrt(C).
        let largest = NORMAL * (c as f64).sqrt() + NORMAL;
        let gain = self.parameter(&[c]);
        let epsilon = 1e-2.into();
        let (y, rstd) = if q & 1 == 0 {
            let shift = self.parameter(&[c]);
            let y = self.b.op(Op::LayerNorm { epsilon }, &[x, gain, shift]);
            self.push(y.result(1), bound);
            (y, y.result(2))
        } else {
            let y = self.b.op(Op::RmsNorm { epsilon }, &[x, gain]);
            (y, y.result(1))
        };
        self.push(rstd, 10.0);
        self.push(y, largest);
    }

    fn selection(&mut self, p: u8, q: u8, r: u8) {
        let picked = self.pick(p);
        let (x, bound, rows, size) = self.matrix(picked);
        let k = 1 + usize::from(q) % size;
        let (values, indices) = self.b.top_k(x, k);
        self.push(values, bound);
        let (y, bound) = match r % 3 {
            0 => (self.b.gather_last(x, indices), bound),
            1 => (self.b.scatter_last(values, indices, size), bound),
            _ => (self.b.count(indices, size), (rows * k) as f64),
        };
        self.push(y, bound);
    }

    /// A mixture of experts: router, perhaps a capacity, dispatch, one product per expert, combine.
    fn mixture(&mut self, p: u8, q: u8, r: u8) {
        let picked = self.pick(p);
        let (x, bound, rows, width) = self.matrix(picked);
        let experts = [1, 2, 3, 5][usize::from(q) % 4];
        let k = 1 + usize::from(q >> 2) % experts;
        let outer = 1 + usize::from(r) % 4;
        if rows * k * outer > 2000 {
            return;
        }
        let router = self.parameter(&[experts, width]);
        let logits = self.b.linear(x, router, None);
        let (top, mut chosen) = self.b.top_k(logits, k);
        let gates = self.b.softmax(top);
        let mut kept = rows * k;
        if r & 8 == 8 {
            let capacity = rows.div_ceil(experts);
            let priority = CapacityPriority::ALL[usize::from(q >> 5) % CapacityPriority::ALL.len()];
            chosen = self.b.limit_capacity(chosen, gates, experts, capacity, priority);
            kept = kept.min(experts * capacity);
        }
        let sorted = self.b.op(Op::SortByExpert { experts, rows: kept }, &[chosen]);
        let (offsets, order, positions) = (sorted, sorted.result(1), sorted.result(2));
        let sent = self.b.op(
            Op::Dispatch { weighted: r & 16 == 16 },
            &match r & 16 {
                16 => vec![x, order, positions, gates],
                _ => vec![x, order, positions],
            },
        );
        let (transpose_b, bias) = (r & 32 == 32, r & 64 == 64);
        let weight = self.parameter(&if transpose_b { [experts, outer, width] } else { [experts, width, outer] });
        let mut operands = vec![sent, weight, offsets];
        if bias {
            operands.push(self.parameter(&[experts, outer]));
        }
        let up = self.b.op(Op::GroupedMatMul { transpose_b, bias, precision: drawn(q >> 5 | p >> 7) }, &operands);
        let up = self.b.unary(Unary::Relu, up);
        let y = self.b.op(Op::Combine { weighted: true }, &[up, order, positions, gates]);
        self.push(gates, 1.0);
        self.push(y, bound * NORMAL * width as f64 + NORMAL);
        let load = self.b.count(chosen, experts);
        self.push(load, (rows * k) as f64);
    }

    /// A product over the rows of each of a few segments of equal length, and back.
    fn segments(&mut self, p: u8, q: u8, r: u8) {
        let picked = self.pick(p);
        let (x, bound, rows, width) = self.matrix(picked);
        let count = (1..=3).rev().find(|count| rows % count == 0).invariant("1 divides everything");
        let slots = 1 + usize::from(q) % 4;
        if rows * width * slots > 2000 {
            return;
        }
        let router = self.parameter(&[slots, width]);
        let logits = self.b.linear(x, router, None);
        let weights = self.b.softmax(logits);
        let offsets = self.b.ramp(count + 1, (rows / count) as i32);
        let mixed = self.b.op(Op::GroupedMatMulWeightGrad { precision: drawn(r >> 1) }, &[weights, x, offsets]);
        let bound = bound * rows as f64;
        self.push(mixed, bound);
        if r & 1 == 1 && bound <= LARGEST {
            let op = Op::GroupedMatMul { transpose_b: false, bias: false, precision: Precision::F32 };
            let y = self.b.op(op, &[weights, mixed, offsets]);
            self.push(y, bound);
        }
    }

    /// Indices from numbers and numbers from indices. What decides about an index is far from where it would change, or
    /// exact.
    fn integers(&mut self, p: u8, q: u8, r: u8) {
        let picked = self.pick(p);
        let (x, _, rows, size) = self.matrix(picked);
        let (numbers, bound) = match q % 6 {
            0 => {
                let ramp = self.b.ramp(size, i32::from(r) - 100);
                let wide = self.b.broadcast(ramp, [rows, size]);
                (wide, 155.0 * size as f64)
            }
            1 => {
                let shifted = self.b.add_scalar(x, 0.3718);
                let index = self.b.to_index(shifted, 3);
                let table = self.b.ramp(1 + usize::from(r) % 4, 5);
                (self.b.lookup(index, table), 15.0)
            }
            2 => {
                let ids = self.b.input("tokens", TensorType::i32([self.tokens]));
                let time = if r & 1 == 0 { 1 } else { self.tokens };
                (self.b.previous(ids, time), 11.0)
            }
            3 => {
                let limit = self.b.fill(0.3718, []);
                let below = self.b.binary(Binary::Less, x, limit);
                (self.b.nonzero(below), size as f64)
            }
            4 => {
                // Scores are whole numbers, so that the auction is exact.
                let share = self.b.unary(Unary::Sigmoid, x);
                let share = self.b.scale(share, 7.3);
                let whole = self.b.to_index(share, 8);
                let scores = self.b.to_float(whole);
                (self.b.balanced_assignment(scores), size as f64)
            }
            _ => {
                let share = self.b.unary(Unary::Sigmoid, x);
                let (_, chosen) = self.b.top_k(share, 1 + usize::from(r) % size);
                (chosen, size as f64)
            }
        };
        let y = self.b.to_float(numbers);
        self.push(y, bound);
    }

    fn noise(&mut self, p: u8, q: u8) {
        let rng = self.rng();
        let (x, bound) = self.pick(p);
        let shape = self.b.shape(x);
        let key = self.b.fresh_key();
        match q % 3 {
            0 => {
                let y = self.b.op(Op::RandomNormal { key, shape }, &[rng]);
                self.push(y, NORMAL);
            }
            1 => {
                let y = self.b.op(Op::RandomUniform { key, shape }, &[rng]);
                self.push(y, 1.0);
            }
            _ => {
                let y = self.b.op(Op::Dropout { rate: 0.25.into(), key }, &[x, rng]);
                self.push(y, bound / 0.75);
            }
        }
    }

    /// An embedding of token ids, or a loss against targets.
    fn tokens(&mut self, p: u8, q: u8) {
        if q & 1 == 0 {
            let ids = self.b.input("tokens", TensorType::i32([self.tokens]));
            let table = self.b.parameter("table", [11, self.width]);
            let y = self.b.op(Op::Embed, &[ids, table]);
            self.push(y, NORMAL);
            return;
        }
        let picked = self.pick(p);
        let (logits, bound, rows, vocab) = self.matrix(picked);
        self.counted += 1;
        let targets = self.b.input(format!("targets{}", self.counted), TensorType::i32([rows]));
        let loss = self.b.op(Op::CrossEntropy, &[logits, targets]);
        let largest = 2.0 * bound + (vocab as f64).ln();
        self.push(loss, largest);
        self.push(loss.result(1), largest);
    }

    fn attention(&mut self, p: u8, q: u8, r: u8) {
        let picked = self.pick(p);
        let (x, bound, rows, width) = self.matrix(picked);
        let heads = 1 + usize::from(q) % 2;
        let head_width = 2 * (1 + usize::from(q >> 1) % 2);
        // The longest sequences, up to 4, that the rows make up.
        let time = (1..=4).rev().find(|t| rows % t == 0).invariant("1 divides everything");
        if rows > 60 {
            return;
        }
        let weight = self.parameter(&[3 * heads * head_width, width]);
        let mut qkv = self.b.linear(x, weight, None);
        let bound = bound * NORMAL * width as f64;
        if bound > LARGEST {
            qkv = self.b.unary(Unary::Tanh, qkv);
        }
        if r & 1 == 1 {
            let positions = r & 4 == 4;
            let mut operands = vec![qkv];
            if positions {
                operands.push(self.b.ramp(rows, 3));
            }
            qkv = self.b.op(Op::Rotary { heads, time, base: 100.0.into(), inverse: false, positions }, &operands);
        }
        let dropout = if r & 2 == 2 { 0.25 } else { 0.0 };
        let key = if r & 2 == 2 { self.b.fresh_key() } else { 0 };
        let window = if r & 8 == 8 { 1 + (r >> 5) as usize % 3 } else { usize::MAX };
        let sink = r & 16 == 16;
        let attrs =
            AttentionAttrs { dropout: dropout.into(), key, window, sink, ..AttentionAttrs::causal(heads, time, 0.5) };
        let rng = (dropout > 0.0).then(|| self.rng());
        let sinks = sink.then(|| self.parameter(&[heads]));
        let y = self.b.attention(attrs, qkv, rng, sinks);
        // Rotation keeps the length of a pair, so an element grows by the root of 2 at most.
        self.push(y, 6.0 * LARGEST.min(bound.max(1.0)));
    }

    fn finish(mut self, seed: u32) -> Graph {
        let keys = random::keys(random::state(u64::from(seed), 0), 99);
        let mut objective = self.b.fill(0.0, []);
        for i in 0..1 + random::bits(keys, 0) % 4 {
            // The latest value always, others at random: some stay unread.
            let at = if i == 0 { self.pool.len() - 1 } else { random::bits(keys, i) as usize % self.pool.len() };
            let (value, _) = self.pool[at];
            self.b.output(format!("o{i}"), value);
            let mean = self.b.mean_all(value);
            let weighted = self.b.scale(mean, f64::from(i + 2) / 3.0);
            objective = self.b.add(objective, weighted);
        }
        self.b.output("objective", objective);
        if random::bits(keys, 5) & 1 == 0 {
            let state = self.b.state("s", TensorType::f32([]));
            let decayed = self.b.scale(state, 0.9);
            let next = self.b.add(decayed, objective);
            self.b.output("state", state);
            self.b.update("s", next);
        }
        self.b.finish().invariant("the steps only ask for what fits")
    }
}

#[cfg(test)]
mod tests;

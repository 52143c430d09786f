//! The reference evaluator: what every operation means, in plain 64-bit Rust.
//!
//! Nothing here is fast. It is the oracle that kernels, fusions and gradient rules are held against, so each operation
//! is written as its documentation in [`Op`] reads, accumulates in 64 bits, and walks in one fixed order. Floats come
//! out as [`Data::F64`] whatever width went in, integers as [`Data::I32`].
//!
//! No input makes it panic: operands that do not fit, token ids and targets out of range and names without a value are
//! [`EvalError`]s.

use crate::balance::balanced_assignment;
use crate::graph::Graph;
use crate::ids::Value;
use crate::infer::{InferError, infer};
use crate::op::{Access, AdamWAttrs, AttentionAttrs, Binary, CapacityPriority, FusedProgram, Instr, Op, Unary};
use crate::random;
use crate::tensor::{Data, Tensor};
use crate::types::TensorType;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::f64::consts::FRAC_1_SQRT_2;

/// Tensors whose non-zero extents multiply to more than this are refused before anything is allocated.
pub const MAX_ELEMENTS: usize = 1 << 28;

/// Why an operation or a graph could not be evaluated.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The operands do not fit the operation.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// An input, parameter or state has no value: `evaluate` was not given it, or `evaluate_op` was asked for it.
    #[error("{kind} `{name}` has no value")]
    Unbound {
        /// `input`, `parameter` or `state`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The value of an input, parameter or state has another type than the graph says.
    #[error("`{name}` is {expected}, but the value given is {found}")]
    Binding {
        /// Its name.
        name: String,
        /// Type in the graph.
        expected: TensorType,
        /// Type of the value.
        found: TensorType,
    },
    /// A token id or a target is not within its range.
    #[error("{op}: {what} {index} at position {position} is not below {bound}")]
    Index {
        /// Mnemonic of the operation.
        op: &'static str,
        /// What the index names: `token id` or `target`.
        what: &'static str,
        /// The index.
        index: i32,
        /// Where in its operand.
        position: usize,
        /// One past the largest index allowed.
        bound: usize,
    },
    /// Segment offsets do not start at 0, decrease, or pass the last row.
    #[error("{op}: offsets {offsets:?} are not ascending from 0 up to at most {rows}")]
    Offsets {
        /// Mnemonic of the operation.
        op: &'static str,
        /// The offsets.
        offsets: Vec<i32>,
        /// Number of rows.
        rows: usize,
    },
    /// An operand or a result is too large for this evaluator.
    #[error("a tensor of type {ty} is too large for the reference evaluator")]
    TooLarge {
        /// Its type.
        ty: TensorType,
    },
    /// An output or update is not a value of the graph.
    #[error("`{name}` is not a value of the graph")]
    Dangling {
        /// Name of the output or update.
        name: String,
    },
    /// A node of a graph failed.
    #[error("%{node}: {error}")]
    Node {
        /// Name of the node.
        node: String,
        /// Why.
        error: Box<EvalError>,
    },
}

/// What a graph evaluates to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Outputs by name.
    pub outputs: BTreeMap<String, Tensor>,
    /// Values that states and parameters take, by their name.
    pub updates: BTreeMap<String, Tensor>,
}

/// Evaluates a graph. `bindings` holds inputs, parameters and states by name; further names are ignored.
///
/// # Errors
/// When a name has no value or one of another type, or a node cannot be evaluated.
pub fn evaluate(graph: &Graph, bindings: &BTreeMap<String, Tensor>) -> Result<Evaluation, EvalError> {
    // A tensor is dropped after its last reader, so that memory stays near what is alive.
    let mut last_reader: Vec<usize> = graph.ids().map(|id| id.index()).collect();
    for id in graph.ids() {
        for v in graph.operands(id) {
            last_reader[v.node.index()] = id.index();
        }
    }
    for (name, v) in graph.outputs().iter().chain(graph.updates()) {
        graph.try_ty(*v).ok_or_else(|| EvalError::Dangling { name: name.clone() })?;
        last_reader[v.node.index()] = usize::MAX;
    }

    let mut values: Vec<Vec<Tensor>> = Vec::with_capacity(graph.len());
    for id in graph.ids() {
        let node = graph.node(id);
        let operands = graph.operands(id);
        let tensors: Vec<&Tensor> = operands.iter().map(|v| &values[v.node.index()][usize::from(v.slot)]).collect();
        let results = match &node.op {
            Op::Input { name, ty } | Op::Parameter { name, ty } | Op::State { name, ty, .. } => {
                bind(bindings, node.op.mnemonic(), name, ty).map(|t| vec![t])
            }
            op => evaluate_op(op, &tensors),
        };
        let results = results.map_err(|error| EvalError::Node { node: node.name.clone(), error: Box::new(error) })?;
        values.push(results);
        for v in operands {
            if last_reader[v.node.index()] == id.index() {
                values[v.node.index()] = Vec::new();
            }
        }
    }

    let read = |named: &[(String, Value)]| -> BTreeMap<String, Tensor> {
        named.iter().map(|(n, v)| (n.clone(), values[v.node.index()][usize::from(v.slot)].clone())).collect()
    };
    Ok(Evaluation { outputs: read(graph.outputs()), updates: read(graph.updates()) })
}

fn bind(
    bindings: &BTreeMap<String, Tensor>,
    kind: &'static str,
    name: &str,
    ty: &TensorType,
) -> Result<Tensor, EvalError> {
    let tensor = bindings.get(name).ok_or_else(|| EvalError::Unbound { kind, name: name.to_string() })?;
    if tensor.ty() != *ty {
        return Err(EvalError::Binding { name: name.to_string(), expected: ty.clone(), found: tensor.ty() });
    }
    Ok(match tensor.data() {
        Data::F32(_) => Tensor::new(ty.shape.clone(), Data::F64(tensor.to_f64())).unwrap_or_else(|| tensor.clone()),
        Data::F64(_) | Data::I32(_) => tensor.clone(),
    })
}

/// Evaluates one operation on its operands and returns its results in slot order.
///
/// # Errors
/// When the operands do not fit the operation, hold token ids, targets or offsets out of range, or the operation is an input, parameter or
/// state, which has no value of its own.
pub fn evaluate_op(op: &Op, operands: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
    let operand_types: Vec<TensorType> = operands.iter().map(|t| t.ty()).collect();
    let types = infer(op, &operand_types.iter().collect::<Vec<_>>())?;
    // Zero extents do not count: a loop over the rows of `f32[1000000000000, 0]` would not end either.
    let extent = |ty: &TensorType| ty.shape.iter().fold(1usize, |n, &d| n.saturating_mul(d.max(1)));
    if let Some(ty) = operand_types.iter().chain(&types).find(|ty| extent(ty) > MAX_ELEMENTS) {
        return Err(EvalError::TooLarge { ty: ty.clone() });
    }
    let results = compute(op, &Operands { op: op.mnemonic(), tensors: operands }, &types)?;
    // `infer` and `compute` agree on every length; were they not to, the first result that differs is named.
    types
        .iter()
        .zip(results)
        .map(|(ty, data)| {
            Tensor::new(ty.shape.clone(), data).ok_or_else(|| {
                EvalError::Infer(InferError::Mismatch {
                    op: op.mnemonic(),
                    message: format!("evaluation did not give the elements of {ty}"),
                })
            })
        })
        .collect()
}

/// The operands of one operation. Their types have been checked by `infer`.
struct Operands<'a> {
    op: &'static str,
    tensors: &'a [&'a Tensor],
}

impl<'a> Operands<'a> {
    fn f(&self, i: usize) -> Cow<'a, [f64]> {
        match self.tensors[i].data() {
            Data::F64(v) => Cow::Borrowed(v),
            Data::F32(_) | Data::I32(_) => Cow::Owned(self.tensors[i].to_f64()),
        }
    }

    fn i(&self, i: usize) -> &'a [i32] {
        self.tensors[i].as_i32().unwrap_or_default()
    }

    fn shape(&self, i: usize) -> &'a [usize] {
        self.tensors[i].shape()
    }

    /// Extents of a matrix operand.
    fn matrix(&self, i: usize) -> (usize, usize) {
        match *self.shape(i) {
            [r, c] => (r, c),
            _ => (0, 0),
        }
    }

    /// Number of rows before the last axis, and the extent of that axis.
    fn rows(&self, i: usize) -> (usize, usize) {
        match self.shape(i).split_last() {
            Some((&c, rest)) => (rest.iter().product(), c),
            None => (1, 1),
        }
    }

    /// The generator state of operand `i`.
    fn rng(&self, i: usize) -> [i32; 4] {
        match *self.i(i) {
            [a, b, c, d] => [a, b, c, d],
            _ => [0; 4],
        }
    }

    /// A token id or target, which must be in `0..bound`.
    fn index(&self, what: &'static str, position: usize, index: i32, bound: usize) -> Result<usize, EvalError> {
        within(index, bound).ok_or(EvalError::Index { op: self.op, what, index, position, bound })
    }

    /// Row ranges of the experts from the offsets in operand `i`.
    fn segments(&self, i: usize, rows: usize) -> Result<Vec<std::ops::Range<usize>>, EvalError> {
        let offsets = self.i(i);
        let valid = offsets.first() == Some(&0)
            && offsets.windows(2).all(|w| w[0] <= w[1])
            && offsets.last().is_some_and(|&last| last as usize <= rows);
        if !valid {
            return Err(EvalError::Offsets { op: self.op, offsets: offsets.to_vec(), rows });
        }
        Ok(offsets.windows(2).map(|w| w[0] as usize..w[1] as usize).collect())
    }
}

/// An index of an expert, slot or row, if it names one of `bound`.
fn within(index: i32, bound: usize) -> Option<usize> {
    usize::try_from(index).ok().filter(|&i| i < bound)
}

fn f(values: Vec<f64>) -> Vec<Data> {
    vec![Data::F64(values)]
}

fn compute(op: &Op, x: &Operands<'_>, types: &[TensorType]) -> Result<Vec<Data>, EvalError> {
    let unbound = |name: &str| Err(EvalError::Unbound { kind: op.mnemonic(), name: name.to_string() });
    let len = types.first().map_or(0, TensorType::elements);
    Ok(match op {
        Op::Input { name, .. } | Op::Parameter { name, .. } | Op::State { name, .. } => return unbound(name),
        Op::Fill { value, .. } => f(vec![value.get(); len]),
        Op::Ramp { step, .. } => vec![Data::I32((0..len).map(|i| (i as i32).wrapping_mul(*step)).collect())],
        Op::Reshape { .. } => match x.tensors[0].data() {
            Data::I32(v) => vec![Data::I32(v.clone())],
            Data::F32(_) | Data::F64(_) => f(x.f(0).into_owned()),
        },
        Op::Broadcast { shape } => {
            let source = broadcast_strides(x.shape(0), shape);
            match x.tensors[0].data() {
                Data::I32(v) => vec![Data::I32(gather(v, shape, &source))],
                Data::F32(_) | Data::F64(_) => f(gather(&x.f(0), shape, &source)),
            }
        }
        Op::Permute { axes } => {
            let strides = strides(x.shape(0));
            let source: Vec<usize> = axes.iter().map(|&axis| strides[axis]).collect();
            f(gather(&x.f(0), &types[0].shape, &source))
        }
        Op::StopGradient => f(x.f(0).into_owned()),

        Op::Unary(u) => f(x.f(0).iter().map(|&v| unary(*u, v)).collect()),
        Op::Binary(b) => f(x.f(0).iter().zip(x.f(1).iter()).map(|(&p, &q)| binary(*b, p, q)).collect()),
        Op::Select => {
            let (condition, a, b) = (x.f(0), x.f(1), x.f(2));
            f((0..len).map(|i| if condition[i] != 0.0 { a[i] } else { b[i] }).collect())
        }
        Op::Fused(program) => fused(program, x),
        Op::FusedAfter { producer, program } => {
            let split = producer.operands_of_producer().unwrap_or(0);
            let (own, rest) = x.tensors.split_at(split.min(x.tensors.len()));
            let mut made = evaluate_op(producer, own)?.into_iter();
            let first: Vec<Tensor> = made.by_ref().take(1).collect();
            let all: Vec<&Tensor> = first.iter().chain(rest.iter().copied()).collect();
            let mut results = fused(program, &Operands { tensors: &all, ..*x });
            results.extend(made.map(Tensor::into_data));
            results
        }
        Op::DispatchedProduct(product) => {
            let (own, dispatch) = x.tensors.split_at(x.tensors.len().saturating_sub(2));
            let at = product.dispatched_operand().unwrap_or(0);
            let rows = evaluate_op(&Op::Dispatch { weighted: false }, &[&own[at..=at], dispatch].concat())?;
            let mut own = own.to_vec();
            own[at] = &rows[0];
            evaluate_op(product, &own)?.into_iter().map(Tensor::into_data).collect()
        }
        Op::ProductWithSums(product) => {
            let product = evaluate_op(product, x.tensors)?.into_iter().map(Tensor::into_data);
            let sums = match x.tensors.get(2) {
                Some(offsets) => grouped_sum(&Operands { tensors: &[x.tensors[0], offsets], ..*x })?,
                None => sum(&x.f(0), x.shape(0), &[0], types[1].elements()),
            };
            product.chain([Data::F64(sums)]).collect()
        }

        Op::ToFloat => f(x.i(0).iter().map(|&i| f64::from(i)).collect()),
        // NaN is not at least 0.
        Op::ToIndex { size } => vec![Data::I32(
            x.f(0).iter().map(|&v| if v >= 0.0 && v < *size as f64 { v.trunc() as i32 } else { -1 }).collect(),
        )],
        Op::Lookup => {
            let table = x.i(1);
            vec![Data::I32(x.i(0).iter().map(|&id| within(id, table.len()).map_or(-1, |id| table[id])).collect())]
        }
        Op::Previous { time } => {
            let ids = x.i(0);
            let before = |n: usize| if n.is_multiple_of(*time) { -1 } else { ids[n - 1] };
            vec![Data::I32((0..ids.len()).map(before).collect())]
        }

        Op::Sum { axes } => f(sum(&x.f(0), x.shape(0), axes, len)),
        Op::SumOfSquares => {
            f(vec![(0..x.tensors.len()).map(|i| x.f(i).iter().map(|v| v * v).sum::<f64>()).sum::<f64>()])
        }

        Op::MatMul { transpose_a, transpose_b, bias } => f(matmul(x, *transpose_a, *transpose_b, *bias)),
        Op::GroupedMatMul { transpose_b, bias } => f(grouped_matmul(x, *transpose_b, *bias)?),
        Op::GroupedMatMulWeightGrad => f(grouped_matmul_weight_grad(x)?),
        Op::GroupedSum => f(grouped_sum(x)?),

        Op::LayerNorm { epsilon } => layer_norm(x, epsilon.get()),
        Op::LayerNormGrad => layer_norm_grad(x),
        Op::RmsNorm { epsilon } => rms_norm(x, epsilon.get()),
        Op::RmsNormGrad => rms_norm_grad(x),

        Op::Softmax => {
            let mut y = Vec::with_capacity(len);
            per_row(x, |row| {
                let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = row.iter().map(|v| (v - max).exp()).sum();
                y.extend(row.iter().map(|v| (v - max).exp() / total));
            });
            f(y)
        }
        Op::SoftmaxGrad => {
            let (dy, y) = (x.f(0), x.f(1));
            let (rows, m) = x.rows(0);
            let mut dx = Vec::with_capacity(len);
            for r in 0..rows {
                let (dy, y) = (&dy[r * m..(r + 1) * m], &y[r * m..(r + 1) * m]);
                let inner = dot(dy, y);
                dx.extend(dy.iter().zip(y).map(|(dy, y)| y * (dy - inner)));
            }
            f(dx)
        }
        Op::LogSumExp => {
            let mut y = Vec::with_capacity(len);
            per_row(x, |row| y.push(log_sum_exp(row)));
            f(y)
        }

        Op::Attention(attrs) => attention(attrs, x),
        Op::AttentionGrad(attrs) => f(attention_grad(attrs, x)),
        Op::CachedAttention { heads, scale } => cached_attention(*heads, scale.get(), x),
        Op::Rotary { heads, time, base, inverse, positions } => {
            let position = |token: usize| if *positions { f64::from(x.i(1)[token]) } else { (token % time) as f64 };
            f(rotary(x, *heads, position, base.get(), *inverse))
        }

        Op::Embed => {
            let (table, (vocab, width)) = (x.f(1), x.matrix(1));
            let mut y = Vec::with_capacity(len);
            for (n, &id) in x.i(0).iter().enumerate() {
                let id = x.index("token id", n, id, vocab)?;
                y.extend_from_slice(&table[id * width..(id + 1) * width]);
            }
            f(y)
        }
        Op::EmbedGrad { rows } => {
            let (dy, (_, width)) = (x.f(1), x.matrix(1));
            let mut dtable = vec![0.0; len];
            for (n, &id) in x.i(0).iter().enumerate() {
                let id = x.index("token id", n, id, *rows)?;
                add_to(&mut dtable[id * width..(id + 1) * width], &dy[n * width..(n + 1) * width], 1.0);
            }
            f(dtable)
        }
        Op::CrossEntropy => {
            let (logits, (n, vocab)) = (x.f(0), x.matrix(0));
            let mut lse = Vec::with_capacity(n);
            let mut total = 0.0;
            for (row, &target) in x.i(1).iter().enumerate() {
                let target = x.index("target", row, target, vocab)?;
                let logits = &logits[row * vocab..(row + 1) * vocab];
                lse.push(log_sum_exp(logits));
                total += lse[row] - logits[target];
            }
            vec![Data::F64(vec![total / n as f64]), Data::F64(lse)]
        }
        Op::CrossEntropyGrad => {
            let (dloss, logits, lse, (n, vocab)) = (x.f(0), x.f(1), x.f(2), x.matrix(1));
            let factor = dloss[0] / n as f64;
            let mut dlogits = Vec::with_capacity(len);
            for (row, &target) in x.i(3).iter().enumerate() {
                let target = x.index("target", row, target, vocab)?;
                for v in 0..vocab {
                    let p = (logits[row * vocab + v] - lse[row]).exp();
                    dlogits.push(factor * (p - if v == target { 1.0 } else { 0.0 }));
                }
            }
            f(dlogits)
        }
        Op::FusedCrossEntropy { dloss } => {
            let (logits, targets) = (x.tensors[0], x.tensors[1]);
            let mut forward = evaluate_op(&Op::CrossEntropy, x.tensors)?;
            let lse = forward.pop().unwrap_or_else(|| Tensor::scalar(0.0));
            let backward = [&Tensor::scalar(dloss.get()), logits, &lse, targets];
            forward.extend(evaluate_op(&Op::CrossEntropyGrad, &backward)?);
            forward.into_iter().map(Tensor::into_data).collect()
        }

        Op::RandomNormal { key, .. } => {
            let keys = random::keys(x.rng(0), *key);
            f((0..len).map(|i| random::normal_at(keys, i as u32)).collect())
        }
        Op::RandomUniform { key, .. } => {
            let keys = random::keys(x.rng(0), *key);
            f((0..len).map(|i| random::uniform(random::bits(keys, i as u32))).collect())
        }
        Op::Dropout { rate, key } => {
            let mask = Mask::new(x.rng(1), *key, rate.get());
            f(x.f(0).iter().enumerate().map(|(i, v)| mask.apply(*v, i as u32)).collect())
        }

        Op::TopK { k } => top_k(x, *k),
        Op::GatherLast => {
            let (values, (n, size)) = (x.f(0), x.matrix(0));
            let (_, k) = x.matrix(1);
            let mut y = vec![0.0; n * k];
            for (slot, &index) in x.i(1).iter().enumerate() {
                if let Some(index) = within(index, size) {
                    y[slot] = values[slot / k * size + index];
                }
            }
            f(y)
        }
        Op::ScatterLast { size } => {
            let (values, (_, k)) = (x.f(0), x.matrix(0));
            let mut y = vec![0.0; len];
            for (slot, &index) in x.i(1).iter().enumerate() {
                if let Some(index) = within(index, *size) {
                    y[slot / k * size + index] += values[slot];
                }
            }
            f(y)
        }
        Op::Count { size } => {
            let mut counts = vec![0.0; *size];
            for index in x.i(0).iter().filter_map(|&index| within(index, *size)) {
                counts[index] += 1.0;
            }
            f(counts)
        }
        Op::LimitCapacity { experts, capacity, priority } => limit_capacity(x, *experts, *capacity, *priority),
        Op::BalancedAssignment => vec![Data::I32(balanced_assignment(&x.f(0), x.matrix(0).1))],

        Op::SortByExpert { experts, rows } => sort_by_expert(x, *experts, *rows),
        Op::Dispatch { weighted } => {
            let (tokens, (n, width)) = (x.f(0), x.matrix(0));
            let (_, k) = x.matrix(2);
            let weights = weighted.then(|| x.f(3));
            let mut y = vec![0.0; len];
            for (row, &slot) in x.i(1).iter().enumerate() {
                if let Some(slot) = within(slot, n * k) {
                    let token = slot / k;
                    let weight = weights.as_ref().map_or(1.0, |w| w[slot]);
                    let row = &mut y[row * width..(row + 1) * width];
                    add_to(row, &tokens[token * width..(token + 1) * width], weight);
                }
            }
            f(y)
        }
        Op::Combine { weighted } => {
            let (rows, (r, width)) = (x.f(0), x.matrix(0));
            let (_, k) = x.matrix(2);
            let weights = weighted.then(|| x.f(3));
            let mut z = vec![0.0; len];
            for (slot, &row) in x.i(2).iter().enumerate() {
                if let Some(row) = within(row, r) {
                    let token = slot / k;
                    let weight = weights.as_ref().map_or(1.0, |w| w[slot]);
                    add_to(&mut z[token * width..(token + 1) * width], &rows[row * width..(row + 1) * width], weight);
                }
            }
            f(z)
        }
        Op::CombineWeightGrad => {
            let (dz, rows, (r, width)) = (x.f(0), x.f(1), x.matrix(1));
            let (_, k) = x.matrix(2);
            let mut dweights = vec![0.0; len];
            for (slot, &row) in x.i(2).iter().enumerate() {
                if let Some(row) = within(row, r) {
                    let token = slot / k;
                    dweights[slot] =
                        dot(&dz[token * width..(token + 1) * width], &rows[row * width..(row + 1) * width]);
                }
            }
            f(dweights)
        }

        Op::AdamW(attrs) => adamw(attrs, x),
    })
}

// ---- elementwise ----

/// One element of a unary function. NaN goes in and out, except that its sign is 0.
fn unary(f: Unary, x: f64) -> f64 {
    match f {
        Unary::Neg => -x,
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Sqrt => x.sqrt(),
        Unary::Recip => 1.0 / x,
        Unary::Abs => x.abs(),
        Unary::Sign => f64::from(i8::from(x > 0.0) - i8::from(x < 0.0)),
        Unary::Tanh => x.tanh(),
        // Never the exponential of a large positive number.
        Unary::Sigmoid if x < 0.0 => x.exp() / (1.0 + x.exp()),
        Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Unary::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        // ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|)
        Unary::Softplus => (if x < 0.0 { 0.0 } else { x }) + (-x.abs()).exp().ln_1p(),
        // erfc keeps its relative precision in the lower tail, where 1 + erf would cancel.
        Unary::NormalCdf => 0.5 * libm::erfc(-x * FRAC_1_SQRT_2),
    }
}

/// One element of a binary function. The larger and the smaller of something and NaN is NaN.
fn binary(f: Binary, a: f64, b: f64) -> f64 {
    let truth = |t: bool| if t { 1.0 } else { 0.0 };
    match f {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Max => {
            if a >= b || a.is_nan() {
                a
            } else {
                b
            }
        }
        Binary::Min => {
            if a <= b || a.is_nan() {
                a
            } else {
                b
            }
        }
        Binary::Less => truth(a < b),
        Binary::LessEqual => truth(a <= b),
        Binary::Equal => truth(a == b),
    }
}

fn fused(program: &FusedProgram, x: &Operands<'_>) -> Vec<Data> {
    let operands: Vec<Cow<'_, [f64]>> = (0..program.accesses.len()).map(|i| x.f(i)).collect();
    let rng = if program.uses_random() { x.rng(program.accesses.len()) } else { [0; 4] };
    let len: usize = program.shape.iter().product();
    let mut results = vec![Vec::with_capacity(len); program.results.len()];
    let mut r = vec![0.0; program.instructions.len()];
    for i in 0..len {
        for (j, instr) in program.instructions.iter().enumerate() {
            r[j] = match *instr {
                Instr::Load(operand) => {
                    let values = &operands[operand];
                    values[match program.accesses[operand] {
                        Access::Full => i,
                        Access::Repeat => i % values.len(),
                        Access::Stretch { inner } => i / inner,
                        Access::Scalar => 0,
                    }]
                }
                Instr::Const(value) => value.get(),
                Instr::Unary(f, a) => unary(f, r[a]),
                Instr::Binary(f, a, b) => binary(f, r[a], r[b]),
                Instr::Select(condition, a, b) => {
                    if r[condition] != 0.0 {
                        r[a]
                    } else {
                        r[b]
                    }
                }
                Instr::Dropout { value, rate, key } => Mask::new(rng, key, rate.get()).apply(r[value], i as u32),
            };
        }
        for (result, &register) in results.iter_mut().zip(&program.results) {
            result.push(r[register]);
        }
    }
    results.into_iter().map(Data::F64).collect()
}

/// A dropout mask: an element is kept iff its random word is not below the threshold.
struct Mask {
    keys: (u32, u32),
    threshold: u32,
    keep: f64,
}

impl Mask {
    fn new(rng: [i32; 4], key: u32, rate: f64) -> Self {
        Self { keys: random::keys(rng, key), threshold: random::dropout_threshold(rate), keep: 1.0 - rate }
    }

    fn apply(&self, x: f64, element: u32) -> f64 {
        if random::bits(self.keys, element) >= self.threshold { x / self.keep } else { 0.0 }
    }
}

// ---- shape and reduction ----

/// Strides of a row-major shape.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}

/// Walks over all elements of `shape` in order and gives the offset under other strides.
fn walk(shape: &[usize], strides: &[usize], mut visit: impl FnMut(usize)) {
    let len: usize = shape.iter().product();
    let mut position = vec![0; shape.len()];
    let mut offset = 0;
    for _ in 0..len {
        visit(offset);
        for axis in (0..shape.len()).rev() {
            position[axis] += 1;
            offset += strides[axis];
            if position[axis] < shape[axis] {
                break;
            }
            offset -= strides[axis] * shape[axis];
            position[axis] = 0;
        }
    }
}

/// Strides of a tensor of shape `from` that is read as one of shape `to`: 0 where an axis is repeated.
fn broadcast_strides(from: &[usize], to: &[usize]) -> Vec<usize> {
    let lead = to.len() - from.len();
    let mut source = vec![0; to.len()];
    for (axis, stride) in strides(from).into_iter().enumerate() {
        source[lead + axis] = if from[axis] == 1 { 0 } else { stride };
    }
    source
}

/// The elements of a tensor of shape `to`, read from `x` under the given strides.
fn gather<T: Copy>(x: &[T], to: &[usize], strides: &[usize]) -> Vec<T> {
    let mut y = Vec::new();
    walk(to, strides, |offset| y.push(x[offset]));
    y
}

fn sum(x: &[f64], shape: &[usize], axes: &[usize], len: usize) -> Vec<f64> {
    let kept: Vec<usize> = (0..shape.len()).filter(|axis| !axes.contains(axis)).collect();
    let kept_shape: Vec<usize> = kept.iter().map(|&axis| shape[axis]).collect();
    let mut target = vec![0; shape.len()];
    for (&axis, stride) in kept.iter().zip(strides(&kept_shape)) {
        target[axis] = stride;
    }
    let mut y = vec![0.0; len];
    let mut elements = x.iter();
    walk(shape, &target, |offset| y[offset] += elements.next().copied().unwrap_or(0.0));
    y
}

// ---- linear ----

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `y += factor * x`
fn add_to(y: &mut [f64], x: &[f64], factor: f64) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += factor * x;
    }
}

/// `y [O] += x [I] w` for a matrix stored `[I, O]` or, transposed, `[O, I]`.
fn row_times_matrix(y: &mut [f64], x: &[f64], w: &[f64], transposed: bool) {
    let (inner, outer) = (x.len(), y.len());
    if transposed {
        for (o, y) in y.iter_mut().enumerate() {
            *y += dot(x, &w[o * inner..(o + 1) * inner]);
        }
    } else {
        for (i, &x) in x.iter().enumerate() {
            add_to(y, &w[i * outer..(i + 1) * outer], x);
        }
    }
}

fn matmul(x: &Operands<'_>, transpose_a: bool, transpose_b: bool, bias: bool) -> Vec<f64> {
    let (a, b) = (x.f(0), x.f(1));
    let ((a0, a1), (b0, b1)) = (x.matrix(0), x.matrix(1));
    let (m, inner) = if transpose_a { (a1, a0) } else { (a0, a1) };
    let n = if transpose_b { b0 } else { b1 };
    let bias = bias.then(|| x.f(2));
    let mut y = vec![0.0; m * n];
    for r in 0..m {
        let row: Vec<f64> = (0..inner).map(|i| if transpose_a { a[i * m + r] } else { a[r * inner + i] }).collect();
        let y = &mut y[r * n..(r + 1) * n];
        row_times_matrix(y, &row, &b, transpose_b);
        if let Some(bias) = &bias {
            add_to(y, bias, 1.0);
        }
    }
    y
}

fn grouped_matmul(x: &Operands<'_>, transpose_b: bool, bias: bool) -> Result<Vec<f64>, EvalError> {
    let (rows, weights, (r, inner)) = (x.f(0), x.f(1), x.matrix(0));
    let outer = match *x.shape(1) {
        [_, o, i] => {
            if transpose_b {
                o
            } else {
                i
            }
        }
        _ => 0,
    };
    let bias = bias.then(|| x.f(3));
    let mut y = vec![0.0; r * outer];
    for (e, segment) in x.segments(2, r)?.into_iter().enumerate() {
        let w = &weights[e * inner * outer..(e + 1) * inner * outer];
        for row in segment {
            let y = &mut y[row * outer..(row + 1) * outer];
            row_times_matrix(y, &rows[row * inner..(row + 1) * inner], w, transpose_b);
            if let Some(bias) = &bias {
                add_to(y, &bias[e * outer..(e + 1) * outer], 1.0);
            }
        }
    }
    Ok(y)
}

fn grouped_matmul_weight_grad(x: &Operands<'_>) -> Result<Vec<f64>, EvalError> {
    let (dy, rows) = (x.f(0), x.f(1));
    let ((r, outer), (_, inner)) = (x.matrix(0), x.matrix(1));
    let segments = x.segments(2, r)?;
    let mut dw = vec![0.0; segments.len() * outer * inner];
    for (e, segment) in segments.into_iter().enumerate() {
        let dw = &mut dw[e * outer * inner..(e + 1) * outer * inner];
        for row in segment {
            for o in 0..outer {
                let factor = dy[row * outer + o];
                add_to(&mut dw[o * inner..(o + 1) * inner], &rows[row * inner..(row + 1) * inner], factor);
            }
        }
    }
    Ok(dw)
}

fn grouped_sum(x: &Operands<'_>) -> Result<Vec<f64>, EvalError> {
    let (rows, (r, width)) = (x.f(0), x.matrix(0));
    let segments = x.segments(1, r)?;
    let mut y = vec![0.0; segments.len() * width];
    for (e, segment) in segments.into_iter().enumerate() {
        for row in segment {
            add_to(&mut y[e * width..(e + 1) * width], &rows[row * width..(row + 1) * width], 1.0);
        }
    }
    Ok(y)
}

// ---- norm ----

fn layer_norm(x: &Operands<'_>, epsilon: f64) -> Vec<Data> {
    let (v, gain, shift, (rows, c)) = (x.f(0), x.f(1), x.f(2), x.rows(0));
    let (mut y, mut means, mut rstds) = (Vec::with_capacity(v.len()), Vec::new(), Vec::new());
    for r in 0..rows {
        let row = &v[r * c..(r + 1) * c];
        let mean = row.iter().sum::<f64>() / c as f64;
        let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / c as f64;
        let rstd = 1.0 / (variance + epsilon).sqrt();
        y.extend((0..c).map(|i| (row[i] - mean) * rstd * gain[i] + shift[i]));
        means.push(mean);
        rstds.push(rstd);
    }
    vec![Data::F64(y), Data::F64(means), Data::F64(rstds)]
}

/// With `n = (x - mean) * rstd` and `g = dy * gain`: `dx = rstd * (g - mean(g) - n * mean(g * n))`.
fn layer_norm_grad(x: &Operands<'_>) -> Vec<Data> {
    let (dy, v, gain, means, rstds, (rows, c)) = (x.f(0), x.f(1), x.f(2), x.f(3), x.f(4), x.rows(0));
    let (mut dx, mut dgain, mut dshift) = (Vec::with_capacity(v.len()), vec![0.0; c], vec![0.0; c]);
    for r in 0..rows {
        let n: Vec<f64> = v[r * c..(r + 1) * c].iter().map(|v| (v - means[r]) * rstds[r]).collect();
        let dy = &dy[r * c..(r + 1) * c];
        let g: Vec<f64> = dy.iter().zip(gain.iter()).map(|(dy, gain)| dy * gain).collect();
        let (mean_g, mean_gn) = (g.iter().sum::<f64>() / c as f64, dot(&g, &n) / c as f64);
        for i in 0..c {
            dx.push(rstds[r] * (g[i] - mean_g - n[i] * mean_gn));
            dgain[i] += dy[i] * n[i];
            dshift[i] += dy[i];
        }
    }
    vec![Data::F64(dx), Data::F64(dgain), Data::F64(dshift)]
}

fn rms_norm(x: &Operands<'_>, epsilon: f64) -> Vec<Data> {
    let (v, gain, (rows, c)) = (x.f(0), x.f(1), x.rows(0));
    let (mut y, mut rstds) = (Vec::with_capacity(v.len()), Vec::new());
    for r in 0..rows {
        let row = &v[r * c..(r + 1) * c];
        let rstd = 1.0 / (dot(row, row) / c as f64 + epsilon).sqrt();
        y.extend((0..c).map(|i| row[i] * rstd * gain[i]));
        rstds.push(rstd);
    }
    vec![Data::F64(y), Data::F64(rstds)]
}

/// With `n = x * rstd` and `g = dy * gain`: `dx = rstd * (g - n * mean(g * n))`.
fn rms_norm_grad(x: &Operands<'_>) -> Vec<Data> {
    let (dy, v, gain, rstds, (rows, c)) = (x.f(0), x.f(1), x.f(2), x.f(3), x.rows(0));
    let (mut dx, mut dgain) = (Vec::with_capacity(v.len()), vec![0.0; c]);
    for r in 0..rows {
        let n: Vec<f64> = v[r * c..(r + 1) * c].iter().map(|v| v * rstds[r]).collect();
        let dy = &dy[r * c..(r + 1) * c];
        let g: Vec<f64> = dy.iter().zip(gain.iter()).map(|(dy, gain)| dy * gain).collect();
        let mean_gn = dot(&g, &n) / c as f64;
        for i in 0..c {
            dx.push(rstds[r] * (g[i] - n[i] * mean_gn));
            dgain[i] += dy[i] * n[i];
        }
    }
    vec![Data::F64(dx), Data::F64(dgain)]
}

// ---- softmax family ----

fn per_row(x: &Operands<'_>, mut visit: impl FnMut(&[f64])) {
    let (v, (rows, m)) = (x.f(0), x.rows(0));
    for r in 0..rows {
        visit(&v[r * m..(r + 1) * m]);
    }
}

/// `ln sum e^x` without overflow. A row of -inf (or without elements) gives -inf, one with +inf gives +inf.
fn log_sum_exp(row: &[f64]) -> f64 {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if row.iter().any(|v| v.is_nan()) {
        return f64::NAN;
    }
    if max.is_infinite() {
        return max;
    }
    max + row.iter().map(|v| (v - max).exp()).sum::<f64>().ln()
}

// ---- attention ----

/// Offsets into `qkv [N, 3C]` of the head's query, key and value of token `n`.
struct Heads {
    width: usize,
    head_width: usize,
}

impl Heads {
    fn part<'a>(&self, qkv: &'a [f64], part: usize, n: usize, head: usize) -> &'a [f64] {
        let start = self.start(part, n, head);
        &qkv[start..start + self.head_width]
    }

    fn start(&self, part: usize, n: usize, head: usize) -> usize {
        n * 3 * self.width + part * self.width + head * self.head_width
    }
}

/// Dropout of the attention probabilities, as a factor per element `((b*H + h)*T + query)*T + key`.
fn attention_mask(attrs: &AttentionAttrs, x: &Operands<'_>, rng: usize) -> impl Fn(usize, usize, usize, usize) -> f64 {
    let (heads, time) = (attrs.heads, attrs.time);
    let rate = attrs.dropout.get();
    let mask = (rate > 0.0).then(|| Mask::new(x.rng(rng), attrs.key, rate));
    move |b, h, query, key| {
        mask.as_ref().map_or(1.0, |m| m.apply(1.0, (((b * heads + h) * time + query) * time + key) as u32))
    }
}

fn attention(attrs: &AttentionAttrs, x: &Operands<'_>) -> Vec<Data> {
    let (qkv, (n, width3)) = (x.f(0), x.matrix(0));
    let (width, time) = (width3 / 3, attrs.time);
    let at = Heads { width, head_width: width / attrs.heads };
    let mask = attention_mask(attrs, x, 1);
    let mut y = vec![0.0; n * width];
    let mut lse = vec![0.0; n * attrs.heads];
    for b in 0..n / time {
        for h in 0..attrs.heads {
            for query in 0..time {
                let token = b * time + query;
                let q = at.part(&qkv, 0, token, h);
                let scores: Vec<f64> =
                    (0..=query).map(|key| attrs.scale.get() * dot(q, at.part(&qkv, 1, b * time + key, h))).collect();
                let l = log_sum_exp(&scores);
                lse[token * attrs.heads + h] = l;
                let start = token * width + h * at.head_width;
                let y = &mut y[start..start + at.head_width];
                for (key, score) in scores.iter().enumerate() {
                    let p = (score - l).exp() * mask(b, h, query, key);
                    add_to(y, at.part(&qkv, 2, b * time + key, h), p);
                }
            }
        }
    }
    vec![Data::F64(y), Data::F64(lse)]
}

fn cached_attention(heads: usize, scale: f64, x: &Operands<'_>) -> Vec<Data> {
    let (qkv, mut cache, positions) = (x.f(0), x.f(1).into_owned(), x.i(2));
    let width = x.matrix(0).1 / 3;
    let time = cache.len() / (2 * width * positions.len()).max(1);
    let at = Heads { width, head_width: width / heads };
    let mut y = vec![0.0; positions.len() * width];
    for (n, &position) in positions.iter().enumerate() {
        let Ok(position) = usize::try_from(position) else { continue };
        let row = |place: usize| (n * time + place) * 2 * width;
        cache[row(position % time)..][..2 * width].copy_from_slice(&qkv[n * 3 * width + width..][..2 * width]);
        for h in 0..heads {
            let part =
                |place: usize, part: usize| &cache[row(place) + part * width + h * at.head_width..][..at.head_width];
            let q = at.part(&qkv, 0, n, h);
            let seen = (position + 1).min(time);
            let scores: Vec<f64> = (0..seen).map(|place| scale * dot(q, part(place, 0))).collect();
            let l = log_sum_exp(&scores);
            let y = &mut y[n * width + h * at.head_width..][..at.head_width];
            for (place, score) in scores.iter().enumerate() {
                add_to(y, part(place, 1), (score - l).exp());
            }
        }
    }
    vec![Data::F64(y), Data::F64(cache)]
}

/// With `p` the probabilities, `d` the dropout factors and `s` the scores: `dv = (p d)ᵀ dy`, `dp = d * (dy vᵀ)`,
/// `ds = p * (dp - sum(dp * p))`, where the sum is `dy . y`; then `dq = scale * ds k` and `dk = scale * dsᵀ q`.
fn attention_grad(attrs: &AttentionAttrs, x: &Operands<'_>) -> Vec<f64> {
    let (dy, qkv, y, lse, (n, width3)) = (x.f(0), x.f(1), x.f(2), x.f(3), x.matrix(1));
    let (width, time, scale) = (width3 / 3, attrs.time, attrs.scale.get());
    let at = Heads { width, head_width: width / attrs.heads };
    let mask = attention_mask(attrs, x, 4);
    let mut dqkv = vec![0.0; n * width3];
    for b in 0..n / time {
        for h in 0..attrs.heads {
            for query in 0..time {
                let token = b * time + query;
                let q = at.part(&qkv, 0, token, h);
                let own = token * width + h * at.head_width..token * width + (h + 1) * at.head_width;
                let inner = dot(&dy[own.clone()], &y[own.clone()]);
                for key in 0..=query {
                    let other = b * time + key;
                    let (k, v) = (at.part(&qkv, 1, other, h), at.part(&qkv, 2, other, h));
                    let p = (scale * dot(q, k) - lse[token * attrs.heads + h]).exp();
                    let d = mask(b, h, query, key);
                    let ds = p * (d * dot(&dy[own.clone()], v) - inner);
                    let mut accumulate = |part, n, values: &[f64], factor| {
                        let start = at.start(part, n, h);
                        add_to(&mut dqkv[start..start + at.head_width], values, factor);
                    };
                    accumulate(0, token, k, scale * ds);
                    accumulate(1, other, q, scale * ds);
                    accumulate(2, other, &dy[own.clone()], p * d);
                }
            }
        }
    }
    dqkv
}

fn rotary(x: &Operands<'_>, heads: usize, position: impl Fn(usize) -> f64, base: f64, inverse: bool) -> Vec<f64> {
    let (mut y, (n, width3)) = (x.f(0).into_owned(), x.matrix(0));
    let at = Heads { width: width3 / 3, head_width: width3 / 3 / heads };
    let half = at.head_width / 2;
    for token in 0..n {
        for i in 0..half {
            let angle = position(token) * base.powf(-2.0 * i as f64 / at.head_width as f64);
            let (sin, cos) = if inverse { (-angle).sin_cos() } else { angle.sin_cos() };
            for part in 0..2 {
                for h in 0..heads {
                    let first = at.start(part, token, h) + i;
                    let (a, b) = (y[first], y[first + half]);
                    y[first] = a * cos - b * sin;
                    y[first + half] = a * sin + b * cos;
                }
            }
        }
    }
    y
}

// ---- selection ----

/// The order of decreasing numbers, in which NaN comes after everything, -inf included.
fn decreasing(a: f64, b: f64) -> Ordering {
    b.partial_cmp(&a).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// Ties go to the lower index.
fn top_k(x: &Operands<'_>, k: usize) -> Vec<Data> {
    let (mut values, mut indices) = (Vec::new(), Vec::new());
    per_row(x, |row| {
        let mut order: Vec<usize> = (0..row.len()).collect();
        // A stable sort keeps the lower index first among equals.
        order.sort_by(|&i, &j| decreasing(row[i], row[j]));
        for &i in &order[..k] {
            values.push(row[i]);
            indices.push(i as i32);
        }
    });
    vec![Data::F64(values), Data::I32(indices)]
}

fn limit_capacity(x: &Operands<'_>, experts: usize, capacity: usize, priority: CapacityPriority) -> Vec<Data> {
    let (chosen, (n, k)) = (x.i(0), x.matrix(0));
    let mut order: Vec<usize> = (0..n * k).collect();
    // Stable sorts of slots that stand by token, so the token decides what the key leaves open.
    match priority {
        CapacityPriority::Token => {}
        CapacityPriority::Choice => order.sort_by_key(|slot| slot % k),
        CapacityPriority::Probability => {
            let weights = x.f(1);
            let largest = |token: usize| {
                let row = &weights[token * k..(token + 1) * k];
                row.iter().copied().min_by(|&a, &b| decreasing(a, b)).unwrap_or(f64::NAN)
            };
            let largest: Vec<f64> = (0..n).map(largest).collect();
            order.sort_by(|a, b| (a % k).cmp(&(b % k)).then_with(|| decreasing(largest[a / k], largest[b / k])));
        }
    }
    let mut accepted: BTreeMap<usize, usize> = BTreeMap::new();
    let mut kept = vec![-1; n * k];
    for slot in order {
        if let Some(expert) = within(chosen[slot], experts) {
            let accepted = accepted.entry(expert).or_default();
            if *accepted < capacity {
                *accepted += 1;
                kept[slot] = chosen[slot];
            }
        }
    }
    vec![Data::I32(kept)]
}

fn sort_by_expert(x: &Operands<'_>, experts: usize, rows: usize) -> Vec<Data> {
    let mut slots: Vec<Vec<usize>> = vec![Vec::new(); experts];
    for (slot, &expert) in x.i(0).iter().enumerate() {
        if let Some(e) = within(expert, experts) {
            slots[e].push(slot);
        }
    }
    let mut offsets = vec![0];
    let mut order = Vec::new();
    let mut positions = vec![-1; x.i(0).len()];
    for slots in slots {
        let room = rows - order.len();
        for slot in slots.into_iter().take(room) {
            positions[slot] = order.len() as i32;
            order.push(slot as i32);
        }
        offsets.push(order.len() as i32);
    }
    order.resize(rows, -1);
    vec![Data::I32(offsets), Data::I32(order), Data::I32(positions)]
}

// ---- optimiser ----

/// Loshchilov & Hutter 2019, algorithm 2, in the order in which PyTorch computes it: the decay acts on the old weight.
fn adamw(attrs: &AdamWAttrs, x: &Operands<'_>) -> Vec<Data> {
    // Four operands a tensor, then one or two.
    let shared = x.tensors.len() / 4 * 4;
    let hyper = x.f(shared);
    let scale = if x.tensors.len() > shared + 1 { x.f(shared + 1)[0] } else { 1.0 };
    let (lr, correction1, correction2) = (hyper[0], hyper[1], hyper[2]);
    let (beta1, beta2) = (attrs.beta1.get(), attrs.beta2.get());
    let mut results = Vec::with_capacity(shared / 4 * 3);
    for first in (0..shared).step_by(4) {
        let (mut p, g) = (x.f(first).into_owned(), x.f(first + 1));
        let (mut m, mut v) = (x.f(first + 2).into_owned(), x.f(first + 3).into_owned());
        for i in 0..p.len() {
            let g = g[i] * scale;
            p[i] *= 1.0 - lr * attrs.weight_decay.get();
            m[i] = beta1 * m[i] + (1.0 - beta1) * g;
            v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
            p[i] -= lr / correction1 * m[i] / (v[i].sqrt() / correction2.sqrt() + attrs.epsilon.get());
        }
        results.extend([p, m, v].map(Data::F64));
    }
    results
}

#[cfg(test)]
mod tests;

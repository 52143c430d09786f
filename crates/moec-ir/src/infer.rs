//! Types of the results of an operation from the types of its operands.

use crate::op::{Access, CapacityPriority, FusedProgram, Instr, Op};
use crate::types::{DType, TensorType};

/// Why an operation does not fit its operands.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InferError {
    /// An operand is not a value of the graph.
    #[error("an operand is not a value of this graph")]
    UnknownOperand,
    /// Wrong number of operands.
    #[error("{op} takes {expected} operands, not {found}")]
    Arity {
        /// Mnemonic of the operation.
        op: &'static str,
        /// How many it takes.
        expected: String,
        /// How many it got.
        found: usize,
    },
    /// Operand types do not fit.
    #[error("{op}: {message}")]
    Mismatch {
        /// Mnemonic of the operation.
        op: &'static str,
        /// What was expected and what was found.
        message: String,
    },
}

/// Product of extents, saturating so that a hostile shape is reported and not wrapped around.
fn product(extents: &[usize]) -> usize {
    extents.iter().fold(1, |n, &d| n.saturating_mul(d))
}

/// Most axes of a permuted tensor.
const MOST_PERMUTED: usize = 4;

/// Most tokens and three times the experts of a balanced assignment together: its kernel keeps a price and a holder of
/// every place, and three numbers of every expert, in a buffer of fixed size.
const MOST_BALANCED: usize = 1 << 18;

/// Most tokens of a loss that is computed with its gradient: its kernel keeps a number of each in half of a buffer of
/// fixed size.
const MOST_FUSED_TOKENS: usize = 1 << 19;

/// Most tensors that one operation updates: a result is named by 8 bits, and every tensor has three.
const MOST_UPDATED: usize = 85;

struct Check<'a> {
    op: &'static str,
    types: &'a [&'a TensorType],
}

impl<'a> Check<'a> {
    fn arity(&self, n: usize) -> Result<(), InferError> {
        if self.types.len() == n {
            return Ok(());
        }
        Err(InferError::Arity { op: self.op, expected: n.to_string(), found: self.types.len() })
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T, InferError> {
        Err(InferError::Mismatch { op: self.op, message: message.into() })
    }

    fn require(&self, ok: bool, message: impl FnOnce() -> String) -> Result<(), InferError> {
        if ok { Ok(()) } else { self.fail(message()) }
    }

    fn ty(&self, i: usize) -> &'a TensorType {
        self.types[i]
    }

    /// Operand `i` must be f32.
    fn float(&self, i: usize) -> Result<&'a [usize], InferError> {
        let t = self.ty(i);
        self.require(t.dtype == DType::F32, || format!("operand {i} must be f32, not {t}"))?;
        Ok(&t.shape)
    }

    /// Operand `i` must be i32.
    fn int(&self, i: usize) -> Result<&'a [usize], InferError> {
        let t = self.ty(i);
        self.require(t.dtype == DType::I32, || format!("operand {i} must be i32, not {t}"))?;
        Ok(&t.shape)
    }

    fn float_matrix(&self, i: usize) -> Result<(usize, usize), InferError> {
        match self.float(i)? {
            &[r, c] => Ok((r, c)),
            _ => self.fail(format!("operand {i} must be a matrix, not {}", self.ty(i))),
        }
    }

    fn int_matrix(&self, i: usize) -> Result<(usize, usize), InferError> {
        match self.int(i)? {
            &[r, c] => Ok((r, c)),
            _ => self.fail(format!("operand {i} must be a matrix of indices, not {}", self.ty(i))),
        }
    }

    fn is(&self, i: usize, expected: &TensorType) -> Result<(), InferError> {
        self.require(self.ty(i) == expected, || format!("operand {i} must be {expected}, not {}", self.ty(i)))
    }

    fn rng(&self, i: usize) -> Result<(), InferError> {
        self.is(i, &TensorType::i32([4]))
    }

    /// The last axis of float operand `i` and the number of rows before it.
    fn rows(&self, i: usize) -> Result<(usize, usize), InferError> {
        let shape = self.float(i)?;
        match shape.split_last() {
            Some((&c, rest)) => Ok((product(rest), c)),
            None => self.fail(format!("operand {i} must have at least one axis")),
        }
    }
}

/// Types of the results of `op`, in slot order.
///
/// # Errors
/// When the number or the types of the operands do not fit the operation.
pub fn infer(op: &Op, types: &[&TensorType]) -> Result<Vec<TensorType>, InferError> {
    let c = Check { op: op.mnemonic(), types };
    let f32s = |shape: &[usize]| TensorType::f32(shape.to_vec());
    Ok(match op {
        Op::Input { ty, .. } | Op::Parameter { ty, .. } | Op::State { ty, .. } => {
            c.arity(0)?;
            vec![ty.clone()]
        }
        Op::Fill { ty, .. } => {
            c.arity(0)?;
            c.require(ty.dtype == DType::F32, || format!("a fill is f32, not {ty}"))?;
            vec![ty.clone()]
        }
        Op::Ramp { length, step } => {
            c.arity(0)?;
            let last = i64::try_from(length.saturating_sub(1)).ok().and_then(|n| n.checked_mul(i64::from(*step)));
            let fits = i32::try_from(*length).is_ok() && last.is_some_and(|last| i32::try_from(last).is_ok());
            c.require(fits, || format!("{length} steps of {step} leave the range of i32"))?;
            vec![TensorType::i32([*length])]
        }
        Op::Reshape { shape } => {
            c.arity(1)?;
            let to = TensorType { dtype: c.ty(0).dtype, shape: shape.clone() };
            c.require(to.elements() == c.ty(0).elements(), || format!("{} cannot become {to}", c.ty(0)))?;
            vec![to]
        }
        Op::Broadcast { shape } => {
            c.arity(1)?;
            let (from, to) = (&c.ty(0).shape, TensorType { dtype: c.ty(0).dtype, shape: shape.clone() });
            let lead = shape.len().checked_sub(from.len());
            let fits = lead.is_some_and(|lead| from.iter().zip(&shape[lead..]).all(|(&a, &b)| a == b || a == 1));
            c.require(fits, || format!("{} does not broadcast to {to}", c.ty(0)))?;
            vec![to]
        }
        Op::Permute { axes } => {
            c.arity(1)?;
            let shape = c.float(0)?;
            c.require(shape.len() <= MOST_PERMUTED, || format!("{} has more than {MOST_PERMUTED} axes", c.ty(0)))?;
            let once = axes.len() == shape.len() && (0..shape.len()).all(|axis| axes.contains(&axis));
            c.require(once, || format!("axes {axes:?} are not each axis of {} once", c.ty(0)))?;
            vec![f32s(&axes.iter().map(|&axis| shape[axis]).collect::<Vec<_>>())]
        }
        Op::StopGradient => {
            c.arity(1)?;
            vec![f32s(c.float(0)?)]
        }
        Op::ToFloat => {
            c.arity(1)?;
            vec![f32s(c.int(0)?)]
        }
        Op::ToIndex { size } => {
            c.arity(1)?;
            c.require(i32::try_from(*size).is_ok(), || format!("indices below {size} do not fit into i32"))?;
            vec![TensorType::i32(c.float(0)?)]
        }
        Op::Lookup => {
            c.arity(2)?;
            let ids = c.int(0)?;
            let table = c.int(1)?;
            c.require(matches!(table, &[v] if v > 0), || format!("operand 1 must be i32[V], not {}", c.ty(1)))?;
            vec![TensorType::i32(ids)]
        }
        Op::Previous { time } => {
            c.arity(1)?;
            let &[n] = c.int(0)? else {
                return c.fail(format!("operand 0 must be i32[N], not {}", c.ty(0)));
            };
            c.require(*time > 0 && n % time == 0, || format!("{n} tokens are not whole sequences of {time}"))?;
            vec![c.ty(0).clone()]
        }
        Op::Unary(_) => {
            c.arity(1)?;
            vec![f32s(c.float(0)?)]
        }
        Op::Binary(_) => {
            c.arity(2)?;
            let a = f32s(c.float(0)?);
            c.is(1, &a)?;
            vec![a]
        }
        Op::Select => {
            c.arity(3)?;
            let a = f32s(c.float(0)?);
            c.is(1, &a)?;
            c.is(2, &a)?;
            vec![a]
        }
        Op::Fused(program) => fused(&c, program)?,
        Op::FusedAfter { producer, program } => {
            let operands = producer.operands_of_producer();
            let split = operands.filter(|&n| n <= types.len() && program.accesses.first() == Some(&Access::Full));
            let Some(split) = split else {
                return c.fail("it must be an operation with its operands, read in full by the program");
            };
            let mut made = infer(producer, &types[..split])?.into_iter();
            let first: Vec<TensorType> = made.by_ref().take(1).collect();
            let rest: Vec<&TensorType> = first.iter().chain(types[split..].iter().copied()).collect();
            let mut results = fused(&Check { op: op.mnemonic(), types: &rest }, program)?;
            results.extend(made);
            results
        }
        Op::DispatchedProduct(product) => {
            let (Some(at), Some((own, [order, positions]))) = (product.dispatched_operand(), types.split_last_chunk())
            else {
                return c.fail("it must be a grouped product with its operands, an order and positions");
            };
            c.require(at < own.len(), || "the operand to fetch is missing".into())?;
            let dispatched = infer(&Op::Dispatch { weighted: false }, &[own[at], order, positions])?;
            let mut own = own.to_vec();
            own[at] = &dispatched[0];
            infer(product, &own)?
        }
        Op::ProductWithSums(product) => {
            let mut made = infer(product, types)?;
            let summed = match **product {
                Op::MatMul { transpose_a: true, bias: false, .. } => made[0].shape[..1].to_vec(),
                Op::GroupedMatMulWeightGrad => made[0].shape[..2].to_vec(),
                Op::DispatchedProduct(ref inner) if **inner == Op::GroupedMatMulWeightGrad => {
                    made[0].shape[..2].to_vec()
                }
                _ => return c.fail("it must be a product over the rows of its first operand"),
            };
            made.push(f32s(&summed));
            made
        }
        Op::Sum { axes } => {
            c.arity(1)?;
            let shape = c.float(0)?;
            let sorted = axes.windows(2).all(|w| w[0] < w[1]) && axes.iter().all(|&a| a < shape.len());
            c.require(sorted && !axes.is_empty(), || format!("axes {axes:?} must be ascending axes of {}", c.ty(0)))?;
            let kept: Vec<usize> =
                shape.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, &d)| d).collect();
            vec![f32s(&kept)]
        }
        Op::SumOfSquares => {
            c.require(!types.is_empty(), || "needs at least one operand".into())?;
            for i in 0..types.len() {
                c.float(i)?;
            }
            vec![f32s(&[])]
        }
        Op::MatMul { transpose_a, transpose_b, bias } => {
            c.arity(2 + usize::from(*bias))?;
            let (a0, a1) = c.float_matrix(0)?;
            let (b0, b1) = c.float_matrix(1)?;
            let (m, k) = if *transpose_a { (a1, a0) } else { (a0, a1) };
            let (k2, n) = if *transpose_b { (b1, b0) } else { (b0, b1) };
            c.require(k == k2, || format!("inner extents differ: {k} (of {}) and {k2} (of {})", c.ty(0), c.ty(1)))?;
            if *bias {
                c.is(2, &f32s(&[n]))?;
            }
            vec![f32s(&[m, n])]
        }
        Op::GroupedMatMul { transpose_b, bias } => {
            c.arity(3 + usize::from(*bias))?;
            let (rows, inner) = c.float_matrix(0)?;
            let &[e, w1, w2] = c.float(1)? else {
                return c.fail(format!("operand 1 must be [E, O, I] weights, not {}", c.ty(1)));
            };
            let (k, n) = if *transpose_b { (w2, w1) } else { (w1, w2) };
            c.require(k == inner, || {
                format!("inner extents differ: {inner} (of {}) and {k} (of {})", c.ty(0), c.ty(1))
            })?;
            c.is(2, &TensorType::i32([e.saturating_add(1)]))?;
            if *bias {
                c.is(3, &f32s(&[e, n]))?;
            }
            vec![f32s(&[rows, n])]
        }
        Op::GroupedMatMulWeightGrad => {
            c.arity(3)?;
            let (r1, o) = c.float_matrix(0)?;
            let (r2, i) = c.float_matrix(1)?;
            c.require(r1 == r2, || format!("row counts differ: {r1} and {r2}"))?;
            vec![f32s(&[offsets(&c, 2)?, o, i])]
        }
        Op::GroupedSum => {
            c.arity(2)?;
            let (_, o) = c.float_matrix(0)?;
            vec![f32s(&[offsets(&c, 1)?, o])]
        }
        Op::LayerNorm { .. } => {
            c.arity(3)?;
            let (rows, ch) = c.rows(0)?;
            c.is(1, &f32s(&[ch]))?;
            c.is(2, &f32s(&[ch]))?;
            vec![c.ty(0).clone(), f32s(&[rows]), f32s(&[rows])]
        }
        Op::LayerNormGrad => {
            c.arity(5)?;
            let (rows, ch) = c.rows(0)?;
            c.is(1, c.ty(0))?;
            c.is(2, &f32s(&[ch]))?;
            c.is(3, &f32s(&[rows]))?;
            c.is(4, &f32s(&[rows]))?;
            vec![c.ty(0).clone(), f32s(&[ch]), f32s(&[ch])]
        }
        Op::RmsNorm { .. } => {
            c.arity(2)?;
            let (rows, ch) = c.rows(0)?;
            c.is(1, &f32s(&[ch]))?;
            vec![c.ty(0).clone(), f32s(&[rows])]
        }
        Op::RmsNormGrad => {
            c.arity(4)?;
            let (rows, ch) = c.rows(0)?;
            c.is(1, c.ty(0))?;
            c.is(2, &f32s(&[ch]))?;
            c.is(3, &f32s(&[rows]))?;
            vec![c.ty(0).clone(), f32s(&[ch])]
        }
        Op::Softmax => {
            c.arity(1)?;
            c.rows(0)?;
            vec![c.ty(0).clone()]
        }
        Op::SoftmaxGrad => {
            c.arity(2)?;
            c.rows(0)?;
            c.is(1, c.ty(0))?;
            vec![c.ty(0).clone()]
        }
        Op::LogSumExp => {
            c.arity(1)?;
            c.rows(0)?;
            let shape = c.float(0)?;
            vec![f32s(&shape[..shape.len() - 1])]
        }
        Op::Attention(a) => {
            c.arity(1 + usize::from(a.dropout.get() > 0.0))?;
            let (n, width) = attention_qkv(&c, 0, a.heads, a.time)?;
            if a.dropout.get() > 0.0 {
                c.rng(1)?;
            }
            vec![f32s(&[n, width]), f32s(&[n, a.heads])]
        }
        Op::AttentionGrad(a) => {
            c.arity(4 + usize::from(a.dropout.get() > 0.0))?;
            let (n, width) = attention_qkv(&c, 1, a.heads, a.time)?;
            c.is(0, &f32s(&[n, width]))?;
            c.is(2, &f32s(&[n, width]))?;
            c.is(3, &f32s(&[n, a.heads]))?;
            if a.dropout.get() > 0.0 {
                c.rng(4)?;
            }
            vec![c.ty(1).clone()]
        }
        Op::CachedAttention { heads, .. } => {
            c.arity(3)?;
            let (n, width) = attention_qkv(&c, 0, *heads, 1)?;
            let time = match c.float(1)? {
                &[_, time, _] if time > 0 => time,
                _ => return c.fail(format!("operand 1 must be [S, T, 2C], not {}", c.ty(1))),
            };
            c.is(1, &f32s(&[n, time, 2 * width]))?;
            c.is(2, &TensorType::i32([n]))?;
            vec![f32s(&[n, width]), c.ty(1).clone()]
        }
        Op::Rotary { heads, time, positions, .. } => {
            c.arity(1 + usize::from(*positions))?;
            let (n, width) = attention_qkv(&c, 0, *heads, *time)?;
            c.require((width / heads).is_multiple_of(2), || {
                format!("rotary positions need an even head width, not {}", width / heads)
            })?;
            if *positions {
                c.is(1, &TensorType::i32([n]))?;
            }
            vec![c.ty(0).clone()]
        }
        Op::Embed => {
            c.arity(2)?;
            let ids = c.int(0)?;
            c.require(ids.len() == 1, || format!("operand 0 must be i32[N], not {}", c.ty(0)))?;
            let (_, ch) = c.float_matrix(1)?;
            vec![f32s(&[ids[0], ch])]
        }
        Op::EmbedGrad { rows } => {
            c.arity(2)?;
            let ids = c.int(0)?;
            let (n, ch) = c.float_matrix(1)?;
            c.require(ids == [n], || format!("operand 0 must be i32[{n}], not {}", c.ty(0)))?;
            vec![f32s(&[*rows, ch])]
        }
        Op::CrossEntropy => {
            c.arity(2)?;
            let (n, _) = c.float_matrix(0)?;
            c.is(1, &TensorType::i32([n]))?;
            vec![f32s(&[]), f32s(&[n])]
        }
        Op::CrossEntropyGrad => {
            c.arity(4)?;
            c.is(0, &f32s(&[]))?;
            let (n, _) = c.float_matrix(1)?;
            c.is(2, &f32s(&[n]))?;
            c.is(3, &TensorType::i32([n]))?;
            vec![c.ty(1).clone()]
        }
        Op::FusedCrossEntropy { .. } => {
            c.arity(2)?;
            let (n, _) = c.float_matrix(0)?;
            c.require(n <= MOST_FUSED_TOKENS, || format!("{n} tokens are more than {MOST_FUSED_TOKENS}"))?;
            c.is(1, &TensorType::i32([n]))?;
            vec![f32s(&[]), c.ty(0).clone()]
        }
        Op::RandomNormal { shape, .. } | Op::RandomUniform { shape, .. } => {
            c.arity(1)?;
            c.rng(0)?;
            vec![f32s(shape)]
        }
        Op::Dropout { rate, .. } => {
            c.arity(2)?;
            c.float(0)?;
            c.rng(1)?;
            c.require((0.0..1.0).contains(&rate.get()), || format!("rate {rate} is not in [0, 1)"))?;
            vec![c.ty(0).clone()]
        }
        Op::TopK { k } => {
            c.arity(1)?;
            let (n, e) = c.float_matrix(0)?;
            c.require(*k >= 1 && *k <= e, || format!("k = {k} is not in 1..={e}"))?;
            vec![f32s(&[n, *k]), TensorType::i32([n, *k])]
        }
        Op::GatherLast => {
            c.arity(2)?;
            let (n, _) = c.float_matrix(0)?;
            let (n2, k) = c.int_matrix(1)?;
            c.require(n == n2, || format!("row counts differ: {n} and {n2}"))?;
            vec![f32s(&[n, k])]
        }
        Op::ScatterLast { size } => {
            c.arity(2)?;
            let (n, k) = c.float_matrix(0)?;
            c.is(1, &TensorType::i32([n, k]))?;
            vec![f32s(&[n, *size])]
        }
        Op::Count { size } => {
            c.arity(1)?;
            c.int(0)?;
            vec![f32s(&[*size])]
        }
        Op::LimitCapacity { capacity, priority, .. } => {
            let weighted = *priority == CapacityPriority::Probability;
            c.arity(1 + usize::from(weighted))?;
            let (n, k) = c.int_matrix(0)?;
            if weighted {
                c.is(1, &f32s(&[n, k]))?;
            }
            c.require(*capacity >= 1, || "capacity must be at least 1".into())?;
            vec![c.ty(0).clone()]
        }
        Op::BalancedAssignment => {
            c.arity(1)?;
            let (n, e) = c.float_matrix(0)?;
            c.require(e >= 1, || "there must be at least one expert".into())?;
            c.require(n.saturating_add(e.saturating_mul(3)) <= MOST_BALANCED, || {
                format!("{n} tokens and 3 times {e} experts are more than {MOST_BALANCED} together")
            })?;
            vec![TensorType::i32([n, 1])]
        }
        Op::SortByExpert { experts, rows } => {
            c.arity(1)?;
            let (n, k) = c.int_matrix(0)?;
            let slots = n.saturating_mul(k);
            c.require(*rows <= slots && (*rows > 0 || slots == 0), || {
                format!("the number of rows, {rows}, is not in 1..={slots}")
            })?;
            vec![TensorType::i32([experts.saturating_add(1)]), TensorType::i32([*rows]), TensorType::i32([n, k])]
        }
        Op::Dispatch { weighted } => {
            c.arity(3 + usize::from(*weighted))?;
            let (n, ch) = c.float_matrix(0)?;
            let rows = slots(&c, 1, n, *weighted)?;
            vec![f32s(&[rows, ch])]
        }
        Op::Combine { weighted } => {
            c.arity(3 + usize::from(*weighted))?;
            let (rows, ch) = c.float_matrix(0)?;
            let (n, _) = c.int_matrix(2)?;
            let r = slots(&c, 1, n, *weighted)?;
            c.require(r == rows, || format!("{} has not the {r} rows of operand 1", c.ty(0)))?;
            vec![f32s(&[n, ch])]
        }
        Op::CombineWeightGrad => {
            c.arity(3)?;
            let (n, ch) = c.float_matrix(0)?;
            let (rows, ch2) = c.float_matrix(1)?;
            let (n2, k) = c.int_matrix(2)?;
            c.require(ch == ch2 && n == n2 && rows <= n.saturating_mul(k), || {
                format!("{}, {} and {} do not fit", c.ty(0), c.ty(1), c.ty(2))
            })?;
            vec![f32s(&[n, k])]
        }
        Op::AdamW(_) => {
            let (tensors, rest) = (types.len() / 4, types.len() % 4);
            c.require((1..=MOST_UPDATED).contains(&tensors) && (rest == 1 || rest == 2), || {
                let message = "takes 4 operands for each of 1 to";
                format!("{message} {MOST_UPDATED} tensors, then 1 or 2, not {} in all", types.len())
            })?;
            let mut results = Vec::with_capacity(3 * tensors);
            for first in (0..4 * tensors).step_by(4) {
                let p = f32s(c.float(first)?);
                for i in first + 1..first + 4 {
                    c.is(i, &p)?;
                }
                results.extend([p.clone(), p.clone(), p]);
            }
            c.is(4 * tensors, &f32s(&[3]))?;
            if rest == 2 {
                c.is(4 * tensors + 1, &f32s(&[]))?;
            }
            results
        }
    })
}

/// Number of experts from an `offsets` operand.
fn offsets(c: &Check<'_>, i: usize) -> Result<usize, InferError> {
    match c.int(i)? {
        &[n] if n >= 2 => Ok(n - 1),
        _ => c.fail(format!("operand {i} must be i32[E + 1] offsets, not {}", c.ty(i))),
    }
}

/// Checks `order`, `positions` and the optional weights of dispatch and combine; returns the number of rows R.
fn slots(c: &Check<'_>, order: usize, tokens: usize, weighted: bool) -> Result<usize, InferError> {
    let (n, k) = c.int_matrix(order + 1)?;
    c.require(n == tokens, || format!("{} is for {n} tokens, not {tokens}", c.ty(order + 1)))?;
    let slots = n.saturating_mul(k);
    let &[rows] = c.int(order)? else {
        return c.fail(format!("operand {order} must be i32[R], not {}", c.ty(order)));
    };
    c.require(rows <= slots, || format!("{} has more rows than there are slots ({slots})", c.ty(order)))?;
    if weighted {
        c.is(order + 2, &TensorType::f32([n, k]))?;
    }
    Ok(rows)
}

/// Checks a `qkv` operand; returns N and C.
fn attention_qkv(c: &Check<'_>, i: usize, heads: usize, time: usize) -> Result<(usize, usize), InferError> {
    let (n, c3) = c.float_matrix(i)?;
    c.require(time > 0 && n % time == 0, || format!("{n} tokens are not whole sequences of {time}"))?;
    c.require(heads > 0 && c3 % 3 == 0 && (c3 / 3) % heads == 0, || {
        format!("{} channels are not 3 parts of {heads} heads", c3)
    })?;
    Ok((n, c3 / 3))
}

fn fused(c: &Check<'_>, p: &FusedProgram) -> Result<Vec<TensorType>, InferError> {
    c.arity(p.accesses.len() + usize::from(p.uses_random()))?;
    let total = product(&p.shape);
    for (i, access) in p.accesses.iter().enumerate() {
        c.float(i)?;
        let n = c.ty(i).elements();
        let fits = match access {
            Access::Full => n == total,
            Access::Repeat => n > 0 && total.is_multiple_of(n),
            Access::Stretch { inner } => n.checked_mul(*inner) == Some(total),
            Access::Scalar => n == 1,
        };
        c.require(fits, || format!("operand {i} of type {} is not read as {access:?} of {total} elements", c.ty(i)))?;
    }
    if p.uses_random() {
        c.rng(p.accesses.len())?;
    }
    for (j, instr) in p.instructions.iter().enumerate() {
        let ok = match *instr {
            Instr::Load(i) => i < p.accesses.len(),
            Instr::Const(_) => true,
            Instr::Unary(_, a) | Instr::Dropout { value: a, .. } => a < j,
            Instr::Binary(_, a, b) => a < j && b < j,
            Instr::Select(q, a, b) => q < j && a < j && b < j,
        };
        c.require(ok, || format!("instruction {j} reads what is not there"))?;
    }
    c.require(!p.results.is_empty() && p.results.iter().all(|&r| r < p.instructions.len()), || {
        "results must name registers".into()
    })?;
    Ok(p.results.iter().map(|_| TensorType::f32(p.shape.clone())).collect())
}

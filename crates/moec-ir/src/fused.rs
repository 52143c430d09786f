//! Several operations in one, which only passes make: everything about them that the other operations have in the table
//! of [`crate::Op`] and in the files of their families. The text form is read in `text/parse/fused.rs`.

use crate::declaration::{Declaration, Family, Gradient, OutOfRange, Range, Slot};
use crate::eval::evaluate_op;
use crate::family::infer;
use crate::family::linear::grouped_sum;
use crate::family::random::Mask;
use crate::family::reduction::sum;
use crate::function::{Binary, Unary};
use crate::infer::{Check, InferError, product};
use crate::internal::Invariant;
use crate::internal_error;
use crate::op::Op;
use crate::operands::{EvalError, Operands};
use crate::stage::Stage;
use crate::tensor::{Data, Tensor};
use crate::text;
use crate::types::{Real, TensorType};
use crate::verify::Draw;
use std::borrow::Cow;

/// How a fused program reads one operand while it walks over the elements `i` of its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// `operand[i]`
    Full,
    /// `operand[i % operand.len()]`: broadcast over leading axes, a bias for example.
    Repeat,
    /// `operand[i / inner]`: broadcast over trailing axes that hold `inner` elements, a row statistic for example.
    Stretch {
        /// Number of consecutive result elements that read the same operand element.
        inner: usize,
    },
    /// `operand[0]`
    Scalar,
}

/// One instruction of a fused program. Instruction `j` writes register `j`; operands name earlier registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Instr {
    /// Reads operand number `.0` with its [`Access`].
    Load(usize),
    /// A constant.
    Const(Real),
    /// One-operand function.
    Unary(Unary, usize),
    /// Two-operand function.
    Binary(Binary, usize, usize),
    /// `if r[.0] != 0 { r[.1] } else { r[.2] }`
    Select(usize, usize, usize),
    /// [`Op::Dropout`] of a register; the generator state is the last operand of the fused node.
    Dropout {
        /// Register that is masked.
        value: usize,
        /// Probability of zero.
        rate: Real,
        /// Stream of random numbers.
        key: u32,
    },
}

/// A straight-line elementwise program over operands that broadcast to one result shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FusedProgram {
    /// Shape of every result.
    pub shape: Vec<usize>,
    /// One entry per float operand, in operand order. A generator state (needed by `Dropout`) comes after them.
    pub accesses: Vec<Access>,
    /// The program.
    pub instructions: Vec<Instr>,
    /// Registers that are results, in result order.
    pub results: Vec<usize>,
}

impl FusedProgram {
    /// Whether the program needs the generator state as its last operand.
    pub fn uses_random(&self) -> bool {
        self.instructions.iter().any(|i| matches!(i, Instr::Dropout { .. }))
    }
}

/// Most tokens of a loss that is computed with its gradient: its kernel keeps a number of each in half of a buffer of
/// fixed size.
const MOST_FUSED_TOKENS: usize = 1 << 19;

/// What is the same for all of them.
pub(crate) static DECLARATION: Declaration = Declaration {
    mnemonic: "fused",
    family: Family::Fused,
    doc: &["Several operations in one."],
    operands: &[],
    results: &[Slot { name: "y", ty: "[..]", always: true }],
    attributes: &[],
    stage: (Stage::Optimized, None),
    gradient: Gradient::None,
    random: true,
};

impl Op {
    /// Number of operands, if an elementwise program can go on with the first result ([`Op::FusedAfter`]).
    pub fn operands_of_producer(&self) -> Option<usize> {
        match self {
            Op::MatMul { bias, .. } => Some(2 + usize::from(*bias)),
            Op::GroupedMatMul { bias, .. } => Some(3 + usize::from(*bias)),
            Op::DispatchedProduct(product) => product.operands_of_producer().map(|n| n + 2),
            Op::LayerNormGrad => Some(5),
            Op::RmsNormGrad => Some(4),
            Op::Embed => Some(2),
            Op::Dispatch { weighted } | Op::Combine { weighted } => Some(3 + usize::from(*weighted)),
            _ => None,
        }
    }

    /// The operation that [`Op::FusedAfter`], [`Op::ProductWithSums`] and [`Op::DispatchedProduct`] are built around; any
    /// other operation itself.
    pub fn innermost(&self) -> &Op {
        match self {
            Op::FusedAfter { producer: inner, .. } | Op::ProductWithSums(inner) | Op::DispatchedProduct(inner) => {
                inner.innermost()
            }
            op => op,
        }
    }

    /// Position of the operand that [`Op::DispatchedProduct`] fetches, if this is a product for it.
    pub fn dispatched_operand(&self) -> Option<usize> {
        match self {
            Op::GroupedMatMul { .. } => Some(0),
            Op::GroupedMatMulWeightGrad => Some(1),
            _ => None,
        }
    }
}

/// Name in the text form; `None` of an operation of the table.
pub(crate) fn mnemonic(op: &Op) -> Option<&'static str> {
    Some(match op {
        Op::Fused(_) => "fused",
        Op::FusedAfter { producer, .. } => match **producer {
            Op::GroupedMatMul { .. } => "fused_grouped_matmul",
            Op::DispatchedProduct(_) => "fused_dispatched_grouped_matmul",
            Op::LayerNormGrad => "fused_layer_norm_grad",
            Op::RmsNormGrad => "fused_rms_norm_grad",
            Op::Embed => "fused_embed",
            Op::Dispatch { .. } => "fused_dispatch",
            Op::Combine { .. } => "fused_combine",
            _ => "fused_matmul",
        },
        Op::ProductWithSums(product) => match **product {
            Op::GroupedMatMulWeightGrad => "grouped_matmul_weight_grad_with_sums",
            Op::DispatchedProduct(_) => "dispatched_grouped_matmul_weight_grad_with_sums",
            _ => "matmul_with_sums",
        },
        Op::DispatchedProduct(product) => match **product {
            Op::GroupedMatMulWeightGrad => "dispatched_grouped_matmul_weight_grad",
            _ => "dispatched_grouped_matmul",
        },
        Op::FusedCrossEntropy { .. } => "fused_cross_entropy",
        _ => return None,
    })
}

/// Attributes as they stand in braces.
pub(crate) fn texts(op: &Op) -> Vec<String> {
    match op {
        Op::Fused(program) => program_texts(program),
        Op::FusedAfter { producer, program } => {
            let mut list = text::attributes(producer, "");
            list.extend(program_texts(program));
            list
        }
        Op::ProductWithSums(product) | Op::DispatchedProduct(product) => text::attributes(product, ""),
        Op::FusedCrossEntropy { dloss } => vec![format!("dloss = {dloss}")],
        _ => Vec::new(),
    }
}

/// `access = [full, repeat], t0 = load(0), t1 = load(1), t2 = add(t0, t1), results = [t2]`
fn program_texts(program: &FusedProgram) -> Vec<String> {
    let access = |a: &Access| match a {
        Access::Full => "full".to_string(),
        Access::Repeat => "repeat".to_string(),
        Access::Stretch { inner } => format!("stretch({inner})"),
        Access::Scalar => "scalar".to_string(),
    };
    let accesses: Vec<String> = program.accesses.iter().map(access).collect();
    let results: Vec<String> = program.results.iter().map(|r| format!("t{r}")).collect();
    let mut list = vec![format!("access = [{}]", accesses.join(", "))];
    list.extend(program.instructions.iter().enumerate().map(|(j, instr)| {
        let right = match instr {
            Instr::Load(i) => format!("load({i})"),
            Instr::Const(value) => format!("const({value})"),
            Instr::Unary(f, a) => format!("{}(t{a})", f.mnemonic()),
            Instr::Binary(f, a, b) => format!("{}(t{a}, t{b})", f.mnemonic()),
            Instr::Select(condition, a, b) => format!("select(t{condition}, t{a}, t{b})"),
            Instr::Dropout { value, rate, key } => format!("dropout(t{value}, rate = {rate}, key = {key})"),
        };
        format!("t{j} = {right}")
    }));
    list.push(format!("results = [{}]", results.join(", ")));
    list
}

/// Attributes that are not in their range.
pub(crate) fn out_of_range(op: &Op) -> Vec<OutOfRange> {
    let (Op::Fused(program) | Op::FusedAfter { program, .. }) = op else { return Vec::new() };
    let rates = program.instructions.iter().filter_map(|instr| match instr {
        Instr::Dropout { rate, .. } if !Range::Share.holds(rate.get()) => Some(rate),
        _ => None,
    });
    rates.map(|rate| OutOfRange { attribute: "rate", value: rate.to_string(), range: Range::Share }).collect()
}

/// What a program draws, by key.
pub(crate) fn draws(op: &Op) -> Vec<(u32, Draw)> {
    let (Op::Fused(program) | Op::FusedAfter { program, .. }) = op else { return Vec::new() };
    let elements = product(&program.shape) as u64;
    let dropout = |instr: &Instr| match *instr {
        Instr::Dropout { rate, key, .. } => Some((key, Draw::Dropout { rate, elements })),
        Instr::Load(_) | Instr::Const(_) | Instr::Unary(..) | Instr::Binary(..) | Instr::Select(..) => None,
    };
    program.instructions.iter().filter_map(dropout).collect()
}

/// Types of results.
pub(crate) fn infer_types(op: &Op, c: &Check<'_>) -> Result<Vec<TensorType>, InferError> {
    let types = c.types;
    Ok(match op {
        Op::Fused(program) => program_types(c, program)?,
        Op::FusedAfter { producer, program } => {
            let operands = producer.operands_of_producer();
            let split = operands.filter(|&n| n <= types.len() && program.accesses.first() == Some(&Access::Full));
            let Some(split) = split else {
                return c.fail("it must be an operation with its operands, read in full by the program");
            };
            let mut made = infer(producer, &types[..split])?.into_iter();
            let first: Vec<TensorType> = made.by_ref().take(1).collect();
            let rest: Vec<&TensorType> = first.iter().chain(types[split..].iter().copied()).collect();
            let mut results = program_types(&Check { op: op.mnemonic(), types: &rest }, program)?;
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
            made.push(TensorType::f32(summed));
            made
        }
        Op::FusedCrossEntropy { .. } => {
            c.arity(2)?;
            let (n, _) = c.float_matrix(0)?;
            c.require(n <= MOST_FUSED_TOKENS, || format!("{n} tokens are more than {MOST_FUSED_TOKENS}"))?;
            c.is(1, &TensorType::i32([n]))?;
            vec![TensorType::f32([]), c.ty(0).clone()]
        }
        other => internal_error!("`{}` is not fused", other.mnemonic()),
    })
}

fn program_types(c: &Check<'_>, p: &FusedProgram) -> Result<Vec<TensorType>, InferError> {
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

/// Elements of results.
pub(crate) fn evaluate(op: &Op, x: &Operands<'_>, types: &[TensorType]) -> Result<Vec<Data>, EvalError> {
    let data = |tensors: Vec<Tensor>| tensors.into_iter().map(Tensor::into_data);
    Ok(match op {
        Op::Fused(program) => program_data(program, x),
        Op::FusedAfter { producer, program } => {
            let split = producer.operands_of_producer().invariant("inference lets only producers be followed");
            let (own, rest) = x.tensors.split_at(split);
            let mut made = evaluate_op(producer, own)?.into_iter();
            let first: Vec<Tensor> = made.by_ref().take(1).collect();
            let all: Vec<&Tensor> = first.iter().chain(rest.iter().copied()).collect();
            let mut results = program_data(program, &Operands { tensors: &all, ..*x });
            results.extend(made.map(Tensor::into_data));
            results
        }
        Op::DispatchedProduct(product) => {
            let (own, dispatch) = x.tensors.split_at(x.tensors.len() - 2);
            let at = product.dispatched_operand().invariant("inference lets only products per expert fetch rows");
            let rows = evaluate_op(&Op::Dispatch { weighted: false }, &[&own[at..=at], dispatch].concat())?;
            let mut own = own.to_vec();
            own[at] = &rows[0];
            data(evaluate_op(product, &own)?).collect()
        }
        Op::ProductWithSums(product) => {
            let product = data(evaluate_op(product, x.tensors)?);
            let sums = match x.tensors.get(2) {
                Some(offsets) => grouped_sum(&Operands { tensors: &[x.tensors[0], offsets], ..*x })?,
                None => sum(&x.f(0), x.shape(0), &[0], types[1].elements()),
            };
            product.chain([Data::F64(sums)]).collect()
        }
        Op::FusedCrossEntropy { dloss } => {
            let (logits, targets) = (x.tensors[0], x.tensors[1]);
            let mut forward = evaluate_op(&Op::CrossEntropy, x.tensors)?;
            let lse = forward.pop().invariant("a cross-entropy gives the log-sum-exp");
            let backward = [&Tensor::scalar(dloss.get()), logits, &lse, targets];
            forward.extend(evaluate_op(&Op::CrossEntropyGrad, &backward)?);
            data(forward).collect()
        }
        other => internal_error!("`{}` is not fused", other.mnemonic()),
    })
}

fn program_data(program: &FusedProgram, x: &Operands<'_>) -> Vec<Data> {
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
                Instr::Unary(f, a) => f.evaluate(r[a]),
                Instr::Binary(f, a, b) => f.evaluate(r[a], r[b]),
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

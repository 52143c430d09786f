//! Reads operations that only passes make; see `fused.rs`.

use super::{Attribute, Given, ParseError, Rule, all, at, first, integer, list, real};
use crate::function::{Binary, Unary};
use crate::fused::{Access, FusedProgram, Instr};
use crate::op::{Op, Source, required};
use pest::iterators::Pair;

/// The operation on a line.
pub(super) fn read(given: &mut Given<'_, '_>) -> Result<Op, ParseError> {
    let weight_grad = || Box::new(Op::GroupedMatMulWeightGrad);
    Ok(match given.op.as_str() {
        "fused" => Op::Fused(program(given)?),
        "fused_matmul" => after(matmul(given)?, given)?,
        "fused_grouped_matmul" => after(grouped_matmul(given)?, given)?,
        "fused_dispatched_grouped_matmul" => after(Op::DispatchedProduct(Box::new(grouped_matmul(given)?)), given)?,
        "fused_layer_norm_grad" => after(Op::LayerNormGrad, given)?,
        "fused_rms_norm_grad" => after(Op::RmsNormGrad, given)?,
        "fused_embed" => after(Op::Embed, given)?,
        "fused_dispatch" => after(Op::Dispatch { weighted: required(given, "weighted")? }, given)?,
        "fused_combine" => after(Op::Combine { weighted: required(given, "weighted")? }, given)?,
        "matmul_with_sums" => Op::ProductWithSums(Box::new(matmul(given)?)),
        "grouped_matmul_weight_grad_with_sums" => Op::ProductWithSums(weight_grad()),
        "dispatched_grouped_matmul" => Op::DispatchedProduct(Box::new(grouped_matmul(given)?)),
        "dispatched_grouped_matmul_weight_grad" => Op::DispatchedProduct(weight_grad()),
        "dispatched_grouped_matmul_weight_grad_with_sums" => {
            Op::ProductWithSums(Box::new(Op::DispatchedProduct(weight_grad())))
        }
        "fused_cross_entropy" => Op::FusedCrossEntropy { dloss: required(given, "dloss")? },
        other => return Err(at(&given.op, format!("unknown operation `{other}`"))),
    })
}

fn matmul(given: &mut Given<'_, '_>) -> Result<Op, ParseError> {
    Ok(Op::MatMul {
        transpose_a: required(given, "transpose_a")?,
        transpose_b: required(given, "transpose_b")?,
        bias: required(given, "bias")?,
    })
}

fn grouped_matmul(given: &mut Given<'_, '_>) -> Result<Op, ParseError> {
    Ok(Op::GroupedMatMul { transpose_b: required(given, "transpose_b")?, bias: required(given, "bias")? })
}

/// A program with the operation that it goes on with.
fn after(producer: Op, given: &mut Given<'_, '_>) -> Result<Op, ParseError> {
    Ok(Op::FusedAfter { producer: Box::new(producer), program: program(given)? })
}

/// Instruction `j` is the attribute `tj`, in order.
fn program(given: &mut Given<'_, '_>) -> Result<FusedProgram, ParseError> {
    let shape = given.result(0)?.shape.clone();
    let accesses = parts(given, "access")?.iter().map(access).collect::<Result<_, _>>()?;
    let results = parts(given, "results")?.iter().map(register).collect::<Result<_, _>>()?;
    let mut instructions = Vec::new();
    for Attribute { key, value } in std::mem::take(&mut given.written) {
        let (expected, found) = (format!("t{}", instructions.len()), key.as_str());
        if found != expected {
            return Err(at(&key, format!("expected instruction `{expected}`, found `{found}`")));
        }
        let value = value.ok_or_else(|| at(&key, format!("instruction `{expected}` needs a right-hand side")))?;
        instructions.push(instruction(&value)?);
    }
    Ok(FusedProgram { shape, accesses, instructions, results })
}

/// The elements of a list that must be there.
fn parts<'i>(given: &mut Given<'i, '_>, key: &'static str) -> Result<Vec<Pair<'i, Rule>>, ParseError> {
    match given.value(key)? {
        Some(value) => list(key, &value),
        None => Err(given.missing(key)),
    }
}

fn access(pair: &Pair<'_, Rule>) -> Result<Access, ParseError> {
    let call = Call::read(pair)?;
    match (call.name, call.arguments.as_slice()) {
        ("full", []) => Ok(Access::Full),
        ("repeat", []) => Ok(Access::Repeat),
        ("scalar", []) => Ok(Access::Scalar),
        ("stretch", [(None, inner)]) => Ok(Access::Stretch { inner: integer(inner)? }),
        _ => Err(at(pair, "expected `full`, `repeat`, `stretch(inner)` or `scalar`")),
    }
}

fn instruction(pair: &Pair<'_, Rule>) -> Result<Instr, ParseError> {
    let call = Call::read(pair)?;
    Ok(match (call.name, call.arguments.as_slice()) {
        ("load", [(None, i)]) => Instr::Load(integer(i)?),
        ("const", [(None, value)]) => Instr::Const(real(value)?),
        ("select", [(None, condition), (None, a), (None, b)]) => {
            Instr::Select(register(condition)?, register(a)?, register(b)?)
        }
        ("dropout", [(None, value), (Some("rate"), rate), (Some("key"), key)]) => {
            Instr::Dropout { value: register(value)?, rate: real(rate)?, key: integer(key)? }
        }
        (name, arguments) => match (Unary::named(name), Binary::named(name), arguments) {
            (Some(f), _, [(None, x)]) => Instr::Unary(f, register(x)?),
            (_, Some(f), [(None, x), (None, y)]) => Instr::Binary(f, register(x)?, register(y)?),
            _ => return Err(at(pair, "this is not an instruction with its operands, such as `add(t0, t1)`")),
        },
    })
}

/// `t3`
fn register(pair: &Pair<'_, Rule>) -> Result<usize, ParseError> {
    let digits = pair.as_str().strip_prefix('t').filter(|d| d.chars().all(|c| c.is_ascii_digit()));
    digits
        .and_then(|d| d.parse().ok())
        .ok_or_else(|| at(pair, format!("expected a register such as `t0`, found `{}`", pair.as_str())))
}

/// `name` or `name(1, t2, rate = 0.5)`
struct Call<'i> {
    name: &'i str,
    arguments: Vec<(Option<&'i str>, Pair<'i, Rule>)>,
}

impl<'i> Call<'i> {
    fn read(pair: &Pair<'i, Rule>) -> Result<Self, ParseError> {
        let Some(word) = all(pair, Rule::word).next() else {
            return Err(at(pair, "expected a word"));
        };
        let arguments = all(pair, Rule::argument)
            .map(|argument| {
                let key = all(&argument, Rule::word).next().map(|w| w.as_str());
                first(&argument, Rule::atom).map(|atom| (key, atom))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { name: word.as_str(), arguments })
    }
}

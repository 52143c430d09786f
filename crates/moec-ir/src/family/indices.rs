//! Integers: experts, rows and tokens.

use super::misplaced;
use crate::infer::{Check, InferError, f32s};
use crate::op::Op;
use crate::operands::{Operands, floats, within};
use crate::tensor::Data;
use crate::types::TensorType;

pub(super) fn infer(op: &Op, c: &Check<'_>) -> Result<Vec<TensorType>, InferError> {
    Ok(match op {
        Op::ToFloat => vec![f32s(c.int(0)?)],
        Op::ToIndex { size } => {
            c.require(i32::try_from(*size).is_ok(), || format!("indices below {size} do not fit into i32"))?;
            vec![TensorType::i32(c.float(0)?)]
        }
        Op::Lookup => {
            let ids = c.int(0)?;
            let table = c.int(1)?;
            c.require(matches!(table, &[v] if v > 0), || format!("operand 1 must be i32[V], not {}", c.ty(1)))?;
            vec![TensorType::i32(ids)]
        }
        Op::Previous { time } => {
            let &[n] = c.int(0)? else {
                return c.fail(format!("operand 0 must be i32[N], not {}", c.ty(0)));
            };
            c.require(*time > 0 && n % time == 0, || format!("{n} tokens are not whole sequences of {time}"))?;
            vec![c.ty(0).clone()]
        }
        other => misplaced(other),
    })
}

pub(super) fn evaluate(op: &Op, x: &Operands<'_>) -> Vec<Data> {
    match op {
        Op::ToFloat => floats(x.i(0).iter().map(|&i| f64::from(i)).collect()),
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
        other => misplaced(other),
    }
}

//! Products of matrices, of all rows or of the rows of each expert.

use super::misplaced;
use crate::infer::{Check, InferError, f32s};
use crate::op::{Op, UnpackAttrs};
use crate::operands::{EvalError, Operands, floats};
use crate::precision::Precision;
use crate::tensor::Data;
use crate::types::TensorType;
use crate::weights::WeightFormat;
use std::borrow::Cow;

/// Number of experts from an `offsets` operand.
fn offsets(c: &Check<'_>, i: usize) -> Result<usize, InferError> {
    match c.int(i)? {
        &[n] if n >= 2 => Ok(n - 1),
        _ => c.fail(format!("operand {i} must be i32[E + 1] offsets, not {}", c.ty(i))),
    }
}

pub(super) fn infer(op: &Op, c: &Check<'_>) -> Result<Vec<TensorType>, InferError> {
    Ok(match op {
        Op::MatMul { transpose_a, transpose_b, bias, .. } => {
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
        Op::GroupedMatMul { transpose_b, bias, .. } => {
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
        Op::GroupedMatMulWeightGrad { .. } => {
            let (r1, o) = c.float_matrix(0)?;
            let (r2, i) = c.float_matrix(1)?;
            c.require(r1 == r2, || format!("row counts differ: {r1} and {r2}"))?;
            vec![f32s(&[offsets(c, 2)?, o, i])]
        }
        Op::GroupedSum => {
            let (_, o) = c.float_matrix(0)?;
            vec![f32s(&[offsets(c, 1)?, o])]
        }
        Op::Unpack(attrs) => vec![infer_unpacked(attrs, c)?],
        other => misplaced(other),
    })
}

/// The type of weights that were packed.
fn infer_unpacked(attrs: &UnpackAttrs, c: &Check<'_>) -> Result<TensorType, InferError> {
    let UnpackAttrs { format, panel, columns } = *attrs;
    c.require(panel % WeightFormat::Int8.columns_of_word() == 0, || {
        format!("a panel of {panel} columns has no whole words")
    })?;
    let [leading @ .., panels, inputs, words] = &c.ty(0).shape[..] else {
        return c.fail(format!("operand 0 must be [.., panels, I, words], not {}", c.ty(0)));
    };
    let fits = (*panels, *words) == (columns.div_ceil(panel), panel / format.columns_of_word());
    c.require(fits && c.ty(0).dtype == format.dtype(), || {
        format!("operand 0 does not hold panels of {panel} of {columns} columns as {}: {}", format.name(), c.ty(0))
    })?;
    if format.is_scaled() {
        c.is(1, &f32s(&[leading, &[columns]].concat()))?;
    }
    Ok(f32s(&[leading, &[*inputs, columns]].concat()))
}

pub(super) fn evaluate(op: &Op, x: &Operands<'_>) -> Result<Vec<Data>, EvalError> {
    Ok(match op {
        Op::MatMul { transpose_a, transpose_b, bias, precision } => {
            floats(matmul(x, *precision, *transpose_a, *transpose_b, *bias))
        }
        Op::GroupedMatMul { transpose_b, bias, precision } => {
            floats(grouped_matmul(x, *precision, *transpose_b, *bias)?)
        }
        Op::GroupedMatMulWeightGrad { precision } => floats(grouped_matmul_weight_grad(x, *precision)?),
        Op::GroupedSum => floats(grouped_sum(x)?),
        Op::Unpack(attrs) => floats(unpack(attrs, x)),
        other => misplaced(other),
    })
}

/// The first two operands, as a product of that precision reads them.
fn factors<'a>(x: &Operands<'a>, precision: Precision) -> [Cow<'a, [f64]>; 2] {
    [0, 1].map(|i| match precision {
        Precision::F32 => x.f(i),
        precision => x.f(i).iter().map(|&x| precision.round(x)).collect(),
    })
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `y += factor * x`
pub(super) fn add_to(y: &mut [f64], x: &[f64], factor: f64) {
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

fn matmul(x: &Operands<'_>, precision: Precision, transpose_a: bool, transpose_b: bool, bias: bool) -> Vec<f64> {
    let [a, b] = factors(x, precision);
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

fn grouped_matmul(
    x: &Operands<'_>,
    precision: Precision,
    transpose_b: bool,
    bias: bool,
) -> Result<Vec<f64>, EvalError> {
    let ([rows, weights], (r, inner)) = (factors(x, precision), x.matrix(0));
    let outer = x.shape(1)[if transpose_b { 1 } else { 2 }];
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

fn grouped_matmul_weight_grad(x: &Operands<'_>, precision: Precision) -> Result<Vec<f64>, EvalError> {
    let [dy, rows] = factors(x, precision);
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

/// Matrices `[.., I, O]` from their panels.
fn unpack(attrs: &UnpackAttrs, x: &Operands<'_>) -> Vec<f64> {
    let UnpackAttrs { format, panel, columns } = *attrs;
    let (rows, words) = x.rows(0);
    let (inputs, panels) = (x.shape(0)[x.shape(0).len() - 2], columns.div_ceil(panel));
    let (scale, stored) = (format.is_scaled().then(|| x.f(1)), x.tensors[0].data());
    let mut y = vec![0.0; rows / panels.max(1) * columns];
    for at in 0..rows * words {
        // Word `w` of row `i` of panel `p` of matrix `e`.
        let (row, w) = (at / words, at % words);
        let (e, p, i) = (row / inputs / panels, row / inputs % panels, row % inputs);
        for q in 0..format.columns_of_word() {
            let column = p * panel + q * words + w;
            if column >= columns {
                continue;
            }
            let part = match stored {
                Data::I32(words) => format.part(words[at], q),
                Data::F32(values) => f64::from(values[at]),
                Data::F64(values) => values[at],
            };
            let scale = scale.as_ref().map_or(1.0, |scale| scale[e * columns + column]);
            y[(e * inputs + i) * columns + column] = part * scale;
        }
    }
    y
}

pub(crate) fn grouped_sum(x: &Operands<'_>) -> Result<Vec<f64>, EvalError> {
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

//! Normalised rows.

use super::linear::dot;
use super::misplaced;
use crate::infer::{Check, InferError, f32s};
use crate::op::Op;
use crate::operands::Operands;
use crate::tensor::Data;
use crate::types::TensorType;

pub(super) fn infer(op: &Op, c: &Check<'_>) -> Result<Vec<TensorType>, InferError> {
    Ok(match op {
        Op::LayerNorm { .. } => {
            let (rows, ch) = c.rows(0)?;
            c.is(1, &f32s(&[ch]))?;
            c.is(2, &f32s(&[ch]))?;
            vec![c.ty(0).clone(), f32s(&[rows]), f32s(&[rows])]
        }
        Op::LayerNormGrad => {
            let (rows, ch) = c.rows(0)?;
            c.is(1, c.ty(0))?;
            c.is(2, &f32s(&[ch]))?;
            c.is(3, &f32s(&[rows]))?;
            c.is(4, &f32s(&[rows]))?;
            vec![c.ty(0).clone(), f32s(&[ch]), f32s(&[ch])]
        }
        Op::RmsNorm { .. } => {
            let (rows, ch) = c.rows(0)?;
            c.is(1, &f32s(&[ch]))?;
            vec![c.ty(0).clone(), f32s(&[rows])]
        }
        Op::RmsNormGrad => {
            let (rows, ch) = c.rows(0)?;
            c.is(1, c.ty(0))?;
            c.is(2, &f32s(&[ch]))?;
            c.is(3, &f32s(&[rows]))?;
            vec![c.ty(0).clone(), f32s(&[ch])]
        }
        other => misplaced(other),
    })
}

pub(super) fn evaluate(op: &Op, x: &Operands<'_>) -> Vec<Data> {
    match op {
        Op::LayerNorm { epsilon } => layer_norm(x, epsilon.get()),
        Op::LayerNormGrad => layer_norm_grad(x),
        Op::RmsNorm { epsilon } => rms_norm(x, epsilon.get()),
        Op::RmsNormGrad => rms_norm_grad(x),
        other => misplaced(other),
    }
}

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

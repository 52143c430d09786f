//! Random numbers: element `i` of a node depends on (seed, step, key, i) only.

use super::misplaced;
use crate::infer::{Check, InferError, f32s};
use crate::op::Op;
use crate::operands::{Operands, floats};
use crate::random;
use crate::tensor::Data;
use crate::types::TensorType;

pub(super) fn infer(op: &Op, c: &Check<'_>) -> Result<Vec<TensorType>, InferError> {
    Ok(match op {
        Op::RandomNormal { shape, .. } | Op::RandomUniform { shape, .. } => {
            c.rng(0)?;
            vec![f32s(shape)]
        }
        Op::Dropout { rate, .. } => {
            c.float(0)?;
            c.rng(1)?;
            c.require((0.0..1.0).contains(&rate.get()), || format!("rate {rate} is not in [0, 1)"))?;
            vec![c.ty(0).clone()]
        }
        other => misplaced(other),
    })
}

pub(super) fn evaluate(op: &Op, x: &Operands<'_>, types: &[TensorType]) -> Vec<Data> {
    let len = types[0].elements();
    match op {
        Op::RandomNormal { key, .. } => {
            let keys = random::keys(x.rng(0), *key);
            floats((0..len).map(|i| random::normal_at(keys, i as u32)).collect())
        }
        Op::RandomUniform { key, .. } => {
            let keys = random::keys(x.rng(0), *key);
            floats((0..len).map(|i| random::uniform(random::bits(keys, i as u32))).collect())
        }
        Op::Dropout { rate, key } => {
            let mask = Mask::new(x.rng(1), *key, rate.get());
            floats(x.f(0).iter().enumerate().map(|(i, v)| mask.apply(*v, i as u32)).collect())
        }
        other => misplaced(other),
    }
}

/// A dropout mask: an element is kept iff its random word is not below the threshold.
pub(crate) struct Mask {
    keys: (u32, u32),
    threshold: u32,
    keep: f64,
}

impl Mask {
    pub(crate) fn new(rng: [i32; 4], key: u32, rate: f64) -> Self {
        Self { keys: random::keys(rng, key), threshold: random::dropout_threshold(rate), keep: 1.0 - rate }
    }

    pub(crate) fn apply(&self, x: f64, element: u32) -> f64 {
        if random::bits(self.keys, element) >= self.threshold { x / self.keep } else { 0.0 }
    }
}

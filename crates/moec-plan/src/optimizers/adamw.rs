//! AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), as in PyTorch.

use super::{
    Body, DECAY, Decay, Direction, Followed, IDLE, LEARNING_RATE, MEMORY, Operands, OptimizerSpec, Updated,
    WEIGHT_DECAY, nothing_decays,
};
use crate::settings::Settings;
use moec_ir::{AdamWAttrs, Builder, Interval, Op, ParameterSpec, Unary, Value};

pub(super) static ADAMW: OptimizerSpec = OptimizerSpec {
    name: "adamw",
    summary: "Adam with decoupled weight decay",
    equations: "m = beta1 m + (1 - beta1) g\n\
                v = beta2 v + (1 - beta2) g²\n\
                p = p - lr ((m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay p)",
    references: &["Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization, arXiv 1711.05101, algorithm 2"],
    settings: &[
        ParameterSpec::number("lr", LEARNING_RATE, 1e-3, "learning rate"),
        ParameterSpec::number("beta1", MEMORY, 0.9, "decay of the first moment"),
        ParameterSpec::number("beta2", MEMORY, 0.999, "decay of the second moment"),
        ParameterSpec::number("eps", Interval::above(0.0), 1e-8, "added to the root of the second moment"),
        ParameterSpec::number("weight_decay", WEIGHT_DECAY, 0.01, "decoupled weight decay"),
        DECAY,
        IDLE,
    ],
    check: nothing_decays,
    moments: |_, _| &["m", "v"],
    per_step: bias_corrections,
    rate: |_, _| 1.0,
    body: Body::Whole { update, parts: (Decay::Decoupled, direction) },
};

/// `[1 - beta1^t, 1 - beta2^t]`, the bias corrections of Adam (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1).
pub(super) fn bias_corrections(settings: &Settings, step: u64) -> Vec<f64> {
    ["beta1", "beta2"].map(|beta| 1.0 - power(settings.number(beta), step)).to_vec()
}

/// One operation for all: devices have a kernel that reads and writes every element once.
fn update(settings: &Settings, weight_decay: f64, b: &mut Builder, operands: &Operands) -> Updated {
    let attrs = AdamWAttrs {
        beta1: settings.number("beta1").into(),
        beta2: settings.number("beta2").into(),
        epsilon: settings.number("eps").into(),
        weight_decay: weight_decay.into(),
    };
    let mut read = vec![operands.parameter, operands.gradient];
    read.extend(&operands.moments);
    read.push(operands.hyper);
    read.extend(operands.scale);
    let new = b.named(&operands.name, Op::AdamW(attrs), &read);
    Updated { parameter: new, moments: vec![new.result(1), new.result(2)] }
}

/// What the operation computes, element by element, for what its kernel cannot do.
pub(super) fn direction(settings: &Settings, b: &mut Builder, followed: &Followed<'_>) -> Direction {
    let &Followed { gradient, moments, told } = followed;
    let square = b.mul(gradient, gradient);
    let mut mean_of = |moment: Value, beta: f64, new: Value| {
        let (kept, new) = (b.scale(moment, beta), b.scale(new, 1.0 - beta));
        b.add(kept, new)
    };
    let m = mean_of(moments[0], settings.number("beta1"), gradient);
    let v = mean_of(moments[1], settings.number("beta2"), square);
    let (mean, variance) = (b.div(m, told[0]), b.div(v, told[1]));
    let root = b.unary(Unary::Sqrt, variance);
    let root = b.add_scalar(root, settings.number("eps"));
    Direction { direction: b.div(mean, root), moments: vec![m, v] }
}

/// `base^exponent` by squaring: the same bits on every platform, unlike the system's `pow`.
fn power(mut base: f64, mut exponent: u64) -> f64 {
    let mut result = 1.0;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= base;
        }
        base *= base;
        exponent >>= 1;
    }
    result
}

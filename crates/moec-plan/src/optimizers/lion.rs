//! Lion (Chen et al. 2023, arXiv 2302.06675): the sign of an interpolated momentum.

use super::{
    Body, DECAY, Decay, Direction, Followed, IDLE, LEARNING_RATE, MEMORY, OptimizerSpec, WEIGHT_DECAY, nothing_decays,
};
use crate::settings::Settings;
use moec_ir::{Builder, ParameterSpec, Unary};

pub(super) static LION: OptimizerSpec = OptimizerSpec {
    name: "lion",
    summary: "the sign of an interpolated momentum, with decoupled weight decay",
    equations: "p = p - lr (sign(beta1 m + (1 - beta1) g) + weight_decay p)\n\
                m = beta2 m + (1 - beta2) g",
    references: &["Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675, algorithm 2"],
    settings: &[
        ParameterSpec::number("lr", LEARNING_RATE, 1e-4, "learning rate; every element moves by this much"),
        ParameterSpec::number("beta1", MEMORY, 0.9, "share of the momentum in the direction"),
        ParameterSpec::number("beta2", MEMORY, 0.99, "decay of the momentum"),
        ParameterSpec::number("weight_decay", WEIGHT_DECAY, 0.0, "decoupled weight decay"),
        DECAY,
        IDLE,
    ],
    check: nothing_decays,
    moments: |_, _| &["m"],
    per_step: |_, _| Vec::new(),
    rate: |_, _| 1.0,
    body: Body::Direction((Decay::Decoupled, direction)),
};

fn direction(settings: &Settings, b: &mut Builder, followed: &Followed<'_>) -> Direction {
    let mut interpolated = |beta: f64| {
        let kept = b.scale(followed.moments[0], beta);
        let new = b.scale(followed.gradient, 1.0 - beta);
        b.add(kept, new)
    };
    let [direction, momentum] = ["beta1", "beta2"].map(|beta| interpolated(settings.number(beta)));
    Direction { direction: b.unary(Unary::Sign, direction), moments: vec![momentum] }
}

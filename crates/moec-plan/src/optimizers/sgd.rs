//! Stochastic gradient descent with momentum, as PyTorch's `torch.optim.SGD` with dampening 0.

use super::{
    Body, DECAY, Decay, Direction, Followed, IDLE, LEARNING_RATE, OptimizerSpec, WEIGHT_DECAY, nothing_decays,
};
use crate::settings::{Conflict, Settings};
use moec_ir::{Builder, Interval, ParameterSpec};

pub(super) static SGD: OptimizerSpec = OptimizerSpec {
    name: "sgd",
    summary: "stochastic gradient descent, with momentum if asked for",
    equations: "g = g + weight_decay p\n\
                v = momentum v + g\n\
                p = p - lr v, or with nesterov p - lr (g + momentum v)",
    references: &[
        "Sutskever et al. 2013, On the importance of initialization and momentum in deep learning, ICML 2013",
        "torch.optim.SGD",
    ],
    settings: &[
        ParameterSpec::number("lr", LEARNING_RATE, 1e-3, "learning rate"),
        ParameterSpec::number("momentum", Interval::at_least(0.0), 0.0, "what is left of the velocity after a step"),
        ParameterSpec::flag("nesterov", false, "looks ahead along the velocity"),
        ParameterSpec::number("weight_decay", WEIGHT_DECAY, 0.0, "weight decay, added to the gradient"),
        DECAY,
        IDLE,
    ],
    check,
    moments: |settings, _| if settings.number("momentum") > 0.0 { &["velocity"] } else { &[] },
    per_step: |_, _| Vec::new(),
    rate: |_, _| 1.0,
    body: Body::Direction((Decay::Coupled, direction)),
};

fn check(settings: &Settings) -> Option<Conflict> {
    let blind = (settings.flag("nesterov") && settings.number("momentum") == 0.0).then(|| Conflict {
        setting: "nesterov",
        message: "`nesterov` looks ahead along a velocity, and without momentum there is none".into(),
        expected: "expected `momentum` above 0 beside it".into(),
    });
    blind.or_else(|| nothing_decays(settings))
}

/// Without momentum the gradient itself, and nothing is kept.
fn direction(settings: &Settings, b: &mut Builder, followed: &Followed<'_>) -> Direction {
    let gradient = followed.gradient;
    let &[velocity] = followed.moments else { return Direction { direction: gradient, moments: Vec::new() } };
    let momentum = settings.number("momentum");
    let kept = b.scale(velocity, momentum);
    let velocity = b.add(kept, gradient);
    let direction = if settings.flag("nesterov") {
        let ahead = b.scale(velocity, momentum);
        b.add(gradient, ahead)
    } else {
        velocity
    };
    Direction { direction, moments: vec![velocity] }
}

//! The optimiser step as nodes: AdamW per parameter, optionally with clipping by the global norm of the gradient.

use crate::error::PlanError;
use moec_ir::{AdamWAttrs, Binary, Builder, Graph, Input, Op, Output, Phase, StateRole, TensorType, Unary, Value};

/// How parameters are updated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerConfig {
    /// Attributes of AdamW.
    pub adamw: AdamWAttrs,
    /// Largest norm of the whole gradient; a longer one is scaled down to it.
    pub clip: Option<f64>,
}

/// Keeps a zero gradient from being divided by: as in PyTorch's `clip_grad_norm_`.
const CLIP_EPSILON: f64 = 1e-6;

/// Replaces the gradient outputs of parameters by their updates.
///
/// For every parameter NAME with an output `grad.NAME` there are two more states, `adamw.m.NAME` and `adamw.v.NAME`, and
/// updates of all three by an AdamW node that reads the input `hyper` `f32[3]`. With clipping there is an output
/// `grad_norm` `f32[]`, the norm before clipping, and every gradient is multiplied by `min(1, clip / (norm + 1e-6))`.
/// Other outputs, gradients of inputs among them, stay.
///
/// # Errors
/// When no parameter has a gradient.
pub fn add_optimizer(graph: &Graph, config: &OptimizerConfig) -> Result<Graph, PlanError> {
    let mut gradients: Vec<(String, Value, Value)> = Vec::new();
    for id in graph.ids() {
        if let Op::Parameter { name, .. } = &graph.node(id).op
            && let Some(gradient) = graph.output(&Output::Gradient(name.clone()).to_string())
        {
            gradients.push((name.clone(), graph.value(id), gradient));
        }
    }
    if gradients.is_empty() {
        return Err(PlanError::NoGradients);
    }

    let mut copy = graph.clone();
    copy.retain_outputs(|name| match Output::of_name(name) {
        Some(Output::Gradient(of)) => !gradients.iter().any(|(parameter, ..)| *parameter == of),
        _ => true,
    });
    let mut b = Builder::extend(copy);
    let phase = b.set_phase(Phase::Backward);
    let hyper = b.input(Input::Hyper, TensorType::f32([3]));
    let scale = config.clip.map(|clip| {
        let all: Vec<Value> = gradients.iter().map(|&(.., g)| g).collect();
        let squares = b.named("clip.squares", Op::SumOfSquares, &all);
        let norm = b.named("clip.norm", Op::Unary(Unary::Sqrt), &[squares]);
        b.output(Output::GradNorm, norm);
        b.scoped("clip", |b| {
            let norm = b.add_scalar(norm, CLIP_EPSILON);
            let limit = b.fill(clip, []);
            let ratio = b.div(limit, norm);
            let one = b.fill(1.0, []);
            b.named("scale", Op::Binary(Binary::Min), &[ratio, one])
        })
    });

    b.set_phase(Phase::Optimizer);
    for (name, parameter, gradient) in gradients {
        let former = b.set_origin(graph.node(parameter.node).origin);
        let ty = graph.ty(parameter).clone();
        let (m_name, v_name) = (format!("adamw.m.{name}"), format!("adamw.v.{name}"));
        let [m, v] = [&m_name, &v_name].map(|name| b.state_for(StateRole::Optimizer, name, ty.clone()));
        let mut operands = vec![parameter, gradient, m, v, hyper];
        operands.extend(scale);
        let new = b.named(&format!("adamw.{name}"), Op::AdamW(config.adamw), &operands);
        b.update(name, new);
        b.update(m_name, new.result(1));
        b.update(v_name, new.result(2));
        b.set_origin(former);
    }
    b.set_phase(phase);
    Ok(b.finish()?)
}

//! The optimiser step as nodes: AdamW per parameter, optionally with clipping by the global norm of the gradient.

use crate::error::PlanError;
use moec_ir::{AdamWAttrs, Binary, Builder, Graph, Op, TensorType, Unary, Value};

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
            && let Some(gradient) = graph.output(&format!("grad.{name}"))
        {
            gradients.push((name.clone(), graph.value(id), gradient));
        }
    }
    if gradients.is_empty() {
        return Err(PlanError::NoGradients);
    }

    let mut b = Builder::extend(without_outputs(graph, |name| {
        gradients.iter().any(|(parameter, ..)| name.strip_prefix("grad.") == Some(parameter))
    })?);
    let hyper = b.input("hyper", TensorType::f32([3]));
    let scale = config.clip.map(|clip| {
        let all: Vec<Value> = gradients.iter().map(|&(.., g)| g).collect();
        let squares = b.named("clip.squares", Op::SumOfSquares, &all);
        let norm = b.named("clip.norm", Op::Unary(Unary::Sqrt), &[squares]);
        b.output("grad_norm", norm);
        b.scoped("clip", |b| {
            let norm = b.add_scalar(norm, CLIP_EPSILON);
            let limit = b.fill(clip, []);
            let ratio = b.div(limit, norm);
            let one = b.fill(1.0, []);
            b.named("scale", Op::Binary(Binary::Min), &[ratio, one])
        })
    });

    for (name, parameter, gradient) in gradients {
        let former = b.set_origin(graph.node(parameter.node).origin);
        let ty = graph.ty(parameter).clone();
        let (m_name, v_name) = (format!("adamw.m.{name}"), format!("adamw.v.{name}"));
        let (m, v) = (b.state(&m_name, ty.clone()), b.state(&v_name, ty));
        let mut operands = vec![parameter, gradient, m, v, hyper];
        operands.extend(scale);
        let new = b.named(&format!("adamw.{name}"), Op::AdamW(config.adamw), &operands);
        b.update(name, new);
        b.update(m_name, new.result(1));
        b.update(v_name, new.result(2));
        b.set_origin(former);
    }
    Ok(b.finish()?)
}

/// A copy of the graph, node for node, without the outputs that `drop` names.
fn without_outputs(graph: &Graph, drop: impl Fn(&str) -> bool) -> Result<Graph, PlanError> {
    let mut copy = Graph::new();
    for id in graph.ids() {
        let node = graph.node(id);
        copy.add(node.op.clone(), &graph.operands(id), &node.name, node.origin)?;
    }
    for (name, value) in graph.outputs().iter().filter(|(name, _)| !drop(name)) {
        copy.set_output(name.clone(), *value);
    }
    for (name, value) in graph.updates() {
        copy.set_update(name.clone(), *value);
    }
    Ok(copy)
}

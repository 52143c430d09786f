//! Optimisers: one file each, and the step that they have in common.
//!
//! An optimiser is a declaration: its settings, the moments that it keeps of every parameter, what it must be told in
//! each step, and its update as nodes of the graph. What all share is written once: the gradients are found, clipped by
//! their global norm, and decayed as the declaration says.

mod adamw;
mod idle;
mod lion;
mod muon;
mod sgd;

use crate::accumulate::{adding, averaged, ending_sums};
use crate::average::average_of;
use crate::error::PlanError;
use crate::settings::{Conflict, Settings};
use moec_ir::{
    ArgumentValue, Binary, Builder, DefaultValue, Graph, Input, Interval, Op, Output, ParameterSpec, ParameterType,
    Phase, StateRole, TensorType, Unary, Value,
};
use std::collections::{BTreeMap, BTreeSet};

/// Every optimiser, the default first.
pub static OPTIMIZERS: &[&OptimizerSpec] = &[&adamw::ADAMW, &sgd::SGD, &lion::LION, &muon::MUON];

/// A declared optimiser.
#[derive(Debug)]
pub struct OptimizerSpec {
    /// Its name in the file, with which the names of its moments begin.
    pub name: &'static str,
    /// One line of help.
    pub summary: &'static str,
    /// What it computes, for people.
    pub equations: &'static str,
    /// Where it was published.
    pub references: &'static [&'static str],
    /// Its settings; `lr` is one of each.
    pub settings: &'static [ParameterSpec],
    /// What makes settings unfit that are each in range.
    pub check: fn(&Settings) -> Option<Conflict>,
    /// Names of the tensors that it keeps of a parameter, of the parameter's shape; zeros at first.
    moments: fn(&Settings, Kind) -> &'static [&'static str],
    /// What it is told in a step besides the learning rate, given the number of the step (from 1).
    per_step: fn(&Settings, u64) -> Vec<f64>,
    /// What the learning rate is multiplied by for a parameter.
    rate: fn(&Settings, Kind) -> f64,
    /// How it updates a parameter.
    body: Body,
}

/// What a parameter is to an optimiser that tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The weights of a linear map between hidden vectors, of one or of several experts.
    Hidden,
    /// A vector, a table of vectors, or the map to the scores of tokens.
    Other,
}

/// The update of one parameter.
#[derive(Debug)]
enum Body {
    /// `parameter - lr * direction`, the direction computed from the gradient and the moments.
    Direction((Decay, DirectionOf)),
    /// Everything at once, decay and clipping included; and the same as a direction, for tensors of which some rows stay.
    Whole {
        /// From the settings, with the weight decay of this parameter.
        update: fn(&Settings, f64, &mut Builder, &Operands) -> Updated,
        /// The same in parts.
        parts: (Decay, DirectionOf),
    },
}

/// From the settings and what is followed to the direction and the new moments.
type DirectionOf = fn(&Settings, &mut Builder, &Followed<'_>) -> Direction;

/// What a direction is computed from.
#[derive(Debug)]
struct Followed<'a> {
    /// The gradient as it is to be followed: clipped, and with the decay where that is coupled.
    gradient: Value,
    /// The moments, in the order of declaration.
    moments: &'a [Value],
    /// What the optimiser is told in a step besides the learning rate, of the parameter's shape.
    told: &'a [Value],
}

/// Where the setting `weight_decay` acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decay {
    /// On the gradient, before the moments see it: `gradient + weight_decay * parameter`.
    Coupled,
    /// On the direction, past the moments: `direction + weight_decay * parameter`.
    Decoupled,
}

/// Where a parameter moves.
#[derive(Debug)]
struct Direction {
    /// What it is moved against, before the learning rate.
    direction: Value,
    /// The new moments, in the order of declaration.
    moments: Vec<Value>,
}

/// What the update of a parameter reads.
#[derive(Debug)]
struct Operands {
    /// What the update is called.
    name: String,
    /// The parameter.
    parameter: Value,
    /// Its gradient before clipping.
    gradient: Value,
    /// Its moments, in the order of declaration.
    moments: Vec<Value>,
    /// `[lr, what the optimiser asked for..]`.
    hyper: Value,
    /// What the gradient is to be multiplied with, `[]`.
    scale: Option<Value>,
}

/// What the update of a parameter makes.
#[derive(Debug)]
struct Updated {
    /// The parameter.
    parameter: Value,
    /// Its moments, in the order of declaration.
    moments: Vec<Value>,
}

/// The range of a learning rate.
const LEARNING_RATE: Interval = Interval::above(0.0);
/// The range of a weight decay.
const WEIGHT_DECAY: Interval = Interval::at_least(0.0);
/// The range of what is left of a moment after a step.
const MEMORY: Interval = Interval::half_open(0.0, 1.0);

/// What the weight decay acts on.
const DECAY: ParameterSpec = ParameterSpec::optional(
    "decay",
    ParameterType::Choice(&["all", MATRICES]),
    DefaultValue::Word("all"),
    "what is decayed: all parameters, or only the weights of linear maps",
);
const MATRICES: &str = "matrices";
/// What becomes of experts that a step leaves idle.
const IDLE: ParameterSpec = ParameterSpec::optional(
    "idle",
    ParameterType::Choice(&["decay", SKIP]),
    DefaultValue::Word("decay"),
    "an expert without rows in a step: decays and moves on by its moments, or stays as it is with them",
);
const SKIP: &str = "skip";

/// That `decay` says what a weight decay acts on where there is none.
fn nothing_decays(settings: &Settings) -> Option<Conflict> {
    (settings.word("decay") == MATRICES && settings.number("weight_decay") == 0.0).then(|| Conflict {
        setting: "decay",
        message: "`decay` says what the weight decay acts on, and there is none".into(),
        expected: "expected `weight_decay` above 0 beside it".into(),
    })
}

/// An optimiser with its settings.
#[derive(Clone, Debug)]
pub struct Optimizer {
    /// Its declaration.
    pub spec: &'static OptimizerSpec,
    /// Its settings.
    pub settings: Settings,
}

impl Optimizer {
    /// The optimiser of that name, with its defaults.
    pub fn named(name: &str) -> Option<Self> {
        let spec = OPTIMIZERS.iter().find(|spec| spec.name == name)?;
        Some(Self { spec, settings: Settings::defaults(spec.settings) })
    }

    /// The same optimiser with one setting changed.
    #[must_use]
    pub fn with(self, name: &str, value: impl Into<ArgumentValue>) -> Self {
        Self { settings: self.settings.with(name, value), ..self }
    }

    /// The learning rate before any schedule.
    pub fn lr(&self) -> f64 {
        self.settings.number("lr")
    }

    /// The learning rate that it has where nothing is said.
    pub fn default_lr(&self) -> f64 {
        Settings::defaults(self.spec.settings).number("lr")
    }

    /// The weight decay of a parameter, which may be the weights of a linear map.
    fn weight_decay(&self, is_matrix: bool) -> f64 {
        let is_decayed = is_matrix || self.settings.word("decay") != MATRICES;
        if is_decayed { self.settings.number("weight_decay") } else { 0.0 }
    }

    /// What [`Input::Hyper`] is given in step `step` (from 0) at a learning rate: computed in 64 bits.
    pub fn hyper(&self, lr: f64, step: u64) -> Vec<f32> {
        std::iter::once(lr).chain((self.spec.per_step)(&self.settings, step + 1)).map(|x| x as f32).collect()
    }
}

impl Default for Optimizer {
    /// The first of [`OPTIMIZERS`] with its defaults.
    fn default() -> Self {
        let spec = OPTIMIZERS[0];
        Self { spec, settings: Settings::defaults(spec.settings) }
    }
}

/// Two are equal when their names and settings are.
impl PartialEq for Optimizer {
    fn eq(&self, other: &Self) -> bool {
        self.spec.name == other.spec.name && self.settings == other.settings
    }
}

/// Keeps a zero gradient from being divided by: as in PyTorch's `clip_grad_norm_`.
const CLIP_EPSILON: f64 = 1e-6;

/// What a training step does with its gradients, besides what the optimiser makes of each.
#[derive(Clone, Debug)]
pub struct StepOptions {
    /// Batches of a step, whose mean gradient it follows.
    pub batches: usize,
    /// The largest norm of the whole gradient.
    pub clip: Option<f64>,
    /// What is left of the moving averages of parameters after a step, if there are any.
    pub average: Option<f64>,
    /// Parameters that are the weights of linear maps: what is decayed where only those are.
    pub matrices: BTreeSet<String>,
    /// Those of them that lead from hidden vectors to hidden vectors.
    pub hidden: BTreeSet<String>,
}

impl Default for StepOptions {
    fn default() -> Self {
        Self { batches: 1, clip: None, average: None, matrices: BTreeSet::new(), hidden: BTreeSet::new() }
    }
}

impl StepOptions {
    /// With a bound on the norm of the gradient, if there is one.
    pub fn clipped(clip: Option<f64>) -> Self {
        Self { clip, ..Self::default() }
    }
}

/// The graph of a batch before the last of a step of several, from one with gradients: it adds these and losses to states
/// `sum.NAME`, and has neither outputs nor other updates.
///
/// # Errors
/// When a sum has the name of another tensor.
pub fn accumulate(graph: &Graph, optimizer: &Optimizer) -> Result<Graph, PlanError> {
    adding(&idle::counted(graph, optimizer)?, idle::is_count)
}

/// Replaces the gradient outputs of parameters by their updates.
///
/// For every parameter NAME with an output [`Output::Gradient`] there are states `OPTIMIZER.MOMENT.NAME`, and updates of
/// all by nodes of [`Phase::Optimizer`], which read the input [`Input::Hyper`]. With [`StepOptions::clip`] there is an output
/// [`Output::GradNorm`], the norm before clipping, and every gradient is multiplied by
/// `min(1, clip / (norm + 1e-6))`. With [`StepOptions::average`] there is a state `ema.NAME` of each, which follows it. With
/// several [`StepOptions::batches`] the graph is that of the last batch of a step, after those of [`accumulate`]: gradients and
/// losses are means over the step. Other outputs, gradients of inputs among them, stay.
///
/// # Errors
/// When no parameter has a gradient.
pub fn add_optimizer(graph: &Graph, optimizer: &Optimizer, options: &StepOptions) -> Result<Graph, PlanError> {
    let mut graph = idle::counted(graph, optimizer)?;
    if options.batches > 1 {
        graph = averaged(&graph, options.batches, idle::is_count)?;
    } else {
        graph = ending_sums(&graph)?;
    }
    let graph = &graph;
    let gradients: BTreeMap<String, Value> = graph
        .outputs()
        .iter()
        .filter_map(|(name, value)| match Output::of_name(name) {
            Some(Output::Gradient(of)) => Some((of, *value)),
            _ => None,
        })
        .collect();
    let trained: Vec<(String, Value, Value)> = graph
        .ids()
        .filter_map(|id| match &graph.node(id).op {
            Op::Parameter { name, .. } => Some((name.clone(), graph.value(id), *gradients.get(name)?)),
            _ => None,
        })
        .collect();
    if trained.is_empty() {
        return Err(PlanError::NoGradients);
    }
    let mut rest = graph.clone();
    rest.retain_outputs(|name| match Output::of_name(name) {
        Some(Output::Gradient(of)) => !trained.iter().any(|(name, ..)| *name == of),
        _ => !idle::is_count(name),
    });

    let mut b = Builder::extend(rest);
    let phase = b.set_phase(Phase::Backward);
    let hyper = b.input(Input::Hyper, TensorType::f32([optimizer.hyper(0.0, 0).len()]));
    let scale =
        options.clip.map(|clip| clipping(&mut b, clip, trained.iter().map(|&(.., gradient)| gradient).collect()));
    b.set_phase(Phase::Optimizer);
    for (name, parameter, gradient) in trained {
        let former = b.set_origin(graph.node(parameter.node).origin);
        let ty = graph.ty(parameter).clone();
        let kind = optimizer.spec.name;
        let is_hidden = options.hidden.contains(&name) && ty.shape.len() > 1;
        let of = if is_hidden { Kind::Hidden } else { Kind::Other };
        let rate = (optimizer.spec.rate)(&optimizer.settings, of);
        let moments: Vec<String> = (optimizer.spec.moments)(&optimizer.settings, of)
            .iter()
            .map(|moment| format!("{kind}.{moment}.{name}"))
            .collect();
        let values = moments.iter().map(|moment| b.state_for(StateRole::Optimizer, moment, ty.clone())).collect();
        let operands = Operands { name: format!("{kind}.{name}"), parameter, gradient, moments: values, hyper, scale };
        let weight_decay = optimizer.weight_decay(options.matrices.contains(&name));
        let rows = graph.output(&idle::count_of(&name));
        let updated = match (&optimizer.spec.body, rows) {
            (Body::Whole { update, .. }, None) => update(&optimizer.settings, weight_decay, &mut b, &operands),
            (Body::Whole { parts, .. } | Body::Direction(parts), _) => b.scoped(&operands.name, |b| {
                let updated = moved(&optimizer.settings, (rate, weight_decay), b, &operands, *parts);
                match rows {
                    Some(rows) => idle::skipped(b, rows, &operands, &updated),
                    None => updated,
                }
            }),
        };
        if let Some(decay) = options.average {
            let average = average_of(&name);
            let before = b.state_for(StateRole::Optimizer, &average, ty);
            let after = b.scoped(&average, |b| {
                let way = b.sub(updated.parameter, before);
                let step = b.scale(way, 1.0 - decay);
                b.add(before, step)
            });
            b.update(average, after);
        }
        b.update(name, updated.parameter);
        for (moment, value) in moments.into_iter().zip(updated.moments) {
            b.update(moment, value);
        }
        b.set_origin(former);
    }
    b.set_phase(phase);
    Ok(b.finish()?)
}

/// What every gradient is multiplied with, so that all together are no longer than `clip`.
fn clipping(b: &mut Builder, clip: f64, gradients: Vec<Value>) -> Value {
    let squares = b.named("clip.squares", Op::SumOfSquares, &gradients);
    let norm = b.named("clip.norm", Op::Unary(Unary::Sqrt), &[squares]);
    b.output(Output::GradNorm, norm);
    b.scoped("clip", |b| {
        let norm = b.add_scalar(norm, CLIP_EPSILON);
        let limit = b.fill(clip, []);
        let ratio = b.div(limit, norm);
        let one = b.fill(1.0, []);
        b.named("scale", Op::Binary(Binary::Min), &[ratio, one])
    })
}

/// `parameter - rate * lr * direction`.
fn moved(
    settings: &Settings,
    (rate, weight_decay): (f64, f64),
    b: &mut Builder,
    operands: &Operands,
    (decay, direction): (Decay, DirectionOf),
) -> Updated {
    let shape = b.shape(operands.parameter);
    let decayed = |b: &mut Builder, x: Value| {
        if weight_decay == 0.0 {
            return x;
        }
        let pull = b.scale(operands.parameter, weight_decay);
        b.add(x, pull)
    };
    let mut gradient = operands.gradient;
    if let Some(scale) = operands.scale {
        let scale = b.broadcast(scale, shape.clone());
        gradient = b.mul(gradient, scale);
    }
    if decay == Decay::Coupled {
        gradient = decayed(b, gradient);
    }
    let told: Vec<Value> =
        (1..b.extent(operands.hyper, 0)).map(|i| number_told(b, operands.hyper, i, &shape)).collect();
    let followed = Followed { gradient, moments: &operands.moments, told: &told };
    let Direction { mut direction, moments } = direction(settings, b, &followed);
    if decay == Decay::Decoupled {
        direction = decayed(b, direction);
    }
    let lr = number_told(b, operands.hyper, 0, &shape);
    let lr = if rate == 1.0 { lr } else { b.scale(lr, rate) };
    let step = b.mul(lr, direction);
    Updated { parameter: b.sub(operands.parameter, step), moments }
}

/// Number `i` of what a step is told, of which the learning rate is the first, for each element of a shape.
fn number_told(b: &mut Builder, hyper: Value, i: usize, shape: &[usize]) -> Value {
    let n = b.extent(hyper, 0);
    let mut number = hyper;
    if n > 1 {
        let at = b.fill(i as f64, [1, 1]);
        let (at, row) = (b.to_index(at, n), b.reshape(hyper, [1, n]));
        number = b.gather_last(row, at);
    }
    let number = b.reshape(number, []);
    b.broadcast(number, shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_optimizer_has_a_learning_rate_and_a_weight_decay() {
        for spec in OPTIMIZERS {
            let optimizer = Optimizer::named(spec.name).unwrap();
            assert!(optimizer.lr() > 0.0 && optimizer.settings.number("weight_decay") >= 0.0, "{}", spec.name);
            assert!((spec.check)(&optimizer.settings).is_none(), "the defaults of {} go together", spec.name);
        }
    }

    #[test]
    fn adamw_is_told_its_bias_corrections() {
        let adamw = Optimizer::default();
        let [lr, c1, c2] = adamw.hyper(1e-3, 0)[..] else { panic!("three numbers") };
        assert_eq!(lr, 1e-3);
        assert!((c1 - 0.1).abs() < 1e-7 && (c2 - 0.001).abs() < 1e-9);
        let [_, c1, c2] = adamw.hyper(1e-3, 999)[..] else { panic!("three numbers") };
        assert_eq!(c1, 1.0);
        assert!((f64::from(c2) - (1.0 - 0.999f64.powi(1000))).abs() < 1e-7);
    }
}

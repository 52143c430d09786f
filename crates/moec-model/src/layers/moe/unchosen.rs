//! `unchosen: running_mean(..)`: what stands in for the experts that a token does not go to, so that their scores learn too.

use moec_ir::{Binary, Op, Precision, Tensor, TensorType, Value};
use moec_syntax::{self as ast, Code, Diagnostic};

use super::Moe;
use super::choice::Choice;
use super::route::{Route, named};
use crate::argument::{DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::check::arguments::Owner;
use crate::check::layer::LayerCheck;
use crate::check::values::describe;
use crate::lower::lowering::Lowering;
use crate::resolved::{ResolvedValue, map};
use crate::router::{Quantity, Routing};
use crate::state::StateInit;
use crate::words::listed;

/// Arguments of `running_mean(..)`.
pub(super) const RUNNING_MEAN: &[ParameterSpec] = &[
    ParameterSpec::optional(
        "decay",
        ParameterType::Float(Interval::half_open(0.0, 1.0)),
        DefaultValue::Float(0.9),
        "share of the mean that a training step keeps",
    ),
    ParameterSpec::optional(
        "adds",
        ParameterType::Choice(&["output", "gradient"]),
        DefaultValue::Word("output"),
        "the means are part of what the layer returns, or only of the gradient of the scores",
    ),
];

/// The running mean of what an expert gives, in the place of the expert for tokens that do not go to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RunningMean {
    /// Share of the mean that a training step keeps.
    pub decay: f64,
    /// Whether only the gradient of the scores sees the means.
    pub only_gradient: bool,
}

/// Checks what `unchosen:` is given.
pub(super) fn check<'a>(c: &mut LayerCheck<'_, 'a>, expr: &'a ast::Expr, route: Option<&Route>) -> Option<RunningMean> {
    let Some(call) = named(expr).filter(|call| call.name == "running_mean") else {
        let d = Diagnostic::new(Code::WrongType, "`unchosen` is written `unchosen: running_mean(decay: 0.9)`")
            .primary(expr.span, format!("this is {}", describe(expr)));
        c.report(d);
        return None;
    };
    let owner = Owner { name: "running_mean", kind: "setting", span: call.name_span };
    let resolved = c.arguments(owner, RUNNING_MEAN, call.arguments);
    let d = if c.in_expert() {
        let d = Diagnostic::new(Code::ExpertNotTokenwise, "`unchosen` cannot stand in an expert");
        d.primary(expr.span, "its means are a state, which an expert cannot hold").help("remove it")
    } else if let Some(route) =
        route.filter(|r| r.traits().selects && !r.traits().provides.contains(&Quantity::Probabilities))
    {
        let name = route.strategy.name();
        let fits = c.registry().routers().filter(|r| r.default_traits().provides.contains(&Quantity::Probabilities));
        let fits = listed(fits.map(|r| r.name()));
        Diagnostic::new(Code::ArgumentsConflict, format!("`unchosen` has no use with the router `{name}`"))
            .primary(expr.span, format!("needs probabilities over all experts, which `{name}` does not hand over"))
            .help(format!("routers that do: {fits}"))
    } else if c.word("weigh") == Some("input") {
        Diagnostic::new(Code::ArgumentsConflict, "`unchosen` has no use with `weigh: input`")
            .primary(expr.span, "a mean of what experts give has no weight of a token")
            .secondary(c.argument_span("weigh"), "what experts are given is weighed")
            .help("remove one of them")
    } else {
        let arguments = &resolved.arguments;
        return (!resolved.failed).then(|| RunningMean {
            decay: arguments.float("decay"),
            only_gradient: arguments.word("adds") == "gradient",
        });
    };
    c.report(d);
    None
}

impl RunningMean {
    pub(super) fn resolved(self) -> ResolvedValue {
        let adds = if self.only_gradient { "gradient" } else { "output" };
        ResolvedValue::Map(map([("decay", self.decay.into()), ("adds", adds.into())]))
    }
}

impl Moe {
    /// What stands in for the experts that tokens do not go to, `[N, C]`: `sum_e p_ne m_e` over those (Panda et al. 2025, arXiv
    /// 2504.12463). `kept` are the experts that compute for a token, `rows [R, C]` what they gave, sorted by expert, and
    /// `offsets` whose rows are whose. A training step moves the means.
    pub(super) fn running_means(
        &self,
        l: &mut Lowering,
        routing: &Routing,
        kept: Choice,
        (rows, offsets): (Value, Value),
    ) -> Option<Value> {
        let RunningMean { decay, only_gradient } = self.unchosen?;
        let experts = self.computed();
        let [tokens, k] = l.extents(kept.chosen);
        let [sent, width] = l.extents(rows);
        let ty = TensorType::f32([experts, width]);
        let zeros = Tensor::zeros(&ty);
        let means = l.emitter.state("running_mean", ty, StateInit::Tensor(zeros));
        if l.training() {
            let b = l.b();
            let ones = b.fill(1.0, [sent, 1]);
            let sums = b.op(Op::GroupedMatMulWeightGrad { precision: Precision::F32 }, &[ones, rows, offsets]);
            let sums = b.reshape(sums, [experts, width]);
            let sums = b.stop_gradient(sums);
            let counts = b.count(kept.chosen, experts);
            let counts = b.reshape(counts, [experts, 1]);
            let one = b.fill(1.0, []);
            let divisor = b.binary(Binary::Max, counts, one);
            let now = b.div(sums, divisor);
            let (old, new) = (b.scale(means, decay), b.scale(now, 1.0 - decay));
            let moved = b.add(old, new);
            // An expert without tokens keeps its mean.
            let has_tokens = b.broadcast(counts, [experts, width]);
            let moved = b.select(has_tokens, moved, means);
            let path = b.path("running_mean");
            b.update(path, moved);
        } else if only_gradient {
            return None;
        }
        let probabilities = match (routing.probabilities, routing.logits) {
            (Some(probabilities), _) => probabilities,
            (None, Some(logits)) => l.b().softmax(logits),
            (None, None) => return None,
        };
        let b = l.b();
        // Those of the experts that compute, which are the first ones.
        let computed = b.ramp(experts, 1);
        let computed = b.broadcast(computed, [tokens, experts]);
        let probabilities = b.gather_last(probabilities, computed);
        let ones = b.fill(1.0, [tokens, k]);
        let chosen = b.scatter_last(ones, kept.chosen, experts);
        let others = b.scale(chosen, -1.0);
        let others = b.add_scalar(others, 1.0);
        let others = b.mul(probabilities, others);
        let stand_in = b.matmul(others, means);
        if !only_gradient {
            return Some(stand_in);
        }
        let value = b.stop_gradient(stand_in);
        Some(b.sub(stand_in, value))
    }
}

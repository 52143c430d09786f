//! `moe`: a mixture of experts, what a router decided executed sparsely.
//!
//! Whatever the shape of the decision, it becomes one of three forms. Either every row goes to some experts with a weight
//! each ([`Choice`]): the rows are sorted by expert, the experts run as one grouped product over ragged segments, and
//! the results are summed per token in the order of the slots. Or every expert works on mixtures of all tokens of a
//! sequence (soft mixture of experts). Or runs of tokens go through mixtures of the experts (soft merging).

mod balance;
mod capacity;
mod choice;
mod experts;
mod metrics;
mod route;
mod unchosen;
mod zero_computation;

use std::collections::BTreeMap;
use std::sync::Arc;

use moec_ir::Value;
use moec_syntax::{Code, Diagnostic, Span};

use super::spec::{LayerSpec, WIDTH};
use crate::argument::{DefaultValue, ParameterSpec, ParameterType};
use crate::check::layer::LayerCheck;
use crate::cost::Flops;
use crate::layer::{self, Layer, LayerKind, checked};
use crate::lower::lowering::{LowerError, Lowering, MeasuredLayer, MoeLayerInfo, Site};
use crate::needs::Needs;
use crate::resolved::{ResolvedValue, map};
use crate::router::{Assignment, Routing};
use capacity::CAPACITY;
use choice::Choice;
use unchosen::RUNNING_MEAN;
use zero_computation::parted;

pub(crate) use balance::Pooled;
pub use balance::WeightedLoss;
pub use capacity::{Capacity, CapacityOrder};
pub use route::Route;
pub use unchosen::RunningMean;
pub use zero_computation::{ZeroComputation, ZeroExperts};

pub(super) const LAYER: LayerSpec = LayerSpec {
    name: "moe",
    summary: "a mixture of experts: each token goes to a few of them",
    parameters: &[
        ParameterSpec::required(
            "experts",
            ParameterType::Form("NUMBER * EXPERT"),
            "the experts; in a list `zero`, `copy` and `constant` may follow, which compute nothing",
        ),
        ParameterSpec::required("route", ParameterType::Form("ROUTER(..)"), "how tokens are sent to experts"),
        ParameterSpec::optional(
            "shared",
            ParameterType::Form("NUMBER * EXPERT"),
            DefaultValue::Absent("none"),
            "experts that every token goes to",
        ),
        ParameterSpec::flag(
            "shared_gate",
            false,
            "weigh what the shared experts compute by the sigmoid of a linear map",
        ),
        ParameterSpec::optional(
            "weigh",
            ParameterType::Choice(&["output", "input"]),
            DefaultValue::Word("output"),
            "multiply what experts give, or what they are given, by the weight (input: Llama 4)",
        ),
        ParameterSpec::optional(
            "latent",
            ParameterType::Int(WIDTH),
            DefaultValue::Absent("none"),
            "width on which the experts work, between two trained maps; shared ones and the router see all of it",
        ),
        ParameterSpec::optional(
            "balance",
            ParameterType::Form("[LOSS(weight: ..), ..]"),
            DefaultValue::Absent("none"),
            "balance losses",
        ),
        ParameterSpec::optional(
            "capacity",
            ParameterType::Form("capacity(factor: .., ..)"),
            DefaultValue::Absent("unlimited"),
            "bound on the tokens of an expert",
        ),
        ParameterSpec::optional(
            "unchosen",
            ParameterType::Form("running_mean(decay: .., ..)"),
            DefaultValue::Absent("nothing"),
            "what stands in for the experts that a token does not go to, so that their scores learn from it (Default MoE)",
        ),
        ParameterSpec::flag(
            "straight_through",
            false,
            "let the gradient of what experts are given reach the weights as well",
        ),
        ParameterSpec::optional(
            "allow",
            ParameterType::Choice(&["lookahead"]),
            DefaultValue::Absent("nothing"),
            "allow a router that compares tokens with later ones",
        ),
    ],
    forms: &[("capacity", CAPACITY), ("running_mean", RUNNING_MEAN)],
    has_layers: false,
    equations: "\
e, w = route(x)                                     x [N, C], e i32 [N, K], w [N, K]: experts and weights of each token
y_n = sum_k w_nk f_{e_nk}(x_n) + sum_s g_s(x_n)     y [N, C], f_1 .. f_E the experts, g_s the shared ones
weigh: input        sum_k f_{e_nk}(w_nk x_n) instead of the first sum
straight_through: true   sum_k w_nk f_{e_nk}(v_nk x_n), where v_nk is 1 and has the gradient of w_nk
shared_gate: true   the second sum times sigmoid(x_n . w)
unchosen: running_mean(decay: d)   y_n + sum_e p_ne m_e over the experts that n does not go to, p the router's probabilities;
m_e = d m_e + (1 - d) * mean of f_e(x) over the tokens of e, after a training step in which it has any; no gradient in m
adds: gradient      only the gradient of p has that sum, the output has not
With a capacity, an expert takes at most max(minimum, int(N K / E * factor)) tokens; the rest of the sum is 0.
The rows of all experts are sorted by expert, and each linear map of the experts is one product over ragged segments.
experts: [F * EXPERT, zero, copy, J * constant]     E counts all of them, in this order; no row is sorted for the last ones:
zero f(x) = 0, copy f(x) = x, constant f(x) = a1 x + a2 v with [a1, a2] = softmax(W x), W [2, C] and v [C] trained
They have no capacity, but count in the E of that of the others.
latent: d           y_n = U sum_k w_nk f_{e_nk}(D x_n) + sum_s g_s(x_n)     D [d, C], U [C, d] trained, without biases
The router, shared experts and those that compute nothing keep all C channels.
Objective of a training step: + weight * loss for each loss of `balance`.
Parameters: those of E experts, with the axis of experts in front, of the shared experts, and of the router;
with shared_gate: true shared_gate.weight [1, C]; of J constant experts experts.constant.mix.weight [2 J, C] (two rows each)
and .vectors [J, C]; with latent latent.down.weight [d, C] and latent.up.weight [C, d].
Cost per token: K experts on average (K F / E where E - F compute nothing, and 6 J C), the shared experts, 4 d C
with latent, 2 E C with unchosen, and 2 for each parameter of the router.",
    decoding: "Nothing is kept. It follows from the router: one that compares tokens, counts them or is random in \
               evaluation, and a capacity in evaluation, have the window computed anew; `moec explain ROUTER` says more.",
    references: &[
        "Shazeer et al. 2017, Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer, arXiv \
         1701.06538",
        "Qwen Team 2024, Qwen1.5-MoE: Matching 7B Model Performance with 1/3 Activated Parameters (shared_gate)",
        "Gale et al. 2022, MegaBlocks: Efficient Sparse Training with Mixture-of-Experts, arXiv 2211.15841",
        "Jin et al. 2024, MoE++: Accelerating Mixture-of-Experts Methods with Zero-Computation Experts, arXiv 2410.07348 \
         (zero, copy, constant)",
        "Zeng et al. 2024, AdaMoE: Token-Adaptive Routing with Null Experts for Mixture-of-Experts Language Models, arXiv \
         2406.13233 (zero)",
        "Elango et al. 2026, LatentMoE: Toward Optimal Accuracy per FLOP and Parameter in Mixture of Experts, arXiv \
         2601.18089 (latent)",
        "Panda et al. 2025, Dense Backpropagation Improves Training for Sparse Mixture-of-Experts, arXiv 2504.12463 (unchosen)",
        "Bengio et al. 2013, Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation, arXiv \
         1308.3432 (straight_through, as the dispatch of the public code st-moe-pytorch)",
    ],
    check,
};

/// A mixture of experts.
#[derive(Clone, Debug)]
pub struct Moe {
    /// Width of the vectors, C.
    pub width: usize,
    /// Number of experts, E.
    pub experts: usize,
    /// The layers of each expert that computes.
    pub expert: Vec<Layer>,
    /// The experts that compute nothing, which are the last ones, in the order of their numbers.
    pub zero_computation: Vec<ZeroExperts>,
    /// Width on which the experts that compute work, d; that of the vectors if `None`.
    pub latent: Option<usize>,
    /// Whether what they are given is multiplied by the weight, rather than what they give.
    pub weighs_input: bool,
    /// Number of experts that every token goes to.
    pub shared: usize,
    /// The layers of each shared expert.
    pub shared_expert: Vec<Layer>,
    /// Whether what they compute is weighed by the sigmoid of a linear map of the token.
    pub shared_gate: bool,
    /// How tokens are sent to experts.
    pub route: Route,
    /// Balance losses.
    pub balance: Vec<WeightedLoss>,
    /// What stands in for the experts that a token does not go to.
    pub unchosen: Option<RunningMean>,
    /// Whether the gradient of what experts are given reaches the weights.
    pub straight_through: bool,
    /// Bound on the tokens of an expert; every token is kept if `None`.
    pub capacity: Option<Capacity>,
    /// Where it was written.
    pub span: Span,
}

fn check(c: &mut LayerCheck<'_, '_>) -> Option<Arc<dyn LayerKind>> {
    let errors = c.errors();
    let latent = c.size("latent");
    // With a fault in it, the width of the experts is unknown.
    let width = latent.or(c.input()).filter(|_| latent.is_some() || !c.is_given("latent"));
    let experts = c.form("experts").and_then(|expr| experts::check_all(c, expr, width));
    let shared = c.form("shared").map(|expr| experts::check(c, "shared", expr, c.input()));
    let route = c.form("route").and_then(|expr| route::check(c, expr));
    let others = experts.as_ref().is_some_and(|experts| !experts.zero_computation.is_empty());
    let balance = c.form("balance").map(|expr| balance::check(c, expr, route.as_ref(), others));
    let capacity = c.form("capacity").and_then(|expr| c.choose(expr, &|c, expr| capacity::check(c, expr)));
    if let Some(route) = &route {
        if let Some(experts) = &experts
            && let Some(count) = experts.count()
        {
            let span = if others { c.argument_span("experts") } else { experts.copies.span };
            route.suits(c, count, span);
        }
        route.causality(c, capacity);
        route.in_expert(c);
        route.without_use(c, others);
        route.learns(c, balance.as_deref());
    }
    if let Some((route, experts)) = route.as_ref().zip(experts.as_ref()) {
        let nested = experts.copies.layers.iter().flatten().find_map(|layer| within(layer, &|_| true));
        route.mixes_rows(c, nested);
    }
    let weighs_input = c.word("weigh") == Some("input");
    if weighs_input && route.as_ref().is_some_and(|route| !route.traits().selects) {
        let d = Diagnostic::new(Code::ArgumentsConflict, "`weigh` has no use where tokens or experts are mixed")
            .primary(c.argument_span("weigh"), "a mixture has no weight of its own")
            .help("remove it");
        c.report(d);
    }
    let unchosen = c.form("unchosen").map(|expr| c.choose(expr, &|c, expr| unchosen::check(c, expr, route.as_ref())));
    let straight_through = c.bool("straight_through")?;
    if straight_through && (weighs_input || route.as_ref().is_some_and(|route| !route.traits().selects)) {
        let (why, help) = match weighs_input {
            true => ("the weights have that gradient already", "remove it, or `weigh: input`"),
            false => ("no expert is given rows with a weight", "remove it"),
        };
        let d = Diagnostic::new(Code::ArgumentsConflict, "`straight_through` has no use here");
        c.report(d.primary(c.argument_span("straight_through"), why).help(help));
    }
    let shared_gate = c.bool("shared_gate")?;
    if shared_gate && shared.is_none() {
        let d = Diagnostic::new(Code::ArgumentsConflict, "`shared_gate` has no use without `shared`")
            .primary(c.argument_span("shared_gate"), "there are no shared experts")
            .help("remove it, or add `shared: 1 * mlp(hidden: 512)`");
        c.report(d);
    }
    if let Some(width) = c.input().filter(|_| shared_gate) {
        c.count(&[1, width]);
    }
    if let (Some(width), Some(latent)) = (c.input(), latent) {
        c.count(&[latent, width]);
        c.count(&[width, latent]);
    }
    if c.errors() > errors {
        return None;
    }
    let experts = experts?;
    let (shared, shared_expert) = match shared {
        Some(shared) => shared.and_then(|shared| Some((shared.count?, shared.layers?)))?,
        None => (0, Vec::new()),
    };
    checked(Moe {
        width: c.input()?,
        experts: experts.count()?,
        expert: experts.copies.layers?,
        zero_computation: experts.zero_computation,
        latent,
        weighs_input,
        shared,
        shared_expert,
        shared_gate,
        route: route?,
        balance: balance.into_iter().flatten().collect(),
        unchosen: unchosen.flatten(),
        straight_through,
        capacity: capacity.map(|(capacity, _)| capacity),
        span: c.span(),
    })
}

/// The first `moe` in a layer, which may be the layer itself, of which something holds.
pub(super) fn within<'l>(layer: &'l Layer, holds: &dyn Fn(&Moe) -> bool) -> Option<&'l Moe> {
    let inner = || layer.layers().iter().find_map(|layer| within(layer, holds));
    layer.of::<Moe>().filter(|moe| holds(moe)).or_else(inner)
}

impl Moe {
    /// The tokens as the experts that compute see them.
    fn inner(&self, l: &mut Lowering, site: Site<'_>, x: Value) -> Value {
        let Some(latent) = self.latent else { return x };
        l.opened("latent", |l| l.linear("down", x, site.rows, (self.width, latent), false))
    }

    /// What those experts add up to, as the layer returns it.
    fn outer(&self, l: &mut Lowering, site: Site<'_>, z: Value) -> Value {
        let Some(latent) = self.latent else { return z };
        l.opened("latent", |l| l.linear("up", z, site.rows, (latent, self.width), false))
    }

    /// What routed experts add up to, and the bound on the tokens of one.
    fn sparse(
        &self,
        l: &mut Lowering,
        site: Site<'_>,
        x: Value,
        routing: Routing,
        choice: Choice,
    ) -> Result<(Value, usize, Option<usize>), LowerError> {
        let path = l.path();
        let (choice, experts) = choice::leaves(l, site, choice, (self.experts, self.computed()));
        let taken = parted(l.b(), choice, experts);
        let (kept, capacity) = self.within_capacity(l, site, &routing, taken, experts)?;
        let inner = self.inner(l, site, x);
        let z = self.dispatched(l, site, inner, &routing, kept.computed, experts)?;
        let z = self.outer(l, site, z);
        let z = self.zero_computation(l, site, x, z, kept);
        if l.options.loss {
            self.balance_losses(l, site, routing, choice, experts);
        }
        if metrics::observed(l) {
            // Every expert that computes has the same share of the tokens, as far as is known beforehand.
            let declared = self.route.experts_per_token(self.experts, site.time) * self.computed() as f64;
            let declared = declared / self.experts as f64;
            let measured = metrics::balance(l, &path, experts, taken, kept);
            let measured = measured.filter(|_| declared > 0.0);
            l.measured.extend(measured.map(|value| MeasuredLayer { path, value, declared }));
        }
        let strategy = self.route.strategy.name();
        l.expose(strategy, site, experts.count, (choice.chosen, choice.weights), (kept.all, kept.computed.weights));
        Ok((z, experts.count, capacity))
    }
}

impl LayerKind for Moe {
    fn name(&self) -> &'static str {
        LAYER.name
    }

    fn lower(&self, l: &mut Lowering, site: Site<'_>, x: Value) -> Result<Value, LowerError> {
        let path = l.path();
        let by_probability = self.capacity.is_some_and(|capacity| capacity.order == CapacityOrder::Probability);
        let routing = self.route.lower(l, site, x, self.experts, by_probability || self.unchosen.is_some())?;
        let own_losses: Vec<_> = routing.auxiliary.iter().map(|loss| (loss.name.clone(), loss.weight)).collect();
        let (z, experts, capacity) = match routing.assignment {
            Assignment::Slots { dispatch, combine } => {
                self.slots_fit(l, site, x, dispatch, combine)?;
                let inner = self.inner(l, site, x);
                let z = self.mixed(l, site, inner, dispatch, combine)?;
                let z = self.outer(l, site, z);
                if l.options.loss {
                    routing.auxiliary.into_iter().for_each(|loss| l.own_loss(&path, loss));
                }
                metrics::slots(l, self.route.strategy.name(), site, self.experts, combine);
                (z, self.experts, None)
            }
            Assignment::Merged { weights, offsets } => {
                self.runs_fit(l, site, weights, offsets)?;
                let inner = self.inner(l, site, x);
                let z = self.merged(l, site, inner, weights, offsets)?;
                let z = self.outer(l, site, z);
                if l.options.loss {
                    routing.auxiliary.into_iter().for_each(|loss| l.own_loss(&path, loss));
                }
                let [tokens, _] = l.extents(x);
                metrics::merged(l, self.route.strategy.name(), site, (weights, offsets), tokens);
                (z, self.experts, None)
            }
            Assignment::TokenChoice { .. } | Assignment::DenseGates { .. } | Assignment::ExpertChoice { .. } => {
                let choice = self.choice(l, x, &routing.assignment)?;
                self.sparse(l, site, x, routing, choice)?
            }
        };
        let z = self.shared_experts(l, site, x, z)?;
        let balance = self.balance.iter().map(|loss| (loss.loss.name.to_string(), loss.weight()));
        l.moe_layers.push(MoeLayerInfo {
            path,
            experts,
            experts_per_token: self.route.experts_per_token(self.experts, site.time),
            shared: self.shared,
            zero_computation: self.experts - self.computed(),
            strategy: self.route.strategy.name().to_string(),
            traits: self.route.traits(),
            capacity,
            losses: balance.chain(own_losses).collect(),
            span: self.span,
        });
        Ok(z)
    }

    fn flops(&self, time: usize, vocab: usize) -> Flops {
        // The experts that a token meets.
        let share = self.computed() as f64 / self.experts as f64;
        let routed =
            layer::flops(&self.expert, time, vocab) * (self.route.experts_per_token(self.experts, time) * share);
        let gate = if self.shared_gate { 2 * self.width } else { 0 };
        let shared = layer::flops(&self.shared_expert, time, vocab) * self.shared as f64;
        let maps = self.latent.map_or(0, |latent| 4 * latent * self.width);
        let means = self.unchosen.map_or(0, |_| 2 * self.computed() * self.latent.unwrap_or(self.width));
        routed + shared + Flops::products((gate + maps + means) as f64) + self.zero_computation_flops()
    }

    fn needs(&self) -> Needs {
        let bounded = self.capacity.is_some_and(|capacity| capacity.evaluation_factor > 0.0);
        layer::needs(&self.expert).and(layer::needs(&self.shared_expert)).and(self.route.needs(bounded))
    }

    fn resolved(&self) -> BTreeMap<String, ResolvedValue> {
        let mut arguments = map([
            ("experts", self.experts.into()),
            ("expert", ResolvedValue::Layers(layer::resolved(&self.expert))),
            ("route", self.route.resolved()),
            ("balance", ResolvedValue::List(self.balance.iter().map(WeightedLoss::resolved).collect())),
        ]);
        if !self.zero_computation.is_empty() {
            let experts = self.zero_computation.iter().map(|experts| experts.resolved()).collect();
            arguments.insert("zero_computation".into(), ResolvedValue::List(experts));
        }
        if let Some(latent) = self.latent {
            arguments.insert("latent".into(), latent.into());
        }
        if self.weighs_input {
            arguments.insert("weigh".into(), "input".into());
        }
        if let Some(unchosen) = self.unchosen {
            arguments.insert("unchosen".into(), unchosen.resolved());
        }
        if self.straight_through {
            arguments.insert("straight_through".into(), true.into());
        }
        if self.shared > 0 {
            arguments.insert("shared".into(), self.shared.into());
            arguments.insert("shared_expert".into(), ResolvedValue::Layers(layer::resolved(&self.shared_expert)));
            arguments.insert("shared_gate".into(), self.shared_gate.into());
        }
        if let Some(capacity) = self.capacity {
            arguments.insert("capacity".into(), capacity.resolved());
        }
        arguments
    }
}

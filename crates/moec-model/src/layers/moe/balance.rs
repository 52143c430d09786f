//! Balance losses of a `moe`: `balance: [LOSS(weight: ..), ..]` as written, and as terms of the objective.

use moec_ir::{Builder, Invariant, Output, Value};
use moec_syntax::{self as ast, Code, Diagnostic, ExprKind, Span, meant};

use super::Moe;
use super::choice::{Choice, Experts};
use super::route::{Route, named};
use crate::argument::Arguments;
use crate::check::arguments::Owner;
use crate::check::layer::LayerCheck;
use crate::check::values::describe;
use crate::losses::{BalanceLoss, Factors, LossContext, RowKind};
use crate::lower::lowering::{Lowering, Site};
use crate::resolved::ResolvedValue;
use crate::router::{Assignment, Quantity, Randomness, Routing};
use crate::words::listed;

/// A balance loss with its arguments.
#[derive(Clone, Debug)]
pub struct WeightedLoss {
    /// The loss.
    pub loss: BalanceLoss,
    /// Its arguments; `weight` is its factor in the objective.
    pub arguments: Arguments,
}

impl WeightedLoss {
    /// Its factor in the objective.
    pub fn weight(&self) -> f64 {
        self.arguments.float("weight")
    }

    /// The loss as plain data.
    pub(super) fn resolved(&self) -> ResolvedValue {
        self.arguments.resolved([("loss", self.loss.name.into())])
    }
}

/// Checks what `balance:` is given; losses with faults are left out. `others` says whether there are experts without
/// computation.
pub(super) fn check<'a>(
    c: &mut LayerCheck<'_, 'a>,
    expr: &'a ast::Expr,
    route: Option<&Route>,
    others: bool,
) -> Vec<WeightedLoss> {
    c.choose(expr, &|c, expr| Some(listed_losses(c, expr, route, others))).unwrap_or_default()
}

fn listed_losses<'a>(
    c: &mut LayerCheck<'_, 'a>,
    expr: &'a ast::Expr,
    route: Option<&Route>,
    others: bool,
) -> Vec<WeightedLoss> {
    let ExprKind::List(list) = &expr.kind else {
        let mut d = Diagnostic::new(Code::WrongType, format!("`balance` must be a list, not {}", describe(expr)))
            .primary(expr.span, "expected `[LOSS(weight: ..), ..]`");
        if let Some(call) = named(expr) {
            // What is between the brackets should be right, too.
            let mut list = c.text(expr.span).to_string();
            if let [ast::Argument { name: None, value, .. }] = call.arguments
                && matches!(value.kind, ExprKind::Int(_) | ExprKind::Float(_))
            {
                list.insert_str(value.span.start() - expr.span.start(), "weight: ");
            }
            d = d.patch(expr.span, format!("[{list}]"), "make it a list");
        }
        c.report(d);
        return Vec::new();
    };
    let mut losses: Vec<(WeightedLoss, Span)> = Vec::new();
    for item in list {
        let Some(loss) = weighted(c, item, route, others) else { continue };
        if let Some((_, first)) = losses.iter().find(|(other, _)| other.loss.name == loss.loss.name) {
            let d = Diagnostic::new(Code::DuplicateArgument, format!("loss `{}` is listed twice", loss.loss.name))
                .primary(item.span, "listed again here")
                .secondary(*first, "first listed here")
                .help("remove one of them");
            c.report(d);
            continue;
        }
        losses.push((loss, item.span));
    }
    losses.into_iter().map(|(loss, _)| loss).collect()
}

fn weighted<'a>(
    c: &mut LayerCheck<'_, 'a>,
    expr: &'a ast::Expr,
    route: Option<&Route>,
    others: bool,
) -> Option<WeightedLoss> {
    let Some(call) = named(expr) else {
        let d = Diagnostic::new(Code::WrongType, format!("a balance loss cannot be {}", describe(expr)))
            .primary(expr.span, "expected a loss, such as `importance(weight: 0.01)`");
        c.report(d);
        return None;
    };
    let Some(loss) = c.registry().find_loss(call.name).copied() else {
        let names: Vec<&str> = c.registry().losses().map(|l| l.name).collect();
        let message = format!("there is no balance loss named `{}`", call.name);
        let d = Diagnostic::new(Code::UnknownLoss, message).primary(call.name_span, "unknown loss");
        let d = d.suggest(call.name_span, meant(call.name, names.iter().copied()));
        c.report(d.note(format!("the losses are {}", listed(names))));
        return None;
    };
    let owner = Owner { name: call.name, kind: "loss", span: call.name_span };
    let resolved = c.arguments(owner, &loss.all_parameters(), call.arguments);
    let lacking = route.and_then(|route| {
        let provided = route.traits().provides;
        Some((route, *loss.needs.iter().find(|quantity| !provided.contains(quantity))?))
    });
    if let Some((route, quantity)) = lacking {
        unsupported(c, &loss, call.span, route, quantity);
        return None;
    }
    let tau = resolved.arguments.span("tau").filter(|_| loss.name == "switch" && !others && !resolved.failed);
    if let Some(at) = tau {
        let d = Diagnostic::new(Code::ArgumentsConflict, "`tau` has no use without experts that compute nothing")
            .primary(at, "all experts compute here")
            .help("remove it, or add such experts: `experts: [8 * mlp(hidden: 512), zero, copy]`");
        c.report(d);
        return None;
    }
    (!resolved.failed).then_some(WeightedLoss { loss, arguments: resolved.arguments })
}

fn unsupported(c: &mut LayerCheck<'_, '_>, loss: &BalanceLoss, span: Span, route: &Route, lacking: Quantity) {
    let what = match lacking {
        Quantity::Logits => "scores of all experts",
        Quantity::Probabilities => "probabilities over all experts",
        Quantity::NoisyScores => "noise on its scores",
    };
    let (loss_name, router) = (loss.name, route.strategy.name());
    let traits = route.traits();
    let own = route.strategy.definition();
    // A router of the file may well compute what it does not return; noise it has or has not.
    let can_return = own.is_some() && (lacking != Quantity::NoisyScores || traits.random != Randomness::Never);
    let verb = if can_return { "does not hand over" } else { "does not have" };
    let d = Diagnostic::new(Code::LossNotSupported, format!("`{loss_name}` does not work with the router `{router}`"))
        .primary(span, format!("needs {what}, which `{router}` {verb}"));
    let d = own.into_iter().fold(d, |d, at| d.secondary(at, "defined here"));
    let d = if can_return {
        let result = match lacking {
            Quantity::Logits => "logits: scores",
            Quantity::Probabilities => "probabilities: p",
            Quantity::NoisyScores if traits.provides.contains(&Quantity::Logits) => "noisy: scores, std: deviation",
            Quantity::NoisyScores => "logits: clean, noisy: scores, std: deviation",
        };
        d.help(format!("let it hand them over, as in `return token_choice(.., {result})`"))
    } else {
        let fits =
            c.registry().routers().filter(|r| loss.needs.iter().all(|q| r.default_traits().provides.contains(q)));
        d.help(format!("routers that have it: {}", listed(fits.map(|r| r.name()))))
    };
    let served = c.registry().losses().filter(|other| other.needs.iter().all(|q| traits.provides.contains(q)));
    let served = listed(served.map(|other| other.name));
    c.report(d.help(format!("losses that work with `{router}`: {served}")));
}

/// What a layer has for a loss of all layers that say so.
pub(crate) struct Pooled {
    loss: WeightedLoss,
    experts: usize,
    factors: Factors,
}

impl Pooled {
    /// Whether two are parts of one loss.
    fn is_with(&self, other: &Pooled) -> bool {
        // Where they are written does not matter.
        let same_experts = self.experts == other.experts && self.factors.scale == other.factors.scale;
        same_experts && self.loss.resolved() == other.loss.resolved()
    }
}

impl Lowering {
    /// Adds the losses of several layers at once to the objective, each with its weight once.
    pub(crate) fn pooled_losses(&mut self) {
        let mut groups: Vec<Vec<Pooled>> = Vec::new();
        for pooled in std::mem::take(&mut self.pooled) {
            match groups.iter_mut().find(|group| group.iter().any(|other| other.is_with(&pooled))) {
                Some(group) => group.push(pooled),
                None => groups.push(vec![pooled]),
            }
        }
        for part in groups {
            let first = part.first().invariant("a group has a member");
            let (weight, scale) = (first.loss.weight(), first.factors.scale);
            let b = self.b();
            let mean = |b: &mut Builder, of: fn(&Factors) -> Value| {
                let values: Vec<Value> = part.iter().map(|pooled| of(&pooled.factors)).collect();
                let sum = values.into_iter().reduce(|sum, value| b.add(sum, value));
                let sum = sum.invariant("a group has a member");
                b.scale(sum, 1.0 / part.len() as f64)
            };
            let shares = mean(b, |factors| factors.shares);
            let probabilities = mean(b, |factors| factors.probabilities);
            let product = b.mul(shares, probabilities);
            let sum = b.sum_all(product);
            let value = b.scale(sum, scale);
            self.add_to_objective(value, weight);
        }
    }
}

impl Moe {
    /// Adds the balance losses of the layer and of its router to the objective. `choice` is that before a capacity.
    pub(super) fn balance_losses(
        &self,
        l: &mut Lowering,
        site: Site<'_>,
        mut routing: Routing,
        choice: Choice,
        experts: Experts,
    ) {
        let path = l.path();
        if let Assignment::TokenChoice { experts, .. } = &mut routing.assignment {
            *experts = choice.chosen;
        }
        let own = routing.auxiliary.clone();
        // The sequences of the batch, where the rows are whole sequences.
        let time = experts.rescale.is_none().then_some(site.time);
        let average = self.route.experts_per_token(self.experts, site.time);
        let Experts { computed, rescale, valid, .. } = experts;
        let rows = RowKind { rescale, valid, time, average, computed, training: l.training() };
        let chosen = (choice.chosen, choice.weights);
        let mut context = LossContext::new(l.b(), routing, chosen, experts.count, rows);
        let (mut terms, mut pooled) = (Vec::new(), Vec::new());
        for balance in &self.balance {
            let value = (balance.loss.lower)(&mut context, &balance.arguments);
            let output = Output::Aux { path: path.clone(), loss: balance.loss.name.into() };
            context.builder().output(output, value);
            match context.take_pooled() {
                Some(factors) => pooled.push(Pooled { loss: balance.clone(), experts: experts.count, factors }),
                None => terms.push((value, balance.weight())),
            }
        }
        l.pooled.extend(pooled);
        terms.into_iter().for_each(|(value, weight)| l.add_to_objective(value, weight));
        own.into_iter().for_each(|loss| l.own_loss(&path, loss));
    }
}

//! The `moe` layer: experts, route, balance losses, capacity, causality.

use moec_syntax::{self as ast, BinaryOperator, Code, Diagnostic, ExprKind, Span, did_you_mean};

use super::arguments::{Owner, Resolved};
use super::layers::{Flow, Place, Written, with_culprit};
use super::values::describe;
use super::{Checker, Scope, listed};
use crate::argument::Arguments;
use crate::layers::CAPACITY;
use crate::model::{Capacity, CapacityOrder, Causality, Layer, LayerKind, Moe, Number, Route, WeightedLoss};
use crate::router::{Compares, Quantity, Randomness, Traits, Verdict};

/// Most experts of a layer.
const MAX_EXPERTS: i64 = 65_536;

/// A call or a bare name: `load(weight: 0.01)`, `load`.
struct Named<'e> {
    name: &'e str,
    name_span: Span,
    span: Span,
    arguments: &'e [ast::Argument],
}

/// A number of experts and what they are; parts with faults are absent.
struct Copies {
    count: Option<usize>,
    span: Span,
    layers: Option<Vec<Layer>>,
}

fn named(expr: &ast::Expr) -> Option<Named<'_>> {
    match &expr.kind {
        ExprKind::Name(name) => Some(Named { name, name_span: expr.span, span: expr.span, arguments: &[] }),
        ExprKind::Call(call) => Some(Named {
            name: &call.name.name,
            name_span: call.name.span,
            span: call.span,
            arguments: call.arguments(),
        }),
        _ => None,
    }
}

impl<'a> Checker<'a> {
    pub(super) fn moe(
        &mut self,
        call: Written<'_, 'a>,
        resolved: &Resolved<'a>,
        scope: Scope,
        place: Place,
        input: Option<usize>,
    ) -> Option<LayerKind> {
        let errors = self.error_count();
        let form = |name: &str| resolved.forms.get(name).copied();
        let experts = form("experts").and_then(|e| self.copies("experts", e, scope, input));
        let shared = form("shared").map(|e| self.copies("shared", e, scope, input));
        let route = form("route").and_then(|e| self.route(e, scope));
        let balance = form("balance").map(|e| self.balance(e, scope, route.as_ref())).unwrap_or_default();
        let capacity = form("capacity").and_then(|e| Some((self.capacity(e, scope)?, e.span)));
        let route_span = form("route").map_or(call.name.span, |e| e.span);
        if let (Some(experts), Some(route)) = (&experts, &route)
            && let Some(count) = experts.count
        {
            self.enough_experts(count, experts.span, route, route_span);
            self.arguments_agree(count, route, route_span);
        }
        if let Some(route) = &route {
            let traits = route.strategy.traits(&route.arguments);
            let allowed = resolved.arguments.get("allow").is_some();
            self.causality(route, traits, route_span, allowed, capacity);
            if place.expert {
                self.nested(route, traits, route_span);
            }
            let unused = [form("capacity").map(|e| ("capacity", e.span)), form("balance").map(|e| ("balance", e.span))];
            for (argument, span) in unused.into_iter().flatten().filter(|_| !traits.selects) {
                let name = route.strategy.name();
                let d = Diagnostic::new(Code::ArgumentsConflict, format!("`{name}` has no use for `{argument}`"))
                    .primary(span, "has no effect")
                    .note("every expert works on mixtures of all tokens, so the load is even and nothing is dropped")
                    .help(format!("remove `{argument}`"));
                self.report(d);
            }
            // With faults in `balance`, what was meant is unknown.
            let helps = |loss: &WeightedLoss| loss.loss.needs.iter().any(|need| traits.provides.contains(need));
            let meant = form("balance").is_some() && balance.is_empty();
            if !traits.learns_from_task && !meant && !balance.iter().any(helps) {
                self.no_task_gradient(route, route_span);
            }
        }
        if self.error_count() > errors {
            return None;
        }
        let experts = experts?;
        let (shared, shared_expert) = match shared.flatten() {
            Some(shared) => (shared.count?, shared.layers?),
            None => (0, Vec::new()),
        };
        Some(LayerKind::Moe(Box::new(Moe {
            experts: experts.count?,
            expert: experts.layers?,
            shared,
            shared_expert,
            route: route?,
            balance,
            capacity: capacity.map(|(capacity, _)| capacity),
            route_span,
        })))
    }

    /// `NUMBER * EXPERT`; `None` if it is not of that form.
    fn copies(&mut self, argument: &str, expr: &'a ast::Expr, scope: Scope, input: Option<usize>) -> Option<Copies> {
        if let ExprKind::If { branches, otherwise } = &expr.kind {
            let chosen = self.branch(branches, otherwise, scope)?;
            return self.copies(argument, chosen, scope, input);
        }
        let form = |checker: &mut Self, span: Span, found: &str| {
            let d = Diagnostic::new(Code::ExpertForm, format!("`{argument}` must be `NUMBER * EXPERT`, not {found}"))
                .primary(span, "expected a number of copies, `*`, and a layer, a block or `{ .. }`");
            checker.report(d.help(format!("for example `{argument}: 8 * mlp(hidden: 512)`")));
        };
        let ExprKind::Binary { operator, left, right } = &expr.kind else {
            form(self, expr.span, describe(expr));
            return None;
        };
        if operator.value != BinaryOperator::Multiply {
            form(self, expr.span, "another operation");
            return None;
        }
        // `mlp(hidden: 512) * 8` is the other way round.
        if matches!(left.kind, ExprKind::Call(_) | ExprKind::Sequence(_)) {
            form(self, expr.span, "`EXPERT * NUMBER`");
            return None;
        }
        let count = match self.number(left, scope) {
            Some(Number::Int(n)) if (1..=MAX_EXPERTS).contains(&n) => usize::try_from(n).ok(),
            Some(Number::Int(n)) if n < 1 => {
                let d = Diagnostic::new(Code::NoExperts, format!("`{argument}` asks for {n} experts"))
                    .primary(left.span, "expected at least 1");
                self.report(if argument == "shared" { d.help("leave `shared` out for none") } else { d });
                None
            }
            Some(Number::Int(n)) => {
                let d = Diagnostic::new(Code::OutOfRange, format!("{n} experts are too many"))
                    .primary(left.span, format!("expected at most {MAX_EXPERTS}"));
                self.report(d);
                None
            }
            Some(other) => {
                let d = Diagnostic::new(Code::WrongType, "the number of experts must be an integer")
                    .primary(left.span, format!("this is {} ({other})", other.kind()));
                self.report(d);
                None
            }
            None => None,
        };
        let layers = self.expert(argument, right, scope, input, count.unwrap_or(1));
        Some(Copies { count, span: left.span, layers })
    }

    /// The layers of an expert, which must return the width that they are given.
    fn expert(
        &mut self,
        argument: &str,
        expr: &'a ast::Expr,
        scope: Scope,
        input: Option<usize>,
        copies: usize,
    ) -> Option<Vec<Layer>> {
        let place = Place { own: false, top: false, trunk: false, expert: true };
        let mut flow = input.map_or(Flow::Unknown, Flow::Width);
        let mut layers = Vec::new();
        let errors = self.error_count();
        let outer = std::mem::replace(&mut self.model.copies, copies);
        match &expr.kind {
            ExprKind::Call(call) => self.layer(Written::call(call), scope, place, &mut flow, &mut layers),
            ExprKind::Sequence(body) => {
                self.body(body, scope, place, &mut flow, &mut layers);
            }
            // A name alone: a block, or a layer that needs no arguments.
            ExprKind::Name(name) => {
                let name = ast::Ident { name: name.clone(), span: expr.span };
                let written = Written { name: &name, arguments: &[], body: None, span: expr.span };
                self.layer(written, scope, place, &mut flow, &mut layers);
            }
            _ => {
                let message = format!("an expert must be a layer, a block or `{{ .. }}`, not {}", describe(expr));
                let d = Diagnostic::new(Code::ExpertForm, message).primary(expr.span, "expected an expert");
                self.report(d.help(format!("for example `{argument}: 8 * mlp(hidden: 512)`")));
            }
        }
        self.model.copies = outer;
        if self.error_count() > errors {
            return None;
        }
        if layers.is_empty() {
            let d = Diagnostic::new(Code::ExpertForm, "an expert has no layers")
                .primary(expr.span, "expected at least one layer");
            self.report(d);
            return None;
        }
        if let (Some(input), Flow::Width(output)) = (input, flow)
            && input != output
        {
            let message = format!("an expert turns width {input} into {output}");
            let d = Diagnostic::new(Code::WidthMismatch, message)
                .primary(expr.span, format!("an expert must return width {input}"));
            self.report(with_culprit(d, &layers).help(format!("end it with `linear(width: {input})`")));
            return None;
        }
        Some(layers)
    }

    /// The strategy that `route` names, with its arguments.
    fn route(&mut self, expr: &ast::Expr, scope: Scope) -> Option<Route> {
        if let ExprKind::If { branches, otherwise } = &expr.kind {
            let chosen = self.branch(branches, otherwise, scope)?;
            return self.route(chosen, scope);
        }
        let Some(call) = named(expr) else {
            let d = Diagnostic::new(Code::WrongType, format!("`route` must be a router, not {}", describe(expr)))
                .primary(expr.span, "expected a router, such as `softmax_top_k(k: 2)`");
            self.report(d);
            return None;
        };
        let Some(strategy) = self.registry.find_router(call.name).cloned() else {
            if self.faulty_routers.iter().any(|name| name == call.name) {
                // What is wrong with it has been said at its definition.
                call.arguments.iter().for_each(|a| self.mark_read(&a.value, scope));
                return None;
            }
            let names: Vec<&str> = self.registry.routers().map(|r| r.name()).collect();
            let message = format!("there is no router named `{}`", call.name);
            let mut d = Diagnostic::new(Code::UnknownRouter, message).primary(call.name_span, "unknown router");
            if let Some(near) = did_you_mean(call.name, names.iter().copied()) {
                d = d.help(format!("did you mean `{near}`?")).patch(call.name_span, near, "use the name that it has");
            }
            self.report(d.note(format!("the routers are {}", listed(names))));
            call.arguments.iter().for_each(|a| self.mark_read(&a.value, scope));
            return None;
        };
        let owner = Owner { name: call.name, kind: "router", span: call.name_span };
        let resolved = self.arguments(owner, strategy.parameters(), call.arguments, scope);
        let route = Route { strategy, arguments: resolved.arguments };
        (!resolved.failed).then_some(route)
    }

    /// What the strategy itself says about its arguments.
    fn arguments_agree(&mut self, experts: usize, route: &Route, span: Span) {
        if let Err(message) = route.strategy.check(&route.arguments, experts) {
            let d = Diagnostic::new(Code::ArgumentsConflict, format!("`{}` {message}", route.strategy.name()))
                .primary(span, "these arguments do not go together");
            self.report(d);
        }
    }

    fn enough_experts(&mut self, experts: usize, experts_span: Span, route: &Route, route_span: Span) {
        let k = route.arguments.size("k").max(1);
        // A router of the file can call something else `k`.
        if k <= experts || route.experts_per_token(experts, 1) <= experts as f64 {
            return;
        }
        let at = route.arguments.span("k").unwrap_or(route_span);
        let d = Diagnostic::new(Code::TopKTooLarge, format!("{k} experts a token, but there are only {experts}"))
            .primary(at, format!("expected at most {experts}"))
            .secondary(experts_span, format!("{experts} experts"));
        self.report(d);
    }

    fn balance(&mut self, expr: &ast::Expr, scope: Scope, route: Option<&Route>) -> Vec<WeightedLoss> {
        if let ExprKind::If { branches, otherwise } = &expr.kind {
            return match self.branch(branches, otherwise, scope) {
                Some(chosen) => self.balance(chosen, scope, route),
                None => Vec::new(),
            };
        }
        let ExprKind::List(list) = &expr.kind else {
            let mut d = Diagnostic::new(Code::WrongType, format!("`balance` must be a list, not {}", describe(expr)))
                .primary(expr.span, "expected `[LOSS(weight: ..), ..]`");
            if named(expr).is_some() {
                let text = self.source.slice(expr.span).to_string();
                d = d.patch(expr.span, format!("[{text}]"), "make it a list");
            }
            self.report(d);
            return Vec::new();
        };
        let mut losses: Vec<(WeightedLoss, Span)> = Vec::new();
        for item in list {
            let Some(loss) = self.loss(item, scope, route) else { continue };
            if let Some((_, first)) = losses.iter().find(|(other, _)| other.loss.name == loss.loss.name) {
                let d = Diagnostic::new(Code::DuplicateArgument, format!("loss `{}` is listed twice", loss.loss.name))
                    .primary(item.span, "listed again here")
                    .secondary(*first, "first listed here")
                    .help("remove one of them");
                self.report(d);
                continue;
            }
            losses.push((loss, item.span));
        }
        losses.into_iter().map(|(loss, _)| loss).collect()
    }

    fn loss(&mut self, expr: &ast::Expr, scope: Scope, route: Option<&Route>) -> Option<WeightedLoss> {
        let Some(call) = named(expr) else {
            let d = Diagnostic::new(Code::WrongType, format!("a balance loss cannot be {}", describe(expr)))
                .primary(expr.span, "expected a loss, such as `importance(weight: 0.01)`");
            self.report(d);
            return None;
        };
        let Some(loss) = self.registry.find_loss(call.name).copied() else {
            let names: Vec<&str> = self.registry.losses().map(|l| l.name).collect();
            let message = format!("there is no balance loss named `{}`", call.name);
            let mut d = Diagnostic::new(Code::UnknownLoss, message).primary(call.name_span, "unknown loss");
            if let Some(near) = did_you_mean(call.name, names.iter().copied()) {
                d = d.help(format!("did you mean `{near}`?")).patch(call.name_span, near, "use the name that it has");
            }
            self.report(d.note(format!("the losses are {}", listed(names))));
            return None;
        };
        let owner = Owner { name: call.name, kind: "loss", span: call.name_span };
        let resolved = self.arguments(owner, &loss.all_parameters(), call.arguments, scope);
        if let Some(route) = route {
            let provided = route.strategy.traits(&route.arguments).provides;
            let lacking: Vec<Quantity> = loss.needs.iter().copied().filter(|q| !provided.contains(q)).collect();
            if let Some(&quantity) = lacking.first() {
                self.unsupported(loss.name, call.span, route, quantity, loss.needs);
                return None;
            }
        }
        (!resolved.failed).then_some(WeightedLoss { loss, arguments: resolved.arguments })
    }

    fn unsupported(&mut self, loss: &str, span: Span, route: &Route, lacking: Quantity, needs: &[Quantity]) {
        let what = match lacking {
            Quantity::Logits => "scores of all experts",
            Quantity::Probabilities => "probabilities over all experts",
            Quantity::NoisyScores => "noise on its scores",
        };
        let router = route.strategy.name();
        let have: Vec<&str> = self
            .registry
            .routers()
            .filter(|r| {
                let provided = r.traits(&Arguments::defaults(r.parameters())).provides;
                needs.iter().all(|q| provided.contains(q))
            })
            .map(|r| r.name())
            .collect();
        let d = Diagnostic::new(Code::LossNotSupported, format!("`{loss}` does not work with the router `{router}`"))
            .primary(span, format!("needs {what}, which `{router}` does not have"))
            .help(format!("routers that have it: {}", listed(have)));
        self.report(d);
    }

    fn capacity(&mut self, expr: &ast::Expr, scope: Scope) -> Option<Capacity> {
        let call = named(expr).filter(|call| call.name == "capacity");
        let Some(call) = call else {
            let d = Diagnostic::new(Code::WrongType, "`capacity` is written `capacity(factor: 1.25)`")
                .primary(expr.span, format!("this is {}", describe(expr)));
            self.report(d);
            return None;
        };
        let owner = Owner { name: "capacity", kind: "setting", span: call.name_span };
        let resolved = self.arguments(owner, CAPACITY, call.arguments, scope);
        let arguments = &resolved.arguments;
        let factor = arguments.float("factor");
        let evaluation_factor = match arguments.get("evaluation_factor") {
            Some(_) => arguments.float("evaluation_factor"),
            None => factor,
        };
        let minimum = arguments.size("minimum");
        let order = CapacityOrder::from_word(arguments.word("order"));
        let renormalise = arguments.word("renormalise") == "after";
        (!resolved.failed).then_some(Capacity { factor, evaluation_factor, minimum, order, renormalise })
    }

    /// Whether later tokens can reach earlier ones, from what the router declares and how capacity is shared out.
    fn causality(
        &mut self,
        route: &Route,
        traits: Traits,
        span: Span,
        allowed: bool,
        capacity: Option<(Capacity, Span)>,
    ) {
        let in_order = |c: &Capacity| c.order == CapacityOrder::Token;
        let bound = capacity.filter(|(c, _)| c.evaluation_factor > 0.0);
        let verdict = match (traits.verdict(), capacity) {
            (Verdict::LooksAhead, _) => Causality::LooksAhead,
            (_, Some((c, _))) if !in_order(&c) && bound.is_some() => Causality::LooksAhead,
            (Verdict::SamplesDifferently, _) => Causality::SamplesDifferently,
            (Verdict::Causal, Some((c, _))) if !in_order(&c) => Causality::SamplesDifferently,
            // Tokens are kept in order, so within a sequence only earlier ones matter.
            (Verdict::Causal, Some(_)) => Causality::BatchDependent,
            (Verdict::Causal, None) => Causality::Causal,
        };
        self.model.causality = self.model.causality.max(verdict);
        if verdict != Causality::LooksAhead || allowed {
            return;
        }
        const WHY: &str =
            "a language model predicts a token from those before it; what leaks back is not there when sampling";
        if traits.verdict() != Verdict::LooksAhead
            && let Some((capacity, at)) = bound
        {
            let word = capacity.order.word();
            let d = Diagnostic::new(Code::NotCausal, format!("capacity in the order `{word}` looks at later tokens"))
                .primary(at, "a choice can be dropped because of tokens behind it")
                .note(WHY)
                .help("use `order: token`, or `evaluation_factor: 0` for no bound in evaluation and sampling")
                .help("to study it anyway, add `allow: lookahead` to the `moe`");
            self.report(d);
            return;
        }
        let whole = if traits.compares_when_sampling == Compares::Batch { "batch" } else { "sequence" };
        let causal: Vec<&str> = self
            .registry
            .routers()
            .filter(|r| r.traits(&Arguments::defaults(r.parameters())).verdict() != Verdict::LooksAhead)
            .map(|r| r.name())
            .collect();
        let name = route.strategy.name();
        let d = Diagnostic::new(Code::NotCausal, format!("the router `{name}` lets a token see later ones"))
            .primary(span, format!("compares each token with the whole {whole}"))
            .note(WHY)
            .help(format!("causal routers: {}", listed(causal)))
            .help("to study it anyway, add `allow: lookahead` to the `moe`");
        self.report(d);
    }

    /// In an expert the rows form no sequence, so a router there must look at each on its own.
    fn nested(&mut self, route: &Route, traits: Traits, span: Span) {
        let compares = traits.compares != Compares::None || traits.compares_when_sampling != Compares::None;
        let (why, note) = if compares {
            ("compares tokens with each other", "an expert is given the tokens routed to it, in no sequence")
        } else if traits.random == Randomness::Always {
            ("is random in evaluation too", "what a row draws depends on which other tokens are routed with it")
        } else if !traits.nests {
            ("has parameters or state that an expert cannot hold", "each outer expert needs an inner router of its own")
        } else {
            return;
        };
        let name = route.strategy.name();
        let d = Diagnostic::new(Code::ExpertNotTokenwise, format!("the router `{name}` cannot stand in an expert"))
            .primary(span, why)
            .note(note)
            .help("use a router that looks at each token on its own, such as `softmax_top_k`");
        self.report(d);
    }

    fn no_task_gradient(&mut self, route: &Route, span: Span) {
        let takes_all = route.strategy.parameters().iter().any(|spec| spec.name == "normalize");
        let d = Diagnostic::new(Code::ZeroTaskGradient, "the router learns nothing from the task");
        // Any number of experts but one shows whether a token goes to a single one.
        let single = route.experts_per_token(2, 2) <= 1.0;
        let d = if single {
            d.primary(span, "with one expert a token the weight is always 1, and its gradient 0")
        } else {
            d.primary(span, "no weight depends on what it trains, except through indices or `stop_gradient`")
        };
        let d = match (takes_all, single) {
            (true, _) => d.help("use `normalize: all`, a larger `k`, or a loss of the scores, such as `switch` or `z`"),
            (false, true) => d.help("use a larger `k`, or add a loss of the scores, such as `switch` or `z`"),
            (false, false) => d.help("let the weights depend on the scores, or add a loss of the scores, such as `z`"),
        };
        self.report(d);
    }
}

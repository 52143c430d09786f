//! The router of a `moe`: `route: ROUTER(..)` as written, what follows from what it declares, and the graph it builds.

use std::fmt;
use std::sync::Arc;

use moec_ir::Value;
use moec_syntax::{self as ast, Code, Diagnostic, ExprKind, Span, meant};

use super::{Capacity, CapacityOrder, Moe, WeightedLoss};
use crate::argument::Arguments;
use crate::check::arguments::Owner;
use crate::check::layer::LayerCheck;
use crate::check::values::describe;
use crate::library;
use crate::lower::lowering::{LowerError, Lowering, Rows, Site};
use crate::model::Causality;
use crate::needs::{Needs, Obstacle};
use crate::resolved::ResolvedValue;
use crate::router::{
    Compares, Nested, Quantity, Randomness, Routing, RoutingContext, RoutingStrategy, Traits, Verdict,
};
use crate::words::listed;

/// A routing strategy with its arguments.
#[derive(Clone)]
pub struct Route {
    /// The strategy.
    pub strategy: Arc<dyn RoutingStrategy>,
    /// Its arguments.
    pub arguments: Arguments,
    /// Where it was written.
    pub span: Span,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Route {
    /// `noisy_top_k(k: 2, epsilon: 0.01, ..)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.strategy.name(), self.arguments)
    }
}

/// A call or a bare name: `load(weight: 0.01)`, `load`.
pub(super) struct Named<'e> {
    pub(super) name: &'e str,
    pub(super) name_span: Span,
    pub(super) span: Span,
    pub(super) arguments: &'e [ast::Argument],
}

/// The call or name that an expression is, if it is one.
pub(super) fn named(expr: &ast::Expr) -> Option<Named<'_>> {
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

/// The strategy that `route:` names, with its arguments.
pub(super) fn check<'a>(c: &mut LayerCheck<'_, 'a>, expr: &'a ast::Expr) -> Option<Route> {
    let span = expr.span;
    c.choose(expr, &|c, expr| called(c, expr)).map(|route| Route { span, ..route })
}

fn called<'a>(c: &mut LayerCheck<'_, 'a>, expr: &'a ast::Expr) -> Option<Route> {
    let Some(call) = named(expr) else {
        let d = Diagnostic::new(Code::WrongType, format!("`route` must be a router, not {}", describe(expr)))
            .primary(expr.span, "expected a router, such as `softmax_top_k(k: 2)`");
        c.report(d);
        return None;
    };
    let Some(strategy) = c.registry().find_router(call.name).cloned() else {
        // What is wrong with a router of the file has been said at its definition.
        if !c.is_faulty_router(call.name) {
            unknown(c, &call);
        }
        c.mark_read(call.arguments);
        return None;
    };
    let owner = Owner { name: call.name, kind: "router", span: call.name_span };
    let resolved = c.arguments(owner, strategy.parameters(), call.arguments);
    (!resolved.failed).then_some(Route { strategy, arguments: resolved.arguments, span: expr.span })
}

fn unknown(c: &mut LayerCheck<'_, '_>, call: &Named<'_>) {
    let names: Vec<&str> = c.registry().routers().map(|r| r.name()).collect();
    let message = format!("there is no router named `{}`", call.name);
    let d = Diagnostic::new(Code::UnknownRouter, message).primary(call.name_span, "unknown router");
    let d = match library::file_of(call.name) {
        Some(path) => d.help(format!("it is in the library: write `import \"{path}\"` at the top of the file")),
        None => d.suggest(call.name_span, meant(call.name, names.iter().copied())),
    };
    c.report(d.note(format!("the routers are {}", listed(names))));
}

/// What the checker asks.
impl Route {
    /// Reports a router that does not suit the number of experts.
    pub(super) fn suits(&self, c: &mut LayerCheck<'_, '_>, experts: usize, experts_span: Span) {
        if let Some(k) =
            self.arguments.k().filter(|&k| k > experts && self.experts_per_token(experts, 1) > experts as f64)
        {
            let at = self.arguments.span("k").unwrap_or(self.span);
            let d = Diagnostic::new(Code::TopKTooLarge, format!("{k} experts a token, but there are only {experts}"))
                .primary(at, format!("expected at most {experts}"))
                .secondary(experts_span, format!("{experts} experts"));
            c.report(d);
        }
        // What the strategy itself says about its arguments.
        if let Err(message) = self.strategy.check(&self.arguments, experts) {
            let d = Diagnostic::new(Code::ArgumentsConflict, format!("`{}` {message}", self.strategy.name()))
                .primary(self.span, "these arguments do not go together");
            c.report(d);
        }
    }

    /// Whether later tokens can reach earlier ones, from what the router declares and how capacity is shared out.
    pub(super) fn causality(&self, c: &mut LayerCheck<'_, '_>, capacity: Option<(Capacity, Span)>) {
        let declared = self.traits().verdict();
        let in_order = |c: &Capacity| c.order == CapacityOrder::Token;
        let bound = capacity.filter(|(c, _)| c.evaluation_factor > 0.0);
        let verdict = match (declared, capacity) {
            (Verdict::LooksAhead, _) => Causality::LooksAhead,
            (_, Some((c, _))) if !in_order(&c) && bound.is_some() => Causality::LooksAhead,
            (Verdict::SamplesDifferently, _) => Causality::SamplesDifferently,
            (Verdict::Causal, Some((c, _))) if !in_order(&c) => Causality::SamplesDifferently,
            // Tokens are kept in order, so within a sequence only earlier ones matter.
            (Verdict::Causal, Some(_)) => Causality::BatchDependent,
            (Verdict::Causal, None) => Causality::Causal,
        };
        c.causality(verdict);
        if verdict != Causality::LooksAhead || c.word("allow").is_some() {
            return;
        }
        let d = match bound.filter(|_| declared != Verdict::LooksAhead) {
            Some((capacity, at)) => looks_ahead_by_capacity(capacity, at),
            None => self.looks_ahead(c),
        };
        c.report(d.help("to study it anyway, add `allow: lookahead` to the `moe`"));
    }

    fn looks_ahead(&self, c: &LayerCheck<'_, '_>) -> Diagnostic {
        let batch = self.traits().compares_when_sampling == Compares::Batch;
        let whole = if batch { "batch" } else { "sequence" };
        let causal = c.registry().routers().filter(|r| r.default_traits().verdict() != Verdict::LooksAhead);
        let causal = listed(causal.map(|r| r.name()));
        let name = self.strategy.name();
        let d = Diagnostic::new(Code::NotCausal, format!("the router `{name}` lets a token see later ones"));
        let what = format!("compares each token with the whole {whole}");
        match self.strategy.comparison(&self.arguments) {
            Some(at) => d.primary(at.span, what).secondary(self.span, "used here").note(WHY_CAUSAL).help(at.help),
            None => d.primary(self.span, what).note(WHY_CAUSAL).help(format!("causal routers: {causal}")),
        }
    }

    /// In an expert the rows form no sequence, so a router there must look at each on its own.
    pub(super) fn in_expert(&self, c: &mut LayerCheck<'_, '_>) {
        let traits = self.traits();
        let compares = traits.compares != Compares::None || traits.compares_when_sampling != Compares::None;
        let (why, note) = if !c.in_expert() {
            return;
        } else if compares {
            ("compares tokens with each other", "an expert is given the tokens routed to it, in no sequence")
        } else if traits.random == Randomness::Always {
            ("is random in evaluation too", "what a row draws depends on which other tokens are routed with it")
        } else if !traits.nests {
            (
                "has parameters or state, or goes along sequences, which an expert cannot hold",
                "each outer expert needs an inner router of its own, for tokens that form no sequence",
            )
        } else {
            return;
        };
        let name = self.strategy.name();
        let d = Diagnostic::new(Code::ExpertNotTokenwise, format!("the router `{name}` cannot stand in an expert"))
            .primary(self.span, why)
            .note(note)
            .help("use a router that looks at each token on its own, such as `softmax_top_k`");
        c.report(d);
    }

    /// Reports what a router that mixes tokens has no use for; `others` says whether there are experts without computation.
    pub(super) fn without_use(&self, c: &mut LayerCheck<'_, '_>, others: bool) {
        if self.traits().selects {
            return;
        }
        if others {
            let name = self.strategy.name();
            let d = Diagnostic::new(
                Code::ArgumentsConflict,
                format!("`{name}` has no use for `zero`, `copy` or `constant`"),
            )
            .primary(self.span, "has every expert work for every token")
            .secondary(c.argument_span("experts"), "experts without computation")
            .help("use a router that chooses experts, such as `softmax_top_k`");
            c.report(d);
        }
        for argument in ["capacity", "balance", "unchosen"] {
            let Some(expr) = c.form(argument) else { continue };
            let name = self.strategy.name();
            let d = Diagnostic::new(Code::ArgumentsConflict, format!("`{name}` has no use for `{argument}`"))
                .primary(expr.span, "has no effect")
                .note("every expert works for all tokens, so the load is even and nothing is dropped")
                .help(format!("remove `{argument}`"));
            c.report(d);
        }
    }

    /// Reports a `moe` in the experts of a router that mixes: an inner router needs rows that are tokens each.
    pub(super) fn mixes_rows(&self, c: &mut LayerCheck<'_, '_>, nested: Option<&Moe>) {
        let Some(nested) = nested.filter(|_| !self.traits().selects) else { return };
        let name = self.strategy.name();
        let message = format!("the experts of `{name}` cannot hold a `moe`");
        let d = Diagnostic::new(Code::ArgumentsConflict, message)
            .primary(nested.span, "its router needs rows of one token and one expert each")
            .secondary(self.span, "mixes tokens or experts")
            .help("use a router that chooses experts around it, such as `softmax_top_k`");
        c.report(d);
    }

    /// Warns of a router that learns nothing from the task, though balance losses may move it. The losses are those of
    /// `balance`, if it is there, without faulty ones.
    pub(super) fn learns(&self, c: &mut LayerCheck<'_, '_>, losses: Option<&[WeightedLoss]>) {
        let traits = self.traits();
        let helps = |loss: &WeightedLoss| loss.loss.needs.iter().any(|need| traits.provides.contains(need));
        // With faults in `balance`, what was meant is unknown.
        if traits.learns_from_task || losses.is_some_and(<[_]>::is_empty) {
            return;
        }
        let balanced = losses.and_then(|losses| losses.iter().find(|loss| helps(loss)));
        let takes_all = self.strategy.parameters().iter().any(|spec| spec.name == "normalize");
        let d = Diagnostic::new(Code::ZeroTaskGradient, "the router learns nothing from the task");
        // Any number of experts but one shows whether a token goes to a single one.
        let single = self.experts_per_token(2, 2) <= 1.0;
        let end = self.strategy.gradient_end(&self.arguments).filter(|end| !end.is_single);
        let single = single && end.is_none();
        let d = match end {
            _ if single => d.primary(self.span, "with one expert a token the weight is always 1, and its gradient 0"),
            Some(end) => d
                .primary(self.span, "no gradient reaches what it trains through the weights")
                .secondary(end.span, end.why),
            None => d.primary(self.span, "no weight depends on what it trains, except through indices"),
        };
        let d = match balanced {
            Some(loss) => d.note(format!(
                "`{}` alone moves it: towards an even load, whatever the experts make of a token",
                loss.loss.name
            )),
            None => d,
        };
        let has_larger = single && self.strategy.parameters().iter().any(|spec| spec.name == "k");
        let fitting = [(Quantity::Probabilities, "`switch`"), (Quantity::Logits, "`z`")];
        let fitting = fitting.iter().filter(|(needs, _)| traits.provides.contains(needs)).map(|(_, name)| *name);
        let fitting: Vec<&str> = fitting.filter(|_| balanced.is_none()).collect();
        let loss = format!("add a loss of the scores, such as {}", fitting.join(" or "));
        let cures = [
            takes_all.then_some("use `normalize: all`"),
            has_larger.then_some("choose several experts with a larger `k`"),
            (!takes_all && !has_larger).then_some("let the weights depend on the scores"),
            (!fitting.is_empty()).then_some(loss.as_str()),
        ];
        let cures: Vec<&str> = cures.into_iter().flatten().collect();
        c.report(d.help(cures.join(", or ")));
    }
}

const WHY_CAUSAL: &str =
    "a language model predicts a token from those before it; what leaks back is not there when sampling";

fn looks_ahead_by_capacity(capacity: Capacity, at: Span) -> Diagnostic {
    let word = capacity.order.word();
    Diagnostic::new(Code::NotCausal, format!("capacity in the order `{word}` looks at later tokens"))
        .primary(at, "a choice can be dropped because of tokens behind it")
        .note(WHY_CAUSAL)
        .help("use `order: token`, or `evaluation_factor: 0` for no bound in evaluation and sampling")
}

/// What the layer asks.
impl Route {
    /// Number of E experts that work on a token, on average.
    pub fn experts_per_token(&self, experts: usize, time: usize) -> f64 {
        self.strategy.experts_per_token(&self.arguments, experts, time)
    }

    /// What the strategy declares for these arguments.
    pub fn traits(&self) -> Traits {
        self.strategy.traits(&self.arguments)
    }

    /// The route as plain data.
    pub(super) fn resolved(&self) -> ResolvedValue {
        self.arguments.resolved([("router", self.strategy.name().into())])
    }

    /// What the result of a token depends on through the router; `bounded` says whether experts have a capacity in
    /// evaluation.
    pub(super) fn needs(&self, bounded: bool) -> Needs {
        let (traits, name) = (self.traits(), self.strategy.name());
        let compared = match traits.compares_when_sampling {
            Compares::None | Compares::PreviousToken => None,
            Compares::EarlierTokens => Some("earlier ones"),
            Compares::Sequence => Some("the whole sequence"),
            Compares::Batch => Some("the whole batch"),
        };
        let always_random = traits.random == Randomness::Always;
        let reason = if let Some(what) = compared {
            Some(format!("the router `{name}` compares each token with {what}"))
        } else if always_random {
            Some(format!("the router `{name}` draws noise in evaluation too, anew for every token of the window"))
        } else if traits.counts_tokens {
            Some(format!("the router `{name}` makes use of the number of tokens"))
        } else if bounded {
            Some("experts have a capacity in evaluation, which counts the tokens of the window".to_string())
        } else {
            None
        };
        Needs {
            ids: traits.reads.token_ids || traits.compares_when_sampling == Compares::PreviousToken,
            places: traits.reads.positions,
            keys: false,
            window: reason.map(|reason| Obstacle { reason, span: self.span }),
            batch: traits.compares_when_sampling == Compares::Batch || always_random || traits.counts_tokens || bounded,
        }
    }

    /// Lets the strategy build its graph for E experts; `needs_probabilities` says whether the layer looks at its
    /// probabilities, whether there is a loss or not.
    ///
    /// # Errors
    /// When the strategy gives up, or returns less than it declares.
    pub(super) fn lower(
        &self,
        l: &mut Lowering,
        site: Site<'_>,
        x: Value,
        experts: usize,
        needs_probabilities: bool,
    ) -> Result<Routing, LowerError> {
        let nested = match site.rows {
            Rows::Tokens => None,
            Rows::Experts { .. } if site.gathers.is_empty() => {
                return Err(self.refused("cannot stand inside the experts of a router that mixes tokens or experts"));
            }
            Rows::Experts { experts, offsets } => Some(Nested { experts, offsets }),
        };
        let (source, vocab, time) = (l.source(site), l.options.vocab, site.time);
        let losses = l.options.loss || needs_probabilities;
        let (routing, refused) = l.routing(|l| {
            let emitter = &mut l.emitter;
            let mut context =
                RoutingContext { emitter, tokens: x, source, experts, time, vocab, nested, losses, refused: None };
            let routing = self.strategy.lower(&mut context, &self.arguments);
            (routing, context.refused)
        });
        match refused.or_else(|| self.broken_promise(&routing).filter(|_| losses)) {
            Some(message) => Err(self.refused(message)),
            None => Ok(routing),
        }
    }

    /// The error that a message about the strategy is.
    pub(super) fn refused(&self, message: impl Into<String>) -> LowerError {
        let strategy = self.strategy.name().to_string();
        LowerError::Routing { strategy, message: message.into(), span: self.span }
    }

    /// What the strategy declares for balance losses and did not return.
    fn broken_promise(&self, routing: &Routing) -> Option<String> {
        let promised = self.traits().provides;
        if promised.contains(&Quantity::Logits) && routing.logits.is_none() {
            return Some("declares scores and returned none".into());
        }
        let probabilities = routing.probabilities.or(routing.logits);
        (promised.contains(&Quantity::Probabilities) && probabilities.is_none())
            .then(|| "declares probabilities and returned neither them nor scores".into())
    }
}

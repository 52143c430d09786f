//! `capacity(..)`: a bound on the tokens that an expert accepts.

use moec_ir::{Binary, Builder, CapacityPriority, Invariant, Unary, Value};
use moec_syntax::{self as ast, Code, Diagnostic, Span};

use super::Moe;
use super::choice::{Choice, Experts, Taken};
use super::route::named;
use super::zero_computation::all_taken;
use crate::argument::{DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::check::arguments::Owner;
use crate::check::layer::LayerCheck;
use crate::check::values::describe;
use crate::emit::Mode;
use crate::lower::lowering::{Lowering, Site};
use crate::resolved::{ResolvedValue, map};

/// Arguments of `capacity(..)`.
pub(super) const CAPACITY: &[ParameterSpec] = &[
    ParameterSpec::optional(
        "factor",
        ParameterType::Float(Interval::above(0.0)),
        DefaultValue::Float(1.25),
        "multiple of the even share of tokens",
    ),
    ParameterSpec::optional(
        "evaluation_factor",
        ParameterType::Float(Interval::at_least(0.0)),
        DefaultValue::Absent("as factor"),
        "the same in evaluation and sampling; 0 for no bound",
    ),
    ParameterSpec::optional(
        "minimum",
        ParameterType::Int(Interval::at_least(1.0)),
        DefaultValue::Int(4),
        "least number of tokens",
    ),
    ParameterSpec::optional(
        "order",
        ParameterType::Choice(CapacityOrder::WORDS),
        DefaultValue::Word("token"),
        "who comes first: tokens in order, first choices, or choices with large weights",
    ),
    ParameterSpec::optional(
        "overflow",
        ParameterType::Choice(&["drop"]),
        DefaultValue::Word("drop"),
        "what happens to tokens beyond it",
    ),
    ParameterSpec::optional(
        "renormalise",
        ParameterType::Choice(&["before", "after"]),
        DefaultValue::Word("before"),
        "weights are left as the router gave them, or scaled up again after a drop",
    ),
];

/// A bound on the tokens that an expert accepts; what is over it is dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capacity {
    /// Multiple of the even share N*K/E in a training step.
    pub factor: f64,
    /// The same in evaluation and sampling; 0 for no bound.
    pub evaluation_factor: f64,
    /// Least bound.
    pub minimum: usize,
    /// Who comes first.
    pub order: CapacityOrder,
    /// Whether the weights that are left to a token are scaled to the sum of all it had.
    pub renormalise: bool,
}

/// Which choices an expert with a bounded capacity accepts first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapacityOrder {
    /// In the order of the tokens (makeMoE).
    Token,
    /// All first choices before all second ones (Lepikhin et al. 2020, arXiv 2006.16668).
    Choice,
    /// As `Choice`, and tokens with larger weights first (Riquelme et al. 2021, arXiv 2106.05974).
    Probability,
}

impl CapacityOrder {
    const ALL: [CapacityOrder; 3] = [CapacityOrder::Token, CapacityOrder::Choice, CapacityOrder::Probability];

    /// The words of the language, in the order of the variants.
    pub const WORDS: &'static [&'static str] = &[Self::ALL[0].word(), Self::ALL[1].word(), Self::ALL[2].word()];

    /// The word of the language.
    pub const fn word(self) -> &'static str {
        match self {
            CapacityOrder::Token => "token",
            CapacityOrder::Choice => "choice",
            CapacityOrder::Probability => "probability",
        }
    }

    /// The order of a word that has been checked.
    fn named(word: &str) -> Self {
        let found = Self::ALL.into_iter().find(|order| order.word() == word);
        found.invariant("the word of an order is one of those that are declared")
    }

    fn priority(self) -> CapacityPriority {
        match self {
            CapacityOrder::Token => CapacityPriority::Token,
            CapacityOrder::Choice => CapacityPriority::Choice,
            CapacityOrder::Probability => CapacityPriority::Probability,
        }
    }
}

/// Checks what `capacity:` is given; with its place in the file.
pub(super) fn check<'a>(c: &mut LayerCheck<'_, 'a>, expr: &'a ast::Expr) -> Option<(Capacity, Span)> {
    let Some(call) = named(expr).filter(|call| call.name == "capacity") else {
        let d = Diagnostic::new(Code::WrongType, "`capacity` is written `capacity(factor: 1.25)`")
            .primary(expr.span, format!("this is {}", describe(expr)));
        c.report(d);
        return None;
    };
    let owner = Owner { name: "capacity", kind: "setting", span: call.name_span };
    let resolved = c.arguments(owner, CAPACITY, call.arguments);
    if resolved.failed {
        return None;
    }
    let arguments = &resolved.arguments;
    let factor = arguments.float("factor");
    let evaluation_factor = arguments.get("evaluation_factor").map(|_| arguments.float("evaluation_factor"));
    let capacity = Capacity {
        factor,
        evaluation_factor: evaluation_factor.unwrap_or(factor),
        minimum: arguments.size("minimum"),
        order: CapacityOrder::named(arguments.word("order")),
        renormalise: arguments.word("renormalise") == "after",
    };
    Some((capacity, expr.span))
}

impl Capacity {
    /// Tokens that an expert accepts, P: `max(minimum, int(N*K/E * factor))` and never 0; `None` for no bound. makeMoE
    /// has no minimum, which switches the layer off for short inputs.
    pub fn tokens(&self, mode: Mode, tokens: usize, k: usize, experts: usize) -> Option<usize> {
        let factor = match mode {
            Mode::Train => self.factor,
            Mode::Evaluate => self.evaluation_factor,
        };
        let share = (tokens as f64 * k as f64) / experts.max(1) as f64;
        // Saturates, as a float cast does.
        (factor > 0.0).then(|| ((share * factor) as usize).max(self.minimum).max(1))
    }

    /// The choices that a bound of `tokens` leaves.
    fn kept(&self, b: &mut Builder, choice: Taken, experts: Experts, tokens: usize) -> Taken {
        let Taken { all, computed } = choice;
        let priority = self.order.priority();
        let chosen = b.limit_capacity(computed.chosen, computed.weights, experts.computed, tokens, priority);
        let bound = computed.bound.min(experts.computed.saturating_mul(tokens));
        let all = if all == computed.chosen { chosen } else { all_taken(b, all, chosen, experts) };
        let weights = if self.renormalise { renormalised(b, all, computed.weights) } else { computed.weights };
        Taken { all, computed: Choice { chosen, weights, bound, varies: true } }
    }

    /// The capacity as plain data.
    pub(super) fn resolved(&self) -> ResolvedValue {
        ResolvedValue::Map(map([
            ("factor", self.factor.into()),
            ("evaluation_factor", self.evaluation_factor.into()),
            ("minimum", self.minimum.into()),
            ("order", self.order.word().into()),
            ("renormalise", if self.renormalise { "after" } else { "before" }.into()),
        ]))
    }
}

impl Moe {
    /// The choices that the capacity of the layer leaves, and the bound on the tokens of an expert. Experts without
    /// computation have none, but have a part in the even share.
    pub(super) fn within_capacity(
        &self,
        l: &mut Lowering,
        site: Site<'_>,
        choice: Taken,
        experts: Experts,
    ) -> (Taken, Option<usize>) {
        let [tokens, k] = l.extents(choice.all);
        // Dense gates have a column per expert, of which a token uses few.
        let average = self.route.experts_per_token(self.experts, site.time);
        let per_token = if average < k as f64 { average.ceil().max(1.0) as usize } else { k };
        let mode = l.options.mode;
        let bound = self
            .capacity
            .and_then(|capacity| Some((capacity, capacity.tokens(mode, tokens, per_token, experts.count)?)));
        match bound {
            Some((capacity, bound)) => (capacity.kept(l.b(), choice, experts, bound), Some(bound)),
            None => (choice, None),
        }
    }
}

/// The weights that are left, scaled to the sum of all that the token had.
fn renormalised(b: &mut Builder, kept: Value, weights: Value) -> Value {
    let (shape, k) = (b.shape(weights), b.columns(weights));
    let index = b.to_float(kept);
    let zero = b.fill(0.0, shape);
    let left = b.binary(Binary::LessEqual, zero, index);
    let rest = b.mul(weights, left);
    // Sums of absolute values: gates that may be negative could cancel to nothing.
    let mut size = |values: Value| {
        let values = b.unary(Unary::Abs, values);
        b.sum(values, &[1])
    };
    let (before, after) = (size(weights), size(rest));
    // A token that has lost everything keeps 0.
    let tiny = b.fill(1e-20, []);
    let after = b.binary(Binary::Max, after, tiny);
    let factor = b.div(before, after);
    let factor = b.broadcast_last(factor, k);
    b.mul(rest, factor)
}

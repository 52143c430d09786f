//! `capacity(..)`: a bound on the tokens that an expert accepts.

use moec_ir::{Binary, Builder, CapacityPriority, Invariant, Op, Unary, Value};
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
use crate::lower::lowering::{LowerError, Lowering, Site};
use crate::resolved::{ResolvedValue, map};
use crate::router::Routing;

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
        "who comes first: tokens in order, first choices, choices of tokens that are sure, choices with large weights, or \
         anyone",
    ),
    ParameterSpec::optional(
        "count",
        ParameterType::Choice(&["choices", "tokens"]),
        DefaultValue::Word("choices"),
        "the even share is one of all choices, K for each token, or of the tokens (Switch, GShard)",
    ),
    ParameterSpec::optional(
        "rounding",
        ParameterType::Choice(&["down", "up"]),
        DefaultValue::Word("down"),
        "how the share becomes a whole number (up: Megatron-Core, DeepSpeed)",
    ),
    ParameterSpec::optional(
        "sequences",
        ParameterType::Int(Interval::at_least(1.0)),
        DefaultValue::Absent("all of the batch"),
        "sequences that share the places of an expert; it has as many for the others",
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
    /// Whether the even share is one of all choices, rather than of the tokens.
    pub counts_choices: bool,
    /// Whether the share is rounded up.
    pub rounds_up: bool,
    /// Sequences that share the places of an expert; those of the whole batch if `None`.
    pub sequences: Option<usize>,
}

impl Default for Capacity {
    /// What `capacity()` says.
    fn default() -> Self {
        Capacity {
            factor: 1.25,
            evaluation_factor: 1.25,
            minimum: 4,
            order: CapacityOrder::Token,
            renormalise: false,
            counts_choices: true,
            rounds_up: false,
            sequences: None,
        }
    }
}

/// Which choices an expert with a bounded capacity accepts first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapacityOrder {
    /// In the order of the tokens (makeMoE).
    Token,
    /// All first choices before all second ones (Lepikhin et al. 2020, arXiv 2006.16668).
    Choice,
    /// As `Choice`, and tokens with a larger largest probability first (Riquelme et al. 2021, arXiv 2106.05974).
    Probability,
    /// Larger weights first, whoever has them (Megatron-Core's `probs`).
    Gate,
    /// In an order that is drawn anew for every step (DeepSpeed's random token selection).
    Random,
}

impl CapacityOrder {
    const ALL: [CapacityOrder; 5] = [
        CapacityOrder::Token,
        CapacityOrder::Choice,
        CapacityOrder::Probability,
        CapacityOrder::Gate,
        CapacityOrder::Random,
    ];

    /// The words of the language, in the order of the variants.
    pub const WORDS: &'static [&'static str] =
        &[Self::ALL[0].word(), Self::ALL[1].word(), Self::ALL[2].word(), Self::ALL[3].word(), Self::ALL[4].word()];

    /// The word of the language.
    pub const fn word(self) -> &'static str {
        match self {
            CapacityOrder::Token => "token",
            CapacityOrder::Choice => "choice",
            CapacityOrder::Probability => "probability",
            CapacityOrder::Gate => "gate",
            CapacityOrder::Random => "random",
        }
    }

    /// The order of a word that has been checked.
    fn named(word: &str) -> Self {
        let found = Self::ALL.into_iter().find(|order| order.word() == word);
        found.invariant("the word of an order is one of those that are declared")
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
        counts_choices: arguments.word("count") == "choices",
        rounds_up: arguments.word("rounding") == "up",
        sequences: arguments.get("sequences").map(|_| arguments.size("sequences")),
    };
    if capacity.sequences.is_some() && c.in_expert() {
        let at = arguments.span("sequences").unwrap_or(expr.span);
        let d = Diagnostic::new(Code::ExpertNotTokenwise, "`sequences` cannot be counted in an expert")
            .primary(at, "the tokens here are those that were sent to the expert, in no sequence");
        c.report(d.help("leave it out, so that all of them share the places"));
    }
    Some((capacity, expr.span))
}

impl Capacity {
    /// Tokens that an expert accepts, P: `max(minimum, int(N*K/E * factor))` and never 0, or without K, or rounded up;
    /// `None` for no bound. makeMoE has no minimum, which switches the layer off for short inputs.
    pub fn tokens(&self, mode: Mode, tokens: usize, k: usize, experts: usize) -> Option<usize> {
        let factor = match mode {
            Mode::Train => self.factor,
            Mode::Evaluate => self.evaluation_factor,
        };
        let counted = if self.counts_choices { tokens as f64 * k as f64 } else { tokens as f64 };
        let places = counted / experts.max(1) as f64 * factor;
        let places = if self.rounds_up { places.ceil() } else { places };
        // Saturates, as a float cast does.
        (factor > 0.0).then_some((places as usize).max(self.minimum).max(1))
    }

    /// The choices that a bound leaves.
    fn kept(&self, b: &mut Builder, choice: Taken, priority: Value, experts: Experts, bound: Bound) -> Taken {
        let Taken { all, computed } = choice;
        let chosen = limited(b, computed.chosen, priority, experts.computed, bound);
        let bound = computed.bound.min(experts.computed.saturating_mul(bound.places).saturating_mul(bound.parts));
        let all = if all == computed.chosen { chosen } else { all_taken(b, all, chosen, experts) };
        let weights = if self.renormalise { renormalised(b, all, computed.weights) } else { computed.weights };
        Taken { all, computed: Choice { chosen, weights, bound, varies: true } }
    }

    /// The capacity as plain data.
    pub(super) fn resolved(&self) -> ResolvedValue {
        let mut all = map([
            ("factor", self.factor.into()),
            ("evaluation_factor", self.evaluation_factor.into()),
            ("minimum", self.minimum.into()),
            ("order", self.order.word().into()),
            ("renormalise", if self.renormalise { "after" } else { "before" }.into()),
        ]);
        all.extend((!self.counts_choices).then(|| ("count".into(), "tokens".into())));
        all.extend(self.rounds_up.then(|| ("rounding".into(), "up".into())));
        all.extend(self.sequences.map(|sequences| ("sequences".into(), sequences.into())));
        ResolvedValue::Map(all)
    }
}

impl Moe {
    /// The choices that the capacity of the layer leaves, and the bound on the tokens of an expert. Experts without
    /// computation have none, but have a part in the even share.
    pub(super) fn within_capacity(
        &self,
        l: &mut Lowering,
        site: Site<'_>,
        routing: &Routing,
        choice: Taken,
        experts: Experts,
    ) -> Result<(Taken, Option<usize>), LowerError> {
        let [tokens, k] = l.extents(choice.all);
        // Dense gates have a column per expert, of which a token uses few.
        let average = self.route.experts_per_token(self.experts, site.time);
        let per_token = if average < k as f64 { average.ceil().max(1.0) as usize } else { k };
        let Some(capacity) = self.capacity else { return Ok((choice, None)) };
        let part = capacity.sequences.map_or(tokens, |sequences| sequences.saturating_mul(site.time).min(tokens));
        let Some(places) = capacity.tokens(l.options.mode, part, per_token, experts.count) else {
            return Ok((choice, None));
        };
        let order = match (capacity.order, l.options.mode) {
            // Evaluation draws nothing.
            (CapacityOrder::Random, Mode::Evaluate) => CapacityOrder::Token,
            (order, _) => order,
        };
        let bound = Bound { places, order, part, parts: tokens.div_ceil(part.max(1)).max(1) };
        if experts.computed.saturating_mul(bound.parts) > MOST_NUMBERED {
            let message = format!(
                "{} experts for each of {} parts of a batch cannot be told apart, at most {MOST_NUMBERED} in all",
                experts.computed, bound.parts
            );
            return Err(LowerError::Size(message));
        }
        let priority = priorities(l, order, routing, choice);
        Ok((capacity.kept(l.b(), choice, priority, experts, bound), Some(places)))
    }
}

/// Experts of the parts of a batch are numbered in f32, which is exact up to here.
const MOST_NUMBERED: usize = 1 << 24;

/// What an expert accepts of a batch.
#[derive(Clone, Copy)]
struct Bound {
    /// Most tokens of each part of the batch.
    places: usize,
    order: CapacityOrder,
    /// Tokens of a part; the last one may have fewer.
    part: usize,
    parts: usize,
}

/// What the choices `[N, K]` are ordered by, the largest first, where their order is not that of the tokens.
fn priorities(l: &mut Lowering, order: CapacityOrder, routing: &Routing, choice: Taken) -> Value {
    let weights = choice.computed.weights;
    match order {
        CapacityOrder::Token | CapacityOrder::Choice | CapacityOrder::Gate => weights,
        // Over all experts: what a token's weights are of their own sum says nothing about another token, and with one
        // choice is always 1.
        CapacityOrder::Probability => {
            let b = l.b();
            let softmax = |b: &mut Builder| routing.logits.map(|logits| b.softmax(logits));
            let probabilities = routing.probabilities.or_else(|| softmax(b));
            match probabilities {
                Some(all) => {
                    let shape = b.shape(weights);
                    let largest = b.kth_largest(all, 1);
                    b.broadcast(largest, shape)
                }
                None => weights,
            }
        }
        CapacityOrder::Random => {
            let shape = l.b().shape(weights);
            let (rng, key) = (l.emitter.rng(), l.b().fresh_key());
            l.b().op(Op::RandomUniform { key, shape }, &[rng])
        }
    }
}

/// The choices `[N, K]` of so many experts that a bound leaves; `priority` decides where the order is not that of the
/// tokens or of their choices.
fn limited(b: &mut Builder, chosen: Value, priority: Value, experts: usize, bound: Bound) -> Value {
    let (tokens, columns) = (b.extent(chosen, 0), b.columns(chosen));
    // The experts of another part of the tokens are other ones.
    let parted = if bound.parts > 1 {
        let part = parts(b, tokens, bound.part);
        let first = b.scale(part, experts as f64);
        let first = b.broadcast_last(first, columns);
        let index = b.to_float(chosen);
        let moved = b.add(index, first);
        let moved = where_chosen(b, chosen, moved);
        b.to_index(moved, experts * bound.parts)
    } else {
        chosen
    };
    let all = experts * bound.parts;
    let limit = |b: &mut Builder, chosen, by| b.limit_capacity(chosen, priority, all, bound.places, by);
    let kept = match bound.order {
        CapacityOrder::Token => limit(b, parted, CapacityPriority::Token),
        CapacityOrder::Choice => limit(b, parted, CapacityPriority::Choice),
        CapacityOrder::Probability => limit(b, parted, CapacityPriority::Probability),
        // Each choice by itself, as though it were the only one of a token.
        CapacityOrder::Gate | CapacityOrder::Random => {
            let slots = tokens * columns;
            let (one, own) = (b.reshape(parted, [slots, 1]), b.reshape(priority, [slots, 1]));
            let kept = b.limit_capacity(one, own, all, bound.places, CapacityPriority::Probability);
            b.reshape(kept, [tokens, columns])
        }
    };
    if bound.parts == 1 {
        return kept;
    }
    let index = b.to_float(chosen);
    let index = where_chosen(b, kept, index);
    b.to_index(index, experts)
}

/// Which part of the tokens each of them is in, `[N]`, where each part has so many.
fn parts(b: &mut Builder, tokens: usize, size: usize) -> Value {
    let token = b.ramp(tokens, 1);
    let token = b.to_float(token);
    // Half a token more, so that no quotient is rounded below a whole number.
    let token = b.add_scalar(token, 0.5);
    let part = b.scale(token, 1.0 / size as f64);
    let part = b.to_index(part, tokens.max(1));
    b.to_float(part)
}

/// The numbers where there is a choice, else -1.
fn where_chosen(b: &mut Builder, chosen: Value, numbers: Value) -> Value {
    let shape = b.shape(chosen);
    let index = b.to_float(chosen);
    let (zero, none) = (b.fill(0.0, shape.clone()), b.fill(-1.0, shape));
    let is_chosen = b.binary(Binary::LessEqual, zero, index);
    b.select(is_chosen, numbers, none)
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

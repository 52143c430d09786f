//! The balance losses: a table of what each needs from the router and how it is built.

use std::fmt;

use moec_ir::{Binary, Builder, StateRole, TensorType, Unary, Value};

use crate::argument::{Arguments, DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::router::{Assignment, NoisyScores, Quantity, Routing};

/// An auxiliary loss that a `moe` layer adds to the task's loss with a weight.
///
/// A plain value, so that another crate can register its own with [`crate::Registry::loss`].
#[derive(Clone, Copy)]
pub struct BalanceLoss {
    /// Name in the file.
    pub name: &'static str,
    /// One line on what it does.
    pub summary: &'static str,
    /// What it computes, with the shapes.
    pub equations: &'static str,
    /// Papers it follows.
    pub references: &'static [&'static str],
    /// What the router must provide for it; the assignment is always there.
    pub needs: &'static [Quantity],
    /// The weight that it has unless the file gives one.
    pub weight: f64,
    /// Its arguments beside `weight`.
    pub parameters: &'static [ParameterSpec],
    /// Builds the scalar, without its weight.
    pub lower: fn(&mut LossContext<'_>, &Arguments) -> Value,
}

impl fmt::Debug for BalanceLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalanceLoss").field("name", &self.name).finish_non_exhaustive()
    }
}

impl BalanceLoss {
    /// All arguments of the loss: its weight, and its own.
    pub fn all_parameters(&self) -> Vec<ParameterSpec> {
        let weight = ParameterSpec::optional(
            "weight",
            ParameterType::Float(Interval::at_least(0.0)),
            DefaultValue::Float(self.weight),
            "factor of the loss in the training objective",
        );
        [weight].into_iter().chain(self.parameters.iter().cloned()).collect()
    }
}

/// How what an inner router says about a row is seen from the layer that its `moe` is inside of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rescale {
    /// The experts of both levels that the inner experts of each row are, i32 `[R, E2]`; -1 for a row without a token.
    pub(crate) columns: Value,
    /// Weight of the row in the outer mixture, `[R, 1]`.
    pub(crate) weight: Value,
}

/// What the rows of a layer are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowKind {
    /// In a `moe` inside an expert, how its experts are counted.
    pub(crate) rescale: Option<Rescale>,
    /// 1 for a row with a token that is worked on, else 0, `[N, 1]`; `None` if all are.
    pub(crate) valid: Option<Value>,
    /// Length of the sequences that the rows form, if they form any.
    pub(crate) time: Option<usize>,
    /// Experts per token, on average, that the router declares.
    pub(crate) average: f64,
    /// Number of experts that compute, which are the first ones.
    pub(crate) computed: usize,
    /// Whether they are those of a training step.
    pub(crate) training: bool,
}

/// What a balance loss is built from. Quantities that several losses need are built once.
///
/// In a `moe` inside an expert, E counts the experts of both levels, the rows are those sent to the outer experts, and
/// the gates are the products of both levels (Shazeer et al. 2017, appendix B).
pub struct LossContext<'a> {
    builder: &'a mut Builder,
    routing: Routing,
    chosen: Value,
    weights: Value,
    experts: usize,
    rows: RowKind,
    gates: Option<Value>,
    probabilities: Option<Value>,
    pooled: Option<Factors>,
}

/// What a loss of several layers at once has of one of them: it is `scale` times the products of the layers' mean `shares [E]`
/// with their mean `probabilities [E]`, summed over the experts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factors {
    pub(crate) shares: Value,
    pub(crate) probabilities: Value,
    pub(crate) scale: f64,
}

impl<'a> LossContext<'a> {
    pub(crate) fn new(
        builder: &'a mut Builder,
        routing: Routing,
        (chosen, weights): (Value, Value),
        experts: usize,
        rows: RowKind,
    ) -> Self {
        LossContext { builder, routing, chosen, weights, experts, rows, gates: None, probabilities: None, pooled: None }
    }

    /// The graph builder.
    pub fn builder(&mut self) -> &mut Builder {
        self.builder
    }

    /// Number of experts, E.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Number of experts that compute, which are the first ones: all of them, unless some are `zero`, `copy` or `constant`.
    pub fn computed_experts(&self) -> usize {
        self.rows.computed
    }

    /// The experts of each token, i32 `[N, K]`, -1 for none, before experts that are over capacity drop tokens.
    pub fn chosen(&self) -> Value {
        self.chosen
    }

    /// What the strategy returned.
    pub fn routing(&self) -> &Routing {
        &self.routing
    }

    /// Length of the sequences that the tokens form; `None` in a `moe` inside an expert, whose rows form none.
    pub fn time(&self) -> Option<usize> {
        self.rows.time
    }

    /// Number of tokens, N.
    pub fn tokens(&self) -> usize {
        self.builder.extent(self.chosen, 0)
    }

    /// Number of experts that a token chooses, K; where gates are dense, what the router declares, rounded up.
    pub fn experts_per_token(&self) -> usize {
        match self.routing.assignment {
            Assignment::TokenChoice { .. } => self.columns(),
            _ => (self.rows.average.ceil() as usize).clamp(1, self.columns().max(1)),
        }
    }

    /// Number of columns of the choice.
    fn columns(&self) -> usize {
        self.builder.columns(self.chosen)
    }

    /// Gates as a matrix, `[N, E]`: the weight of each chosen expert, 0 elsewhere.
    pub fn gates(&mut self) -> Value {
        if let Some(gates) = self.gates {
            return gates;
        }
        let mut weights = self.weights;
        if let Some(rescale) = self.rows.rescale {
            let shape = self.builder.shape(weights);
            let outer = self.builder.broadcast(rescale.weight, shape);
            weights = self.builder.mul(weights, outer);
        }
        let gates = self.builder.scatter_last(weights, self.chosen, self.experts);
        self.gates = Some(gates);
        gates
    }

    /// Number of tokens that chose each expert, `[E]`; a constant to the gradient.
    pub fn counts(&mut self) -> Value {
        self.builder.count(self.chosen, self.experts)
    }

    /// Whether this is a training step.
    fn in_training(&self) -> bool {
        self.rows.training
    }

    /// Counts `[E]` with those of the batches of the step before this one, where a step has several (Qiu et al. 2025, arXiv
    /// 2501.11873, section 3): from batch to batch they become those of the whole step.
    pub fn counted_over_step(&mut self, counts: Value) -> Value {
        let experts = self.experts;
        let b = &mut *self.builder;
        let state = format!("sum.{}", b.path("choices"));
        let before = b.state_for(StateRole::Sum, &state, TensorType::f32([experts]));
        let counts = b.add(before, counts);
        b.update(state, counts);
        counts
    }

    /// What the loss just built has given for one of all layers at once, in the place of one of its own.
    pub(crate) fn take_pooled(&mut self) -> Option<Factors> {
        self.pooled.take()
    }

    /// Share of all choices that each expert has, `[E]`; a constant to the gradient. Sums to 1, if there is any choice.
    pub fn shares(&mut self) -> Value {
        let counts = self.counts();
        self.shares_of(counts)
    }

    /// `counts [E]` as shares. How many choices there are is not known beforehand: a second expert may be left out.
    fn shares_of(&mut self, counts: Value) -> Value {
        let b = &mut *self.builder;
        let total = b.sum_all(counts);
        let one = b.fill(1.0, []);
        let total = b.binary(Binary::Max, total, one);
        b.div(counts, total)
    }

    /// A quantity of each of the router's own experts as one of all experts of the layer, `[N, E]`.
    pub fn per_expert(&mut self, quantity: Value) -> Value {
        match self.rows.rescale {
            Some(rescale) => self.builder.scatter_last(quantity, rescale.columns, self.experts),
            None => quantity,
        }
    }

    /// Mean over the tokens of a quantity `[N, M]`, which gives `[M]`. Rows without a token do not count.
    pub fn mean_over_tokens(&mut self, quantity: Value) -> Value {
        let Some(valid) = self.rows.valid else { return self.builder.mean(quantity, &[0]) };
        let b = &mut *self.builder;
        let shape = b.shape(quantity);
        let each = b.broadcast(valid, shape);
        let quantity = b.mul(quantity, each);
        let sum = b.sum(quantity, &[0]);
        let count = b.sum_all(valid);
        let one = b.fill(1.0, []);
        let count = b.binary(Binary::Max, count, one);
        b.div(sum, count)
    }

    /// Scores of the router's own experts without noise, `[N, E]`; the gates for a router without scores.
    pub fn logits(&mut self) -> Value {
        match self.routing.logits {
            Some(logits) => logits,
            None => self.gates(),
        }
    }

    /// Probabilities over all experts, `[N, E]`: the router's, divided by their sum (sigmoids do not sum to 1), or else the
    /// softmax of its scores.
    pub fn probabilities(&mut self) -> Value {
        if let Some(probabilities) = self.probabilities {
            return probabilities;
        }
        let own = match self.routing.probabilities {
            Some(probabilities) => {
                let b = &mut *self.builder;
                let sum = b.sum(probabilities, &[1]);
                // Sigmoids may all be 0.
                let tiny = b.fill(1e-20, []);
                let sum = b.binary(Binary::Max, sum, tiny);
                let columns = b.columns(probabilities);
                let sum = b.broadcast_last(sum, columns);
                b.div(probabilities, sum)
            }
            None => {
                let logits = self.logits();
                self.builder.softmax(logits)
            }
        };
        let probabilities = self.per_expert(own);
        self.probabilities = Some(probabilities);
        probabilities
    }

    /// Squared coefficient of variation of `v [E]`: population variance over squared mean, as in the authors' code.
    pub fn cv_squared(&mut self, v: Value) -> Value {
        let b = &mut *self.builder;
        let mean = b.mean_all(v);
        let deviation = b.sub(v, mean);
        let squares = b.mul(deviation, deviation);
        let variance = b.mean_all(squares);
        let square = b.mul(mean, mean);
        // Keeps the quotient finite when no token has any weight.
        let square = b.add_scalar(square, 1e-10);
        b.div(variance, square)
    }
}

const CHOICES: ParameterSpec = ParameterSpec::optional(
    "choices",
    ParameterType::Choice(&["all", "first"]),
    DefaultValue::Word("all"),
    "count all choices of a token, or only its first one (GShard)",
);

const OVER: ParameterSpec = ParameterSpec::optional(
    "over",
    ParameterType::Choice(&["layer", "layers"]),
    DefaultValue::Word("layer"),
    "balance each layer, or the mean of all layers that say so (transformers), with the weight once",
);

const WITHIN: ParameterSpec = ParameterSpec::optional(
    "within",
    ParameterType::Choice(&["batch", "step"]),
    DefaultValue::Word("batch"),
    "count choices in each batch, or in all batches of the step so far, where it has several (`accumulate`)",
);

const COUNTED: ParameterSpec = ParameterSpec::optional(
    "choices",
    ParameterType::Choice(&["scores", "routed"]),
    DefaultValue::Word("scores"),
    "count the experts with the largest probabilities, or those that a token goes to, which a balance bias moves",
);

const TAU: ParameterSpec = ParameterSpec::optional(
    "tau",
    ParameterType::Float(Interval::above(0.0)),
    DefaultValue::Absent("1"),
    "what an expert without computation counts (MoE++): below 1, tokens go to them more often",
);

/// The losses that are always there.
pub(crate) const LOSSES: [BalanceLoss; 5] = [
    BalanceLoss {
        name: "importance",
        summary: "squared coefficient of variation of the experts' summed gate weights",
        equations: "\
g_n the weights of token n over all E experts (0 where it does not go), N tokens
importance_e = sum_n g_ne                             [E]
loss = CV(importance)^2 = variance / (mean^2)         over the experts; 0 where all weigh the same",
        references: &["Shazeer et al. 2017, arXiv 1701.06538, equation 7"],
        needs: &[],
        weight: 1e-2,
        parameters: &[],
        lower: importance,
    },
    BalanceLoss {
        name: "load",
        summary: "squared coefficient of variation of a differentiable estimate of the experts' token counts",
        equations: "\
c the scores [N, E], s their noisy form c + std * z, t_ne the k-th largest noisy score of token n among the others than e
P_ne = Phi((c_ne - t_ne) / std_ne)                    the chance that e is among the k largest if only its noise is drawn anew
load_e = sum_n P_ne                                   [E]
loss = CV(load)^2                                     over the experts; 0 where all expect the same number of tokens",
        references: &["Shazeer et al. 2017, arXiv 1701.06538, equations 8 to 11"],
        needs: &[Quantity::NoisyScores],
        weight: 1e-2,
        parameters: &[],
        lower: load,
    },
    BalanceLoss {
        name: "switch",
        summary: "number of experts times the sum of share of tokens times mean probability; 1 is perfect balance",
        equations: "\
f_e = choices of e / all choices                      counted before a capacity; constant to the gradient
P_e = mean over tokens of p_ne                        p the router's probabilities [N, E]
loss = E * sum_e f_e P_e                              1 at perfect balance, for every k; E where one expert has everything
tau: t, with F of E experts that compute              h_e = 1 for those, t for the others
loss = (F + (E - F) / t) * sum_e h_e f_e P_e          1 where each of the others has 1/t of the tokens of one that computes
over: layers         E * sum_e mean_l f_le mean_l P_le   over the layers l, so that they may make up for each other
within: step         f of the batches of the step up to this one together (global-batch balance); P of this one
In transformers, and in flaxformer for k > 1, f_e sum to k: their losses are k times as large, for the same weight.",
        references: &[
            "Fedus et al. 2021, arXiv 2101.03961, equations 4 to 6",
            "Lepikhin et al. 2020, arXiv 2006.16668, algorithm 1 (choices: first)",
            "Jin et al. 2024, MoE++, arXiv 2410.07348, the heterogeneous load balance loss (tau)",
            "Qiu et al. 2025, Demons in the Detail: On Implementing Load Balancing Loss, arXiv 2501.11873 (within)",
        ],
        needs: &[Quantity::Probabilities],
        weight: 1e-2,
        parameters: &[CHOICES, TAU, OVER, WITHIN],
        lower: switch,
    },
    BalanceLoss {
        name: "z",
        summary: "mean squared log-sum-exp of the scores, which keeps them small",
        equations: "\
l the scores [N, E]
loss = mean over tokens of (ln sum_e exp(l_ne))^2     grows where scores do",
        references: &["Zoph et al. 2022, ST-MoE, arXiv 2202.08906, equation 5"],
        needs: &[Quantity::Logits],
        weight: 1e-3,
        parameters: &[],
        lower: z,
    },
    BalanceLoss {
        name: "sequence",
        summary: "the switch loss within each sequence, with probabilities that sum to 1, averaged over the sequences",
        equations: "\
Within each sequence of T tokens: f_e = E / (K T) * choices of e, constant to the gradient
choices: scores     e is among the K largest p of a token: a balance bias does not count (DeepSeek-V3, Megatron-Core)
         routed     the token goes to e
P_e = mean over its tokens of p_ne / sum_e p_ne
loss = mean over sequences of sum_e f_e P_e           1 at perfect balance",
        references: &["DeepSeek-AI 2024, DeepSeek-V3, arXiv 2412.19437, equations 17 to 20"],
        needs: &[Quantity::Probabilities],
        weight: 1e-4,
        parameters: &[COUNTED],
        lower: sequence,
    },
];

/// `CV(sum_n gates[n, :])^2`
fn importance(context: &mut LossContext<'_>, _: &Arguments) -> Value {
    let gates = context.gates();
    let importance = context.builder().sum(gates, &[0]);
    context.cv_squared(importance)
}

/// `CV(sum_n P(n, :))^2`, where `P(n, e)` is the probability that expert `e` is among the k largest when only its own
/// noise is drawn again: `cdf((c - threshold) / std)`. The threshold is the k-th largest of the other noisy scores:
/// the (k+1)-th of all for an expert above it, else the k-th. As in the authors' code, the gradient flows through
/// threshold and deviation.
///
/// Without noise, or with all experts chosen, `P` is 0 or 1: the load is the count of tokens and has no gradient.
fn load(context: &mut LossContext<'_>, _: &Arguments) -> Value {
    let k = context.experts_per_token();
    let own = |context: &LossContext<'_>, v: Value| context.builder.columns(v);
    let load = match (context.routing().noisy, context.routing().logits) {
        (Some(NoisyScores { scores, std }), Some(clean)) if k < own(context, scores) => {
            let b = context.builder();
            let shape = b.shape(scores);
            let (above, below) = (b.kth_largest(scores, k + 1), b.kth_largest(scores, k));
            let (above, below) = (b.broadcast(above, shape.clone()), b.broadcast(below, shape));
            let is_in = b.binary(Binary::Less, above, scores);
            let threshold = b.select(is_in, above, below);
            let margin = b.sub(clean, threshold);
            // A deviation that has vanished would make the quotient infinite and its gradient not a number.
            let least = b.fill(1e-6, []);
            let std = b.binary(Binary::Max, std, least);
            let quotient = b.div(margin, std);
            let probability = b.unary(Unary::NormalCdf, quotient);
            let probability = context.per_expert(probability);
            context.builder().sum(probability, &[0])
        }
        _ => context.counts(),
    };
    context.cv_squared(load)
}

/// `E * sum_e f_e * P_e`: `f` the share of choices, counted before capacity and constant to the gradient, `P` the mean
/// probability. As shares sum to 1, the value at perfect balance is 1 for every k. With `tau`, experts without computation
/// count that much, and the sum is scaled so that its least value is 1 again.
fn switch(context: &mut LossContext<'_>, arguments: &Arguments) -> Value {
    let experts = context.experts();
    let mut counts = if arguments.word("choices") == "first" && context.columns() > 1 {
        let first = first_choices(context);
        context.builder().count(first, experts)
    } else {
        context.counts()
    };
    if arguments.word("within") == "step" && context.in_training() {
        counts = context.counted_over_step(counts);
    }
    let shares = context.shares_of(counts);
    let probabilities = context.probabilities();
    let mean = context.mean_over_tokens(probabilities);
    let computed = context.computed_experts();
    let b = context.builder();
    let (mut weighed, mut scale) = (mean, experts as f64);
    if arguments.get("tau").is_some() {
        let tau = arguments.float("tau");
        let index = b.ramp(experts, 1);
        let index = b.to_float(index);
        let [computes, one, other] = [computed as f64, 1.0, tau].map(|value| b.fill(value, [experts]));
        let computes = b.binary(Binary::Less, index, computes);
        let counted = b.select(computes, one, other);
        weighed = b.mul(weighed, counted);
        scale = computed as f64 + (experts - computed) as f64 / tau;
    }
    if arguments.word("over") == "layers" {
        context.pooled = Some(Factors { shares, probabilities: weighed, scale });
    }
    let b = context.builder();
    let product = b.mul(shares, weighed);
    let sum = b.sum_all(product);
    b.scale(sum, scale)
}

/// The expert with the largest weight of each token, i32 `[N, 1]`; -1 where none has any.
fn first_choices(context: &mut LossContext<'_>) -> Value {
    let (tokens, experts, chosen) = (context.tokens(), context.experts(), context.chosen());
    if let Assignment::TokenChoice { .. } = context.routing().assignment {
        // They are in that order.
        let b = context.builder();
        let index = b.to_float(chosen);
        let column = b.ramp(1, 0);
        let column = b.broadcast(column, [tokens, 1]);
        let first = b.gather_last(index, column);
        return b.to_index(first, experts);
    }
    let gates = context.gates();
    let b = context.builder();
    let (largest, first) = b.top_k(gates, 1);
    let (zero, none) = (b.fill(0.0, [tokens, 1]), b.fill(-1.0, [tokens, 1]));
    let any = b.binary(Binary::Less, zero, largest);
    let index = b.to_float(first);
    let index = b.select(any, index, none);
    b.to_index(index, experts)
}

/// `mean_n (ln sum_e e^l)^2`
fn z(context: &mut LossContext<'_>, _: &Arguments) -> Value {
    let logits = context.logits();
    let b = context.builder();
    let lse = b.log_sum_exp(logits);
    let square = b.mul(lse, lse);
    let rows = b.ty(square).elements();
    let square = b.reshape(square, [rows, 1]);
    let mean = context.mean_over_tokens(square);
    context.builder().sum_all(mean)
}

/// `mean_sequences sum_e f_e P_e` with `f_e = E / (K T) * count_e` within the sequence, constant to the gradient, and
/// `P_e` the mean over the sequence of the probabilities divided by their sum. In a `moe` inside an expert all rows count
/// as one sequence.
///
/// What is counted are the choices that the probabilities alone would make, as equation 18 of DeepSeek-V3 has it, unless
/// those that were made are asked for; gates that may close have no number of choices, so theirs are always those.
fn sequence(context: &mut LossContext<'_>, arguments: &Arguments) -> Value {
    let (experts, tokens, columns) = (context.experts(), context.tokens(), context.columns());
    let time = context.time().unwrap_or(tokens).max(1);
    let batch = tokens / time;
    let (routed, probabilities, valid) = (context.chosen(), context.probabilities(), context.rows.valid);
    let by_scores = arguments.word("choices") == "scores" && columns < experts;
    let b = context.builder();
    let ones = b.fill(1.0, [tokens, columns]);
    let hot = if by_scores {
        let (_, best) = b.top_k(probabilities, columns);
        let counted = match valid {
            None => ones,
            Some(valid) => b.broadcast(valid, [tokens, columns]),
        };
        b.scatter_last(counted, best, experts)
    } else {
        b.scatter_last(ones, routed, experts)
    };
    let hot = b.reshape(hot, [batch, time, experts]);
    let counts = b.sum(hot, &[1]);
    let total = b.sum(counts, &[1]);
    let one = b.fill(1.0, []);
    let total = b.binary(Binary::Max, total, one);
    let total = b.broadcast_last(total, experts);
    let share = b.div(counts, total);
    let mean = match valid {
        None => {
            let probabilities = b.reshape(probabilities, [batch, time, experts]);
            b.mean(probabilities, &[1])
        }
        Some(valid) => {
            let each = b.broadcast(valid, [tokens, experts]);
            let probabilities = b.mul(probabilities, each);
            let probabilities = b.reshape(probabilities, [batch, time, experts]);
            let sum = b.sum(probabilities, &[1]);
            let valid = b.reshape(valid, [batch, time]);
            let count = b.sum(valid, &[1]);
            let count = b.binary(Binary::Max, count, one);
            let count = b.broadcast_last(count, experts);
            b.div(sum, count)
        }
    };
    let product = b.mul(share, mean);
    let total = b.sum_all(product);
    b.scale(total, experts as f64 / batch.max(1) as f64)
}

//! The balance losses: a table of what each needs from the router and how it is built.

use std::fmt;

use moec_ir::{Binary, Builder, Unary, Value};

use crate::argument::{DefaultValue, Interval, ParameterSpec, ParameterType};
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
    /// Papers it follows.
    pub references: &'static [&'static str],
    /// What the router must provide for it; the assignment is always there.
    pub needs: &'static [Quantity],
    /// The weight that it has unless the file gives one.
    pub weight: f64,
    /// Builds the scalar, without its weight.
    pub lower: fn(&mut LossContext<'_>) -> Value,
}

impl fmt::Debug for BalanceLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalanceLoss").field("name", &self.name).finish_non_exhaustive()
    }
}

impl BalanceLoss {
    /// The arguments of the loss: its weight.
    pub fn parameters(&self) -> [ParameterSpec; 1] {
        [ParameterSpec::optional(
            "weight",
            ParameterType::Float(Interval::at_least(0.0)),
            DefaultValue::Float(self.weight),
            "factor of the loss in the training objective",
        )]
    }
}

/// What a balance loss is built from. Quantities that several losses need are built once.
pub struct LossContext<'a> {
    builder: &'a mut Builder,
    routing: Routing,
    experts: usize,
    gates: Option<Value>,
}

impl<'a> LossContext<'a> {
    pub(crate) fn new(builder: &'a mut Builder, routing: Routing, experts: usize) -> Self {
        LossContext { builder, routing, experts, gates: None }
    }

    /// The graph builder.
    pub fn builder(&mut self) -> &mut Builder {
        self.builder
    }

    /// Number of experts, E.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// The routing, before experts that are over capacity drop tokens.
    pub fn routing(&self) -> Routing {
        self.routing
    }

    /// Gates as a matrix, `[N, E]`: the weight of each chosen expert, 0 elsewhere.
    pub fn gates(&mut self) -> Value {
        if let Some(gates) = self.gates {
            return gates;
        }
        let Assignment::TokenChoice { experts, weights } = self.routing.assignment;
        let gates = self.builder.scatter_last(weights, experts, self.experts);
        self.gates = Some(gates);
        gates
    }

    /// Number of tokens that chose each expert, `[E]`; a constant to the gradient.
    pub fn counts(&mut self) -> Value {
        let Assignment::TokenChoice { experts, .. } = self.routing.assignment;
        self.builder.count(experts, self.experts)
    }

    /// Number of choices, N*K.
    pub fn slots(&self) -> usize {
        let Assignment::TokenChoice { experts, .. } = self.routing.assignment;
        self.builder.ty(experts).elements()
    }

    /// Number of experts per token, K.
    pub fn experts_per_token(&self) -> usize {
        let Assignment::TokenChoice { experts, .. } = self.routing.assignment;
        self.builder.ty(experts).shape.last().copied().unwrap_or(0)
    }

    /// Scores without noise, `[N, E]`; the gates for a router that promised scores and gave none.
    pub fn logits(&mut self) -> Value {
        match self.routing.logits {
            Some(logits) => logits,
            None => self.gates(),
        }
    }

    /// Probabilities over all experts, `[N, E]`: the router's, or else the softmax of its scores.
    pub fn probabilities(&mut self) -> Value {
        if let Some(probabilities) = self.routing.probabilities {
            return probabilities;
        }
        let logits = self.logits();
        let probabilities = self.builder.softmax(logits);
        self.routing.probabilities = Some(probabilities);
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

/// The losses that are always there.
pub(crate) const LOSSES: [BalanceLoss; 4] = [
    BalanceLoss {
        name: "importance",
        summary: "squared coefficient of variation of the experts' summed gate weights",
        references: &["Shazeer et al. 2017, arXiv 1701.06538, equation 7"],
        needs: &[],
        weight: 1e-2,
        lower: importance,
    },
    BalanceLoss {
        name: "load",
        summary: "squared coefficient of variation of a differentiable estimate of the experts' token counts",
        references: &["Shazeer et al. 2017, arXiv 1701.06538, equations 8 to 11"],
        needs: &[Quantity::NoisyScores],
        weight: 1e-2,
        lower: load,
    },
    BalanceLoss {
        name: "switch",
        summary: "number of experts times the sum of share of tokens times mean probability; 1 is perfect balance",
        references: &["Fedus et al. 2021, arXiv 2101.03961, equations 4 to 6"],
        needs: &[Quantity::Probabilities],
        weight: 1e-2,
        lower: switch,
    },
    BalanceLoss {
        name: "z",
        summary: "mean squared log-sum-exp of the scores, which keeps them small",
        references: &["Zoph et al. 2022, ST-MoE, arXiv 2202.08906, equation 5"],
        needs: &[Quantity::Logits],
        weight: 1e-3,
        lower: z,
    },
];

/// `CV(sum_n gates[n, :])^2`
fn importance(context: &mut LossContext<'_>) -> Value {
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
fn load(context: &mut LossContext<'_>) -> Value {
    let (k, experts) = (context.experts_per_token(), context.experts());
    let load = match (context.routing().noisy, context.routing().logits) {
        (Some(NoisyScores { scores, std }), Some(clean)) if k < experts => {
            let b = context.builder();
            let shape = b.shape(scores);
            let above = kth_largest(b, scores, k + 1);
            let below = kth_largest(b, scores, k);
            let (above, below) = (b.broadcast(above, shape.clone()), b.broadcast(below, shape));
            let is_in = b.binary(Binary::Less, above, scores);
            let threshold = b.select(is_in, above, below);
            let margin = b.sub(clean, threshold);
            // A deviation that has vanished would make the quotient infinite and its gradient not a number.
            let least = b.fill(1e-6, []);
            let std = b.binary(Binary::Max, std, least);
            let quotient = b.div(margin, std);
            let probability = b.unary(Unary::NormalCdf, quotient);
            b.sum(probability, &[0])
        }
        _ => context.counts(),
    };
    context.cv_squared(load)
}

/// The k-th largest of each row, `[N, 1]`: the smallest of the k largest.
fn kth_largest(b: &mut Builder, x: Value, k: usize) -> Value {
    let (largest, _) = b.top_k(x, k);
    let negated = b.unary(Unary::Neg, largest);
    let (smallest, _) = b.top_k(negated, 1);
    b.unary(Unary::Neg, smallest)
}

/// `E * sum_e f_e * P_e`: `f` the share of choices, counted before capacity and constant to the gradient, `P` the mean
/// probability. Dividing by N*K keeps 1 as the value at perfect balance for every k.
fn switch(context: &mut LossContext<'_>) -> Value {
    let (experts, slots) = (context.experts(), context.slots().max(1));
    let counts = context.counts();
    let probabilities = context.probabilities();
    let b = context.builder();
    let mean = b.mean(probabilities, &[0]);
    let product = b.mul(counts, mean);
    let sum = b.sum_all(product);
    b.scale(sum, experts as f64 / slots as f64)
}

/// `mean_n (ln sum_e e^l)^2`
fn z(context: &mut LossContext<'_>) -> Value {
    let logits = context.logits();
    let b = context.builder();
    let lse = b.log_sum_exp(logits);
    let square = b.mul(lse, lse);
    b.mean_all(square)
}

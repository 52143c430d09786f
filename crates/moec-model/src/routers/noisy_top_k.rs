//! Noisy top-k gating (Shazeer et al. 2017).

use moec_ir::Unary;

use crate::argument::{Arguments, DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::emit::Mode;
use crate::router::{NoisyScores, Quantity, Randomness, Routing, RoutingContext, RoutingStrategy, Traits};

/// Top-k of scores with trained Gaussian noise: `h = c + z * s` with `c = x Wᵀ + b`, `s = softplus(x W_nᵀ + b_n) +
/// epsilon` and `z` standard normal; the weights are the softmax over the k largest `h` (equations 3 to 5 of the
/// paper; epsilon is 1e-2 in the authors' code and 0 in makeMoE).
///
/// In evaluation `h = c`, unless `noise_at_evaluation` asks for what makeMoE does.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoisyTopK;

const PARAMETERS: &[ParameterSpec] = &[
    ParameterSpec::required("k", ParameterType::Int(Interval::at_least(1.0)), "experts per token"),
    ParameterSpec::optional(
        "epsilon",
        ParameterType::Float(Interval::at_least(0.0)),
        DefaultValue::Float(1e-2),
        "added to the standard deviation of the noise",
    ),
    ParameterSpec::optional(
        "noise_at_evaluation",
        ParameterType::Bool,
        DefaultValue::Bool(false),
        "keep the noise in evaluation and sampling",
    ),
    ParameterSpec::optional("bias", ParameterType::Bool, DefaultValue::Bool(true), "add biases to scores and noise"),
];

impl RoutingStrategy for NoisyTopK {
    fn name(&self) -> &str {
        "noisy_top_k"
    }

    fn summary(&self) -> &str {
        "top-k of scores with trained Gaussian noise, which spreads the load and makes it differentiable"
    }

    fn parameters(&self) -> &[ParameterSpec] {
        PARAMETERS
    }

    fn references(&self) -> &[&str] {
        &[
            "Shazeer et al. 2017, Outrageously Large Neural Networks, arXiv 1701.06538",
            "makeMoE (epsilon: 0, noise_at_evaluation: true)",
        ]
    }

    fn equations(&self) -> &str {
        "c = x Wᵀ + b                                  scores without noise, [N, E]
s = softplus(x W_nᵀ + b_n) + epsilon          deviation of the noise, [N, E]
h = c + z * s,  z standard normal             in training; h = c in evaluation
I = the k largest of h                        ties to the lower index
w = softmax of h over I                       weights, sum 1
Parameters: router.weight [E, C], router.bias [E], noise.weight [E, C], noise.bias [E].
Cost: two products [N, C] x [C, E]. W_n learns through the chosen experts and through the `load` loss."
    }

    fn traits(&self, arguments: &Arguments) -> Traits {
        Traits {
            random: if arguments.bool("noise_at_evaluation") { Randomness::Always } else { Randomness::Training },
            provides: &[Quantity::Logits, Quantity::Probabilities, Quantity::NoisyScores],
            learns_from_task: arguments.size("k") > 1,
            ..Traits::default()
        }
    }

    fn lower(&self, context: &mut RoutingContext<'_>, arguments: &Arguments) -> Routing {
        let (k, experts, bias) = (arguments.size("k"), context.experts(), arguments.bool("bias"));
        let clean = context.linear("router", context.tokens(), experts, bias);
        let noisy = (context.mode() == Mode::Train || arguments.bool("noise_at_evaluation")).then(|| {
            let raw = context.linear("noise", context.tokens(), experts, bias);
            let z = context.normal([context.token_count(), experts]);
            let b = context.builder();
            let std = b.unary(Unary::Softplus, raw);
            let epsilon = arguments.float("epsilon");
            let std = if epsilon > 0.0 { b.add_scalar(std, epsilon) } else { std };
            let noise = b.mul(z, std);
            NoisyScores { scores: b.add(clean, noise), std }
        });
        let b = context.builder();
        let (top, chosen) = b.top_k(noisy.map_or(clean, |n| n.scores), k);
        let weights = b.softmax(top);
        Routing { logits: Some(clean), noisy, ..Routing::token_choice(chosen, weights) }
    }
}

//! Sigmoid gating with a balance bias that is not trained by gradient (Wang et al. 2024, DeepSeek-V3).

use moec_ir::{Tensor, Unary};

use super::groups;
use crate::argument::{Arguments, DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::emit::Mode;
use crate::router::{Quantity, Routing, RoutingContext, RoutingStrategy, Traits};

/// The k experts with the largest `s + b`, where `s = sigmoid(x Wᵀ)` and b is a bias per expert that only selects: the
/// weights are the s of the chosen divided by their sum. After every training step b of an expert with more tokens than
/// the mean goes down by `bias_rate`, of one with fewer up (equation 16 of DeepSeek-V3), less the mean of the changes,
/// so that the biases do not drift.
///
/// With groups, a token chooses among the `groups_kept` groups of experts with the largest sum of their two best `s + b`.
/// `normalize: none` leaves the weights as sigmoids.
#[derive(Clone, Copy, Debug, Default)]
pub struct SigmoidTopK;

const PARAMETERS: &[ParameterSpec] = &[
    ParameterSpec::required("k", ParameterType::Int(Interval::at_least(1.0)), "experts per token"),
    ParameterSpec::optional(
        "bias_rate",
        ParameterType::Float(Interval::at_least(0.0)),
        DefaultValue::Float(1e-3),
        "change of the balance bias after a step; 0 for none",
    ),
    ParameterSpec::optional(
        "scale",
        ParameterType::Float(Interval::above(0.0)),
        DefaultValue::Float(1.0),
        "factor of the weights",
    ),
    ParameterSpec::optional(
        "normalize",
        ParameterType::Choice(&["selected", "none"]),
        DefaultValue::Word("selected"),
        "divide the weights by their sum, or take the sigmoids as they are",
    ),
    groups::GROUPS,
    groups::GROUPS_KEPT,
    groups::GROUP_SCORE,
];

impl RoutingStrategy for SigmoidTopK {
    fn name(&self) -> &str {
        "sigmoid_top_k"
    }

    fn summary(&self) -> &str {
        "top-k of sigmoids, balanced by a bias that is moved after every step instead of a loss"
    }

    fn parameters(&self) -> &[ParameterSpec] {
        PARAMETERS
    }

    fn references(&self) -> &[&str] {
        &[
            "Wang et al. 2024, Auxiliary-Loss-Free Load Balancing, arXiv 2408.15664",
            "DeepSeek-AI 2024, DeepSeek-V3, arXiv 2412.19437, section 2.1.2",
        ]
    }

    fn equations(&self) -> &str {
        "s = sigmoid(x Wᵀ)                             [N, E]
I = the k largest of s + b                    ties to the lower index
w = scale * s_I / (sum s_I + 1e-20)           b does not enter the weights; normalize: none   w = scale * s_I
after a training step: u = bias_rate * sign(mean(n) - n_e), b_e += u_e - mean(u), n_e the tokens of expert e
groups: only experts of the groups_kept groups with the largest sum of their two best s + b, or with group_score: best
the largest s + b
Parameters: router.weight [E, C]. State: balance_bias [E], 0 at first, in checkpoints.
Cost: one product [N, C] x [C, E]."
    }

    fn check(&self, arguments: &Arguments, experts: usize) -> Result<(), String> {
        groups::check(arguments, experts)
    }

    fn traits(&self, arguments: &Arguments) -> Traits {
        Traits {
            provides: &[Quantity::Logits, Quantity::Probabilities],
            // What one sigmoid is of its own sum is the constant 1.
            learns_from_task: arguments.size("k") > 1 || arguments.word("normalize") == "none",
            // Each outer expert would need a bias of its own.
            nests: arguments.float("bias_rate") == 0.0,
            ..Traits::default()
        }
    }

    fn lower(&self, context: &mut RoutingContext<'_>, arguments: &Arguments) -> Routing {
        let (k, experts, rate) = (arguments.size("k"), context.experts(), arguments.float("bias_rate"));
        let logits = context.linear("router", context.tokens(), experts, false);
        let bias = context.state("balance_bias", Tensor::floats(vec![0.0; experts]));
        let b = context.builder();
        let s = b.unary(Unary::Sigmoid, logits);
        let biased = b.add(s, bias);
        let biased = groups::within(b, biased, arguments);
        let (_, chosen) = b.top_k(biased, k);
        let picked = b.gather_last(s, chosen);
        let weights = match arguments.word("normalize") {
            "none" => picked,
            _ => {
                let sum = b.sum(picked, &[1]);
                let sum = b.add_scalar(sum, 1e-20);
                let sum = b.broadcast_last(sum, k);
                b.div(picked, sum)
            }
        };
        let weights = b.scale(weights, arguments.float("scale"));
        if context.mode() == Mode::Train && rate > 0.0 {
            let b = context.builder();
            let load = b.count(chosen, experts);
            let mean = b.mean_all(load);
            let lack = b.sub(mean, load);
            let direction = b.unary(Unary::Sign, lack);
            let change = b.scale(direction, rate);
            let drift = b.mean_all(change);
            let change = b.sub(change, drift);
            let moved = b.add(bias, change);
            context.update_state("balance_bias", moved);
        }
        Routing { logits: Some(logits), probabilities: Some(s), ..Routing::token_choice(chosen, weights) }
    }
}

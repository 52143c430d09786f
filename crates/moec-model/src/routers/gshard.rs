//! Top-2 gating with a random second expert (Lepikhin et al. 2020).

use moec_ir::Binary;

use crate::argument::{Arguments, DefaultValue, ParameterSpec, ParameterType};
use crate::emit::Mode;
use crate::router::{Quantity, Randomness, Routing, RoutingContext, RoutingStrategy, Traits};

/// The two most probable experts with their probabilities divided by their sum. In training the second is used with
/// probability `min(1, 2 g_2)`: a small weight is not worth a place in an expert of bounded capacity (algorithm 1 of
/// the paper). In evaluation it always is, so that evaluation is deterministic.
///
/// The paper goes with `capacity(order: choice)`: all first choices are served before all second ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct GShard;

const PARAMETERS: &[ParameterSpec] = &[
    ParameterSpec::optional(
        "second",
        ParameterType::Choice(&["random", "always"]),
        DefaultValue::Word("random"),
        "use the second expert at random in proportion to its weight, or always",
    ),
    ParameterSpec::optional("bias", ParameterType::Bool, DefaultValue::Bool(false), "add a bias to the scores"),
];

impl RoutingStrategy for GShard {
    fn name(&self) -> &str {
        "gshard"
    }

    fn summary(&self) -> &str {
        "the two most probable experts; in training the second at random, in proportion to its weight"
    }

    fn parameters(&self) -> &[ParameterSpec] {
        PARAMETERS
    }

    fn references(&self) -> &[&str] {
        &["Lepikhin et al. 2020, GShard, arXiv 2006.16668, algorithm 1"]
    }

    fn equations(&self) -> &str {
        "p = softmax(x Wᵀ)                             [N, E]
e1, e2 = the two largest of p                 ties to the lower index
g = (p_e1, p_e2) / (p_e1 + p_e2)              weights, sum 1
e2 is used if 2 g_2 > u, u uniform on [0, 1)  in training; always in evaluation
Parameters: router.weight [E, C].
Cost: one product [N, C] x [C, E]. The loss of the paper is `switch(choices: first)`, its capacity
`capacity(order: choice, evaluation_factor: 0)`."
    }

    fn check(&self, _: &Arguments, experts: usize) -> Result<(), String> {
        if experts < 2 { Err("needs at least two experts".into()) } else { Ok(()) }
    }

    fn experts_per_token(&self, _: &Arguments, _: usize, _: usize) -> f64 {
        2.0
    }

    fn traits(&self, arguments: &Arguments) -> Traits {
        let random = arguments.word("second") == "random";
        Traits {
            random: if random { Randomness::Training } else { Randomness::Never },
            provides: &[Quantity::Logits, Quantity::Probabilities],
            ..Traits::default()
        }
    }

    fn lower(&self, context: &mut RoutingContext<'_>, arguments: &Arguments) -> Routing {
        let experts = context.experts();
        let logits = context.linear("router", context.tokens(), experts, arguments.bool("bias"));
        let tokens = context.token_count();
        let random = context.mode() == Mode::Train && arguments.word("second") == "random";
        let u = random.then(|| context.uniform([tokens, 1]));
        let b = context.builder();
        let probabilities = b.softmax(logits);
        let (top, chosen) = b.top_k(logits, 2);
        // The softmax over two scores is their probabilities divided by their sum.
        let weights = b.softmax(top);
        let chosen = match u {
            None => chosen,
            Some(u) => {
                // The threshold of the first choice is 0, and its weight at least a half.
                let column = b.ramp(2, 1);
                let column = b.to_float(column);
                let column = b.broadcast(column, [tokens, 2]);
                let threshold = b.broadcast(u, [tokens, 2]);
                let threshold = b.mul(threshold, column);
                let twice = b.scale(weights, 2.0);
                let used = b.binary(Binary::Less, threshold, twice);
                let index = b.to_float(chosen);
                let none = b.fill(-1.0, [tokens, 2]);
                let index = b.select(used, index, none);
                b.to_index(index, experts)
            }
        };
        Routing { logits: Some(logits), probabilities: Some(probabilities), ..Routing::token_choice(chosen, weights) }
    }
}

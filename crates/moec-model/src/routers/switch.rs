//! Switch routing (Fedus et al. 2021).

use crate::argument::{Arguments, DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::emit::Mode;
use crate::router::{Quantity, Randomness, Routing, RoutingContext, RoutingStrategy, Traits};

/// The expert with the largest probability, weighted by it: `p = softmax(x' Wᵀ)`, `y = p_e f_e(x)`.
///
/// In training the router, and only the router, sees `x' = x * u` with `u` uniform on `[1 - jitter, 1 + jitter)`. The
/// weight is not renormalised: with one expert it would be the constant 1, and the router would learn nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Switch;

const PARAMETERS: &[ParameterSpec] = &[
    ParameterSpec::optional(
        "jitter",
        ParameterType::Float(Interval::half_open(0.0, 1.0)),
        DefaultValue::Float(1e-2),
        "half width of the factor around 1 that the router's copy of the activations is multiplied with",
    ),
    ParameterSpec::optional("bias", ParameterType::Bool, DefaultValue::Bool(false), "add a bias to the scores"),
];

impl RoutingStrategy for Switch {
    fn name(&self) -> &str {
        "switch"
    }

    fn summary(&self) -> &str {
        "the most probable expert, weighted by its probability"
    }

    fn parameters(&self) -> &[ParameterSpec] {
        PARAMETERS
    }

    fn references(&self) -> &[&str] {
        &["Fedus et al. 2021, Switch Transformers, arXiv 2101.03961"]
    }

    fn equations(&self) -> &str {
        "x' = x * u,  u uniform on [1 - jitter, 1 + jitter)   in training, for the router only; x' = x in evaluation
p = softmax(x' Wᵀ)                                   [N, E]
e = the largest of p                                 ties to the lower index
w = p_e                                              not renormalised
Parameters: router.weight [E, C].
Cost: one product [N, C] x [C, E]. Pair it with the `switch` loss: nothing else keeps the load even."
    }

    fn experts_per_token(&self, _: &Arguments, _: usize, _: usize) -> f64 {
        1.0
    }

    fn traits(&self, arguments: &Arguments) -> Traits {
        let jitter = arguments.float("jitter") > 0.0;
        Traits {
            random: if jitter { Randomness::Training } else { Randomness::Never },
            provides: &[Quantity::Logits, Quantity::Probabilities],
            ..Traits::default()
        }
    }

    fn lower(&self, context: &mut RoutingContext<'_>, arguments: &Arguments) -> Routing {
        let (mut x, jitter) = (context.tokens(), arguments.float("jitter"));
        if context.mode() == Mode::Train && jitter > 0.0 {
            let u = context.uniform([context.token_count(), context.width()]);
            let b = context.builder();
            let spread = b.scale(u, 2.0 * jitter);
            let factor = b.add_scalar(spread, 1.0 - jitter);
            x = b.mul(x, factor);
        }
        let logits = context.linear("router", x, context.experts(), arguments.bool("bias"));
        let b = context.builder();
        let probabilities = b.softmax(logits);
        // Two probabilities can round to the same number; scores decide.
        let (_, chosen) = b.top_k(logits, 1);
        let weights = b.gather_last(probabilities, chosen);
        Routing { logits: Some(logits), probabilities: Some(probabilities), ..Routing::token_choice(chosen, weights) }
    }
}

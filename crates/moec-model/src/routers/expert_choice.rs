//! Expert choice: experts choose tokens (Zhou et al. 2022).

use crate::argument::{Arguments, DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::router::{Assignment, Compares, Quantity, Routing, RoutingContext, RoutingStrategy, Traits};

/// Every expert takes the `P = N c / E` tokens of the batch with the largest probabilities for it, weighted by them: the
/// load is even by construction, and a token has any number of experts, none among them.
///
/// Whether a token is taken depends on later ones, so this is not for a language model that samples.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExpertChoice;

const PARAMETERS: &[ParameterSpec] = &[
    ParameterSpec::optional(
        "capacity_factor",
        ParameterType::Float(Interval::above(0.0)),
        DefaultValue::Float(2.0),
        "experts per token on average",
    ),
    ParameterSpec::optional("bias", ParameterType::Bool, DefaultValue::Bool(false), "add a bias to the scores"),
];

impl RoutingStrategy for ExpertChoice {
    fn name(&self) -> &str {
        "expert_choice"
    }

    fn summary(&self) -> &str {
        "every expert takes the tokens with the largest probabilities for it"
    }

    fn parameters(&self) -> &[ParameterSpec] {
        PARAMETERS
    }

    fn references(&self) -> &[&str] {
        &["Zhou et al. 2022, Mixture-of-Experts with Expert Choice Routing, arXiv 2202.09368"]
    }

    fn equations(&self) -> &str {
        "p = softmax(x Wᵀ) over the experts            [N, E]
P = max(1, int(N c / E)), c the capacity factor
T_e = the P tokens with the largest p[:, e]   ties to the earlier token
w_{n,e} = p_{n,e} for n in T_e                not renormalised
Parameters: router.weight [E, C].
Cost: one product [N, C] x [C, E] and E searches among N tokens."
    }

    fn experts_per_token(&self, arguments: &Arguments, experts: usize, _: usize) -> f64 {
        arguments.float("capacity_factor").min(experts as f64)
    }

    fn traits(&self, _: &Arguments) -> Traits {
        Traits {
            compares: Compares::Batch,
            compares_when_sampling: Compares::Batch,
            provides: &[Quantity::Logits, Quantity::Probabilities],
            ..Traits::default()
        }
    }

    fn lower(&self, context: &mut RoutingContext<'_>, arguments: &Arguments) -> Routing {
        let (tokens, experts) = (context.token_count(), context.experts());
        let share = tokens as f64 * arguments.float("capacity_factor") / experts as f64;
        // A factor that is meant to give a whole number must not lose one to rounding.
        let capacity = ((share + 1e-6) as usize).clamp(1, tokens.max(1));
        let logits = context.linear("router", context.tokens(), experts, arguments.bool("bias"));
        let b = context.builder();
        let probabilities = b.softmax(logits);
        let columns = b.transpose(probabilities);
        let (weights, chosen) = b.top_k(columns, capacity);
        Routing {
            logits: Some(logits),
            probabilities: Some(probabilities),
            ..Routing::new(Assignment::ExpertChoice { tokens: chosen, weights })
        }
    }
}

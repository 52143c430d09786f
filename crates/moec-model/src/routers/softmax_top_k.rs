//! Top-k of linear scores, weighted by a softmax.

use super::groups;
use crate::argument::{Arguments, DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::router::{Quantity, Routing, RoutingContext, RoutingStrategy, Traits};

/// The k experts with the largest scores `l = x Wᵀ + b`.
///
/// `normalize: selected` takes the softmax over the selected scores (Mixtral, makeMoE): unselected scores get no
/// gradient. `normalize: all` takes it over all experts and keeps the selected probabilities (Switch, Grok-1): every
/// score gets a gradient, and the weights sum to less than 1.
///
/// With groups, a token chooses among the `groups_kept` groups of experts with the best scores (DeepSeek-V2's
/// device-limited routing with `group_score: best`).
#[derive(Clone, Copy, Debug, Default)]
pub struct SoftmaxTopK;

const PARAMETERS: &[ParameterSpec] = &[
    ParameterSpec::required("k", ParameterType::Int(Interval::at_least(1.0)), "experts per token"),
    ParameterSpec::optional(
        "normalize",
        ParameterType::Choice(&["selected", "all"]),
        DefaultValue::Word("selected"),
        "softmax over the selected experts, or over all of them",
    ),
    ParameterSpec::optional("bias", ParameterType::Bool, DefaultValue::Bool(true), "add a bias to the scores"),
    groups::GROUPS,
    groups::GROUPS_KEPT,
    groups::GROUP_SCORE,
];

impl RoutingStrategy for SoftmaxTopK {
    fn name(&self) -> &str {
        "softmax_top_k"
    }

    fn summary(&self) -> &str {
        "the k experts with the largest scores, weighted by a softmax"
    }

    fn parameters(&self) -> &[ParameterSpec] {
        PARAMETERS
    }

    fn references(&self) -> &[&str] {
        &[
            "Jiang et al. 2024, Mixtral of Experts, arXiv 2401.04088 (normalize: selected)",
            "Fedus et al. 2021, Switch Transformers, arXiv 2101.03961 (k: 1, normalize: all)",
            "DeepSeek-AI 2024, DeepSeek-V2, arXiv 2405.04434, section 2.2.2 (groups, group_score: best)",
        ]
    }

    fn equations(&self) -> &str {
        "l = x Wᵀ + b                                  scores, [N, E]
I = the k largest of l                        ties to the lower index
normalize: selected   w = softmax of l over I, sum 1; scores outside I get no gradient
normalize: all        w = softmax(l) at I, sum below 1; every score gets a gradient
groups: only experts of the groups_kept groups with the largest sum of their two best l, or with group_score: best the
largest l
Parameters: router.weight [E, C], router.bias [E].
Cost: one product [N, C] x [C, E]. With k = 1 and `selected` the weight is the constant 1 and the task
does not train the router."
    }

    fn check(&self, arguments: &Arguments, experts: usize) -> Result<(), String> {
        groups::check(arguments, experts)
    }

    fn traits(&self, arguments: &Arguments) -> Traits {
        Traits {
            provides: &[Quantity::Logits, Quantity::Probabilities],
            // The softmax over a single score is the constant 1.
            learns_from_task: arguments.size("k") > 1 || arguments.word("normalize") == "all",
            ..Traits::default()
        }
    }

    fn lower(&self, context: &mut RoutingContext<'_>, arguments: &Arguments) -> Routing {
        let (k, experts) = (arguments.size("k"), context.experts());
        let logits = context.linear("router", context.tokens(), experts, arguments.bool("bias"));
        let b = context.builder();
        let (scores, probabilities) = if arguments.word("normalize") == "all" {
            let probabilities = b.softmax(logits);
            (probabilities, Some(probabilities))
        } else {
            (logits, None)
        };
        // Selecting by the logits in either case: two probabilities can round to the same number.
        let within = groups::within(b, logits, arguments);
        let (top, chosen) = b.top_k(within, k);
        let weights = match probabilities {
            Some(_) => b.gather_last(scores, chosen),
            None => b.softmax(top),
        };
        Routing { logits: Some(logits), probabilities, ..Routing::token_choice(chosen, weights) }
    }
}

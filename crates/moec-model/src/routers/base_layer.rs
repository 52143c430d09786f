//! BASE: balanced assignment of tokens to experts (Lewis et al. 2021).

use moec_ir::Unary;

use crate::argument::{Arguments, ParameterSpec};
use crate::emit::{Mode, Role};
use crate::router::{Compares, Quantity, Routing, RoutingContext, RoutingStrategy, Traits};

/// Every expert gets equally many tokens of the batch, so that the sum of the scores `s = x w_eᵀ` is as large as that
/// allows; the weight is `sigmoid(s)`. In evaluation each token goes to the expert with its largest score.
///
/// The assignment is a constant to the gradient: a centroid learns through the weights of the tokens assigned to it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Base;

impl RoutingStrategy for Base {
    fn name(&self) -> &str {
        "base"
    }

    fn summary(&self) -> &str {
        "a balanced assignment of the batch's tokens in training, the nearest expert in evaluation"
    }

    fn parameters(&self) -> &[ParameterSpec] {
        &[]
    }

    fn references(&self) -> &[&str] {
        &["Lewis et al. 2021, BASE Layers, arXiv 2103.16716"]
    }

    fn equations(&self) -> &str {
        "s = x Wᵀ, rows w_e of W are the experts' centroids        [N, E]
training     e(n) maximises sum_n s_{n, e(n)} with floor(N / E) or ceil(N / E) tokens for every expert,
             by an auction that ends within N epsilon of the optimum
evaluation   e(n) = the largest of s_n
w = sigmoid(s_{n, e(n)})
Parameters: centroids [E, C], orthogonal rows of length 0.1 at first.
Cost: one product [N, C] x [C, E], and an auction that runs on one unit of the device."
    }

    fn experts_per_token(&self, _: &Arguments, _: usize, _: usize) -> f64 {
        1.0
    }

    fn traits(&self, _: &Arguments) -> Traits {
        Traits {
            compares: Compares::Batch,
            compares_when_sampling: Compares::None,
            provides: &[Quantity::Logits, Quantity::Probabilities],
            ..Traits::default()
        }
    }

    fn lower(&self, context: &mut RoutingContext<'_>, _: &Arguments) -> Routing {
        let shape = [context.experts(), context.width()];
        let centroids = context.parameter("centroids", shape, Role::Orthogonal { gain: 0.1 });
        let (x, mode) = (context.tokens(), context.mode());
        let b = context.builder();
        let scores = b.linear(x, centroids, None);
        let chosen = match mode {
            Mode::Train => b.balanced_assignment(scores),
            Mode::Evaluate => b.top_k(scores, 1).1,
        };
        let score = b.gather_last(scores, chosen);
        let weights = b.unary(Unary::Sigmoid, score);
        Routing { logits: Some(scores), ..Routing::token_choice(chosen, weights) }
    }
}

//! Top-k of cosines (Chi et al. 2022, On the Representation Collapse of Sparse Mixture of Experts, arXiv 2204.09179).

use moec::router::{
    Arguments, Builder, DefaultValue, Interval, ParameterSpec, ParameterType, Quantity, Role, Routing, RoutingContext,
    RoutingStrategy, Traits, Unary, Value,
};

/// The k experts whose vectors point most nearly in the direction of the token: `l = cos(x, w_e) / temperature`. The
/// length of a token does not count, so no expert wins by having long weights.
pub struct CosineTopK;

const PARAMETERS: &[ParameterSpec] = &[
    ParameterSpec::required("k", ParameterType::Int(Interval::at_least(1.0)), "experts per token"),
    ParameterSpec::optional(
        "temperature",
        ParameterType::Float(Interval::above(0.0)),
        DefaultValue::Float(0.3),
        "divides the cosines; small values make the weights uneven",
    ),
];

impl RoutingStrategy for CosineTopK {
    fn name(&self) -> &str {
        "cosine_top_k"
    }

    fn summary(&self) -> &str {
        "the k experts whose vectors have the largest cosine with the token"
    }

    fn parameters(&self) -> &[ParameterSpec] {
        PARAMETERS
    }

    fn references(&self) -> &[&str] {
        &["Chi et al. 2022, On the Representation Collapse of Sparse Mixture of Experts, arXiv 2204.09179"]
    }

    fn equations(&self) -> &str {
        "l = (x / |x|) (w_e / |w_e|) / temperature    [N, E]
I = the k largest of l
w = softmax of l over I
Parameters: directions [E, C]."
    }

    fn traits(&self, arguments: &Arguments) -> Traits {
        Traits {
            provides: &[Quantity::Logits, Quantity::Probabilities],
            // One weight under a softmax is the constant 1.
            learns_from_task: arguments.size("k") > 1,
            ..Traits::default()
        }
    }

    fn lower(&self, context: &mut RoutingContext<'_>, arguments: &Arguments) -> Routing {
        let (experts, width) = (context.experts(), context.width());
        let directions =
            context.parameter("directions", [experts, width], Role::Weight { fan_in: width, fan_out: experts });
        let tokens = context.tokens();
        let b = context.builder();
        let (tokens, directions) = (unit_rows(b, tokens), unit_rows(b, directions));
        let cosines = b.linear(tokens, directions, None);
        let logits = b.scale(cosines, 1.0 / arguments.float("temperature"));
        let (top, chosen) = b.top_k(logits, arguments.size("k"));
        let weights = b.softmax(top);
        Routing { logits: Some(logits), ..Routing::token_choice(chosen, weights) }
    }
}

/// Rows of a matrix divided by their length.
fn unit_rows(b: &mut Builder, x: Value) -> Value {
    let columns = b.shape(x).last().copied().unwrap_or(1);
    let squares = b.mul(x, x);
    let sum = b.sum(squares, &[1]);
    // A row of zeros stays one.
    let sum = b.add_scalar(sum, 1e-12);
    let length = b.unary(Unary::Sqrt, sum);
    let length = b.broadcast_last(length, columns);
    b.div(x, length)
}

//! Soft mixture of experts (Puigcerver et al. 2023).

use moec_ir::{Builder, Unary, Value};

use crate::argument::{Arguments, DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::emit::Role;
use crate::router::{Assignment, Compares, Routing, RoutingContext, RoutingStrategy, Traits};

/// Every expert works on `slots` mixtures of all tokens of a sequence, and every token gets a mixture of all results.
/// Nothing is selected, so everything is differentiable and balanced; but a token sees all later ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct SoftMoe;

const PARAMETERS: &[ParameterSpec] = &[ParameterSpec::optional(
    "slots",
    ParameterType::Int(Interval::at_least(1.0)),
    DefaultValue::Int(1),
    "mixtures that each expert works on",
)];

impl RoutingStrategy for SoftMoe {
    fn name(&self) -> &str {
        "soft_moe"
    }

    fn summary(&self) -> &str {
        "every expert works on mixtures of all tokens of a sequence"
    }

    fn parameters(&self) -> &[ParameterSpec] {
        PARAMETERS
    }

    fn references(&self) -> &[&str] {
        &["Puigcerver et al. 2023, From Sparse to Soft Mixtures of Experts, arXiv 2308.00951"]
    }

    fn equations(&self) -> &str {
        "x' = x / sqrt(sum x^2 + 1e-6);  phi' likewise, each slot
l = scale * x' phi'ᵀ                          [T, E P] in each sequence
D = softmax of l over the tokens              slots = Dᵀ x, [E P, C]
C = softmax of l over the slots               y = C f(slots)
Parameters: slots.weight [E P, C], scale [].
Cost: three products [T, C] x [C, E P] a sequence; the experts work on E P rows a sequence."
    }

    fn experts_per_token(&self, arguments: &Arguments, experts: usize, time: usize) -> f64 {
        (experts * arguments.size("slots")) as f64 / time.max(1) as f64
    }

    fn traits(&self, _: &Arguments) -> Traits {
        Traits {
            compares: Compares::Sequence,
            compares_when_sampling: Compares::Sequence,
            selects: false,
            ..Traits::default()
        }
    }

    fn lower(&self, context: &mut RoutingContext<'_>, arguments: &Arguments) -> Routing {
        let (tokens, time, width) = (context.token_count(), context.time(), context.width());
        let slots = context.experts() * arguments.size("slots");
        // The authors draw phi as a linear map's weights; its length is divided out.
        let phi = context.parameter("slots.weight", [slots, width], Role::Weight { fan_in: width, fan_out: slots });
        let scale = context.parameter("scale", [], Role::Constant(1.0));
        let x = context.tokens();
        let b = context.builder();
        let (x, phi) = (unit(b, x), unit(b, phi));
        let logits = b.linear(x, phi, None);
        let logits = b.mul(logits, scale);
        let combine = b.softmax(logits);
        // Over the tokens of each sequence: [B, T, S] as [B, S, T] and back.
        let batch = tokens / time.max(1);
        let by_slot = b.reshape(logits, [batch, time, slots]);
        let by_slot = b.permute(by_slot, &[0, 2, 1]);
        let dispatch = b.softmax(by_slot);
        let dispatch = b.permute(dispatch, &[0, 2, 1]);
        let dispatch = b.reshape(dispatch, [tokens, slots]);
        Routing::new(Assignment::Slots { dispatch, combine })
    }
}

/// Rows of length 1.
fn unit(b: &mut Builder, x: Value) -> Value {
    let columns = b.columns(x);
    let squares = b.mul(x, x);
    let sum = b.sum(squares, &[1]);
    let sum = b.add_scalar(sum, 1e-6);
    let length = b.unary(Unary::Sqrt, sum);
    let inverse = b.unary(Unary::Recip, length);
    let inverse = b.broadcast_last(inverse, columns);
    b.mul(x, inverse)
}

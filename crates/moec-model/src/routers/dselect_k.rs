//! DSelect-k: a differentiable choice of at most k experts (Hazimeh et al. 2021).

use moec_ir::{Binary, Builder, Unary, Value};

use crate::argument::{Arguments, DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::emit::Role;
use crate::router::{Assignment, AuxiliaryLoss, Routing, RoutingContext, RoutingStrategy, Traits};

/// k selectors, each a distribution over the experts that is written in binary: bit b of the expert's number (the most
/// significant first) is 1 with weight `S(z_b)`, where S is the smooth step (Hazimeh et al. 2020, arXiv 2002.07772). The
/// gates are the mixture of the selectors under a softmax.
///
/// Training starts with all experts. As the z leave the interval `(-gamma/2, gamma/2)` the steps become exactly 0 or 1,
/// and with them the gates: an expert whose gate is exactly 0 is not computed.
///
/// The losses are means over tokens; the authors sum, which makes them depend on the batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct DSelectK;

const PARAMETERS: &[ParameterSpec] = &[
    ParameterSpec::required("k", ParameterType::Int(Interval::at_least(1.0)), "number of selectors"),
    ParameterSpec::optional(
        "gating",
        ParameterType::Choice(&["per_example", "static"]),
        DefaultValue::Word("per_example"),
        "selectors that depend on the token, or the same for every token",
    ),
    ParameterSpec::optional(
        "gamma",
        ParameterType::Float(Interval::above(0.0)),
        DefaultValue::Float(1.0),
        "width of the interval in which the step is neither 0 nor 1",
    ),
    ParameterSpec::optional(
        "entropy",
        ParameterType::Float(Interval::at_least(0.0)),
        DefaultValue::Float(1e-6),
        "weight of the selectors' entropy in the training objective",
    ),
];

impl RoutingStrategy for DSelectK {
    fn name(&self) -> &str {
        "dselect_k"
    }

    fn summary(&self) -> &str {
        "a differentiable choice of at most k experts, dense at first and sparse as training goes on"
    }

    fn parameters(&self) -> &[ParameterSpec] {
        PARAMETERS
    }

    fn references(&self) -> &[&str] {
        &[
            "Hazimeh et al. 2021, DSelect-k, arXiv 2106.03760",
            "Hazimeh et al. 2020, The Tree Ensemble Layer, arXiv 2002.07772 (smooth step)",
        ]
    }

    fn equations(&self) -> &str {
        "m = ceil(log2 E) bits;  z = x Wᵀ + b, [N, k, m];  a = x Vᵀ + c, [N, k]     static: z and a are parameters
S(t) = 0 for t <= -gamma/2, 1 for t >= gamma/2, else -2 t^3 / gamma^3 + 3 t / (2 gamma) + 1/2
r_j(e) = product over bits b of (bit_b(e) ? S(z_jb) : 1 - S(z_jb))              [N, k, E]
w = sum_j softmax(a)_j r_j                                                      dense gates, [N, E]
Losses: entropy = mean_n sum_j -sum_e r log(r + 1e-6); for E not a power of two also
unassigned_mass = mean_n sum_j 1 / (sum_e r + 1e-6), with weight 1, against codes beyond E. The authors add up over the
tokens where these are means, which do not depend on the batch.
Parameters: selector.weight [k m, C], selector.bias, mixture.weight [k, C], mixture.bias; static:
selector.logits [k, m], mixture.logits [k].
Cost: products [N, C] x [C, k (m + 1)]; all experts at first, those with a gate other than 0 later."
    }

    fn experts_per_token(&self, arguments: &Arguments, experts: usize, _: usize) -> f64 {
        // What it comes down to; in the beginning all experts work.
        arguments.size("k").min(experts) as f64
    }

    fn traits(&self, _: &Arguments) -> Traits {
        Traits { nests: false, ..Traits::default() }
    }

    fn lower(&self, context: &mut RoutingContext<'_>, arguments: &Arguments) -> Routing {
        let (k, gamma, experts) = (arguments.size("k"), arguments.float("gamma"), context.experts());
        let bits = experts.next_power_of_two().trailing_zeros() as usize;
        let (tokens, per_example) = (context.token_count(), arguments.word("gating") != "static");
        // The authors' initial values: all steps near one half, so that all experts start alike.
        let near_zero = Role::Uniform { bound: gamma / 100.0 };
        let small = Role::Uniform { bound: 0.05 };
        let x = context.tokens();
        // Static selectors are those of a single token.
        let rows = if per_example { tokens } else { 1 };
        let mixture = if per_example {
            context.linear_with("mixture", x, k, small, Some(Role::Constant(0.0)))
        } else {
            let logits = context.parameter("mixture.logits", [k], Role::Table { bound: 0.05 });
            context.builder().reshape(logits, [1, k])
        };
        let selector = (bits > 0).then(|| {
            if per_example {
                context.linear_with("selector", x, k * bits, near_zero, Some(near_zero))
            } else {
                context.parameter("selector.logits", [k, bits], Role::Table { bound: gamma / 100.0 })
            }
        });
        let b = context.builder();
        let codes = match selector {
            None => b.fill(1.0, [rows * k, 1]),
            Some(selector) => {
                let z = b.reshape(selector, [rows * k, bits]);
                codes(b, z, gamma, (rows * k, bits), experts)
            }
        };
        let mixture = b.softmax(mixture);
        let weight = b.reshape(mixture, [rows * k, 1]);
        let weight = b.broadcast(weight, [rows * k, experts]);
        let weighted = b.mul(codes, weight);
        let weighted = b.reshape(weighted, [rows, k, experts]);
        let gates = b.sum(weighted, &[1]);
        let gates = if per_example { gates } else { b.broadcast(gates, [tokens, experts]) };

        let mut auxiliary = vec![AuxiliaryLoss {
            name: "entropy".into(),
            value: entropy(b, codes, rows),
            weight: arguments.float("entropy"),
        }];
        if !experts.is_power_of_two() {
            let value = unassigned_mass(b, codes, rows);
            auxiliary.push(AuxiliaryLoss { name: "unassigned_mass".into(), value, weight: 1.0 });
        }
        Routing { auxiliary, ..Routing::new(Assignment::DenseGates { gates }) }
    }
}

/// `3 u^2 - 2 u^3` with `u = t / gamma + 1/2` held within 0 and 1: exactly 0 and 1 beyond the ends, with slope 0 there.
/// In this form small values keep their relative precision, and so does the complement `1 - S(t) = S(-t)`.
fn smooth_step(b: &mut Builder, t: Value, gamma: f64) -> Value {
    let (zero, one) = (b.fill(0.0, []), b.fill(1.0, []));
    let u = b.scale(t, 1.0 / gamma);
    let u = b.add_scalar(u, 0.5);
    let u = b.binary(Binary::Max, u, zero);
    let u = b.binary(Binary::Min, u, one);
    let square = b.mul(u, u);
    let rest = b.scale(u, -2.0);
    let rest = b.add_scalar(rest, 3.0);
    b.mul(square, rest)
}

/// Products over the bits of every code below E, `[rows, E]`, from the steps of `z [rows, bits]`: the outer product of
/// `(1 - S, S)` over the bits, without a division, so that the gradient is exact at 0.
fn codes(b: &mut Builder, z: Value, gamma: f64, (rows, bits): (usize, usize), experts: usize) -> Value {
    let step = smooth_step(b, z, gamma);
    let opposite = b.unary(Unary::Neg, z);
    let complement = smooth_step(b, opposite, gamma);
    let is_one = b.ramp(2, 1);
    let is_one = b.to_float(is_one);
    let is_one = b.broadcast(is_one, [rows, 2]);
    let is_zero = b.scale(is_one, -1.0);
    let is_zero = b.add_scalar(is_zero, 1.0);
    let mut codes = b.fill(1.0, [rows, 1]);
    for bit in 0..bits {
        let column = b.ramp(1, 0);
        let column = b.to_float(column);
        let column = b.add_scalar(column, bit as f64);
        let column = b.to_index(column, bits);
        let column = b.broadcast(column, [rows, 1]);
        let mut of_bit = |steps: Value, mask: Value| {
            let s = b.gather_last(steps, column);
            let s = b.broadcast(s, [rows, 2]);
            b.mul(mask, s)
        };
        let (ones, zeros) = (of_bit(step, is_one), of_bit(complement, is_zero));
        let factor = b.add(ones, zeros);
        let known = 1 << bit;
        let codes_so_far = b.reshape(codes, [rows, known, 1]);
        let codes_so_far = b.broadcast(codes_so_far, [rows, known, 2]);
        let factor = b.reshape(factor, [rows, 1, 2]);
        let factor = b.broadcast(factor, [rows, known, 2]);
        let product = b.mul(codes_so_far, factor);
        codes = b.reshape(product, [rows, 2 * known]);
    }
    if experts == 1 << bits {
        return codes;
    }
    // Codes without an expert are left out.
    let reachable = b.ramp(experts, 1);
    let reachable = b.broadcast(reachable, [rows, experts]);
    b.gather_last(codes, reachable)
}

/// `mean_n sum_j -sum_e r log(r + 1e-6)`
fn entropy(b: &mut Builder, codes: Value, tokens: usize) -> Value {
    let guarded = b.add_scalar(codes, 1e-6);
    let log = b.unary(Unary::Log, guarded);
    let terms = b.mul(codes, log);
    let sum = b.sum_all(terms);
    b.scale(sum, -1.0 / tokens.max(1) as f64)
}

/// `mean_n sum_j 1 / (sum_e r + 1e-6)`: a selector that sits on a code without an expert would divide by 0.
fn unassigned_mass(b: &mut Builder, codes: Value, tokens: usize) -> Value {
    let mass = b.sum(codes, &[1]);
    let mass = b.add_scalar(mass, 1e-6);
    let inverse = b.unary(Unary::Recip, mass);
    let sum = b.sum_all(inverse);
    b.scale(sum, 1.0 / tokens.max(1) as f64)
}

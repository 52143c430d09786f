//! Soft merging of experts (Muqeeth et al. 2023), along the sequence where it is to be causal (Zhong et al. 2024).

use moec_ir::{Binary, Builder, Op, Precision, Value};

use crate::argument::{Arguments, DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::router::{Assignment, Compares, Routing, RoutingContext, RoutingStrategy, Traits};

/// A sequence goes through one expert, whose parameters are the mean of those of all experts, weighed by what a router makes of
/// the mean of the sequence. Nothing is selected, so everything is differentiable; but a token sees all later ones, unless
/// the experts of a segment are weighed by the segment before it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Smear;

const PARAMETERS: &[ParameterSpec] = &[ParameterSpec::optional(
    "segment",
    ParameterType::Int(Interval::at_least(1.0)),
    DefaultValue::Absent("the sequence"),
    "merge for every so many tokens, by those before them (Lory), which is causal",
)];

impl RoutingStrategy for Smear {
    fn name(&self) -> &str {
        "smear"
    }

    fn summary(&self) -> &str {
        "a sequence, or each segment of it, goes through one expert that is the weighted mean of all"
    }

    fn parameters(&self) -> &[ParameterSpec] {
        PARAMETERS
    }

    fn references(&self) -> &[&str] {
        &[
            "Muqeeth et al. 2023, Soft Merging of Experts with Adaptive Routing, arXiv 2306.03745",
            "Zhong et al. 2024, Lory: Fully Differentiable Mixture-of-Experts for Autoregressive Language Model \
             Pre-training, arXiv 2405.03133 (segment)",
        ]
    }

    fn equations(&self) -> &str {
        "m = mean of x over the tokens of the sequence          [C]
p = softmax(W m)                                        [E]
y_t = f(x_t; sum_e p_e theta_e)                         one expert, of the mean of the parameters theta of all
segment: S   the sequence in segments of S tokens, with an expert each: m of a segment is the mean of the segment before
it, and 0 for the first, whose experts all weigh the same
Parameters: router.weight [E, C].
Cost per token: one expert, and 2 E / S for each of its parameters (2 E / T without segments) to merge them."
    }

    fn experts_per_token(&self, _: &Arguments, _: usize, _: usize) -> f64 {
        1.0
    }

    fn traits(&self, arguments: &Arguments) -> Traits {
        let compares = match arguments.get("segment") {
            Some(_) => Compares::EarlierTokens,
            None => Compares::Sequence,
        };
        Traits { compares, compares_when_sampling: compares, selects: false, nests: false, ..Traits::default() }
    }

    fn lower(&self, context: &mut RoutingContext<'_>, arguments: &Arguments) -> Routing {
        let (tokens, time, experts) = (context.token_count(), context.time().max(1), context.experts());
        let segment = arguments.get("segment").map(|_| arguments.size("segment").min(time));
        let length = segment.unwrap_or(time);
        let (sequences, segments) = (tokens / time, time.div_ceil(length));
        let runs = sequences * segments;
        let x = context.tokens();
        let b = context.builder();
        let offsets = beginnings(b, (sequences, time), (segments, length));
        let ones = b.fill(1.0, [tokens, 1]);
        let sums = b.op(Op::GroupedMatMulWeightGrad { precision: Precision::F32 }, &[ones, x, offsets]);
        let width = b.columns(x);
        let sums = b.reshape(sums, [runs, width]);
        // Only the last segment may be shorter, and nothing follows it.
        let mut means = b.scale(sums, 1.0 / length as f64);
        if segment.is_some() {
            means = of_the_one_before(b, means, segments);
        }
        let scores = context.linear("router", means, experts, false);
        let weights = context.builder().softmax(scores);
        Routing::new(Assignment::Merged { weights, offsets })
    }
}

/// Where each segment of the batch begins, and behind the last the number of tokens, i32 `[B S + 1]`.
fn beginnings(b: &mut Builder, (sequences, time): (usize, usize), (segments, length): (usize, usize)) -> Value {
    let starts = |b: &mut Builder, count: usize, step: usize, shape: [usize; 2]| {
        let starts = b.ramp(count, step as i32);
        let starts = b.to_float(starts);
        let starts = b.reshape(starts, shape);
        b.broadcast(starts, [sequences + 1, segments])
    };
    let of_sequence = starts(b, sequences + 1, time, [sequences + 1, 1]);
    let within = starts(b, segments, length, [1, segments]);
    let begin = b.add(of_sequence, within);
    let begin = b.reshape(begin, [(sequences + 1) * segments]);
    let begin = b.to_index(begin, (sequences + 1) * time);
    // One more than there are segments: the first of a sequence behind the batch begins where the batch ends.
    let numbers = b.ramp(sequences * segments + 1, 1);
    b.lookup(numbers, begin)
}

/// Rows of the segments as rows of those that follow; zeros for the first of a sequence.
fn of_the_one_before(b: &mut Builder, rows: Value, segments: usize) -> Value {
    let [count, width] = [0, 1].map(|axis| b.extent(rows, axis));
    let numbers = b.ramp(count, 1);
    let before = b.previous(numbers, segments);
    let before = b.to_float(before);
    let zero = b.fill(0.0, [count]);
    let is_there = b.binary(Binary::LessEqual, zero, before);
    let any = b.binary(Binary::Max, zero, before);
    let any = b.to_index(any, count);
    let moved = b.op(Op::Embed, &[any, rows]);
    let is_there = b.broadcast_last(is_there, width);
    b.mul(moved, is_there)
}

//! Tests of this module's parent.

use super::*;
use crate::family::linear::dot;
use crate::op::{AdamWAttrs, AttentionAttrs, CapacityPriority};
use crate::precision::Precision;
use crate::purpose::StateRole;
use crate::types::{DType, Real};
use crate::{Binary, Unary, random};

fn t(shape: &[usize], values: &[f64]) -> Tensor {
    Tensor::new(shape, Data::F64(values.to_vec())).unwrap()
}

fn ints(shape: &[usize], values: &[i32]) -> Tensor {
    Tensor::new(shape, Data::I32(values.to_vec())).unwrap()
}

/// Numbers without structure, the same in every run.
fn noise(shape: &[usize], seed: u32) -> Tensor {
    let keys = random::keys([17, 0, 0, 0], seed);
    let n: usize = shape.iter().product();
    Tensor::new(shape, Data::F64((0..n).map(|i| random::normal_at(keys, i as u32)).collect())).unwrap()
}

fn rng() -> Tensor {
    Tensor::ints(random::state(9, 4))
}

fn run(op: Op, operands: &[&Tensor]) -> Vec<Tensor> {
    evaluate_op(&op, operands).unwrap_or_else(|e| panic!("{op:?}: {e}"))
}

fn one(op: Op, operands: &[&Tensor]) -> Vec<f64> {
    run(op, operands)[0].to_f64()
}

#[track_caller]
fn close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let same = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * (1.0 + b.abs());
        assert!(same, "element {i}: {a} is not {b}\nfound    {found:?}\nexpected {expected:?}");
    }
}

/// Compares a gradient with central differences of `sum(seed * forward(x))` with respect to operand `wrt`.
#[track_caller]
fn matches_differences(forward: &dyn Fn(&Tensor) -> Vec<f64>, at: &Tensor, seed: &[f64], gradient: &[f64]) {
    let h = 1e-5;
    let x = at.to_f64();
    let expected: Vec<f64> = (0..x.len())
        .map(|i| {
            let shifted = |by: f64| {
                let mut x = x.clone();
                x[i] += by;
                dot(&forward(&t(at.shape(), &x)), seed)
            };
            (shifted(h) - shifted(-h)) / (2.0 * h)
        })
        .collect();
    close(gradient, &expected, 1e-8);
}

// ---- elementwise ----

#[test]
fn unary_values() {
    let x = t(&[3], &[-2.0, 0.0, 3.0]);
    let e = std::f64::consts::E;
    for (f, expected) in [
        (Unary::Neg, [2.0, 0.0, -3.0]),
        (Unary::Exp, [e.powi(-2), 1.0, e.powi(3)]),
        (Unary::Abs, [2.0, 0.0, 3.0]),
        (Unary::Sign, [-1.0, 0.0, 1.0]),
        (Unary::Relu, [0.0, 0.0, 3.0]),
        (Unary::Tanh, [-0.964_027_580_075_816_9, 0.0, 0.995_054_753_686_730_4]),
        (Unary::Sigmoid, [0.119_202_922_022_117_56, 0.5, 0.952_574_126_822_433_4]),
        (Unary::Softplus, [0.126_928_011_042_972_5, std::f64::consts::LN_2, 3.048_587_351_573_742]),
        (Unary::NormalCdf, [0.022_750_131_948_179_21, 0.5, 0.998_650_101_968_369_9]),
    ] {
        close(&one(Op::Unary(f), &[&x]), &expected, 1e-15);
    }
    let y = t(&[2], &[0.25, 4.0]);
    close(&one(Op::Unary(Unary::Log), &[&y]), &[-1.386_294_361_119_890_6, 1.386_294_361_119_890_6], 1e-15);
    assert_eq!(one(Op::Unary(Unary::Sqrt), &[&y]), [0.5, 2.0]);
    assert_eq!(one(Op::Unary(Unary::Recip), &[&y]), [4.0, 0.25]);
}

#[test]
fn stable_functions_keep_their_tails() {
    let x = t(&[4], &[-800.0, 800.0, -37.0, 37.0]);
    close(&one(Op::Unary(Unary::Softplus), &[&x]), &[0.0, 800.0, (-37f64).exp(), 37.0], 1e-15);
    let s = one(Op::Unary(Unary::Sigmoid), &[&x]);
    assert_eq!((s[0], s[1]), (0.0, 1.0));
    assert!((s[2] / (-37f64).exp() - 1.0).abs() < 1e-15);
    // Phi(-10) to 16 digits; 1 + erf would give 0.
    let tail = one(Op::Unary(Unary::NormalCdf), &[&t(&[1], &[-10.0])])[0];
    assert!((tail / 7.619_853_024_160_526e-24 - 1.0).abs() < 1e-14, "{tail:e}");
}

#[test]
fn nan_is_not_lost() {
    let nan = t(&[1], &[f64::NAN]);
    for f in Unary::ALL {
        let y = one(Op::Unary(f), &[&nan])[0];
        assert!(y.is_nan() || f == Unary::Sign, "{f:?}");
    }
    let one_ = t(&[1], &[1.0]);
    for f in [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Max, Binary::Min] {
        assert!(one(Op::Binary(f), &[&nan, &one_])[0].is_nan(), "{f:?}");
        assert!(one(Op::Binary(f), &[&one_, &nan])[0].is_nan(), "{f:?}");
    }
}

#[test]
fn binary_and_select() {
    let (a, b) = (t(&[3], &[1.0, 2.0, 3.0]), t(&[3], &[3.0, 2.0, 1.0]));
    for (f, expected) in [
        (Binary::Add, [4.0, 4.0, 4.0]),
        (Binary::Sub, [-2.0, 0.0, 2.0]),
        (Binary::Mul, [3.0, 4.0, 3.0]),
        (Binary::Div, [1.0 / 3.0, 1.0, 3.0]),
        (Binary::Max, [3.0, 2.0, 3.0]),
        (Binary::Min, [1.0, 2.0, 1.0]),
        (Binary::Less, [1.0, 0.0, 0.0]),
        (Binary::LessEqual, [1.0, 1.0, 0.0]),
        (Binary::Equal, [0.0, 1.0, 0.0]),
    ] {
        assert_eq!(one(Op::Binary(f), &[&a, &b]), expected, "{f:?}");
    }
    assert_eq!(one(Op::Select, &[&t(&[3], &[0.0, -1.0, 1.0]), &a, &b]), [3.0, 2.0, 3.0]);
}

#[test]
fn single_precision_operands_are_converted() {
    let a = Tensor::floats([0.1f32, 2.0]);
    let y = run(Op::Unary(Unary::Neg), &[&a]);
    assert_eq!(y[0].data(), &Data::F64(vec![-f64::from(0.1f32), -2.0]));
}

#[test]
fn broadcast_and_sum_are_transposes() {
    let x = t(&[2, 1], &[1.0, 2.0]);
    let y = run(Op::Broadcast { shape: vec![2, 2, 3] }, &[&x]);
    assert_eq!(y[0].to_f64(), [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
    assert_eq!(one(Op::Sum { axes: vec![0, 2] }, &[&y[0]]), [6.0, 12.0]);
    assert_eq!(one(Op::Sum { axes: vec![1] }, &[&y[0]]), [3.0; 6]);
    assert_eq!(one(Op::Sum { axes: vec![0, 1, 2] }, &[&y[0]]), [18.0]);
    let m = t(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(one(Op::Sum { axes: vec![0] }, &[&m]), [9.0, 12.0]);
    assert_eq!(one(Op::Sum { axes: vec![1] }, &[&m]), [3.0, 7.0, 11.0]);
    assert_eq!(one(Op::SumOfSquares, &[&m, &t(&[], &[3.0])]), [100.0]);
}

#[test]
fn empty_extents_are_harmless() {
    let x = t(&[0, 3], &[]);
    assert_eq!(one(Op::Sum { axes: vec![0] }, &[&x]), [0.0; 3]);
    assert_eq!(one(Op::Broadcast { shape: vec![2, 0, 3] }, &[&x]), []);
    assert_eq!(one(Op::Softmax, &[&t(&[3, 0], &[])]), []);
    assert_eq!(one(Op::LogSumExp, &[&t(&[2, 0], &[])]), [f64::NEG_INFINITY; 2]);
    let product = Op::MatMul { transpose_a: false, transpose_b: false, bias: false, precision: Precision::F32 };
    assert_eq!(one(product, &[&t(&[2, 0], &[]), &t(&[0, 3], &[])]), [0.0; 6]);
}

#[test]
fn reshape_keeps_integers() {
    let y = run(Op::Reshape { shape: vec![2, 2] }, &[&ints(&[4], &[1, 2, 3, 4])]);
    assert_eq!(y[0], ints(&[2, 2], &[1, 2, 3, 4]));
}

// ---- linear ----

#[test]
fn matrix_products_by_hand_and_in_every_layout() {
    let (a, b) = (t(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), t(&[3, 2], &[7.0, 8.0, 9.0, 10.0, 11.0, 12.0]));
    let at = t(&[3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    let bt = t(&[2, 3], &[7.0, 9.0, 11.0, 8.0, 10.0, 12.0]);
    let bias = t(&[2], &[0.5, -1.0]);
    for (ta, tb, a, b) in
        [(false, false, &a, &b), (true, false, &at, &b), (false, true, &a, &bt), (true, true, &at, &bt)]
    {
        let op = |bias| Op::MatMul { transpose_a: ta, transpose_b: tb, bias, precision: Precision::F32 };
        assert_eq!(one(op(false), &[a, b]), [58.0, 64.0, 139.0, 154.0]);
        assert_eq!(one(op(true), &[a, b, &bias]), [58.5, 63.0, 139.5, 153.0]);
    }
}

#[test]
fn products_round_their_factors_and_nothing_else() {
    // 1 + 2^-7 is a bfloat16 number; a quarter of its last place is not seen, and three quarters are carried.
    let (low, high, next) = (1.0078125 + 0.001953125, 1.0078125 + 0.005859375, 1.015625);
    let (a, b) = (t(&[1, 2], &[low, high]), t(&[2, 1], &[1.0, 3.0 + 1e-3]));
    let bias = t(&[1], &[1e-9]);
    let op = |bias| Op::MatMul { transpose_a: false, transpose_b: false, bias, precision: Precision::Bf16 };
    assert_eq!(one(op(false), &[&a, &b]), [1.0078125 + 3.0 * next]);
    assert_eq!(one(op(true), &[&a, &b, &bias]), [1.0078125 + 3.0 * next + 1e-9]);
    let offsets = ints(&[2], &[0, 1]);
    let op = Op::GroupedMatMul { transpose_b: false, bias: false, precision: Precision::Bf16 };
    assert_eq!(one(op, &[&a, &b.clone().with_shape([1, 2, 1]).unwrap(), &offsets]), [1.0078125 + 3.0 * next]);
    let dy = t(&[1, 1], &[high]);
    let op = Op::GroupedMatMulWeightGrad { precision: Precision::Bf16 };
    assert_eq!(one(op, &[&dy, &a, &offsets]), [next * 1.0078125, next * next]);
}

#[test]
fn grouped_products_skip_empty_experts_and_trailing_rows() {
    // Expert 0 has rows 0 and 1, expert 1 none, expert 2 row 2; row 3 belongs to nobody.
    let x = t(&[4, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let offsets = ints(&[4], &[0, 2, 2, 3]);
    let w = t(&[3, 1, 2], &[1.0, 10.0, 1e3, 1e3, 2.0, -1.0]);
    let bias = t(&[3, 1], &[100.0, 200.0, 300.0]);
    let op = |bias| Op::GroupedMatMul { transpose_b: true, bias, precision: Precision::F32 };
    assert_eq!(one(op(false), &[&x, &w, &offsets]), [21.0, 43.0, 4.0, 0.0]);
    assert_eq!(one(op(true), &[&x, &w, &offsets, &bias]), [121.0, 143.0, 304.0, 0.0]);
    // The same matrices stored [E, I, O].
    let w = w.with_shape([3, 2, 1]).unwrap();
    assert_eq!(
        one(Op::GroupedMatMul { transpose_b: false, bias: false, precision: Precision::F32 }, &[&x, &w, &offsets]),
        [21.0, 43.0, 4.0, 0.0]
    );

    let dy = t(&[4, 1], &[1.0, 2.0, 3.0, 4.0]);
    assert_eq!(
        one(Op::GroupedMatMulWeightGrad { precision: Precision::F32 }, &[&dy, &x, &offsets]),
        [7.0, 10.0, 0.0, 0.0, 15.0, 18.0]
    );
    assert_eq!(one(Op::GroupedSum, &[&x, &offsets]), [4.0, 6.0, 0.0, 0.0, 5.0, 6.0]);
}

#[test]
fn wrong_offsets_are_reported() {
    let x = t(&[2, 1], &[1.0, 2.0]);
    for offsets in [[0, 2, 1], [0, 1, 3], [1, 1, 2], [0, -1, 1], [-1, 0, 1]] {
        let found = evaluate_op(&Op::GroupedSum, &[&x, &Tensor::ints(offsets)]);
        assert!(matches!(found, Err(EvalError::Offsets { rows: 2, .. })), "{offsets:?}: {found:?}");
    }
}

// ---- norm ----

#[test]
fn layer_norm_by_hand_and_its_gradient() {
    let x = t(&[1, 4], &[1.0, 2.0, 3.0, 6.0]);
    let op = || Op::LayerNorm { epsilon: Real::new(0.0) };
    let y = run(op(), &[&x, &t(&[4], &[1.0, 1.0, 2.0, 1.0]), &t(&[4], &[0.0, 0.0, 0.0, 5.0])]);
    let s = 3.5f64.sqrt();
    close(&y[0].to_f64(), &[-2.0 / s, -1.0 / s, 0.0, 5.0 + 3.0 / s], 1e-15);
    close(&y[1].to_f64(), &[3.0], 0.0);
    close(&y[2].to_f64(), &[1.0 / s], 1e-15);

    let op = || Op::LayerNorm { epsilon: Real::new(1e-5) };
    let (x, gain, shift, dy) = (noise(&[2, 3, 7], 1), noise(&[7], 2), noise(&[7], 3), noise(&[2, 3, 7], 4));
    let y = run(op(), &[&x, &gain, &shift]);
    let g = run(Op::LayerNormGrad, &[&dy, &x, &gain, &y[1], &y[2]]);
    let seed = dy.to_f64();
    matches_differences(&|x| one(op(), &[x, &gain, &shift]), &x, &seed, &g[0].to_f64());
    matches_differences(&|gain| one(op(), &[&x, gain, &shift]), &gain, &seed, &g[1].to_f64());
    matches_differences(&|shift| one(op(), &[&x, &gain, shift]), &shift, &seed, &g[2].to_f64());
}

#[test]
fn rms_norm_by_hand_and_its_gradient() {
    let y = run(Op::RmsNorm { epsilon: Real::new(0.0) }, &[&t(&[2], &[3.0, 4.0]), &t(&[2], &[1.0, 2.0])]);
    close(&y[0].to_f64(), &[3.0 / 12.5f64.sqrt(), 8.0 / 12.5f64.sqrt()], 1e-15);
    close(&y[1].to_f64(), &[1.0 / 12.5f64.sqrt()], 1e-15);

    let op = || Op::RmsNorm { epsilon: Real::new(1e-6) };
    let (x, gain, dy) = (noise(&[5, 3], 1), noise(&[3], 2), noise(&[5, 3], 4));
    let y = run(op(), &[&x, &gain]);
    let g = run(Op::RmsNormGrad, &[&dy, &x, &gain, &y[1]]);
    let seed = dy.to_f64();
    matches_differences(&|x| one(op(), &[x, &gain]), &x, &seed, &g[0].to_f64());
    matches_differences(&|gain| one(op(), &[&x, gain]), &gain, &seed, &g[1].to_f64());
}

// ---- softmax family ----

#[test]
fn softmax_and_log_sum_exp() {
    let x = t(&[2, 3], &[0.0, 2f64.ln(), 5f64.ln(), 1000.0, f64::NEG_INFINITY, 1000.0]);
    close(&one(Op::Softmax, &[&x]), &[0.125, 0.25, 0.625, 0.5, 0.0, 0.5], 1e-15);
    close(&one(Op::LogSumExp, &[&x]), &[8f64.ln(), 1000.0 + 2f64.ln()], 1e-15);
    let extreme = t(&[3, 2], &[f64::NEG_INFINITY, f64::NEG_INFINITY, 0.0, f64::INFINITY, f64::NAN, 1.0]);
    close(&one(Op::LogSumExp, &[&extreme]), &[f64::NEG_INFINITY, f64::INFINITY, f64::NAN], 0.0);

    let (x, dy) = (noise(&[3, 17], 1), noise(&[3, 17], 2));
    let y = run(Op::Softmax, &[&x]);
    let dx = one(Op::SoftmaxGrad, &[&dy, &y[0]]);
    matches_differences(&|x| one(Op::Softmax, &[x]), &x, &dy.to_f64(), &dx);
}

// ---- attention ----

fn attrs(heads: usize, time: usize, dropout: f64) -> AttentionAttrs {
    AttentionAttrs { dropout: Real::new(dropout), key: 3, ..AttentionAttrs::causal(heads, time, 0.5) }
}

#[test]
fn attention_by_hand() {
    // One head of width 1, two positions. Position 0 sees itself; position 1 sees both, scores 0 and 0.5 * ln 9.
    let qkv = t(&[2, 3], &[4.0, 0.0, 10.0, 1.0, 9f64.ln(), 20.0]);
    let y = run(Op::Attention(attrs(1, 2, 0.0)), &[&qkv]);
    close(&y[0].to_f64(), &[10.0, (10.0 + 3.0 * 20.0) / 4.0], 1e-14);
    close(&y[1].to_f64(), &[0.0, 4f64.ln()], 1e-14);
}

#[test]
fn windows_and_sinks_by_hand() {
    // One head of width 1 without scores, three positions: a window of two sees the newest two, and a sink of ln 2 takes as
    // much as two keys.
    let qkv = t(&[3, 3], &[0.0, 0.0, 10.0, 0.0, 0.0, 20.0, 0.0, 0.0, 40.0]);
    let windowed = AttentionAttrs { window: 2, ..attrs(1, 3, 0.0) };
    let y = run(Op::Attention(windowed), &[&qkv]);
    close(&y[0].to_f64(), &[10.0, 15.0, 30.0], 1e-14);
    let with_sink = AttentionAttrs { sink: true, ..windowed };
    let y = run(Op::Attention(with_sink), &[&qkv, &t(&[1], &[2f64.ln()])]);
    close(&y[0].to_f64(), &[10.0 / 3.0, 30.0 / 4.0, 60.0 / 4.0], 1e-14);
    close(&y[1].to_f64(), &[3f64.ln(), 4f64.ln(), 4f64.ln()], 1e-14);
    // The newest two of three are what is kept in a cache of two.
    let op = Op::CachedAttention { heads: 1, scale: Real::new(0.5), sink: true };
    let cache = t(&[1, 2, 2], &[0.0, 10.0, 0.0, 20.0]);
    let y = run(op, &[&t(&[1, 3], &[0.0, 0.0, 40.0]), &cache, &Tensor::ints([2]), &t(&[1], &[2f64.ln()])]);
    close(&y[0].to_f64(), &[60.0 / 4.0], 1e-14);
}

#[test]
fn a_query_sees_as_many_positions_as_are_counted() {
    for (time, window) in [(1, 1), (7, 1), (7, 3), (7, 7), (17, 33), (33, usize::MAX)] {
        let a = AttentionAttrs { window, ..attrs(1, time, 0.0) };
        let seen: usize = (0..time).map(|query| query + 1 - a.first_seen(query)).sum();
        assert!((seen as f64 / time as f64 - a.seen_on_average()).abs() < 1e-12, "{time} {window}");
    }
}

#[test]
fn attention_gradient_with_and_without_dropout() {
    for (dropout, window, sink) in [(0.0, 9, false), (0.4, 9, false), (0.0, 2, true), (0.4, 3, true), (0.0, 1, false)] {
        let a = AttentionAttrs { window, sink, ..attrs(2, 5, dropout) };
        let (qkv, dy, rng) = (noise(&[10, 18], 1), noise(&[10, 6], 2), rng());
        let sinks = noise(&[2], 3);
        let random: Vec<&Tensor> = if dropout > 0.0 { vec![&rng] } else { vec![] };
        let extra: Vec<&Tensor> = sink.then_some(&sinks).into_iter().chain(random.iter().copied()).collect();
        let forward = |qkv: &Tensor| run(Op::Attention(a), &[&[qkv], &extra[..]].concat());
        let y = forward(&qkv);
        let dqkv = one(Op::AttentionGrad(a), &[&[&dy, &qkv, &y[0], &y[1]], &random[..]].concat());
        matches_differences(&|qkv| forward(qkv)[0].to_f64(), &qkv, &dy.to_f64(), &dqkv);
    }
}

#[test]
fn attention_dropout_uses_the_documented_element() {
    // All scores equal, values are one-hot per key: y shows which probabilities survived.
    let (b, h, time) = (2, 1, 3);
    let mut qkv = vec![0.0; b * time * 9];
    for n in 0..b * time {
        qkv[n * 9 + 6 + n % time] = 1.0;
    }
    let y = one(Op::Attention(attrs(h, time, 0.5)), &[&t(&[b * time, 9], &qkv), &rng()]);
    let keys = random::keys(random::state(9, 4), 3);
    for (n, row) in y.chunks(3).enumerate() {
        let (batch, query) = (n / time, n % time);
        for (key, &p) in row.iter().enumerate() {
            let element = ((batch * h) * time + query) * time + key;
            let kept = random::bits(keys, element as u32) >= random::dropout_threshold(0.5);
            let expected = if key <= query && kept { 2.0 / (query + 1) as f64 } else { 0.0 };
            assert!((p - expected).abs() < 1e-15);
        }
    }
}

#[test]
fn rotary_turns_pairs_and_back() {
    let op = |inverse| Op::Rotary { heads: 1, time: 2, base: Real::new(100.0), inverse, positions: false };
    // Head width 4: pairs (0, 2) with angle 1 and (1, 3) with angle 100^(-1/2) = 0.1 at position 1.
    let row = [1.0, 0.0, 0.0, 1.0];
    let qkv = t(&[2, 12], &[row, row, row, row, row, row].concat());
    let y = one(op(false), &[&qkv]);
    assert_eq!(y[..12], qkv.to_f64()[..12], "position 0 is not turned");
    let turned = [1f64.cos(), -(0.1f64.sin()), 1f64.sin(), 0.1f64.cos()];
    close(&y[12..], &[turned, turned, row].concat(), 1e-15);

    let x = noise(&[6, 36], 5);
    let op = |inverse, positions| Op::Rotary { heads: 3, time: 3, base: Real::new(10_000.0), inverse, positions };
    let turned = &run(op(false, false), &[&x])[0];
    close(&one(op(true, false), &[turned]), &x.to_f64(), 1e-14);

    // Positions of one's own: those that rows have anyhow, and others.
    let same = Tensor::ints([0, 1, 2, 0, 1, 2]);
    assert_eq!(run(op(false, true), &[&x, &same])[0], *turned);
    let other = Tensor::ints([5, 0, -3, 1, 1, 1000]);
    let turned = &run(op(false, true), &[&x, &other])[0];
    close(&one(op(true, true), &[turned, &other]), &x.to_f64(), 1e-12);
    assert_eq!(turned.to_f64()[36..72], x.to_f64()[36..72]);
}

// ---- embedding and loss ----

#[test]
fn embedding_and_its_gradient() {
    let table = t(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let ids = Tensor::ints([2, 0, 2]);
    assert_eq!(one(Op::Embed, &[&ids, &table]), [5.0, 6.0, 1.0, 2.0, 5.0, 6.0]);
    assert_eq!(one(Op::EmbedGrad { rows: 3 }, &[&ids, &table]), [3.0, 4.0, 0.0, 0.0, 6.0, 8.0]);
}

#[test]
fn token_ids_out_of_range_are_errors() {
    let table = t(&[3, 1], &[1.0, 2.0, 3.0]);
    for bad in [3, -1, i32::MIN, i32::MAX] {
        let ids = Tensor::ints([0, bad]);
        let error = evaluate_op(&Op::Embed, &[&ids, &table]).unwrap_err();
        assert_eq!(error, EvalError::Index { op: "embed", what: "token id", index: bad, position: 1, bound: 3 });
        let logits = t(&[2, 3], &[0.0; 6]);
        assert!(evaluate_op(&Op::CrossEntropy, &[&logits, &ids]).is_err());
        assert!(evaluate_op(&Op::EmbedGrad { rows: 3 }, &[&ids, &t(&[2, 1], &[0.0; 2])]).is_err());
    }
}

#[test]
fn cross_entropy_by_hand_and_its_gradient() {
    let logits = t(&[2, 3], &[0.0, 2f64.ln(), 5f64.ln(), 7.0, 7.0, 7.0]);
    let targets = Tensor::ints([1, 2]);
    let y = run(Op::CrossEntropy, &[&logits, &targets]);
    close(&y[0].to_f64(), &[(4f64.ln() + 3f64.ln()) / 2.0], 1e-15);
    close(&y[1].to_f64(), &[8f64.ln(), 7.0 + 3f64.ln()], 1e-15);

    let (logits, targets) = (noise(&[3, 17], 1), Tensor::ints([16, 0, 9]));
    let lse = &run(Op::CrossEntropy, &[&logits, &targets])[1];
    let g = one(Op::CrossEntropyGrad, &[&Tensor::scalar(2.5), &logits, lse, &targets]);
    matches_differences(&|x| one(Op::CrossEntropy, &[x, &targets]), &logits, &[2.5], &g);
}

// ---- random ----

#[test]
fn random_nodes_follow_the_generator() {
    let keys = random::keys(random::state(9, 4), 12);
    let normal = one(Op::RandomNormal { key: 12, shape: vec![3, 7] }, &[&rng()]);
    let uniform = one(Op::RandomUniform { key: 12, shape: vec![33] }, &[&rng()]);
    assert_eq!(normal[20], random::normal_at(keys, 20));
    assert_eq!(uniform[32], random::uniform(random::bits(keys, 32)));
    let x = t(&[1000], &[3.0; 1000]);
    let y = one(Op::Dropout { rate: Real::new(0.25), key: 12 }, &[&x, &rng()]);
    let dropped = y.iter().filter(|&&v| v == 0.0).count();
    assert!((200..300).contains(&dropped), "{dropped}");
    assert!(y.iter().all(|&v| v == 0.0 || v == 4.0));
}

// ---- selection ----

#[test]
fn top_k_breaks_ties_by_index_and_puts_nan_last() {
    let x = t(
        &[4, 4],
        &[
            1.0,
            3.0,
            3.0,
            2.0, //
            0.0,
            0.0,
            -0.0,
            0.0, //
            f64::NAN,
            f64::NEG_INFINITY,
            1.0,
            f64::NAN, //
            f64::INFINITY,
            5.0,
            f64::INFINITY,
            7.0,
        ],
    );
    let y = run(Op::TopK { k: 3, skip: 0 }, &[&x]);
    assert_eq!(y[1].as_i32().unwrap(), [1, 2, 3, 0, 1, 2, 2, 1, 0, 0, 2, 3]);
    assert_eq!(y[0].to_f64()[..3], [3.0, 3.0, 2.0]);
    assert_eq!(y[0].shape(), [4, 3]);
    // k = E is a stable sort of the whole row.
    let all = run(Op::TopK { k: 4, skip: 0 }, &[&x]);
    assert_eq!(all[1].as_i32().unwrap()[..4], [1, 2, 3, 0]);
    assert_eq!(all[1].as_i32().unwrap()[8..12], [2, 1, 0, 3]);
    // The third alone.
    let third = run(Op::TopK { k: 3, skip: 2 }, &[&x]);
    assert_eq!(third[1].as_i32().unwrap(), [3, 2, 0, 3]);
    assert_eq!(third[0].shape(), [4, 1]);
}

#[test]
fn gather_scatter_and_count_skip_minus_one() {
    let x = t(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let indices = ints(&[2, 2], &[2, -1, 0, 0]);
    assert_eq!(one(Op::GatherLast, &[&x, &indices]), [3.0, 0.0, 4.0, 4.0]);
    let values = t(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    assert_eq!(one(Op::ScatterLast { size: 3 }, &[&values, &indices]), [0.0, 0.0, 1.0, 7.0, 0.0, 0.0]);
    assert_eq!(one(Op::Count { size: 4 }, &[&indices]), [2.0, 0.0, 1.0, 0.0]);
}

#[test]
fn indices_out_of_range_are_skipped_like_minus_one() {
    let x = t(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let none = ints(&[2, 1], &[0, -1]);
    for bad in [3, -2, i32::MAX, i32::MIN] {
        let indices = ints(&[2, 1], &[0, bad]);
        let values = t(&[2, 1], &[8.0, 9.0]);
        let alike = |op: Op, operands: &[&Tensor], last: &[&Tensor]| {
            let with = |indices| [operands, &[indices], last].concat();
            assert_eq!(run(op.clone(), &with(&indices)), run(op, &with(&none)));
        };
        alike(Op::GatherLast, &[&x], &[]);
        alike(Op::ScatterLast { size: 3 }, &[&values], &[]);
        alike(Op::Count { size: 3 }, &[], &[]);
        alike(Op::SortByExpert { experts: 3, rows: 2 }, &[], &[]);
        for priority in CapacityPriority::ALL {
            let weights: &[&Tensor] = if priority == CapacityPriority::Probability { &[&values] } else { &[] };
            alike(Op::LimitCapacity { experts: 3, capacity: 1, priority }, &[], weights);
        }
        alike(Op::Lookup, &[], &[&Tensor::ints([7, 8, 9])]);
        // Slots and rows of two tokens.
        let order = Tensor::ints([0, bad]);
        assert_eq!(one(Op::Dispatch { weighted: false }, &[&x, &order, &none]), [1.0, 2.0, 3.0, 0.0, 0.0, 0.0]);
        let z = one(Op::Combine { weighted: false }, &[&x, &order, &indices]);
        assert_eq!(z, [1.0, 2.0, 3.0, 0.0, 0.0, 0.0]);
        assert_eq!(one(Op::CombineWeightGrad, &[&x, &x, &indices]), [14.0, 0.0]);
    }
}

#[test]
fn capacity_is_first_come_first_served_in_token_order() {
    let op = |capacity| Op::LimitCapacity { experts: 2, capacity, priority: CapacityPriority::Token };
    let experts = ints(&[4, 2], &[0, 1, 1, 0, 0, -1, 1, 0]);
    let kept = run(op(2), &[&experts]);
    assert_eq!(kept[0].as_i32().unwrap(), [0, 1, 1, 0, -1, -1, -1, -1]);
    let kept = run(op(9), &[&experts]);
    assert_eq!(kept[0], experts);
}

#[test]
fn capacity_may_serve_first_choices_or_likely_tokens_first() {
    let experts = ints(&[4, 2], &[1, 0, 0, 1, 0, -1, 0, 1]);
    let op = |capacity, priority| Op::LimitCapacity { experts: 2, capacity, priority };
    // Expert 0: first choices of tokens 1, 2, 3, second choice of token 0; expert 1: 0, then 1 and 3.
    let kept = run(op(2, CapacityPriority::Choice), &[&experts]);
    assert_eq!(kept[0].as_i32().unwrap(), [1, -1, 0, 1, 0, -1, -1, -1]);
    let kept = run(op(4, CapacityPriority::Choice), &[&experts]);
    assert_eq!(kept[0], experts);
    // Largest weights 0.5, 0.6, 0.9 (in the second slot), 0.6: token 2, then 1 and 3, which tie, then 0.
    let weights = t(&[4, 2], &[0.5, 0.5, 0.6, 0.4, 0.1, 0.9, 0.6, 0.2]);
    let kept = run(op(2, CapacityPriority::Probability), &[&experts, &weights]);
    assert_eq!(kept[0].as_i32().unwrap(), [1, -1, 0, 1, 0, -1, -1, -1]);
    let kept = run(op(1, CapacityPriority::Probability), &[&experts, &weights]);
    assert_eq!(kept[0].as_i32().unwrap(), [1, -1, -1, -1, 0, -1, -1, -1]);
    // NaN is the smallest weight of all.
    let weights = t(&[4, 2], &[0.5, 0.5, f64::NEG_INFINITY, f64::NAN, f64::NAN, f64::NAN, -1.0, -2.0]);
    let kept = run(op(2, CapacityPriority::Probability), &[&experts, &weights]);
    assert_eq!(kept[0].as_i32().unwrap(), [1, -1, 0, -1, -1, -1, 0, 1]);
}

#[test]
fn a_balanced_assignment_has_one_slot_per_token() {
    let scores = t(&[4, 2], &[1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 0.0]);
    let y = run(Op::BalancedAssignment, &[&scores]);
    assert_eq!(y[0], ints(&[4, 1], &[1, 1, 0, 0]));
}

// ---- indices ----

#[test]
fn ramps_and_conversions() {
    assert_eq!(run(Op::Ramp { length: 4, step: -3 }, &[])[0], Tensor::ints([0, -3, -6, -9]));
    assert_eq!(run(Op::Ramp { length: 0, step: 1 }, &[])[0].shape(), [0]);
    assert!(evaluate_op(&Op::Ramp { length: 3, step: i32::MAX }, &[]).is_err());
    assert_eq!(one(Op::ToFloat, &[&Tensor::ints([-1, 0, 7])]), [-1.0, 0.0, 7.0]);
    let x = t(&[10], &[0.0, -0.0, 0.9, 2.99, 3.0, -0.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e30]);
    let y = run(Op::ToIndex { size: 3 }, &[&x]);
    assert_eq!(y[0].as_i32().unwrap(), [0, 0, 0, 2, -1, -1, -1, -1, -1, -1]);
    let y = run(Op::ToIndex { size: 0 }, &[&x]);
    assert_eq!(y[0].as_i32().unwrap(), [-1; 10]);
}

#[test]
fn tables_and_neighbours() {
    let table = Tensor::ints([5, -1, 9]);
    let y = run(Op::Lookup, &[&ints(&[2, 3], &[0, 1, 2, 3, -1, 0]), &table]);
    assert_eq!(y[0], ints(&[2, 3], &[5, -1, 9, -1, -1, 5]));
    let y = run(Op::Previous { time: 3 }, &[&Tensor::ints([4, 5, 6, 7, 8, 9])]);
    assert_eq!(y[0], Tensor::ints([-1, 4, 5, -1, 7, 8]));
    assert!(evaluate_op(&Op::Previous { time: 4 }, &[&table]).is_err());
    assert!(evaluate_op(&Op::Previous { time: 0 }, &[&table]).is_err());
}

#[test]
fn nonzero_names_columns() {
    let mut b = crate::Builder::new();
    let x = b.input("x", TensorType::f32([2, 3]));
    let y = b.nonzero(x);
    b.output("y", y);
    let values = t(&[2, 3], &[0.5, 0.0, -1.0, -0.0, f64::NAN, 0.0]);
    let y = evaluate(&b.finish().unwrap(), &BTreeMap::from([("x".to_string(), values)])).unwrap();
    assert_eq!(y.outputs["y"], ints(&[2, 3], &[0, -1, 2, -1, 1, -1]));
}

#[test]
fn axes_change_places() {
    let x = noise(&[2, 3, 5], 3);
    let y = run(Op::Permute { axes: vec![2, 0, 1] }, &[&x]);
    assert_eq!(y[0].shape(), [5, 2, 3]);
    let (from, to) = (x.to_f64(), y[0].to_f64());
    for (a, b, c) in [(0, 0, 0), (1, 2, 4), (0, 1, 3), (1, 0, 2)] {
        assert_eq!(to[c * 6 + a * 3 + b], from[a * 15 + b * 5 + c]);
    }
    assert_eq!(run(Op::Permute { axes: vec![1, 2, 0] }, &[&y[0]])[0], x);
    assert_eq!(one(Op::Permute { axes: vec![] }, &[&Tensor::scalar(2.0)]), [2.0]);
    for axes in [vec![0, 1], vec![0, 1, 1], vec![0, 1, 3], vec![0, 1, 2, 3]] {
        assert!(evaluate_op(&Op::Permute { axes }, &[&x]).is_err());
    }
    assert_eq!(one(Op::StopGradient, &[&x]), from);
    let row = ints(&[1, 3], &[7, 8, 9]);
    assert_eq!(run(Op::Broadcast { shape: vec![2, 3] }, &[&row])[0], ints(&[2, 3], &[7, 8, 9, 7, 8, 9]));
}

// ---- dispatch and combine ----

#[test]
fn sorting_is_stable_and_leaves_dropped_slots_out() {
    let experts = ints(&[3, 2], &[2, 0, -1, 2, 0, 2]);
    let s = run(Op::SortByExpert { experts: 4, rows: 6 }, &[&experts]);
    assert_eq!(s[0].as_i32().unwrap(), [0, 2, 2, 5, 5]);
    assert_eq!(s[1].as_i32().unwrap(), [1, 4, 0, 3, 5, -1]);
    assert_eq!(s[2].as_i32().unwrap(), [2, 0, -1, 3, 1, 4]);
    assert_eq!(s[2].shape(), [3, 2]);
    // What does not fit is dropped, from the last expert on.
    let s = run(Op::SortByExpert { experts: 4, rows: 3 }, &[&experts]);
    assert_eq!(s[0].as_i32().unwrap(), [0, 2, 2, 3, 3]);
    assert_eq!(s[1].as_i32().unwrap(), [1, 4, 0]);
    assert_eq!(s[2].as_i32().unwrap(), [2, 0, -1, -1, 1, -1]);
    for rows in [0, 7] {
        assert!(evaluate_op(&Op::SortByExpert { experts: 4, rows }, &[&experts]).is_err());
    }
}

#[test]
fn dispatch_and_combine_by_hand() {
    let experts = ints(&[3, 2], &[2, 0, -1, 2, 0, 2]);
    let s = run(Op::SortByExpert { experts: 4, rows: 6 }, &[&experts]);
    let x = t(&[3, 1], &[10.0, 20.0, 30.0]);
    let weights = t(&[3, 2], &[0.5, 2.0, 9.0, 3.0, 4.0, 5.0]);
    let rows = run(Op::Dispatch { weighted: false }, &[&x, &s[1], &s[2]]);
    assert_eq!(rows[0].to_f64(), [10.0, 30.0, 10.0, 20.0, 30.0, 0.0]);
    let weighted = run(Op::Dispatch { weighted: true }, &[&x, &s[1], &s[2], &weights]);
    assert_eq!(weighted[0].to_f64(), [20.0, 120.0, 5.0, 60.0, 150.0, 0.0]);
    assert_eq!(one(Op::Combine { weighted: false }, &[&rows[0], &s[1], &s[2]]), [20.0, 20.0, 60.0]);
    assert_eq!(one(Op::Combine { weighted: true }, &[&rows[0], &s[1], &s[2], &weights]), [25.0, 60.0, 270.0]);
    let dz = t(&[3, 1], &[1.0, 2.0, 3.0]);
    assert_eq!(one(Op::CombineWeightGrad, &[&dz, &rows[0], &s[2]]), [10.0, 10.0, 0.0, 40.0, 90.0, 90.0]);
}

#[test]
fn dispatch_and_combine_are_transposes_at_awkward_sizes() {
    for (n, k, experts, c) in [(1, 1, 1, 1), (7, 2, 3, 3), (17, 3, 5, 7), (33, 1, 33, 1), (3, 4, 4, 17)] {
        let logits = noise(&[n, experts], 1);
        let chosen = &run(Op::TopK { k, skip: 0 }, &[&logits])[1];
        let kept =
            &run(Op::LimitCapacity { experts, capacity: n.div_ceil(2), priority: CapacityPriority::Choice }, &[chosen])
                [0];
        let s = run(Op::SortByExpert { experts, rows: n * k }, &[kept]);
        let (x, rows, w) = (noise(&[n, c], 2), noise(&[n * k, c], 3), noise(&[n, k], 4));
        let down = one(Op::Dispatch { weighted: true }, &[&x, &s[1], &s[2], &w]);
        let up = one(Op::Combine { weighted: true }, &[&rows, &s[1], &s[2], &w]);
        // <dispatch(x), rows> = <x, combine(rows)>
        let (left, right) = (dot(&down, &rows.to_f64()), dot(&x.to_f64(), &up));
        assert!((left - right).abs() < 1e-12 * (1.0 + left.abs()), "{left} {right}");
        let dw = one(Op::CombineWeightGrad, &[&x, &rows, &s[2]]);
        let forward = |w: &Tensor| one(Op::Combine { weighted: true }, &[&rows, &s[1], &s[2], w]);
        matches_differences(&forward, &w, &x.to_f64(), &dw);
    }
}

// ---- optimiser ----

#[test]
fn adamw_follows_torch() {
    // torch.optim.AdamW(lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.5), first step, p = 2, grad = 3:
    // p = 2 * (1 - 0.05) - 0.1 * 3 / (3 + 1e-8)
    let attrs = AdamWAttrs {
        beta1: Real::new(0.9),
        beta2: Real::new(0.99),
        epsilon: Real::new(1e-8),
        weight_decay: Real::new(0.5),
    };
    let (p, g, zero) = (t(&[1], &[2.0]), t(&[1], &[3.0]), t(&[1], &[0.0]));
    let hyper = t(&[3], &[0.1, 1.0 - 0.9, 1.0 - 0.99]);
    let y = run(Op::AdamW(attrs), &[&p, &g, &zero, &zero, &hyper]);
    close(&y[0].to_f64(), &[1.9 - 0.1 * 3.0 / (3.0 + 1e-8)], 1e-14);
    close(&y[1].to_f64(), &[0.3], 1e-15);
    close(&y[2].to_f64(), &[0.09], 1e-15);
    let scaled = run(Op::AdamW(attrs), &[&p, &t(&[1], &[30.0]), &zero, &zero, &hyper, &Tensor::scalar(0.1)]);
    close(&scaled[0].to_f64(), &y[0].to_f64(), 1e-14);
    close(&scaled[2].to_f64(), &y[2].to_f64(), 1e-14);
    // A weight without gradient and moments only decays.
    let still = run(Op::AdamW(attrs), &[&p, &zero, &zero, &zero, &hyper]);
    close(&still[0].to_f64(), &[1.9], 1e-15);
}

#[test]
fn updates_in_place_take_the_place_of_tensor_and_moments() {
    let zero = Real::new(0.0);
    let op = Op::AdamW(AdamWAttrs { beta1: zero, beta2: zero, epsilon: zero, weight_decay: zero });
    let places: Vec<usize> = (0..3).filter_map(|result| op.in_place(result)).collect();
    assert_eq!(places, [0, 2, 3]);
}

// ---- graphs ----

fn small_graph() -> Graph {
    let mut g = Graph::new();
    let add = |g: &mut Graph, op, operands: &[Value]| {
        let id = g.add(op, operands, "", None).unwrap();
        g.value(id)
    };
    let ty = TensorType::f32([2]);
    let x = add(&mut g, Op::Input { name: "x".into(), ty: ty.clone() }, &[]);
    let w = add(&mut g, Op::Parameter { name: "w".into(), ty: ty.clone() }, &[]);
    let s = add(&mut g, Op::State { name: "s".into(), role: StateRole::Router, ty }, &[]);
    let y = add(&mut g, Op::Binary(Binary::Mul), &[x, w]);
    let next = add(&mut g, Op::Binary(Binary::Add), &[s, y]);
    g.set_output("y", y);
    g.set_output("x again", x);
    g.set_update("s", next);
    g
}

fn bindings() -> BTreeMap<String, Tensor> {
    [("x", [1.0, 2.0]), ("w", [3.0, 4.0]), ("s", [0.5, 0.25])]
        .into_iter()
        .map(|(n, v)| (n.to_string(), Tensor::floats(v.map(|v| v as f32))))
        .collect()
}

#[test]
fn graphs_by_name() {
    let found = evaluate(&small_graph(), &bindings()).unwrap();
    assert_eq!(found.outputs["y"], t(&[2], &[3.0, 8.0]));
    assert_eq!(found.outputs["x again"], t(&[2], &[1.0, 2.0]));
    assert_eq!(found.updates["s"], t(&[2], &[3.5, 8.25]));
}

#[test]
fn graphs_report_what_is_missing() {
    let g = small_graph();
    let mut without = bindings();
    without.remove("w");
    assert_eq!(evaluate(&g, &without).unwrap_err().to_string(), "%parameter: parameter `w` has no value");
    let mut wrong = bindings();
    wrong.insert("x".into(), Tensor::ints([1, 2]));
    let error = evaluate(&g, &wrong).unwrap_err().to_string();
    assert_eq!(error, "%input: `x` is f32[2], but the value given is i32[2]");
    let mut dangling = small_graph();
    let nothing = dangling.unchecked(99, 0);
    dangling.set_output("z", nothing);
    assert_eq!(evaluate(&dangling, &bindings()), Err(EvalError::Dangling { name: "z".into() }));
}

#[test]
fn hostile_sizes_are_refused() {
    let huge = TensorType::f32([1 << 40, 1 << 40]);
    let fill = Op::Fill { value: Real::new(0.0), ty: huge.clone() };
    assert_eq!(evaluate_op(&fill, &[]), Err(EvalError::TooLarge { ty: huge }));
    let empty_rows = TensorType { dtype: DType::F32, shape: vec![usize::MAX, 2, 0] };
    let x = Tensor::zeros(&empty_rows);
    assert!(matches!(evaluate_op(&Op::Softmax, &[&x]), Err(EvalError::TooLarge { .. })));
    assert!(evaluate_op(&Op::SortByExpert { experts: usize::MAX, rows: 1 }, &[&ints(&[1, 1], &[0])]).is_err());
    let limit = Op::LimitCapacity { experts: usize::MAX, capacity: 1, priority: CapacityPriority::Token };
    let kept = run(limit, &[&ints(&[2, 1], &[7, 7])]);
    assert_eq!(kept[0].as_i32().unwrap(), [7, -1]);
}

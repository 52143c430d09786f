//! What the routing strategies promise, with the reference evaluator. Several tests are mistakes that other systems have
//! made: noise in evaluation, jitter that reaches the experts, tables that are not saved, and so on.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod layers;

use std::collections::BTreeMap;

use layers::{bindings, layers, model, numbers, options};
use moec_ir::{Builder, Data, Evaluation, Op, Tensor, TensorType, Unary, Value, evaluate, random};
use moec_model::{LowerOptions, Lowered, Mode, NoisePolicy, StateInit, TrainingText, lower, lower_layer};

const WIDTH: usize = 6;
const TOKENS: usize = 10;

/// A `moe` layer lowered with what its router decides as outputs, for two sequences of five tokens.
fn lowered(moe: &str, mode: Mode) -> Lowered {
    let layer = &layers(WIDTH, moe)[0];
    lower_layer(layer, &LowerOptions { routes: true, ..options(mode, 2) }, TOKENS / 2).unwrap()
}

/// Numbers for everything; tables of routers are made from a text of the tokens 0 to 6.
fn values(lowered: &Lowered) -> BTreeMap<String, Tensor> {
    let mut values = bindings(&lowered.graph);
    let tokens: Vec<i32> = (0..700).map(|i| if i % 3 == 0 { 2 } else { (i * i + i) % 7 }).collect();
    let embeddings = |_: &str| Ok(numbers("vectors", &TensorType::f32([7, 4])));
    let text = TrainingText { tokens: &tokens, vocab: 7, embeddings: &embeddings };
    for (name, init) in &lowered.states {
        values.insert(name.clone(), init.resolve(&text).unwrap());
    }
    values
}

fn run(lowered: &Lowered, values: &BTreeMap<String, Tensor>) -> Evaluation {
    evaluate(&lowered.graph, values).unwrap()
}

fn evaluated(moe: &str, mode: Mode) -> Evaluation {
    let lowered = lowered(moe, mode);
    run(&lowered, &values(&lowered))
}

fn ints(evaluation: &Evaluation, name: &str) -> Vec<i32> {
    evaluation.outputs[name].as_i32().unwrap().to_vec()
}

fn floats(evaluation: &Evaluation, name: &str) -> Vec<f64> {
    evaluation.outputs[name].to_f64()
}

/// Result of the first node of a kind.
fn first(lowered: &Lowered, wanted: impl Fn(&Op) -> bool) -> Option<Value> {
    let graph = &lowered.graph;
    graph.ids().find(|&id| wanted(&graph.node(id).op)).map(|id| graph.value(id))
}

/// The layer with one more output.
fn observed(lowered: &Lowered, value: Value) -> Lowered {
    let mut b = Builder::extend(lowered.graph.clone());
    b.output("observed", value);
    Lowered { graph: b.finish().unwrap(), ..lowered.clone() }
}

#[test]
fn jitter_reaches_the_router_and_not_the_experts() {
    let lowered = lowered("moe(experts: 4 * mlp(hidden: 5), route: switch(jitter: 0.9))", Mode::Train);
    let dispatch = first(&lowered, |op| matches!(op, Op::Dispatch { .. })).unwrap();
    let graph = &lowered.graph;
    assert_eq!(graph.operands(dispatch.node)[0], graph.value(graph.find("x").unwrap()));
    // The router sees something else.
    let product = first(&lowered, |op| matches!(op, Op::MatMul { .. })).unwrap();
    assert_ne!(graph.operands(product.node)[0], graph.operands(dispatch.node)[0]);
}

#[test]
fn evaluation_is_deterministic_unless_noise_is_asked_for() {
    for route in ["switch", "gshard", "noisy_top_k(k: 2)", "sigmoid_top_k(k: 2)", "base", "dselect_k(k: 2)", "hash"] {
        let lowered = lowered(&format!("moe(experts: 4 * mlp(hidden: 5), route: {route})"), Mode::Evaluate);
        assert!(lowered.graph.find("rng").is_none(), "{route}");
    }
}

#[test]
fn gshard_drops_its_second_expert_in_proportion_to_its_weight() {
    let moe = "moe(experts: 4 * mlp(hidden: 5), route: gshard)";
    let lowered = lowered(moe, Mode::Train);
    let mut values = values(&lowered);
    let (mut kept, mut expected, mut draws) = (0.0, 0.0, 0.0);
    for step in 0..400 {
        values.insert("rng".into(), Tensor::ints(random::state(9, step)));
        let result = run(&lowered, &values);
        let (chosen, weights) = (ints(&result, "experts.moe"), floats(&result, "weights.moe"));
        for (slot, weight) in chosen.chunks(2).zip(weights.chunks(2)) {
            assert!(slot[0] >= 0 && (weight[0] + weight[1] - 1.0).abs() < 1e-12);
            kept += f64::from(u8::from(slot[1] >= 0));
            expected += (2.0 * weight[1]).min(1.0);
            draws += 1.0;
        }
    }
    assert!((kept / draws - expected / draws).abs() < 0.02, "{kept} and {expected} of {draws}");
    // In evaluation both are always used.
    assert!(ints(&evaluated(moe, Mode::Evaluate), "experts.moe").iter().all(|&e| e >= 0));
}

#[test]
fn one_expert_and_all_experts_work_with_every_router() {
    for route in [
        "softmax_top_k(k: 1, normalize: all)",
        "noisy_top_k(k: 1, epsilon: 0)",
        "switch",
        "sigmoid_top_k(k: 1)",
        "dselect_k(k: 1)",
        "hash",
        "hash(by: bigram)",
        "base",
        "expert_choice(capacity_factor: 50)",
        "soft_moe(slots: 3)",
    ] {
        let moe = format!("moe(experts: 1 * mlp(hidden: 5), route: {route}, balance: [importance], allow: lookahead)");
        let y = floats(&evaluated(&moe.replace("balance: [importance], ", ""), Mode::Train), "y");
        assert!(y.iter().all(|v| v.is_finite()), "{route}");
    }
    for k in [2, 3] {
        let result =
            evaluated(&format!("moe(experts: {k} * mlp(hidden: 5), route: sigmoid_top_k(k: {k}))"), Mode::Train);
        let weights = floats(&result, "weights.moe");
        assert!(weights.chunks(k).all(|row| (row.iter().sum::<f64>() - 1.0).abs() < 1e-12));
    }
}

#[test]
fn a_huge_capacity_drops_nothing_and_a_small_one_is_kept_to() {
    for order in ["token", "choice", "probability", "gate", "random"] {
        for (factor, bound) in [(100.0, usize::MAX), (0.5, 2)] {
            let moe = format!(
                "moe(experts: 5 * mlp(hidden: 5), route: softmax_top_k(k: 2), allow: lookahead,
                     capacity: capacity(factor: {factor:?}, minimum: 1, order: {order}))"
            );
            let result = evaluated(&moe, Mode::Train);
            let kept = ints(&result, "kept.moe");
            for expert in 0..5 {
                assert!(kept.iter().filter(|&&e| e == expert).count() <= bound, "{order}");
            }
            let dropped = floats(&result, "dropped.moe")[0];
            let expected = kept.iter().filter(|&&e| e < 0).count() as f64 / kept.len() as f64;
            assert!((dropped - expected).abs() < 1e-12, "{order}: {dropped} {expected}");
            assert_eq!(bound == usize::MAX, expected == 0.0, "{order}");
        }
    }
}

/// Who is kept, against the rule in plain Rust: by the largest probability of a token, by the weight of a choice, and in parts
/// of the batch by themselves.
#[test]
fn who_is_kept_follows_from_the_order() {
    for (order, sequences) in [("token", 1), ("choice", 1), ("probability", 9), ("gate", 9), ("gate", 1), ("token", 9)]
    {
        for k in [1, 2] {
            let some = if sequences == 1 { ", sequences: 1" } else { "" };
            let moe = format!(
                "moe(experts: 3 * mlp(hidden: 5), route: softmax_top_k(k: {k}), allow: lookahead, balance: [switch],
                     capacity: capacity(factor: 0.7, minimum: 1, rounding: up, order: {order}{some}))"
            );
            let lowered = lowered(&moe, Mode::Train);
            let values = values(&lowered);
            let result = run(&lowered, &values);
            let (chosen, kept) = (ints(&result, "experts.moe"), ints(&result, "kept.moe"));
            let weights = floats(&result, "weights.moe");
            let [x, w, b] = ["x", "moe.router.weight", "moe.router.bias"].map(|name| values[name].to_f64());
            // The largest probability of a token, of all experts.
            let sure = |n: usize| {
                let token = &x[n * WIDTH..(n + 1) * WIDTH];
                let score = |e: usize| (0..WIDTH).map(|i| w[e * WIDTH + i] * token[i]).sum::<f64>() + b[e];
                let sum: f64 = (0..3).map(|e| score(e).exp()).sum();
                (0..3).map(|e| score(e).exp() / sum).fold(0.0, f64::max)
            };
            let part = if sequences == 1 { TOKENS / 2 } else { TOKENS };
            let places = ((part * k) as f64 / 3.0 * 0.7).ceil() as usize;
            let mut expected = vec![-1; chosen.len()];
            for start in (0..TOKENS).step_by(part) {
                let mut slots: Vec<usize> = (start * k..(start + part).min(TOKENS) * k).collect();
                match order {
                    "choice" => slots.sort_by_key(|slot| slot % k),
                    "gate" => slots.sort_by(|&a, &b| weights[b].total_cmp(&weights[a])),
                    "probability" => {
                        let before = |a: usize, b: usize| sure(b / k).total_cmp(&sure(a / k));
                        slots.sort_by(|&a, &b| (a % k).cmp(&(b % k)).then(before(a, b)));
                    }
                    _ => {}
                }
                let mut counts = [0; 3];
                for slot in slots {
                    let expert = chosen[slot] as usize;
                    counts[expert] += 1;
                    if counts[expert] <= places {
                        expected[slot] = chosen[slot];
                    }
                }
            }
            assert_eq!(kept, expected, "{moe}");
        }
    }
}

#[test]
fn what_is_left_after_a_drop_is_scaled_up_if_asked() {
    let moe = |renormalise: &str| {
        format!(
            "moe(experts: 4 * mlp(hidden: 5), route: softmax_top_k(k: 2),
                 capacity: capacity(factor: 0.6, minimum: 1, renormalise: {renormalise}))"
        )
    };
    let (before, after) = (evaluated(&moe("before"), Mode::Train), evaluated(&moe("after"), Mode::Train));
    assert_eq!(ints(&before, "kept.moe"), ints(&after, "kept.moe"));
    let sums = |e: &Evaluation| floats(e, "gates.moe").chunks(4).map(|row| row.iter().sum()).collect::<Vec<f64>>();
    let mut scaled = 0;
    for (before, after) in sums(&before).into_iter().zip(sums(&after)) {
        assert!(before <= 1.0 + 1e-12 && (after.abs() < 1e-12 || (after - 1.0).abs() < 1e-9), "{before} {after}");
        scaled += usize::from(before > 0.0 && before < 0.999);
    }
    assert!(scaled > 0, "no token lost one of its two experts");
}

#[test]
fn weights_that_cancel_are_not_blown_up() {
    // Gates 1 and -1 sum to 0, and nothing is dropped.
    let text = "router signed() { let l = linear(x, experts)  return dense_gates(tanh(l)) }
        model m { context 5  vocab 7  embed(width: 6)
          moe(experts: 4 * mlp(hidden: 5), route: signed, capacity: capacity(factor: 8.0, renormalise: after))
          unembed }";
    let layer = &model(text).layers[1];
    let lowered = lower_layer(layer, &LowerOptions { routes: true, ..options(Mode::Train, 2) }, TOKENS / 2).unwrap();
    let result = run(&lowered, &values(&lowered));
    let (weights, gates) = (floats(&result, "weights.moe"), floats(&result, "gates.moe"));
    assert!(weights.iter().zip(&gates).all(|(a, b)| (a - b).abs() < 1e-12), "{weights:?} {gates:?}");
}

#[test]
fn a_table_of_pairs_that_cannot_be_numbered_is_refused() {
    let layer = &layers(WIDTH, "moe(experts: 3 * mlp(hidden: 4), route: hash(by: bigram))")[0];
    let lower = |vocab| lower_layer(layer, &LowerOptions { vocab, ..options(Mode::Train, 1) }, 3);
    assert!(lower(4095).is_ok());
    let refused = lower(4096).unwrap_err().to_string();
    assert!(refused.contains("pairs of 4096 tokens"), "{refused}");
}

#[test]
fn positions_are_those_of_the_sequence_where_only_some_tokens_go_through() {
    let body =
        "mixture_of_depths(capacity: 0.4) { residual { moe(experts: 3 * mlp(hidden: 4), route: hash(by: position)) } }";
    for mode in [Mode::Train, Mode::Evaluate] {
        let lowered = lowered(body, mode);
        assert_eq!(lowered.states.len(), 1);
        assert_eq!(values(&lowered)["mixture_of_depths.moe.table"].shape(), [5]);
        assert!(floats(&run(&lowered, &values(&lowered)), "y").iter().all(|v| v.is_finite()));
    }
}

#[test]
fn the_balance_bias_selects_and_does_not_weigh() {
    let moe = "moe(experts: 4 * mlp(hidden: 5), route: sigmoid_top_k(k: 2, bias_rate: 0.25))";
    let lowered = lowered(moe, Mode::Train);
    let mut values = values(&lowered);
    values.insert("moe.balance_bias".into(), Tensor::floats(vec![0.0; 4]));
    let plain = run(&lowered, &values);
    // The same shift of all biases changes nothing at all.
    values.insert("moe.balance_bias".into(), Tensor::floats(vec![7.0; 4]));
    let shifted = run(&lowered, &values);
    assert_eq!(plain.outputs["experts.moe"], shifted.outputs["experts.moe"]);
    assert_eq!(plain.outputs["weights.moe"], shifted.outputs["weights.moe"]);
    // A large one draws every token, with the weights of the sigmoids.
    values.insert("moe.balance_bias".into(), Tensor::floats(vec![0.0, 5.0, 0.0, 0.0]));
    let drawn = run(&lowered, &values);
    assert!(ints(&drawn, "experts.moe").chunks(2).all(|slot| slot[0] == 1));
    assert!(floats(&drawn, "weights.moe").iter().all(|w| *w < 1.0));
    // One update: up or down by the rate, less the mean of the changes.
    let counts: Vec<f64> =
        (0..4).map(|e| ints(&plain, "experts.moe").iter().filter(|&&x| x == e).count() as f64).collect();
    let mean = counts.iter().sum::<f64>() / 4.0;
    let change: Vec<f64> = counts.iter().map(|n| if *n == mean { 0.0 } else { 0.25 * (mean - n).signum() }).collect();
    let drift = change.iter().sum::<f64>() / 4.0;
    let expected: Vec<f64> = change.iter().map(|c| c - drift).collect();
    let updated = plain.updates["moe.balance_bias"].to_f64();
    assert!(updated.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-7), "{updated:?} {expected:?}");
    assert!(evaluated(moe, Mode::Evaluate).updates.is_empty());
}

#[test]
fn a_group_left_out_is_left_out_even_if_all_scores_are_negative() {
    let moe = "moe(experts: 6 * mlp(hidden: 5), route: sigmoid_top_k(k: 2, groups: 3, groups_kept: 1))";
    let lowered = lowered(moe, Mode::Evaluate);
    let mut values = values(&lowered);
    // All s + b below 0: with 0 in place of the groups left out, those would be chosen.
    values.insert("moe.balance_bias".into(), Tensor::floats(vec![-3.0, -3.5, -4.0, -4.5, -5.0, -5.5]));
    let chosen = ints(&run(&lowered, &values), "experts.moe");
    assert!(chosen.chunks(2).all(|slot| slot.iter().all(|&e| (0..2).contains(&e))), "{chosen:?}");
}

/// Groups are compared by their largest score, or by the sum of their two largest, of a softmax too.
#[test]
fn groups_are_compared_by_what_is_said() {
    let best = |row: &[f64], count: usize| {
        let mut row = row.to_vec();
        row.sort_by(|a, b| b.total_cmp(a));
        row[..count].iter().sum::<f64>()
    };
    let mut differ = 0;
    for (score, count) in [("best", 1), ("best_two", 2)] {
        for normalize in ["selected", "all"] {
            let route = format!(
                "softmax_top_k(k: 2, normalize: {normalize}, groups: 2, groups_kept: 1, group_score: {score}, bias: false)"
            );
            let lowered = lowered(&format!("moe(experts: 6 * mlp(hidden: 5), route: {route})"), Mode::Evaluate);
            let values = values(&lowered);
            let result = run(&lowered, &values);
            let (x, w) = (values["x"].to_f64(), values["moe.router.weight"].to_f64());
            let (chosen, weights) = (ints(&result, "experts.moe"), floats(&result, "weights.moe"));
            for (n, token) in x.chunks(WIDTH).enumerate() {
                let product = |row: &[f64]| row.iter().zip(token).map(|(a, b)| a * b).sum::<f64>();
                let scores: Vec<f64> = w.chunks(WIDTH).map(product).collect();
                let group = if best(&scores[..3], count) >= best(&scores[3..], count) { 0..3 } else { 3..6 };
                let other = if best(&scores[..3], 3 - count) >= best(&scores[3..], 3 - count) { 0..3 } else { 3..6 };
                differ += usize::from(group != other);
                let mut order: Vec<usize> = group.collect();
                order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
                let slots = n * 2..n * 2 + 2;
                let ours: Vec<usize> = chosen[slots.clone()].iter().map(|&e| e as usize).collect();
                assert_eq!(ours, order[..2], "{route}");
                let among: Vec<usize> = if normalize == "all" { (0..6).collect() } else { order[..2].to_vec() };
                let sum: f64 = among.iter().map(|&e| scores[e].exp()).sum();
                for (weight, e) in weights[slots].iter().zip(&order) {
                    assert!((weight - scores[*e].exp() / sum).abs() < 1e-9, "{route}");
                }
            }
        }
    }
    assert!(differ > 0, "the two ways never differ");
}

/// What an expert is given is multiplied by the weight: with experts that are linear it is the same as multiplying what they
/// give, and a relu between lets positive weights through, but a bias does not.
#[test]
fn weights_are_on_the_input_where_it_is_said() {
    for k in [1, 2, 3] {
        let y = |expert: &str, weigh: &str| {
            let route = format!("softmax_top_k(k: {k}, normalize: all)");
            let moe = format!("moe(experts: 3 * {expert}, route: {route}, weigh: {weigh})");
            floats(&evaluated(&moe, Mode::Train), "y")
        };
        let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9);
        let without = "mlp(hidden: 5, bias: false)";
        assert!(near(&y(without, "input"), &y(without, "output")), "{k}");
        let with = "mlp(hidden: 5)";
        assert!(!near(&y(with, "input"), &y(with, "output")), "{k}");
    }
}

#[test]
fn sigmoids_weigh_as_they_are_where_nothing_is_normalised() {
    let route = "sigmoid_top_k(k: 1, normalize: none, scale: 2.0)";
    let result = evaluated(&format!("moe(experts: 3 * mlp(hidden: 5), route: {route})"), Mode::Evaluate);
    let weights = floats(&result, "weights.moe");
    assert!(weights.iter().all(|w| *w > 0.0 && *w < 2.0));
    assert!(weights.windows(2).any(|pair| pair[0] != pair[1]), "with one choice its share would always be 1");
}

#[test]
fn selectors_become_exactly_sparse_and_never_divide_by_zero() {
    let moe = "moe(experts: 6 * mlp(hidden: 5), route: dselect_k(k: 2, gating: static, gamma: 0.5))";
    let lowered = lowered(moe, Mode::Train);
    let mut values = values(&lowered);
    let mut select = |codes: [[f64; 3]; 2]| {
        let logits = Tensor::new([2, 3], Data::F64(codes.concat())).unwrap();
        values.insert("moe.selector.logits".into(), logits);
        run(&lowered, &values)
    };
    // Beyond gamma/2 on either side: codes 101 and 010, experts 5 and 2.
    let result = select([[0.25, -0.3, 9.0], [-0.25, 1.0, -1.0]]);
    for row in floats(&result, "gates.moe").chunks(6) {
        assert_eq!([row[0], row[1], row[3], row[4]], [0.0; 4]);
        assert!((row[2] + row[5] - 1.0).abs() < 1e-12);
    }
    let active = ints(&result, "experts.moe").iter().filter(|&&e| e >= 0).count();
    assert_eq!(active, 2 * TOKENS, "only what is not 0 is computed");
    // Code 111 is the expert 7 of 6.
    let result = select([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]);
    assert!(floats(&result, "aux.moe.unassigned_mass")[0].is_finite());
    assert!(floats(&result, "gates.moe").iter().all(|&g| g == 0.0));
    // In the middle of the step all experts share alike.
    let result = select([[0.0; 3]; 2]);
    assert!(floats(&result, "gates.moe").iter().all(|&g| (g - 0.125).abs() < 1e-12));
}

#[test]
fn experts_choose_equally_many_tokens() {
    let result = evaluated(
        "moe(experts: 4 * mlp(hidden: 5), route: expert_choice(capacity_factor: 1.2), allow: lookahead)",
        Mode::Train,
    );
    let chosen = ints(&result, "experts.moe");
    for expert in 0..4 {
        assert_eq!(chosen.iter().filter(|&&e| e == expert).count(), 3);
    }
    // A token that no expert chose gets nothing.
    let y = floats(&result, "y");
    let left = (0..TOKENS).filter(|n| chosen[4 * n..4 * n + 4].iter().all(|&e| e < 0)).collect::<Vec<_>>();
    assert!(left.iter().all(|n| y[n * WIDTH..(n + 1) * WIDTH].iter().all(|&v| v == 0.0)));
}

#[test]
fn base_assigns_evenly_in_training_and_to_the_nearest_in_evaluation() {
    let moe = "moe(experts: 4 * mlp(hidden: 5), route: base)";
    let chosen = ints(&evaluated(moe, Mode::Train), "experts.moe");
    for expert in 0..4 {
        assert!((2..=3).contains(&chosen.iter().filter(|&&e| e == expert).count()), "{chosen:?}");
    }
    // What the graph is for decides, not whether gradients are asked for.
    assert!(first(&lowered(moe, Mode::Evaluate), |op| matches!(op, Op::BalancedAssignment)).is_none());
}

#[test]
fn soft_slots_are_mixtures_of_their_own_sequence() {
    let lowered = lowered("moe(experts: 2 * mlp(hidden: 5), route: soft_moe(slots: 2), allow: lookahead)", Mode::Train);
    let mut values = values(&lowered);
    let before = floats(&run(&lowered, &values), "y");
    let mut x = values["x"].to_f64();
    x[7 * WIDTH] += 1.0;
    values.insert("x".into(), Tensor::new([TOKENS, WIDTH], Data::F64(x)).unwrap());
    let after = floats(&run(&lowered, &values), "y");
    let half = TOKENS / 2 * WIDTH;
    assert_eq!(before[..half], after[..half], "the first sequence does not see the second");
    assert!(before[half..].iter().zip(&after[half..]).all(|(a, b)| a != b));
}

// ---- hash ----

#[test]
fn tables_are_state_that_is_saved() {
    let text = "model m { context 5  vocab 7  embed(width: 6)
        repeat 2 { residual { moe(experts: 3 * mlp(hidden: 4), route: hash(by: bigram)) } }
        residual { multi_hash(hidden: 4, buckets: 3) } unembed }";
    let lowered = lower(&model(text), &options(Mode::Train, 2)).unwrap();
    let names: Vec<&str> = lowered.states.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["blocks.0.moe.table", "blocks.1.moe.table", "multi_hash.table"]);
    let made = values(&lowered);
    assert_eq!(made["blocks.0.moe.table"], made["blocks.1.moe.table"], "the same table in every layer");
    // Nothing of a hash layer is trained but the experts.
    assert!(lowered.parameters.iter().all(|(name, _)| !name.contains("moe.") || name.contains(".experts.")));
}

/// Load of each expert over a text by the table of the layer.
fn load(route: &str, experts: usize, tokens: &[i32], key: impl Fn(usize) -> usize) -> Vec<usize> {
    let lowered = lowered(&format!("moe(experts: {experts} * mlp(hidden: 4), route: {route})"), Mode::Train);
    let embeddings = |_: &str| Ok(numbers("vectors", &TensorType::f32([7, 4])));
    let text = TrainingText { tokens, vocab: 7, embeddings: &embeddings };
    let (_, init) = &lowered.states[0];
    let table = init.resolve(&text).unwrap();
    let mut load = vec![0; experts];
    (1..tokens.len()).for_each(|i| load[table.as_i32().unwrap()[key(i)] as usize] += 1);
    load
}

#[test]
fn a_balanced_table_is_as_even_as_its_most_frequent_key_allows() {
    let tokens: Vec<i32> = (0..10_000u64).map(|i| ((i * i * 7919 + i) % 64).isqrt() as i32 % 7).collect();
    let experts = 4;
    let uneven = |load: &[usize]| {
        load.iter().max().copied().unwrap() as f64 * experts as f64 / load.iter().sum::<usize>() as f64
    };
    let mut counts = [0usize; 7];
    tokens[1..].iter().for_each(|&t| counts[t as usize] += 1);
    let bound = (experts * counts.iter().max().unwrap()) as f64 / (tokens.len() - 1) as f64;
    let by_token = uneven(&load("hash", experts, &tokens, |i| tokens[i] as usize));
    assert!(by_token >= bound.max(1.0) - 1e-9 && by_token < 1.1 * bound.max(1.0), "{by_token} {bound}");
    let bigram = |i: usize| (tokens[i - 1] as usize + 1) * 7 + tokens[i] as usize;
    let by_bigram = uneven(&load("hash(by: bigram)", experts, &tokens, bigram));
    let drawn = uneven(&load("hash(table: random, seed: 3)", experts, &tokens, |i| tokens[i] as usize));
    assert!(by_bigram <= 1.01 && by_token <= drawn, "{by_bigram} {by_token} {drawn}");
    // A key more frequent than an even share is alone with its expert.
    let skewed: Vec<i32> = (0..1000).map(|i| if i % 10 < 7 { 5 } else { i % 5 }).collect();
    let load = load("hash", experts, &skewed, |i| skewed[i] as usize);
    assert_eq!(load.iter().max().copied().unwrap(), skewed[1..].iter().filter(|&&t| t == 5).count());
}

#[test]
fn clusters_hold_neighbours_together_and_dispersal_spreads_them() {
    let table = |made: &str| {
        let lowered = lowered(
            &format!("moe(experts: 3 * mlp(hidden: 4), route: hash(table: {made}, from: \"run\", seed: 1))"),
            Mode::Train,
        );
        // Three tight groups of two, two and three tokens.
        let groups = [0.0, 0.0, 10.0, 10.0, -9.0, -9.0, -9.0];
        let embeddings = |run: &str| {
            assert_eq!(run, "run");
            let rows = groups.iter().enumerate().flat_map(|(i, g)| [g + 0.01 * i as f64, -g]);
            Ok(Tensor::new([7, 2], Data::F64(rows.collect())).unwrap())
        };
        let text = TrainingText { tokens: &[0], vocab: 7, embeddings: &embeddings };
        let StateInit::Text(_) = &lowered.states[0].1 else { panic!("made from the text") };
        lowered.states[0].1.resolve(&text).unwrap().as_i32().unwrap().to_vec()
    };
    let clustered = table("clustered");
    let together = |a: usize, b: usize| clustered[a] == clustered[b];
    assert!(together(0, 1) && together(2, 3) && together(4, 5) && together(5, 6), "{clustered:?}");
    assert!(!together(0, 2) && !together(0, 4) && !together(2, 4), "{clustered:?}");
    let dispersed = table("dispersed");
    for group in [&[0, 1][..], &[2, 3], &[4, 5, 6]] {
        let mut counts = [0; 3];
        group.iter().for_each(|&token: &usize| counts[dispersed[token] as usize] += 1);
        assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{dispersed:?}");
    }
}

#[test]
fn a_hash_of_one_layer_is_a_plain_hash_layer() {
    let multi = lowered("multi_hash(hidden: 4, buckets: 3, hashes: 1)", Mode::Evaluate);
    let plain = lowered("moe(experts: 3 * mlp(hidden: 4), route: hash)", Mode::Evaluate);
    let mut values = values(&plain);
    for (name, tensor) in values.clone() {
        if let Some(rest) = name.strip_prefix("moe.experts.mlp.") {
            values.insert(format!("multi_hash.{rest}"), tensor);
        }
    }
    let table = values["moe.table"].clone().with_shape([1, 7]).unwrap();
    values.insert("multi_hash.table".into(), table);
    assert_eq!(floats(&run(&multi, &values), "y"), floats(&run(&plain, &values), "y"));
}

// ---- losses ----

/// `P(n, e)` of the load loss is the probability that expert e is among the k largest when its noise is drawn again.
#[test]
fn the_load_is_the_probability_of_being_chosen_again() {
    const DRAWS: u32 = 1_000_000;
    let (experts, k) = (5, 2);
    let layer = &layers(WIDTH, "moe(experts: 5 * mlp(hidden: 4), route: noisy_top_k(k: 2), balance: [load])")[0];
    let options = LowerOptions { noise: NoisePolicy::Injected, ..options(Mode::Train, 1) };
    let lowered = lower_layer(layer, &options, 3).unwrap();
    let probability = first(&lowered, |op| *op == Op::Unary(Unary::NormalCdf)).unwrap();
    let clean = lowered.graph.value(
        lowered
            .graph
            .find("moe.router")
            .unwrap_or_else(|| first(&lowered, |op| matches!(op, Op::MatMul { .. })).unwrap().node),
    );
    let values = bindings(&lowered.graph);
    let p = floats(&run(&observed(&lowered, probability), &values), "observed");
    let c = floats(&run(&observed(&lowered, clean), &values), "observed");
    let softplus = first(&lowered, |op| *op == Op::Unary(Unary::Softplus)).unwrap();
    let s: Vec<f64> =
        floats(&run(&observed(&lowered, softplus), &values), "observed").iter().map(|s| s + 1e-2).collect();
    let z = values["moe.noise"].to_f64();
    let keys = random::keys(random::state(1, 2), 3);
    for n in 0..3 {
        let row = n * experts..(n + 1) * experts;
        let noisy: Vec<f64> = row.clone().map(|i| c[i] + z[i] * s[i]).collect();
        for e in 0..experts {
            let at = n * experts + e;
            let mut others: Vec<f64> = (0..experts).filter(|&j| j != e).map(|j| noisy[j]).collect();
            others.sort_by(|a, b| b.total_cmp(a));
            let threshold = others[k - 1];
            let hits = (0..DRAWS).filter(|&i| c[at] + s[at] * random::normal_at(keys, i) > threshold).count();
            let found = hits as f64 / f64::from(DRAWS);
            assert!((p[at] - found).abs() < 1.5e-3, "P({n}, {e}) is {}, drawn {found}", p[at]);
            assert!(p[at] > 0.0 && p[at] < 1.0);
        }
    }
}

#[test]
fn the_switch_loss_is_one_at_perfect_balance_for_every_k() {
    for k in [1, 2, 4] {
        let moe = format!(
            "moe(experts: 4 * mlp(hidden: 4), route: softmax_top_k(k: {k}, normalize: all), balance: [switch, sequence])"
        );
        let lowered = lowered(&moe, Mode::Train);
        let mut values = values(&lowered);
        // All scores equal: uniform probabilities, whatever the shares.
        for name in ["moe.router.weight", "moe.router.bias"] {
            let zeros = vec![0.0; values[name].to_f64().len()];
            values.insert(name.into(), Tensor::new(values[name].shape().to_vec(), Data::F64(zeros)).unwrap());
        }
        let result = run(&lowered, &values);
        assert!((floats(&result, "aux.moe.switch")[0] - 1.0).abs() < 1e-9, "k = {k}");
        assert!((floats(&result, "aux.moe.sequence")[0] - 1.0).abs() < 1e-9, "k = {k}");
        // Ties go to the lower index.
        assert!(ints(&result, "experts.moe").chunks(k).all(|row| row.iter().enumerate().all(|(i, &e)| e == i as i32)));
    }
}

#[test]
fn sigmoids_count_as_shares_in_balance_losses() {
    let moe = "moe(experts: 4 * mlp(hidden: 4), route: sigmoid_top_k(k: 2), balance: [switch, sequence])";
    let lowered = lowered(moe, Mode::Train);
    let mut values = values(&lowered);
    let zeros = vec![0.0; 4 * WIDTH];
    values.insert("moe.router.weight".into(), Tensor::new([4, WIDTH], Data::F64(zeros)).unwrap());
    let result = run(&lowered, &values);
    for loss in ["switch", "sequence"] {
        assert!((floats(&result, &format!("aux.moe.{loss}"))[0] - 1.0).abs() < 1e-9, "{loss}");
    }
}

#[test]
fn first_choices_of_experts_that_choose_are_those_with_the_largest_weight() {
    let moe = "moe(experts: 4 * mlp(hidden: 4), route: expert_choice, allow: lookahead,
                   balance: [switch(choices: first)])";
    let lowered = lowered(moe, Mode::Train);
    let result = run(&lowered, &values(&lowered));
    let gates = floats(&result, "gates.moe");
    let mut counts = [0.0; 4];
    for row in gates.chunks(4) {
        let best = (0..4).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a))).unwrap();
        counts[best] += f64::from(u8::from(row[best] > 0.0));
    }
    let total: f64 = counts.iter().sum();
    assert!(total > 0.0 && total < gates.len() as f64);
    let value = floats(&result, "aux.moe.switch")[0];
    assert!(value.is_finite() && value > 0.0 && value <= 4.0, "{value}");
}

#[test]
fn every_layer_has_losses_of_its_own() {
    let text = "model m { context 5  vocab 7  embed(width: 6)
        repeat 2 { residual { moe(experts: 3 * mlp(hidden: 4), route: switch, balance: [switch, z]) } } unembed }";
    let lowered = lower(&model(text), &options(Mode::Train, 2)).unwrap();
    let result = run(&lowered, &bindings(&lowered.graph));
    let one = |name: &str| floats(&result, name)[0];
    let sum: f64 = ["aux.blocks.0.moe.switch", "aux.blocks.1.moe.switch"].map(|n| 0.01 * one(n)).iter().sum::<f64>()
        + ["aux.blocks.0.moe.z", "aux.blocks.1.moe.z"].map(|n| 0.001 * one(n)).iter().sum::<f64>();
    assert!((one("objective") - one("loss") - sum).abs() < 1e-12);
    assert_ne!(one("aux.blocks.0.moe.switch"), one("aux.blocks.1.moe.switch"));
}

// ---- a moe inside an expert ----

#[test]
fn a_mixture_of_one_group_is_its_inner_mixture() {
    let inner = "moe(experts: 3 * mlp(hidden: 4), route: softmax_top_k(k: 2), balance: [importance, switch, z])";
    let nested =
        lowered(&format!("moe(experts: 1 * {inner}, route: softmax_top_k(k: 1, normalize: all))"), Mode::Train);
    let flat = lowered(inner, Mode::Train);
    let mut values = values(&nested);
    for (name, tensor) in bindings(&nested.graph) {
        if let Some(rest) = name.strip_prefix("moe.experts.moe.") {
            // Without the axis of the one group.
            let shape = match rest.starts_with("router.") {
                true => tensor.shape()[1..].to_vec(),
                false => tensor.shape().to_vec(),
            };
            values.insert(format!("moe.{rest}"), tensor.with_shape(shape).unwrap());
        }
    }
    let flat_values = {
        let mut v = values.clone();
        for name in ["weight", "bias"] {
            let key = format!("moe.router.{name}");
            let own = bindings(&nested.graph)[&format!("moe.experts.moe.router.{name}")].clone();
            let shape = own.shape()[1..].to_vec();
            v.insert(key, own.with_shape(shape).unwrap());
        }
        v
    };
    let nested_values = bindings(&nested.graph);
    let (a, b) = (run(&nested, &nested_values), run(&flat, &flat_values));
    let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9);
    assert!(close(&floats(&a, "y"), &floats(&b, "y")));
    for output in ["load", "entropy", "balance", "dropped"] {
        let (inner, flat) = (format!("{output}.moe.experts.moe"), format!("{output}.moe"));
        assert!(close(&floats(&a, &inner), &floats(&b, &flat)), "{output}");
    }
    for loss in ["importance", "switch", "z"] {
        let (inner, flat) = (format!("aux.moe.experts.moe.{loss}"), format!("aux.moe.{loss}"));
        assert!(close(&floats(&a, &inner), &floats(&b, &flat)), "{loss}");
    }
}

#[test]
fn dropped_rows_do_not_vote_in_the_inner_mixture() {
    let moe = "moe(
        experts: 3 * moe(experts: 2 * mlp(hidden: 4), route: softmax_top_k(k: 1, normalize: all),
                         balance: [z, switch, sequence]),
        route: softmax_top_k(k: 2),
        capacity: capacity(factor: 0.5, minimum: 1),
    )";
    let lowered = lowered(moe, Mode::Train);
    let result = run(&lowered, &values(&lowered));
    let outer: f64 = floats(&result, "load.moe").iter().sum();
    let inner: f64 = floats(&result, "load.moe.experts.moe").iter().sum();
    assert!(outer < 2.0 * TOKENS as f64 && inner == outer, "{inner} {outer}");
    // Each group's tokens stay in the group.
    let per_group: Vec<f64> = floats(&result, "load.moe.experts.moe").chunks(2).map(|g| g.iter().sum()).collect();
    assert_eq!(per_group, floats(&result, "load.moe"));
    // All rows count as one sequence, and those without a token not at all.
    let loss = |name: &str| floats(&result, &format!("aux.moe.experts.moe.{name}"))[0];
    assert!((loss("sequence") - loss("switch")).abs() < 1e-9, "{} {}", loss("sequence"), loss("switch"));
}

#[test]
fn weights_of_three_levels_are_multiplied() {
    let moe = "moe(
        experts: 2 * moe(
          experts: 2 * moe(experts: 2 * mlp(hidden: 4), route: softmax_top_k(k: 1, normalize: all), balance: [importance]),
          route: softmax_top_k(k: 1, normalize: all)),
        route: softmax_top_k(k: 1, normalize: all),
    )";
    let lowered = lowered(moe, Mode::Train);
    let result = run(&lowered, &values(&lowered));
    let names = ["moe", "moe.experts.moe", "moe.experts.moe.experts.moe"];
    let weights: Vec<Vec<f64>> = names.iter().map(|name| floats(&result, &format!("weights.{name}"))).collect();
    let leaves = ints(&result, "experts.moe.experts.moe.experts.moe");
    // One choice a token at every level: rows at the second level are sorted by the first choice, at the third by both.
    let sorted = |weights: &[f64], experts: &[i32]| {
        let mut order: Vec<usize> = (0..experts.len()).collect();
        order.sort_by_key(|&row| (experts[row], row));
        order.into_iter().map(|row| weights[row]).collect::<Vec<f64>>()
    };
    let first = sorted(&weights[0], &ints(&result, "experts.moe"));
    let both: Vec<f64> = first.iter().zip(&weights[1]).map(|(a, b)| a * b).collect();
    let both = sorted(&both, &ints(&result, "experts.moe.experts.moe"));
    let mut importance = [0.0; 8];
    for ((outer, inner), &leaf) in both.iter().zip(&weights[2]).zip(&leaves) {
        importance[leaf as usize] += outer * inner;
    }
    let mean = importance.iter().sum::<f64>() / 8.0;
    let variance = importance.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 8.0;
    let found = floats(&result, "aux.moe.experts.moe.experts.moe.importance")[0];
    assert!((found - variance / (mean * mean + 1e-10)).abs() < 1e-9, "{found}");
}

#[test]
fn a_moe_does_not_count_tokens_that_go_past_it() {
    let body = "mixture_of_depths(capacity: 0.4) {
        residual { moe(experts: 3 * mlp(hidden: 4), route: softmax_top_k(k: 2), balance: [switch],
                       capacity: capacity(factor: 3.0)) } }";
    let lowered = lowered(body, Mode::Evaluate);
    let mut values = values(&lowered);
    // Nobody but tokens 1, 4 and 7.
    let mut x = values["x"].to_f64();
    (0..TOKENS).for_each(|n| x[n * WIDTH] = if n % 3 == 1 { 5.0 } else { -5.0 });
    values.insert("x".into(), Tensor::new([TOKENS, WIDTH], Data::F64(x)).unwrap());
    let weight = (0..WIDTH).map(|i| if i == 0 { 1.0 } else { 0.0 }).collect();
    values.insert("mixture_of_depths.predictor.weight".into(), Tensor::new([1, WIDTH], Data::F64(weight)).unwrap());
    values.insert("mixture_of_depths.predictor.bias".into(), Tensor::floats([0.0]));
    let result = run(&lowered, &values);
    let load: f64 = floats(&result, "load.mixture_of_depths.moe").iter().sum();
    assert_eq!(load, 6.0);
    assert!(floats(&result, "dropped.mixture_of_depths.moe")[0].abs() < 1e-12);
    let routed = ints(&result, "experts.mixture_of_depths.moe");
    assert_eq!(routed.chunks(2).filter(|slots| slots[0] >= 0).count(), 3);
}

// ---- mixture of depths ----

/// Two blocks of attention and a feed-forward layer, for two sequences of five tokens.
fn depths(capacity: f64, positions: &str, mode: Mode) -> Lowered {
    let body = format!(
        "mixture_of_depths(capacity: {capacity:?}) {{ residual {{ attention(heads: 2) }} residual {{ mlp(hidden: 4) }} }}"
    );
    let text =
        format!("model m {{ context 5  vocab 7  embed(width: {WIDTH}, positions: {positions})  {body}  unembed }}");
    let layers = model(&text.replace("width: 6", "width: 8")).layers;
    lower_layer(&layers[1], &options(mode, 2), TOKENS / 2).unwrap()
}

#[test]
fn tokens_that_are_passed_over_are_not_touched() {
    let lowered = depths(0.4, "none", Mode::Train);
    let values = bindings(&lowered.graph);
    let (x, y) = (values["x"].to_f64(), floats(&run(&lowered, &values), "y"));
    for sequence in 0..2 {
        let changed = (0..5).filter(|t| {
            let row = (sequence * 5 + t) * 8..(sequence * 5 + t + 1) * 8;
            x[row.clone()] != y[row]
        });
        // Two of five, not one: the comparison with the last score that goes through is not strict.
        assert_eq!(changed.count(), 2);
    }
}

#[test]
fn everyone_through_with_score_one_is_the_plain_block() {
    for positions in ["none", "rotary"] {
        let lowered = depths(1.0, positions, Mode::Train);
        let mut values = bindings(&lowered.graph);
        // A column of ones and a weight that reads it: every score is 1.
        let mut x = values["x"].to_f64();
        (0..TOKENS).for_each(|n| x[n * 8] = 1.0);
        values.insert("x".into(), Tensor::new([TOKENS, 8], Data::F64(x.clone())).unwrap());
        let weight = (0..8).map(|i| if i == 0 { 1.0 } else { 0.0 }).collect();
        values.insert("mixture_of_depths.router.weight".into(), Tensor::new([1, 8], Data::F64(weight)).unwrap());
        let y = floats(&run(&lowered, &values), "y");
        let body = "residual { attention(heads: 2) } residual { mlp(hidden: 4) }";
        let text =
            format!("model m {{ context 5  vocab 7  embed(width: 8, positions: {positions})  {body}  unembed }}");
        let mut input = values["x"].clone();
        for layer in &model(&text).layers[1..3] {
            let plain = lower_layer(layer, &options(Mode::Train, 2), TOKENS / 2).unwrap();
            let mut own: BTreeMap<String, Tensor> = bindings(&plain.graph);
            for (name, value) in own.iter_mut() {
                if let Some(tensor) = values.get(&format!("mixture_of_depths.{name}")) {
                    *value = tensor.clone();
                }
            }
            own.insert("x".into(), input);
            input = run(&plain, &own).outputs["y"].clone();
        }
        assert!(y.iter().zip(input.to_f64()).all(|(a, b)| (a - b).abs() < 1e-9), "{positions}");
    }
}

/// Evaluation and training agree where the predictor takes whom the scores take, with original positions.
#[test]
fn the_predictor_gives_what_training_gives_for_the_same_tokens() {
    for positions in ["none", "rotary"] {
        let (train, evaluate) = (depths(0.4, positions, Mode::Train), depths(0.4, positions, Mode::Evaluate));
        let mut values = bindings(&train.graph);
        values.extend(bindings(&evaluate.graph));
        // Scores 3, 2, 1, .. in an order of their own; the predictor says yes above 1.5.
        let mut x = values["x"].to_f64();
        for (n, score) in [1.0, 3.0, 0.5, 2.0, 0.0, 2.0, 0.5, 0.0, 1.0, 3.0].into_iter().enumerate() {
            x[n * 8] = score;
        }
        values.insert("x".into(), Tensor::new([TOKENS, 8], Data::F64(x)).unwrap());
        let weight: Vec<f64> = (0..8).map(|i| if i == 0 { 1.0 } else { 0.0 }).collect();
        for name in ["router", "predictor"] {
            let tensor = Tensor::new([1, 8], Data::F64(weight.clone())).unwrap();
            values.insert(format!("mixture_of_depths.{name}.weight"), tensor);
        }
        values.insert("mixture_of_depths.predictor.bias".into(), Tensor::floats([-1.5]));
        let (a, b) = (floats(&run(&train, &values), "y"), floats(&run(&evaluate, &values), "y"));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-9), "{positions}");
    }
}

// ---- what is mixed, and what stands in ----

/// `w xᵀ + b` of one expert for one row.
fn linear_expert(values: &BTreeMap<String, Tensor>, expert: usize, x: &[f64]) -> Vec<f64> {
    let (weight, bias) = (values["moe.experts.linear.weight"].to_f64(), values["moe.experts.linear.bias"].to_f64());
    let row = |o: usize| &weight[(expert * WIDTH + o) * WIDTH..][..WIDTH];
    let dot = |o: usize| row(o).iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
    (0..WIDTH).map(|o| dot(o) + bias[expert * WIDTH + o]).collect()
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let sum: f64 = scores.iter().map(|s| s.exp()).sum();
    scores.iter().map(|s| s.exp() / sum).collect()
}

/// `x wᵀ + b` with the weight and, if there is one, the bias of a router.
fn scores(values: &BTreeMap<String, Tensor>, x: &[f64]) -> Vec<f64> {
    let weight = values["moe.router.weight"].to_f64();
    let bias = values.get("moe.router.bias").map_or(vec![0.0; weight.len() / WIDTH], Tensor::to_f64);
    let rows = weight.chunks(WIDTH).zip(bias);
    rows.map(|(w, bias)| bias + w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()).collect()
}

/// Of linear experts the mean of the parameters gives the mean of what they give.
#[test]
fn merged_experts_are_the_mean_of_their_parameters() {
    let time = TOKENS / 2;
    for (route, length) in
        [("smear", time), ("smear(segment: 2)", 2), ("smear(segment: 1)", 1), ("smear(segment: 9)", 9)]
    {
        for experts in [1, 3] {
            let moe = format!("moe(experts: {experts} * linear(width: {WIDTH}), route: {route}, allow: lookahead)");
            let lowered = lowered(&moe, Mode::Train);
            let values = values(&lowered);
            let (x, result) = (values["x"].to_f64(), run(&lowered, &values));
            let (y, gates) = (floats(&result, "y"), floats(&result, "gates.moe"));
            for n in 0..TOKENS {
                let (sequence, segment) = (n / time, n % time / length);
                // The tokens that the experts are weighed by: of the segment before, or of all where there are no segments.
                let (from, to) = match (route, segment) {
                    ("smear", _) => (0, time),
                    (_, 0) => (0, 0),
                    (_, s) => ((s - 1) * length, s * length),
                };
                let mut mean = vec![0.0; WIDTH];
                for t in from..to {
                    let row = &x[(sequence * time + t) * WIDTH..][..WIDTH];
                    mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x / (to - from) as f64);
                }
                let p = softmax(&scores(&values, &mean));
                let mut expected = vec![0.0; WIDTH];
                for (expert, p) in p.iter().enumerate() {
                    let given = linear_expert(&values, expert, &x[n * WIDTH..][..WIDTH]);
                    expected.iter_mut().zip(given).for_each(|(sum, y)| *sum += p * y);
                }
                let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
                assert!(close(&y[n * WIDTH..][..WIDTH], &expected), "{route}, {experts} experts, token {n}");
                assert!(close(&gates[n * experts..][..experts], &p), "{route}, {experts} experts, token {n}");
            }
        }
    }
}

#[test]
fn segments_see_nothing_that_comes_later() {
    let lowered = lowered("moe(experts: 3 * mlp(hidden: 5), route: smear(segment: 2))", Mode::Evaluate);
    let mut values = values(&lowered);
    let before = floats(&run(&lowered, &values), "y");
    let mut x = values["x"].to_f64();
    // The third token of the first sequence, which is of its second segment.
    x[2 * WIDTH] += 1.0;
    values.insert("x".into(), Tensor::new([TOKENS, WIDTH], Data::F64(x)).unwrap());
    let after = floats(&run(&lowered, &values), "y");
    let changed: Vec<usize> =
        (0..TOKENS).filter(|n| before[n * WIDTH..][..WIDTH] != after[n * WIDTH..][..WIDTH]).collect();
    assert_eq!(changed, [2, 4], "itself, and those that are weighed by its segment");
}

#[test]
fn running_means_stand_in_for_experts_that_a_token_does_not_go_to() {
    // One expert has a capacity of 3, so that some choices are dropped.
    for (k, capacity) in [(1, ""), (2, ""), (3, ""), (1, ", capacity: capacity(factor: 0.9, minimum: 1)")] {
        let moe = |unchosen: &str| {
            format!(
                "moe(experts: 3 * linear(width: {WIDTH}), route: softmax_top_k(k: {k}, normalize: all){unchosen}{capacity})"
            )
        };
        let with = lowered(&moe(", unchosen: running_mean(decay: 0.75)"), Mode::Train);
        let mut values = values(&with);
        let means = numbers("means", &TensorType::f32([3, WIDTH]));
        values.insert("moe.running_mean".into(), means.clone());
        let result = run(&with, &values);
        let without = floats(&run(&lowered(&moe(""), Mode::Train), &values), "y");
        let (x, means, y) = (values["x"].to_f64(), means.to_f64(), floats(&result, "y"));
        let kept = ints(&result, "kept.moe");
        let mut sums = vec![vec![0.0; WIDTH]; 3];
        let mut counts = [0.0; 3];
        for n in 0..TOKENS {
            let row = &x[n * WIDTH..][..WIDTH];
            let p = softmax(&scores(&values, row));
            let mut expected = without[n * WIDTH..][..WIDTH].to_vec();
            for expert in 0..3 {
                if kept[n * k..][..k].contains(&(expert as i32)) {
                    counts[expert] += 1.0;
                    let given = linear_expert(&values, expert, row);
                    sums[expert].iter_mut().zip(given).for_each(|(sum, y)| *sum += y);
                } else {
                    let mean = &means[expert * WIDTH..][..WIDTH];
                    expected.iter_mut().zip(mean).for_each(|(y, m)| *y += p[expert] * m);
                }
            }
            let own = &y[n * WIDTH..][..WIDTH];
            assert!(own.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12), "k {k}{capacity}, token {n}");
        }
        let updated = result.updates["moe.running_mean"].to_f64();
        for expert in 0..3 {
            for c in 0..WIDTH {
                let old = means[expert * WIDTH + c];
                let expected = match counts[expert] {
                    0.0 => old,
                    count => 0.75 * old + 0.25 * sums[expert][c] / count,
                };
                assert!((updated[expert * WIDTH + c] - expected).abs() < 1e-12, "k {k}, expert {expert}");
            }
        }
        // Where only the gradient has them, the value is that without, and nothing is left of them in evaluation.
        let gradient = lowered(&moe(", unchosen: running_mean(adds: gradient)"), Mode::Train);
        assert_eq!(floats(&run(&gradient, &values), "y"), without);
        let evaluation = |unchosen| lowered(&moe(unchosen), Mode::Evaluate);
        let gradient = evaluation(", unchosen: running_mean(adds: gradient)");
        assert_eq!(floats(&run(&gradient, &values), "y"), floats(&run(&evaluation(""), &values), "y"));
        assert!(run(&evaluation(", unchosen: running_mean"), &values).updates.is_empty());
    }
}

#[test]
fn what_experts_are_given_is_the_same_straight_through() {
    let moe = |more: &str| format!("moe(experts: 3 * mlp(hidden: 5), route: softmax_top_k(k: 2){more})");
    let [plain, through] =
        ["", ", straight_through: true"].map(|more| floats(&evaluated(&moe(more), Mode::Train), "y"));
    assert_eq!(plain, through);
}

// ---- balance over more than a layer of a batch ----

/// Shares of choices and mean probabilities of a layer whose tokens go to all experts but one, with the probabilities as weights.
fn shares_and_means(result: &Evaluation, path: &str) -> [[f64; 3]; 2] {
    let (chosen, weights) = (ints(result, &format!("experts.{path}")), floats(result, &format!("weights.{path}")));
    let tokens = chosen.len() as f64 / 2.0;
    let (mut shares, mut means) = ([0.0; 3], [0.0; 3]);
    for (chosen, weights) in chosen.chunks(2).zip(weights.chunks(2)) {
        for (&expert, weight) in chosen.iter().zip(weights) {
            shares[expert as usize] += 0.5 / tokens;
            means[expert as usize] += weight / tokens;
        }
        let other = (0..3).find(|expert| !chosen.contains(expert)).unwrap();
        means[other as usize] += (1.0 - weights[0] - weights[1]) / tokens;
    }
    [shares, means]
}

#[test]
fn a_loss_over_layers_is_that_of_their_means_with_its_weight_once() {
    let moe = |balance: &str| {
        format!(
            "residual {{ moe(experts: 3 * mlp(hidden: 4), route: softmax_top_k(k: 2, normalize: all), balance: [{balance}]) }}"
        )
    };
    let evaluated = |layers: &str| {
        let text = format!("model m {{ context 5  vocab 7  embed(width: 6)  {layers}  unembed }}");
        let lowered = lower(&model(&text), &LowerOptions { routes: true, ..options(Mode::Train, 2) }).unwrap();
        run(&lowered, &values(&lowered))
    };
    let together = moe("switch(weight: 0.5, over: layers)");
    let result = evaluated(&together.repeat(3));
    let paths = ["residual.moe", "residual_2.moe", "residual_3.moe"];
    let paths = if result.outputs.contains_key("experts.moe") { ["moe", "moe_2", "moe_3"] } else { paths };
    let all = paths.map(|path| shares_and_means(&result, path));
    let mean = |what: usize, expert: usize| all.iter().map(|layer| layer[what][expert]).sum::<f64>() / 3.0;
    let expected = 3.0 * (0..3).map(|expert| mean(0, expert) * mean(1, expert)).sum::<f64>();
    let added = |result: &Evaluation| floats(result, "objective")[0] - floats(result, "loss")[0];
    assert!((added(&result) - 0.5 * expected).abs() < 1e-12, "{} and {expected}", added(&result));
    // What is reported of each layer is its own.
    for (path, [shares, means]) in paths.iter().zip(all) {
        let own = 3.0 * shares.iter().zip(means).map(|(f, p)| f * p).sum::<f64>();
        assert!((floats(&result, &format!("aux.{path}.switch"))[0] - own).abs() < 1e-12, "{path}");
    }
    // A layer alone is what it is without; layers with other weights are no part of it.
    let [one, other] =
        ["switch(weight: 0.5, over: layers)", "switch(weight: 0.5)"].map(|loss| added(&evaluated(&moe(loss))));
    assert!((one - other).abs() < 1e-12);
    let apart = moe("switch(weight: 0.5, over: layers)") + &moe("switch(weight: 0.25, over: layers)");
    let each = moe("switch(weight: 0.5)") + &moe("switch(weight: 0.25)");
    assert!((added(&evaluated(&apart)) - added(&evaluated(&each))).abs() < 1e-12);
}

#[test]
fn choices_of_a_step_are_those_of_its_batches_so_far() {
    let moe = |within: &str| {
        format!(
            "moe(experts: 3 * mlp(hidden: 4), route: softmax_top_k(k: 2, normalize: all), balance: [switch(within: {within})])"
        )
    };
    let step = lowered(&moe("step"), Mode::Train);
    let mut values = values(&step);
    let before = [7.0, 0.0, 1.0];
    values.insert("sum.moe.choices".into(), Tensor::new([3], Data::F64(before.to_vec())).unwrap());
    let result = run(&step, &values);
    let [shares, means] = shares_and_means(&result, "moe");
    let choices: Vec<f64> = shares.iter().zip(before).map(|(f, before)| f * 20.0 + before).collect();
    let expected = 3.0 * choices.iter().zip(means).map(|(c, p)| c / 28.0 * p).sum::<f64>();
    assert!((floats(&result, "aux.moe.switch")[0] - expected).abs() < 1e-12);
    assert_eq!(result.updates["sum.moe.choices"].to_f64(), choices);
    // In evaluation there are no steps.
    let [step, batch] = ["step", "batch"].map(|within| lowered(&moe(within), Mode::Evaluate).graph);
    assert_eq!(moec_ir::print(&step), moec_ir::print(&batch));
}

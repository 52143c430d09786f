//! What lowered graphs compute, with the reference evaluator: experts of every kind against the same layers applied
//! densely, causality, and the sizes that the graphs promise.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod layers;

use std::collections::BTreeMap;

use layers::{bindings, layers, model, options};
use moec_ir::{Data, Stage, Tensor, evaluate, verify};
use moec_model::{Capacity, LowerOptions, Lowered, Mode, lower, lower_layer};

fn verified(lowered: &Lowered) {
    let errors = verify(&lowered.graph, Stage::Forward);
    assert!(errors.is_ok(), "{errors:?}");
}

/// Expert `e` of a tensor with one part per expert.
fn part(tensor: &Tensor, e: usize) -> Tensor {
    let shape = tensor.shape()[1..].to_vec();
    let n: usize = shape.iter().product();
    Tensor::new(shape, Data::F64(tensor.to_f64()[e * n..(e + 1) * n].to_vec())).unwrap()
}

/// A `moe` of three experts and one shared one computes the sum of the gates times each expert applied densely.
fn experts_equal_dense_layers(expert: &str) {
    let (width, tokens, experts) = (6, 11, 3);
    let moe = format!("moe(experts: 3 * {{ {expert} }}, shared: 1 * {{ {expert} }}, route: softmax_top_k(k: 2))");
    let moe = &layers(width, &moe)[0];
    let lowered = lower_layer(moe, &LowerOptions { routes: true, ..options(Mode::Evaluate, 1) }, tokens).unwrap();
    verified(&lowered);
    let values = bindings(&lowered.graph);
    let result = evaluate(&lowered.graph, &values).unwrap();
    let gates = result.outputs["gates.moe"].to_f64();

    let dense = |prefix: &str, e: Option<usize>| -> Vec<f64> {
        let mut x = values["x"].clone();
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        for layer in layers(width, expert) {
            let lowered = lower_layer(&layer, &options(Mode::Evaluate, 1), tokens).unwrap();
            let kind = layer.name();
            let count = seen.entry(kind).or_insert(0);
            *count += 1;
            let scope = if *count == 1 { kind.to_string() } else { format!("{kind}_{count}") };
            let mut own = BTreeMap::from([("x".to_string(), x), ("tokens".to_string(), values["tokens"].clone())]);
            for (name, _) in &lowered.parameters {
                let theirs = &values[&name.replacen(kind, &format!("{prefix}.{scope}"), 1)];
                own.insert(name.clone(), e.map_or_else(|| theirs.clone(), |e| part(theirs, e)));
            }
            x = evaluate(&lowered.graph, &own).unwrap().outputs["y"].clone();
        }
        x.to_f64()
    };
    let mut expected = dense("moe.shared", None);
    for e in 0..experts {
        let y = dense("moe.experts", Some(e));
        for n in 0..tokens {
            for c in 0..width {
                expected[n * width + c] += gates[n * experts + e] * y[n * width + c];
            }
        }
    }
    for (i, (a, b)) in result.outputs["y"].to_f64().iter().zip(&expected).enumerate() {
        assert!((a - b).abs() < 1e-9, "{expert}: element {i}: {a} and {b}");
    }
}

#[test]
fn experts_of_every_kind_equal_dense_layers() {
    for expert in [
        "mlp(hidden: 5)",
        "mlp(hidden: 3, activation: gelu, bias: false)",
        "mlp(hidden: 4, activation: swiglu)",
        "linear(width: 9)  silu  linear(width: 6, bias: false)",
        "layer_norm  mlp(hidden: 5, activation: silu)  rms_norm",
        "relu  mlp(hidden: 2)  dropout(rate: 0.5)  mlp(hidden: 3)",
    ] {
        experts_equal_dense_layers(expert);
    }
}

#[test]
fn a_residual_inside_an_expert_adds_its_input() {
    let moe = |expert: &str| {
        let layer = &layers(4, &format!("moe(experts: 2 * {{ {expert} }}, route: softmax_top_k(k: 2))"))[0];
        let lowered = lower_layer(layer, &options(Mode::Evaluate, 1), 5).unwrap();
        let values = bindings(&lowered.graph);
        (evaluate(&lowered.graph, &values).unwrap().outputs["y"].to_f64(), values["x"].to_f64())
    };
    let (plain, x) = moe("mlp(hidden: 3)");
    let (residual, _) = moe("residual { mlp(hidden: 3) }");
    // The weights of a token sum to 1, so that its input comes back once.
    for ((with, without), x) in residual.iter().zip(&plain).zip(&x) {
        assert!((with - without - x).abs() < 1e-12);
    }
}

/// Row `n` of a matrix with that many columns.
fn row(values: &[f64], columns: usize, n: usize) -> &[f64] {
    &values[n * columns..(n + 1) * columns]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Experts without computation give nothing, the token, and a mixture of it with their vector, times their weights; the
/// others give what they give alone, and no row of theirs is anybody else's.
#[test]
fn experts_without_computation_follow_from_the_weights() {
    for (width, batch, time, capacity) in
        [(7, 3, 5, ""), (1, 1, 1, ""), (3, 2, 7, ", capacity: capacity(factor: 0.7, minimum: 1)")]
    {
        let experts = "[3 * mlp(hidden: 5), 2 * copy, zero, 3 * constant]";
        let moe = format!("moe(experts: {experts}, route: softmax_top_k(k: 4){capacity})");
        let (tokens, total, computed) = (batch * time, 9, 3);
        let lowered = lower_layer(
            &layers(width, &moe)[0],
            &LowerOptions { routes: true, ..options(Mode::Evaluate, batch) },
            time,
        )
        .unwrap();
        verified(&lowered);
        let values = bindings(&lowered.graph);
        let result = evaluate(&lowered.graph, &values).unwrap();
        let of = |name: &str| values[&format!("moe.experts.{name}")].to_f64();
        let (up, up_bias, down, down_bias) =
            (of("mlp.up.weight"), of("mlp.up.bias"), of("mlp.down.weight"), of("mlp.down.bias"));
        let (mix, vectors) = (of("constant.mix.weight"), of("constant.vectors"));
        assert_eq!((mix.len(), vectors.len()), (6 * width, 3 * width));
        let (gates, x, y) = (result.outputs["gates.moe"].to_f64(), values["x"].to_f64(), result.outputs["y"].to_f64());
        for n in 0..tokens {
            let (gates, x) = (row(&gates, total, n), row(&x, width, n));
            let mut expected = vec![0.0; width];
            for e in 0..computed {
                let hidden: Vec<f64> =
                    (0..5).map(|h| (dot(row(&up, width, e * 5 + h), x) + up_bias[e * 5 + h]).max(0.0)).collect();
                for (c, expected) in expected.iter_mut().enumerate() {
                    *expected += gates[e] * (dot(row(&down, 5, e * width + c), &hidden) + down_bias[e * width + c]);
                }
            }
            for (c, expected) in expected.iter_mut().enumerate() {
                *expected += (gates[3] + gates[4]) * x[c];
                for j in 0..3 {
                    let [own, other] = [0, 1].map(|i| dot(row(&mix, width, 2 * j + i), x).exp());
                    *expected += gates[6 + j] * (own * x[c] + other * row(&vectors, width, j)[c]) / (own + other);
                }
            }
            for (found, expected) in row(&y, width, n).iter().zip(expected) {
                assert!((found - expected).abs() < 1e-9, "{width}: token {n}: {found} and {expected}");
            }
        }
        // What is watched: rows of those that compute, choices of the others, and how many of the former a token has.
        let kept = result.outputs["kept.moe"].to_f64();
        let count = |e: usize| kept.iter().filter(|&&found| found == e as f64).count() as f64;
        let (load, zero) = (result.outputs["load.moe"].to_f64(), result.outputs["zero.moe"].to_f64());
        assert_eq!(load, (0..computed).map(count).collect::<Vec<_>>());
        assert_eq!(zero, (computed..total).map(count).collect::<Vec<_>>());
        let mean = result.outputs["per_token.moe"].item().unwrap();
        assert!((mean - load.iter().sum::<f64>() / tokens as f64).abs() < 1e-12);
        let chosen = result.outputs["experts.moe"].to_f64();
        assert!(chosen.iter().zip(&kept).all(|(chosen, kept)| chosen == kept || *chosen < 3.0 && *kept == -1.0));
        assert_eq!(chosen != kept, !capacity.is_empty(), "the capacity is for those that compute");
    }
}

/// With `tau`, the switch loss is least where experts without computation have 1/tau of the tokens of another.
#[test]
fn tau_says_what_experts_without_computation_count() {
    let loss = |tau: &str| {
        let moe = format!(
            "moe(experts: [3 * mlp(hidden: 5), zero, copy], route: softmax_top_k(k: 2), balance: [switch(weight: 1{tau})])"
        );
        let lowered =
            lower_layer(&layers(6, &moe)[0], &LowerOptions { routes: true, ..options(Mode::Evaluate, 1) }, 11).unwrap();
        let values = bindings(&lowered.graph);
        let result = evaluate(&lowered.graph, &values).unwrap();
        let (x, weight, bias) =
            (values["x"].to_f64(), values["moe.router.weight"].to_f64(), values["moe.router.bias"].to_f64());
        let mut mean = [0.0; 5];
        for n in 0..11 {
            let scores: Vec<f64> = (0..5).map(|e| (dot(row(&weight, 6, e), row(&x, 6, n)) + bias[e]).exp()).collect();
            let sum: f64 = scores.iter().sum();
            mean.iter_mut().zip(scores).for_each(|(mean, score)| *mean += score / sum / 11.0);
        }
        let chosen = result.outputs["experts.moe"].to_f64();
        let share = |e: usize| chosen.iter().filter(|&&c| c == e as f64).count() as f64 / 22.0;
        let terms: Vec<f64> = (0..5).map(|e| share(e) * mean[e]).collect();
        (result.outputs["aux.moe.switch"].item().unwrap(), terms)
    };
    let (plain, terms) = loss("");
    assert!((plain - 5.0 * terms.iter().sum::<f64>()).abs() < 1e-9);
    assert!((loss(", tau: 1").0 - plain).abs() < 1e-12);
    let (weighed, _) = loss(", tau: 0.25");
    let expected = (3.0 + 2.0 / 0.25) * (terms[..3].iter().sum::<f64>() + 0.25 * terms[3..].iter().sum::<f64>());
    assert!((weighed - expected).abs() < 1e-9);
}

/// The experts of a layer without computation around them can be a `moe` of their own, and routers that choose tokens, or
/// give gates of which some are 0, can send to them.
#[test]
fn experts_without_computation_go_with_every_choice() {
    for moe in [
        "moe(experts: [2 * moe(experts: 3 * mlp(hidden: 3), route: softmax_top_k(k: 2)), copy], route: softmax_top_k(k: 2))",
        "moe(experts: [3 * mlp(hidden: 3), constant], route: dselect_k(k: 2))",
        "moe(experts: [3 * mlp(hidden: 3), constant, zero], route: expert_choice, allow: lookahead)",
        "moe(experts: [3 * mlp(hidden: 3), 5 * zero], route: hash)",
        "moe(experts: [1 * mlp(hidden: 3), copy], route: gshard, balance: [switch(tau: 0.5, choices: first)])",
        "moe(experts: [3 * mlp(hidden: 3), copy], route: sigmoid_top_k(k: 2), latent: 2, shared: 1 * mlp(hidden: 3))",
    ] {
        for mode in [Mode::Train, Mode::Evaluate] {
            let options = LowerOptions { routes: true, ..options(mode, 2) };
            let lowered = lower_layer(&layers(7, moe)[0], &options, 5).unwrap();
            verified(&lowered);
            let mut values = bindings(&lowered.graph);
            for (name, init) in &lowered.states {
                let tokens: Vec<i32> = (0..70).map(|i| i % 7).collect();
                let embeddings = |_: &str| Err(String::new());
                let text = moec_model::TrainingText { tokens: &tokens, vocab: 7, embeddings: &embeddings };
                values.insert(name.clone(), init.resolve(&text).unwrap());
            }
            let result = evaluate(&lowered.graph, &values).unwrap();
            for (name, value) in &result.outputs {
                assert!(value.to_f64().iter().all(|x| x.is_finite()), "{moe}: {name} is not finite");
            }
        }
    }
}

/// Latent experts see `D x`, and the layer returns `U` of what they add up to; router and shared experts see `x`.
#[test]
fn latent_experts_work_between_two_maps() {
    for (width, latent, batch, time) in [(7, 3, 1, 11), (3, 17, 2, 1), (1, 1, 1, 1)] {
        let moe = format!(
            "moe(experts: [2 * {{ linear(width: {latent}, bias: false) }}, copy], latent: {latent}, route: softmax_top_k(k: 2), \
             shared: 1 * linear(width: {width}, bias: false))"
        );
        let options = LowerOptions { routes: true, ..options(Mode::Evaluate, batch) };
        let lowered = lower_layer(&layers(width, &moe)[0], &options, time).unwrap();
        verified(&lowered);
        let values = bindings(&lowered.graph);
        let result = evaluate(&lowered.graph, &values).unwrap();
        let of = |name: &str| values[&format!("moe.{name}.weight")].to_f64();
        let (down, up, experts, shared) =
            (of("latent.down"), of("latent.up"), of("experts.linear"), of("shared.linear"));
        let product = |weight: &[f64], x: &[f64]| weight.chunks(x.len()).map(|row| dot(row, x)).collect::<Vec<f64>>();
        let (gates, x, y) = (result.outputs["gates.moe"].to_f64(), values["x"].to_f64(), result.outputs["y"].to_f64());
        for n in 0..batch * time {
            let (gates, x) = (row(&gates, 3, n), row(&x, width, n));
            let inner = product(&down, x);
            let mut sum = vec![0.0; latent];
            for (e, weight) in experts.chunks(latent * latent).enumerate() {
                sum.iter_mut().zip(product(weight, &inner)).for_each(|(sum, y)| *sum += gates[e] * y);
            }
            let (outer, shared) = (product(&up, &sum), product(&shared, x));
            for c in 0..width {
                let (found, expected) = (row(&y, width, n)[c], outer[c] + shared[c] + gates[2] * x[c]);
                assert!((found - expected).abs() < 1e-9, "{width}: token {n}: {found} and {expected}");
            }
        }
    }
}

/// Where tokens have different numbers of experts, evaluation says how many there were and what that makes of the active
/// parameters; where they have not, it says nothing.
#[test]
fn active_parameters_are_measured_where_they_vary() {
    let measured = |moe: &str| {
        let text = format!("model m {{ context 5  vocab 7  embed(width: 6)  {moe}  unembed }}");
        let lowered = lower(&model(&text), &LowerOptions { routes: true, ..options(Mode::Evaluate, 3) }).unwrap();
        verified(&lowered);
        let result = evaluate(&lowered.graph, &bindings(&lowered.graph)).unwrap();
        let of = |name: &str| result.outputs.get(name).map(|value| value.item().unwrap());
        (of("active_parameters"), of("per_token.moe"), of("per_token.moe.experts.moe"), lowered)
    };
    let (expert, inner) = (6 * 3 + 3 + 3 * 6 + 6, (6 * 2 + 2) as f64);
    for moe in [
        "moe(experts: [3 * mlp(hidden: 3), 2 * zero], route: softmax_top_k(k: 2))",
        "moe(experts: [3 * mlp(hidden: 3), constant], route: softmax_top_k(k: 2), shared: 1 * mlp(hidden: 3))",
        "moe(experts: 3 * mlp(hidden: 3), route: softmax_top_k(k: 2), capacity: capacity(factor: 0.5, minimum: 1))",
        "moe(experts: 3 * mlp(hidden: 3), route: dselect_k(k: 2))",
        "moe(experts: 3 * mlp(hidden: 3), route: expert_choice, allow: lookahead)",
    ] {
        let (active, per_token, _, lowered) = measured(moe);
        let (moe_layer, per_token) = (&lowered.moe_layers[0], per_token.unwrap());
        let reckoned = moe_layer.experts_per_token * (moe_layer.experts - moe_layer.zero_computation) as f64
            / moe_layer.experts as f64;
        let expected = lowered.active_parameter_count() as f64 + (per_token - reckoned) * expert as f64;
        // The table rounds each layer.
        assert!((active.unwrap() - expected).abs() < 1.0, "{moe}: {active:?} and {expected}");
    }
    let (active, outer, nested, lowered) = measured(
        "moe(experts: 2 * moe(experts: 2 * mlp(hidden: 3), route: softmax_top_k(k: 2), capacity: capacity(factor: 0.5, \
         minimum: 1)), route: dselect_k(k: 2))",
    );
    let (outer, nested) = (outer.unwrap(), nested.unwrap());
    let reckoned = 2.0 * (inner + 2.0 * expert as f64);
    let expected = lowered.active_parameter_count() as f64 - reckoned + outer * (inner + nested * expert as f64);
    assert!((active.unwrap() - expected).abs() < 1.0, "{active:?} and {expected}");
    let (active, per_token, ..) = measured("moe(experts: 3 * mlp(hidden: 3), route: softmax_top_k(k: 2))");
    assert_eq!((active, per_token), (None, None));
}

/// A block with parameters is what its layers are with their values.
#[test]
fn blocks_with_parameters_are_their_layers() {
    let built = |text: &str| {
        let lowered = lower(&model(text), &options(Mode::Train, 2)).unwrap();
        moec_ir::print(&lowered.graph)
    };
    let of_blocks = built(
        "block ff(hidden: int, rate: float = 0.25, bias: bool = true) { mlp(hidden: hidden, dropout: rate, bias: bias) }
         block two(hidden: int) { ff(hidden: hidden)  ff(hidden: 2 * hidden, rate: 0) }
         model m { let n = 3  context 5  vocab 7  embed(width: 6)
           block own(hidden: int = n) { ff(hidden: hidden, bias: false) }
           two(hidden: n)  own
           moe(experts: 2 * ff(hidden: n), shared: 1 * { own(hidden: 5) }, route: softmax_top_k(k: 2))
           repeat 2 as i { ff(hidden: 1 + i) }
           unembed }",
    );
    let written_out = built(
        "model m { context 5  vocab 7  embed(width: 6)
           mlp(hidden: 3, dropout: 0.25)  mlp(hidden: 6, dropout: 0)  mlp(hidden: 3, dropout: 0.25, bias: false)
           moe(experts: 2 * mlp(hidden: 3, dropout: 0.25), shared: 1 * mlp(hidden: 5, dropout: 0.25, bias: false),
             route: softmax_top_k(k: 2))
           repeat 1 { mlp(hidden: 1, dropout: 0.25) } repeat 1 { mlp(hidden: 2, dropout: 0.25) }
           unembed }",
    );
    let without_places =
        |text: &str| text.lines().map(|l| l.split(" @").next().unwrap_or(l).to_string()).collect::<Vec<_>>();
    assert_eq!(without_places(&of_blocks), without_places(&written_out));
}

/// What the shared experts add is weighed by a sigmoid of the token, and nothing else is.
#[test]
fn a_gate_weighs_what_shared_experts_add() {
    let (width, tokens) = (4, 5);
    let moe = |more: &str| {
        let layer = &layers(width, &format!("moe(experts: 3 * mlp(hidden: 3), route: softmax_top_k(k: 2){more})"))[0];
        let lowered = lower_layer(layer, &options(Mode::Evaluate, 1), tokens).unwrap();
        verified(&lowered);
        let values = bindings(&lowered.graph);
        (evaluate(&lowered.graph, &values).unwrap().outputs["y"].to_f64(), values)
    };
    let (routed, _) = moe("");
    let (open, _) = moe(", shared: 2 * mlp(hidden: 5)");
    let (gated, values) = moe(", shared: 2 * mlp(hidden: 5), shared_gate: true");
    let (x, weight) = (values["x"].to_f64(), values["moe.shared_gate.weight"].to_f64());
    for (n, x) in x.chunks(width).enumerate() {
        let score: f64 = x.iter().zip(&weight).map(|(x, w)| x * w).sum();
        let gate = 1.0 / (1.0 + (-score).exp());
        for i in n * width..(n + 1) * width {
            let expected = routed[i] + gate * (open[i] - routed[i]);
            assert!((gated[i] - expected).abs() < 1e-9, "token {n}: {} and {expected}", gated[i]);
        }
    }
}

/// Queries and keys over their root mean square, then attention, in plain loops.
#[test]
fn attention_normalises_queries_and_keys_of_a_head_or_of_all() {
    let (width, heads, tokens, epsilon) = (6, 2, 5, 0.25);
    let head = width / heads;
    for (norm, part) in [("head", head), ("width", width)] {
        let text = format!("attention(heads: {heads}, norm: {norm}, norm_epsilon: {epsilon}, output_bias: false)");
        let lowered = lower_layer(&layers(width, &text)[0], &options(Mode::Evaluate, 1), tokens).unwrap();
        verified(&lowered);
        let values = bindings(&lowered.graph);
        let [x, qkv, query_gain, key_gain, proj] = [
            "x",
            "attention.qkv.weight",
            "attention.query_norm.gain",
            "attention.key_norm.gain",
            "attention.proj.weight",
        ]
        .map(|name| values[name].to_f64());
        assert_eq!((lowered.parameters.len(), query_gain.len()), (4, part));
        let product = |x: &[f64], weight: &[f64]| -> Vec<f64> {
            weight.chunks(width).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
        };
        let rows: Vec<Vec<f64>> = x.chunks(width).map(|x| product(x, &qkv)).collect();
        let normed = |row: &[f64], gain: &[f64]| -> Vec<f64> {
            let parts = row.chunks(part).map(|part| {
                let mean = part.iter().map(|x| x * x).sum::<f64>() / part.len() as f64;
                part.iter().zip(gain).map(move |(x, gain)| x / (mean + epsilon).sqrt() * gain)
            });
            parts.flatten().collect()
        };
        let queries: Vec<_> = rows.iter().map(|row| normed(&row[..width], &query_gain)).collect();
        let keys: Vec<_> = rows.iter().map(|row| normed(&row[width..2 * width], &key_gain)).collect();
        let y = evaluate(&lowered.graph, &values).unwrap().outputs["y"].to_f64();
        for t in 0..tokens {
            let mut together = vec![0.0; width];
            for h in 0..heads {
                let at = h * head..(h + 1) * head;
                let score = |s: usize| -> f64 {
                    let dot: f64 = queries[t][at.clone()].iter().zip(&keys[s][at.clone()]).map(|(q, k)| q * k).sum();
                    (dot / (head as f64).sqrt()).exp()
                };
                let total: f64 = (0..=t).map(score).sum();
                for s in 0..=t {
                    let value = &rows[s][2 * width..][at.clone()];
                    let share = score(s) / total;
                    together[at.clone()].iter_mut().zip(value).for_each(|(sum, value)| *sum += share * value);
                }
            }
            for (c, expected) in product(&together, &proj).into_iter().enumerate() {
                let found = y[t * width + c];
                assert!((found - expected).abs() < 1e-9, "{norm}: token {t}, channel {c}: {found} and {expected}");
            }
        }
    }
}

/// A head of keys and values serves several of queries: the same as attention whose weights repeat theirs, in training, and
/// where a window's tokens come one after the other.
#[test]
fn a_head_of_keys_serves_several_heads_of_queries() {
    for (width, heads, kv_heads, more) in [
        (12, 6, 2, ""),
        (6, 3, 1, ", bias: true, scale: width"),
        (12, 3, 1, ", norm: head"),
        (4, 4, 2, ", dropout: 0.5"),
    ] {
        let (tokens, head, of_keys) = (7, width / heads, width / heads * kv_heads);
        let layer = |more: &str| layers(width, &format!("attention(heads: {heads}{more})")).remove(0);
        for mode in [Mode::Evaluate, Mode::Train] {
            let lower = |layer| lower_layer(&layer, &options(mode, 2), tokens).unwrap();
            let (grouped, full) = (lower(layer(&format!(", kv_heads: {kv_heads}{more}"))), lower(layer(more)));
            verified(&grouped);
            let values = bindings(&grouped.graph);
            let mut repeated = bindings(&full.graph);
            for kind in ["weight", "bias"] {
                let of = |name: &str| values.get(&format!("attention.{name}.{kind}")).map(Tensor::to_f64);
                let (Some(query), Some(key), Some(value)) = (of("query"), of("key"), of("value")) else { continue };
                let row = if kind == "weight" { width } else { 1 };
                assert_eq!((query.len(), key.len()), (width * row, of_keys * row));
                let mut all = query;
                for part in [key, value] {
                    for h in 0..heads {
                        let group = h / (heads / kv_heads);
                        all.extend(&part[group * head * row..(group + 1) * head * row]);
                    }
                }
                let name = format!("attention.qkv.{kind}");
                let shape = repeated[&name].shape().to_vec();
                repeated.insert(name, Tensor::new(shape, Data::F64(all)).unwrap());
            }
            for name in ["proj.weight", "proj.bias", "query_norm.gain", "key_norm.gain"] {
                let name = format!("attention.{name}");
                assert_eq!(values.get(&name), repeated.get(&name));
            }
            let of = |lowered: &Lowered, values| evaluate(&lowered.graph, values).unwrap().outputs["y"].to_f64();
            for (found, expected) in of(&grouped, &values).iter().zip(of(&full, &repeated)) {
                assert!((found - expected).abs() < 1e-9, "{heads} of {kv_heads}{more}: {found} and {expected}");
            }
        }
    }
}

const EVERYTHING: &str = include_str!("../../../tests/check/ok_everything.moe");

#[test]
fn later_tokens_do_not_reach_earlier_outputs() {
    for text in [EVERYTHING, include_str!("../../../specs/tiny.moe"), include_str!("../../../specs/dense.moe")] {
        let text = text.replace("capacity(factor: 1.5, minimum: 2),", "").replace("repeat 8", "repeat 1");
        let model = model(&text.replace("128", "24"));
        let lowered = lower(&model, &LowerOptions { loss: false, ..options(Mode::Evaluate, 1) }).unwrap();
        let mut values = bindings(&lowered.graph);
        let logits =
            |values: &BTreeMap<String, Tensor>| evaluate(&lowered.graph, values).unwrap().outputs["logits"].to_f64();
        let before = logits(&values);
        let (time, vocab) = (model.context, 7);
        for changed in [time - 1, time / 2] {
            let mut tokens = values["tokens"].as_i32().unwrap().to_vec();
            tokens[changed] = (tokens[changed] + 1) % 7;
            values.insert("tokens".into(), Tensor::ints(tokens));
            let after = logits(&values);
            assert_eq!(before[..changed * vocab], after[..changed * vocab]);
            assert_ne!(before[changed * vocab..], after[changed * vocab..]);
        }
    }
}

#[test]
fn every_graph_verifies_and_evaluates_in_both_modes() {
    let model = model(EVERYTHING);
    for mode in [Mode::Train, Mode::Evaluate] {
        let lowered = lower(&model, &LowerOptions { routes: true, ..options(mode, 2) }).unwrap();
        verified(&lowered);
        let result = evaluate(&lowered.graph, &bindings(&lowered.graph)).unwrap();
        for (name, value) in &result.outputs {
            assert!(value.to_f64().iter().all(|x| x.is_finite()), "{name} is not finite");
        }
        let objective = result.outputs["objective"].item().unwrap();
        let mut expected = result.outputs["loss"].item().unwrap();
        for moe in &lowered.moe_layers {
            for (loss, weight) in &moe.losses {
                expected += weight * result.outputs[&format!("aux.{}.{loss}", moe.path)].item().unwrap();
            }
            let load: f64 = result.outputs[&format!("load.{}", moe.path)].to_f64().iter().sum();
            let dropped = result.outputs[&format!("dropped.{}", moe.path)].item().unwrap();
            let slots = (2 * model.context * moe.experts_per_token as usize) as f64;
            assert!((load + dropped * slots - slots).abs() < 1e-9);
            assert!(result.outputs[&format!("balance.{}", moe.path)].item().unwrap() >= 1.0 - 1e-12);
        }
        assert!((objective - expected).abs() < 1e-9);
    }
}

#[test]
fn a_tied_output_layer_shares_the_table() {
    let tied = model("model m { context 3  vocab 7  embed(width: 4)  unembed(tied: true, bias: false) }");
    let lowered = lower(&tied, &options(Mode::Train, 1)).unwrap();
    let names: Vec<&str> = lowered.parameters.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["embed.token.weight", "embed.position.weight"]);
    assert_eq!(lowered.parameter_count(), 7 * 4 + 3 * 4);
}

#[test]
fn names_count_on_over_several_repeats_and_within_one_scope() {
    let model = model(
        "model m { context 3  vocab 7  embed(width: 4)
           repeat 2 { layer_norm  layer_norm  repeat 2 { linear(width: 4) } }
           repeat 1 { layer_norm }
           layer_norm  unembed }",
    );
    let lowered = lower(&model, &options(Mode::Train, 1)).unwrap();
    let paths: Vec<&str> = lowered.layers.iter().map(|layer| layer.path.as_str()).collect();
    let expected = [
        "embed",
        "blocks.0.layer_norm",
        "blocks.0.layer_norm_2",
        "blocks.0.linear",
        "blocks.0.linear_2",
        "blocks.1.layer_norm",
        "blocks.1.layer_norm_2",
        "blocks.1.linear",
        "blocks.1.linear_2",
        "blocks.2.layer_norm",
        "layer_norm",
        "unembed",
    ];
    assert_eq!(paths, expected);
    assert!(lowered.graph.find("blocks.1.linear_2.weight").is_some());
}

#[test]
fn capacity_is_never_zero() {
    for (tokens, k, experts, factor, minimum, expected) in [
        (1, 1, 64, 1.0, 1, 1),
        (3, 2, 8, 1.0, 1, 1),
        (24, 2, 8, 1.25, 1, 7),
        (24, 2, 8, 0.5, 4, 4),
        (0, 1, 1, 1e300, 1, 1),
    ] {
        let capacity = Capacity { factor, evaluation_factor: 0.0, minimum, ..Capacity::default() };
        assert_eq!(capacity.tokens(Mode::Train, tokens, k, experts), Some(expected));
        assert_eq!(capacity.tokens(Mode::Evaluate, tokens, k, experts), None);
    }
    let of = |counts_choices, rounds_up| {
        let capacity = Capacity { factor: 1.1, minimum: 1, counts_choices, rounds_up, ..Capacity::default() };
        capacity.tokens(Mode::Train, 24, 2, 7).unwrap()
    };
    // 48 / 7 * 1.1 = 7.54, and half of it.
    assert_eq!([of(true, false), of(true, true), of(false, false), of(false, true)], [7, 8, 3, 4]);
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let model = model("model m { context 1_000_000  vocab 7  embed(width: 4, positions: none)  unembed }");
    for (batch, vocab) in [(0, 7), (1, 0), (3000, 7), (usize::MAX, 7)] {
        let options = LowerOptions { vocab, ..options(Mode::Train, batch) };
        assert!(lower(&model, &options).is_err(), "batch {batch}, vocabulary {vocab}");
    }
    assert_eq!(model.layers[0].name(), "embed");
}

#[test]
fn evaluation_draws_no_noise_unless_asked() {
    for (arguments, random) in [("k: 2", false), ("k: 2, noise_at_evaluation: true", true)] {
        let moe = &layers(6, &format!("moe(experts: 3 * mlp(hidden: 4), route: noisy_top_k({arguments}))"))[0];
        let lowered = lower_layer(moe, &options(Mode::Evaluate, 1), 5).unwrap();
        assert_eq!(lowered.graph.find("rng").is_some(), random, "{arguments}");
    }
}

#[test]
fn matrices_are_the_weights_of_linear_maps() {
    let lowered = |text: &str| lower(&model(text), &options(Mode::Train, 2)).unwrap();
    let others = |lowered: &Lowered| -> Vec<String> {
        let names = lowered.parameters.iter().map(|(name, _)| name.clone());
        names.filter(|name| !lowered.matrices.contains(name)).collect()
    };
    let mixture = lowered(
        "model m { context 3  vocab 7  embed(width: 4)  layer_norm  attention(heads: 2)
         moe(experts: 3 * { rms_norm  mlp(hidden: 5, bias: true) }, route: sigmoid_top_k(k: 1))  unembed }",
    );
    let is_small = |name: &String| ["bias", "gain", "shift"].iter().any(|end| name.ends_with(end));
    let others = others(&mixture);
    assert!(others.iter().all(|name| is_small(name) || name.starts_with("embed.")), "{others:?}");
    assert!(mixture.matrices.iter().all(|name| name.ends_with("weight") && !name.starts_with("embed.")));
    for name in ["moe.router.weight", "moe.experts.mlp.up.weight", "attention.out.weight", "unembed.weight"] {
        assert!(mixture.parameters.iter().all(|(known, _)| known != name) || mixture.matrices.contains(name), "{name}");
    }
    assert!(mixture.matrices.len() >= 5, "{:?}", mixture.matrices);
    let outputs: Vec<&String> = mixture.matrices.difference(&mixture.hidden_matrices).collect();
    assert_eq!(outputs, ["unembed.weight"]);
    // The table of token vectors stays one where scores are products with it.
    let tied = lowered("model m { context 3  vocab 7  embed(width: 4)  unembed(tied: true, bias: false) }");
    assert!(tied.matrices.is_empty(), "{:?}", tied.matrices);
}

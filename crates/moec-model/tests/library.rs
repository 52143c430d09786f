//! The routers of the library: each against its equations in plain Rust, and what is known about it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;

use moec_ir::{DType, Data, Evaluation, Op, Precision, Stage, Tensor, evaluate, verify};
use moec_model::{
    CheckOptions, Checked, Form, InitScheme, LowerOptions, Lowered, Mode, Moe, NoisePolicy, Randomness, Registry,
    StateInit, TrainingText, Verdict, check, library, lower_layer,
};
use moec_syntax::{Code, SourceFile, format, parse};

const WIDTH: usize = 5;
const TIME: usize = 4;
const VOCAB: usize = 9;

fn checked(text: &str) -> (SourceFile, Checked) {
    let source = library::imported_into(SourceFile::new("model.moe", text));
    let file = parse(&source).unwrap_or_else(|faults| panic!("{}", faults[0].render(&source, false)));
    let checked = check(&source, &file, &Registry::with_builtins(), &CheckOptions::default());
    (source, checked)
}

/// What a router of the library did with made-up numbers.
struct Run {
    lowered: Lowered,
    bindings: BTreeMap<String, Tensor>,
    evaluation: Evaluation,
    experts: usize,
    tokens: usize,
}

fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as f64) / f64::from(1u32 << 31) * 2.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Runs `route` of the file `std/FILE.moe` for `batch` sequences; `states` replace those that the router starts with.
fn run(file: &str, route: &str, experts: usize, batch: usize, mode: Mode, states: &[(&str, Vec<f64>)]) -> Run {
    let text = format!(
        "import \"std/{file}.moe\"\nmodel m {{ context {TIME}  vocab {VOCAB}  embed(width: {WIDTH}, positions: none)\n  \
         moe(experts: {experts} * mlp(hidden: 3), route: {route})\n  unembed }}"
    );
    let (source, checked) = checked(&text);
    // With one choice its share is always 1, which is not the subject here.
    let others = checked.diagnostics.iter().filter(|d| d.code != Code::ZeroTaskGradient);
    let messages: Vec<String> = others.map(|d| d.render(&source, false)).collect();
    assert!(messages.is_empty(), "{}", messages.join("\n"));
    let layers = checked.model.unwrap().layers;
    let layer = layers.into_iter().find(|layer| layer.of::<Moe>().is_some()).unwrap();
    let options = LowerOptions {
        mode,
        batch,
        vocab: VOCAB,
        loss: true,
        noise: NoisePolicy::Injected,
        init: InitScheme::KaimingNormal,
        precision: Precision::F32,
        routes: true,
        form: Form::Sequences,
    };
    let lowered = lower_layer(&layer, &options, TIME).unwrap();
    verify(&lowered.graph, Stage::Forward).unwrap();
    let ids: Vec<i32> = (0..batch * TIME).map(|i| (i * 7 % VOCAB) as i32).collect();
    let training_text = TrainingText { tokens: &ids, vocab: VOCAB, embeddings: &|_| Err("there is none".into()) };
    let mut bindings = BTreeMap::new();
    for id in lowered.graph.ids() {
        match &lowered.graph.node(id).op {
            Op::Input { name, ty } if ty.dtype == DType::I32 => {
                bindings.insert(name.clone(), Tensor::new(ty.shape.clone(), Data::I32(ids.clone())).unwrap());
            }
            Op::Input { name, ty } | Op::Parameter { name, ty } => {
                let seed = name.bytes().fold(7, |h: u64, b| h.wrapping_mul(31).wrapping_add(b.into()));
                let values = Data::F64(numbers(ty.elements(), seed));
                bindings.insert(name.clone(), Tensor::new(ty.shape.clone(), values).unwrap());
            }
            _ => {}
        }
    }
    for (name, init) in &lowered.states {
        let given = states.iter().find(|(state, _)| name == &format!("moe.{state}"));
        let start = match init {
            StateInit::Tensor(tensor) => tensor.clone(),
            StateInit::Text(_) => init.resolve(&training_text).unwrap(),
        };
        let value = given.map(|(_, v)| Tensor::new(start.shape().to_vec(), Data::F64(v.clone())).unwrap());
        bindings.insert(name.clone(), value.unwrap_or(start));
    }
    let evaluation = evaluate(&lowered.graph, &bindings).unwrap();
    Run { lowered, bindings, evaluation, experts, tokens: batch * TIME }
}

impl Run {
    fn rows(&self, name: &str) -> Vec<f64> {
        self.bindings[&format!("moe.{name}")].to_f64()
    }

    /// The scores of a linear map, a row for each token.
    fn scores(&self, name: &str) -> Vec<Vec<f64>> {
        let (x, w) = (self.bindings["x"].to_f64(), self.rows(&format!("{name}.weight")));
        let bias = self.bindings.get(&format!("moe.{name}.bias")).map(Tensor::to_f64);
        let row = |token: &[f64]| -> Vec<f64> {
            let products = w.chunks(WIDTH).map(|row| row.iter().zip(token).map(|(a, b)| a * b).sum::<f64>());
            products.enumerate().map(|(e, sum)| sum + bias.as_ref().map_or(0.0, |bias| bias[e])).collect()
        };
        x.chunks(WIDTH).map(row).collect()
    }

    /// The weight of every expert for every token.
    fn gates(&self) -> Vec<Vec<f64>> {
        self.evaluation.outputs["gates.moe"].to_f64().chunks(self.experts).map(<[f64]>::to_vec).collect()
    }

    fn aux(&self, name: &str) -> f64 {
        self.evaluation.outputs[&format!("aux.moe.{name}")].to_f64()[0]
    }

    fn update(&self, name: &str) -> Vec<f64> {
        self.evaluation.updates[&format!("moe.{name}")].to_f64()
    }

    fn assert_gates(&self, expected: &[Vec<f64>]) {
        for (n, (ours, theirs)) in self.gates().iter().zip(expected).enumerate() {
            assert_near(ours, theirs, &format!("gates of token {n}"));
        }
    }
}

fn assert_near(ours: &[f64], theirs: &[f64], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let near = ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() < 1e-6 * (1.0 + b.abs()));
    assert!(near, "{what}: {ours:?} and {theirs:?}");
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let sum: f64 = row.iter().map(|v| v.exp()).sum();
    row.iter().map(|v| v.exp() / sum).collect()
}

fn sigmoid(v: f64) -> f64 {
    1.0 / (1.0 + (-v).exp())
}

/// The places of the largest, decreasing; of equal ones the lower first.
fn order(row: &[f64]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..row.len()).collect();
    places.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    places
}

/// A row that is 0 but where it is chosen.
fn only(row: &[f64], chosen: &[usize]) -> Vec<f64> {
    (0..row.len()).map(|e| if chosen.contains(&e) { row[e] } else { 0.0 }).collect()
}

fn shares(row: &[f64]) -> Vec<f64> {
    let sum: f64 = row.iter().sum();
    row.iter().map(|v| v / sum).collect()
}

fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = values.into_iter().fold((0.0, 0), |(sum, count), v| (sum + v, count + 1));
    sum / f64::from(count)
}

/// As numpy's `quantile`.
fn quantile(mut values: Vec<f64>, q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = q * (values.len() - 1) as f64;
    let (low, share) = (place.floor() as usize, place.fract());
    let high = values[(low + 1).min(values.len() - 1)];
    values[low] * (1.0 - share) + high * share
}

fn column(rows: &[Vec<f64>], e: usize) -> Vec<f64> {
    rows.iter().map(|row| row[e]).collect()
}

/// Whether an expert is used, as a number.
fn used(gate: f64) -> f64 {
    f64::from(u8::from(gate != 0.0))
}

#[test]
fn every_file_is_sound_and_in_the_canonical_layout() {
    for file in library::LIBRARY {
        let source = SourceFile::new(file.path, file.text);
        assert_eq!(format(&source).unwrap(), file.text, "{}", file.path);
        let (source, checked) = checked(file.text);
        let messages: Vec<String> = checked.diagnostics.iter().map(|d| d.render(&source, false)).collect();
        let faults: Vec<&String> = messages.iter().filter(|m| !m.contains("no model")).collect();
        assert!(faults.is_empty(), "{}: {faults:?}", file.path);
    }
    let all = library::routers();
    let names: Vec<&str> = all.iter().map(|(_, router)| router.name()).collect();
    for (path, router) in &all {
        assert!(Registry::with_builtins().find_router(router.name()).is_none(), "{}", router.name());
        assert_eq!(library::file_of(router.name()), Some(*path));
        let parameters = router.parameters().iter();
        assert!(parameters.clone().all(|p| p.help != "a parameter of this router"), "{}", router.name());
    }
    assert_eq!(names.len(), 13, "{names:?}");
    assert!(library::read("std/none.moe").unwrap().unwrap_err().contains("`std/top_p.moe`"));
    assert_eq!(library::read("other/none.moe"), None);
}

#[test]
fn what_is_known_follows_from_the_expressions() {
    for (_, router) in library::routers() {
        let traits = router.default_traits();
        let verdict = match router.name() {
            "sinkhorn_top_k" | "sequence_choice" => Verdict::SamplesDifferently,
            _ => Verdict::Causal,
        };
        assert_eq!((traits.verdict(), traits.random), (verdict, Randomness::Never), "{}", router.name());
        assert!(!traits.counts_tokens, "{}", router.name());
        assert!(traits.learns_from_task, "{}", router.name());
    }
}

#[test]
fn top_p_takes_experts_until_they_have_p() {
    for (experts, p) in [(1, 0.4), (3, 0.7), (7, 0.3), (7, 1.0)] {
        let run = run("top_p", &format!("top_p(p: {p:?})"), experts, 3, Mode::Train, &[]);
        let probabilities: Vec<Vec<f64>> = run.scores("scores").iter().map(|row| softmax(row)).collect();
        let taken = |row: &Vec<f64>| {
            let places = order(row);
            let mut sum = 0.0;
            let few = places.iter().take_while(|&&e| {
                let go_on = sum < p;
                sum += row[e];
                go_on
            });
            let few: Vec<usize> = few.copied().collect();
            only(row, &few)
        };
        let expected: Vec<Vec<f64>> = probabilities.iter().map(taken).collect();
        run.assert_gates(&expected);
        let entropy = mean(probabilities.iter().map(|row| -row.iter().map(|p| p * (p + 1e-9).ln()).sum::<f64>()));
        assert_near(&[run.aux("entropy")], &[entropy], "entropy");

        let controlled =
            self::run("top_p", "controlled_top_p(k: 2, rate: 0.5)", experts, 3, Mode::Train, &[("p", vec![p])]);
        let theirs: Vec<Vec<f64>> = controlled.scores("scores").iter().map(|row| taken(&softmax(row))).collect();
        controlled.assert_gates(&theirs);
        let number = mean(theirs.iter().map(|row| row.iter().map(|g| used(*g)).sum::<f64>()));
        assert_near(&controlled.update("p"), &[(p + 0.5 * (2.0 - number)).clamp(1e-3, 1.0)], "p");
    }
}

#[test]
fn the_relu_router_pays_for_what_it_uses() {
    for experts in [1, 3, 7] {
        let k = 1.max(experts / 3);
        let run =
            run("relu_router", &format!("relu_router(k: {k})"), experts, 2, Mode::Train, &[("strength", vec![0.25])]);
        let gates: Vec<Vec<f64>> =
            run.scores("scores").iter().map(|row| row.iter().map(|v| v.max(0.0)).collect()).collect();
        run.assert_gates(&gates);
        let share = |e: usize| mean(column(&gates, e).into_iter().map(used)) * experts as f64 / k as f64;
        let paid = mean(gates.iter().map(|row| (0..experts).map(|e| share(e) * row[e]).sum::<f64>()));
        assert_near(&[run.aux("sparsity")], &[0.25 * paid], "loss");
        let all = mean(gates.iter().flatten().map(|g| used(*g)));
        let missing = all - k as f64 / experts as f64;
        let factor = if missing == 0.0 { 1.0 } else { 1.2f64.powf(missing.signum()) };
        assert_near(&run.update("strength"), &[0.25 * factor], "strength");
    }
}

#[test]
fn prices_are_the_quantiles_that_balance() {
    for (experts, k) in [(3, 1), (7, 3), (33, 4)] {
        let price = numbers(experts, 11).iter().map(|v| 0.05 * v).collect::<Vec<f64>>();
        let route = format!("quantile_top_k(k: {k}, memory: 0.25, scale: 2.0)");
        let run = run("quantile_balancing", &route, experts, 3, Mode::Train, &[("price", price.clone())]);
        let s: Vec<Vec<f64>> =
            run.scores("scores").iter().map(|row| row.iter().map(|v| sigmoid(*v)).collect()).collect();
        let biased: Vec<Vec<f64>> =
            s.iter().map(|row| row.iter().zip(&price).map(|(s, price)| s - price).collect()).collect();
        let expected: Vec<Vec<f64>> = (s.iter().zip(&biased))
            .map(|(row, biased)| shares(&only(row, &order(biased)[..k])).iter().map(|w| 2.0 * w).collect())
            .collect();
        run.assert_gates(&expected);
        let margin: Vec<Vec<f64>> = (s.iter().zip(&biased))
            .map(|(row, biased)| {
                let cutoff = biased[order(biased)[k]];
                row.iter().map(|s| s - cutoff).collect()
            })
            .collect();
        let next: Vec<f64> = (0..experts)
            .map(|e| 0.25 * price[e] + 0.75 * quantile(column(&margin, e), 1.0 - k as f64 / experts as f64))
            .collect();
        let middle = mean(next.iter().copied());
        assert_near(&run.update("price"), &next.iter().map(|p| p - middle).collect::<Vec<f64>>(), "prices");
    }
}

#[test]
fn roots_of_softplus_weigh_and_a_bias_or_a_table_selects() {
    let root = |v: f64| (v.exp().ln_1p() + 1e-20).sqrt();
    for (experts, k) in [(1, 1), (3, 2), (7, 7)] {
        let bias = numbers(experts, 5);
        let route = format!("sqrt_softplus_top_k(k: {k}, scale: 2.5)");
        let run = run("sqrt_softplus", &route, experts, 3, Mode::Train, &[("balance_bias", bias.clone())]);
        let s: Vec<Vec<f64>> = run.scores("scores").iter().map(|row| row.iter().map(|v| root(*v)).collect()).collect();
        let weighed = |row: &[f64], chosen: &[usize], scale: f64| -> Vec<f64> {
            shares(&only(row, chosen)).iter().map(|w| scale * w).collect()
        };
        let expected: Vec<Vec<f64>> = (s.iter())
            .map(|row| {
                let biased: Vec<f64> = row.iter().zip(&bias).map(|(s, b)| s + b).collect();
                weighed(row, &order(&biased)[..k], 2.5)
            })
            .collect();
        run.assert_gates(&expected);
        let load: Vec<f64> = (0..experts).map(|e| column(&expected, e).into_iter().map(used).sum()).collect();
        let middle = mean(load.iter().copied());
        let change: Vec<f64> =
            load.iter().map(|n| if *n == middle { 0.0 } else { 1e-3 * (middle - n).signum() }).collect();
        let drift = mean(change.iter().copied());
        let next: Vec<f64> = bias.iter().zip(&change).map(|(b, c)| b + c - drift).collect();
        assert_near(&run.update("balance_bias"), &next, "bias");

        let hashed = self::run("sqrt_softplus", &format!("hash_softplus(k: {k})"), experts, 3, Mode::Train, &[]);
        let table = hashed.rows("experts_of");
        let ids = hashed.bindings["tokens"].to_f64();
        let scores = hashed.scores("scores");
        let expected: Vec<Vec<f64>> = (scores.iter().zip(&ids))
            .map(|(row, id)| {
                let row: Vec<f64> = row.iter().map(|v| root(*v)).collect();
                let entries = &table[*id as usize * k..][..k];
                weighed(&row, &entries.iter().map(|e| *e as usize).collect::<Vec<usize>>(), 1.0)
            })
            .collect();
        hashed.assert_gates(&expected);
    }
}

#[test]
fn thresholds_follow_the_quantile_of_the_scores() {
    for (experts, k) in [(3, 1), (7, 2)] {
        let threshold: Vec<f64> = numbers(experts, 3).iter().map(|v| 0.5 + 0.1 * v).collect();
        let route = format!("expert_threshold(k: {k}, memory: 0.75)");
        let run = run("expert_threshold", &route, experts, 3, Mode::Train, &[("threshold", threshold.clone())]);
        let s: Vec<Vec<f64>> =
            run.scores("scores").iter().map(|row| row.iter().map(|v| sigmoid(*v)).collect()).collect();
        let above = |row: &Vec<f64>| row.iter().zip(&threshold).map(|(s, t)| if s > t { *s } else { 0.0 }).collect();
        run.assert_gates(&s.iter().map(above).collect::<Vec<Vec<f64>>>());
        let next: Vec<f64> = (0..experts)
            .map(|e| 0.75 * threshold[e] + 0.25 * quantile(column(&s, e), 1.0 - k as f64 / experts as f64))
            .collect();
        assert_near(&run.update("threshold"), &next, "thresholds");
    }
}

#[test]
fn cosines_are_compared_over_a_temperature() {
    for (experts, k, channels) in [(1, 1, 1), (3, 2, 3), (7, 3, 17)] {
        let run = run("cosine", &format!("cosine_top_k(k: {k}, channels: {channels})"), experts, 2, Mode::Train, &[]);
        let unit = |row: &[f64]| -> Vec<f64> {
            let length = (row.iter().map(|v| v * v).sum::<f64>() + 1e-12).sqrt();
            row.iter().map(|v| v / length).collect()
        };
        let directions: Vec<Vec<f64>> = run.rows("directions").chunks(channels).map(unit).collect();
        let heat = run.rows("heat")[0].max(0.01);
        let expected: Vec<Vec<f64>> = (run.scores("low").iter())
            .map(|low| {
                let low = unit(low);
                let scores: Vec<f64> =
                    directions.iter().map(|d| d.iter().zip(&low).map(|(a, b)| a * b).sum::<f64>() / heat).collect();
                only(&softmax(&scores), &order(&scores)[..k])
            })
            .collect();
        run.assert_gates(&expected);
    }
}

#[test]
fn sinkhorn_balances_in_training_and_chooses_by_score_when_sampling() {
    for (experts, k) in [(3, 1), (7, 2)] {
        for mode in [Mode::Train, Mode::Evaluate] {
            let run = run("sinkhorn", &format!("sinkhorn_top_k(k: {k}, rounds: 5)"), experts, 3, mode, &[]);
            let scores = run.scores("scores");
            let mut of_token = vec![1.0; scores.len()];
            let mut of_expert = vec![1.0; experts];
            let wish: Vec<Vec<f64>> = scores.iter().map(|row| row.iter().map(|v| v.exp()).collect()).collect();
            for _ in 0..5 {
                for (token, row) in of_token.iter_mut().zip(&wish) {
                    *token = 1.0 / row.iter().zip(&of_expert).map(|(w, e)| w * e).sum::<f64>();
                }
                for (e, expert) in of_expert.iter_mut().enumerate() {
                    *expert = 1.0 / wish.iter().zip(&of_token).map(|(row, t)| row[e] * t).sum::<f64>();
                }
            }
            let expected: Vec<Vec<f64>> = (scores.iter().zip(&wish))
                .map(|(scores, wish)| {
                    let plan: Vec<f64> = wish.iter().zip(&of_expert).map(|(w, e)| w * e).collect();
                    let chosen = order(if mode == Mode::Train { &plan } else { scores })[..k].to_vec();
                    let gates = if k > 1 { softmax(scores) } else { scores.iter().map(|v| sigmoid(*v)).collect() };
                    only(&gates, &chosen)
                })
                .collect();
            run.assert_gates(&expected);
        }
    }
}

#[test]
fn a_sequence_is_chosen_from_in_training_and_guessed_when_sampling() {
    for (experts, k) in [(1, 1.0), (3, 1.0), (7, 2.0)] {
        for mode in [Mode::Train, Mode::Evaluate] {
            let run = run("sequence_choice", &format!("sequence_choice(k: {k:?})"), experts, 3, mode, &[]);
            let p: Vec<Vec<f64>> = run.scores("scores").iter().map(|row| softmax(row)).collect();
            let guess = run.scores("guess");
            let few = ((k * TIME as f64 / experts as f64) as usize).clamp(1, TIME);
            let wanted = |n: usize, e: usize| -> f64 {
                let start = n / TIME * TIME;
                let of: Vec<f64> = (start..start + TIME).map(|m| p[m][e]).collect();
                f64::from(u8::from(order(&of)[..few].contains(&(n - start))))
            };
            let guessed = |n: usize, e: usize| f64::from(u8::from(guess[n][e] > 0.0));
            let taken = |n, e| if mode == Mode::Train { wanted(n, e) } else { guessed(n, e) };
            let rows = 0..run.tokens;
            let expected: Vec<Vec<f64>> =
                rows.clone().map(|n| (0..experts).map(|e| taken(n, e) * p[n][e]).collect()).collect();
            run.assert_gates(&expected);
            let terms = rows.flat_map(|n| (0..experts).map(move |e| (n, e)));
            let loss = mean(terms.map(|(n, e)| guess[n][e].exp().ln_1p() - wanted(n, e) * guess[n][e]));
            assert_near(&[run.aux("guess")], &[loss], "loss of the guess");
        }
    }
}

#[test]
fn directions_are_pulled_apart() {
    let run = run("similarity", "similar_top_k(k: 2)", 3, 2, Mode::Train, &[]);
    let rows = run.rows("scores.weight");
    let rows: Vec<&[f64]> = rows.chunks(WIDTH).collect();
    let mut sum = 0.0;
    for (i, a) in rows.iter().enumerate() {
        for (j, b) in rows.iter().enumerate() {
            let product: f64 = a.iter().zip(*b).map(|(a, b)| a * b).sum();
            sum += (product - f64::from(u8::from(i == j))).abs();
        }
    }
    assert_near(&[run.aux("similarity")], &[sum], "loss");
    let chosen = |row: &Vec<f64>| {
        let best = &order(row)[..2];
        let lowest = f64::MIN / 4.0;
        let kept: Vec<f64> = (0..3).map(|e| if best.contains(&e) { row[e] } else { lowest }).collect();
        softmax(&kept)
    };
    run.assert_gates(&run.scores("scores").iter().map(chosen).collect::<Vec<Vec<f64>>>());
}

#[test]
fn loads_can_be_forced() {
    for (experts, k) in [(1, 1), (4, 1), (4, 2), (4, 4)] {
        let even = run("forced", &format!("forced_balance(k: {k})"), experts, 3, Mode::Train, &[]);
        let gates = even.gates();
        for e in 0..experts {
            let load: f64 = column(&gates, e).into_iter().map(used).sum();
            assert_eq!(load, (12 * k / experts) as f64, "{experts} {k}");
        }
        assert!(gates.iter().all(|row| (row.iter().sum::<f64>() - 1.0).abs() < 1e-6));
        let uneven = run("forced", &format!("forced_imbalance(k: {k})"), experts, 3, Mode::Train, &[]);
        let first: Vec<f64> = (0..experts).map(|e| if e < k { 1.0 / k as f64 } else { 0.0 }).collect();
        uneven.assert_gates(&vec![first; 12]);
    }
    // One token in two goes to the others, in turns: positions 0 and 2 of each sequence.
    let some = run("forced", "forced_imbalance(k: 1, every: 2)", 4, 2, Mode::Train, &[]);
    let experts: Vec<usize> = some.gates().iter().map(|row| order(row)[0]).collect();
    assert_eq!(experts, [1, 0, 2, 0, 1, 0, 2, 0]);
    assert_eq!(some.lowered.parameters.len(), 4, "experts alone have parameters");
}

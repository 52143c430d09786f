//! Routers written in the language: those in `examples/routers`, and small ones for every rule.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::path::Path;

use moec_ir::{Data, Evaluation, Precision, Stage, Tensor, evaluate, print, verify};
use moec_model::{
    Arguments, Causality, CheckOptions, Checked, Compares, Form, InitScheme, Layer, LowerOptions, Lowered, Mode, Model,
    Moe, NoisePolicy, Quantity, ROUTER_FUNCTIONS, ROUTER_RESULTS, Randomness, Reads, Registry, RoutingStrategy,
    TrainingText, Traits, Verdict, check, lower, lower_layer,
};
use moec_syntax::{SourceFile, format, parse};

fn example(name: &str) -> SourceFile {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/routers").join(name);
    SourceFile::new(name, std::fs::read_to_string(path).unwrap())
}

fn checked(source: &SourceFile) -> Checked {
    let shown = |d: &moec_syntax::Diagnostic| d.render(source, false);
    let file = parse(source).unwrap_or_else(|faults| panic!("{}", shown(&faults[0])));
    let checked = check(source, &file, &Registry::with_builtins(), &CheckOptions::default());
    // What a router of a test cannot learn is not its subject.
    let others = checked.diagnostics.iter().filter(|d| d.code != moec_syntax::Code::ZeroTaskGradient);
    let messages: Vec<String> = others.map(shown).collect();
    assert!(messages.is_empty(), "{}", messages.join("\n"));
    checked
}

fn options(mode: Mode) -> LowerOptions {
    LowerOptions {
        mode,
        batch: 3,
        vocab: 19,
        loss: true,
        noise: NoisePolicy::Generated,
        init: InitScheme::KaimingNormal,
        precision: Precision::F32,
        routes: true,
        form: Form::Sequences,
    }
}

/// The example's model, with the route as written and with another in its place.
fn both(name: &str, route: &str, other: &str) -> (Model, Model) {
    let source = example(name);
    let text = source.text();
    assert_eq!(text.matches(route).count(), 1, "{name}");
    let ours = checked(&source).model.unwrap();
    // Without its definition, so that only the built-in one is there to be used.
    let model = &text[text.find("\nmodel ").unwrap()..];
    let theirs = checked(&SourceFile::new(name, model.replace(route, other))).model.unwrap();
    (ours, theirs)
}

#[test]
fn examples_are_in_the_canonical_layout_and_sound() {
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/routers")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        if !name.ends_with(".moe") {
            continue;
        }
        let source = example(&name);
        assert_eq!(format(&source).unwrap(), source.text(), "{name}");
        let model = checked(&source).model.unwrap();
        assert_eq!(model.causality, Causality::Causal, "{name}");
        for mode in [Mode::Train, Mode::Evaluate] {
            lower(&model, &options(mode)).unwrap();
        }
    }
}

#[test]
fn what_is_written_in_the_language_lowers_like_the_built_in() {
    for (name, route, other) in [
        ("noisy_gate.moe", "route:   noisy_gate(k: 2)", "route: noisy_top_k(k: 2)"),
        ("unbiased_gate.moe", "route: unbiased_gate(k: 2)", "route: sigmoid_top_k(k: 2)"),
    ] {
        let (ours, theirs) = both(name, route, other);
        for mode in [Mode::Train, Mode::Evaluate] {
            let (a, b) = (lower(&ours, &options(mode)).unwrap(), lower(&theirs, &options(mode)).unwrap());
            assert_eq!(print(&a.graph), print(&b.graph), "{name} {mode:?}");
            assert_eq!(a.parameters, b.parameters, "{name}");
        }
    }
}

/// A file of one `moe` layer with a router called `r`.
fn layer(router: &str, arguments: &str, experts: usize, more: &str) -> Layer {
    let text = format!(
        "{router}\nmodel m {{ context 4  vocab 9  embed(width: 5, positions: none)\n  \
         moe(experts: {experts} * mlp(hidden: 3), route: r{arguments}{more})\n  unembed }}"
    );
    let layers = checked(&SourceFile::new("router.moe", text)).model.unwrap().layers;
    layers.into_iter().find(|layer| layer.of::<Moe>().is_some()).unwrap()
}

fn traits(router: &str, arguments: &str) -> Traits {
    let layer = layer(router, arguments, 4, ", allow: lookahead, balance: [importance]");
    let moe = layer.of::<Moe>().unwrap();
    moe.route.strategy.traits(&moe.route.arguments)
}

/// Numbers that look random and are the same on every machine.
fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as f64) / f64::from(1u32 << 31) * 2.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn floats(shape: &[usize], seed: u64) -> Tensor {
    Tensor::new(shape.to_vec(), Data::F64(numbers(shape.iter().product(), seed))).unwrap()
}

/// Lowers and evaluates a layer for `batch * 4` tokens, every parameter and input made up.
fn run(layer: &Layer, mode: Mode, batch: usize) -> (Lowered, Evaluation, BTreeMap<String, Tensor>) {
    let options = LowerOptions { batch, noise: NoisePolicy::Injected, ..options(mode) };
    let lowered = lower_layer(layer, &options, 4).unwrap();
    verify(&lowered.graph, Stage::Forward).unwrap();
    let mut bindings = BTreeMap::new();
    for id in lowered.graph.ids() {
        let node = lowered.graph.node(id);
        let ty = &node.results[0];
        match &node.op {
            moec_ir::Op::Input { name, .. } if ty.dtype == moec_ir::DType::I32 => {
                let ids = (0..ty.elements()).map(|i| (i * 7 % 9) as i32).collect();
                bindings.insert(name.clone(), Tensor::new(ty.shape.clone(), Data::I32(ids)).unwrap());
            }
            moec_ir::Op::Input { name, .. } | moec_ir::Op::Parameter { name, .. } => {
                let seed = name.bytes().fold(7, |h: u64, b| h.wrapping_mul(31).wrapping_add(b.into()));
                bindings.insert(name.clone(), floats(&ty.shape, seed));
            }
            _ => {}
        }
    }
    for (name, init) in &lowered.states {
        let moec_model::StateInit::Tensor(tensor) = init else { panic!("{name} is made of text") };
        bindings.insert(name.clone(), tensor.clone());
    }
    let evaluation = evaluate(&lowered.graph, &bindings).unwrap();
    (lowered, evaluation, bindings)
}

#[test]
fn the_reference_shows_a_router_that_is_sound_and_names_every_function() {
    let readme = include_str!("../../../grammar/README.md");
    let start = readme.find("// Top-k of sigmoids;").unwrap();
    let text = &readme[start..start + readme[start..].find("```").unwrap()];
    assert_eq!(format(&SourceFile::new("readme", text)).unwrap(), text);
    let strategy = {
        let text = text.replace("fair_top_k", "r");
        let layer = layer(&text, "(k: 2)", 4, "");
        let moe = layer.of::<Moe>().unwrap();
        moe.route.strategy.clone()
    };
    assert_eq!(strategy.summary(), "Top-k of sigmoids; a bias that only selects keeps the experts equally busy");
    let kept = "\nParameters: scores.weight [experts, width]. State: bias [experts].\n\
                Cost in products: [tokens, width] x [width, experts].";
    assert!(strategy.equations().ends_with(kept), "{}", strategy.equations());
    for function in ROUTER_FUNCTIONS.iter().chain(ROUTER_RESULTS) {
        assert!(readme.contains(&format!("`{}", function.name)), "{} is not in the reference", function.name);
    }
}

#[test]
fn the_router_of_the_page_for_makemoe_is_random_in_training_only() {
    let page = include_str!("../../../docs/from-makemoe.md");
    let start = page.find("router noisy(").unwrap();
    let text = &page[start..start + page[start..].find("```").unwrap()];
    assert_eq!(format(&SourceFile::new("page", text)).unwrap(), text);
    let traits = traits(&text.replace("router noisy(", "router r("), "(k: 2)");
    assert_eq!((traits.random, traits.learns_from_task), (Randomness::Training, true));
}

/// Who pastes a router of a page into the first model of the README has a model, with what the page says to change.
#[test]
fn routers_of_the_pages_can_be_used_in_the_first_model() {
    let readme = include_str!("../../../README.md");
    let part = |page: &str, first: &str| {
        let start = page.find(first).unwrap();
        page[start..start + page[start..].find("```").unwrap()].to_string()
    };
    let model = part(readme, "model my_first {");
    let margin = readme.contains("`switch(weight: 0.01)` takes the place of `load`").then_some("switch");
    let noisy = part(include_str!("../../../docs/from-makemoe.md"), "router noisy(");
    for (router, name, loss) in
        [(part(readme, "router margin_top_k("), "margin_top_k", margin), (noisy, "noisy", Some("load"))]
    {
        let model = model.replace("noisy_top_k", name).replace("load(", &format!("{}(", loss.unwrap_or("load")));
        let source = SourceFile::new("pasted.moe", format!("{model}\n{router}"));
        let checked = check(&source, &parse(&source).unwrap(), &Registry::with_builtins(), &CheckOptions::default());
        assert_eq!(checked.diagnostics, [], "{name}");
    }
}

#[test]
fn traits_follow_from_the_expressions() {
    let top = "let l = linear(x, experts) let v, c = top_k(l, k)";
    let router = |body: &str| format!("router r(k: int) {{ {body} }}");
    let softmax = router(&format!("{top} return token_choice(experts: c, weights: softmax(v), logits: l)"));
    let plain = Traits { provides: &[Quantity::Logits, Quantity::Probabilities], ..Traits::default() };
    assert_eq!(traits(&softmax, "(k: 2)"), plain);
    // The softmax of one score, and what one number is of its own sum, are 1.
    assert!(!traits(&softmax, "(k: 1)").learns_from_task);
    let chosen = "let l = linear(x, experts) let _, c = top_k(l, k)";
    let share = router(&format!(
        "{chosen} let s = gather(sigmoid(l), c) return token_choice(experts: c, weights: s / (1e-20 + sum(s, over: experts)))"
    ));
    assert!(traits(&share, "(k: 2)").learns_from_task && !traits(&share, "(k: 1)").learns_from_task);
    let constant = router(&format!("{top} return token_choice(experts: c, weights: stop_gradient(v))"));
    assert!(!traits(&constant, "(k: 2)").learns_from_task);
    let own = router(&format!("{top} aux spread = mean(l) return token_choice(experts: c, weights: stop_gradient(v))"));
    assert!(traits(&own, "(k: 2)").learns_from_task);

    // Counting changes later steps; subtracting the mean changes this one.
    let later = router(&format!(
        "state n = zeros(experts) {top} update n = n + count(c) return token_choice(experts: c, weights: v - gather(l - n, c))"
    ));
    assert_eq!(traits(&later, "(k: 2)").verdict(), Verdict::Causal);
    let centred = "let l = linear(x, experts) let m = l - mean(l, over: tokens) let v, c = top_k(m, k)";
    let centred = router(&format!("{centred} return token_choice(experts: c, weights: softmax(v))"));
    assert_eq!(
        (traits(&centred, "(k: 2)").compares, traits(&centred, "(k: 2)").verdict()),
        (Compares::Batch, Verdict::LooksAhead)
    );
    let summed = |axis: &str| {
        let scores = format!("let l = linear(x, experts) let m = l - cumsum(l, over: {axis}) let v, c = top_k(m, k)");
        let router = router(&format!("{scores} return token_choice(experts: c, weights: softmax(v))"));
        (traits(&router, "(k: 2)").compares, traits(&router, "(k: 2)").verdict())
    };
    assert_eq!(summed("experts"), (Compares::None, Verdict::Causal));
    assert_eq!(summed("positions"), (Compares::EarlierTokens, Verdict::Causal));
    // Along the batch, the tokens of other sequences are in the sum.
    assert_eq!(summed("tokens"), (Compares::Batch, Verdict::LooksAhead));
    let in_training = "let l = linear(x, experts) let m = if training { softmax(l, over: tokens) } else { l } \
                       let v, c = top_k(m, k)";
    let in_training = router(&format!("{in_training} return token_choice(experts: c, weights: softmax(v))"));
    assert_eq!(traits(&in_training, "(k: 2)").verdict(), Verdict::SamplesDifferently);

    // Sizes that only the model knows may decide: then it is what any of them could make of it.
    for size in ["experts > 8", "width > 100", "tokens == 64.0", "_large"] {
        let top = "let l = linear(x, experts) let _large = 2 * experts > 99";
        let centred = "let v, c = top_k(m, k) return token_choice(experts: c, weights: softmax(v))";
        for (yes, no) in [("l", "l - mean(l, over: tokens)"), ("l - mean(l, over: tokens)", "l")] {
            let router = router(&format!("{top} let m = if {size} {{ {yes} }} else {{ {no} }} {centred}"));
            assert_eq!(traits(&router, "(k: 2)").verdict(), Verdict::LooksAhead, "{router}");
        }
        let router = router(&format!("{top} let m = if {size} {{ l }} else {{ l + normal() }} {centred}"));
        assert_eq!(traits(&router, "(k: 2)").random, Randomness::Always, "{router}");
    }

    let noisy = |when: &str| {
        router(&format!(
            "let l = linear(x, experts) let h = if {when} {{ l + normal() }} else {{ l }} let v, c = top_k(h, k) \
             return token_choice(experts: c, weights: softmax(v), logits: l, noisy: h, std: 1.0)"
        ))
    };
    let all = &[Quantity::Logits, Quantity::Probabilities, Quantity::NoisyScores];
    let training = traits(&noisy("training"), "(k: 2)");
    assert_eq!((training.random, training.provides), (Randomness::Training, all.as_slice()));
    assert_eq!(traits(&noisy("true"), "(k: 2)").random, Randomness::Always);
    let never = traits(&noisy("false"), "(k: 2)");
    assert_eq!((never.random, never.provides.len()), (Randomness::Never, 2));

    let hash =
        router("return token_choice(experts: index((float(token_ids) + k * float(position)) % experts), weights: 1.0)");
    let hash = traits(&hash, "(k: 2)");
    assert_eq!(hash.reads, Reads { activations: false, token_ids: true, positions: true });
    assert!(hash.learns_from_task, "there is nothing to learn");
}

#[test]
fn experts_per_token_are_known_where_the_expressions_say_so() {
    let experts_of = |body: &str| {
        let router = format!("router r(k: int) {{ let l = linear(x, experts) {body} }}");
        let layer = layer(&router, "(k: 3)", 7, ", balance: [importance]");
        let moe = layer.of::<Moe>().unwrap();
        moe.route.experts_per_token(7, 4)
    };
    for (body, expected) in [
        ("let v, c = top_k(l, k) return token_choice(experts: c, weights: softmax(v))", 3.0),
        ("let v, c = top_k(l, k - 1) return token_choice(experts: c, weights: softmax(v))", 2.0),
        ("return token_choice(experts: index(sum(l, over: experts) + k), weights: 1.0)", 1.0),
        ("return dense_gates(softmax(keep_top_k(l, k)))", 3.0),
        ("return dense_gates(2.0 * softmax(keep_top_k(l, k)) * sigmoid(l))", 3.0),
        ("let v, c = top_k(l, 2 * k / 3) return dense_gates(scatter(softmax(v), c))", 2.0),
        ("return dense_gates(softmax(l * k))", 7.0),
        ("return dense_gates(keep_top_k(l, k))", 7.0),
    ] {
        assert_eq!(experts_of(body), expected, "{body}");
    }
}

/// Every function against plain Rust, on sizes that divide nothing.
#[test]
fn functions_compute_what_they_say() {
    let (tokens, experts, k) = (12, 7, 3);
    let evaluate = |expression: &str| -> (Vec<f64>, Vec<f64>) {
        // What is asked about is the loss; the scores come out as logits' loss z of nothing else.
        let router = format!(
            "router r(k: int) {{ let l = linear(x, experts, bias: true) let v, c = top_k(l, k) let p = softmax(l) \
             aux asked = {expression} return dense_gates(l + 0.0 * sum(v, over: experts) * count(c) * p, logits: l) }}"
        );
        let layer = layer(&router, &format!("(k: {k})"), experts, ", balance: [z], allow: lookahead");
        let (_, evaluation, bindings) = run(&layer, Mode::Train, tokens / 4);
        let (x, w, b) = (bindings["x"].to_f64(), bindings["moe.l.weight"].to_f64(), bindings["moe.l.bias"].to_f64());
        let score = |n: usize, e: usize| b[e] + (0..5).map(|i| x[n * 5 + i] * w[e * 5 + i]).sum::<f64>();
        let scores = (0..tokens).flat_map(|n| (0..experts).map(move |e| (n, e))).map(|(n, e)| score(n, e)).collect();
        (evaluation.outputs["aux.moe.asked"].to_f64(), scores)
    };
    let row = |l: &[f64], n: usize| l[n * experts..(n + 1) * experts].to_vec();
    let sorted = |mut row: Vec<f64>| {
        row.sort_by(|a, b| b.total_cmp(a));
        row
    };
    let lse = |values: &[f64]| values.iter().map(|v| v.exp()).sum::<f64>().ln();
    type Expected<'a> = Box<dyn Fn(&[f64]) -> f64 + 'a>;
    let each_row = |f: &'static dyn Fn(Vec<f64>) -> f64| -> Expected<'_> {
        Box::new(move |l: &[f64]| (0..tokens).map(|n| f(row(l, n))).sum::<f64>() / tokens as f64)
    };
    let cases: Vec<(&str, Expected<'_>)> = vec![
        ("mean(max(l, over: experts))", each_row(&|r| r.into_iter().fold(f64::MIN, f64::max))),
        ("mean(min(l, over: experts))", each_row(&|r| r.into_iter().fold(f64::MAX, f64::min))),
        ("mean(sum(l, over: experts))", each_row(&|r| r.into_iter().sum())),
        ("mean(mean(l * l, over: experts))", each_row(&|r| r.iter().map(|v| v * v).sum::<f64>() / 7.0)),
        ("mean(log_sum_exp(l))", each_row(&|r| r.iter().map(|v| v.exp()).sum::<f64>().ln())),
        (
            "mean(sum(select(l > 0, l, -1.0), over: experts))",
            each_row(&|r| r.iter().map(|&v| if v > 0.0 { v } else { -1.0 }).sum()),
        ),
        (
            "mean(sum((l <= 0.5) - (l != l), over: experts))",
            each_row(&|r| r.iter().filter(|v| **v <= 0.5).count() as f64),
        ),
        (
            "mean(sum(max(l, 0) - relu(l) + min(l, 0), over: experts))",
            each_row(&|r| r.iter().map(|v| v.min(0.0)).sum()),
        ),
        (
            "mean(sum(v, over: experts))",
            Box::new(|l| (0..tokens).map(|n| sorted(row(l, n))[..k].iter().sum::<f64>()).sum::<f64>() / tokens as f64),
        ),
        (
            "mean(sum(gather(-l, c) + v, over: experts)) + mean(sum(scatter(v, c), over: experts))",
            Box::new(|l| (0..tokens).map(|n| sorted(row(l, n))[..k].iter().sum::<f64>()).sum::<f64>() / tokens as f64),
        ),
        (
            "mean(log_sum_exp(keep_top_k(l, k)))",
            Box::new(|l| (0..tokens).map(|n| lse(&sorted(row(l, n))[..k])).sum::<f64>() / tokens as f64),
        ),
        (
            "mean(log_sum_exp(l, over: tokens)) + mean(max(l, over: tokens))",
            Box::new(|l| {
                let columns = (0..experts).map(|e| (0..tokens).map(|n| l[n * experts + e]).collect::<Vec<_>>());
                columns.map(|c| lse(&c) + c.iter().copied().fold(f64::MIN, f64::max)).sum::<f64>() / experts as f64
            }),
        ),
        (
            "mean(cumsum(l, over: experts) * l) + mean(cumsum(v, over: experts))",
            each_row(&|r| {
                let up_to = |r: &[f64]| -> Vec<f64> { (1..=r.len()).map(|n| r[..n].iter().sum()).collect() };
                let all = up_to(&r).iter().zip(&r).map(|(sum, v)| sum * v).sum::<f64>() / r.len() as f64;
                let mut largest = r;
                largest.sort_by(|a, b| b.total_cmp(a));
                all + up_to(&largest[..3]).iter().sum::<f64>() / 3.0
            }),
        ),
        (
            "mean(cumsum(l, over: tokens) * l)",
            Box::new(|l| {
                let up_to = |n: usize, e: usize| (0..=n).map(|m| l[m * experts + e]).sum::<f64>();
                let terms = (0..tokens * experts).map(|i| up_to(i / experts, i % experts) * l[i]);
                terms.sum::<f64>() / (tokens * experts) as f64
            }),
        ),
        (
            "mean(cumsum(l, over: positions) * l) + mean(cumsum(mean(l, over: experts), over: positions))",
            Box::new(|l| {
                // Sequences of 4 tokens.
                let up_to = |n: usize, e: usize| (n / 4 * 4..=n).map(|m| l[m * experts + e]).sum::<f64>();
                let each = (0..tokens * experts).map(|i| up_to(i / experts, i % experts) * (l[i] + 1.0));
                each.sum::<f64>() / (tokens * experts) as f64
            }),
        ),
        (
            "mean(quantile(l, 0.5, over: experts)) + mean(quantile(l, 0.25, over: experts))",
            each_row(&|mut r| {
                r.sort_by(f64::total_cmp);
                // Of seven, places 3 and 1.5.
                r[3] + (r[1] + r[2]) / 2.0
            }),
        ),
        (
            "mean(quantile(l, 0.9, over: tokens)) + quantile(l, 1.0) - quantile(l, 0.0)",
            Box::new(|l| {
                let column = |e: usize| {
                    let mut c: Vec<f64> = (0..tokens).map(|n| l[n * experts + e]).collect();
                    c.sort_by(f64::total_cmp);
                    // Place 9.9 of 0 to 11.
                    c[9] * 0.1 + c[10] * 0.9
                };
                let (least, most) = l.iter().fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
                (0..experts).map(column).sum::<f64>() / experts as f64 + most - least
            }),
        ),
        (
            "mean(mean(l, over: sequence) * l) + mean(max(l, over: sequence)) + mean(sum(mean(l, over: experts), over: \
             sequence))",
            Box::new(|l| {
                let of = |n: usize, e: usize| (n / 4 * 4..n / 4 * 4 + 4).map(move |m| l[m * experts + e]);
                let each = (0..tokens * experts).map(|i| {
                    let (n, e) = (i / experts, i % experts);
                    let sum = of(n, e).sum::<f64>();
                    sum / 4.0 * l[i] + of(n, e).fold(f64::MIN, f64::max) + sum
                });
                each.sum::<f64>() / (tokens * experts) as f64
            }),
        ),
        (
            "sum(softmax(l, over: sequence)) + mean(quantile(l, 0.5, over: sequence)) + mean(log_sum_exp(l, over: sequence))",
            Box::new(|l| {
                let middle = |n: usize, e: usize| {
                    let mut c: Vec<f64> = (n / 4 * 4..n / 4 * 4 + 4).map(|m| l[m * experts + e]).collect();
                    let lse = lse(&c);
                    c.sort_by(f64::total_cmp);
                    (c[1] + c[2]) / 2.0 + lse
                };
                let each = (0..tokens * experts).map(|i| middle(i / experts, i % experts));
                (tokens / 4 * experts) as f64 + each.sum::<f64>() / (tokens * experts) as f64
            }),
        ),
        (
            "sum(relu(keep_top_k(p, 2.9, over: sequence))) + sum(keep_top_k(p, tokens, over: tokens) - p)",
            Box::new(|l| {
                let p = |n: usize, e: usize| l[n * experts + e].exp() / row(l, n).iter().map(|v| v.exp()).sum::<f64>();
                let best = |sequence: usize, e: usize| {
                    sorted((0..4).map(|t| p(sequence * 4 + t, e)).collect())[..2].iter().sum::<f64>()
                };
                (0..tokens / 4 * experts).map(|i| best(i / experts, i % experts)).sum()
            }),
        ),
        (
            // The diagonal of the products of rows; scores less their bias; and one sum in two orders.
            "sum(weight(l) * weight(l)) - sum((weight(l) @ weight(l)) * identity(experts)) + mean(max(x @ weight(l) - l, \
             over: tokens) - min(x @ weight(l) - l, over: tokens)) + mean(sum((l @ weight(l)) * x, over: width) - sum(l \
             * (x @ weight(l)), over: experts))",
            Box::new(|_| 0.0),
        ),
        (
            "mean(sum(normalize(l) * normalize(l), over: experts)) + sum(sum(weight(l), over: experts)) - sum(weight(l))",
            Box::new(|_| 1.0),
        ),
        ("mean(float(max(position, over: tokens))) + mean(float(min(c, c))) - mean(float(c))", Box::new(|_| 3.0)),
        (
            // Sums up to each element of a matrix: the last one of an axis is its sum. And elements of one that are chosen.
            "sum(max(cumsum(abs(weight(l)), over: width), over: width) - sum(abs(weight(l)), over: width)) + \
             sum(max(cumsum(abs(weight(l)), over: experts), over: experts) - sum(abs(weight(l)), over: experts)) + \
             sum(select(weight(l) > 0.0, weight(l), 0.0) - relu(weight(l)))",
            Box::new(|_| 0.0),
        ),
        // Columns of a softmax over tokens sum to 1, and so do rows of one over experts.
        ("sum(softmax(l, over: tokens)) + sum(p) / tokens", Box::new(|_| experts as f64 + 1.0)),
        ("sum(count(c))", Box::new(|_| (tokens * k) as f64)),
        ("mean(float(position)) + mean(float(index(float(position) % 2.0)))", Box::new(|_| 1.5 + 0.5)),
        (
            "mean(mean(l, over: experts) * ones(experts)) - mean(l) + width + sqrt(width * 5) - max(k, 4)",
            Box::new(|_| 6.0),
        ),
        ("mean(zeros(tokens, k) + 2) * mean(ones()) + mean(v * 0 + mean(l, over: experts) * 0)", Box::new(|_| 2.0)),
        ("mean(normal(4) * 0 + 1) + mean(select(uniform() < 9, 1, 0))", Box::new(|_| 2.0)),
    ];
    for (expression, expected) in cases {
        let (ours, scores) = evaluate(expression);
        let expected = expected(&scores);
        assert!((ours[0] - expected).abs() < 1e-9 * (1.0 + expected.abs()), "{expression}: {} and {expected}", ours[0]);
    }
}

#[test]
fn a_state_changes_in_training_only_and_by_its_rule() {
    let router = "router r(k: int, u: float) {
      state bias = 0.25 * ones(experts)
      state steps = 0.0
      let l = linear(x, experts)
      let _, c = top_k(l + bias, k)
      update bias = bias + u * sign(mean(count(c)) - count(c))
      update steps = steps + 1.0
      return token_choice(experts: c, weights: gather(l, c))
    }";
    for (experts, k) in [(1, 1), (3, 2), (7, 7)] {
        let layer = layer(router, &format!("(k: {k}, u: 0.5)"), experts, ", balance: [importance]");
        let (lowered, training, _) = run(&layer, Mode::Train, 2);
        let load = training.outputs["load.moe"].to_f64();
        let mean = load.iter().sum::<f64>() / experts as f64;
        let step = |n: &f64| if *n == mean { 0.0 } else { 0.5 * (mean - n).signum() };
        let expected: Vec<f64> = load.iter().map(|n| 0.25 + step(n)).collect();
        assert_eq!(training.updates["moe.bias"].to_f64(), expected);
        assert_eq!(training.updates["moe.steps"].to_f64(), [1.0]);
        assert_eq!(lowered.states.len(), 2);
        let (evaluating, evaluation, _) = run(&layer, Mode::Evaluate, 1);
        assert!(evaluation.updates.is_empty() && evaluating.graph.updates().is_empty());
        // What only updates need is not built.
        assert!(!print(&evaluating.graph).contains("sign("));
    }
}

#[test]
fn arguments_that_cannot_be_are_refused_where_they_are_given() {
    let strategy = |text: &str| -> std::sync::Arc<dyn RoutingStrategy> {
        let layer = layer(text, "(k: 1)", 4, "");
        let moe = layer.of::<Moe>().unwrap();
        moe.route.strategy.clone()
    };
    let r = strategy(
        "router r(k: int, of: int = 2) { let h = linear(x, of, name: \"h\") let v, c = top_k(linear(h, experts, name: \"l\"), k) \
         return token_choice(experts: c, weights: v / k) }",
    );
    let with = |k: i64, of: i64| Arguments::defaults(r.name(), r.parameters()).with("k", k).with("of", of);
    assert_eq!(r.check(&with(4, 2), 4), Ok(()));
    assert_eq!(r.check(&with(2, 0), 4), Err("would have a tensor of 0 columns".to_string()));
    assert_eq!(r.check(&with(0, 1), 4), Err("would have a tensor of 0 columns".to_string()));
    assert_eq!(r.experts_per_token(&with(9, 2), 4, 4), 9.0);
}

/// The width and the number of tokens are known only where the graph is built: 5 channels, and 12 tokens.
#[test]
fn what_depends_on_sizes_is_refused_where_they_are_known() {
    let built = |statements: &str| {
        let router = format!("router r {{ {statements} return dense_gates(softmax(s)) }}");
        lower_layer(&layer(&router, "", 4, ""), &options(Mode::Train), 4).map(|_| ()).map_err(|e| e.to_string())
    };
    let two = |columns: &str| format!("let h = linear(x, {columns}) let s = linear(h, experts)");
    assert_eq!(built(&two("width / 2")), Ok(()));
    for (statements, fault) in [
        (two("width / 10"), "would have a tensor of 0 columns"),
        ("let l = linear(x, experts) let s = l / (1.0 / (tokens - 12.0))".into(), "divides by 0 with these arguments"),
        ("let top, _ = top_k(linear(x, width, name: \"h\"), 7) let s = linear(top, experts)".into(), "chooses 7 of 5"),
    ] {
        let message = built(&statements).unwrap_err();
        assert!(message.contains(fault), "{statements}: {message}");
    }
}

#[test]
fn names_that_an_import_brings_twice_are_shown_in_both_files() {
    let library = "block part { relu }\nrouter r { return dense_gates(ones(experts)) }\nrouter noisy_top_k { return \
                   dense_gates(ones(experts)) }\nmodel m { }";
    let main = "import \"lib.moe\"\nblock part { gelu }\nrouter r { return dense_gates(ones(experts)) }\n\
                model m { context 2 vocab 3 embed(width: 2) moe(experts: 2 * mlp(hidden: 2), route: r) unembed }";
    let source = SourceFile::new("main.moe", main).with_imports(|_| Ok(library.as_bytes().to_vec()));
    let file = parse(&source).unwrap();
    let checked = check(&source, &file, &Registry::with_builtins(), &CheckOptions::default());
    let shown: Vec<String> = checked.diagnostics.iter().map(|d| d.render(&source, false)).collect();
    for name in ["block `part`", "router `r`", "model `m`"] {
        let fault = shown.iter().find(|s| s.contains(&format!("{name} is defined twice"))).unwrap();
        for part in [" --> lib.moe:", "defined again here", " ::: main.moe:", "first defined here", "imported here"] {
            assert!(fault.contains(part), "{part}: {fault}");
        }
    }
    let taken = shown.iter().find(|s| s.contains("there is a router named `noisy_top_k` already")).unwrap();
    assert!(taken.contains("lib.moe:3:8") && taken.contains("imported here"), "{taken}");
}

/// The verdict that is derived is what happens when later tokens change.
#[test]
fn verdicts_hold_when_later_tokens_change() {
    let gate = "let v, c = top_k(s, k) return token_choice(experts: c, weights: v)";
    let cases = [
        ("let s = softmax(linear(x, experts, name: \"l\"))", Verdict::Causal),
        (
            "state n = ones(experts) let l = linear(x, experts) let s = sigmoid(l) / n update n = sum(s, over: tokens)",
            Verdict::Causal,
        ),
        ("let l = linear(x, experts) let s = l - cumsum(sigmoid(l), over: positions)", Verdict::Causal),
        ("let l = linear(x, experts) let s = l - mean(l, over: sequence)", Verdict::LooksAhead),
        ("let l = linear(x, experts) let s = l * quantile(l, 0.75, over: tokens)", Verdict::LooksAhead),
        ("let l = linear(x, experts) let s = max(keep_top_k(l, 2.0, over: sequence), -1.0)", Verdict::LooksAhead),
        (
            "let l = linear(x, experts) let s = if training { max(keep_top_k(l, 2.0, over: sequence), -1.0) } else { l }",
            Verdict::SamplesDifferently,
        ),
        (
            "state t = zeros(experts) let l = linear(x, experts) let s = l - t update t = quantile(l, 0.5, over: tokens)",
            Verdict::Causal,
        ),
        (
            "let l = linear(x, experts) let f = ones(tokens) repeat 3 { f = 1.0 / (sum(exp(l) * f, over: experts) + 1.0) } \
             let s = l * f",
            Verdict::Causal,
        ),
        (
            "let l = linear(x, experts) let s = l - mean(l, over: tokens) let b = l repeat 100 { let t = s s = b b = t }",
            Verdict::LooksAhead,
        ),
        (
            "let l = linear(x, experts) let f = ones(tokens) let g = ones(experts) repeat 2 { f = f / (sum(exp(l) * g, \
             over: experts) + 1.0) g = 1.0 / (mean(exp(l) * f, over: tokens) + 1.0) } let s = l * f",
            Verdict::LooksAhead,
        ),
        ("let l = linear(x, experts) let s = softmax(l, over: tokens)", Verdict::LooksAhead),
        ("let l = linear(x, experts) let s = l - max(l, over: tokens)", Verdict::LooksAhead),
        ("let l = linear(x, experts) let s = l * mean(sum(l * l, over: experts), over: tokens)", Verdict::LooksAhead),
        (
            "let l = linear(x, experts) let s = if training { l / log_sum_exp(l, over: tokens) } else { sigmoid(l) }",
            Verdict::SamplesDifferently,
        ),
    ];
    for (scores, verdict) in cases {
        let router = format!("router r(k: int) {{ {scores} {gate} }}");
        assert_eq!(traits(&router, "(k: 2)").verdict(), verdict, "{scores}");
        let layer = layer(&router, "(k: 2)", 5, ", allow: lookahead, balance: [importance]");
        for mode in [Mode::Train, Mode::Evaluate] {
            let (lowered, evaluation, mut bindings) = run(&layer, mode, 1);
            let mut x = bindings["x"].to_f64();
            x[3 * 5..].iter_mut().for_each(|v| *v += 0.75);
            bindings.insert("x".into(), Tensor::new(vec![4, 5], Data::F64(x)).unwrap());
            let before = |evaluation: &Evaluation| evaluation.outputs["y"].to_f64()[..3 * 5].to_vec();
            let moved = before(&evaluation) != before(&evaluate(&lowered.graph, &bindings).unwrap());
            let expected = match verdict {
                Verdict::Causal => false,
                Verdict::SamplesDifferently => mode == Mode::Train,
                Verdict::LooksAhead => true,
            };
            assert_eq!(moved, expected, "{scores} {mode:?}");
        }
    }
}

/// What a `repeat` computes, against the same rounds in plain Rust, and what is known about it.
#[test]
fn a_repeat_goes_on_from_round_to_round() {
    let router = "router r(k: int) {
      let l = linear(x, experts)
      let f = ones(tokens)
      let total = zeros(tokens)
      repeat k {
        let part = sum(sigmoid(l) * f, over: experts)
        f = 1.0 / (1.0 + part)
        repeat 2 { total = total + f }
      }
      aux asked = mean(total)
      return dense_gates(l * f)
    }";
    for (experts, k) in [(1, 1), (3, 2), (7, 5)] {
        let layer = layer(router, &format!("(k: {k})"), experts, ", balance: [importance]");
        let (_, evaluation, bindings) = run(&layer, Mode::Train, 1);
        let (x, w) = (bindings["x"].to_f64(), bindings["moe.l.weight"].to_f64());
        let mut expected = 0.0;
        for token in x.chunks(5) {
            let score = |row: &[f64]| row.iter().zip(token).map(|(a, b)| a * b).sum::<f64>();
            let sum: f64 = w.chunks(5).map(|row| 1.0 / (1.0 + (-score(row)).exp())).sum();
            let mut f = 1.0;
            for _ in 0..k {
                f = 1.0 / (1.0 + sum * f);
                expected += 2.0 * f;
            }
        }
        let asked = evaluation.outputs["aux.moe.asked"].to_f64()[0];
        assert!((asked - expected / 4.0).abs() < 1e-12, "{asked} {expected}");
    }
    let layer = layer(router, "(k: 3)", 2, ", balance: [importance]");
    let strategy = &layer.of::<Moe>().unwrap().route.strategy;
    let with = |k: i64| Arguments::defaults("r", strategy.parameters()).with("k", k);
    assert_eq!(strategy.check(&with(0), 2), Err("goes round a `repeat` less than once with these arguments".into()));
    let many = "goes through 8000 statements of a `repeat`, more than 4096";
    assert_eq!(strategy.check(&with(2000), 2), Err(many.into()));
}

/// What a choice depends on through the conditions, counts and bounds around it.
#[test]
fn numbers_of_tokens_are_seen_wherever_they_decide() {
    let gate = "let v, c = top_k(s, 2) return token_choice(experts: c, weights: v)";
    for (statements, counts) in [
        ("let l = linear(x, experts) let s = softmax(l)", false),
        ("let l = linear(x, experts) let s = softmax(l * tokens)", true),
        ("let l = linear(x, experts) let s = if sequence_length > 2.0 { softmax(l) } else { l }", true),
        ("let l = linear(x, experts) let s = if training { l * tokens } else { l }", false),
        ("let l = linear(x, experts) let s = l repeat if tokens > 2.0 { 1 } else { 2 } { s = s * sigmoid(s) }", true),
        ("let n = sequence_length * 2.0 let l = linear(x, experts) let s = l + n", true),
        ("state a = 0.0 let l = linear(x, experts) let s = l + a update a = a + tokens", false),
        (
            "let l = linear(x, experts) let w, _ = top_k(l, if tokens > 2.0 { 1 } else { 2 }) let s = l - min(w, over: experts)",
            true,
        ),
    ] {
        let router = format!("router r {{ {statements} {gate} }}");
        assert_eq!(traits(&router, "").counts_tokens, counts, "{statements}");
    }
}

/// What only a loss or an update looks at does not keep a router from being built where they are not there.
#[test]
fn what_is_wanted_in_training_alone_may_stand_in_a_repeat() {
    let router = "router r {
      state u = zeros(experts)
      let l = linear(x, experts)
      let a = ones(tokens)
      let b = ones(experts)
      let c = zeros(tokens)
      repeat 2 {
        a = 1.0 / (mean(relu(l), over: experts) + a)
        b = mean(l * a, over: tokens)
        c = c + a
      }
      aux asked = mean(c)
      update u = b
      return dense_gates(softmax(l * a + u), logits: l + float(token_ids))
    }";
    let layer = layer(router, "", 3, "");
    for (mode, loss) in [(Mode::Train, true), (Mode::Evaluate, true), (Mode::Evaluate, false)] {
        let lowered = lower_layer(&layer, &LowerOptions { loss, ..options(mode) }, 4).unwrap();
        verify(&lowered.graph, Stage::Forward).unwrap();
        assert_eq!(print(&lowered.graph).contains("to_float(%tokens)"), loss, "{mode:?}");
    }
    let empty = "router r { let l = linear(x, experts) let a = l repeat 3000 { a = a + l repeat 1000 { } } return dense_gates(a) }";
    let source = SourceFile::new(
        "empty.moe",
        format!(
            "{empty} model m {{ context 2 vocab 3 embed(width: 2) moe(experts: 2 * \
        mlp(hidden: 2), route: r) unembed }}"
        ),
    );
    let checked = check(&source, &parse(&source).unwrap(), &Registry::with_builtins(), &CheckOptions::default());
    assert!(checked.diagnostics.iter().any(|d| d.message.contains("more than 4096")), "{:?}", checked.diagnostics);
}

/// What is spelt alike and means other numbers is told apart.
#[test]
fn names_that_are_bound_again_have_sizes_of_their_own() {
    let router = |first: i64, second: i64| {
        format!(
            "router r {{ let l = linear(x, experts) let a = zeros(tokens)
               repeat 1 {{ let n = {first} let v, _ = top_k(normal(n / 2), 3) a = a + sum(v, over: experts) }}
               repeat 1 {{ let n = {second} let v, _ = top_k(normal(n / 2), 3) a = a + sum(v, over: experts) }}
               return dense_gates(sigmoid(l + a)) }}"
        )
    };
    let fault = |first, second| {
        let model = "model m { context 2 vocab 3 embed(width: 2) moe(experts: 2 * mlp(hidden: 2), route: r) unembed }";
        let source = SourceFile::new("sizes.moe", format!("{}\n{model}", router(first, second)));
        let checked = check(&source, &parse(&source).unwrap(), &Registry::with_builtins(), &CheckOptions::default());
        checked.diagnostics.iter().find(|d| d.is_error()).map(|d| d.message.clone())
    };
    assert_eq!(fault(8, 16), None);
    for (first, second) in [(4, 16), (16, 4)] {
        assert_eq!(fault(first, second), Some("`r` chooses 3 of 2".into()));
    }
}

/// Tables are made of the training text: the most frequent token first, different experts for each, and shares of the text.
#[test]
fn tables_are_made_of_the_training_text() {
    let router = "router r(k: int) {
      table even = balanced(choices: k)
      table drawn = random(choices: k, seed: 3)
      table often = frequency
      table one = random(seed: 4)
      let l = linear(x, experts)
      let chosen = lookup(even, token_ids)
      aux asked = mean(lookup(often, token_ids)) + mean(float(lookup(drawn, previous_ids))) + mean(float(lookup(one, token_ids)))
      return token_choice(experts: chosen, weights: gather(l, chosen))
    }";
    let (experts, k, vocab) = (4, 3, 9);
    let layer = layer(router, &format!("(k: {k})"), experts, "");
    let options = LowerOptions { batch: 1, vocab, ..options(Mode::Train) };
    let lowered = lower_layer(&layer, &options, 4).unwrap();
    let tokens: Vec<i32> = vec![2, 2, 2, 2, 5, 5, 0, 1];
    let text = TrainingText { tokens: &tokens, vocab, embeddings: &|_| Err("there is none".into()) };
    let table = |name: &str| -> Vec<i32> {
        let (_, init) = lowered.states.iter().find(|(path, _)| path == &format!("moe.{name}")).unwrap();
        match init.resolve(&text).unwrap().data() {
            Data::I32(values) => values.clone(),
            other => panic!("{other:?}"),
        }
    };
    let even = table("even");
    assert_eq!(even.len(), (vocab + 1) * k);
    // Token 2 comes first; then token 5 has the expert that is free, and two of the others.
    assert_eq!((&even[2 * k..3 * k], &even[5 * k..6 * k]), (&[0, 1, 2][..], &[3, 0, 1][..]));
    for rows in [even.chunks(k), table("drawn").chunks(k)] {
        for row in rows {
            let different: std::collections::BTreeSet<&i32> = row.iter().collect();
            assert!(different.len() == k && row.iter().all(|e| (0..experts as i32).contains(e)), "{row:?}");
        }
    }
    assert_eq!(table("often"), [1 << 21, 1 << 21, 1 << 23, 0, 0, 1 << 22, 0, 0, 0, 0]);
    assert_eq!(table("one").len(), vocab + 1);
    // The first token of a sequence follows none, and has the entries behind the vocabulary.
    let mut bindings = BTreeMap::new();
    for (name, _) in &lowered.states {
        let values = table(name.strip_prefix("moe.").unwrap());
        bindings.insert(name.clone(), Tensor::new(vec![values.len()], Data::I32(values)).unwrap());
    }
    for id in lowered.graph.ids() {
        let node = lowered.graph.node(id);
        match &node.op {
            moec_ir::Op::Input { name, .. } if name == "tokens" => {
                bindings.insert(name.clone(), Tensor::new(vec![4], Data::I32(vec![2, 5, 0, 8])).unwrap());
            }
            moec_ir::Op::Input { name, ty } | moec_ir::Op::Parameter { name, ty }
                if ty.dtype == moec_ir::DType::F32 =>
            {
                bindings.insert(name.clone(), floats(&ty.shape, 5));
            }
            _ => {}
        }
    }
    let evaluation = evaluate(&lowered.graph, &bindings).unwrap();
    let (drawn, one) = (table("drawn"), table("one"));
    let rows = [vocab, 2, 5, 0].map(|row| drawn[row * k..(row + 1) * k].iter().sum::<i32>());
    let expected = (0.5 + 0.25 + 0.125) / 4.0
        + f64::from(rows.iter().sum::<i32>()) / (4 * k) as f64
        + f64::from([2, 5, 0, 8].map(|id: usize| one[id]).iter().sum::<i32>()) / 4.0;
    let asked = evaluation.outputs["aux.moe.asked"].to_f64()[0];
    assert!((asked - expected).abs() < 1e-9, "{asked} {expected}");
}

/// Words of a text with the blanks between them.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    while let Some(first) = rest.chars().next() {
        let end = if is_name(first) { rest.find(|c| !is_name(c)).unwrap_or(rest.len()) } else { first.len_utf8() };
        let (word, behind) = rest.split_at(end);
        words.push(word);
        rest = behind;
    }
    words
}

/// Whatever stands in the place of a word, checking answers without a panic, and what it accepts can be lowered.
#[test]
fn what_is_accepted_can_be_built() {
    let everything = include_str!("../../../tests/check/ok_router.moe");
    let text = everything.replace("route: everything(k: 1, wide: false)", "route: by_position");
    let model = text.find("model m").unwrap();
    let (routers, model) = text.split_at(model);
    let replacements = [
        "x",
        "k",
        "experts",
        "tokens",
        "width",
        "training",
        "wide",
        "1",
        "0",
        "2.5",
        "h",
        "p",
        "seen",
        "steps",
        "chosen",
        "picked",
        "scores",
        "shift",
        "scale",
        "position",
        "hidden",
        "many",
        "linear",
        "softmax",
        "count",
        "max",
        "sum",
        "gather",
        "float",
        "index",
        "normal",
        "zeros",
        "+",
        "/",
        "%",
        "==",
        "&&",
        "(",
        ")",
        ",",
        ":",
        "=",
        "-",
        "let",
        "",
        "@",
        "sequence",
        "quantile",
        "keep_top_k",
        "weight",
        "normalize",
        "repeat",
        "table",
        "lookup",
        "identity",
        "directions",
        "columns",
        "of_token",
        "sequence_length",
    ];
    let words = words(routers);
    let (mut accepted, mut refused) = (0, 0);
    for (at, word) in words.iter().enumerate() {
        if word.trim().is_empty() {
            continue;
        }
        // A fifth of the pairs, each word and each replacement many times.
        for replacement in replacements.iter().skip(at % 5).step_by(5) {
            let changed = [words[..at].concat(), replacement.to_string(), words[at + 1..].concat(), model.to_string()];
            let source = SourceFile::new("changed.moe", changed.concat());
            let Ok(file) = parse(&source) else { continue };
            let checked = check(&source, &file, &Registry::with_builtins(), &CheckOptions::default());
            for diagnostic in &checked.diagnostics {
                assert!(diagnostic.render_short(&source).starts_with("changed.moe:"), "{diagnostic:?}");
            }
            let Some(model) = checked.model else {
                refused += 1;
                continue;
            };
            accepted += 1;
            for mode in [Mode::Train, Mode::Evaluate] {
                let options = LowerOptions { vocab: 5, ..options(mode) };
                let lowered = lower(&model, &options).unwrap_or_else(|e| panic!("{e}\n{}", source.text()));
                verify(&lowered.graph, Stage::Forward).unwrap_or_else(|e| panic!("{e:?}\n{}", source.text()));
            }
        }
    }
    assert!(accepted > 50 && refused > 500, "{accepted} {refused}");
}

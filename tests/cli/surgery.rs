//! Mixtures put together from runs and taken apart again, parts of models that are not trained, and trainings that begin with
//! another run's numbers.

use super::json::documented;
use super::{Lab, Ran, expect, text};
use moec_runtime::read_tensors;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const DENSE: &str = "\
// A comment that stays.
model dense {
  let width = 6
  context 7
  vocab   characters
  embed(width: width)
  repeat 2 {
    residual { layer_norm  attention(heads: 3) }
    residual { layer_norm  mlp(hidden: 2 * width, activation: gelu) }
  }
  layer_norm
  unembed
}

train { batch 3  steps 4  evaluate(every: 0)  checkpoint(every: 0)  log(every: 0) }
";

type Tensors = BTreeMap<String, moec_ir::Tensor>;

fn tensors(run: &str, step: u64) -> Tensors {
    let file = Path::new(run).join("checkpoints").join(format!("step-{step:08}")).join("model.safetensors");
    // The interpreter's runs have 64 bits, and what is made of them 32.
    let floats = |t: moec_ir::Tensor| match t.as_i32() {
        Some(_) => t,
        None => moec_ir::Tensor::new(t.shape(), moec_ir::Data::F32(t.to_f32())).unwrap(),
    };
    read_tensors(&file).unwrap().into_iter().map(|(name, tensor)| (name, floats(tensor))).collect()
}

fn train(lab: &Lab, spec: &str, out: &str, more: &[&str]) -> Ran {
    let given = ["train", spec, "--data", &lab.data, "--out", out, "--device", "interpreter", "--sample", "0"];
    expect(&[&given[..], more].concat(), 0)
}

/// A dense model, trained with as many seeds.
fn dense_runs(lab: &Lab, seeds: u64, spec: &str) -> Vec<String> {
    let spec = text(Path::new(&lab.at("dense.moe")), spec);
    let one = |seed: u64| {
        let out = lab.at(&format!("dense-{seed}"));
        train(lab, &spec, &out, &["--seed", &seed.to_string()]);
        out
    };
    (1..=seeds).map(one).collect()
}

/// Merges by a recipe, and returns the certificate.
fn merge(lab: &Lab, name: &str, recipe: &str) -> (String, Value) {
    let file = text(Path::new(&lab.at(&format!("{name}.yaml"))), recipe);
    let out = lab.at(name);
    let ran = expect(&["merge", &file, "--out", &out, "--json"], 0);
    let certificate: Value = serde_json::from_str(&ran.out).unwrap();
    let saved: Value =
        serde_json::from_str(&fs::read_to_string(Path::new(&out).join("certificate.json")).unwrap()).unwrap();
    assert_eq!(certificate, saved);
    (out, certificate)
}

/// What a certificate claims, all of which holds on both devices.
#[track_caller]
fn claims(certificate: &Value) -> Vec<String> {
    let claims = certificate["claims"].as_array().unwrap();
    let says = claims.iter().map(|claim| {
        assert_eq!(claim["holds"], true, "{certificate:#}");
        let devices: Vec<&str> =
            claim["measured"].as_array().unwrap().iter().map(|m| m["device"].as_str().unwrap()).collect();
        assert_eq!(devices, ["interpreter", "cpu"]);
        claim["says"].as_str().unwrap().to_string()
    });
    says.collect()
}

fn refused(lab: &Lab, recipe: &str, code: i32) -> String {
    let file = text(Path::new(&lab.at("wrong.yaml")), recipe);
    let out = lab.at("refused");
    let ran = expect(&["merge", &file, "--out", &out], code);
    assert!(!Path::new(&out).exists(), "{}", ran.err);
    ran.err
}

#[test]
fn an_upcycled_run_is_the_dense_one_until_it_is_trained() {
    let lab = Lab::new();
    let runs = dense_runs(&lab, 1, DENSE);
    let (out, certificate) = merge(&lab, "copies", &format!("experts: [{}]\ncopies: 4\n", runs[0]));
    let says = claims(&certificate);
    assert_eq!(says.len(), 5, "{says:?}");
    assert!(says[4].starts_with("as it routes, the model is"), "{says:?}");
    let spec = fs::read_to_string(Path::new(&out).join("spec.moe")).unwrap();
    assert!(spec.starts_with("// A comment that stays.\n"), "{spec}");
    let moe = "moe( experts: 4 * mlp(hidden: 2 * width, activation: gelu), route: softmax_top_k(k: 2, bias: false), )";
    assert!(spec.split_whitespace().collect::<Vec<_>>().join(" ").contains(moe), "{spec}");

    // Slices of the hidden units, weighted: whatever the activation is, they are the whole.
    for (name, more) in [
        ("slices", "slices: 3\ncopies: 2\nroute: 'softmax_top_k(k: 3, bias: false)'\n"),
        ("both", "slices: 2\ncopies: 3\nroute: 'softmax_top_k(k: 4)'\n"),
        ("one", "slices: 4\nroute: 'softmax_top_k(k: 4)'\n"),
    ] {
        let (out, certificate) = merge(&lab, name, &format!("experts: [{}]\n{more}", runs[0]));
        let says = claims(&certificate);
        assert!(says.last().unwrap().starts_with("as it routes"), "{says:?}");
        assert!(says[0].contains("sent to experts 0 to"), "{says:?}");
        // It can be used as any run, and goes on as it is.
        expect(&["train", "--resume", &out, "--steps", "1", "--device", "interpreter", "--sample", "0"], 0);
        expect(&["eval", &out, "--split", "all", "--device", "interpreter"], 0);
    }
    // A router whose weights do not add up to 1 keeps nothing, and that is said.
    let (_, certificate) = merge(&lab, "switched", &format!("experts: [{}]\ncopies: 3\nroute: switch\n", runs[0]));
    assert!(claims(&certificate).is_empty());
    let remarks = certificate["remarks"].to_string();
    assert!(remarks.contains("nothing is claimed") && remarks.contains("no equality is promised"), "{remarks}");
    // Noise makes copies differ, and promises nothing.
    let (_, certificate) = merge(&lab, "noisy", &format!("experts: [{}]\ncopies: 2\nnoise: 0.001\n", runs[0]));
    let says = claims(&certificate);
    assert!(says.len() == 2 && says[0].contains("noise left out, every token sent to expert 0"), "{says:?}");
    let far = certificate["distances"][0]["largest_difference"].as_f64().unwrap();
    assert!(far > 0.0 && far < 0.1, "{far}");
}

#[test]
fn slices_are_scaled_as_megatron_does_where_that_is_asked() {
    let lab = Lab::new();
    let runs = dense_runs(&lab, 1, &DENSE.replace("gelu", "relu"));
    let recipe =
        format!("experts: [{}]\nslices: 3\nslice_scale: spread\nroute: 'softmax_top_k(k: 3, bias: false)'\n", runs[0]);
    let (out, certificate) = merge(&lab, "spread", &recipe);
    // Exact, for relu is homogeneous.
    assert!(claims(&certificate).last().unwrap().starts_with("as it routes"));
    let (dense, merged) = (tensors(&runs[0], 4), tensors(&out, 0));
    let (up, ups) = (dense["blocks.1.mlp.up.weight"].to_f64(), merged["blocks.1.moe.experts.mlp.up.weight"].to_f64());
    for (whole, part) in up.iter().zip(&ups) {
        assert!((part - whole * 3f64.sqrt()).abs() < 1e-6);
    }
    // Weights of a softmax over all experts: E * G / k, exact where all experts are liked equally.
    let recipe = format!(
        "experts: [{}]\nslices: 3\ncopies: 2\ngates: zero\nroute: 'softmax_top_k(k: 3, normalize: all)'\n",
        runs[0]
    );
    let (out, _) = merge(&lab, "all", &recipe);
    let downs = tensors(&out, 0)["blocks.0.moe.experts.mlp.down.weight"].to_f64();
    let down = tensors(&runs[0], 4)["blocks.0.mlp.down.weight"].to_f64();
    assert!((downs[0] - down[0] * 6.0 * 3.0 / 3.0).abs() < 1e-6, "{} {}", downs[0], down[0]);
    let loss = |out: &str| {
        let ran = expect(&["eval", out, "--split", "all", "--device", "interpreter", "--json"], 0);
        serde_json::from_str::<Value>(&ran.out).unwrap()["loss_nats"].as_f64().unwrap()
    };
    assert!((loss(&out) - loss(&runs[0])).abs() < 1e-6, "{} {}", loss(&out), loss(&runs[0]));
}

#[test]
fn a_franken_moe_has_each_run_as_an_expert_and_gates_from_prompts() {
    let lab = Lab::new();
    let runs = dense_runs(&lab, 4, DENSE);
    let recipe = |gates: &str, trunk: &str| {
        format!(
            "base: {0}\ntrunk: {trunk}\ngates: {gates}\nroute: 'softmax_top_k(k: 1)'\nexperts:\n\
             - run: {1}\n  positive_prompts: ['the quick', 'dog']\n  negative_prompts: ['lazy']\n\
             - run: {2}\n  positive_prompts: ['jumps over']\n\
             - run: {3}\n  positive_prompts: ['lazy']\n",
            runs[0], runs[1], runs[2], runs[3]
        )
    };
    for gates in ["last", "average", "embedding"] {
        let (out, certificate) = merge(&lab, gates, &recipe(gates, "base"));
        let says = claims(&certificate);
        assert_eq!(says.len(), 3);
        let says_second = format!("with every token sent to expert 1, the model is {}", runs[2]);
        assert!(says[1].starts_with(&says_second) && says[1].contains("with the trunk of"), "{says:?}");
        assert!(certificate["remarks"].to_string().contains("of several runs"));
        assert_eq!(certificate["distances"].as_array().unwrap().len(), 4);
        documented("moec.certificate/1", std::slice::from_ref(&certificate));
        let merged = tensors(&out, 0);
        for layer in 0..2 {
            let rows = merged[&format!("blocks.{layer}.moe.router.weight")].to_f64();
            for row in rows.chunks(6) {
                assert!((row.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5, "unit vectors: {row:?}");
            }
            assert!(merged[&format!("blocks.{layer}.moe.router.bias")].to_f64().iter().all(|&x| x == 0.0));
        }
        assert_eq!(merged["embed.token.weight"], tensors(&runs[0], 4)["embed.token.weight"]);
        let (third, all) = (
            tensors(&runs[3], 4)["blocks.1.mlp.up.weight"].to_f32(),
            merged["blocks.1.moe.experts.mlp.up.weight"].to_f32(),
        );
        assert_eq!(all[2 * third.len()..], third);
    }
    // The mean of the runs of the experts.
    for trunk in ["average", "spherical"] {
        let (out, certificate) = merge(&lab, &format!("trunk-{trunk}"), &recipe("embedding", trunk));
        assert_eq!(claims(&certificate).len(), 3);
        let mean = tensors(&out, 0)["unembed.weight"].to_f64();
        let all: Vec<Vec<f64>> = runs[1..].iter().map(|run| tensors(run, 4)["unembed.weight"].to_f64()).collect();
        let expected: Vec<f64> = (0..mean.len()).map(|i| all.iter().map(|t| t[i] / 3.0).sum()).collect();
        let far = mean.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(if trunk == "average" { far < 1e-6 } else { far > 1e-4 && far < 1.0 }, "{trunk} {far}");
    }

    // One expert out of it is the dense run again, with the trunk of the base.
    let mixture = lab.at("last");
    let out = lab.at("second");
    let ran = expect(&["extract", &mixture, "--expert", "1", "--out", &out, "--json"], 0);
    let certificate: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(claims(&certificate).len(), 1);
    let (taken, donor, base) = (tensors(&out, 0), tensors(&runs[2], 4), tensors(&runs[0], 4));
    assert_eq!(taken.keys().collect::<Vec<_>>(), donor.keys().collect::<Vec<_>>());
    for (name, tensor) in &taken {
        let from = if name.contains(".mlp.") { &donor } else { &base };
        assert_eq!(tensor, &from[name], "{name}");
    }
    assert_eq!(fs::read_to_string(Path::new(&out).join("spec.moe")).unwrap(), {
        let formatted = lab.at("dense.moe");
        expect(&["fmt", &formatted], 0);
        fs::read_to_string(formatted).unwrap()
    });
    let none = expect(&["extract", &mixture, "--expert", "3", "--out", &lab.at("none")], 2).err;
    assert!(none.contains("no expert 3: they are 0 to 2"), "{none}");
    let dense = expect(&["extract", &runs[0], "--expert", "0", "--out", &lab.at("none")], 2).err;
    assert!(dense.contains("has no `moe`"), "{dense}");

    // Experts that are not used can go, and nothing changes.
    let record = lab.at("routes.jsonl");
    expect(&["route", &mixture, "--data", &lab.data, "-n", "100", "-o", &record], 0);
    for (name, more) in [
        ("two", &["--most", "2"][..]),
        ("recorded", &["--most", "2", "--record", &record]),
        ("these", &["--keep", "2,0"]),
    ] {
        let out = lab.at(name);
        let ran = expect(&[&["prune", &mixture, "--out", &out, "--json"][..], more].concat(), 0);
        let certificate: Value = serde_json::from_str(&ran.out).unwrap();
        claims(&certificate);
        let pruned = tensors(&out, 0);
        let experts = pruned["blocks.0.moe.router.weight"].shape()[0];
        assert_eq!(experts, 2, "{name}");
        assert_eq!(pruned["blocks.0.moe.experts.mlp.up.weight"].shape(), [experts, 12, 6]);
        if name == "these" {
            let (up, merged) = (pruned["blocks.0.moe.experts.mlp.up.weight"].to_f32(), tensors(&mixture, 0));
            let before = merged["blocks.0.moe.experts.mlp.up.weight"].to_f32();
            let size = 12 * 6;
            assert_eq!((&up[..size], &up[size..]), (&before[..size], &before[2 * size..]));
        }
        expect(&["eval", &out, "--split", "all", "--device", "interpreter"], 0);
    }
    let all = expect(&["prune", &mixture, "--used", "--out", &lab.at("none")], 2).err;
    assert!(all.contains("there is nothing to drop"), "{all}");
    // Of experts that all tokens like equally, the first is used alone.
    let (idle, _) = merge(
        &lab,
        "idle",
        &recipe("embedding", "base")
            .replace("gates: embedding", "gates: zero")
            .lines()
            .filter(|line| !line.contains("_prompts"))
            .collect::<Vec<_>>()
            .join("\n"),
    );
    let out = lab.at("busy");
    let ran = expect(&["prune", &idle, "--used", "--out", &out, "--json"], 0);
    let certificate: Value = serde_json::from_str(&ran.out).unwrap();
    assert!(claims(&certificate)[0].starts_with("as it routes"), "{certificate:#}");
    assert_eq!(tensors(&out, 0)["blocks.0.moe.router.weight"].shape(), [1, 6]);
    let other = expect(&["prune", &lab.at("average"), "--most", "2", "--record", &record], 3).err;
    assert!(other.contains("of other parameters"), "{other}");
    let gone = expect(&["prune", &mixture, "--keep", "7", "--out", &lab.at("none")], 2).err;
    assert!(gone.contains("has no expert 7"), "{gone}");
}

#[test]
fn mixtures_are_merged_to_a_mixture_of_mixtures() {
    let lab = Lab::new();
    let inner = "moe(experts: 3 * mlp(hidden: 12, activation: gelu), route: softmax_top_k(k: 2))";
    let runs = dense_runs(&lab, 2, &DENSE.replace("mlp(hidden: 2 * width, activation: gelu)", inner));
    let recipe = format!("experts: [{}, {}]\nroute: 'softmax_top_k(k: 1)'\n", runs[0], runs[1]);
    let (out, certificate) = merge(&lab, "hierarchical", &recipe);
    let says = claims(&certificate);
    assert_eq!(says.len(), 2, "{says:?}");
    // The router of each inner mixture is that of its run.
    let merged = tensors(&out, 0);
    let inner = merged["blocks.1.moe.experts.moe.router.weight"].to_f32();
    let each: Vec<f32> = runs.iter().flat_map(|run| tensors(run, 4)["blocks.1.moe.router.weight"].to_f32()).collect();
    assert_eq!(inner, each);
    // The balance of both levels is told.
    let told = lab.at("told");
    let ran = expect(
        &[
            "train",
            "--from",
            &out,
            "--data",
            &lab.data,
            "--out",
            &told,
            "--sample",
            "0",
            "--steps",
            "2",
            "-s",
            "train.evaluate.every=2",
            "-s",
            "train.log.every=1",
        ],
        0,
    );
    let metrics = fs::read_to_string(Path::new(&told).join("metrics.jsonl")).unwrap();
    for layer in ["\"blocks.0.moe\"", "\"blocks.0.moe.experts.moe\""] {
        assert!(metrics.contains(layer), "{layer} {metrics}");
    }
    assert!(
        ran.err.contains("blocks.0.moe.experts.moe") || ran.err.contains("blocks.*.moe.experts.moe"),
        "{}",
        ran.err
    );
    // And it is taken apart again: one of the mixtures.
    let first = lab.at("first");
    expect(&["extract", &out, "--expert", "0", "--out", &first], 0);
    let (taken, before) = (tensors(&first, 0), tensors(&runs[0], 4));
    assert_eq!(taken, before);
}

#[test]
fn what_cannot_be_merged_is_refused_before_anything_is_written() {
    let lab = Lab::new();
    let runs = dense_runs(&lab, 2, DENSE);
    let (a, b) = (&runs[0], &runs[1]);
    let two = format!("experts: [{a}, {b}]\n");
    for (recipe, code, expected) in [
        (format!("{two}gate: last\n"), 2, "wrong.yaml:2:1: unknown field `gate`"),
        (format!("experts: [{{run: {a}, prompts: [x]}}]\n"), 2, "unknown field `prompts`"),
        ("experts: []\n".to_string(), 2, "`experts` names no run"),
        (format!("{two}copies: 0\n"), 2, "at least 1"),
        (format!("{two}gates: last\n"), 2, "has no `positive_prompts`"),
        (
            format!(
                "experts:\n- {{run: {a}, positive_prompts: [dog]}}\n- {{run: {b}, positive_prompts: [dog]}}\ngates: last\n"
            ),
            2,
            "the same prompts",
        ),
        (
            format!(
                "experts:\n- {{run: {a}, positive_prompts: [dog]}}\n- {{run: {b}, positive_prompts: ['DOG']}}\ngates: last\n"
            ),
            2,
            "prompt \"DOG\"",
        ),
        (format!("experts:\n- {{run: {a}, positive_prompts: [dog]}}\n- {b}\n"), 2, "`gates` is none of"),
        (format!("{two}weights: [1, 2]\n"), 2, "`weights` are those of a trunk"),
        (format!("{two}trunk: average\nweights: [1]\n"), 2, "1 weights for 2 experts"),
        (format!("{two}gates: copied\n"), 2, "which is no mixture"),
        (format!("{two}slices: 5\n"), 2, "5 slices do not divide the 12 hidden units of `blocks.0.mlp`"),
        (format!("{two}slice_scale: spread\n"), 2, "more than one slice"),
        (format!("{two}model: x\n"), 2, "`model` names one of the file"),
        (format!("{two}shared: {a}\n"), 2, "has no shared expert"),
        (format!("{two}route: softmax_top_k(k: 1)\n"), 2, "a router stands in quotes"),
        (format!("{two}route: 'softmax_top_k(k: 7)'\n"), 2, "error[E0501]"),
        (format!("{two}shared: {a}\nspec: missing.moe\n"), 2, "missing.moe"),
        ("experts: [nowhere]\n".to_string(), 3, "nowhere"),
        ("{}\n".to_string(), 2, "missing field `experts`"),
    ] {
        let err = refused(&lab, &recipe, code);
        assert!(err.contains(expected), "{recipe}: {err}");
    }
    // Runs that do not agree: both are named, and where.
    let other = |name: &str, from: &str, to: &str| {
        let spec = text(Path::new(&lab.at(&format!("{name}.moe"))), DENSE.replace(from, to));
        let out = lab.at(name);
        train(&lab, &spec, &out, &[]);
        out
    };
    let relu = other("relu", "activation: gelu", "activation: relu");
    let err = refused(&lab, &format!("experts: [{a}, {relu}]\n"), 3);
    assert!(
        err.contains("`activation` of layer `blocks.0.mlp` is `relu` in") && err.contains("and `gelu` in"),
        "{err}"
    );
    let wide = other("wide", "2 * width, activation", "3 * width, activation");
    let err = refused(&lab, &format!("experts: [{a}, {wide}]\n"), 3);
    assert!(err.contains("`hidden` of layer `blocks.0.mlp` is 18 in"), "{err}");
    let heads = other("heads", "heads: 3", "heads: 2");
    let err = refused(&lab, &format!("experts: [{a}, {heads}]\ntrunk: average\n"), 3);
    assert!(err.contains("heads: 2") && err.contains("heads: 3"), "{err}");
    // The trunk of an expert's run does not matter where it is not used.
    merge(&lab, "heads-anyway", &format!("experts: [{a}, {heads}]\n"));
    let long = other("long", "repeat 2", "repeat 3");
    let err = refused(&lab, &format!("experts: [{a}, {long}]\n"), 2);
    assert!(err.contains("3 feed-forward layers"), "{err}");
    let letters = text(Path::new(&lab.at("letters.txt")), "the quick brown fox jumps over the lazy cat! ".repeat(40));
    let out = lab.at("letters");
    let spec = lab.at("dense.moe");
    expect(&["train", &spec, "--data", &letters, "--out", &out, "--device", "interpreter", "--sample", "0"], 0);
    let err = refused(&lab, &format!("experts: [{a}, {out}]\n"), 3);
    assert!(err.contains("other vocabularies") && err.contains("is only in that of"), "{err}");
}

#[test]
fn a_mixture_of_ones_own_is_filled_and_a_router_is_copied() {
    let lab = Lab::new();
    let runs = dense_runs(&lab, 3, DENSE);
    // Only the second layer is a mixture, with a shared expert.
    let own = DENSE.replace("repeat 2 {", "repeat 2 as i {").replace(
        "    residual { layer_norm  mlp(hidden: 2 * width, activation: gelu) }\n",
        "    if i == 1 {\n      residual { layer_norm  moe(experts: 2 * mlp(hidden: 12, activation: gelu), \
             shared: 1 * mlp(hidden: 12, activation: gelu), route: noisy_top_k(k: 1)) }\n    } else {\n      \
             residual { layer_norm  mlp(hidden: 12, activation: gelu) }\n    }\n",
    );
    let spec = text(Path::new(&lab.at("own.moe")), own);
    let recipe = format!("experts: [{}, {}]\nbase: {}\nspec: {spec}\nshared: {2}\n", runs[0], runs[1], runs[2]);
    let (out, certificate) = merge(&lab, "own", &recipe);
    let says = claims(&certificate);
    assert!(says.len() == 2 && says[1].contains("shared experts left out, every token sent to expert 1"), "{says:?}");
    let (merged, base) = (tensors(&out, 0), tensors(&runs[2], 4));
    assert_eq!(merged["blocks.0.mlp.up.weight"], base["blocks.0.mlp.up.weight"]);
    assert_eq!(merged["blocks.1.moe.shared.mlp.down.bias"], base["blocks.1.mlp.down.bias"]);
    let up = merged["blocks.1.moe.experts.mlp.up.weight"].to_f32();
    let each: Vec<f32> = runs[..2].iter().flat_map(|run| tensors(run, 4)["blocks.1.mlp.up.weight"].to_f32()).collect();
    assert_eq!(up, each);
    // Numbers that would mean something else there: the experts, the shared one, the trunk.
    let written = fs::read_to_string(&spec).unwrap();
    let other = |name: &str, from: &str, to: &str| {
        assert!(written.contains(from), "{from}: {written}");
        let file = text(Path::new(&lab.at(name)), written.replacen(from, to, 1));
        refused(&lab, &recipe.replace(&spec, &file), 3)
    };
    let err = other(
        "relu.moe",
        "experts: 2 * mlp(hidden: 12, activation: gelu",
        "experts: 2 * mlp(hidden: 12, activation: relu",
    );
    assert!(err.contains("`activation` of layer `expert of blocks.1.moe` is `relu`"), "{err}");
    let err = other(
        "shared.moe",
        "shared: 1 * mlp(hidden: 12, activation: gelu",
        "shared: 1 * mlp(hidden: 12, activation: silu",
    );
    assert!(err.contains("`shared expert of blocks.1.moe` is `silu`"), "{err}");
    let err = other("heads.moe", "heads: 3", "heads: 2");
    assert!(err.contains("heads: 2") && err.contains("heads: 3"), "{err}");
    // Without a run for the shared expert there is none.
    let err = refused(&lab, &recipe.replace(&format!("shared: {}\n", runs[2]), ""), 2);
    assert!(err.contains("shared expert"), "{err}");

    // The router of a mixture with the experts of other runs.
    let mixture = DENSE
        .replace("mlp(hidden: 2 * width", "moe(experts: 2 * mlp(hidden: 12")
        .replace("activation: gelu) }", "activation: gelu), route: softmax_top_k(k: 1)) }");
    let spec = text(Path::new(&lab.at("mixture.moe")), mixture);
    let routed = lab.at("routed");
    train(&lab, &spec, &routed, &[]);
    let recipe = format!("experts: [{}, {}]\nbase: {routed}\ngates: copied\n", runs[0], runs[1]);
    let (out, certificate) = merge(&lab, "copied", &recipe);
    assert_eq!(claims(&certificate).len(), 2);
    let (merged, base) = (tensors(&out, 0), tensors(&routed, 4));
    assert_eq!(merged["blocks.0.moe.router.weight"], base["blocks.0.moe.router.weight"]);
    assert_ne!(merged["blocks.0.moe.experts.mlp.up.weight"], base["blocks.0.moe.experts.mlp.up.weight"]);
    // Also into a trunk that means something else by its numbers.
    let spec =
        text(Path::new(&lab.at("two-heads.moe")), fs::read_to_string(&spec).unwrap().replace("heads: 3", "heads: 2"));
    let routed = lab.at("two-heads");
    train(&lab, &spec, &routed, &[]);
    let recipe = format!("experts: [{}, {}]\nbase: {routed}\ngates: copied\n", runs[0], runs[1]);
    let (_, certificate) = merge(&lab, "copied-heads", &recipe);
    assert_eq!(claims(&certificate).len(), 2);
}

#[test]
fn checkpoints_of_a_run_are_models_of_their_own_and_nothing_is_left_half_written() {
    let lab = Lab::new();
    let spec = text(Path::new(&lab.at("dense.moe")), DENSE);
    let run = lab.at("run");
    train(&lab, &spec, &run, &["-s", "train.checkpoint.every=2"]);
    let at = |step: u64| format!("{run}/checkpoints/step-{step:08}");
    let (_, certificate) = merge(&lab, "two", &format!("experts: [{}, {}]\n", at(2), at(4)));
    assert_eq!(claims(&certificate).len(), 2);
    assert!(certificate["remarks"].to_string().contains("of several runs"), "{certificate:#}");
    assert_eq!(certificate["distances"].as_array().unwrap().len(), 2);
    // However it is called, it is the same one.
    let (_, certificate) = merge(&lab, "one", &format!("experts: [{run}, {}]\n", at(4)));
    assert!(claims(&certificate).last().unwrap().contains("as it routes"));

    // What was frozen in a run is not in the new one.
    let frozen = lab.at("frozen");
    train(&lab, &spec, &frozen, &["-s", "train.freeze.tensors=\"blocks.0.mlp.*\""]);
    let (out, _) = merge(&lab, "thawed", &format!("experts: [{frozen}]\ncopies: 2\n"));
    let on = lab.at("on");
    expect(&["train", "--from", &out, "--out", &on, "--steps", "1", "--device", "interpreter", "--sample", "0"], 0);
    assert_ne!(
        tensors(&on, 1)["blocks.0.moe.experts.mlp.up.weight"],
        tensors(&out, 0)["blocks.0.moe.experts.mlp.up.weight"]
    );
    // Where the text itself freezes what is called otherwise now, its line is shown.
    let text_with = DENSE.replace("batch 3", "freeze(tensors: \"blocks.0.mlp.*\")  batch 3");
    let spec = text(Path::new(&lab.at("freezing.moe")), text_with);
    let run = lab.at("freezing");
    train(&lab, &spec, &run, &[]);
    let err = refused(&lab, &format!("experts: [{run}]\ncopies: 2\n"), 2);
    assert!(err.contains("E0611") && err.contains("blocks.0.mlp.*"), "{err}");

    // A folder that holds something stays as it is, and is refused before any work.
    let file = text(Path::new(&lab.at("copies.yaml")), format!("experts: [{}]\ncopies: 2\n", at(4)));
    let full = lab.at("full");
    fs::create_dir(&full).unwrap();
    text(&Path::new(&full).join("mine.txt"), "mine");
    let err = expect(&["merge", &file, "--out", &full], 1).err;
    assert!(err.contains("is not empty") && !err.contains("certificate"), "{err}");
    assert_eq!(fs::read_dir(&full).unwrap().count(), 1);
    // An empty one gives way, and no other folder is left beside it.
    let empty = lab.at("empty");
    fs::create_dir(&empty).unwrap();
    expect(&["merge", &file, "--out", &empty], 0);
    let left = fs::read_dir(lab.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");
    // The text that models are compared on is not what the new one is trained on.
    let short = text(Path::new(&lab.at("short.txt")), "the dog");
    let out = lab.at("compared");
    let ran = expect(&["merge", &file, "--out", &out, "--data", &short], 0);
    assert!(ran.out.contains("less than a window") || ran.out.contains("short.txt"), "{}", ran.out);
    let resolved = fs::read_to_string(Path::new(&out).join("resolved.yaml")).unwrap();
    assert!(resolved.contains("text.txt") && !resolved.contains("short.txt"), "{resolved}");
}

#[test]
fn what_is_frozen_stays_and_the_rest_is_trained() {
    let lab = Lab::new();
    let spec = DENSE.replace(
        "mlp(hidden: 2 * width, activation: gelu)",
        "moe(experts: 3 * mlp(hidden: 5), route: sigmoid_top_k(k: 2, bias_rate: 0.01))",
    );
    let spec = text(Path::new(&lab.at("mixture.moe")), spec);
    let start = lab.at("start");
    train(&lab, &spec, &start, &["--steps", "1"]);
    let before = tensors(&start, 1);
    let is_router = |name: &str| name.contains(".moe.") && !name.contains(".experts.");
    let is_expert = |name: &str| name.contains(".experts.");
    for (name, freeze, frozen) in [
        ("router", vec!["train.freeze.router=true"], Box::new(is_router) as Box<dyn Fn(&str) -> bool>),
        (
            "only-router",
            vec!["train.freeze.experts=true", "train.freeze.trunk=true"],
            Box::new(move |n: &str| !is_router(n)),
        ),
        ("experts", vec!["train.freeze.experts=true"], Box::new(is_expert)),
        (
            "named",
            vec!["train.freeze.tensors=\"embed.*, *.attention.*.weight\""],
            Box::new(|n: &str| n.starts_with("embed.") || (n.contains(".attention.") && n.ends_with(".weight"))),
        ),
        ("all", vec![], Box::new(|_: &str| false)),
    ] {
        let out = lab.at(name);
        let mut more =
            vec!["train", "--from", &start, "--out", &out, "--device", "interpreter", "--sample", "0", "--steps", "3"];
        more.extend(freeze.iter().flat_map(|f| ["-s", f]));
        expect(&more, 0);
        let after = tensors(&out, 3);
        assert_eq!(tensors(&out, 0), before);
        for (tensor, value) in &after {
            assert_eq!(*value == before[tensor], frozen(tensor), "{name}: {tensor}");
        }
        // A run that stopped goes on to the same bits.
        let again = lab.at(&format!("{name}-again"));
        let mut first = more.clone();
        first[4] = &again;
        first[10] = "2";
        expect(&first, 0);
        expect(&["train", "--resume", &again, "--steps", "3", "--sample", "0"], 0);
        assert_eq!(lab.files(&out, 3), lab.files(&again, 3), "{name}");
    }
    let pattern = DENSE.replace("batch 3", "batch 3  freeze(tensors: \"embed.tokens.weight\")");
    let pattern = text(Path::new(&lab.at("frozen.moe")), pattern);
    let shown = expect(&["compile", &pattern], 2).err.replace(&lab.folder.path().display().to_string(), "LAB");
    insta::with_settings!({ snapshot_path => "../snapshots", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("freeze.nothing", shown);
    });
    let nothing =
        ["-s", "train.freeze.router=true", "-s", "train.freeze.experts=true", "-s", "train.freeze.trunk=true"];
    let err = expect(&[&["compile", &spec][..], &nothing].concat(), 2).err;
    assert!(err.contains("E0611") && err.contains("leaves nothing to train"), "{err}");
    let err = expect(&["compile", &spec, "-s", "train.freeze.tensors=\"embed.tokens.weight\""], 2).err;
    assert!(err.contains("no such tensor") && err.contains("did you mean `embed.token.weight`"), "{err}");
    let err = expect(&["train", "--resume", &start, "--steps", "4", "-s", "train.freeze.router=true"], 2).err;
    assert!(err.contains("keeps the freeze"), "{err}");
    // Another model has other tensors.
    let other = text(Path::new(&lab.at("dense.moe")), DENSE);
    let out = lab.at("other");
    let err = expect(&["train", &other, "--from", &start, "--out", &out], 3).err;
    assert!(err.contains("blocks.0.mlp.up.weight") && !Path::new(&out).exists(), "{err}");
    // What fits can be taken: the rest begins as it would without.
    let part = |out: &str, more: &[&str]| {
        let given = ["train", &other, "--from", &start, "--partial", "--out", out, "--device", "interpreter"];
        let said = expect(&[&given[..], &["--steps", "1", "--sample", "0"], more].concat(), 0).err.replace('\n', " ");
        assert!(said.contains("of the tensors begin anew") && said.contains("blocks.0.mlp.up.weight"), "{said}");
        assert!(said.contains("of the other run have no place here"), "{said}");
        tensors(out, 0)
    };
    let partly = part(&out, &[]);
    let halved = part(&lab.at("halved"), &["-s", "train.init_scale.factor=0.5"]);
    for (name, value) in &partly {
        let is_taken = before.get(name) == Some(value);
        assert_eq!(is_taken, !name.contains(".mlp."), "{name}");
        let half = moec_ir::Data::F32(value.to_f32().iter().map(|x| if is_taken { *x } else { 0.5 * x }).collect());
        assert_eq!(halved[name], moec_ir::Tensor::new(value.shape(), half).unwrap(), "{name}");
    }
    let none = text(
        Path::new(&lab.at("wide.moe")),
        DENSE.replace("width = 6", "width = 12").replace("unembed", "unembed(bias: false)"),
    );
    let err = expect(&["train", &none, "--from", &start, "--partial", "--out", &lab.at("wide")], 3).err;
    assert!(err.contains("no tensor of") && err.contains("fits the model"), "{err}");
}

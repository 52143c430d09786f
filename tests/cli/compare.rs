//! `moec compare` over variants, grids and budgets.

use super::{Lab, SMALL, expect, run, text};
use serde_json::Value;
use std::fs;

const ON: [&str; 2] = ["--device", "interpreter"];

/// A spec whose `k`, experts and hidden units have names.
pub(super) fn knobs(lab: &Lab) -> String {
    let spec = SMALL
        .replace("let width = 16", "let width = 16\n  let k = 2\n  let hidden = 24")
        .replace("mlp(hidden: 24", "mlp(hidden: hidden")
        .replace("k: 2", "k: k");
    text(&lab.folder.path().join("knobs.moe"), spec)
}

fn json(out: &str) -> Value {
    serde_json::from_str(out).unwrap_or_else(|e| panic!("{e}: {out}"))
}

fn labels(json: &Value) -> Vec<&str> {
    json["specs"].as_array().unwrap().iter().map(|row| row["label"].as_str().unwrap()).collect()
}

#[test]
fn a_grid_names_its_variants_and_leaves_out_what_is_no_model() {
    let lab = Lab::new();
    let (spec, out) = (knobs(&lab), lab.at("out"));
    let grid = ["compare", &spec, "-S", "k=1,2,9", "-S", "hidden=8..12@linear:2", "--steps", "4", "--points", "2"];
    let arguments = [&grid[..], &["--data", &lab.data, "--out", &out, "--seeds", "2", "--json"], &ON].concat();
    let ran = expect(&arguments, 0);
    let told = json(&ran.out);
    let four = ["knobs k=1 hidden=8", "knobs k=1 hidden=12", "knobs k=2 hidden=8", "knobs k=2 hidden=12"];
    assert_eq!(labels(&told), four);
    assert_eq!(told["specs"][1]["set"], serde_json::json!(["k=1", "hidden=12"]));
    let left_out: Vec<&Value> = told["infeasible"].as_array().unwrap().iter().collect();
    assert_eq!(left_out.len(), 2);
    assert_eq!((&left_out[0]["label"], &left_out[0]["code"]), (&"knobs k=9 hidden=8".into(), &"E0501".into()));
    assert!(ran.err.contains("left out: knobs k=9 hidden=8 cannot be trained"), "{}", ran.err);
    // Runs like any other.
    let folder = format!("{out}/knobs-k=1-hidden=12/seed-2");
    let eval = json(&expect(&[&["eval", &folder, "--json"][..], &ON].concat(), 0).out);
    assert_eq!(eval["loss_nats"], told["specs"][1]["runs"][1]["loss_nats"]);

    // Two points of a curve for each of eight runs.
    let curves = fs::read_to_string(format!("{out}/curves.jsonl")).unwrap();
    let points: Vec<Value> = curves.lines().map(json).collect();
    assert_eq!(points.len(), 16);
    assert_eq!((&points[0]["step"], &points[1]["step"], &points[1]["characters"]), (&2.into(), &4.into(), &96.into()));
    let flop = told["specs"][0]["flop_per_step"].as_f64().unwrap();
    assert_eq!(points[1]["flop"].as_f64().unwrap(), 4.0 * flop);
    assert!(points.iter().all(|p| p["loss_nats"].as_f64().unwrap() > 1.0 && p["seconds"].as_f64().unwrap() > 0.0));
    super::json::documented("moec.compare.curve/1", &points);
    let picture = fs::read_to_string(format!("{out}/curves.svg")).unwrap();
    assert!(four.iter().all(|label| picture.contains(&format!(">{label}<title>"))), "{picture}");
    assert!(picture.contains("Validation loss on text.txt") && picture.contains("training steps"));

    // The same again trains nothing, and another value of the grid only itself.
    assert_eq!(expect(&arguments, 0).err.matches("finished before").count(), 8);
    assert_eq!(curves, fs::read_to_string(format!("{out}/curves.jsonl")).unwrap());
    let more = arguments.iter().map(|a| if *a == "k=1,2,9" { "k=1,2,3" } else { a }).collect::<Vec<_>>();
    assert_eq!(expect(&more, 0).err.matches("finished before").count(), 8);
}

#[test]
fn a_file_is_compared_with_itself() {
    let lab = Lab::new();
    let (spec, out) = (knobs(&lab), lab.at("out"));
    let one = format!("{spec}@k=1,train.optimizer.lr=3e-3");
    let ran = expect(
        &[&["compare", &spec, &one, "--data", &lab.data, "--out", &out, "--steps", "2", "--json"][..], &ON].concat(),
        0,
    );
    let told = json(&ran.out);
    assert_eq!(labels(&told), ["knobs", "knobs k=1 lr=3e-3"]);
    assert_ne!(told["specs"][0]["loss_nats"], told["specs"][1]["loss_nats"]);
    // Asked for by name, what is no model is an error before anything is trained.
    let wrong = format!("{spec}@k=9");
    let new = lab.at("new");
    let err = expect(&["compare", &spec, &wrong, "--data", &lab.data, "--out", &new], 2).err;
    assert!(err.contains("E0501") && !std::path::Path::new(&new).exists(), "{err}");
}

#[test]
fn what_is_no_sweep_is_refused() {
    let lab = Lab::new();
    let spec = knobs(&lab);
    let refused = |sweep: &str| {
        let ran = run(&["compare", &spec, "--data", &lab.data, "--out", &lab.at("new"), "-S", sweep]);
        assert_eq!(ran.code, 2, "{sweep}: {}", ran.err);
        ran.err
    };
    for (sweep, reason) in [
        ("k", "PATH=VALUES"),
        ("k=4..1", "lower bound comes first"),
        ("k=1..2@cubic:3", "@log or @linear"),
        ("train.optimizer.lr=0..1@log:3", "begins above 0"),
        ("train.optimizer.lr=1e-4..1e-2@log", "0.0001..0.01@log:5"),
        ("k=1,1", "twice"),
        ("train.seed=1,2", "--seeds"),
        ("train.steps=1,2", "--steps"),
        // A path that there is not is a slip and no corner of the grid.
        ("hiden=1,2", "did you mean `hidden`?"),
        ("k=8,9", "E0501"),
        ("train.batch=2,4", "--flops"),
        ("context=4,8", "-s context=4"),
    ] {
        let err = refused(sweep);
        assert!(err.contains(reason), "{sweep}: {err}");
    }
    let err = run(&["compare", &spec, "--steps", "3", "--flops", "1e9"]).err;
    assert!(err.contains("cannot be used with"), "{err}");
    for amount in ["0", "-1", "inf", "much"] {
        assert_eq!(run(&["compare", &spec, "--minutes", amount]).code, 2);
    }
    assert!(!std::path::Path::new(&lab.at("new")).exists());
}

#[test]
fn equal_operations_are_as_many_steps_as_they_give() {
    let lab = Lab::new();
    let (spec, out) = (knobs(&lab), lab.at("out"));
    let compare = |flops: &str, code| {
        let arguments = ["compare", &spec, "-S", "train.batch=2,6", "--flops", flops, "--data", &lab.data, "--json"];
        expect(&[&arguments[..], &["--out", &out], &ON].concat(), code)
    };
    let ran = compare("6e6", 0);
    let told = json(&ran.out);
    assert_eq!((&told["steps"], &told["batch"]), (&Value::Null, &Value::Null));
    assert_eq!(told["budget"], serde_json::json!({"kind": "flops", "flops": 6e6}));
    let rows = told["specs"].as_array().unwrap();
    for row in rows {
        let each = row["flop_per_step"].as_f64().unwrap();
        assert_eq!(row["steps"].as_u64().unwrap(), (6e6 / each) as u64);
        assert_eq!(row["runs"][0]["step"], row["steps"]);
    }
    assert!(rows[0]["steps"].as_u64() > rows[1]["steps"].as_u64());
    // The learning rate goes over these steps.
    let resolved = fs::read_to_string(format!("{out}/knobs-batch=6/seed-1/resolved.yaml")).unwrap();
    assert!(resolved.contains(&format!("steps: {}", rows[1]["steps"])), "{resolved}");
    assert!(fs::read_to_string(format!("{out}/curves.svg")).unwrap().contains("floating-point operations"));
    assert_eq!(compare("6e6", 0).err.matches("finished before").count(), 2);
    let err = compare("10", 2).err;
    assert!(err.contains("not enough for a step of knobs batch=2"), "{err}");
}

#[test]
fn equal_minutes_are_measured_once() {
    let lab = Lab::new();
    let (spec, out) = (knobs(&lab), lab.at("out"));
    let arguments = ["compare", &spec, "-S", "hidden=8,24", "--minutes", "0.02", "--data", &lab.data, "--out", &out];
    let arguments = [&arguments[..], &["--json", "--eval-batches", "1"], &ON].concat();
    let told = json(&expect(&arguments, 0).out);
    let pace = json(&fs::read_to_string(format!("{out}/knobs-hidden=8/pace.json")).unwrap());
    let steps = (0.02 * 60e3 / pace["step_ms"].as_f64().unwrap()) as u64;
    assert_eq!(told["specs"][0]["steps"].as_u64(), Some(steps));
    assert!(told["specs"][0]["seconds"].as_f64().unwrap() > 0.0);
    assert!(fs::read_to_string(format!("{out}/curves.svg")).unwrap().contains("minutes of training"));
    assert_eq!(expect(&arguments, 0).err.matches("finished before").count(), 2);
}

#[test]
fn differences_are_told_with_what_may_be_concluded() {
    let lab = Lab::new();
    let (spec, out) = (knobs(&lab), lab.at("out"));
    let common =
        ["compare", &spec, "-S", "k=1,2,3", "--data", &lab.data, "--steps", "3", "--points", "0", "--out", &out];
    let compare = |more: &[&str], code| expect(&[&common[..], &ON, more].concat(), code);
    let alone = compare(&[], 0);
    assert!(alone.out.contains("One seed: nothing can be said about differences"), "{}", alone.out);
    assert!(!alone.out.contains("| difference"), "{}", alone.out);
    assert!(!std::path::Path::new(&format!("{out}/curves.svg")).exists());

    let ran = compare(&["--seeds", "3", "--baseline", "knobs k=2", "--margin", "10", "--json"], 0);
    let told = json(&ran.out);
    assert_eq!((&told["baseline"], &told["margin_nats"]), (&"knobs k=2".into(), &10.0.into()));
    let rows = told["specs"].as_array().unwrap();
    assert!(rows[1].get("difference").is_none());
    let losses = |row: usize| -> Vec<f64> {
        (0..3).map(|seed| rows[row]["runs"][seed]["loss_nats"].as_f64().unwrap()).collect()
    };
    for row in [0, 2] {
        let difference = &rows[row]["difference"];
        let paired: Vec<f64> = losses(row).iter().zip(losses(1)).map(|(a, b)| a - b).collect();
        let mean = paired.iter().sum::<f64>() / 3.0;
        let error = (paired.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / 2.0 / 3.0).sqrt();
        let near = |key: &str, expected: f64| {
            let found = difference[key].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-9 * (1.0 + expected.abs()), "{key}: {found}, {expected}");
        };
        near("mean_nats", mean);
        near("low_nats", mean - 4.302652729911275 * error);
        near("high_nats", mean + 4.302652729911275 * error);
        // Student's distribution with two degrees of freedom.
        let t = (mean / error).abs();
        near("p_value", 1.0 - t / (2.0 + t * t).sqrt());
        assert_eq!(difference["equivalence"]["is_shown"], true, "{difference}");
        assert!(difference["p_holm"].as_f64() >= difference["p_value"].as_f64());
    }
    let table = fs::read_to_string(format!("{out}/compare.md")).unwrap();
    assert!(table.contains("Against knobs k=2, at 95 %:") && table.contains("equivalent within 10 nats"), "{table}");
    assert!(table.contains("| difference ") || table.contains(" difference |"), "{table}");

    let err = compare(&["--baseline", "knobs k=4"], 2).err;
    assert!(err.contains("there is no such variant") && err.contains("did you mean 'knobs k="), "{err}");
    assert!(compare(&["--margin", "0"], 2).err.contains("above 0"));
}

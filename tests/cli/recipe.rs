//! What a recipe says of a training as its user sees it.

use super::{Lab, expect};
use serde_json::Value;
use std::path::Path;

/// Learns next to nothing, so that only the windows of an evaluation decide what it says.
const IDLE: [&str; 8] =
    ["--device", "interpreter", "--steps", "300", "-s", "train.optimizer.lr=1e-12", "--progress", "plain"];
/// Is evaluated often, and ends when two evaluations are no better.
const IMPATIENT: [&str; 10] = [
    "-s",
    "train.evaluate.every=2",
    "-s",
    "train.evaluate.batches=1",
    "-s",
    "train.evaluate.patience=2",
    "-s",
    "train.checkpoint.every=0",
    "-s",
    "train.checkpoint.best=true",
];

#[test]
fn training_ends_early_and_the_best_checkpoint_has_a_name() {
    let lab = Lab::new();
    let run = lab.at("run");
    let ran = lab.train(&run, &[&IDLE[..], &IMPATIENT].concat(), 0);
    let told = |text: &str| ran.err.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("{}", ran.err));
    let end = told("2 evaluations without a better val than");
    let step =
        |text: &str| text.rsplit("step ").next().unwrap().trim_end_matches(|c: char| !c.is_ascii_digit()).to_string();
    let best: u64 = step(end).parse().unwrap();
    assert!(end.starts_with(&format!("training ends at step {}: ", best + 4)), "{end}");
    assert!(told("val was best").contains("checkpoints/best"), "{}", ran.err);
    let saved: Vec<String> = std::fs::read_dir(Path::new(&run).join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(saved.len(), 2, "{saved:?}");

    let best_named = Path::new(&run).join("checkpoints/best").display().to_string();
    let evaluated = |path: &str| -> Value {
        let json = expect(&["eval", path, "--device", "interpreter", "--json"], 0).out;
        serde_json::from_str(&json).unwrap()
    };
    assert_eq!(evaluated(&best_named)["step"], best);
    assert_eq!(evaluated(&run)["step"], best + 4, "a run is its newest checkpoint");
    expect(&["sample", &best_named, "--device", "interpreter", "--length", "5"], 0);

    // It is over, until more is waited for.
    let again = expect(&["train", "--resume", &run, "--sample", "0"], 0).err;
    assert!(again.contains("ended at step") && again.contains("train.evaluate.patience=N"), "{again}");
    let longer = ["train", "--resume", &run, "--sample", "0", "-s", "train.evaluate.patience=4", "--progress", "json"];
    let events = expect(&longer, 0).out;
    let ended: Value = serde_json::from_str(events.lines().last().unwrap()).unwrap();
    assert_eq!(ended["outcome"], "stopped_early", "{ended}");
    assert!(ended["step"].as_u64().unwrap() > best + 4, "{ended}");
}

#[test]
fn a_run_without_evaluations_has_no_best_checkpoint() {
    let lab = Lab::new();
    let run = lab.at("run");
    lab.train(&run, &["--device", "interpreter", "--steps", "2", "-s", "train.evaluate.every=0"], 0);
    let best = Path::new(&run).join("checkpoints/best").display().to_string();
    let told = expect(&["eval", &best], 3).err;
    assert!(told.contains("holds no checkpoint with a held-out loss"), "{told}");
    let told =
        lab.train(&lab.at("other"), &["-s", "train.checkpoint.best=true", "-s", "train.evaluate.every=0"], 2).err;
    assert!(told.contains("[E0508]") && told.contains("there are no evaluations"), "{told}");
}

/// A run with averages says that it is evaluated with them, goes on to the same bytes, and keeps them.
#[test]
fn a_run_with_averages_is_its_averages() {
    let lab = Lab::new();
    let (whole, stopped) = (lab.at("whole"), lab.at("stopped"));
    let average = ["-s", "train.average.decay=0.5", "--device", "interpreter"];
    let told = lab.train(&whole, &average, 0).err;
    assert!(told.contains("moving averages of the parameters, of decay 0.5"), "{told}");
    lab.train(&stopped, &[&average[..], &["--steps", "5"]].concat(), 0);
    lab.train(&stopped, &["--resume", "--steps", "12"], 0);
    assert_eq!(lab.files(&whole, 12)[..2], lab.files(&stopped, 12)[..2]);
    let refused = lab.train(&stopped, &["--resume", "-s", "train.average.decay=0.9"], 2).err;
    assert!(refused.contains("a run keeps the average"), "{refused}");

    let eval = |run: &str| expect(&["eval", run, "--device", "interpreter"], 0);
    let told = eval(&whole);
    assert!(told.err.contains("moving averages, of decay 0.5"), "{}", told.err);
    let plain = lab.at("plain");
    lab.train(&plain, &["--device", "interpreter"], 0);
    assert_eq!(lab.files(&plain, 12)[0], lab.files(&whole, 12)[0], "training itself does not see the averages");
    assert_ne!(eval(&plain).out, told.out);
    expect(&["sample", &whole, "--device", "interpreter", "--length", "5"], 0);
    // Another run begins with the averages, and with averages of its own that are these.
    let on = lab.at("on");
    let arguments =
        ["train", "--from", &whole, "--out", &on, "--data", &lab.data, "--device", "interpreter", "--sample", "0"];
    expect(&[&arguments[..], &["--steps", "1", "-s", "train.evaluate.every=0"]].concat(), 0);
    let first = format!("{on}/checkpoints/step-00000000");
    assert_eq!(eval(&first).out.split(" over ").next(), told.out.split(" over ").next());
}

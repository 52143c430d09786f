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

//! The plugin's own program: it knows the strategy in every command, trains with it, and its gradient is right.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

fn moec(arguments: &[&str]) -> Output {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The user's cache of compiled kernels is no place for those of tests.
    let mut command = Command::new(env!("CARGO_BIN_EXE_moec-cosine"));
    command.env("MOEC_CACHE", "off").current_dir(folder).args(arguments).output().unwrap()
}

fn succeeds(arguments: &[&str]) -> String {
    let output = moec(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}\n{errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_strategy_is_part_of_the_language() {
    assert!(succeeds(&["check", "cosine.moe"]).contains("sound"));
    assert!(succeeds(&["routers"]).contains("cosine_top_k"));
    assert!(succeeds(&["explain", "cosine_top_k"]).contains("temperature"));
    assert!(succeeds(&["compile", "cosine.moe"]).contains("cosine_top_k"));
    // Its arguments are checked as those of the built-in ones are.
    let refused = moec(&["check", "cosine.moe", "-s", "width=30"]);
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn it_trains_and_samples() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run").display().to_string();
    succeeds(&["train", "cosine.moe", "--steps", "5", "--out", &run, "-s", "train.evaluate.batches=2"]);
    assert_eq!(succeeds(&["sample", &run, "--length", "20"]).trim_end_matches('\n').chars().count(), 20);
    let metrics = std::fs::read_to_string(Path::new(&run).join("metrics.jsonl")).unwrap();
    let losses: Vec<f64> = metrics
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss_nats"].as_f64())
        .collect();
    assert!(!losses.is_empty() && losses.iter().all(|loss| loss.is_finite()), "{metrics}");
}

#[test]
fn its_gradient_agrees_with_central_differences() {
    let table = succeeds(&["gradcheck", "cosine.moe", "-s", "width=8"]);
    assert!(table.contains("moe.directions"), "{table}");
}

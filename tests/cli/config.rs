//! `--config FILE` and `moec config --show-origin`: which value holds, and where it comes from.

use super::{Lab, Ran, expect, text};
use serde_json::Value;
use std::fs;
use std::path::Path;

const ON: [&str; 2] = ["--device", "interpreter"];

fn written(lab: &Lab, yaml: &str) -> String {
    text(Path::new(&lab.at("values.yaml")), yaml)
}

#[test]
fn every_value_has_an_origin() {
    let lab = Lab::new();
    let config = written(&lab, "# half as wide\nwidth: 8\ntrain:\n  batch: 2\n  optimizer: {sgd: {lr: 0.1}}\n");
    let arguments = ["config", &lab.spec, "--config", &config, "-s", "train.batch=4", "--show-origin"];
    let shown = expect(&arguments, 0).out;
    let row = |name: &str| {
        let line = shown
            .lines()
            .find(|line| line.split(' ').next() == Some(name))
            .unwrap_or_else(|| panic!("{name}: {shown}"));
        line.split("  ").map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("|")
    };
    assert_eq!(row("width"), format!("width|8|{config}:2"));
    assert_eq!(row("context"), format!("context|8|{}:3", lab.spec));
    assert_eq!(row("train.batch"), "train.batch|4|-s train.batch=4", "the command line goes before the file of values");
    assert_eq!(row("train.optimizer"), format!("train.optimizer|sgd|{config}:5"));
    assert_eq!(row("train.optimizer.lr"), format!("train.optimizer.lr|0.1|{config}:5"));
    assert_eq!(row("train.optimizer.momentum"), "train.optimizer.momentum|0.0|default");
    assert_eq!(row("train.steps"), format!("train.steps|12|{}:18", lab.spec));
    assert_eq!(row("train.evaluate.batches"), format!("train.evaluate.batches|2|{}:19", lab.spec));
    assert_eq!(
        (row("train.clip"), row("train.seed")),
        ("train.clip|none|default".into(), "train.seed|1337|default".into())
    );
    assert_eq!(row("train.data"), "train.data|synthetic|default");

    // What is not written is no less a default because an argument of it was given.
    let shown = expect(&["config", &lab.spec, "-s", "train.optimizer.lr=0.2", "--show-origin", "--json"], 0).out;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let origin = |name: &str| {
        let values = shown["values"].as_array().unwrap();
        values.iter().find(|value| value["name"] == name).map(|value| value["origin"]["kind"].clone()).unwrap()
    };
    assert_eq!((origin("train.optimizer"), origin("train.optimizer.lr")), ("default".into(), "command line".into()));
    assert_eq!((origin("width"), &shown["schema"]), ("file".into(), &"moec.config/1".into()));
}

#[test]
fn a_file_of_values_is_checked_at_its_lines() {
    let lab = Lab::new();
    let told = |yaml: &str| {
        let config = written(&lab, yaml);
        let Ran { err, .. } = expect(&["check", &lab.spec, "--config", &config], 2);
        err
    };
    let unknown = told("train:\n  stpes: 5\n");
    assert!(unknown.contains("values.yaml:2:3") && unknown.contains("did you mean `train.steps`?"), "{unknown}");
    let unknown = told("widht: 5\n");
    assert!(unknown.contains("values.yaml:1:1") && unknown.contains("did you mean `width`?"), "{unknown}");
    assert!(told("train:\n  batch: none\n").contains("values.yaml:2:10"));
    assert!(told("train:\n  batch: 0\n").contains("values.yaml:2:10"));
    assert!(told("train:\n  optimizer: {adamw: {momentum: 1}}\n").contains("momentum"));
    assert!(told("a: b: c\n").contains("values.yaml:1:") && told("train: [1]\n").contains("no value is a list"));
    assert!(expect(&["check", &lab.spec, "--config", &lab.at("none.yaml")], 2).err.contains("none.yaml"));
    // The other commands say the same.
    let config = written(&lab, "train:\n  stpes: 5\n");
    for command in ["train", "compile", "bench", "compare", "config", "gradcheck"] {
        let err = expect(&[command, &lab.spec, "--config", &config], 2).err;
        assert!(err.contains("values.yaml:2:3") && err.contains("train.steps"), "{command}: {err}");
    }
}

#[test]
fn a_run_keeps_its_values_when_their_file_is_gone() {
    let lab = Lab::new();
    let config = written(&lab, "width: 8\ntrain:\n  steps: 3\n  batch: 2\n");
    let run = lab.at("run");
    let told = lab.train(&run, &[&ON[..], &["--config", &config, "-s", "train.batch=4"]].concat(), 0).err;
    assert!(told.contains("3 steps of 4 x 8 tokens"), "{told}");
    fs::remove_file(&config).unwrap();
    let resolved = fs::read_to_string(format!("{run}/resolved.yaml")).unwrap();
    assert!(resolved.contains("width=8") && resolved.contains("train.steps=3"), "{resolved}");
    expect(&[&["train", "--resume", &run, "--steps", "4", "--data", &lab.data, "--sample", "0"][..], &ON].concat(), 0);
    // A continued run takes what may change.
    let config = written(&lab, "train: {steps: 5}\n");
    let told = expect(&[&["train", "--resume", &run, "--config", &config, "--sample", "0"][..], &ON].concat(), 0).err;
    assert!(told.contains("train.steps=5"), "{told}");

    // Of several specs all get them, and the comparison is known again.
    let config = written(&lab, "train: {steps: 2}\n");
    let out = lab.at("out");
    let compare = ["compare", &lab.spec, "--data", &lab.data, "--out", &out, "--config", &config];
    expect(&[&compare[..], &ON].concat(), 0);
    assert!(expect(&[&compare[..], &ON].concat(), 0).err.contains("finished before"));
}

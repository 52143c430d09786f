//! `moec explain RUN`: what is wrong with a run, and when that cannot be said.

use super::{Lab, SMALL, expect, expect_in, run, text};
use serde_json::Value;
use std::fs;
use std::path::Path;

const ON: [&str; 2] = ["--device", "interpreter"];

/// A spec whose capacity has room for half of the choices.
fn dropping(lab: &Lab) -> String {
    let faulty = SMALL.replace("k: 2, epsilon: 0)", "k: 2), capacity: capacity(factor: 0.5, evaluation_factor: 0.5)");
    text(&lab.folder.path().join("dropping.moe"), faulty)
}

#[test]
fn a_run_is_explained_with_the_line_to_change() {
    let lab = Lab::new();
    let (spec, run) = (dropping(&lab), lab.at("runs/faulty"));
    let train = ["train", &spec, "--data", &lab.data, "--out", &run, "--sample", "0", "--steps", "60"];
    expect(&[&train[..], &ON].concat(), 0);
    let told = expect(&[&["explain", &run][..], &ON].concat(), 0).out;
    for part in ["60 of 60 steps", "the capacity drops many choices", "why: ", "cure: ", "spec.moe:10: "] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let json = expect(&[&["explain", &lab.at("runs/latest"), "--json"][..], &ON].concat(), 0).out;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["schema"], &json["step"]), (&"moec.explain.run/1".into(), &60.into()));
    let found = json["diagnoses"].as_array().unwrap();
    let dropped = found.iter().find(|d| d["fault"] == "dropped").unwrap();
    assert_eq!(dropped["line"]["number"], 10);

    // A name that is known wins; its folder is named with a path.
    fs::rename(&run, lab.at("switch")).unwrap();
    let ran = expect_in(lab.folder.path(), &["explain", "switch"], 0);
    assert!(ran.out.starts_with("switch: ") && ran.err.contains("moec explain ./switch"), "{}{}", ran.out, ran.err);
    assert!(expect_in(lab.folder.path(), &[&["explain", "./switch"][..], &ON].concat(), 0).out.contains("diagnosis: "));
    fs::rename(lab.at("switch"), lab.at("mine")).unwrap();
    assert!(expect_in(lab.folder.path(), &[&["explain", "mine"][..], &ON].concat(), 0).out.contains("diagnosis: "));
    assert!(expect(&["explain", &lab.at("nowhere")], 3).err.contains("holds no run"));
    assert!(expect(&["explain", lab.folder.path().to_str().unwrap()], 3).err.contains("holds no run"));
}

#[test]
fn a_run_that_is_young_or_sound_is_told_so() {
    let lab = Lab::new();
    let (young, sound) = (lab.at("young"), lab.at("sound"));
    let spec = dropping(&lab);
    expect(&[&["train", &spec, "--data", &lab.data, "--out", &young, "--sample", "0"][..], &ON].concat(), 0);
    let told = expect(&[&["explain", &young][..], &ON].concat(), 0).out;
    assert!(told.contains("12 steps are too few") && !told.contains("diagnosis"), "{told}");
    lab.train(&sound, &[&ON[..], &["--steps", "60"]].concat(), 0);
    let told = expect(&[&["explain", &sound][..], &ON].concat(), 0);
    assert!(told.out.contains("none of the known faults is found"), "{}", told.out);
    // What takes more evaluations and checkpoints than it has is not ruled out.
    let said = told.out.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("no idle or crowded experts") && !said.contains("stands still"), "{said}");
    assert!(!said.contains("balance loss"), "{said}");
}

#[test]
fn a_run_that_diverged_is_told_so_by_its_folder() {
    let lab = Lab::new();
    let far = lab.at("far");
    lab.train(&far, &[&ON[..], &["-s", "train.optimizer.lr=1e30", "--steps", "200"]].concat(), 5);
    let told = run(&["explain", &far]);
    assert!(told.code == 0 && told.out.contains("the training diverged") && told.out.contains("lr: "), "{}", told.out);
    assert!(Path::new(&far).join("metrics.jsonl").exists());
}

//! `moec search`: reproducible, resumable, and its best spec trains.

use super::compare::knobs;
use super::{Lab, expect, program, run};
use serde_json::Value;
use std::fs;

const ON: [&str; 2] = ["--device", "interpreter"];

const SPACE: [&str; 6] = ["-S", "k=1..4", "-S", "hidden=8,16", "-S", "train.optimizer.lr=1e-4..1e-1@log"];

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn lines(out: &str) -> Vec<Value> {
    fs::read_to_string(format!("{out}/trials.jsonl")).unwrap().lines().map(json).collect()
}

/// What does not depend on a clock or on where it lies.
fn said(trials: &[Value]) -> Vec<[&Value; 4]> {
    trials.iter().map(|t| [&t["trial"], &t["set"], &t["state"], &t["loss_nats"]]).collect()
}

#[test]
fn a_search_finds_its_way_and_its_best_spec_trains() {
    let lab = Lab::new();
    let (spec, out) = (knobs(&lab), lab.at("out"));
    let common = ["search", &spec, "--data", &lab.data, "--steps", "4", "--eval-batches", "2", "--json"];
    let search = |out: &str, more: &[&str]| expect(&[&common[..], &SPACE, &ON, &["--out", out], more].concat(), 0);
    let ran = search(&out, &["--trials", "9"]);
    let found = json(&ran.out);
    let trials = lines(&out);
    assert_eq!(found["trials"].as_array().unwrap().len(), trials.len());
    assert_eq!(found["finished"], 9);
    // Four experts a token of three are no model, and do not count.
    let infeasible: Vec<&Value> = trials.iter().filter(|t| t["state"] == "infeasible").collect();
    assert_eq!((trials.len(), found["infeasible"].as_u64()), (9 + infeasible.len(), Some(infeasible.len() as u64)));
    assert!(infeasible.iter().all(|t| t["code"] == "E0501" && t["set"][0] == "k=4"), "{infeasible:?}");
    let least = trials.iter().filter_map(|t| t["loss_nats"].as_f64()).fold(f64::INFINITY, f64::min);
    assert_eq!(found["best"]["loss_nats"].as_f64(), Some(least));
    assert!(ran.err.contains("the lowest so far; 1 of 9 trials") && ran.err.contains("9 of 9 trials"), "{}", ran.err);
    let picture = fs::read_to_string(format!("{out}/search.svg")).unwrap();
    assert!(picture.contains("Search on text.txt") && picture.contains("a dot for each of 9 trained points"));
    super::json::documented("moec.search.trial/1", &trials);

    // The best spec is the spec with these values, and its run is that of the trial.
    let best = format!("{out}/best.moe");
    let text = fs::read_to_string(&best).unwrap();
    let set = found["best"]["set"].as_array().unwrap();
    let value = |i: usize| set[i].as_str().unwrap().split_once('=').unwrap().1;
    for part in [format!("let k = {}", value(0)), format!("lr: {}", value(2)), "steps 4".to_string()] {
        let spaces = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(spaces(&text).contains(&part), "{part}: {text}");
    }
    expect(&["fmt", "--check", &best], 0);
    let trained = lab.at("trained");
    expect(&[&["train", &best, "--seed", "1", "--out", &trained, "--sample", "0"][..], &ON].concat(), 0);
    let eval = |run: &str| json(&expect(&[&["eval", run, "--json"][..], &ON].concat(), 0).out)["loss_nats"].clone();
    assert_eq!(eval(&trained), eval(&format!("{}/seed-1", found["best"]["run"].as_str().unwrap())));

    // The same seed is the same search; it goes on from its lines, also from half of one, and beyond its end.
    let again = lab.at("again");
    search(&again, &["--trials", "4"]);
    let file = format!("{again}/trials.jsonl");
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 20]).unwrap();
    search(&again, &["--trials", "9"]);
    assert_eq!(said(&lines(&again)), said(&trials));
    let before = fs::read_to_string(format!("{out}/trials.jsonl")).unwrap();
    assert!(!search(&out, &["--trials", "9"]).err.contains("evaluating"));
    assert_eq!(before, fs::read_to_string(format!("{out}/trials.jsonl")).unwrap());
    let other = lab.at("other");
    search(&other, &["--trials", "4", "--seed", "1"]);
    assert_ne!(said(&lines(&other))[..4], said(&trials)[..4]);

    // Another search has another folder.
    let refused = [&common[..], &SPACE, &ON, &["--out", &out, "--seed", "2"]].concat();
    let err = expect(&refused, 2).err;
    assert!(err.contains("trials of another search") && err.contains("--out"), "{err}");
    documented(&lab, &spec, &found);
}

fn documented(lab: &Lab, spec: &str, found: &Value) {
    let arguments = ["search", spec, "-S", "k=1,2", "--flops", "3e6", "--data", &lab.data, "--out"];
    let two = json(&expect(&[&arguments[..], &[&lab.at("two"), "--json"], &ON].concat(), 0).out);
    // Two points are all that there are.
    assert_eq!(two["finished"], 2);
    super::json::documented("moec.search/1", &[found.clone(), two]);
}

#[test]
fn what_cannot_be_searched_is_refused() {
    let lab = Lab::new();
    let spec = knobs(&lab);
    let new = lab.at("new");
    let refused = |sweep: &str, code: i32| {
        let ran = run(&[&["search", &spec, "--data", &lab.data, "--out", &new, "-S", sweep][..], &ON].concat());
        assert_eq!(ran.code, code, "{sweep}: {}", ran.err);
        ran.err
    };
    assert!(refused("hiden=1,2", 2).contains("did you mean `hidden`?"));
    assert!(refused("context=4,8", 2).contains("cannot be compared"));
    assert!(refused("train.batch=4,8", 2).contains("--flops"));
    assert!(refused("k=2..1", 2).contains("lower bound"));
    let none = refused("k=7,8", 2);
    assert!(none.contains("no point of the space") && none.contains("there are only 3"), "{none}");
    assert!(expect(&["search", &spec], 2).err.contains("--sweep"));
}

#[cfg(unix)]
#[test]
fn an_interrupted_search_goes_on_to_the_same_result() {
    use std::process::Stdio;
    use std::time::{Duration, Instant};
    let lab = Lab::new();
    let spec = knobs(&lab);
    let arguments = |out: &str| -> Vec<String> {
        let common = ["search", &spec, "--data", &lab.data, "--steps", "60", "--trials", "3", "--eval-batches", "1"];
        common.iter().chain(&SPACE).chain(&ON).map(|a| a.to_string()).chain(["--out".into(), out.into()]).collect()
    };
    let (whole, stopped) = (lab.at("whole"), lab.at("stopped"));
    let strings = arguments(&whole);
    expect(&strings.iter().map(String::as_str).collect::<Vec<_>>(), 0);
    let mut child = program().args(arguments(&stopped)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    let has_begun = || {
        let trials = fs::read_dir(&stopped).into_iter().flatten().flatten();
        trials.into_iter().any(|trial| trial.path().join("seed-1/spec.moe").exists())
    };
    while !has_begun() && begun.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(20));
    }
    // It may have ended meanwhile, which is as good.
    let _ = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).output();
    let code = child.wait().unwrap().code();
    assert!(code == Some(130) || code == Some(0), "{code:?}");
    let strings = arguments(&stopped);
    expect(&strings.iter().map(String::as_str).collect::<Vec<_>>(), 0);
    assert_eq!(said(&lines(&stopped)), said(&lines(&whole)));
    assert_eq!(
        fs::read_to_string(format!("{whole}/best.moe")).unwrap(),
        fs::read_to_string(format!("{stopped}/best.moe")).unwrap()
    );
}

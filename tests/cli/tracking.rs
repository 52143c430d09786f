//! Training that is told to others: the same bits, whatever they do, and nothing lost.

use super::{Lab, Ran, expect, moec, program};
use fake_server::{FakeRun, FakeServer, Fault};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

#[path = "../../crates/moec/src/cli/tracking/mlflow/fake_server.rs"]
mod fake_server;

/// Trains the small model on the interpreter.
fn train(lab: &Lab, name: &str, more: &[&str], code: i32) -> Ran {
    let out = lab.at(name);
    let common = ["train", &lab.spec, "--data", &lab.data, "--out", &out, "--device", "interpreter", "--sample", "20"];
    expect(&[&common[..], &["-s", "train.log.every=2"], more].concat(), code)
}

/// The numbers that a run has reported, by the names that trackers know, with their steps.
fn reported(run: &str) -> BTreeMap<(String, u64), f64> {
    let metrics = fs::read_to_string(Path::new(run).join("metrics.jsonl")).unwrap();
    let mut all = BTreeMap::new();
    for line in metrics.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let step = line["step"].as_u64().unwrap();
        let mut add = |name: String, value: &Value| {
            if let Some(value) = value.as_f64() {
                assert!(all.insert((name, step), value).is_none());
            }
        };
        for (name, value) in
            line.as_object().unwrap().iter().filter(|(name, _)| !["step", "schema"].contains(&&***name))
        {
            for layer in value.as_array().into_iter().flatten() {
                let path = layer["path"].as_str().unwrap();
                for (name, value) in layer.as_object().unwrap() {
                    match value {
                        Value::Array(experts) => {
                            experts.iter().enumerate().for_each(|(e, v)| add(format!("{name}/{path}/{e}"), v));
                        }
                        Value::Object(several) => {
                            several.iter().for_each(|(of, v)| add(format!("{name}.{of}/{path}"), v));
                        }
                        value => add(format!("{name}/{path}"), value),
                    }
                }
            }
            add(name.clone(), value);
        }
    }
    all
}

/// The server has every number that the run has reported, and each once.
#[track_caller]
fn assert_told(run: &str, told: &FakeRun) {
    let mut there = BTreeMap::new();
    for (name, step, value, _) in &told.metrics {
        assert!(there.insert((name.clone(), *step), *value).is_none(), "{name} at {step} came twice");
    }
    let reported = reported(run);
    assert!(reported.len() > 20);
    assert_eq!(there, reported);
}

#[test]
fn a_training_that_is_told_has_the_same_bits() {
    let lab = Lab::new();
    train(&lab, "plain", &[], 0);
    let server = FakeServer::start();
    let tracker = format!("mlflow={}", server.url());
    let ran = train(&lab, "told", &["--track", &tracker, "--track", "tensorboard"], 0);
    let (plain, run) = (lab.at("plain"), lab.at("told"));
    assert!(lab.files(&plain, 12) == lab.files(&run, 12));
    assert!(
        ran.err.contains("tracked: http://127.0.0.1:") && ran.err.contains("tracked: tensorboard --logdir"),
        "{}",
        ran.err
    );
    let told = server.run();
    assert_told(&run, &told);
    assert_eq!(told.status, "FINISHED");
    for (name, value) in [("train.steps", "12"), ("train.batch", "3"), ("model", "small"), ("device", "interpreter")] {
        assert_eq!(told.parameters.get(name).map(String::as_str), Some(value), "{name}: {:?}", told.parameters);
    }
    assert!(told.parameters["parameters"].parse::<u64>().unwrap() > 1000);
    let files: Vec<String> =
        server.store().artifacts.keys().map(|path| path.replace("1/run0/artifacts/", "")).collect();
    assert_eq!(files, ["metrics.jsonl", "plan.txt", "resolved.yaml", "samples/step-00000012.txt", "spec.moe"]);
    let names = fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.starts_with("events.out.tfevents.")).count(), 1);
    assert!(!Path::new(&plain).join("mlflow.json").exists(), "nobody is told who is not named");

    // For programs standard error is as quiet as without.
    let ran = train(&lab, "json", &["--json", "--track", &tracker], 0);
    assert!(ran.err.is_empty(), "{}", ran.err);
    assert_eq!(server.store().runs.len(), 2);
}

#[test]
fn a_run_that_goes_on_is_the_same_run_there() {
    let lab = Lab::new();
    let server = FakeServer::start();
    let run = lab.at("run");
    train(&lab, "run", &["--steps", "6", "--track", &format!("mlflow={}", server.url()), "--track", "tensorboard"], 0);
    let on = |more: &[&str]| expect(&[&["train", "--resume", &run, "--sample", "0"], more].concat(), 0);
    on(&["--steps", "12"]);
    let told = server.run();
    assert_told(&run, &told);
    assert_eq!((&*told.status, &*told.tags["moec.changed"]), ("FINISHED", "train.steps=12"));
    on(&["--steps", "14", "--track", "none"]);
    assert_eq!(server.run().metrics.len(), told.metrics.len());
    on(&["--steps", "16"]);
    assert_told(&run, &server.run());
}

#[test]
fn without_a_server_nothing_is_different_and_nothing_lost() {
    let lab = Lab::new();
    train(&lab, "plain", &[], 0);
    let server = FakeServer::start();
    let tracker = format!("mlflow={}", server.url());
    let again = server.stop();
    let ran = train(&lab, "run", &["--track", &tracker, "--quiet"], 0);
    let run = lab.at("run");
    assert!(lab.files(&lab.at("plain"), 12) == lab.files(&run, 12));
    assert_eq!(ran.err.matches("cannot be reached").count(), 1, "{}", ran.err);
    assert!(ran.err.ends_with(&format!("told by: moec track {run}\n")), "{}", ran.err);
    let alone = expect(&["track", &run], 1).err;
    assert!(alone.contains("127.0.0.1"), "{alone}");
    let server = again();
    let sent = expect(&["track", &run], 0).err;
    assert!(sent.contains("numbers that were missing"), "{sent}");
    assert_told(&run, &server.run());
    assert_eq!(server.run().status, "FINISHED");
    let sent = expect(&["track", &run, "--checkpoint"], 0).err;
    assert!(sent.contains("no number was missing"), "{sent}");
    assert_told(&run, &server.run());
    assert!(server.store().artifacts.keys().any(|path| path.ends_with("checkpoints/step-00000012/model.safetensors")));

    // A run that nobody was told of, with the server of the environment.
    let missing = expect(&["track", &lab.at("plain")], 2).err;
    assert!(missing.contains("--to mlflow=http://"), "{missing}");
    let uri = server.url();
    let output =
        moec().env("MLFLOW_TRACKING_URI", &uri).args(["track", &lab.at("plain"), "--to", "mlflow"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(server.store().runs.len(), 2);
    // It has the same parameters as the one that was tracked.
    let told: Vec<FakeRun> = server.store().runs.values().cloned().collect();
    assert_eq!(told[0].parameters, told[1].parameters);
    assert!(told[0].parameters.contains_key("active_parameters"), "{:?}", told[0].parameters);

    // What is wrong with one run keeps nothing from the others.
    let several = expect(&["track", &lab.at("nothing"), &run, &lab.at("plain")], 3).err;
    assert!(several.contains("/nothing") && several.matches("no number was missing").count() == 2, "{several}");
}

#[test]
fn a_server_that_hangs_or_fails_holds_up_nothing() {
    let lab = Lab::new();
    train(&lab, "plain", &[], 0);
    for (name, fault, said) in [
        ("hangs", Fault::Hangs, "does not answer"),
        ("fails", Fault::Status(500), "status 500"),
        ("refuses", Fault::Status(403), "MLFLOW_TRACKING_TOKEN"),
        ("talks", Fault::Talks, "no MLflow server"),
    ] {
        let server = FakeServer::start();
        server.store().fault = Some((fault, "/"));
        let ran = train(&lab, name, &["--track", &format!("mlflow={}", server.url())], 0);
        assert!(lab.files(&lab.at("plain"), 12) == lab.files(&lab.at(name), 12), "{name}");
        assert!(ran.err.contains(said) && ran.err.contains("moec track"), "{name}: {}", ran.err);
    }
}

#[cfg(unix)]
#[test]
fn a_server_that_is_gone_in_mid_run_is_told_later() {
    let lab = Lab::new();
    let server = FakeServer::start();
    let run = lab.at("run");
    let mut command = program();
    command.args(["train", &lab.spec, "--data", &lab.data, "--out", &run, "--device", "interpreter", "--sample", "0"]);
    command.args(["--steps", "100000000", "-s", "train.log.every=1", "--track", &format!("mlflow={}", server.url())]);
    // Into a file: a pipe that nobody reads would stop it.
    let said = lab.at("said.txt");
    let mut child = command.stderr(fs::File::create(&said).unwrap()).spawn().unwrap();
    let mut until = |condition: &dyn Fn() -> bool| {
        while !condition() {
            assert!(child.try_wait().unwrap().is_none(), "{}", fs::read_to_string(&said).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    };
    until(&|| server.store().runs.values().any(|run| run.metrics.len() > 50));
    // It is being told already.
    let refused = expect(&["track", &run], 1).err;
    assert!(refused.contains("another process") && refused.contains("wait until it has ended"), "{refused}");
    let told = server.run().metrics.len();
    let again = server.stop();
    let lines = || fs::read_to_string(Path::new(&run).join("metrics.jsonl")).unwrap().lines().count();
    let before = lines();
    until(&|| lines() > before + 20);
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let ended = child.wait().unwrap();
    let said = fs::read_to_string(&said).unwrap();
    assert_eq!(ended.code(), Some(130), "{said}");
    assert!(said.contains(&format!("moec track {run}")), "{said}");
    let server = again();
    expect(&["track", &run], 0);
    assert!(server.run().metrics.len() > told);
    assert_told(&run, &server.run());
    assert_eq!(server.run().status, "KILLED");
}

/// The wait at the end is left by a signal, which changes neither the exit code nor what is said of the tracker.
#[test]
fn a_signal_ends_the_wait_for_a_server_and_nothing_else() {
    let lab = Lab::new();
    let server = FakeServer::start();
    server.store().fault = Some((Fault::Hangs, "/"));
    let (run, said) = (lab.at("run"), lab.at("said.txt"));
    let mut command = program();
    command.args(["train", &lab.spec, "--data", &lab.data, "--out", &run, "--device", "interpreter", "--sample", "0"]);
    command.args(["--steps", "100000000", "--track", &format!("mlflow={}", server.url())]);
    let mut child = command.stderr(fs::File::create(&said).unwrap()).spawn().unwrap();
    let pid = child.id().to_string();
    let read = || fs::read_to_string(&said).unwrap();
    for signal_after in ["step ", "waiting for mlflow; Ctrl-C leaves"] {
        while !read().contains(signal_after) {
            assert!(child.try_wait().unwrap().is_none(), "{}", read());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    }
    assert_eq!(child.wait().unwrap().code(), Some(130), "{}", read());
    assert!(read().contains(&format!("moec track {run}")), "{}", read());
}

#[test]
fn who_cannot_be_told_is_refused_before_training() {
    let lab = Lab::new();
    let refused = |more: &[&str], variables: &[(&str, &str)]| {
        let run = lab.at("run");
        let mut command = moec();
        command.args(["train", &lab.spec, "--data", &lab.data, "--device", "interpreter", "--out", &run]).args(more);
        let output = command.envs(variables.iter().copied()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{more:?}");
        assert!(!Path::new(&run).exists(), "{more:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused(&["--track", "wandb"], &[]).contains("the trackers are tensorboard, mlflow, mlflow=URL and none"));
    assert!(refused(&["--track", "mlflow=localhost:5000"], &[]).contains("http://127.0.0.1:5000"));
    assert!(refused(&["--track", "mlflow=http://me:secret@host"], &[]).contains("MLFLOW_TRACKING_USERNAME"));
    assert!(refused(&["--track", "mlflow"], &[]).contains("MLFLOW_TRACKING_URI"));
    assert!(refused(&["--track", "mlflow"], &[("MLFLOW_TRACKING_URI", "sqlite:///x.db")]).contains("sqlite:///x.db"));
    assert!(refused(&[], &[("MOEC_TRACK", "wandb")]).contains("MOEC_TRACK=wandb"));
    assert!(refused(&["--track", "none,tensorboard"], &[]).contains("no other tracker"));
    let secret = "mlflow=http://me:s3cret@host";
    let to = |uri: &str, to: &str| {
        let output = moec().env("MLFLOW_TRACKING_URI", uri).args(["track", "run", "--to", to]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    for said in [
        refused(&["--track", secret], &[]),
        refused(&[], &[("MOEC_TRACK", secret)]),
        refused(&["--track", "mlflow"], &[("MLFLOW_TRACKING_URI", "http://me:s3cret@host")]),
        to("", secret),
        to("http://me:s3cret@host", "mlflow"),
    ] {
        assert!(said.contains("MLFLOW_TRACKING_PASSWORD") && !said.contains("s3cret"), "{said}");
    }
    expect(&["track", &lab.at("nothing")], 3);
    let to = expect(&["track", &lab.at("nothing"), "--to", "tensorboard"], 2).err;
    assert!(to.contains("moec metrics RUN --tensorboard FOLDER"), "{to}");
}

//! How a training is told: plain lines, JSON lines, nothing, and the live view in a terminal of its own.

use super::{Lab, Ran, expect, program, root};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Trains the small model on the interpreter, which compiles nothing.
fn train(lab: &Lab, name: &str, more: &[&str], code: i32) -> Ran {
    let out = lab.at(name);
    let common = ["train", &lab.spec, "--data", &lab.data, "--out", &out, "--device", "interpreter"];
    expect(&[&common[..], more].concat(), code)
}

/// The lines of a training with `--json`.
fn events(ran: &Ran) -> Vec<Value> {
    ran.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

#[test]
fn whatever_is_asked_for_a_file_has_no_control_characters() {
    let lab = Lab::new();
    let steps = ["--steps", "12", "-s", "train.log.every=2", "--sample", "20"];
    let mut checkpoints = Vec::new();
    for mode in ["auto", "plain", "json", "none"] {
        let ran = train(&lab, mode, &[&["--progress", mode][..], &steps].concat(), 0);
        for text in [&ran.out, &ran.err] {
            let odd: Vec<char> = text.chars().filter(|c| c.is_control() && *c != '\n').collect();
            assert!(odd.is_empty(), "{mode}: {odd:?} in {text:?}");
        }
        checkpoints.push(lab.files(&lab.at(mode), 12));
        match mode {
            "auto" | "plain" => {
                let lines = ["step  2/12  loss ", "eval  6  train ", "saved ", "step 12 after ", "layer  "];
                assert!(lines.iter().all(|line| ran.err.lines().any(|l| l.starts_with(line))), "{mode}: {}", ran.err);
                assert!(ran.err.contains(" left\n"), "{}", ran.err);
                assert_eq!(ran.out.chars().count(), 21);
            }
            "json" => assert!(ran.err.is_empty() && events(&ran).len() > 8, "{}{}", ran.err, ran.out),
            _ => {
                assert!(ran.err.is_empty(), "{}", ran.err);
                assert_eq!(ran.out.chars().count(), 21, "the sample is a result: {:?}", ran.out);
            }
        }
    }
    // How it is told changes no bit of it.
    assert!(checkpoints.iter().all(|files| *files == checkpoints[0]));
    let refused = train(&lab, "live", &["--progress", "live"], 2).err;
    assert!(refused.contains("needs a terminal") && refused.contains("--progress plain"), "{refused}");
    assert!(!Path::new(&lab.at("live")).exists());
    // One way to say each.
    for wrong in [&["--json", "--quiet"][..], &["--json", "--progress", "plain"], &["-q", "--progress", "plain"]] {
        train(&lab, "wrong", wrong, 2);
    }
    let quiet = train(&lab, "quiet", &["--quiet", "--sample", "0", "--steps", "2"], 0);
    assert!(quiet.out.is_empty() && quiet.err.is_empty(), "{}{}", quiet.out, quiet.err);
}

/// The fields of each event that docs/json.md names, and whether they are always there.
fn documented() -> BTreeMap<String, BTreeMap<String, bool>> {
    let text = fs::read_to_string(root().join("docs/json.md")).unwrap();
    let mut events: BTreeMap<String, BTreeMap<String, bool>> = BTreeMap::new();
    let mut event = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("### `") {
            event = name.trim_end_matches('`').to_string();
            events.insert(event.clone(), BTreeMap::new());
        } else if let Some(row) = line.strip_prefix("| `") {
            let (field, rest) = row.split_once('`').unwrap();
            events.get_mut(&event).unwrap().insert(field.to_string(), !rest.starts_with(" *"));
        }
    }
    events
}

/// Every line has what is documented and nothing else.
#[track_caller]
fn assert_documented(events: &[Value]) {
    let documented = documented();
    for event in events {
        assert_eq!(event["schema"], "moec.train/1");
        let kind = event["event"].as_str().unwrap();
        let fields = documented.get(kind).unwrap_or_else(|| panic!("`{kind}` is not documented"));
        let has: BTreeSet<&str> = event.as_object().unwrap().keys().map(String::as_str).collect();
        for (field, is_always_there) in fields {
            assert!(!is_always_there || has.contains(field.as_str()), "`{kind}` lacks `{field}`: {event}");
        }
        let more: Vec<&&str> =
            has.iter().filter(|f| !["schema", "event"].contains(*f) && !fields.contains_key(**f)).collect();
        assert!(more.is_empty(), "`{kind}` has {more:?}, which docs/json.md does not name");
    }
}

#[test]
fn json_lines_are_as_they_are_documented() {
    let lab = Lab::new();
    let settings = ["--json", "--sample", "20", "-s", "train.log.every=3", "-s", "train.clip=1.0"];
    let ran = train(&lab, "run", &settings, 0);
    let said = events(&ran);
    assert_documented(&said);
    let kinds: Vec<&str> = said.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(
        kinds.iter().filter(|kind| **kind != "diagnosis").copied().collect::<Vec<_>>(),
        ["begun", "train", "train", "evaluation", "train", "train", "evaluation", "checkpoint", "sample", "ended"]
    );
    let of = |kind: &str| said.iter().filter(|event| event["event"] == kind).collect::<Vec<_>>();
    // Everything that may be absent is there once, so that all of the document is held against something.
    let steps = of("train");
    assert!(steps[0]["grad_norm"].is_number() && steps[0]["left"]["steps_s"].is_number(), "{}", steps[0]);
    assert!(steps[0]["spent"]["compiling_s"].is_number());
    assert_eq!(steps.iter().map(|t| t["step"].as_u64().unwrap()).collect::<Vec<_>>(), [3, 6, 9, 12]);
    let begun = of("begun")[0];
    assert_eq!((begun["steps"].as_u64(), begun["step"].as_u64()), (Some(12), Some(0)));
    assert_eq!(of("evaluation")[1]["layers"][0]["load_rows"].as_array().unwrap().len(), 3);
    assert_eq!(of("sample")[0]["text"].as_str().unwrap().chars().count(), 20);
    let ended = of("ended")[0];
    assert_eq!((ended["outcome"].as_str(), ended["step"].as_u64()), (Some("finished"), Some(12)));
    assert!(Path::new(ended["checkpoint"].as_str().unwrap()).is_dir());
    // The numbers are those of the run's metrics.
    let metrics = fs::read_to_string(Path::new(&lab.at("run")).join("metrics.jsonl")).unwrap();
    let metrics: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for metric in metrics {
        let same = |event: &&Value| {
            let fields =
                metric.as_object().unwrap().iter().filter(|(name, _)| !["kind", "schema"].contains(&name.as_str()));
            fields.into_iter().all(|(name, value)| event[name] == *value)
        };
        assert!(said.iter().any(|event| same(&event)), "{metric}");
    }

    // A run that has nothing to do, one that goes on, and failures before and within the training.
    let resume = |more: &[&str], code| {
        let run = lab.at("run");
        events(&expect(&[&["train", "--resume", &run, "--json", "--sample", "0"], more].concat(), code))
    };
    let complete = resume(&[], 0);
    assert_documented(&complete);
    assert_eq!(complete.last().unwrap()["outcome"], "finished");
    let more = resume(&["--steps", "14"], 0);
    assert_documented(&more);
    assert_eq!((more[0]["step"].as_u64(), more.last().unwrap()["step"].as_u64()), (Some(12), Some(14)));
    let wrong = resume(&["--steps", "16", "-s", "train.batch=4"], 2);
    assert_documented(&wrong);
    assert_eq!((wrong.len(), wrong[0]["event"].as_str(), wrong[0]["exit"].as_i64()), (1, Some("failed"), Some(2)));
    let diverged = train(&lab, "far", &["--json", "-s", "train.optimizer.lr=1e300"], 5);
    let diverged = events(&diverged);
    assert_documented(&diverged);
    let failed = diverged.last().unwrap();
    assert!(failed["message"].as_str().unwrap().contains("diverged") && failed["exit"] == 5, "{failed}");
    assert!(failed["help"][0].as_str().unwrap().contains("--resume"), "{failed}");
}

#[cfg(unix)]
#[test]
fn a_training_that_nobody_reads_any_more_stops_and_saves() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    let lab = Lab::new();
    let out = lab.at("run");
    let endless =
        ["--steps", "100000000", "--sample", "0", "--device", "interpreter", "-s", "train.log.every=1", "--json"];
    let mut command = program();
    command.args([&["train", &lab.spec, "--data", &lab.data, "--out", &out][..], &endless].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("\"begun\""));
    drop(lines);
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    // As after a signal: it is not what was asked for.
    assert_eq!(ended.status.code(), Some(130), "{said}");
    assert!(said.contains("interrupted and saved"), "{said}");
    assert_eq!(fs::read_dir(Path::new(&out).join("checkpoints")).unwrap().count(), 1);
}

#[test]
fn tables_are_no_wider_than_they_may_be() {
    let lab = Lab::new();
    let run_folder = lab.at("run");
    train(&lab, "run", &["--sample", "0"], 0);
    let compare = lab.at("compare");
    let spec = root().join("specs/noisy_top2.moe").display().to_string();
    let commands: [&[&str]; 8] = [
        &["compile", &spec],
        &["routers"],
        &["layers"],
        &["explain"],
        &["explain", "max/mean"],
        &["eval", &run_folder, "--device", "interpreter", "--batches", "1"],
        &["train", &lab.spec, "--data", &lab.data, "--device", "interpreter", "--sample", "0", "--out"],
        &["compare", &lab.spec, "--data", &lab.data, "--device", "interpreter", "--out", &compare],
    ];
    for columns in [60, 80, 120, 200] {
        for arguments in commands {
            let out = lab.at(&format!("run-{columns}"));
            let mut arguments = arguments.to_vec();
            if arguments.last() == Some(&"--out") {
                arguments.push(&out);
            }
            let output = super::moec().env("COLUMNS", columns.to_string()).args(&arguments).output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{arguments:?}");
            let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
            for line in text.lines() {
                // What is copied is not broken, and Markdown is not for terminals.
                let is_copied = line.contains(&*lab.at("")) || line.contains("moec ") || line.starts_with('|');
                let is_caption = line.starts_with("12 steps of 3 x 8");
                let words = line.split(' ').map(|word| word.chars().count()).max().unwrap_or(0);
                let fits = line.chars().count() <= columns || words + 4 > columns;
                assert!(fits || is_copied || is_caption, "{columns} columns, {arguments:?}: {line}");
            }
        }
    }
}

/// What came of a program in a terminal.
#[cfg(unix)]
#[derive(serde::Deserialize)]
struct Session {
    code: i32,
    output: String,
    /// Whether the terminal is as it was; unknown if it was closed.
    restored: Option<bool>,
    /// Whether it was, each time that the program was stopped.
    stopped_as_it_was: Vec<bool>,
    /// What was not done because the output never had what was waited for.
    left: Vec<(String, String)>,
}

#[cfg(unix)]
impl Session {
    /// Runs moec in a terminal, where each action is done once a text was printed since the one before.
    #[track_caller]
    fn of(arguments: &[&str], size: (u16, u16), actions: Actions<'_>) -> Self {
        let moec = program();
        let script = root().join("tests/cli/terminal.py");
        let mut python = std::process::Command::new("python3");
        for (name, value) in moec.get_envs() {
            match value {
                Some(value) => python.env(name, value),
                None => python.env_remove(name),
            };
        }
        python.env_remove("NO_COLOR").env_remove("CI").env_remove("COLUMNS").env("TERM", "xterm-256color");
        python.arg(script).args([size.0.to_string(), size.1.to_string(), serde_json::to_string(actions).unwrap()]);
        let output = python.arg(moec.get_program()).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let session: Self = serde_json::from_str(&said)
            .unwrap_or_else(|e| panic!("{e}: {said}{}", String::from_utf8_lossy(&output.stderr)));
        assert!(session.left.is_empty(), "never came: {:?} in {:?}", session.left, session.output);
        session
    }

    /// The view took the terminal and gave it back; what was written since.
    #[track_caller]
    fn after_the_view(&self) -> String {
        assert!(self.output.contains("\u{1b}[?1049h"), "no view: {:?}", self.output);
        let (view, after) = self.output.rsplit_once("\u{1b}[?1049l").expect("the view leaves the terminal");
        assert!(view.contains("\u{1b}[?25l"), "the cursor is hidden in the view");
        let after = after.strip_prefix("\u{1b}[?25h").expect("the cursor is shown again");
        assert!(!after.contains("\u{1b}[?"), "{after:?}");
        assert_ne!(self.restored, Some(false), "the terminal does not show what is typed");
        after.replace("\r\n", "\n")
    }
}

/// What is waited for, and what is done then.
#[cfg(unix)]
type Actions<'a> = &'a [(&'a str, &'a str)];

/// What the view always shows.
#[cfg(unix)]
const VIEW: &str = "q stop and save";

#[cfg(unix)]
fn endless(lab: &Lab, name: &str) -> Vec<String> {
    let out = lab.at(name);
    let all = ["train", &lab.spec, "--data", &lab.data, "--out", &out, "--device", "interpreter", "--sample", "0"];
    let more = ["--steps", "100000000", "-s", "train.log.every=2", "-s", "train.evaluate.every=0"];
    all.iter().chain(&more).map(|argument| argument.to_string()).collect()
}

#[cfg(unix)]
#[test]
fn q_stops_and_saves_and_the_terminal_is_as_it_was() {
    let lab = Lab::new();
    // A key or a signal; twice `q` is no second Ctrl-C.
    let ends: [(&str, Actions<'_>, i32); 4] = [
        ("q", &[(VIEW, "send:qq")], 130),
        ("ctrl-c", &[(VIEW, "send:\u{3}")], 130),
        ("term", &[(VIEW, "signal:TERM")], 143),
        ("resized", &[(VIEW, "resize:60x12"), (VIEW, "resize:200x60"), (VIEW, "send:q")], 130),
    ];
    for (name, actions, code) in ends {
        let arguments = endless(&lab, name);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let session = Session::of(&arguments, (80, 24), actions);
        assert_eq!(session.code, code, "{name}: {:?}", session.output);
        let after = session.after_the_view();
        assert!(
            after.contains("saved ") && after.contains("interrupted and saved; continue with: "),
            "{name}: {after}"
        );
        assert_eq!(fs::read_dir(Path::new(&lab.at(name)).join("checkpoints")).unwrap().count(), 1, "{name}");
    }
    let run_folder = lab.at("q");
    expect(&["sample", &run_folder, "-n", "5", "--device", "interpreter"], 0);
}

#[cfg(unix)]
#[test]
fn what_lines_would_have_said_stands_in_the_terminal_after_the_view() {
    let lab = Lab::new();
    train(&lab, "plain", &["--sample", "30", "-s", "train.log.every=2"], 0);
    let out = lab.at("live");
    let common = ["train", &lab.spec, "--data", &lab.data, "--out", &out, "--device", "interpreter", "--sample", "30"];
    let session = Session::of(&[&common[..], &["-s", "train.log.every=2"]].concat(), (80, 24), &[]);
    assert_eq!((session.code, session.restored), (0, Some(true)), "{:?}", session.output);
    let after = session.after_the_view();
    for line in
        ["eval  6  train ", "eval 12  train ", "saved ", "step 12 after ", "layer ", "blocks.1.moe ", "a sample:"]
    {
        assert!(after.lines().any(|l| l.starts_with(line)), "{line}: {after}");
    }
    assert!(after.lines().all(|line| line.chars().count() <= 80 || line.contains(&*lab.at(""))), "{after}");
    assert!(lab.files(&lab.at("plain"), 12) == lab.files(&out, 12), "the view changes no bit");
}

#[cfg(unix)]
#[test]
fn the_terminal_is_given_back_when_training_fails_or_is_stopped_by_ctrl_z() {
    let lab = Lab::new();
    let arguments = endless(&lab, "far");
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.extend(["-s", "train.optimizer.lr=1e300"]);
    let session = Session::of(&arguments, (80, 24), &[]);
    assert_eq!((session.code, session.restored), (5, Some(true)), "{:?}", session.output);
    let after = session.after_the_view();
    assert!(after.contains("diverged") && after.contains("help: go on from"), "{after:?}");

    let arguments = endless(&lab, "stopped");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let actions = [(VIEW, "send:\u{1a}"), ("\u{1b}[?1049l", "stopped"), ("", "signal:CONT"), (VIEW, "send:q")];
    let session = Session::of(&arguments, (80, 24), &actions);
    assert_eq!((session.code, &session.stopped_as_it_was[..]), (130, &[true][..]), "{:?}", session.output);
    session.after_the_view();
}

#[cfg(unix)]
#[test]
fn a_terminal_that_is_closed_ends_the_view_and_saves() {
    if super::hangup_is_ignored() {
        return;
    }
    let lab = Lab::new();
    let arguments = endless(&lab, "run");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let session = Session::of(&arguments, (80, 24), &[(VIEW, "hangup")]);
    assert_eq!(session.code, 129, "{:?}", session.output);
    assert_eq!(session.restored, None);
    assert_eq!(fs::read_dir(Path::new(&lab.at("run")).join("checkpoints")).unwrap().count(), 1);
}

/// A warning of another thread is shown in the view, and stands in the terminal afterwards.
#[cfg(unix)]
#[test]
fn a_tracker_that_fails_does_not_tear_the_view() {
    let lab = Lab::new();
    let mut arguments = endless(&lab, "run");
    arguments.extend(["--track".to_string(), "mlflow=http://127.0.0.1:1".to_string()]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let session = Session::of(&arguments, (100, 30), &[("cannot", "send:q")]);
    assert_eq!(session.code, 130, "{:?}", session.output);
    let after = session.after_the_view();
    assert_eq!(after.matches("mlflow cannot be reached: http://127.0.0.1:1").count(), 1, "{after}");
    assert!(after.contains("interrupted and saved") && after.contains("told by: moec track "), "{after}");
}

#[cfg(unix)]
#[test]
fn auto_is_plain_where_a_view_is_not_wanted() {
    let lab = Lab::new();
    let out = lab.at("run");
    let common = ["train", &lab.spec, "--data", &lab.data, "--device", "interpreter", "--sample", "0", "--out", &out];
    let session = Session::of(&[&common[..], &["--progress", "plain"]].concat(), (60, 24), &[]);
    assert_eq!(session.code, 0);
    assert!(!session.output.contains("\u{1b}[?"), "{:?}", session.output);
    assert!(session.output.replace("\r\n", "").chars().all(|c| c != '\r'), "{:?}", session.output);
    let run = lab.at("quiet");
    let quiet = Session::of(
        &["train", &lab.spec, "--data", &lab.data, "--device", "interpreter", "--sample", "0", "--out", &run, "-q"],
        (60, 24),
        &[],
    );
    assert_eq!((quiet.code, quiet.output.as_str()), (0, ""));
}

#[test]
fn help_says_how_a_training_is_told() {
    let help = expect(&["train", "--help"], 0).out;
    for word in ["--progress <MODE>", "live", "plain", "json", "none", "--quiet", "docs/json.md", "NO_COLOR"] {
        assert!(help.contains(word), "{word}: {help}");
    }
}

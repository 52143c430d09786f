//! What `--json` prints has exactly the keys of docs/json.md.
//!
//! `UPDATE_JSON_PAGE=1 cargo test -p moec --test cli -- json the_doctor` writes the keys of the page anew.

use super::{Lab, SMALL, expect, root, run, text};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Mutex;

const ON: [&str; 2] = ["--device", "interpreter"];

/// Objects whose keys are names of the model.
const NAMED: [&str; 4] = ["auxiliary", "forms", "routes", "noise"];

/// Held while the page is read or written.
static PAGE: Mutex<()> = Mutex::new(());

/// Holds values against the keys that the page has under this name.
#[track_caller]
pub(super) fn documented(name: &str, values: &[Value]) {
    let mut keys: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    values.iter().for_each(|value| collect(value, "", &mut keys));
    // A list that is empty somewhere has its elements elsewhere.
    let has_more = |key: &str| keys.keys().any(|other| other.len() > key.len() && other.starts_with(key));
    let lines: Vec<String> = keys
        .iter()
        .filter(|(key, types)| !types.is_empty() || !has_more(key))
        .map(|(key, types)| {
            let types: Vec<&str> = types.iter().copied().collect();
            format!("{key}: {}\n", types.join(" | "))
        })
        .collect();
    let expected = lines.concat();
    assert!(!expected.is_empty(), "{name}");

    let _held = PAGE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let path = root().join("docs/json.md");
    let page = fs::read_to_string(&path).unwrap();
    let head = format!("<!-- keys: {name} -->\n```\n");
    let (before, behind) = page.split_once(&head).unwrap_or_else(|| panic!("docs/json.md has no keys of {name}"));
    let (found, after) = behind.split_once("```").unwrap();
    if found != expected && std::env::var_os("UPDATE_JSON_PAGE").is_some() {
        fs::write(&path, format!("{before}{head}{expected}```{after}")).unwrap();
        return;
    }
    assert_eq!(
        found, expected,
        "docs/json.md says otherwise of {name}; the head of tests/cli/json.rs says how it is written"
    );
}

fn collect(value: &Value, path: &str, keys: &mut BTreeMap<String, BTreeSet<&str>>) {
    let ty = match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(values) => {
            let path = format!("{path}[]");
            if values.is_empty() {
                keys.entry(path.clone()).or_default();
            }
            return values.iter().for_each(|value| collect(value, &path, keys));
        }
        Value::Object(values) => {
            for (key, value) in values {
                let of = path.rsplit('.').next().unwrap_or_default();
                let key = if NAMED.contains(&of) { "NAME" } else { key.as_str() };
                let below = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
                collect(value, &below, keys);
            }
            return;
        }
    };
    keys.entry(path.to_string()).or_default().insert(ty);
}

#[track_caller]
fn json(arguments: &[&str], code: i32) -> Value {
    let ran = expect(arguments, code);
    serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{arguments:?}: {e}\n{}", ran.out))
}

#[test]
fn of_specs() {
    let lab = Lab::new();
    let at = |name: &str, content: String| text(&lab.folder.path().join(name), content);
    let faulty = at("faulty.moe", SMALL.replace("mlp(hidden: 24", "mpl(hidden: 24").replace("steps 12", "stpes 12"));
    let warned = at("warned.moe", SMALL.replace("k: 2, epsilon: 0", "k: 1").replace("vocab characters", "vocab 7"));
    let library =
        at("library.moe", "router r { let scores = linear(x, experts) return dense_gates(softmax(scores)) }".into());
    let of = |file: &str, code| json(&["check", file, "--json"], code);
    let checked = [of(&lab.spec, 0), of(&faulty, 2), of(&warned, 0), of(&library, 0)];
    assert!(checked[2].get("remark").is_some() && checked[3].get("routers").is_some());
    documented("moec.check/1", &checked);
    let several = json(&["check", &lab.spec, &faulty, &warned, &library, &lab.at("none.moe"), "--json"], 2);
    documented("moec.check.files/1", &[several]);

    let messages = expect(&["check", &faulty, "--message-format", "json"], 2).err;
    let messages: Vec<Value> = messages.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let imported = at("importing.moe", format!("import \"faulty.moe\"\n{SMALL}"));
    let more = run(&["check", &imported, "--message-format", "json"]).err;
    let more = more.lines().filter_map(|line| serde_json::from_str(line).ok());
    documented("a message", &messages.into_iter().chain(more).collect::<Vec<_>>());

    documented("moec.compile/1", &[json(&["compile", &lab.spec, "--json"], 0)]);
    let config = text(&lab.folder.path().join("v.yaml"), "width: 8\ntrain: {clip: 1.0, precision: bf16}\n");
    let config = ["config", &lab.spec, "--config", &config, "-s", "train.checkpoint.keep=2", "--json"];
    documented("moec.config/1", &[json(&config, 0), json(&["config", &lab.spec, "--json"], 0)]);
    let gradients = ["gradcheck", &lab.spec, "--samples", "1", "--json"];
    documented(
        "moec.gradcheck/1",
        &[json(&gradients, 0), json(&[&gradients[..], &["-s", "train.batch=1"]].concat(), 0)],
    );
    let bench = ["bench", &lab.spec, "--data", &lab.data, "--steps", "2", "--json"];
    documented("moec.bench/1", &[json(&bench, 0), json(&[&bench[..], &ON].concat(), 0)]);
}

#[test]
fn of_what_can_be_explained() {
    let all = json(&["explain", "--json"], 0);
    let all = all.as_array().unwrap();
    let of = |kinds: &[&str]| -> Vec<Value> {
        all.iter().filter(|value| kinds.iter().any(|kind| value["kind"] == *kind)).cloned().collect()
    };
    documented("moec.explain/1 of a code", &of(&["code"]));
    documented("moec.explain/1 of a router", &of(&["router"]));
    documented("moec.explain/1 of a layer", &of(&["layer"]));
    documented("moec.explain/1 of a loss", &of(&["loss"]));
    documented("moec.explain/1 of an optimizer or a schedule", &of(&["optimizer", "schedule"]));
    documented("moec.explain/1 of a column", &of(&["column"]));
    let argument = |name: &&str| json(&["explain", name, "--json"], 0);
    documented(
        "moec.explain/1 of an argument",
        &["capacity", "k", "bias", "order"].iter().map(argument).collect::<Vec<_>>(),
    );
    documented("moec.explain/1 of a setting", &[argument(&"steps")]);
    assert!(all.iter().all(|value| value["schema"] == "moec.explain/1"));
    assert_eq!(json(&["explain", "adamw", "--json"], 0), of(&["optimizer"])[0]);
    assert!(json(&["explain", "switch", "--json"], 0).is_array(), "a router and a loss");
    documented("moec.routers/1", &[json(&["routers", "--json"], 0)]);
    documented("moec.layers/1", &[json(&["layers", "--json"], 0)]);
    documented("moec.cache/1", &[json(&["cache", "--json"], 0)]);
}

#[test]
fn of_runs() {
    let lab = Lab::new();
    let balanced = SMALL.replace("route: noisy", "balance: [load], route: noisy");
    let balanced = text(&lab.folder.path().join("balanced.moe"), balanced);
    let crowded = SMALL.replace("k: 2, epsilon: 0)", "k: 2), capacity: capacity(factor: 0.5, evaluation_factor: 0.5)");
    let crowded = text(&lab.folder.path().join("crowded.moe"), crowded);
    let varying = SMALL.replace(
        "experts: 3 * mlp(hidden: 24, activation: relu, dropout: 0.1)",
        "experts: [3 * mlp(hidden: 24), copy]",
    );
    let varying = text(&lab.folder.path().join("varying.moe"), varying);
    let train = |spec: &str, out: &str, more: &[&str], code| {
        let arguments = ["train", spec, "--data", &lab.data, "--out", out, "--sample", "0"];
        expect(&[&arguments[..], &ON, more].concat(), code)
    };
    let (plain, full, far, easy) = (lab.at("plain"), lab.at("full"), lab.at("far"), lab.at("easy"));
    train(&balanced, &plain, &["-s", "train.clip=1.0"], 0);
    train(&crowded, &full, &["--steps", "60"], 0);
    train(&varying, &easy, &[], 0);
    train(&lab.spec, &far, &["-s", "train.optimizer.lr=1e30", "--steps", "200"], 5);
    let explained = |run: &str| json(&[&["explain", run, "--json"][..], &ON].concat(), 0);
    documented("moec.explain.run/1", &[explained(&plain), explained(&full), explained(&far)]);
    let eval = |run: &str| json(&[&["eval", run, "--json"][..], &ON].concat(), 0);
    documented("moec.eval/1", &[eval(&plain), eval(&easy)]);

    let characters = ["route", &plain, "--by", "character", "--length", "60", "--json"];
    let of_one = [&characters[..], &["--slot", "1"], &ON].concat();
    documented("moec.route.characters/1", &[json(&[&characters[..], &ON].concat(), 0), json(&of_one, 0)]);
    let record = lab.at("record.jsonl");
    expect(&[&["route", &plain, "--text", "the quick fox", "-o", &record][..], &ON].concat(), 0);
    documented("moec.route.diff/1", &[json(&["route", "--diff", &record, &record, "--json"], 0)]);
    documented("moec.route.replay/1", &[json(&[&["route", "--replay", &record, "--json"][..], &ON].concat(), 0)]);
    let lines = |file: &str| -> Vec<Value> {
        fs::read_to_string(file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let of_kind = |lines: &[Value], kind: &str| -> Vec<Value> {
        lines.iter().filter(|line| line["kind"] == kind).cloned().collect()
    };
    for (name, kind) in [("the run", "run"), ("a window", "window"), ("a route", "route")] {
        documented(&format!("moec.route, {name}"), &of_kind(&lines(&record), kind));
    }
    let metrics: Vec<Value> =
        [&plain, &full, &far, &easy].into_iter().flat_map(|run| lines(&format!("{run}/metrics.jsonl"))).collect();
    for kind in ["train", "evaluation", "diverged"] {
        documented(&format!("metrics.jsonl, kind {kind}"), &of_kind(&metrics, kind));
    }

    let dense = SMALL.split("residual {\n      layer_norm\n      moe").next().unwrap().to_string();
    let dense = dense + "}\n  layer_norm\n  unembed\n}\ntrain { batch 3  steps 12 }\n";
    let dense = text(&lab.folder.path().join("dense.moe"), dense);
    let compare = |out: &str, more: &[&str], code| {
        let arguments = ["compare", &balanced, &dense, &varying, "--data", &lab.data, "--json", "--out", out];
        json(&[&arguments[..], &ON, more].concat(), code)
    };
    let (two, few) = (lab.at("two"), lab.at("few"));
    let impossible =
        ["compare", &lab.spec, "-S", "train.batch=3,0", "--data", &lab.data, "--json", "--out", &lab.at("grid")];
    let compared = [
        compare(&two, &["--seeds", "2", "--margin", "0.1"], 0),
        json(&[&impossible[..], &ON, &["--flops", "1e7"]].concat(), 0),
        compare(&few, &["--eval-batches", "1", "-s", "train.optimizer.lr=1e300"], 5),
    ];
    documented("moec.compare/1", &compared);
}

#[test]
fn of_failures() {
    let lab = Lab::new();
    let faulty = text(&lab.folder.path().join("faulty.moe"), SMALL.replace("mlp(hidden: 24", "mpl(hidden: 24"));
    let nowhere = lab.at("nowhere");
    let failures = [
        (&["compile", &faulty, "--json"][..], 2),
        (&["eval", &nowhere, "--json"], 3),
        (&["explain", "no_such_name", "--json"], 2),
        (&["explain", &nowhere, "--json"], 3),
        (&["bench", &nowhere, "--json"], 2),
        (&["compare", &lab.spec, &lab.spec, "--json"], 2),
        (&["config", &lab.spec, "-s", "widht=3", "--json"], 2),
        (&["gradcheck", &lab.spec, "--json", "--eps", "0"], 2),
        (&["check", &nowhere, "--json"], 2),
        (&["routers", "--json", "--spec", &nowhere], 2),
        (&["route", "--diff", &nowhere, &nowhere, "--json"], 3),
        (&["compile", &lab.spec, "--json", "--lr", "3"], 2),
        (&["layers", "--json", "--no-such-option"], 2),
        (&["cache", "--json", "--no-cache"], 2),
    ];
    let mut values = Vec::new();
    for (arguments, code) in failures {
        let ran = run(arguments);
        let value: Value = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{arguments:?}: {e}\n{}", ran.out));
        assert_eq!(
            (&value["schema"], ran.code, &value["exit"]),
            (&"moec.error/1".into(), code, &code.into()),
            "{arguments:?}"
        );
        assert!(!value["message"].as_str().unwrap().is_empty() && !ran.err.is_empty(), "{arguments:?}: {value}");
        values.push(value);
    }
    assert_eq!(values[11]["help"][0], "a value of the recipe is changed with -s: -s train.optimizer.lr=3");
    documented("moec.error/1", &values);
}

/// Every form that a command names is on the page.
#[test]
fn no_schema_is_left_out() {
    fn walk(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let names = text.split("\"moec.").skip(1).filter_map(|rest| rest.split('"').next());
                found.extend(names.filter(|name| name.contains('/')).map(|name| format!("moec.{name}")));
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(&root().join("crates/moec/src/cli"), &mut found);
    let page = fs::read_to_string(root().join("docs/json.md")).unwrap();
    // Results of single runs are parts of that of a comparison, and times of steps are what it keeps for itself.
    let own = ["moec.compare.run/1", "moec.compare.pace/1"];
    for schema in found.iter().filter(|schema| !own.contains(&schema.as_str())) {
        assert!(page.contains(schema.as_str()), "{schema} is not in docs/json.md");
    }
    assert!(found.len() > 12, "{found:?}");
}

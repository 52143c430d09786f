//! The command line as a user meets it: results, messages, exit codes, and files that must not be lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use assert_cmd::Command;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "cli/compare.rs"]
mod compare;
#[path = "cli/config.rs"]
mod config;
#[path = "cli/explain.rs"]
mod explain;
#[path = "cli/export.rs"]
mod export;
#[path = "cli/frictions.rs"]
mod frictions;
#[path = "cli/interchange.rs"]
mod interchange;
#[path = "cli/json.rs"]
mod json;
#[path = "cli/recipe.rs"]
mod recipe;
#[path = "cli/search.rs"]
mod search;
#[path = "cli/surgery.rs"]
mod surgery;
#[path = "cli/tracking.rs"]
mod tracking;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn spec(name: &str) -> String {
    root().join("specs").join(name).display().to_string()
}

/// The program.
fn moec() -> Command {
    Command::from_std(program())
}

/// The program, to be started and not waited for. Compiled kernels are kept from test to test, and apart from the user's.
fn program() -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_moec"));
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache");
    command.env("NO_COLOR", "1").env_remove("RUST_BACKTRACE").env("MOEC_CACHE", cache);
    // Whoever runs the tests may track trainings, or reach others through a proxy.
    for (name, _) in std::env::vars_os() {
        let known = name.to_string_lossy().to_ascii_uppercase();
        if known == "MOEC_TRACK" || known.starts_with("MLFLOW_") || known.ends_with("_PROXY") {
            command.env_remove(name);
        }
    }
    command
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn run(arguments: &[&str]) -> Ran {
    let output = moec().args(arguments).output().unwrap();
    let ran = Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    assert!(!ran.err.contains("panicked") && !ran.err.contains("RUST_BACKTRACE"), "{arguments:?}: {}", ran.err);
    ran
}

#[track_caller]
fn expect(arguments: &[&str], code: i32) -> Ran {
    let ran = run(arguments);
    assert_eq!(ran.code, code, "{arguments:?}\n--- out\n{}\n--- err\n{}", ran.out, ran.err);
    ran
}

fn text(path: &Path, content: impl AsRef<[u8]>) -> String {
    fs::write(path, content).unwrap();
    path.display().to_string()
}

#[test]
fn every_command_has_help_with_examples() {
    let help = expect(&["--help"], 0).out;
    assert!(help.contains("Exit codes:"), "{help}");
    for command in [
        "new",
        "doctor",
        "check",
        "fmt",
        "explain",
        "layers",
        "routers",
        "compile",
        "train",
        "compare",
        "search",
        "bench",
        "sample",
        "eval",
        "route",
        "report",
        "metrics",
        "track",
        "gradcheck",
        "lsp",
        "cache",
        "config",
        "completions",
        "man",
        "merge",
        "extract",
        "prune",
        "import",
        "export",
    ] {
        assert!(help.contains(command), "{command} is not listed");
        let own = expect(&[command, "--help"], 0).out;
        assert!(own.contains("Examples:"), "{command}: {own}");
    }
    expect(&["--version"], 0);
    expect(&["no-such-command"], 2);
    expect(&["train"], 2);
}

#[test]
fn the_makemoe_spec_has_its_parameters() {
    let screen = expect(&["compile", &spec("noisy_top2.moe")], 0).out;
    assert!(screen.contains("8,996,545 parameters"), "{screen}");
    let json = expect(&["compile", &spec("noisy_top2.moe"), "--json"], 0).out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["parameters"], 8_996_545);
    assert!(json["active_parameters"].as_u64().unwrap() < 4_000_000);
}

#[test]
fn every_stage_can_be_printed() {
    let tiny = spec("tiny.moe");
    for emit in ["ast", "model", "ir", "plan", "dot"] {
        let ran = expect(&["compile", &tiny, "--emit", emit], 0);
        assert!(ran.out.len() > 200, "{emit}: {}", ran.out);
    }
    let lowered = expect(&["compile", &tiny, "--emit", "ir", "--after", "lower"], 0).out;
    let optimized = expect(&["compile", &tiny, "--emit", "ir"], 0).out;
    assert!(!lowered.contains("adamw") && optimized.contains("adamw"));
    let after = |name: &str| expect(&["compile", &tiny, "--emit", "plan", "--after", name], 0).out;
    assert!(!after("dce").contains("rows b") && after("fuse_dispatch").contains("grouped_matmul(rows "));
    let wrong = expect(&["compile", &tiny, "--emit", "ir", "--after", "fuse_elementwise"], 2).err;
    assert!(wrong.contains("--emit plan"), "{wrong}");
    let wrong = expect(&["compile", &tiny, "--emit", "ir", "--after", "fuse"], 2).err;
    assert!(wrong.contains("fuse_elementwise"), "{wrong}");
    expect(&["compile", &tiny, "--emit", "ir", "--function", "nothing"], 2);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plan.yaml");
    expect(&["compile", &tiny, "--emit", "plan", "-o", &file.display().to_string()], 0);
    assert!(fs::read_to_string(file).unwrap().contains("train_step"));
}

#[test]
fn hostile_specs_end_with_a_message() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let nested = format!("model m {}{}", "{".repeat(10_000), "}".repeat(10_000));
    let files = [
        text(&at("empty.moe"), ""),
        text(&at("binary.moe"), [0u8, 159, 146, 150, 255, 0, 1, 2]),
        text(&at("nested.moe"), nested),
        text(&at("parentheses.moe"), format!("model m {{ let x = {}1{} }}", "(".repeat(9000), ")".repeat(9000))),
        text(&at("huge.moe"), "// x\n".repeat(2_100_000)),
        folder.path().display().to_string(),
        at("missing.moe").display().to_string(),
    ];
    for file in &files {
        for command in ["check", "compile", "train"] {
            let ran = expect(&[command, file], 2);
            assert!(!ran.err.trim().is_empty(), "{command} {file} says nothing");
            assert!(ran.err.len() < 20_000, "{command} {file} says too much");
        }
    }
    expect(&["fmt", &files[2]], 2);
    assert!(fs::read_to_string(at("nested.moe")).unwrap().starts_with("model m {{"));
}

#[test]
fn hostile_data_ends_with_a_message_and_code_3() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let data = [
        text(&at("empty.txt"), ""),
        text(&at("short.txt"), "abc"),
        text(&at("one.txt"), "a".repeat(10_000)),
        text(&at("latin1.txt"), [b'a', b'b', 0xe9, b'c']),
        folder.path().display().to_string(),
        at("missing.txt").display().to_string(),
    ];
    for (i, data) in data.iter().enumerate() {
        let out = at(&format!("run-{i}")).display().to_string();
        let ran = expect(&["train", &spec("tiny.moe"), "--data", data, "--out", &out], 3);
        assert!(ran.err.contains("error: "), "{}", ran.err);
        assert!(!Path::new(&out).exists(), "{data}: a run folder was left behind");
    }
}

#[test]
fn a_model_beyond_the_memory_is_refused_before_anything_is_allocated() {
    let ran = expect(&["compile", &spec("tiny.moe"), "-s", "width=8192"], 4);
    assert!(ran.err.contains("memory") && ran.err.contains("experts"), "{}", ran.err);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run").display().to_string();
    expect(&["train", &spec("tiny.moe"), "-s", "width=8192", "--out", &out], 4);
    assert!(!Path::new(&out).exists());
}

#[test]
fn overrides_are_checked() {
    let tiny = spec("tiny.moe");
    let ran = expect(&["check", &tiny, "-s", "train.stepz=3"], 2);
    assert!(ran.err.contains("steps"), "{}", ran.err);
    expect(&["check", &tiny, "-s", "width"], 2);
    expect(&["check", &tiny, "-s", "train.steps=many"], 2);
    expect(&["check", &tiny, "-s", "train.steps=3", "-s", "width=48"], 0);
}

#[test]
fn codes_are_explained() {
    let list = expect(&["explain"], 0).out;
    assert!(list.lines().count() > 30);
    assert!(expect(&["explain", "e0201"], 0).out.contains("Wrong"));
    expect(&["explain", "E9999"], 2);
}

#[test]
fn layers_are_listed_and_explained() {
    let list = expect(&["layers"], 0).out;
    let json: serde_json::Value = serde_json::from_str(&expect(&["layers", "--json"], 0).out).unwrap();
    assert_eq!(json["schema"], "moec.layers/1");
    let all = expect(&["explain"], 0).out;
    let rows = json["layers"].as_array().unwrap();
    assert_eq!(rows.len(), moec_model::LAYERS.len());
    for (layer, row) in moec_model::LAYERS.iter().zip(rows) {
        let name = layer.name;
        assert!(list.contains(&format!("{name}\n  {}", layer.summary)), "{name}: {list}");
        assert!(all.contains(&format!("{name}  layer: ")), "{name}: {all}");
        assert_eq!(row["name"], name);
        assert_eq!(row["parameters"].as_array().unwrap().len(), layer.parameters.len(), "{name}");
        let explained = expect(&["explain", name], 0).out;
        let parts = [layer.equations.lines().next().unwrap(), "Parameters: ", "Cost", "Arguments\n", "Decoding  "];
        assert!(parts.iter().all(|part| explained.contains(part)), "{name}: {explained}");
        assert!(layer.parameters.iter().all(|p| explained.contains(p.help.as_ref())), "{name}: {explained}");
    }
    let moe = expect(&["explain", "moe"], 0).out;
    assert!(moe.contains("Arguments of capacity(..)") && moe.contains("evaluation_factor"), "{moe}");
    assert!(expect(&["explain", "atention"], 2).err.contains("did you mean attention"));
    expect(&["layers", "moe"], 2);
}

#[test]
fn every_column_of_the_table_at_the_end_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run").display().to_string();
    let said = expect(
        &["train", &spec("tiny.moe"), "--steps", "2", "--sample", "0", "--out", &out, "-s", "train.evaluate.batches=1"],
        0,
    )
    .err;
    let head = said.lines().find(|line| line.starts_with("layer ")).unwrap();
    for column in head.split_whitespace().skip(1) {
        assert!(expect(&["explain", column], 0).out.contains(column), "{column}");
    }
    for name in ["loss", "val", "ms/step", "tokens/s"] {
        assert!(expect(&["explain", name], 0).out.contains("a number of a training"), "{name}");
    }
}

#[test]
fn routers_and_losses_are_listed_and_explained() {
    let list = expect(&["routers"], 0).out;
    let json: serde_json::Value = serde_json::from_str(&expect(&["routers", "--json"], 0).out).unwrap();
    let all = expect(&["explain"], 0).out;
    let registry = moec::Registry::with_builtins();
    let routers = json["routers"].as_array().unwrap();
    let library = moec_model::library::routers();
    assert_eq!(routers.len(), registry.routers().count() + library.len());
    for ((path, strategy), row) in library.iter().zip(&routers[registry.routers().count()..]) {
        let name = strategy.name();
        let origin = format!("import \"{path}\"");
        assert_eq!((&row["name"], &row["origin"]), (&name.into(), &origin.as_str().into()));
        assert!(list.contains(&format!("{name}  ({origin}; ")), "{name}");
        assert!(
            expect(&["explain", name], 0).out.contains("arXiv")
                || !row["equations"].as_str().unwrap().contains("arXiv")
        );
    }
    for (strategy, row) in registry.routers().zip(routers) {
        let name = strategy.name();
        assert!(list.contains(&format!("{name}  (built in; ")) && all.contains(&format!("{name}  router")), "{name}");
        assert_eq!(row["name"], name);
        assert_eq!(row["parameters"].as_array().unwrap().len(), strategy.parameters().len(), "{name}");
        assert!(!row["references"].as_array().unwrap().is_empty(), "{name}");
        let explained = expect(&["explain", name], 0).out;
        let first = strategy.equations().lines().next().unwrap();
        assert!(explained.contains(first) && explained.contains("Verdict"), "{name}: {explained}");
    }
    let verdict = |name: &str| routers.iter().find(|r| r["name"] == name).unwrap()["verdict"].as_str().unwrap();
    assert_eq!(verdict("noisy_top_k"), "causal");
    assert_eq!(verdict("base"), "causal with another rule when sampling");
    assert_eq!(verdict("expert_choice"), "not causal");
    for loss in registry.losses() {
        let explained = expect(&["explain", loss.name], 0).out;
        let first = loss.equations.lines().next().unwrap();
        assert!(explained.contains(loss.summary) && explained.contains(first), "{explained}");
    }
    let both = expect(&["explain", "switch"], 0).out;
    assert!(both.contains("router.weight") && both.contains("a balance loss"), "{both}");
    let near = expect(&["explain", "noisy_topk"], 2).err;
    assert!(near.contains("did you mean noisy_top_k"), "{near}");

    // The routers of a file, also where it holds no model, one, or several.
    let gate = root().join("examples/routers/noisy_gate.moe").display().to_string();
    let list = expect(&["routers", "--spec", &gate], 0).out;
    assert!(list.contains("noisy_gate  (in the file; causal)") && list.contains("noisy_top_k  (built in"), "{list}");
    let explained = expect(&["explain", "noisy_gate", "--spec", &gate], 0).out;
    assert!(explained.contains("experts per token") && explained.contains("let top, chosen"), "{explained}");
    expect(&["explain", "noisy_gate"], 2);
    let folder = tempfile::tempdir().unwrap();
    let content = fs::read_to_string(&gate).unwrap();
    let alone = content.split("model noisy").next().unwrap();
    let twice = format!("{content}\n{}", SMALL.split("train {").next().unwrap());
    for (name, content) in [("alone.moe", alone), ("twice.moe", &twice)] {
        let file = text(&folder.path().join(name), content);
        assert!(expect(&["routers", "--spec", &file], 0).out.contains("noisy_gate  (in the file"), "{name}");
    }
    let wrong = text(&folder.path().join("wrong.moe"), content.replace("softplus(raw)", "softplux(raw)"));
    assert!(expect(&["routers", "--spec", &wrong], 2).err.contains("softplus"));
    expect(&["routers", "--spec", "missing.moe"], 2);
}

#[test]
fn shells_complete_every_command_and_each_has_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let help = expect(&["--help"], 0).out;
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names: Vec<&str> = listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    let commands: Vec<&str> = names.into_iter().filter(|name| !name.is_empty() && *name != "help").collect();
    assert!(commands.contains(&"train") && commands.len() > 18, "{commands:?}");
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let script = expect(&["completions", shell], 0).out;
        for word in commands.iter().chain(&["precision", "bf16"]) {
            assert!(script.contains(word), "{shell}: {word}");
        }
        assert!(!script.contains("fp16"), "{shell} proposes what is only there to be refused");
    }
    expect(&["completions", "basic"], 2);
    #[cfg(unix)]
    if let Ok(bash) = std::process::Command::new("bash").arg("--version").output()
        && bash.status.success()
    {
        let script = text(&folder.path().join("moec.bash"), expect(&["completions", "bash"], 0).out);
        let ask = "source \"$0\"; COMP_WORDS=(moec route --format ''); COMP_CWORD=3; _moec moec '' --format; echo \
                   \"${COMPREPLY[@]}\"";
        let answer = std::process::Command::new("bash").args(["-c", ask, &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&answer.stdout), "text lines\n");
    }

    let pages = folder.path().join("man");
    expect(&["man", "-o", &pages.display().to_string()], 0);
    let mut found: Vec<String> =
        fs::read_dir(&pages).unwrap().map(|page| page.unwrap().file_name().into_string().unwrap()).collect();
    let mut expected: Vec<String> = commands.iter().map(|name| format!("moec-{name}.1")).collect();
    expected.push("moec.1".into());
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    let page = expect(&["man", "train"], 0).out;
    assert!(page.contains(".TH moec-train 1") && page.contains("runs/latest"), "{page}");
    assert!(expect(&["man"], 0).out.contains(".TH moec 1"));
    assert!(expect(&["man", "trian"], 2).err.contains("did you mean train?"));
}

#[test]
fn several_files_and_standard_input_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = text(&folder.path().join("wrong.moe"), "model m { context 8  vocab 9  embed(widht: 4)  unembed }");
    let gate = "router gate(k: int) {\n  let scores = linear(x, experts)\n  let best, chosen = top_k(scores, k)\n  return \
                token_choice(experts: chosen, weights: softmax(best))\n}\n";
    let routers = text(&folder.path().join("gate.moe"), gate);
    let (tiny, missing) = (spec("tiny.moe"), folder.path().join("missing.moe").display().to_string());
    let all = expect(&["check", &tiny, &spec("top2.moe"), &routers], 0).out;
    assert!(all.contains("model tiny is sound") && all.contains("model top2 is sound"), "{all}");
    assert!(all.contains("router gate is sound"), "{all}");
    // One that is wrong or missing does not hide the others.
    let some = expect(&["check", &wrong, &missing, &tiny], 2);
    assert!(some.out.contains("model tiny is sound") && some.err.contains("widht"), "{}{}", some.out, some.err);
    assert!(some.err.contains("missing.moe: there is no such file"), "{}", some.err);
    let json = expect(&["check", &wrong, &missing, &tiny, "--json"], 2);
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((&json["schema"], &json["ok"]), (&"moec.check.files/1".into(), &false.into()));
    let results: Vec<_> = json["files"].as_array().unwrap().iter().map(|f| &f["result"]).collect();
    assert_eq!(results.iter().map(|r| r["ok"] == true).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!((&results[2]["schema"], &results[2]["model"]), (&"moec.check/1".into(), &"tiny".into()));
    assert!(results[1]["error"].as_str().unwrap().contains("no such file"));

    let from = |input: &str, arguments: &[&str]| {
        let output = moec().current_dir(&folder).args(arguments).write_stdin(input).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    };
    let (code, said) = from(SMALL, &["check", "-", "-s", "width=32"]);
    assert_eq!((code, said.as_str()), (Some(0), "<stdin>: model small is sound\n"));
    let (code, said) = from("model m {", &["check", "-", "--message-format", "short"]);
    assert!(code == Some(2) && said.contains("<stdin>:1:"), "{said}");
    // It imports from where one is.
    let (code, said) = from(&format!("import \"gate.moe\"\n{SMALL}"), &["check", "-"]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_vocabulary_that_no_training_accepts_is_remarked() {
    let lab = Lab::new();
    let fixed = |size: u64, data: &str| {
        let fixed =
            SMALL.replace("vocab characters", &format!("vocab {size}")).replace("batch 3", &format!("batch 3 {data}"));
        text(&lab.folder.path().join("fixed.moe"), fixed)
    };
    let check = |spec: &str| expect(&["check", spec], 0).err;
    let said = check(&fixed(300, "data \"text.txt\""));
    assert!(said.contains("`vocab 300`, but") && said.contains("text.txt has 28 distinct characters"), "{said}");
    assert!(said.contains("`vocab characters`"), "{said}");
    assert_eq!(check(&fixed(28, "data \"text.txt\"")), "");
    assert_eq!(check(&fixed(300, "data \"elsewhere.txt\"")), "");
    assert!(check(&fixed(300, "")).contains("synthetic has 51 distinct characters"));
    let json = expect(&["check", &fixed(300, ""), "--json"], 0).out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["ok"] == true && json["remark"].as_str().unwrap().contains("synthetic"), "{json}");
}

#[test]
fn small_mistakes_are_answered_with_what_was_meant() {
    let lab = Lab::new();
    let train = |more: &[&str], code| expect(&[&["train", &lab.spec, "--sample", "0"][..], more].concat(), code).err;
    for command in ["train", "compare"] {
        let said = expect(&[command, &lab.spec, "--steps", "0"], 2).err;
        assert!(said.contains("at least one step") && said.contains("moec compile"), "{said}");
        expect(&[command, &lab.spec, "--steps", "few"], 2);
    }
    // Texts by name, and files by what lies beside them.
    for (wrong, meant) in
        [("syntetic", "synthetic"), ("tiny_shakespeare", "tinyshakespeare"), ("Synthetic", "synthetic")]
    {
        assert!(train(&["--data", wrong], 3).contains(&format!("did you mean {meant}?")), "{wrong}");
    }
    let said = train(&["--data", &lab.at("txet.txt")], 3);
    assert!(said.contains("did you mean /") && said.contains("/text.txt?"), "{said}");
    assert!(!train(&["--data", &lab.at("nothing_like_it")], 3).contains("did you mean"));
    assert!(!train(&["--data", &lab.at("nowhere/text.txt")], 3).contains("did you mean"));
    // Precisions by the names of other tools.
    for wrong in ["fp16", "float16", "half"] {
        assert!(train(&["--precision", wrong], 2).contains("`precision bf16`"), "{wrong}");
    }
    for (wrong, meant) in [("bfloat16", "bf16"), ("fp32", "f32")] {
        let said = train(&["--precision", wrong], 2);
        assert!(said.contains(&format!("train.precision={meant}")), "{said}");
    }
    assert!(!expect(&["train", "--help"], 0).out.contains("fp16"));
    // Which line to change.
    let said = train(&["--steps", "50", "-s", "train.schedule=cosine(warmup: 100)"], 2);
    assert!(said.contains("train for more steps, or make `warmup` smaller") && said.contains("50 steps"), "{said}");
    // Which vocabulary a model has that is imported.
    let run = lab.at("run");
    lab.train(&run, &["--device", "interpreter", "--steps", "1"], 0);
    let file = lab.at("makemoe.safetensors");
    expect(&["export", &run, "-o", &file], 0);
    let said = expect(&["import", &file, "--spec", &lab.spec, "--data", "synthetic", "--out", &lab.at("other")], 3).err;
    assert!(said.contains("trained on 28 distinct characters, and the vocabulary of this text has 51"), "{said}");
    assert!(said.contains("--data names the text") && !said.contains("shape"), "{said}");
}

#[test]
fn that_kernels_are_compiled_is_said_when_they_are() {
    let lab = Lab::new();
    let cache = lab.at("cache");
    let train = |name: &str, more: &[&str]| {
        let arguments =
            ["train", &lab.spec, "--data", &lab.data, "--out", &lab.at(name), "--sample", "0", "--steps", "1"];
        let output = moec().args(arguments).args(more).env("MOEC_CACHE", &cache).output().unwrap();
        assert!(output.status.success());
        String::from_utf8_lossy(&output.stderr).matches("kernels are compiled for the first step").count()
    };
    assert_eq!(train("first", &[]), 1);
    assert_eq!(train("second", &[]), 0);
    assert_eq!(train("third", &["--no-cache"]), 1);
    assert_eq!(train("fourth", &["--device", "interpreter"]), 0);
}

#[test]
fn fmt_keeps_what_it_cannot_read_and_changes_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.moe");
    let file = text(&path, "model m{context 8 // c\nvocab characters embed(width:4,positions:none) unembed}");
    expect(&["fmt", "--check", &file], 1);
    expect(&["fmt", &file], 0);
    let once = fs::read_to_string(&path).unwrap();
    assert!(once.contains("// c"));
    expect(&["fmt", "--check", &file], 0);
    for name in ["noisy_top2.moe", "top2.moe", "tiny.moe", "dense.moe"] {
        expect(&["check", &spec(name)], 0);
        expect(&["fmt", "--check", &spec(name)], 0);
    }
    let broken = text(&path, "model m {");
    expect(&["fmt", &broken], 2);
    assert_eq!(fs::read_to_string(&path).unwrap(), "model m {");
}

/// A small model that trains in a moment.
const SMALL: &str = "model small {
  let width = 16
  context 8
  vocab characters
  embed(width: width, positions: learned)
  repeat 2 {
    residual { layer_norm  attention(heads: 2, scale: width, dropout: 0.1) }
    residual {
      layer_norm
      moe(experts: 3 * mlp(hidden: 24, activation: relu, dropout: 0.1), route: noisy_top_k(k: 2, epsilon: 0))
    }
  }
  layer_norm
  unembed
}
train {
  batch 3
  steps 12
  evaluate(every: 6, batches: 2)
}
";

struct Lab {
    folder: tempfile::TempDir,
    spec: String,
    data: String,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let spec = text(&folder.path().join("small.moe"), SMALL);
        let data = text(&folder.path().join("text.txt"), "the quick brown fox jumps over the lazy dog. ".repeat(40));
        Self { folder, spec, data }
    }

    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn train(&self, out: &str, more: &[&str], code: i32) -> Ran {
        let arguments = [&["train", &self.spec, "--data", &self.data, "--out", out, "--sample", "0"], more].concat();
        expect(&arguments, code)
    }

    fn files(&self, run: &str, step: u64) -> Vec<Vec<u8>> {
        let folder = Path::new(run).join("checkpoints").join(format!("step-{step:08}"));
        let names = ["model.safetensors", "optimizer.safetensors", "manifest.json"];
        names.map(|n| fs::read(folder.join(n)).unwrap_or_else(|e| panic!("{}/{n}: {e}", folder.display()))).to_vec()
    }
}

#[test]
fn bench_accounts_for_the_time_of_a_step() {
    let lab = Lab::new();
    let arguments = ["bench", &lab.spec, "--data", &lab.data, "--steps", "3"];
    let text = expect(&arguments, 0).out;
    for word in ["GFLOP/s of multiply-adds", "times the limit", "planned", "forward", "backward", "optimizer", "adamw"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }

    let json = expect(&[arguments.as_slice(), &["--json"]].concat(), 0).out;
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let number = |pointer: &str| report.pointer(pointer).and_then(serde_json::Value::as_f64).unwrap_or(0.0);
    for pointer in
        ["/limits/gflops_per_s", "/limits/gbytes_per_s", "/limits/step_ms", "/step/median_ms", "/first_step_s"]
    {
        assert!(number(pointer) > 0.0, "{pointer}: {json}");
    }
    assert!(number("/step/best_ms") <= number("/step/median_ms") && number("/step/over_limit") > 0.0);
    // The phases hold every step of the plan, and so do the kernels.
    let steps = |lines: &str| -> u64 {
        report["profile"][lines].as_array().unwrap().iter().map(|l| l["steps"].as_u64().unwrap()).sum()
    };
    assert!(steps("phases") > 0 && steps("phases") == steps("kernels"));
    let share: f64 =
        report["profile"]["kernels"].as_array().unwrap().iter().map(|l| l["share"].as_f64().unwrap()).sum();
    assert!((share - 1.0).abs() < 1e-9, "{share}");
    assert!(!Path::new("runs").join("small").exists(), "nothing is written");
}

#[test]
fn bench_makes_steps_on_request() {
    let lab = Lab::new();
    let serve = ["bench", &lab.spec, "--data", &lab.data, "--serve", "--device", "interpreter"];
    let output = moec().args(serve).write_stdin("go 2\ngo 1\n").output().unwrap();
    assert!(output.status.success());
    let lines: Vec<serde_json::Value> =
        String::from_utf8_lossy(&output.stdout).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert!(lines[0]["ready"].as_bool().unwrap());
    // Two steps warm up.
    assert_eq!([1, 2, 3].map(|i| lines[i]["step"].as_u64().unwrap()), [3, 4, 5]);
    assert!(lines[1..4].iter().all(|l| l["ms"].as_f64().unwrap() > 0.0));

    let output = moec().args(serve).write_stdin("faster\n").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(err.contains("`faster` is no request") && err.contains("go N"), "{err}");
}

#[test]
fn a_profile_is_a_table_and_a_trace_of_the_same_bits() {
    let lab = Lab::new();
    let (plain, profiled) = (lab.at("plain"), lab.at("profiled"));
    lab.train(&plain, &["--device", "interpreter"], 0);
    let told = lab.train(&profiled, &["--device", "interpreter", "--profile"], 0).err;
    for word in ["medians of the last 11 steps", "forward", "optimizer", "fused_grouped_matmul", "profile.json"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    assert_eq!(lab.files(&plain, 12), lab.files(&profiled, 12));
    let trace = fs::read_to_string(Path::new(&profiled).join("profile.json")).unwrap();
    let trace: serde_json::Value = serde_json::from_str(&trace).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert!(events.len() > 4 * 50 && events.len().is_multiple_of(4), "{}", events.len());
    assert!(events.iter().all(|e| e["ph"] == "X" && e["dur"].as_f64().is_some() && e["args"]["bytes"].is_number()));
    assert!(!Path::new(&plain).join("profile.json").exists());
}

#[test]
fn the_same_command_gives_the_same_bytes_and_resuming_too() {
    let lab = Lab::new();
    let [a, b, c] = ["a", "b", "c"].map(|n| lab.at(n));
    lab.train(&a, &[], 0);
    lab.train(&b, &[], 0);
    assert!(lab.files(&a, 12) == lab.files(&b, 12), "two runs of the same command differ");
    lab.train(&c, &["--steps", "5"], 0);
    lab.train(&c, &["--resume", "--steps", "12"], 0);
    assert!(lab.files(&a, 12) == lab.files(&c, 12), "a resumed run differs from one that was not stopped");
    let other = lab.at("other");
    lab.train(&other, &["--seed", "5"], 0);
    assert!(lab.files(&a, 12) != lab.files(&other, 12), "another seed gives the same model");
}

#[test]
fn products_of_bfloat16_numbers_are_asked_for_and_kept_by_a_run() {
    let lab = Lab::new();
    let [plain, bf16, again, stopped] = ["plain", "bf16", "again", "stopped"].map(|n| lab.at(n));
    lab.train(&plain, &["--precision", "f32"], 0);
    let told = lab.train(&bf16, &["--precision", "bf16"], 0).err;
    // Processors with the instruction have nothing to say.
    let no_faster = !moec_kernels::DeviceProfile::this_cpu().multiplies_bf16();
    assert_eq!(told.contains("precision bf16 will not be faster here than f32"), no_faster, "{told}");
    lab.train(&again, &["-s", "train.precision=bf16"], 0);
    assert!(lab.files(&plain, 12) != lab.files(&bf16, 12), "the precision changes nothing");
    assert!(lab.files(&bf16, 12) == lab.files(&again, 12), "the flag is not the setting");
    lab.train(&stopped, &["--precision", "bf16", "--steps", "5"], 0);
    let wrong = lab.train(&stopped, &["--resume", "--precision", "f32"], 2).err;
    assert!(wrong.contains("a run keeps the precision that it was begun with"), "{wrong}");
    lab.train(&stopped, &["--resume", "--precision", "bf16", "--steps", "12"], 0);
    assert!(lab.files(&bf16, 12) == lab.files(&stopped, 12), "a resumed run differs from one that was not stopped");
    let resolved = fs::read_to_string(Path::new(&bf16).join("resolved.yaml")).unwrap();
    assert!(resolved.contains("precision: bf16"), "{resolved}");

    let wrong = expect(&["check", &lab.spec, "-s", "train.precision=fp16"], 2).err;
    assert!(wrong.contains("expected `f32` or `bf16`"), "{wrong}");
    let wrong = lab.train(&lab.at("wrong"), &["--precision", "fp16"], 2).err;
    assert!(wrong.contains("expected `f32` or `bf16`"), "{wrong}");
    let graph = |more: &[&str]| expect(&[&["compile", &lab.spec, "--emit", "ir"], more].concat(), 0).out;
    assert!(!graph(&[]).contains("bf16"));
    let rounded = graph(&["--precision", "bf16"]);
    let of_routers = rounded.lines().filter(|line| line.contains("router.weight") && line.contains("= matmul("));
    assert!(of_routers.into_iter().all(|line| !line.contains("bf16")), "{rounded}");
    assert!(rounded.contains("{transpose_b, bias, precision = bf16}"), "{rounded}");
    // Texts are written with the weights as they are.
    assert!(!graph(&["--precision", "bf16", "--function", "next"]).contains("bf16"));
    let checked = expect(&["gradcheck", &lab.spec, "-s", "train.precision=bf16"], 0).out;
    assert!(checked.contains("precision f32 instead of bf16"), "{checked}");
}

#[test]
fn a_run_is_sampled_evaluated_and_exchanged_with_makemoe() {
    let lab = Lab::new();
    let run = lab.at("run");
    let shown = expect(&["train", &lab.spec, "--data", &lab.data, "--out", &run, "--sample", "40"], 0);
    assert!(shown.out.chars().count() >= 40, "the sample goes to standard output: {}", shown.out);
    assert!(shown.err.contains("eval"), "{}", shown.err);

    let sample = |more: &[&str]| expect(&[&["sample", &run, "--length", "60"], more].concat(), 0).out;
    assert_eq!(sample(&["--seed", "3"]), sample(&["--seed", "3"]));
    assert_ne!(sample(&["--seed", "3"]), sample(&["--seed", "4"]));
    assert!(sample(&["--prompt", "the quick"]).starts_with("the quick"));
    assert_eq!(sample(&["--temperature", "0"]), sample(&["--temperature", "0", "--seed", "9"]));
    assert_eq!(sample(&["--top-k", "1"]), sample(&["--temperature", "0"]));
    // Each of several texts is the one that it is alone, with the whole window or one character at a time.
    let [second, third] = ["1", "2"].map(|number| sample(&["--number", number]));
    let several = sample(&["--number", "1", "--samples", "2"]);
    assert_eq!(several, format!("--- sample 1 ---\n{second}--- sample 2 ---\n{third}"));
    let few = |mode| expect(&["sample", &run, "--length", "6", "--temperature", "0", "--decode", mode], 0).out;
    assert_eq!(few("cached"), few("windowed"));
    let refused = expect(&["sample", &run, "--length", "60", "--decode", "cached"], 2).err;
    assert!(refused.contains("keys and values can be kept for the first"), "{refused}");
    // Weights in fewer bits write a text of their own, the same every time, and leave the run as it is.
    let in_bits = |format| sample(&["--seed", "3", "--weights", format]);
    assert_eq!(in_bits("f32"), sample(&["--seed", "3"]));
    assert!(in_bits("bf16") == in_bits("bf16") && in_bits("int8") == in_bits("int8"));
    let noted = expect(&["sample", &run, "--length", "2", "--weights", "int8", "--device", "interpreter"], 0).err;
    assert!(noted.contains("--weights int8 will not be faster here than f32"), "{noted}");
    let none = expect(&["sample", &run, "--length", "0", "--profile"], 0).err;
    assert!(none.contains("nothing was written"), "{none}");
    let refused = expect(&["sample", &run, "--weights", "fp16"], 2).err;
    assert!(refused.contains("f32, bf16, int8"), "{refused}");
    let timed = expect(&["sample", &run, "--length", "9", "--seed", "3", "--profile", "--decode", "windowed"], 0);
    assert_eq!(timed.out, expect(&["sample", &run, "--length", "9", "--seed", "3", "--decode", "windowed"], 0).out);
    assert!(timed.err.contains("runs of `next`") && timed.err.contains("attention"), "{}", timed.err);
    let soft = SMALL.replace("noisy_top_k(k: 2, epsilon: 0)", "soft_moe, allow: lookahead");
    fs::write(lab.at("soft.moe"), soft).unwrap();
    let refused = expect(&["compile", &lab.at("soft.moe"), "--emit", "plan", "--function", "decode"], 2).err;
    assert!(refused.contains("`soft_moe` compares each token with the whole sequence"), "{refused}");
    expect(&["sample", &run, "--samples", "0"], 2);
    expect(&["sample", &run, "--prompt", "Ω"], 2);
    expect(&["sample", &run, "--top-p", "1.5"], 2);

    let json = expect(&["eval", &run, "--split", "val", "--json"], 0).out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let loss = json["loss_nats"].as_f64().unwrap();
    assert!(loss > 0.0 && loss < 10.0, "{loss}");

    // Out to makeMoE's names and back: the same loss to the last digit.
    let exported = lab.at("makemoe.safetensors");
    expect(&["export", &run, "-o", &exported], 0);
    expect(&["export", &run, "-o", &exported], 1);
    let imported = lab.at("imported");
    expect(&["import", &exported, "--spec", &lab.spec, "--data", &lab.data, "--out", &imported], 0);
    let again = expect(&["eval", &imported, "--split", "val", "--json"], 0).out;
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again["loss_nats"], json["loss_nats"]);
}

#[test]
fn what_a_run_reported_goes_to_other_tools() {
    let lab = Lab::new();
    let run = lab.at("run, first");
    lab.train(&run, &[], 0);
    let table = expect(&["metrics", &run], 0).out;
    assert!(table.starts_with("run,step,name,layer,expert,value\n"), "{table}");
    let has = |end: &str| table.lines().any(|line| line.starts_with(&format!("\"{run}\",12,{end}")));
    assert!(has("validation_loss_nats,,,") && has("load_rows,blocks.0.moe,2,") && has("loss_nats,,,"), "{table}");
    let file = lab.at("table.csv");
    expect(&["metrics", &run, "-o", &file], 0);
    assert_eq!(fs::read_to_string(&file).unwrap(), table);
    expect(&["metrics", &run, "-o", &format!("{run}/metrics.jsonl")], 2);
    expect(&["metrics", &lab.at("none")], 3);

    let board = lab.at("board");
    let metrics = Path::new(&run).join("metrics.jsonl");
    let kept = fs::read(&metrics).unwrap();
    fs::remove_file(&metrics).unwrap();
    assert!(expect(&["metrics", &run], 1).err.contains("has reported nothing yet"));
    fs::write(&metrics, kept).unwrap();
    expect(&["metrics", &run, "--tensorboard", &board], 0);
    expect(&["metrics", &run, &run, "--tensorboard", &board], 2);
    expect(&["metrics", &run, "--tensorboard", &format!("{run}/checkpoints/board")], 2);
    assert!(!Path::new(&run).join("checkpoints/board").exists());
    let events = fs::read(Path::new(&board).join("run, first/events.out.tfevents.moec")).unwrap();
    let holds = |tag: &str| events.windows(tag.len()).any(|bytes| bytes == tag.as_bytes());
    assert!(holds("brain.Event:2") && holds("validation_loss_nats") && holds("load_rows/blocks.0.moe/2"));
}

#[test]
fn nothing_of_the_user_is_overwritten() {
    let lab = Lab::new();
    let run = lab.at("run");
    lab.train(&run, &[], 0);
    let before = lab.files(&run, 12);
    let ran = lab.train(&run, &[], 1);
    assert!(ran.err.contains("--resume"), "{}", ran.err);
    assert!(before == lab.files(&run, 12));
    let full = lab.at("full");
    fs::create_dir(&full).unwrap();
    text(&Path::new(&full).join("thesis.txt"), "mine");
    lab.train(&full, &[], 1);
    assert_eq!(fs::read_to_string(Path::new(&full).join("thesis.txt")).unwrap(), "mine");
    lab.train(&lab.at("nothing"), &["--resume"], 3);
}

#[test]
fn damaged_and_foreign_checkpoints_are_refused() {
    let lab = Lab::new();
    let run = lab.at("run");
    lab.train(&run, &[], 0);
    let model = Path::new(&run).join("checkpoints/step-00000012/model.safetensors");
    let whole = fs::read(&model).unwrap();
    fs::write(&model, &whole[..whole.len() / 2]).unwrap();
    for command in [&["sample", &run] as &[&str], &["eval", &run], &["export", &run, "-o", &lab.at("x")]] {
        let ran = expect(command, 3);
        assert!(ran.err.contains("model.safetensors"), "{}", ran.err);
    }
    let mut flipped = whole.clone();
    let last = flipped.len() - 3;
    flipped[last] ^= 4;
    fs::write(&model, &flipped).unwrap();
    expect(&["sample", &run], 3);
    fs::write(&model, &whole).unwrap();
    expect(&["sample", &run, "--length", "5"], 0);

    // The spec of the run is changed under it: its checkpoint is of another model.
    let spec = Path::new(&run).join("spec.moe");
    fs::write(&spec, SMALL.replace("3 * mlp", "4 * mlp")).unwrap();
    expect(&["sample", &run], 3);
    expect(&["sample", &lab.at("nowhere")], 3);
}

#[test]
fn a_run_goes_on_by_its_name_alone() {
    let lab = Lab::new();
    let project = lab.folder.path().join("my project");
    fs::create_dir(&project).unwrap();
    let noisy =
        SMALL.replace("model small", "model other { context 4 vocab characters embed(width: 2) unembed }\nmodel small");
    text(&project.join("two.moe"), noisy);
    let words = fs::read_to_string(&lab.data).unwrap();
    text(&project.join("words.txt"), words);
    let train = |more: &[&str], code| expect_in(&project, &[&["train"][..], more].concat(), code);
    let begun = [
        "two.moe",
        "--model",
        "small",
        "--data",
        "words.txt",
        "--seed",
        "5",
        "-s",
        "width=8",
        "--device",
        "interpreter",
    ];
    train(&[&begun[..], &["--steps", "12", "--sample", "0", "--out", "whole"]].concat(), 0);

    let run = "runs/small-width-8-seed-5";
    // With everything that it was begun with: model, overrides, text, seed and device.
    train(&[&begun[..], &["--steps", "6", "--sample", "0"]].concat(), 0);
    assert!(fs::read_to_string(project.join(run).join("resolved.yaml")).unwrap().contains("device: interpreter"));
    let told = train(&["--resume", "runs/latest", "--steps", "12", "--sample", "0"], 0).err;
    assert!(told.contains("on interpreter") && told.contains(&format!("into {run}\n")), "{told}");
    let at = |run: &str| lab.files(&project.join(run).display().to_string(), 12);
    assert!(at("whole") == at(run), "a resumed run differs from one that was not stopped");
    // The other ways to say it.
    for more in [
        &["--resume", run][..],
        &[run, "--resume"],
        &["--resume", "--out", run],
        &["two.moe", "--resume", run],
        &["--out", run, "--resume", "two.moe"],
        &["--resume", run, "--out", run],
    ] {
        assert!(train(more, 0).err.contains("has made its 12 steps"), "{more:?}");
    }
    let moved = train(&["--resume", run, "--device", "cpu", "--steps", "13", "--sample", "0"], 0).err;
    assert!(moved.contains("from here on train.steps=13, --device cpu, noted in "), "{moved}");
    assert!(fs::read_to_string(project.join(run).join("resolved.yaml")).unwrap().contains("device: cpu"));
    assert!(train(&["--resume", run, "--out", "elsewhere"], 2).err.contains("leave out --out"));
    assert!(train(&["two.moe", "--resume"], 2).err.contains("moec train --resume RUN"));
    assert!(train(&["--resume", "runs/nothing"], 3).err.contains("runs/nothing"));
    assert!(train(&[], 2).err.contains("<SPEC>"));

    // The command that is printed can be pasted.
    let ran = train(&[&begun[..], &["--steps", "9", "--sample", "0", "-s", "train.optimizer.lr=1e30"]].concat(), 5).err;
    assert!(
        ran.contains("two.moe --resume runs/small-width-8-lr-1e30-seed-5 --device interpreter --sample 0"),
        "{ran}"
    );
}

#[test]
fn latest_is_the_run_that_was_trained_last() {
    let lab = Lab::new();
    let folder = lab.folder.path();
    let train = |more: &[&str]| {
        let spec = ["train", "small.moe", "--data", "text.txt", "--steps", "1"];
        expect_in(folder, &[&spec[..], &QUICK, more].concat(), 0)
    };
    let sampled = || {
        let sample = ["sample", "runs/latest", "-n", "5", "--device", "interpreter"];
        expect_in(folder, &sample, 0).out
    };
    train(&[]);
    let first = sampled();
    train(&["--seed", "9", "--out", "runs/second"]);
    assert_ne!(sampled(), first);
    let at = ["sample", "runs/second/checkpoints/step-00000001", "-n", "5", "--device", "interpreter"];
    assert_eq!(expect_in(folder, &at, 0).out, sampled());
    let record = ["route", "runs/latest", "--text", "the", "--checkpoint", "1", "--device", "interpreter"];
    assert!(expect_in(folder, &record, 0).out.contains("\"run\":\"runs/second\""));
    // Whichever was trained last, also if it was begun before.
    expect_in(folder, &["train", "--resume", "runs/small", "--steps", "2", "--sample", "0"], 0);
    assert!(expect_in(folder, &record, 0).out.contains("\"run\":\"runs/small\""));
    // Where the system has no links, a text file.
    fs::remove_file(folder.join("runs/latest")).unwrap();
    text(&folder.join("runs/latest"), "moec run: second\n");
    assert_eq!(expect_in(folder, &at, 0).out, sampled());
    // In other folders nothing is added, and what is the user's stays.
    train(&["--out", "mine/run"]);
    assert!(!folder.join("mine/latest").exists());
    text(&folder.join("runs/latest"), "notes");
    let told = train(&["--out", "runs/third"]).err;
    assert!(told.contains("runs/latest is no link of moec, so it stays as it is"), "{told}");
    assert_eq!(fs::read_to_string(folder.join("runs/latest")).unwrap(), "notes");
}

#[cfg(unix)]
#[test]
fn a_full_disk_or_a_read_only_folder_is_reported() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new();
    let locked = lab.at("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    let out = Path::new(&locked).join("run").display().to_string();
    let ran = run(&["train", &lab.spec, "--data", &lab.data, "--out", &out, "--sample", "0"]);
    // Root may write anywhere.
    assert!(ran.code == 1 || ran.code == 0, "{}", ran.err);
    let ran = expect(&["compile", &lab.spec, "-o", "/dev/full"], 1);
    assert!(ran.err.contains("full"), "{}", ran.err);
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_the_run_goes_on_to_the_same_bits() {
    use std::process::Stdio;
    let lab = Lab::new();
    let (whole, stopped) = (lab.at("whole"), lab.at("stopped"));
    lab.train(&whole, &["--steps", "400"], 0);
    let arguments = ["train", &lab.spec, "--data", &lab.data, "--out", &stopped, "--sample", "0", "--steps", "400"];
    let mut child = program().args(arguments).stderr(Stdio::piped()).spawn().unwrap();
    // The first progress line says that the loop is running and listening.
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    lines.find(|l| l.as_ref().is_ok_and(|l| l.starts_with("step"))).unwrap().unwrap();
    // Twice at once, as some programs do that stop a process and its group: that is one wish to stop.
    let pid = child.id().to_string();
    let killed = std::process::Command::new("kill").args(["-INT", &pid, &pid]).status().unwrap();
    assert!(killed.success());
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let status = child.wait().unwrap();
    if status.code() != Some(0) {
        assert_eq!(status.code(), Some(130), "{rest:?}");
        assert!(rest.iter().any(|l| l.contains("--resume")), "{rest:?}");
        lab.train(&stopped, &["--resume"], 0);
    }
    assert!(lab.files(&whole, 400) == lab.files(&stopped, 400));
}

#[test]
fn a_diverging_run_ends_with_code_5_and_keeps_its_checkpoints() {
    let lab = Lab::new();
    let run = lab.at("run");
    let ran = lab.train(&run, &["-s", "train.optimizer.lr=1e30", "--steps", "200"], 5);
    assert!(ran.err.contains("diverged"), "{}", ran.err);
}

#[test]
fn specs_are_compared_and_finished_runs_are_not_repeated() {
    let lab = Lab::new();
    let sparse = SMALL.replace("noisy_top_k(k: 2, epsilon: 0)", "softmax_top_k(k: 1)");
    let top1 = text(&lab.folder.path().join("top1.moe"), sparse);
    let out = lab.at("out");
    // Kernels are compiled for seconds; the interpreter begins at once.
    let common = ["--data", &lab.data, "--device", "interpreter"];
    let arguments = [&["compare", &lab.spec, &top1, "--seeds", "2", "--out", &out, "--json"], &common[..]].concat();
    let compare = |more: &[&str], code| expect(&[&arguments[..], more].concat(), code);
    let ran = compare(&[], 0);
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        json,
        serde_json::from_slice::<serde_json::Value>(&fs::read(out.clone() + "/compare.json").unwrap()).unwrap()
    );
    let rows = json["specs"].as_array().unwrap();
    assert_eq!((rows[0]["label"].as_str(), rows[1]["label"].as_str()), (Some("small"), Some("top1")));
    assert!(rows[0]["active_parameters"].as_u64() > rows[1]["active_parameters"].as_u64());
    for row in rows {
        let losses: Vec<f64> = (0..2).map(|i| row["runs"][i]["loss_nats"].as_f64().unwrap()).collect();
        assert_ne!(losses[0], losses[1]);
        assert!((row["loss_nats"].as_f64().unwrap() - (losses[0] + losses[1]) / 2.0).abs() < 1e-12);
        let spread = (losses[0] - losses[1]).abs() / f64::sqrt(2.0);
        assert!((row["loss_nats_deviation"].as_f64().unwrap() - spread).abs() < 1e-12);
        for number in ["step_ms", "load_max_over_mean", "experts_without_tokens", "entropy_nats", "dropped_share"] {
            assert!(row[number].as_f64().is_some(), "{number}: {row}");
        }
        // The loss is the one that `moec eval` gives, of an ordinary run.
        let run = format!("{out}/{}/seed-2", row["label"].as_str().unwrap());
        let eval = expect(&["eval", &run, "--json", "--device", "interpreter"], 0).out;
        let eval: serde_json::Value = serde_json::from_str(&eval).unwrap();
        assert_eq!(eval["loss_nats"].as_f64(), Some(losses[1]));
        assert_eq!(eval["layers"], row["runs"][1]["layers"]);
    }
    let table = fs::read_to_string(out.clone() + "/compare.md").unwrap();
    assert!(table.contains("| spec ") && table.contains("| small ") && table.contains("±"), "{table}");

    // Again: nothing is trained, another seed is only added, and a run that was stopped is finished.
    let before = lab.files(&format!("{out}/small/seed-1"), 12);
    let ran = compare(&[], 0);
    assert_eq!(ran.err.matches("finished before").count(), 4, "{}", ran.err);
    assert!(!ran.err.contains("step 12/12"), "{}", ran.err);
    fs::remove_file(format!("{out}/small/seed-1/result.json")).unwrap();
    let ran = compare(&["--eval-batches", "2"], 0);
    assert_eq!(ran.err.matches("finished before").count(), 0, "{}", ran.err);
    assert!(!ran.err.contains("step 12/12"), "{}", ran.err);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&ran.out).unwrap()["windows"], 6);
    assert!(before == lab.files(&format!("{out}/small/seed-1"), 12));

    // A run that diverges is a result too, and does not stop the others.
    let diverging = ["compare", &lab.spec, &top1, "--out", &lab.at("far"), "-s", "train.optimizer.lr=1e300", "--json"];
    for _ in 0..2 {
        let ran = expect(&[&diverging[..], &common].concat(), 5);
        let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(
            (&json["specs"][1]["diverged"], &json["specs"][1]["loss_nats"]),
            (&1.into(), &().into()),
            "{}",
            ran.err
        );
        assert!(ran.err.contains("diverged at step"), "{}", ran.err);
    }

    // What cannot be compared is refused before anything is trained.
    let ran = compare(&["--steps", "13"], 2);
    assert!(ran.err.contains("--out"), "{}", ran.err);
    let longer = text(&lab.folder.path().join("longer.moe"), SMALL.replace("context 8", "context 9"));
    let ran = expect(&["compare", &lab.spec, &longer, "--data", &lab.data, "--out", &lab.at("new")], 2);
    assert!(ran.err.contains("context 8") && ran.err.contains("-s context=8"), "{}", ran.err);
    expect(&["compare", &lab.spec, &lab.spec, "--out", &lab.at("new")], 2);
    expect(&["compare", &lab.spec, &lab.at("none.moe"), "--out", &lab.at("new")], 2);
    assert!(!Path::new(&lab.at("new")).exists());
}

#[cfg(unix)]
#[test]
fn a_comparison_goes_on_where_it_was_interrupted() {
    use std::process::Stdio;
    let lab = Lab::new();
    let (whole, stopped) = (lab.at("whole"), lab.at("stopped"));
    let dense = SMALL.replace(
        "moe(experts: 3 * mlp(hidden: 24, activation: relu, dropout: 0.1), route: noisy_top_k(k: 2, epsilon: 0))",
        "mlp(hidden: 24)",
    );
    let dense = text(&lab.folder.path().join("dense.moe"), dense);
    let arguments = |out: &str| {
        [
            "compare",
            &lab.spec,
            &dense,
            "--data",
            &lab.data,
            "--steps",
            "200",
            "--out",
            out,
            "--json",
            "--device",
            "interpreter",
        ]
        .map(str::to_string)
    };
    let losses = |json: &str| {
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        [0, 1].map(|i| json["specs"][i]["loss_nats"].as_f64().unwrap())
    };
    let expected = losses(&expect(&arguments(&whole).each_ref().map(|s| s.as_str()), 0).out);
    let mut child = program().args(arguments(&stopped)).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    lines.find(|l| l.as_ref().is_ok_and(|l| l.contains("loss"))).unwrap().unwrap();
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let status = child.wait().unwrap();
    if status.code() != Some(0) {
        assert_eq!(status.code(), Some(130), "{rest:?}");
        assert!(rest.iter().any(|l| l.contains("the same command goes on")), "{rest:?}");
    }
    let ran = expect(&arguments(&stopped).each_ref().map(|s| s.as_str()), 0);
    assert_eq!(losses(&ran.out), expected);
}

#[test]
fn gradients_are_checked() {
    let lab = Lab::new();
    let ran = expect(&["gradcheck", &lab.spec], 0);
    assert!(ran.out.contains("context 4 instead of 8") && ran.out.contains("parameters agree"), "{}", ran.out);
    assert!(ran.out.contains("blocks.1.moe.noise.weight"), "{}", ran.out);
    assert_eq!(expect(&["gradcheck", &lab.spec], 0).out, ran.out);

    // Every element, and a router that the objective does not reach: the softmax over one score is 1.
    let constant =
        SMALL.replace("noisy_top_k(k: 2, epsilon: 0)", "softmax_top_k(k: 1)").replace("repeat 2", "repeat 1");
    let constant = text(&lab.folder.path().join("constant.moe"), constant);
    let arguments = ["gradcheck", &constant, "--all", "-s", "width=6", "--data", &lab.data, "--json"];
    let json: serde_json::Value = serde_json::from_str(&expect(&arguments, 0).out).unwrap();
    assert_eq!(json["ok"], true);
    for row in json["parameters"].as_array().unwrap() {
        assert_eq!(row["checked"], row["elements"]);
        let is_router = row["name"].as_str().unwrap().contains("router");
        assert_eq!(row["result"], if is_router { "not_reached" } else { "ok" }, "{row}");
    }

    // No difference is exact: without a tolerance the check fails.
    let ran = expect(&["gradcheck", &lab.spec, "--atol", "0", "--rtol", "0"], 1);
    assert!(ran.out.contains("WRONG"), "{}", ran.out);
    expect(&["gradcheck", &lab.spec, "--eps", "0"], 2);
    expect(&["gradcheck", &lab.spec, "--all", "--samples", "3"], 2);
}

#[test]
fn a_known_text_that_cannot_be_had_is_explained() {
    let lab = Lab::new();
    let named = text(&lab.folder.path().join("named.moe"), SMALL.replace("batch 3", "batch 3\n  data tinyshakespeare"));
    // A port that was free a moment ago: nobody answers there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let train = |arguments: &[&str]| {
        let mut command = moec();
        command.env("MOEC_DATA_URL", format!("http://127.0.0.1:{port}")).env("MOEC_CACHE", lab.at("cache"));
        for proxy in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(proxy);
        }
        let output = command.current_dir(lab.folder.path()).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let by_option = ["train", &lab.spec, "--data", "tinyshakespeare", "--out", "run"];
    for arguments in [&["train", &named, "--out", "run"][..], &by_option] {
        let (code, err) = train(arguments);
        assert_eq!(code, Some(3), "{err}");
        assert!(err.contains("downloading tinyshakespeare (1.12 MB) from http://127.0.0.1"), "{err}");
        assert!(err.contains("cache/data/tinyshakespeare.txt") && err.contains("--data FILE"), "{err}");
    }
    // A file of that name comes first.
    text(&lab.folder.path().join("tinyshakespeare"), "abc");
    let (code, err) = train(&by_option);
    assert!(code == Some(3) && !err.contains("downloading") && err.contains("has 2 characters"), "{err}");
}

#[test]
fn routes_are_recorded_compared_and_replayed() {
    let lab = Lab::new();
    let noisy = SMALL
        .replace("k: 2, epsilon: 0)", "k: 2, noise_at_evaluation: true), capacity: capacity(factor: 0.5, minimum: 1)");
    let noisy = text(&lab.folder.path().join("noisy.moe"), noisy);
    let run = lab.at("run");
    let on = ["--device", "interpreter"];
    let train =
        ["train", &noisy, "--data", &lab.data, "--out", &run, "--sample", "0", "-s", "train.checkpoint.every=6"];
    expect(&[&train[..], &on].concat(), 0);

    let said = "the lazy fox and";
    let record = |more: &[&str]| expect(&[&["route", &run, "--text", said][..], &on, more].concat(), 0).out;
    let late = record(&[]);
    assert_eq!(record(&[]), late);
    let lines: Vec<serde_json::Value> = late.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((&lines[0]["kind"], &lines[0]["checkpoint"]), (&"run".into(), &12.into()));
    assert_eq!(lines[0]["layers"].as_array().unwrap().len(), 2);
    let windows: Vec<_> = lines.iter().filter(|l| l["kind"] == "window").collect();
    assert_eq!(windows.len(), 2, "16 characters in windows of 8");
    assert_eq!(windows[0]["noise"].as_object().unwrap().len(), 2);
    let routes: Vec<_> = lines.iter().filter(|l| l["kind"] == "route").collect();
    assert_eq!(routes.len(), 2 * said.len());
    assert_eq!((&routes[4]["layer"], &routes[4]["position"]), (&"blocks.0.moe".into(), &4.into()));
    assert_eq!(routes[4]["character"], "l");
    for route in &routes {
        let sum: f64 = route["weights"].as_array().unwrap().iter().map(|w| w.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-6 && route["experts"].as_array().unwrap().len() == 2, "{route}");
    }
    assert!(late.contains("\"dropped\":[true") && late.contains("\"dropped\":[false"));

    let [early, late_file, edited] = ["early.jsonl", "late.jsonl", "edited.jsonl"].map(|n| lab.at(n));
    record(&["--checkpoint", "6", "-o", &early]);
    text(Path::new(&late_file), &late);
    let json = expect(&["route", "--diff", &early, &late_file, "--json"], 0).out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["layers"][0]["largest_weight_difference"].as_f64().unwrap() > 0.0);
    let same = expect(&["route", "--diff", &early, &early], 0).out;
    assert!(same.contains("blocks.1.moe") && same.contains("100.0 %") && !same.contains("0.0 %  5"), "{same}");

    for file in [&early, &late_file] {
        let replayed = expect(&[&["route", "--replay", file][..], &on].concat(), 0).out;
        assert!(replayed.contains("agree to the bit"), "{replayed}");
    }
    // Another route for one character: the logits are others, and that is said.
    let mut lines: Vec<String> = late.lines().map(str::to_string).collect();
    let mut window: serde_json::Value = serde_json::from_str(&lines[1]).unwrap();
    let route = &mut window["routes"]["blocks.0.moe.limit_capacity"]["data"];
    route.as_array_mut().unwrap().reverse();
    lines[1] = window.to_string();
    text(Path::new(&edited), lines.join("\n"));
    let replayed = expect(&[&["route", "--replay", &edited][..], &on].concat(), 1).out;
    assert!(replayed.contains("DIFFER"), "{replayed}");
    expect(&["route", &run, "--replay", &lab.data], 3);
    expect(&["route"], 2);
    expect(&["route", &run, "--text", "Ω"], 2);
    expect(&["route", &run, "--text", "a", "--checkpoint", "7"], 3);
}

#[test]
fn a_report_is_one_file_that_needs_nothing_beside_it() {
    let lab = Lab::new();
    let on = ["--device", "interpreter"];
    // Characters and names that would be HTML if they were not escaped.
    let data = text(&lab.folder.path().join("a<b>.txt"), "<script>alert('x')</script> & \"so\" on. ".repeat(40));
    let run = lab.at("r<script>");
    let train = ["train", &lab.spec, "--data", &data, "--out", &run, "--sample", "20"];
    expect(&[&train[..], &on].concat(), 0);
    let told = expect(&[&["report", &run][..], &on].concat(), 0);
    let file = format!("{run}/report.html");
    assert!(told.out.is_empty() && told.err.contains(&format!("wrote {file}")), "{}", told.err);
    let page = fs::read_to_string(&file).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>\n<!-- moec report -->"));
    assert_eq!((page.matches("<script").count(), page.matches("<b>.txt").count()), (1, 0));
    assert!(page.contains("r&lt;script&gt;") && page.contains("a&lt;b&gt;.txt"));
    for part in ["blocks.0.moe", "class=\"tx\"", "max/mean", "memory planned", "moec sample", "step-00000012.txt"] {
        assert!(page.contains(part), "{part}");
    }
    for word in ["http:", "https:", "src=", "url(", "<link", "@import"] {
        assert!(!page.contains(word), "{word}");
    }
    // Again, it is replaced, by the same.
    expect(&[&["report", &run][..], &on].concat(), 0);
    assert_eq!(fs::read_to_string(&file).unwrap(), page);

    // Two seeds and a text of one's own.
    let other = lab.at("other");
    expect(
        &[&["train", &lab.spec, "--data", &data, "--out", &other, "--sample", "0", "--seed", "5"][..], &on].concat(),
        0,
    );
    let two = lab.at("two.html");
    expect(&[&["report", &run, &other, "--text", "so on", "-o", &two][..], &on].concat(), 0);
    let page = fs::read_to_string(&two).unwrap();
    assert!(
        page.contains("mean of 2 seeds")
            && page.contains("that of --text")
            && page.matches("class=\"tx\"").count() == 4
    );
    // A text that the model cannot read is said in the page, which is still of use.
    expect(&[&["report", &run, "--text", "Ω", "-o", &two][..], &on].concat(), 0);
    assert!(fs::read_to_string(&two).unwrap().contains("the text cannot be read by this model"));
}

#[test]
fn a_report_is_of_what_there_is_and_replaces_nothing_else() {
    let lab = Lab::new();
    let run = lab.at("run");
    lab.train(&run, &["--device", "interpreter"], 0);
    let precious = text(Path::new(&lab.at("thesis.html")), "<!DOCTYPE html>\n<p>precious</p>");
    let refused = expect(&["report", &run, "--characters", "0", "-o", &precious], 1).err;
    assert!(refused.contains("is no report") && refused.contains("-o FILE"), "{refused}");
    assert!(fs::read_to_string(&precious).unwrap().contains("precious"));
    let metrics = format!("{run}/metrics.jsonl");
    for output in [&metrics, &format!("{run}/checkpoints/x.html")] {
        assert!(expect(&["report", &run, "-o", output], 2).err.contains("this command reads it"));
    }
    expect(&["report"], 2);
    expect(&["report", &lab.at("nowhere")], 3);

    // Without its text and without a checkpoint, there is still everything that was measured.
    fs::remove_file(&lab.data).unwrap();
    let page = |more: &[&str]| {
        expect(&[&["report", &run, "--device", "interpreter"][..], more].concat(), 0);
        fs::read_to_string(format!("{run}/report.html")).unwrap()
    };
    assert!(page(&[]).contains("its training text is not at hand"));
    assert!(page(&["--text", "the fox"]).contains("class=\"tx\""));
    fs::remove_dir_all(format!("{run}/checkpoints/step-00000012")).unwrap();
    let early = page(&["--text", "the fox"]);
    assert!(early.contains("there is no checkpoint yet") && early.contains("class=\"curve g0\""));
    fs::remove_file(&metrics).unwrap();
    assert!(page(&["--characters", "0"]).contains("No step has been reported yet"));
}

#[test]
fn routes_are_shown_as_a_text_with_a_legend() {
    let lab = Lab::new();
    let run = lab.at("run");
    let on = ["--device", "interpreter"];
    lab.train(&run, &on, 0);
    let route = |more: &[&str], code| expect(&[&["route", &run][..], &on, more].concat(), code);
    let said = ["--text", "the lazy fox"];

    // Into a pipe go lines, as --format says; of the run's own text only with something that is about a view.
    let lines = route(&said, 0).out;
    assert!(lines.starts_with("{\"kind\":\"run\"") && route(&[&said[..], &["--json"]].concat(), 0).out == lines);
    let own = route(&["-n", "5"], 0);
    assert!(own.out.starts_with("{\"kind\"") && own.err.contains("the first 5 of 180 characters of the held-out part"));

    // The letters are what the lines say.
    let letters = |layer: &str, slot: usize| -> String {
        let routes = lines.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        let routes = routes.filter(|l| l["kind"] == "route" && l["layer"] == layer);
        let expert = |route: serde_json::Value| {
            let weights: Vec<f64> = route["weights"].as_array().unwrap().iter().map(|w| w.as_f64().unwrap()).collect();
            let first = usize::from(weights[1] > weights[0]);
            route["experts"][if slot == 1 { first } else { 1 - first }].as_u64().unwrap().to_string()
        };
        routes.map(expert).collect()
    };
    for (layer, slot) in [("blocks.0.moe", 1), ("blocks.1.moe", 1), ("blocks.1.moe", 2)] {
        let text = route(&[&said[..], &["--layer", layer, "--slot", &slot.to_string()]].concat(), 0).out;
        let rows: Vec<&str> = text.lines().skip_while(|l| !l.starts_with("the lazy fox")).collect();
        let expected = letters(layer, slot);
        assert_eq!((rows[0], rows[1]), ("the lazy fox", expected.as_str()), "{text}");
        let share = 100.0 * expected.matches('2').count() as f64 / 12.0;
        assert!(text.contains(layer) && text.contains(&format!("2 expert 2 {share:>5.1} %")), "{text}");
    }
    // The last layer, if nothing is said; numbers are those of the list.
    let view = route(&[&said[..], &["--format", "text"]].concat(), 0).out;
    assert_eq!(view, route(&[&said[..], &["--layer", "1"]].concat(), 0).out);
    assert!(!view.contains('\u{1b}'));
    // Colours where they are asked for, and never in a file.
    let coloured = route(&[&said[..], &["--format", "text", "--color", "always"]].concat(), 0).out;
    assert!(coloured.contains("\u{1b}[30;48;5;"), "{coloured}");
    let file = lab.at("view.txt");
    route(&[&said[..], &["--format", "text", "--color", "always", "-o", &file]].concat(), 0);
    assert_eq!(fs::read_to_string(&file).unwrap(), view);

    // Other texts.
    let from = |input: &str, more: &[&str]| {
        let given = [&["route", &run, "--data", "-", "--format", "text"][..], &on, more].concat();
        let output = moec().args(given).write_stdin(input).output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    assert!(from("lazy dog", &[]).1.starts_with("8 characters of standard input\n"));
    assert!(from("lazy dog", &["-n", "4"]).1.contains("\nlazy\n"));
    assert_eq!((from("", &[]).0, from("Ω", &[]).0), (Some(3), Some(3)));
    let whole = route(&["--data", &lab.data, "--format", "text"], 0).out;
    assert!(whole.starts_with("the first 1,000 of 1,800 characters of "), "{whole}");
    assert!(
        route(&["--split", "train", "--format", "text"], 0).out.replace('\n', " ").contains("the training part of ")
    );

    // What cannot be shown.
    let wrong = route(&[&said[..], &["--layer", "blocks.1.mo"]].concat(), 2).err;
    assert!(
        wrong.contains("did you mean blocks.1.moe?") && wrong.contains("0 blocks.0.moe, 1 blocks.1.moe"),
        "{wrong}"
    );
    assert!(route(&[&said[..], &["--layer", "2"]].concat(), 2).err.contains("no layer 2"));
    assert!(route(&[&said[..], &["--slot", "3"]].concat(), 2).err.contains("the most is 2"));
    for more in [["--format", "lines", "--slot", "1"], ["--format", "text", "--json", "--seed=1"]] {
        route(&[&said[..], &more].concat(), 2);
    }
}

#[test]
fn characters_are_counted_by_expert() {
    let lab = Lab::new();
    let run = lab.at("run");
    let on = ["--device", "interpreter"];
    lab.train(&run, &on, 0);
    let count = |more: &[&str]| {
        let table = ["route", &run, "--by", "character", "--data", &lab.data, "-n", "360"];
        expect(&[&table[..], &on, more].concat(), 0).out
    };
    let json: serde_json::Value = serde_json::from_str(&count(&["--json"])).unwrap();
    assert_eq!((&json["schema"], &json["characters"]), (&"moec.route.characters/1".into(), &360.into()));
    let layers = json["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    for layer in layers {
        assert_eq!(layer["choices"], 720, "two for each character");
        let list = |of: &str| layer[of].as_array().unwrap().clone();
        let whole = |value: &serde_json::Value| value.as_u64().unwrap();
        for character in list("characters") {
            let counts: Vec<u64> = character["counts"].as_array().unwrap().iter().map(whole).collect();
            assert_eq!(counts.iter().sum::<u64>(), whole(&character["choices"]));
            assert_eq!(whole(&character["choices"]), 2 * whole(&character["occurrences"]));
            let entropy = character["entropy_nats"].as_f64().unwrap();
            assert!(entropy >= 2f64.ln() - 1e-9 && entropy <= 3f64.ln() + 1e-9, "two of three experts: {entropy}");
        }
        assert_eq!(list("experts").iter().map(|e| whole(&e["choices"])).sum::<u64>(), 720);
        for expert in list("experts") {
            let pairs = expert["characters"].as_array().unwrap().clone();
            let shares: f64 = pairs.iter().map(|p| p["share_of_expert"].as_f64().unwrap()).sum();
            assert!(pairs.is_empty() || (shares - 1.0).abs() < 1e-9, "{shares}");
            for pair in &pairs {
                let of_text = list("characters").iter().find(|c| c["character"] == pair["character"]).unwrap().clone();
                let [count, all, choices] = [&pair["count"], &of_text["choices"], &expert["choices"]].map(whole);
                let lift = count as f64 * 720.0 / (all as f64 * choices as f64);
                assert!((pair["lift"].as_f64().unwrap() - lift).abs() < 1e-9);
                assert!(pair["share_of_character"].as_f64().unwrap() <= 1.0);
            }
        }
    }
    let table = count(&[]);
    assert!(table.starts_with("the first 360 of 1,800 characters of "), "{table}");
    assert_eq!(table.matches("expert     load  char").count(), 2, "{table}");
    let one = count(&["--layer", "0", "--slot", "1", "--top", "2"]);
    assert!(one.contains("blocks.0.moe (layer 0), noisy_top_k: 360 choices") && !one.contains("blocks.1"), "{one}");
    expect(&["route", &run, "--by", "character", "--format", "text"], 2);
    expect(&["route", &run, "--top", "2"], 2);
}

#[path = "cli/progress.rs"]
mod progress;
#[cfg(unix)]
#[path = "cli/transcripts.rs"]
mod transcripts;

#[allow(dead_code, reason = "its `main` is for running it as an example")]
#[path = "../crates/moec/examples/hello.rs"]
mod hello;

#[test]
fn the_example_trains_and_samples() {
    let folder = tempfile::tempdir().unwrap();
    let text = hello::train_and_sample(&folder.path().join("hello")).unwrap();
    assert!(text.chars().count() == 60, "{text}");
}

/// A file that imports another one, which imports a third.
fn importing(folder: &Path) -> String {
    fs::create_dir(folder.join("lib")).unwrap();
    let gate = "// Top-k of scores.\nrouter gate(k: int) {\n  let scores = linear(x, experts)\n  \
                let top, chosen = top_k(scores, k)\n  return token_choice(experts: chosen, weights: softmax(top))\n}\n";
    text(&folder.join("lib/gate.moe"), gate);
    text(&folder.join("lib/parts.moe"), "import \"gate.moe\"\n\nblock expert { mlp(hidden: 6) }\n");
    let main = "import \"lib/parts.moe\"\n\nmodel imported {\n  context 8\n  vocab   characters\n\n  embed(width: 8)\n  \
                residual { layer_norm  moe(experts: 3 * expert, route: gate(k: 2)) }\n  unembed\n}\n\ntrain {\n  \
                batch 2\n  steps 4\n  evaluate(every: 2, batches: 1)\n  checkpoint(every: 2)\n}\n";
    text(&folder.join("main.moe"), main)
}

#[test]
fn a_run_needs_no_imported_file_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let main = importing(folder.path());
    let library = folder.path().join("lib").join("gate.moe").display().to_string();
    assert!(expect(&["check", &main], 0).out.contains("model imported is sound"));
    assert!(expect(&["check", &library], 0).out.contains("router gate is sound"));
    expect(&["fmt", "--check", &main, &library], 0);
    expect(&["compile", &main], 0);
    let run = folder.path().join("run").display().to_string();
    expect(&["train", &main, "--out", &run], 0);

    // A changed file is another model; a missing one is not needed.
    let kept = fs::read_to_string(&library).unwrap();
    fs::write(&library, kept.replace("softmax(top)", "sigmoid(top)")).unwrap();
    let ran = expect(&["train", &main, "--out", &run, "--resume", "--steps", "6"], 2);
    assert!(ran.err.contains("gate.moe has changed since"), "{}", ran.err);
    let full = folder.path().join("full").display().to_string();
    fs::write(&library, kept).unwrap();
    expect(&["train", &main, "--out", &full, "--steps", "6"], 0);
    fs::remove_dir_all(folder.path().join("lib")).unwrap();
    let spec = folder.path().join("run").join("spec.moe").display().to_string();
    expect(&["train", &spec, "--out", &run, "--resume", "--steps", "6"], 0);
    let model = |run: &str| fs::read(Path::new(run).join("checkpoints/step-00000006/model.safetensors")).unwrap();
    assert_eq!(model(&run), model(&full));
    expect(&["sample", &run], 0);
    expect(&["eval", &run, "--batches", "1"], 0);
}

#[test]
fn faults_in_imported_files_are_shown_there() {
    let folder = tempfile::tempdir().unwrap();
    let main = importing(folder.path());
    let library = folder.path().join("lib/gate.moe");
    let kept = fs::read_to_string(&library).unwrap();
    fs::write(&library, kept.replace("softmax(top)", "softmax(tpo)")).unwrap();
    let ran = expect(&["check", &main, "--message-format", "short"], 2);
    assert!(ran.err.contains("lib/gate.moe:5:57: error[E0206]: `tpo` is not defined"), "{}", ran.err);
    let json = expect(&["check", &main, "--json"], 2).out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let file = json["diagnostics"][0]["file"].as_str().unwrap();
    assert!(file.ends_with("lib/gate.moe"), "{file}");
    fs::remove_file(&library).unwrap();
    let ran = expect(&["check", &main], 2);
    assert!(ran.err.contains("lib/parts.moe:1:8") && ran.err.contains("there is no such file"), "{}", ran.err);
    fs::write(&library, "import \"../main.moe\"").unwrap();
    let ran = expect(&["check", &main], 2);
    assert!(ran.err.contains("`main.moe` imports `lib/parts.moe` imports `lib/gate.moe`"), "{}", ran.err);
}

#[test]
fn routers_of_the_language_have_right_gradients() {
    let routers = root().join("examples").join("routers");
    for name in ["noisy_gate.moe", "unbiased_gate.moe", "market.moe"] {
        let file = routers.join(name).display().to_string();
        let ran = expect(&["gradcheck", &file, "-s", "width=8", "--context", "3"], 0);
        assert!(ran.out.contains("parameters agree"), "{name}: {}", ran.out);
    }
}

/// A model whose tokens have different numbers of experts: its gradients are right, and every command that evaluates says
/// how many there were.
#[test]
fn experts_per_token_are_measured_and_shown() {
    let lab = Lab::new();
    let spec = SMALL
        .replace("model small", "block expert(hidden: int) { layer_norm  mlp(hidden: hidden) }\nmodel small")
        .replace(
            "experts: 3 * mlp(hidden: 24, activation: relu, dropout: 0.1)",
            "experts: [3 * expert(hidden: 7), zero, copy, 2 * constant], latent: 5, balance: [switch(tau: 0.5)]",
        );
    let file = lab.at("varying.moe");
    fs::write(&file, spec).unwrap();
    let ran = expect(&["gradcheck", &file, "-s", "width=6", "--context", "3"], 0);
    assert!(ran.out.contains("parameters agree"), "{}", ran.out);
    let compiled = expect(&["compile", &file], 0).out;
    assert!(compiled.contains("2 of 7 experts, 4 of which compute nothing, by noisy_top_k"), "{compiled}");
    let run = lab.at("varying");
    let said = expect(&["train", &file, "--data", &lab.data, "--out", &run, "--sample", "0"], 0).err;
    let line = said.lines().find(|line| line.starts_with("eval 12")).unwrap();
    assert!(line.contains("  experts/token ") && line.contains("  active "), "{said}");
    let panel = said.lines().find(|line| line.starts_with("blocks.1.moe")).unwrap();
    let (computing, others) = panel.split_whitespace().nth(1).unwrap().split_once('|').unwrap();
    assert_eq!((computing.chars().count(), others.chars().count()), (3, 4), "{said}");
    let metrics = fs::read_to_string(format!("{run}/metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    for layer in last["layers"].as_array().unwrap() {
        let rows = |name: &str| layer[name].as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).sum::<f64>();
        // Two experts a token, of either kind, over 2 batches of 3 sequences of 8 tokens.
        assert_eq!(rows("load_rows") + rows("zero_computation_rows"), (2 * 2 * 3 * 8) as f64);
        assert!((layer["experts_per_token"].as_f64().unwrap() - rows("load_rows") / (2 * 3 * 8) as f64).abs() < 1e-6);
    }
    let evaluated = expect(&["eval", &run], 0).out;
    assert!(evaluated.contains("parameters active per token, as measured") && evaluated.contains("experts/token"));
    let page = lab.at("report.html");
    expect(&["report", &run, "-o", &page], 0);
    assert!(fs::read_to_string(&page).unwrap().contains(" as measured)"));
    for device in ["cpu", "interpreter"] {
        let to = ["compare", &file, &lab.spec, "--data", &lab.data, "--out", &lab.at(device), "--device", device];
        let compared = expect(&to, 0).out;
        assert!(compared.contains("active as measured") || compared.contains("active as"), "{compared}");
    }
    // Where the number is the same of every token nothing is said of it.
    let said = lab.train(&lab.at("plain"), &[], 0).err;
    assert!(!said.contains("experts/token") && !said.contains("  active "), "{said}");
}

#[test]
fn a_new_file_is_sound_trains_and_is_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    for template in ["dense", "top2", "noisy_top2", "switch", "fine_grained", "router"] {
        let file = at(template).replace("router", "mine");
        let said = expect(&["new", &file, "--template", template], 0).out;
        let file = file + ".moe";
        assert!(said.contains(&format!("moec train {file}")), "{said}");
        expect(&["check", &file], 0);
        expect(&["fmt", "--check", &file], 0);
        let written = fs::read(&file).unwrap();
        let again = expect(&["new", &file, "-t", "dense"], 1);
        assert!(again.err.contains("exists already"), "{}", again.err);
        assert_eq!(fs::read(&file).unwrap(), written);
    }
    let out = at("run");
    expect(
        &["train", &at("mine.moe"), "--steps", "2", "--sample", "0", "--out", &out, "-s", "train.evaluate.batches=1"],
        0,
    );
    expect(&["new", &at("2 fast")], 0);
    assert!(fs::read_to_string(at("2 fast.moe")).unwrap().contains("\nmodel m2_fast {"));
    assert!(expect(&["new", &at("train")], 2).err.contains("a word of the language"));
    assert!(expect(&["new", &at("no/where")], 1).err.contains("make it first"));
}

#[test]
fn the_doctor_holds_devices_against_the_reference() {
    let said = expect(&["doctor"], 0).out;
    for line in ["processor", "memory", "kernels", "cpu          sound", "interpreter  sound"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let output = moec().args(["doctor", "--json"]).env("MOEC_CACHE", "off").output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["schema"], "moec.doctor/1");
    assert_eq!(report["kernels"], serde_json::Value::Null);
    let with_kernels = serde_json::json!({ "kernels": { "folder": "", "entries": 0, "bytes": 0, "limit_bytes": 0 } });
    // What a device has depends on what this machine has of it.
    let devices = serde_json::json!({ "devices": [
        { "device": "", "state": "", "seconds": 1, "loss": 1, "expected": 1, "reason": "", "advice": "" },
    ] });
    let unknown = serde_json::json!({ "available_memory_bytes": null, "data": null });
    let known = serde_json::json!({ "available_memory_bytes": 1, "data": "" });
    json::documented("moec.doctor/1", &[report.clone(), with_kernels, devices, unknown, known]);
    let states: Vec<_> = report["devices"].as_array().unwrap().iter().map(|d| (&d["device"], &d["state"])).collect();
    assert!(states.iter().all(|(_, state)| *state == "sound" || *state == "missing"), "{states:?}");
}

/// A folder with a cache of compiled kernels and runs.
struct CacheLab {
    lab: Lab,
}

impl CacheLab {
    fn new() -> Self {
        Self { lab: Lab::new() }
    }

    fn kernels(&self) -> PathBuf {
        self.lab.folder.path().join("cache/kernels")
    }

    fn command(&self) -> Command {
        let mut command = moec();
        command.env("MOEC_CACHE", self.lab.at("cache"));
        command
    }

    /// Trains three steps, and gives what was learned and what was said.
    fn train(&self, out: &str, command: &mut Command) -> (Vec<Vec<u8>>, String) {
        let out = self.lab.at(out);
        let arguments =
            ["train", &self.lab.spec, "--data", &self.lab.data, "--out", &out, "--sample", "0", "--steps", "3"];
        let output = command.args(arguments).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{err}");
        (self.lab.files(&out, 3), err)
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.command().args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn entries(&self) -> u64 {
        self.json(&["cache", "--json"])["entries"].as_u64().unwrap()
    }
}

#[test]
fn compiled_kernels_are_kept_and_compute_the_same_bits() {
    let lab = CacheLab::new();
    assert_eq!(lab.entries(), 0);
    let (without, _) = lab.train("without", lab.command().arg("--no-cache"));
    assert!(!lab.kernels().exists(), "--no-cache has kept something");
    for off in ["off", ""] {
        lab.train(&format!("off{}", off.len()), moec().env("MOEC_CACHE", off));
    }
    let (cold, _) = lab.train("cold", &mut lab.command());
    let kept = lab.entries();
    assert!(kept > 10, "{kept} kernels were kept");
    let files = |folder: &Path| {
        let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    };
    let before = files(&lab.kernels());
    let (warm, _) = lab.train("warm", &mut lab.command());
    assert_eq!((&cold, &warm), (&without, &without));
    assert_eq!(files(&lab.kernels()), before);

    // Damage of every kind: nothing of it is run, and all of it is replaced.
    let whole: Vec<Vec<u8>> = before.iter().map(|path| fs::read(path).unwrap()).collect();
    for (i, (path, content)) in before.iter().zip(&whole).enumerate() {
        let mut content = content.clone();
        match i % 4 {
            0 => content.truncate(i * 97 % content.len()),
            1 => content.clone_from(&whole[(i + 1) % whole.len()]),
            2 => *content.last_mut().unwrap() ^= 1,
            _ => {
                let middle = content.len() / 2;
                content[middle] ^= 0x80;
            }
        }
        fs::write(path, content).unwrap();
    }
    let (repaired, err) = lab.train("repaired", &mut lab.command());
    assert_eq!(repaired, without);
    assert!(!err.contains("kernels are compiled, not cached"), "{err}");
    for (path, content) in before.iter().zip(&whole) {
        assert!(fs::read(path).unwrap() == *content, "{} was not replaced", path.display());
    }

    let ran = lab.command().args(["cache"]).output().unwrap();
    let out = String::from_utf8(ran.stdout).unwrap();
    assert!(out.contains(&format!("cache/kernels: {kept} compiled kernels")), "{out}");
    assert_eq!(lab.json(&["cache", "--clear", "--json"])["entries"], kept);
    assert_eq!(lab.entries(), 0);
    let off = moec().env("MOEC_CACHE", "off").arg("cache").output().unwrap();
    assert!(off.status.success() && String::from_utf8(off.stdout).unwrap().contains("are not kept"));
    expect(&["cache", "--no-cache", "--clear"], 2);
}

#[test]
fn two_commands_at_once_share_compiled_kernels() {
    let lab = CacheLab::new();
    let (one, two) = std::thread::scope(|scope| {
        let other = scope.spawn(|| lab.train("one", &mut lab.command()).0);
        (lab.train("two", &mut lab.command()).0, other.join().unwrap())
    });
    assert_eq!(one, two);
    assert!(lab.entries() > 10);
}

#[cfg(unix)]
#[test]
fn a_cache_that_cannot_be_used_is_a_remark() {
    use std::os::unix::fs::PermissionsExt;
    let lab = CacheLab::new();
    fs::create_dir_all(lab.kernels()).unwrap();
    fs::set_permissions(lab.kernels(), fs::Permissions::from_mode(0o777)).unwrap();
    let (open, err) = lab.train("open", &mut lab.command());
    assert_eq!(err.matches("others can write to the folder").count(), 1, "{err}");
    assert_eq!(lab.entries(), 0);
    // No folder can be made in a file.
    let file = text(&lab.lab.folder.path().join("file"), "");
    let (none, err) = lab.train("none", moec().env("MOEC_CACHE", file));
    assert_eq!(err.matches("kernels are compiled, not cached").count(), 1, "{err}");
    assert_eq!(none, open);
}

#[cfg(unix)]
#[test]
fn nothing_takes_the_place_of_what_a_command_reads_or_of_what_is_no_file() {
    let lab = Lab::new();
    let run = lab.at("run");
    lab.train(&run, &["--device", "interpreter"], 0);
    let main = importing(lab.folder.path());
    let library = lab.at("lib/gate.moe");
    let [link, twin, folder, pipe, gone] = ["link.moe", "twin.moe", "folder", "pipe", "gone"].map(|name| lab.at(name));
    std::os::unix::fs::symlink(&main, &link).unwrap();
    std::os::unix::fs::symlink(lab.at("nowhere"), &gone).unwrap();
    fs::hard_link(&main, &twin).unwrap();
    fs::create_dir(&folder).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let model = format!("{run}/checkpoints/step-00000012/model.safetensors");
    let kept = format!("{run}/spec.moe");
    let contents = || [&main, &library, &twin, &model, &kept].map(|path| fs::read(path).unwrap());
    let before = contents();
    let roundabout = lab.at("folder/../main.moe");
    for output in [&main, &link, &twin, &library, &roundabout] {
        for emit in ["ast", "model", "ir", "plan", "dot"] {
            let refused = expect(&["compile", &main, "--emit", emit, "-o", output], 2).err;
            assert!(refused.contains(output.as_str()) && refused.contains("this command reads it"), "{refused}");
        }
        expect(&["compile", &main, "--json", "-o", output], 2);
    }
    for output in [&model, &kept] {
        expect(&["export", &run, "-o", output, "--force"], 2);
        expect(&["route", &run, "--text", "the fox", "-o", output, "--device", "interpreter"], 2);
    }
    for (output, why) in [(&folder, "it is a folder"), (&gone, "leads nowhere")] {
        for command in [&["compile", &main][..], &["export", &run, "--force"], &["route", &run, "--text", "the"]] {
            let refused = expect(&[command, &["-o", output]].concat(), 2).err;
            assert!(refused.contains(why), "{refused}");
        }
    }
    for output in [&pipe, "/dev/null"] {
        let refused = expect(&["export", &run, "-o", output, "--force"], 2).err;
        assert!(refused.contains("no plain file"), "{refused}");
    }
    let refused = expect(&["compile", &main, "-o", &lab.at("none/x")], 1).err;
    assert!(refused.contains("there is no folder"), "{refused}");
    assert!(before == contents());
    assert!(Path::new(&pipe).exists() && !fs::metadata(&pipe).unwrap().is_file());

    // What may be written is, and a link keeps leading to its file.
    expect(&["compile", &main, "-o", "/dev/null"], 0);
    let (written, alias) = (lab.at("written"), lab.at("alias"));
    text(Path::new(&written), "old");
    std::os::unix::fs::symlink(&written, &alias).unwrap();
    expect(&["compile", &main, "--emit", "model", "-o", &alias], 0);
    assert!(fs::read_to_string(&written).unwrap().contains("imported"));
    expect(&["export", &run, "-o", &alias, "--force"], 0);
    assert!(Path::new(&alias).is_symlink() && fs::read(&written).unwrap().len() > 1000);
    assert!(expect(&["compile", &main, "--emit", "ast", "-o", "/dev/stdout"], 0).out.contains("imported"));
}

#[test]
fn a_training_ends_with_what_is_wrong_with_it() {
    let lab = Lab::new();
    // One expert a character, so that the router learns nothing, and room for half of the choices.
    let faulty = SMALL.replace("k: 2, epsilon: 0)", "k: 1), capacity: capacity(factor: 0.5, evaluation_factor: 0.5)");
    let faulty = text(&lab.folder.path().join("faulty.moe"), faulty.replace("noisy_top_k", "softmax_top_k"));
    let run = lab.at("run");
    let on = ["--device", "interpreter"];
    let train = ["train", &faulty, "--data", &lab.data, "--out", &run, "--sample", "0"];
    let train = [&train[..], &["--steps", "60", "-s", "train.checkpoint.every=30"]].concat();
    let told = expect(&[&train[..], &on].concat(), 0).err;
    let found = told.find("diagnosis: the capacity drops many choices (blocks.0.moe, blocks.1.moe): ");
    assert!(found > told.find("max/mean  idle") && told.contains("cure: ") && told.contains("faulty.moe:"), "{told}");
    assert!(told.contains(&format!("moec report {run}")), "{told}");

    // The page knows more, for it has two checkpoints.
    expect(&[&["report", &run][..], &on].concat(), 0);
    let page = fs::read_to_string(format!("{run}/report.html")).unwrap();
    for part in ["the capacity drops many choices", "a router stands still", "from step 30 to step 60", "W0501"] {
        assert!(page.contains(part), "{part}");
    }
    let sound = lab.train(&lab.at("sound"), &[&on[..], &["--steps", "60"]].concat(), 0).err;
    assert!(!sound.contains("diagnosis"), "{sound}");
    expect(&[&["report", &lab.at("sound")][..], &on].concat(), 0);
    let page = fs::read_to_string(lab.at("sound/report.html")).unwrap();
    assert!(page.contains("characters that the noise of training sends to other experts"));
}

/// Starts training that goes on until it is stopped, and waits for its first line that begins so.
#[cfg(unix)]
fn started(
    arguments: &[&str],
    first: &str,
) -> (std::process::Child, std::io::Lines<std::io::BufReader<std::process::ChildStderr>>) {
    let mut command = program();
    command.args(arguments).stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with(first))).unwrap().unwrap();
    (child, lines)
}

#[cfg(unix)]
fn kill(signal: &str, child: &std::process::Child) {
    let killed = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
}

/// Whether the tests were started with SIGHUP ignored, as `nohup` does: programs that they start ignore it too, on purpose.
#[cfg(unix)]
fn hangup_is_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}

#[cfg(unix)]
#[test]
fn a_closed_terminal_saves_as_a_termination_does() {
    let lab = Lab::new();
    let hangup = (!hangup_is_ignored()).then_some(("-HUP", 129));
    for (signal, code) in hangup.into_iter().chain([("-TERM", 143)]) {
        let run = lab.at(signal);
        let endless = ["--steps", "100000000", "--sample", "0", "--device", "interpreter"];
        let (mut child, lines) =
            started(&[&["train", &lab.spec, "--data", &lab.data, "--out", &run][..], &endless].concat(), "step");
        kill(signal, &child);
        let said: Vec<String> = lines.map_while(Result::ok).collect();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{said:?}");
        assert!(said.iter().any(|line| line.contains("interrupted and saved")), "{said:?}");
        assert_eq!(fs::read_dir(Path::new(&run).join("checkpoints")).unwrap().count(), 1);
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_sample_at_the_end_of_a_run() {
    let lab = Lab::new();
    let run = lab.at("run");
    let endless = ["--sample", "100000000", "--device", "interpreter"];
    let (mut child, lines) =
        started(&[&["train", &lab.spec, "--data", &lab.data, "--out", &run][..], &endless].concat(), "a sample:");
    kill("-INT", &child);
    let said: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said:?}");
    assert!(said.iter().any(|line| line == "stopping; everything is saved"), "{said:?}");
    assert_eq!(fs::read_dir(Path::new(&run).join("samples")).unwrap().count(), 0);
    expect(&["sample", &run, "-n", "5", "--device", "interpreter"], 0);
}

#[test]
fn texts_may_begin_with_a_dash() {
    let lab = Lab::new();
    let dialogue = text(&lab.folder.path().join("dialogue.txt"), "- the fox\n-- the dog\n--no, -1\n".repeat(30));
    let run = lab.at("run");
    let on = ["--device", "interpreter"];
    expect(&[&["train", &lab.spec, "--data", &dialogue, "--out", &run, "--sample", "0"][..], &on].concat(), 0);
    for said in ["- the", "--no", "-- the dog", "-1", "-n"] {
        let sampled = expect(&[&["sample", &run, "-n", "3", "--prompt", said][..], &on].concat(), 0).out;
        assert!(sampled.starts_with(said), "{sampled}");
        let sampled = expect(&[&["sample", &run, "-n", "3", "-p", said][..], &on].concat(), 0).out;
        assert!(sampled.starts_with(said), "{sampled}");
        let record = expect(&[&["route", &run, "--text", said][..], &on].concat(), 0).out;
        let run: serde_json::Value = serde_json::from_str(record.lines().next().unwrap()).unwrap();
        assert_eq!(run["text"], said);
    }
    for setting in [["--temperature", "-1"], ["--top-p", "-0.5"]] {
        let refused = expect(&[&["sample", &run][..], &setting, &on].concat(), 2).err;
        assert!(refused.contains(setting[1]) && !refused.contains("unexpected argument"), "{refused}");
    }
}

/// On the interpreter, where nothing is compiled.
const QUICK: [&str; 4] = ["--sample", "0", "--device", "interpreter"];

/// Runs the program in a folder.
#[track_caller]
fn expect_in(folder: &Path, arguments: &[&str], code: i32) -> Ran {
    let output = moec().current_dir(folder).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let ran = Ran { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) };
    assert_eq!(ran.code, code, "{arguments:?}\n--- out\n{}\n--- err\n{}", ran.out, ran.err);
    ran
}

#[test]
fn the_text_of_a_run_is_known_by_its_hash_wherever_it_lies() {
    let lab = Lab::new();
    let project = lab.folder.path().join("project");
    fs::create_dir_all(project.join("data")).unwrap();
    let words = fs::read(&lab.data).unwrap();
    text(&project.join("data/words.txt"), &words);
    text(&project.join("m.moe"), SMALL.replace("batch 3", "batch 3\n  data \"data/words.txt\""));
    let train = |folder: &Path, more: &[&str], code| expect_in(folder, &[&["train"], more, &QUICK[..]].concat(), code);
    let eval = |folder: &Path, run: &str, code| expect_in(folder, &["eval", run, "--device", "interpreter"], code);
    train(&project, &["m.moe", "--out", "run"], 0);
    let here = eval(&project, "run", 0).out;

    // From other folders, and by other names of the same file.
    let loss = |out: &str| out.split(" nats").next().unwrap().to_string();
    assert_eq!(loss(&eval(lab.folder.path(), "project/run", 0).out), loss(&here));
    assert_eq!(loss(&eval(&project.join("data"), "../run", 0).out), loss(&here));
    train(&project, &["m.moe", "--data", "./data/words.txt", "--out", "run", "--resume", "--steps", "13"], 0);
    train(lab.folder.path(), &["project/m.moe", "--out", "project/run", "--resume", "--steps", "14"], 0);

    // Another text does not do, wherever it lies; the same one does, and from then on it is known there.
    fs::rename(project.join("data/words.txt"), lab.at("corpus.txt")).unwrap();
    assert!(eval(&project, "run", 3).err.contains("--data FILE says where the text lies"));
    text(&project.join("data/words.txt"), "another text altogether, which is long enough");
    let refused = eval(&project, "run", 3).err;
    assert!(refused.contains("another text than the one that the run was trained on"), "{refused}");
    let other = ["m.moe", "--data", "data/words.txt", "--out", "run", "--resume", "--steps", "16"];
    assert!(train(&project, &other, 2).err.contains("keeps the data"));
    train(&project, &["m.moe", "--data", "../corpus.txt", "--out", "run", "--resume", "--steps", "15"], 0);
    assert_eq!(loss(&eval(&project, "run", 0).out).len(), loss(&here).len());
    train(&project, &["run/spec.moe", "--out", "run", "--resume", "--steps", "16"], 0);

    // A run that is moved together with the text.
    fs::rename(&project, lab.at("moved")).unwrap();
    fs::rename(lab.at("corpus.txt"), lab.at("moved/words.txt")).unwrap();
    let moved = lab.folder.path().join("moved");
    fs::remove_dir_all(moved.join("data")).unwrap();
    train(&moved, &["m.moe", "--data", "words.txt", "--out", "run", "--resume", "--steps", "17"], 0);
    let told = eval(&moved.join("run/samples"), "..", 0).err;
    assert!(told.contains("is taken from"), "{told}");
}

#[cfg(unix)]
#[test]
fn the_command_that_continues_works_as_it_is_printed() {
    let lab = Lab::new();
    let folder = lab.folder.path().join("it's mine");
    fs::create_dir(&folder).unwrap();
    let (spec, run) = (text(&folder.join("a spec.moe"), SMALL), folder.join("my run").display().to_string());
    expect(&[&["train", &spec, "--data", &lab.data, "--out", &run][..], &QUICK].concat(), 0);
    let more = [&["train", &spec, "--out", &run, "--resume", "--steps", "100000000"][..], &QUICK].concat();
    let (mut child, lines) = started(&more, "step");
    kill("-INT", &child);
    let said: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said:?}");
    let command = said.iter().find_map(|line| line.split("continue with: moec ").nth(1)).unwrap();
    assert!(command.contains("--device interpreter"), "{command}");

    // A shell takes it apart; it goes on to the steps that were asked for last.
    let mut shell = std::process::Command::new("sh");
    shell.arg("-c").arg(format!("exec {} {command}", env!("CARGO_BIN_EXE_moec")));
    shell.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let mut child = shell.spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    let line = lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("step"))).unwrap().unwrap();
    assert!(line.contains("/100000000"), "{line}");
    kill("-INT", &child);
    assert!(lines.count() > 0, "it says that it stops");
    child.wait().unwrap();
}

#[test]
fn a_continued_run_may_change_its_rate_and_not_its_batch() {
    let lab = Lab::new();
    let run = lab.at("run");
    lab.train(&run, &["--device", "interpreter"], 0);
    let resume = |more: &[&str], code| {
        expect(&[&["train", &lab.spec, "--out", &run, "--resume"][..], &QUICK, more].concat(), code).err
    };
    let before = fs::read(Path::new(&run).join("resolved.yaml")).unwrap();
    for (change, what) in [
        ("train.batch=4", "batch"),
        ("train.split=0.8", "split"),
        ("train.seed=7", "seed"),
        ("train.init=zeros", "init"),
        ("train.optimizer=sgd", "optimizer"),
        ("width=32", "model"),
    ] {
        let refused = resume(&["--steps", "14", "-s", "train.clip=1.0", "-s", change], 2);
        assert!(refused.contains(&format!("a run keeps the {what} ")) && refused.contains(change), "{refused}");
        assert!(refused.contains("what may change"), "{refused}");
    }
    assert!(resume(&["--seed", "7"], 2).contains("keeps the seed"));
    assert!(resume(&["-s", "train.clipp=1"], 2).contains("clip"));
    assert!(before == fs::read(Path::new(&run).join("resolved.yaml")).unwrap(), "nothing is noted of what is refused");

    let mut steps = 12;
    for change in [
        "train.optimizer.lr=3e-4",
        "train.optimizer.lr=1e-4",
        "train.clip=1.0",
        "train.schedule=cosine",
        "train.evaluate.every=0",
        "train.checkpoint.every=2",
        "train.log.every=1",
    ] {
        steps += 1;
        let said = resume(&["--steps", &steps.to_string(), "-s", change], 0);
        assert!(said.contains(&format!("from here on {change}, train.steps={steps}, noted in")), "{said}");
        let noted = fs::read_to_string(Path::new(&run).join("resolved.yaml")).unwrap();
        assert!(
            noted.contains(&format!("- {change}\n")) && noted.contains(&format!("- train.steps={steps}\n")),
            "{noted}"
        );
    }
    let noted = fs::read_to_string(Path::new(&run).join("resolved.yaml")).unwrap();
    assert!(!noted.contains("lr=3e-4") && noted.matches("train.steps=").count() == 1, "{noted}");
    // What was said before holds without saying it again, and saying it again is no change.
    assert!(!resume(&["--steps", "20", "-s", "train.clip=1.0"], 0).contains("train.clip"));
    assert!(resume(&["--steps", "20"], 0).contains("has made its 20 steps"));
    assert!(resume(&["--steps", "7"], 0).contains("has made 20 steps, more than 7"));
}

#[test]
fn a_run_without_a_checkpoint_begins_anew_and_says_so() {
    let lab = Lab::new();
    let run = lab.at("run");
    lab.train(&run, &["--device", "interpreter"], 0);
    let made = lab.files(&run, 12);
    fs::remove_dir_all(Path::new(&run).join("checkpoints")).unwrap();
    fs::create_dir(Path::new(&run).join("checkpoints")).unwrap();
    let told = lab.train(&run, &["--device", "interpreter", "--resume"], 0).err;
    assert!(told.contains("there is no checkpoint yet, so the training begins anew"), "{told}");
    assert!(made == lab.files(&run, 12));
}

#[test]
fn what_a_diverged_run_advises_leads_on() {
    let lab = Lab::new();
    let run = lab.at("a run");
    let first = ["-s", "train.checkpoint.every=4", "--device", "interpreter", "--steps", "4"];
    lab.train(&run, &first, 0);
    let wild = ["train", &lab.spec, "--out", &run, "--resume", "--steps", "200", "-s", "train.optimizer.lr=1e300"];
    let told = expect(&[&wild[..], &QUICK].concat(), 5).err;
    assert!(told.contains("from the checkpoint of step 4") && told.contains("train.clip=1.0"), "{told}");
    let command = told.lines().find_map(|line| line.split("learning rate: moec ").nth(1)).unwrap();
    assert!(command.contains("-s train.optimizer.lr=1e-3"), "{command}");
    let gentle = command.replace(&format!("'{run}'"), "RUN").replace(&lab.spec, "SPEC");
    let words = gentle.split(' ').map(|word| match word {
        "RUN" => run.as_str(),
        "SPEC" => lab.spec.as_str(),
        word => word,
    });
    let words: Vec<&str> = words.chain(["--steps", "8"]).collect();
    expect(&words, 0);
    assert_eq!(lab.files(&run, 8).len(), 3);
}

#[test]
fn runs_that_are_started_at_once_get_a_folder_each() {
    let lab = Lab::new();
    let arguments = [&["train", &lab.spec, "--data", &lab.data][..], &QUICK].concat();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| expect_in(lab.folder.path(), &arguments, 0));
        }
    });
    let folder = |name: &str| lab.at(&format!("runs/{name}"));
    for name in ["small", "small-2", "small-3", "small-4"] {
        assert!(lab.files(&folder(name), 12) == lab.files(&folder("small"), 12), "{name}");
    }
    expect_in(lab.folder.path(), &arguments, 0);
    assert!(Path::new(&folder("small-5/spec.moe")).exists() && !Path::new(&folder("small-6")).exists());
}

#[test]
fn a_damaged_checkpoint_costs_the_steps_since_the_one_before() {
    let lab = Lab::new();
    let (whole, run) = (lab.at("whole"), lab.at("run"));
    let often = ["-s", "train.checkpoint.every=4", "--device", "interpreter"];
    for run in [&whole, &run] {
        lab.train(run, &often, 0);
    }
    let newest = Path::new(&run).join("checkpoints/step-00000012");
    let model = newest.join("model.safetensors");
    fs::write(&model, &fs::read(&model).unwrap()[..100]).unwrap();
    let on = ["--device", "interpreter"];
    let readers = [
        &["sample", &run, "-n", "5", "--device", "interpreter"][..],
        &["eval", &run, "--device", "interpreter"],
        &["route", &run, "--text", "the", "--device", "interpreter"],
        &["export", &run, "-o", &lab.at("exported")],
    ];
    for command in readers {
        let told = expect(command, 0).err;
        assert!(told.contains("step-00000012/model.safetensors is truncated"), "{told}");
        assert!(told.contains("the checkpoint of step 8 is taken"), "{told}");
    }
    // The one that is named is not replaced by another.
    let refused = expect(&[&["sample", &newest.display().to_string()][..], &on].concat(), 3).err;
    assert!(refused.contains("checkpoints/step-00000008, ") && refused.contains("step-00000004"), "{refused}");
    let refused = expect(&[&["route", &run, "--text", "the", "--checkpoint", "12"][..], &on].concat(), 3).err;
    assert!(refused.contains("step-00000008"), "{refused}");
    fs::remove_file(newest.join("manifest.json")).unwrap();
    let refused = expect(&[&["sample", &newest.display().to_string()][..], &on].concat(), 3).err;
    assert!(refused.contains("manifest.json") && refused.contains("step-00000008"), "{refused}");

    let told = expect(&[&["train", &lab.spec, "--out", &run, "--resume"][..], &QUICK].concat(), 0).err;
    assert!(told.contains("going on from step 8") && told.contains("damaged-step-00000012"), "{told}");
    assert!(lab.files(&run, 12) == lab.files(&whole, 12));
    assert!(newest.with_file_name("damaged-step-00000012").join("model.safetensors").exists());
}

#[test]
fn as_many_checkpoints_are_kept_as_asked_for() {
    let lab = Lab::new();
    let names = |run: &str| {
        let folder = fs::read_dir(Path::new(run).join("checkpoints")).unwrap();
        let mut names: Vec<String> = folder.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let run = lab.at("run");
    let every = ["--device", "interpreter", "-s", "train.checkpoint.every=2"];
    let keep = |n: &'static str| [&every[..], &["-s", n]].concat();
    lab.train(&run, &keep("train.checkpoint.keep=2"), 0);
    assert_eq!(names(&run), ["step-00000010", "step-00000012"]);
    let noted = fs::read_to_string(Path::new(&run).join("resolved.yaml")).unwrap();
    assert!(noted.contains("    keep: 2\n"), "{noted}");
    let all = lab.at("all");
    lab.train(&all, &every, 0);
    assert_eq!(names(&all).len(), 6);
    assert!(lab.files(&run, 12) == lab.files(&all, 12));
    expect(
        &[
            &["train", &lab.spec, "--out", &all, "--resume", "--steps", "14"][..],
            &QUICK,
            &["-s", "train.checkpoint.keep=1"],
        ]
        .concat(),
        0,
    );
    assert_eq!(names(&all), ["step-00000014"]);
    let one = lab.at("one");
    lab.train(&one, &["--device", "interpreter", "-s", "train.checkpoint.every=0"], 0);
    assert_eq!(names(&one), ["step-00000012"]);
    assert!(lab.train(&lab.at("none"), &keep("train.checkpoint.keep=0"), 2).err.contains("at least 1"));
}

#[test]
fn a_small_text_can_be_learned_as_a_whole() {
    let lab = Lab::new();
    let few = text(&lab.folder.path().join("few.txt"), "hello moon, hello world");
    let train = |run: &str, more: &[&str], code| {
        let arguments = ["train", &lab.spec, "--data", &few, "--out", run];
        expect(&[&arguments[..], &QUICK, more].concat(), code)
    };
    let refused = train(&lab.at("short"), &[], 3).err;
    assert!(refused.contains("train.split=1.0") && refused.contains("train.evaluate.every=0"), "{refused}");
    let run = lab.at("all");
    let said = train(&run, &["-s", "train.split=1.0"], 0).err;
    assert_eq!(said.matches("nothing is held out").count(), 1, "{said}");
    assert!(said.contains("all for training") && said.contains("  train ") && !said.contains("  val "), "{said}");
    assert!(!said.contains("NaN"), "{said}");
    let metrics = fs::read_to_string(Path::new(&run).join("metrics.jsonl")).unwrap();
    assert!(metrics.contains("train_loss_nats") && !metrics.contains("validation") && !metrics.contains("null"));
    let on = ["--device", "interpreter"];
    assert!(expect(&[&["eval", &run][..], &on].concat(), 0).out.contains("(train)"));
    let refused = expect(&[&["eval", &run, "--split", "val"][..], &on].concat(), 3).err;
    assert!(refused.contains("nothing of") && refused.contains("is held out"), "{refused}");
    let compare = ["compare", &lab.spec, "--data", &few, "-s", "train.split=1.0", "--out", &lab.at("compared")];
    assert!(expect(&[&compare[..], &on].concat(), 3).err.contains("is held out"));

    let never = lab.at("never");
    let said = train(&never, &["-s", "train.evaluate.every=0"], 0).err;
    assert!(!said.contains("eval") && said.contains("step 12 after"), "{said}");
    for split in ["train.split=1.1", "train.split=0"] {
        assert!(train(&lab.at("bad"), &["-s", split], 2).err.contains("E0604"));
    }
}

#[test]
fn characters_that_nobody_sees_are_remarked_once() {
    let lab = Lab::new();
    let plain = fs::read_to_string(&lab.data).unwrap();
    for (name, content, words) in [
        ("dos", plain.replace(". ", ".\r\n"), &["40 x line end CR LF", "tr -d"][..]),
        ("mac", plain.replace(". ", ".\r"), &["40 x carriage return (CR) alone"]),
        (
            "mark",
            format!("\u{feff}{}", plain.replace("the ", "the\u{a0}")),
            &["1 x byte order mark", "80 x no-break space"],
        ),
    ] {
        let data = text(&lab.folder.path().join(name), content);
        let said = expect(
            &[&["train", &lab.spec, "--data", &data, "--out", &lab.at(&format!("{name}-run"))][..], &QUICK].concat(),
            0,
        );
        assert_eq!(said.err.matches("characters that nobody sees").count(), 1, "{}", said.err);
        assert!(words.iter().all(|word| said.err.contains(word)), "{}", said.err);
    }
    assert!(!lab.train(&lab.at("run"), &["--device", "interpreter"], 0).err.contains("nobody sees"));
}

#[test]
fn a_run_that_a_router_names_is_relative_to_the_spec() {
    let lab = Lab::new();
    let folder = lab.folder.path().join("specs");
    fs::create_dir(&folder).unwrap();
    text(&folder.join("first.moe"), SMALL);
    let hashed = SMALL.replace("noisy_top_k(k: 2, epsilon: 0)", "hash(table: clustered, from: \"first\")");
    text(&folder.join("hashed.moe"), hashed);
    let train = |from: &Path, spec: &str, out: &str, code| {
        expect_in(from, &[&["train", spec, "--data", &lab.data, "--out", out][..], &QUICK].concat(), code)
    };
    train(lab.folder.path(), "specs/first.moe", "specs/first", 0);
    train(lab.folder.path(), "specs/hashed.moe", "a", 0);
    train(&folder, "hashed.moe", "../b", 0);
    assert!(lab.files(&lab.at("a"), 12) == lab.files(&lab.at("b"), 12));
    fs::rename(folder.join("first"), lab.at("first")).unwrap();
    let refused = train(lab.folder.path(), "specs/hashed.moe", "c", 3).err;
    assert!(refused.contains("specs/first"), "{refused}");
    assert!(!Path::new(&lab.at("c/checkpoints/step-00000012")).exists());
}

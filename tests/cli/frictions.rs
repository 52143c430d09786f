//! What a first day with the program ran into.

use super::{Lab, SMALL, expect, expect_in, moec, root, spec, text};
use serde_json::Value;
use std::fs;
use std::path::Path;

const ON: [&str; 2] = ["--device", "interpreter"];

#[test]
fn an_option_of_another_tool_is_answered_with_the_value_that_it_means() {
    let lab = Lab::new();
    let told = |arguments: &[&str]| expect(arguments, 2).err;
    let train = |option: &[&str]| told(&[&["train", &lab.spec][..], option].concat());
    assert!(train(&["--lr", "1e-3"]).contains("-s train.optimizer.lr=1e-3"));
    assert!(train(&["--learning-rate=2e-3"]).contains("-s train.optimizer.lr=2e-3"));
    assert!(train(&["--checkpoint", "10"]).contains("-s train.checkpoint.every=10"));
    assert!(train(&["--batch-size", "4"]).contains("-s train.batch=4"));
    assert!(train(&["--width", "64"]).contains("-s width=64"));
    assert!(train(&["--stpes", "4"]).contains("'--steps'"));
    assert!(told(&["bench", &lab.spec, "--warmup", "10"]).contains("-s train.schedule.warmup=10"));
    assert!(told(&["sample", "runs/x", "--checkpoint", "10"]).contains("checkpoints/step-"));
    // What is said is right.
    expect(&["check", &lab.spec, "-s", "train.checkpoint.every=10", "-s", "train.optimizer.lr=1e-3"], 0);
}

#[test]
fn help_fits_the_terminal_and_is_broken_once() {
    let commands = ["new", "check", "explain", "train", "compare", "route", "report", "cache", "import", "completions"];
    for command in commands {
        for columns in [60, 80] {
            let output = moec().args([command, "--help"]).env("COLUMNS", columns.to_string()).output().unwrap();
            let help = String::from_utf8(output.stdout).unwrap();
            let (_, below) = help.split_once("Examples:").unwrap();
            for line in below.lines() {
                // A command has words that cannot be broken.
                let is_long = line.chars().count() > columns && line.trim().contains("  ");
                assert!(!is_long, "{command} at {columns}: {line}");
            }
            // A paragraph goes on until there is no room for the next word.
            let prose: Vec<&str> = below.lines().collect();
            for pair in prose.windows(2).filter(|pair| pair.iter().all(|line| line.starts_with(char::is_alphabetic))) {
                let next = pair[1].split(' ').next().unwrap_or_default();
                let room = pair[0].chars().count() + 1 + next.chars().count() <= columns;
                assert!(!room, "{command} at {columns}: {pair:?}");
            }
        }
    }
    let page = expect(&["man", "train"], 0).out;
    assert!(page.contains(".SH EXAMPLES\n") && !page.contains("EXTRA"), "{page}");
    assert!(expect(&["man"], 0).out.contains(".SH \"EXIT STATUS\"\n"));
}

#[test]
fn a_new_file_has_lines_that_can_be_read() {
    let lab = Lab::new();
    for template in ["dense", "top2", "noisy_top2", "switch", "fine_grained", "router"] {
        let file = lab.at(&format!("my_{template}.moe"));
        expect(&["new", &file, "--template", template], 0);
        let written = fs::read_to_string(&file).unwrap();
        let longest = written.lines().map(|line| line.chars().count()).max();
        assert!(longest <= Some(100), "{template}: {longest:?}");
        expect(&["check", &file], 0);
        expect(&["fmt", "--check", &file], 0);
    }
}

#[test]
fn an_evaluation_is_short_beside_the_training_between_two() {
    let lab = Lab::new();
    let batches = |more: &[&str]| {
        let model = expect(&[&["compile", &lab.spec, "--emit", "model"][..], more].concat(), 0).out;
        let (_, behind) = model.split_once("batches: ").unwrap();
        behind.lines().next().unwrap().to_string()
    };
    assert_eq!(batches(&[]), "2", "as the file says");
    let plain = SMALL.replace("  evaluate(every: 6, batches: 2)\n", "");
    fs::write(&lab.spec, plain).unwrap();
    assert_eq!(batches(&[]), "15");
    assert_eq!(batches(&["-s", "train.evaluate.every=30"]), "4");
    assert_eq!(batches(&["-s", "train.evaluate.every=2"]), "1");
    assert_eq!(batches(&["-s", "train.evaluate.every=100000"]), "400");
    assert_eq!(batches(&["-s", "train.evaluate.batches=7"]), "7");
    // Those whose results are published say it themselves.
    for name in ["noisy_top2.moe", "top2.moe", "tiny.moe", "dense.moe"] {
        let text = fs::read_to_string(root().join("specs").join(name)).unwrap();
        assert!(text.contains("evaluate(every: ") && text.contains("batches: "), "{name}");
    }
}

#[test]
fn parameters_are_counted_of_characters_that_are_named() {
    let lab = Lab::new();
    let screen = expect(&["compile", &spec("tiny.moe")], 0).out;
    assert!(screen.contains("vocabulary 65 characters; a training counts those of its text"), "{screen}");
    let told = lab.train(&lab.at("run"), &ON, 0).err;
    let count = told.split(" parameters with the 28 characters of this text").next().unwrap();
    let count: String = count.rsplit(' ').next().unwrap().replace(',', "");
    let json = expect(&["compile", &lab.spec, "--vocab", "28", "--json"], 0).out;
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["parameters"].to_string(), count, "{told}");
}

#[test]
fn routes_go_where_they_are_asked_to() {
    let lab = Lab::new();
    let run = lab.at("run");
    lab.train(&run, &ON, 0);
    let route = |more: &[&str]| expect(&[&["route", &run, "--text", "the fox"][..], &ON, more].concat(), 0).out;
    assert!(route(&["--color", "always"]).contains("\u{1b}["), "colours were asked for");
    assert!(route(&[]).starts_with('{'));
    // Numbers as people write them.
    let (a, b) = (text(Path::new(&lab.at("a")), route(&[])), lab.at("b"));
    lab.train(&lab.at("other"), &[&ON[..], &["--seed", "5"]].concat(), 0);
    expect(&[&["route", &lab.at("other"), "--text", "the fox", "-o", &b][..], &ON].concat(), 0);
    let table = expect(&["route", "--diff", &a, &b], 0).out;
    assert!(table.contains("  0.") && !table.contains("e-1"), "{table}");

    // A model without experts has no routes, and nothing is written that looks like some.
    let dense = SMALL.replace(
        "moe(experts: 3 * mlp(hidden: 24, activation: relu, dropout: 0.1), route: noisy_top_k(k: 2, epsilon: 0))",
        "mlp(hidden: 24)",
    );
    fs::write(&lab.spec, dense).unwrap();
    let run = lab.at("dense");
    lab.train(&run, &ON, 0);
    for more in [&[][..], &["--by", "character"], &["--format", "text"], &["--format", "lines"]] {
        let ran = expect(&[&["route", &run][..], &ON, more].concat(), 2);
        assert!(ran.out.is_empty() && ran.err.contains("no layer that routes"), "{}{}", ran.out, ran.err);
    }
}

#[test]
fn a_comparison_loses_no_earlier_one_and_is_reported_as_a_whole() {
    let lab = Lab::new();
    let other = text(&lab.folder.path().join("other.moe"), SMALL.replace("k: 2, epsilon: 0", "k: 1"));
    let out = lab.at("out");
    let compare = |specs: &[&str], more: &[&str]| {
        let common = ["--data", &lab.data, "--out", &out];
        expect(&[&["compare"][..], specs, &common, &ON, more].concat(), 0).err
    };
    let read = |name: &str| -> Value { serde_json::from_slice(&fs::read(format!("{out}/{name}")).unwrap()).unwrap() };
    let whole = |run: &str| read(&format!("{run}/seed-1/result.json"));
    compare(&[&lab.spec], &[]);
    let (first, evaluated) = (read("compare.json"), whole("small"));
    // The same and more: the table only grows.
    compare(&[&lab.spec, &other], &[]);
    assert!(!Path::new(&out).join("compare-1.json").exists());
    let both = read("compare.json");
    // A quick look at one of them, with another evaluation.
    let told = compare(&[&lab.spec], &["--eval-batches", "1"]);
    assert!(told.contains("compare-1.md"), "{told}");
    assert_eq!((read("compare-1.json"), whole("small")), (both, evaluated));
    assert_eq!(read("compare.json")["eval_batches"], 1);
    assert_ne!(first, read("compare.json"));
    assert!(compare(&[&lab.spec], &["--eval-batches", "1"]).contains("finished before"));
    assert!(!Path::new(&out).join("compare-2.json").exists());

    let told = expect(&[&["report", &out, "--characters", "0"][..], &ON].concat(), 0).err;
    assert!(told.contains(&format!("wrote {out}/report.html")), "{told}");
    let page = fs::read_to_string(format!("{out}/report.html")).unwrap();
    assert!(page.contains("out/small/seed-1") && page.contains("out/other/seed-1"));
    let told = expect(&["explain", &out], 2).err;
    assert!(told.contains("comparison of several runs") && told.contains("moec report"), "{told}");
}

#[test]
fn runs_of_one_spec_can_be_told_apart() {
    let lab = Lab::new();
    let train = |more: &[&str], code| {
        let common = ["train", &lab.spec, "--data", &lab.data, "--steps", "1", "--sample", "0"];
        expect_in(lab.folder.path(), &[&common[..], &ON, more].concat(), code).err
    };
    let names = || {
        let entries = fs::read_dir(lab.at("runs")).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    // How long it trains and how it is told make no other run of it.
    train(&["-s", "train.evaluate.batches=1"], 0);
    train(&["-s", "train.optimizer.lr=3e-4"], 0);
    train(&["-s", "train.optimizer.lr=3e-4"], 0);
    let values = text(Path::new(&lab.at("wide.yaml")), "width: 32\n");
    train(&["--config", &values, "--seed", "2"], 0);
    let told = train(&["--name", "mine"], 0);
    assert!(told.contains("into runs/mine\n"), "{told}");
    let all = ["latest", "mine", "small", "small-lr-3e-4", "small-lr-3e-4-2", "small-width-32-seed-2"];
    assert_eq!(names(), all);
    // A run that is named without its folder, or as its spec.
    for name in ["mine", "small", "small.moe"] {
        let told = expect_in(lab.folder.path(), &["sample", name], 3).err;
        let run = name.trim_end_matches(".moe");
        assert!(told.contains(&format!("did you mean runs/{run}?")), "{told}");
    }
    let told = expect_in(lab.folder.path(), &["sample", "nobody"], 3).err;
    assert!(told.contains("runs/NAME"), "{told}");
    // A name is asked for once, and is no path.
    assert!(train(&["--name", "mine"], 1).contains("runs/mine"));
    for wrong in ["../x", "latest", ""] {
        assert!(train(&["--name", wrong], 2).contains("--name"), "{wrong}");
    }
    train(&["--name", "mine", "--out", "there"], 2);
    assert_eq!(names(), all);
}

/// A spec is written by hand: an output that is named like it would be lost work.
#[test]
fn no_output_takes_the_place_of_a_spec() {
    let lab = Lab::new();
    let (run, other) = (lab.at("run"), lab.at("other.moe"));
    lab.train(&run, &["--device", "interpreter", "--steps", "2"], 0);
    fs::write(&other, "// mine\n").unwrap();
    for command in [
        &["metrics", &run, "-o", &other][..],
        &["route", &run, "--text", "to be", "--device", "interpreter", "-o", &other],
        &["compile", &lab.spec, "--emit", "ir", "-o", &other],
        &["export", &run, "--force", "-o", &other],
    ] {
        let said = expect(command, 2).err;
        assert!(said.contains("it is a spec"), "{command:?}: {said}");
        assert_eq!(fs::read_to_string(&other).unwrap(), "// mine\n");
    }
    let table = lab.at("table.csv");
    assert!(expect(&["metrics", &run, "-o", &table], 0).err.contains("numbers to"));
}

#[test]
fn a_file_or_run_that_there_is_not_is_answered_with_the_one_that_was_meant() {
    let lab = Lab::new();
    let told = |arguments: &[&str], code| expect_in(lab.folder.path(), arguments, code).err;
    for name in ["small", "smal.moe", "Small"] {
        for command in ["train", "check", "compile", "compare"] {
            let told = told(&[command, name], 2);
            assert!(told.contains("did you mean small.moe?"), "{command} {name}: {told}");
        }
    }
    assert!(told(&["train", "other"], 2).contains("moec new"));
    fs::write(lab.at("words.txt"), "to be or not to be").unwrap();
    assert!(told(&["train", "small.moe", "--data", "wrods.txt"], 3).contains("did you mean words.txt?"));
    let train =
        ["train", "small.moe", "--data", &lab.data, "--steps", "1", "--sample", "0", "-s", "train.optimizer.lr=3e-4"];
    expect_in(lab.folder.path(), &[&train[..], &ON].concat(), 0);
    for (name, run) in [
        ("runs/latset", "runs/latest"),
        ("runs/small-lr", "runs/small-lr-3e-4"),
        ("small-lr-3e4", "runs/small-lr-3e-4"),
    ] {
        for command in ["sample", "metrics", "report", "eval"] {
            let told = told(&[command, name], 3);
            assert!(told.contains(&format!("did you mean {run}?")), "{command} {name}: {told}");
        }
    }
    assert!(told(&["explain", "runs/latset"], 3).contains("did you mean runs/latest?"));
    assert!(told(&["explain", "small.moe"], 2).contains("moec check small.moe"));
    assert!(told(&["explain", "small-lr-3e-4"], 2).contains("did you mean the run runs/small-lr-3e-4?"));
}

#[test]
fn names_are_explained_however_they_are_met() {
    let out = |name: &str| expect(&["explain", name], 0).out;
    assert_eq!((out("Switch"), out("ADAMW")), (out("switch"), out("adamw")));
    for (name, part) in [
        ("objective", "with the balance losses"),
        ("load_rows", "each expert"),
        ("validation_loss_nats", "val, a number of a training"),
        ("capacity", "bound on the tokens of an expert"),
        ("k", "noisy_top_k"),
        ("steps", "a setting of `train`"),
    ] {
        assert!(out(name).contains(part), "{name}: {}", out(name));
    }
}

#[test]
fn what_an_option_takes_is_said_in_words() {
    let lab = Lab::new();
    let told = |arguments: &[&str]| expect(arguments, 2).err;
    let train = |option: &[&str]| told(&[&["train", &lab.spec][..], option].concat());
    assert!(train(&["--steps", "-5"]).contains("a whole number, at least 1"));
    assert!(train(&["--seed", "abc"]).contains("invalid value 'abc' for '--seed <SEED>': it must be a whole number"));
    assert!(train(&["--seed", "-1"]).contains("it must not be negative"));
    assert!(train(&["--seed", "99999999999999999999"]).contains("too large"));
    assert!(told(&["sample", "x", "--temperature", "warm"]).contains("it must be a number"));
    assert!(told(&["sample", "x", "--length=-3"]).contains("it must not be negative"));
    assert!(told(&["metrics", "--csv", "x"]).contains("CSV already"));
    let quiet = told(&["sample", "--quiet", "x"]);
    assert!(quiet.contains("`moec sample` has no option --quiet") && quiet.contains("`moec train`"), "{quiet}");
    assert!(told(&["eval", "x", "-x"]).contains("moec eval --help"));
    assert!(train(&["--track", "mlflow=localhost:5000"]).contains("did you mean mlflow=http://localhost:5000?"));
    for told in [quiet, train(&["-x"]), train(&["--steps", "-5"])] {
        assert!(!told.contains("to pass '"), "{told}");
    }
}

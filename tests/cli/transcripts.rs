//! What the documents show of commands is what the commands print.
//!
//! A block `console` is a transcript: a command as a shell takes it behind `$ `, and below it what it prints on standard output
//! and error together; a line `...` stands for any lines. Those of a document run one after the other in one folder. Where a
//! clock or a training made the numbers, others of the same form will do, for another processor rounds otherwise; the readers'
//! text needs no wildcards for that, which is why this is no `trycmd`. Blocks `moe` are checked, and blocks `sh` are read as
//! command lines in `crates/moec/src/cli/args/tests.rs`.
//!
//! `UPDATE_TRANSCRIPTS=1 cargo test -p moec --test cli transcripts` writes what is printed here into transcripts that differ and
//! leave nothing out.

use super::{program, root};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A document, and what lies in the folder that its transcripts run in, made by these commands.
struct Document {
    path: &'static str,
    before: &'static [&'static str],
}

const DOCUMENTS: &[Document] = &[
    Document { path: "README.md", before: &[] },
    Document {
        path: "docs/reading-a-run.md",
        // On the interpreter, whose rounding is everywhere the same: another fault would be told in other words.
        before: &["moec train crowded.moe --device interpreter --quiet --sample 0"],
    },
    Document { path: "docs/comparing.md", before: &[] },
    Document { path: "docs/from-makemoe.md", before: &[] },
    Document { path: "docs/interchange.md", before: &[] },
    Document { path: "docs/json.md", before: &[] },
    Document { path: "docs/tracking.md", before: &[] },
    Document { path: "docs/merging.md", before: &[] },
    Document { path: "grammar/README.md", before: &[] },
    Document { path: "specs/README.md", before: &[] },
    Document { path: "examples/README.md", before: &[] },
    Document { path: "examples/router-plugin/README.md", before: &[] },
    Document { path: "benchmarks/README.md", before: &[] },
    Document { path: "build/wheel/README.md", before: &[] },
    Document { path: "editors/README.md", before: &[] },
    Document { path: "editors/vscode/README.md", before: &[] },
    Document { path: "CONTRIBUTING.md", before: &[] },
];

/// Transcripts that are not run: the command as it is shown, why, and a shorter one whose lines must have the forms of those
/// that are shown.
const NOT_RUN: &[(&str, &str, &str)] = &[(
    "moec train specs/noisy_top2.moe --data tinyshakespeare --out runs/shakespeare --progress plain",
    "ten minutes of training, on a text that is downloaded",
    "moec train specs/noisy_top2.moe --steps 20 -s width=32 -s train.evaluate.batches=1 --out runs/shakespeare --progress plain",
)];

/// Blocks of no language: how they begin, and what keeps them true if they are no commands at all.
const PICTURES: &[(&str, &str)] = &[
    ("bytes ─parse─▶", "the way through the compiler"),
    ("━━━━━━━━━━────", "the live view of a real training; what it can show is held by tests/snapshots/live.*"),
    ("mlflow does not know all of this run", "tests/cli/tracking.rs: a server that is gone"),
    ("noisy_top2 on cpu, into runs/noisy_top2", "tests/snapshots/live.80.snap, held below"),
];

/// Commands whose output depends on numbers that a training or a clock made.
const MEASURED: [&str; 7] =
    ["moec train", "moec compare", "moec route", "moec explain runs/", "moec sample", "moec eval", "moec bench"];

/// Files that transcripts name.
const FILES: &[(&str, &str)] = &[("bad.moe", BAD), ("crowded.moe", CROWDED)];

const BAD: &str = "// Two things are wrong here.
model bad {
  let width = 100

  context 32
  vocab   characters
  embed(width: width)

  repeat 4 {
    residual { layer_norm  attention(heads: 8) }
    residual {
      layer_norm
      moe(experts: 8 * mlp(hidden: 4 * width), route: noisy_topk(k: 2))
    }
  }

  layer_norm
  unembed
}
";

const CROWDED: &str = "// Nothing keeps the experts busy.
model crowded {
  let width = 16

  context 8
  vocab   characters

  embed(width: width)

  repeat 2 {
    residual { layer_norm  attention(heads: 4) }
    residual { layer_norm  moe(experts: 8 * mlp(hidden: 4 * width), route: softmax_top_k(k: 2)) }
  }

  layer_norm
  unembed
}

train {
  batch     4
  steps     100
  optimizer adamw(lr: 6e-2)
  evaluate(every: 25, batches: 20)
}
";

/// A block between fences: its language, the line before it, its first line's number, and its text.
struct Block {
    language: String,
    above: String,
    line: usize,
    text: String,
}

fn blocks(document: &str) -> Vec<Block> {
    let (mut blocks, mut open): (Vec<Block>, Option<Block>) = (Vec::new(), None);
    let mut above = "";
    for (number, line) in document.lines().enumerate() {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(language), None) => {
                let language = language.to_string();
                open = Some(Block { language, above: above.to_string(), line: number + 2, text: String::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => block.text += &format!("{line}\n"),
            (None, None) => above = line,
        }
    }
    assert!(open.is_none(), "a block does not end");
    blocks
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// A command with what is shown below it.
struct Transcript {
    command: String,
    shown: String,
}

fn transcripts(block: &Block) -> Vec<Transcript> {
    let mut all: Vec<Transcript> = Vec::new();
    for line in block.text.lines() {
        match (line.strip_prefix("$ "), all.last_mut()) {
            (Some(command), _) => all.push(Transcript { command: command.to_string(), shown: String::new() }),
            (None, Some(last)) => last.shown += &format!("{line}\n"),
            (None, None) => panic!("a transcript begins with a command, not with {line}"),
        }
    }
    // An empty line before the next command is no part of what is printed.
    all.iter_mut().for_each(|transcript| transcript.shown = without_empty_end(&transcript.shown));
    all
}

/// A text without empty lines at its end.
fn without_empty_end(text: &str) -> String {
    let text = text.trim_end();
    if text.is_empty() { String::new() } else { format!("{text}\n") }
}

/// What a line is but for its numbers, how wide and how full they make columns and bars, and which characters are quoted.
fn form(line: &str) -> String {
    // What else took its time depends on what else the machine does.
    let line = match (line.find(", of it "), line.rfind(" (")) {
        (Some(start), Some(end)) if start < end => format!("{}{}", &line[..start], &line[end..]),
        _ => line.to_string(),
    };
    let mut text = String::new();
    let mut rest = line.trim_end();
    while let Some(c) = rest.chars().next() {
        let number = |rest: &str| {
            let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let mut end = digits(rest);
            while let Some(more) = rest[end..].strip_prefix(['.', ',']).map(digits).filter(|n| *n > 0) {
                end += 1 + more;
            }
            match rest[end..].strip_prefix("e-").or(rest[end..].strip_prefix('e')).map(|e| (e, digits(e))) {
                Some((exponent, more)) if more > 0 => rest.len() - exponent.len() + more,
                _ => end,
            }
        };
        let is_bar = |c: char| "▁▂▃▄▅▆▇█·".contains(c);
        let taken = match c {
            '0'..='9' => {
                text.push('0');
                number(rest)
            }
            ' ' => {
                text.push(' ');
                rest.len() - rest.trim_start_matches(' ').len()
            }
            // The rule of a table is as wide as its numbers.
            '-' if rest.starts_with("---") => {
                text.push_str("---");
                rest.len() - rest.trim_start_matches('-').len()
            }
            c if is_bar(c) => {
                text.push('▄');
                rest.len() - rest.trim_start_matches(is_bar).len()
            }
            '\'' if rest[1..].chars().nth(1) == Some('\'') => {
                text.push_str("'_'");
                2 + rest[1..].chars().next().map_or(0, char::len_utf8)
            }
            c => {
                text.push(c);
                c.len_utf8()
            }
        };
        rest = &rest[taken..];
    }
    text.replace("0 h 0 min", "0 s").replace("0 min 0 s", "0 s")
}

/// Whether a text is what is shown, where `...` stands for any lines.
fn agrees(shown: &[String], printed: &[String]) -> bool {
    let Some(gap) = shown.iter().position(|line| line.trim() == "...") else { return shown == printed };
    let (before, after) = (&shown[..gap], &shown[gap + 1..]);
    printed.starts_with(before) && (gap..=printed.len()).any(|from| agrees(after, &printed[from..]))
}

/// A folder with what transcripts name.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["specs", "examples"] {
        std::os::unix::fs::symlink(root().join(name), folder.path().join(name)).unwrap();
    }
    for (name, content) in FILES {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

/// What a command prints, in a shell that finds the program.
fn printed(command: &str, folder: &Path) -> String {
    let moec = program();
    let mut path = vec![PathBuf::from(moec.get_program()).parent().unwrap().to_path_buf()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut shell = std::process::Command::new("sh");
    for (name, value) in moec.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.args(["-c", &format!("{{ {command}\n}} 2>&1")]).current_dir(folder).env_remove("COLUMNS");
    let output = shell.env("PATH", std::env::join_paths(path).unwrap()).output().unwrap();
    let text = without_empty_end(&String::from_utf8(output.stdout).unwrap());
    assert!(!text.contains("panicked") && !text.contains("a fault in moec"), "{command}: {text}");
    text
}

fn lines(text: &str, is_measured: bool) -> Vec<String> {
    text.lines().map(|line| if is_measured { form(line) } else { line.trim_end().to_string() }).collect()
}

#[test]
fn transcripts_are_what_commands_print() {
    let update = std::env::var_os("UPDATE_TRANSCRIPTS").is_some();
    let (mut seen, mut wrong) = (0, Vec::new());
    for document in DOCUMENTS {
        let content = read(document.path);
        let all = blocks(&content);
        let shown: Vec<&Block> = all.iter().filter(|block| block.language == "console").collect();
        if shown.is_empty() {
            continue;
        }
        let folder = folder();
        document.before.iter().for_each(|command| {
            printed(command, folder.path());
        });
        let mut updated = content.clone();
        for block in shown {
            for Transcript { command, shown } in transcripts(block) {
                seen += 1;
                let place = format!("{}:{}: $ {command}", document.path, block.line);
                if let Some((_, _, instead)) = NOT_RUN.iter().find(|(named, ..)| *named == command) {
                    let ran = printed(instead, folder.path()).replace("synthetic", "tinyshakespeare");
                    let forms: BTreeSet<String> = lines(&ran, true).into_iter().collect();
                    let told = shown.split("a sample:").next().unwrap_or_default().lines();
                    let others: Vec<&str> = told.filter(|l| *l != "..." && !forms.contains(&form(l))).collect();
                    if !others.is_empty() {
                        wrong.push(format!("{place}\nhas lines of no form that is printed: {others:#?}\n{ran}"));
                    }
                    continue;
                }
                let is_measured = MEASURED.iter().any(|start| command.starts_with(start));
                let ran = printed(&command, folder.path());
                if agrees(&lines(&shown, is_measured), &lines(&ran, is_measured)) {
                    continue;
                }
                if update && !shown.lines().any(|line| line.trim() == "...") {
                    let (was, is) = (format!("$ {command}\n{shown}"), format!("$ {command}\n{ran}"));
                    assert_eq!(updated.matches(&was).count(), 1, "{place}");
                    updated = updated.replace(&was, &is);
                } else {
                    wrong.push(format!("{place}\n--- shown\n{shown}--- printed\n{ran}"));
                }
            }
        }
        if updated != content {
            fs::write(root().join(document.path), updated).unwrap();
        }
    }
    assert!(seen > 7, "only {seen} transcripts were found");
    assert!(wrong.is_empty(), "the head of tests/cli/transcripts.rs says how to update\n{}", wrong.join("\n\n"));
}

#[test]
fn every_block_has_a_language_or_a_reason() {
    let mut documents: Vec<String> = DOCUMENTS.iter().map(|document| document.path.to_string()).collect();
    for folder in ["docs", "."] {
        let entries = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().file_name());
        let names =
            entries.map(|name| format!("{folder}/{}", name.to_string_lossy()).trim_start_matches("./").to_string());
        documents.extend(names.filter(|name| name.ends_with(".md")));
    }
    documents.sort();
    documents.dedup();
    for path in &documents {
        for block in blocks(&read(path)) {
            let place = format!("{path}:{}", block.line);
            match block.language.as_str() {
                "console" => {
                    assert!(DOCUMENTS.iter().any(|d| d.path == path), "{place}: a transcript that nothing runs");
                    transcripts(&block);
                }
                "sh" => assert!(!block.text.contains("$ "), "{place}: what prints something is a `console`"),
                "moe" | "rust" | "toml" | "yaml" | "lua" | "elisp" | "python" => {}
                "" if block.above.starts_with("<!-- keys: ") => {}
                "" => {
                    let is_known = PICTURES.iter().any(|(start, _)| block.text.starts_with(start));
                    assert!(is_known, "{place}: a block of no language and without a reason in PICTURES");
                }
                other => panic!("{place}: nothing knows what `{other}` is"),
            }
        }
    }
    // Nothing is excused that is not there.
    let all: String = documents.iter().map(|path| read(path)).collect();
    NOT_RUN.iter().for_each(|(command, ..)| assert!(all.contains(&format!("\n$ {command}\n")), "{command}"));
    PICTURES.iter().for_each(|(start, _)| assert!(all.contains(&format!("\n```\n{start}")), "{start}"));
}

#[test]
fn the_live_view_that_is_explained_is_the_one_of_the_snapshot() {
    let page = read("docs/reading-a-run.md");
    let all = blocks(&page);
    let shown = all.iter().find(|block| block.text.starts_with("noisy_top2 on cpu")).unwrap();
    let snapshot = read("tests/snapshots/live.80.snap");
    let mut drawn = snapshot.lines();
    for line in shown.text.lines() {
        assert!(drawn.any(|other| other.trim_end() == line.trim_end()), "not in the snapshot: {line}");
    }
}

#[test]
fn specs_in_documents_are_sound() {
    let folder = folder();
    let mut seen = 0;
    for document in DOCUMENTS {
        for block in blocks(&read(document.path)).iter().filter(|block| block.language == "moe") {
            seen += 1;
            let is_file = block.text.lines().any(|line| line.starts_with("model ") || line.starts_with("router "));
            let text = if is_file {
                block.text.clone()
            } else {
                format!(
                    "block expert {{ mlp(hidden: 512) }}\nmodel m {{\n  context 32\n  vocab characters\n  embed(width: 128)\n{}  \
                     layer_norm\n  unembed\n}}\n",
                    block.text
                )
            };
            let file = folder.path().join("block.moe");
            fs::write(&file, text).unwrap();
            let said = printed("moec check block.moe", folder.path());
            assert!(said.contains("is sound"), "{}:{}\n{said}", document.path, block.line);
        }
    }
    assert!(seen >= 7, "only {seen} blocks were found");
}

#[test]
fn what_the_readme_lets_one_save_works() {
    let folder = folder();
    let readme = read("README.md");
    let all = blocks(&readme);
    let block = |language: &str, start: &str| {
        &all.iter().find(|block| block.language == language && block.text.starts_with(start)).unwrap().text
    };
    fs::write(folder.path().join("my_first.moe"), block("moe", "model my_first")).unwrap();
    fs::write(folder.path().join("fast.yaml"), block("yaml", "width: 128")).unwrap();
    let config = "moec config my_first.moe --config fast.yaml -s width=128 -s train.optimizer.lr=3e-4 --show-origin";
    let said = printed(config, folder.path());
    for (value, origin) in [("200", "fast.yaml"), ("3e-4", "-s"), ("128", "-s")] {
        assert!(said.lines().any(|line| line.contains(value) && line.contains(origin)), "{value}: {said}");
    }
    let compiled = printed("moec compile my_first.moe --config fast.yaml", folder.path());
    assert!(compiled.contains("my_first (my_first.moe)"), "{compiled}");
}

#[test]
fn numbers_are_compared_by_form_where_a_training_made_them() {
    assert_eq!(
        form("step 30/60  loss 2.9961  40 ms/step  3,239 tokens/s"),
        form("step  1/2 loss 1e-3 0.4 ms/step 1,003,239 tokens/s")
    );
    assert_eq!(form("about 1 min 20 s left"), form("about 2 s left"));
    assert_eq!(form("blocks.0.moe  ▄▆▄▄      1.27"), form("blocks.1.moe ▁▁█▄ 12.7"));
    assert_eq!(form("  0   25.9 %  'e'  2,096"), form("  1   2.9 %  '\u{e4}'  2,0"));
    assert_ne!(form("idle 0  balance 1.09"), form("idle 0  balanced 1.09"));
    let of = |text: &str| lines(text, false);
    assert!(agrees(&of("a\n...\nd\n"), &of("a\nb\nc\nd\n")) && agrees(&of("a\n...\n"), &of("a\n")));
    assert!(!agrees(&of("a\n...\nd\n"), &of("a\nb\n")) && !agrees(&of("a\n"), &of("a\nb\n")));
}

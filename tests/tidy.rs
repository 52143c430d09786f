//! House rules that rustc does not check.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn files_below(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() && !path.ends_with("target") {
            files_below(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

fn rust_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for folder in ["crates", "tests", "examples", "build"] {
        files_below(&root().join(folder), "rs", &mut files);
    }
    assert!(files.len() > 40, "the walk found only {} files", files.len());
    files
}

#[test]
fn every_module_says_what_it_is() {
    for path in rust_files() {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//!"), "{} does not start with a `//!` header", path.display());
    }
}

#[test]
fn no_file_name_says_nothing() {
    for path in rust_files() {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let empty = ["base", "common", "helper", "helpers", "misc", "util", "utils"];
        assert!(!empty.contains(&stem.as_str()), "{} has a name that says nothing", path.display());
    }
}

/// Which of our crates each crate may use.
fn allowed() -> BTreeMap<&'static str, Vec<&'static str>> {
    let all = vec![
        "moec-syntax",
        "moec-ir",
        "moec-model",
        "moec-plan",
        "moec-kernels",
        "moec-runtime",
        "moec-language-server",
    ];
    BTreeMap::from([
        ("moec-syntax", vec![]),
        ("moec-ir", vec![]),
        ("moec-model", vec!["moec-syntax", "moec-ir", "moec-plan"]),
        ("moec-plan", vec!["moec-ir"]),
        ("moec-kernels", vec!["moec-plan", "moec-ir"]),
        ("moec-runtime", vec!["moec-plan", "moec-ir"]),
        ("moec-language-server", vec!["moec-syntax", "moec-model"]),
        ("moec", all.clone()),
        ("moec-tests", [all, vec!["moec"]].concat()),
    ])
}

#[test]
fn crates_use_each_other_in_one_direction() {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let architecture = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let allowed = allowed();
    let packages = metadata["packages"].as_array().unwrap();
    assert_eq!(packages.len(), allowed.len(), "eight crates and the tests");
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let may = allowed.get(name).unwrap_or_else(|| panic!("{name} is not in the table of crates"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let uses = dependency["name"].as_str().unwrap();
            // Development dependencies may look at lower crates only, too.
            assert!(!allowed.contains_key(uses) || may.contains(&uses) || uses == name, "{name} must not use {uses}");
        }
        if name != "moec-tests" {
            let sentence = package["description"].as_str().unwrap();
            let row = format!("| `{name}` | {sentence} |");
            assert!(architecture.contains(&row), "ARCHITECTURE.md has no row `{row}`");
        }
    }
}

#[test]
fn every_message_code_has_a_golden_case() {
    let mut snapshots = Vec::new();
    for folder in ["crates", "tests"] {
        files_below(&root().join(folder), "snap", &mut snapshots);
    }
    let text: String = snapshots.iter().map(|p| std::fs::read_to_string(p).unwrap()).collect();
    let missing: Vec<&str> =
        moec_syntax::Code::ALL.iter().map(|c| c.number()).filter(|n| !text.contains(&format!("[{n}]"))).collect();
    assert!(missing.is_empty(), "codes without a snapshot: {missing:?}");
}

#[test]
fn every_expectation_lies_beside_its_input() {
    let mut snapshots = Vec::new();
    for folder in ["autodiff", "check", "opt", "syntax"] {
        files_below(&root().join("tests").join(folder), "snap", &mut snapshots);
    }
    assert!(snapshots.len() > 100, "the walk found only {}", snapshots.len());
    for path in snapshots {
        assert!(path.with_extension("").is_file(), "{} expects something of no file", path.display());
    }
}

#[test]
fn no_snapshot_waits_for_review() {
    let mut waiting = Vec::new();
    for folder in ["crates", "tests"] {
        files_below(&root().join(folder), "new", &mut waiting);
    }
    assert!(waiting.is_empty(), "unreviewed snapshots: {waiting:?}");
}

#[test]
fn the_readme_shows_the_example() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let shown = format!("```rust\n{}```", read("crates/moec/examples/hello.rs"));
    assert!(read("README.md").contains(&shown), "README.md shows another text than crates/moec/examples/hello.rs");
}

/// The library must not know who uses it: what only the command line needs stays below `cli`.
#[test]
fn the_command_line_leaks_nothing_into_the_library() {
    let library = root().join("crates/moec/src");
    let mut files = Vec::new();
    files_below(&library, "rs", &mut files);
    let mut seen = 0;
    for path in files.iter().filter(|p| !p.starts_with(library.join("cli")) && !p.ends_with("cli.rs")) {
        let text = std::fs::read_to_string(path).unwrap();
        for word in
            ["crate::cli", "clap", "ureq", "indicatif", "ratatui", "rustix", "signal_hook", "stderr", "println!"]
        {
            assert!(!text.contains(word), "{} speaks of {word}", path.display());
        }
        seen += 1;
    }
    assert!(seen > 10, "the walk found only {seen} files");
}

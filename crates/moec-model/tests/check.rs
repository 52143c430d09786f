//! Semantic diagnostics: one file per case in `tests/check`, its messages as the snapshot beside it.
//!
//! A first line `// overrides: a=1 b=2` gives overrides.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;

use moec_model::{CheckOptions, Checked, Registry, check};
use moec_syntax::{Code, Place, SourceFile, parse};

fn run(name: &str, text: &str) -> (SourceFile, Checked) {
    let first = text.lines().next().unwrap_or("");
    let overrides = first.strip_prefix("// overrides: ").unwrap_or("").split_whitespace();
    let source = SourceFile::new(name, text).with_overrides(&overrides.collect::<Vec<_>>());
    let file = parse(&source).unwrap_or_else(|faults| {
        let shown: Vec<String> = faults.iter().map(|fault| fault.render(&source, false)).collect();
        panic!("{name} is not syntax:\n{}", shown.join("\n"))
    });
    let checked = check(&source, &file, &Registry::with_builtins(), &CheckOptions::default());
    (source, checked)
}

#[test]
fn every_case_is_explained() {
    insta::glob!("../../../tests/check", "*.moe", |path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path).unwrap();
        let (source, checked) = run(&name, &text);
        let shown: Vec<String> = checked.diagnostics.iter().map(|d| d.render(&source, false)).collect();
        assert_eq!(checked.model.is_none(), checked.has_errors(), "{name}");
        let verdict = if checked.has_errors() { "refused" } else { "accepted" };
        // The expectation lies beside its input.
        insta::with_settings!({ prepend_module_to_snapshot => false, snapshot_path => path.parent().unwrap(), snapshot_suffix => "" }, {
            insta::assert_snapshot!(name, format!("{}\n\n{verdict}", shown.join("\n\n")));
        });
    });
}

/// A file named after a code reports that code, and every code that checking can report has a file.
#[test]
fn every_code_has_a_case() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/check");
    let mut seen = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "moe") {
            continue;
        }
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let (_, checked) = run(&name, &std::fs::read_to_string(&path).unwrap());
        let codes: BTreeSet<Code> = checked.diagnostics.iter().map(|d| d.code).collect();
        if let Ok(code) = name.split('_').next().unwrap().parse::<Code>() {
            assert!(codes.contains(&code), "{name} reports {codes:?}");
        }
        seen.extend(codes);
    }
    // The others are shown by the examples of their explanations; syntax comes before checking; building, what is frozen of
    // the tensors that it makes, and what other programs compute come after it.
    let elsewhere = |code: &Code| code.place() != Place::Nowhere || code.number().starts_with("E01");
    let later = |code: &Code| matches!(code, Code::CannotBuild | Code::NamedTensors | Code::NoCounterpart);
    let unseen: Vec<&Code> =
        Code::ALL.iter().filter(|code| !elsewhere(code) && !later(code) && !seen.contains(code)).collect();
    assert!(unseen.is_empty(), "no case for {unseen:?}");
}

#[test]
fn lookahead_can_be_allowed() {
    let text = "model m { context 4 vocab 5 embed(width: 4) moe(experts: 2 * mlp(hidden: 4), route: expert_choice, \
                balance: [switch], allow: lookahead) unembed }";
    let (_, checked) = run("allowed", text);
    assert_eq!(checked.diagnostics, []);
    assert_eq!(checked.model.unwrap().causality, moec_model::Causality::LooksAhead);
}

/// Whoever takes over what is proposed has that fault no more, and none in what was proposed.
#[test]
fn what_is_proposed_is_right() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/check");
    let (mut tried, mut wrong) = (0, Vec::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "moe") {
            continue;
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let (source, checked) = run(&name, &text);
        let count = |checked: &Checked, of: &moec_syntax::Diagnostic| {
            checked.diagnostics.iter().filter(|d| (d.code, &d.message) == (of.code, &of.message)).count()
        };
        for diagnostic in &checked.diagnostics {
            // Those of overrides change the command line.
            for patch in diagnostic.patches.iter().filter(|patch| patch.span.file() == source.id()) {
                let range = patch.span.range();
                let mut patched = text.clone();
                patched.replace_range(range.clone(), &patch.replacement);
                let changed = range.start..range.start + patch.replacement.len();
                let (_, again) = run(&name, &patched);
                if count(&again, diagnostic) >= count(&checked, diagnostic) {
                    wrong.push(format!("{name}: {diagnostic} is still there"));
                }
                let within = |d: &&moec_syntax::Diagnostic| {
                    d.span().is_some_and(|span| span.start() < changed.end && span.end() > changed.start)
                };
                // An argument that is named is of one layer with what is around it.
                let mut faults = again.diagnostics.iter().filter(|d| d.is_error() && !patch.replacement.is_empty());
                if let Some(fault) = faults.find(within) {
                    wrong.push(format!("{name}: `{}` leads from `{diagnostic}` to `{fault}`", patch.replacement));
                }
                tried += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(tried > 30, "only {tried} proposals were tried");
}

//! The examples in the explanations of message codes: the wrong one has its fault and no other, the right one has none.
//! The messages about the wrong ones are a snapshot.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fmt::Write as _;

use moec_model::{CheckOptions, Registry, check};
use moec_syntax::{Code, Diagnostic, Place, SourceFile, parse};

/// The source that an example is part of.
fn source(place: Place, example: &str) -> SourceFile {
    // Whether the example has a line of its own that begins so.
    let has = |start: &str| example.lines().any(|line| line.split([' ', '(']).next() == Some(start));
    let unless = |start: &str, line: &str| if has(start) { String::new() } else { format!("{line}\n") };
    let body = |inner: &str| {
        let context = unless("context", "  context 32") + &unless("vocab", "  vocab characters");
        let embed = unless("embed", "  embed(width: 128)");
        format!("model m {{\n{context}{embed}{inner}\n{}}}\n", unless("unembed", "  unembed"))
    };
    let text = match place {
        Place::File => example.to_owned(),
        Place::Beside => format!("{example}\n{}", body("")),
        Place::Body => body(example),
        Place::Train => format!("train {{\n{example}\n}}\n{}", body("")),
        Place::Router => {
            let end = unless("return", "return token_choice(experts: chosen, weights: softmax(top))");
            // Only what is used, since the rest would be warned about.
            let mut inner = format!("{example}\n{end}");
            for (name, line) in
                [("chosen", "let top, chosen = top_k(scores, k)\n"), ("scores", "let scores = linear(x, experts)\n")]
            {
                if inner.contains(name) && !inner.contains(line.trim_end()) && !inner.contains(&format!("{name} = ")) {
                    inner.insert_str(0, line);
                }
            }
            let k = if inner.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "k") {
                "k: int"
            } else {
                ""
            };
            format!("router r({k}) {{\n{inner}}}\n{}", body(""))
        }
        Place::Command | Place::Nowhere => body("let width = 64\nmlp(hidden: width)"),
    };
    let overrides: Vec<&str> =
        if place == Place::Command { example.split(" -s ").skip(1).collect() } else { Vec::new() };
    let others = |path: &str| match path {
        "routers.moe" | "shared.moe" => Ok(Vec::new()),
        _ => Err("there is no such file".to_owned()),
    };
    SourceFile::new("example.moe", text).with_imports(others).with_overrides(&overrides)
}

fn faults(source: &SourceFile) -> Vec<Diagnostic> {
    match parse(source) {
        Ok(file) => check(source, &file, &Registry::with_builtins(), &CheckOptions::default()).diagnostics,
        Err(faults) => faults,
    }
}

#[test]
fn wrong_examples_have_their_fault_and_right_ones_none() {
    let mut shown = String::new();
    let mut rotten = String::new();
    for &code in Code::ALL.iter().filter(|code| code.place() != Place::Nowhere) {
        let [wrong, right] = code.examples().unwrap();
        let wrong = source(code.place(), &wrong);
        let found = faults(&wrong);
        if found.iter().map(|fault| fault.code).collect::<BTreeSet<_>>() != BTreeSet::from([code]) {
            let found: Vec<String> = found.iter().map(|fault| fault.render_short(&wrong)).collect();
            writeln!(rotten, "{code}, wrong: {found:?}\n{}", wrong.text()).unwrap();
        }
        let right = source(code.place(), &right);
        for fault in faults(&right) {
            writeln!(rotten, "{code}, right: {}\n{}", fault.render_short(&right), right.text()).unwrap();
        }
        for fault in found {
            writeln!(shown, "{}\n", fault.render(&wrong, false)).unwrap();
        }
    }
    assert!(rotten.is_empty(), "{rotten}");
    insta::assert_snapshot!(shown);
}

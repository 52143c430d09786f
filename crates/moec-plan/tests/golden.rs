//! Every graph in `tests/autodiff` and `tests/opt/PASS` with what becomes of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helper functions too")]

use moec_ir::{Graph, Stage, parse, print, verify};
use moec_plan::{OptimizeOptions, PASSES, Wrt, differentiate, optimize};
use std::path::Path;

fn read(path: &Path) -> (String, Graph) {
    let text = std::fs::read_to_string(path).unwrap();
    let graph = parse(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (text, graph)
}

/// The expectation lies beside its input.
fn snapshot(path: &Path, text: &str, result: &Graph) {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    insta::with_settings!({ description => text, omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => path.parent().unwrap(), snapshot_suffix => "" }, {
        insta::assert_snapshot!(name, print(result));
    });
}

#[test]
fn autodiff() {
    insta::glob!("../../../tests/autodiff", "*.ir", |path| {
        let (text, graph) = read(path);
        let graph = differentiate(&graph, "objective", &Wrt::Parameters).unwrap();
        verify(&graph, Stage::Training).unwrap();
        snapshot(path, &text, &graph);
    });
}

#[test]
fn opt() {
    insta::glob!("../../../tests/opt", "*/*.ir", |path| {
        let (text, graph) = read(path);
        let pass = path.parent().and_then(Path::file_name).unwrap().to_string_lossy().into_owned();
        assert!(PASSES.iter().any(|p| p.name == pass), "tests/opt/{pass} is no pass");
        let options = OptimizeOptions { after: Some(pass), ..OptimizeOptions::default() };
        let (optimized, _) = optimize(&graph, &options).unwrap();
        if text.starts_with("// Must not change") {
            assert_eq!(print(&optimized), print(&graph), "{}", path.display());
        }
        snapshot(path, &text, &optimized);
    });
}

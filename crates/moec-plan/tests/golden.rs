//! Every graph in `tests/autodiff` and `tests/opt/NAME` (of a pass or a fusion) with what becomes of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helper functions too")]

use moec_ir::{Graph, Stage, parse, print, verify};
use moec_plan::{ClusterOptions, Clusters, FUSIONS, OptimizeOptions, PASSES, Wrt, cluster, differentiate, optimize};
use std::path::Path;

fn read(path: &Path) -> (String, Graph) {
    let text = std::fs::read_to_string(path).unwrap();
    let graph = parse(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (text, graph)
}

/// The expectation lies beside its input.
fn snapshot(path: &Path, text: &str, result: &str) {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    insta::with_settings!({ description => text, omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => path.parent().unwrap(), snapshot_suffix => "" }, {
        insta::assert_snapshot!(name, result);
    });
}

#[test]
fn autodiff() {
    insta::glob!("../../../tests/autodiff", "*.ir", |path| {
        let (text, graph) = read(path);
        let graph = differentiate(&graph, "objective", &Wrt::Parameters).unwrap();
        verify(&graph, Stage::Training).unwrap();
        snapshot(path, &text, &print(&graph));
    });
}

#[test]
fn opt() {
    insta::glob!("../../../tests/opt", "*/*.ir", |path| {
        let (text, graph) = read(path);
        let pass = path.parent().and_then(Path::file_name).unwrap().to_string_lossy().into_owned();
        let unchanged = text.starts_with("// Must not change");
        let found = if FUSIONS.iter().any(|f| f.name == pass) {
            let (graph, _) = optimize(&graph, &OptimizeOptions::default()).unwrap();
            let (clusters, _) = cluster(&graph, &ClusterOptions { after: Some(pass), ..Default::default() }).unwrap();
            if unchanged {
                assert_eq!(clusters, Clusters::single(&graph), "{}", path.display());
            }
            clusters.to_string()
        } else {
            assert!(PASSES.iter().any(|p| p.name == pass), "tests/opt/{pass} is no pass");
            let (optimized, _) =
                optimize(&graph, &OptimizeOptions { after: Some(pass), ..Default::default() }).unwrap();
            if unchanged {
                assert_eq!(print(&optimized), print(&graph), "{}", path.display());
            }
            print(&optimized)
        };
        snapshot(path, &text, &found);
    });
}

//! Every stage of every spec as text, under snapshot: a change of the compiler is read here before it is accepted.

use moec::pipeline::{self, Checked, CompileOptions, Function};
use moec::resolved;
use moec_model::{NoisePolicy, Registry};
use moec_syntax::SourceFile;
use std::path::Path;

/// Distinct characters of Tiny Shakespeare, so that sizes are makeMoE's.
const VOCAB: usize = 65;

fn source(path: &Path) -> SourceFile {
    SourceFile::new(path.file_name().unwrap().to_string_lossy(), std::fs::read_to_string(path).unwrap())
}

fn checked(source: &SourceFile) -> Checked {
    pipeline::check(source, &Registry::with_builtins(), None, &[])
        .unwrap_or_else(|d| panic!("{}", d.iter().map(|d| d.render(source, false)).collect::<String>()))
}

fn snapshot(stage: &str, source: &SourceFile, text: &str) {
    let name = source.name().trim_end_matches(".moe").to_string();
    insta::with_settings!({ description => format!("specs/{}", source.name()), omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!(format!("{name}.{stage}"), text);
    });
}

#[test]
fn specs_at_every_stage() {
    let mut seen = 0;
    let mut paths: Vec<_> = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../specs"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "moe"))
        .collect();
    paths.sort();
    for path in paths {
        let source = source(&path);
        let Checked { model, recipe, warnings } = checked(&source);
        assert!(warnings.is_empty(), "{}", source.name());
        snapshot("model", &source, &resolved::yaml(&model, &recipe));
        let lower = |function| pipeline::lower(&model, &recipe, VOCAB, function, NoisePolicy::Generated).unwrap().graph;
        snapshot("forward", &source, &moec_ir::print(&lower(Function::Evaluate)));
        let compiled = pipeline::compile(&model, &recipe, VOCAB, &CompileOptions::default()).unwrap();
        let optimized = |function| &compiled.graphs.iter().find(|(f, _)| *f == function).unwrap().1;
        snapshot("logits.optimized", &source, &moec_ir::print(optimized(Function::Logits)));
        // The whole training step of the small one: the others repeat its blocks.
        if source.name() == "tiny.moe" {
            let file = moec_syntax::parse(&source).unwrap();
            snapshot("ast", &source, &format!("{file:#?}"));
            let forward = lower(Function::TrainStep);
            let trained = pipeline::complete(&forward, &recipe, Function::TrainStep).unwrap();
            snapshot("train_step.differentiated", &source, &moec_ir::print(&trained));
            snapshot("train_step.optimized", &source, &moec_ir::print(optimized(Function::TrainStep)));
            let listing = moec_plan::listing(&compiled.program);
            snapshot("plan", &source, &serde_json::to_string_pretty(&listing).unwrap());
        }
        seen += 1;
    }
    assert!(seen >= 4);
}

#[test]
fn makemoe_has_its_parameters() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../specs/noisy_top2.moe");
    let Checked { model, recipe, .. } = checked(&source(&path));
    let lowered = pipeline::lower(&model, &recipe, VOCAB, Function::TrainStep, NoisePolicy::Generated).unwrap();
    assert_eq!(lowered.parameter_count(), 8_996_545);
}

//! Every stage of every spec as text, under snapshot: a change of the compiler is read here before it is accepted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use moec::pipeline::{self, Checked, CompileOptions, Function};
use moec_model::{
    Arguments, Interval, NoisePolicy, ParameterSpec, ParameterType, Registry, Routing, RoutingContext, RoutingStrategy,
    Traits, library,
};
use moec_syntax::SourceFile;
use std::path::Path;

/// Distinct characters of Tiny Shakespeare, so that sizes are makeMoE's.
const VOCAB: usize = 65;

fn source(path: &Path) -> SourceFile {
    let name = path.file_name().unwrap().to_string_lossy();
    library::imported_into(SourceFile::new(name, std::fs::read_to_string(path).unwrap()))
}

fn checked(source: &SourceFile) -> Checked {
    pipeline::check(source, &Registry::with_builtins(), None)
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
        let checked = checked(&source);
        snapshot("model", &source, &checked.to_yaml());
        let Checked { model, recipe, warnings, .. } = checked;
        assert!(warnings.is_empty(), "{}", source.name());
        let lower = |function| pipeline::lower(&model, &recipe, VOCAB, function, NoisePolicy::Generated).unwrap();
        snapshot("forward", &source, &moec_ir::print(&lower(Function::Evaluate).graph));
        let compiled = pipeline::compile(&model, &recipe, VOCAB, &CompileOptions::default()).unwrap();
        for (_, clusters) in &compiled.clusters {
            let text = moec_ir::print(clusters.graph());
            assert_eq!(moec_ir::print(&moec_ir::parse(&text).unwrap()), text, "{}", source.name());
        }
        let clusters = |function| {
            compiled.clusters.iter().find(|(f, _)| *f == function).map(|(_, clusters)| clusters.to_string()).unwrap()
        };
        snapshot("logits.clusters", &source, &clusters(Function::Logits));
        // The whole training step of the small one: the others repeat its blocks.
        if source.name() == "tiny.moe" {
            let file = moec_syntax::parse(&source).unwrap();
            snapshot("ast", &source, &format!("{file:#?}"));
            let forward = lower(Function::TrainStep);
            let trained = pipeline::complete(&forward, &recipe, Function::TrainStep).unwrap();
            snapshot("train_step.differentiated", &source, &moec_ir::print(&trained));
            for function in [Function::Next, Function::Decode, Function::TrainStep] {
                snapshot(&format!("{}.clusters", function.name()), &source, &clusters(function));
            }
        }
        seen += 1;
    }
    assert!(seen >= 4);
}

/// What comments and tables say of the size of models, for the 65 characters of Tiny Shakespeare.
#[test]
fn models_have_the_parameters_that_are_said() {
    let parameters = |name: &str, overrides: &[&str]| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../specs").join(name);
        let Checked { model, recipe, .. } = checked(&source(&path).with_overrides(overrides));
        let lowered = pipeline::lower(&model, &recipe, VOCAB, Function::TrainStep, NoisePolicy::Generated).unwrap();
        lowered.parameter_count()
    };
    assert_eq!(parameters("noisy_top2.moe", &[]), 8_996_545);
    assert_eq!(parameters("big/tinymoe.moe", &[]), 143_271_489);
    assert_eq!(parameters("big/tinymoe.moe", &["experts=16", "chosen=2"]), 277_948_481);
    assert_eq!(parameters("big/tinymoe.moe", &["experts=16", "chosen=2", "layers=16"]), 139_056_705);
    assert_eq!(parameters("big/wide.moe", &[]), 234_098_945);
    assert_eq!(parameters("big/small_experts.moe", &["experts=256"]), 34_762_305);
}

/// A routing strategy that builds what does not fit: scores of one expert too many.
struct Broken;

impl RoutingStrategy for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn summary(&self) -> &'static str {
        "builds a graph that does not fit together"
    }

    fn parameters(&self) -> &[ParameterSpec] {
        static PARAMETERS: [ParameterSpec; 1] =
            [ParameterSpec::required("k", ParameterType::Int(Interval::at_least(1.0)), "experts per token")];
        &PARAMETERS
    }

    fn references(&self) -> &[&str] {
        &[]
    }

    fn equations(&self) -> &str {
        ""
    }

    fn traits(&self, _: &Arguments) -> Traits {
        Traits::default()
    }

    fn lower(&self, context: &mut RoutingContext<'_>, arguments: &Arguments) -> Routing {
        let tokens = context.tokens();
        let scores = context.linear("router", tokens, context.experts() + 1, false);
        let wrong = context.linear("wrong", tokens, context.experts(), false);
        let b = context.builder();
        let sum = b.matmul(scores, wrong);
        let (weights, experts) = b.top_k(sum, arguments.size("k"));
        Routing::token_choice(experts, weights)
    }
}

/// What each strategy builds: the training pass of one narrow block of its spec.
#[test]
fn strategies_as_graphs() {
    let mut seen = 0;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../specs/routers");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "moe"));
    paths.sort();
    for path in paths {
        let source = source(&path).with_overrides(&["width=16", "depth=1", "context=4", "train.batch=2"]);
        let checked = pipeline::check(&source, &Registry::with_builtins(), None).unwrap();
        let noise = NoisePolicy::Generated;
        let lowered = pipeline::lower(&checked.model, &checked.recipe, 9, Function::TrainStep, noise).unwrap();
        let name = format!("routers.{}", source.name().trim_end_matches(".moe"));
        insta::with_settings!({ description => format!("specs/routers/{}", source.name()), omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!(name, moec_ir::print(&lowered.graph));
        });
        seen += 1;
    }
    assert!(seen >= 19);
}

#[test]
fn messages_that_no_text_can_cause() {
    let mut rendered = Vec::new();
    for bytes in [vec![b'/'; moec_syntax::MAX_SOURCE_BYTES + 1], b"model m {\n  context \xff\n}".to_vec()] {
        let diagnostic = SourceFile::from_bytes("file.moe", &bytes).unwrap_err();
        rendered.push(diagnostic.render(&SourceFile::new("file.moe", ""), false));
    }
    let text = "model m {
  context 4
  vocab 9
  embed(width: 8, positions: none)
  moe(experts: 3 * mlp(hidden: 8), route: broken(k: 2))
  unembed
}
";
    let source = SourceFile::new("plugin.moe", text);
    let registry = Registry::with_builtins().router(Broken);
    let checked = pipeline::check(&source, &registry, None).unwrap();
    let error = pipeline::compile(&checked.model, &checked.recipe, 9, &CompileOptions::default()).unwrap_err();
    rendered.push(error.diagnostic().render(&source, false));
    // Two files that import each other.
    let main = "import \"parts.moe\"\n";
    let source = SourceFile::new("main.moe", main).with_imports(|_| Ok(b"import \"main.moe\"\n".to_vec()));
    let found = moec_syntax::parse(&source).unwrap_err();
    rendered.extend(found.iter().map(|d| d.render(&source, false)));
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("messages", rendered.join("\n\n"));
    });
}

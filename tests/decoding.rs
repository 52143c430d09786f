//! Writing texts on the CPU's kernels, for every spec: one token at a time gives what the whole window gives, and texts
//! that are written together are what they would be alone, to the bit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use moec::pipeline::{self, Checked, CompileOptions, Compiled, Function};
use moec_ir::{StateRole, Tensor, WeightFormat, random};
use moec_kernels::{CubeBackend, Device, DeviceProfile};
use moec_model::{Registry, TrainingText, library};
use moec_plan::{Backend, Interpreter, LaunchLimits, Session, StateKind};
use moec_runtime::Executable;
use moec_syntax::SourceFile;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const VOCAB: usize = 11;
const TIME: usize = 7;

/// Every spec, small.
fn specs() -> Vec<(String, Checked)> {
    let files = |folder: PathBuf| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
        entries.filter(|p| p.extension().is_some_and(|e| e == "moe")).collect()
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../specs");
    let mut paths = [files(folder.clone()), files(folder.join("routers"))].concat();
    paths.sort();
    let read = |path: &PathBuf| {
        let mut text = std::fs::read_to_string(path).unwrap();
        if path.ends_with("softmax_top_k.moe") {
            text = text.replace("attention(heads: 8,", "attention(heads: 4, kv_heads: 2,");
            assert!(text.contains("kv_heads"));
        }
        if path.ends_with("cosine.moe") {
            text = text.replace("attention(heads: 8", "attention(window: 3, sink: true, heads: 4");
            assert!(text.contains("window: 3"));
        }
        let mut set = vec!["width=24".to_string(), format!("context={TIME}"), "train.batch=1".to_string()];
        set.extend(text.contains("let depth").then(|| "depth=2".to_string()));
        let name = path.file_stem().unwrap().to_string_lossy().to_string();
        let source = library::imported_into(SourceFile::new(&name, text)).with_overrides(&set);
        let checked = pipeline::check(&source, &Registry::with_builtins(), None)
            .unwrap_or_else(|d| panic!("{}", d.iter().map(|d| d.render(&source, false)).collect::<String>()));
        (name, checked)
    };
    paths.iter().map(read).collect()
}

fn compiled(checked: &Checked, samples: usize) -> Compiled {
    let functions = pipeline::functions_of(&checked.model, &checked.recipe);
    let functions = functions.into_iter().filter(|f| !matches!(f, Function::TrainStep | Function::Evaluate));
    let options = CompileOptions { samples, ..CompileOptions::only(functions.collect::<Vec<_>>()) };
    pipeline::compile(&checked.model, &checked.recipe, VOCAB, &options).unwrap()
}

/// First values of everything that persists.
fn initial(compiled: &Compiled) -> BTreeMap<String, Tensor> {
    let tokens: Vec<i32> = (0..500).map(|i| (i * i) % VOCAB as i32).collect();
    let embeddings = |_: &str| Err("there is no trained model".to_string());
    let text = TrainingText { tokens: &tokens, vocab: VOCAB, embeddings: &embeddings };
    let lowered = &compiled.lowered;
    let states: Vec<_> = lowered.states.iter().map(|(n, s)| (n.clone(), s.resolve(&text).unwrap())).collect();
    moec_runtime::initial_tensors(5, &compiled.states, &lowered.parameters, &states)
}

fn session(backend: &CubeBackend, compiled: &Compiled) -> Box<dyn Session> {
    let mut session = backend.prepare(&compiled.program).unwrap();
    let values = initial(compiled);
    for state in &compiled.program.states {
        session.write_state(&state.name, &values[&state.name]).unwrap();
    }
    session
}

/// Logits of a function that is given what it takes of these inputs, row by row.
fn logits(
    session: &mut dyn Session,
    compiled: &Compiled,
    function: Function,
    given: &[(&str, Vec<i32>)],
) -> Vec<Vec<f32>> {
    let plan = compiled.program.plan(function.name()).unwrap();
    let tensors: BTreeMap<&str, Tensor> = given.iter().map(|(n, v)| (*n, Tensor::ints(v.as_slice()))).collect();
    let inputs: Vec<_> = plan.inputs.iter().map(|p| (p.name.as_str(), &tensors[p.name.as_str()])).collect();
    session.run(function.name(), &inputs).unwrap();
    let all = session.output(function.name(), "logits").unwrap().to_f32();
    all.chunks(VOCAB).map(<[f32]>::to_vec).collect()
}

/// Token `at` of text `number`.
fn token(number: usize, at: usize) -> i32 {
    ((at * at * (number + 2) + 3 * at + number) % VOCAB) as i32
}

/// Logits after every token of some texts, `[texts][T][V]`, one token at a time.
fn decoded(session: &mut dyn Session, compiled: &Compiled, numbers: &[usize]) -> Vec<Vec<Vec<f32>>> {
    let mut found = vec![Vec::new(); numbers.len()];
    for at in 0..TIME {
        let column = |at: usize| numbers.iter().map(|&n| token(n, at)).collect::<Vec<i32>>();
        let previous = if at == 0 { vec![-1; numbers.len()] } else { column(at - 1) };
        let positions = vec![at as i32; numbers.len()];
        let given = [("tokens", column(at)), ("positions", positions), ("previous", previous)];
        for (text, row) in found.iter_mut().zip(logits(session, compiled, Function::Decode, &given)) {
            text.push(row);
        }
    }
    found
}

/// Logits after the last token of a window of some texts, each of another length.
fn next(session: &mut dyn Session, compiled: &Compiled, numbers: &[usize]) -> Vec<Vec<f32>> {
    let tokens = numbers.iter().flat_map(|&n| (0..TIME).map(move |at| token(n, at))).collect();
    let rows = numbers.iter().enumerate().map(|(i, n)| (i * TIME + (TIME - 1 - n)) as i32).collect();
    let rng = random::state(3, 7).to_vec();
    logits(session, compiled, Function::Next, &[("tokens", tokens), ("rows", rows), ("rng", rng)])
}

#[test]
fn one_token_at_a_time_gives_the_scores_of_the_whole_window() {
    let backend = CubeBackend::open(Device::Cpu).unwrap();
    let mut compared = 0;
    for (name, checked) in specs() {
        let compiled = compiled(&checked, 3);
        let mut session = session(&backend, &compiled);
        let session = &mut *session;
        let whole = |session: &mut dyn Session, number: usize| {
            let tokens = (0..TIME).map(|at| token(number, at)).collect();
            logits(session, &compiled, Function::Logits, &[("tokens", tokens), ("rng", random::state(3, 7).to_vec())])
        };
        let close = |what: &str, found: &[f32], expected: &[f32]| {
            let scale = expected.iter().fold(1.0f32, |n, x| n.max(x.abs()));
            for (a, b) in found.iter().zip(expected) {
                assert!((a - b).abs() <= 2e-4 * scale, "{name}, {what}: {found:?} and {expected:?}");
            }
        };
        let expected = [0, 1, 2].map(|number| whole(session, number));
        // A batch with capacity or noise is another one than each sequence alone.
        if moec_model::decoding(&checked.model).together {
            for (number, row) in next(session, &compiled, &[0, 1, 2]).iter().enumerate() {
                close("next", row, &expected[number][TIME - 1 - number]);
            }
        }
        if compiled.program.plan("decode").is_some() {
            for (found, expected) in decoded(session, &compiled, &[0, 1, 2]).iter().zip(&expected) {
                close("decode", &found.concat(), &expected.concat());
            }
            compared += 1;
        }
    }
    assert!(compared >= 14, "{compared}");
}

#[test]
fn texts_that_are_written_together_are_what_they_would_be_alone() {
    let backend = CubeBackend::open(Device::Cpu).unwrap();
    for (name, checked) in specs().into_iter().filter(|(_, c)| moec_model::decoding(&c.model).together) {
        let (three, one) = (compiled(&checked, 3), compiled(&checked, 1));
        let mut together = session(&backend, &three);
        let mut alone = session(&backend, &one);
        let numbers = [0, 1, 2];
        let all = next(&mut *together, &three, &numbers);
        let each: Vec<_> = numbers.iter().flat_map(|&n| next(&mut *alone, &one, &[n])).collect();
        assert_eq!(all, each, "{name}: next");
        if three.program.plan("decode").is_some() {
            let all = decoded(&mut *together, &three, &numbers);
            let each: Vec<_> = numbers.iter().flat_map(|&n| decoded(&mut *alone, &one, &[n])).collect();
            assert_eq!(all, each, "{name}: decode");
        }
    }
}

/// What writes a text of its own, with weights stored so, for a device with these limits.
fn stored(checked: &Checked, weights: WeightFormat, limits: LaunchLimits) -> Compiled {
    let functions = pipeline::functions_of(&checked.model, &checked.recipe);
    let functions = functions.into_iter().filter(|f| matches!(f, Function::Next | Function::Decode));
    let only = CompileOptions::only(functions.collect::<Vec<_>>());
    let options = CompileOptions { weights: Some(weights), limits, ..only };
    pipeline::compile(&checked.model, &checked.recipe, VOCAB, &options).unwrap()
}

/// A session of a program that stores weights in an order or a format of its own.
fn stored_session(backend: &dyn Backend, stored: &Compiled) -> Box<dyn Session> {
    let mut session = backend.prepare(&stored.program).unwrap();
    let mut executable = Executable::new(&stored.program, &mut *session, TIME).unwrap();
    executable.write_states(&initial(stored)).unwrap();
    session
}

/// What a program that does not change the parameters keeps in another order is what it would be, to the bit, whether or
/// not the kernels have an order of their own.
#[test]
fn parameters_may_be_stored_in_another_order() {
    let backend = CubeBackend::open(Device::Cpu).unwrap();
    let orders = [LaunchLimits::default(), DeviceProfile::this_cpu().launch_limits()];
    for ((name, checked), limits) in specs().into_iter().flat_map(|spec| orders.map(|limits| (spec.clone(), limits))) {
        let plain = compiled(&checked, 1);
        let functions: Vec<Function> = plain.clusters.iter().map(|(f, _)| *f).collect();
        let options = CompileOptions { weights: Some(WeightFormat::F32), limits, ..CompileOptions::only(functions) };
        let fixed = pipeline::compile(&checked.model, &checked.recipe, VOCAB, &options).unwrap();
        assert_eq!(fixed.states, plain.states, "{name}: checkpoints are the same");
        let has = |kind| fixed.program.states.iter().any(|s| s.kind == StateKind::State(kind));
        if limits.panel.is_none() {
            assert!(has(StateRole::Transposed), "{name}");
            assert_eq!(fixed.program.state_bytes(), plain.program.state_bytes(), "{name}: nothing is stored twice");
        }

        let mut expected = session(&backend, &plain);
        let mut found = stored_session(&backend, &fixed);
        assert_eq!(next(&mut *found, &fixed, &[0]), next(&mut *expected, &plain, &[0]), "{name}: next");
        if fixed.program.plan("decode").is_some() {
            assert_eq!(decoded(&mut *found, &fixed, &[0]), decoded(&mut *expected, &plain, &[0]), "{name}: decode");
        }
    }
}

/// Weights in fewer bits are what the interpreter reads them as, and near what they were; what a program keeps of them is
/// smaller.
#[test]
fn weights_may_be_stored_in_fewer_bits() {
    let backend = CubeBackend::open(Device::Cpu).unwrap();
    let limits = DeviceProfile::this_cpu().launch_limits();
    let mut specs = specs();
    specs.retain(|(name, _)| ["noisy_top2", "dense", "tiny", "soft_moe", "hierarchical"].contains(&name.as_str()));
    assert_eq!(specs.len(), 5);
    for (name, checked) in specs {
        let plain = stored(&checked, WeightFormat::F32, limits);
        let exact = next(&mut *stored_session(&backend, &plain), &plain, &[0]).concat();
        for (format, rounding) in [(WeightFormat::Bf16, 0.1), (WeightFormat::Int8, 0.1)] {
            let (on_cpu, on_interpreter) =
                (stored(&checked, format, limits), stored(&checked, format, LaunchLimits::default()));
            assert!(on_cpu.program.state_bytes() < plain.program.state_bytes(), "{name} {format:?}");
            let found = next(&mut *stored_session(&backend, &on_cpu), &on_cpu, &[0]).concat();
            let expected = next(&mut *stored_session(&Interpreter, &on_interpreter), &on_interpreter, &[0]).concat();
            let scale = expected.iter().fold(1.0f32, |n, x| n.max(x.abs()));
            let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(apart(&found, &expected) <= 2e-5 * scale, "{name} {format:?}: {found:?} and {expected:?}");
            // Together as alone.
            if moec_model::decoding(&checked.model).together {
                let options = CompileOptions {
                    samples: 3,
                    weights: Some(format),
                    limits,
                    ..CompileOptions::only([Function::Next])
                };
                let three = pipeline::compile(&checked.model, &checked.recipe, VOCAB, &options).unwrap();
                let together = next(&mut *stored_session(&backend, &three), &three, &[0, 1, 2]);
                assert_eq!(together[0], found, "{name} {format:?}");
            }
            let rounded = apart(&found, &exact);
            assert!(rounded > 0.0 && rounded <= rounding * scale, "{name} {format:?}: {found:?} and {exact:?}");
        }
    }
}

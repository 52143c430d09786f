//! The loop on the reference interpreter: it learns, repeats, resumes to the same bits, and stops cleanly.

use super::*;
use crate::metrics::Metric;
use crate::run_folder::{RunTexts, read_metrics};
use crate::sample::log_probability;
use crate::tiny::{BATCH, CONTEXT, Tiny};
use crate::{Kept, SampleConfig, SampleError, best_checkpoint, evaluate_split, initialise, sample};
use moec_ir::Tensor;
use moec_plan::{BackendError, Session};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::Duration;

fn config() -> TrainConfig {
    TrainConfig {
        steps: 24,
        seed: 1337,
        optimizer: Optimizer::default().with("lr", 0.02),
        schedule: Schedule::named("cosine").unwrap().with("warmup", 3).with("min_lr", 0.002),
        batches: 1,
        log_every: 5,
        evaluate_every: 10,
        evaluate_batches: 2,
        patience: None,
        checkpoint_every: 7,
        keep: None,
        keep_best: false,
    }
}

/// Sets the flag after a step, or in the middle of an evaluation, and counts what it is told.
#[derive(Default)]
struct Stopper<'a> {
    at_step: Option<u64>,
    at_evaluation: Option<u64>,
    step: u64,
    evaluations: usize,
    saved: Vec<u64>,
    stop: Option<&'a AtomicBool>,
}

impl Stopper<'_> {
    fn set(&self) {
        if let Some(stop) = self.stop {
            stop.store(true, Ordering::Relaxed);
        }
    }
}

impl Reporter for Stopper<'_> {
    fn started(&mut self, _: u64, _: u64) {}
    fn stepped(&mut self, step: u64) {
        self.step = step;
        if self.at_step == Some(step) {
            self.set();
        }
    }
    fn logged(&mut self, _: &TrainMetric) {}
    fn evaluating(&mut self, _: usize, _: usize) {
        if self.at_evaluation == Some(self.step) {
            self.set();
        }
    }
    fn evaluated(&mut self, _: &Evaluation) {
        self.evaluations += 1;
    }
    fn saved(&mut self, step: u64, _: &Path) {
        self.saved.push(step);
    }
    fn finished(&mut self, _: &Summary) {}
}

fn begin(tiny: &Tiny, root: &Path, config: &TrainConfig, reporter: &mut Stopper<'_>) -> Result<Summary, TrainError> {
    let mut session = tiny.session();
    let mut executable = Executable::new(&tiny.program, &mut *session, CONTEXT)?;
    initialise(&mut executable, config.seed, &tiny.parameters, &tiny.states())?;
    let run = RunFolder::create(root, &RunTexts { spec: "model tiny { }", resolved: "", plan: "" })?;
    let stop = AtomicBool::new(false);
    let mut reporter = Stopper { stop: Some(&stop), ..std::mem::take(reporter) };
    train(&mut executable, &tiny.data, &run, config, 0, &stop, &mut reporter)
}

fn go_on(tiny: &Tiny, root: &Path, config: &TrainConfig, reporter: Stopper<'_>) -> Result<Summary, TrainError> {
    let mut session = tiny.session();
    let mut executable = Executable::new(&tiny.program, &mut *session, CONTEXT)?;
    let run = RunFolder::open(root)?;
    let start = resume(&mut executable, &tiny.data, &run, config)?.expect("there is a checkpoint").step;
    let stop = AtomicBool::new(false);
    let mut reporter = Stopper { stop: Some(&stop), ..reporter };
    train(&mut executable, &tiny.data, &run, config, start, &stop, &mut reporter)
}

/// Bytes of every file of every checkpoint.
fn checkpoints(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for folder in fs::read_dir(root.join("checkpoints")).unwrap() {
        for file in fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            files.insert(name, fs::read(path).unwrap());
        }
    }
    files
}

/// Metrics without their times.
fn metrics(root: &Path) -> Vec<Metric> {
    let timeless = |metric| match metric {
        Metric::Train(m) => Metric::Train(TrainMetric { step_ms: 0.0, tokens_per_s: 0.0, ..m }),
        other => other,
    };
    read_metrics(root).unwrap().into_iter().map(timeless).collect()
}

#[test]
fn what_a_run_has_before_it_is_counted_as_the_loop_does_it() {
    let tiny = Tiny::new();
    for (steps, evaluate_every, checkpoint_every) in [(12, 5, 4), (12, 6, 12), (11, 20, 0), (12, 0, 5)] {
        let config = TrainConfig { steps, evaluate_every, checkpoint_every, evaluate_batches: 1, ..config() };
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("run");
        let summary = begin(&tiny, &root, &config, &mut Stopper::default()).unwrap();
        assert_eq!(summary.outcome, Outcome::Finished);
        let evaluated = metrics(&root).into_iter().filter(|m| matches!(m, Metric::Evaluation(_)));
        let evaluated: Vec<u64> = evaluated.map(|m| m.step()).collect();
        let saved = fs::read_dir(root.join("checkpoints")).unwrap().count() as u64;
        assert_eq!((config.evaluations_after(0), config.checkpoints_after(0)), (evaluated.len() as u64, saved));
        for step in 0..=steps {
            let left = evaluated.iter().filter(|&&at| at > step).count() as u64;
            assert_eq!(config.evaluations_after(step), left, "{steps} {evaluate_every} after {step}");
        }
        assert_eq!(config.checkpoints_after(steps), 0);
    }
}

#[test]
fn the_loss_falls_and_everything_is_reported() {
    let tiny = Tiny::new();
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("run");
    let config = TrainConfig { steps: 120, evaluate_every: 50, checkpoint_every: 0, log_every: 10, ..config() };
    let summary = begin(&tiny, &root, &config, &mut Stopper::default()).unwrap();
    assert_eq!((summary.outcome, summary.step), (Outcome::Finished, 120));
    assert!(summary.step_ms.unwrap() > 0.0 && summary.tokens_per_s.unwrap() > 0.0);
    let metrics = metrics(&root);
    let evaluations: Vec<&Evaluation> =
        metrics.iter().filter_map(|m| if let Metric::Evaluation(e) = m { Some(e) } else { None }).collect();
    assert_eq!(evaluations.iter().map(|e| e.step).collect::<Vec<_>>(), [50, 100, 120]);
    let losses: Vec<f64> =
        metrics.iter().filter_map(|m| if let Metric::Train(t) = m { Some(t.loss_nats) } else { None }).collect();
    assert_eq!(losses.len(), 12);
    assert!(losses[0] > 2.0 && losses[11] < 1.5, "{losses:?}");
    let last = summary.evaluation.unwrap();
    assert_eq!(&last, evaluations[2]);
    assert!((last.train_loss_nats - last.validation_loss_nats.unwrap()).abs() < 0.5);
    let layer = &last.layers[0];
    assert_eq!((layer.path.as_str(), layer.load_rows.len()), ("moe", 3));
    // Two experts a token over two batches.
    assert_eq!(layer.load_rows.iter().sum::<f64>(), (2 * 2 * BATCH * CONTEXT) as f64);
    assert!((1.0..=3.0).contains(&layer.balance) && layer.load_max_over_mean >= 1.0);
    assert!(layer.entropy_nats > 0.0 && layer.entropy_nats <= 2.0f64.ln() + 1e-12);
    assert!(layer.auxiliary.contains_key("importance"));
    let Metric::Train(first) = &metrics[0] else { panic!("the first line is of training") };
    assert!(first.grad_norm.unwrap() > 0.0 && first.objective.unwrap() > first.loss_nats);
}

#[test]
fn the_same_run_twice_gives_the_same_bytes() {
    let tiny = Tiny::new();
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, seed| {
        let root = folder.path().join(name);
        begin(&tiny, &root, &TrainConfig { seed, ..config() }, &mut Stopper::default()).unwrap();
        (checkpoints(&root), metrics(&root))
    };
    let (a, b, other) = (run("a", 1337), run("b", 1337), run("c", 1));
    assert_eq!(a, b);
    assert_ne!(a.0, other.0);
    assert_eq!(a.0.len(), 4 * 3, "checkpoints after 7, 14, 21 and 24 steps");
}

#[test]
fn a_stopped_run_resumes_to_the_same_bytes() {
    let tiny = Tiny::new();
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let summary = begin(&tiny, &whole, &config(), &mut Stopper::default()).unwrap();
    assert_eq!(summary.checkpoint, whole.join("checkpoints/step-00000024"));
    let (expected, lines) = (checkpoints(&whole), metrics(&whole));
    for at in [1, 7, 10, 13, 20, 23] {
        for in_evaluation in [false, true] {
            let root = folder.path().join(format!("stopped-{at}-{in_evaluation}"));
            let (at_step, at_evaluation) = if in_evaluation { (None, Some(at)) } else { (Some(at), None) };
            let mut stopper = Stopper { at_step, at_evaluation, ..Stopper::default() };
            let summary = begin(&tiny, &root, &config(), &mut stopper).unwrap();
            let evaluates = at % config().evaluate_every == 0;
            if !in_evaluation || evaluates {
                assert_eq!((summary.outcome, summary.step), (Outcome::Interrupted, at));
                let again = Stopper { at_step: Some(at + 1), ..Stopper::default() };
                go_on(&tiny, &root, &config(), again).unwrap();
            }
            let summary = go_on(&tiny, &root, &config(), Stopper::default()).unwrap();
            assert_eq!((summary.outcome, summary.step), (Outcome::Finished, 24));
            let found = checkpoints(&root);
            for (name, bytes) in &expected {
                assert!(found[name] == *bytes, "{name} differs after stopping at {at}");
            }
            assert_eq!(metrics(&root), lines, "stopped at {at}, in an evaluation: {in_evaluation}");
        }
    }
}

/// A stop in the evaluation after the last step leaves something to do, although all steps are made.
#[test]
fn the_last_evaluation_is_made_up_for() {
    let tiny = Tiny::new();
    let folder = tempfile::tempdir().unwrap();
    let (whole, root) = (folder.path().join("whole"), folder.path().join("stopped"));
    let complete =
        |root: &Path, step| outcome(&RunFolder::open(root).unwrap(), &config(), step).unwrap() == Outcome::Finished;
    begin(&tiny, &whole, &config(), &mut Stopper::default()).unwrap();
    let summary =
        begin(&tiny, &root, &config(), &mut Stopper { at_evaluation: Some(24), ..Stopper::default() }).unwrap();
    assert_eq!((summary.outcome, summary.step), (Outcome::Interrupted, 24));
    assert!(!complete(&root, 24) && complete(&whole, 24) && !complete(&whole, 23) && complete(&whole, 25));
    let summary = go_on(&tiny, &root, &config(), Stopper::default()).unwrap();
    assert_eq!((summary.outcome, summary.step), (Outcome::Finished, 24));
    assert!(complete(&root, 24));
    assert_eq!((checkpoints(&root), metrics(&root)), (checkpoints(&whole), metrics(&whole)));
}

/// Next to no learning, so that only the windows of an evaluation decide what it says; it ends long before its last step.
fn impatient() -> TrainConfig {
    TrainConfig {
        steps: 400,
        optimizer: Optimizer::default().with("lr", 1e-9),
        schedule: Schedule::default(),
        evaluate_every: 2,
        evaluate_batches: 1,
        patience: Some(3),
        checkpoint_every: 0,
        keep_best: true,
        ..config()
    }
}

fn steps_saved(root: &Path) -> Vec<u64> {
    crate::checkpoints(root).unwrap().into_iter().map(|(step, _)| step).collect()
}

#[test]
fn training_ends_with_patience_and_remembers_it_over_a_stop() {
    let tiny = Tiny::new();
    let folder = tempfile::tempdir().unwrap();
    let config = TrainConfig { keep: Some(1), checkpoint_every: 3, ..impatient() };
    let whole = folder.path().join("whole");
    let summary = begin(&tiny, &whole, &config, &mut Stopper::default()).unwrap();
    let (last, best) = (summary.step, summary.held_out.best.unwrap());
    assert_eq!((summary.outcome, summary.held_out.without_better), (Outcome::StoppedEarly, 3));
    assert!(best.step > 0 && last == best.step + 6 && last < config.steps, "{summary:?}");
    assert_eq!(steps_saved(&whole), [best.step, last], "the newest and the best");
    let best_is = |root: &Path| {
        assert_eq!(best_checkpoint(root).unwrap(), Some(root.join(format!("checkpoints/step-{:08}", best.step))));
    };
    best_is(&whole);
    let (expected, lines) = (checkpoints(&whole), metrics(&whole));
    for (i, at) in [1, best.step, best.step + 1, best.step + 2, last - 1, last].into_iter().enumerate() {
        for in_evaluation in [false, true] {
            let root = folder.path().join(format!("stopped-{i}-{in_evaluation}"));
            let (at_step, at_evaluation) = if in_evaluation { (None, Some(at)) } else { (Some(at), None) };
            begin(&tiny, &root, &config, &mut Stopper { at_step, at_evaluation, ..Stopper::default() }).unwrap();
            let summary = go_on(&tiny, &root, &config, Stopper::default()).unwrap();
            assert_eq!((summary.outcome, summary.step), (Outcome::StoppedEarly, last), "stopped at {at}");
            assert_eq!(metrics(&root), lines, "stopped at {at}, in an evaluation: {in_evaluation}");
            assert!(checkpoints(&root) == expected, "stopped at {at}, in an evaluation: {in_evaluation}");
            best_is(&root);
        }
    }
    // It is over, and goes on where it would have gone on if more had been waited for.
    let over = |config: &TrainConfig| outcome(&RunFolder::open(&whole).unwrap(), config, last).unwrap();
    let longer = TrainConfig { patience: Some(5), ..config.clone() };
    assert_eq!((over(&config), over(&longer)), (Outcome::StoppedEarly, Outcome::Interrupted));
    assert_eq!(go_on(&tiny, &whole, &config, Stopper::default()).unwrap().step, last);
    let straight = folder.path().join("straight");
    let expected = begin(&tiny, &straight, &longer, &mut Stopper::default()).unwrap();
    let summary = go_on(&tiny, &whole, &longer, Stopper::default()).unwrap();
    assert_eq!((summary.step, summary.held_out), (expected.step, expected.held_out));
    assert!(summary.step > last && metrics(&whole) == metrics(&straight));
    // The steps may be over before patience is.
    let short = TrainConfig { steps: last, ..config };
    assert_eq!(over(&short), Outcome::Finished);
}

#[test]
fn a_better_evaluation_takes_the_place_of_the_best() {
    let tiny = Tiny::new();
    let folder = tempfile::tempdir().unwrap();
    // Learning makes each evaluation better than the one before.
    let learning = TrainConfig { steps: 24, evaluate_every: 4, patience: None, keep_best: true, ..config() };
    // A former best that is removed takes the place of none of those that are kept.
    for (every, keep, expected) in
        [(0, None, &[24][..]), (7, None, &[7, 14, 21, 24]), (7, Some(2), &[21, 24]), (6, Some(2), &[18, 24])]
    {
        let root = folder.path().join(format!("{every}-{keep:?}"));
        let config = TrainConfig { checkpoint_every: every, keep, ..learning.clone() };
        let mut stopper = Stopper::default();
        let summary = begin(&tiny, &root, &config, &mut stopper).unwrap();
        assert_eq!(summary.held_out.best.unwrap().step, 24, "{:?}", metrics(&root));
        assert_eq!(steps_saved(&root), expected, "every {every}, keep {keep:?}");
    }
}

#[test]
fn every_optimizer_learns_and_resumes_to_the_same_bits() {
    let sgd = Optimizer::named("sgd").unwrap().with("lr", 0.3);
    let nesterov = sgd.clone().with("lr", 0.05).with("momentum", 0.9).with("nesterov", true);
    let lion = Optimizer::named("lion").unwrap().with("lr", 0.01).with("weight_decay", 0.1);
    let muon = Optimizer::named("muon").unwrap().with("lr", 0.02).with("adamw_lr", 0.01);
    for (i, optimizer) in [sgd, nesterov, lion, muon].into_iter().enumerate() {
        let tiny = Tiny::trained_by(&optimizer);
        let wsd = Schedule::named("wsd").unwrap().with("warmup", 2).with("decay", 8);
        let config = TrainConfig { optimizer, schedule: wsd, evaluate_every: 0, ..config() };
        let folder = tempfile::tempdir().unwrap();
        let (whole, stopped) = (folder.path().join("whole"), folder.path().join("stopped"));
        begin(&tiny, &whole, &config, &mut Stopper::default()).unwrap();
        begin(&tiny, &stopped, &config, &mut Stopper { at_step: Some(10), ..Stopper::default() }).unwrap();
        go_on(&tiny, &stopped, &config, Stopper::default()).unwrap();
        let (expected, found) = (checkpoints(&whole), checkpoints(&stopped));
        assert!(expected.iter().all(|(name, bytes)| found[name] == *bytes), "optimizer {i} differs after stopping");
        let losses: Vec<f64> = metrics(&whole)
            .into_iter()
            .filter_map(|m| if let Metric::Train(m) = m { Some(m.loss_nats) } else { None })
            .collect();
        assert!(losses.last() < losses.first(), "optimizer {i} does not learn: {losses:?}");
    }
}

#[test]
fn steps_of_several_batches_resume_to_the_same_bytes_and_count_them_all() {
    let config = TrainConfig { batches: 3, steps: 12, ..config() };
    let tiny = Tiny::in_batches(&config.optimizer, 3);
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let summary = begin(&tiny, &whole, &config, &mut Stopper::default()).unwrap();
    let tokens = summary.tokens_per_s.unwrap() * summary.step_ms.unwrap() / 1e3;
    assert!((tokens - (3 * BATCH * CONTEXT) as f64).abs() < 1e-6, "{tokens}");
    let expected = checkpoints(&whole);
    for at in [1, 7, 10] {
        let root = folder.path().join(format!("stopped-{at}"));
        begin(&tiny, &root, &config, &mut Stopper { at_step: Some(at), ..Stopper::default() }).unwrap();
        go_on(&tiny, &root, &config, Stopper::default()).unwrap();
        let found = checkpoints(&root);
        assert!(expected.iter().all(|(name, bytes)| found[name] == *bytes), "stopped at {at}");
        assert_eq!(metrics(&root), metrics(&whole), "stopped at {at}");
    }
    // The router saw the mean of the counts in each step, two experts a token; sums are no part of a checkpoint.
    let last = checkpoint::load(&summary.checkpoint, &tiny.program.states, Parts::All).unwrap();
    assert_eq!(last.tensors["moe.seen"].to_f64().iter().sum::<f64>().round(), (12 * 2 * BATCH * CONTEXT) as f64);
    assert!(last.tensors.keys().all(|name| !name.starts_with("sum.")), "{:?}", last.tensors.keys());
    // Each batch of a step has windows and dropout of its own: a step of one batch is another.
    let single = folder.path().join("single");
    begin(&Tiny::new(), &single, &TrainConfig { batches: 1, ..config.clone() }, &mut Stopper::default()).unwrap();
    assert_ne!(metrics(&single), metrics(&whole));
}

#[test]
fn a_killed_run_resumes_from_its_newest_checkpoint() {
    let tiny = Tiny::new();
    let folder = tempfile::tempdir().unwrap();
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    for root in [&whole, &killed] {
        begin(&tiny, root, &config(), &mut Stopper::default()).unwrap();
    }
    // As if the process had died between steps 14 and 21: later checkpoints are not there, later metrics are.
    for step in [21, 24] {
        fs::remove_dir_all(killed.join(format!("checkpoints/step-{step:08}"))).unwrap();
    }
    fs::create_dir(killed.join("checkpoints/.incomplete-step-00000021")).unwrap();
    go_on(&tiny, &killed, &config(), Stopper::default()).unwrap();
    assert_eq!(checkpoints(&killed), checkpoints(&whole));
    assert_eq!(metrics(&killed), metrics(&whole));
    // A finished run has nothing more to do, and can be given more steps.
    let summary = go_on(&tiny, &killed, &config(), Stopper::default()).unwrap();
    assert_eq!((summary.outcome, summary.step, summary.step_ms), (Outcome::Finished, 24, None));
    let longer = TrainConfig { steps: 26, keep: Some(2), ..config() };
    assert_eq!(go_on(&tiny, &killed, &longer, Stopper::default()).unwrap().step, 26);
    assert_eq!(fs::read_dir(killed.join("checkpoints")).unwrap().count(), 2);
}

#[test]
fn another_seed_data_or_spec_does_not_resume() {
    let tiny = Tiny::new();
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("run");
    let config = TrainConfig { steps: 2, evaluate_every: 0, ..config() };
    begin(&tiny, &root, &config, &mut Stopper::default()).unwrap();
    let error = go_on(&tiny, &root, &TrainConfig { seed: 2, ..config.clone() }, Stopper::default()).unwrap_err();
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::Other { .. })), "{error}");
    fs::write(root.join("spec.moe"), "model other { }").unwrap();
    let error = go_on(&tiny, &root, &config, Stopper::default()).unwrap_err();
    assert!(error.to_string().contains("spec was changed"), "{error}");
}

/// Passes everything on, but from the n-th train step on every loss is NaN.
struct Diverging {
    inner: Box<dyn Session>,
    steps_left: Rc<Cell<u32>>,
}

impl Session for Diverging {
    fn write_state(&mut self, name: &str, value: &Tensor) -> Result<(), BackendError> {
        self.inner.write_state(name, value)
    }
    fn read_state(&mut self, name: &str) -> Result<Tensor, BackendError> {
        let tensor = self.inner.read_state(name)?;
        if self.steps_left.get() == 0 && name == "unembed.bias" {
            return Ok(Tensor::new(tensor.shape().to_vec(), moec_ir::Data::F32(vec![f32::NAN; tensor.to_f32().len()]))
                .expect("the sizes agree"));
        }
        Ok(tensor)
    }
    fn run(&mut self, plan: &str, inputs: &[(&str, &Tensor)]) -> Result<(), BackendError> {
        if plan == Function::TrainStep.name() {
            self.steps_left.set(self.steps_left.get().saturating_sub(1));
        }
        self.inner.run(plan, inputs)
    }
    fn run_timed(&mut self, plan: &str, inputs: &[(&str, &Tensor)]) -> Result<Vec<Duration>, BackendError> {
        self.inner.run_timed(plan, inputs)
    }
    fn output(&mut self, plan: &str, name: &str) -> Result<Tensor, BackendError> {
        let tensor = self.inner.output(plan, name)?;
        let broken = self.steps_left.get() == 0 && name == "loss";
        Ok(if broken { Tensor::scalar(f64::NAN) } else { tensor })
    }
}

#[test]
fn divergence_stops_with_the_last_checkpoint_intact() {
    let tiny = Tiny::new();
    // The loss is read after 10 steps, or a checkpoint would be written after 14 and finds the parameters broken.
    for (log_every, expected, what) in [(5, 10, "the training loss"), (0, 14, "the training loss")] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("run");
        let mut session = Diverging { inner: tiny.session(), steps_left: Rc::new(Cell::new(9)) };
        let mut executable = Executable::new(&tiny.program, &mut session, CONTEXT).unwrap();
        initialise(&mut executable, 0, &tiny.parameters, &tiny.states()).unwrap();
        let run = RunFolder::create(&root, &RunTexts::default()).unwrap();
        let config = TrainConfig { log_every, evaluate_every: 0, ..config() };
        let stop = AtomicBool::new(false);
        let error = train(&mut executable, &tiny.data, &run, &config, 0, &stop, &mut Silent).unwrap_err();
        assert!(matches!(&error, TrainError::Diverged { step, what: w } if *step == expected && w == what), "{error}");
        assert_eq!(run.latest_checkpoint().unwrap().unwrap().0, 7);
        // Its metrics say so, until it goes on.
        let last = read_metrics(&root).unwrap().pop();
        assert_eq!(last, Some(Metric::Diverged(Divergence { step: expected, what: what.into() })));
        let kept = run.rewind_metrics(7).unwrap();
        assert!(kept.iter().all(|metric| matches!(metric, Metric::Train(_))), "{kept:?}");
    }
    // A stop finds broken parameters too, and does not save them.
    let folder = tempfile::tempdir().unwrap();
    let mut session = Diverging { inner: tiny.session(), steps_left: Rc::new(Cell::new(2)) };
    let mut executable = Executable::new(&tiny.program, &mut session, CONTEXT).unwrap();
    initialise(&mut executable, 0, &tiny.parameters, &tiny.states()).unwrap();
    let run = RunFolder::create(&folder.path().join("run"), &RunTexts::default()).unwrap();
    let stop = AtomicBool::new(false);
    let mut reporter = Stopper { at_step: Some(3), stop: Some(&stop), ..Stopper::default() };
    let error = train(&mut executable, &tiny.data, &run, &config(), 0, &stop, &mut reporter).unwrap_err();
    assert!(matches!(error, TrainError::Diverged { step: 3, .. }), "{error}");
    assert!(run.latest_checkpoint().unwrap().is_none());
}

#[test]
fn splits_are_evaluated_window_by_window() {
    let tiny = Tiny::new();
    let mut session = tiny.session();
    let mut executable = Executable::new(&tiny.program, &mut *session, CONTEXT).unwrap();
    initialise(&mut executable, 3, &tiny.parameters, &tiny.states()).unwrap();
    let text = tiny.data.tokens(Split::Validation).to_vec();
    let windows = (text.len() - 1) / CONTEXT;
    assert!(!windows.is_multiple_of(BATCH), "the test wants an incomplete batch");
    let mut sum = 0.0;
    for w in 0..windows {
        let (logits, vocab) = executable.logits(&text[w * CONTEXT..(w + 1) * CONTEXT], [0; 4]).unwrap();
        for t in 0..CONTEXT {
            sum -= log_probability(&logits[t * vocab..(t + 1) * vocab], text[w * CONTEXT + t + 1]);
        }
    }
    let mut calls = Vec::new();
    let mut evaluate = |most, stop_at| {
        evaluate_split(&mut executable, &tiny.data, Split::Validation, 0, most, &mut |done, all| {
            calls.push((done, all));
            if Some(done) == stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap()
    };
    let loss = evaluate(None, None).unwrap();
    assert!((loss.loss_nats - sum / (windows * CONTEXT) as f64).abs() < 1e-12);
    assert_eq!((loss.windows, loss.characters), (windows, windows * CONTEXT));
    assert_eq!(loss.left_over, text.len() - 1 - windows * CONTEXT);
    // The panel counts the rows of the full batches: two experts a token.
    let [layer] = &loss.layers[..] else { panic!("{:?}", loss.layers) };
    let batches = windows / BATCH;
    assert_eq!(layer.load_rows.iter().sum::<f64>(), (batches * BATCH * CONTEXT * 2) as f64);

    let some = evaluate(Some(4), None).unwrap();
    assert_eq!((some.windows, some.characters), (4, 4 * CONTEXT));
    assert_ne!(some.loss_nats, loss.loss_nats);
    assert_eq!(evaluate(Some(usize::MAX), None).unwrap(), loss);
    assert_eq!(evaluate(None, Some(BATCH)), None);
    assert_eq!(calls.last(), Some(&(BATCH, windows)));
    assert!(calls.contains(&(windows, windows)));
}

#[test]
fn samples_repeat_and_obey_their_settings() {
    let tiny = Tiny::new();
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("run");
    let config = TrainConfig { steps: 60, evaluate_every: 0, ..config() };
    begin(&tiny, &root, &config, &mut Stopper::default()).unwrap();
    let (_, path) = crate::latest_checkpoint(&root).unwrap().unwrap();
    let checkpoint = crate::load_checkpoint(&path, &tiny.program.states, Parts::Model).unwrap();
    let mut session = tiny.session();
    let mut executable = Executable::new(&tiny.program, &mut *session, CONTEXT).unwrap();
    executable.write_states(&checkpoint.tensors).unwrap();
    let vocab = tiny.data.vocab();
    let mut several = |prompt: &str, numbers, kept, config: &SampleConfig| {
        sample(&mut executable, vocab, prompt, numbers, kept, config, &mut |_, _| ControlFlow::Continue(())).unwrap()
    };
    let mut draw = |prompt: &str, number, config: &SampleConfig| -> Result<String, SampleError> {
        Ok(several(prompt, number..number + 1, Kept::Nothing, config).remove(0))
    };
    let config = SampleConfig { length: 20, ..SampleConfig::default() };
    let text = draw("the cat sat", 0, &config).unwrap();
    assert_eq!(text.chars().count(), 20);
    assert_eq!(draw("the cat sat", 0, &config).unwrap(), text);
    assert_ne!(draw("the cat sat", 1, &config).unwrap(), text);
    assert_ne!(draw("the cat sat", 0, &SampleConfig { seed: 5, ..config }).unwrap(), text);
    assert_eq!(draw("", 0, &config).unwrap().chars().count(), 20);
    // Greedy and one candidate agree, whatever the seed; only the last T characters of the prompt count.
    let greedy = draw("at sat", 0, &SampleConfig { temperature: 0.0, ..config }).unwrap();
    assert_eq!(draw("the cat sat", 9, &SampleConfig { top_k: Some(1), seed: 4, ..config }).unwrap(), greedy);
    // Each of several texts is the one that it is alone; a program writes two at once here.
    let alone: Vec<String> = (3..8).map(|number| draw("on t", number, &config).unwrap()).collect();
    assert_eq!(several("on t", 3..8, Kept::Nothing, &config), alone);
    // Decoded while the window is not full, and windowed from there on.
    for prompt in ["", "o", "on t", "on the mat"] {
        for length in [0, 1, 2, 20] {
            let config = SampleConfig { length, ..config };
            let [kept, windowed] = [Kept::FirstWindow, Kept::Nothing].map(|kept| several(prompt, 0..3, kept, &config));
            assert_eq!(kept, windowed, "{prompt:?} and {length} more");
        }
    }
    // A prompt shorter than the context is padded behind, where causality hides it.
    let (padded, _) = executable.logits(&[1, 2], [0; 4]).unwrap();
    let (filled, vocab_size) = executable.logits(&[1, 2, 3, 4, 5], [0; 4]).unwrap();
    assert_eq!(padded[..2 * vocab_size], filled[..2 * vocab_size]);

    let mut streamed = String::new();
    let stopped = sample(&mut executable, vocab, "on the ", 0..2, Kept::Nothing, &config, &mut |number, c| {
        assert!(number < 2);
        streamed.push_str(c);
        if streamed.len() == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    // Character by character, each of both texts in turn.
    let [a, b] = <[String; 2]>::try_from(stopped.unwrap()).unwrap();
    let turns: String = a.chars().zip(b.chars()).flat_map(|(a, b)| [a, b]).collect();
    assert_eq!((turns, streamed.len()), (streamed.clone(), 4));
    let error =
        sample(&mut executable, vocab, "Q", 0..1, Kept::Nothing, &config, &mut |_, _| ControlFlow::Continue(()))
            .unwrap_err();
    assert_eq!(error.to_string(), "the prompt cannot be read: the model's vocabulary lacks 'Q'");
    let other = crate::Vocab::of_text("abc");
    let error =
        sample(&mut executable, &other, "a", 0..1, Kept::Nothing, &config, &mut |_, _| ControlFlow::Continue(()))
            .unwrap_err();
    assert!(matches!(error, SampleError::Vocabulary { vocabulary: 3, .. }), "{error}");
}

#[test]
fn programs_of_another_form_are_refused() {
    let tiny = Tiny::new();
    let mut session = tiny.session();
    assert!(matches!(
        Executable::new(&tiny.program, &mut *session, 4),
        Err(ExecutableError::Tokens { tokens: 15, context: 4, .. })
    ));
    assert!(Executable::new(&tiny.program, &mut *session, 0).is_err());
    let mut other = tiny.program.clone();
    other.plans[0].inputs[0].name = "blocks.0.moe.noise".into();
    let error = Executable::new(&other, &mut *session, CONTEXT).err().unwrap();
    assert!(error.to_string().contains("`blocks.0.moe.noise` that the runtime does not provide"), "{error}");
    let mut none = tiny.program.clone();
    none.plans.clear();
    let executable = Executable::new(&none, &mut *session, CONTEXT).unwrap();
    assert_eq!(executable.rows(Function::TrainStep), Err(ExecutableError::MissingFunction(Function::TrainStep)));
}

#[test]
fn short_data_is_refused_before_the_first_step() {
    let mut tiny = Tiny::new();
    let corpus = crate::Corpus::from_bytes("short", b"the cat sat on".to_vec()).unwrap();
    tiny.data = Dataset::new(&corpus, tiny.data.vocab().clone(), 0.7).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let error = begin(&tiny, &folder.path().join("run"), &config(), &mut Stopper::default()).unwrap_err();
    assert_eq!(error.to_string(), "the validation split of short has 5 characters; a context of 5 needs at least 6");
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_made_again() {
    let tiny = Tiny::new();
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("run");
    begin(&tiny, &root, &config(), &mut Stopper::default()).unwrap();
    let whole = checkpoints(&root);
    let newest = root.join("checkpoints/step-00000024");
    for (file, content) in
        [("model.safetensors", Some(100)), ("optimizer.safetensors", None), ("manifest.json", Some(0))]
    {
        let path = newest.join(file);
        match content {
            Some(length) => fs::write(&path, &fs::read(&path).unwrap()[..length]).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let mut session = tiny.session();
        let mut executable = Executable::new(&tiny.program, &mut *session, CONTEXT).unwrap();
        let run = RunFolder::open(&root).unwrap();
        let found = resume(&mut executable, &tiny.data, &run, &config()).unwrap().unwrap();
        assert_eq!((found.step, found.passed_over.len()), (21, 1), "{file}");
        let damaged = &found.passed_over[0];
        assert!(damaged.error.to_string().contains(file) && damaged.path.join("..").is_dir(), "{}", damaged.error);
        assert!(damaged.path.file_name().unwrap().to_str().unwrap().starts_with("damaged-step-00000024"));
        let stop = AtomicBool::new(false);
        train(&mut executable, &tiny.data, &run, &config(), found.step, &stop, &mut Silent).unwrap();
        let mut again = checkpoints(&root);
        again.retain(|name, _| !name.contains("damaged"));
        assert!(again == whole, "{file}");
    }
    assert_eq!(fs::read_dir(root.join("checkpoints")).unwrap().count(), 4 + 3);

    // Nothing is begun anew while there is something that could be repaired.
    for (_, path) in crate::checkpoints(&root).unwrap() {
        fs::write(path.join("model.safetensors"), "").unwrap();
    }
    let error = go_on(&tiny, &root, &config(), Stopper::default()).unwrap_err();
    assert!(error.to_string().contains("step-00000024"), "{error}");
    assert_eq!(crate::checkpoints(&root).unwrap().len(), 4);
}

#[test]
fn a_text_may_be_trained_on_as_a_whole_and_need_not_be_evaluated() {
    let mut tiny = Tiny::new();
    let text = "the cat sat on the mat and the dog sat on the log. ";
    let corpus = crate::Corpus::from_bytes("text", text.repeat(3).into_bytes()).unwrap();
    let divided = |fraction| Dataset::new(&corpus, tiny.data.vocab().clone(), fraction).unwrap();
    let (all, nearly_all) = (divided(1.0), divided(0.98));
    let folder = tempfile::tempdir().unwrap();
    tiny.data = all;
    let root = folder.path().join("all");
    let last = begin(&tiny, &root, &config(), &mut Stopper::default()).unwrap().evaluation.unwrap();
    assert!(last.train_loss_nats.is_finite() && last.validation_loss_nats.is_none());
    assert!(last.layers.iter().all(|layer| layer.load_rows.iter().sum::<f64>() > 0.0) && !last.layers.is_empty());
    let lines = fs::read_to_string(root.join("metrics.jsonl")).unwrap();
    assert!(!lines.contains("null") && !lines.contains("validation") && lines.contains("train_loss_nats"), "{lines}");
    assert_eq!(metrics(&root).iter().filter(|m| matches!(m, Metric::Evaluation(_))).count(), 3);

    // Too little is held out to be evaluated, which matters only if it is.
    tiny.data = nearly_all;
    let error = begin(&tiny, &folder.path().join("short"), &config(), &mut Stopper::default()).unwrap_err();
    assert!(matches!(error, TrainError::Data(_)), "{error}");
    let never = TrainConfig { evaluate_every: 0, ..config() };
    let summary = begin(&tiny, &folder.path().join("never"), &never, &mut Stopper::default()).unwrap();
    assert!(summary.evaluation.is_none());
}

/// The first step of a process has kernels compiled, which says nothing of how fast it trains.
#[test]
fn the_first_step_does_not_count_among_others() {
    let long_ago = Instant::now().checked_sub(Duration::from_secs(1000)).unwrap();
    let first = || {
        let mut watch = StepWatch { since: long_ago, ..StepWatch::start() };
        watch.stepped();
        watch.first_is_made();
        watch
    };
    let mut alone = first();
    alone.pause();
    assert!(alone.report_ms() >= 1_000_000.0);
    let mut followed = first();
    followed.stepped();
    followed.pause();
    assert!(followed.report_ms() < 1_000_000.0);
    assert_eq!(followed.steps, 0);
}

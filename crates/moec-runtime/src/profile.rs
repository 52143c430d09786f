//! Where the time of a function goes: a session that waits for every step of it and keeps the times.

use moec_ir::{Function, Phase, Tensor};
use moec_plan::{BackendError, Plan, Session, Work, kind, work};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Most runs whose steps are kept in order for a trace.
const TRACED: usize = 3;

/// Most runs whose times are kept for medians.
const KEPT: usize = 101;

/// A session whose runs of one function are timed step by step; everything else passes through, and all results are
/// the same bits.
pub struct Profiled {
    session: Box<dyn Session>,
    function: Function,
    paused: bool,
    begun: Instant,
    timings: Timings,
}

/// The times of a function's runs. The first run compiles kernels, so it is kept apart.
#[derive(Clone, Debug, Default)]
pub struct Timings {
    /// When the first run began after the profile did, and the time of each of its steps.
    first: Option<(Duration, Vec<Duration>)>,
    /// Times of each step in the last runs after the first.
    steps: Vec<VecDeque<Duration>>,
    /// When each of the last runs began after the profile did, and the time of each of its steps.
    traced: VecDeque<(Duration, Vec<Duration>)>,
}

/// All steps of one kind in one phase, per run.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelRow {
    /// As [`moec_plan::kind`] says.
    pub kind: String,
    /// Which part of the training step.
    pub phase: Phase,
    /// How many steps.
    pub steps: usize,
    /// Their work together.
    pub work: Work,
    /// Their median times together.
    pub time: Duration,
}

impl Profiled {
    /// Times the runs of `function`.
    pub fn new(session: Box<dyn Session>, function: Function) -> Self {
        Self { session, function, paused: false, begun: Instant::now(), timings: Timings::default() }
    }

    /// Lets runs pass through untimed.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Times runs again.
    pub fn resume(&mut self) {
        self.paused = false;
    }

    /// Forgets what was measured, and times the runs of another function.
    pub fn time_runs_of(&mut self, function: Function) {
        (self.function, self.paused, self.timings) = (function, false, Timings::default());
    }

    /// What was measured so far.
    pub fn timings(&self) -> &Timings {
        &self.timings
    }
}

impl Timings {
    fn add(&mut self, begun: Duration, times: Vec<Duration>) {
        if self.first.is_none() {
            self.steps = vec![VecDeque::new(); times.len()];
            self.first = Some((begun, times));
            return;
        }
        for (kept, time) in self.steps.iter_mut().zip(&times) {
            push_last(kept, *time, KEPT);
        }
        push_last(&mut self.traced, (begun, times), TRACED);
    }

    /// The first run, which compiled the kernels.
    pub fn first(&self) -> Duration {
        self.first.iter().flat_map(|(_, times)| times).sum()
    }

    /// Runs after the first that the times are of.
    pub fn runs(&self) -> usize {
        self.steps.first().map_or(0, VecDeque::len)
    }

    /// Time of a run after the first: its steps' medians together, so that one interruption by another program does not
    /// count.
    pub fn total(&self) -> Duration {
        self.steps.iter().map(median).sum()
    }

    /// The steps of the plan that was timed by kind and phase, those that take longest first.
    pub fn by_kind(&self, plan: &Plan) -> Vec<KernelRow> {
        let mut rows: BTreeMap<(Phase, String), KernelRow> = BTreeMap::new();
        for (step, time) in plan.steps.iter().zip(&self.steps) {
            let (kind, phase) = (kind(plan, step), step.phase);
            let row = rows.entry((phase, kind.clone())).or_insert_with(|| KernelRow {
                kind,
                phase,
                steps: 0,
                work: Work::default(),
                time: Duration::ZERO,
            });
            row.steps += 1;
            row.work += work(plan, step);
            row.time += median(time);
        }
        let mut rows: Vec<KernelRow> = rows.into_values().collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.time));
        rows
    }

    /// The first and the last runs in Chrome's trace event format, for `chrome://tracing` or Perfetto: complete events with times in
    /// microseconds, one thread per phase.
    pub fn chrome_trace(&self, plan: &Plan) -> serde_json::Value {
        let mut events = Vec::new();
        for (begun, times) in self.first.iter().chain(&self.traced) {
            let mut at = *begun;
            for (step, time) in plan.steps.iter().zip(times) {
                let work = work(plan, step);
                events.push(serde_json::json!({
                    "name": step.name,
                    "cat": kind(plan, step),
                    "ph": "X",
                    "ts": at.as_secs_f64() * 1e6,
                    "dur": time.as_secs_f64() * 1e6,
                    "pid": 1,
                    "tid": step.phase.name(),
                    "args": { "flops": work.flops, "bytes": work.bytes },
                }));
                at += *time;
            }
        }
        serde_json::json!({ "displayTimeUnit": "ms", "traceEvents": events })
    }
}

fn push_last<T>(list: &mut VecDeque<T>, value: T, most: usize) {
    if list.len() == most {
        list.pop_front();
    }
    list.push_back(value);
}

/// The middle of some times; zero if there are none.
fn median(times: &VecDeque<Duration>) -> Duration {
    let mut sorted: Vec<Duration> = times.iter().copied().collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

impl Session for Profiled {
    fn write_state(&mut self, name: &str, value: &Tensor) -> Result<(), BackendError> {
        self.session.write_state(name, value)
    }

    fn read_state(&mut self, name: &str) -> Result<Tensor, BackendError> {
        self.session.read_state(name)
    }

    fn run(&mut self, plan: &str, inputs: &[(&str, &Tensor)]) -> Result<(), BackendError> {
        self.run_timed(plan, inputs).map(drop)
    }

    fn run_timed(&mut self, plan: &str, inputs: &[(&str, &Tensor)]) -> Result<Vec<Duration>, BackendError> {
        if self.paused || plan != self.function.name() {
            self.session.run(plan, inputs)?;
            return Ok(Vec::new());
        }
        let begun = self.begun.elapsed();
        let times = self.session.run_timed(plan, inputs)?;
        self.timings.add(begun, times.clone());
        Ok(times)
    }

    fn output(&mut self, plan: &str, name: &str) -> Result<Tensor, BackendError> {
        self.session.output(plan, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny::{CONTEXT, Tiny};
    use crate::{Executable, TrainConfig, initialise, train_loss, train_step};
    use moec_plan::{Optimizer, Schedule};

    #[test]
    fn a_profiled_session_gives_the_same_and_accounts_for_every_step() {
        let tiny = Tiny::new();
        let mut profiled = Profiled::new(tiny.session(), Function::TrainStep);
        let mut plain = tiny.session();
        let config = TrainConfig {
            steps: 4,
            seed: 0,
            optimizer: Optimizer::default().with("lr", 1e-2),
            schedule: Schedule::default(),
            batches: 1,
            log_every: 0,
            evaluate_every: 0,
            evaluate_batches: 0,
            patience: None,
            checkpoint_every: 0,
            keep: None,
            keep_best: false,
        };
        let mut losses = Vec::new();
        for session in [&mut profiled as &mut dyn Session, &mut *plain] {
            let mut executable = Executable::new(&tiny.program, session, CONTEXT).unwrap();
            initialise(&mut executable, 0, &tiny.parameters, &tiny.states()).unwrap();
            let mut step = |step| {
                train_step(&mut executable, &tiny.data, &config, step).unwrap();
                train_loss(&mut executable).unwrap()
            };
            losses.push([0, 1, 2, 3].map(&mut step));
        }
        assert_eq!(losses[0], losses[1]);
        let (plan, timings) = (tiny.program.plan(Function::TrainStep.name()).unwrap(), profiled.timings());
        assert_eq!(timings.runs(), 3);
        assert!(timings.total() > Duration::ZERO && timings.first() > Duration::ZERO);
        let rows = timings.by_kind(plan);
        assert_eq!(rows.iter().map(|r| r.steps).sum::<usize>(), plan.steps.len());
        assert!(rows.windows(2).all(|w| w[0].time >= w[1].time));
        assert!(rows.iter().any(|r| r.phase == Phase::Optimizer) && rows.iter().any(|r| r.work.flops > 0.0));
        let trace = timings.chrome_trace(plan);
        assert_eq!(trace["traceEvents"].as_array().unwrap().len(), 4 * plan.steps.len());
    }
}

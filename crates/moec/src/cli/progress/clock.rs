//! Where the time of a training goes, and how much of it is left.

use moec_runtime::TrainConfig;
use std::time::Duration;

/// An evaluation computes forward what a step computes forward and backward: what its batches are reckoned with until one
/// was timed.
const FORWARD: f64 = 1.0 / 3.0;

/// So many things in so many seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    count: f64,
    seconds: f64,
}

impl Pace {
    fn add(&mut self, count: u64, time: Duration) {
        self.count += count as f64;
        self.seconds += time.as_secs_f64();
    }

    fn plus(self, other: Pace) -> Pace {
        Pace { count: self.count + other.count, seconds: self.seconds + other.seconds }
    }

    /// Seconds of one; `None` before there was one.
    fn each(self) -> Option<f64> {
        (self.count > 0.0).then(|| self.seconds / self.count)
    }
}

/// Seconds that are over, by what they were spent on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Spent {
    /// What the first step and the first batch of an evaluation took beyond the others: their kernels are compiled, or read
    /// from the cache.
    pub(crate) compiling: f64,
    pub(crate) steps: f64,
    pub(crate) evaluating: f64,
    pub(crate) saving: f64,
}

/// What is left, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Left {
    pub(crate) steps: f64,
    pub(crate) evaluating: f64,
    pub(crate) saving: f64,
    /// Whether all that is left was timed; otherwise evaluations are reckoned with a third of a step for each batch.
    pub(crate) is_timed: bool,
}

impl Left {
    /// All of it.
    pub(crate) fn seconds(&self) -> f64 {
        self.steps + self.evaluating + self.saving
    }
}

/// Is told what training does, and when, as the time since it began.
///
/// The first step and the first batch of an evaluation are kept apart, because they wait for the compiler: what is left has
/// no such wait in it.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    config: TrainConfig,
    /// Batches of an evaluation, over its splits.
    batches: u64,
    step: u64,
    /// Until when time is accounted for.
    mark: Duration,
    first_step: Option<Duration>,
    first_batch: Option<Duration>,
    /// Steps up to the last time that the device was waited for; older ones count less.
    waited: Pace,
    /// Steps since then.
    recent: Pace,
    /// All steps but the first.
    all: Pace,
    /// Batches of evaluations but the first one.
    evaluated: Pace,
    /// Batches that the evaluation in progress has done.
    done: Option<u64>,
    saved: Pace,
}

impl Clock {
    /// Of a run in which `splits` parts of the text are evaluated.
    pub(crate) fn new(config: &TrainConfig, splits: u64) -> Self {
        let batches = splits.saturating_mul(config.evaluate_batches as u64);
        Self {
            config: config.clone(),
            batches,
            step: 0,
            mark: Duration::ZERO,
            first_step: None,
            first_batch: None,
            waited: Pace::default(),
            recent: Pace::default(),
            all: Pace::default(),
            evaluated: Pace::default(),
            done: None,
            saved: Pace::default(),
        }
    }

    /// Steps made.
    pub(crate) fn step(&self) -> u64 {
        self.step
    }

    /// Steps to make.
    pub(crate) fn steps(&self) -> u64 {
        self.config.steps
    }

    fn since_mark(&mut self, now: Duration) -> Duration {
        let time = now.saturating_sub(self.mark);
        self.mark = now;
        time
    }

    pub(crate) fn started(&mut self, step: u64, now: Duration) {
        (self.step, self.mark) = (step, now);
    }

    /// A step was handed to the device, or several since the last call; the first one by itself. Whether it was the first.
    pub(crate) fn stepped(&mut self, step: u64, now: Duration) -> bool {
        let (time, made) = (self.since_mark(now), step.saturating_sub(self.step));
        self.step = step;
        if self.first_step.is_none() {
            self.first_step = Some(time);
            return true;
        }
        self.recent.add(made, time);
        self.all.add(made, time);
        false
    }

    /// The device was waited for: all steps so far are made.
    pub(crate) fn waited(&mut self, now: Duration) {
        let time = self.since_mark(now);
        if self.recent.count == 0.0 {
            // It was the first step that was waited for.
            self.first_step = self.first_step.map(|first| first + time);
            return;
        }
        self.recent.add(0, time);
        self.all.add(0, time);
        // A machine may become slower or faster: what is long ago counts half at each report.
        let half = Pace { count: self.waited.count / 2.0, seconds: self.waited.seconds / 2.0 };
        self.waited = half.plus(self.recent);
        self.recent = Pace::default();
    }

    /// An evaluation has done some of its batches; the first one by itself.
    pub(crate) fn evaluating(&mut self, done: u64, batches: u64, now: Duration) {
        self.batches = batches;
        let time = self.since_mark(now);
        let new = done.saturating_sub(self.done.unwrap_or(0));
        self.done = Some(done);
        match self.first_batch {
            None => self.first_batch = Some(time),
            Some(_) => self.evaluated.add(new, time),
        }
    }

    pub(crate) fn evaluation_ended(&mut self, now: Duration) {
        let time = self.since_mark(now);
        self.evaluated.add(0, time);
        self.done = None;
    }

    pub(crate) fn saved(&mut self, now: Duration) {
        let time = self.since_mark(now);
        self.saved.add(1, time);
    }

    /// Seconds of a step as it is now.
    pub(crate) fn step_seconds(&self) -> Option<f64> {
        // A device may be handed steps faster than it makes them, so steps that nobody waited for count only where they
        // are slower than what is known.
        match (self.waited.each(), self.waited.plus(self.recent).each()) {
            (Some(waited), Some(all)) => Some(waited.max(all)),
            (_, all) => all,
        }
    }

    fn batch_seconds(&self) -> Option<f64> {
        self.evaluated.each()
    }

    /// What is over.
    pub(crate) fn spent(&self) -> Spent {
        let beyond = |first: Option<Duration>, usual: Option<f64>| {
            let first = first.map_or(0.0, |time| time.as_secs_f64());
            // The first one by itself says nothing about the others: then all of it is the start.
            let usual = usual.unwrap_or(0.0).min(first);
            (first - usual, usual)
        };
        let (step_start, first_step) = beyond(self.first_step, self.step_seconds());
        let (batch_start, first_batch) = beyond(self.first_batch, self.batch_seconds());
        Spent {
            compiling: step_start + batch_start,
            steps: first_step + self.all.seconds,
            evaluating: first_batch + self.evaluated.seconds,
            saving: self.saved.seconds,
        }
    }

    /// What is left; `None` before a step was timed that had nothing to wait for.
    pub(crate) fn left(&self) -> Option<Left> {
        let step = self.step_seconds()?;
        let steps_left = self.config.steps.saturating_sub(self.step);
        let evaluations = self.config.evaluations_after(self.step);
        let in_progress = self.done.map_or(0, |done| self.batches.saturating_sub(done));
        let batches = evaluations as f64 * self.batches as f64 + in_progress as f64;
        let checkpoints = self.config.checkpoints_after(self.step);
        Some(Left {
            steps: steps_left as f64 * step,
            evaluating: batches * self.batch_seconds().unwrap_or(step * FORWARD),
            saving: checkpoints as f64 * self.saved.each().unwrap_or(0.0),
            is_timed: batches == 0.0 || self.batch_seconds().is_some(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moec_plan::{Optimizer, Schedule};

    fn config(steps: u64, evaluate_every: u64, checkpoint_every: u64) -> TrainConfig {
        TrainConfig {
            steps,
            seed: 1,
            optimizer: Optimizer::default(),
            schedule: Schedule::default(),
            batches: 1,
            log_every: 10,
            evaluate_every,
            evaluate_batches: 5,
            patience: None,
            checkpoint_every,
            keep: None,
            keep_best: false,
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn compilation_is_no_part_of_what_is_left() {
        let mut clock = Clock::new(&config(100, 0, 0), 2);
        clock.started(0, ms(500));
        assert_eq!(clock.left(), None);
        clock.stepped(1, ms(20_500));
        assert_eq!(clock.left(), None, "the first step compiles, so it says nothing");
        clock.stepped(2, ms(20_600));
        let left = clock.left().unwrap();
        assert!((left.seconds() - 9.8).abs() < 1e-9, "{left:?}");
        let spent = clock.spent();
        assert!((spent.compiling - 19.9).abs() < 1e-9 && (spent.steps - 0.2).abs() < 1e-9, "{spent:?}");
    }

    #[test]
    fn evaluations_are_counted_apart_and_reckoned_until_one_is_timed() {
        let mut clock = Clock::new(&config(20, 10, 0), 2);
        clock.started(0, ms(0));
        clock.stepped(1, ms(1000));
        clock.stepped(10, ms(1000 + 9 * 300));
        clock.waited(ms(3700));
        let left = clock.left().unwrap();
        // Of the evaluation at step 10 nothing is known yet, and the one at step 20 has ten batches of a third of a step.
        assert!((left.steps - 3.0).abs() < 1e-9 && (left.evaluating - 1.0).abs() < 1e-9 && !left.is_timed, "{left:?}");
        clock.evaluating(1, 10, ms(5700));
        clock.evaluating(6, 10, ms(6200));
        let left = clock.left().unwrap();
        // Four batches of this evaluation and ten of the next one, of 100 ms each.
        assert!((left.evaluating - 1.4).abs() < 1e-9 && left.is_timed, "{left:?}");
        clock.evaluating(10, 10, ms(6600));
        clock.evaluation_ended(ms(6600));
        let (left, spent) = (clock.left().unwrap(), clock.spent());
        assert!((left.evaluating - 1.0).abs() < 1e-9 && (left.steps - 3.0).abs() < 1e-9, "{left:?}");
        // 0.7 s at the first step and 1.9 s at the first batch beyond the others.
        assert!((spent.compiling - 2.6).abs() < 1e-9 && (spent.evaluating - 1.0).abs() < 1e-9, "{spent:?}");
        assert!((spent.steps - 3.0).abs() < 1e-9, "{spent:?}");
    }

    #[test]
    fn a_device_that_lags_behind_is_believed_only_when_it_was_waited_for() {
        let mut clock = Clock::new(&config(1000, 0, 0), 2);
        clock.started(0, ms(0));
        clock.stepped(1, ms(100));
        clock.stepped(11, ms(110));
        clock.waited(ms(1100));
        assert!((clock.step_seconds().unwrap() - 0.1).abs() < 1e-9);
        // Handed over, not made.
        clock.stepped(31, ms(1110));
        assert!((clock.step_seconds().unwrap() - 0.1).abs() < 1e-9);
        // Slower than before, which is seen at once.
        clock.stepped(32, ms(6110));
        assert!(clock.step_seconds().unwrap() > 0.15);
    }

    #[test]
    fn a_machine_that_gets_faster_is_believed_soon() {
        let mut clock = Clock::new(&config(1000, 0, 0), 2);
        clock.started(0, ms(0));
        clock.stepped(1, ms(0));
        clock.stepped(11, ms(10_000));
        clock.waited(ms(10_000));
        for report in 1..=6u64 {
            clock.stepped(11 + 10 * report, ms(10_000 + 1000 * report));
            clock.waited(ms(10_000 + 1000 * report));
        }
        assert!(clock.step_seconds().unwrap() < 0.12, "{:?}", clock.step_seconds());
    }

    #[test]
    fn checkpoints_are_reckoned_as_those_before() {
        let mut clock = Clock::new(&config(30, 0, 10), 2);
        clock.started(0, ms(0));
        clock.stepped(1, ms(0));
        clock.stepped(10, ms(900));
        clock.waited(ms(900));
        assert_eq!(clock.left().unwrap().saving, 0.0);
        clock.saved(ms(1400));
        let left = clock.left().unwrap();
        assert!((left.saving - 1.0).abs() < 1e-9 && (left.steps - 2.0).abs() < 1e-9, "{left:?}");
        assert_eq!(clock.spent().saving, 0.5);
    }
}

//! Schedules: how the learning rate changes over the steps of a run.

use crate::settings::{Conflict, Settings};
use moec_ir::{ArgumentValue, Interval, ParameterSpec};
use std::f64::consts::PI;

/// Every schedule, the default first.
pub static SCHEDULES: &[&ScheduleSpec] = &[&CONSTANT, &COSINE, &WSD];

/// A declared schedule.
#[derive(Debug)]
pub struct ScheduleSpec {
    /// Its name in the file.
    pub name: &'static str,
    /// One line of help.
    pub summary: &'static str,
    /// What it computes, for people.
    pub equations: &'static str,
    /// Where it was published.
    pub references: &'static [&'static str],
    /// Its settings. `warmup` and `min_lr` mean the same in all: steps in which the rate rises linearly, the first of which
    /// already moves, and the rate of the last step.
    pub settings: &'static [ParameterSpec],
    /// The learning rate of a step after the warm-up, from the highest rate.
    rate: fn(&Settings, f64, Progress) -> f64,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug)]
struct Progress {
    /// The step, from 0.
    step: u64,
    /// Steps of the run.
    steps: u64,
}

/// A number of steps; none by default.
const fn steps(name: &'static str, help: &'static str) -> ParameterSpec {
    ParameterSpec::integer(name, Interval::at_least(0.0), 0, help)
}

const WARMUP: ParameterSpec = steps("warmup", "steps of linear warm-up");
const MIN_LR: ParameterSpec =
    ParameterSpec::number("min_lr", Interval::at_least(0.0), 0.0, "learning rate at the last step");

static CONSTANT: ScheduleSpec = ScheduleSpec {
    name: "constant",
    summary: "the same learning rate in every step",
    equations: "lr(t) = lr",
    references: &[],
    settings: &[],
    rate: |_, lr, _| lr,
};

static COSINE: ScheduleSpec = ScheduleSpec {
    name: "cosine",
    summary: "linear warm-up, then half a cosine down to min_lr at the last step",
    equations: "lr(t) = lr (t + 1) / warmup                                 while t < warmup\n\
                lr(t) = min_lr + (lr - min_lr) (1 + cos(pi x)) / 2          x from 0 to 1 in the steps after it",
    references: &["Loshchilov & Hutter 2017, SGDR: Stochastic Gradient Descent with Warm Restarts, arXiv 1608.03983"],
    settings: &[WARMUP, MIN_LR],
    rate: |settings, lr, Progress { step, steps }| {
        let (warmup, min_lr) = (settings.steps("warmup"), settings.number("min_lr"));
        // The last step has progress 1; a decay of one step stays at the top.
        let span = steps.saturating_sub(warmup).saturating_sub(1).max(1);
        let progress = ((step - warmup) as f64 / span as f64).min(1.0);
        min_lr + 0.5 * (lr - min_lr) * (1.0 + (PI * progress).cos())
    },
};

static WSD: ScheduleSpec = ScheduleSpec {
    name: "wsd",
    summary: "linear warm-up, then the full rate, then in the last steps linearly down to min_lr",
    equations: "lr(t) = lr (t + 1) / warmup            while t < warmup\n\
                lr(t) = lr                             until the last steps, `decay` of them\n\
                lr(t) = lr + (min_lr - lr) x           x = 1 / decay, 2 / decay, .., 1 in those",
    references: &[
        "Hu et al. 2024, MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies, \
         arXiv 2404.06395",
        "Hägele et al. 2024, Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations, arXiv 2405.18392",
    ],
    settings: &[WARMUP, steps("decay", "steps of the fall at the end"), MIN_LR],
    rate: |settings, lr, Progress { step, steps }| {
        let (decay, min_lr) = (settings.steps("decay"), settings.number("min_lr"));
        // Steps of the fall that are made, this one included.
        let fallen = (step + 1 + decay).saturating_sub(steps).min(decay);
        if fallen == 0 { lr } else { lr + (min_lr - lr) * (fallen as f64 / decay as f64) }
    },
};

/// A schedule with its settings.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Its declaration.
    pub spec: &'static ScheduleSpec,
    /// Its settings.
    pub settings: Settings,
}

impl Schedule {
    /// The schedule of that name, with its defaults.
    pub fn named(name: &str) -> Option<Self> {
        SCHEDULES.iter().find(|spec| spec.name == name).map(|spec| Self::of(spec))
    }

    fn of(spec: &'static ScheduleSpec) -> Self {
        Self { spec, settings: Settings::defaults(spec.settings) }
    }

    /// The same schedule with one setting changed.
    #[must_use]
    pub fn with(self, name: &str, value: impl Into<ArgumentValue>) -> Self {
        Self { settings: self.settings.with(name, value), ..self }
    }

    fn has(&self, setting: &str) -> bool {
        self.spec.settings.iter().any(|s| s.name == setting)
    }

    /// Learning rate of `step` (from 0) of a run of `steps` whose highest is `lr`.
    pub fn at(&self, lr: f64, step: u64, steps: u64) -> f64 {
        if self.has("warmup") {
            let warmup = self.settings.steps("warmup");
            if step < warmup {
                return lr * (step + 1) as f64 / warmup as f64;
            }
        }
        (self.spec.rate)(&self.settings, lr, Progress { step, steps })
    }

    /// What makes the settings unfit for a run of `steps` steps whose highest learning rate is `lr`.
    pub fn check(&self, lr: f64, steps: u64) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        if self.has("warmup") {
            let warmup = self.settings.steps("warmup");
            conflicts.extend((warmup >= steps).then(|| Conflict {
                setting: "warmup",
                message: format!("a warm-up of {warmup} steps does not end within {steps} steps"),
                expected: format!("expected less than {steps}"),
            }));
        }
        if self.has("decay") {
            let (warmup, decay) = (self.settings.steps("warmup"), self.settings.steps("decay"));
            conflicts.extend((warmup < steps && decay > steps - warmup).then(|| Conflict {
                setting: "decay",
                message: format!("a warm-up of {warmup} and a decay of {decay} steps do not fit into {steps} steps"),
                expected: format!("expected at most {}", steps - warmup),
            }));
        }
        if self.has("min_lr") {
            let min_lr = self.settings.number("min_lr");
            conflicts.extend((min_lr > lr).then(|| Conflict {
                setting: "min_lr",
                message: format!("`min_lr` ({min_lr}) is above the learning rate ({lr})"),
                expected: format!("expected at most {lr}"),
            }));
        }
        conflicts
    }
}

impl Default for Schedule {
    /// The first of [`SCHEDULES`] with its defaults.
    fn default() -> Self {
        Self::of(SCHEDULES[0])
    }
}

/// Two are equal when their names and settings are.
impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.spec.name == other.spec.name && self.settings == other.settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_is_constant() {
        let schedule = Schedule::default();
        assert_eq!(schedule.at(1e-3, 0, 10), 1e-3);
        assert_eq!(schedule.at(1e-3, 99, 10), 1e-3);
    }

    #[test]
    fn warm_up_then_cosine() {
        let schedule = Schedule::named("cosine").unwrap().with("warmup", 4).with("min_lr", 0.1);
        let rates: Vec<f64> = (0..9).map(|s| schedule.at(1.0, s, 9)).collect();
        for (rate, expected) in rates.iter().zip([0.25, 0.5, 0.75, 1.0, 1.0, 0.868198, 0.55, 0.231802, 0.1]) {
            assert!((rate - expected).abs() < 1e-6, "{rates:?}");
        }
        // Beyond the end, and for runs shorter than the warm-up, nothing odd happens.
        assert!((schedule.at(1.0, 50, 9) - 0.1).abs() < 1e-12);
        assert_eq!(schedule.at(1.0, 4, 5), 1.0);
        assert_eq!(schedule.at(1.0, 1, 2), 0.5);
    }

    #[test]
    fn warm_up_then_stable_then_decay() {
        let wsd = Schedule::named("wsd").unwrap().with("warmup", 2).with("decay", 4).with("min_lr", 0.2);
        let rates: Vec<f64> = (0..9).map(|s| wsd.at(1.0, s, 9)).collect();
        for (rate, expected) in rates.iter().zip([0.5, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]) {
            assert!((rate - expected).abs() < 1e-12, "{rates:?}");
        }
        // Without a decay the rate stays, and beyond the end it is that of the last step.
        assert_eq!(wsd.clone().with("decay", 0).at(1.0, 8, 9), 1.0);
        assert!((wsd.at(1.0, 50, 9) - 0.2).abs() < 1e-12);
        let settings = |steps| wsd.check(1.0, steps).iter().map(|c| c.setting).collect::<Vec<_>>();
        assert_eq!((settings(6), settings(5), settings(2)), (vec![], vec!["decay"], vec!["warmup"]));
    }

    #[test]
    fn settings_that_do_not_fit_the_run_are_named() {
        let schedule = Schedule::named("cosine").unwrap().with("warmup", 10).with("min_lr", 0.5);
        let settings = |lr, steps| schedule.check(lr, steps).iter().map(|c| c.setting).collect::<Vec<_>>();
        assert_eq!(settings(1.0, 11), [""; 0]);
        assert_eq!(settings(0.1, 10), ["warmup", "min_lr"]);
    }
}

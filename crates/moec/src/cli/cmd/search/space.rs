//! The space of a search, and which point of it is tried next.
//!
//! Points are proposed by a tree-structured Parzen estimator (Bergstra et al. 2011), one value at a time: it draws where points
//! with low losses are dense beside those with high ones. The first points, and every third, are drawn at random, so that it
//! does not settle too early. A proposal is a
//! function of the seed, the number of the trial and what was tried before, so a search that is interrupted goes on to what it would
//! have been.

use crate::cli::sweep::{self, Over, Sweep};
use moec_ir::Invariant;
use optimizer::TrialState;
use optimizer::parameter::ParamId;
use optimizer::sampler::tpe::TpeSampler;
use optimizer::sampler::{CompletedTrial, Sampler};
use optimizer::{distribution, param};
use std::collections::HashMap;

use distribution::{CategoricalDistribution, Distribution, FloatDistribution, IntDistribution};
use param::ParamValue;

/// Trained points before the estimator has a say.
const AT_RANDOM: usize = 8;

/// One of so many points is drawn at random all the same.
const ONE_IN: u64 = 3;

/// The share of points that count as low.
const LOW: f64 = 0.15;

/// The width of what is dense around a point, as a share of the range. Scott's rule, which the library takes otherwise, is of the few
/// low points alone and so narrow that, in the mean of many searches, chance finds more.
const BANDWIDTH: f64 = 1.0 / 8.0;

/// Proposals that were tried before, until one that was not is taken in the order of the space.
const REPEATED: u64 = 16;

/// A point: a number for each sweep, the index of a value or the value itself.
pub(super) type Point = Vec<f64>;

/// What was tried, and the loss that it reached; infinite where it is no model or diverged.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tried {
    pub(super) point: Point,
    pub(super) loss: f64,
    /// Whether it is a model at all.
    pub(super) is_model: bool,
}

/// What is searched.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Space {
    pub(super) sweeps: Vec<Sweep>,
}

impl Space {
    /// The number of points, if they can be counted.
    pub(super) fn size(&self) -> Option<u64> {
        self.sweeps.iter().map(values).try_fold(1u64, |product, n| product.checked_mul(n?))
    }

    /// What a point says, as `path=value`.
    pub(super) fn overrides(&self, point: &Point) -> Vec<(String, String)> {
        let one = |(sweep, x): (&Sweep, &f64)| (sweep.path.clone(), text(sweep, *x));
        self.sweeps.iter().zip(point).map(one).collect()
    }

    /// The point to try next; `None` when all were tried.
    pub(super) fn propose(&self, seed: u64, trial: u64, tried: &[Tried]) -> Option<Point> {
        if self.size().is_some_and(|size| tried.len() as u64 >= size) {
            return None;
        }
        let is_new = |point: &Point| {
            // Numbers that are written alike are the same.
            tried.iter().all(|other| self.overrides(&other.point) != self.overrides(point))
        };
        // What is best may lie at a bound, which is drawn again and again.
        let draw = |again: u64| {
            let is_at_random = again >= REPEATED / 2 || trial.is_multiple_of(ONE_IN);
            self.draw(mixed(seed, again), trial, tried, is_at_random)
        };
        (0..REPEATED).map(draw).find(is_new).or_else(|| self.first_new(is_new))
    }

    fn draw(&self, seed: u64, trial: u64, tried: &[Tried], is_at_random: bool) -> Point {
        let trained = tried.iter().filter(|tried| tried.is_model).count();
        let startup = if trained < AT_RANDOM || is_at_random { usize::MAX } else { 1 };
        let axis = |(number, sweep): (usize, &Sweep)| {
            let distribution = distribution(sweep);
            // One sampler for each value, which sees this value alone: two of one form must not be taken for one another.
            let sampler = TpeSampler::builder()
                .seed(mixed(seed, 1 + number as u64))
                .n_startup_trials(startup)
                .gamma(LOW)
                .kde_bandwidth(BANDWIDTH * width(&distribution))
                .build();
            let sampler = sampler.invariant("the width is above 0, and the share of low points between 0 and 1");
            let id = ParamId::new();
            let history: Vec<CompletedTrial> = (0..)
                .zip(tried)
                .map(|(i, tried)| CompletedTrial {
                    id: i,
                    params: HashMap::from([(id, parameter(&distribution, tried.point[number]))]),
                    distributions: HashMap::from([(id, distribution.clone())]),
                    param_labels: HashMap::new(),
                    value: tried.loss,
                    intermediate_values: Vec::new(),
                    state: TrialState::Complete,
                    user_attrs: HashMap::new(),
                    constraints: Vec::new(),
                })
                .collect();
            match sampler.sample(&distribution, trial, &history) {
                ParamValue::Float(x) => rounded(sweep, x),
                ParamValue::Int(i) => i as f64,
                ParamValue::Categorical(i) => i as f64,
            }
        };
        self.sweeps.iter().enumerate().map(axis).collect()
    }

    /// The first point in the order of the space that was not tried, where points can be counted.
    fn first_new(&self, is_new: impl Fn(&Point) -> bool) -> Option<Point> {
        let size = self.size()?;
        (0..size).map(|index| self.numbered(index)).find(|point| is_new(point))
    }

    /// A point by its number; the last sweep varies fastest.
    fn numbered(&self, mut index: u64) -> Point {
        let mut point = Vec::new();
        for sweep in self.sweeps.iter().rev() {
            let n = values(sweep).unwrap_or(1);
            let low = match &sweep.over {
                Over::Range { low, .. } => *low,
                Over::Values(_) => 0.0,
            };
            point.push(low + (index % n) as f64);
            index /= n;
        }
        point.reverse();
        point
    }
}

/// The number of values of a sweep, if they can be counted.
fn values(sweep: &Sweep) -> Option<u64> {
    match &sweep.over {
        Over::Values(values) => Some(values.len() as u64),
        Over::Range { low, high, is_whole: true, .. } => Some((high - low) as u64 + 1),
        Over::Range { .. } => None,
    }
}

fn distribution(sweep: &Sweep) -> Distribution {
    match &sweep.over {
        // Numbers have an order, and what is near is alike; words have none.
        Over::Values(values) if values.iter().all(|value| value.parse::<f64>().is_ok()) => {
            Distribution::Int(IntDistribution { low: 0, high: values.len() as i64 - 1, log_scale: false, step: None })
        }
        Over::Values(values) => Distribution::Categorical(CategoricalDistribution { n_choices: values.len() }),
        Over::Range { low, high, is_whole: true, is_log } => {
            Distribution::Int(IntDistribution { low: *low as i64, high: *high as i64, log_scale: *is_log, step: None })
        }
        Over::Range { low, high, is_log, .. } => {
            Distribution::Float(FloatDistribution { low: *low, high: *high, log_scale: *is_log, step: None })
        }
    }
}

/// The width of a range, of its logarithms where those are drawn; of whole numbers four steps at least.
fn width(distribution: &Distribution) -> f64 {
    let of = |low: f64, high: f64, is_log: bool| if is_log { high.ln() - low.ln() } else { high - low };
    match distribution {
        Distribution::Float(d) => of(d.low, d.high, d.log_scale),
        Distribution::Int(d) if d.log_scale => of(d.low as f64, d.high as f64, true).max(1.0),
        Distribution::Int(d) => of(d.low as f64, d.high as f64, false).max(4.0),
        Distribution::Categorical(_) => 1.0,
    }
}

fn parameter(distribution: &Distribution, x: f64) -> ParamValue {
    match distribution {
        Distribution::Float(_) => ParamValue::Float(x),
        Distribution::Int(_) => ParamValue::Int(x as i64),
        Distribution::Categorical(_) => ParamValue::Categorical(x as usize),
    }
}

/// The number that is written, within the bounds.
fn rounded(sweep: &Sweep, x: f64) -> f64 {
    let Over::Range { low, high, .. } = &sweep.over else { return x };
    sweep::value(x).parse().unwrap_or(x).clamp(*low, *high)
}

fn text(sweep: &Sweep, x: f64) -> String {
    match &sweep.over {
        Over::Values(values) => values.get(x as usize).cloned().unwrap_or_default(),
        Over::Range { is_whole: true, .. } => format!("{x}"),
        // A bound may have more digits than are drawn.
        Over::Range { low, high, .. } if x == *low || x == *high => format!("{x:?}"),
        Over::Range { .. } => sweep::value(x),
    }
}

/// Two numbers as one that depends on every bit of both (the finaliser of splitmix64).
fn mixed(a: u64, b: u64) -> u64 {
    let mut h = a.wrapping_add(b.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ (h >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(sweeps: &[&str]) -> Space {
        Space { sweeps: sweeps.iter().map(|text| sweep::given(text).unwrap()).collect() }
    }

    /// Tries points one after the other, with the loss that a function says.
    fn searched(space: &Space, seed: u64, trials: u64, loss: impl Fn(&[(String, String)]) -> f64) -> Vec<Tried> {
        let mut tried = Vec::new();
        for trial in 0..trials {
            let Some(point) = space.propose(seed, trial, &tried) else { break };
            let loss = loss(&space.overrides(&point));
            tried.push(Tried { point, loss, is_model: loss.is_finite() });
        }
        tried
    }

    fn number(given: &[(String, String)], at: usize) -> f64 {
        given[at].1.parse().unwrap()
    }

    #[test]
    fn the_same_seed_tries_the_same_points_and_goes_on_to_them() {
        let space = space(&["lr=1e-4..1e-1@log", "k=1..8", "experts=4,8,16", "act=relu,gelu"]);
        let loss = |given: &[(String, String)]| (number(given, 0).ln() + 5.0).powi(2) + number(given, 1);
        let (all, again) = (searched(&space, 3, 30, loss), searched(&space, 3, 30, loss));
        assert_eq!(all, again);
        assert_ne!(all, searched(&space, 4, 30, loss));
        // From what was tried alone.
        for trial in [1, 9, 20, 29] {
            assert_eq!(space.propose(3, trial as u64, &all[..trial]), Some(all[trial].point.clone()));
        }
        for tried in &all {
            let given = space.overrides(&tried.point);
            assert!(
                (1e-4..=1e-1).contains(&number(&given, 0)) && (1.0..=8.0).contains(&number(&given, 1)),
                "{given:?}"
            );
        }
    }

    #[test]
    fn the_best_may_lie_at_a_bound() {
        let space = space(&["lr=1e-4..1e-1@log", "k=1..2"]);
        assert_eq!(searched(&space, 0, 60, |given| -number(given, 0)).len(), 60);
    }

    #[test]
    fn it_finds_more_than_chance() {
        let space = space(&["lr=1e-5..1@log", "k=1..16"]);
        let loss =
            |given: &[(String, String)]| (number(given, 0).log10() + 3.0).powi(2) + (number(given, 1) - 5.0).abs();
        let least = |losses: Vec<f64>| losses.into_iter().fold(f64::INFINITY, f64::min);
        let searched = |seed| least(searched(&space, seed, 50, loss).iter().map(|tried| tried.loss).collect());
        let at_random =
            |seed| least((0..50).map(|i| loss(&space.overrides(&space.draw(seed, i, &[], true)))).collect());
        let mean = |of: &dyn Fn(u64) -> f64| (0..20).map(of).sum::<f64>() / 20.0;
        let (found, chance) = (mean(&searched), mean(&at_random));
        assert!(found < 0.75 * chance, "{found}, and {chance} by chance");
    }

    #[test]
    fn every_point_is_tried_once_where_they_can_be_counted() {
        let space = space(&["k=1..3", "act=relu,gelu"]);
        assert_eq!(space.size(), Some(6));
        // Half of them are no models.
        let tried = searched(&space, 0, 100, |given| if given[1].1 == "gelu" { f64::INFINITY } else { 1.0 });
        let mut given: Vec<_> = tried.iter().map(|tried| space.overrides(&tried.point)).collect();
        given.sort();
        given.dedup();
        assert_eq!((tried.len(), given.len()), (6, 6));
    }
}

//! Means and spreads over seeds, and what may be concluded from them about two variants.
//!
//! A seed gives every variant the same batches, so variants are compared seed by seed: the differences to a baseline have far less
//! spread than the losses themselves. Their mean is judged by Student's t, of one degree of freedom less than there are seeds, which
//! takes the differences for normally distributed. Where several variants are held against one baseline, p-values are
//! corrected by Holm's method (1979), which bounds the chance of any false claim by the level, whatever depends on what.
//! That two variants are equivalent within a margin is shown by two one-sided tests (Schuirmann 1987), never by a difference
//! that was not found. Intervals are of each difference alone, and not corrected.

use moec_ir::Invariant;
use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Claims hold with this confidence.
pub(super) const CONFIDENCE: f64 = 0.95;

/// The middle value, or the mean of the two in the middle.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len().is_multiple_of(2) { (values[middle - 1] + upper) / 2.0 } else { upper })
}

pub(in crate::cli::cmd) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Standard deviation of a sample; there is none of a single value.
pub(super) fn deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values)?;
    let n = values.len();
    (n > 1).then(|| (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt())
}

/// What may be said of a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// There are fewer than two seeds.
    NothingCanBeSaid,
    /// Its loss is lower.
    Better,
    /// Its loss is higher.
    Worse,
    /// Neither is shown.
    NotShownToDiffer,
}

/// A variant held against the baseline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Difference {
    /// Seeds that ended in both.
    seeds: usize,
    /// Mean of the differences of validation losses, variant less baseline: below 0 is better.
    pub(super) mean_nats: Option<f64>,
    /// Standard deviation of these differences.
    deviation_nats: Option<f64>,
    /// Bounds of the interval that has the difference with [`CONFIDENCE`].
    pub(super) low_nats: Option<f64>,
    pub(super) high_nats: Option<f64>,
    /// Chance of such a mean or a larger one where there is no difference, of either sign.
    p_value: Option<f64>,
    /// The same, corrected for the number of variants.
    p_holm: Option<f64>,
    verdict: Verdict,
    /// Whether it is equivalent within the margin, if one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    equivalence: Option<Equivalence>,
    /// In plain words.
    pub(super) sentence: String,
}

/// The two one-sided tests of a margin.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Equivalence {
    margin_nats: f64,
    /// The larger p-value of the two.
    p_value: f64,
    p_holm: f64,
    is_shown: bool,
}

/// Holds variants against a baseline. Each is a list of a loss for each seed, `None` where a run diverged.
pub(super) fn differences(
    baseline: &[Option<f64>],
    variants: &[Vec<Option<f64>>],
    margin: Option<f64>,
) -> Vec<Difference> {
    let paired = |variant: &Vec<Option<f64>>| -> Vec<f64> {
        variant.iter().zip(baseline).filter_map(|(a, b)| Some((*a)? - (*b)?)).collect()
    };
    let samples: Vec<Option<Sample>> = variants.iter().map(|variant| Sample::new(&paired(variant))).collect();
    let p_values: Vec<f64> = samples.iter().flatten().map(Sample::p_value).collect();
    let p_margins: Vec<f64> = samples.iter().flatten().filter_map(|s| Some(s.p_margin(margin?))).collect();
    let (mut p_holms, mut p_margin_holms) = (holm(&p_values).into_iter(), holm(&p_margins).into_iter());
    let asked = baseline.len();
    samples
        .into_iter()
        .zip(variants)
        .map(|(sample, variant)| match sample {
            None => nothing(paired(variant), asked),
            Some(sample) => {
                let p_holm = p_holms.next().invariant("every sample has a p-value");
                let equivalence = margin.map(|margin_nats| {
                    let p_holm = p_margin_holms.next().invariant("every sample has a p-value of the margin");
                    let is_shown = p_holm < 1.0 - CONFIDENCE;
                    Equivalence { margin_nats, p_value: sample.p_margin(margin_nats), p_holm, is_shown }
                });
                sample.judged(p_holm, equivalence)
            }
        })
        .collect()
}

/// What is said without two pairs.
fn nothing(paired: Vec<f64>, asked: usize) -> Difference {
    let why = match asked {
        1 => "one seed".to_string(),
        _ => format!("{} of {asked} seeds ended in both", paired.len()),
    };
    Difference {
        seeds: paired.len(),
        mean_nats: mean(&paired),
        deviation_nats: None,
        low_nats: None,
        high_nats: None,
        p_value: None,
        p_holm: None,
        verdict: Verdict::NothingCanBeSaid,
        equivalence: None,
        sentence: format!("nothing can be said ({why})"),
    }
}

/// Two differences or more.
struct Sample {
    n: usize,
    mean: f64,
    deviation: f64,
    /// Of the mean.
    error: f64,
    student: StudentsT,
}

impl Sample {
    fn new(paired: &[f64]) -> Option<Self> {
        let (n, mean, deviation) = (paired.len(), mean(paired)?, deviation(paired)?);
        let student = StudentsT::new(0.0, 1.0, (n - 1) as f64).ok()?;
        Some(Self { n, mean, deviation, error: deviation / (n as f64).sqrt(), student })
    }

    /// The chance of `(mean - from) / error` or more, where the true mean is `from`.
    fn above(&self, from: f64) -> f64 {
        let distance = self.mean - from;
        match self.error > 0.0 {
            true => self.student.sf(distance / self.error),
            // All differences are the same.
            false if distance == 0.0 => 0.5,
            false => f64::from(u8::from(distance < 0.0)),
        }
    }

    fn p_value(&self) -> f64 {
        let above = self.above(0.0);
        (2.0 * above.min(1.0 - above)).min(1.0)
    }

    /// Of the two tests that the mean is not above -margin, and not below it.
    fn p_margin(&self, margin: f64) -> f64 {
        self.above(-margin).max(1.0 - self.above(margin))
    }

    fn judged(&self, p_holm: f64, equivalence: Option<Equivalence>) -> Difference {
        let half = self.student.inverse_cdf(0.5 + CONFIDENCE / 2.0) * self.error;
        let (low, high) = (self.mean - half, self.mean + half);
        let verdict = match p_holm < 1.0 - CONFIDENCE {
            true if self.mean < 0.0 => Verdict::Better,
            true => Verdict::Worse,
            false => Verdict::NotShownToDiffer,
        };
        Difference {
            seeds: self.n,
            mean_nats: Some(self.mean),
            deviation_nats: Some(self.deviation),
            low_nats: Some(low),
            high_nats: Some(high),
            p_value: Some(self.p_value()),
            p_holm: Some(p_holm),
            verdict,
            equivalence,
            sentence: sentence(verdict, (low, high), equivalence),
        }
    }
}

fn sentence(verdict: Verdict, (low, high): (f64, f64), equivalence: Option<Equivalence>) -> String {
    let percent = 100.0 * CONFIDENCE;
    let decided = match verdict {
        Verdict::NothingCanBeSaid => "nothing can be said".to_string(),
        Verdict::Better => format!("better by {:.4} to {:.4} nats", -high, -low),
        Verdict::Worse => format!("worse by {low:.4} to {high:.4} nats"),
        Verdict::NotShownToDiffer => format!("not shown to differ ({low:+.4} to {high:+.4} nats)"),
    };
    match (equivalence, verdict) {
        (None, _) => decided,
        (Some(e), Verdict::NotShownToDiffer) if e.is_shown => {
            format!("equivalent within {} nats at {percent:.0} % ({low:+.4} to {high:+.4} nats)", e.margin_nats)
        }
        (Some(e), _) if e.is_shown => {
            format!("{decided}, but equivalent within {} nats at {percent:.0} %", e.margin_nats)
        }
        (Some(e), Verdict::NotShownToDiffer) => {
            format!("{decided}, nor to be equivalent within {} nats", e.margin_nats)
        }
        _ => decided,
    }
}

/// P-values corrected by Holm's method, in the same order.
fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let (mut corrected, mut largest) = (vec![0.0; p_values.len()], 0.0f64);
    for (rank, index) in order.into_iter().enumerate() {
        largest = largest.max(((p_values.len() - rank) as f64 * p_values[index]).min(1.0));
        corrected[index] = largest;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::PI;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} is not {b}");
    }

    #[test]
    fn spreads_and_medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!((mean(&[]), deviation(&[])), (None, None));
        assert_eq!((mean(&[1.5]), deviation(&[1.5])), (Some(1.5), None));
        assert_eq!((mean(&[1.0, 2.0, 3.0]), deviation(&[1.0, 2.0, 3.0])), (Some(2.0), Some(1.0)));
    }

    /// With 1 to 4 degrees of freedom, Student's distribution is a formula.
    #[test]
    fn the_distribution_is_that_of_its_closed_forms() {
        let closed: [fn(f64) -> f64; 4] = [
            |t| 0.5 + t.atan() / PI,
            |t| 0.5 + t / (2.0 * (2.0 + t * t).sqrt()),
            |t| 0.5 + (t / 3f64.sqrt() / (1.0 + t * t / 3.0) + (t / 3f64.sqrt()).atan()) / PI,
            |t| {
                let s = 1.0 + t * t / 4.0;
                0.5 + 0.375 * t / s.sqrt() * (1.0 - t * t / (12.0 * s))
            },
        ];
        for (freedom, cdf) in (1..).zip(closed) {
            let student = StudentsT::new(0.0, 1.0, f64::from(freedom)).unwrap();
            for t in [-6.0, -1.0, 0.0, 0.3, 2.0, 12.0] {
                close(student.cdf(t), cdf(t));
                close(student.sf(t), 1.0 - cdf(t));
            }
            for p in [0.6, 0.95, 0.975] {
                close(cdf(student.inverse_cdf(p)), p);
            }
        }
        // 95 % in the middle, as printed in tables.
        for (freedom, quantile) in [(1.0, 12.7062), (2.0, 4.30265), (4.0, 2.77645), (9.0, 2.26216), (30.0, 2.04227)] {
            let student = StudentsT::new(0.0, 1.0, freedom).unwrap();
            assert!((student.inverse_cdf(0.975) - quantile).abs() < 1e-4, "{freedom}");
        }
    }

    #[test]
    fn differences_are_paired_by_seed() {
        // The losses spread far more than their differences: -0.1, -0.2, -0.3, mean -0.2, error 0.1 / sqrt(3).
        let baseline = [Some(1.0), Some(2.0), Some(3.0)];
        let variants = [vec![Some(0.9), Some(1.8), Some(2.7)]];
        let found = &differences(&baseline, &variants, None)[0];
        let t = 0.2 / (0.1 / 3f64.sqrt());
        close(found.mean_nats.unwrap(), -0.2);
        close(found.p_value.unwrap(), 1.0 - t / (2.0 + t * t).sqrt());
        let half = 0.95 / (2.0 * 0.975 * 0.025f64).sqrt() * 0.1 / 3f64.sqrt();
        close(found.low_nats.unwrap(), -0.2 - half);
        close(found.high_nats.unwrap(), -0.2 + half);
        assert_eq!((found.seeds, found.verdict), (3, Verdict::NotShownToDiffer));
        assert!(found.sentence.starts_with("not shown to differ (-0.4484 to +0.0484"), "{}", found.sentence);
        // A run that diverged takes its pair along.
        let variants = [vec![None, Some(1.8), Some(2.7)]];
        assert_eq!(differences(&baseline, &variants, None)[0].seeds, 2);
    }

    #[test]
    fn one_seed_says_nothing() {
        let found = &differences(&[Some(1.0)], &[vec![Some(0.5)]], Some(0.1))[0];
        assert_eq!((found.verdict, found.p_value), (Verdict::NothingCanBeSaid, None));
        assert_eq!((found.mean_nats, found.sentence.as_str()), (Some(-0.5), "nothing can be said (one seed)"));
        let diverged = &differences(&[Some(1.0), Some(2.0)], &[vec![None, Some(0.5)]], None)[0];
        assert_eq!(diverged.sentence, "nothing can be said (1 of 2 seeds ended in both)");
    }

    #[test]
    fn several_comparisons_are_corrected() {
        let corrected = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (a, b) in corrected.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            close(*a, b);
        }
        assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
        // Alone it is shown, and among three it is not: p = 0.04 of a t of 4.85 with 2 degrees of freedom.
        let baseline = [Some(0.0), Some(0.0), Some(0.0)];
        let better = vec![Some(-0.1), Some(-0.14), Some(-0.18)];
        let other = vec![Some(0.1), Some(-0.1), Some(0.05)];
        assert_eq!(differences(&baseline, std::slice::from_ref(&better), None)[0].verdict, Verdict::Better);
        let of_three = differences(&baseline, &[better, other.clone(), other], None);
        assert_eq!(of_three[0].verdict, Verdict::NotShownToDiffer);
    }

    #[test]
    fn equivalence_is_shown_and_not_assumed() {
        let baseline = [Some(0.0); 4];
        let near = vec![Some(0.001), Some(-0.001), Some(0.002), Some(0.0)];
        let far = vec![Some(0.1), Some(-0.1), Some(0.2), Some(0.0)];
        let found = differences(&baseline, &[near, far], Some(0.02));
        assert!(found[0].sentence.starts_with("equivalent within 0.02 nats at 95 %"), "{}", found[0].sentence);
        assert!(found[1].sentence.ends_with("nor to be equivalent within 0.02 nats"), "{}", found[1].sentence);
        // Mean 0.0005, deviation sqrt(5/3) / 1000, error half of that, 3 degrees of freedom.
        let t = (0.02 - 0.0005) / ((5.0f64 / 3.0).sqrt() / 2000.0);
        let below = 0.5 + (t / 3f64.sqrt() / (1.0 + t * t / 3.0) + (t / 3f64.sqrt()).atan()) / PI;
        close(found[0].equivalence.unwrap().p_value, 1.0 - below);
        // A difference may be shown and not matter.
        let small = vec![Some(-0.005), Some(-0.0051), Some(-0.0049), Some(-0.005)];
        let found = &differences(&baseline, &[small], Some(0.02))[0];
        assert_eq!(found.verdict, Verdict::Better);
        assert!(found.sentence.ends_with("but equivalent within 0.02 nats at 95 %"), "{}", found.sentence);
        // All differences alike.
        let same = &differences(&baseline, &[vec![Some(0.0); 4]], Some(0.02))[0];
        assert_eq!((same.p_value, same.verdict), (Some(1.0), Verdict::NotShownToDiffer));
        assert!(same.equivalence.unwrap().is_shown);
        assert_eq!(differences(&baseline, &[vec![Some(0.1); 4]], None)[0].verdict, Verdict::Worse);
    }
}

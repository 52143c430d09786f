//! Learning rate of every step, and what AdamW needs to know about the step.

use std::f64::consts::PI;

/// What the learning rate does after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decay {
    /// It stays.
    Constant,
    /// It falls to `min_lr` at the last step along half a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983).
    Cosine {
        /// Learning rate of the last step.
        min_lr: f64,
    },
}

/// Learning rate as a function of the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Highest learning rate.
    pub lr: f64,
    /// Steps in which it rises linearly; the first step already moves.
    pub warmup: u64,
    /// What it does afterwards.
    pub decay: Decay,
}

impl Schedule {
    /// The same learning rate at every step.
    pub fn constant(lr: f64) -> Self {
        Self { lr, warmup: 0, decay: Decay::Constant }
    }

    /// Learning rate of `step` (from 0) of a run of `steps`.
    pub fn at(&self, step: u64, steps: u64) -> f64 {
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / self.warmup as f64;
        }
        match self.decay {
            Decay::Constant => self.lr,
            Decay::Cosine { min_lr } => {
                // The last step has progress 1; a decay of one step stays at the top.
                let span = steps.saturating_sub(self.warmup).saturating_sub(1).max(1);
                let progress = ((step - self.warmup) as f64 / span as f64).min(1.0);
                min_lr + 0.5 * (self.lr - min_lr) * (1.0 + (PI * progress).cos())
            }
        }
    }

    /// The input `hyper` of a train step: `[lr, 1 - beta1^t, 1 - beta2^t]` with `t = step + 1`, the bias corrections of
    /// Adam (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1), computed in 64 bits.
    pub(crate) fn hyper(&self, step: u64, steps: u64, beta1: f64, beta2: f64) -> [f32; 3] {
        let correction = |beta: f64| (1.0 - power(beta, step + 1)) as f32;
        [self.at(step, steps) as f32, correction(beta1), correction(beta2)]
    }
}

/// `base^exponent` by squaring: the same bits on every platform, unlike the system's `pow`.
fn power(mut base: f64, mut exponent: u64) -> f64 {
    let mut result = 1.0;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= base;
        }
        base *= base;
        exponent >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_is_constant() {
        let schedule = Schedule::constant(1e-3);
        assert_eq!(schedule.at(0, 10), 1e-3);
        assert_eq!(schedule.at(99, 10), 1e-3);
    }

    #[test]
    fn warm_up_then_cosine() {
        let schedule = Schedule { lr: 1.0, warmup: 4, decay: Decay::Cosine { min_lr: 0.1 } };
        let rates: Vec<f64> = (0..9).map(|s| schedule.at(s, 9)).collect();
        for (rate, expected) in rates.iter().zip([0.25, 0.5, 0.75, 1.0, 1.0, 0.868198, 0.55, 0.231802, 0.1]) {
            assert!((rate - expected).abs() < 1e-6, "{rates:?}");
        }
        // Beyond the end, and for runs shorter than the warm-up, nothing odd happens.
        assert!((schedule.at(50, 9) - 0.1).abs() < 1e-12);
        assert_eq!(schedule.at(4, 5), 1.0);
        assert_eq!(schedule.at(1, 2), 0.5);
        let warm = Schedule { decay: Decay::Constant, ..schedule };
        assert_eq!((warm.at(1, 9), warm.at(7, 9)), (0.5, 1.0));
    }

    #[test]
    fn bias_corrections() {
        let [lr, c1, c2] = Schedule::constant(1e-3).hyper(0, 10, 0.9, 0.999);
        assert_eq!(lr, 1e-3);
        assert!((c1 - 0.1).abs() < 1e-7 && (c2 - 0.001).abs() < 1e-9);
        let [_, c1, c2] = Schedule::constant(1e-3).hyper(999, 1000, 0.9, 0.999);
        assert_eq!(c1, 1.0);
        assert!((f64::from(c2) - (1.0 - 0.999f64.powi(1000))).abs() < 1e-7);
    }
}

//! Which random stream each purpose outside the graph reads, so that no two purposes ever share numbers.
//!
//! Everything is keyed by (seed, purpose, index): no state is carried, so a resumed run has nothing to restore but its
//! step.

use moec_ir::random;

/// What random numbers outside the graph are for. Nodes of a graph count their streams from 1, so these keys have the
/// top bit set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Windows of the training steps.
    TrainingWindows,
    /// Windows of the training split that an evaluation draws.
    TrainingEstimate,
    /// Windows of the validation split that an evaluation draws.
    ValidationEstimate,
    /// Random nodes of the graph at evaluation and sampling (routers that keep their noise on).
    EvaluationNoise,
    /// Initial parameters.
    Initial,
    /// Sampled characters.
    Sampling,
    /// Random nodes of the graph at the batches of a step after the first.
    LaterBatches,
    /// The synthetic corpus.
    Synthetic,
}

impl Purpose {
    fn key(self) -> u32 {
        0x8000_0000
            | match self {
                Purpose::TrainingWindows => 1,
                Purpose::TrainingEstimate => 2,
                Purpose::ValidationEstimate => 3,
                Purpose::EvaluationNoise => 4,
                Purpose::Initial => 5,
                Purpose::Sampling => 6,
                Purpose::Synthetic => 7,
                Purpose::LaterBatches => 8,
            }
    }

    /// The stream of this purpose at an index (a step, a name's hash, a sample's number).
    pub(crate) fn stream(self, seed: u64, index: u64) -> Stream {
        Stream { keys: random::keys(random::state(seed, index), self.key()) }
    }
}

/// Numbers at every position, each independent of the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    keys: (u32, u32),
}

impl Stream {
    /// 32 random bits.
    pub(crate) fn bits(self, position: u32) -> u32 {
        random::bits(self.keys, position)
    }

    /// 64 random bits, made of words `2 * position` and `2 * position + 1`.
    pub(crate) fn bits64(self, position: u32) -> u64 {
        let word = position.wrapping_mul(2);
        u64::from(self.bits(word)) << 32 | u64::from(self.bits(word.wrapping_add(1)))
    }

    /// Uniform on `0..n` (0 for `n = 0`), biased by less than `n / 2^64`.
    pub(crate) fn below(self, position: u32, n: u64) -> u64 {
        ((u128::from(self.bits64(position)) * u128::from(n)) >> 64) as u64
    }

    /// Uniform on [0, 1) with 53 bits.
    pub(crate) fn uniform(self, position: u32) -> f64 {
        (self.bits64(position) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal.
    pub(crate) fn normal(self, position: u32) -> f64 {
        random::normal_at(self.keys, position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_covers_its_range_evenly() {
        let stream = Purpose::Sampling.stream(7, 0);
        let mut counts = [0u32; 7];
        for i in 0..70_000 {
            counts[stream.below(i, 7) as usize] += 1;
        }
        assert!(counts.iter().all(|&c| (9_500..10_500).contains(&c)), "{counts:?}");
        assert_eq!(stream.below(3, 0), 0);
        assert_eq!(stream.below(3, 1), 0);
    }

    #[test]
    fn purposes_and_indices_do_not_share_numbers() {
        let base = Purpose::Initial.stream(1, 2).bits64(3);
        assert_eq!(base, Purpose::Initial.stream(1, 2).bits64(3));
        assert_ne!(base, Purpose::Sampling.stream(1, 2).bits64(3));
        assert_ne!(base, Purpose::Initial.stream(1, 3).bits64(3));
        assert_ne!(base, Purpose::Initial.stream(2, 2).bits64(3));
    }
}

//! Tables that are made from the training text: what a router looks up by a token of the vocabulary.

use moec_ir::{DType, Data, Tensor, TensorType};

use super::program::TableKind;
use crate::routers::{balanced, drawn_buckets};
use crate::state::StateSource;

/// Entries of a table are found by whole numbers that are computed in f32, which is exact up to here.
const MOST_ENTRIES: usize = 1 << 24;

/// What share 1 is in a table of frequencies: whole numbers up to here are exact in f32.
pub(super) const WHOLE: usize = 1 << 24;

/// How a table of `choices` entries for each of `vocab` tokens is made, and behind them for the place where there is no
/// token, which is in front of a sequence.
///
/// # Errors
/// When there are too many entries, as the end of a sentence.
pub(super) fn source(
    made: TableKind,
    vocab: usize,
    experts: usize,
    choices: usize,
    seed: usize,
) -> Result<StateSource, String> {
    let keys = vocab + 1;
    let entries = keys.saturating_mul(choices);
    if entries > MOST_ENTRIES {
        return Err(format!("has a table of {entries} entries, more than {MOST_ENTRIES}"));
    }
    let ty = TensorType { dtype: DType::I32, shape: vec![entries] };
    Ok(StateSource::new(ty, move |text| {
        let mut counts = text.counts();
        counts.push(0);
        let table = match made {
            TableKind::Balanced => balanced(&counts, experts, choices),
            TableKind::Random => (0..keys).flat_map(|key| drawn_buckets(seed, key, experts, choices)).collect(),
            TableKind::Frequency => {
                let all = counts.iter().sum::<u64>().max(1) as f64;
                counts.iter().map(|&count| (count as f64 / all * WHOLE as f64).round() as i32).collect()
            }
        };
        Tensor::new(vec![entries], Data::I32(table)).ok_or_else(|| "a table has the wrong size".to_owned())
    }))
}

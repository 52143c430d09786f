//! Causal self-attention, forward and backward, without a `T x T` matrix in memory.
//!
//! `qkv` is `[N, 3C]`: query, key and value of head `h` start at `h*D`, `C + h*D` and `2C + h*D` of a token's row.
//! Dropout masks are computed again in the backward pass from random element `((b*H + h)*T + query)*T + key`, and so are
//! the probabilities, from the log-sum-exp of each query (as Dao et al. 2022, arXiv 2205.14135).
//!
//! A query may see a window of positions only. A head may have a sink: a score without a value that takes part in every softmax, as
//! if it were the first key; backward, it is in the log-sum-exp, and otherwise nothing is different.
//!
//! CPUs compute in tiles of queries and keys in registers, graphics devices in tiles of shared memory. On CPUs, heads too wide
//! for tiles are computed position by position.

#![allow(unsafe_code, reason = "kernel launches")]

mod cubes;
mod positions;
mod tiles;

use super::random::{key_a, key_b};
use crate::launch::{Arg, Launcher, Target};
use cubecl::prelude::*;
use moec_ir::AttentionAttrs;
use moec_ir::random::dropout_threshold;

/// What all pairs of a sequence and a head have in common.
#[derive(CubeType, CubeLaunch)]
struct Scoring {
    heads: usize,
    scale: f32,
    /// State of the generator, if probabilities are dropped.
    rng: Sequence<Box<[u32]>>,
    /// The stream of random numbers.
    key: u32,
    /// Random words below it drop.
    threshold: u32,
    /// Factor of what is kept.
    keep: f32,
    /// How many positions a query sees, at most the length of a sequence.
    window: usize,
    /// The score of each head's sink, if there are sinks.
    sinks: Sequence<Box<[f32]>>,
}

/// The two keys of the stream that drops probabilities.
#[cube]
fn dropout_keys<W: Size>(scoring: &Scoring, #[comptime] dropout: bool) -> (Vector<u32, W>, Vector<u32, W>) {
    let mut a = Vector::<u32, W>::new(0u32);
    let mut b = Vector::<u32, W>::new(0u32);
    if comptime!(dropout) {
        a = key_a::<W>(&scoring.rng[0], scoring.key);
        b = key_b::<W>(&scoring.rng[0], scoring.key, a);
    }
    (a, b)
}

/// The first position that a query sees.
#[cube]
fn first_seen(query: usize, scoring: &Scoring) -> usize {
    max(query + 1, scoring.window) - scoring.window
}

fn scoring(t: &Target<'_>, attrs: &AttentionAttrs, extra: &Extra) -> ScoringLaunch {
    let rate = attrs.dropout.get();
    let (threshold, keep) = (dropout_threshold(rate), (1.0 / (1.0 - rate)) as f32);
    let (rng, sinks) = (t.bind_all(&extra.rng, 1), t.bind_all(&extra.sinks, 1));
    let window = attrs.window.min(attrs.time);
    ScoringLaunch::new(attrs.heads, attrs.scale.get() as f32, rng, attrs.key, threshold, keep, window, sinks)
}

/// Operands that are there if the attributes say so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extra {
    /// State of the generator.
    pub(crate) rng: Option<Arg>,
    /// The score of each head's sink, `[H]`; forward only.
    pub(crate) sinks: Option<Arg>,
}

/// What of the attributes the compiler must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    /// Whether probabilities are dropped.
    dropout: bool,
    /// Whether there are positions before a query that it does not see.
    windowed: bool,
    /// Whether heads have sinks.
    sink: bool,
}

impl Kind {
    fn of(attrs: &AttentionAttrs) -> Self {
        Self { dropout: attrs.dropout.get() > 0.0, windowed: attrs.window < attrs.time, sink: attrs.sink }
    }

    /// The same backward, where sinks make no difference.
    fn backward(self) -> Self {
        Self { sink: false, ..self }
    }
}

/// `y [N, C]` and the log-sum-exp of the scaled scores `lse [N, H]` from `qkv [N, 3C]`.
pub(crate) fn forward(
    l: &Launcher,
    qkv: Arg,
    extra: &Extra,
    y: Arg,
    lse: Arg,
    attrs: &AttentionAttrs,
    channels: usize,
) {
    if !l.is_cpu() {
        return cubes::launch_forward(l, qkv, extra, y, lse, attrs, channels);
    }
    match tiles::Blocking::new(l, attrs, Kind::of(attrs), channels) {
        Some(blocking) => tiles::launch_forward(l, qkv, extra, y, lse, attrs, blocking),
        None => positions::launch_forward(l, qkv, extra, y, lse, attrs, channels),
    }
}

/// `dqkv [N, 3C]` from `dy [N, C]` and what the forward pass read and wrote.
pub(crate) fn backward(
    l: &Launcher,
    dy: Arg,
    qkv: Arg,
    y: Arg,
    lse: Arg,
    extra: &Extra,
    dqkv: Arg,
    attrs: &AttentionAttrs,
    channels: usize,
) {
    if !l.is_cpu() {
        return cubes::launch_backward(l, dy, qkv, y, lse, extra, dqkv, attrs, channels);
    }
    match tiles::Blocking::new(l, attrs, Kind::of(attrs).backward(), channels) {
        Some(blocking) => tiles::launch_backward(l, dy, qkv, y, lse, extra, dqkv, attrs, blocking),
        None => positions::launch_backward(l, dy, qkv, y, lse, extra, dqkv, attrs, channels),
    }
}

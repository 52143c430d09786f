//! Matrix products, plain and per expert: `y = a b`, each operand optionally stored transposed, plus a bias.
//!
//! One kernel serves both, because a plain product is the grouped product of one expert. Segments of rows belong to
//! experts; with `a` as stored they cut the rows of the result, with `a` transposed (a weight gradient) they cut the
//! summed axis and the result is one matrix per expert.
//!
//! CPU: see [`tiles`], [`pairs`] for operands that are rounded to bfloat16, and [`packed`] for weights in panels. Graphics devices: see [`cubes`].
//!
//! A transposed `a` may be summed as well, without `b`: a unit sums the columns of the tiles that it owns (on graphics
//! devices a cube those of its tile in the first column of tiles), over the rows in order, just before it reads them for
//! the product. Rows of `a`, or of `b` if `a` is transposed, may be fetched by an index instead of in order ([`Fetch`]).

#![allow(unsafe_code, reason = "kernel launches")]

mod cubes;
mod packed;
mod pairs;
mod tiles;

use super::fused::{After, go_on_with};
use crate::launch::{Arg, Launcher, Optional, Target};
use cubecl::prelude::*;
use moec_ir::{Precision, WeightFormat};

/// What the compiler must know of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Layout {
    /// `a` is stored `[K, M]`.
    pub(crate) transpose_a: bool,
    /// `b` is stored `[N, K]`.
    pub(crate) transpose_b: bool,
    /// Rows of `a`, or if that is transposed of `b`, are fetched from where they are.
    pub(crate) fetched: bool,
    /// What the operands are rounded to; bias and sums are as they are.
    pub(crate) precision: Precision,
    /// `b` is stored in panels; not on graphics devices, and neither is `a` or `b` transposed then.
    pub(crate) panels: Option<Panels>,
}

/// How a `b` in panels is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Panels {
    /// The numbers.
    pub(crate) format: WeightFormat,
    /// Columns of a panel.
    pub(crate) columns: usize,
}

impl Layout {
    /// Columns of `b` that are stored in 32 bits.
    fn columns_of_word(&self) -> usize {
        self.panels.map_or(1, |panels| panels.format.columns_of_word())
    }

    /// Whether columns of `b` are multiplied by a scale.
    fn is_scaled(&self) -> bool {
        self.panels.is_some_and(|panels| panels.format.is_scaled())
    }
}

/// Where rows that are fetched are: row `r` is row `order[r] / sharing` of the operand.
#[derive(Clone, Copy)]
pub(crate) struct Fetch {
    /// `i32[rows]`; -1 where nobody looks.
    pub(crate) order: Arg,
    /// Slots that share a row.
    pub(crate) sharing: usize,
    /// Number of slots.
    pub(crate) slots: usize,
}

/// Extents and operands of a product of `experts` pairs of matrices.
pub(crate) struct Product<'a> {
    /// How the operands are stored.
    pub(crate) layout: Layout,
    /// `[M, K]` (or `[K, M]`).
    pub(crate) a: Arg,
    /// `[K, N]` (or `[N, K]`), one per expert unless `a` is transposed; or its panels.
    pub(crate) b: Arg,
    /// `[N]`, one per expert: what the columns of a `b` in panels are multiplied by.
    pub(crate) scale: Option<Arg>,
    /// Where the rows of `a` (of `b` if `a` is transposed) are, if not in order.
    pub(crate) fetch: Option<Fetch>,
    /// `[N]`, one per expert.
    pub(crate) bias: Option<Arg>,
    /// `i32[experts + 1]`: the experts' segments of M, or of K if `a` is transposed. `None`: one segment, all of it.
    pub(crate) offsets: Option<Arg>,
    /// `[M, N]`, one per expert if `a` is transposed and there are offsets.
    pub(crate) y: Arg,
    /// `[M]`, one per expert if there are offsets: `a` without `b`, where `a` is transposed.
    pub(crate) sums: Option<Arg>,
    /// What is done with the result on its way to `y`; not where `a` is transposed and there are offsets.
    pub(crate) after: Option<After<'a>>,
    /// Rows of the result.
    pub(crate) m: usize,
    /// Columns of the result.
    pub(crate) n: usize,
    /// Length of the sums.
    pub(crate) k: usize,
    /// Number of experts; 1 without offsets.
    pub(crate) experts: usize,
}

/// A product as a kernel has it, without its bias and its results.
#[derive(CubeType, CubeLaunch)]
struct Factors {
    a: Box<[f32]>,
    b: Box<[f32]>,
    offsets: Optional<i32>,
    fetch: Fetched,
    m: usize,
    n: usize,
    k: usize,
    experts: usize,
}

/// Where rows are fetched from; see [`Fetch`].
#[derive(CubeType, CubeLaunch)]
struct Fetched {
    order: Box<[i32]>,
    sharing: usize,
    slots: usize,
}

impl Product<'_> {
    /// As an argument of a launch.
    fn factors(&self, t: &Target<'_>) -> FactorsLaunch {
        let Self { a, b, m, n, k, experts, .. } = *self;
        // Without an order, nobody looks.
        let Fetch { order, sharing, slots } = self.fetch.unwrap_or(Fetch { order: a, sharing: 1, slots: 1 });
        let fetch = FetchedLaunch::new(t.bind(order, 1), sharing, slots);
        let offsets = Optional::bind(t, self.offsets, a, 1);
        FactorsLaunch::new(t.bind(a, 1), t.bind(b, 1), offsets, fetch, m, n, k, experts)
    }
}

/// Where a segment starts or ends, which is never beyond the last of `rows`, whatever the offsets hold.
#[cube]
pub(crate) fn segment_end(offsets: &[i32], e: usize, rows: usize) -> usize {
    min(max(offsets[e], 0i32) as usize, rows)
}

/// Where a row is fetched from. Whatever the order holds, it is one of the operand.
#[cube]
fn fetched_row(fetch: &Fetched, row: usize) -> usize {
    min(max(fetch.order[row], 0i32) as usize, fetch.slots - 1) / fetch.sharing
}

/// Number of segments. Rows after the last one belong to no expert: they are one more, whose sums are empty.
#[cube]
fn segment_count(x: &Factors, #[comptime] layout: Layout) -> usize {
    if comptime!(layout.transpose_a) { x.experts } else { x.experts + x.offsets.given }
}

/// The rows, or for a transposed `a` the summed elements, of an expert; those after the last expert for one number more.
#[cube]
fn segment(x: &Factors, e: usize, #[comptime] layout: Layout) -> (usize, usize) {
    let end = if comptime!(layout.transpose_a) { x.k } else { x.m };
    let mut s0 = 0usize.runtime();
    let mut s1 = end;
    if x.offsets.given != 0 {
        s0 = segment_end(&x.offsets.values, e, end);
        if e < x.experts {
            s1 = max(segment_end(&x.offsets.values, e + 1, end), s0);
        }
    }
    (s0, s1)
}

/// Launches a product.
pub(crate) fn launch(l: &Launcher, p: &Product<'_>) {
    // Graphics devices go on with single elements.
    let w = if l.is_cpu() { l.profile().matrix_width() } else { 1 };
    go_on_with(l, p.y, p.after, (p.n % w == 0).then_some(w), |then| {
        if l.is_cpu() {
            tiles::launch(l, p, then);
        } else {
            cubes::launch(l, p, then);
        }
    });
}

//! Operands of a product that are rounded to bfloat16, on the CPU: two summed elements in a word, that of the lower index in
//! the lower half, as `vdpbf16ps` multiplies them.
//!
//! A block of a panel of `b` is brought to where the unit has it in float32, and becomes words in place. Rows of `a` are
//! broadcast word by word, and meet every panel of columns: a unit rounds those of a group of its tiles once for a block,
//! to its part of the scratch memory. Pairs are counted from the start of an expert's sums, and blocks have an even length,
//! so that bits depend neither on the tiling nor on who computes an element. The last of an odd number is paired with 0.
//!
//! A processor without the instruction takes a word apart again, which costs a shift and a mask for each broadcast and
//! saves nothing; it is the price of having one order of elements everywhere.

use super::super::native::dot_bf16;
use super::{Factors, Layout, fetched_row};
use cubecl::prelude::*;

/// Words that the rows of a group of tiles may take: with a panel of `b` they stay in the second cache.
const MOST_WORDS: usize = 1 << 15;

/// Where a unit keeps its rows of `a` as words; without a buffer where nothing is rounded.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Words {
    /// All units' words.
    pub(super) all: Sequence<Box<[u32]>>,
    /// Words of a unit.
    pub(super) own: usize,
    /// Tiles whose rows are there at a time.
    pub(super) tiles: usize,
}

/// Tiles of that many rows whose words a unit has room for, for blocks of `length` elements.
pub(super) fn tiles_at_once(own: usize, rows: usize, length: usize) -> usize {
    (own.min(MOST_WORDS) / (rows * length.div_ceil(2).max(1))).max(1)
}

/// The bits of numbers rounded to bfloat16, of which the upper halves count: to the nearest, ties to even. A NaN becomes a
/// quiet one, since its upper half alone may be an infinity's.
#[cube]
pub(super) fn rounded<W: Size>(x: Vector<f32, W>) -> Vector<u32, W> {
    let bits = Vector::<u32, W>::reinterpret(x);
    let last = (bits >> Vector::new(16u32)) & Vector::new(1u32);
    let carried = bits + Vector::new(0x7fffu32) + last;
    let quiet = bits | Vector::new(0x0040_0000u32);
    let magnitude = bits & Vector::new(0x7fff_ffffu32);
    select_many(magnitude.greater_than(&Vector::new(0x7f80_0000u32)), quiet, carried)
}

/// Words of two summed elements each.
#[cube]
fn words<W: Size>(even: Vector<f32, W>, odd: Vector<f32, W>) -> Vector<u32, W> {
    (rounded::<W>(even) >> Vector::new(16u32)) | (rounded::<W>(odd) & Vector::new(0xffff_0000u32))
}

/// Makes words of a panel of `length` rows of vectors, in its place.
#[cube]
pub(super) fn pair_panel<W: Size>(panel: &mut Array<Vector<f32, W>>, length: usize, #[comptime] vectors: usize) {
    for h in 0..length / 2 {
        for j in 0..vectors {
            let pair = words::<W>(panel[2 * h * vectors + j], panel[(2 * h + 1) * vectors + j]);
            panel[h * vectors + j] = Vector::<f32, W>::reinterpret(pair);
        }
    }
    if length % 2 != 0 {
        let h = length / 2;
        for j in 0..vectors {
            let pair = words::<W>(panel[2 * h * vectors + j], Vector::new(0.0f32));
            panel[h * vectors + j] = Vector::<f32, W>::reinterpret(pair);
        }
    }
}

/// A word of two elements of `a`.
#[cube]
fn word(even: f32, odd: f32) -> u32 {
    let (even, odd) = (Vector::<f32, Const<1>>::new(even), Vector::<f32, Const<1>>::new(odd));
    words::<Const<1>>(even, odd).extract(0usize)
}

/// Rounds rows `row0 .. row1` of the result's `a`, of summed elements `q0 .. q0 + length`, to the words from `start` on:
/// row after row, or if `a` is transposed pair after pair.
#[cube]
pub(super) fn pair_rows(
    x: &Factors,
    out: &mut [u32],
    start: usize,
    rows: (usize, usize),
    q0: usize,
    length: usize,
    #[comptime] layout: Layout,
) {
    let (row0, row1) = rows;
    let (pairs, full) = ((length + 1) / 2, length / 2);
    if comptime!(layout.transpose_a) {
        let width = row1 - row0;
        for h in 0..full {
            let from = (q0 + 2 * h) * x.m + row0;
            for c in 0..width {
                out[start + h * width + c] = word(x.a[from + c], x.a[from + x.m + c]);
            }
        }
        if full < pairs {
            for c in 0..width {
                out[start + full * width + c] = word(x.a[(q0 + length - 1) * x.m + row0 + c], 0.0f32);
            }
        }
    } else {
        for row in row0..row1 {
            let mut stored = row;
            if comptime!(layout.fetched) {
                stored = fetched_row(&x.fetch, row);
            }
            let (from, to) = (stored * x.k + q0, start + (row - row0) * pairs);
            for h in 0..full {
                out[to + h] = word(x.a[from + 2 * h], x.a[from + 2 * h + 1]);
            }
            if full < pairs {
                out[to + full] = word(x.a[from + length - 1], 0.0f32);
            }
        }
    }
}

/// `sum + a.odd * b.odd + a.even * b.even`, rounded after each of the two products is added, in this order: as the
/// instruction does it ("Intel 64 and IA-32 Architectures Software Developer's Manual", volume 2, VDPBF16PS). That also takes
/// numbers below 2^-126 for 0.
#[cube]
pub(super) fn dot<W: Size>(
    sum: Vector<f32, W>,
    a: Vector<u32, W>,
    b: Vector<u32, W>,
    #[comptime] instruction: bool,
) -> Vector<f32, W> {
    if comptime!(instruction) {
        dot_bf16::<W>(sum, a, b)
    } else {
        let (upper, half) = (Vector::<u32, W>::new(0xffff_0000u32), Vector::<u32, W>::new(16u32));
        let odd = fma(Vector::<f32, W>::reinterpret(a & upper), Vector::<f32, W>::reinterpret(b & upper), sum);
        fma(Vector::<f32, W>::reinterpret(a << half), Vector::<f32, W>::reinterpret(b << half), odd)
    }
}

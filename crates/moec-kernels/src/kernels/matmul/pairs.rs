//! Operands of a product that are rounded to bfloat16, on the CPU: as the instruction `vdpbf16ps` multiplies them, two summed
//! elements in a word, that of the lower index in the lower half; or, on a processor without it, one in a word, as the
//! float32 number that it is.
//!
//! A block of a panel of `b` is brought to where the unit has it in float32, and becomes words in place. Rows of `a` are
//! broadcast word by word, and meet every panel of columns: a unit rounds those of a group of its tiles once for a block,
//! to its part of the scratch memory. Pairs are counted from the start of an expert's sums, and blocks have an even length,
//! so that bits depend neither on the tiling nor on who computes an element. The last of an odd number is paired with 0.
//!
//! Words of pairs could be taken apart where they are multiplied, on every processor. With AVX2 that is half as fast as
//! products of float32 numbers: both halves of a panel's row leave no registers for those of `a`.

use super::super::native::dot_bf16;
use super::{Factors, Layout, fetched_row};
use crate::launch::Bf16Products;
use cubecl::prelude::*;
use moec_ir::Precision;

/// Words that the rows of a group of tiles may take: with a panel of `b` they stay in the second cache.
const MOST_WORDS: usize = 1 << 16;

/// The upper half of a word.
const UPPER: u32 = 0xffff_0000;

/// How a product reads its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reading {
    /// Where they are, as they are.
    Stored,
    /// From words, which are made like this.
    Words(Bf16Products),
}

impl Reading {
    /// The reading of a product of that precision, on a device that has such products.
    pub(super) fn new(precision: Precision, products: Bf16Products) -> Self {
        match precision {
            Precision::F32 => Reading::Stored,
            Precision::Bf16 => Reading::Words(products),
        }
    }

    /// Whether operands are made words.
    pub(super) fn words(self) -> bool {
        self != Reading::Stored
    }

    /// Summed elements of a word.
    pub(super) fn each(self) -> usize {
        match self {
            Reading::Stored | Reading::Words(Bf16Products::Rounded) => 1,
            Reading::Words(Bf16Products::Instruction | Bf16Products::Pairs) => 2,
        }
    }
}

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

/// Tiles whose words a unit has room for, where a tile has that many.
pub(super) fn tiles_at_once(own: usize, words: usize) -> usize {
    (own.min(MOST_WORDS) / words.max(1)).max(1)
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

/// Words of one or two summed elements each; of one, the second does not matter.
#[cube]
fn words<W: Size>(even: Vector<f32, W>, odd: Vector<f32, W>, #[comptime] each: usize) -> Vector<u32, W> {
    if comptime!(each == 1) {
        rounded::<W>(even) & Vector::new(UPPER)
    } else {
        (rounded::<W>(even) >> Vector::new(16u32)) | (rounded::<W>(odd) & Vector::new(UPPER))
    }
}

/// As [`words`], of two numbers.
#[cube]
fn word(even: f32, odd: f32, #[comptime] each: usize) -> u32 {
    let (even, odd) = (Vector::<f32, Const<1>>::new(even), Vector::<f32, Const<1>>::new(odd));
    words::<Const<1>>(even, odd, each).extract(0usize)
}

/// Makes words of a panel of `length` rows of vectors, in its place.
#[cube]
pub(super) fn panel_to_words<W: Size>(
    panel: &mut Array<Vector<f32, W>>,
    length: usize,
    #[comptime] vectors: usize,
    #[comptime] each: usize,
) {
    let full = length / each;
    for h in 0..full {
        for j in 0..vectors {
            let (even, odd) = (panel[each * h * vectors + j], panel[(each * h + each - 1) * vectors + j]);
            panel[h * vectors + j] = Vector::<f32, W>::reinterpret(words::<W>(even, odd, each));
        }
    }
    if each * full < length {
        for j in 0..vectors {
            let pair = words::<W>(panel[each * full * vectors + j], Vector::new(0.0f32), each);
            panel[full * vectors + j] = Vector::<f32, W>::reinterpret(pair);
        }
    }
}

/// Rounds rows `row0 .. row1` of the result's `a`, of summed elements `q0 .. q0 + length`, to the words from `start` on:
/// row after row, or if `a` is transposed word after word of all of them.
#[cube]
pub(super) fn rows_to_words(
    x: &Factors,
    out: &mut [u32],
    start: usize,
    rows: (usize, usize),
    q0: usize,
    length: usize,
    #[comptime] layout: Layout,
    #[comptime] each: usize,
) {
    let (row0, row1) = rows;
    let (all, full) = ((length + each - 1) / each, length / each);
    if comptime!(layout.transpose_a) {
        let width = row1 - row0;
        for h in 0..full {
            let even = (q0 + each * h) * x.m + row0;
            let odd = even + comptime!(each - 1) * x.m;
            for c in 0..width {
                out[start + h * width + c] = word(x.a[even + c], x.a[odd + c], each);
            }
        }
        if full < all {
            for c in 0..width {
                out[start + full * width + c] = word(x.a[(q0 + length - 1) * x.m + row0 + c], 0.0f32, each);
            }
        }
    } else {
        for row in row0..row1 {
            let mut stored = row;
            if comptime!(layout.fetched) {
                stored = fetched_row(&x.fetch, row);
            }
            let (from, to) = (stored * x.k + q0, start + (row - row0) * all);
            for h in 0..full {
                out[to + h] = word(x.a[from + each * h], x.a[from + each * h + each - 1], each);
            }
            if full < all {
                out[to + full] = word(x.a[from + length - 1], 0.0f32, each);
            }
        }
    }
}

/// `sum` with the product of a word of `a` and of `b` in each lane added, or both products: `sum + a.odd * b.odd + a.even *
/// b.even`, rounded after each is added, in this order. That is how the instruction does it ("Intel 64 and IA-32
/// Architectures Software Developer's Manual", volume 2, VDPBF16PS), which takes numbers below 2^-126 for 0 as well.
#[cube]
pub(super) fn add_product<W: Size>(
    sum: Vector<f32, W>,
    a: Vector<u32, W>,
    b: Vector<f32, W>,
    #[comptime] reading: Reading,
) -> Vector<f32, W> {
    match comptime!(reading) {
        Reading::Stored | Reading::Words(Bf16Products::Rounded) => fma(Vector::<f32, W>::reinterpret(a), b, sum),
        Reading::Words(Bf16Products::Instruction) => dot_bf16::<W>(sum, a, Vector::<u32, W>::reinterpret(b)),
        Reading::Words(Bf16Products::Pairs) => {
            let b = Vector::<u32, W>::reinterpret(b);
            let (upper, half) = (Vector::<u32, W>::new(UPPER), Vector::<u32, W>::new(16u32));
            let odd = fma(Vector::<f32, W>::reinterpret(a & upper), Vector::<f32, W>::reinterpret(b & upper), sum);
            fma(Vector::<f32, W>::reinterpret(a << half), Vector::<f32, W>::reinterpret(b << half), odd)
        }
    }
}

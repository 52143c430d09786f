//! Matrix products, plain and per expert: `y = a b`, each operand optionally stored transposed, plus a bias.
//!
//! One kernel serves both, because a plain product is the grouped product of one expert. Segments of rows belong to
//! experts; with `a` as stored they cut the rows of the result, with `a` transposed (a weight gradient) they cut the
//! summed axis and the result is one matrix per expert.
//!
//! CPU: every unit owns a range of column panels and of the tiles of all experts together, which is cut by the work of the
//! tiles. Mostly that is all panels of some rows: neighbouring operations then find what they read in the cache of the
//! same core, and each expert's matrix is packed by one unit. A panel of a few vectors of `b` is packed (and
//! transposed if need be) into a private array once per block of summed elements; a tile of the result, a few rows of a
//! panel, stays in registers while the block is summed. An element is summed by one unit in index order, through the
//! register it is stored from and reloaded into, so its bits depend neither on the number of units nor on the tiling.
//! Extents are runtime values: a training step compiles a handful of these, whatever its shapes.
//!
//! A transposed `a` may be summed as well, without `b`: a unit sums the columns of the tiles that it owns (on graphics
//! devices a cube those of its tile in the first column of tiles), over the rows in order, just before it reads them for
//! the product. Rows of `a`, or of `b` if `a` is transposed, may be fetched by an index instead of in order ([`Fetch`]).
//!
//! Graphics devices: see [`cubes`].

#![allow(unsafe_code, reason = "kernel launches")]

mod cubes;

use super::fused::{After, Program, Then, dropout_keys, go_on, go_on_with};
use crate::launch::{Arg, Launcher};
use cubecl::prelude::*;

/// How the CPU's kernel is blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tiling {
    /// Lanes of a vector register.
    lanes: usize,
    /// Rows of a register tile.
    rows: usize,
    /// Vectors of a register tile.
    vectors: usize,
    /// Summed elements of a packed panel. Private arrays beyond 1024 elements take the CPU's compiler seconds.
    block: usize,
}

impl Tiling {
    /// The tiling for `m` rows and `n` columns on a machine with vector registers of that many lanes. The 16 registers
    /// of AVX2 hold 6 by 2 accumulators, two vectors of `b` and a broadcast element of `a`; the 32 of AVX-512 twice
    /// that, where four vectors of `b` make the packed panel 32 KiB with a quarter of the block.
    fn new(lanes: usize, m: usize, n: usize) -> Self {
        let (mut rows, vectors, block) = match lanes {
            _ if n <= lanes => (12, 1, 512),
            16 => (6, 4, 128),
            _ => (6, 2, 512),
        };
        while rows > m {
            rows /= 2;
        }
        Self { lanes, rows, vectors, block }
    }
}

/// What the compiler must know of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Layout {
    /// `a` is stored `[K, M]`.
    pub(crate) transpose_a: bool,
    /// `b` is stored `[N, K]`.
    pub(crate) transpose_b: bool,
    /// Rows of `a`, or if that is transposed of `b`, are fetched from where they are.
    pub(crate) fetched: bool,
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
    /// `[K, N]` (or `[N, K]`), one per expert unless `a` is transposed.
    pub(crate) b: Arg,
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

/// Copies vectors of a row that starts at element `start`, from vector `first` on, to `out` from vector `to` on. Columns
/// beyond the last repeat it.
#[cube]
fn load_row<W: Size, L: Size>(
    values: &[Vector<f32, L>],
    out: &mut Array<Vector<f32, W>>,
    start: usize,
    first: usize,
    to: usize,
    columns: usize,
    #[comptime] vectors: usize,
) {
    let (w, stored) = (W::value(), L::value());
    if comptime!(w == stored) {
        let last = columns / w - 1;
        for j in 0..vectors {
            out[to + j] = values.with_vector_size::<W>()[start / w + min(first + j, last)];
        }
    } else {
        let values = values.with_vector_size::<Const<1>>();
        let out = out.with_vector_size_mut::<Const<1>>();
        for lane in 0..comptime!(vectors * w) {
            out[to * w + lane] = values[start + min(first * w + lane, columns - 1)];
        }
    }
}

#[cube]
fn clear<W: Size>(values: &mut Array<Vector<f32, W>>, #[comptime] length: usize) {
    for j in 0..length {
        values[j] = Vector::new(0.0f32);
    }
}

/// Where a segment starts or ends, which is never beyond the last of `rows`, whatever the offsets hold.
#[cube]
pub(crate) fn segment_end(offsets: &[i32], e: usize, rows: usize) -> usize {
    min(max(offsets[e], 0i32) as usize, rows)
}

/// Where a row is fetched from. Whatever `order` holds, it is one of the operand.
#[cube]
fn fetched_row(order: &[i32], row: usize, sharing: usize, slots: usize) -> usize {
    min(max(order[row], 0i32) as usize, slots - 1) / sharing
}

/// The rows (or summed elements) of an expert, of `end` in all; those after the last expert for one number more.
#[cube]
fn segment(offsets: &[i32], e: usize, experts: usize, end: usize, grouped: usize) -> (usize, usize) {
    let mut s0 = 0usize.runtime();
    let mut s1 = end;
    if grouped != 0 {
        s0 = segment_end(offsets, e, end);
        if e < experts {
            s1 = max(segment_end(offsets, e + 1, end), s0);
        }
    }
    (s0, s1)
}

/// `work * part / parts`, but for rounding that is the same for all units: the product may not fit 32 bits.
#[cube]
fn share(work: usize, part: usize, parts: usize) -> usize {
    work / parts * part + work % parts * part / parts
}

/// Tiles of an expert whose segment is that long.
#[cube]
fn tile_count(length: usize, m: usize, rows: usize, #[comptime] transpose_a: bool) -> usize {
    let extent = if comptime!(transpose_a) { m } else { length };
    (extent + rows - 1) / rows
}

/// Work of one of its tiles, in units that are the same for all experts: loading and storing a tile is worth a few of
/// its summed elements.
#[cube]
fn tile_work(length: usize, #[comptime] transpose_a: bool) -> usize {
    if comptime!(transpose_a) { length + 16 } else { 1usize.runtime() }
}

/// Sums of columns `c0 .. c1` of rows `q0 .. q1` of a matrix with `columns` of them (all in vectors), in row order, to
/// `sums` from `to` on. Several neighbouring vectors at a time: rows are far apart in memory.
#[cube]
fn sum_columns<A: Size>(
    values: &[Vector<f32, A>],
    sums: &mut [Vector<f32, A>],
    to: usize,
    c0: usize,
    c1: usize,
    q0: usize,
    q1: usize,
    columns: usize,
) {
    let together = comptime!(4usize);
    for first in range_stepped(c0, c1, together) {
        let mut acc = Array::<Vector<f32, A>>::new(together);
        clear(&mut acc, together);
        for q in q0..q1 {
            #[unroll]
            for j in 0..together {
                // Beyond the last column, where nobody looks.
                acc[j] += values[q * columns + min(first + j, columns - 1)];
            }
        }
        for j in 0..min(together, c1 - first) {
            sums[to + first + j] = acc[j];
        }
    }
}

#[cube(launch_unchecked)]
fn tiled<W: Size, L: Size, S: Size>(
    a: &[f32],
    rows_of_a: &[Vector<f32, S>],
    b: &[f32],
    b_vectors: &[Vector<f32, L>],
    bias: &[Vector<f32, L>],
    offsets: &[i32],
    order: &[i32],
    vectors_after: &Sequence<Box<[Vector<f32, W>]>>,
    scalars_after: &Sequence<Box<[f32]>>,
    rng: &Sequence<Box<[u32]>>,
    keys: &Sequence<u32>,
    y: &mut [Vector<f32, L>],
    sums: &mut [Vector<f32, S>],
    more: &mut Sequence<Box<[Vector<f32, W>]>>,
    m: usize,
    n: usize,
    k: usize,
    experts: usize,
    grouped: usize,
    has_bias: usize,
    has_sums: usize,
    sharing: usize,
    slots: usize,
    column_groups: usize,
    #[comptime] layout: Layout,
    #[comptime] tiling: Tiling,
    #[comptime] after: Program,
) {
    let w = W::value();
    let mr = comptime!(tiling.rows);
    let nv = comptime!(tiling.vectors);
    let kb = comptime!(tiling.block);
    let stored = L::value();
    let transpose_a = comptime!(layout.transpose_a);
    let vectors = (n + w - 1) / w;
    let panels = (vectors + nv - 1) / nv;
    let unit = UNIT_POS as usize;
    let row_groups = CUBE_DIM as usize / column_groups;
    let (column_group, row_group) = (unit % column_groups, unit / column_groups);
    let p0 = panels * column_group / column_groups;
    let p1 = panels * (column_group + 1) / column_groups;
    let mut keys_a = Sequence::<Vector<u32, W>>::new();
    let mut keys_b = Sequence::<Vector<u32, W>>::new();
    dropout_keys::<W>(rng, keys, &mut keys_a, &mut keys_b, comptime!(after.keys));
    let mut panel = Array::<Vector<f32, W>>::new(comptime!(kb * nv));
    let mut start = Array::<Vector<f32, W>>::new(nv);
    clear(&mut start, nv);
    // A register tile on its way from and to memory.
    let mut tile = Array::<Vector<f32, W>>::new(comptime!(mr * nv));
    let mut work = 0usize.runtime();
    // Rows after the last segment belong to no expert: one more segment, whose sums are empty.
    let segments = if comptime!(transpose_a) { experts } else { experts + grouped };
    for e in 0..segments {
        let (s0, s1) = segment(offsets, e, experts, if comptime!(transpose_a) { k } else { m }, grouped);
        work += tile_count(s1 - s0, m, mr, transpose_a) * tile_work(s1 - s0, transpose_a);
    }
    let (work0, work1) = (share(work, row_group, row_groups), share(work, row_group + 1, row_groups));
    let mut before = 0usize.runtime();
    for e in 0..segments {
        let (s0, s1) = segment(offsets, e, experts, if comptime!(transpose_a) { k } else { m }, grouped);
        // The segment's range of rows and of summed elements, and where its matrices start.
        let mut row0 = s0;
        let mut row1 = s1;
        let mut sum0 = 0usize.runtime();
        let mut sum1 = if e < experts { k } else { 0usize.runtime() };
        let mut b0 = e * n * k;
        let mut y0 = 0usize.runtime();
        if comptime!(transpose_a) {
            row0 = 0usize.runtime();
            row1 = m;
            sum0 = s0;
            sum1 = s1;
            b0 = 0usize.runtime();
            y0 = e * m * n;
        }
        let tiles = tile_count(s1 - s0, m, mr, transpose_a);
        let each = tile_work(s1 - s0, transpose_a);
        let t0 = min((max(work0, before) - before + each - 1) / each, tiles);
        let t1 = min((max(work1, before) - before + each - 1) / each, tiles);
        before += tiles * each;
        if t1 > t0 {
            if comptime!(transpose_a) {
                // Just before the unit reads these columns anyway; what lies between two tiles is the former's.
                if has_sums != 0 && column_group == 0 {
                    let (v, columns) = (S::value(), m / S::value());
                    let (c0, c1) = ((t0 * mr + v - 1) / v, min((t1 * mr + v - 1) / v, columns));
                    sum_columns::<S>(rows_of_a, sums, e * columns, c0, c1, sum0, sum1, columns);
                }
            }
            // A sum over nothing still stores its start.
            let blocks = max((sum1 - sum0 + kb - 1) / kb, 1);
            for p in p0..p1 {
                for block in 0..blocks {
                    let q0 = sum0 + block * kb;
                    let len = min(kb, sum1 - q0);
                    if comptime!(layout.transpose_b) {
                        // One column vector at a time: its rows of `b` are as many cache lines as it has lanes.
                        for j in 0..nv {
                            for q in 0..len {
                                let mut v = Vector::<f32, W>::empty();
                                #[unroll]
                                for lane in 0..w {
                                    let column = min((p * nv + j) * w + lane, n - 1);
                                    v.insert(lane, b[b0 + column * k + q0 + q]);
                                }
                                panel[q * nv + j] = v;
                            }
                        }
                    } else {
                        for q in 0..len {
                            let mut row = q0 + q;
                            if comptime!(layout.fetched && transpose_a) {
                                row = fetched_row(order, row, sharing, slots);
                            }
                            load_row::<W, L>(b_vectors, &mut panel, b0 + row * n, p * nv, q * nv, n, nv);
                        }
                    }
                    if has_bias != 0 {
                        if e < experts {
                            load_row::<W, L>(bias, &mut start, e * n, p * nv, 0usize, n, nv);
                        } else {
                            clear(&mut start, nv);
                        }
                    }
                    // A tile at the end of all rows starts earlier, to read only what is there. Its first row and that
                    // row's place in `a` are carried from tile to tile: computed anew, they end up in the inner loop.
                    let mut top = min(row0 + t0 * mr, m - mr);
                    let row_step = if comptime!(transpose_a) { 1usize.runtime() } else { k };
                    let mut place = top * row_step;
                    for t in t0..t1 {
                        let first = row0 + t * mr;
                        let end = min(first + mr, row1);
                        for i in 0..mr {
                            if block == 0 {
                                for j in 0..nv {
                                    tile[i * nv + j] = start[j];
                                }
                            } else {
                                load_row::<W, L>(&*y, &mut tile, y0 + (top + i) * n, p * nv, i * nv, n, nv);
                            }
                        }
                        let mut acc = Array::<Vector<f32, W>>::new(comptime!(mr * nv));
                        #[unroll]
                        for i in 0..comptime!(mr * nv) {
                            acc[i] = tile[i];
                        }
                        let mut starts = Sequence::<usize>::new();
                        if comptime!(layout.fetched && !transpose_a) {
                            #[unroll]
                            for i in 0..mr {
                                starts.push(fetched_row(order, top + i, sharing, slots) * k);
                            }
                        }
                        for q in 0..len {
                            let mut row = Sequence::<Vector<f32, W>>::new();
                            #[unroll]
                            for j in 0..nv {
                                row.push(panel[q * nv + j]);
                            }
                            #[unroll]
                            for i in 0..mr {
                                let v = if comptime!(transpose_a) {
                                    a[place + (q0 + q) * m + i]
                                } else if comptime!(layout.fetched) {
                                    a[starts[i] + q0 + q]
                                } else {
                                    a[place + i * k + q0 + q]
                                };
                                let v = Vector::<f32, W>::new(v);
                                #[unroll]
                                for j in 0..nv {
                                    acc[i * nv + j] = fma(v, row[j], acc[i * nv + j]);
                                }
                            }
                        }
                        #[unroll]
                        for i in 0..comptime!(mr * nv) {
                            tile[i] = acc[i];
                        }
                        for i in first - top..end - top {
                            let row = y0 + (top + i) * n;
                            if comptime!(w == stored) {
                                for j in 0..min(nv, vectors - p * nv) {
                                    let at = row / w + p * nv + j;
                                    let mut value = tile[i * nv + j];
                                    if block + 1 == blocks {
                                        value = go_on::<W>(
                                            at,
                                            value,
                                            vectors_after,
                                            scalars_after,
                                            &keys_a,
                                            &keys_b,
                                            more,
                                            comptime!(after.clone()),
                                        );
                                    }
                                    y.with_vector_size_mut::<W>()[at] = value;
                                }
                            } else {
                                let lanes = tile.with_vector_size::<Const<1>>();
                                for lane in 0..min(comptime!(nv * w), n - p * nv * w) {
                                    let column = row + p * nv * w + lane;
                                    y.with_vector_size_mut::<Const<1>>()[column] = lanes[i * nv * w + lane];
                                }
                            }
                        }
                        top = min(top + mr, m - mr);
                        place = min(place + mr * row_step, (m - mr) * row_step);
                    }
                }
            }
        }
    }
}

/// Divides `units` into groups that share the column panels; the units of a group share the tiles, of which there are
/// `tiles` in all experts together. Of all divisors the one whose busiest unit has least to do: packing a panel of an
/// expert costs about as much as computing four tiles with it, and a unit that owns some columns only reads the rows
/// that another one wrote, which costs about a fifth of a tile more.
fn column_groups(units: usize, panels: usize, tiles: usize, experts: usize) -> usize {
    let work = |groups: usize| {
        let sharing = units / groups;
        let packed = if sharing == 1 { experts } else { experts.div_ceil(sharing) + 1 };
        let reading = if groups == 1 { 10 } else { 12 };
        panels.div_ceil(groups) * (reading * tiles.div_ceil(sharing) + 40 * packed.min(experts))
    };
    (1..=units).filter(|&groups| units % groups == 0).min_by_key(|&groups| work(groups)).unwrap_or(1)
}

/// Launches a product.
pub(crate) fn product(l: &Launcher, p: &Product<'_>) {
    // Graphics devices go on with single elements.
    let w = if l.is_cpu() { l.profile().matrix_width() } else { 1 };
    go_on_with(l, p.y, p.after, (p.n % w == 0).then_some(w), |then| bare(l, p, then));
}

/// What a launch binds beside the matrices of a product. An absent operand is never read, and absent sums are never
/// written: another buffer is bound in their place.
struct Extras {
    bias: Arg,
    offsets: Arg,
    sums: Arg,
    has_bias: usize,
    grouped: usize,
    has_sums: usize,
    fetch: Fetch,
}

impl Extras {
    fn new(p: &Product<'_>) -> Self {
        let [has_bias, grouped, has_sums] = [p.bias, p.offsets, p.sums].map(|extra| usize::from(extra.is_some()));
        let (bias, offsets, sums) = (p.bias.unwrap_or(p.b), p.offsets.unwrap_or(p.a), p.sums.unwrap_or(p.y));
        let fetch = p.fetch.unwrap_or(Fetch { order: p.a, sharing: 1, slots: 1 });
        Self { bias, offsets, sums, has_bias, grouped, has_sums, fetch }
    }
}

/// Launches the kernel of a product, with the program that goes on with it if that can be part of it.
fn bare(l: &Launcher, p: &Product<'_>, then: &Then<'_>) {
    if !l.is_cpu() {
        return cubes::launch(l, p, then);
    }
    let Product { layout, a, b, y, m, n, k, experts, .. } = *p;
    let Extras { bias, offsets, sums, has_bias, grouped, has_sums, fetch } = Extras::new(p);
    let w = l.profile().matrix_width();
    let tiling = Tiling::new(w, m, n);
    let aligned = |columns: usize| if columns % w == 0 { w } else { 1 };
    let (aligned, a_width) = (aligned(n), if layout.transpose_a { aligned(m) } else { 1 });
    l.launch(
        1,
        || format!("matmul {layout:?} {tiling:?} w{aligned} w{a_width}{then}"),
        // SAFETY: columns and rows beyond the extents are neither read nor written, segments are cut off at `m` (or `k`).
        |t| unsafe {
            let tiles = m.div_ceil(tiling.rows);
            let tiles = if layout.transpose_a { tiles * experts } else { tiles + experts - 1 };
            let groups = column_groups(t.units(), n.div_ceil(w * tiling.vectors), tiles, experts);
            tiled::launch_unchecked(
                t.client,
                t.count(),
                t.dim(),
                w,
                aligned,
                a_width,
                t.bind(a, 1),
                t.bind(a, a_width),
                t.bind(b, 1),
                t.bind(b, aligned),
                t.bind(bias, aligned),
                t.bind(offsets, 1),
                t.bind(fetch.order, 1),
                t.bind_all(&then.vectors, w),
                t.bind_all(&then.scalars, 1),
                t.bind_all(&then.rng, 1),
                then.keys.iter().copied().collect(),
                t.bind(y, aligned),
                t.bind(sums, a_width),
                t.bind_all(then.more, w),
                m,
                n,
                k,
                experts,
                grouped,
                has_bias,
                has_sums,
                fetch.sharing,
                fetch.slots,
                groups,
                layout,
                tiling,
                then.program.clone(),
            );
        },
    );
}

/// `y [M, N] = a b (+ bias [N])`, `a [M, K]` or, transposed, `[K, M]`, `b [K, N]` or, transposed, `[N, K]`; for a
/// transposed `a` with its `sums [M]`.
pub(crate) fn launch(
    l: &Launcher,
    a: Arg,
    b: Arg,
    bias: Option<Arg>,
    y: Arg,
    sums: Option<Arg>,
    m: usize,
    n: usize,
    k: usize,
    transpose_a: bool,
    transpose_b: bool,
    after: Option<After<'_>>,
) {
    let layout = Layout { transpose_a, transpose_b, fetched: false };
    let (fetch, offsets) = (None, None);
    product(l, &Product { layout, a, b, fetch, bias, offsets, y, sums, after, m, n, k, experts: 1 });
}

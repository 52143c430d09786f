#![allow(warnings, unsafe_code, clippy::all)]
use cubecl::prelude::*;
use std::time::Instant;
/// How the CPU's kernel is blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tiling {
    pub lanes: usize,
    /// Rows of a register tile.
    pub rows: usize,
    /// Vectors of a register tile.
    pub vectors: usize,
    /// Summed elements of a packed panel. Private arrays beyond 1024 elements take the CPU's compiler seconds.
    pub block: usize,
}

impl Tiling {
    /// The tiling for `m` rows and `n` columns on a machine with vector registers of that many lanes. The 16 registers
    /// of AVX2 hold 6 by 2 accumulators, two vectors of `b` and a broadcast element of `a`; the 32 of AVX-512 twice
    /// that, where four vectors of `b` make the packed panel 32 KiB with half the block.
    fn new(lanes: usize, m: usize, n: usize) -> Self {
        let (mut rows, vectors, block) = match lanes {
            _ if n <= lanes => (12, 1, 512),
            16 => (6, 4, 256),
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
pub struct Layout {
    /// `a` is stored `[K, M]`.
    pub transpose_a: bool,
    /// `b` is stored `[N, K]`.
    pub transpose_b: bool,
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

/// Where a segment starts or ends, which is never beyond the last of `rows`, whatever the offsets hold.
#[cube]
pub fn segment_end(offsets: &[i32], e: usize, rows: usize) -> usize {
    min(max(offsets[e], 0i32) as usize, rows)
}

#[cube(launch_unchecked)]
fn tiled<W: Size, L: Size>(
    a: &[f32],
    b: &[f32],
    b_vectors: &[Vector<f32, L>],
    bias: &[Vector<f32, L>],
    offsets: &[i32],
    y: &mut [Vector<f32, L>],
    m: usize,
    n: usize,
    k: usize,
    experts: usize,
    grouped: usize,
    has_bias: usize,
    column_groups: usize,
    #[comptime] layout: Layout,
    #[comptime] tiling: Tiling,
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
    let mut panel = Array::<Vector<f32, W>>::new(comptime!(kb * nv));
    let mut start = Array::<Vector<f32, W>>::new(nv);
    // A register tile on its way from and to memory.
    let mut tile = Array::<Vector<f32, W>>::new(comptime!(mr * nv));
    for e in 0..experts {
        let mut s0 = 0usize.runtime();
        let mut s1 = if comptime!(transpose_a) { k } else { m };
        if grouped != 0 {
            let end = s1;
            s0 = segment_end(offsets, e, end);
            s1 = max(segment_end(offsets, e + 1, end), s0);
        }
        // The segment's range of rows and of summed elements, and where its matrices start.
        let mut row0 = s0;
        let mut row1 = s1;
        let mut sum0 = 0usize.runtime();
        let mut sum1 = k;
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
        let tiles = (row1 - row0 + mr - 1) / mr;
        let t0 = tiles * row_group / row_groups;
        let t1 = tiles * (row_group + 1) / row_groups;
        if t1 > t0 {
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
                            load_row::<W, L>(b_vectors, &mut panel, b0 + (q0 + q) * n, p * nv, q * nv, n, nv);
                        }
                    }
                    if has_bias != 0 {
                        load_row::<W, L>(bias, &mut start, e * n, p * nv, 0usize, n, nv);
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
                                    y.with_vector_size_mut::<W>()[row / w + p * nv + j] = tile[i * nv + j];
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
    // Rows after the last segment belong to no expert.
    if comptime!(!transpose_a) {
        if grouped != 0 {
            let tail = segment_end(offsets, experts, m);
            let columns = n / stored;
            let c0 = min(p0 * nv * w / stored, columns);
            let c1 = min(p1 * nv * w / stored, columns);
            for row in tail + (m - tail) * row_group / row_groups..tail + (m - tail) * (row_group + 1) / row_groups {
                for c in c0..c1 {
                    y[row * columns + c] = Vector::new(0.0);
                }
            }
        }
    }
}


fn column_groups(units: usize, panels: usize, tiles: usize) -> usize {
    let work = |groups: usize| panels.div_ceil(groups) * (tiles.div_ceil(units / groups) + 4);
    (1..=units).rev().filter(|&groups| units % groups == 0).min_by_key(|&groups| work(groups)).unwrap_or(1)
}
#[cube(launch_unchecked)]
fn multiply_adds<W: Size>(values: &mut [Vector<f32, W>], rounds: usize, #[comptime] chains: usize) {
    let (factor, summand) = (values[0], values[1]);
    let mut acc = Array::<Vector<f32, W>>::new(chains);
    #[unroll]
    for i in 0..chains { acc[i] = values[2 + i]; }
    for _ in 0..rounds {
        #[unroll]
        for i in 0..chains { acc[i] = fma(acc[i], factor, summand); }
    }
    let mut sum = acc[0];
    #[unroll]
    for i in 1..chains { sum += acc[i]; }
    values[2 + chains + ABSOLUTE_POS] = sum;
}
fn main() {
    let client = cubecl::Device::cpu().unwrap().client();
    let layers = 8usize; let units: u32 = std::env::var("UNITS").map_or(2, |v| v.parse().unwrap()); let warm = std::env::var("WARM").is_ok();
    let only: Vec<String> = std::env::args().skip(1).collect();
    // name, m, n, k, experts, ta, tb, grouped
    let shapes = [
        ("up NT", 1024usize, 512usize, 128usize, 8usize, false, true, true),
        ("down NT", 1024, 128, 512, 8, false, true, true),
        ("dup NN", 1024, 512, 128, 8, false, false, true),
        ("ddown NN", 1024, 128, 512, 8, false, false, true),
        ("dWup TN", 512, 128, 1024, 8, true, false, true),
        ("dWdown TN", 128, 512, 1024, 8, true, false, true),
        ("qkv NT", 512, 384, 128, 1, false, true, false),
        ("proj NT", 512, 128, 128, 1, false, true, false),
        ("dWqkv TN", 384, 128, 512, 1, true, false, false),
        ("dqkv NN", 512, 128, 384, 1, false, false, false),
    ];
    let tilings = [(16, 6, 4, 256), (16, 6, 4, 128), (16, 6, 4, 64), (16, 12, 2, 128), (16, 12, 2, 256), (16, 8, 3, 128)];
    let mk = |n: usize| { let v: Vec<f32> = (0..n).map(|i| ((i * 7919 % 1000) as f32 - 500.0) * 1e-3).collect(); client.create_from_slice(f32::as_bytes(&v)) };
    let flop_buf = mk(1 << 20);
    for (name, m, n, k, experts, ta, tb, grouped) in shapes {
        if !only.is_empty() && !only.iter().any(|o| name.starts_with(o.as_str())) { continue; }
        let big = 8 * 512 * 128;
        let a: Vec<_> = (0..layers).map(|_| mk(1024 * 512)).collect();
        let b: Vec<_> = (0..layers).map(|_| mk(big)).collect();
        let y: Vec<_> = (0..layers).map(|_| mk(big)).collect();
        let total = if ta { k } else { m };
        let lens = [128, 97, 161, 140, 101, 190, 60, 147];
        let mut off = vec![0i32]; if grouped { for l in lens { off.push(off.last().unwrap() + l as i32); } } else { off.push(total as i32); }
        let offs = client.create_from_slice(i32::as_bytes(&off));
        let mut times = vec![vec![]; tilings.len()];
        let mut peak = vec![];
        for round in 0..16 {
            { let t = Instant::now();
              client.exclusive(|| { unsafe { multiply_adds::launch_unchecked(&client, CubeCount::Static(1,1,1), CubeDim::new_1d(units), 16, BufferArg::from_raw_parts(flop_buf.clone(), 1 << 16), 600000, 12); } client.flush().unwrap(); }).unwrap();
              if round > 0 { peak.push(2.0 * units as f64 * 600000.0 * 12.0 * 16.0 / t.elapsed().as_secs_f64() / 1e9); } }
            for (ti, &(lanes, rows, vectors, block)) in tilings.iter().enumerate() {
                let tiling = Tiling { lanes, rows, vectors, block };
                let layout = Layout { transpose_a: ta, transpose_b: tb };
                let groups = column_groups(units as usize, n.div_ceil(lanes * vectors), m.div_ceil(rows * experts.max(1)));
                let t = Instant::now();
                client.exclusive(|| { for l in 0..layers { let l = if warm { 0 } else { l }; unsafe {
                    let arg = |h: &cubecl::server::Handle, n: usize, w: usize| BufferArg::from_raw_parts(h.clone(), n / w);
                    tiled::launch_unchecked(&client, CubeCount::Static(1,1,1), CubeDim::new_1d(units), lanes, lanes,
                        arg(&a[l], 1024*512, 1), arg(&b[l], big, 1), arg(&b[l], big, lanes), arg(&b[l], big, lanes), arg(&offs, off.len(), 1), arg(&y[l], big, lanes),
                        m, n, k, experts, usize::from(grouped), 0, groups, layout, tiling);
                } } client.flush().unwrap(); }).unwrap();
                if round > 0 { times[ti].push(t.elapsed().as_secs_f64()); }
            }
        }
        let fl = 2.0 * (m * n * k) as f64 * layers as f64;
        peak.sort_by(f64::total_cmp);
        print!("{name:<10} peak {:.0}/{:.0} ", peak[peak.len() / 2], peak[peak.len() - 1]);
        for (ti, t) in tilings.iter().enumerate() { times[ti].sort_by(f64::total_cmp); print!("  {:?} {:.0}/{:.0}", (t.1, t.2, t.3), fl / times[ti][times[ti].len() / 2] / 1e9, fl / times[ti][0] / 1e9); }
        println!();
    }
}

//! Attention on graphics devices, in tiles of shared memory (Dao et al. 2022, arXiv 2205.14135; Dao 2023, arXiv 2307.08691).
//!
//! A cube owns a strip of channels for a tile of positions of one head. Forward these are queries, and the cube walks over
//! the tiles of keys that they see; what was summed under a smaller maximum is scaled down when a tile brings a larger one.
//! Backward, some cubes own gradients of queries and walk over keys, others own gradients of keys and values and walk over
//! queries. Every element has one owner, which sums in order of positions, so there are no atomics, and runs agree to the bit.
//!
//! A unit has every eighth row and column of a tile of scores, and the same rows of the strip, so that eight units share what
//! they know of a row. Scores are summed over all channels of a head, some at a time; a head wider than a strip has several
//! cubes, which compute the same scores. So any head fits the registers and 16 KiB of shared memory, the least that WebGPU
//! grants, and one kernel serves all widths and lengths.
//!
//! Loops are short on purpose: Mesa's software device leaves every loop of a unit after 65535 rounds in all.

use super::{Extra, Kind, Scoring, dropout_keys, first_seen, scoring};
use crate::kernels::random::random_bits;
use crate::launch::{Arg, GPU_CUBE, Launcher, run};
use cubecl::prelude::*;
use moec_ir::AttentionAttrs;

/// Units along an edge of a tile of scores; a cube is a square of them.
const SIDE: usize = 8;

/// Units of a cube.
const UNITS: usize = SIDE * SIDE;

/// Rows of a tile, and of its columns, that a unit has.
const EACH: usize = 4;

/// Positions of a tile.
const EDGE: usize = SIDE * EACH;

/// Channels of a block of a strip; shared memory holds one tile's rows of them.
const BLOCK: usize = EDGE;

/// Channels of two operands that scores are summed over at a time: both take as much shared memory as a block.
const DEPTH: usize = BLOCK / 2;

/// Blocks of the widest strip, and so what a unit sums: `EACH * EACH` elements of each.
const MOST_BLOCKS: usize = 2;

/// Words between two channels, or two walked positions, in shared memory. One more than the edge: units that store a column
/// use different banks.
const STRIDE: usize = EDGE + 1;

const _: () = assert!(UNITS == GPU_CUBE as usize);

/// What the compiler must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    /// Blocks of a strip.
    blocks: usize,
    kind: Kind,
}

/// Extents of a launch.
#[derive(CubeType, CubeLaunch)]
struct Extents {
    /// Length of a sequence, T.
    time: usize,
    /// Head width, D.
    width: usize,
    /// Tiles of a sequence.
    tiles: usize,
    /// Strips of a head.
    strips: usize,
    /// Strips of all tiles of all heads and sequences.
    items: usize,
}

/// What a cube owns.
#[derive(CubeType)]
struct Owned {
    /// The sequence and the head: `sequence * heads + head`.
    pair: usize,
    /// Position of the tile's first row.
    first: usize,
    /// The strip's first channel.
    channel: usize,
    /// Whether nobody before it has the same tile.
    leads: bool,
}

/// Rows of a head in a matrix.
#[derive(CubeType)]
struct Rows {
    /// Where the row of position 0 starts, and the distance between two.
    start: usize,
    step: usize,
    /// The last position.
    last: usize,
    /// Channels.
    width: usize,
}

/// The rows of a head that kernels read and write.
#[derive(CubeType)]
struct Head {
    query: Rows,
    key: Rows,
    value: Rows,
    /// Of the result and its gradient.
    result: Rows,
    /// Of the log-sum-exp, one channel.
    lse: Rows,
}

/// What is saved of the forward pass, and the gradient of its result.
#[derive(CubeType, CubeLaunch)]
struct Saved {
    dy: Box<[f32]>,
    qkv: Box<[f32]>,
    y: Box<[f32]>,
    lse: Box<[f32]>,
}

/// Tiles in shared memory. Every one is stored by columns: a column is as long as the owned tile has rows, or as a walked one.
#[derive(CubeType)]
struct Tiles {
    /// Channels of operands.
    operands: Shared<[f32]>,
    /// Weights of the sums, a column for each walked position.
    weights: Shared<[f32]>,
    /// Some numbers for each row: [`SIDE`] of them at most.
    numbers: Shared<[f32]>,
}

#[cube]
fn owned(item: usize, e: &Extents, #[comptime] blocks: usize) -> Owned {
    let (strip, tile) = (item % e.strips, item / e.strips);
    Owned {
        pair: tile / e.tiles,
        first: tile % e.tiles * EDGE,
        channel: strip * comptime!(blocks * BLOCK),
        leads: strip == 0,
    }
}

#[cube]
fn head_of(pair: usize, heads: usize, e: &Extents) -> Head {
    let (token, head) = (pair / heads * e.time, pair % heads);
    let channels = heads * e.width;
    let (last, width, step) = (e.time - 1, e.width, 3 * channels);
    let start = token * step + head * e.width;
    Head {
        query: Rows { start, step, last, width },
        key: Rows { start: start + channels, step, last, width },
        value: Rows { start: start + 2 * channels, step, last, width },
        result: Rows { start: token * channels + head * e.width, step: channels, last, width },
        lse: Rows { start: token * heads + head, step: heads, last, width: 1usize.runtime() },
    }
}

/// Loads channels from `channel` on of a tile of rows. Beyond the last row it has the last one, and beyond the last channel 0.
#[cube]
fn load(
    values: &[f32],
    operands: &mut Shared<[f32]>,
    rows: &Rows,
    first: usize,
    channel: usize,
    #[comptime] top: usize,
    #[comptime] channels: usize,
) {
    #[unroll]
    for step in 0..comptime!(EDGE * channels / UNITS) {
        let word = UNIT_POS as usize + step * UNITS;
        let (row, c) = (word / channels, word % channels);
        let at = rows.start + min(first + row, rows.last) * rows.step + min(channel + c, rows.width - 1);
        operands[(top + c) * STRIDE + row] = select(channel + c < rows.width, values[at], 0.0f32);
    }
}

#[cube]
fn clear(values: &mut Array<f32>, #[comptime] length: usize) {
    #[unroll]
    for i in 0..length {
        values[i] = 0.0f32;
    }
}

/// A unit's products of an owned tile's rows of `a`, from `owned` on, and of a walked tile's rows of `b`.
#[cube]
fn products(
    a: &[f32],
    b: &[f32],
    a_rows: &Rows,
    b_rows: &Rows,
    owned: usize,
    walked: usize,
    operands: &mut Shared<[f32]>,
    out: &mut Array<f32>,
) {
    let (unit_row, unit_column) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
    clear(out, comptime!(EACH * EACH));
    for channel in range_stepped(0, a_rows.width, DEPTH) {
        // Nobody may still read what is overwritten.
        sync_cube();
        load(a, operands, a_rows, owned, channel, 0usize, DEPTH);
        load(b, operands, b_rows, walked, channel, DEPTH, DEPTH);
        sync_cube();
        for c in 0..DEPTH {
            let mut columns = Sequence::<f32>::new();
            #[unroll]
            for j in 0..EACH {
                columns.push(operands[(DEPTH + c) * STRIDE + unit_column + j * SIDE]);
            }
            #[unroll]
            for i in 0..EACH {
                let v = operands[c * STRIDE + unit_row + i * SIDE];
                #[unroll]
                for j in 0..EACH {
                    out[i * EACH + j] = fma(v, columns[j], out[i * EACH + j]);
                }
            }
        }
    }
}

/// Whether the query of a pair of positions exists and sees the key.
#[cube]
fn sees(
    owned: usize,
    walked: usize,
    time: usize,
    scoring: &Scoring,
    #[comptime] kind: Kind,
    #[comptime] owns_queries: bool,
) -> bool {
    let (query, key) = if comptime!(owns_queries) { (owned, walked) } else { (walked, owned) };
    let mut seen = key <= query;
    if comptime!(!owns_queries) {
        seen = seen && query < time;
    }
    if comptime!(kind.windowed) {
        seen = seen && key + scoring.window > query;
    }
    seen
}

/// Where the first tile of keys begins that a query sees.
#[cube]
fn first_tile(query: usize, scoring: &Scoring, #[comptime] kind: Kind) -> usize {
    let mut first = 0usize.runtime();
    if comptime!(kind.windowed) {
        first = first_seen(query, scoring) / EDGE * EDGE;
    }
    first
}

/// Adds walked rows, times the weights of a unit's own rows, to its part of a strip from `channel` on. Pairs that do not see
/// each other are left out, even where they have the weight 0: 0 times infinity is not 0.
#[cube]
fn accumulate(
    values: &[f32],
    rows: &Rows,
    o: &Owned,
    walked: usize,
    weights: &Shared<[f32]>,
    operands: &mut Shared<[f32]>,
    sums: &mut Array<f32>,
    scoring: &Scoring,
    #[comptime] shape: Shape,
    #[comptime] owns_queries: bool,
) {
    let (unit_row, unit_column) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
    let time = rows.last + 1;
    let kind = shape.kind;
    let mut whole = sees(o.first, walked + (EDGE - 1), time, scoring, kind, owns_queries) && walked != o.first;
    if comptime!(kind.windowed) {
        whole = whole && sees(o.first + (EDGE - 1), walked, time, scoring, kind, owns_queries);
    }
    #[unroll]
    for block in 0..shape.blocks {
        sync_cube();
        load(values, operands, rows, walked, o.channel + block * BLOCK, 0usize, BLOCK);
        sync_cube();
        for t in 0..EDGE {
            let mut columns = Sequence::<f32>::new();
            #[unroll]
            for j in 0..EACH {
                columns.push(operands[(unit_column + j * SIDE) * STRIDE + t]);
            }
            #[unroll]
            for i in 0..EACH {
                let row = unit_row + i * SIDE;
                if whole || sees(o.first + row, walked + t, time, scoring, kind, owns_queries) {
                    let weight = weights[t * STRIDE + row];
                    #[unroll]
                    for j in 0..EACH {
                        let at = (block * EACH + i) * EACH + j;
                        sums[at] = fma(weight, columns[j], sums[at]);
                    }
                }
            }
        }
    }
}

/// Stores a unit's part of a strip, each row divided by its number.
#[cube]
fn store(sums: &Array<f32>, divisors: &Array<f32>, out: &mut [f32], rows: &Rows, o: &Owned, #[comptime] blocks: usize) {
    let (unit_row, unit_column) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
    #[unroll]
    for block in 0..blocks {
        #[unroll]
        for i in 0..EACH {
            let position = o.first + unit_row + i * SIDE;
            #[unroll]
            for j in 0..EACH {
                let channel = o.channel + unit_column + (block * EACH + j) * SIDE;
                if position <= rows.last && channel < rows.width {
                    out[rows.start + position * rows.step + channel] =
                        sums[(block * EACH + i) * EACH + j] / divisors[i];
                }
            }
        }
    }
}

/// Factor of a probability: 0 for a dropped one, else `keep`.
#[cube]
fn dropout_factor(
    a: Vector<u32, Const<1>>,
    b: Vector<u32, Const<1>>,
    row: usize,
    key: usize,
    time: usize,
    scoring: &Scoring,
) -> f32 {
    let counter = Vector::<u32, Const<1>>::new(u32::cast_from(row * time + key));
    let bits = random_bits::<Const<1>>(a, b, counter).extract(0usize);
    select(bits < scoring.threshold, 0.0f32, scoring.keep)
}

#[cube(launch_unchecked)]
fn forward(qkv: &[f32], y: &mut [f32], lse: &mut [f32], e: &Extents, scoring: &Scoring, #[comptime] shape: Shape) {
    let (unit_row, unit_column) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
    let length = comptime!(shape.blocks * EACH * EACH);
    let (a, b) = dropout_keys::<Const<1>>(scoring, shape.kind.dropout);
    let mut operands = Shared::<[f32]>::new_slice(comptime!(BLOCK * STRIDE));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(EDGE * STRIDE));
    let mut numbers = Shared::<[f32]>::new_slice(comptime!(EDGE * SIDE));
    let mut scores = Array::<f32>::new(comptime!(EACH * EACH));
    let mut sums = Array::<f32>::new(length);
    let mut highest = Array::<f32>::new(EACH);
    let mut totals = Array::<f32>::new(EACH);
    for item in range_stepped(CUBE_POS, e.items, CUBE_COUNT) {
        let o = owned(item, e, shape.blocks);
        let head = head_of(o.pair, scoring.heads, e);
        clear(&mut sums, length);
        clear(&mut totals, EACH);
        #[unroll]
        for i in 0..EACH {
            highest[i] = f32::min_value();
        }
        if comptime!(shape.kind.sink) {
            // Nothing but the sink has been summed, by one unit of each row.
            #[unroll]
            for i in 0..EACH {
                highest[i] = scoring.sinks[0][o.pair % scoring.heads];
                totals[i] = select(unit_column == 0, 1.0f32, 0.0f32);
            }
        }
        let from = first_tile(o.first, scoring, shape.kind);
        for walked in range_stepped(from, min(o.first + EDGE, e.time), EDGE) {
            products(qkv, qkv, &head.query, &head.key, o.first, walked, &mut operands, &mut scores);
            // The largest score of each row in this tile: of a unit's own, then of all.
            #[unroll]
            for i in 0..EACH {
                let row = unit_row + i * SIDE;
                let mut largest = f32::min_value();
                #[unroll]
                for j in 0..EACH {
                    let key = walked + unit_column + j * SIDE;
                    let seen = sees(o.first + row, key, e.time, scoring, shape.kind, true);
                    let score = select(seen, scores[i * EACH + j] * scoring.scale, f32::min_value());
                    scores[i * EACH + j] = score;
                    largest = max(largest, score);
                }
                numbers[row * SIDE + unit_column] = largest;
            }
            sync_cube();
            #[unroll]
            for i in 0..EACH {
                let row = unit_row + i * SIDE;
                let mut largest = highest[i];
                #[unroll]
                for u in 0..SIDE {
                    largest = max(largest, numbers[row * SIDE + u]);
                }
                let shrink = f32::exp(highest[i] - largest);
                highest[i] = largest;
                totals[i] *= shrink;
                #[unroll]
                for block in 0..shape.blocks {
                    #[unroll]
                    for j in 0..EACH {
                        sums[(block * EACH + i) * EACH + j] *= shrink;
                    }
                }
                #[unroll]
                for j in 0..EACH {
                    let column = unit_column + j * SIDE;
                    let seen = sees(o.first + row, walked + column, e.time, scoring, shape.kind, true);
                    let p = select(seen, f32::exp(scores[i * EACH + j] - largest), 0.0f32);
                    totals[i] += p;
                    let mut kept = p;
                    if comptime!(shape.kind.dropout) {
                        let query = o.pair * e.time + o.first + row;
                        kept *= dropout_factor(a, b, query, walked + column, e.time, scoring);
                    }
                    weights[column * STRIDE + row] = kept;
                }
            }
            accumulate(qkv, &head.value, &o, walked, &weights, &mut operands, &mut sums, scoring, shape, true);
        }
        // What each unit of a row has summed, in order.
        #[unroll]
        for i in 0..EACH {
            numbers[(unit_row + i * SIDE) * SIDE + unit_column] = totals[i];
        }
        sync_cube();
        #[unroll]
        for i in 0..EACH {
            let row = unit_row + i * SIDE;
            let mut total = 0.0f32.runtime();
            #[unroll]
            for u in 0..SIDE {
                total += numbers[row * SIDE + u];
            }
            totals[i] = total;
            if o.leads && unit_column == 0 && o.first + row < e.time {
                lse[head.lse.start + (o.first + row) * head.lse.step] = highest[i] + f32::ln(total);
            }
        }
        store(&sums, &totals, y, &head.result, &o, shape.blocks);
    }
}

/// For each query of a tile the softmax's `sum_k dp p = <dy, y>` (Dao et al. 2022, equation 4), then its log-sum-exp.
#[cube]
fn load_numbers(saved: &Saved, head: &Head, first: usize, operands: &mut Shared<[f32]>, numbers: &mut Shared<[f32]>) {
    let unit = UNIT_POS as usize;
    let mut delta = 0.0f32.runtime();
    for channel in range_stepped(0, head.result.width, DEPTH) {
        sync_cube();
        load(&saved.dy, operands, &head.result, first, channel, 0usize, DEPTH);
        load(&saved.y, operands, &head.result, first, channel, DEPTH, DEPTH);
        sync_cube();
        if unit < EDGE {
            for c in 0..DEPTH {
                delta = fma(operands[c * STRIDE + unit], operands[(DEPTH + c) * STRIDE + unit], delta);
            }
        }
    }
    if unit < EDGE {
        numbers[unit] = delta;
        numbers[EDGE + unit] = saved.lse[head.lse.start + min(first + unit, head.lse.last) * head.lse.step];
    }
}

/// From products of queries and keys, and of gradients and values: probabilities after dropout, and gradients of scores.
#[cube]
fn slopes(
    scores: &mut Array<f32>,
    gradients: &mut Array<f32>,
    numbers: &Shared<[f32]>,
    o: &Owned,
    walked: usize,
    time: usize,
    scoring: &Scoring,
    #[comptime] kind: Kind,
    #[comptime] owns_queries: bool,
) {
    let (unit_row, unit_column) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
    let (a, b) = dropout_keys::<Const<1>>(scoring, kind.dropout);
    #[unroll]
    for i in 0..EACH {
        #[unroll]
        for j in 0..EACH {
            let (row, column) = (unit_row + i * SIDE, unit_column + j * SIDE);
            let seen = sees(o.first + row, walked + column, time, scoring, kind, owns_queries);
            let number = if comptime!(owns_queries) { row } else { column };
            let at = i * EACH + j;
            let p = f32::exp(scores[at] * scoring.scale - numbers[EDGE + number]);
            let mut gradient = gradients[at];
            let mut kept = p;
            if comptime!(kind.dropout) {
                let mut query = o.first + row;
                let mut key = walked + column;
                if comptime!(!owns_queries) {
                    query = walked + column;
                    key = o.first + row;
                }
                let factor = dropout_factor(a, b, o.pair * time + query, key, time, scoring);
                kept *= factor;
                gradient *= factor;
            }
            scores[at] = select(seen, kept, 0.0f32);
            gradients[at] = select(seen, p * (gradient - numbers[number]) * scoring.scale, 0.0f32);
        }
    }
}

/// Stores a unit's elements of a tile as weights.
#[cube]
fn store_weights(values: &Array<f32>, weights: &mut Shared<[f32]>) {
    let (unit_row, unit_column) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
    #[unroll]
    for i in 0..EACH {
        #[unroll]
        for j in 0..EACH {
            weights[(unit_column + j * SIDE) * STRIDE + unit_row + i * SIDE] = values[i * EACH + j];
        }
    }
}

/// Gradients of queries, which walk over keys.
#[cube]
fn backward_queries(
    saved: &Saved,
    dqkv: &mut [f32],
    o: &Owned,
    e: &Extents,
    scoring: &Scoring,
    tiles: &mut Tiles,
    ones: &Array<f32>,
    #[comptime] shape: Shape,
) {
    let length = comptime!(shape.blocks * EACH * EACH);
    let head = head_of(o.pair, scoring.heads, e);
    let mut scores = Array::<f32>::new(comptime!(EACH * EACH));
    let mut gradients = Array::<f32>::new(comptime!(EACH * EACH));
    let mut sums = Array::<f32>::new(length);
    clear(&mut sums, length);
    load_numbers(saved, &head, o.first, &mut tiles.operands, &mut tiles.numbers);
    let from = first_tile(o.first, scoring, shape.kind);
    for walked in range_stepped(from, min(o.first + EDGE, e.time), EDGE) {
        let operands = &mut tiles.operands;
        products(&saved.qkv, &saved.qkv, &head.query, &head.key, o.first, walked, operands, &mut scores);
        products(&saved.dy, &saved.qkv, &head.result, &head.value, o.first, walked, operands, &mut gradients);
        slopes(&mut scores, &mut gradients, &tiles.numbers, o, walked, e.time, scoring, shape.kind, true);
        store_weights(&gradients, &mut tiles.weights);
        let weights = &tiles.weights;
        accumulate(&saved.qkv, &head.key, o, walked, weights, &mut tiles.operands, &mut sums, scoring, shape, true);
    }
    store(&sums, ones, dqkv, &head.query, o, shape.blocks);
}

/// Gradients of keys and values, which walk over queries.
#[cube]
fn backward_keys(
    saved: &Saved,
    dqkv: &mut [f32],
    o: &Owned,
    e: &Extents,
    scoring: &Scoring,
    tiles: &mut Tiles,
    ones: &Array<f32>,
    #[comptime] shape: Shape,
) {
    let length = comptime!(shape.blocks * EACH * EACH);
    let head = head_of(o.pair, scoring.heads, e);
    let mut scores = Array::<f32>::new(comptime!(EACH * EACH));
    let mut gradients = Array::<f32>::new(comptime!(EACH * EACH));
    let mut keys = Array::<f32>::new(length);
    let mut values = Array::<f32>::new(length);
    clear(&mut keys, length);
    clear(&mut values, length);
    let mut end = e.time;
    if comptime!(shape.kind.windowed) {
        // The last key of the tile is seen by as many queries as a query sees keys.
        end = min(end, o.first + (EDGE - 1) + scoring.window);
    }
    for walked in range_stepped(o.first, end, EDGE) {
        load_numbers(saved, &head, walked, &mut tiles.operands, &mut tiles.numbers);
        let operands = &mut tiles.operands;
        products(&saved.qkv, &saved.qkv, &head.key, &head.query, o.first, walked, operands, &mut scores);
        products(&saved.qkv, &saved.dy, &head.value, &head.result, o.first, walked, operands, &mut gradients);
        slopes(&mut scores, &mut gradients, &tiles.numbers, o, walked, e.time, scoring, shape.kind, false);
        store_weights(&scores, &mut tiles.weights);
        let (weights, operands) = (&tiles.weights, &mut tiles.operands);
        accumulate(&saved.dy, &head.result, o, walked, weights, operands, &mut values, scoring, shape, false);
        // The weights of values have been read.
        sync_cube();
        store_weights(&gradients, &mut tiles.weights);
        let (weights, operands) = (&tiles.weights, &mut tiles.operands);
        accumulate(&saved.qkv, &head.query, o, walked, weights, operands, &mut keys, scoring, shape, false);
    }
    store(&keys, ones, dqkv, &head.key, o, shape.blocks);
    store(&values, ones, dqkv, &head.value, o, shape.blocks);
}

/// Backward: the first half of the cubes has the gradients of queries, the other those of keys and values.
#[cube(launch_unchecked)]
fn backward(saved: &Saved, dqkv: &mut [f32], e: &Extents, scoring: &Scoring, #[comptime] shape: Shape) {
    let mut tiles = Tiles {
        operands: Shared::<[f32]>::new_slice(comptime!(BLOCK * STRIDE)),
        weights: Shared::<[f32]>::new_slice(comptime!(EDGE * STRIDE)),
        numbers: Shared::<[f32]>::new_slice(comptime!(EDGE * SIDE)),
    };
    let mut ones = Array::<f32>::new(EACH);
    #[unroll]
    for i in 0..EACH {
        ones[i] = 1.0f32;
    }
    for item in range_stepped(CUBE_POS, 2 * e.items, CUBE_COUNT) {
        let o = owned(item % e.items, e, shape.blocks);
        if item < e.items {
            backward_queries(saved, dqkv, &o, e, scoring, &mut tiles, &ones, shape);
        } else {
            backward_keys(saved, dqkv, &o, e, scoring, &mut tiles, &ones, shape);
        }
    }
}

/// How an operation is shared by cubes: the shape, and the extents in the order of [`Extents`].
fn shared(attrs: &AttentionAttrs, kind: Kind, positions: usize, channels: usize) -> (Shape, [usize; 5]) {
    let (time, width) = (attrs.time, channels / attrs.heads);
    let blocks = width.div_ceil(BLOCK).min(MOST_BLOCKS);
    let (tiles, strips) = (time.div_ceil(EDGE), width.div_ceil(blocks * BLOCK));
    let shape = Shape { blocks, kind };
    (shape, [time, width, tiles, strips, positions / time * tiles * strips])
}

fn extents([time, width, tiles, strips, items]: [usize; 5]) -> ExtentsLaunch {
    ExtentsLaunch::new(time, width, tiles, strips, items)
}

/// The kernel of [`super::forward`].
pub(super) fn launch_forward(
    l: &Launcher,
    qkv: Arg,
    extra: &Extra,
    y: Arg,
    lse: Arg,
    attrs: &AttentionAttrs,
    channels: usize,
) {
    let (shape, e) = shared(attrs, Kind::of(attrs), lse.elements(), channels);
    l.launch(
        e[4] * UNITS,
        || format!("attention in cubes {shape:?}"),
        // SAFETY: a cube writes the channels of its strip in the rows of its tile; positions are cut off at the last of their
        // sequence and channels at the last of their head. Cubes have `UNITS` units, and what a cube owns and how far it
        // walks is the same for all of them, so that all reach every barrier.
        |t| unsafe {
            let (qkv, y, lse, scoring) = (t.bind(qkv, 1), t.bind(y, 1), t.bind(lse, 1), scoring(t, attrs, extra));
            run!(t, forward(qkv, y, lse, extents(e), scoring, shape));
        },
    );
}

/// The kernel of [`super::backward`].
pub(super) fn launch_backward(
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
    let (shape, e) = shared(attrs, Kind::of(attrs).backward(), lse.elements(), channels);
    l.launch(
        2 * e[4] * UNITS,
        || format!("attention_grad in cubes {shape:?}"),
        // SAFETY: as forward; a cube writes the queries, or the keys and the values, of its tile.
        |t| unsafe {
            let saved = SavedLaunch::new(t.bind(dy, 1), t.bind(qkv, 1), t.bind(y, 1), t.bind(lse, 1));
            run!(t, backward(saved, t.bind(dqkv, 1), extents(e), scoring(t, attrs, extra), shape));
        },
    );
}

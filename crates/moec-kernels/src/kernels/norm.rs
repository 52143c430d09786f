//! Layer norm and RMS norm.
//!
//! Forward and `dx`: a team owns a row, which stays in cache while it is read again. On the CPU a team is one unit, on
//! graphics devices several that add their sums through shared memory. The variance is the mean of the squared
//! deviations, not the difference of two large numbers. `dgain` and `dshift`: one unit owns a vector of columns
//! and adds the rows in order, in a fixed number of row blocks (see [`super::reduce::blocks`]).

#![allow(unsafe_code, reason = "kernel launches")]

use super::fused::{After, Elementwise, dropout_keys, go_on, go_on_with};
use super::lanes::lane_sum;
use super::reduce;
use crate::launch::{Arg, Launcher, SCRATCH_ELEMENTS, Split, Target, end_item, first_item, item_step, run};
use cubecl::prelude::*;

/// Units that share a row on a graphics device; they divide a cube.
const GPU_TEAM: usize = 8;

/// How rows are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Teams {
    /// Units of a team.
    size: usize,
    /// Teams of a cube.
    count: usize,
    split: Split,
}

impl Teams {
    fn new(l: &Launcher) -> Self {
        let (size, count) = if l.is_cpu() { (1, 1) } else { (GPU_TEAM, l.profile().units() / GPU_TEAM) };
        Self { size, count, split: l.split() }
    }

    /// Items of a launch over rows.
    fn items(&self, rows: usize) -> usize {
        rows * self.size
    }
}

/// First row of this unit, the row after its last, and the distance between two. All units of a larger team's cube make
/// as many rounds, because they wait for each other; in a round without a row of its own a team computes the last row
/// again and stores nothing.
#[cube]
fn rows_of_unit(rows: usize, #[comptime] teams: Teams) -> (usize, usize, usize) {
    if comptime!(teams.size == 1) {
        (first_item(rows, teams.split), end_item(rows, teams.split), item_step(teams.split))
    } else {
        let mine = UNIT_POS as usize / teams.size;
        let first = CUBE_POS * teams.count;
        let step = CUBE_COUNT * teams.count;
        let rounds = if first < rows { (rows - first + step - 1) / step } else { 0usize.runtime() };
        (first + mine, first + mine + rounds * step, step)
    }
}

/// First of the vectors of a row that this unit has; the next are as far apart as the team is large.
#[cube]
fn first_vector(#[comptime] teams: Teams) -> usize {
    if comptime!(teams.size == 1) { 0usize.runtime() } else { UNIT_POS as usize % teams.size }
}

/// The sum of what the units of a team have, in the order of the units.
#[cube]
fn team_sum(own: f32, #[comptime] teams: Teams) -> f32 {
    if comptime!(teams.size == 1) {
        own
    } else {
        let unit = UNIT_POS as usize;
        let mut shared = Shared::<[f32]>::new_slice(comptime!(teams.size * teams.count));
        // Nobody may still read what is overwritten.
        sync_cube();
        shared[unit] = own;
        sync_cube();
        let first = unit / teams.size * teams.size;
        let mut sum = shared[first];
        #[unroll]
        for other in 1..teams.size {
            sum += shared[first + other];
        }
        sum
    }
}

/// What is known of each row.
#[derive(CubeType, CubeLaunch)]
struct Statistics {
    /// Its mean; no buffer for RMS norm.
    mean: Sequence<Box<[f32]>>,
    /// `1 / sqrt(variance + epsilon)`.
    rstd: Box<[f32]>,
}

/// What a normalised row becomes: times `gain`, plus `shift`.
#[derive(CubeType, CubeLaunch)]
struct Affine<W: Size> {
    gain: Box<[Vector<f32, W>]>,
    shift: Box<[Vector<f32, W>]>,
}

/// Mean of a row, or 0 if it does not matter.
#[cube]
fn center_of(statistics: &Statistics, r: usize) -> f32 {
    let mut center = 0.0f32.runtime();
    if comptime!(statistics.mean.len() == 1) {
        center = statistics.mean[0][r];
    }
    center
}

#[cube(launch_unchecked)]
fn layer_norm_kernel<W: Size>(
    x: &[Vector<f32, W>],
    affine: &Affine<W>,
    y: &mut [Vector<f32, W>],
    statistics: &mut Statistics,
    after: &mut Elementwise<W>,
    rows: usize,
    cols: usize,
    epsilon: f32,
    #[comptime] teams: Teams,
) {
    let keys = dropout_keys::<W>(&*after);
    let count = f32::cast_from(cols * W::value());
    let (first, end, step) = rows_of_unit(rows, teams);
    let own = first_vector(teams);
    for round in range_stepped(first, end, step) {
        let r = min(round, rows - 1);
        let base = r * cols;
        let mut sum = Vector::<f32, W>::new(0.0f32);
        for c in range_stepped(own, cols, teams.size) {
            sum += x[base + c];
        }
        let center = team_sum(lane_sum::<W>(sum), teams) / count;
        let centers = Vector::<f32, W>::new(center);
        let mut square = Vector::<f32, W>::new(0.0f32);
        for c in range_stepped(own, cols, teams.size) {
            let d = x[base + c] - centers;
            square = fma(d, d, square);
        }
        let scale = 1.0f32 / f32::sqrt(team_sum(lane_sum::<W>(square), teams) / count + epsilon);
        let scales = Vector::<f32, W>::new(scale);
        if round < rows {
            for c in range_stepped(own, cols, teams.size) {
                let value = fma((x[base + c] - centers) * scales, affine.gain[c], affine.shift[c]);
                y[base + c] = go_on::<W>(after, &keys, base + c, value);
            }
            if own == 0 {
                let mean = statistics.mean.index_mut(0usize);
                mean[r] = center;
                statistics.rstd[r] = scale;
            }
        }
    }
}

#[cube(launch_unchecked)]
fn rms_norm_kernel<W: Size>(
    x: &[Vector<f32, W>],
    gain: &[Vector<f32, W>],
    y: &mut [Vector<f32, W>],
    rstd: &mut [f32],
    after: &mut Elementwise<W>,
    rows: usize,
    cols: usize,
    epsilon: f32,
    #[comptime] teams: Teams,
) {
    let keys = dropout_keys::<W>(&*after);
    let count = f32::cast_from(cols * W::value());
    let (first, end, step) = rows_of_unit(rows, teams);
    let own = first_vector(teams);
    for round in range_stepped(first, end, step) {
        let r = min(round, rows - 1);
        let base = r * cols;
        let mut square = Vector::<f32, W>::new(0.0f32);
        for c in range_stepped(own, cols, teams.size) {
            let v = x[base + c];
            square = fma(v, v, square);
        }
        let scale = 1.0f32 / f32::sqrt(team_sum(lane_sum::<W>(square), teams) / count + epsilon);
        let scales = Vector::<f32, W>::new(scale);
        if round < rows {
            for c in range_stepped(own, cols, teams.size) {
                let value = x[base + c] * scales * gain[c];
                y[base + c] = go_on::<W>(after, &keys, base + c, value);
            }
            if own == 0 {
                rstd[r] = scale;
            }
        }
    }
}

/// With `h = (x - mean) * rstd` and `g = dy * gain`: `dx = rstd * (g - mean(g) - h * mean(g h))`. RMS norm has no mean:
/// `h = x * rstd` and `mean(g)` is left out.
#[cube(launch_unchecked)]
fn norm_grad_kernel<W: Size>(
    dy: &[Vector<f32, W>],
    x: &[Vector<f32, W>],
    gain: &[Vector<f32, W>],
    statistics: &Statistics,
    dx: &mut [Vector<f32, W>],
    after: &mut Elementwise<W>,
    rows: usize,
    cols: usize,
    #[comptime] teams: Teams,
) {
    let centered = comptime!(statistics.mean.len() == 1);
    let keys = dropout_keys::<W>(&*after);
    let count = f32::cast_from(cols * W::value());
    let (first, end, step) = rows_of_unit(rows, teams);
    let own = first_vector(teams);
    for round in range_stepped(first, end, step) {
        let r = min(round, rows - 1);
        let base = r * cols;
        let centers = Vector::<f32, W>::new(center_of(statistics, r));
        let scales = Vector::<f32, W>::new(statistics.rstd[r]);
        let mut g_sum = Vector::<f32, W>::new(0.0f32);
        let mut gh_sum = Vector::<f32, W>::new(0.0f32);
        for c in range_stepped(own, cols, teams.size) {
            let h = (x[base + c] - centers) * scales;
            let g = dy[base + c] * gain[c];
            g_sum += g;
            gh_sum = fma(g, h, gh_sum);
        }
        let mut g_mean = Vector::<f32, W>::new(0.0f32);
        if comptime!(centered) {
            g_mean = Vector::new(team_sum(lane_sum::<W>(g_sum), teams) / count);
        }
        let gh_mean = Vector::<f32, W>::new(team_sum(lane_sum::<W>(gh_sum), teams) / count);
        if round < rows {
            for c in range_stepped(own, cols, teams.size) {
                let h = (x[base + c] - centers) * scales;
                let value = (dy[base + c] * gain[c] - g_mean - h * gh_mean) * scales;
                dx[base + c] = go_on::<W>(after, &keys, base + c, value);
            }
        }
    }
}

/// Per block of rows and column: the sum of `dy * h`, and the sum of `dy` if there is a shift.
#[cube(launch_unchecked)]
fn norm_param_grad_kernel<W: Size>(
    dy: &[Vector<f32, W>],
    x: &[Vector<f32, W>],
    statistics: &Statistics,
    dgain: &mut [Vector<f32, W>],
    dshift: &mut Sequence<Box<[Vector<f32, W>]>>,
    rows: usize,
    cols: usize,
    blocks: usize,
    #[comptime] split: Split,
) {
    let shifted = comptime!(dshift.len() == 1);
    let chunk = (rows + blocks - 1) / blocks;
    let items = blocks * cols;
    for item in range_stepped(first_item(items, split), end_item(items, split), item_step(split)) {
        let c = item % cols;
        let block = item / cols;
        let mut gain_sum = Vector::<f32, W>::new(0.0f32);
        let mut shift_sum = Vector::<f32, W>::new(0.0f32);
        for r in min(block * chunk, rows)..min((block + 1) * chunk, rows) {
            let d = dy[r * cols + c];
            if comptime!(shifted) {
                shift_sum += d;
            }
            let center = center_of(statistics, r);
            let h = (x[r * cols + c] - Vector::new(center)) * Vector::new(statistics.rstd[r]);
            gain_sum = fma(d, h, gain_sum);
        }
        dgain[item] = gain_sum;
        if comptime!(shifted) {
            let dshift = dshift.index_mut(0usize);
            dshift[item] = shift_sum;
        }
    }
}

/// A normalisation, forward or backward.
#[derive(Clone, Copy)]
pub(crate) struct Norm {
    /// `[rows, channels]`.
    pub(crate) x: Arg,
    /// `[channels]`.
    pub(crate) gain: Arg,
    /// Mean of each row; `None` for RMS norm.
    pub(crate) mean: Option<Arg>,
    /// `1 / sqrt(variance + epsilon)` of each row.
    pub(crate) rstd: Arg,
    /// Length of a row.
    pub(crate) channels: usize,
}

impl Norm {
    fn rows(&self) -> usize {
        self.rstd.elements()
    }

    fn kind(&self) -> &'static str {
        if self.mean.is_some() { "layer" } else { "rms" }
    }

    fn statistics(&self, t: &Target<'_>) -> StatisticsLaunch {
        StatisticsLaunch::new(t.bind_all(&self.mean, 1), t.bind(self.rstd, 1))
    }
}

/// `y = (x - mean) * rstd * gain + shift`, and the statistics of each row.
pub(crate) fn layer_norm(l: &Launcher, norm: Norm, shift: Arg, y: Arg, after: Option<After<'_>>, epsilon: f32) {
    let w = l.width(&[norm.channels]);
    let (rows, cols, teams) = (norm.rows(), norm.channels / w, Teams::new(l));
    go_on_with(l, y, after, Some(w), |then| {
        l.launch(
            teams.items(rows),
            || format!("layer_norm w{w}{then}"),
            // SAFETY: x and y hold rows * cols vectors, gain and shift cols, mean and rstd one float per row.
            |t| unsafe {
                let (x, affine) = (t.bind(norm.x, w), AffineLaunch::new(t.bind(norm.gain, w), t.bind(shift, w)));
                let (y, statistics, then) = (t.bind(y, w), norm.statistics(t), then.bind(t, w));
                run!(t, layer_norm_kernel(w, x, affine, y, statistics, then, rows, cols, epsilon, teams));
            },
        )
    });
}

/// `y = x * rstd * gain`, and `rstd` of each row.
pub(crate) fn rms_norm(l: &Launcher, norm: Norm, y: Arg, after: Option<After<'_>>, epsilon: f32) {
    let w = l.width(&[norm.channels]);
    let (rows, cols, teams) = (norm.rows(), norm.channels / w, Teams::new(l));
    go_on_with(l, y, after, Some(w), |then| {
        l.launch(
            teams.items(rows),
            || format!("rms_norm w{w}{then}"),
            // SAFETY: x and y hold rows * cols vectors, gain cols, rstd one float per row.
            |t| unsafe {
                let (x, gain, y) = (t.bind(norm.x, w), t.bind(norm.gain, w), t.bind(y, w));
                let (rstd, then) = (t.bind(norm.rstd, 1), then.bind(t, w));
                run!(t, rms_norm_kernel(w, x, gain, y, rstd, then, rows, cols, epsilon, teams));
            },
        )
    });
}

/// Gradients of [`layer_norm`], or without `dshift` of [`rms_norm`].
pub(crate) fn grad(
    l: &Launcher,
    norm: Norm,
    dy: Arg,
    dx: Arg,
    dgain: Arg,
    dshift: Option<Arg>,
    after: Option<After<'_>>,
) {
    input_grad(l, norm, dy, dx, after);
    param_grad(l, norm, dy, dgain, dshift);
}

fn input_grad(l: &Launcher, norm: Norm, dy: Arg, dx: Arg, after: Option<After<'_>>) {
    let w = l.width(&[norm.channels]);
    let (rows, cols, teams) = (norm.rows(), norm.channels / w, Teams::new(l));
    go_on_with(l, dx, after, Some(w), |then| {
        l.launch(
            teams.items(rows),
            || format!("{}_norm_grad w{w}{then}", norm.kind()),
            // SAFETY: dy, x and dx hold rows * cols vectors, gain cols, mean (if any) and rstd one float per row.
            |t| unsafe {
                let (dy, x, gain) = (t.bind(dy, w), t.bind(norm.x, w), t.bind(norm.gain, w));
                let (statistics, dx, then) = (norm.statistics(t), t.bind(dx, w), then.bind(t, w));
                run!(t, norm_grad_kernel(w, dy, x, gain, statistics, dx, then, rows, cols, teams));
            },
        )
    });
}

fn param_grad(l: &Launcher, norm: Norm, dy: Arg, dgain: Arg, dshift: Option<Arg>) {
    let Norm { x, channels, .. } = norm;
    let w = l.width(&[channels]);
    let (rows, cols, split) = (norm.rows(), channels / w, l.split());
    let mut blocks = reduce::blocks(l, cols, rows);
    if 2 * blocks * channels > SCRATCH_ELEMENTS {
        blocks = 1;
    }
    let (gain_sum, shift_sum) = if blocks == 1 {
        (dgain, dshift)
    } else {
        let [low, high] = l.scratch().halves();
        (low.first(blocks * channels), dshift.map(|_| high.first(blocks * channels)))
    };
    l.launch(
        blocks * cols,
        || format!("{}_norm_param_grad w{w}", norm.kind()),
        // SAFETY: dy and x hold rows * cols vectors, the sums blocks * cols, mean (if any) and rstd one float per row.
        |t| unsafe {
            let (dy, x, statistics) = (t.bind(dy, w), t.bind(x, w), norm.statistics(t));
            let (dgain, dshift) = (t.bind(gain_sum, w), t.bind_all(&shift_sum, w));
            run!(t, norm_param_grad_kernel(w, dy, x, statistics, dgain, dshift, rows, cols, blocks, split));
        },
    );
    if blocks > 1 {
        reduce::add_blocks(l, gain_sum, dgain, blocks, channels);
        if let (Some(partial), Some(dshift)) = (shift_sum, dshift) {
            reduce::add_blocks(l, partial, dshift, blocks, channels);
        }
    }
}

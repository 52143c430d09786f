//! AdamW in place over parameters and their two moments, all tensors of a node in one launch where their vectors are
//! equally wide. The vectors of the tensors count as one row of items, and each belongs to the unit that owns its place
//! there, so that a launch over many small tensors occupies the device as one over a large one does. An element's result
//! does not depend on what else is updated. The kernel streams 28 bytes per parameter and is bound by memory.

#![allow(unsafe_code, reason = "kernel launches")]

use super::copy;
use crate::launch::{Arg, Launcher, Split, end_item, first_item, item_step, run};
use cubecl::prelude::*;
use moec_ir::AdamWAttrs;

/// First item of this unit in a part of `length` items that begins at item `start` of all; `first` is its first of all.
#[cube]
fn first_of_part(first: usize, start: usize, length: usize, #[comptime] split: Split) -> usize {
    match comptime!(split) {
        Split::Ranges => min(max(first, start) - start, length),
        Split::Strided => {
            let units = CUBE_DIM as usize * CUBE_COUNT;
            (ABSOLUTE_POS + units - start % units) % units
        }
    }
}

/// Item after the last one of this unit in that part; `end` is the one after its last of all.
#[cube]
fn end_of_part(end: usize, start: usize, length: usize, #[comptime] split: Split) -> usize {
    match comptime!(split) {
        Split::Ranges => min(max(end, start) - start, length),
        Split::Strided => length,
    }
}

/// What is updated, tensor by tensor: parameters and their two moments.
#[derive(CubeType, CubeLaunch)]
struct Tensors<W: Size> {
    parameters: Sequence<Box<[Vector<f32, W>]>>,
    firsts: Sequence<Box<[Vector<f32, W>]>>,
    seconds: Sequence<Box<[Vector<f32, W>]>>,
    grads: Sequence<Box<[Vector<f32, W>]>>,
    /// Lengths in vectors.
    lengths: Sequence<usize>,
}

/// `beta1`, `1 - beta1`, and so on.
#[derive(CubeType, CubeLaunch)]
struct Coefficients {
    beta1: f32,
    complement1: f32,
    beta2: f32,
    complement2: f32,
    epsilon: f32,
    weight_decay: f32,
}

/// `hyper` is `[lr, 1 - beta1^t, 1 - beta2^t]`; `scale` holds one factor of the gradients, or no buffer. `n` is the length
/// of all tensors together.
#[cube(launch_unchecked)]
fn adamw<W: Size>(
    x: &mut Tensors<W>,
    hyper: &[f32],
    scale: &Sequence<Box<[f32]>>,
    coefficients: &Coefficients,
    n: usize,
    #[comptime] split: Split,
) {
    let lr = hyper[0];
    let mut factor = 1.0f32.runtime();
    if comptime!(scale.len() == 1) {
        factor = scale[0][0];
    }
    let factor = Vector::<f32, W>::new(factor);
    let (b1, b2) = (Vector::<f32, W>::new(coefficients.beta1), Vector::<f32, W>::new(coefficients.beta2));
    let (c1, c2) = (Vector::<f32, W>::new(coefficients.complement1), Vector::<f32, W>::new(coefficients.complement2));
    let decay = Vector::<f32, W>::new(1.0f32 - lr * coefficients.weight_decay);
    let rate = Vector::<f32, W>::new(lr / hyper[1]);
    let correction = Vector::<f32, W>::new(1.0f32 / f32::sqrt(hyper[2]));
    let epsilon = Vector::<f32, W>::new(coefficients.epsilon);
    let (first, end) = (first_item(n, split), end_item(n, split));
    let mut start = 0usize.runtime();
    #[unroll]
    for tensor in 0..comptime!(x.lengths.len()) {
        let length = *x.lengths.index(tensor);
        let grad = x.grads.index(tensor);
        let p = x.parameters.index_mut(tensor);
        let m = x.firsts.index_mut(tensor);
        let v = x.seconds.index_mut(tensor);
        let own = first_of_part(first, start, length, split);
        for i in range_stepped(own, end_of_part(end, start, length, split), item_step(split)) {
            let g = grad[i] * factor;
            let first = fma(b1, m[i], c1 * g);
            let second = fma(b2, v[i], c2 * g * g);
            m[i] = first;
            v[i] = second;
            p[i] = p[i] * decay - rate * first / (Vector::sqrt(second) * correction + epsilon);
        }
        start += length;
    }
}

/// A tensor to update.
pub(crate) struct Update {
    /// Parameter, first and second moment as they are.
    pub(crate) old: [Arg; 3],
    /// Gradient of the parameter.
    pub(crate) grad: Arg,
    /// Where the three go: the same buffers, or others.
    pub(crate) new: [Arg; 3],
}

/// One step of AdamW on several tensors.
pub(crate) fn launch(l: &Launcher, updates: &[Update], hyper: Arg, scale: Option<Arg>, attrs: &AdamWAttrs) {
    let updates = || updates.iter().filter(|u| u.grad.elements() > 0);
    for (from, to) in updates().flat_map(|u| u.old.into_iter().zip(u.new)) {
        copy::launch(l, from, to);
    }
    for (w, group) in l.by_width(updates(), |u| u.grad.elements(), l.profile().launch_limits().grouped_updates()) {
        together(l, &group, hyper, scale, attrs, w);
    }
}

/// One launch over tensors of vectors of width `w`.
fn together(l: &Launcher, updates: &[&Update], hyper: Arg, scale: Option<Arg>, attrs: &AdamWAttrs, w: usize) {
    let lengths: Vec<usize> = updates.iter().map(|u| u.grad.elements() / w).collect();
    let (n, split) = (lengths.iter().sum(), l.split());
    // `1 - beta` is rounded once, from 64 bits: in 32 bits it would lose digits of a beta near 1.
    let [beta1, beta2, epsilon, decay] = [attrs.beta1, attrs.beta2, attrs.epsilon, attrs.weight_decay].map(|r| r.get());
    l.launch(
        n,
        || format!("adamw w{w} x{}{}", updates.len(), if scale.is_some() { " scaled" } else { "" }),
        // SAFETY: the four buffers of a tensor hold as many vectors as `lengths` says, `hyper` three floats and `scale`
        // one.
        |t| unsafe {
            let [p, m, v] = [0, 1, 2].map(|i| t.bind_all(updates.iter().map(|u| &u.new[i]), w));
            let grads = t.bind_all(updates.iter().map(|u| &u.grad), w);
            let tensors = TensorsLaunch::new(p, m, v, grads, lengths.iter().copied().collect());
            let [complement1, complement2] = [beta1, beta2].map(|beta| (1.0 - beta) as f32);
            let (beta1, beta2, epsilon, decay) = (beta1 as f32, beta2 as f32, epsilon as f32, decay as f32);
            let coefficients = CoefficientsLaunch::new(beta1, complement1, beta2, complement2, epsilon, decay);
            let (hyper, scale) = (t.bind(hyper, 1), t.bind_all(&scale, 1));
            run!(t, adamw(w, tensors, hyper, scale, coefficients, n, split));
        },
    );
}

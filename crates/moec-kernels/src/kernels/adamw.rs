//! AdamW in place over a parameter and its two moments. Each element belongs to the unit that owns its index; the
//! kernel streams 28 bytes per parameter and is bound by memory.

#![allow(unsafe_code, reason = "kernel launches")]

use super::copy;
use crate::launch::{Arg, Launcher, Split, end_item, first_item, item_step};
use cubecl::prelude::*;
use moec_ir::AdamWAttrs;

/// `hyper` is `[lr, 1 - beta1^t, 1 - beta2^t]`; `scale` holds one factor of the gradient, or no buffer.
#[cube(launch_unchecked)]
fn adamw<W: Size>(
    p: &mut [Vector<f32, W>],
    m: &mut [Vector<f32, W>],
    v: &mut [Vector<f32, W>],
    grad: &[Vector<f32, W>],
    hyper: &[f32],
    scale: &Sequence<Box<[f32]>>,
    beta1: f32,
    complement1: f32,
    beta2: f32,
    complement2: f32,
    epsilon: f32,
    weight_decay: f32,
    n: usize,
    #[comptime] scaled: bool,
    #[comptime] split: Split,
) {
    let lr = hyper[0];
    let mut factor = 1.0f32.runtime();
    if comptime!(scaled) {
        factor = scale[0][0];
    }
    let factor = Vector::<f32, W>::new(factor);
    let (b1, b2) = (Vector::<f32, W>::new(beta1), Vector::<f32, W>::new(beta2));
    let (c1, c2) = (Vector::<f32, W>::new(complement1), Vector::<f32, W>::new(complement2));
    let decay = Vector::<f32, W>::new(1.0f32 - lr * weight_decay);
    let rate = Vector::<f32, W>::new(lr / hyper[1]);
    let correction = Vector::<f32, W>::new(1.0f32 / f32::sqrt(hyper[2]));
    let epsilon = Vector::<f32, W>::new(epsilon);
    for i in range_stepped(first_item(n, split), end_item(n, split), item_step(split)) {
        let g = grad[i] * factor;
        let first = fma(b1, m[i], c1 * g);
        let second = fma(b2, v[i], c2 * g * g);
        m[i] = first;
        v[i] = second;
        p[i] = p[i] * decay - rate * first / (Vector::sqrt(second) * correction + epsilon);
    }
}

/// One step of AdamW on `[parameter, first moment, second moment]`, from `old` to `new` (the same buffers, or others).
pub(crate) fn launch(
    l: &Launcher,
    old: [Arg; 3],
    grad: Arg,
    hyper: Arg,
    scale: Option<Arg>,
    new: [Arg; 3],
    attrs: &AdamWAttrs,
) {
    for (from, to) in old.into_iter().zip(new) {
        copy::launch(l, from, to);
    }
    let w = l.width(&[grad.elements()]);
    let (n, split) = (grad.elements() / w, l.split());
    // `1 - beta` is rounded once, from 64 bits: in 32 bits it would lose digits of a beta near 1.
    let [beta1, beta2, epsilon, decay] = [attrs.beta1, attrs.beta2, attrs.epsilon, attrs.weight_decay].map(|r| r.get());
    l.launch(
        n,
        || format!("adamw w{w}{}", if scale.is_some() { " scaled" } else { "" }),
        // SAFETY: the four tensors hold n vectors, `hyper` three floats and `scale` one.
        |t| unsafe {
            let [p, m, v] = new.map(|arg| t.bind(arg, w));
            adamw::launch_unchecked(
                t.client,
                t.count(),
                t.dim(),
                w,
                p,
                m,
                v,
                t.bind(grad, w),
                t.bind(hyper, 1),
                scale.iter().map(|&s| t.bind(s, 1)).collect(),
                beta1 as f32,
                (1.0 - beta1) as f32,
                beta2 as f32,
                (1.0 - beta2) as f32,
                epsilon as f32,
                decay as f32,
                n,
                scale.is_some(),
                split,
            );
        },
    );
}

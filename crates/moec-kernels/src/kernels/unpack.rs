//! Weights that were packed, as the matrices that they are. Products on the CPU read them packed instead.

#![allow(unsafe_code, reason = "kernel launches")]

use crate::launch::{Arg, Launcher, Optional, Split, end_item, first_item, item_step, run};
use cubecl::prelude::*;
use moec_ir::{UnpackAttrs, WeightFormat, internal_error};

/// Extents of the matrices and of their panels.
#[derive(CubeType, CubeLaunch)]
struct Extents {
    /// Rows of a matrix.
    inputs: usize,
    /// Columns of a matrix.
    columns: usize,
    /// Words of a row of a panel.
    words: usize,
}

/// Element `item` of all matrices.
#[cube]
fn element(packed: &[u32], scale: &Optional<f32>, x: &Extents, item: usize, #[comptime] format: WeightFormat) -> f32 {
    let panel = x.words * comptime!(format.columns_of_word());
    let panels = (x.columns + panel - 1) / panel;
    let (column, row) = (item % x.columns, item / x.columns % x.inputs);
    let matrix = item / x.columns / x.inputs;
    let (part, word) = (column % panel / x.words, column % x.words);
    let at = ((matrix * panels + column / panel) * x.inputs + row) * x.words + word;
    match comptime!(format) {
        WeightFormat::F32 => f32::reinterpret(packed[at]),
        WeightFormat::Bf16 => f32::reinterpret((packed[at] >> (16 * part as u32)) << 16u32),
        WeightFormat::Int8 => {
            // The byte goes to the top, and comes back with its sign.
            let whole = i32::reinterpret(packed[at] << (24 - 8 * part as u32)) >> 24i32;
            f32::cast_from(whole) * scale.values[matrix * x.columns + column]
        }
    }
}

#[cube(launch_unchecked)]
fn unpack_kernel(
    packed: &[u32],
    scale: &Optional<f32>,
    y: &mut [f32],
    x: &Extents,
    #[comptime] format: WeightFormat,
    #[comptime] split: Split,
) {
    let items = y.len();
    for item in range_stepped(first_item(items, split), end_item(items, split), item_step(split)) {
        y[item] = element(packed, scale, x, item, format);
    }
}

/// `y [.., I, O]` from `packed [.., panels, I, words]`, whose shape is given, and the scales of its columns.
pub(crate) fn launch(l: &Launcher, attrs: &UnpackAttrs, packed: Arg, scale: Option<Arg>, y: Arg, shape: &[usize]) {
    let UnpackAttrs { format, columns, .. } = *attrs;
    let [.., inputs, words] = *shape else { internal_error!("packed weights have the shape {shape:?}") };
    let split = l.split();
    l.launch(
        y.elements(),
        || format!("unpack {format:?}"),
        // SAFETY: the shapes are those that the operation infers from each other, and the place of an element follows from
        // them.
        |t| unsafe {
            let scale = Optional::bind(t, scale, packed, 1);
            let extents = ExtentsLaunch::new(inputs, columns, words);
            run!(t, unpack_kernel(t.bind(packed, 1), scale, t.bind(y, 1), extents, format, split));
        },
    );
}

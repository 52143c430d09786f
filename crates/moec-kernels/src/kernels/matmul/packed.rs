//! Weights in panels ([`WeightFormat`]), on the CPU: a row of a panel is four vectors of as many neighbouring columns as a
//! register has lanes, in one to four vectors of words. It becomes float32 numbers in registers, so that a product reads
//! from memory what is stored, and from one end of a panel to the other.

use super::Panels;
use crate::launch::PANEL_VECTORS;
use cubecl::prelude::*;
use moec_ir::WeightFormat;

/// A float32 number whose last place is 1, so that its low bits are a whole number that is added to it.
const TWO_TO_23: f32 = 8_388_608.0;

/// The bits of [`TWO_TO_23`].
const TWO_TO_23_BITS: u32 = 0x4b00_0000;

/// A row of a panel, of which `row` panels' rows come before it; `scale` has a factor for each column where the format is
/// scaled.
#[cube]
pub(super) fn unpacked_row<W: Size>(
    words: &[Vector<f32, W>],
    row: usize,
    scale: &Array<Vector<f32, W>>,
    #[comptime] panels: Option<Panels>,
) -> Sequence<Vector<f32, W>> {
    let mut columns = Sequence::<Vector<f32, W>>::new();
    match comptime!(panels.map_or(WeightFormat::F32, |panels| panels.format)) {
        WeightFormat::F32 =>
        {
            #[unroll]
            for j in 0..PANEL_VECTORS {
                columns.push(words[row * PANEL_VECTORS + j]);
            }
        }
        WeightFormat::Bf16 => {
            let first = Vector::<u32, W>::reinterpret(words[row * 2]);
            let second = Vector::<u32, W>::reinterpret(words[row * 2 + 1]);
            let (half, upper) = (Vector::<u32, W>::new(16u32), Vector::<u32, W>::new(0xffff_0000u32));
            columns.push(Vector::<f32, W>::reinterpret(first << half));
            columns.push(Vector::<f32, W>::reinterpret(second << half));
            columns.push(Vector::<f32, W>::reinterpret(first & upper));
            columns.push(Vector::<f32, W>::reinterpret(second & upper));
        }
        WeightFormat::Int8 => {
            // Bytes from 0 to 255 instead of -128 to 127.
            let four = Vector::<u32, W>::reinterpret(words[row]) ^ Vector::<u32, W>::new(0x8080_8080u32);
            #[unroll]
            for j in 0..PANEL_VECTORS {
                let byte = (four >> Vector::<u32, W>::new(comptime!(8 * j as u32))) & Vector::<u32, W>::new(0xffu32);
                let above = Vector::<f32, W>::reinterpret(byte | Vector::<u32, W>::new(TWO_TO_23_BITS));
                columns.push((above - Vector::<f32, W>::new(TWO_TO_23 + 128.0)) * scale[j]);
            }
        }
    }
    columns
}

//! How weights are stored for programs that only read them: in panels of columns, and in fewer bits.
//!
//! A matrix `[I, O]` of a product `x w` is cut into panels of as many columns as a kernel sums at a time. A panel is stored
//! row after row, so that a kernel reads it from one end to the other, whatever the width of the matrix. Columns beyond the
//! last are 0.
//!
//! A row of a panel of P columns is P numbers of 32 bits, or P / 2 or P / 4 words of them: part `q` of word `w` (the lowest
//! bits first) is column `q * (words of a row) + w`, so that a vector of words becomes vectors of neighbouring columns.

use crate::internal::Invariant;
use crate::precision::bf16_bits;
use crate::tensor::{Data, Tensor};
use crate::types::{DType, TensorType};

/// The numbers that weights are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum WeightFormat {
    /// As they are, in float32.
    #[default]
    F32,
    /// Rounded to bfloat16, to the nearest, ties to even.
    Bf16,
    /// Whole numbers from -127 to 127, times a scale for each column: the largest magnitude in it, divided by 127
    /// (absolute-maximum quantisation of vectors: Dettmers et al. 2022, arXiv 2208.07339, section 2.1).
    Int8,
}

/// The largest whole number that a weight is stored as.
const LARGEST: f32 = 127.0;

impl WeightFormat {
    /// Every format, for tables and tests.
    pub const ALL: [WeightFormat; 3] = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8];

    /// Name in the text form and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            WeightFormat::F32 => "f32",
            WeightFormat::Bf16 => "bf16",
            WeightFormat::Int8 => "int8",
        }
    }

    /// The format of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Columns that a word of 32 bits holds.
    pub const fn columns_of_word(self) -> usize {
        match self {
            WeightFormat::F32 => 1,
            WeightFormat::Bf16 => 2,
            WeightFormat::Int8 => 4,
        }
    }

    /// The type of what is stored.
    pub(crate) const fn dtype(self) -> DType {
        match self {
            WeightFormat::F32 => DType::F32,
            WeightFormat::Bf16 | WeightFormat::Int8 => DType::I32,
        }
    }

    /// Whether every column has a scale.
    pub const fn is_scaled(self) -> bool {
        matches!(self, WeightFormat::Int8)
    }

    /// What is stored of weights `[.., O, I]`, in panels of so many columns.
    pub fn packed_type(self, weights: &TensorType, panel: usize) -> Option<TensorType> {
        let [leading @ .., outputs, inputs] = &weights.shape[..] else { return None };
        let mut shape = leading.to_vec();
        shape.extend([outputs.div_ceil(panel), *inputs, panel / self.columns_of_word()]);
        Some(TensorType { dtype: self.dtype(), shape })
    }

    /// The scales of weights `[.., O, I]`, if there are any.
    pub fn scale_type(self, weights: &TensorType) -> Option<TensorType> {
        let (_, leading) = weights.shape.split_last()?;
        self.is_scaled().then(|| TensorType::f32(leading.to_vec()))
    }

    /// What the columns of weights `[.., O, I]` are multiplied by, `[.., O]`; `None` if they are no matrices of floats, or
    /// the format has no scales.
    pub fn scales(self, weights: &Tensor) -> Option<Tensor> {
        let ty = weights.ty();
        let (scales, inputs) = (self.scale_type(&ty)?, *ty.shape.last()?);
        let matrices = ty.shape.len() >= 2 && ty.dtype == DType::F32;
        let values = matrices.then(|| scales_of(&weights.to_f32(), inputs))?;
        Tensor::new(scales.shape, Data::F32(values))
    }

    /// What is stored of weights `[.., O, I]` in panels of so many columns, beside the scales; `None` if they are no
    /// matrices of floats. Float32 numbers stay what they are.
    pub fn pack(self, weights: &Tensor, panel: usize) -> Option<Tensor> {
        let ty = weights.ty();
        let packed = self.packed_type(&ty, panel).filter(|_| ty.dtype == DType::F32)?;
        let [.., outputs, inputs] = ty.shape[..] else { return None };
        let values = weights.to_f32();
        let scales = self.is_scaled().then(|| scales_of(&values, inputs));
        let (each, words_of_row) = (self.columns_of_word(), panel / self.columns_of_word());
        let mut words = Vec::with_capacity(packed.elements());
        for matrix in 0..values.len() / (outputs * inputs).max(1) {
            // The part of a word that an element is.
            let part = |column: usize, row: usize| {
                if column >= outputs {
                    return 0;
                }
                let x = values[(matrix * outputs + column) * inputs + row];
                match self {
                    WeightFormat::F32 => x.to_bits(),
                    WeightFormat::Bf16 => u32::from(bf16_bits(x)),
                    WeightFormat::Int8 => {
                        let scales = scales.as_ref().invariant("its columns are scaled");
                        u32::from(whole(x, scales[matrix * outputs + column]) as u8)
                    }
                }
            };
            for first in (0..outputs).step_by(panel) {
                for row in 0..inputs {
                    for word in first..first + words_of_row {
                        let parts = (0..each).map(|q| part(word + q * words_of_row, row) << (q * (32 / each)));
                        words.push(parts.fold(0, |word, part| word | part));
                    }
                }
            }
        }
        let data = match self {
            WeightFormat::F32 => Data::F32(words.into_iter().map(f32::from_bits).collect()),
            WeightFormat::Bf16 | WeightFormat::Int8 => Data::I32(words.into_iter().map(|w| w as i32).collect()),
        };
        Tensor::new(packed.shape, data)
    }

    /// The number that part `q` of a word is, without its scale.
    pub(crate) fn part(self, word: i32, q: usize) -> f64 {
        match self {
            WeightFormat::F32 => f64::from(f32::from_bits(word as u32)),
            WeightFormat::Bf16 => f64::from(f32::from_bits((word as u32) >> (16 * q) << 16)),
            WeightFormat::Int8 => f64::from((word >> (8 * q)) as i8),
        }
    }
}

/// The scale of each column, one after another in memory.
fn scales_of(columns: &[f32], inputs: usize) -> Vec<f32> {
    columns.chunks(inputs.max(1)).map(scale_of).collect()
}

/// What the whole numbers of a column are multiplied by: 0 where all of them would be below the smallest normal number, and NaN
/// where one is not finite, so that a column says that it holds no numbers.
fn scale_of(column: &[f32]) -> f32 {
    if column.iter().any(|x| !x.is_finite()) {
        return f32::NAN;
    }
    let scale = column.iter().fold(0.0f32, |most, x| most.max(x.abs())) / LARGEST;
    if scale < f32::MIN_POSITIVE { 0.0 } else { scale }
}

/// The whole number that a weight is stored as; 1 where the scale is NaN, which makes NaN of it.
fn whole(x: f32, scale: f32) -> i8 {
    match scale {
        scale if scale.is_nan() => 1,
        0.0 => 0,
        scale => (x / scale).round_ties_even().clamp(-LARGEST, LARGEST) as i8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, Op, UnpackAttrs, evaluate};

    /// What a graph reads of weights that were packed: `[.., I, O]`.
    fn unpacked(format: WeightFormat, weights: &Tensor, panel: usize) -> Tensor {
        let (packed, scale) = (format.pack(weights, panel).unwrap(), format.scales(weights));
        let columns = weights.shape()[weights.shape().len() - 2];
        let mut b = Builder::new();
        let mut operands = vec![b.input("packed", packed.ty())];
        let mut values = [("packed".to_string(), packed)].into_iter().collect::<std::collections::BTreeMap<_, _>>();
        if let Some(scale) = scale {
            operands.push(b.input("scale", scale.ty()));
            values.insert("scale".into(), scale);
        }
        let y = b.op(Op::Unpack(UnpackAttrs { format, panel, columns }), &operands);
        b.output("y", y);
        evaluate(&b.finish().unwrap(), &values).unwrap().outputs["y"].clone()
    }

    fn weights(shape: [usize; 3]) -> Tensor {
        let n: usize = shape.iter().product();
        let values = (0..n).map(|i| ((i * 37 + 11) % 101) as f32 * 0.173 - 8.0).collect();
        Tensor::new(shape, Data::F32(values)).unwrap()
    }

    #[test]
    fn what_is_packed_is_read_back_transposed() {
        for (shape, panel) in [([1, 1, 1], 4), ([2, 3, 5], 4), ([3, 17, 7], 8), ([1, 33, 2], 16), ([2, 16, 3], 16)] {
            let [e, o, i] = shape;
            let w = weights(shape);
            let values = w.to_f64();
            for format in WeightFormat::ALL {
                let y = unpacked(format, &w, panel);
                assert_eq!(y.shape(), [e, i, o]);
                let y = y.to_f64();
                for (at, x) in values.iter().enumerate() {
                    let (matrix, column, row) = (at / (o * i), at / i % o, at % i);
                    let found = y[(matrix * i + row) * o + column];
                    let column: Vec<f64> = values[at / i * i..(at / i + 1) * i].to_vec();
                    let largest = column.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                    let most = match format {
                        WeightFormat::F32 => 0.0,
                        WeightFormat::Bf16 => x.abs() / 256.0,
                        WeightFormat::Int8 => largest / 254.0 * 1.000_01,
                    };
                    assert!((found - x).abs() <= most, "{format:?} {shape:?}: {found} for {x}");
                }
            }
        }
    }

    #[test]
    fn columns_of_zeros_and_of_large_numbers_are_stored() {
        let w = Tensor::new([2, 2], Data::F32(vec![0.0, 0.0, 1e30, -2e30])).unwrap();
        assert_eq!(unpacked(WeightFormat::Int8, &w, 4).to_f32(), [0.0, 1e30 * (64.0 / 63.5), 0.0, -2e30]);
        assert_eq!(unpacked(WeightFormat::F32, &w, 4).to_f32(), [0.0, 1e30, 0.0, -2e30]);
        // What is no number stays none, in its column; what is too small to have a scale becomes 0.
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let w = Tensor::new([3, 2], Data::F32(vec![1.0, odd, 3.0, 4.0, 1e-40, -2e-43])).unwrap();
            let y = unpacked(WeightFormat::Int8, &w, 4).to_f32();
            let columns = [0, 1, 2].map(|column| [y[column], y[3 + column]]);
            assert!(columns[0].iter().all(|x| x.is_nan()), "{columns:?}");
            assert!(
                (columns[1][0] - 3.0).abs() < 0.02 && columns[1][1] == 4.0 && columns[2] == [0.0, 0.0],
                "{columns:?}"
            );
            assert!(unpacked(WeightFormat::Bf16, &w, 4).to_f32()[3].to_bits() << 1 >= 0x7f80_0000u32 << 1);
        }
    }

    #[test]
    fn names_are_read_back() {
        assert!(WeightFormat::ALL.into_iter().all(|format| WeightFormat::named(format.name()) == Some(format)));
        assert_eq!(WeightFormat::named("int4"), None);
    }

    #[test]
    fn only_matrices_of_floats_are_packed() {
        assert_eq!(WeightFormat::Bf16.pack(&Tensor::ints([1, 2]), 4), None);
        assert_eq!(WeightFormat::F32.pack(&Tensor::floats([1.0]), 4), None);
        assert_eq!(WeightFormat::Int8.scales(&Tensor::floats([1.0])), None);
    }
}

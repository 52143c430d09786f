//! Element types, tensor types, and the letters that shapes are written in.
//!
//! Shapes are written with fixed letters everywhere in the code and its documentation:
//! `B` batch, `T` time (context), `N = B*T` tokens, `C` channels (model width), `H` heads, `D` head width,
//! `V` vocabulary, `E` experts, `K` experts per token, `R = N*K` dispatched rows, `F` hidden width of an expert,
//! `P` capacity of an expert.

use std::fmt;

/// Element type of a tensor on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// 32-bit IEEE float on devices; the reference evaluator computes it in 64 bits.
    F32,
    /// 32-bit signed integer: token ids, expert indices (-1 means "no expert"), row numbers.
    I32,
}

impl DType {
    /// Size of one element in bytes on a device.
    pub fn bytes(self) -> usize {
        4
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::I32 => "i32",
        })
    }
}

/// Type of a tensor: element type and static shape. A scalar has the empty shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Extent of every axis, outermost first (row-major).
    pub shape: Vec<usize>,
}

impl TensorType {
    /// A float tensor of the given shape.
    pub fn f32(shape: impl Into<Vec<usize>>) -> Self {
        Self { dtype: DType::F32, shape: shape.into() }
    }

    /// An integer tensor of the given shape.
    pub fn i32(shape: impl Into<Vec<usize>>) -> Self {
        Self { dtype: DType::I32, shape: shape.into() }
    }

    /// Number of elements, saturating at `usize::MAX` so that a hostile shape is reported and not wrapped around.
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1usize, |n, &d| n.saturating_mul(d))
    }

    /// Size in bytes on a device, saturating.
    pub fn bytes(&self) -> usize {
        self.elements().saturating_mul(self.dtype.bytes())
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
}

impl fmt::Display for TensorType {
    /// `f32[16, 32]`; a scalar is `f32[]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.shape.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

/// A float attribute with equality and hash by its bits, so that operations can be compared and deduplicated.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Real(u64);

impl Real {
    /// Wraps a value; `-0.0` becomes `0.0` and every NaN becomes one NaN, so equal values have equal bits.
    pub fn new(value: f64) -> Self {
        if value.is_nan() {
            return Self(f64::NAN.to_bits());
        }
        Self((value + 0.0).to_bits())
    }

    /// The value.
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl From<f64> for Real {
    fn from(value: f64) -> Self {
        Self::new(value)
    }
}

impl fmt::Debug for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.get())
    }
}

impl fmt::Display for Real {
    /// Shortest form that reads back to the same bits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.get())
    }
}

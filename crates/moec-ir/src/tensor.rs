//! Tensors on the host: what the reference evaluator computes with and what backends take and give.

use crate::types::{DType, TensorType};

/// Elements of a host tensor. Both float widths have the device type f32.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Floats as a device holds them.
    F32(Vec<f32>),
    /// Floats as the reference evaluator holds them.
    F64(Vec<f64>),
    /// Integers.
    I32(Vec<i32>),
}

/// A host tensor: shape and row-major elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

impl Tensor {
    /// A tensor from its shape and elements; `None` if their numbers differ.
    pub fn new(shape: impl Into<Vec<usize>>, data: Data) -> Option<Self> {
        let shape = shape.into();
        let len = match &data {
            Data::F32(v) => v.len(),
            Data::F64(v) => v.len(),
            Data::I32(v) => v.len(),
        };
        (TensorType::f32(shape.clone()).elements() == len).then_some(Self { shape, data })
    }

    /// A float scalar.
    pub fn scalar(value: f64) -> Self {
        Self { shape: Vec::new(), data: Data::F64(vec![value]) }
    }

    /// A vector of integers.
    pub fn ints(values: impl Into<Vec<i32>>) -> Self {
        let values = values.into();
        Self { shape: vec![values.len()], data: Data::I32(values) }
    }

    /// A vector of 32-bit floats.
    pub fn floats(values: impl Into<Vec<f32>>) -> Self {
        let values = values.into();
        Self { shape: vec![values.len()], data: Data::F32(values) }
    }

    /// Zeros of a type; floats are 64 bits wide.
    pub fn zeros(ty: &TensorType) -> Self {
        let n = ty.elements();
        let data = match ty.dtype {
            DType::F32 => Data::F64(vec![0.0; n]),
            DType::I32 => Data::I32(vec![0; n]),
        };
        Self { shape: ty.shape.clone(), data }
    }

    /// Shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The tensor's elements, given up.
    pub fn into_data(self) -> Data {
        self.data
    }

    /// Type on a device.
    pub fn ty(&self) -> TensorType {
        let dtype = match self.data {
            Data::F32(_) | Data::F64(_) => DType::F32,
            Data::I32(_) => DType::I32,
        };
        TensorType { dtype, shape: self.shape.clone() }
    }

    /// The same elements under another shape; `None` if their number differs.
    pub fn with_shape(self, shape: impl Into<Vec<usize>>) -> Option<Self> {
        Self::new(shape, self.data)
    }

    /// Elements as 64-bit floats.
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::F32(v) => v.iter().map(|&x| f64::from(x)).collect(),
            Data::F64(v) => v.clone(),
            Data::I32(v) => v.iter().map(|&x| f64::from(x)).collect(),
        }
    }

    /// Elements as 32-bit floats, rounded to nearest.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            Data::F32(v) => v.clone(),
            Data::F64(v) => v.iter().map(|&x| x as f32).collect(),
            Data::I32(v) => v.iter().map(|&x| x as f32).collect(),
        }
    }

    /// Elements as integers; `None` for a float tensor.
    pub fn as_i32(&self) -> Option<&[i32]> {
        match &self.data {
            Data::I32(v) => Some(v),
            Data::F32(_) | Data::F64(_) => None,
        }
    }

    /// The only element of a one-element tensor.
    pub fn item(&self) -> Option<f64> {
        match &self.data {
            Data::F32(v) if v.len() == 1 => Some(f64::from(v[0])),
            Data::F64(v) if v.len() == 1 => Some(v[0]),
            Data::I32(v) if v.len() == 1 => Some(f64::from(v[0])),
            _ => None,
        }
    }
}

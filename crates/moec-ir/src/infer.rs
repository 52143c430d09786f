//! What is asked of the operands of an operation, and why they may not fit.

use crate::op::Times;
use crate::types::{DType, TensorType};

/// Why an operation does not fit its operands.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InferError {
    /// An operand is not a value of the graph.
    #[error("an operand is not a value of this graph")]
    UnknownOperand,
    /// Wrong number of operands.
    #[error("{op} takes {expected} operands, not {found}")]
    Arity {
        /// Mnemonic of the operation.
        op: &'static str,
        /// How many it takes.
        expected: String,
        /// How many it got.
        found: usize,
    },
    /// Operand types do not fit.
    #[error("{op}: {message}")]
    Mismatch {
        /// Mnemonic of the operation.
        op: &'static str,
        /// What was expected and what was found.
        message: String,
    },
}

/// A float type of that shape.
pub(crate) fn f32s(shape: &[usize]) -> TensorType {
    TensorType::f32(shape)
}

/// Product of extents, saturating so that a hostile shape is reported and not wrapped around.
pub(crate) fn product(extents: &[usize]) -> usize {
    extents.iter().fold(1, |n, &d| n.saturating_mul(d))
}

/// What is asked of the operands of one operation.
pub(crate) struct Check<'a> {
    pub(crate) op: &'static str,
    pub(crate) types: &'a [&'a TensorType],
}

impl<'a> Check<'a> {
    /// There are as many operands as the table says.
    pub(crate) fn times(&self, times: &[Times]) -> Result<(), InferError> {
        let least: usize = times.iter().map(|&(least, _)| least).sum();
        let most = times.iter().fold(0usize, |sum, &(_, most)| sum.saturating_add(most));
        if (least..=most).contains(&self.types.len()) {
            return Ok(());
        }
        let expected = match most {
            usize::MAX => format!("{least} or more"),
            most if most == least => least.to_string(),
            most => format!("{least} to {most}"),
        };
        Err(InferError::Arity { op: self.op, expected, found: self.types.len() })
    }

    pub(crate) fn fail<T>(&self, message: impl Into<String>) -> Result<T, InferError> {
        Err(InferError::Mismatch { op: self.op, message: message.into() })
    }

    pub(crate) fn require(&self, ok: bool, message: impl FnOnce() -> String) -> Result<(), InferError> {
        if ok { Ok(()) } else { self.fail(message()) }
    }

    pub(crate) fn ty(&self, i: usize) -> &'a TensorType {
        self.types[i]
    }

    /// Operand `i` must be f32.
    pub(crate) fn float(&self, i: usize) -> Result<&'a [usize], InferError> {
        let t = self.ty(i);
        self.require(t.dtype == DType::F32, || format!("operand {i} must be f32, not {t}"))?;
        Ok(&t.shape)
    }

    /// Operand `i` must be i32.
    pub(crate) fn int(&self, i: usize) -> Result<&'a [usize], InferError> {
        let t = self.ty(i);
        self.require(t.dtype == DType::I32, || format!("operand {i} must be i32, not {t}"))?;
        Ok(&t.shape)
    }

    pub(crate) fn float_matrix(&self, i: usize) -> Result<(usize, usize), InferError> {
        match self.float(i)? {
            &[r, c] => Ok((r, c)),
            _ => self.fail(format!("operand {i} must be a matrix, not {}", self.ty(i))),
        }
    }

    pub(crate) fn int_matrix(&self, i: usize) -> Result<(usize, usize), InferError> {
        match self.int(i)? {
            &[r, c] => Ok((r, c)),
            _ => self.fail(format!("operand {i} must be a matrix of indices, not {}", self.ty(i))),
        }
    }

    pub(crate) fn is(&self, i: usize, expected: &TensorType) -> Result<(), InferError> {
        self.require(self.ty(i) == expected, || format!("operand {i} must be {expected}, not {}", self.ty(i)))
    }

    pub(crate) fn rng(&self, i: usize) -> Result<(), InferError> {
        self.is(i, &TensorType::i32([4]))
    }

    /// The last axis of float operand `i` and the number of rows before it.
    pub(crate) fn rows(&self, i: usize) -> Result<(usize, usize), InferError> {
        let shape = self.float(i)?;
        match shape.split_last() {
            Some((&c, rest)) => Ok((product(rest), c)),
            None => self.fail(format!("operand {i} must have at least one axis")),
        }
    }
}

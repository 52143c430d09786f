//! What the reference evaluator is given of one operation, and why it may refuse.

use crate::infer::InferError;
use crate::internal::Invariant;
use crate::internal_error;
use crate::tensor::{Data, Tensor};
use crate::types::TensorType;
use std::borrow::Cow;

/// Why an operation or a graph could not be evaluated.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The operands do not fit the operation.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// An input, parameter or state has no value: `evaluate` was not given it, or `evaluate_op` was asked for it.
    #[error("{kind} `{name}` has no value")]
    Unbound {
        /// `input`, `parameter` or `state`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The value of an input, parameter or state has another type than the graph says.
    #[error("`{name}` is {expected}, but the value given is {found}")]
    Binding {
        /// Its name.
        name: String,
        /// Type in the graph.
        expected: TensorType,
        /// Type of the value.
        found: TensorType,
    },
    /// A token id or a target is not within its range.
    #[error("{op}: {what} {index} at position {position} is not below {bound}")]
    Index {
        /// Mnemonic of the operation.
        op: &'static str,
        /// What the index names: `token id` or `target`.
        what: &'static str,
        /// The index.
        index: i32,
        /// Where in its operand.
        position: usize,
        /// One past the largest index allowed.
        bound: usize,
    },
    /// Segment offsets do not start at 0, decrease, or pass the last row.
    #[error("{op}: offsets {offsets:?} are not ascending from 0 up to at most {rows}")]
    Offsets {
        /// Mnemonic of the operation.
        op: &'static str,
        /// The offsets.
        offsets: Vec<i32>,
        /// Number of rows.
        rows: usize,
    },
    /// An operand or a result is too large for this evaluator.
    #[error("a tensor of type {ty} is too large for the reference evaluator")]
    TooLarge {
        /// Its type.
        ty: TensorType,
    },
    /// An output or update is not a value of the graph.
    #[error("`{name}` is not a value of the graph")]
    Dangling {
        /// Name of the output or update.
        name: String,
    },
    /// A node of a graph failed.
    #[error("%{node}: {error}")]
    Node {
        /// Name of the node.
        node: String,
        /// Why.
        error: Box<EvalError>,
    },
}

/// The operands of one operation. Their types have been checked by `infer`.
pub(crate) struct Operands<'a> {
    pub(crate) op: &'static str,
    pub(crate) tensors: &'a [&'a Tensor],
}

impl<'a> Operands<'a> {
    /// Elements of a float operand.
    pub(crate) fn f(&self, i: usize) -> Cow<'a, [f64]> {
        match self.tensors[i].data() {
            Data::F64(v) => Cow::Borrowed(v),
            Data::F32(_) | Data::I32(_) => Cow::Owned(self.tensors[i].to_f64()),
        }
    }

    /// Elements of an integer operand.
    pub(crate) fn i(&self, i: usize) -> &'a [i32] {
        self.tensors[i].as_i32().invariant("inference lets only integers be where indices are read")
    }

    pub(crate) fn shape(&self, i: usize) -> &'a [usize] {
        self.tensors[i].shape()
    }

    /// Extents of a matrix operand.
    pub(crate) fn matrix(&self, i: usize) -> (usize, usize) {
        match *self.shape(i) {
            [r, c] => (r, c),
            _ => internal_error!("operand {i} of `{}` is no matrix, but was inferred to be one", self.op),
        }
    }

    /// Number of rows before the last axis, and the extent of that axis.
    pub(crate) fn rows(&self, i: usize) -> (usize, usize) {
        let (&c, rest) = self.shape(i).split_last().invariant("inference lets no scalar be where rows are read");
        (rest.iter().product(), c)
    }

    /// The generator state of operand `i`.
    pub(crate) fn rng(&self, i: usize) -> [i32; 4] {
        self.i(i).try_into().invariant("inference lets only four words be a generator state")
    }

    /// A token id or target, which must be in `0..bound`.
    pub(crate) fn index(
        &self,
        what: &'static str,
        position: usize,
        index: i32,
        bound: usize,
    ) -> Result<usize, EvalError> {
        within(index, bound).ok_or(EvalError::Index { op: self.op, what, index, position, bound })
    }

    /// Row ranges of the experts from the offsets in operand `i`.
    pub(crate) fn segments(&self, i: usize, rows: usize) -> Result<Vec<std::ops::Range<usize>>, EvalError> {
        let offsets = self.i(i);
        let valid = offsets.first() == Some(&0)
            && offsets.windows(2).all(|w| w[0] <= w[1])
            && offsets.last().is_some_and(|&last| last as usize <= rows);
        if !valid {
            return Err(EvalError::Offsets { op: self.op, offsets: offsets.to_vec(), rows });
        }
        Ok(offsets.windows(2).map(|w| w[0] as usize..w[1] as usize).collect())
    }
}

/// An index of an expert, slot or row, if it names one of `bound`.
pub(crate) fn within(index: i32, bound: usize) -> Option<usize> {
    usize::try_from(index).ok().filter(|&i| i < bound)
}

/// The results of an operation with one float result.
pub(crate) fn floats(values: Vec<f64>) -> Vec<Data> {
    vec![Data::F64(values)]
}

//! Parameters under the names of another program: each tensor here is some of theirs, one after another along the first axis.
//!
//! Which ones is a function from a tensor here to its [`Piece`]s, so that a format is one table of names, read in both directions.

use moec_ir::{Data, TOKEN_TABLE, Tensor, TensorType};
use moec_plan::StateDecl;
use std::collections::{BTreeMap, BTreeSet};

/// Why tensors cannot be translated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// The model has a tensor that the other model has no place for.
    #[error("the other model has no counterpart of `{name}`")]
    NoCounterpart {
        /// The tensor, by its name here.
        name: String,
    },
    /// The heads of the model are unknown or do not divide its width.
    #[error("`{name}` cannot be divided into {heads} attention heads")]
    Heads {
        /// The tensor, by its name here.
        name: String,
        /// Number of heads; 0 when layers differ or there is no attention.
        heads: usize,
    },
    /// A tensor is missing.
    #[error("tensor `{name}` is missing")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A tensor is left over.
    #[error("the model has no place for tensor `{name}`")]
    LeftOver {
        /// Its name.
        name: String,
    },
    /// The vocabulary is another one.
    #[error("the model was trained on {theirs} distinct characters, and the vocabulary of this text has {ours}")]
    Vocabulary {
        /// Characters of the other model.
        theirs: usize,
        /// Characters of the model here.
        ours: usize,
    },
    /// A tensor has another type than the model needs.
    #[error("tensor `{name}` is {found}, the model needs {expected}")]
    Type {
        /// Its name.
        name: String,
        /// What the model needs.
        expected: TensorType,
        /// What it is.
        found: TensorType,
    },
}

/// A tensor of another program that is part of one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its name there.
    pub name: String,
    /// The shape of the part here.
    pub shape: Vec<usize>,
    /// Whether it lies there with its two axes exchanged, `[in, out]`.
    pub transposed: bool,
}

impl Piece {
    /// A tensor that lies there as the part does here.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), shape: shape.into(), transposed: false }
    }

    /// The type that it has there.
    fn theirs(&self) -> TensorType {
        let shape = self.shape.iter().copied();
        if self.transposed {
            TensorType::f32(shape.rev().collect::<Vec<_>>())
        } else {
            TensorType::f32(self.shape.clone())
        }
    }
}

/// The elements of a matrix of `columns` with its axes exchanged.
fn transposed(elements: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| elements.iter().skip(column).step_by(columns).copied()).collect()
}

/// The pieces of a tensor, by its name here and its shape.
type Pieces<'a> = &'a dyn Fn(&str, &[usize]) -> Result<Vec<Piece>, ExchangeError>;

/// Parameters of a model here, from those of another program. Router states and moments of the optimiser are no parameters.
/// `is_constant` says which tensors of theirs are none either.
///
/// # Errors
/// When a tensor here has no counterpart, or one of theirs is missing, left over, or of another shape.
pub fn import_tensors(
    theirs: &BTreeMap<String, Tensor>,
    states: &[StateDecl],
    pieces: Pieces<'_>,
    is_constant: &dyn Fn(&str) -> bool,
) -> Result<BTreeMap<String, Tensor>, ExchangeError> {
    let mut ours = BTreeMap::new();
    let mut used = BTreeSet::new();
    for state in states.iter().filter(|s| s.kind.of_model()) {
        let mut elements = Vec::with_capacity(state.ty.elements());
        for piece in pieces(&state.name, &state.ty.shape)? {
            let Some(tensor) = theirs.get(&piece.name) else {
                return Err(ExchangeError::Missing { name: piece.name });
            };
            let expected = piece.theirs();
            if let ([ours, width], [theirs, columns]) = (expected.shape.as_slice(), tensor.shape())
                && state.name == TOKEN_TABLE
                && width == columns
                && ours != theirs
            {
                return Err(ExchangeError::Vocabulary { theirs: *theirs, ours: *ours });
            }
            if tensor.ty() != expected {
                return Err(ExchangeError::Type { name: piece.name, expected, found: tensor.ty() });
            }
            match tensor.shape() {
                [_, columns] if piece.transposed => elements.extend(transposed(&tensor.to_f32(), *columns)),
                _ => elements.extend(tensor.to_f32()),
            }
            used.insert(piece.name);
        }
        let found = TensorType::f32([elements.len()]);
        let tensor = Tensor::new(state.ty.shape.clone(), Data::F32(elements)).ok_or_else(|| ExchangeError::Type {
            name: state.name.clone(),
            expected: state.ty.clone(),
            found,
        })?;
        ours.insert(state.name.clone(), tensor);
    }
    match theirs.keys().find(|name| !used.contains(*name) && !is_constant(name)) {
        Some(name) => Err(ExchangeError::LeftOver { name: name.clone() }),
        None => Ok(ours),
    }
}

/// Parameters under the names of another program, from those of a model here; tensors of other kinds are left out.
///
/// # Errors
/// When a tensor has no counterpart there, or is missing or of another shape.
pub fn export_tensors(
    ours: &BTreeMap<String, Tensor>,
    states: &[StateDecl],
    pieces: Pieces<'_>,
) -> Result<BTreeMap<String, Tensor>, ExchangeError> {
    let mut theirs = BTreeMap::new();
    for state in states.iter().filter(|s| s.kind.of_model()) {
        let pieces = pieces(&state.name, &state.ty.shape)?;
        let Some(tensor) = ours.get(&state.name) else {
            return Err(ExchangeError::Missing { name: state.name.clone() });
        };
        let wrong = || ExchangeError::Type { name: state.name.clone(), expected: state.ty.clone(), found: tensor.ty() };
        if tensor.ty() != state.ty {
            return Err(wrong());
        }
        let elements = tensor.to_f32();
        let mut rest = elements.as_slice();
        for piece in pieces {
            let (part, later) = rest.split_at_checked(piece.shape.iter().product()).ok_or_else(wrong)?;
            rest = later;
            let part = match piece.shape.as_slice() {
                [_, columns] if piece.transposed => transposed(part, *columns),
                _ => part.to_vec(),
            };
            let part = Tensor::new(piece.theirs().shape, Data::F32(part)).ok_or_else(wrong)?;
            theirs.insert(piece.name, part);
        }
    }
    Ok(theirs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use moec_plan::StateKind;

    #[test]
    fn matrices_that_lie_the_other_way_there_are_turned() {
        let ty = TensorType::f32([3, 2]);
        let states = [StateDecl { name: "w".into(), ty, kind: StateKind::Parameter }];
        let values: Vec<f32> = (0..6_u8).map(f32::from).collect();
        let ours = BTreeMap::from([("w".to_string(), Tensor::new([3, 2], Data::F32(values)).unwrap())]);
        let pieces = |_: &str, shape: &[usize]| Ok(vec![Piece { transposed: true, ..Piece::new("theirs", shape) }]);
        let theirs = export_tensors(&ours, &states, &pieces).unwrap();
        assert_eq!(theirs["theirs"].shape(), [2, 3]);
        assert_eq!(theirs["theirs"].to_f64(), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
        assert_eq!(import_tensors(&theirs, &states, &pieces, &|_| false).unwrap(), ours);
        let square = BTreeMap::from([("theirs".to_string(), ours["w"].clone())]);
        let error = import_tensors(&square, &states, &pieces, &|_| false).unwrap_err();
        assert_eq!(error.to_string(), "tensor `theirs` is f32[3, 2], the model needs f32[2, 3]");
    }

    #[test]
    fn a_tensor_without_a_counterpart_can_be_left_out() {
        let states = [StateDecl { name: "w".into(), ty: TensorType::f32([2]), kind: StateKind::Parameter }];
        let ours = BTreeMap::from([("w".to_string(), Tensor::floats([1.0; 2]))]);
        assert_eq!(export_tensors(&ours, &states, &|_, _| Ok(Vec::new())).unwrap(), BTreeMap::new());
    }
}

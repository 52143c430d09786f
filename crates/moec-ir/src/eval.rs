//! The reference evaluator: what every operation means, in plain 64-bit Rust.
//!
//! Nothing here is fast. It is the oracle that kernels, fusions and gradient rules are held against, so each operation
//! is written as its documentation in [`Op`] reads, accumulates in 64 bits, and walks in one fixed order; what each one
//! computes is in the file of its family. Floats come out as [`Data::F64`] whatever width went in, integers as
//! [`Data::I32`].
//!
//! No input makes it panic: operands that do not fit, token ids and targets out of range and names without a value are
//! [`EvalError`]s.

use crate::family::{self, infer};
use crate::graph::Graph;
use crate::ids::Value;
use crate::internal::Invariant;
use crate::op::Op;
use crate::operands::{EvalError, Operands};
use crate::tensor::{Data, Tensor};
use crate::types::TensorType;
use std::collections::BTreeMap;

/// Tensors whose non-zero extents multiply to more than this are refused before anything is allocated.
pub const MAX_ELEMENTS: usize = 1 << 28;

/// What a graph evaluates to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Outputs by name.
    pub outputs: BTreeMap<String, Tensor>,
    /// Values that states and parameters take, by their name.
    pub updates: BTreeMap<String, Tensor>,
}

/// Evaluates a graph. `bindings` holds inputs, parameters and states by name; further names are ignored.
///
/// # Errors
/// When a name has no value or one of another type, or a node cannot be evaluated.
pub fn evaluate(graph: &Graph, bindings: &BTreeMap<String, Tensor>) -> Result<Evaluation, EvalError> {
    // A tensor is dropped after its last reader, so that memory stays near what is alive.
    let mut last_reader: Vec<usize> = graph.ids().map(|id| id.index()).collect();
    for id in graph.ids() {
        for v in graph.operands(id) {
            last_reader[v.node.index()] = id.index();
        }
    }
    for (name, v) in graph.outputs().iter().chain(graph.updates()) {
        graph.try_ty(*v).ok_or_else(|| EvalError::Dangling { name: name.clone() })?;
        last_reader[v.node.index()] = usize::MAX;
    }

    let mut values: Vec<Vec<Tensor>> = Vec::with_capacity(graph.len());
    for id in graph.ids() {
        let node = graph.node(id);
        let operands = graph.operands(id);
        let tensors: Vec<&Tensor> = operands.iter().map(|v| &values[v.node.index()][usize::from(v.slot)]).collect();
        let results = match &node.op {
            Op::Input { name, ty } | Op::Parameter { name, ty } | Op::State { name, ty, .. } => {
                bind(bindings, node.op.mnemonic(), name, ty).map(|t| vec![t])
            }
            op => evaluate_op(op, &tensors),
        };
        let results = results.map_err(|error| EvalError::Node { node: node.name.clone(), error: Box::new(error) })?;
        values.push(results);
        for v in operands {
            if last_reader[v.node.index()] == id.index() {
                values[v.node.index()] = Vec::new();
            }
        }
    }

    let read = |named: &[(String, Value)]| -> BTreeMap<String, Tensor> {
        named.iter().map(|(n, v)| (n.clone(), values[v.node.index()][usize::from(v.slot)].clone())).collect()
    };
    Ok(Evaluation { outputs: read(graph.outputs()), updates: read(graph.updates()) })
}

fn bind(
    bindings: &BTreeMap<String, Tensor>,
    kind: &'static str,
    name: &str,
    ty: &TensorType,
) -> Result<Tensor, EvalError> {
    let tensor = bindings.get(name).ok_or_else(|| EvalError::Unbound { kind, name: name.to_string() })?;
    if tensor.ty() != *ty {
        return Err(EvalError::Binding { name: name.to_string(), expected: ty.clone(), found: tensor.ty() });
    }
    Ok(match tensor.data() {
        Data::F32(_) => Tensor::new(ty.shape.clone(), Data::F64(tensor.to_f64()))
            .invariant("another width of floats does not change how many there are"),
        Data::F64(_) | Data::I32(_) => tensor.clone(),
    })
}

/// Evaluates one operation on its operands and returns its results in slot order.
///
/// # Errors
/// When the operands do not fit the operation, hold token ids, targets or offsets out of range, or the operation is an input, parameter or
/// state, which has no value of its own.
pub fn evaluate_op(op: &Op, operands: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
    let operand_types: Vec<TensorType> = operands.iter().map(|t| t.ty()).collect();
    let types = infer(op, &operand_types.iter().collect::<Vec<_>>())?;
    // Zero extents do not count: a loop over the rows of `f32[1000000000000, 0]` would not end either.
    let extent = |ty: &TensorType| ty.shape.iter().fold(1usize, |n, &d| n.saturating_mul(d.max(1)));
    if let Some(ty) = operand_types.iter().chain(&types).find(|ty| extent(ty) > MAX_ELEMENTS) {
        return Err(EvalError::TooLarge { ty: ty.clone() });
    }
    let results = family::evaluate(op, &Operands { op: op.mnemonic(), tensors: operands }, &types)?;
    let tensor = |(ty, data): (&TensorType, Data)| {
        Tensor::new(ty.shape.clone(), data).invariant("evaluation gives the elements that inference promises")
    };
    Ok(types.iter().zip(results).map(tensor).collect())
}

#[cfg(test)]
mod tests;

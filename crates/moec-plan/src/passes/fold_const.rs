//! Constant folding: an operation on filled tensors whose result is the same number everywhere becomes a fill.

use super::Rewrites;
use super::rebuild::{Rebuild, uniform};
use moec_ir::{Graph, GraphError, Op, Tensor, TensorType, Value, evaluate_op};

pub(crate) fn run(graph: &Graph, rewrites: &mut Rewrites) -> Result<Option<Graph>, GraphError> {
    if !graph
        .ids()
        .any(|id| folded(graph, &graph.node(id).op, graph.operands(id), &graph.node(id).results[0]).is_some())
    {
        return Ok(None);
    }
    let mut r = Rebuild::new(graph);
    for id in graph.ids() {
        let node = graph.node(id);
        match folded(&r.new, &node.op, &r.operands(id), &node.results[0]) {
            Some(value) if rewrites.take() => {
                let fill = Op::Fill { value: value.into(), ty: node.results[0].clone() };
                let new = r.add_as(id, fill, &[])?;
                r.set_all(id, new);
            }
            _ => {
                r.copy(id)?;
            }
        }
    }
    Ok(Some(r.finish()))
}

/// The number that every element of an operation's result has, if its operands are filled.
fn folded(graph: &Graph, op: &Op, operands: &[Value], result: &TensorType) -> Option<f64> {
    let constants: Vec<f64> = operands.iter().map(|&v| uniform(graph, v)).collect::<Option<_>>()?;
    let sizes: Vec<usize> = operands.iter().map(|&v| graph.ty(v).elements()).collect();
    fold(op, &constants, &sizes, result)
}

/// The number that every element of the result has, for operands that are filled with `constants`.
fn fold(op: &Op, constants: &[f64], sizes: &[usize], result: &TensorType) -> Option<f64> {
    match op {
        Op::Reshape { .. } | Op::Broadcast { .. } => constants.first().copied(),
        // Elementwise: one element tells them all.
        Op::Unary(_) | Op::Binary(_) | Op::Select => {
            let scalars: Vec<Tensor> = constants.iter().map(|&c| Tensor::scalar(c)).collect();
            evaluate_op(op, &scalars.iter().collect::<Vec<_>>()).ok()?.first()?.item()
        }
        Op::Sum { .. } => {
            let elements = *sizes.first()? as f64;
            let sums = result.elements();
            (sums > 0).then(|| constants[0] * (elements / sums as f64))
        }
        Op::SumOfSquares => Some(constants.iter().zip(sizes).map(|(c, &n)| c * c * n as f64).sum()),
        _ => None,
    }
}

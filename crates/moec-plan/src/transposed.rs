//! Weights stored transposed, for programs that never change them.
//!
//! Weights of linear maps are `[out, in]`. A product that reads them so brings them into another order first, element by
//! element: little beside the work of a batch, but most of the work where a few tokens are computed.

use crate::error::PlanError;
use crate::passes::rebuild::Rebuild;
use moec_ir::{Graph, Invariant, NodeId, Op, StateRole, TensorType, Value};
use std::collections::BTreeMap;

/// What the names of persistent tensors that are transposed parameters begin with; the name of the parameter follows.
const TRANSPOSED_PREFIX: &str = "transposed.";

/// The parameter that a state of [`StateRole::Transposed`] stands for.
pub(crate) fn parameter_of(state: &str) -> &str {
    state.strip_prefix(TRANSPOSED_PREFIX).invariant("a transposed parameter has the name of the parameter in its own")
}

/// The graph with a state `transposed.NAME` in place of every parameter `NAME` where a product reads it as stored
/// transposed: of type `[.., I, O]` instead of `[.., O, I]`. Other readers of a parameter keep it. The results are the
/// same to the bit.
///
/// # Errors
/// When the graph does not fit together.
pub fn store_transposed(graph: &Graph) -> Result<Graph, PlanError> {
    let mut read_otherwise = vec![false; graph.len()];
    let mut transposed: BTreeMap<NodeId, Option<Value>> = BTreeMap::new();
    for id in graph.ids() {
        let weights = transposed_weights(graph, id);
        for (position, operand) in graph.operands(id).iter().enumerate() {
            match weights {
                Some((at, parameter)) if at == position => drop(transposed.insert(parameter, None)),
                _ => read_otherwise[operand.node.index()] = true,
            }
        }
    }
    for (_, value) in graph.outputs().iter().chain(graph.updates()) {
        read_otherwise[value.node.index()] = true;
    }
    let mut r = Rebuild::new(graph);
    for id in graph.ids() {
        if let (Some(state), Op::Parameter { name, ty }) = (transposed.get_mut(&id), &graph.node(id).op) {
            let name = format!("{TRANSPOSED_PREFIX}{name}");
            let op = Op::State { name: name.clone(), role: StateRole::Transposed, ty: swapped(ty) };
            let node = r.add_for(id, op, &[], &name)?;
            *state = Some(r.new.value(node));
            if !read_otherwise[id.index()] {
                continue;
            }
        }
        let stored =
            transposed_weights(graph, id).and_then(|(at, parameter)| Some((at, (*transposed.get(&parameter)?)?)));
        let Some((at, state)) = stored else {
            r.copy(id)?;
            continue;
        };
        let mut op = graph.node(id).op.clone();
        if let Op::MatMul { transpose_b, .. } | Op::GroupedMatMul { transpose_b, .. } = &mut op {
            *transpose_b = false;
        }
        let mut operands = r.operands(id);
        operands[at] = state;
        let node = r.add_as(id, op, &operands)?;
        r.set_all(id, node);
    }
    Ok(r.finish())
}

/// The operand of a product that is a parameter and read as stored transposed.
fn transposed_weights(graph: &Graph, id: NodeId) -> Option<(usize, NodeId)> {
    let (Op::MatMul { transpose_b: true, .. } | Op::GroupedMatMul { transpose_b: true, .. }) = graph.node(id).op else {
        return None;
    };
    let weights = graph.operands(id).get(1)?.node;
    matches!(graph.node(weights).op, Op::Parameter { .. }).then_some((1, weights))
}

/// The type with its last two axes swapped.
pub(crate) fn swapped(ty: &TensorType) -> TensorType {
    let mut shape = ty.shape.clone();
    let n = shape.len();
    if n >= 2 {
        shape.swap(n - 2, n - 1);
    }
    TensorType { dtype: ty.dtype, shape }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moec_ir::{Builder, Stage, Tensor, evaluate, verify};

    #[test]
    fn products_give_the_same_from_transposed_weights() {
        let mut b = Builder::new();
        let x = b.input("x", TensorType::f32([2, 3]));
        let (w, both) = (b.parameter("w", [5, 3]), b.parameter("both", [5, 3]));
        let plain = b.linear(x, w, None);
        let shared = b.linear(x, both, None);
        let doubled = b.add(both, both);
        b.output("plain", plain);
        b.output("shared", shared);
        b.output("doubled", doubled);
        let graph = b.finish().unwrap();
        let stored = store_transposed(&graph).unwrap();
        verify(&stored, Stage::Forward).unwrap();
        let names = |g: &Graph| {
            let name = |id| match &g.node(id).op {
                Op::Parameter { name, ty } | Op::State { name, ty, .. } => Some(format!("{name} {ty}")),
                _ => None,
            };
            g.ids().filter_map(name).collect::<Vec<_>>()
        };
        assert_eq!(names(&stored), ["transposed.w f32[3, 5]", "transposed.both f32[3, 5]", "both f32[5, 3]"]);

        let values = |n: usize, salt: usize| (0..n).map(|i| ((i * 7 + salt) % 11) as f32 - 5.0).collect::<Vec<_>>();
        let floats = |shape: [usize; 2], values: Vec<f32>| Tensor::floats(values).with_shape(shape).unwrap();
        let x = floats([2, 3], values(6, 1));
        let weights = values(15, 2);
        let across: Vec<f32> = (0..15).map(|i| weights[i % 5 * 3 + i / 5]).collect();
        let (weights, across) = (floats([5, 3], weights), floats([3, 5], across));
        let of_names = |names: &[&str]| -> BTreeMap<String, Tensor> {
            let value = |n: &str| match n {
                "x" => x.clone(),
                n if n.starts_with(TRANSPOSED_PREFIX) => across.clone(),
                _ => weights.clone(),
            };
            names.iter().map(|n| (n.to_string(), value(n))).collect()
        };
        let expected = evaluate(&graph, &of_names(&["x", "w", "both"])).unwrap();
        let found = evaluate(&stored, &of_names(&["x", "transposed.w", "transposed.both", "both"])).unwrap();
        for output in ["plain", "shared", "doubled"] {
            assert_eq!(found.outputs[output], expected.outputs[output], "{output}");
        }
    }
}

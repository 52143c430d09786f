//! Weights in the order and the format in which products read them best, for programs that never change them.
//!
//! Weights of linear maps are `[out, in]`. A product that reads them so brings them into another order first, element by
//! element: little beside the work of a batch, but most of the work where a few tokens are computed. Where the kernels
//! have an order of their own, panels of columns ([`LaunchLimits::panel`](crate::LaunchLimits)), the weights are stored so;
//! elsewhere transposed. Fewer bits make them quicker to read, which is what a single token waits for.

use crate::error::PlanError;
use crate::passes::rebuild::Rebuild;
use moec_ir::{
    Data, Graph, Invariant, NodeId, Op, Precision, StateRole, Tensor, TensorType, UnpackAttrs, Value, WeightFormat,
};
use std::collections::{BTreeMap, BTreeSet};

/// What the names of persistent tensors that are transposed parameters begin with; the name of the parameter follows.
const TRANSPOSED_PREFIX: &str = "transposed.";
/// The same of parameters in panels.
const PACKED_PREFIX: &str = "packed.";
/// The same of what the columns of such a parameter are multiplied by.
const SCALE_PREFIX: &str = "scale.";

/// Columns of a panel where kernels have no order of their own: words of every format, and few that are only filled up.
const PANEL_ELSEWHERE: usize = 16;

/// The parameter that a state of one of these roles stands for; `None` for other roles.
pub(crate) fn parameter_of(state: &str, role: StateRole) -> Option<&str> {
    let prefix = match role {
        StateRole::Transposed => TRANSPOSED_PREFIX,
        StateRole::Packed(_) => PACKED_PREFIX,
        StateRole::Scale => SCALE_PREFIX,
        StateRole::Router | StateRole::Optimizer | StateRole::Sum | StateRole::Cache => return None,
    };
    Some(state.strip_prefix(prefix).invariant("a stored parameter has the name of the parameter in its own"))
}

/// How weights are stored.
#[derive(Clone, Copy, Debug)]
pub struct WeightStorage<'a> {
    /// The numbers that the weights are stored as, except those of routers, which stay float32.
    pub format: WeightFormat,
    /// Columns of the panels in which the kernels read weights; `None` if they have no such order.
    pub panel: Option<usize>,
    /// Names of the parameters by which routers decide: rounding them would change choices.
    pub of_routers: &'a BTreeSet<String>,
}

impl WeightStorage<'_> {
    /// The panels in which a product reads a parameter `[.., O, I]`; `None` where it is stored transposed.
    fn panels(&self, name: &str, ty: &TensorType, precision: Precision) -> Option<UnpackAttrs> {
        // Products that round their operands do so in an order of their own.
        if self.of_routers.contains(name) || precision != Precision::F32 {
            return None;
        }
        let &[.., columns, _] = &ty.shape[..] else { return None };
        let panel = match (self.panel, self.format) {
            (None, WeightFormat::F32) => return None,
            (panel, _) => panel.unwrap_or(PANEL_ELSEWHERE),
        };
        // A panel that is mostly filled up with zeros is not worth reading.
        let wide = self.format != WeightFormat::F32 || 2 * columns > panel;
        wide.then_some(UnpackAttrs { format: self.format, panel, columns })
    }
}

/// The graph with other states in place of parameters where a product reads them as stored transposed: `packed.NAME` and
/// perhaps `scale.NAME` for a parameter `NAME` in panels, or `transposed.NAME` of type `[.., I, O]` instead of `[.., O, I]`.
/// Other readers of a parameter keep it. With float32 numbers the results are the same to the bit.
///
/// # Errors
/// When the graph does not fit together.
pub fn store_weights(graph: &Graph, storage: &WeightStorage<'_>) -> Result<Graph, PlanError> {
    let mut read_otherwise = vec![false; graph.len()];
    let mut stored = vec![false; graph.len()];
    for id in graph.ids() {
        let weights = weights_of(graph, id);
        for (position, operand) in graph.operands(id).iter().enumerate() {
            match &weights {
                Some(weights) if position == WEIGHTS => stored[weights.parameter.index()] = true,
                _ => read_otherwise[operand.node.index()] = true,
            }
        }
    }
    for (_, value) in graph.outputs().iter().chain(graph.updates()) {
        read_otherwise[value.node.index()] = true;
    }
    let mut r = Rebuild::new(graph);
    // By parameter, and by whether it is stored in panels.
    let mut matrices: BTreeMap<(NodeId, bool), Value> = BTreeMap::new();
    for id in graph.ids() {
        if stored[id.index()] && !read_otherwise[id.index()] {
            continue;
        }
        let Some(Weights { parameter, name, ty, precision, op }) = weights_of(graph, id) else {
            r.copy(id)?;
            continue;
        };
        let panels = storage.panels(name, ty, precision);
        let matrix = match matrices.get(&(parameter, panels.is_some())) {
            Some(&matrix) => matrix,
            None => matrix(&mut r, parameter, (name, ty), panels)?,
        };
        matrices.insert((parameter, panels.is_some()), matrix);
        let mut operands = r.operands(id);
        operands[WEIGHTS] = matrix;
        let node = r.add_as(id, op, &operands)?;
        r.set_all(id, node);
    }
    Ok(r.finish())
}

/// The matrices `[.., I, O]` of a parameter `[.., O, I]`, from the states that hold it.
fn matrix(
    r: &mut Rebuild<'_>,
    parameter: NodeId,
    (name, ty): (&str, &TensorType),
    panels: Option<UnpackAttrs>,
) -> Result<Value, PlanError> {
    let mut state = |prefix: &str, role: StateRole, ty: TensorType| {
        let name = format!("{prefix}{name}");
        r.add_for(parameter, Op::State { name: name.clone(), role, ty }, &[], &name)
    };
    let Some(attrs) = panels else {
        let node = state(TRANSPOSED_PREFIX, StateRole::Transposed, swapped(ty))?;
        return Ok(r.new.value(node));
    };
    let packed = attrs.format.packed_type(ty, attrs.panel).invariant("weights are matrices");
    let mut operands = vec![state(PACKED_PREFIX, StateRole::Packed(attrs.format), packed)?];
    if let Some(scale) = attrs.format.scale_type(ty) {
        operands.push(state(SCALE_PREFIX, StateRole::Scale, scale)?);
    }
    let operands: Vec<Value> = operands.into_iter().map(|node| r.new.value(node)).collect();
    let node = r.add_for(parameter, Op::Unpack(attrs), &operands, name)?;
    Ok(r.new.value(node))
}

/// The operand of a product that holds its weights.
const WEIGHTS: usize = 1;

/// A parameter that a product reads as stored transposed.
struct Weights<'a> {
    parameter: NodeId,
    name: &'a str,
    ty: &'a TensorType,
    precision: Precision,
    /// The product of weights `[.., I, O]` instead.
    op: Op,
}

/// The weights of a product that are a parameter and read as stored transposed.
fn weights_of(graph: &Graph, id: NodeId) -> Option<Weights<'_>> {
    let mut op = graph.node(id).op.clone();
    let (Op::MatMul { transpose_b, precision, .. } | Op::GroupedMatMul { transpose_b, precision, .. }) = &mut op else {
        return None;
    };
    let precision = *precision;
    if !std::mem::replace(transpose_b, false) {
        return None;
    }
    let parameter = graph.operands(id).get(WEIGHTS)?.node;
    let Op::Parameter { name, ty } = &graph.node(parameter).op else { return None };
    Some(Weights { parameter, name, ty, precision, op })
}

/// Matrices `[.., I, O]` from matrices `[.., O, I]`, as precise as they are given; `None` if they are no matrices.
pub(crate) fn transposed(tensor: &Tensor) -> Option<Tensor> {
    fn turned<T: Copy>(values: &[T], inputs: usize, outputs: usize) -> Vec<T> {
        let matrices = values.chunks_exact((inputs * outputs).max(1));
        matrices.flat_map(|m| (0..inputs).flat_map(move |i| (0..outputs).map(move |o| m[o * inputs + i]))).collect()
    }
    let ty = swapped(&tensor.ty());
    let [.., inputs, outputs] = ty.shape[..] else { return None };
    let data = match tensor.data() {
        Data::F32(v) => Data::F32(turned(v, inputs, outputs)),
        Data::F64(v) => Data::F64(turned(v, inputs, outputs)),
        Data::I32(v) => Data::I32(turned(v, inputs, outputs)),
    };
    Tensor::new(ty.shape, data)
}

/// The type with its last two axes swapped.
fn swapped(ty: &TensorType) -> TensorType {
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
    use crate::{ClusterOptions, LaunchLimits, StateKind, cluster, declare_states};
    use moec_ir::{Builder, Stage, evaluate, verify};

    const INPUTS: usize = 3;
    const OUTPUTS: usize = 5;

    /// Products with `w`, with `both`, which is read otherwise as well, and with a router's weights.
    fn products() -> Graph {
        let mut b = Builder::new();
        let x = b.input("x", TensorType::f32([2, INPUTS]));
        let [w, both, router] = ["w", "both", "router"].map(|name| b.parameter(name, [OUTPUTS, INPUTS]));
        for (name, weights) in [("plain", w), ("shared", both), ("choice", router)] {
            let y = b.linear(x, weights, None);
            b.output(name, y);
        }
        let doubled = b.add(both, both);
        b.output("doubled", doubled);
        b.finish().unwrap()
    }

    fn tensor(shape: [usize; 2], salt: usize) -> Tensor {
        let values = (0..shape[0] * shape[1]).map(|i| ((i * 7 + salt) % 11) as f32 - 5.0).collect();
        Tensor::new(shape, Data::F32(values)).unwrap()
    }

    /// The graph with its weights stored so, the states that it has, and its outputs for some values.
    fn stored(format: WeightFormat, panel: Option<usize>) -> (Graph, Vec<String>, BTreeMap<String, Tensor>) {
        let of_routers = BTreeSet::from(["router".to_string()]);
        let graph = store_weights(&products(), &WeightStorage { format, panel, of_routers: &of_routers }).unwrap();
        verify(&graph, Stage::Forward).unwrap();
        let states = declare_states(&[("f".to_string(), &graph)]).unwrap();
        let mut values = BTreeMap::from([("x".to_string(), tensor([2, INPUTS], 1))]);
        for state in &states {
            let salt = state.held().len();
            let value = tensor([OUTPUTS, INPUTS], salt);
            values.insert(state.name.clone(), state.stored(&value).unwrap().into_owned());
        }
        let names = states.iter().map(|s| format!("{} {} {}", s.kind.name(), s.name, s.ty)).collect();
        let outputs = evaluate(&graph, &values).unwrap().outputs;
        (graph, names, outputs)
    }

    fn expected() -> BTreeMap<String, Tensor> {
        let mut values = BTreeMap::from([("x".to_string(), tensor([2, INPUTS], 1))]);
        values.extend(["w", "both", "router"].map(|name| (name.to_string(), tensor([OUTPUTS, INPUTS], name.len()))));
        evaluate(&products(), &values).unwrap().outputs
    }

    #[test]
    fn products_give_the_same_from_weights_in_another_order() {
        let (_, names, outputs) = stored(WeightFormat::F32, None);
        let transposed = ["transposed transposed.w f32[3, 5]", "transposed transposed.both f32[3, 5]"];
        assert_eq!(
            names,
            [&["parameter both f32[5, 3]"], &transposed[..], &["transposed transposed.router f32[3, 5]"]].concat()
        );
        assert_eq!(outputs, expected());

        let (_, names, outputs) = stored(WeightFormat::F32, Some(4));
        let packed = ["packed_f32 packed.w f32[2, 3, 4]", "packed_f32 packed.both f32[2, 3, 4]"];
        assert_eq!(
            names,
            [&["parameter both f32[5, 3]"], &packed[..], &["transposed transposed.router f32[3, 5]"]].concat()
        );
        assert_eq!(outputs, expected());
        // A panel of which most would be filled up.
        assert_eq!(stored(WeightFormat::F32, Some(16)).1[1], transposed[0]);
    }

    #[test]
    fn weights_are_rounded_except_those_of_routers() {
        for (format, name) in [
            (WeightFormat::Bf16, "packed_bf16 packed.w i32[1, 3, 8]"),
            (WeightFormat::Int8, "packed_int8 packed.w i32[1, 3, 4]"),
        ] {
            let (_, names, outputs) = stored(format, None);
            assert_eq!(names[1], name);
            assert_eq!(names.iter().any(|name| name == "scale scale.w f32[5]"), format == WeightFormat::Int8);
            let expected = expected();
            for (output, rounded) in [("plain", true), ("choice", false)] {
                let pairs: Vec<(f64, f64)> =
                    outputs[output].to_f64().into_iter().zip(expected[output].to_f64()).collect();
                assert!(pairs.iter().all(|(y, x)| (y - x).abs() < 0.5), "{output}: {pairs:?}");
                // These numbers are bfloat16 numbers already.
                let same = pairs.iter().all(|(y, x)| y == x);
                assert_eq!(same, !rounded || format == WeightFormat::Bf16, "{output}: {pairs:?}");
            }
        }
    }

    #[test]
    fn products_read_panels_where_the_kernels_have_them() {
        let (graph, _, _) = stored(WeightFormat::Int8, Some(8));
        let lines = |panel| {
            let limits = LaunchLimits { panel, ..LaunchLimits::default() };
            let (clusters, _) = cluster(&graph, &ClusterOptions { limits, ..ClusterOptions::default() }).unwrap();
            clusters.to_string().lines().map(str::to_string).collect::<Vec<_>>()
        };
        assert_eq!(lines(Some(8))[0], "%matmul = matmul(%x, int8 %packed.w times %scale.w)");
        assert_eq!(
            lines(None)[..2],
            ["%w = unpack(%packed.w, %scale.w) {format = int8, panel = 8, columns = 5}", "%matmul = matmul(%x, %w)"]
        );
    }

    #[test]
    fn a_value_of_another_type_is_not_stored() {
        let state = |role, ty| crate::StateDecl { name: "packed.w".into(), ty, kind: StateKind::State(role) };
        let packed = state(StateRole::Packed(WeightFormat::Bf16), TensorType::i32([2, 3, 2]));
        assert_eq!(packed.held(), "w");
        assert!(packed.stored(&tensor([OUTPUTS, INPUTS], 0)).is_some());
        assert_eq!(packed.stored(&tensor([INPUTS, OUTPUTS], 0)), None);
        assert_eq!(packed.stored(&Tensor::ints([1])), None);
    }
}

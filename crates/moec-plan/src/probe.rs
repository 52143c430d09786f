//! An objective near a point, for central differences: everything is evaluated once, and a change of one element
//! evaluates again only what depends on it.

use moec_ir::{Data, EvalError, Evaluation, Graph, NodeId, Op, Tensor, Value, evaluate, evaluate_op};
use std::collections::BTreeMap;
use std::fmt::Display;

/// A forward graph at a point, in 64 bits.
pub struct Probe<'a> {
    graph: &'a Graph,
    objective: Value,
    /// By node and slot.
    values: Vec<Vec<Tensor>>,
    /// Whether the objective depends on a node.
    needed: Vec<bool>,
}

impl<'a> Probe<'a> {
    /// Evaluates the graph at the point that `bindings` describe: inputs, parameters and states by name.
    ///
    /// # Errors
    /// When there is no such output or a node cannot be evaluated.
    pub fn new(
        graph: &'a Graph,
        objective: impl Display,
        bindings: &BTreeMap<String, Tensor>,
    ) -> Result<Self, EvalError> {
        let dangling = || EvalError::Dangling { name: objective.to_string() };
        let objective = graph.output(&objective.to_string()).ok_or_else(dangling)?;
        // Every value of the graph is an output of this copy of it.
        let mut all = graph.clone();
        let mut names = Vec::with_capacity(graph.len());
        for id in graph.ids() {
            let slots = 0..graph.node(id).results.len() as u8;
            names.push(slots.map(|slot| format!("{}#{slot}", graph.node(id).name)).collect::<Vec<_>>());
            for (slot, name) in names[id.index()].iter().enumerate() {
                all.set_output(name.clone(), Value { node: id, slot: slot as u8 });
            }
        }
        let Evaluation { mut outputs, .. } = evaluate(&all, bindings)?;
        let mut take = |name: &String| outputs.remove(name).ok_or_else(dangling);
        let values = names.iter().map(|slots| slots.iter().map(&mut take).collect()).collect::<Result<_, _>>()?;
        let mut needed = vec![false; graph.len()];
        needed[objective.node.index()] = true;
        for id in graph.ids().rev().filter(|id| id.index() <= objective.node.index()) {
            if needed[id.index()] {
                for operand in graph.operands(id) {
                    needed[operand.node.index()] = true;
                }
            }
        }
        Ok(Self { graph, objective, values, needed })
    }

    /// The objective at the point; NaN if it is not a single number.
    pub fn objective(&self) -> f64 {
        self.tensor(self.objective).item().unwrap_or(f64::NAN)
    }

    /// The objective with `by` added to one element of a parameter, float input or float state; NaN if there is no such
    /// element. What goes through a `stop_gradient` keeps its value, as the gradient takes it to.
    ///
    /// # Errors
    /// When a node cannot be evaluated.
    pub fn nudged(&self, name: &str, element: usize, by: f64) -> Result<f64, EvalError> {
        let Some(source) = self.source(name) else { return Ok(f64::NAN) };
        let tensor = self.tensor(self.graph.value(source));
        let mut elements = tensor.to_f64();
        let Some(changed) = elements.get_mut(element) else { return Ok(f64::NAN) };
        *changed += by;
        let unbound = || EvalError::Unbound { kind: "element", name: name.to_string() };
        let tensor = Tensor::new(tensor.shape().to_vec(), Data::F64(elements)).ok_or_else(unbound)?;
        let mut moved: BTreeMap<NodeId, Vec<Tensor>> = BTreeMap::from([(source, vec![tensor])]);
        for id in self.graph.ids().skip(source.index() + 1).filter(|id| self.needed[id.index()]) {
            let operands = self.graph.operands(id);
            let node = self.graph.node(id);
            if node.op == Op::StopGradient || !operands.iter().any(|v| moved.contains_key(&v.node)) {
                continue;
            }
            let find = |v: &Value| match moved.get(&v.node) {
                Some(tensors) => &tensors[usize::from(v.slot)],
                None => self.tensor(*v),
            };
            let tensors: Vec<&Tensor> = operands.iter().map(find).collect();
            let results = evaluate_op(&node.op, &tensors);
            let failed = |error| EvalError::Node { node: node.name.clone(), error: Box::new(error) };
            moved.insert(id, results.map_err(failed)?);
        }
        let objective = moved.get(&self.objective.node).map(|t| &t[usize::from(self.objective.slot)]);
        Ok(objective.map_or(self.objective(), |t| t.item().unwrap_or(f64::NAN)))
    }

    /// `(f(x + h) - f(x - h)) / 2h` for one element of a tensor.
    ///
    /// # Errors
    /// As [`Probe::nudged`].
    pub fn central_difference(&self, name: &str, element: usize, h: f64) -> Result<f64, EvalError> {
        Ok((self.nudged(name, element, h)? - self.nudged(name, element, -h)?) / (2.0 * h))
    }

    fn source(&self, wanted: &str) -> Option<NodeId> {
        self.graph.ids().find(|&id| match &self.graph.node(id).op {
            Op::Input { name, .. } | Op::Parameter { name, .. } | Op::State { name, .. } => name == wanted,
            _ => false,
        })
    }

    fn tensor(&self, value: Value) -> &Tensor {
        &self.values[value.node.index()][usize::from(value.slot)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moec_ir::{Builder, TensorType};

    #[test]
    fn differences_agree_with_derivatives_and_touch_nothing_else() {
        let mut b = Builder::new();
        let x = b.input("x", TensorType::f32([3]));
        let w = b.parameter("w", [3]);
        let unused = b.parameter("unused", [2]);
        let (xw, square) = (b.mul(x, w), b.mul(unused, unused));
        let cube = b.mul(xw, xw);
        let cube = b.mul(cube, xw);
        let kept = b.stop_gradient(w);
        let loss = b.sum_all(cube);
        let more = b.sum_all(kept);
        let loss = b.add(loss, more);
        b.output("loss", loss);
        b.output("square", square);
        let graph = b.finish().unwrap();
        let bindings = BTreeMap::from([
            ("x".to_string(), Tensor::floats([1.0, -2.0, 0.5])),
            ("w".to_string(), Tensor::floats([2.0, 1.0, 4.0])),
            ("unused".to_string(), Tensor::floats([1.0, 1.0])),
        ]);
        let probe = Probe::new(&graph, "loss", &bindings).unwrap();
        assert_eq!(probe.objective(), 8.0 - 8.0 + 8.0 + 7.0);
        // d/dw (x w)^3 = 3 x (x w)^2; the sum of w is taken for a constant.
        for (i, expected) in [12.0, -24.0, 6.0].into_iter().enumerate() {
            let found = probe.central_difference("w", i, 1e-6).unwrap();
            assert!((found - expected).abs() < 1e-6, "{i}: {found}");
        }
        assert_eq!(probe.nudged("w", 0, 1.0).unwrap(), 27.0 - 8.0 + 8.0 + 7.0);
        assert_eq!(probe.central_difference("unused", 0, 1e-6).unwrap(), 0.0);
        assert!(probe.nudged("w", 3, 1.0).unwrap().is_nan() && probe.nudged("none", 0, 1.0).unwrap().is_nan());
        assert!(matches!(Probe::new(&graph, "none", &bindings), Err(EvalError::Dangling { .. })));
        assert!(matches!(Probe::new(&graph, "loss", &BTreeMap::new()), Err(EvalError::Node { .. })));
    }
}

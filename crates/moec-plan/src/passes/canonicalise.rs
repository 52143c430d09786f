//! Algebraic identities: fewer operations, and equal expressions in one form so that later passes see that they are.
//!
//! | From | To |
//! |---|---|
//! | reshape or broadcast to the same shape, permutation of no axis, stop_gradient | nothing |
//! | reshape of reshape, broadcast of broadcast, permutation of permutation | one |
//! | broadcast or sum that only adds or removes extents of 1 | reshape |
//! | constant (+, *, ==) x | x (+, *, ==) constant |
//! | x + 0, x - 0, x * 1, x / 1 | x |
//! | 0 - x, x * -1 | -x |
//! | x - c | x + -c |
//! | (x + a) + b, (x * a) * b | x + (a + b), x * (a b) |
//! | (-x) * c | x * -c |
//! | x + -y, x - -y | x - y, x + y |
//! | -(-x), 1 / (1 / x) | x |
//! | relu, abs, sign twice | once |
//! | select with a known or needless condition | one branch |
//! | dropout of rate 0 | nothing |

use super::Rewrites;
use super::rebuild::{Rebuild, uniform};
use moec_ir::{Binary, Graph, GraphError, NodeId, Op, TensorType, Unary, Value};

/// What an operation is replaced by.
enum Simpler {
    /// A value that is there.
    Value(Value),
    /// An operation on values that are there.
    Op(Op, Vec<Value>),
    /// A function of a value and a number.
    WithConstant(Binary, Value, f64),
}

/// More simplifications of one node than this cannot be, short of rules that undo each other.
const MOST: usize = 32;

pub(crate) fn run(graph: &Graph, rewrites: &mut Rewrites) -> Result<Option<Graph>, GraphError> {
    let stays = |id: NodeId| {
        let node = graph.node(id);
        simplify(graph, &node.op, graph.operands(id), &node.results[0]).is_none()
    };
    if graph.ids().all(stays) {
        return Ok(None);
    }
    let mut r = Rebuild::new(graph);
    for id in graph.ids() {
        let node = graph.node(id);
        let mut op = node.op.clone();
        let mut operands = r.operands(id);
        let mut value = None;
        for _ in 0..MOST {
            let Some(simpler) = simplify(&r.new, &op, &operands, &node.results[0]) else { break };
            if !rewrites.take() {
                break;
            }
            match simpler {
                Simpler::Value(v) => {
                    value = Some(v);
                    break;
                }
                Simpler::Op(next, on) => (op, operands) = (next, on),
                Simpler::WithConstant(f, x, c) => {
                    let fill = Op::Fill { value: c.into(), ty: node.results[0].clone() };
                    let c = r.add_for(id, fill, &[], &format!("{}.constant", node.name))?;
                    (op, operands) = (Op::Binary(f), vec![x, r.new.value(c)]);
                }
            }
        }
        match value {
            Some(v) => r.set(Value { node: id, slot: 0 }, v),
            None => {
                let new = r.add_as(id, op, &operands)?;
                r.set_all(id, new);
            }
        }
    }
    Ok(Some(r.finish()))
}

/// One step towards the canonical form of `op(operands)` with a first result of type `ty`.
fn simplify(g: &Graph, op: &Op, operands: &[Value], ty: &TensorType) -> Option<Simpler> {
    let x = *operands.first()?;
    let from = g.ty(x);
    let producer = &g.node(x.node).op;
    match op {
        Op::Reshape { .. } | Op::Broadcast { .. } if from == ty => Some(Simpler::Value(x)),
        Op::Reshape { .. } => {
            matches!(producer, Op::Reshape { .. }).then(|| Simpler::Op(op.clone(), g.operands(x.node).to_vec()))
        }
        Op::Broadcast { .. } if from.elements() == ty.elements() && from.elements() > 0 => {
            Some(Simpler::Op(Op::Reshape { shape: ty.shape.clone() }, vec![x]))
        }
        Op::Broadcast { .. } => {
            matches!(producer, Op::Broadcast { .. }).then(|| Simpler::Op(op.clone(), g.operands(x.node).to_vec()))
        }
        Op::Permute { axes } if axes.iter().enumerate().all(|(i, &axis)| i == axis) => Some(Simpler::Value(x)),
        Op::Permute { axes } => match producer {
            Op::Permute { axes: first } => {
                let axes = axes.iter().map(|&axis| first[axis]).collect();
                Some(Simpler::Op(Op::Permute { axes }, g.operands(x.node).to_vec()))
            }
            _ => None,
        },
        // Gradients have been taken by now.
        Op::StopGradient => Some(Simpler::Value(x)),
        Op::Sum { axes } => axes
            .iter()
            .all(|&a| from.shape.get(a) == Some(&1))
            .then(|| Simpler::Op(Op::Reshape { shape: ty.shape.clone() }, vec![x])),
        Op::Dropout { rate, .. } => (rate.get() == 0.0).then_some(Simpler::Value(x)),
        Op::Unary(f) => unary(g, *f, x),
        Op::Binary(f) => binary(g, *f, x, *operands.get(1)?),
        Op::Select => {
            let (a, b) = (*operands.get(1)?, *operands.get(2)?);
            match uniform(g, x) {
                _ if a == b => Some(Simpler::Value(a)),
                Some(c) => Some(Simpler::Value(if c != 0.0 { a } else { b })),
                None => None,
            }
        }
        _ => None,
    }
}

/// The operand of `value` if `value` is that function of it.
fn under(g: &Graph, f: Unary, value: Value) -> Option<Value> {
    if g.node(value.node).op != Op::Unary(f) {
        return None;
    }
    g.operands(value.node).first().copied()
}

/// `(x, c)` if `value` is `f(x, c)` with a number `c`.
fn with_constant(g: &Graph, f: Binary, value: Value) -> Option<(Value, f64)> {
    if g.node(value.node).op != Op::Binary(f) {
        return None;
    }
    match g.operands(value.node)[..] {
        [x, c] => Some((x, uniform(g, c)?)),
        _ => None,
    }
}

fn unary(g: &Graph, f: Unary, x: Value) -> Option<Simpler> {
    let inner = under(g, f, x)?;
    match f {
        Unary::Neg | Unary::Recip => Some(Simpler::Value(inner)),
        Unary::Relu | Unary::Abs | Unary::Sign => Some(Simpler::Value(x)),
        _ => None,
    }
}

fn binary(g: &Graph, f: Binary, a: Value, b: Value) -> Option<Simpler> {
    let (left, right) = (uniform(g, a), uniform(g, b));
    let op = |f, x, y| Some(Simpler::Op(Op::Binary(f), vec![x, y]));
    if let (Binary::Add | Binary::Mul | Binary::Equal, Some(_), None) = (f, left, right) {
        return op(f, b, a);
    }
    if let Some(c) = right {
        match f {
            Binary::Add | Binary::Sub if c == 0.0 => return Some(Simpler::Value(a)),
            Binary::Mul | Binary::Div if c == 1.0 => return Some(Simpler::Value(a)),
            Binary::Sub => return Some(Simpler::WithConstant(Binary::Add, a, -c)),
            Binary::Mul if c == -1.0 => return Some(Simpler::Op(Op::Unary(Unary::Neg), vec![a])),
            Binary::Add => {
                if let Some((x, first)) = with_constant(g, f, a) {
                    return Some(Simpler::WithConstant(f, x, first + c));
                }
            }
            Binary::Mul => {
                if let Some((x, first)) = with_constant(g, f, a) {
                    return Some(Simpler::WithConstant(f, x, first * c));
                }
                if let Some(x) = under(g, Unary::Neg, a) {
                    return Some(Simpler::WithConstant(f, x, -c));
                }
            }
            _ => {}
        }
    }
    if f == Binary::Sub && left == Some(0.0) {
        return Some(Simpler::Op(Op::Unary(Unary::Neg), vec![b]));
    }
    match (f, under(g, Unary::Neg, b)) {
        (Binary::Add, Some(y)) => op(Binary::Sub, a, y),
        (Binary::Sub, Some(y)) => op(Binary::Add, a, y),
        _ => None,
    }
}

//! Tests of this module's parent.

use super::*;
use crate::{Builder, Unary};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A graph of an input and its exponential, with the latter.
fn small() -> (Graph, Value) {
    let mut b = Builder::new();
    let x = b.input("x", TensorType::f32([3]));
    let y = b.unary(Unary::Exp, x);
    (b.finish().unwrap(), y)
}

fn refuses<T>(f: impl FnOnce() -> T) -> bool {
    catch_unwind(AssertUnwindSafe(|| drop(f()))).is_err()
}

#[test]
fn operands_keep_their_order() {
    let mut b = Builder::new();
    let (x, y) = (b.input("x", TensorType::f32([3])), b.input("y", TensorType::f32([3])));
    let z = b.select(y, x, y);
    let graph = b.finish().unwrap();
    assert_eq!(graph.operands(z.node), [y, x, y]);
    assert_eq!(graph.uses(y), [(z.node, 0), (z.node, 2)]);
}

#[test]
fn a_value_of_another_graph_is_refused() {
    let ((mut one, _), (two, foreign)) = (small(), small());
    assert_eq!(one, two, "graphs are compared by what is in them");
    let error = one.add(Op::Unary(Unary::Neg), &[foreign], "", None).unwrap_err();
    assert_eq!(error.error, InferError::UnknownOperand);
    assert_eq!(one.try_ty(foreign), None);
    assert!(refuses(|| one.ty(foreign).clone()));
    assert!(refuses(|| one.node(foreign.node).clone()));
    assert!(!refuses(|| two.ty(foreign).clone()));
}

#[test]
fn a_clone_takes_the_values_of_its_original() {
    let (graph, y) = small();
    let mut b = Builder::extend(graph.clone());
    let z = b.unary(Unary::Neg, y);
    b.output("z", z);
    let extended = b.finish().unwrap();
    assert_eq!(extended.ty(y), graph.ty(y));
    assert_eq!(extended.operands(z.node), [y]);
    // The original does not have what was appended to its clone, nor another clone of it.
    assert_eq!(graph.try_ty(z), None);
    let mut other = Builder::extend(graph.clone());
    let w = other.unary(Unary::Abs, y);
    let other = other.finish().unwrap();
    assert_eq!((w.node, other.try_ty(z), extended.try_ty(w)), (z.node, None, None));
    // A clone of a clone still takes both.
    let again = extended.clone();
    assert_eq!((again.ty(y), again.ty(z)), (graph.ty(y), extended.ty(z)));
}

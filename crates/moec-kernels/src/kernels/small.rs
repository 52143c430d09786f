//! Statements over tensors of a few elements, one after the other in one launch ([`moec_plan::Small`]).
//!
//! The units of one cube share the elements of a statement and meet before the next; a sum is one unit's, in order. What a
//! later statement reads lies in scratch memory. As in [`super::fused`], the kernel is written by walking over the statements
//! while CubeCL expands it.

#![allow(unsafe_code, reason = "kernel launches")]

use super::fused::{Arithmetic, arithmetic};
use super::together::{self, first, meet};
use crate::launch::{Arg, Launcher, run};
use cubecl::prelude::*;
use moec_ir::Invariant;
use moec_plan::{Access, Elementwise, Instr, Small, Statement};

/// Where a tensor lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// Operand of the launch.
    Operand(usize),
    /// In scratch memory, from this element on.
    Aside(usize),
}

/// An instruction of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Code {
    /// Element `i / inner % length` of a tensor for element `i`.
    Load {
        from: Place,
        inner: usize,
        length: usize,
    },
    Arithmetic(Arithmetic),
}

/// Where what a statement makes goes: to scratch memory if a later one reads it, and to results of the launch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Made {
    aside: Option<usize>,
    results: Vec<usize>,
}

/// A statement with everything resolved that the kernel needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// Instructions for each of some elements, and registers with where they go.
    Program(usize, Vec<Code>, Vec<(usize, Made)>),
    /// A tensor `[terms, elements]`.
    Sum(Place, [usize; 2], Made),
}

#[cube]
fn read(operands: &Sequence<Box<[f32]>>, aside: &[f32], at: usize, #[comptime] from: Place) -> f32 {
    match comptime!(from) {
        Place::Operand(operand) => operands[operand][at],
        Place::Aside(offset) => aside[offset + at],
    }
}

#[cube]
fn write(results: &mut Sequence<Box<[f32]>>, aside: &mut [f32], at: usize, value: f32, #[comptime] made: Made) {
    if comptime!(made.aside.is_some()) {
        let offset = comptime!(made.aside.invariant("it is there"));
        aside[offset + at] = value;
    }
    #[unroll]
    for r in 0..comptime!(made.results.len()) {
        let result = results.index_mut(comptime!(made.results[r]));
        result[at] = value;
    }
}

/// The registers of a program for element `i`.
#[cube]
fn evaluate(
    operands: &Sequence<Box<[f32]>>,
    aside: &[f32],
    i: usize,
    #[comptime] code: Vec<Code>,
) -> Sequence<Vector<f32, Const<1>>> {
    let mut r = Sequence::<Vector<f32, Const<1>>>::new();
    #[unroll]
    for j in 0..comptime!(code.len()) {
        match comptime!(code[j]) {
            Code::Load { from, inner, length } => {
                let v = read(operands, aside, i / inner % length, from);
                r.push(Vector::new(v));
            }
            Code::Arithmetic(instruction) => {
                let v = arithmetic::<Const<1>>(&r, instruction);
                r.push(v);
            }
        }
    }
    r
}

#[cube]
fn execute(
    operands: &Sequence<Box<[f32]>>,
    results: &mut Sequence<Box<[f32]>>,
    aside: &mut [f32],
    #[comptime] steps: Vec<Step>,
    #[comptime] units: u32,
) {
    #[unroll]
    for s in 0..comptime!(steps.len()) {
        match comptime!(steps[s].clone()) {
            Step::Program(elements, code, made) => {
                for i in range_stepped(first(units), elements, units as usize) {
                    let r = evaluate(operands, &*aside, i, code.clone());
                    #[unroll]
                    for m in 0..comptime!(made.len()) {
                        let value = r[comptime!(made[m].0)].extract(0usize);
                        write(results, aside, i, value, comptime!(made[m].1.clone()));
                    }
                }
            }
            Step::Sum(from, [terms, elements], made) => {
                for i in range_stepped(first(units), elements, units as usize) {
                    let mut sum = 0.0f32.runtime();
                    for term in 0..terms {
                        sum += read(operands, &*aside, term * elements + i, from);
                    }
                    write(results, aside, i, sum, made.clone());
                }
            }
        }
        meet(units);
    }
}

#[cube(launch_unchecked)]
fn small_kernel(
    operands: &Sequence<Box<[f32]>>,
    results: &mut Sequence<Box<[f32]>>,
    aside: &mut [f32],
    #[comptime] steps: Vec<Step>,
    #[comptime] units: u32,
) {
    if comptime!(units > 1) {
        execute(operands, results, aside, steps, units);
    } else if ABSOLUTE_POS == 0 {
        execute(operands, results, aside, steps, units);
    }
}

/// Resolves the statements, with the elements of the operands. Returns how many numbers are put aside, too.
fn resolve(small: &Small, operands: &[usize]) -> (Vec<Step>, usize) {
    let mut tensors: Vec<(Place, usize)> =
        operands.iter().enumerate().map(|(i, &elements)| (Place::Operand(i), elements)).collect();
    let mut aside = 0;
    let mut steps = Vec::with_capacity(small.statements.len());
    for (s, statement) in small.statements.iter().enumerate() {
        let mut made = Vec::with_capacity(statement.made());
        for _ in 0..statement.made() {
            let t = tensors.len();
            let is_read = small.statements[s + 1..].iter().any(|later| later.reads().contains(&t));
            let results = (0..small.results.len()).filter(|&r| small.results[r] == t).collect();
            made.push(Made { aside: is_read.then_some(aside), results });
            tensors.push((Place::Aside(aside), statement.elements()));
            aside += if is_read { statement.elements() } else { 0 };
        }
        steps.push(match statement {
            Statement::Program { program, operands } => {
                let made = program.results.iter().copied().zip(made).collect();
                Step::Program(program.elements, code(program, operands, &tensors), made)
            }
            Statement::Sum { operand, terms, elements } => {
                Step::Sum(tensors[*operand].0, [*terms, *elements], made.remove(0))
            }
        });
    }
    (steps, aside)
}

/// The instructions of a program over these of the tensors.
fn code(program: &Elementwise, operands: &[usize], tensors: &[(Place, usize)]) -> Vec<Code> {
    let resolved = |instr: &Instr| match *instr {
        Instr::Load(operand) => {
            let (from, length) = tensors[operands[operand]];
            let inner = match program.accesses[operand] {
                Access::Full | Access::Repeat => 1,
                Access::Stretch { inner } => inner,
                Access::Scalar => program.elements,
            };
            Code::Load { from, inner, length }
        }
        ref other => Code::Arithmetic(Arithmetic::of(other).invariant("small programs draw no random numbers")),
    };
    program.instructions.iter().map(resolved).collect()
}

/// Executes the statements.
pub(crate) fn launch(l: &Launcher, small: &Small, operands: &[Arg], results: &[Arg]) {
    let extents: Vec<usize> = operands.iter().map(Arg::elements).collect();
    let (steps, aside) = resolve(small, &extents);
    let aside = l.scratch().first(aside.max(1));
    let units = together::units(l);
    l.launch(
        1,
        || format!("small by {units} {steps:?}"),
        // SAFETY: `Kernel::check` has held the extents of what statements read against those of operands and of what earlier
        // statements made; a statement writes as many elements as what it makes has. There is one cube, all units of which
        // reach every barrier.
        |t| unsafe {
            let (operands, results) = (t.bind_all(operands, 1), t.bind_all(results, 1));
            run!(t, small_kernel(operands, results, t.bind(aside, 1), steps.clone(), units));
        },
    );
}

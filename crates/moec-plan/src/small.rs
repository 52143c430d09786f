//! Sequences of statements over tensors of a few elements: what a kernel computes that costs less than to launch it.

use crate::elementwise::Elementwise;
use moec_ir::{DType, TensorType};

/// A part of a [`Small`] sequence, over numbered tensors: operands of the kernel first, then what each statement made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Statement {
    /// An elementwise program, which makes as many tensors as it has results. It draws no random numbers.
    Program {
        /// The program.
        program: Elementwise,
        /// The tensors that are its operands.
        operands: Vec<usize>,
    },
    /// The sum of a tensor `[terms, elements]` over its leading axes, which makes one tensor.
    Sum {
        /// The tensor.
        operand: usize,
        /// Elements of the axes that are summed.
        terms: usize,
        /// Elements of the others.
        elements: usize,
    },
}

/// Statements that are executed one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Small {
    /// Number of operands.
    pub operands: usize,
    /// What is done, in order.
    pub statements: Vec<Statement>,
    /// The tensors that are results, none of which is an operand.
    pub results: Vec<usize>,
}

impl Statement {
    /// Elements of each tensor that it makes.
    pub fn elements(&self) -> usize {
        match self {
            Statement::Program { program, .. } => program.elements,
            Statement::Sum { elements, .. } => *elements,
        }
    }

    /// How many tensors it makes.
    pub fn made(&self) -> usize {
        match self {
            Statement::Program { program, .. } => program.results.len(),
            Statement::Sum { .. } => 1,
        }
    }

    /// The tensors that it reads.
    pub fn reads(&self) -> &[usize] {
        match self {
            Statement::Program { operands, .. } => operands,
            Statement::Sum { operand, .. } => std::slice::from_ref(operand),
        }
    }
}

impl Small {
    /// Whether it reads operands and makes results of these types, says so if not.
    pub(crate) fn check(&self, operands: &[&TensorType], results: &[&TensorType]) -> Result<(), String> {
        if operands.len() != self.operands {
            return Err(format!("the statements take {} operands, not {}", self.operands, operands.len()));
        }
        let mut tensors: Vec<TensorType> = operands.iter().map(|&ty| ty.clone()).collect();
        for (s, statement) in self.statements.iter().enumerate() {
            let read: Option<Vec<&TensorType>> = statement.reads().iter().map(|&t| tensors.get(t)).collect();
            let read = read.ok_or_else(|| format!("statement {s} reads what is not there"))?;
            match statement {
                Statement::Program { program, .. } if program.uses_random() => {
                    return Err(format!("statement {s} draws random numbers"));
                }
                Statement::Program { program, .. } => program.check(&read)?,
                Statement::Sum { terms, elements, .. } => {
                    let fits = |ty: &&TensorType| ty.dtype == DType::F32 && ty.elements() == terms * elements;
                    if !read.iter().all(fits) {
                        return Err(format!("statement {s} sums {terms} times {elements} elements of {}", read[0]));
                    }
                }
            }
            let made = TensorType::f32([statement.elements()]);
            tensors.extend(std::iter::repeat_n(made, statement.made()));
        }
        let fits = |(&t, ty): (&usize, &&TensorType)| {
            let made = tensors.get(t).filter(|_| t >= self.operands);
            made.is_some_and(|made| ty.dtype == DType::F32 && ty.elements() == made.elements())
        };
        match results.len() == self.results.len() && self.results.iter().zip(results).all(fits) {
            true => Ok(()),
            false => Err("the results are not what the statements make".into()),
        }
    }

    /// The statements as text over operands and results of these names; what is no result is called `s3`, by its number.
    pub(crate) fn lines(&self, operands: &[String], results: &[String]) -> Vec<String> {
        let mut names = operands.to_vec();
        let mut lines = Vec::new();
        for statement in &self.statements {
            let made: Vec<String> = (names.len()..names.len() + statement.made())
                .map(|t| {
                    let result = self.results.iter().position(|&r| r == t);
                    result.and_then(|r| results.get(r)).cloned().unwrap_or_else(|| format!("s{t}"))
                })
                .collect();
            match statement {
                Statement::Program { program, operands } => {
                    let read: Vec<String> = operands.iter().map(|&t| names[t].clone()).collect();
                    lines.extend(program.statements(&read, &made));
                }
                Statement::Sum { operand, terms, elements } => {
                    let over = if *elements == 1 { String::new() } else { format!(" {{terms = {terms}}}") };
                    lines.push(format!("{} = sum({}){over}", made[0], names[*operand]));
                }
            }
            names.extend(made);
        }
        lines
    }
}

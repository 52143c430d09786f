//! Elementwise programs: what a kernel computes for each element of its result, in registers.

use moec_ir::{Binary, DType, Op, Real, TensorType, Unary};
use std::fmt;

/// How a program reads one operand while it walks over the elements `i` of its results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// `operand[i]`
    Full,
    /// `operand[i % operand.len()]`: broadcast over leading axes, a bias for example.
    Repeat,
    /// `operand[i / inner]`: broadcast over trailing axes that hold `inner` elements, a row statistic for example.
    Stretch {
        /// Number of consecutive result elements that read the same operand element.
        inner: usize,
    },
    /// `operand[0]`
    Scalar,
}

impl Access {
    /// How a tensor of shape `from` is read when it is broadcast to `to`; `None` if no access does it.
    pub fn of_broadcast(from: &[usize], to: &[usize]) -> Option<Access> {
        let (n, total): (usize, usize) = (from.iter().product(), to.iter().product());
        if n == total {
            return Some(Access::Full);
        }
        if n == 1 {
            return Some(Access::Scalar);
        }
        let lead = to.len().checked_sub(from.len())?;
        let from: Vec<usize> = std::iter::repeat_n(1, lead).chain(from.iter().copied()).collect();
        let ones = |extents: &[usize]| extents.iter().all(|&d| d == 1);
        (0..=to.len()).find_map(|s| {
            if ones(&from[..s]) && from[s..] == to[s..] {
                Some(Access::Repeat)
            } else if from[..s] == to[..s] && ones(&from[s..]) {
                Some(Access::Stretch { inner: to[s..].iter().product() })
            } else {
                None
            }
        })
    }
}

/// One instruction of a program. Instruction `j` writes register `j`; operands name earlier registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Instr {
    /// Reads operand number `.0` with its [`Access`].
    Load(usize),
    /// A constant.
    Const(Real),
    /// One-operand function.
    Unary(Unary, usize),
    /// Two-operand function.
    Binary(Binary, usize, usize),
    /// `if r[.0] != 0 { r[.1] } else { r[.2] }`
    Select(usize, usize, usize),
    /// [`Op::Dropout`] of a register; the generator state is the last operand of the kernel.
    Dropout {
        /// Register that is masked.
        value: usize,
        /// Probability of zero.
        rate: Real,
        /// Stream of random numbers.
        key: u32,
    },
}

impl Instr {
    /// The instruction that computes what an elementwise operation does, with its float operands in registers `r`; `None`
    /// for every other operation.
    pub fn of(op: &Op, r: &[usize]) -> Option<Instr> {
        Some(match (op, r) {
            (Op::Unary(f), &[a]) => Instr::Unary(*f, a),
            (Op::Binary(f), &[a, b]) => Instr::Binary(*f, a, b),
            (Op::Select, &[q, a, b]) => Instr::Select(q, a, b),
            (Op::Dropout { rate, key }, &[value]) => Instr::Dropout { value, rate: *rate, key: *key },
            _ => return None,
        })
    }

    /// Registers that it reads.
    fn reads(&self) -> Vec<usize> {
        match *self {
            Instr::Load(_) | Instr::Const(_) => vec![],
            Instr::Unary(_, a) | Instr::Dropout { value: a, .. } => vec![a],
            Instr::Binary(_, a, b) => vec![a, b],
            Instr::Select(q, a, b) => vec![q, a, b],
        }
    }
}

/// A straight-line elementwise program over operands that broadcast to one number of elements.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Elementwise {
    /// Elements of every result, whatever its shape.
    pub elements: usize,
    /// One entry per float operand, in operand order. A generator state (needed by `Dropout`) comes after them.
    pub accesses: Vec<Access>,
    /// The program.
    pub instructions: Vec<Instr>,
    /// Registers that are results, in result order.
    pub results: Vec<usize>,
}

impl Elementwise {
    /// A program that reads its operands and does one operation with them, or none.
    pub fn one(elements: usize, accesses: Vec<Access>, last: Option<Instr>) -> Self {
        let mut instructions: Vec<Instr> = (0..accesses.len()).map(Instr::Load).collect();
        instructions.extend(last);
        let results = vec![instructions.len() - 1];
        Self { elements, accesses, instructions, results }
    }

    /// Whether the program needs the generator state as its last operand.
    pub fn uses_random(&self) -> bool {
        self.instructions.iter().any(|i| matches!(i, Instr::Dropout { .. }))
    }

    /// Number of operands, the generator state included.
    pub fn operands(&self) -> usize {
        self.accesses.len() + usize::from(self.uses_random())
    }

    /// Whether it reads operands of these types, says so if not. The first may be missing: what a kernel has made.
    pub(crate) fn check(&self, operands: &[&TensorType]) -> Result<(), String> {
        let expected = self.operands();
        if operands.len() != expected {
            return Err(format!("a program takes {expected} operands, not {}", operands.len()));
        }
        let (floats, random) = operands.split_at(self.accesses.len());
        for (i, (ty, access)) in floats.iter().zip(&self.accesses).enumerate() {
            let n = ty.elements();
            let fits = match access {
                Access::Full => n == self.elements,
                Access::Repeat => n > 0 && self.elements.is_multiple_of(n),
                Access::Stretch { inner } => n.checked_mul(*inner) == Some(self.elements),
                Access::Scalar => n == 1,
            };
            if ty.dtype != DType::F32 || !fits {
                return Err(format!(
                    "operand {i} of type {ty} is not read as {access:?} of {} elements",
                    self.elements
                ));
            }
        }
        if let Some(ty) = random.first().filter(|ty| ***ty != TensorType::i32([4])) {
            return Err(format!("{ty} is no state of a generator"));
        }
        for (j, instr) in self.instructions.iter().enumerate() {
            let loads = !matches!(*instr, Instr::Load(i) if i >= self.accesses.len());
            if !loads || instr.reads().iter().any(|&r| r >= j) {
                return Err(format!("instruction {j} reads what is not there"));
            }
        }
        if self.results.is_empty() || self.results.iter().any(|&r| r >= self.instructions.len()) {
            return Err("results must name registers".into());
        }
        Ok(())
    }

    /// The program as statements, such as `%y = mul(%x, sigmoid(%x))`, over operands and results of these names. What is
    /// read once stands where it is read; what is read more often and is no result gets a name of its own.
    pub(crate) fn statements(&self, operands: &[String], results: &[String]) -> Vec<String> {
        let mut reads = vec![0usize; self.instructions.len()];
        for r in self.instructions.iter().flat_map(Instr::reads) {
            reads[r] += 1;
        }
        let mut text: Vec<String> = Vec::with_capacity(self.instructions.len());
        let mut statements = Vec::new();
        for (j, instr) in self.instructions.iter().enumerate() {
            let r = |i: usize| text[i].as_str();
            let expression = match *instr {
                Instr::Load(i) => match self.accesses[i] {
                    Access::Full => operands[i].clone(),
                    Access::Repeat => format!("repeat({})", operands[i]),
                    Access::Stretch { inner } => format!("stretch({}, {inner})", operands[i]),
                    Access::Scalar => format!("scalar({})", operands[i]),
                },
                Instr::Const(value) => value.to_string(),
                Instr::Unary(f, a) => format!("{}({})", f.mnemonic(), r(a)),
                Instr::Binary(f, a, b) => format!("{}({}, {})", f.mnemonic(), r(a), r(b)),
                Instr::Select(q, a, b) => format!("select({}, {}, {})", r(q), r(a), r(b)),
                Instr::Dropout { value, rate, key } => format!("dropout({}, rate = {rate}, key = {key})", r(value)),
            };
            let leaf = matches!(instr, Instr::Load(_) | Instr::Const(_));
            let name = match self.results.iter().position(|&r| r == j) {
                Some(slot) if results[slot] != expression => Some(results[slot].clone()),
                None if reads[j] > 1 && !leaf => Some(format!("t{j}")),
                _ => None,
            };
            text.push(match name {
                Some(name) => {
                    statements.push(format!("{name} = {expression}"));
                    name
                }
                None => expression,
            });
        }
        statements
    }
}

/// As statements over operands `x0`, `x1`, .. and results `y0`, `y1`, ...
impl fmt::Display for Elementwise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |letter: char, n: usize| (0..n).map(|i| format!("{letter}{i}")).collect::<Vec<_>>();
        let statements = self.statements(&names('x', self.accesses.len()), &names('y', self.results.len()));
        f.write_str(&statements.join("; "))
    }
}

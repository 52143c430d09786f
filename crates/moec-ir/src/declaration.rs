//! What there is to know about an operation before there is one: the rows from which tests and the reference page are made.

use crate::stage::Stage;

/// What there is to know about an operation without its attributes.
#[derive(Clone, Copy, Debug)]
pub struct Declaration {
    /// Name in the text form.
    pub mnemonic: &'static str,
    /// What it belongs to.
    pub family: Family,
    /// What it does, by lines.
    pub doc: &'static [&'static str],
    /// What it takes, in order.
    pub operands: &'static [Slot],
    /// What it gives, in order.
    pub results: &'static [Slot],
    /// What else decides about it, in the order of the text form.
    pub attributes: &'static [AttributeDeclaration],
    /// The first stage in which it is legal, and, for some attributes, a later one.
    pub stage: (Stage, Option<Stage>),
    /// What the gradient pass makes of it.
    pub gradient: Gradient,
    /// Whether it can draw random numbers. If it does, the generator state is its last operand.
    pub random: bool,
}

/// An operand or a result.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// What it is called.
    pub name: &'static str,
    /// Shape in the letters of `types.rs` (a float tensor), or a whole type such as `i32[N, K]`.
    pub ty: &'static str,
    /// Whether it is always there, and once.
    pub always: bool,
}

/// An attribute of an operation.
#[derive(Clone, Copy, Debug)]
pub struct AttributeDeclaration {
    /// Its key in the text form.
    pub name: &'static str,
    /// What it means.
    pub doc: &'static [&'static str],
    /// What its value looks like; empty if the text form takes it from elsewhere on the line.
    pub form: &'static str,
    /// Which numbers it can be.
    pub range: Range,
}

/// The families of operations: what is together in a file of inference and evaluation, and in a file of gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Where values come from, and their shapes.
    Structure,
    /// Functions of one element of each operand.
    Elementwise,
    /// Integers: experts, rows and tokens.
    Indices,
    /// Sums along axes.
    Reduction,
    /// Products.
    Linear,
    /// Normalised rows.
    Norm,
    /// Exponentials over the last axis.
    Softmax,
    /// Tokens that look at earlier ones.
    Attention,
    /// Tokens on the way in and out.
    Embedding,
    /// Element `i` of a node depends on (seed, step, key, i) only, see [`crate::random`].
    Random,
    /// Choices of experts. Selected indices are constants to the gradient.
    Selection,
    /// Rows to the experts and back.
    Dispatch,
    /// The step of the optimiser.
    Optimizer,
}

/// What the gradient pass makes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradient {
    /// It has a rule.
    Rule,
    /// It is a constant to the gradient: a source, an index, or piecewise constant.
    Zero,
    /// It has none, because it is itself part of a backward pass, of a step of the optimiser, or of sampling.
    None,
}

/// The numbers that an attribute can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// Every one that its type has, or what the shapes allow.
    Any,
    /// A share that is never everything.
    Share,
    /// Finite and not negative.
    NotNegative,
    /// Finite and above 0.
    Positive,
    /// Neither infinite nor NaN.
    Finite,
    /// A number of things of which there is one.
    AtLeastOne,
}

impl Range {
    /// Whether it holds the number.
    pub fn holds(self, value: f64) -> bool {
        match self {
            Range::Any => true,
            Range::Share => (0.0..1.0).contains(&value),
            Range::NotNegative => value.is_finite() && value >= 0.0,
            Range::Positive => value.is_finite() && value > 0.0,
            Range::Finite => value.is_finite(),
            Range::AtLeastOne => value >= 1.0,
        }
    }

    /// What a number in it is; empty if it is anything.
    pub fn in_words(self) -> &'static str {
        match self {
            Range::Any => "",
            Range::Share => "in [0, 1)",
            Range::NotNegative => "finite and not negative",
            Range::Positive => "finite and above 0",
            Range::Finite => "finite",
            Range::AtLeastOne => "at least 1",
        }
    }
}

/// An attribute whose value is not in its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutOfRange {
    /// Its name.
    pub attribute: &'static str,
    /// Its value as text.
    pub value: String,
    /// What it must be.
    pub range: Range,
}

//! A checked router: every name resolved, every kind known. What is left open are its arguments, the number of experts,
//! the batch, and whether it trains.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use moec_ir::{Binary, Invariant, Unary, internal_error};
use moec_syntax::{BinaryOperator, Span};

use super::kinds::{Columns, Extent, Kind, Of, Shape};
use crate::arithmetic::{NoResult, Number};

/// A checked router.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// Names of the parameters, in order.
    pub(super) parameters: Vec<String>,
    pub(super) states: Vec<State>,
    pub(super) tables: Vec<Table>,
    /// The numbers in extents that have no name of their own, by how they are spelt there.
    pub(super) spelt: IndexMap<String, Num>,
    /// In source order.
    pub(super) steps: Vec<Step>,
    /// How many numbers and tensors have names.
    pub(super) number_slots: usize,
    pub(super) tensor_slots: usize,
    pub(super) returned: Returned,
}

/// A tensor that is kept between steps.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) name: String,
    pub(super) shape: Shape,
    /// Number of columns; `None` for a single number.
    pub(super) columns: Option<Num>,
    /// What every element of it starts from.
    pub(super) start: Num,
}

/// What is looked up by a token of the vocabulary.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) made: TableKind,
    /// How many experts it has for each token; `None` for one that is no choice among several.
    pub(super) choices: Option<Num>,
    /// Seed of a random table.
    pub(super) seed: Num,
    pub(super) span: Span,
}

/// How a table is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableKind {
    /// Experts drawn for every token by itself.
    Random,
    /// Experts dealt out so that the training text loads them evenly.
    Balanced,
    /// How often the token occurs in the training text, of all its tokens.
    Frequency,
}

/// A statement but `return`.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) action: Action,
    pub(super) span: Span,
}

#[derive(Clone, Debug)]
pub(super) enum Action {
    /// `let` of a number.
    Number { slot: usize, value: Num },
    /// `let` of anything else.
    Tensor { slot: usize, value: Expr },
    /// `let values, indices = top_k(x, k)`
    TopK { values: usize, indices: usize, x: Expr, k: Num },
    /// Where a state is declared.
    State { at: usize },
    /// `repeat count { .. }`
    Repeat { count: Num, steps: Vec<Step> },
    /// Another value for a tensor from before a `repeat`.
    Assign { slot: usize, value: Expr },
    /// The value of a state after a training step.
    Update { state: usize, value: Expr },
    /// A loss with its weight.
    Aux { name: String, weight: Num, value: Expr },
}

#[derive(Clone, Debug)]
pub(super) struct Returned {
    pub(super) assignment: Assigned,
    pub(super) logits: Option<Expr>,
    pub(super) probabilities: Option<Expr>,
    /// Noisy scores and the standard deviation of their noise.
    pub(super) noisy: Option<(Expr, Expr)>,
    pub(super) span: Span,
}

impl Returned {
    /// Every expression in it; what losses are computed from, and the noisy scores of that, only if they are asked for.
    pub(super) fn expressions(&self, quantities: bool, noisy: bool) -> Vec<&Expr> {
        let mut expressions: Vec<&Expr> = match &self.assignment {
            Assigned::TokenChoice { experts, weights } => vec![experts, weights],
            Assigned::DenseGates { gates } => vec![gates],
        };
        expressions.extend(self.logits.iter().chain(&self.probabilities).filter(|_| quantities));
        expressions.extend(self.noisy.iter().filter(|_| noisy).flat_map(|(scores, std)| [scores, std]));
        expressions
    }
}

#[derive(Clone, Debug)]
pub(super) enum Assigned {
    TokenChoice { experts: Box<Expr>, weights: Box<Expr> },
    DenseGates { gates: Box<Expr> },
}

/// An expression with what it stands for.
#[derive(Clone, Debug)]
pub(super) struct Expr {
    pub(super) node: Node,
    pub(super) kind: Kind,
    pub(super) span: Span,
}

/// Equal if they compute the same: spans do not count.
impl PartialEq for Expr {
    fn eq(&self, other: &Self) -> bool {
        self.node == other.node
    }
}

/// An axis that is reduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// The tokens of the batch.
    Tokens,
    /// The tokens of each sequence by itself: every token then has what its sequence has.
    Sequence,
    /// The rows of a matrix that is not of tokens.
    Rows,
    Columns,
    All,
}

/// An axis along which elements are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Along {
    /// The tokens of the batch, sequence after sequence.
    Tokens,
    /// The tokens of each sequence by itself.
    Sequence,
    /// The rows of a matrix that is not of tokens.
    Rows,
    Columns,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reduction {
    Sum,
    Mean,
    Max,
    Min,
}

/// What an expression computes. A number is a scalar tensor where a tensor is wanted.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Number(Num),
    /// A `let`.
    Slot(usize),
    State(usize),
    /// The activations.
    Activations,
    TokenIds,
    PreviousIds,
    Position,
    Linear {
        name: String,
        x: Box<Expr>,
        width: Num,
        bias: Option<Num>,
    },
    Parameter {
        name: String,
        rows: Option<Num>,
        columns: Option<Num>,
        /// A matrix without one starts as the weights of linear maps do.
        start: Option<Num>,
    },
    /// The weights of a linear map, one row for each column of its result, which is in a slot.
    Weight {
        slot: usize,
        name: String,
    },
    /// 1 where row and column are equal, else 0.
    Identity(Num),
    /// Rows of length 1.
    Normalize(Box<Expr>),
    /// The products of the rows of the first with the rows of the second, or with its columns.
    Product {
        left: Box<Expr>,
        right: Box<Expr>,
        with_rows: bool,
    },
    Table(usize),
    /// What a table has for each token.
    Lookup(usize, Box<Expr>),
    /// Standard normal, or uniform on [0, 1): a row of numbers for each token.
    Noise {
        normal: bool,
        columns: Num,
    },
    /// One number everywhere.
    Filled {
        value: f64,
        tokens: bool,
        columns: Option<Num>,
    },
    Unary(Unary, Box<Expr>),
    Binary(Binary, Box<Expr>, Box<Expr>),
    /// `1 - a`: what a comparison is turned into by `!=`.
    Not(Box<Expr>),
    Remainder(Box<Expr>, Box<Expr>),
    Select(Box<Expr>, Box<Expr>, Box<Expr>),
    Softmax(Box<Expr>, Over),
    LogSumExp(Box<Expr>, Over),
    /// All but the k largest along an axis become a number far below every score.
    KeepTopK(Box<Expr>, Num, Over),
    /// The element at that share of an axis in increasing order, between two elements a share of each.
    Quantile(Box<Expr>, Num, Over),
    Gather(Box<Expr>, Box<Expr>),
    /// A row over all experts from values at the indices of experts.
    Scatter(Box<Expr>, Box<Expr>),
    /// How often each expert occurs.
    Count(Box<Expr>),
    Reduce(Reduction, Box<Expr>, Over),
    CumulativeSum(Box<Expr>, Along),
    StopGradient(Box<Expr>),
    ToFloat(Box<Expr>),
    /// Whole parts as indices.
    ToIndex(Box<Expr>, Of),
    /// The value of the first branch whose condition holds.
    If(Vec<(Num, Expr)>, Box<Expr>),
}

impl Expr {
    /// The expressions directly inside, of those branches only that `chosen` holds to.
    pub(super) fn inner(&self, chosen: impl Fn(&Num) -> bool) -> Vec<&Expr> {
        match &self.node {
            Node::Number(_)
            | Node::Slot(_)
            | Node::State(_)
            | Node::Activations
            | Node::TokenIds
            | Node::PreviousIds
            | Node::Position
            | Node::Parameter { .. }
            | Node::Weight { .. }
            | Node::Identity(_)
            | Node::Table(_)
            | Node::Noise { .. }
            | Node::Filled { .. } => Vec::new(),
            Node::Linear { x, .. }
            | Node::Unary(_, x)
            | Node::Not(x)
            | Node::Softmax(x, _)
            | Node::LogSumExp(x, _)
            | Node::KeepTopK(x, ..)
            | Node::Quantile(x, ..)
            | Node::Normalize(x)
            | Node::Lookup(_, x)
            | Node::Count(x)
            | Node::Reduce(_, x, _)
            | Node::CumulativeSum(x, _)
            | Node::StopGradient(x)
            | Node::ToFloat(x)
            | Node::ToIndex(x, _) => vec![x],
            Node::Product { left, right, .. } => vec![left, right],
            Node::Binary(_, a, b) | Node::Remainder(a, b) | Node::Gather(a, b) | Node::Scatter(a, b) => vec![a, b],
            Node::Select(condition, a, b) => vec![condition, a, b],
            Node::If(branches, otherwise) => vec![branch(branches, otherwise, chosen)],
        }
    }

    /// The numbers that it is told, which are no expressions inside it.
    pub(super) fn numbers(&self) -> Vec<&Num> {
        match &self.node {
            Node::Number(number)
            | Node::Linear { width: number, .. }
            | Node::Noise { columns: number, .. }
            | Node::KeepTopK(_, number, _)
            | Node::Quantile(_, number, _)
            | Node::Identity(number) => vec![number],
            Node::Filled { columns, .. } => columns.iter().collect(),
            Node::Parameter { rows, columns, start, .. } => rows.iter().chain(columns).chain(start).collect(),
            Node::If(branches, _) => branches.iter().map(|(condition, _)| condition).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether it is computed along sequences.
    pub(super) fn is_of_sequences(&self) -> bool {
        match &self.node {
            Node::Softmax(_, over)
            | Node::LogSumExp(_, over)
            | Node::KeepTopK(_, _, over)
            | Node::Quantile(_, _, over)
            | Node::Reduce(_, _, over) => *over == Over::Sequence,
            Node::CumulativeSum(_, along) => *along == Along::Sequence,
            _ => false,
        }
    }

    /// Its shape; a number that is known when the router is used is a scalar.
    pub(super) fn shape(&self) -> &Shape {
        match &self.kind {
            Kind::Tensor(shape) | Kind::Index(shape, _) => shape,
            Kind::Int(_) | Kind::Float | Kind::Bool | Kind::Table(_) => &Shape::SCALAR,
        }
    }
}

/// The names from before a `repeat` that its statements give another value.
pub(super) fn assigned(steps: &[Step]) -> Vec<usize> {
    let inner = steps.iter().map(|step| match &step.action {
        Action::Assign { slot, .. } => vec![*slot],
        Action::Repeat { steps, .. } => assigned(steps),
        _ => Vec::new(),
    });
    inner.flatten().collect()
}

/// The value of the first branch that `chosen` holds to.
pub(super) fn branch<'e>(branches: &'e [(Num, Expr)], otherwise: &'e Expr, chosen: impl Fn(&Num) -> bool) -> &'e Expr {
    branches.iter().find(|(condition, _)| chosen(condition)).map_or(otherwise, |(_, value)| value)
}

/// A number that is known when the router is used.
#[derive(Clone, Debug)]
pub(super) struct Num {
    pub(super) node: NumNode,
    pub(super) span: Span,
}

/// Equal if they compute the same: spans do not count.
impl PartialEq for Num {
    fn eq(&self, other: &Self) -> bool {
        self.node == other.node
    }
}

impl Num {
    /// The numbers that it is made of.
    pub(super) fn inner(&self) -> Vec<&Num> {
        match &self.node {
            NumNode::Constant(_)
            | NumNode::Parameter(_)
            | NumNode::Slot(_)
            | NumNode::Experts
            | NumNode::Width
            | NumNode::Tokens
            | NumNode::SequenceLength
            | NumNode::Training => Vec::new(),
            NumNode::Negated(x) | NumNode::Opposite(x) | NumNode::Unary(_, x) => vec![x],
            NumNode::Larger(a, b) | NumNode::Smaller(a, b) | NumNode::Binary(_, a, b) => vec![a, b],
            NumNode::If(branches, otherwise) => {
                let parts = branches.iter().flat_map(|(condition, value)| [condition, value]);
                parts.chain([otherwise.as_ref()]).collect()
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum NumNode {
    Constant(Number),
    Parameter(usize),
    /// A `let`.
    Slot(usize),
    /// E
    Experts,
    /// C
    Width,
    /// N, a float: what depends on the batch is never the extent of a tensor that is kept.
    Tokens,
    /// T, a float likewise.
    SequenceLength,
    Training,
    Negated(Box<Num>),
    Opposite(Box<Num>),
    Unary(Unary, Box<Num>),
    Larger(Box<Num>, Box<Num>),
    Smaller(Box<Num>, Box<Num>),
    Binary(BinaryOperator, Box<Num>, Box<Num>),
    If(Vec<(Num, Num)>, Box<Num>),
}

/// Why a number has no value for the arguments given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NumFault {
    pub(super) reason: NoResult,
    pub(super) span: Span,
}

/// Which sizes of a situation are the model's; the others stand for any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KnownSizes {
    None,
    Experts,
    All,
}

/// Everything that was open: numbers can be computed.
#[derive(Clone, Debug)]
pub(super) struct Situation {
    /// Values of the parameters, in order.
    pub(super) arguments: Vec<Number>,
    pub(super) experts: usize,
    pub(super) width: usize,
    pub(super) tokens: usize,
    /// Tokens of a sequence.
    pub(super) time: usize,
    pub(super) training: bool,
    known: KnownSizes,
    /// Values of the numbers that have names; of those only that were computed so far.
    slots: Vec<Option<Result<Number, NumFault>>>,
    /// Whether they depend on sizes that are not known.
    open: Vec<bool>,
    /// Whether they are made of how many tokens there are.
    counting: Vec<bool>,
    /// What the names in extents stand for.
    names: BTreeMap<String, i64>,
}

impl Situation {
    pub(super) fn new(
        program: &Program,
        arguments: Vec<Number>,
        [experts, width, tokens, time]: [usize; 4],
        known: KnownSizes,
        training: bool,
    ) -> Self {
        let (slots, open) = (vec![None; program.number_slots], vec![false; program.number_slots]);
        let (counting, names) = (open.clone(), BTreeMap::new());
        let mut situation =
            Situation { arguments, experts, width, tokens, time, training, known, slots, open, counting, names };
        situation.compute(&program.steps);
        let whole = |number| if let Number::Int(value) = number { Some(value) } else { None };
        let given = program.parameters.iter().zip(&situation.arguments);
        let mut names: BTreeMap<String, i64> =
            given.filter_map(|(name, value)| Some((name.clone(), whole(*value)?))).collect();
        let spelt = program.spelt.iter();
        names.extend(spelt.filter_map(|(text, num)| Some((text.clone(), whole(situation.number(num).ok()?)?))));
        names.extend([("experts", experts), ("width", width)].map(|(name, n)| (name.into(), signed(n))));
        situation.names = names;
        situation
    }

    /// Computes the numbers that have names.
    fn compute(&mut self, steps: &[Step]) {
        for step in steps {
            match &step.action {
                Action::Number { slot, value } => {
                    self.open[*slot] = self.is_open(value);
                    self.counting[*slot] = self.counts_tokens(value);
                    self.slots[*slot] = Some(self.number(value));
                }
                Action::Repeat { steps, .. } => self.compute(steps),
                _ => {}
            }
        }
    }

    /// How many columns that is; `None` where it is no number of columns.
    fn extent(&self, extent: &Extent) -> Option<usize> {
        let value = extent.value(|name| self.names.get(name).copied());
        value.and_then(|value| usize::try_from(value).ok())
    }

    /// # Errors
    /// A division by zero, or a result that no number can hold.
    pub(super) fn number(&self, num: &Num) -> Result<Number, NumFault> {
        let fault = |reason| NumFault { reason, span: num.span };
        match &num.node {
            NumNode::Constant(value) => Ok(*value),
            NumNode::Parameter(at) => Ok(self.arguments[*at]),
            NumNode::Slot(at) => self.slots[*at].invariant("a name is bound before it is read"),
            NumNode::Experts => Ok(Number::Int(signed(self.experts))),
            NumNode::Width => Ok(Number::Int(signed(self.width))),
            NumNode::Tokens => Ok(Number::Float(self.tokens as f64)),
            NumNode::SequenceLength => Ok(Number::Float(self.time as f64)),
            NumNode::Training => Ok(Number::Bool(self.training)),
            NumNode::Negated(x) => self.number(x)?.negated().map_err(fault),
            NumNode::Opposite(x) => match self.number(x)? {
                Number::Bool(value) => Ok(Number::Bool(!value)),
                other => internal_error!("`!` was checked to stand before a boolean, not {}", other.kind()),
            },
            NumNode::Unary(f, x) => {
                let value = self.number(x)?.float().map(|x| f.evaluate(x)).filter(|y| y.is_finite());
                value.map(Number::Float).ok_or(fault(NoResult::TooLarge))
            }
            NumNode::Larger(a, b) | NumNode::Smaller(a, b) => {
                let (a, b) = (self.number(a)?, self.number(b)?);
                let less = Number::combined(BinaryOperator::Less, a, b).map_err(fault)?;
                let larger = matches!(num.node, NumNode::Larger(..));
                Ok(if (less == Number::Bool(true)) == larger { b } else { a })
            }
            NumNode::Binary(operator, a, b) => {
                let left = self.number(a)?;
                // The right side may rely on the left one, as in `k != 0 && 8 / k > 1`.
                match (operator, left) {
                    (BinaryOperator::And, Number::Bool(false)) | (BinaryOperator::Or, Number::Bool(true)) => Ok(left),
                    _ => Number::combined(*operator, left, self.number(b)?).map_err(fault),
                }
            }
            NumNode::If(branches, otherwise) => {
                for (condition, value) in branches {
                    if self.number(condition)? == Number::Bool(true) {
                        return self.number(value);
                    }
                }
                self.number(otherwise)
            }
        }
    }

    /// The number as a float; `None` where it has no value.
    pub(super) fn float(&self, num: &Num) -> Option<f64> {
        self.number(num).ok().and_then(Number::float)
    }

    /// The number as an extent; `None` where it is none.
    pub(super) fn size(&self, num: &Num) -> Option<usize> {
        match self.number(num) {
            Ok(Number::Int(value)) => usize::try_from(value).ok(),
            Ok(Number::Float(_) | Number::Bool(_)) | Err(_) => None,
        }
    }

    /// How many columns an axis has; `None` where that is no number of columns.
    pub(super) fn columns(&self, columns: &Columns) -> Option<usize> {
        match columns {
            Columns::Experts => Some(self.experts),
            Columns::Choices(extent) | Columns::Features(extent) => self.extent(extent),
        }
    }

    /// Whether a number depends on sizes that are not known.
    pub(super) fn is_open(&self, num: &Num) -> bool {
        match &num.node {
            NumNode::Constant(_) | NumNode::Parameter(_) | NumNode::Training => false,
            NumNode::Slot(at) => self.open[*at],
            NumNode::Experts => self.known == KnownSizes::None,
            NumNode::Width | NumNode::Tokens | NumNode::SequenceLength => self.known != KnownSizes::All,
            _ => num.inner().into_iter().any(|inner| self.is_open(inner)),
        }
    }

    /// Whether a number is made of how many tokens there are.
    pub(super) fn counts_tokens(&self, num: &Num) -> bool {
        match &num.node {
            NumNode::Tokens | NumNode::SequenceLength => true,
            NumNode::Slot(at) => self.counting[*at],
            _ => num.inner().into_iter().any(|inner| self.counts_tokens(inner)),
        }
    }

    pub(super) fn holds(&self, num: &Num) -> bool {
        self.number(num) == Ok(Number::Bool(true))
    }
}

fn signed(size: usize) -> i64 {
    i64::try_from(size).invariant("sizes of a model are bounded when it is checked")
}

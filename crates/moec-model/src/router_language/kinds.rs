//! What the expressions of a router stand for, known without its arguments: numbers, tensors and indices, with shapes
//! made of the names that the author uses.

use std::collections::BTreeMap;
use std::fmt;

/// A whole number that is known when the router is used, in terms of what is known now: a sum of products of names.
/// What has no such form (`k / 2`) is a name of its own, spelt like the expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Factors in order, with how often their product is taken.
    terms: BTreeMap<Vec<String>, i64>,
}

/// More terms than this make no readable shape.
const MAX_TERMS: usize = 8;

impl Extent {
    pub(super) fn constant(value: i64) -> Self {
        Extent { terms: BTreeMap::from([(Vec::new(), value)]) }.tidy()
    }

    pub(super) fn named(name: impl Into<String>) -> Self {
        Extent { terms: BTreeMap::from([(vec![name.into()], 1)]) }
    }

    /// `self + factor * other`; `None` if that has no handy form.
    pub(super) fn plus(&self, factor: i64, other: &Extent) -> Option<Self> {
        let mut terms = self.terms.clone();
        for (names, count) in &other.terms {
            let sum = terms.entry(names.clone()).or_insert(0);
            *sum = count.checked_mul(factor).and_then(|count| sum.checked_add(count))?;
        }
        Extent { terms }.bounded()
    }

    /// `self * other`; `None` if that has no handy form.
    pub(super) fn times(&self, other: &Extent) -> Option<Self> {
        let mut terms = BTreeMap::new();
        for (left, a) in &self.terms {
            for (right, b) in &other.terms {
                let mut names = [left.as_slice(), right.as_slice()].concat();
                names.sort();
                let sum: &mut i64 = terms.entry(names).or_insert(0);
                *sum = a.checked_mul(*b).and_then(|product| sum.checked_add(product))?;
            }
        }
        Extent { terms }.bounded()
    }

    /// The value, where it depends on nothing.
    pub(super) fn known(&self) -> Option<i64> {
        match self.terms.iter().next() {
            None => Some(0),
            Some((names, &value)) if names.is_empty() && self.terms.len() == 1 => Some(value),
            Some(_) => None,
        }
    }

    /// The value where that of every name is known; `None` if there is none.
    pub(super) fn value(&self, name: impl Fn(&str) -> Option<i64>) -> Option<i64> {
        self.terms.iter().try_fold(0i64, |sum, (names, count)| {
            let product = names.iter().try_fold(*count, |product, n| product.checked_mul(name(n)?))?;
            sum.checked_add(product)
        })
    }

    fn tidy(mut self) -> Self {
        self.terms.retain(|_, count| *count != 0);
        self
    }

    fn bounded(self) -> Option<Self> {
        let tidy = self.tidy();
        let handy = tidy.terms.len() <= MAX_TERMS && tidy.terms.keys().all(|names| names.len() <= MAX_TERMS);
        handy.then_some(tidy)
    }
}

impl fmt::Display for Extent {
    /// `k + 1`, `2 * k`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("0");
        }
        // Names before the number without one, as one writes `k + 1`.
        let named = self.terms.iter().filter(|(names, _)| !names.is_empty());
        let plain = self.terms.iter().filter(|(names, _)| names.is_empty());
        for (i, (names, &count)) in named.chain(plain).enumerate() {
            let sign = match (i, count < 0) {
                (0, false) => "",
                (0, true) => "-",
                (_, false) => " + ",
                (_, true) => " - ",
            };
            f.write_str(sign)?;
            let size = count.unsigned_abs();
            match (names.is_empty(), size) {
                (true, _) => write!(f, "{size}")?,
                (false, 1) => f.write_str(&names.join(" * "))?,
                (false, _) => write!(f, "{size} * {}", names.join(" * "))?,
            }
        }
        Ok(())
    }
}

/// The last axis of a tensor. Axes of different kinds do not fit each other, however long they are: the third choice of
/// a token has nothing to do with the third expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Columns {
    /// One for each expert.
    Experts,
    /// One for each choice of a token, as [`top_k`](super::functions) gives them.
    Choices(Extent),
    /// Channels: those of the activations, or of a linear map to something else than experts.
    Features(Extent),
}

impl fmt::Display for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Columns::Experts => f.write_str("experts"),
            Columns::Choices(extent) | Columns::Features(extent) => write!(f, "{extent}"),
        }
    }
}

/// A shape: over the tokens of the batch or not, over columns or not. A matrix that is not of tokens has rows and columns.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Shape {
    pub(super) tokens: bool,
    /// The rows of a matrix, which has columns and no tokens.
    pub(super) rows: Option<Columns>,
    pub(super) columns: Option<Columns>,
}

impl Shape {
    pub(super) const SCALAR: Shape = Shape { tokens: false, rows: None, columns: None };

    /// A row for every token.
    pub(super) fn rows(columns: Columns) -> Self {
        Shape { tokens: true, rows: None, columns: Some(columns) }
    }

    /// A number for every token.
    pub(super) fn tokens() -> Self {
        Shape { tokens: true, rows: None, columns: None }
    }

    pub(super) fn vector(columns: Columns) -> Self {
        Shape { tokens: false, rows: None, columns: Some(columns) }
    }

    pub(super) fn matrix(rows: Columns, columns: Columns) -> Self {
        Shape { tokens: false, rows: Some(rows), columns: Some(columns) }
    }

    /// The shape without its last axis: a matrix becomes a vector of a number for each row.
    pub(super) fn without_columns(&self) -> Self {
        Shape { tokens: self.tokens, rows: None, columns: self.rows.clone() }
    }

    /// Whether it has two axes.
    pub(super) fn is_matrix(&self) -> bool {
        (self.tokens || self.rows.is_some()) && self.columns.is_some()
    }

    /// The shape of two tensors that are combined element by element: each is repeated along the axis that it lacks.
    /// `None` if their columns or rows differ.
    pub(super) fn joined(&self, other: &Shape) -> Option<Shape> {
        let either = |a: &Option<Columns>, b: &Option<Columns>| match (a, b) {
            (Some(a), Some(b)) if a != b => None,
            (a, b) => Some(a.clone().or(b.clone())),
        };
        let tokens = self.tokens || other.tokens;
        let rows = either(&self.rows, &other.rows)?;
        // The rows of a matrix are no tokens.
        let fits = rows.is_none() || !tokens;
        fits.then_some(Shape { tokens, rows, columns: either(&self.columns, &other.columns)? })
    }

    pub(super) fn is_scalar(&self) -> bool {
        *self == Shape::SCALAR
    }
}

impl fmt::Display for Shape {
    /// `[tokens, experts]`, `[tokens, k]`, `[]`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tokens = self.tokens.then(|| "tokens".to_owned());
        let others = [&self.rows, &self.columns].into_iter().flatten().map(ToString::to_string);
        let axes: Vec<String> = tokens.into_iter().chain(others).collect();
        write!(f, "[{}]", axes.join(", "))
    }
}

/// What indices count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// Columns of a tensor.
    Columns(Columns),
    /// The tokens of the vocabulary.
    Vocabulary,
    /// The positions in a sequence.
    Positions,
}

impl fmt::Display for Of {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Of::Columns(Columns::Experts) => f.write_str("experts"),
            Of::Columns(columns) => write!(f, "columns of [tokens, {columns}]"),
            Of::Vocabulary => f.write_str("the vocabulary"),
            Of::Positions => f.write_str("positions"),
        }
    }
}

/// What an expression stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A whole number that is known when the router is used.
    Int(Extent),
    /// A number that is known when the router is used.
    Float,
    /// `true` or `false`, known when the router is used.
    Bool,
    /// Numbers that are computed for every batch.
    Tensor(Shape),
    /// Numbers of columns, tokens of the vocabulary, or positions.
    Index(Shape, Of),
    /// What is looked up by a token, which is of that kind.
    Table(Box<Kind>),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Int(_) => f.write_str("an integer"),
            Kind::Float => f.write_str("a number"),
            Kind::Bool => f.write_str("a boolean"),
            Kind::Tensor(shape) => write!(f, "a tensor {shape}"),
            Kind::Index(shape, of) => write!(f, "a tensor of indices {shape} of {of}"),
            Kind::Table(_) => f.write_str("a table"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_equal_when_their_sums_are() {
        let (k, one) = (Extent::named("k"), Extent::constant(1));
        let more = k.plus(1, &one).unwrap();
        assert_eq!(more.to_string(), "k + 1");
        assert_eq!(more.plus(-1, &one).unwrap(), k);
        let twice = k.times(&Extent::constant(2)).unwrap();
        assert_eq!((twice.to_string(), k.plus(1, &k).unwrap()), ("2 * k".into(), twice.clone()));
        assert_eq!(more.times(&more).unwrap().to_string(), "2 * k + k * k + 1");
        assert_eq!(k.plus(-1, &k).unwrap().known(), Some(0));
        assert_eq!(one.plus(-2, &k).unwrap().to_string(), "-2 * k + 1");
        assert_eq!((Extent::constant(3).known(), more.known()), (Some(3), None));
        assert_eq!(more.times(&more).unwrap().value(|name| (name == "k").then_some(4)), Some(25));
        assert_eq!(more.value(|_| None), None);
        assert_eq!(Extent::constant(i64::MAX).plus(1, &one), None);
        let mut power = more.clone();
        while let Some(next) = power.times(&more) {
            power = next;
        }
        assert!(power.terms.len() <= MAX_TERMS);
    }

    #[test]
    fn tensors_join_along_the_axes_that_they_lack() {
        let experts = Shape::vector(Columns::Experts);
        let chosen = Shape::rows(Columns::Choices(Extent::named("k")));
        let all = Shape::rows(Columns::Experts);
        assert_eq!(all.joined(&experts), Some(all.clone()));
        assert_eq!(Shape::tokens().joined(&experts), Some(all.clone()));
        assert_eq!(Shape::SCALAR.joined(&chosen), Some(chosen.clone()));
        assert_eq!(chosen.joined(&all), None);
        let matrix = Shape::matrix(Columns::Experts, Columns::Features(Extent::named("width")));
        assert_eq!(matrix.to_string(), "[experts, width]");
        assert_eq!(matrix.without_columns(), experts);
        assert_eq!((matrix.joined(&Shape::SCALAR), matrix.joined(&all)), (Some(matrix.clone()), None));
        assert_eq!((matrix.joined(&experts), matrix.joined(&Shape::tokens())), (None, None));
        assert_eq!(
            [all.to_string(), chosen.to_string(), Shape::SCALAR.to_string()],
            ["[tokens, experts]", "[tokens, k]", "[]"]
        );
    }
}

//! Expressions of Python with what decides about parentheses.

/// How tightly the outermost operator binds.
pub(super) type Level = u8;

pub(super) const COMPARISON: Level = 1;
pub(super) const ADDITIVE: Level = 2;
pub(super) const MULTIPLICATIVE: Level = 3;
pub(super) const NEGATIVE: Level = 4;
pub(super) const ATOM: Level = 5;

/// An expression that gives a tensor, or several as a tuple.
#[derive(Clone, Debug)]
pub(super) struct Expression {
    /// As it is written.
    pub(super) text: String,
    /// Of its outermost operator.
    pub(super) level: Level,
    /// Whether its elements are truths and not numbers.
    pub(super) is_bool: bool,
    /// Whether axes of its value may have extent 1 or be missing where the graph has them repeated: elementwise functions
    /// do not care.
    pub(super) is_loose: bool,
    /// The number that all elements are: then the text is that of a number.
    pub(super) value: Option<String>,
}

impl Expression {
    pub(super) fn new(text: impl Into<String>, level: Level) -> Self {
        Self { text: text.into(), level, is_bool: false, is_loose: false, value: None }
    }

    /// A name, a call, an index.
    pub(super) fn atom(text: impl Into<String>) -> Self {
        Self::new(text, ATOM)
    }

    /// A tensor of which all elements are a number.
    pub(super) fn constant(text: String, is_compound: bool) -> Self {
        let level = if is_compound { MULTIPLICATIVE } else { ATOM };
        let level = if text.starts_with('-') { NEGATIVE } else { level };
        Self { is_loose: true, value: Some(text.clone()), ..Self::new(text, level) }
    }

    /// The text as an operand of something that binds as tightly as `level`: in parentheses unless it binds more tightly.
    pub(super) fn at(&self, level: Level) -> String {
        if self.level > level || (self.level == level && level == ATOM) {
            self.text.clone()
        } else {
            format!("({})", self.text)
        }
    }

    /// `self OPERATOR right`, the right one with its parentheses.
    pub(super) fn infix(&self, level: Level, operator: &str, right: &str) -> Self {
        let left = if self.level >= level && level != COMPARISON { self.text.clone() } else { self.at(level) };
        Self::new(format!("{left} {operator} {right}"), level)
    }

    /// `self.NAME(..)`
    pub(super) fn method(&self, name: &str, arguments: &[String]) -> Self {
        Self::atom(format!("{}.{name}({})", self.at(ATOM), arguments.join(", ")))
    }

    /// `self.NAME`
    pub(super) fn dot(&self, name: &str) -> Self {
        Self::atom(format!("{}.{name}", self.at(ATOM)))
    }

    /// Numbers: 1 and 0 for truths.
    pub(super) fn number(self) -> Self {
        if self.is_bool {
            let is_loose = self.is_loose;
            Self { is_loose, ..self.method("float", &[]) }
        } else {
            self
        }
    }

    /// The constant as a tensor, which has methods.
    pub(super) fn tensor(self) -> Self {
        match &self.value {
            Some(value) => Self { is_loose: true, ..Self::atom(format!("torch.tensor({value})")) },
            None => self,
        }
    }

    /// The same where it is repeated along axes.
    pub(super) fn broadcast(self) -> Self {
        Self { is_loose: true, ..self }
    }
}

//! Arithmetic on compile-time values: two integers give an integer, anything else a float; nothing overflows silently.

use std::cmp::Ordering;
use std::fmt;

use moec_syntax::BinaryOperator as B;

/// A compile-time value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// A whole number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Number::Int(value) => write!(f, "{value}"),
            Number::Float(value) => write!(f, "{value:?}"),
            Number::Bool(value) => write!(f, "{value}"),
        }
    }
}

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoResult {
    /// The right side of a division is 0.
    DivisionByZero,
    /// The result is more than a number can hold.
    TooLarge,
    /// An operand is of a kind that the operator does not take.
    WrongKind,
}

impl Number {
    /// What it is, in words.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Number::Int(_) => "an integer",
            Number::Float(_) => "a float",
            Number::Bool(_) => "a boolean",
        }
    }

    /// The value as a float; `None` for a boolean.
    pub(crate) fn float(self) -> Option<f64> {
        match self {
            Number::Int(value) => Some(value as f64),
            Number::Float(value) => Some(value),
            Number::Bool(_) => None,
        }
    }

    /// `-x`
    pub(crate) fn negated(self) -> Result<Number, NoResult> {
        match self {
            Number::Int(n) => n.checked_neg().map(Number::Int).ok_or(NoResult::TooLarge),
            Number::Float(x) => Ok(Number::Float(-x)),
            Number::Bool(_) => Err(NoResult::WrongKind),
        }
    }

    /// `a OPERATOR b`, both sides known.
    pub(crate) fn combined(operator: B, a: Number, b: Number) -> Result<Number, NoResult> {
        match (a, b) {
            (Number::Bool(a), Number::Bool(b)) => match operator {
                B::And => Ok(Number::Bool(a && b)),
                B::Or => Ok(Number::Bool(a || b)),
                B::Equal => Ok(Number::Bool(a == b)),
                B::NotEqual => Ok(Number::Bool(a != b)),
                _ => Err(NoResult::WrongKind),
            },
            (Number::Int(a), Number::Int(b)) => integers(operator, a, b),
            (a, b) => match (a.float(), b.float()) {
                (Some(a), Some(b)) => floats(operator, a, b),
                _ => Err(NoResult::WrongKind),
            },
        }
    }
}

fn integers(operator: B, a: i64, b: i64) -> Result<Number, NoResult> {
    if b == 0 && matches!(operator, B::Divide | B::Remainder) {
        return Err(NoResult::DivisionByZero);
    }
    let result = match operator {
        B::Add => a.checked_add(b),
        B::Subtract => a.checked_sub(b),
        B::Multiply => a.checked_mul(b),
        B::Divide => a.checked_div(b),
        B::Remainder => a.checked_rem(b),
        _ => return holds(operator, a.cmp(&b)),
    };
    result.map(Number::Int).ok_or(NoResult::TooLarge)
}

fn floats(operator: B, a: f64, b: f64) -> Result<Number, NoResult> {
    if b == 0.0 && matches!(operator, B::Divide | B::Remainder) {
        return Err(NoResult::DivisionByZero);
    }
    let result = match operator {
        B::Add => a + b,
        B::Subtract => a - b,
        B::Multiply => a * b,
        B::Divide => a / b,
        B::Remainder => a % b,
        // Zeros of both signs are equal, and so they should compare.
        _ => return holds(operator, (a + 0.0).total_cmp(&(b + 0.0))),
    };
    // And so they should print.
    if result.is_finite() { Ok(Number::Float(result + 0.0)) } else { Err(NoResult::TooLarge) }
}

fn holds(operator: B, order: Ordering) -> Result<Number, NoResult> {
    Ok(Number::Bool(match operator {
        B::Equal => order.is_eq(),
        B::NotEqual => order.is_ne(),
        B::Less => order.is_lt(),
        B::LessEqual => order.is_le(),
        B::Greater => order.is_gt(),
        B::GreaterEqual => order.is_ge(),
        B::Or | B::And | B::Add | B::Subtract | B::Multiply | B::Divide | B::Remainder | B::Product => {
            return Err(NoResult::WrongKind);
        }
    }))
}

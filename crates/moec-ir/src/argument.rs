//! What the parts of a model and of its training take: arguments with type, default and help, declared once by whoever
//! reads them.

use crate::interval::Interval;
use std::borrow::Cow;
use std::fmt;

/// What an argument may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ParameterType {
    /// A whole number in a range.
    Int(Interval),
    /// A number in a range; a whole number is accepted.
    Float(Interval),
    /// `true` or `false`.
    Bool,
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// A text in quotes.
    Text,
    /// A form that the layer itself reads, such as `NUMBER * EXPERT`; not for routing strategies.
    Form(&'static str),
}

impl ParameterType {
    /// The least value, the first of a choice, `false`; `None` for a text or a form.
    pub fn least(&self) -> Option<ArgumentValue> {
        match *self {
            ParameterType::Int(range) => Some(ArgumentValue::Int(range.least().ceil() as i64)),
            ParameterType::Float(range) => Some(ArgumentValue::Float(range.least())),
            ParameterType::Bool => Some(ArgumentValue::Bool(false)),
            ParameterType::Choice(words) => words.first().copied().map(ArgumentValue::Word),
            ParameterType::Text | ParameterType::Form(_) => None,
        }
    }
}

impl fmt::Display for ParameterType {
    /// `integer, at least 1`; `relu | gelu`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParameterType::Int(range) if *range == Interval::ANY => f.write_str("integer"),
            ParameterType::Float(range) if *range == Interval::ANY => f.write_str("number"),
            ParameterType::Int(range) => write!(f, "integer, {range}"),
            ParameterType::Float(range) => write!(f, "number, {range}"),
            ParameterType::Bool => f.write_str("true | false"),
            ParameterType::Choice(words) => f.write_str(&words.join(" | ")),
            ParameterType::Text => f.write_str("text in quotes"),
            ParameterType::Form(form) => f.write_str(form),
        }
    }
}

/// What an argument is when it is not given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DefaultValue {
    /// It must be given.
    Required,
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
    /// One of the words of a choice.
    Word(&'static str),
    /// Nothing; the text says what that means.
    Absent(&'static str),
}

impl DefaultValue {
    /// The value, if there is one.
    pub fn value(&self) -> Option<ArgumentValue> {
        match *self {
            DefaultValue::Required | DefaultValue::Absent(_) => None,
            DefaultValue::Int(value) => Some(ArgumentValue::Int(value)),
            DefaultValue::Float(value) => Some(ArgumentValue::Float(value)),
            DefaultValue::Bool(value) => Some(ArgumentValue::Bool(value)),
            DefaultValue::Word(word) => Some(ArgumentValue::Word(word)),
        }
    }
}

impl fmt::Display for DefaultValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DefaultValue::Required => f.write_str("required"),
            DefaultValue::Int(value) => write!(f, "{value}"),
            DefaultValue::Float(value) => write!(f, "{value}"),
            DefaultValue::Bool(value) => write!(f, "{value}"),
            DefaultValue::Word(word) | DefaultValue::Absent(word) => f.write_str(word),
        }
    }
}

/// One declared argument.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// Its name in the file.
    pub name: Cow<'static, str>,
    /// What it may be.
    pub ty: ParameterType,
    /// What it is when it is not given.
    pub default: DefaultValue,
    /// One line of help.
    pub help: Cow<'static, str>,
}

impl ParameterSpec {
    /// An argument that must be given.
    pub const fn required(name: &'static str, ty: ParameterType, help: &'static str) -> Self {
        ParameterSpec { name: Cow::Borrowed(name), ty, default: DefaultValue::Required, help: Cow::Borrowed(help) }
    }

    /// An argument with a default.
    pub const fn optional(name: &'static str, ty: ParameterType, default: DefaultValue, help: &'static str) -> Self {
        ParameterSpec { name: Cow::Borrowed(name), ty, default, help: Cow::Borrowed(help) }
    }

    /// A whole number with a default.
    pub const fn integer(name: &'static str, range: Interval, default: i64, help: &'static str) -> Self {
        Self::optional(name, ParameterType::Int(range), DefaultValue::Int(default), help)
    }

    /// A number with a default.
    pub const fn number(name: &'static str, range: Interval, default: f64, help: &'static str) -> Self {
        Self::optional(name, ParameterType::Float(range), DefaultValue::Float(default), help)
    }

    /// A switch with a default.
    pub const fn flag(name: &'static str, default: bool, help: &'static str) -> Self {
        Self::optional(name, ParameterType::Bool, DefaultValue::Bool(default), help)
    }
}

/// A checked value.
#[derive(Clone, Debug, PartialEq)]
pub enum ArgumentValue {
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
    /// One of the words of a choice.
    Word(&'static str),
    /// A text.
    Text(String),
}

impl fmt::Display for ArgumentValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArgumentValue::Int(value) => write!(f, "{value}"),
            ArgumentValue::Float(value) => write!(f, "{value}"),
            ArgumentValue::Bool(value) => write!(f, "{value}"),
            ArgumentValue::Word(word) => f.write_str(word),
            ArgumentValue::Text(text) => write!(f, "{text:?}"),
        }
    }
}

impl From<i64> for ArgumentValue {
    fn from(value: i64) -> Self {
        ArgumentValue::Int(value)
    }
}

impl From<f64> for ArgumentValue {
    fn from(value: f64) -> Self {
        ArgumentValue::Float(value)
    }
}

impl From<bool> for ArgumentValue {
    fn from(value: bool) -> Self {
        ArgumentValue::Bool(value)
    }
}

impl From<&'static str> for ArgumentValue {
    fn from(word: &'static str) -> Self {
        ArgumentValue::Word(word)
    }
}

//! Arguments: how layers, routing strategies, losses, optimizers and settings declare what they take.
//!
//! One declaration serves everything: checking a `.moe` file, the message when an argument is wrong, and the reference
//! that `moec routers` prints.

use std::borrow::Cow;
use std::fmt;

use indexmap::IndexMap;
pub use moec_ir::Interval;
use moec_plan::{Setting, SettingKind};
use moec_syntax::Span;

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
}

/// What an optimiser or a schedule declares, as an argument.
impl From<&Setting> for ParameterSpec {
    fn from(setting: &Setting) -> Self {
        let (ty, default) = match setting.kind {
            SettingKind::Number(range, x) => (ParameterType::Float(range), DefaultValue::Float(x)),
            SettingKind::Steps(n) => {
                (ParameterType::Int(Interval::at_least(0.0)), DefaultValue::Int(i64::try_from(n).unwrap_or(i64::MAX)))
            }
            SettingKind::Flag(b) => (ParameterType::Bool, DefaultValue::Bool(b)),
        };
        ParameterSpec::optional(setting.name, ty, default, setting.help)
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

/// Checked arguments: every declared one has a value, unless it is absent by default.
///
/// The readers give a neutral value (0, false, "") for a name that was not declared with that type, so reading cannot
/// fail; a strategy that reads what it did not declare finds out in its first test.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Arguments {
    values: IndexMap<Cow<'static, str>, (ArgumentValue, Option<Span>)>,
}

impl Arguments {
    /// The defaults of a declaration. Required arguments are left out.
    pub fn defaults(specs: &[ParameterSpec]) -> Self {
        let mut arguments = Arguments::default();
        for spec in specs {
            let value = match spec.default {
                DefaultValue::Required | DefaultValue::Absent(_) => continue,
                DefaultValue::Int(value) => ArgumentValue::Int(value),
                DefaultValue::Float(value) => ArgumentValue::Float(value),
                DefaultValue::Bool(value) => ArgumentValue::Bool(value),
                DefaultValue::Word(word) => ArgumentValue::Word(word),
            };
            arguments.values.insert(spec.name.clone(), (value, None));
        }
        arguments
    }

    /// The same arguments with one set, for building them by hand: `Arguments::defaults(specs).with("k", 2)`.
    #[must_use]
    pub fn with(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<ArgumentValue>) -> Self {
        self.values.insert(name.into(), (value.into(), None));
        self
    }

    pub(crate) fn set(&mut self, name: Cow<'static, str>, value: ArgumentValue, span: Span) {
        self.values.insert(name, (value, Some(span)));
    }

    /// The value of an argument, if it has one.
    pub fn get(&self, name: &str) -> Option<&ArgumentValue> {
        self.values.get(name).map(|(value, _)| value)
    }

    /// Where the argument's value was written; `None` for a default.
    pub fn span(&self, name: &str) -> Option<Span> {
        self.values.get(name).and_then(|(_, span)| *span)
    }

    /// Names and values in the order of declaration.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ArgumentValue)> {
        self.values.iter().map(|(name, (value, _))| (name.as_ref(), value))
    }

    /// A whole number.
    pub fn int(&self, name: &str) -> i64 {
        match self.get(name) {
            Some(ArgumentValue::Int(value)) => *value,
            _ => 0,
        }
    }

    /// A whole number that counts something.
    pub fn size(&self, name: &str) -> usize {
        usize::try_from(self.int(name)).unwrap_or(0)
    }

    /// A number.
    pub fn float(&self, name: &str) -> f64 {
        match self.get(name) {
            Some(ArgumentValue::Float(value)) => *value,
            Some(ArgumentValue::Int(value)) => *value as f64,
            _ => 0.0,
        }
    }

    /// `true` or `false`.
    pub fn bool(&self, name: &str) -> bool {
        matches!(self.get(name), Some(ArgumentValue::Bool(true)))
    }

    /// One of the words of a choice.
    pub fn word(&self, name: &str) -> &'static str {
        match self.get(name) {
            Some(ArgumentValue::Word(word)) => word,
            _ => "",
        }
    }

    /// A text; `None` if the argument has none.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(ArgumentValue::Text(text)) => Some(text),
            _ => None,
        }
    }
}

impl fmt::Display for Arguments {
    /// `k: 2, bias: true`, as in a file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{name}: {value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_read_back_and_wrong_reads_are_neutral() {
        const SPECS: &[ParameterSpec] = &[
            ParameterSpec::required("k", ParameterType::Int(Interval::at_least(1.0)), "experts per token"),
            ParameterSpec::optional("bias", ParameterType::Bool, DefaultValue::Bool(true), "add a bias"),
        ];
        let arguments = Arguments::defaults(SPECS).with("k", 2);
        assert!(arguments.bool("bias"));
        assert_eq!((arguments.size("k"), arguments.float("k"), arguments.word("k")), (2, 2.0, ""));
        assert_eq!(arguments.to_string(), "bias: true, k: 2");
        assert_eq!(arguments.int("absent"), 0);
    }
}

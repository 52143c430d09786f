//! Arguments: how layers, routing strategies, losses, optimizers and settings declare what they take.
//!
//! One declaration serves everything: checking a `.moe` file, the message when an argument is wrong, and the reference
//! that `moec routers` prints.

use std::borrow::Cow;
use std::fmt;

use indexmap::IndexMap;
pub use moec_ir::Interval;
use moec_ir::{Invariant, internal_error};
use moec_plan::{Setting, SettingKind};
use moec_syntax::Span;

use crate::words::listed;

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
    fn least(&self) -> Option<ArgumentValue> {
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
                let steps = i64::try_from(n).invariant("a default of steps is a number of the language");
                (ParameterType::Int(Interval::at_least(0.0)), DefaultValue::Int(steps))
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
/// Reading what was not declared, or not with that type, is a fault of whoever reads: it ends with a message that names
/// the parameter and its owner, so that a misspelt name shows in the first test.
#[derive(Clone, Debug, PartialEq)]
pub struct Arguments {
    /// Whose they are: a router, a loss, a setting.
    owner: String,
    slots: IndexMap<Cow<'static, str>, Slot>,
}

/// A declared argument.
#[derive(Clone, Debug, PartialEq)]
struct Slot {
    value: Option<ArgumentValue>,
    /// Where the value was written; `None` for a default.
    span: Option<Span>,
}

impl Arguments {
    /// The defaults of what `owner` declares. Required arguments have no value.
    pub fn defaults(owner: &str, specs: &[ParameterSpec]) -> Self {
        let slot = |spec: &ParameterSpec| {
            let value = match spec.default {
                DefaultValue::Required | DefaultValue::Absent(_) => None,
                DefaultValue::Int(value) => Some(ArgumentValue::Int(value)),
                DefaultValue::Float(value) => Some(ArgumentValue::Float(value)),
                DefaultValue::Bool(value) => Some(ArgumentValue::Bool(value)),
                DefaultValue::Word(word) => Some(ArgumentValue::Word(word)),
            };
            (spec.name.clone(), Slot { value, span: None })
        };
        Arguments { owner: owner.to_string(), slots: specs.iter().map(slot).collect() }
    }

    /// As [`Self::defaults`], with the least value for each required number, and the first of each choice: they stand
    /// for the owner where no arguments are known.
    pub fn least(owner: &str, specs: &[ParameterSpec]) -> Self {
        let mut arguments = Self::defaults(owner, specs);
        for spec in specs.iter().filter(|spec| spec.default == DefaultValue::Required) {
            arguments.slot_mut(&spec.name).value = spec.ty.least();
        }
        arguments
    }

    /// The same arguments with one set, for building them by hand: `Arguments::defaults(name, specs).with("k", 2)`.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<ArgumentValue>) -> Self {
        self.slot_mut(name).value = Some(value.into());
        self
    }

    pub(crate) fn set(&mut self, name: &str, value: ArgumentValue, span: Span) {
        *self.slot_mut(name) = Slot { value: Some(value), span: Some(span) };
    }

    fn undeclared(&self, name: &str) -> ! {
        let declared: Vec<&str> = self.slots.keys().map(Cow::as_ref).collect();
        internal_error!("`{}` declares no parameter `{name}`, only {}", self.owner, listed(declared))
    }

    fn slot_mut(&mut self, name: &str) -> &mut Slot {
        if !self.slots.contains_key(name) {
            self.undeclared(name);
        }
        &mut self.slots[name]
    }

    /// The value of an argument, if it has one. Unlike the readers below it can be asked for what was not declared.
    pub fn get(&self, name: &str) -> Option<&ArgumentValue> {
        self.slots.get(name).and_then(|slot| slot.value.as_ref())
    }

    /// Where the argument's value was written; `None` for a default.
    pub fn span(&self, name: &str) -> Option<Span> {
        self.slots.get(name).and_then(|slot| slot.span)
    }

    /// Names and values in the order of declaration.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ArgumentValue)> {
        self.slots.iter().filter_map(|(name, slot)| Some((name.as_ref(), slot.value.as_ref()?)))
    }

    /// The value of an argument that is read as `wanted`, if it is of that kind.
    fn read<'v, T>(&'v self, name: &str, wanted: &str, value: impl FnOnce(&'v ArgumentValue) -> Option<T>) -> T {
        let slot = self.slots.get(name).unwrap_or_else(|| self.undeclared(name));
        match &slot.value {
            Some(found) => {
                value(found).unwrap_or_else(|| internal_error!("`{name}` of `{}` is {found}, not {wanted}", self.owner))
            }
            None => internal_error!("`{name}` of `{}` has no value to be read as {wanted}", self.owner),
        }
    }

    /// A whole number.
    pub fn int(&self, name: &str) -> i64 {
        self.read(name, "a whole number", |value| match value {
            ArgumentValue::Int(value) => Some(*value),
            _ => None,
        })
    }

    /// A whole number that counts something.
    pub fn size(&self, name: &str) -> usize {
        self.read(name, "a number that counts", |value| match value {
            ArgumentValue::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        })
    }

    /// A number.
    pub fn float(&self, name: &str) -> f64 {
        self.read(name, "a number", |value| match value {
            ArgumentValue::Float(value) => Some(*value),
            ArgumentValue::Int(value) => Some(*value as f64),
            _ => None,
        })
    }

    /// `true` or `false`.
    pub fn bool(&self, name: &str) -> bool {
        self.read(name, "`true` or `false`", |value| match value {
            ArgumentValue::Bool(value) => Some(*value),
            _ => None,
        })
    }

    /// One of the words of a choice.
    pub fn word(&self, name: &str) -> &'static str {
        self.read(name, "a word", |value| match value {
            ArgumentValue::Word(word) => Some(*word),
            _ => None,
        })
    }

    /// A text; `None` if the argument has none.
    pub fn text(&self, name: &str) -> Option<&str> {
        if !self.slots.contains_key(name) {
            self.undeclared(name);
        }
        self.get(name).map(|_| {
            self.read(name, "a text", |value| match value {
                ArgumentValue::Text(text) => Some(text.as_str()),
                _ => None,
            })
        })
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

    const SPECS: &[ParameterSpec] = &[
        ParameterSpec::required("k", ParameterType::Int(Interval::at_least(1.0)), "experts per token"),
        ParameterSpec::optional("bias", ParameterType::Bool, DefaultValue::Bool(true), "add a bias"),
        ParameterSpec::optional("from", ParameterType::Text, DefaultValue::Absent("none"), "a run"),
    ];

    #[test]
    fn defaults_are_read_back_in_the_order_of_declaration() {
        let arguments = Arguments::defaults("mine", SPECS).with("k", 2);
        assert!(arguments.bool("bias"));
        assert_eq!((arguments.size("k"), arguments.float("k")), (2, 2.0));
        assert_eq!(arguments.to_string(), "k: 2, bias: true");
        assert_eq!((arguments.get("jitter"), arguments.get("from")), (None, None));
        assert_eq!(arguments.text("from"), None);
        assert_eq!(Arguments::least("mine", SPECS).int("k"), 1);
    }

    #[test]
    #[should_panic(expected = "`mine` declares no parameter `bais`, only `k`, `bias` and `from`")]
    fn a_misspelt_name_is_an_internal_error() {
        Arguments::defaults("mine", SPECS).bool("bais");
    }

    #[test]
    #[should_panic(expected = "`bias` of `mine` is true, not a number")]
    fn so_is_a_wrong_type() {
        Arguments::defaults("mine", SPECS).float("bias");
    }

    #[test]
    #[should_panic(expected = "`k` of `mine` has no value")]
    fn so_is_reading_a_required_argument_that_was_not_given() {
        Arguments::defaults("mine", SPECS).size("k");
    }
}

//! Arguments of layers, routing strategies, losses and settings, checked against what these declare.
//!
//! One declaration ([`ParameterSpec`]) serves everything: checking a `.moe` file, the message when an argument is wrong,
//! and the reference that `moec routers` prints.

use std::borrow::Cow;
use std::fmt;

use indexmap::IndexMap;
use moec_ir::internal_error;
pub use moec_ir::{ArgumentValue, DefaultValue, Interval, ParameterSpec, ParameterType};
use moec_syntax::Span;

use crate::words::listed;

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
        let slot = |spec: &ParameterSpec| (spec.name.clone(), Slot { value: spec.default.value(), span: None });
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

    /// Notes where an argument was written that is more than a value.
    pub(crate) fn place(&mut self, name: &str, span: Span) {
        self.slot_mut(name).span = Some(span);
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

    /// Where the argument's value was written; `None` for a default, and for what was not declared.
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

    /// The argument `k`, how many experts a token has, if there is one that is a whole number. A router of a file may
    /// call something else so.
    pub fn k(&self) -> Option<usize> {
        match self.get("k") {
            Some(ArgumentValue::Int(value)) => usize::try_from(*value).ok(),
            _ => None,
        }
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

//! Settings of optimisers and schedules: the values of what these declare, read by name.

use moec_ir::{ArgumentValue, Invariant, ParameterSpec, internal_error};
use std::borrow::Cow;

/// The values of all settings of a declaration, in its order.
///
/// A reader asked for a name that was not declared, or not with that form, ends with an internal error.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings(Vec<(Cow<'static, str>, ArgumentValue)>);

impl Settings {
    /// The defaults of a declaration.
    pub fn defaults(declared: &[ParameterSpec]) -> Self {
        let value = |spec: &ParameterSpec| spec.default.value().invariant("every setting has a default");
        Self(declared.iter().map(|spec| (spec.name.clone(), value(spec))).collect())
    }

    /// The same settings with one changed, which must be declared. Its range is not checked here.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<ArgumentValue>) -> Self {
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, old)) => *old = value.into(),
            None => internal_error!("no setting `{name}` is declared"),
        }
        self
    }

    /// Names and values in the order of declaration.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ArgumentValue)> + '_ {
        self.0.iter().map(|(name, value)| (name.as_ref(), value))
    }

    fn get(&self, name: &str) -> &ArgumentValue {
        match self.0.iter().find(|(n, _)| *n == name) {
            Some((_, value)) => value,
            None => internal_error!("no setting `{name}` is declared"),
        }
    }

    /// A number.
    pub fn number(&self, name: &str) -> f64 {
        match self.get(name) {
            ArgumentValue::Float(x) => *x,
            other => internal_error!("the setting `{name}` is {other}, not a number"),
        }
    }

    /// A number of steps.
    pub fn steps(&self, name: &str) -> u64 {
        match self.get(name) {
            ArgumentValue::Int(n) => u64::try_from(*n).invariant("numbers of steps are declared from 0"),
            other => internal_error!("the setting `{name}` is {other}, not a number of steps"),
        }
    }

    /// One of a few words.
    pub fn word(&self, name: &str) -> &'static str {
        match self.get(name) {
            ArgumentValue::Word(word) => word,
            other => internal_error!("the setting `{name}` is {other}, not a word"),
        }
    }

    /// A switch.
    pub fn flag(&self, name: &str) -> bool {
        match self.get(name) {
            ArgumentValue::Bool(b) => *b,
            other => internal_error!("the setting `{name}` is {other}, not a switch"),
        }
    }
}

/// Settings that are each in range and do not go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The setting to change.
    pub setting: &'static str,
    /// What is wrong.
    pub message: String,
    /// What it should be instead.
    pub expected: String,
}

//! Settings of optimisers and schedules: declared once with range, default and help, checked against that, and read by
//! name.

use moec_ir::{Interval, internal_error};
use std::fmt;

/// One declared setting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setting {
    /// Its name in the file.
    pub name: &'static str,
    /// What it may be.
    pub kind: SettingKind,
    /// One line of help.
    pub help: &'static str,
}

/// What a setting may be, and what it is when it is not given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SettingKind {
    /// A number in a range.
    Number(Interval, f64),
    /// A number of steps.
    Steps(u64),
    /// `true` or `false`.
    Flag(bool),
}

/// The value of a setting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SettingValue {
    /// A number.
    Number(f64),
    /// A number of steps.
    Steps(u64),
    /// `true` or `false`.
    Flag(bool),
}

impl fmt::Display for SettingValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SettingValue::Number(x) => write!(f, "{x}"),
            SettingValue::Steps(n) => write!(f, "{n}"),
            SettingValue::Flag(b) => write!(f, "{b}"),
        }
    }
}

impl Setting {
    /// A number.
    pub const fn number(name: &'static str, range: Interval, default: f64, help: &'static str) -> Self {
        Setting { name, kind: SettingKind::Number(range, default), help }
    }

    /// A number of steps.
    pub const fn steps(name: &'static str, default: u64, help: &'static str) -> Self {
        Setting { name, kind: SettingKind::Steps(default), help }
    }

    /// A switch.
    pub const fn flag(name: &'static str, default: bool, help: &'static str) -> Self {
        Setting { name, kind: SettingKind::Flag(default), help }
    }

    fn default_value(&self) -> SettingValue {
        match self.kind {
            SettingKind::Number(_, x) => SettingValue::Number(x),
            SettingKind::Steps(n) => SettingValue::Steps(n),
            SettingKind::Flag(b) => SettingValue::Flag(b),
        }
    }
}

/// The values of all settings of a declaration, in its order.
///
/// A reader asked for a name that was not declared, or not with that form, ends with an internal error.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings(Vec<(&'static str, SettingValue)>);

impl Settings {
    /// The defaults of a declaration.
    pub fn defaults(declared: &[Setting]) -> Self {
        Self(declared.iter().map(|s| (s.name, s.default_value())).collect())
    }

    /// The same settings with one changed, which must be declared. Its range is not checked here.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<SettingValue>) -> Self {
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, old)) => *old = value.into(),
            None => internal_error!("no setting `{name}` is declared"),
        }
        self
    }

    /// Names and values in the order of declaration.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, SettingValue)> + '_ {
        self.0.iter().copied()
    }

    fn get(&self, name: &str) -> SettingValue {
        match self.0.iter().find(|(n, _)| *n == name) {
            Some(&(_, value)) => value,
            None => internal_error!("no setting `{name}` is declared"),
        }
    }

    /// A number.
    pub fn number(&self, name: &str) -> f64 {
        match self.get(name) {
            SettingValue::Number(x) => x,
            other => internal_error!("the setting `{name}` is {other:?}, not a number"),
        }
    }

    /// A number of steps.
    pub fn steps(&self, name: &str) -> u64 {
        match self.get(name) {
            SettingValue::Steps(n) => n,
            other => internal_error!("the setting `{name}` is {other:?}, not a number of steps"),
        }
    }

    /// A switch.
    pub fn flag(&self, name: &str) -> bool {
        match self.get(name) {
            SettingValue::Flag(b) => b,
            other => internal_error!("the setting `{name}` is {other:?}, not a switch"),
        }
    }
}

impl From<f64> for SettingValue {
    fn from(x: f64) -> Self {
        SettingValue::Number(x)
    }
}

impl From<u64> for SettingValue {
    fn from(n: u64) -> Self {
        SettingValue::Steps(n)
    }
}

impl From<bool> for SettingValue {
    fn from(b: bool) -> Self {
        SettingValue::Flag(b)
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

//! What a layer declares about itself.

use std::sync::Arc;

use crate::argument::{DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::check::layer::LayerCheck;
use crate::layer::LayerKind;

/// A layer of the language.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LayerSpec {
    /// Its name.
    pub name: &'static str,
    /// One line on what it does.
    pub summary: &'static str,
    /// Its arguments.
    pub parameters: &'static [ParameterSpec],
    /// Forms within its arguments that take arguments of their own, such as `capacity(..)`.
    pub forms: &'static [(&'static str, &'static [ParameterSpec])],
    /// Whether it has layers of its own, in braces.
    pub has_layers: bool,
    /// Its equations with shapes, its parameters, and what it costs, in lines of plain text.
    pub equations: &'static str,
    /// What it means for writing one token after another with keys and values that are kept.
    pub decoding: &'static str,
    /// Papers and code it follows.
    pub references: &'static [&'static str],
    /// Checks the layer; `None` after a fault, which has been reported.
    pub(crate) check: fn(&mut LayerCheck<'_, '_>) -> Option<Arc<dyn LayerKind>>,
}

impl LayerSpec {
    /// The argument that is written with one of the [`forms`](Self::forms).
    pub fn argument_with(&self, form: &str) -> Option<&'static ParameterSpec> {
        let takes = |ty| matches!(ty, ParameterType::Form(text) if text.split('(').next() == Some(form));
        self.parameters.iter().find(|parameter| takes(parameter.ty))
    }
}

/// [`LayerSpec::decoding`] of layers that work on each token by itself.
pub(super) const TOKENWISE: &str = "Each token by itself: nothing is kept.";

/// Widths beyond this are typing errors: a single square matrix of it would be a petabyte.
pub(super) const WIDTH: Interval = Interval::closed(1.0, 16_777_216.0);

/// A share of numbers.
pub(super) const RATE: Interval = Interval::half_open(0.0, 1.0);

/// Dropout of a layer's results.
pub(super) const DROPOUT: ParameterSpec = ParameterSpec::optional(
    "dropout",
    ParameterType::Float(RATE),
    DefaultValue::Float(0.0),
    "share of the numbers set to 0 while training",
);

/// What a norm adds to what it divides by.
pub(super) const fn epsilon(default: f64, help: &'static str) -> ParameterSpec {
    ParameterSpec::optional("epsilon", ParameterType::Float(Interval::above(0.0)), DefaultValue::Float(default), help)
}

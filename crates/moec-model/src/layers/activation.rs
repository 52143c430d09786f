//! The functions between linear maps: layers of their own (`relu`, `gelu`, `silu`), and the words of `activation:`.

use std::collections::BTreeMap;
use std::sync::Arc;

use moec_ir::{Builder, Invariant, Unary, Value};

use super::spec::{LayerSpec, TOKENWISE};
use crate::check::layer::LayerCheck;
use crate::cost::Flops;
use crate::layer::{LayerKind, checked};
use crate::lower::lowering::{LowerError, Lowering, Site};
use crate::resolved::ResolvedValue;

/// A function of each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `max(x, 0)`
    Relu,
    /// `x * cdf(x)` with the cumulative distribution function of the standard normal.
    Gelu,
    /// `x * sigmoid(x)`
    Silu,
}

impl Activation {
    /// Every one, in the order of messages.
    pub const ALL: [Activation; 3] = [Activation::Relu, Activation::Gelu, Activation::Silu];

    /// Their names, as words of an argument.
    pub(super) const WORDS: [&'static str; Self::ALL.len()] = {
        let mut words = [""; Self::ALL.len()];
        let mut i = 0;
        while i < words.len() {
            words[i] = Self::ALL[i].name();
            i += 1;
        }
        words
    };

    /// Name in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Activation::Relu => "relu",
            Activation::Gelu => "gelu",
            Activation::Silu => "silu",
        }
    }

    /// The activation of a word that has been checked.
    pub(super) fn named(word: &str) -> Self {
        let found = Self::ALL.into_iter().find(|activation| activation.name() == word);
        found.invariant("the word of an activation is one of those that are declared")
    }

    /// The function of each element of `x`.
    pub(super) fn lower(self, b: &mut Builder, x: Value) -> Value {
        let gate = match self {
            Activation::Relu => return b.unary(Unary::Relu, x),
            Activation::Gelu => Unary::NormalCdf,
            Activation::Silu => Unary::Sigmoid,
        };
        let gate = b.unary(gate, x);
        b.mul(x, gate)
    }
}

const fn layer(
    activation: Activation,
    summary: &'static str,
    equations: &'static str,
    references: &'static [&'static str],
) -> LayerSpec {
    let name = activation.name();
    LayerSpec {
        name,
        summary,
        parameters: &[],
        forms: &[],
        has_layers: false,
        equations,
        decoding: TOKENWISE,
        references,
        check,
    }
}

pub(super) const RELU: LayerSpec = layer(
    Activation::Relu,
    "max(x, 0)",
    "\
y = max(x, 0)       x, y [N, C]
Parameters: none.
Cost per token: C.",
    &["Nair & Hinton 2010, Rectified Linear Units Improve Restricted Boltzmann Machines"],
);

pub(super) const GELU: LayerSpec = layer(
    Activation::Gelu,
    "x times the standard normal distribution function of x",
    "\
y = x * cdf(x), cdf(x) = (1 + erf(x / sqrt(2))) / 2     x, y [N, C]
The exact one, as PyTorch's default; the form with tanh, of GPT-2 and of JAX's default, differs from it by at most 0.0005.
Parameters: none.
Cost per token: C.",
    &["Hendrycks & Gimpel 2016, Gaussian Error Linear Units (GELUs), arXiv 1606.08415"],
);

pub(super) const SILU: LayerSpec = layer(
    Activation::Silu,
    "x times the sigmoid of x",
    "\
y = x * sigmoid(x)      x, y [N, C]
Parameters: none.
Cost per token: C.",
    &["Elfwing et al. 2017, Sigmoid-Weighted Linear Units for Neural Network Function Approximation, arXiv 1702.03118"],
);

/// An activation as a layer of its own.
#[derive(Clone, Copy, Debug)]
struct Elementwise {
    activation: Activation,
    /// Width of the vectors, C.
    width: usize,
}

fn check(c: &mut LayerCheck<'_, '_>) -> Option<Arc<dyn LayerKind>> {
    checked(Elementwise { activation: Activation::named(c.name()), width: c.input()? })
}

impl LayerKind for Elementwise {
    fn name(&self) -> &'static str {
        self.activation.name()
    }

    fn lower(&self, l: &mut Lowering, _: Site<'_>, x: Value) -> Result<Value, LowerError> {
        Ok(self.activation.lower(l.b(), x))
    }

    fn flops(&self, _time: usize, _vocab: usize) -> Flops {
        Flops::elementwise(self.width as f64)
    }

    fn resolved(&self) -> BTreeMap<String, ResolvedValue> {
        BTreeMap::new()
    }
}

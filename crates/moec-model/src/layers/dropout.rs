//! `dropout` (Srivastava et al. 2014).

use std::collections::BTreeMap;
use std::sync::Arc;

use moec_ir::Value;

use super::spec::{LayerSpec, RATE, TOKENWISE};
use crate::argument::{ParameterSpec, ParameterType};
use crate::check::layer::LayerCheck;
use crate::cost::Flops;
use crate::layer::{LayerKind, checked};
use crate::lower::lowering::{LowerError, Lowering, Site};
use crate::resolved::{ResolvedValue, map};

pub(super) const LAYER: LayerSpec = LayerSpec {
    name: "dropout",
    summary: "sets a share of the numbers to 0 while training",
    parameters: &[ParameterSpec::required("rate", ParameterType::Float(RATE), "share of the numbers")],
    forms: &[],
    has_layers: false,
    equations: "\
y = x * m / (1 - rate), with each element of m 0 with probability rate, else 1      x, y [N, C]
In evaluation and sampling y = x. The mask is a function of seed, step, layer and element, so nothing is stored.
Parameters: none.
Cost: not counted.",
    decoding: TOKENWISE,
    references: &["Srivastava et al. 2014, Dropout: A Simple Way to Prevent Neural Networks from Overfitting, JMLR 15"],
    check,
};

/// Dropout.
#[derive(Clone, Copy, Debug)]
struct Dropout {
    /// Probability of zero.
    rate: f64,
}

fn check(c: &mut LayerCheck<'_, '_>) -> Option<Arc<dyn LayerKind>> {
    checked(Dropout { rate: c.float("rate")? })
}

impl LayerKind for Dropout {
    fn name(&self) -> &'static str {
        LAYER.name
    }

    fn lower(&self, l: &mut Lowering, _: Site<'_>, x: Value) -> Result<Value, LowerError> {
        Ok(l.dropout(x, self.rate))
    }

    fn flops(&self, _time: usize, _vocab: usize) -> Flops {
        Flops::default()
    }

    fn resolved(&self) -> BTreeMap<String, ResolvedValue> {
        map([("rate", self.rate.into())])
    }
}

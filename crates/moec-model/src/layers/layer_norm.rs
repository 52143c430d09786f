//! `layer_norm` (Ba et al. 2016, arXiv 1607.06450).

use std::collections::BTreeMap;
use std::sync::Arc;

use moec_ir::{Op, Value};

use super::spec::{LayerSpec, TOKENWISE, epsilon};
use crate::check::layer::LayerCheck;
use crate::cost::Flops;
use crate::emit::Role;
use crate::layer::{LayerKind, checked};
use crate::lower::lowering::{LowerError, Lowering, Rows, Site};
use crate::resolved::{ResolvedValue, map};

pub(super) const LAYER: LayerSpec = LayerSpec {
    name: "layer_norm",
    summary: "layer normalisation with a trained gain and shift",
    parameters: &[epsilon(1e-5, "added to the variance")],
    forms: &[],
    has_layers: false,
    equations: "\
m = mean(x), v = mean((x - m)^2) over the channels of a token       x [N, C]
y = (x - m) / sqrt(v + epsilon) * gain + shift                      y [N, C]
Parameters: gain [C], which starts at 1, and shift [C], at 0.
Cost per token: 8 C.",
    decoding: TOKENWISE,
    references: &["Ba et al. 2016, Layer Normalization, arXiv 1607.06450"],
    check,
};

/// Layer normalisation.
#[derive(Clone, Copy, Debug)]
struct LayerNorm {
    /// Width of the vectors, C.
    width: usize,
    /// Added to the variance.
    epsilon: f64,
}

fn check(c: &mut LayerCheck<'_, '_>) -> Option<Arc<dyn LayerKind>> {
    checked(LayerNorm { width: c.input()?, epsilon: c.float("epsilon")? })
}

impl LayerKind for LayerNorm {
    fn name(&self) -> &'static str {
        LAYER.name
    }

    fn lower(&self, l: &mut Lowering, site: Site<'_>, x: Value) -> Result<Value, LowerError> {
        let (op, width) = (Op::LayerNorm { epsilon: self.epsilon.into() }, self.width);
        Ok(match site.rows {
            Rows::Tokens => {
                let gain = l.emitter.parameter("gain", [width], Role::Constant(1.0));
                let shift = l.emitter.parameter("shift", [width], Role::Constant(0.0));
                l.b().op(op, &[x, gain, shift])
            }
            Rows::Experts { experts, offsets } => {
                let (one, zero) = (l.b().fill(1.0, [width]), l.b().fill(0.0, [width]));
                let y = l.b().op(op, &[x, one, zero]);
                let gain = l.per_row("gain", 1.0, y, experts, offsets);
                let shift = l.per_row("shift", 0.0, y, experts, offsets);
                let y = l.b().mul(y, gain);
                l.b().add(y, shift)
            }
        })
    }

    fn flops(&self, _time: usize, _vocab: usize) -> Flops {
        Flops::elementwise(8.0 * self.width as f64)
    }

    fn resolved(&self) -> BTreeMap<String, ResolvedValue> {
        map([("epsilon", self.epsilon.into())])
    }
}

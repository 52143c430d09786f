//! `rms_norm` (Zhang & Sennrich 2019, arXiv 1910.07467).

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
    name: "rms_norm",
    summary: "root mean square normalisation with a trained gain",
    parameters: &[epsilon(1e-6, "added to the mean square")],
    forms: &[],
    has_layers: false,
    equations: "\
y = x / sqrt(mean(x^2) + epsilon) * gain, over the channels of a token      x, y [N, C]
Parameters: gain [C], which starts at 1.
Cost per token: 4 C.",
    decoding: TOKENWISE,
    references: &["Zhang & Sennrich 2019, Root Mean Square Layer Normalization, arXiv 1910.07467"],
    check,
};

/// Root mean square normalisation.
#[derive(Clone, Copy, Debug)]
struct RmsNorm {
    /// Width of the vectors, C.
    width: usize,
    /// Added to the mean square.
    epsilon: f64,
}

fn check(c: &mut LayerCheck<'_, '_>) -> Option<Arc<dyn LayerKind>> {
    checked(RmsNorm { width: c.input()?, epsilon: c.float("epsilon")? })
}

impl LayerKind for RmsNorm {
    fn name(&self) -> &'static str {
        LAYER.name
    }

    fn lower(&self, l: &mut Lowering, site: Site<'_>, x: Value) -> Result<Value, LowerError> {
        let (op, width) = (Op::RmsNorm { epsilon: self.epsilon.into() }, self.width);
        Ok(match site.rows {
            Rows::Tokens => {
                let gain = l.emitter.parameter("gain", [width], Role::Constant(1.0));
                l.b().op(op, &[x, gain])
            }
            Rows::Experts { experts, offsets } => {
                let one = l.b().fill(1.0, [width]);
                let y = l.b().op(op, &[x, one]);
                let gain = l.per_row("gain", 1.0, y, experts, offsets);
                l.b().mul(y, gain)
            }
        })
    }

    fn flops(&self, _time: usize, _vocab: usize) -> Flops {
        Flops::elementwise(4.0 * self.width as f64)
    }

    fn resolved(&self) -> BTreeMap<String, ResolvedValue> {
        map([("epsilon", self.epsilon.into())])
    }
}

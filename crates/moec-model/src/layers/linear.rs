//! `linear`: a linear map, one for all tokens or one for each expert.

use std::collections::BTreeMap;
use std::sync::Arc;

use moec_ir::Value;

use super::spec::{LayerSpec, TOKENWISE, WIDTH};
use crate::argument::{ParameterSpec, ParameterType};
use crate::check::layer::{Flow, LayerCheck};
use crate::cost::Flops;
use crate::layer::{LayerKind, checked};
use crate::lower::lowering::{LowerError, Lowering, Site};
use crate::resolved::{ResolvedValue, map};

pub(super) const LAYER: LayerSpec = LayerSpec {
    name: "linear",
    summary: "a linear map",
    parameters: &[
        ParameterSpec::required("width", ParameterType::Int(WIDTH), "width of the result"),
        ParameterSpec::flag("bias", true, "add a bias"),
    ],
    forms: &[],
    has_layers: false,
    equations: "\
y = x Wᵀ + b        x [N, C], y [N, width]
Parameters: weight [width, C]; with bias: true also bias [width].
Cost per token: 2 C width.",
    decoding: TOKENWISE,
    references: &[],
    check,
};

/// A linear map.
#[derive(Clone, Copy, Debug)]
struct Linear {
    /// Width of what it is given, C.
    input: usize,
    /// Width of the result.
    width: usize,
    /// Whether it has a bias.
    bias: bool,
}

fn check(c: &mut LayerCheck<'_, '_>) -> Option<Arc<dyn LayerKind>> {
    let (input, width) = (c.input(), c.size("width"));
    c.flow = Flow::vectors(width);
    let linear = Linear { input: input?, width: width?, bias: c.bool("bias")? };
    c.count(&[linear.input, linear.width]);
    checked(linear)
}

impl LayerKind for Linear {
    fn name(&self) -> &'static str {
        LAYER.name
    }

    fn lower(&self, l: &mut Lowering, site: Site<'_>, x: Value) -> Result<Value, LowerError> {
        Ok(l.linear_here(x, site.rows, (self.input, self.width), self.bias))
    }

    fn flops(&self, _time: usize, _vocab: usize) -> Flops {
        Flops::products((2 * self.input * self.width) as f64)
    }

    fn resolved(&self) -> BTreeMap<String, ResolvedValue> {
        map([("width", self.width.into()), ("bias", self.bias.into())])
    }
}

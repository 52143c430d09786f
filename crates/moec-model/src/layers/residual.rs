//! `residual { .. }` (He et al. 2015, arXiv 1512.03385): adds what its layers compute to what they are given.

use std::collections::BTreeMap;
use std::sync::Arc;

use moec_ir::{Binary, Op, Value};

use super::spec::LayerSpec;
use crate::check::layer::LayerCheck;
use crate::cost::Flops;
use crate::layer::{self, Layer, LayerKind, Naming, checked};
use crate::lower::lowering::{LowerError, Lowering, Site};
use crate::needs::Needs;
use crate::resolved::{ResolvedValue, map};

pub(super) const LAYER: LayerSpec = LayerSpec {
    name: "residual",
    summary: "adds what its layers compute to what they are given: `residual { .. }`",
    parameters: &[],
    forms: &[],
    has_layers: true,
    equations: "\
y = x + f(x), with f its layers one after the other     x, y [N, C]
Its layers keep the width. They are named as if they stood around it.
Parameters: those of its layers.
Cost per token: C, and its layers.",
    decoding: "As its layers.",
    references: &["He et al. 2015, Deep Residual Learning for Image Recognition, arXiv 1512.03385"],
    check,
};

/// `x + f(x)`
#[derive(Clone, Debug)]
struct Residual {
    /// Width of the vectors, C.
    width: usize,
    layers: Vec<Layer>,
}

fn check(c: &mut LayerCheck<'_, '_>) -> Option<Arc<dyn LayerKind>> {
    let layers = c.layers();
    checked(Residual { width: c.input()?, layers })
}

impl LayerKind for Residual {
    fn name(&self) -> &'static str {
        LAYER.name
    }

    fn layers(&self) -> &[Layer] {
        &self.layers
    }

    fn naming(&self) -> Naming {
        Naming::None
    }

    fn lower(&self, l: &mut Lowering, site: Site<'_>, x: Value) -> Result<Value, LowerError> {
        let branch = l.sequence(&self.layers, site, x)?;
        Ok(l.b().named("residual", Op::Binary(Binary::Add), &[x, branch]))
    }

    fn flops(&self, time: usize, vocab: usize) -> Flops {
        Flops::elementwise(self.width as f64) + layer::flops(&self.layers, time, vocab)
    }

    fn needs(&self) -> Needs {
        layer::needs(&self.layers)
    }

    fn resolved(&self) -> BTreeMap<String, ResolvedValue> {
        map([("layers", ResolvedValue::Layers(layer::resolved(&self.layers)))])
    }
}

//! One iteration of a `repeat` of the model's body, with its scope of names. It has no name in the language.

use std::collections::BTreeMap;

use moec_ir::Value;

use crate::cost::Flops;
use crate::layer::{self, Layer, LayerKind, Naming};
use crate::lower::lowering::{LowerError, Lowering, Site};
use crate::needs::Needs;
use crate::resolved::{ResolvedValue, map};

/// One iteration of a `repeat`.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// Number of the iteration, counted over all repeats of the model.
    pub(crate) index: usize,
    /// Its layers.
    pub(crate) layers: Vec<Layer>,
}

impl LayerKind for Block {
    fn name(&self) -> &'static str {
        ""
    }

    fn layers(&self) -> &[Layer] {
        &self.layers
    }

    fn naming(&self) -> Naming {
        Naming::Block(self.index)
    }

    fn lower(&self, l: &mut Lowering, site: Site<'_>, x: Value) -> Result<Value, LowerError> {
        l.sequence(&self.layers, site, x)
    }

    fn flops(&self, time: usize, vocab: usize) -> Flops {
        layer::flops(&self.layers, time, vocab)
    }

    fn needs(&self) -> Needs {
        layer::needs(&self.layers)
    }

    fn resolved(&self) -> BTreeMap<String, ResolvedValue> {
        map([("layers", ResolvedValue::Layers(layer::resolved(&self.layers)))])
    }
}

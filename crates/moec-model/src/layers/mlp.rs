//! `mlp`: two linear maps with an activation between them, or a gated one of three maps (`swiglu`).

use std::collections::BTreeMap;
use std::sync::Arc;

use moec_ir::Value;

use super::activation::Activation;
use super::spec::{DROPOUT, LayerSpec, TOKENWISE, WIDTH};
use crate::argument::{DefaultValue, ParameterSpec, ParameterType};
use crate::check::layer::LayerCheck;
use crate::cost::Flops;
use crate::layer::{LayerKind, checked};
use crate::lower::lowering::{LowerError, Lowering, Site};
use crate::resolved::{ResolvedValue, map};

/// The word for `silu` of a third map as a gate.
const SWIGLU: &str = "swiglu";

const ACTIVATIONS: [&str; Activation::WORDS.len() + 1] = {
    let mut words = [SWIGLU; Activation::WORDS.len() + 1];
    let mut i = 0;
    while i < Activation::WORDS.len() {
        words[i] = Activation::WORDS[i];
        i += 1;
    }
    words
};

pub(super) const LAYER: LayerSpec = LayerSpec {
    name: "mlp",
    summary: "two linear maps with an activation between them",
    parameters: &[
        ParameterSpec::required("hidden", ParameterType::Int(WIDTH), "width between the maps"),
        ParameterSpec::optional(
            "activation",
            ParameterType::Choice(&ACTIVATIONS),
            DefaultValue::Word(Activation::Relu.name()),
            "function between the maps",
        ),
        DROPOUT,
        ParameterSpec::flag("bias", true, "give the maps biases"),
    ],
    forms: &[],
    has_layers: false,
    equations: "\
h = a(x Wupᵀ + b)                                   relu, gelu, silu as a       x [N, C], h [N, F], F = hidden
h = silu(x Wgateᵀ + b_gate) * (x Wupᵀ + b_up)       swiglu
y = h Wdownᵀ + b_down                               y [N, C]
In training, dropout acts on y.
Parameters: up.weight [F, C], down.weight [C, F], swiglu also gate.weight [F, C]; with bias: true a bias for each.
Cost per token: 4 C F, with swiglu 6 C F.",
    decoding: TOKENWISE,
    references: &[
        "Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762, equation 2",
        "Shazeer 2020, GLU Variants Improve Transformer, arXiv 2002.05202",
    ],
    check,
};

/// A feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mlp {
    /// Width of the vectors, C.
    pub width: usize,
    /// Width between the two maps, F.
    pub hidden: usize,
    /// Function between them; if they are gated, of the gate.
    pub activation: Activation,
    /// Whether a third map is a gate of the first: `a(gate) * up` (Shazeer 2020, arXiv 2002.05202).
    pub gated: bool,
    /// Dropout rate of the output.
    pub dropout: f64,
    /// Whether the maps have biases.
    pub bias: bool,
}

fn check(c: &mut LayerCheck<'_, '_>) -> Option<Arc<dyn LayerKind>> {
    let (activation, gated) = match c.word("activation")? {
        SWIGLU => (Activation::Silu, true),
        word => (Activation::named(word), false),
    };
    let (width, hidden, dropout, bias) = (c.input()?, c.size("hidden")?, c.float("dropout")?, c.bool("bias")?);
    let mlp = Mlp { width, hidden, activation, gated, dropout, bias };
    for _ in 0..mlp.maps() {
        c.count(&[width, hidden]);
    }
    checked(mlp)
}

impl Mlp {
    /// Number of linear maps.
    fn maps(&self) -> usize {
        if self.gated { 3 } else { 2 }
    }
}

impl LayerKind for Mlp {
    fn name(&self) -> &'static str {
        LAYER.name
    }

    fn lower(&self, l: &mut Lowering, site: Site<'_>, x: Value) -> Result<Value, LowerError> {
        let (width, hidden, bias) = (self.width, self.hidden, self.bias);
        let gate = self.gated.then(|| l.linear("gate", x, site.rows, (width, hidden), bias));
        let up = l.linear("up", x, site.rows, (width, hidden), bias);
        let hidden_rows = match gate {
            Some(gate) => {
                let gate = self.activation.lower(l.b(), gate);
                l.b().mul(gate, up)
            }
            None => self.activation.lower(l.b(), up),
        };
        let y = l.linear("down", hidden_rows, site.rows, (hidden, width), bias);
        Ok(l.dropout(y, self.dropout))
    }

    fn flops(&self, _time: usize, _vocab: usize) -> Flops {
        Flops::products((2 * self.maps() * self.width * self.hidden) as f64)
    }

    fn resolved(&self) -> BTreeMap<String, ResolvedValue> {
        let activation = if self.gated { SWIGLU } else { self.activation.name() };
        map([
            ("hidden", self.hidden.into()),
            ("activation", activation.into()),
            ("dropout", self.dropout.into()),
            ("bias", self.bias.into()),
        ])
    }
}

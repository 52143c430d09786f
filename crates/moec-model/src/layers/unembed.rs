//! `unembed`: scores of the vocabulary.

use std::collections::BTreeMap;
use std::sync::Arc;

use moec_ir::Value;
use moec_syntax::{Code, Diagnostic};

use super::embed::tied_weights;
use super::spec::{LayerSpec, TOKENWISE};
use crate::argument::ParameterSpec;
use crate::check::layer::{Flow, LayerCheck};
use crate::cost::Flops;
use crate::emit::Role;
use crate::layer::{LayerKind, checked};
use crate::lower::lowering::{LowerError, Lowering, Site};
use crate::resolved::{ResolvedValue, map};

pub(super) const LAYER: LayerSpec = LayerSpec {
    name: "unembed",
    summary: "scores of the vocabulary; the last layer of a model",
    parameters: &[
        ParameterSpec::flag("tied", false, "use the token vectors as weights"),
        ParameterSpec::flag("bias", true, "add a bias"),
    ],
    forms: &[],
    has_layers: false,
    equations: "\
logits = x Wᵀ + b       x [N, C], logits [N, V]
Parameters: weight [V, C], or with tied: true token.weight of `embed`; with bias: true also bias [V].
Cost per token: 2 C V.",
    decoding: TOKENWISE,
    references: &["Press & Wolf 2016, Using the Output Embedding to Improve Language Models, arXiv 1608.05859"],
    check,
};

/// Scores of the vocabulary.
#[derive(Clone, Copy, Debug)]
struct Unembed {
    /// Width of what it is given, C.
    width: usize,
    /// Uses the token vectors as weights.
    tied: bool,
    /// Whether it has a bias.
    bias: bool,
}

fn check(c: &mut LayerCheck<'_, '_>) -> Option<Arc<dyn LayerKind>> {
    if !c.at_top() {
        let d = Diagnostic::new(Code::UnembedPlacement, "`unembed` must stand directly in the body of the model")
            .primary(c.name_span(), "misplaced");
        c.report(d);
        return None;
    }
    let input = c.input();
    c.flow = Flow::Logits;
    let unembed = Unembed { width: input?, tied: c.bool("tied")?, bias: c.bool("bias")? };
    let (width, vocab) = (c.model().width, c.model().vocab);
    match (unembed.tied, width, vocab) {
        (true, Some(width), _) if width != unembed.width => {
            let message = format!("a tied `unembed` needs the width of `embed`, {width}, not {}", unembed.width);
            let d = Diagnostic::new(Code::WidthMismatch, message)
                .primary(c.name_span(), format!("this is given vectors of width {}", unembed.width))
                .help("remove `tied: true`, or add a `linear` in front");
            c.report(d);
            return None;
        }
        (false, _, Some(vocab)) => c.count(&[vocab, unembed.width]),
        (true | false, _, _) => {}
    }
    checked(unembed)
}

impl LayerKind for Unembed {
    fn name(&self) -> &'static str {
        LAYER.name
    }

    fn lower(&self, l: &mut Lowering, _: Site<'_>, x: Value) -> Result<Value, LowerError> {
        let (vocab, width) = (l.options.vocab, self.width);
        let weight = if self.tied {
            tied_weights(l, width)?
        } else {
            l.emitter.parameter("weight", [vocab, width], Role::Scores { width, vocab })
        };
        let bias = self.bias.then(|| l.emitter.parameter("bias", [vocab], Role::Bias { fan_in: width }));
        Ok(l.product(x, weight, bias))
    }

    fn flops(&self, _time: usize, vocab: usize) -> Flops {
        Flops::products((2 * self.width * vocab) as f64)
    }

    fn resolved(&self) -> BTreeMap<String, ResolvedValue> {
        map([("tied", self.tied.into()), ("bias", self.bias.into())])
    }
}

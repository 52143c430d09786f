//! `embed`: token vectors, and learned position vectors if asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use moec_ir::{Input, Op, TOKEN_TABLE, TensorType, Value};
use moec_syntax::{Code, Diagnostic};

use super::spec::{LayerSpec, WIDTH};
use crate::argument::{DefaultValue, ParameterSpec, ParameterType};
use crate::check::layer::{Flow, LayerCheck};
use crate::cost::Flops;
use crate::emit::Role;
use crate::layer::{LayerKind, checked};
use crate::lower::lowering::{LowerError, Lowering, Site};
use crate::model::Positions;
use crate::needs::Needs;
use crate::resolved::{ResolvedValue, map};

/// Name of the table of learned positions.
const POSITION_TABLE: &str = "position.weight";

pub(super) const LAYER: LayerSpec = LayerSpec {
    name: "embed",
    summary: "token vectors, and learned position vectors if asked; the first layer of a model",
    parameters: &[
        ParameterSpec::required("width", ParameterType::Int(WIDTH), "width of the model"),
        ParameterSpec::optional(
            "positions",
            ParameterType::Choice(&Positions::WORDS),
            DefaultValue::Word(Positions::Learned.word()),
            "how positions enter the model",
        ),
    ],
    forms: &[],
    has_layers: false,
    equations: "\
y_t = token[id_t] + position[t]     learned: id i32 [N], y [N, C], t the place in the sequence
y_t = token[id_t]                   rotary (positions turn queries and keys of `attention`) and none
Parameters: token.weight [V, C]; learned also position.weight [T, C].
Cost per token: C.",
    decoding: "Needs the newest token only. With learned positions, what is kept holds until the window is full.",
    references: &["Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762"],
    check,
};

/// Token vectors, plus position vectors if they are learned.
#[derive(Clone, Copy, Debug)]
struct Embed {
    /// Width of the vectors, C.
    width: usize,
    /// How positions enter the model.
    positions: Positions,
}

fn check(c: &mut LayerCheck<'_, '_>) -> Option<Arc<dyn LayerKind>> {
    let (begins, width) = (c.begins_model(), c.size("width"));
    c.flow = Flow::vectors(width);
    if let Err(message) = begins {
        let d = Diagnostic::new(Code::EmbedPlacement, message).primary(c.name_span(), "misplaced");
        c.report(d);
        return None;
    }
    let positions = Positions::named(c.word("positions")?);
    let model = c.model();
    model.positions = positions;
    model.width = width;
    let (context, vocab, width) = (model.context, model.vocab, width?);
    if let (Positions::Learned, Some(context)) = (positions, context) {
        c.count(&[context, width]);
    }
    if let Some(vocab) = vocab {
        c.count(&[vocab, width]);
    }
    checked(Embed { width, positions })
}

/// The table of token vectors, which `embed` has declared, as weights of the scores: it starts small, and the vectors of
/// positions with it.
///
/// # Errors
/// When a layer is built without the model that it stands in.
pub(super) fn tied_weights(l: &mut Lowering, width: usize) -> Result<Value, LowerError> {
    let graph = l.emitter.builder.graph();
    let table = graph.find(TOKEN_TABLE).map(|id| graph.value(id));
    for table in [TOKEN_TABLE, POSITION_TABLE] {
        l.emitter.start_as(table, Role::TiedEmbedding { width });
    }
    table.ok_or_else(|| LowerError::Alone("a tied `unembed` has no weights without an `embed`".into()))
}

impl LayerKind for Embed {
    fn name(&self) -> &'static str {
        LAYER.name
    }

    fn lower(&self, l: &mut Lowering, _: Site<'_>, ids: Value) -> Result<Value, LowerError> {
        let (vocab, time, batch) = (l.options.vocab, l.sequence_length, l.options.batch);
        let (newest, width) = (l.newest(), self.width);
        let table = l.emitter.parameter("token.weight", [vocab, width], Role::Embedding);
        let tokens = l.b().op(Op::Embed, &[ids, table]);
        if self.positions != Positions::Learned {
            return Ok(tokens);
        }
        let table = l.emitter.parameter(POSITION_TABLE, [time, width], Role::Embedding);
        let b = l.b();
        let positions = if newest {
            let places = b.input(Input::Positions, TensorType::i32([batch]));
            b.op(Op::Embed, &[places, table])
        } else {
            let positions = b.broadcast(table, [batch, time, width]);
            b.reshape(positions, [batch * time, width])
        };
        Ok(b.add(tokens, positions))
    }

    fn flops(&self, _time: usize, _vocab: usize) -> Flops {
        Flops::elementwise(self.width as f64)
    }

    fn needs(&self) -> Needs {
        Needs { ids: true, places: self.positions == Positions::Learned, ..Needs::default() }
    }

    fn resolved(&self) -> BTreeMap<String, ResolvedValue> {
        map([("width", self.width.into()), ("positions", self.positions.word().into())])
    }
}

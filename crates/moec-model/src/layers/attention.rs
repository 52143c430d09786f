//! `attention`: causal self-attention of several heads (Vaswani et al. 2017, arXiv 1706.03762).

use std::collections::BTreeMap;
use std::sync::Arc;

use moec_ir::{AttentionAttrs, Input, Op, StateRole, TensorType, Value};
use moec_syntax::{Code, Diagnostic};

use super::spec::{DROPOUT, LayerSpec};
use crate::argument::{DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::check::layer::LayerCheck;
use crate::cost::Flops;
use crate::layer::{LayerKind, checked};
use crate::lower::lowering::{LowerError, Lowering, Rows, Site};
use crate::model::Positions;
use crate::needs::Needs;
use crate::resolved::{ResolvedValue, map};

pub(super) const LAYER: LayerSpec = LayerSpec {
    name: "attention",
    summary: "causal self-attention of several heads with an output projection",
    parameters: &[
        ParameterSpec::required(
            "heads",
            ParameterType::Int(Interval::at_least(1.0)),
            "number of heads; divides the width",
        ),
        ParameterSpec::optional(
            "scale",
            ParameterType::Choice(&["head", "width"]),
            DefaultValue::Word("head"),
            "divide scores by the root of the head's width, or of the model's (makeMoE)",
        ),
        DROPOUT,
        ParameterSpec::flag("bias", false, "give queries, keys and values a bias"),
    ],
    forms: &[],
    has_layers: false,
    equations: "\
q, k, v = x Wqkvᵀ, split into H heads of width D = C / H    x [N, C], q, k, v [B, H, T, D]
p = softmax over s <= t of (q_t . k_s) / sqrt(D)            scale: head; sqrt(C) with scale: width
y = (concatenated sum_s p_s v_s) Wprojᵀ + b                 y [N, C]
With positions: rotary of `embed`, q and k are first turned by their place in the sequence.
Dropout, in training, acts on p and on y.
Parameters: qkv.weight [3 C, C], with bias: true qkv.bias [3 C]; proj.weight [C, C], proj.bias [C].
Cost per token: 8 C^2 + 2 C (T + 1), as a token sees half of the others on average.",
    decoding: "Keeps keys and values of the last T tokens in cache.PATH [B, T, 2 C]: a token costs one row of scores.",
    references: &[
        "Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762",
        "Su et al. 2021, RoFormer: Enhanced Transformer with Rotary Position Embedding, arXiv 2104.09864",
    ],
    check,
};

/// Causal self-attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Width of the vectors, C.
    pub width: usize,
    /// Number of heads, H.
    pub heads: usize,
    /// Factor of the scores.
    pub scale: f64,
    /// Dropout rate of the probabilities and of the output.
    pub dropout: f64,
    /// Whether queries, keys and values have a bias; the output projection always has one.
    pub bias: bool,
    /// Whether queries and keys are rotated by their position.
    pub rotary: bool,
}

fn check(c: &mut LayerCheck<'_, '_>) -> Option<Arc<dyn LayerKind>> {
    if c.in_expert() {
        let d = Diagnostic::new(Code::ExpertNotTokenwise, "an expert cannot contain `attention`")
            .primary(c.name_span(), "this layer looks at several tokens")
            .note("an expert is given the tokens routed to it, in no sequence")
            .help("put `attention` in front of the `moe`");
        c.report(d);
        return None;
    }
    let (width, heads) = (c.input()?, c.size("heads")?);
    let rotary = c.model().positions == Positions::Rotary;
    let head_width = head_width(c, width, heads, rotary)?;
    c.count(&[3, width, width]);
    c.count(&[width, width]);
    let scaled_by = if c.word("scale")? == "width" { width } else { head_width };
    checked(Attention {
        width,
        heads,
        scale: (scaled_by as f64).sqrt().recip(),
        dropout: c.float("dropout")?,
        bias: c.bool("bias")?,
        rotary,
    })
}

/// Width of a head, if there is one for this number of heads.
fn head_width(c: &mut LayerCheck<'_, '_>, width: usize, heads: usize, rotary: bool) -> Option<usize> {
    let at = c.argument_span("heads");
    if !width.is_multiple_of(heads) {
        let near: Vec<String> = divisors_near(width, heads).into_iter().map(|n| format!("`heads: {n}`")).collect();
        let d = Diagnostic::new(Code::HeadsDoNotDivideWidth, format!("{heads} heads do not divide width {width}"))
            .primary(at, format!("expected a divisor of {width}"))
            .help(format!("the nearest are {}", near.join(" and ")));
        c.report(d);
        return None;
    }
    let head_width = width / heads;
    if rotary && !head_width.is_multiple_of(2) {
        let message = format!("rotary positions need heads of even width, and these have width {head_width}");
        let d = Diagnostic::new(Code::RotaryHeadWidth, message)
            .primary(at, format!("{width} / {heads} = {head_width}"))
            .help("change the number of heads or the width, or use `positions: learned`");
        c.report(d);
        return None;
    }
    Some(head_width)
}

/// The nearest divisors of `n` below and above `near`.
fn divisors_near(n: usize, near: usize) -> Vec<usize> {
    let below = (1..near.min(n + 1)).rev().find(|&d| n.is_multiple_of(d));
    let above = (near.saturating_add(1)..=n).find(|&d| n.is_multiple_of(d));
    below.into_iter().chain(above).collect()
}

impl Attention {
    /// Queries and keys turned by their position; `qkv` is `[N, 3C]`.
    fn rotated(&self, l: &mut Lowering, site: Site<'_>, qkv: Value) -> Value {
        // The base of the paper.
        let base = 10_000.0.into();
        let mut operands = vec![qkv];
        // Rows that were taken from a sequence keep their positions in it.
        let positions = !site.gathers.is_empty() || l.newest();
        if positions {
            let source = l.source(site);
            operands.push(source.positions(l.b()));
        }
        l.b().op(Op::Rotary { heads: self.heads, time: site.time, base, inverse: false, positions }, &operands)
    }

    /// Attention of the newest tokens over the keys and values that are kept from those before them.
    fn cached(&self, l: &mut Lowering, qkv: Value) -> Value {
        let (batch, time) = (l.options.batch, l.sequence_length);
        let name = format!("cache.{}", l.path());
        let b = l.b();
        let cache = b.state_for(StateRole::Cache, &name, TensorType::f32([batch, time, 2 * self.width]));
        let positions = b.input(Input::Positions, TensorType::i32([batch]));
        let op = Op::CachedAttention { heads: self.heads, scale: self.scale.into() };
        let y = b.op(op, &[qkv, cache, positions]);
        b.update(name, y.result(1));
        y
    }
}

impl LayerKind for Attention {
    fn name(&self) -> &'static str {
        LAYER.name
    }

    fn lower(&self, l: &mut Lowering, site: Site<'_>, x: Value) -> Result<Value, LowerError> {
        let width = self.width;
        let mut qkv = l.linear("qkv", x, Rows::Tokens, (width, 3 * width), self.bias);
        if self.rotary {
            qkv = self.rotated(l, site, qkv);
        }
        if l.newest() {
            let y = self.cached(l, qkv);
            return Ok(l.linear("proj", y, Rows::Tokens, (width, width), true));
        }
        let dropout = if l.training() { self.dropout } else { 0.0 };
        let (key, rng) = if dropout > 0.0 { (l.b().fresh_key(), Some(l.emitter.rng())) } else { (0, None) };
        let (heads, time) = (self.heads, site.time);
        let attrs = AttentionAttrs { heads, time, scale: self.scale.into(), dropout: dropout.into(), key };
        let heads = l.b().attention(attrs, qkv, rng);
        let y = l.linear("proj", heads, Rows::Tokens, (width, width), true);
        Ok(l.dropout(y, self.dropout))
    }

    fn flops(&self, time: usize, _vocab: usize) -> Flops {
        // Scores and weighted values over T/2 positions on average, and four square maps.
        Flops::products((8 * self.width * self.width + 2 * self.width * (time + 1)) as f64)
    }

    fn needs(&self) -> Needs {
        Needs { keys: true, ..Needs::default() }
    }

    fn resolved(&self) -> BTreeMap<String, ResolvedValue> {
        map([
            ("heads", self.heads.into()),
            ("scale", self.scale.into()),
            ("dropout", self.dropout.into()),
            ("bias", self.bias.into()),
            ("rotary", self.rotary.into()),
        ])
    }
}

//! `attention`: causal self-attention of several heads (Vaswani et al. 2017, arXiv 1706.03762).

use std::collections::BTreeMap;
use std::sync::Arc;

use moec_ir::{AttentionAttrs, Builder, Input, Invariant, Op, StateRole, TensorType, Value};
use moec_syntax::{Code, Diagnostic};

use super::spec::{DROPOUT, LayerSpec};
use crate::argument::{DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::check::layer::LayerCheck;
use crate::cost::Flops;
use crate::emit::Role;
use crate::layer::{LayerKind, checked};
use crate::lower::lowering::{LowerError, Lowering, Rows, Site};
use crate::model::Positions;
use crate::needs::Needs;
use crate::resolved::{ResolvedValue, map};

/// What the norm of queries and keys adds to the mean square where nothing is said.
const DEFAULT_EPSILON: f64 = 1e-6;

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
            "kv_heads",
            ParameterType::Int(Interval::at_least(1.0)),
            DefaultValue::Absent("as heads"),
            "number of heads of keys and values, each for as many heads of queries; divides `heads`",
        ),
        ParameterSpec::optional(
            "window",
            ParameterType::Int(Interval::at_least(1.0)),
            DefaultValue::Absent("everything before"),
            "number of positions that a token sees, its own among them",
        ),
        ParameterSpec::flag("sink", false, "give each head a trained score without a value, which takes part in every softmax"),
        ParameterSpec::optional(
            "scale",
            ParameterType::Choice(&["head", "width"]),
            DefaultValue::Word("head"),
            "divide scores by the root of the head's width, or of the model's (makeMoE)",
        ),
        DROPOUT,
        ParameterSpec::flag("bias", false, "give queries, keys and values a bias"),
        ParameterSpec::flag("output_bias", true, "give the output projection a bias"),
        ParameterSpec::optional(
            "norm",
            ParameterType::Choice(&QueryNorm::WORDS),
            DefaultValue::Word(QueryNorm::None.word()),
            "normalise queries and keys: those of each head, or of all heads together",
        ),
        ParameterSpec::optional(
            "norm_epsilon",
            ParameterType::Float(Interval::above(0.0)),
            DefaultValue::Float(DEFAULT_EPSILON),
            "added to the mean square by that norm",
        ),
    ],
    forms: &[],
    has_layers: false,
    equations: "\
q, k, v = x Wqkvᵀ, split into H heads of width D = C / H    x [N, C], q, k, v [B, H, T, D]
p = softmax over s <= t of (q_t . k_s) / sqrt(D)            scale: head; sqrt(C) with scale: width
y = (concatenated sum_s p_s v_s) Wprojᵀ + b                 y [N, C]
norm: head   q = q / sqrt(mean(q^2) + norm_epsilon) * gain over the channels of each head, and k likewise, first of all
norm: width  the same over the channels of all heads together
window: W     s runs over t - W < s <= t
sink: true    p = exp(score) / (exp(sink_h) + sum over s of exp(score)): the rest goes to nothing
kv_heads: G   q = x Wqᵀ, k = x Wkᵀ, v = x Wvᵀ with G heads in k and v [N, G D], each of which serves H / G heads of q
With positions: rotary of `embed`, q and k are then turned by their place in the sequence.
Dropout, in training, acts on p and on y.
Parameters: qkv.weight [3 C, C], with bias: true qkv.bias [3 C]; proj.weight [C, C], with output_bias: true
proj.bias [C]; with a norm query_norm.gain and key_norm.gain, [D] or [C], which start at 1. With kv_heads, instead of qkv,
query.weight [C, C], key.weight and value.weight [G D, C], and their biases. sink [H], which starts at 0.
Cost per token: 8 C^2 + 2 C (T + 1), as a token sees half of the others on average; with kv_heads 4 C^2 + 4 C G D + 2 C (T + 1).
With a window W < T, a token sees W - W (W - 1) / (2 T) on average instead of (T + 1) / 2.",
    decoding: "Keeps keys and values of the last T tokens in cache.PATH [B, T, 2 C], or of the last W: a token costs one row of \
               scores. With kv_heads they are kept for every head of queries.",
    references: &[
        "Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762",
        "Henry et al. 2020, Query-Key Normalization for Transformers, arXiv 2010.04245 (norm, with the root mean square)",
        "Ainslie et al. 2023, GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints, arXiv \
         2305.13245 (kv_heads)",
        "Beltagy et al. 2020, Longformer: The Long-Document Transformer, arXiv 2004.05150 (window)",
        "Xiao et al. 2023, Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453, and OpenAI 2025, gpt-oss, \
         arXiv 2508.10925 (sink)",
        "Su et al. 2021, RoFormer: Enhanced Transformer with Rotary Position Embedding, arXiv 2104.09864",
    ],
    check,
};

/// How queries and keys are normalised before anything else is done with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryNorm {
    /// Not at all.
    None,
    /// By the root mean square of each head, with one gain for all of them (Qwen3).
    Head,
    /// By the root mean square of all heads together (OLMoE).
    Width,
}

impl QueryNorm {
    const ALL: [QueryNorm; 3] = [QueryNorm::None, QueryNorm::Head, QueryNorm::Width];

    const WORDS: [&'static str; 3] = [Self::ALL[0].word(), Self::ALL[1].word(), Self::ALL[2].word()];

    /// The word of the language.
    pub const fn word(self) -> &'static str {
        match self {
            QueryNorm::None => "none",
            QueryNorm::Head => "head",
            QueryNorm::Width => "width",
        }
    }

    /// The norm of a word that has been checked.
    fn named(word: &str) -> Self {
        let found = Self::ALL.into_iter().find(|norm| norm.word() == word);
        found.invariant("the word of a norm is one of those that are declared")
    }
}

/// Causal self-attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Width of the vectors, C.
    pub width: usize,
    /// Number of heads, H.
    pub heads: usize,
    /// Number of heads of keys and values, G; that of the others unless less were asked for.
    pub kv_heads: usize,
    /// How many positions a token sees, if not all up to its own.
    pub window: Option<usize>,
    /// Whether each head has a sink.
    pub sink: bool,
    /// Factor of the scores.
    pub scale: f64,
    /// Dropout rate of the probabilities and of the output.
    pub dropout: f64,
    /// Whether queries, keys and values have a bias.
    pub bias: bool,
    /// Whether the output projection has one.
    pub output_bias: bool,
    /// How queries and keys are normalised.
    pub norm: QueryNorm,
    /// Added to the mean square by that norm.
    pub norm_epsilon: f64,
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
    let kv_heads = kv_heads(c, heads)?;
    let [queries, keys] = [width, kv_heads * head_width];
    c.count(&[queries + 2 * keys, width]);
    c.count(&[width, width]);
    let (norm, norm_epsilon) = (QueryNorm::named(c.word("norm")?), c.float("norm_epsilon")?);
    if norm == QueryNorm::None && norm_epsilon != DEFAULT_EPSILON {
        let d = Diagnostic::new(Code::ArgumentsConflict, "`norm_epsilon` has no use without `norm`")
            .primary(c.argument_span("norm_epsilon"), "queries and keys are not normalised")
            .help("add `norm: head` or `norm: width`, or leave `norm_epsilon` out");
        c.report(d);
        return None;
    }
    if norm == QueryNorm::Width && kv_heads < heads {
        let d = Diagnostic::new(Code::ArgumentsConflict, "`norm: width` does not go together with `kv_heads`")
            .primary(c.argument_span("norm"), "a gain for every channel of all heads")
            .secondary(c.argument_span("kv_heads"), "keys have fewer heads than queries")
            .help("use `norm: head`");
        c.report(d);
        return None;
    }
    let scaled_by = if c.word("scale")? == "width" { width } else { head_width };
    checked(Attention {
        width,
        heads,
        kv_heads,
        window: window(c)?,
        sink: c.bool("sink")?,
        scale: (scaled_by as f64).sqrt().recip(),
        dropout: c.float("dropout")?,
        bias: c.bool("bias")?,
        output_bias: c.bool("output_bias")?,
        norm,
        norm_epsilon,
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

/// Number of heads of keys and values, which must divide that of the others.
fn kv_heads(c: &mut LayerCheck<'_, '_>, heads: usize) -> Option<usize> {
    let Some(kv_heads) = c.size("kv_heads") else { return (!c.is_given("kv_heads")).then_some(heads) };
    if heads.is_multiple_of(kv_heads) {
        return Some(kv_heads);
    }
    let near: Vec<String> = divisors_near(heads, kv_heads).into_iter().map(|n| format!("`kv_heads: {n}`")).collect();
    let message = format!("{kv_heads} heads of keys do not divide the {heads} heads of queries");
    let d = Diagnostic::new(Code::ArgumentsConflict, message)
        .primary(c.argument_span("kv_heads"), format!("expected a divisor of {heads}"))
        .secondary(c.argument_span("heads"), format!("{heads} heads"))
        .help(format!("the nearest are {}", near.join(" and ")));
    c.report(d);
    None
}

/// How many positions a token sees, if it is said; `None` if what is said is wrong. A window that is longer than the context is no
/// limit, as where a model is tried on short texts.
fn window(c: &mut LayerCheck<'_, '_>) -> Option<Option<usize>> {
    match c.size("window") {
        None if c.is_given("window") => None,
        window => Some(window),
    }
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

    /// Queries, keys and values side by side, `[N, 3C]`; keys and values once for each head of queries that they serve.
    fn projected(&self, l: &mut Lowering, x: Value) -> Value {
        let (width, head_width) = (self.width, self.width / self.heads);
        if self.kv_heads == self.heads {
            return l.linear("qkv", x, Rows::Tokens, (width, 3 * width), self.bias);
        }
        let keys = self.kv_heads * head_width;
        let parts = [("query", width), ("key", keys), ("value", keys)];
        let parts = parts.map(|(name, output)| l.linear(name, x, Rows::Tokens, (width, output), self.bias));
        let b = l.b();
        let tokens = b.extent(x, 0);
        let groups = self.heads / self.kv_heads;
        let mut sum = None;
        for (part, mask) in parts.into_iter().zip(kinds(b)) {
            let all = if b.columns(part) == width {
                part
            } else {
                let each = b.reshape(part, [tokens * self.kv_heads, 1, head_width]);
                b.broadcast(each, [tokens * self.kv_heads, groups, head_width])
            };
            let all = b.reshape(all, [tokens, 1, width]);
            let all = b.broadcast(all, [tokens, 3, width]);
            let mask = b.reshape(mask, [1, 3, 1]);
            let mask = b.broadcast(mask, [tokens, 3, width]);
            let placed = b.mul(all, mask);
            sum = Some(match sum {
                Some(sum) => b.add(sum, placed),
                None => placed,
            });
        }
        let sum = sum.invariant("there are queries, keys and values");
        b.reshape(sum, [tokens, 3 * width])
    }

    /// Queries and keys divided by their root mean square; `qkv` is `[N, 3C]`, and its values stay as they are.
    fn normalised(&self, l: &mut Lowering, qkv: Value) -> Value {
        let (groups, width) = match self.norm {
            QueryNorm::None => return qkv,
            QueryNorm::Head => (self.heads, self.width / self.heads),
            QueryNorm::Width => (1, self.width),
        };
        let mut gain = |name| l.opened(name, |l| l.emitter.parameter("gain", [width], Role::Constant(1.0)));
        let gains = [gain("query_norm"), gain("key_norm")];
        let b = l.b();
        let tokens = b.extent(qkv, 0);
        let parts = b.reshape(qkv, [tokens, 3 * groups, width]);
        let one = b.fill(1.0, [width]);
        let normed = b.op(Op::RmsNorm { epsilon: self.norm_epsilon.into() }, &[parts, one]);
        let kinds = kinds(b);
        let of_rows = |b: &mut Builder, column: Value| {
            let all = b.broadcast(column, [3, width]);
            let all = b.reshape(all, [3, 1, width]);
            let all = b.broadcast(all, [3, groups, width]);
            b.reshape(all, [3 * groups, width])
        };
        let [query, key, value] = kinds.map(|column| of_rows(b, column));
        let (query, key) = (b.mul(query, gains[0]), b.mul(key, gains[1]));
        let gain = b.add(query, key);
        let turned = b.mul(normed, gain);
        let kept = b.mul(parts, value);
        let y = b.add(turned, kept);
        b.reshape(y, [tokens, 3 * self.width])
    }

    /// The score of each head's sink, `[H]`, if there are sinks.
    fn sinks(&self, l: &mut Lowering) -> Option<Value> {
        self.sink.then(|| l.emitter.parameter("sink", [self.heads], Role::Constant(0.0)))
    }

    /// Attention of the newest tokens over the keys and values that are kept from those before them.
    fn cached(&self, l: &mut Lowering, qkv: Value) -> Value {
        let (batch, time) = (l.options.batch, l.sequence_length);
        let name = format!("cache.{}", l.path());
        let sinks = self.sinks(l);
        let b = l.b();
        let kept = self.window.map_or(time, |window| window.min(time));
        let cache = b.state_for(StateRole::Cache, &name, TensorType::f32([batch, kept, 2 * self.width]));
        let positions = b.input(Input::Positions, TensorType::i32([batch]));
        let op = Op::CachedAttention { heads: self.heads, scale: self.scale.into(), sink: self.sink };
        let operands: Vec<Value> = [qkv, cache, positions].into_iter().chain(sinks).collect();
        let y = b.op(op, &operands);
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
        let mut qkv = self.projected(l, x);
        qkv = self.normalised(l, qkv);
        if self.rotary {
            qkv = self.rotated(l, site, qkv);
        }
        if l.newest() {
            let y = self.cached(l, qkv);
            return Ok(l.linear("proj", y, Rows::Tokens, (width, width), self.output_bias));
        }
        let dropout = if l.training() { self.dropout } else { 0.0 };
        let (key, rng) = if dropout > 0.0 { (l.b().fresh_key(), Some(l.emitter.rng())) } else { (0, None) };
        let (heads, time) = (self.heads, site.time);
        let attrs = AttentionAttrs {
            dropout: dropout.into(),
            key,
            window: self.window.unwrap_or(usize::MAX),
            sink: self.sink,
            ..AttentionAttrs::causal(heads, time, self.scale)
        };
        let sinks = self.sinks(l);
        let heads = l.b().attention(attrs, qkv, rng, sinks);
        let y = l.linear("proj", heads, Rows::Tokens, (width, width), self.output_bias);
        Ok(l.dropout(y, self.dropout))
    }

    fn flops(&self, time: usize, _vocab: usize) -> Flops {
        // Scores and weighted values over what a token sees, and four maps, two of them of keys and values.
        let keys = self.width / self.heads * self.kv_heads;
        let window = self.window.unwrap_or(usize::MAX);
        let seen = AttentionAttrs { window, ..AttentionAttrs::causal(self.heads, time, self.scale) }.seen_on_average();
        Flops::products((4 * self.width * (self.width + keys)) as f64 + 4.0 * self.width as f64 * seen)
    }

    fn needs(&self) -> Needs {
        Needs { keys: true, ..Needs::default() }
    }

    fn resolved(&self) -> BTreeMap<String, ResolvedValue> {
        let mut arguments = map([
            ("heads", self.heads.into()),
            ("scale", self.scale.into()),
            ("dropout", self.dropout.into()),
            ("bias", self.bias.into()),
            ("output_bias", self.output_bias.into()),
            ("norm", self.norm.word().into()),
            ("norm_epsilon", self.norm_epsilon.into()),
            ("rotary", self.rotary.into()),
        ]);
        if self.kv_heads < self.heads {
            arguments.insert("kv_heads".into(), self.kv_heads.into());
        }
        if let Some(window) = self.window {
            arguments.insert("window".into(), window.into());
        }
        if self.sink {
            arguments.insert("sink".into(), true.into());
        }
        arguments
    }
}

/// `[3, 1]` for queries, keys and values each: 1 in its own row, and 0 in the others.
fn kinds(b: &mut Builder) -> [Value; 3] {
    // 0 for the rows of queries, 1 for those of keys, 2 for those of values; of which polynomials are 1 for one kind and 0
    // for the others, exactly.
    let kind = b.ramp(3, 1);
    let kind = b.to_float(kind);
    let kind = b.reshape(kind, [3, 1]);
    let less_one = b.add_scalar(kind, -1.0);
    let to_two = b.scale(kind, -1.0);
    let to_two = b.add_scalar(to_two, 2.0);
    let is_query = b.mul(less_one, to_two);
    let is_query = b.scale(is_query, -0.5);
    let is_key = b.mul(kind, to_two);
    let is_value = b.mul(kind, less_one);
    let is_value = b.scale(is_value, 0.5);
    [is_query, is_key, is_value]
}

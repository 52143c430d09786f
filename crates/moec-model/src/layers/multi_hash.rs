//! `multi_hash` (Roller et al. 2021, arXiv 2106.04426, section 3): both maps of a feed-forward layer are split into as
//! many blocks of output channels as there are hashes, and each hash of the token chooses one of E weights for its block.
//!
//! A token and a hash are a slot, block m of bucket k is expert `m * E + k`, so each map is one grouped product over N*M
//! rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use moec_ir::{Builder, DType, Data, Op, Tensor, TensorType, Value};
use moec_syntax::{Code, Diagnostic};

use super::activation::Activation;
use super::spec::{DROPOUT, LayerSpec, WIDTH};
use crate::argument::{DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::check::layer::LayerCheck;
use crate::cost::Flops;
use crate::layer::{LayerKind, checked};
use crate::lower::lowering::{LowerError, Lowering, Rows, Site};
use crate::needs::Needs;
use crate::resolved::{ResolvedValue, map};
use crate::router::Gather;
use crate::routers::drawn_bucket;
use crate::state::{StateInit, StateSource};

pub(super) const LAYER: LayerSpec = LayerSpec {
    name: "multi_hash",
    summary: "a feed-forward layer whose weights are put together from blocks that hashes of the token choose",
    parameters: &[
        ParameterSpec::required("hidden", ParameterType::Int(WIDTH), "width between the maps"),
        ParameterSpec::required(
            "buckets",
            ParameterType::Int(Interval::closed(1.0, 65_536.0)),
            "weights that each hash chooses from",
        ),
        ParameterSpec::optional(
            "hashes",
            ParameterType::Int(Interval::closed(1.0, 1_024.0)),
            DefaultValue::Int(2),
            "number of hashes; divides both widths",
        ),
        ParameterSpec::optional(
            "activation",
            ParameterType::Choice(&Activation::WORDS),
            DefaultValue::Word(Activation::Relu.name()),
            "function between the maps",
        ),
        DROPOUT,
        ParameterSpec::optional(
            "seed",
            ParameterType::Int(Interval::at_least(0.0)),
            DefaultValue::Int(0),
            "seed of the hash tables",
        ),
    ],
    forms: &[],
    has_layers: false,
    equations: "\
k_m = table[m, id], m = 1 .. M                                      id i32 [N], M = hashes
v = a([A_1(k_1) x + b, .., A_M(k_M) x + b])                         x [N, C], v [N, F], F = hidden
y = [B_1(k_1) v + b, .., B_M(k_M) v + b]                            y [N, C]
Each A_m(k) maps C to F / M channels, each B_m(k) F to C / M, for each of E = buckets.
Parameters: up.weight [M E, F / M, C], up.bias [M E, F / M], down.weight [M E, C / M, F], down.bias [M E, C / M].
State: table i32 [M, V].
Cost per token: 4 C F.",
    decoding: "Needs the newest token only, and its number in the vocabulary: nothing is kept.",
    references: &["Roller et al. 2021, Hash Layers For Large Sparse Models, arXiv 2106.04426"],
    check,
};

/// The feed-forward layer of MultiHash (Roller et al. 2021, arXiv 2106.04426).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MultiHash {
    /// Width of the vectors, C.
    pub width: usize,
    /// Width between the two maps, F.
    pub hidden: usize,
    /// Weight blocks that each hash chooses from.
    pub buckets: usize,
    /// Number of hashes: the maps are split into as many blocks.
    pub hashes: usize,
    /// Function between the maps.
    pub activation: Activation,
    /// Dropout rate of the output.
    pub dropout: f64,
    /// Seed of the hash tables.
    pub seed: usize,
}

fn check(c: &mut LayerCheck<'_, '_>) -> Option<Arc<dyn LayerKind>> {
    if c.in_expert() {
        let d = Diagnostic::new(Code::ExpertNotTokenwise, "an expert cannot contain `multi_hash`")
            .primary(c.name_span(), "this layer chooses its weights by token, as a router does")
            .help("use it in place of the `moe`");
        c.report(d);
        return None;
    }
    let (input, hidden, hashes) = (c.input()?, c.size("hidden"), c.size("hashes")?);
    for (what, width) in [("width of the model", Some(input)), ("hidden width", hidden)] {
        let Some(width) = width.filter(|width| !width.is_multiple_of(hashes)) else { continue };
        let d = Diagnostic::new(Code::WidthMismatch, format!("{hashes} hashes do not divide the {what}, {width}"))
            .primary(c.argument_span("hashes"), format!("expected a divisor of {width}"))
            .note("each hash chooses the weights of an equal block of channels");
        c.report(d);
        return None;
    }
    let hash = MultiHash {
        width: input,
        hidden: hidden?,
        buckets: c.size("buckets")?,
        hashes,
        activation: Activation::named(c.word("activation")?),
        dropout: c.float("dropout")?,
        seed: c.size("seed")?,
    };
    for _map in ["up", "down"] {
        c.count(&[hash.buckets, input, hash.hidden]);
    }
    checked(hash)
}

impl MultiHash {
    /// The block of each token and hash, i32 `[N, M]`: block m of the bucket that hash m of the token chooses.
    fn blocks(&self, l: &mut Lowering, site: Site<'_>, tokens: usize) -> Value {
        let (hashes, buckets, vocab) = (self.hashes, self.buckets, l.options.vocab);
        let table = self.tables(vocab);
        let table = l.emitter.state("table", table.ty().clone(), StateInit::Text(table));
        let source = l.source(site);
        let b = l.b();
        let ids = source.ids(b);
        let ids = b.to_float(ids);
        let ids = b.broadcast_last(ids, hashes);
        // Row m of the table starts at m * V, block m of the weights at m * E.
        let along = |b: &mut Builder, step: usize| {
            let steps = b.ramp(hashes, step as i32);
            let steps = b.to_float(steps);
            b.broadcast(steps, [tokens, hashes])
        };
        let rows_of_table = along(b, vocab);
        let entry = b.add(ids, rows_of_table);
        let entry = b.to_index(entry, hashes * vocab);
        let table = b.reshape(table, [hashes * vocab]);
        let bucket = b.lookup(entry, table);
        let bucket = b.to_float(bucket);
        let blocks = along(b, buckets);
        let block = b.add(bucket, blocks);
        b.to_index(block, hashes * buckets)
    }

    /// The tables of all hashes, i32 `[M, V]`: independent random tables.
    fn tables(&self, vocab: usize) -> StateSource {
        let MultiHash { hashes, buckets, seed, .. } = *self;
        let shape = vec![hashes, vocab];
        StateSource::new(TensorType { dtype: DType::I32, shape: shape.clone() }, move |_| {
            let table = (0..hashes * vocab).map(|i| drawn_bucket(seed, i, buckets)).collect();
            Tensor::new(shape.clone(), Data::I32(table)).ok_or_else(|| "the hash tables are too large".to_string())
        })
    }

    /// `x [N, input] -> [N, output]`, block m of the output by the weights that hash m chose.
    fn hashed_map(
        &self,
        l: &mut Lowering,
        name: &str,
        x: Value,
        gather: Gather,
        rows: Rows,
        (input, output): (usize, usize),
    ) -> Value {
        let [tokens, _] = l.extents(x);
        let sorted = l.b().op(Op::Dispatch { weighted: false }, &[x, gather.order, gather.positions]);
        let y = l.linear(name, sorted, rows, (input, output / self.hashes), true);
        let b = l.b();
        // Back to slots: each is a row of its own.
        let positions = b.reshape(gather.positions, [tokens * self.hashes, 1]);
        let slots = b.op(Op::Combine { weighted: false }, &[y, gather.order, positions]);
        b.reshape(slots, [tokens, output])
    }
}

impl LayerKind for MultiHash {
    fn name(&self) -> &'static str {
        LAYER.name
    }

    fn lower(&self, l: &mut Lowering, site: Site<'_>, x: Value) -> Result<Value, LowerError> {
        let (hashes, buckets, vocab) = (self.hashes, self.buckets, l.options.vocab);
        let [tokens, width] = l.extents(x);
        // Entries and blocks are numbered in f32, which holds whole numbers up to here.
        if hashes.saturating_mul(vocab.max(buckets)) > 1 << 24 {
            let message = format!("{hashes} hashes of {vocab} tokens into {buckets} buckets are too many to number");
            return Err(LowerError::Size(message));
        }
        let (block, experts) = (self.blocks(l, site, tokens), hashes * buckets);
        if l.options.routes {
            let ones = l.b().fill(1.0, [tokens, hashes]);
            l.expose(LAYER.name, site, experts, (block, ones), (block, ones));
        }
        let offsets = l.b().op(Op::SortByExpert { experts, rows: tokens * hashes }, &[block]);
        let gather = Gather { order: offsets.result(1), positions: offsets.result(2) };
        let rows = Rows::Experts { experts, offsets };
        let y = l.shared(1.0 / buckets as f64, |l| {
            let v = self.hashed_map(l, "up", x, gather, rows, (width, self.hidden));
            let v = self.activation.lower(l.b(), v);
            self.hashed_map(l, "down", v, gather, rows, (self.hidden, width))
        });
        Ok(l.dropout(y, self.dropout))
    }

    fn flops(&self, _time: usize, _vocab: usize) -> Flops {
        // Each hash meets a block of either map.
        Flops::products((4 * self.width * self.hidden) as f64)
    }

    fn needs(&self) -> Needs {
        Needs { ids: true, ..Needs::default() }
    }

    fn resolved(&self) -> BTreeMap<String, ResolvedValue> {
        map([
            ("hidden", self.hidden.into()),
            ("activation", self.activation.name().into()),
            ("buckets", self.buckets.into()),
            ("hashes", self.hashes.into()),
            ("dropout", self.dropout.into()),
            ("seed", self.seed.into()),
        ])
    }
}

//! `mixture_of_depths { .. }`: layers that only some tokens of a sequence go through (Raposo et al. 2024, arXiv
//! 2404.02258).
//!
//! `y = x + r f(x)` for the tokens that go through and `y = x` for the others, with a score `r = x wᵀ` and `f` what the
//! layers add to what they are given. The tokens that go through keep their order, so attention among them is causal.
//!
//! In training they are the C tokens of the sequence with the largest scores, which looks at later tokens. In evaluation
//! and sampling a predictor decides for each token on its own: a linear map of the activations, behind a stopped
//! gradient, that is trained with binary cross-entropy to tell who would have been chosen.

use std::collections::BTreeMap;
use std::sync::Arc;

use moec_ir::{Binary, Op, Unary, Value};
use moec_syntax::{Code, Diagnostic, Span};

use super::moe;
use super::spec::LayerSpec;
use crate::argument::{DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::check::layer::LayerCheck;
use crate::cost::Flops;
use crate::emit::Mode;
use crate::layer::{self, Layer, LayerKind, checked};
use crate::lower::lowering::{LowerError, Lowering, Rows, Site};
use crate::model::Causality;
use crate::needs::{Needs, Obstacle};
use crate::resolved::{ResolvedValue, map};
use crate::router::{AuxiliaryLoss, Gather};

pub(super) const LAYER: LayerSpec = LayerSpec {
    name: "mixture_of_depths",
    summary: "layers that only some tokens of a sequence go through: `mixture_of_depths { .. }`",
    parameters: &[
        ParameterSpec::optional(
            "capacity",
            ParameterType::Float(Interval::above_up_to(0.0, 1.0)),
            DefaultValue::Float(0.125),
            "share of the tokens of a sequence that go through in training",
        ),
        ParameterSpec::optional(
            "predictor",
            ParameterType::Float(Interval::at_least(0.0)),
            DefaultValue::Float(1.0),
            "weight of the loss of the predictor that decides when sampling",
        ),
    ],
    forms: &[],
    has_layers: true,
    equations: "\
r = x wᵀ, z = sg(x) uᵀ + b                          x [N, C], r, z [N, 1], sg stops the gradient
through: the P = max(1, ceil(capacity T)) largest r of each sequence in training, z > 0 in evaluation and sampling
y = x + r f(x) for the tokens that go through, y = x for the others     y [N, C], f what its layers add
aux.PATH.predictor = mean of softplus(z) - m z      m 1 for the chosen tokens, else 0
Parameters: router.weight [1, C], predictor.weight [1, C], predictor.bias [1], and those of its layers.
Cost per token: 4 C + 2, and P / T of its layers and of 3 C.",
    decoding: "The tokens of a sequence are reordered, so the window is computed anew if there is attention inside.",
    references: &[
        "Raposo et al. 2024, Mixture-of-Depths: Dynamically allocating compute in transformer-based language models, \
         arXiv 2404.02258",
    ],
    check,
};

/// Layers that only the tokens with the largest scores go through (Raposo et al. 2024, arXiv 2404.02258).
#[derive(Clone, Debug)]
pub struct MixtureOfDepths {
    /// Width of the vectors, C.
    pub width: usize,
    /// Share of the tokens of a sequence that go through in training.
    pub capacity: f64,
    /// Factor of the predictor's loss in the objective.
    pub weight: f64,
    /// The layers.
    pub layers: Vec<Layer>,
    /// Where it was written.
    pub span: Span,
}

fn check(c: &mut LayerCheck<'_, '_>) -> Option<Arc<dyn LayerKind>> {
    if c.in_expert() {
        let d = Diagnostic::new(Code::ExpertNotTokenwise, "an expert cannot contain `mixture_of_depths`")
            .primary(c.name_span(), "this layer compares the tokens of a sequence")
            .note("an expert is given the tokens routed to it, in no sequence")
            .help("put it around the `moe`");
        c.report(d);
        return None;
    }
    c.causality(Causality::SamplesDifferently);
    let (layers, span) = (c.layers(), c.span());
    let mixing = layers.iter().find_map(|layer| moe::within(layer, &|moe| !moe.route.traits().selects));
    if let Some(moe) = mixing {
        let name = moe.route.strategy.name();
        let d = Diagnostic::new(Code::ArgumentsConflict, format!("`{name}` cannot stand in `mixture_of_depths`"))
            .primary(moe.route.span, "needs whole sequences")
            .secondary(c.name_span(), "only some tokens go through")
            .help("use a router that looks at each token on its own, such as `softmax_top_k`");
        c.report(d);
        return None;
    }
    let (width, capacity, weight) = (c.input()?, c.float("capacity")?, c.float("predictor")?);
    checked(MixtureOfDepths { width, capacity, weight, layers, span })
}

/// The rows that the layers inside work on.
struct Through {
    /// Where they were taken from.
    gather: Gather,
    /// The rows, `[R, C]`.
    rows: Value,
    /// Rows of a sequence.
    time: usize,
    /// 1 for a token that goes through, else 0, `[N, 1]`.
    member: Value,
    /// 1 for a row of a token that goes through, else 0, `[R, 1]`; `None` if all are.
    valid: Option<Value>,
}

impl MixtureOfDepths {
    /// Tokens of a sequence of `time` that go through in training, at least 1.
    pub fn tokens(&self, time: usize) -> usize {
        ((time as f64 * self.capacity).ceil() as usize).clamp(1, time.max(1))
    }

    /// 1 for the tokens of each sequence with the largest scores, else 0, `[N, 1]`.
    fn largest(&self, l: &mut Lowering, score: Value, time: usize) -> Value {
        let [tokens, _] = l.extents(score);
        let (batch, capacity) = (tokens / time, self.tokens(time));
        let b = l.b();
        let per_sequence = b.reshape(score, [batch, time]);
        let (_, chosen) = b.top_k(per_sequence, capacity);
        let ones = b.fill(1.0, [batch, capacity]);
        let member = b.scatter_last(ones, chosen, time);
        b.reshape(member, [tokens, 1])
    }

    /// In training whoever goes through is gathered.
    fn gathered(&self, l: &mut Lowering, x: Value, member: Value, time: usize) -> Through {
        let [tokens, _] = l.extents(x);
        let (batch, capacity) = (tokens / time, self.tokens(time));
        let b = l.b();
        let none = b.add_scalar(member, -1.0);
        let slots = b.to_index(none, 1);
        let offsets = b.op(Op::SortByExpert { experts: 1, rows: batch * capacity }, &[slots]);
        let gather = Gather { order: offsets.result(1), positions: offsets.result(2) };
        let rows = b.op(Op::Dispatch { weighted: false }, &[x, gather.order, gather.positions]);
        Through { gather, rows, time: capacity, member, valid: None }
    }

    /// In evaluation the number of those who go through is not known, so whole sequences are reordered: those who go
    /// through first, the others behind them, where causal attention does not see them.
    fn reordered(l: &mut Lowering, x: Value, member: Value, time: usize) -> Through {
        let [tokens, _] = l.extents(x);
        let batch = tokens / time;
        let b = l.b();
        let sequence = b.ramp(batch, 2);
        let sequence = b.to_float(sequence);
        let sequence = b.broadcast_last(sequence, time);
        let sequence = b.reshape(sequence, [tokens, 1]);
        let last = b.sub(sequence, member);
        let last = b.add_scalar(last, 1.0);
        let slots = b.to_index(last, 2 * batch);
        // From the index, which is what a recorded route keeps.
        let index = b.to_float(slots);
        let member = b.sub(sequence, index);
        let member = b.add_scalar(member, 1.0);
        let offsets = b.op(Op::SortByExpert { experts: 2 * batch, rows: tokens }, &[slots]);
        let gather = Gather { order: offsets.result(1), positions: offsets.result(2) };
        let rows = b.op(Op::Dispatch { weighted: false }, &[x, gather.order, gather.positions]);
        // Those behind are there, but nothing counts them.
        let valid = b.op(Op::Dispatch { weighted: false }, &[member, gather.order, gather.positions]);
        Through { gather, rows, time, member, valid: Some(valid) }
    }

    /// Mean binary cross-entropy of the predictor: `softplus(z) - m z` for membership m.
    fn predictor_loss(&self, l: &mut Lowering, member: Value, predicted: Value) {
        let b = l.b();
        let softplus = b.unary(Unary::Softplus, predicted);
        let taken = b.mul(member, predicted);
        let terms = b.sub(softplus, taken);
        let value = b.mean_all(terms);
        l.own_loss(&l.path(), AuxiliaryLoss { name: "predictor".into(), value, weight: self.weight });
    }

    /// Outputs of who goes through: a layer with one expert.
    fn expose(l: &mut Lowering, site: Site<'_>, member: Value, score: Value) {
        if l.options.routes {
            let none = l.b().add_scalar(member, -1.0);
            let through = l.b().to_index(none, 1);
            l.expose(LAYER.name, site, 1, (through, score), (through, score));
        }
    }
}

impl LayerKind for MixtureOfDepths {
    fn name(&self) -> &'static str {
        LAYER.name
    }

    fn layers(&self) -> &[Layer] {
        &self.layers
    }

    fn lower(&self, l: &mut Lowering, site: Site<'_>, x: Value) -> Result<Value, LowerError> {
        let ([tokens, width], time) = (l.extents(x), site.time);
        let (score, predicted) = l.routing(|l| {
            let score = l.emitter.linear("router", x, width, 1, false);
            let detached = l.b().stop_gradient(x);
            (score, l.emitter.linear("predictor", detached, width, 1, true))
        });
        let chosen = self.largest(l, score, time);
        if l.options.loss {
            self.predictor_loss(l, chosen, predicted);
        }
        let through = match l.options.mode {
            Mode::Train => {
                Self::expose(l, site, chosen, score);
                self.gathered(l, x, chosen, time)
            }
            Mode::Evaluate => {
                let zero = l.b().fill(0.0, [tokens, 1]);
                let member = l.b().binary(Binary::Less, zero, predicted);
                Self::expose(l, site, member, score);
                Self::reordered(l, x, member, time)
            }
        };
        let Through { gather, rows, member, .. } = through;
        let gathers = [site.gathers, &[gather]].concat();
        let inner = Site {
            rows: Rows::Tokens,
            time: through.time,
            gathers: &gathers,
            valid_rows: through.valid,
            inside: true,
            ..site
        };
        let block = l.shared(self.tokens(time) as f64 / time as f64, |l| l.sequence(&self.layers, inner, rows))?;
        let b = l.b();
        // What the layers add: the residual within them must not count twice.
        let added = b.sub(block, rows);
        let weight = b.mul(score, member);
        let branch = b.op(Op::Combine { weighted: true }, &[added, gather.order, gather.positions, weight]);
        Ok(b.named("residual", Op::Binary(Binary::Add), &[x, branch]))
    }

    fn flops(&self, time: usize, vocab: usize) -> Flops {
        let kept = self.tokens(time);
        let each = layer::flops(&self.layers, kept, vocab) + Flops::elementwise(3.0 * self.width as f64);
        each * (kept as f64 / time as f64)
    }

    fn needs(&self) -> Needs {
        let inner = layer::needs(&self.layers);
        let window = inner.keys.then(|| Obstacle {
            reason: "attention inside `mixture_of_depths` sees only the tokens that go through".into(),
            span: self.span,
        });
        // The layer reorders the tokens of a sequence, even where its inner layers take them one by one.
        Needs { window: inner.window.clone().or(window), keys: true, ..inner }
    }

    fn resolved(&self) -> BTreeMap<String, ResolvedValue> {
        map([
            ("capacity", self.capacity.into()),
            ("weight", self.weight.into()),
            ("layers", ResolvedValue::Layers(layer::resolved(&self.layers))),
        ])
    }
}

//! The experts of a `moe`: `NUMBER * EXPERT` as written, or a list that begins with it, and how they are run on the rows that
//! are sent to them.

use moec_ir::{Builder, Op, Precision, Unary, Value};
use moec_syntax::{self as ast, BinaryOperator, Code, Diagnostic, ExprKind, Span};

use super::Moe;
use super::choice::{Choice, Experts};
use super::zero_computation::{self, Listed, ZeroComputation};
use crate::arithmetic::Number;
use crate::check::layer::{Flow, LayerCheck, with_culprit};
use crate::check::values::describe;
use crate::layer::Layer;
use crate::lower::lowering::{LowerError, Lowering, Rows, Site};
use crate::router::{Gather, Routing};

/// Most experts of a layer.
const MAX_EXPERTS: i64 = 65_536;

/// A number of experts and what they are; parts with faults are absent.
pub(super) struct Copies {
    pub(super) count: Option<usize>,
    pub(super) span: Span,
    pub(super) layers: Option<Vec<Layer>>,
}

/// Checks `NUMBER * EXPERT` for experts of that width, if it is known; `None` if it is not of that form.
pub(super) fn check<'a>(
    c: &mut LayerCheck<'_, 'a>,
    argument: &str,
    expr: &'a ast::Expr,
    width: Option<usize>,
) -> Option<Copies> {
    c.choose(expr, &|c, expr| copies(c, argument, expr, width))
}

/// Checks `NUMBER * EXPERT` or `[NUMBER * EXPERT, zero, ..]`, whose other entries compute nothing; `None` if it is neither.
pub(super) fn check_all<'a>(c: &mut LayerCheck<'_, 'a>, expr: &'a ast::Expr, width: Option<usize>) -> Option<Listed> {
    c.choose(expr, &|c, expr| match &expr.kind {
        ExprKind::List(entries) => {
            let Some((first, others)) = entries.split_first() else {
                let d = Diagnostic::new(Code::NoExperts, "the list of experts is empty")
                    .primary(expr.span, "expected at least one expert that computes");
                c.report(d.help("for example `experts: [8 * mlp(hidden: 512), zero]`"));
                return None;
            };
            let copies = check(c, "experts", first, width);
            if copies.is_none() && ZeroComputation::counted(first).is_some() {
                return None;
            }
            let zero_computation = zero_computation::check(c, others);
            Some(Listed { copies: copies?, zero_computation: zero_computation? })
        }
        _ => Some(Listed { copies: copies(c, "experts", expr, width)?, zero_computation: Vec::new() }),
    })
}

fn copies<'a>(c: &mut LayerCheck<'_, 'a>, argument: &str, expr: &'a ast::Expr, width: Option<usize>) -> Option<Copies> {
    let kind = ZeroComputation::counted(expr).filter(|kind| !c.names_block(kind.word()));
    if let Some(kind) = kind.filter(|_| argument == "experts") {
        zero_computation::in_front(c, expr, kind);
        return None;
    }
    let found = match &expr.kind {
        // `mlp(hidden: 512) * 8` is the other way round.
        ExprKind::Binary { operator, left, .. }
            if operator.value == BinaryOperator::Multiply
                && matches!(left.kind, ExprKind::Call(_) | ExprKind::Sequence(_)) =>
        {
            "`EXPERT * NUMBER`"
        }
        ExprKind::Binary { operator, left, right } if operator.value == BinaryOperator::Multiply => {
            let count = count(c, argument, left);
            // One copy stands for all where their number is unknown after a fault.
            let layers = expert(c, argument, right, (count.unwrap_or(1), width));
            return Some(Copies { count, span: left.span, layers });
        }
        ExprKind::Binary { .. } => "another operation",
        _ => describe(expr),
    };
    let d = Diagnostic::new(Code::ExpertForm, format!("`{argument}` must be `NUMBER * EXPERT`, not {found}"))
        .primary(expr.span, "expected a number of copies, `*`, and a layer, a block or `{ .. }`");
    c.report(d.help(format!("for example `{argument}: 8 * mlp(hidden: 512)`")));
    None
}

pub(super) fn count(c: &mut LayerCheck<'_, '_>, argument: &str, expr: &ast::Expr) -> Option<usize> {
    let d = match c.number(expr)? {
        Number::Int(n) if (1..=MAX_EXPERTS).contains(&n) => return usize::try_from(n).ok(),
        Number::Int(n) if n < 1 => {
            let d = Diagnostic::new(Code::NoExperts, format!("`{argument}` asks for {n} experts"))
                .primary(expr.span, "expected at least 1");
            if argument == "shared" { d.help("leave `shared` out for none") } else { d }
        }
        Number::Int(n) => Diagnostic::new(Code::OutOfRange, format!("{n} experts are too many"))
            .primary(expr.span, format!("expected at most {MAX_EXPERTS}")),
        other => Diagnostic::new(Code::WrongType, "the number of experts must be an integer")
            .primary(expr.span, format!("this is {} ({other})", other.kind())),
    };
    c.report(d);
    None
}

/// The layers of an expert of so many copies, which must return the width that they are given.
fn expert<'a>(
    c: &mut LayerCheck<'_, 'a>,
    argument: &str,
    expr: &'a ast::Expr,
    (copies, width): (usize, Option<usize>),
) -> Option<Vec<Layer>> {
    let (errors, left_out) = (c.errors(), c.left_out());
    let Some((layers, flow)) = c.expert(expr, copies, width) else {
        let message = format!("an expert must be a layer, a block or `{{ .. }}`, not {}", describe(expr));
        let d = Diagnostic::new(Code::ExpertForm, message).primary(expr.span, "expected an expert");
        c.report(d.help(format!("for example `{argument}: 8 * mlp(hidden: 512)`")));
        return None;
    };
    if c.errors() > errors || c.left_out() > left_out {
        return None;
    }
    if layers.is_empty() {
        let d = Diagnostic::new(Code::ExpertForm, "an expert has no layers")
            .primary(expr.span, "expected at least one layer");
        c.report(d);
        return None;
    }
    if let (Some(input), Flow::Width(output)) = (width, flow)
        && input != output
    {
        let message = format!("an expert turns width {input} into {output}");
        let d = Diagnostic::new(Code::WidthMismatch, message)
            .primary(expr.span, format!("an expert must return width {input}"));
        c.report(with_culprit(d, &layers).help(format!("end it with `linear(width: {input})`")));
        return None;
    }
    Some(layers)
}

impl Moe {
    /// Sorts rows by expert, runs the experts, and sums per token.
    pub(super) fn dispatched(
        &self,
        l: &mut Lowering,
        site: Site<'_>,
        x: Value,
        routing: &Routing,
        kept: Choice,
        Experts { computed: experts, rescale, .. }: Experts,
    ) -> Result<Value, LowerError> {
        let [tokens, k] = l.extents(kept.chosen);
        let b = l.b();
        let offsets = b.op(Op::SortByExpert { experts, rows: kept.bound }, &[kept.chosen]);
        let gather = Gather { order: offsets.result(1), positions: offsets.result(2) };
        let slots = [gather.order, gather.positions];
        let weighed = |b: &mut Builder, by| b.op(Op::Dispatch { weighted: true }, &[&[x][..], &slots, &[by]].concat());
        let rows = match (self.weighs_input, self.straight_through) {
            (true, _) => weighed(b, kept.weights),
            (false, true) => {
                let value = b.stop_gradient(kept.weights);
                let difference = b.sub(kept.weights, value);
                let ones = b.add_scalar(difference, 1.0);
                weighed(b, ones)
            }
            (false, false) => b.op(Op::Dispatch { weighted: false }, &[&[x][..], &slots].concat()),
        };
        // What an expert contributes in the end is the product of the weights of all levels.
        let weights = match rescale {
            Some(rescale) => {
                let outer = b.broadcast(rescale.weight, [tokens, k]);
                b.mul(kept.weights, outer)
            }
            None => kept.weights,
        };
        let gathers = [site.gathers, &[gather]].concat();
        let outer_choice = Some((kept.chosen, weights));
        let inner = Site { rows: Rows::Experts { experts, offsets }, gathers: &gathers, outer_choice, ..site };
        let y = self.routed_experts(l, inner, rows)?;
        let z = match self.weighs_input {
            true => l.b().op(Op::Combine { weighted: false }, &[&[y][..], &slots].concat()),
            false => l.b().op(Op::Combine { weighted: true }, &[&[y][..], &slots, &[kept.weights]].concat()),
        };
        Ok(match self.running_means(l, routing, kept, (y, offsets)) {
            Some(stand_in) => l.b().add(z, stand_in),
            None => z,
        })
    }

    /// The routed experts on rows that are sorted by expert.
    fn routed_experts(&self, l: &mut Lowering, site: Site<'_>, sorted: Value) -> Result<Value, LowerError> {
        let share = self.route.experts_per_token(self.experts, site.time) / self.experts as f64;
        let site = Site { inside: true, ..site };
        l.shared(share, |l| l.opened("experts", |l| l.sequence(&self.expert, site, sorted)))
    }

    /// Every expert works on P mixtures of the tokens of each sequence: `slots = Dᵀ x`, `y = C experts(slots)`, both per
    /// sequence (Puigcerver et al. 2023, arXiv 2308.00951, equations 1 to 3).
    pub(super) fn mixed(
        &self,
        l: &mut Lowering,
        site: Site<'_>,
        x: Value,
        dispatch: Value,
        combine: Value,
    ) -> Result<Value, LowerError> {
        let (experts, time) = (self.experts, site.time);
        let ([tokens, width], [_, slots]) = (l.extents(x), l.extents(dispatch));
        let (batch, per_expert) = (tokens / time, slots / experts);
        let b = l.b();
        let sequences = b.ramp(batch + 1, time as i32);
        let mixtures = b.op(Op::GroupedMatMulWeightGrad { precision: Precision::F32 }, &[dispatch, x, sequences]);
        let rows = swap_outer(b, mixtures, [batch, experts, per_expert * width]);
        let rows = b.reshape(rows, [experts * batch * per_expert, width]);
        let offsets = b.ramp(experts + 1, (batch * per_expert) as i32);
        let y = self.routed_experts(l, Site { rows: Rows::Experts { experts, offsets }, ..site }, rows)?;
        let b = l.b();
        let y = swap_outer(b, y, [experts, batch, per_expert * width]);
        let y = b.reshape(y, [batch, slots, width]);
        Ok(b.op(
            Op::GroupedMatMul { transpose_b: false, bias: false, precision: Precision::F32 },
            &[combine, y, sequences],
        ))
    }

    /// Every run of tokens, which `offsets` bound, goes through one expert, whose parameters are `weights [R, E]` times those of the experts (Muqeeth et
    /// al. 2023, arXiv 2306.03745, section 3).
    pub(super) fn merged(
        &self,
        l: &mut Lowering,
        site: Site<'_>,
        x: Value,
        weights: Value,
        offsets: Value,
    ) -> Result<Value, LowerError> {
        let [runs, _] = l.extents(weights);
        let site = Site { rows: Rows::Experts { experts: runs, offsets }, inside: true, ..site };
        let around = l.emitter.merging.replace(weights);
        let y = self.routed_experts(l, site, x);
        l.emitter.merging = around;
        y
    }

    /// Adds what the experts compute that every token goes to.
    pub(super) fn shared_experts(
        &self,
        l: &mut Lowering,
        site: Site<'_>,
        x: Value,
        mut z: Value,
    ) -> Result<Value, LowerError> {
        let site = Site { rows: Rows::Tokens, inside: true, ..site };
        let mut gate = None;
        if self.shared_gate {
            let score = l.linear("shared_gate", x, site.rows, (self.width, 1), false);
            gate = Some(l.b().unary(Unary::Sigmoid, score));
        }
        for copy in 0..self.shared {
            let scope = if self.shared == 1 { "shared".to_string() } else { format!("shared.{copy}") };
            let mut y = l.opened(&scope, |l| l.sequence(&self.shared_expert, site, x))?;
            if let Some(gate) = gate {
                y = l.b().mul(gate, y);
            }
            z = l.b().add(z, y);
        }
        Ok(z)
    }
}

/// Exchanges the two outer axes of `x` seen as `shape`.
fn swap_outer(b: &mut Builder, x: Value, shape: [usize; 3]) -> Value {
    let x = b.reshape(x, shape);
    b.permute(x, &[1, 0, 2])
}

//! Experts that compute nothing, or next to nothing: `zero`, `copy` and `constant` behind the experts that compute.
//!
//! They take part in routing like the others, but no row is dispatched to them: what they give follows from the token and
//! the weights of its choices (Jin et al. 2024, MoE++, arXiv 2410.07348, section 3.1; Zeng et al. 2024, AdaMoE, arXiv
//! 2406.13233).

use std::ops::Range;

use moec_ir::{Binary, Builder, Value};
use moec_syntax::{self as ast, BinaryOperator, Code, Diagnostic, ExprKind, Span, did_you_mean};

use super::Moe;
use super::choice::{Choice, Experts, Taken};
use super::experts::{Copies, count};
use crate::check::layer::LayerCheck;
use crate::check::values::describe;
use crate::cost::Flops;
use crate::emit::Role;
use crate::lower::lowering::{Lowering, Rows, Site};
use crate::resolved::{ResolvedValue, map};

/// What an expert without computation gives for a token x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroComputation {
    /// Nothing.
    Zero,
    /// The token itself.
    Copy,
    /// `a1 x + a2 v` with `[a1, a2] = softmax(W x)` and a trained vector v.
    Constant,
}

impl ZeroComputation {
    /// Every kind.
    pub const ALL: [ZeroComputation; 3] = [ZeroComputation::Zero, ZeroComputation::Copy, ZeroComputation::Constant];

    /// The word of the language.
    pub const fn word(self) -> &'static str {
        match self {
            ZeroComputation::Zero => "zero",
            ZeroComputation::Copy => "copy",
            ZeroComputation::Constant => "constant",
        }
    }

    /// One line on it.
    pub const fn summary(self) -> &'static str {
        match self {
            ZeroComputation::Zero => "an expert that gives nothing",
            ZeroComputation::Copy => "an expert that gives the token itself",
            ZeroComputation::Constant => "an expert that mixes the token with a trained vector",
        }
    }

    /// The kind of `zero` and of `2 * zero`.
    pub(super) fn counted(expr: &ast::Expr) -> Option<Self> {
        match &expr.kind {
            ExprKind::Binary { operator, right, .. } if operator.value == BinaryOperator::Multiply => {
                Self::named(right)
            }
            _ => Self::named(expr),
        }
    }

    /// The kind that an expression names, if it is a name alone.
    fn named(expr: &ast::Expr) -> Option<Self> {
        let ExprKind::Name(name) = &expr.kind else { return None };
        Self::ALL.into_iter().find(|kind| kind.word() == name)
    }
}

/// Experts without computation of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroExperts {
    /// What they give.
    pub kind: ZeroComputation,
    /// How many there are.
    pub count: usize,
}

impl ZeroExperts {
    /// The experts as plain data.
    pub(super) fn resolved(self) -> ResolvedValue {
        ResolvedValue::Map(map([("kind", self.kind.word().into()), ("experts", self.count.into())]))
    }
}

/// Checks what stands behind the first entry of `experts: [NUMBER * EXPERT, ..]`; `None` after a fault.
pub(super) fn check<'a>(c: &mut LayerCheck<'_, 'a>, entries: &'a [ast::Expr]) -> Option<Vec<ZeroExperts>> {
    let errors = c.errors();
    let mut found: Vec<(ZeroExperts, Span)> = Vec::new();
    for expr in entries {
        let Some(experts) = c.choose(expr, &entry) else { continue };
        let word = experts.kind.word();
        if let Some((_, first)) = found.iter().find(|(other, _)| other.kind == experts.kind) {
            let d = Diagnostic::new(Code::DuplicateArgument, format!("`{word}` is listed twice"))
                .primary(expr.span, "listed again here")
                .secondary(*first, "first listed here")
                .help(format!("write the number of all of them, as in `2 * {word}`"));
            c.report(d);
            continue;
        }
        if c.names_block(word) {
            let d =
                Diagnostic::new(Code::ExpertForm, format!("`{word}` names a block and an expert without computation"))
                    .primary(expr.span, "behind the first entry it means the latter")
                    .help("give the block another name");
            c.report(d);
        }
        found.push((experts, expr.span));
    }
    if let (Some((_, first)), true) = (found.first(), c.in_expert()) {
        let d = Diagnostic::new(Code::ExpertForm, "a `moe` in an expert has no experts without computation")
            .primary(*first, "not in an expert")
            .note("the experts of both levels are numbered together, and all of them compute")
            .help("list them in the outer `moe`");
        c.report(d);
    }
    let constants = found.iter().find(|(experts, _)| experts.kind == ZeroComputation::Constant);
    if let (Some((constants, _)), Some(width)) = (constants, c.input()) {
        c.count(&[2 * constants.count, width]);
        c.count(&[constants.count, width]);
    }
    (c.errors() == errors).then(|| found.into_iter().map(|(experts, _)| experts).collect())
}

fn entry<'a>(c: &mut LayerCheck<'_, 'a>, expr: &'a ast::Expr) -> Option<ZeroExperts> {
    let (number, named) = match &expr.kind {
        ExprKind::Binary { operator, left, right } if operator.value == BinaryOperator::Multiply => {
            (Some(left.as_ref()), right.as_ref())
        }
        _ => (None, expr),
    };
    if let Some(kind) = ZeroComputation::named(named) {
        let count = number.map_or(Some(1), |number| count(c, "experts", number))?;
        return Some(ZeroExperts { kind, count });
    }
    let is_expert = matches!(named.kind, ExprKind::Call(_) | ExprKind::Sequence(_) | ExprKind::Name(_));
    let near = match &named.kind {
        ExprKind::Name(name) => did_you_mean(name, ZeroComputation::ALL.map(ZeroComputation::word)),
        _ => None,
    };
    let d = if let Some(near) = near {
        Diagnostic::new(Code::ExpertForm, "there is no such expert")
            .primary(named.span, "expected `zero`, `copy` or `constant`")
            .patch(named.span, near, format!("did you mean `{near}`?"))
    } else if is_expert {
        Diagnostic::new(Code::ExpertForm, "experts that compute are of one kind")
            .primary(expr.span, "expected `zero`, `copy` or `constant`")
            .note("the first entry of the list says what they are; those behind it compute nothing")
    } else {
        Diagnostic::new(Code::ExpertForm, format!("an expert cannot be {}", describe(named)))
            .primary(expr.span, "expected `zero`, `copy` or `constant`, with a number in front if wanted")
    };
    c.report(d.help(EXAMPLE));
    None
}

/// How a list of experts is written.
const EXAMPLE: &str = "for example `experts: [8 * mlp(hidden: 512), zero, copy, 2 * constant]`";

/// Reports experts without computation where experts that compute should stand.
pub(super) fn in_front(c: &mut LayerCheck<'_, '_>, expr: &ast::Expr, kind: ZeroComputation) {
    let message = format!("`experts` begins with `{}`, which computes nothing", kind.word());
    let d = Diagnostic::new(Code::ExpertForm, message)
        .primary(expr.span, "expected a number of copies, `*`, and a layer, a block or `{ .. }` first")
        .help(EXAMPLE);
    c.report(d);
}

/// All experts of a layer as they were checked: those that compute, and those that do not.
pub(super) struct Listed {
    pub(super) copies: Copies,
    pub(super) zero_computation: Vec<ZeroExperts>,
}

impl Listed {
    /// The number of all experts.
    pub(super) fn count(&self) -> Option<usize> {
        let others: usize = self.zero_computation.iter().map(|experts| experts.count).sum();
        self.copies.count.map(|count| count + others)
    }
}

impl Moe {
    /// Number of experts that compute, which are the first ones.
    pub fn computed(&self) -> usize {
        self.experts - self.zero_computation.iter().map(|experts| experts.count).sum::<usize>()
    }

    /// Adds what the experts without computation give to what the others add up to. `taken` are the choices that a
    /// capacity has left, of experts of both kinds.
    pub(super) fn zero_computation(
        &self,
        l: &mut Lowering,
        site: Site<'_>,
        x: Value,
        mut z: Value,
        taken: Taken,
    ) -> Value {
        let taken = Choice { chosen: taken.all, ..taken.computed };
        let mut first = self.computed();
        for &ZeroExperts { kind, count } in &self.zero_computation {
            let range = first..first + count;
            first = range.end;
            let y = match kind {
                ZeroComputation::Zero => continue,
                ZeroComputation::Copy => {
                    let b = l.b();
                    let gates = gates_of(b, taken, range);
                    times_sum(b, gates, x)
                }
                ZeroComputation::Constant => self.constants(l, site, x, taken, range),
            };
            z = l.b().add(z, y);
        }
        z
    }

    /// What constant experts give, all of them at once: `sum_j g_j (a1_j x + a2_j v_j)`.
    fn constants(&self, l: &mut Lowering, site: Site<'_>, x: Value, taken: Choice, range: Range<usize>) -> Value {
        let (tokens, width, count) = (l.extents(x)[0], self.width, range.len());
        let share = self.route.experts_per_token(self.experts, site.time) / self.experts as f64;
        let (scores, vectors) = l.shared(share, |l| {
            l.opened("experts.constant", |l| {
                let scores = l.linear("mix", x, Rows::Tokens, (width, 2 * count), false);
                (scores, l.emitter.parameter("vectors", [count, width], Role::Embedding))
            })
        });
        let b = l.b();
        let gates = gates_of(b, taken, range);
        let pairs = b.reshape(scores, [tokens * count, 2]);
        let pairs = b.softmax(pairs);
        let own = b.ramp(1, 0);
        let own = b.broadcast(own, [tokens * count, 1]);
        let own = b.gather_last(pairs, own);
        let own = b.reshape(own, [tokens, count]);
        let of_token = b.mul(gates, own);
        // a1 and a2 sum to 1.
        let of_vectors = b.sub(gates, of_token);
        let token = times_sum(b, of_token, x);
        let vectors = b.matmul(of_vectors, vectors);
        b.add(token, vectors)
    }

    /// Operations of the experts without computation for a token: the maps and mixtures of constant ones.
    pub(super) fn zero_computation_flops(&self) -> Flops {
        let of = |kind| self.zero_computation.iter().find(move |experts| experts.kind == kind);
        let constants = of(ZeroComputation::Constant).map_or(0, |experts| experts.count);
        Flops::products((6 * constants * self.width) as f64)
    }
}

/// The weights of the experts of a range, `[N, count]`, 0 where a token does not go.
fn gates_of(b: &mut Builder, taken: Choice, range: Range<usize>) -> Value {
    let index = b.to_float(taken.chosen);
    let index = b.add_scalar(index, -(range.start as f64));
    let index = b.to_index(index, range.len());
    b.scatter_last(taken.weights, index, range.len())
}

/// Each row of `x` times the sum of the row's `gates`.
fn times_sum(b: &mut Builder, gates: Value, x: Value) -> Value {
    let tokens = b.extent(gates, 0);
    let sum = b.sum(gates, &[1]);
    let sum = b.reshape(sum, [tokens, 1]);
    b.mul(sum, x)
}

/// A choice with that of the experts that compute, the first ones: in it those of the others are none.
pub(super) fn parted(b: &mut Builder, choice: Choice, experts: Experts) -> Taken {
    let all = choice.chosen;
    if experts.computed == experts.count {
        return Taken { all, computed: choice };
    }
    let tokens = b.extent(all, 0);
    let index = b.to_float(all);
    let chosen = b.to_index(index, experts.computed);
    let bound = choice.bound.min(tokens.saturating_mul(experts.computed));
    Taken { all, computed: Choice { chosen, bound, varies: true, ..choice } }
}

/// The choices of experts without computation, and of the others those that are kept.
pub(super) fn all_taken(b: &mut Builder, choice: Value, kept: Value, experts: Experts) -> Value {
    let shape = b.shape(choice);
    let (chosen, kept) = (b.to_float(choice), b.to_float(kept));
    let first = b.fill(experts.computed as f64, shape);
    let is_other = b.binary(Binary::LessEqual, first, chosen);
    let index = b.select(is_other, chosen, kept);
    b.to_index(index, experts.count)
}

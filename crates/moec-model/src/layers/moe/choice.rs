//! What a router decided, brought into one form: experts and weights of each row.

use moec_ir::{Binary, Builder, DType, Op, TensorType, Value, internal_error};

use super::Moe;
use crate::losses::Rescale;
use crate::lower::lowering::{LowerError, Lowering, Rows, Site};
use crate::router::{Assignment, Gather};

/// A decision as rows and experts.
#[derive(Clone, Copy)]
pub(super) struct Choice {
    /// The experts of each row, i32 `[N, K]`; -1 for none.
    pub(super) chosen: Value,
    /// Their weights, `[N, K]`.
    pub(super) weights: Value,
    /// Most entries of `chosen` that are not -1.
    pub(super) bound: usize,
    /// Whether tokens may have different numbers of experts.
    pub(super) varies: bool,
}

/// The choices of a layer with experts that compute and experts that do not.
#[derive(Clone, Copy)]
pub(super) struct Taken {
    /// The experts of each row, of both kinds, i32 `[N, K]`; -1 for none.
    pub(super) all: Value,
    /// Those that compute, with the weights of all; the same where there are no others.
    pub(super) computed: Choice,
}

/// The experts that a layer runs, and how they are counted.
#[derive(Clone, Copy)]
pub(super) struct Experts {
    /// Number of experts; of both levels in a `moe` inside an expert.
    pub(super) count: usize,
    /// Number of those that compute, which are the first ones.
    pub(super) computed: usize,
    /// How what the inner router says about its own experts is spread over those of both levels.
    pub(super) rescale: Option<Rescale>,
    /// 1 for a row with a token that is worked on, else 0, `[N, 1]`; `None` if all are.
    pub(super) valid: Option<Value>,
}

impl Moe {
    /// Checks what a strategy returned, and brings it into the form of a choice.
    pub(super) fn choice(&self, l: &mut Lowering, x: Value, assignment: &Assignment) -> Result<Choice, LowerError> {
        let ([tokens, _], experts) = (l.extents(x), self.experts);
        let ty = |l: &mut Lowering, value: Value| l.b().ty(value).clone();
        let refused = |message: String| self.route.refused(message);
        match *assignment {
            Assignment::TokenChoice { experts: chosen, weights } => {
                let (found, given) = (ty(l, chosen), ty(l, weights));
                let k = match (found.dtype, found.shape.as_slice()) {
                    (DType::I32, &[n, k]) if n == tokens && k > 0 => k,
                    _ => return Err(refused(format!("chose experts as {found}, not as i32[{tokens}, K]"))),
                };
                if given != TensorType::f32([tokens, k]) {
                    return Err(refused(format!("gave weights of type {given}, not f32[{tokens}, {k}]")));
                }
                // Only an index that was computed can be none.
                let b = l.b();
                let varies = matches!(b.graph().node(chosen.node).op, Op::ToIndex { .. });
                Ok(Choice { chosen, weights, bound: tokens.saturating_mul(k), varies })
            }
            Assignment::DenseGates { gates } => {
                let given = ty(l, gates);
                if given != TensorType::f32([tokens, experts]) {
                    return Err(refused(format!("gave gates of type {given}, not f32[{tokens}, {experts}]")));
                }
                let chosen = l.b().nonzero(gates);
                Ok(Choice { chosen, weights: gates, bound: tokens.saturating_mul(experts), varies: true })
            }
            Assignment::ExpertChoice { tokens: chosen, weights } => {
                let (found, given) = (ty(l, chosen), ty(l, weights));
                let p = match (found.dtype, found.shape.as_slice()) {
                    (DType::I32, &[e, p]) if e == experts && p > 0 => p,
                    _ => return Err(refused(format!("chose tokens as {found}, not as i32[{experts}, P]"))),
                };
                if given != TensorType::f32([experts, p]) {
                    return Err(refused(format!("gave weights of type {given}, not f32[{experts}, {p}]")));
                }
                Ok(experts_of_tokens(l.b(), chosen, weights, tokens))
            }
            Assignment::Slots { .. } | Assignment::Merged { .. } => internal_error!("nothing is chosen"),
        }
    }

    /// Checks the slots that a strategy returned, each `[N, E * P]`.
    pub(super) fn slots_fit(
        &self,
        l: &mut Lowering,
        site: Site<'_>,
        x: Value,
        dispatch: Value,
        combine: Value,
    ) -> Result<(), LowerError> {
        let ([tokens, _], experts) = (l.extents(x), self.experts);
        let (given, other) = (l.b().ty(dispatch).clone(), l.b().ty(combine).clone());
        let fits = match given.shape.as_slice() {
            &[n, slots] => n == tokens && slots > 0 && slots.is_multiple_of(experts),
            _ => false,
        };
        if !fits || given.dtype != DType::F32 || other != given {
            let message = format!("gave slots of types {given} and {other}, not f32[{tokens}, {experts} * P]");
            return Err(self.route.refused(message));
        }
        self.whole_sequences(site)
    }

    /// Checks the weights `[R, E]` and offsets `[R + 1]` that a strategy returned for merged experts.
    pub(super) fn runs_fit(
        &self,
        l: &mut Lowering,
        site: Site<'_>,
        weights: Value,
        offsets: Value,
    ) -> Result<(), LowerError> {
        let experts = self.experts;
        let (given, ends) = (l.b().ty(weights).clone(), l.b().ty(offsets).clone());
        let runs = given.shape.first().copied().unwrap_or(0);
        if runs == 0 || given != TensorType::f32([runs, experts]) || ends != TensorType::i32([runs + 1]) {
            let message =
                format!("gave weights of type {given} and offsets {ends}, not f32[R, {experts}] and i32[R + 1]");
            return Err(self.route.refused(message));
        }
        self.whole_sequences(site)
    }

    /// Refuses a site that is given some of the tokens, where whole sequences are needed.
    fn whole_sequences(&self, site: Site<'_>) -> Result<(), LowerError> {
        if site.gathers.is_empty() {
            return Ok(());
        }
        Err(self.route.refused("needs whole sequences, and only some tokens come here"))
    }
}

/// Experts that chose tokens, as `[E, P]`, seen from a token: all experts that chose it.
fn experts_of_tokens(b: &mut Builder, chosen: Value, weights: Value, tokens: usize) -> Choice {
    let [experts, p] = [0, 1].map(|axis| b.extent(chosen, axis));
    let ones = b.fill(1.0, [experts, p]);
    let members = b.scatter_last(ones, chosen, tokens);
    let members = b.transpose(members);
    let weights = b.scatter_last(weights, chosen, tokens);
    let weights = b.transpose(weights);
    // Membership and not the weight decides, which may be 0.
    let chosen = b.nonzero(members);
    Choice { chosen, weights, bound: experts.saturating_mul(p), varies: true }
}

/// Numbers the experts across both levels: inner expert j of outer expert i is expert `i * E + j` of the layer. The
/// choices of the outermost layer are already that. `inner` is the number of experts of this level, `computed` that of
/// those among them that compute.
pub(super) fn leaves(
    l: &mut Lowering,
    site: Site<'_>,
    choice: Choice,
    (inner, computed): (usize, usize),
) -> (Choice, Experts) {
    let (Rows::Experts { experts: outer, .. }, Some(&gather), Some((outer_chosen, outer_weights))) =
        (site.rows, site.gathers.last(), site.outer_choice)
    else {
        return worked_on(l, site, choice, (inner, computed));
    };
    let count = outer * inner;
    let [row_count, k] = l.extents(choice.chosen);
    let b = l.b();
    // Slots as tokens with one choice each, so that a row finds what belongs to its slot.
    let slots = b.ty(outer_chosen).elements();
    let positions = b.reshape(gather.positions, [slots, 1]);
    let per_slot = Gather { order: gather.order, positions };
    let outer_chosen = b.reshape(outer_chosen, [slots]);
    let owner = per_slot.apply(b, outer_chosen);
    let owner = b.to_float(owner);
    let owner = b.reshape(owner, [row_count, 1]);
    let weight = b.reshape(outer_weights, [slots, 1]);
    let weight = b.op(Op::Dispatch { weighted: false }, &[weight, gather.order, positions]);
    let leaf = |b: &mut Builder, inner_index: Value, columns: usize| {
        let own = b.to_float(inner_index);
        let owner = b.broadcast(owner, [row_count, columns]);
        let base = b.scale(owner, inner as f64);
        let index = b.add(base, own);
        // Either being -1 makes the entry none.
        let least = b.binary(Binary::Min, owner, own);
        let zero = b.fill(0.0, [row_count, columns]);
        let none = b.fill(-1.0, [row_count, columns]);
        let missing = b.binary(Binary::Less, least, zero);
        let index = b.select(missing, none, index);
        b.to_index(index, count)
    };
    let chosen = leaf(b, choice.chosen, k);
    let every = b.ramp(inner, 1);
    let every = b.broadcast(every, [row_count, inner]);
    let columns = leaf(b, every, inner);
    let zero = b.fill(0.0, [row_count, 1]);
    let valid = b.binary(Binary::LessEqual, zero, owner);
    let rescale = Some(Rescale { columns, weight });
    // None in an expert is without computation.
    (Choice { chosen, ..choice }, Experts { count, computed: count, rescale, valid: Some(valid) })
}

/// Leaves out the choices of tokens that this layer does not work on: where a predictor decides who goes through, the
/// others are there too.
fn worked_on(l: &mut Lowering, site: Site<'_>, choice: Choice, (count, computed): (usize, usize)) -> (Choice, Experts) {
    let Some(valid) = site.valid_rows else {
        return (choice, Experts { count, computed, rescale: None, valid: None });
    };
    let b = l.b();
    let shape = b.shape(choice.chosen);
    let index = b.to_float(choice.chosen);
    let none = b.fill(-1.0, shape.clone());
    let each = b.broadcast(valid, shape);
    let index = b.select(each, index, none);
    let chosen = b.to_index(index, count);
    (Choice { chosen, ..choice }, Experts { count, computed, rescale: None, valid: Some(valid) })
}

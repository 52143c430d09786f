//! The `moe` layer: what a router decided, executed sparsely.
//!
//! Whatever the shape of the decision, it becomes one of two forms. Either every row goes to some experts with a weight
//! each (`chosen` and `weights` `[N, K]`, -1 for none): the rows are sorted by expert, the experts run as one grouped
//! product over ragged segments, and the results are summed per token in the order of the slots. Or every expert works
//! on mixtures of all tokens of a sequence (soft mixture of experts).

use moec_ir::{Binary, Builder, CapacityPriority, DType, Op, Output, TensorType, Unary, Value};
use moec_syntax::Span;

use super::{LowerError, Lowering, MoeLayerInfo, Rows};
use crate::losses::{LossContext, Rescale, RowKind};
use crate::model::{CapacityOrder, Moe};
use crate::router::{Assignment, AuxiliaryLoss, Gather, Mode, Nested, Quantity, Routing, RoutingContext, Source};

/// A decision as rows and experts.
#[derive(Clone, Copy)]
struct Choice {
    /// The experts of each row, i32 `[N, K]`; -1 for none.
    chosen: Value,
    /// Their weights, `[N, K]`.
    weights: Value,
    /// Most entries of `chosen` that are not -1.
    bound: usize,
}

/// The experts that a layer runs, and how they are counted.
#[derive(Clone, Copy)]
struct Experts {
    /// Number of experts; of both levels in a `moe` inside an expert.
    count: usize,
    /// How what the inner router says about its own experts is spread over those of both levels.
    rescale: Option<Rescale>,
    /// 1 for a row with a token that is worked on, else 0, `[N, 1]`; `None` if all are.
    valid: Option<Value>,
}

impl Lowering {
    pub(super) fn moe(&mut self, moe: &Moe, span: Span, x: Value, rows: Rows) -> Value {
        let path = self.b().path("");
        let tokens = self.b().shape(x).first().copied().unwrap_or(0);
        let Some(mut routing) = self.route(moe, x, rows) else { return x };
        let choice = match self.choice(&routing.assignment, tokens, moe.experts) {
            Ok(choice) => choice,
            Err(message) => {
                self.refuse(moe, message);
                return x;
            }
        };
        let average = moe.route.experts_per_token(moe.experts, self.time);
        let own_losses: Vec<_> = routing.auxiliary.iter().map(|l| (l.name.clone(), l.weight)).collect();
        let (z, experts, capacity) = match (choice, routing.assignment) {
            (Some(choice), _) => {
                let (choice, experts) = self.leaves(choice, moe.experts, rows);
                if let Assignment::TokenChoice { experts, .. } = &mut routing.assignment {
                    *experts = choice.chosen;
                }
                let (z, capacity, kept) = self.sparse(moe, x, choice, experts, average);
                if self.options.loss {
                    self.balance(moe, &path, routing, choice, experts, average);
                }
                if self.observed() {
                    self.balance_metrics(&path, experts, choice, kept);
                }
                self.expose(&path, experts.count, (choice.chosen, choice.weights), (kept.chosen, kept.weights));
                (z, experts.count, capacity)
            }
            (None, Assignment::Slots { dispatch, combine }) => {
                let z = self.soft(moe, x, dispatch, combine, average);
                if self.options.loss {
                    self.own_losses(&path, routing.auxiliary);
                }
                if self.options.loss || self.options.routes {
                    self.slot_outputs(&path, moe.experts, combine);
                }
                (z, moe.experts, None)
            }
            (None, _) => (x, moe.experts, None),
        };
        let z = self.shared_experts(moe, x, z);
        let balance = moe.balance.iter().map(|l| (l.loss.name.to_string(), l.weight()));
        let losses = balance.chain(own_losses).collect();
        self.moe_layers.push(MoeLayerInfo {
            path,
            experts,
            experts_per_token: average,
            shared: moe.shared,
            strategy: moe.route.strategy.name().to_string(),
            capacity,
            losses,
            span,
        });
        z
    }

    /// Lets the strategy build its graph; counts what it declared as the router's.
    fn route(&mut self, moe: &Moe, x: Value, rows: Rows) -> Option<Routing> {
        if matches!(rows, Rows::Experts { .. }) && self.gathers.is_empty() {
            self.refuse(moe, "cannot stand inside the experts of a router that mixes tokens".into());
            return None;
        }
        let before = self.emitter.parameters.len();
        let nested = match rows {
            Rows::Tokens => None,
            Rows::Experts { experts, offsets } => Some(Nested { experts, offsets }),
        };
        let newest = self.newest();
        let mut context = RoutingContext {
            emitter: &mut self.emitter,
            tokens: x,
            source: Source { ids: self.token_ids, time: self.sequence_length, gathers: &self.gathers, newest },
            experts: moe.experts,
            time: self.time,
            vocab: self.options.vocab,
            nested,
            refused: None,
        };
        let routing = moe.route.strategy.lower(&mut context, &moe.route.arguments);
        let refused = context.refused;
        let refused = refused.or_else(|| broken_promise(moe, &routing).map(str::to_string));
        if let Some(message) = refused {
            self.refuse(moe, message);
            return None;
        }
        let declared = self.emitter.parameters.values().skip(before);
        self.router_weights += declared.map(|d| d.elements as f64 * d.share).sum::<f64>();
        Some(routing)
    }

    fn refuse(&mut self, moe: &Moe, message: String) {
        let strategy = moe.route.strategy.name().to_string();
        self.error.get_or_insert(LowerError::Routing { strategy, message, span: moe.route_span });
    }

    /// Checks what a strategy returned, and brings it into the form of a choice; `None` for slots.
    fn choice(&mut self, assignment: &Assignment, tokens: usize, experts: usize) -> Result<Option<Choice>, String> {
        let ty = |l: &mut Self, value: Value| l.b().ty(value).clone();
        let choice = match *assignment {
            Assignment::TokenChoice { experts: chosen, weights } => {
                let (found, given) = (ty(self, chosen), ty(self, weights));
                let k = match (found.dtype, found.shape.as_slice()) {
                    (DType::I32, &[n, k]) if n == tokens && k > 0 => k,
                    _ => return Err(format!("chose experts as {found}, not as i32[{tokens}, K]")),
                };
                if given != TensorType::f32([tokens, k]) {
                    return Err(format!("gave weights of type {given}, not f32[{tokens}, {k}]"));
                }
                Choice { chosen, weights, bound: tokens.saturating_mul(k) }
            }
            Assignment::DenseGates { gates } => {
                let given = ty(self, gates);
                if given != TensorType::f32([tokens, experts]) {
                    return Err(format!("gave gates of type {given}, not f32[{tokens}, {experts}]"));
                }
                let chosen = self.b().nonzero(gates);
                Choice { chosen, weights: gates, bound: tokens.saturating_mul(experts) }
            }
            Assignment::ExpertChoice { tokens: chosen, weights } => {
                let (found, given) = (ty(self, chosen), ty(self, weights));
                let p = match (found.dtype, found.shape.as_slice()) {
                    (DType::I32, &[e, p]) if e == experts && p > 0 => p,
                    _ => return Err(format!("chose tokens as {found}, not as i32[{experts}, P]")),
                };
                if given != TensorType::f32([experts, p]) {
                    return Err(format!("gave weights of type {given}, not f32[{experts}, {p}]"));
                }
                self.expert_choice(chosen, weights, tokens, experts, p)
            }
            Assignment::Slots { dispatch, combine } => {
                let (given, other) = (ty(self, dispatch), ty(self, combine));
                let fits = match given.shape.as_slice() {
                    &[n, slots] => n == tokens && slots > 0 && slots.is_multiple_of(experts),
                    _ => false,
                };
                if !fits || given.dtype != DType::F32 || other != given {
                    return Err(format!("gave slots of types {given} and {other}, not f32[{tokens}, {experts} * P]"));
                }
                if !self.gathers.is_empty() {
                    return Err("mixes the tokens of whole sequences, and only some tokens come here".into());
                }
                return Ok(None);
            }
        };
        Ok(Some(choice))
    }

    /// Experts choose tokens: seen from a token, all experts that chose it.
    fn expert_choice(&mut self, chosen: Value, weights: Value, tokens: usize, experts: usize, p: usize) -> Choice {
        let b = self.b();
        let ones = b.fill(1.0, [experts, p]);
        let members = b.scatter_last(ones, chosen, tokens);
        let members = b.transpose(members);
        let weights = b.scatter_last(weights, chosen, tokens);
        let weights = b.transpose(weights);
        // Membership and not the weight decides, which may be 0.
        let chosen = b.nonzero(members);
        Choice { chosen, weights, bound: experts.saturating_mul(p) }
    }

    /// Numbers the experts across both levels: inner expert j of outer expert i is expert `i * E + j` of the layer. The
    /// choices of the outermost layer are already that.
    fn leaves(&mut self, choice: Choice, inner: usize, rows: Rows) -> (Choice, Experts) {
        let (Rows::Experts { experts: outer, .. }, Some(&gather)) = (rows, self.gathers.last()) else {
            return self.worked_on(choice, inner);
        };
        let Some(&(outer_chosen, outer_weights)) = self.outer_choices.last() else {
            return self.worked_on(choice, inner);
        };
        let count = outer * inner;
        let b = &mut self.emitter.builder;
        let [row_count, k] = [0, 1].map(|axis| b.shape(choice.chosen).get(axis).copied().unwrap_or(1));
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
        (Choice { chosen, ..choice }, Experts { count, rescale, valid: Some(valid) })
    }

    /// Leaves out the choices of tokens that this layer does not work on: where a predictor decides who goes through,
    /// the others are there too.
    fn worked_on(&mut self, choice: Choice, count: usize) -> (Choice, Experts) {
        let Some(valid) = self.valid_rows else {
            return (choice, Experts { count, rescale: None, valid: None });
        };
        let b = self.b();
        let shape = b.shape(choice.chosen);
        let index = b.to_float(choice.chosen);
        let none = b.fill(-1.0, shape.clone());
        let each = b.broadcast(valid, shape);
        let index = b.select(each, index, none);
        let chosen = b.to_index(index, count);
        (Choice { chosen, ..choice }, Experts { count, rescale: None, valid: Some(valid) })
    }

    /// Sorts rows by expert, runs the experts, and sums per token. Returns also the bound on the tokens of an expert and
    /// the choices that were kept, with their weights.
    fn sparse(
        &mut self,
        moe: &Moe,
        x: Value,
        choice: Choice,
        Experts { count: experts, rescale, .. }: Experts,
        average: f64,
    ) -> (Value, Option<usize>, Choice) {
        let [tokens, k] = [0, 1].map(|axis| self.b().shape(choice.chosen).get(axis).copied().unwrap_or(0));
        let mode = self.options.mode;
        // Dense gates have a column per expert, of which a token uses few.
        let per_token = match average {
            average if average < k as f64 => average.ceil().max(1.0) as usize,
            _ => k,
        };
        let capacity = moe.capacity.and_then(|capacity| capacity.tokens(mode, tokens, per_token, experts));
        let mut kept = choice;
        if let (Some(limit), Some(bound)) = (moe.capacity, capacity) {
            kept = self.limited(choice, experts, bound, limit.order, limit.renormalise);
        }
        let offsets = self.b().op(Op::SortByExpert { experts, rows: kept.bound }, &[kept.chosen]);
        let (order, positions) = (offsets.result(1), offsets.result(2));
        let rows = self.b().op(Op::Dispatch { weighted: false }, &[x, order, positions]);
        self.gathers.push(Gather { order, positions });
        // What an expert contributes in the end is the product of the weights of all levels.
        let weights = match rescale {
            Some(rescale) => {
                let b = self.b();
                let outer = b.broadcast(rescale.weight, [tokens, k]);
                b.mul(kept.weights, outer)
            }
            None => kept.weights,
        };
        self.outer_choices.push((kept.chosen, weights));
        let y = self.experts(moe, average, rows, Rows::Experts { experts, offsets });
        self.outer_choices.pop();
        self.gathers.pop();
        let z = self.b().op(Op::Combine { weighted: true }, &[y, order, positions, kept.weights]);
        (z, capacity, kept)
    }

    /// The choices that a bounded capacity leaves.
    fn limited(
        &mut self,
        choice: Choice,
        experts: usize,
        capacity: usize,
        order: CapacityOrder,
        renormalise: bool,
    ) -> Choice {
        let priority = match order {
            CapacityOrder::Token => CapacityPriority::Token,
            CapacityOrder::Choice => CapacityPriority::Choice,
            CapacityOrder::Probability => CapacityPriority::Probability,
        };
        let b = self.b();
        let kept = b.limit_capacity(choice.chosen, choice.weights, experts, capacity, priority);
        let bound = choice.bound.min(experts.saturating_mul(capacity));
        let weights = if renormalise { renormalised(b, kept, choice.weights) } else { choice.weights };
        Choice { chosen: kept, weights, bound }
    }

    fn shared_experts(&mut self, moe: &Moe, x: Value, mut z: Value) -> Value {
        for copy in 0..moe.shared {
            let scope = if moe.shared == 1 { "shared".to_string() } else { format!("shared.{copy}") };
            let shared = |l: &mut Self| l.sequence(&moe.shared_expert, x, Rows::Tokens);
            let y = self.inside(1.0, |l| l.opened(&scope, shared));
            z = self.b().add(z, y);
        }
        z
    }

    /// The routed experts on rows that are sorted by expert.
    fn experts(&mut self, moe: &Moe, average: f64, sorted: Value, rows: Rows) -> Value {
        let share = average / moe.experts as f64;
        self.inside(share, |l| l.opened("experts", |l| l.sequence(&moe.expert, sorted, rows)))
    }

    /// Every expert works on P mixtures of the tokens of each sequence: `slots = Dᵀ x`, `y = C experts(slots)`, both per
    /// sequence (Puigcerver et al. 2023, arXiv 2308.00951, equations 1 to 3).
    fn soft(&mut self, moe: &Moe, x: Value, dispatch: Value, combine: Value, average: f64) -> Value {
        let (experts, time) = (moe.experts, self.time);
        let b = self.b();
        let [tokens, width] = [0, 1].map(|axis| b.shape(x).get(axis).copied().unwrap_or(1));
        let slots = b.shape(dispatch).get(1).copied().unwrap_or(experts);
        let (batch, per_expert) = (tokens / time.max(1), slots / experts);
        let sequences = b.ramp(batch + 1, time as i32);
        let mixtures = b.op(Op::GroupedMatMulWeightGrad, &[dispatch, x, sequences]);
        let rows = swap_outer(b, mixtures, [batch, experts, per_expert * width]);
        let rows = b.reshape(rows, [experts * batch * per_expert, width]);
        let offsets = b.ramp(experts + 1, (batch * per_expert) as i32);
        let y = self.experts(moe, average, rows, Rows::Experts { experts, offsets });
        let b = self.b();
        let y = swap_outer(b, y, [experts, batch, per_expert * width]);
        let y = b.reshape(y, [batch, slots, width]);
        b.op(Op::GroupedMatMul { transpose_b: false, bias: false }, &[combine, y, sequences])
    }

    /// Adds the balance losses of the layer and of its router to the objective.
    fn balance(&mut self, moe: &Moe, path: &str, routing: Routing, choice: Choice, experts: Experts, average: f64) {
        let own = routing.auxiliary.clone();
        // The sequences of the batch, where the rows are whole sequences.
        let time = experts.rescale.is_none().then_some(self.time);
        let rows = RowKind { rescale: experts.rescale, valid: experts.valid, time, average };
        let builder = &mut self.emitter.builder;
        let mut context = LossContext::new(builder, routing, (choice.chosen, choice.weights), experts.count, rows);
        for balance in &moe.balance {
            let value = (balance.loss.lower)(&mut context, &balance.arguments);
            context.builder().output(Output::Aux { path: path.into(), loss: balance.loss.name.into() }, value);
            self.objective.push((value, balance.weight()));
        }
        self.own_losses(path, own);
    }

    /// Adds the losses of the router itself.
    fn own_losses(&mut self, path: &str, losses: Vec<AuxiliaryLoss>) {
        for loss in losses {
            self.b().output(Output::Aux { path: path.into(), loss: loss.name.into() }, loss.value);
            if self.options.mode == Mode::Train {
                self.objective.push((loss.value, loss.weight));
            }
        }
    }

    /// Whether anyone looks at the balance of the layers: a training step would compute it in vain.
    fn observed(&self) -> bool {
        self.options.loss && (self.options.mode == Mode::Evaluate || self.options.routes)
    }

    /// Outputs `load`, `dropped`, `entropy` and `balance` of the layer.
    fn balance_metrics(&mut self, path: &str, experts: Experts, choice: Choice, kept: Choice) {
        let Experts { count: experts, valid, .. } = experts;
        let limited = kept.chosen != choice.chosen;
        let b = self.b();
        let load = b.count(kept.chosen, experts);
        b.output(Output::Load(path.into()), load);
        let rows = b.sum_all(load);
        let one = b.fill(1.0, []);
        let dropped = if limited {
            let wanted = b.count(choice.chosen, experts);
            let wanted = b.sum_all(wanted);
            let wanted = b.binary(Binary::Max, wanted, one);
            let share = b.div(rows, wanted);
            let share = b.scale(share, -1.0);
            b.add_scalar(share, 1.0)
        } else {
            b.fill(0.0, [])
        };
        b.output(Output::Dropped(path.into()), dropped);

        let terms = entropy_terms(b, choice.weights);
        let tokens = b.shape(choice.weights).first().copied().unwrap_or(1);
        let sum = b.sum_all(terms);
        let entropy = match valid {
            // Rows without a token have no weights that count.
            Some(valid) => {
                let k = b.shape(terms).last().copied().unwrap_or(1);
                let each = b.broadcast(valid, [tokens, k]);
                let terms = b.mul(terms, each);
                let sum = b.sum_all(terms);
                let count = b.sum_all(valid);
                let count = b.binary(Binary::Max, count, one);
                let mean = b.div(sum, count);
                b.scale(mean, -1.0)
            }
            None => b.scale(sum, -1.0 / tokens.max(1) as f64),
        };
        b.output(Output::Entropy(path.into()), entropy);

        let rows = b.binary(Binary::Max, rows, one);
        let share = b.div(load, rows);
        let squares = b.mul(share, share);
        let sum = b.sum_all(squares);
        let balance = b.scale(sum, experts as f64);
        b.output(Output::Balance(path.into()), balance);
    }

    /// Outputs of what a layer decided, where they are asked for: see [`super::LowerOptions::routes`].
    pub(super) fn expose(&mut self, path: &str, experts: usize, choice: (Value, Value), kept: (Value, Value)) {
        if !self.options.routes {
            return;
        }
        let source =
            Source { ids: self.token_ids, time: self.sequence_length, gathers: &self.gathers, newest: self.newest() };
        let b = &mut self.emitter.builder;
        if !self.gathers.is_empty() {
            let rows = source.tokens(b);
            b.output(Output::Rows(path.into()), rows);
        }
        let gates = b.scatter_last(kept.1, kept.0, experts);
        b.output(Output::Experts(path.into()), choice.0);
        b.output(Output::Kept(path.into()), kept.0);
        b.output(Output::Weights(path.into()), choice.1);
        b.output(Output::Gates(path.into()), gates);
    }

    /// The outputs of a layer whose experts all work on equally many slots: a token goes to every expert, with the
    /// weight of all slots of the expert in what the token gets.
    fn slot_outputs(&mut self, path: &str, experts: usize, combine: Value) {
        let time = self.time;
        let b = self.b();
        let [tokens, slots] = [0, 1].map(|axis| b.shape(combine).get(axis).copied().unwrap_or(1));
        let shares = b.reshape(combine, [tokens, experts, slots / experts]);
        let shares = b.sum(shares, &[2]);
        if self.options.routes {
            let b = self.b();
            let every = b.ramp(experts, 1);
            let every = b.broadcast(every, [tokens, experts]);
            self.expose(path, experts, (every, shares), (every, shares));
        }
        if !self.options.loss {
            return;
        }
        let b = self.b();
        let load = b.fill((tokens / time.max(1) * (slots / experts)) as f64, [experts]);
        b.output(Output::Load(path.into()), load);
        let none = b.fill(0.0, []);
        b.output(Output::Dropped(path.into()), none);
        let terms = entropy_terms(b, shares);
        let sum = b.sum_all(terms);
        let entropy = b.scale(sum, -1.0 / tokens.max(1) as f64);
        b.output(Output::Entropy(path.into()), entropy);
        let perfect = b.fill(1.0, []);
        b.output(Output::Balance(path.into()), perfect);
    }
}

/// What a strategy declares for balance losses and did not return.
fn broken_promise(moe: &Moe, routing: &Routing) -> Option<&'static str> {
    let promised = moe.route.strategy.traits(&moe.route.arguments).provides;
    if promised.contains(&Quantity::Logits) && routing.logits.is_none() {
        return Some("declares scores and returned none");
    }
    let probabilities = routing.probabilities.or(routing.logits);
    (promised.contains(&Quantity::Probabilities) && probabilities.is_none())
        .then_some("declares probabilities and returned neither them nor scores")
}

/// Exchanges the two outer axes of `x` seen as `shape`.
fn swap_outer(b: &mut Builder, x: Value, shape: [usize; 3]) -> Value {
    let x = b.reshape(x, shape);
    b.permute(x, &[1, 0, 2])
}

/// The weights that are left, scaled to the sum of all that the token had.
fn renormalised(b: &mut Builder, kept: Value, weights: Value) -> Value {
    let shape = b.shape(weights);
    let k = shape.last().copied().unwrap_or(1);
    let index = b.to_float(kept);
    let zero = b.fill(0.0, shape);
    let left = b.binary(Binary::LessEqual, zero, index);
    let rest = b.mul(weights, left);
    // Sums of absolute values: gates that may be negative could cancel to nothing.
    let mut size = |values: Value| {
        let values = b.unary(Unary::Abs, values);
        b.sum(values, &[1])
    };
    let (before, after) = (size(weights), size(rest));
    // A token that has lost everything keeps 0.
    let tiny = b.fill(1e-20, []);
    let after = b.binary(Binary::Max, after, tiny);
    let factor = b.div(before, after);
    let factor = b.broadcast_last(factor, k);
    b.mul(rest, factor)
}

/// `p ln p` for the weights of each row as shares p; 0 for a row without weights.
fn entropy_terms(b: &mut Builder, weights: Value) -> Value {
    let tiny = b.fill(1e-30, []);
    let k = b.shape(weights).last().copied().unwrap_or(1);
    let total = b.sum(weights, &[1]);
    let total = b.binary(Binary::Max, total, tiny);
    let total = b.broadcast_last(total, k);
    let p = b.div(weights, total);
    let guarded = b.binary(Binary::Max, p, tiny);
    let log = b.unary(Unary::Log, guarded);
    b.mul(p, log)
}

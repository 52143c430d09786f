//! From program to graph, for arguments, numbers of experts and tokens, and a mode that are known now.
//!
//! Statements are emitted in source order, those only that the result, a loss or, in training, an update depends on. So
//! the same computation written here and in Rust gives the same nodes under the same names.
//!
//! What is emitted was found sound in its situation (`sound`): every number has a value, and every extent is one.

use moec_ir::{Binary, Builder, Invariant, Tensor, Unary, Value, internal_error};
use moec_syntax::Span;

use super::kinds::{Columns, Of, Shape};
use super::program::{
    Action, Along, Assigned, Expr, Node, Num, Over, Program, Reduction, Situation, Step, TableKind, assigned, branch,
};
use super::tables;
use crate::emit::Role;
use crate::origin::origin_of;
use crate::router::{Assignment, AuxiliaryLoss, NoisyScores, Routing, RoutingContext};

/// What [`keep_top_k`](Node::KeepTopK) puts in place of minus infinity: far below every score, and finite, since
/// arithmetic on infinities is not defined on every device.
pub(super) const LOWEST: f64 = -1e30;

/// Above every index whose float is exact.
const LARGEST_WHOLE: usize = 1 << 24;

/// Emits a program. `noisy` says whether its `noisy` is random in this situation.
pub(super) fn emit(program: &Program, situation: &Situation, noisy: bool, context: &mut RoutingContext<'_>) -> Routing {
    let live = live(program, situation, noisy, context.has_losses());
    let mut emission = Emission {
        program,
        situation,
        context,
        tensors: vec![None; program.tensor_slots],
        states: vec![None; program.states.len()],
    };
    let mut auxiliary = Vec::new();
    for (step, _) in program.steps.iter().zip(&live).filter(|(_, live)| **live) {
        emission.step(step, &mut auxiliary);
    }
    let returned = &program.returned;
    emission.at(returned.span, |e| {
        let all = vec![e.context.token_count(), e.context.experts()];
        let assignment = match &returned.assignment {
            Assigned::TokenChoice { experts, weights } => {
                let experts = e.value(experts);
                let shape = e.b().shape(experts);
                let weights = e.fitted(weights, shape);
                let b = e.b();
                Assignment::TokenChoice { experts: matrix(b, experts), weights: matrix(b, weights) }
            }
            Assigned::DenseGates { gates } => Assignment::DenseGates { gates: e.fitted(gates, all.clone()) },
        };
        let losses = e.context.has_losses();
        let logits = returned.logits.as_ref().filter(|_| losses).map(|logits| e.fitted(logits, all.clone()));
        let probabilities = returned.probabilities.as_ref().filter(|_| losses).map(|p| e.fitted(p, all.clone()));
        let noisy = returned.noisy.as_ref().filter(|_| noisy && losses).map(|(scores, std)| {
            let scores = e.fitted(scores, all.clone());
            NoisyScores { scores, std: e.fitted(std, all) }
        });
        Routing { assignment, logits, probabilities, noisy, auxiliary }
    })
}

/// Which steps anything depends on; `losses` says whether those of the router count.
pub(super) fn live(program: &Program, situation: &Situation, noisy: bool, losses: bool) -> Vec<bool> {
    let mut wanted = Wanted { slots: vec![false; program.tensor_slots], states: vec![false; program.states.len()] };
    for root in program.returned.expressions(losses, noisy && losses) {
        want(root, situation, &mut wanted);
    }
    let mut live = vec![false; program.steps.len()];
    for (step, live) in program.steps.iter().zip(&mut live).rev() {
        let (needed, value) = match &step.action {
            Action::Number { .. } => continue,
            Action::State { at } => {
                *live = wanted.states[*at];
                continue;
            }
            Action::Tensor { slot, value } => (wanted.slots[*slot], value),
            Action::TopK { values, indices, x, .. } => (wanted.slots[*values] || wanted.slots[*indices], x),
            Action::Update { state, value } => {
                wanted.states[*state] |= situation.training;
                (situation.training, value)
            }
            Action::Aux { value, .. } => (losses, value),
            Action::Assign { .. } => internal_error!("a name is given another value in a `repeat` only"),
            Action::Repeat { steps, .. } => {
                let slots = assigned(steps);
                *live = slots.iter().any(|&slot| wanted.slots[slot]);
                if *live {
                    // All of it is gone through, so all of it needs what it starts from.
                    slots.into_iter().for_each(|slot| wanted.slots[slot] = true);
                    want_all(steps, situation, &mut wanted);
                }
                continue;
            }
        };
        *live = needed;
        if needed {
            want(value, situation, &mut wanted);
        }
    }
    live
}

/// What the statements walked so far read, from the last one back.
struct Wanted {
    slots: Vec<bool>,
    states: Vec<bool>,
}

/// Marks what the statements of a `repeat` read.
fn want_all(steps: &[Step], situation: &Situation, wanted: &mut Wanted) {
    for step in steps {
        match &step.action {
            Action::Tensor { value, .. } | Action::TopK { x: value, .. } | Action::Assign { value, .. } => {
                want(value, situation, wanted);
            }
            Action::Repeat { steps, .. } => want_all(steps, situation, wanted),
            Action::Number { .. } | Action::State { .. } | Action::Update { .. } | Action::Aux { .. } => {}
        }
    }
}

/// Marks what an expression reads.
fn want(expr: &Expr, situation: &Situation, wanted: &mut Wanted) {
    match expr.node {
        Node::Slot(slot) | Node::Weight { slot, .. } => wanted.slots[slot] = true,
        Node::State(at) => wanted.states[at] = true,
        _ => {}
    }
    for inner in expr.inner(|condition| situation.holds(condition)) {
        want(inner, situation, wanted);
    }
}

struct Emission<'l, 'c, 'e> {
    program: &'l Program,
    situation: &'l Situation,
    context: &'c mut RoutingContext<'e>,
    tensors: Vec<Option<Value>>,
    states: Vec<Option<Value>>,
}

impl Emission<'_, '_, '_> {
    fn b(&mut self) -> &mut Builder {
        self.context.builder()
    }

    /// Runs `f` with nodes that remember the statement.
    fn at<T>(&mut self, span: Span, f: impl FnOnce(&mut Self) -> T) -> T {
        let former = self.b().set_origin(Some(origin_of(span)));
        let result = f(self);
        self.b().set_origin(former);
        result
    }

    fn step(&mut self, step: &Step, auxiliary: &mut Vec<AuxiliaryLoss>) {
        self.at(step.span, |e| match &step.action {
            Action::Number { .. } => {}
            Action::State { at } => {
                e.state(*at);
            }
            Action::Tensor { slot, value } => {
                let value = e.value(value);
                e.set(*slot, value);
            }
            Action::TopK { values, indices, x, k } => {
                let x = e.value(x);
                let k = e.size(k);
                let (top, chosen) = e.b().top_k(x, k);
                e.set(*values, top);
                e.set(*indices, chosen);
            }
            Action::Update { state, value } => {
                let current = e.state(*state);
                let shape = e.b().shape(current);
                let next = e.fitted(value, shape);
                e.context.update_state(&e.program.states[*state].name, next);
            }
            Action::Aux { name, weight, value } => {
                let value = e.value(value);
                let weight = e.float(weight);
                auxiliary.push(AuxiliaryLoss { name: name.clone(), value, weight });
            }
            Action::Repeat { count, steps } => {
                for _ in 0..e.size(count) {
                    steps.iter().for_each(|step| e.step(step, auxiliary));
                }
            }
            Action::Assign { slot, value } => {
                let shape = e.tensors[*slot].map(|former| e.b().shape(former));
                let shape = shape.invariant("a name has a value before a `repeat` gives it another");
                let value = e.fitted(value, shape);
                e.set(*slot, value);
            }
        });
    }

    fn set(&mut self, slot: usize, value: Value) {
        self.tensors[slot] = Some(value);
    }

    fn size(&self, num: &Num) -> usize {
        self.situation.size(num).invariant("an extent is one where a router is emitted")
    }

    fn float(&self, num: &Num) -> f64 {
        self.situation.float(num).invariant("a number has a value where a router is emitted")
    }

    fn state(&mut self, at: usize) -> Value {
        if let Some(value) = self.states[at] {
            return value;
        }
        let state = &self.program.states[at];
        let shape: Vec<usize> = state.columns.iter().map(|columns| self.size(columns)).collect();
        let elements: usize = shape.iter().product();
        let initial = Tensor::floats(vec![self.float(&state.start) as f32; elements]);
        let initial = initial.with_shape(shape).invariant("a tensor has as many elements as its shape says");
        let value = self.context.state(&state.name, initial);
        self.states[at] = Some(value);
        value
    }

    fn number(&mut self, number: &Num) -> Value {
        let value = self.float(number);
        self.b().fill(value, [])
    }

    /// The value of an expression.
    fn value(&mut self, expr: &Expr) -> Value {
        match &expr.node {
            Node::Number(number) => self.number(number),
            Node::Slot(slot) => self.tensors[*slot].invariant("a name is bound before it is read"),
            Node::State(at) => self.state(*at),
            Node::Activations => self.context.tokens(),
            Node::TokenIds => self.context.token_ids(),
            Node::PreviousIds => self.context.previous_ids(),
            Node::Position => self.context.positions(),
            Node::Linear { name, x, width, bias } => {
                let x = self.value(x);
                let bias = bias.as_ref().is_some_and(|bias| self.situation.holds(bias));
                self.context.linear(name, x, self.size(width), bias)
            }
            Node::Parameter { name, rows, columns, start } => {
                let shape: Vec<usize> = rows.iter().chain(columns).map(|extent| self.size(extent)).collect();
                let role = match (start, &shape[..]) {
                    (Some(start), _) => Role::Constant(self.float(start)),
                    (None, &[fan_out, fan_in]) => Role::Weight { fan_in, fan_out },
                    (None, _) => Role::Constant(0.0),
                };
                self.context.parameter(name, shape, role)
            }
            Node::Weight { name, .. } => {
                let [fan_out, fan_in] = self.matrix_extents(expr.shape());
                let role = Role::Weight { fan_in, fan_out };
                self.context.parameter(&format!("{name}.weight"), [fan_out, fan_in], role)
            }
            Node::Identity(n) => {
                let n = self.size(n);
                let b = self.b();
                let numbers = b.ramp(n, 1);
                let numbers = b.to_float(numbers);
                let (rows, columns) = (b.broadcast_last(numbers, n), b.broadcast(numbers, [n, n]));
                b.binary(Binary::Equal, rows, columns)
            }
            Node::Normalize(x) => self.of(x, normalize),
            Node::Product { left, right, with_rows } => {
                let (left, right) = (self.value(left), self.value(right));
                if *with_rows { self.b().linear(left, right, None) } else { self.b().matmul(left, right) }
            }
            Node::Lookup(table, ids) => self.lookup(*table, ids),
            Node::Table(_) => internal_error!("a table is only looked up in"),
            Node::Noise { normal, columns } => {
                let shape = [self.context.token_count(), self.size(columns)];
                if *normal { self.context.normal(shape) } else { self.context.uniform(shape) }
            }
            Node::Filled { value, tokens, columns } => {
                let rows = tokens.then(|| self.context.token_count());
                let columns = columns.iter().map(|columns| self.size(columns));
                let shape: Vec<usize> = rows.into_iter().chain(columns).collect();
                self.b().fill(*value, shape)
            }
            Node::Binary(f, a, b) => self.binary(*f, a, b),
            Node::Remainder(a, b) => self.remainder(a, b),
            Node::Select(condition, a, b) => self.select(condition, a, b),
            Node::Softmax(x, over) => self.along(x, *over, |b, lines| b.softmax(lines.values)),
            Node::LogSumExp(x, over) => self.across(x, *over, |b, lines| b.log_sum_exp(lines.values)),
            Node::Quantile(x, q, over) => {
                let q = self.float(q);
                self.across(x, *over, |b, lines| quantile(b, lines, q))
            }
            Node::Reduce(reduction @ (Reduction::Max | Reduction::Min), x, over) => {
                self.across(x, *over, |b, lines| extreme(b, lines, *reduction == Reduction::Min))
            }
            Node::Reduce(reduction, x, Over::Sequence) => {
                let mean = *reduction == Reduction::Mean;
                self.across(x, Over::Sequence, |b, lines| {
                    if mean { b.mean(lines.values, &[1]) } else { b.sum(lines.values, &[1]) }
                })
            }
            Node::Reduce(reduction, x, over) => self.of(x, |b, x, shape| reduce(b, *reduction, x, shape, *over)),
            Node::CumulativeSum(x, along) => {
                let time = self.context.time();
                self.of(x, |b, x, shape| cumulative_sum(b, x, shape, *along, time))
            }
            Node::KeepTopK(x, k, Over::Columns) => {
                let k = self.size(k);
                self.of(x, |b, x, _| keep_top_k(b, x, k))
            }
            // As many as there are at most: how many tokens there are differs between training and sampling.
            Node::KeepTopK(x, k, over) => {
                let k = self.float(k).max(1.0) as usize;
                self.along(x, *over, |b, lines| keep_top_k(b, lines.values, k.min(lines.length)))
            }
            Node::Gather(x, indices) => self.gather(x, indices),
            Node::Scatter(values, indices) => self.scatter(values, indices),
            Node::Count(indices) => {
                let experts = self.context.experts();
                self.of(indices, |b, indices, _| b.count(indices, experts))
            }
            Node::Unary(f, x) => self.of(x, |b, x, _| b.unary(*f, x)),
            Node::Not(x) => self.of(x, |b, x, _| {
                let one = b.fill(1.0, []);
                b.sub(one, x)
            }),
            Node::StopGradient(x) => self.of(x, |b, x, _| b.stop_gradient(x)),
            Node::ToFloat(x) => self.of(x, |b, x, _| b.to_float(x)),
            Node::ToIndex(x, of) => {
                let size = if *of == Of::Columns(Columns::Experts) { self.context.experts() } else { LARGEST_WHOLE };
                self.of(x, |b, x, _| b.to_index(x, size))
            }
            Node::If(branches, otherwise) => {
                self.value(branch(branches, otherwise, |condition| self.situation.holds(condition)))
            }
        }
    }

    /// What `f` makes of the value of an expression, which is of that shape.
    fn of(&mut self, x: &Expr, f: impl FnOnce(&mut Builder, Value, &Shape) -> Value) -> Value {
        let value = self.value(x);
        f(self.b(), value, x.shape())
    }

    /// What `f` makes of each line of `x` along an axis, in the shape that `x` has.
    fn along(&mut self, x: &Expr, over: Over, f: impl FnOnce(&mut Builder, Lines) -> Value) -> Value {
        let time = self.context.time();
        self.of(x, |b, x, shape| {
            let lines = Lines::of(b, x, shape, over, time);
            let values = f(b, lines);
            lines.back(b, values)
        })
    }

    /// What `f` makes of each line of `x` along an axis, a number for each, in the shape that `x` has without the axis.
    fn across(&mut self, x: &Expr, over: Over, f: impl FnOnce(&mut Builder, Lines) -> Value) -> Value {
        let time = self.context.time();
        self.of(x, |b, x, shape| {
            let lines = Lines::of(b, x, shape, over, time);
            let numbers = f(b, lines);
            lines.without(b, numbers)
        })
    }

    fn matrix_extents(&self, shape: &Shape) -> [usize; 2] {
        let extents = [&shape.rows, &shape.columns].map(|axis| axis.as_ref().and_then(|a| self.situation.columns(a)));
        extents.map(|extent| extent.invariant("a matrix has extents where a router is emitted"))
    }

    /// What a table has for each token; entries behind those of the vocabulary are for places without a token.
    fn lookup(&mut self, at: usize, ids: &Expr) -> Value {
        let table = &self.program.tables[at];
        let (vocab, experts, tokens) = (self.context.vocab(), self.context.experts(), self.context.token_count());
        let choices = table.choices.as_ref().map(|choices| self.size(choices));
        let seed = self.size(&table.seed);
        let columns = choices.unwrap_or(1);
        let source = match tables::source(table.made, vocab, experts, columns, seed) {
            Ok(source) => source,
            Err(message) => {
                self.context.refuse(message);
                let b = self.b();
                if table.made == TableKind::Frequency {
                    return b.fill(0.0, [tokens]);
                }
                let shape: Vec<usize> = [tokens].into_iter().chain(choices).collect();
                let none = b.fill(-1.0, shape);
                return b.to_index(none, experts);
            }
        };
        let former = self.b().set_origin(Some(origin_of(table.span)));
        let entries = self.context.state_from_text(&table.name, source);
        self.b().set_origin(former);
        let ids = self.value(ids);
        let b = self.b();
        let size = b.ty(entries).elements();
        let id = b.to_float(ids);
        let (zero, none) = (b.fill(0.0, [tokens]), b.fill(vocab as f64, [tokens]));
        let is_none = b.binary(Binary::Less, id, zero);
        let key = b.select(is_none, none, id);
        let key = match choices {
            None => key,
            Some(choices) => {
                let first = b.scale(key, choices as f64);
                let first = b.broadcast_last(first, choices);
                let place = b.ramp(choices, 1);
                let place = b.to_float(place);
                b.add(first, place)
            }
        };
        let key = b.to_index(key, size);
        let found = b.lookup(key, entries);
        if table.made != TableKind::Frequency {
            return found;
        }
        let parts = b.to_float(found);
        b.scale(parts, 1.0 / tables::WHOLE as f64)
    }

    /// `a - b * whole(a / b)`
    fn remainder(&mut self, a: &Expr, b: &Expr) -> Value {
        let (x, y) = self.pair(a, b);
        let b = self.b();
        let quotient = b.div(x, y);
        let whole = b.to_index(quotient, LARGEST_WHOLE);
        let whole = b.to_float(whole);
        let below = b.mul(whole, y);
        b.sub(x, below)
    }

    /// The elements of each row at the indices; one row for all tokens is repeated.
    fn gather(&mut self, x: &Expr, indices: &Expr) -> Value {
        let (value, indices) = (self.value(x), self.value(indices));
        let tokens = self.context.token_count();
        let b = self.b();
        let columns = b.columns(value);
        let value = if x.shape().tokens { value } else { b.broadcast(value, [tokens, columns]) };
        let shape = b.shape(indices);
        let indices = matrix(b, indices);
        let gathered = b.gather_last(value, indices);
        b.reshape(gathered, shape)
    }

    /// Rows over all experts with the values at the indices.
    fn scatter(&mut self, values: &Expr, indices: &Expr) -> Value {
        let experts = self.context.experts();
        let indices = self.value(indices);
        let shape = self.b().shape(indices);
        let values = self.fitted(values, shape);
        let b = self.b();
        let (values, indices) = (matrix(b, values), matrix(b, indices));
        b.scatter_last(values, indices, experts)
    }

    fn binary(&mut self, f: Binary, left: &Expr, right: &Expr) -> Value {
        // The builder's own way to add or multiply a number, which adds nothing where that changes nothing.
        let (value, number) = match (&left.node, &right.node) {
            (_, Node::Number(number)) => (left, number),
            (Node::Number(number), _) => (right, number),
            _ => {
                let (a, b) = self.pair(left, right);
                return self.b().binary(f, a, b);
            }
        };
        let (x, number) = (self.value(value), self.float(number));
        let b = self.b();
        match f {
            Binary::Mul => b.scale(x, number),
            Binary::Add if number == 0.0 => x,
            Binary::Add => b.add_scalar(x, number),
            _ => {
                let number = b.fill(number, []);
                let (left, right) = if std::ptr::eq(value, left) { (x, number) } else { (number, x) };
                b.binary(f, left, right)
            }
        }
    }

    /// Two operands that the builder can bring to one shape: a number for every token is repeated along the columns of
    /// the other.
    fn pair(&mut self, left: &Expr, right: &Expr) -> (Value, Value) {
        let (a, b) = (self.value(left), self.value(right));
        let (from, to) = (left.shape(), right.shape());
        match from.joined(to) {
            Some(joined) if joined != *from && joined != *to => {
                // One of them is over tokens, the other over columns.
                let columns = self.b().columns(if from.columns.is_some() { a } else { b });
                let shape = [self.context.token_count(), columns];
                (self.spread(a, from, &shape), self.spread(b, to, &shape))
            }
            Some(_) if from.tokens && from.columns.is_none() && to.columns.is_some() => {
                let shape = self.b().shape(b);
                (self.spread(a, from, &shape), b)
            }
            Some(_) if to.tokens && to.columns.is_none() && from.columns.is_some() => {
                let shape = self.b().shape(a);
                (a, self.spread(b, to, &shape))
            }
            _ => (a, b),
        }
    }

    fn select(&mut self, condition: &Expr, a: &Expr, b: &Expr) -> Value {
        let parts = [condition, a, b].map(|part| (self.value(part), part.shape()));
        if let Some((matrix, _)) = parts.iter().find(|(_, shape)| shape.rows.is_some()) {
            let shape = self.b().shape(*matrix);
            let [condition, a, b] = parts.map(|(value, from)| self.spread(value, from, &shape));
            return self.b().select(condition, a, b);
        }
        let tokens = parts.iter().any(|(_, shape)| shape.tokens);
        let widest = parts.iter().find(|(_, shape)| shape.columns.is_some());
        let columns = widest.map(|(value, _)| self.b().columns(*value));
        let tokens = tokens.then(|| self.context.token_count());
        let shape: Vec<usize> = tokens.into_iter().chain(columns).collect();
        let [condition, a, b] = parts.map(|(value, from)| self.spread(value, from, &shape));
        self.b().select(condition, a, b)
    }

    /// The value of an expression, repeated to a shape.
    fn fitted(&mut self, expr: &Expr, shape: Vec<usize>) -> Value {
        let (value, from) = (self.value(expr), expr.shape());
        self.spread(value, from, &shape)
    }

    fn spread(&mut self, value: Value, from: &Shape, shape: &[usize]) -> Value {
        let b = self.b();
        match (from.tokens, &from.columns, shape) {
            (true, None, &[_, columns]) => b.broadcast_last(value, columns),
            _ => b.broadcast(value, shape),
        }
    }
}

/// The lines of a tensor along an axis as the rows of a matrix, and the way back.
#[derive(Clone, Copy)]
struct Lines {
    /// `[lines, length]`
    values: Value,
    length: usize,
    /// What they are of.
    whole: Value,
    over: Over,
    /// Whether lines go from row to row of a matrix.
    across_rows: bool,
    /// Tokens of a sequence, T.
    time: usize,
}

impl Lines {
    fn of(b: &mut Builder, x: Value, shape: &Shape, over: Over, time: usize) -> Self {
        let across_rows = matches!(over, Over::Tokens | Over::Rows | Over::Sequence) && shape.is_matrix();
        let values = match over {
            // Rows of a matrix, or a vector, are lines as they are.
            Over::Columns => x,
            Over::Tokens | Over::Rows if across_rows => b.transpose(x),
            Over::Tokens | Over::Rows => x,
            Over::Sequence if across_rows => {
                let [tokens, columns] = [0, 1].map(|axis| b.extent(x, axis));
                let sequences = b.reshape(x, [tokens / time, time, columns]);
                let lines = b.permute(sequences, &[0, 2, 1]);
                b.reshape(lines, [tokens / time * columns, time])
            }
            Over::Sequence => {
                let tokens = b.extent(x, 0);
                b.reshape(x, [tokens / time, time])
            }
            Over::All => {
                let elements = b.ty(x).elements();
                b.reshape(x, [1, elements])
            }
        };
        let length = b.ty(values).shape.last().copied().unwrap_or(1);
        Lines { values, length, whole: x, over, across_rows, time }
    }

    /// As many lines as before of the same length, in the shape of the whole.
    fn back(self, b: &mut Builder, lines: Value) -> Value {
        let shape = b.shape(self.whole);
        match self.over {
            Over::Tokens | Over::Rows if self.across_rows => b.transpose(lines),
            Over::Sequence if self.across_rows => {
                let sequences = b.reshape(lines, [shape[0] / self.time, shape[1], self.time]);
                let rows = b.permute(sequences, &[0, 2, 1]);
                b.reshape(rows, shape)
            }
            _ => b.reshape(lines, shape),
        }
    }

    /// A number for each line, in the shape of the whole without the axis; every token has that of its sequence.
    fn without(self, b: &mut Builder, numbers: Value) -> Value {
        let shape = b.shape(self.whole);
        match self.over {
            Over::Sequence => {
                let (sequences, inner) = (shape[0] / self.time, shape[1..].to_vec());
                let one = b.reshape(numbers, [&[sequences, 1][..], &inner].concat());
                let each = b.broadcast(one, [&[sequences, self.time][..], &inner].concat());
                b.reshape(each, shape)
            }
            Over::All => b.reshape(numbers, []),
            Over::Tokens | Over::Rows => b.reshape(numbers, &shape[1..]),
            Over::Columns => b.reshape(numbers, &shape[..shape.len() - 1]),
        }
    }

    /// As a matrix: a vector is one line.
    fn matrix(self, b: &mut Builder) -> Value {
        let lines = b.ty(self.values).elements() / self.length.max(1);
        b.reshape(self.values, [lines, self.length])
    }
}

/// Rows of length 1; the small number stands against a division by 0, and is that of X-MoE and Soft MoE.
fn normalize(b: &mut Builder, x: Value, _: &Shape) -> Value {
    let shape = b.shape(x);
    let columns = b.columns(x);
    let last = shape.len() - 1;
    let squares = b.mul(x, x);
    let length = b.sum(squares, &[last]);
    let length = b.add_scalar(length, 1e-12);
    let length = b.unary(Unary::Sqrt, length);
    let length = b.broadcast_last(length, columns);
    b.div(x, length)
}

/// The number that a share `q` of each line lies below: between two elements, a share of each, as numpy's `quantile`
/// does by default.
fn quantile(b: &mut Builder, lines: Lines, q: f64) -> Value {
    let x = lines.matrix(b);
    let (count, length) = (b.extent(x, 0), lines.length);
    // Counted from the largest, as `top_k` has them.
    let place = (1.0 - q) * (length - 1) as f64;
    let (above, share) = (place.floor(), place - place.floor());
    let below = if share > 0.0 { above + 1.0 } else { above };
    let (sorted, _) = b.top_k(x, below as usize + 1);
    let at = |b: &mut Builder, rank: f64| {
        let index = b.fill(rank, [count, 1]);
        let index = b.to_index(index, length);
        b.gather_last(sorted, index)
    };
    let upper = at(b, above);
    if share == 0.0 {
        return upper;
    }
    let lower = at(b, below);
    let (upper, lower) = (b.scale(upper, 1.0 - share), b.scale(lower, share));
    b.add(upper, lower)
}

/// The largest of each line, or the smallest.
fn extreme(b: &mut Builder, lines: Lines, smallest: bool) -> Value {
    let x = lines.matrix(b);
    // The smallest is the largest of the negated.
    let negate = |b: &mut Builder, x| if smallest { b.unary(Unary::Neg, x) } else { x };
    let x = negate(b, x);
    let (largest, _) = b.top_k(x, 1);
    negate(b, largest)
}

/// All but the k largest of each row replaced by [`LOWEST`].
fn keep_top_k(b: &mut Builder, x: Value, k: usize) -> Value {
    let (shape, columns) = (b.shape(x), b.columns(x));
    let (top, chosen) = b.top_k(x, k);
    let top = b.shape(top);
    let ones = b.fill(1.0, top);
    let kept = b.scatter_last(ones, chosen, columns);
    let lowest = b.fill(LOWEST, shape);
    b.select(kept, x, lowest)
}

/// Sums and means along an axis of a value of shape `whole`.
fn reduce(b: &mut Builder, reduction: Reduction, x: Value, whole: &Shape, over: Over) -> Value {
    let axis = if over == Over::Columns { usize::from(whole.is_matrix()) } else { 0 };
    match (reduction, over) {
        (Reduction::Sum, Over::All) => b.sum_all(x),
        (_, Over::All) => b.mean_all(x),
        (Reduction::Sum, _) => b.sum(x, &[axis]),
        _ => b.mean(x, &[axis]),
    }
}

fn cumulative_sum(b: &mut Builder, x: Value, whole: &Shape, along: Along, time: usize) -> Value {
    match along {
        Along::Tokens => b.cumsum(x, 0),
        Along::Rows => b.cumsum(x, 0),
        Along::Columns => b.cumsum(x, usize::from(whole.is_matrix())),
        Along::Sequence => {
            // The tokens stand sequence after sequence.
            let shape = b.shape(x);
            let split = [b.extent(x, 0) / time, time];
            let sequences = b.reshape(x, [&split[..], shape.get(1..).unwrap_or_default()].concat());
            let sums = b.cumsum(sequences, 1);
            b.reshape(sums, shape)
        }
    }
}

/// A number for every token as a matrix of one column.
fn matrix(b: &mut Builder, x: Value) -> Value {
    match b.shape(x)[..] {
        [rows] => b.reshape(x, [rows, 1]),
        _ => x,
    }
}

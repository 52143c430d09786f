//! From program to graph, for arguments, numbers of experts and tokens, and a mode that are known now.
//!
//! Statements are emitted in source order, those only that the result, a loss or, in training, an update depends on. So
//! the same computation written here and in Rust gives the same nodes under the same names.
//!
//! What is emitted was found sound in its situation (`sound`): every number has a value, and every extent is one.

use moec_ir::{Binary, Builder, Invariant, Tensor, Unary, Value};
use moec_syntax::Span;

use super::kinds::Shape;
use super::program::{Action, Along, Assigned, Expr, Node, Num, Over, Program, Reduction, Situation, branch};
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
    let live = live(program, situation, noisy);
    let mut emission = Emission {
        program,
        situation,
        context,
        tensors: vec![None; program.tensor_slots],
        states: vec![None; program.states.len()],
    };
    let mut auxiliary = Vec::new();
    for (step, _) in program.steps.iter().zip(&live).filter(|(_, live)| **live) {
        emission.at(step.span, |e| match &step.action {
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
        });
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
        let logits = returned.logits.as_ref().map(|logits| e.fitted(logits, all.clone()));
        let probabilities = returned.probabilities.as_ref().map(|p| e.fitted(p, all.clone()));
        let noisy = returned.noisy.as_ref().filter(|_| noisy).map(|(scores, std)| {
            let scores = e.fitted(scores, all.clone());
            NoisyScores { scores, std: e.fitted(std, all) }
        });
        Routing { assignment, logits, probabilities, noisy, auxiliary }
    })
}

/// Which steps anything depends on.
pub(super) fn live(program: &Program, situation: &Situation, noisy: bool) -> Vec<bool> {
    let mut wanted = Wanted { slots: vec![false; program.tensor_slots], states: vec![false; program.states.len()] };
    for root in program.returned.expressions(noisy) {
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
            Action::Aux { value, .. } => (true, value),
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

/// Marks what an expression reads.
fn want(expr: &Expr, situation: &Situation, wanted: &mut Wanted) {
    match expr.node {
        Node::Slot(slot) => wanted.slots[slot] = true,
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
            Node::Parameter { name, columns, start } => {
                let shape: Vec<usize> = columns.iter().map(|columns| self.size(columns)).collect();
                self.context.parameter(name, shape, Role::Constant(self.float(start)))
            }
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
            Node::Softmax(x, over) => self.of(x, |b, x, shape| softmax(b, x, shape, *over)),
            Node::LogSumExp(x, over) => self.of(x, |b, x, shape| {
                let x = if across_rows(shape, *over) { b.transpose(x) } else { x };
                b.log_sum_exp(x)
            }),
            Node::Reduce(reduction, x, over) => self.of(x, |b, x, shape| reduce(b, *reduction, x, shape, *over)),
            Node::CumulativeSum(x, along) => {
                let time = self.context.time();
                self.of(x, |b, x, shape| cumulative_sum(b, x, shape, *along, time))
            }
            Node::KeepTopK(x, k) => {
                let k = self.size(k);
                self.of(x, |b, x, _| keep_top_k(b, x, k))
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
            Node::ToExpert(x) => {
                let experts = self.context.experts();
                self.of(x, |b, x, _| b.to_index(x, experts))
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

/// Whether a function over that axis goes from row to row.
fn across_rows(whole: &Shape, over: Over) -> bool {
    over == Over::Tokens && whole.columns.is_some()
}

fn softmax(b: &mut Builder, x: Value, whole: &Shape, over: Over) -> Value {
    if !across_rows(whole, over) {
        return b.softmax(x);
    }
    let columns = b.transpose(x);
    let columns = b.softmax(columns);
    b.transpose(columns)
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

/// Sums, means and extremes along an axis of a value of shape `whole`.
fn reduce(b: &mut Builder, reduction: Reduction, x: Value, whole: &Shape, over: Over) -> Value {
    let last = usize::from(whole.tokens && whole.columns.is_some());
    let axis = if over == Over::Tokens { 0 } else { last };
    match (reduction, over) {
        (Reduction::Sum, Over::All) => b.sum_all(x),
        (Reduction::Mean, Over::All) => b.mean_all(x),
        (Reduction::Sum, _) => b.sum(x, &[axis]),
        (Reduction::Mean, _) => b.mean(x, &[axis]),
        (Reduction::Max | Reduction::Min, _) => {
            let x = if last == 1 && axis == 0 { b.transpose(x) } else { x };
            let (mut shape, columns) = (b.shape(x), b.columns(x));
            shape.pop();
            let rows: usize = shape.iter().product();
            let x = b.reshape(x, [rows, columns]);
            // The smallest is the largest of the negated.
            let negate = |b: &mut Builder, x| if reduction == Reduction::Min { b.unary(Unary::Neg, x) } else { x };
            let x = negate(b, x);
            let (largest, _) = b.top_k(x, 1);
            let largest = negate(b, largest);
            b.reshape(largest, shape)
        }
    }
}

fn cumulative_sum(b: &mut Builder, x: Value, whole: &Shape, along: Along, time: usize) -> Value {
    match along {
        Along::Tokens => b.cumsum(x, 0),
        Along::Columns => b.cumsum(x, usize::from(whole.tokens)),
        Along::Positions => {
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

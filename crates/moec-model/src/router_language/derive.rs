//! What a router is like, derived from its expressions: what it reads, which tokens it compares, when it is random, what
//! balance losses can be computed from, and whether it learns from the task.

use moec_ir::{Binary, Gradient, Invariant, Unary, internal_error};

use super::emit::LOWEST;
use super::kinds::Kind;
use super::program::{Action, Along, Assigned, Expr, Node, Num, Over, Program, Reduction, Situation, Step, assigned};
use crate::router::{Compares, Comparison, GradientEnd, Reads};

/// What is known about a value, whatever the numbers in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Facts {
    pub(super) reads: Reads,
    /// Which other tokens a token's part of it depends on.
    pub(super) compares: Compares,
    /// Where that comes from.
    pub(super) compared_at: Option<Comparison>,
    pub(super) random: bool,
    /// It depends on how many tokens there are.
    pub(super) counts_tokens: bool,
    /// It changes with trained tensors of the router, and the gradient says so.
    pub(super) learns: bool,
    /// Where it stopped to.
    pub(super) gradient_end: Option<GradientEnd>,
    /// In a row over experts, how many are above the lowest, or else not 0; `None` if that is not known.
    few: Option<Few>,
}

/// Rows of which only a few entries count.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Few {
    /// How many.
    count: usize,
    /// Whether the others are 0, rather than far below every score.
    zero: bool,
}

const NOTHING: Facts = Facts {
    reads: Reads { activations: false, token_ids: false, positions: false },
    compares: Compares::None,
    compared_at: None,
    random: false,
    counts_tokens: false,
    learns: false,
    gradient_end: None,
    few: None,
};

/// What is known about the parts of a result.
#[derive(Clone, Copy, Debug)]
pub(super) struct Derived {
    /// Which experts a token goes to, and with what weight.
    pub(super) assignment: Facts,
    /// The weights alone: the gradient goes through these.
    pub(super) weights: Facts,
    /// The noisy scores, if there are any.
    pub(super) noisy: Option<Facts>,
    /// Whether a loss of the router itself reaches its trained tensors.
    pub(super) own_loss: bool,
    /// Experts of a token, where that is known.
    pub(super) experts_per_token: Option<usize>,
    /// Whether there are trained tensors at all.
    pub(super) trained: bool,
    /// Whether some of them are no linear maps.
    pub(super) parameters: bool,
    /// Whether anything, losses and what they are computed from included, is computed along sequences.
    pub(super) sequences: bool,
}

/// Derives everything for a situation.
pub(super) fn derive(program: &Program, situation: &Situation) -> Derived {
    let slots = vec![NOTHING; program.tensor_slots];
    let mut walk = Walk { situation, slots, trained: false, parameters: false, own_loss: false, sequences: false };
    walk.steps(&program.steps);
    let returned = &program.returned;
    let (assignment, weights, experts_per_token) = match &returned.assignment {
        Assigned::TokenChoice { experts, weights } => {
            let chosen = walk.facts(experts);
            let weights = walk.facts(weights);
            (chosen.with(weights), weights, walk.columns(experts))
        }
        Assigned::DenseGates { gates } => {
            let gates = walk.facts(gates);
            (gates, gates, gates.few.filter(|few| few.zero).map(|few| few.count))
        }
    };
    let noisy = returned.noisy.as_ref().map(|(scores, _)| walk.facts(scores));
    if let Some((_, std)) = &returned.noisy {
        walk.facts(std);
    }
    for quantity in [&returned.logits, &returned.probabilities].into_iter().flatten() {
        walk.facts(quantity);
    }
    let Walk { trained, parameters, own_loss, sequences, .. } = walk;
    Derived { assignment, weights, noisy, own_loss, experts_per_token, trained, parameters, sequences }
}

impl Facts {
    /// What is known about a combination of both.
    fn with(self, other: Facts) -> Facts {
        Facts {
            reads: Reads {
                activations: self.reads.activations || other.reads.activations,
                token_ids: self.reads.token_ids || other.reads.token_ids,
                positions: self.reads.positions || other.reads.positions,
            },
            compares: self.compares.max(other.compares),
            compared_at: if other.compares > self.compares { other.compared_at } else { self.compared_at },
            random: self.random || other.random,
            counts_tokens: self.counts_tokens || other.counts_tokens,
            learns: self.learns || other.learns,
            gradient_end: self.gradient_end.or(other.gradient_end),
            few: None,
        }
    }

    /// What is known where it may be either.
    fn or(self, other: Facts) -> Facts {
        Facts { few: self.few.filter(|_| self.few == other.few), ..self.with(other) }
    }

    /// The same, but with other tokens in it, by an expression.
    fn among(self, compares: Compares, expr: &Expr) -> Facts {
        if compares <= self.compares {
            return self;
        }
        let help = match &expr.node {
            Node::Reduce(_, _, Over::All) | Node::Quantile(_, _, Over::All) => {
                "without `over`, it is of all tokens together; name the axis of a token's own numbers, such as \
                 `over: experts`"
            }
            _ => {
                "`if training { .. } else { .. }` compares tokens in training only, a `state` carries what was counted \
                 to later steps, and `cumsum(.., over: sequence)` adds up a token and those before it"
            }
        };
        Facts { compares, compared_at: Some(Comparison { span: expr.span, help }), ..self }
    }

    /// The same, if the gradient ends here in case `ends`.
    fn ending(self, ends: bool, expr: &Expr, why: &'static str, is_single: bool) -> Facts {
        match self.learns && ends {
            true => {
                Facts { learns: false, gradient_end: Some(GradientEnd { span: expr.span, why, is_single }), ..self }
            }
            false => self,
        }
    }

    /// Of a function of it, element by element.
    fn through(self, f: Unary, expr: &Expr) -> Facts {
        // Where 0 stays 0, or what is far below every score becomes 0.
        let few = self.few.filter(|few| f.evaluate(if few.zero { 0.0 } else { LOWEST }) == 0.0);
        let few = few.map(|few| Few { zero: true, ..few });
        let is_flat = f.declaration().gradient == Gradient::Zero;
        Facts { few, ..self }.ending(is_flat, expr, "a function in steps: its gradient is 0", false)
    }
}

/// What is known where it may be any of several.
fn joined(possible: Vec<Facts>) -> Facts {
    possible.into_iter().reduce(Facts::with).invariant("one branch is always taken")
}

/// How many entries of a row count after both are combined.
fn fewer(f: Binary, a: Facts, b: Facts) -> Option<Few> {
    let zeros = |facts: Facts| facts.few.filter(|few| few.zero);
    match f {
        Binary::Mul => match (zeros(a), zeros(b)) {
            (Some(a), Some(b)) if a.count > b.count => Some(b),
            (a, b) => a.or(b),
        },
        Binary::Div => zeros(a),
        _ => None,
    }
}

/// What a function of an axis of `x` depends on.
fn compared(x: &Expr, over: Over) -> Compares {
    match over {
        Over::Tokens => Compares::Batch,
        Over::Sequence => Compares::Sequence,
        Over::Rows | Over::Columns => Compares::None,
        Over::All => {
            if x.shape().tokens {
                Compares::Batch
            } else {
                Compares::None
            }
        }
    }
}

struct Walk<'a> {
    situation: &'a Situation,
    slots: Vec<Facts>,
    trained: bool,
    parameters: bool,
    own_loss: bool,
    sequences: bool,
}

impl Walk<'_> {
    fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            match &step.action {
                Action::Number { .. } | Action::State { .. } => {}
                Action::Tensor { slot, value } | Action::Assign { slot, value } => {
                    self.slots[*slot] = self.facts(value);
                }
                Action::TopK { values, indices, x, k } => {
                    let facts = self.facts(x);
                    let counts_tokens = facts.counts_tokens || self.situation.counts_tokens(k);
                    let facts = Facts { few: None, counts_tokens, ..facts };
                    self.slots[*values] = facts;
                    self.slots[*indices] = Facts { learns: false, ..facts };
                }
                Action::Update { value, .. } => {
                    self.facts(value);
                }
                Action::Aux { value, .. } => self.own_loss |= self.facts(value).learns,
                Action::Repeat { count, steps } => {
                    // What is known after a round may be what was known before it or anything that is known now, whichever
                    // round is the last; it only ever becomes less, so it comes to an end.
                    loop {
                        let before = self.slots.clone();
                        self.steps(steps);
                        for (slot, former) in self.slots.iter_mut().zip(&before) {
                            *slot = former.or(*slot);
                        }
                        if self.slots == before {
                            break;
                        }
                    }
                    if self.situation.counts_tokens(count) {
                        assigned(steps).into_iter().for_each(|slot| self.slots[slot].counts_tokens = true);
                    }
                }
            }
        }
    }

    fn facts(&mut self, expr: &Expr) -> Facts {
        let situation = self.situation;
        if let Node::If(branches, otherwise) = &expr.node {
            return self.either(branches, otherwise);
        }
        let inner: Vec<Facts> =
            expr.inner(|condition| situation.holds(condition)).into_iter().map(|e| self.facts(e)).collect();
        self.sequences |= expr.is_of_sequences();
        let counts = expr.numbers().into_iter().any(|number| situation.counts_tokens(number));
        let counted = |facts: Facts| Facts { counts_tokens: facts.counts_tokens || counts, ..facts };
        let first = counted(inner.first().copied().unwrap_or(NOTHING));
        let all = counted(inner.iter().copied().reduce(Facts::with).unwrap_or(NOTHING));
        let reading = |reads| Facts { reads, ..NOTHING };
        match &expr.node {
            Node::Number(_) | Node::Filled { .. } => all,
            Node::State(_) | Node::Identity(_) | Node::Table(_) => NOTHING,
            Node::Slot(slot) => self.slots[*slot],
            Node::Activations => reading(Reads { activations: true, ..Reads::default() }),
            Node::TokenIds | Node::PreviousIds => reading(Reads { token_ids: true, ..Reads::default() }),
            Node::Position => reading(Reads { positions: true, ..Reads::default() }),
            Node::Linear { .. } => {
                self.trained = true;
                Facts { learns: true, few: None, ..first }
            }
            Node::Parameter { .. } => {
                self.trained = true;
                self.parameters = true;
                Facts { learns: true, ..NOTHING }
            }
            // Each outer expert would have weights of its own.
            Node::Weight { .. } => {
                self.parameters = true;
                Facts { learns: true, ..NOTHING }
            }
            Node::Normalize(_) | Node::Product { .. } => Facts { few: None, ..all },
            Node::Lookup(..) => Facts { learns: false, ..all },
            Node::Noise { .. } => Facts { random: true, ..all },
            Node::Unary(f, _) => first.through(*f, expr),
            Node::Binary(f, a, b) => {
                let facts = Facts { few: fewer(*f, first, inner[1]), ..all };
                match f {
                    Binary::Less | Binary::LessEqual | Binary::Equal => {
                        facts.ending(true, expr, "a comparison has no gradient", false)
                    }
                    _ => facts.ending(self.is_constant(*f, a, b), expr, "the same whatever the number is", true),
                }
            }
            Node::Remainder(..) => all,
            Node::Not(_) | Node::ToFloat(_) | Node::ToIndex(..) => {
                all.ending(true, expr, "no gradient passes through whole numbers", false)
            }
            Node::Select(..) => Facts { learns: inner[1].learns || inner[2].learns, ..all },
            Node::Softmax(x, over) => self.softmax(first, x, *over, expr).among(compared(x, *over), expr),
            Node::LogSumExp(x, over) | Node::Quantile(x, _, over) => {
                Facts { few: None, ..first }.among(compared(x, *over), expr)
            }
            Node::KeepTopK(x, k, over) => {
                let count = situation.size(k).filter(|_| *over == Over::Columns);
                let few = count.map(|count| Few { count, zero: false });
                Facts { few, ..first }.among(compared(x, *over), expr)
            }
            Node::Gather(..) => Facts { learns: first.learns, ..all },
            Node::Scatter(_, indices) => {
                let few = self.columns(indices).map(|count| Few { count, zero: true });
                Facts { few, learns: first.learns, ..all }
            }
            Node::Count(_) => {
                let counted = first.ending(true, expr, "a count has no gradient", false);
                Facts { few: None, ..counted }.among(Compares::Batch, expr)
            }
            // Extremes pass the gradient on to the element that they are.
            Node::Reduce(_, x, over) => Facts { few: None, ..first }.among(compared(x, *over), expr),
            // A token's sum has those before it, along the batch also those of other sequences.
            Node::CumulativeSum(_, along) => {
                let compares = match along {
                    Along::Tokens => Compares::Batch,
                    Along::Sequence => Compares::EarlierTokens,
                    Along::Rows | Along::Columns => Compares::None,
                };
                Facts { few: None, ..first }.among(compares, expr)
            }
            Node::StopGradient(_) => first.ending(true, expr, "it stops the gradient", false),
            Node::If(..) => internal_error!("its branches are looked at before"),
        }
    }

    /// Of the branch that is taken; where sizes decide that are not known, of all that may be.
    fn either(&mut self, branches: &[(Num, Expr)], otherwise: &Expr) -> Facts {
        let (mut possible, mut counts) = (Vec::new(), false);
        let mut decided = false;
        for (condition, value) in branches {
            counts |= self.situation.counts_tokens(condition);
            let open = self.situation.is_open(condition);
            if open || self.situation.holds(condition) {
                possible.push(self.facts(value));
            }
            decided = !open && self.situation.holds(condition);
            if decided {
                break;
            }
        }
        if !decided {
            possible.push(self.facts(otherwise));
        }
        let facts = joined(possible);
        Facts { counts_tokens: facts.counts_tokens || counts, ..facts }
    }

    fn softmax(&self, facts: Facts, x: &Expr, over: Over, expr: &Expr) -> Facts {
        let few = facts.few.filter(|few| !few.zero && over == Over::Columns).map(|few| Few { zero: true, ..few });
        // The softmax of one number, or of one that is far above the others, is 1.
        let one = self.single(x) || few.is_some_and(|few| few.count == 1);
        let why = "the softmax of a single number is always 1";
        Facts { few, ..facts }.ending(over == Over::Columns && one, expr, why, true)
    }

    /// Whether a combination is a constant, whatever it is made of.
    fn is_constant(&self, f: Binary, a: &Expr, b: &Expr) -> bool {
        match f {
            // What one number is of its own sum is 1, whatever it is.
            Binary::Div => self.single(a) && is_sum_of(b, a),
            // The same as logarithms.
            Binary::Sub => self.single(a) && matches!(&b.node, Node::LogSumExp(x, Over::Columns) if **x == *a),
            _ => false,
        }
    }

    /// The number of columns of indices, where that is known.
    fn columns(&self, indices: &Expr) -> Option<usize> {
        match &indices.kind {
            // A number for every token is a single one.
            Kind::Index(shape, _) | Kind::Tensor(shape) => {
                shape.columns.as_ref().map_or(Some(1), |columns| self.situation.columns(columns))
            }
            Kind::Int(_) | Kind::Float | Kind::Bool | Kind::Table(_) => None,
        }
    }

    /// Whether each row of an expression is one number.
    fn single(&self, expr: &Expr) -> bool {
        self.columns(expr) == Some(1)
    }
}

/// Whether `expr` is the sum of each row of `x`, perhaps with a number added against a division by 0.
fn is_sum_of(expr: &Expr, x: &Expr) -> bool {
    match &expr.node {
        Node::Reduce(Reduction::Sum, summed, Over::Columns) => **summed == *x,
        Node::Binary(Binary::Add | Binary::Max, a, b) => {
            let (a_number, b_number) = (matches!(a.node, Node::Number(_)), matches!(b.node, Node::Number(_)));
            (b_number && is_sum_of(a, x)) || (a_number && is_sum_of(b, x))
        }
        _ => false,
    }
}

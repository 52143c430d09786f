//! Mixture of depths: layers that only some tokens of a sequence go through (Raposo et al. 2024, arXiv 2404.02258).
//!
//! `y = x + r f(x)` for the tokens that go through and `y = x` for the others, with a score `r = x wᵀ` and `f` what the
//! layers add to what they are given. The tokens that go through keep their order, so attention among them is causal.
//!
//! In training they are the C tokens of the sequence with the largest scores, which looks at later tokens. In evaluation
//! and sampling a predictor decides for each token on its own: a linear map of the activations, behind a stopped
//! gradient, that is trained with binary cross-entropy to tell who would have been chosen.

use moec_ir::{Binary, Op, Output, Unary, Value};

use super::{Lowering, Rows};
use crate::model::MixtureOfDepths;
use crate::router::{Gather, Mode};

impl Lowering {
    pub(super) fn mixture_of_depths(&mut self, depths: &MixtureOfDepths, x: Value) -> Value {
        let (time, mode) = (self.time, self.options.mode);
        let [tokens, width] = [0, 1].map(|axis| self.b().shape(x).get(axis).copied().unwrap_or(1));
        let batch = tokens / time.max(1);
        let capacity = depths.tokens(time);

        let before = self.emitter.parameters.len();
        let score = self.emitter.linear("router", x, width, 1, false);
        let b = self.b();
        let detached = b.stop_gradient(x);
        let predicted = self.emitter.linear("predictor", detached, width, 1, true);
        let declared = self.emitter.parameters.values().skip(before);
        self.router_weights += declared.map(|d| d.elements as f64 * d.share).sum::<f64>();

        let b = self.b();
        let per_sequence = b.reshape(score, [batch, time]);
        let (_, chosen) = b.top_k(per_sequence, capacity);
        let ones = b.fill(1.0, [batch, capacity]);
        let member = b.scatter_last(ones, chosen, time);
        let member = b.reshape(member, [tokens, 1]);
        if self.options.loss {
            self.predictor_loss(depths, member, predicted);
        }

        let b = self.b();
        let through = match mode {
            Mode::Train => member,
            Mode::Evaluate => {
                let zero = b.fill(0.0, [tokens, 1]);
                b.binary(Binary::Less, zero, predicted)
            }
        };
        if self.options.routes {
            let path = self.b().path("");
            let b = self.b();
            let none = b.add_scalar(through, -1.0);
            let through = b.to_index(none, 1);
            self.expose(&path, 1, (through, score), (through, score));
        }
        let b = self.b();
        // In training whoever goes through is gathered. In evaluation their number is not known, so whole sequences are
        // reordered: those who go through first, the others behind them, where causal attention does not see them.
        let (slots, sorted, rows_time, through) = match mode {
            Mode::Train => {
                let none = b.add_scalar(through, -1.0);
                (b.to_index(none, 1), Op::SortByExpert { experts: 1, rows: batch * capacity }, capacity, through)
            }
            Mode::Evaluate => {
                let sequence = b.ramp(batch, 2);
                let sequence = b.to_float(sequence);
                let sequence = b.broadcast_last(sequence, time);
                let sequence = b.reshape(sequence, [tokens, 1]);
                let last = b.sub(sequence, through);
                let last = b.add_scalar(last, 1.0);
                let slots = b.to_index(last, 2 * batch);
                // From the index, which is what a recorded route keeps.
                let index = b.to_float(slots);
                let through = b.sub(sequence, index);
                let through = b.add_scalar(through, 1.0);
                (slots, Op::SortByExpert { experts: 2 * batch, rows: tokens }, time, through)
            }
        };
        let offsets = b.op(sorted, &[slots]);
        let (order, positions) = (offsets.result(1), offsets.result(2));
        let rows = b.op(Op::Dispatch { weighted: false }, &[x, order, positions]);

        // Those behind are there, but nothing counts them.
        let valid =
            (mode == Mode::Evaluate).then(|| b.op(Op::Dispatch { weighted: false }, &[through, order, positions]));
        let outer_valid = std::mem::replace(&mut self.valid_rows, valid);
        self.gathers.push(Gather { order, positions });
        let outer = std::mem::replace(&mut self.time, rows_time);
        let share = capacity as f64 / time.max(1) as f64;
        let block = self.inside(share, |l| l.sequence(&depths.layers, rows, Rows::Tokens));
        self.time = outer;
        self.valid_rows = outer_valid;
        self.gathers.pop();

        let b = self.b();
        // What the layers add: the residual within them must not count twice.
        let added = b.sub(block, rows);
        let weight = b.mul(score, through);
        let branch = b.op(Op::Combine { weighted: true }, &[added, order, positions, weight]);
        b.named("residual", Op::Binary(Binary::Add), &[x, branch])
    }

    /// Mean binary cross-entropy of the predictor: `softplus(z) - m z` for membership m.
    fn predictor_loss(&mut self, depths: &MixtureOfDepths, member: Value, predicted: Value) {
        let path = self.b().path("");
        let b = self.b();
        let softplus = b.unary(Unary::Softplus, predicted);
        let taken = b.mul(member, predicted);
        let terms = b.sub(softplus, taken);
        let loss = b.mean_all(terms);
        b.output(Output::Aux { path, loss: "predictor".into() }, loss);
        if self.options.mode == Mode::Train {
            self.objective.push((loss, depths.weight));
        }
    }
}

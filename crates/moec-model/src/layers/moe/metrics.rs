//! What is watched of a `moe` in evaluation: load, dropped choices, entropy and balance.

use moec_ir::{Binary, Builder, Op, Output, Precision, Unary, Value};

use super::choice::{Experts, Taken};
use crate::emit::Mode;
use crate::lower::lowering::{Lowering, Site};

/// Whether anyone looks at the balance of the layers: a training step would compute it in vain.
pub(super) fn observed(l: &Lowering) -> bool {
    l.options.loss && (l.options.mode == Mode::Evaluate || l.options.routes)
}

/// Outputs `load`, `dropped`, `entropy` and `balance` of the layer, from what was chosen and what a capacity left. All but
/// the entropy are of the experts that compute; the choices of the others are the output `zero`. Where the number of experts
/// of a token varies, its mean is the output `per_token`, which is returned.
pub(super) fn balance(l: &mut Lowering, path: &str, experts: Experts, choice: Taken, kept: Taken) -> Option<Value> {
    let Experts { count, computed: experts, valid, .. } = experts;
    let b = l.b();
    if count > experts {
        let index = b.to_float(choice.all);
        let index = b.add_scalar(index, -(experts as f64));
        let index = b.to_index(index, count - experts);
        let zero = b.count(index, count - experts);
        b.output(Output::ZeroComputation(path.into()), zero);
    }
    let (choice, kept) = (choice.computed, kept.computed);
    let tokens = b.extent(kept.chosen, 0);
    let load = b.count(kept.chosen, experts);
    b.output(Output::Load(path.into()), load);
    let rows = b.sum_all(load);
    let one = b.fill(1.0, []);
    let varying = kept.varies.then(|| {
        let count = match valid {
            Some(valid) => b.sum_all(valid),
            None => b.fill(tokens as f64, []),
        };
        let count = b.binary(Binary::Max, count, one);
        let mean = b.div(rows, count);
        b.output(Output::ExpertsPerToken(path.into()), mean);
        mean
    });
    let dropped = if kept.chosen != choice.chosen {
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
    let entropy = mean_entropy(b, choice.weights, valid, one);
    b.output(Output::Entropy(path.into()), entropy);

    let rows = b.binary(Binary::Max, rows, one);
    let share = b.div(load, rows);
    let squares = b.mul(share, share);
    let sum = b.sum_all(squares);
    let balance = b.scale(sum, experts as f64);
    b.output(Output::Balance(path.into()), balance);
    varying
}

/// Mean over the tokens of the entropy of a token's weights; rows that are not `valid` have no weights that count.
fn mean_entropy(b: &mut Builder, weights: Value, valid: Option<Value>, one: Value) -> Value {
    let terms = entropy_terms(b, weights);
    let tokens = b.extent(weights, 0);
    let sum = b.sum_all(terms);
    match valid {
        Some(valid) => {
            let k = b.columns(terms);
            let each = b.broadcast(valid, [tokens, k]);
            let terms = b.mul(terms, each);
            let sum = b.sum_all(terms);
            let count = b.sum_all(valid);
            let count = b.binary(Binary::Max, count, one);
            let mean = b.div(sum, count);
            b.scale(mean, -1.0)
        }
        None => b.scale(sum, -1.0 / tokens as f64),
    }
}

/// The outputs of a layer whose experts all work on equally many slots: a token goes to every expert, with the weight of
/// all slots of the expert in what the token gets.
pub(super) fn slots(l: &mut Lowering, strategy: &str, site: Site<'_>, experts: usize, combine: Value) {
    if !l.options.loss && !l.options.routes {
        return;
    }
    let [tokens, slots] = l.extents(combine);
    let b = l.b();
    let shares = b.reshape(combine, [tokens, experts, slots / experts]);
    let shares = b.sum(shares, &[2]);
    even(l, strategy, site, shares, tokens / site.time * (slots / experts));
}

/// The outputs of a layer whose experts are merged: every token goes to all of them, with the shares `[R, E]` of its run.
pub(super) fn merged(
    l: &mut Lowering,
    strategy: &str,
    site: Site<'_>,
    (weights, offsets): (Value, Value),
    tokens: usize,
) {
    if !l.options.loss && !l.options.routes {
        return;
    }
    let [runs, experts] = l.extents(weights);
    let b = l.b();
    // A row of its run's shares for each token.
    let ones = b.fill(1.0, [tokens, 1]);
    let each = b.reshape(weights, [runs, experts, 1]);
    let product = Op::GroupedMatMul { transpose_b: true, bias: false, precision: Precision::F32 };
    let shares = b.op(product, &[ones, each, offsets]);
    even(l, strategy, site, shares, tokens);
}

/// The outputs of a layer whose experts all do the same work, each on so many rows, for tokens with `shares [N, E]` of them.
fn even(l: &mut Lowering, strategy: &str, site: Site<'_>, shares: Value, rows: usize) {
    let path = l.path();
    let [tokens, experts] = l.extents(shares);
    if l.options.routes {
        let b = l.b();
        let every = b.ramp(experts, 1);
        let every = b.broadcast(every, [tokens, experts]);
        l.expose(strategy, site, experts, (every, shares), (every, shares));
    }
    if !l.options.loss {
        return;
    }
    let b = l.b();
    let load = b.fill(rows as f64, [experts]);
    b.output(Output::Load(path.clone()), load);
    let none = b.fill(0.0, []);
    b.output(Output::Dropped(path.clone()), none);
    let terms = entropy_terms(b, shares);
    let sum = b.sum_all(terms);
    let entropy = b.scale(sum, -1.0 / tokens as f64);
    b.output(Output::Entropy(path.clone()), entropy);
    let perfect = b.fill(1.0, []);
    b.output(Output::Balance(path.clone()), perfect);
}

/// `p ln p` for the weights of each row as shares p; 0 for a row without weights.
fn entropy_terms(b: &mut Builder, weights: Value) -> Value {
    let tiny = b.fill(1e-30, []);
    let k = b.columns(weights);
    let total = b.sum(weights, &[1]);
    let total = b.binary(Binary::Max, total, tiny);
    let total = b.broadcast_last(total, k);
    let p = b.div(weights, total);
    let guarded = b.binary(Binary::Max, p, tiny);
    let log = b.unary(Unary::Log, guarded);
    b.mul(p, log)
}

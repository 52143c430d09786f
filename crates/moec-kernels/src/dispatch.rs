//! Which kernels a step of a plan launches. The match is exhaustive: a new operation does not compile without kernels.

use moec_ir::{AdamWAttrs, CapacityPriority, DType, Invariant, Op, TensorType, internal_error};
use moec_plan::{Access, Body, Elementwise, Instr, Kernel};

use crate::kernels::matmul::{Fetch, Layout, Product};
use crate::kernels::norm::Norm;
use crate::kernels::{
    adamw, attention, balance, cached_attention, copy, cross_entropy, cumsum, embed, fill, fused, grouped_matmul,
    indices, matmul, norm, random, reduce, rotary, routing, softmax, top_k,
};
use crate::launch::{Arg, Launcher};

/// A buffer of a step with its type.
#[derive(Clone, Debug)]
pub(crate) struct Operand {
    /// The buffer.
    pub(crate) arg: Arg,
    /// Its type.
    pub(crate) ty: TensorType,
}

impl Operand {
    fn shape(&self) -> &[usize] {
        &self.ty.shape
    }

    /// Extents of a matrix; a vector counts as one row.
    fn matrix(&self) -> (usize, usize) {
        match self.shape() {
            [] => (1, 1),
            [.., c] if *c == 0 => (0, 0),
            [.., c] => (self.arg.elements() / c, *c),
        }
    }
}

/// What a kernel does beside its operation.
#[derive(Clone, Copy, Default)]
struct More<'a> {
    /// Rows of a product that are fetched.
    fetch: Option<Fetch>,
    /// Where the sums of a product's first operand go.
    sums: Option<Arg>,
    /// The program that goes on with the first result.
    after: Option<fused::After<'a>>,
}

/// Launches the kernels of one step, whose operands and results have the types that [`Kernel::check`] wants.
pub(crate) fn step(l: &Launcher, kernel: &Kernel, x: &[Operand], y: &[Operand]) {
    let args = |operands: &[Operand]| operands.iter().map(|o| o.arg).collect::<Vec<Arg>>();
    let (a, r) = (|i: usize| x[i].arg, |i: usize| y[i].arg);
    // Every operation over nothing is a sum over nothing, and 0 are the offsets of no rows. An operation over several
    // tensors does what it does with those that are not empty.
    let several = matches!(kernel.body, Body::Updates(_) | Body::Op(Op::AdamW(_) | Op::SumOfSquares));
    if x.iter().chain(y).any(|o| o.arg.elements() == 0) && !several {
        for o in y.iter().filter(|o| o.arg.elements() > 0) {
            fill::launch(l, o.arg, 0.0);
        }
        return;
    }
    match &kernel.body {
        Body::Op(op) => {
            let parts = kernel.operands(x).invariant("a kernel has its operands");
            let fetch = parts.fetch.map(|[order, positions]| Fetch {
                order: order.arg,
                sharing: positions.matrix().1,
                slots: positions.arg.elements(),
            });
            match &kernel.after {
                None => {
                    let (y, sums) = if kernel.sums { y.split_at(y.len() - 1) } else { (y, &[][..]) };
                    operation(l, op, parts.body, y, More { fetch, sums: sums.first().map(|o| o.arg), after: None });
                }
                Some(program) => {
                    // The program's first result takes the place of what it goes on with.
                    let (made, further) = y.split_at(program.results.len());
                    let (floats, more) = (args(parts.after), args(&made[1..]));
                    let rng = parts.random.map(|o| o.arg);
                    let after = Some(fused::After { program, floats: &floats, rng, more: &more });
                    operation(l, op, parts.body, &[&made[..1], further].concat(), More { fetch, sums: None, after });
                }
            }
        }
        Body::Elementwise(program) => {
            let (floats, rng) = x.split_at(program.accesses.len());
            fused::launch(l, program, &args(floats), rng.first().map(|o| o.arg), &args(y));
        }
        Body::CrossEntropyWithGradient { dloss } => {
            let (tokens, vocab) = x[0].matrix();
            cross_entropy::with_grad(l, a(0), a(1), dloss.get() as f32, r(0), r(1), tokens, vocab);
        }
        Body::Updates(attrs) => updates(l, attrs, x, y),
        Body::Copy => copy::launch(l, a(0), r(0)),
    }
}

/// Launches the kernels of one operation and what is to be done beside it.
fn operation(l: &Launcher, op: &Op, x: &[Operand], y: &[Operand], more: More<'_>) {
    let (a, r) = (|i: usize| x[i].arg, |i: usize| y[i].arg);
    let elementwise = |accesses: Vec<Access>, last: Option<Instr>, floats: &[Arg], rng: Option<Arg>| {
        fused::launch(l, &Elementwise::one(y[0].arg.elements(), accesses, last), floats, rng, &[r(0)]);
    };
    match op {
        Op::Input { .. } | Op::Parameter { .. } | Op::State { .. } | Op::Reshape { .. } => {
            internal_error!("{} is no step: it only names memory", op.mnemonic())
        }
        Op::Fill { value, .. } => fill::launch(l, r(0), value.get() as f32),
        Op::Ramp { step, .. } => indices::ramp(l, r(0), *step),
        Op::StopGradient => copy::launch(l, a(0), r(0)),
        Op::Broadcast { shape } => match Access::of_broadcast(x[0].shape(), shape) {
            Some(access) if x[0].ty.dtype == DType::F32 => elementwise(vec![access], None, &[a(0)], None),
            _ => copy::broadcast(l, a(0), r(0), x[0].shape(), shape),
        },
        Op::Permute { axes } => copy::permute(l, a(0), r(0), x[0].shape(), axes),

        Op::Unary(_) | Op::Binary(_) | Op::Select => {
            let registers: Vec<usize> = (0..x.len()).collect();
            let floats: Vec<Arg> = x.iter().map(|o| o.arg).collect();
            elementwise(vec![Access::Full; x.len()], Instr::of(op, &registers), &floats, None);
        }
        Op::Dropout { .. } => elementwise(vec![Access::Full], Instr::of(op, &[0]), &[a(0)], Some(a(1))),

        Op::ToFloat => indices::to_float(l, a(0), r(0)),
        Op::ToIndex { size } => indices::to_index(l, a(0), r(0), *size),
        Op::Lookup => indices::lookup(l, a(0), a(1), r(0)),
        Op::Previous { time } => indices::previous(l, a(0), r(0), *time),

        Op::Sum { axes } => reduce::sum(l, a(0), r(0), x[0].shape(), axes),
        Op::CumulativeSum { axis, exclusive, reverse } => {
            cumsum::launch(l, a(0), r(0), x[0].shape(), *axis, *exclusive, *reverse);
        }
        Op::SumOfSquares => {
            let operands: Vec<Arg> = x.iter().map(|o| o.arg).filter(|x| x.elements() > 0).collect();
            reduce::sum_of_squares(l, &operands, r(0));
        }

        Op::MatMul { transpose_a, transpose_b, bias } => {
            let ((p, q), (s, t)) = (x[0].matrix(), x[1].matrix());
            let (m, k) = if *transpose_a { (q, p) } else { (p, q) };
            let (n, bias) = (if *transpose_b { s } else { t }, bias.then(|| a(2)));
            let layout = Layout { transpose_a: *transpose_a, transpose_b: *transpose_b, fetched: false };
            let More { fetch, sums, after } = more;
            let (a, b, y, offsets) = (a(0), a(1), r(0), None);
            let product = Product { layout, a, b, fetch, bias, offsets, y, sums, after, m, n, k, experts: 1 };
            matmul::launch(l, &product);
        }
        // Rows are sorted by expert, and an expert without rows has no work; rows after the last expert's are 0.
        Op::GroupedMatMul { transpose_b, bias } => {
            let ((stored, k), bias) = (x[0].matrix(), bias.then(|| a(3)));
            let More { fetch, sums, after } = more;
            let layout = Layout { transpose_a: false, transpose_b: *transpose_b, fetched: fetch.is_some() };
            let m = fetch.map_or(stored, |f| f.order.elements());
            let (n, experts) = (r(0).elements() / m, a(2).elements() - 1);
            let (a, b, y, offsets) = (a(0), a(1), r(0), Some(a(2)));
            matmul::launch(l, &Product { layout, a, b, fetch, bias, offsets, y, sums, after, m, n, k, experts });
        }
        Op::GroupedMatMulWeightGrad => {
            let ((k, m), (_, n)) = (x[0].matrix(), x[1].matrix());
            let More { fetch, sums, after } = more;
            let layout = Layout { transpose_a: true, transpose_b: false, fetched: fetch.is_some() };
            let experts = a(2).elements() - 1;
            let (a, b, y, offsets) = (a(0), a(1), r(0), Some(a(2)));
            matmul::launch(l, &Product { layout, a, b, fetch, bias: None, offsets, y, sums, after, m, n, k, experts });
        }
        Op::GroupedSum => {
            let (rows, outer) = x[0].matrix();
            grouped_matmul::grouped_sum(l, a(0), a(1), r(0), rows, a(1).elements() - 1, outer);
        }

        Op::LayerNorm { epsilon } => {
            let (_, channels) = x[0].matrix();
            let norm = Norm { x: a(0), gain: a(1), mean: Some(r(1)), rstd: r(2), channels };
            norm::layer_norm(l, norm, a(2), r(0), more.after, epsilon.get() as f32);
        }
        Op::RmsNorm { epsilon } => {
            let (_, channels) = x[0].matrix();
            let norm = Norm { x: a(0), gain: a(1), mean: None, rstd: r(1), channels };
            norm::rms_norm(l, norm, r(0), more.after, epsilon.get() as f32);
        }

        Op::LayerNormGrad => {
            let (_, channels) = x[0].matrix();
            let norm = Norm { x: a(1), gain: a(2), mean: Some(a(3)), rstd: a(4), channels };
            norm::grad(l, norm, a(0), r(0), r(1), Some(r(2)), more.after);
        }
        Op::RmsNormGrad => {
            let (_, channels) = x[0].matrix();
            let norm = Norm { x: a(1), gain: a(2), mean: None, rstd: a(3), channels };
            norm::grad(l, norm, a(0), r(0), r(1), None, more.after);
        }

        Op::Softmax => {
            let (rows, m) = x[0].matrix();
            softmax::softmax(l, a(0), r(0), rows, m);
        }
        Op::SoftmaxGrad => {
            let (rows, m) = x[0].matrix();
            softmax::softmax_grad(l, a(0), a(1), r(0), rows, m);
        }
        Op::LogSumExp => {
            let (rows, m) = x[0].matrix();
            softmax::log_sum_exp(l, a(0), r(0), rows, m);
        }

        Op::Attention(attrs) => {
            let ((_, channels), rng) = (y[0].matrix(), x.get(1).map(|o| o.arg));
            attention::forward(l, a(0), rng, r(0), r(1), attrs, channels);
        }
        Op::AttentionGrad(attrs) => {
            let ((_, channels), rng) = (x[0].matrix(), x.get(4).map(|o| o.arg));
            attention::backward(l, a(0), a(1), a(2), a(3), rng, r(0), attrs, channels);
        }
        Op::CachedAttention { heads, scale } => {
            let (_, channels) = y[0].matrix();
            cached_attention::launch(l, a(0), a(1), r(1), a(2), r(0), *heads, scale.get() as f32, channels);
        }
        Op::Rotary { heads, time, base, inverse, .. } => {
            let ((_, channels3), positions) = (x[0].matrix(), x.get(1).map(|o| o.arg));
            rotary::launch(l, a(0), positions, r(0), *heads, *time, base.get(), *inverse, channels3 / 3);
        }

        Op::Embed => {
            let ((rows, channels), tokens) = (x[1].matrix(), a(0).elements());
            embed::embed(l, a(0), a(1), r(0), more.after, tokens, rows, channels);
        }
        Op::EmbedGrad { rows } => {
            let (tokens, channels) = x[1].matrix();
            embed::embed_grad(l, a(0), a(1), r(0), tokens, *rows, channels);
        }
        Op::CrossEntropy => {
            let (tokens, vocab) = x[0].matrix();
            cross_entropy::forward(l, a(0), a(1), r(0), r(1), tokens, vocab);
        }
        Op::CrossEntropyGrad => {
            let (tokens, vocab) = x[1].matrix();
            cross_entropy::backward(l, a(0), a(1), a(2), a(3), r(0), tokens, vocab);
        }

        Op::RandomNormal { key, .. } => random::normal(l, a(0), r(0), *key),
        Op::RandomUniform { key, .. } => random::uniform(l, a(0), r(0), *key),

        Op::TopK { k } => {
            let (rows, extent) = x[0].matrix();
            top_k::top_k(l, a(0), r(0), r(1), rows, extent, *k);
        }
        Op::GatherLast => {
            let ((rows, extent), (_, k)) = (x[0].matrix(), x[1].matrix());
            top_k::gather_last(l, a(0), a(1), r(0), rows, extent, k);
        }
        Op::ScatterLast { size } => {
            let (rows, k) = x[0].matrix();
            top_k::scatter_last(l, a(0), a(1), r(0), rows, k, *size);
        }
        Op::Count { size } => top_k::count(l, a(0), r(0), *size),
        Op::LimitCapacity { experts, capacity, priority } => {
            let ((tokens, k), (experts, capacity)) = (x[0].matrix(), (*experts, *capacity));
            match priority {
                CapacityPriority::Token => routing::limit_capacity(l, a(0), r(0), tokens * k, 1, experts, capacity),
                CapacityPriority::Choice => routing::limit_capacity(l, a(0), r(0), tokens, k, experts, capacity),
                CapacityPriority::Probability => {
                    routing::limit_capacity_by_weight(l, a(0), a(1), r(0), k, experts, capacity);
                }
            }
        }
        Op::BalancedAssignment => {
            let (tokens, experts) = x[0].matrix();
            balance::launch(l, a(0), r(0), tokens, experts);
        }

        Op::SortByExpert { experts, .. } => routing::sort_by_expert(l, a(0), r(0), r(1), r(2), *experts),
        Op::Dispatch { .. } => {
            let ((tokens, channels), slots) = (x[0].matrix(), a(2).elements());
            let weights = x.get(3).map(|o| o.arg);
            routing::dispatch(l, a(0), a(1), weights, r(0), more.after, tokens, slots / tokens, channels);
        }
        Op::Combine { .. } => {
            let ((_, channels), weights) = (x[0].matrix(), x.get(3).map(|o| o.arg));
            routing::combine(l, a(0), a(2), weights, r(0), more.after, channels);
        }
        Op::CombineWeightGrad => {
            let ((tokens, channels), slots) = (x[0].matrix(), a(2).elements());
            routing::combine_weight_grad(l, a(0), a(1), a(2), r(0), slots / tokens, channels);
        }

        Op::AdamW(attrs) => updates(l, attrs, x, y),
    }
}

/// Launches the updates of some tensors: four operands for each, then one or two.
fn updates(l: &Launcher, attrs: &AdamWAttrs, x: &[Operand], y: &[Operand]) {
    let (a, tensors) = (|i: usize| x[i].arg, y.len() / 3);
    let updates: Vec<adamw::Update> = (0..tensors)
        .map(|t| adamw::Update {
            old: [0, 2, 3].map(|i| a(4 * t + i)),
            grad: a(4 * t + 1),
            new: [0, 1, 2].map(|i| y[3 * t + i].arg),
        })
        .collect();
    adamw::launch(l, &updates, a(4 * tensors), x.get(4 * tensors + 1).map(|o| o.arg), attrs);
}

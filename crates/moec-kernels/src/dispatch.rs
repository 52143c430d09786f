//! Which kernels a step of a plan launches. The match is exhaustive: a new operation does not compile without kernels, and
//! one that a program can go on with ([`Op::operands_of_producer`]) has its own in [`producer`].

use moec_ir::{Access, CapacityPriority, DType, FusedProgram, Instr, Op, TensorType};
use moec_plan::Step;

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

/// Launches the kernels of one step. Operands and results have the types that inference gives for the operation.
pub(crate) fn step(l: &Launcher, step: &Step, x: &[Operand], y: &[Operand]) {
    let (a, r) = (|i: usize| x[i].arg, |i: usize| y[i].arg);
    // Every operation over nothing is a sum over nothing, and 0 are the offsets of no rows. An operation over several
    // tensors does what it does with those that are not empty.
    let several = matches!(step.op, Op::AdamW(_) | Op::SumOfSquares);
    if x.iter().chain(y).any(|o| o.arg.elements() == 0) && !several {
        for o in y.iter().filter(|o| o.arg.elements() > 0) {
            fill::launch(l, o.arg, 0.0);
        }
        return;
    }
    match &step.op {
        Op::Input { .. } | Op::Parameter { .. } | Op::State { .. } => {}
        Op::Fill { value, .. } => fill::launch(l, r(0), value.get() as f32),
        Op::Ramp { step, .. } => indices::ramp(l, r(0), *step),
        Op::Reshape { .. } | Op::StopGradient => copy::launch(l, a(0), r(0)),
        Op::Broadcast { shape } => match broadcast_access(x[0].shape(), shape) {
            Some(access) if x[0].ty.dtype == DType::F32 => {
                fused::launch(l, &one(shape, vec![access], Vec::new()), &[a(0)], None, &[r(0)])
            }
            _ => copy::broadcast(l, a(0), r(0), x[0].shape(), shape),
        },
        Op::Permute { axes } => copy::permute(l, a(0), r(0), x[0].shape(), axes),

        Op::Unary(f) => {
            let program = one(y[0].shape(), vec![Access::Full], vec![Instr::Unary(*f, 0)]);
            fused::launch(l, &program, &[a(0)], None, &[r(0)]);
        }
        Op::Binary(f) => {
            let program = one(y[0].shape(), vec![Access::Full; 2], vec![Instr::Binary(*f, 0, 1)]);
            fused::launch(l, &program, &[a(0), a(1)], None, &[r(0)]);
        }
        Op::Select => {
            let program = one(y[0].shape(), vec![Access::Full; 3], vec![Instr::Select(0, 1, 2)]);
            fused::launch(l, &program, &[a(0), a(1), a(2)], None, &[r(0)]);
        }
        Op::Dropout { rate, key } => {
            let instr = Instr::Dropout { value: 0, rate: *rate, key: *key };
            let program = one(y[0].shape(), vec![Access::Full], vec![instr]);
            fused::launch(l, &program, &[a(0)], Some(a(1)), &[r(0)]);
        }
        Op::Fused(program) => {
            let floats: Vec<Arg> = x.iter().take(program.accesses.len()).map(|o| o.arg).collect();
            let rng = program.uses_random().then(|| a(floats.len()));
            let results: Vec<Arg> = y.iter().map(|o| o.arg).collect();
            fused::launch(l, program, &floats, rng, &results);
        }

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

        Op::MatMul { .. }
        | Op::GroupedMatMul { .. }
        | Op::GroupedMatMulWeightGrad
        | Op::DispatchedProduct(_)
        | Op::LayerNormGrad
        | Op::RmsNormGrad
        | Op::Embed
        | Op::Dispatch { .. }
        | Op::Combine { .. } => producer(l, &step.op, x, y, None),
        Op::FusedAfter { producer: op, program } => {
            let (own, rest) = x.split_at(op.operands_of_producer().unwrap_or(0));
            let rest: Vec<Arg> = rest.iter().map(|o| o.arg).collect();
            // Operand 0 of the program is what the producer makes, and its first result takes the place of that.
            let (floats, rng) = rest.split_at(program.accesses.len() - 1);
            let (first, others) = y.split_at(1);
            let (more, further) = others.split_at(program.results.len() - 1);
            let more: Vec<Arg> = more.iter().map(|o| o.arg).collect();
            let after = fused::After { program, floats, rng: rng.first().copied(), more: &more };
            producer(l, op, own, &[first, further].concat(), Some(after));
        }
        Op::ProductWithSums(op) => match **op {
            Op::MatMul { .. } => matmul(l, op, x, r(0), Some(r(1)), None),
            _ => grouped(l, op, x, r(0), Some(r(1)), None),
        },
        Op::GroupedSum => {
            let (rows, outer) = x[0].matrix();
            grouped_matmul::grouped_sum(l, a(0), a(1), r(0), rows, a(1).elements() - 1, outer);
        }

        Op::LayerNorm { epsilon } => {
            let (_, channels) = x[0].matrix();
            let norm = Norm { x: a(0), gain: a(1), mean: Some(r(1)), rstd: r(2), channels };
            norm::layer_norm(l, norm, a(2), r(0), epsilon.get() as f32);
        }
        Op::RmsNorm { epsilon } => {
            let (_, channels) = x[0].matrix();
            let norm = Norm { x: a(0), gain: a(1), mean: None, rstd: r(1), channels };
            norm::rms_norm(l, norm, r(0), epsilon.get() as f32);
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
        Op::FusedCrossEntropy { dloss } => {
            let (tokens, vocab) = x[0].matrix();
            cross_entropy::with_grad(l, a(0), a(1), dloss.get() as f32, r(0), r(1), tokens, vocab);
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
        Op::CombineWeightGrad => {
            let ((tokens, channels), slots) = (x[0].matrix(), a(2).elements());
            routing::combine_weight_grad(l, a(0), a(1), a(2), r(0), slots / tokens, channels);
        }

        Op::AdamW(attrs) => {
            // Four operands a tensor, then one or two.
            let tensors = x.len() / 4;
            let scale = x.get(4 * tensors + 1).map(|o| o.arg);
            let updates: Vec<adamw::Update> = (0..tensors)
                .map(|t| adamw::Update {
                    old: [0, 2, 3].map(|i| a(4 * t + i)),
                    grad: a(4 * t + 1),
                    new: [0, 1, 2].map(|i| r(3 * t + i)),
                })
                .collect();
            adamw::launch(l, &updates, a(4 * tensors), scale, attrs);
        }
    }
}

/// Launches an operation that a program can go on with, and that program.
fn producer(l: &Launcher, op: &Op, x: &[Operand], y: &[Operand], after: Option<fused::After<'_>>) {
    let (a, r) = (|i: usize| x[i].arg, |i: usize| y[i].arg);
    match op {
        Op::MatMul { .. } => matmul(l, op, x, r(0), None, after),
        Op::GroupedMatMul { .. } | Op::GroupedMatMulWeightGrad | Op::DispatchedProduct(_) => {
            grouped(l, op, x, r(0), None, after);
        }
        Op::LayerNormGrad => {
            let (_, channels) = x[0].matrix();
            let norm = Norm { x: a(1), gain: a(2), mean: Some(a(3)), rstd: a(4), channels };
            norm::grad(l, norm, a(0), r(0), r(1), Some(r(2)), after);
        }
        Op::RmsNormGrad => {
            let (_, channels) = x[0].matrix();
            let norm = Norm { x: a(1), gain: a(2), mean: None, rstd: a(3), channels };
            norm::grad(l, norm, a(0), r(0), r(1), None, after);
        }
        Op::Embed => {
            let ((rows, channels), tokens) = (x[1].matrix(), a(0).elements());
            embed::embed(l, a(0), a(1), r(0), after, tokens, rows, channels);
        }
        Op::Dispatch { .. } => {
            let ((tokens, channels), slots) = (x[0].matrix(), a(2).elements());
            let weights = x.get(3).map(|o| o.arg);
            routing::dispatch(l, a(0), a(1), weights, r(0), after, tokens, slots / tokens, channels);
        }
        Op::Combine { .. } => {
            let ((_, channels), weights) = (x[0].matrix(), x.get(3).map(|o| o.arg));
            routing::combine(l, a(0), a(2), weights, r(0), after, channels);
        }
        _ => moec_ir::internal_error!("no program goes on with {}", op.mnemonic()),
    }
}

/// Launches a product of two matrices, with the sums of its first operand, or with the program that goes on with it.
fn matmul(l: &Launcher, op: &Op, x: &[Operand], y: Arg, sums: Option<Arg>, after: Option<fused::After<'_>>) {
    let Op::MatMul { transpose_a, transpose_b, bias } = *op else {
        moec_ir::internal_error!("{} is no product of two matrices", op.mnemonic())
    };
    let a = |i: usize| x[i].arg;
    let ((p, q), (s, t)) = (x[0].matrix(), x[1].matrix());
    let (m, k) = if transpose_a { (q, p) } else { (p, q) };
    let n = if transpose_b { s } else { t };
    let layout = Layout { transpose_a, transpose_b, fetched: false };
    let (fetch, bias, offsets) = (None, bias.then(|| a(2)), None);
    let product = Product { layout, a: a(0), b: a(1), fetch, bias, offsets, y, sums, after, m, n, k, experts: 1 };
    matmul::launch(l, &product);
}

/// Launches a product per expert, with the sums of its first operand, or with the program that goes on with it. Rows are
/// sorted by expert, and an expert without rows has no work; rows after the last expert's are 0.
fn grouped(l: &Launcher, op: &Op, x: &[Operand], y: Arg, sums: Option<Arg>, after: Option<fused::After<'_>>) {
    let (op, fetch) = match op {
        Op::DispatchedProduct(product) => {
            // Order and positions are the product's last operands.
            let (order, positions) = (x[x.len() - 2].arg, &x[x.len() - 1]);
            let fetch = Fetch { order, sharing: positions.matrix().1, slots: positions.arg.elements() };
            (&**product, Some(fetch))
        }
        op => (op, None),
    };
    let (a, fetched) = (|i: usize| x[i].arg, fetch.is_some());
    let experts = a(2).elements() - 1;
    let ((first, columns), (_, inner)) = (x[0].matrix(), x[1].matrix());
    let (a, b, offsets) = (a(0), a(1), Some(a(2)));
    let product = match *op {
        Op::GroupedMatMul { transpose_b, bias } => {
            let layout = Layout { transpose_a: false, transpose_b, fetched };
            let m = fetch.map_or(first, |f| f.order.elements());
            let (bias, n) = (bias.then(|| x[3].arg), y.elements() / m);
            Product { layout, a, b, fetch, bias, offsets, y, sums, after, m, n, k: columns, experts }
        }
        Op::GroupedMatMulWeightGrad => {
            let layout = Layout { transpose_a: true, transpose_b: false, fetched };
            Product {
                layout,
                a,
                b,
                fetch,
                bias: None,
                offsets,
                y,
                sums,
                after,
                m: columns,
                n: inner,
                k: first,
                experts,
            }
        }
        _ => moec_ir::internal_error!("{} is no product per expert", op.mnemonic()),
    };
    matmul::launch(l, &product);
}

/// A fused program that loads its operands and applies at most one instruction.
fn one(shape: &[usize], accesses: Vec<Access>, last: Vec<Instr>) -> FusedProgram {
    let mut instructions: Vec<Instr> = (0..accesses.len()).map(Instr::Load).collect();
    instructions.extend(last);
    let results = vec![instructions.len() - 1];
    FusedProgram { shape: shape.to_vec(), accesses, instructions, results }
}

/// How a fused program reads an operand of shape `from` that is broadcast to shape `to`, if it can.
fn broadcast_access(from: &[usize], to: &[usize]) -> Option<Access> {
    let (elements, total): (usize, usize) = (from.iter().product(), to.iter().product());
    if elements == total {
        return Some(Access::Full);
    }
    if elements == 1 {
        return Some(Access::Scalar);
    }
    let lead = to.len() - from.len();
    let repeated: Vec<bool> = (0..to.len()).map(|i| i < lead || from[i - lead] != to[i]).collect();
    // Axes of extent 1 in the result fit either side.
    let kept = |i: usize| !repeated[i] && to[i] != 1;
    let (first, last) = ((0..to.len()).find(|&i| kept(i))?, (0..to.len()).rev().find(|&i| kept(i))?);
    if (first..=last).any(|i| repeated[i]) {
        return None;
    }
    let inner: usize = to[last + 1..].iter().product();
    let outer: usize = to[..first].iter().product();
    match (outer, inner) {
        (_, 1) => Some(Access::Repeat),
        (1, _) => Some(Access::Stretch { inner }),
        _ => None,
    }
}

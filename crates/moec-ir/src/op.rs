//! The closed set of operations.
//!
//! Every operation is matched exhaustively in [`crate::infer`] (types), the verifier (stage legality), the reference
//! evaluator (meaning), the gradient pass and the kernel choice, so rustc lists the places when one is added.
//!
//! Conventions: tensors are row-major; weights of linear maps are `[out, in]` as in PyTorch; an index of -1 means
//! "no expert" or "no row" and is skipped by every operation that reads indices of experts, slots or rows, as is every
//! other index outside of its range; token ids and targets are always within the vocabulary; ties go to the lower index. NaN goes through every function of floats
//! except comparisons and signs, and [`Op::TopK`] takes it for smaller than everything.

use crate::purpose::StateRole;
use crate::types::{Real, TensorType};

/// Elementwise functions of one float operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    /// `-x`
    Neg,
    /// `e^x`
    Exp,
    /// Natural logarithm.
    Log,
    /// Square root.
    Sqrt,
    /// `1 / x`
    Recip,
    /// `|x|`
    Abs,
    /// -1, 0 or 1.
    Sign,
    /// Hyperbolic tangent.
    Tanh,
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// `max(x, 0)`
    Relu,
    /// `ln(1 + e^x)`, computed without overflow.
    Softplus,
    /// Cumulative distribution function of the standard normal: `(1 + erf(x / sqrt 2)) / 2`.
    NormalCdf,
}

/// Elementwise functions of two float operands of equal shape. Comparisons give 1.0 or 0.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`
    Div,
    /// The larger; its gradient goes to `a` on a tie.
    Max,
    /// The smaller; its gradient goes to `a` on a tie.
    Min,
    /// `a < b`
    Less,
    /// `a <= b`
    LessEqual,
    /// `a == b`
    Equal,
}

/// How a fused program reads one operand while it walks over the elements `i` of its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// `operand[i]`
    Full,
    /// `operand[i % operand.len()]`: broadcast over leading axes, a bias for example.
    Repeat,
    /// `operand[i / inner]`: broadcast over trailing axes that hold `inner` elements, a row statistic for example.
    Stretch {
        /// Number of consecutive result elements that read the same operand element.
        inner: usize,
    },
    /// `operand[0]`
    Scalar,
}

/// One instruction of a fused program. Instruction `j` writes register `j`; operands name earlier registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Instr {
    /// Reads operand number `.0` with its [`Access`].
    Load(usize),
    /// A constant.
    Const(Real),
    /// One-operand function.
    Unary(Unary, usize),
    /// Two-operand function.
    Binary(Binary, usize, usize),
    /// `if r[.0] != 0 { r[.1] } else { r[.2] }`
    Select(usize, usize, usize),
    /// [`Op::Dropout`] of a register; the generator state is the last operand of the fused node.
    Dropout {
        /// Register that is masked.
        value: usize,
        /// Probability of zero.
        rate: Real,
        /// Stream of random numbers.
        key: u32,
    },
}

/// A straight-line elementwise program over operands that broadcast to one result shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FusedProgram {
    /// Shape of every result.
    pub shape: Vec<usize>,
    /// One entry per float operand, in operand order. A generator state (needed by `Dropout`) comes after them.
    pub accesses: Vec<Access>,
    /// The program.
    pub instructions: Vec<Instr>,
    /// Registers that are results, in result order.
    pub results: Vec<usize>,
}

impl FusedProgram {
    /// Whether the program needs the generator state as its last operand.
    pub fn uses_random(&self) -> bool {
        self.instructions.iter().any(|i| matches!(i, Instr::Dropout { .. }))
    }
}

/// Attributes of causal self-attention, shared by the forward and the gradient operation.
///
/// `qkv` is `[N, 3C]`: the queries of all heads, then the keys, then the values; head `h` owns channels
/// `h*D .. (h+1)*D` of each part. Token `n` is position `n % time` of sequence `n / time` and attends to positions up
/// to its own. Scores are multiplied by `scale`, then softmax, then dropout of the probabilities (random element
/// `((b*H + h)*T + query)*T + key`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttentionAttrs {
    /// Number of heads, H.
    pub heads: usize,
    /// Length of a sequence, T.
    pub time: usize,
    /// Factor of the scores.
    pub scale: Real,
    /// Dropout rate of the attention probabilities; the generator state is an operand iff it is above 0.
    pub dropout: Real,
    /// Stream of random numbers of the dropout.
    pub key: u32,
}

/// Who comes first when an expert has more entries than capacity: the order in which [`Op::LimitCapacity`] admits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CapacityPriority {
    /// (token, slot): the first tokens of the batch, with all their choices.
    Token,
    /// (slot, token): every first choice before any second choice (GShard, Lepikhin et al. 2020, arXiv 2006.16668,
    /// algorithm 1).
    Choice,
    /// (slot, largest weight of the token, token), largest first: batch prioritised routing (Riquelme et al. 2021, arXiv
    /// 2106.05974, algorithm 2). A weight of NaN counts as smaller than everything.
    Probability,
}

impl CapacityPriority {
    /// Every priority, for tables and tests.
    pub const ALL: [CapacityPriority; 3] =
        [CapacityPriority::Token, CapacityPriority::Choice, CapacityPriority::Probability];

    /// Name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            CapacityPriority::Token => "token",
            CapacityPriority::Choice => "choice",
            CapacityPriority::Probability => "probability",
        }
    }
}

/// Attributes of AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), as in PyTorch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AdamWAttrs {
    /// Decay of the first moment.
    pub beta1: Real,
    /// Decay of the second moment.
    pub beta2: Real,
    /// Added to the root of the second moment.
    pub epsilon: Real,
    /// Decoupled weight decay.
    pub weight_decay: Real,
}

/// An operation. Operand and result shapes are given as `(operands) -> (results)`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    // ---- structure ----
    /// A value given anew for every run: token ids, targets, generator state, learning rate.
    Input {
        /// Name under which a run passes it.
        name: String,
        /// Its type.
        ty: TensorType,
    },
    /// A trained tensor.
    Parameter {
        /// Name in checkpoints.
        name: String,
        /// Its type.
        ty: TensorType,
    },
    /// A tensor that persists between runs and is not trained by gradient: optimiser moments, router tables and biases.
    State {
        /// Name in checkpoints.
        name: String,
        /// What it is for.
        role: StateRole,
        /// Its type.
        ty: TensorType,
    },
    /// A tensor filled with one value.
    Fill {
        /// The value.
        value: Real,
        /// Its type (f32).
        ty: TensorType,
    },
    /// `() -> (y i32[length])`: element `i` is `i * step`.
    Ramp {
        /// Number of elements.
        length: usize,
        /// Difference of two neighbours.
        step: i32,
    },
    /// `(x) -> (x)`, of either element type, with another shape of equally many elements.
    Reshape {
        /// The new shape.
        shape: Vec<usize>,
    },
    /// `(x) -> (y)`, of either element type: repeats axes of extent 1 (and missing leading axes) to the given shape.
    Broadcast {
        /// The new shape.
        shape: Vec<usize>,
    },
    /// `(x) -> (y)`: axis `i` of the result is axis `axes[i]` of the operand, of which there are at most 4.
    Permute {
        /// Each axis of the operand once.
        axes: Vec<usize>,
    },
    /// `(x [s]) -> (x [s])`: the identity, with a gradient of 0. The passes remove it.
    StopGradient,

    // ---- elementwise ----
    /// `(x [s]) -> (y [s])`
    Unary(Unary),
    /// `(a [s], b [s]) -> (y [s])`
    Binary(Binary),
    /// `(condition [s], a [s], b [s]) -> (y [s])`: `a` where the condition is not 0, else `b`.
    Select,
    /// Fused elementwise program; see [`FusedProgram`]. Only in the optimised stage.
    Fused(FusedProgram),
    /// `(operands of the producer.., further operands of the program..) -> (results of the program.., further results of
    /// the producer..)`: the elements of the producer's first result go through an elementwise program before they are
    /// stored. Operand 0 of the program is that result, read [`Access::Full`], and is no operand of the operation. Only
    /// in the optimised stage.
    FusedAfter {
        /// An operation with [`Op::operands_of_producer`].
        producer: Box<Op>,
        /// What is done with its first result.
        program: FusedProgram,
    },
    /// `(operands of the product..) -> (y, sums)`: a product over rows that also sums the rows of its first operand, the
    /// gradients of a weight and of its bias: `sums [M]` of [`Op::MatMul`] with `a` transposed, per expert `[E, O]` of
    /// [`Op::GroupedMatMulWeightGrad`]. Only in the optimised stage.
    ProductWithSums(Box<Op>),
    /// `(operands of the product.., order i32[R], positions i32[N, K])`: a product that fetches its rows from where they
    /// are. The first operand of [`Op::GroupedMatMul`], the second of [`Op::GroupedMatMulWeightGrad`], is `[N, C]`, and the
    /// product is that of what [`Op::Dispatch`] without weights makes of it. Offsets, order and positions are of one
    /// [`Op::SortByExpert`], so that every row of an expert is that of a slot. Only in the optimised stage.
    DispatchedProduct(Box<Op>),

    // ---- indices ----
    /// `(x i32[s]) -> (y [s])`: the same numbers, exact below 2^24.
    ToFloat,
    /// `(x [s]) -> (y i32[s])`: the whole part where `0 <= x < size`, else (NaN included) -1.
    ToIndex {
        /// One past the largest index.
        size: usize,
    },
    /// `(ids i32[s], table i32[V]) -> (y i32[s])`: `table[id]`; -1 where the id is not in the table.
    Lookup,
    /// `(ids i32[N]) -> (y i32[N])`: the id of the token before, in the same sequence; -1 for the first of a sequence
    /// (`n % time == 0`).
    Previous {
        /// Length of a sequence, T.
        time: usize,
    },

    // ---- reduction ----
    /// `(x) -> (y)`: sum over the given axes (sorted), which are removed.
    Sum {
        /// Axes to remove, ascending.
        axes: Vec<usize>,
    },
    /// `(x1, x2, ..) -> (y [])`: sum of the squares of all elements of all operands (for clipping by global norm).
    SumOfSquares,

    // ---- linear ----
    /// `(a, b) -> (y [M, O])` or `(a, b, bias [O]) -> (y [M, O])`: product of two matrices, each optionally transposed
    /// as stored: `a` is `[M, I]` or, transposed, `[I, M]`; `b` is `[I, O]` or, transposed, `[O, I]`.
    MatMul {
        /// `a` is stored transposed.
        transpose_a: bool,
        /// `b` is stored transposed.
        transpose_b: bool,
        /// A third operand is added to every row.
        bias: bool,
    },
    /// `(x [R, I], weights, offsets i32[E+1]) -> (y [R, O])`, with an optional fourth operand `bias [E, O]`: rows
    /// `offsets[e] .. offsets[e+1]` are multiplied by expert `e`'s matrix (`[E, I, O]`, or `[E, O, I]` transposed).
    /// Rows from `offsets[E]` on are 0.
    GroupedMatMul {
        /// Weights are stored `[E, O, I]`.
        transpose_b: bool,
        /// A fourth operand holds one bias row per expert.
        bias: bool,
    },
    /// `(dy [R, O], x [R, I], offsets i32[E+1]) -> (dw [E, O, I])`: per expert `dyᵀ x` over its rows; 0 for an expert
    /// without rows. The gradient of a grouped product, and in a forward graph a product over the rows of each segment,
    /// such as the tokens of a sequence.
    GroupedMatMulWeightGrad,
    /// `(x [R, O], offsets i32[E+1]) -> (y [E, O])`: per expert the sum of its rows; 0 for an expert without rows.
    GroupedSum,

    // ---- norm ----
    /// `(x [.., C], gain [C], shift [C]) -> (y [.., C], mean [rows], rstd [rows])` (Ba et al. 2016, arXiv 1607.06450).
    LayerNorm {
        /// Added to the variance.
        epsilon: Real,
    },
    /// `(dy, x, gain, mean, rstd) -> (dx, dgain [C], dshift [C])`
    LayerNormGrad,
    /// `(x [.., C], gain [C]) -> (y [.., C], rstd [rows])` (Zhang & Sennrich 2019, arXiv 1910.07467).
    RmsNorm {
        /// Added to the mean square.
        epsilon: Real,
    },
    /// `(dy, x, gain, rstd) -> (dx, dgain [C])`
    RmsNormGrad,

    // ---- softmax family, over the last axis ----
    /// `(x [.., M]) -> (y [.., M])`
    Softmax,
    /// `(dy [.., M], y [.., M]) -> (dx [.., M])`: `y * (dy - sum(dy * y))`.
    SoftmaxGrad,
    /// `(x [.., M]) -> (y [..])`: `ln sum e^x`.
    LogSumExp,

    // ---- attention ----
    /// `(qkv [N, 3C]) -> (y [N, C], lse [N, H])`, with the generator state as second operand iff dropout is above 0.
    /// `lse` is the log-sum-exp of the scaled scores of each query, which the gradient recomputes probabilities from.
    Attention(AttentionAttrs),
    /// `(dy [N, C], qkv [N, 3C], y [N, C], lse [N, H]) -> (dqkv [N, 3C])`, generator state last iff dropout is above 0.
    AttentionGrad(AttentionAttrs),
    /// `(qkv [S, 3C], cache [S, T, 2C], positions i32[S]) -> (y [S, C], cache [S, T, 2C])`: attention of the newest token
    /// of each of S sequences over the keys and values of those before it, which are kept in the cache (a row holds the
    /// keys of all heads, then the values). The token at position `p` is stored in row `p % T` of its sequence, and
    /// attends to the rows `0 ..= min(p, T - 1)`, itself among them: the last T positions, whatever their order. A sequence
    /// with a negative position is left alone; its result is 0.
    CachedAttention {
        /// Number of heads, H; channels as in [`AttentionAttrs`].
        heads: usize,
        /// Factor of the scores.
        scale: Real,
    },
    /// `(qkv [N, 3C]) -> (y [N, 3C])`, with an optional second operand `positions i32[N]`: rotary position embedding of
    /// queries and keys (Su et al. 2021, arXiv 2104.09864), pairs `(i, i + D/2)` of each head rotated by
    /// `position * base^(-2i/D)`; values pass unchanged. The position of row `n` is `n % time` unless it is given.
    Rotary {
        /// Number of heads, H.
        heads: usize,
        /// Length of a sequence, T.
        time: usize,
        /// Base of the wavelengths.
        base: Real,
        /// Rotates backwards: the gradient of the forward rotation.
        inverse: bool,
        /// A second operand gives the position of each row.
        positions: bool,
    },

    // ---- embedding and loss ----
    /// `(ids i32[N], table [V, C]) -> (y [N, C])`
    Embed,
    /// `(ids i32[N], dy [N, C]) -> (dtable [rows, C])`
    EmbedGrad {
        /// Rows of the table, V.
        rows: usize,
    },
    /// `(logits [N, V], targets i32[N]) -> (loss [], lse [N])`: mean cross-entropy in nats.
    CrossEntropy,
    /// `(dloss [], logits [N, V], lse [N], targets i32[N]) -> (dlogits [N, V])`
    CrossEntropyGrad,
    /// `(logits [N, V], targets i32[N]) -> (loss [], dlogits [N, V])`: [`Op::CrossEntropy`] with its gradient, for at most
    /// 2^19 tokens. Only in the optimised stage.
    FusedCrossEntropy {
        /// Gradient of the objective with respect to the loss.
        dloss: Real,
    },

    // ---- random; element `i` of a node depends on (seed, step, key, i) only, see [`crate::random`] ----
    /// `(rng i32[4]) -> (y [shape])`: standard normal.
    RandomNormal {
        /// Stream of random numbers.
        key: u32,
        /// Shape of the result.
        shape: Vec<usize>,
    },
    /// `(rng i32[4]) -> (y [shape])`: uniform on [0, 1).
    RandomUniform {
        /// Stream of random numbers.
        key: u32,
        /// Shape of the result.
        shape: Vec<usize>,
    },
    /// `(x [s], rng i32[4]) -> (y [s])`: 0 with probability `rate`, else `x / (1 - rate)`. Its gradient is itself.
    Dropout {
        /// Probability of zero, in [0, 1).
        rate: Real,
        /// Stream of random numbers.
        key: u32,
    },

    // ---- selection; selected indices are constants to the gradient ----
    /// `(x [N, E]) -> (values [N, K], indices i32[N, K])`: the K largest of each row in decreasing order.
    TopK {
        /// How many, K.
        k: usize,
    },
    /// `(x [N, E], indices i32[N, K]) -> (y [N, K])`; 0 where the index is -1.
    GatherLast,
    /// `(values [N, K], indices i32[N, K]) -> (y [N, size])`: adds each value at its index of the row.
    ScatterLast {
        /// Extent of the new last axis.
        size: usize,
    },
    /// `(indices i32[..]) -> (counts f32[size])`: how often each index occurs.
    Count {
        /// Number of bins.
        size: usize,
    },
    /// `(experts i32[N, K]) -> (kept i32[N, K])`, with a second operand `weights [N, K]` iff the priority is
    /// [`CapacityPriority::Probability`]: an entry is kept while fewer than `capacity` entries of its expert come before
    /// it in the order of the priority; the others become -1.
    LimitCapacity {
        /// Number of experts, E.
        experts: usize,
        /// Most entries an expert accepts, P.
        capacity: usize,
        /// Who comes first.
        priority: CapacityPriority,
    },
    /// `(scores [N, E]) -> (experts i32[N, 1])`: one expert per token such that every expert has `floor(N/E)` or
    /// `ceil(N/E)` tokens and the sum of the scores is the largest possible (BASE, Lewis et al. 2021, arXiv 2103.16716);
    /// see [`crate::balanced_assignment`]. All -1 if a score is NaN.
    BalancedAssignment,

    // ---- dispatch and combine ----
    /// `(experts i32[N, K]) -> (offsets i32[E+1], order i32[R], positions i32[N, K])`: a stable sort of the slots by
    /// expert. `order[r]` is the slot `n*K + k` in sorted row `r` (-1 beyond the last kept slot);
    /// `positions[n, k]` is the row of that slot (-1 if dropped). What does not fit into the R rows is dropped.
    SortByExpert {
        /// Number of experts, E.
        experts: usize,
        /// Most slots that are kept, R: N*K, or fewer where that is known, such as E*P with a capacity.
        rows: usize,
    },
    /// `(x [N, C], order i32[R], positions i32[N, K]) -> (y [R, C])`, with an optional fourth operand `weights [N, K]`:
    /// row `r` is `x[order[r] / K]` (times `weights[order[r]]`); 0 where `order` is -1.
    Dispatch {
        /// Rows are multiplied by a weight per slot.
        weighted: bool,
    },
    /// `(y [R, C], order i32[R], positions i32[N, K]) -> (z [N, C])`, with an optional fourth operand `weights [N, K]`:
    /// the sum over slots in slot order of `y[positions[n, k]]` (times the weight), skipping -1.
    Combine {
        /// Rows are multiplied by a weight per slot.
        weighted: bool,
    },
    /// `(dz [N, C], y [R, C], positions i32[N, K]) -> (dweights [N, K])`: `<dz[n], y[positions[n, k]]>`; 0 where -1.
    CombineWeightGrad,

    // ---- optimiser ----
    /// `(p1, grad1, m1, v1, p2, grad2, m2, v2, .., hyper f32[3]) -> (p1, m1, v1, p2, m2, v2, ..)`, one tensor or several,
    /// with an optional last operand `grad_scale []`. `hyper` is `[lr, 1 - beta1^t, 1 - beta2^t]` for step t counted from
    /// 1. Tensors do not see each other: each becomes what it becomes alone.
    AdamW(AdamWAttrs),
}

impl Op {
    /// The operand that a result takes the place of, where the operation changes a tensor in place: on a device both
    /// have the same storage.
    pub fn in_place(&self, result: usize) -> Option<usize> {
        match (self, result) {
            (Op::AdamW(_), _) => Some(result / 3 * 4 + [0, 2, 3][result % 3]),
            (Op::CachedAttention { .. }, 1) => Some(1),
            _ => None,
        }
    }

    /// Number of operands, if an elementwise program can go on with the first result ([`Op::FusedAfter`]).
    pub fn operands_of_producer(&self) -> Option<usize> {
        match self {
            Op::MatMul { bias, .. } => Some(2 + usize::from(*bias)),
            Op::GroupedMatMul { bias, .. } => Some(3 + usize::from(*bias)),
            Op::DispatchedProduct(product) => product.operands_of_producer().map(|n| n + 2),
            Op::LayerNormGrad => Some(5),
            Op::RmsNormGrad => Some(4),
            Op::Embed => Some(2),
            Op::Dispatch { weighted } | Op::Combine { weighted } => Some(3 + usize::from(*weighted)),
            _ => None,
        }
    }

    /// The operation that [`Op::FusedAfter`], [`Op::ProductWithSums`] and [`Op::DispatchedProduct`] are built around; any
    /// other operation itself.
    pub fn innermost(&self) -> &Op {
        match self {
            Op::FusedAfter { producer: inner, .. } | Op::ProductWithSums(inner) | Op::DispatchedProduct(inner) => {
                inner.innermost()
            }
            op => op,
        }
    }

    /// Position of the operand that [`Op::DispatchedProduct`] fetches, if this is a product for it.
    pub fn dispatched_operand(&self) -> Option<usize> {
        match self {
            Op::GroupedMatMul { .. } => Some(0),
            Op::GroupedMatMulWeightGrad => Some(1),
            _ => None,
        }
    }

    /// Name of the operation in the text form, without attributes.
    pub fn mnemonic(&self) -> &'static str {
        match self {
            Op::Input { .. } => "input",
            Op::Parameter { .. } => "parameter",
            Op::State { .. } => "state",
            Op::Fill { .. } => "fill",
            Op::Ramp { .. } => "ramp",
            Op::Reshape { .. } => "reshape",
            Op::Broadcast { .. } => "broadcast",
            Op::Permute { .. } => "permute",
            Op::StopGradient => "stop_gradient",
            Op::Unary(u) => u.mnemonic(),
            Op::Binary(b) => b.mnemonic(),
            Op::Select => "select",
            Op::Fused(_) => "fused",
            Op::FusedAfter { producer, .. } => match **producer {
                Op::GroupedMatMul { .. } => "fused_grouped_matmul",
                Op::DispatchedProduct(_) => "fused_dispatched_grouped_matmul",
                Op::LayerNormGrad => "fused_layer_norm_grad",
                Op::RmsNormGrad => "fused_rms_norm_grad",
                Op::Embed => "fused_embed",
                Op::Dispatch { .. } => "fused_dispatch",
                Op::Combine { .. } => "fused_combine",
                _ => "fused_matmul",
            },
            Op::ProductWithSums(product) => match **product {
                Op::GroupedMatMulWeightGrad => "grouped_matmul_weight_grad_with_sums",
                Op::DispatchedProduct(_) => "dispatched_grouped_matmul_weight_grad_with_sums",
                _ => "matmul_with_sums",
            },
            Op::DispatchedProduct(product) => match **product {
                Op::GroupedMatMulWeightGrad => "dispatched_grouped_matmul_weight_grad",
                _ => "dispatched_grouped_matmul",
            },
            Op::ToFloat => "to_float",
            Op::ToIndex { .. } => "to_index",
            Op::Lookup => "lookup",
            Op::Previous { .. } => "previous",
            Op::Sum { .. } => "sum",
            Op::SumOfSquares => "sum_of_squares",
            Op::MatMul { .. } => "matmul",
            Op::GroupedMatMul { .. } => "grouped_matmul",
            Op::GroupedMatMulWeightGrad => "grouped_matmul_weight_grad",
            Op::GroupedSum => "grouped_sum",
            Op::LayerNorm { .. } => "layer_norm",
            Op::LayerNormGrad => "layer_norm_grad",
            Op::RmsNorm { .. } => "rms_norm",
            Op::RmsNormGrad => "rms_norm_grad",
            Op::Softmax => "softmax",
            Op::SoftmaxGrad => "softmax_grad",
            Op::LogSumExp => "log_sum_exp",
            Op::Attention(_) => "attention",
            Op::AttentionGrad(_) => "attention_grad",
            Op::CachedAttention { .. } => "cached_attention",
            Op::Rotary { .. } => "rotary",
            Op::Embed => "embed",
            Op::EmbedGrad { .. } => "embed_grad",
            Op::CrossEntropy => "cross_entropy",
            Op::CrossEntropyGrad => "cross_entropy_grad",
            Op::FusedCrossEntropy { .. } => "fused_cross_entropy",
            Op::RandomNormal { .. } => "random_normal",
            Op::RandomUniform { .. } => "random_uniform",
            Op::Dropout { .. } => "dropout",
            Op::TopK { .. } => "top_k",
            Op::GatherLast => "gather_last",
            Op::ScatterLast { .. } => "scatter_last",
            Op::Count { .. } => "count",
            Op::LimitCapacity { .. } => "limit_capacity",
            Op::BalancedAssignment => "balanced_assignment",
            Op::SortByExpert { .. } => "sort_by_expert",
            Op::Dispatch { .. } => "dispatch",
            Op::Combine { .. } => "combine",
            Op::CombineWeightGrad => "combine_weight_grad",
            Op::AdamW(_) => "adamw",
        }
    }
}

impl Unary {
    /// Every unary function, for tables and tests.
    pub const ALL: [Unary; 12] = [
        Unary::Neg,
        Unary::Exp,
        Unary::Log,
        Unary::Sqrt,
        Unary::Recip,
        Unary::Abs,
        Unary::Sign,
        Unary::Tanh,
        Unary::Sigmoid,
        Unary::Relu,
        Unary::Softplus,
        Unary::NormalCdf,
    ];

    /// Name in the text form.
    pub fn mnemonic(self) -> &'static str {
        match self {
            Unary::Neg => "neg",
            Unary::Exp => "exp",
            Unary::Log => "log",
            Unary::Sqrt => "sqrt",
            Unary::Recip => "recip",
            Unary::Abs => "abs",
            Unary::Sign => "sign",
            Unary::Tanh => "tanh",
            Unary::Sigmoid => "sigmoid",
            Unary::Relu => "relu",
            Unary::Softplus => "softplus",
            Unary::NormalCdf => "normal_cdf",
        }
    }
}

impl Binary {
    /// Every binary function, for tables and tests.
    pub const ALL: [Binary; 9] = [
        Binary::Add,
        Binary::Sub,
        Binary::Mul,
        Binary::Div,
        Binary::Max,
        Binary::Min,
        Binary::Less,
        Binary::LessEqual,
        Binary::Equal,
    ];

    /// Name in the text form.
    pub fn mnemonic(self) -> &'static str {
        match self {
            Binary::Add => "add",
            Binary::Sub => "sub",
            Binary::Mul => "mul",
            Binary::Div => "div",
            Binary::Max => "max",
            Binary::Min => "min",
            Binary::Less => "less",
            Binary::LessEqual => "less_equal",
            Binary::Equal => "equal",
        }
    }
}

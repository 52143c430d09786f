//! The closed set of operations: one row for each, in one table.
//!
//! From the rows follow the enum [`Op`], names and attributes in the text form, arity, ranges and legality that the
//! verifier checks, [`declarations`] with which tests see that no operation is left out, and the reference page
//! `OPERATIONS.md`. What an operation means for types and numbers is in the file of its family, under `family/`.
//!
//! Conventions: tensors are row-major; weights of linear maps are `[out, in]` as in PyTorch; an index of -1 means
//! "no expert" or "no row" and is skipped by every operation that reads indices of experts, slots or rows, as is every
//! other index outside of its range; token ids and targets are always within the vocabulary; ties go to the lower
//! index. NaN goes through every function of floats except comparisons and signs, and [`Op::TopK`] takes it for smaller
//! than everything.

mod declare;
mod reference;

pub use reference::reference;

use crate::declaration::{AttributeDeclaration, Declaration, Family, Gradient, OutOfRange, Range, Slot};
use crate::function::{Binary, Unary};
use crate::internal::Invariant;
use crate::internal_error;
use crate::precision::Precision;
use crate::purpose::StateRole;
use crate::stage::Stage;
use crate::types::{Real, TensorType};
use crate::weights::WeightFormat;
use declare::{
    Attribute, Attributes, OPTIONAL, SEVERAL, attribute, attributes, elements_of_second_result, one_of_words,
    operations, result_elements, result_shape, result_type, when,
};
pub(crate) use declare::{Source, Times, Written, required};

attributes! {
    /// Attributes of causal self-attention, shared by the forward and the gradient operation.
    ///
    /// `qkv` is `[N, 3C]`: the queries of all heads, then the keys, then the values; head `h` owns channels
    /// `h*D .. (h+1)*D` of each part. Token `n` is position `n % time` of sequence `n / time` and attends to the `window`
    /// positions up to its own. Scores are multiplied by `scale`, then softmax, then dropout of the probabilities (random
    /// element `((b*H + h)*T + query)*T + key`).
    pub struct AttentionAttrs {
        /// Number of heads, H.
        pub heads: usize as AtLeastOne,
        /// Length of a sequence, T.
        pub time: usize as AtLeastOne,
        /// Factor of the scores.
        pub scale: Real as Finite,
        /// Dropout rate of the attention probabilities; the generator state is an operand iff it is above 0.
        pub dropout: Real as Share = Real::new(0.0),
        /// Stream of random numbers of the dropout.
        pub key: u32 = 0,
        /// How many positions a token sees, its own among them (Beltagy et al. 2020, arXiv 2004.05150, section 3.1); all of
        /// those up to its own if it is not there.
        pub window: usize as AtLeastOne = usize::MAX,
        /// Whether each head has a score without a value, its sink, that takes part in the softmax of every query.
        pub sink: bool,
    }
}

impl AttentionAttrs {
    /// Attention over all positions up to a token's own, without dropout and sinks.
    pub fn causal(heads: usize, time: usize, scale: impl Into<Real>) -> Self {
        let (scale, dropout) = (scale.into(), Real::new(0.0));
        Self { heads, time, scale, dropout, key: 0, window: usize::MAX, sink: false }
    }

    /// The first position that a query sees.
    pub fn first_seen(&self, query: usize) -> usize {
        (query + 1).saturating_sub(self.window)
    }

    /// How many positions a query sees on average over a sequence.
    pub fn seen_on_average(&self) -> f64 {
        let (time, window) = (self.time as f64, self.window.min(self.time) as f64);
        window - window * (window - 1.0) / (2.0 * time)
    }
}

attributes! {
    /// Attributes of AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), as in PyTorch.
    pub struct AdamWAttrs {
        /// Decay of the first moment.
        pub beta1: Real as Share,
        /// Decay of the second moment.
        pub beta2: Real as Share,
        /// Added to the root of the second moment.
        pub epsilon: Real as NotNegative,
        /// Decoupled weight decay.
        pub weight_decay: Real as NotNegative,
    }
}

attributes! {
    /// How weights that are only read are stored; see [`WeightFormat`].
    pub struct UnpackAttrs {
        /// The numbers that they are stored as.
        pub format: WeightFormat,
        /// Columns of a panel, P: a multiple of 4.
        pub panel: usize as AtLeastOne,
        /// Columns of the matrix, O.
        pub columns: usize as AtLeastOne,
    }
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

one_of_words! {
    CapacityPriority: "`token`, `choice` or `probability`";
    Precision: "`f32` or `bf16`";
    StateRole: "`router`, `optimizer`, `sum`, `cache`, `transposed`, `packed_f32`, `packed_bf16`, `packed_int8` or `scale`";
    WeightFormat: "`f32`, `bf16` or `int8`";
}

operations! {
    /// An operation.
    ///
    /// Shapes are written in the letters of `types.rs`; an operand or result without an element type is of floats.

    Structure {
        /// A value given anew for every run: token ids, targets, generator state, learning rate.
        Input {
            /// Name under which a run passes it.
            name: String,
            /// Its type.
            ty: TensorType => result_type,
        } = "input"() -> (value "of its type"): Forward, Zero;

        /// A trained tensor.
        Parameter {
            /// Name in checkpoints.
            name: String,
            /// Its type.
            ty: TensorType => result_type,
        } = "parameter"() -> (value "of its type"): Forward, Zero;

        /// A tensor that persists between runs and is not trained by gradient: optimiser moments, router tables and
        /// biases.
        State {
            /// Name in checkpoints.
            name: String,
            /// What it is for.
            role: StateRole = StateRole::default(),
            /// Its type.
            ty: TensorType => result_type,
        } = "state"() -> (value "of its type"): Forward, Zero;

        /// A tensor filled with one value.
        Fill {
            /// The value.
            value: Real,
            /// Its type (f32).
            ty: TensorType => result_type,
        } = "fill"() -> (y "[s]"): Forward, Zero;

        /// Element `i` is `i * step`.
        Ramp {
            /// Number of elements.
            length: usize => result_elements,
            /// Difference of two neighbours.
            step: i32,
        } = "ramp"() -> (y "i32[length]"): Forward, Zero;

        /// The same elements, of either type, under another shape of equally many elements.
        Reshape {
            /// The new shape.
            shape: Vec<usize> => result_shape,
        } = "reshape"(x "[s]") -> (y "[shape]"): Forward, Rule;

        /// Repeats axes of extent 1 (and missing leading axes) to the given shape, of elements of either type.
        Broadcast {
            /// The new shape.
            shape: Vec<usize> => result_shape,
        } = "broadcast"(x "[s]") -> (y "[shape]"): Forward, Rule;

        /// Axis `i` of the result is axis `axes[i]` of the operand, of which there are at most 4.
        Permute {
            /// Each axis of the operand once.
            axes: Vec<usize>,
        } = "permute"(x "[s]") -> (y "[s] with its axes in another order"): Forward, Rule;

        /// The identity, with a gradient of 0. The passes remove it.
        StopGradient = "stop_gradient"(x "[s]") -> (y "[s]"): Forward, Zero;
    }

    Elementwise {
        /// `a` where the condition is not 0, else `b`.
        Select = "select"(condition "[s]", a "[s]", b "[s]") -> (y "[s]"): Forward, Rule;
    }

    Indices {
        /// The same numbers, exact below 2^24.
        ToFloat = "to_float"(x "i32[s]") -> (y "[s]"): Forward, Zero;

        /// The whole part where `0 <= x < size`, else (NaN included) -1.
        ToIndex {
            /// One past the largest index.
            size: usize,
        } = "to_index"(x "[s]") -> (y "i32[s]"): Forward, Zero;

        /// `table[id]`; -1 where the id is not in the table.
        Lookup = "lookup"(ids "i32[s]", table "i32[V]") -> (y "i32[s]"): Forward, Zero;

        /// The id of the token before, in the same sequence; -1 for the first of a sequence (`n % time == 0`).
        Previous {
            /// Length of a sequence, T.
            time: usize as AtLeastOne,
        } = "previous"(ids "i32[N]") -> (y "i32[N]"): Forward, Zero;
    }

    Reduction {
        /// Sum over the given axes (sorted), which are removed.
        Sum {
            /// Axes to remove, ascending.
            axes: Vec<usize>,
        } = "sum"(x "[s]") -> (y "[s] without the axes"): Forward, Rule;

        /// The sum of the elements along an axis up to each, added in their order.
        CumulativeSum {
            /// The axis.
            axis: usize,
            /// Up to each without itself: the first is 0.
            exclusive: bool,
            /// From each on to the end instead of up to each, added from the end.
            reverse: bool,
        } = "cumsum"(x "[s]") -> (y "[s]"): Forward, Rule;

        /// Sum of the squares of all elements of all operands (for clipping by global norm).
        SumOfSquares = "sum_of_squares"(x "[..]": SEVERAL) -> (y "[]"): Training, Rule;
    }

    Linear {
        /// Product of two matrices, each optionally transposed as stored: `a` is `[M, I]` or, transposed, `[I, M]`; `b`
        /// is `[I, O]` or, transposed, `[O, I]`.
        MatMul {
            /// `a` is stored transposed.
            transpose_a: bool,
            /// `b` is stored transposed.
            transpose_b: bool,
            /// A third operand is added to every row.
            bias: bool,
            /// What `a` and `b` are rounded to; bias and sums are float32.
            precision: Precision = Precision::F32,
        } = "matmul"(a "[M, I]", b "[I, O]", bias "[O]": when(*bias)) -> (y "[M, O]"): Forward, Rule;

        /// Rows `offsets[e] .. offsets[e+1]` are multiplied by expert `e`'s matrix (`[E, I, O]`, or `[E, O, I]`
        /// transposed). Rows from `offsets[E]` on are 0.
        GroupedMatMul {
            /// Weights are stored `[E, O, I]`.
            transpose_b: bool,
            /// A fourth operand holds one bias row per expert.
            bias: bool,
            /// What rows and weights are rounded to; bias and sums are float32.
            precision: Precision = Precision::F32,
        } = "grouped_matmul"(x "[R, I]", weights "[E, I, O]", offsets "i32[E+1]", bias "[E, O]": when(*bias))
            -> (y "[R, O]"): Forward, Rule;

        /// Per expert `dyᵀ x` over its rows; 0 for an expert without rows. The gradient of a grouped product, and in a
        /// forward graph a product over the rows of each segment, such as the tokens of a sequence.
        GroupedMatMulWeightGrad {
            /// What both are rounded to; sums are float32.
            precision: Precision = Precision::F32,
        } = "grouped_matmul_weight_grad"(
            dy "[R, O]", x "[R, I]", offsets "i32[E+1]",
        ) -> (dw "[E, O, I]"): Forward, Rule;

        /// The matrices that were packed in panels of columns, float32 or words of 32 bits (W of them in a row of a panel),
        /// times the scale of each column where the format has one.
        Unpack(attrs: UnpackAttrs) = "unpack"(
            packed "f32 or i32 [.., panels, I, W]", scale "[.., O]": when(attrs.format.is_scaled()),
        ) -> (weights "[.., I, O]"): Forward, None;

        /// Per expert the sum of its rows; 0 for an expert without rows.
        GroupedSum = "grouped_sum"(x "[R, O]", offsets "i32[E+1]") -> (y "[E, O]"): Forward, Rule;
    }

    Norm {
        /// Layer normalisation (Ba et al. 2016, arXiv 1607.06450).
        LayerNorm {
            /// Added to the variance.
            epsilon: Real as NotNegative,
        } = "layer_norm"(x "[.., C]", gain "[C]", shift "[C]")
            -> (y "[.., C]", mean "[rows]", rstd "[rows]"): Forward, Rule;

        /// The gradient of `layer_norm`.
        LayerNormGrad = "layer_norm_grad"(dy "[.., C]", x "[.., C]", gain "[C]", mean "[rows]", rstd "[rows]")
            -> (dx "[.., C]", dgain "[C]", dshift "[C]"): Training, None;

        /// Normalisation by the root of the mean square (Zhang & Sennrich 2019, arXiv 1910.07467).
        RmsNorm {
            /// Added to the mean square.
            epsilon: Real as NotNegative,
        } = "rms_norm"(x "[.., C]", gain "[C]") -> (y "[.., C]", rstd "[rows]"): Forward, Rule;

        /// The gradient of `rms_norm`.
        RmsNormGrad = "rms_norm_grad"(dy "[.., C]", x "[.., C]", gain "[C]", rstd "[rows]")
            -> (dx "[.., C]", dgain "[C]"): Training, None;
    }

    Softmax {
        /// `e^x / sum e^x` over the last axis.
        Softmax = "softmax"(x "[.., M]") -> (y "[.., M]"): Forward, Rule;

        /// `y * (dy - sum(dy * y))`.
        SoftmaxGrad = "softmax_grad"(dy "[.., M]", y "[.., M]") -> (dx "[.., M]"): Training, None;

        /// `ln sum e^x` over the last axis.
        LogSumExp = "log_sum_exp"(x "[.., M]") -> (y "[..]"): Forward, Rule;
    }

    Attention {
        /// Causal self-attention. `lse` is the log-sum-exp of the scaled scores of each query, and of its head's sink,
        /// which the gradient recomputes probabilities from. The generator state is an operand iff dropout is above 0.
        Attention(attrs: AttentionAttrs) = "attention"(
            qkv "[N, 3C]", sinks "[H]": when(attrs.sink), rng "i32[4]": when(attrs.dropout.get() > 0.0),
        ) -> (y "[N, C]", lse "[N, H]"): Forward, Rule, random;

        /// The gradient of `attention` for `qkv`, with the same attributes.
        AttentionGrad(attrs: AttentionAttrs) = "attention_grad"(
            dy "[N, C]", qkv "[N, 3C]", y "[N, C]", lse "[N, H]", rng "i32[4]": when(attrs.dropout.get() > 0.0),
        ) -> (dqkv "[N, 3C]"): Training, None, random;

        /// Attention of the newest token of each of S sequences over the keys and values of those before it, which are
        /// kept in the cache (a row holds the keys of all heads, then the values). The token at position `p` is stored
        /// in row `p % T` of its sequence, and attends to the rows `0 ..= min(p, T - 1)`, itself among them: the last T
        /// positions, whatever their order. A sequence with a negative position is left alone; its result is 0. Sinks are
        /// those of [`AttentionAttrs`].
        CachedAttention {
            /// Number of heads, H; channels as in [`AttentionAttrs`].
            heads: usize as AtLeastOne,
            /// Factor of the scores.
            scale: Real as Finite,
            /// Whether each head has a sink.
            sink: bool,
        } = "cached_attention"(qkv "[S, 3C]", cache "[S, T, 2C]", positions "i32[S]", sinks "[H]": when(*sink))
            -> (y "[S, C]", cache "[S, T, 2C]" over cache): Forward, None;

        /// Rotary position embedding of queries and keys (Su et al. 2021, arXiv 2104.09864), pairs `(i, i + D/2)` of
        /// each head rotated by `position * base^(-2i/D)`; values pass unchanged. The position of row `n` is `n % time`
        /// unless it is given.
        Rotary {
            /// Number of heads, H.
            heads: usize as AtLeastOne,
            /// Length of a sequence, T.
            time: usize as AtLeastOne,
            /// Base of the wavelengths.
            base: Real as Positive,
            /// Rotates backwards: the gradient of the forward rotation.
            inverse: bool,
            /// A second operand gives the position of each row.
            positions: bool,
        } = "rotary"(qkv "[N, 3C]", positions "i32[N]": when(*positions))
            -> (y "[N, 3C]"): Forward or Training if *inverse, Rule;
    }

    Embedding {
        /// The rows of the table that the ids name.
        Embed = "embed"(ids "i32[N]", table "[V, C]") -> (y "[N, C]"): Forward, Rule;

        /// The gradient of `embed`: each row of the table gets the sum over the tokens that read it.
        EmbedGrad {
            /// Rows of the table, V.
            rows: usize,
        } = "embed_grad"(ids "i32[N]", dy "[N, C]") -> (dtable "[rows, C]"): Training, None;

        /// Mean cross-entropy in nats.
        CrossEntropy = "cross_entropy"(logits "[N, V]", targets "i32[N]") -> (loss "[]", lse "[N]"): Forward, Rule;

        /// The gradient of `cross_entropy`.
        CrossEntropyGrad = "cross_entropy_grad"(dloss "[]", logits "[N, V]", lse "[N]", targets "i32[N]")
            -> (dlogits "[N, V]"): Training, None;
    }

    Random {
        /// Standard normal.
        RandomNormal {
            /// Stream of random numbers.
            key: u32,
            /// Shape of the result.
            shape: Vec<usize> => result_shape,
        } = "random_normal"(rng "i32[4]") -> (y "[shape]"): Forward, Zero, random;

        /// Uniform on [0, 1).
        RandomUniform {
            /// Stream of random numbers.
            key: u32,
            /// Shape of the result.
            shape: Vec<usize> => result_shape,
        } = "random_uniform"(rng "i32[4]") -> (y "[shape]"): Forward, Zero, random;

        /// 0 with probability `rate`, else `x / (1 - rate)`. Its gradient is itself.
        Dropout {
            /// Probability of zero.
            rate: Real as Share,
            /// Stream of random numbers.
            key: u32,
        } = "dropout"(x "[s]", rng "i32[4]") -> (y "[s]"): Forward, Rule, random;
    }

    Selection {
        /// The k largest of each row in decreasing order, but for the first `skip` of them: K = k - skip.
        TopK {
            /// The rank of the last one.
            k: usize as AtLeastOne,
            /// How many of the largest are left out.
            skip: usize = 0,
        } = "top_k"(x "[N, E]") -> (values "[N, K]", indices "i32[N, K]"): Forward, Rule;

        /// The elements of each row that the indices name; 0 where the index is -1.
        GatherLast = "gather_last"(x "[N, E]", indices "i32[N, K]") -> (y "[N, K]"): Forward, Rule;

        /// Adds each value at its index of the row.
        ScatterLast {
            /// Extent of the new last axis.
            size: usize,
        } = "scatter_last"(values "[N, K]", indices "i32[N, K]") -> (y "[N, size]"): Forward, Rule;

        /// How often each index occurs.
        Count {
            /// Number of bins.
            size: usize,
        } = "count"(indices "i32[..]") -> (counts "[size]"): Forward, Zero;

        /// An entry is kept while fewer than `capacity` entries of its expert come before it in the order of the
        /// priority; the others become -1. Weights are an operand iff the priority is `probability`.
        LimitCapacity {
            /// Number of experts, E.
            experts: usize,
            /// Most entries an expert accepts, P.
            capacity: usize as AtLeastOne,
            /// Who comes first.
            priority: CapacityPriority = CapacityPriority::Token,
        } = "limit_capacity"(
            experts "i32[N, K]", weights "[N, K]": when(*priority == CapacityPriority::Probability),
        ) -> (kept "i32[N, K]"): Forward, Zero;

        /// One expert per token such that every expert has `floor(N/E)` or `ceil(N/E)` tokens and the sum of the scores
        /// is the largest possible (BASE, Lewis et al. 2021, arXiv 2103.16716); see [`crate::balanced_assignment`]. All
        /// -1 if a score is NaN.
        BalancedAssignment = "balanced_assignment"(scores "[N, E]") -> (experts "i32[N, 1]"): Forward, Zero;
    }

    Dispatch {
        /// A stable sort of the slots by expert. `order[r]` is the slot `n*K + k` in sorted row `r` (-1 beyond the last
        /// kept slot); `positions[n, k]` is the row of that slot (-1 if dropped). What does not fit into the R rows is
        /// dropped.
        SortByExpert {
            /// Number of experts, E.
            experts: usize,
            /// Most slots that are kept, R: N*K, or fewer where that is known, such as E*P with a capacity.
            rows: usize => elements_of_second_result,
        } = "sort_by_expert"(experts "i32[N, K]")
            -> (offsets "i32[E+1]", order "i32[R]", positions "i32[N, K]"): Forward, Zero;

        /// Row `r` is `x[order[r] / K]` (times `weights[order[r]]`); 0 where `order` is -1.
        Dispatch {
            /// Rows are multiplied by a weight per slot.
            weighted: bool,
        } = "dispatch"(x "[N, C]", order "i32[R]", positions "i32[N, K]", weights "[N, K]": when(*weighted))
            -> (y "[R, C]"): Forward, Rule;

        /// The sum over slots in slot order of `y[positions[n, k]]` (times the weight), skipping -1.
        Combine {
            /// Rows are multiplied by a weight per slot.
            weighted: bool,
        } = "combine"(y "[R, C]", order "i32[R]", positions "i32[N, K]", weights "[N, K]": when(*weighted))
            -> (z "[N, C]"): Forward, Rule;

        /// `<dz[n], y[positions[n, k]]>`; 0 where -1.
        CombineWeightGrad = "combine_weight_grad"(dz "[N, C]", y "[R, C]", positions "i32[N, K]")
            -> (dweights "[N, K]"): Training, None;
    }

    Optimizer {
        /// The step of AdamW. `hyper` is `[lr, 1 - beta1^t, 1 - beta2^t]` for step t counted from 1; the gradient is
        /// multiplied by `grad_scale` if that is there.
        AdamW(attrs: AdamWAttrs) = "adamw"(
            p "[s]", grad "[s]", m "[s]", v "[s]", hyper "[3]", grad_scale "[]": OPTIONAL,
        ) -> (p "[s]" over p, m "[s]" over m, v "[s]" over v): Training, None;
    }

    ; undeclared {
        /// A function of each element: `(x [s]) -> (y [s])`. Its row is that of the function, in `function.rs`.
        Unary(Unary),
        /// A function of two elements: `(a [s], b [s]) -> (y [s])`. Its row is that of the function.
        Binary(Binary),
    }
}

/// What is declared of every operation, in the order of the table.
pub fn declarations() -> impl Iterator<Item = &'static Declaration> {
    let functions =
        Unary::ALL.into_iter().map(Unary::declaration).chain(Binary::ALL.into_iter().map(Binary::declaration));
    ROWS.iter().chain(functions)
}

impl Op {
    /// What is declared of the operation.
    pub fn declaration(&self) -> &'static Declaration {
        match (self, self.row()) {
            (_, Some(row)) => &ROWS[row as usize],
            (Op::Unary(f), None) => f.declaration(),
            (Op::Binary(f), None) => f.declaration(),
            (op, None) => internal_error!("{op:?} has no row in the table"),
        }
    }

    /// Name of the operation in the text form, without attributes.
    pub fn mnemonic(&self) -> &'static str {
        self.declaration().mnemonic
    }

    /// What is written down of the attributes, in their canonical order.
    pub(crate) fn written(&self, node: &str) -> Vec<(&'static str, Written)> {
        // Functions of elements have no row here, and no attributes.
        self.row_written(node).unwrap_or_default()
    }

    /// Attributes that are not in their range.
    pub fn out_of_range(&self) -> Vec<OutOfRange> {
        self.row_out_of_range()
    }

    /// The first stage in which the operation is legal with its attributes.
    pub fn first_stage(&self) -> Stage {
        self.row_stage().unwrap_or(self.declaration().stage.0)
    }

    /// How often each operand is there; `None` if only inference can tell.
    pub(crate) fn times(&self) -> Option<Vec<Times>> {
        match self {
            Op::Unary(_) => Some(vec![(1, 1)]),
            Op::Binary(_) => Some(vec![(1, 1); 2]),
            op => op.row_times(),
        }
    }

    /// The operand that a result takes the place of, where the operation changes a tensor in place: on a device both
    /// have the same storage.
    pub fn in_place(&self, result: usize) -> Option<usize> {
        let declared = self.declaration();
        let over = Self::row_over(self.row()?)[result]?;
        let position = declared.operands.iter().position(|operand| operand.name == over);
        Some(position.invariant("a result takes the place of an operand"))
    }

    /// The operation on a line of the text form; `None` if the table has none of that name.
    pub(crate) fn read<S: Source>(source: &mut S) -> Result<Option<Op>, S::Error> {
        if let Some(op) = Self::row_read(source)? {
            return Ok(Some(op));
        }
        let mnemonic = source.mnemonic();
        Ok(Unary::named(mnemonic).map(Op::Unary).or(Binary::named(mnemonic).map(Op::Binary)))
    }
}

#[cfg(test)]
mod tests;

//! An operation as an expression of PyTorch.

use super::Unwritable;
use super::body::Body;
use super::expression::{ADDITIVE, ATOM, COMPARISON, Expression, MULTIPLICATIVE, NEGATIVE};
use super::side::Side;
use super::sizes::float;
use moec_ir::{Binary, CapacityPriority, Op, Precision, Unary, internal_error};

/// A function or class of the top of the file that an expression needs, so that it is written there.
type Helper = &'static str;

impl Body<'_, '_> {
    /// The results of a node: one expression, or one that is a tuple if the node has several results.
    pub(super) fn operation(&mut self, node: usize) -> Result<Expression, Unwritable> {
        let side = self.side;
        let op = &side.node(node).op;
        let x = |body: &mut Self, i: usize| body.operand(node, i);
        Ok(match op {
            Op::Input { .. } | Op::Parameter { .. } | Op::State { .. } | Op::Fill { .. } | Op::Ramp { .. } => {
                internal_error!("a source is no statement")
            }
            Op::StopGradient => x(self, 0)?.method("detach", &[]),
            Op::Reshape { .. } => self.reshape(node)?,
            Op::Broadcast { .. } => self.loose(node, 0)?.broadcast(),
            Op::Permute { axes } => match axes.as_slice() {
                [1, 0] => x(self, 0)?.method("t", &[]),
                axes => {
                    let axes: Vec<String> = axes.iter().map(usize::to_string).collect();
                    x(self, 0)?.method("permute", &axes)
                }
            },
            Op::Select => {
                let condition = self.loose(node, 0)?;
                let condition = if condition.is_bool { condition } else { condition.infix(COMPARISON, "!=", "0") };
                let (a, b) = (self.loose(node, 1)?, self.loose(node, 2)?);
                let is_loose = condition.is_loose && a.is_loose && b.is_loose;
                Expression { is_loose, ..call("torch.where", &[condition.text, a.number().text, b.number().text]) }
            }
            Op::Unary(f) => {
                let x = self.loose(node, 0)?.number();
                unary(*f, x)
            }
            Op::Binary(f) => {
                let (a, b) = (self.loose(node, 0)?.number(), self.loose(node, 1)?.number());
                binary(*f, a, b)
            }
            Op::ToFloat => {
                let x = self.loose(node, 0)?;
                let is_loose = x.is_loose;
                Expression { is_loose, ..x.method("float", &[]) }
            }
            Op::ToIndex { .. } => {
                let size = side.formula(node, &|node| match node.op {
                    Op::ToIndex { size } => size,
                    _ => 0,
                })?;
                let size = self.symbols(size.text);
                // A bool has no parts that are not whole.
                let x = self.loose(node, 0)?.number();
                let is_loose = x.is_loose;
                Expression { is_loose, ..self.helper("to_index", &[x.text, size]) }
            }
            Op::Lookup => {
                let arguments = [x(self, 0)?.text, x(self, 1)?.text];
                self.helper("lookup", &arguments)
            }
            Op::Previous { .. } => {
                let time = self.time(node)?;
                let arguments = [x(self, 0)?.text, time];
                self.helper("previous", &arguments)
            }
            Op::Sum { axes } => {
                let x = x(self, 0)?.number();
                if axes.len() == side.operand_shape(node, 0).len() {
                    x.method("sum", &[])
                } else {
                    let axes: Vec<String> = axes.iter().map(usize::to_string).collect();
                    match axes.as_slice() {
                        [axis] => x.method("sum", std::slice::from_ref(axis)),
                        axes => x.method("sum", &[format!("({})", axes.join(", "))]),
                    }
                }
            }
            Op::CumulativeSum { axis, exclusive, reverse } => {
                let x = x(self, 0)?.number();
                if !exclusive && !reverse {
                    return Ok(x.method("cumsum", &[axis.to_string()]));
                }
                let mut arguments = vec![x.text, axis.to_string()];
                for (flag, is_set) in [("exclusive", exclusive), ("reverse", reverse)] {
                    if *is_set {
                        arguments.push(format!("{flag}=True"));
                    }
                }
                self.helper("cumulative_sum", &arguments)
            }
            Op::MatMul { transpose_a, transpose_b, bias, precision } => {
                let (a, b) = (x(self, 0)?.number(), x(self, 1)?.number());
                let a = if *transpose_a { a.method("t", &[]) } else { a };
                if *transpose_b {
                    let mut arguments = vec![a.text, b.text];
                    if *bias {
                        arguments.push(x(self, 2)?.text);
                    }
                    return Ok(match precision {
                        Precision::F32 => call("F.linear", &arguments),
                        Precision::Bf16 => self.helper("rounded_linear", &arguments),
                    });
                }
                let product = match precision {
                    Precision::F32 => a.infix(MULTIPLICATIVE, "@", &b.at(MULTIPLICATIVE)),
                    Precision::Bf16 => {
                        let (a, b) = (self.helper("bf16", &[a.text]), self.helper("bf16", &[b.text]));
                        self.helper("bf16_gradient", &[format!("{} @ {}", a.text, b.text)])
                    }
                };
                if *bias { product.infix(ADDITIVE, "+", &x(self, 2)?.at(ADDITIVE)) } else { product }
            }
            Op::GroupedMatMul { transpose_b, bias, precision } => {
                if let (Some((segments, length)), false, Precision::F32) = (self.even(node, 2)?, *bias, precision) {
                    // Segments of one length are one product of matrices.
                    let (rows, weights) = (x(self, 0)?.number(), x(self, 1)?.number());
                    let rows = rows.method("view", &[segments, length, "-1".into()]);
                    let weights = if *transpose_b { weights.dot("mT") } else { weights };
                    let product = rows.infix(MULTIPLICATIVE, "@", &weights.at(MULTIPLICATIVE));
                    return Ok(product.method("flatten", &["0".into(), "1".into()]));
                }
                let (rows, weights) = (x(self, 0)?.number(), x(self, 1)?.number());
                let weights =
                    if *transpose_b { weights } else { weights.method("transpose", &["1".into(), "2".into()]) };
                let mut arguments = vec![rows.text, weights.text, x(self, 2)?.text];
                if *bias {
                    arguments.push(x(self, 3)?.text);
                }
                if *precision == Precision::Bf16 {
                    self.helpers.insert("rounded_linear");
                    arguments.push("linear=rounded_linear".into());
                }
                self.helper("grouped_linear", &arguments)
            }
            Op::GroupedMatMulWeightGrad { precision } => {
                let (y, rows) = (x(self, 0)?.number(), x(self, 1)?.number());
                let (y, rows) = match precision {
                    Precision::F32 => (y, rows),
                    Precision::Bf16 => (self.helper("bf16", &[y.text]), self.helper("bf16", &[rows.text])),
                };
                let product = match self.even(node, 2)? {
                    Some((segments, length)) => {
                        let each = [segments, length, "-1".into()];
                        let y = y.method("view", &each).method("transpose", &["1".into(), "2".into()]);
                        y.infix(MULTIPLICATIVE, "@", &rows.method("view", &each).text)
                    }
                    None => {
                        let arguments = [y.text, rows.text, x(self, 2)?.text];
                        self.helper("grouped_outer", &arguments)
                    }
                };
                match precision {
                    Precision::F32 => product,
                    Precision::Bf16 => self.helper("bf16_gradient", &[product.text]),
                }
            }
            Op::GroupedSum => {
                let arguments = [x(self, 0)?.number().text, x(self, 1)?.text];
                self.helper("grouped_sum", &arguments)
            }
            Op::LayerNorm { epsilon } => {
                let (x, gain, shift) = (x(self, 0)?, x(self, 1)?, x(self, 2)?);
                let shape = gain.clone().dot("shape").text;
                call("F.layer_norm", &[x.number().text, shape, gain.text, shift.text, float(epsilon.get())])
            }
            Op::RmsNorm { epsilon } => {
                let (x, gain) = (x(self, 0)?, x(self, 1)?);
                let shape = gain.clone().dot("shape").text;
                call("F.rms_norm", &[x.number().text, shape, gain.text, float(epsilon.get())])
            }
            Op::Softmax => x(self, 0)?.number().method("softmax", &["-1".into()]),
            Op::LogSumExp => x(self, 0)?.number().method("logsumexp", &["-1".into()]),
            Op::Attention(attrs) => {
                let time = self.time(node)?;
                let dropped = attrs.dropout.get() > 0.0;
                let dropout = format!("{} if self.training else 0.0", float(attrs.dropout.get()));
                let mut arguments = vec![x(self, 0)?.text, attrs.heads.to_string(), time, float(attrs.scale.get())];
                let windowed = attrs.window < usize::MAX;
                if !windowed && !attrs.sink {
                    arguments.extend((dropped && self.with_dropout).then_some(dropout));
                    return Ok(self.helper("attention", &arguments));
                }
                arguments.extend(windowed.then(|| format!("window={}", attrs.window)));
                if attrs.sink {
                    arguments.push(format!("sinks={}", x(self, 1)?.text));
                }
                arguments.extend((dropped && self.with_dropout).then(|| format!("dropout={dropout}")));
                self.helper("masked_attention", &arguments)
            }
            Op::Rotary { heads, base, positions, .. } => {
                let time = self.time(node)?;
                let mut arguments = vec![x(self, 0)?.text, heads.to_string(), time, float(base.get())];
                if *positions {
                    arguments.push(x(self, 1)?.text);
                }
                self.helper("rotary", &arguments)
            }
            Op::Embed => {
                let ids = x(self, 0)?;
                let table = x(self, 1)?;
                Expression::atom(format!("{}[{}]", table.at(ATOM), ids.text))
            }
            Op::CrossEntropy => {
                let arguments = [x(self, 0)?.text, x(self, 1)?.text];
                call("F.cross_entropy", &arguments)
            }
            Op::RandomNormal { .. } | Op::RandomUniform { .. } => {
                let function = if matches!(op, Op::RandomNormal { .. }) { "torch.randn" } else { "torch.rand" };
                let shape = self.shape(node, 0)?;
                let device = self.device();
                call(function, &[shape, vec![device]].concat())
            }
            Op::Dropout { rate, .. } => {
                let x = x(self, 0)?;
                match self.with_dropout {
                    true => call("F.dropout", &[x.number().text, float(rate.get()), "self.training".into()]),
                    false => x,
                }
            }
            Op::TopK { skip, .. } => {
                let k = side.formula(node, &|node| match node.op {
                    Op::TopK { k, .. } => k,
                    _ => 0,
                })?;
                let mut arguments = vec![x(self, 0)?.number().text, self.symbols(k.text)];
                if *skip > 0 {
                    let skip = side.formula(node, &|node| match node.op {
                        Op::TopK { skip, .. } => skip,
                        _ => 0,
                    })?;
                    arguments.push(format!("skip={}", self.symbols(skip.text)));
                }
                self.helper("top_k", &arguments)
            }
            Op::GatherLast => {
                let (values, columns) = (x(self, 0)?.number(), x(self, 1)?);
                if side.is_chosen(node, 1) {
                    return Ok(values.method("gather", &["-1".into(), columns.text]));
                }
                self.helper("gather_last", &[values.text, columns.text])
            }
            Op::ScatterLast { .. } => {
                let size = side.formula(node, &|node| match node.op {
                    Op::ScatterLast { size } => size,
                    _ => 0,
                })?;
                let arguments = [x(self, 0)?.number().text, x(self, 1)?.text, self.symbols(size.text)];
                self.helper("scatter_last", &arguments)
            }
            Op::Count { size } => {
                let arguments = [x(self, 0)?.text, size.to_string()];
                self.helper("count", &arguments)
            }
            Op::LimitCapacity { priority, .. } => {
                let capacity = side.formula(node, &|node| match node.op {
                    Op::LimitCapacity { capacity, .. } => capacity,
                    _ => 0,
                })?;
                let mut arguments = vec![x(self, 0)?.text, self.symbols(capacity.text)];
                match priority {
                    CapacityPriority::Token => {}
                    CapacityPriority::Choice => arguments.push("\"choice\"".into()),
                    CapacityPriority::Probability => {
                        arguments.extend(["\"probability\"".into(), x(self, 1)?.number().text]);
                    }
                }
                self.helper("limit_capacity", &arguments)
            }
            Op::BalancedAssignment => {
                let arguments = [x(self, 0)?.number().text];
                self.helper("balanced_assignment", &arguments)
            }
            Op::SortByExpert { .. } => {
                let experts = side.formula(node, &|node| match node.op {
                    Op::SortByExpert { experts, .. } => experts,
                    _ => 0,
                })?;
                let rows = side.formula(node, &|node| match node.op {
                    Op::SortByExpert { rows, .. } => rows,
                    _ => 0,
                })?;
                let arguments = [x(self, 0)?.text, self.symbols(experts.text), self.symbols(rows.text)];
                self.helper("sort_by_expert", &arguments)
            }
            Op::Dispatch { weighted } => {
                let mut arguments = vec![x(self, 0)?.number().text, x(self, 1)?.text, x(self, 2)?.text];
                if *weighted {
                    arguments.push(x(self, 3)?.number().text);
                }
                self.helper("dispatch", &arguments)
            }
            Op::Combine { weighted } => {
                let mut arguments = vec![x(self, 0)?.number().text, x(self, 2)?.text];
                if *weighted {
                    arguments.push(x(self, 3)?.number().text);
                }
                self.helper("combine", &arguments)
            }
            // Of keys and values that are kept, of stored weights, of gradients and optimisers: a graph of whole sequences as
            // it is lowered has none of them.
            Op::CachedAttention { .. }
            | Op::Unpack(_)
            | Op::SumOfSquares
            | Op::LayerNormGrad
            | Op::RmsNormGrad
            | Op::SoftmaxGrad
            | Op::AttentionGrad(_)
            | Op::EmbedGrad { .. }
            | Op::CrossEntropyGrad
            | Op::CombineWeightGrad
            | Op::AdamW(_) => internal_error!("{} in a forward graph of sequences", op.mnemonic()),
        })
    }

    /// A call of a helper, which is noted.
    pub(super) fn helper(&mut self, name: Helper, arguments: &[String]) -> Expression {
        self.helpers.insert(name);
        call(name, arguments)
    }

    /// Length of the sequences of a node.
    fn time(&mut self, node: usize) -> Result<String, Unwritable> {
        let time = self.side.formula(node, &|node| match &node.op {
            Op::Attention(attrs) => attrs.time,
            Op::Rotary { time, .. } | Op::Previous { time } => *time,
            _ => 0,
        })?;
        Ok(self.symbols(time.text))
    }

    /// Number and length of the segments of an operand, offsets of rows, if they all have one length.
    fn even(&mut self, node: usize, operand: usize) -> Result<Option<(String, String)>, Unwritable> {
        let side: &Side<'_> = self.side;
        let offsets = side.node(node).operands[operand].node.index();
        if !matches!(side.node(offsets).op, Op::Ramp { .. }) {
            return Ok(None);
        }
        let segments = side.formula(offsets, &|node| match node.op {
            Op::Ramp { length, .. } => length.saturating_sub(1),
            _ => 0,
        })?;
        let length = side.formula(offsets, &|node| match node.op {
            Op::Ramp { step, .. } => usize::try_from(step).unwrap_or(0),
            _ => 0,
        })?;
        Ok(Some((self.symbols(segments.text), self.symbols(length.text))))
    }

    fn reshape(&mut self, node: usize) -> Result<Expression, Unwritable> {
        let side = self.side;
        let (from, to) = (side.operand_shape(node, 0), side.result_shape(node, 0));
        let x = self.loose(node, 0)?;
        if x.value.is_some() {
            return Ok(x);
        }
        let x = self.operand(node, 0)?;
        if to.len() == from.len() + 1 && to.starts_with(&from) {
            // One more axis at the end.
            let index = if from.len() == 1 { "[:, None]" } else { "[..., None]" };
            return Ok(Expression { is_bool: x.is_bool, ..Expression::atom(format!("{}{index}", x.at(ATOM))) });
        }
        if from.len() == to.len() + 1 && from.starts_with(&to) {
            let is_bool = x.is_bool;
            return Ok(Expression { is_bool, ..x.method("squeeze", &["-1".into()]) });
        }
        // The axis of the batch follows from the others.
        let mut shape = Vec::new();
        let mut left_open = false;
        for axis in 0..to.len() {
            let text = side.extent(node, 0, axis)?.text;
            if !left_open && has_name(&text, "B") {
                shape.push("-1".to_string());
                left_open = true;
            } else {
                shape.push(self.symbols(text));
            }
        }
        let is_bool = x.is_bool;
        Ok(Expression { is_bool, ..x.method("reshape", &shape) })
    }
}

/// Whether a formula names a size.
pub(super) fn has_name(text: &str, name: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name)
}

fn call(function: &str, arguments: &[String]) -> Expression {
    Expression::atom(format!("{function}({})", arguments.join(", ")))
}

fn unary(f: Unary, x: Expression) -> Expression {
    let is_loose = x.is_loose;
    let x = x.tensor();
    let y = match f {
        Unary::Neg => Expression::new(format!("-{}", x.at(MULTIPLICATIVE)), NEGATIVE),
        Unary::Exp => x.method("exp", &[]),
        Unary::Log => x.method("log", &[]),
        Unary::Sqrt => x.method("sqrt", &[]),
        Unary::Recip => x.method("reciprocal", &[]),
        Unary::Abs => x.method("abs", &[]),
        Unary::Sign => x.method("sign", &[]),
        Unary::Tanh => x.method("tanh", &[]),
        Unary::Sigmoid => x.method("sigmoid", &[]),
        Unary::Relu => x.method("relu", &[]),
        Unary::Softplus => call("F.softplus", &[x.text]),
        Unary::Erf => x.method("erf", &[]),
        Unary::NormalCdf => call("torch.special.ndtr", &[x.text]),
    };
    Expression { is_loose, ..y }
}

fn binary(f: Binary, a: Expression, b: Expression) -> Expression {
    let is_loose = a.is_loose && b.is_loose;
    // Python computes with numbers, but not as tensors of float32 do.
    let a = if a.value.is_some() && b.value.is_some() { a.tensor() } else { a };
    let compare = |a: Expression, operator: &str, b: &Expression| Expression {
        is_bool: true,
        ..a.infix(COMPARISON, operator, &b.at(COMPARISON))
    };
    let y = match f {
        Binary::Add if b.value.is_some() && b.text.starts_with('-') => a.infix(ADDITIVE, "-", &b.text[1..]),
        Binary::Add => a.infix(ADDITIVE, "+", &b.at(ADDITIVE)),
        Binary::Sub => a.infix(ADDITIVE, "-", &b.at(ADDITIVE)),
        Binary::Mul => a.infix(MULTIPLICATIVE, "*", &b.at(MULTIPLICATIVE)),
        Binary::Div => a.infix(MULTIPLICATIVE, "/", &b.at(MULTIPLICATIVE)),
        Binary::Less => compare(a, "<", &b),
        Binary::LessEqual => compare(a, "<=", &b),
        Binary::Equal => compare(a, "==", &b),
        Binary::Max | Binary::Min => {
            let (bound, function) = if f == Binary::Max { ("min", "torch.maximum") } else { ("max", "torch.minimum") };
            match (&a.value, &b.value) {
                (None, Some(_)) => a.method("clamp", &[format!("{bound}={}", b.text)]),
                (Some(_), None) => b.method("clamp", &[format!("{bound}={}", a.text)]),
                _ => call(function, &[a.text, b.text]),
            }
        }
    };
    Expression { is_loose, ..y }
}

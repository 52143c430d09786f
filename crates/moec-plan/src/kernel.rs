//! What one launch, or a short sequence of launches, computes: all that a backend knows about a step beside its buffers.

use crate::elementwise::{Access, Elementwise};
use crate::small::Small;
use moec_ir::{AdamWAttrs, DType, Op, Precision, Real, TensorType, UnpackAttrs, infer, text};

/// The part of a kernel that everything else hangs on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Body {
    /// One operation.
    Op(Op),
    /// Elementwise operations, in registers.
    Elementwise(Elementwise),
    /// Operations on a few numbers, one after the other.
    Small(Small),
    /// `(logits [N, V], targets i32[N]) -> (loss [], dlogits [N, V])`: [`Op::CrossEntropy`] and the gradient of its loss.
    CrossEntropyWithGradient {
        /// Gradient of the objective with respect to the loss.
        dloss: Real,
    },
    /// `(p1, grad1, m1, v1, p2, grad2, m2, v2, .., hyper, grad_scale if there is one) -> (p1, m1, v1, p2, m2, v2, ..)`:
    /// [`Op::AdamW`] of several tensors, each of which becomes what it becomes alone.
    Updates(AdamWAttrs),
    /// `(x) -> (x)`: the same elements in another place.
    Copy,
}

/// What a step computes. Its operands are those of the body, then `order` and `positions` if it fetches rows, then the
/// scale of weights that it unpacks if they have one, then the further operands of the program that goes on, the generator state last. Its results are those of the program, or in
/// its absence the body's first; then the body's others; then the sums.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// What is computed.
    pub body: Body,
    /// Operand of a grouped product that holds the rows of tokens, `[N, C]`: the product reads in its place what
    /// [`Op::Dispatch`] without weights makes of it with `order i32[R]` and `positions i32[N, K]`. Offsets, order and
    /// positions are of one [`Op::SortByExpert`], so that every row of an expert is that of a slot.
    pub fetch: Option<usize>,
    /// The product's second operand is what [`Op::Unpack`] with these attributes reads, and the product reads what that
    /// makes of it.
    pub unpack: Option<UnpackAttrs>,
    /// The rows of a product's first operand are summed, too: `[M]` of [`Op::MatMul`] with `a` transposed, per expert
    /// `[E, O]` of [`Op::GroupedMatMulWeightGrad`].
    pub sums: bool,
    /// Goes on with the elements of the body's first result before they are stored. That is its operand 0, read in full,
    /// and no operand of the kernel.
    pub after: Option<Elementwise>,
}

/// The operands of a kernel by what reads them.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a, T> {
    /// The body's own.
    pub body: &'a [T],
    /// `order` and `positions` of the rows that are fetched.
    pub fetch: Option<[&'a T; 2]>,
    /// What the columns of the weights are multiplied by.
    pub scale: Option<&'a T>,
    /// Float operands of the program that goes on, from its second.
    pub after: &'a [T],
    /// Generator state of that program.
    pub random: Option<&'a T>,
}

impl From<Body> for Kernel {
    fn from(body: Body) -> Self {
        Self { body, fetch: None, unpack: None, sums: false, after: None }
    }
}

impl From<Op> for Kernel {
    fn from(op: Op) -> Self {
        Body::Op(op).into()
    }
}

impl Kernel {
    /// The operation that the kernel is built around, if it is one.
    pub fn op(&self) -> Option<&Op> {
        match &self.body {
            Body::Op(op) => Some(op),
            _ => None,
        }
    }

    /// The operand that a result takes the place of, where the kernel changes a tensor in place: on a device both have the
    /// same storage.
    pub fn in_place(&self, result: usize) -> Option<usize> {
        match &self.body {
            Body::Op(op) if result < op.declaration().results.len() => op.in_place(result),
            // Sums, or what a program makes beside the operation's own results.
            Body::Op(_) => None,
            Body::Updates(attrs) => Some(4 * (result / 3) + Op::AdamW(*attrs).in_place(result % 3)?),
            Body::Elementwise(_) | Body::Small(_) | Body::CrossEntropyWithGradient { .. } | Body::Copy => None,
        }
    }

    /// Whether results may be stored where that operand is: of a program, where it reads an element of the operand only
    /// for the same element of its results.
    pub fn may_replace(&self, operand: usize) -> bool {
        match &self.body {
            Body::Elementwise(program) => program.accesses.get(operand) == Some(&Access::Full),
            Body::Op(_) | Body::Small(_) | Body::CrossEntropyWithGradient { .. } | Body::Updates(_) | Body::Copy => {
                false
            }
        }
    }

    /// Splits operands by what reads them; `None` if there are too few.
    pub fn operands<'a, T>(&self, operands: &'a [T]) -> Option<Operands<'a, T>> {
        let (further, random) = match &self.after {
            Some(program) => (program.accesses.len().checked_sub(1)?, usize::from(program.uses_random())),
            None => (0, 0),
        };
        let fetched = if self.fetch.is_some() { 2 } else { 0 };
        let scales = usize::from(self.unpack.is_some_and(|attrs| attrs.format.is_scaled()));
        let own = operands.len().checked_sub(fetched + scales + further + random)?;
        let (body, rest) = operands.split_at_checked(own)?;
        let (fetch, rest) = rest.split_at(fetched);
        let (scale, rest) = rest.split_at(scales);
        let (after, random) = rest.split_at(further);
        let fetch = if let [order, positions] = fetch { Some([order, positions]) } else { None };
        Some(Operands { body, fetch, scale: scale.first(), after, random: random.first() })
    }

    /// Checks that operands and results have types that the kernel is for; says what is wrong. Launching relies on it.
    ///
    /// # Errors
    /// Where they do not fit.
    pub fn check(&self, operands: &[&TensorType], results: &[&TensorType]) -> Result<(), String> {
        let parts = self.operands(operands).ok_or("there are too few operands")?;
        let exactly = |expected: &[&TensorType]| {
            if expected == results { Ok(()) } else { Err("the results have other types".to_string()) }
        };
        let infer = |op: &Op, types: &[&TensorType]| infer(op, types).map_err(|e| e.to_string());
        match &self.body {
            Body::Op(op) => {
                let mut own = parts.body.to_vec();
                let rows;
                if let (Some(at), Some([order, positions])) = (self.fetch, parts.fetch) {
                    let fetches =
                        matches!((op, at), (Op::GroupedMatMul { .. }, 0) | (Op::GroupedMatMulWeightGrad { .. }, 1));
                    let source = own.get(at).filter(|_| fetches).ok_or("it cannot fetch that operand")?;
                    rows = infer(&Op::Dispatch { weighted: false }, &[source, order, positions])?;
                    own[at] = &rows[0];
                }
                let matrices;
                if let Some(attrs) = self.unpack {
                    let packed = own.get(1).filter(|_| can_unpack(op)).ok_or("it cannot unpack weights")?;
                    let read: Vec<&TensorType> = std::iter::once(*packed).chain(parts.scale.copied()).collect();
                    matrices = infer(&Op::Unpack(attrs), &read)?;
                    own[1] = &matrices[0];
                }
                let mut made = infer(op, &own)?;
                if self.sums {
                    let summed = match op {
                        Op::MatMul { transpose_a: true, bias: false, .. } => made[0].shape[..1].to_vec(),
                        Op::GroupedMatMulWeightGrad { .. } => made[0].shape[..2].to_vec(),
                        _ => return Err("only products over the rows of their first operand sum them".into()),
                    };
                    made.push(TensorType::f32(summed));
                }
                let made: Vec<&TensorType> = made.iter().collect();
                let Some(program) = &self.after else { return exactly(&made) };
                if !can_go_on(op) || self.sums {
                    return Err(format!("no program goes on with {}", op.mnemonic()));
                }
                let mut read = vec![made[0]];
                read.extend(parts.after.iter().chain(parts.random));
                program.check(&read)?;
                let (first, others) = results.split_at_checked(program.results.len()).unwrap_or((results, &[]));
                if others != &made[1..] {
                    return Err("the results have other types".into());
                }
                elementwise_results(program, first)
            }
            Body::Elementwise(program) => {
                program.check(operands)?;
                elementwise_results(program, results)
            }
            Body::Small(small) => small.check(operands, results),
            Body::CrossEntropyWithGradient { .. } => {
                let made = infer(&Op::CrossEntropy, operands)?;
                exactly(&[&made[0], operands[0]])
            }
            Body::Updates(attrs) => {
                let shared = 4 * (operands.len() / 4);
                let (tensors, shared) = operands.split_at(if shared == operands.len() { shared - 4 } else { shared });
                let mut made = Vec::new();
                for tensor in tensors.chunks(4) {
                    made.extend(infer(&Op::AdamW(*attrs), &[tensor, shared].concat())?);
                }
                exactly(&made.iter().collect::<Vec<_>>())
            }
            Body::Copy => match (operands, results) {
                ([x], [y]) if x.dtype == y.dtype && x.elements() == y.elements() => Ok(()),
                _ => Err("a copy has one operand and one result of as many elements".into()),
            },
        }
    }

    /// Name of what the kernel computes, for tables.
    pub fn mnemonic(&self) -> String {
        let fused = if self.after.is_some() { "fused_" } else { "" };
        let dispatched = if self.fetch.is_some() { "dispatched_" } else { "" };
        let unpacking = if self.unpack.is_some() { "unpacking_" } else { "" };
        let sums = if self.sums { "_with_sums" } else { "" };
        let body = match &self.body {
            Body::Op(op) => op.mnemonic(),
            Body::Elementwise(_) => "fused",
            Body::Small(_) => "fused_small",
            Body::CrossEntropyWithGradient { .. } => "fused_cross_entropy",
            Body::Updates(attrs) => Op::AdamW(*attrs).mnemonic(),
            Body::Copy => "copy",
        };
        format!("{fused}{dispatched}{unpacking}{body}{sums}")
    }

    /// The kernel as one line over operands and results of these names, such as
    /// `y = grouped_matmul(rows %x by %order and %positions, %w, %offsets) {transpose_b}; %up = relu(y)`.
    pub fn line(&self, operands: &[String], results: &[String]) -> String {
        let Some(parts) = self.operands(operands) else { return format!("{} of too few operands", self.mnemonic()) };
        let attributes = |op: &Op, more: &[String]| {
            let list = [text::attributes(op, ""), more.to_vec()].concat();
            if list.is_empty() { String::new() } else { format!(" {{{}}}", list.join(", ")) }
        };
        let several = |names: &[String]| {
            if let [one] = names { one.clone() } else { format!("({})", names.join(", ")) }
        };
        let (name, attributes) = match &self.body {
            Body::Elementwise(program) => {
                let statements = program.statements(&operands[..program.accesses.len()], results);
                return statements.join("; ");
            }
            Body::Small(small) => return small.lines(operands, results).join("; "),
            Body::Op(op) => {
                let shape = match op {
                    Op::Reshape { shape } | Op::Broadcast { shape } => vec![format!("shape = {shape:?}")],
                    Op::Fill { ty, .. } => vec![format!("shape = {:?}", ty.shape)],
                    _ => vec![],
                };
                let sums = self.sums.then(|| "sums".to_string());
                (op.mnemonic(), attributes(op, &shape.into_iter().chain(sums).collect::<Vec<_>>()))
            }
            Body::CrossEntropyWithGradient { dloss } => {
                ("cross_entropy_with_gradient", format!(" {{dloss = {dloss}}}"))
            }
            Body::Updates(attrs) => ("adamw", attributes(&Op::AdamW(*attrs), &[])),
            Body::Copy => ("copy", String::new()),
        };
        let mut own = parts.body.to_vec();
        if let (Some(at), Some([order, positions])) = (self.fetch, parts.fetch) {
            own[at] = format!("rows {} by {order} and {positions}", own[at]);
        }
        if let (Some(attrs), Some(weights)) = (self.unpack, own.get_mut(1)) {
            let scale = parts.scale.map_or(String::new(), |scale| format!(" times {scale}"));
            *weights = format!("{} {weights}{scale}", attrs.format.name());
        }
        let call = format!("{name}({}){attributes}", own.join(", "));
        let Some(program) = &self.after else { return format!("{} = {call}", several(results)) };
        let (first, others) = results.split_at(program.results.len().min(results.len()));
        let stored = program.results.iter().position(|&r| r == 0);
        let made = stored.map_or("y", |slot| first[slot].as_str()).to_string();
        let left = several(&[std::slice::from_ref(&made), others].concat());
        let floats = [std::slice::from_ref(&made), parts.after].concat();
        let statements = program.statements(&floats, first);
        std::iter::once(format!("{left} = {call}")).chain(statements).collect::<Vec<_>>().join("; ")
    }
}

/// Whether kernels of an operation can unpack its second operand: products of rows as they are with weights `[.., I, O]`.
pub(crate) fn can_unpack(op: &Op) -> bool {
    matches!(
        op,
        Op::MatMul { transpose_a: false, transpose_b: false, precision: Precision::F32, .. }
            | Op::GroupedMatMul { transpose_b: false, precision: Precision::F32, .. }
    )
}

/// Whether kernels make the first result of an operation element by element, so that a program can go on with it.
pub(crate) fn can_go_on(op: &Op) -> bool {
    matches!(
        op,
        Op::MatMul { .. }
            | Op::GroupedMatMul { .. }
            | Op::LayerNorm { .. }
            | Op::LayerNormGrad
            | Op::RmsNorm { .. }
            | Op::RmsNormGrad
            | Op::Embed
            | Op::Dispatch { .. }
            | Op::Combine { .. }
    )
}

fn elementwise_results(program: &Elementwise, results: &[&TensorType]) -> Result<(), String> {
    let fits = |ty: &&TensorType| ty.dtype == DType::F32 && ty.elements() == program.elements;
    if results.len() == program.results.len() && results.iter().all(fits) {
        Ok(())
    } else {
        Err(format!("the results are not {} times {} elements", program.results.len(), program.elements))
    }
}

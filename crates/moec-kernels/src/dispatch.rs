//! Which kernels a step of a plan launches: those of an operation, by its family ([`Call::launch`]), or of a body that
//! clusters have and graphs have not.

mod family;

use moec_ir::{AdamWAttrs, Family, Invariant, Op, TensorType, internal_error};
use moec_plan::{Body, Kernel};

use crate::kernels::matmul::{Fetch, Panels};
use crate::kernels::{adamw, copy, cross_entropy, fill, fused, small};
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
    /// How a product's weights are stored, if it unpacks them, and what their columns are multiplied by.
    unpack: Option<(Panels, Option<Arg>)>,
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
            let panels = kernel.unpack.map(|attrs| Panels { format: attrs.format, columns: attrs.panel });
            let unpack = panels.map(|panels| (panels, parts.scale.map(|o| o.arg)));
            match &kernel.after {
                None => {
                    let (y, sums) = if kernel.sums { y.split_at(y.len() - 1) } else { (y, &[][..]) };
                    let more = More { fetch, unpack, sums: sums.first().map(|o| o.arg), after: None };
                    Call { l, op, x: parts.body, y, more }.launch();
                }
                Some(program) => {
                    // The program's first result takes the place of what it goes on with.
                    let (made, further) = y.split_at(program.results.len());
                    let (floats, more) = (args(parts.after), args(&made[1..]));
                    let rng = parts.random.map(|o| o.arg);
                    let after = Some(fused::After { program, floats: &floats, rng, more: &more });
                    let (y, more) = ([&made[..1], further].concat(), More { fetch, unpack, sums: None, after });
                    Call { l, op, x: parts.body, y: &y, more }.launch();
                }
            }
        }
        Body::Elementwise(program) => {
            let (floats, rng) = x.split_at(program.accesses.len());
            fused::launch(l, program, &args(floats), rng.first().map(|o| o.arg), &args(y));
        }
        Body::Small(statements) => small::launch(l, statements, &args(x), &args(y)),
        Body::CrossEntropyWithGradient { dloss } => {
            let (tokens, vocab) = x[0].matrix();
            cross_entropy::with_grad(l, a(0), a(1), dloss.get() as f32, r(0), r(1), tokens, vocab);
        }
        Body::Updates(attrs) => updates(l, attrs, x, y),
        Body::Copy => copy::launch(l, a(0), r(0)),
    }
}

/// An operation with what it is computed from and what is to be done beside it.
struct Call<'a> {
    l: &'a Launcher,
    op: &'a Op,
    x: &'a [Operand],
    y: &'a [Operand],
    more: More<'a>,
}

impl Call<'_> {
    /// Launches the kernels of the operation.
    fn launch(&self) {
        match self.op.declaration().family {
            Family::Structure => family::structure(self),
            Family::Elementwise => family::elementwise(self),
            Family::Indices => family::indices(self),
            Family::Reduction => family::reduction(self),
            Family::Linear => family::linear(self),
            Family::Norm => family::norm(self),
            Family::Softmax => family::softmax(self),
            Family::Attention => family::attention(self),
            Family::Embedding => family::embedding(self),
            Family::Random => family::random(self),
            Family::Selection => family::selection(self),
            Family::Dispatch => family::dispatch(self),
            Family::Optimizer => match self.op {
                Op::AdamW(attrs) => updates(self.l, attrs, self.x, self.y),
                other => misplaced(other),
            },
        }
    }

    fn x(&self, operand: usize) -> Arg {
        self.x[operand].arg
    }

    /// An operand that some operations of the kind do without.
    fn optional(&self, operand: usize) -> Option<Arg> {
        self.x.get(operand).map(|o| o.arg)
    }

    fn y(&self, result: usize) -> Arg {
        self.y[result].arg
    }

    /// Extents of an operand that is a matrix.
    fn matrix(&self, operand: usize) -> (usize, usize) {
        self.x[operand].matrix()
    }
}

/// An operation has no kernels in its family.
fn misplaced(op: &Op) -> ! {
    internal_error!("there are no kernels for `{}`", op.mnemonic())
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

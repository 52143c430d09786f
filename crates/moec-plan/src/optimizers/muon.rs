//! Muon (Jordan et al. 2024): the momentum of a matrix, made orthogonal; AdamW for everything else.

use super::adamw;
use super::{
    Body, DECAY, Decay, Direction, Followed, IDLE, Kind, LEARNING_RATE, MEMORY, OptimizerSpec, WEIGHT_DECAY,
    nothing_decays,
};
use crate::settings::Settings;
use moec_ir::{Builder, Interval, Op, ParameterSpec, Precision, Unary, Value};

pub(super) static MUON: OptimizerSpec = OptimizerSpec {
    name: "muon",
    summary: "the momentum of hidden matrices, made orthogonal; AdamW for vectors, tables of vectors and unembed",
    equations: "M = momentum M + G; U = G + momentum M with nesterov, else M\n\
                X = U / |U|; five times: A = X Xᵀ, X = 3.4445 X + (2.0315 A A - 4.775 A) X\n\
                W = W - lr (sqrt(max(1, rows / columns)) X + weight_decay W), each expert's matrix by itself\n\
                everything else: as adamw, at adamw_lr where the schedule is at lr",
    references: &[
        "Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks",
        "Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization, arXiv 1711.05101, algorithm 2",
    ],
    settings: &[
        ParameterSpec::number("lr", LEARNING_RATE, 0.02, "learning rate of hidden matrices"),
        ParameterSpec::number("momentum", MEMORY, 0.95, "what is left of the momentum after a step"),
        ParameterSpec::flag("nesterov", true, "looks ahead along the momentum"),
        ParameterSpec::number("adamw_lr", LEARNING_RATE, 3e-4, "learning rate of everything else"),
        ParameterSpec::number("beta1", MEMORY, 0.9, "decay of the first moment of everything else"),
        ParameterSpec::number("beta2", MEMORY, 0.95, "decay of the second moment of everything else"),
        ParameterSpec::number("eps", Interval::above(0.0), 1e-8, "added to the root of that"),
        ParameterSpec::number("weight_decay", WEIGHT_DECAY, 0.0, "decoupled weight decay"),
        DECAY,
        IDLE,
    ],
    check: nothing_decays,
    moments: |_, kind| match kind {
        Kind::Hidden => &["momentum"],
        Kind::Other => &["m", "v"],
    },
    per_step: adamw::bias_corrections,
    rate: |settings, kind| match kind {
        Kind::Hidden => 1.0,
        Kind::Other => settings.number("adamw_lr") / settings.number("lr"),
    },
    body: Body::Direction((Decay::Decoupled, direction)),
};

/// Steps of the iteration, and the coefficients of its polynomial: they take the singular values of a matrix of norm 1 to about 1,
/// between 0.7 and 1.2.
const STEPS: usize = 5;
const COEFFICIENTS: [f64; 3] = [3.4445, -4.775, 2.0315];
/// Keeps a zero matrix from being divided by its norm.
const EPSILON: f64 = 1e-7;

fn direction(settings: &Settings, b: &mut Builder, followed: &Followed<'_>) -> Direction {
    let &[momentum] = followed.moments else { return adamw::direction(settings, b, followed) };
    let mu = settings.number("momentum");
    let kept = b.scale(momentum, mu);
    let momentum = b.add(kept, followed.gradient);
    let update = if settings.flag("nesterov") {
        let ahead = b.scale(momentum, mu);
        b.add(followed.gradient, ahead)
    } else {
        momentum
    };
    let direction = orthogonal(b, update);
    let shape = b.shape(update);
    let (rows, columns) = (shape[shape.len() - 2], shape[shape.len() - 1]);
    let gain = (rows as f64 / columns.max(1) as f64).max(1.0).sqrt();
    Direction { direction: b.scale(direction, gain), moments: vec![momentum] }
}

/// Matrices `[.., O, I]` with the singular vectors of others, and singular values near 1: the Newton-Schulz iteration.
fn orthogonal(b: &mut Builder, matrices: Value) -> Value {
    let shape = b.shape(matrices);
    let [.., outputs, inputs] = shape[..] else { return matrices };
    let many: usize = shape[..shape.len() - 2].iter().product();
    let mut x = b.reshape(matrices, [many, outputs, inputs]);
    // The product of the smaller side is the cheaper one.
    let is_tall = outputs > inputs;
    if is_tall {
        x = b.permute(x, &[0, 2, 1]);
    }
    let (rows, columns) = (outputs.min(inputs), outputs.max(inputs));
    let squares = b.mul(x, x);
    let norm = b.sum(squares, &[1, 2]);
    let norm = b.unary(Unary::Sqrt, norm);
    let norm = b.add_scalar(norm, EPSILON);
    let norm = b.reshape(norm, [many, 1, 1]);
    let norm = b.broadcast(norm, [many, rows, columns]);
    x = b.div(x, norm);
    let each = Each { many, rows };
    let [linear, cubic, quintic] = COEFFICIENTS;
    for _ in 0..STEPS {
        let a = each.product(b, x, x, true);
        let square = each.product(b, a, a, false);
        let (a, square) = (b.scale(a, cubic), b.scale(square, quintic));
        let polynomial = b.add(a, square);
        let (kept, bent) = (b.scale(x, linear), each.product(b, polynomial, x, false));
        x = b.add(kept, bent);
    }
    if is_tall {
        x = b.permute(x, &[0, 2, 1]);
    }
    b.reshape(x, shape)
}

/// Products of so many matrices, each with its own.
struct Each {
    many: usize,
    /// Rows of the first factors.
    rows: usize,
}

impl Each {
    /// `x y`, or `x yᵀ`, of `x` `[many, rows, I]`.
    fn product(&self, b: &mut Builder, x: Value, y: Value, transpose_b: bool) -> Value {
        let &Self { many, rows } = self;
        let inner = b.extent(x, 2);
        let outer = b.extent(y, if transpose_b { 1 } else { 2 });
        let x = b.reshape(x, [many * rows, inner]);
        let precision = Precision::F32;
        let product = if many == 1 {
            let matrix = b.shape(y)[1..].to_vec();
            let y = b.reshape(y, matrix);
            b.op(Op::MatMul { transpose_a: false, transpose_b, bias: false, precision }, &[x, y])
        } else {
            let offsets = b.ramp(many + 1, rows as i32);
            b.op(Op::GroupedMatMul { transpose_b, bias: false, precision }, &[x, y, offsets])
        };
        b.reshape(product, [many, rows, outer])
    }
}

//! Functions of one element of each operand.

use super::{Gradients, Rule, misplaced, one_minus, zeros_like};
use crate::error::PlanError;
use moec_ir::{Binary, Builder, Op, Unary, Value};

pub(super) fn gradients(rule: &Rule<'_>, b: &mut Builder) -> Result<Gradients, PlanError> {
    let (x, y) = (rule.operands, rule.result(0));
    let mut out = Gradients::new();
    match &rule.node.op {
        Op::Unary(f) => {
            let dy = rule.only();
            out.extend(unary(b, *f, x[0], y, dy).map(|dx| (0, dx)));
        }
        Op::Binary(f) => {
            let dy = rule.only();
            binary(rule, b, *f, dy, &mut out);
        }
        // da = c ? dy : 0, db = c ? 0 : dy; the condition is a constant
        Op::Select => {
            let dy = rule.only();
            let zero = zeros_like(b, dy);
            if rule.wants(1) {
                out.push((1, b.select(x[0], dy, zero)));
            }
            if rule.wants(2) {
                out.push((2, b.select(x[0], zero, dy)));
            }
        }
        op => misplaced(op),
    }
    Ok(out)
}

fn binary(rule: &Rule<'_>, b: &mut Builder, f: Binary, dy: Value, out: &mut Gradients) {
    let (a, c) = (rule.operands[0], rule.operands[1]);
    match f {
        // da = dy, dc = dy
        Binary::Add => out.extend([(0, dy), (1, dy)]),
        // da = dy, dc = -dy
        Binary::Sub => {
            out.push((0, dy));
            if rule.wants(1) {
                out.push((1, b.unary(Unary::Neg, dy)));
            }
        }
        // da = dy c, dc = dy a
        Binary::Mul => {
            if rule.wants(0) {
                out.push((0, b.mul(dy, c)));
            }
            if rule.wants(1) {
                out.push((1, b.mul(dy, a)));
            }
        }
        // da = dy / c, dc = -(dy / c) y
        Binary::Div => {
            let da = b.div(dy, c);
            out.push((0, da));
            if rule.wants(1) {
                let negative = b.mul(da, rule.result(0));
                out.push((1, b.unary(Unary::Neg, negative)));
            }
        }
        // da = dy where a >= c (max) or a <= c (min), dc = dy elsewhere: a tie goes to a
        Binary::Max | Binary::Min => {
            let first =
                if f == Binary::Max { b.binary(Binary::LessEqual, c, a) } else { b.binary(Binary::LessEqual, a, c) };
            let zero = zeros_like(b, dy);
            if rule.wants(0) {
                out.push((0, b.select(first, dy, zero)));
            }
            if rule.wants(1) {
                out.push((1, b.select(first, zero, dy)));
            }
        }
        // Comparisons are piecewise constant
        Binary::Less | Binary::LessEqual | Binary::Equal => {}
    }
}

/// Gradient of an elementwise function; `None` where it is zero everywhere.
fn unary(b: &mut Builder, f: Unary, x: Value, y: Value, dy: Value) -> Option<Value> {
    Some(match f {
        // -dy
        Unary::Neg => b.unary(Unary::Neg, dy),
        // dy y
        Unary::Exp => b.mul(dy, y),
        // dy / x
        Unary::Log => b.div(dy, x),
        // dy / (2 y)
        Unary::Sqrt => {
            let half = b.scale(dy, 0.5);
            b.div(half, y)
        }
        // -dy y^2
        Unary::Recip => {
            let square = b.mul(y, y);
            let product = b.mul(dy, square);
            b.unary(Unary::Neg, product)
        }
        // dy sign(x), 0 at 0
        Unary::Abs => {
            let sign = b.unary(Unary::Sign, x);
            b.mul(dy, sign)
        }
        // 0
        Unary::Sign => return None,
        // dy (1 - y^2)
        Unary::Tanh => {
            let square = b.mul(y, y);
            let rest = one_minus(b, square);
            b.mul(dy, rest)
        }
        // dy y (1 - y)
        Unary::Sigmoid => {
            let rest = one_minus(b, y);
            let slope = b.mul(y, rest);
            b.mul(dy, slope)
        }
        // dy where x > 0, which is where y is not 0: the input need not be kept
        Unary::Relu => {
            let zero = zeros_like(b, dy);
            b.select(y, dy, zero)
        }
        // dy sigmoid(x)
        Unary::Softplus => {
            let slope = b.unary(Unary::Sigmoid, x);
            b.mul(dy, slope)
        }
        // dy 2 e^(-x^2) / sqrt pi
        Unary::Erf => {
            let square = b.mul(x, x);
            let exponent = b.unary(Unary::Neg, square);
            let bell = b.unary(Unary::Exp, exponent);
            let slope = b.scale(bell, std::f64::consts::FRAC_2_SQRT_PI);
            b.mul(dy, slope)
        }
        // dy e^(-x^2 / 2) / sqrt(2 pi)
        Unary::NormalCdf => {
            let square = b.mul(x, x);
            let exponent = b.scale(square, -0.5);
            let bell = b.unary(Unary::Exp, exponent);
            let density = b.scale(bell, 1.0 / (2.0 * std::f64::consts::PI).sqrt());
            b.mul(dy, density)
        }
    })
}

//! Functions of one element of each operand: a row for each function, with its formula.

use crate::declaration::{Declaration, Family, Gradient, Slot};
use crate::stage::Stage;
use std::f64::consts::FRAC_1_SQRT_2;

/// Declares functions of `$x` ..: documentation, variant, mnemonic, what the gradient pass makes of it, and the formula.
macro_rules! functions {
    (
        $(#[$meta:meta])+
        $name:ident ( $($x:ident),+ ):
        $( $(#[doc = $doc:literal])+ $variant:ident = $mnemonic:literal, $gradient:ident: $value:expr; )+
    ) => {
        $(#[$meta])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $( $(#[doc = $doc])+ $variant, )+ }

        impl $name {
            /// Every one of them, for tables and tests.
            pub const ALL: [$name; [$($mnemonic),+].len()] = [$($name::$variant),+];

            /// What is declared of the function as an operation.
            pub fn declaration(self) -> &'static Declaration {
                const OPERANDS: &[Slot] = &[$( Slot { name: stringify!($x), ty: "[s]", always: true } ),+];
                static ROWS: &[Declaration] = &[$( Declaration {
                    mnemonic: $mnemonic,
                    family: Family::Elementwise,
                    doc: &[$($doc),+],
                    operands: OPERANDS,
                    results: &[Slot { name: "y", ty: "[s]", always: true }],
                    attributes: &[],
                    stage: (Stage::Forward, None),
                    gradient: Gradient::$gradient,
                    random: false,
                } ),+];
                &ROWS[self as usize]
            }

            /// Name in the text form.
            pub fn mnemonic(self) -> &'static str {
                self.declaration().mnemonic
            }

            /// The function of that name.
            pub fn named(mnemonic: &str) -> Option<Self> {
                Self::ALL.into_iter().find(|f| f.mnemonic() == mnemonic)
            }

            /// One element in 64 bits.
            pub fn evaluate(self $(, $x: f64)+) -> f64 {
                match self { $( $name::$variant => $value, )+ }
            }
        }
    };
}

functions! {
    /// Elementwise functions of one float operand. NaN goes in and out, except that its sign is 0.
    Unary(x):

    /// `-x`
    Neg = "neg", Rule: -x;
    /// `e^x`
    Exp = "exp", Rule: x.exp();
    /// Natural logarithm.
    Log = "log", Rule: x.ln();
    /// Square root.
    Sqrt = "sqrt", Rule: x.sqrt();
    /// `1 / x`
    Recip = "recip", Rule: 1.0 / x;
    /// `|x|`
    Abs = "abs", Rule: x.abs();
    /// -1, 0 or 1.
    Sign = "sign", Zero: truth(x > 0.0) - truth(x < 0.0);
    /// Hyperbolic tangent.
    Tanh = "tanh", Rule: x.tanh();
    /// `1 / (1 + e^-x)`
    // Never the exponential of a large positive number.
    Sigmoid = "sigmoid", Rule: if x < 0.0 { x.exp() / (1.0 + x.exp()) } else { 1.0 / (1.0 + (-x).exp()) };
    /// `max(x, 0)`
    Relu = "relu", Rule: if x < 0.0 { 0.0 } else { x };
    /// `ln(1 + e^x)`, computed without overflow.
    // ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|)
    Softplus = "softplus", Rule: (if x < 0.0 { 0.0 } else { x }) + (-x.abs()).exp().ln_1p();
    /// Error function: `2 / sqrt pi` times the integral of `e^(-t^2)` from 0 to x.
    Erf = "erf", Rule: libm::erf(x);
    /// Cumulative distribution function of the standard normal: `(1 + erf(x / sqrt 2)) / 2`.
    // erfc keeps its relative precision in the lower tail, where 1 + erf would cancel.
    NormalCdf = "normal_cdf", Rule: 0.5 * libm::erfc(-x * FRAC_1_SQRT_2);
}

functions! {
    /// Elementwise functions of two float operands of equal shape. Comparisons give 1.0 or 0.0. The larger and the
    /// smaller of something and NaN is NaN.
    Binary(a, b):

    /// `a + b`
    Add = "add", Rule: a + b;
    /// `a - b`
    Sub = "sub", Rule: a - b;
    /// `a * b`
    Mul = "mul", Rule: a * b;
    /// `a / b`
    Div = "div", Rule: a / b;
    /// The larger; its gradient goes to `a` on a tie.
    Max = "max", Rule: if a >= b || a.is_nan() { a } else { b };
    /// The smaller; its gradient goes to `a` on a tie.
    Min = "min", Rule: if a <= b || a.is_nan() { a } else { b };
    /// `a < b`
    Less = "less", Zero: truth(a < b);
    /// `a <= b`
    LessEqual = "less_equal", Zero: truth(a <= b);
    /// `a == b`
    Equal = "equal", Zero: truth(a == b);
}

impl Unary {
    /// Whether the function has finite values above 0 only.
    pub fn needs_positive(self) -> bool {
        !self.evaluate(-1.0).is_finite() || !self.evaluate(0.0).is_finite()
    }
}

fn truth(holds: bool) -> f64 {
    if holds { 1.0 } else { 0.0 }
}

//! Elementwise programs. The program is a comptime value: the kernel is written by walking over its instructions while
//! CubeCL expands it, one register per instruction, so a chain of any length is one pass over memory.
//!
//! A vector of consecutive result elements belongs to one unit. Operands are read as [`Access`] says: `Full` and
//! `Repeat` as vectors, `Stretch` and `Scalar` as one element for the whole vector; the width is chosen so that no
//! vector straddles a repetition. What differs between equal layers (sizes, streams of random numbers) is a runtime
//! argument, so that they share one kernel; only the extents by which indices are divided are comptime.
//!
//! Random masks depend on the element's index and are computed anew where needed, never stored.

#![allow(unsafe_code, reason = "kernel launches")]

use super::lanes::lane_numbers;
use super::random::{key_a, key_b, random_bits};
use crate::launch::{Arg, Launcher, Split, Target, common_width, end_item, first_item, item_step, run};
use cubecl::prelude::*;
use moec_ir::{Binary, Invariant, Unary, random};
use moec_plan::{Access, Instr};
use std::f32::consts::{FRAC_2_SQRT_PI, SQRT_2};
use std::fmt;

/// How an operand is read for result vector `i` of `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Load {
    /// The element that the program goes on with.
    Producer,
    /// Vector buffer `.0`, vector `i`.
    Full(usize),
    /// The same of result `.0`, which is stored where the operand is.
    Result(usize),
    /// Vector buffer `.0`, vector `i % .1`.
    Repeat(usize, usize),
    /// Scalar buffer `.0`, element `i / .1`.
    Stretch(usize, usize),
    /// Scalar buffer `.0`, element 0.
    Scalar(usize),
}

/// An instruction that computes with registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Arithmetic {
    /// Bits of an f32.
    Const(u32),
    Unary(Unary, usize),
    Binary(Binary, usize, usize),
    Select(usize, usize, usize),
}

impl Arithmetic {
    /// The instruction of a program, if it is one of these.
    pub(super) fn of(instr: &Instr) -> Option<Self> {
        match *instr {
            Instr::Const(value) => Some(Arithmetic::Const((value.get() as f32).to_bits())),
            Instr::Unary(f, a) => Some(Arithmetic::Unary(f, a)),
            Instr::Binary(f, a, b) => Some(Arithmetic::Binary(f, a, b)),
            Instr::Select(q, a, b) => Some(Arithmetic::Select(q, a, b)),
            Instr::Load(_) | Instr::Dropout { .. } => None,
        }
    }
}

/// An instruction, with everything resolved that the kernel needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Code {
    Load(Load),
    Arithmetic(Arithmetic),
    /// Register, which key of the launch, threshold of the random word, bits of the factor of kept elements.
    Dropout(usize, usize, u32, u32),
}

/// A program as a comptime value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Program {
    code: Vec<Code>,
    /// Registers that are results.
    results: Vec<usize>,
    /// Number of dropouts.
    keys: usize,
}

#[cube]
fn unary<W: Size>(x: Vector<f32, W>, #[comptime] f: Unary) -> Vector<f32, W> {
    let zero = Vector::<f32, W>::new(0.0f32);
    let one = Vector::<f32, W>::new(1.0f32);
    match comptime!(f) {
        Unary::Neg => zero - x,
        Unary::Exp => Vector::exp(x),
        Unary::Log => Vector::ln(x),
        Unary::Sqrt => Vector::sqrt(x),
        Unary::Recip => one / x,
        Unary::Abs => Vector::abs(x),
        Unary::Sign => {
            let negative = select_many(x.less_than(&zero), zero - one, zero);
            select_many(x.greater_than(&zero), one, negative)
        }
        Unary::Tanh => tanh::<W>(x),
        Unary::Sigmoid => one / (one + Vector::exp(zero - x)),
        Unary::Relu => select_many(x.less_than(&zero), zero, x),
        Unary::Softplus => {
            // ln(1 + e) as ln(u) e / (u - 1) with u = 1 + e rounded: the two roundings cancel (Kahan). The device's own
            // log1p loses small e.
            let e = Vector::exp(zero - Vector::abs(x));
            let u = one + e;
            let tail = select_many(u.equal(&one), e, Vector::ln(u) * e / (u - one));
            select_many(x.less_than(&zero), zero, x) + tail
        }
        Unary::NormalCdf => normal_cdf::<W>(x),
        Unary::Erf => erf::<W>(x),
    }
}

/// `1 - 2 / (e^2|x| + 1)` with the sign of x; near 0, where that cancels, the Taylor polynomial of degree 7.
#[cube]
fn tanh<W: Size>(x: Vector<f32, W>) -> Vector<f32, W> {
    let one = Vector::<f32, W>::new(1.0f32);
    let two = Vector::<f32, W>::new(2.0f32);
    let size = Vector::abs(x);
    // Beyond 20 the result is 1 in f32, and the exponential must not overflow.
    let bounded = min(size, Vector::new(20.0f32));
    let large = one - two / (Vector::exp(two * bounded) + one);
    let x2 = x * x;
    let inner = fma(x2, Vector::new(-17.0f32 / 315.0), Vector::new(2.0f32 / 15.0));
    let outer = fma(x2, inner, Vector::new(-1.0f32 / 3.0));
    let small = fma(x * x2, outer, x);
    let signed = select_many(x.less_than(&Vector::new(0.0f32)), Vector::new(0.0f32) - large, large);
    let result = select_many(size.less_than(&Vector::new(0.2f32)), small, signed);
    select_many(x.equal(&x), result, x)
}

/// `erfc(-x / sqrt 2) / 2`, with erfc by the rational Chebyshev fit of Press et al. (Numerical Recipes, `erfcc`), whose
/// relative error is below 1.2e-7 everywhere: the lower tail keeps its digits.
#[cube]
fn normal_cdf<W: Size>(x: Vector<f32, W>) -> Vector<f32, W> {
    let one = Vector::<f32, W>::new(1.0f32);
    let z = Vector::abs(x) * Vector::new(0.707_106_77f32);
    let t = one / fma(z, Vector::new(0.5f32), one);
    let p = fma(t, Vector::new(0.170_872_77f32), Vector::new(-0.822_152_23f32));
    let p = fma(t, p, Vector::new(1.488_515_87f32));
    let p = fma(t, p, Vector::new(-1.135_203_98f32));
    let p = fma(t, p, Vector::new(0.278_868_07f32));
    let p = fma(t, p, Vector::new(-0.186_288_06f32));
    let p = fma(t, p, Vector::new(0.096_784_18f32));
    let p = fma(t, p, Vector::new(0.374_091_96f32));
    let p = fma(t, p, Vector::new(1.000_023_68f32));
    let p = fma(t, p, Vector::new(-1.265_512_23f32));
    // x * x / 2 is more exact than z * z.
    let tail = t * Vector::exp(fma(x * x, Vector::new(-0.5f32), p)) * Vector::new(0.5f32);
    select_many(x.greater_than(&Vector::new(0.0f32)), one - tail, tail)
}

/// `1 - erfc`, where that keeps its digits; near 0, where it does not, the Taylor polynomial of degree 9.
#[cube]
fn erf<W: Size>(x: Vector<f32, W>) -> Vector<f32, W> {
    let one = Vector::<f32, W>::new(1.0f32);
    let two = Vector::<f32, W>::new(2.0f32);
    // erf x = 2 normal_cdf(sqrt 2 x) - 1
    let large = fma(two, normal_cdf::<W>(x * Vector::new(SQRT_2)), Vector::new(-1.0f32));
    let x2 = x * x;
    let p = fma(x2, Vector::new(1.0f32 / 216.0), Vector::new(-1.0f32 / 42.0));
    let p = fma(x2, p, Vector::new(1.0f32 / 10.0));
    let p = fma(x2, p, Vector::new(-1.0f32 / 3.0));
    let small = x * fma(x2, p, one) * Vector::new(FRAC_2_SQRT_PI);
    select_many(Vector::abs(x).less_than(&Vector::new(0.4f32)), small, large)
}

#[cube]
fn binary<W: Size>(a: Vector<f32, W>, b: Vector<f32, W>, #[comptime] f: Binary) -> Vector<f32, W> {
    let zero = Vector::<f32, W>::new(0.0f32);
    let one = Vector::<f32, W>::new(1.0f32);
    match comptime!(f) {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        // `b` unless `a` wins or is not a number; a `b` that is not a number never loses.
        Binary::Max => {
            let larger = select_many(a.greater_equal(&b), a, b);
            select_many(a.equal(&a), larger, a)
        }
        Binary::Min => {
            let smaller = select_many(a.less_equal(&b), a, b);
            select_many(a.equal(&a), smaller, a)
        }
        Binary::Less => select_many(a.less_than(&b), one, zero),
        Binary::LessEqual => select_many(a.less_equal(&b), one, zero),
        Binary::Equal => select_many(a.equal(&b), one, zero),
    }
}

/// A program as a kernel has it, with all that it reads and writes besides the element that it goes on with. An empty one
/// leaves elements as they are.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Elementwise<W: Size> {
    /// Operands that are read as vectors.
    vectors: Sequence<Box<[Vector<f32, W>]>>,
    /// Operands of which one element is read for a whole vector.
    scalars: Sequence<Box<[f32]>>,
    /// State of the generator, if there are dropouts.
    rng: Sequence<Box<[u32]>>,
    /// Keys of the dropouts.
    keys: Sequence<u32>,
    /// Results that are stored here: all, or from the second on where the kernel stores the first.
    results: Sequence<Box<[Vector<f32, W>]>>,
    #[cube(comptime)]
    program: Program,
}

/// The two keys of every dropout of a program.
#[derive(CubeType)]
pub(super) struct DropoutKeys<W: Size> {
    first: Sequence<Vector<u32, W>>,
    second: Sequence<Vector<u32, W>>,
}

/// The keys, which depend on the step and not on the element.
#[cube]
pub(super) fn dropout_keys<W: Size>(e: &Elementwise<W>) -> DropoutKeys<W> {
    let mut first = Sequence::<Vector<u32, W>>::new();
    let mut second = Sequence::<Vector<u32, W>>::new();
    #[unroll]
    for j in 0..comptime!(e.program.keys) {
        let key = *e.keys.index(j);
        let a = key_a::<W>(&e.rng[0], key);
        let b = key_b::<W>(&e.rng[0], key, a);
        first.push(a);
        second.push(b);
    }
    DropoutKeys::<W> { first, second }
}

/// What an instruction makes of the registers before it.
#[cube]
pub(super) fn arithmetic<W: Size>(r: &Sequence<Vector<f32, W>>, #[comptime] instruction: Arithmetic) -> Vector<f32, W> {
    match comptime!(instruction) {
        Arithmetic::Const(bits) => Vector::<f32, W>::new(comptime!(f32::from_bits(bits)).runtime()),
        Arithmetic::Unary(f, a) => unary::<W>(r[a], f),
        Arithmetic::Binary(f, a, b) => binary::<W>(r[a], r[b], f),
        Arithmetic::Select(condition, a, b) => select_many(r[condition].not_equal(&Vector::new(0.0f32)), r[a], r[b]),
    }
}

/// The registers of a program for result vector `i`. `made` is what [`Load::Producer`] gives.
#[cube]
fn evaluate<W: Size>(
    e: &Elementwise<W>,
    keys: &DropoutKeys<W>,
    i: usize,
    made: Vector<f32, W>,
) -> Sequence<Vector<f32, W>> {
    let mut r = Sequence::<Vector<f32, W>>::new();
    #[unroll]
    for j in 0..comptime!(e.program.code.len()) {
        let code = comptime!(e.program.code[j]);
        match comptime!(code) {
            Code::Load(Load::Producer) => r.push(made),
            Code::Load(Load::Full(buffer)) => {
                let v = e.vectors[buffer][i];
                r.push(v);
            }
            Code::Load(Load::Result(result)) => {
                let v = e.results[result][i];
                r.push(v);
            }
            Code::Load(Load::Repeat(buffer, length)) => {
                let v = e.vectors[buffer][i % length];
                r.push(v);
            }
            Code::Load(Load::Stretch(buffer, inner)) => {
                let v = Vector::<f32, W>::new(e.scalars[buffer][i / inner]);
                r.push(v);
            }
            Code::Load(Load::Scalar(buffer)) => {
                let v = Vector::<f32, W>::new(e.scalars[buffer][0]);
                r.push(v);
            }
            Code::Arithmetic(instruction) => {
                let v = arithmetic::<W>(&r, instruction);
                r.push(v);
            }
            Code::Dropout(value, key, threshold, factor) => {
                let counter = Vector::<u32, W>::new(u32::cast_from(i * W::value())) + lane_numbers::<W>();
                let word = random_bits::<W>(keys.first[key], keys.second[key], counter);
                let kept = r[value] * Vector::new(comptime!(f32::from_bits(factor)).runtime());
                let v = select_many(word.less_than(&Vector::new(threshold)), Vector::new(0.0f32), kept);
                r.push(v);
            }
        }
    }
    r
}

/// Stores results of a program from result `from` on, for result vector `i`.
#[cube]
fn store<W: Size>(e: &mut Elementwise<W>, r: &Sequence<Vector<f32, W>>, i: usize, #[comptime] from: usize) {
    #[unroll]
    for j in from..comptime!(e.program.results.len()) {
        let register = comptime!(e.program.results[j]);
        let value = r[register];
        let result = e.results.index_mut(comptime!(j - from));
        result[i] = value;
    }
}

/// What becomes of vector `i` that a kernel has made: the first result of the program that goes on with it, whose other
/// results are stored here; without a program the vector itself.
#[cube]
pub(super) fn go_on<W: Size>(
    e: &mut Elementwise<W>,
    keys: &DropoutKeys<W>,
    i: usize,
    made: Vector<f32, W>,
) -> Vector<f32, W> {
    if comptime!(e.program.results.is_empty()) {
        made
    } else {
        let r = evaluate::<W>(&*e, keys, i, made);
        store::<W>(e, &r, i, 1usize);
        r[comptime!(e.program.results[0])]
    }
}

#[cube(launch_unchecked)]
fn fused<W: Size>(e: &mut Elementwise<W>, n: usize, #[comptime] split: Split) {
    let keys = dropout_keys::<W>(&*e);
    for i in range_stepped(first_item(n, split), end_item(n, split), item_step(split)) {
        let none = Vector::<f32, W>::new(0.0f32);
        let r = evaluate::<W>(&*e, &keys, i, none);
        store::<W>(e, &r, i, 0usize);
    }
}

/// A program that goes on with what a kernel makes. Its operand 0 is that, and its first result takes its place.
#[derive(Clone, Copy)]
pub(crate) struct After<'a> {
    /// The program.
    pub(crate) program: &'a moec_plan::Elementwise,
    /// Its operands from the second on.
    pub(crate) floats: &'a [Arg],
    /// State of the generator, if it has dropouts.
    pub(crate) rng: Option<Arg>,
    /// Its results from the second on.
    pub(crate) more: &'a [Arg],
}

/// What a launch binds of a program; with an empty program, nothing. See [`Elementwise`].
#[derive(Default)]
pub(super) struct Then<'a> {
    program: Program,
    vectors: Vec<Arg>,
    scalars: Vec<Arg>,
    rng: Option<Arg>,
    keys: Vec<u32>,
    results: &'a [Arg],
}

impl Then<'_> {
    /// Whether nothing goes on.
    pub(super) fn is_empty(&self) -> bool {
        self.program.results.is_empty()
    }

    /// The argument of a launch over vectors of width `w`.
    pub(super) fn bind<W: Size>(&self, t: &Target<'_>, w: usize) -> ElementwiseLaunch<W> {
        ElementwiseLaunch::new(
            t.bind_all(&self.vectors, w),
            t.bind_all(&self.scalars, 1),
            t.bind_all(&self.rng, 1),
            self.keys.iter().copied().collect(),
            t.bind_all(self.results, w),
            self.program.clone(),
        )
    }
}

/// As part of the name of a kernel.
impl fmt::Display for Then<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() { Ok(()) } else { write!(f, " then {:?}", self.program) }
    }
}

/// The widest vectors up to `most` that do not straddle a repetition of an operand.
fn width(program: &moec_plan::Elementwise, floats: &[Option<Arg>], most: usize) -> usize {
    let mut extents = vec![program.elements];
    for (access, x) in program.accesses.iter().zip(floats) {
        match (access, x) {
            (Access::Repeat, Some(x)) => extents.push(x.elements()),
            (Access::Stretch { inner }, _) => extents.push(*inner),
            (Access::Repeat, None) | (Access::Full | Access::Scalar, _) => {}
        }
    }
    common_width(most, &extents)
}

/// Binds a program for vectors of width `w`, which [`width`] allows. An operand that is `None` is what the program goes on
/// with. `results` are those that are stored here: an operand that lies where one of them will is the same buffer to the
/// kernel.
fn resolve<'a>(program: &moec_plan::Elementwise, floats: &[Option<Arg>], results: &'a [Arg], w: usize) -> Then<'a> {
    let (mut vectors, mut scalars, mut loads) = (Vec::new(), Vec::new(), Vec::new());
    for (access, x) in program.accesses.iter().zip(floats) {
        let Some(x) = *x else {
            loads.push(Load::Producer);
            continue;
        };
        if *access == Access::Full
            && let Some(result) = results.iter().position(|y| *y == x)
        {
            loads.push(Load::Result(result));
            continue;
        }
        loads.push(match access {
            Access::Full => Load::Full(vectors.len()),
            Access::Repeat => Load::Repeat(vectors.len(), x.elements() / w),
            Access::Stretch { inner } => Load::Stretch(scalars.len(), inner / w),
            Access::Scalar => Load::Scalar(scalars.len()),
        });
        match access {
            Access::Full | Access::Repeat => vectors.push(x),
            Access::Stretch { .. } | Access::Scalar => scalars.push(x),
        }
    }
    let mut keys = Vec::new();
    let code: Vec<Code> = program
        .instructions
        .iter()
        .map(|instr| match *instr {
            Instr::Load(i) => Code::Load(loads[i]),
            Instr::Dropout { value, rate, key } => {
                keys.push(key);
                let factor = (1.0 / (1.0 - rate.get())) as f32;
                Code::Dropout(value, keys.len() - 1, random::dropout_threshold(rate.get()), factor.to_bits())
            }
            ref other => Code::Arithmetic(Arithmetic::of(other).invariant("an instruction loads, draws or computes")),
        })
        .collect();
    let program = Program { code, results: program.results.clone(), keys: keys.len() };
    Then { program, vectors, scalars, rng: None, keys, results }
}

/// Launches a kernel that makes the elements of `y` in vectors of width `w`, and the program that goes on with them: as a
/// part of the kernel, or where a vector would straddle a repetition of an operand, or without `w`, after it.
pub(super) fn go_on_with(
    l: &Launcher,
    y: Arg,
    after: Option<After<'_>>,
    w: Option<usize>,
    launch: impl FnOnce(&Then<'_>),
) {
    let Some(after) = after else { return launch(&Then::default()) };
    let floats: Vec<Option<Arg>> = std::iter::once(None).chain(after.floats.iter().copied().map(Some)).collect();
    if let Some(w) = w
        && width(after.program, &floats, w) == w
    {
        return launch(&Then { rng: after.rng, ..resolve(after.program, &floats, after.more, w) });
    }
    // The program finds what was made where its own first result belongs, and replaces it element by element.
    launch(&Then::default());
    let (floats, results) = ([&[y], after.floats].concat(), [&[y], after.more].concat());
    self::launch(l, after.program, &floats, after.rng, &results);
}

/// Runs a fused program. `floats` are its operands without the generator state.
pub(crate) fn launch(
    l: &Launcher,
    program: &moec_plan::Elementwise,
    floats: &[Arg],
    rng: Option<Arg>,
    results: &[Arg],
) {
    let floats: Vec<Option<Arg>> = floats.iter().copied().map(Some).collect();
    let w = width(program, &floats, l.profile().elementwise_width());
    let total = program.elements;
    let whole = Then { rng, ..resolve(program, &floats, results, w) };

    let (n, split) = (total / w, l.split());
    l.launch(
        n,
        || format!("fused w{w} {:?} {:?}", whole.program.code, whole.program.results),
        // SAFETY: results and full operands hold n vectors; repeated and stretched operands divide n by construction. An
        // operand that shares memory with a result is read in full, and so not bound beside it.
        |t| unsafe { run!(t, fused(w, whole.bind(t, w), n, split)) },
    );
}

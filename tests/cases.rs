//! One table of small graphs that together use every operation and every fusion, on awkward shapes: every backend runs it
//! against the reference evaluator, each node on its own and in clusters, and every differentiable case is checked by finite
//! differences.

use moec_ir::{
    AdamWAttrs, AttentionAttrs, Binary, Builder, CapacityPriority, Data, Graph, Op, Precision, Tensor, TensorType,
    Unary, UnpackAttrs, Value, WeightFormat, random,
};
use moec_kernels::DeviceProfile;
use std::collections::BTreeMap;

/// A graph with the values of its inputs, parameters and states.
pub struct Case {
    /// Names the operation and what is special about the case.
    pub name: String,
    /// Its outputs are compared.
    pub graph: Graph,
    /// Values by name.
    pub values: BTreeMap<String, Tensor>,
    /// Names of inputs whose gradient exists and whose values are away from kinks and ties.
    pub differentiable: Vec<String>,
    /// Float32 tolerance, relative to the largest element.
    pub tolerance: f64,
}

/// Draws values that depend on the case's name only.
struct Draw {
    keys: (u32, u32),
    counter: u32,
}

impl Draw {
    fn new(name: &str) -> Self {
        let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        Self { keys: random::keys(random::state(seed, 0), 0), counter: 0 }
    }

    fn normal(&mut self) -> f64 {
        self.counter += 1;
        // Rounded to f32, so that both float widths start from the same numbers.
        f64::from(random::normal_at(self.keys, self.counter) as f32)
    }

    fn below(&mut self, n: usize) -> i32 {
        self.counter += 1;
        (random::bits(self.keys, self.counter ^ 0x8000_0000) as usize % n) as i32
    }
}

/// Builds one case: declares inputs with drawn values, and every result of the operation as an output.
pub struct CaseBuilder {
    /// Builder of the graph.
    pub b: Builder,
    name: String,
    draw: Draw,
    values: BTreeMap<String, Tensor>,
    differentiable: Vec<String>,
    tolerance: f64,
}

impl CaseBuilder {
    /// An empty case.
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        let draw = Draw::new(&name);
        let (values, differentiable) = (BTreeMap::new(), Vec::new());
        Self { b: Builder::new(), name, draw, values, differentiable, tolerance: 2e-5 }
    }

    fn tolerance(mut self, tolerance: f64) -> Self {
        self.tolerance = tolerance;
        self
    }

    fn with(&mut self, name: &str, shape: &[usize], values: Vec<f64>, differentiable: bool) -> Value {
        let ty = TensorType::f32(shape.to_vec());
        let tensor = Tensor::new(shape.to_vec(), Data::F64(values)).unwrap();
        self.values.insert(name.into(), tensor);
        if differentiable {
            self.differentiable.push(name.into());
        }
        self.b.input(name, ty)
    }

    /// Standard normal floats, differentiable.
    pub fn normal(&mut self, name: &str, shape: &[usize]) -> Value {
        let n = shape.iter().product();
        let values = (0..n).map(|_| self.draw.normal()).collect();
        self.with(name, shape, values, true)
    }

    /// Floats in [0.5, 2.5) or so, away from 0, differentiable.
    pub fn positive(&mut self, name: &str, shape: &[usize]) -> Value {
        let n = shape.iter().product();
        let values = (0..n).map(|_| f64::from((0.5 + self.draw.normal().abs()) as f32)).collect();
        self.with(name, shape, values, true)
    }

    /// Given floats, not differentiable.
    pub fn given(&mut self, name: &str, shape: &[usize], values: Vec<f64>) -> Value {
        self.with(name, shape, values, false)
    }

    /// Given integers.
    pub fn ints(&mut self, name: &str, shape: &[usize], values: Vec<i32>) -> Value {
        let tensor = Tensor::new(shape.to_vec(), Data::I32(values)).unwrap();
        self.values.insert(name.into(), tensor);
        self.b.input(name, TensorType::i32(shape.to_vec()))
    }

    /// A given tensor, not differentiable.
    pub fn tensor(&mut self, name: &str, tensor: Tensor) -> Value {
        let ty = tensor.ty();
        self.values.insert(name.into(), tensor);
        self.b.input(name, ty)
    }

    /// Random integers in `0..below`.
    pub fn indices(&mut self, name: &str, shape: &[usize], below: usize) -> Value {
        let n = shape.iter().product();
        let values = (0..n).map(|_| self.draw.below(below)).collect();
        self.ints(name, shape, values)
    }

    /// K distinct experts per token, some slots -1 if `drops`.
    pub fn experts(&mut self, name: &str, n: usize, k: usize, experts: usize, drops: bool) -> Value {
        let mut values = Vec::with_capacity(n * k);
        for t in 0..n {
            let first = self.draw.below(experts) as usize;
            for j in 0..k {
                let dropped = drops && (t * k + j) % 5 == 3;
                values.push(if dropped { -1 } else { ((first + j) % experts) as i32 });
            }
        }
        self.ints(name, &[n, k], values)
    }

    /// The generator state.
    pub fn rng(&mut self) -> Value {
        self.ints("rng", &[4], random::state(11, 5).to_vec())
    }

    /// Appends the operation and ends the case with all its results as outputs.
    pub fn finish(mut self, op: Op, operands: &[Value]) -> Case {
        let y = self.b.op(op, operands);
        let results = self.b.graph().node(y.node).results.len();
        for slot in 0..results {
            self.b.output(format!("y{slot}"), y.result(slot as u8));
        }
        self.end()
    }

    /// Ends the case with these values as outputs; it is about how they are computed together, not about their gradients.
    fn give(mut self, values: &[Value]) -> Case {
        self.differentiable.clear();
        for (i, &value) in values.iter().enumerate() {
            self.b.output(format!("y{i}"), value);
        }
        self.end()
    }

    /// Ends a case whose outputs are declared.
    pub fn end(self) -> Case {
        let graph = self.b.finish().unwrap_or_else(|e| panic!("case {}: {e}", self.name));
        Case {
            name: self.name,
            graph,
            values: self.values,
            differentiable: self.differentiable,
            tolerance: self.tolerance,
        }
    }
}

fn elementwise(cases: &mut Vec<Case>) {
    for u in Unary::ALL {
        for shape in [vec![], vec![1], vec![7, 3], vec![33, 17]] {
            let mut c = CaseBuilder::new(format!("{} {shape:?}", u.mnemonic()));
            let x = if u.needs_positive() { c.positive("x", &shape) } else { c.normal("x", &shape) };
            cases.push(c.finish(Op::Unary(u), &[x]));
        }
        let mut c = CaseBuilder::new(format!("{} of large and small numbers", u.mnemonic()));
        let wide = [-80.0, -20.0, -5.0, -1e-3, 0.0, 1e-3, 5.0, 20.0, 80.0];
        let positive = wide.map(f64::abs).map(|x| x + 1e-3);
        let x = c.given("x", &[9], if u.needs_positive() { positive } else { wide }.to_vec());
        cases.push(c.finish(Op::Unary(u), &[x]));
    }
    for f in Binary::ALL {
        for shape in [vec![], vec![17], vec![3, 33]] {
            let mut c = CaseBuilder::new(format!("{} {shape:?}", f.mnemonic()));
            let (a, b) = (c.normal("a", &shape), c.positive("b", &shape));
            cases.push(c.finish(Op::Binary(f), &[a, b]));
        }
        let mut c = CaseBuilder::new(format!("{} of equal numbers", f.mnemonic()));
        let a = c.given("a", &[5], vec![1.0, 2.0, -3.0, 4.0, 1.5]);
        let b = c.given("b", &[5], vec![1.0, 5.0, -3.0, 2.0, 1.5]);
        cases.push(c.finish(Op::Binary(f), &[a, b]));
    }
    for shape in [vec![1], vec![7, 33]] {
        let mut c = CaseBuilder::new(format!("select {shape:?}"));
        let n: usize = shape.iter().product();
        let q = c.given("q", &shape, (0..n).map(|i| (i % 3) as f64).collect());
        let (a, b) = (c.normal("a", &shape), c.normal("b", &shape));
        cases.push(c.finish(Op::Select, &[q, a, b]));
    }
    for (from, to) in [
        (vec![], vec![3, 7]),
        (vec![7], vec![3, 7]),
        (vec![3, 1], vec![3, 7]),
        (vec![1, 5], vec![4, 5]),
        (vec![2, 1, 3], vec![2, 4, 3]),
        (vec![33], vec![17, 33]),
        (vec![1], vec![1]),
    ] {
        let mut c = CaseBuilder::new(format!("broadcast {from:?} to {to:?}"));
        let x = c.normal("x", &from);
        cases.push(c.finish(Op::Broadcast { shape: to }, &[x]));
    }
    let mut c = CaseBuilder::new("reshape");
    let x = c.normal("x", &[6, 7]);
    cases.push(c.finish(Op::Reshape { shape: vec![3, 14] }, &[x]));
    for (from, to) in
        [(vec![3, 1], vec![3, 7]), (vec![7], vec![3, 7]), (vec![1], vec![5]), (vec![2, 1, 3], vec![2, 4, 3])]
    {
        let mut c = CaseBuilder::new(format!("broadcast of integers {from:?} to {to:?}"));
        let x = c.indices("x", &from, 100);
        cases.push(c.finish(Op::Broadcast { shape: to }, &[x]));
    }
    for (shape, axes) in [
        (vec![], vec![]),
        (vec![7], vec![0]),
        (vec![3, 7], vec![1, 0]),
        (vec![33, 17], vec![1, 0]),
        (vec![2, 3, 5], vec![2, 0, 1]),
        (vec![2, 3, 5, 7], vec![3, 1, 0, 2]),
        (vec![4, 1, 8, 16], vec![0, 2, 1, 3]),
    ] {
        let mut c = CaseBuilder::new(format!("permute {shape:?} by {axes:?}"));
        let x = c.normal("x", &shape);
        cases.push(c.finish(Op::Permute { axes }, &[x]));
    }
    let mut c = CaseBuilder::new("permute twice");
    let x = c.normal("x", &[2, 3, 5]);
    let turned = c.b.permute(x, &[1, 2, 0]);
    cases.push(c.finish(Op::Permute { axes: vec![2, 0, 1] }, &[turned]));
    let mut c = CaseBuilder::new("stop gradient");
    let x = c.normal("x", &[3, 17]);
    cases.push(c.finish(Op::StopGradient, &[x]));
    let c = CaseBuilder::new("fill");
    cases.push(c.finish(Op::Fill { value: (-2.5).into(), ty: TensorType::f32([3, 17]) }, &[]));

    for [rows, inner] in [[7, 3], [16, 32], [33, 17]] {
        let mut c = CaseBuilder::new(format!("fused with every access [{rows}, {inner}]"));
        let shape = [rows, inner];
        let (x, bias) = (c.normal("x", &shape), c.normal("bias", &[inner]));
        let (row, scalar) = (c.normal("row", &[rows, 1]), c.normal("scalar", &[]));
        let rng = c.rng();
        let b = &mut c.b;
        let [bias, row, scalar] = [bias, row, scalar].map(|v| b.broadcast(v, shape));
        let bound = b.fill(-0.75, shape);
        let sum = b.add(x, bias);
        let product = b.mul(sum, row);
        let tanh = b.unary(Unary::Tanh, product);
        let less = b.binary(Binary::Less, scalar, bound);
        let chosen = b.select(less, tanh, product);
        let kept = b.op(Op::Dropout { rate: 0.3.into(), key: 9 }, &[chosen, rng]);
        cases.push(c.give(&[product, kept]));
    }
}

/// Elementwise operations that go on with an `[m, n]` value, reading further operands in every way, one of them again
/// after each `period` elements; and that value itself.
fn go_on(c: &mut CaseBuilder, made: Value, m: usize, n: usize, period: usize) -> [Value; 2] {
    let operands = [("x", vec![m, n]), ("columns", vec![period]), ("rows", vec![m, 1]), ("scalar", vec![])];
    let [x, columns, rows, scalar] = operands.map(|(name, shape)| c.normal(name, &shape));
    let (rng, b) = (c.rng(), &mut c.b);
    let repeats = [m * n / period, period];
    let relu = b.unary(Unary::Relu, made);
    let (relu, columns) = (b.reshape(relu, repeats), b.broadcast(columns, repeats));
    let sum = b.add(relu, columns);
    let (sum, rows) = (b.reshape(sum, [m, n]), b.broadcast(rows, [m, n]));
    let product = b.mul(sum, rows);
    let kept = b.op(Op::Dropout { rate: 0.3.into(), key: 9 }, &[product, rng]);
    let (more, scalar) = (b.add(kept, x), b.broadcast(scalar, [m, n]));
    [b.sub(more, scalar), made]
}

/// Products whose result goes through a program with every access, and is a result itself. Sums are shorter and longer
/// than a packed block, edges ragged and whole, and some rows belong to no expert.
fn fused_products(cases: &mut Vec<Case>) {
    for (m, n, k) in [(1, 1, 1), (7, 3, 5), (33, 16, 17), (17, 48, 300), (16, 70, 33)] {
        for (transpose_a, transpose_b, bias) in [(false, true, true), (false, false, false), (true, false, false)] {
            let mut c = CaseBuilder::new(format!("fused matmul {m}x{n} over {k} {transpose_a} {transpose_b}"));
            let mut operands = vec![c.normal("a", &if transpose_a { [k, m] } else { [m, k] })];
            operands.push(c.normal("b", &if transpose_b { [n, k] } else { [k, n] }));
            operands.extend(bias.then(|| c.normal("bias", &[n])));
            let made = c.b.op(Op::MatMul { transpose_a, transpose_b, bias, precision: Precision::F32 }, &operands);
            let results = go_on(&mut c, made, m, n, n);
            cases.push(c.give(&results));
        }
    }
    for (offsets, rows, inner, outer) in
        [(vec![0, 1], 1, 1, 1), (vec![0, 5, 5, 16], 17, 7, 3), (vec![0, 0, 20, 33], 40, 150, 32)]
    {
        // The one of transposed experts has a bias, which rows of no expert must not get.
        for transpose_b in [false, true] {
            let experts = offsets.len() - 1;
            let mut c = CaseBuilder::new(format!("fused grouped matmul {rows}x{outer} over {inner} {transpose_b}"));
            let w = if transpose_b { [experts, outer, inner] } else { [experts, inner, outer] };
            let mut operands = vec![
                c.normal("a", &[rows, inner]),
                c.normal("w", &w),
                c.ints("offsets", &[experts + 1], offsets.clone()),
            ];
            operands.extend(transpose_b.then(|| c.normal("bias", &[experts, outer])));
            let made =
                c.b.op(Op::GroupedMatMul { transpose_b, bias: transpose_b, precision: Precision::F32 }, &operands);
            let results = go_on(&mut c, made, rows, outer, outer);
            cases.push(c.give(&results));
        }
    }
}

/// Programs after the other operations that one can go on with; the gradients of norms have further results. A period
/// that is not a row is narrower than the vectors in which rows are made.
fn fused_producers(cases: &mut Vec<Case>) {
    for (rows, ch, period) in [(1, 1, 1), (3, 7, 7), (17, 33, 33), (33, 16, 16), (5, 48, 48), (7, 16, 4), (3, 32, 2)] {
        for producer in [Op::LayerNormGrad, Op::RmsNormGrad] {
            let mut c = CaseBuilder::new(format!("fused {} {rows}x{ch} {period}", producer.mnemonic()));
            let mut operands = vec![c.normal("dy", &[rows, ch]), c.normal("y", &[rows, ch]), c.positive("gain", &[ch])];
            let further = if producer == Op::LayerNormGrad { 2 } else { 1 };
            operands.extend((further == 2).then(|| c.normal("mean", &[rows])));
            operands.push(c.positive("rstd", &[rows]));
            let made = c.b.op(producer, &operands);
            let mut results = go_on(&mut c, made, rows, ch, period).to_vec();
            results.extend((1..=further).map(|slot| made.result(slot)));
            cases.push(c.give(&results));
        }
        for producer in [Op::LayerNorm { epsilon: 1e-5.into() }, Op::RmsNorm { epsilon: 1e-5.into() }] {
            let mut c = CaseBuilder::new(format!("fused {} {rows}x{ch} {period}", producer.mnemonic()));
            let mut operands = vec![c.normal("x", &[rows, ch]), c.positive("gain", &[ch])];
            let statistics = if producer.mnemonic() == "layer_norm" { 2 } else { 1 };
            operands.extend((statistics == 2).then(|| c.normal("shift", &[ch])));
            let made = c.b.op(producer, &operands);
            let mut results = go_on(&mut c, made, rows, ch, period).to_vec();
            results.extend((1..=statistics).map(|slot| made.result(slot)));
            cases.push(c.give(&results));
        }
        let mut c = CaseBuilder::new(format!("fused embed {rows}x{ch} {period}"));
        let operands = [c.indices("ids", &[rows], 3), c.normal("table", &[3, ch])];
        let made = c.b.op(Op::Embed, &operands);
        let results = go_on(&mut c, made, rows, ch, period);
        cases.push(c.give(&results));
        for (experts, k) in [(1, 1), (4, 2), (3, 3)] {
            // Some slots are dropped, so that there are rows of no token.
            for weighted in [false, true] {
                for (producer, from, to) in
                    [(Op::Dispatch { weighted }, rows, rows * k), (Op::Combine { weighted }, rows * k, rows)]
                {
                    let name = format!("fused {} {rows}x{ch} {period} E={experts} K={k}", producer.mnemonic());
                    let mut c = CaseBuilder::new(format!("{name} weighted={weighted}"));
                    let (y, i) = (c.normal("y", &[from, ch]), c.experts("i", rows, k, experts, true));
                    let sort = c.b.op(Op::SortByExpert { experts, rows: rows * k }, &[i]);
                    let mut operands = vec![y, sort.result(1), sort.result(2)];
                    operands.extend(weighted.then(|| c.normal("weights", &[rows, k])));
                    let made = c.b.op(producer, &operands);
                    let results = go_on(&mut c, made, to, ch, period);
                    cases.push(c.give(&results));
                }
            }
        }
    }
}

/// Products of rows that are fetched from where they are: few tokens and many slots, some of them dropped, experts without
/// rows, sums longer than a packed block.
fn dispatched_products(cases: &mut Vec<Case>) {
    for (tokens, experts, k, inner, outer) in
        [(1, 1, 1, 1, 1), (7, 3, 2, 5, 3), (17, 4, 4, 16, 33), (33, 8, 1, 17, 16), (40, 2, 2, 150, 80)]
    {
        for drops in [false, true] {
            let name = format!("N={tokens} E={experts} K={k} {inner}->{outer} drops={drops}");
            let dispatch = |c: &mut CaseBuilder, x: Value| {
                let i = c.experts("i", tokens, k, experts, drops);
                let sort = c.b.op(Op::SortByExpert { experts, rows: tokens * k }, &[i]);
                (c.b.op(Op::Dispatch { weighted: false }, &[x, sort.result(1), sort.result(2)]), sort)
            };
            for transpose_b in [false, true] {
                for fused in [false, true] {
                    let (transposed, then) = (format!("tb={transpose_b}"), if fused { "fused " } else { "" });
                    let mut c = CaseBuilder::new(format!("{then}dispatched product {name} {transposed}"));
                    let x = c.normal("tokens", &[tokens, inner]);
                    let (rows, sort) = dispatch(&mut c, x);
                    let w = if transpose_b { [experts, outer, inner] } else { [experts, inner, outer] };
                    let mut operands = vec![rows, c.normal("w", &w), sort];
                    operands.extend(transpose_b.then(|| c.normal("bias", &[experts, outer])));
                    let made = c
                        .b
                        .op(Op::GroupedMatMul { transpose_b, bias: transpose_b, precision: Precision::F32 }, &operands);
                    let results =
                        if fused { go_on(&mut c, made, tokens * k, outer, outer).to_vec() } else { vec![made] };
                    cases.push(c.give(&results));
                }
            }
            for sums in [false, true] {
                let mut c = CaseBuilder::new(format!("dispatched weight grad {name} sums={sums}"));
                let (dy, x) = (c.normal("dy", &[tokens * k, outer]), c.normal("x", &[tokens, inner]));
                let (rows, sort) = dispatch(&mut c, x);
                let mut results =
                    vec![c.b.op(Op::GroupedMatMulWeightGrad { precision: Precision::F32 }, &[dy, rows, sort])];
                results.extend(sums.then(|| c.b.op(Op::GroupedSum, &[dy, sort])));
                cases.push(c.give(&results));
            }
        }
    }
}

/// Products of weights that are packed in panels, those of this processor's kernels, of every format: one row and several,
/// experts without rows, panels that are filled up.
fn products_that_unpack(cases: &mut Vec<Case>) {
    let panel = DeviceProfile::this_cpu().launch_limits().panel.unwrap_or(16);
    for (tokens, experts, k, inner, outer) in
        [(1, 1, 1, 1, 1), (1, 3, 2, 7, 17), (7, 3, 2, 33, 130), (17, 4, 4, 16, 64)]
    {
        for (format, fused) in WeightFormat::ALL.into_iter().flat_map(|format| [(format, false), (format, true)]) {
            let name = |kind: &str| {
                let then = if fused { "fused " } else { "" };
                format!("{then}{kind} that unpacks {} N={tokens} E={experts} K={k} {inner}->{outer}", format.name())
            };
            let unpack = |c: &mut CaseBuilder, leading: &[usize]| {
                let shape = [leading, &[outer, inner]].concat();
                let values = (0..shape.iter().product()).map(|_| c.draw.normal()).collect();
                let weights = Tensor::new(shape, Data::F64(values)).unwrap();
                let mut operands = vec![c.tensor("packed", format.pack(&weights, panel).unwrap())];
                operands.extend(format.scales(&weights).map(|scales| c.tensor("scale", scales)));
                c.b.op(Op::Unpack(UnpackAttrs { format, panel, columns: outer }), &operands)
            };
            let mut c = CaseBuilder::new(name("product"));
            let (x, w, bias) = (c.normal("tokens", &[tokens, inner]), unpack(&mut c, &[]), c.normal("bias", &[outer]));
            let (precision, transpose_a, transpose_b) = (Precision::F32, false, false);
            let made = c.b.op(Op::MatMul { transpose_a, transpose_b, bias: true, precision }, &[x, w, bias]);
            let results = if fused { go_on(&mut c, made, tokens, outer, outer).to_vec() } else { vec![made] };
            cases.push(c.give(&results));
            for fetched in [false, true] {
                let mut c = CaseBuilder::new(name(if fetched { "dispatched product" } else { "grouped product" }));
                let x = c.normal("tokens", &[if fetched { tokens } else { tokens * k }, inner]);
                let i = c.experts("i", tokens, k, experts, fetched);
                let sort = c.b.op(Op::SortByExpert { experts, rows: tokens * k }, &[i]);
                let dispatch = Op::Dispatch { weighted: false };
                let rows = if fetched { c.b.op(dispatch, &[x, sort.result(1), sort.result(2)]) } else { x };
                let w = unpack(&mut c, &[experts]);
                let made = c.b.op(Op::GroupedMatMul { transpose_b, bias: false, precision }, &[rows, w, sort]);
                let results = if fused { go_on(&mut c, made, tokens * k, outer, outer).to_vec() } else { vec![made] };
                cases.push(c.give(&results));
            }
        }
    }
}

fn reductions(cases: &mut Vec<Case>) {
    for (shape, axes) in [
        (vec![7], vec![0]),
        (vec![3, 33], vec![0]),
        (vec![3, 33], vec![1]),
        (vec![17, 16], vec![0, 1]),
        (vec![2, 3, 5], vec![1]),
        (vec![2, 3, 5], vec![0, 2]),
        (vec![4, 8, 16], vec![0]),
        (vec![257, 64], vec![0]),
        (vec![1, 1], vec![0, 1]),
        (vec![5000], vec![0]),
    ] {
        let mut c = CaseBuilder::new(format!("sum of {shape:?} over {axes:?}"));
        let x = c.normal("x", &shape);
        cases.push(c.finish(Op::Sum { axes }, &[x]));
    }
    for (shape, axis) in [
        (vec![1], 0),
        (vec![33], 0),
        (vec![3, 7], 0),
        (vec![7, 3], 1),
        (vec![17, 33], 0),
        (vec![33, 17], 1),
        (vec![3, 7, 16], 1),
        (vec![2, 3, 5, 7], 2),
        (vec![300, 8], 0),
    ] {
        for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut c = CaseBuilder::new(format!("cumsum of {shape:?} along {axis} {exclusive} {reverse}"));
            let x = c.normal("x", &shape);
            cases.push(c.finish(Op::CumulativeSum { axis, exclusive, reverse }, &[x]));
        }
    }
    let mut c = CaseBuilder::new("sum of squares");
    let (x, y, z) = (c.normal("x", &[33, 17]), c.normal("y", &[1]), c.normal("z", &[5000]));
    cases.push(c.finish(Op::SumOfSquares, &[x, y, z]));
}

fn linear(cases: &mut Vec<Case>) {
    for (m, k, n) in [
        (1, 1, 1),
        (3, 7, 17),
        (17, 33, 3),
        (33, 17, 65),
        (7, 16, 16),
        (48, 32, 64),
        (64, 128, 48),
        (13, 100, 40),
        (512, 16, 8),
        (6, 1030, 16),
    ] {
        for (transpose_a, transpose_b, bias) in
            [(false, false, false), (false, true, true), (true, false, false), (true, true, true)]
        {
            let mut c = CaseBuilder::new(format!("matmul {m}x{k}x{n} ta={transpose_a} tb={transpose_b}"));
            let a = c.normal("a", &if transpose_a { [k, m] } else { [m, k] });
            let w = c.normal("b", &if transpose_b { [n, k] } else { [k, n] });
            let mut operands = vec![a, w];
            if bias {
                operands.push(c.normal("bias", &[n]));
            }
            cases.push(c.finish(Op::MatMul { transpose_a, transpose_b, bias, precision: Precision::F32 }, &operands));
        }
        let mut c = CaseBuilder::new(format!("matmul with sums {m}x{k}x{n}"));
        let operands = [c.normal("a", &[k, m]), c.normal("b", &[k, n])];
        let product = c.b.op(
            Op::MatMul { transpose_a: true, transpose_b: false, bias: false, precision: Precision::F32 },
            &operands,
        );
        let sums = c.b.sum(operands[0], &[0]);
        cases.push(c.give(&[product, sums]));
    }
    let segments: [&[i32]; 6] =
        [&[0, 7], &[0, 0, 5, 5], &[0, 3, 3, 10, 17], &[0, 17, 17, 17], &[0, 4, 9, 12], &[0, 20, 33, 33, 64, 64]];
    for (case, offsets) in segments.into_iter().enumerate() {
        let experts = offsets.len() - 1;
        let kept = offsets[experts] as usize;
        // One case has rows beyond the last segment: dropped slots.
        let rows = if case == 4 { kept + 3 } else { kept.max(5) };
        let (inner, outer) = [(3, 7), (17, 33), (16, 32), (1, 1), (12, 16), (32, 64)][case];
        for transpose_b in [false, true] {
            let mut c = CaseBuilder::new(format!("grouped matmul {offsets:?} {inner}->{outer} tb={transpose_b}"));
            let x = c.normal("x", &[rows, inner]);
            let w = c.normal("w", &if transpose_b { [experts, outer, inner] } else { [experts, inner, outer] });
            let o = c.ints("offsets", &[experts + 1], offsets.to_vec());
            let mut operands = vec![x, w, o];
            if transpose_b {
                operands.push(c.normal("bias", &[experts, outer]));
            }
            cases.push(
                c.finish(Op::GroupedMatMul { transpose_b, bias: transpose_b, precision: Precision::F32 }, &operands),
            );
        }
        let mut c = CaseBuilder::new(format!("grouped matmul weight grad {offsets:?} {inner}->{outer}"));
        let (dy, x) = (c.normal("dy", &[rows, outer]), c.normal("x", &[rows, inner]));
        let o = c.ints("offsets", &[experts + 1], offsets.to_vec());
        cases.push(c.finish(Op::GroupedMatMulWeightGrad { precision: Precision::F32 }, &[dy, x, o]));
        let mut c = CaseBuilder::new(format!("grouped matmul weight grad with sums {offsets:?} {inner}->{outer}"));
        let (dy, x) = (c.normal("dy", &[rows, outer]), c.normal("x", &[rows, inner]));
        let o = c.ints("offsets", &[experts + 1], offsets.to_vec());
        let product = c.b.op(Op::GroupedMatMulWeightGrad { precision: Precision::F32 }, &[dy, x, o]);
        let sums = c.b.op(Op::GroupedSum, &[dy, o]);
        cases.push(c.give(&[product, sums]));
        let mut c = CaseBuilder::new(format!("grouped sum {offsets:?} {outer}"));
        let x = c.normal("x", &[rows, outer]);
        let o = c.ints("offsets", &[experts + 1], offsets.to_vec());
        cases.push(c.finish(Op::GroupedSum, &[x, o]));
    }
}

fn norms(cases: &mut Vec<Case>) {
    for (rows, ch) in [(1, 1), (3, 7), (17, 33), (33, 16), (64, 128), (5, 48)] {
        let epsilon = 1e-5.into();
        let mut c = CaseBuilder::new(format!("layer norm {rows}x{ch}"));
        let (x, g, s) = (c.normal("x", &[rows, ch]), c.positive("gain", &[ch]), c.normal("shift", &[ch]));
        cases.push(c.finish(Op::LayerNorm { epsilon }, &[x, g, s]));
        let mut c = CaseBuilder::new(format!("layer norm grad {rows}x{ch}"));
        let (dy, x, g) = (c.normal("dy", &[rows, ch]), c.normal("x", &[rows, ch]), c.positive("gain", &[ch]));
        let (mean, rstd) = (c.normal("mean", &[rows]), c.positive("rstd", &[rows]));
        cases.push(c.finish(Op::LayerNormGrad, &[dy, x, g, mean, rstd]));
        let mut c = CaseBuilder::new(format!("rms norm {rows}x{ch}"));
        let (x, g) = (c.normal("x", &[rows, ch]), c.positive("gain", &[ch]));
        cases.push(c.finish(Op::RmsNorm { epsilon }, &[x, g]));
        let mut c = CaseBuilder::new(format!("rms norm grad {rows}x{ch}"));
        let (dy, x, g) = (c.normal("dy", &[rows, ch]), c.normal("x", &[rows, ch]), c.positive("gain", &[ch]));
        let rstd = c.positive("rstd", &[rows]);
        cases.push(c.finish(Op::RmsNormGrad, &[dy, x, g, rstd]));
        for op in [Op::Softmax, Op::LogSumExp] {
            let mut c = CaseBuilder::new(format!("{} {rows}x{ch}", op.mnemonic()));
            let x = c.normal("x", &[rows, ch]);
            cases.push(c.finish(op, &[x]));
        }
        let mut c = CaseBuilder::new(format!("softmax grad {rows}x{ch}"));
        let (dy, y) = (c.normal("dy", &[rows, ch]), c.positive("y", &[rows, ch]));
        cases.push(c.finish(Op::SoftmaxGrad, &[dy, y]));
    }
    let mut c = CaseBuilder::new("softmax of large logits");
    let x = c.given("x", &[2, 3], vec![1000.0, 999.0, -1000.0, -500.0, -500.0, -501.0]);
    cases.push(c.finish(Op::Softmax, &[x]));
}

fn attention(cases: &mut Vec<Case>) {
    for (batch, time, heads, d) in
        [(1, 1, 1, 1), (2, 7, 1, 3), (3, 17, 2, 5), (1, 33, 3, 8), (2, 32, 4, 16), (1, 65, 1, 32)]
    {
        let kinds = [(0.0, usize::MAX, false), (0.4, usize::MAX, false), (0.0, 3, true), (0.4, time / 2 + 1, true)];
        for (dropout, window, sink) in kinds {
            let attrs = AttentionAttrs {
                dropout: dropout.into(),
                key: 3,
                window,
                sink,
                ..AttentionAttrs::causal(heads, time, (d as f64).powf(-0.5))
            };
            let (n, ch) = (batch * time, heads * d);
            let name = format!("B={batch} T={time} H={heads} D={d} dropout={dropout} window={window} sink={sink}");
            let mut c = CaseBuilder::new(format!("attention {name}"));
            let qkv = c.normal("qkv", &[n, 3 * ch]);
            let mut operands = vec![qkv];
            if sink {
                operands.push(c.normal("sinks", &[heads]));
            }
            if dropout > 0.0 {
                operands.push(c.rng());
            }
            cases.push(c.finish(Op::Attention(attrs), &operands));

            let mut c = CaseBuilder::new(format!("attention grad {name}")).tolerance(1e-4);
            let dy = c.normal("dy", &[n, ch]);
            let qkv = c.normal("qkv", &[n, 3 * ch]);
            let mut forward = vec![qkv];
            let rng = (dropout > 0.0).then(|| c.rng());
            forward.extend(sink.then(|| c.normal("sinks", &[heads])));
            forward.extend(rng);
            let y = c.b.op(Op::Attention(attrs), &forward);
            let mut operands = vec![dy, qkv, y, y.result(1)];
            operands.extend(rng);
            c.differentiable.clear();
            cases.push(c.finish(Op::AttentionGrad(attrs), &operands));
        }
    }
    for (time, heads, d) in [(1, 1, 1), (7, 1, 3), (17, 2, 5), (33, 3, 8), (32, 4, 16)] {
        // The first token, one in the middle, the last that fits, one that takes the place of the first, none, and a late
        // one.
        let positions = [0, time / 2, time - 1, time, 0, 5 * time + 2].map(|p| p as i32);
        let positions = positions.into_iter().enumerate().map(|(i, p)| if i == 4 { -1 } else { p }).collect();
        let mut c = CaseBuilder::new(format!("cached attention T={time} H={heads} D={d}"));
        let qkv = c.normal("qkv", &[6, 3 * heads * d]);
        let cache = c.b.state("cache.layer", TensorType::f32([6, time, 2 * heads * d]));
        let values = (0..6 * time * 2 * heads * d).map(|_| c.draw.normal()).collect();
        c.values.insert("cache.layer".into(), Tensor::new([6, time, 2 * heads * d], Data::F64(values)).unwrap());
        let positions = c.ints("positions", &[6], positions);
        let sink = heads == 2;
        let op = Op::CachedAttention { heads, scale: (d as f64).powf(-0.5).into(), sink };
        let mut operands = vec![qkv, cache, positions];
        operands.extend(sink.then(|| c.normal("sinks", &[heads])));
        let y = c.b.op(op, &operands);
        c.b.output("y", y);
        c.b.update("cache.layer", y.result(1));
        c.differentiable.clear();
        cases.push(c.end());
    }
    for inverse in [false, true] {
        for positions in [false, true] {
            let mut c = CaseBuilder::new(format!("rotary inverse={inverse} positions={positions}"));
            let mut operands = vec![c.normal("qkv", &[2 * 7, 3 * 3 * 6])];
            if positions {
                operands.push(c.indices("positions", &[2 * 7], 40));
            }
            cases.push(c.finish(Op::Rotary { heads: 3, time: 7, base: 10000.0.into(), inverse, positions }, &operands));
        }
    }
}

fn embedding_and_loss(cases: &mut Vec<Case>) {
    for (n, v, ch) in [(1, 1, 1), (7, 3, 17), (33, 65, 16), (128, 5, 32)] {
        let mut c = CaseBuilder::new(format!("embed N={n} V={v} C={ch}"));
        let (ids, table) = (c.indices("ids", &[n], v), c.normal("table", &[v, ch]));
        cases.push(c.finish(Op::Embed, &[ids, table]));
        let mut c = CaseBuilder::new(format!("embed grad N={n} V={v} C={ch}"));
        let (ids, dy) = (c.indices("ids", &[n], v), c.normal("dy", &[n, ch]));
        cases.push(c.finish(Op::EmbedGrad { rows: v }, &[ids, dy]));
        let mut c = CaseBuilder::new(format!("cross entropy N={n} V={v}"));
        let (logits, targets) = (c.normal("logits", &[n, v]), c.indices("targets", &[n], v));
        cases.push(c.finish(Op::CrossEntropy, &[logits, targets]));
        let mut c = CaseBuilder::new(format!("cross entropy grad N={n} V={v}"));
        let (dloss, logits) = (c.normal("dloss", &[]), c.normal("logits", &[n, v]));
        let targets = c.indices("targets", &[n], v);
        let forward = c.b.op(Op::CrossEntropy, &[logits, targets]);
        c.differentiable.clear();
        cases.push(c.finish(Op::CrossEntropyGrad, &[dloss, logits, forward.result(1), targets]));
    }
    for (n, v) in [(1, 1), (5, 1), (7, 3), (33, 65), (128, 5), (300, 16)] {
        let mut c = CaseBuilder::new(format!("cross entropy with its gradient N={n} V={v}"));
        let (logits, targets) = (c.normal("logits", &[n, v]), c.indices("targets", &[n], v));
        c.differentiable.clear();
        let (loss, dloss) = (c.b.op(Op::CrossEntropy, &[logits, targets]), c.b.fill(-0.75, []));
        let gradient = c.b.op(Op::CrossEntropyGrad, &[dloss, logits, loss.result(1), targets]);
        cases.push(c.give(&[loss, gradient]));
    }
}

fn randomness(cases: &mut Vec<Case>) {
    for shape in [vec![1], vec![7, 33], vec![1000]] {
        let mut c = CaseBuilder::new(format!("random normal {shape:?}")).tolerance(2e-5);
        let rng = c.rng();
        cases.push(c.finish(Op::RandomNormal { key: 4, shape: shape.clone() }, &[rng]));
        let mut c = CaseBuilder::new(format!("random uniform {shape:?}")).tolerance(0.0);
        let rng = c.rng();
        cases.push(c.finish(Op::RandomUniform { key: 4, shape: shape.clone() }, &[rng]));
        for rate in [0.0, 0.1, 0.9] {
            let mut c = CaseBuilder::new(format!("dropout {rate} {shape:?}"));
            let (x, rng) = (c.normal("x", &shape), c.rng());
            cases.push(c.finish(Op::Dropout { rate: rate.into(), key: 2 }, &[x, rng]));
        }
    }
}

fn routing(cases: &mut Vec<Case>) {
    for (n, e, k) in [(3, 300, 2), (2, 300, 17), (1, 4096, 4096), (5, 70, 70)] {
        let mut c = CaseBuilder::new(format!("top k of long rows N={n} E={e} K={k}"));
        let x = c.normal("x", &[n, e]);
        if e > 1000 {
            // Central differences of thousands of results take long.
            c.differentiable.clear();
        }
        cases.push(c.finish(Op::TopK { k, skip: 0 }, &[x]));
    }
    for k in [1, 5, 12, 70] {
        let mut c = CaseBuilder::new(format!("top {k} of what is no number"));
        let odd = [f64::NAN, f64::NEG_INFINITY, 0.0, -0.0, f64::INFINITY, -1e-40, f64::NEG_INFINITY, f64::NAN];
        let x = c.given("x", &[3, 70], (0..210).map(|i| odd[(i * i + i / 70) % 8]).collect());
        cases.push(c.finish(Op::TopK { k, skip: 0 }, &[x]));
    }
    for (n, e, k) in [(1, 1, 1), (7, 3, 1), (17, 4, 2), (33, 7, 3), (5, 8, 8), (64, 8, 2)] {
        let name = format!("N={n} E={e} K={k}");
        let mut c = CaseBuilder::new(format!("top k {name}"));
        let x = c.normal("x", &[n, e]);
        cases.push(c.finish(Op::TopK { k, skip: 0 }, &[x]));
        let mut c = CaseBuilder::new(format!("top k of ties {name}"));
        let x = c.given("x", &[n, e], (0..n * e).map(|i| ((i * 5) % 3) as f64).collect());
        cases.push(c.finish(Op::TopK { k, skip: 0 }, &[x]));
        for skip in [k / 2, k - 1] {
            let mut c = CaseBuilder::new(format!("top k but the first {skip} {name}"));
            let x = c.normal("x", &[n, e]);
            cases.push(c.finish(Op::TopK { k, skip }, &[x]));
        }
        let mut c = CaseBuilder::new(format!("count {name}"));
        let i = c.experts("i", n, k, e, true);
        cases.push(c.finish(Op::Count { size: e }, &[i]));
        for capacity in [1, n.div_ceil(2), n * k] {
            let mut c = CaseBuilder::new(format!("limit capacity {capacity} {name}"));
            let i = c.experts("i", n, k, e, false);
            let priority = CapacityPriority::Token;
            cases.push(c.finish(Op::LimitCapacity { experts: e, capacity, priority }, &[i]));
            let mut c = CaseBuilder::new(format!("limit capacity {capacity} by choice {name}"));
            let i = c.experts("i", n, k, e, true);
            let priority = CapacityPriority::Choice;
            cases.push(c.finish(Op::LimitCapacity { experts: e, capacity, priority }, &[i]));
            for values in [2, 1000] {
                let mut c = CaseBuilder::new(format!("limit capacity {capacity} by {values} probabilities {name}"));
                let i = c.experts("i", n, k, e, true);
                let weights = (0..n * k).map(|_| f64::from(c.draw.below(values)) / 8.0 - 3.0).collect();
                let weights = c.given("weights", &[n, k], weights);
                let priority = CapacityPriority::Probability;
                cases.push(c.finish(Op::LimitCapacity { experts: e, capacity, priority }, &[i, weights]));
            }
        }
        for drops in [false, true] {
            let name = format!("{name} drops={drops}");
            let mut c = CaseBuilder::new(format!("gather last {name}"));
            let (x, i) = (c.normal("x", &[n, e]), c.experts("i", n, k, e, drops));
            cases.push(c.finish(Op::GatherLast, &[x, i]));
            let mut c = CaseBuilder::new(format!("scatter last {name}"));
            let (x, i) = (c.normal("x", &[n, k]), c.experts("i", n, k, e, drops));
            cases.push(c.finish(Op::ScatterLast { size: e }, &[x, i]));
            let mut c = CaseBuilder::new(format!("sort by expert {name}"));
            let i = c.experts("i", n, k, e, drops);
            cases.push(c.finish(Op::SortByExpert { experts: e, rows: n * k }, &[i]));
            for ch in [3, 16] {
                for weighted in [false, true] {
                    let name = format!("{name} C={ch} weighted={weighted}");
                    let mut c = CaseBuilder::new(format!("dispatch {name}"));
                    let (x, i) = (c.normal("x", &[n, ch]), c.experts("i", n, k, e, drops));
                    let sort = c.b.op(Op::SortByExpert { experts: e, rows: n * k }, &[i]);
                    let mut operands = vec![x, sort.result(1), sort.result(2)];
                    if weighted {
                        operands.push(c.normal("weights", &[n, k]));
                    }
                    cases.push(c.finish(Op::Dispatch { weighted }, &operands));
                    let mut c = CaseBuilder::new(format!("combine {name}"));
                    let (y, i) = (c.normal("y", &[n * k, ch]), c.experts("i", n, k, e, drops));
                    let sort = c.b.op(Op::SortByExpert { experts: e, rows: n * k }, &[i]);
                    let mut operands = vec![y, sort.result(1), sort.result(2)];
                    if weighted {
                        operands.push(c.normal("weights", &[n, k]));
                    }
                    cases.push(c.finish(Op::Combine { weighted }, &operands));
                }
                let mut c = CaseBuilder::new(format!("combine weight grad {name} C={ch}"));
                let (dz, y) = (c.normal("dz", &[n, ch]), c.normal("y", &[n * k, ch]));
                let i = c.experts("i", n, k, e, drops);
                let sort = c.b.op(Op::SortByExpert { experts: e, rows: n * k }, &[i]);
                cases.push(c.finish(Op::CombineWeightGrad, &[dz, y, sort.result(2)]));
            }
        }
    }
    let mut c = CaseBuilder::new("every token to one expert of four");
    let (x, i) = (c.normal("x", &[9, 5]), c.ints("i", &[9, 1], vec![2; 9]));
    let sort = c.b.op(Op::SortByExpert { experts: 4, rows: 9 }, &[i]);
    let w = c.normal("w", &[4, 6, 5]);
    let rows = c.b.op(Op::Dispatch { weighted: false }, &[x, sort.result(1), sort.result(2)]);
    cases.push(
        c.finish(Op::GroupedMatMul { transpose_b: true, bias: false, precision: Precision::F32 }, &[rows, w, sort]),
    );
}

/// Updates of one tensor and of several, which kernels read by vectors of several widths.
fn optimizer(cases: &mut Vec<Case>) {
    let attrs = AdamWAttrs { beta1: 0.9.into(), beta2: 0.999.into(), epsilon: 1e-8.into(), weight_decay: 0.01.into() };
    for sizes in [vec![1], vec![33], vec![4096], vec![64, 96], vec![1, 3, 7, 17, 33, 64], vec![1; 9], vec![5, 0, 16]] {
        for scaled in [false, true] {
            let mut c = CaseBuilder::new(format!("adamw {sizes:?} scaled={scaled}"));
            let hyper = c.given("hyper", &[3], [1e-3f32, 0.271, 0.002_997].map(f64::from).to_vec());
            let scale = scaled.then(|| c.given("scale", &[], vec![0.25]));
            let mut names = Vec::new();
            for (t, &n) in sizes.iter().enumerate() {
                let own = ["p", "m", "v"].map(|kind| format!("{kind}{t}"));
                let [p, m, v] = [0, 1, 2].map(|i| {
                    let draw = |c: &mut CaseBuilder| if i == 2 { c.draw.normal().abs() } else { c.draw.normal() };
                    let values = (0..n).map(|_| draw(&mut c)).collect();
                    c.values.insert(own[i].clone(), Tensor::new([n], Data::F64(values)).unwrap());
                    c.b.state(&own[i], TensorType::f32([n]))
                });
                let operands = [p, c.normal(&format!("g{t}"), &[n]), m, v, hyper];
                let step = c.b.op(Op::AdamW(attrs), &operands.into_iter().chain(scale).collect::<Vec<_>>());
                names.extend(own.into_iter().zip((0..).map(|slot| step.result(slot))));
            }
            for (name, value) in names {
                c.b.update(name, value);
            }
            cases.push(c.end());
        }
    }
}

fn indices(cases: &mut Vec<Case>) {
    for (length, step) in [(1, 5), (7, 1), (33, -3), (1000, 128)] {
        let c = CaseBuilder::new(format!("ramp {length} by {step}"));
        cases.push(c.finish(Op::Ramp { length, step }, &[]));
    }
    for shape in [vec![1], vec![7, 3], vec![257]] {
        let n: usize = shape.iter().product();
        let mut c = CaseBuilder::new(format!("to float {shape:?}"));
        let x = c.ints("x", &shape, (0..n as i32).map(|i| i * i - 40).collect());
        cases.push(c.finish(Op::ToFloat, &[x]));
        let mut c = CaseBuilder::new(format!("to index {shape:?}"));
        let x = c.given("x", &shape, (0..n).map(|i| (i % 23) as f64 * 0.5 - 2.0).collect());
        cases.push(c.finish(Op::ToIndex { size: 7 }, &[x]));
        let mut c = CaseBuilder::new(format!("lookup {shape:?}"));
        let (ids, table) =
            (c.ints("ids", &shape, (0..n as i32).map(|i| i % 11 - 2).collect()), c.indices("t", &[7], 5));
        cases.push(c.finish(Op::Lookup, &[ids, table]));
    }
    let mut c = CaseBuilder::new("to index of what is no number");
    let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 1e30, -1e-30, 2.999, 3.0];
    let x = c.given("x", &[8], odd.map(|x| f64::from(x as f32)).to_vec());
    cases.push(c.finish(Op::ToIndex { size: 3 }, &[x]));
    for (sequences, time) in [(1, 1), (3, 7), (33, 1), (2, 64)] {
        let mut c = CaseBuilder::new(format!("previous {sequences}x{time}"));
        let ids = c.indices("ids", &[sequences * time], 65);
        cases.push(c.finish(Op::Previous { time }, &[ids]));
    }
    let mut c = CaseBuilder::new("columns that are not 0");
    let x = c.given("x", &[3, 5], (0..15).map(|i| f64::from(i % 4) - 1.0).collect());
    let y = c.b.nonzero(x);
    c.b.output("y", y);
    cases.push(c.end());
}

/// Slots that the sort has no row for, and indices that nothing has.
fn dropped(cases: &mut Vec<Case>) {
    for (n, e, k, rows) in [(7, 3, 1, 1), (17, 4, 2, 20), (33, 7, 3, 98), (5, 8, 8, 16)] {
        let name = format!("N={n} E={e} K={k} R={rows}");
        let mut c = CaseBuilder::new(format!("sort by expert into fewer rows {name}"));
        let i = c.experts("i", n, k, e, true);
        cases.push(c.finish(Op::SortByExpert { experts: e, rows }, &[i]));
        for weighted in [false, true] {
            let mut c = CaseBuilder::new(format!("dispatch to and combine from fewer rows {name} weighted={weighted}"));
            let (x, i) = (c.normal("x", &[n, 16]), c.experts("i", n, k, e, true));
            let sort = c.b.op(Op::SortByExpert { experts: e, rows }, &[i]);
            let weights = weighted.then(|| c.normal("weights", &[n, k]));
            let with = |x: Value| [vec![x, sort.result(1), sort.result(2)], weights.into_iter().collect()].concat();
            let down = c.b.op(Op::Dispatch { weighted }, &with(x));
            c.b.output("down", down);
            cases.push(c.finish(Op::Combine { weighted }, &with(down)));
        }
        let mut c = CaseBuilder::new(format!("combine weight grad from fewer rows {name}"));
        let (dz, y) = (c.normal("dz", &[n, 3]), c.normal("y", &[rows, 3]));
        let i = c.experts("i", n, k, e, false);
        let sort = c.b.op(Op::SortByExpert { experts: e, rows }, &[i]);
        cases.push(c.finish(Op::CombineWeightGrad, &[dz, y, sort.result(2)]));
    }
    let wrong = [0, 3, -1, 2, i32::MAX, 1, i32::MIN, 0, -7, 4, 2, 1];
    let mut c = CaseBuilder::new("gather last out of range");
    let (x, i) = (c.normal("x", &[6, 3]), c.ints("i", &[6, 2], wrong.to_vec()));
    cases.push(c.finish(Op::GatherLast, &[x, i]));
    let mut c = CaseBuilder::new("scatter last out of range");
    let (x, i) = (c.normal("x", &[6, 2]), c.ints("i", &[6, 2], wrong.to_vec()));
    cases.push(c.finish(Op::ScatterLast { size: 3 }, &[x, i]));
    let mut c = CaseBuilder::new("count out of range");
    let i = c.ints("i", &[6, 2], wrong.to_vec());
    cases.push(c.finish(Op::Count { size: 3 }, &[i]));
    let mut c = CaseBuilder::new("sort by expert out of range");
    let i = c.ints("i", &[6, 2], wrong.to_vec());
    cases.push(c.finish(Op::SortByExpert { experts: 3, rows: 5 }, &[i]));
    for priority in CapacityPriority::ALL {
        let mut c = CaseBuilder::new(format!("limit capacity by {} out of range", priority.name()));
        let (i, w) = (c.ints("i", &[6, 2], wrong.to_vec()), c.positive("w", &[6, 2]));
        let kept = c.b.limit_capacity(i, w, 3, 1, priority);
        c.b.output("kept", kept);
        c.differentiable.clear();
        cases.push(c.end());
    }
    // Six rows, twelve slots. Order and positions are not of one sort, so neither is the gradient of the other.
    let mut c = CaseBuilder::new("dispatch out of range");
    let (x, o, p) = (c.normal("x", &[6, 3]), c.ints("o", &[12], wrong.map(|i| i.wrapping_mul(4)).to_vec()), wrong);
    let p = c.ints("p", &[6, 2], p.map(|i| i.wrapping_mul(4)).to_vec());
    c.differentiable.clear();
    cases.push(c.finish(Op::Dispatch { weighted: false }, &[x, o, p]));
    let mut c = CaseBuilder::new("combine out of range");
    let (y, o) = (c.normal("y", &[6, 3]), c.ints("o", &[6], wrong[..6].to_vec()));
    let p = c.ints("p", &[6, 2], wrong.map(|i| i.wrapping_mul(3)).to_vec());
    c.differentiable.clear();
    cases.push(c.finish(Op::Combine { weighted: false }, &[y, o, p]));
}

/// Scores that are small binary fractions, so that the auction is exact in 32 bits.
fn balance(cases: &mut Vec<Case>) {
    for (n, e) in [(1, 1), (7, 1), (7, 3), (3, 7), (17, 4), (33, 7), (64, 8), (200, 6)] {
        for values in [1, 3, 64] {
            let mut c = CaseBuilder::new(format!("balanced assignment N={n} E={e} of {values} values"));
            let scores = (0..n * e).map(|_| f64::from(c.draw.below(values)) / 16.0 - 1.0).collect();
            let scores = c.given("scores", &[n, e], scores);
            cases.push(c.finish(Op::BalancedAssignment, &[scores]));
        }
        // A long auction: too long, with more tokens, for Mesa's software device.
        if n > 64 {
            continue;
        }
        let mut c = CaseBuilder::new(format!("balanced assignment N={n} E={e} with one favourite"));
        let scores = (0..n * e).map(|i| if i % e == e / 2 { 8.0 + (i % 5) as f64 } else { 0.0 }).collect();
        let scores = c.given("scores", &[n, e], scores);
        cases.push(c.finish(Op::BalancedAssignment, &[scores]));
    }
    for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut c = CaseBuilder::new(format!("balanced assignment with {odd}"));
        let scores = (0..21).map(|i| if i == 16 { odd } else { f64::from(i % 4) }).collect();
        let scores = c.given("scores", &[7, 3], scores);
        cases.push(c.finish(Op::BalancedAssignment, &[scores]));
    }
}

/// The whole table.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    elementwise(&mut cases);
    reductions(&mut cases);
    linear(&mut cases);
    fused_products(&mut cases);
    fused_producers(&mut cases);
    dispatched_products(&mut cases);
    products_that_unpack(&mut cases);
    norms(&mut cases);
    attention(&mut cases);
    embedding_and_loss(&mut cases);
    randomness(&mut cases);
    routing(&mut cases);
    indices(&mut cases);
    dropped(&mut cases);
    balance(&mut cases);
    optimizer(&mut cases);
    cases
}

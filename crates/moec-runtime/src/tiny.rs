//! A small mixture model on the reference interpreter, for tests: everything that a real one has (a router with a state
//! and an auxiliary loss, dropout, clipping) in a graph that trains in milliseconds.

use crate::data::{Corpus, Dataset};
use crate::vocab::Vocab;
use moec_ir::{Binary, Builder, Function, Graph, Init, Op, TOKEN_TABLE, Tensor, TensorType, Unary};
use moec_plan::{
    Backend, Interpreter, Optimizer, Program, Session, StepOptions, Wrt, accumulate, add_optimizer, differentiate, plan,
};

pub(crate) const CONTEXT: usize = 5;
pub(crate) const BATCH: usize = 3;
/// Texts that are written at once.
const TOGETHER: usize = 2;
const WIDTH: usize = 7;
const EXPERTS: usize = 3;
const TEXT: &str = "the cat sat on the mat and the dog sat on the log. ";

pub(crate) struct Tiny {
    pub(crate) program: Program,
    pub(crate) data: Dataset,
    pub(crate) parameters: Vec<(String, Init)>,
}

/// Logits [N, V] of a position-aware mixture of linear experts.
fn forward(b: &mut Builder, vocab: usize, batch: usize, train: bool) -> moec_ir::Value {
    let n = batch * CONTEXT;
    let tokens = b.input("tokens", TensorType::i32([n]));
    let table = b.parameter(TOKEN_TABLE, [vocab, WIDTH]);
    let position = b.parameter("embed.position.weight", [CONTEXT, WIDTH]);
    let x = b.op(Op::Embed, &[tokens, table]);
    let x = b.reshape(x, [batch, CONTEXT, WIDTH]);
    let x = b.add(x, position);
    let x = b.reshape(x, [n, WIDTH]);
    mixture(b, x, vocab, train)
}

/// Logits [N, V] of tokens with their positions [N, W].
fn mixture(b: &mut Builder, mut x: moec_ir::Value, vocab: usize, train: bool) -> moec_ir::Value {
    let n = b.shape(x)[0];
    if train {
        let rng = b.input("rng", TensorType::i32([4]));
        x = b.dropout(x, 0.1, rng);
    }
    let router = b.parameter("moe.router.weight", [EXPERTS, WIDTH]);
    let experts = b.parameter("moe.experts.weight", [EXPERTS, WIDTH]);
    let seen = b.state("moe.seen", TensorType::f32([EXPERTS]));
    let scores = b.linear(x, router, None);
    let (values, indices) = b.top_k(scores, 2);
    let weights = b.softmax(values);
    let gates = b.scatter_last(weights, indices, EXPERTS);
    let mixed = b.matmul(gates, experts);
    let x = b.add(x, mixed);
    let load = b.count(indices, EXPERTS);
    let total = b.add(seen, load);
    if train {
        b.update("moe.seen", total);
    }
    b.output("load.moe", load);
    let zero = b.fill(0.0, []);
    b.output("dropped.moe", zero);
    let log = b.unary(Unary::Log, weights);
    let plogp = b.mul(weights, log);
    let entropy = b.sum_all(plogp);
    let entropy = b.scale(entropy, -1.0 / n as f64);
    b.output("entropy.moe", entropy);
    let share = b.scale(load, 1.0 / (2 * n) as f64);
    let squares = b.mul(share, share);
    let balance = b.sum_all(squares);
    let balance = b.scale(balance, EXPERTS as f64);
    b.output("balance.moe", balance);
    let importance = b.mean(gates, &[0]);
    let importance = b.binary(Binary::Mul, importance, importance);
    let importance = b.sum_all(importance);
    b.output("aux.moe.importance", importance);
    let unembed = b.parameter("unembed.weight", [vocab, WIDTH]);
    let bias = b.parameter("unembed.bias", [vocab]);
    b.linear(x, unembed, Some(bias))
}

fn with_loss(vocab: usize, train: bool) -> Graph {
    let mut b = Builder::new();
    let logits = forward(&mut b, vocab, BATCH, train);
    let targets = b.input("targets", TensorType::i32([BATCH * CONTEXT]));
    let loss = b.op(Op::CrossEntropy, &[logits, targets]);
    b.output("loss", loss);
    if let Some(importance) = b.graph().output("aux.moe.importance") {
        let weighted = b.scale(importance, 0.01);
        let objective = b.add(loss, weighted);
        b.output("objective", objective);
    }
    b.finish().unwrap()
}

impl Tiny {
    pub(crate) fn new() -> Self {
        Self::trained_by(&Optimizer::default())
    }

    pub(crate) fn trained_by(optimizer: &Optimizer) -> Self {
        Self::in_batches(optimizer, 1)
    }

    /// With steps of several batches.
    pub(crate) fn in_batches(optimizer: &Optimizer, batches: usize) -> Self {
        let text = TEXT.repeat(8);
        let corpus = Corpus::from_bytes("cats", text.clone().into_bytes()).unwrap();
        let data = Dataset::new(&corpus, Vocab::of_text(&text), 0.8).unwrap();
        let vocab = data.vocab().len();
        let train = differentiate(&with_loss(vocab, true), "objective", &Wrt::Parameters).unwrap();
        let adding = accumulate(&train, optimizer).unwrap();
        let step = StepOptions {
            batches,
            hidden: ["moe.router.weight".to_string()].into(),
            ..StepOptions::clipped(Some(1.0))
        };
        let train = add_optimizer(&train, optimizer, &step).unwrap();
        let evaluate = with_loss(vocab, false);
        let mut b = Builder::new();
        let logits = forward(&mut b, vocab, 1, false);
        b.output("logits", logits);
        let logits = b.finish().unwrap();
        let mut b = Builder::new();
        let all = forward(&mut b, vocab, TOGETHER, false);
        let rows = b.input("rows", TensorType::i32([TOGETHER]));
        let last = b.op(Op::Embed, &[rows, all]);
        b.output("logits", last);
        let next = b.finish().unwrap();
        // No token looks at others here, so there is nothing to keep of them.
        let mut b = Builder::new();
        let [tokens, positions] = ["tokens", "positions"].map(|name| b.input(name, TensorType::i32([TOGETHER])));
        let table = b.parameter(TOKEN_TABLE, [vocab, WIDTH]);
        let places = b.parameter("embed.position.weight", [CONTEXT, WIDTH]);
        let (x, place) = (b.op(Op::Embed, &[tokens, table]), b.op(Op::Embed, &[positions, places]));
        let x = b.add(x, place);
        let newest = mixture(&mut b, x, vocab, false);
        b.output("logits", newest);
        let decode = b.finish().unwrap();
        let mut functions = vec![
            (Function::TrainStep.name().to_string(), &train),
            (Function::Evaluate.name().to_string(), &evaluate),
            (Function::Logits.name().to_string(), &logits),
            (Function::Next.name().to_string(), &next),
            (Function::Decode.name().to_string(), &decode),
        ];
        if batches > 1 {
            functions.push((Function::Accumulate.name().to_string(), &adding));
        }
        let program = plan(&functions).unwrap();
        let normal = Init::Normal { std: 0.2.into() };
        let parameters = [
            (TOKEN_TABLE, normal),
            ("embed.position.weight", normal),
            ("moe.router.weight", normal),
            ("moe.experts.weight", normal),
            ("unembed.weight", normal),
            ("unembed.bias", Init::Constant(0.0.into())),
        ];
        Self { program, data, parameters: parameters.map(|(name, init)| (name.to_string(), init)).to_vec() }
    }

    pub(crate) fn session(&self) -> Box<dyn Session> {
        Interpreter.prepare(&self.program).unwrap()
    }

    pub(crate) fn states(&self) -> Vec<(String, Tensor)> {
        vec![("moe.seen".to_string(), Tensor::floats([0.0; EXPERTS]))]
    }
}

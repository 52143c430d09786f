//! makeMoE's model: eight blocks of causal attention and noisy top-2 of eight experts.
//!
//! Letters: B batch, T time, C width, H heads, D width of a head, N = B*T tokens, E experts, K experts per token.

use burn::module::Module;
use burn::nn::{
    Dropout, DropoutConfig, Embedding, EmbeddingConfig, Initializer, LayerNorm, LayerNormConfig, Linear, LinearConfig,
};
use burn::tensor::activation::{relu, softmax, softplus};
use burn::tensor::{Bool, Device, Distribution, IndexingUpdateOp, Int, Tensor, TensorData};

/// T.
pub const CONTEXT: usize = 32;
const WIDTH: usize = 128;
const HEADS: usize = 8;
const HEAD: usize = WIDTH / HEADS;
const BLOCKS: usize = 8;
const EXPERTS: usize = 8;
const CHOSEN: usize = 2;
const DROPOUT: f64 = 0.1;

/// Kaiming normal weights.
fn linear(inputs: usize, outputs: usize, bias: bool, device: &Device) -> Linear {
    let initializer = Initializer::KaimingNormal { gain: std::f64::consts::SQRT_2, fan_out_only: false };
    LinearConfig::new(inputs, outputs).with_bias(bias).with_initializer(initializer).init(device)
}

fn dropout() -> Dropout {
    DropoutConfig::new(DROPOUT).init()
}

#[derive(Module, Debug)]
struct Attention {
    qkv: Linear,
    project: Linear,
    dropout: Dropout,
}

impl Attention {
    fn new(device: &Device) -> Self {
        Attention {
            qkv: linear(WIDTH, 3 * WIDTH, false, device),
            project: linear(WIDTH, WIDTH, true, device),
            dropout: dropout(),
        }
    }

    /// [B, T, C] to [B, T, C]; the mask [B, H, T, T] is true above the diagonal.
    fn forward(&self, x: Tensor<3>, future: Tensor<4, Bool>) -> Tensor<3> {
        let [batch, time, _] = x.dims();
        let qkv = self.qkv.forward(x).reshape([batch, time, 3, HEADS, HEAD]).permute([2, 0, 3, 1, 4]);
        let part = |i: usize| qkv.clone().narrow(0, i, 1).squeeze_dim::<4>(0);
        let (q, k, v) = (part(0), part(1), part(2));
        // makeMoE divides by the root of the width, not of the head's width.
        let scores = q.matmul(k.swap_dims(2, 3)) * (WIDTH as f64).powf(-0.5);
        let weights = self.dropout.forward(softmax(scores.mask_fill(future, f32::NEG_INFINITY), 3));
        let heads = weights.matmul(v).swap_dims(1, 2).reshape([batch, time, WIDTH]);
        self.dropout.forward(self.project.forward(heads))
    }
}

#[derive(Module, Debug)]
struct Expert {
    up: Linear,
    down: Linear,
}

#[derive(Module, Debug)]
struct Mixture {
    router: Linear,
    noise: Linear,
    experts: Vec<Expert>,
    dropout: Dropout,
}

impl Mixture {
    fn new(device: &Device) -> Self {
        let expert =
            |_| Expert { up: linear(WIDTH, 4 * WIDTH, true, device), down: linear(4 * WIDTH, WIDTH, true, device) };
        Mixture {
            router: linear(WIDTH, EXPERTS, true, device),
            noise: linear(WIDTH, EXPERTS, true, device),
            experts: (0..EXPERTS).map(expert).collect(),
            dropout: dropout(),
        }
    }

    /// [N, C] to [N, C].
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let device = x.device();
        let [tokens, _] = x.dims();
        let clean = self.router.forward(x.clone());
        let deviation = softplus(self.noise.forward(x.clone()), 1.0);
        let noise = clean.random_like(Distribution::Normal(0.0, 1.0));
        let (top, chosen) = (clean + noise * deviation).topk_with_indices(CHOSEN, 1);
        let gates = softmax(top, 1).reshape([tokens * CHOSEN, 1]);

        let mut rows: Vec<Vec<i64>> = vec![Vec::new(); EXPERTS];
        let mut slots: Vec<Vec<i64>> = vec![Vec::new(); EXPERTS];
        for (slot, expert) in chosen.into_data().iter::<i64>().enumerate() {
            rows[expert as usize].push((slot / CHOSEN) as i64);
            slots[expert as usize].push(slot as i64);
        }
        let mut out = x.zeros_like();
        for ((expert, rows), slots) in self.experts.iter().zip(rows).zip(slots) {
            if rows.is_empty() {
                continue;
            }
            let indices = |list: Vec<i64>| {
                let length = list.len();
                Tensor::<1, Int>::from_data(TensorData::new(list, [length]), &device)
            };
            let (rows, slots) = (indices(rows), indices(slots));
            let hidden = relu(expert.up.forward(x.clone().select(0, rows.clone())));
            let y = self.dropout.forward(expert.down.forward(hidden)) * gates.clone().select(0, slots);
            out = out.select_assign(0, rows, y, IndexingUpdateOp::Add);
        }
        out
    }
}

#[derive(Module, Debug)]
struct Block {
    norm_attention: LayerNorm,
    attention: Attention,
    norm_mixture: LayerNorm,
    mixture: Mixture,
}

/// The language model.
#[derive(Module, Debug)]
pub struct Model {
    characters: Embedding,
    positions: Embedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
    unembed: Linear,
}

impl Model {
    /// Draws every parameter.
    pub fn new(vocabulary: usize, device: &Device) -> Self {
        let norm = || LayerNormConfig::new(WIDTH).init(device);
        let block = |_| Block {
            norm_attention: norm(),
            attention: Attention::new(device),
            norm_mixture: norm(),
            mixture: Mixture::new(device),
        };
        Model {
            characters: EmbeddingConfig::new(vocabulary, WIDTH).init(device),
            positions: EmbeddingConfig::new(CONTEXT, WIDTH).init(device),
            blocks: (0..BLOCKS).map(block).collect(),
            norm: norm(),
            unembed: linear(WIDTH, vocabulary, true, device),
        }
    }

    /// Tokens [B, T] to logits [N, V].
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<2> {
        let device = tokens.device();
        let [batch, time] = tokens.dims();
        // False on and below the diagonal.
        let future = Tensor::<2, Bool>::tril_mask([time, time], 0, &device).unsqueeze::<4>();
        let future = future.expand([batch, HEADS, time, time]);
        let positions = Tensor::<1, Int>::arange(0..time as i64, &device).unsqueeze::<2>();
        let mut x = self.characters.forward(tokens) + self.positions.forward(positions);
        for block in &self.blocks {
            let y = block.attention.forward(block.norm_attention.forward(x.clone()), future.clone());
            x = x + y;
            let normed = block.norm_mixture.forward(x.clone()).reshape([batch * time, WIDTH]);
            x = x + block.mixture.forward(normed).reshape([batch, time, WIDTH]);
        }
        self.unembed.forward(self.norm.forward(x).reshape([batch * time, WIDTH]))
    }
}

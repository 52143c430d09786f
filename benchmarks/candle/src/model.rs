//! makeMoE's model: eight blocks of causal attention and noisy top-2 of eight experts.
//!
//! Letters: B batch, T time, C width, H heads, D width of a head, N = B*T tokens, E experts, K experts per token.

use candle_core::{D, Result, Tensor};
use candle_nn::{Init, Linear, Module, VarBuilder, ops};
use std::cmp::Ordering;

/// T.
pub const CONTEXT: usize = 32;
const WIDTH: usize = 128;
const HEADS: usize = 8;
const HEAD: usize = WIDTH / HEADS;
const BLOCKS: usize = 8;
const EXPERTS: usize = 8;
const CHOSEN: usize = 2;
const DROPOUT: f32 = 0.1;

/// Kaiming normal weights, and biases as PyTorch draws them.
fn linear(inputs: usize, outputs: usize, bias: bool, vb: VarBuilder) -> Result<Linear> {
    let weight = vb.get_with_hints((outputs, inputs), "weight", candle_nn::init::DEFAULT_KAIMING_NORMAL)?;
    let bound = 1.0 / (inputs as f64).sqrt();
    let bias = bias.then(|| vb.get_with_hints(outputs, "bias", Init::Uniform { lo: -bound, up: bound })).transpose()?;
    Ok(Linear::new(weight, bias))
}

/// Layer norm by candle's differentiable formula: its fused kernel has no backward.
struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    fn new(vb: VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints(WIDTH, "weight", Init::Const(1.0))?;
        Ok(LayerNorm { weight, bias: vb.get_with_hints(WIDTH, "bias", Init::Const(0.0))? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm_slow(x, &self.weight, &self.bias, 1e-5)
    }
}

struct Attention {
    qkv: Linear,
    project: Linear,
    /// [T, T]: 0 on and below the diagonal, minus infinity above.
    mask: Tensor,
}

impl Attention {
    fn new(vb: VarBuilder) -> Result<Self> {
        let mask: Vec<f32> =
            (0..CONTEXT * CONTEXT).map(|i| if i % CONTEXT > i / CONTEXT { f32::NEG_INFINITY } else { 0.0 }).collect();
        Ok(Attention {
            qkv: linear(WIDTH, 3 * WIDTH, false, vb.pp("qkv"))?,
            project: linear(WIDTH, WIDTH, true, vb.pp("project"))?,
            mask: Tensor::from_vec(mask, (CONTEXT, CONTEXT), vb.device())?,
        })
    }

    /// [B, T, C] to [B, T, C].
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, time, _) = x.dims3()?;
        let qkv =
            self.qkv.forward(x)?.reshape((batch, time, 3, HEADS, HEAD))?.permute((2, 0, 3, 1, 4))?.contiguous()?;
        let (q, k, v) = (qkv.get(0)?, qkv.get(1)?, qkv.get(2)?);
        // makeMoE divides by the root of the width, not of the head's width.
        let scores = (q.matmul(&k.t()?)? * (WIDTH as f64).powf(-0.5))?.broadcast_add(&self.mask)?;
        let weights = ops::dropout(&ops::softmax(&scores, D::Minus1)?, DROPOUT)?;
        let heads = weights.matmul(&v)?.transpose(1, 2)?.reshape((batch, time, WIDTH))?;
        ops::dropout(&self.project.forward(&heads)?, DROPOUT)
    }
}

struct Expert {
    up: Linear,
    down: Linear,
}

struct Mixture {
    router: Linear,
    noise: Linear,
    experts: Vec<Expert>,
}

impl Mixture {
    fn new(vb: VarBuilder) -> Result<Self> {
        let expert = |e: usize| {
            let vb = vb.pp(format!("experts.{e}"));
            Ok(Expert {
                up: linear(WIDTH, 4 * WIDTH, true, vb.pp("up"))?,
                down: linear(4 * WIDTH, WIDTH, true, vb.pp("down"))?,
            })
        };
        Ok(Mixture {
            router: linear(WIDTH, EXPERTS, true, vb.pp("router"))?,
            noise: linear(WIDTH, EXPERTS, true, vb.pp("noise"))?,
            experts: (0..EXPERTS).map(expert).collect::<Result<_>>()?,
        })
    }

    /// [N, C] to [N, C].
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let clean = self.router.forward(x)?;
        let deviation = (self.noise.forward(x)?.exp()? + 1.0)?.log()?;
        let logits = (&clean + (clean.randn_like(0.0, 1.0)? * deviation)?)?;

        // The choice has no gradient, and candle no top-k: it is made here.
        let tokens = x.dim(0)?;
        let mut chosen = Vec::with_capacity(tokens * CHOSEN);
        let mut rows: Vec<Vec<u32>> = vec![Vec::new(); EXPERTS];
        let mut slots: Vec<Vec<u32>> = vec![Vec::new(); EXPERTS];
        for (token, logits) in logits.to_vec2::<f32>()?.iter().enumerate() {
            let mut order: Vec<usize> = (0..EXPERTS).collect();
            order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap_or(Ordering::Equal));
            for (slot, &expert) in order[..CHOSEN].iter().enumerate() {
                rows[expert].push(token as u32);
                slots[expert].push((token * CHOSEN + slot) as u32);
                chosen.push(expert as u32);
            }
        }
        let chosen = Tensor::from_vec(chosen, (tokens, CHOSEN), x.device())?;
        let gates = ops::softmax(&logits.gather(&chosen, 1)?, D::Minus1)?.reshape((tokens * CHOSEN, 1))?;

        let mut out = x.zeros_like()?;
        for ((expert, rows), slots) in self.experts.iter().zip(rows).zip(slots) {
            if rows.is_empty() {
                continue;
            }
            let (rows, slots) = (Tensor::new(rows, x.device())?, Tensor::new(slots, x.device())?);
            let hidden = expert.up.forward(&x.index_select(&rows, 0)?)?.relu()?;
            let y = ops::dropout(&expert.down.forward(&hidden)?, DROPOUT)?;
            out = out.index_add(&rows, &y.broadcast_mul(&gates.index_select(&slots, 0)?)?, 0)?;
        }
        Ok(out)
    }
}

struct Block {
    norm_attention: LayerNorm,
    attention: Attention,
    norm_mixture: LayerNorm,
    mixture: Mixture,
}

/// The language model.
pub struct Model {
    characters: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    unembed: Linear,
}

impl Model {
    /// Draws every parameter.
    pub fn new(vocabulary: usize, vb: VarBuilder) -> Result<Self> {
        let normal = Init::Randn { mean: 0.0, stdev: 1.0 };
        let block = |i: usize| {
            let vb = vb.pp(format!("blocks.{i}"));
            Ok(Block {
                norm_attention: LayerNorm::new(vb.pp("norm_attention"))?,
                attention: Attention::new(vb.pp("attention"))?,
                norm_mixture: LayerNorm::new(vb.pp("norm_mixture"))?,
                mixture: Mixture::new(vb.pp("mixture"))?,
            })
        };
        Ok(Model {
            characters: vb.get_with_hints((vocabulary, WIDTH), "characters", normal)?,
            positions: vb.get_with_hints((CONTEXT, WIDTH), "positions", normal)?,
            blocks: (0..BLOCKS).map(block).collect::<Result<_>>()?,
            norm: LayerNorm::new(vb.pp("norm"))?,
            unembed: linear(WIDTH, vocabulary, true, vb.pp("unembed"))?,
        })
    }

    /// Tokens [B, T] to logits [N, V].
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let (batch, time) = tokens.dims2()?;
        let characters = self.characters.index_select(&tokens.flatten_all()?, 0)?.reshape((batch, time, WIDTH))?;
        let mut x = characters.broadcast_add(&self.positions)?;
        for block in &self.blocks {
            x = (&x + block.attention.forward(&block.norm_attention.forward(&x)?)?)?;
            let tokens = block.norm_mixture.forward(&x)?.reshape((batch * time, WIDTH))?;
            x = (&x + block.mixture.forward(&tokens)?.reshape((batch, time, WIDTH))?)?;
        }
        self.unembed.forward(&self.norm.forward(&x)?.reshape((batch * time, WIDTH))?)
    }
}

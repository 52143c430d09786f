//! The model of `specs/noisy_top2.moe` in candle: a peer that moec is measured against. Run as `peer-candle TEXT`.
//!
//! Written for speed within what candle offers: one product for query, key and value, all heads at once, and every
//! expert runs on just the tokens that chose it.

mod model;

use candle_core::{DType, Device, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap};
use model::{CONTEXT, Model};
use peer::{BATCH, Text};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: peer-candle TEXT")?;
    let mut text = Text::read(&path)?;
    let device = Device::Cpu;
    let variables = VarMap::new();
    let model = Model::new(text.vocabulary(), VarBuilder::from_varmap(&variables, DType::F32, &device))?;
    let parameters = variables.all_vars().iter().map(|variable| variable.elem_count()).sum();
    let recipe = ParamsAdamW { lr: 1e-3, weight_decay: 0.01, ..ParamsAdamW::default() };
    let mut optimizer = AdamW::new(variables.all_vars(), recipe)?;

    peer::serve(parameters, || {
        let (tokens, targets) = text.batch(CONTEXT);
        let tokens = Tensor::from_vec(tokens, (BATCH, CONTEXT), &device)?;
        let targets = Tensor::from_vec(targets, BATCH * CONTEXT, &device)?;
        let loss = candle_nn::loss::cross_entropy(&model.forward(&tokens)?, &targets)?;
        optimizer.backward_step(&loss)?;
        Ok(loss.to_scalar()?)
    })
}

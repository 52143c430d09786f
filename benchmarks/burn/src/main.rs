//! The model of `specs/noisy_top2.moe` in burn on its CPU backend `flex`: a peer that moec is measured against. Run as
//! `peer-burn TEXT`.
//!
//! Written for speed within what burn offers: one product for query, key and value, all heads at once, and every expert
//! runs on just the tokens that chose it.

mod model;

use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use model::{CONTEXT, Model};
use peer::{BATCH, Text};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: peer-burn TEXT")?;
    let mut text = Text::read(&path)?;
    let device = Device::flex().autodiff();
    let mut model = Model::new(text.vocabulary(), &device);
    let parameters = model.num_params();
    let mut optimizer = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.01).init();
    let cross_entropy = CrossEntropyLossConfig::new().init(&device);

    peer::serve(parameters, || {
        let (tokens, targets) = text.batch(CONTEXT);
        let tokens: Vec<i64> = tokens.into_iter().map(i64::from).collect();
        let targets: Vec<i64> = targets.into_iter().map(i64::from).collect();
        let tokens = Tensor::<2, Int>::from_data(TensorData::new(tokens, [BATCH, CONTEXT]), &device);
        let targets = Tensor::<1, Int>::from_data(TensorData::new(targets, [BATCH * CONTEXT]), &device);
        let loss = cross_entropy.forward(model.forward(tokens), targets);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        // The optimiser takes the model and gives it back.
        model = optimizer.step(1e-3, model.clone(), gradients);
        Ok(loss.into_scalar::<f32>())
    })
}

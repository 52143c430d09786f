//! How a training begins: the recipe as the loop's configuration, and the first values of the tensors that routers keep.

use crate::error::Error;
use crate::locate::Located;
use moec_ir::{Data, Invariant, TOKEN_TABLE, Tensor};
use moec_model::{Recipe, StateInit, TrainingText};
use moec_runtime::{Dataset, Split, TrainConfig, Vocab};
use std::path::Path;

/// The recipe as the loop takes it.
pub fn train_config(recipe: &Recipe) -> TrainConfig {
    TrainConfig {
        steps: recipe.steps,
        seed: recipe.seed,
        optimizer: recipe.optimizer.clone(),
        schedule: recipe.schedule.clone(),
        batches: recipe.accumulate,
        log_every: recipe.log_every,
        evaluate_every: recipe.evaluate.every,
        // More than can be counted are as many as can be.
        evaluate_batches: usize::try_from(recipe.evaluate.batches).unwrap_or(usize::MAX),
        patience: recipe.evaluate.patience,
        checkpoint_every: recipe.checkpoint_every,
        keep: recipe.checkpoints_kept.map(|keep| usize::try_from(keep).unwrap_or(usize::MAX)),
        keep_best: recipe.best_kept,
    }
}

/// The first values of routers' states; tables are computed from the part of the text that is trained on. Runs that they
/// name are looked for from `folder`, which is the spec's.
///
/// # Errors
/// When a table cannot be computed from this text.
pub fn initial_states(
    states: &[(String, StateInit)],
    dataset: &Dataset,
    folder: &Path,
) -> Result<Vec<(String, Tensor)>, Error> {
    let embeddings = |run: &str| token_vectors(&folder.join(run), dataset.vocab());
    let vocab = dataset.vocab().len();
    if states.is_empty() {
        return Ok(Vec::new());
    }
    let tokens = dataset.tokens(Split::Train).to_vec();
    let text = TrainingText { tokens: &tokens, vocab, embeddings: &embeddings };
    let resolve = |(name, init): &(String, StateInit)| match init.resolve(&text) {
        Ok(tensor) => Ok((name.clone(), tensor)),
        Err(reason) => Err(Error::Table { name: name.clone(), reason }),
    };
    states.iter().map(resolve).collect()
}

/// The token vectors of a trained run, `[V, C]` in the order of `vocab`.
fn token_vectors(run: &Path, vocab: &Vocab) -> Result<Tensor, String> {
    let damaged = || "the token vectors are damaged".to_string();
    let read = |folder: &Path| Ok((folder.to_path_buf(), moec_runtime::read_manifest(folder)?));
    let located = Located::at(run).and_then(|located| located.read(read));
    let ((folder, manifest), _) = located.map_err(|e| e.to_string())?;
    let trained = manifest.vocab().ok_or_else(|| format!("{}: the vocabulary is damaged", folder.display()))?;
    let tensors = moec_runtime::read_tensors(&folder.join("model.safetensors")).map_err(|e| e.to_string())?;
    let table = tensors.get(TOKEN_TABLE).ok_or_else(|| format!("{} has no token vectors", folder.display()))?;
    let &[_, width] = table.shape() else { return Err(damaged()) };
    let values = table.to_f32();
    let rows = (0..vocab.len() as i32).map(|token| {
        let character =
            vocab.character(token).invariant("every number below the size of a vocabulary is a character's");
        let row = trained.id(character).and_then(|id| usize::try_from(id).ok());
        row.and_then(|row| values.chunks(width).nth(row))
            .ok_or_else(|| format!("{} was trained on a text without {character:?}", folder.display()))
    });
    let rows = rows.collect::<Result<Vec<_>, String>>()?.concat();
    Tensor::new(vec![vocab.len(), width], Data::F32(rows)).ok_or_else(damaged)
}

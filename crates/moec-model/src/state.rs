//! What the states of routing strategies start as: given values, or tables computed from the training text.

use std::fmt;
use std::sync::Arc;

use moec_ir::{Invariant, Tensor, TensorType};

/// Initial value of a state.
#[derive(Clone, Debug)]
pub enum StateInit {
    /// These numbers.
    Tensor(Tensor),
    /// Computed from the training text when a run starts; afterwards checkpoints hold it.
    Text(StateSource),
}

/// The text that a run trains on, and what was trained before it.
pub struct TrainingText<'a> {
    /// Its tokens: the part for training, in order.
    pub tokens: &'a [i32],
    /// Size of the vocabulary, V.
    pub vocab: usize,
    /// Reads the token vectors `[V, C]` of the run in a folder, in the order of this vocabulary.
    pub embeddings: &'a dyn Fn(&str) -> Result<Tensor, String>,
}

impl TrainingText<'_> {
    /// How often each token occurs, `[V]`.
    pub fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.vocab];
        for &token in self.tokens {
            let count = usize::try_from(token).ok().and_then(|token| counts.get_mut(token));
            *count.invariant("each token has a number of the vocabulary") += 1;
        }
        counts
    }
}

type Compute = dyn Fn(&TrainingText<'_>) -> Result<Tensor, String> + Send + Sync;

/// How a state is computed from the training text.
#[derive(Clone)]
pub struct StateSource {
    ty: TensorType,
    compute: Arc<Compute>,
}

impl fmt::Debug for StateSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateSource").field("ty", &self.ty).finish_non_exhaustive()
    }
}

impl StateSource {
    /// A state of type `ty` that `compute` fills; its error is a sentence for the user.
    pub fn new(
        ty: TensorType,
        compute: impl Fn(&TrainingText<'_>) -> Result<Tensor, String> + Send + Sync + 'static,
    ) -> Self {
        StateSource { ty, compute: Arc::new(compute) }
    }

    /// Type of the state.
    pub fn ty(&self) -> &TensorType {
        &self.ty
    }
}

impl StateInit {
    /// The initial value.
    ///
    /// # Errors
    /// A sentence that says why it cannot be computed from this text.
    pub fn resolve(&self, text: &TrainingText<'_>) -> Result<Tensor, String> {
        match self {
            StateInit::Tensor(tensor) => Ok(tensor.clone()),
            StateInit::Text(source) => {
                let tensor = (source.compute)(text)?;
                if tensor.ty() == source.ty {
                    Ok(tensor)
                } else {
                    Err(format!("a table of type {} was computed as {}", source.ty, tensor.ty()))
                }
            }
        }
    }
}

//! What nodes and persistent tensors are for, each with one word in every text form.

use crate::weights::WeightFormat;
use std::fmt;

/// The part of a training step that a node belongs to.
///
/// A graph has a current phase ([`crate::Graph::set_phase`]), which every node that is added takes on. Later phases are
/// greater: nothing of the forward pass needs a value of a later one, apart from the states that updates change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Up to the loss, and its gradient where one operation makes both.
    #[default]
    Forward,
    /// From the loss to the gradients, clipping included.
    Backward,
    /// The updates of the parameters.
    Optimizer,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Phase; 3] = [Phase::Forward, Phase::Backward, Phase::Optimizer];

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Forward => "forward",
            Phase::Backward => "backward",
            Phase::Optimizer => "optimizer",
        }
    }
}

/// What a state is for: a tensor that persists between runs and is not trained by gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateRole {
    /// Kept by a router: tables, balance biases. Part of the trained model.
    #[default]
    Router,
    /// A moment of the optimiser: part of the training, not of the model.
    Optimizer,
    /// What the batches of a step add up to before the last: 0 between steps, and so no part of checkpoints.
    Sum,
    /// Keys and values of the tokens that a sequence has had, while it is written: no part of the model.
    Cache,
    /// A parameter with its last two axes swapped, in a program that does not change it. Checkpoints hold the
    /// parameter.
    Transposed,
    /// A parameter in panels of columns, in a program that does not change it; see [`WeightFormat`]. Checkpoints hold the
    /// parameter.
    Packed(WeightFormat),
    /// What the columns of a packed parameter are multiplied by.
    Scale,
}

impl StateRole {
    /// Every role.
    pub const ALL: [StateRole; 9] = [
        StateRole::Router,
        StateRole::Optimizer,
        StateRole::Sum,
        StateRole::Cache,
        StateRole::Transposed,
        StateRole::Packed(WeightFormat::F32),
        StateRole::Packed(WeightFormat::Bf16),
        StateRole::Packed(WeightFormat::Int8),
        StateRole::Scale,
    ];

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            StateRole::Router => "router",
            StateRole::Optimizer => "optimizer",
            StateRole::Sum => "sum",
            StateRole::Cache => "cache",
            StateRole::Transposed => "transposed",
            StateRole::Packed(WeightFormat::F32) => "packed_f32",
            StateRole::Packed(WeightFormat::Bf16) => "packed_bf16",
            StateRole::Packed(WeightFormat::Int8) => "packed_int8",
            StateRole::Scale => "scale",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for StateRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

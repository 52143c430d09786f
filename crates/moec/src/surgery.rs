//! Mixtures put together from trained runs, and taken apart again, with a certificate of what was kept.
//!
//! | what | from | to |
//! |---|---|---|
//! | [`merge`] | dense runs (or mixtures), by a [`MergeRecipe`] | a mixture whose experts they are |
//! | [`extract`] | a mixture | the dense run of one expert |
//! | [`prune`] | a mixture | one with fewer experts |
//!
//! Everything here is pure: runs are given as a [`Subject`], what comes out is another, and who calls writes it. The new
//! model is a text (`text.rs`) made from the text of a run by replacing its feed-forward layers, so that what the
//! user wrote stays; its tensors are those of the runs (`assemble.rs`), with rows of the router from prompts
//! (`gates.rs`). What the new model must equal is measured before it is used ([`Certificate`]).

mod apart;
mod assemble;
mod certificate;
mod forward;
mod gates;
mod layers;
mod merge;
mod recipe;
mod subject;
#[cfg(test)]
mod tests;
mod text;

pub use apart::{Kept, Taken, extract, prune, usage};
pub use certificate::{Certificate, Claim, Distance, Measured, TOLERANCE, Witnesses};
pub(crate) use forward::each_window;
pub use forward::windows_of;
pub use merge::{Merged, Sources, merge};
pub use recipe::{ExpertSource, Gates, MergeRecipe, SliceScale, Trunk};
pub use subject::Subject;

use crate::error::Error;
use moec_ir::TensorType;
use std::fmt;

/// Why runs cannot be put together or taken apart.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SurgeryError {
    /// The recipe asks for what cannot be.
    #[error("{0}")]
    Recipe(String),
    /// Two runs were trained on other characters.
    #[error("{a} and {b} have other vocabularies: {difference}")]
    Vocabulary {
        /// A run.
        a: String,
        /// Another one.
        b: String,
        /// The first difference.
        difference: String,
    },
    /// A tensor that is to come from a run is not there.
    #[error("{run} has no tensor `{name}`, from which `{of}` is to be made")]
    Missing {
        /// The run.
        run: String,
        /// Its tensor.
        name: String,
        /// The tensor of the new model.
        of: String,
    },
    /// Two tensors that belong together have other shapes.
    #[error("{0}")]
    Shape(Box<ShapeDifference>),
    /// Two layers that belong together compute something else.
    #[error("{0}")]
    Meaning(Box<MeaningDifference>),
    /// The new model is not what it must be.
    #[error("the new model is not what it must be: {claim}, but logits differ by {difference:e}")]
    Broken {
        /// What should hold.
        claim: String,
        /// By how much it does not.
        difference: f64,
    },
}

/// The refusal of what a recipe asks for.
fn wrong(message: String) -> Error {
    SurgeryError::Recipe(message).into()
}

/// A tensor that is of another shape in two models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeDifference {
    /// The tensor.
    pub name: String,
    /// A run.
    pub run: String,
    /// Its type there.
    pub found: TensorType,
    /// What it is compared with.
    pub other: String,
    /// Its type there.
    pub expected: TensorType,
}

impl fmt::Display for ShapeDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, run, found, other, expected } = self;
        write!(f, "`{name}` is {found} in {run}, and {expected} in {other}")
    }
}

/// An argument of a layer that is another one in two models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeaningDifference {
    /// Path of the layer.
    pub layer: String,
    /// What differs.
    pub argument: String,
    /// A run.
    pub run: String,
    /// What it says.
    pub found: String,
    /// Another one.
    pub other: String,
    /// What that says.
    pub expected: String,
}

impl fmt::Display for MeaningDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layer, argument, run, found, other, expected } = self;
        write!(f, "{argument} of layer `{layer}` is {found} in {run}, and {expected} in {other}")
    }
}

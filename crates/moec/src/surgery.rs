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

use moec_ir::TensorType;

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
    #[error("`{name}` is {found} in {run}, and {expected} in {other}")]
    Shape {
        /// The tensor.
        name: String,
        /// A run.
        run: String,
        /// Its type there.
        found: TensorType,
        /// What it is compared with.
        other: String,
        /// Its type there.
        expected: TensorType,
    },
    /// Two layers that belong together compute something else.
    #[error("{argument} of layer `{layer}` is {found} in {run}, and {expected} in {other}")]
    Meaning {
        /// Path of the layer.
        layer: String,
        /// What differs.
        argument: String,
        /// A run.
        run: String,
        /// What it says.
        found: String,
        /// Another one.
        other: String,
        /// What that says.
        expected: String,
    },
    /// The new model is not what it must be.
    #[error("the new model is not what it must be: {claim}, but logits differ by {difference:e}")]
    Broken {
        /// What should hold.
        claim: String,
        /// By how much it does not.
        difference: f64,
    },
}

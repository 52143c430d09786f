//! What can go wrong between a forward graph and a plan.

use moec_ir::{GraphError, Origin, TensorType};

/// Why a graph could not be turned into a training graph or a plan.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A node that this crate wanted to add does not fit its operands: a graph from outside that was not verified.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// There is no output to differentiate under that name.
    #[error("the graph has no output `{0}` to differentiate")]
    NoObjective(String),
    /// Only scalars have a gradient.
    #[error("output `{name}` is {ty}, but only a scalar f32[] can be differentiated")]
    NotScalar {
        /// Name of the output.
        name: String,
        /// Its type.
        ty: TensorType,
    },
    /// There is no input, parameter or state under that name to differentiate with respect to.
    #[error("the graph has no float parameter, state or input `{0}` to take a gradient of")]
    NoSource(String),
    /// The objective depends on a wanted tensor through something that has no gradient rule.
    #[error("%{node}: {what} is not differentiable")]
    NotDifferentiable {
        /// Name of the node.
        node: String,
        /// Which operation, or which of its results.
        what: String,
        /// Where it came from.
        origin: Option<Origin>,
    },
    /// The optimiser was asked for, but no parameter has a gradient output.
    #[error("the graph has no gradient of a parameter (no output `grad.NAME`), so there is nothing to optimise")]
    NoGradients,
    /// Two functions of a program, or two nodes of one, disagree about a persistent tensor.
    #[error("`{name}` is {first} in one place and {second} in another")]
    StateConflict {
        /// Name of the tensor.
        name: String,
        /// What it was first.
        first: String,
        /// What it is as well.
        second: String,
    },
    /// An update of something that is not a state or parameter of the graph, of another type, or given twice.
    #[error("update of `{name}` in `{function}`: {reason}")]
    Update {
        /// Name of the function.
        function: String,
        /// Name of the tensor.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A node is too large for the kernels of the device.
    #[error("%{node}: {reason}")]
    TooLarge {
        /// Name of the node.
        node: String,
        /// Where it came from.
        origin: Option<Origin>,
        /// What is too large.
        reason: String,
    },
    /// There is no pass of that name.
    #[error("there is no pass `{name}`; the passes are {known}")]
    NoPass {
        /// The name that was asked for.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// The verifier refuses the graph that was to be optimised.
    #[error("the graph is not valid: {0}")]
    InvalidGraph(String),
    /// A pass left a graph that the verifier refuses: a defect of this crate.
    #[error("pass `{pass}` broke the graph: {reason}")]
    BrokenGraph {
        /// Name of the pass.
        pass: &'static str,
        /// What the verifier said.
        reason: String,
    },
}

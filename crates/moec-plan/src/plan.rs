//! The plan: launches over numbered buffers, with every byte placed before anything runs.

use crate::average;
use crate::cluster::Cluster;
use crate::kernel::Kernel;
use crate::stored_weights::{parameter_of, transposed};
use moec_ir::{Graph, Origin, Phase, StateRole, Tensor, TensorType, WeightFormat};
use std::borrow::Cow;
use std::sync::Arc;

/// Number of a buffer within a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u32);

impl BufferId {
    /// Position in [`Plan::buffers`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where the bytes of a buffer are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// A persistent tensor of the [`Program`], by position in [`Program::states`].
    State(usize),
    /// Bytes of the plan's arena from this offset, a multiple of [`ALIGNMENT`]. Buffers that are alive at the same time
    /// never overlap; inputs and outputs of the plan are alive throughout.
    Arena(usize),
}

/// Arena offsets are multiples of this many bytes: CubeCL compiles a kernel anew for each alignment it sees.
pub const ALIGNMENT: usize = 256;

/// A typed view of some bytes. Two buffers may share storage: a reshape, or an update in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Name of the value.
    pub name: String,
    /// Its type.
    pub ty: TensorType,
    /// Its place.
    pub storage: Storage,
}

/// One cluster to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Name of the node whose place it has.
    pub name: String,
    /// What to compute of the plan's graph; nothing, if it is a copy. Results share no storage with operands, but for
    /// those of [`Kernel::in_place`], which are stored where their operands are, and those that take the place of a
    /// persistent tensor ([`Kernel::may_replace`]).
    pub cluster: Cluster,
    /// Buffers that are read, in operand order.
    pub operands: Vec<BufferId>,
    /// Buffers that are written, in result order. A result that nobody reads still has a buffer.
    pub results: Vec<BufferId>,
    /// Where in the `.moe` file it came from.
    pub origin: Option<Origin>,
    /// Which part of a training step it belongs to.
    pub phase: Phase,
}

impl Step {
    /// How it is computed.
    pub fn kernel(&self) -> &Kernel {
        &self.cluster.kernel
    }
}

/// A named buffer that the caller writes before or reads after a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name of the input or output.
    pub name: String,
    /// Its buffer.
    pub buffer: BufferId,
}

/// One function of a program, ready to be launched: steps in order over placed buffers.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Name of the function, as of [`moec_ir::Function`].
    pub name: String,
    /// What it computes.
    pub graph: Arc<Graph>,
    /// All buffers.
    pub buffers: Vec<Buffer>,
    /// All steps, in launch order.
    pub steps: Vec<Step>,
    /// What a run must be given.
    pub inputs: Vec<Port>,
    /// What a run gives.
    pub outputs: Vec<Port>,
    /// Size of the arena in bytes.
    pub arena_bytes: usize,
}

/// What a persistent tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StateKind {
    /// Trained by gradient.
    Parameter,
    /// A state of the graph.
    State(StateRole),
}

impl StateKind {
    /// Name in listings.
    pub fn name(self) -> &'static str {
        match self {
            StateKind::Parameter => "parameter",
            StateKind::State(role) => role.name(),
        }
    }

    /// Whether checkpoints hold it.
    pub fn in_checkpoints(self) -> bool {
        match self {
            StateKind::Parameter | StateKind::State(StateRole::Optimizer | StateRole::Router) => true,
            StateKind::State(
                StateRole::Sum | StateRole::Cache | StateRole::Transposed | StateRole::Packed(_) | StateRole::Scale,
            ) => false,
        }
    }

    /// Whether it belongs to the trained model, rather than to its training or to what runs it.
    pub fn of_model(self) -> bool {
        match self {
            StateKind::Parameter | StateKind::State(StateRole::Router) => true,
            StateKind::State(
                StateRole::Optimizer
                | StateRole::Sum
                | StateRole::Cache
                | StateRole::Transposed
                | StateRole::Packed(_)
                | StateRole::Scale,
            ) => false,
        }
    }
}

/// A tensor that persists between runs and is shared by all plans of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDecl {
    /// Name in checkpoints.
    pub name: String,
    /// Its type.
    pub ty: TensorType,
    /// What it is for.
    pub kind: StateKind,
}

impl StateDecl {
    /// Name of the tensor that it holds: of the parameter, if it is one that is stored in another order or format.
    pub fn held(&self) -> &str {
        match self.kind {
            StateKind::State(role) => parameter_of(&self.name, role).unwrap_or(&self.name),
            StateKind::Parameter => &self.name,
        }
    }

    /// The parameter of which it is the moving average, if it is one.
    pub fn averaged(&self) -> Option<&str> {
        if self.kind == StateKind::State(StateRole::Optimizer) { average::averaged(&self.name) } else { None }
    }

    /// What is to be written where the tensor that it holds ([`StateDecl::held`]) has this value: in its order, and rounded
    /// as it is stored. `None` if it holds a parameter in another form that the value cannot have.
    pub fn stored<'t>(&self, value: &'t Tensor) -> Option<Cow<'t, Tensor>> {
        let stored = match self.kind {
            StateKind::State(StateRole::Transposed) => transposed(value)?,
            StateKind::State(StateRole::Packed(format)) => {
                format.pack(value, self.ty.shape.last()? * format.columns_of_word())?
            }
            StateKind::State(StateRole::Scale) => WeightFormat::Int8.scales(value)?,
            StateKind::State(StateRole::Router | StateRole::Optimizer | StateRole::Sum | StateRole::Cache)
            | StateKind::Parameter => return Some(Cow::Borrowed(value)),
        };
        (stored.ty() == self.ty).then_some(Cow::Owned(stored))
    }
}

/// Plans that share persistent tensors: what a backend prepares.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Program {
    /// Persistent tensors, in the order in which the plans' graphs first name them.
    pub states: Vec<StateDecl>,
    /// The functions.
    pub plans: Vec<Plan>,
}

impl Plan {
    /// The buffer with the given number, which must come from this plan.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.index()]
    }
}

impl Program {
    /// The plan of that name.
    pub fn plan(&self, name: &str) -> Option<&Plan> {
        self.plans.iter().find(|p| p.name == name)
    }

    /// Bytes of all persistent tensors, saturating.
    pub fn state_bytes(&self) -> usize {
        self.states.iter().fold(0, |sum, s| sum.saturating_add(s.ty.bytes()))
    }

    /// Bytes of the largest arena; plans run one at a time and may share it.
    pub fn arena_bytes(&self) -> usize {
        self.plans.iter().map(|p| p.arena_bytes).max().unwrap_or(0)
    }
}

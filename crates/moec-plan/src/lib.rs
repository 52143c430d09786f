//! Forward graph to executable plan: differentiate, optimise, schedule, place memory.

mod backend;
mod plan;

pub use backend::{Backend, BackendError, Session};
pub use plan::{ALIGNMENT, Buffer, BufferId, Plan, Port, Program, StateDecl, StateKind, Step, Storage};

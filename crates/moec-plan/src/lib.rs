//! Forward graph to executable plan: differentiate, optimise, schedule, place memory.
//!
//! The way of a training step is [`differentiate`], [`add_optimizer`], then a [`Backend`] prepares and runs the plan.

mod autodiff;
mod backend;
mod error;
mod interp;
mod memory;
mod optimizer;
mod passes;
mod plan;
mod planner;
mod report;
mod schedule;

pub use autodiff::{Wrt, differentiate};
pub use backend::{Backend, BackendError, Session};
pub use error::PlanError;
pub use interp::Interpreter;
pub use optimizer::{OptimizerConfig, add_optimizer};
pub use passes::{OptimizeOptions, PASSES, Pass, PassReport, PassRun, optimize};
pub use plan::{ALIGNMENT, Buffer, BufferId, Plan, Port, Program, StateDecl, StateKind, Step, Storage};
pub use planner::plan;
pub use report::{FunctionMemory, LargeTensor, MemoryKind, MemoryReport, memory_report};

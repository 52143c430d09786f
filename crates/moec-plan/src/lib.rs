//! Forward graph to executable plan: differentiate, optimise, cluster, schedule, place memory.
//!
//! The way of a training step:
//!
//! 1. [`differentiate`] appends the gradient of the objective, [`add_optimizer`] the update of every parameter;
//! 2. [`optimize`] runs the passes of [`PASSES`], each of which gives a graph that means the same;
//! 3. [`cluster`] decides which nodes of that graph are computed together ([`FUSIONS`]), and what each [`Kernel`] must know;
//! 4. [`plan()`] orders the clusters of all functions of a program and places every byte; [`Arrangement::memory`] says
//!    what it needs beforehand;
//! 5. a [`Backend`] prepares the [`Program`] and gives a [`Session`] that runs it. [`Interpreter`] is the one for
//!    reference: it obeys the plan to the byte, evaluates the nodes of each cluster, and computes in 64 bits.
//!
//! ```
//! use moec_ir::{Builder, Tensor, TensorType};
//! use moec_plan::{Backend, ClusterOptions, Interpreter, OptimizeOptions, Wrt, cluster, differentiate, optimize, plan};
//!
//! let mut b = Builder::new();
//! let x = b.input("x", TensorType::f32([3]));
//! let w = b.parameter("w", [3]);
//! let product = b.mul(x, w);
//! let loss = b.sum_all(product);
//! b.output("loss", loss);
//! let graph = differentiate(&b.finish()?, "loss", &Wrt::Parameters)?;
//! let (graph, _) = optimize(&graph, &OptimizeOptions::default())?;
//!
//! let (clusters, _) = cluster(&graph, &ClusterOptions::default())?;
//! let program = plan(&[("f".to_string(), &clusters)])?;
//! let mut session = Interpreter.prepare(&program)?;
//! session.run("f", &[("x", &Tensor::floats([1.0, 2.0, 3.0]))])?;
//! assert_eq!(session.output("f", "grad.w")?.to_f64(), [1.0, 2.0, 3.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod accumulate;
mod autodiff;
mod average;
mod backend;
mod cluster;
mod elementwise;
mod error;
mod interp;
mod kernel;
mod learning_rate;
mod limits;
mod liveness;
mod memory;
mod optimizers;
mod passes;
mod plan;
mod plan_listing;
mod planner;
mod probe;
mod report;
mod routes;
mod schedule;
mod settings;
mod small;
mod stored_weights;
mod threads;
mod work;

pub use autodiff::{Wrt, differentiate};
pub use average::{average_of, read_averages};
pub use backend::{Backend, BackendError, Session};
pub use cluster::{Cluster, ClusterOptions, Clusters, FUSIONS, Fusion, cluster};
pub use elementwise::{Access, Elementwise, Instr};
pub use error::PlanError;
pub use interp::Interpreter;
pub use kernel::{Body, Kernel, Operands};
pub use learning_rate::{SCHEDULES, Schedule, ScheduleSpec};
pub use limits::LaunchLimits;
pub use optimizers::{OPTIMIZERS, Optimizer, OptimizerSpec, StepOptions, accumulate, add_optimizer};
pub use passes::{OptimizeOptions, PASSES, Pass, PassReport, PassRun, optimize};
pub use plan::{ALIGNMENT, Buffer, BufferId, Plan, Port, Program, StateDecl, StateKind, Step, Storage};
pub use plan_listing::{PlanListing, PortListing, ProgramListing, StateListing, listing};
pub use planner::{Arrangement, declare_states, plan};
pub use probe::Probe;
pub use report::{FunctionMemory, LargeTensor, MemoryKind, MemoryReport};
pub use routes::{freeze_routes, freeze_some_routes, record_routes, routes};
pub use settings::{Conflict, Settings};
pub use small::{Small, Statement};
pub use stored_weights::{WeightStorage, store_weights};
pub use threads::on_threads;
pub use work::{Work, kind, work};

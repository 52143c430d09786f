//! The graph language: types, operations, petgraph storage, text form, verifier, reference evaluator.
//!
//! A [`Graph`] is a directed acyclic graph of [`Op`]s in SSA form with static shapes. It is built with a [`Builder`],
//! never edited: a pass builds a new graph. Everything that a model does on a device is in it, from token ids to the
//! optimiser's update.
//!
//! ```
//! use moec_ir::{Builder, TensorType};
//! let mut b = Builder::new();
//! let x = b.input("x", TensorType::f32([2, 3]));
//! let w = b.parameter("w", [4, 3]);
//! let y = b.linear(x, w, None);
//! let p = b.softmax(y);
//! b.output("p", p);
//! let graph = b.finish()?;
//! assert_eq!(graph.ty(p).to_string(), "f32[2, 4]");
//! # Ok::<(), moec_ir::GraphError>(())
//! ```

mod build;
mod eval;
mod graph;
mod ids;
mod infer;
mod init;
mod op;
pub mod random;
mod tensor;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
mod types;
pub mod verify;

pub use build::Builder;
pub use eval::{EvalError, Evaluation, MAX_ELEMENTS, evaluate, evaluate_op};
pub use graph::{Graph, GraphError, Node};
pub use ids::{NodeId, Origin, Value};
pub use infer::{InferError, infer};
pub use init::Init;
pub use op::{Access, AdamWAttrs, AttentionAttrs, Binary, FusedProgram, Instr, Op, Unary};
pub use tensor::{Data, Tensor};
pub use text::{ParseError, parse, print, print_with_origins};
pub use types::{DType, Real, TensorType};
pub use verify::{Stage, VerifyError, annotate, verify};

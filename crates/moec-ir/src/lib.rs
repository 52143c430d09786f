//! The graph language: types, operations, petgraph storage, text form, verifier, reference evaluator.
//!
//! A [`Graph`] is a directed acyclic graph of [`Op`]s in SSA form with static shapes. It is built with a [`Builder`],
//! never edited: a pass builds a new graph. Everything that a model does on a device is in it, from token ids to the
//! optimiser's update.
//!
//! ```
//! use moec_ir::{Builder, Stage, TensorType, parse, print, verify};
//! let mut b = Builder::new();
//! let x = b.input("x", TensorType::f32([2, 3]));
//! let w = b.parameter("w", [4, 3]);
//! let y = b.linear(x, w, None);
//! let p = b.softmax(y);
//! b.output("p", p);
//! let graph = b.finish()?;
//!
//! assert_eq!(graph.ty(p).to_string(), "f32[2, 4]");
//! assert_eq!(verify(&graph, Stage::Forward), Ok(()));
//! let text = "\
//! graph {
//!   %x = input : f32[2, 3]
//!   %w = parameter : f32[4, 3]
//!   %matmul = matmul(%x, %w) {transpose_b} : f32[2, 4]
//!   %softmax = softmax(%matmul) : f32[2, 4]
//!   output p = %softmax
//! }
//! ";
//! assert_eq!(print(&graph), text);
//! assert_eq!(parse(text), Ok(graph));
//! # Ok::<(), moec_ir::GraphError>(())
//! ```
//!
//! # What is where
//!
//! - [`Op`] is the closed set of operations, declared in one table of which names, text form, arity, ranges, legality and
//!   the reference page `OPERATIONS.md` are made; [`declarations`] lists it. What operations mean is under `family/`:
//!   [`infer()`] gives result types, [`evaluate`] runs a graph in plain 64-bit Rust, slowly: the oracle for kernels and
//!   passes.
//! - [`Builder`] appends operations and reads like the mathematics; [`Graph`] is what it makes.
//! - [`text`] prints and parses graphs, [`verify`](mod@verify) holds the contract that every graph keeps, stage by stage.
//! - [`random`] is the counter-based generator that evaluator and kernels share word for word.

mod argument;
mod balance;
mod build;
mod contract;
mod declaration;
mod eval;
mod family;
mod flops;
mod function;
mod graph;
mod ids;
mod infer;
mod init;
mod internal;
mod interval;
mod op;
mod operands;
mod precision;
mod purpose;
pub mod random;
mod stage;
mod tensor;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
mod types;
pub mod verify;
mod weights;

pub use argument::{ArgumentValue, DefaultValue, ParameterSpec, ParameterType};
pub use balance::balanced_assignment;
pub use build::Builder;
pub use contract::{Function, Input, Output, TOKEN_TABLE, path_order};
pub use declaration::{AttributeDeclaration, Declaration, Family, Gradient, OutOfRange, Range, Slot};
pub use eval::{Evaluation, MAX_ELEMENTS, evaluate, evaluate_op};
pub use family::infer;
pub use flops::{flops, length_of_sums};
pub use function::{Binary, Unary};
pub use graph::{Graph, GraphError, Node};
pub use ids::{NodeId, Origin, Value};
pub use infer::InferError;
pub use init::Init;
pub use internal::{Invariant, broken_invariant};
pub use interval::Interval;
pub use op::{AdamWAttrs, AttentionAttrs, CapacityPriority, Op, UnpackAttrs, declarations, reference};
pub use operands::EvalError;
pub use precision::{Precision, bf16_bits};
pub use purpose::{Phase, StateRole};
pub use stage::Stage;
pub use tensor::{Data, Tensor};
pub use text::{ParseError, parse, print, print_with_origins};
pub use types::{DType, Real, TensorType};
pub use verify::{VerifyError, annotate, verify};
pub use weights::WeightFormat;

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
//! - [`Op`] is the closed set of operations; its variants document shapes and meaning. [`infer()`] gives result types.
//! - [`Builder`] appends operations and reads like the mathematics; [`Graph`] is what it makes.
//! - [`text`] prints and parses graphs, [`verify`](mod@verify) holds the contract that every graph keeps, stage by stage.
//! - [`evaluate`] runs a graph in plain 64-bit Rust, slowly: the oracle for kernels and passes.
//! - [`random`] is the counter-based generator that evaluator and kernels share word for word.
//!
//! # Families of operations
//!
//! | Family | Operations in the text form | From stage |
//! |---|---|---|
//! | structure | `input` `parameter` `state` `fill` `ramp` `reshape` `broadcast` `permute` `stop_gradient` | forward |
//! | elementwise | [`Unary`], [`Binary`], `select` | forward |
//! | fused elementwise | `fused` (see [`FusedProgram`]) | optimized |
//! | with a program after it | `fused_` before `matmul` `grouped_matmul` `dispatched_grouped_matmul` `dispatch` `combine` `embed` `layer_norm_grad` `rms_norm_grad` | optimized |
//! | products that do more | `_with_sums` after `matmul` `grouped_matmul_weight_grad`; `dispatched_` before `grouped_matmul` `grouped_matmul_weight_grad` | optimized |
//! | indices | `to_float` `to_index` `lookup` `previous` | forward |
//! | reduction | `sum`; `sum_of_squares` for clipping | forward; training |
//! | linear | `matmul` `grouped_matmul` `grouped_matmul_weight_grad` `grouped_sum` | forward |
//! | norm | `layer_norm` `rms_norm`; `layer_norm_grad` `rms_norm_grad` | forward; training |
//! | softmax | `softmax` `log_sum_exp`; `softmax_grad` | forward; training |
//! | attention | `attention` `rotary`; `attention_grad` `rotary {inverse}` | forward; training |
//! | embedding and loss | `embed` `cross_entropy`; `embed_grad` `cross_entropy_grad` | forward; training |
//! | loss with its gradient | `fused_cross_entropy` | optimized |
//! | random | `random_normal` `random_uniform` `dropout` | forward |
//! | selection | `top_k` `gather_last` `scatter_last` `count` `limit_capacity` `balanced_assignment` | forward |
//! | dispatch and combine | `sort_by_expert` `dispatch` `combine`; `combine_weight_grad` | forward; training |
//! | optimiser | `adamw` | training |
//!
//! Gradients of the operations that have none of their own are written with the others.

mod balance;
mod build;
mod contract;
mod eval;
mod graph;
mod ids;
mod infer;
mod init;
mod internal;
mod interval;
mod op;
mod purpose;
pub mod random;
mod tensor;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
mod types;
pub mod verify;

pub use balance::balanced_assignment;
pub use build::Builder;
pub use contract::{Function, Input, Output, TOKEN_TABLE};
pub use eval::{EvalError, Evaluation, MAX_ELEMENTS, evaluate, evaluate_op};
pub use graph::{Graph, GraphError, Node};
pub use ids::{NodeId, Origin, Value};
pub use infer::{InferError, infer};
pub use init::Init;
pub use internal::{Invariant, broken_invariant};
pub use interval::Interval;
pub use op::{Access, AdamWAttrs, AttentionAttrs, Binary, CapacityPriority, FusedProgram, Instr, Op, Unary};
pub use purpose::{Phase, StateRole};
pub use tensor::{Data, Tensor};
pub use text::{ParseError, parse, print, print_with_origins};
pub use types::{DType, Real, TensorType};
pub use verify::{Stage, VerifyError, annotate, verify};

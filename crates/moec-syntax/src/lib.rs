//! Text to spanned AST, and everything about talking to the author of that text.

mod ast;
mod codes;
mod diag;
mod expect;
mod format;
mod lex;
mod parse;
mod render;
mod source;

pub use ast::{
    Argument, Arguments, BinaryOperator, Block, Body, Branch, Call, Expr, ExprKind, File, Ident, If, Item, Let, Model,
    Repeat, Setting, Spanned, Statement, Train, TrainSetting, UnaryOperator,
};
pub use codes::{Code, UnknownCode};
pub use diag::{Diagnostic, Label, Patch, Severity, did_you_mean};
pub use format::format;
pub use parse::{parse, parse_value};
pub use render::{RenderedDiagnostic, RenderedLabel, RenderedPatch, RenderedSpan};
pub use source::{LineColumn, MAX_SOURCE_BYTES, SourceFile, Span};

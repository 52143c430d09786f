//! Text to spanned AST, and everything about talking to the author of that text.
//!
//! A [`SourceFile`] is parsed into a [`File`], or into the [`Diagnostic`]s that say why not; [`format()`] prints it in the
//! one canonical layout, and [`parse_leniently`] reads what can be read of a text that is being written. The crate knows how the language is written, not what it means: which layers exist and which
//! arguments they take is the business of whoever walks the tree. That crate reports with the same diagnostics, so it
//! finds here the table of all [`Code`]s, the renderings, and [`did_you_mean`] and [`meant`]. The language reference is
//! `grammar/README.md`, the grammar `src/moec.pest`.
//!
//! ```
//! use moec_syntax::{Item, SourceFile, format, parse};
//!
//! let source = SourceFile::new("small.moe", "model small { context = 32 unembed }");
//! let faults = parse(&source).unwrap_err();
//! assert_eq!(faults[0].render_short(&source), "small.moe:1:23: error[E0118]: a setting takes no `=`");
//!
//! let source = SourceFile::new("small.moe", "model small { context 32 unembed }");
//! let file = parse(&source).unwrap();
//! assert!(matches!(&file.items[..], [Item::Model(model)] if model.name.name == "small"));
//! assert_eq!(format(&source).unwrap(), "model small {\n  context 32\n  unembed\n}\n");
//! ```
//!
//! No input makes this crate panic or overflow the stack: sources are bounded in size, brackets in depth and
//! expressions in height, each with an error of its own.

mod ast;
mod codes;
mod diag;
mod expect;
mod format;
mod grammar;
mod import;
mod literal;
mod mend;
mod parse;
mod recover;
mod render;
mod source;
mod span;
mod synonyms;
mod tree;
mod words;

pub use ast::{
    Argument, Arguments, Aux, BinaryOperator, Block, Body, Branch, Call, Expr, ExprKind, File, Ident, If, Import,
    Imported, Item, Let, Model, Parameter, Parameters, Repeat, Return, Router, RouterLet, RouterRepeat,
    RouterStatement, Setting, Spanned, Statement, Train, TrainSetting, UnaryOperator,
};
pub use codes::{Code, Place, Severity, UnknownCode};
pub use diag::{Diagnostic, Label, Patch, did_you_mean};
pub use format::format;
pub use import::{LIBRARY_FOLDER, parse, parse_leniently};
pub use parse::parse_value;
pub use render::{RenderedDiagnostic, RenderedLabel, RenderedPatch, RenderedSpan};
pub use source::{Entry, LineColumn, MAX_SOURCE_BYTES, SourceFile};
pub use span::{FileId, Span};
pub use synonyms::{Meant, meant};
pub use words::{Token, TokenKind, tokens};

//! One file per command.

pub(crate) mod bench;
pub(crate) mod cache;
pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod compile;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod explain;
pub(crate) mod export;
pub(crate) mod fmt;
pub(crate) mod gradcheck;
pub(crate) mod import;
pub(crate) mod layers;
pub(crate) mod lsp;
pub(crate) mod man;
pub(crate) mod metrics;
pub(crate) mod new;
pub(crate) mod report;
pub(crate) mod route;
pub(crate) mod routers;
pub(crate) mod sample;
pub(crate) mod track;
pub(crate) mod train;

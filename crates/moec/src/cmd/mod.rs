//! One file per command.

pub mod bench;
pub mod check;
pub mod compare;
pub mod compile;
pub mod eval;
pub mod explain;
pub mod export;
pub mod fmt;
pub mod gradcheck;
pub mod import;
pub mod route;
pub mod routers;
pub mod sample;
pub mod train;

//! Helpers shared by the test binaries of this package.

pub mod cases;
pub mod compare;
pub mod fixtures;

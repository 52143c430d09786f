//! Helpers shared by the test binaries of this package.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

pub mod cases;
pub mod compare;
pub mod fixtures;
pub mod run;

//! Finds or fetches LLVM 23 and emits what a build script needs to link it statically.
//!
//! This crate stands in for the registry's `tracel-llvm-bundler`, which CubeCL's LLVM crate has as a build dependency.
//! It offers the functions that CubeCL's build script calls and nothing else: [`config::llvm_path`],
//! [`config::get_cxxflags_args`] and [`llvm_sys::link`]. The search itself runs in this crate's build script; its order
//! and its variables are in `README.md`.

pub mod config;
mod llvm_config;
pub mod llvm_sys;

// The build script's own modules, here for their unit tests.
#[cfg(test)]
#[allow(dead_code, reason = "called by the build script only")]
mod download;
#[cfg(test)]
#[allow(dead_code, reason = "called by the build script only")]
mod locate;

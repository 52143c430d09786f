//! CubeCL kernels and the backend that launches a plan with them.
//!
//! [`CubeBackend`] is a [`moec_plan::Backend`]: it prepares a program on the CPU or on whatever wgpu reaches.
//! Which kernels a plan would launch is known without a device: [`kernel_names`]. Compiled kernels of the CPU can be kept from
//! one process to the next, in an [`ObjectCache`] of the caller.

mod backend;
mod device;
mod dispatch;
mod kernels;
mod launch;
mod limits;
mod machine;
#[cfg(test)]
mod tests;

pub use backend::{CubeBackend, Device, ObjectCache, available_memory, kernel_names};
#[cfg(feature = "wgpu")]
pub use device::{WgpuUnavailable, open_wgpu, software_wgpu, wgpu_available};
pub use launch::DeviceProfile;
pub use limits::{Limits, Yardstick};

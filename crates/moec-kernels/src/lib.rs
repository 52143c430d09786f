//! CubeCL kernels and the backend that launches a plan with them.

mod device;
#[cfg(test)]
mod smoke;

#[cfg(feature = "wgpu")]
pub use device::{WgpuUnavailable, open_wgpu, wgpu_available};

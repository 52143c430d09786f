//! Opening the device that the user names.

use crate::cli::args::DeviceName;
use moec_kernels::{CubeBackend, Device};
use moec_plan::{Backend, BackendError, Interpreter};

/// Opens a device.
///
/// # Errors
/// When this machine has no such device.
pub(crate) fn open(device: DeviceName) -> Result<Box<dyn Backend>, BackendError> {
    Ok(match device {
        DeviceName::Cpu => Box::new(CubeBackend::open(Device::Cpu)?),
        DeviceName::Wgpu => Box::new(CubeBackend::open(Device::Wgpu)?),
        DeviceName::Interpreter => Box::new(Interpreter),
    })
}

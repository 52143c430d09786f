//! Where a model runs.

#[cfg(feature = "kernels")]
use moec_kernels::{CubeBackend, ObjectCache};
use moec_plan::{Backend, BackendError, Interpreter, LaunchLimits};
#[cfg(feature = "kernels")]
use std::sync::Arc;

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Device {
    /// The processor, all cores; in builds with the feature `cpu`.
    Cpu,
    /// Any GPU that wgpu reaches; in builds with the feature `wgpu`.
    Wgpu,
    /// The slow float64 reference, which every build has.
    Interpreter,
}

impl Device {
    /// All devices, whether or not this build and this machine have them.
    pub const ALL: [Device; 3] = [Device::Cpu, Device::Wgpu, Device::Interpreter];

    /// The name as the user writes it.
    pub fn name(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Wgpu => "wgpu",
            Device::Interpreter => "interpreter",
        }
    }

    /// Opens the device.
    ///
    /// # Errors
    /// When this build or this machine has no such device.
    pub fn open(self) -> Result<Box<dyn Backend>, BackendError> {
        match self {
            #[cfg(feature = "kernels")]
            Device::Cpu => Ok(Box::new(CubeBackend::open(moec_kernels::Device::Cpu)?)),
            #[cfg(feature = "kernels")]
            Device::Wgpu => Ok(Box::new(CubeBackend::open(moec_kernels::Device::Wgpu)?)),
            #[cfg(not(feature = "kernels"))]
            Device::Cpu | Device::Wgpu => Err(BackendError::NoDevice {
                device: self.name().to_string(),
                reason: "this build was made without it".to_string(),
            }),
            Device::Interpreter => Ok(Box::new(Interpreter)),
        }
    }

    /// Opens the device, whose compiled kernels are kept in a cache if it is the processor.
    ///
    /// # Errors
    /// As [`Device::open`].
    #[cfg(feature = "kernels")]
    pub fn open_with_cache(self, cache: Arc<dyn ObjectCache>) -> Result<Box<dyn Backend>, BackendError> {
        match self {
            Device::Cpu => Ok(Box::new(CubeBackend::open(moec_kernels::Device::Cpu)?.with_cache(cache))),
            Device::Wgpu | Device::Interpreter => self.open(),
        }
    }

    /// What its kernels can do at most: decides which operations of a model are computed together.
    pub fn launch_limits(self) -> LaunchLimits {
        match self {
            #[cfg(feature = "kernels")]
            Device::Cpu => moec_kernels::Device::Cpu.profile().launch_limits(),
            #[cfg(feature = "kernels")]
            Device::Wgpu => moec_kernels::Device::Wgpu.profile().launch_limits(),
            #[cfg(not(feature = "kernels"))]
            Device::Cpu | Device::Wgpu => LaunchLimits::default(),
            Device::Interpreter => LaunchLimits::default(),
        }
    }

    /// Bytes of memory that a model may take there, where that is known before the device is opened.
    pub(crate) fn available_memory(self) -> Option<u64> {
        match self {
            #[cfg(feature = "kernels")]
            Device::Cpu | Device::Interpreter => moec_kernels::available_memory(),
            #[cfg(not(feature = "kernels"))]
            Device::Cpu | Device::Interpreter => None,
            Device::Wgpu => None,
        }
    }
}

//! Devices as commands open them: with compiled kernels that are kept from one command to the next.

use crate::cli::console::Console;
use crate::cli::exit::Failure;
use crate::cli::folders;
use crate::{Device, KernelCache};
use moec_ir::Precision;
use moec_kernels::{DeviceProfile, ObjectCache};
use moec_plan::Backend;
use std::sync::Arc;

/// How commands open devices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Devices {
    /// Whether compiled kernels are kept.
    cached: bool,
    console: Console,
}

impl Devices {
    /// Devices, with or without a cache of compiled kernels.
    pub(crate) fn new(cached: bool, console: Console) -> Self {
        Self { cached, console }
    }

    /// Opens a device.
    ///
    /// # Errors
    /// When this build or this machine has no such device.
    pub(crate) fn open(self, device: Device) -> Result<Box<dyn Backend>, Failure> {
        Ok(match self.cache(device) {
            Some(cache) => device.open_with_cache(cache)?,
            None => device.open()?,
        })
    }

    /// Where a device's compiled kernels are kept, if they are.
    pub(crate) fn cache(self, device: Device) -> Option<Arc<dyn ObjectCache>> {
        if !self.cached || device != Device::Cpu {
            return None;
        }
        let folder = folders::kernels()?;
        let console = self.console;
        let note = move |reason: &str| console.note(format!("kernels are compiled, not cached: {reason}"));
        let program = std::env::current_exe().map_err(|error| error.to_string());
        match program.and_then(|program| KernelCache::open(&folder, &program, note)) {
            Ok(cache) => Some(Arc::new(cache)),
            Err(reason) => {
                note(&reason);
                None
            }
        }
    }
}

/// That products of this precision are no faster on a device than those of float32 numbers, and why, if it is so.
pub(crate) fn why_no_faster(precision: Precision, device: Device) -> Option<String> {
    let why = match (precision, device) {
        (Precision::F32, _) | (_, Device::Interpreter) => return None,
        (Precision::Bf16, Device::Cpu) if DeviceProfile::this_cpu().multiplies_bf16() => return None,
        (Precision::Bf16, Device::Cpu) => {
            "this processor has no AVX512-BF16, so that it rounds and then multiplies float32 numbers"
        }
        (Precision::Bf16, Device::Wgpu) => {
            "WGSL has no bfloat16, so that the device rounds and then multiplies float32 numbers"
        }
    };
    Some(format!("precision bf16 will not be faster here than f32: {why}"))
}

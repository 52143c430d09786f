//! Devices as commands open them: with compiled kernels that are kept from one command to the next.

use crate::cli::console::Console;
use crate::cli::exit::Failure;
use crate::cli::folders;
use crate::cli::quiet::without_noise;
use crate::{Device, KernelCache};
use moec_ir::Precision;
use moec_kernels::{DeviceProfile, ObjectCache};
use moec_plan::Backend;
use std::sync::{Arc, Once};

/// How commands open devices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Devices {
    /// Whether compiled kernels are kept.
    cached: bool,
    /// Whether it is said when kernels are compiled.
    tells: bool,
    console: Console,
}

/// A cache that says once when it lacks something, which is compiled then.
struct Telling {
    cache: KernelCache,
    once: Once,
    console: Console,
}

impl ObjectCache for Telling {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        let found = self.cache.get(key);
        if found.is_none() {
            self.once.call_once(|| self.console.note(COMPILING));
        }
        found
    }

    fn put(&self, key: &str, object: &[u8]) {
        self.cache.put(key, object);
    }
}

const COMPILING: &str = "kernels are compiled for the first step, which takes some seconds";

impl Devices {
    /// Devices, with or without a cache of compiled kernels.
    pub(crate) fn new(cached: bool, console: Console) -> Self {
        Self { cached, tells: false, console }
    }

    /// The same, but say there when kernels are compiled.
    pub(crate) fn telling(self, console: Console) -> Self {
        Self { tells: true, console, ..self }
    }

    /// Opens a device.
    ///
    /// # Errors
    /// When this build or this machine has no such device.
    pub(crate) fn open(self, device: Device) -> Result<Box<dyn Backend>, Failure> {
        let cache = self.cache(device);
        if self.tells && cache.is_none() && device != Device::Interpreter {
            self.console.note(COMPILING);
        }
        let open = || match cache {
            Some(cache) => device.open_with_cache(cache),
            None => device.open(),
        };
        if device != Device::Wgpu {
            return Ok(open()?);
        }
        // Drivers that are tried have something to say about each screen that is not there.
        let opened = without_noise(open)?;
        self.remark_software();
        Ok(opened)
    }

    /// Says once that what wgpu has found is no graphics device.
    #[cfg(feature = "wgpu")]
    fn remark_software(self) {
        static ONCE: Once = Once::new();
        if let Some(name) = without_noise(moec_kernels::software_wgpu) {
            ONCE.call_once(|| {
                self.console.note(format!(
                    "wgpu has found a software device, {name}: it computes on the processor, where --device cpu is faster"
                ));
            });
        }
    }

    #[cfg(not(feature = "wgpu"))]
    fn remark_software(self) {}

    /// Where a device's compiled kernels are kept, if they are.
    pub(crate) fn cache(self, device: Device) -> Option<Arc<dyn ObjectCache>> {
        if !self.cached || device != Device::Cpu {
            return None;
        }
        let folder = folders::kernels()?;
        let console = self.console;
        let note = move |reason: &str| console.warn(format!("kernels are compiled, not cached: {reason}"));
        let program = std::env::current_exe().map_err(|error| error.to_string());
        match program.and_then(|program| KernelCache::open(&folder, &program, note)) {
            Ok(cache) if self.tells => Some(Arc::new(Telling { cache, once: Once::new(), console })),
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

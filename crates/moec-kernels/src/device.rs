//! Which devices this machine has.
//!
//! CubeCL brings a device up when its client is first asked for, and panics where that fails. The CPU is always there;
//! wgpu needs a driver, so it is brought up here first, where a failure is a value.

#[cfg(feature = "wgpu")]
mod graphics {
    use std::fmt;
    use std::sync::OnceLock;

    use cubecl::Device;
    use cubecl::device::{WgpuBackend, WgpuDevice};
    use cubecl::wgpu::{AutoGraphicsApi, RuntimeOptions, WgpuInitError, try_init_setup};

    /// Why wgpu has no device on this machine, in the words of the layer that refused.
    #[derive(Clone, Debug)]
    pub struct WgpuUnavailable(String);

    impl fmt::Display for WgpuUnavailable {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "no wgpu device: {}", self.0)
        }
    }

    impl std::error::Error for WgpuUnavailable {}

    /// The graphics interfaces whose limits suit our kernels, best first. OpenGL is not one of them: drivers may stop at
    /// eight buffers in a kernel, and software ones are installed with many desktops.
    const INTERFACES: [WgpuBackend; 3] = [WgpuBackend::Vulkan, WgpuBackend::Metal, WgpuBackend::Dx12];

    /// The default wgpu device, brought up so that asking it for a client cannot fail.
    ///
    /// The default is the most capable adapter of the first interface that has any, or a software one where it has
    /// nothing else; `CUBECL_WGPU_DEFAULT_DEVICE` chooses, for example `Cpu`. The first call decides for the process.
    ///
    /// # Errors
    ///
    /// Where no driver offers an adapter, the adapter refuses, or CubeCL's own variables are wrong.
    pub fn open_wgpu() -> Result<Device, WgpuUnavailable> {
        opened().clone().map(|(device, _)| Device::Wgpu(device))
    }

    /// Name of the default wgpu device, if it is a program that computes on the processor.
    pub fn software_wgpu() -> Option<String> {
        opened().clone().ok().and_then(|(_, software)| software)
    }

    /// A device, and its name if it is a program.
    type Opened = (WgpuDevice, Option<String>);

    fn opened() -> &'static Result<Opened, WgpuUnavailable> {
        static OPENED: OnceLock<Result<Opened, WgpuUnavailable>> = OnceLock::new();
        OPENED.get_or_init(open_first)
    }

    fn open_first() -> Result<Opened, WgpuUnavailable> {
        let mut reasons = Vec::new();
        for interface in INTERFACES {
            let device = WgpuDevice::default().on(interface);
            let opened =
                RuntimeOptions::try_default().and_then(|options| try_init_setup::<AutoGraphicsApi>(&device, options));
            match opened {
                // Registering fails where a client was made before us: then the device works.
                Ok(setup) => {
                    let info = setup.adapter.get_info();
                    // CubeCL does not show the type, but its name.
                    let is_software = format!("{:?}", info.device_type) == "Cpu";
                    return Ok((device, is_software.then_some(info.name)));
                }
                Err(WgpuInitError::Registration { .. }) => return Ok((device, None)),
                Err(WgpuInitError::UnsupportedGraphicsApi { .. }) => {} // of another operating system
                Err(error) => reasons.push(error.to_string()),
            }
        }
        Err(WgpuUnavailable(reasons.join("; ")))
    }

    /// Whether [`open_wgpu`] gives a device here.
    pub fn wgpu_available() -> bool {
        open_wgpu().is_ok()
    }
}

#[cfg(feature = "wgpu")]
pub use graphics::{WgpuUnavailable, open_wgpu, software_wgpu, wgpu_available};

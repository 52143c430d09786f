//! Measures what the device can do at most, so that a time can be told beside its limit.

use std::sync::Arc;
use std::time::Instant;

use cubecl::client::Client;
use cubecl::server::Handle;
use moec_plan::BackendError;

use crate::backend::CubeBackend;
use crate::kernels::{fill, limits};
use crate::launch::{Arg, DeviceProfile, Launcher};

/// Floats of a buffer of the triad: with three of them, far more than caches hold.
const TRIAD_ELEMENTS: usize = 1 << 25;

/// Items of the launch of multiply-adds, which is the number of units on a graphics device.
const UNITS: usize = 1 << 14;

/// Rounds of multiply-adds of a unit: some milliseconds on a CPU.
const ROUNDS: usize = 1_000_000;

/// What a device can do at most, as measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Operations per second of multiply-adds in 32 bits on all cores, a multiply-add counted as two.
    pub flops: f64,
    /// Bytes per second that move between memory and all cores (STREAM's triad).
    pub bytes: f64,
}

/// Buffers and kernels to measure the limits with, as often as wanted.
pub struct Yardstick {
    client: Client,
    profile: DeviceProfile,
    allocations: Arc<[Handle]>,
}

impl Yardstick {
    /// Allocates about 400 MB on the device, writes them, and compiles the kernels.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(backend: &CubeBackend) -> Result<Self, BackendError> {
        let client = backend.client().clone();
        let allocations = [TRIAD_ELEMENTS; 3].map(|n| client.empty(4 * n)).into();
        let yardstick = Self { client, profile: *backend.profile(), allocations };
        let [a, b, c] = Self::buffers();
        yardstick.seconds(|l| [a, b, c].map(|x| fill::launch(l, x, 1.0)))?;
        yardstick.seconds(|l| limits::launch_multiply_adds(l, a, UNITS, 1))?;
        yardstick.seconds(|l| limits::launch_triad(l, b, c, a))?;
        Ok(yardstick)
    }

    fn buffers() -> [Arg; 3] {
        [0, 1, 2].map(|i| Arg::new(i, 0, TRIAD_ELEMENTS))
    }

    /// Measures once: some tens of milliseconds on a CPU.
    ///
    /// # Errors
    /// When the device fails.
    pub fn measure(&self) -> Result<Limits, BackendError> {
        let [a, b, c] = Self::buffers();
        let (seconds, multiply_adds) = self.seconds(|l| limits::launch_multiply_adds(l, a, UNITS, ROUNDS))?;
        let (triad, ()) = self.seconds(|l| limits::launch_triad(l, b, c, a))?;
        Ok(Limits { flops: 2.0 * multiply_adds / seconds, bytes: 12.0 * TRIAD_ELEMENTS as f64 / triad })
    }

    /// How long launches take until the device is done with them.
    fn seconds<T: Send + 'static>(
        &self,
        launches: impl FnOnce(&Launcher) -> T + Send,
    ) -> Result<(f64, T), BackendError> {
        let failed = |reason: String| BackendError::Device { device: "the device".into(), reason };
        let measured = self.client.exclusive(|| {
            let launcher =
                Launcher::new(self.client.clone(), self.profile, self.allocations.clone(), Arg::new(0, 0, 0));
            let begun = Instant::now();
            let value = launches(&launcher);
            let waited = cubecl::future::block_on(self.client.sync());
            waited.map(|()| (begun.elapsed().as_secs_f64(), value)).map_err(|error| error.to_string())
        });
        measured.map_err(|error| failed(error.to_string()))?.map_err(failed)
    }
}

//! Measures what the device can do at most, so that a time can be told beside its limit.

use std::time::Duration;

use moec_plan::{Backend, BackendError};

use crate::backend::CubeBackend;
use crate::kernels::{fill, limits};
use crate::launch::Arg;
use crate::machine::{Launches, Machine, Workload};

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
    machine: Box<dyn Machine>,
    device: String,
    /// Multiply-adds of one measurement.
    multiply_adds: f64,
}

/// Sequences of the yardstick.
const FILL: usize = 0;
const MULTIPLY_ADDS: usize = 1;
const TRIAD: usize = 2;

impl Yardstick {
    /// Allocates about 400 MB on the device, writes them, and compiles the kernels.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(backend: &CubeBackend) -> Result<Self, BackendError> {
        let [a, b, c] = [0, 1, 2].map(|i| Arg::new(i, 0, TRIAD_ELEMENTS));
        let fill = [a, b, c].map(|x| -> Launches { Box::new(move |l| fill::launch(l, x, 1.0)) });
        let multiply_adds: Launches = Box::new(move |l| limits::launch_multiply_adds(l, a, UNITS, ROUNDS));
        let triad: Launches = Box::new(move |l| limits::launch_triad(l, b, c, a));
        let machine = backend.machine(Workload {
            sizes: vec![4 * TRIAD_ELEMENTS; 3],
            scratch: Arg::new(0, 0, 0),
            sequences: vec![Vec::from(fill), vec![multiply_adds], vec![triad]],
        })?;
        let multiply_adds = limits::multiply_adds_of(backend.profile(), UNITS, ROUNDS);
        let mut yardstick = Self { machine, device: backend.name().into(), multiply_adds };
        yardstick.seconds(FILL)?;
        yardstick.measure()?;
        Ok(yardstick)
    }

    /// Measures once: some tens of milliseconds on a CPU.
    ///
    /// # Errors
    /// When the device fails.
    pub fn measure(&mut self) -> Result<Limits, BackendError> {
        let flops = 2.0 * self.multiply_adds / self.seconds(MULTIPLY_ADDS)?;
        let bytes = 12.0 * TRIAD_ELEMENTS as f64 / self.seconds(TRIAD)?;
        Ok(Limits { flops, bytes })
    }

    /// How long a sequence takes until the device is done with it.
    fn seconds(&mut self, sequence: usize) -> Result<f64, BackendError> {
        let times = self.machine.run_timed(sequence);
        let times = times.map_err(|reason| BackendError::Device { device: self.device.clone(), reason })?;
        Ok(times.iter().sum::<Duration>().as_secs_f64())
    }
}

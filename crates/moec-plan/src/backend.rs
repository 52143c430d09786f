//! What runs a program. The reference interpreter is one backend, the CubeCL kernels are another; the training loop
//! knows neither.

use crate::plan::Program;
use moec_ir::Tensor;
use std::time::Duration;

/// Why a backend could not do what it was asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// There is no such device on this machine.
    #[error("device {device} is not available: {reason}")]
    NoDevice {
        /// Name of the device.
        device: String,
        /// Why.
        reason: String,
    },
    /// The program needs more memory than the device has. Nothing was allocated.
    #[error("the model needs {needed} bytes, but {device} has {available}")]
    OutOfMemory {
        /// Name of the device.
        device: String,
        /// Bytes that the program needs.
        needed: u64,
        /// Bytes that the device has.
        available: u64,
    },
    /// A name that the program does not have, or a tensor of another type.
    #[error("{0}")]
    Interface(String),
    /// The device failed while running.
    #[error("{device} failed: {reason}")]
    Device {
        /// Name of the device.
        device: String,
        /// What it said.
        reason: String,
    },
}

/// A device that can run programs.
pub trait Backend {
    /// Name of the device as the user writes it: `cpu`, `wgpu`, `interpreter`.
    fn name(&self) -> &str;

    /// Bytes of memory the device can give, if known.
    fn memory_limit(&self) -> Option<u64>;

    /// Allocates everything that a program needs: its persistent tensors (zero) and one arena. Nothing is allocated
    /// afterwards.
    ///
    /// # Errors
    /// When the device has not enough memory or cannot run an operation.
    fn prepare(&self, program: &Program) -> Result<Box<dyn Session>, BackendError>;
}

/// A program on a device.
pub trait Session {
    /// Writes a persistent tensor.
    ///
    /// # Errors
    /// When there is no such tensor, its type differs, or the device fails.
    fn write_state(&mut self, name: &str, value: &Tensor) -> Result<(), BackendError>;

    /// Reads a persistent tensor.
    ///
    /// # Errors
    /// When there is no such tensor or the device fails.
    fn read_state(&mut self, name: &str) -> Result<Tensor, BackendError>;

    /// Runs a plan. Every input of the plan must be given. The call may return before the device is done.
    ///
    /// # Errors
    /// When a name or type does not fit the plan or the device fails.
    fn run(&mut self, plan: &str, inputs: &[(&str, &Tensor)]) -> Result<(), BackendError>;

    /// Runs a plan as [`Session::run`] does, to the same bits, but waits for the device after every step: how long each
    /// took, in the plan's order.
    ///
    /// # Errors
    /// As [`Session::run`].
    fn run_timed(&mut self, plan: &str, inputs: &[(&str, &Tensor)]) -> Result<Vec<Duration>, BackendError>;

    /// Reads an output of the last run of a plan, waiting for it. Valid until another plan runs.
    ///
    /// # Errors
    /// When there is no such output or the device fails.
    fn output(&mut self, plan: &str, name: &str) -> Result<Tensor, BackendError>;
}

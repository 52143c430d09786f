//! Memory on a device with sequences of launches over it. Launching through CubeCL's runtimes takes longer than many
//! kernels, so launches are recorded once: on a graphics device by the runtime, which replays them; on the CPU by us, to
//! be run by threads of our own.

mod client;
#[cfg(feature = "cpu")]
mod host;
#[cfg(feature = "cpu")]
mod recorder;
#[cfg(feature = "cpu")]
mod team;

pub(crate) use client::ClientMachine;
#[cfg(feature = "cpu")]
pub(crate) use host::HostMachine;
#[cfg(feature = "cpu")]
pub(crate) use team::Team;

use std::sync::Arc;
use std::time::Duration;

use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::server::Handle;

use crate::launch::{Arg, DeviceProfile, Launcher};

/// Launches kernels that belong together: one step of a plan.
pub(crate) type Launches = Box<dyn Fn(&Launcher) + Send + Sync>;

/// What a machine is made for.
pub(crate) struct Workload {
    /// Bytes of each allocation; they are zero at first.
    pub(crate) sizes: Vec<usize>,
    /// Room for partial results within one step.
    pub(crate) scratch: Arg,
    /// What can be run, step by step.
    pub(crate) sequences: Vec<Vec<Launches>>,
}

/// A device with memory and sequences of launches over it. Errors are what the device said.
pub(crate) trait Machine {
    /// Writes exactly the bytes of a buffer.
    fn write(&mut self, arg: Arg, bytes: Bytes) -> Result<(), String>;

    /// Reads a buffer, once everything that was run is done.
    fn read(&mut self, arg: Arg) -> Result<Vec<u8>, String>;

    /// Runs a sequence; may return before the device is done.
    fn run(&mut self, sequence: usize) -> Result<(), String>;

    /// Runs a sequence and waits for the device after each step: how long each took.
    fn run_timed(&mut self, sequence: usize) -> Result<Vec<Duration>, String>;
}

/// Launches kernels from the thread of a client's device. From another thread each launch goes through a short queue,
/// and whoever finds it full spins for milliseconds on a core that the kernels need.
fn launch_on<T: Send + 'static>(
    client: &Client,
    profile: DeviceProfile,
    allocations: &Arc<[Handle]>,
    scratch: Arg,
    launches: impl FnOnce(&Launcher) -> T + Send,
) -> Result<T, String> {
    let launched = client.exclusive(|| launches(&Launcher::new(client.clone(), profile, allocations.clone(), scratch)));
    launched.map_err(|error| error.to_string())
}

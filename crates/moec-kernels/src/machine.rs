//! Memory on a device with sequences of launches over it: how a kernel that is chosen becomes work that is done.
//!
//! # What CubeCL does
//!
//! `#[cube(launch_unchecked)]` makes two things of a kernel. One is Rust that builds it: called with its comptime arguments,
//! it writes down the kernel's operations, which a compiler of CubeCL turns into machine code (for the CPU, with LLVM) or a
//! shader. The other is a launch function. It collects arguments (buffers, and all scalars in one block of metadata) and
//! hands them with the kernel to a *client*, which passes them to a *server*: the thread that owns a device. The server
//! finds or compiles the kernel by its id, which is a hash of everything that is comptime, resolves buffers, and runs it.
//! That takes 10 microseconds a launch on a CPU, and longer than most kernels take on a graphics device.
//!
//! # What is done instead
//!
//! The launches of a plan are always the same: same kernels, same places in memory, same scalars. So they are asked for
//! once, and run from what was noted then.
//!
//! ```text
//!             kernels::*::launch(&Launcher, ..)
//!                           │ CubeCL's launch function
//!             ┌─────────────┴──────────────┐
//!         recorder: a server            client: CubeCL's runtime
//!         that keeps launches           records the stream as a graph
//!             │ compiled: each kernel       │
//!             │ once; host: offsets         │
//!             │ become pointers             │
//!             ▼                             ▼
//!         team: threads run a script     the graph is replayed
//! ```
//!
//! - [`recorder`]: to CubeCL, one more server for the CPU. Kernels are made for that CPU, but a launch only appends kernel,
//!   offsets of its buffers and metadata to a list. Its buffers are handles with offsets and no memory behind them.
//! - [`host`]: the CPU. All allocations lie in one anonymous mapping, whose pages come as they are touched, zero. When a
//!   sequence first runs, its launches are recorded, its kernels compiled, offsets become pointers, and the whole becomes a
//!   [`team::Script`].
//! - [`compiled`]: kernels as code. Those that the process does not have (equal ids and alignments share one) come from the
//!   cache that the backend was given, or are compiled on all cores: CubeCL lowers a kernel to LLVM's text ([`lower`]), of
//!   which LLVM makes an object ([`llvm`]). An object is what a cache keeps and what is linked, so code from a cache and code
//!   just compiled are the same bits.
//! - [`team`]: as many threads as kernels have units, the calling one among them. Thread `u` is unit `u` of every kernel.
//!   Between two launches is a barrier ([`team::rounds`], which `tests/loom` checks with every order of events).
//! - [`client`]: every other device. The runtime itself records what a stream is asked to do, and replays it.
//!
//! # What must hold
//!
//! - What a step launches depends on shapes only, never on values, and on nothing that changes between runs.
//! - A buffer lies within its allocation: checked when a program is prepared, and relied on by every kernel, which checks no
//!   bounds. Pointers are good as long as the machine, which runs its scripts itself and waits for them; so no kernel runs
//!   while `write` and `read` look at the memory.
//! - A unit writes what no other unit reads or writes in the same launch. What it needs from others is a launch earlier:
//!   on the CPU there are no barriers within a kernel, no shared memory and one cube.
//! - Nothing unwinds out of a launch. A panic of one unit ends the program with exit code 101, after it was reported: the
//!   others would wait for that unit for ever. Nothing that a user gives leads there.
//! - Kernels need no more stack than the smallest thread that may call ([`host`] runs unit 0 where it is called).

mod client;
#[cfg(feature = "cpu")]
mod compiled;
#[cfg(feature = "cpu")]
mod host;
#[cfg(feature = "cpu")]
mod llvm;
#[cfg(feature = "cpu")]
mod lower;
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

/// What identifies the kernels that each step launches on the CPU, over an allocation of that many elements.
#[cfg(all(test, feature = "cpu"))]
pub(crate) fn recorded_kernels(
    profile: DeviceProfile,
    elements: usize,
    steps: &[Launches],
) -> Result<Vec<Vec<cubecl_runtime::id::KernelId>>, String> {
    let handles: Arc<[Handle]> = [recorder::Recorder::handle(4 * elements as u64)].into();
    let recorded = recorder::Recorder::record(profile, &handles, Arg::new(0, 0, elements), steps)?;
    Ok(recorded.iter().map(|step| step.iter().map(|launch| launch.kernel.id()).collect()).collect())
}

/// Whether LLVM takes the loops of a kernel as they are written.
#[cfg(all(test, feature = "cpu"))]
pub(crate) fn is_compiled_as_written(kernel: &cubecl_runtime::id::KernelId) -> bool {
    compiled::passes(kernel) == llvm::Passes::AsWritten
}

/// The objects that another processor would be given for launches over a buffer of that many elements.
#[cfg(all(test, feature = "cpu"))]
pub(crate) fn objects_for(
    processor: &str,
    profile: DeviceProfile,
    elements: usize,
    launches: Launches,
) -> Result<Vec<Vec<u8>>, String> {
    let handles: Arc<[Handle]> = [recorder::Recorder::handle(4 * elements as u64)].into();
    let recorded = recorder::Recorder::record(profile, &handles, Arg::new(0, 0, elements), &[launches])?;
    compiled::objects_for(processor, &recorded.into_iter().flatten().collect::<Vec<_>>())
}

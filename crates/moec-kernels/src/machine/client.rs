//! A device that CubeCL's runtime drives.
//!
//! Launching through the runtime looks up the kernel, resolves its buffers and uploads its scalars each time, which takes
//! longer than most kernels do on a graphics device. So a sequence is recorded the first time it is run, and replayed
//! from then on: its launches are always the same.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cubecl::bytes::Bytes;
use cubecl::client::{Client, Graph};
use cubecl::server::Handle;
use cubecl_core::environment::stream::StreamId;

use super::{Launches, Machine, Workload, launch_on};
use crate::kernels::fill;
use crate::launch::{Arg, DeviceProfile, Launcher};

/// Memory in the runtime's pool, and recorded sequences of launches over it.
pub(crate) struct ClientMachine {
    client: Client,
    profile: DeviceProfile,
    sequences: Vec<Sequence>,
    // After the recordings: they refer to the memory.
    allocations: Arc<[Handle]>,
    scratch: Arg,
}

/// A sequence of launches.
struct Sequence {
    steps: Vec<Launches>,
    recording: Recording,
}

/// How far the recording of a sequence is.
enum Recording {
    /// It has not been run.
    Wanted,
    /// It can be replayed.
    Made(Graph),
    /// The runtime does not record on this device.
    Refused,
}

/// The stream of all machines: what they write, run and read is in order, and what one has given back the next gets.
static STREAM: OnceLock<StreamId> = OnceLock::new();

impl ClientMachine {
    /// Allocates and clears the memory.
    #[allow(unsafe_code, reason = "the stream of a client")]
    pub(crate) fn new(client: &Client, profile: DeviceProfile, workload: Workload) -> Result<Self, String> {
        let Workload { sizes, scratch, sequences } = workload;
        let mut client = client.clone();
        let stream = *STREAM.get_or_init(StreamId::allocate);
        // SAFETY: all handles below are made, written, used and read in this stream, and in no other.
        unsafe { client.set_stream(stream) };
        let buffers: Vec<Arg> = sizes.iter().enumerate().map(|(i, bytes)| Arg::new(i, 0, bytes / 4)).collect();
        // The way of allocating is set for the stream of the thread, not of the client.
        let allocations = stream.executes(|| {
            client.memory_persistent_allocation(sizes, |sizes: Vec<usize>| {
                sizes.into_iter().map(|bytes| client.empty(bytes)).collect::<Arc<[_]>>()
            })
        });
        let sequences = sequences.into_iter().map(|steps| Sequence { steps, recording: Recording::Wanted }).collect();
        let machine = Self { client, profile, sequences, allocations, scratch };
        machine.launch(|launcher| {
            for &buffer in buffers.iter().filter(|b| b.elements() > 0) {
                fill::launch(launcher, buffer, 0.0);
            }
        })?;
        machine.client.flush().map_err(|error| error.to_string())?;
        Ok(machine)
    }

    fn launch<T: Send + 'static>(&self, launches: impl FnOnce(&Launcher) -> T + Send) -> Result<T, String> {
        launch_on(&self.client, self.profile, &self.allocations, self.scratch, launches)
    }

    fn launch_steps(&self, sequence: usize) -> Result<(), String> {
        self.launch(|launcher| self.sequences[sequence].steps.iter().for_each(|step| step(launcher)))
    }

    /// Runs a sequence and then records it, while nobody else reaches the device: whatever is launched in the stream
    /// meanwhile becomes part of the recording.
    fn run_and_record(&self, sequence: usize) -> Result<Recording, String> {
        let recorded = self.client.exclusive(|| {
            if self.client.graph_prepare().is_err() {
                return self.launch_steps(sequence).map(|()| Recording::Refused);
            }
            // The runtime learns from this run what a recording needs.
            let run = self.launch_steps(sequence);
            let opened = run.is_ok() && self.client.start_capture().is_ok();
            let again = if opened { self.launch_steps(sequence) } else { Ok(()) };
            // Also where something failed: what was prepared must end.
            let graph = self.client.stop_capture();
            run.and(again)?;
            match graph {
                Ok(graph) => Ok(Recording::Made(graph)),
                // What the launches should have written cannot be used any more.
                Err(error) if opened => Err(error.to_string()),
                Err(_) => Ok(Recording::Refused),
            }
        });
        recorded.map_err(|error| error.to_string())?
    }
}

impl Machine for ClientMachine {
    fn write(&mut self, arg: Arg, bytes: Bytes) -> Result<(), String> {
        self.client.write(&arg.handle(&self.allocations), bytes);
        Ok(())
    }

    fn read(&mut self, arg: Arg) -> Result<Vec<u8>, String> {
        let bytes = self.client.read_one(arg.handle(&self.allocations)).map_err(|error| error.to_string())?;
        Ok(bytes.to_vec())
    }

    #[allow(unsafe_code, reason = "replaying launches")]
    fn run(&mut self, sequence: usize) -> Result<(), String> {
        match &self.sequences[sequence].recording {
            Recording::Wanted => self.sequences[sequence].recording = self.run_and_record(sequence)?,
            // SAFETY: the allocations live as long as the machine, and only its stream uses them.
            Recording::Made(graph) => unsafe { graph.replay() }.map_err(|error| error.to_string())?,
            Recording::Refused => self.launch_steps(sequence)?,
        }
        Ok(())
    }

    fn run_timed(&mut self, sequence: usize) -> Result<Vec<Duration>, String> {
        self.launch(|launcher| {
            let timed = self.sequences[sequence].steps.iter().map(|step| {
                let begun = Instant::now();
                step(launcher);
                let waited = cubecl::future::block_on(self.client.sync());
                waited.map(|()| begun.elapsed()).map_err(|error| error.to_string())
            });
            timed.collect()
        })?
    }
}

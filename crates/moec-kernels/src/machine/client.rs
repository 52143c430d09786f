//! A device that CubeCL's runtime drives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::server::Handle;

use super::{Launches, Machine, Workload, launch_on};
use crate::kernels::fill;
use crate::launch::{Arg, DeviceProfile, Launcher};

/// Memory in the runtime's pool; every run launches every kernel anew.
pub(crate) struct ClientMachine {
    client: Client,
    profile: DeviceProfile,
    allocations: Arc<[Handle]>,
    scratch: Arg,
    sequences: Vec<Vec<Launches>>,
}

impl ClientMachine {
    /// Allocates and clears the memory.
    pub(crate) fn new(client: &Client, profile: DeviceProfile, workload: Workload) -> Result<Self, String> {
        let Workload { sizes, scratch, sequences } = workload;
        let buffers: Vec<Arg> = sizes.iter().enumerate().map(|(i, bytes)| Arg::new(i, 0, bytes / 4)).collect();
        let allocations = client.memory_persistent_allocation(sizes, |sizes: Vec<usize>| {
            sizes.into_iter().map(|bytes| client.empty(bytes)).collect::<Arc<[_]>>()
        });
        let machine = Self { client: client.clone(), profile, allocations, scratch, sequences };
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

    fn run(&mut self, sequence: usize) -> Result<(), String> {
        self.launch(|launcher| self.sequences[sequence].iter().for_each(|step| step(launcher)))
    }

    fn run_timed(&mut self, sequence: usize) -> Result<Vec<Duration>, String> {
        self.launch(|launcher| {
            let timed = self.sequences[sequence].iter().map(|step| {
                let begun = Instant::now();
                step(launcher);
                let waited = cubecl::future::block_on(self.client.sync());
                waited.map(|()| begun.elapsed()).map_err(|error| error.to_string())
            });
            timed.collect()
        })?
    }
}

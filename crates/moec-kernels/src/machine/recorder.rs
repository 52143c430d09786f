//! Launches as values: a CubeCL server that keeps what it is asked to launch.
//!
//! A kernel's launch function takes a client, and a client reaches a server. The one here is CubeCL's server for the CPU
//! in all but launching, so that kernels are made for the device that they then run on.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::prelude::{CubeCount, CubeKernel};
use cubecl::server::Handle;
use cubecl_core::device::{DeviceId, DeviceService, ServerUtilitiesHandle};
use cubecl_core::environment::future::DynFut;
use cubecl_core::environment::stream::StreamId;
use cubecl_core::profile::ProfileDuration;
use cubecl_cpu::compute::server::CpuServer;
use cubecl_runtime::dry_run::LaunchMode;
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::{ManagedMemoryHandle, MemoryAllocationMode, StreamMemoryReport};
use cubecl_runtime::server::{
    BufferBinding, CopyDescriptor, KernelArguments, KernelResource, ProfileError, ProfilingToken, Server,
    ServerCommunication, ServerError, ServerStorage, ServerUtilities,
};
use cubecl_runtime::storage::{ComputeStorage, ManagedResource};

use super::{Launches, launch_on};
use crate::launch::{Arg, DeviceProfile};

/// A launch that was asked for.
pub(super) struct Recorded {
    /// The kernel with its comptime configuration.
    pub(super) kernel: Box<dyn CubeKernel>,
    /// Cubes along each axis.
    pub(super) cubes: [u32; 3],
    /// First byte of each buffer, in the order of the kernel's arguments.
    pub(super) offsets: Vec<usize>,
    /// Scalars and lengths.
    pub(super) metadata: Vec<u64>,
}

/// What the server has kept, or why it could not. There is one server in a process, and whoever records has it alone.
static RECORDED: Mutex<Vec<Result<Recorded, String>>> = Mutex::new(Vec::new());

/// The server.
pub(super) struct Recorder {
    cpu: CpuServer,
}

impl Recorder {
    fn client() -> Client {
        static CLIENT: OnceLock<Client> = OnceLock::new();
        CLIENT.get_or_init(|| Client::load::<Recorder>(DeviceId { type_id: 0, index_id: 0 })).clone()
    }

    /// Memory of that many bytes as the argument of launches that are recorded; there is none behind it.
    pub(super) fn handle(bytes: u64) -> Handle {
        Handle::new(Self::client().service_id(), StreamId::current(), bytes)
    }

    /// What steps launch, step by step.
    pub(super) fn record(
        profile: DeviceProfile,
        handles: &Arc<[Handle]>,
        scratch: Arg,
        steps: &[Launches],
    ) -> Result<Vec<Vec<Recorded>>, String> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        take().ok();
        launch_on(&Self::client(), profile, handles, scratch, |launcher| {
            let recorded = steps.iter().map(|step| {
                step(launcher);
                take()
            });
            recorded.collect()
        })?
    }
}

fn take() -> Result<Vec<Recorded>, String> {
    let recorded = std::mem::take(&mut *RECORDED.lock().unwrap_or_else(PoisonError::into_inner));
    recorded.into_iter().collect()
}

/// A launch as a value: with as many cubes as are known now, and buffers as its only resources.
fn recorded(kernel: Box<dyn CubeKernel>, count: &CubeCount, bindings: KernelArguments) -> Result<Recorded, String> {
    let CubeCount::Static(x, y, z) = *count else {
        return Err(format!("kernel {}: its cubes are counted on the device", kernel.name()));
    };
    let offset = |resource: &KernelResource| match resource {
        // Without an offset, it is the whole memory.
        KernelResource::Buffer(binding) => Ok(binding.offset_start.map_or(0, |offset| offset as usize)),
        KernelResource::TensorMap(_) => Err(format!("kernel {}: it takes a tensor map", kernel.name())),
    };
    let offsets = bindings.resources.iter().map(offset).collect::<Result<_, _>>()?;
    Ok(Recorded { kernel, cubes: [x, y, z], offsets, metadata: bindings.info.data })
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}

impl DeviceService for Recorder {
    fn init(device_id: DeviceId) -> Self {
        Self { cpu: CpuServer::init(device_id) }
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        DeviceService::utilities(&self.cpu)
    }
}

impl ServerCommunication for Recorder {}

impl Server for Recorder {
    #[allow(unsafe_code, reason = "the trait's signature: nothing is launched here")]
    unsafe fn launch(
        &mut self,
        kernel: Box<dyn CubeKernel>,
        count: CubeCount,
        bindings: KernelArguments,
        _stream_id: StreamId,
        _launch_mode: LaunchMode,
    ) {
        let launch = recorded(kernel, &count, bindings);
        RECORDED.lock().unwrap_or_else(PoisonError::into_inner).push(launch);
    }

    fn logger(&self) -> Arc<ServerLogger> {
        self.cpu.logger()
    }

    fn utilities(&self) -> Arc<ServerUtilities> {
        Server::utilities(&self.cpu)
    }

    fn initialize_memory(
        &mut self,
        memory: ManagedMemoryHandle,
        size: u64,
        stream_id: StreamId,
    ) -> Result<(), ServerError> {
        self.cpu.initialize_memory(memory, size, stream_id)
    }

    fn read(
        &mut self,
        descriptors: Vec<CopyDescriptor>,
        stream_id: StreamId,
    ) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        self.cpu.read(descriptors, stream_id)
    }

    fn write(&mut self, descriptors: Vec<(CopyDescriptor, Bytes)>, stream_id: StreamId) {
        self.cpu.write(descriptors, stream_id);
    }

    fn sync(&mut self, handles: Vec<BufferBinding>, stream_id: StreamId) -> DynFut<Result<(), ServerError>> {
        self.cpu.sync(handles, stream_id)
    }

    fn check(&mut self, handles: Vec<BufferBinding>, stream_id: StreamId) -> Result<(), ServerError> {
        self.cpu.check(handles, stream_id)
    }

    fn flush(&mut self, stream_id: StreamId) -> Result<(), ServerError> {
        self.cpu.flush(stream_id)
    }

    fn memory_report(&mut self, stream_id: StreamId) -> Option<StreamMemoryReport> {
        self.cpu.memory_report(stream_id)
    }

    fn memory_cleanup(&mut self, stream_id: StreamId) -> Result<(), ServerError> {
        self.cpu.memory_cleanup(stream_id)
    }

    fn start_profile(&mut self, stream_id: StreamId) -> Result<ProfilingToken, ServerError> {
        self.cpu.start_profile(stream_id)
    }

    fn end_profile(&mut self, stream_id: StreamId, token: ProfilingToken) -> Result<ProfileDuration, ProfileError> {
        self.cpu.end_profile(stream_id, token)
    }

    fn allocation_mode(&mut self, mode: MemoryAllocationMode, stream_id: StreamId) {
        self.cpu.allocation_mode(mode, stream_id);
    }
}

impl ServerStorage for Recorder {
    type Storage = <CpuServer as ServerStorage>::Storage;

    fn get_resource(
        &mut self,
        binding: BufferBinding,
        stream_id: StreamId,
    ) -> Result<ManagedResource<<Self::Storage as ComputeStorage>::Resource>, ServerError> {
        self.cpu.get_resource(binding, stream_id)
    }
}

//! The backend: programs on a CubeCL device.
//!
//! Everything is allocated when a program is prepared: one allocation per persistent tensor, one arena that all plans
//! share, and a scratch buffer for partial results. Buffers of a plan are ranges of the arena; their offsets are
//! multiples of 256 bytes, so each kernel is compiled once.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use cubecl::bytes::Bytes;
use cubecl::client::Client;
use moec_ir::{DType, Data, Tensor, TensorType};
use moec_plan::{ALIGNMENT, Backend, BackendError, Kernel, LaunchLimits, Plan, Program, Session, Step, Storage};

use crate::dispatch::{self, Operand};
use crate::launch::{Arg, DeviceProfile, Launcher, SCRATCH_ELEMENTS};
use crate::machine::{ClientMachine, Launches, Machine, Workload};
#[cfg(feature = "cpu")]
use crate::machine::{HostMachine, Team};

/// Where compiled kernels are kept from one process to the next. What is in it is run, so whoever implements this answers
/// for it: `get` returns what `put` was given with the same key, by the same program, and nothing else.
///
/// A key is text. It names the kernel with everything that is compiled into it, and the processor, but not the program: a
/// kernel's code follows from the sources of moec and CubeCL that the program was made of.
pub trait ObjectCache: Send + Sync {
    /// The object that was put there with this key.
    fn get(&self, key: &str) -> Option<Vec<u8>>;

    /// Keeps an object, or does not.
    fn put(&self, key: &str, object: &[u8]);
}

/// A device as the user names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// All cores of this machine.
    Cpu,
    /// The graphics device that wgpu finds.
    Wgpu,
}

impl Device {
    /// Every device that a build can have.
    pub const ALL: [Device; 2] = [Device::Cpu, Device::Wgpu];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Wgpu => "wgpu",
        }
    }

    /// What kernels would be shaped for, without opening the device.
    pub fn profile(self) -> DeviceProfile {
        match self {
            Device::Cpu => DeviceProfile::this_cpu(),
            Device::Wgpu => DeviceProfile::gpu(),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Runs programs with CubeCL kernels.
pub struct CubeBackend {
    device: Device,
    profile: DeviceProfile,
    opened: Opened,
}

/// A device that is there.
enum Opened {
    /// The CPU, threads for it, and where its compiled kernels are kept.
    #[cfg(feature = "cpu")]
    Host(Arc<Team>, Option<Arc<dyn ObjectCache>>),
    /// A device of CubeCL's runtimes.
    #[cfg_attr(not(feature = "wgpu"), allow(unused, reason = "a build without a runtime"))]
    Client(Client),
}

impl CubeBackend {
    /// Opens a device.
    ///
    /// # Errors
    /// [`BackendError::NoDevice`] when this build or this machine does not have it.
    pub fn open(device: Device) -> Result<Self, BackendError> {
        Self::with_profile(device, device.profile())
    }

    /// Opens the CPU with that many threads.
    ///
    /// # Errors
    /// As [`CubeBackend::open`].
    pub fn cpu_with_threads(threads: usize) -> Result<Self, BackendError> {
        Self::with_profile(Device::Cpu, DeviceProfile::cpu(threads))
    }

    pub(crate) fn with_profile(device: Device, profile: DeviceProfile) -> Result<Self, BackendError> {
        let none = |reason: String| BackendError::NoDevice { device: device.name().into(), reason };
        let opened = guarded(device, || open(device, profile))?.map_err(none)?;
        Ok(Self { device, profile, opened })
    }

    /// The same device, which keeps compiled kernels in a cache and looks for them there. Only the CPU compiles kernels
    /// that can be kept; other devices make nothing of it.
    #[must_use]
    #[cfg_attr(not(feature = "cpu"), allow(unused, reason = "a build without the CPU"))]
    pub fn with_cache(mut self, cache: Arc<dyn ObjectCache>) -> Self {
        #[cfg(feature = "cpu")]
        if let Opened::Host(_, kept) = &mut self.opened {
            *kept = Some(cache);
        }
        self
    }

    /// What kernels are shaped for.
    pub(crate) fn profile(&self) -> &DeviceProfile {
        &self.profile
    }

    /// Memory on the device with sequences of launches over it.
    pub(crate) fn machine(&self, workload: Workload) -> Result<Box<dyn Machine>, BackendError> {
        guarded(self.device, || -> Result<Box<dyn Machine>, String> {
            Ok(match &self.opened {
                #[cfg(feature = "cpu")]
                Opened::Host(team, cache) => Box::new(HostMachine::new(team, cache.clone(), self.profile, workload)?),
                Opened::Client(client) => Box::new(ClientMachine::new(client, self.profile, workload)?),
            })
        })?
        .map_err(|reason| failed(self.device, reason))
    }
}

#[cfg_attr(not(all(feature = "cpu", feature = "wgpu")), allow(unused, reason = "a build without this runtime"))]
fn open(device: Device, profile: DeviceProfile) -> Result<Opened, String> {
    match device {
        #[cfg(feature = "cpu")]
        Device::Cpu => Team::new(profile.units()).map(|team| Opened::Host(Arc::new(team), None)),
        #[cfg(feature = "wgpu")]
        Device::Wgpu => {
            crate::device::open_wgpu().map(|d| Opened::Client(d.client())).map_err(|error| error.to_string())
        }
        #[cfg(not(all(feature = "cpu", feature = "wgpu")))]
        _ => Err("this build was made without it".into()),
    }
}

/// Runs something on the device; a panic of the runtime becomes an error.
fn guarded<T>(device: Device, run: impl FnOnce() -> T) -> Result<T, BackendError> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_string()));
        failed(device, said.unwrap_or_else(|| "the runtime panicked".into()))
    })
}

fn failed(device: Device, reason: String) -> BackendError {
    BackendError::Device { device: device.name().into(), reason }
}

fn interface(message: impl Into<String>) -> BackendError {
    BackendError::Interface(message.into())
}

impl Backend for CubeBackend {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn memory_limit(&self) -> Option<u64> {
        match &self.opened {
            #[cfg(feature = "cpu")]
            Opened::Host(..) => available_memory(),
            Opened::Client(client) => client.properties().memory.max_memory(),
        }
    }

    fn prepare(&self, program: &Program) -> Result<Box<dyn Session>, BackendError> {
        program.plans.iter().try_for_each(|plan| check(program, plan, &self.profile.launch_limits()))?;
        let scratch_bytes = 4 * SCRATCH_ELEMENTS;
        // Partial results of kernels would otherwise need an empty arena to be a special case.
        let arena_bytes = program.arena_bytes().max(ALIGNMENT);
        let out_of_memory =
            |needed, available| BackendError::OutOfMemory { device: self.device.name().into(), needed, available };
        let needed =
            (program.state_bytes() as u64).saturating_add(arena_bytes as u64).saturating_add(scratch_bytes as u64);
        if let Some(available) = self.memory_limit()
            && needed > available
        {
            return Err(out_of_memory(needed, available));
        }
        match &self.opened {
            #[cfg(feature = "cpu")]
            Opened::Host(..) => {}
            Opened::Client(client) => {
                let largest = program.states.iter().map(|s| s.ty.bytes()).max().unwrap_or(0).max(arena_bytes) as u64;
                let page = client.properties().memory.max_page_size;
                if largest > page {
                    return Err(out_of_memory(largest, page));
                }
            }
        }

        let mut sizes: Vec<usize> = program.states.iter().map(|s| s.ty.bytes().max(4)).collect();
        sizes.extend([arena_bytes, scratch_bytes]);
        let (arena, scratch) = (program.states.len(), program.states.len() + 1);
        let states: Vec<Arg> =
            program.states.iter().enumerate().map(|(i, s)| Arg::new(i, 0, s.ty.elements())).collect();
        let plans: Vec<Prepared> = program.plans.iter().map(|plan| Prepared::new(plan, &states, arena)).collect();
        let sequences = program.plans.iter().zip(&plans).map(|(plan, prepared)| prepared.launches(plan)).collect();
        let scratch = Arg::new(scratch, 0, SCRATCH_ELEMENTS);
        let machine = self.machine(Workload { sizes, scratch, sequences })?;
        let buffers = plans.into_iter().map(|p| p.buffers).collect();
        Ok(Box::new(CubeSession {
            device: self.device,
            machine,
            program: program.clone(),
            states,
            buffers,
            last: None,
        }))
    }
}

/// Checks that the steps of a plan have types that their kernels are for and that buffers lie within their storage:
/// launching relies on it.
fn check(program: &Program, plan: &Plan, limits: &LaunchLimits) -> Result<(), BackendError> {
    let at = |name: &str, message: String| Err(interface(format!("`{}`, %{name}: {message}", plan.name)));
    for buffer in &plan.buffers {
        let fits = match buffer.storage {
            Storage::State(s) => program.states.get(s).is_some_and(|s| s.ty.bytes() >= buffer.ty.bytes()),
            Storage::Arena(offset) => {
                offset % ALIGNMENT == 0 && offset.saturating_add(buffer.ty.bytes()) <= plan.arena_bytes
            }
        };
        if !fits {
            return at(&buffer.name, "the buffer is outside of its storage".into());
        }
    }
    let ty = |id: &moec_plan::BufferId| plan.buffers.get(id.index()).map(|b| &b.ty);
    for step in &plan.steps {
        let operands: Option<Vec<&TensorType>> = step.operands.iter().map(ty).collect();
        let results: Option<Vec<&TensorType>> = step.results.iter().map(ty).collect();
        let (Some(operands), Some(results)) = (operands, results) else {
            return at(&step.name, "there is no such buffer".into());
        };
        let kernel = step.kernel();
        if let Err(reason) = kernel.check(&operands, &results).and_then(|()| limits.check(kernel, &operands)) {
            return at(&step.name, format!("{}: {reason}", kernel.mnemonic()));
        }
    }
    Ok(())
}

/// The steps of a plan with their buffers resolved.
struct Prepared {
    buffers: Vec<Arg>,
    steps: Vec<(Vec<Operand>, Vec<Operand>)>,
}

impl Prepared {
    fn new(plan: &Plan, states: &[Arg], arena: usize) -> Self {
        let buffers: Vec<Arg> = plan
            .buffers
            .iter()
            .map(|b| match b.storage {
                Storage::State(s) => states[s].first(b.ty.elements()),
                Storage::Arena(offset) => Arg::new(arena, offset, b.ty.elements()),
            })
            .collect();
        let resolve = |ids: &[moec_plan::BufferId]| -> Vec<Operand> {
            ids.iter().map(|id| Operand { arg: buffers[id.index()], ty: plan.buffer(*id).ty.clone() }).collect()
        };
        let steps = plan.steps.iter().map(|s| (resolve(&s.operands), resolve(&s.results))).collect();
        Self { buffers, steps }
    }

    /// What launches each step.
    fn launches(&self, plan: &Plan) -> Vec<Launches> {
        let steps = plan.steps.iter().map(|s| s.kernel().clone()).zip(self.steps.iter().cloned());
        let launches = |(kernel, (operands, results)): (Kernel, (Vec<Operand>, Vec<Operand>))| -> Launches {
            Box::new(move |launcher| dispatch::step(launcher, &kernel, &operands, &results))
        };
        steps.map(launches).collect()
    }
}

/// The kernels that each step of a plan launches on a device of that kind, by name and comptime configuration, without
/// opening one. Two equal names are one compiled kernel.
///
/// # Errors
/// [`BackendError::Interface`] when the plan is not one that can be prepared.
pub fn kernel_names(program: &Program, plan: &str, profile: &DeviceProfile) -> Result<Vec<Vec<String>>, BackendError> {
    let plan = program.plan(plan).ok_or_else(|| interface(format!("there is no function `{plan}`")))?;
    check(program, plan, &profile.launch_limits())?;
    let states: Vec<Arg> = program.states.iter().enumerate().map(|(i, s)| Arg::new(i, 0, s.ty.elements())).collect();
    let prepared = Prepared::new(plan, &states, states.len());
    let launcher = Launcher::listing(*profile);
    let names = |(step, (operands, results)): (&Step, &(Vec<Operand>, Vec<Operand>))| {
        dispatch::step(&launcher, step.kernel(), operands, results);
        launcher.take_names()
    };
    Ok(plan.steps.iter().zip(&prepared.steps).map(names).collect())
}

struct CubeSession {
    device: Device,
    machine: Box<dyn Machine>,
    program: Program,
    states: Vec<Arg>,
    /// The buffers of each plan.
    buffers: Vec<Vec<Arg>>,
    /// The plan whose outputs are in the arena.
    last: Option<usize>,
}

impl CubeSession {
    fn state_index(&self, name: &str) -> Result<usize, BackendError> {
        let found = self.program.states.iter().position(|s| s.name == name);
        found.ok_or_else(|| interface(format!("there is no persistent tensor `{name}`")))
    }

    fn plan_index(&self, name: &str) -> Result<usize, BackendError> {
        let found = self.program.plans.iter().position(|p| p.name == name);
        found.ok_or_else(|| interface(format!("there is no function `{name}`")))
    }

    /// Asks the machine for something.
    fn with_machine<T>(&mut self, ask: impl FnOnce(&mut dyn Machine) -> Result<T, String>) -> Result<T, BackendError> {
        let device = self.device;
        guarded(device, || ask(&mut *self.machine))?.map_err(|reason| failed(device, reason))
    }

    /// Writes the inputs of a plan and runs it as `run` says.
    fn execute<T>(
        &mut self,
        plan: &str,
        inputs: &[(&str, &Tensor)],
        run: impl FnOnce(&mut dyn Machine, usize) -> Result<T, String>,
    ) -> Result<T, BackendError> {
        let index = self.plan_index(plan)?;
        let plan = &self.program.plans[index];
        if let Some((name, _)) = inputs.iter().find(|(name, _)| !plan.inputs.iter().any(|p| p.name == *name)) {
            return Err(interface(format!("`{}` has no input `{name}`", plan.name)));
        }
        let mut values = Vec::new();
        for port in &plan.inputs {
            let ty = &plan.buffer(port.buffer).ty;
            let (_, value) = inputs
                .iter()
                .find(|(name, _)| *name == port.name)
                .ok_or_else(|| interface(format!("input `{}` of `{}` is not given", port.name, plan.name)))?;
            if value.ty() != *ty {
                return Err(interface(format!("input `{}` is {ty}, but the value given is {}", port.name, value.ty())));
            }
            values.push((self.buffers[index][port.buffer.index()], *value));
        }
        self.last = None;
        let result = self.with_machine(|machine| {
            for (arg, value) in values {
                write(machine, arg, value)?;
            }
            run(machine, index)
        })?;
        self.last = Some(index);
        Ok(result)
    }

    fn read(&mut self, arg: Arg, ty: &TensorType) -> Result<Tensor, BackendError> {
        let bytes = match arg.elements() {
            0 => Vec::new(),
            _ => self.with_machine(|machine| machine.read(arg))?,
        };
        let words = bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
        let data = match ty.dtype {
            DType::F32 => Data::F32(words.map(f32::from_ne_bytes).collect()),
            DType::I32 => Data::I32(words.map(i32::from_ne_bytes).collect()),
        };
        Tensor::new(ty.shape.clone(), data)
            .ok_or_else(|| failed(self.device, format!("reading {ty} gave another length")))
    }
}

fn write(machine: &mut dyn Machine, arg: Arg, value: &Tensor) -> Result<(), String> {
    if arg.elements() == 0 {
        return Ok(());
    }
    let bytes = match value.data() {
        Data::F32(v) => Bytes::from_elems(v.clone()),
        Data::F64(_) => Bytes::from_elems(value.to_f32()),
        Data::I32(v) => Bytes::from_elems(v.clone()),
    };
    machine.write(arg, bytes)
}

impl Session for CubeSession {
    fn write_state(&mut self, name: &str, value: &Tensor) -> Result<(), BackendError> {
        let index = self.state_index(name)?;
        let ty = &self.program.states[index].ty;
        if value.ty() != *ty {
            return Err(interface(format!("`{name}` is {ty}, but the value given is {}", value.ty())));
        }
        let arg = self.states[index];
        self.with_machine(|machine| write(machine, arg, value))
    }

    fn read_state(&mut self, name: &str) -> Result<Tensor, BackendError> {
        let index = self.state_index(name)?;
        let ty = self.program.states[index].ty.clone();
        self.read(self.states[index], &ty)
    }

    fn run(&mut self, plan: &str, inputs: &[(&str, &Tensor)]) -> Result<(), BackendError> {
        self.execute(plan, inputs, |machine, sequence| machine.run(sequence))
    }

    fn run_timed(&mut self, plan: &str, inputs: &[(&str, &Tensor)]) -> Result<Vec<Duration>, BackendError> {
        self.execute(plan, inputs, |machine, sequence| machine.run_timed(sequence))
    }

    fn output(&mut self, plan: &str, name: &str) -> Result<Tensor, BackendError> {
        let index = self.plan_index(plan)?;
        if self.last != Some(index) {
            return Err(interface(format!("`{plan}` is not what ran last")));
        }
        let plan = &self.program.plans[index];
        let port = plan.outputs.iter().find(|p| p.name == name);
        let port = port.ok_or_else(|| interface(format!("`{}` has no output `{name}`", plan.name)))?;
        let ty = plan.buffer(port.buffer).ty.clone();
        self.read(self.buffers[index][port.buffer.index()], &ty)
    }
}

/// Bytes that this process can still get: what the kernel calls available, or what is left of the control group's
/// limit. `None` where the operating system does not say.
pub fn available_memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let meminfo = read("/proc/meminfo")?;
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let free = line.split_whitespace().next()?.parse::<u64>().ok()?.saturating_mul(1024);
    // Files without a limit hold the word `max`, or a number beyond any memory.
    let limits = [
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ];
    let left = limits.iter().filter_map(|(max, used)| Some(number(max)?.saturating_sub(number(used)?)));
    Some(left.fold(free, u64::min))
}

//! The CPU: one mapping of memory, and recorded launches that a team of threads runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cubecl::bytes::Bytes;
use cubecl::server::Handle;
use cubecl_llvm::PlironData;
use memmap2::{MmapMut, MmapRaw};

use super::compiled::{self, Key};
use super::recorder::Recorder;
use super::team::{Launch, Script, Team};
use super::{Launches, Machine, Workload};
use crate::ObjectCache;
use crate::launch::{Arg, DeviceProfile};
use moec_plan::ALIGNMENT;

/// Memory of this process, and a team that runs launches over it.
pub(crate) struct HostMachine {
    team: Arc<Team>,
    /// Where compiled kernels are looked for.
    cache: Option<Arc<dyn ObjectCache>>,
    profile: DeviceProfile,
    memory: MmapRaw,
    /// Where each allocation starts.
    starts: Vec<usize>,
    /// The allocations as arguments of launches that are recorded.
    handles: Arc<[Handle]>,
    scratch: Arg,
    sequences: Vec<Sequence>,
}

/// Launches before and after they are recorded and their kernels compiled, which is when they first run.
enum Sequence {
    Pending(Vec<Launches>),
    Ready(Arc<Script>),
}

impl HostMachine {
    /// Maps the memory; the system gives pages as they are first touched, zero.
    pub(crate) fn new(
        team: &Arc<Team>,
        cache: Option<Arc<dyn ObjectCache>>,
        profile: DeviceProfile,
        workload: Workload,
    ) -> Result<Self, String> {
        let Workload { sizes, scratch, sequences } = workload;
        let mut end = 0usize;
        let mut starts = Vec::with_capacity(sizes.len());
        for &bytes in &sizes {
            starts.push(end);
            let next = end.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
            end = next.ok_or("no machine has that much memory")?;
        }
        let memory = MmapMut::map_anon(end.max(1)).map_err(|error| error.to_string())?;
        // A step touches tens of thousands of small pages. Only a hint: where there are no large ones, it is slower.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        let whole = Recorder::handle(end as u64);
        let handles = starts
            .iter()
            .zip(&sizes)
            .map(|(&start, &bytes)| whole.clone().offset_start(start as u64).offset_end((end - start - bytes) as u64))
            .collect();
        let sequences = sequences.into_iter().map(Sequence::Pending).collect();
        Ok(Self { team: team.clone(), cache, profile, memory: memory.into(), starts, handles, scratch, sequences })
    }

    /// The bytes of a buffer.
    #[allow(unsafe_code, reason = "memory that kernels reach by pointers")]
    fn bytes(&mut self, arg: Arg) -> Result<&mut [u8], String> {
        let (allocation, range) = arg.place();
        let (start, length) = (self.starts[allocation] + range.start, range.len());
        if start.checked_add(length).is_none_or(|end| end > self.memory.len()) {
            return Err("a buffer is outside of the memory".into());
        }
        // SAFETY: the range is within the mapping, which lives as long as `self`; all bytes of it are initialised, zero
        // at first. No kernel runs: `run` waits for what it starts, and it borrows `self` mutably, as this does.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().add(start), length) })
    }

    /// The launches of a sequence, ready to run.
    fn script(&mut self, sequence: usize) -> Result<Arc<Script>, String> {
        let steps = match &self.sequences[sequence] {
            Sequence::Ready(script) => return Ok(script.clone()),
            Sequence::Pending(steps) => steps,
        };
        let recorded = Recorder::record(self.profile, &self.handles, self.scratch, steps)?;
        let compiled = compiled::compiled(recorded.iter().flatten(), self.cache.as_deref())?;
        give_back_free_memory();
        let base = self.memory.as_mut_ptr();
        let mut script = Script::default();
        for step in &recorded {
            for launch in step {
                let kernel = *compiled.get(&Key::of(launch)).ok_or("a kernel is missing")?;
                // The pointers stay valid as long as the machine, which runs its scripts itself, and waits for them.
                let pointers = launch.offsets.iter().map(|&offset| base.wrapping_add(offset).cast()).collect();
                let data = PlironData::new(pointers, launch.metadata.clone(), launch.cubes, Vec::new());
                script.launches.push(Launch::new(kernel, &data, self.team.units()));
            }
            script.ends.push(script.launches.len());
        }
        let script = Arc::new(script);
        self.sequences[sequence] = Sequence::Ready(script.clone());
        Ok(script)
    }
}

impl Machine for HostMachine {
    fn write(&mut self, arg: Arg, bytes: Bytes) -> Result<(), String> {
        let buffer = self.bytes(arg)?;
        if buffer.len() != bytes.len() {
            return Err(format!("{} bytes for a buffer of {}", bytes.len(), buffer.len()));
        }
        buffer.copy_from_slice(&bytes);
        Ok(())
    }

    fn read(&mut self, arg: Arg) -> Result<Vec<u8>, String> {
        Ok(self.bytes(arg)?.to_vec())
    }

    fn run(&mut self, sequence: usize) -> Result<(), String> {
        let script = self.script(sequence)?;
        self.team.run(&script, None);
        Ok(())
    }

    fn run_timed(&mut self, sequence: usize) -> Result<Vec<Duration>, String> {
        let script = self.script(sequence)?;
        let mut begun = Instant::now();
        let mut ends = vec![begun; script.launches.len()];
        self.team.run(&script, Some(&mut ends));
        // A step without launches ends when the one before it does.
        let mut first = 0;
        let times = script.ends.iter().map(|&end| {
            let done = ends[first..end].last().copied().unwrap_or(begun);
            first = end;
            done - std::mem::replace(&mut begun, done)
        });
        Ok(times.collect())
    }
}

/// Gives memory that was freed back to the system: LLVM leaves tens of megabytes behind, before most of the program's
/// own memory is first touched.
#[allow(unsafe_code, reason = "a call into the C library")]
fn give_back_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: no pointer goes in, and only memory that nobody owns goes out; the function may be called by any thread at
    // any time (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}

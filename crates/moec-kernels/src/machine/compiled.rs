//! Compiled kernels: those that the process has, those that a cache has, and the rest, compiled on all cores.
//!
//! A kernel becomes an object, and an object becomes code of this process. Only objects are linked, those of the cache and
//! those just made alike, so that it cannot matter where one comes from.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{LazyLock, Mutex, PoisonError};

use cubecl_llvm::PlironData;
use cubecl_runtime::id::KernelId;
use moec_plan::on_threads;

use super::llvm::{Linker, Passes, Processor};
use super::lower::lower;
use super::recorder::Recorded;
use crate::ObjectCache;

/// Alignment that kernels are compiled for: CubeCL's own for memory of the CPU.
const KERNEL_ALIGNMENT: u32 = 64;

/// How CubeCL's kernels for the CPU are called: pointers to the buffers, the number of cubes, the position of the unit, the
/// state of a barrier, and the metadata.
type KernelFunction = unsafe extern "C" fn(*mut *mut c_void, u32, u32, u32, u32, u32, u32, *mut u32, *mut u64);

/// A compiled kernel. It is code of this process to its end.
#[derive(Clone, Copy)]
pub(super) struct Compiled(KernelFunction);

impl Compiled {
    /// Runs one unit.
    #[allow(unsafe_code, reason = "a call into compiled code")]
    pub(super) fn run(self, data: &PlironData) {
        let [x, y, z, unit_x, unit_y, unit_z] = data.builtins;
        let shared = &data.shared;
        // SAFETY: this is how CubeCL calls what its compiler made for the CPU (`PlironEngine::run_kernel`), and the arguments
        // are the ones that its launch function gave; a kernel writes to its buffers and the barrier's state only, which is
        // made of atomic numbers. That the buffers are there is `machine.rs`' promise.
        unsafe {
            let buffers = shared.buffer_ptrs.as_ptr().cast_mut();
            let barrier = shared.sync_cube_state.as_ptr().cast_mut().cast();
            (self.0)(buffers, x, y, z, unit_x, unit_y, unit_z, barrier, shared.metadata.as_ptr().cast_mut());
        }
    }
}

/// In whose names CubeCL has the kernels of products in tiles of registers.
const TILES: &str = "::matmul::tiles::";

/// The passes that a kernel is worth. Products are more than half of what a training step has LLVM optimise.
pub(super) fn passes(kernel: &KernelId) -> Passes {
    if kernel.type_name().contains(TILES) { Passes::AsWritten } else { Passes::All }
}

/// What a compiled kernel depends on within a process: the kernel, and the alignment of its buffers.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    kernel: KernelId,
    alignment: u32,
}

impl Key {
    /// That of a launch.
    pub(super) fn of(launch: &Recorded) -> Self {
        let exponents = launch.offsets.iter().map(|offset| offset.trailing_zeros());
        let exponent = exponents.fold(KERNEL_ALIGNMENT.trailing_zeros(), u32::min);
        Self { kernel: launch.kernel.id(), alignment: 1 << exponent }
    }

    /// The name of the kernel in its object.
    fn symbol(&self) -> String {
        format!("kernel_{:032x}_{}", self.kernel.stable_hash(), self.alignment)
    }

    /// What the object depends on, as text that means the same in another process of this program.
    fn text(&self, processor: &str) -> String {
        format!("{}\n{}\n{processor}", self.symbol(), self.kernel.stable_format())
    }
}

/// Compiled kernels of all machines of the process.
static COMPILED: LazyLock<Mutex<HashMap<Key, Compiled>>> = LazyLock::new(Mutex::default);

/// The compiled kernels of launches. Those that neither the process nor the cache has are compiled on all cores.
pub(super) fn compiled<'a>(
    launches: impl Iterator<Item = &'a Recorded>,
    cache: Option<&dyn ObjectCache>,
) -> Result<HashMap<Key, Compiled>, String> {
    let mut found = HashMap::new();
    let mut missing: Vec<(Key, &Recorded)> = Vec::new();
    let known = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    for launch in launches {
        let key = Key::of(launch);
        if found.contains_key(&key) || missing.iter().any(|(k, _)| *k == key) {
            continue;
        }
        match known.get(&key) {
            Some(&compiled) => drop(found.insert(key, compiled)),
            None => missing.push((key, launch)),
        }
    }
    drop(known);
    if missing.is_empty() {
        return Ok(found);
    }
    let processor = Processor::this()?;
    let described = processor.describe();
    if let Some(cache) = cache {
        missing = take_from(cache, missing, &described, &mut found);
    }
    for (key, object) in compile(&missing, processor)? {
        let compiled = link(&key, &object).map_err(|error| failed(&key, error))?;
        if let Some(cache) = cache {
            cache.put(&key.text(&described), &object);
        }
        found.insert(key, compiled);
    }
    Ok(found)
}

/// The objects of kernels, which are made on all cores. Those with most to optimise come first, so that no core is left with
/// a long one at the end.
fn compile(missing: &[(Key, &Recorded)], processor: &Processor) -> Result<Vec<(Key, Vec<u8>)>, String> {
    let texts = on_threads(missing, |(key, launch)| lower(&*launch.kernel, key.alignment));
    let texts: Vec<_> = texts.into_iter().collect::<Result<_, _>>()?;
    let mut kernels: Vec<_> = missing.iter().map(|(key, _)| key).zip(texts).collect();
    kernels.sort_by_key(|(_, text)| Reverse(text.module.len()));
    let objects = on_threads(&kernels, |(key, text)| {
        let object = processor.object(&text.module, passes(&key.kernel), &text.entry, &key.symbol());
        object.map(|object| ((*key).clone(), object)).map_err(|error| failed(key, error))
    });
    objects.into_iter().collect()
}

/// The objects that another processor would be given for launches.
#[cfg(test)]
pub(super) fn objects_for(processor: &str, launches: &[Recorded]) -> Result<Vec<Vec<u8>>, String> {
    let missing: Vec<_> = launches.iter().map(|launch| (Key::of(launch), launch)).collect();
    let objects = compile(&missing, &Processor::named(processor)?)?;
    Ok(objects.into_iter().map(|(_, object)| object).collect())
}

fn failed(key: &Key, error: String) -> String {
    format!("kernel {}: {error}", key.kernel.short_name())
}

/// Links what the cache has, and returns what it has not, or what cannot be linked.
fn take_from<'a>(
    cache: &dyn ObjectCache,
    missing: Vec<(Key, &'a Recorded)>,
    processor: &str,
    found: &mut HashMap<Key, Compiled>,
) -> Vec<(Key, &'a Recorded)> {
    let mut left = Vec::new();
    for (key, launch) in missing {
        match cache.get(&key.text(processor)).and_then(|object| link(&key, &object).ok()) {
            Some(compiled) => drop(found.insert(key, compiled)),
            None => left.push((key, launch)),
        }
    }
    left
}

/// The code of an object, unless another machine has linked the same kernel in the meantime.
#[allow(unsafe_code, reason = "a pointer to compiled code becomes a function")]
fn link(key: &Key, object: &[u8]) -> Result<Compiled, String> {
    let mut known = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(&compiled) = known.get(key) {
        return Ok(compiled);
    }
    let address = Linker::this()?.link(object, &key.symbol())?;
    // SAFETY: the object was made by `Processor::object` of a kernel that CubeCL lowered for the CPU, so the symbol is a
    // function of this type. What comes from a cache was put there with the same text (`ObjectCache` promises so).
    let compiled = Compiled(unsafe { std::mem::transmute::<*const c_void, KernelFunction>(address) });
    known.insert(key.clone(), compiled);
    Ok(compiled)
}

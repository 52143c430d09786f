//! How a kernel is launched: the device's profile, buffers as kernel arguments, and one place that counts launches.
//!
//! A kernel launcher is a plain function `launch(l: &Launcher, operands.., results.., extents..)`. It chooses a vector
//! width with [`Launcher::width`] or [`Launcher::matrix_width`] and calls [`Launcher::launch`] once per kernel. The
//! same functions list the kernels of a plan without a device: then the closure that launches is never called.
//!
//! Arguments that belong together are one `struct` with `#[derive(CubeType, CubeLaunch)]`. CubeCL takes it apart where a
//! kernel is made, so a launch costs the same; the order of its fields is that of the buffers and scalars.
//!
//! Widths: a buffer is bound as vectors of `w` floats only if every extent that a vector must not straddle is a
//! multiple of `w`; otherwise `w` is 1. Buffers start at multiples of 256 bytes.

#![allow(clippy::manual_div_ceil, reason = "the kernel language has no `div_ceil`")]

#[cfg(all(test, feature = "cpu"))]
mod tests;

use std::cell::RefCell;
use std::collections::BTreeMap;
#[cfg(feature = "cpu")]
use std::ops::Range;
use std::sync::Arc;

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;
use moec_plan::LaunchLimits;

/// Units of a cube on a graphics device.
pub(crate) const GPU_CUBE: u32 = 64;

/// Most cubes of a launch on a graphics device; beyond that a unit, or a cube, takes several items one after the other.
const GPU_CUBES: usize = 2048;

/// Floats of the scratch buffer that every session has, for partial results of one step.
pub(crate) const SCRATCH_ELEMENTS: usize = 1 << 20;

/// Widest vectors of elementwise work, in elements: on the CPU two registers, so that two chains of operations overlap.
const WIDEST_VECTORS: usize = 16;

/// Most buffers that a launch can bind: Metal has the fewest. Kernels are launched alike on all devices.
const MOST_BINDINGS: usize = 31;

/// Vectors of a row of a panel of weights that products read as it is stored.
pub(crate) const PANEL_VECTORS: usize = 4;

/// The two kinds of hardware that kernels are shaped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// A few cores with wide vectors: one cube, one unit per core, each unit a contiguous range.
    Cpu,
    /// Many units with narrow vectors: neighbouring units take neighbouring elements.
    Gpu,
}

/// How a CPU computes products of bfloat16 numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bf16Products {
    /// An instruction multiplies pairs of them.
    Instruction,
    /// As the instruction does, in plain arithmetic: to test on any processor all that is made ready for it.
    #[cfg_attr(not(test), allow(dead_code, reason = "for tests"))]
    Pairs,
    /// They are float32 numbers that were rounded.
    Rounded,
}

/// What kernels need to know about a device to be chosen and shaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceProfile {
    kind: Kind,
    units: u32,
    /// Floats in one vector register.
    lanes: usize,
    /// How products of bfloat16 numbers are computed.
    bf16: Bf16Products,
}

impl DeviceProfile {
    /// A CPU on which kernels run with that many threads, of which there is at least one.
    pub fn cpu(threads: usize) -> Self {
        let units = threads.clamp(1, u32::MAX as usize) as u32;
        Self { kind: Kind::Cpu, units, lanes: register_lanes(), bf16: bf16_products() }
    }

    /// The same CPU as one with vector registers of that many floats, of which the compiler makes what there are.
    #[cfg(all(test, feature = "cpu"))]
    pub(crate) fn with_lanes(self, lanes: usize) -> Self {
        Self { lanes, ..self }
    }

    /// The same CPU as one that computes products of bfloat16 numbers like this.
    #[cfg(all(test, feature = "cpu"))]
    pub(crate) fn with_bf16(self, bf16: Bf16Products) -> Self {
        Self { bf16, ..self }
    }

    /// The CPU of this machine, all cores.
    pub fn this_cpu() -> Self {
        Self::cpu(std::thread::available_parallelism().map_or(1, |n| n.get()))
    }

    /// A graphics device.
    pub fn gpu() -> Self {
        Self { kind: Kind::Gpu, units: GPU_CUBE, lanes: 4, bf16: Bf16Products::Rounded }
    }

    /// Floats in one vector register.
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// Threads that a kernel runs on, on a CPU; units of a cube elsewhere.
    pub(crate) fn units(&self) -> usize {
        self.units as usize
    }

    /// What decides which nodes of a graph are computed together.
    pub fn launch_limits(&self) -> LaunchLimits {
        let panel = (self.kind == Kind::Cpu).then_some(PANEL_VECTORS * self.matrix_width());
        LaunchLimits { bindings: MOST_BINDINGS, scratch: SCRATCH_ELEMENTS, vector: WIDEST_VECTORS, panel }
    }

    /// Widest vectors for elementwise work.
    pub(crate) fn elementwise_width(&self) -> usize {
        match self.kind {
            Kind::Cpu => WIDEST_VECTORS,
            Kind::Gpu => 4,
        }
    }

    /// Widest vectors for tiles in registers: one register.
    pub(crate) fn matrix_width(&self) -> usize {
        self.lanes
    }

    /// Whether an instruction multiplies pairs of bfloat16 numbers: without one, products of that precision are no faster
    /// than others.
    pub fn multiplies_bf16(&self) -> bool {
        self.bf16 == Bf16Products::Instruction
    }

    /// How products of bfloat16 numbers are computed.
    pub(crate) fn bf16_products(&self) -> Bf16Products {
        self.bf16
    }

    /// Units of a launch over `items` independent items.
    pub(crate) fn launched_units(&self, items: usize) -> usize {
        let (cubes, units) = self.grid(items);
        cubes as usize * units as usize
    }

    /// Cubes of a launch over `items` independent items, and the units of each.
    fn grid(&self, items: usize) -> (u32, u32) {
        match self.kind {
            Kind::Cpu => (1, self.units),
            Kind::Gpu => (items.div_ceil(GPU_CUBE as usize).clamp(1, GPU_CUBES) as u32, GPU_CUBE),
        }
    }
}

/// How this machine computes products of bfloat16 numbers: AVX512-BF16 has an instruction, with AVX512-VL for registers of
/// every width.
fn bf16_products() -> Bf16Products {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512bf16") && std::arch::is_x86_feature_detected!("avx512vl") {
        return Bf16Products::Instruction;
    }
    Bf16Products::Rounded
}

/// Floats in one vector register of this machine: a matrix product with registers half full is half as fast.
fn register_lanes() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return 16;
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            return 8;
        }
    }
    // SSE, NEON.
    4
}

/// The largest power of two up to `max` that divides all `extents`.
pub(crate) fn common_width(max: usize, extents: &[usize]) -> usize {
    let mut w = max;
    while w > 1 && extents.iter().any(|e| e % w != 0) {
        w /= 2;
    }
    w
}

/// A buffer as an argument of a kernel: a place in the session's table of allocations, and a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arg {
    /// Position in the table of allocations.
    allocation: usize,
    /// First byte.
    offset: usize,
    /// Number of 4-byte elements.
    elements: usize,
}

impl Arg {
    /// Elements from a byte offset of an allocation.
    pub(crate) fn new(allocation: usize, offset: usize, elements: usize) -> Self {
        Self { allocation, offset, elements }
    }

    /// Number of 4-byte elements.
    pub(crate) fn elements(&self) -> usize {
        self.elements
    }

    /// Position in the table of allocations, and the bytes within the allocation.
    #[cfg(feature = "cpu")]
    pub(crate) fn place(&self) -> (usize, Range<usize>) {
        (self.allocation, self.offset..self.offset + 4 * self.elements)
    }

    /// The first elements of the buffer.
    pub(crate) fn first(&self, elements: usize) -> Self {
        Self { elements: elements.min(self.elements), ..*self }
    }

    /// The first and the second half of the buffer; each starts at a multiple of 256 bytes if its length allows.
    pub(crate) fn halves(&self) -> [Self; 2] {
        let half = self.elements / 2 / 64 * 64;
        [Self { elements: half, ..*self }, Self { offset: self.offset + 4 * half, elements: half, ..*self }]
    }

    /// A handle to exactly these bytes.
    pub(crate) fn handle(&self, allocations: &[Handle]) -> Handle {
        let whole = &allocations[self.allocation];
        let end = (self.offset + 4 * self.elements) as u64;
        whole.clone().offset_start(self.offset as u64).offset_end(whole.size_in_used().saturating_sub(end))
    }
}

/// The device's side of a launch, given to the closure that launches.
pub(crate) struct Target<'a> {
    /// The CubeCL client.
    pub(crate) client: &'a Client,
    allocations: &'a [Handle],
    cubes: u32,
    units: u32,
}

impl Target<'_> {
    /// Number of cubes to launch.
    pub(crate) fn count(&self) -> CubeCount {
        CubeCount::Static(self.cubes, 1, 1)
    }

    /// Units of a cube.
    pub(crate) fn dim(&self) -> CubeDim {
        CubeDim::new_1d(self.units)
    }

    /// Units of the whole launch.
    pub(crate) fn units(&self) -> usize {
        self.cubes as usize * self.units as usize
    }

    /// A buffer as vectors of `width` elements; `width` divides its length.
    #[allow(unsafe_code, reason = "the length is the one that was allocated")]
    pub(crate) fn bind(&self, arg: Arg, width: usize) -> BufferArg {
        // SAFETY: `Arg`s are made from the plan's buffers, whose ranges lie within their allocation.
        unsafe { BufferArg::from_raw_parts(arg.handle(self.allocations), arg.elements / width) }
    }

    /// Several buffers as vectors of `width` elements.
    pub(crate) fn bind_all<'a, C: FromIterator<BufferArg>>(
        &self,
        args: impl IntoIterator<Item = &'a Arg>,
        width: usize,
    ) -> C {
        args.into_iter().map(|&arg| self.bind(arg, width)).collect()
    }
}

/// Launches `kernel(vector widths.., arguments.., comptime arguments..)` on a [`Target`]. What CubeCL makes of a kernel takes
/// the device and the number of units before them.
macro_rules! run {
    ($target:ident, $kernel:ident($($argument:expr),* $(,)?)) => {
        $kernel::launch_unchecked($target.client, $target.count(), $target.dim(), $($argument),*)
    };
}
pub(crate) use run;

/// An operand, or a result, that a launch may do without, where launches with and without it are one kernel. Where they are
/// two kernels, it is a sequence of one buffer or of none.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Optional<E: CubePrimitive> {
    /// Its buffer; if it is absent, another one, which is neither read nor written.
    pub(crate) values: Box<[E]>,
    /// 1, or 0 if it is absent.
    pub(crate) given: usize,
}

impl<E: CubePrimitive> Optional<E> {
    /// As an argument of a launch, in vectors of `width` elements.
    pub(crate) fn bind(t: &Target<'_>, arg: Option<Arg>, in_its_place: Arg, width: usize) -> OptionalLaunch<E> {
        OptionalLaunch::new(t.bind(arg.unwrap_or(in_its_place), width), usize::from(arg.is_some()))
    }
}

/// Where launches go.
enum Sink {
    /// To a device.
    Device { client: Client, allocations: Arc<[Handle]> },
    /// Into a list of kernel names.
    List(RefCell<Vec<String>>),
}

/// Launches kernels on a device, or lists which would be launched.
pub(crate) struct Launcher {
    profile: DeviceProfile,
    scratch: Arg,
    sink: Sink,
}

impl Launcher {
    /// A launcher for a device. `scratch` has [`SCRATCH_ELEMENTS`] elements.
    pub(crate) fn new(client: Client, profile: DeviceProfile, allocations: Arc<[Handle]>, scratch: Arg) -> Self {
        Self { profile, scratch, sink: Sink::Device { client, allocations } }
    }

    /// A launcher that lists the names of kernels and launches none.
    pub(crate) fn listing(profile: DeviceProfile) -> Self {
        let scratch = Arg::new(0, 0, SCRATCH_ELEMENTS);
        Self { profile, scratch, sink: Sink::List(RefCell::new(Vec::new())) }
    }

    /// What kernels need to know about the device.
    pub(crate) fn profile(&self) -> &DeviceProfile {
        &self.profile
    }

    /// Whether the device is a CPU.
    pub(crate) fn is_cpu(&self) -> bool {
        self.profile.kind == Kind::Cpu
    }

    /// How the units of a launch share its items.
    pub(crate) fn split(&self) -> Split {
        match self.profile.kind {
            Kind::Cpu => Split::Ranges,
            Kind::Gpu => Split::Strided,
        }
    }

    /// Vector width for elementwise work over buffers with these extents (see the module's head).
    pub(crate) fn width(&self, extents: &[usize]) -> usize {
        common_width(self.profile.elementwise_width(), extents)
    }

    /// Tensors of which one launch takes up to `most`, each group with the width of its vectors: an odd length must not
    /// narrow the vectors of other tensors.
    pub(crate) fn by_width<T: Copy>(
        &self,
        tensors: impl IntoIterator<Item = T>,
        elements: impl Fn(&T) -> usize,
        most: usize,
    ) -> Vec<(usize, Vec<T>)> {
        let mut by_width: BTreeMap<usize, Vec<T>> = BTreeMap::new();
        for tensor in tensors {
            by_width.entry(self.width(&[elements(&tensor)])).or_default().push(tensor);
        }
        by_width.iter().flat_map(|(&w, tensors)| tensors.chunks(most).map(move |group| (w, group.to_vec()))).collect()
    }

    /// Vector width for tiles in registers.
    pub(crate) fn matrix_width(&self, extents: &[usize]) -> usize {
        common_width(self.profile.matrix_width(), extents)
    }

    /// Room for partial results within one step; its content does not outlive the step.
    pub(crate) fn scratch(&self) -> Arg {
        self.scratch
    }

    /// Launches one kernel over `items` items, for which a graphics device gets a unit each, up to a number. Where units
    /// work on something together, it is as many items.
    ///
    /// `name` is called only when kernels are listed, and says the kernel and its comptime configuration; `launch` only
    /// on a device.
    pub(crate) fn launch(&self, items: usize, name: impl FnOnce() -> String, launch: impl FnOnce(&Target<'_>)) {
        match &self.sink {
            Sink::List(names) => names.borrow_mut().push(name()),
            Sink::Device { client, allocations } => {
                let (cubes, units) = self.profile.grid(items);
                launch(&Target { client, allocations, cubes, units });
            }
        }
    }

    /// Names of the kernels listed since the last call.
    pub(crate) fn take_names(&self) -> Vec<String> {
        match &self.sink {
            Sink::Device { .. } => Vec::new(),
            Sink::List(names) => names.take(),
        }
    }
}

/// How the units of a launch share `n` items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Split {
    /// Each unit takes one contiguous range: caches and prefetchers of a CPU core like that.
    Ranges,
    /// Unit `u` of `U` takes items `u`, `u + U`, ..: neighbouring units read neighbouring bytes.
    Strided,
}

/// `work * part / parts`, but for rounding that is the same for all units: the product may not fit 32 bits.
#[cube]
pub(crate) fn part_of(work: usize, part: usize, parts: usize) -> usize {
    work / parts * part + work % parts * part / parts
}

/// First item of this unit when `n` items are shared.
#[cube]
pub(crate) fn first_item(n: usize, #[comptime] split: Split) -> usize {
    match comptime!(split) {
        Split::Ranges => {
            let units = CUBE_DIM as usize * CUBE_COUNT;
            min(ABSOLUTE_POS * ((n + units - 1) / units), n)
        }
        Split::Strided => ABSOLUTE_POS,
    }
}

/// Item after the last one of this unit.
#[cube]
pub(crate) fn end_item(n: usize, #[comptime] split: Split) -> usize {
    match comptime!(split) {
        Split::Ranges => {
            let units = CUBE_DIM as usize * CUBE_COUNT;
            min((ABSOLUTE_POS + 1) * ((n + units - 1) / units), n)
        }
        Split::Strided => n,
    }
}

/// Distance between two items of this unit.
#[cube]
pub(crate) fn item_step(#[comptime] split: Split) -> usize {
    match comptime!(split) {
        Split::Ranges => 1usize.runtime(),
        Split::Strided => CUBE_DIM as usize * CUBE_COUNT,
    }
}

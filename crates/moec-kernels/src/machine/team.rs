//! Threads that run launches together: thread `u` is unit `u` of every kernel, and all of them finish a launch before
//! any begins the next.
//!
//! A unit stays on its thread, and the system mostly leaves a thread on its core: a unit then finds in its cache what it
//! wrote in the operation before. Between two launches there is nothing but a barrier of some hundred nanoseconds.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use cubecl_llvm::{PlironData, PlironEngine};

/// How often a thread that waits for the others looks before it gives its core to whoever else wants it: about as long
/// as waking it would take.
const LOOKS_AT_A_BARRIER: u32 = 1_000;

/// How often an idle thread looks for work before it sleeps: longer than the pause between two steps.
const LOOKS_FOR_WORK: u32 = 4_000;

/// Bytes of a worker's stack, for the private arrays of kernels. The calling thread is a unit as well and has what it has,
/// so kernels need far less.
const STACK: usize = 8 << 20;

/// One launch of a kernel.
pub(super) struct Launch {
    kernel: PlironEngine,
    /// The arguments of each unit. Only that unit takes the lock, which costs less than a copy.
    units: Vec<Mutex<PlironData>>,
}

impl Launch {
    /// A launch with the same arguments for all units.
    pub(super) fn new(kernel: PlironEngine, arguments: &PlironData, units: usize) -> Self {
        let of_unit = |unit: usize| {
            let mut arguments = arguments.clone();
            arguments.set_unit_pos([unit as u32, 0, 0]);
            Mutex::new(arguments)
        };
        Self { kernel, units: (0..units).map(of_unit).collect() }
    }
}

/// Launches in order.
#[derive(Default)]
pub(super) struct Script {
    /// All launches.
    pub(super) launches: Vec<Launch>,
    /// How many launches there are up to the end of each step.
    pub(super) ends: Vec<usize>,
}

impl Script {
    /// Runs the part of one unit, whose barriers count on from `before`. Nothing here unwinds: the other units would wait
    /// for this one, and the memory that they work on would be gone.
    fn run(&self, unit: usize, before: usize, shared: &Shared, mut ends: Option<&mut [Instant]>) {
        for (i, launch) in self.launches.iter().enumerate() {
            launch.kernel.run_kernel(&mut lock(&launch.units[unit]));
            shared.wait_for_all(before + (i + 1) * shared.units);
            if let Some(end) = ends.as_deref_mut().and_then(|ends| ends.get_mut(i)) {
                *end = Instant::now();
            }
        }
    }
}

/// As many threads as kernels have units, the calling one included.
pub(crate) struct Team {
    shared: Arc<Shared>,
    /// Held while a script runs: a team runs one at a time.
    running: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    units: usize,
    /// Number of scripts that were posted.
    posted: AtomicUsize,
    /// How often a unit arrived at a barrier, since the team exists.
    arrived: AtomicUsize,
    post: Mutex<Post>,
    changed: Condvar,
}

#[derive(Default)]
struct Post {
    /// The newest script, and the arrivals before it.
    script: Option<(Arc<Script>, usize)>,
    stop: bool,
}

impl Team {
    /// Starts the threads.
    pub(crate) fn new(units: usize) -> Result<Self, String> {
        let shared = Arc::new(Shared {
            units: units.max(1),
            posted: AtomicUsize::new(0),
            arrived: AtomicUsize::new(0),
            post: Mutex::default(),
            changed: Condvar::new(),
        });
        let mut team = Self { shared: shared.clone(), running: Mutex::default(), workers: Vec::new() };
        for unit in 1..shared.units {
            let shared = shared.clone();
            let builder = thread::Builder::new().name(format!("unit {unit}")).stack_size(STACK);
            let worker = builder.spawn(move || shared.work(unit));
            team.workers.push(worker.map_err(|error| format!("cannot start a thread: {error}"))?);
        }
        Ok(team)
    }

    /// Number of units of a kernel.
    pub(super) fn units(&self) -> usize {
        self.shared.units
    }

    /// Runs all launches of a script, and notes when each was done by all units.
    pub(super) fn run(&self, script: &Arc<Script>, ends: Option<&mut [Instant]>) {
        let _alone = lock(&self.running);
        let before = self.shared.arrived.load(Ordering::Relaxed);
        self.shared.post(|post| post.script = Some((script.clone(), before)));
        script.run(0, before, &self.shared, ends);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.post(|post| post.stop = true);
        for worker in self.workers.drain(..) {
            // A thread that panicked has said so.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn post(&self, change: impl FnOnce(&mut Post)) {
        let mut post = lock(&self.post);
        change(&mut post);
        // Under the lock: whoever found no news and is about to sleep has it until they do.
        self.posted.fetch_add(1, Ordering::Release);
        drop(post);
        self.changed.notify_all();
    }

    /// What a thread does: every script that is posted, until it is to stop.
    fn work(&self, unit: usize) {
        let mut seen = 0;
        while let Some((script, before)) = self.next(&mut seen) {
            script.run(unit, before, self, None);
        }
    }

    /// The next script; `None` when there will be none. A script is posted only when all units are done with the one
    /// before it, so none with launches is missed.
    fn next(&self, seen: &mut usize) -> Option<(Arc<Script>, usize)> {
        let news = |seen: usize| self.posted.load(Ordering::Acquire) != seen;
        for _ in 0..LOOKS_FOR_WORK {
            if news(*seen) {
                break;
            }
            spin_loop();
        }
        let mut post = lock(&self.post);
        while !news(*seen) {
            post = self.changed.wait(post).unwrap_or_else(PoisonError::into_inner);
        }
        *seen = self.posted.load(Ordering::Acquire);
        if post.stop { None } else { post.script.clone() }
    }

    /// Arrives at a barrier that opens when there were `arrivals` in all.
    fn wait_for_all(&self, arrivals: usize) {
        self.arrived.fetch_add(1, Ordering::AcqRel);
        let mut looks = 0;
        while self.arrived.load(Ordering::Acquire) < arrivals {
            looks += 1;
            if looks < LOOKS_AT_A_BARRIER {
                spin_loop();
            } else {
                thread::yield_now();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

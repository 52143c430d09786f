//! Threads that run launches together: thread `u` is unit `u` of every kernel, and all of them finish a launch before
//! any begins the next. How they meet is in [`rounds`].
//!
//! A unit stays on its thread, and the system mostly leaves a thread on its core: a unit then finds in its cache what it
//! wrote in the operation before. Between two launches there is nothing but a barrier of some hundred nanoseconds.

mod primitives;
mod rounds;

use std::sync::{Arc, LockResult, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use cubecl_llvm::PlironData;

use super::compiled::Compiled;
use rounds::{Round, Rounds};

/// Bytes of a worker's stack, for the private arrays of kernels. The calling thread is a unit as well and has what it has,
/// so kernels need far less.
const STACK: usize = 8 << 20;

/// One launch of a kernel.
pub(super) struct Launch {
    kernel: Compiled,
    /// The arguments of each unit.
    units: Vec<PlironData>,
}

impl Launch {
    /// A launch with the same arguments for all units.
    pub(super) fn new(kernel: Compiled, arguments: &PlironData, units: usize) -> Self {
        let of_unit = |unit: usize| {
            let mut arguments = arguments.clone();
            arguments.set_unit_pos([unit as u32, 0, 0]);
            arguments
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

/// As many threads as kernels have units, the calling one included.
pub(crate) struct Team {
    rounds: Arc<Rounds<Arc<Script>>>,
    /// Held while a script runs: a team runs one at a time.
    running: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

impl Team {
    /// Starts the threads.
    pub(crate) fn new(units: usize) -> Result<Self, String> {
        let rounds = Arc::new(Rounds::new(units));
        let mut team = Self { rounds: rounds.clone(), running: Mutex::default(), workers: Vec::new() };
        for unit in 1..rounds.units() {
            let rounds = rounds.clone();
            let builder = thread::Builder::new().name(format!("unit {unit}")).stack_size(STACK);
            let worker = builder.spawn(move || work(&rounds, unit));
            team.workers.push(worker.map_err(|error| format!("cannot start a thread: {error}"))?);
        }
        Ok(team)
    }

    /// Number of units of a kernel.
    pub(super) fn units(&self) -> usize {
        self.rounds.units()
    }

    /// Runs all launches of a script, and notes when each was done by all units.
    pub(super) fn run(&self, script: &Arc<Script>, ends: Option<&mut [Instant]>) {
        let _alone = lock(&self.running);
        let round = self.rounds.begin(script.clone());
        take_part(&self.rounds, round, 0, ends);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.rounds.stop();
        for worker in self.workers.drain(..) {
            // A thread that panicked has said so.
            let _ = worker.join();
        }
    }
}

/// What a thread does: every script that is posted, until it is to stop.
fn work(rounds: &Rounds<Arc<Script>>, unit: usize) {
    let mut seen = 0;
    while let Some(round) = rounds.next(&mut seen) {
        take_part(rounds, round, unit, None);
    }
}

/// Runs the part of one unit in a script.
fn take_part(
    rounds: &Rounds<Arc<Script>>,
    mut round: Round<Arc<Script>>,
    unit: usize,
    mut ends: Option<&mut [Instant]>,
) {
    let script = round.work.clone();
    let _together = Together;
    for (i, launch) in script.launches.iter().enumerate() {
        launch.kernel.run(&launch.units[unit]);
        rounds.meet(&mut round);
        if let Some(ends) = &mut ends {
            ends[i] = Instant::now();
        }
    }
}

/// Held by a unit while it takes part in a round. A panic of one unit ends the program, once it was reported: the others
/// would wait for that unit for ever, and if it is the one that called, the memory that they work on would be gone.
struct Together;

impl Drop for Together {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::exit(FAULT);
        }
    }
}

/// Exit code of a program in which an invariant does not hold: that of a panic in `main`.
const FAULT: i32 = 101;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    woken(mutex.lock())
}

/// The lock, whether or not somebody panicked with it: whoever does ends the program.
fn woken<G>(locked: LockResult<G>) -> G {
    locked.unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{FAULT, Together};

    /// The others would wait for ever. The test is run again, as a program that loses a unit.
    #[test]
    fn a_panic_of_one_unit_ends_the_program() {
        const LOSE: &str = "MOEC_TEST_LOSES_A_UNIT";
        if std::env::var_os(LOSE).is_some() {
            let unit = std::thread::spawn(|| {
                let _together = Together;
                panic!("a unit is lost");
            });
            let _ = unit.join();
            std::process::exit(0);
        }
        let test = "machine::team::tests::a_panic_of_one_unit_ends_the_program";
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let ended = again.args(["--exact", test, "--nocapture"]).env(LOSE, "1").output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(FAULT), "{said}");
        assert!(said.contains("a unit is lost"), "{said}");
    }
}

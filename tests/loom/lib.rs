//! Model check of how the threads that run kernels meet: `machine/team/rounds.rs` of `moec-kernels`, on loom's primitives.
//!
//! loom runs a test once for every order in which its threads can meet, and for every older value that a thread may still
//! read, up to a number of preemptions. A run in which two threads touch the same cell without one happening before the
//! other fails, as does one in which threads wait for each other for ever.

//!
//! [`on_threads`] runs the same on threads of the system, for tools that watch a program: miri and ThreadSanitizer.

#![cfg(test)]

mod on_threads;
#[path = "../../crates/moec-kernels/src/machine/team/rounds.rs"]
mod rounds;

/// loom's counterparts of `machine/team/primitives.rs`.
mod primitives {
    pub(super) use loom::sync::atomic::{AtomicUsize, Ordering};
    pub(super) use loom::sync::{Condvar, Mutex};

    pub(super) fn spin_loop() {
        yield_now();
    }

    pub(super) fn yield_now() {
        if super::WAITS_ARE_SKIPPED.get() {
            loom::skip_branch();
        }
        loom::thread::yield_now();
    }

    /// Both ways of waiting, and few enough looks to try all orders.
    pub(super) const LOOKS_AT_A_BARRIER: u32 = 2;
    pub(super) const LOOKS_FOR_WORK: u32 = 0;
}

use loom::cell::UnsafeCell;
use loom::thread;
use rounds::{Round, Rounds};
use std::sync::Arc;

thread_local! {
    /// Whether an order in which a unit looks at a barrier that is closed is not followed further. Whatever it leads to is
    /// reached as well by one in which that unit comes later and finds the barrier open.
    static WAITS_ARE_SKIPPED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn woken<G>(locked: std::sync::LockResult<G>) -> G {
    locked.unwrap()
}

/// A script is a number of launches.
type Script = usize;

/// What the launches write: one number of each unit, as results of a kernel are.
struct Memory(Vec<UnsafeCell<usize>>);

// SAFETY: loom checks every access.
unsafe impl Sync for Memory {}

impl Memory {
    fn read(&self, unit: usize) -> usize {
        // SAFETY: as above.
        self.0[unit].with(|value| unsafe { *value })
    }

    fn write(&self, unit: usize, number: usize) {
        // SAFETY: as above.
        self.0[unit].with_mut(|value| unsafe { *value = number });
    }
}

/// A unit's part in a script. Launches alternate between writing what is a unit's own and reading what its neighbour wrote in
/// the launch before.
fn take_part(rounds: &Rounds<Script>, mut round: Round<Script>, unit: usize, memory: &Memory) {
    let units = rounds.units();
    for launch in 0..round.work {
        if launch % 2 == 0 {
            memory.write(unit, memory.read(unit) + 1);
        } else {
            assert_eq!(memory.read((unit + 1) % units), memory.read(unit), "launch {launch} began too early");
        }
        rounds.meet(&mut round);
    }
}

fn model(preemptions: usize) -> loom::model::Builder {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model
}

/// Runs scripts one after the other on a team, as `Team` does, reads the memory after each, and stops.
fn check(units: usize, preemptions: usize, scripts: &'static [Script]) {
    model(preemptions).check(move || {
        let rounds = Arc::new(Rounds::new(units));
        let memory = Arc::new(Memory((0..units).map(|_| UnsafeCell::new(0)).collect()));
        let workers: Vec<_> = (1..units)
            .map(|unit| {
                let (rounds, memory) = (rounds.clone(), memory.clone());
                thread::spawn(move || {
                    let mut seen = 0;
                    while let Some(round) = rounds.next(&mut seen) {
                        take_part(&rounds, round, unit, &memory);
                    }
                })
            })
            .collect();
        let mut written = 0;
        for &script in scripts {
            let round = rounds.begin(script);
            take_part(&rounds, round, 0, &memory);
            written += script.div_ceil(2);
            for unit in 0..units {
                assert_eq!(memory.read(unit), written, "a script ended before all units were done");
            }
        }
        rounds.stop();
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

#[test]
fn two_units_run_a_script() {
    check(2, 4, &[3]);
}

#[test]
fn two_units_run_scripts_in_succession() {
    // One of them without launches, whose round a unit may miss.
    check(2, 3, &[2, 0, 1]);
}

/// With a third unit there are too many orders to try all of what two units do above, so meeting and beginning are checked
/// one at a time, meeting in all orders.
#[test]
fn three_units_meet() {
    WAITS_ARE_SKIPPED.set(true);
    loom::model::Builder::new().check(|| {
        let rounds = Arc::new(Rounds::new(3));
        let memory = Arc::new(Memory((0..3).map(|_| UnsafeCell::new(0)).collect()));
        let round = rounds.begin(1);
        let part = move |unit: usize, rounds: &Rounds<Script>, round: Round<Script>, memory: &Memory| {
            take_part(rounds, round, unit, memory);
            for other in 0..3 {
                assert_eq!(memory.read(other), 1, "a barrier opened too early");
            }
        };
        let workers: Vec<_> = (1..3)
            .map(|unit| {
                let (rounds, memory, round) = (rounds.clone(), memory.clone(), round.clone());
                thread::spawn(move || part(unit, &rounds, round, &memory))
            })
            .collect();
        part(0, &rounds, round, &memory);
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

#[test]
fn three_units_begin() {
    // Scripts without launches: each unit finds the newest one or the end.
    check(3, 2, &[0, 0]);
}

#[test]
fn a_team_that_never_ran_stops() {
    check(3, 3, &[]);
}

#[test]
fn one_unit_needs_nobody() {
    check(1, 2, &[2, 1]);
}

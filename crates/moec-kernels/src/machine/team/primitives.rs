//! What [`super::rounds`] is built from. Its model check builds it from other ones with these names, which try every order in
//! which threads can meet (`tests/loom`).

pub(super) use std::hint::spin_loop;
pub(super) use std::sync::atomic::{AtomicUsize, Ordering};
pub(super) use std::sync::{Condvar, Mutex};
pub(super) use std::thread::yield_now;

/// How often a thread that waits for the others looks before it gives its core to whoever else wants it: about as long
/// as waking it would take.
pub(super) const LOOKS_AT_A_BARRIER: u32 = 1_000;

/// How often an idle thread looks for work before it sleeps: longer than the pause between two steps.
pub(super) const LOOKS_FOR_WORK: u32 = 4_000;

//! How units begin a round of work together, wait for each other within it, and stop.
//!
//! Unit 0 posts a round; every other unit waits for it in [`Rounds::next`]. Within a round all units meet at barriers
//! ([`Rounds::meet`]), and what any of them wrote before a barrier all of them see after it. There is one counter of
//! arrivals, which never goes back: a barrier is open once all units have arrived as often as they were to by then.
//!
//! Nothing here knows what the work is, so that this file is checked on its own, with every order in which two or three
//! threads can meet: `tests/loom`.

use super::primitives::{
    AtomicUsize, Condvar, LOOKS_AT_A_BARRIER, LOOKS_FOR_WORK, Mutex, Ordering, spin_loop, yield_now,
};

/// Where the units of a team meet.
pub(super) struct Rounds<W> {
    units: usize,
    /// How often something was posted.
    posted: AtomicUsize,
    /// How often a unit arrived at a barrier, since the team exists.
    arrived: AtomicUsize,
    post: Mutex<Post<W>>,
    changed: Condvar,
}

struct Post<W> {
    newest: Option<Round<W>>,
    stop: bool,
}

/// One unit's view of a round: the work, and how far it has come.
#[derive(Clone)]
pub(super) struct Round<W> {
    /// What there is to do.
    pub(super) work: W,
    /// Arrivals, of all units together, that the last barrier waited for.
    arrivals: usize,
}

impl<W: Clone> Rounds<W> {
    /// For that many units, unit 0 included.
    pub(super) fn new(units: usize) -> Self {
        Self {
            units: units.max(1),
            posted: AtomicUsize::new(0),
            arrived: AtomicUsize::new(0),
            post: Mutex::new(Post { newest: None, stop: false }),
            changed: Condvar::new(),
        }
    }

    /// Number of units.
    pub(super) fn units(&self) -> usize {
        self.units
    }

    /// Begins a round, of which unit 0 does its part with what this returns. Only when all units are through the barriers
    /// of the round before.
    pub(super) fn begin(&self, work: W) -> Round<W> {
        // Unit 0 has seen everybody arrive at the last barrier, and nobody arrives until there is a new one.
        let round = Round { work, arrivals: self.arrived.load(Ordering::Relaxed) };
        self.tell(|post| post.newest = Some(round.clone()));
        round
    }

    /// Lets [`Rounds::next`] return `None`.
    pub(super) fn stop(&self) {
        self.tell(|post| post.stop = true);
    }

    fn tell(&self, change: impl FnOnce(&mut Post<W>)) {
        let mut post = super::woken(self.post.lock());
        change(&mut post);
        // Under the lock: whoever found no news and is about to sleep has it until they do.
        self.posted.fetch_add(1, Ordering::Release);
        drop(post);
        self.changed.notify_all();
    }

    /// The next round for another unit than 0; `None` when there will be none. `seen` is 0 at first. A round is begun only
    /// when all units are through the barriers of the one before it, so none that has barriers is missed.
    pub(super) fn next(&self, seen: &mut usize) -> Option<Round<W>> {
        let news = |seen: usize| self.posted.load(Ordering::Acquire) != seen;
        for _ in 0..LOOKS_FOR_WORK {
            if news(*seen) {
                break;
            }
            spin_loop();
        }
        let mut post = super::woken(self.post.lock());
        while !news(*seen) {
            post = super::woken(self.changed.wait(post));
        }
        *seen = self.posted.load(Ordering::Acquire);
        if post.stop { None } else { post.newest.clone() }
    }

    /// Waits until all units are here.
    pub(super) fn meet(&self, round: &mut Round<W>) {
        round.arrivals += self.units;
        self.arrived.fetch_add(1, Ordering::AcqRel);
        let mut looks = 0;
        while self.arrived.load(Ordering::Acquire) < round.arrivals {
            looks += 1;
            if looks < LOOKS_AT_A_BARRIER {
                spin_loop();
            } else {
                yield_now();
            }
        }
    }
}

//! Signals: the first finishes the step and saves, a later one leaves.

use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::live::screen;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

/// A second signal leaves at once, if it comes this long after the first: programs that stop others often send the same
/// signal to a process and to its group, and that must not cost the checkpoint.
const SECOND_THOUGHT: Duration = Duration::from_millis(700);

/// Asks to stop as the first Ctrl-C does, and knows whether that was asked.
#[derive(Clone, Debug)]
pub(crate) struct Stop {
    asked: Arc<AtomicBool>,
}

impl Stop {
    /// Whether a signal or a key has asked.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// As Ctrl-C.
    pub(crate) fn ask(&self) {
        // Without the signal the step would end all the same, but nobody would say so.
        if signal_hook::low_level::raise(SIGINT).is_err() {
            self.asked.store(true, Ordering::Relaxed);
        }
    }
}

/// SIGINT, SIGTERM and SIGHUP: the first finishes the step and saves, a later one leaves at once with the last checkpoint
/// intact.
pub(crate) struct Signals {
    /// Set by the first signal.
    pub(crate) stop: Arc<AtomicBool>,
    /// The first signal; 0 before.
    first: Arc<AtomicI32>,
    /// Whether everything is on the disk.
    saved: Arc<AtomicBool>,
    /// Whether a signal ends a wait, and nothing else.
    waiting: Arc<AtomicBool>,
    /// Whether one has.
    left: Arc<AtomicBool>,
}

impl Signals {
    /// Listens from here on.
    pub(crate) fn listen(console: Console) -> Result<Self, Failure> {
        let [stop, saved, waiting, left] = [(); 4].map(|()| Arc::new(AtomicBool::new(false)));
        let first = Arc::new(AtomicI32::new(0));
        let failed = |e: std::io::Error| Failure::new(Exit::Failure, format!("cannot listen for signals: {e}"));
        let mut signals = signal_hook::iterator::Signals::new(heeded()).map_err(failed)?;
        let this = Self {
            stop: stop.clone(),
            first: first.clone(),
            saved: saved.clone(),
            waiting: waiting.clone(),
            left: left.clone(),
        };
        let listen = move || {
            let mut begun: Option<Instant> = None;
            for signal in signals.forever() {
                #[cfg(unix)]
                if signal == signal_hook::consts::SIGTSTP {
                    screen::around_stop(|| {
                        // That the system does not stop it is nothing to stop for.
                        let _ = signal_hook::low_level::emulate_default_handler(signal);
                    });
                    continue;
                }
                if waiting.load(Ordering::Relaxed) {
                    if begun.is_none_or(|begun| begun.elapsed() >= SECOND_THOUGHT) {
                        left.store(true, Ordering::Relaxed);
                    }
                    continue;
                }
                let saved = saved.load(Ordering::Relaxed);
                match begun {
                    None => {
                        begun = Some(Instant::now());
                        first.store(signal, Ordering::Relaxed);
                        stop.store(true, Ordering::Relaxed);
                        console.warn(match saved {
                            true => "stopping; everything is saved",
                            false => "stopping after this step and saving; once more to leave without saving",
                        });
                    }
                    Some(begun) if begun.elapsed() >= SECOND_THOUGHT => {
                        screen::give_back();
                        console.warn(match saved {
                            true => "left; everything is saved",
                            false => "left without saving; the last checkpoint is intact",
                        });
                        std::process::exit(Exit::Failure as i32);
                    }
                    Some(_) => {}
                }
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen).map_err(failed)?;
        Ok(this)
    }

    /// What asks to stop as the first signal does.
    pub(crate) fn stop(&self) -> Stop {
        Stop { asked: self.stop.clone() }
    }

    /// Whether a signal asked to stop.
    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// From here on there is nothing to save.
    pub(crate) fn all_is_saved(&self) {
        self.saved.store(true, Ordering::Relaxed);
    }

    /// From here on a signal only ends a wait, of which the answer says whether one has: the command goes on to its end.
    pub(crate) fn end_a_wait(&self) -> impl Fn() -> bool {
        self.waiting.store(true, Ordering::Relaxed);
        let left = self.left.clone();
        move || left.load(Ordering::Relaxed)
    }

    /// The exit code of a command that was asked to stop.
    pub(crate) fn exit(&self) -> Exit {
        match self.first.load(Ordering::Relaxed) {
            SIGTERM => Exit::Terminated,
            #[cfg(unix)]
            signal_hook::consts::SIGHUP => Exit::HungUp,
            _ => Exit::Interrupted,
        }
    }
}

/// The signals that ask to stop, and Ctrl-Z, before which the terminal must be given back.
#[cfg(unix)]
fn heeded() -> Vec<i32> {
    use signal_hook::consts::{SIGHUP, SIGTSTP};
    // `nohup` starts programs with it ignored, so that they go on when the terminal is closed.
    [SIGINT, SIGTERM].into_iter().chain([SIGHUP, SIGTSTP].into_iter().filter(|&signal| !is_ignored(signal))).collect()
}

#[cfg(not(unix))]
fn heeded() -> Vec<i32> {
    vec![SIGINT, SIGTERM]
}

/// Whether a signal was ignored when the program was started; `false` where the system does not say.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

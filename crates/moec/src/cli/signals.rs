//! Signals: the first finishes the step and saves, a later one leaves.

use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

/// A second signal leaves at once, if it comes this long after the first: programs that stop others often send the same
/// signal to a process and to its group, and that must not cost the checkpoint.
const SECOND_THOUGHT: Duration = Duration::from_millis(700);

/// SIGINT, SIGTERM and SIGHUP: the first finishes the step and saves, a later one leaves at once with the last checkpoint
/// intact.
pub(crate) struct Signals {
    /// Set by the first signal.
    pub(crate) stop: Arc<AtomicBool>,
    /// The first signal; 0 before.
    first: Arc<AtomicI32>,
    /// Whether everything is on the disk.
    saved: Arc<AtomicBool>,
}

impl Signals {
    /// Listens from here on.
    pub(crate) fn listen(console: Console) -> Result<Self, Failure> {
        let (stop, saved) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let first = Arc::new(AtomicI32::new(0));
        let failed = |e: std::io::Error| Failure::new(Exit::Failure, format!("cannot listen for signals: {e}"));
        let mut signals = signal_hook::iterator::Signals::new(heeded()).map_err(failed)?;
        let this = Self { stop: stop.clone(), first: first.clone(), saved: saved.clone() };
        let listen = move || {
            let mut begun: Option<Instant> = None;
            for signal in signals.forever() {
                let saved = saved.load(Ordering::Relaxed);
                match begun {
                    None => {
                        begun = Some(Instant::now());
                        first.store(signal, Ordering::Relaxed);
                        stop.store(true, Ordering::Relaxed);
                        console.note(match saved {
                            true => "stopping; everything is saved",
                            false => "stopping after this step and saving; once more to leave without saving",
                        });
                    }
                    Some(begun) if begun.elapsed() >= SECOND_THOUGHT => {
                        console.note(match saved {
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

    /// Whether a signal asked to stop.
    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// From here on there is nothing to save.
    pub(crate) fn all_is_saved(&self) {
        self.saved.store(true, Ordering::Relaxed);
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

/// The signals that ask to stop.
#[cfg(unix)]
fn heeded() -> Vec<i32> {
    use signal_hook::consts::SIGHUP;
    // `nohup` starts programs with it ignored, so that they go on when the terminal is closed.
    if is_ignored(SIGHUP) { vec![SIGINT, SIGTERM] } else { vec![SIGINT, SIGTERM, SIGHUP] }
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

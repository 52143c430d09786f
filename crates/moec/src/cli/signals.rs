//! Signals: the first finishes the step and saves, a later one leaves.

use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A second signal leaves at once, if it comes this long after the first: programs that stop others often send the same
/// signal to a process and to its group, and that must not cost the checkpoint.
const SECOND_THOUGHT: Duration = Duration::from_millis(700);

/// SIGINT and SIGTERM: the first finishes the step and saves, a later one leaves at once with the last checkpoint intact.
pub(crate) struct Signals {
    /// Set by the first signal.
    pub(crate) stop: Arc<AtomicBool>,
    terminated: Arc<AtomicBool>,
}

impl Signals {
    /// Listens from here on.
    pub(crate) fn listen(console: Console) -> Result<Self, Failure> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        let (stop, terminated) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let failed = |e: std::io::Error| Failure::new(Exit::Failure, format!("cannot listen for signals: {e}"));
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
        let (stopping, terminating) = (stop.clone(), terminated.clone());
        let listen = move || {
            let mut first: Option<Instant> = None;
            for signal in signals.forever() {
                match first {
                    None => {
                        first = Some(Instant::now());
                        terminating.store(signal == SIGTERM, Ordering::Relaxed);
                        stopping.store(true, Ordering::Relaxed);
                        console.note("stopping after this step and saving; once more to leave without saving");
                    }
                    Some(first) if first.elapsed() >= SECOND_THOUGHT => {
                        console.note("left without saving; the last checkpoint is intact");
                        std::process::exit(Exit::Failure as i32);
                    }
                    Some(_) => {}
                }
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen).map_err(failed)?;
        Ok(Self { stop, terminated })
    }

    /// Whether a signal asked to stop.
    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The exit code of a command that was asked to stop.
    pub(crate) fn exit(&self) -> Exit {
        if self.terminated.load(Ordering::Relaxed) { Exit::Terminated } else { Exit::Interrupted }
    }
}

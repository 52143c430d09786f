//! What libraries write to standard error on their own, behind the back of the console.

/// Lines that a graphics driver writes while it is looked for, and that say nothing about whether it is found.
#[cfg(unix)]
const NOISE: [&str; 2] = ["XDG_RUNTIME_DIR is invalid or not set", "XDG_RUNTIME_DIR not set in the environment"];

/// Does something while standard error is held back; what was written to it follows, but for [`NOISE`].
#[cfg(unix)]
pub(crate) fn without_noise<T>(work: impl FnOnce() -> T) -> T {
    use std::os::fd::AsFd;
    let held = tempfile::tempfile();
    let before = std::io::stderr().as_fd().try_clone_to_owned();
    let (Ok(held), Ok(before)) = (held, before) else { return work() };
    if rustix::stdio::dup2_stderr(&held).is_err() {
        return work();
    }
    // Also when `work` does not come back.
    let _restored = Restored { held, before };
    work()
}

#[cfg(not(unix))]
pub(crate) fn without_noise<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[cfg(unix)]
struct Restored {
    held: std::fs::File,
    before: std::os::fd::OwnedFd,
}

#[cfg(unix)]
impl Drop for Restored {
    fn drop(&mut self) {
        use std::io::{Read, Seek, Write};
        // There is nowhere to complain to while standard error is away.
        let _ = rustix::stdio::dup2_stderr(&self.before);
        let mut written = Vec::new();
        let read = self.held.rewind().and_then(|()| self.held.read_to_end(&mut written));
        if read.is_ok() {
            let _ = std::io::stderr().lock().write_all(worth_reading(&String::from_utf8_lossy(&written)).as_bytes());
        }
    }
}

#[cfg(unix)]
fn worth_reading(written: &str) -> String {
    written.split_inclusive('\n').filter(|line| !NOISE.iter().any(|noise| line.contains(noise))).collect()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn only_noise_is_left_out() {
        let written = "error: XDG_RUNTIME_DIR is invalid or not set in the environment.\nlibEGL: no such device\n";
        assert_eq!(worth_reading(written), "libEGL: no such device\n");
        assert_eq!(without_noise(|| 7), 7);
    }
}

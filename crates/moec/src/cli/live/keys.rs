//! The keys of the live view.

#[cfg(unix)]
use crate::cli::live::screen;
use std::time::Duration;

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// `q`: stop and save.
    Stop,
    /// The arrow or `k`: layers further up.
    Up,
    /// The arrow or `j`: layers further down.
    Down,
    /// Ctrl-C, where it is no signal.
    #[cfg_attr(unix, allow(dead_code, reason = "the terminal makes a signal of it"))]
    Interrupt,
}

/// What bytes of the keyboard mean. A key that means nothing here, Escape sequences included, is passed over.
#[cfg(any(unix, test))]
fn read(bytes: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut rest = bytes;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'q' | b'Q' => keys.push(Key::Stop),
            b'k' => keys.push(Key::Up),
            b'j' => keys.push(Key::Down),
            0x1b if matches!(after.first(), Some(b'[' | b'O')) => {
                // Parameters, and the byte that ends them.
                let end = after[1..].iter().position(|byte| (0x40..=0x7e).contains(byte));
                let Some(end) = end else { break };
                match (end, after[1 + end]) {
                    (0, b'A') => keys.push(Key::Up),
                    (0, b'B') => keys.push(Key::Down),
                    _ => {}
                }
                rest = &after[end + 2..];
            }
            // Alt and a key.
            0x1b => rest = after.get(1..).unwrap_or_default(),
            _ => {}
        }
    }
    keys
}

/// Where keys come from: standard input, or the terminal of the program if that is something else.
///
/// # Errors
/// When the program has no terminal.
#[cfg(unix)]
pub(crate) fn keyboard() -> std::io::Result<std::os::fd::OwnedFd> {
    use std::io::IsTerminal;
    use std::os::fd::{AsFd, OwnedFd};
    let input = std::io::stdin();
    if input.is_terminal() {
        return input.as_fd().try_clone_to_owned();
    }
    std::fs::File::open("/dev/tty").map(OwnedFd::from)
}

/// The keys of a terminal.
#[cfg(unix)]
pub(crate) struct Keys {
    /// `None` once there is none any more.
    keyboard: Option<std::os::fd::OwnedFd>,
}

#[cfg(unix)]
impl Keys {
    pub(crate) fn new() -> Self {
        Self { keyboard: keyboard().ok() }
    }

    /// The keys that were pressed, waiting for one at most so long.
    pub(crate) fn wait(&mut self, most: Duration) -> Vec<Key> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let Some(keyboard) = &self.keyboard else {
            std::thread::sleep(most);
            return Vec::new();
        };
        let begun = std::time::Instant::now();
        let limit = Timespec { tv_sec: most.as_secs() as i64, tv_nsec: i64::from(most.subsec_nanos()) };
        let mut asked = [PollFd::new(keyboard, PollFlags::IN)];
        match poll(&mut asked, Some(&limit)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Vec::new(),
            Ok(_) => {}
            Err(_) => {
                self.keyboard = None;
                return Vec::new();
            }
        }
        // A program that was stopped and goes on in the background must not read: it would be stopped again.
        if !screen::is_taken() {
            return Vec::new();
        }
        let mut bytes = [0; 64];
        match rustix::io::read(keyboard, &mut bytes) {
            Ok(0) | Err(_) => {
                // Closed, or of a program in the background by now: it would be readable for ever.
                self.keyboard = None;
                std::thread::sleep(most.saturating_sub(begun.elapsed()));
                Vec::new()
            }
            Ok(read_bytes) => read(&bytes[..read_bytes]),
        }
    }
}

/// The keys of a terminal.
#[cfg(not(unix))]
pub(crate) struct Keys;

#[cfg(not(unix))]
impl Keys {
    pub(crate) fn new() -> Self {
        Self
    }

    /// The keys that were pressed, waiting for one at most so long.
    pub(crate) fn wait(&mut self, most: Duration) -> Vec<Key> {
        use ratatui::crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers, poll, read};
        if !poll(most).unwrap_or(false) {
            return Vec::new();
        }
        let Ok(Event::Key(key)) = read() else { return Vec::new() };
        if key.kind == KeyEventKind::Release {
            return Vec::new();
        }
        let key = match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Interrupt),
            KeyCode::Char('q' | 'Q') => Some(Key::Stop),
            KeyCode::Up | KeyCode::Char('k') => Some(Key::Up),
            KeyCode::Down | KeyCode::Char('j') => Some(Key::Down),
            _ => None,
        };
        key.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_and_others_passed_over() {
        assert_eq!(read(b"q"), [Key::Stop]);
        assert_eq!(read(b"xkjQ"), [Key::Up, Key::Down, Key::Stop]);
        assert_eq!(read(b"\x1b[A\x1bOB\x1b[B"), [Key::Up, Key::Down, Key::Down]);
        assert_eq!(read(b"\x1b[1;5q\x1b[3~\x1bq\x1b"), []);
        assert_eq!(read(b"\x1b["), []);
        assert_eq!(read("ä q".as_bytes()), [Key::Stop]);
    }
}

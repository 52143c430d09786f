//! The terminal while the live view has it. There is one terminal, so there is one screen: whoever writes lines meanwhile
//! hands them in, and whoever ends the program gives the terminal back.

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen};
use ratatui::layout::Size;
use std::io::{Stderr, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

type Drawn = Terminal<CrosstermBackend<Stderr>>;

/// The screen, while it is taken.
struct Screen {
    terminal: Drawn,
    mode: mode::Mode,
    /// Lines, or several at once, for when the terminal is free again.
    kept: Vec<String>,
}

static SCREEN: Mutex<Option<Screen>> = Mutex::new(None);

fn lock() -> MutexGuard<'static, Option<Screen>> {
    // Nothing that could panic runs while it is locked; were it so, the terminal must be given back all the more.
    SCREEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the terminal.
///
/// # Errors
/// When standard error or the keyboard is none.
pub(crate) fn take() -> std::io::Result<()> {
    let mut screen = lock();
    if screen.is_none() {
        let (mode, terminal) = occupied()?;
        *screen = Some(Screen { terminal, mode, kept: Vec::new() });
    }
    Ok(())
}

fn occupied() -> std::io::Result<(mode::Mode, Drawn)> {
    let mode = mode::Mode::enter()?;
    let terminal = enter().inspect_err(|_| mode.leave())?;
    Ok((mode, terminal))
}

fn enter() -> std::io::Result<Drawn> {
    // Not `Terminal::clear`, which asks the terminal where its cursor is and waits for the answer among the keys.
    execute!(std::io::stderr(), EnterAlternateScreen, Hide, Clear(ClearType::All))?;
    Terminal::new(CrosstermBackend::new(std::io::stderr())).inspect_err(|_| leave())
}

/// Ends drawing.
fn retire(mut terminal: Drawn) {
    // Dropped with a hidden cursor it would complain to standard error, and panic if that is gone.
    if terminal.show_cursor().is_err() {
        std::mem::forget(terminal);
    }
}

fn leave() {
    // There is nothing else to do about a terminal that is gone.
    let _ = execute!(std::io::stderr(), LeaveAlternateScreen, Show);
}

/// Gives the terminal back as it was, and writes the lines that were kept. Without effect if it is not taken.
pub(crate) fn give_back() {
    give_back_locked(&mut lock());
}

/// The same for a thread that panics, which may be the one that has the screen locked.
pub(crate) fn give_back_in_panic() {
    match SCREEN.try_lock() {
        Ok(mut screen) => give_back_locked(&mut screen),
        // What is said now must be seen; the rest is done when the program ends.
        Err(_) => leave(),
    }
}

fn give_back_locked(screen: &mut Option<Screen>) {
    let Some(Screen { terminal, mode, kept }) = screen.take() else { return };
    retire(terminal);
    leave();
    mode.leave();
    write(kept);
}

/// Writes lines that were kept.
fn write(kept: Vec<String>) {
    let mut out = std::io::stderr().lock();
    for line in kept {
        // There is nowhere left to complain to if standard error is gone.
        let _ = writeln!(out, "{line}");
    }
}

/// Whether the view has the terminal.
pub(crate) fn is_taken() -> bool {
    lock().is_some()
}

/// Keeps a line for when the terminal is free again; `false` if it is.
pub(crate) fn keep(line: &str) -> bool {
    match &mut *lock() {
        None => false,
        Some(screen) => {
            screen.kept.push(line.to_string());
            true
        }
    }
}

/// What was kept last, the oldest first.
pub(crate) fn last_kept(most: usize) -> Vec<String> {
    let screen = lock();
    let Some(Screen { kept, .. }) = &*screen else { return Vec::new() };
    kept[kept.len().saturating_sub(most)..].to_vec()
}

/// Columns and rows; `None` if the terminal is not taken any more.
pub(crate) fn size() -> Option<Size> {
    lock().as_ref()?.terminal.size().ok()
}

/// Shows what was drawn for a terminal of this size; `false` if it is not taken any more, or gone.
pub(crate) fn show(drawn: &Buffer) -> bool {
    let mut screen = lock();
    let Some(Screen { terminal, .. }) = &mut *screen else { return false };
    let shown = terminal.draw(|frame| {
        // One that was resized meanwhile gets the next one.
        if frame.area() == drawn.area {
            frame.buffer_mut().clone_from(drawn);
        }
    });
    let is_there = shown.is_ok();
    if !is_there {
        give_back_locked(&mut screen);
    }
    is_there
}

/// Gives the terminal back while the program is stopped, and takes it again afterwards if it is in the foreground then.
#[cfg(unix)]
pub(crate) fn around_stop(stop: impl FnOnce()) {
    let mut screen = lock();
    let Some(Screen { terminal, mode, kept }) = screen.take() else { return stop() };
    retire(terminal);
    leave();
    mode.leave();
    stop();
    // In the background the terminal is somebody else's: the lines that follow are plain ones.
    match is_in_foreground().then(occupied) {
        Some(Ok((mode, terminal))) => *screen = Some(Screen { terminal, mode, kept }),
        Some(Err(_)) | None => write(kept),
    }
}

/// Whether the program may use the terminal: another one's keyboard must not be read.
#[cfg(unix)]
pub(crate) fn is_in_foreground() -> bool {
    rustix::termios::tcgetpgrp(std::io::stderr()).is_ok_and(|group| group == rustix::process::getpgrp())
}

#[cfg(not(unix))]
pub(crate) fn is_in_foreground() -> bool {
    true
}

/// How the terminal hands over keys: one by one, and without showing them.
#[cfg(unix)]
mod mode {
    use crate::cli::live::keys;
    use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
    use std::io::Result;

    /// In place of a key that is to do nothing (`_POSIX_VDISABLE`).
    const NO_KEY: u8 = if cfg!(any(target_os = "linux", target_os = "android")) { 0 } else { 0xff };

    pub(super) struct Mode {
        before: Termios,
    }

    impl Mode {
        /// Ctrl-C and Ctrl-Z go on to be signals, so that they work whatever becomes of the view; Ctrl-\ would end the program
        /// at once and leave the terminal as the view has it.
        pub(super) fn enter() -> Result<Self> {
            let keyboard = keys::keyboard()?;
            let before = tcgetattr(&keyboard)?;
            let mut ours = before.clone();
            ours.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            ours.special_codes[SpecialCodeIndex::VQUIT] = NO_KEY;
            tcsetattr(&keyboard, OptionalActions::Drain, &ours)?;
            Ok(Self { before })
        }

        pub(super) fn leave(&self) {
            if let Ok(keyboard) = keys::keyboard() {
                // Keys that were typed for the view are not for the shell.
                let _ = tcsetattr(&keyboard, OptionalActions::Flush, &self.before);
            }
        }
    }
}

#[cfg(not(unix))]
mod mode {
    use ratatui::crossterm::terminal::{disable_raw_mode, enable_raw_mode};

    pub(super) struct Mode;

    impl Mode {
        pub(super) fn enter() -> std::io::Result<Self> {
            enable_raw_mode().map(|()| Self)
        }

        pub(super) fn leave(&self) {
            let _ = disable_raw_mode();
        }
    }
}

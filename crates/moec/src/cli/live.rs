//! The live view of a training: a thread that draws what the reporter tells it, and reads keys.
//!
//! The reporter only sends; the thread makes the picture and shows it twice a second, and when a key is pressed, so that training waits
//! for neither. While it is there, lines for standard error are kept, and stand in the terminal once it is closed.

mod draw;
pub(crate) mod keys;
pub(crate) mod screen;
mod view;

pub(crate) use view::{About, Event};

use crate::cli::signals::Stop;
use draw::Colours;
use keys::{Key, Keys};
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use view::View;

/// Between two pictures, at least.
const REDRAW: Duration = Duration::from_millis(500);

/// How long a key is waited for before events are looked at.
const WAIT: Duration = Duration::from_millis(100);

/// The live view, while it is open.
pub(crate) struct Live {
    events: Option<Sender<(Event, Duration)>>,
    thread: Option<JoinHandle<()>>,
}

impl Live {
    /// Takes the terminal for a training that began then. `q` asks to stop, as Ctrl-C does.
    ///
    /// # Errors
    /// When there is no terminal.
    pub(crate) fn open(about: About, begun: Instant, colours: bool, stop: Stop) -> std::io::Result<Self> {
        let (events, received) = channel();
        screen::take()?;
        let colours = Colours { are_on: colours };
        let run = move || run(View::new(about), colours, &received, begun, &stop);
        let thread = std::thread::Builder::new().name("live view".into()).spawn(run);
        let thread = thread.inspect_err(|_| screen::give_back())?;
        Ok(Self { events: Some(events), thread: Some(thread) })
    }

    /// Whether it shows anything: not where the terminal is gone, or another program's.
    pub(crate) fn is_open(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Tells it what happened so long after training began.
    pub(crate) fn tell(&self, event: Event, at: Duration) {
        if let Some(events) = &self.events {
            // A view that is gone needs to know nothing.
            let _ = events.send((event, at));
        }
    }

    /// Gives the terminal back, with the lines that were kept.
    pub(crate) fn close(&mut self) {
        drop(self.events.take());
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
        screen::give_back();
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.close();
    }
}

/// Until the view is closed or the terminal is gone.
fn run(mut view: View, colours: Colours, events: &Receiver<(Event, Duration)>, begun: Instant, stop: &Stop) {
    let mut keys = Keys::new();
    let mut drawn: Option<Instant> = None;
    loop {
        let pressed = keys.wait(WAIT);
        let is_touched = !pressed.is_empty();
        for key in pressed {
            match key {
                // Pressed again it must not be what a second Ctrl-C is.
                Key::Stop if stop.is_asked() => {}
                Key::Stop | Key::Interrupt => stop.ask(),
                key => view.apply(Event::Pressed(key), begun.elapsed()),
            }
        }
        loop {
            match events.try_recv() {
                Ok((event, at)) => view.apply(event, at),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        if stop.is_asked() && !view.stopping {
            view.apply(Event::Stopping, begun.elapsed());
        }
        if is_touched || drawn.is_none_or(|at| at.elapsed() >= REDRAW) {
            view.elapsed = begun.elapsed();
            view.said = screen::last_kept(draw::SAID);
            let Some(size) = screen::size() else { return };
            let mut picture = Buffer::empty(Rect::from((Position::ORIGIN, size)));
            draw::draw(&view, colours, picture.area, &mut picture);
            if !screen::show(&picture) {
                return;
            }
            drawn = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests;

//! Event files of TensorBoard in the folder of a run, written while it trains.
//!
//! Each training that goes on with a run begins a file of its own, as other writers do, with all that the run has reported:
//! what it says first makes TensorBoard forget the files before it, which may lack the last lines, or have some that a
//! resumption took back.

use super::tail::Tail;
use super::{Destination, Ending, Trouble, since_1970};
use crate::cli::event_file::EventFile;
use crate::cli::numbers::{TrainingTime, numbers};
use crate::cli::shell;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// How the names of event files begin; the seconds in them say in which order they are read.
const PREFIX: &str = "events.out.tfevents.";

/// Lines of metrics that become events at once.
const LINES: usize = 100;

/// The event file of a training.
#[derive(Debug)]
pub(super) struct EventFiles {
    root: PathBuf,
    /// When the first file of the run was begun: what seconds of training are added to.
    begun: f64,
    file: Option<File>,
    tail: Tail,
    time: TrainingTime,
}

/// Whether a run has event files.
pub(super) fn are_in(root: &Path) -> bool {
    first(root).is_some()
}

/// The second in which the first event file of a run was begun.
fn first(root: &Path) -> Option<f64> {
    let names = std::fs::read_dir(root).ok()?.flatten().map(|entry| entry.file_name());
    let second = |name: std::ffi::OsString| name.to_str()?.strip_prefix(PREFIX)?.split('.').next()?.parse::<u32>().ok();
    names.filter_map(second).min().map(f64::from)
}

impl EventFiles {
    pub(super) fn of(root: &Path) -> Self {
        let now = since_1970(SystemTime::now()).as_secs() as f64;
        let begun = first(root).unwrap_or(now);
        Self { root: root.to_path_buf(), begun, file: None, tail: Tail::of(root), time: TrainingTime::default() }
    }

    /// A file that was not there, later by name than all others.
    fn begin(&self) -> std::io::Result<File> {
        let now = since_1970(SystemTime::now());
        let name = format!("{PREFIX}{:010}.{:06}.moec", now.as_secs(), now.subsec_micros());
        let mut file = OpenOptions::new().append(true).create_new(true).open(self.root.join(name))?;
        let mut events = EventFile::new(self.begun);
        events.begin_again(self.begun, 0);
        file.write_all(events.bytes())?;
        Ok(file)
    }

    fn write(&mut self) -> std::io::Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self.begin()?,
        };
        loop {
            let metrics = self.tail.next(LINES)?;
            if metrics.is_empty() {
                break;
            }
            let mut events = EventFile::default();
            for metric in &metrics {
                let seconds = self.begun + self.time.at(metric);
                for number in numbers(metric) {
                    events.scalar(seconds, number.step, &number.tag(), number.value as f32);
                }
            }
            file.write_all(events.bytes())?;
        }
        self.file = Some(file);
        Ok(())
    }
}

impl Destination for EventFiles {
    fn name(&self) -> String {
        "tensorboard".to_string()
    }

    fn place(&self) -> String {
        self.root.display().to_string()
    }

    fn remedy(&self, _: bool) -> String {
        format!("moec metrics {} --tensorboard FOLDER", shell::path(&self.root))
    }

    fn deliver(&mut self) -> Result<(), Trouble> {
        self.write().map_err(|error| Trouble::Refused(format!("cannot write an event file: {error}")))
    }

    fn end(&mut self, _: Ending) -> Result<String, Trouble> {
        Ok(format!("tensorboard --logdir {}", shell::path(&self.root)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_goes_on_begins_a_file_with_all_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let line = |step: u64| {
            format!(r#"{{"schema":1,"kind":"train","step":{step},"loss_nats":1,"lr":1,"step_ms":1,"tokens_per_s":1}}"#)
                + "\n"
        };
        let names = || {
            let mut names: Vec<String> =
                std::fs::read_dir(root).unwrap().flatten().map(|e| e.file_name().into_string().unwrap()).collect();
            names.retain(|name| name.starts_with(PREFIX));
            names.sort();
            names
        };
        let size = |name: &str| std::fs::metadata(root.join(name)).unwrap().len();
        assert!(!are_in(root));
        std::fs::write(root.join("metrics.jsonl"), line(1)).unwrap();
        let mut events = EventFiles::of(root);
        events.deliver().unwrap();
        assert!(are_in(root));
        let one = size(&names()[0]);
        std::fs::write(root.join("metrics.jsonl"), line(1) + &line(2)).unwrap();
        events.deliver().unwrap();
        events.deliver().unwrap();
        assert_eq!(names().len(), 1);
        let two = size(&names()[0]);
        assert!(two > one);
        EventFiles::of(root).deliver().unwrap();
        assert_eq!(names().iter().map(|name| size(name)).collect::<Vec<_>>(), [two, two]);
        assert_eq!(EventFiles::of(root).begun, names()[0][PREFIX.len()..PREFIX.len() + 10].parse::<f64>().unwrap());
    }
}

//! The metrics of a run as they are added to its file, which is the queue between a training and those who are told of it.

use crate::cli::numbers::TrainingTime;
use moec_runtime::Metric;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Reads on from where it was.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    /// Bytes that were read: whole lines.
    offset: u64,
}

impl Tail {
    /// From the first line of a run.
    pub(super) fn of(root: &Path) -> Self {
        Self { path: root.join("metrics.jsonl"), offset: 0 }
    }

    /// The next whole lines, so many at most: however long a server was away, no more are in memory. Empty if there are none
    /// yet.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn next(&mut self, most: usize) -> io::Result<Vec<Metric>> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let mut lines = BufReader::new(file);
        let (mut metrics, mut line) = (Vec::new(), String::new());
        while metrics.len() < most {
            line.clear();
            let read = lines.read_line(&mut line)?;
            if !line.ends_with('\n') {
                // The end, or half of a line that is being written.
                break;
            }
            self.offset += read as u64;
            metrics.extend(Metric::from_line(&line));
        }
        Ok(metrics)
    }
}

/// When a run began, also if it is told of much later: its spec is written once, and so long before its last line as it was
/// trained it was there in any case (the folder may be a copy).
pub(super) fn beginning(root: &Path) -> SystemTime {
    let modified = |name: &str| std::fs::metadata(root.join(name)).and_then(|found| found.modified()).ok();
    let (mut lines, mut time, mut seconds) = (Tail::of(root), TrainingTime::default(), 0.0);
    // What cannot be read is said by those who tell it.
    while let Some(metrics) = lines.next(1000).ok().filter(|metrics| !metrics.is_empty()) {
        metrics.iter().for_each(|metric| seconds = time.at(metric));
    }
    let trained = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    let first = modified("metrics.jsonl").and_then(|last| last.checked_sub(trained));
    [modified("spec.moe"), first].into_iter().flatten().fold(SystemTime::now(), SystemTime::min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn whole_lines_come_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut tail = Tail::of(folder.path());
        assert!(tail.next(10).unwrap().is_empty(), "there is no file yet");
        let mut file = File::create(folder.path().join("metrics.jsonl")).unwrap();
        let line = |step: u64| format!("{{\"schema\":1,\"kind\":\"diverged\",\"step\":{step},\"what\":\"x\"}}\n");
        let steps = |tail: &mut Tail, most| -> Vec<u64> { tail.next(most).unwrap().iter().map(Metric::step).collect() };
        let fourth = line(4);
        write!(file, "{}{}no metric\n{}{}", line(1), line(2), line(3), &fourth[..9]).unwrap();
        assert_eq!(steps(&mut tail, 2), [1, 2]);
        assert_eq!(steps(&mut tail, 2), [3]);
        assert!(steps(&mut tail, 2).is_empty());
        write!(file, "{}", &fourth[9..]).unwrap();
        assert_eq!(steps(&mut tail, 2), [4]);
    }
}

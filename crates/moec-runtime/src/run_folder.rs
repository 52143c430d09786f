//! The folder of a run.
//!
//! ```text
//! RUN/
//!     spec.moe        the spec as written
//!     resolved.yaml   the model and recipe with every default filled in
//!     plan.txt        the plan that ran
//!     metrics.jsonl   one JSON object a line
//!     checkpoints/    see the module of checkpoints
//!     samples/        texts that the model wrote
//!     .lock           held by the process that writes
//! ```

use crate::checkpoint::{self, CheckpointError, Identity, PassedOver, TensorSource};
use crate::data::sha256_hex;
use crate::files::{Files, INCOMPLETE, RealFiles, replace};
use crate::metrics::Metric;
use moec_plan::StateDecl;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

const SPEC: &str = "spec.moe";
const RESOLVED: &str = "resolved.yaml";
const PLAN: &str = "plan.txt";
const METRICS: &str = "metrics.jsonl";
const CHECKPOINTS: &str = "checkpoints";
const BEST: &str = "best";
const SAMPLES: &str = "samples";
const LOCK: &str = ".lock";

/// Why a run's folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A run is there already.
    #[error("{path} already holds a run; resume it, or choose another folder")]
    Exists {
        /// The folder.
        path: String,
    },
    /// Something else is there.
    #[error("{path} is not empty and holds no run; choose another folder")]
    NotEmpty {
        /// The folder.
        path: String,
    },
    /// There is no run.
    #[error("{path} holds no run: {SPEC} is missing")]
    NoRun {
        /// The folder.
        path: String,
    },
    /// Another process is writing.
    #[error("another process is writing to {path}")]
    Locked {
        /// The folder.
        path: String,
    },
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A number in a metric cannot be written as JSON.
    #[error("cannot write a metric: {0}")]
    Metric(String),
}

/// What a run writes once, when it begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunTexts<'a> {
    /// The spec as written.
    pub spec: &'a str,
    /// The model and recipe with every default filled in.
    pub resolved: &'a str,
    /// The plan in its text form.
    pub plan: &'a str,
}

/// A run's folder, held by this process alone until it is dropped.
pub struct RunFolder {
    root: PathBuf,
    files: Box<dyn Files>,
    spec_sha256: String,
    // Held open for its lock, which the system releases when the process ends, however it ends.
    _lock: File,
}

fn io_failed(path: &Path) -> impl Fn(io::Error) -> RunError {
    let path = path.display().to_string();
    move |source| RunError::Io { path: path.clone(), source }
}

impl RunFolder {
    /// Begins a run in a folder that does not exist or is empty.
    ///
    /// # Errors
    /// When a run or anything else is there, another process writes there, or the system refuses.
    pub fn create(root: &Path, texts: &RunTexts<'_>) -> Result<Self, RunError> {
        Self::create_with(Box::new(RealFiles), root, texts)
    }

    fn create_with(files: Box<dyn Files>, root: &Path, texts: &RunTexts<'_>) -> Result<Self, RunError> {
        fs::create_dir_all(root).map_err(io_failed(root))?;
        let path = root.display().to_string();
        if root.join(SPEC).exists() {
            return Err(RunError::Exists { path });
        }
        // What an attempt that failed before its spec was written leaves behind does not count.
        let ours = [LOCK, RESOLVED, PLAN, CHECKPOINTS, SAMPLES];
        for entry in fs::read_dir(root).map_err(io_failed(root))? {
            let name = entry.map_err(io_failed(root))?.file_name();
            let name = name.to_string_lossy();
            if !ours.contains(&&*name) && !name.starts_with(INCOMPLETE) {
                return Err(RunError::NotEmpty { path });
            }
        }
        let lock = take_lock(root)?;
        // Another process may have begun and ended a run since.
        if root.join(SPEC).exists() {
            return Err(RunError::Exists { path });
        }
        for folder in [CHECKPOINTS, SAMPLES] {
            let folder = root.join(folder);
            if !folder.is_dir() {
                files.create_dir(&folder).map_err(io_failed(&folder))?;
            }
        }
        // The spec comes last: it makes the folder a run.
        for (name, text) in [(RESOLVED, texts.resolved), (PLAN, texts.plan), (SPEC, texts.spec)] {
            let file = root.join(name);
            replace(&*files, &file, &mut |out| out.write_all(text.as_bytes())).map_err(io_failed(&file))?;
        }
        Ok(Self { root: root.into(), files, spec_sha256: sha256_hex(texts.spec.as_bytes()), _lock: lock })
    }

    /// Opens the folder of a run to go on with it, and removes what an earlier process left half-written.
    ///
    /// # Errors
    /// When there is no run, another process writes there, or the system refuses.
    pub fn open(root: &Path) -> Result<Self, RunError> {
        Self::open_with(Box::new(RealFiles), root)
    }

    fn open_with(files: Box<dyn Files>, root: &Path) -> Result<Self, RunError> {
        let spec = read_spec(root)?;
        let lock = take_lock(root)?;
        let checkpoints = root.join(CHECKPOINTS);
        if checkpoints.is_dir() {
            for entry in fs::read_dir(&checkpoints).map_err(io_failed(&checkpoints))? {
                let entry = entry.map_err(io_failed(&checkpoints))?;
                if entry.file_name().to_string_lossy().starts_with(INCOMPLETE) {
                    files.remove_dir(&entry.path()).map_err(io_failed(&entry.path()))?;
                }
            }
        } else {
            files.create_dir(&checkpoints).map_err(io_failed(&checkpoints))?;
        }
        Ok(Self { root: root.into(), files, spec_sha256: sha256_hex(spec.as_bytes()), _lock: lock })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// SHA-256 of the spec as written.
    pub fn spec_sha256(&self) -> &str {
        &self.spec_sha256
    }

    /// Step and path of the newest checkpoint.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn latest_checkpoint(&self) -> Result<Option<(u64, PathBuf)>, CheckpointError> {
        latest_checkpoint(&self.root)
    }

    /// Reads the newest checkpoint that is whole, as [`newest_whole`] does, and takes damaged ones their names, so that
    /// training can write these steps again.
    ///
    /// # Errors
    /// As [`newest_whole`], or when the system refuses.
    pub(crate) fn take_up<T>(
        &self,
        read: impl FnMut(&Path) -> Result<T, CheckpointError>,
    ) -> Result<Option<(T, Vec<PassedOver>)>, CheckpointError> {
        let Some((taken, passed_over)) = newest_whole(&self.root, read)? else { return Ok(None) };
        let set_aside = |damaged: PassedOver| {
            let path = checkpoint::set_aside(&*self.files, &damaged.path)?;
            Ok(PassedOver { path, ..damaged })
        };
        let passed_over = passed_over.into_iter().map(set_aside).collect::<Result<_, CheckpointError>>()?;
        Ok(Some((taken, passed_over)))
    }

    /// Replaces what the run was asked for, with the model and recipe that follow from it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn write_resolved(&self, text: &str) -> Result<(), RunError> {
        let path = self.root.join(RESOLVED);
        replace(&*self.files, &path, &mut |out| out.write_all(text.as_bytes())).map_err(io_failed(&path))
    }

    /// Writes the checkpoint of a step, whole or not at all. `tensor` is asked for each of its tensors twice, of which
    /// only one is in memory at a time; moments of the optimiser that it does not have are zero.
    ///
    /// # Errors
    /// When a tensor cannot be had, is missing from the model, has another type or is not finite, or the system refuses to
    /// write. Checkpoints written before stay as they are.
    pub fn save_checkpoint(
        &self,
        step: u64,
        identity: &Identity,
        states: &[StateDecl],
        tensor: TensorSource<'_>,
    ) -> Result<PathBuf, CheckpointError> {
        checkpoint::save(&*self.files, &self.root.join(CHECKPOINTS), step, identity, states, tensor)
    }

    /// Removes all but the newest `keep` checkpoints and that of the step `best`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn prune_checkpoints(&self, keep: usize, best: Option<u64>) -> Result<(), CheckpointError> {
        checkpoint::prune(&*self.files, &self.root.join(CHECKPOINTS), keep, best)
    }

    /// Removes the checkpoint of a step, if it is there.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn remove_checkpoint(&self, step: u64) -> Result<(), CheckpointError> {
        checkpoint::remove_step(&*self.files, &self.root.join(CHECKPOINTS), step)
    }

    /// Appends a line to `metrics.jsonl`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn append_metric(&self, metric: &Metric) -> Result<(), RunError> {
        let line = metric.to_line().map_err(|e| RunError::Metric(e.to_string()))?;
        let path = self.root.join(METRICS);
        self.files.append(&path, line.as_bytes()).map_err(io_failed(&path))
    }

    /// Waits until all metrics are on the disk.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn sync_metrics(&self) -> Result<(), RunError> {
        let path = self.root.join(METRICS);
        if path.exists() { self.files.sync_file(&path).map_err(io_failed(&path)) } else { Ok(()) }
    }

    /// Drops the lines of `metrics.jsonl` after a step, which a resumed run will write again, and lines that were cut
    /// off. The lines that stay are returned.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn rewind_metrics(&self, step: u64) -> Result<Vec<Metric>, RunError> {
        let path = self.root.join(METRICS);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_failed(&path)(error)),
        };
        let mut kept = String::new();
        let mut metrics = Vec::new();
        for line in text.split_inclusive('\n') {
            match Metric::from_line(line) {
                // That it diverged is no longer so once it goes on.
                Some(Metric::Diverged(_)) => {}
                Some(metric) if metric.step() <= step && line.ends_with('\n') => {
                    kept.push_str(line);
                    metrics.push(metric);
                }
                // Later than the checkpoint, or cut off when the run was killed.
                Some(_) | None => {}
            }
        }
        if kept != text {
            replace(&*self.files, &path, &mut |out| out.write_all(kept.as_bytes())).map_err(io_failed(&path))?;
        }
        Ok(metrics)
    }

    /// Writes a report about the run, a file of its own beside those of the run, whole or not at all.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn write_report(&self, name: &str, text: &str) -> Result<PathBuf, RunError> {
        let path = self.root.join(name);
        replace(&*self.files, &path, &mut |out| out.write_all(text.as_bytes())).map_err(io_failed(&path))?;
        Ok(path)
    }

    /// Writes a text that the model sampled under `samples/NAME.txt` and returns its path. Characters of the name other
    /// than letters, digits, `-` and `_` become `-`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn write_sample(&self, name: &str, text: &str) -> Result<PathBuf, RunError> {
        let folder = self.root.join(SAMPLES);
        if !folder.is_dir() {
            self.files.create_dir(&folder).map_err(io_failed(&folder))?;
        }
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
        let path = folder.join(name.chars().map(plain).collect::<String>() + ".txt");
        replace(&*self.files, &path, &mut |out| out.write_all(text.as_bytes())).map_err(io_failed(&path))?;
        Ok(path)
    }
}

/// Nobody else holds the lock, or this fails at once.
fn take_lock(root: &Path) -> Result<File, RunError> {
    let path = root.join(LOCK);
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io_failed(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(RunError::Locked { path: root.display().to_string() }),
        // Some network file systems have no locks; a run there is worth more than the guard.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(file),
        Err(TryLockError::Error(error)) => Err(io_failed(&path)(error)),
    }
}

/// The spec of a run as written, read without taking its lock.
///
/// # Errors
/// When there is no run or it cannot be read.
pub fn read_spec(root: &Path) -> Result<String, RunError> {
    match read_text(root, SPEC) {
        Err(RunError::Io { source, .. })
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Err(RunError::NoRun { path: root.display().to_string() })
        }
        other => other,
    }
}

/// The resolved model and recipe of a run, read without taking its lock.
///
/// # Errors
/// When it cannot be read.
pub fn read_resolved(root: &Path) -> Result<String, RunError> {
    read_text(root, RESOLVED)
}

fn read_text(root: &Path, name: &str) -> Result<String, RunError> {
    let path = root.join(name);
    fs::read_to_string(&path).map_err(io_failed(&path))
}

/// All whole lines of a run's metrics, read without taking its lock; none of a run that has reported nothing yet.
///
/// # Errors
/// When they cannot be read.
pub fn read_metrics(root: &Path) -> Result<Vec<Metric>, RunError> {
    match read_text(root, METRICS) {
        Err(RunError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        text => Ok(text?.lines().filter_map(Metric::from_line).collect()),
    }
}

/// Step and path of the newest checkpoint of a run, found without taking its lock.
///
/// # Errors
/// When the folder cannot be read.
pub fn latest_checkpoint(root: &Path) -> Result<Option<(u64, PathBuf)>, CheckpointError> {
    Ok(checkpoint::list(&root.join(CHECKPOINTS))?.pop())
}

/// Reads the newest checkpoint of a run that is whole, without taking its lock: `read` is given one after another, the
/// newest first, until one is not damaged. `None` if there are none.
///
/// # Errors
/// What the newest is damaged by if all are, and every other error of `read`.
pub fn newest_whole<T>(
    root: &Path,
    read: impl FnMut(&Path) -> Result<T, CheckpointError>,
) -> Result<Option<(T, Vec<PassedOver>)>, CheckpointError> {
    checkpoint::newest_whole(&root.join(CHECKPOINTS), read)
}

/// The run whose best checkpoint a path means: `RUN/checkpoints/best`, which is no folder but a name for the one that
/// [`crate::best_checkpoint`] finds.
pub fn run_of_best(path: &Path) -> Option<PathBuf> {
    let checkpoints = path.parent().filter(|_| path.file_name().is_some_and(|name| name == BEST))?;
    let root = checkpoints.parent().filter(|_| checkpoints.file_name().is_some_and(|name| name == CHECKPOINTS))?;
    root.join(SPEC).is_file().then(|| or_here(root))
}

/// A path that is not empty.
fn or_here(path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { PathBuf::from(".") } else { path.to_path_buf() }
}

/// The run of a folder that is, or is named like, one of its checkpoints.
pub fn run_of_checkpoint(folder: &Path) -> Option<PathBuf> {
    let is_named = folder.file_name()?.to_str().and_then(checkpoint::step_of).is_some();
    let root = folder.parent()?.parent()?;
    let is_one = (is_named || folder.join(checkpoint::MANIFEST).is_file()) && root.join(SPEC).is_file();
    is_one.then(|| or_here(root))
}

/// The checkpoints of a run, oldest first, found without taking its lock.
///
/// # Errors
/// When the folder cannot be read.
pub fn checkpoints(root: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    checkpoint::list(&root.join(CHECKPOINTS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::faulty::{Fault, FaultyFiles};
    use crate::metrics::{Evaluation, TrainMetric};

    const TEXTS: RunTexts<'static> = RunTexts { spec: "model m { }", resolved: "context: 8\n", plan: "plan\n" };

    fn train_line(step: u64) -> Metric {
        let (objective, grad_norm) = (None, None);
        let (loss_nats, lr, step_ms, tokens_per_s) = (1.0, 1e-3, 5.0, 100.0);
        Metric::Train(TrainMetric { step, loss_nats, objective, grad_norm, lr, step_ms, tokens_per_s })
    }

    fn evaluation_line(step: u64) -> Metric {
        Metric::Evaluation(Evaluation {
            step,
            train_loss_nats: 1.0,
            validation_loss_nats: Some(2.0),
            active_parameters: None,
            layers: Vec::new(),
        })
    }

    #[test]
    fn a_run_is_written_once_and_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("a/run");
        assert!(matches!(RunFolder::open(&root), Err(RunError::NoRun { .. })));
        assert!(matches!(read_spec(&root), Err(RunError::NoRun { .. })));
        let run = RunFolder::create(&root, &TEXTS).unwrap();
        assert_eq!(read_spec(&root).unwrap(), TEXTS.spec);
        assert_eq!(read_resolved(&root).unwrap(), TEXTS.resolved);
        assert_eq!(fs::read_to_string(root.join(PLAN)).unwrap(), TEXTS.plan);
        assert!(matches!(RunFolder::create(&root, &TEXTS), Err(RunError::Exists { .. })));
        assert!(matches!(RunFolder::open(&root), Err(RunError::Locked { .. })));
        let sample = run.write_sample("../step 3", "To be").unwrap();
        assert_eq!(sample, root.join("samples/---step-3.txt"));
        drop(run);
        fs::create_dir(root.join("checkpoints/.incomplete-step-00000001")).unwrap();
        let run = RunFolder::open(&root).unwrap();
        assert_eq!(run.spec_sha256(), sha256_hex(TEXTS.spec.as_bytes()));
        assert_eq!(fs::read_dir(root.join(CHECKPOINTS)).unwrap().count(), 0);
        assert_eq!(run.latest_checkpoint().unwrap(), None);
    }

    #[test]
    fn foreign_folders_and_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.tex"), "precious").unwrap();
        assert!(matches!(RunFolder::create(folder.path(), &TEXTS), Err(RunError::NotEmpty { .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let file = folder.path().join("thesis.tex");
        assert!(matches!(RunFolder::create(&file, &TEXTS), Err(RunError::Io { .. })));
        assert!(matches!(RunFolder::open(&file), Err(RunError::NoRun { .. })));
    }

    #[test]
    fn a_beginning_that_failed_can_be_repeated() {
        for at in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path().join("run");
            let files = FaultyFiles::new(at, Fault::Error(io::ErrorKind::StorageFull));
            match RunFolder::create_with(Box::new(files), &root, &TEXTS) {
                Err(error) => assert!(matches!(error, RunError::Io { .. }), "{error}"),
                Ok(_) => break,
            }
            if !root.join(SPEC).exists() {
                RunFolder::create(&root, &TEXTS).unwrap();
            }
            assert_eq!(read_spec(&root).unwrap(), TEXTS.spec);
        }
    }

    #[test]
    fn metrics_are_rewound() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("run");
        let run = RunFolder::create(&root, &TEXTS).unwrap();
        assert!(run.rewind_metrics(5).unwrap().is_empty());
        for line in [train_line(10), train_line(20), evaluation_line(20), train_line(30)] {
            run.append_metric(&line).unwrap();
        }
        run.sync_metrics().unwrap();
        let path = root.join(METRICS);
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, whole.clone() + &whole[..25]).unwrap();
        assert_eq!(read_metrics(&root).unwrap().len(), 4);
        let kept = run.rewind_metrics(20).unwrap();
        assert_eq!(kept, [train_line(10), train_line(20), evaluation_line(20)]);
        let third = whole.match_indices('\n').nth(2).unwrap().0;
        assert_eq!(fs::read_to_string(&path).unwrap(), whole[..=third]);
        run.append_metric(&train_line(30)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), whole);
    }
}

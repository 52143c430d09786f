//! Checkpoints: a folder `step-NNNNNNNN` that is whole or not there.
//!
//! ```text
//! RUN/checkpoints/step-00000100/
//!     model.safetensors      parameters and the states of routers
//!     optimizer.safetensors  moments of the optimiser
//!     manifest.json          step, seed, vocabulary, hashes of everything else and of itself
//! ```
//!
//! A checkpoint is written into a sibling folder `.incomplete-step-NNNNNNNN`: every file is written and synced, then the
//! folder is synced, renamed, and its parent synced. So whatever happens, a folder under its final name is whole, and the
//! newest one is the one with the highest step. Nothing in a checkpoint depends on time or machine: the same run gives
//! the same bytes.
//!
//! Reading believes nothing: `manifest.json` must be byte for byte what this version writes and hash to the value it
//! holds; sizes and SHA-256 of the files must be those of the manifest; names, element types and shapes must be exactly
//! those that the model declares, and every number finite. Only then is a tensor handed out.

use crate::data::{hex, sha256_hex};
use crate::executable::is_finite;
use crate::files::{Files, incomplete};
use crate::init::zeros;
use crate::tensor_file::{self, Entry, MAX_HEADER, TensorFileError};
use crate::vocab::Vocab;
use moec_ir::{StateRole, Tensor};
use moec_plan::{StateDecl, StateKind};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Version of the format that is written, and the only one that is read.
pub const FORMAT_VERSION: u32 = 1;

/// Larger manifests are refused; a vocabulary of every character of Unicode fits.
const MAX_MANIFEST: u64 = 16 << 20;

pub(crate) const MANIFEST: &str = "manifest.json";
const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The system refused to write; checkpoints written before are untouched.
    #[error("cannot write the checkpoint {path}: {source}")]
    Write {
        /// The checkpoint.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// Another checkpoint of this step is there.
    #[error("{path} already holds another checkpoint of this step")]
    Exists {
        /// The checkpoint.
        path: String,
    },
    /// The system refused to read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file has another length than the manifest says.
    #[error("{path} is truncated or damaged: it has {found} bytes, {expected} were written")]
    Truncated {
        /// The file.
        path: String,
        /// Bytes according to the manifest.
        expected: u64,
        /// Bytes on the disk.
        found: u64,
    },
    /// The contents are not those that were written.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Another version of moec wrote it.
    #[error("{path} has format version {found}; this moec reads version {FORMAT_VERSION}")]
    Version {
        /// The manifest.
        path: String,
        /// Its version.
        found: u64,
    },
    /// It belongs to another model, corpus or seed.
    #[error("{path} does not fit: {reason}")]
    Other {
        /// The checkpoint or file.
        path: String,
        /// The first difference.
        reason: String,
    },
    /// A number is NaN or infinite.
    #[error("tensor `{name}` is not finite")]
    NotFinite {
        /// The tensor.
        name: String,
    },
}

impl CheckpointError {
    /// Whether the checkpoint is not what was written: then one from before may be whole.
    pub fn is_damage(&self) -> bool {
        use io::ErrorKind::{NotADirectory, NotFound, UnexpectedEof};
        match self {
            Self::Truncated { .. } | Self::Damaged { .. } => true,
            Self::Read { source, .. } => matches!(source.kind(), NotFound | NotADirectory | UnexpectedEof),
            _ => false,
        }
    }
}

/// A checkpoint that is damaged, for which one from before was taken.
#[derive(Debug)]
pub struct PassedOver {
    /// Where it lies.
    pub path: PathBuf,
    /// What is wrong with it.
    pub error: CheckpointError,
}

/// Reads the newest of some checkpoints that is whole: `read` is given one after another, the newest first, until one is
/// not damaged. `None` if there are none.
///
/// # Errors
/// What the newest is damaged by if all are, and every other error of `read`.
pub(crate) fn newest_whole<T>(
    checkpoints: &Path,
    mut read: impl FnMut(&Path) -> Result<T, CheckpointError>,
) -> Result<Option<(T, Vec<PassedOver>)>, CheckpointError> {
    let mut passed_over = Vec::new();
    for (_, path) in list(checkpoints)?.into_iter().rev() {
        match read(&path) {
            Ok(whole) => return Ok(Some((whole, passed_over))),
            Err(error) if error.is_damage() => passed_over.push(PassedOver { path, error }),
            Err(error) => return Err(error),
        }
    }
    // All of those that are there are damaged.
    passed_over.into_iter().next().map_or(Ok(None), |newest| Err(newest.error))
}

/// Takes a damaged checkpoint its name, so that training can write the step again, and returns where it lies now.
///
/// # Errors
/// When the system refuses.
pub(crate) fn set_aside(files: &dyn Files, path: &Path) -> Result<PathBuf, CheckpointError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let named = |n: u64| if n == 1 { format!("damaged-{name}") } else { format!("damaged-{name}-{n}") };
    let free = (1..).map(|n| path.with_file_name(named(n))).find(|path| !path.exists());
    let to = free.unwrap_or_else(|| path.with_file_name(named(1)));
    files.rename(path, &to).map_err(|source| CheckpointError::Write { path: to.display().to_string(), source })?;
    Ok(to)
}

/// What a checkpoint says about itself besides its tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT_VERSION`] of the writer.
    pub format: u32,
    /// Optimiser steps made.
    pub step: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Length of a window, T.
    pub context: usize,
    /// Characters of the vocabulary in token order; see [`Manifest::vocab`].
    pub vocabulary: String,
    /// SHA-256 of the spec as written.
    pub spec_sha256: String,
    /// SHA-256 of the training text.
    pub data_sha256: String,
    /// SHA-256 over the names, types and kinds of the model's tensors; see [`fingerprint`].
    pub model_sha256: String,
    /// The other files.
    pub files: Vec<FileEntry>,
}

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Name within the folder.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// The manifest with its own hash: that of its compact JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    manifest: Manifest,
    sha256: String,
}

impl Manifest {
    /// The vocabulary; `None` if it is not one.
    pub fn vocab(&self) -> Option<Vocab> {
        Vocab::from_text(&self.vocabulary)
    }

    fn to_json(&self) -> Result<String, serde_json::Error> {
        let sha256 = sha256_hex(serde_json::to_string(self)?.as_bytes());
        Ok(serde_json::to_string_pretty(&Sealed { manifest: self.clone(), sha256 })? + "\n")
    }
}

/// SHA-256 over name, type and kind of the parameters and router states, in order of name: equal for two programs that
/// can exchange `model.safetensors`.
pub fn fingerprint(states: &[StateDecl]) -> String {
    // Words of the format, which do not follow the names of our types.
    let word = |kind| if kind == StateKind::Parameter { "Parameter" } else { "Router" };
    let of_model = states.iter().filter(|s| s.kind.of_model());
    let mut lines: Vec<String> = of_model.map(|s| format!("{} {} {}\n", s.name, s.ty, word(s.kind))).collect();
    lines.sort();
    sha256_hex(lines.concat().as_bytes())
}

/// What identifies a run, and is the same in all of its checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Seed of the run.
    pub seed: u64,
    /// Length of a window, T.
    pub context: usize,
    /// The vocabulary.
    pub vocab: Vocab,
    /// SHA-256 of the spec as written.
    pub spec_sha256: String,
    /// SHA-256 of the training text.
    pub data_sha256: String,
}

/// Which tensors are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// Parameters and states of routers: all that sampling and evaluation need.
    Model,
    /// Also the moments of the optimiser, to go on training.
    All,
}

/// A checkpoint in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// What it says about itself.
    pub manifest: Manifest,
    /// Its tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
}

/// Name of the checkpoint of a step.
fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Step of a checkpoint's folder name.
pub(crate) fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("step-")?;
    let step = digits.parse().ok()?;
    (folder_name(step) == name).then_some(step)
}

fn read_failed(path: &Path) -> impl Fn(io::Error) -> CheckpointError {
    let path = path.display().to_string();
    move |source| CheckpointError::Read { path: path.clone(), source }
}

/// The checkpoints in a folder, oldest first. A missing folder has none.
///
/// # Errors
/// When the folder cannot be read.
pub(crate) fn list(checkpoints: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let entries = match fs::read_dir(checkpoints) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(read_failed(checkpoints)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(read_failed(checkpoints))?;
        if let Some(step) = entry.file_name().to_str().and_then(step_of) {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Gives the tensor of a state; `None` where it has none. An error is why a tensor cannot be had.
pub type TensorSource<'a> = &'a mut dyn FnMut(&StateDecl) -> Result<Option<Tensor>, String>;

/// Writes the checkpoint of a step; `tensor` may lack moments of the optimiser, which are then zero. It is asked for each
/// tensor twice, and only one of them is in memory at a time. Writing the same checkpoint again changes nothing.
///
/// # Errors
/// When a tensor cannot be had, is missing, has another type or is not finite, or the system refuses to write.
/// Checkpoints written before stay as they are.
pub(crate) fn save(
    files: &dyn Files,
    checkpoints: &Path,
    step: u64,
    identity: &Identity,
    states: &[StateDecl],
    tensor: TensorSource<'_>,
) -> Result<PathBuf, CheckpointError> {
    let path = checkpoints.join(folder_name(step));
    let shown = path.display().to_string();
    let manifest = |files: Vec<FileEntry>| Manifest {
        format: FORMAT_VERSION,
        step,
        seed: identity.seed,
        context: identity.context,
        vocabulary: identity.vocab.to_text(),
        spec_sha256: identity.spec_sha256.clone(),
        data_sha256: identity.data_sha256.clone(),
        model_sha256: fingerprint(states),
        files,
    };
    // What is in each file: everything is looked at before anything is written.
    let mut parts = [(MODEL, Vec::new()), (OPTIMIZER, Vec::new())];
    let mut get = |state: &StateDecl| {
        let other = |reason| CheckpointError::Other { path: shown.clone(), reason };
        match (tensor(state).map_err(other)?, state.kind) {
            (Some(tensor), _) => Ok(tensor),
            (None, StateKind::State(StateRole::Optimizer)) => {
                // An average begins as its parameter does.
                let parameter = state.averaged().map(|name| StateDecl {
                    name: name.to_string(),
                    kind: StateKind::Parameter,
                    ..state.clone()
                });
                let tensor = parameter.map_or(Ok(None), |parameter| tensor(&parameter)).map_err(other)?;
                Ok(tensor.unwrap_or_else(|| zeros(&state.ty)))
            }
            (None, _) => Err(other(format!("there is no tensor `{}`", state.name))),
        }
    };
    for state in states.iter().filter(|s| s.kind.in_checkpoints()) {
        let tensor = get(state)?;
        check_tensor(&shown, state, &tensor)?;
        let dtype = tensor_file::dtype_of(&tensor);
        let part = &mut parts[usize::from(state.kind == StateKind::State(StateRole::Optimizer))].1;
        part.push((state, Entry { name: &state.name, dtype, shape: &state.ty.shape }));
    }
    let mut write_part = |(name, part): &(&str, Vec<(&StateDecl, Entry<'_>)>), out: &mut dyn Write| {
        let entries: Vec<Entry<'_>> = part.iter().map(|&(_, entry)| entry).collect();
        let mut hashing = Hashing { out, digest: Sha256::new(), bytes: 0 };
        let mut again = |index: usize| get(part[index].0).map_err(io::Error::other);
        tensor_file::write_entries(&entries, &mut again, &mut hashing)?;
        Ok(FileEntry { name: (*name).to_string(), bytes: hashing.bytes, sha256: hex(&hashing.digest.finalize()) })
    };
    let written = if path.exists() {
        let entries: io::Result<_> = parts.iter().map(|part| write_part(part, &mut io::sink())).collect();
        entries.and_then(|entries| Ok(manifest(entries).to_json()?)).map(|now| {
            let before = fs::read(path.join(MANIFEST));
            before.is_ok_and(|bytes| bytes == now.as_bytes())
        })
    } else {
        write_folder(files, checkpoints, &path, |temporary| {
            let mut entries = Vec::new();
            for part in &parts {
                files.write(&temporary.join(part.0), &mut |out| {
                    entries.push(write_part(part, out)?);
                    Ok(())
                })?;
            }
            let manifest = manifest(entries).to_json()?;
            files.write(&temporary.join(MANIFEST), &mut |out| out.write_all(manifest.as_bytes()))
        })
        .map(|()| true)
    };
    match written {
        Ok(true) => Ok(path),
        Ok(false) => Err(CheckpointError::Exists { path: shown }),
        Err(source) => Err(CheckpointError::Write { path: shown, source }),
    }
}

/// Passes on what is written, and keeps its length and hash.
struct Hashing<'a> {
    out: &'a mut dyn Write,
    digest: Sha256,
    bytes: u64,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.digest.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Makes a folder of what `contents` writes to the one that it is given, whole or not at all.
fn write_folder(
    files: &dyn Files,
    checkpoints: &Path,
    path: &Path,
    contents: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = incomplete(path);
    if temporary.exists() {
        files.remove_dir(&temporary)?;
    }
    let written = (|| {
        files.create_dir(&temporary)?;
        contents(&temporary)?;
        files.sync_dir(&temporary)?;
        files.rename(&temporary, path)
    })();
    if written.is_err() {
        // Makes room on a full disk; the error that matters is the first one.
        let _ = files.remove_dir(&temporary);
    }
    written?;
    files.sync_dir(checkpoints)
}

/// Removes the oldest checkpoints, all but the newest `keep` (at least one), and that of the step `best`.
///
/// # Errors
/// When the system refuses.
pub(crate) fn prune(
    files: &dyn Files,
    checkpoints: &Path,
    keep: usize,
    best: Option<u64>,
) -> Result<(), CheckpointError> {
    let found = list(checkpoints)?;
    let old = &found[..found.len().saturating_sub(keep.max(1))];
    old.iter().filter(|(step, _)| Some(*step) != best).try_for_each(|(_, path)| remove(files, path))
}

/// Removes the checkpoint of a step, if it is there.
///
/// # Errors
/// When the system refuses.
pub(crate) fn remove_step(files: &dyn Files, checkpoints: &Path, step: u64) -> Result<(), CheckpointError> {
    let path = checkpoints.join(folder_name(step));
    if path.exists() { remove(files, &path) } else { Ok(()) }
}

fn remove(files: &dyn Files, path: &Path) -> Result<(), CheckpointError> {
    // A checkpoint loses its name first, so that a removal cut short leaves no half of one.
    let removed = incomplete(path);
    files
        .rename(path, &removed)
        .and_then(|()| files.remove_dir(&removed))
        .map_err(|source| CheckpointError::Write { path: path.display().to_string(), source })
}

/// Reads a file that must be an ordinary one of at most `limit` bytes.
fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, CheckpointError> {
    let meta = fs::symlink_metadata(path).map_err(read_failed(path))?;
    let damaged = |reason: String| CheckpointError::Damaged { path: path.display().to_string(), reason };
    if !meta.is_file() {
        return Err(damaged("it is not an ordinary file".into()));
    }
    if meta.len() > limit {
        return Err(damaged(format!("it has {} bytes; at most {limit} are possible", meta.len())));
    }
    fs::read(path).map_err(read_failed(path))
}

/// Reads and checks the manifest of a checkpoint.
///
/// # Errors
/// When it cannot be read, is of another version, or is not what was written.
pub fn read_manifest(folder: &Path) -> Result<Manifest, CheckpointError> {
    let path = folder.join(MANIFEST);
    let bytes = read_bounded(&path, MAX_MANIFEST)?;
    let shown = path.display().to_string();
    let damaged = |reason: String| CheckpointError::Damaged { path: shown.clone(), reason };
    let loose: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    let version = loose.get("manifest").and_then(|m| m.get("format")).and_then(serde_json::Value::as_u64);
    match version {
        Some(version) if version == u64::from(FORMAT_VERSION) => {}
        Some(found) => return Err(CheckpointError::Version { path: shown, found }),
        None => return Err(damaged("it has no format version".into())),
    }
    let Sealed { manifest, .. } = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    if manifest.to_json().map_err(|e| damaged(e.to_string()))?.as_bytes() != bytes {
        return Err(damaged("it is not what was written".into()));
    }
    if manifest.vocab().is_none() {
        return Err(damaged("its vocabulary is not a list of characters in code-point order".into()));
    }
    let step = folder.file_name().and_then(|name| name.to_str()).and_then(step_of);
    if step.is_some_and(|step| step != manifest.step) {
        return Err(damaged(format!("it is of step {}", manifest.step)));
    }
    Ok(manifest)
}

/// Reads a checkpoint and checks it against the tensors that the model declares.
///
/// # Errors
/// When it cannot be read, is damaged or truncated, is of another version or another model.
pub fn load(folder: &Path, states: &[StateDecl], parts: Parts) -> Result<Checkpoint, CheckpointError> {
    let manifest = read_manifest(folder)?;
    let listed: Vec<&str> = manifest.files.iter().map(|f| f.name.as_str()).collect();
    if listed != [MODEL, OPTIMIZER] {
        let reason = format!("it lists {listed:?}");
        return Err(CheckpointError::Damaged { path: folder.join(MANIFEST).display().to_string(), reason });
    }
    let mut tensors = BTreeMap::new();
    for (entry, name) in manifest.files.iter().zip([MODEL, OPTIMIZER]) {
        let optimizer = name == OPTIMIZER;
        if optimizer && parts == Parts::Model {
            continue;
        }
        let path = folder.join(name);
        let shown = path.display().to_string();
        let belongs = |kind: StateKind| match optimizer {
            true => kind == StateKind::State(StateRole::Optimizer),
            false => kind.of_model(),
        };
        let expected: Vec<&StateDecl> = states.iter().filter(|s| belongs(s.kind)).collect();
        // The reference interpreter holds floats in 64 bits, twice what a device needs.
        let size = expected.iter().fold(0u64, |size, s| size.saturating_add(2 * s.ty.bytes() as u64));
        let found = read_part(&path, entry, size)?;
        check_names(&shown, &expected, &found)?;
        for state in expected {
            if let Some(tensor) = found.get(&state.name) {
                check_tensor(&shown, state, tensor)?;
            }
        }
        tensors.extend(found);
    }
    if manifest.model_sha256 != fingerprint(states) {
        let reason = "its tensors are of other kinds".to_string();
        return Err(CheckpointError::Other { path: folder.display().to_string(), reason });
    }
    Ok(Checkpoint { manifest, tensors })
}

/// Reads a checkpoint as [`load`] reads the model's part, with the moving averages of parameters in their place where there are any.
///
/// # Errors
/// As [`load`], or when it holds no averages.
pub fn load_averages(folder: &Path, states: &[StateDecl]) -> Result<Checkpoint, CheckpointError> {
    let mut checkpoint = load(folder, states, Parts::Model)?;
    let path = folder.join(OPTIMIZER);
    let shown = path.display().to_string();
    let parameters = || states.iter().filter(|s| s.kind == StateKind::Parameter);
    // An average and two moments of each, of which the interpreter keeps 64 bits.
    let size = parameters().fold(0u64, |size, s| size.saturating_add(6 * s.ty.bytes() as u64));
    let mut found = match checkpoint.manifest.files.iter().find(|entry| entry.name == OPTIMIZER) {
        Some(entry) => read_part(&path, entry, size)?,
        None => BTreeMap::new(),
    };
    let averages: Vec<(&StateDecl, Tensor)> =
        parameters().filter_map(|s| Some((s, found.remove(&moec_plan::average_of(&s.name))?))).collect();
    if averages.is_empty() {
        return Err(CheckpointError::Other { path: shown, reason: "it holds no averages of parameters".to_string() });
    }
    for (state, average) in averages {
        check_tensor(&shown, state, &average)?;
        checkpoint.tensors.insert(state.name.clone(), average);
    }
    Ok(checkpoint)
}

/// Reads a file of a checkpoint, whose tensors take at most `size` bytes.
fn read_part(path: &Path, entry: &FileEntry, size: u64) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    let shown = path.display().to_string();
    let found = fs::symlink_metadata(path).map_err(read_failed(path))?.len();
    if found != entry.bytes {
        return Err(CheckpointError::Truncated { path: shown, expected: entry.bytes, found });
    }
    if entry.bytes > size.saturating_add(MAX_HEADER + 8) {
        let reason = format!("it has {} bytes, more than the model's tensors can take", entry.bytes);
        return Err(CheckpointError::Other { path: shown, reason });
    }
    let bytes = read_bounded(path, entry.bytes)?;
    if sha256_hex(&bytes) != entry.sha256 {
        let reason = "its SHA-256 is not the one in the manifest".to_string();
        return Err(CheckpointError::Damaged { path: shown, reason });
    }
    tensor_file::decode(path, &bytes).map_err(|error| match error {
        TensorFileError::Io { path, source } => CheckpointError::Read { path, source },
        other => CheckpointError::Damaged { path: shown, reason: other.to_string() },
    })
}

/// Exactly the declared names.
fn check_names(path: &str, expected: &[&StateDecl], found: &BTreeMap<String, Tensor>) -> Result<(), CheckpointError> {
    let names: BTreeSet<&str> = expected.iter().map(|s| s.name.as_str()).collect();
    let other = |reason: String| Err(CheckpointError::Other { path: path.to_string(), reason });
    if let Some(missing) = names.iter().find(|name| !found.contains_key(**name)) {
        return other(format!("tensor `{missing}` of the model is missing"));
    }
    if let Some(extra) = found.keys().find(|name| !names.contains(name.as_str())) {
        return other(format!("the model has no tensor `{extra}`"));
    }
    Ok(())
}

/// Type, shape and finite elements.
fn check_tensor(path: &str, state: &StateDecl, tensor: &Tensor) -> Result<(), CheckpointError> {
    if tensor.ty() != state.ty {
        let reason = format!("tensor `{}` is {}, the model's is {}", state.name, tensor.ty(), state.ty);
        return Err(CheckpointError::Other { path: path.to_string(), reason });
    }
    if !is_finite(tensor) {
        return Err(CheckpointError::NotFinite { name: state.name.clone() });
    }
    Ok(())
}

impl Checkpoint {
    /// Whether a run with this identity continues where this checkpoint stopped.
    ///
    /// # Errors
    /// When seed, spec, data, vocabulary or context differ; the first difference is named.
    pub fn check_identity(&self, identity: &Identity) -> Result<(), CheckpointError> {
        let m = &self.manifest;
        let reason = if m.spec_sha256 != identity.spec_sha256 {
            "the spec was changed since the checkpoint was written".to_string()
        } else if m.data_sha256 != identity.data_sha256 {
            format!("it was trained on data with SHA-256 {}, this data has {}", m.data_sha256, identity.data_sha256)
        } else if m.seed != identity.seed {
            format!("it was trained with seed {}, not {}", m.seed, identity.seed)
        } else if m.vocabulary != identity.vocab.to_text() {
            "it has another vocabulary".to_string()
        } else if m.context != identity.context {
            format!("it has context {}, the model has {}", m.context, identity.context)
        } else {
            return Ok(());
        };
        Err(CheckpointError::Other { path: format!("checkpoint {}", folder_name(m.step)), reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::RealFiles;
    use crate::files::faulty::{Fault, FaultyFiles};
    use moec_ir::{Data, TensorType};

    fn states() -> Vec<StateDecl> {
        let decl = |name: &str, ty, kind| StateDecl { name: name.into(), ty, kind };
        vec![
            decl("w", TensorType::f32([3, 7]), StateKind::Parameter),
            decl("bias", TensorType::f32([1]), StateKind::Parameter),
            decl("table", TensorType::i32([5]), StateKind::State(StateRole::Router)),
            decl("adamw.m.w", TensorType::f32([3, 7]), StateKind::State(StateRole::Optimizer)),
        ]
    }

    #[test]
    fn averages_take_the_place_of_parameters_and_begin_as_they_do() {
        let mut declared = states();
        let average = |name: &str, ty: &TensorType| StateDecl {
            name: moec_plan::average_of(name),
            ty: ty.clone(),
            kind: StateKind::State(StateRole::Optimizer),
        };
        declared.push(average("w", &declared[0].ty));
        let folder = tempfile::tempdir().unwrap();
        let save = |step, tensors: &BTreeMap<String, Tensor>| {
            let mut source = |state: &StateDecl| Ok(tensors.get(&state.name).cloned());
            super::save(&RealFiles, folder.path(), step, &identity(), &declared, &mut source).unwrap()
        };
        // A program that trains nothing declares neither moments nor averages.
        let of_model: Vec<StateDecl> = declared.iter().filter(|s| s.kind.of_model()).cloned().collect();
        let mut tensors = tensors(3);
        let (parameter, other) = (tensors["w"].clone(), Tensor::new([3, 7], Data::F32(vec![0.25; 21])).unwrap());
        assert_eq!(load_averages(&save(1, &tensors), &of_model).unwrap().tensors["w"], parameter);
        tensors.insert(moec_plan::average_of("w"), other.clone());
        let path = save(2, &tensors);
        let loaded = load_averages(&path, &of_model).unwrap().tensors;
        assert_eq!((&loaded["w"], &loaded["bias"], loaded.len()), (&other, &tensors["bias"], 3));
        assert_eq!(load(&path, &of_model, Parts::Model).unwrap().tensors["w"], parameter);
        assert_eq!(load(&path, &declared, Parts::All).unwrap().tensors["ema.w"], other);
        // One without averages, and one that is damaged.
        let plain = write(folder.path(), 5);
        let error = load_averages(&plain, &of_model).unwrap_err();
        assert!(matches!(error, CheckpointError::Other { .. }) && error.to_string().contains("averages"), "{error}");
        fs::write(path.join(OPTIMIZER), "").unwrap();
        assert!(matches!(load_averages(&path, &of_model), Err(CheckpointError::Truncated { .. })));
    }

    #[test]
    fn the_fingerprint_is_the_one_that_earlier_checkpoints_have() {
        let text = "bias f32[1] Parameter\ntable i32[5] Router\nw f32[3, 7] Parameter\n";
        assert_eq!(fingerprint(&states()), sha256_hex(text.as_bytes()));
    }

    fn tensors(step: u64) -> BTreeMap<String, Tensor> {
        let floats = |n: usize| Data::F32((0..n).map(|i| (i as f32).mul_add(0.3, step as f32).sin()).collect());
        BTreeMap::from([
            ("w".to_string(), Tensor::new([3, 7], floats(21)).unwrap()),
            ("bias".to_string(), Tensor::new([1], floats(1)).unwrap()),
            ("table".to_string(), Tensor::ints([4, 3, 2, 1, 0])),
            ("adamw.m.w".to_string(), Tensor::new([3, 7], floats(21)).unwrap()),
        ])
    }

    fn identity() -> Identity {
        Identity {
            seed: 1337,
            context: 8,
            vocab: Vocab::of_text("\n\"é\u{1}\u{2028}abc"),
            spec_sha256: sha256_hex(b"spec"),
            data_sha256: sha256_hex(b"data"),
        }
    }

    fn save(
        files: &dyn Files,
        folder: &Path,
        step: u64,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<PathBuf, CheckpointError> {
        super::save(files, folder, step, &identity(), &states(), &mut |state| Ok(tensors.get(&state.name).cloned()))
    }

    fn write(folder: &Path, step: u64) -> PathBuf {
        save(&RealFiles, folder, step, &tensors(step)).unwrap()
    }

    #[test]
    fn round_trip_and_equal_bytes() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = write(a.path(), 12);
        assert_eq!(path, a.path().join("step-00000012"));
        let loaded = load(&path, &states(), Parts::All).unwrap();
        assert_eq!(loaded.tensors, tensors(12));
        assert_eq!(loaded.manifest.step, 12);
        assert_eq!(loaded.manifest.vocab(), Some(identity().vocab));
        loaded.check_identity(&identity()).unwrap();
        let model = load(&path, &states(), Parts::Model).unwrap();
        assert_eq!(model.tensors.keys().collect::<Vec<_>>(), ["bias", "table", "w"]);
        let again = write(b.path(), 12);
        for file in [MODEL, OPTIMIZER, MANIFEST] {
            assert_eq!(fs::read(path.join(file)).unwrap(), fs::read(again.join(file)).unwrap());
        }
        // The same checkpoint again is no error, another one of the same step is.
        write(a.path(), 12);
        let other = save(&RealFiles, a.path(), 12, &tensors(13));
        assert!(matches!(other, Err(CheckpointError::Exists { .. })));
    }

    #[test]
    fn missing_moments_are_zero() {
        let folder = tempfile::tempdir().unwrap();
        let mut given = tensors(0);
        given.remove("adamw.m.w");
        let path = save(&RealFiles, folder.path(), 0, &given).unwrap();
        let loaded = load(&path, &states(), Parts::All).unwrap();
        assert_eq!(loaded.tensors["adamw.m.w"].to_f64(), vec![0.0; 21]);
        given.remove("bias");
        let error = save(&RealFiles, folder.path(), 1, &given).unwrap_err();
        assert!(error.to_string().ends_with("there is no tensor `bias`"), "{error}");
    }

    #[test]
    fn the_newest_has_the_highest_step() {
        let folder = tempfile::tempdir().unwrap();
        assert!(list(folder.path()).unwrap().is_empty());
        assert!(list(&folder.path().join("none")).unwrap().is_empty());
        for step in [3, 200, 100_000_000, 20] {
            write(folder.path(), step);
        }
        for ignored in [".incomplete-step-00000999", "step-999", "step-00000x99", "step-+0000999"] {
            fs::create_dir(folder.path().join(ignored)).unwrap();
        }
        let steps = |folder: &Path| list(folder).unwrap().into_iter().map(|(step, _)| step).collect::<Vec<_>>();
        assert_eq!(steps(folder.path()), [3, 20, 200, 100_000_000]);
        prune(&RealFiles, folder.path(), 2, None).unwrap();
        assert_eq!(steps(folder.path()), [200, 100_000_000]);
        prune(&RealFiles, folder.path(), 0, None).unwrap();
        assert_eq!(steps(folder.path()), [100_000_000]);
    }

    #[test]
    fn every_fault_leaves_the_old_or_the_new_checkpoint() {
        let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::PermissionDenied, io::ErrorKind::Other];
        let faults = kinds.map(Fault::Error).into_iter().chain([Fault::DieBefore, Fault::DieHalfway, Fault::PowerLoss]);
        for fault in faults {
            for at in 0.. {
                let folder = tempfile::tempdir().unwrap();
                write(folder.path(), 1);
                let files = FaultyFiles::new(at, fault);
                let saved =
                    save(&files, folder.path(), 2, &tensors(2)).and_then(|_| prune(&files, folder.path(), 1, None));
                let (step, path) = list(folder.path()).unwrap().pop().expect("a checkpoint is left");
                let loaded = load(&path, &states(), Parts::All).unwrap();
                assert_eq!(loaded.tensors, tensors(step), "{fault:?} at {at}");
                if files.count() <= at {
                    assert_eq!((saved.is_ok(), step), (true, 2));
                    assert!(at > 6, "there are fewer changes than the protocol needs");
                    break;
                }
                assert!(matches!(saved, Err(CheckpointError::Write { .. })), "{fault:?} at {at}");
                // The next attempt succeeds whatever the last one left behind.
                write(folder.path(), 3);
                assert_eq!(list(folder.path()).unwrap().pop().unwrap().0, 3);
                let retried = save(&RealFiles, folder.path(), 2, &tensors(2)).unwrap();
                assert_eq!(load(&retried, &states(), Parts::All).unwrap().tensors, tensors(2));
            }
        }
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), 7);
        for file in [MODEL, OPTIMIZER, MANIFEST] {
            let file = path.join(file);
            let bytes = fs::read(&file).unwrap();
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                fs::write(&file, &flipped).unwrap();
                assert!(load(&path, &states(), Parts::All).is_err(), "{} bit {bit}", file.display());
            }
            for length in (0..bytes.len()).step_by(7) {
                fs::write(&file, &bytes[..length]).unwrap();
                assert!(load(&path, &states(), Parts::All).is_err(), "{} length {length}", file.display());
            }
            fs::write(&file, &bytes).unwrap();
        }
        fs::write(path.join(MODEL), b"short").unwrap();
        let error = load(&path, &states(), Parts::Model).unwrap_err();
        assert!(matches!(error, CheckpointError::Truncated { found: 5, .. }), "{error}");
        fs::remove_file(path.join(MODEL)).unwrap();
        assert!(matches!(load(&path, &states(), Parts::Model), Err(CheckpointError::Read { .. })));
    }

    /// Replaces the model's tensors and seals the manifest anew: a file that is hostile, not damaged.
    fn forge(path: &Path, tensors: &BTreeMap<String, Tensor>) {
        let bytes = tensor_file::encode(tensors).unwrap();
        let mut manifest = read_manifest(path).unwrap();
        manifest.files[0].bytes = bytes.len() as u64;
        manifest.files[0].sha256 = sha256_hex(&bytes);
        fs::write(path.join(MODEL), bytes).unwrap();
        fs::write(path.join(MANIFEST), manifest.to_json().unwrap()).unwrap();
    }

    #[test]
    fn tensors_of_another_model_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), 7);
        let mut model = tensors(7);
        model.remove("adamw.m.w");
        let refused = |model: &BTreeMap<String, Tensor>| {
            forge(&path, model);
            load(&path, &states(), Parts::Model).unwrap_err().to_string()
        };
        let changed = |name: &str, tensor: Option<Tensor>| {
            let mut model = model.clone();
            match tensor {
                Some(tensor) => model.insert(name.into(), tensor),
                None => model.remove(name),
            };
            model
        };
        assert!(refused(&changed("w", None)).ends_with("tensor `w` of the model is missing"));
        assert!(refused(&changed("../../x", Some(Tensor::ints([1])))).ends_with("the model has no tensor `../../x`"));
        let transposed = model["w"].clone().with_shape([7, 3]).unwrap();
        assert!(refused(&changed("w", Some(transposed))).ends_with("`w` is f32[7, 3], the model's is f32[3, 7]"));
        assert!(
            refused(&changed("bias", Some(Tensor::ints([1])))).ends_with("`bias` is i32[1], the model's is f32[1]")
        );
        let nan = Tensor::floats([f32::NAN]);
        assert_eq!(refused(&changed("bias", Some(nan))), "tensor `bias` is not finite");
        let huge = Tensor::floats(vec![0.0; 3 << 20]);
        assert!(refused(&changed("huge", Some(huge))).ends_with("more than the model's tensors can take"));
        forge(&path, &model);
        load(&path, &states(), Parts::Model).unwrap();
        let mut renamed = states();
        renamed[2].kind = StateKind::Parameter;
        assert!(matches!(load(&path, &renamed, Parts::Model), Err(CheckpointError::Other { .. })));
    }

    #[test]
    fn other_versions_runs_and_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), 7);
        let good = read_manifest(&path).unwrap();
        let seal = |manifest: &Manifest| fs::write(path.join(MANIFEST), manifest.to_json().unwrap()).unwrap();
        seal(&Manifest { format: 2, ..good.clone() });
        assert!(matches!(load(&path, &states(), Parts::All), Err(CheckpointError::Version { found: 2, .. })));
        seal(&Manifest { step: 8, ..good.clone() });
        assert!(matches!(load(&path, &states(), Parts::All), Err(CheckpointError::Damaged { .. })));
        let mut outside = good.clone();
        outside.files[0].name = "../model.safetensors".into();
        seal(&outside);
        assert!(matches!(load(&path, &states(), Parts::All), Err(CheckpointError::Damaged { .. })));
        seal(&good);
        let checkpoint = load(&path, &states(), Parts::All).unwrap();
        for (other, word) in [
            (Identity { seed: 1, ..identity() }, "seed 1337, not 1"),
            (Identity { spec_sha256: "x".into(), ..identity() }, "spec was changed"),
            (Identity { data_sha256: "x".into(), ..identity() }, "this data has x"),
            (Identity { context: 9, ..identity() }, "context 8, the model has 9"),
            (Identity { vocab: Vocab::of_text("ab"), ..identity() }, "another vocabulary"),
        ] {
            let error = checkpoint.check_identity(&other).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        #[cfg(unix)]
        {
            let model = path.join(MODEL);
            let elsewhere = folder.path().join("elsewhere");
            fs::rename(&model, &elsewhere).unwrap();
            std::os::unix::fs::symlink(&elsewhere, &model).unwrap();
            assert!(load(&path, &states(), Parts::Model).is_err());
        }
    }

    #[test]
    fn infinite_parameters_are_never_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut broken = tensors(1);
        broken.insert("bias".into(), Tensor::floats([f32::INFINITY]));
        let error = save(&RealFiles, folder.path(), 1, &broken).unwrap_err();
        assert!(matches!(error, CheckpointError::NotFinite { name } if name == "bias"));
        assert!(list(folder.path()).unwrap().is_empty());
    }
}

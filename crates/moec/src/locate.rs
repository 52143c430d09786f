//! Which run, and which of its checkpoints, a path means.

use crate::error::Error;
use std::path::{Path, PathBuf};

/// The root of a run and the checkpoint that is meant.
pub(crate) fn locate(path: &Path) -> Result<(PathBuf, PathBuf), Error> {
    if path.join("manifest.json").is_file() {
        let absolute = path.canonicalize().map_err(|source| Error::File { path: path.to_path_buf(), source })?;
        if let Some(root) = absolute.parent().and_then(Path::parent) {
            return Ok((root.to_path_buf(), absolute));
        }
    }
    // Says that there is no run before it says that there is no checkpoint.
    moec_runtime::read_spec(path)?;
    match moec_runtime::latest_checkpoint(path)? {
        Some((_, folder)) => Ok((path.to_path_buf(), folder)),
        None => Err(Error::NoCheckpoint(path.to_path_buf())),
    }
}

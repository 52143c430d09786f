//! Which run, and which of its checkpoints, a path means.

use crate::error::Error;
use moec_runtime::{CheckpointError, PassedOver};
use std::path::{Path, PathBuf};

/// A run, and one of its checkpoints if that was named.
pub(crate) struct Located {
    pub(crate) root: PathBuf,
    checkpoint: Option<PathBuf>,
}

impl Located {
    /// What a path means; `runs/latest` is the run that was trained last, and `RUN/checkpoints/best` the checkpoint of a run
    /// with the best held-out loss.
    pub(crate) fn at(path: &Path) -> Result<Self, Error> {
        let path = &moec_runtime::follow_latest(path);
        // As it was given, or else the whole path, for `.` has no name.
        for folder in std::iter::once(path.to_path_buf()).chain(path.canonicalize()) {
            if let Some(root) = moec_runtime::run_of_checkpoint(&folder) {
                return Ok(Self { root, checkpoint: Some(folder) });
            }
        }
        if let Some(root) = moec_runtime::run_of_best(path) {
            let best = moec_runtime::best_checkpoint(&root)?;
            return match best {
                Some(best) => Ok(Self { root, checkpoint: Some(best) }),
                None => Err(Error::NoBest(root)),
            };
        }
        // Says that there is no run before it says that there is no checkpoint.
        moec_runtime::read_spec(path)?;
        Ok(Self { root: path.to_path_buf(), checkpoint: None })
    }

    /// Reads the checkpoint that was named, or else the newest that is not damaged, and says which were.
    pub(crate) fn read<T>(
        &self,
        mut read: impl FnMut(&Path) -> Result<T, CheckpointError>,
    ) -> Result<(T, Vec<PassedOver>), Error> {
        match &self.checkpoint {
            Some(folder) => match read(folder) {
                Ok(whole) => Ok((whole, Vec::new())),
                Err(error) if error.is_damage() => Err(Error::Damaged { error, older: self.older(folder) }),
                Err(error) => Err(error.into()),
            },
            None => moec_runtime::newest_whole(&self.root, read)?.ok_or_else(|| Error::NoCheckpoint(self.root.clone())),
        }
    }

    /// The checkpoints before one, the newest first.
    fn older(&self, folder: &Path) -> Vec<PathBuf> {
        let all = moec_runtime::checkpoints(&self.root).unwrap_or_default();
        all.into_iter().rev().map(|(_, path)| path).skip_while(|path| path != folder).skip(1).collect()
    }
}

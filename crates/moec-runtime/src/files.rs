//! Every change that the runtime makes on disk goes through one small trait, so that tests can fail each of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What writes the contents of a file, piece by piece.
pub(crate) type Contents<'a> = &'a mut dyn FnMut(&mut dyn Write) -> io::Result<()>;

/// Changes to files and folders.
pub(crate) trait Files {
    /// Makes a folder; its parent must exist.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Creates or replaces a file, has `contents` write it, and waits until its bytes are on the disk.
    fn write(&self, path: &Path, contents: Contents<'_>) -> io::Result<()>;
    /// Appends to a file, which is created if need be.
    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Waits until the bytes of a file are on the disk.
    fn sync_file(&self, path: &Path) -> io::Result<()>;
    /// Renames a file or folder within its parent.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Waits until the entries of a folder are on the disk: until then a rename may be undone by a power loss.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder with everything in it.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
}

/// The disk.
pub(crate) struct RealFiles;

impl Files for RealFiles {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn write(&self, path: &Path, contents: Contents<'_>) -> io::Result<()> {
        let mut file = File::create(path)?;
        contents(&mut file)?;
        file.sync_all()
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().create(true).append(true).open(path)?.write_all(bytes)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        OpenOptions::new().append(true).open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        // Other systems cannot open a folder as a file and keep the order of renames themselves.
        if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }
}

/// Prefix of what is being written or removed and does not count yet or any more.
pub(crate) const INCOMPLETE: &str = ".incomplete-";

/// The folder that holds a path; the current one for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The sibling under which a file or folder is prepared.
pub(crate) fn incomplete(path: &Path) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!("{INCOMPLETE}{name}"))
}

/// Replaces a file, whole or not at all.
pub(crate) fn replace(files: &dyn Files, path: &Path, contents: Contents<'_>) -> io::Result<()> {
    let temporary = incomplete(path);
    let written = files.write(&temporary, contents).and_then(|()| files.rename(&temporary, path));
    if written.is_err() {
        // Makes room on a full disk; the error that matters is the first one.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    files.sync_dir(parent(path))
}

#[cfg(test)]
pub(crate) mod faulty {
    //! A disk that fails at the n-th change, or dies there.

    use super::*;
    use std::cell::{Cell, RefCell};

    /// What happens at the fatal change.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Fault {
        /// This change fails with an error, later ones work.
        Error(io::ErrorKind),
        /// The process dies before the change: this and all later ones do not happen.
        DieBefore,
        /// The process dies half-way: files are torn, unlike renames, which happen or not.
        DieHalfway,
        /// The power fails before the change: renames that no `sync_dir` followed are undone.
        PowerLoss,
    }

    pub(crate) struct FaultyFiles {
        at: usize,
        fault: Fault,
        count: Cell<usize>,
        unsynced_renames: RefCell<Vec<(PathBuf, PathBuf)>>,
    }

    impl FaultyFiles {
        pub(crate) fn new(at: usize, fault: Fault) -> Self {
            Self { at, fault, count: Cell::new(0), unsynced_renames: RefCell::default() }
        }

        /// Changes asked for so far.
        pub(crate) fn count(&self) -> usize {
            self.count.get()
        }

        fn step(&self, halfway: impl FnOnce()) -> io::Result<()> {
            let number = self.count.replace(self.count.get() + 1);
            let fatal = number == self.at;
            match self.fault {
                Fault::Error(kind) if fatal => {
                    halfway();
                    Err(kind.into())
                }
                Fault::Error(_) => Ok(()),
                _ if number < self.at => Ok(()),
                _ if number > self.at => Err(io::Error::other("the process is dead")),
                Fault::DieBefore => Err(io::Error::other("the process dies")),
                Fault::DieHalfway => {
                    halfway();
                    Err(io::Error::other("the process dies"))
                }
                Fault::PowerLoss => {
                    for (from, to) in self.unsynced_renames.borrow().iter().rev() {
                        fs::rename(to, from)?;
                    }
                    Err(io::Error::other("the power fails"))
                }
            }
        }
    }

    impl Files for FaultyFiles {
        fn create_dir(&self, path: &Path) -> io::Result<()> {
            self.step(|| ())?;
            RealFiles.create_dir(path)
        }

        fn write(&self, path: &Path, contents: Contents<'_>) -> io::Result<()> {
            let mut bytes = Vec::new();
            contents(&mut bytes)?;
            self.step(|| fs::write(path, &bytes[..bytes.len() / 2]).unwrap_or_default())?;
            RealFiles.write(path, &mut |out| out.write_all(&bytes))
        }

        fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
            self.step(|| RealFiles.append(path, &bytes[..bytes.len() / 2]).unwrap_or_default())?;
            RealFiles.append(path, bytes)
        }

        fn sync_file(&self, path: &Path) -> io::Result<()> {
            self.step(|| ())?;
            RealFiles.sync_file(path)
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.step(|| ())?;
            RealFiles.rename(from, to)?;
            self.unsynced_renames.borrow_mut().push((from.into(), to.into()));
            Ok(())
        }

        fn sync_dir(&self, path: &Path) -> io::Result<()> {
            self.step(|| ())?;
            self.unsynced_renames.borrow_mut().retain(|(_, to)| parent(to) != path);
            RealFiles.sync_dir(path)
        }

        fn remove_dir(&self, path: &Path) -> io::Result<()> {
            self.step(|| {
                let first = fs::read_dir(path).ok().and_then(|mut entries| entries.next());
                if let Some(Ok(entry)) = first {
                    fs::remove_file(entry.path()).unwrap_or_default();
                }
            })?;
            RealFiles.remove_dir(path)
        }
    }
}

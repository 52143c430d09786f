//! Files that a command writes because they were named to it: never over what the command reads, and never in the place of
//! something that is no plain file.

use crate::cli::exit::{Exit, Failure};
use moec_syntax::SourceFile;
use std::fs::{self, Metadata, Permissions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file that may be written.
#[derive(Debug)]
pub(crate) struct Output {
    /// As it was named.
    named: PathBuf,
    /// Where that leads, links followed.
    target: PathBuf,
    /// A device or a pipe: bytes go into it, and nothing takes its place.
    is_stream: bool,
}

impl Output {
    /// Looks at where a path leads, before there is anything to write. `sources` is what the command reads; a folder
    /// among them stands for everything in it.
    ///
    /// # Errors
    /// When the path leads to one of the sources, a spec, a folder, or nowhere.
    pub(crate) fn new(path: &Path, sources: &[PathBuf]) -> Result<Self, Failure> {
        let refused = |why: &str| Failure::new(Exit::Usage, format!("cannot write {}: {why}", path.display()));
        let (target, found) = match fs::metadata(path) {
            // The pipe that `/dev/stdout` leads to has no name of its own.
            Ok(found) => (path.canonicalize().unwrap_or_else(|_| path.to_path_buf()), Some(found)),
            Err(e) if e.kind() == io::ErrorKind::NotFound && path.is_symlink() => {
                return Err(refused("it is a link that leads nowhere"));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => (new_file(path)?, None),
            Err(e) => return Err(Failure::file("write", path, &e)),
        };
        if sources.iter().any(|source| is_within(source, &target, found.as_ref())) {
            return Err(refused("this command reads it").help("write to another file"));
        }
        // A spec is written by hand, and no command makes one in this way.
        if found.is_some() && target.extension().is_some_and(|extension| extension == "moe") {
            return Err(refused("it is a spec").help("write to another file"));
        }
        let is_stream = found.as_ref().is_some_and(is_stream) || path.starts_with("/dev");
        match found {
            Some(found) if found.is_dir() => Err(refused("it is a folder").help("name a file in it")),
            Some(found) if !found.is_file() && !is_stream => Err(refused("it is no plain file")),
            _ => Ok(Self { named: path.to_path_buf(), target, is_stream }),
        }
    }

    /// Writes everything.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn write(&self, text: &str) -> Result<(), Failure> {
        let written = if self.is_stream {
            // What `/dev/stdout` leads to may hold something already.
            fs::File::options().append(true).open(&self.named).and_then(|mut file| file.write_all(text.as_bytes()))
        } else {
            fs::write(&self.target, text)
        };
        written.map_err(|e| Failure::file("write", &self.named, &e))
    }

    /// The path of a plain file, there already or not, for who replaces it as a whole.
    ///
    /// # Errors
    /// When it is a device or a pipe.
    pub(crate) fn plain_file(&self) -> Result<&Path, Failure> {
        if self.is_stream {
            let message = format!("cannot write {}: it is no plain file", self.named.display());
            return Err(Failure::new(Exit::Usage, message).help("name a file; it is replaced whole or not at all"));
        }
        Ok(&self.target)
    }
}

/// The files that a spec consists of.
pub(crate) fn files_of_spec(spec: &Path, source: &SourceFile) -> Vec<PathBuf> {
    let folder = spec.parent().unwrap_or(Path::new(""));
    let imported = source.imported().map(|(path, _)| folder.join(path));
    std::iter::once(spec.to_path_buf()).chain(imported).collect()
}

/// The files that a run consists of.
pub(crate) fn files_of_run(root: &Path) -> Vec<PathBuf> {
    ["spec.moe", "resolved.yaml", "plan.txt", "metrics.jsonl", "mlflow.json", ".lock", "checkpoints"]
        .map(|name| root.join(name))
        .into()
}

/// Replaces a plain file in one go, so that an interrupted write leaves the old text. A link keeps pointing to its file.
///
/// # Errors
/// When it is no plain file, or the system refuses.
pub(crate) fn replace(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |e: &io::Error| Failure::file("write", path, e);
    let target = path.canonicalize().map_err(|e| failed(&e))?;
    let found = fs::metadata(&target).map_err(|e| failed(&e))?;
    if !found.is_file() {
        return Err(Failure::new(Exit::Usage, format!("cannot write {}: it is no plain file", path.display())));
    }
    write_whole(&target, text.as_bytes(), Some(found.permissions())).map_err(|e| failed(&e))
}

/// Writes a file through a temporary one beside it: under its own name it is always whole. Without permissions it is only
/// its owner's.
///
/// # Errors
/// When the system refuses; then what was there is as it was.
pub(crate) fn write_whole(path: &Path, content: &[u8], permissions: Option<Permissions>) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    if let Some(permissions) = permissions {
        file.as_file().set_permissions(permissions)?;
    }
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Where a file that does not exist would be.
fn new_file(path: &Path) -> Result<PathBuf, Failure> {
    let name = path.file_name();
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    match (folder.canonicalize(), name) {
        (Ok(folder), Some(name)) => Ok(folder.join(name)),
        (Err(e), _) if e.kind() == io::ErrorKind::NotFound => {
            let message = format!("cannot write {}: there is no folder {}", path.display(), folder.display());
            Err(Failure::new(Exit::Failure, message))
        }
        (Err(e), _) => Err(Failure::file("write", path, &e)),
        (Ok(_), None) => Err(Failure::new(Exit::Usage, format!("{} is no name of a file", path.display()))),
    }
}

/// Whether a target is a source or lies in it.
fn is_within(source: &Path, target: &Path, found: Option<&Metadata>) -> bool {
    let Ok(canonical) = source.canonicalize() else { return false };
    target.starts_with(&canonical)
        || matches!((fs::metadata(&canonical), found), (Ok(source), Some(found)) if is_same(&source, found))
}

/// Whether two names are those of one file, which a hard link is.
#[cfg(unix)]
fn is_same(a: &Metadata, b: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn is_same(_: &Metadata, _: &Metadata) -> bool {
    false
}

#[cfg(unix)]
fn is_stream(found: &Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    found.file_type().is_char_device() || found.file_type().is_fifo()
}

#[cfg(not(unix))]
fn is_stream(_: &Metadata) -> bool {
    false
}

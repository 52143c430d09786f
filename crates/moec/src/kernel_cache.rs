//! Compiled kernels on disk, so that a program that has run before need not compile them again.
//!
//! One file for each kernel, in a folder that only the user can write to: its content is run. A file says its key in full
//! and ends with the SHA-256 of everything before it; a file that is damaged, cut off or of another key does not count, and is
//! replaced. Files appear under their names by renaming, so any number of processes can share the folder. Nothing that goes
//! wrong here is more than a reason to compile.

use moec_kernels::ObjectCache;
use moec_runtime::sha256_hex;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, SystemTime};

/// First line of every file; the number changes with its layout.
const MAGIC: &[u8] = b"moec kernel 1\n";

/// Bytes of the digest at the end of a file, as text.
const DIGEST: usize = 64;

/// Extension of finished files.
const ENTRY: &str = "kernel";

/// How names of files that are being written begin.
const INCOMPLETE: &str = ".incomplete-";

/// After this long nobody is writing a file any more: the program has been ended meanwhile.
const ABANDONED: Duration = Duration::from_secs(3600);

/// A folder of compiled kernels.
pub struct KernelCache {
    folder: PathBuf,
    /// What the program is, as far as its kernels depend on it.
    program: String,
    limit: u64,
    /// Bytes of the files, once that was counted.
    bytes: Mutex<Option<u64>>,
    report: Box<dyn Fn(&str) + Send + Sync>,
    reported: Once,
}

/// What a folder of compiled kernels holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelCacheUsage {
    /// Number of kernels.
    pub entries: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

impl KernelCache {
    /// Bytes that a folder holds at most, unless another number is asked for.
    pub const LIMIT: u64 = 256 << 20;

    /// Kernels in a folder, which is made if it is not there. They are those of one program: of the file in which moec's
    /// code lies, which for a program is `std::env::current_exe()`.
    ///
    /// If the cache cannot be read or written later, `report` is told why, once, and kernels are compiled.
    ///
    /// # Errors
    /// When the folder cannot be made or others can write to it, or the program cannot be read: then do without a cache.
    pub fn open(folder: &Path, program: &Path, report: impl Fn(&str) + Send + Sync + 'static) -> Result<Self, String> {
        make_private(folder).map_err(|reason| format!("{}: {reason}", folder.display()))?;
        let program = identity(program).map_err(|error| format!("{}: {error}", program.display()))?;
        let (bytes, report, reported) = (Mutex::new(None), Box::new(report), Once::new());
        Ok(Self { folder: folder.to_path_buf(), program, limit: Self::LIMIT, bytes, report, reported })
    }

    /// The same folder with another limit: what was not used for longest goes first.
    #[must_use]
    pub fn with_limit(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    /// What is in a folder; nothing if there is no such folder.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn usage(folder: &Path) -> io::Result<KernelCacheUsage> {
        let mut usage = KernelCacheUsage::default();
        for file in files(folder)? {
            usage.entries += u64::from(file.is_finished());
            usage.bytes += file.bytes;
        }
        Ok(usage)
    }

    /// Removes all kernels of a folder, and says how many there were.
    ///
    /// # Errors
    /// When it cannot be read, or a file cannot be removed.
    pub fn clear(folder: &Path) -> io::Result<KernelCacheUsage> {
        let usage = Self::usage(folder)?;
        files(folder)?.iter().try_for_each(|file| remove(&file.path))?;
        Ok(usage)
    }

    fn path(&self, full_key: &str) -> PathBuf {
        self.folder.join(sha256_hex(full_key.as_bytes())).with_extension(ENTRY)
    }

    fn full_key(&self, key: &str) -> String {
        format!("{}\n{key}", self.program)
    }

    fn warn(&self, action: &str, error: &io::Error) {
        self.reported.call_once(|| (self.report)(&format!("cannot {action} {}: {error}", self.folder.display())));
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("{INCOMPLETE}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let temporary = self.folder.join(name);
        let written = fs::write(&temporary, content).and_then(|()| match fs::rename(&temporary, path) {
            // Somebody has cleared the folder meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed,
        });
        if written.is_err() {
            // The first error is the one that counts.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Counts what was added, and makes room if it is too much.
    fn added(&self, bytes: u64) -> io::Result<()> {
        let mut known = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let total = match *known {
            Some(before) => before + bytes,
            None => Self::usage(&self.folder)?.bytes,
        };
        *known = Some(total);
        if total <= self.limit {
            return Ok(());
        }
        // Others may have added and removed files: what counts is what is there.
        let mut files = files(&self.folder)?;
        files.sort_by_key(|file| file.used);
        let mut total = files.iter().map(|file| file.bytes).sum::<u64>();
        let now = SystemTime::now();
        for file in files {
            if total <= self.limit {
                break;
            }
            if file.is_being_written(now) {
                continue;
            }
            remove(&file.path)?;
            total -= file.bytes;
        }
        *known = Some(total);
        Ok(())
    }
}

impl ObjectCache for KernelCache {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        let key = self.full_key(key);
        let read = || -> io::Result<Option<Vec<u8>>> {
            let mut file = File::open(self.path(&key))?;
            let mut content = Vec::new();
            file.read_to_end(&mut content)?;
            let object = decode(&key, &content).map(<[u8]>::to_vec);
            if object.is_some() {
                // So that what is used stays; where times cannot be set, what is old goes first.
                let _ = file.set_modified(SystemTime::now());
            }
            Ok(object)
        };
        match read() {
            Ok(object) => object,
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.warn("read compiled kernels in", &error);
                None
            }
        }
    }

    fn put(&self, key: &str, object: &[u8]) {
        let key = self.full_key(key);
        let content = encode(&key, object);
        let kept = self.write(&self.path(&key), &content).and_then(|()| self.added(content.len() as u64));
        if let Err(error) = kept {
            self.warn("keep compiled kernels in", &error);
        }
    }
}

/// A file: the magic line, the lengths of key and object, both, and a digest of all that.
fn encode(key: &str, object: &[u8]) -> Vec<u8> {
    let lengths = [key.len() as u64, object.len() as u64].map(u64::to_le_bytes).concat();
    let mut content = [MAGIC, &lengths, key.as_bytes(), object].concat();
    content.extend(sha256_hex(&content).into_bytes());
    content
}

/// The object of a file, if it is whole and of this key.
fn decode<'a>(key: &str, content: &'a [u8]) -> Option<&'a [u8]> {
    let (body, digest) = content.split_at_checked(content.len().checked_sub(DIGEST)?)?;
    let rest = body.strip_prefix(MAGIC)?;
    let (key_length, rest) = rest.split_first_chunk::<8>()?;
    let (object_length, rest) = rest.split_first_chunk::<8>()?;
    let (found, object) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*key_length)).ok()?)?;
    let whole = object.len() as u64 == u64::from_le_bytes(*object_length) && sha256_hex(body).as_bytes() == digest;
    (whole && found == key.as_bytes()).then_some(object)
}

struct Entry {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl Entry {
    fn is_finished(&self) -> bool {
        self.path.extension().is_some_and(|extension| extension == ENTRY)
    }

    /// Whether another process is likely to write this file at the moment.
    fn is_being_written(&self, now: SystemTime) -> bool {
        !self.is_finished() && now.duration_since(self.used).is_ok_and(|age| age < ABANDONED)
    }
}

/// The files of a cache, finished or not; files of others are left alone.
fn files(folder: &Path) -> io::Result<Vec<Entry>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let incomplete = entry.file_name().to_string_lossy().starts_with(INCOMPLETE);
        if !incomplete && path.extension().is_none_or(|extension| extension != ENTRY) {
            continue;
        }
        match entry.metadata() {
            Ok(metadata) => files.push(Entry { path, bytes: metadata.len(), used: metadata.modified()? }),
            // Somebody else has removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

/// Removes a file that another process may remove as well.
fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })
}

/// Makes a folder that only the user can write to; or finds one, and checks that it is so.
fn make_private(folder: &Path) -> Result<(), String> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(|error| error.to_string())?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(folder).map_err(|error| error.to_string())?;
        if metadata.uid() != user() {
            return Err("the folder belongs to another user".into());
        }
        if metadata.mode() & 0o022 != 0 {
            return Err("others can write to the folder (chmod go-w)".into());
        }
    }
    Ok(())
}

/// The user of this process.
#[cfg(unix)]
#[allow(unsafe_code, reason = "a call into the C library")]
fn user() -> u32 {
    // SAFETY: it takes nothing and cannot fail (geteuid(2)).
    unsafe { libc::geteuid() }
}

/// What tells a program from every other: the id that the linker made of all that it linked, or else the digest of the
/// file, which takes longer.
fn identity(program: &Path) -> io::Result<String> {
    let mut file = File::open(program)?;
    let length = file.metadata()?.len();
    if let Some(id) = build_id(&mut file) {
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        return Ok(format!("build {id} of {length} bytes"));
    }
    file.seek(SeekFrom::Start(0))?;
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(format!("SHA-256 {}", sha256_hex(&content)))
}

/// The note `NT_GNU_BUILD_ID` of an ELF file of 64 bits in this machine's byte order, if it has one (elf(5)).
fn build_id(file: &mut File) -> Option<Vec<u8>> {
    /// `PT_NOTE`, and the type of the note within it.
    const NOTE: u32 = 4;
    const BUILD_ID: u32 = 3;
    let mut read = |from: u64, length: usize| -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        file.seek(SeekFrom::Start(from)).ok()?;
        file.read_exact(&mut bytes).ok()?;
        Some(bytes)
    };
    let u16_at = |bytes: &[u8], at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |bytes: &[u8], at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |bytes: &[u8], at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let header = read(0, 64)?;
    let order = if cfg!(target_endian = "little") { 1 } else { 2 };
    if !header.starts_with(b"\x7fELF") || header[4..6] != [2, order] {
        return None;
    }
    let (table, size, count) = (u64_at(&header, 32)?, u16_at(&header, 54)?, u16_at(&header, 56)?);
    for i in 0..u64::from(count) {
        let segment = read(table.checked_add(i * u64::from(size))?, 56)?;
        if u32_at(&segment, 0)? != NOTE {
            continue;
        }
        // Notes are small; a length that is not comes from a file that is no program.
        let notes = read(u64_at(&segment, 8)?, usize::try_from(u64_at(&segment, 32)?).ok().filter(|&n| n < 1 << 16)?)?;
        let mut at = 0;
        while let (Some(name), Some(content), Some(kind)) =
            (u32_at(&notes, at), u32_at(&notes, at + 4), u32_at(&notes, at + 8))
        {
            let (name, content) = (name as usize, content as usize);
            let from = at + 12 + name.next_multiple_of(4);
            if kind == BUILD_ID && notes.get(at + 12..at + 12 + name)? == b"GNU\0" {
                return notes.get(from..from + content).filter(|id| id.len() >= 8).map(<[u8]>::to_vec);
            }
            at = from + content.next_multiple_of(4);
        }
    }
    None
}

#[cfg(test)]
mod tests;

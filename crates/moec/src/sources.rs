//! Reading `.moe` files.

use crate::exit::{Exit, Failure};
use moec_syntax::{MAX_SOURCE_BYTES, SourceFile};
use std::io::Read;
use std::path::Path;

/// Reads a `.moe` file, no further than the largest size that is accepted.
///
/// # Errors
/// When the file cannot be read, is too large, or is not UTF-8.
pub(crate) fn read(path: &Path) -> Result<SourceFile, Failure> {
    let failed = |e: &std::io::Error| {
        let Failure::Message { message, .. } = Failure::file("read", path, e) else {
            return Failure::file("read", path, e);
        };
        let failure = Failure::new(Exit::Usage, message);
        if path.is_dir() {
            return failure.help("give the path of a .moe file");
        }
        failure
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| failed(&e))?;
    file.take(MAX_SOURCE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|e| failed(&e))?;
    from_bytes(&path.display().to_string(), &bytes)
}

/// A source from bytes.
///
/// # Errors
/// When they are too many or not UTF-8.
pub(crate) fn from_bytes(name: &str, bytes: &[u8]) -> Result<SourceFile, Failure> {
    SourceFile::from_bytes(name, bytes)
        .map_err(|diagnostic| Failure::source(SourceFile::new(name, ""), vec![diagnostic], Exit::Usage))
}

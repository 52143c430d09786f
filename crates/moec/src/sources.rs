//! Reading `.moe` files.

use crate::cli::exit::{self, Exit, Failure};
use moec_syntax::{MAX_SOURCE_BYTES, SourceFile};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Reads a `.moe` file and what it imports, no file further than the largest size that is accepted. An import that
/// cannot be read is reported by whoever parses the source.
///
/// # Errors
/// When the file cannot be read, is too large, or is not UTF-8.
pub(crate) fn read(path: &Path) -> Result<SourceFile, Failure> {
    let read = bytes(path).map_err(|e| {
        let Failure::Message { message, .. } = Failure::file("read", path, &e) else {
            return Failure::file("read", path, &e);
        };
        let failure = Failure::new(Exit::Usage, message);
        if path.is_dir() { failure.help("give the path of a .moe file") } else { failure }
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let source = from_bytes(&path.display().to_string(), &read)?;
    Ok(source.with_imports(|import| bytes(&folder.join(import)).map_err(|e| exit::reason(&e))))
}

fn bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_SOURCE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The texts that a source imports, by their paths.
pub(crate) fn imported(source: &SourceFile) -> BTreeMap<String, String> {
    source.imported().map(|(path, file)| (path.to_string(), file.text().to_string())).collect()
}

/// A source from bytes.
///
/// # Errors
/// When they are too many or not UTF-8.
pub(crate) fn from_bytes(name: &str, bytes: &[u8]) -> Result<SourceFile, Failure> {
    SourceFile::from_bytes(name, bytes)
        .map_err(|diagnostic| Failure::source(SourceFile::new(name, ""), vec![diagnostic], Exit::Usage))
}

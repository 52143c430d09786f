//! Specs as commands read them: from a file, or from standard input where the path is `-`.

use crate::cli::exit::Failure;
use crate::read_source;
use crate::spec::source_in;
use moec_syntax::SourceFile;
use std::io::Read;
use std::path::Path;

/// Reads a spec. One from standard input imports from the current folder.
///
/// # Errors
/// When it cannot be read, is too large, or is not UTF-8.
pub(crate) fn read(path: &Path) -> Result<SourceFile, Failure> {
    if path != Path::new("-") {
        return Ok(read_source(path)?);
    }
    let mut bytes = Vec::new();
    let limit = moec_syntax::MAX_SOURCE_BYTES as u64 + 1;
    let read = std::io::stdin().lock().take(limit).read_to_end(&mut bytes);
    read.map_err(|e| Failure::file("read", Path::new("standard input"), &e))?;
    Ok(source_in(Path::new(""), "<stdin>", &bytes)?)
}

//! A source text with its name, and the two ways to point into it: byte spans and line/column positions.

use std::collections::BTreeMap;
use std::fmt;

use crate::codes::Code;
use crate::diag::Diagnostic;
use crate::import::{self, Imports};

/// The largest source that is parsed, in bytes. A model description of a megabyte is a mistake (usually a data file
/// given in place of a model), and saying so at once is kinder than a thousand syntax errors.
pub const MAX_SOURCE_BYTES: usize = 1 << 20;

/// A half-open range of byte offsets into one [`SourceFile`]. Offsets behind the end of its text lie in the files that
/// it imports.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// Offset of the first byte.
    pub start: usize,
    /// Offset one past the last byte; equal to `start` for a position between two characters.
    pub end: usize,
}

impl Span {
    /// The range `start..end`; an `end` before `start` is taken as `start`.
    pub fn new(start: usize, end: usize) -> Self {
        Span { start, end: end.max(start) }
    }

    /// The position just before the byte at `offset`.
    pub fn at(offset: usize) -> Self {
        Span { start: offset, end: offset }
    }

    /// The smallest span that covers both.
    pub fn to(self, other: Span) -> Self {
        Span { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// The length in bytes.
    pub fn len(self) -> usize {
        self.end - self.start
    }

    /// Whether the span covers no byte.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl From<Span> for std::ops::Range<usize> {
    fn from(span: Span) -> Self {
        span.start..span.end
    }
}

/// A position as people count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineColumn {
    /// Line number, from 1.
    pub line: usize,
    /// Column number in characters, from 1.
    pub column: usize,
}

/// One source text: a name to show, the text, an index of its lines, and the files that it imports.
///
/// A byte order mark at the start is dropped; all offsets count from the text after it. An imported file has offsets
/// of its own behind the end of the text, so that a span says by itself which file it lies in: [`Self::slice`],
/// [`Self::line_column`] and [`Self::locate`] take spans of every file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    name: String,
    text: String,
    line_starts: Vec<usize>,
    imports: Imports,
}

impl SourceFile {
    /// Wraps `text`; `name` is what messages call it, usually a path as the user typed it.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let mut text: String = text.into();
        if text.starts_with('\u{feff}') {
            text.drain(..'\u{feff}'.len_utf8());
        }
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        SourceFile { name: name.into(), text, line_starts, imports: Imports::default() }
    }

    /// Wraps the bytes of a file.
    ///
    /// # Errors
    /// [`Code::FileTooLarge`] above [`MAX_SOURCE_BYTES`], [`Code::NotUtf8`] with the offset of the first bad byte.
    /// Both come without a label, since there is no text to point into.
    // A diagnostic is large, but this runs once per file.
    #[allow(clippy::result_large_err, reason = "runs once per file, and the error is what callers print")]
    pub fn from_bytes(name: impl Into<String>, bytes: &[u8]) -> Result<Self, Diagnostic> {
        let name = name.into();
        if bytes.len() > MAX_SOURCE_BYTES {
            return Err(too_large(&name, bytes.len()));
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(SourceFile::new(name, text)),
            Err(error) => {
                let offset = error.valid_up_to();
                let line = bytes[..offset].iter().filter(|&&b| b == b'\n').count() + 1;
                let mut diagnostic = Diagnostic::new(
                    Code::NotUtf8,
                    format!(
                        "`{name}` is not UTF-8 text: byte 0x{:02x} at offset {offset}, on line {line}",
                        bytes[offset]
                    ),
                );
                diagnostic = if bytes.contains(&0) {
                    diagnostic
                        .help("this looks like a binary file; a model description is a text file ending in `.moe`")
                } else {
                    diagnostic.help("save the file with the encoding UTF-8")
                };
                Err(diagnostic)
            }
        }
    }

    /// The name that messages show.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text, without a byte order mark.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Reads the files that this one imports, and those that they import. `read` is given the path of a file from the
    /// folder of this one, with `/` between folders and without detours, and answers with its bytes or with the reason
    /// why it cannot. Nothing fails here: parsing reports what could not be read, at the import.
    #[must_use]
    pub fn with_imports(mut self, read: impl FnMut(&str) -> Result<Vec<u8>, String>) -> Self {
        let own = import::own_path(&self);
        self.imports = Imports::read(&self, Some(own), read);
        self
    }

    /// As [`Self::with_imports`], for a copy of a source that lies elsewhere, with copies of what it imports: their
    /// texts by the paths that [`Self::imported`] gave.
    #[must_use]
    pub fn with_kept_imports(mut self, kept: &BTreeMap<String, String>) -> Self {
        let read = |path: &str| match kept.get(path) {
            Some(text) => Ok(text.clone().into_bytes()),
            None => Err("it was not kept".to_owned()),
        };
        self.imports = Imports::read(&self, None, read);
        self
    }

    /// The imported files that could be read, by their path from the folder of this one.
    pub fn imported(&self) -> impl Iterator<Item = (&str, &SourceFile)> {
        self.imports.files()
    }

    pub(crate) fn imports(&self) -> &Imports {
        &self.imports
    }

    /// The file that a span lies in, and the span within that file.
    pub fn locate(&self, span: Span) -> (&SourceFile, Span) {
        match self.imports.file_at(span.start) {
            Some((file, base)) => (file, Span::new(span.start - base, span.end.saturating_sub(base))),
            None => (self, span),
        }
    }

    /// The text under `span`; empty where the span does not lie on character boundaries of one text.
    pub fn slice(&self, span: Span) -> &str {
        let (file, span) = self.locate(span);
        file.text.get(span.start..span.end).unwrap_or("")
    }

    /// The number of lines; a final line break starts no further line.
    pub fn line_count(&self) -> usize {
        if self.text.ends_with('\n') { self.line_starts.len() - 1 } else { self.line_starts.len() }
    }

    /// The text of a line (from 1) without its line break; empty for a line that does not exist.
    pub fn line(&self, line: usize) -> &str {
        let Some(&start) = line.checked_sub(1).and_then(|i| self.line_starts.get(i)) else { return "" };
        let end = self.line_starts.get(line).copied().unwrap_or(self.text.len());
        self.text[start..end].trim_end_matches(['\n', '\r'])
    }

    /// Line and column of a byte offset within its file. An offset past the end is taken as the end, one inside a
    /// character as the start of that character.
    pub fn line_column(&self, offset: usize) -> LineColumn {
        let (file, span) = self.locate(Span::at(offset));
        let mut offset = span.start.min(file.text.len());
        while !file.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let line = file.line_starts.partition_point(|&start| start <= offset);
        let start = file.line_starts[line - 1];
        LineColumn { line, column: file.text[start..offset].chars().count() + 1 }
    }

    /// The byte offset of a position in this file, or `None` where the text has no such line or column. The column just after the
    /// last character of a line exists.
    pub fn offset(&self, position: LineColumn) -> Option<usize> {
        let start = *self.line_starts.get(position.line.checked_sub(1)?)?;
        let line = self.line(position.line);
        let wanted = position.column.checked_sub(1)?;
        let offsets = line.char_indices().map(|(i, _)| i).chain(std::iter::once(line.len()));
        offsets.into_iter().nth(wanted).map(|i| start + i)
    }
}

/// The diagnostic for a source above [`MAX_SOURCE_BYTES`].
pub(crate) fn too_large(name: &str, bytes: usize) -> Diagnostic {
    Diagnostic::new(
        Code::FileTooLarge,
        format!("`{name}` has {bytes} bytes; a model description may have at most {MAX_SOURCE_BYTES}"),
    )
    .help("training text does not belong in this file: name it in the `train` block, as in `data \"corpus.txt\"`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_and_survive_crlf() {
        let source = SourceFile::new("a.moe", "ab\r\nñ→x\n");
        assert_eq!(source.line_column(0), LineColumn { line: 1, column: 1 });
        assert_eq!(source.line_column(4), LineColumn { line: 2, column: 1 });
        assert_eq!(source.line_column(9), LineColumn { line: 2, column: 3 });
        // In the middle of `→`.
        assert_eq!(source.line_column(7), LineColumn { line: 2, column: 2 });
        assert_eq!(source.line_column(999), LineColumn { line: 3, column: 1 });
        assert_eq!(source.line(1), "ab");
        assert_eq!(source.line(2), "ñ→x");
        assert_eq!(source.line(9), "");
        assert_eq!(source.line_count(), 2);
        for offset in [0, 1, 2, 4, 6, 9, 10] {
            assert_eq!(source.offset(source.line_column(offset)), Some(offset));
        }
        assert_eq!(source.offset(LineColumn { line: 2, column: 5 }), None);
        assert_eq!(source.offset(LineColumn { line: 0, column: 1 }), None);
    }

    #[test]
    fn byte_order_mark_is_dropped() {
        let source = SourceFile::from_bytes("a.moe", b"\xef\xbb\xbfmodel").unwrap();
        assert_eq!(source.text(), "model");
        assert_eq!(source.line_column(0), LineColumn { line: 1, column: 1 });
    }

    #[test]
    fn bad_bytes_are_located() {
        let error = SourceFile::from_bytes("a.moe", b"model m {\n  \xff\n}").unwrap_err();
        assert_eq!(error.code, Code::NotUtf8);
        assert!(error.message.contains("offset 12, on line 2"), "{}", error.message);
        let error = SourceFile::from_bytes("a.moe", &vec![b' '; MAX_SOURCE_BYTES + 1]).unwrap_err();
        assert_eq!(error.code, Code::FileTooLarge);
    }
}

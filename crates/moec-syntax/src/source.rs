//! A source text with its name, what belongs to it, and the two ways to point into it: byte spans and line/column
//! positions.

use crate::codes::Code;
use crate::diag::Diagnostic;
use crate::span::{FileId, Span};

/// The largest source that is parsed, in bytes. A model description of a megabyte is a mistake (usually a data file
/// given in place of a model), and saying so at once is kinder than a thousand syntax errors.
pub const MAX_SOURCE_BYTES: usize = 1 << 20;

/// A position as people count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineColumn {
    /// Line number, from 1.
    pub line: usize,
    /// Column number in characters, from 1.
    pub column: usize,
}

/// One source text: a name to show, the text, an index of its lines, and the texts that belong to it: the files that it
/// imports, and the overrides that it is used with.
///
/// A byte order mark at the start is dropped; all offsets count from the text after it. Each text has a [`FileId`], and
/// a [`Span`] says by it which text it lies in; [`Self::file`] and [`Self::slice`] take those of every text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    id: FileId,
    name: String,
    text: String,
    line_starts: Vec<usize>,
    pub(crate) imports: Imports,
    overrides: Vec<SourceFile>,
    entry: Option<Entry>,
}

/// An override that is written in a file of values: which value it replaces, and where that is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What is replaced: `width`, `train.optimizer.lr`.
    pub path: String,
    /// The bytes that name it.
    pub key: std::ops::Range<usize>,
    /// The bytes of the value.
    pub value: std::ops::Range<usize>,
}

/// The files that a source imports, directly or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Imports {
    /// Whether anyone has tried to read them.
    pub(crate) asked: bool,
    /// Path of the source itself from its folder, where an import could mean it.
    pub(crate) own: Option<String>,
    /// In the order in which they were read, which is that of their identities.
    pub(crate) files: Vec<ImportedFile>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImportedFile {
    /// Path from the folder of the source.
    pub(crate) path: String,
    /// The file, or why it could not be read.
    pub(crate) file: Result<SourceFile, String>,
}

impl SourceFile {
    /// Wraps `text`; `name` is what messages call it, usually a path as the user typed it.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let mut text: String = text.into();
        if text.starts_with('\u{feff}') {
            text.drain(..'\u{feff}'.len_utf8());
        }
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        SourceFile {
            id: FileId::MAIN,
            name: name.into(),
            text,
            line_starts,
            imports: Imports::default(),
            overrides: Vec::new(),
            entry: None,
        }
    }

    /// The same text as another of the texts that belong together.
    pub(crate) fn with_id(self, id: FileId) -> Self {
        SourceFile { id, ..self }
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

    /// Takes the texts of overrides along, each `path=value`, in place of those that there were.
    #[must_use]
    pub fn with_overrides<T: AsRef<str>>(mut self, texts: &[T]) -> Self {
        let file = |(index, text): (u32, &T)| {
            let text = text.as_ref();
            SourceFile::new(format!("-s {text}"), text).with_id(FileId::of_override(index))
        };
        self.overrides = (0..).zip(texts).map(file).collect();
        self
    }

    /// Takes the entries of a file of values along as overrides before those that there are, which win.
    #[must_use]
    pub fn with_configuration(mut self, name: &str, text: &str, entries: &[Entry]) -> Self {
        // Each has the text up to its own end, so that its value is read where it stands.
        let file = |entry: &Entry| SourceFile {
            entry: Some(entry.clone()),
            ..SourceFile::new(name, text.get(..entry.value.end).unwrap_or(text))
        };
        let all = entries.iter().map(file).chain(std::mem::take(&mut self.overrides));
        self.overrides = (0..).zip(all).map(|(index, file)| file.with_id(FileId::of_override(index))).collect();
        self
    }

    /// Where an override is written, if that is in a file of values.
    pub fn entry(&self) -> Option<&Entry> {
        self.entry.as_ref()
    }

    /// The texts of the overrides.
    pub fn overrides(&self) -> impl Iterator<Item = &SourceFile> {
        self.overrides.iter()
    }

    /// The imported files that could be read, by their path from the folder of this one.
    pub fn imported(&self) -> impl Iterator<Item = (&str, &SourceFile)> {
        self.imports.files.iter().filter_map(|import| Some((import.path.as_str(), import.file.as_ref().ok()?)))
    }

    /// Which of the texts that belong together this is.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// The text with this identity; this file itself where nothing that belongs to it has it.
    pub fn file(&self, id: FileId) -> &SourceFile {
        let others = self.imported().map(|(_, file)| file).chain(&self.overrides);
        others.filter(|_| id != self.id).find(|file| file.id == id).unwrap_or(self)
    }

    /// The span of some bytes of this file.
    pub fn span(&self, range: std::ops::Range<usize>) -> Span {
        Span::new(self.id, range)
    }

    /// The position behind the last word of the text.
    pub(crate) fn end(&self) -> Span {
        let end = self.text.trim_end().len();
        self.span(end..end)
    }

    /// The text under `span`; empty where the span does not lie on character boundaries of its text.
    pub fn slice(&self, span: Span) -> &str {
        self.file(span.file()).text.get(span.range()).unwrap_or("")
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

    /// Line and column of a byte offset in this file. An offset past the end is taken as the end, one inside a character
    /// as the start of that character.
    pub fn line_column(&self, offset: usize) -> LineColumn {
        let offset = self.boundary(offset);
        let line = self.line_starts.partition_point(|&start| start <= offset);
        let start = self.line_starts[line - 1];
        LineColumn { line, column: self.text[start..offset].chars().count() + 1 }
    }

    /// The nearest character boundary of the text at or before an offset.
    pub(crate) fn boundary(&self, offset: usize) -> usize {
        self.text.floor_char_boundary(offset)
    }

    /// The byte offset of a position in this file, or `None` where the text has no such line or column. The column just
    /// after the last character of a line exists.
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

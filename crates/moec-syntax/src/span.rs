//! Places in texts: which file, and which bytes of it.

use std::fmt;
use std::ops::Range;

/// One of the texts that belong to a [`SourceFile`](crate::SourceFile): the file itself, a file that it imports, or an
/// override.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(u32);

impl FileId {
    /// The file that was asked for.
    pub const MAIN: FileId = FileId(0);

    /// Overrides are counted from here, far above the number of files that can be imported.
    const FIRST_OVERRIDE: u32 = 1 << 16;

    /// The imported file at `index`, in the order in which imports were read.
    pub(crate) fn import(index: u32) -> Self {
        FileId(1 + index)
    }

    /// The override at `index`, in the order in which overrides were given.
    pub(crate) fn of_override(index: u32) -> Self {
        FileId(Self::FIRST_OVERRIDE + index)
    }

    /// Whether this is the text of an override.
    pub fn is_override(self) -> bool {
        self.0 >= Self::FIRST_OVERRIDE
    }
}

/// A half-open range of bytes of one file. Spans are ordered by file, then by start, then by end.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    file: FileId,
    start: u32,
    end: u32,
}

impl Span {
    /// The bytes `range` of `file`. An end before the start is taken as the start. Offsets above 4 GiB, which no file
    /// that is parsed has, are taken as that.
    pub fn new(file: FileId, range: Range<usize>) -> Self {
        let [start, end] = [range.start, range.end].map(|offset| u32::try_from(offset).unwrap_or(u32::MAX));
        Span { file, start, end: end.max(start) }
    }

    /// The file it lies in.
    pub fn file(self) -> FileId {
        self.file
    }

    /// Offset of the first byte.
    pub fn start(self) -> usize {
        self.start as usize
    }

    /// Offset one past the last byte; equal to the start for a position between two characters.
    pub fn end(self) -> usize {
        self.end as usize
    }

    /// The bytes it covers.
    pub fn range(self) -> Range<usize> {
        self.start()..self.end()
    }

    /// File, start and end as numbers, for those who carry a place without knowing this crate.
    pub fn numbers(self) -> [u32; 3] {
        [self.file.0, self.start, self.end]
    }

    /// The span that [`Self::numbers`] was asked of.
    pub fn from_numbers([file, start, end]: [u32; 3]) -> Self {
        Span { file: FileId(file), start, end: end.max(start) }
    }

    /// The position just before it.
    pub fn before(self) -> Self {
        Span { end: self.start, ..self }
    }

    /// The position just behind it.
    pub fn after(self) -> Self {
        Span { start: self.end, ..self }
    }

    /// Its first `bytes` bytes.
    pub fn head(self, bytes: usize) -> Self {
        Span::new(self.file, self.start()..self.end().min(self.start() + bytes))
    }

    /// Its last `bytes` bytes.
    pub fn tail(self, bytes: usize) -> Self {
        Span::new(self.file, self.start().max(self.end().saturating_sub(bytes))..self.end())
    }

    /// The smallest span that covers both. No span covers parts of two files: then it is this one alone.
    pub fn to(self, other: Span) -> Self {
        if self.file != other.file {
            return self;
        }
        Span { file: self.file, start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// The length in bytes.
    pub fn len(self) -> usize {
        self.range().len()
    }

    /// Whether the span covers no byte.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.file != FileId::MAIN {
            write!(f, "{}:", self.file.0)?;
        }
        write!(f, "{}..{}", self.start, self.end)
    }
}

//! A text as the protocol counts it: lines end with LF, CR LF or CR, and columns are UTF-16 code units.

use std::ops::Range;

use gen_lsp_types::{Position, Range as Lines};

/// A text with an index of its lines. A byte order mark is no part of it, but counts as a column of the first line.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    content: String,
    marked: bool,
    starts: Vec<usize>,
}

impl Text {
    pub(crate) fn new(content: impl Into<String>) -> Self {
        let mut content = content.into();
        let marked = content.starts_with('\u{feff}');
        if marked {
            content.drain(..'\u{feff}'.len_utf8());
        }
        let bytes = content.as_bytes();
        let ends = |i: usize| bytes[i] == b'\n' || bytes[i] == b'\r' && bytes.get(i + 1) != Some(&b'\n');
        let starts = std::iter::once(0).chain((0..bytes.len()).filter(|&i| ends(i)).map(|i| i + 1)).collect();
        Text { content, marked, starts }
    }

    pub(crate) fn content(&self) -> &str {
        &self.content
    }

    /// The byte at a position; the nearest one where the text has no such line or column.
    pub(crate) fn offset(&self, position: Position) -> usize {
        let line = position.line as usize;
        let Some(&start) = self.starts.get(line) else { return self.content.len() };
        let end = self.starts.get(line + 1).copied().unwrap_or(self.content.len());
        let text = self.content[start..end].trim_end_matches(['\n', '\r']);
        let mut left = (position.character as usize).saturating_sub(usize::from(self.marked && line == 0));
        for (at, c) in text.char_indices() {
            if left < c.len_utf16() {
                return start + at;
            }
            left -= c.len_utf16();
        }
        start + text.len()
    }

    /// The position of a byte; one behind the text is taken as its end.
    pub(crate) fn position(&self, offset: usize) -> Position {
        let offset = self.content.floor_char_boundary(offset);
        let line = self.starts.partition_point(|&start| start <= offset) - 1;
        let before = &self.content[self.starts[line]..offset];
        let column = before.encode_utf16().count() + usize::from(self.marked && line == 0);
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Position::new(number(line), number(column))
    }

    pub(crate) fn lines(&self, range: Range<usize>) -> Lines {
        Lines::new(self.position(range.start), self.position(range.end))
    }

    /// The text with another one in the place of a part.
    pub(crate) fn with(&self, part: Lines, new: &str) -> Self {
        let (start, end) = (self.offset(part.start), self.offset(part.end));
        let mut content = self.content.clone();
        content.replace_range(start..end.max(start), new);
        Text { marked: self.marked, ..Text::new(content) }
    }

    /// The name or number around a byte, which may lie just behind it: from where to where.
    pub(crate) fn word(&self, offset: usize) -> Range<usize> {
        let offset = self.content.floor_char_boundary(offset);
        let is_word = |byte: &&u8| byte.is_ascii_alphanumeric() || **byte == b'_';
        let (before, behind) = self.content.as_bytes().split_at(offset);
        let start = offset - before.iter().rev().take_while(is_word).count();
        start..offset + behind.iter().take_while(is_word).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_code_units() {
        let text = Text::new("ab\r\n→x😀y\rz\n");
        for (offset, line, column) in
            [(0, 0, 0), (2, 0, 2), (4, 1, 0), (7, 1, 1), (8, 1, 2), (12, 1, 4), (13, 1, 5), (14, 2, 0), (16, 3, 0)]
        {
            let position = Position::new(line, column);
            assert_eq!(text.position(offset), position);
            assert_eq!(text.offset(position), offset);
        }
        // In the middle of a character, behind a line, behind the text.
        assert_eq!(text.offset(Position::new(1, 3)), 8);
        assert_eq!(text.offset(Position::new(0, 99)), 2);
        assert_eq!(text.offset(Position::new(9, 0)), 16);
        assert_eq!(text.position(5), Position::new(1, 0));
        assert_eq!(text.position(999), Position::new(3, 0));
    }

    #[test]
    fn a_byte_order_mark_is_a_column() {
        let text = Text::new("\u{feff}ab\ncd");
        assert_eq!(
            (text.content(), text.position(1), text.position(3)),
            ("ab\ncd", Position::new(0, 2), Position::new(1, 0))
        );
        let changed = text.with(Lines::new(Position::new(0, 2), Position::new(0, 3)), "x");
        assert_eq!((changed.content(), changed.offset(Position::new(0, 1))), ("ax\ncd", 0));
    }

    #[test]
    fn words_reach_both_ways() {
        let text = Text::new("top_k(2) ñ");
        assert_eq!(
            [text.word(0), text.word(3), text.word(5), text.word(6), text.word(8)],
            [0..5, 0..5, 0..5, 6..7, 8..8]
        );
        assert_eq!(text.word(10), 9..9);
    }
}

//! Tables and lines of text that know how wide the terminal is.

use crate::cli::wrapping::between_words;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Between two columns.
const GAP: usize = 2;

/// What is left of a name at least, where it must be shortened.
const NAME: usize = 12;

/// A table. The first columns are words, the last of them names, which are shortened in the middle where there is no room for
/// them; the others are numbers.
pub(crate) struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    words: usize,
}

impl Table {
    /// A table with these heads, the first `words` columns of which are words, at least one.
    pub(crate) fn new(heads: &[&'static str], words: usize) -> Self {
        Self { heads: heads.to_vec(), rows: Vec::new(), words }
    }

    /// A row, with a cell for each head.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut cells: Vec<String> = cells.into_iter().collect();
        cells.resize(self.heads.len(), String::new());
        self.rows.push(cells);
    }

    /// Its lines, none wider than `width`: where it must be, heads stand on several lines, then names are shortened, and
    /// then the columns that do not fit follow below with the names again.
    pub(crate) fn lines(&self, width: usize) -> Vec<String> {
        let cells = |column: usize| self.rows.iter().map(|row| row[column].width()).max().unwrap_or(0);
        let natural: Vec<usize> = (0..self.heads.len()).map(|c| cells(c).max(self.heads[c].width())).collect();
        let word = |head: &str| head.split(' ').map(UnicodeWidthStr::width).max().unwrap_or(0);
        let narrow: Vec<usize> = (0..self.heads.len()).map(|c| cells(c).max(word(self.heads[c]))).collect();
        let all: Vec<usize> = (0..self.heads.len()).collect();
        let together = |widths: &[usize]| widths.iter().map(|w| w + GAP).sum::<usize>().saturating_sub(GAP);
        if together(&natural) <= width {
            return self.block(&all, &natural);
        }
        let name = self.words - 1;
        let room = width.saturating_sub(together(&narrow) - narrow[name]);
        let mut widths = narrow;
        if widths[name].min(NAME) <= room {
            widths[name] = widths[name].min(room);
            // What is left makes heads shorter again.
            let mut left = width - together(&widths);
            for (column, wide) in natural.iter().enumerate().filter(|(column, _)| *column != name) {
                let more = left.min(wide - widths[column]);
                widths[column] += more;
                left -= more;
            }
            return self.block(&all, &widths);
        }
        widths[name] = widths[name].min(NAME);
        let words = &all[..self.words];
        let mut lines: Vec<String> = Vec::new();
        let mut columns = all[self.words..].iter().copied().peekable();
        while columns.peek().is_some() {
            let mut block = words.to_vec();
            let mut used = together(&widths[..self.words]);
            while let Some(&column) = columns.peek()
                && (block.len() == self.words || used + GAP + widths[column] <= width)
            {
                used += GAP + widths[column];
                block.push(column);
                columns.next();
            }
            if !lines.is_empty() {
                lines.push(String::new());
            }
            lines.extend(self.block(&block, &block.iter().map(|&c| widths[c]).collect::<Vec<_>>()));
        }
        lines
    }

    /// As [`Table::lines`], with line breaks.
    pub(crate) fn text(&self, width: usize) -> String {
        self.lines(width).iter().map(|line| format!("{line}\n")).collect()
    }

    /// Some columns beside each other.
    fn block(&self, columns: &[usize], widths: &[usize]) -> Vec<String> {
        let head = |(&c, &width): (&usize, &usize)| filled(self.heads[c], width).lines().map(str::to_string).collect();
        let heads: Vec<Vec<String>> = columns.iter().zip(widths).map(head).collect();
        let height = heads.iter().map(Vec::len).max().unwrap_or(0);
        let mut lines = Vec::new();
        for line in 0..height {
            // Heads stand on the rows, so that short ones have their blank lines above.
            let cell = |head: &Vec<String>| {
                (line + head.len()).checked_sub(height).and_then(|i| head.get(i)).cloned().unwrap_or_default()
            };
            lines.push(self.line(columns, widths, heads.iter().map(cell)));
        }
        for row in &self.rows {
            let cells = columns.iter().zip(widths).map(|(&c, &width)| shortened(&row[c], width));
            lines.push(self.line(columns, widths, cells));
        }
        lines
    }

    fn line(&self, columns: &[usize], widths: &[usize], cells: impl Iterator<Item = String>) -> String {
        let mut line = String::new();
        for ((&column, &width), cell) in columns.iter().zip(widths).zip(cells) {
            let blank = " ".repeat(width.saturating_sub(cell.width()));
            let gap = if line.is_empty() && column == columns[0] { "" } else { "  " };
            line += gap;
            line += &if column < self.words { cell + &blank } else { blank + &cell };
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// A name in at most `width` columns, without its middle where it is longer.
pub(crate) fn shortened(name: &str, width: usize) -> String {
    if name.width() <= width {
        return name.to_string();
    }
    let room = width.saturating_sub(1);
    let (before, after) = (room / 2, room - room / 2);
    let taken = |characters: &mut dyn Iterator<Item = char>, most: usize| {
        let mut columns = 0;
        let fits = |c: &char| {
            columns += c.width().unwrap_or(0);
            columns <= most
        };
        characters.take_while(fits).collect::<Vec<char>>()
    };
    let begin: String = taken(&mut name.chars(), before).into_iter().collect();
    let end: String = taken(&mut name.chars().rev(), after).into_iter().rev().collect();
    if width == 0 { String::new() } else { format!("{begin}…{end}") }
}

/// Words in lines of at most so many columns, where they are not longer themselves.
pub(crate) fn filled(text: &str, width: usize) -> String {
    textwrap::fill(text, between_words(width.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["layer", "parameters", "FLOP per token"], 1);
        table.row(["blocks.*.layer_norm_2 x 8".to_string(), "2,048".into(), "8,192".into()]);
        table.row(["embed".to_string(), "12,416".into(), "128".into()]);
        table
    }

    #[test]
    fn a_table_takes_what_room_there_is() {
        let shown = |width: usize| format!("\n{}", table().text(width));
        assert_eq!(
            shown(80),
            "
layer                      parameters  FLOP per token
blocks.*.layer_norm_2 x 8       2,048           8,192
embed                          12,416             128
"
        );
        assert_eq!(
            shown(48),
            "
                                        FLOP per
layer                      parameters      token
blocks.*.layer_norm_2 x 8       2,048      8,192
embed                          12,416        128
"
        );
        assert_eq!(
            shown(40),
            "
                                    FLOP
                                     per
layer                  parameters  token
blocks.*.l…norm_2 x 8       2,048  8,192
embed                      12,416    128
"
        );
        assert_eq!(
            shown(26),
            "
layer         parameters
block…_2 x 8       2,048
embed             12,416

               FLOP
                per
layer         token
block…_2 x 8  8,192
embed           128
"
        );
        for width in 24..120 {
            assert!(table().lines(width).iter().all(|line| line.width() <= width), "{width}");
        }
    }

    #[test]
    fn names_lose_their_middle() {
        assert_eq!(shortened("blocks.0.moe", 12), "blocks.0.moe");
        assert_eq!(shortened("blocks.10.moe", 12), "block…10.moe");
        assert_eq!(shortened("ありがとう", 6), "あ…う");
        assert_eq!(shortened("abc", 1), "…");
        assert_eq!(shortened("abc", 0), "");
    }

    #[test]
    fn headings_are_broken_between_words() {
        assert_eq!(filled("one two three", 7), "one two\nthree");
        assert_eq!(filled("incomprehensible is", 7), "incomprehensible\nis");
        assert_eq!(filled("", 7), "");
    }
}

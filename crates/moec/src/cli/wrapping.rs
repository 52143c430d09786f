//! Text for a terminal that is narrower than its lines.

use textwrap::{Options, WordSeparator, WordSplitter, core::display_width};

/// Columns below which breaking lines helps nobody.
pub(crate) const NARROWEST: usize = 30;

/// Breaks lines of more than `columns` columns between words. What follows stands below the last column of a table, or else
/// two columns further to the right than a line that is indented, and at the margin below one that is not; words longer than
/// a line stay whole. Colours take no place.
pub(crate) fn wrapped(text: &str, columns: usize) -> String {
    let columns = columns.max(NARROWEST);
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
        if display_width(line) <= columns {
            out.push_str(line);
        } else {
            let indent = " ".repeat(hanging(line, columns));
            out.push_str(&textwrap::wrap(line, between_words(columns).subsequent_indent(&indent)).join("\n"));
        }
        out.push_str(end);
    }
    out
}

/// Lines of at most so many columns, which end between words.
pub(crate) fn between_words<'a>(columns: usize) -> Options<'a> {
    let options = Options::new(columns).break_words(false).word_separator(WordSeparator::AsciiSpace);
    options.word_splitter(WordSplitter::NoHyphenation)
}

/// Where the last column of a table begins in this line, if it has columns and that leaves room for text; or else a little
/// to the right of its beginning; prose begins at the margin and goes on there.
fn hanging(line: &str, columns: usize) -> usize {
    let begin = line.len() - line.trim_start_matches(' ').len();
    let gaps = line.match_indices("  ").map(|(at, _)| at).filter(|at| *at > begin);
    let starts = gaps.filter_map(|at| {
        let rest = &line[at..];
        let text = rest.trim_start_matches(' ');
        (!text.is_empty()).then(|| display_width(&line[..at]) + rest.len() - text.len())
    });
    // Room for some words.
    starts
        .filter(|start| start + NARROWEST / 2 <= columns.min(2 * columns / 3 + NARROWEST / 2))
        .last()
        .unwrap_or(if begin == 0 { 0 } else { begin + 2 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_below_what_they_continue() {
        let table = "  k       integer  experts per token, as many as that\nshort\n";
        assert_eq!(
            wrapped(table, 40),
            "  k       integer  experts per token, as\n                   many as that\nshort\n"
        );
        let prose = "  why: the experts that get most tokens learn fastest";
        assert_eq!(wrapped(prose, 34), "  why: the experts that get most\n    tokens learn fastest");
        // Wide enough, nothing changes; a word that is too long stays whole.
        assert_eq!(wrapped(table, 80), table);
        let long = "x".repeat(50);
        assert_eq!(wrapped(&long, 40), long);
    }

    #[test]
    fn colours_and_wide_characters_are_measured_as_they_are_seen() {
        let red = "\u{1b}[31mone two three four five six\u{1b}[0m";
        assert_eq!(wrapped(red, 30), red);
        assert_eq!(wrapped("漢字漢字漢字漢字 漢字漢字漢字漢字", 30), "漢字漢字漢字漢字\n漢字漢字漢字漢字");
    }
}

//! A text in the terminal, every character marked with the expert that it goes to.

use crate::cli::routing::marks::{Mark, Marks};
use crate::cli::routing::record::{Layer, Route};
use crate::cli::units::grouped;
use std::fmt::Write as _;
use unicode_width::UnicodeWidthChar;

/// How a text is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// Columns of a line.
    pub(crate) width: usize,
    /// Whether experts are colours; they are letters on a second line otherwise.
    pub(crate) colours: bool,
}

/// A character as it is shown.
struct Cell {
    shown: String,
    columns: usize,
    mark: Mark,
    ends_line: bool,
}

/// The text of routes in one layer, and below it which mark is which expert. A character is marked with its `slot`-th
/// expert by weight, from 1.
pub(crate) fn text(layer: &Layer, routes: &[Route], slot: usize, look: Look) -> String {
    let chosen: Vec<Option<usize>> = routes.iter().map(|route| route.choice(slot)).collect();
    let mut counts = vec![0; layer.experts];
    for &expert in chosen.iter().flatten() {
        counts[expert] += 1;
    }
    let marks = Marks::new(&counts, look.colours);
    let cells: Vec<Cell> = routes.iter().zip(&chosen).map(|(r, &e)| cell(r.character, marks.of(e))).collect();
    let mut out = String::new();
    for line in lines(&cells, look.width.max(2)) {
        show(line, &marks, &mut out);
    }
    out.push('\n');
    legend(&counts, routes.len(), &marks, look.width, &mut out);
    out
}

/// A character so that it takes its place on the terminal and does nothing else to it.
fn cell(character: char, mark: Mark) -> Cell {
    let shown = match character {
        '\n' => "↵".to_string(),
        '\t' => "→".to_string(),
        // The pictures of control characters.
        '\0'..='\u{1f}' => char::from_u32(0x2400 + u32::from(character)).unwrap_or('\u{fffd}').to_string(),
        c if c.is_control() || is_format(c) => "\u{fffd}".to_string(),
        // A mark over a letter that stands in another cell.
        c if c.width() == Some(0) => format!("\u{25cc}{c}"),
        c => c.to_string(),
    };
    let columns = shown.chars().filter_map(UnicodeWidthChar::width).sum();
    Cell { shown, columns, mark, ends_line: character == '\n' }
}

/// Characters that change how others are shown: directions, joiners, line separators.
fn is_format(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}'
    )
}

/// The lines of a text, broken behind spaces where that leaves no line half empty.
fn lines(cells: &[Cell], width: usize) -> Vec<&[Cell]> {
    let mut lines = Vec::new();
    let mut rest = cells;
    while !rest.is_empty() {
        let mut columns = 0;
        let mut fits = 0;
        for cell in rest {
            columns += cell.columns;
            if columns > width {
                break;
            }
            fits += 1;
            if cell.ends_line {
                break;
            }
        }
        // A character that is wider than the terminal stands alone.
        let fits = fits.max(1);
        let is_broken = fits < rest.len() && !rest[fits - 1].ends_line;
        let after_space = || rest[..fits].iter().rposition(|cell| cell.shown == " ").map(|at| at + 1);
        let end = if is_broken { after_space().filter(|&at| 2 * at > fits).unwrap_or(fits) } else { fits };
        let (line, behind) = rest.split_at(end);
        lines.push(line);
        rest = behind;
    }
    lines
}

fn show(line: &[Cell], marks: &Marks, out: &mut String) {
    if marks.are_colours() {
        for run in line.chunk_by(|a, b| a.mark == b.mark) {
            let text: String = run.iter().map(|cell| cell.shown.as_str()).collect();
            *out += &Marks::paint(run[0].mark, &text);
        }
        out.push('\n');
        return;
    }
    out.extend(line.iter().map(|cell| cell.shown.as_str()));
    out.push('\n');
    for cell in line {
        out.push(Marks::label(cell.mark));
        out.extend(std::iter::repeat_n(' ', cell.columns.saturating_sub(1)));
    }
    out.push('\n');
}

/// Which mark is which expert, and its share of the characters, in as many columns as there is room for.
fn legend(counts: &[usize], characters: usize, marks: &Marks, width: usize, out: &mut String) {
    let share = |count: usize| format!("{:>5.1} %", 100.0 * count as f64 / characters.max(1) as f64);
    let digits = counts.len().saturating_sub(1).to_string().len();
    let mut entries = Vec::new();
    let mut others = (0, 0);
    for (expert, &count) in counts.iter().enumerate() {
        match marks.of(Some(expert)) {
            mark @ Mark::Own(_) => entries.push((mark, format!("expert {expert:>digits$}"), share(count))),
            _ => others = (others.0 + 1, others.1 + count),
        }
    }
    if others.0 > 0 {
        entries.push((Mark::Other, format!("{} others", others.0), share(others.1)));
    }
    let without = characters - counts.iter().sum::<usize>();
    if without > 0 {
        entries.push((Mark::None, "no expert".to_string(), share(without)));
    }
    let name = entries.iter().map(|(_, name, _)| name.len()).max().unwrap_or(0);
    // A mark, the name, the share of 7 columns, and what is between them.
    let entry = if marks.are_colours() { 3 } else { 1 } + 1 + name + 1 + 7;
    let gap = 3;
    let columns = ((width + gap) / (entry + gap)).max(1);
    // Down the columns, as one reads a list.
    let rows = entries.len().div_ceil(columns).max(1);
    for row in 0..rows {
        let mut line = String::new();
        for (mark, text, share) in entries.iter().skip(row).step_by(rows) {
            if !line.is_empty() {
                line += "   ";
            }
            let label = Marks::label(*mark);
            let mark = if marks.are_colours() { Marks::paint(*mark, "   ") } else { label.to_string() };
            // Writing to a string cannot fail.
            let _ = write!(line, "{mark} {text:<name$} {share}");
        }
        *out += &line;
        out.push('\n');
    }
}

/// What a view shows.
pub(crate) fn heading(layer: &Layer, number: usize, layers: usize, slot: usize, look: Look) -> String {
    let choice = match slot {
        1 => "largest".to_string(),
        n => format!("{} largest", ordinal(n)),
    };
    let others = if layers > 1 { format!(" (--layer {number} of 0 to {})", layers - 1) } else { String::new() };
    let place = if look.colours { "each character in the colour of" } else { "below each character" };
    format!(
        "{}{others}, {} of {}: {place} its expert with the {choice} weight",
        layer.path,
        layer.strategy,
        if layer.experts == 1 { "1 expert".to_string() } else { format!("{} experts", grouped(layer.experts as u64)) }
    )
}

/// `2nd`
pub(crate) fn ordinal(n: usize) -> String {
    let end = match (n % 10, n % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{n}{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(experts: usize) -> Layer {
        Layer { path: "blocks.1.moe".into(), strategy: "noisy_top_k".into(), experts }
    }

    /// Characters that go to an expert each, and with less weight to the next one.
    fn routes(text: &str, experts: usize) -> Vec<Route> {
        let route = |(position, character): (usize, char)| Route {
            layer: "blocks.1.moe".into(),
            position,
            character,
            experts: vec![(position + 1) % experts, position % experts],
            weights: vec![0.25, 0.75],
            dropped: vec![false, false],
        };
        text.chars().enumerate().map(route).collect()
    }

    fn shown(said: &str, experts: usize, slot: usize, width: usize, colours: bool) -> String {
        text(&layer(experts), &routes(said, experts), slot, Look { width, colours })
    }

    #[test]
    fn letters_stand_below_characters_where_there_are_no_colours() {
        let text = shown("To be, or\nnot", 3, 1, 80, false);
        assert_eq!(
            text,
            "To be, or↵\n0120120120\nnot\n120\n\n0 expert 0  38.5 %   1 expert 1  30.8 %   2 expert 2  30.8 %\n"
        );
        let second = shown("To be", 3, 2, 80, false);
        assert!(second.starts_with("To be\n12012\n"), "{second}");
    }

    #[test]
    fn lines_are_broken_behind_spaces_and_within_long_words() {
        let text = shown("ein Wort und Wortungetuem", 2, 1, 10, false);
        let lines: Vec<&str> = text.lines().step_by(2).take(4).collect();
        assert_eq!(lines, ["ein Wort ", "und Wortun", "getuem", ""]);
    }

    #[test]
    fn wide_and_unseen_characters_keep_the_letters_in_place() {
        let text = shown("日a\u{301}\u{7}\u{202e}\r\tb", 9, 1, 80, false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "日a\u{25cc}\u{301}\u{2407}\u{fffd}\u{240d}→b");
        assert_eq!(lines[1], "0 1234567");
        assert!(!text.contains(['\u{7}', '\r', '\t', '\u{1b}', '\u{202e}']));
    }

    #[test]
    fn colours_begin_and_end_on_every_line() {
        let text = shown("aa\nbb", 1, 1, 80, true);
        let fill = "\u{1b}[30;48;5;68m";
        assert_eq!(text, format!("{fill}aa↵\u{1b}[0m\n{fill}bb\u{1b}[0m\n\n{fill}   \u{1b}[0m expert 0 100.0 %\n"));
    }

    #[test]
    fn what_no_expert_works_on_is_said() {
        let mut routes = routes("ab", 2);
        routes[1].dropped = vec![true, true];
        let text = text(&layer(2), &routes, 1, Look { width: 30, colours: false });
        assert_eq!(text, "ab\n0.\n\n0 expert 0   50.0 %\n1 expert 1    0.0 %\n. no expert  50.0 %\n");
    }

    #[test]
    fn numbers_in_a_row_read_well() {
        assert_eq!(
            [1, 2, 3, 4, 11, 12, 21, 112].map(ordinal),
            ["1st", "2nd", "3rd", "4th", "11th", "12th", "21st", "112th"]
        );
    }
}

//! What is worth a remark about a text before a model is trained on it.

use crate::cli::units::grouped;
use moec_runtime::Corpus;
use std::fmt::Write as _;

/// A kind of characters: what it is called, and whether one is of it.
type Kind = (&'static str, fn(char) -> bool);

/// Characters that nobody sees in an editor and that texts seldom hold on purpose, with what they are called. (Joiners
/// and the ideographic space have their place in some scripts.)
const UNSEEN: [Kind; 5] = [
    ("byte order mark (U+FEFF)", |c| c == '\u{feff}'),
    ("no-break space (U+00A0, U+202F)", |c| matches!(c, '\u{a0}' | '\u{202f}')),
    ("space of another width (U+2000 to U+200A, U+205F)", |c| matches!(c, '\u{2000}'..='\u{200a}' | '\u{205f}')),
    (
        "character without width (U+00AD, U+200B, U+200E, U+200F, U+2060, ..)",
        |c| matches!(c, '\u{ad}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}'),
    ),
    ("control character", |c| {
        c.is_control() && !matches!(c, '\n' | '\r' | '\t') || matches!(c, '\u{2028}' | '\u{2029}')
    }),
];

/// One remark about characters of a text that nobody sees: each is a token, and samples hold it.
pub(crate) fn unseen(corpus: &Corpus) -> Option<String> {
    let (mut with_feed, mut alone, mut others) = (0, 0, [0; UNSEEN.len()]);
    let mut characters = corpus.text().chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\r' if characters.peek() == Some(&'\n') => with_feed += 1,
            '\r' => alone += 1,
            // Nearly all there is.
            ' '..='~' | '\n' | '\t' => {}
            _ => {
                for (count, (_, is_one)) in others.iter_mut().zip(UNSEEN) {
                    *count += usize::from(is_one(c));
                }
            }
        }
    }
    let mut found: Vec<(usize, &str)> = vec![(with_feed, "line end CR LF"), (alone, "carriage return (CR) alone")];
    found.extend(others.into_iter().zip(UNSEEN.map(|(name, _)| name)));
    found.retain(|(count, _)| *count > 0);
    if found.is_empty() {
        return None;
    }
    let mut remark =
        format!("{} holds characters that nobody sees; each is a token, and samples will hold it too:", corpus.name());
    for (count, name) in found {
        // Writing to a string cannot fail.
        let _ = write!(remark, "\n  {} x {name}", grouped(count as u64));
    }
    if with_feed > 0 {
        remark += "\n  help: `tr -d '\\r' < FILE > NEW` makes line ends CR LF the usual LF";
    }
    if alone > 0 && with_feed == 0 {
        remark += "\n  help: `tr '\\r' '\\n' < FILE > NEW` makes line ends CR the usual LF";
    }
    Some(remark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_nobody_sees_are_counted_and_others_are_not() {
        let remark = |text: &str| unseen(&Corpus::from_bytes("t.txt", text.into()).unwrap());
        assert_eq!(remark("plain\ttext,\nzwei Zeilen – ohne\u{3000}Fehl\n"), None);
        let remarked = remark("a\r\nb\r\nc\rd").unwrap();
        assert!(remarked.contains("2 x line end CR LF") && remarked.contains("1 x carriage return"), "{remarked}");
        assert!(remarked.contains("tr -d") && !remarked.contains("tr '\\r'"), "{remarked}");
        assert!(remark("a\rb\r").unwrap().contains("tr '\\r' '\\n'"));
        let others = remark("\u{feff}a\u{a0}b\u{200b}c\u{1}").unwrap();
        assert_eq!(others.matches("1 x ").count(), 4, "{others}");
    }
}

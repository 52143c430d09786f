//! HTML as text that is escaped unless it was written here.

use std::fmt::{self, Display, Write};

/// Appends to a string; what stands for `{}` is escaped, whatever it is.
macro_rules! html {
    ($out:expr, $text:literal $(, $value:expr)* $(,)?) => {{
        // Writing to a string cannot fail.
        let _ = std::fmt::Write::write_fmt($out, format_args!($text $(, $crate::report::html::Escaped(&$value))*));
    }};
}
pub(super) use html;

/// A value as text of a page or of an attribute in quotes.
pub(super) struct Escaped<'a, T: ?Sized>(pub(super) &'a T);

impl<T: Display + ?Sized> Display for Escaped<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| self.write_char(c))
    }

    fn write_char(&mut self, c: char) -> fmt::Result {
        match c {
            '&' => self.0.write_str("&amp;"),
            '<' => self.0.write_str("&lt;"),
            '>' => self.0.write_str("&gt;"),
            '"' => self.0.write_str("&quot;"),
            '\'' => self.0.write_str("&#39;"),
            '\n' | '\t' => self.0.write_char(c),
            // HTML forbids them: their pictures stand for them.
            '\0'..='\x1f' => self.0.write_char(char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}')),
            '\x7f' => self.0.write_char('\u{2421}'),
            '\u{80}'..='\u{9f}' => self.0.write_char('\u{fffd}'),
            // What turns the direction of the text around it must not reach beyond its own place.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => self.0.write_char('\u{fffd}'),
            c => self.0.write_char(c),
        }
    }
}

/// Appends a text with `code` in it.
pub(super) fn ticked(text: &str, out: &mut String) {
    for (i, part) in text.split('`').enumerate() {
        match i % 2 {
            0 => html!(out, "{}", part),
            _ => html!(out, "<code>{}</code>", part),
        }
    }
}

/// A character in a table, where it must be seen: `␣` for a blank, `↵` for a line break, a number for what nobody sees.
pub(super) fn visible(c: char) -> String {
    match c {
        ' ' => "␣".to_string(),
        '\n' => "↵".to_string(),
        '\t' => "⇥".to_string(),
        c if c.is_control() || c.is_whitespace() || is_invisible(c) => format!("U+{:04X}", u32::from(c)),
        c => c.to_string(),
    }
}

/// Characters without a shape of their own: of no width, for direction, that combine with the one before, for private use.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{300}'..='\u{36f}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{20d0}'..='\u{20ff}'
            | '\u{e000}'..='\u{f8ff}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped_and_written_text_is_not() {
        let mut out = String::new();
        html!(&mut out, "<p title=\"{}\">{} {}</p>", "\"a' & b\"", "<script>alert(1)</script>", 1.5);
        assert_eq!(out, "<p title=\"&quot;a&#39; &amp; b&quot;\">&lt;script&gt;alert(1)&lt;/script&gt; 1.5</p>");
        let mut out = String::new();
        html!(&mut out, "{}", "a\0b\x1b[31m\u{202e}c\u{85}\n\t");
        assert_eq!(out, "a␀b␛[31m\u{fffd}c\u{fffd}\n\t");
    }

    #[test]
    fn code_in_a_text_is_set_as_code() {
        let mut out = String::new();
        ticked("raise `a<b>` to 2", &mut out);
        assert_eq!(out, "raise <code>a&lt;b&gt;</code> to 2");
    }

    #[test]
    fn every_character_can_be_seen() {
        let seen: Vec<String> = [' ', '\n', '\t', 'é', '\0', '\u{200b}', '\u{a0}', '\u{301}'].map(visible).to_vec();
        assert_eq!(seen, ["␣", "↵", "⇥", "é", "U+0000", "U+200B", "U+00A0", "U+0301"]);
    }
}

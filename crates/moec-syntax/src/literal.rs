//! Numbers and text in quotes: what they stand for, and what can be wrong with them.

use pest::Parser;

use crate::ast::ExprKind;
use crate::codes::Code;
use crate::diag::Diagnostic;
use crate::grammar::{Grammar, Rule};
use crate::span::Span;

/// What a number of the grammar stands for; `None` for what is too large.
pub(crate) fn number(text: &str) -> Option<ExprKind> {
    let plain = text.replace('_', "");
    if text.contains(['.', 'e', 'E']) {
        plain.parse().ok().filter(|value: &f64| value.is_finite()).map(ExprKind::Float)
    } else {
        plain.parse().ok().map(ExprKind::Int)
    }
}

/// What is wrong with something that begins like a number.
pub(crate) fn bad_number(text: &str, span: Span) -> Option<Diagnostic> {
    let not_a_number =
        |label: &str| Diagnostic::new(Code::BadNumber, format!("`{text}` is not a number")).primary(span, label);
    let plain = text.replace('_', "");
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let is_number = Grammar::parse(Rule::number, text).is_ok_and(|number| number.as_str().len() == text.len());
    let whole = plain.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = plain.trim_start_matches(|c: char| c.is_ascii_digit());
    Some(if is_number {
        let (what, most) = match number(text) {
            Some(_) => return None,
            None if digits(&plain) => ("integer", format!("the largest is {}", i64::MAX)),
            None => ("number", "the largest is about 1.8e308".to_owned()),
        };
        Diagnostic::new(Code::BadNumber, format!("this {what} is too large")).primary(span, most)
    } else if plain.strip_prefix('.').is_some_and(digits) {
        let fault = not_a_number("a digit must stand before the point");
        fault.patch(span, format!("0{text}"), "add the zero")
    } else if plain.strip_suffix('.').is_some_and(digits) {
        let fault = not_a_number("a digit must stand after the point");
        fault.patch(span, format!("{text}0"), "add the zero")
    } else if digits(whole) && whole.len() + suffix.len() == plain.len() {
        let fault = not_a_number("letters cannot follow a number");
        match suffix {
            "k" | "K" => fault.patch(span, format!("{whole}_000"), "write the number out"),
            "m" | "M" => fault.patch(span, format!("{whole}_000_000"), "write the number out"),
            "e" | "E" => fault.help("an exponent has digits, as in `1e-3`"),
            "x" | "X" => fault.help(format!("a number of experts is written with `*`, as in `{whole} * mlp(...)`")),
            _ if whole == "0" => fault.help("numbers are decimal"),
            _ if !suffix.contains(['e', 'E']) || suffix.len() > 2 => {
                fault.patch(span, format!("{whole} * {suffix}"), "if this is a product, write `*`")
            }
            _ => fault,
        }
    } else {
        not_a_number("").help("numbers are written `128`, `10_000`, `0.1` or `1e-3`")
    })
}

/// The text that a string literal stands for; `None` where an escape is not one of the language.
pub(crate) fn unescape(literal: &str) -> Option<String> {
    let mut rest = literal.strip_prefix('"')?.strip_suffix('"')?;
    let mut text = String::with_capacity(rest.len());
    while let Some(at) = rest.find('\\') {
        let (c, len) = unescape_one(&rest[at..])?;
        text.push_str(&rest[..at]);
        text.push(c);
        rest = &rest[at + len..];
    }
    text.push_str(rest);
    Some(text)
}

/// Where in a closed string the first escape stands that the language does not have.
pub(crate) fn bad_escape(literal: &str) -> Option<std::ops::Range<usize>> {
    let mut from = 0;
    while let Some(i) = literal[from..].find('\\') {
        let at = from + i;
        match unescape_one(&literal[at..]) {
            Some((_, len)) => from = at + len,
            None => return Some(at..at + 1 + literal[at + 1..].chars().next().map_or(0, char::len_utf8)),
        }
    }
    None
}

/// The character that the escape at the start of `text` stands for, and the escape's length.
fn unescape_one(text: &str) -> Option<(char, usize)> {
    let c = match text.as_bytes().get(1)? {
        b'"' => '"',
        b'\\' => '\\',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => {
            let digits = text[2..].strip_prefix('{')?.split_once('}')?.0;
            let valid = (1..=6).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            let value = u32::from_str_radix(digits, 16).ok().filter(|_| valid)?;
            return Some((char::from_u32(value)?, 4 + digits.len()));
        }
        _ => return None,
    };
    Some((c, 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_checked() {
        for good in ["0", "7", "1_000", "1e-3", "1E5", "0.5", "12.5e+10", "9223372036854775807", "1e16", "1_0.0_1e1_0"]
        {
            assert_eq!(bad_number(good, Span::default()), None, "{good}");
        }
        for bad in [".5", "5.", "1.2.3", "5k", "1e", "1e999", "9223372036854775808", "0x10", "1._5", "1e_5", "8mlp"] {
            assert!(bad_number(bad, Span::default()).is_some(), "{bad}");
        }
    }
}

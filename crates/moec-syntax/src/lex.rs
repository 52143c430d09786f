//! A first look at the text, before the grammar: tokens, comments, brackets.
//!
//! The grammar stops at the first fault and recurses with the nesting. This pass does what it cannot: it finds all
//! characters and literals that no grammar rule could take, matches brackets, bounds their depth, and leaves a copy of
//! the text in which such faults are painted over, byte for byte, so that parsing can go on behind them.

use crate::codes::Code;
use crate::diag::Diagnostic;
use crate::source::SourceFile;
use crate::span::Span;

/// How deep brackets may nest. The grammar, the tree and every walk over the tree recurse about this deep.
pub(crate) const MAX_NESTING: usize = 128;

/// No more than this many faults are reported for one file.
pub(crate) const MAX_FAULTS: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenKind {
    Name,
    Number,
    String,
    Symbol,
}

#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) span: Span,
    /// The token that opens the innermost brackets around this one; a bracket is not inside itself.
    pub(crate) parent: Option<usize>,
    /// Of a bracket, the one that it belongs to.
    pub(crate) partner: Option<usize>,
    /// Whether only blanks precede it on its line.
    pub(crate) first_on_line: bool,
}

pub(crate) struct Lexed {
    pub(crate) tokens: Vec<Token>,
    pub(crate) faults: Vec<Diagnostic>,
    /// The text with faults painted over. Offsets are those of the source.
    pub(crate) masked: Vec<u8>,
    /// What was painted over.
    pub(crate) painted: Vec<Span>,
    /// Whether every bracket has its partner and none nests too deep; if not, the grammar is not worth asking.
    pub(crate) balanced: bool,
}

/// Where all comments in `text` are, in order, each without its line break.
pub(crate) fn comments(source: &SourceFile) -> Vec<Span> {
    let text = source.text();
    let bytes = text.as_bytes();
    let mut spans = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = string_end(text, at).unwrap_or_else(|end| end),
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                let end = line_end(bytes, at);
                spans.push(source.span(at..end));
                at = end;
            }
            _ => at += 1,
        }
    }
    spans
}

/// Where the line that `at` lies in ends, before its line break.
fn line_end(bytes: &[u8], at: usize) -> usize {
    let end = bytes[at..].iter().position(|&b| b == b'\n').map_or(bytes.len(), |i| at + i);
    if end > at && bytes[end - 1] == b'\r' { end - 1 } else { end }
}

/// Just past the closing quote of the string that opens at `at`, or the end of its line if there is none.
fn string_end(text: &str, at: usize) -> Result<usize, usize> {
    let bytes = text.as_bytes();
    let mut i = at + 1;
    while i < bytes.len() && bytes[i] != b'\n' {
        match bytes[i] {
            b'"' => return Ok(i + 1),
            b'\\' if bytes.get(i + 1).is_some_and(|&next| next != b'\n') => i += 2,
            _ => i += 1,
        }
    }
    Err(line_end(bytes, at))
}

/// Lexes the text from byte `from` on; what stands before is blank.
pub(crate) fn lex(source: &SourceFile, from: usize) -> Lexed {
    let mut masked = source.text().as_bytes().to_vec();
    masked[..from].fill(b' ');
    let mut lexer = Lexer {
        source,
        text: source.text(),
        at: from,
        open: Vec::new(),
        line_has_token: false,
        mismatched: false,
        misindented: Vec::new(),
        out: Lexed { tokens: Vec::new(), faults: Vec::new(), masked, painted: Vec::new(), balanced: true },
    };
    lexer.run();
    lexer.out
}

struct Lexer<'a> {
    source: &'a SourceFile,
    text: &'a str,
    at: usize,
    /// Token indices of the brackets that are open.
    open: Vec<usize>,
    line_has_token: bool,
    /// Whether a bracket has been reported as not closed.
    mismatched: bool,
    /// Pairs of brackets of which the closing one stands further left than the line of the opening one: suspects when
    /// a closing bracket is missing.
    misindented: Vec<(usize, usize)>,
    out: Lexed,
}

impl Lexer<'_> {
    fn run(&mut self) {
        while self.at < self.text.len() && self.out.faults.len() < MAX_FAULTS {
            let rest = &self.text[self.at..];
            let Some(c) = rest.chars().next() else { break };
            match c {
                '\n' => {
                    self.line_has_token = false;
                    self.at += 1;
                }
                ' ' | '\t' | '\r' => self.at += 1,
                '/' if rest.starts_with("//") => self.at = line_end(self.text.as_bytes(), self.at),
                '"' => self.string(),
                '0'..='9' => self.number(),
                '.' if rest.as_bytes().get(1).is_some_and(u8::is_ascii_digit) => self.number(),
                '{' | '(' | '[' => {
                    if self.open.len() == MAX_NESTING {
                        self.too_deep();
                        return;
                    }
                    let index = self.token(TokenKind::Symbol, 1);
                    self.open.push(index);
                }
                '}' | ')' | ']' => self.close(c),
                _ if c == '_' || c.is_alphabetic() => self.name(),
                _ => self.symbol(c),
            }
        }
        self.report_open();
    }

    /// Adds the token of `len` bytes here and steps over it.
    fn token(&mut self, kind: TokenKind, len: usize) -> usize {
        let span = self.source.span(self.at..self.at + len);
        self.at += len;
        self.out.tokens.push(Token {
            kind,
            span,
            parent: self.open.last().copied(),
            partner: None,
            first_on_line: !self.line_has_token,
        });
        self.line_has_token = true;
        self.out.tokens.len() - 1
    }

    /// Paints over `span`: `lead` first, then `fill`. Line breaks stay.
    fn paint(&mut self, span: Span, lead: u8, fill: u8) {
        for (i, byte) in self.out.masked[span.range()].iter_mut().enumerate() {
            if *byte != b'\n' {
                *byte = if i == 0 { lead } else { fill };
            }
        }
        self.out.painted.push(span);
    }

    fn name(&mut self) {
        let rest = &self.text[self.at..];
        let len = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
        let span = self.source.span(self.at..self.at + len);
        let name = &rest[..len];
        if let Some(bad) = name.chars().find(|c| !c.is_ascii()) {
            self.out.faults.push(
                Diagnostic::new(Code::UnknownCharacter, format!("`{bad}` cannot be part of a name"))
                    .primary(span, "names are made of ASCII letters, digits and `_`"),
            );
            self.paint(span, b'_', b'_');
        }
        self.token(TokenKind::Name, len);
    }

    fn number(&mut self) {
        let bytes = self.text.as_bytes();
        let mut end = self.at;
        while end < bytes.len() {
            let exponent_sign = matches!(bytes[end], b'+' | b'-')
                && end > self.at
                && matches!(bytes[end - 1], b'e' | b'E')
                && bytes.get(end + 1).is_some_and(u8::is_ascii_digit);
            if !(bytes[end].is_ascii_alphanumeric() || matches!(bytes[end], b'.' | b'_') || exponent_sign) {
                break;
            }
            end += 1;
        }
        let span = self.source.span(self.at..end);
        let text = &self.text[span.range()];
        if let Err(fault) = check_number(text, span) {
            self.out.faults.push(*fault);
            self.paint(span, b'0', b' ');
        }
        self.token(TokenKind::Number, span.len());
    }

    fn string(&mut self) {
        match string_end(self.text, self.at) {
            Ok(end) => {
                let span = self.source.span(self.at..end);
                if let Some(escape) = bad_escape(self.text, span) {
                    self.out.faults.push(
                        Diagnostic::new(
                            Code::BadString,
                            format!("`{}` is not an escape", self.source.slice(escape)),
                        )
                        .primary(escape, "unknown escape")
                        .help(r#"the escapes are `\"`, `\\`, `\n`, `\r`, `\t` and `\u{2192}`; write `\\` for a backslash"#),
                    );
                    self.paint(span, b'0', b' ');
                }
                self.token(TokenKind::String, span.len());
            }
            Err(end) => {
                // Closing brackets at the end of the line are more likely code than text.
                let code = self.text[self.at..end].trim_end_matches(['}', ')', ']', ',', ' ', '\t']).len();
                let span = self.source.span(self.at..self.at + code.max(1));
                self.out.faults.push(
                    Diagnostic::new(Code::BadString, "this text in quotes is not closed")
                        .primary(span, "expected `\"` before the end of the line"),
                );
                self.paint(span, b'0', b' ');
                self.token(TokenKind::String, span.len());
            }
        }
    }

    fn symbol(&mut self, c: char) {
        let rest = &self.text[self.at..];
        for symbol in ["||", "&&", "==", "!=", "<=", ">="] {
            if rest.starts_with(symbol) {
                self.token(TokenKind::Symbol, 2);
                return;
            }
        }
        if "=<>+-*/%!,:".contains(c) && !rest.starts_with("/*") {
            self.token(TokenKind::Symbol, 1);
            return;
        }
        self.unknown(c);
    }

    /// Reports a character that the language does not have, and paints it over with the nearest thing that it has.
    fn unknown(&mut self, c: char) {
        let rest = &self.text[self.at..];
        let one = self.source.span(self.at..self.at + c.len_utf8());
        let to_line_end = self.source.span(self.at..line_end(self.text.as_bytes(), self.at));
        let fault = |message: String| Diagnostic::new(Code::UnknownCharacter, message);
        let (span, lead, fault) = match c {
            ';' => (
                one,
                b' ',
                Diagnostic::new(Code::Separator, "unexpected `;`")
                    .primary(one, "statements end with their line, without a mark")
                    .patch(one, "", "remove it"),
            ),
            '#' => (
                to_line_end,
                b' ',
                fault("`#` has no meaning here".to_owned()).primary(one, "comments start with `//`").patch(
                    one,
                    "//",
                    "write the comment with `//`",
                ),
            ),
            '/' => {
                let len = rest.find("*/").map_or(rest.len(), |i| i + 2);
                let start = self.source.span(self.at..self.at + 2);
                let fault = fault("`/*` has no meaning here".to_owned())
                    .primary(start, "comments start with `//` and end with the line");
                (self.source.span(self.at..self.at + len), b' ', fault)
            }
            '\'' | '`' | '\u{201c}' | '\u{201d}' | '\u{2018}' | '\u{2019}' | '\u{201e}' => {
                let line = &self.text[one.end()..to_line_end.end()];
                let close = |q: char| matches!(q, '\'' | '`' | '"' | '\u{201c}' | '\u{201d}' | '\u{2018}' | '\u{2019}');
                let fault = fault(format!("`{c}` has no meaning here"));
                match line.char_indices().find(|&(_, q)| close(q)) {
                    Some((i, q)) => {
                        let span = self.source.span(one.start()..one.end() + i + q.len_utf8());
                        let inner = &line[..i];
                        let fault = fault.primary(span, "text stands in double quotes");
                        (span, b'0', fault.patch(span, format!("{inner:?}"), "use double quotes"))
                    }
                    None => (one, b' ', fault.primary(one, "text stands in double quotes, as in `\"corpus.txt\"`")),
                }
            }
            '&' | '|' => (
                one,
                b'+',
                fault(format!("`{c}` is not an operator")).primary(one, "").patch(
                    one,
                    format!("{c}{c}"),
                    format!("the logical operator is `{c}{c}`"),
                ),
            ),
            '×' | '·' | '∗' => {
                let fault = fault(format!("`{c}` is not an operator")).primary(one, "");
                (one, b'*', fault.patch(one, "*", "multiplication is written `*`"))
            }
            '^' => {
                let fault = fault("`^` is not an operator".to_owned()).primary(one, "");
                (one, b'*', fault.help("the operators are `+ - * / %`; there are no powers"))
            }
            '−' | '–' => {
                let fault = fault(format!("`{c}` is not an operator")).primary(one, "this is not the minus sign");
                (one, b'-', fault.patch(one, "-", "use the minus sign of the keyboard"))
            }
            '.' => {
                // The rest of the path goes with the point.
                let len = rest[1..].find(|c: char| !(c == '_' || c.is_ascii_alphanumeric())).unwrap_or(rest.len() - 1);
                let fault = fault("`.` has no meaning here".to_owned())
                    .primary(one, "")
                    .note("paths such as `train.steps` are for overrides on the command line (`-s train.steps=200`)");
                (self.source.span(one.start()..one.end() + len), b' ', fault)
            }
            _ if c.is_whitespace() || is_invisible(c) => {
                let fault = fault(format!("an invisible character, U+{:04X}", c as u32))
                    .primary(one, "only blanks, tabs and line breaks may stand between words");
                let fault = if c.is_whitespace() {
                    fault.patch(one, " ", "use a blank")
                } else {
                    fault.patch(one, "", "remove it")
                };
                (one, b' ', fault)
            }
            _ if c.is_control() => {
                (one, b' ', fault(format!("a control character, U+{:04X}", c as u32)).primary(one, ""))
            }
            _ => {
                let fault = fault(format!("`{c}` has no meaning here"));
                (one, b' ', fault.primary(one, "only comments and text in quotes may hold this character"))
            }
        };
        self.out.faults.push(fault);
        self.paint(span, lead, b' ');
        if lead == b' ' {
            self.at = span.end();
        } else {
            let kind = if lead == b'0' { TokenKind::String } else { TokenKind::Symbol };
            self.token(kind, span.len());
        }
    }

    fn close(&mut self, c: char) {
        // What is open is inside what a wrong bracket closes, so brackets left open are reported innermost first.
        while let Some(&opener) = self.open.last() {
            let symbol = self.source.slice(self.out.tokens[opener].span);
            if closer_of(symbol) == c {
                break;
            }
            let here = self.source.span(self.at..self.at + 1);
            // Only brackets opened further out can be what this one closes.
            let opened = self.open.iter().any(|&i| closer_of(self.source.slice(self.out.tokens[i].span)) == c);
            if !opened {
                self.unopened(c, here);
                return;
            }
            self.out.balanced = false;
            self.open.pop();
            // Behind one mismatch, further ones are most likely its consequences.
            if !self.mismatched {
                self.mismatched = true;
                let fault = self.unclosed(opener, here, &format!("this `{c}`"));
                self.out.faults.push(fault);
            }
        }
        let here = self.source.span(self.at..self.at + 1);
        let Some(opener) = self.open.pop() else {
            self.unopened(c, here);
            return;
        };
        let index = self.token(TokenKind::Symbol, 1);
        self.out.tokens[index].partner = Some(opener);
        self.out.tokens[opener].partner = Some(index);
        if self.out.tokens[index].first_on_line && self.indent(index) < self.indent(opener) {
            self.misindented.push((opener, index));
        }
    }

    fn unopened(&mut self, c: char, here: Span) {
        if !self.mismatched {
            self.out.faults.push(
                Diagnostic::new(Code::UnopenedBracket, format!("this `{c}` closes nothing"))
                    .primary(here, "no bracket of this kind is open here"),
            );
        }
        // A brace too many has closed something too early; without it the rest of the file cannot be judged.
        self.out.balanced &= c != '}';
        self.paint(here, b' ', b' ');
        self.at += 1;
    }

    /// The column of the first thing on the line of a token, in bytes.
    fn indent(&self, token: usize) -> usize {
        let before = &self.text[..self.out.tokens[token].span.start()];
        let line = &self.text[before.rfind('\n').map_or(0, |i| i + 1)..];
        line.len() - line.trim_start_matches([' ', '\t']).len()
    }

    fn report_open(&mut self) {
        let Some(&innermost) = self.open.last() else { return };
        self.out.balanced = false;
        if self.mismatched || self.at < self.text.len() {
            return;
        }
        let end = self.source.end();
        let fault = self.unclosed(innermost, end, "the end of the file");
        self.out.faults.push(fault);
    }

    /// Reports that `opener` is still open at `end`. If the indentation says that a bracket inside it took the closing
    /// bracket that was meant for it, the inner bracket is named.
    fn unclosed(&self, opener: usize, end: Span, end_words: &str) -> Diagnostic {
        let symbol = self.source.slice(self.out.tokens[opener].span);
        let wanted = closer_of(symbol);
        let fault = Diagnostic::new(Code::UnclosedBracket, format!("this `{symbol}` is not closed"));
        let is_suspect =
            |pair: &&(usize, usize)| pair.0 > opener && self.source.slice(self.out.tokens[pair.0].span) == symbol;
        match self.misindented.iter().find(is_suspect) {
            Some(&(inner, closer)) => fault
                .primary(self.out.tokens[inner].span, format!("by the indentation, its `{wanted}` is missing"))
                .secondary(self.out.tokens[closer].span, format!("this `{wanted}` stands further left"))
                .secondary(self.out.tokens[opener].span, "so this one is left open"),
            None => fault
                .primary(self.out.tokens[opener].span, "opened here")
                .secondary(end, format!("expected `{wanted}` before {end_words}")),
        }
    }

    fn too_deep(&mut self) {
        self.out.balanced = false;
        self.out.faults.push(
            Diagnostic::new(Code::TooDeep, format!("brackets are nested more than {MAX_NESTING} deep"))
                .primary(self.source.span(self.at..self.at + 1), "this one is too deep")
                .help("give a part of it a name with `block` or `let`"),
        );
        self.open.clear();
    }
}

fn closer_of(opener: &str) -> char {
    match opener {
        "{" => '}',
        "(" => ')',
        _ => ']',
    }
}

/// Format characters that editors do not show.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The first escape in a closed string that the language does not have.
fn bad_escape(text: &str, string: Span) -> Option<Span> {
    let inner = &text[string.start() + 1..string.end() - 1];
    let mut from = 0;
    while let Some(i) = inner[from..].find('\\') {
        let at = from + i;
        match unescape_one(&inner[at..]) {
            Some((_, len)) => from = at + len,
            None => {
                let len = inner[at + 1..].chars().next().map_or(1, |c| 1 + c.len_utf8());
                let at = string.start() + 1 + at;
                return Some(Span::new(string.file(), at..at + len));
            }
        }
    }
    None
}

/// The character that the escape at the start of `text` stands for, and the escape's length.
pub(crate) fn unescape_one(text: &str) -> Option<(char, usize)> {
    let simple = |c| Some((c, 2));
    match text.as_bytes().get(1)? {
        b'"' => simple('"'),
        b'\\' => simple('\\'),
        b'n' => simple('\n'),
        b'r' => simple('\r'),
        b't' => simple('\t'),
        b'u' => {
            let digits = text.get(3..).filter(|_| text.as_bytes().get(2) == Some(&b'{'))?;
            let len = digits.find('}').filter(|len| (1..=6).contains(len))?;
            if !digits[..len].bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            let value = u32::from_str_radix(&digits[..len], 16).ok()?;
            Some((char::from_u32(value)?, 3 + len + 1))
        }
        _ => None,
    }
}

/// Whether a number has a fraction or an exponent.
pub(crate) fn is_float(text: &str) -> bool {
    text.contains(['.', 'e', 'E'])
}

fn check_number(text: &str, span: Span) -> Result<(), Box<Diagnostic>> {
    let bad = |message: String| Diagnostic::new(Code::BadNumber, message);
    let plain = text.replace('_', "");
    let mantissa = plain.split(['e', 'E']).next().unwrap_or("");
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let fraction_parts: Vec<&str> = mantissa.split('.').collect();
    let well_formed = match fraction_parts[..] {
        [whole] => digits(whole),
        // `1._5` is not a number either: the grammar wants a digit after the point.
        [whole, fraction] => digits(whole) && digits(fraction) && !text.contains("._"),
        _ => false,
    };
    let exponent_ok = match plain.find(['e', 'E']) {
        Some(i) => {
            let exponent = plain[i + 1..].trim_start_matches(['+', '-']);
            digits(exponent) && !text.contains("e_") && !text.contains("E_")
        }
        None => true,
    };
    let diagnostic = if well_formed && exponent_ok {
        if is_float(&plain) {
            if plain.parse::<f64>().is_ok_and(f64::is_finite) {
                return Ok(());
            }
            bad("this number is too large".to_owned()).primary(span, "the largest is about 1.8e308")
        } else {
            if plain.parse::<i64>().is_ok() {
                return Ok(());
            }
            bad("this integer is too large".to_owned()).primary(span, format!("the largest is {}", i64::MAX))
        }
    } else if plain.starts_with('.') && digits(&plain[1..]) {
        bad(format!("`{text}` is not a number")).primary(span, "a digit must stand before the point").patch(
            span,
            format!("0{text}"),
            "add the zero",
        )
    } else if plain.ends_with('.') && digits(&plain[..plain.len() - 1]) {
        bad(format!("`{text}` is not a number")).primary(span, "a digit must stand after the point").patch(
            span,
            format!("{text}0"),
            "add the zero",
        )
    } else if let [whole, suffix] = [
        plain.trim_end_matches(|c: char| c.is_ascii_alphabetic()),
        plain.trim_start_matches(|c: char| c.is_ascii_digit()),
    ] && digits(whole)
        && whole.len() + suffix.len() == plain.len()
    {
        let diagnostic = bad(format!("`{text}` is not a number")).primary(span, "letters cannot follow a number");
        match suffix {
            "k" | "K" => diagnostic.patch(span, format!("{whole}_000"), "write the number out"),
            "m" | "M" => diagnostic.patch(span, format!("{whole}_000_000"), "write the number out"),
            "e" | "E" => diagnostic.help("an exponent has digits, as in `1e-3`"),
            "x" | "X" => {
                diagnostic.help(format!("a number of experts is written with `*`, as in `{whole} * mlp(...)`"))
            }
            _ if whole == "0" => diagnostic.help("numbers are decimal"),
            _ if !suffix.contains(['e', 'E']) || suffix.len() > 2 => {
                diagnostic.patch(span, format!("{whole} * {suffix}"), "if this is a product, write `*`")
            }
            _ => diagnostic,
        }
    } else {
        bad(format!("`{text}` is not a number"))
            .primary(span, "")
            .help("numbers are written `128`, `10_000`, `0.1` or `1e-3`")
    };
    Err(Box::new(diagnostic))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::span::FileId;

    fn faults(text: &str) -> Vec<String> {
        lex(&SourceFile::new("a.moe", text), 0).faults.iter().map(|fault| fault.message.clone()).collect()
    }

    #[test]
    fn numbers_are_checked() {
        for good in ["0", "7", "1_000", "1e-3", "1E5", "0.5", "12.5e+10", "9223372036854775807", "1e16", "1_0.0_1e1_0"]
        {
            assert!(check_number(good, Span::default()).is_ok(), "{good}");
        }
        for bad in [".5", "5.", "1.2.3", "5k", "1e", "1e999", "9223372036854775808", "0x10", "1._5", "1e_5", "8mlp"] {
            assert!(check_number(bad, Span::default()).is_err(), "{bad}");
        }
    }

    #[test]
    fn brackets_left_open_are_named() {
        assert_eq!(faults("model m {\n  a(\n}\n"), ["this `(` is not closed"]);
        assert_eq!(faults("model m { } }"), ["this `}` closes nothing"]);
        assert_eq!(faults("model m { a(b: [1, 2) }"), ["this `[` is not closed"]);
        let lexed = lex(&SourceFile::new("a.moe", "model m {\n  repeat 2 {\n    mlp\n}\n"), 0);
        assert_eq!(
            lexed.faults[0].span(),
            Some(Span::new(FileId::MAIN, 21..22)),
            "the indentation gives the inner brace away"
        );
    }

    #[test]
    fn comments_are_found_outside_strings_only() {
        let source = SourceFile::new("a.moe", "a // one\r\nb \"x // y\" // two");
        let found: Vec<_> = comments(&source).into_iter().map(|span| source.slice(span)).collect();
        assert_eq!(found, ["// one", "// two"]);
    }

    #[test]
    fn painting_keeps_the_length_and_utf8() {
        for text in ["a × b", "größe “x” ; \u{a0} 'y", "/* x\n → */ a", "# ñ\nb", "\"ñ", "^&|.@"] {
            let lexed = lex(&SourceFile::new("a.moe", text), 0);
            assert_eq!(lexed.masked.len(), text.len());
            assert!(std::str::from_utf8(&lexed.masked).is_ok(), "{text}");
            assert!(!lexed.faults.is_empty(), "{text}");
        }
    }
}

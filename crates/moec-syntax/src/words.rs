//! A first look at a text: its words, whatever they are, and its brackets.
//!
//! The grammar stops at the first fault and recurses with the nesting. This pass does what it cannot: it finds all
//! characters and literals that no statement could hold, matches brackets, bounds their depth, and leaves a copy of the
//! text in which such faults are painted over, byte for byte, so that parsing can go on behind them.

use pest::Parser;
use pest::iterators::Pairs;

use crate::codes::Code;
use crate::diag::{Diagnostic, Patch};
use crate::grammar::{Grammar, Rule, disagree};
use crate::literal::{bad_escape, bad_number};
use crate::source::SourceFile;
use crate::span::Span;

/// How deep brackets may nest. The grammar, the tree and every walk over the tree recurse about this deep.
pub(crate) const MAX_NESTING: usize = 128;

/// No more than this many faults are reported for one file.
pub(crate) const MAX_FAULTS: usize = 20;

/// What a word is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A name or a keyword.
    Name,
    /// A number.
    Number,
    /// Text in quotes.
    String,
    /// An operator, a bracket, a comma, a colon.
    Symbol,
}

/// A word of a text, whatever it means.
#[derive(Clone, Debug)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// Where it stands.
    pub span: Span,
    /// The token that opens the innermost brackets around this one; a bracket is not inside itself.
    pub(crate) parent: Option<usize>,
    /// Of a bracket, the one that it belongs to.
    pub(crate) partner: Option<usize>,
    /// Whether only blanks precede it on its line.
    pub first_on_line: bool,
}

/// The words of a text in order, without its comments. Characters that no word begins with are left out; behind as many
/// faults as are reported there are none.
pub fn tokens(source: &SourceFile) -> Vec<Token> {
    read(source, 0).tokens
}

pub(crate) struct Words {
    pub(crate) tokens: Vec<Token>,
    pub(crate) faults: Vec<Diagnostic>,
    /// The text with faults painted over. Offsets are those of the source.
    pub(crate) masked: String,
    /// What was painted over.
    pub(crate) painted: Vec<Span>,
    /// Whether every bracket has its partner and none nests too deep; if not, the grammar is not worth asking.
    pub(crate) balanced: bool,
}

/// The words and comments of a text from byte `from` on.
fn words(source: &SourceFile, from: usize) -> Pairs<'_, Rule> {
    let words = source.text().get(from..).map(|text| Grammar::parse(Rule::words, text));
    words.and_then(Result::ok).unwrap_or_else(|| disagree("any text is a row of words"))
}

/// Where all comments of a source are, in order, each without its line break.
pub(crate) fn comments(source: &SourceFile) -> Vec<Span> {
    let comments = words(source, 0).flat_map(|words| words.into_inner()).filter(|word| word.as_rule() == Rule::comment);
    let span = |start: usize, text: &str| source.span(start..start + text.strip_suffix('\r').unwrap_or(text).len());
    comments.map(|comment| span(comment.as_span().start(), comment.as_str())).collect()
}

/// Reads the words of a text from byte `from` on; what stands before is blank.
pub(crate) fn read(source: &SourceFile, from: usize) -> Words {
    let mut reader = Reader {
        source,
        open: Vec::new(),
        mismatched: false,
        misindented: Vec::new(),
        out: Words {
            tokens: Vec::new(),
            faults: Vec::new(),
            masked: source.text().to_owned(),
            painted: Vec::new(),
            balanced: true,
        },
    };
    reader.cover(0..from, b' ', b' ');
    for word in words(source, from).flat_map(|words| words.into_inner()) {
        let start = from + word.as_span().start();
        reader.word(word.as_rule(), source.span(start..start + word.as_str().len()));
        if reader.out.faults.len() >= MAX_FAULTS || reader.out.faults.last().is_some_and(|f| f.code == Code::TooDeep) {
            reader.out.balanced &= reader.open.is_empty();
            return reader.out;
        }
    }
    reader.report_open();
    reader.loops();
    reader.out
}

/// A loop as other languages write it.
struct ForeignLoop<'a> {
    /// `for`, `while`, `loop`.
    keyword: &'a str,
    /// From it to what stands before its brace.
    head: Span,
    /// What counts, if something does.
    index: Option<&'a str>,
    /// How often, or whatever else stands in the place of that.
    count: &'a str,
    /// Whether a brace opens its body.
    braced: bool,
}

struct Reader<'a> {
    source: &'a SourceFile,
    /// Token indices of the brackets that are open.
    open: Vec<usize>,
    /// Whether a bracket has been reported as not closed.
    mismatched: bool,
    /// Pairs of brackets of which the closing one stands further left than the line of the opening one: suspects when
    /// a closing bracket is missing.
    misindented: Vec<(usize, usize)>,
    out: Words,
}

impl<'a> Reader<'a> {
    fn word(&mut self, rule: Rule, span: Span) {
        let text = self.source.slice(span);
        match rule {
            Rule::comment | Rule::EOI => {}
            Rule::letters => {
                if let Some(bad) = text.chars().find(|c| !c.is_ascii()) {
                    let message = format!("`{bad}` cannot be part of a name");
                    let fault = Diagnostic::new(Code::UnknownCharacter, message);
                    let fault = fault.primary(span, "names are made of ASCII letters, digits and `_`");
                    self.fault(fault, span, b'_', b'_');
                }
                self.token(TokenKind::Name, span);
            }
            Rule::numeral => {
                if let Some(fault) = bad_number(text, span) {
                    self.fault(fault, span, b'0', b' ');
                }
                self.token(TokenKind::Number, span);
            }
            Rule::quoted => {
                if let Some(at) = bad_escape(text) {
                    let escape = Span::new(span.file(), span.start() + at.start..span.start() + at.end);
                    let message = format!("`{}` is not an escape", &text[at]);
                    let fault = Diagnostic::new(Code::BadString, message).primary(escape, "unknown escape").help(
                        r#"the escapes are `\"`, `\\`, `\n`, `\r`, `\t` and `\u{2192}`; write `\\` for a backslash"#,
                    );
                    self.fault(fault, span, b'0', b' ');
                }
                self.token(TokenKind::String, span);
            }
            Rule::unclosed => {
                // Closing brackets at the end of the line are more likely code than text.
                let code = text.trim_end_matches(['\r', '}', ')', ']', ',', ' ', '\t']);
                let span = span.head(code.len().max(1));
                let fault = Diagnostic::new(Code::BadString, "this text in quotes is not closed");
                let fault = fault.primary(span, "expected `\"` before the end of the line");
                self.fault(fault, span, b'0', b' ');
                self.token(TokenKind::String, span);
                for (at, mark) in text.match_indices(['}', ')', ']', ',']).filter(|(at, _)| *at >= code.len().max(1)) {
                    let rule = if mark == "," { Rule::symbol } else { Rule::closer };
                    let start = span.start() + at;
                    self.word(rule, Span::new(span.file(), start..start + 1));
                }
            }
            Rule::opener if self.open.len() == MAX_NESTING => {
                self.out.balanced = false;
                let fault = Diagnostic::new(Code::TooDeep, format!("brackets are nested more than {MAX_NESTING} deep"))
                    .primary(span, "this one is too deep");
                self.out.faults.push(fault.help("give a part of it a name with `block` or `let`"));
            }
            Rule::opener => {
                let index = self.token(TokenKind::Symbol, span);
                self.open.push(index);
            }
            Rule::closer => self.close(text, span),
            Rule::symbol => {
                self.token(TokenKind::Symbol, span);
            }
            Rule::foreign => self.foreign(text, span),
            other => disagree(&format!("{other:?} is no word")),
        }
    }

    /// Adds a token.
    fn token(&mut self, kind: TokenKind, span: Span) -> usize {
        let last = self.out.tokens.last();
        let gap = last.map(|last| self.source.slice(Span::new(span.file(), last.span.end()..span.start())));
        self.out.tokens.push(Token {
            kind,
            span,
            parent: self.open.last().copied(),
            partner: None,
            first_on_line: gap.is_none_or(|gap| gap.contains('\n')),
        });
        self.out.tokens.len() - 1
    }

    /// Reports a fault and paints over what it is about.
    fn fault(&mut self, fault: Diagnostic, span: Span, lead: u8, fill: u8) {
        self.out.faults.push(fault);
        self.cover(span.range(), lead, fill);
        self.out.painted.push(span);
    }

    /// Writes `lead` and then `fill` over some bytes. Line breaks stay.
    fn cover(&mut self, range: std::ops::Range<usize>, lead: u8, fill: u8) {
        let cover = |(i, byte)| match (byte, i) {
            (b'\n', _) => '\n',
            (_, 0) => char::from(lead),
            _ => char::from(fill),
        };
        let covered: String =
            self.out.masked.as_bytes()[range.clone()].iter().copied().enumerate().map(cover).collect();
        self.out.masked.replace_range(range, &covered);
    }

    /// Reports what the language does not have, and paints it over with the nearest thing that it has.
    fn foreign(&mut self, text: &str, span: Span) {
        let Some(c) = text.chars().next() else { disagree("a word is not empty") };
        let first = span.head(c.len_utf8());
        let fault = |message: String| Diagnostic::new(Code::UnknownCharacter, message);
        let meaningless = fault(format!("`{c}` has no meaning here"));
        let no_operator = || fault(format!("`{c}` is not an operator"));
        let (lead, fault) = match c {
            ';' => {
                let fault = Diagnostic::new(Code::Separator, "unexpected `;`");
                let fault = fault.primary(first, "statements end with their line, without a mark");
                (b' ', fault.patch(first, "", "remove it"))
            }
            '#' => {
                let fault = meaningless.primary(first, "comments start with `//`");
                (b' ', fault.patch(first, "//", "write the comment with `//`"))
            }
            '/' => {
                let fault = fault("`/*` has no meaning here".to_owned());
                (b' ', fault.primary(span.head(2), "comments start with `//` and end with the line"))
            }
            '\'' | '`' | '\u{201c}' | '\u{201d}' | '\u{2018}' | '\u{2019}' | '\u{201e}' => {
                let closed = text[c.len_utf8()..].char_indices().next_back();
                match closed.map(|(end, _)| &text[c.len_utf8()..c.len_utf8() + end]) {
                    Some(inner) => {
                        let fault = meaningless.primary(span, "text stands in double quotes");
                        (b'0', fault.patch(span, format!("{inner:?}"), "use double quotes"))
                    }
                    None => (b' ', meaningless.primary(span, "text stands in double quotes, as in `\"corpus.txt\"`")),
                }
            }
            '&' | '|' => {
                let fault = no_operator().primary(first, "");
                (b'+', fault.patch(first, format!("{c}{c}"), format!("the logical operator is `{c}{c}`")))
            }
            '×' | '·' | '∗' => {
                (b'*', no_operator().primary(first, "").patch(first, "*", "multiplication is written `*`"))
            }
            '^' => (b'*', no_operator().primary(first, "").help("the operators are `+ - * / %`; there are no powers")),
            '−' | '–' => {
                let fault = no_operator().primary(first, "this is not the minus sign");
                (b'-', fault.patch(first, "-", "use the minus sign of the keyboard"))
            }
            '.' => {
                let fault = meaningless.primary(first, "");
                let fault = match self.method(span.start()) {
                    Some(advice) => fault.help(advice),
                    None => fault.note(
                        "paths such as `train.steps` are for overrides on the command line (`-s train.steps=200`)",
                    ),
                };
                (b' ', fault)
            }
            _ if c.is_whitespace() || is_invisible(c) => {
                let fault = fault(format!("an invisible character, U+{:04X}", c as u32))
                    .primary(first, "only blanks, tabs and line breaks may stand between words");
                let (instead, words) = if c.is_whitespace() { (" ", "use a blank") } else { ("", "remove it") };
                (b' ', fault.patch(first, instead, words))
            }
            _ if c.is_control() => (b' ', fault(format!("a control character, U+{:04X}", c as u32)).primary(first, "")),
            _ => (b' ', meaningless.primary(first, "only comments and text in quotes may hold this character")),
        };
        self.fault(fault, span, lead, b' ');
        match lead {
            b' ' => {}
            b'0' => drop(self.token(TokenKind::String, span)),
            _ => drop(self.token(TokenKind::Symbol, span)),
        }
    }

    /// How a call behind the dot at byte `dot` is written, as `sum(v, over: experts)` for `v.sum()`.
    fn method(&self, dot: usize) -> Option<String> {
        let behind = self.source.text().get(dot + 1..)?;
        let name = behind.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next()?;
        let is_call = !name.is_empty() && behind[name.len()..].starts_with('(');
        let value = self.out.tokens.last().filter(|value| value.span.end() == dot)?;
        let value = if value.kind == TokenKind::Name { self.source.slice(value.span) } else { ".." };
        let over = if matches!(name, "sum" | "mean" | "max" | "min") { ", over: experts" } else { "" };
        is_call.then(|| {
            format!("values have no methods; a function takes its value in parentheses: `{name}({value}{over})`")
        })
    }

    fn close(&mut self, closer: &str, span: Span) {
        // What is open is inside what a wrong bracket closes, so brackets left open are reported innermost first.
        while let Some(&opener) = self.open.last() {
            if self.closer_of(opener) == closer {
                break;
            }
            // Only brackets opened further out can be what this one closes.
            if !self.open.iter().any(|&outer| self.closer_of(outer) == closer) {
                break;
            }
            self.out.balanced = false;
            self.open.pop();
            // Behind one mismatch, further ones are most likely its consequences.
            if !self.mismatched {
                self.mismatched = true;
                let fault = self.unclosed(opener, span, &format!("this `{closer}`"));
                self.out.faults.push(fault);
            }
        }
        let Some(opener) =
            self.open.pop_if(|opener| closer_of(self.source.slice(self.out.tokens[*opener].span)) == closer)
        else {
            return self.unopened(closer, span);
        };
        let index = self.token(TokenKind::Symbol, span);
        self.out.tokens[index].partner = Some(opener);
        self.out.tokens[opener].partner = Some(index);
        if self.out.tokens[index].first_on_line && self.indent(index) < self.indent(opener) {
            self.misindented.push((opener, index));
        }
    }

    fn unopened(&mut self, closer: &str, span: Span) {
        // A brace too many has closed something too early; without it the rest of the file cannot be judged.
        self.out.balanced &= closer != "}";
        if self.mismatched {
            self.cover(span.range(), b' ', b' ');
            self.out.painted.push(span);
        } else {
            let fault = match if closer == "}" { self.missing_brace() } else { None } {
                Some(head) => Diagnostic::new(Code::UnopenedBracket, "expected `{` at the end of this line")
                    .primary(head, "the lines below are indented like its body")
                    .secondary(span, "so this `}` closes nothing")
                    .patch(head.after(), " {", "open its body"),
                None => Diagnostic::new(Code::UnopenedBracket, format!("this `{closer}` closes nothing"))
                    .primary(span, "no bracket of this kind is open here"),
            };
            self.fault(fault, span, b' ', b' ');
        }
    }

    /// The first line between braces that opens nothing, and yet is followed by one indented further: its brace was forgotten.
    fn missing_brace(&self) -> Option<Span> {
        let tokens = &self.out.tokens;
        let text = |i: usize| self.source.slice(tokens[i].span);
        let begins: Vec<usize> = (0..tokens.len()).filter(|&i| tokens[i].first_on_line).collect();
        begins.windows(2).find_map(|lines| {
            let [line, next] = *lines else { return None };
            let last = next - 1;
            let in_braces = tokens[next].parent.is_none_or(|open| text(open) == "{");
            let whole = tokens[line].parent == tokens[next].parent && tokens[line].kind == TokenKind::Name;
            let opens = matches!(text(last), "{" | "(" | "[" | ",");
            let deeper = self.indent(next) > self.indent(line) && !matches!(text(next), "}" | "else");
            (in_braces && whole && !opens && deeper).then(|| tokens[line].span.to(tokens[last].span))
        })
    }

    fn closer_of(&self, opener: usize) -> &'static str {
        closer_of(self.source.slice(self.out.tokens[opener].span))
    }

    /// The column of the first thing on the line of a token, in bytes.
    fn indent(&self, token: usize) -> usize {
        let before = &self.source.text()[..self.out.tokens[token].span.start()];
        let line = &self.source.text()[before.rfind('\n').map_or(0, |i| i + 1)..];
        line.len() - line.trim_start_matches([' ', '\t']).len()
    }

    /// Puts loops of other languages right, `for i in 0..4 {`, `for i in range(4):` and `for 4 {`, so that their bodies are
    /// judged; of `while` and `loop` it says what there is instead.
    fn loops(&mut self) {
        for first in 0..self.out.tokens.len() {
            let Some(ForeignLoop { keyword, head, index, count, braced }) = self.foreign_loop(first) else { continue };
            // What is wrong with a range is said with the loop.
            self.out.faults.retain(|fault| fault.span().is_none_or(|at| !head.range().contains(&at.start())));
            let message = format!("there is no `{keyword}`; layers are repeated with `repeat`");
            let (with_index, form) = match index {
                Some(index) => (format!(" as {index}"), "repeat COUNT as INDEX { .. }"),
                None => (String::new(), "repeat COUNT { .. }"),
            };
            let fault = Diagnostic::new(Code::UnexpectedText, message).primary(head, format!("expected `{form}`"));
            if count.parse::<u32>().is_ok() {
                let brace = if braced { "" } else { " {" };
                let fault = fault.patch(head, format!("repeat {count}{with_index}{brace}"), "write `repeat`");
                let fault = if braced { fault } else { fault.help("the layers stand in braces, up to a `}`") };
                let mended = braced && fault.patches.iter().all(|patch| repair(&mut self.out.masked, patch));
                self.out.faults.push(fault);
                if mended {
                    continue;
                }
            } else {
                let advice = match index {
                    Some(_) => "the index counts from 0, as in `repeat 4 as i { .. }`",
                    None => {
                        "how often is a number, as in `repeat 4 { .. }`; `repeat 4 as i { .. }` counts in `i` from 0"
                    }
                };
                self.out.faults.push(fault.help(advice));
            }
            self.cover(head.range(), b' ', b' ');
            self.out.painted.push(head);
        }
    }

    /// The loop that begins with token `first`, if one does.
    fn foreign_loop(&self, first: usize) -> Option<ForeignLoop<'a>> {
        let tokens = &self.out.tokens;
        let text = |i: usize| tokens.get(i).map_or("", |token| self.source.slice(token.span));
        let is = |i: usize, kind: TokenKind| tokens.get(i).is_some_and(|token| token.kind == kind);
        let keyword = text(first);
        if !matches!(keyword, "for" | "while" | "loop") || !is(first, TokenKind::Name) {
            return None;
        }
        let on_line = (first + 1..tokens.len()).take_while(|&i| !tokens[i].first_on_line);
        let last = on_line.take_while(|&i| text(i) != "{").last().unwrap_or(first);
        let braced = text(last + 1) == "{" && !tokens[last + 1].first_on_line;
        let head = tokens[first].span.to(tokens[last].span);
        let behind = |from: usize| match tokens.get(from).filter(|_| from <= last) {
            Some(token) => self.source.slice(token.span.to(tokens[last].span)).trim_end_matches([':', ' ']),
            None => "",
        };
        if keyword == "for" && is(first + 1, TokenKind::Name) && text(first + 2) == "in" && last > first + 2 {
            let range = behind(first + 3);
            let inner = range.strip_prefix("range(").and_then(|range| range.strip_suffix(')')).unwrap_or(range);
            let count = inner.strip_prefix("0..").or_else(|| inner.strip_prefix("0,")).unwrap_or(inner).trim();
            return Some(ForeignLoop { keyword, head, index: Some(text(first + 1)), count, braced });
        }
        // Other words may well be names: a loop begins a statement and opens a body on its line.
        let begins = tokens[first].first_on_line || first > 0 && matches!(text(first - 1), "{" | "}");
        let count = behind(first + 1);
        // Behind `loop`, which may name a block, stands a number or nothing.
        let is_loop = keyword != "loop" || count.is_empty() || last == first + 1 && is(last, TokenKind::Number);
        (begins && braced && is_loop).then_some(ForeignLoop { keyword, head, index: None, count, braced })
    }

    fn report_open(&mut self) {
        let Some(&innermost) = self.open.last() else { return };
        self.out.balanced = false;
        if !self.mismatched {
            let fault = self.unclosed(innermost, self.source.end(), "the end of the file");
            self.out.faults.push(fault);
        }
    }

    /// Reports that `opener` is still open at `end`. If the indentation says that a bracket inside it took the closing
    /// bracket that was meant for it, the inner bracket is named.
    fn unclosed(&self, opener: usize, end: Span, end_words: &str) -> Diagnostic {
        let span = |token: usize| self.out.tokens[token].span;
        let (symbol, wanted) = (self.source.slice(span(opener)), self.closer_of(opener));
        let fault = Diagnostic::new(Code::UnclosedBracket, format!("this `{symbol}` is not closed"));
        let is_suspect = |pair: &&(usize, usize)| pair.0 > opener && self.closer_of(pair.0) == wanted;
        match self.misindented.iter().find(is_suspect) {
            Some(&(inner, closer)) => fault
                .primary(span(inner), format!("by the indentation, its `{wanted}` is missing"))
                .secondary(span(closer), format!("this `{wanted}` stands further left"))
                .secondary(span(opener), "so this one is left open"),
            None => fault
                .primary(span(opener), "opened here")
                .secondary(end, format!("expected `{wanted}` before {end_words}")),
        }
    }
}

/// Applies a proposed change if it fits without moving what follows: then nothing need be given up, and faults in the rest
/// of the statement are found as well. A replacement may use up the blank behind it.
pub(crate) fn repair(text: &mut String, patch: &Patch) -> bool {
    let (start, mut end) = (patch.span.start(), patch.span.end());
    while end - start < patch.replacement.len() {
        match text.as_bytes().get(end) {
            Some(b' ' | b'\t' | b'\r' | b'\n') => end += 1,
            _ => return false,
        }
    }
    let blanks = " ".repeat(end - start - patch.replacement.len());
    text.replace_range(start..end, &(patch.replacement.clone() + &blanks));
    true
}

fn closer_of(opener: &str) -> &'static str {
    match opener {
        "{" => "}",
        "(" => ")",
        _ => "]",
    }
}

/// Format characters that editors do not show.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::span::FileId;

    fn faults(text: &str) -> Vec<String> {
        read(&SourceFile::new("a.moe", text), 0).faults.iter().map(|fault| fault.message.clone()).collect()
    }

    #[test]
    fn brackets_left_open_are_named() {
        assert_eq!(faults("model m {\n  a(\n}\n"), ["this `(` is not closed"]);
        assert_eq!(faults("model m { } }"), ["this `}` closes nothing"]);
        assert_eq!(faults("model m { a(b: [1, 2) }"), ["this `[` is not closed"]);
        let words = read(&SourceFile::new("a.moe", "model m {\n  repeat 2 {\n    mlp\n}\n"), 0);
        let inner = Some(Span::new(FileId::MAIN, 21..22));
        assert_eq!(words.faults[0].span(), inner, "the indentation gives the inner brace away");
    }

    #[test]
    fn comments_are_found_outside_strings_only() {
        let source = SourceFile::new("a.moe", "a // one\r\nb \"x // y\" // two");
        let found: Vec<_> = comments(&source).into_iter().map(|span| source.slice(span)).collect();
        assert_eq!(found, ["// one", "// two"]);
    }

    #[test]
    fn painting_keeps_the_length() {
        for text in ["a × b", "größe “x” ; \u{a0} 'y", "/* x\n → */ a", "# ñ\nb", "\"ñ", "^&|.@"] {
            let words = read(&SourceFile::new("a.moe", text), 0);
            assert_eq!(words.masked.len(), text.len());
            assert!(!words.faults.is_empty(), "{text}");
        }
    }
}

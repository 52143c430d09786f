//! What to say when the grammar cannot go on: the expectation in plain words, and a guess at what was meant.

use crate::codes::Code;
use crate::diag::{Diagnostic, did_you_mean};
use crate::lex::{Token, TokenKind};
use crate::parse::Expected;
use crate::source::{SourceFile, Span};

/// Words that cannot be names.
const RESERVED: [&str; 12] =
    ["model", "block", "train", "let", "repeat", "as", "if", "else", "true", "false", "router", "import"];

/// Where the parser stopped.
pub(crate) struct Context<'a> {
    pub(crate) source: &'a SourceFile,
    pub(crate) tokens: &'a [Token],
    /// The last token that was accepted.
    pub(crate) before: Option<usize>,
    /// The token that was not; `None` at the end of the file.
    pub(crate) found: Option<usize>,
    pub(crate) expected: &'a Expected,
}

impl Context<'_> {
    fn text(&self, token: Option<usize>) -> &str {
        token.map_or("", |i| self.source.slice(self.tokens[i].span))
    }

    fn kind(&self, token: Option<usize>) -> Option<TokenKind> {
        token.map(|i| self.tokens[i].kind)
    }

    fn span(&self, token: Option<usize>) -> Span {
        token.map_or(Span::at(self.source.text().trim_end().len()), |i| self.tokens[i].span)
    }

    fn next(&self, token: Option<usize>) -> Option<usize> {
        token.map(|i| i + 1).filter(|&i| i < self.tokens.len())
    }

    fn previous(&self, token: Option<usize>) -> Option<usize> {
        token.and_then(|i| i.checked_sub(1))
    }

    /// The bracket around the found token: `{`, `(`, `[`, or empty at the top level.
    fn around(&self) -> &str {
        self.text(self.found.and_then(|i| self.tokens[i].parent))
    }

    /// Just behind the last accepted token.
    fn gap(&self) -> Span {
        Span::at(self.before.map_or(0, |i| self.tokens[i].span.end))
    }

    fn on_new_line(&self) -> bool {
        self.found.is_none_or(|i| self.tokens[i].first_on_line)
    }

    /// What was found, in words.
    fn found_words(&self) -> String {
        match self.found {
            None => "the end of the file".to_owned(),
            Some(_) if self.kind(self.found) == Some(TokenKind::String) => "text in quotes".to_owned(),
            Some(_) => format!("`{}`", self.text(self.found)),
        }
    }
}

/// Says what is wrong where the parser stopped.
pub(crate) fn describe(at: &Context<'_>) -> Diagnostic {
    special(at).unwrap_or_else(|| general(at))
}

/// The faults that have a likely cause.
fn special(at: &Context<'_>) -> Option<Diagnostic> {
    let found = at.text(at.found);
    let before = at.text(at.before);
    let span = at.span(at.found);
    let expected = at.expected;
    let found_is_name = at.kind(at.found) == Some(TokenKind::Name);
    let before_is_name = at.kind(at.before) == Some(TokenKind::Name) && !RESERVED.contains(&before);
    let next = at.text(at.next(at.found));

    if matches!(found, "router" | "import") && (expected.item || expected.statement) {
        let what = if found == "router" { "router definitions" } else { "imports" };
        let fault = Diagnostic::new(Code::NotInThisVersion, format!("{what} are not in this version of the language"))
            .primary(span, "");
        return Some(match found {
            "router" => fault.help("choose a routing strategy by its name, as in `route: noisy_top_k(k: 2)`"),
            _ => fault.help("copy what is needed into this file"),
        });
    }

    // A reserved word where a name belongs.
    if expected.name && RESERVED.contains(&found) && matches!(before, "model" | "block" | "let" | "as") {
        return Some(
            Diagnostic::new(Code::ReservedWord, format!("`{found}` is a reserved word"))
                .primary(span, format!("cannot name a {}", named_thing(before)))
                .patch(span, format!("{found}_"), "choose another name"),
        );
    }
    if RESERVED.contains(&found) && next == ":" && at.around() == "(" {
        return Some(
            Diagnostic::new(Code::ReservedWord, format!("`{found}` is a reserved word"))
                .primary(span, "no argument has this name"),
        );
    }
    if expected.name && matches!(before, "model" | "block" | "let" | "as") {
        let thing = named_thing(before);
        let fault =
            Diagnostic::new(Code::MissingName, format!("expected a name after `{before}`, found {}", at.found_words()));
        return Some(match (before, at.kind(at.found)) {
            (_, Some(TokenKind::String)) => {
                let inner = found.trim_matches('"');
                fault.primary(span, "names stand without quotes").patch(span, inner, "remove the quotes")
            }
            _ => fault.primary(
                at.gap_or(span),
                format!("the {thing} needs a name, as in `{before} {}`", example_name(before)),
            ),
        });
    }

    // `context = 32`, `batch: 16`, `let width: 128`.
    if matches!(found, "=" | ":") && before_is_name && at.around() == "{" && !at.on_new_line() {
        let is_let = at.text(at.previous(at.before)) == "let";
        if is_let && found == ":" {
            return Some(Diagnostic::new(Code::SettingForm, "a `let` takes `=`").primary(span, "expected `=`").patch(
                span,
                if is_spaced(at, span) { "=" } else { " =" },
                "write `=`",
            ));
        }
        if expected.value && !is_let {
            let value = at.text(at.next(at.found));
            return Some(
                Diagnostic::new(Code::SettingForm, format!("a setting takes no `{found}`"))
                    .primary(
                        span,
                        format!("settings are written `{before} {}`", if value.is_empty() { "value" } else { value }),
                    )
                    .patch(Span::new(at.gap().start, at.span(at.next(at.found)).start.max(span.end)), " ", "remove it"),
            );
        }
        if found == "=" {
            return Some(
                Diagnostic::new(Code::SettingForm, format!("`{before}` is not a setting"))
                    .primary(span, "unexpected `=`")
                    .secondary(at.span(at.before), "read as a layer")
                    .patch(Span::at(at.span(at.before).start), "let ", "to bind a name, write `let`"),
            );
        }
        return Some(
            Diagnostic::new(Code::SettingForm, format!("`{before}` is not a setting"))
                .primary(span, "unexpected `:`")
                .secondary(at.span(at.before), "read as a layer")
                .help("arguments stand in parentheses, as in `attention(heads: 8)`"),
        );
    }

    // Arguments.
    if found == "=" && at.around() == "(" && before_is_name {
        return Some(
            Diagnostic::new(Code::ArgumentForm, "arguments are written `name: value`")
                .primary(span, "expected `:`")
                .patch(Span::new(at.gap().start, span.end), ":", "write `:`"),
        );
    }
    if matches!(at.around(), "(" | "[") && expected.comma && !matches!(found, ";" | "=") && begins_value(at) {
        let in_call = at.around() == "(";
        let argument_before = matches!(at.text(at.previous(at.before)), "(" | ",") && before_is_name;
        if in_call && argument_before && next != ":" && !at.on_new_line() {
            return Some(
                Diagnostic::new(Code::ArgumentForm, "arguments are written `name: value`")
                    .primary(at.gap(), format!("expected `:` between `{before}` and its value"))
                    .patch(at.gap(), ":", "write `:`"),
            );
        }
        if matches!(found, "and" | "or") || found == "not" {
            return Some(logical_word(found, span));
        }
        let what = if in_call { "arguments" } else { "elements of a list" };
        return Some(
            Diagnostic::new(Code::ArgumentForm, format!("expected `,` between {what}"))
                .primary(at.gap(), "expected `,`")
                .patch(at.gap(), ",", "write `,`"),
        );
    }
    if found == ":" && at.around() == "(" && !before_is_name {
        return Some(
            Diagnostic::new(Code::ArgumentForm, "the name of an argument is a plain name")
                .primary(at.span(at.before), "not a name")
                .help("arguments are written `name: value`, as in `attention(heads: 8)`"),
        );
    }
    if found == "," && at.around() == "(" && expected.argument {
        return Some(
            Diagnostic::new(Code::ArgumentForm, "expected an argument before `,`")
                .primary(span, "expected `name: value`"),
        );
    }

    if matches!(found, "and" | "or" | "not") && !expected.statement {
        return Some(logical_word(found, span));
    }

    // `8 * residual { ... }` and `experts: residual { ... }`.
    if found == "{" && before_is_name && (expected.comma || at.around() == "(" || at.around() == "[") {
        return Some(
            Diagnostic::new(Code::UnexpectedText, format!("as a value, `{before} {{ ... }}` needs braces of its own"))
                .primary(span, "unexpected `{`")
                .help(format!("write it as a sequence of one layer: `{{ {before} {{ ... }} }}`")),
        );
    }

    if expected.else_keyword && !expected.statement && !expected.item {
        return Some(
            Diagnostic::new(Code::IfWithoutElse, "an `if` used as a value needs an `else`")
                .primary(at.gap(), "expected `else { ... }`"),
        );
    }

    if found == "=" && expected.operator && !expected.equals {
        return Some(Diagnostic::new(Code::UnexpectedText, "`=` does not compare").primary(span, "").patch(
            span,
            "==",
            "to compare, write `==`",
        ));
    }

    if found == "," && (expected.statement || expected.train_setting) {
        return Some(
            Diagnostic::new(Code::Separator, "statements are not separated by commas")
                .primary(span, "unexpected `,`")
                .patch(span, "", "remove it"),
        );
    }

    // `block ffn(hidden) { ... }`, `model m(width: 3) { ... }`.
    if found == "(" && expected.open_brace && matches!(at.text(at.previous(at.before)), "model" | "block") {
        let thing = at.text(at.previous(at.before));
        return Some(
            Diagnostic::new(Code::UnexpectedText, format!("a {thing} has no parameters"))
                .primary(span, "expected `{`")
                .help(format!("use `let` in the {thing}")),
        );
    }
    if before == "train" && found_is_name {
        return Some(
            Diagnostic::new(Code::UnexpectedText, "a `train` block has no name").primary(span, "expected `{`").patch(
                span,
                "",
                "remove it",
            ),
        );
    }

    // A misspelt or misplaced start of an item.
    if expected.item && found_is_name {
        let fault =
            Diagnostic::new(Code::UnexpectedText, format!("expected `model`, `block` or `train`, found `{found}`"));
        if matches!(found, "let" | "repeat" | "if") || next == "(" || matches!(found, "context" | "vocab") {
            return Some(fault.primary(span, "this belongs inside `model NAME { ... }`"));
        }
        return Some(match did_you_mean(found, ["model", "block", "train"]) {
            Some(near) => fault.primary(span, "unknown word").patch(span, near, format!("did you mean `{near}`?")),
            None => fault.primary(span, "only these may stand at the top level of a file"),
        });
    }

    if found == "else" && (expected.statement || expected.item) {
        return Some(
            Diagnostic::new(Code::UnexpectedText, "this `else` belongs to no `if`").primary(span, "unexpected `else`"),
        );
    }
    if expected.statement && matches!(found, "model" | "train") {
        return Some(
            Diagnostic::new(
                Code::UnexpectedText,
                format!("`{found}` stands at the top level of a file, not in a body"),
            )
            .primary(span, "unexpected here")
            .help("perhaps a `}` is missing above"),
        );
    }
    if expected.train_setting && RESERVED.contains(&found) {
        return Some(
            Diagnostic::new(Code::UnexpectedText, format!("expected a setting, found `{found}`"))
                .primary(span, "a `train` block holds only settings, such as `steps 1000`"),
        );
    }
    // `layer_norm 32`, `layr 32`: a bare value after what can only be a layer.
    if expected.statement
        && expected.open_paren
        && before_is_name
        && !at.on_new_line()
        && begins_value(at)
        && !found_is_name
    {
        let fault = Diagnostic::new(Code::UnexpectedText, format!("`{before}` takes no bare value"))
            .primary(span, "unexpected value");
        return Some(match did_you_mean(before, ["context", "vocab"]) {
            Some(near) => fault.patch(at.span(at.before), near, format!("did you mean `{near}`?")),
            None => fault.help(format!("arguments stand in parentheses: `{before}(name: {found})`")),
        });
    }
    None
}

fn logical_word(word: &str, span: Span) -> Diagnostic {
    let symbol = match word {
        "and" => "&&",
        "or" => "||",
        _ => "!",
    };
    Diagnostic::new(Code::UnexpectedText, format!("`{word}` is not an operator")).primary(span, "").patch(
        span,
        symbol,
        format!("write `{symbol}`"),
    )
}

/// The expectation alone.
fn general(at: &Context<'_>) -> Diagnostic {
    let expected = at.expected;
    let before = at.text(at.before);
    let found = at.found_words();
    if expected.value || expected.argument {
        let after = if before.is_empty() { String::new() } else { format!(" after `{before}`") };
        let what = if expected.argument { "an argument" } else { "a value" };
        let fault = Diagnostic::new(Code::MissingValue, format!("expected {what}{after}, found {found}"));
        return match before {
            _ if at.on_new_line() && !before.is_empty() => {
                let fault = fault.primary(at.span(at.before), format!("expected {what} after this"));
                match value_hint(before) {
                    Some(hint) => fault.help(hint),
                    None => fault,
                }
            }
            _ => fault.primary(at.span(at.found), format!("expected {what}")),
        };
    }
    let words = expectation_words(at);
    let fault = Diagnostic::new(Code::UnexpectedText, format!("expected {words}, found {found}"));
    if at.on_new_line() && !(expected.statement || expected.train_setting || expected.item) {
        fault.primary(at.gap(), format!("expected {words}"))
    } else {
        fault.primary(at.span(at.found), "unexpected here")
    }
}

fn expectation_words(at: &Context<'_>) -> &'static str {
    let expected = at.expected;
    if expected.item {
        "`model`, `block` or `train`"
    } else if expected.statement {
        "a layer, `let`, `repeat`, `if`, `block` or a setting"
    } else if expected.train_setting {
        "a setting such as `steps 1000`"
    } else if expected.name {
        "a name"
    } else if expected.equals {
        "`=`"
    } else if expected.open_brace && expected.operator {
        "an operator or `{`"
    } else if expected.open_brace {
        "`{`"
    } else if expected.comma && expected.close_paren {
        "`,` or `)`"
    } else if expected.comma {
        "`,` or `]`"
    } else if expected.close_paren {
        "`)`"
    } else if expected.open_paren {
        "`(`"
    } else if expected.colon {
        "`:`"
    } else if expected.operator {
        "an operator or the end of the value"
    } else {
        "something else"
    }
}

/// An example for a setting that was left without a value.
fn value_hint(name: &str) -> Option<&'static str> {
    Some(match name {
        "context" => "give the number of tokens on the same line, as in `context 32`",
        "vocab" => "say how text becomes tokens, as in `vocab characters`",
        "repeat" => "give the number of repetitions, as in `repeat 8 { ... }`",
        "data" => "name the text, as in `data \"corpus.txt\"` or `data synthetic`",
        "optimizer" => "name the optimizer, as in `optimizer adamw(lr: 1e-3)`",
        "evaluate" => "say how often, as in `evaluate(every: 100, batches: 20)`",
        "split" | "batch" | "steps" | "seed" | "clip" | "schedule" | "init" => {
            "the value stands on the same line as the name"
        }
        _ => return None,
    })
}

/// Whether the found token could be the first of a value.
fn begins_value(at: &Context<'_>) -> bool {
    match at.kind(at.found) {
        Some(TokenKind::Name) => !matches!(at.text(at.found), "else" | "as"),
        Some(TokenKind::Number | TokenKind::String) => true,
        Some(TokenKind::Symbol) => matches!(at.text(at.found), "[" | "!"),
        None => false,
    }
}

fn is_spaced(at: &Context<'_>, span: Span) -> bool {
    at.gap().start < span.start
}

fn named_thing(keyword: &str) -> &'static str {
    match keyword {
        "model" => "model",
        "block" => "block",
        "let" => "binding",
        _ => "index",
    }
}

fn example_name(keyword: &str) -> &'static str {
    match keyword {
        "model" => "small",
        "block" => "expert",
        "let" => "width = 128",
        _ => "i",
    }
}

impl Context<'_> {
    /// The found token, or the place behind the last accepted one if the found token is on another line.
    fn gap_or(&self, found: Span) -> Span {
        if self.on_new_line() { self.gap() } else { found }
    }
}

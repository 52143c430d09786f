//! What to say when the grammar cannot go on: the expectation in plain words, and a guess at what was meant.

use pest::Parser;

use crate::codes::Code;
use crate::diag::{Diagnostic, did_you_mean};
use crate::grammar::{Grammar, Rule};
use crate::source::SourceFile;
use crate::span::Span;
use crate::synonyms::meant;
use crate::tree::logical_word;
use crate::words::{Token, TokenKind};

/// What stands at the top level of a file.
const ITEMS: &str = "`model`, `block`, `router`, `train` or `import`";

/// What a value may begin with, and what pest names in place of all of it.
const VALUE: &[Rule] =
    &[Rule::lone_value, Rule::head, Rule::expression, Rule::operand, Rule::unary_operator, Rule::number, Rule::boolean];

/// Whether a word cannot be a name.
fn is_reserved(word: &str) -> bool {
    Grammar::parse(Rule::reserved, word).is_ok()
}

/// Where a step stopped.
pub(crate) struct Stop<'a> {
    pub(crate) source: &'a SourceFile,
    pub(crate) tokens: &'a [Token],
    /// The rule of the step, and its first token.
    pub(crate) step: Rule,
    pub(crate) first: usize,
    /// The last token that was accepted.
    pub(crate) before: Option<usize>,
    /// The token that was not; `None` at the end of the file.
    pub(crate) found: Option<usize>,
    /// What the grammar would have accepted in its place.
    pub(crate) rules: &'a [Rule],
}

impl Stop<'_> {
    fn wants(&self, rule: Rule) -> bool {
        self.rules.contains(&rule)
    }

    /// Whether a step like this one could begin here.
    fn wants_step(&self) -> bool {
        self.wants(Rule::next) || self.found.is_none_or(|found| found <= self.first)
    }

    fn wants_item(&self) -> bool {
        self.step == Rule::item_step && self.wants_step()
    }

    fn wants_statement(&self) -> bool {
        self.step == Rule::statement_step && self.wants_step() || self.wants(Rule::kw_repeat) && !self.in_router()
    }

    fn wants_router_statement(&self) -> bool {
        self.in_router() && self.wants_step()
    }

    fn wants_setting(&self) -> bool {
        self.step == Rule::train_step && self.wants_step()
    }

    /// Whether a statement would have begun here.
    pub(crate) fn begins(&self) -> bool {
        self.wants_item() || self.wants_statement() || self.wants_router_statement() || self.wants_setting()
    }

    fn wants_value(&self) -> bool {
        VALUE.iter().any(|&rule| self.wants(rule))
    }

    fn text(&self, token: Option<usize>) -> &str {
        token.map_or("", |i| self.source.slice(self.tokens[i].span))
    }

    fn kind(&self, token: Option<usize>) -> Option<TokenKind> {
        token.map(|i| self.tokens[i].kind)
    }

    fn span(&self, token: Option<usize>) -> Span {
        token.map_or(self.source.end(), |i| self.tokens[i].span)
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

    fn in_router(&self) -> bool {
        matches!(self.step, Rule::router_step | Rule::loop_step)
    }

    /// Just behind the last accepted token.
    fn gap(&self) -> Span {
        self.before.map_or(self.source.span(0..0), |i| self.tokens[i].span.after())
    }

    fn on_new_line(&self) -> bool {
        self.found.is_none_or(|i| self.tokens[i].first_on_line)
    }

    /// Where something is missing: at the found token, or behind the last accepted one if that is on another line.
    fn here(&self) -> Span {
        if self.on_new_line() { self.gap() } else { self.span(self.found) }
    }

    fn before_is_name(&self) -> bool {
        self.kind(self.before) == Some(TokenKind::Name) && !is_reserved(self.text(self.before))
    }

    /// Whether the found token could be the first of a value.
    fn begins_value(&self) -> bool {
        match self.kind(self.found) {
            Some(TokenKind::Name) => !matches!(self.text(self.found), "else" | "as"),
            Some(TokenKind::Number | TokenKind::String) => true,
            Some(TokenKind::Symbol) => matches!(self.text(self.found), "[" | "!"),
            None => false,
        }
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

/// Says what is wrong where the parser stopped: the first likely cause that fits, or else the expectation alone.
pub(crate) fn describe(at: &Stop<'_>) -> Diagnostic {
    let causes = [bad_name, import_path, parameters, arguments, wrong_sign, values, router, statements, items];
    causes.iter().find_map(|cause| cause(at)).unwrap_or_else(|| general(at))
}

/// A name is missing, in quotes, or a reserved word.
fn bad_name(at: &Stop<'_>) -> Option<Diagnostic> {
    let (found, before, span) = (at.text(at.found), at.text(at.before), at.span(at.found));
    let reserved = || Diagnostic::new(Code::ReservedWord, format!("`{found}` is a reserved word"));
    if is_reserved(found) && at.text(at.next(at.found)) == ":" && at.around() == "(" {
        let meant = meant(found, ["route"]);
        return Some(reserved().primary(span, "no argument has this name").suggest(span, meant));
    }
    let (thing, example) = match before {
        "model" => ("a model", "small"),
        "block" => ("a block", "expert"),
        "let" => ("a binding", "width = 128"),
        "as" => ("an index", "i"),
        "router" => ("a router", "my_top_k"),
        "state" | "table" | "update" | "aux" if at.in_router() => match before {
            "state" => ("a state", "bias = zeros(experts)"),
            "table" => ("a table", "expert_of = balanced"),
            "update" => ("an update", "bias = bias + step"),
            _ => ("a loss", "balance(weight: 0.01) = 0.0"),
        },
        _ => return None,
    };
    if !at.wants(Rule::name) {
        return None;
    }
    if is_reserved(found) && !at.on_new_line() {
        let fault = reserved().primary(span, format!("cannot name {thing}"));
        return Some(fault.patch(span, format!("{found}_"), "choose another name"));
    }
    let message = format!("expected a name after `{before}`, found {}", at.found_words());
    let fault = Diagnostic::new(Code::MissingName, message);
    if at.kind(at.found) == Some(TokenKind::String) {
        let fault = fault.primary(span, "names stand without quotes");
        return Some(fault.patch(span, found.trim_matches('"'), "remove the quotes"));
    }
    Some(fault.primary(at.here(), format!("{thing} needs a name, as in `{before} {example}`")))
}

/// `import other`, `import other.moe`.
fn import_path(at: &Stop<'_>) -> Option<Diagnostic> {
    if at.text(at.before) != "import" || !at.wants(Rule::string) || at.wants_value() {
        return None;
    }
    let message = format!("expected a path in quotes after `import`, found {}", at.found_words());
    let fault = Diagnostic::new(Code::MissingValue, message);
    if at.kind(at.found) == Some(TokenKind::Name) && !at.on_new_line() {
        let (found, span) = (at.text(at.found), at.span(at.found));
        let fault = fault.primary(span, "a path stands in quotes");
        return Some(fault.help(format!("write `import \"{found}.moe\"`")));
    }
    Some(fault.primary(at.here(), "expected a path, as in `import \"other.moe\"`"))
}

/// What stands between the parentheses of a block or a router.
fn parameters(at: &Stop<'_>) -> Option<Diagnostic> {
    let (found, before, span) = (at.text(at.found), at.text(at.before), at.span(at.found));
    // A closing bracket is not inside the brackets that it closes.
    let open = at.found.and_then(|i| if found == ")" { at.tokens[i].partner } else { at.tokens[i].parent })?;
    let keyword = open.checked_sub(2)?;
    let of = at.text(Some(keyword));
    if at.text(Some(open)) != "(" || !(of == "block" || of == "router" && at.tokens[keyword].parent.is_none()) {
        return None;
    }
    let fault = |message: &str| Diagnostic::new(Code::ParameterForm, message);
    let form = "a parameter is written `name: type`";
    let example = match of {
        "block" => "for example `block expert(hidden: int, rate: float = 0.1) { .. }`",
        _ => "for example `router my_top_k(k: int, scale: float = 1.0) { .. }`",
    };
    if at.wants(Rule::colon) && found == "=" {
        let fault = fault(form).primary(span, "expected `:` and a type");
        return Some(fault.help("the default comes behind the type").help(example));
    }
    if at.wants(Rule::colon) {
        let label = format!("expected `:` and the type of `{before}`");
        return Some(fault(form).primary(at.gap(), label).help(example));
    }
    if before == ":" && at.wants(Rule::name) {
        let words = format!("expected a type after `:`, found {}", at.found_words());
        return Some(fault(&words).primary(at.here(), "expected `int`, `float` or `bool`"));
    }
    if at.wants(Rule::equals) && found == ":" {
        return Some(fault(form).primary(span, "a default stands behind `=`").patch(span, " =", "write `=`"));
    }
    if matches!(before, "(" | ",") {
        let words = format!("expected a parameter, found {}", at.found_words());
        return Some(fault(&words).primary(at.here(), "expected `name: type`").help(example));
    }
    if at.wants(Rule::comma) && at.kind(at.found) == Some(TokenKind::Name) {
        let fault = fault("expected `,` between parameters").primary(at.gap(), "expected `,`");
        return Some(fault.patch(at.gap(), ",", "write `,`"));
    }
    None
}

/// `context = 32`, `batch: 16`, `let width: 128`, `if a = 3`.
fn wrong_sign(at: &Stop<'_>) -> Option<Diagnostic> {
    let (found, before, span) = (at.text(at.found), at.text(at.before), at.span(at.found));
    if found == "=" && at.wants(Rule::binary_operator) && !at.wants_statement() {
        let fault = Diagnostic::new(Code::UnexpectedText, "`=` does not compare").primary(span, "");
        return Some(fault.patch(span, "==", "to compare, write `==`"));
    }
    // What gives a name another value has no keyword.
    if at.step == Rule::loop_step && at.before == Some(at.first) {
        return None;
    }
    let ahead = at.previous(at.before);
    let keyword = at.text(ahead);
    let is_let = keyword == "let" || at.in_router() && matches!(keyword, "state" | "table" | "update" | "aux");
    let begins = is_let || at.text(ahead) == "{" || at.before.is_some_and(|i| at.tokens[i].first_on_line);
    if !matches!(found, "=" | ":") || !at.before_is_name() || !begins || at.around() != "{" || at.on_new_line() {
        return None;
    }
    if is_let {
        let article = if matches!(keyword, "update" | "aux") { "an" } else { "a" };
        let message = format!("{article} `{keyword}` takes `=`");
        let fault = Diagnostic::new(Code::SettingForm, message).primary(span, "expected `=`");
        let spaced = at.gap().start() < span.start();
        return Some(fault.patch(span, if spaced { "=" } else { " =" }, "write `=`"));
    }
    if at.wants_value() {
        let value = Some(at.text(at.next(at.found))).filter(|value| !value.is_empty()).unwrap_or("value");
        let to_value = at.gap().to(at.span(at.next(at.found)).before()).to(span);
        return Some(
            Diagnostic::new(Code::SettingForm, format!("a setting takes no `{found}`"))
                .primary(span, format!("settings are written `{before} {value}`"))
                .patch(to_value, " ", "remove it"),
        );
    }
    let fault = Diagnostic::new(Code::SettingForm, format!("`{before}` is not a setting"))
        .primary(span, format!("unexpected `{found}`"))
        .secondary(at.span(at.before), "read as a layer");
    Some(match found {
        "=" => fault.patch(at.span(at.before).before(), "let ", "to bind a name, write `let`"),
        _ => fault.help("arguments stand in parentheses, as in `attention(heads: 8)`"),
    })
}

/// What stands between parentheses or in a list.
fn arguments(at: &Stop<'_>) -> Option<Diagnostic> {
    let (found, before, span) = (at.text(at.found), at.text(at.before), at.span(at.found));
    let in_call = at.around() == "(";
    if !in_call && at.around() != "[" {
        return None;
    }
    let fault = |message: &str| Diagnostic::new(Code::ArgumentForm, message);
    let form = "arguments are written `name: value`";
    let may_be_name = at.before_is_name() && matches!(at.text(at.previous(at.before)), "(" | ",");
    if in_call && found == "=" && may_be_name {
        let sign = at.gap().to(span);
        return Some(fault(form).primary(span, "expected `:`").patch(sign, ":", "write `:`"));
    }
    if in_call && found == ":" && !at.before_is_name() {
        return Some(
            fault("the name of an argument is a plain name")
                .primary(at.span(at.before), "not a name")
                .help("arguments are written `name: value`, as in `attention(heads: 8)`"),
        );
    }
    if in_call && found == "," && at.wants(Rule::argument) {
        return Some(fault("expected an argument before `,`").primary(span, "expected `name: value`"));
    }
    if !at.wants(Rule::comma) || !at.begins_value() {
        return None;
    }
    if let Some(fault) = logical_word(found, span) {
        return Some(fault);
    }
    if in_call && may_be_name && at.text(at.next(at.found)) != ":" && !at.on_new_line() {
        let label = format!("expected `:` between `{before}` and its value");
        return Some(fault(form).primary(at.gap(), label).patch(at.gap(), ":", "write `:`"));
    }
    let what = if in_call { "arguments" } else { "elements of a list" };
    let fault = fault(&format!("expected `,` between {what}")).primary(at.gap(), "expected `,`");
    Some(fault.patch(at.gap(), ",", "write `,`"))
}

/// What goes wrong inside an expression.
fn values(at: &Stop<'_>) -> Option<Diagnostic> {
    let (found, before, span) = (at.text(at.found), at.text(at.before), at.span(at.found));
    if at.wants_statement() || at.wants_item() {
        return None;
    }
    if let Some(fault) = logical_word(found, span) {
        return Some(fault);
    }
    if before == "not" && at.begins_value() {
        return logical_word(before, at.span(at.before));
    }
    if found == "{" && at.before_is_name() && (at.wants(Rule::comma) || matches!(at.around(), "(" | "[")) {
        return Some(
            Diagnostic::new(Code::UnexpectedText, format!("as a value, `{before} {{ ... }}` needs braces of its own"))
                .primary(span, "unexpected `{`")
                .help(format!("write it as a sequence of one layer: `{{ {before} {{ ... }} }}`")),
        );
    }
    if at.wants(Rule::kw_else) {
        return Some(
            Diagnostic::new(Code::IfWithoutElse, "an `if` used as a value needs an `else`")
                .primary(at.gap(), "expected `else { ... }`"),
        );
    }
    None
}

/// What goes wrong between the statements of a router.
fn router(at: &Stop<'_>) -> Option<Diagnostic> {
    let (found, span) = (at.text(at.found), at.span(at.found));
    let fault = |message: String| Diagnostic::new(Code::UnexpectedText, message);
    if at.wants(Rule::open_brace) && at.text(Some(at.first)) == "router" {
        return Some(
            fault(format!("expected `{{`, found {}", at.found_words()))
                .primary(at.here(), "expected a body: `{ ... }`"),
        );
    }
    if at.in_router() && at.wants(Rule::open_brace) && found == "as" {
        let whole = at.gap().to(at.span(at.next(at.found)));
        let fault = fault("the rounds of a `repeat` in a router have no number".to_owned());
        return Some(fault.primary(span, "expected `{`").patch(whole, "", "remove it"));
    }
    let in_loop = at.step == Rule::loop_step;
    let expected = if in_loop {
        "a `repeat` holds `let`, `NAME = ..` and `repeat`"
    } else {
        "a router holds `let`, `state`, `table`, `repeat`, `update`, `aux` and `return`"
    };
    if in_loop && at.wants(Rule::equals) && at.before == Some(at.first) {
        let (name, of_name) = (at.text(at.before), at.span(at.before));
        if found == ":" {
            let fault = Diagnostic::new(Code::SettingForm, "a name is given a value with `=`");
            return Some(fault.primary(span, "expected `=`").patch(span, "=", "write `=`"));
        }
        let fault = fault(format!("expected a statement, found `{name}`")).primary(of_name, expected);
        return Some(match did_you_mean(name, ["let", "repeat"]) {
            Some(near) => fault.patch(of_name, near, format!("did you mean `{near}`?")),
            None => fault.help(format!("`{name} = ..` gives a name another value")),
        });
    }
    if !at.wants_router_statement() {
        return None;
    }
    if found == "," {
        return Some(
            Diagnostic::new(Code::Separator, "statements are not separated by commas")
                .primary(span, "unexpected `,`")
                .patch(span, "", "remove it"),
        );
    }
    if found == "if" {
        let example = "let scores = if training { noisy } else { clean }";
        let fault = fault(format!("`{found}` is no statement of a router")).primary(span, expected);
        return Some(fault.help(format!("choose between values, as in `{example}`")));
    }
    let next = at.text(at.next(at.found));
    let keywords = ["let", "state", "table", "repeat", "update", "aux", "return"];
    let fault = fault(format!("expected a statement, found {}", at.found_words()));
    if at.kind(at.found) != Some(TokenKind::Name) || is_reserved(found) {
        return Some(fault.primary(span, expected));
    }
    if matches!(next, "=" | ",") {
        let fault = fault.primary(span, "a binding begins with `let`");
        return Some(fault.patch(span.before(), "let ", "to bind a name, write `let`"));
    }
    if let Some(near) = did_you_mean(found, keywords) {
        return Some(fault.primary(span, expected).patch(span, near, format!("did you mean `{near}`?")));
    }
    if matches!(found, "token_choice" | "dense_gates") {
        let fault = fault.primary(span, "what a router gives stands behind `return`");
        return Some(fault.patch(span.before(), "return ", "write `return`"));
    }
    Some(fault.primary(span, expected))
}

/// What goes wrong between the statements of a body, or in their heads.
fn statements(at: &Stop<'_>) -> Option<Diagnostic> {
    let (found, before, span) = (at.text(at.found), at.text(at.before), at.span(at.found));
    let found_is_name = at.kind(at.found) == Some(TokenKind::Name) && !is_reserved(found);
    let ahead = at.text(at.previous(at.before));
    let fault = |message: String| Diagnostic::new(Code::UnexpectedText, message);
    if found == "," && (at.wants_statement() || at.wants_setting()) {
        return Some(
            Diagnostic::new(Code::Separator, "statements are not separated by commas")
                .primary(span, "unexpected `,`")
                .patch(span, "", "remove it"),
        );
    }
    if found == "(" && at.wants(Rule::open_brace) && ahead == "model" {
        let fault = fault("a model has no parameters".to_owned()).primary(span, "expected `{`");
        return Some(fault.help("use `let` in the model"));
    }
    if before == "train" && at.kind(at.found) == Some(TokenKind::Name) {
        let fault = fault("a `train` block has no name".to_owned()).primary(span, "expected `{`");
        return Some(fault.patch(at.gap().to(span), "", "remove it"));
    }
    // `repeat i in 8 { ... }`, `repeat 8 i { ... }`, and a count or condition without a body.
    if at.wants(Rule::open_brace) && at.wants(Rule::binary_operator) && !at.wants_statement() {
        let fault = fault(format!("expected `{{`, found {}", at.found_words()));
        if found == "in" {
            let fault = fault.primary(span, "unexpected `in`");
            return Some(fault.help("the count comes first, as in `repeat 8 as i { ... }`"));
        }
        if ahead == "repeat" && found_is_name && at.text(at.next(at.found)) == "{" {
            let fault = fault.primary(span, "an index follows `as`");
            return Some(fault.patch(span.before(), "as ", "write `as`"));
        }
        return Some(fault.primary(at.here(), "expected a body: `{ ... }`"));
    }
    if found == "else" && (at.wants_statement() || at.wants_item()) {
        return Some(fault("this `else` belongs to no `if`".to_owned()).primary(span, "unexpected `else`"));
    }
    if (at.wants_statement() || at.wants_router_statement()) && matches!(found, "model" | "train" | "router" | "import")
    {
        return Some(
            fault(format!("`{found}` stands at the top level of a file, not in a body"))
                .primary(span, "unexpected here")
                .help("perhaps a `}` is missing above"),
        );
    }
    if at.wants_setting() && is_reserved(found) {
        return Some(
            fault(format!("expected a setting, found `{found}`"))
                .primary(span, "a `train` block holds only settings, such as `steps 1000`"),
        );
    }
    // `dropout 0.1`, `contxt 32`: a bare value after what can only be a layer.
    if at.wants_statement() && at.before_is_name() && !at.on_new_line() && at.begins_value() {
        let fault = fault(format!("`{before}` takes no bare value")).primary(span, "unexpected value");
        return Some(match meant(before, ["context", "vocab"]) {
            Some(likely) => fault.suggest(at.span(at.before), Some(likely)),
            None => fault.help(format!("arguments stand in parentheses: `{before}(name: {found})`")),
        });
    }
    None
}

/// A misspelt or misplaced start of an item.
fn items(at: &Stop<'_>) -> Option<Diagnostic> {
    let (found, span) = (at.text(at.found), at.span(at.found));
    if !at.wants_item() || at.kind(at.found) != Some(TokenKind::Name) {
        return None;
    }
    let message = format!("expected {ITEMS}, found `{found}`");
    let fault = Diagnostic::new(Code::UnexpectedText, message);
    let statement = matches!(found, "let" | "repeat" | "if" | "context" | "vocab");
    Some(if statement || at.text(at.next(at.found)) == "(" {
        fault.primary(span, "this belongs inside `model NAME { ... }`")
    } else if let Some(near) = did_you_mean(found, ["model", "block", "train", "router", "import"]) {
        fault.primary(span, "unknown word").patch(span, near, format!("did you mean `{near}`?"))
    } else {
        fault.primary(span, "only these may stand at the top level of a file")
    })
}

/// The expectation alone.
fn general(at: &Stop<'_>) -> Diagnostic {
    let before = at.text(at.before);
    let found = at.found_words();
    if at.wants_value() || at.wants(Rule::argument) {
        let what = if at.wants(Rule::argument) { "an argument" } else { "a value" };
        let after = if before.is_empty() { String::new() } else { format!(" after `{before}`") };
        let fault = Diagnostic::new(Code::MissingValue, format!("expected {what}{after}, found {found}"));
        let fault = match at.before {
            Some(i) if at.on_new_line() => fault.primary(at.tokens[i].span, format!("expected {what} after this")),
            _ => fault.primary(at.span(at.found), format!("expected {what}")),
        };
        return match value_hint(before) {
            Some(hint) => fault.help(hint),
            None => fault,
        };
    }
    let words = expectation_words(at);
    let fault = Diagnostic::new(Code::UnexpectedText, format!("expected {words}, found {found}"));
    if at.wants_statement() || at.wants_setting() || at.wants_router_statement() || at.wants_item() {
        fault.primary(at.span(at.found), "unexpected here")
    } else {
        fault.primary(at.here(), format!("expected {words}"))
    }
}

fn expectation_words(at: &Stop<'_>) -> &'static str {
    if at.wants_item() {
        ITEMS
    } else if at.wants_statement() {
        "a layer, `let`, `repeat`, `if`, `block` or a setting"
    } else if at.wants_router_statement() {
        "`let`, `state`, `update`, `aux` or `return`"
    } else if at.wants_setting() {
        "a setting such as `steps 1000`"
    } else if at.wants(Rule::name) {
        "a name"
    } else if at.wants(Rule::equals) {
        "`=`"
    } else if at.wants(Rule::open_brace) {
        "`{`"
    } else if at.wants(Rule::comma) && at.wants(Rule::close_paren) {
        "`,` or `)`"
    } else if at.wants(Rule::comma) {
        "`,` or `]`"
    } else if at.wants(Rule::close_paren) {
        "`)`"
    } else if at.wants(Rule::open_paren) {
        "`(`"
    } else if at.wants(Rule::colon) {
        "`:`"
    } else if at.wants(Rule::binary_operator) {
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

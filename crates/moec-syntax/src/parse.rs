//! Text to syntax tree. The only place that knows pest.
//!
//! pest stops at the first fault, so a file with several is parsed several times: each fault is reported in our own
//! words, the statement around it is painted over, and what is left is parsed again.

use pest::Parser;
use pest::error::{ErrorVariant, InputLocation};
use pest::iterators::{Pair, Pairs};

use crate::ast::*;
use crate::codes::Code;
use crate::diag::{Diagnostic, Patch};
use crate::expect::{self, Context};
use crate::lex::{self, Lexed, MAX_FAULTS};
use crate::source::{MAX_SOURCE_BYTES, SourceFile, too_large};
use crate::span::{FileId, Span};

/// pest derives a public type with public rules; the module keeps both inside the crate.
mod grammar {
    /// The parser that pest derives from the grammar.
    #[derive(pest_derive::Parser)]
    #[grammar = "moec.pest"]
    pub(crate) struct Grammar;
}
use grammar::{Grammar, Rule};

/// How high expressions may be, counted through everything they contain. A chain (`1 + 1 + 1 + ...`) is as high as it
/// has operators, since it leans to the left.
const MAX_HEIGHT: usize = 256;

/// Parses a file without what it imports.
pub(crate) fn parse_alone(source: &SourceFile) -> Result<Vec<Item>, Vec<Diagnostic>> {
    parse_rule(source, 0, Rule::file, |builder, pairs| Some(builder.items(pairs)))
}

/// Parses the one value that a text holds from byte `from` on, as on the right of `-s width=64`.
///
/// # Errors
/// As [`parse`](crate::parse()).
pub fn parse_value(source: &SourceFile, from: usize) -> Result<Expr, Vec<Diagnostic>> {
    parse_rule(source, from, Rule::lone_value, |builder, mut pairs| {
        let expression = pairs.next()?.into_inner().next()?;
        Some(builder.expression(expression))
    })
}

/// Parses the text from byte `from` on as `rule`, painting over one fault after the other until the grammar takes what is left; the tree is
/// returned if there was none.
fn parse_rule<T>(
    source: &SourceFile,
    from: usize,
    rule: Rule,
    build: impl FnOnce(&mut Builder, Pairs<'_, Rule>) -> Option<T>,
) -> Result<T, Vec<Diagnostic>> {
    let size = source.text().len();
    if size > MAX_SOURCE_BYTES {
        return Err(vec![too_large(source.name(), size)]);
    }
    let mut lexed = lex::lex(source, from);
    let mut faults = std::mem::take(&mut lexed.faults);
    let (mut tree, mut built) = (None, Vec::new());
    if lexed.balanced && faults.len() < MAX_FAULTS {
        let mut recovery = Recovery { alive: vec![true; lexed.tokens.len()], lexed, last: None };
        // Painting can need several rounds for one fault, as it widens from the statement outwards.
        for _ in 0..MAX_FAULTS * 4 {
            let text = String::from_utf8_lossy(&recovery.lexed.masked).into_owned();
            let error = match Grammar::parse(rule, &text) {
                Ok(pairs) => {
                    let token_ends = recovery.lexed.tokens.iter().map(|token| token.span.end()).collect();
                    let mut builder = Builder { faults: Vec::new(), height: 0, token_ends, file: source.id() };
                    tree = build(&mut builder, pairs);
                    built = builder.faults;
                    break;
                }
                Err(error) => error,
            };
            let at = match error.location {
                InputLocation::Pos(at) | InputLocation::Span((at, _)) => at,
            };
            let expected = match &error.variant {
                ErrorVariant::ParsingError { positives, .. } => Expected::from_rules(positives),
                // pest's own limits; nesting is bounded before, so this needs no words of its own.
                ErrorVariant::CustomError { .. } => Expected::default(),
            };
            let (fault, goes_on) = recovery.step(source, at, expected);
            faults.extend(fault);
            if !goes_on || faults.len() >= MAX_FAULTS {
                break;
            }
        }
    }
    faults.append(&mut built);
    match tree {
        Some(tree) if faults.is_empty() => Ok(tree),
        _ => {
            faults.sort_by_key(|fault| fault.span().map(Span::before));
            faults.truncate(MAX_FAULTS);
            Err(faults)
        }
    }
}

/// What the grammar would have accepted, in the terms in which messages speak of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Expected {
    pub(crate) item: bool,
    pub(crate) statement: bool,
    pub(crate) train_setting: bool,
    pub(crate) router_statement: bool,
    pub(crate) text: bool,
    pub(crate) value: bool,
    pub(crate) operator: bool,
    pub(crate) argument: bool,
    pub(crate) name: bool,
    pub(crate) open_brace: bool,
    pub(crate) open_paren: bool,
    pub(crate) close_paren: bool,
    pub(crate) comma: bool,
    pub(crate) colon: bool,
    pub(crate) equals: bool,
    pub(crate) else_keyword: bool,
}

impl Expected {
    fn from_rules(rules: &[Rule]) -> Self {
        let mut expected = Expected::default();
        for rule in rules {
            match rule {
                // At the very start, pest names the whole instead of its parts.
                Rule::file | Rule::model | Rule::kw_model | Rule::train | Rule::kw_train | Rule::import => {
                    expected.item = true;
                }
                Rule::binding | Rule::kw_let | Rule::repeat | Rule::kw_repeat | Rule::layer | Rule::setting => {
                    expected.statement = true;
                }
                Rule::train_setting => expected.train_setting = true,
                Rule::router_let | Rule::router_state | Rule::router_return | Rule::kw_return => {
                    expected.router_statement = true;
                }
                Rule::string => expected.text = true,
                Rule::expression
                | Rule::operand
                | Rule::number
                | Rule::boolean
                | Rule::list
                | Rule::group
                | Rule::choice_value
                | Rule::head
                | Rule::lone_value
                | Rule::unary_operator => expected.value = true,
                Rule::binary_operator => expected.operator = true,
                Rule::argument => expected.argument = true,
                Rule::name => expected.name = true,
                Rule::open_brace | Rule::body | Rule::branch | Rule::train_body | Rule::router_body => {
                    expected.open_brace = true;
                }
                Rule::open_paren | Rule::arguments | Rule::parameters => expected.open_paren = true,
                Rule::close_paren => expected.close_paren = true,
                Rule::comma => expected.comma = true,
                Rule::colon => expected.colon = true,
                Rule::equals => expected.equals = true,
                Rule::kw_else => expected.else_keyword = true,
                // Parts of the above, or never what a message should propose.
                Rule::EOI
                | Rule::item
                | Rule::block
                | Rule::kw_block
                | Rule::router
                | Rule::kw_router
                | Rule::kw_import
                | Rule::router_statement
                | Rule::parameter
                | Rule::router_update
                | Rule::router_aux
                | Rule::kw_state
                | Rule::kw_update
                | Rule::kw_aux
                | Rule::statement
                | Rule::choice
                | Rule::kw_if
                | Rule::kw_as
                | Rule::setting_name
                | Rule::call
                | Rule::primary
                | Rule::sequence
                | Rule::escape
                | Rule::digits
                | Rule::name_start
                | Rule::name_char
                | Rule::reserved
                | Rule::close_brace
                | Rule::open_bracket
                | Rule::close_bracket
                | Rule::blank
                | Rule::WHITESPACE
                | Rule::COMMENT => {}
            }
        }
        expected
    }
}

struct Recovery {
    lexed: Lexed,
    /// Which tokens have not been painted over.
    alive: Vec<bool>,
    /// The gap in which parsing stopped the last time.
    last: Option<Span>,
}

impl Recovery {
    /// Reports the fault at byte `at`, unless it only follows from an earlier one, and puts it out of the way. The
    /// second result is false where nothing is left to put out of the way.
    fn step(&mut self, source: &SourceFile, at: usize, mut expected: Expected) -> (Option<Diagnostic>, bool) {
        let tokens = &self.lexed.tokens;
        let split = tokens.partition_point(|token| token.span.end() <= at);
        let found = (split..tokens.len()).find(|&i| self.alive[i]);
        let before = (0..split).rev().find(|&i| self.alive[i]);
        // In a `train` block pest names the first part of a setting instead of the setting.
        let brace = found.and_then(|i| tokens[i].parent);
        if let Some(keyword) = brace.and_then(|i| i.checked_sub(1)) {
            expected.train_setting |= expected.name && source.slice(tokens[keyword].span) == "train";
        }
        // Text is a value like others, except where nothing else may stand.
        expected.text &= !expected.value;
        let end = source.text().len();
        let gap =
            source.span(before.map_or(0, |i| tokens[i].span.end())..found.map_or(end, |i| tokens[i].span.start()));
        let around =
            source.span(before.map_or(0, |i| tokens[i].span.start())..found.map_or(end, |i| tokens[i].span.end()));
        let stuck = self.last.replace(gap) == Some(gap);
        let begins_anew = expected.statement || expected.train_setting || expected.router_statement || expected.item;
        // Behind a statement that was painted over, the next one is judged for itself, unless it continues it.
        let painted =
            |part: Span| self.lexed.painted.iter().any(|span| span.start() < part.end() && part.start() < span.end());
        let independent = begins_anew
            && found
                .map(|i| &tokens[i])
                .is_some_and(|token| token.first_on_line && source.slice(token.span) != "else" && !painted(token.span));
        let follows = stuck || !independent && painted(around);
        let fault =
            (!follows).then(|| expect::describe(&Context { source, tokens, before, found, expected: &expected }));

        if let Some(patch) = fault.as_ref().and_then(|fault| fault.patches.first())
            && self.repair(patch)
        {
            return (fault, true);
        }
        // An unfinished statement is the fault of what came before, anything else of what was found.
        let tokens = &self.lexed.tokens;
        let unfinished =
            found.is_none_or(|i| tokens[i].first_on_line || matches!(source.slice(tokens[i].span), "}" | ")" | "]"));
        let mut anchor = if unfinished && !begins_anew { before.or(found) } else { found.or(before) };
        while let Some(token) = anchor {
            let (range, outer) = self.statement_around(source, token);
            if range.clone().any(|i| self.alive[i]) {
                self.paint(range);
                return (fault, true);
            }
            anchor = outer;
        }
        (fault, false)
    }

    /// Applies a proposed change if it fits without moving what follows: then nothing need be painted over, and
    /// faults in the rest of the statement are found as well. A replacement may use up the blank behind it.
    fn repair(&mut self, patch: &Patch) -> bool {
        let text = &mut self.lexed.masked;
        let mut end = patch.span.end();
        while end - patch.span.start() < patch.replacement.len() {
            match text.get(end) {
                Some(b' ' | b'\t' | b'\r' | b'\n') => end += 1,
                _ => return false,
            }
        }
        let replacement = patch.replacement.bytes().chain(std::iter::repeat(b' '));
        for (byte, new) in text[patch.span.start()..end].iter_mut().zip(replacement) {
            *byte = new;
        }
        true
    }

    /// The tokens of the statement that `token` belongs to, and the brace around that statement.
    fn statement_around(&self, source: &SourceFile, token: usize) -> (std::ops::Range<usize>, Option<usize>) {
        let tokens = &self.lexed.tokens;
        let mut brace = tokens[token].parent;
        while let Some(i) = brace
            && source.slice(tokens[i].span) != "{"
        {
            brace = tokens[i].parent;
        }
        let starts = |&i: &usize| {
            tokens[i].parent == brace
                && tokens[i].first_on_line
                && !matches!(source.slice(tokens[i].span), "}" | ")" | "]" | "{")
        };
        let first = brace.map_or(0, |i| i + 1);
        let end = brace.and_then(|i| tokens[i].partner).unwrap_or(tokens.len());
        let start = (first..=token).rev().find(starts).unwrap_or(first);
        let end = (token + 1..end).find(starts).unwrap_or(end);
        (start..end, brace)
    }

    fn paint(&mut self, range: std::ops::Range<usize>) {
        let tokens = &self.lexed.tokens;
        let span = tokens[range.start].span.to(tokens[range.end - 1].span);
        for byte in &mut self.lexed.masked[span.range()] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        self.lexed.painted.push(span);
        self.alive[range].fill(false);
    }
}

/// Turns pest's pairs into the tree. Pairs come in the order of the grammar, so each function reads them off in turn.
struct Builder {
    faults: Vec<Diagnostic>,
    /// How many levels of the tree are above what is being built.
    height: usize,
    /// Where each token ends, in order.
    token_ends: Vec<usize>,
    /// What every span lies in.
    file: FileId,
}

impl Builder {
    /// The text of a pair. pest lets a rule that may end in something optional take the blanks and comments before
    /// that along; here it ends with its last token.
    fn span_of(&self, pair: &Pair<'_, Rule>) -> Span {
        let span = pair.as_span();
        let tokens = self.token_ends.partition_point(|&end| end <= span.end());
        let end = tokens.checked_sub(1).map_or(span.end(), |i| self.token_ends[i]);
        Span::new(self.file, span.start()..end)
    }

    fn ident(&self, pair: &Pair<'_, Rule>) -> Ident {
        Ident { name: pair.as_str().to_owned(), span: self.span_of(pair) }
    }

    fn items(&mut self, pairs: Pairs<'_, Rule>) -> Vec<Item> {
        let mut items = Vec::new();
        for pair in pairs.flat_map(Pair::into_inner) {
            match pair.as_rule() {
                Rule::model => {
                    let (name, body, span) = self.named_body(pair);
                    items.push(Item::Model(Model { name, body, span }));
                }
                Rule::block => {
                    let (name, body, span) = self.named_body(pair);
                    items.push(Item::Block(Block { name, body, span }));
                }
                Rule::train => items.push(Item::Train(self.train(pair))),
                Rule::router => items.push(Item::Router(self.router(pair))),
                Rule::import => {
                    let span = self.span_of(&pair);
                    for part in pair.into_inner().filter(|part| part.as_rule() == Rule::string) {
                        let (path, path_span) = (unescape(part.as_str()), self.span_of(&part));
                        items.push(Item::Import(Import { path, path_span, span }));
                    }
                }
                _ => {}
            }
        }
        items
    }

    fn router(&mut self, pair: Pair<'_, Rule>) -> Router {
        let span = self.span_of(&pair);
        let name = Ident { name: String::new(), span };
        let mut router = Router { name, parameters: None, statements: Vec::new(), body_span: span, span };
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::name => router.name = self.ident(&part),
                Rule::parameters => router.parameters = Some(self.parameters(part)),
                Rule::router_body => {
                    router.body_span = self.span_of(&part);
                    router.statements = part.into_inner().filter_map(|part| self.router_statement(part)).collect();
                }
                _ => {}
            }
        }
        router
    }

    fn parameters(&mut self, pair: Pair<'_, Rule>) -> Parameters {
        let span = self.span_of(&pair);
        let mut list = Vec::new();
        for parameter in pair.into_inner().filter(|part| part.as_rule() == Rule::parameter) {
            let span = self.span_of(&parameter);
            let (mut names, mut default) = (Vec::new(), None);
            for part in parameter.into_inner() {
                match part.as_rule() {
                    Rule::name => names.push(self.ident(&part)),
                    Rule::expression => default = Some(self.expression(part)),
                    _ => {}
                }
            }
            let mut names = names.into_iter();
            if let (Some(name), Some(ty)) = (names.next(), names.next()) {
                list.push(Parameter { name, ty, default, span });
            }
        }
        Parameters { list, span }
    }

    /// `None` for the braces around the statements.
    fn router_statement(&mut self, pair: Pair<'_, Rule>) -> Option<RouterStatement> {
        let (rule, span) = (pair.as_rule(), self.span_of(&pair));
        let (mut names, mut arguments, mut value) = (Vec::new(), None, None);
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::name => names.push(self.ident(&part)),
                Rule::arguments => arguments = Some(self.arguments(part)),
                Rule::expression => value = Some(self.expression(part)),
                _ => {}
            }
        }
        let value = value?;
        if rule == Rule::router_return {
            return Some(RouterStatement::Return(Return { value, span }));
        }
        if rule == Rule::router_let {
            return Some(RouterStatement::Let(RouterLet { names, value, span }));
        }
        let name = names.into_iter().next()?;
        Some(match rule {
            Rule::router_state => RouterStatement::State(Let { name, value, span }),
            Rule::router_update => RouterStatement::Update(Let { name, value, span }),
            Rule::router_aux => RouterStatement::Aux(Aux { name, arguments, value, span }),
            _ => return None,
        })
    }

    fn named_body(&mut self, pair: Pair<'_, Rule>) -> (Ident, Body, Span) {
        let span = self.span_of(&pair);
        let (mut name, mut body) = (Ident { name: String::new(), span }, Body::default());
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::name => name = self.ident(&part),
                Rule::body => body = self.body(part),
                _ => {}
            }
        }
        (name, body, span)
    }

    fn train(&mut self, pair: Pair<'_, Rule>) -> Train {
        let span = self.span_of(&pair);
        let mut train = Train { settings: Vec::new(), body_span: span, span };
        for part in pair.into_inner().filter(|part| part.as_rule() == Rule::train_body) {
            train.body_span = self.span_of(&part);
            for setting in part.into_inner().filter(|part| part.as_rule() == Rule::train_setting) {
                let setting = self.train_setting(setting);
                train.settings.extend(setting);
            }
        }
        train
    }

    fn train_setting(&mut self, pair: Pair<'_, Rule>) -> Option<TrainSetting> {
        let span = self.span_of(&pair);
        let mut parts = pair.into_inner();
        let name = self.ident(&parts.next()?);
        let value = parts.next()?;
        Some(if value.as_rule() == Rule::arguments {
            let arguments = Some(self.arguments(value));
            TrainSetting::Call(Call { name, arguments, body: None, span })
        } else {
            let value = self.expression(value);
            TrainSetting::Value(Setting { name, value, span })
        })
    }

    fn body(&mut self, pair: Pair<'_, Rule>) -> Body {
        let span = self.span_of(&pair);
        Body { statements: pair.into_inner().filter_map(|part| self.statement(part)).collect(), span }
    }

    /// `None` for the braces around the statements.
    fn statement(&mut self, pair: Pair<'_, Rule>) -> Option<Statement> {
        let span = self.span_of(&pair);
        Some(match pair.as_rule() {
            Rule::binding => {
                let mut parts =
                    pair.into_inner().filter(|part| matches!(part.as_rule(), Rule::name | Rule::expression));
                let name = self.ident(&parts.next()?);
                Statement::Let(Let { name, value: self.expression(parts.next()?), span })
            }
            Rule::setting => {
                let mut parts = pair.into_inner();
                let name = self.ident(&parts.next()?);
                Statement::Setting(Setting { name, value: self.expression(parts.next()?), span })
            }
            Rule::layer => {
                let call = self.call(pair);
                if call.arguments.is_none() && call.body.is_none() {
                    self.faults.extend(expect::logical_word(&call.name.name, call.span));
                }
                Statement::Layer(call)
            }
            Rule::repeat => {
                let (mut count, mut index, mut body) = (None, None, Body::default());
                for part in pair.into_inner() {
                    match part.as_rule() {
                        Rule::head => count = self.head(part),
                        Rule::name => index = Some(self.ident(&part)),
                        Rule::body => body = self.body(part),
                        _ => {}
                    }
                }
                Statement::Repeat(Repeat { count: count?, index, body, span })
            }
            Rule::choice => {
                let (mut branches, mut otherwise, mut condition) = (Vec::new(), None, None);
                for part in pair.into_inner() {
                    match part.as_rule() {
                        Rule::head => condition = self.head(part),
                        Rule::body => {
                            let body = self.body(part);
                            match condition.take() {
                                Some(condition) => branches.push(Branch { condition, then: body }),
                                None => otherwise = Some(body),
                            }
                        }
                        _ => {}
                    }
                }
                Statement::If(If { branches, otherwise, span })
            }
            Rule::block => {
                let (name, body, span) = self.named_body(pair);
                Statement::Block(Block { name, body, span })
            }
            _ => return None,
        })
    }

    fn head(&mut self, pair: Pair<'_, Rule>) -> Option<Expr> {
        pair.into_inner().next().map(|expression| self.expression(expression))
    }

    fn call(&mut self, pair: Pair<'_, Rule>) -> Call {
        let span = self.span_of(&pair);
        let mut call = Call { name: Ident { name: String::new(), span }, arguments: None, body: None, span };
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::name => call.name = self.ident(&part),
                Rule::arguments => call.arguments = Some(self.arguments(part)),
                Rule::body => call.body = Some(self.body(part)),
                _ => {}
            }
        }
        call
    }

    fn arguments(&mut self, pair: Pair<'_, Rule>) -> Arguments {
        let span = self.span_of(&pair);
        let mut list = Vec::new();
        for argument in pair.into_inner().filter(|part| part.as_rule() == Rule::argument) {
            let span = self.span_of(&argument);
            let mut name = None;
            for part in argument.into_inner() {
                match part.as_rule() {
                    Rule::name => name = Some(self.ident(&part)),
                    Rule::expression => list.push(Argument { name: name.take(), value: self.expression(part), span }),
                    _ => {}
                }
            }
        }
        Arguments { list, span }
    }

    fn expression(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span_of(&pair);
        // The tree grows by at most one level for each operator, so this bounds its height before it is built.
        let is_prefix = |part: &Pair<'_, Rule>| part.as_rule() == Rule::unary_operator;
        let (mut operators, mut prefixes) = (0, 0);
        for part in pair.clone().into_inner() {
            match part.as_rule() {
                Rule::binary_operator => operators += 1,
                _ => prefixes = prefixes.max(part.into_inner().filter(is_prefix).count()),
            }
        }
        let levels = 1 + operators + prefixes;
        if self.height + levels > MAX_HEIGHT {
            self.faults.push(
                Diagnostic::new(Code::TooDeep, format!("an expression is more than {MAX_HEIGHT} operations high"))
                    .primary(span, "this is too much")
                    .help("give a part of it a name with `let`"),
            );
            return placeholder(span);
        }
        self.height += levels;
        let mut operands = Vec::with_capacity(operators + 1);
        let mut binary = Vec::with_capacity(operators);
        for part in pair.into_inner() {
            if part.as_rule() == Rule::binary_operator {
                binary.push(Spanned { value: binary_operator(part.as_str()), span: self.span_of(&part) });
            } else {
                operands.push(self.operand(part));
            }
        }
        self.height -= levels;
        let mut row = Row { operands: operands.into_iter(), operators: binary.into_iter().peekable() };
        self.climb(&mut row, 1).map_or(placeholder(span), |part| part.expr)
    }

    /// Precedence climbing over a row of operands and operators, from operators of `least` precedence upwards.
    fn climb(&mut self, row: &mut Row, least: u8) -> Option<Part> {
        let mut left = row.operands.next()?;
        while let Some(operator) = row.operators.next_if(|operator| operator.value.precedence() >= least) {
            let right = self.climb(row, operator.value.precedence() + 1)?;
            if operator.value.is_comparison()
                && !left.grouped
                && let ExprKind::Binary { operator: first, .. } = &left.expr.kind
                && first.value.is_comparison()
            {
                self.faults.push(
                    Diagnostic::new(Code::ChainedComparison, "comparisons do not chain")
                        .primary(operator.span, "second comparison")
                        .secondary(first.span, "first comparison")
                        .help("combine two comparisons with `&&`, as in `2 < width && width < 512`"),
                );
            }
            let span = left.outer.to(right.outer);
            let kind = ExprKind::Binary { operator, left: Box::new(left.expr), right: Box::new(right.expr) };
            left = Part { expr: Expr { kind, span }, outer: span, grouped: false };
        }
        Some(left)
    }

    fn operand(&mut self, pair: Pair<'_, Rule>) -> Part {
        let outer = self.span_of(&pair);
        let mut prefixes = Vec::new();
        let mut part = Part { expr: placeholder(outer), outer, grouped: false };
        for inner in pair.into_inner() {
            if inner.as_rule() == Rule::unary_operator {
                let operator = if inner.as_str() == "-" { UnaryOperator::Negate } else { UnaryOperator::Not };
                prefixes.push(Spanned { value: operator, span: self.span_of(&inner) });
            } else {
                part.grouped = inner.as_rule() == Rule::group;
                part.expr = self.primary(inner);
            }
        }
        for operator in prefixes.into_iter().rev() {
            let span = operator.span.to(outer);
            let kind = ExprKind::Unary { operator, operand: Box::new(part.expr) };
            part = Part { expr: Expr { kind, span }, outer, grouped: false };
        }
        part
    }

    fn primary(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span_of(&pair);
        let text = pair.as_str();
        let kind = match pair.as_rule() {
            // The lexer has reported numbers that do not fit.
            Rule::number if lex::is_float(text) => ExprKind::Float(text.replace('_', "").parse().unwrap_or(0.0)),
            Rule::number => ExprKind::Int(text.replace('_', "").parse().unwrap_or(0)),
            Rule::string => ExprKind::String(unescape(text)),
            Rule::boolean => ExprKind::Bool(text == "true"),
            Rule::call => {
                let call = self.call(pair);
                match call.arguments {
                    Some(_) => ExprKind::Call(call),
                    None => {
                        self.faults.extend(expect::logical_word(&call.name.name, span));
                        ExprKind::Name(call.name.name)
                    }
                }
            }
            Rule::list => {
                let elements = pair.into_inner().filter(|part| part.as_rule() == Rule::expression);
                ExprKind::List(elements.map(|element| self.expression(element)).collect())
            }
            Rule::group => {
                let inner = pair.into_inner().find(|part| part.as_rule() == Rule::expression);
                return inner.map_or(placeholder(span), |inner| self.expression(inner));
            }
            Rule::sequence => {
                let body = pair.into_inner().find(|part| part.as_rule() == Rule::body);
                ExprKind::Sequence(body.map(|body| self.body(body)).unwrap_or_default())
            }
            Rule::choice_value => {
                let (mut branches, mut condition, mut otherwise) = (Vec::new(), None, placeholder(span));
                for part in pair.into_inner() {
                    match part.as_rule() {
                        Rule::head => condition = self.head(part),
                        Rule::branch => {
                            let inner = part.into_inner().find(|part| part.as_rule() == Rule::expression);
                            let then = inner.map_or(placeholder(span), |inner| self.expression(inner));
                            match condition.take() {
                                Some(condition) => branches.push(Branch { condition, then }),
                                None => otherwise = then,
                            }
                        }
                        _ => {}
                    }
                }
                ExprKind::If { branches, otherwise: Box::new(otherwise) }
            }
            _ => return placeholder(span),
        };
        Expr { kind, span }
    }
}

/// The operands and operators of one expression, taken from the left.
struct Row {
    operands: std::vec::IntoIter<Part>,
    operators: std::iter::Peekable<std::vec::IntoIter<Spanned<BinaryOperator>>>,
}

/// An operand, or operands joined already.
struct Part {
    expr: Expr,
    /// The expression with the parentheses around it.
    outer: Span,
    /// Whether there are parentheses around it.
    grouped: bool,
}

/// Stands in for what could not be built; whoever makes one has reported a fault, or the grammar rules it out.
fn placeholder(span: Span) -> Expr {
    Expr { kind: ExprKind::Int(0), span }
}

fn binary_operator(symbol: &str) -> BinaryOperator {
    BinaryOperator::ALL.into_iter().find(|operator| operator.symbol() == symbol).unwrap_or(BinaryOperator::Add)
}

/// The text that a string literal stands for.
pub(crate) fn unescape(literal: &str) -> String {
    let mut rest = literal.strip_prefix('"').and_then(|inner| inner.strip_suffix('"')).unwrap_or(literal);
    let mut text = String::with_capacity(rest.len());
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let (c, len) = lex::unescape_one(&rest[at..]).unwrap_or(('\\', 1));
        text.push(c);
        rest = &rest[at + len..];
    }
    text.push_str(rest);
    text
}

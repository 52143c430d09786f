//! From what the grammar took to the syntax tree.

use std::iter::Peekable;

use crate::ast::*;
use crate::codes::Code;
use crate::diag::Diagnostic;
use crate::grammar::{Pair, Parts, Rule, disagree, end_of};
use crate::literal::{number, unescape};
use crate::span::{FileId, Span};

/// How high expressions may be, counted through everything they contain. A chain (`1 + 1 + 1 + ...`) is as high as it
/// has operators, since it leans to the left.
const MAX_HEIGHT: usize = 256;

/// Builds the tree of a text, or of a step of it, and finds what the grammar lets through and the language does not.
pub(crate) struct Builder {
    file: FileId,
    /// Where in its file the text begins that the grammar was given.
    offset: usize,
    /// How many levels of the tree are above what is being built.
    height: usize,
    pub(crate) faults: Vec<Diagnostic>,
}

impl Builder {
    pub(crate) fn new(file: FileId, offset: usize) -> Self {
        Builder { file, offset, height: 0, faults: Vec::new() }
    }

    fn span(&self, pair: &Pair<'_>) -> Span {
        Span::new(self.file, self.offset + pair.as_span().start()..self.offset + end_of(pair))
    }

    fn ident(&self, pair: &Pair<'_>) -> Ident {
        Ident { name: pair.as_str().to_owned(), span: self.span(pair) }
    }

    /// Finds the faults of a step, whose tree is of no use.
    pub(crate) fn step(&mut self, pair: Pair<'_>) {
        match pair.as_rule() {
            Rule::expression => drop(self.expression(pair)),
            _ => pair.into_inner().for_each(|part| self.step(part)),
        }
    }

    pub(crate) fn file(&mut self, pair: Pair<'_>) -> Vec<Item> {
        let items = pair.into_inner().filter(|part| part.as_rule() != Rule::EOI);
        items.map(|item| self.item(item)).collect()
    }

    fn item(&mut self, pair: Pair<'_>) -> Item {
        let (rule, span) = (pair.as_rule(), self.span(&pair));
        let mut parts = Parts::of(pair);
        match rule {
            Rule::model => {
                parts.take(Rule::kw_model);
                let name = self.ident(&parts.take(Rule::name));
                Item::Model(Model { name, body: self.body(parts.take(Rule::body)), span })
            }
            Rule::block => Item::Block(self.block(parts, span)),
            Rule::train => {
                parts.take(Rule::kw_train);
                let body = parts.take(Rule::train_body);
                let body_span = self.span(&body);
                let settings = Parts::of(body).all(Rule::train_setting).map(|part| self.train_setting(part)).collect();
                Item::Train(Train { settings, body_span, span })
            }
            Rule::router => {
                parts.take(Rule::kw_router);
                let name = self.ident(&parts.take(Rule::name));
                let parameters = parts.maybe(Rule::parameters).map(|pair| self.parameters(pair));
                let (statements, body_span) = self.router_statements(parts.take(Rule::router_body));
                Item::Router(Router { name, parameters, statements, body_span, span })
            }
            Rule::import => {
                parts.take(Rule::kw_import);
                let path = parts.take(Rule::string);
                Item::Import(Import { path: string(&path), path_span: self.span(&path), span })
            }
            other => disagree(&format!("{other:?} is no item")),
        }
    }

    fn block(&mut self, mut parts: Parts<'_>, span: Span) -> Block {
        parts.take(Rule::kw_block);
        let name = self.ident(&parts.take(Rule::name));
        let parameters = parts.maybe(Rule::parameters).map(|pair| self.parameters(pair));
        Block { name, parameters, body: self.body(parts.take(Rule::body)), span }
    }

    fn parameters(&mut self, pair: Pair<'_>) -> Parameters {
        let span = self.span(&pair);
        let parameter = |pair: Pair<'_>| {
            let span = self.span(&pair);
            let mut parts = Parts::of(pair);
            let name = self.ident(&parts.take(Rule::name));
            parts.take(Rule::colon);
            let ty = self.ident(&parts.take(Rule::name));
            let default = parts.maybe(Rule::equals).map(|_| self.expression(parts.take(Rule::expression)));
            Parameter { name, ty, default, span }
        };
        Parameters { list: Parts::of(pair).all(Rule::parameter).map(parameter).collect(), span }
    }

    /// The statements of the body of a router or of a `repeat` in it, and the span of the body.
    fn router_statements(&mut self, body: Pair<'_>) -> (Vec<RouterStatement>, Span) {
        let span = self.span(&body);
        let marks = |part: &Pair<'_>| !matches!(part.as_rule(), Rule::open_brace | Rule::close_brace);
        (body.into_inner().filter(marks).map(|part| self.router_statement(part)).collect(), span)
    }

    fn router_statement(&mut self, pair: Pair<'_>) -> RouterStatement {
        let (rule, span) = (pair.as_rule(), self.span(&pair));
        let mut parts = Parts::of(pair);
        match rule {
            Rule::router_let => {
                parts.take(Rule::kw_let);
                let mut names = vec![self.ident(&parts.take(Rule::name))];
                while parts.maybe(Rule::comma).is_some() {
                    names.push(self.ident(&parts.take(Rule::name)));
                }
                RouterStatement::Let(RouterLet { names, value: self.bound(&mut parts), span })
            }
            Rule::router_state => RouterStatement::State(self.binding(Rule::kw_state, parts, span)),
            Rule::router_table => RouterStatement::Table(self.binding(Rule::kw_table, parts, span)),
            Rule::router_update => RouterStatement::Update(self.binding(Rule::kw_update, parts, span)),
            Rule::router_aux => {
                parts.take(Rule::kw_aux);
                let name = self.ident(&parts.take(Rule::name));
                let arguments = parts.maybe(Rule::arguments).map(|pair| self.arguments(pair));
                RouterStatement::Aux(Aux { name, arguments, value: self.bound(&mut parts), span })
            }
            Rule::router_return => {
                parts.take(Rule::kw_return);
                RouterStatement::Return(Return { value: self.expression(parts.take(Rule::expression)), span })
            }
            Rule::router_repeat => {
                parts.take(Rule::kw_repeat);
                let count = self.head(parts.take(Rule::head));
                let (statements, body_span) = self.router_statements(parts.take(Rule::loop_body));
                RouterStatement::Repeat(RouterRepeat { count, statements, body_span, span })
            }
            Rule::router_assign => {
                let name = self.ident(&parts.take(Rule::name));
                RouterStatement::Assign(Let { name, value: self.bound(&mut parts), span })
            }
            other => disagree(&format!("{other:?} is no statement of a router")),
        }
    }

    /// `KEYWORD NAME = EXPRESSION`
    fn binding(&mut self, keyword: Rule, mut parts: Parts<'_>, span: Span) -> Let {
        parts.take(keyword);
        let name = self.ident(&parts.take(Rule::name));
        Let { name, value: self.bound(&mut parts), span }
    }

    /// `= EXPRESSION`
    fn bound(&mut self, parts: &mut Parts<'_>) -> Expr {
        parts.take(Rule::equals);
        self.expression(parts.take(Rule::expression))
    }

    fn train_setting(&mut self, pair: Pair<'_>) -> TrainSetting {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let name = self.ident(&parts.take(Rule::name));
        match parts.maybe(Rule::arguments) {
            Some(arguments) => {
                let arguments = Some(self.arguments(arguments));
                TrainSetting::Call(Call { name, arguments, body: None, span })
            }
            None => {
                let value = self.expression(parts.take(Rule::expression));
                TrainSetting::Value(Setting { name, value, span })
            }
        }
    }

    fn body(&mut self, pair: Pair<'_>) -> Body {
        let span = self.span(&pair);
        let marks = |part: &Pair<'_>| !matches!(part.as_rule(), Rule::open_brace | Rule::close_brace);
        Body { statements: pair.into_inner().filter(marks).map(|part| self.statement(part)).collect(), span }
    }

    fn statement(&mut self, pair: Pair<'_>) -> Statement {
        let (rule, span) = (pair.as_rule(), self.span(&pair));
        let mut parts = Parts::of(pair);
        match rule {
            Rule::binding => Statement::Let(self.binding(Rule::kw_let, parts, span)),
            Rule::setting => {
                let name = self.ident(&parts.take(Rule::setting_name));
                Statement::Setting(Setting { name, value: self.expression(parts.take(Rule::expression)), span })
            }
            Rule::layer => {
                let mut call = self.call(&mut parts, span);
                call.body = parts.maybe(Rule::body).map(|body| self.body(body));
                if call.arguments.is_none() && call.body.is_none() {
                    self.faults.extend(logical_word(&call.name.name, call.name.span));
                }
                Statement::Layer(call)
            }
            Rule::repeat => {
                parts.take(Rule::kw_repeat);
                let count = self.head(parts.take(Rule::head));
                let index = parts.maybe(Rule::kw_as).map(|_| self.ident(&parts.take(Rule::name)));
                Statement::Repeat(Repeat { count, index, body: self.body(parts.take(Rule::body)), span })
            }
            Rule::choice => {
                let (branches, otherwise) = self.choice(parts, Rule::body, Self::body);
                Statement::If(If { branches, otherwise, span })
            }
            Rule::block => Statement::Block(self.block(parts, span)),
            other => disagree(&format!("{other:?} is no statement")),
        }
    }

    /// The branches of an `if`, and what stands behind its last `else`.
    fn choice<T>(
        &mut self,
        mut parts: Parts<'_>,
        rule: Rule,
        then: impl Fn(&mut Self, Pair<'_>) -> T,
    ) -> (Vec<Branch<T>>, Option<T>) {
        let mut branches = Vec::new();
        loop {
            if parts.maybe(Rule::kw_if).is_none() {
                return (branches, Some(then(self, parts.take(rule))));
            }
            let condition = self.head(parts.take(Rule::head));
            branches.push(Branch { condition, then: then(self, parts.take(rule)) });
            if parts.maybe(Rule::kw_else).is_none() {
                return (branches, None);
            }
        }
    }

    fn head(&mut self, pair: Pair<'_>) -> Expr {
        self.expression(Parts::of(pair).take(Rule::expression))
    }

    fn call(&mut self, parts: &mut Parts<'_>, span: Span) -> Call {
        let name = self.ident(&parts.take(Rule::name));
        let arguments = parts.maybe(Rule::arguments).map(|pair| self.arguments(pair));
        Call { name, arguments, body: None, span }
    }

    fn arguments(&mut self, pair: Pair<'_>) -> Arguments {
        let span = self.span(&pair);
        let argument = |pair: Pair<'_>| {
            let span = self.span(&pair);
            let mut parts = Parts::of(pair);
            let name = parts.maybe(Rule::name).map(|name| self.ident(&name));
            parts.maybe(Rule::colon);
            Argument { name, value: self.expression(parts.take(Rule::expression)), span }
        };
        Arguments { list: Parts::of(pair).all(Rule::argument).map(argument).collect(), span }
    }

    pub(crate) fn expression(&mut self, pair: Pair<'_>) -> Expr {
        let span = self.span(&pair);
        let parts: Vec<Pair<'_>> = pair.into_inner().collect();
        // The tree grows by at most one level for each operator, so this bounds its height before it is built.
        let is_prefix = |part: &Pair<'_>| part.as_rule() == Rule::unary_operator;
        let prefixes = parts.iter().map(|part| part.clone().into_inner().filter(is_prefix).count()).max();
        let levels = 1 + parts.len() / 2 + prefixes.unwrap_or(0);
        if self.height + levels > MAX_HEIGHT {
            self.faults.push(
                Diagnostic::new(Code::TooDeep, format!("an expression is more than {MAX_HEIGHT} operations high"))
                    .primary(span, "this is too much")
                    .help("give a part of it a name with `let`"),
            );
            // With a fault there is no tree, so anything may stand here.
            return Expr { kind: ExprKind::Bool(false), span };
        }
        self.height += levels;
        let mut parts = parts.into_iter();
        let first = self.operand(parts.next());
        let mut rest = Vec::new();
        while let Some(operator) = parts.next() {
            let symbol = operator.as_str();
            let found = BinaryOperator::ALL.into_iter().find(|operator| operator.symbol() == symbol);
            let value = found.unwrap_or_else(|| disagree(&format!("`{symbol}` is no operator")));
            rest.push((Spanned { value, span: self.span(&operator) }, self.operand(parts.next())));
        }
        self.height -= levels;
        self.climb(first, &mut rest.into_iter().peekable(), 1).expr
    }

    /// Precedence climbing: an operand with what follows it, as long as the operators have `least` precedence.
    fn climb(&mut self, mut left: Part, rest: &mut Peekable<std::vec::IntoIter<Link>>, least: u8) -> Part {
        while let Some((operator, right)) = rest.next_if(|(operator, _)| operator.value.precedence() >= least) {
            let right = self.climb(right, rest, operator.value.precedence() + 1);
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
        left
    }

    fn operand(&mut self, pair: Option<Pair<'_>>) -> Part {
        let pair = pair.unwrap_or_else(|| disagree("an operator without an operand"));
        let outer = self.span(&pair);
        let mut parts = pair.into_inner();
        let mut prefixes = Vec::new();
        loop {
            let inner = parts.next().unwrap_or_else(|| disagree("an operand of operators only"));
            if inner.as_rule() != Rule::unary_operator {
                let grouped = inner.as_rule() == Rule::group && prefixes.is_empty();
                let expr = prefixes.into_iter().rev().fold(self.primary(inner), |operand, operator: Spanned<_>| {
                    let kind = ExprKind::Unary { operator, operand: Box::new(operand) };
                    Expr { kind, span: operator.span.to(outer.after()) }
                });
                return Part { expr, outer, grouped };
            }
            let value = if inner.as_str() == "-" { UnaryOperator::Negate } else { UnaryOperator::Not };
            prefixes.push(Spanned { value, span: self.span(&inner) });
        }
    }

    fn primary(&mut self, pair: Pair<'_>) -> Expr {
        let (rule, span, text) = (pair.as_rule(), self.span(&pair), pair.as_str());
        let mut parts = Parts::of(pair.clone());
        let kind = match rule {
            Rule::number => number(text).unwrap_or_else(|| disagree(&format!("`{text}` is no number"))),
            Rule::string => ExprKind::String(string(&pair)),
            Rule::boolean => ExprKind::Bool(text == "true"),
            Rule::call => {
                let call = self.call(&mut parts, span);
                if call.arguments.is_some() {
                    ExprKind::Call(call)
                } else {
                    self.faults.extend(logical_word(&call.name.name, call.name.span));
                    ExprKind::Name(call.name.name)
                }
            }
            Rule::list => ExprKind::List(parts.all(Rule::expression).map(|part| self.expression(part)).collect()),
            Rule::group => {
                parts.take(Rule::open_paren);
                return self.expression(parts.take(Rule::expression));
            }
            Rule::sequence => ExprKind::Sequence(self.body(parts.take(Rule::body))),
            Rule::choice_value => {
                let (branches, otherwise) = self.choice(parts, Rule::branch, |builder, branch| {
                    let mut parts = Parts::of(branch);
                    parts.take(Rule::open_brace);
                    builder.expression(parts.take(Rule::expression))
                });
                let otherwise = otherwise.unwrap_or_else(|| disagree("a choice of values without `else`"));
                ExprKind::If { branches, otherwise: Box::new(otherwise) }
            }
            other => disagree(&format!("{other:?} is no operand")),
        };
        Expr { kind, span }
    }
}

/// An operator with the operand behind it.
type Link = (Spanned<BinaryOperator>, Part);

/// An operand, or operands joined already.
struct Part {
    expr: Expr,
    /// The expression with the parentheses around it.
    outer: Span,
    /// Whether there are parentheses around it.
    grouped: bool,
}

fn string(pair: &Pair<'_>) -> String {
    unescape(pair.as_str()).unwrap_or_else(|| disagree("an escape that stands for nothing"))
}

/// `and`, `or` and `not` where the operator was meant.
pub(crate) fn logical_word(word: &str, span: Span) -> Option<Diagnostic> {
    let symbol = match word {
        "and" => "&&",
        "or" => "||",
        "not" => "!",
        _ => return None,
    };
    let fault = Diagnostic::new(Code::UnexpectedText, format!("`{word}` is not an operator")).primary(span, "");
    Some(fault.patch(span, symbol, format!("write `{symbol}`")))
}

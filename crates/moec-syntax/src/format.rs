//! The one canonical layout of a file, with its comments.
//!
//! Two blanks of indentation, lines of at most 100 columns. A braced body stays on one line if it fits, holds at most
//! two statements that are plain layers, and contains no comment and no further braces; a call or a list is broken
//! into one element per line, with a comma after the last, if it does not fit. Parentheses are printed where the
//! tree needs them and nowhere else. Values are aligned where they stand below each other: those of the settings of
//! one body, and those of arguments that have a line each. Statements keep at most one empty line between them.
//!
//! A comment stays where it is if it stands before a statement, an argument or a list element, behind one on the same
//! line, behind an opening bracket, or before a closing one. Any other comment moves up in front of what it is in.

use std::cell::Cell;
use std::fmt;

use crate::ast::*;
use crate::diag::Diagnostic;
use crate::parse::parse_alone;
use crate::source::SourceFile;
use crate::span::Span;
use crate::words;

/// The longest line, in characters, unless a comment or a single word is longer.
const MAX_COLUMNS: usize = 100;

/// Prints a file in the canonical layout. Formatting the result again changes nothing.
///
/// # Errors
/// The syntax errors of the file, as [`parse`](crate::parse()) finds them. What it imports is not looked at.
pub fn format(source: &SourceFile) -> Result<String, Vec<Diagnostic>> {
    let (text, moved) = print(source)?;
    if !moved {
        return Ok(text);
    }
    // A comment that had no place kept the lines around it broken. Now that it has one they may fit on one line.
    Ok(print(&SourceFile::new(source.name(), text))?.0)
}

/// Prints a file once, and says whether a comment had to be moved.
fn print(source: &SourceFile) -> Result<(String, bool), Vec<Diagnostic>> {
    let file = File { items: parse_alone(source)?, imported: Vec::new() };
    let comments = words::comments(source);
    let emitted = comments.iter().map(|_| Cell::new(false)).collect();
    let printer = Printer { text: Some(source.text()), comments, emitted, moved: Cell::new(false) };
    let text = printer.file(&file);
    Ok((text, printer.moved.get()))
}

impl fmt::Display for File {
    /// The tree in the canonical layout, without comments: they are no part of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Printer::of_tree().file(self))
    }
}

impl fmt::Display for Expr {
    /// The expression in the canonical layout.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let printer = Printer::of_tree();
        let mut out = Out::default();
        printer.expr(&mut out, self, 0);
        f.write_str(&out.text)
    }
}

struct Printer<'a> {
    /// The text that the tree came from, which gives literals and blank lines; `None` for a tree made by hand.
    text: Option<&'a str>,
    comments: Vec<Span>,
    /// Which comments have been printed.
    emitted: Vec<Cell<bool>>,
    /// Whether a comment stood where it has no place.
    moved: Cell<bool>,
}

/// The output, with the indentation of the current line.
#[derive(Default)]
struct Out {
    text: String,
    indent: usize,
}

impl Out {
    fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    fn pad(&mut self, blanks: usize) {
        self.text.extend(std::iter::repeat_n(' ', blanks));
    }

    /// Ends the line and indents the next.
    fn line(&mut self) {
        self.text.truncate(self.text.trim_end_matches(' ').len());
        self.text.push('\n');
        self.pad(self.indent);
    }

    /// How many characters the current line has.
    fn column(&self) -> usize {
        self.text[self.text.rfind('\n').map_or(0, |i| i + 1)..].chars().count()
    }
}

impl Printer<'_> {
    /// For a tree that has no text.
    fn of_tree() -> Self {
        Printer { text: None, comments: Vec::new(), emitted: Vec::new(), moved: Cell::new(false) }
    }

    fn file(&self, file: &File) -> String {
        let mut out = Out::default();
        let end = self.text.map_or(0, str::len);
        let mut previous = None;
        for (i, item) in file.items.iter().enumerate() {
            let span = item.span();
            // Imports below each other stand together.
            let imports = i > 0 && matches!([&file.items[i - 1], item], [Item::Import(_), Item::Import(_)]);
            if previous.is_some() && !imports {
                out.push("\n");
            }
            self.leading(&mut out, 0, previous, span);
            self.unit(&mut out, span, |out| match item {
                Item::Model(model) => {
                    out.push("model ");
                    out.push(&model.name.name);
                    out.push(" ");
                    self.body(out, &model.body, true);
                }
                Item::Block(block) => self.block(out, block),
                Item::Train(train) => self.train(out, train),
                Item::Router(router) => self.router(out, router),
                Item::Import(import) => {
                    out.push("import ");
                    out.push(&self.written(import.path_span, || quoted(&import.path)));
                }
            });
            self.trailing(&mut out, span.end(), file.items.get(i + 1).map_or(end, |next| next.span().start()));
            out.push("\n");
            previous = Some(span);
        }
        let mut from = previous.map(|span| span.end());
        for i in self.pending(from.unwrap_or(0), end) {
            let comment = self.comments[i];
            if from.is_some_and(|from| self.empty_line_between(from, comment.start())) {
                out.push("\n");
            }
            self.comment(&mut out, i);
            out.push("\n");
            from = Some(comment.end());
        }
        out.text
    }

    /// Everything that stands on lines of its own before `span`: comments, and an empty line where the source has one
    /// and `previous` (the statement before in the same body, which begins at `open`) exists.
    fn leading(&self, out: &mut Out, open: usize, previous: Option<Span>, span: Span) {
        let mut from = previous.map(|span| span.end());
        for i in self.pending(from.unwrap_or(open), span.start()) {
            let comment = self.comments[i];
            if from.is_some_and(|from| self.empty_line_between(from, comment.start())) {
                self.empty_line(out);
            }
            self.comment(out, i);
            out.line();
            from = Some(comment.end());
        }
        if from.is_some_and(|from| self.empty_line_between(from, span.start())) {
            self.empty_line(out);
        }
    }

    /// Comments before a closing brace, each on a line of its own. `previous` is the last statement in the braces.
    fn closing_comments(&self, out: &mut Out, open: usize, previous: Option<Span>, close: usize) {
        let mut from = previous.map(|span| span.end());
        for i in self.pending(from.unwrap_or(open), close) {
            let comment = self.comments[i];
            if from.is_some_and(|from| self.empty_line_between(from, comment.start())) {
                out.push("\n");
            }
            out.line();
            self.comment(out, i);
            from = Some(comment.end());
        }
    }

    /// A comment behind `end` on the same line, if it comes before `limit`.
    fn trailing(&self, out: &mut Out, end: usize, limit: usize) {
        let Some(text) = self.text else { return };
        for i in self.pending(end, limit) {
            let comment = self.comments[i];
            if text.get(end..comment.start()).is_none_or(|between| between.contains('\n')) {
                return;
            }
            out.push("  ");
            self.comment(out, i);
        }
    }

    /// Prints one statement, argument or element. Comments inside it for which it has no place come before it.
    fn unit(&self, out: &mut Out, span: Span, print: impl FnOnce(&mut Out)) {
        let start = out.text.len();
        print(out);
        let left: Vec<usize> = self.pending(span.start(), span.end()).collect();
        if !left.is_empty() {
            self.moved.set(true);
            let body = out.text.split_off(start);
            for i in left {
                self.comment(out, i);
                out.line();
            }
            out.push(&body);
        }
    }

    /// The comments in a range that have not been printed.
    fn pending(&self, from: usize, to: usize) -> impl Iterator<Item = usize> + '_ {
        let first = self.comments.partition_point(|comment| comment.start() < from);
        (first..self.comments.len())
            .take_while(move |&i| self.comments[i].start() < to)
            .filter(|&i| !self.emitted[i].get())
    }

    fn comment(&self, out: &mut Out, index: usize) {
        self.emitted[index].set(true);
        let span = self.comments[index];
        out.push(self.text.and_then(|text| text.get(span.range())).unwrap_or("").trim_end());
    }

    fn has_comment(&self, span: Span) -> bool {
        let first = self.comments.partition_point(|comment| comment.start() < span.start());
        self.comments.get(first).is_some_and(|comment| comment.start() < span.end())
    }

    fn empty_line_between(&self, from: usize, to: usize) -> bool {
        let between = self.text.and_then(|text| text.get(from..to)).unwrap_or("");
        // Only whole lines count: the first belongs to what is before, the last to what is behind.
        let inner = between.split_once('\n').and_then(|(_, rest)| rest.rsplit_once('\n'));
        inner.is_some_and(|(lines, _)| lines.split('\n').any(|line| line.trim().is_empty()))
    }

    /// An empty line before the line that was just begun.
    fn empty_line(&self, out: &mut Out) {
        let line_start = out.text.rfind('\n').map_or(0, |i| i + 1);
        if line_start >= 2 && !out.text[..line_start].ends_with("\n\n") {
            out.text.insert(line_start, '\n');
        }
    }

    // Bodies and statements.

    fn block(&self, out: &mut Out, block: &Block) {
        out.push("block ");
        out.push(&block.name.name);
        self.parameters(out, block.parameters.as_ref());
        out.push(" ");
        self.body(out, &block.body, false);
    }

    /// What stands between the parentheses behind the name of a block or a router, if they are there.
    fn parameters(&self, out: &mut Out, parameters: Option<&Parameters>) {
        let Some(parameters) = parameters else { return };
        match self.fitting(out, 2, |flat| self.flat_parameters(flat, parameters)) {
            Some(flat) => out.push(&flat),
            None => {
                let span_of = |parameter: &Parameter| parameter.span;
                let column = longest(parameters.list.iter().map(|parameter| parameter.name.name.as_str()));
                self.elements(out, ["(", ")"], parameters.span, &parameters.list, span_of, |out, parameter| {
                    out.push(&parameter.name.name);
                    out.push(":");
                    out.pad(column - parameter.name.name.len() + 1);
                    out.push(&parameter.ty.name);
                    if let Some(default) = &parameter.default {
                        out.push(" = ");
                        self.expr(out, default, 1);
                    }
                });
            }
        }
    }

    fn router(&self, out: &mut Out, router: &Router) {
        out.push("router ");
        out.push(&router.name.name);
        self.parameters(out, router.parameters.as_ref());
        out.push(" ");
        self.router_body(out, router.body_span, &router.statements);
    }

    fn router_statement(&self, out: &mut Out, statement: &RouterStatement) {
        let (keyword, value) = match statement {
            RouterStatement::Let(node) => ("let ", &node.value),
            RouterStatement::State(node) => ("state ", &node.value),
            RouterStatement::Table(node) => ("table ", &node.value),
            RouterStatement::Update(node) => ("update ", &node.value),
            RouterStatement::Aux(node) => ("aux ", &node.value),
            RouterStatement::Return(node) => ("return ", &node.value),
            RouterStatement::Repeat(node) => ("repeat ", &node.count),
            RouterStatement::Assign(node) => ("", &node.value),
        };
        out.push(keyword);
        match statement {
            RouterStatement::Let(node) => {
                let names: Vec<&str> = node.names.iter().map(|name| name.name.as_str()).collect();
                out.push(&names.join(", "));
            }
            RouterStatement::State(node)
            | RouterStatement::Table(node)
            | RouterStatement::Update(node)
            | RouterStatement::Assign(node) => out.push(&node.name.name),
            RouterStatement::Aux(node) => {
                out.push(&node.name.name);
                if let Some(arguments) = &node.arguments {
                    self.arguments(out, arguments, 2);
                }
            }
            RouterStatement::Return(_) => return self.expr(out, value, 0),
            RouterStatement::Repeat(node) => {
                self.head(out, value);
                out.push(" ");
                return self.router_body(out, node.body_span, &node.statements);
            }
        }
        out.push(" = ");
        self.expr(out, value, 0);
    }

    fn router_body(&self, out: &mut Out, span: Span, statements: &[RouterStatement]) {
        self.braces(out, span, statements, RouterStatement::span, |out, statement| {
            self.router_statement(out, statement);
        });
    }

    fn train(&self, out: &mut Out, train: &Train) {
        let names = train.settings.iter().filter_map(|setting| match setting {
            TrainSetting::Value(setting) => Some(setting.name.name.as_str()),
            TrainSetting::Call(_) => None,
        });
        let column = longest(names);
        out.push("train ");
        self.braces(out, train.body_span, &train.settings, TrainSetting::span, |out, setting| match setting {
            TrainSetting::Value(setting) => self.setting(out, setting, column),
            TrainSetting::Call(call) => self.call(out, call, 0),
        });
    }

    fn body(&self, out: &mut Out, body: &Body, always_broken: bool) {
        let flat = if always_broken { None } else { self.fitting(out, 0, |flat| self.flat_body(flat, body)) };
        if let Some(flat) = flat {
            out.push(&flat);
            return;
        }
        let names = body.statements.iter().filter_map(|statement| match statement {
            Statement::Setting(setting) => Some(setting.name.name.as_str()),
            _ => None,
        });
        let column = longest(names);
        self.braces(out, body.span, &body.statements, Statement::span, |out, statement| {
            self.statement(out, statement, column);
        });
    }

    /// A body over several lines, or `{}` if nothing is in it.
    fn braces<T>(
        &self,
        out: &mut Out,
        span: Span,
        list: &[T],
        span_of: impl Fn(&T) -> Span,
        print: impl Fn(&mut Out, &T),
    ) {
        if list.is_empty() && !self.has_comment(span) {
            out.push("{}");
            return;
        }
        let close = span.end().saturating_sub(1);
        let open = span.start();
        out.push("{");
        let first = list.first().map_or(close, |first| span_of(first).start());
        self.trailing(out, open + 1, first);
        out.indent += 2;
        let mut previous: Option<Span> = None;
        for (i, element) in list.iter().enumerate() {
            let span = span_of(element);
            out.line();
            self.leading(out, open, previous, span);
            self.unit(out, span, |out| print(out, element));
            let next = list.get(i + 1).map_or(close, |next| span_of(next).start());
            self.trailing(out, span.end(), next);
            previous = Some(span);
        }
        self.closing_comments(out, open, previous, close);
        out.indent -= 2;
        out.line();
        out.push("}");
    }

    /// `column` is the length of the longest name of a setting in the body.
    fn statement(&self, out: &mut Out, statement: &Statement, column: usize) {
        match statement {
            Statement::Let(binding) => {
                out.push("let ");
                out.push(&binding.name.name);
                out.push(" = ");
                self.expr(out, &binding.value, 0);
            }
            Statement::Setting(setting) => self.setting(out, setting, column),
            Statement::Layer(call) => self.call(out, call, 0),
            Statement::Repeat(repeat) => {
                out.push("repeat ");
                self.head(out, &repeat.count);
                if let Some(index) = &repeat.index {
                    out.push(" as ");
                    out.push(&index.name);
                }
                out.push(" ");
                self.body(out, &repeat.body, false);
            }
            Statement::If(choice) => self.choice(out, choice),
            Statement::Block(block) => self.block(out, block),
        }
    }

    fn setting(&self, out: &mut Out, setting: &Setting, column: usize) {
        out.push(&setting.name.name);
        out.pad(column - setting.name.name.len() + 1);
        self.expr(out, &setting.value, 0);
    }

    fn choice(&self, out: &mut Out, choice: &If) {
        if let Some(flat) = self.fitting(out, 0, |flat| self.flat_choice(flat, choice)) {
            out.push(&flat);
            return;
        }
        // One body broken, all bodies broken: the branches then look alike.
        for (i, branch) in choice.branches.iter().enumerate() {
            out.push(if i == 0 { "if " } else { " else if " });
            self.head(out, &branch.condition);
            out.push(" ");
            self.body(out, &branch.then, true);
        }
        if let Some(body) = &choice.otherwise {
            out.push(" else ");
            self.body(out, body, true);
        }
    }

    fn call(&self, out: &mut Out, call: &Call, suffix: usize) {
        out.push(&call.name.name);
        if let Some(arguments) = &call.arguments {
            self.arguments(out, arguments, if call.body.is_some() { 2 } else { suffix });
        }
        if let Some(body) = &call.body {
            out.push(" ");
            self.body(out, body, false);
        }
    }

    fn arguments(&self, out: &mut Out, arguments: &Arguments, suffix: usize) {
        if let Some(flat) = self.fitting(out, suffix, |flat| self.flat_arguments(flat, arguments, true)) {
            out.push(&flat);
            return;
        }
        let span_of = |argument: &Argument| argument.span;
        let names = arguments.list.iter().filter_map(|argument| argument.name.as_ref());
        let column = longest(names.map(|name| name.name.as_str()));
        self.elements(out, ["(", ")"], arguments.span, &arguments.list, span_of, |out, argument| {
            if let Some(name) = &argument.name {
                out.push(&name.name);
                out.push(":");
                out.pad(column - name.name.len() + 1);
            }
            self.expr(out, &argument.value, 1);
        });
    }

    /// Elements between brackets, one per line, with a comma behind each.
    fn elements<T>(
        &self,
        out: &mut Out,
        [open, close]: [&str; 2],
        span: Span,
        list: &[T],
        span_of: impl Fn(&T) -> Span,
        print: impl Fn(&mut Out, &T),
    ) {
        let last = span.end().saturating_sub(1);
        out.push(open);
        self.trailing(out, span.start() + 1, list.first().map_or(last, |first| span_of(first).start()));
        out.indent += 2;
        let mut end = span.start();
        for (i, element) in list.iter().enumerate() {
            let span = span_of(element);
            out.line();
            for i in self.pending(end, span.start()) {
                self.comment(out, i);
                out.line();
            }
            self.unit(out, span, |out| print(out, element));
            out.push(",");
            self.trailing(out, span.end(), list.get(i + 1).map_or(last, |next| span_of(next).start()));
            end = span.end();
        }
        for i in self.pending(end, last) {
            out.line();
            self.comment(out, i);
        }
        out.indent -= 2;
        out.line();
        out.push(close);
    }

    // Expressions.

    /// A count or a condition. It must not begin with a brace, which would be taken for the body.
    fn head(&self, out: &mut Out, expr: &Expr) {
        let mut first = expr;
        while let ExprKind::Binary { left, .. } = &first.kind {
            first = left;
        }
        self.operand(out, expr, matches!(first.kind, ExprKind::Sequence(_)), 2);
    }

    /// An expression, with room for `suffix` columns behind it.
    fn expr(&self, out: &mut Out, expr: &Expr, suffix: usize) {
        if let Some(flat) = self.fitting(out, suffix, |flat| self.flat_expr(flat, expr, true)) {
            out.push(&flat);
            return;
        }
        match &expr.kind {
            ExprKind::Call(call) => self.call(out, call, suffix),
            ExprKind::List(list) => {
                let span_of = |element: &Expr| element.span;
                self.elements(out, ["[", "]"], expr.span, list, span_of, |out, element| self.expr(out, element, 1));
            }
            ExprKind::Sequence(body) => self.body(out, body, true),
            ExprKind::Unary { operator, operand } => {
                out.push(operator.value.symbol());
                self.operand(out, operand, unary_needs_parentheses(operand), suffix);
            }
            ExprKind::Binary { operator, left, right } => {
                let operator = operator.value;
                self.operand(out, left, needs_parentheses(operator, left, false), 0);
                out.push(" ");
                out.push(operator.symbol());
                out.push(" ");
                self.operand(out, right, needs_parentheses(operator, right, true), suffix);
            }
            ExprKind::If { branches, otherwise } => {
                for (i, branch) in branches.iter().enumerate() {
                    out.push(if i == 0 { "if " } else { " else if " });
                    self.head(out, &branch.condition);
                    out.push(" ");
                    self.branch(out, &branch.then);
                }
                out.push(" else ");
                self.branch(out, otherwise);
            }
            ExprKind::Int(_) | ExprKind::Float(_) | ExprKind::Bool(_) | ExprKind::String(_) | ExprKind::Name(_) => {
                out.push(&self.literal(expr));
            }
        }
    }

    fn operand(&self, out: &mut Out, expr: &Expr, parentheses: bool, suffix: usize) {
        if parentheses {
            out.push("(");
            self.expr(out, expr, suffix + 1);
            out.push(")");
        } else {
            self.expr(out, expr, suffix);
        }
    }

    /// A value in braces, over several lines.
    fn branch(&self, out: &mut Out, value: &Expr) {
        out.push("{");
        out.indent += 2;
        out.line();
        self.expr(out, value, 0);
        out.indent -= 2;
        out.line();
        out.push("}");
    }

    /// What stands under a span of the source, or else what `print` gives.
    fn written(&self, span: Span, print: impl FnOnce() -> String) -> String {
        self.text.and_then(|text| text.get(span.range())).map_or_else(print, str::to_owned)
    }

    /// A literal or a name, as it was written if it was.
    fn literal(&self, expr: &Expr) -> String {
        self.written(expr.span, || match &expr.kind {
            ExprKind::Int(value) => value.to_string(),
            // The shortest form that reads back to the same bits, always with a fraction or an exponent.
            ExprKind::Float(value) => format!("{value:?}"),
            ExprKind::Bool(value) => value.to_string(),
            ExprKind::String(text) => quoted(text),
            ExprKind::Name(name) => name.clone(),
            _ => String::new(),
        })
    }

    // One line. Each function appends to a string, and fails where the rules or the length forbid a single line.

    /// What `print` gives, if it fits on the current line with `suffix` columns behind.
    fn fitting(&self, out: &Out, suffix: usize, print: impl FnOnce(&mut String) -> Option<()>) -> Option<String> {
        let mut flat = String::new();
        print(&mut flat)?;
        (out.column() + flat.chars().count() + suffix <= MAX_COLUMNS).then_some(flat)
    }

    fn flat_body(&self, flat: &mut String, body: &Body) -> Option<()> {
        if self.has_comment(body.span) || body.statements.len() > 2 {
            return None;
        }
        flat.push('{');
        for (i, statement) in body.statements.iter().enumerate() {
            let Statement::Layer(Call { name, arguments, body: None, .. }) = statement else { return None };
            flat.push_str(if i == 0 { " " } else { "  " });
            flat.push_str(&name.name);
            if let Some(arguments) = arguments {
                self.flat_arguments(flat, arguments, false)?;
            }
        }
        flat.push_str(if body.statements.is_empty() { "}" } else { " }" });
        Some(())
    }

    fn flat_choice(&self, flat: &mut String, choice: &If) -> Option<()> {
        if self.has_comment(choice.span) {
            return None;
        }
        for (i, branch) in choice.branches.iter().enumerate() {
            flat.push_str(if i == 0 { "if " } else { " else if " });
            self.flat_head(flat, &branch.condition)?;
            flat.push(' ');
            self.flat_body(flat, &branch.then)?;
        }
        if let Some(body) = &choice.otherwise {
            flat.push_str(" else ");
            self.flat_body(flat, body)?;
        }
        Some(())
    }

    fn flat_head(&self, flat: &mut String, expr: &Expr) -> Option<()> {
        let start = flat.len();
        self.flat_expr(flat, expr, true)?;
        if flat[start..].starts_with('{') {
            flat.insert(start, '(');
            flat.push(')');
        }
        Some(())
    }

    fn flat_arguments(&self, flat: &mut String, arguments: &Arguments, braces: bool) -> Option<()> {
        if self.has_comment(arguments.span) {
            return None;
        }
        flat.push('(');
        for (i, argument) in arguments.list.iter().enumerate() {
            flat.push_str(if i == 0 { "" } else { ", " });
            if let Some(name) = &argument.name {
                flat.push_str(&name.name);
                flat.push_str(": ");
            }
            self.flat_expr(flat, &argument.value, braces)?;
        }
        flat.push(')');
        Some(())
    }

    fn flat_parameters(&self, flat: &mut String, parameters: &Parameters) -> Option<()> {
        if self.has_comment(parameters.span) {
            return None;
        }
        flat.push('(');
        for (i, parameter) in parameters.list.iter().enumerate() {
            flat.push_str(if i == 0 { "" } else { ", " });
            flat.push_str(&parameter.name.name);
            flat.push_str(": ");
            flat.push_str(&parameter.ty.name);
            if let Some(default) = &parameter.default {
                flat.push_str(" = ");
                self.flat_expr(flat, default, true)?;
            }
        }
        flat.push(')');
        Some(())
    }

    /// `braces` says whether braces may occur in it.
    fn flat_expr(&self, flat: &mut String, expr: &Expr, braces: bool) -> Option<()> {
        // Giving up early keeps the attempts, one per level of nesting, cheap.
        if flat.len() > MAX_COLUMNS * 4 || self.has_comment(expr.span) {
            return None;
        }
        match &expr.kind {
            ExprKind::Call(call) => {
                flat.push_str(&call.name.name);
                match &call.arguments {
                    Some(arguments) => self.flat_arguments(flat, arguments, braces)?,
                    None => flat.push_str("()"),
                }
            }
            ExprKind::List(list) => {
                flat.push('[');
                for (i, element) in list.iter().enumerate() {
                    flat.push_str(if i == 0 { "" } else { ", " });
                    self.flat_expr(flat, element, braces)?;
                }
                flat.push(']');
            }
            ExprKind::Sequence(body) => {
                if !braces {
                    return None;
                }
                self.flat_body(flat, body)?;
            }
            ExprKind::Unary { operator, operand } => {
                flat.push_str(operator.value.symbol());
                self.flat_operand(flat, operand, unary_needs_parentheses(operand), braces)?;
            }
            ExprKind::Binary { operator, left, right } => {
                let operator = operator.value;
                self.flat_operand(flat, left, needs_parentheses(operator, left, false), braces)?;
                flat.push(' ');
                flat.push_str(operator.symbol());
                flat.push(' ');
                self.flat_operand(flat, right, needs_parentheses(operator, right, true), braces)?;
            }
            ExprKind::If { branches, otherwise } => {
                if !braces {
                    return None;
                }
                for (i, branch) in branches.iter().enumerate() {
                    flat.push_str(if i == 0 { "if " } else { " else if " });
                    self.flat_head(flat, &branch.condition)?;
                    flat.push_str(" { ");
                    self.flat_expr(flat, &branch.then, true)?;
                    flat.push_str(" }");
                }
                flat.push_str(" else { ");
                self.flat_expr(flat, otherwise, true)?;
                flat.push_str(" }");
            }
            ExprKind::Int(_) | ExprKind::Float(_) | ExprKind::Bool(_) | ExprKind::String(_) | ExprKind::Name(_) => {
                flat.push_str(&self.literal(expr));
            }
        }
        Some(())
    }

    fn flat_operand(&self, flat: &mut String, expr: &Expr, parentheses: bool, braces: bool) -> Option<()> {
        if parentheses {
            flat.push('(');
        }
        self.flat_expr(flat, expr, braces)?;
        if parentheses {
            flat.push(')');
        }
        Some(())
    }
}

/// The length of the longest name; values are aligned behind it.
fn longest<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    names.map(str::len).max().unwrap_or(0)
}

/// Whether an operand of a binary operator must stand in parentheses to be read back as it is. `&&` inside `||` and
/// `if` inside anything get them too, for the reader.
fn needs_parentheses(operator: BinaryOperator, operand: &Expr, right: bool) -> bool {
    match &operand.kind {
        ExprKind::Binary { operator: inner, .. } => {
            let (outer, inner) = (operator.precedence(), inner.value.precedence());
            let same = inner == outer && (right || operator.is_comparison());
            let mixed = operator == BinaryOperator::Or && inner == BinaryOperator::And.precedence();
            inner < outer || same || mixed
        }
        ExprKind::If { .. } => true,
        _ => false,
    }
}

fn unary_needs_parentheses(operand: &Expr) -> bool {
    matches!(operand.kind, ExprKind::Binary { .. } | ExprKind::If { .. })
}

/// Text in quotes, with the escapes that the language has.
fn quoted(text: &str) -> String {
    let mut literal = String::with_capacity(text.len() + 2);
    literal.push('"');
    for c in text.chars() {
        match c {
            '"' => literal.push_str("\\\""),
            '\\' => literal.push_str("\\\\"),
            '\n' => literal.push_str("\\n"),
            '\r' => literal.push_str("\\r"),
            '\t' => literal.push_str("\\t"),
            c if c.is_control() => literal.push_str(&format!("\\u{{{:x}}}", c as u32)),
            c => literal.push(c),
        }
    }
    literal.push('"');
    literal
}

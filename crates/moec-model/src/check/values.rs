//! Compile-time values: integers, floats and booleans.

use moec_syntax::{self as ast, BinaryOperator as B, Code, Diagnostic, ExprKind, Span, UnaryOperator, did_you_mean};

use super::checker::{Checker, Scope};
use super::{names_in, names_in_body};
use crate::arithmetic::{NoResult, Number};
use crate::words::listed;

/// What an expression is, in words, without evaluating it.
pub(crate) fn describe(expr: &ast::Expr) -> &'static str {
    match &expr.kind {
        ExprKind::Int(_) => "an integer",
        ExprKind::Float(_) => "a float",
        ExprKind::Bool(_) => "a boolean",
        ExprKind::String(_) => "text",
        ExprKind::Name(_) => "a name",
        ExprKind::List(_) => "a list",
        ExprKind::Call(_) => "a call",
        ExprKind::Unary { .. } | ExprKind::Binary { .. } | ExprKind::If { .. } => "an expression",
        ExprKind::Sequence(_) => "a layer sequence",
    }
}

impl<'a> Checker<'a> {
    /// Evaluates an expression; `None` after a fault, which has been reported.
    pub(super) fn number(&mut self, expr: &ast::Expr, scope: Scope) -> Option<Number> {
        match &expr.kind {
            ExprKind::Int(value) => Some(Number::Int(*value)),
            ExprKind::Float(value) => Some(Number::Float(*value)),
            ExprKind::Bool(value) => Some(Number::Bool(*value)),
            ExprKind::Name(name) => self.name(name, expr.span, scope),
            ExprKind::Unary { operator, operand } => self.unary(operator.value, operand, expr.span, scope),
            ExprKind::Binary { operator, left, right } => self.binary(operator.value, left, right, expr.span, scope),
            ExprKind::If { branches, otherwise } => {
                let (taken, others) = self.branch(branches, otherwise, scope);
                for other in others {
                    self.aside(other.span, |checker| {
                        checker.number(other, scope);
                    });
                }
                self.number(taken?, scope)
            }
            ExprKind::String(_) | ExprKind::List(_) | ExprKind::Call(_) | ExprKind::Sequence(_) => {
                let d = Diagnostic::new(Code::NotCompileTime, format!("{} cannot be computed with", describe(expr)))
                    .primary(expr.span, "expected a number or a boolean")
                    .note("`let` and arithmetic take integers, floats and booleans that are known at compile time");
                self.report(d);
                None
            }
        }
    }

    fn name(&mut self, name: &str, span: Span, scope: Scope) -> Option<Number> {
        let found = self.visible(scope).find(|b| b.name == name).map(|b| (b.value, b.span));
        if let Some((value, bound)) = found {
            if let Some((_, used)) = self.lets.get_mut(&bound) {
                *used = true;
            }
            return value;
        }
        let mut d = Diagnostic::new(Code::UnknownName, format!("`{name}` is not defined"))
            .primary(span, "expected a number, or the name of an earlier `let`");
        // A block does not see the bindings of the model that uses it.
        let later = self.model.lets.iter().find(|(later, at)| later == name && *at > span);
        if let (Some(&(_, at)), true) = (later, self.model.expanding.is_empty()) {
            let d = d.secondary(at, "defined here, after its use").help("move the `let` in front of its first use");
            self.report(d);
            return None;
        }
        let near = did_you_mean(name, self.visible(scope).map(|b| b.name)).map(str::to_owned);
        d = match near {
            Some(near) => d.help(format!("did you mean `{near}`?")).patch(span, near, "use the name that is defined"),
            None => {
                let names: Vec<&str> = self.visible(scope).map(|b| b.name).collect();
                if names.is_empty() {
                    d.note("no names are defined here")
                } else {
                    d.note(format!("defined here: {}", listed(names.into_iter().rev().take(12))))
                }
            }
        };
        self.report(d);
        None
    }

    fn unary(&mut self, operator: UnaryOperator, operand: &ast::Expr, span: Span, scope: Scope) -> Option<Number> {
        let value = self.number(operand, scope)?;
        match (operator, value) {
            (UnaryOperator::Negate, Number::Int(_) | Number::Float(_)) => match value.negated() {
                Ok(value) => Some(value),
                Err(_) => self.overflow(span),
            },
            (UnaryOperator::Not, Number::Bool(b)) => Some(Number::Bool(!b)),
            (UnaryOperator::Negate, Number::Bool(_)) => self.operand("-", "a number", operand.span, value),
            (UnaryOperator::Not, _) => self.operand("!", "a boolean", operand.span, value),
        }
    }

    fn binary(&mut self, operator: B, left: &ast::Expr, right: &ast::Expr, span: Span, scope: Scope) -> Option<Number> {
        let symbol = operator.symbol();
        if matches!(operator, B::And | B::Or) {
            let a = match self.number(left, scope)? {
                Number::Bool(a) => a,
                other => return self.operand(symbol, "a boolean", left.span, other),
            };
            // The right side may rely on the left one, as in `n != 0 && 8 / n > 1`.
            if a == (operator == B::Or) {
                self.mark_read(right, scope);
                return Some(Number::Bool(a));
            }
            return match self.number(right, scope)? {
                Number::Bool(b) => Some(Number::Bool(b)),
                other => self.operand(symbol, "a boolean", right.span, other),
            };
        }
        if operator == B::Product {
            let d = Diagnostic::new(Code::WrongType, "`@` multiplies tensors, which only routers have");
            self.report(d.primary(span, "expected a number").help("numbers are multiplied with `*`"));
            return None;
        }
        // Both sides are looked at, so that faults in both are reported.
        let (a, b) = (self.number(left, scope), self.number(right, scope));
        let (a, b) = (a?, b?);
        if !matches!((a, b, operator), (Number::Bool(_), Number::Bool(_), B::Equal | B::NotEqual)) {
            for (value, side) in [(a, left), (b, right)] {
                if matches!(value, Number::Bool(_)) {
                    return self.operand(symbol, "a number", side.span, value);
                }
            }
        }
        match Number::combined(operator, a, b) {
            Ok(value) => Some(value),
            Err(NoResult::DivisionByZero) => self.division_by_zero(right.span),
            Err(NoResult::TooLarge) => self.overflow(span),
            Err(NoResult::WrongKind) => self.operand(symbol, "a number", right.span, b),
        }
    }

    /// The branch of an `if` that holds, or none after a fault in a condition, and the others, whose names count as read.
    pub(super) fn branch<'e>(
        &mut self,
        branches: &'e [ast::Branch<ast::Expr>],
        otherwise: &'e ast::Expr,
        scope: Scope,
    ) -> (Option<&'e ast::Expr>, Vec<&'e ast::Expr>) {
        let (mut taken, mut known, mut others) = (None, true, Vec::new());
        for branch in branches {
            if taken.is_some() || !known {
                self.mark_read(&branch.condition, scope);
                others.push(&branch.then);
                continue;
            }
            match self.condition(&branch.condition, scope) {
                Some(true) => taken = Some(&branch.then),
                Some(false) => others.push(&branch.then),
                None => {
                    known = false;
                    others.push(&branch.then);
                }
            }
        }
        if taken.is_some() || !known {
            others.push(otherwise);
        } else {
            taken = Some(otherwise);
        }
        others.iter().for_each(|other| self.mark_read(other, scope));
        (taken, others)
    }

    /// A condition must be a boolean.
    pub(super) fn condition(&mut self, expr: &ast::Expr, scope: Scope) -> Option<bool> {
        match self.number(expr, scope)? {
            Number::Bool(value) => Some(value),
            other => {
                let d = Diagnostic::new(Code::WrongType, "a condition must be a boolean")
                    .primary(expr.span, format!("this is {}", other.kind()))
                    .help("compare it with something, as in `n > 0`");
                self.report(d);
                None
            }
        }
    }

    /// Counts the names in an expression that is not evaluated as read.
    pub(super) fn mark_read(&mut self, expr: &ast::Expr, scope: Scope) {
        let mut names = Default::default();
        names_in(expr, &mut names);
        self.mark_names(&names, scope);
    }

    /// As [`Self::mark_read`], for statements that are not reached.
    pub(super) fn mark_body_read(&mut self, body: &ast::Body, scope: Scope) {
        let mut names = Default::default();
        names_in_body(body, &mut names);
        self.mark_names(&names, scope);
    }

    fn mark_names(&mut self, names: &std::collections::BTreeSet<&str>, scope: Scope) {
        let spans: Vec<Span> = self.visible(scope).filter(|b| names.contains(b.name)).map(|b| b.span).collect();
        for span in spans {
            if let Some((_, used)) = self.lets.get_mut(&span) {
                *used = true;
            }
        }
    }

    fn operand<T>(&mut self, symbol: &str, wanted: &str, span: Span, found: Number) -> Option<T> {
        let d = Diagnostic::new(Code::WrongType, format!("`{symbol}` takes {wanted}, not {}", found.kind()))
            .primary(span, format!("this is {found}"));
        self.report(d);
        None
    }

    fn division_by_zero<T>(&mut self, span: Span) -> Option<T> {
        self.report(Diagnostic::new(Code::DivisionByZero, "division by zero").primary(span, "this is 0"));
        None
    }

    fn overflow<T>(&mut self, span: Span) -> Option<T> {
        let d = Diagnostic::new(Code::NumberOverflow, "the result is too large")
            .primary(span, "this exceeds what a number can hold")
            .note("integers have 64 bits, and floats must stay finite");
        self.report(d);
        None
    }
}

//! The one way arguments are checked, for layers, routers, losses, optimizers and settings alike.

use std::borrow::Cow;
use std::collections::BTreeSet;

use indexmap::IndexMap;
use moec_syntax::{self as ast, Code, Diagnostic, ExprKind, Meant, Span, meant};

use super::checker::{Checker, Scope};
use super::values::describe;
use crate::argument::{ArgumentValue, Arguments, DefaultValue, ParameterSpec, ParameterType};
use crate::arithmetic::Number;
use crate::words::{any_of, listed};

/// Checked arguments of one call.
#[derive(Clone)]
pub(crate) struct Resolved<'e> {
    /// Values, with defaults for what was not given.
    pub(crate) arguments: Arguments,
    /// Arguments that the layer itself reads.
    pub(crate) forms: IndexMap<Cow<'static, str>, &'e ast::Expr>,
    /// Whether there was a fault.
    pub(crate) failed: bool,
}

/// The thing whose arguments are checked.
#[derive(Clone, Copy)]
pub(crate) struct Owner<'o> {
    /// Its name.
    pub(crate) name: &'o str,
    /// What it is, such as `layer`.
    pub(crate) kind: &'o str,
    /// Where its name was written.
    pub(crate) span: Span,
}

impl<'a> Checker<'a> {
    /// Checks `list` against what `owner` declares and reports every fault in it.
    pub(crate) fn arguments<'e>(
        &mut self,
        owner: Owner<'_>,
        specs: &[ParameterSpec],
        list: &'e [ast::Argument],
        scope: Scope,
    ) -> Resolved<'e> {
        let mut resolved =
            Resolved { arguments: Arguments::defaults(owner.name, specs), forms: IndexMap::new(), failed: false };
        let mut given: IndexMap<Cow<'static, str>, Span> = IndexMap::new();
        for argument in list {
            let Some(spec) = self.parameter(owner, specs, argument, &given, list) else {
                self.mark_read(&argument.value, scope);
                resolved.failed = true;
                continue;
            };
            let span = argument.name.as_ref().map_or(argument.span, |name| name.span);
            if let Some(&first) = given.get(&spec.name) {
                self.mark_read(&argument.value, scope);
                self.report(
                    Diagnostic::new(Code::DuplicateArgument, format!("argument `{}` is given twice", spec.name))
                        .primary(span, "given again here")
                        .secondary(first, "first given here")
                        .help("remove one of them"),
                );
                resolved.failed = true;
                continue;
            }
            given.insert(spec.name.clone(), span);
            if self.is_absent(spec, &argument.value, scope) {
                continue;
            }
            if let ParameterType::Form(_) = spec.ty {
                resolved.forms.insert(spec.name.clone(), &argument.value);
                resolved.arguments.place(&spec.name, argument.value.span);
                continue;
            }
            match self.value(owner, spec, &argument.value, scope) {
                Some(value) => resolved.arguments.set(&spec.name, value, argument.value.span),
                None => resolved.failed = true,
            }
        }
        let missing: Vec<&ParameterSpec> = specs
            .iter()
            .filter(|spec| spec.default == DefaultValue::Required && !given.contains_key(&spec.name))
            .collect();
        // A misspelt or unnamed argument is probably the missing one; its own message is enough.
        let explained = resolved.failed && list.len() > given.len();
        if !missing.is_empty() && !explained {
            let names = listed(missing.iter().map(|spec| spec.name.as_ref()));
            let mut d = Diagnostic::new(Code::MissingArgument, format!("`{}` needs {names}", owner.name))
                .primary(owner.span, format!("this {} has no {names}", owner.kind));
            for spec in missing {
                d = d.note(format!("`{}` is {}: {}", spec.name, article(&spec.ty.to_string()), spec.help));
            }
            self.report(d);
            resolved.failed = true;
        }
        resolved
    }

    /// Whether a value is the word for that of a parameter that need not have one, such as `clip none`.
    pub(super) fn is_absent(&self, spec: &ParameterSpec, value: &ast::Expr, scope: Scope) -> bool {
        let (DefaultValue::Absent(absent), ExprKind::Name(word)) = (spec.default, &value.kind) else { return false };
        word == absent && !self.visible(scope).any(|binding| binding.name == word)
    }

    /// The declared parameter that an argument is for.
    fn parameter<'s>(
        &mut self,
        owner: Owner<'_>,
        specs: &'s [ParameterSpec],
        argument: &ast::Argument,
        given: &IndexMap<Cow<'static, str>, Span>,
        list: &[ast::Argument],
    ) -> Option<&'s ParameterSpec> {
        let find = |name: &str| specs.iter().find(|spec| spec.name == name);
        let Some(name) = &argument.name else {
            // `capacity(factor: 1.25)` names itself.
            if let ExprKind::Call(call) = &argument.value.kind
                && let Some(spec) = find(&call.name.name)
                && matches!(spec.ty, ParameterType::Form(_))
            {
                return Some(spec);
            }
            self.positional(owner, specs, argument, given, list);
            return None;
        };
        if let Some(spec) = find(&name.name) {
            return Some(spec);
        }
        let message = format!("{} `{}` has no argument `{name}`", owner.kind, owner.name);
        // One that is there already was not meant.
        let named = |spec: &&ParameterSpec| list.iter().any(|a| a.name.as_ref().is_some_and(|n| n.name == spec.name));
        let free = specs.iter().filter(|spec| !named(spec));
        let likely = meant(&name.name, free.map(|spec| spec.name.as_ref()));
        let d = Diagnostic::new(Code::UnknownArgument, message).primary(name.span, "unknown argument");
        let d = match likely {
            // The name alone does not put it right.
            Some(Meant::Word(near)) if find(near).is_some_and(|spec| !may_be(spec, &argument.value)) => {
                match (meant(&name.name, []), find(near)) {
                    (Some(Meant::Otherwise(advice)), _) => d.help(advice),
                    (_, Some(spec)) => {
                        d.help(format!("did you mean `{near}`? It is {}", article(&spec.ty.to_string())))
                    }
                    (_, None) => d,
                }
            }
            likely => d.suggest(name.span, likely),
        };
        let d = match specs {
            [] => d.note(format!("`{}` takes no arguments", owner.name)),
            _ => d.note(format!("`{}` takes {}", owner.name, listed(specs.iter().map(|spec| spec.name.as_ref())))),
        };
        self.report(d);
        None
    }

    fn positional(
        &mut self,
        owner: Owner<'_>,
        specs: &[ParameterSpec],
        argument: &ast::Argument,
        given: &IndexMap<Cow<'static, str>, Span>,
        list: &[ast::Argument],
    ) {
        let mut d = Diagnostic::new(Code::PositionalArgument, format!("an argument of `{}` has no name", owner.name))
            .primary(argument.span, "expected `name: value`");
        let named: BTreeSet<&str> = list.iter().filter_map(|a| a.name.as_ref().map(|n| n.name.as_str())).collect();
        let free: Vec<&ParameterSpec> =
            specs.iter().filter(|s| !given.contains_key(&s.name) && !named.contains(s.name.as_ref())).collect();
        let required: Vec<&&ParameterSpec> = free.iter().filter(|s| s.default == DefaultValue::Required).collect();
        let unnamed = list.iter().filter(|a| a.name.is_none()).count();
        // `attention(heads)` with a `let heads` means the argument of that name.
        let same = match &argument.value.kind {
            ExprKind::Name(name) => free.iter().find(|s| s.name == name.as_str()),
            _ => None,
        };
        // A value says by itself what it can be.
        let fitting: Vec<&&ParameterSpec> = free.iter().filter(|spec| may_be(spec, &argument.value)).collect();
        // The word of a choice says more than a name, which could be that of a number; and what is absent unless it is given
        // is rather meant by its name.
        let is_choice = |spec: &&ParameterSpec| {
            matches!((&spec.ty, &argument.value.kind), (ParameterType::Choice(_), ExprKind::Name(_)))
        };
        let is_usual = |spec: &&ParameterSpec| !matches!(spec.default, DefaultValue::Absent(_));
        let fitting =
            [&is_choice as &dyn Fn(&&ParameterSpec) -> bool, &is_usual].into_iter().fold(fitting, |all, likely| {
                let some: Vec<&&ParameterSpec> = all.iter().copied().filter(|spec| likely(spec)).collect();
                if some.is_empty() { all } else { some }
            });
        let is_told = |spec: &&&ParameterSpec| may_be(spec, &argument.value);
        let meant = match (same, required.as_slice(), fitting.as_slice()) {
            (Some(spec), _, _) => Some(&spec.name),
            (None, [only], _) if unnamed == 1 && is_told(only) => Some(&only.name),
            (None, _, [only]) if unnamed == 1 || is_literal(&argument.value) => Some(&only.name),
            _ => None,
        };
        d = match (meant, specs) {
            (_, []) => d.note(format!("`{}` takes no arguments", owner.name)),
            (Some(name), _) => d.patch(argument.span.before(), format!("{name}: "), "name the argument"),
            (None, _) => {
                d.note(format!("`{}` takes {}", owner.name, listed(specs.iter().map(|spec| spec.name.as_ref()))))
            }
        };
        self.report(d);
    }

    /// Checks one value against what is declared.
    pub(crate) fn value(
        &mut self,
        owner: Owner<'_>,
        spec: &ParameterSpec,
        expr: &ast::Expr,
        scope: Scope,
    ) -> Option<ArgumentValue> {
        let choice = match spec.ty {
            ParameterType::Choice(words) => Some(words),
            _ => None,
        };
        if let ExprKind::If { branches, otherwise } = &expr.kind {
            let (taken, others) = self.branch(branches, otherwise, scope);
            for other in others {
                self.aside(other.span, |checker| {
                    checker.value(owner, spec, other, scope);
                });
            }
            return self.value(owner, spec, taken?, scope);
        }
        if let Some(words) = choice {
            return self.word(owner, spec, words, expr).map(ArgumentValue::Word);
        }
        if let (ParameterType::Text, ExprKind::String(text)) = (spec.ty, &expr.kind) {
            return Some(ArgumentValue::Text(text.clone()));
        }
        // A string, a list or a layer is a wrong type here, not something that cannot be computed.
        let not_a_number =
            matches!(expr.kind, ExprKind::String(_) | ExprKind::List(_) | ExprKind::Call(_) | ExprKind::Sequence(_));
        if not_a_number {
            return self.wrong_type(owner, spec, expr.span, describe(expr));
        }
        // Where no names exist, a name is no misspelt binding.
        if let ExprKind::Name(name) = &expr.kind
            && scope.binding.is_none()
        {
            return self.wrong_type(owner, spec, expr.span, &format!("`{name}`"));
        }
        let number = self.number(expr, scope)?;
        let (value, range) = match (spec.ty, number) {
            (ParameterType::Int(range), Number::Int(n)) => (ArgumentValue::Int(n), Some((range, n as f64))),
            (ParameterType::Float(range), Number::Int(n)) => (ArgumentValue::Float(n as f64), Some((range, n as f64))),
            (ParameterType::Float(range), Number::Float(x)) => (ArgumentValue::Float(x), Some((range, x))),
            (ParameterType::Bool, Number::Bool(b)) => (ArgumentValue::Bool(b), None),
            (_, number) => return self.wrong_type(owner, spec, expr.span, &format!("{} ({number})", number.kind())),
        };
        if let Some((range, x)) = range
            && !range.contains(x)
        {
            // No expert selected is a misunderstanding of its own.
            let code = match (owner.kind, spec.name.as_ref(), number) {
                ("router", "k", Number::Int(0)) => Code::TopKZero,
                _ => Code::OutOfRange,
            };
            let d = Diagnostic::new(code, format!("`{}` of `{}` must be {range}, not {number}", spec.name, owner.name))
                .primary(expr.span, format!("expected a number that is {range}"))
                .note(format!("`{}`: {}", spec.name, spec.help));
            self.report(d);
            return None;
        }
        Some(value)
    }

    fn word(
        &mut self,
        owner: Owner<'_>,
        spec: &ParameterSpec,
        words: &'static [&'static str],
        expr: &ast::Expr,
    ) -> Option<&'static str> {
        let quoted = matches!(expr.kind, ExprKind::String(_));
        let (ExprKind::Name(text) | ExprKind::String(text)) = &expr.kind else {
            return self.wrong_type(owner, spec, expr.span, describe(expr));
        };
        let found = words.iter().find(|word| **word == text.as_str());
        if let Some(word) = found.filter(|_| !quoted) {
            return Some(word);
        }
        let mut d = if quoted {
            Diagnostic::new(Code::WrongType, format!("`{}` of `{}` is a word without quotes", spec.name, owner.name))
        } else {
            Diagnostic::new(Code::UnknownValue, format!("`{}` of `{}` cannot be `{text}`", spec.name, owner.name))
        };
        d = d.primary(expr.span, format!("expected {}", any_of(words)));
        // The word of other tools for it, but one that a block may well have for a name.
        let text = if text == "half" && words.contains(&"bf16") { "float16" } else { text };
        d = match (found.copied(), meant(text, words.iter().copied())) {
            (Some(word), _) | (_, Some(Meant::Word(word))) => d.patch(expr.span, word, "use a word that it takes"),
            (None, meant) => d.suggest(expr.span, meant),
        };
        self.report(d);
        None
    }

    fn wrong_type<T>(&mut self, owner: Owner<'_>, spec: &ParameterSpec, span: Span, found: &str) -> Option<T> {
        let wanted = match spec.ty {
            ParameterType::Int(_) => "an integer".to_string(),
            ParameterType::Float(_) => "a number".to_string(),
            ParameterType::Bool => "`true` or `false`".to_string(),
            ParameterType::Choice(words) => any_of(words),
            ParameterType::Text => "a text in quotes".to_string(),
            ParameterType::Form(form) => format!("`{form}`"),
        };
        let d = Diagnostic::new(
            Code::WrongType,
            format!("`{}` of `{}` must be {wanted}, not {found}", spec.name, owner.name),
        )
        .primary(span, format!("expected {wanted}"))
        .note(format!("`{}`: {}", spec.name, spec.help));
        self.report(d);
        None
    }
}

/// The description of a type with its article.
fn article(ty: &str) -> String {
    match ty.chars().next() {
        Some('i') => format!("an {ty}"),
        Some('n' | 't') if !ty.starts_with("true") => format!("a {ty}"),
        _ => format!("written `{ty}`"),
    }
}

/// Whether a value says what it is without being computed.
fn is_literal(value: &ast::Expr) -> bool {
    matches!(
        value.kind,
        ExprKind::Int(_) | ExprKind::Float(_) | ExprKind::Bool(_) | ExprKind::String(_) | ExprKind::Name(_)
    )
}

/// Whether a parameter could have this value, as far as that can be seen without computing it.
fn may_be(spec: &ParameterSpec, value: &ast::Expr) -> bool {
    match (&spec.ty, &value.kind) {
        (ParameterType::Int(range), ExprKind::Int(n)) | (ParameterType::Float(range), ExprKind::Int(n)) => {
            range.contains(*n as f64)
        }
        (ParameterType::Float(range), ExprKind::Float(x)) => range.contains(*x),
        (ParameterType::Bool, ExprKind::Bool(_)) | (ParameterType::Text, ExprKind::String(_)) => true,
        (ParameterType::Choice(words), ExprKind::Name(word)) => words.contains(&word.as_str()),
        (_, ExprKind::Int(_) | ExprKind::Float(_) | ExprKind::Bool(_) | ExprKind::String(_)) => false,
        _ => true,
    }
}

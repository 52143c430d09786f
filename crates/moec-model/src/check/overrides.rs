//! Values given outside the file, as in `-s width=64` and `-s train.optimizer.lr=3e-4`.
//!
//! An override is parsed like a value of the file and then checked by the same rules. So that its spans cannot be
//! mistaken for places of the file, they are moved beyond any source; a message about such a place names the override.

use moec_syntax::{self as ast, Code, Diagnostic, ExprKind, SourceFile, Span, Statement, did_you_mean, parse_value};

use super::train::train_settings;
use super::{Checker, Override, listed};

/// Where the spans of the first override start, and how far apart the overrides are: above any source's size.
const STRIDE: usize = 1 << 32;

impl<'a> Checker<'a> {
    /// Reads `path=value` texts.
    pub(super) fn read_overrides(&mut self, texts: &[String]) {
        for text in texts {
            let Some((path, value)) = text.split_once('=') else {
                let d = Diagnostic::new(Code::UnknownOverride, format!("the override `{text}` has no value"))
                    .help("an override is written `path=value`, as in `train.steps=200`");
                self.report(d);
                continue;
            };
            let (path, value) = (path.trim().to_string(), value.trim());
            let expr = if path == "train.data" && !value.starts_with('"') && value != "synthetic" {
                // A path needs no quotes here: a shell has taken them off.
                Ok(ast::Expr { kind: ExprKind::String(value.to_string()), span: Span::new(0, value.len()) })
            } else {
                parse_value(&SourceFile::new("override", value))
            };
            match expr {
                Ok(mut expr) => {
                    shift(&mut expr, STRIDE * (self.overrides.len() + 1));
                    self.overrides.push(Override { text: text.clone(), path, value: expr, used: false });
                }
                Err(faults) => {
                    for fault in faults {
                        let message = format!("the override `{text}` has no valid value: {}", fault.message);
                        self.report(Diagnostic::new(Code::OverrideType, message));
                    }
                }
            }
        }
    }

    /// The value that replaces a binding or setting of the chosen model; the last one given counts.
    pub(super) fn take_override(&mut self, path: &str) -> Option<ast::Expr> {
        if !self.model.chosen {
            return None;
        }
        let mut found = None;
        for given in self.overrides.iter_mut().filter(|given| given.path == path) {
            given.used = true;
            found = Some(given.value.clone());
        }
        found
    }

    /// The span, if it is a place of the file.
    pub(super) fn in_file(&self, span: Span) -> Option<Span> {
        (span.start < STRIDE).then_some(span)
    }

    /// Labels of a diagnostic that lie in an override become a note that names it.
    pub(super) fn without_override_spans(&self, mut d: Diagnostic) -> Diagnostic {
        let Some(start) = d.labels.iter().map(|label| label.span.start).find(|&start| start >= STRIDE) else {
            return d;
        };
        d.labels.retain(|label| label.span.start < STRIDE);
        d.patches.retain(|patch| patch.span.start < STRIDE);
        if let Some(given) = self.overrides.get(start / STRIDE - 1) {
            d.notes.insert(0, format!("in the override `{}`", given.text));
        }
        if matches!(d.code, Code::WrongType | Code::UnknownName | Code::UnknownValue | Code::NotCompileTime) {
            d.code = Code::OverrideType;
        }
        d
    }

    /// Reports overrides that replaced nothing.
    pub(super) fn unused_overrides(&mut self, model: Option<&ast::Model>) {
        let unused: Vec<(String, String)> =
            self.overrides.iter().filter(|o| !o.used).map(|o| (o.text.clone(), o.path.clone())).collect();
        for (text, path) in unused {
            // Without a chosen model it is unknown what there is to override.
            if model.is_none() && !path.starts_with("train.") {
                continue;
            }
            let lets = model.map(|m| m.body.statements.as_slice()).unwrap_or_default();
            let names: Vec<&str> = lets
                .iter()
                .filter_map(|s| match s {
                    Statement::Let(node) => Some(node.name.name.as_str()),
                    Statement::Setting(node) => Some(node.name.name.as_str()),
                    _ => None,
                })
                .collect();
            let mut paths: Vec<String> = names.iter().map(|name| name.to_string()).collect();
            for setting in train_settings() {
                paths.push(format!("train.{}", setting.name));
                let arguments = setting.form.parameters();
                paths.extend(arguments.map(|spec| format!("train.{}.{}", setting.name, spec.name)));
            }
            let mut d = Diagnostic::new(Code::UnknownOverride, format!("the override `{text}` names nothing"));
            if let Some(near) = did_you_mean(&path, paths.iter().map(String::as_str)) {
                d = d.help(format!("did you mean `{near}`?"));
            }
            d = if path.starts_with("train.") {
                d.note(format!("settings of the recipe: {}", listed(train_settings().iter().map(|s| s.name))))
            } else {
                d.note(format!("names that can be overridden: {}, and settings of the recipe", listed(names)))
            };
            self.report(d);
        }
    }
}

/// Moves every span of a value.
fn shift(expr: &mut ast::Expr, by: usize) {
    let moved = |span: &mut Span| *span = Span::new(span.start + by, span.end + by);
    moved(&mut expr.span);
    match &mut expr.kind {
        ExprKind::Int(_)
        | ExprKind::Float(_)
        | ExprKind::Bool(_)
        | ExprKind::String(_)
        | ExprKind::Name(_)
        // Layers are no value of any setting; the span of the whole is what the message needs.
        | ExprKind::Sequence(_) => {}
        ExprKind::List(list) => list.iter_mut().for_each(|e| shift(e, by)),
        ExprKind::Call(call) => {
            moved(&mut call.span);
            moved(&mut call.name.span);
            for argument in call.arguments.iter_mut().flat_map(|a| &mut a.list) {
                moved(&mut argument.span);
                if let Some(name) = &mut argument.name {
                    moved(&mut name.span);
                }
                shift(&mut argument.value, by);
            }
        }
        ExprKind::Unary { operand, .. } => shift(operand, by),
        ExprKind::Binary { left, right, .. } => {
            shift(left, by);
            shift(right, by);
        }
        ExprKind::If { branches, otherwise } => {
            for branch in branches {
                shift(&mut branch.condition, by);
                shift(&mut branch.then, by);
            }
            shift(otherwise, by);
        }
    }
}

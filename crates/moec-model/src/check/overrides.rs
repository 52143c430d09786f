//! Values given outside the file, as in `-s width=64` and `-s train.optimizer.lr=3e-4`.
//!
//! An override is a text of the source like an imported file: its value is parsed like one of the file, checked by the
//! same rules, and messages point into it.

use moec_syntax::{self as ast, Code, Diagnostic, ExprKind, Meant, Span, Statement, did_you_mean, meant, parse_value};

use super::{Checker, Override, listed};
use crate::argument::{ParameterSpec, ParameterType};
use crate::layers::LAYERS;
use crate::recipe::train_settings;

impl<'a> Checker<'a> {
    /// Reads the overrides of the source.
    pub(super) fn read_overrides(&mut self) {
        let source = self.source;
        for given in source.overrides() {
            let whole = given.text();
            let (text, start) = match given.entry() {
                Some(entry) => (format!("{}={}", entry.path, &whole[entry.value.start..]), entry.value.start),
                None => (whole.to_string(), whole.find('=').map_or(0, |at| at + 1)),
            };
            let Some((path, value)) = text.split_once('=') else {
                let d = Diagnostic::new(Code::UnknownOverride, format!("the override `{text}` has no value"))
                    .help("an override is written `path=value`, as in `train.steps=200`");
                self.report(d);
                continue;
            };
            let (path, value) = (path.trim().to_string(), value.trim());
            let expr = if path == "train.data" && !value.starts_with('"') && value != "synthetic" {
                // A path needs no quotes here: a shell has taken them off.
                Ok(ast::Expr { kind: ExprKind::String(value.to_string()), span: given.span(start..whole.len()) })
            } else {
                parse_value(given, start)
            };
            match expr {
                Ok(value) => {
                    let key = given.entry().map(|entry| given.span(entry.key.clone()));
                    self.overrides.push(Override { text, path, key, value, used: false });
                }
                Err(faults) => {
                    for mut fault in faults {
                        fault.code = Code::OverrideType;
                        fault.message = format!("the override `{text}` has no valid value: {}", fault.message);
                        self.report(fault);
                    }
                }
            }
        }
    }

    /// How to override the argument of a layer or a router that a path ends with: by a number or boolean that the file names.
    fn argument_advice(&self, path: &str, value: &ast::Expr) -> Option<String> {
        let text = self.source.slice(value.span);
        let name = path.rsplit_once('.').map_or(path, |(_, name)| name);
        let of_layers = LAYERS.iter().flat_map(|layer| layer.parameters);
        let of_routers = self.registry.routers().flat_map(|router| router.parameters());
        let mut named = of_layers.chain(of_routers).filter(|spec| spec.name == name).peekable();
        named.peek()?;
        let can_be_bound = |spec: &ParameterSpec| {
            matches!(spec.ty, ParameterType::Int(_) | ParameterType::Float(_) | ParameterType::Bool)
        };
        let is_form = matches!(value.kind, ExprKind::Call(_) | ExprKind::List(_) | ExprKind::String(_));
        Some(if !is_form && named.any(can_be_bound) {
            format!(
                "`{name}` is an argument: write `let {name} = ..` in the model and `{name}` in its place, and the \
                 override `{name}={text}` replaces it"
            )
        } else {
            format!(
                "`{name}` is an argument, and a `let` names only numbers and booleans: change its line, or let one choose, \
                 with `let other = false` and `{name}: if other {{ {text} }} else {{ .. }}` in the model, and the override \
                 `other=true`"
            )
        })
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

    /// Reports overrides that replaced nothing.
    pub(super) fn unused_overrides(&mut self, model: Option<&ast::Model>) {
        let unused = self.overrides.iter().filter(|o| !o.used);
        let unused: Vec<_> = unused.map(|o| (o.text.clone(), o.path.clone(), o.key, o.value.clone())).collect();
        for (text, path, key, value) in unused {
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
            let d = Diagnostic::new(Code::UnknownOverride, format!("the override `{text}` names nothing"));
            let d = key.into_iter().fold(d, |d, key| d.primary(key, "unknown name"));
            let near = intended(&path, &paths).map(|near| format!("did you mean `{near}`?"));
            // The very name of an argument is nearer than a name that is like it.
            let last = |path: &str| path.rsplit('.').next().map(str::to_owned);
            let is_last = paths.iter().any(|known| last(known) == last(&path));
            let argument = self.argument_advice(&path, &value).filter(|_| !path.starts_with("train.") && !is_last);
            let advice = argument.or(near);
            let d = advice.into_iter().fold(d, Diagnostic::help);
            let d = if path.starts_with("train.") {
                d.note(format!("settings of the recipe: {}", listed(train_settings().iter().map(|s| s.name))))
            } else {
                d.note(format!("names that can be overridden: {}, and settings of the recipe", listed(names)))
            };
            self.report(d);
        }
    }
}

impl Checker<'_> {
    /// Whether a place is the value of the override of this path, rather than of something below it.
    pub(super) fn is_override_of(&self, path: &str, span: Span) -> bool {
        self.overrides.iter().any(|given| given.path == path && given.value.span.file() == span.file())
    }
}

/// The name that can be overridden and was probably meant: one that ends alike, is spelt alike in the same place, means the
/// same, or is spelt alike anywhere.
fn intended<'p>(path: &str, paths: &'p [String]) -> Option<&'p str> {
    let parts = |path: &'p str| path.rsplit_once('.').unwrap_or(("", path));
    let end = |path: &'p str| parts(path).1;
    let ending = |name: &str| paths.iter().map(String::as_str).find(|path| end(path) == name);
    let (place, name) = path.rsplit_once('.').unwrap_or(("", path));
    let beside = || paths.iter().map(String::as_str).filter(|path| parts(path).0 == place);
    ending(name)
        .or_else(|| {
            let near = did_you_mean(name, beside().map(end))?;
            beside().find(|path| end(path) == near)
        })
        .or_else(|| match meant(name, paths.iter().map(|path| end(path))) {
            Some(Meant::Word(name)) => ending(name),
            Some(Meant::Otherwise(_)) | None => None,
        })
        .or_else(|| did_you_mean(path, paths.iter().map(String::as_str)))
}

/// A place where a file says something; `None` for an override.
pub(super) fn in_file(span: Span) -> Option<Span> {
    Some(span).filter(|span| !span.file().is_override())
}

/// A message about the value of an override has the code that says so.
pub(super) fn about(mut d: Diagnostic) -> Diagnostic {
    let of_value = matches!(d.code, Code::WrongType | Code::UnknownName | Code::UnknownValue | Code::NotCompileTime);
    if of_value && d.span().is_some_and(|span| span.file().is_override()) {
        d.code = Code::OverrideType;
    }
    d
}

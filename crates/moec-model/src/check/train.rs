//! The recipe: the `train` block with its overrides.

use std::iter;

use indexmap::IndexMap;
use moec_plan::Conflict;
use moec_syntax::{self as ast, Code, Diagnostic, ExprKind, Span, TrainSetting, did_you_mean, meant};

use super::arguments::Owner;
use super::checker::{Checker, Scope};
use super::overrides::in_file;
use super::values::describe;
use crate::argument::{Arguments, DefaultValue, ParameterSpec, ParameterType};
use crate::recipe::{DataSource, Recipe, SettingForm, SettingSpec, Written, train_settings};
use crate::words::{any_of, listed};

impl<'a> Checker<'a> {
    /// Checks the recipe of a file; `None` if it has faults.
    pub(super) fn recipe(&mut self, file: &ast::File) -> Option<Recipe> {
        let errors = self.error_count();
        let blocks: Vec<&ast::Train> = file
            .items
            .iter()
            .filter_map(|item| match item {
                ast::Item::Train(train) => Some(train),
                _ => None,
            })
            .collect();
        if let [first, second, ..] = blocks.as_slice() {
            let keyword = |span: Span| span.head(5);
            let d = Diagnostic::new(Code::SeveralTrainBlocks, "there are several `train` blocks")
                .primary(keyword(second.span), "another one here")
                .secondary(keyword(first.span), "the first one")
                .help("keep one, and make variations with `-s train.NAME=VALUE`");
            self.report(d);
        }
        let mut written: Vec<TrainSetting> = blocks.first().map(|b| b.settings.clone()).unwrap_or_default();
        self.apply_overrides(&mut written);
        let mut data = DataSource::Synthetic;
        let mut settings: IndexMap<&'static str, Written> = IndexMap::new();
        let mut seen: IndexMap<&'static str, Span> = IndexMap::new();
        for setting in &written {
            let Some(spec) = self.setting_spec(setting) else { continue };
            let name_span = setting.name().span;
            if let Some(&first) = seen.get(spec.name) {
                let d = Diagnostic::new(Code::DuplicateSetting, format!("`{}` is given twice", spec.name))
                    .primary(name_span, "given again here")
                    .secondary(first, "first given here");
                self.report(d);
                continue;
            }
            seen.insert(spec.name, name_span);
            match &spec.form {
                SettingForm::Data => data = self.data(setting).unwrap_or(data),
                _ => {
                    if let Some(checked) = self.setting(spec, setting) {
                        settings.insert(spec.name, checked);
                    }
                }
            }
        }
        let mut recipe = Recipe::of(data, &settings);
        for (name, said) in &settings {
            let arguments = said.arguments.iter().filter_map(|(argument, _)| {
                let path = if argument == *name { format!("train.{name}") } else { format!("train.{name}.{argument}") };
                Some((path, said.arguments.span(argument)?))
            });
            recipe.origins.extend(arguments);
        }
        for (name, span) in seen {
            let path = format!("train.{name}");
            // What was not written may have got its place from an override of one of its arguments.
            if !span.file().is_override() || self.is_override_of(&path, span) {
                recipe.origins.entry(path).or_insert(span);
            }
            if let Some(span) = in_file(span) {
                recipe.spans.insert(name, span);
            }
        }
        self.consistent(&recipe, &settings);
        (self.error_count() == errors).then_some(recipe)
    }

    fn setting_spec(&mut self, setting: &TrainSetting) -> Option<&'static SettingSpec> {
        let name = setting.name();
        let found = train_settings().iter().find(|spec| spec.name == name.name);
        if found.is_none() {
            let names = || train_settings().iter().map(|spec| spec.name);
            let d = Diagnostic::new(Code::UnknownSetting, format!("`train` has no setting `{name}`"))
                .primary(name.span, "unknown setting")
                .suggest(name.span, meant(&name.name, names()));
            self.report(d.note(format!("the settings are {}", listed(names()))));
        }
        found
    }

    fn data(&mut self, setting: &TrainSetting) -> Option<DataSource> {
        if let TrainSetting::Value(value) = setting {
            match &value.value.kind {
                ExprKind::String(text) if !text.is_empty() => return Some(DataSource::Named(text.clone())),
                ExprKind::Name(word) if word == "synthetic" => return Some(DataSource::Synthetic),
                ExprKind::Name(word) if self.registry.find_data_set(word).is_some() => {
                    return Some(DataSource::Named(word.clone()));
                }
                ExprKind::Name(word) => {
                    let known = || iter::once("synthetic").chain(self.registry.data_sets().map(|d| d.name));
                    let mut d = Diagnostic::new(Code::UnknownValue, format!("`data` cannot be `{word}`"))
                        .primary(value.value.span, "expected `synthetic`, a known data set, or a path in quotes")
                        .note(format!("the texts with a name are {}", listed(known())));
                    d = match did_you_mean(word, known()) {
                        Some(near) => d.patch(value.value.span, near, "use the text of this name"),
                        None => d.patch(value.value.span, format!("\"{word}\""), "put the path in quotes"),
                    };
                    self.report(d);
                    return None;
                }
                _ => {}
            }
        }
        let d = Diagnostic::new(Code::WrongType, "`data` must be `synthetic`, a known data set, or a path in quotes")
            .primary(setting.span(), "expected `data synthetic` or `data \"corpus.txt\"`");
        self.report(d);
        None
    }

    /// Checks a setting other than `data`.
    fn setting(&mut self, spec: &'static SettingSpec, setting: &TrainSetting) -> Option<Written> {
        let name = setting.name();
        let span = in_file(name.span);
        let checked = |choice, arguments| Some(Written { choice, arguments, span });
        match (&spec.form, setting) {
            (SettingForm::Value(ty, default), TrainSetting::Value(value)) => {
                let spec = ParameterSpec::optional(spec.name, *ty, *default, spec.help);
                let owner = Owner { name: "train", kind: "setting", span: name.span };
                let mut arguments = Arguments::defaults(owner.name, std::slice::from_ref(&spec));
                if self.is_absent(&spec, &value.value, Scope::default()) {
                    return checked("", arguments);
                }
                let checked_value = self.value(owner, &spec, &value.value, Scope::default())?;
                arguments.set(&spec.name, checked_value, value.value.span);
                checked("", arguments)
            }
            (SettingForm::Arguments(specs), TrainSetting::Call(call)) => {
                let owner = Owner { name: spec.name, kind: "setting", span: name.span };
                let resolved = self.arguments(owner, specs, call.arguments(), Scope::default());
                if resolved.failed { None } else { checked("", resolved.arguments) }
            }
            (SettingForm::Choice(choices), TrainSetting::Value(value)) => {
                let (word, word_span, list): (&str, Span, &[ast::Argument]) = match &value.value.kind {
                    ExprKind::Name(word) => (word, value.value.span, &[]),
                    ExprKind::Call(call) => (&call.name.name, call.name.span, call.arguments()),
                    _ => return self.wrong_form(spec, setting),
                };
                let Some((choice, specs)) = choices.iter().find(|(choice, _)| *choice == word) else {
                    return self.unknown_choice(spec, word, word_span, choices);
                };
                let owner = Owner { name: choice, kind: spec.name, span: word_span };
                let resolved = self.arguments(owner, specs, list, Scope::default());
                if resolved.failed { None } else { checked(choice, resolved.arguments) }
            }
            _ => self.wrong_form(spec, setting),
        }
    }

    fn unknown_choice<T>(
        &mut self,
        spec: &SettingSpec,
        word: &str,
        span: Span,
        choices: &[(&'static str, Vec<ParameterSpec>)],
    ) -> Option<T> {
        let code = match spec.name {
            "optimizer" => Code::UnknownOptimizer,
            "schedule" => Code::UnknownSchedule,
            _ => Code::UnknownInit,
        };
        let names = || choices.iter().map(|(name, _)| *name);
        let mut d = Diagnostic::new(code, format!("there is no {} named `{word}`", spec.name))
            .primary(span, format!("expected {}", any_of(&names().collect::<Vec<_>>())));
        if let Some(near) = did_you_mean(word, names()).or_else(|| names().find(|name| name.starts_with(word))) {
            d = d.patch(span, near, "use the name that it has");
        }
        self.report(d);
        None
    }

    fn wrong_form<T>(&mut self, spec: &SettingSpec, setting: &TrainSetting) -> Option<T> {
        let example = match &spec.form {
            SettingForm::Data => "data synthetic".to_string(),
            SettingForm::Value(_, default) => match default {
                DefaultValue::Absent(_) | DefaultValue::Required => format!("{} 1.0", spec.name),
                default => format!("{} {default}", spec.name),
            },
            SettingForm::Arguments(specs) => {
                let said = specs.iter().filter(|s| !matches!(s.default, DefaultValue::Absent(_)));
                let list: Vec<String> = said.map(|s| format!("{}: {}", s.name, s.default)).collect();
                format!("{}({})", spec.name, list.join(", "))
            }
            SettingForm::Choice(choices) => {
                let (name, specs) = &choices[0];
                let list: Vec<String> = specs.iter().take(1).map(|s| format!("{}: {}", s.name, s.default)).collect();
                let arguments = if list.is_empty() { String::new() } else { format!("({})", list.join(", ")) };
                format!("{} {name}{arguments}", spec.name)
            }
        };
        let found = match setting {
            TrainSetting::Value(value) => describe(&value.value),
            TrainSetting::Call(_) => "arguments in parentheses",
        };
        let d = Diagnostic::new(Code::WrongType, format!("`{}` is not written with {found}", spec.name))
            .primary(setting.span(), format!("expected it written as `{example}`"))
            .note(format!("`{}`: {}", spec.name, spec.help));
        self.report(d);
        None
    }

    /// Faults that no setting has on its own.
    fn consistent(&mut self, recipe: &Recipe, settings: &IndexMap<&'static str, Written>) {
        let at = |setting: &str, argument: &str| {
            settings.get(setting).and_then(|s| s.arguments.span(argument)).unwrap_or_default()
        };
        if recipe.split <= 0.0 || recipe.split > 1.0 {
            let what = if recipe.split > 1.0 { "is more than the text" } else { "leaves nothing to train on" };
            let d = Diagnostic::new(Code::BadSplit, format!("a split of {} {what}", recipe.split))
                .primary(at("split", "split"), "expected more than 0 and at most 1")
                .help("0.9 trains on nine tenths of the text and evaluates on the rest; 1.0 trains on all of it");
            self.report(d);
        }
        for (of, argument, is_asked) in
            [("evaluate", "patience", recipe.evaluate.patience.is_some()), ("checkpoint", "best", recipe.best_kept)]
        {
            let (missing, cure) = if recipe.evaluate.every == 0 {
                ("there are no evaluations", "`evaluate(every: 100)` evaluates every 100 steps")
            } else if recipe.split >= 1.0 {
                ("nothing is held out", "`split 0.9` holds out a tenth of the text")
            } else {
                continue;
            };
            if is_asked {
                let message = format!("`{argument}` goes by the held-out loss, and {missing}");
                let d = Diagnostic::new(Code::ArgumentsConflict, message)
                    .primary(at(of, argument), "expected evaluations of text that is held out")
                    .help(cure);
                self.report(d);
            }
        }
        let conflict = |code, of: &str, Conflict { setting, message, expected }| {
            let said = settings.get(of);
            let whole = said.and_then(|s| s.span);
            let span = said.and_then(|s| s.arguments.span(setting)).or(whole).unwrap_or_default();
            Diagnostic::new(code, message).primary(span, expected)
        };
        if let Some(found) = (recipe.optimizer.spec.check)(&recipe.optimizer.settings) {
            self.report(conflict(Code::ArgumentsConflict, "optimizer", found));
        }
        for found in recipe.schedule.check(recipe.optimizer.lr(), recipe.steps) {
            let said = settings.get("steps").and_then(|s| s.arguments.span("steps").or(s.span));
            let mut counted = recipe.schedule.spec.settings.iter().filter(|s| matches!(s.ty, ParameterType::Int(_)));
            let is_counted = counted.any(|s| s.name == found.setting);
            let name = found.setting;
            let mut d = conflict(Code::OutOfRange, "schedule", found);
            if is_counted {
                if let Some(span) = said {
                    d = d.secondary(span, format!("{} steps", recipe.steps));
                }
                // A tenth is what most recipes have.
                let less = (recipe.steps / 10).max(1);
                d = d.help(format!(
                    "train for more steps, or make `{name}` smaller: `-s train.schedule.{name}={less}`, for example"
                ));
            }
            self.report(d);
        }
    }

    /// Puts `train.NAME=VALUE` and `train.NAME.ARGUMENT=VALUE` in the place of what is written, or behind it.
    fn apply_overrides(&mut self, written: &mut Vec<TrainSetting>) {
        for given in &mut self.overrides {
            let Some(path) = given.path.strip_prefix("train.") else { continue };
            let (name, argument) = match path.split_once('.') {
                Some((name, argument)) => (name, Some(argument)),
                None => (path, None),
            };
            let Some(spec) = train_settings().iter().find(|spec| spec.name == name) else { continue };
            if argument.is_some_and(|argument| !spec.form.parameters().any(|p| p.name == argument)) {
                continue;
            }
            let span = given.value.span;
            let at = match written.iter().position(|setting| setting.name().name == name) {
                Some(at) => at,
                None => {
                    written.push(blank(spec, span));
                    written.len() - 1
                }
            };
            let Some(argument) = argument else {
                let ident = ast::Ident { name: name.to_string(), span };
                written[at] = TrainSetting::Value(ast::Setting { name: ident, value: given.value.clone(), span });
                given.used = true;
                continue;
            };
            given.used = true;
            set_argument(&mut written[at], argument, &given.value);
        }
    }
}

/// A setting as it is when it is not written.
fn blank(spec: &SettingSpec, span: Span) -> TrainSetting {
    let name = ast::Ident { name: spec.name.to_string(), span };
    match &spec.form {
        SettingForm::Arguments(_) => TrainSetting::Call(ast::Call { name, arguments: None, body: None, span }),
        SettingForm::Choice(choices) => {
            let kind = ExprKind::Name(choices[0].0.to_string());
            TrainSetting::Value(ast::Setting { name, value: ast::Expr { kind, span }, span })
        }
        SettingForm::Data | SettingForm::Value(..) => {
            let kind = ExprKind::Bool(false);
            TrainSetting::Value(ast::Setting { name, value: ast::Expr { kind, span }, span })
        }
    }
}

/// Replaces an argument of a setting, or adds it.
fn set_argument(setting: &mut TrainSetting, name: &str, value: &ast::Expr) {
    let call = match setting {
        TrainSetting::Call(call) => call,
        TrainSetting::Value(value) => {
            if let ExprKind::Name(word) = &value.value.kind {
                let span = value.value.span;
                let name = ast::Ident { name: word.clone(), span };
                value.value.kind = ExprKind::Call(ast::Call { name, arguments: None, body: None, span });
            }
            match &mut value.value.kind {
                ExprKind::Call(call) => call,
                // Faulty in itself, and reported as that.
                _ => return,
            }
        }
    };
    let list = &mut call.arguments.get_or_insert_with(ast::Arguments::default).list;
    let argument = ast::Argument {
        name: Some(ast::Ident { name: name.to_string(), span: value.span }),
        value: value.clone(),
        span: value.span,
    };
    match list.iter_mut().find(|a| a.name.as_ref().is_some_and(|n| n.name == name)) {
        Some(old) => *old = argument,
        None => list.push(argument),
    }
}

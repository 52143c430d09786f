//! The recipe: the `train` block with its overrides.

use std::iter;

use indexmap::IndexMap;
use moec_syntax::{self as ast, Code, Diagnostic, ExprKind, Span, TrainSetting, did_you_mean};

use super::arguments::Owner;
use super::overrides::in_file;
use super::values::describe;
use super::{Checker, Scope, listed};
use crate::argument::{Arguments, DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::recipe::{AdamW, DataSource, Evaluate, InitScheme, Recipe, Schedule};

/// One setting of the `train` block.
#[derive(Clone, Copy, Debug)]
pub struct SettingSpec {
    /// Its name.
    pub name: &'static str,
    /// One line of help.
    pub help: &'static str,
    /// How it is written.
    pub form: SettingForm,
}

/// How a setting of the `train` block is written.
#[derive(Clone, Copy, Debug)]
pub enum SettingForm {
    /// `data synthetic`, `data "corpus.txt"`.
    Data,
    /// `batch 16`
    Value(ParameterType, DefaultValue),
    /// `evaluate(every: 100, batches: 400)`
    Arguments(&'static [ParameterSpec]),
    /// `optimizer adamw(lr: 1e-3)`: one of several names with arguments, the first by default.
    Choice(&'static [(&'static str, &'static [ParameterSpec])]),
}

impl SettingForm {
    /// The arguments that the setting can have in any of its forms.
    pub fn parameters(&self) -> impl Iterator<Item = &'static ParameterSpec> + use<> {
        let lists: Vec<&'static [ParameterSpec]> = match *self {
            SettingForm::Data | SettingForm::Value(..) => Vec::new(),
            SettingForm::Arguments(specs) => vec![specs],
            SettingForm::Choice(choices) => choices.iter().map(|(_, specs)| *specs).collect(),
        };
        lists.into_iter().flatten()
    }
}

const COUNT: ParameterType = ParameterType::Int(Interval::at_least(1.0));
const DECAY: ParameterType = ParameterType::Float(Interval::half_open(0.0, 1.0));

const fn count(name: &'static str, default: i64, help: &'static str) -> ParameterSpec {
    ParameterSpec::optional(name, COUNT, DefaultValue::Int(default), help)
}

const fn number(name: &'static str, range: Interval, default: f64, help: &'static str) -> ParameterSpec {
    ParameterSpec::optional(name, ParameterType::Float(range), DefaultValue::Float(default), help)
}

const ADAMW: &[ParameterSpec] = &[
    number("lr", Interval::above(0.0), 1e-3, "learning rate"),
    ParameterSpec::optional("beta1", DECAY, DefaultValue::Float(0.9), "decay of the first moment"),
    ParameterSpec::optional("beta2", DECAY, DefaultValue::Float(0.999), "decay of the second moment"),
    number("eps", Interval::above(0.0), 1e-8, "added to the root of the second moment"),
    number("weight_decay", Interval::at_least(0.0), 0.01, "decoupled weight decay"),
];

const COSINE: &[ParameterSpec] = &[
    ParameterSpec::optional(
        "warmup",
        ParameterType::Int(Interval::at_least(0.0)),
        DefaultValue::Int(0),
        "steps of linear warm-up",
    ),
    number("min_lr", Interval::at_least(0.0), 0.0, "learning rate at the last step"),
];

const NORMAL: &[ParameterSpec] = &[number("std", Interval::above(0.0), 0.02, "standard deviation of the weights")];

/// Every setting of the `train` block.
pub fn train_settings() -> &'static [SettingSpec] {
    const SETTINGS: &[SettingSpec] = &[
        SettingSpec {
            name: "data",
            help: "`synthetic`, a known data set, or the path of a text file in quotes",
            form: SettingForm::Data,
        },
        SettingSpec {
            name: "split",
            help: "share of the text used for training",
            form: SettingForm::Value(ParameterType::Float(Interval::ANY), DefaultValue::Float(0.9)),
        },
        SettingSpec {
            name: "batch",
            help: "sequences per step",
            form: SettingForm::Value(ParameterType::Int(Interval::closed(1.0, 1_048_576.0)), DefaultValue::Int(16)),
        },
        SettingSpec { name: "steps", help: "training steps", form: SettingForm::Value(COUNT, DefaultValue::Int(5000)) },
        SettingSpec {
            name: "seed",
            help: "seed of everything random",
            form: SettingForm::Value(ParameterType::Int(Interval::at_least(0.0)), DefaultValue::Int(1337)),
        },
        SettingSpec {
            name: "optimizer",
            help: "how parameters follow their gradients",
            form: SettingForm::Choice(&[("adamw", ADAMW)]),
        },
        SettingSpec {
            name: "schedule",
            help: "how the learning rate changes",
            form: SettingForm::Choice(&[("constant", &[]), ("cosine", COSINE)]),
        },
        SettingSpec {
            name: "clip",
            help: "bound on the global norm of the gradient",
            form: SettingForm::Value(ParameterType::Float(Interval::above(0.0)), DefaultValue::Absent("none")),
        },
        SettingSpec {
            name: "init",
            help: "how weights start",
            form: SettingForm::Choice(&[("kaiming_normal", &[]), ("xavier", &[]), ("normal", NORMAL), ("zeros", &[])]),
        },
        SettingSpec {
            name: "evaluate",
            help: "when and how long to evaluate",
            form: SettingForm::Arguments(&[
                count("every", 100, "steps between evaluations"),
                count("batches", 400, "batches per evaluation and split"),
            ]),
        },
        SettingSpec {
            name: "checkpoint",
            help: "when to save",
            form: SettingForm::Arguments(&[count("every", 1000, "steps between checkpoints")]),
        },
        SettingSpec {
            name: "log",
            help: "when to report progress",
            form: SettingForm::Arguments(&[count("every", 10, "steps between lines of progress")]),
        },
    ];
    SETTINGS
}

/// What a setting says once checked.
struct Setting {
    /// The name among several, for [`SettingForm::Choice`].
    choice: &'static str,
    /// Its arguments; a single value is named like the setting.
    arguments: Arguments,
    span: Option<Span>,
}

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
        let mut settings: IndexMap<&'static str, Setting> = IndexMap::new();
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
            match spec.form {
                SettingForm::Data => data = self.data(setting).unwrap_or(data),
                _ => {
                    if let Some(checked) = self.setting(spec, setting) {
                        settings.insert(spec.name, checked);
                    }
                }
            }
        }
        let mut recipe = Recipe { data, ..self.assemble(&settings) };
        for (name, span) in seen {
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
            let mut d = Diagnostic::new(Code::UnknownSetting, format!("`train` has no setting `{name}`"))
                .primary(name.span, "unknown setting");
            let names = || train_settings().iter().map(|spec| spec.name);
            // Names that other tools use.
            let alias = match name.name.as_str() {
                "batch_size" => Some("batch"),
                "max_steps" | "iterations" | "max_iters" => Some("steps"),
                "lr" | "learning_rate" => Some("optimizer"),
                "dataset" | "corpus" => Some("data"),
                other => did_you_mean(other, names()),
            };
            if let Some(near) = alias {
                d = d.help(format!("did you mean `{near}`?"));
                if near != "optimizer" {
                    d = d.patch(name.span, near, "use the name that it has");
                }
            }
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
    fn setting(&mut self, spec: &'static SettingSpec, setting: &TrainSetting) -> Option<Setting> {
        let name = setting.name();
        let span = in_file(name.span);
        let checked = |choice, arguments| Some(Setting { choice, arguments, span });
        match (spec.form, setting) {
            (SettingForm::Value(ty, default), TrainSetting::Value(value)) => {
                let spec = ParameterSpec::optional(spec.name, ty, default, spec.help);
                let owner = Owner { name: "train", kind: "setting", span: name.span };
                let checked_value = self.value(owner, &spec, &value.value, Scope::default())?;
                let mut arguments = Arguments::default();
                arguments.set(spec.name, checked_value, value.value.span);
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
                let Some(&(choice, specs)) = choices.iter().find(|(choice, _)| *choice == word) else {
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
        choices: &[(&'static str, &[ParameterSpec])],
    ) -> Option<T> {
        let code = match spec.name {
            "optimizer" => Code::UnknownOptimizer,
            "schedule" => Code::UnknownSchedule,
            _ => Code::UnknownInit,
        };
        let names = || choices.iter().map(|(name, _)| *name);
        let mut d = Diagnostic::new(code, format!("there is no {} named `{word}`", spec.name))
            .primary(span, format!("expected {}", super::arguments::any_of(&names().collect::<Vec<_>>())));
        if let Some(near) = did_you_mean(word, names()).or_else(|| names().find(|name| name.starts_with(word))) {
            d = d.patch(span, near, "use the name that it has");
        }
        self.report(d);
        None
    }

    fn wrong_form<T>(&mut self, spec: &SettingSpec, setting: &TrainSetting) -> Option<T> {
        let example = match spec.form {
            SettingForm::Data => "data synthetic".to_string(),
            SettingForm::Value(_, default) => match default {
                DefaultValue::Absent(_) | DefaultValue::Required => format!("{} 1.0", spec.name),
                default => format!("{} {default}", spec.name),
            },
            SettingForm::Arguments(specs) => {
                let list: Vec<String> = specs.iter().map(|s| format!("{}: {}", s.name, s.default)).collect();
                format!("{}({})", spec.name, list.join(", "))
            }
            SettingForm::Choice(choices) => {
                let (name, specs) = choices[0];
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

    fn assemble(&self, settings: &IndexMap<&'static str, Setting>) -> Recipe {
        let defaults = Recipe::default();
        let arguments = |name: &str| settings.get(name).map(|setting| &setting.arguments);
        let choice = |name: &str| settings.get(name).map_or("", |setting| setting.choice);
        let whole = |of: &str, name: &str, default: u64| {
            arguments(of).and_then(|a| u64::try_from(a.int(name)).ok()).unwrap_or(default)
        };
        let float = |of: &str, name: &str, default: f64| arguments(of).map_or(default, |a| a.float(name));
        Recipe {
            split: float("split", "split", defaults.split),
            batch: arguments("batch").map_or(defaults.batch, |a| a.size("batch")),
            steps: whole("steps", "steps", defaults.steps),
            seed: whole("seed", "seed", defaults.seed),
            optimizer: arguments("optimizer").map_or(defaults.optimizer, |a| AdamW {
                lr: a.float("lr"),
                beta1: a.float("beta1"),
                beta2: a.float("beta2"),
                eps: a.float("eps"),
                weight_decay: a.float("weight_decay"),
            }),
            schedule: match choice("schedule") {
                "cosine" => Schedule::Cosine {
                    warmup: whole("schedule", "warmup", 0),
                    min_lr: float("schedule", "min_lr", 0.0),
                },
                _ => defaults.schedule,
            },
            clip: arguments("clip").map(|a| a.float("clip")),
            init: match choice("init") {
                "xavier" => InitScheme::Xavier,
                "normal" => InitScheme::Normal { std: float("init", "std", 0.02) },
                "zeros" => InitScheme::Zeros,
                _ => defaults.init,
            },
            evaluate: Evaluate {
                every: whole("evaluate", "every", defaults.evaluate.every),
                batches: whole("evaluate", "batches", defaults.evaluate.batches),
            },
            checkpoint_every: whole("checkpoint", "every", defaults.checkpoint_every),
            log_every: whole("log", "every", defaults.log_every),
            ..defaults
        }
    }

    /// Faults that no setting has on its own.
    fn consistent(&mut self, recipe: &Recipe, settings: &IndexMap<&'static str, Setting>) {
        let at = |setting: &str, argument: &str| {
            settings.get(setting).and_then(|s| s.arguments.span(argument)).unwrap_or_default()
        };
        if recipe.split <= 0.0 || recipe.split >= 1.0 {
            let d = Diagnostic::new(Code::BadSplit, format!("a split of {} leaves nothing on one side", recipe.split))
                .primary(at("split", "split"), "expected more than 0 and less than 1")
                .help("0.9 trains on nine tenths of the text and evaluates on the rest");
            self.report(d);
        }
        let Schedule::Cosine { warmup, min_lr } = recipe.schedule else { return };
        let schedule = settings.get("schedule").and_then(|s| s.span).unwrap_or_default();
        if warmup >= recipe.steps {
            let message = format!("a warm-up of {warmup} steps does not end within {} steps", recipe.steps);
            let mut d = Diagnostic::new(Code::OutOfRange, message)
                .primary(at("schedule", "warmup"), format!("expected less than {}", recipe.steps));
            if let Some(span) = recipe.span("steps") {
                d = d.secondary(span, format!("{} steps", recipe.steps));
            }
            self.report(d);
        }
        if min_lr > recipe.optimizer.lr {
            let message = format!("`min_lr` ({min_lr}) is above the learning rate ({})", recipe.optimizer.lr);
            let span = settings.get("schedule").and_then(|s| s.arguments.span("min_lr")).unwrap_or(schedule);
            let d = Diagnostic::new(Code::OutOfRange, message)
                .primary(span, format!("expected at most {}", recipe.optimizer.lr));
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
    match spec.form {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::argument::ArgumentValue;

    #[test]
    fn the_table_and_the_default_recipe_agree() {
        let recipe = Recipe::default();
        let value = |name: &str| {
            let spec = train_settings().iter().find(|spec| spec.name == name).unwrap();
            match spec.form {
                SettingForm::Value(_, DefaultValue::Int(n)) => n as f64,
                SettingForm::Value(_, DefaultValue::Float(x)) => x,
                _ => f64::NAN,
            }
        };
        assert_eq!(value("split"), recipe.split);
        assert_eq!(value("batch"), recipe.batch as f64);
        assert_eq!(value("steps"), recipe.steps as f64);
        assert_eq!(value("seed"), recipe.seed as f64);
        let defaults = |name: &str| {
            let spec = train_settings().iter().find(|spec| spec.name == name).unwrap();
            let specs: Vec<ParameterSpec> = spec.form.parameters().cloned().collect();
            Arguments::defaults(&specs)
        };
        assert_eq!(defaults("evaluate").int("every"), recipe.evaluate.every as i64);
        assert_eq!(defaults("evaluate").int("batches"), recipe.evaluate.batches as i64);
        assert_eq!(defaults("checkpoint").int("every"), recipe.checkpoint_every as i64);
        assert_eq!(defaults("log").int("every"), recipe.log_every as i64);
        let adamw = defaults("optimizer");
        assert_eq!(adamw.get("lr"), Some(&ArgumentValue::Float(recipe.optimizer.lr)));
        assert_eq!(adamw.float("beta2"), recipe.optimizer.beta2);
        assert_eq!(adamw.float("weight_decay"), recipe.optimizer.weight_decay);
    }
}

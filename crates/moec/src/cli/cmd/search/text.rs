//! A spec with other values written into its text, where they would have been overridden.

use crate::Error;
use crate::error::Messages;
use moec_model::{SettingForm, train_settings};
use moec_syntax::{Argument, Call, Expr, ExprKind, File, Item, SourceFile, Span, Statement, Train, TrainSetting};

/// The text of a spec in which `values`, as `-s` would take them, stand in their places, in the layout of `moec fmt`. Whether it
/// means what the overrides mean is for the caller to check: what has no place in this text is left out.
///
/// # Errors
/// When the text with a value is no longer one of the language.
pub(super) fn with_values(source: &SourceFile, model: &str, values: &[(String, String)]) -> Result<String, Error> {
    let mut text = source.text().to_string();
    let imports = source.imported().map(|(path, file)| (path.to_string(), file.text().to_string())).collect();
    for (path, value) in values {
        let now = SourceFile::new(source.name(), text.clone()).with_kept_imports(&imports);
        let file = moec_syntax::parse(&now).map_err(|faults| Error::Spec(Messages::new(&now, faults)))?;
        if let Some((at, new)) = edit(&file, model, path, value) {
            text.replace_range(at, &new);
        }
    }
    let written = SourceFile::new(source.name(), text);
    moec_syntax::format(&written).map_err(|faults| Error::Spec(Messages::new(&written, faults)))
}

type Edit = (std::ops::Range<usize>, String);

/// The place of a value in the text, and what comes there.
fn edit(file: &File, model: &str, path: &str, value: &str) -> Option<Edit> {
    let of = |span: Span| span.start()..span.end();
    let Some(path) = path.strip_prefix("train.") else {
        let model = file.items.iter().find_map(|item| match item {
            Item::Model(found) if found.name.name == model => Some(found),
            _ => None,
        })?;
        return model.body.statements.iter().find_map(|statement| match statement {
            Statement::Let(bound) if bound.name.name == path => Some((of(bound.value.span), value.to_string())),
            Statement::Setting(setting) if setting.name.name == path => {
                Some((of(setting.value.span), value.to_string()))
            }
            _ => None,
        });
    };
    let (setting, argument) =
        path.split_once('.').map_or((path, None), |(setting, argument)| (setting, Some(argument)));
    let value = match setting {
        // A path needs no quotes on the command line.
        "data" if value != "synthetic" && !value.starts_with('"') => format!("{value:?}"),
        _ => value.to_string(),
    };
    let Some(train) = file.items.iter().find_map(|item| if let Item::Train(train) = item { Some(train) } else { None })
    else {
        let end = file.items.iter().map(|item| item.span().end()).max().unwrap_or(0);
        return Some((end..end, format!("\n\ntrain {{\n  {}\n}}", setting_text(setting, argument, &value))));
    };
    match (found(train, setting), argument) {
        (None, argument) => {
            let end = train.body_span.end() - 1;
            Some((end..end, format!("\n  {}\n", setting_text(setting, argument, &value))))
        }
        (Some(TrainSetting::Value(found)), None) => Some((of(found.value.span), value)),
        (Some(TrainSetting::Call(call)), None) => Some((of(call.span), format!("{setting} {value}"))),
        (Some(TrainSetting::Value(found)), Some(argument)) => match &found.value {
            Expr { kind: ExprKind::Call(call), .. } => Some(in_call(call, argument, &value)),
            // `optimizer adamw`
            name => Some((name.span.end()..name.span.end(), format!("({argument}: {value})"))),
        },
        (Some(TrainSetting::Call(call)), Some(argument)) => Some(in_call(call, argument, &value)),
    }
}

fn found<'a>(train: &'a Train, setting: &str) -> Option<&'a TrainSetting> {
    train.settings.iter().rev().find(|found| found.name().name == setting)
}

/// An argument of a call, replaced or added.
fn in_call(call: &Call, argument: &str, value: &str) -> Edit {
    let is_it = |given: &&Argument| given.name.as_ref().is_some_and(|name| name.name == argument);
    if let Some(given) = call.arguments().iter().find(is_it) {
        return (given.value.span.start()..given.value.span.end(), value.to_string());
    }
    match (&call.arguments, call.arguments().last()) {
        (_, Some(last)) => (last.span.end()..last.span.end(), format!(", {argument}: {value}")),
        (Some(empty), None) => (empty.span.start()..empty.span.end(), format!("({argument}: {value})")),
        (None, None) => (call.span.end()..call.span.end(), format!("({argument}: {value})")),
    }
}

/// A setting that was not there: `steps 300`, `evaluate(every: 100)`, `optimizer adamw(lr: 1e-3)`.
fn setting_text(setting: &str, argument: Option<&str>, value: &str) -> String {
    let Some(argument) = argument else { return format!("{setting} {value}") };
    let form = train_settings().iter().find(|spec| spec.name == setting).map(|spec| &spec.form);
    match form {
        Some(SettingForm::Choice(choices)) => {
            let default = choices.first().map_or("", |(name, _)| *name);
            format!("{setting} {default}({argument}: {value})")
        }
        _ => format!("{setting}({argument}: {value})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str, values: &[(&str, &str)]) -> String {
        let values: Vec<_> = values.iter().map(|(path, value)| (path.to_string(), value.to_string())).collect();
        with_values(&SourceFile::new("a.moe", text), "a", &values).unwrap()
    }

    const MODEL: &str = "// Mine.\nmodel a {\n  let k = 1 // experts a token\n\n  context 8\n  vocab   characters\n\n  embed(width: 8)\n  unembed\n}\n";

    #[test]
    fn values_stand_where_they_are_overridden() {
        let text = format!("{MODEL}\ntrain {{\n  optimizer adamw(lr: 1e-3)\n  evaluate(every: 5)\n}}\n");
        let new = written(
            &text,
            &[
                ("k", "3"),
                ("context", "16"),
                ("train.optimizer.lr", "2e-4"),
                ("train.optimizer.beta1", "0.8"),
                ("train.evaluate.batches", "2"),
                ("train.schedule.warmup", "10"),
                ("train.steps", "40"),
                ("train.data", "/x/a b.txt"),
            ],
        );
        for part in [
            "// Mine.",
            "let k = 3  // experts a token",
            "context 16",
            "adamw(lr: 2e-4, beta1: 0.8)",
            "evaluate(every: 5, batches: 2)",
            "(warmup: 10)",
            "40",
            "\"/x/a b.txt\"",
        ] {
            assert!(new.contains(part), "{part}: {new}");
        }
    }

    #[test]
    fn a_recipe_is_made_where_there_is_none() {
        let new = written(MODEL, &[("train.optimizer.lr", "2e-4"), ("train.steps", "7")]);
        assert!(new.contains("train {") && new.contains("adamw(lr: 2e-4)") && new.contains("7"), "{new}");
        let bare = format!("{MODEL}\ntrain {{\n  optimizer adamw\n}}\n");
        let new = written(&bare, &[("train.optimizer.lr", "2e-4"), ("train.optimizer", "lion")]);
        assert!(new.contains("optimizer lion"), "{new}");
    }
}

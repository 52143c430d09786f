//! `moec config`: every value of a recipe, and those of the model that have a name, with where each comes from.

use crate::cli::args::ConfigArgs;
use crate::cli::configuration::Values;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::sources;
use crate::pipeline::{self, Checked};
use moec_model::{DefaultValue, Registry, ResolvedValue, SettingForm, train_settings};
use moec_syntax::{SourceFile, Span};
use serde_json::{Value, json};

/// A value with where it was given; `None` for a default.
pub(crate) struct Shown {
    /// The path by which `-s` names it.
    pub(crate) name: String,
    value: Value,
    origin: Option<Span>,
}

impl Shown {
    /// The value for people.
    pub(crate) fn text(&self) -> String {
        match &self.value {
            Value::Null => "none".to_string(),
            Value::String(text) => text.clone(),
            value => value.to_string(),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When the spec, the file of values or an override is wrong.
pub(crate) fn run(args: &ConfigArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    let reading = &args.spec.reading;
    let source = Values::read(reading.config.as_deref(), &reading.set)?.placed(&sources::read(&args.spec.spec)?);
    let checked = pipeline::check(&source, registry, reading.model.as_deref());
    let checked = checked.map_err(|d| Failure::source(source.clone(), d, Exit::Usage))?;
    console.diagnostics(&source, &checked.warnings, reading.message_format);
    let values = values(&checked);
    if args.json {
        let value = |shown: &Shown| json!({ "name": shown.name, "value": shown.value, "origin": origin_json(shown.origin, &source) });
        console.json(&json!({
            "schema": "moec.config/1",
            "spec": source.name(),
            "model": checked.model.name,
            "values": values.iter().map(value).collect::<Vec<_>>(),
        }))?;
        return Ok(Exit::Success);
    }
    let width = |of: &dyn Fn(&Shown) -> usize| values.iter().map(of).max().unwrap_or(0);
    let (names, texts) = (width(&|v| v.name.chars().count()), width(&|v| v.text().chars().count()));
    for shown in &values {
        let line = format!("{:<names$}  {:<texts$}", shown.name, shown.text());
        let origin = if args.show_origin { format!("  {}", origin_text(shown.origin, &source)) } else { String::new() };
        console.prose(&format!("{}\n", (line + &origin).trim_end()))?;
    }
    Ok(Exit::Success)
}

/// Names of the model in the order of the file, then the recipe in the order of the reference.
pub(crate) fn values(checked: &Checked) -> Vec<Shown> {
    // A number stays one.
    let plain = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    let mut shown: Vec<Shown> = (checked.named.iter())
        .map(|named| Shown { name: named.name.clone(), value: plain(&named.value), origin: Some(named.span) })
        .collect();
    let recipe = &checked.recipe;
    let resolved = recipe.to_resolved();
    let mut add = |path: String, value: Option<&ResolvedValue>, otherwise: Value| {
        let value = value.and_then(|value| serde_json::to_value(value).ok()).unwrap_or(otherwise);
        shown.push(Shown { origin: recipe.origin(&path), name: path, value });
    };
    let absent = |default: DefaultValue| match default {
        DefaultValue::Absent(word) => Value::from(word),
        DefaultValue::Bool(value) => Value::from(value),
        DefaultValue::Int(value) => Value::from(value),
        DefaultValue::Float(value) => Value::from(value),
        DefaultValue::Word(word) => Value::from(word),
        _ => Value::Null,
    };
    for setting in train_settings() {
        let path = format!("train.{}", setting.name);
        let said = resolved.get(setting.name);
        let below = |name: &str| match said {
            Some(ResolvedValue::Map(values)) => values.get(name),
            _ => None,
        };
        match &setting.form {
            SettingForm::Data => add(path, below("name").or(said), Value::Null),
            SettingForm::Value(_, default) => add(path, said, absent(*default)),
            SettingForm::Arguments(arguments) => {
                for argument in arguments {
                    add(format!("{path}.{}", argument.name), below(&argument.name), absent(argument.default));
                }
            }
            SettingForm::Choice(choices) => {
                let name = below("name");
                add(path.clone(), name, Value::Null);
                let chosen = choices.iter().find(|(choice, _)| name == Some(&ResolvedValue::from(*choice)));
                for argument in chosen.into_iter().flat_map(|(_, arguments)| arguments) {
                    add(format!("{path}.{}", argument.name), below(&argument.name), absent(argument.default));
                }
            }
        }
    }
    shown
}

fn origin_text(origin: Option<Span>, source: &SourceFile) -> String {
    let Some(span) = origin else { return "default".to_string() };
    let file = source.file(span.file());
    if span.file().is_override() && file.entry().is_none() {
        return file.name().to_string();
    }
    format!("{}:{}", file.name(), file.line_column(span.start()).line)
}

fn origin_json(origin: Option<Span>, source: &SourceFile) -> Value {
    let Some(span) = origin else { return json!({ "kind": "default" }) };
    let file = source.file(span.file());
    let line = file.line_column(span.start()).line;
    match (span.file().is_override(), file.entry()) {
        (true, None) => json!({ "kind": "command line", "override": file.text() }),
        (true, Some(_)) => json!({ "kind": "config", "file": file.name(), "line": line }),
        (false, _) => json!({ "kind": "file", "file": file.name(), "line": line }),
    }
}

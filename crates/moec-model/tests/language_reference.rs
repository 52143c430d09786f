//! The tables of grammar/README.md are what layers, routers, losses, optimisers and schedules declare. With `INSTA_UPDATE=always` they are
//! written anew; read the diff.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::path::Path;

use moec_model::{DefaultValue, LAYERS, ParameterSpec, ParameterType, Registry, library};
use moec_plan::{OPTIMIZERS, SCHEDULES};

/// A row for whatever takes the arguments, with its summary, and a row for each of them.
fn rows(name: &str, summary: &str, parameters: &[ParameterSpec]) -> String {
    let mut text = format!("| {name} | | | | {} |\n", cell(summary));
    for parameter in parameters {
        let value = match parameter.ty {
            ParameterType::Choice(words) => format!("`{}`", words.join("`, `")),
            ParameterType::Bool => "`true`, `false`".to_string(),
            ParameterType::Form(form) => format!("`{form}`"),
            other => other.to_string(),
        };
        let default = match parameter.default {
            DefaultValue::Required => String::new(),
            DefaultValue::Word(word) => format!("`{word}`"),
            DefaultValue::Bool(value) => format!("`{value}`"),
            other => other.to_string(),
        };
        let default = if default.is_empty() { default } else { format!("{default} ") };
        text += &format!("| | `{}` | {value} | {default}| {} |\n", parameter.name, cell(&parameter.help));
    }
    text
}

/// Text as it stands in a cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// A table whose first column is named `what`.
fn table(what: &str, rows: impl Iterator<Item = String>) -> String {
    format!("| {what} | Argument | Value | Default | Meaning |\n|---|---|---|---|---|\n{}", rows.collect::<String>())
}

/// The tables by name.
fn tables() -> [(&'static str, String); 7] {
    let registry = Registry::with_builtins();
    let layers = LAYERS.iter().map(|layer| {
        let name = if layer.has_layers { format!("`{} {{ .. }}`", layer.name) } else { format!("`{}`", layer.name) };
        rows(&name, layer.summary, layer.parameters)
    });
    let forms = LAYERS.iter().flat_map(|layer| {
        let summary = move |form: &str| layer.argument_with(form).unwrap().help.to_string();
        layer.forms.iter().map(move |(form, parameters)| rows(&format!("`{form}(..)`"), &summary(form), parameters))
    });
    let routers =
        registry.routers().map(|router| rows(&format!("`{}`", router.name()), router.summary(), router.parameters()));
    let library: Vec<String> = library::routers()
        .into_iter()
        .map(|(path, router)| {
            let name = format!("`{}` in `{path}`", router.name());
            rows(&name, router.summary(), router.parameters())
        })
        .collect();
    let losses = registry.losses().map(|loss| rows(&format!("`{}`", loss.name), loss.summary, &loss.all_parameters()));
    let optimizers = OPTIMIZERS.iter().map(|spec| rows(&format!("`{}`", spec.name), spec.summary, spec.settings));
    let schedules = SCHEDULES.iter().map(|spec| rows(&format!("`{}`", spec.name), spec.summary, spec.settings));
    [
        ("layers", table("Layer", layers)),
        ("forms", table("Form", forms)),
        ("routers", table("Router", routers)),
        ("the library", table("Router", library.into_iter())),
        ("losses", table("Loss", losses)),
        ("optimizers", table("Optimizer", optimizers)),
        ("schedules", table("Schedule", schedules)),
    ]
}

#[test]
fn the_tables_are_what_is_declared() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../grammar/README.md");
    let written = std::fs::read_to_string(&path).unwrap();
    let mut text = written.clone();
    for (name, table) in tables() {
        let begin = format!("<!-- table of {name}, written from the declarations -->\n");
        let start = text.find(&begin).unwrap_or_else(|| panic!("grammar/README.md has no {begin}")) + begin.len();
        let end = start + text[start..].find("<!-- end -->").unwrap();
        text.replace_range(start..end, &table);
    }
    if text != written {
        if std::env::var("INSTA_UPDATE").is_ok_and(|update| update == "always") {
            std::fs::write(&path, text).unwrap();
        } else {
            panic!("grammar/README.md differs from the declarations; INSTA_UPDATE=always writes its tables anew");
        }
    }
}

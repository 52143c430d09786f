//! `moec explain`: what a message code, a layer, a routing strategy, a balance loss, an optimiser, a schedule or a number of a
//! training means.

use crate::cli::args::ExplainArgs;
use crate::cli::columns::{COLUMNS, Column};
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::reference::{self, Entry};
use moec_model::{LAYERS, Registry};
use moec_syntax::Code;
use serde_json::{Value, json};

/// Runs the command.
///
/// # Errors
/// When the name stands for nothing.
pub(crate) fn run(args: &ExplainArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    let entries = reference::strategies(registry, args.spec.as_deref())?;
    let Some(name) = &args.name else {
        list(args, registry, &entries, console)?;
        return Ok(Exit::Success);
    };
    // Things of different kinds can have the same name: all are explained.
    let (mut texts, mut values): (Vec<String>, Vec<Value>) = (Vec::new(), Vec::new());
    if let Ok(code) = name.to_uppercase().parse::<Code>() {
        texts.push(code.explain() + "\n");
        values.push(code_json(code));
    }
    if let Some(layer) = LAYERS.iter().find(|layer| layer.name == name) {
        texts.push(reference::layer_full(layer));
        values.push(reference::layer_json(layer));
    }
    if let Some(entry) = entries.iter().find(|e| e.strategy.name() == name) {
        texts.push(entry.full());
        values.push(entry.json());
    }
    if let Some(loss) = registry.find_loss(name) {
        texts.push(reference::loss_full(loss, registry));
        values.push(reference::loss_json(loss));
    }
    for part in reference::recipe_parts().filter(|part| part.name == name) {
        texts.push(part.full());
        values.push(part.json());
    }
    for column in COLUMNS.iter().filter(|column| column.name == name) {
        texts.push(column.full(console.columns()));
        values.push(column.json());
    }
    if texts.is_empty() {
        return Err(not_found(name, registry, &entries));
    }
    match (args.json, &values[..]) {
        (true, [value]) => console.json(value)?,
        (true, _) => console.json(&Value::Array(values))?,
        (false, _) => console.out_fitted(texts.join("\n\n").trim_end_matches('\n'))?,
    }
    Ok(Exit::Success)
}

fn list(args: &ExplainArgs, registry: &Registry, entries: &[Entry], console: &Console) -> Result<(), Failure> {
    if args.json {
        let codes = Code::ALL.iter().map(|c| code_json(*c));
        let layers = LAYERS.iter().map(|layer| reference::layer_json(layer));
        let routers = entries.iter().map(Entry::json);
        let losses = registry.losses().map(reference::loss_json);
        let parts = reference::recipe_parts().map(|part| part.json());
        let columns = COLUMNS.iter().map(Column::json);
        let all = codes.chain(layers).chain(routers).chain(losses).chain(parts).chain(columns);
        return console.json(&Value::Array(all.collect()));
    }
    for code in Code::ALL {
        console.out_fitted(format!("{}  {}", code.number(), code.summary()))?;
    }
    for layer in LAYERS {
        console.out_fitted(format!("{}  layer: {}", layer.name, layer.summary))?;
    }
    for entry in entries {
        console.out_fitted(format!("{}  router: {}", entry.strategy.name(), entry.strategy.summary()))?;
    }
    for loss in registry.losses() {
        console.out_fitted(format!("{}  balance loss: {}", loss.name, loss.summary))?;
    }
    for part in reference::recipe_parts() {
        console.out_fitted(format!("{}  {}: {}", part.name, part.kind, part.summary))?;
    }
    for column in COLUMNS {
        console.out_fitted(format!("{}  number of a training: {}", column.name, column.summary))?;
    }
    Ok(())
}

fn not_found(name: &str, registry: &Registry, entries: &[Entry]) -> Failure {
    let is_code = |text: &str| text.len() > 1 && text[1..].bytes().all(|b| b.is_ascii_digit());
    let upper = name.to_uppercase();
    let codes = Code::ALL.iter().map(|c| c.number().to_string());
    let layers = LAYERS.iter().map(|layer| layer.name.to_string());
    let routers = entries.iter().map(|e| e.strategy.name().to_string());
    let losses = registry.losses().map(|loss| loss.name.to_string());
    let parts = reference::recipe_parts().map(|part| part.name.to_string());
    let columns = COLUMNS.iter().map(|column| column.name.to_string());
    let known: Vec<String> = codes.chain(layers).chain(routers).chain(losses).chain(parts).chain(columns).collect();
    reference::unknown(if name.is_ascii() && is_code(&upper) { &upper } else { name }, &known)
}

fn code_json(code: Code) -> Value {
    json!({
        "schema": "moec.explain/1",
        "kind": "code",
        "code": code.number(),
        "severity": code.severity().to_string(),
        "summary": code.summary(),
        "explanation": code.explanation(),
    })
}

//! `moec explain`: what a message code, a layer, a routing strategy, a balance loss, an optimiser, a schedule or a number of a
//! training means; and what is wrong with a run.

use crate::cli::args::ExplainArgs;
use crate::cli::cmd::compare;
use crate::cli::columns::{COLUMNS, Column};
use crate::cli::console::Console;
use crate::cli::devices::Devices;
use crate::cli::exit::{Exit, Failure};
use crate::cli::reference::{self, Entry};
use crate::cli::run_name;
use crate::cli::run_report::{Findings, Subject};
use crate::cli::shell;
use crate::cli::units::grouped;
use crate::report::Finding;
use moec_model::{LAYERS, Registry, reference as text};
use moec_runtime::Metric;
use moec_syntax::Code;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Characters that are sent through a model to see what its noise does.
const CHARACTERS: usize = 512;

/// Runs the command.
///
/// # Errors
/// When the name stands for nothing, or a run cannot be read.
pub(crate) fn run(
    args: &ExplainArgs,
    registry: &Registry,
    devices: Devices,
    console: &Console,
) -> Result<Exit, Failure> {
    let entries = reference::strategies(registry, args.spec.as_deref())?;
    let Some(name) = &args.name else {
        list(args, registry, &entries, console)?;
        return Ok(Exit::Success);
    };
    let as_run = Path::new(name);
    // As codes, names may be written in any case, unless a folder is called so.
    let known = known(registry, &entries);
    let alike = || known.iter().find(|known| known.eq_ignore_ascii_case(name)).filter(|_| !as_run.is_dir());
    let name = if known.contains(name) { name } else { alike().unwrap_or(name) };
    // Things of different kinds can have the same name: all are explained.
    let (mut texts, mut values): (Vec<String>, Vec<Value>) = (Vec::new(), Vec::new());
    if let Ok(code) = name.to_uppercase().parse::<Code>() {
        texts.push(code.explain() + "\n");
        values.push(code_json(code));
    }
    if let Some(layer) = LAYERS.iter().find(|layer| layer.name == name) {
        texts.push(text::layer(layer));
        values.push(reference::layer_json(layer));
    }
    if let Some(entry) = entries.iter().find(|e| e.strategy.name() == name) {
        texts.push(entry.full());
        values.push(entry.json());
    }
    if let Some(loss) = registry.find_loss(name) {
        texts.push(text::loss(loss, registry));
        values.push(reference::loss_json(loss));
    }
    for part in text::recipe_parts().filter(|part| part.name == name) {
        texts.push(part.text());
        values.push(reference::part_json(&part));
    }
    for column in COLUMNS.iter().filter(|column| column.is_called(name)) {
        texts.push(column.full(console.columns()));
        values.push(column.json());
    }
    if texts.is_empty() {
        let is_path = name.contains(std::path::is_separator) || matches!(name.as_str(), "." | "..");
        if as_run.is_file() && as_run.extension().is_some_and(|extension| extension == "moe") {
            return Err(is_spec(as_run));
        }
        if is_path || as_run.is_dir() {
            return run_of(as_run, args, registry, devices, console);
        }
        let found = reference::setting_or_argument(name, registry, &entries);
        let (text, value) = found.ok_or_else(|| not_found(name, &known))?;
        texts.push(text);
        values.push(value);
    }
    if as_run.join("spec.moe").is_file() && as_run.components().count() == 1 {
        console.note(format!(
            "there is a run of that name, too: moec explain {}",
            shell::path(&Path::new(".").join(name))
        ));
    }
    match (args.json, &values[..]) {
        (true, [_]) => console.json(&with_schema(values.remove(0)))?,
        (true, _) => console.json(&Value::Array(values.into_iter().map(with_schema).collect()))?,
        (false, _) => console.prose(&texts.join("\n\n"))?,
    }
    Ok(Exit::Success)
}

/// What is wrong with a run.
fn run_of(
    path: &Path,
    args: &ExplainArgs,
    registry: &Registry,
    devices: Devices,
    console: &Console,
) -> Result<Exit, Failure> {
    if let [first, ..] = &compare::runs_in(path)[..] {
        let message = format!("{} is a comparison of several runs", path.display());
        let one = format!("moec explain {} explains one of them", shell::path(first));
        let all = format!("moec report {} has what is wrong with all on a page", shell::path(path));
        return Err(Failure::new(Exit::Usage, message).help(one).help(all));
    }
    let subject = Subject::read(path, registry, console)?;
    let mut noise = BTreeMap::new();
    if subject.is_noisy()
        && let Some(text) = subject.text(CHARACTERS)
    {
        (_, noise) = subject.routes(&text, registry, args.device, devices, console)?;
    }
    let Findings { found, missing, looked_for } = subject.findings(noise);
    let (metrics, spec) = (subject.metrics(), subject.spec());
    let step = metrics.iter().map(Metric::step).max().unwrap_or(0);
    let steps = spec.checked.recipe.steps;
    let evaluations = metrics.iter().filter(|metric| matches!(metric, Metric::Evaluation(_))).count();
    if args.json {
        let diagnosis = |finding: &Finding| {
            let Finding { diagnosis, line } = finding;
            let line = line.as_ref().map(|l| json!({ "file": l.file, "number": l.number, "text": l.text }));
            json!({
                "fault": diagnosis.fault.name(),
                "title": diagnosis.fault.title(),
                "layers": diagnosis.layers,
                "seen": diagnosis.seen,
                "why": diagnosis.fault.why(),
                "cure": diagnosis.cure,
                "line": line,
            })
        };
        console.json(&json!({
            "schema": "moec.explain.run/1",
            "run": subject.root.display().to_string(),
            "step": step,
            "steps": steps,
            "evaluations": evaluations,
            "missing": missing,
            "looked_for": looked_for,
            "diagnoses": found.iter().map(diagnosis).collect::<Vec<_>>(),
        }))?;
        return Ok(Exit::Success);
    }
    let several = if evaluations == 1 { "" } else { "s" };
    let mut text = format!(
        "{}: {} of {} steps, {evaluations} evaluation{several}\n",
        subject.root.display(),
        grouped(step),
        grouped(steps)
    );
    for finding in &found {
        text += &format!("\n{}\n", finding.diagnosis.text(&spec.source));
    }
    match (&missing, &found[..]) {
        (Some(missing), _) => text += &format!("\ntoo little to say more: {missing}\n"),
        (None, []) => {
            text += &format!(
                "\nnone of the known faults is found: {}. That does not mean that the routing is good\n",
                looked_for.join(", ")
            );
        }
        (None, _) => {}
    }
    text += &format!("\nall that it reported, on a page: moec report {}\n", shell::path(&subject.root));
    console.prose(&text)?;
    Ok(Exit::Success)
}

fn list(args: &ExplainArgs, registry: &Registry, entries: &[Entry], console: &Console) -> Result<(), Failure> {
    if args.json {
        let codes = Code::ALL.iter().map(|c| code_json(*c));
        let layers = LAYERS.iter().map(|layer| reference::layer_json(layer));
        let routers = entries.iter().map(Entry::json);
        let losses = registry.losses().map(reference::loss_json);
        let parts = text::recipe_parts().map(|part| reference::part_json(&part));
        let columns = COLUMNS.iter().map(Column::json);
        let all = codes.chain(layers).chain(routers).chain(losses).chain(parts).chain(columns);
        return console.json(&Value::Array(all.map(with_schema).collect()));
    }
    for code in Code::ALL {
        console.prose(&format!("{}  {}\n", code.number(), code.summary()))?;
    }
    for layer in LAYERS {
        console.prose(&format!("{}  layer: {}\n", layer.name, layer.summary))?;
    }
    for entry in entries {
        console.prose(&format!("{}  router: {}\n", entry.strategy.name(), entry.strategy.summary()))?;
    }
    for loss in registry.losses() {
        console.prose(&format!("{}  balance loss: {}\n", loss.name, loss.summary))?;
    }
    for part in text::recipe_parts() {
        console.prose(&format!("{}  {}: {}\n", part.name, part.kind, part.summary))?;
    }
    for column in COLUMNS {
        console.prose(&format!("{}  number of a training: {}\n", column.name, column.summary))?;
    }
    Ok(())
}

/// Every name that is in the list of all.
fn known(registry: &Registry, entries: &[Entry]) -> Vec<String> {
    let codes = Code::ALL.iter().map(|c| c.number().to_string());
    let layers = LAYERS.iter().map(|layer| layer.name.to_string());
    let routers = entries.iter().map(|e| e.strategy.name().to_string());
    let losses = registry.losses().map(|loss| loss.name.to_string());
    let parts = text::recipe_parts().map(|part| part.name.to_string());
    let columns = COLUMNS.iter().flat_map(|column| [column.name].into_iter().chain(column.key)).map(str::to_string);
    codes.chain(layers).chain(routers).chain(losses).chain(parts).chain(columns).collect()
}

/// The refusal of a spec, which other commands are about.
fn is_spec(path: &Path) -> Failure {
    let file = shell::path(path);
    let failure = Failure::new(Exit::Usage, format!("{} is a spec, not a name or a run", path.display()))
        .help(format!("moec check {file} says what is wrong with it, moec compile {file} what it costs"));
    match run_name::meant(path) {
        Some(run) => failure.help(format!("moec explain {} explains its run", shell::path(&run))),
        None => failure,
    }
}

fn not_found(name: &str, known: &[String]) -> Failure {
    let is_code = |text: &str| text.len() > 1 && text[1..].bytes().all(|b| b.is_ascii_digit());
    let upper = name.to_uppercase();
    let failure = reference::unknown(if name.is_ascii() && is_code(&upper) { &upper } else { name }, known);
    let run = Path::new(run_name::RUNS).join(name);
    match run.join("spec.moe").is_file() {
        true => failure.help(format!("did you mean the run {}?", shell::path(&run))),
        false => failure,
    }
}

/// One of the things that can be explained, with the name of its form.
fn with_schema(mut value: Value) -> Value {
    value["schema"] = "moec.explain/1".into();
    value
}

fn code_json(code: Code) -> Value {
    json!({
        "kind": "code",
        "code": code.number(),
        "severity": code.severity().to_string(),
        "summary": code.summary(),
        "explanation": code.explanation(),
    })
}

//! `moec check`: everything that is wrong with a file, in one run.

use crate::cli::args::CheckArgs;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::{pipeline, read_source};
use moec_model::Registry;
use moec_syntax::{Code, Diagnostic, Item, Severity, SourceFile};

/// Runs the command.
///
/// # Errors
/// When the file cannot be read or is wrong.
pub(crate) fn run(args: &CheckArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    let source = read_source(&args.spec.spec)?.with_overrides(&args.spec.set);
    let result = pipeline::check(&source, registry, args.spec.model.as_deref());
    if let Err(diagnostics) = &result
        && let Some(routers) = library(&source, diagnostics)
    {
        return sound_library(args, &source, diagnostics, &routers, console);
    }
    let (diagnostics, name) = match &result {
        Ok(checked) => (&checked.warnings, Some(checked.model.name.as_str())),
        Err(diagnostics) => (diagnostics, None),
    };
    if args.json {
        console.json(&report(&source, diagnostics, name))?;
    } else {
        console.diagnostics(&source, diagnostics, args.spec.message_format);
        let errors = diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
        match &result {
            Ok(checked) => console.out(format!(
                "{}: model {} is sound{}",
                source.name(),
                checked.model.name,
                count(checked.warnings.len(), "warning", ", with ")
            ))?,
            Err(_) => console.note(format!("{}: {}", source.name(), count(errors, "error", ""))),
        }
    }
    Ok(if result.is_ok() { Exit::Success } else { Exit::Usage })
}

/// The routers of a file that defines no model, if that is all that is wrong with it: it is there to be imported.
fn library(source: &SourceFile, diagnostics: &[Diagnostic]) -> Option<Vec<String>> {
    if diagnostics.iter().any(|d| d.is_error() && d.code != Code::NoModel) {
        return None;
    }
    let file = moec_syntax::parse(source).ok()?;
    if file.all_items().any(|(item, _)| matches!(item, Item::Model(_))) {
        return None;
    }
    let names: Vec<String> = (file.items.iter())
        .filter_map(|item| match item {
            Item::Router(router) => Some(router.name.name.clone()),
            _ => None,
        })
        .collect();
    (!names.is_empty()).then_some(names)
}

fn sound_library(
    args: &CheckArgs,
    source: &SourceFile,
    diagnostics: &[Diagnostic],
    routers: &[String],
    console: &Console,
) -> Result<Exit, Failure> {
    let warnings: Vec<Diagnostic> = diagnostics.iter().filter(|d| !d.is_error()).cloned().collect();
    if args.json {
        let rendered: Vec<_> = warnings.iter().map(|d| d.to_rendered(source)).collect();
        let found = serde_json::json!({
            "schema": "moec.check/1", "ok": true, "model": null, "routers": routers, "diagnostics": rendered,
        });
        console.json(&found)?;
        return Ok(Exit::Success);
    }
    console.diagnostics(source, &warnings, args.spec.message_format);
    let (noun, verb) = if routers.len() == 1 { ("router", "is") } else { ("routers", "are") };
    let names = routers.join(", ");
    let warnings = count(warnings.len(), "warning", ", with ");
    console.out(format!("{}: {noun} {names} {verb} sound{warnings}; it defines no model", source.name()))?;
    Ok(Exit::Success)
}

fn report(source: &SourceFile, diagnostics: &[Diagnostic], model: Option<&str>) -> serde_json::Value {
    let rendered: Vec<_> = diagnostics.iter().map(|d| d.to_rendered(source)).collect();
    serde_json::json!({ "schema": "moec.check/1", "ok": model.is_some(), "model": model, "diagnostics": rendered })
}

/// `, with 2 warnings`; nothing for none.
fn count(n: usize, noun: &str, before: &str) -> String {
    match n {
        0 => String::new(),
        1 => format!("{before}1 {noun}"),
        n => format!("{before}{n} {noun}s"),
    }
}

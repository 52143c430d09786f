//! `moec check`: everything that is wrong with a file, in one run.

use crate::args::CheckArgs;
use crate::console::Console;
use crate::exit::{Exit, Failure};
use crate::{pipeline, sources};
use moec_model::Registry;
use moec_syntax::{Diagnostic, Severity, SourceFile};

/// Runs the command.
///
/// # Errors
/// When the file cannot be read or is wrong.
pub fn run(args: &CheckArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    let source = sources::read(&args.spec.spec)?;
    let result = pipeline::check(&source, registry, args.spec.model.as_deref(), &args.spec.set);
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

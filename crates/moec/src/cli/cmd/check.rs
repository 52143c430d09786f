//! `moec check`: everything that is wrong with a file, in one run.

use crate::cli::args::CheckArgs;
use crate::cli::configuration::Values;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::{downloads, sources};
use crate::pipeline::{self, Checked};
use crate::spec::data_from;
use moec_model::{Registry, Vocab as ModelVocab};
use moec_syntax::{Code, Diagnostic, Item, Severity, SourceFile};
use std::path::Path;

/// Runs the command.
///
/// # Errors
/// When a file cannot be read or is wrong; all others are checked, too.
pub(crate) fn run(args: &CheckArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    if let [path] = args.specs.as_slice() {
        let found = Found::of(path, args, registry)?;
        found.tell(args, console)?;
        if args.json {
            console.json(&found.json())?;
        }
        return Ok(found.exit());
    }
    let mut exit = Exit::Success;
    let mut files = Vec::new();
    for path in &args.specs {
        match Found::of(path, args, registry) {
            Ok(found) => {
                found.tell(args, console)?;
                if found.exit() != Exit::Success {
                    exit = found.exit();
                }
                files.push((found.source.name().to_string(), found.json()));
            }
            Err(failure) => {
                console.failure(&failure, args.reading.message_format);
                exit = failure.exit();
                let error = serde_json::json!({ "schema": SCHEMA, "ok": false, "error": failure.to_string() });
                files.push((path.display().to_string(), error));
            }
        }
    }
    if args.json {
        let files: Vec<_> =
            files.into_iter().map(|(file, result)| serde_json::json!({ "file": file, "result": result })).collect();
        let ok = exit == Exit::Success;
        console.json(&serde_json::json!({ "schema": "moec.check.files/1", "ok": ok, "files": files }))?;
    }
    Ok(exit)
}

const SCHEMA: &str = "moec.check/1";

/// What checking a file has found.
struct Found {
    source: SourceFile,
    diagnostics: Vec<Diagnostic>,
    verdict: Verdict,
    /// What will go wrong later, although the file is sound.
    remark: Option<String>,
}

enum Verdict {
    /// It defines a sound model.
    Model(String),
    /// It defines no model, but routers, to be imported.
    Library(Vec<String>),
    Wrong,
}

impl Found {
    fn of(path: &Path, args: &CheckArgs, registry: &Registry) -> Result<Self, Failure> {
        let reading = &args.reading;
        let source = Values::read(reading.config.as_deref(), &reading.set)?.placed(&sources::read(path)?);
        Ok(match pipeline::check(&source, registry, args.reading.model.as_deref()) {
            Ok(checked) => {
                let remark = vocabulary_of_another_text(&checked, path, registry);
                let verdict = Verdict::Model(checked.model.name);
                Self { source, diagnostics: checked.warnings, verdict, remark }
            }
            Err(diagnostics) => match library(&source, &diagnostics) {
                Some(routers) => {
                    let warnings = diagnostics.into_iter().filter(|d| !d.is_error()).collect();
                    Self { source, diagnostics: warnings, verdict: Verdict::Library(routers), remark: None }
                }
                None => Self { source, diagnostics, verdict: Verdict::Wrong, remark: None },
            },
        })
    }

    fn exit(&self) -> Exit {
        if matches!(self.verdict, Verdict::Wrong) { Exit::Usage } else { Exit::Success }
    }

    /// For people.
    fn tell(&self, args: &CheckArgs, console: &Console) -> Result<(), Failure> {
        if args.json {
            return Ok(());
        }
        console.diagnostics(&self.source, &self.diagnostics, args.reading.message_format);
        let errors = self.diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
        let warnings = count(self.diagnostics.len() - errors, "warning", ", with ");
        let name = self.source.name();
        if let Some(remark) = &self.remark {
            console.note(format!("{name}: {remark}"));
        }
        match &self.verdict {
            Verdict::Model(model) => console.out(format!("{name}: model {model} is sound{warnings}")),
            Verdict::Library(routers) => {
                let (noun, verb) = if routers.len() == 1 { ("router", "is") } else { ("routers", "are") };
                let routers = routers.join(", ");
                console.out(format!("{name}: {noun} {routers} {verb} sound{warnings}; it defines no model"))
            }
            Verdict::Wrong => {
                console.note(format!("{name}: {}", count(errors, "error", "")));
                Ok(())
            }
        }
    }

    fn json(&self) -> serde_json::Value {
        let diagnostics: Vec<_> = self.diagnostics.iter().map(|d| d.to_rendered(&self.source)).collect();
        let mut json = serde_json::json!({
            "schema": SCHEMA, "ok": self.exit() == Exit::Success, "model": null, "diagnostics": diagnostics,
        });
        match &self.verdict {
            Verdict::Model(model) => json["model"] = model.as_str().into(),
            Verdict::Library(routers) => json["routers"] = routers.clone().into(),
            Verdict::Wrong => {}
        }
        if let Some(remark) = &self.remark {
            json["remark"] = remark.as_str().into();
        }
        json
    }
}

/// That a model names a number of characters which the text of its recipe does not have, if that text is at hand: every
/// training on it would be refused.
fn vocabulary_of_another_text(checked: &Checked, spec: &Path, registry: &Registry) -> Option<String> {
    let ModelVocab::Size(size) = checked.model.vocab else { return None };
    let data = data_from(&checked.recipe, spec, registry);
    let found = downloads::at_hand(&data, registry)?.vocab().ok()?.len();
    (found != size).then(|| {
        format!(
            "`vocab {size}`, but {data} has {found} distinct characters, so that training on it will be refused; `vocab \
             characters` takes them from the text"
        )
    })
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

/// `, with 2 warnings`; nothing for none.
fn count(n: usize, noun: &str, before: &str) -> String {
    match n {
        0 => String::new(),
        1 => format!("{before}1 {noun}"),
        n => format!("{before}{n} {noun}s"),
    }
}

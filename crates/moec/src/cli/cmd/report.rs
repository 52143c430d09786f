//! `moec report`: one HTML file about one or several runs.

use crate::cli::args::ReportArgs;
use crate::cli::cmd::compare;
use crate::cli::columns::COLUMNS;
use crate::cli::console::Console;
use crate::cli::devices::Devices;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{self, Output};
use crate::cli::run_report::{Findings, Subject, Text};
use crate::cli::units::{bytes, grouped};
use crate::report::{ColumnText, Report, Routes, RunReport, SIGNATURE};
use moec_ir::Invariant;
use moec_model::Registry;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Runs whose routes are shown, at most: more do not stand side by side.
const ROUTED: usize = 4;

/// Runs the command.
///
/// # Errors
/// When a run, the text or the output is wrong, or the device fails.
pub(crate) fn run(
    args: &ReportArgs,
    registry: &Registry,
    devices: Devices,
    console: &Console,
) -> Result<Exit, Failure> {
    let read = |path: &PathBuf| Subject::read(path, registry, console);
    // A comparison stands for its runs.
    let expanded = |path: &PathBuf| match compare::runs_in(path) {
        runs if runs.is_empty() => vec![path.clone()],
        runs => runs,
    };
    let runs: Vec<PathBuf> = args.runs.iter().flat_map(expanded).collect();
    let subjects = runs.iter().map(read).collect::<Result<Vec<Subject>, Failure>>()?;
    let named = args.output.clone().unwrap_or_else(|| match (&subjects[..], &args.runs[..]) {
        (_, [comparison]) if !compare::runs_in(comparison).is_empty() => comparison.join("report.html"),
        ([one], _) => one.root.join("report.html"),
        _ => PathBuf::from("report.html"),
    });
    // Before anything takes its time.
    let output = output(&named, &subjects)?;
    let mut runs: Vec<RunReport> = subjects.iter().map(Subject::report).collect();
    let noise = routes(args, &subjects, &mut runs, registry, devices, console)?;
    for ((run, subject), noise) in runs.iter_mut().zip(&subjects).zip(noise) {
        if !noise.is_empty() {
            let shares: Vec<String> =
                noise.iter().map(|(layer, share)| format!("{:.1} % in {layer}", 100.0 * share)).collect();
            let text = format!("characters that the noise of training sends to other experts: {}", shares.join(", "));
            run.facts.push(("noise".to_string(), text));
        }
        Findings { found: run.diagnoses, missing: run.missing, looked_for: run.looked_for } = subject.findings(noise);
    }
    let columns = COLUMNS.iter().map(|c| ColumnText { name: c.name, summary: c.summary, text: c.text }).collect();
    let report = Report { version: env!("CARGO_PKG_VERSION"), runs, columns };
    let html = report.html();
    match output.plain_file() {
        // An interrupted write leaves the report that was there.
        Ok(file) if file.exists() => output::replace(file, &html)?,
        _ => output.write(&html)?,
    }
    let found = report.runs.iter().map(|run| run.diagnoses.len()).sum::<usize>();
    let found = match found {
        0 => String::new(),
        1 => ", 1 diagnosis".to_string(),
        n => format!(", {n} diagnoses"),
    };
    console.note(format!("wrote {} ({}{found})", named.display(), bytes(html.len() as u64)));
    Ok(Exit::Success)
}

/// A file that is not there, a report, or a stream.
fn output(path: &Path, subjects: &[Subject]) -> Result<Output, Failure> {
    let sources: Vec<PathBuf> = subjects.iter().flat_map(|s| output::files_of_run(&s.root)).collect();
    let output = Output::new(path, &sources)?;
    if let Ok(file) = output.plain_file()
        && file.exists()
        && !is_report(file)
    {
        let message = format!("{} exists already, and is no report", path.display());
        return Err(Failure::new(Exit::Failure, message).help("name another file with -o FILE"));
    }
    Ok(output)
}

/// Whether a file begins as a report does.
fn is_report(file: &Path) -> bool {
    use std::io::Read;
    let mut begin = Vec::new();
    let read = std::fs::File::open(file).and_then(|f| f.take(SIGNATURE.len() as u64).read_to_end(&mut begin));
    read.is_ok() && begin == SIGNATURE.as_bytes()
}

/// Sends the text through the models, those of different specs first; what it shows of the noise of each is returned.
fn routes(
    args: &ReportArgs,
    subjects: &[Subject],
    runs: &mut [RunReport],
    registry: &Registry,
    devices: Devices,
    console: &Console,
) -> Result<Vec<BTreeMap<String, f64>>, Failure> {
    let mut noise = vec![BTreeMap::new(); runs.len()];
    let first = subjects.first().invariant("clap asks for runs");
    let text = match &args.text {
        Some(text) => Some(Text::given(text)),
        None if args.characters == 0 => None,
        None => first.text(args.characters),
    };
    let Some(text) = text else {
        let why = match args.characters {
            0 => "it was left out, as --characters 0 says",
            _ => "the run has written no sample, and its training text is not at hand; --text gives one",
        };
        runs.iter_mut().for_each(|run| run.routes = Routes::Unknown(why.to_string()));
        return Ok(noise);
    };
    // One of each group, then the other seeds.
    let is_first = |r: usize| runs[..r].iter().all(|run| run.identity != runs[r].identity);
    let (mut order, others): (Vec<usize>, Vec<usize>) = (0..runs.len()).partition(|r| is_first(*r));
    order.extend(others);
    for (i, r) in order.into_iter().enumerate() {
        if i < ROUTED {
            let characters = grouped(text.characters() as u64);
            console.note(format!("sending {characters} characters through {}", runs[r].path));
            (runs[r].routes, noise[r]) = subjects[r].routes(&text, registry, args.device, devices, console)?;
        } else {
            let why = format!("left out, because {ROUTED} runs stand beside each other at most");
            runs[r].routes = Routes::Unknown(why);
        }
    }
    Ok(noise)
}

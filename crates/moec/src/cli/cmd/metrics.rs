//! `moec metrics`: what runs reported, for other tools: as a table, or as event files of TensorBoard.

use crate::cli::args::MetricsArgs;
use crate::cli::console::Console;
use crate::cli::event_file::EventFile;
use crate::cli::exit::{Exit, Failure};
use crate::cli::numbers::{Number, TrainingTime, numbers};
use crate::cli::output::{Output, files_of_run};
use crate::cli::units::grouped;
use crate::locate::Located;
use moec_runtime::Metric;
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// Runs the command.
///
/// # Errors
/// When there is no run, its metrics cannot be read, or what is asked for cannot be written.
pub(crate) fn run(args: &MetricsArgs, console: &Console) -> Result<Exit, Failure> {
    let mut runs: Vec<(String, PathBuf, Vec<Metric>)> = Vec::new();
    for path in &args.runs {
        let root = Located::at(path)?.root;
        let metrics = moec_runtime::read_metrics(&root)?;
        if metrics.is_empty() {
            let message = format!("{} has reported nothing yet", path.display());
            return Err(Failure::new(Exit::Failure, message).help("a run reports for the first time after some steps"));
        }
        runs.push((path.display().to_string(), root, metrics));
    }
    let sources: Vec<PathBuf> = runs.iter().flat_map(|(_, root, _)| files_of_run(root)).collect();
    if let Some(folder) = &args.tensorboard {
        let roots: Vec<&Path> = runs.iter().map(|(_, root, _)| root.as_path()).collect();
        for (name, (run, _, metrics)) in names(&roots)?.iter().zip(&runs) {
            let file = write_events(&folder.join(name), metrics, &sources)?;
            console.note(format!("{run}: {}", file.display()));
        }
        return Ok(Exit::Success);
    }
    let mut table = "run,step,name,layer,expert,value\n".to_string();
    for (name, _, metrics) in &runs {
        for number in metrics.iter().flat_map(numbers) {
            table += &line(name, &number);
        }
    }
    match &args.output {
        Some(path) => {
            Output::new(path, &sources)?.write(&table)?;
            console.note(format!("wrote {} numbers to {}", grouped(table.lines().count() as u64 - 1), path.display()));
        }
        None => console.write(&table)?,
    }
    Ok(Exit::Success)
}

/// A row of the table. Names that hold what separates cells are quoted (RFC 4180, section 2).
fn line(run: &str, number: &Number) -> String {
    let cell = |text: &str| match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_string(),
    };
    let Number { step, name, layer, expert, value } = number;
    let layer = layer.as_deref().map(cell).unwrap_or_default();
    let expert = expert.map(|e| e.to_string()).unwrap_or_default();
    format!("{},{step},{},{layer},{expert},{value}\n", cell(run), cell(name))
}

/// A folder name for each run: the last parts of its path, as many as it takes to tell the runs apart.
///
/// # Errors
/// When a run is named twice.
fn names(roots: &[&Path]) -> Result<Vec<PathBuf>, Failure> {
    let whole: Vec<PathBuf> =
        roots.iter().map(|root| root.canonicalize().unwrap_or_else(|_| root.to_path_buf())).collect();
    let ends = |parts: usize| -> Vec<PathBuf> {
        let end = |path: &PathBuf| {
            // Without the root of the file system, which no folder can be named after.
            let normal = path.components().filter(|part| matches!(part, Component::Normal(_)));
            let parts = normal.rev().take(parts).collect::<Vec<_>>();
            parts.into_iter().rev().collect()
        };
        whole.iter().map(end).collect()
    };
    let longest = whole.iter().map(|path| path.components().count()).max().unwrap_or(1);
    let distinct = |names: &Vec<PathBuf>| names.iter().collect::<BTreeSet<_>>().len() == names.len();
    (1..=longest)
        .map(ends)
        .find(distinct)
        .ok_or_else(|| Failure::new(Exit::Usage, "a run is named twice").help("name each once: its event file is one"))
}

/// Writes metrics as an event file, which is replaced if it is there, in a folder outside of the runs.
fn write_events(folder: &Path, metrics: &[Metric], sources: &[PathBuf]) -> Result<PathBuf, Failure> {
    if let Some(there) = folder.ancestors().find_map(|folder| folder.canonicalize().ok())
        && sources.iter().filter_map(|source| source.canonicalize().ok()).any(|source| there.starts_with(source))
    {
        let message = format!("cannot write {}: this command reads what lies there", folder.display());
        return Err(Failure::new(Exit::Usage, message).help("write to another folder"));
    }
    std::fs::create_dir_all(folder).map_err(|e| Failure::file("create", folder, &e))?;
    let path = folder.join("events.out.tfevents.moec");
    // Runs do not say when they were made.
    let (mut events, mut time) = (EventFile::new(0.0), TrainingTime::default());
    for metric in metrics {
        let seconds = time.at(metric);
        for number in numbers(metric) {
            events.scalar(seconds, number.step, &number.tag(), number.value as f32);
        }
    }
    std::fs::write(&path, events.bytes()).map_err(|e| Failure::file("write", &path, &e))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_one_name_are_told_apart() {
        let named = |roots: &[&str]| names(&roots.iter().map(Path::new).collect::<Vec<_>>());
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(named(&["/nowhere/a/run", "/nowhere/b/other"]).unwrap(), paths(&["run", "other"]));
        assert_eq!(named(&["/nowhere/a/run", "/nowhere/b/run"]).unwrap(), paths(&["a/run", "b/run"]));
        assert!(named(&["/nowhere/a/run", "/nowhere/a/run"]).is_err());
    }

    #[test]
    fn names_that_hold_a_comma_are_quoted() {
        let line = r#"{"schema":1,"kind":"evaluation","step":20,"train_loss_nats":3,"layers":[{"path":"a,b","load_rows":[4,0],
            "load_max_over_mean":2,"experts_without_tokens":1,"entropy_nats":0.5,"dropped_share":0,"balance":1.5,
            "auxiliary":{"load":0.25}}]}"#;
        let text: String =
            numbers(&Metric::from_line(line).unwrap()).iter().map(|number| super::line("r", number)).collect();
        assert_eq!(
            text,
            "r,20,auxiliary.load,\"a,b\",,0.25\nr,20,balance,\"a,b\",,1.5\n\
             r,20,dropped_share,\"a,b\",,0\nr,20,entropy_nats,\"a,b\",,0.5\nr,20,experts_without_tokens,\"a,b\",,1\n\
             r,20,load_max_over_mean,\"a,b\",,2\nr,20,load_rows,\"a,b\",0,4\nr,20,load_rows,\"a,b\",1,0\n\
             r,20,train_loss_nats,,,3\n"
        );
    }
}

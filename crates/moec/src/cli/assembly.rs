//! What `merge`, `extract` and `prune` share: runs are opened, a text is found to compare models on, and the new run is
//! written with its certificate.

use crate::cli::args::MessageFormat;
use crate::cli::console::Console;
use crate::cli::devices::Devices;
use crate::cli::exit::{Exit, Failure};
use crate::cli::run_name::in_free_folder;
use crate::cli::table::Table;
use crate::cli::units::grouped;
use crate::cli::{downloads, run_text, shell};
use crate::locate::Located;
use crate::pipeline::CompileOptions;
use crate::surgery::{Certificate, Claim, Subject, Witnesses};
use crate::{Device, Request, Run, Spec, Vocab};
use moec_ir::Tensor;
use moec_model::Registry;
use moec_plan::{Backend, StateDecl};
use moec_runtime::{Corpus, Dataset, Identity, RunError, RunFolder, Split};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Characters that the use of experts is counted on.
const CHARACTERS: usize = 20_000;
/// The file of the certificate in a run's folder.
const CERTIFICATE: &str = "certificate.json";
/// The file of the recipe there.
const RECIPE: &str = "merge.yaml";

/// Opens a run for its numbers.
///
/// # Errors
/// When there is no run, or it is damaged.
pub(crate) fn open(path: &Path, registry: &Registry, console: &Console) -> Result<Run, Failure> {
    let run = Run::open(path, registry, Device::Cpu, |_, _| -> Result<_, Failure> { Ok(CompileOptions::only([])) })?;
    console.opened(&run);
    Ok(run)
}

/// The last part of a run's path.
pub(crate) fn name_of(root: &Path) -> String {
    let whole = root.canonicalize();
    let name = whole.as_deref().unwrap_or(root).file_name();
    name.map_or_else(|| "run".to_string(), |name| name.to_string_lossy().into_owned())
}

/// The text of the run, on which the new one can be trained, and the one that models are compared on: what is given, or else
/// the same. A text that is given stands for that of a run which is gone.
///
/// # Errors
/// When a text cannot be found or read.
pub(crate) fn texts(
    data: Option<&str>,
    run: &Path,
    registry: &Registry,
    console: &Console,
) -> Result<(Corpus, Corpus), Failure> {
    let own = corpus(run, registry, console);
    let Some(data) = data else { return own.map(|own| (own.clone(), own)) };
    let given = downloads::corpus(data, registry, console)?;
    Ok((own.unwrap_or_else(|_| given.clone()), given))
}

/// The text of a run.
///
/// # Errors
/// When it cannot be found or read.
pub(crate) fn corpus(run: &Path, registry: &Registry, console: &Console) -> Result<Corpus, Failure> {
    let root = Located::at(run)?.root;
    let request = Request::read(&root)?;
    run_text::find(&request, run_text::sha256(&request, &root).as_deref(), &[&root], registry, console)
}

/// The text of a run as data of a model with the same characters.
///
/// # Errors
/// When the text has others.
pub(crate) fn dataset(run: &Subject, corpus: &Corpus) -> Result<Dataset, Failure> {
    let dataset = run.spec.dataset(corpus)?;
    if dataset.vocab().to_text() != run.vocab.to_text() {
        let message = format!("{} has other characters than the text {}", run.name, dataset.name());
        return Err(Failure::new(Exit::Data, message).help("--data FILE gives a text with the characters of the runs"));
    }
    Ok(dataset)
}

/// A device that is open.
pub(crate) type Open = (Device, Box<dyn Backend>);

/// The reference, and the device that is asked for.
///
/// # Errors
/// When there is no such device.
pub(crate) fn devices(device: Device, devices: Devices) -> Result<Vec<Open>, Failure> {
    let mut open = vec![(Device::Interpreter, devices.open(Device::Interpreter)?)];
    if device != Device::Interpreter {
        open.push((device, devices.open(device)?));
    }
    Ok(open)
}

/// The text that models are compared on: what was held out, or else the beginning.
///
/// # Errors
/// When its characters are not those of the model.
pub(crate) fn witnesses<'a>(run: &Subject, corpus: &Corpus, devices: &'a [Open]) -> Result<Witnesses<'a>, Failure> {
    let dataset = Dataset::new(corpus, run.vocab.clone(), run.spec.checked.recipe.split)?;
    let split = if dataset.is_held_out() { Split::Validation } else { Split::Train };
    let tokens = dataset.tokens(split);
    let mut tokens = tokens.to_vec();
    tokens.truncate(CHARACTERS);
    let part = if dataset.is_held_out() { ", held out" } else { "" };
    let name = format!("{}{part}", dataset.name());
    let devices = devices.iter().map(|(device, backend)| (*device, &**backend)).collect();
    Ok(Witnesses { name, tokens, devices })
}

/// A model that was put together or taken apart.
pub(crate) struct Assembled<'a> {
    pub(crate) subject: &'a Subject,
    pub(crate) certificate: &'a Certificate,
    /// What it is, in words.
    pub(crate) what: String,
    /// What its run is called if its folder is not named.
    pub(crate) name: String,
    /// What it was made by, which is kept beside it.
    pub(crate) recipe: Option<&'a str>,
}

impl Assembled<'_> {
    /// Writes the run at step 0, with its certificate, and prints that.
    ///
    /// # Errors
    /// When the folder holds anything, or cannot be written.
    pub(crate) fn write(
        &self,
        out: Option<&Path>,
        dataset: &Dataset,
        json: bool,
        console: &Console,
    ) -> Result<(), Failure> {
        let spec = &self.subject.spec;
        console.diagnostics(&spec.source, &spec.checked.warnings, MessageFormat::Full);
        let value = serde_json::to_value(self.certificate);
        let value = value.map_err(|e| Failure::new(Exit::Failure, format!("cannot write the certificate: {e}")))?;
        let create = |root: &Path| self.create(root, dataset, &format!("{value:#}\n"));
        let root = match out {
            Some(root) => create(root)?,
            None => in_free_folder(&self.name, create)?,
        };
        let root = root.as_path();
        if json {
            console.json(&value)?;
        } else {
            console.write(&text(self.certificate, console.columns()))?;
        }
        console.note_fitted(format!("{}, into {}", self.what, root.display()));
        console.note(format!("train it further with: moec train --from {}", shell::path(root)));
        Ok(())
    }

    fn create(&self, root: &Path, dataset: &Dataset, certificate: &str) -> Result<PathBuf, Failure> {
        made_whole(root, |path| {
            let folder = self.subject.spec.create_run_with_plan(path, dataset, "")?;
            let Subject { spec, vocab, states, tensors, .. } = self.subject;
            save_beginning(&folder, (spec, vocab), states, tensors, dataset)?;
            folder.write_report(CERTIFICATE, certificate)?;
            if let Some(recipe) = self.recipe {
                folder.write_report(RECIPE, recipe)?;
            }
            Ok(())
        })?;
        Ok(root.to_path_buf())
    }
}

/// Makes a run in a folder beside the one that is meant, which takes its place once it is whole: a run without the numbers that
/// it begins with would go on with others.
///
/// # Errors
/// When something is there, or it cannot be written; then nothing is left.
pub(crate) fn made_whole(root: &Path, make: impl FnOnce(&Path) -> Result<(), Failure>) -> Result<(), Failure> {
    require_free(Some(root))?;
    let failed = |e: std::io::Error| Failure::file("make", root, &e);
    let parent = root.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(failed)?;
    let mut builder = tempfile::Builder::new();
    // As every other folder: what the user's mask lets through.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let whole = builder.prefix(".incomplete-").tempdir_in(parent).map_err(failed)?;
    make(whole.path())?;
    // An empty folder gives way.
    std::fs::rename(whole.path(), root).map_err(failed)?;
    // It is not there any more, so there is nothing to remove.
    let _ = whole.keep();
    Ok(())
}

/// That a run can be made in the folder, if one is named.
///
/// # Errors
/// When something is there.
pub(crate) fn require_free(out: Option<&Path>) -> Result<(), Failure> {
    let Some(root) = out else { return Ok(()) };
    let path = root.display().to_string();
    if root.join("spec.moe").exists() {
        let message = format!("{path} already holds a run");
        return Err(Failure::new(Exit::Failure, message).help("--out names another folder"));
    }
    match std::fs::read_dir(root).map(Iterator::count) {
        Ok(0) => Ok(()),
        Ok(_) => Err(RunError::NotEmpty { path }.into()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Failure::file("make", root, &e)),
    }
}

/// Saves the numbers of a model as the checkpoint of step 0 of a run.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn save_beginning(
    folder: &RunFolder,
    (spec, vocab): (&Spec, &Vocab),
    states: &[StateDecl],
    tensors: &BTreeMap<String, Tensor>,
    dataset: &Dataset,
) -> Result<(), Failure> {
    let checked = &spec.checked;
    let identity = Identity {
        seed: checked.recipe.seed,
        context: checked.model.context,
        vocab: vocab.clone(),
        spec_sha256: folder.spec_sha256().to_string(),
        data_sha256: dataset.sha256().to_string(),
    };
    folder.save_checkpoint(0, &identity, states, &mut |state| Ok(tensors.get(&state.name).cloned()))?;
    Ok(())
}

/// Most claims that hold and are printed one by one.
const SHOWN: usize = 8;

/// The certificate as it is printed.
fn text(certificate: &Certificate, columns: usize) -> String {
    let mut text = format!("certificate of the {}, on {}\n", certificate.operation, certificate.text);
    let line = |claim: &Claim| {
        let measured = claim.measured.iter().map(|m| {
            let characters = grouped(m.characters as u64);
            format!("{:.1e} on {} ({characters} characters)", m.largest_difference, m.device)
        });
        let verdict = if claim.holds { "holds" } else { "BROKEN" };
        format!(
            "  {verdict}: {}\n    logits differ by at most {}\n",
            claim.says,
            measured.collect::<Vec<_>>().join(", ")
        )
    };
    let shown = certificate.claims.len().min(SHOWN);
    let (first, rest) = certificate.claims.split_at(if certificate.claims.len() > SHOWN + 1 {
        shown
    } else {
        certificate.claims.len()
    });
    first.iter().for_each(|claim| text.push_str(&line(claim)));
    if !rest.is_empty() {
        let largest = rest.iter().flat_map(|c| &c.measured).map(|m| m.largest_difference).fold(0.0, f64::max);
        text.push_str(&format!("  and {} more hold, within {largest:.1e}\n", rest.len()));
    }
    for remark in &certificate.remarks {
        text.push_str(&crate::cli::table::filled(&format!("  {remark}"), columns));
        text.push('\n');
    }
    let nats = |loss: Option<f64>| loss.map_or_else(|| "-".to_string(), |loss| format!("{loss:.4}"));
    text.push_str(&format!(
        "  losses are of {} characters; `moec eval` takes all\n",
        grouped(certificate.characters as u64)
    ));
    let mut table = Table::new(&["model", "loss", "logits differ by", "divergence"], 1);
    table.row(["the new model".to_string(), nats(certificate.loss), String::new(), String::new()]);
    for distance in &certificate.distances {
        let (difference, divergence) = (distance.largest_difference, distance.divergence);
        table.row([
            distance.from.clone(),
            nats(distance.loss),
            format!("{difference:.2e}"),
            format!("{divergence:.4}"),
        ]);
    }
    text + &table.text(columns)
}

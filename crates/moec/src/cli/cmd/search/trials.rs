//! What a search has tried, as JSON lines that are added to and never changed.

use crate::Spec;
use crate::cli::args::SearchArgs;
use crate::cli::cmd::compare::budget::Budget;
use crate::cli::exit::{Exit, Failure};
use crate::cli::sweep::{Over, Sweep};
use moec_runtime::sha256_hex;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Version of [`Trial`].
const SCHEMA: &str = "moec.search.trial/1";

/// The file of the lines.
const FILE: &str = "trials.jsonl";

/// How a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Finished,
    Diverged,
    /// It is no model, and was not trained.
    Infeasible,
}

/// A point that was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Trial {
    schema: String,
    /// Its number, from 0.
    pub(super) trial: u64,
    pub(super) label: String,
    /// Its values, as overrides.
    pub(super) set: Vec<String>,
    pub(super) state: State,
    /// Mean validation loss over the seeds.
    pub(super) loss_nats: Option<f64>,
    pub(super) steps: Option<u64>,
    /// Training time of all seeds.
    pub(super) seconds: Option<f64>,
    pub(super) parameters: Option<usize>,
    pub(super) active_parameters: Option<usize>,
    /// The folder of its runs.
    pub(super) run: Option<String>,
    /// Why it is no model.
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
    /// What the search was that tried it.
    search: String,
}

impl Trial {
    pub(super) fn new(trial: u64, label: String, set: Vec<String>) -> Self {
        Self {
            schema: SCHEMA.to_string(),
            trial,
            label,
            set,
            state: State::Infeasible,
            loss_nats: None,
            steps: None,
            seconds: None,
            parameters: None,
            active_parameters: None,
            run: None,
            code: None,
            message: None,
            search: String::new(),
        }
    }

    /// Whether it is a model, which was trained.
    pub(super) fn is_trained(&self) -> bool {
        self.state != State::Infeasible
    }
}

/// What makes a search another one: a hash of everything that its trials depend on but for how many there are.
pub(super) struct Identity(String);

impl Identity {
    pub(super) fn new(
        spec: &Spec,
        set: &[String],
        sweeps: &[Sweep],
        budget: Budget,
        data_sha256: &str,
        args: &SearchArgs,
    ) -> Self {
        let over = |sweep: &Sweep| match &sweep.over {
            Over::Values(values) => format!("{}={}", sweep.path, values.join(",")),
            Over::Range { low, high, is_whole, is_log } => format!("{}={low}..{high} {is_whole} {is_log}", sweep.path),
        };
        let imports = spec.source.imported().map(|(path, file)| format!("{path}\n{}", file.text()));
        let mut parts = vec![spec.source.text().to_string(), spec.checked.model.name.clone(), data_sha256.to_string()];
        parts.extend(imports);
        parts.extend(set.iter().cloned());
        parts.extend(sweeps.iter().map(over));
        // Times are those of a machine.
        let device = if matches!(budget, Budget::Minutes { .. }) { args.device.name() } else { "" };
        parts.push(format!("{budget:?} {} {} {:?} {device}", args.seed, args.seeds, args.eval_batches));
        Self(sha256_hex(parts.join("\0").as_bytes())[..16].to_string())
    }
}

/// The trials of a search.
pub(super) struct Trials {
    path: PathBuf,
    identity: Identity,
    /// Those of this process, in their order.
    pub(super) all: Vec<Trial>,
    /// What was there before.
    before: Vec<Trial>,
}

impl Trials {
    /// Those in a folder, which is made if need be.
    ///
    /// # Errors
    /// When they are those of another search, or cannot be read.
    pub(super) fn open(folder: &Path, identity: Identity) -> Result<Self, Failure> {
        std::fs::create_dir_all(folder).map_err(|e| Failure::file("make", folder, &e))?;
        let path = folder.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Failure::file("read", &path, &e)),
        };
        // The last line may be half of one, of a process that was killed; its trial is made again.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let mut before: Vec<Trial> = Vec::new();
        for (number, line) in (0u64..).zip(whole.lines()) {
            let trial = serde_json::from_str::<Trial>(line).ok().filter(|t| t.schema == SCHEMA && t.trial == number);
            let damaged = || {
                Failure::new(Exit::Data, format!("{}: line {} is no trial", path.display(), number + 1))
                    .help("search into another folder with --out DIR, or remove what follows")
            };
            before.push(trial.ok_or_else(damaged)?);
        }
        if before.iter().any(|trial| trial.search != identity.0) {
            return Err(another(&path));
        }
        if whole.len() < text.len() {
            std::fs::write(&path, whole).map_err(|e| Failure::file("write", &path, &e))?;
        }
        Ok(Self { path, identity, all: Vec::new(), before })
    }

    /// A trial that was made before.
    ///
    /// # Errors
    /// When another point was tried under that number.
    pub(super) fn known(&mut self, number: u64, given: &[(String, String)]) -> Result<Option<Trial>, Failure> {
        let Some(trial) = self.before.get(number as usize) else { return Ok(None) };
        if !given.iter().map(|(path, value)| format!("{path}={value}")).eq(trial.set.iter().cloned()) {
            return Err(another(&self.path));
        }
        self.all.push(trial.clone());
        Ok(Some(trial.clone()))
    }

    /// Adds a trial, on the disk when it returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn add(&mut self, mut trial: Trial) -> Result<(), Failure> {
        trial.search.clone_from(&self.identity.0);
        let line = serde_json::to_string(&trial)
            .map_err(|e| Failure::new(Exit::Fault, format!("cannot write the trial: {e}")))?;
        let append = || {
            let mut file = std::fs::File::options().create(true).append(true).open(&self.path)?;
            file.write_all((line + "\n").as_bytes())?;
            file.sync_data()
        };
        append().map_err(|e| Failure::file("write", &self.path, &e))?;
        self.all.push(trial);
        Ok(())
    }
}

fn another(path: &Path) -> Failure {
    let message = format!("{} has the trials of another search", path.display());
    Failure::new(Exit::Usage, message)
        .help("another spec, space, text, budget or seed is another search: give it a folder with --out DIR")
}

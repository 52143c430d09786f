//! A run of ours as a run on a server of MLflow.
//!
//! The server is the one who knows what it was told: where a connection was lost, or another process goes on, it is asked for
//! the last step under every name, and gets what comes after. A number goes there once, whoever was killed meanwhile, and a
//! request whose answer was lost is not repeated if it had arrived. It has the same time and value if it is sent again after
//! all (a server that still worked on the request), which is one number to MLflow's database.
//!
//! MLflow takes nothing back. Where a run goes over steps again with other settings, the server keeps the first numbers of
//! these steps; the run's files have the new ones.

mod api;
#[cfg(test)]
mod fake_server;

pub(crate) use api::Server;

use super::tail::{Tail, beginning};
use super::{About, Destination, Ending, Trouble, since_1970, variable};
use crate::cli::numbers::{TrainingTime, numbers};
use crate::cli::output::write_whole;
use crate::cli::shell;
use api::{Api, CallError, Variable};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

/// What MLflow takes in one request, and of one name and value.
const METRICS_AT_ONCE: usize = 1000;
const PARAMETERS_AT_ONCE: usize = 100;
const LONGEST_NAME: usize = 250;
const LONGEST_VALUE: usize = 6000;

/// Lines of metrics that are read at once.
const LINES: usize = 200;

/// How long an answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The file in a run's folder that says which run it is on which server.
const FILE: &str = "mlflow.json";

/// The version of that file.
const SCHEMA: u32 = 1;

/// What a run's folder keeps about its run on a server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Kept {
    schema: u32,
    server: Server,
    experiment: String,
    /// Only one that the environment gave: by its name an experiment is found also after a server was set up anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    experiment_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run_id: Option<String>,
    run_name: String,
    /// By which the run is found there, should the answer to its making be lost.
    mark: String,
    /// When it began, in milliseconds since 1970: what seconds of training are added to.
    begun_ms: u64,
    parameters: BTreeMap<String, String>,
}

impl Kept {
    /// What a run's folder keeps; `None` of a run that was never tracked there.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub(crate) fn read(root: &Path) -> Result<Option<Self>, String> {
        let path = root.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("cannot read {}: {}", path.display(), crate::error::reason(&error))),
        };
        match serde_json::from_str(&text) {
            Ok(Self { schema, .. }) if schema != SCHEMA => {
                Err(format!("{} is of version {schema}, which this moec does not know", path.display()))
            }
            Ok(kept) => Ok(Some(kept)),
            Err(error) => Err(format!("{} is damaged: {error}", path.display())),
        }
    }

    /// The server that it names.
    pub(crate) fn server(&self) -> Server {
        self.server.of_folder()
    }

    /// Of a run on this server, which may be another one than before.
    fn on(about: &About<'_>, server: &Server, variable: Variable<'_>) -> Result<Self, String> {
        let mut kept = match Self::read(about.root)? {
            Some(kept) => kept,
            None => Self::new(about, server, variable),
        };
        if kept.server != *server {
            // At another address it may be the same, and have the run: the mark tells.
            let (name, experiment_id) = experiment(variable);
            let experiment = name.unwrap_or(kept.experiment);
            kept = Self { server: server.clone(), experiment, experiment_id, ..kept };
        }
        kept.parameters.extend(about.parameters.clone());
        Ok(kept)
    }

    fn new(about: &About<'_>, server: &Server, variable: Variable<'_>) -> Self {
        let whole = about.root.canonicalize().unwrap_or_else(|_| about.root.to_path_buf());
        let run_name = whole.file_name().map_or("run".to_string(), |name| name.to_string_lossy().into_owned());
        let now = since_1970(SystemTime::now());
        let unique = format!("{} {} {}", whole.display(), now.as_nanos(), std::process::id());
        let (experiment, experiment_id) = experiment(variable);
        Self {
            schema: SCHEMA,
            server: server.clone(),
            experiment: experiment.unwrap_or_else(|| "moec".to_string()),
            experiment_id,
            run_id: None,
            run_name,
            mark: moec_runtime::sha256_hex(unique.as_bytes()).chars().take(32).collect(),
            begun_ms: since_1970(beginning(about.root)).as_millis() as u64,
            parameters: BTreeMap::new(),
        }
    }

    fn write(&self, root: &Path) -> Result<(), String> {
        let path = root.join(FILE);
        let failed = |why: String| format!("cannot write {}: {why}", path.display());
        let text = serde_json::to_string_pretty(self).map_err(|e| failed(e.to_string()))? + "\n";
        write_whole(&path, text.as_bytes(), None).map_err(|e| failed(crate::error::reason(&e)))
    }
}

/// The name or the number of the experiment that the environment gives.
fn experiment(variable: Variable<'_>) -> (Option<String>, Option<String>) {
    let name = variable("MLFLOW_EXPERIMENT_NAME");
    let id = variable("MLFLOW_EXPERIMENT_ID").filter(|_| name.is_none());
    (name, id)
}

/// A run of ours on a server.
pub(crate) struct MlflowRun {
    api: Api,
    root: PathBuf,
    kept: Kept,
    /// Who trains.
    user: Option<String>,
    /// The checkpoint that goes along at the end.
    checkpoint: Option<PathBuf>,
    /// While the server is known to have what was sent.
    joined: Option<Joined>,
    sent: u64,
}

/// What is known of the run on the server, and how far the file was read.
struct Joined {
    run_id: String,
    experiment_id: String,
    artifacts: Option<String>,
    /// The last step under every name.
    known: BTreeMap<String, u64>,
    tail: Tail,
    time: TrainingTime,
}

/// A number as MLflow takes it.
#[derive(Serialize)]
struct Point {
    key: String,
    value: f64,
    /// Milliseconds since 1970.
    timestamp: u64,
    step: u64,
}

impl MlflowRun {
    /// Of the run in a folder, which keeps which one it is, once the server has it.
    ///
    /// # Errors
    /// When the folder cannot be read, or the environment names a certificate that cannot be read.
    pub(crate) fn open(about: &About<'_>, server: &Server, done: Arc<AtomicU64>) -> Result<Self, String> {
        Self::with(about, server, done, &variable, TIMEOUT)
    }

    fn with(
        about: &About<'_>,
        server: &Server,
        done: Arc<AtomicU64>,
        variable: Variable<'_>,
        timeout: Duration,
    ) -> Result<Self, String> {
        let kept = Kept::on(about, server, variable)?;
        let api = Api::new(server.clone(), variable, timeout, done)?;
        let (root, user) = (about.root.to_path_buf(), variable("USER"));
        Ok(Self { api, root, kept, user, checkpoint: None, joined: None, sent: 0 })
    }

    /// Keeps in the run's folder which run on which server it is.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(crate) fn record(&self) -> Result<(), String> {
        match Kept::read(&self.root)? {
            Some(kept) if kept == self.kept => Ok(()),
            _ => self.kept.write(&self.root),
        }
    }

    /// Sends this checkpoint along at the end.
    #[must_use]
    pub(crate) fn with_checkpoint(self, checkpoint: Option<PathBuf>) -> Self {
        Self { checkpoint, ..self }
    }

    /// Tells what is missing, and how the training ended, and returns how many numbers were missing and where the record is.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub(crate) fn tell(&mut self, ending: Ending) -> Result<(u64, String), Trouble> {
        let place = self.deliver().and_then(|()| self.end(ending))?;
        Ok((self.sent, place))
    }

    /// Finds the run on the server, or makes it, and asks what it knows.
    fn join(&mut self) -> Result<Joined, Trouble> {
        let known = match &self.kept.run_id {
            // Another server may have another run of this number.
            Some(id) => self.get(id)?.filter(|run| self.is_ours(run)),
            None => None,
        };
        let run = match known {
            Some(run) => run,
            None => self.find_or_make()?,
        };
        let text = |pointer: &str| run.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_string();
        let (run_id, experiment_id) = (text("/info/run_id"), text("/info/experiment_id"));
        if run_id.is_empty() {
            return Err(self.foreign());
        }
        if text("/info/lifecycle_stage") == "deleted" {
            return Err(Trouble::Refused(format!("the run {run_id} was deleted on {}", self.api.server())));
        }
        self.kept.run_id = Some(run_id.clone());
        self.record().map_err(Trouble::Refused)?;
        if text("/info/status") != "RUNNING" {
            self.api.post("runs/update", &json!({ "run_id": run_id, "status": "RUNNING" }))?;
        }
        self.tell_parameters(&run_id, &run)?;
        Ok(Joined {
            run_id,
            experiment_id,
            artifacts: proxied(&text("/info/artifact_uri")),
            known: last_steps(&run),
            tail: Tail::of(&self.root),
            time: TrainingTime::default(),
        })
    }

    fn foreign(&self) -> Trouble {
        Trouble::Refused(format!("what answers at {} is no MLflow server", self.api.server()))
    }

    /// The run of this number, if there is one.
    fn get(&self, id: &str) -> Result<Option<Value>, Trouble> {
        match self.api.get("runs/get", &[("run_id", id)]) {
            Ok(mut answer) => Ok(answer.get_mut("run").map(Value::take)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn is_ours(&self, run: &Value) -> bool {
        pairs(run, "/data/tags").any(|tag| tag == ("moec.mark", &*self.kept.mark))
    }

    /// The run with our mark in the experiment, which may have been made without our knowing; or a new one.
    fn find_or_make(&self) -> Result<Value, Trouble> {
        let experiment = match &self.kept.experiment_id {
            Some(id) => id.clone(),
            None => self.experiment()?,
        };
        let filter = format!("tags.`moec.mark` = '{}'", self.kept.mark);
        let wanted = json!({ "experiment_ids": [experiment], "filter": filter, "max_results": 1 });
        let mut found = self.api.post("runs/search", &wanted)?;
        if let Some(run) = found.pointer_mut("/runs/0").map(Value::take) {
            return Ok(run);
        }
        // Its mark must be known, whatever becomes of the answer; but not if there is none.
        let before = Kept::read(&self.root).map_err(Trouble::Refused)?;
        self.record().map_err(Trouble::Refused)?;
        let made = self.make(&experiment);
        if let Err(Trouble::Refused(_)) = made {
            match before {
                Some(kept) => kept.write(&self.root).map_err(Trouble::Refused)?,
                // What is left says no more than where it was to go.
                None => drop(std::fs::remove_file(self.root.join(FILE))),
            }
        }
        made
    }

    /// A new run in an experiment.
    fn make(&self, experiment: &str) -> Result<Value, Trouble> {
        let tag = |(key, value): (&str, &str)| json!({ "key": key, "value": value });
        let tags = [
            ("moec.mark", &*self.kept.mark),
            ("moec.version", env!("CARGO_PKG_VERSION")),
            ("mlflow.source.name", "moec"),
            ("mlflow.source.type", "LOCAL"),
        ];
        let user = self.user.as_deref().map(|user| tag(("mlflow.user", user)));
        let tags: Vec<Value> = tags.into_iter().map(tag).chain(user).collect();
        let made = self.api.post(
            "runs/create",
            &json!({
                "experiment_id": experiment,
                "run_name": self.kept.run_name,
                "start_time": self.kept.begun_ms,
                "tags": tags,
            }),
        );
        made?.get_mut("run").map(Value::take).ok_or_else(|| self.foreign())
    }

    /// The number of the experiment, which is made if there is none of the name.
    fn experiment(&self) -> Result<String, Trouble> {
        let name = &self.kept.experiment;
        let asked = || self.api.get("experiments/get-by-name", &[("experiment_name", name)]);
        let number = |answer: &Value, pointer: &str| {
            answer.pointer(pointer).and_then(Value::as_str).map(str::to_string).ok_or_else(|| self.foreign())
        };
        match asked() {
            Ok(answer) => return number(&answer, "/experiment/experiment_id"),
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error.into()),
        }
        match self.api.post("experiments/create", &json!({ "name": name })) {
            Ok(answer) => number(&answer, "/experiment_id"),
            // Another training was faster.
            Err(error) if error.is_taken() => number(&asked()?, "/experiment/experiment_id"),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells parameters that the server does not have. It keeps the first value of each: what has changed since is a tag.
    fn tell_parameters(&self, run_id: &str, run: &Value) -> Result<(), Trouble> {
        let there: BTreeMap<&str, &str> = pairs(run, "/data/params").collect();
        let (mut missing, mut changed) = (Vec::new(), Vec::new());
        for (name, value) in &self.kept.parameters {
            let (name, value) = (plain_name(name), shortened(value, LONGEST_VALUE));
            match there.get(&*name) {
                None => missing.push(json!({ "key": name, "value": value })),
                Some(before) if **before != value => changed.push(format!("{name}={value}")),
                Some(_) => {}
            }
        }
        for parameters in missing.chunks(PARAMETERS_AT_ONCE) {
            self.api.post("runs/log-batch", &json!({ "run_id": run_id, "params": parameters }))?;
        }
        let changed = shortened(&changed.join(" "), LONGEST_VALUE);
        if pairs(run, "/data/tags").find(|(key, _)| *key == "moec.changed").map_or("", |(_, value)| value) != changed {
            let tag = json!({ "run_id": run_id, "key": "moec.changed", "value": changed });
            self.api.post("runs/set-tag", &tag)?;
        }
        Ok(())
    }

    /// Sends what the file has gained.
    fn send(&mut self, joined: &mut Joined) -> Result<(), Trouble> {
        let unread = |error: std::io::Error| Trouble::Refused(format!("cannot read metrics.jsonl: {error}"));
        loop {
            let metrics = joined.tail.next(LINES).map_err(unread)?;
            if metrics.is_empty() {
                return Ok(());
            }
            let mut points = Vec::new();
            for metric in &metrics {
                let timestamp = self.kept.begun_ms + (1e3 * joined.time.at(metric)) as u64;
                for number in numbers(metric) {
                    let (key, step) = (plain_name(&number.tag()), number.step);
                    if joined.known.get(&key).is_none_or(|last| *last < step) {
                        points.push(Point { key, value: number.value, timestamp, step });
                    }
                }
            }
            for points in points.chunks(METRICS_AT_ONCE) {
                self.api.post("runs/log-batch", &json!({ "run_id": joined.run_id, "metrics": points }))?;
                self.sent += points.len() as u64;
                joined.known.extend(points.iter().map(|point| (point.key.clone(), point.step)));
            }
        }
    }

    /// The files that go to the server at the end, with their names there.
    fn artifacts(&self) -> Vec<(PathBuf, String)> {
        let files = |folder: &Path, name: &str| -> Vec<(PathBuf, String)> {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let mut found: Vec<(PathBuf, String)> = (entries.filter(|entry| entry.path().is_file()))
                .map(|entry| (entry.path(), format!("{name}/{}", entry.file_name().to_string_lossy())))
                .filter(|(_, name)| is_plain_path(name))
                .collect();
            found.sort();
            found
        };
        let texts = ["spec.moe", "resolved.yaml", "plan.txt", "metrics.jsonl"];
        let texts = texts.map(|name| (self.root.join(name), name.to_string()));
        let mut all: Vec<(PathBuf, String)> = texts.into_iter().filter(|(path, _)| path.is_file()).collect();
        all.extend(files(&self.root.join("samples"), "samples"));
        if let Some(folder) = &self.checkpoint {
            let step = folder.file_name().unwrap_or_default().to_string_lossy();
            all.extend(files(folder, &format!("checkpoints/{step}")));
        }
        all
    }
}

impl Destination for MlflowRun {
    fn name(&self) -> String {
        "mlflow".to_string()
    }

    fn place(&self) -> String {
        self.api.server().to_string()
    }

    fn remedy(&self, is_refused: bool) -> String {
        let command = format!("moec track {}", shell::path(&self.root));
        // The same server may refuse again: it may be no MLflow server at all.
        if is_refused { command + " --to mlflow=URL" } else { command }
    }

    fn deliver(&mut self) -> Result<(), Trouble> {
        // What fails leaves nothing: the server is asked again for what it has.
        let mut joined = match self.joined.take() {
            Some(joined) => joined,
            None => self.join()?,
        };
        self.send(&mut joined)?;
        self.joined = Some(joined);
        Ok(())
    }

    fn end(&mut self, ending: Ending) -> Result<String, Trouble> {
        self.deliver()?;
        // If this fails, the server is asked again for what it has.
        let Some(joined) = self.joined.take() else { return Ok(String::new()) };
        let status = match ending {
            Ending::Finished => "FINISHED",
            Ending::Stopped => "KILLED",
            Ending::Failed => "FAILED",
        };
        // The last thing that the run did, also where it is told of much later.
        let last = std::fs::metadata(self.root.join("metrics.jsonl")).and_then(|found| found.modified());
        let ended = since_1970(last.unwrap_or_else(|_| SystemTime::now())).as_millis() as u64;
        let ended = ended.max(self.kept.begun_ms);
        let update = json!({ "run_id": joined.run_id, "status": status, "end_time": ended });
        self.api.post("runs/update", &update)?;
        let place = format!("{}/#/experiments/{}/runs/{}", self.api.server(), joined.experiment_id, joined.run_id);
        let below = joined.artifacts.clone();
        self.joined = Some(joined);
        // Files come last: one that the server does not take leaves the run as it ended.
        let Some(below) = below else {
            return Ok(place + " (without files: the server does not take them for others)");
        };
        let mut refused = Vec::new();
        for (path, name) in self.artifacts() {
            match self.api.put_artifact(&format!("{below}/{name}"), &path) {
                Err(CallError::Refused { message, .. }) => refused.push((name, message)),
                answered => answered?,
            }
        }
        Ok(match &refused[..] {
            [] => place,
            [(name, why)] => format!("{place} (without {name}: {why})"),
            [(name, why), more @ ..] => format!("{place} (without {name} and {} more files: {why})", more.len()),
        })
    }
}

/// A name of characters that MLflow takes.
fn plain_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_-. :/".contains(c) { c } else { '_' };
    name.chars().take(LONGEST_NAME).map(plain).collect()
}

fn shortened(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

/// Keys and values in a list of a run.
fn pairs<'a>(run: &'a Value, pointer: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let list = run.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|pair| Some((pair.get("key")?.as_str()?, pair.get("value")?.as_str()?)))
}

/// The last step under every name. (A whole number of 64 bits may be written as text.)
fn last_steps(run: &Value) -> BTreeMap<String, u64> {
    let list = run.pointer("/data/metrics").and_then(Value::as_array).into_iter().flatten();
    let whole = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
    let last = |metric: &Value| {
        let step = metric.get("step").and_then(whole).unwrap_or(0);
        Some((metric.get("key")?.as_str()?.to_string(), step))
    };
    list.filter_map(last).collect()
}

/// Where files of a run go, if the server takes them for others: `mlflow-artifacts:/1/RUN/artifacts`, perhaps with a host.
fn proxied(uri: &str) -> Option<String> {
    let path = uri.strip_prefix("mlflow-artifacts:")?;
    let path = match path.strip_prefix("//") {
        Some(rest) => rest.split_once('/').map_or("", |(_, path)| path),
        None => path,
    };
    let path = path.trim_matches('/');
    is_plain_path(path).then(|| path.to_string())
}

/// Whether a path can stand in an address as it is.
fn is_plain_path(path: &str) -> bool {
    !path.is_empty() && path.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
}

#[cfg(test)]
mod tests;

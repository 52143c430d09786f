//! A server of MLflow as small as its clients let it be, for tests: it holds what it is sent against MLflow's limits, keeps
//! it, and fails in every way that a server can.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// How it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "each of the tests that include this file needs some")]
pub(crate) enum Fault {
    /// Answers with this status and an error.
    Status(u16),
    /// Takes requests and never answers.
    Hangs,
    /// Does what it is asked for, and closes the connection without an answer.
    LosesAnswers,
    /// Says something that MLflow would not say.
    Talks,
}

/// A run as the server has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeRun {
    pub(crate) status: String,
    pub(crate) is_deleted: bool,
    pub(crate) experiment: String,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) parameters: BTreeMap<String, String>,
    /// Name, step, value and time, in the order in which they came.
    pub(crate) metrics: Vec<(String, u64, f64, u64)>,
}

/// What the server has, and how it behaves.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) experiments: Vec<String>,
    pub(crate) runs: BTreeMap<String, FakeRun>,
    pub(crate) artifacts: BTreeMap<String, Vec<u8>>,
    /// `METHOD PATH` of every request.
    pub(crate) requests: Vec<String>,
    /// What came as `Authorization`.
    pub(crate) authorization: Option<String>,
    /// How requests fail that have this in their path.
    pub(crate) fault: Option<(Fault, &'static str)>,
    /// Whether it takes files for others.
    pub(crate) takes_no_files: bool,
}

/// The server, until it is dropped.
pub(crate) struct FakeServer {
    address: SocketAddr,
    store: Arc<Mutex<Store>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[allow(dead_code, reason = "each of the tests that include this file needs some")]
impl FakeServer {
    pub(crate) fn start() -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)), Arc::default())
    }

    fn at(address: SocketAddr, store: Arc<Mutex<Store>>) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, kept) = (is_over.clone(), store.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let (store, over) = (kept.clone(), over.clone());
                // One that hangs holds up nobody else.
                std::thread::spawn(move || answer(stream.unwrap(), &store, &over));
            }
        });
        Self { address, store, is_over, thread: Some(thread) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    /// The only run.
    pub(crate) fn run(&self) -> FakeRun {
        let store = self.store();
        assert_eq!(store.runs.len(), 1, "{:?}", store.runs.keys());
        store.runs.values().next().unwrap().clone()
    }

    /// Ends it, and returns what starts it again at the same address with what it had.
    pub(crate) fn stop(mut self) -> impl FnOnce() -> Self {
        self.close();
        let (address, store) = (self.address, self.store.clone());
        move || Self::at(address, store)
    }

    fn close(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // Wakes it.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.close();
    }
}

fn answer(stream: TcpStream, store: &Mutex<Store>, over: &AtomicBool) {
    let mut lines = BufReader::new(stream);
    let (mut request, mut length, mut authorization) = (String::new(), 0, None);
    if lines.read_line(&mut request).unwrap_or(0) == 0 {
        return;
    }
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(':') else { continue };
        match &*name.to_ascii_lowercase() {
            "content-length" => length = value.trim().parse().unwrap(),
            "authorization" => authorization = Some(value.trim().to_string()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    if lines.read_exact(&mut body).is_err() {
        return;
    }
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let fault = {
        let mut store = store.lock().unwrap();
        store.requests.push(format!("{method} {target}"));
        store.authorization = authorization;
        store.fault.filter(|(_, path)| target.contains(path)).map(|(fault, _)| fault)
    };
    let (status, text) = match fault {
        Some(Fault::Status(status)) => (status, error("INTERNAL_ERROR", "something is wrong").1),
        Some(Fault::Talks) => (200, "<html>hello</html>".to_string()),
        Some(Fault::Hangs) => {
            while !over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(10));
            }
            return;
        }
        Some(Fault::LosesAnswers) => {
            let _ = store.lock().unwrap().call(method, target, &body);
            return;
        }
        None => store.lock().unwrap().call(method, target, &body),
    };
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", text.len());
    // Whoever asked may be gone.
    let _ = lines.get_mut().write_all((head + &text).as_bytes());
}

fn error(code: &str, message: &str) -> (u16, String) {
    let status = if code == "RESOURCE_DOES_NOT_EXIST" { 404 } else { 400 };
    (status, json!({ "error_code": code, "message": message }).to_string())
}

impl Store {
    fn call(&mut self, method: &str, target: &str, body: &[u8]) -> (u16, String) {
        if let Some(path) = target.strip_prefix("/api/2.0/mlflow-artifacts/artifacts/") {
            assert_eq!(method, "PUT");
            self.artifacts.insert(path.to_string(), body.to_vec());
            return (200, String::new());
        }
        let Some(call) = target.strip_prefix("/api/2.0/mlflow/") else { return (404, String::new()) };
        let (call, query) = call.split_once('?').unwrap_or((call, ""));
        let asked = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_string();
        let list = |name: &str| body[name].as_array().cloned().unwrap_or_default();
        match (method, call) {
            ("GET", "experiments/get-by-name") => {
                let name = asked("experiment_name").unwrap();
                match self.experiments.iter().position(|known| known == name) {
                    Some(at) => (200, json!({ "experiment": { "experiment_id": (at + 1).to_string() } }).to_string()),
                    None => error("RESOURCE_DOES_NOT_EXIST", "no such experiment"),
                }
            }
            ("POST", "experiments/create") if self.experiments.contains(&text("name")) => {
                error("RESOURCE_ALREADY_EXISTS", "there is one of this name")
            }
            ("POST", "experiments/create") => {
                self.experiments.push(text("name"));
                (200, json!({ "experiment_id": self.experiments.len().to_string() }).to_string())
            }
            ("POST", "runs/search") => {
                let wanted = text("filter");
                let found = |run: &&FakeRun| {
                    let mark = run.tags.get("moec.mark").cloned().unwrap_or_default();
                    list("experiment_ids").contains(&json!(run.experiment)) && wanted.ends_with(&format!("= '{mark}'"))
                };
                let ids: Vec<String> =
                    self.runs.iter().filter(|(_, run)| found(run)).map(|(id, _)| id.clone()).collect();
                let runs: Vec<Value> = ids.iter().map(|id| self.shown(id)).collect();
                (200, json!({ "runs": runs }).to_string())
            }
            ("POST", "runs/create") => {
                let id = format!("run{}", self.runs.len());
                let tags = pairs(&list("tags"));
                let (status, experiment) = ("RUNNING".to_string(), text("experiment_id"));
                self.runs.insert(id.clone(), FakeRun { status, experiment, tags, ..FakeRun::default() });
                (200, json!({ "run": self.shown(&id) }).to_string())
            }
            ("GET", "runs/get") => match self.runs.contains_key(asked("run_id").unwrap()) {
                true => (200, json!({ "run": self.shown(asked("run_id").unwrap()) }).to_string()),
                false => error("RESOURCE_DOES_NOT_EXIST", "no such run"),
            },
            ("POST", _) => match self.runs.get_mut(&text("run_id")) {
                None => error("RESOURCE_DOES_NOT_EXIST", "no such run"),
                Some(run) => change(run, call, &body),
            },
            _ => (404, String::new()),
        }
    }

    fn shown(&self, id: &str) -> Value {
        let run = &self.runs[id];
        let list = |map: &BTreeMap<String, String>| -> Vec<Value> {
            map.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect()
        };
        let mut last: BTreeMap<&str, (u64, f64)> = BTreeMap::new();
        for (name, step, value, _) in &run.metrics {
            let known = last.entry(name).or_insert((*step, *value));
            if known.0 <= *step {
                *known = (*step, *value);
            }
        }
        // As protocol buffers write whole numbers of 64 bits where they are strict.
        let metric = |(key, (step, value)): (&&str, &(u64, f64))| json!({ "key": key, "value": value, "step": step.to_string() });
        let below = if self.takes_no_files {
            "s3://somewhere".to_string()
        } else {
            format!("mlflow-artifacts:/{}/{id}/artifacts", run.experiment)
        };
        json!({
            "info": {
                "run_id": id,
                "experiment_id": run.experiment,
                "status": run.status,
                "lifecycle_stage": if run.is_deleted { "deleted" } else { "active" },
                "artifact_uri": below,
            },
            "data": {
                "metrics": last.iter().map(metric).collect::<Vec<_>>(),
                "params": list(&run.parameters),
                "tags": list(&run.tags),
            },
        })
    }
}

fn pairs(list: &[Value]) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap().to_string();
    list.iter().map(|pair| (text(&pair["key"]), text(&pair["value"]))).collect()
}

fn change(run: &mut FakeRun, call: &str, body: &Value) -> (u16, String) {
    let list = |name: &str| body[name].as_array().cloned().unwrap_or_default();
    let wrong = |what: String| error("INVALID_PARAMETER_VALUE", &what);
    match call {
        "runs/update" => run.status = body["status"].as_str().unwrap().to_string(),
        "runs/set-tag" => {
            run.tags.extend(pairs(std::slice::from_ref(body)));
        }
        "runs/log-batch" => {
            let (metrics, parameters) = (list("metrics"), pairs(&list("params")));
            if metrics.len() > 1000 || parameters.len() > 100 {
                return wrong(format!("{} metrics and {} parameters at once", metrics.len(), parameters.len()));
            }
            for (name, value) in parameters {
                if value.chars().count() > 6000 {
                    return wrong(format!("{name} is too long"));
                }
                if run.parameters.insert(name.clone(), value.clone()).is_some_and(|before| before != value) {
                    return wrong(format!("{name} was another one"));
                }
            }
            for metric in metrics {
                let name = metric["key"].as_str().unwrap().to_string();
                let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-. :/".contains(c);
                if name.len() > 250 || !name.chars().all(is_plain) {
                    return wrong(format!("{name} is no name of a metric"));
                }
                let (step, time) = (metric["step"].as_u64().unwrap(), metric["timestamp"].as_u64().unwrap());
                run.metrics.push((name, step, metric["value"].as_f64().unwrap(), time));
            }
        }
        _ => return (404, String::new()),
    }
    (200, "{}".to_string())
}

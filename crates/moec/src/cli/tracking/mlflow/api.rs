//! MLflow's REST interface (version 2.0), as much of it as a training needs.
//!
//! <https://mlflow.org/docs/latest/rest-api.html> has the calls; the variables are those that MLflow's own clients read.

use crate::cli::exit::{Exit, Failure};
use crate::cli::tracking::{Trouble, may_be_secret};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use ureq::http::{Response, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, RequestBuilder};

/// Names the server for everything that speaks to MLflow.
const URI: &str = "MLFLOW_TRACKING_URI";

/// Names a file of the certificates that are trusted.
const CERTIFICATES: &str = "MLFLOW_TRACKING_SERVER_CERT_PATH";

/// Of an answer no more is read: the run with the last number under every name is the largest.
const LARGEST_ANSWER: u64 = 64 << 20;

/// Of what a server says about a failure no more is shown.
const LONGEST_MESSAGE: usize = 300;

/// Looks up a variable of the environment.
pub(super) type Variable<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The address of a server, without what could be secret and without a slash at its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Server {
    url: String,
    /// Whether nobody named it but a run's folder, which may come from somebody else.
    is_of_folder: bool,
}

impl Server {
    /// As a run's folder names it.
    pub(super) fn of_folder(&self) -> Self {
        Self { is_of_folder: true, ..self.clone() }
    }

    /// Whether it gets no credentials: they are meant for another one, which the environment names.
    fn is_foreign(&self, variable: Variable<'_>) -> bool {
        self.is_of_folder && variable(URI).is_some_and(|text| text.parse::<Self>().as_ref() != Ok(self))
    }

    /// The one that MLFLOW_TRACKING_URI names.
    ///
    /// # Errors
    /// When it names none, or none that is reached over HTTP.
    pub(crate) fn of_environment(variable: Variable<'_>) -> Result<Self, Failure> {
        let Some(text) = variable(URI) else {
            let failure = Failure::new(Exit::Usage, "nothing says where the MLflow server is");
            return Err(failure.help(format!("name it: mlflow=http://127.0.0.1:5000, or set {URI}")));
        };
        let shown = if may_be_secret(&text) { URI.to_string() } else { format!("{URI}={text}") };
        text.parse().map_err(|why| Failure::new(Exit::Usage, format!("{shown}: {why}")))
    }
}

/// Who named it does not matter.
impl PartialEq for Server {
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url
    }
}

impl Eq for Server {}

impl TryFrom<String> for Server {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Server> for String {
    fn from(server: Server) -> Self {
        server.url
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl Server {
    /// The server of an address such as `localhost:5000`, which lacks its scheme.
    pub(crate) fn without_scheme(text: &str) -> Option<Self> {
        let is_address = !text.contains("://") && (text.contains(':') || text.starts_with("localhost"));
        is_address.then(|| format!("http://{text}").parse().ok())?
    }
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let example = "an MLflow server has an address such as http://127.0.0.1:5000 or https://HOST";
        let uri: Uri = text.parse().map_err(|_| example.to_string())?;
        let (Some("http" | "https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(example.to_string());
        };
        if authority.as_str().contains('@') {
            let instead = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, are not";
            return Err(format!("the address is kept with the run; {instead}"));
        }
        if authority.host().is_empty() || text.contains(['?', '#']) {
            return Err(example.to_string());
        }
        Ok(Self { url: text.trim_end_matches('/').to_string(), is_of_folder: false })
    }
}

/// Why a call had no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CallError {
    /// There was no answer, or one that says that it may be another one later.
    Unreachable(String),
    /// The server's code, if it has one, and what it says.
    Refused { code: String, message: String },
}

impl CallError {
    /// Whether what was named is not there.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, CallError::Refused { code, .. } if code == "RESOURCE_DOES_NOT_EXIST")
    }

    /// Whether what was to be made is there already.
    pub(super) fn is_taken(&self) -> bool {
        matches!(self, CallError::Refused { code, .. } if code == "RESOURCE_ALREADY_EXISTS")
    }
}

impl From<CallError> for Trouble {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Unreachable(reason) => Trouble::Unreachable(reason),
            CallError::Refused { message, .. } => Trouble::Refused(message),
        }
    }
}

/// Calls a server.
pub(super) struct Api {
    agent: Agent,
    server: Server,
    authorization: Option<String>,
    /// Whether there are credentials, which are not for this server.
    is_withheld: bool,
    timeout: Duration,
    /// Counts calls that were answered.
    done: Arc<AtomicU64>,
}

impl Api {
    /// With the credentials of the environment, unless only a run's folder names this server and the environment another
    /// one. A call without an answer is given up after `timeout`.
    ///
    /// # Errors
    /// When a certificate that a variable names cannot be read.
    pub(super) fn new(
        server: Server,
        variable: Variable<'_>,
        timeout: Duration,
        done: Arc<AtomicU64>,
    ) -> Result<Self, String> {
        let authorization = match (variable("MLFLOW_TRACKING_TOKEN"), variable("MLFLOW_TRACKING_USERNAME")) {
            (Some(token), _) => Some(format!("Bearer {token}")),
            (None, Some(user)) => {
                let password = variable("MLFLOW_TRACKING_PASSWORD").unwrap_or_default();
                Some(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
            }
            (None, None) => None,
        };
        let is_withheld = authorization.is_some() && server.is_foreign(variable);
        let authorization = authorization.filter(|_| !is_withheld);
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("moec/", env!("CARGO_PKG_VERSION")))
            // Credentials go where they were meant to go.
            .max_redirects(0)
            // Training says something every few seconds, and servers close what is idle for so long at any time.
            .max_idle_connections(0)
            .timeout_connect(Some(timeout))
            .timeout_recv_response(Some(timeout))
            .timeout_recv_body(Some(timeout))
            // Large files take as long as they take while they get on.
            .timeout_per_write(Some(timeout))
            .tls_config(tls(variable)?)
            .build()
            .into();
        Ok(Self { agent, server, authorization, is_withheld, timeout, done })
    }

    /// The server.
    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// With what says who asks, if anything does.
    fn authorized<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.authorization {
            Some(authorization) => request.header("Authorization", authorization),
            None => request,
        }
    }

    /// A call that only asks.
    pub(super) fn get(&self, call: &str, query: &[(&str, &str)]) -> Result<Value, CallError> {
        let mut request = self.authorized(self.agent.get(format!("{}/api/2.0/mlflow/{call}", self.server)));
        for (name, value) in query {
            request = request.query(*name, *value);
        }
        self.answer(request.call())
    }

    /// A call that changes something.
    pub(super) fn post(&self, call: &str, body: &Value) -> Result<Value, CallError> {
        let request = self.authorized(self.agent.post(format!("{}/api/2.0/mlflow/{call}", self.server)));
        self.answer(request.header("Content-Type", "application/json").send(body.to_string()))
    }

    /// Puts a file below what the server keeps for others, in place of one that is there.
    pub(super) fn put_artifact(&self, path: &str, file: &Path) -> Result<(), CallError> {
        let unread = |e: std::io::Error| CallError::Refused {
            code: String::new(),
            message: format!("cannot read {}: {}", file.display(), crate::error::reason(&e)),
        };
        let content = File::open(file).map_err(unread)?;
        let length = content.metadata().map_err(unread)?.len();
        let address = format!("{}/api/2.0/mlflow-artifacts/artifacts/{path}", self.server);
        let request = self
            .authorized(self.agent.put(address))
            .header("Content-Type", "application/octet-stream")
            .header("Content-Length", length);
        self.answer(request.send(content)).map(|_| ())
    }

    /// The value of an answer; none of one without a body.
    fn answer(&self, answered: Result<Response<Body>, ureq::Error>) -> Result<Value, CallError> {
        let mut response = answered.map_err(|error| self.failed(error))?;
        let status = response.status();
        let body = response.body_mut().with_config().limit(LARGEST_ANSWER).read_to_vec();
        let body = body.map_err(|error| self.failed(error))?;
        self.done.fetch_add(1, Ordering::Relaxed);
        let value: Option<Value> = if body.is_empty() { Some(Value::Null) } else { serde_json::from_slice(&body).ok() };
        let value = match value {
            Some(value) if status.is_success() => return Ok(value),
            value => value,
        };
        let text = |name: &str| value.as_ref().and_then(|v| v.get(name)).and_then(Value::as_str).unwrap_or_default();
        let (code, said) = (text("error_code").to_string(), text("message"));
        let said: String = said.lines().next().unwrap_or_default().chars().take(LONGEST_MESSAGE).collect();
        let server = &self.server;
        let mut message = match (status.as_u16(), said.is_empty()) {
            (200..=299, _) => format!("what answers at {server} is no MLflow server"),
            (300..=399, _) => format!("{server} sends on to another address (status {})", status.as_u16()),
            (404, true) => format!("{server} knows no such call (404): it is no MLflow server, or an old one"),
            (status, true) => format!("{server} answers with status {status}"),
            (status, false) => format!("{server} answers with status {status}: {said}"),
        };
        if let 401 | 403 = status.as_u16() {
            message += &match self.is_withheld {
                true => format!(
                    "; only the run's folder names this server, and {URI} another one, so it was not sent the credentials: \
                     `moec track RUN --to mlflow={server}` sends them, or `moec train` with `--track mlflow={server}`"
                ),
                false => {
                    "; MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, say who asks"
                        .to_string()
                }
            };
        }
        match status.as_u16() {
            408 | 429 | 500.. => Err(CallError::Unreachable(message)),
            _ => Err(CallError::Refused { code, message }),
        }
    }

    /// Why there was no answer.
    fn failed(&self, error: ureq::Error) -> CallError {
        let server = &self.server;
        let reason = match error {
            ureq::Error::Timeout(_) => {
                format!("{server} does not answer within {:.0} s", self.timeout.as_secs_f64().ceil())
            }
            ureq::Error::HostNotFound => format!("there is no host of the name in {server}"),
            // What TLS does not accept, it will not accept later.
            ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                return self.not_secure(&error.to_string());
            }
            ureq::Error::Io(error) => format!("{server}: {error}"),
            error @ (ureq::Error::Tls(_)
            | ureq::Error::Rustls(_)
            | ureq::Error::Pem(_)
            | ureq::Error::InvalidProxyUrl) => return self.not_secure(&error.to_string()),
            error => format!("{server}: {error}"),
        };
        CallError::Unreachable(reason)
    }

    fn not_secure(&self, reason: &str) -> CallError {
        let advice = match reason.contains("certificate") {
            true => format!("; {CERTIFICATES} names a file of certificates to trust"),
            false => String::new(),
        };
        CallError::Refused { code: String::new(), message: format!("{}: {reason}{advice}", self.server) }
    }
}

/// Which certificates are trusted: Mozilla's, or those of a file; or all of them.
fn tls(variable: Variable<'_>) -> Result<TlsConfig, String> {
    let trusts_all = variable("MLFLOW_TRACKING_INSECURE_TLS").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let config = TlsConfig::builder().disable_verification(trusts_all);
    let Some(path) = variable(CERTIFICATES) else { return Ok(config.build()) };
    let wrong = |why: String| format!("{CERTIFICATES}={path}: {why}");
    let text = std::fs::read(&path).map_err(|e| wrong(crate::error::reason(&e)))?;
    let mut roots: Vec<Certificate<'static>> = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(certificate) = item.map_err(|e| wrong(e.to_string()))? {
            roots.push(certificate);
        }
    }
    if roots.is_empty() {
        return Err(wrong("there is no certificate in it".to_string()));
    }
    Ok(config.root_certs(RootCerts::new_with_certs(&roots)).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_of_http_without_secrets() {
        let server = |text: &str| text.parse::<Server>().map(|server| server.to_string());
        assert_eq!(server("http://127.0.0.1:5000/").as_deref(), Ok("http://127.0.0.1:5000"));
        assert_eq!(server("https://host/mlflow").as_deref(), Ok("https://host/mlflow"));
        for wrong in
            ["", "127.0.0.1:5000", "host", "sqlite:///mlflow.db", "ftp://host", "http://", "http:///x", "databricks"]
        {
            assert!(server(wrong).unwrap_err().contains("http://127.0.0.1:5000"), "{wrong}");
        }
        assert!(server("http://127.0.0.1:5000/#/experiments/1").is_err());
        assert!(server("http://me:secret@host").unwrap_err().contains("MLFLOW_TRACKING_PASSWORD"));
    }

    #[test]
    fn a_certificate_that_is_not_trusted_is_a_refusal_with_advice() {
        let server: Server = "https://host".parse().unwrap();
        let api = Api::new(server, &|_| None, Duration::from_secs(1), Arc::default()).unwrap();
        let failed = |kind, text: &str| api.failed(ureq::Error::Io(std::io::Error::new(kind, text.to_string())));
        let CallError::Refused { message, .. } =
            failed(std::io::ErrorKind::InvalidData, "invalid peer certificate: UnknownIssuer")
        else {
            panic!("it will not be trusted later")
        };
        assert!(
            message.contains("https://host: invalid peer certificate") && message.contains(CERTIFICATES),
            "{message}"
        );
        let CallError::Refused { message, .. } = failed(std::io::ErrorKind::InvalidData, "received corrupt message")
        else {
            panic!("it will not speak TLS later")
        };
        assert!(!message.contains(CERTIFICATES), "{message}");
        let gone = failed(std::io::ErrorKind::ConnectionReset, "reset");
        assert!(matches!(gone, CallError::Unreachable(_)), "{gone:?}");
    }

    #[test]
    fn certificates_are_those_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem").display().to_string();
        let variable = |name: &str| (name == "MLFLOW_TRACKING_SERVER_CERT_PATH").then(|| path.clone());
        assert!(tls(&variable).unwrap_err().contains("there is no such file"));
        std::fs::write(&path, "not a certificate").unwrap();
        assert!(tls(&variable).unwrap_err().contains("no certificate"));
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(matches!(tls(&variable).unwrap().root_certs(), RootCerts::Specific(roots) if roots.len() == 1));
        assert!(matches!(tls(&|_| None).unwrap().root_certs(), RootCerts::WebPki));
    }
}

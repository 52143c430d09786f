//! Telling others of a training while it goes on: event files of TensorBoard, a run on a server of MLflow.
//!
//! A run's `metrics.jsonl` is the queue. Every tracker is a thread that is told that there is something new (which is at most
//! one message behind), and reads the file on from where it was. So training waits for nobody and computes what it would
//! compute without them; what a server missed lies in the file, and `moec track` sends it at any later time.

pub(crate) mod mlflow;
mod tail;
mod tensorboard;

use crate::cli::cmd::config;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::progress::Progress;
use crate::{Device, Request, Spec};
use mlflow::{Kept, MlflowRun, Server};
use moec_model::Lowered;
use moec_runtime::{Evaluation, Reporter, Summary, TrainMetric, Vocab};
use moec_syntax::did_you_mean;
use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Names the trackers of every training that does not name them itself.
const VARIABLE: &str = "MOEC_TRACK";

/// What is new is told at most so often: a request can carry many steps.
const INTERVAL: Duration = Duration::from_secs(1);

/// Between two attempts to reach who cannot be reached, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How often the end of a training is tried to be told, if all was well until then.
const TRIES: u32 = 3;

/// A wait at the end of a training that is longer is announced.
const ANNOUNCED: Duration = Duration::from_secs(2);

/// How long the end of a training waits for a tracker that does not get on.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who can be told of a training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tracker {
    /// Nobody, where a variable or the run says otherwise.
    None,
    /// Event files in the run's folder.
    TensorBoard,
    /// A server of MLflow: the one that is named, or that of the run or of MLFLOW_TRACKING_URI.
    Mlflow(Option<Server>),
}

impl FromStr for Tracker {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "none" => Ok(Self::None),
            None if text == "tensorboard" => Ok(Self::TensorBoard),
            None if text == "mlflow" => Ok(Self::Mlflow(None)),
            Some(("mlflow", url)) => match url.parse() {
                Ok(server) => Ok(Self::Mlflow(Some(server))),
                Err(wrong) => Err(match Server::without_scheme(url) {
                    Some(server) => format!("{wrong}; did you mean mlflow={server}?"),
                    None => wrong,
                }),
            },
            Some(("tensorboard" | "none", _)) => Err("only mlflow takes a URL".to_string()),
            _ => {
                let near = did_you_mean(text, ["none", "tensorboard", "mlflow"]);
                let near = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                Err(format!("the trackers are tensorboard, mlflow, mlflow=URL and none{near}"))
            }
        }
    }
}

/// The trackers that the value of an option or a variable names.
///
/// # Errors
/// When it names one that there is not.
pub(crate) fn named(name: &str, value: &str) -> Result<Vec<Tracker>, Failure> {
    let shown = |word: &str| if may_be_secret(value) { name.to_string() } else { format!("{name}={word}") };
    let wrong = |word: &str, why: String| Failure::new(Exit::Usage, format!("{}: {why}", shown(word)));
    value.split(',').map(|word| word.trim().parse().map_err(|why| wrong(word, why))).collect()
}

/// Whether an address may be one with a password, which no message shows.
fn may_be_secret(text: &str) -> bool {
    text.contains('@')
}

/// Looks up a variable of the environment; an empty one is none.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// As trackers count time.
fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Who is told of a training.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trackers {
    tensorboard: bool,
    mlflow: Option<Server>,
    /// Why it is not known which server the continued run was tracked on.
    unknown: Option<String>,
}

impl Trackers {
    /// Those that are named; or else those of the run that is continued, or of the environment.
    ///
    /// # Errors
    /// When one is named that there is not, or nothing says where a server is.
    pub(crate) fn of(asked: &[String], continued: Option<&Path>) -> Result<Self, Failure> {
        Self::with(asked, continued, &variable)
    }

    fn with(
        asked: &[String],
        continued: Option<&Path>,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Failure> {
        let (kept, unknown) = match continued.map(Kept::read) {
            Some(Ok(kept)) => (kept.map(|kept| kept.server()), None),
            Some(Err(reason)) => (None, Some(reason)),
            None => (None, None),
        };
        let has_events = continued.is_some_and(tensorboard::are_in);
        if asked.is_empty() && (has_events || kept.is_some() || unknown.is_some()) {
            return Ok(Self { tensorboard: has_events, mlflow: kept, unknown });
        }
        let values: Vec<(&str, String)> = match asked {
            [] => variable(VARIABLE).map(|value| (VARIABLE, value)).into_iter().collect(),
            asked => asked.iter().map(|value| ("--track", value.clone())).collect(),
        };
        let mut all = Vec::new();
        for (name, value) in values {
            all.extend(named(name, &value)?);
        }
        if all.contains(&Tracker::None) && all.iter().any(|tracker| *tracker != Tracker::None) {
            return Err(Failure::new(Exit::Usage, "`none` goes with no other tracker"));
        }
        let mut trackers = Self { tensorboard: all.contains(&Tracker::TensorBoard), ..Self::default() };
        for tracker in all {
            let Tracker::Mlflow(server) = tracker else { continue };
            let server = match server.or(kept.clone()) {
                Some(server) => server,
                None => Server::of_environment(variable)?,
            };
            if trackers.mlflow.is_some_and(|other| other != server) {
                return Err(Failure::new(Exit::Usage, "a run is tracked on one MLflow server")
                    .help("moec track RUN --to mlflow=URL sends it to another one afterwards"));
            }
            trackers.mlflow = Some(server);
        }
        Ok(trackers)
    }
}

/// How a training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// All of its steps are made.
    Finished,
    /// It was stopped.
    Stopped,
    /// It diverged or could not go on.
    Failed,
}

/// Why something was not told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It may be over later.
    Unreachable(String),
    /// Trying again would not help.
    Refused(String),
}

impl Trouble {
    pub(crate) fn reason(&self) -> &str {
        match self {
            Trouble::Unreachable(reason) | Trouble::Refused(reason) => reason,
        }
    }
}

/// Who is told of a run.
trait Destination: Send {
    /// As messages call it.
    fn name(&self) -> String;

    /// Where it is.
    fn place(&self) -> String;

    /// The command that tells what was not told, or was refused there.
    fn remedy(&self, is_refused: bool) -> String;

    /// Tells what the run has reported and is not known there.
    fn deliver(&mut self) -> Result<(), Trouble>;

    /// Tells how the training ended, and returns where its record is found.
    fn end(&mut self, ending: Ending) -> Result<String, Trouble>;
}

/// What is told once.
pub(crate) struct About<'a> {
    /// The run's folder.
    pub(crate) root: &'a Path,
    /// What the run was asked for, by the paths that `-s` takes, and facts about it.
    pub(crate) parameters: BTreeMap<String, String>,
}

/// What a run was asked for, by the paths that `-s` takes, and how large its model is, once it is known on which characters.
pub(crate) fn parameters(
    spec: &Spec,
    request: &Request,
    compiled: Option<(&Lowered, &Vocab)>,
) -> BTreeMap<String, String> {
    let checked = &spec.checked;
    let values = config::values(checked).into_iter().map(|shown| (shown.name.clone(), shown.text()));
    let device = request.device.clone().unwrap_or_else(|| Device::Cpu.name().to_string());
    let facts = [("model", checked.model.name.clone()), ("data", request.data.clone()), ("device", device)];
    let sizes = compiled.map(|(lowered, vocab)| {
        [
            ("parameters", lowered.parameter_count().to_string()),
            ("active_parameters", lowered.active_parameter_count().to_string()),
            ("vocabulary", vocab.len().to_string()),
        ]
    });
    let facts = facts.into_iter().chain(sizes.into_iter().flatten());
    values.chain(facts.map(|(name, value)| (name.to_string(), value))).collect()
}

/// The trackers of a training, while it goes on.
pub(crate) struct Tracking {
    console: Console,
    followers: Vec<Follower>,
}

/// A tracker at work.
struct Follower {
    name: String,
    place: String,
    remedy: String,
    remedy_if_refused: String,
    /// Dropped at the end.
    news: Option<SyncSender<()>>,
    ending: Arc<OnceLock<Ending>>,
    /// Counts what it got done.
    done: Arc<AtomicU64>,
    thread: JoinHandle<Told>,
}

/// Where all that was told is found, if anything was; or why not all was told.
type Told = Result<Option<String>, Trouble>;

impl Tracking {
    /// Prepares all trackers of a run. Nothing that goes wrong there is a reason not to train: it is said.
    pub(crate) fn begin(trackers: &Trackers, about: &About<'_>, console: Console) -> Self {
        let mut this = Self { console, followers: Vec::new() };
        if trackers.tensorboard {
            this.follow(Box::new(tensorboard::EventFiles::of(about.root)), Arc::default());
        }
        let untold = |reason: &str| console.warn(format!("mlflow is not told of this run: {reason}"));
        if let Some(reason) = &trackers.unknown {
            untold(reason);
        }
        if let Some(server) = &trackers.mlflow {
            let done: Arc<AtomicU64> = Arc::default();
            let run = MlflowRun::open(about, server, done.clone());
            // Whatever becomes of it, `moec track` knows where it goes.
            match run.and_then(|run| run.record().map(|()| run)) {
                Ok(run) => this.follow(Box::new(run), done),
                Err(reason) => untold(&reason),
            }
        }
        this
    }

    fn follow(&mut self, mut destination: Box<dyn Destination>, done: Arc<AtomicU64>) {
        let (news, received) = sync_channel(1);
        let ending: Arc<OnceLock<Ending>> = Arc::default();
        let (name, place) = (destination.name(), destination.place());
        let (remedy, remedy_if_refused) = (destination.remedy(false), destination.remedy(true));
        let (console, title, its_ending) = (self.console, name.clone(), ending.clone());
        let run = move || {
            let tell = &mut |remark: Remark<'_>| remark.tell(&title, &console);
            follow(&mut *destination, &received, &its_ending, INTERVAL, tell)
        };
        match std::thread::Builder::new().name(format!("tracking: {name}")).spawn(run) {
            Ok(thread) => {
                let news = Some(news);
                self.followers.push(Follower { name, place, remedy, remedy_if_refused, news, ending, done, thread });
            }
            Err(error) => self.console.warn(format!("{name} is not told of this run: {error}")),
        }
    }

    /// A reporter that also says that there is something new.
    pub(crate) fn reporter<'a>(&'a self, progress: Progress<'a>) -> Tracked<'a> {
        Tracked { progress, tracking: self }
    }

    fn news(&self) {
        for news in self.followers.iter().filter_map(|follower| follower.news.as_ref()) {
            // One that has a message waiting will read the file to its end, and one that is gone has said why.
            let _ = news.try_send(());
        }
    }

    /// Tells how the training ended, and waits for trackers as long as they get on, or until `leave`: what they do not know
    /// by then is said, with the command that tells it.
    pub(crate) fn end(mut self, ending: Ending, leave: impl Fn() -> bool) {
        for follower in &mut self.followers {
            // Nobody else sets it.
            let _ = follower.ending.set(ending);
            follower.news = None;
        }
        for follower in self.followers {
            let name = follower.name.clone();
            let (remedy, remedy_if_refused) = (follower.remedy.clone(), follower.remedy_if_refused.clone());
            match follower.wait(&leave, &self.console) {
                Ok(place) => place.into_iter().for_each(|place| self.console.note(format!("tracked: {place}"))),
                Err(trouble) => {
                    let remedy = if let Trouble::Refused(_) = trouble { remedy_if_refused } else { remedy };
                    self.console.warn(format!(
                        "{name} does not know all of this run: {}\n  what is missing is told by: {remedy}",
                        trouble.reason()
                    ));
                }
            }
        }
    }
}

impl Follower {
    /// Until it is done, as long as it gets on.
    fn wait(self, leave: &dyn Fn() -> bool, console: &Console) -> Told {
        let (begun, mut is_announced) = (Instant::now(), false);
        let (mut done, mut since) = (self.done.load(Ordering::Relaxed), begun);
        while !self.thread.is_finished() {
            if !is_announced && begun.elapsed() > ANNOUNCED {
                console.note(format!("waiting for {}; Ctrl-C leaves", self.name));
                is_announced = true;
            }
            let now = self.done.load(Ordering::Relaxed);
            if now != done {
                (done, since) = (now, Instant::now());
            }
            if leave() {
                return Err(Trouble::Unreachable("stopped before it was told".to_string()));
            }
            if since.elapsed() > PATIENCE {
                return Err(Trouble::Unreachable(format!("{} does not answer", self.place)));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.thread.join().unwrap_or_else(|_| Err(Trouble::Unreachable("a fault in moec".to_string())))
    }
}

/// What a tracker's thread says while training goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remark<'a> {
    /// It cannot be reached, for the first time.
    Down(&'a str),
    /// And can be again.
    Up,
    /// It will be told no more.
    Refused(&'a str),
}

impl Remark<'_> {
    fn tell(self, name: &str, console: &Console) {
        match self {
            Remark::Down(reason) => console.warn(format!(
                "{name} cannot be reached: {reason}\n  training goes on; metrics.jsonl keeps what is missing, to be told later"
            )),
            Remark::Up => console.note(format!("{name} is reached again, and told what was missing")),
            Remark::Refused(reason) => {
                console.warn(format!("{name} is told no more of this training, which goes on: {reason}"));
            }
        }
    }
}

/// The thread of a tracker: tells it what is new, until training ends, and then how it ended.
fn follow(
    destination: &mut dyn Destination,
    news: &Receiver<()>,
    ending: &OnceLock<Ending>,
    interval: Duration,
    tell: &mut dyn FnMut(Remark<'_>),
) -> Told {
    // Before a run goes on, its file has lines that are taken back.
    if news.recv().is_err() {
        return Ok(None);
    }
    let (mut failures, mut was_down, mut was_up) = (0u32, false, false);
    loop {
        let pause = match destination.deliver() {
            Ok(()) => {
                if failures > 0 && !was_up {
                    tell(Remark::Up);
                    was_up = true;
                }
                failures = 0;
                interval
            }
            Err(Trouble::Unreachable(reason)) => {
                if !was_down {
                    tell(Remark::Down(&reason));
                    was_down = true;
                }
                failures += 1;
                interval.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE)
            }
            Err(Trouble::Refused(reason)) => {
                tell(Remark::Refused(&reason));
                return Err(Trouble::Refused(reason));
            }
        };
        if has_ended(news, pause, failures > 0) {
            break;
        }
    }
    let ending = ending.get().copied().unwrap_or(Ending::Stopped);
    let mut tries = if failures > 0 { 1 } else { TRIES };
    loop {
        tries -= 1;
        match destination.deliver().and_then(|()| destination.end(ending)) {
            Ok(place) => return Ok(Some(place)),
            Err(Trouble::Unreachable(_)) if tries > 0 => std::thread::sleep(interval),
            Err(trouble) => return Err(trouble),
        }
    }
}

/// Waits for the pause to be over, and then for something new, if that is what is waited for; whether training has ended.
fn has_ended(news: &Receiver<()>, pause: Duration, mut is_new: bool) -> bool {
    let until = Instant::now() + pause;
    loop {
        match news.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(()) => is_new = true,
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => return true,
        }
    }
    !is_new && news.recv().is_err()
}

/// Tells the user and the trackers.
pub(crate) struct Tracked<'a> {
    progress: Progress<'a>,
    tracking: &'a Tracking,
}

impl Reporter for Tracked<'_> {
    fn started(&mut self, step: u64, steps: u64) {
        self.progress.started(step, steps);
        self.tracking.news();
    }

    fn stepped(&mut self, step: u64) {
        self.progress.stepped(step);
    }

    fn logged(&mut self, metric: &TrainMetric) {
        self.progress.logged(metric);
        self.tracking.news();
    }

    fn evaluating(&mut self, done: usize, batches: usize) {
        self.progress.evaluating(done, batches);
    }

    fn evaluated(&mut self, evaluation: &Evaluation) {
        self.progress.evaluated(evaluation);
        self.tracking.news();
    }

    fn saved(&mut self, step: u64, path: &Path) {
        self.progress.saved(step, path);
    }

    fn finished(&mut self, summary: &Summary) {
        self.progress.finished(summary);
    }
}

#[cfg(test)]
mod tests;

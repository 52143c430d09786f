//! What reaches a server, and what it makes of failures.

use super::fake_server::{FakeRun, FakeServer, Fault};
use super::*;
use std::collections::BTreeSet;

/// A run's folder with a server beside it.
struct Lab {
    folder: tempfile::TempDir,
    server: FakeServer,
}

fn train(step: u64) -> String {
    format!(
        "{{\"schema\":1,\"kind\":\"train\",\"step\":{step},\"loss_nats\":{},\"lr\":0.5,\"step_ms\":10,\"tokens_per_s\":9}}\n",
        100 - step
    )
}

fn evaluation(step: u64, experts: usize) -> String {
    let loads = vec!["1.5"; experts].join(",");
    format!(
        "{{\"schema\":1,\"kind\":\"evaluation\",\"step\":{step},\"train_loss_nats\":3,\"layers\":[{{\"path\":\"blocks.0.moe\",\
         \"load_rows\":[{loads}],\"load_max_over_mean\":1,\"experts_without_tokens\":0,\"entropy_nats\":0.5,\
         \"dropped_share\":0,\"balance\":1,\"auxiliary\":{{}}}}]}}\n"
    )
}

/// Numbers in a line of training, and in one of an evaluation besides the loads.
const OF_TRAIN: usize = 4;
const OF_EVALUATION: usize = 6;

impl Lab {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), server: FakeServer::start() }
    }

    fn root(&self) -> &Path {
        self.folder.path()
    }

    fn report(&self, text: &str) {
        std::fs::write(self.root().join("metrics.jsonl"), text).unwrap();
    }

    fn run(&self, parameters: &[(&str, &str)], variables: &[(&str, &str)]) -> MlflowRun {
        self.patient(parameters, variables, TIMEOUT)
    }

    fn patient(&self, parameters: &[(&str, &str)], variables: &[(&str, &str)], timeout: Duration) -> MlflowRun {
        self.at(&self.server.url().parse().unwrap(), parameters, variables, timeout)
    }

    fn at(
        &self,
        server: &Server,
        parameters: &[(&str, &str)],
        variables: &[(&str, &str)],
        timeout: Duration,
    ) -> MlflowRun {
        let text = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        let about = About { root: self.root(), parameters: parameters.iter().map(text).collect() };
        let variable = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, v)| v.to_string());
        MlflowRun::with(&about, server, Arc::default(), &variable, timeout).unwrap()
    }

    /// What the run's folder keeps.
    fn kept(&self) -> Option<String> {
        std::fs::read_to_string(self.root().join(FILE)).ok()
    }

    /// As if the server had another address before.
    fn move_server(&self) {
        let kept = self.kept().unwrap().replace(&self.server.url(), "http://127.0.0.1:1");
        std::fs::write(self.root().join(FILE), kept).unwrap();
    }

    fn fault(&self, fault: impl Into<Option<(Fault, &'static str)>>) {
        self.server.store().fault = fault.into();
    }

    fn asked(&self, part: &str) -> usize {
        self.server.store().requests.iter().filter(|request| request.contains(part)).count()
    }
}

/// The steps under a name, each of which is there once.
#[track_caller]
fn steps(run: &FakeRun, name: &str) -> Vec<u64> {
    let distinct: BTreeSet<(&str, u64)> = run.metrics.iter().map(|(name, step, ..)| (&**name, *step)).collect();
    assert_eq!(distinct.len(), run.metrics.len(), "something came twice");
    run.metrics.iter().filter(|(known, ..)| known == name).map(|(_, step, ..)| *step).collect()
}

#[test]
fn what_a_run_reports_is_told_once() {
    let lab = Lab::new();
    let names: Vec<String> = (0..250).map(|i| format!("width{i:03}")).collect();
    let mut parameters: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "64")).collect();
    let long = "x".repeat(7000);
    parameters.push(("long", &long));
    let mut run = lab.run(&parameters, &[("MLFLOW_EXPERIMENT_NAME", "routers"), ("MLFLOW_TRACKING_TOKEN", "t0ken")]);
    lab.report(&(train(10) + &train(20)));
    run.deliver().unwrap();
    let told = lab.server.run();
    assert_eq!((steps(&told, "loss_nats"), steps(&told, "lr")), (vec![10, 20], vec![10, 20]));
    assert_eq!((told.metrics.len(), told.parameters.len()), (2 * OF_TRAIN, 251));
    assert_eq!(told.parameters["long"].len(), 6000);
    assert_eq!(told.tags["moec.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(lab.server.store().experiments, ["routers"]);
    assert_eq!(lab.server.store().authorization.as_deref(), Some("Bearer t0ken"));
    // The times are those of training: 10 steps of 10 ms.
    let at = |step| told.metrics.iter().find(|(name, s, ..)| name == "lr" && *s == step).unwrap().3;
    assert_eq!(at(20) - at(10), 100);

    // Three requests of parameters and one of metrics; the next one has what is new, and none is made without news.
    assert_eq!(lab.asked("log-batch"), 4);
    run.deliver().unwrap();
    assert_eq!(lab.asked("log-batch"), 4);
    lab.report(&(train(10) + &train(20) + &evaluation(20, 1500) + &train(30)));
    run.deliver().unwrap();
    // 1,500 loads are more than a request holds.
    assert_eq!(lab.asked("log-batch"), 6);
    let told = lab.server.run();
    assert_eq!((steps(&told, "loss_nats"), steps(&told, "load_rows/blocks.0.moe/1499")), (vec![10, 20, 30], vec![20]));
    assert_eq!(told.metrics.len(), 3 * OF_TRAIN + OF_EVALUATION + 1500);
}

#[test]
fn the_end_has_status_and_files() {
    let lab = Lab::new();
    lab.report(&train(10));
    for name in
        ["spec.moe", "resolved.yaml", "samples/step-10.txt", "samples/my notes?.txt", "checkpoints/step-10/model"]
    {
        let path = lab.root().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, name).unwrap();
    }
    for (ending, status) in [(Ending::Stopped, "KILLED"), (Ending::Failed, "FAILED"), (Ending::Finished, "FINISHED")] {
        // Each goes on with the run of the one before.
        let (sent, place) = lab.run(&[], &[]).tell(ending).unwrap();
        assert_eq!(lab.server.run().status, status);
        assert_eq!(sent, if status == "KILLED" { OF_TRAIN as u64 } else { 0 });
        assert_eq!(place, format!("{}/#/experiments/1/runs/run0", lab.server.url()));
    }
    assert_eq!(lab.server.store().experiments, ["moec"]);
    let files = |lab: &Lab| lab.server.store().artifacts.keys().cloned().collect::<Vec<_>>();
    let below = "1/run0/artifacts";
    let texts = ["metrics.jsonl", "resolved.yaml", "samples/step-10.txt", "spec.moe"];
    assert_eq!(files(&lab), texts.map(|name| format!("{below}/{name}")));
    assert_eq!(lab.server.store().artifacts[&format!("{below}/spec.moe")], b"spec.moe");
    lab.run(&[], &[]).with_checkpoint(Some(lab.root().join("checkpoints/step-10"))).tell(Ending::Finished).unwrap();
    assert_eq!(files(&lab)[0], format!("{below}/checkpoints/step-10/model"));

    let elsewhere = Lab::new();
    elsewhere.server.store().takes_no_files = true;
    elsewhere.report(&train(10));
    std::fs::write(elsewhere.root().join("spec.moe"), "").unwrap();
    let (_, place) = elsewhere.run(&[], &[]).tell(Ending::Finished).unwrap();
    assert!(place.contains("without files") && files(&elsewhere).is_empty(), "{place}");
}

#[test]
fn what_was_lost_on_the_way_is_neither_lost_nor_told_twice() {
    let lab = Lab::new();
    lab.report(&(train(10) + &evaluation(10, 1500)));
    let mut run = lab.run(&[("width", "64")], &[]);
    // Everything arrives, and no answer comes back.
    for call in ["experiments/create", "runs/create", "runs/log-batch", "runs/update"] {
        lab.fault((Fault::LosesAnswers, call));
        assert!(matches!(run.tell(Ending::Finished), Err(Trouble::Unreachable(_))), "{call}");
        lab.fault(None);
    }
    let mut expected = vec![10];
    for fault in [Fault::Status(500), Fault::Status(503), Fault::Status(429)] {
        let next = 10 + 10 * expected.len() as u64;
        let all = std::fs::read_to_string(lab.root().join("metrics.jsonl")).unwrap();
        lab.report(&(all + &train(next)));
        expected.push(next);
        lab.fault((fault, "/"));
        assert!(matches!(run.deliver(), Err(Trouble::Unreachable(_))), "{fault:?}");
        lab.fault(None);
        run.deliver().unwrap();
        assert_eq!(steps(&lab.server.run(), "loss_nats"), expected, "{fault:?}");
    }
    let told = lab.server.run();
    assert_eq!(told.metrics.len(), expected.len() * OF_TRAIN + OF_EVALUATION + 1500);
    assert_eq!(lab.server.store().experiments.len(), 1);
    lab.fault((Fault::Hangs, "/"));
    let Err(trouble) = lab.patient(&[], &[], Duration::from_millis(50)).deliver() else { panic!("nobody answers") };
    assert!(matches!(&trouble, Trouble::Unreachable(reason) if reason.contains("does not answer")), "{trouble:?}");
}

#[test]
fn a_server_that_was_away_gets_what_it_missed() {
    let Lab { folder, server } = Lab::new();
    let lab = Lab { folder, server };
    lab.report(&train(10));
    let mut run = lab.run(&[], &[]);
    run.deliver().unwrap();
    let Lab { folder, server } = lab;
    let again = server.stop();
    std::fs::write(folder.path().join("metrics.jsonl"), train(10) + &train(20)).unwrap();
    let Err(Trouble::Unreachable(reason)) = run.deliver() else { panic!("nobody is there") };
    assert!(reason.contains("http://127.0.0.1:") && reason.contains("refused"), "{reason}");
    let lab = Lab { folder, server: again() };
    run.deliver().unwrap();
    assert_eq!(steps(&lab.server.run(), "loss_nats"), [10, 20]);
    // Another process goes on, from a checkpoint before: the lines are written again, and take another time.
    lab.report(&(train(10) + &train(20).replace("\"step_ms\":10", "\"step_ms\":12") + &train(30)));
    lab.run(&[], &[]).deliver().unwrap();
    assert_eq!(steps(&lab.server.run(), "loss_nats"), [10, 20, 30]);
}

#[test]
fn what_a_server_refuses_is_said_and_not_tried_again() {
    let lab = Lab::new();
    lab.report(&train(10));
    let refused = |fault| {
        lab.fault((fault, "/"));
        let Err(Trouble::Refused(reason)) = lab.run(&[], &[]).deliver() else { panic!("{fault:?} is no refusal") };
        lab.fault(None);
        reason
    };
    assert!(refused(Fault::Status(401)).contains("MLFLOW_TRACKING_TOKEN"));
    assert!(refused(Fault::Status(400)).contains("something is wrong"));
    assert!(refused(Fault::Status(302)).contains("sends on"));
    assert!(refused(Fault::Talks).contains("no MLflow server"));
    lab.run(&[], &[]).deliver().unwrap();
    lab.server.store().runs.values_mut().for_each(|run| run.is_deleted = true);
    let Err(Trouble::Refused(reason)) = lab.run(&[], &[]).deliver() else { panic!("the run is deleted") };
    assert!(reason.contains("run0 was deleted"), "{reason}");
    // One that the server knows nothing of is told anew.
    lab.server.store().runs.clear();
    lab.run(&[], &[]).deliver().unwrap();
    assert_eq!(steps(&lab.server.run(), "loss_nats"), [10]);
}

#[test]
fn parameters_that_change_are_a_tag() {
    let lab = Lab::new();
    lab.report(&train(10));
    lab.run(&[("train.steps", "10"), ("width", "8")], &[]).deliver().unwrap();
    lab.run(&[("train.steps", "20"), ("width", "8")], &[]).deliver().unwrap();
    let told = lab.server.run();
    assert_eq!((&*told.parameters["train.steps"], &*told.tags["moec.changed"]), ("10", "train.steps=20"));
    lab.run(&[("train.steps", "10")], &[]).deliver().unwrap();
    assert_eq!(lab.server.run().tags["moec.changed"], "");
}

#[test]
fn the_environment_says_who_asks_and_for_which_experiment() {
    let lab = Lab::new();
    lab.report(&train(10));
    let variables =
        [("MLFLOW_TRACKING_USERNAME", "me"), ("MLFLOW_TRACKING_PASSWORD", "s3cret"), ("MLFLOW_EXPERIMENT_ID", "7")];
    lab.run(&[], &variables).deliver().unwrap();
    assert_eq!(lab.server.run().experiment, "7");
    assert_eq!(lab.server.store().authorization.as_deref(), Some("Basic bWU6czNjcmV0"));
    assert!(lab.server.store().experiments.is_empty());
    let kept = std::fs::read_to_string(lab.root().join(FILE)).unwrap();
    assert!(!kept.contains("s3cret"), "{kept}");
}

#[test]
fn a_file_that_is_damaged_is_not_replaced() {
    let lab = Lab::new();
    let server = lab.server.url().parse().unwrap();
    let about = About { root: lab.root(), parameters: BTreeMap::new() };
    for (text, why) in [("{", "damaged"), (r#"{"schema":9}"#, "damaged")] {
        std::fs::write(lab.root().join(FILE), text).unwrap();
        let Err(reason) = MlflowRun::open(&about, &server, Arc::default()) else { panic!("{text} is damaged") };
        assert!(reason.contains(why), "{reason}");
        assert_eq!(std::fs::read_to_string(lab.root().join(FILE)).unwrap(), text);
    }
    std::fs::remove_file(lab.root().join(FILE)).unwrap();
    MlflowRun::open(&about, &server, Arc::default()).unwrap().record().unwrap();
    let kept = std::fs::read_to_string(lab.root().join(FILE)).unwrap();
    std::fs::write(lab.root().join(FILE), kept.replace("\"schema\": 1", "\"schema\": 2")).unwrap();
    assert!(Kept::read(lab.root()).unwrap_err().contains("version 2"));
    // What is an address is checked there as everywhere.
    for address in ["http://me:s3cret@host", "host"] {
        std::fs::write(lab.root().join(FILE), kept.replace(&lab.server.url(), address)).unwrap();
        let reason = Kept::read(lab.root()).unwrap_err();
        assert!(reason.contains("damaged") && !reason.contains("s3cret"), "{reason}");
    }
}

#[test]
fn credentials_are_not_sent_where_only_a_folder_says() {
    let lab = Lab::new();
    lab.report(&train(10));
    lab.run(&[], &[]).deliver().unwrap();
    let (named, kept): (Server, _) = (lab.server.url().parse().unwrap(), Kept::read(lab.root()).unwrap().unwrap());
    let run = |server: &Server, uri: &str| {
        lab.at(server, &[], &[("MLFLOW_TRACKING_TOKEN", "t0ken"), ("MLFLOW_TRACKING_URI", uri)], TIMEOUT)
    };
    let sent = |server: &Server, uri: &str| {
        run(server, uri).deliver().unwrap();
        lab.server.store().authorization.clone()
    };
    let token = Some("Bearer t0ken".to_string());
    assert_eq!(sent(&kept.server(), "https://ours"), None);
    assert_eq!(sent(&kept.server(), "databricks"), None);
    assert_eq!(sent(&kept.server(), &format!("{named}/")), token);
    assert_eq!(sent(&named, "https://ours"), token);
    lab.fault((Fault::Status(401), "/"));
    let Err(Trouble::Refused(reason)) = run(&kept.server(), "https://ours").deliver() else { panic!("who asks?") };
    assert!(reason.contains(&format!("moec track RUN --to mlflow={named}")), "{reason}");
}

#[test]
fn nothing_is_kept_of_a_server_that_does_not_have_the_run() {
    let lab = Lab::new();
    lab.report(&train(10));
    for fault in [(Fault::Status(500), "/"), (Fault::Talks, "/"), (Fault::Status(403), "runs/create")] {
        lab.fault(fault);
        assert!(lab.run(&[], &[]).deliver().is_err());
        assert_eq!(lab.kept(), None, "{fault:?}");
    }
    // Once it may have the run, another process must find it.
    lab.fault((Fault::LosesAnswers, "runs/create"));
    assert!(lab.run(&[], &[]).deliver().is_err());
    lab.fault(None);
    lab.run(&[], &[]).deliver().unwrap();
    assert_eq!(steps(&lab.server.run(), "loss_nats"), [10]);
    // The server that has it remains.
    let (kept, nobody) = (lab.kept(), "http://127.0.0.1:1".parse().unwrap());
    assert!(lab.at(&nobody, &[], &[], TIMEOUT).deliver().is_err());
    assert_eq!(lab.kept(), kept);
    let refusing = FakeServer::start();
    refusing.store().fault = Some((Fault::Status(403), "runs/create"));
    assert!(lab.at(&refusing.url().parse().unwrap(), &[], &[], TIMEOUT).deliver().is_err());
    assert_eq!(lab.kept(), kept);
}

#[test]
fn files_that_are_refused_leave_the_run_as_it_ended() {
    let lab = Lab::new();
    lab.report(&train(10));
    std::fs::write(lab.root().join("spec.moe"), "").unwrap();
    lab.fault((Fault::Status(413), "metrics.jsonl"));
    let (_, place) = lab.run(&[], &[]).tell(Ending::Finished).unwrap();
    assert!(place.contains("(without metrics.jsonl: ") && place.contains("413"), "{place}");
    assert_eq!(lab.server.run().status, "FINISHED");
    assert_eq!(lab.server.store().artifacts.keys().collect::<Vec<_>>(), ["1/run0/artifacts/spec.moe"]);
    lab.fault((Fault::Status(403), "mlflow-artifacts"));
    let (_, place) = lab.run(&[], &[]).tell(Ending::Stopped).unwrap();
    assert!(place.contains("(without spec.moe and 1 more files: "), "{place}");
    assert_eq!(lab.server.run().status, "KILLED");
    // What may be over later is tried again, and the end is told by then.
    lab.fault((Fault::Status(503), "mlflow-artifacts"));
    let mut run = lab.run(&[], &[]);
    assert!(matches!(run.tell(Ending::Failed), Err(Trouble::Unreachable(_))));
    assert_eq!(lab.server.run().status, "FAILED");
    lab.fault(None);
    run.tell(Ending::Failed).unwrap();
    assert_eq!(lab.server.store().artifacts.len(), 2);
}

#[test]
fn a_server_that_was_set_up_anew_is_asked_for_the_experiment_by_name() {
    let lab = Lab::new();
    lab.report(&train(10));
    lab.run(&[], &[]).deliver().unwrap();
    assert_eq!(lab.server.run().experiment, "1");
    lab.server.store().runs.clear();
    lab.server.store().experiments = vec!["another".to_string()];
    lab.run(&[], &[]).deliver().unwrap();
    assert_eq!(lab.server.run().experiment, "2");
    assert_eq!(lab.server.store().experiments, ["another", "moec"]);
}

#[test]
fn a_server_that_moved_has_the_run_if_it_has_its_mark() {
    let lab = Lab::new();
    lab.report(&train(10));
    lab.run(&[], &[("MLFLOW_EXPERIMENT_ID", "7")]).deliver().unwrap();
    lab.move_server();
    lab.run(&[], &[]).deliver().unwrap();
    assert_eq!((&*lab.server.run().experiment, steps(&lab.server.run(), "loss_nats")), ("7", vec![10]));
    assert!(lab.kept().unwrap().contains(&lab.server.url()));
    // At another one the number is somebody else's, and the experiment as of a new run.
    lab.move_server();
    let mark = "of another".to_string();
    lab.server.store().runs.values_mut().for_each(|run| run.tags = [("moec.mark".to_string(), mark.clone())].into());
    lab.run(&[], &[("MLFLOW_EXPERIMENT_ID", "9")]).deliver().unwrap();
    let store = lab.server.store();
    assert_eq!((store.runs.len(), &*store.runs["run1"].experiment), (2, "9"));
}

#[test]
fn the_times_of_a_run_that_is_told_later_are_those_of_its_training() {
    let times = |lab: &Lab| {
        lab.run(&[], &[]).deliver().unwrap();
        lab.server.run().metrics.iter().map(|(.., time)| *time).collect::<BTreeSet<_>>()
    };
    let hour = Duration::from_secs(3600);
    let long = (train(10) + &train(20)).replace("\"step_ms\":10", "\"step_ms\":360000");
    // Ten steps took an hour: it began two hours before its last line, or when its spec was written.
    for (has_spec, began) in [(false, 2 * hour), (true, 5 * hour)] {
        let lab = Lab::new();
        lab.report(&long);
        let began = if has_spec {
            let began = SystemTime::now() - began;
            let spec = std::fs::File::create(lab.root().join("spec.moe")).unwrap();
            spec.set_modified(began).unwrap();
            began
        } else {
            std::fs::metadata(lab.root().join("metrics.jsonl")).unwrap().modified().unwrap() - began
        };
        let at = |after: Duration| since_1970(began + after).as_millis() as u64;
        assert_eq!(times(&lab), BTreeSet::from([at(hour), at(2 * hour)]));
    }
}

#[test]
fn names_and_places_are_such_as_mlflow_takes() {
    assert_eq!(plain_name("load_rows/blocks.0.moe/3"), "load_rows/blocks.0.moe/3");
    assert_eq!(plain_name("grün#"), "gr_n_");
    assert_eq!(plain_name(&"x".repeat(300)).len(), 250);
    assert_eq!(proxied("mlflow-artifacts:/1/abc/artifacts").as_deref(), Some("1/abc/artifacts"));
    assert_eq!(proxied("mlflow-artifacts://host:5000/1/abc/artifacts").as_deref(), Some("1/abc/artifacts"));
    for elsewhere in ["s3://bucket/1", "/mnt/1", "mlflow-artifacts:", "mlflow-artifacts:/a b"] {
        assert_eq!(proxied(elsewhere), None, "{elsewhere}");
    }
}

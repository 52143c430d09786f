//! What is asked for, and what becomes of trackers that fail.

use super::*;
use std::collections::VecDeque;

fn trackers(asked: &[&str], continued: Option<&Path>, said: &[(&str, &str)]) -> Result<Trackers, String> {
    let asked: Vec<String> = asked.iter().map(|text| text.to_string()).collect();
    let variable = |name: &str| said.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
    Trackers::with(&asked, continued, &variable).map_err(|failure| {
        assert_eq!(failure.exit(), Exit::Usage);
        failure.to_string()
    })
}

fn of(tensorboard: bool, server: Option<&str>) -> Result<Trackers, String> {
    Ok(Trackers { tensorboard, mlflow: server.map(|url| url.parse().unwrap()), unknown: None })
}

const A: &str = "http://127.0.0.1:1";
const B: &str = "http://127.0.0.1:2";

#[test]
fn words_name_trackers() {
    let wrong = |text: &str| text.parse::<Tracker>().unwrap_err();
    assert!(wrong("wandb").contains("tensorboard, mlflow, mlflow=URL and none"));
    assert!(wrong("tensorbord").contains("did you mean tensorboard?"));
    assert!(wrong("tensorboard=runs").contains("only mlflow takes a URL"));
    assert!(wrong("mlflow=localhost:5000").contains("did you mean mlflow=http://localhost:5000?"));
    assert!(!wrong("mlflow=databricks").contains("did you mean"));
    assert!(wrong("mlflow=").contains("http://127.0.0.1:5000"));
    assert!(wrong("mlflow=file:///tmp").contains("http://127.0.0.1:5000"));
}

#[test]
fn the_command_line_goes_before_the_run_and_the_environment() {
    let environment = [(VARIABLE, "tensorboard, mlflow"), ("MLFLOW_TRACKING_URI", A)];
    assert_eq!(trackers(&[], None, &[]), of(false, None));
    assert_eq!(trackers(&[], None, &[("MLFLOW_TRACKING_URI", A)]), of(false, None), "off by default");
    assert_eq!(trackers(&[], None, &environment), of(true, Some(A)));
    assert_eq!(trackers(&["none"], None, &environment), of(false, None));
    assert_eq!(trackers(&["tensorboard"], None, &environment), of(true, None));
    assert_eq!(trackers(&["mlflow"], None, &environment), of(false, Some(A)));
    assert_eq!(trackers(&[&format!("mlflow={B}"), "tensorboard"], None, &environment), of(true, Some(B)));
    assert!(trackers(&["mlflow"], None, &[]).unwrap_err().contains("nothing says where"));
    let local = [("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")];
    assert!(trackers(&["mlflow"], None, &local).unwrap_err().starts_with("MLFLOW_TRACKING_URI=sqlite:"));
    assert!(trackers(&[], None, &[(VARIABLE, "wandb")]).unwrap_err().starts_with("MOEC_TRACK=wandb: "));
    assert!(trackers(&["none", "tensorboard"], None, &[]).is_err());
    assert!(trackers(&[&format!("mlflow={A}"), &format!("mlflow={B}")], None, &[]).is_err());

    // A run goes on where it was tracked.
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    assert_eq!(trackers(&[], Some(root), &environment), of(true, Some(A)));
    let run = MlflowRun::open(&About { root, parameters: BTreeMap::new() }, &B.parse().unwrap(), Arc::default());
    run.unwrap().record().unwrap();
    assert_eq!(trackers(&[], Some(root), &environment), of(false, Some(B)));
    assert_eq!(trackers(&["mlflow"], Some(root), &environment), of(false, Some(B)));
    assert_eq!(trackers(&[&format!("mlflow={A}")], Some(root), &environment), of(false, Some(A)));
    assert_eq!(trackers(&["none"], Some(root), &environment), of(false, None));
    std::fs::write(root.join("events.out.tfevents.0000000007.000000.moec"), "").unwrap();
    assert_eq!(trackers(&[], Some(root), &[]), of(true, Some(B)));
    std::fs::write(root.join("mlflow.json"), "{").unwrap();
    let Trackers { tensorboard, mlflow, unknown } = trackers(&[], Some(root), &[]).unwrap();
    assert!(tensorboard && mlflow.is_none() && unknown.is_some_and(|reason| reason.contains("damaged")));
}

#[test]
fn no_message_shows_a_password() {
    for secret in ["mlflow=http://me:s3cret@host", "mlfow=http://me:s3cret@host", "mlflow=http://me:s3,cret@host"] {
        for refused in [trackers(&[secret], None, &[]), trackers(&[], None, &[(VARIABLE, secret)])] {
            let message = refused.unwrap_err();
            assert!(!message.contains("s3") && !message.contains("cret@"), "{message}");
            assert!(message.starts_with("--track: ") || message.starts_with("MOEC_TRACK: "), "{message}");
        }
    }
    let message = trackers(&["mlflow"], None, &[("MLFLOW_TRACKING_URI", "http://me:s3cret@host")]).unwrap_err();
    assert!(message.starts_with("MLFLOW_TRACKING_URI: ") && !message.contains("s3cret"), "{message}");
}

/// A destination that does as it is told.
struct Puppet {
    deliveries: VecDeque<Result<(), Trouble>>,
    delivered: usize,
    ended: Vec<Ending>,
}

impl Destination for Puppet {
    fn name(&self) -> String {
        "puppet".to_string()
    }

    fn place(&self) -> String {
        "a stage".to_string()
    }

    fn remedy(&self, _: bool) -> String {
        String::new()
    }

    fn deliver(&mut self) -> Result<(), Trouble> {
        self.delivered += 1;
        self.deliveries.pop_front().unwrap_or(Ok(()))
    }

    fn end(&mut self, ending: Ending) -> Result<String, Trouble> {
        self.ended.push(ending);
        Ok("there".to_string())
    }
}

/// Follows a training that says something until all deliveries but the last `left` are made; what was remarked, and what came
/// of it.
fn followed(deliveries: Vec<Result<(), Trouble>>, left: usize) -> (Vec<String>, Told, Puppet) {
    let mut puppet = Puppet { deliveries: deliveries.into(), delivered: 0, ended: Vec::new() };
    let (news, received) = sync_channel(1);
    let ending = OnceLock::new();
    let (sent, count) = std::sync::mpsc::channel();
    let mut remarks = Vec::new();
    struct Counted<'a>(&'a mut Puppet, std::sync::mpsc::Sender<usize>);
    impl Destination for Counted<'_> {
        fn name(&self) -> String {
            self.0.name()
        }
        fn place(&self) -> String {
            self.0.place()
        }
        fn remedy(&self, is_refused: bool) -> String {
            self.0.remedy(is_refused)
        }
        fn deliver(&mut self) -> Result<(), Trouble> {
            let delivered = self.0.deliver();
            let _ = self.1.send(self.0.deliveries.len());
            delivered
        }
        fn end(&mut self, ending: Ending) -> Result<String, Trouble> {
            self.0.end(ending)
        }
    }
    let told = std::thread::scope(|scope| {
        let ending = &ending;
        scope.spawn(move || {
            news.send(()).unwrap();
            while count.recv().is_ok_and(|remaining| remaining > left) {
                let _ = news.try_send(());
            }
            ending.set(Ending::Finished).unwrap();
        });
        let tell = &mut |remark: Remark<'_>| remarks.push(format!("{remark:?}"));
        follow(&mut Counted(&mut puppet, sent), &received, ending, Duration::from_millis(1), tell)
    });
    (remarks, told, puppet)
}

fn away() -> Result<(), Trouble> {
    Err(Trouble::Unreachable("away".to_string()))
}

#[test]
fn what_cannot_be_reached_is_tried_again_and_said_once() {
    let (remarks, told, puppet) = followed(vec![Ok(()), away(), away(), Ok(()), away(), Ok(())], 0);
    assert_eq!(remarks, [r#"Down("away")"#, "Up"]);
    assert_eq!((told, puppet.ended), (Ok(Some("there".to_string())), vec![Ending::Finished]));
    assert!(puppet.delivered >= 7, "{}", puppet.delivered);
}

#[test]
fn the_end_is_tried_again_unless_nobody_was_there() {
    let (_, told, puppet) = followed(vec![Ok(()), away(), away()], 2);
    assert_eq!((told, puppet.ended.len()), (Ok(Some("there".to_string())), 1));
    let (remarks, told, puppet) = followed((0..30).map(|_| away()).collect(), 29);
    assert_eq!((remarks.len(), told, puppet.ended.len()), (1, Err(Trouble::Unreachable("away".to_string())), 0));
    let refused = || Err(Trouble::Refused("no".to_string()));
    let (remarks, told, puppet) = followed(vec![Ok(()), refused(), Ok(())], 0);
    assert_eq!((remarks, told), (vec![r#"Refused("no")"#.to_string()], Err(Trouble::Refused("no".to_string()))));
    assert_eq!((puppet.delivered, puppet.ended.len()), (2, 0));
}

#[test]
fn a_training_that_never_began_is_not_told() {
    let mut puppet = Puppet { deliveries: VecDeque::new(), delivered: 0, ended: Vec::new() };
    let (news, received) = sync_channel(1);
    drop(news);
    let told = follow(&mut puppet, &received, &OnceLock::new(), INTERVAL, &mut |_| panic!("nothing is said"));
    assert_eq!((told, puppet.delivered, puppet.ended.len()), (Ok(None), 0, 0));
}

#[test]
fn who_does_not_answer_is_named_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let about = About { root: folder.path(), parameters: BTreeMap::new() };
    let run = MlflowRun::open(&about, &A.parse().unwrap(), Arc::default()).unwrap();
    assert_eq!(run.place(), A);
    assert!(run.remedy(false).starts_with("moec track ") && !run.remedy(false).contains("--to"));
    assert!(run.remedy(true).contains("--to mlflow=URL"));
}

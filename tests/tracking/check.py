"""Holds what moec tells trackers against MLflow, TensorBoard, pandas and PyTorch as they are installed.

usage: check.py MOEC
"""

import collections, contextlib, json, os, pathlib, shutil, signal, socket, sqlite3, subprocess, sys, tempfile, time
import urllib.request

MOEC = sys.argv[1]
ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = pathlib.Path(tempfile.mkdtemp(prefix="moec-tracking-"))
BIN = pathlib.Path(sys.executable).parent

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MOEC_TRACK"))}
ENVIRONMENT |= {
    "MOEC": MOEC,
    "MLFLOW_EXPERIMENT_NAME": "checks",
    "NO_PROXY": "127.0.0.1",
    # Nobody is told that a test ran, and the server needs none of its helpers.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
os.environ.clear()
os.environ.update(ENVIRONMENT)

SPEC = """
model small {
  let width = 16
  context 8
  vocab characters
  embed(width: width, positions: learned)
  repeat 2 {
    residual { layer_norm  attention(heads: 2) }
    residual { layer_norm  moe(experts: 3 * mlp(hidden: 24), route: noisy_top_k(k: 2), balance: [load(weight: 0.01)]) }
  }
  layer_norm
  unembed
}
train { batch 9  log(every: 2)  evaluate(every: 50, batches: 1)  checkpoint(every: 1000) }
"""


class Server:
    """A server of MLflow with a database and files of its own."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.database = WORK / "mlflow.db"
        self.log = open(WORK / "server.log", "ab")
        self.start()

    def start(self):
        command = [BIN / "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.database}", "--artifacts-destination", WORK / "artifacts"]
        # A session of its own, so that it can be ended with all that it starts.
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, cwd=WORK, start_new_session=True)

    def ready(self):
        """Waits until it answers."""
        while True:
            if self.process.poll() is not None:
                sys.exit("the server does not start:\n" + (WORK / "server.log").read_text())
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"{self.url}/health", timeout=5).status == 200:
                    return
            time.sleep(0.2)

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def points(self, run_id):
        """How often the database has each number of a run, by name and step."""
        with sqlite3.connect(self.database) as database:
            rows = database.execute("select key, step from metrics where run_uuid = ?", (run_id,)).fetchall()
        return collections.Counter(rows)

    def last_step(self, run_id):
        return max((step for _, step in self.points(run_id)), default=0)


def command(run, *more):
    # One spec for all, so that runs have the same bytes.
    common = [MOEC, "train", WORK / "small.moe", "--device", "interpreter", "--sample", "30", "--progress", "plain"]
    return [*common, "--out", WORK / run, *more]


def moec(*arguments, code=0):
    done = subprocess.run([str(argument) for argument in arguments], capture_output=True, text=True, cwd=WORK)
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stderr


def begin(run, *more):
    log = open(WORK / f"{run}.log", "ab")
    return subprocess.Popen([str(word) for word in command(run, *more)], stdout=log, stderr=log, cwd=WORK)


def reported(run):
    """The numbers of a run by name and step, as trackers are told them."""
    numbers = {}
    for line in open(WORK / run / "metrics.jsonl"):
        line = json.loads(line)
        step = line.pop("step")
        layers = line.pop("layers", [])
        numbers |= {(name, step): value for name, value in line.items() if name not in ("kind", "schema")}
        for layer in layers:
            path = layer.pop("path")
            for expert, rows in enumerate(layer.pop("load_rows")):
                numbers[f"load_rows/{path}/{expert}", step] = rows
            for name, value in layer.pop("auxiliary").items():
                numbers[f"auxiliary.{name}/{path}", step] = value
            numbers |= {(f"{name}/{path}", step): value for name, value in layer.items()}
    return numbers


def lines(run):
    path = WORK / run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def until(condition, process):
    while not condition():
        assert process.poll() is None, "the training ended too early"
        time.sleep(0.02)


def run_id(run):
    path = WORK / run / "mlflow.json"
    return json.loads(path.read_text()).get("run_id") if path.exists() else None


def checkpoint(run, step):
    folder = WORK / run / "checkpoints" / f"step-{step:08d}"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def last_checkpoint(run):
    """The step of the newest checkpoint."""
    return max(int(path.name[5:]) for path in (WORK / run / "checkpoints").glob("step-*"))


def check_points(server, run):
    """Every number is there, with its value, once."""
    import mlflow

    numbers, there = reported(run), server.points(run_id(run))
    assert there == collections.Counter(numbers.keys()), f"{run}: {there ^ collections.Counter(numbers.keys())}"
    client = mlflow.MlflowClient(server.url)
    for name in ("loss_nats", "validation_loss_nats", "load_rows/blocks.1.moe/2", "auxiliary.load/blocks.0.moe"):
        history = {(name, metric.step): metric.value for metric in client.get_metric_history(run_id(run), name)}
        assert history and history == {at: value for at, value in numbers.items() if at[0] == name}, (run, name)


def status(server, run):
    import mlflow

    return mlflow.MlflowClient(server.url).get_run(run_id(run)).info.status


def check_run(server, steps):
    """A run that nothing happens to."""
    import mlflow

    said = moec(*command("whole", "--steps", str(steps), "--track", "tensorboard", "--track", f"mlflow={server.url}"))
    assert f"tracked: {server.url}/#/experiments/" in said, said
    client = mlflow.MlflowClient(server.url)
    run = client.get_run(run_id("whole"))
    assert (run.info.status, run.info.run_name) == ("FINISHED", "whole")
    assert client.get_experiment(run.info.experiment_id).name == "checks"
    wanted = {"train.steps": str(steps), "train.batch": "9", "train.optimizer": "adamw", "width": "16", "model": "small"}
    assert wanted.items() <= run.data.params.items(), run.data.params
    assert int(run.data.params["parameters"]) > int(run.data.params["active_parameters"]) > 1000
    assert run.info.start_time < run.info.end_time
    check_points(server, "whole")
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert names == {"spec.moe", "resolved.yaml", "plan.txt", "metrics.jsonl", "samples"}, names
    for name in ("spec.moe", f"samples/step-{steps:08d}.txt"):
        copy = pathlib.Path(client.download_artifacts(run.info.run_id, name, str(WORK)))
        assert copy.read_bytes() == (WORK / "whole" / name).read_bytes(), name


def check_server_that_is_killed(server, steps):
    """The training goes on to the same bytes, and what the server missed is told afterwards."""
    training = begin("orphan", "--steps", str(steps), "--track", f"mlflow={server.url}")
    until(lambda: run_id("orphan") and sum(server.points(run_id("orphan")).values()) > 20, training)
    server.kill()
    before = lines("orphan")
    until(lambda: lines("orphan") > before + 20, training)
    assert training.wait() == 0
    said = (WORK / "orphan.log").read_text()
    assert said.count("mlflow cannot be reached") == 1 and "moec track " in said.splitlines()[-1], said
    assert checkpoint("orphan", steps) == checkpoint("plain", steps), "the bytes differ"
    there, all_of_it = sum(server.points(run_id("orphan")).values()), len(reported("orphan"))
    assert 20 < there < all_of_it, (there, all_of_it)
    moec(MOEC, "track", WORK / "orphan", code=1)
    server.start()
    server.ready()
    assert status(server, "orphan") == "RUNNING"
    said = moec(MOEC, "track", WORK / "orphan")
    assert "numbers that were missing" in said, said
    check_points(server, "orphan")
    assert status(server, "orphan") == "FINISHED"
    assert "no number was missing" in moec(MOEC, "track", WORK / "orphan")
    check_points(server, "orphan")


def check_run_that_is_stopped_and_killed(server, steps):
    """It is one run there, however often it goes on, and has no step twice."""
    import mlflow

    tracked = ["--track", "tensorboard", "--track", f"mlflow={server.url}"]
    training = begin("stopped", "--steps", str(steps), *tracked)
    # When it has been evaluated.
    until(lambda: run_id("stopped") and server.last_step(run_id("stopped")) > 100, training)
    training.send_signal(signal.SIGINT)
    assert training.wait() == 130
    first = run_id("stopped")
    assert status(server, "stopped") == "KILLED"
    check_points(server, "stopped")
    resume = [MOEC, "train", "--resume", WORK / "stopped", "--sample", "0", "--progress", "plain"]
    with open(WORK / "stopped.log", "ab") as log:
        training = subprocess.Popen([str(word) for word in resume], stdout=log, stderr=log, cwd=WORK)
    # Beyond its last checkpoint, so that it goes over steps again that the server has.
    until(lambda: server.last_step(first) > last_checkpoint("stopped") + 10, training)
    training.kill()
    training.wait()
    assert server.last_step(first) > last_checkpoint("stopped")
    moec(*resume)
    assert run_id("stopped") == first and status(server, "stopped") == "FINISHED"
    check_points(server, "stopped")
    assert checkpoint("stopped", steps) == checkpoint("plain", steps), "the bytes differ"
    assert len(mlflow.MlflowClient(server.url).search_runs(["1"])) == 3


def check_events(run, files):
    """TensorBoard has every number of the run, and each once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert len(list((WORK / run).glob("events.out.tfevents.*"))) == files
    events = EventAccumulator(str(WORK / run), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    there = [((tag, event.step), event.value) for tag in tags for event in events.Scalars(tag)]
    numbers = reported(run)
    assert len(there) == len(numbers) and dict(there).keys() == numbers.keys(), run
    assert all(abs(value - numbers[at]) <= 1e-6 * max(1, abs(value)) for at, value in there)
    times = [event.wall_time for event in events.Scalars("loss_nats")]
    assert times == sorted(times) and times[0] > 1.7e9, times[:3]


def check_notebook(run):
    """The page of examples/notebook, cell by cell."""
    import nbclient, nbformat

    page = nbformat.read(ROOT / "examples" / "notebook" / "run.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in page.cells), "outputs are not kept"
    os.environ["MOEC_RUN"] = str(WORK / run)
    nbclient.NotebookClient(page, resources={"metadata": {"path": str(WORK)}}).execute()
    shown = [output for cell in page.cells for output in cell.get("outputs", [])]
    text = "\n".join(str(output.get("text") or output.get("data", {}).get("text/plain")) for output in shown)
    loss = reported(run)["loss_nats", max(step for name, step in reported(run) if name == "loss_nats")]
    assert f"{loss:.6f}" in text, text
    assert "blocks.1.moe" in text and "torch.float64" in text, text
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2


def main():
    steps = 2000
    (WORK / "small.moe").write_text(SPEC)
    server = Server()

    def timed(title, check, *arguments):
        begun = time.monotonic()
        check(*arguments)
        print(f"{title}: {time.monotonic() - begun:.1f} s")

    try:
        timed("an untracked run", lambda: moec(*command("plain", "--steps", str(steps))))
        timed("the server starts", server.ready)
        timed("a run on a server", check_run, server, steps)
        assert checkpoint("whole", steps) == checkpoint("plain", steps), "the bytes differ"
        timed("a server that is killed", check_server_that_is_killed, server, steps)
        timed("a run that is stopped and killed", check_run_that_is_stopped_and_killed, server, steps)
        timed("event files", check_events, "whole", 1)
        timed("event files of a run that went on", check_events, "stopped", 3)
        timed("the notebook", check_notebook, "whole")
    finally:
        server.kill()
    shutil.rmtree(WORK)
    print("7 passed, 0 failed")


main()

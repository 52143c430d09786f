"""Participants of a measurement: processes that train in slices, and stand still while others have their turn."""

import json
import os
import shutil
import signal
import subprocess
import time

from . import places

CORES = str(os.cpu_count())


class Failed(Exception):
    """A participant cannot be measured; the message says why."""


def environment():
    """Everyone computes on all cores, and what torch.compile caches lies below our folder."""
    return os.environ | {
        "OMP_NUM_THREADS": CORES,
        "RAYON_NUM_THREADS": CORES,
        "TORCHINDUCTOR_CACHE_DIR": str(places.INDUCTOR),
    }


class Peer:
    """A process that speaks the protocol: it prints a line when ready, and answers `go N` with N lines of JSON.

    Between its turns the whole process group is stopped, so that not even a polling thread disturbs the others.
    """

    def __init__(self, name, command):
        self.name = name
        self.command = [str(part) for part in command]

    def start(self):
        """Starts the process and waits for its first step; `ready_s` is the time from the command to its end."""
        places.LOGS.mkdir(parents=True, exist_ok=True)
        log = open(places.LOGS / f"{self.name}.log", "w", encoding="utf-8")
        begun = time.monotonic()
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=places.REPOSITORY,
            env=environment(),
            text=True,
            start_new_session=True,
        )
        log.close()
        try:
            self.ready = self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        self.ready_s = time.monotonic() - begun
        self.pause()

    def wait_until_ready(self):
        """What the process says when its first step is done."""
        return self.read()

    def read(self):
        """The next line of JSON."""
        line = self.process.stdout.readline()
        if not line:
            raise Failed(f"{self.name} ended early; see {places.LOGS.relative_to(places.REPOSITORY)}/{self.name}.log")
        return json.loads(line)

    def ask(self, request, lines):
        """The answers to a request, as many lines as it has."""
        self.signal(signal.SIGCONT)
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        answers = [self.read() for _ in range(lines)]
        self.pause()
        return answers

    def steps(self, count):
        """So many training steps; the first after a pause, which finds cold caches, is dropped."""
        return self.ask(f"go {count + 1}", count + 1)[1:]

    def pause(self):
        """Stops the process and its children where they are."""
        self.signal(signal.SIGSTOP)

    def signal(self, number):
        """Sends a signal to the process and its children."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def peak_mib(self):
        """Peak resident memory of the process so far, in MiB; None where the system does not say."""
        try:
            with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
                for line in status:
                    if line.startswith("VmHWM:"):
                        return int(line.split()[1]) / 1024
        except OSError:
            return None
        return None

    def stop(self):
        """Ends the process."""
        self.signal(signal.SIGKILL)
        self.process.wait()


class Moec(Peer):
    """moec's training step: `moec train`, read through the metrics of its run folder.

    It has no requests: it is let run until as many steps as wanted are in the file.
    """

    def __init__(self, name, moec, spec, overrides=()):
        self.run = places.RUNS / name
        settings = ["train.log.every=1", "train.evaluate.every=1000000", "train.checkpoint.every=1000000", *overrides]
        options = [part for setting in settings for part in ("--set", setting)]
        files = ["--data", places.TEXT, "--out", self.run]
        super().__init__(name, [moec, "train", spec, "--steps", "1000000", "--sample", "0", *files, *options])

    def start(self):
        """As for any participant, in a new run folder."""
        shutil.rmtree(self.run, ignore_errors=True)
        self.seen = 0
        super().start()

    def wait_until_ready(self):
        """The line of the first step."""
        return self.lines(1)[0]

    def lines(self, count):
        """The next so many lines of the metrics, as soon as they are there."""
        while True:
            path = self.run / "metrics.jsonl"
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            whole = [json.loads(line) for line in text.split("\n")[:-1]]
            if len(whole) >= self.seen + count:
                self.seen += count
                return whole[self.seen - count : self.seen]
            if self.process.poll() is not None:
                raise Failed(f"{self.name} ended early; see its log")
            time.sleep(0.01)

    def steps(self, count):
        """So many steps. The first one had begun before the last pause, and counts for nothing."""
        self.seen = len((self.run / "metrics.jsonl").read_text(encoding="utf-8").split("\n")) - 1
        self.signal(signal.SIGCONT)
        lines = self.lines(count + 1)[1:]
        self.pause()
        return [{"step": line["step"], "ms": line["step_ms"], "loss": line["loss_nats"]} for line in lines]


def interleave(participants, rounds, slice_steps):
    """Gives every participant a slice in every round; the order rotates, so that none always follows the same other.

    Returns for each name the rounds, each the list of that slice's answers.
    """
    answers = {participant.name: [] for participant in participants}
    for turn in range(rounds):
        shift = turn % len(participants)
        for participant in participants[shift:] + participants[:shift]:
            answers[participant.name].append(participant.steps(slice_steps))
    return answers

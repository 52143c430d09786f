"""Participants of a measurement: processes that train in slices, and stand still while others have their turn."""

import json
import os
import platform
import signal
import subprocess
import time

from . import places


def cores():
    """How many cores this process may use, and so everyone that it starts."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processor():
    """The name of this machine's processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()



class Failed(Exception):
    """A participant cannot be measured; the message says why."""


def environment():
    """Everyone computes on all cores; what torch.compile caches lies below our folder, and moec compiles its kernels."""
    return os.environ | {
        "OMP_NUM_THREADS": str(cores()),
        "RAYON_NUM_THREADS": str(cores()),
        "TORCHINDUCTOR_CACHE_DIR": str(places.INDUCTOR),
        "MOEC_CACHE": "off",
    }


class Peer:
    """A process that speaks the protocol: it prints a line when ready, and answers `go N` with N lines of JSON.

    Between its turns the whole process group is stopped, so that not even a polling thread disturbs the others.
    """

    def __init__(self, name, command):
        self.name = name
        self.command = [str(part) for part in command]
        self.process = None

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
            ready = self.read()
        except BaseException:
            self.stop()
            raise
        # A participant that makes more than a step before it is ready says itself when the first one was done.
        self.ready_s = ready.get("first_step_s", time.monotonic() - begun)
        self.pause()

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
        if self.process and self.process.poll() is None:
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
        """Ends the process, if it was started."""
        self.signal(signal.SIGKILL)
        if self.process:
            self.process.communicate()


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

"""Who takes part: every row of the table of steps, and how it is built and run."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache

from . import build, places
from .peers import Failed, Peer, environment


@dataclass(frozen=True)
class Row:
    """A row: its title, and the greatest share of this row's time that moec's step may take."""

    title: str
    goal: float | None


ROWS = {
    "moec": Row("moec", None),
    "previous": Row("moec, as it was before", None),
    "limits": Row("the machine's limit", 1.5),
    "compiled": Row("PyTorch, written for speed, torch.compile", 0.33),
    "fast": Row("PyTorch, written for speed, eager", 0.30),
    "plain": Row("PyTorch, as makeMoE", 0.20),
    "burn": Row("burn, flex", 0.20),
    "candle": Row("candle", 0.20),
}


# Who can compute on a graphics device.
GPU_ROWS = ("moec", "previous", "compiled", "fast", "plain")


def settings(overrides):
    """Overrides as options of moec."""
    return [part for override in overrides for part in ("--set", override)]


class Builder:
    """Builds what is asked for, once."""

    def __init__(self, moec, profile, python, gpu=False, previous=None):
        self.given_moec = moec
        self.given_previous = previous
        self.profile = profile
        self.given_python = python
        self.gpu = gpu
        # Where moec and PyTorch compute, each in its own words.
        self.device, self.torch_device = ("wgpu", "cuda") if gpu else ("cpu", "cpu")

    @cache
    def moec(self):
        """The program `moec`."""
        return self.given_moec or build.moec(self.profile)

    @cache
    def previous(self):
        """The moec to compare with: a program, or that of a revision, built here."""
        return build.previous_moec(self.given_previous, self.profile)

    @cache
    def python(self):
        """A Python with PyTorch, in which both models have been seen to compute the same."""
        python = build.python(self.given_python)
        command = [str(python), str(places.BENCHMARKS / "pytorch" / "peer.py"), "check"]
        checked = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
        if checked.returncode != 0:
            raise Failed(f"PyTorch's models do not agree: {checked.stderr.strip().splitlines()[-1:]}")
        return python

    def participant(self, name):
        """A process that is not started yet."""
        if name == "moec":
            return self.model("moec", places.SPEC)
        if name == "previous":
            return self.model("previous", places.SPEC, program=self.previous())
        if name == "limits":
            return Limits("limits", [build.rust("limits", "machine-limits")])
        if name in ("burn", "candle"):
            return Peer(name, [build.rust(name, f"peer-{name}"), places.TEXT])
        if name == "compiled":
            shutil.rmtree(places.INDUCTOR, ignore_errors=True)  # its first step is measured, too
        peer = places.BENCHMARKS / "pytorch" / "peer.py"
        return Peer(name, [self.python(), peer, name, places.TEXT, self.torch_device])

    def model(self, name, spec, overrides=(), program=None):
        """A process in which moec trains a model when asked to."""
        options = ("--serve", "--data", places.TEXT, "--device", self.device, *settings(overrides))
        return Peer(name, [program or self.moec(), "bench", spec, *options])

    def plan(self, spec, overrides=()):
        """What `moec compile` says of a model: parameters, operations of a step, planned memory."""
        return self.ask("compile", spec, *settings(overrides))

    def bench(self, spec, steps, overrides=()):
        """What `moec bench` measures of a model, above all where the time of a step goes."""
        options = ("--data", places.TEXT, "--steps", steps, "--device", self.device, *settings(overrides))
        return self.ask("bench", spec, *options)

    def ask(self, verb, spec, *options):
        """The JSON that a command of moec prints about a model."""
        answer = subprocess.run(
            [str(part) for part in (self.moec(), verb, spec, "--json", *options)],
            cwd=places.REPOSITORY,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode != 0:
            raise Failed(f"moec {verb} {spec.name}: {answer.stderr.strip()}")
        return json.loads(answer.stdout)


class Limits(Peer):
    """The machine itself: a step is one measurement of its multiply-adds and of its memory."""

    def steps(self, count):
        """So many measurements, and none dropped: there is no cache to warm."""
        return self.ask(f"go {count}", count)

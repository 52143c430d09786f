"""Builds moec and the peers, and installs PyTorch, all below `benchmarks/target`."""

import json
import os
import shutil
import subprocess
import sys

from . import places, text
from .peers import Failed

# The peers may use every instruction of this processor; moec compiles its kernels for it anyway.
NATIVE = {"RUSTFLAGS": "-C target-cpu=native"}


def call(what, command, environment=None):
    """Runs a command, its output in a log file; raises `Failed` with the end of the log."""
    print(f"building: {what}", file=sys.stderr, flush=True)
    places.LOGS.mkdir(parents=True, exist_ok=True)
    log = places.LOGS / f"build-{what}.log"
    with open(log, "w", encoding="utf-8") as output:
        settings = os.environ | (environment or {})
        code = subprocess.call(command, stdout=output, stderr=output, cwd=places.REPOSITORY, env=settings)
    if code != 0:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["no output"]
        raise Failed(f"{what} cannot be built ({last[0]}); see {log.relative_to(places.REPOSITORY)}")


def training_text():
    """Writes the text that everyone trains on."""
    places.TARGET.mkdir(parents=True, exist_ok=True)
    places.TEXT.write_text(text.generate(), encoding="utf-8")


def moec(profile):
    """Builds moec as its users do, in the given profile of the workspace; the path of the program."""
    call("moec", ["cargo", "build", "--package", "moec", "--profile", profile])
    metadata = subprocess.check_output(
        ["cargo", "metadata", "--no-deps", "--format-version", "1"], cwd=places.REPOSITORY, text=True
    )
    return program_in(json.loads(metadata)["target_directory"], profile)


def program_in(target, profile):
    """Where Cargo puts the program of a profile."""
    return os.path.join(target, "debug" if profile == "dev" else profile, "moec")


def previous_moec(given, profile):
    """The moec to compare with: a program as it is, or a revision of this repository, built from a work tree of its own."""
    if shutil.which(given):
        return os.path.abspath(shutil.which(given))
    revision = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{given}^{{commit}}"],
        cwd=places.REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if revision.returncode != 0:
        raise Failed(f"`{given}` is neither a program nor a revision of this repository")
    commit = revision.stdout.strip()
    source, target = places.TARGET / "previous" / commit, places.TARGET / "previous" / "target"
    if not source.exists():
        call("previous-source", ["git", "worktree", "add", "--detach", str(source), commit])
    command = ["cargo", "build", "--package", "moec", "--profile", profile, "--target-dir", str(target)]
    call("previous", [*command, "--manifest-path", str(source / "Cargo.toml")])
    return program_in(target, profile)


def rust(folder, program):
    """Builds a crate of this folder in release mode; the path of the program."""
    manifest = places.BENCHMARKS / folder / "Cargo.toml"
    target = places.TARGET / folder
    command = ["cargo", "build", "--release", "--locked", "--manifest-path", str(manifest), "--target-dir", str(target)]
    call(folder, command, NATIVE)
    return target / "release" / program


def python(given):
    """A Python that has PyTorch: the given one, or that of a virtual environment made here."""
    if given:
        return given
    folder = places.TARGET / "venv"
    program = folder / "bin" / "python"
    if not program.exists():
        call("virtual-environment", [sys.executable, "-m", "venv", str(folder)])
    wanted = places.BENCHMARKS / "pytorch" / "requirements.txt"
    call("pytorch", [str(program), "-m", "pip", "install", "--quiet", "--requirement", str(wanted)])
    return program

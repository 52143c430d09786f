"""What the experiments of this folder share: they run moec as a user would."""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Moec:
    """The program, run in a folder."""

    def __init__(self, program, folder):
        self.program = str(Path(program).resolve())
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, *arguments):
        """What a command prints on standard output. It is one that works."""
        command = [self.program, *map(str, arguments)]
        ran = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if ran.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{ran.stdout}{ran.stderr}")
        return ran.stdout

    def write(self, name, text):
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)
        return name

    def train(self, *arguments, out):
        """A run, unless it is there already: experiments go on where they stopped."""
        if not (self.folder / out / "spec.moe").exists():
            self("train", *arguments, "--out", out, "--quiet", "--sample", 0)
        return out

    def merge(self, name, recipe):
        if not (self.folder / "runs" / name / "spec.moe").exists():
            self("merge", self.write(f"{name}.yaml", recipe), "--out", f"runs/{name}")
        return f"runs/{name}"

    def loss(self, run, *arguments):
        """Mean cross-entropy in nats a character."""
        return json.loads(self("eval", run, *arguments, "--json"))["loss_nats"]

    def certificate(self, run):
        return json.loads((self.folder / run / "certificate.json").read_text())

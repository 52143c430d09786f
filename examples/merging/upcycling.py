"""A dense run upcycled to a mixture and trained on, against the dense run trained on: for as many steps, and for as much work.

usage: python3 examples/merging/upcycling.py MOEC TEXT FOLDER [SEEDS]

MOEC is the program, TEXT a file such as Tiny Shakespeare. Prints a table with the loss on the held-out part, mean and
each seed's.
"""

import json
import sys
from pathlib import Path

from common import HERE, Moec

STEPS = 1000
# (name, recipe without its runs)
MIXTURES = [
    ("8 copies, k = 2", "copies: 8\n"),
    ("8 copies, k = 2, noise 0.01", "copies: 8\nnoise: 0.01\n"),
    ("4 copies of 4 slices, k = 8", 'copies: 4\nslices: 4\nroute: "softmax_top_k(k: 8, bias: false)"\n'),
]


def work(moec, spec, *arguments):
    """Floating point operations of a training step's forward pass per token."""
    compiled = json.loads(moec("compile", spec, *arguments, "--json"))
    return sum(layer["flops"] for layer in compiled["layers"])


def main(program, text, folder, seeds="3"):
    moec = Moec(program, folder)
    text = str(Path(text).resolve())
    moec.write("dense.moe", (HERE / "dense.moe").read_text())
    losses, names = {}, []

    def add(name, run):
        if name not in names:
            names.append(name)
        losses.setdefault(name, []).append(moec.loss(run, "--data", text, "--split", "val"))

    for seed in range(1, int(seeds) + 1):
        at = f"runs/{seed}"
        dense = moec.train("dense.moe", "--data", text, "--steps", STEPS, "--seed", seed, out=f"{at}/dense")
        add(f"dense, {STEPS} steps", dense)
        on = ["--from", dense, "--data", text, "--seed", seed + 100]
        add(f"dense, {STEPS} more", moec.train(*on, "--steps", STEPS, out=f"{at}/dense-on"))
        for name, recipe in MIXTURES:
            short = name.replace(",", "").replace(" ", "-").replace("=", "")
            merged = moec.merge(f"{seed}/{short}", f"experts: [{dense}]\nseed: {seed}\n{recipe}")
            claims = [claim["holds"] for claim in moec.certificate(merged)["claims"]]
            assert all(claims), merged
            ratio = work(moec, f"{merged}/spec.moe") / work(moec, "dense.moe")
            more = ["--from", merged, "--data", text, "--seed", seed + 100, "--steps", STEPS]
            add(f"{name}, {STEPS} more", moec.train(*more, out=f"{at}/{short}-on"))
            steps = round(STEPS * ratio)
            same = moec.train(*on, "--steps", steps, out=f"{at}/dense-on-{steps}")
            if name == MIXTURES[0][0]:
                add(f"dense, as much work as that: {steps} more", same)

    print("| model | loss | seeds |\n|---|---|---|")
    for name in names:
        each = losses[name]
        print(f"| {name} | {sum(each) / len(each):.4f} | {', '.join(f'{loss:.4f}' for loss in each)} |")


if __name__ == "__main__":
    main(*sys.argv[1:])

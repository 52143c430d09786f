"""Four dense models, each trained on one speaker of the generated corpus, put together to a mixture.

usage: python3 examples/merging/speakers.py MOEC CORPUS FOLDER [SEED]

MOEC is the program, CORPUS what `cargo run --package moec --example synthetic` writes. Prints a table: the loss on text that
nobody was trained on, and how many of each speaker's characters go to the expert that was trained on him (the one with the
largest weight, mean over layers).
"""

import json
import re
import sys
from pathlib import Path

from common import HERE, Moec

SPEAKERS = ["PILOT", "COOK", "SCHOLAR", "MASON"]
STEPS = 1000
ROUTER_ONLY = ["-s", "train.freeze.experts=true", "-s", "train.freeze.trunk=true"]


def turns(text):
    """The turns of the four speakers: who, and what with his name."""
    found = re.findall(r"^([A-Z]+):\n(.*?)\n\n", text, re.M | re.S)
    return [(who, f"{who}:\n{said}\n\n") for who, said in found if who in SPEAKERS]


def shares(moec, run):
    """The share of each speaker's characters whose first expert is his own, mean over layers."""
    found = []
    for number, who in enumerate(SPEAKERS):
        record = f"{run.replace('/', '-')}-{who}.jsonl"
        moec("route", run, "--data", f"{who}.held-out.txt", "-n", 6400, "-o", record)
        own = all_ = 0
        with open(moec.folder / record) as lines:
            for line in map(json.loads, lines):
                if line["kind"] == "route":
                    first = max(zip(line["weights"], line["experts"]), key=lambda pair: (pair[0], -pair[1]))[1]
                    own += first == number
                    all_ += 1
        (moec.folder / record).unlink()
        found.append(own / all_)
    return found


def main(program, corpus, folder, seed="1"):
    moec = Moec(program, folder)
    text = Path(corpus).read_text()
    # Runs that are put together know the same characters: a first line has them all.
    alphabet = "".join(sorted(set(text) - {"\n"})) + "\n"
    all_turns = turns(text)
    held_out = len(all_turns) // 10
    training, rest = all_turns[:-held_out], all_turns[-held_out:]
    for who in SPEAKERS:
        moec.write(f"{who}.txt", alphabet + "".join(turn for name, turn in training if name == who))
        moec.write(f"{who}.held-out.txt", "".join(turn for name, turn in rest if name == who))
    moec.write("all.txt", alphabet + "".join(turn for _, turn in training))
    moec.write("held-out.txt", "".join(turn for _, turn in rest))
    moec.write("dense.moe", (HERE / "dense.moe").read_text())

    # The trunk comes from a model of all four, which the others go on from, each with one speaker.
    given = ["--seed", seed, "-s", "train.split=1.0"]
    base = moec.train("dense.moe", "--data", "all.txt", "--steps", STEPS, *given, out="runs/base")
    tuned = [
        moec.train("--from", base, "--data", f"{who}.txt", "--steps", STEPS, *given, out=f"runs/tuned-{who}")
        for who in SPEAKERS
    ]
    alone = [
        moec.train("dense.moe", "--data", f"{who}.txt", "--steps", STEPS, *given, out=f"runs/alone-{who}")
        for who in SPEAKERS
    ]

    def recipe(runs):
        experts = "".join(f'  - {{run: {run}, positive_prompts: ["{who}:\\n"]}}\n' for run, who in zip(runs, SPEAKERS))
        return f"base: {base}\ngates: last\nexperts:\n{experts}"

    rows = [("the base, dense", base)]
    rows += [(f"base tuned on {who}", run) for who, run in zip(SPEAKERS, tuned)]
    for name, runs in [("tuned", tuned), ("alone", alone)]:
        merged = moec.merge(f"of-{name}", recipe(runs))
        more = ["--from", merged, "--data", "all.txt", "--steps", STEPS, *given]
        rows.append((f"merged of runs {name}: router never trained", merged))
        rows.append((f"merged of runs {name}: router only", moec.train(*more, *ROUTER_ONLY, out=f"{merged}-router")))
        rows.append((f"merged of runs {name}: all trained", moec.train(*more, out=f"{merged}-all")))
    more = ["--from", base, "--data", "all.txt", "--steps", STEPS, *given]
    rows.append(("the base trained on, dense", moec.train(*more, out="runs/base-on")))

    print(f"| model | loss | {' | '.join(SPEAKERS)} |\n|---|---|{'---|' * len(SPEAKERS)}")
    for name, run in rows:
        loss = moec.loss(run, "--data", "held-out.txt", "--split", "all")
        own = [f"{100 * share:.0f} %" for share in shares(moec, run)] if "merged" in name else [""] * len(SPEAKERS)
        print(f"| {name} | {loss:.4f} | {' | '.join(own)} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

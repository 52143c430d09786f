"""The parts of a measurement: training steps, kernels, sampling, cold start, growth. Each returns plain data and its table."""

import shutil
import subprocess
import sys
import time
from statistics import median

from . import places, ratios, table
from .participants import ROWS
from .peers import Failed, environment, interleave

WARM_UP = 8
SLICE = 4

# What grows, and the overrides of growth/grow.moe that make it so.
GROWTH = [
    ("16 experts", ["experts=16"]),
    ("64 experts", ["experts=64"]),
    ("top-8 of 8", ["chosen=8"]),
    ("top-8 of 16", ["experts=16", "chosen=8"]),
    ("context 128", ["context=128", "train.batch=4"]),
    ("context 512", ["context=512", "train.batch=1"]),
    ("16 layers", ["layers=16"]),
    ("32 layers", ["layers=32"]),
    ("width 256", ["width=256"]),
    ("width 512", ["width=512"]),
    ("width 384, 12 layers, 16 experts", ["width=384", "layers=12", "experts=16"]),
]


def note(message):
    """Says on standard error what goes on."""
    print(message, file=sys.stderr, flush=True)


def milliseconds(answers):
    """The times of rounds of answers."""
    return [[answer["ms"] for answer in part] for part in answers]


def times(ratio):
    """A ratio with its range over the rounds."""
    middle, least, most = ratio
    return f"{table.number(middle)} ({table.number(least)} to {table.number(most)})"


def start_all(builder, names):
    """Builds and starts participants; those that cannot be are left out, with the reason."""
    started, failed = [], {}
    for name in names:
        try:
            participant = builder.participant(name)
            note(f"starting: {name}")
            participant.start()
            started.append(participant)
        except (Failed, OSError) as reason:
            failed[name] = str(reason)
            note(f"left out: {reason}")
    return started, failed


def step(builder, names, rounds):
    """Training steps of everyone, interleaved."""
    plan = builder.plan(places.SPEC)
    started, failed = start_all(builder, names)
    if not started:
        raise Failed("nobody can be measured")
    try:
        for participant in started:
            if participant.name != "limits":
                participant.steps(WARM_UP)
        note(f"measuring: {rounds} rounds of {SLICE} steps each")
        answers = interleave(started, rounds, SLICE)
        peaks = {participant.name: participant.peak_mib() for participant in started}
        ready = {participant.name: participant.ready_s for participant in started}
    finally:
        for participant in started:
            participant.stop()

    operations = plan["tokens_per_step"] * (plan["forward_flops_per_token"] + plan["backward_flops_per_token"])
    traffic = ratios.optimizer_traffic(plan["parameters"])
    samples = {name: milliseconds(part) for name, part in answers.items() if name != "limits"}
    machine = None
    if "limits" in answers:
        samples["limits"] = [
            [ratios.limit_ms(operations, traffic, answer["gflops"], answer["gbs"]) for answer in part]
            for part in answers["limits"]
        ]
        machine = {
            unit: {"median": median(values), "max": max(values)}
            for unit in ("gflops", "gbs")
            for values in [[answer[unit] for part in answers["limits"] for answer in part]]
        }
        peaks["limits"] = ready["limits"] = None

    rows, data = [], {}
    for name in names:
        title, goal = ROWS[name].title, None if builder.gpu else ROWS[name].goal
        if name in failed:
            rows.append([title, *["-"] * 7])
            continue
        entry = ratios.summary(samples[name]) | {"peak_mib": peaks[name], "first_step_s": ready[name]}
        cells = [title, table.number(entry["median_ms"]), table.number(entry["min_ms"])]
        if "moec" in samples and name != "moec":
            entry["moec_over_this"] = ratios.ratio_of_rounds(samples["moec"], samples[name])
            entry["moec_over_this_minima"] = ratios.ratio_of_minima(samples["moec"], samples[name])
            entry["goal"] = goal
            cells += [times(entry["moec_over_this"]), table.number(entry["moec_over_this_minima"])]
            cells += [f"<= {goal}" if goal else "-"]
        else:
            cells += ["1" if name == "moec" else "-"] * 2 + ["-"]
        cells += [table.number(entry["peak_mib"]), table.number(entry["first_step_s"])]
        data[name] = entry
        rows.append(cells)
    headings = ["training step", "median ms", "min ms", "moec / this", "of minima", "goal", "peak MiB", "first step s"]
    text = table.markdown(headings, rows)
    text += f"\n\n{operations / 1e9:.2f} GFLOP and {traffic / 1e6:.0f} MB of optimiser traffic a step"
    text += f"; moec plans {plan['memory']['total_bytes'] / 2**20:.0f} MiB."
    if machine:
        text += (
            f"\nThe machine: {machine['gflops']['median']:.0f} GFLOP/s of multiply-adds (at most"
            f" {machine['gflops']['max']:.0f}), {machine['gbs']['median']:.1f} GB/s of triad (at most"
            f" {machine['gbs']['max']:.1f})."
        )
    text += "".join(f"\nLeft out: {reason}." for reason in failed.values())
    planned = plan["memory"]["total_bytes"] / 2**20
    return {"rows": data, "left_out": failed, "machine": machine, "planned_mib": planned}, text


def seconds(command):
    """How long a command takes."""
    begun = time.monotonic()
    done = subprocess.run(
        [str(part) for part in command], cwd=places.REPOSITORY, env=environment(), capture_output=True, check=False
    )
    if done.returncode != 0:
        raise Failed(f"{command[1]} failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return time.monotonic() - begun


def trained(builder, name, spec):
    """A run folder of one step, to sample from."""
    run = places.RUNS / f"sample-{name}"
    shutil.rmtree(run, ignore_errors=True)
    command = [builder.moec(), "train", spec, "--steps", "1", "--sample", "0", "--data", places.TEXT, "--out", run]
    seconds([*command, "--set", "train.evaluate.batches=1"])
    return run


# What is sampled: the row's name and goal, the spec, options of the command, texts written together, and characters of the
# longer of two commands, of which the shorter has 64.
SAMPLED = {
    "windowed": ("moec, specs/noisy_top2.moe, as makeMoE", "<= 0.05", places.SPEC, [], 1, 576),
    "windowed bf16": ("the same, weights in bfloat16", "", places.SPEC, ["--weights", "bf16"], 1, 576),
    "cached": ("moec, with rotary positions", "<= 0.01", places.ROTARY_SPEC, [], 1, 4160),
    "cached bf16": ("the same, weights in bfloat16", "", places.ROTARY_SPEC, ["--weights", "bf16"], 1, 4160),
    "cached int8": ("the same, weights in int8", "", places.ROTARY_SPEC, ["--weights", "int8"], 1, 4160),
    "cached 8": ("8 texts together", "", places.ROTARY_SPEC, ["--samples", "8"], 8, 1088),
    "cached 64": ("64 texts together", "", places.ROTARY_SPEC, ["--samples", "64"], 64, 320),
}


def sampling(builder, names, rounds):
    """Milliseconds per character. moec's command is timed at two lengths, so that its start does not count; both are
    beyond the context, so that both need the same functions compiled."""
    few = 64
    runs = {spec: trained(builder, spec.stem, spec) for spec in (places.SPEC, places.ROTARY_SPEC)}
    started, failed = start_all(builder, [name for name in ("plain",) if name in names])
    samples = {name: [] for name in [*SAMPLED, *(participant.name for participant in started)]}
    try:
        note(f"measuring: sampling, {rounds} rounds")
        for _ in range(rounds):
            for name, (_, _, spec, options, texts, many) in SAMPLED.items():
                command = [builder.moec(), "sample", runs[spec], *options, "--length"]
                took = [seconds([*command, str(length)]) for length in (few, many)]
                samples[name].append([(took[1] - took[0]) * 1e3 / (many - few) / texts])
            for participant in started:
                [answer] = participant.ask("sample 32", 1)
                samples[participant.name].append([answer["ms"] / answer["characters"]])
    finally:
        for participant in started:
            participant.stop()
    rows, data = [], {}
    for name, part in samples.items():
        title, goal = SAMPLED[name][:2] if name in SAMPLED else ("PyTorch, as makeMoE", "-")
        data[name] = ratios.summary(part)
        ratio = "-"
        if "plain" in samples and name != "plain":
            data[name]["over_plain"] = ratios.ratio_of_rounds(part, samples["plain"])
            ratio = times(data[name]["over_plain"])
        rows.append([title, table.number(data[name]["median_ms"]), table.number(data[name]["min_ms"]), ratio, goal])
    text = table.markdown(["sampling, one character", "median ms", "min ms", "of makeMoE's time", "goal"], rows)
    return {"rows": data, "left_out": failed}, text


def cold(builder, names, rounds):
    """From a command to its end or to the end of the first training step."""
    samples = {"compile": []}
    failed = {}
    cold_names = [name for name in names if name not in ("limits", "compiled")]
    for turn in range(rounds):
        note(f"measuring: cold start {turn + 1} of {rounds}")
        samples["compile"].append(seconds([builder.moec(), "compile", places.SPEC, "--json"]))
        started, failed = start_all(builder, cold_names)
        for participant in started:
            samples.setdefault(participant.name, []).append(participant.ready_s)
            participant.stop()
    goals = {"compile": "<= 0.05", "moec": "<= 3"}
    titles = {"compile": "moec compile"} | {name: f"{ROWS[name].title}, first step" for name in ROWS}
    rows = [
        [titles[name], table.number(median(values)), table.number(min(values)), goals.get(name, "-")]
        for name, values in samples.items()
    ]
    text = table.markdown(["from the command", "median s", "min s", "goal"], rows)
    data = {name: {"median_s": median(values), "min_s": min(values)} for name, values in samples.items()}
    return {"rows": data, "left_out": failed}, text


def kernels(builder):
    """Where the time of moec's step goes, as `moec bench` tells it."""
    note("measuring: kernels")
    data = builder.bench(places.SPEC, 30)
    rows = []
    for line in data["profile"]["phases"] + data["profile"]["kernels"]:
        if line["kernel"] and line["share"] < 0.005:
            continue
        rows.append([
            f"{line['phase']}: {line['kernel'] or 'all'}",
            str(line["steps"]),
            table.number(line["ms"]),
            f"{100 * line['share']:.1f} %",
            table.number(line["gflops_per_s"] or None),
            table.number(line["gbytes_per_s"]),
            "-" if line["of_limit"] is None else f"{100 * line['of_limit']:.0f} %",
        ])  # fmt: skip
    text = table.markdown(["kernel", "launches", "ms", "share", "GFLOP/s", "GB/s", "of its limit"], rows)
    step = data["step"]
    text += f"\n\n`moec bench`: {step['median_ms']:.0f} ms in the median, {step['best_ms']:.0f} ms at best"
    if data["limits"]:
        text += f"; {step['over_limit']:.2f} times the limit"
    return data, text + ". Kernels below 0.5 % of the step are left out; above 100 %, data comes from caches."


def growth(builder, rounds):
    """Every configuration in turns with the first one: its time beside its work and its memory."""

    def work(plan):
        operations = plan["tokens_per_step"] * (plan["forward_flops_per_token"] + plan["backward_flops_per_token"])
        return operations, ratios.optimizer_traffic(plan["parameters"])

    def without_optimizer(overrides=()):
        phases = builder.bench(places.GROWTH_SPEC, 5, overrides)["profile"]["phases"]
        return sum(line["share"] for line in phases if line["phase"] != "optimizer")

    base_work, base_share = work(builder.plan(places.GROWTH_SPEC)), without_optimizer()
    rows, data, failed = [], {}, {}
    always = [builder.model("growth-base", places.GROWTH_SPEC), builder.participant("limits")]
    try:
        for participant in always:
            participant.start()
        always[0].steps(WARM_UP)
        for title, overrides in GROWTH:
            note(f"measuring: growth, {title}")
            grown = builder.model("growth", places.GROWTH_SPEC, overrides)
            try:
                plan = builder.plan(places.GROWTH_SPEC, overrides)
                share = without_optimizer(overrides)
                grown.start()
                try:
                    grown.steps(2)
                    answers = interleave([always[0], grown, always[1]], rounds, 2)
                    peak = grown.peak_mib()
                finally:
                    grown.stop()
            except Failed as reason:
                failed[title] = str(reason)
                rows.append([title, *["-"] * 8])
                continue
            limits = [answer for part in answers.pop("limits") for answer in part]
            machine = [median(answer[unit] for answer in limits) for unit in ("gflops", "gbs")]
            samples = {name: milliseconds(part) for name, part in answers.items()}
            time_ratio = ratios.ratio_of_rounds(samples["growth"], samples["growth-base"])
            entry = ratios.summary(samples["growth"]) | {
                "parameters": plan["parameters"],
                "gflop": work(plan)[0] / 1e9,
                "work_ratio": ratios.limit_ms(*work(plan), *machine) / ratios.limit_ms(*base_work, *machine),
                "time_ratio": time_ratio,
                "flop_ratio": work(plan)[0] / base_work[0],
                "time_ratio_without_optimizer": time_ratio[0] * share / base_share,
                "planned_mib": plan["memory"]["total_bytes"] / 2**20,
                "peak_mib": peak,
            }
            data[title] = entry
            rows.append([
                title,
                table.number(entry["parameters"] / 1e6),
                table.number(entry["gflop"]),
                table.number(entry["work_ratio"]),
                times(entry["time_ratio"]),
                table.number(entry["flop_ratio"]),
                table.number(entry["time_ratio_without_optimizer"]),
                table.number(entry["planned_mib"]),
                table.number(entry["peak_mib"]),
            ])  # fmt: skip
    finally:
        for participant in always:
            participant.stop()
    headings = ["growth", "M parameters", "GFLOP", "work", "time", "FLOP", "time but AdamW", "planned MiB", "peak MiB"]
    text = table.markdown(headings, rows)
    text += "\n\nWork, time and operations are multiples of those of 8 experts, top-2, context 32, 8 layers, width 128."
    text += "".join(f"\nLeft out: {title}: {reason}." for title, reason in failed.items())
    return {"rows": data, "left_out": failed}, text

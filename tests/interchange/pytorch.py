"""Holds `moec export --to pytorch` against moec itself: every spec is trained a little, written, and run by PyTorch.

usage: pytorch.py MOEC LOGITS
"""

import importlib.util, json, os, pathlib, shutil, subprocess, sys, tempfile

import torch

MOEC, LOGITS = sys.argv[1:3]
ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = pathlib.Path(tempfile.mkdtemp(prefix="moec-interchange-"))
# Awkward sizes: no two extents of a model are equal, and the last batch of an evaluation is not full.
SMALL = ["width=24", "context=10", "train.batch=3", "train.evaluate.batches=1"]
# In float64, so that what is left is the rounding of PyTorch.
DEVICE = ["--device", "interpreter"]
STEPS = 4

# What no spec has: rotary positions, norms by the mean square, tied scores, choices that are dropped in several orders.
MORE = """
model more {
  let width = 24
  context 10
  vocab characters
  embed(width: width, positions: rotary)
  repeat 2 {
    residual { rms_norm  attention(heads: 4, bias: true) }
    residual {
      rms_norm
      moe(
        experts: 3 * mlp(hidden: 20, activation: swiglu),
        shared: 2 * mlp(hidden: 7),
        route: softmax_top_k(k: 2),
        balance: [switch(weight: 0.01)],
        capacity: capacity(factor: 0.9, order: ORDER, renormalise: after),
        allow: lookahead,
      )
    }
  }
  rms_norm
  unembed(tied: true)
}
train { batch 3  evaluate(every: 50, batches: 1) }
"""

torch.set_num_threads(1)

# A router of many functions of the language, which compares tokens, counts them, and looks at the one before.
ROUTER = """
router everything(k: int) {
  let scores = linear(x, experts, bias: true)
  let earlier = cumsum(tanh(scores), over: positions) / (float(position) + 1.0)
  let odd = max(float(previous_ids), 0.0) % 2 < 1
  let shift = log_sum_exp(scores, over: tokens) / tokens + mean(relu(scores), over: tokens)
  let width_of_row = max(scores, over: experts) - min(scores, over: experts)
  let mixed = scores + earlier * odd + 0.1 * erf(scores) - normal_cdf(shift) + sqrt(abs(width_of_row) + 1e-3)
  let best, chosen = top_k(mixed, k)
  let spread = scatter(softmax(best), chosen)
  aux spread(weight: 0.1) = mean(sign(scores) * log(exp(scores) + 1.0))
  return dense_gates(spread * (1.0 + count(chosen) / tokens), logits: scores)
}
"""

# Names that Python, PyTorch or the file itself has in use, a parameter without axes, and a repetition without a layer.
AWKWARD = """
router awkward(k: int) {
  let class = linear(x, experts)
  let most = linear(x, experts, name: "lambda")
  let type = linear(x, experts, name: "max")
  let half = linear(x, 7, name: "forward")
  let training_scores = linear(half, experts, name: "3d")
  let losses = parameter(experts, start: 0.25)
  let scale = parameter(start: 0.5)
  let max = tanh(class + most) * scale
  let sum = max * max + losses
  let top, chosen = top_k(sum + type + max + training_scores, k)
  return token_choice(experts: chosen, weights: softmax(top))
}

model awkward {
  let width = 24
  context 10
  vocab characters
  embed(width: width)
  repeat 12 as i {
    if i != 1 { residual { layer_norm  moe(experts: 3 * mlp(hidden: 20), route: awkward(k: 2)) } }
  }
  layer_norm
  unembed
}
train { batch 3  evaluate(every: 50, batches: 1) }
"""


def moec(*arguments, program=MOEC):
    command = [str(part) for part in [program, *arguments]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def overrides(spec, more):
    small = ["depth=2"] if "let depth" in spec.read_text() else []
    return [part for value in [*SMALL, *small, *more] for part in ("-s", value)]


def module(folder):
    found = importlib.util.spec_from_file_location(f"model_{folder.name}", folder / "model.py")
    loaded = importlib.util.module_from_spec(found)
    found.loader.exec_module(loaded)
    return loaded


def check(name, spec, text, more=(), program=MOEC):
    """Trains and writes a model; the largest differences of losses and logits."""
    run, folder = WORK / f"{name}.run", WORK / name
    data = ["--data", ROOT / "LICENSE-APACHE"]
    moec("train", spec, *data, "--steps", STEPS, "--out", run, *overrides(spec, more), *DEVICE, "--quiet", program=program)
    moec("export", run, "--to", "pytorch", folder, program=program)
    code = module(folder)
    model, characters = code.Model.load(folder), code.vocabulary(folder)
    tokens = code.encode(text.read_text(), characters)

    loss = code.evaluate(model, tokens)
    expected = json.loads(moec("eval", run, "--data", text, "--split", "all", "--json", *DEVICE, program=program))
    loss_difference = abs(loss - expected["loss_nats"])
    # What is rounded to 8 bits may be rounded to the next number where the last bit of a sum differs.
    most = 1e-2 if hasattr(code, "ROUNDED") else 1e-5
    assert loss_difference < most, f"{name}: loss {loss}, moec {expected['loss_nats']}"

    logits_difference = 0.0
    if program == MOEC:
        with torch.no_grad():
            window = tokens[None, : code.CONTEXT]
            logits = code.unrounded(model, window)[0] if hasattr(code, "ROUNDED") else model(window)[0]
        rows = moec(run, text, program=LOGITS).splitlines()
        expected = torch.tensor([json.loads(row) for row in rows], dtype=torch.double)
        logits_difference = (logits[0].double() - expected).abs().max().item()
        assert logits_difference < 1e-4, f"{name}: logits differ by {logits_difference}"

    prompt, length = "the ", 16
    written = code.generate(model, code.encode(prompt, characters), length)
    written = "".join(characters[token] for token in written)
    # Kept keys and values of turned or unplaced queries go on past a window otherwise than whole windows do.
    arguments = ["--temperature", 0, "--decode", "windowed", "--prompt", prompt, "--length", length]
    expected = moec("sample", run, *arguments, *DEVICE, program=program).removesuffix("\n")
    assert written == expected, f"{name}: wrote {written!r}, moec {expected!r}"

    learns(name, code, model, tokens)
    return loss_difference, logits_difference


def learns(name, code, model, tokens):
    """A model goes on learning: the loss of a batch falls, and every parameter that it depends on has a gradient."""
    T = code.CONTEXT
    x, y = tokens[: 4 * T].view(4, T), tokens[1 : 4 * T + 1].view(4, T)
    before = model(x, y)[1].item()
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(10):
        optimizer.zero_grad()
        model(x, y)[1].backward()
        optimizer.step()
    model.eval()
    after = model(x, y)[1].item()
    assert after < before - 0.05, f"{name}: the loss went from {before} to {after}"


def from_the_command_line(folder, run, text):
    """The file as a program says the same."""

    def python(*arguments):
        command = [sys.executable, folder / "model.py", *arguments]
        return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout

    loss = json.loads(moec("eval", run, "--data", text, "--split", "all", "--json", *DEVICE))["loss_nats"]
    assert abs(float(python("--data", text)) - loss) < 1e-5
    arguments = ["--length", "30", "--temperature", "0"]
    assert python("--prompt", "", *arguments) == moec("sample", run, *arguments, *DEVICE)


def windows(text):
    """Four full batches of windows, two more, and what is left over. In a batch each window begins with another character:
    of equal rows a rounding would decide which comes first where experts drop some."""
    chosen = []
    for start in range(0, len(text) - 10, 10):
        window = text[start : start + 10]
        if len(chosen) < 14 and all(window[0] != other[0] for other in chosen[len(chosen) // 3 * 3 :]):
            chosen.append(window)
    return "".join(chosen) + "the end"


def main():
    text = WORK / "text.txt"
    text.write_text(windows(" ".join((ROOT / "LICENSE-APACHE").read_text().split())))
    specs = []
    for folder in ["specs", "specs/routers", "specs/published", "examples/routers"]:
        for original in sorted((ROOT / folder).glob("*.moe")):
            specs.append(WORK / original.name)
            # Two blocks tell as much as eight; and what is narrow has fewer heads, what is short hardly a warm-up and weights
            # that are not so small that a rounding decides who is chosen.
            small = original.read_text().replace("repeat 8", "repeat 2")
            if folder == "specs/published":
                small = small.replace("heads: 8", "heads: 4").replace("warmup: 50", "warmup: 1")
                small = small.replace("normal(std: 0.02)", "kaiming_normal")
            specs[-1].write_text(small)
    print(f"{'spec':24} {'loss':>9} {'logits':>9}")
    cases = [(spec.stem, spec, ()) for spec in specs]
    cases.append(("top2_bf16", WORK / "top2.moe", ["train.precision=bf16"]))
    for order in ["token", "choice", "probability", "gate", "random"]:
        spec = WORK / f"dropped_by_{order}.moe"
        spec.write_text(MORE.replace("ORDER", order))
        cases.append((spec.stem, spec, ()))
    spec = WORK / "everything.moe"
    spec.write_text(ROUTER + MORE.replace("softmax_top_k", "everything").replace("ORDER", "token"))
    cases.append((spec.stem, spec, ()))
    spec = WORK / "awkward.moe"
    spec.write_text(AWKWARD)
    cases.append((spec.stem, spec, ()))
    cases.append(("awkward_bf16", spec, ["train.precision=bf16"]))
    for name, spec, more in cases:
        loss, logits = check(name, spec, text, more)
        print(f"{name:24} {loss:9.1e} {logits:9.1e}")
    # A router from outside, where the program that has it is built.
    plugin = ROOT / "target/debug/moec-cosine"
    if plugin.exists():
        loss, _ = check("plugin", ROOT / "examples/router-plugin/cosine.moe", text, program=plugin)
        print(f"{'plugin':24} {loss:9.1e}")
    else:
        print("plugin                   not built")
    from_the_command_line(WORK / "tiny", WORK / "tiny.run", text)
    print(f"{len(cases)} models are the same in PyTorch")
    shutil.rmtree(WORK)


main()

"""What `moec export --to makemoe` writes, computed as makeMoE does: the losses are those of `moec eval`.

makeMoE's model is written down here once more, from what it computes: learned positions, attention whose scores are divided by
the root of the model's width, a noisy top-k router, relu experts. Its router draws noise in evaluation too, and a model of moec
does so only where its spec says it; the noise is drawn here as 0, so that there is one number to compare.

usage: makemoe.py MOEC
"""
import json, math, subprocess, sys, tempfile
from pathlib import Path
from string import Template

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

MOEC = sys.argv[1]
TEXT = "".join(chr(97 + (i * i + i // 7) % 11) + (" " if i % 5 == 0 else "") for i in range(3000))

SPEC = Template("""model m {
  context 9
  vocab characters
  embed(width: 12$embed)
  repeat 2 {
    residual { layer_norm  attention(heads: $heads$attention, dropout: 0.1) }
    residual { layer_norm  moe(experts: 4 * mlp(hidden: $hidden$mlp, dropout: 0.1), route: $route, balance: [importance]) }
  }
  layer_norm
  unembed$unembed
}
train { batch 5  steps 12  optimizer adamw(lr: 4e-3)  init normal(std: 0.4)  evaluate(every: 0, batches: 1) }
""")

# Title, and what stands in the spec for $embed, $attention, $hidden, $mlp, $route and $unembed.
CASES = [
    ("makeMoE's own", "", ", scale: width", "48", "", "noisy_top_k(k: 2, epsilon: 0)", ""),
    ("scale: head", "", "", "48", "", "noisy_top_k(k: 2)", ""),
    ("one head", "", "", "48", "", "noisy_top_k(k: 3)", ""),
    ("softmax_top_k", "", ", scale: width", "48", "", "softmax_top_k(k: 2)", ""),
    ("no biases", "", ", scale: width, output_bias: false", "48", ", bias: false", "noisy_top_k(k: 2, bias: false)", "(bias: false)"),
    ("tied, no positions", ", positions: none", "", "19", "", "softmax_top_k(k: 1)", "(tied: true)"),
    ("all of it", ", positions: none", ", output_bias: false", "7", ", bias: false", "softmax_top_k(k: 3, bias: false)", "(tied: true, bias: false)"),
]


class Head(nn.Module):
    def __init__(self, width, size):
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(width, size, bias=False) for _ in range(3))

    def forward(self, x):
        scores = self.query(x) @ self.key(x).transpose(-2, -1) * x.shape[-1] ** -0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(later, -math.inf).softmax(-1) @ self.value(x)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = nn.ModuleList(Head(width, width // heads) for _ in range(heads))
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        return self.proj(torch.cat([head(x) for head in self.heads], dim=-1))


class Router(nn.Module):
    def __init__(self, width, experts, chosen):
        super().__init__()
        self.topkroute_linear, self.noise_linear = nn.Linear(width, experts), nn.Linear(width, experts)
        self.chosen = chosen

    def forward(self, x):
        self.deviation = F.softplus(self.noise_linear(x))
        scores = self.topkroute_linear(x) + torch.zeros_like(self.deviation) * self.deviation
        best, chosen = scores.topk(self.chosen, dim=-1)
        return torch.full_like(scores, -math.inf).scatter(-1, chosen, best).softmax(-1)


class Expert(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))


class Mixture(nn.Module):
    def __init__(self, width, hidden, experts, chosen):
        super().__init__()
        self.router = Router(width, experts, chosen)
        self.experts = nn.ModuleList(Expert(width, hidden) for _ in range(experts))

    def forward(self, x):
        weights = self.router(x)
        return sum(weights[..., e : e + 1] * expert.net(x) for e, expert in enumerate(self.experts))


class Block(nn.Module):
    def __init__(self, width, hidden, heads, experts, chosen):
        super().__init__()
        self.sa, self.smoe = Attention(width, heads), Mixture(width, hidden, experts, chosen)
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):
        x = x + self.sa(self.ln1(x))
        return x + self.smoe(self.ln2(x))


class MakeMoE(nn.Module):
    def __init__(self, vocab, context, width, hidden, heads, layers, experts, chosen):
        super().__init__()
        self.token_embedding_table = nn.Embedding(vocab, width)
        self.position_embedding_table = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, hidden, heads, experts, chosen) for _ in range(layers)))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, vocab)

    def forward(self, tokens):
        x = self.token_embedding_table(tokens) + self.position_embedding_table(torch.arange(tokens.shape[1]))
        return self.lm_head(self.ln_f(self.blocks(x)))


def moec(*arguments):
    done = subprocess.run([MOEC, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, f"moec {arguments}\n{done.stderr}"
    return done


def evaluated(run):
    return json.loads(moec("eval", run, "--split", "val", "--json").stdout)


@torch.no_grad()
def loss(model, context):
    """The mean over the same windows of the same tenth of the text."""
    ids = {character: i for i, character in enumerate(sorted(set(TEXT)))}
    held_out = torch.tensor([ids[character] for character in TEXT[int(len(TEXT) * 0.9) :]])
    windows = (len(held_out) - 1) // context
    tokens = held_out[: windows * context].view(windows, context)
    targets = held_out[1 : windows * context + 1].view(windows, context)
    return F.cross_entropy(model.double()(tokens).flatten(0, 1), targets.flatten()).item()


def check(folder):
    data = folder / "text.txt"
    data.write_text(TEXT)
    print(f"{'makeMoE':24} {'moec eval':>12} {'makeMoE':>12} {'difference':>12}")
    for number, (title, embed, attention, hidden, mlp, route, unembed) in enumerate(CASES):
        heads = 1 if title == "one head" else 3
        parts = dict(embed=embed, heads=heads, attention=attention, hidden=hidden, mlp=mlp, route=route, unembed=unembed)
        file, run, exported = folder / f"{number}.moe", folder / f"run{number}", folder / f"{number}.safetensors"
        file.write_text(SPEC.substitute(parts))
        moec("train", file, "--data", data, "--out", run, "--quiet", "--sample", "0")
        moec("export", run, "--to", "makemoe", "-o", exported)
        chosen = int(route.split("k: ")[1][0])
        model = MakeMoE(len(set(TEXT)), 9, 12, int(hidden), heads, 2, 4, chosen)
        model.load_state_dict(load_file(exported))
        ours, theirs = evaluated(run)["loss_nats"], loss(model, 9)
        print(f"{title:24} {ours:12.7f} {theirs:12.7f} {abs(ours - theirs):12.1e}")
        assert abs(ours - theirs) < 1e-5, title
        if "softmax" in route:
            assert max(block.smoe.router.deviation.max().item() for block in model.blocks) == 0, "there is noise"
        if number == 0:
            # And back: the state dictionary of such a model, of other weights, is the same model here.
            torch.manual_seed(5)
            for parameter in model.parameters():
                nn.init.normal_(parameter, std=0.4)
            stored, back = folder / "stored.safetensors", folder / "back"
            save_file({name: tensor.float().contiguous() for name, tensor in model.state_dict().items()}, stored)
            model.load_state_dict(load_file(stored))
            moec("import", stored, "--spec", file, "--data", data, "--out", back)
            difference = abs(evaluated(back)["loss_nats"] - loss(model, 9))
            print(f"{'imported':24} {evaluated(back)['loss_nats']:12.7f} {loss(model, 9):12.7f} {difference:12.1e}")
            assert difference < 1e-5


with tempfile.TemporaryDirectory() as folder:
    check(Path(folder))

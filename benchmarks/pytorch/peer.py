"""PyTorch as a peer that moec is measured against.

    python peer.py plain|fast|compiled TEXT [DEVICE]
    python peer.py check

A peer trains one step, prints `{"ready": true, "parameters": N}`, and then answers each line of standard input:
`go N` with N training steps, one line `{"step": I, "ms": T, "loss": L}` each, and `sample N` with one line
`{"characters": N, "ms": T}`. DEVICE is PyTorch's name of where to compute, `cpu` if absent. `check` compares the logits
of both models on the same weights.
"""

import json
import sys
import time

import torch

import models

BATCH = 16


def say(**fields):
    print(json.dumps(fields), flush=True)


class Peer:
    """A model, its optimiser and its text."""

    def __init__(self, kind, path, device):
        self.device = torch.device(device)
        text = open(path, encoding="utf-8").read()
        numbers = {character: i for i, character in enumerate(sorted(set(text)))}
        # The text stays with the CPU: a batch goes to a graphics device as a whole.
        self.text = torch.tensor([numbers[character] for character in text])
        self.model = (models.plain if kind == "plain" else models.fast)(len(numbers)).to(self.device)
        self.loss = self.model.loss
        if kind == "compiled":
            # Or the lengths of the experts' segments break the graph in every layer.
            torch._dynamo.config.capture_scalar_outputs = True
            self.loss = torch.compile(self.model.loss)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=kind != "plain")
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        if len(numbers) == 65:
            assert self.parameters == 8_996_545, self.parameters

    def batch(self):
        """Tokens and the ones that follow them, each [B, T]."""
        starts = torch.randint(len(self.text) - models.CONTEXT, (BATCH,))
        tokens = torch.stack([self.text[i : i + models.CONTEXT] for i in starts])
        targets = torch.stack([self.text[i + 1 : i + models.CONTEXT + 1] for i in starts])
        return tokens.to(self.device), targets.to(self.device)

    def step(self):
        """One training step; the loss."""
        loss = self.loss(*self.batch())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def sample(self, count):
        """Writes `count` characters after an empty line."""
        self.model.eval()
        self.model.generate(torch.zeros((1, 1), dtype=torch.long, device=self.device), count)
        self.model.train()


def serve(kind, path, device="cpu"):
    """Trains and samples as standard input asks."""
    peer = Peer(kind, path, device)
    peer.step()
    say(ready=True, parameters=peer.parameters)
    step = 1
    for line in sys.stdin:
        verb, count = line.split()
        if verb == "sample":
            begun = time.perf_counter()
            peer.sample(int(count))
            say(characters=int(count), ms=(time.perf_counter() - begun) * 1e3)
            continue
        for _ in range(int(count)):
            begun = time.perf_counter()
            loss = peer.step()
            step += 1
            say(step=step, ms=(time.perf_counter() - begun) * 1e3, loss=loss)


def check():
    """Both models give the same logits for the same weights; says the largest difference."""
    tokens = torch.randint(65, (BATCH, models.CONTEXT))
    plain, fast = models.plain(65).eval(), models.fast(65).eval()
    fast.load_state_dict(models.fast_weights(plain.state_dict()))
    with torch.no_grad():
        difference = (plain(tokens, noisy=False) - fast(tokens, noisy=False)).abs().max().item()
    say(check="plain and fast logits", largest_difference=difference)
    assert difference < 1e-3, difference


def main():
    torch.manual_seed(1)
    if sys.argv[1:] == ["check"]:
        check()
    elif len(sys.argv) in (3, 4) and sys.argv[1] in ("plain", "fast", "compiled"):
        serve(*sys.argv[1:])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()

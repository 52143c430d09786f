"""makeMoE's model twice in PyTorch: as it is usually written, and written for speed.

Both are `specs/noisy_top2.moe`: eight blocks of causal attention and noisy top-2 of eight experts, 8,996,545 parameters
at a vocabulary of 65. Letters: B batch, T time, C width, H heads, D width of a head, N = B*T tokens, E experts,
K experts per token, V vocabulary.
"""

import torch
from torch import nn
from torch.nn import functional as F

CONTEXT = 32
WIDTH = 128
HEADS = 8
BLOCKS = 8
EXPERTS = 8
CHOSEN = 2
DROPOUT = 0.1


def kaiming_linear(module):
    """makeMoE's initialisation: the weights of linear maps are Kaiming normal."""
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight)


class Expert(nn.Module):
    """A feed-forward layer."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return self.down(F.relu(self.up(x)))


class NoisyLogits(nn.Module):
    """The router's logits, with noise of a learned deviation when training."""

    def __init__(self):
        super().__init__()
        self.route = nn.Linear(WIDTH, EXPERTS)
        self.noise = nn.Linear(WIDTH, EXPERTS)

    def forward(self, x, noisy):
        logits = self.route(x)
        if not noisy:
            return logits
        return logits + torch.randn_like(logits) * F.softplus(self.noise(x))


# ---- as it is usually written ----


class PlainHead(nn.Module):
    """One head of attention, by itself."""

    def __init__(self):
        super().__init__()
        width = WIDTH // HEADS
        self.key = nn.Linear(WIDTH, width, bias=False)
        self.query = nn.Linear(WIDTH, width, bias=False)
        self.value = nn.Linear(WIDTH, width, bias=False)
        self.register_buffer("past", torch.tril(torch.ones(CONTEXT, CONTEXT)), persistent=False)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x):
        time = x.shape[1]
        # Divided by the root of the width, not of the head's width: makeMoE does so.
        scores = self.query(x) @ self.key(x).transpose(-2, -1) * WIDTH**-0.5
        scores = scores.masked_fill(self.past[:time, :time] == 0, float("-inf"))
        return self.dropout(F.softmax(scores, dim=-1)) @ self.value(x)


class PlainAttention(nn.Module):
    """The heads one after the other, concatenated and projected."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(PlainHead() for _ in range(HEADS))
        self.project = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x):
        return self.dropout(self.project(torch.cat([head(x) for head in self.heads], dim=-1)))


class PlainMixture(nn.Module):
    """A loop over the experts; a mask says which tokens an expert works on."""

    def __init__(self):
        super().__init__()
        self.router = NoisyLogits()
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x, noisy):
        logits = self.router(x, noisy)
        top, chosen = logits.topk(CHOSEN, dim=-1)
        sparse = torch.full_like(logits, float("-inf")).scatter(-1, chosen, top)
        gates = F.softmax(sparse, dim=-1).view(-1, EXPERTS)
        flat = x.view(-1, WIDTH)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            mask = (chosen == i).any(dim=-1)
            flat_mask = mask.view(-1)
            if flat_mask.any():
                y = self.dropout(expert(flat[flat_mask]))
                out[mask] += y * gates[flat_mask, i].unsqueeze(1)
        return out


# ---- written for speed ----


class FastAttention(nn.Module):
    """One product for query, key and value, and PyTorch's fused attention over all heads."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x):
        batch, time, _ = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        dropout = DROPOUT if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=WIDTH**-0.5)
        return self.dropout(self.project(y.transpose(1, 2).reshape(batch, time, WIDTH)))


class FastMixture(nn.Module):
    """Tokens sorted by expert: one gather, an expert per segment, one weighted scatter."""

    def __init__(self):
        super().__init__()
        self.router = NoisyLogits()
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x, noisy):
        flat = x.view(-1, WIDTH)
        top, chosen = self.router(flat, noisy).topk(CHOSEN, dim=-1)
        gates = F.softmax(top, dim=-1).view(-1)
        order = torch.argsort(chosen.view(-1), stable=True)
        counts = torch.bincount(chosen.view(-1), minlength=EXPERTS)
        rows = order // CHOSEN
        y = self.segments(flat.index_select(0, rows), counts)
        y = self.dropout(y) * gates.index_select(0, order).unsqueeze(1)
        return torch.zeros_like(flat).index_add(0, rows, y).view_as(x)

    def segments(self, sorted_tokens, counts):
        """Every expert on its segment of the tokens sorted by expert."""
        lengths = counts.tolist()
        for length in lengths:
            torch._check(length >= 0)
        parts = sorted_tokens.split(lengths)
        return torch.cat([expert(part) for expert, part in zip(self.experts, parts)])


# ---- what both share ----


class Block(nn.Module):
    """Attention and a mixture, each normalised before and added to what comes in."""

    def __init__(self, attention, mixture):
        super().__init__()
        self.norm_attention = nn.LayerNorm(WIDTH)
        self.attention = attention()
        self.norm_mixture = nn.LayerNorm(WIDTH)
        self.mixture = mixture()

    def forward(self, x, noisy):
        x = x + self.attention(self.norm_attention(x))
        return x + self.mixture(self.norm_mixture(x), noisy)


class Model(nn.Module):
    """The language model: tokens [B, T] to logits [B, T, V]."""

    def __init__(self, vocabulary, attention, mixture):
        super().__init__()
        self.characters = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block(attention, mixture) for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.unembed = nn.Linear(WIDTH, vocabulary)
        self.apply(kaiming_linear)

    def forward(self, tokens, noisy=True):
        x = self.characters(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x, noisy)
        return self.unembed(self.norm(x))

    def loss(self, tokens, targets):
        """Mean cross-entropy of the characters that follow."""
        logits = self(tokens)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))

    @torch.no_grad()
    def generate(self, tokens, count):
        """Appends `count` characters to tokens [B, T], the whole window computed anew for each, as makeMoE does."""
        for _ in range(count):
            logits = self(tokens[:, -CONTEXT:])[:, -1]
            drawn = torch.multinomial(F.softmax(logits, dim=-1), num_samples=1)
            tokens = torch.cat([tokens, drawn], dim=1)
        return tokens


def plain(vocabulary):
    """The model as it is usually written."""
    return Model(vocabulary, PlainAttention, PlainMixture)


def fast(vocabulary):
    """The model written for speed."""
    return Model(vocabulary, FastAttention, FastMixture)


def fast_weights(weights):
    """The weights of `plain`, renamed and stacked for `fast`."""
    renamed = {name: tensor for name, tensor in weights.items() if ".attention.heads." not in name}
    for block in range(BLOCKS):
        parts = [
            weights[f"blocks.{block}.attention.heads.{head}.{part}.weight"]
            for part in ("query", "key", "value")
            for head in range(HEADS)
        ]
        renamed[f"blocks.{block}.attention.qkv.weight"] = torch.cat(parts)
    return renamed

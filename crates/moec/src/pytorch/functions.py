class Tensors(nn.Module):
    """Tensors and modules under one name, such as the weight of `slots.weight`."""

    def __init__(self, **members):
        super().__init__()
        for name, member in members.items():
            if isinstance(member, (nn.Parameter, nn.Module)):
                setattr(self, name, member)
            else:
                self.register_buffer(name, member)


class RoundedOperand(torch.autograd.Function):
    """Rounds to bfloat16; the gradient passes as it is."""

    @staticmethod
    def forward(ctx, x):
        return x.bfloat16().float()

    @staticmethod
    def backward(ctx, dx):
        return dx


class RoundedGradient(torch.autograd.Function):
    """The same values; the gradient is rounded to bfloat16."""

    @staticmethod
    def forward(ctx, y):
        return y.view_as(y)

    @staticmethod
    def backward(ctx, dy):
        return dy.bfloat16().float()


class RoundedLinear(nn.Linear):
    """A linear map whose operands are rounded to bfloat16."""

    def forward(self, x):
        return rounded_linear(x, self.weight, self.bias)


class ExpertLinear(nn.Module):
    """A linear map for each expert, of rows that are sorted by expert."""

    def __init__(self, experts, inputs, outputs, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, outputs, inputs) * inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(experts, outputs)) if bias else None

    def forward(self, rows, offsets):
        return grouped_linear(rows, self.weight, offsets, self.bias)


class RoundedExpertLinear(ExpertLinear):
    """As `ExpertLinear`, of operands that are rounded to bfloat16."""

    def forward(self, rows, offsets):
        return grouped_linear(rows, self.weight, offsets, self.bias, linear=rounded_linear)


class LayerNorm(nn.Module):
    """Layer normalisation (arXiv 1607.06450)."""

    def __init__(self, width, epsilon):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.epsilon = epsilon

    def forward(self, x):
        return F.layer_norm(x, self.gain.shape, self.gain, self.shift, self.epsilon)


class RmsNorm(nn.Module):
    """Normalisation by the root of the mean square (arXiv 1910.07467)."""

    def __init__(self, width, epsilon):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x):
        return F.rms_norm(x, self.gain.shape, self.gain, self.epsilon)


def bf16(x):
    """Rounds the operand of a product to bfloat16; sums are float32, and so are the gradients of operands."""
    return RoundedOperand.apply(x) if ROUNDED else x


def bf16_gradient(y):
    """A product whose gradient is rounded where it is an operand of the products that are its operands' gradients."""
    return RoundedGradient.apply(y) if ROUNDED else y


def rounded_linear(x, weight, bias=None):
    """A linear map of operands that are rounded to bfloat16; the gradient of the bias is not rounded."""
    y = bf16_gradient(F.linear(bf16(x), bf16(weight)))
    return y if bias is None else y + bias


def attention(qkv, heads, T, scale, dropout=0.0):
    """Causal self-attention of qkv [N, 3C]: the queries of all heads, then the keys, then the values."""
    N, width = qkv.shape
    q, k, v = qkv.view(N // T, T, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scale)
    return y.transpose(1, 2).reshape(N, width // 3)


def masked_attention(qkv, heads, T, scale, window=None, sinks=None, dropout=0.0):
    """Attention whose queries see `window` positions, their own among them, and whose heads may have sinks: scores without a value."""
    N, width = qkv.shape
    q, k, v = qkv.view(N // T, T, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    position = torch.arange(T, device=qkv.device)
    before = position[:, None] - position
    hidden = (before < 0) | (before >= (window or T))
    scores = (q @ k.transpose(-2, -1) * scale).masked_fill(hidden, -math.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(N // T, heads, T, 1)], dim=-1)
    y = F.dropout(scores.softmax(-1)[..., :T], dropout) @ v
    return y.transpose(1, 2).reshape(N, width // 3)


def rotary(qkv, heads, T, base, positions=None):
    """Turns queries and keys by their position in the sequence (arXiv 2104.09864); values pass unchanged."""
    N, width = qkv.shape
    half = width // (6 * heads)
    if positions is None:
        positions = torch.arange(N, device=qkv.device) % T
    angles = positions[:, None].double() * base ** (-torch.arange(half, device=qkv.device).double() / half)
    cos, sin = (f(angles).float()[:, None, None] for f in (torch.cos, torch.sin))
    turned, values = qkv.split([width // 3 * 2, width // 3], dim=-1)
    a, b = turned.view(N, 2, heads, 2 * half).chunk(2, dim=-1)
    turned = torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    return torch.cat([turned.reshape(N, -1), values], dim=-1)


def top_k(x, k, skip=0):
    """The k largest of each row with their columns, without the first `skip`; ties go to the lower column."""
    # The order of torch.topk among equals is not defined.
    columns = x.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    columns = columns.argsort(dim=-1, descending=True, stable=True)[..., skip:k]
    return x.gather(-1, columns), columns


def gather_last(x, columns):
    """The elements of each row in the given columns; 0 where the column is -1."""
    return x.gather(-1, columns.clamp(min=0)).masked_fill(columns < 0, 0.0)


def scatter_last(values, columns, size):
    """A matrix [rows, size] with each value added in its column; -1 is no column."""
    y = values.new_zeros(*values.shape[:-1], size + 1)
    return y.scatter_add(-1, columns.masked_fill(columns < 0, size), values)[..., :size]


def count(indices, size):
    """How often each index occurs, as floats; -1 is not counted."""
    return torch.bincount(indices[indices >= 0], minlength=size)[:size].float()


def to_index(x, size):
    """The whole part where it is at least 0 and below `size`, else (also for NaN) -1."""
    return torch.where((x >= 0) & (x < size), x, -1.0).long()


def lookup(ids, table):
    """table[id]; -1 where the id is not in the table."""
    found = (ids >= 0) & (ids < len(table))
    return table[ids.clamp(0, len(table) - 1)].masked_fill(~found, -1)


def previous(tokens, T):
    """The token before each in its sequence; -1 for the first."""
    return F.pad(tokens.view(-1, T)[:, :-1], (1, 0), value=-1).reshape(-1)


def cumulative_sum(x, axis, exclusive=False, reverse=False):
    """The sum up to each element, or from each on; `exclusive` is without itself."""
    x = x.flip(axis) if reverse else x
    y = x.cumsum(axis)
    if exclusive:
        y = torch.cat([torch.zeros_like(y.narrow(axis, 0, 1)), y.narrow(axis, 0, y.shape[axis] - 1)], axis)
    return y.flip(axis) if reverse else y


def limit_capacity(experts, capacity, order="token", weights=None):
    """Leaves each expert at most `capacity` entries of experts [N, K]; the others become -1.

    First come the first tokens (`token`), the first choices (`choice`), or among equal choices the tokens with the largest
    weight (`probability`).
    """
    N, K = experts.shape
    queue = torch.arange(N * K, device=experts.device).view(N, K)
    if order == "probability":
        queue = queue[weights.amax(dim=1).argsort(descending=True, stable=True)]
    if order != "token":
        queue = queue.t()
    queue = queue.reshape(-1)
    waiting = experts.reshape(-1)[queue]
    kept = torch.full_like(waiting, -1)
    for expert in waiting[waiting >= 0].unique().tolist():
        slots = queue[waiting == expert][:capacity]
        kept[slots] = expert
    return kept.view(N, K)


def balanced_assignment(scores):
    """One expert for each token, equally many tokens for each expert, with the largest sum of scores [N, E].

    An auction: tokens without a place bid for the expert that they gain most by (Bertsekas & Castanon 1989).
    """
    if scores.isnan().any():
        raise ValueError("a score is not a number")
    N, E = scores.shape
    values = scores.detach().double().cpu()
    step = (values.max() - values.min()).item() / 128 or 1.0
    # Each expert has N // E places, and where that is not all, one more, for which bidders without a token bid as well.
    each, more = divmod(N, E)
    places = [each] * E + [1] * E if more else [each] * E
    values = torch.cat([values, values], dim=1) if more else values
    if more:
        outside = torch.full((E - more, 2 * E), -math.inf, dtype=torch.double)
        outside[:, E:] = 0.0
        values = torch.cat([values, outside])
    if each == 0:
        values[:, :E] = -math.inf
    lots = [[(0.0, -1)] * n for n in places]
    prices = torch.zeros(len(lots), dtype=torch.double)
    waiting = list(range(len(values)))[::-1]
    while waiting:
        bidder = waiting.pop()
        gain, lot = torch.sort(values[bidder] - prices, descending=True, stable=True)
        lead = (gain[0] - gain[1]).item() if len(gain) > 1 else 0.0
        lot = lots[lot[0]]
        cheapest = min(range(len(lot)), key=lambda place: lot[place][0])
        offer, loser = lot[cheapest]
        lot[cheapest] = (offer + (lead if math.isfinite(lead) else 0.0) + step, bidder)
        if loser >= 0:
            waiting.append(loser)
        for i, taken in enumerate(lots):
            if taken is lot:
                prices[i] = min(price for price, _ in lot)
    chosen = torch.empty(len(values), dtype=torch.long)
    for i, lot in enumerate(lots):
        for _, bidder in lot:
            chosen[bidder] = i % E
    return chosen[:N, None].to(scores.device)


def sort_by_expert(experts, E, rows):
    """Sorts the slots of experts [N, K] by expert, and those of one expert by token; -1 is no expert.

    Returns `offsets` [E + 1], where the rows of each expert begin and end, `order` [rows], the slot n * K + k of each row
    (-1 for none), and `positions` [N, K], the row of each slot (-1 for none).
    """
    slots = experts.reshape(-1)
    slots = torch.where((slots >= 0) & (slots < E), slots, E)
    order = slots.argsort(stable=True)[:rows]
    offsets = F.pad(torch.bincount(slots, minlength=E + 1)[:E].cumsum(0), (1, 0)).clamp(max=rows)
    kept = order[: offsets[-1]]
    positions = torch.full_like(slots, -1)
    positions[kept] = torch.arange(len(kept), device=slots.device)
    order = F.pad(kept, (0, rows - len(kept)), value=-1)
    return offsets, order, positions.view(experts.shape)


def dispatch(x, order, positions, weights=None):
    """The token of each row that is sent to an expert; rows without one are 0."""
    K = positions.shape[1]
    rows = x[order.clamp(min=0) // K]
    if weights is not None:
        rows = rows * weights.reshape(-1)[order.clamp(min=0), None]
    return rows.masked_fill(order[:, None] < 0, 0.0)


def combine(rows, positions, weights=None):
    """The weighted sum of the rows of each token; what was dropped counts 0."""
    y = rows[positions.clamp(min=0)].masked_fill(positions[..., None] < 0, 0.0)
    if weights is not None:
        y = y * weights[..., None]
    return y.sum(1)


def grouped_linear(rows, weight, offsets, bias=None, linear=F.linear):
    """Each expert's linear map, weight [E, O, I], of the rows between its offsets; rows behind them give 0."""
    ends = offsets.tolist()
    parts = [
        linear(rows[start:end], weight[e], None if bias is None else bias[e])
        for e, (start, end) in enumerate(zip(ends, ends[1:]))
    ]
    return torch.cat([*parts, rows.new_zeros(len(rows) - ends[-1], weight.shape[1])])


def grouped_outer(y, x, offsets):
    """The product of the transposed rows of y and the rows of x between each two offsets, [E, O, I]."""
    ends = offsets.tolist()
    return torch.stack([y[start:end].t() @ x[start:end] for start, end in zip(ends, ends[1:])])


def grouped_sum(x, offsets):
    """The sum of the rows between each two offsets."""
    ends = offsets.tolist()
    return torch.stack([x[start:end].sum(0) for start, end in zip(ends, ends[1:])])

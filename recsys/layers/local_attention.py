"""A transformer for long texts: tokens see their neighbours and a summary token, which sees all."""

from __future__ import annotations

from typing import List, NamedTuple, Tuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.layers.dropout import Dropout


class Blocks(NamedTuple):
    """Sequences cut into N blocks of b tokens, those of a sequence one after another.

    ``owner`` (N,): the sequence of each block, rising. ``valid`` (N, b): which tokens there are.
    ``hidden`` (N, 1 or b, K): 0 where a query may see a key, else minus infinity; keys are those of
    the block before, of its own and of the block after it, then the summary's; with one block a
    sequence, its own and the summary's.
    """

    owner: Tensor
    valid: Tensor
    hidden: Tensor


def in_blocks(owner: Tensor, valid: Tensor, window: int, single: bool) -> Blocks:
    """`Blocks` in which a token sees those at most ``window // 2`` away; ``single``: no sequence
    has a second block, and all tokens are that near."""
    if single:
        return Blocks(owner, valid, _hidden(valid.unsqueeze(1)))
    count, b = valid.size(0), valid.size(1)
    half = window // 2
    same = owner[1:] == owner[:-1]  # (N - 1,)
    empty = torch.zeros_like(valid[:1])
    before = torch.cat([empty, valid[:-1] & same.unsqueeze(1)])[:count]
    after = torch.cat([valid[1:] & same.unsqueeze(1), empty])[:count]
    keys = torch.cat([before, valid, after], 1)  # (N, 3 b)
    at = torch.arange(3 * b, device=valid.device)
    apart = at - b - torch.arange(b, device=valid.device).unsqueeze(1)  # (b, 3 b)
    near = (apart <= half) & (apart >= -half)
    return Blocks(owner, valid, _hidden(keys.unsqueeze(1) & near))


def _hidden(visible: Tensor) -> Tensor:
    # Numbers: with a mask of booleans torch takes 1.3 times as long on a CPU.
    hidden = torch.where(visible, 0.0, -torch.inf)
    return F.pad(hidden, [0, 1])  # everyone sees the summary


class WindowAttention(nn.Module):
    """Every token attends to its neighbours and to the summary of its sequence."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, summary: Tensor, blocks: Blocks) -> Tensor:
        """(N, b, D), (B, D) -> (N, b, D)."""
        count, b, width = x.size(0), x.size(1), x.size(2)
        q, k, v = self.project(x).chunk(3, 2)  # (N, b, D)
        own = F.linear(summary, self.project.weight[width:], self.project.bias[width:])  # (B, 2 D)
        own = own.index_select(0, blocks.owner).unsqueeze(1)  # (N, 1, 2 D)
        if blocks.hidden.size(2) > b + 1:
            k, v = _neighbours(k), _neighbours(v)  # (N, 3 b, D)
        keys = torch.cat([k, own[:, :, :width]], 1)  # (N, K, D)
        values = torch.cat([v, own[:, :, width:]], 1)
        mixed = F.scaled_dot_product_attention(
            self._split(q),
            self._split(keys),
            self._split(values),
            attn_mask=blocks.hidden.unsqueeze(1).to(q.dtype),
        )  # (N, H, b, d)
        return mixed.transpose(1, 2).reshape(count, b, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, [self.heads, x.size(2) // self.heads]).transpose(1, 2)


class SummaryAttention(nn.Module):
    """The summary of a sequence attends to all of its tokens and itself.

    One query a head and sequence, so the projections of keys and values need not be applied to
    tokens: ``q . (W_k x) = (W_k^T q) . x``, and ``sum_t a_t W_v x_t = W_v sum_t a_t x_t``. A bias
    of the keys would add the same to all scores of a query: there is none.
    """

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor, summary: Tensor, blocks: Blocks) -> Tensor:
        """(N, b, D), (B, D) -> (B, D)."""
        width = summary.size(1)
        d = width // self.heads
        q = self.query(summary).unflatten(1, [self.heads, d])  # (B, H, d)
        by_head = self.key.weight.unflatten(0, [self.heads, d])  # (H, d, D)
        q = torch.einsum("bhd,hde->bhe", q, by_head.to(q.dtype)) * d**-0.5  # (B, H, D)
        scores = torch.matmul(q.index_select(0, blocks.owner), x.transpose(1, 2).to(q.dtype))
        scores = scores.to(summary.dtype).masked_fill(
            ~blocks.valid.unsqueeze(1), -torch.inf
        )  # (N, H, b)
        own = (q * summary.unsqueeze(1)).sum(2)  # (B, H)
        owners = blocks.owner.unsqueeze(1).expand(-1, self.heads)
        top = own.detach().scatter_reduce(0, owners, scores.detach().amax(2), "amax")
        weights = torch.exp(scores - top.index_select(0, blocks.owner).unsqueeze(2))
        mine = torch.exp(own - top)  # (B, H)
        total = mine.index_add(0, blocks.owner, weights.sum(2))
        parts = torch.matmul(weights, x)  # (N, H, D)
        mixed = mine.unsqueeze(2) * summary.unsqueeze(1)  # (B, H, D)
        mixed = mixed.index_add(0, blocks.owner, parts.to(mixed.dtype)) / total.unsqueeze(2)
        by_head = self.value.weight.unflatten(0, [self.heads, d])
        return torch.einsum("bhe,hde->bhd", mixed, by_head).flatten(1) + self.value.bias


class LocalBlock(nn.Module):
    """Attention and a feed-forward layer with GELU, each dropped out, added to what it reads and
    normalised, for the tokens and the summaries alike. The weights of attention are not dropped
    out: it would triple the time of attention on a CPU."""

    def __init__(self, *, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.window = WindowAttention(width=width, heads=heads)
        self.summary = SummaryAttention(width=width, heads=heads)
        self.output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.ffn_in = nn.Linear(width, hidden)
        self.ffn_out = nn.Linear(hidden, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, summary: Tensor, blocks: Blocks, summaries_only: bool
    ) -> Tuple[Tensor, Tensor]:
        """(N, b, D), (B, D) -> the same; ``summaries_only``: tokens stay as they are."""
        seen = self._rest(summary, self.summary(x, summary, blocks))
        if self.window is not None and not summaries_only:
            x = self._rest(x, self.window(x, summary, blocks))
        return x, seen

    def _rest(self, x: Tensor, mixed: Tensor) -> Tensor:
        h = self.attention_norm(x + self.dropout(self.output(mixed)))
        hidden = F.gelu(self.ffn_in(h))
        return self.ffn_norm(h + self.dropout(self.ffn_out(hidden)))


class LocalEncoder(nn.Module):
    """A stack of `LocalBlock`: Longformer's pattern (Beltagy et al. 2020,
    https://arxiv.org/abs/2004.05150) with one global token a sequence, its summary.

    The cost grows with the number of tokens, not with its square. ``summaries``: the last block
    serves summaries alone and has no attention of tokens.

    **Example**

    >>> encoder = LocalEncoder(width=8, layers=2, heads=2, hidden=16, summaries=True).eval()
    >>> owner, valid = torch.tensor([0, 0, 2]), torch.ones(3, 4, dtype=torch.bool)
    >>> blocks = in_blocks(owner, valid, window=4, single=False)
    >>> tokens, summary = encoder(torch.randn(3, 4, 8), torch.randn(3, 8), blocks, True)
    >>> summary.shape
    torch.Size([3, 8])
    """

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        summaries: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            LocalBlock(width=width, heads=heads, hidden=hidden, dropout=dropout)
            for _ in range(layers)
        )
        if summaries:
            self.only_summaries()

    @torch.jit.unused
    def only_for_tokens(self) -> List[nn.Module]:
        """What only the states of tokens need, if it is there."""
        window = self.blocks[-1].window
        return [] if window is None else [cast(nn.Module, window)]

    @torch.jit.unused
    def only_summaries(self) -> None:
        """Removes `only_for_tokens`."""
        self.blocks[-1].window = None  # type: ignore[assignment]

    def forward(
        self, x: Tensor, summary: Tensor, blocks: Blocks, summaries_only: bool
    ) -> Tuple[Tensor, Tensor]:
        """Tokens (N, b, D) and summaries (B, D) -> their states; ``summaries_only``: the last block
        leaves the tokens as they are."""
        for i, block in enumerate(self.blocks):
            last = i + 1 == len(self.blocks)
            x, summary = block(x, summary, blocks, last and summaries_only)
        return x, summary


def _neighbours(x: Tensor) -> Tensor:
    """(N, b, D) -> (N, 3 b, D): the block before, the block and the block after; the first has the
    last before it and the last the first after it, which nothing sees."""
    return torch.cat([x.roll(1, 0), x, x.roll(-1, 0)], 1)

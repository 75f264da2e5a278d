"""Lists of texts as blocks of embedded tokens, what a `LocalEncoder` reads."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.features.item_text import ItemText
from recsys.layers.dropout import Dropout
from recsys.layers.local_attention import Blocks, in_blocks

KEY, VALUE = 1, 2
"""Types of tokens; a summary has type 0."""


class Tokens(NamedTuple):
    """N blocks of b tokens: words, types, which item of the list (from 1) and the place in the list
    of tokens (from 1), all (N, b); how far behind the first of its word, (N, b)."""

    blocks: Blocks
    words: Tensor
    types: Tensor
    items: Tensor
    places: Tensor
    pieces: Tensor


class TextReader(nn.Module):
    """Embeds the tokens of the texts of a list of items, the first item first.

    ``norm(word + place + type + item)`` of each token, and for the summary, which stands before
    them, ``norm(start + place 0 + type 0 + item 0)``. Lists are cut to ``max_tokens``, the summary
    among them, and to ``max_items`` items.
    """

    starts: Tensor
    ends: Tensor
    token_words: Tensor
    token_types: Tensor
    token_pieces: Tensor

    def __init__(
        self,
        text: ItemText,
        *,
        width: int,
        max_items: int,
        max_tokens: int,
        window: int,
        dropout: float,
        std: float,
    ) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.window = window
        self.start = nn.Parameter(std * torch.randn(width))
        self.places = nn.Parameter(std * torch.randn(max_tokens, width))
        self.types = nn.Parameter(std * torch.randn(3, width))
        self.items = nn.Parameter(std * torch.randn(max_items + 1, width))
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)
        types = torch.from_numpy(text.keys).long() * (KEY - VALUE) + VALUE
        ends = torch.from_numpy(text.ends)
        for name, values in (
            ("ends", ends),
            ("starts", F.pad(ends, [1, -1])),
            ("token_words", torch.from_numpy(text.tokens)),
            ("token_types", types),
            ("token_pieces", torch.from_numpy(text.pieces)),
        ):
            self.register_buffer(name, values.to(torch.int32), persistent=False)

    def tokens(self, texts: Tensor) -> Tokens:
        """Of lists of texts (B, L), L > 0; text 0 has no token."""
        starts = self.starts[texts].long()  # (B, L)
        counts = self.ends[texts].long() - starts
        ends = counts.cumsum(1)
        total = ends[:, -1:].clamp_max(self.max_tokens - 1)  # (B, 1)
        b, most = self.window // 2, self.max_tokens - 1
        if not _exporting():
            most = max(1, int(total.max()) if total.numel() > 0 else 0)
            b = min(b, most)
        rows, n = texts.size(0), -(-most // b)
        slot = torch.arange(n * b, device=texts.device).expand(rows, n * b).contiguous()
        item = torch.searchsorted(ends, slot, right=True).clamp_max(texts.size(1) - 1)  # (B, S)
        valid = slot < total
        place = (starts - ends + counts).gather(1, item) + slot
        place = torch.where(valid, place, 0)
        owner = torch.arange(rows, device=texts.device).unsqueeze(1).expand(rows, n).reshape(-1)
        parts = [valid, place, item, slot]
        parts = [part.reshape(rows * n, b) for part in parts]
        if not _exporting():  # what is padding alone costs nothing
            kept = parts[0].any(1).nonzero().squeeze(1)
            parts = [part.index_select(0, kept) for part in parts]
            owner = owner.index_select(0, kept)
        valid, place, item, slot = parts[0], parts[1], parts[2], parts[3]
        return Tokens(
            in_blocks(owner, valid, self.window, n == 1),
            torch.where(valid, self.token_words[place].long(), 0),
            self.token_types[place].long(),
            item + 1,
            torch.where(valid, slot + 1, 0),
            self.token_pieces[place].long(),
        )

    def forward(self, tokens: Tokens, words: Tensor) -> Tensor:
        """Vectors (N, b, D) of ``tokens``, whose ``words`` (N, b, D) are these."""
        x = words + self.places[tokens.places] + self.types[tokens.types] + self.items[tokens.items]
        return self.dropout(self.norm(x))

    def summary(self, rows: int) -> Tensor:
        """(B, D): what stands before each of ``rows`` lists."""
        first = self.norm(self.start + self.places[0] + self.types[0] + self.items[0])
        return self.dropout(first.expand(rows, -1))


def newest_first(ids: Tensor, lengths: Tensor) -> Tensor:
    """Histories (B, L), padded on the right, backwards: the last item first."""
    place = lengths.unsqueeze(1) - 1 - torch.arange(ids.size(1), device=ids.device)
    return torch.where(place >= 0, ids.gather(1, place.clamp_min(0)), 0)


def _exporting() -> bool:
    """Whether shapes must not depend on values."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return False
    else:
        return torch.compiler.is_compiling()

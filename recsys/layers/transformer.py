"""Pre-norm transformer block of FT-Transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.layers.attention import InteractingLayer
from recsys.layers.dropout import Dropout


class TransformerBlock(nn.Module):
    """Self-attention and a ReGLU feed-forward layer, each on normalised input, each added back.

    ``h = x + drop(W_o MHA(norm(x)))`` and ``y = h + drop(W_2 drop(W_1 n * relu(W_g n)))`` with
    ``n = norm(h)``. Gorishniy et al., Revisiting Deep Learning Models for Tabular Data, NeurIPS
    2021, https://arxiv.org/abs/2106.11959. Projections to queries, keys and values have no biases:
    those of keys and values would do nothing, and the norm's shift does much of what the queries'
    would.

    ``attention_norm=False``: no first norm, as in the first block there. ``summary_only``: returns
    the first token alone, computed from all, as in the last block there. ``hidden``: units of the
    feed-forward layer; the dropouts are probabilities.

    **Shape** ``(B, T, width) -> (B, T, width)``, or ``(B, 1, width)`` with ``summary_only``.

    **Example**

    >>> import torch
    >>> TransformerBlock(width=8, heads=2, hidden=10)(torch.zeros(3, 5, 8)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        hidden: int,
        attention_dropout: float = 0.0,
        ffn_dropout: float = 0.0,
        residual_dropout: float = 0.0,
        attention_norm: bool = True,
        summary_only: bool = False,
    ) -> None:
        super().__init__()
        assert width % heads == 0, (width, heads)
        self.summary_only = summary_only
        self.attention_norm = nn.LayerNorm(width) if attention_norm else nn.Identity()
        self.attention = InteractingLayer(
            input_dim=width,
            attention_dim=width,
            heads=heads,
            scale=True,
            residual="none",
            relu=False,
            dropout=attention_dropout,
        )
        self.attention_output = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn_in = nn.Linear(width, 2 * hidden)
        self.ffn_dropout = Dropout(ffn_dropout)
        self.ffn_out = nn.Linear(hidden, width)
        self.residual_dropout = Dropout(residual_dropout)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)  # (B, T, d)
        if self.summary_only:
            mixed = self._attend_from_first(normed)  # (B, 1, d)
            x = x[:, :1]
        else:
            mixed = self.attention(normed)  # (B, T, d)
        h = x + self.residual_dropout(self.attention_output(mixed))  # (B, T or 1, d)
        value, gate = self.ffn_in(self.ffn_norm(h)).chunk(2, dim=2)  # (B, T or 1, hidden) each
        hidden = self.ffn_dropout(value * gate.relu())
        return h + self.residual_dropout(self.ffn_out(hidden))  # (B, T or 1, d)

    def _attend_from_first(self, x: Tensor) -> Tensor:
        """``self.attention(x)[:, :1]`` without the work for the other tokens."""
        rows, tokens, heads = x.shape[0], x.shape[1], self.attention.heads
        head, weight = self.attention.head_dim, self.attention.weight
        query = F.linear(x[:, :1], weight[0] * self.attention.factor)  # (B, 1, d)
        query = query.view(rows, 1, heads, head).transpose(1, 2)  # (B, H, 1, d / H)
        both = F.linear(x, weight[1:].flatten(0, 1)).view(rows, tokens, 2, heads, head)
        both = both.permute(2, 0, 3, 1, 4)  # (2, B, H, T, d / H)
        scores = torch.matmul(query, both[0].transpose(2, 3))  # (B, H, 1, T)
        attention = F.dropout(scores.softmax(dim=-1), self.attention.dropout, self.training)
        return torch.matmul(attention, both[1]).transpose(1, 2).flatten(2)  # (B, 1, d)

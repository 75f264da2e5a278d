"""Transformer encoders of item sequences: BERT4Rec's (post-norm) and SASRec's (pre-norm)."""

from typing import List

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.layers.dropout import Dropout
from recsys.layers.packed_attention import PackedAttention, attend


class SequenceAttention(nn.Module):
    """Multi-head attention within each sequence, with biases and an output projection.

    **Shape** packed (M, D) queries and (N, D) tokens, or padded (B, L, D) both -> the queries'.
    """

    def __init__(self, *, width: int, heads: int, causal: bool, dropout: float) -> None:
        super().__init__()
        assert width % heads == 0, (width, heads)
        self.heads = heads
        self.causal = causal
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(
        self, x: Tensor, tokens: Tensor, counts: Tensor, lengths: Tensor, everything: bool
    ) -> Tensor:
        """``x`` (M, D): ``counts[b]`` queries of sequence b; ``tokens`` (N, D): ``lengths[b]``.

        Causal attention takes ``everything`` as queries, or only the last token of each sequence.
        """
        q, kv = self.query(x), self.key_value(tokens)  # (M, D), (N, 2 D)
        causal = self.causal and everything
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            q_lengths: List[int] = counts.tolist()
            own: List[int] = lengths.tolist()
            mixed = torch.zeros_like(q)
            attend(q, kv, q_lengths, own, self.heads, causal, None, 1.0, mixed, q.new_empty(0))
        else:
            mixed = self._with_gradient(q, kv, counts, lengths, causal)
        return self.output(mixed)  # (M, D)

    @torch.jit.unused
    def _with_gradient(
        self, q: Tensor, kv: Tensor, counts: Tensor, lengths: Tensor, causal: bool
    ) -> Tensor:
        mixed: Tensor = PackedAttention.apply(
            q,
            kv,
            counts.tolist(),
            lengths.tolist(),
            self.heads,
            causal,
            self.dropout if self.training else 0.0,
        )
        return mixed

    def padded(self, x: Tensor, tokens: Tensor, visible: Tensor) -> Tensor:
        """The definition: ``visible`` (B, L, L), true where a query may see a key."""
        d = x.size(2) // self.heads
        q = self.query(x).unflatten(2, [self.heads, d]).transpose(1, 2)  # (B, H, L, d)
        kv = self.key_value(tokens).unflatten(2, [2, self.heads, d]).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            q, kv[0], kv[1], attn_mask=visible.unsqueeze(1), dropout_p=dropout
        )
        return self.output(mixed.transpose(1, 2).flatten(2))  # (B, L, D)


class EncoderBlock(nn.Module):
    """Attention and a feed-forward layer, each added to what it reads.

    Post-norm (BERT4Rec): ``h = norm(x + drop(MHA(x, x)))``, ``y = norm(h + drop(FFN(h)))``.
    Pre-norm, as SASRec's code has it: ``q = norm(x)``, ``h = q + drop(MHA(q, x))``,
    ``n = norm(h)``, ``y = n + drop(FFN(n))``: keys and values are not normalised and the sum is of
    normalised vectors. ``FFN(x) = W_2 act(W_1 x + b_1) + b_2``. That code drops out the hidden
    layer of the FFN too, and not the attention's sum: its rates are no rates for this block.
    """

    def __init__(
        self,
        *,
        attention: SequenceAttention,
        width: int,
        hidden: int,
        pre_norm: bool,
        gelu: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.pre_norm = pre_norm
        self.attention_norm = nn.LayerNorm(width)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn_in = nn.Linear(width, hidden)
        self.activation = nn.GELU() if gelu else nn.ReLU()
        self.ffn_out = nn.Linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, picked: Tensor, counts: Tensor, lengths: Tensor, everything: bool
    ) -> Tensor:
        """Packed tokens (N, D) -> (M, D), those at ``picked`` (M,), ``counts[b]`` of sequence b."""
        q = x if everything else x.index_select(0, picked)  # (M, D)
        if self.pre_norm:
            q = self.attention_norm(q)
        return self._rest(q, self.attention(q, x, counts, lengths, everything))  # (M, D)

    def padded(self, x: Tensor, visible: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        q = self.attention_norm(x) if self.pre_norm else x
        return self._rest(q, self.attention.padded(q, x, visible))

    def _rest(self, q: Tensor, mixed: Tensor) -> Tensor:
        h = q + self.dropout(mixed)
        h = self.ffn_norm(h) if self.pre_norm else self.attention_norm(h)
        hidden = self.activation(self.ffn_in(h))
        y = h + self.dropout(self.ffn_out(hidden))
        return y if self.pre_norm else self.ffn_norm(y)


class SequenceEncoder(nn.Module):
    """A stack of `EncoderBlock`; with ``pre_norm`` a last norm follows.

    Sequences lie one behind the other (``forward``; padding costs nothing, and the last block works
    for the picked tokens only) or in a padded batch (``padded``, for GPUs and `torch.export`).

    **Example**

    >>> encoder = SequenceEncoder(width=8, layers=2, heads=2, hidden=16).eval()
    >>> lengths = torch.tensor([3, 0, 2])
    >>> last, ones = torch.tensor([2, 4]), torch.tensor([1, 0, 1])
    >>> encoder(torch.randn(5, 8), lengths, last, ones).shape
    torch.Size([2, 8])
    """

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        causal: bool = False,
        pre_norm: bool = False,
        gelu: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.blocks = nn.ModuleList(
            EncoderBlock(
                attention=SequenceAttention(
                    width=width, heads=heads, causal=causal, dropout=dropout
                ),
                width=width,
                hidden=hidden,
                pre_norm=pre_norm,
                gelu=gelu,
                dropout=dropout,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width) if pre_norm else nn.Identity()

    def forward(self, x: Tensor, lengths: Tensor, picked: Tensor, counts: Tensor) -> Tensor:
        """Packed tokens (N, D), ``lengths`` (B,) -> (M, D): the tokens at ``picked`` (M,), rising,
        ``counts[b]`` of them in sequence b. A causal encoder gives all, or the last of each. Tokens
        behind the last sequence are none: nothing reads them, and picked ones give anything."""
        everything = torch.equal(counts, lengths)
        if self.causal and not everything:
            assert int(counts.max()) <= 1, "a causal encoder gives all tokens, or the last of each"
        for i, block in enumerate(self.blocks):
            if i + 1 < len(self.blocks):
                x = block(x, picked, lengths, lengths, True)
            else:
                x = block(x, picked, counts, lengths, everything)
        return self.norm(x)  # (M, D)

    def padded(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D), meaningless at padding. The definition of the encoder."""
        places = torch.arange(x.size(1), device=x.device)
        visible = (places < lengths.unsqueeze(1)).unsqueeze(1)  # (B, 1, L)
        visible = visible | (places == 0)  # an empty sequence sees its padding, not nothing
        if self.causal:
            visible = visible & (places <= places.unsqueeze(1))  # (B, L, L)
        visible = visible.expand(x.size(0), x.size(1), x.size(1))
        for block in self.blocks:
            x = block.padded(x, visible)  # type: ignore[operator]
        return self.norm(x)


def bert_start(module: nn.Module, std: float) -> None:
    """Linear weights from N(0, std^2) cut at two deviations, biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(part.bias)

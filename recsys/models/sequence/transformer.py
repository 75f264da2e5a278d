"""An item table, learned positions and a transformer: what BERT4Rec and SASRec are made of."""

from typing import Mapping, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers.dropout import Dropout
from recsys.layers.sequence_encoder import SequenceEncoder
from recsys.models.sequence.items import ItemModel, packs
from recsys.types import FieldSpec

BLOCK = 512


class TransformerModel(ItemModel):
    """Tokens ``E[s_t] * scale + P[t]``, dropped out, through the encoder and a head."""

    def __init__(
        self,
        field: FieldSpec,
        layers: Mapping[str, EmbeddingLayer],
        *,
        specials: int,
        encoder: SequenceEncoder,
        input_norm: bool,
        scale: float,
        dropout: float,
        head: nn.Module,
    ) -> None:
        super().__init__(field, layers, specials=specials)
        self.positions = nn.Parameter(0.02 * torch.randn(self.max_length, self.dim))
        self.input_norm = nn.LayerNorm(self.dim) if input_norm else nn.Identity()
        self.dropout = Dropout(dropout)
        self.encoder = encoder
        self.scale = scale
        self.head = head

    def tokens(self, ids: Tensor, places: Tensor, masked: Optional[Tensor]) -> Tensor:
        """Ids and places (...) -> (..., D); ``masked`` (..., 1): where items are hidden."""
        x = self.embedding.vectors(ids, 0)
        if self.scale != 1:
            x = x * self.scale
        if masked is not None:
            x = torch.where(masked, self.hidden_item(x), x)
        x = x + self.positions[places]
        return self.dropout(self.input_norm(x))

    def hidden_item(self, x: Tensor) -> Tensor:
        """The vector that stands for a masked item; a model that masks has one."""
        return x

    def states(
        self, ids: Tensor, lengths: Tensor, masked: Optional[Tensor], picked: Tensor
    ) -> Tensor:
        """States (M, D) of the tokens that ``picked`` (B, L) names, row by row, of sequences
        ``ids`` (B, L); ``masked`` (B, L): items hidden from the model."""
        rows, length = ids.size(0), ids.size(1)
        places = torch.arange(length, device=ids.device)
        hidden: Optional[Tensor] = None
        if not packs(ids):
            if masked is not None:
                hidden = masked.unsqueeze(2)
            x = self.tokens(ids, places, hidden)  # (B, L, D)
            return self.head(self.encoder.padded(x, lengths)[picked])  # (M, D)
        valid = places < lengths.unsqueeze(1)  # (B, L)
        chosen = picked[valid].nonzero().squeeze(1)  # (M,)
        count = chosen.size(0)
        flat, at = ids[valid], places.expand(rows, length)[valid]  # (N,)
        if masked is not None:
            hidden = _spaced(masked[valid]).unsqueeze(1)
        x = self.tokens(_spaced(flat), _spaced(at), hidden)  # (N, D)
        x = self.encoder(x, lengths, _spaced(chosen), picked.sum(1))
        return self.head(x)[:count]  # (M, D)


def _spaced(x: Tensor) -> Tensor:
    """Zeros up to the next multiple of `BLOCK`, which nothing reads; bundles do without.

    A new number of tokens in every batch leaves holes of every size in the allocator's heap, and
    oneDNN compiles and keeps a bfloat16 kernel for every shape: training would grow all the time.
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return x
    else:
        return F.pad(x, [0, -x.size(0) % BLOCK])

"""GRU4Rec."""

from typing import Dict, Literal, Mapping

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from recsys.data.sequence_data import Windows
from recsys.embeddings import EmbeddingLayer
from recsys.layers.dropout import Dropout
from recsys.models.deep import Probability
from recsys.models.sequence.items import ItemModel
from recsys.models.sequence.next_item import NextItemConfig, next_item_loss, pairs, window
from recsys.types import Batch, FieldSpec, Target


class GRU4RecConfig(NextItemConfig):
    """``hidden_size``: of the GRU's state; ``None``: the embedding's width. ``dropout``: of item
    vectors and states. The other keys are those of `NextItemConfig`."""

    name: Literal["gru4rec"] = "gru4rec"
    layers: PositiveInt = 1
    hidden_size: PositiveInt | None = None
    dropout: Probability = 0.2


class GRU4Rec(ItemModel):
    """A recurrent network over the items of a history: each state predicts the next item.

    ``h_t = GRU(E[s_t], h_{t-1})`` and ``logits = (W h_t + b) E^T``. Hidasi et al., GRU4Rec, ICLR
    2016, https://arxiv.org/abs/1511.06939, with the table tied as in its later versions. Rows of
    a batch are whole windows, not parallel sessions, and the losses are those of `NextItemConfig`;
    the authors' pairwise ones lag behind cross-entropy (Klenitskiy and Vasilev, RecSys 2023).

    **Shape** batch of B histories -> queries ``(B, D)``.
    """

    Config = GRU4RecConfig

    def __init__(
        self,
        config: GRU4RecConfig,
        field: FieldSpec,
        layers: Mapping[str, EmbeddingLayer],
        *,
        specials: int = 2,
    ) -> None:
        super().__init__(field, layers, specials=specials)
        self.config = config
        self.embedding.read_whole = config.loss == "cross_entropy"
        size = config.hidden_size or self.dim
        self.dropout = Dropout(config.dropout)
        self.gru = nn.GRU(self.dim, size, config.layers, batch_first=True)
        self.output = nn.Linear(size, self.dim)

    @staticmethod
    def tables(config: GRU4RecConfig, embedding_dim: int) -> Dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"item": embedding_dim}

    @staticmethod
    def example() -> GRU4RecConfig:
        """A tiny config for the laws."""
        return GRU4RecConfig()

    @torch.jit.unused
    def windows(self, max_length: int) -> Windows:
        """How it wants its training sequences cut."""
        return window(max_length)

    def states(self, ids: Tensor) -> Tensor:
        """Ids (B, L) -> states (B, L, size); one never depends on later ids, nor on padding."""
        if ids.numel() == 0:  # the kernel refuses it
            return torch.zeros([ids.size(0), ids.size(1), self.gru.hidden_size], device=ids.device)
        return self.dropout(self.gru(self.dropout(self.embedding.vectors(ids, 0)))[0])

    def forward(self, batch: Batch) -> Tensor:
        ids, lengths = self.recent(batch, self.max_length)  # (B, L), (B,)
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            longest = ids.size(1) if torch.compiler.is_compiling() else _longest(lengths)
        else:
            longest = _longest(lengths)
        states = self.states(ids[:, :longest])  # (B, L', size)
        last = (lengths - 1).clamp_min(0)
        index = last.view(-1, 1, 1).expand(-1, 1, states.size(2))
        queries = self.output(states.gather(1, index).squeeze(1))  # (B, D)
        return self.known_rows(queries, lengths)

    @torch.jit.unused
    def loss(self, batch: Batch, target: Target) -> Tensor:
        """Mean loss of predicting each item of the windows from those before it."""
        learned, row, wanted = pairs(batch, self.specials)
        states = self.states(batch.lists[0][:, :-1])[learned]  # (N, size)
        return next_item_loss(self.config, self, self.output(states), row, wanted)


def _longest(lengths: Tensor) -> int:
    return max(int(lengths.max()), 1) if lengths.size(0) > 0 else 1

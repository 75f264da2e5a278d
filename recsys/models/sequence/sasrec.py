"""SASRec and gSASRec."""

from typing import Dict, Literal, Mapping

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from recsys.data.sequence_data import Windows
from recsys.embeddings import EmbeddingLayer
from recsys.layers.sequence_encoder import SequenceEncoder
from recsys.models.deep import Probability
from recsys.models.sequence.next_item import NextItemConfig, next_item_loss, pairs, window
from recsys.models.sequence.transformer import TransformerModel
from recsys.types import Batch, FieldSpec, Target


class SASRecConfig(NextItemConfig):
    """``hidden_units``: of the feed-forward layers; ``None``: the embedding's width, as published.
    The other keys are those of `NextItemConfig`."""

    name: Literal["sasrec"] = "sasrec"
    layers: PositiveInt = 2
    heads: PositiveInt = 1
    hidden_units: PositiveInt | None = None
    dropout: Probability = 0.2


class SASRec(TransformerModel):
    """A causal transformer: the state of each position predicts the next item.

    ``x_t = sqrt(D) E[s_t] + P[t]``, pre-norm blocks with ReLU (see `EncoderBlock`), a last norm and
    ``logits = h E^T``. Kang and McAuley, SASRec, ICDM 2018, https://arxiv.org/abs/1808.09781. With
    ``loss: gbce`` it is gSASRec (Petrov and Macdonald, RecSys 2023,
    https://arxiv.org/abs/2308.07192); with ``cross_entropy`` the model of Klenitskiy and Vasilev,
    RecSys 2023, https://arxiv.org/abs/2309.07602.

    **Shape** batch of B histories -> queries ``(B, D)``.
    """

    Config = SASRecConfig

    def __init__(
        self,
        config: SASRecConfig,
        field: FieldSpec,
        layers: Mapping[str, EmbeddingLayer],
        *,
        specials: int = 2,
    ) -> None:
        dim = layers["item"].dim
        super().__init__(
            field,
            layers,
            specials=specials,
            encoder=SequenceEncoder(
                width=dim,
                layers=config.layers,
                heads=config.heads,
                hidden=config.hidden_units or dim,
                causal=True,
                pre_norm=True,
                gelu=False,
                dropout=config.dropout,
            ),
            input_norm=False,
            scale=dim**0.5,
            dropout=config.dropout,
            head=nn.Identity(),
        )
        self.config = config
        self.embedding.read_whole = config.loss == "cross_entropy"
        for part in self.encoder.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_normal_(part.weight)
                nn.init.zeros_(part.bias)

    @staticmethod
    def tables(config: SASRecConfig, embedding_dim: int) -> Dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"item": embedding_dim}

    @staticmethod
    def example() -> SASRecConfig:
        """A tiny config for the laws."""
        return SASRecConfig()

    @torch.jit.unused
    def windows(self, max_length: int) -> Windows:
        """How it wants its training sequences cut."""
        return window(max_length)

    def forward(self, batch: Batch) -> Tensor:
        ids, lengths = self.recent(batch, self.max_length)  # (B, L), (B,)
        some = lengths.clamp_min(1)
        last = torch.arange(self.max_length, device=ids.device) == some.unsqueeze(1) - 1
        return self.known_rows(self.states(ids, some, None, last), lengths)  # (B, D)

    @torch.jit.unused
    def loss(self, batch: Batch, target: Target) -> Tensor:
        """Mean loss of predicting each item of the windows from those before it."""
        learned, row, wanted = pairs(batch, self.specials)
        ids, lengths = batch.lists[0][:, :-1], (batch.lengths[:, 0] - 1).clamp_min(0)
        inside = torch.arange(ids.size(1), device=ids.device) < lengths.unsqueeze(1)  # (B, L - 1)
        # Packed causal attention gives the states of all tokens, or it would see the future.
        states = self.states(ids, lengths, None, inside)
        chosen = learned[inside].nonzero().squeeze(1)  # (N,)
        return next_item_loss(self.config, self, states.index_select(0, chosen), row, wanted)

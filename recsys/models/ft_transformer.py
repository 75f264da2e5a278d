"""FT-Transformer: feature tokeniser and transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers import TransformerBlock
from recsys.models.deep import Probability
from recsys.types import Batch, FieldSpec, FrozenConfig


class FTTransformerConfig(FrozenConfig):
    """``width``: of tokens, a multiple of ``heads``; ``ffn_factor``: hidden units of the
    feed-forward layers as a multiple of it. The dropouts are of attention weights, of hidden units
    and of what a block adds to its input. The defaults are the paper's, but for the width
    of 192 in 8 heads there.
    """

    name: Literal["ft_transformer"] = "ft_transformer"
    blocks: PositiveInt = 3
    width: PositiveInt = 64
    heads: PositiveInt = 4
    ffn_factor: PositiveFloat = 4 / 3
    attention_dropout: Probability = 0.2
    ffn_dropout: Probability = 0.1
    residual_dropout: Probability = 0.0

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> FTTransformerConfig:
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} is the total over all heads and must be a multiple of heads "
                f"{self.heads}"
            )
        return self


class FTTransformer(nn.Module):
    """A transformer over one token per field and a [CLS] token, whose last state gives the logit.

    ``t_f = W e_f + b_f`` are the tokens, ``logit = w . relu(norm(cls)) + b`` the head; between them
    pre-norm blocks (see `TransformerBlock`), without a norm at the very start and with [CLS] as the
    only query of the last block. Gorishniy et al., Revisiting Deep Learning Models for Tabular
    Data, NeurIPS 2021, https://arxiv.org/abs/2106.11959.

    There each field's table is as wide as a token; here the table keeps the width of the run's
    embeddings and one Linear shared by all fields takes it to tokens, a factorised table of the
    paper's. A missing numeric value has a vector of its own.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = FTTransformerConfig

    def __init__(
        self,
        config: FTTransformerConfig,
        fields: Sequence[FieldSpec],
        layers: Mapping[str, EmbeddingLayer],
    ) -> None:
        super().__init__()
        self.embedding = layers["embedding"]
        self.to_tokens = nn.Linear(layers["embedding"].dim, config.width, bias=False)
        bound = config.width**-0.5
        tokens = torch.empty(len(fields), config.width).uniform_(-bound, bound)
        self.token_bias = nn.Parameter(tokens)
        self.cls = nn.Parameter(torch.empty(1, 1, config.width).uniform_(-bound, bound))
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width=config.width,
                heads=config.heads,
                hidden=max(1, int(config.width * config.ffn_factor)),
                attention_dropout=config.attention_dropout,
                ffn_dropout=config.ffn_dropout,
                residual_dropout=config.residual_dropout,
                attention_norm=i > 0,
                summary_only=i == config.blocks - 1,
            )
            for i in range(config.blocks)
        )
        self.head = nn.Sequential(nn.LayerNorm(config.width), nn.ReLU(), nn.Linear(config.width, 1))

    @staticmethod
    def tables(config: FTTransformerConfig, embedding_dim: int) -> dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"embedding": embedding_dim}

    @staticmethod
    def example() -> FTTransformerConfig:
        """A tiny config for the laws."""
        return FTTransformerConfig(blocks=2, width=16, heads=2, attention_dropout=0, ffn_dropout=0)

    def forward(self, batch: Batch) -> Tensor:
        tokens = self.to_tokens(self.embedding(batch)) + self.token_bias  # (B, F, d)
        x = torch.cat([self.cls.expand(tokens.shape[0], -1, -1), tokens], dim=1)  # (B, 1 + F, d)
        for block in self.blocks:
            x = block(x)  # (B, 1 + F, d); (B, 1, d) after the last
        return self.head(x[:, 0]).squeeze(1)  # (B,)

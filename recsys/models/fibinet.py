"""FiBiNET: feature importance and bilinear interaction network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers import SENET, BilinearInteraction
from recsys.layers.bilinear import BilinearKind
from recsys.layers.senet import Excitation
from recsys.models.deep import DeepConfig
from recsys.types import Batch, FieldSpec, InputError


class FiBiNETConfig(DeepConfig):
    """``bilinear``, ``reduction_ratio``, ``excitation``: see `BilinearInteraction` and `SENET`.

    ``shared_bilinear``: the raw and the reweighted vectors go through the same bilinear matrices
    (FuxiCTR 1, whose results are published) instead of two sets (FuxiCTR 2). ``wide`` adds
    first-order weights. The other keys are the MLP's.
    """

    name: Literal["fibinet"] = "fibinet"
    bilinear: BilinearKind = "field_interaction"
    shared_bilinear: bool = False
    reduction_ratio: PositiveInt = 3
    excitation: Excitation = "relu"
    wide: bool = True


class FiBiNET(nn.Module):
    """An MLP on the bilinear pairs of the field vectors and of the same vectors reweighted.

    ``logit = MLP([pairs(e), pairs'(SENET(e))]) [+ sum_f w_f]``. Huang et al., FiBiNET, RecSys 2019,
    https://arxiv.org/abs/1905.09433, in the form of FuxiCTR.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = FiBiNETConfig

    def __init__(
        self,
        config: FiBiNETConfig,
        fields: Sequence[FieldSpec],
        layers: Mapping[str, EmbeddingLayer],
    ) -> None:
        super().__init__()
        if len(fields) < 2:
            raise InputError("model: fibinet needs two fields; add features or use model lr or dnn")
        self.embedding = layers["embedding"]
        # Optional parts are lists of none or one: the graph holds no dead branch.
        self.wide = nn.ModuleList([layers["first_order"]] if config.wide else [])
        self.senet = SENET(
            num_fields=len(fields),
            reduction_ratio=config.reduction_ratio,
            excitation=config.excitation,
        )
        width = layers["embedding"].dim
        # The first is for the raw vectors, the last for the reweighted ones.
        self.bilinear = nn.ModuleList(
            BilinearInteraction(num_fields=len(fields), dim=width, kind=config.bilinear)
            for _ in range(1 if config.shared_bilinear else 2)
        )
        self.mlp = config.mlp(len(fields) * (len(fields) - 1) * width)

    @staticmethod
    def tables(config: FiBiNETConfig, embedding_dim: int) -> dict[str, int]:
        """The embedding layers it asks for, name -> width."""
        tables = {"embedding": embedding_dim}
        if config.wide:
            tables["first_order"] = 1
        return tables

    @staticmethod
    def example() -> FiBiNETConfig:
        """A tiny config for the laws."""
        return FiBiNETConfig(hidden_units=(8, 8), reduction_ratio=2)

    def forward(self, batch: Batch) -> Tensor:
        x = self.embedding(batch)  # (B, F, D)
        raw = self.bilinear[0](x)  # (B, P*D)
        reweighted = self.bilinear[-1](self.senet(x))  # (B, P*D)
        logits = self.mlp(torch.cat([raw, reweighted], dim=1)).squeeze(1)  # (B,)
        for first_order in self.wide:
            logits = logits + first_order(batch).flatten(1).sum(dim=1)
        return logits

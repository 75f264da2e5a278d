"""MaskNet, serial and parallel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import List, Literal

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers import MLP, Activation, FieldNorm, MaskBlock
from recsys.layers.init import linear
from recsys.models.deep import Probability, Widths
from recsys.types import Batch, FieldSpec, FrozenConfig, InputError


class MaskNetConfig(FrozenConfig):
    """The defaults are those of FuxiCTR.

    ``structure``: ``serial`` stacks mask blocks of widths ``hidden_units``; ``parallel`` puts
    ``blocks`` (default 1) mask blocks of width ``block_dim`` (default 64) side by side and an MLP
    of ``hidden_units`` on top. ``reduction_ratio``: see `MaskBlock`. ``embedding_norm``: blocks
    start from layer-normalised field vectors (masks always read the raw ones). ``layer_norm``:
    inside mask blocks. ``dropout``: after mask blocks and hidden layers.
    """

    name: Literal["masknet"] = "masknet"
    structure: Literal["serial", "parallel"] = "serial"
    blocks: PositiveInt | None = None
    block_dim: PositiveInt | None = None
    hidden_units: Widths = (64, 64, 64)
    activation: Activation = "relu"
    dropout: Probability = 0.0
    reduction_ratio: PositiveFloat = 1.0
    embedding_norm: bool = True
    layer_norm: bool = True

    @model_validator(mode="after")
    def _no_dead_settings(self) -> MaskNetConfig:
        sized = self.blocks is not None or self.block_dim is not None
        if self.structure == "serial" and sized:
            raise ValueError(
                "structure serial has one mask block per entry of hidden_units: remove blocks and "
                "block_dim, or choose structure parallel"
            )
        return self


class MaskNet(nn.Module):
    """Blocks whose inputs are multiplied by masks computed from the field vectors of the row.

    ``e`` are the field vectors, ``h_0 = LN(e)``, each field on its own. serial:
    ``h_i = MaskBlock_i(e, h_{i-1})``, ``logit = w . h_n + b``; parallel:
    ``logit = MLP([MaskBlock_1(e, h_0), ..., MaskBlock_k(e, h_0)])``. Wang et al., MaskNet, DLP-KDD
    2021, https://arxiv.org/abs/2102.07619; as FuxiCTR has it: dropout after blocks is an addition
    of theirs, and so is that ``h_0 = e`` may stay as it is.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = MaskNetConfig

    def __init__(
        self,
        config: MaskNetConfig,
        fields: Sequence[FieldSpec],
        layers: Mapping[str, EmbeddingLayer],
    ) -> None:
        super().__init__()
        self.embedding = layers["embedding"]
        dim = layers["embedding"].dim
        width = len(fields) * dim
        self.norm: nn.Module = nn.Identity()
        if config.embedding_norm:
            self.norm = FieldNorm(num_fields=len(fields), dim=dim)
        self.parallel = config.structure == "parallel"
        if self.parallel:
            block_dim, blocks = config.block_dim or 64, config.blocks or 1
            shapes = [(width, block_dim)] * blocks
            self.top: nn.Module = MLP(
                input_dim=blocks * block_dim,
                hidden_units=config.hidden_units,
                activation=config.activation,
                dropout=config.dropout,
                output_dim=1,
            )
        else:
            units = config.hidden_units
            shapes = list(zip((width, *units[:-1]), units, strict=True))
            self.top = linear(units[-1], 1)
        narrowest = min(shape[0] for shape in shapes)
        if int(config.reduction_ratio * narrowest) < 1:
            least = math.ceil(1000 / narrowest) / 1000  # rounded up: the advice must work
            raise InputError(
                f"model.reduction_ratio {config.reduction_ratio} leaves no hidden unit in the mask "
                f"of a block with {narrowest} inputs; give at least {least}"
            )
        self.blocks = nn.ModuleList(
            MaskBlock(
                mask_dim=width,
                input_dim=input_dim,
                output_dim=output_dim,
                reduction_ratio=config.reduction_ratio,
                activation=config.activation,
                dropout=config.dropout,
                layer_norm=config.layer_norm,
            )
            for input_dim, output_dim in shapes
        )

    @staticmethod
    def tables(config: MaskNetConfig, embedding_dim: int) -> dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"embedding": embedding_dim}

    @staticmethod
    def example() -> MaskNetConfig:
        """A tiny config for the laws."""
        return MaskNetConfig(hidden_units=(16, 8))

    def forward(self, batch: Batch) -> Tensor:
        x = self.embedding(batch)  # (B, F, D)
        e = x.flatten(1)  # (B, F*D)
        h = self.norm(x).flatten(1)  # (B, F*D)
        if self.parallel:
            outputs: List[Tensor] = []
            for block in self.blocks:
                outputs.append(block(e, h))  # (B, block_dim)
            h = torch.cat(outputs, 1)  # (B, blocks * block_dim)
        else:
            for block in self.blocks:
                h = block(e, h)  # (B, hidden)
        return self.top(h).squeeze(1)  # (B,)

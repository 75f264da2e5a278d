"""FinalNet: stacked factorised interaction layers, one branch or two that teach each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import List, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers import Activation, FactorizedBlock, FieldGate
from recsys.layers.factorized import Residual
from recsys.layers.init import linear
from recsys.layers.losses import cross_entropy
from recsys.models.deep import Probability, Widths
from recsys.types import Batch, FieldSpec, FrozenConfig, Target


class BlockConfig(FrozenConfig):
    """One branch; see `FactorizedBlock`."""

    hidden_units: Widths = (64, 64, 64)
    activation: Activation | None = None
    dropout: Probability = 0.0
    batch_norm: bool = True
    residual: Residual = "concat"

    @model_validator(mode="after")
    def _halves(self) -> BlockConfig:
        odd = [units for units in self.hidden_units if units % 2]
        if self.residual == "concat" and odd:
            raise ValueError(
                f"hidden_units {odd[0]}: residual concat is made of two halves; give an even "
                "number, or choose residual sum"
            )
        return self

    def block(self, input_dim: int) -> nn.Sequential:
        """The branch with its output weights: (B, input_dim) -> (B, 1)."""
        block = FactorizedBlock(
            input_dim=input_dim,
            hidden_units=self.hidden_units,
            activation=self.activation,
            dropout=self.dropout,
            batch_norm=self.batch_norm,
            residual=self.residual,
        )
        return nn.Sequential(block, linear(block.output_dim, 1))


class FinalNetConfig(FrozenConfig):
    """The defaults are those of FuxiCTR. ``block1``, ``block2``: the branches; ``block2`` ``null``
    is the paper's one-branch model (1B). ``field_gate``: `FieldGate` in front of ``block1``."""

    name: Literal["final_net"] = "final_net"
    block1: BlockConfig = BlockConfig()
    block2: BlockConfig | None = BlockConfig()
    field_gate: bool = False


class FinalNet(nn.Module):
    """Factorised interaction layers in one branch or two, whose logits are averaged.

    ``logit = (z_1 + z_2) / 2``, ``z_i = w_i . Block_i(x) + b_i``; block 1 may see gated copies of
    the field vectors beside them. With two branches the loss is the cross-entropy of the average
    plus that of each branch against the average's probability, held fixed as a soft label. Zhu et
    al., FINAL, SIGIR 2023, https://doi.org/10.1145/3539618.3591988, as FuxiCTR has it (batch norm
    after each interaction; an activation after it, not on one factor, and none by default).

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = FinalNetConfig

    def __init__(
        self,
        config: FinalNetConfig,
        fields: Sequence[FieldSpec],
        layers: Mapping[str, EmbeddingLayer],
    ) -> None:
        super().__init__()
        self.embedding = layers["embedding"]
        width = len(fields) * layers["embedding"].dim
        # Optional parts are lists of none or one: the graph holds no dead branch.
        self.field_gate = nn.ModuleList(
            [FieldGate(num_fields=len(fields))] if config.field_gate else []
        )
        self.block1 = config.block1.block(2 * width if config.field_gate else width)
        self.block2 = nn.ModuleList([config.block2.block(width)] if config.block2 else [])

    @staticmethod
    def tables(config: FinalNetConfig, embedding_dim: int) -> dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"embedding": embedding_dim}

    @staticmethod
    def example() -> FinalNetConfig:
        """A tiny config for the laws."""
        block = BlockConfig(hidden_units=(8, 8))
        return FinalNetConfig(block1=block, block2=block, field_gate=True)

    def forward(self, batch: Batch) -> Tensor:
        return self._branches(batch).mean(0)  # (B,)

    def loss(self, batch: Batch, target: Target) -> Tensor:
        """Weighted cross-entropy, with the self-distillation of two branches: a scalar."""
        branches = self._branches(batch)  # (1 or 2, B)
        logits = branches.mean(0)  # (B,)
        loss = cross_entropy(logits, target.label, target.weight)
        if len(branches) == 2:
            teacher = logits.detach().float().sigmoid()
            for branch in branches:
                loss = loss + cross_entropy(branch, teacher, target.weight)
        return loss

    def _branches(self, batch: Batch) -> Tensor:
        """The logits of each branch, (1, B) or (2, B)."""
        x = self.embedding(batch)  # (B, F, D)
        gated = x
        for gate in self.field_gate:
            gated = gate(gated)  # (B, 2 F, D)
        logits: List[Tensor] = [self.block1(gated.flatten(1)).squeeze(1)]
        for block in self.block2:
            logits.append(block(x.flatten(1)).squeeze(1))
        return torch.stack(logits)

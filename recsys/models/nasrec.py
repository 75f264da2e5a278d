"""NASRec: a network of searched blocks over dense and sparse features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, List, Literal, Tuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers.block_config import BlockConfig
from recsys.layers.choice_block import ChoiceBlock
from recsys.layers.init import linear
from recsys.types import Batch, FieldSpec, FrozenConfig

Blocks = Annotated[tuple[BlockConfig, ...], Field(min_length=1)]

BY_HAND: tuple[BlockConfig, ...] = (
    BlockConfig(dense_op="fc", dense_width=128, dense_from=(0,), sparse_from=(0,), to_dense=True),
    BlockConfig(dense_op="dot_product", dense_width=128, dense_from=(0, 1), sparse_from=(0, 1)),
    BlockConfig(dense_op="fc", dense_width=64, dense_from=(1, 2), sparse_from=(1, 2)),
)
"""A network to start from: an MLP, the pairwise products of DLRM, an MLP over both."""


class NASRecConfig(FrozenConfig):
    """``blocks``: the network, by default one made by hand; `recsys nas` searches for others."""

    name: Literal["nasrec"] = "nasrec"
    blocks: Blocks = BY_HAND

    @model_validator(mode="after")
    def _sources_come_before(self) -> NASRecConfig:
        for place, block in enumerate(self.blocks):
            for key in ("dense_from", "right_from", "sparse_from"):
                late = [source for source in getattr(block, key) if source > place]
                if late:
                    raise ValueError(
                        f"blocks.{place}.{key} names block {late[0]}, which comes later; block "
                        f"number {place + 1} can read 0 (the stem) to {place}"
                    )
        return self


class Stem(nn.Module):
    """What blocks can read as source 0, from field vectors ``(B, F, D)``: a dense part, the vectors
    of numeric fields side by side ``(B, widths)``, and the vectors of all others ``(B, n, D)``.

    Without numeric fields, or without others, both parts are all fields. The paper's dense part is
    raw numbers: times a vector each they are a factorised linear map of these, and a missing one
    has a vector of its own.
    """

    def __init__(self, fields: Sequence[FieldSpec], dim: int) -> None:
        super().__init__()
        numeric = [i for i, field in enumerate(fields) if field.kind == "numeric"]
        self.first: int = numeric[0] if numeric else 0
        self.after: int = self.first + len(numeric)
        assert numeric == list(range(self.first, self.after)), numeric
        self.parted: bool = 0 < len(numeric) < len(fields)
        self.width: int = dim * (len(numeric) if self.parted else len(fields))
        self.count: int = len(fields) - (len(numeric) if self.parted else 0)

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        if not self.parted:
            return x.flatten(1), x
        others = torch.cat([x[:, : self.first], x[:, self.after :]], dim=1)
        return x[:, self.first : self.after].flatten(1), others


class ChoiceNet(nn.Module):
    """The blocks one after the other, and ``logit = w [dense, flatten(vectors)] + b`` of the last.

    ``width`` and ``count``: of the stem. **Shape** ``(B, width), (B, count, D) -> (B,)``.
    """

    def __init__(self, blocks: Sequence[BlockConfig], *, width: int, count: int, dim: int) -> None:
        super().__init__()
        widths = [width, *(block.dense_width for block in blocks)]
        counts = [count, *(block.vectors for block in blocks)]
        self.blocks = nn.ModuleList(
            ChoiceBlock(block, widths[: k + 1], counts[: k + 1], dim)
            for k, block in enumerate(blocks)
        )
        self.output = linear(widths[-1] + counts[-1] * dim, 1)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        return self.output(self.last(dense, sparse)).squeeze(1)

    def last(self, dense: Tensor, sparse: Tensor) -> Tensor:
        """What the output reads: (B, width + count * D) of the last block."""
        dense_outputs: List[Tensor] = [dense]
        sparse_outputs: List[Tensor] = [sparse]
        for block in self.blocks:
            d, s = block(dense_outputs, sparse_outputs)
            dense_outputs.append(d)
            sparse_outputs.append(s)
        return torch.cat([dense_outputs[-1], sparse_outputs[-1].flatten(1)], dim=1)


class NASRec(nn.Module):
    """A network of blocks, each with one dense and one sparse operator over outputs of any earlier
    blocks (see `BlockConfig`). Zhang et al., NASRec, WWW 2023, https://arxiv.org/abs/2207.07187.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = NASRecConfig

    def __init__(
        self,
        config: NASRecConfig,
        fields: Sequence[FieldSpec],
        layers: Mapping[str, EmbeddingLayer],
    ) -> None:
        super().__init__()
        self.embedding = layers["embedding"]
        dim = layers["embedding"].dim
        self.stem = Stem(fields, dim)
        self.net = ChoiceNet(config.blocks, width=self.stem.width, count=self.stem.count, dim=dim)

    @staticmethod
    def tables(config: NASRecConfig, embedding_dim: int) -> dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"embedding": embedding_dim}

    @staticmethod
    def example() -> NASRecConfig:
        """A tiny config for the laws, with every operator."""
        return NASRecConfig(
            blocks=(
                BlockConfig(
                    dense_op="dot_product", dense_width=16, sparse_count=4, dense_from=(0,),
                    sparse_from=(0,), to_dense=True, to_sparse=True,
                ),
                BlockConfig(
                    dense_op="gating", dense_width=12, sparse_count=3, dense_from=(0, 1),
                    right_from=(1,), sparse_from=(0, 1), sparse_op="transformer",
                ),
                BlockConfig(
                    dense_op="sum", dense_width=8, sparse_count=2, dense_from=(1,),
                    right_from=(0, 2), sparse_from=(2,), to_dense=True,
                ),
                BlockConfig(dense_width=16, sparse_count=2, dense_from=(0, 3), sparse_from=(0, 3)),
            )
        )  # fmt: skip

    def forward(self, batch: Batch) -> Tensor:
        dense, sparse = self.stem(self.embedding(batch))
        return self.net(dense, sparse)

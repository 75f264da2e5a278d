"""Embedding tables under a byte budget.

`build_embeddings` makes the id map and the layers that a model asks for; which method plans them
is one key of the config. Adding a method: one file, one line in `EMBEDDINGS`, one in
`EmbeddingConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field
from torch import nn

from recsys.embeddings.alpt import Alpt, AlptConfig
from recsys.embeddings.double_hash import DoubleHash, DoubleHashConfig
from recsys.embeddings.frequency import Frequency, FrequencyConfig
from recsys.embeddings.full import Full, FullConfig
from recsys.embeddings.hash import Hash, HashConfig
from recsys.embeddings.hashed_mlp import HashedMlp, HashedMlpConfig
from recsys.embeddings.id_map import IdMap
from recsys.embeddings.layer import EmbeddingLayer
from recsys.embeddings.low_rank import LowRank, LowRankConfig
from recsys.embeddings.managed import Managed, ManagedConfig
from recsys.embeddings.method import TableConfig, TableMethod, TableSpec
from recsys.embeddings.mixed_dim import MixedDim, MixedDimConfig
from recsys.embeddings.numeric import NumericVectors
from recsys.embeddings.product_quant import ProductQuant, ProductQuantConfig
from recsys.embeddings.quantised import Int8, Int8Config, Int16, Int16Config
from recsys.embeddings.quotient_remainder import QuotientRemainder, QuotientRemainderConfig
from recsys.embeddings.robe import Robe, RobeConfig
from recsys.embeddings.store import build_store
from recsys.embeddings.tensor_train import TensorTrain, TensorTrainConfig
from recsys.embeddings.unified import Unified, UnifiedConfig
from recsys.settings import TrainConfig
from recsys.types import FieldSpec, InputError

__all__ = [
    "EMBEDDINGS",
    "EmbeddingConfig",
    "EmbeddingLayer",
    "IdMap",
    "TableConfig",
    "TableMethod",
    "TableSpec",
    "build_embeddings",
]

EMBEDDINGS: dict[str, type[TableMethod]] = {
    "full": Full,
    "hash": Hash,
    "double_hash": DoubleHash,
    "frequency": Frequency,
    "managed": Managed,
    "unified": Unified,
    "robe": Robe,
    "tensor_train": TensorTrain,
    "hashed_mlp": HashedMlp,
    "quotient_remainder": QuotientRemainder,
    "mixed_dim": MixedDim,
    "low_rank": LowRank,
    "product_quant": ProductQuant,
    "int8": Int8,
    "int16": Int16,
    "alpt": Alpt,
}

EmbeddingConfig = Annotated[
    FullConfig
    | HashConfig
    | DoubleHashConfig
    | FrequencyConfig
    | ManagedConfig
    | UnifiedConfig
    | RobeConfig
    | TensorTrainConfig
    | HashedMlpConfig
    | QuotientRemainderConfig
    | MixedDimConfig
    | LowRankConfig
    | ProductQuantConfig
    | Int8Config
    | Int16Config
    | AlptConfig,
    Field(discriminator="method"),
]


def build_embeddings(
    config: EmbeddingConfig,
    fields: Sequence[FieldSpec],
    dims: Mapping[str, int],
    *,
    train: TrainConfig,
) -> tuple[IdMap, dict[str, EmbeddingLayer]]:
    """The id map and one layer per entry of ``dims`` (name -> width), weights drawn from torch's
    generator.

    Errors: `InputError` for fields or a budget that the method cannot serve.
    """
    names = [field.name for field in fields]
    if len(set(names)) != len(names):
        raise InputError(f"features: names must differ, got {', '.join(names)}")
    method = EMBEDDINGS[config.method](config, fields, dims)
    row_map = method.row_map()
    index_bytes = sum(b.numel() * b.element_size() for b in row_map.buffers())
    layers: dict[str, EmbeddingLayer] = {}
    for name, dim in method.dims.items():
        layers[name] = EmbeddingLayer(
            method=method,
            dim=dim,
            combine=method.combine(dim),
            stores=[build_store(spec, train) for spec in method.tables(dim)],
            row_map=row_map,
            numeric=NumericVectors(fields=fields, dim=dim, std=config.init_std)
            if any(field.kind == "numeric" for field in fields)
            else nn.Identity(),
            train=train,
            index_bytes=0 if layers else index_bytes,
        )
    return IdMap(row_map=row_map, fields=fields), layers

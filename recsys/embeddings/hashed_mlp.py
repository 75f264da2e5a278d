"""Deep hash embeddings: a network per large field computes vectors from hashes of the id.

Kang, Cheng, Yao, Yi, Chen, Hong and Chi, "Learning to Embed Categorical Features without Embedding
Tables for Recommendation", KDD 2021, https://arxiv.org/abs/2010.10784.

An id is hashed k times into ``buckets`` values, spread over [-1, 1]; hidden layers of width h with
batch normalisation and Mish turn that code into a vector. Nothing is stored by id: any number of
ids shares the network, and no two have equal codes. It costs about ``k h + 4 h^2`` multiplications
an id, which the distinct ids of a batch alone pay. Networks move by the optimiser and the learning
rate of the model's network, not by those of tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from recsys.embeddings.computed import ComputedFields, Factory
from recsys.embeddings.hashed_mlp_store import HashedMlpStore
from recsys.embeddings.method import TableConfig, TableSpec
from recsys.embeddings.store import Store
from recsys.features.hashing import salt
from recsys.settings import TrainConfig
from recsys.types import FieldSpec

DEFAULT_BUDGET = "10MB"


class HashedMlpConfig(TableConfig):
    """``width``: h, one for all fields; or ``budget``: the largest that fits (neither: 10MB).

    ``hashes``: k; ``buckets``: values of a hash; ``hidden_layers``: all as published. Small tables
    want fewer hashes, which else take the whole budget: a network has more than ``k h`` floats.
    Networks start so that vectors have the variance ``init_std**2``, as exact rows have.
    """

    method: Literal["hashed_mlp"]
    hashes: PositiveInt = 1024
    buckets: Annotated[int, Field(ge=2)] = 1_000_000
    hidden_layers: PositiveInt = 5
    width: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_size(self) -> HashedMlpConfig:
        if self.width is not None and self.budget is not None:
            raise ValueError("give width or budget, not both; they fix the same size")
        return self


class HashedMlp(ComputedFields):
    """Every layer of the model has networks of its own, one per large field, for the same codes;
    for the width of those in narrower layers see `ComputedFields`. A field with open ids always has
    a network.

    Errors: `InputError` for a budget that width 1 exceeds.
    """

    Config = HashedMlpConfig
    config: HashedMlpConfig
    what = "width"

    def __init__(
        self, config: HashedMlpConfig, fields: Sequence[FieldSpec], dims: Mapping[str, int]
    ) -> None:
        super().__init__(config, fields, dims)
        self.use(config.width or self.solve(config.budget or DEFAULT_BUDGET))

    def words(self, rows: int | None, dim: int, size: int) -> int:
        """As published, with the biases before normalisations (h each) that are not stored here:
        ``(k + 1) h + (L - 1) h (h + 1) + (h + 1) D + 2 L h``."""
        k, layers = self.config.hashes, self.config.hidden_layers
        hidden = (k + 1) * size + (layers - 1) * size * (size + 1)
        return hidden + (size + 1) * dim + 2 * layers * size

    def store(self, owner: FieldSpec, dim: int, size: int) -> Factory:
        config = self.config

        def make(spec: TableSpec, train: TrainConfig) -> Store:
            l2 = train.embedding_l2
            return HashedMlpStore(
                salt=salt(owner.name),
                reference_salt=salt(owner.name, 1),
                buckets=config.buckets,
                code=config.hashes,
                hidden=config.hidden_layers,
                wide=size,
                width=spec.width,
                std=config.init_std,
                rows=spec.rows,
                l2=l2.value if l2.mode == "all_rows" else 0.0,
            )

        return make

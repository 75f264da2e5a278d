"""TT-Rec: the table of each large field as a tensor train of three cores.

Yin, Acun, Liu and Wu, "TT-Rec: Tensor Train Compression for Deep Learning Recommendation Models",
MLSys 2021, https://arxiv.org/abs/2101.11714.

With ``n1 n2 n3 >= n`` rows, ``d1 d2 d3 = D`` columns and rank R, an id x = (i n2 + j) n3 + k has

    e(x)[a, b, c] = G1[i, a, :] G2[j, :, b, :] G3[k, :, c],

and the table takes ``R n1 d1 + R^2 n2 d2 + R n3 d3`` floats. No two ids collide; ids that share
digits share factors, so that close ids (vocabularies are sorted by frequency) start alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import PositiveInt, model_validator

from recsys.embeddings.budget import dense_ids
from recsys.embeddings.computed import ComputedFields, Factory
from recsys.embeddings.method import TableConfig, TableSpec
from recsys.embeddings.store import Store
from recsys.embeddings.tensor_train_store import TensorTrainStore, train_words
from recsys.settings import TrainConfig
from recsys.types import FieldSpec

DEFAULT_BUDGET = "10MB"


class TensorTrainConfig(TableConfig):
    """``rank``: R, one for all fields; or ``budget``: the largest that fits (neither: 10MB).

    Cores start so that vectors have the variance ``init_std**2``, as exact rows have.
    """

    method: Literal["tensor_train"]
    rank: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_size(self) -> TensorTrainConfig:
        if self.rank is not None and self.budget is not None:
            raise ValueError("give rank or budget, not both; they fix the same size")
        return self


class TensorTrain(ComputedFields):
    """A layer of width d factors d by the same rule (first-order weights: 1, 1, 1) and has ranks
    of its own; see `ComputedFields`.

    Errors: `InputError` for a field with open ids, or a budget that rank 1 exceeds.
    """

    Config = TensorTrainConfig
    config: TensorTrainConfig
    what = "rank"

    def __init__(
        self, config: TensorTrainConfig, fields: Sequence[FieldSpec], dims: Mapping[str, int]
    ) -> None:
        super().__init__(config, fields, dims)
        for owner in self._owners.values():
            dense_ids(owner, method="tensor_train")
        self.use(config.rank or self.solve(config.budget or DEFAULT_BUDGET))

    def words(self, rows: int | None, dim: int, size: int) -> int:
        assert rows is not None
        return train_words(rows, dim, size)

    def store(self, owner: FieldSpec, dim: int, size: int) -> Factory:
        def make(spec: TableSpec, train: TrainConfig) -> Store:
            l2 = train.embedding_l2
            return TensorTrainStore.fresh(
                rows=spec.rows,
                width=spec.width,
                rank=size,
                std=self.config.init_std,
                l2=l2.value if l2.mode == "all_rows" else 0.0,
            )

        return make

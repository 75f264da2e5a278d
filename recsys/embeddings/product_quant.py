"""Product quantisation: a row is a few short codes, each naming a centroid of its field.

DPQ, vector-quantised (Chen et al., "Differentiable Product Quantization for End-to-End Embedding
Compression", https://arxiv.org/abs/1908.09756) and MGQE, where rare ids choose among fewer
centroids (Kang et al., "Learning Multi-granular Quantized Embeddings for Large-Vocab Categorical
Features in Recommender Systems", https://arxiv.org/abs/2002.08530).

    q(x) = [c_1[k_1]; ...; c_P[k_P]],    k_p = argmin_k ||c_p[k] - e_p(x)||^2,   e(x) in R^D

Training holds the full table ``e``; what is served are codes and centroids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import nn

from recsys.embeddings.budget import (
    FLOAT_BYTES,
    budget_bytes,
    dense_ids,
    owner_name,
    owners,
    refuse,
)
from recsys.embeddings.codebook_store import QuantisingStore
from recsys.embeddings.codes import code_bits, packed_bytes
from recsys.embeddings.id_map import RangeRows
from recsys.embeddings.method import TableConfig, TableMethod, TableSpec
from recsys.embeddings.row_of_tables import RowOfTables
from recsys.embeddings.store import is_sparse
from recsys.settings import TrainConfig
from recsys.types import FieldSpec

PART_WIDTH = 4
CENTROIDS = (256, 128, 64, 32, 16, 8)
TAIL_SHARE = 4


class ProductQuantConfig(TableConfig):
    """``parts``: codes of a vector of ``embedding_dim`` (default: parts about 4 wide);
    ``centroids``: per part and field (default 256). With a ``budget`` of stored bytes, those of the
    two that are not given are chosen: the most bits per id that fit, of equal ones more parts.
    ``head``: share of each field's ids, the most frequent ones, that may use all centroids (1: DPQ;
    MGQE: 0.1); the others use the first ``tail_centroids`` (default: a quarter).
    ``strength``: weight of the loss that moves centroids to the vectors they stand for.
    """

    method: Literal["product_quant"]
    parts: PositiveInt | None = None
    centroids: Annotated[int, Field(ge=2, le=256)] | None = None
    head: Annotated[float, Field(ge=0, le=1)] = 1.0
    tail_centroids: Annotated[int, Field(ge=2, le=256)] | None = None
    strength: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _fits(self) -> ProductQuantConfig:
        if self.parts is not None and self.embedding_dim % self.parts:
            raise ValueError(
                f"parts {self.parts} must divide embedding_dim {self.embedding_dim} (try one of "
                f"{', '.join(map(str, _divisors(self.embedding_dim)))})"
            )
        if self.tail_centroids is not None:
            if self.head == 1:
                raise ValueError("tail_centroids has no effect at head 1; lower head (MGQE: 0.1)")
            if self.centroids is None or self.tail_centroids > self.centroids:
                raise ValueError("tail_centroids needs centroids, and must not exceed them")
        return self


class ProductQuant(TableMethod):
    """A field that codes and centroids would enlarge keeps its exact table.

    Every other field has centroids of its own. A layer of another width than ``embedding_dim`` has
    parts of the same width, at least one: a first-order weight is one code. Errors: `InputError`
    for open ids or a budget out of reach.
    """

    Config = ProductQuantConfig
    config: ProductQuantConfig

    def __init__(
        self, config: ProductQuantConfig, fields: Sequence[FieldSpec], dims: Mapping[str, int]
    ) -> None:
        super().__init__(config, fields, dims)
        self._rows = {
            name: dense_ids(owner, method="product_quant") for name, owner in owners(fields).items()
        }
        divisors = _divisors(config.embedding_dim)
        self.parts = config.parts or max(
            p for p in divisors if p == 1 or config.embedding_dim >= p * PART_WIDTH
        )
        self.centroids = config.centroids or CENTROIDS[0]
        if config.budget is not None:
            parts = divisors if config.parts is None else [config.parts]
            centroids = CENTROIDS if config.centroids is None else [config.centroids]
            candidates = list(product(parts, centroids))
            self.parts, self.centroids = self._solve(
                candidates, budget_bytes(config.budget, fields, dims)
            )
        self._use(self.parts, self.centroids)

    def _use(self, parts: int, centroids: int) -> None:
        self.parts, self.centroids = parts, centroids
        fewer = self.config.tail_centroids or max(2, centroids // TAIL_SHARE)
        self.tail_centroids = centroids if self.config.head == 1 else fewer
        exact = FLOAT_BYTES * sum(self.dims.values())
        self.quantised = [n for n, rows in self._rows.items() if self._bytes(rows) < exact * rows]
        self._exact = [name for name in self._rows if name not in self.quantised]

    def _head(self, rows: int) -> int:
        return rows if self.config.head == 1 else round(self.config.head * rows)

    def _parts(self, dim: int) -> int:
        wanted = max(1, dim * self.parts // self.config.embedding_dim)
        return max(p for p in _divisors(dim) if p <= wanted)

    def _bytes(self, rows: int) -> int:
        """Bytes of a quantised field in all layers."""
        head, total = self._head(rows), 0
        for dim in self.dims.values():
            total += FLOAT_BYTES * self.centroids * dim
            total += packed_bytes(
                head=head,
                tail=rows - head,
                parts=self._parts(dim),
                head_bits=code_bits(self.centroids),
                tail_bits=code_bits(self.tail_centroids),
            )
        return total

    def stored_bytes(self) -> int:
        """Bytes that are served: of all layers, index structures included."""
        exact = FLOAT_BYTES * sum(self.dims.values()) * sum(self._rows[n] for n in self._exact)
        coded = sum(self._bytes(self._rows[name]) for name in self.quantised)
        return exact + coded + self.fixed_bytes()

    def _solve(self, candidates: Sequence[tuple[int, int]], budget: int) -> tuple[int, int]:
        costs = {}
        for candidate in candidates:
            self._use(*candidate)
            costs[candidate] = self.stored_bytes()
        fitting = [candidate for candidate, cost in costs.items() if cost <= budget]
        if not fitting:
            raise refuse(budget, min(costs.values()), "embedding.method product_quant")
        return max(fitting, key=lambda pair: (pair[0] * code_bits(pair[1]), pair[0]))

    def solution(self) -> dict[str, Any]:
        found = {"parts": self.parts, "centroids": self.centroids}
        if self.config.head < 1:
            found["tail_centroids"] = self.tail_centroids
        return {**found, "exact_features": len(self._exact)}

    def slots(self, f: int) -> tuple[int, ...]:
        if self.fields[f].kind == "numeric":
            return ()
        return (self._place(owner_name(self.fields[f]))[0],)

    def _place(self, owner: str) -> tuple[int, int]:
        """Table and first row of an owner: exact ones share the first table."""
        if owner in self._exact:
            return 0, sum(self._rows[n] for n in self._exact[: self._exact.index(owner)])
        return self.quantised.index(owner) + bool(self._exact), 0

    def tables(self, dim: int) -> tuple[TableSpec, ...]:
        fill = partial(nn.init.normal_, std=self.config.init_std)
        specs = []
        if self._exact:
            specs.append(TableSpec("exact", sum(self._rows[n] for n in self._exact), dim, fill))
        for name in self.quantised:
            specs.append(TableSpec(name, self._rows[name], dim, fill, store=self._store))
        return tuple(specs)

    def _store(self, spec: TableSpec, train: TrainConfig) -> QuantisingStore:
        weight = torch.empty(spec.rows, spec.width)
        spec.fill(weight)
        return QuantisingStore(
            weight=weight,
            sparse=is_sparse(spec, train),
            parts=self._parts(spec.width),
            centroids=self.centroids,
            head=self._head(spec.rows),
            tail_centroids=self.tail_centroids,
            bits=(code_bits(self.centroids), code_bits(self.tail_centroids)),
            strength=self.config.strength,
        )

    def row_map(self) -> nn.Module:
        looked_up = [field for field in self.fields if field.kind != "numeric"]
        return RangeRows(
            counts=self._counts(),
            singles=self._singles(),
            lows=[0] * len(looked_up),
            highs=[field.num_ids or 0 for field in looked_up],
            offsets=[self._place(owner_name(field))[1] for field in looked_up],
            misses=[0] * len(looked_up),
        )

    def combine(self, dim: int) -> nn.Module:
        slots = [self.slots(f) for f in range(len(self.fields))]
        return RowOfTables(
            places=[tables[0] if tables else -1 for tables in slots],
            singles=self._singles(),
        )


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]

"""The one embedding layer: rows -> vectors, for every table method and every store."""

from typing import Callable, ClassVar, List, Optional, Sequence, Tuple, cast

import torch
from torch import Tensor, nn

from recsys.embeddings.method import TableMethod
from recsys.embeddings.store import FloatStore, Store, training_bytes
from recsys.settings import TrainConfig
from recsys.types import FieldSpec, InputError, MemoryReport
from serving.encode import Batch


class EmbeddingLayer(nn.Module):
    """Vectors of all fields, F = categorical, numeric, lists (the order of ``fields``).

    Categorical: the looked-up vector. Numeric: ``x * v_f``, missing ``m_f``. Lists: the sum or mean
    (``FieldSpec.pooling``) over valid positions; an empty list gives exact zeros and no gradient.

    **Shape:** `Batch` at the rows stage -> (B, F, D).
    """

    __jit_unused_properties__: ClassVar[List[str]] = ["tables", "float_tables"]
    __jit_ignored_attributes__: ClassVar[List[str]] = ["float_tables", "_method", "_train"]
    order: Tensor
    counts: List[List[int]]  # said here, since a script cannot tell of what empty lists are

    def __init__(
        self,
        *,
        method: TableMethod,
        dim: int,
        combine: nn.Module,
        stores: Sequence[Store],
        row_map: nn.Module,
        numeric: nn.Module,
        train: TrainConfig,
        index_bytes: int = 0,
    ) -> None:
        super().__init__()
        fields = method.fields
        self.fields: Tuple[FieldSpec, ...] = fields
        self.dim: int = dim
        self.stores = nn.ModuleList(stores)
        self.row_map = row_map  # for all_vectors; the same module as the id map's
        self.combine = combine
        self.pools_first: bool = bool(getattr(combine, "linear", False))
        self.numeric = numeric
        self.singles: int = sum(field.kind == "categorical" for field in fields)
        self.numerics: int = sum(field.kind == "numeric" for field in fields)
        self.first_list: int = self.singles + self.numerics
        self.num_lists: int = len(fields) - self.first_list
        self.mean: List[bool] = [field.pooling == "mean" for field in fields]
        self.num_ids: List[int] = [field.num_ids or 0 for field in fields]
        if fields != tuple(sorted(fields, key=_rank)):
            raise InputError("fields must be ordered categorical, numeric, lists")
        slots = [method.slots(f) for f in range(len(fields))]
        joint = [table for f in range(self.singles) for table in slots[f]]
        order = sorted(range(len(joint)), key=joint.__getitem__)
        self.reorders: bool = order != list(range(len(joint)))
        self.register_buffer("order", torch.tensor(order, dtype=torch.int64), persistent=False)
        # counts[f + 1][k]: lookups of field f (-1: all categorical ones) in table k
        self.counts = [
            [list(group).count(k) for k in range(len(stores))] for group in [joint, *slots]
        ]
        self._lookups = len(joint) + sum(
            len(slots[f]) * (fields[f].max_length or 1) for f in range(self.first_list, len(fields))
        )
        self._method, self._train, self._index_bytes = method, train, index_bytes
        self.read_whole: bool = False
        """Whether training reads every id at each step, as a loss over a whole catalogue does."""

    def forward(self, batch: Batch) -> Tensor:
        parts: List[Tensor] = []
        if self.singles > 0:
            parts.append(self.combine(self._lookup(batch.ids, -1), -1))  # (B, C, D)
        if self.numerics > 0:
            parts.append(self.numeric(batch.floats))  # (B, N, D)
        for j in range(self.num_lists):
            parts.append(self._pooled(batch, j))  # (B, 1, D)
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, 1)  # (B, F, D)

    def sequence(self, batch: Batch, f: int) -> Tuple[Tensor, Tensor]:
        """Vectors of list field ``f`` (its place in ``fields``), position by position.

        Returns (B, L, D), zeros and no gradient at padding, and the mask (B, L), true where valid.
        """
        rows, mask = self._list(batch, f - self.first_list)
        vectors = self.combine(self._lookup(rows, f), f).squeeze(-2)  # (B, L, D)
        return vectors * mask.unsqueeze(-1), mask

    def all_vectors(self, f: int) -> Tensor:
        """Vectors (V, D) of all ids of field ``f`` (its place in ``fields``), by id."""
        if self.num_ids[f] == 0:
            raise ValueError("all_vectors: the field has open ids or is numeric")
        return self.vectors(torch.arange(self.num_ids[f], device=self.order.device), f)

    def vectors(self, ids: Tensor, f: int) -> Tensor:
        """Vectors (..., D) of encoded ids (...) of field ``f`` (its place in ``fields``)."""
        rows = self.row_map(ids.unsqueeze(-1), f)  # (..., T)
        return self.combine(self._lookup(rows, f), f).squeeze(-2)  # (..., D)

    def _lookup(self, rows: Tensor, f: int) -> List[Tensor]:
        """For each table the fetched rows (..., n_k, d_k); no rows of it: an empty tensor."""
        if f < 0 and self.reorders:
            rows = rows.index_select(-1, self.order)
        counts = self.counts[f + 1]
        vectors: List[Tensor] = []
        start = 0
        for k, store in enumerate(self.stores):
            if counts[k] == 0:
                vectors.append(torch.empty(0, device=rows.device))
            elif counts[k] == rows.size(-1):
                vectors.append(store(rows))
            else:
                vectors.append(store(rows.narrow(-1, start, counts[k])))
            start += counts[k]
        return vectors

    def _list(self, batch: Batch, j: int) -> Tuple[Tensor, Tensor]:
        rows = batch.lists[j]  # (B, L, T)
        positions = torch.arange(rows.size(1), device=rows.device)
        return rows, positions < batch.lengths[:, j].unsqueeze(1)  # (B, L)

    def _pooled(self, batch: Batch, j: int) -> Tensor:
        f = self.first_list + j
        rows, mask = self._list(batch, j)
        vectors = self._lookup(rows, f)
        valid = mask.unsqueeze(-1).unsqueeze(-1)  # (B, L, 1, 1)
        if self.pools_first:
            for k, part in enumerate(vectors):
                if part.dim() > 1:
                    vectors[k] = (part * valid).sum(1)  # (B, n_k, d_k)
            pooled = self.combine(vectors, f)  # (B, 1, D)
        else:
            pooled = (self.combine(vectors, f) * valid).sum(1)  # (B, 1, D)
        if self.mean[f]:
            pooled = pooled / mask.sum(1).clamp_min(1).unsqueeze(-1).unsqueeze(-1)
        return pooled

    @torch.jit.unused
    def memory(self) -> MemoryReport:
        """Sizes of this layer, from its tensors; a model's first layer counts the id map too."""
        optimizer = self._train.table_optimizer
        trained = stored = training = 0
        for k, store in enumerate(self.tables):
            fetched = sum(
                group[k] * (field.max_length or 1)
                for field, group in zip(self.fields, self.counts[1:], strict=True)
            )
            fetched *= self._train.batch_size
            if self.read_whole:
                fetched += sum(self.num_ids)
            sizes = store.memory(self._train, fetched)
            trained += sizes.trainable_params
            stored += sizes.stored_bytes
            training += sizes.training_bytes
        for part in (self.combine, self.numeric):
            for weight in part.parameters():
                trained += weight.numel()
                stored += weight.numel() * weight.element_size()
                training += training_bytes(
                    rows=weight.size(0),
                    width=weight[0].numel(),
                    optimizer=optimizer,
                    touched=None,
                )
        index = self._index_bytes + sum(
            buffer.numel() * buffer.element_size()
            for part in (self.combine, self.numeric)
            for buffer in part.buffers()
        )
        index += self.order.numel() * self.order.element_size()
        return MemoryReport(trained, stored + index, training + index, self._lookups)

    @torch.jit.unused
    def penalised(self) -> List[nn.Parameter]:
        """Parameters whose L2 is part of `penalty`, so that optimisers must not add theirs.

        L2 on all rows is meant for the vectors that a model sees. On tables and projections apart
        it would be a penalty on the rank of their product: on Frappe it held DeepFM with mixed
        dimensions at an AUC of .943, where the full table reaches .983. On the factors of a
        product it would pull those that start at one to zero. A combine that knows the vectors'
        norm says so by a method ``half_square``; a store that does, by its own `penalty`.
        """
        if self._composes():
            return [p for part in (self.stores, self.combine) for p in part.parameters()]
        return [p for store in self.tables for p in store.penalised()]

    @torch.jit.unused
    def _composes(self) -> bool:
        l2 = self._train.embedding_l2
        return l2.value > 0 and l2.mode == "all_rows" and hasattr(self.combine, "half_square")

    @torch.jit.unused
    def _half_square(self) -> Tensor:
        """Half the squared norm of the vectors of all ids."""
        half_square = cast(Callable[[List[Tensor]], Tensor], self.combine.half_square)
        return half_square([store.weight for store in self.float_tables])

    @torch.jit.unused
    def penalty(self) -> Tensor:
        """What the layer adds to the loss at each step: L2 of composed vectors, and what its
        stores add."""
        total = torch.zeros((), device=self.order.device)
        if self._composes():
            total = total + self._train.embedding_l2.value * self._half_square()
        for store in self.tables:
            extra = store.penalty()
            if extra is not None:
                total = total + extra
        return total

    @torch.jit.unused
    def finalise(self) -> "EmbeddingLayer":
        """The serving form: plain dense tables with the same numbers, so equal outputs.

        Shares memory with this layer where its tables are plain already.
        """
        return self.over([store.finalise() for store in self.tables])

    @torch.jit.unused
    def over(
        self,
        stores: Sequence[Store],
        row_map: Optional[nn.Module] = None,
        extra_index_bytes: int = 0,
        combine: Optional[nn.Module] = None,
    ) -> "EmbeddingLayer":
        """The same layer over other stores and, with them, another map from ids to their rows, and
        another way from rows to vectors."""
        layer = EmbeddingLayer(
            method=self._method,
            dim=self.dim,
            combine=self.combine if combine is None else combine,
            stores=stores,
            row_map=self.row_map if row_map is None else row_map,
            numeric=self.numeric,
            train=self._train,
            index_bytes=self._index_bytes + extra_index_bytes,
        )
        return layer.train(self.training)

    @torch.jit.unused
    def slots(self, f: int) -> Tuple[int, ...]:
        """Table of each lookup of field ``f`` (its place in ``fields``)."""
        return self._method.slots(f)

    @torch.jit.unused
    def trained(self) -> List[Tensor]:
        """The tensors that training moves, those of the stores among them."""
        own = [p for part in (self.combine, self.numeric) for p in part.parameters()]
        return [*own, *(tensor for store in self.tables for tensor in store.trained())]

    @property
    def tables(self) -> List[Store]:
        """The stores, one per table."""
        return [cast(Store, store) for store in self.stores]

    @property
    def float_tables(self) -> List[FloatStore]:
        """The stores, if all of them are tables of plain floats.

        Errors: `InputError` where the table method stores something else.
        """
        stores = [store for store in self.tables if isinstance(store, FloatStore)]
        if len(stores) < len(self.stores):
            raise InputError(
                f"embedding.method {self._method.config.method} keeps no rows of plain floats, "
                "which selection and batch-aware L2 work on; choose another method"
            )
        return stores


def _rank(field: FieldSpec) -> int:
    return 0 if field.kind == "categorical" else 1 if field.kind == "numeric" else 2

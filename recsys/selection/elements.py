"""Selection of single weights: masked tables, retraining under the mask, the smallest serving form.

Every layer has masks of its own (`RowSelection`, which gives all layers one gate per row, is for
methods that decide about whole values). Which weights go, and when, is the method's; closing,
packing and counting are here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer, IdMap
from recsys.embeddings.compact import empty
from recsys.embeddings.store import FloatStore
from recsys.selection.forms import open_rows, packed, plan
from recsys.selection.masked import MaskedStore
from recsys.selection.method import Selection
from recsys.selection.packing import PackedRows
from recsys.settings import TrainConfig
from recsys.types import InputError


class ElementSelection(Selection):
    """Wraps every store by `wrap`. Errors: `InputError` for a model without tables."""

    def __init__(self, config: Any, layers: Sequence[EmbeddingLayer], train: TrainConfig) -> None:
        self.config = config
        self.layers = list(layers)
        self.train = train
        self._sizes: Mapping[str, Any] | None = None  # what `assume` was told
        if not layers or not layers[0].tables:
            raise InputError(
                "selection works on embedding tables, and this model has none; remove the key, or "
                "give the features an encoding with ids"
            )
        for place, layer in enumerate(layers):
            for k, store in enumerate(layer.float_tables):
                if store.fused:
                    raise InputError(
                        f"train.store torchrec moves tables in the backward pass, out of reach of "
                        f"selection.method {config.method}; set train.store torch"
                    )
                layer.stores[k] = self.wrap(store, place, k)

    def wrap(self, store: FloatStore, layer: int, table: int) -> MaskedStore:
        """The store that stands in for table ``table`` of layer number ``layer``."""
        return MaskedStore(store=store)

    @property
    def stores(self) -> list[MaskedStore]:
        """All wrapped tables, layer by layer."""
        return [cast(MaskedStore, store) for layer in self.layers for store in layer.tables]

    def close(self, kept: Sequence[Tensor]) -> None:
        """Masks all but ``kept``, (R, width) for each of `stores`, for good.

        Errors: `InputError` if nothing is left.
        """
        if not any(bool(mask.any()) for mask in kept):
            raise InputError(
                f"selection.method {self.config.method} has pruned every weight; prune less"
            )
        for store, mask in zip(self.stores, kept, strict=True):
            store.close(mask)

    def gate_tensors(self) -> set[int]:
        """Ids of the tensors of `stores` that are not tables: masks, and what a method adds."""
        return {
            id(tensor)
            for store in self.stores
            for name, tensor in store.state_dict(keep_vars=True).items()
            if not name.startswith("store.")
        }

    def harden(self) -> None:
        """No mask learns from now on."""

    @property
    def parameters(self) -> int:
        """Floats of all tables, zero rows excluded."""
        sizes = [(store.weight, store.padding >= 0) for store in self.stores]
        return sum((weight.size(0) - padded) * weight.size(1) for weight, padded in sizes)

    @property
    def lookups(self) -> int:
        """Of one layer, with one position of each list."""
        first = self.layers[0]
        return sum(len(first.slots(f)) for f in range(len(first.fields)))

    def report(self) -> dict[str, Any]:
        """Rows and parameters kept (zero rows excluded), and the form of each table of each
        layer."""
        tables = self.served()
        padded = sum(store.padding >= 0 for store in self.layers[0].tables)
        form, _ = plan(tables, self.lookups)
        return {
            "method": self.config.method,
            "rows": sum(len(weight) for weight in tables[0]) - padded,
            "rows_kept": sum(form["kept_by_table"]),
            "parameters": self.parameters,
            "parameters_kept": sum(int((w != 0).sum()) for layer in tables for w in layer),
            **form,
        }

    def assume(self, report: Mapping[str, Any]) -> None:
        for per_layer in report["forms"]:
            for form in per_layer:
                empty(form)  # a report that makes no sense is refused here, not when weights load
        self._sizes = report

    def pack(self, model: nn.Module, id_map: IdMap) -> IdMap:
        """Rows without any weight leave all layers if their remap costs less than they do."""
        tables = self.served()
        form = self._sizes or plan(tables, self.lookups)[0]
        row_map, extra = id_map.row_map, 0
        kept = open_rows(tables)
        if self._sizes is not None and form["remapped"]:
            counts = form["kept_by_table"]
            kept = [torch.arange(len(m)) < n for m, n in zip(kept, counts, strict=True)]
        if form["remapped"]:
            first = self.layers[0]
            slots = [first.slots(f) for f in range(len(first.fields))]
            fewer = PackedRows(row_map=row_map, kept=kept, slots=slots, singles=id_map.singles)
            extra = sum(b.numel() * b.element_size() for b in (fewer.remap, fewer.base))
            row_map = fewer
        if self._sizes is not None:
            stores = [[empty(one) for one in layer] for layer in form["forms"]]
        else:
            stores = packed(tables, kept if form["remapped"] else None)
        for parent in list(model.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, EmbeddingLayer):
                    mine = stores[_place(self.layers, layer)]
                    setattr(parent, name, layer.over(mine, row_map, extra))
                    extra = 0  # the map is shared: it counts once
        return IdMap(row_map=row_map, fields=self.layers[0].fields)

    def training_bytes(self) -> int:
        return sum(store.mask.numel() for store in self.stores)

    def kept(self) -> list[Tensor]:
        """For each table (R,) bool: rows with a weight in any layer."""
        return open_rows(self.served())

    def served(self) -> list[list[Tensor]]:
        """For each layer what its tables give in evaluation, (R_k, width) for table k."""
        return [[cast(MaskedStore, s).served() for s in layer.tables] for layer in self.layers]


def _place(layers: Sequence[EmbeddingLayer], layer: EmbeddingLayer) -> int:
    return next(place for place, one in enumerate(layers) if one is layer)

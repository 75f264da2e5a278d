"""Selection of table rows: one gate per row, and packed tables without the closed rows.

A gate belongs to a row, not to a layer: all layers of a model look up the same rows (the vectors,
the first-order weights, FGCNN's generation table), so they share one gate per row, and a closed
row is gone from all of them. With ``embedding.method full`` a row is exactly one feature value;
with ``mixed_dim`` too; with ``hash`` it is a bucket of values, and with ``unified`` one chunk of
many values of many fields: selection then drops what is stored, not what is meant. Null and
out-of-vocabulary ids have rows like any other value. Numeric fields have no rows and no gate.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer, IdMap
from recsys.selection.gates import GatedStore, RowGates
from recsys.selection.method import Selection
from recsys.selection.packing import PackedRows
from recsys.settings import TrainConfig
from recsys.types import InputError


class RowSelection(Selection):
    """Wraps every store in a `GatedStore`; the gates of table k are those of all layers' table k.

    Errors: `InputError` for a model without tables.
    """

    def __init__(self, config: Any, layers: Sequence[EmbeddingLayer], train: TrainConfig) -> None:
        self.config = config
        self.layers = list(layers)
        self.train = train
        if not layers or not layers[0].tables:
            raise InputError(
                "selection drops rows of embedding tables, and this model has none; remove the "
                "key, or give the features an encoding with ids"
            )
        self.gates = [self.gate(store.weight.size(0)) for store in layers[0].float_tables]
        self.padded = [store.padding >= 0 for store in layers[0].float_tables]
        for layer in layers:
            sizes = [store.weight.size(0) for store in layer.float_tables]
            assert sizes == [len(gate.factors()) for gate in self.gates], "layers share their rows"
            for k, store in enumerate(layer.float_tables):
                layer.stores[k] = GatedStore(store=store, gate=self.gates[k])

    @abstractmethod
    def gate(self, rows: int) -> RowGates:
        """Gates of a table of ``rows`` rows, all exactly 1."""

    @abstractmethod
    def chosen(self) -> list[Tensor]:
        """For each table (R,) bool: rows that should stay, as things are now."""

    def kept(self) -> list[Tensor]:
        """For each table (R,) bool: rows that are open. A zero row is none."""
        masks = []
        for gate, padded in zip(self.gates, self.padded, strict=True):
            kept = gate.factors().detach().squeeze(1) != 0
            if padded:
                kept[-1] = False
            masks.append(kept)
        return masks

    def harden(self) -> None:
        """No gate learns from now on."""
        for gate in self.gates:
            gate.harden()

    @property
    def total(self) -> int:
        """Rows of all tables, zero rows excluded."""
        rows = sum(len(gate.factors()) for gate in self.gates)
        return rows - sum(self.padded)

    @torch.no_grad()
    def close(self, kept: Sequence[Tensor]) -> None:
        """Closes all but ``kept`` for good: their factor and their weights become zero.

        The weights only matter to those who look at whole tables: L2 terms and global norms.
        Errors: `InputError` if nothing is left.
        """
        if not any(bool(mask.any()) for mask in kept):
            raise InputError(
                "selection has closed every value; lower selection.strength (or raise "
                "selection.keep)"
            )
        for gate, mask in zip(self.gates, kept, strict=True):
            gate.set_open(mask)
        for layer in self.layers:
            for store, mask in zip(layer.float_tables, kept, strict=True):
                store.weight[~mask] = 0

    def gate_tensors(self) -> set[int]:
        """Ids of the gates' tensors."""
        return {id(t) for gate in self.gates for t in (*gate.parameters(), *gate.buffers())}

    def report(self) -> dict[str, Any]:
        kept = [int(mask.sum()) for mask in self.kept()]
        return {
            "method": self.config.method,
            "rows": self.total,
            "rows_kept": sum(kept),
            "kept_by_table": kept,
            "kept_by_field": self.values_kept(),
        }

    def values_kept(self) -> dict[str, list[int]]:
        """Feature -> how many of its ids have an open row, and how many ids it has.

        Features with open ids, numeric ones and those that share another's rows are left out.
        """
        kept, layer = self.kept(), self.layers[0]
        found = {}
        for f, field in enumerate(layer.fields):
            if field.num_ids is None or field.shares is not None or not layer.slots(f):
                continue
            ids = torch.arange(field.num_ids, device=layer.order.device)
            rows = layer.row_map(ids.unsqueeze(-1), f)  # (V, T)
            hits = [kept[table][rows[:, t].long()] for t, table in enumerate(layer.slots(f))]
            found[field.name] = [int(torch.stack(hits).any(0).sum()), field.num_ids]
        return found

    def assume(self, report: Mapping[str, Any]) -> None:
        for gate, count in zip(self.gates, report["kept_by_table"], strict=True):
            gate.set_open(torch.arange(len(gate.factors())) < count)

    def pack(self, model: nn.Module, id_map: IdMap) -> IdMap:
        kept = [mask.cpu() for mask in self.kept()]
        fields = self.layers[0].fields
        slots = [self.layers[0].slots(f) for f in range(len(fields))]
        row_map = PackedRows(row_map=id_map.row_map, kept=kept, slots=slots, singles=id_map.singles)
        extra = sum(b.numel() * b.element_size() for b in (row_map.remap, row_map.base))
        for parent in list(model.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, EmbeddingLayer):
                    stores = [
                        cast(GatedStore, store).packed(mask)
                        for store, mask in zip(layer.tables, kept, strict=True)
                    ]
                    setattr(parent, name, layer.over(stores, row_map, extra))
                    extra = 0  # the map is shared: it counts once
        return IdMap(row_map=row_map, fields=fields)

    def training_bytes(self) -> int:
        """Gates, their gradients and Adam's two moments, where they learn."""
        tensors = [t for gate in self.gates for t in gate.buffers()]
        learned = [p for gate in self.gates for p in gate.parameters()]
        return sum(4 * t.numel() for t in tensors) + sum(16 * p.numel() for p in learned)

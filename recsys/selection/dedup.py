"""Block deduplication: after training, blocks of rows that are nearly the same share one.

Zhang et al., "Experimental Analysis of Large-scale Learnable Vector Storage Compression", VLDB
2024, method Dedup; the idea is that of Zhou et al., "Serving deep learning models with
deduplication from relational databases", https://arxiv.org/abs/2201.10442.

Three phases: training of all rows; the search, between two phases; fine-tuning, where rows that
share storage move together. Blocks are consecutive rows of a table, which the layers of a model
have in common (see `recsys.selection.rows`), so that all of them share one map of a small integer
per block. The last block of a table, which may be incomplete and holds its zero row, stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer, IdMap
from recsys.selection.block_groups import group_blocks
from recsys.selection.method import Selection
from recsys.selection.shared_blocks import BlockPlaces, SharedBlockRows, SharingStore
from recsys.settings import TrainConfig
from recsys.training.phase import Loop, Phase
from recsys.types import FrozenConfig, InputError

DEFAULT_TOLERANCE = 0.1
WIDEST = 64.0
SEARCH_STEPS = 20


class DedupConfig(FrozenConfig):
    """Two blocks of ``block_rows`` rows are the same if a share ``similarity`` of their entries
    differ by at most ``tolerance`` (default 0.1), in units of the root mean square of their table.

    ``keep`` instead of ``tolerance``: the least tolerance at which at most this share of the blocks
    is left. ``representative``: shared rows start as the ``mean`` of the group or as its ``first``
    block, which holds the more frequent ids. The published block is 10,000 rows of 34 M; a small
    one finds more to share, at 1 to 4 bytes a block.
    """

    method: Literal["dedup"]
    block_rows: PositiveInt = 16
    similarity: Annotated[float, Field(gt=0, le=1)] = 0.7
    tolerance: PositiveFloat | None = None
    keep: Annotated[float, Field(gt=0, lt=1)] | None = None
    representative: Literal["mean", "first"] = "mean"

    @model_validator(mode="after")
    def _one_aim(self) -> DedupConfig:
        if self.tolerance is not None and self.keep is not None:
            raise ValueError("give tolerance or keep, not both; keep finds the tolerance")
        return self


class FineTune(Phase):
    """Finds the groups, once, and trains what is left."""

    def __init__(self, selection: Dedup, max_epochs: int) -> None:
        super().__init__("fine_tune", max_epochs)
        self._selection = selection

    def start(self, loop: Loop) -> None:
        self._selection.share()


class Dedup(Selection):
    """See the module's docstring.

    Errors: `InputError` for a model without tables, or one of fewer than two whole blocks.
    """

    Config = DedupConfig

    def __init__(
        self, config: DedupConfig, layers: Sequence[EmbeddingLayer], train: TrainConfig
    ) -> None:
        self.config = config
        self.layers = list(layers)
        self.train = train
        sizes = [len(store.weight) for store in layers[0].float_tables] if layers else []
        whole = [max(0, (rows - 1) // config.block_rows) for rows in sizes]
        if max(whole, default=0) < 2:
            raise InputError(
                f"selection.block_rows {config.block_rows}: no table of the model has two whole "
                "blocks that could be shared; lower it"
            )
        self.places = [BlockPlaces(rows=rows, size=config.block_rows) for rows in sizes]
        floor = sum(1 + (blocks > 0) for blocks in whole)  # one group and the last block
        if config.keep is not None and self._most() + len(sizes) < floor:
            share = floor / sum(len(places.place) for places in self.places)
            raise InputError(
                f"selection.keep {config.keep}: at blocks of {config.block_rows} rows at least "
                f"{share:.2g} of them stay; raise it or lower selection.block_rows"
            )
        for layer in layers:
            assert sizes == [len(s.weight) for s in layer.float_tables], "layers share their rows"
            for k, store in enumerate(layer.float_tables):
                layer.stores[k] = SharingStore(store=store, places=self.places[k])

    def phases(self) -> list[Phase]:
        epochs = self.train.max_epochs
        return [Phase("train", epochs), FineTune(self, epochs)]

    @torch.no_grad()
    def share(self) -> None:
        """Groups the blocks of every table as they are now; the rows of a group become one."""
        tables = [self._blocks(k) for k in range(len(self.places))]
        for k, target in enumerate(self._groups(tables)):
            places = self.places[k]
            places.place[: len(target)] = target
            gone = (~places.kept()).repeat_interleave(places.size)
            for layer in self.layers:
                weight = layer.float_tables[k].weight
                if self.config.representative == "mean":
                    _average(weight, target, places.size)
                weight[gone[: len(weight)]] = 0  # L2 terms and global norms look at whole tables

    def _groups(self, tables: Sequence[Tensor]) -> list[Tensor]:
        """For each table the first block of every block's group."""

        def groups(tolerance: float) -> list[Tensor]:
            similarity = self.config.similarity
            return [group_blocks(t, tolerance=tolerance, similarity=similarity) for t in tables]

        if self.config.keep is None:
            return groups(self.config.tolerance or DEFAULT_TOLERANCE)
        low, high = 0.0, WIDEST
        best = groups(high)
        for _ in range(SEARCH_STEPS):
            middle = (low + high) / 2 if low else high / 2
            found = groups(middle)
            if sum(len(target.unique()) for target in found) <= self._most():
                high, best = middle, found
            else:
                low = middle
        return best

    def _most(self) -> int:
        """Blocks that ``keep`` leaves beside the last ones of the tables, which stay."""
        assert self.config.keep is not None
        total = sum(len(places.place) for places in self.places)
        return round(self.config.keep * total) - len(self.places)

    def _blocks(self, k: int) -> Tensor:
        """All whole blocks but the last of table ``k``, in all layers side by side:
        (blocks, block_rows * widths), each layer in units of its root mean square."""
        size = self.config.block_rows
        parts = []
        for layer in self.layers:
            weight = layer.float_tables[k].weight.detach()
            unit = weight.square().mean().sqrt().clamp_min(torch.finfo(weight.dtype).tiny)
            whole = (len(weight) - 1) // size
            parts.append((weight[: whole * size] / unit).unflatten(0, [whole, size]).flatten(1))
        return torch.cat(parts, 1)

    def report(self) -> dict[str, Any]:
        kept = [int(places.kept().sum()) for places in self.places]
        rows = [len(store.weight) for store in self.layers[0].float_tables]
        gone = [
            int((~places.kept()).sum()) * places.size for places in self.places
        ]  # only whole blocks go
        return {
            "method": self.config.method,
            "rows": sum(rows),
            "rows_kept": sum(rows) - sum(gone),
            "blocks": sum(len(places.place) for places in self.places),
            "blocks_kept": sum(kept),
            "blocks_kept_by_table": kept,
        }

    def assume(self, report: Mapping[str, Any]) -> None:
        for places, kept in zip(self.places, report["blocks_kept_by_table"], strict=True):
            last = len(places.place) - 1
            places.place[:last] = torch.arange(last).clamp_max(max(0, kept - 2))

    def pack(self, model: nn.Module, id_map: IdMap) -> IdMap:
        for places in self.places:
            places.cpu()
        fields = self.layers[0].fields
        slots = [self.layers[0].slots(f) for f in range(len(fields))]
        row_map = SharedBlockRows(
            row_map=id_map.row_map, places=self.places, slots=slots, singles=id_map.singles
        )
        extra = sum(b.numel() * b.element_size() for b in (row_map.remap, row_map.base))
        for parent in list(model.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, EmbeddingLayer):
                    stores = [_sharing(store).packed() for store in layer.tables]
                    setattr(parent, name, layer.over(stores, row_map, extra))
                    extra = 0  # the map is shared: it counts once
        return IdMap(row_map=row_map, fields=fields)

    def training_bytes(self) -> int:
        """The places of all blocks."""
        return sum(places.place.numel() * places.place.element_size() for places in self.places)


def _sharing(store: nn.Module) -> SharingStore:
    assert isinstance(store, SharingStore)
    return store


def _average(weight: Tensor, target: Tensor, size: int) -> None:
    """Writes the mean of each group of blocks to its first block."""
    blocks = weight[: len(target) * size].unflatten(0, [len(target), size])
    total = torch.zeros_like(blocks).index_add_(0, target, blocks)
    count = torch.bincount(target, minlength=len(target)).clamp_min(1)
    first = target.unique()
    blocks[first] = total[first] / count[first].view(-1, 1, 1)
